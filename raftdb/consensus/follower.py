"""What a follower does, and a learner: take the leader's entries, answer its heartbeats, pull its snapshots.

An Append is taken entry by entry against the own log: what matches is skipped (a message may come twice), the first
conflict truncates, the rest is appended. What is damaged here and identical there is healed in place. An equal
(index, term) with another chain is neither: two histories claim the same place. Committed, that stops the node;
otherwise the entry is quarantined and nothing is overwritten.
"""

from __future__ import annotations

from raftdb.consensus import candidate
from raftdb.consensus import membership as members
from raftdb.consensus.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    RefillRequest,
    SnapshotOffer,
    TimeoutNow,
)
from raftdb.consensus.state import State
from raftdb.errors import Bug, Damaged
from raftdb.types import Entry, Kind, NodeRef, Role, SnapshotMeta

# --- append ---------------------------------------------------------------------------------------------------------


def append(core: State, sender: NodeRef, message: Append) -> str | None:
    """AppendEntries (paper figure 2, receiver implementation 2-5)."""
    core.heard_leader(sender)
    log = core.log
    _, prev_index, prev_term, prev_chain, commit, entries = message
    if prev_index > log.last:
        return _refuse(core, sender, prev_index, log.last + 1, 0, "the log is shorter")
    if prev_index >= log.first - 1:
        reason = _compare_previous(core, sender, prev_index, prev_term, prev_chain)
        if reason is not None:
            return reason
    fresh = 0
    if entries and prev_index < log.last:
        fresh, reason = _skip_known(core, prev_index, entries)
        if reason is not None:
            return reason
    reason = _append_fresh(core, prev_index + 1 + fresh, entries[fresh:] if fresh else entries, message.term)
    if reason is not None:
        return reason
    last_new = prev_index + len(entries)
    if commit > core.commit:
        core.commit_to(min(commit, last_new))
    acknowledge(core, sender, max(last_new, core.commit))
    return None


def acknowledge(core: State, leader: NodeRef, index: int) -> None:
    """Everything up to `index` equals the leader's log; it is durable by the time this leaves."""
    core.send_late(leader, AppendReply(core.term, True, core.acknowledgeable(index), 0, 0))


def _refuse(core: State, sender: NodeRef, prev_index: int, hint_index: int, hint_term: int, why: str) -> str:
    core.send_late(sender, AppendReply(core.term, False, prev_index, hint_index, hint_term))
    return why


def _compare_previous(core: State, sender: NodeRef, index: int, term: int, chain: int) -> str | None:
    """Whether the own log holds the entry that the Append follows on; otherwise refuse with a hint."""
    log = core.log
    if log.holes and index in log.holes and index not in log.healing:
        ask_for_refill(core)
        return f"entry {index} is damaged"
    own_term = log.term(index)
    if own_term != term:
        if index <= core.commit:
            raise Bug(f"committed entry {index} has term {own_term} here and {term} at leader {sender.id}")
        first = log.first_index_of_term(index, core.commit + 1)
        return _refuse(core, sender, index, first, own_term, "another term at the previous index")
    if log.chain(index) != chain:
        return _diverged(core, index, sender)
    return None


def _diverged(core: State, index: int, sender: NodeRef) -> str:
    """The same (index, term) with another chain."""
    if index <= core.commit:
        raise Bug(f"committed entry {index} has another chain than at leader {sender.id}")
    core.log.holes.add(index)
    core.log.healing.pop(index, None)
    return f"entry {index} has the leader's term and another chain: quarantined"


def _skip_known(core: State, prev_index: int, entries: tuple[Entry, ...]) -> tuple[int, str | None]:
    """How many of `entries` the log holds already. The first conflict truncates it and ends the count."""
    log = core.log
    first = log.first
    for position, entry in enumerate(entries):
        index = prev_index + 1 + position
        if index > log.last:
            return position, None
        if entry.index != index:
            return position, f"entry {entry.index} stands in the place of {index}"
        if index < first:
            continue
        if log.holes and index in log.holes and index not in log.healing:
            reason = _heal_or_cut(core, entry)
            if reason is not None:
                return position, reason
            if index > log.last:
                return position, None
            continue
        term = log.term(index)
        if term == entry.term:
            if log.chain(index) != entry.chain:
                return position, _diverged(core, index, core.leader or core.me)
        else:
            if index <= core.commit:
                raise Bug(f"committed entry {index} has term {term} here and {entry.term} at the leader")
            core.truncate(index)
            return position, None
    return len(entries), None


def _append_fresh(core: State, index: int, entries: tuple[Entry, ...], term: int) -> str | None:
    """Append what is new. Entries are checked here and nowhere else: order, terms, kind, chain, membership."""
    log = core.log
    chain_of = core.log.chain_of
    for entry in entries:
        index_, entry_term, kind, stamp, seed, payload, chain = entry
        if index_ != index or not log.last_term <= entry_term <= term:
            return f"entry {index_} of term {entry_term} does not follow {log.last} of term {log.last_term}"
        if chain_of(log.last_chain, index, entry_term, kind, stamp, seed, payload) != chain:
            return f"the chain of entry {index} does not fit"
        if kind == Kind.MEMBERSHIP:
            try:
                membership = members.decode(payload, index)
            except members.BadMembership as error:
                return f"entry {index} is not a membership: {error}"
            log.append(entry)
            core.adopt(membership)
        else:
            log.append(entry)
        index += 1
    return None


# --- damaged entries ------------------------------------------------------------------------------------------------


def _heal_or_cut(core: State, entry: Entry) -> str | None:
    """The leader's entry for a hole: identical -> heal in place; of another term above commit -> truncate."""
    log = core.log
    index = entry.index
    claimed = _claimed(core, index)
    previous_chain = log.healing[index - 1].chain if index - 1 in log.healing else log.chain(index - 1)
    if log.link(previous_chain, entry) != entry.chain:
        return f"the chain of entry {index} does not fit"
    if claimed is not None and claimed != (entry.term, entry.chain):
        if claimed[0] == entry.term:
            return _diverged(core, index, core.leader or core.me)
        if index <= core.commit:
            raise Bug(f"committed entry {index} has term {claimed[0]} here and {entry.term} at the leader")
        core.truncate(index)
        return None
    if claimed is None and index <= core.commit and not _next_fits(core, entry):
        return f"entry {index} does not lead to the next one"
    log.heal(entry)
    return None


def _claimed(core: State, index: int) -> tuple[int, int] | None:
    """(term, chain) that a damaged entry still shows, or None."""
    try:
        return core.log.view.term(index), core.log.view.chain(index)
    except Damaged:
        return None


def _next_fits(core: State, entry: Entry) -> bool:
    """Whether the healthy entry after the hole follows on `entry` (true when there is none to ask)."""
    log = core.log
    if entry.index >= log.last or entry.index + 1 in log.holes:
        return True
    following = log.entry(entry.index + 1)
    return log.link(entry.chain, following) == following.chain


def ask_for_refill(core: State) -> None:
    """Ask the leader for the first damaged entry again; 0: only a snapshot helps."""
    if core.leader is None or core.fetching is not None:
        return
    index = 0 if core.starved else core.log.first_open_hole
    if index <= core.log.last:
        core.send_late(core.leader, RefillRequest(core.term, index))


# --- heartbeats and reads -------------------------------------------------------------------------------------------


def heartbeat(core: State, sender: NodeRef, message: Heartbeat) -> str | None:
    core.heard_leader(sender)
    if message.commit > core.log.last:
        raise Damaged(
            "log", f"ends at {core.log.last} although {message.commit} was acknowledged: restored from a backup?"
        )
    if message.commit > core.commit:
        core.commit_to(message.commit)
    if message.round:
        core.send_late(sender, HeartbeatReply(core.term, message.round, core.log.last, core.wall_ms))
        if core.log.holes or core.starved:
            ask_for_refill(core)
    return None


def ask_leader(core: State) -> None:
    """Send the reads that wait to the leader, one request at a time."""
    reads = core.reads
    if reads.waiting and not reads.context and core.leader is not None:
        core.send_early(core.leader, ReadRequest(core.term, reads.ask(core.ticks)))


def repeat_request(core: State) -> None:
    """The request under way once more: it or its answer may be lost.

    It is the same one, so that whichever answer comes first counts. Were it a new one, an answer that takes longer than
    the patience of `resend_ticks` (two round trips over a long line) would always come too late.
    """
    core.reads.asked_tick = core.ticks
    if core.leader is not None:
        core.send_early(core.leader, ReadRequest(core.term, core.reads.context))


def read_reply(core: State, sender: NodeRef, message: ReadReply) -> str | None:
    core.heard_leader(sender)
    done = core.reads.answered(message.context, message.index)
    if done is None:
        return "an answer to no question of this life"
    core.done_reads += done
    return None


def read_request(core: State, sender: NodeRef, message: ReadRequest) -> str | None:
    return "not the leader"


# --- snapshots ------------------------------------------------------------------------------------------------------


def snapshot_offer(core: State, sender: NodeRef, message: SnapshotOffer) -> str | None:
    core.heard_leader(sender)
    meta = message.meta
    if not needs(core, meta):
        if core.log.has(meta.index, meta.term):
            core.commit_to(meta.index)
        acknowledge(core, sender, core.commit)
        return "the log covers it"
    if meta.index < core.log.first - 1:
        return "older than the log's base"
    if core.fetching is not None:
        return "a snapshot is under way"
    core.fetching = core.fetch_new = meta
    return None


def needs(core: State, meta: SnapshotMeta) -> bool:
    """Whether installing `meta` brings this node anything that its log does not hold."""
    if core.log.first_open_hole <= meta.index:
        return True  # even if it is applied: the snapshot replaces the damaged entry as the log's beginning
    if core.starved:
        return meta.index > core.applied
    return meta.index > core.commit and not core.log.has(meta.index, meta.term)


def install(core: State, meta: SnapshotMeta) -> str | None:
    """The file is durable: it becomes the base of the log with the next Persist."""
    core.fetching = None
    if core.role is Role.LEADER or not needs(core, meta):
        return "not needed any more"
    keep = core.log.suffix_fits(meta)
    if keep is None:
        return f"cannot tell whether the entries after {meta.index} follow on the snapshot"
    if not keep and meta.index < core.commit and core.log.last > meta.index:
        raise Bug(f"snapshot {meta.index} contradicts the committed entries up to {core.commit}")
    _install_membership(core, meta, keep)
    core.log.start_install(meta, keep)
    if meta.index > core.commit:
        core.commit_to(meta.index)
    if core.leader is not None:
        acknowledge(core, core.leader, meta.index)
    return None


def _install_membership(core: State, meta: SnapshotMeta, keep: bool) -> None:
    """The membership as of the last entry, and the one before it, once the snapshot is the base."""
    if keep and core.membership.index > meta.index:
        if core.previous is None or core.previous.index < meta.membership.index:
            core.previous = meta.membership
    else:
        committed = core.previous if core.change_open else core.membership
        core.previous = meta.membership if committed is None else committed
        core.membership = meta.membership
        core.change_open = False
        core.retire()
    core.membership_dirty = True
    if core.role is Role.CANDIDATE:
        core.become_follower(core.term, None)
    core.set_role(core.resting_role())


# --- transfer -------------------------------------------------------------------------------------------------------


def timeout_now(core: State, sender: NodeRef, message: TimeoutNow) -> str | None:
    """Campaign at once, unless anything has moved since the leader decided."""
    core.heard_leader(sender)
    if (message.last_index, message.last_term) != (core.log.last, core.log.last_term):
        return "the log has moved"
    if not candidate.may_campaign(core):
        return "may not campaign"
    candidate.elect(core, transfer=True)
    return None


def learner_timeout_now(core: State, sender: NodeRef, message: TimeoutNow) -> str | None:
    core.heard_leader(sender)
    return "a learner does not campaign"


def tick(core: State) -> None:
    core.elapsed += 1
    if core.elapsed >= core.timeout or (core.leader is None and core.is_alone()):
        if candidate.may_campaign(core):
            candidate.campaign(core)
        else:
            core.elapsed = 0
            core.draw_timeout()
    if core.reads.context and core.ticks - core.reads.asked_tick >= core.config.resend_ticks:
        repeat_request(core)
