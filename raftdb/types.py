"""The vocabulary that every layer shares: plain immutable values, no behaviour that touches the outside.

A reader who knows the Raft paper and Redis knows every name here. Values on the hot path are NamedTuples (0.26 us to
make; a frozen dataclass costs 1.6 us).

Units: `stamp` and every `*_ms` is integer milliseconds of Unix time (stamps) or of a span (settings); indexes count
log entries from 1; terms count from 1 (0 = "none yet").
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple, TypeAlias

# --- identity -------------------------------------------------------------------------------------------------------


class NodeRef(NamedTuple):
    """One life of one member. Votes and acknowledgements count for this pair, never for the id alone."""

    id: str
    incarnation: int  # random 64 bits, drawn when the data directory was made


class Member(NamedTuple):
    """One row of a membership entry."""

    id: str
    incarnation: int
    client_addr: str  # HOST:PORT for clients
    peer_addr: str  # HOST:PORT for peers
    voter: bool  # False: a learner

    @property
    def ref(self) -> NodeRef:
        return NodeRef(self.id, self.incarnation)


class Membership(NamedTuple):
    """The members as of one log index; `members` is ordered by id."""

    index: int  # type: ignore[assignment]  # index of the membership entry; 0 for the one given at forming
    members: tuple[Member, ...]

    def get(self, node_id: str) -> Member | None:
        return next((m for m in self.members if m.id == node_id), None)

    @property
    def voters(self) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.voter)


# --- log ------------------------------------------------------------------------------------------------------------


class Kind:
    """Kinds of log entries (plain ints: they are compared on the hot path and stored in one byte)."""

    NOOP: Final = 0  # the first entry of a leader's term
    COMMANDS: Final = 1  # payload: a batch encoded by commands.machine
    MEMBERSHIP: Final = 2  # payload: a Membership encoded by consensus.membership
    TIME: Final = 3  # no payload: moves the stamp on so that keys fall due


class Entry(NamedTuple):
    """One log entry. `chain` = checksum over the previous entry's chain and this entry's header and payload."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    term: int
    kind: int
    stamp: int  # ms; never smaller than the stamp of the entry before
    seed: int  # 64 bits of chance, drawn by the leader, for commands that need some
    payload: bytes
    chain: int


class Proposal(NamedTuple):
    """An entry that has no place in the log yet."""

    kind: int
    stamp: int
    seed: int
    payload: bytes


#: (previous chain, index, term, kind, stamp, seed, payload) -> chain. Given to the core, which knows no checksum.
ChainOf: TypeAlias = Callable[[int, int, int, int, int, int, bytes], int]


class HardState(NamedTuple):
    """What must be durable before a vote or an acknowledgement leaves the node (Raft, figure 2)."""

    term: int
    vote: NodeRef | None


class SnapshotMeta(NamedTuple):
    """A durable snapshot file and the point of the log that it stands for."""

    name: str  # plain file name inside snapshots/
    index: int  # type: ignore[assignment]  # hides tuple.index
    term: int
    chain: int
    stamp: int
    membership: Membership
    size_bytes: int
    digest: bytes  # 32 bytes, over the whole file but its footer


class Persist(NamedTuple):
    """One synced transaction of the log environment. Fields that are None or empty stay as they are on disk.

    Order inside the transaction: install, truncate, rewrite, append, hard state, memberships.
    """

    hard: HardState | None
    truncate_from: int | None  # drop entries with index >= this one (never <= commit)
    entries: tuple[Entry, ...]  # append at last + 1
    rewrite: tuple[Entry, ...]  # refill quarantined entries in place
    membership: Membership | None  # as of the last entry after this transaction
    previous_membership: Membership | None  # the one before: what a truncation goes back to
    install: SnapshotMeta | None  # a received snapshot becomes the base of the log
    keep_suffix: bool  # with install: entries above install.index matched and stay


class Role(Enum):
    FOLLOWER = "follower"
    CANDIDATE = "candidate"  # also while pre-voting
    LEADER = "leader"
    LEARNER = "learner"


# --- replies --------------------------------------------------------------------------------------------------------
# One reply model, two encoders (net.resp). A handler returns:
#
#   bytes            bulk string                      None       null
#   int              integer                          str        simple string (no CR, LF)
#   list, tuple      array                            dict       map (RESP2: flat array)
#   float            double (RESP2: bulk string)      bool       boolean (RESP2: 1 / 0)
#   ReplySet         set (RESP2: array)               Push       push (RESP2: array)
#   NULL_ARRAY       RESP2 `*-1`, RESP3 `_`           Verbatim   verbatim string (RESP2: bulk)
#   Pairs            RESP2 flat array, RESP3 array of [member, score] pairs
#   CommandError     error line                       Encoded    bytes for the wire as they are

Reply: TypeAlias = Any


class ReplySet(list[Any]):
    """An unordered collection in a deterministic order."""


class Pairs(list[Any]):
    """[(a, b), ...]: nested in RESP3, flat in RESP2 (ZRANGE WITHSCORES, HRANDFIELD WITHVALUES)."""


class Push(list[Any]):
    """Out-of-band data: the first item names its kind."""


class Verbatim(NamedTuple):
    text: str
    form: str = "txt"


class Encoded(NamedTuple):
    """A reply that is encoded already and is the same in RESP2 and RESP3."""

    data: bytes


class _NullArray:
    __slots__ = ()

    def __repr__(self) -> str:
        return "NULL_ARRAY"


NULL_ARRAY: Final = _NullArray()
OK: Final = Encoded(b"+OK\r\n")
