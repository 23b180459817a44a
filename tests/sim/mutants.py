"""The planted bugs. Each is a bug that somebody has made, or could make, in a Raft core or in the way it uses its disk.

A row: a name, what it is, and the pieces of source that are exchanged. Where the core asserts an invariant itself, the
assertion counts as a catch; some mutants take the assertion away too, to see that the simulator does without it. Where
two rules stand behind each other there are two rows: one rule left out (the transcript of tests/scripts that was
written for this rule sees it), and both.

Left out, since nothing can see them: that a lease outlives a membership change (with single steps, each committed by a
majority that heard the leader after the round, every later majority contains one of those who promised not to vote);
that a refill counts before it is durable (whatever is said because of it leaves with the same flush); and that a
snapshot is named before it is flushed, as long as a start checks it (the one before is whole, and the log reaches back
to it).
"""

from __future__ import annotations

from typing import NamedTuple

from tests.sim.mutate import Patch

CORE = "raftdb.consensus.core"
STATE = "raftdb.consensus.state"
LEADER = "raftdb.consensus.leader"
FOLLOWER = "raftdb.consensus.follower"
CANDIDATE = "raftdb.consensus.candidate"
LOG = "raftdb.consensus.log"
READS = "raftdb.consensus.reads"
PROGRESS = "raftdb.consensus.progress"
LEASE = "raftdb.consensus.lease"
HANDSHAKE = "raftdb.consensus.handshake"
MEMBERSHIP = "raftdb.consensus.membership"
NODE = "tests.sim.node"
DISK = "tests.sim.disk"
WORLD = "tests.sim.world"


class Mutant(NamedTuple):
    """One planted bug."""

    name: str
    what: str
    patches: tuple[Patch, ...]
    readers: bool = False  # to be looked for with settings.readers
    script: str = ""  # the transcript of tests/scripts that is run when no seed has caught it


def bug(name: str, what: str, module: str, old: str, new: str, *more: Patch, script: str = "") -> Mutant:
    return Mutant(name, what, (Patch(module, old, new), *more), script=script)


ELECTIONS = [
    bug(
        "vote-not-persisted",
        "a vote in the own term is kept in memory only",
        STATE,
        "            self.term, self.vote = term, vote\n            self.hard_dirty = True",
        "            self.hard_dirty = self.hard_dirty or term != self.term\n"
        "            self.term, self.vote = term, vote",
    ),
    bug(
        "term-not-persisted",
        "a higher term that comes without a vote is kept in memory only",
        STATE,
        "            self.hard_dirty = True",
        "            self.hard_dirty = self.hard_dirty or vote is not None",
    ),
    bug(
        "vote-before-disk",
        "the answer to a vote request leaves before the vote is durable",
        CANDIDATE,
        "    core.send_late(sender, VoteReply(",
        "    core.send_early(sender, VoteReply(",
    ),
    bug(
        "vote-request-before-disk",
        "a candidate asks for votes before its own vote is durable",
        CANDIDATE,
        "    send = core.send_early if core.pre else core.send_late",
        "    send = core.send_early",
    ),
    bug(
        "second-vote",
        "a second candidate gets a vote in the same term",
        CANDIDATE,
        '    elif core.vote is not None and core.vote != sender:\n        return "voted for another"\n',
        "",
        Patch(
            STATE,
            "        if term == self.term and self.vote is not None and vote != self.vote:\n",
            "        if False:\n",
        ),
    ),
    bug(
        "vote-cleared",
        "stepping down in the same term forgets the vote (akka-raft#56, CCF#8094)",
        STATE,
        "        if term != self.term:\n            self.set_term(term, None)\n        if self.role is Role.LEADER:",
        "        if term != self.term:\n            self.set_term(term, None)\n        else:\n"
        "            self.vote = None\n"
        "        if self.role is Role.LEADER:",
    ),
    bug(
        "log-not-compared",
        "a candidate with an older log gets votes",
        CANDIDATE,
        '        return "its log is behind"',
        "        pass",
    ),
    bug(
        "log-compared-by-index",
        "votes compare the length of the logs and not the last term",
        CANDIDATE,
        "(message.last_term, message.last_index) < (core.log.last_term, core.log.last)",
        "message.last_index < core.log.last",
    ),
    bug(
        "late-votes-count",
        "a vote for an earlier campaign counts in this one",
        CANDIDATE,
        "    if message.granted and message.term != core.term + (1 if core.pre else 0):",
        "    if False:",
        Patch(
            CORE, "        if term < self.term:\n", "        if term < self.term and type(message) is not VoteReply:\n"
        ),
    ),
    bug(
        "pre-votes-count",
        "an answer to the pre-vote counts as a vote",
        CANDIDATE,
        "    if message.pre != core.pre:",
        "    if False:",
        Patch(
            CANDIDATE,
            "    if message.granted and message.term != core.term + (1 if core.pre else 0):",
            "    if False:",
        ),
    ),
    bug(
        "minority-elects",
        "half of an even number of voters elects",
        "raftdb.consensus.quorum",
        "    return size // 2 + 1",
        "    return (size + 1) // 2",
    ),
    bug(
        "incarnation-ignored",
        "votes count for the id, whatever the incarnation",
        CANDIDATE,
        '    if not is_voter(core.membership, sender):\n        return "not a voter"\n',
        "    row = core.membership.get(sender.id)\n    if row is None:\n        return None\n    sender = row.ref\n",
        Patch(WORLD, "        if node is None or node.ref != to:", "        if node is None:"),
    ),
    bug(
        "damaged-votes",
        "a node with a damaged log votes",
        CANDIDATE,
        '    if core.log.holes:\n        return "damaged entries: no votes"\n',
        "",
    ),
    bug(
        "damaged-leads",
        "a node with a damaged log campaigns",
        CANDIDATE,
        "    if core.log.holes or core.starved or",
        "    if core.starved or",
        Patch(LEADER, "    if core.log.holes or core.log.last < core.commit:", "    if core.log.last < core.commit:"),
    ),
    bug(
        "no-pre-vote",
        "a node that was cut off campaigns at once and deposes the leader when it returns",
        CANDIDATE,
        "    if core.is_sole_voter():\n        elect(core, transfer=False)",
        "    if True:\n        elect(core, transfer=False)",
    ),
    bug(
        "no-check-quorum",
        "a leader that hears nobody goes on leading",
        LEADER,
        "    return heard >= majority(len(core.voters))",
        "    return True",
    ),
    bug(
        "stale-leader-not-told",
        "appends of a lower term are not answered: with pre-vote and check-quorum a node stays stuck",
        CORE,
        "        if kind in ANSWERED_WHEN_STALE:",
        "        if False:",
        script="election_stuck_with_higher_term",
    ),
    bug(
        "timeout-now-unchecked",
        "TimeoutNow is obeyed though the log has moved on",
        FOLLOWER,
        "    if (message.last_index, message.last_term) != (core.log.last, core.log.last_term):",
        "    if False:",
        Patch(CANDIDATE, '        return "its log is behind"', "        pass"),
    ),
    bug(
        "duties-starved-by-reads",
        "each round that reads begin puts off what a leader does once per heartbeat: promotions, offers, hand-over",
        LEADER,
        "    core.heartbeat_elapsed = 0\n    core.round += 1",
        "    core.heartbeat_elapsed = 0\n    core.duties_tick = core.ticks\n    core.round += 1",
        script="reads_do_not_keep_a_leader_from_its_duties",
    ),
    bug(
        "unfit-hands-over-for-ever",
        "an unfit leader asks the same unfit voter again and again, and takes no proposals meanwhile",
        LEADER,
        "        core.transfer_failed.add(core.transferring)",
        "        pass",
        Patch(LEADER, "core.ticks + 2 * core.config.election_ticks_min", "0"),
    ),
]

REPLICATION = [
    bug(
        "truncates-what-matches",
        "an Append that comes late cuts the log behind its last entry",
        FOLLOWER,
        "        if term == entry.term:\n            if log.chain(index) != entry.chain:",
        "        if term == entry.term and index != prev_index + len(entries):\n"
        "            if log.chain(index) != entry.chain:",
        Patch(
            FOLLOWER,
            '            if index <= core.commit:\n                raise Bug(f"committed entry {index} has term {term}',
            '            if False:\n                raise Bug(f"committed entry {index} has term {term}',
        ),
        Patch(LOG, "        if index <= commit:\n", "        if False:\n"),
    ),
    bug(
        "conflict-kept",
        "a conflicting suffix is taken for the leader's",
        FOLLOWER,
        "        if term == entry.term:\n            if log.chain(index) != entry.chain:",
        "        if True:\n            if False:",
    ),
    bug(
        "previous-not-compared",
        "the entry that an Append follows on is not compared",
        FOLLOWER,
        "    if own_term != term:\n",
        "    if False:\n",
        Patch(FOLLOWER, "    if log.chain(index) != chain:\n", "    if False:\n"),
        Patch(
            FOLLOWER,
            "        if chain_of(log.last_chain, index, entry_term, kind, stamp, seed, payload) != chain:",
            "        if False:",
        ),
    ),
    bug(
        "acknowledges-all",
        "an Append acknowledges the whole log, not what it proved to match",
        FOLLOWER,
        "    acknowledge(core, sender, max(last_new, core.commit))",
        "    acknowledge(core, sender, core.log.last)",
    ),
    bug(
        "ack-before-disk",
        "an acknowledgement leaves before its entries are durable",
        FOLLOWER,
        "    core.send_late(leader, AppendReply(core.term, True,",
        "    core.send_early(leader, AppendReply(core.term, True,",
    ),
    bug(
        "ack-beyond-hole",
        "a node with a damaged entry acknowledges what lies behind it",
        STATE,
        "        return min(index, self.log.first_open_hole - 1) if self.log.holes else index",
        "        return index",
    ),
    bug(
        "match-decreases",
        "a late acknowledgement sets match back",
        PROGRESS,
        "        if index > self.match:\n            self.match = index",
        "        self.match = index",
    ),
    bug(
        "lost-append-not-resent",
        "an append that was lost is never sent again",
        LEADER,
        "    find_losses(core, peer, number, last)\n",
        "",
    ),
    bug(
        "refusal-goes-nowhere",
        "a refused append is tried again at the same place",
        LEADER,
        "    peer.to_probe(next_index)\n",
        "    peer.to_probe(prev_index + 1)\n",
    ),
    bug(
        "truncation-forgotten",
        "a truncation is done in memory and not on the disk",
        LOG,
        "            self.truncate_from = index if self.truncate_from is None else min(index, self.truncate_from)",
        "            self.truncate_from = None",
    ),
    bug(
        "flush-counts-truncated",
        "entries cut while they were being flushed count as durable",
        LOG,
        "        self.open_last = min(self.open_last, index - 1)\n",
        "",
    ),
    bug(
        "stamps-go-back",
        "a new leader stamps earlier than the last entry",
        LEADER,
        "        if stamp < log.last_stamp:\n            stamp = log.last_stamp\n",
        "",
    ),
    bug(
        "no-refill",
        "nobody asks for a damaged entry again",
        FOLLOWER,
        "        core.send_late(core.leader, RefillRequest(core.term, index))",
        "        pass",
    ),
    bug(
        "last-term-of-hole",
        "the last entry was damaged and refilled, its term stays unknown (found by this simulator)",
        LOG,
        "        if entry.index == self.last:\n",
        "        if False:\n",
    ),
]

COMMIT = [
    bug(
        "older-term-commits",
        "entries of older terms commit by counting (Figure 8)",
        LEADER,
        "    if index > core.commit and index >= core.noop_index:",
        "    if index > core.commit:",
    ),
    bug(
        "no-noop",
        "a new leader appends no no-op and takes its commit index for current",
        LEADER,
        "    core.noop_index = core.log.last + 1\n"
        '    append(core, (Proposal(Kind.NOOP, 0, core.chance.next(), b""),))\n',
        "    core.noop_index = core.commit\n    core.outbound = True\n",
    ),
    bug(
        "commit-without-min",
        "a follower takes the leader's commit index though its log may differ there",
        FOLLOWER,
        "        core.commit_to(min(commit, last_new))",
        "        core.commit_to(min(commit, core.log.last))",
    ),
    bug(
        "heartbeat-commit-without-min",
        "a heartbeat tells a commit index beyond what the follower has acknowledged",
        LEADER,
        "        commit = min(core.commit, peer.match)\n",
        "        commit = core.commit\n",
        Patch(FOLLOWER, "    if message.commit > core.log.last:", "    if False:"),
        Patch(
            FOLLOWER,
            "        core.commit_to(message.commit)",
            "        core.commit_to(min(message.commit, core.log.last))",
        ),
    ),
    bug(
        "self-counted-before-disk",
        "the leader counts itself before its own flush",
        LEADER,
        "    index = reached([peer.match for peer in core.voters])",
        "    index = reached([core.log.last if peer is core.own else peer.match for peer in core.voters])",
    ),
    bug(
        "learner-counted",
        "learners count for commit",
        LEADER,
        "    core.voters = [peer for peer in (core.own, *core.others) if peer.voter]",
        "    core.voters = [core.own, *core.others]",
    ),
    bug(
        "applies-before-disk",
        "a follower applies what others have committed before its own log has it",
        CORE,
        "        index = min(self.commit, log.durable)\n",
        "        index = min(self.commit, log.last)\n",
    ),
    bug(
        "applies-damaged",
        "a damaged entry does not stop what is released for applying",
        CORE,
        "        return min(index, log.first_hole - 1) if log.holes else index",
        "        return index",
        Patch(
            NODE,
            "            if index in log.damaged:\n                self.quarantine(index)\n                break\n",
            "            if index in log.damaged:\n                continue\n",
        ),
    ),
]

READ = [
    bug(
        "read-joins-round-under-way",
        "a read is confirmed by a round that was sent before it came",
        LEADER,
        "        core.reads.start_round(core.round, core.commit)",
        "        core.reads.start_round(core.confirmed_round + 1, core.commit)",
    ),
    bug(
        "read-without-round",
        "a leader answers reads at once",
        LEADER,
        "        core.reads.start_round(core.round, core.commit)",
        "        core.reads.start_round(0, core.commit)\n        for batch in core.reads.confirmed(0):\n"
        "            core.done_reads += [ReadReady(read.read_id, batch.index) for read in batch.local]\n"
        "            for ref, context in batch.remote.items():\n"
        "                core.send_early(ref, ReadReply(core.term, context, batch.index))",
    ),
    bug(
        "read-before-noop",
        "a new leader answers reads before an entry of its term is committed (redisraft#18)",
        LEADER,
        "    if core.commit >= core.noop_index:\n        core.reads.start_round",
        "    if True:\n        core.reads.start_round",
    ),
    bug(
        "read-of-applied",
        "the read index is what the leader has applied",
        LEADER,
        "        core.reads.start_round(core.round, core.commit)",
        "        core.reads.start_round(core.round, core.applied)",
    ),
    bug(
        "read-of-former-life",
        "an answer to a read of a former life is taken for the present one",
        READS,
        "        self.context = ((self.starts << COUNTER_BITS) | (self.counter & ((1 << COUNTER_BITS) -"
        " 1))) & ((1 << 64) - 1)",
        "        self.context = self.counter",
        script="read_answer_to_a_former_life",
    ),
    bug(
        "read-late-context",
        "any answer answers the reads that are under way",
        READS,
        "        if not self.context or context != self.context:",
        "        if not self.context:",
    ),
    bug(
        "read-asked-anew",
        "a read's request that is not answered soon is dropped for a new one: over a long line none is ever answered",
        FOLLOWER,
        "        repeat_request(core)\n",
        "        core.reads.ask_again()\n",
        script="reads_are_answered_over_a_slow_link",
    ),
    bug(
        "read-not-awaited",
        "a follower serves a read before it has applied the read index",
        NODE,
        "        for op in [op for op, index in self.reads.items() if 0 <= index <= self.applied]:",
        "        for op in [op for op, index in self.reads.items() if 0 <= index]:",
    ),
]

LEASES = [
    bug(
        "lease-from-answer",
        "a lease counts from the answer of the quorum, not from the sending",
        LEASE,
        "                self.until_ms = max(self.until_ms, sent_ms + self.lease_ms)",
        "                self.until_ms = max(self.until_ms, self.sent[-1][1] + self.lease_ms)",
    ),
    bug(
        "lease-too-long",
        "a lease as long as the longest election timeout",
        LEASE,
        "                self.until_ms = max(self.until_ms, sent_ms + self.lease_ms)",
        "                self.until_ms = max(self.until_ms, sent_ms + 3 * self.lease_ms)",
    ),
    bug(
        "lease-began-after-view",
        "a read transaction from before the no-op was applied is served under the lease (found by this simulator)",
        NODE,
        "        return view if self.lease.holds_for(view, self.core.noop_index, self.clock_ms()) else None",
        "        return view if self.lease.holds(self.clock_ms()) else None",
    ),
    bug(
        "lease-of-unapplied-commit",
        "a lease read shows less than followers have shown, whose applying is quicker (found by this simulator)",
        NODE,
        "        if view < commit:\n            return None\n",
        "",
    ),
    bug(
        "lease-survives-transfer",
        "leases are still given after TimeoutNow was sent",
        LEADER,
        "    core.transferred = True\n    core.lease_end = True\n    core.lease_new = 0\n",
        "",
    ),
    bug(
        "lease-before-noop",
        "a lease starts before the no-op of the term is applied (the reader's look at its view covers it)",
        LEADER,
        "    if core.applied >= core.noop_index and not core.transferred",
        "    if not core.transferred",
        script="lease_starts_with_the_noop_applied",
    ),
    bug(
        "lease-before-noop-is-used",
        "the same, and the reader does not ask whether its view holds the no-op (the second line of defence)",
        LEADER,
        "    if core.applied >= core.noop_index and not core.transferred",
        "    if not core.transferred",
        Patch(
            NODE,
            "        return view if self.lease.holds_for(view, self.core.noop_index, self.clock_ms()) else None",
            "        return view if self.lease.holds(self.clock_ms()) else None",
        ),
    ),
    bug(
        "lease-after-leadership",
        "a lost leadership does not end the lease (nearly always its time is over before anybody else leads)",
        STATE,
        "        self.lease_end = True\n        self.role_reason = reason",
        "        self.role_reason = reason",
        Patch(
            NODE,
            "        if self.core.role is not Role.LEADER:\n            return False\n        self.lease_reads[op]",
            "        self.lease_reads[op]",
        ),
        script="lease_ends_with_the_leadership",
    ),
    bug(
        "votes-after-start",
        "a voter that restarts votes at once, though a leader may hold a lease on its word",
        STATE,
        "        self.contact = 0  # since a leader was heard, or since the start",
        "        self.contact = 1 << 30  # since a leader was heard, or since the start",
        script="lease_restarted_voter_does_not_vote",
    ),
    bug(
        "no-stickiness",
        "a voter that hears a leader votes for another",
        CANDIDATE,
        "    return core.contact < core.config.election_ticks_min and not core.is_alone()",
        "    return False",
    ),
]

MEMBERS = [
    bug(
        "two-changes-at-once",
        "a membership change is proposed while another is not committed",
        LEADER,
        '    if core.change_open:\n        raise ChangeRefused("another membership change is not committed yet")\n',
        "",
    ),
    bug(
        "change-before-noop",
        "a membership change before an entry of the own term is committed (Ongaro, 2015)",
        LEADER,
        "    if core.commit < core.noop_index:\n"
        '        raise ChangeRefused("no entry of this term is committed yet")\n',
        "",
    ),
    bug(
        "rollback-forgotten",
        "a truncated membership entry stays in force",
        STATE,
        "        if self.membership.index >= index:\n            if self.previous is None",
        "        if False:\n            if self.previous is None",
    ),
    bug(
        "rollback-not-persisted",
        "the members after a truncation are right in memory and wrong on the disk",
        STATE,
        "            self.membership = self.previous\n            self.membership_dirty = True\n",
        "            self.membership = self.previous\n",
    ),
    bug(
        "adopted-on-commit-by-followers",
        "followers adopt a membership entry later than the leader: never",
        FOLLOWER,
        "            core.adopt(membership)\n",
        "",
    ),
    bug(
        "removed-leader-counts-itself",
        "a leader that removed itself goes on counting itself",
        LEADER,
        "    if core.me not in wanted:\n        core.own.voter = False\n",
        "",
    ),
    bug(
        "ghost-returns",
        "a removed incarnation may be added again",
        LEADER,
        "    if change.kind is ChangeKind.ADD_LEARNER and change.member.ref in core.retired:",
        "    if False:",
    ),
    bug(
        "learner-is-voter",
        "a new member is a voter from the start: two quorums of changes at once",
        MEMBERSHIP,
        "        members = [*membership.members, wanted._replace(voter=False)]",
        "        members = [m._replace(voter=True) for m in (*membership.members, wanted)]",
    ),
    bug(
        "backup-not-noticed",
        "the handshake lets a restored disk in",
        HANDSHAKE,
        "    if seen_starts is not None and greeting.starts < seen_starts:",
        "    if False:",
        Patch(HANDSHAKE, "    if peer is None or peer.match <= greeting.last:", "    if True:"),
    ),
]

SNAPSHOTS = [
    bug(
        "suffix-dropped",
        "an installed snapshot drops the suffix that matches (camunda#6092)",
        FOLLOWER,
        "    core.log.start_install(meta, keep)\n",
        "    core.log.start_install(meta, False)\n",
    ),
    bug(
        "conflicting-suffix-kept",
        "an installed snapshot keeps a suffix that conflicts (hashicorp/raft#704)",
        FOLLOWER,
        "    core.log.start_install(meta, keep)\n",
        "    core.log.start_install(meta, meta.index < core.log.last)\n",
    ),
    bug(
        "older-snapshot-installed",
        "a snapshot that came late sets the state back",
        FOLLOWER,
        "    return meta.index > core.commit and not core.log.has(meta.index, meta.term)",
        "    return True",
    ),
    bug(
        "members-of-snapshot-forgotten",
        "an installed snapshot brings no members",
        FOLLOWER,
        "    _install_membership(core, meta, keep)\n",
        "",
    ),
    bug(
        "offer-not-repeated",
        "a snapshot offer that was lost is not made again",
        LEADER,
        "core.ticks - peer.offer_tick >= core.config.snapshot_retry_ticks:",
        "False:",
        Patch(
            CORE, "            progress.offer_tick = self.ticks - self.config.snapshot_retry_ticks", "            pass"
        ),
    ),
]

STORAGE = [
    bug(
        "sends-before-sync",
        "the driver lets `persisted` go before the flush has returned",
        NODE,
        "                if self.world.start_sync(self):\n                    break\n"
        "                self.disk.sync()\n",
        "                self.world.start_sync(self)\n",
    ),
    bug(
        "applied-index-apart",
        "the applied index is saved after the data, in another transaction (etcd#13766)",
        NODE,
        "        self.disk.kv = Kv(applied, digest, self.members)\n        self.core.applied_to(applied)",
        "        if self.disk.kv is not None:\n"
        "            self.disk.kv = Kv(self.disk.kv.applied, digest, self.members)\n"
        "        if applied % 2:\n            self.disk.kv = Kv(applied, digest, self.members)\n"
        "        self.core.applied_to(applied)",
    ),
    bug(
        "kv-trusted-after-power-loss",
        "kv is used as it is after the power failed, though nothing flushed it",
        DISK,
        '        return self.line in (CLEAN, f"dirty {self.boots}")',
        '        return self.line == CLEAN or self.line.startswith("dirty")',
    ),
    bug(
        "clean-before-flush",
        "an orderly end writes down that kv is whole, then flushes it",
        DISK,
        "        self.flush_kv()\n        yield\n        self.new_line = CLEAN\n",
        "        self.new_line = CLEAN\n",
        Patch(
            DISK,
            '        self.line, self.new_line = CLEAN, ""\n',
            '        self.line, self.new_line = CLEAN, ""\n        yield\n        self.flush_kv()\n',
        ),
    ),
    bug(
        "clean-line-kept",
        "kv is written to while the line beside it still says that it is whole",
        DISK,
        '        self.line = f"dirty {self.boots}"\n',
        '        self.line = self.line if self.line == CLEAN else f"dirty {self.boots}"\n',
    ),
    bug(
        "torn-part-believed",
        "what a crash left of a pulled file is gone on with, and the whole is not checked",
        DISK,
        "        if not snapshot.whole():\n            return False\n",
        "",
    ),
    bug(
        "torn-snapshot-believed",
        "a snapshot is named before it is flushed, and a start does not check it (redisraft#654)",
        NODE,
        "            self.disk.making = snapshot = self.make_snapshot()\n",
        "            self.disk.making = snapshot = self.make_snapshot()\n"
        "            self.disk.put_snapshot(snapshot)\n            self.disk.log.snapshot = snapshot.meta\n",
        Patch(DISK, " and snapshot.whole():\n", ":\n"),
    ),
    bug(
        "trimmed-above-snapshot",
        "the log is trimmed up to what is applied, not up to the older snapshot",
        NODE,
        "            log.trim(min(older.index, self.applied - self.world.settings.keep_entries) + 1)",
        "            log.trim(self.applied + 1)",
    ),
    bug(
        "starts-not-counted",
        "a start is not written down before the node speaks",
        DISK,
        "        log.starts += 1\n",
        "        log.starts = max(log.starts, 1)\n",
    ),
    bug(
        "hard-state-apart",
        "entries are flushed, term and vote only later",
        DISK,
        "        for persist in self.pending:\n            self._commit(persist)\n        self.pending.clear()",
        "        for persist in self.pending:\n            self._commit(persist._replace(hard=self.later_hard))\n"
        "            self.later_hard = persist.hard\n        self.pending.clear()",
        Patch(DISK, '        "line",\n', '        "later_hard",\n        "line",\n'),
        Patch(
            DISK,
            "        self.pending: list[Persist] = []\n",
            "        self.pending: list[Persist] = []\n        self.later_hard = None\n",
        ),
    ),
    bug(
        "install-without-state",
        "the log begins at the snapshot, but the state is not switched over",
        NODE,
        "            self.applied, self.digest, self.members = meta.index, snapshot.digest, meta.membership",
        "            self.applied, self.members = meta.index, snapshot.meta.membership",
    ),
]

STALE = [mutant._replace(readers=True) for mutant in (*READ, *LEASES)]

MUTANTS: list[Mutant] = [*ELECTIONS, *REPLICATION, *COMMIT, *STALE, *MEMBERS, *SNAPSHOTS, *STORAGE]
