"""What a handler is given: the records, the entry's time and chance, and, for local commands, the node and the session.

Three contexts:

- `Context`: READ and WRITE commands. Records through `txn` (a View, or the Batch while an entry is applied), `now` =
  the stamp, `random` = a generator fed by the entry's seed. Nothing else exists in there, so that a command cannot
  depend on anything but log and state.
- `LocalContext`: LOCAL commands: `server` (the node, as `ServerPort`) and `session` (`SessionPort`).

Replies are bounded while they are built (`kept`, `counted`): what a client may ask for at once is more than a node has
memory. The limit of a write is part of what an entry does, the same on every replica: see WRITE_REPLY_BYTES_MAX.

Expiry in one place: `Context.head()`. A key is dead when 0 < expiry <= now. A read on the leader also knows the wall
clock (`clock_ms`): a key that is due by it but not by the stamp cannot be judged yet. `StampBehind` says so, and the
caller proposes a TIME entry, waits until it is applied, and asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, runtime_checkable

from ..errors import Bug, CommandError
from ..storage.kv import Batch, Head, Txn
from ..types import Reply
from .args import WRONGTYPE

if TYPE_CHECKING:
    from .table import Table

RECORDS_PER_BREATH: Final = 64
REPLY_BYTES_MAX: Final = 240 * 1024 * 1024  # of one read or EXEC; less than a client's output buffer may hold
#: Of all commands of one entry together, reads in transactions included. Changing it changes what old entries do.
WRITE_REPLY_BYTES_MAX: Final = 48 * 1024 * 1024
REPLY_ITEM_BYTES: Final = 16  # what an element takes on the wire besides its bytes, at most
REPLY_TOO_LARGE: Final = (
    "ERR the reply would be too large: ask for less at a time. A read may answer 240 MiB, all commands that are "
    "executed together with a write 48 MiB. This command changed nothing"
)
MASK64: Final = (1 << 64) - 1

#: Type codes are storage's; names are Redis'.
TYPE_NAMES: Final = {1: "string", 2: "list", 3: "set", 4: "zset", 5: "hash"}


class StampBehind(Exception):
    """A signal to the caller of Machine.read, not an error of anybody.

    A key is due by the leader's clock but not by the applied stamp; `due_ms` is the stamp that decides it.
    """

    def __init__(self, due_ms: int) -> None:
        super().__init__(due_ms)
        self.due_ms = due_ms


class LongRead(BaseException):
    """A signal, as StampBehind is: this read turned out to be too long for the loop that began it.

    Nothing was answered; a worker does it again. No Exception, so that no handler takes it for an error of its own.
    """


def mix64(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


class Random:
    """splitmix64. The standard library's sampling may change between Python versions; this one does not."""

    __slots__ = ("_state",)

    def __init__(self, seed: int) -> None:
        self._state = seed & MASK64

    def next64(self) -> int:
        value = mix64(self._state)
        self._state = (self._state + 0x9E3779B97F4A7C15) & MASK64
        return value

    def below(self, bound: int) -> int:
        """A uniform integer in [0, bound), 1 <= bound <= 2**64, without modulo bias."""
        limit = (1 << 64) - (1 << 64) % bound
        while True:
            value = self.next64()
            if value < limit:
                return value % bound

    def bytes(self, count: int) -> bytes:
        words = -(-count // 8)
        return b"".join(self.next64().to_bytes(8, "big") for _ in range(words))[:count]

    def shuffle(self, items: list[Any]) -> None:
        for at in range(len(items) - 1, 0, -1):
            other = self.below(at + 1)
            items[at], items[other] = items[other], items[at]

    def sample(self, bound: int, count: int) -> list[int]:
        """`count` different integers of [0, bound) in random order (Floyd's method, then a shuffle)."""
        chosen: dict[int, None] = {}
        for top in range(bound - count, bound):
            pick = self.below(top + 1)
            chosen[top if pick in chosen else pick] = None
        picks = list(chosen)
        self.shuffle(picks)
        return picks


def no_breath() -> None:
    """The breathe() of contexts that need none (tests, tools)."""


class Paced:
    """A breathe() that costs little per record: it passes every 64th call on."""

    __slots__ = ("_breathe", "_left")

    def __init__(self, breathe: Callable[[], Any]) -> None:
        self._breathe = breathe
        self._left = RECORDS_PER_BREATH

    def __call__(self) -> None:
        self._left -= 1
        if not self._left:
            self._left = RECORDS_PER_BREATH
            self._breathe()


class Context:
    """Of one command on records. The same object serves all commands of an entry; a read makes its own."""

    __slots__ = (
        "_random",
        "batch",
        "breathe",
        "clock_ms",
        "closing",
        "db",
        "index",
        "machine",
        "now",
        "riding_bytes",
        "room_bytes",
        "seed",
        "txn",
    )

    def __init__(
        self,
        txn: Txn,
        batch: Batch | None,
        db: int = 0,
        *,
        now: int,
        index: int,
        seed: int = 0,
        clock_ms: int | None = None,
        breathe: Callable[[], Any] = no_breath,
    ) -> None:
        self.txn = txn
        self.batch = batch  # None: records must not be changed
        self.db = db  # 0-15
        self.now = now  # ms: the stamp of the entry, or of the last applied one for a read
        self.index = index  # of the entry, or of the last applied one
        self.seed = seed
        self.clock_ms = clock_ms
        self.breathe = breathe  # call once per record in loops
        self.closing = False  # a SLOW read asks that its connection be closed behind the answer
        self.room_bytes = REPLY_BYTES_MAX if batch is None else WRITE_REPLY_BYTES_MAX  # what replies may still take
        self.riding_bytes = WRITE_REPLY_BYTES_MAX  # the same for reads that ride along with writes
        self._random: Random | None = None

    @property
    def random(self) -> Random:
        """Chance, the same on every replica."""
        if self._random is None:
            self._random = Random(self.seed)
        return self._random

    def reseed(self, seed: int) -> None:
        """A new command begins."""
        self.seed = seed
        self._random = None

    def kept(self, values: Iterable[bytes | None]) -> list[Any]:
        """These values as (a part of) the reply. Raises CommandError as soon as there is no room for more."""
        found: list[Any] = []
        left = self.room_bytes
        for value in values:
            left -= REPLY_ITEM_BYTES if value is None else REPLY_ITEM_BYTES + len(value)
            if left < 0 and (found or not self._is_first()):
                raise CommandError(REPLY_TOO_LARGE)
            found.append(value)
        self.room_bytes = left
        return found

    def keep(self, size_bytes: int) -> None:
        """As `kept`, for replies that are put together otherwise."""
        if size_bytes > self.room_bytes:
            raise CommandError(REPLY_TOO_LARGE)
        self.room_bytes -= size_bytes

    def counted(self, reply: bytes) -> Reply:
        """A single value as one of several replies, or the error in its place when there is no room for it."""
        size_bytes = len(reply) + REPLY_ITEM_BYTES
        if size_bytes > self.room_bytes and not self._is_first():
            return CommandError(REPLY_TOO_LARGE)
        self.room_bytes -= size_bytes
        return reply

    def _is_first(self) -> bool:
        """Nothing was kept yet: one value may always be answered, however large it is (64 MiB)."""
        return self.room_bytes == WRITE_REPLY_BYTES_MAX

    def writing(self) -> Batch:
        """The batch. Raises CommandError in a READ command: it has declared that it changes nothing."""
        if self.batch is None:
            raise CommandError("ERR this command is declared READ and must not write")
        return self.batch

    def head(self, name: bytes) -> Head | None:
        """The head record of a living key. Raises StampBehind (reads on the leader only)."""
        head = self.txn.head(self.db, name)
        if head is None or not head.expiry_ms:
            return head
        return head if self.alive(head) else None

    def alive(self, head: Head) -> bool:
        due = head.expiry_ms
        if not due or due > self.now:
            if due and self.clock_ms is not None and due <= self.clock_ms:
                raise StampBehind(due)
            return True
        return False

    def head_of(self, name: bytes, kind: int) -> Head | None:
        """As `head`, of a key that must be of this type. Raises CommandError (WRONGTYPE)."""
        head = self.txn.head(self.db, name)
        if head is None:
            return None
        if head.expiry_ms and not self.alive(head):
            return None
        if head.type != kind:
            raise CommandError(WRONGTYPE)
        return head

    def living(self, from_hash: int = 0) -> Iterator[tuple[int, bytes, Head]]:
        """(hash, name, head) of the keys of this database that live, in hash order."""
        breathe, alive = self.breathe, self.alive
        for row in self.txn.scan_heads(self.db, from_hash):
            breathe()
            if alive(row[2]):
                yield row


class Role(NamedTuple):
    """For ROLE and INFO replication."""

    leader: bool
    leader_addr: tuple[str, int] | None  # client address; None when unknown
    offset: int  # log index applied
    state: str  # of a follower: connect, connecting, sync, connected
    followers: Sequence[tuple[str, int, int]]  # (host, port, acknowledged index) as the leader knows them


@runtime_checkable
class SessionPort(Protocol):
    """What commands see of a connection; `net.session.Session` is one."""

    id: int
    address: str
    laddr: str
    name: bytes
    lib_name: bytes
    lib_version: bytes
    user: str
    authenticated: bool
    protocol: int
    db: int
    in_multi: bool
    dirty_exec: bool
    queue: list[list[bytes]]
    queued_bytes: int
    watches: dict[tuple[int, bytes], int]
    readonly: bool
    consistency: str
    bounded_ms: int
    written_index: int
    reply_mode: str
    maintenance: bool
    no_evict: bool
    no_touch: bool
    commands: int
    last_command: bytes
    connected_s: float
    last_command_s: float

    def reset(self, *, consistency: str | None = None) -> None: ...
    def begin_multi(self) -> None: ...
    def clear_transaction(self) -> None: ...
    def unwatch(self) -> None: ...


class ServerPort(Protocol):
    """What LOCAL commands ask of the node. Methods may raise CommandError (NotLeader and the like as Unexecuted).

    Those marked *waits* may take long; their commands carry SLOW or BLOCKING, so that they run on a worker.
    """

    # --- identity, time, settings
    def node_id(self) -> str: ...
    def cluster_id(self) -> str: ...
    def now_us(self) -> int:
        """Wall clock, microseconds of Unix time."""
        ...

    def monotonic_s(self) -> float:
        """The clock of SessionPort.connected_s."""
        ...

    def password_required(self) -> bool: ...
    def authenticate(self, user: bytes, password: bytes) -> bool: ...
    def config_get(self) -> Mapping[str, str]:
        """Every parameter (Redis' names and raftdb's own), as text."""
        ...

    def config_set(self, changes: Mapping[str, str]) -> None:
        """All or none. Raises CommandError for an unknown or read-only parameter or a bad value."""
        ...

    def reset_stats(self) -> None: ...
    def default_consistency(self) -> str: ...

    # --- what INFO, ROLE and RAFT.* show
    def info(self) -> Mapping[str, Mapping[str, object]]:
        """section (lower case) -> field -> value: server clients memory persistence stats replication cpu raft. Fields
        that commands.server fills itself (redis_version, redis_mode, keyspace, ...) may be left out."""
        ...

    def keyspace(self) -> Sequence[tuple[int, int, int]]:
        """(database, keys, keys with an expiry) of the databases that are not empty."""
        ...

    def role(self) -> Role: ...
    def status(self) -> Mapping[str, object]:
        """RAFT.INFO: node, state (leader, follower, candidate, learner), term, commit, applied, leader, ..."""
        ...

    def nodes(self) -> Sequence[Mapping[str, object]]:
        """RAFT.NODES: id, addr, peer_addr, voter (bool), state, match, ... by id."""
        ...

    # --- clients
    def sessions(self) -> Sequence[SessionPort]: ...
    def kill_session(self, session_id: int) -> bool: ...
    def pause_clients(self, until_ms: int, writes_only: bool) -> None: ...
    def unpause_clients(self) -> None: ...
    def unblock_client(self, session_id: int, with_error: bool) -> bool: ...

    # --- persistence
    def checkpoint(self, name: str | None, codec: str) -> str:
        """*Waits* until the snapshot is durable; codec is "msgpack" or "pickle"; returns its file name."""
        ...

    def checkpoint_soon(self) -> bool:
        """Start a snapshot in the background; False when one is running already."""
        ...

    def last_save_s(self) -> int: ...
    def snapshots(self) -> Sequence[Mapping[str, object]]: ...
    def read_snapshot(self, name: str, offset: int, length: int) -> tuple[int, bytes]:
        """(size of the file, at most `length` bytes of it) of a snapshot or checkpoint. Reads the disk."""
        ...

    def drop_checkpoint(self, name: str) -> bool:
        """Delete a checkpoint; was there one?"""
        ...

    # --- the group. *wait* until the change is committed
    def add_node(self, node_id: str, address: str, voter: bool) -> None: ...
    def remove_node(self, node_id: str) -> None: ...
    def promote(self, node_id: str) -> None: ...
    def demote(self, node_id: str) -> None: ...
    def transfer_leadership(self, node_id: str | None) -> None: ...
    def barrier(self) -> int:
        """*Waits* until everything committed before is applied here; returns the index."""
        ...

    def wait_replicas(self, index: int, replicas: int, timeout_ms: int) -> int:
        """*Waits* until so many followers have `index` durable; returns how many have. timeout 0: no limit."""
        ...

    def log_entries(self, start: int, stop: int) -> Sequence[tuple[int, int, int, str, Sequence[Sequence[bytes]]]]:
        """(index, term, stamp, kind, command lines) for start <= index < stop, bounded by the node."""
        ...

    def dump(self) -> bytes:
        """The state as text for GETDUMP (bounded; else CommandError)."""
        ...

    # --- operations
    def shutdown(self, save: bool, now: bool) -> None: ...
    def sleep(self, seconds: float) -> None:
        """DEBUG SLEEP: *waits*, on a worker, interrupted by shutdown."""
        ...

    def slowlog(self, count: int) -> Sequence[tuple[int, int, int, Sequence[bytes], str, str]]:
        """(id, unix time s, microseconds, argv, client address, client name), newest first; count -1: all."""
        ...

    def slowlog_length(self) -> int: ...
    def slowlog_reset(self) -> None: ...
    def latency_latest(self) -> Sequence[tuple[str, int, int, int]]:
        """(event, unix time s, last ms, worst ms)."""
        ...

    def latency_reset(self) -> int: ...


class LocalContext:
    """Of one LOCAL command."""

    __slots__ = ("server", "session", "table")

    def __init__(self, table: Table, server: ServerPort, session: SessionPort) -> None:
        self.table = table
        self.server = server
        self.session = session


def required(batch: Batch | None) -> Batch:
    """For internals that run only while an entry is applied."""
    if batch is None:
        raise Bug("a change of the records outside an entry")
    return batch
