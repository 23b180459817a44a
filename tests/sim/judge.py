"""The judge: every invariant of the cluster that a simulator can see, looked at after every event, in O(1) each.

It is outside of the nodes and knows everything: each disk, each message, the one history of committed entries.
Nothing is ever compared as a whole. Logs carry a chain over their entries, so equal chains at one index are equal
prefixes; state carries a digest over what was applied; each fact (who led a term, whom a node voted for, what sits at
an index of a term) is written down when it is first seen and compared when it is seen again.

    I1  one leader per term, ever: `leaders`, checked on role changes and on each message only a leader sends
    I2  one vote per node and term: `votes`, checked on what is written and on each granted vote that leaves; durable
        first
    I3  terms never go back, not even over a restart; nothing of a term leaves before the term is durable
    I4  a leader never truncates its log
    I5  one (index, term), one chain: `chains`, checked on each entry written
    I6  nothing committed is truncated
    I7  a new leader has every committed entry
    I8  a leader's commit index moves only to entries of its own term
    I9  commit and match never go back; what a node takes for committed is what was committed
    I10 committed means durable on a majority of the voters, the leader's own flush included; no ack before the flush
    I11 the same index, the same state, at each start and after each entry; I12 each entry applied once, in order
    I13 purged <= snapshot <= applied <= commit <= last
    I14 an installed snapshot is a committed point; its matching suffix is kept, any other dropped
    I15 membership: one step at a time, after a commit of the term; members as of the log, at any time; no ghost comes
        back
    I16 what the clients saw is linearizable (world.py, when the run is over)
    I17 a linearizable read sees everything acknowledged before it began
    I18 what was refused for certain is never committed; I19 nothing is committed twice (world.py)
    I20 acknowledged means durable on a majority
    I21 a damaged node neither votes nor leads nor acknowledges beyond its damage
    I22 the cluster heals (liveness.py)
    I23 votes and acknowledgements count per incarnation (the disk of another incarnation does not count in I10)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raftdb.consensus.messages import (
    Append,
    AppendReply,
    Envelope,
    Heartbeat,
    HeartbeatReply,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftdb.types import Entry, Kind, Membership, NodeRef, Persist, Role, SnapshotMeta
from tests.sim.disk import decode_members, fold

if TYPE_CHECKING:
    from tests.sim.node import SimNode


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Judge:
    """The history of one cluster."""

    def __init__(self, formed: Membership) -> None:
        self.leaders: dict[int, NodeRef] = {}
        self.votes: dict[tuple[NodeRef, int], NodeRef] = {}
        self.chains: dict[int, int] = {}  # index << 64 | term -> chain
        self.terms = [0]  # committed entries, by index
        self.committed_terms: set[int] = set()
        self.committed_chains = [0]
        self.digests = [0]
        self.payloads: list[bytes] = [b""]
        self.committed = 0
        self.committed_in = 0  # the term of the node that knew it first: entries count for leaders of later terms
        self.proved = 0  # committed index for which a leader's majority was counted
        self.memberships: dict[int, Membership] = {0: formed}  # index << 64 | term -> members
        self.removed: dict[NodeRef, int] = {}  # removed for good -> the term in which that was committed
        self.starts: dict[NodeRef, int] = {}  # of the newest life
        self.acknowledged = 0  # every later linearizable read sees at least this index
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.checks = {
            Append: self._from_leader,
            Heartbeat: self._from_leader,
            SnapshotOffer: self._from_leader,
            TimeoutNow: self._from_leader,
            AppendReply: self._append_reply,
        }

    # --- messages ---------------------------------------------------------------------------------------------------

    def early(self, node: SimNode, envelopes: tuple[Envelope, ...]) -> None:
        """Messages that leave before the disk: nothing among them may promise anything."""
        for _, message in envelopes:
            kind = type(message)
            if kind is Append or kind is Heartbeat:
                if self.leaders.get(message.term) != node.ref:
                    self._from_leader(node, message)
            elif kind is AppendReply or kind is HeartbeatReply or kind is VoteReply:
                raise Violation("I10", f"{node.id} sends {message} before its disk")
            elif kind is VoteRequest:
                self._vote_message(node, node.ref, message)
            elif (check := self.checks.get(kind)) is not None:
                check(node, message)

    def late(self, node: SimNode, envelopes: tuple[Envelope, ...]) -> None:
        """Messages that leave after the disk: what they promise must be there."""
        term = node.disk.log.hard.term
        for to, message in envelopes:
            kind = type(message)
            if kind is VoteReply or kind is VoteRequest:
                self._vote_message(node, to, message)
                continue
            if message.term > term:
                raise Violation("I3", f"{node.id} sends {message}, its disk is in term {term}")
            if (check := self.checks.get(kind)) is not None:
                check(node, message)

    def _from_leader(self, node: SimNode, message: Any) -> None:
        if self.leaders.get(message.term) != node.ref:
            self.role(node)
        if self.leaders.get(message.term) != node.ref:
            raise Violation("I1", f"{node.id} sends {message}; {self.leaders.get(message.term)} leads that term")
        if message.term > node.disk.log.hard.term:
            raise Violation("I3", f"{node.id} leads term {message.term}, its disk is in {node.disk.log.hard.term}")

    def _append_reply(self, node: SimNode, message: AppendReply) -> None:
        log = node.disk.log
        if not message.ok or message.term < log.hard.term:
            return  # (of a former term: a later leader may have cut since what was written then)
        if message.index > log.last:
            raise Violation("I10", f"{node.id} acknowledges {message.index}, its disk ends at {log.last}")
        if node.quarantined and (holes := [i for i in node.known_holes() if i <= message.index and i in log.damaged]):
            raise Violation("I21", f"{node.id} acknowledges {message.index} beyond the damaged {holes}")

    def _vote_message(self, node: SimNode, to: NodeRef, message: Any) -> None:
        """A vote, or the request for one (which says whom its sender votes for).

        The disk is in the term of the vote and names the candidate; or it is in a later term already, where nobody can
        vote in this one any more.
        """
        asks = type(message) is VoteRequest
        if message.pre or not (asks or message.granted):
            return
        hard, candidate = node.disk.log.hard, node.ref if asks else to
        if hard.term < message.term or (hard.term == message.term and hard.vote != candidate):
            raise Violation("I2", f"{node.id} sends {message}; its disk says {hard}")
        if node.quarantined and (holes := node.known_holes()):
            raise Violation("I21", f"{node.id} sends {message} though {holes} is damaged")
        self.vote(node.ref, message.term, candidate)

    def vote(self, voter: NodeRef, term: int, candidate: NodeRef) -> None:
        known = self.votes.setdefault((voter, term), candidate)
        if known != candidate:
            raise Violation("I2", f"{voter} votes for {candidate} in term {term}, and before for {known}")

    def matched(self, node: SimNode, sender: NodeRef) -> None:
        """I9, after an acknowledgement reached a leader."""
        peer = node.core.peers.get(sender)
        if peer is None:
            return
        key = (sender, node.core.term)
        known = node.matches.get(key, 0)
        if peer.match < known:
            raise Violation("I9", f"{node.id} takes back that {sender.id} holds {known}: {peer.match}")
        node.matches[key] = peer.match

    # --- disk -------------------------------------------------------------------------------------------------------

    def persist(self, node: SimNode, persist: Persist) -> None:
        """Before a transaction is written. The disk is as the last one left it."""
        log = node.disk.log
        hard = persist.hard
        if hard is not None:
            old = log.hard
            if hard.term < old.term:
                raise Violation("I3", f"{node.id} goes back from term {old.term} to {hard.term}")
            if hard.vote is not None:
                if self.votes.get((node.ref, hard.term), hard.vote) != hard.vote:
                    raise Violation("I2", f"{node.id} writes a second vote of term {hard.term}, for {hard.vote}")
            elif hard.term == old.term and old.vote is not None:
                raise Violation("I2", f"{node.id} forgets its vote of term {old.term}")
        if persist.install is not None:
            self.install(node, persist.install, persist.keep_suffix)
        if persist.truncate_from is not None:
            self.truncate(node, persist.truncate_from)
        if persist.entries:
            self.entries(node, persist)
        if persist.rewrite:
            self.counts["refills"] += len(persist.rewrite)

    def entries(self, node: SimNode, persist: Persist) -> None:
        chains = self.chains
        for entry in persist.entries:
            key = entry.index << 64 | entry.term
            known = chains.get(key)
            if known is None:
                self.new_entry(node, entry, key, persist)
            elif known != entry.chain:
                raise Violation("I5", f"{node.id} writes another {entry.index}@{entry.term} than was written before")

    def new_entry(self, node: SimNode, entry: Entry, key: int, persist: Persist) -> None:
        """Somebody writes this entry for the first time: its leader, or a follower that got it before the leader's
        flush."""
        self.chains[key] = entry.chain
        if entry.term not in self.leaders:
            self.role(node)
        if entry.term not in self.leaders:
            raise Violation("I1", f"{node.id} writes {entry.index}@{entry.term}, but nobody leads that term")
        before = node.stamp_before(entry.index, persist)
        if entry.stamp < before:
            raise Violation("stamp", f"{entry.index}@{entry.term} is stamped {entry.stamp}, the entry before {before}")
        if entry.kind == Kind.MEMBERSHIP:
            self.membership_entry(node, entry, key, persist)

    def truncate(self, node: SimNode, index: int) -> None:
        log = node.disk.log
        self.counts["truncations"] += 1
        if (
            node.core.role is Role.LEADER
            and node.core.term == log.hard.term
            and self.leaders.get(node.core.term) == node.ref
        ):
            raise Violation("I4", f"the leader {node.id} truncates its log from {index}")
        if index <= node.commit and not node.overlap:
            raise Violation("I6", f"{node.id} truncates from {index}, committed is {node.commit}")
        if index <= self.committed and log.first <= index <= log.last and log.true_term(index) == self.terms[index]:
            raise Violation("I6", f"{node.id} truncates the committed entry {index}@{self.terms[index]}")

    def install(self, node: SimNode, meta: SnapshotMeta, keep_suffix: bool) -> None:
        log = node.disk.log
        self.counts["installs"] += 1
        if meta.index > self.committed or self.committed_chains[meta.index] != meta.chain:
            raise Violation("I14", f"{node.id} installs {meta.index}@{meta.term}, which is not a committed point")
        if meta.index <= node.applied and not any(index <= meta.index for index in log.damaged):
            raise Violation("I14", f"{node.id} installs {meta.index}, but has applied {node.applied}")
        matches = log.first - 1 <= meta.index <= log.last and log.true_term(meta.index) == meta.term
        if matches and not keep_suffix and log.last > meta.index:
            raise Violation("I14", f"{node.id} drops the suffix {meta.index + 1}..{log.last}, which matches")

    # --- roles ------------------------------------------------------------------------------------------------------

    def role(self, node: SimNode) -> None:
        """The role of a node has changed."""
        core = node.core
        if core.role is not Role.LEADER:
            return
        known = self.leaders.get(core.term)
        if known == node.ref:
            return
        if known is not None:
            raise Violation("I1", f"{node.id} leads term {core.term}, and {known} does or did")
        self.leaders[core.term] = node.ref
        self.vote(node.ref, core.term, node.ref)
        self.counts["leaders"] += 1
        self.complete(node)

    def complete(self, node: SimNode) -> None:
        """I7: everything committed is in the log of the new leader (its no-op may not be on the disk yet)."""
        log, committed = node.disk.log, self.committed
        if self.committed_in > node.core.term:
            return  # its votes came late: it leads a term that is over
        if committed > log.last or (
            committed >= log.first - 1 and log.true_chain(committed) != self.committed_chains[committed]
        ):
            raise Violation("I7", f"{node.id} leads term {node.core.term} without the committed entry {committed}")
        if node.quarantined and (holes := node.known_holes()):
            raise Violation("I21", f"{node.id} leads though {holes} is damaged")

    def started(self, node: SimNode) -> None:
        """A new life of a data directory shows more starts than any before: contexts and connections are told apart by
        that."""
        starts = node.disk.log.starts
        if starts <= self.starts.get(node.ref, 0):
            raise Violation("starts", f"{node.id} starts and shows {starts} starts, as before")
        self.starts[node.ref] = starts
        if node.applied > self.committed or node.digest != self.digests[node.applied]:
            raise Violation("I11", f"{node.id} starts with another state of {node.applied} than others had")

    # --- commit and apply -------------------------------------------------------------------------------------------

    def commit(self, node: SimNode, index: int) -> None:
        """A node takes everything up to `index` for committed. The entries are on its disk or on their way there."""
        if index < node.commit:
            raise Violation("I9", f"the commit index of {node.id} goes back from {node.commit} to {index}")
        if index > self.committed:
            self.extend(node, index)
        entry = node.entry(index)
        if entry is not None and entry.chain != self.committed_chains[index]:
            raise Violation("I9", f"{node.id} takes {index}@{entry.term} for committed; {self.terms[index]} was")
        if index > self.proved and self.leaders.get(node.core.term) == node.ref:
            self.prove(node, index)  # (it may have resigned in the same step: committing its removal was its last duty)

    def extend(self, node: SimNode, index: int) -> None:
        """The first node to learn that more is committed."""
        for number in range(self.committed + 1, index + 1):
            entry = node.entry(number)
            if entry is None:
                raise Violation("I9", f"{node.id} takes {number} for committed and does not have it")
            self.terms.append(entry.term)
            self.committed_terms.add(entry.term)
            self.committed_chains.append(entry.chain)
            self.digests.append(fold(self.digests[-1], entry.chain))
            self.payloads.append(entry.payload if entry.kind == Kind.COMMANDS else b"")
            if entry.kind == Kind.MEMBERSHIP:
                self.counts["memberships"] += 1
                self.committed_membership(number, entry.term, node.core.term)
        node.world.committed(self.committed + 1, index)
        self.committed = index
        self.committed_in = node.core.term

    def prove(self, leader: SimNode, index: int) -> None:
        """I8 and I10, where the leader moves its commit index."""
        term = leader.core.term
        if self.terms[index] != term:
            raise Violation("I8", f"{leader.id} commits {index}@{self.terms[index]} by counting in term {term}")
        voters, disks, graves = leader.voters(), leader.world.disks, leader.world.graves
        holders = 0
        for ref in voters:
            disk = graves.get(ref) or disks.get(ref)
            if disk is not None and disk.log.claims(index, term):
                holders += 1
        if 2 * holders <= len(voters):
            raise Violation("I10", f"{leader.id} commits {index}@{term}, durable on {holders} of {len(voters)} voters")
        self.proved = index

    def apply(self, node: SimNode, entry: Entry, digest: int) -> None:
        if digest != self.digests[entry.index]:
            raise Violation("I11", f"{node.id} has another state than others after applying {entry.index}")

    def bounds(self, node: SimNode) -> None:
        """I13."""
        log = node.disk.log
        if node.core.starved:
            return  # its state is older than its log: it waits for a snapshot
        snapshot = log.snapshot.index if log.snapshot is not None else log.first - 1
        if not log.first - 1 <= snapshot <= node.applied <= node.commit or node.applied > log.last:
            raise Violation(
                "I13",
                f"{node.id}: purged {log.first - 1} <= snapshot {snapshot} <= applied {node.applied}"
                f" <= commit {node.commit}, last {log.last} does not hold",
            )

    # --- membership -------------------------------------------------------------------------------------------------

    def membership_entry(self, node: SimNode, entry: Entry, key: int, persist: Persist) -> None:
        """I15, when a membership entry is written for the first time. `node` may be a follower: judge by the entry
        alone."""
        now = decode_members(entry)
        self.memberships[key] = now
        before = node.membership_before(entry.index, persist)
        if before is None:
            return
        if before.index > self.committed:
            raise Violation("I15", f"{entry.index}@{entry.term} changes the members before {before.index} is committed")
        old, new = {m.ref for m in before.voters}, {m.ref for m in now.voters}
        if len(old ^ new) > 1:
            raise Violation("I15", f"{entry.index}@{entry.term} changes more than one voter: {old} to {new}")
        if entry.term not in self.committed_terms:
            raise Violation("I15", f"{entry.index}@{entry.term} changes the members before a commit of its term")
        ghosts = [m.ref for m in now.members if self.removed.get(m.ref, entry.term + 1) <= entry.term]
        if ghosts:
            raise Violation("I15", f"{entry.index}@{entry.term} brings back {ghosts}")

    def committed_membership(self, index: int, term: int, current_term: int) -> None:
        now = self.memberships[index << 64 | term]
        earlier = [
            key >> 64 for key in self.memberships if key >> 64 < index and self.terms[key >> 64] == key & (1 << 64) - 1
        ]
        if earlier:
            last = max(earlier)
            before = self.memberships[last << 64 | self.terms[last]]
            staying = {m.ref for m in now.members}
            self.removed |= {m.ref: current_term for m in before.members if m.ref not in staying}

    def members_fit(self, node: SimNode) -> None:
        """After a transaction: the members in log/meta are those of the last membership entry in the log."""
        log = node.disk.log
        wanted = node.membership_before(log.last + 1)
        if wanted is not None and (wanted.index, wanted.members) != (log.membership.index, log.membership.members):
            raise Violation("I15", f"the members on the disk of {node.id} are not those of its log: {log.membership}")
        core = node.core  # (its last entry may be another one of that index, which is written next)
        as_written = core.last_index == log.last and core.log.last_chain == log.true_chain(log.last)
        if as_written and core.membership != log.membership:
            raise Violation("I15", f"{node.id} counts with other members than its log says: {node.core.membership}")

    # --- clients ----------------------------------------------------------------------------------------------------

    def acknowledge(self, node: SimNode, index: int) -> None:
        """I20: a client is told that its write is done."""
        if index > self.committed:
            raise Violation("I20", f"{node.id} acknowledges {index}; committed is {self.committed}")
        if index > self.acknowledged:
            self.acknowledged = index

    def read(self, node: SimNode, began: int, applied: int, how: str) -> None:
        """I17: `began` is what was acknowledged when the read was asked for."""
        self.counts["reads"] += 1
        if applied < began:
            raise Violation("I17", f"{node.id} serves a {how} read of state {applied}; {began} was acknowledged before")
        if applied > self.acknowledged:
            self.acknowledged = applied


COUNTERS = (
    "leaders",
    "truncations",
    "installs",
    "memberships",
    "refills",
    "reads",
    "lease reads",
    "lost writes",
    "torn states",
    "torn lines",
    "torn files",
    "refused files",
    "stops",
    "crashes",
    "commits",
    "acknowledged",
    "unknown",
    "cuts",
    "pauses",
    "transfers",
    "refused",
    "wipes",
    "restores",
    "halts",
    "refused peers",
    "damages",
    "spoiled",
    "encoded",
    "unsettled",
    "flooded",
    "grown",
    "replaced",
    "flipped",
    "read everywhere",
    "kept",
    "came back",
)
