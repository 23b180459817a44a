"""The Raft core as a value (published signatures; see ready.py for the order of effects)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from raftdb.consensus.messages import Message
from raftdb.consensus.ready import Ready, Released
from raftdb.errors import RaftdbError
from raftdb.types import ChainOf, Entry, HardState, Member, Membership, NodeRef, Proposal, SnapshotMeta


class LogView(Protocol):
    """What the core reads of the durable log. storage.log.Log and the simulator's disk implement it."""

    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    def term(self, index: int) -> int: ...
    def chain(self, index: int) -> int: ...
    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]: ...


class CoreConfig(NamedTuple):
    """Limits and timers. Times are ticks (50 ms by default)."""

    heartbeat_ticks: int = 2
    election_ticks_min: int = 15
    election_ticks_max: int = 30
    inflight_messages_max: int = 16  # appends under way per follower: 1, 2, 16
    inflight_bytes_max: int = 4 << 20
    append_bytes_max: int = 1 << 20  # one Append holds at most this, but always one entry
    catch_up_bytes_per_turn: int = 256 << 10  # read back from the log per ready(), all followers together
    uncommitted_bytes_max: int = 64 << 20  # propose raises Busy above it
    reads_waiting_max: int = 100_000
    read_wait_ticks: int = 100  # a read that nobody answered is refused
    snapshot_retry_ticks: int = 40
    term_jump_max: int = 1 << 32  # a message whose term is further ahead is refused
    promote_learners: bool = True


class NotLeader(RaftdbError):
    """Only the leader can do that; `leader` is who it is, as far as this node knows."""

    def __init__(self, leader: NodeRef | None) -> None:
        super().__init__(leader)
        self.leader = leader


class Busy(RaftdbError):
    """Not now, certainly not done: too much is uncommitted, or leadership is being handed over."""


class ChangeRefused(RaftdbError):
    """This membership change may not be proposed (now); nothing was changed. The text says why."""


class ChangeKind(Enum):
    ADD_LEARNER = "add learner"
    PROMOTE = "promote"
    DEMOTE = "demote"
    REMOVE = "remove"
    ADDRESS = "change address"


class Change(NamedTuple):
    """One single-step change. `member.incarnation` must match for all kinds but ADD_LEARNER."""

    kind: ChangeKind
    member: Member


class Core:
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
        """`commit` may be `applied` (it is advisory); `stamp` is that of the last entry, else of the snapshot;
        `snapshot` the newest durable file that may be offered to followers."""
        raise NotImplementedError

    wall_ms: int  # set by the node each turn; carried in heartbeats and their replies, never looked at
    age_ms: int  # set by the node on the leader: age of the last confirmed round, -1 none; carried in heartbeats
    fit: bool  # False: do not campaign (clock far off, disk full); a leader that is unfit hands over

    def step(self, sender: NodeRef, message: Message) -> str | None:
        """A message of a peer. None: taken; else the reason why it was ignored or refused (for counters and logs)."""
        raise NotImplementedError

    def tick(self) -> None:
        """One tick has passed. Messages before ticks; at most one tick per turn after a stall."""
        raise NotImplementedError

    def propose(self, proposals: Sequence[Proposal]) -> int:
        """Append a batch; return the index of its first entry. Raises NotLeader or Busy (nothing was appended)."""
        raise NotImplementedError

    def propose_membership(self, change: Change, stamp: int, seed: int) -> int:
        """Append a membership entry; return its index. Raises NotLeader, Busy or ChangeRefused."""
        raise NotImplementedError

    def read_index(self, read_id: int) -> None:
        """Ask for a linearizable read on any node; answered in Released.reads with the same id."""
        raise NotImplementedError

    def transfer(self, target_id: str | None) -> None:
        """Leader: hand over to `target_id` (None: the best voter). Raises NotLeader or ChangeRefused."""
        raise NotImplementedError

    def step_down(self, reason: str) -> None:
        """Leader or candidate: become a follower at once (no room on the disk)."""
        raise NotImplementedError

    def quarantine(self, index: int) -> None:
        """Entry `index` is damaged here: no votes, no leading, no acks beyond; it is asked for again."""
        raise NotImplementedError

    def snapshot_received(self, meta: SnapshotMeta) -> None:
        """The file of Released.fetch is durable and checked: install it (Persist.install of the next Ready)."""
        raise NotImplementedError

    def fetch_failed(self, meta: SnapshotMeta) -> None:
        """The file could not be pulled; the leader's next offer starts anew."""
        raise NotImplementedError

    def applied_to(self, index: int) -> None: ...
    def log_trimmed(self) -> None: ...
    def snapshot_available(self, meta: SnapshotMeta) -> None:
        """A newer durable snapshot may be offered to followers."""

    def unreachable(self, peer: NodeRef) -> None:
        """The connection to `peer` was lost or is new: what was under way is taken for lost."""

    def ready(self) -> Ready | None:
        """Stage one, or None when there is nothing to do."""
        raise NotImplementedError

    def persisted(self, ready: Ready) -> Released:
        """Stage two: `ready.persist` is synced."""
        raise NotImplementedError
