"""What a node tells about itself, for INFO, metrics and tests. Made on request, never on the hot path."""

from __future__ import annotations

from typing import NamedTuple

from raftdb.consensus.progress import MODE_NAMES, SNAPSHOT, Progress
from raftdb.consensus.state import State
from raftdb.types import Membership, NodeRef, Role


class PeerStatus(NamedTuple):
    """A leader's view of one member."""

    ref: NodeRef
    voter: bool
    mode: str  # probe, replicate, snapshot
    match: int
    next: int
    inflight_messages: int
    inflight_bytes: int
    silent_ticks: int  # since it was last heard


class Status(NamedTuple):
    me: NodeRef
    role: Role
    term: int
    vote: NodeRef | None
    leader: NodeRef | None
    first: int
    last: int
    last_term: int
    durable: int
    commit: int
    applied: int
    membership: Membership
    change_open: bool  # its entry is not known to be committed
    damaged: tuple[int, ...]
    fetching: str  # name of the snapshot that is being pulled, or ""
    snapshot_wanted: bool  # leader: a member waits for a snapshot newer than there is
    transferring: NodeRef | None
    uncommitted_bytes: int
    reads_waiting: int
    peers: tuple[PeerStatus, ...]  # leader only


def status_of(core: State) -> Status:
    log = core.log
    return Status(
        me=core.me,
        role=core.role,
        term=core.term,
        vote=core.vote,
        leader=core.leader,
        first=log.first,
        last=log.last,
        last_term=log.last_term,
        durable=log.durable,
        commit=core.commit,
        applied=core.applied,
        membership=core.membership,
        change_open=core.change_open,
        damaged=tuple(sorted(log.holes)),
        fetching=core.fetching.name if core.fetching else "",
        snapshot_wanted=any(p.mode == SNAPSHOT and p.snapshot_index == 0 for p in core.others),
        transferring=core.transferring,
        uncommitted_bytes=core.uncommitted_bytes,
        reads_waiting=core.reads.count(),
        peers=tuple(_peer(core, peer) for peer in core.others),
    )


def _peer(core: State, peer: Progress) -> PeerStatus:
    return PeerStatus(
        peer.ref,
        peer.voter,
        MODE_NAMES[peer.mode],
        peer.match,
        peer.next,
        len(peer.inflight),
        peer.inflight_bytes,
        core.ticks - peer.heard_tick,
    )
