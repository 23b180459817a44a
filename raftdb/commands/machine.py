"""The state machine: what a log entry holds, and what applying it does.

Payload of a COMMANDS entry (msgpack, strict):

    [version, [item, ...]]
    item    = [db, [word, ...]]                                          a Request
            | [db, [[db, key, version], ...], [[db, [word, ...]], ...]]  a Transaction

An item is executed as a whole or not at all. Its handler works on the batch behind a savepoint:

    returns a reply           the changes stay
    raises CommandError       rolled back; the error is the reply, computed from log and state, the same everywhere
    raises MemoryError, OSError, RecursionError, lmdb.Error, any RaftdbError that is not a CommandError
                              passes through: this replica cannot tell what the others did, so it stops
    raises anything else      a mistake in a handler. Rolled back, answered with one fixed text, and folded into the
                              state digest, so that replicas on which it went differently are found out

Inside a Transaction each command has its own savepoint: as in Redis a command that fails at run time does not undo
the others. WATCH versions are compared when the entry is applied, so EXEC is right across forwards and elections.

An entry first removes keys that fell due by its stamp (bounded, visible: counted by DBSIZE), then executes, then
reclaims records of dropped collections (bounded, invisible). A dead key that is still there is dead to every command.

The leader may mix READ requests of its own clients into `items`, to keep the order of a connection: they run on the
same batch, change nothing, and take no chance from the entry.

The replies of an entry are in memory together, and so they are bounded (`Context.kept`): a write whose reply has no
room is rolled back, which all replicas do alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgpack

from ..errors import Bug, CommandError, Damaged, RaftdbError
from ..storage.keys import DATABASES
from ..storage.kv import Batch, KvStore, Txn
from ..types import NULL_ARRAY, Entry, Kind, Reply
from .context import (
    REPLY_BYTES_MAX,
    Context,
    LocalContext,
    LongRead,
    Paced,
    ServerPort,
    SessionPort,
    StampBehind,
    no_breath,
)
from .table import READ, WRITE, Command, Table

PAYLOAD_VERSION: Final = 1
PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024 + 64 * 1024
WORDS_MAX: Final = 1_048_576  # of one command
ITEMS_MAX: Final = 1_048_576  # of one entry
EXPIRED_KEYS_PER_ENTRY_MAX: Final = 200
RECLAIMED_RECORDS_PER_ENTRY: Final = (
    500  # and one more per word of the entry, so that garbage cannot outgrow reclaiming
)
MANY_MIN: Final = 4  # commands of one kind in a row that are worth being done at once
MANY_MAX: Final = 512  # so that `breathe` is called in between
HANDLER_FAILED: Final = "ERR the command failed inside its handler; nothing was changed"

#: What no handler is to blame for, and what is no error at all
PASS_THROUGH: Final = (MemoryError, OSError, RecursionError, RaftdbError, StampBehind, LongRead)

_LISTS: Final = {list}
_INTS: Final = {int}
_BYTES: Final = {bytes}

Breathe = Callable[[], Any]


class Request(NamedTuple):
    """One command. `command` spares a second look-up; it is not part of the payload."""

    db: int
    argv: list[bytes]
    command: Command | None = None


class Watch(NamedTuple):
    db: int
    key: bytes
    version: int  # of its head when it was watched; 0: absent


class Transaction(NamedTuple):
    """MULTI ... EXEC."""

    db: int
    watches: Sequence[Watch]
    requests: Sequence[Request]


Item = Request | Transaction


class UnknownCommand(RaftdbError):
    """The log holds a command that this node's table has not: it must stop and say which."""


class Machine:
    """Executes commands on a store. Holds no state of its own but the table."""

    def __init__(self, table: Table, kv: KvStore | None = None) -> None:
        self.table = table
        self.kv = kv
        self._reads = 0  # feeds the chance of reads outside the log, which need not be the same anywhere

    # --- payload ----------------------------------------------------------------------------------------------------

    def encode(self, items: Iterable[Item]) -> bytes:
        """The payload of a COMMANDS entry. Raises Bug for one that decode() would refuse."""
        rows: list[Any] = [
            (item.db, item.watches, [request[:2] for request in item.requests])
            if type(item) is Transaction
            else item[:2]
            for item in items
        ]
        packed: bytes = msgpack.packb((PAYLOAD_VERSION, rows), use_bin_type=True)
        if len(rows) > ITEMS_MAX or len(packed) > PAYLOAD_BYTES_MAX:
            raise Bug(f"an entry of {len(rows)} commands and {len(packed)} bytes was to be proposed")
        return packed

    def decode(self, payload: bytes) -> list[Item]:
        """The items of a payload. Raises Damaged for anything that encode() cannot have written."""
        if len(payload) > PAYLOAD_BYTES_MAX:
            raise Damaged("entry payload", f"{len(payload)} bytes")
        try:
            outer = msgpack.unpackb(
                payload,
                raw=False,
                use_list=True,
                max_bin_len=PAYLOAD_BYTES_MAX,
                max_array_len=min(len(payload), max(WORDS_MAX, ITEMS_MAX)),  # an item takes a byte at least
                max_map_len=0,
                max_str_len=0,
                max_ext_len=0,
            )
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise Damaged("entry payload", f"not msgpack: {type(error).__name__}") from None
        if not isinstance(outer, list) or len(outer) != 2 or outer[0] != PAYLOAD_VERSION or type(outer[1]) is not list:
            raise Damaged("entry payload", "not a batch of this version")
        return _requests(outer[1]) or [_item(row) for row in outer[1]]

    # --- applying ---------------------------------------------------------------------------------------------------

    def apply(
        self, entry: Entry, items: Iterable[Item] | None, batch: Batch, breathe: Breathe = no_breath
    ) -> list[Reply]:
        """Execute one entry on the batch and return one reply per item (CommandErrors as values).

        `breathe` is called every 64 records, and by the batch in long work of its own; it must not touch kv.
        `items` None: decoded from the payload. The caller commits the batch, after as many entries as it likes.
        Raises UnknownCommand, StorageError and the exceptions named above: the node must stop.
        """
        batch.breathe = breathe
        batch.begin(entry.index, entry.stamp, entry.seed)
        for db, name in batch.due(entry.stamp, EXPIRED_KEYS_PER_ENTRY_MAX):
            batch.drop_head(db, name)
        replies: list[Reply] = []
        words = 0
        if entry.kind == Kind.COMMANDS:
            if items is None:
                items = self.decode(entry.payload)
            words = self._apply_items(entry, items, batch, Paced(breathe), replies)
        batch.reclaim(RECLAIMED_RECORDS_PER_ENTRY + words)
        return replies

    def _apply_items(
        self, entry: Entry, items: Iterable[Item], batch: Batch, breathe: Breathe, replies: list[Reply]
    ) -> int:
        """Returns the number of words of the writes: each may have left a record that once becomes garbage."""
        words = 0
        ctx = Context(batch, batch, now=entry.stamp, index=entry.index, seed=entry.seed, breathe=breathe)
        step = 0  # of the commands that are in the log: reads that ride along must not shift the chance of writes
        at, items = 0, items if isinstance(items, list) else list(items)
        while at < len(items):
            item = items[at]
            at += 1
            if isinstance(item, Transaction):
                replies.append(self._transaction(ctx, item, entry.seed + step))
                step += len(item.requests)
                words += sum(len(request.argv) for request in item.requests)
                continue
            command = item.command or self._known(item.argv)
            ctx.db = item.db
            if command.many is not None and (argvs := self._alike(items, at - 1, command)):
                replies += command.many(ctx, argvs)
                at += len(argvs) - 1
                step += len(argvs)
                words += len(argvs) * command.words_min
            elif command.flags & WRITE:
                step += 1
                words += len(item.argv)
                ctx.reseed(entry.seed + step)
                replies.append(self._write(ctx, batch, command, item.argv))
            else:
                replies.append(self._read_in_order(ctx, batch, command, item.argv))
            breathe()
        return words

    def _alike(self, items: Sequence[Item], start: int, command: Command) -> list[list[bytes]]:
        """The words of the run of items from `start` on that are this command in its shortest form, in one database.

        Empty when it is not worth the trouble.
        """
        first = items[start]
        db, name, words = first[0], first[1][0], command.words_min
        argvs: list[list[bytes]] = []
        for item in items[start : start + MANY_MAX]:
            if type(item) is not Request or item.db != db or len(item.argv) != words:
                break
            argv = item.argv
            if argv[0] != name and (item.command or self._known(argv)) is not command:
                break
            argvs.append(argv)
        return argvs if len(argvs) >= MANY_MIN else []

    def _write(self, ctx: Context, batch: Batch, command: Command, argv: list[bytes]) -> Reply:
        batch.savepoint()
        try:
            if not command.words_min <= len(argv) <= command.words_max:
                raise command.check(argv) or CommandError(HANDLER_FAILED)
            reply = command.run(ctx, argv)
            if type(reply) is bytes and type(reply := ctx.counted(reply)) is not bytes:
                batch.rollback()
            return reply
        except CommandError as error:
            batch.rollback()
            return error
        except PASS_THROUGH:
            raise
        except Exception as error:
            return self._handler_failed(batch, command, error)

    def _handler_failed(self, batch: Batch, command: Command, error: Exception) -> Reply:
        if _is_of_lmdb(error):
            raise error
        batch.rollback()
        batch.fold(f"{command.name} failed".encode())
        return CommandError(HANDLER_FAILED)

    def _read_in_order(self, ctx: Context, batch: Batch, command: Command, argv: list[bytes]) -> Reply:
        """A READ request between the writes of an entry."""
        room_bytes, ctx.room_bytes, ctx.batch = ctx.room_bytes, ctx.riding_bytes, None
        try:
            reply = self._run_read(ctx, command, argv)
            return ctx.counted(reply) if type(reply) is bytes else reply
        finally:
            ctx.riding_bytes, ctx.room_bytes, ctx.batch = ctx.room_bytes, room_bytes, batch

    def _run_read(self, ctx: Context, command: Command, argv: list[bytes]) -> Reply:
        if not command.words_min <= len(argv) <= command.words_max:
            return command.check(argv)
        try:
            return command.run(ctx, argv)
        except CommandError as error:
            return error
        except PASS_THROUGH:
            raise
        except Exception as error:
            if _is_of_lmdb(error):
                raise
            return CommandError(HANDLER_FAILED)

    def _transaction(self, ctx: Context, item: Transaction, seed: int) -> Reply:
        if not self._unchanged(ctx, item.watches):
            return NULL_ARRAY
        batch = ctx.batch
        replies: list[Reply] = []
        for step, request in enumerate(item.requests, 1):
            ctx.db = request.db
            ctx.reseed(seed + step)
            command = request.command or self._known(request.argv)
            if command.flags & WRITE and batch is not None:
                replies.append(self._write(ctx, batch, command, request.argv))
            else:
                reply = self._run_read(ctx, command, request.argv)
                replies.append(ctx.counted(reply) if type(reply) is bytes else reply)
            ctx.breathe()
        return replies

    def _unchanged(self, ctx: Context, watches: Sequence[Watch]) -> bool:
        for db, key, version in watches:
            ctx.db = db
            head = ctx.head(key)
            if (0 if head is None else head.version) != version:
                return False
        return True

    def _known(self, argv: list[bytes]) -> Command:
        try:
            return self.table.find(argv)
        except CommandError as error:
            row = self.table.get(argv[0])
            if row is None:
                raise UnknownCommand(f"the log holds a command that this node does not know: {error}") from None
            return row

    # --- reading ----------------------------------------------------------------------------------------------------

    def context(self, view: Txn, db: int, clock_ms: int | None = None, breathe: Breathe = no_breath) -> Context:
        """The context of reads on this view; one serves all reads of a turn (`read_in`)."""
        seed = self._reads = self._reads + 1
        now, index = view.stamp, view.applied
        return Context(view, None, db, now=now, index=index, seed=seed << 20, clock_ms=clock_ms, breathe=breathe)

    def read(self, view: Txn, item: Item, clock_ms: int | None = None, breathe: Breathe = no_breath) -> Reply:
        """Execute a READ command, or a Transaction of only such, on a view. CommandErrors are returned as values.

        `clock_ms`: the wall clock on the leader; then StampBehind may be raised.
        """
        return self.read_in(self.context(view, item.db, clock_ms, breathe), item)

    def read_in(self, ctx: Context, item: Item) -> Reply:
        """As read(), in a context that serves several reads."""
        ctx.reseed(ctx.seed + 1)
        ctx.room_bytes = REPLY_BYTES_MAX
        if isinstance(item, Transaction):
            return self._transaction(ctx, item, ctx.seed)
        ctx.db = item.db
        try:
            return self._run_read(ctx, item.command or self.table.find(item.argv), item.argv)
        except CommandError as error:
            return error

    def size(self, view: Txn, request: Request) -> int:
        """How many records this READ will touch, from head records alone: decides between loop and worker."""
        command = request.command or self.table.find(request.argv)
        if command.size is None:
            return 1
        try:
            return command.size(self.context(view, request.db), request.argv)
        except (CommandError, IndexError):
            return 1

    def watch(self, view: Txn, db: int, keys: Sequence[bytes], clock_ms: int | None = None) -> list[int]:
        """The versions of these keys as of the view (0: absent), for Session.watch."""
        ctx = self.context(view, db, clock_ms)
        heads = [ctx.head(key) for key in keys]
        return [0 if head is None else head.version for head in heads]

    # --- local ------------------------------------------------------------------------------------------------------

    def local(self, server: ServerPort, session: SessionPort, command: Command, argv: list[bytes]) -> Reply:
        """Execute a LOCAL command. CommandErrors are returned as values; anything else is a bug of ours and raised."""
        try:
            return command.run(LocalContext(self.table, server, session), argv)
        except CommandError as error:
            return error


def _is_of_lmdb(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] == "lmdb"


def is_read_only(item: Item) -> bool:
    """May `Machine.read` execute this item?"""
    requests = item.requests if isinstance(item, Transaction) else (item,)
    return all(request.command is not None and request.command.flags & READ for request in requests)


def _transaction_row(item: Any) -> Any:
    return item.db, item.watches, [request[:2] for request in item.requests]


def _requests(rows: list[Any]) -> list[Item]:
    """The items of rows that are all plain requests in good order, checked in as few steps as it takes; else none."""
    new = tuple.__new__
    try:
        if {type(row) for row in rows} != _LISTS or {type(db) for db, _ in rows} != _INTS:
            return []
        if {type(argv) for _, argv in rows} != _LISTS or not all(argv for _, argv in rows):
            return []
        if not all(0 <= db < DATABASES for db in {db for db, _ in rows}):
            return []
        if {type(word) for _, argv in rows for word in argv} != _BYTES:
            return []
        return [new(Request, (db, argv, None)) for db, argv in rows]
    except (TypeError, ValueError):  # rows of another length
        return []


def _item(row: Any) -> Item:
    """Check one decoded item. Raises Damaged."""
    if type(row) is list:
        if len(row) == 2:
            return _request(row)
        if len(row) == 3 and _is_db(row[0]) and type(row[1]) is list and type(row[2]) is list:
            return Transaction(row[0], [_watch(watch) for watch in row[1]], [_request(one) for one in row[2]])
    raise Damaged("entry payload", "not an item")


def _request(row: Any) -> Request:
    if type(row) is list and len(row) == 2 and _is_db(row[0]) and type(row[1]) is list and row[1]:
        for word in row[1]:
            if type(word) is not bytes:
                raise Damaged("entry payload", "a word that is not bytes")
        return Request(row[0], row[1])
    raise Damaged("entry payload", "not a request")


def _watch(row: Any) -> Watch:
    if type(row) is list and len(row) == 3 and _is_db(row[0]) and type(row[1]) is bytes and type(row[2]) is int:
        return Watch(row[0], row[1], row[2])
    raise Damaged("entry payload", "not a watch")


def _is_db(value: Any) -> bool:
    return type(value) is int and 0 <= value < DATABASES
