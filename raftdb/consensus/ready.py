"""What the core wants done, in two stages, so that the order persist, send, apply is a type and not a habit.

    ready = core.ready()
    end the lease if ready.lease_end;  note the time for ready.round;  send ready.send      (may precede the disk)
    log.commit(ready.persist)                                                               (one synced transaction)
    released = core.persisted(ready)
    send released.send;  answer released.reads;  apply up to released.commit;  core.applied_to(...)
    once per turn: make a snapshot when core.snapshot_wanted, then core.snapshot_available(meta)

Repeat from the top until `ready()` is None. After a Persist with `install` the state machine is replaced by that
snapshot, unless it has applied that much already (then only the log's beginning has moved over a damaged entry).

What may leave only after the disk is not in `Ready` at all: votes, acknowledgements, vote requests appear in
`Released`, and there is no `Released` without `persisted(ready)`. At most one Ready with a second stage is open;
`step`, `tick`, `propose` may be called meanwhile (a log thread, a simulated slow disk). While one is open `ready()`
returns only what may leave at once, marked `sends_only`: send it and do not call `persisted` for it.
"""

from __future__ import annotations

from typing import NamedTuple

from raftdb.consensus.messages import Envelope
from raftdb.types import NodeRef, Persist, Role, SnapshotMeta


class Ready(NamedTuple):
    """Stage one."""

    send: tuple[Envelope, ...]  # may leave before `persist` is durable: appends, heartbeats, pre-votes, TimeoutNow
    persist: Persist | None  # one synced transaction; None: nothing, call persisted() at once
    must_sync: bool  # persist is not None
    round: int  # the heartbeat round that `send` starts (0: none): note the time *before* sending
    lease_end: bool  # end any lease *before* sending: a membership entry, TimeoutNow or a lost leadership is in here
    sends_only: bool  # another Ready is open: send these and do not call persisted() for this one


class ReadReady(NamedTuple):
    """The read `read_id` may be served once `index` is applied here; index -1: refused, no leader answered in time."""

    read_id: int
    index: int  # type: ignore[assignment]


class RoleChange(NamedTuple):
    """Role, term or known leader have changed since the last Released."""

    role: Role
    term: int
    leader: NodeRef | None
    reason: str  # why a leader stepped down, for the log of the node; "" otherwise


class Released(NamedTuple):
    """Stage two: what the durable state allows."""

    send: tuple[Envelope, ...]  # votes, acknowledgements, vote requests
    commit: int  # entries up to here are committed AND durable here: apply them
    reads: tuple[ReadReady, ...]
    role: RoleChange | None
    fetch: SnapshotMeta | None  # pull this file from the leader, then core.snapshot_received or core.fetch_failed
    confirmed_round: int  # newly confirmed by a quorum (0: none): freshness counts from its send time
    lease_round: int  # the same where a lease may count from it (0: none); see lease.py
