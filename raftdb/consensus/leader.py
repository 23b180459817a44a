"""What a leader does: append, replicate, count, confirm, hand over.

- A leader sends before its own disk has the entries and counts itself only when it has (`own.match` follows `durable`).
- Only entries of its own term commit by counting; older ones commit with them (paper 5.4.2, figure 8). Since a term's
  entries are exactly those from its no-op on, the rule is one comparison with `noop_index`.
- Heartbeat rounds are numbered. A round that a quorum has answered says: at its sending nobody else was leader. Reads,
  leases and check-quorum rest on that.
- A membership entry is adopted when it is appended. The lease ends first, and only rounds that start afterwards count.
"""

from __future__ import annotations

from collections.abc import Sequence

from raftdb.consensus import membership as members
from raftdb.consensus.log import ENTRY_OVERHEAD_BYTES
from raftdb.consensus.membership import Change, ChangeKind, ChangeRefused
from raftdb.consensus.messages import (
    Append,
    AppendReply,
    Envelope,
    Heartbeat,
    HeartbeatReply,
    ReadReply,
    ReadRequest,
    RefillRequest,
    SnapshotOffer,
    TimeoutNow,
)
from raftdb.consensus.progress import PROBE, REPLICATE, SNAPSHOT, Progress
from raftdb.consensus.quorum import majority, reached
from raftdb.consensus.ready import ReadReady
from raftdb.consensus.state import Busy, State, is_voter
from raftdb.errors import Bug, EntryDamaged
from raftdb.types import Entry, Kind, Membership, NodeRef, Proposal, Role

# --- election -------------------------------------------------------------------------------------------------------


def become_leader(core: State) -> None:
    """A quorum has voted. The first entry is a no-op of the own term."""
    if core.log.holes or core.log.last < core.commit:
        raise Bug("a node with damaged or missing entries was elected")
    core.set_role(Role.LEADER)
    core.leader = core.me
    core.votes = {}
    core.round = core.confirmed_round = core.lease_floor = 0
    core.heartbeat_elapsed = 0
    core.duties_tick = core.ticks
    core.want_round = True
    core.transferring = None
    core.transferred = False
    core.transfer_failed.clear()
    core.hand_over_tick = 0
    core.fetching = None
    core.own = Progress(core.me, False, 0, core.ticks)
    core.own.match = core.log.durable
    core.peers = {}
    set_peers(core)
    core.noop_index = core.log.last + 1
    append(core, (Proposal(Kind.NOOP, 0, core.chance.next(), b""),))


def set_peers(core: State) -> None:
    """One Progress per member of the newest membership; who was removed is told so before it is dropped."""
    wanted = {member.ref: member.voter for member in core.membership.members}
    for ref, voter in wanted.items():
        if ref == core.me:
            core.own.voter = voter
        elif ref in core.peers:
            core.peers[ref].voter = voter
            core.peers[ref].leaving = False
        else:
            core.peers[ref] = Progress(ref, voter, core.log.last + 1, core.ticks)
    if core.me not in wanted:
        core.own.voter = False
    for ref, peer in core.peers.items():
        if ref not in wanted:
            peer.voter = False
            peer.leaving = True
            peer.goal = core.membership.index
            peer.goal_tick = core.ticks
    list_peers(core)


def list_peers(core: State) -> None:
    core.others = [core.peers[ref] for ref in sorted(core.peers)]
    core.voters = [peer for peer in (core.own, *core.others) if peer.voter]


def drop_leaving(core: State) -> None:
    """Forget a removed member that knows of its removal, or that did not answer for an election timeout."""
    patience = core.config.election_ticks_min
    for peer in core.others:
        told = min(peer.match, peer.commit_sent) >= peer.goal
        if peer.leaving and (told or core.ticks - peer.goal_tick > patience):
            del core.peers[peer.ref]
    list_peers(core)


# --- append ---------------------------------------------------------------------------------------------------------


def append(core: State, proposals: Sequence[Proposal]) -> int:
    """Give the proposals their places; return the first index."""
    log = core.log
    chain_of = log.chain_of
    term = core.term
    first = log.last + 1
    size_bytes = 0
    for kind, stamp, seed, payload in proposals:
        if stamp < log.last_stamp:
            stamp = log.last_stamp
        index = log.last + 1
        chain = chain_of(log.last_chain, index, term, kind, stamp, seed, payload)
        log.append(Entry(index, term, kind, stamp, seed, payload, chain))
        size_bytes += len(payload) + ENTRY_OVERHEAD_BYTES
    core.sizes.append((log.last, size_bytes))
    core.uncommitted_bytes += size_bytes
    core.outbound = True
    return first


def propose(core: State, proposals: Sequence[Proposal]) -> int:
    """A batch of the state machine's entries. Raises Busy."""
    if core.transferring is not None:
        raise Busy("leadership is being handed over")
    if core.uncommitted_bytes > core.config.uncommitted_bytes_max:
        raise Busy(f"{core.uncommitted_bytes} bytes are not committed yet")
    if not proposals or any(proposal.kind not in (Kind.COMMANDS, Kind.TIME) for proposal in proposals):
        raise Bug("propose takes one or more COMMANDS or TIME entries")
    return append(core, proposals)


def propose_membership(core: State, change: Change, stamp: int, seed: int) -> int:
    """One single step, adopted at once. Raises Busy or ChangeRefused."""
    if core.transferring is not None:
        raise Busy("leadership is being handed over")
    if core.change_open:
        raise ChangeRefused("another membership change is not committed yet")
    if core.commit < core.noop_index:
        raise ChangeRefused("no entry of this term is committed yet")
    if change.kind is ChangeKind.ADD_LEARNER and change.member.ref in core.retired:
        raise ChangeRefused(f"{change.member.id} was removed with this incarnation: it needs a new one")
    payload = members.encode(members.changed(core.membership, change))
    index = append(core, (Proposal(Kind.MEMBERSHIP, stamp, seed, payload),))
    adopt(core, members.decode(payload, index))
    return index


def adopt(core: State, membership: Membership) -> None:
    core.lease_end = True
    core.lease_floor = core.round
    core.lease_new = 0
    core.adopt(membership)
    set_peers(core)
    core.want_round = True


# --- replication ----------------------------------------------------------------------------------------------------


def flush(core: State) -> None:
    """Queue what is to be sent: a heartbeat round, then appends within each member's window."""
    if core.want_round or (core.reads.has_waiting and not core.reads.batches and core.commit >= core.noop_index):
        start_round(core)
    if core.outbound or (core.news_held and not core.hold_news):
        core.outbound = core.news_held = False
        replicate_to_all(core)


def replicate_to_all(core: State) -> None:
    core.made = None
    try:
        for peer in core.others:
            replicate(core, peer)
    except EntryDamaged as damage:
        quarantine(core, damage.index)


def quarantine(core: State, index: int) -> None:
    """An entry of the leader's own log is damaged: somebody else must lead."""
    core.log.holes.add(index)
    resign(core, f"log entry {index} is damaged")


def replicate(core: State, peer: Progress) -> None:
    log = core.log
    mode = peer.mode
    if mode == REPLICATE:
        config = core.config
        while (
            peer.next <= log.last
            and len(peer.inflight) < config.inflight_messages_max
            and peer.inflight_bytes < config.inflight_bytes_max
        ):
            if not send_append(core, peer):
                return
        commit = core.commit if core.commit < peer.match else peer.match
        if peer.commit_sent < commit and peer.mode == REPLICATE:
            if core.hold_news:
                core.news_held = True
            else:
                peer.commit_sent = commit
                core.send_early(peer.ref, Heartbeat(core.term, 0, commit, core.wall_ms, core.age_ms))
    elif mode == PROBE and not peer.probe_sent:
        send_append(core, peer)


def send_append(core: State, peer: Progress) -> bool:
    """One Append from `peer.next` on; False when nothing can be sent now."""
    made = core.made
    if made is None or made[0] != peer.next or peer.wants_snapshot:
        made = make_append(core, peer)
        if made is None:
            return False
        core.made = made
    _, message, last, size_bytes = made
    core.early.append(Envelope(peer.ref, message))
    if peer.mode == REPLICATE:
        peer.sent(last, size_bytes, core.round, core.ticks)
    else:
        peer.probe_sent = True
        peer.probe_round = core.round
        peer.probe_tick = core.ticks
    commit = core.commit if core.commit < peer.match else peer.match
    if commit > peer.commit_sent:
        peer.commit_sent = commit
    return True


def make_append(core: State, peer: Progress) -> tuple[int, Append, int, int] | None:
    """(first index, message, last index, bytes). Members at the same place get the same message, made once."""
    log = core.log
    first = peer.next
    prev_index = first - 1
    if prev_index < log.first - 1 or peer.wants_snapshot:
        offer_snapshot(core, peer)
        return None
    entries: tuple[Entry, ...] = ()
    size_bytes = 0
    if first >= log.offset:
        entries, size_bytes = log.from_memory(first, core.config.append_bytes_max)
    elif first <= log.last:
        if core.budget_bytes <= 0:
            core.outbound = True
            return None
        entries, size_bytes = log.from_disk(first, min(core.config.append_bytes_max, core.budget_bytes))
        core.budget_bytes -= size_bytes
    message = Append(core.term, prev_index, log.term(prev_index), log.chain(prev_index), core.commit, entries)
    return first, message, prev_index + len(entries), size_bytes


def append_reply(core: State, sender: NodeRef, message: AppendReply) -> str | None:
    peer = core.peers.get(sender)
    if peer is None:
        return "not a member"
    peer.heard_tick = core.ticks
    _, ok, index, hint_index, hint_term = message
    if not ok:
        return refused(core, peer, index, hint_index, hint_term)
    log = core.log
    if index > log.last:
        return f"acknowledges entry {index}, which was never sent"
    peer.acknowledge(index)
    peer.ack_tick = core.ticks
    if peer.mode != REPLICATE:
        leave_probe(core, peer, index)
    if index > core.commit and peer.voter:
        advance_commit(core)
    core.outbound = True
    if core.transferring == sender:
        finish_transfer(core)
    return None


def leave_probe(core: State, peer: Progress, index: int) -> None:
    """A place in common is known: entries can be sent from there, or a newer file if they are trimmed meanwhile."""
    if index >= core.log.first - 1:
        peer.wants_snapshot = False
        peer.to_replicate()
    elif peer.mode == SNAPSHOT and index >= peer.snapshot_index > 0:
        offer_snapshot(core, peer)


def refused(core: State, peer: Progress, prev_index: int, hint_index: int, hint_term: int) -> str | None:
    """The member's log does not hold our prev_index: go back, a whole term of conflict at a time."""
    if peer.mode == SNAPSHOT or prev_index <= peer.match:
        return "late: refuses what it has acknowledged since"
    if peer.mode == PROBE and prev_index != peer.next - 1:
        return "late: refuses an older probe"
    next_index = min(prev_index, hint_index)
    if hint_term:
        last = core.log.last_index_of_term_at_most(hint_term, prev_index - 1)
        if core.log.term(last) == hint_term:
            next_index = last + 1
    peer.to_probe(next_index)
    core.outbound = True
    return None


def heartbeat_reply(core: State, sender: NodeRef, message: HeartbeatReply) -> str | None:
    peer = core.peers.get(sender)
    if peer is None:
        return "not a member"
    peer.heard_tick = core.ticks
    _, number, last, _ = message
    if number > core.round:
        return f"answers round {number}, which was never sent"
    find_losses(core, peer, number, last)
    if number > peer.round:
        peer.round = number
        if peer.voter and number > core.confirmed_round:
            confirm(core)
    return None


def find_losses(core: State, peer: Progress, number: int, last: int) -> None:
    """The answer to a later heartbeat tells what became of the oldest append under way.

    It arrived, but its acknowledgement did not: resend soon. It has not arrived: it is lost, or big and slow (small
    messages may overtake it), so give it an election timeout, counted from the last acknowledgement.
    """
    config = core.config
    if peer.mode == PROBE:
        if peer.probe_sent and number > peer.probe_round and core.ticks - peer.probe_tick >= config.resend_ticks:
            peer.probe_sent = False
            core.outbound = True
    elif peer.inflight:
        sent_last, _, sent_round, sent_tick = peer.inflight[0]
        patience = config.resend_ticks if last >= sent_last else config.election_ticks_min
        if number > sent_round and core.ticks - max(sent_tick, peer.ack_tick) >= patience:
            peer.to_probe()
            core.outbound = True


def refill_request(core: State, sender: NodeRef, message: RefillRequest) -> str | None:
    """Send from a damaged entry on, whatever was acknowledged before; index 0: only a snapshot helps."""
    peer = core.peers.get(sender)
    if peer is None:
        return "not a member"
    peer.heard_tick = core.ticks
    if message.index > core.log.last:
        return f"asks for entry {message.index} after the last one"
    if message.index == 0:
        peer.wants_snapshot = True
        if peer.mode != SNAPSHOT:
            offer_snapshot(core, peer)
    elif peer.mode != SNAPSHOT and not (peer.mode == PROBE and peer.probe_sent and peer.next == message.index):
        peer.to_probe()
        peer.next = message.index
    core.outbound = True
    return None


# --- commit ---------------------------------------------------------------------------------------------------------


def advance_commit(core: State) -> None:
    """The highest entry that a majority holds durably, if it is of this term (I8)."""
    index = reached([peer.match for peer in core.voters])
    if index > core.commit and index >= core.noop_index:
        had_open_change = core.change_open
        core.commit_to(index)
        core.outbound = True
        sizes = core.sizes
        while sizes and sizes[0][0] <= index:
            core.uncommitted_bytes -= sizes.popleft()[1]
        if had_open_change and not core.change_open:
            change_committed(core)


def change_committed(core: State) -> None:
    """A leader that removed or demoted itself has done its duty; the last thing it sends is the news."""
    if not is_voter(core.membership, core.me):
        core.hold_news = False
        replicate_to_all(core)
        if core.role is Role.LEADER:
            resign(core, "no voter any more")


# --- rounds, reads, leases ------------------------------------------------------------------------------------------


def start_round(core: State) -> None:
    """Heartbeats with the next number to everybody; the reads that wait now wait for this round."""
    core.want_round = False
    core.heartbeat_elapsed = 0
    core.round += 1
    core.round_new = core.own.round = core.round
    for peer in core.others:
        commit = min(core.commit, peer.match)
        core.send_early(peer.ref, Heartbeat(core.term, core.round, commit, core.wall_ms, core.age_ms))
        peer.commit_sent = max(peer.commit_sent, commit)
    if core.commit >= core.noop_index:
        core.reads.start_round(core.round, core.commit)
    if core.own.voter and len(core.voters) == 1:
        confirm(core)


def confirm(core: State) -> None:
    """A quorum has answered more rounds."""
    number = reached([peer.round for peer in core.voters])
    if number <= core.confirmed_round:
        return
    core.confirmed_round = core.confirmed_new = number
    if core.applied >= core.noop_index and not core.transferred and number > core.lease_floor:
        core.lease_new = number
    for batch in core.reads.confirmed(number):
        core.done_reads += [ReadReady(read.read_id, batch.index) for read in batch.local]
        for ref, context in batch.remote.items():
            core.send_early(ref, ReadReply(core.term, context, batch.index))


def read_request(core: State, sender: NodeRef, message: ReadRequest) -> str | None:
    """One open context per member: a newer one replaces it."""
    peer = core.peers.get(sender)
    if peer is None:
        return "not a member"
    peer.heard_tick = core.ticks
    core.reads.remote[sender] = message.context
    return None


# --- snapshots ------------------------------------------------------------------------------------------------------


def offer_snapshot(core: State, peer: Progress) -> None:
    """Offer the newest durable file, if entries follow on it here; otherwise wait for one (`snapshot_wanted`)."""
    meta = core.snapshot
    if meta is None or meta.index < core.log.first - 1:
        peer.to_snapshot(0, core.ticks)
        return
    peer.to_snapshot(meta.index, core.ticks)
    core.send_early(peer.ref, SnapshotOffer(core.term, meta))


# --- handing over ---------------------------------------------------------------------------------------------------


def start_transfer(core: State, target_id: str | None) -> None:
    """Stop taking proposals, let the target catch up, then tell it to campaign. Raises ChangeRefused."""
    candidates = [peer for peer in core.others if peer.voter and target_id in (None, peer.ref.id)]
    if not candidates:
        raise ChangeRefused(f"{target_id} is no other voter" if target_id else "there is no other voter")
    alive = [peer for peer in candidates if core.ticks - peer.heard_tick < core.config.election_ticks_min]
    if not alive:
        raise ChangeRefused("no such voter has been heard lately")
    willing = [peer for peer in alive if peer.ref not in core.transfer_failed]
    if not willing:
        core.transfer_failed.clear()
    core.transferring = max(willing or alive, key=lambda peer: (peer.match, peer.ref)).ref
    core.transfer_tick = core.ticks
    finish_transfer(core)


def finish_transfer(core: State) -> None:
    """TimeoutNow once the target holds everything. From its sending on there are no leases in this term."""
    assert core.transferring is not None
    peer = core.peers.get(core.transferring)
    if peer is None or not peer.voter:
        core.transferring = None
    elif peer.match == core.log.last:
        send_timeout_now(core, peer)


def send_timeout_now(core: State, peer: Progress) -> None:
    core.transferred = True
    core.lease_end = True
    core.lease_new = 0
    core.send_early(peer.ref, TimeoutNow(core.term, core.log.last, core.log.last_term))


def resign(core: State, reason: str) -> None:
    """Step down now; whoever holds the whole log is asked to take over at once."""
    patience = core.config.election_ticks_min
    for peer in core.others:
        if peer.voter and peer.match == core.log.last and core.ticks - peer.heard_tick < patience:
            send_timeout_now(core, peer)
            break
    core.become_follower(core.term, None, reason)


# --- time -----------------------------------------------------------------------------------------------------------


def tick(core: State) -> None:
    core.heartbeat_elapsed += 1
    if core.open_ticks >= core.config.election_ticks_min and not core.is_sole_voter():
        core.become_follower(core.term, None, "the log has not committed for an election timeout")
        return
    if core.transferring is not None and core.ticks - core.transfer_tick >= core.config.election_ticks_min:
        _give_up_transfer(core)
    if core.heartbeat_elapsed >= core.config.heartbeat_ticks:
        core.want_round = True
    if core.ticks - core.duties_tick >= core.config.heartbeat_ticks:
        _duties(core)


def _give_up_transfer(core: State) -> None:
    """Proposals are taken again. An unfit leader tries another voter, but leaves time for writes in between."""
    if core.transferring is not None:
        core.transfer_failed.add(core.transferring)
    core.transferring = None
    core.hand_over_tick = core.ticks + 2 * core.config.election_ticks_min


def _duties(core: State) -> None:
    """What a leader does once per heartbeat interval, by a clock of its own: reads begin rounds at any time."""
    core.duties_tick = core.ticks
    if not has_quorum(core):
        core.become_follower(core.term, None, "no quorum has been heard for an election timeout")
        return
    for peer in core.others:
        if peer.mode == SNAPSHOT and core.ticks - peer.offer_tick >= core.config.snapshot_retry_ticks:
            offer_snapshot(core, peer)
    if any(peer.leaving for peer in core.others):
        drop_leaving(core)
    if core.transferring is None and core.ticks >= core.hand_over_tick and should_hand_over(core):
        _hand_over_if_possible(core)
    if core.config.promote_learners:
        _promote_learner(core)


def should_hand_over(core: State) -> bool:
    """A leader that is unfit, or that no membership lists as a voter (a learner that had to win; see candidate.py)."""
    if not core.own.voter and not core.change_open and core.commit >= core.noop_index:
        return True
    return not core.fit and not core.is_sole_voter()


def has_quorum(core: State) -> bool:
    """Check-quorum: a majority has been heard within the least election timeout."""
    since = core.ticks - core.config.election_ticks_min
    heard = sum(1 for peer in core.voters if peer is core.own or peer.heard_tick > since)
    return heard >= majority(len(core.voters))


def _hand_over_if_possible(core: State) -> None:
    try:
        start_transfer(core, None)
    except ChangeRefused:
        return


def _promote_learner(core: State) -> None:
    """A learner that reaches within an election timeout what was committed at its beginning is caught up (4.2.1)."""
    for peer in core.others:
        if peer.voter or peer.leaving:
            continue
        if peer.goal == 0 or peer.match < peer.goal:
            if peer.goal == 0 or core.ticks - peer.goal_tick > core.config.election_ticks_min:
                peer.goal, peer.goal_tick = core.commit, core.ticks
            continue
        in_time = core.ticks - peer.goal_tick <= core.config.election_ticks_min
        peer.goal, peer.goal_tick = core.commit, core.ticks
        if in_time and _promote(core, peer.ref):
            return


def _promote(core: State, ref: NodeRef) -> bool:
    member = core.membership.get(ref.id)
    if member is None or core.change_open or core.commit < core.noop_index or core.transferring is not None:
        return False
    propose_membership(core, Change(ChangeKind.PROMOTE, member), core.log.last_stamp, core.chance.next())
    return True
