"""The Raft core as a value: messages, ticks and proposals in; two stages of effects out.

Rules of this package
---------------------
1. Nothing here touches the outside: no socket, file, thread, clock, or random module. Time is `tick()`, chance is the
   seed that was given, the disk is a `LogView` that is read and a `Persist` that somebody else carries out.
2. What may leave only after the disk is in `Released`, and there is no `Released` without `persisted(ready)`. The order
   persist, send, apply is a type (ready.py).
3. What is to be done with a message is one table, `HANDLERS`: role x message. Terms are compared before, in `step`, in
   one place; so a handler sees only messages of its own term, and the few that concern a term nobody is in yet
   (pre-votes).
4. What must never happen is asserted where it would happen, and raises Bug, in production too. A node that stops is
   better than one that goes on wrong. `python -O` changes nothing here: no check of an invariant is an `assert`.

Where to read
-------------
    messages    what peers say                      quorum      majorities
    log         durable part + what is on its way   progress    what a leader knows of a member
    state       terms, votes, commit, membership    reads       ReadIndex
    follower, candidate, leader                     membership  the payload and the single-step changes
    ready, core the two stages and the verbs        forming, handshake, stamp, lease: rules that need no state of Raft

The paper's figure 2 is follower.append, candidate.vote_request, leader.advance_commit and Core._other_term. What goes
beyond it, and why:

- Pre-vote, check-quorum, stickiness (dissertation 4.2.3, 6.2, 9.6): a node that comes back deposes nobody, a leader
  that is cut off stops, and nobody votes while a leader may be alive. Together they have a trap: a node with a higher
  term would ignore the leader for ever while its pre-votes are refused. So appends of a lower term are answered.
- A no-op opens every term. It is what makes older entries commit (figure 8), reads safe, and membership changes safe.
- A leader sends before its own disk has the entry and counts itself afterwards, like any other voter: by `durable`.
- Votes, too, count when they are durable, the own one included.
- ReadIndex and leases rest on numbered heartbeat rounds. Their rules are in reads.py and lease.py.
- Membership changes one voter at a time, is adopted when appended and taken back when truncated (docs/consensus.md says
  why, and which published bugs that avoids). Everything is counted per (id, incarnation): a member whose disk was lost
  is another member.
- A damaged entry is neither truncated nor trusted: it is a hole. The node votes for nobody, leads nobody, acknowledges
  nothing from there on, and asks for the entry again. The identical entry goes back into its place.
- A term that jumps too far is refused: terms must last.

Assertions and where they are (numbers of the project's list of invariants)
--------------------------------------------------------------------------
    I1  one leader per term            two_leaders, State.heard_leader
    I2  one vote per term, durable     State.set_term; own vote counted in Core._settle
    I3  terms never fall               State.set_term
    I4  a leader only appends          truncate is reachable from follower code only; RaftLog.append takes last + 1 only
    I5  equal (index, term), one chain follower._diverged
    I6  committed is never truncated   RaftLog.truncate
    I7  a leader holds what is committed  leader.become_leader; follower._compare_previous, _skip_known
    I8  only the own term by counting  leader.advance_commit: index >= noop_index
    I9  match and commit never fall    Progress.acknowledge, State.commit_to
    I10 committed is durable on a quorum  own.match is `durable`; acknowledgements are in Released only
    I12 applied in order, once         Core.applied_to
    I13 base <= applied <= commit <= last  State.__init__, Core.applied_to, Core.log_trimmed
    I14 install keeps what matches     RaftLog.suffix_fits, follower.install
    I15 one single step at a time      State.adopt, leader.propose_membership

What is not here: the state machine, sessions, encoding, timers in seconds. What Raft offers and this core leaves out is
listed in docs/consensus.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from raftdb.consensus import candidate, follower, leader
from raftdb.consensus.log import LogView
from raftdb.consensus.membership import BadMembership, Change, ChangeKind, ChangeRefused
from raftdb.consensus.messages import (
    TERM_MAX,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    RefillRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)
from raftdb.consensus.progress import SNAPSHOT
from raftdb.consensus.reads import Waiting
from raftdb.consensus.ready import ReadReady, Ready, Released, RoleChange
from raftdb.consensus.state import Busy, CoreConfig, Handler, NotLeader, State
from raftdb.consensus.status import Status, status_of
from raftdb.errors import Bug, EntryDamaged
from raftdb.types import (
    ChainOf,
    HardState,
    Membership,
    NodeRef,
    Persist,
    Proposal,
    Role,
    SnapshotMeta,
)

__all__ = [
    "HANDLERS",
    "BadMembership",
    "Busy",
    "Change",
    "ChangeKind",
    "ChangeRefused",
    "Core",
    "CoreConfig",
    "LogView",
    "NotLeader",
    "ReadReady",
    "Ready",
    "Released",
    "RoleChange",
    "Status",
]

# --- the table ------------------------------------------------------------------------------------------------------


def late(core: State, sender: NodeRef, message: Message) -> str:
    """An answer to what this node was in another role: nobody waits for it."""
    return "late: an answer to another role"


def two_leaders(core: State, sender: NodeRef, message: Message) -> str:
    """A leader hears from another leader of its own term: election safety is broken (I1)."""
    raise Bug(f"two leaders in term {core.term}: {core.me.id} and {sender.id} ({type(message).__name__})")


def concede(handler: Handler) -> Handler:
    """A candidate that hears the leader of its term follows it, then does what a follower does."""

    def conceded(core: State, sender: NodeRef, message: Any) -> str | None:
        core.become_follower(core.term, sender)
        return handler(core, sender, message)

    return conceded


_FOLLOWING: Final[dict[type[Any], Handler]] = {
    Append: follower.append,
    AppendReply: late,
    Heartbeat: follower.heartbeat,
    HeartbeatReply: late,
    VoteRequest: candidate.vote_request,
    VoteReply: late,
    SnapshotOffer: follower.snapshot_offer,
    TimeoutNow: follower.timeout_now,
    ReadRequest: follower.read_request,
    ReadReply: follower.read_reply,
    RefillRequest: late,
}

#: role -> message -> what to do. Every cell is filled; terms have been compared before (see Core.step).
HANDLERS: Final[dict[Role, dict[type[Any], Handler]]] = {
    Role.FOLLOWER: _FOLLOWING,
    Role.LEARNER: {**_FOLLOWING, TimeoutNow: follower.learner_timeout_now},
    Role.CANDIDATE: {
        Append: concede(follower.append),
        AppendReply: late,
        Heartbeat: concede(follower.heartbeat),
        HeartbeatReply: late,
        VoteRequest: candidate.vote_request,
        VoteReply: candidate.vote_reply,
        SnapshotOffer: concede(follower.snapshot_offer),
        TimeoutNow: concede(follower.timeout_now),
        ReadRequest: follower.read_request,
        ReadReply: concede(follower.read_reply),
        RefillRequest: late,
    },
    Role.LEADER: {
        Append: two_leaders,
        AppendReply: leader.append_reply,
        Heartbeat: two_leaders,
        HeartbeatReply: leader.heartbeat_reply,
        VoteRequest: candidate.vote_request,
        VoteReply: late,
        SnapshotOffer: two_leaders,
        TimeoutNow: two_leaders,
        ReadRequest: leader.read_request,
        ReadReply: two_leaders,
        RefillRequest: leader.refill_request,
    },
}

#: Only the leader of a term sends these.
FROM_LEADER: Final = frozenset({Append, Heartbeat, SnapshotOffer, TimeoutNow, ReadReply})
#: A leader of a lower term must learn of the higher one, or a node that has it stays stuck (check-quorum, pre-vote).
ANSWERED_WHEN_STALE: Final = frozenset({Append, Heartbeat, SnapshotOffer})


class Core(State):
    """One member of the group. Not thread-safe; the driver owns it."""

    __slots__ = ()
    tables = HANDLERS

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy (the small-scope search clones states): all but the table of functions."""
        return {name: getattr(self, name) for name in State.__slots__ if name != "handlers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.set_role(self.role)

    def __init__(
        self,
        me: NodeRef,
        config: CoreConfig,
        log: LogView,
        hard: HardState,
        membership: Membership,
        previous_membership: Membership | None,
        commit: int,
        applied: int,
        chain_of: ChainOf,
        seed: int,
        starts: int,
        stamp: int = 0,
        snapshot: SnapshotMeta | None = None,
    ) -> None:
        """A node that starts, from what its disk holds.

        `commit` may be `applied` (what is known of it is advisory); `applied` is the state machine's. `stamp` (ms) is
        that of the last entry, else of the snapshot below the log; `snapshot` the newest durable file that may be
        offered to followers. `seed` feeds timeouts; `starts` must be larger than in any former life of this directory.
        """
        super().__init__(
            me,
            config,
            log,
            hard,
            membership,
            previous_membership,
            commit,
            applied,
            chain_of,
            seed,
            starts,
            stamp,
            snapshot,
        )

    # --- inputs -----------------------------------------------------------------------------------------------------

    def step(self, sender: NodeRef, message: Message) -> str | None:
        """A message of a peer. None: taken; else the reason why it was ignored or refused (for counters and logs)."""
        self.budget_bytes = self.config.catch_up_bytes_per_turn
        if self.retired and sender in self.retired and sender != self.leader and sender not in self.peers:
            return "a removed member"  # not so a leader that removed itself, or a member that is told of its removal
        term = message[0]
        try:
            if term != self.term:
                reason = self._other_term(sender, message, term)
                if reason is not None:
                    return reason
            return self.handlers[type(message)](self, sender, message)
        except EntryDamaged as damage:
            self.quarantine(damage.index)
            return str(damage)

    def _other_term(self, sender: NodeRef, message: Message, term: int) -> str | None:
        """Compare terms (paper figure 2, rules for all servers). None: go on with the handler."""
        if term < self.term:
            return self._lower_term(sender, message)
        if term - self.term > self.config.term_jump_max or term > TERM_MAX:
            return f"term {term} is too far ahead of {self.term}"
        kind = type(message)
        if kind is VoteRequest:
            return self._higher_vote_request(message)
        if kind in FROM_LEADER:
            self.become_follower(term, sender, f"{sender.id} leads term {term}")
            return None
        if not self.is_member(sender):
            return "not a member"
        if kind is VoteReply and message.pre and message.granted:  # type: ignore[union-attr]
            return None  # it names the term that the pre-vote asked for; nobody is in it yet
        self.become_follower(term, None, f"{sender.id} is in term {term}")
        return None

    def _lower_term(self, sender: NodeRef, message: Message) -> str:
        kind = type(message)
        if kind in ANSWERED_WHEN_STALE:
            self.send_late(sender, AppendReply(self.term, False, 0, 0, 0))
        elif kind is VoteRequest:
            self.send_late(sender, VoteReply(self.term, False, message.pre))  # type: ignore[union-attr]
        return f"late: of term {message[0]}"

    def _higher_vote_request(self, message: Message) -> str | None:
        assert type(message) is VoteRequest
        if message.pre:
            return None
        if candidate.is_bound_to_leader(self) and not message.transfer:
            return "a leader may be alive"
        self.become_follower(message.term, None, f"an election in term {message.term}")
        return None

    def tick(self) -> None:
        """One tick has passed. Messages before ticks; at most one tick per turn after a stall."""
        self.ticks += 1
        self.budget_bytes = self.config.catch_up_bytes_per_turn
        self.contact += 1
        if self.open is not None and self.open.persist is not None:
            self.open_ticks += 1
        role = self.role
        if role is Role.LEADER:
            leader.tick(self)
        elif role is Role.CANDIDATE:
            candidate.tick(self)
        else:
            follower.tick(self)
        if self.role is not Role.LEADER and (self.reads.waiting or self.reads.asked):
            self.done_reads += self.reads.expire(self.ticks, self.config.read_wait_ticks)

    def propose(self, proposals: Sequence[Proposal]) -> int:
        """Append a batch; return the index of its first entry. Raises NotLeader or Busy (nothing was appended).

        A stamp below the last one in the log is raised to it.
        """
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        return leader.propose(self, proposals)

    def propose_membership(self, change: Change, stamp: int, seed: int) -> int:
        """Append a membership entry; return its index. Raises NotLeader, Busy or ChangeRefused."""
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        return leader.propose_membership(self, change, stamp, seed)

    def read_index(self, read_id: int) -> None:
        """Ask for a linearizable read, on any node; answered in Released.reads with the same id."""
        if self.reads.count() >= self.config.reads_waiting_max:
            self.done_reads.append(ReadReady(read_id, -1))
        else:
            self.reads.waiting.append(Waiting(read_id, self.ticks))

    def transfer(self, target_id: str | None) -> None:
        """Hand over to `target_id` (None: the best voter). Raises NotLeader or ChangeRefused.

        Proposals are Busy until the target leads, or an election timeout has passed without that.
        """
        if self.role is not Role.LEADER:
            raise NotLeader(self.leader)
        leader.start_transfer(self, target_id)

    def step_down(self, reason: str) -> None:
        """A leader hands over if somebody is ready for it, and follows at once; others stay what they are."""
        if self.role is Role.LEADER:
            leader.resign(self, reason)

    def quarantine(self, index: int) -> None:
        """Entry `index` is damaged here: no votes, no leading, no acknowledgement beyond; it is asked for again."""
        if not self.log.first <= index <= self.log.durable:
            return
        if self.role is Role.LEADER:
            leader.quarantine(self, index)
            return
        self.log.holes.add(index)
        if self.role is Role.CANDIDATE:
            self.become_follower(self.term, None)

    def snapshot_received(self, meta: SnapshotMeta) -> str | None:
        """The file of Released.fetch is durable and checked: install it (Persist.install of the next Ready).

        Returns why it is not installed, or None.
        """
        try:
            return follower.install(self, meta)
        except EntryDamaged as damage:
            self.quarantine(damage.index)
            return str(damage)

    def fetch_failed(self, meta: SnapshotMeta) -> None:
        """The file could not be pulled; the leader's next offer starts anew."""
        if self.fetching == meta:
            self.fetching = None

    def applied_to(self, index: int) -> None:
        """The state machine holds everything up to `index` (I13)."""
        if not self.applied <= index <= self.commit:
            raise Bug(f"applied {index} after {self.applied}, commit {self.commit}")
        self.applied = index

    def log_trimmed(self) -> None:
        """Entries were trimmed from the log's beginning: never above applied (I13).

        A damaged entry that is trimmed is none any more: an own snapshot heals what is applied.
        """
        first = self.log.view.first  # of the disk: an install may be under way
        if first - 1 > self.applied:
            raise Bug(f"the log begins at {first} although {self.applied} is applied")
        self.log.forget_holes_below(first)

    def snapshot_available(self, meta: SnapshotMeta) -> None:
        """A newer durable snapshot may be offered to followers."""
        if self.snapshot is not None and meta.index < self.snapshot.index:
            return
        self.snapshot = meta
        if self.role is Role.LEADER:
            for peer in self.others:
                if peer.mode == SNAPSHOT and peer.snapshot_index == 0:
                    leader.offer_snapshot(self, peer)

    def unreachable(self, peer: NodeRef) -> None:
        """The connection to `peer` was lost or is new: what was under way is taken for lost."""
        progress = self.peers.get(peer)
        if progress is not None and progress.mode != SNAPSHOT:
            progress.to_probe()
            self.outbound = True
        elif progress is not None:
            progress.offer_tick = self.ticks - self.config.snapshot_retry_ticks
        if peer == self.leader and self.reads.context:
            self.reads.ask_again()

    # --- outputs ----------------------------------------------------------------------------------------------------

    def ready(self) -> Ready | None:
        """Stage one, or None when there is nothing to do."""
        if self.role is Role.LEADER:
            leader.flush(self)
        elif self.reads.waiting:
            follower.ask_leader(self)
        if self.open is not None:
            return self._sends_only()
        persist = self._persist() if self.hard_dirty or self.membership_dirty or self.log.dirty else None
        if persist is None and not self.early and not self.late and not self._has_news():
            return None
        ready = Ready(tuple(self.early), persist, persist is not None, self.round_new, self.lease_end, False)
        self._sent_early()
        self.open = ready
        self.open_ticks = 0
        self.open_late, self.late = self.late, self.open_late
        return ready

    def _sends_only(self) -> Ready | None:
        if not self.early and not self.lease_end:
            return None
        ready = Ready(tuple(self.early), None, False, self.round_new, self.lease_end, True)
        self._sent_early()
        return ready

    def _sent_early(self) -> None:
        self.early.clear()
        self.round_new = 0
        self.lease_end = False

    def _has_news(self) -> bool:
        return bool(
            self.done_reads
            or self.confirmed_new
            or self.lease_end
            or self.fetch_new is not None
            or self._applicable() > self.released_commit
            or self._role_change() is not None
        )

    def _persist(self) -> Persist:
        changes = self.log.take()
        persist = Persist(
            hard=HardState(self.term, self.vote) if self.hard_dirty else None,
            truncate_from=changes.truncate_from,
            entries=changes.entries,
            rewrite=changes.rewrite,
            membership=self.membership if self.membership_dirty else None,
            previous_membership=self.previous if self.membership_dirty else None,
            install=changes.install,
            keep_suffix=changes.keep_suffix,
        )
        self.hard_dirty = self.membership_dirty = False
        return persist

    def persisted(self, ready: Ready) -> Released:
        """Stage two: `ready.persist` is synced."""
        if ready is not self.open:
            raise Bug("persisted() is not for the open Ready")
        self.open = None
        self.open_ticks = 0
        if ready.persist is not None:
            self._settle(ready.persist)
        send = tuple(self.open_late)
        self.open_late.clear()
        applicable = self._applicable()
        if applicable > self.released_commit or self.log.holes:
            self.released_commit = max(applicable, self.applied)  # a damaged entry takes back what is not applied yet
        role = self._role_change()
        if role is not None:
            self.role_told = role
            self.role_reason = ""
        reads = tuple(self.done_reads)
        if reads:
            self.done_reads = []
        released = Released(send, self.released_commit, reads, role, self.fetch_new, self.confirmed_new, self.lease_new)
        self.fetch_new = None
        self.confirmed_new = self.lease_new = 0
        return released

    def _settle(self, persist: Persist) -> None:
        """What the disk now holds may be counted: own entries, the own vote, an installed snapshot."""
        self.log.settled()
        if persist.install is not None:
            self.applied = max(self.applied, persist.install.index)
            self.starved = False
            if self.snapshot is None or self.snapshot.index < persist.install.index:
                self.snapshot = persist.install  # the newest durable file of this node
        if self.role is Role.LEADER:
            own = self.own
            own.match = self.log.durable
            if own.voter and own.match > self.commit:
                leader.advance_commit(self)
        elif self.role is Role.CANDIDATE and not self.pre and persist.hard == (self.term, self.me):
            candidate.count_own(self)

    def _applicable(self) -> int:
        """Committed, durable here, and below every damaged entry."""
        log = self.log
        if self.starved:
            return self.released_commit
        index = min(self.commit, log.durable)
        return min(index, log.first_hole - 1) if log.holes else index

    def _role_change(self) -> RoleChange | None:
        told = self.role_told
        if told is not None and (told[0] is self.role and told[1] == self.term and told[2] == self.leader):
            return None
        return RoleChange(self.role, self.term, self.leader, self.role_reason)

    # --- what others look at ----------------------------------------------------------------------------------------

    @property
    def snapshot_wanted(self) -> bool:
        """Leader: a member waits for a snapshot that is newer than any there is."""
        return any(peer.mode == SNAPSHOT and peer.snapshot_index == 0 for peer in self.others)

    @property
    def pinned(self) -> int:
        """Leader: entries above this index should stay, since a member is pulling the snapshot below (else last)."""
        offered = [peer.snapshot_index for peer in self.others if peer.mode == SNAPSHOT and peer.snapshot_index]
        return min(offered, default=self.log.last)

    @property
    def in_flight(self) -> int:
        """Leader: own entries that are not committed yet."""
        return self.log.last - max(self.commit, self.noop_index - 1) if self.role is Role.LEADER else 0

    @property
    def read_floor(self) -> int:
        """Leader: what a view must have applied to be read from under a lease, or by a node that leads alone.

        The no-op of the term, and everything that is committed: a member that applies quicker may have served it.
        """
        return max(self.noop_index, self.commit)

    @property
    def last_index(self) -> int:
        """Last entry of the log, durable or not."""
        return self.log.last

    def matched(self) -> dict[NodeRef, int]:
        """Leader: how much of its log each other member holds durably."""
        return {peer.ref: peer.match for peer in self.others}

    def status(self) -> Status:
        return status_of(self)
