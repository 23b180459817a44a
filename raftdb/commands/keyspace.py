"""Keys of any type: existence, names, expiry, scanning, databases.

SCAN is stateless: its cursor is the 48-bit hash to go on from. Heads are stored in the order of the hash of their name,
so a key that is there from the first call to the last is returned exactly once, whatever happens to others, on any
node and across a change of leader. Keys of equal hash are returned together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Final, TypeVar

from ..errors import CommandError
from ..storage.keys import DATABASES, HASH, LIST, SET, STRING, ZSET
from ..storage.kv import Head
from ..types import OK, Encoded, Reply
from .args import (
    INT64_MAX,
    INT64_MIN,
    NO_SUCH_KEY,
    SYNTAX,
    Bytes,
    Convert,
    Flag,
    Int,
    Key,
    Many,
    OneOf,
    Optional,
    Options,
    Value,
    Word,
    integer,
    printable,
)
from .context import TYPE_NAMES, Context, Random
from .glob import Match, literal, matcher
from .table import DANGEROUS, FAST, KEYSPACE, MAY_SHRINK, READ, WRITE, Command, command

HASH_SPAN: Final = 1 << 48
DRAWN_AMONG: Final = 32
SCAN_COUNT: Final = 10
SCAN_COUNT_MAX: Final = 100_000  # records per call; a greater COUNT is cut, which SCAN's contract allows
BAD_CURSOR: Final = "ERR invalid cursor"
BAD_DATABASE: Final = "ERR DB index is out of range"
#: As long as a hash or list is small Redis keeps it packed; OBJECT ENCODING tells.
PACKED_ENTRIES_MAX: Final = 128
PACKED_BYTES_MAX: Final = 64
EMBEDDED_BYTES_MAX: Final = 44

Row = TypeVar("Row")
TYPE_CODES: Final = {name.encode(): code for code, name in TYPE_NAMES.items()}
GENERIC: Final = KEYSPACE


@command(
    "DEL",
    Many(Key()),
    flags=WRITE | MAY_SHRINK | GENERIC,
    summary="Remove keys, whatever they hold",
    complexity="O(log N) per key, of any size: its records are reclaimed later",
)
def del_(ctx: Context, names: list[bytes]) -> Reply:
    batch, removed = ctx.writing(), 0
    for name in names:
        ctx.breathe()
        if ctx.head(name) is not None:
            batch.drop_head(ctx.db, name)
            removed += 1
    return removed


unlink = command(
    "UNLINK",
    Many(Key()),
    flags=WRITE | FAST | MAY_SHRINK | GENERIC,
    since="4.0.0",
    summary="The same as DEL, which never blocks here",
    complexity="O(log N) per key, of any size",
)(del_.handler)


def _many(_ctx: Context, argv: list[bytes]) -> int:
    return len(argv) - 1


@command(
    "EXISTS",
    Many(Key()),
    flags=READ | FAST | GENERIC,
    summary="How many of these keys exist; one named twice counts twice",
    complexity="O(log N) per key",
    size=_many,
)
def exists(ctx: Context, names: list[bytes]) -> Reply:
    return sum(1 for name in _breathing(ctx, names) if ctx.head(name) is not None)


def _breathing(ctx: Context, names: list[bytes]) -> Iterator[bytes]:
    for name in names:
        ctx.breathe()
        yield name


touch = command(
    "TOUCH",
    Many(Key()),
    flags=READ | FAST | GENERIC,
    since="3.2.1",
    summary="Count the keys that exist; there is no access time to change",
    complexity="O(log N) per key",
    size=_many,
)(exists.handler)


@command("TYPE", Key(), flags=READ | FAST | GENERIC, summary="The type of what a key holds", complexity="O(log N)")
def type_(ctx: Context, name: bytes) -> Reply:
    head = ctx.head(name)
    return "none" if head is None else TYPE_NAMES[head.type]


def _database_size(ctx: Context, _argv: list[bytes]) -> int:
    return ctx.txn.count(ctx.db)


@command(
    "KEYS",
    Bytes("pattern", "pattern"),
    flags=READ | GENERIC | DANGEROUS,
    summary="All names that match a glob pattern",
    complexity="O(N), N: keys of the database",
    size=_database_size,
)
def keys(ctx: Context, pattern: bytes) -> Reply:
    name = literal(pattern)
    if name is not None:
        return [] if ctx.head(name) is None else [name]
    if pattern == b"*":
        return ctx.kept(row[1] for row in ctx.living())
    match = matcher(pattern)
    return ctx.kept(row[1] for row in ctx.living() if match(row[1]))


def scan_options(*more: Flag) -> Options:
    return Options(Value("MATCH", Bytes("pattern", "pattern")), Value("COUNT", Int("count")), *more)


def scan_count(options: dict[str, Any]) -> int:
    count: int = options.get("COUNT", SCAN_COUNT)
    if count < 1:
        raise CommandError(SYNTAX)
    return min(count, SCAN_COUNT_MAX)


def scan_match(options: dict[str, Any]) -> Match | None:
    pattern = options.get("MATCH")
    return None if pattern is None or pattern == b"*" else matcher(pattern)


def cursor_of(token: bytes) -> int:
    """A cursor as clients send it back. Raises CommandError."""
    token = token.partition(b"\0")[0]  # as strtoul reads it, here and below
    if not token:
        return 0
    digits = token[1:] if token[0] in b"+-" else token
    significant = digits.lstrip(b"0") or b"0"
    if not digits.isdigit() or len(significant) > 20 or int(significant) >= 1 << 64:
        raise CommandError(BAD_CURSOR)
    return (-int(significant) if token[0] == ord("-") else int(significant)) % (1 << 64)


class Cursor(Word):
    """A cursor; it is checked before the options are."""

    kind = "integer"

    def converter(self) -> Convert | None:
        return lambda _ctx, token: cursor_of(token)


def _scan_size(ctx: Context, argv: list[bytes]) -> int:
    words = [word.upper() for word in argv]
    if b"COUNT" not in words:
        return SCAN_COUNT
    return min(integer(argv[words.index(b"COUNT") + 1]), ctx.txn.count(ctx.db))


@command(
    "SCAN",
    Cursor("cursor"),
    scan_options(Value("TYPE", Bytes("type"))),
    flags=READ | GENERIC,
    since="2.8.0",
    summary="Walk over all keys in steps",
    complexity="O(COUNT) per call",
    size=_scan_size,
)
def scan(ctx: Context, start: int, options: dict[str, Any]) -> Reply:
    count, match = scan_count(options), scan_match(options)
    wanted = TYPE_CODES.get(options["TYPE"].lower(), 0) if "TYPE" in options else None
    found: list[bytes] = []
    last = -1
    for seen, (place, name, head) in enumerate(ctx.txn.scan_heads(ctx.db, start) if start < HASH_SPAN else ()):
        if seen >= count and place != last:
            return [b"%d" % place, found]
        last = place
        ctx.breathe()
        if (wanted is None or head.type == wanted) and (match is None or match(name)) and ctx.alive(head):
            found += ctx.kept((name,))
    return [b"0", found]


def draw(random: Random, rows_from: Callable[[int], Iterator[Row]], size: int) -> Row | None:
    """One of about `size` rows in hash order, wherever they begin: a seek to a random hash, and then a random step.

    Without the step a row would be drawn as often as the gap before it is wide. With it, the gaps before DRAWN_AMONG
    rows are averaged; that many rows or fewer are drawn evenly.
    """
    if not size:
        return None
    steps, start = random.below(min(size, DRAWN_AMONG)), random.below(HASH_SPAN)
    rows = list(islice(chain(rows_from(start), rows_from(0)), steps + 1))
    return rows[-1] if rows else None


@command("RANDOMKEY", flags=READ | GENERIC, summary="A key drawn at random", complexity="O(log N)")
def randomkey(ctx: Context) -> Reply:
    row = draw(ctx.random, ctx.living, ctx.txn.count(ctx.db))
    return None if row is None else row[1]


@command(
    "RENAME",
    Key(),
    Key(name="newkey"),
    flags=WRITE | MAY_SHRINK | GENERIC,
    summary="Give a value another key, replacing what is there",
    complexity="O(log N), whatever the size of the value",
)
def rename(ctx: Context, name: bytes, new: bytes) -> Reply:
    if ctx.head(name) is None:
        raise CommandError(NO_SUCH_KEY)
    if name != new:
        _move(ctx, name, ctx.db, new)
    return OK


@command(
    "RENAMENX",
    Key(),
    Key(name="newkey"),
    flags=WRITE | FAST | MAY_SHRINK | GENERIC,
    summary="Give a value another key, if that is free",
    complexity="O(log N)",
)
def renamenx(ctx: Context, name: bytes, new: bytes) -> Reply:
    if ctx.head(name) is None:
        raise CommandError(NO_SUCH_KEY)
    if ctx.head(new) is not None:
        return 0
    _move(ctx, name, ctx.db, new)
    return 1


def _move(ctx: Context, name: bytes, db: int, new: bytes) -> None:
    batch = ctx.writing()
    head = batch.take_head(ctx.db, name)
    if head is not None:
        batch.put_head(db, new, head)


def database(token: bytes) -> int:
    """A database number as SELECT, MOVE, COPY read it. Raises CommandError."""
    number = integer(token)
    if not 0 <= number < DATABASES:
        raise CommandError(BAD_DATABASE)
    return number


class Database(Word):
    """The number of a database."""

    kind = "integer"

    def converter(self) -> Convert | None:
        return lambda _ctx, token: database(token)


@command(
    "MOVE",
    Key(),
    Bytes("db", "integer"),
    flags=WRITE | FAST | MAY_SHRINK | GENERIC,
    summary="Take a key to another database, unless it is taken there",
    complexity="O(log N)",
)
def move(ctx: Context, name: bytes, db: bytes) -> Reply:
    target = integer(db, "ERR value is not an integer or out of range")
    if not 0 <= target < DATABASES:
        raise CommandError(BAD_DATABASE)
    if target == ctx.db:
        raise CommandError("ERR source and destination objects are the same")
    if ctx.head(name) is None or _head_in(ctx, target, name) is not None:
        return 0
    _move(ctx, name, target, name)
    return 1


def _head_in(ctx: Context, db: int, name: bytes) -> Head | None:
    head = ctx.txn.head(db, name)
    return head if head is not None and ctx.alive(head) else None


@command(
    "COPY",
    Key(name="source"),
    Key(name="destination"),
    Options(Value("DB", Database("destination-db")), Flag("REPLACE")),
    flags=WRITE | GENERIC,
    since="6.2.0",
    summary="Store a copy of a value under another key",
    complexity="O(N), N: elements or fields",
)
def copy(ctx: Context, source: bytes, target: bytes, options: dict[str, Any]) -> Reply:
    db: int = options.get("DB", ctx.db)
    if db == ctx.db and source == target:
        raise CommandError("ERR source and destination objects are the same")
    head = ctx.head(source)
    if head is None or ("REPLACE" not in options and _head_in(ctx, db, target) is not None):
        return 0
    batch = ctx.writing()
    if head.type != STRING:
        head = head._replace(collection=copy_collection(ctx, head))
    batch.put_head(db, target, head)
    return 1


def copy_collection(ctx: Context, head: Head) -> int:
    """A copy of all records of a collection; its id."""
    batch, old = ctx.writing(), head.collection
    new = batch.new_collection()
    if head.type == LIST:
        from .sequence import copy_items

        copy_items(ctx, head, new)
    if head.type in (HASH, SET, ZSET):
        for _hash, name, value in batch.scan_fields(old):
            ctx.breathe()
            batch.put_field(new, name, value)
    if head.type == ZSET:
        for score, member in batch.scan_scores(old):
            ctx.breathe()
            batch.put_score(new, score, member)
    return new


# --- expiry -----------------------------------------------------------------------------------------------------------


class ExpiryConditions(Options):
    """NX | XX | GT | LT of EXPIRE and its like, with their own error texts."""

    def __init__(self) -> None:
        super().__init__(
            Flag("NX", "condition"), Flag("XX", "condition"), Flag("GT", "condition"), Flag("LT", "condition")
        )

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        found = set()
        for token in argv[at:]:
            word = token.upper().decode("latin-1")
            if word not in ("NX", "XX", "GT", "LT"):
                raise CommandError(f"ERR Unsupported option {printable(token)}")
            found.add(word)
        if "NX" in found and len(found) > 1:
            raise CommandError("ERR NX and XX, GT or LT options at the same time are not compatible")
        if {"GT", "LT"} <= found:
            raise CommandError("ERR GT and LT options at the same time are not compatible")
        return found, len(argv)


def _allowed(current_ms: int, when_ms: int, conditions: set[str]) -> bool:
    """No expiry counts as infinity: nothing is greater, everything is less."""
    return not (
        ("NX" in conditions and current_ms)
        or ("XX" in conditions and not current_ms)
        or ("GT" in conditions and (not current_ms or when_ms <= current_ms))
        or ("LT" in conditions and current_ms and when_ms >= current_ms)
    )


def _expire_command(name: str, argument: str, *, unit_ms: int, relative: bool, since: str, summary: str) -> Command:
    lower = name.lower()

    def expire(ctx: Context, key: bytes, token: bytes, conditions: set[str]) -> Reply:
        when = integer(token)
        base = ctx.now if relative else 0
        if not INT64_MIN // unit_ms <= when <= INT64_MAX // unit_ms or when * unit_ms > INT64_MAX - base:
            raise CommandError(f"ERR invalid expire time in '{lower}' command")
        when = when * unit_ms + base
        head = ctx.head(key)
        if head is None or not _allowed(head.expiry_ms, when, conditions):
            return 0
        if when <= ctx.now:
            ctx.writing().drop_head(ctx.db, key)
        else:
            ctx.writing().put_head(ctx.db, key, head._replace(expiry_ms=when))
        return 1

    return command(
        name,
        Key(),
        Bytes(argument, "integer" if relative else "unix-time"),
        ExpiryConditions(),
        flags=WRITE | FAST | MAY_SHRINK | GENERIC,
        since=since,
        summary=summary,
        complexity="O(log N)",
    )(expire)


expire = _expire_command(
    "EXPIRE", "seconds", unit_ms=1000, relative=True, since="1.0.0", summary="Let a key expire after some seconds"
)
pexpire = _expire_command(
    "PEXPIRE",
    "milliseconds",
    unit_ms=1,
    relative=True,
    since="2.6.0",
    summary="Let a key expire after some milliseconds",
)
expireat = _expire_command(
    "EXPIREAT",
    "unix-time-seconds",
    unit_ms=1000,
    relative=False,
    since="1.2.0",
    summary="Let a key expire at a moment, in seconds of Unix time",
)
pexpireat = _expire_command(
    "PEXPIREAT",
    "unix-time-milliseconds",
    unit_ms=1,
    relative=False,
    since="2.6.0",
    summary="Let a key expire at a moment, in milliseconds of Unix time",
)


def _left_command(name: str, answer: Callable[[int, int], int], since: str, summary: str) -> Command:
    """TTL and its like: -2 without the key, -1 without an expiry, else answer(expiry, now)."""

    def left(ctx: Context, key: bytes) -> Reply:
        head = ctx.head(key)
        if head is None:
            return -2
        return answer(head.expiry_ms, ctx.now) if head.expiry_ms else -1

    flags = READ | FAST | GENERIC
    return command(name, Key(), flags=flags, since=since, summary=summary, complexity="O(log N)")(left)


ttl = _left_command(
    "TTL", lambda due, now: (due - now + 500) // 1000, "1.0.0", "Seconds until a key expires; -1 never, -2 no such key"
)
pttl = _left_command(
    "PTTL", lambda due, now: due - now, "2.6.0", "Milliseconds until a key expires; -1 never, -2 no such key"
)
expiretime = _left_command(
    "EXPIRETIME", lambda due, _now: (due + 500) // 1000, "7.0.0", "When a key expires, in seconds of Unix time"
)
pexpiretime = _left_command(
    "PEXPIRETIME", lambda due, _now: due, "7.0.0", "When a key expires, in milliseconds of Unix time"
)


@command(
    "PERSIST",
    Key(),
    flags=WRITE | FAST | MAY_SHRINK | GENERIC,
    since="2.2.0",
    summary="Let a key live for ever",
    complexity="O(log N)",
)
def persist(ctx: Context, name: bytes) -> Reply:
    head = ctx.head(name)
    if head is None or not head.expiry_ms:
        return 0
    ctx.writing().put_head(ctx.db, name, head._replace(expiry_ms=0))
    return 1


# --- whole databases --------------------------------------------------------------------------------------------------


@command(
    "DBSIZE",
    flags=READ | FAST | GENERIC,
    group="server",
    summary="How many keys the chosen database has",
    complexity="O(log N)",
)
def dbsize(ctx: Context) -> Reply:
    return ctx.txn.count(ctx.db)


FLUSH_MODE: Final = Optional(OneOf("ASYNC", "SYNC", name="mode"))


@command(
    "FLUSHDB",
    FLUSH_MODE,
    flags=WRITE | MAY_SHRINK | GENERIC | DANGEROUS,
    group="server",
    summary="Empty the chosen database",
    complexity="O(1) at once; the records are reclaimed in bounded steps.",
)
def flushdb(ctx: Context, _mode: str | None) -> Reply:
    ctx.writing().flush_db(ctx.db)
    return OK


@command(
    "FLUSHALL",
    FLUSH_MODE,
    flags=WRITE | MAY_SHRINK | GENERIC | DANGEROUS,
    group="server",
    summary="Empty all databases",
    complexity="O(1) at once; the records are reclaimed in bounded steps.",
)
def flushall(ctx: Context, _mode: str | None) -> Reply:
    batch = ctx.writing()
    for db in range(DATABASES):
        batch.flush_db(db)
    return OK


@command(
    "SWAPDB",
    Bytes("index1", "integer"),
    Bytes("index2", "integer"),
    flags=WRITE | FAST | MAY_SHRINK | GENERIC | DANGEROUS,
    since="4.0.0",
    group="server",
    summary="Exchange two databases",
    complexity="O(log N)",
)
def swapdb(ctx: Context, first: bytes, second: bytes) -> Reply:
    one = integer(first, "ERR invalid first DB index")
    other = integer(second, "ERR invalid second DB index")
    if not (0 <= one < DATABASES and 0 <= other < DATABASES):
        raise CommandError(BAD_DATABASE)
    if one != other:
        ctx.writing().swap_db(one, other)
    return OK


# --- introspection of one key -----------------------------------------------------------------------------------------


def encoding_of(ctx: Context, head: Head) -> str:
    """What Redis would call the encoding of a fresh value like this one. Told from the value, not from its history."""
    if head.type == STRING:
        return _string_encoding(head.value)
    if head.type == LIST:
        return "quicklist"
    return _packed_encoding(ctx, head)


def _string_encoding(value: bytes) -> str:
    try:
        integer(value)
    except CommandError:
        return "embstr" if len(value) <= EMBEDDED_BYTES_MAX else "raw"
    return "int"


def _packed_encoding(ctx: Context, head: Head) -> str:
    small, large = ("listpack", "skiplist") if head.type == ZSET else ("listpack", "hashtable")
    if head.count > PACKED_ENTRIES_MAX:
        return large
    for _hash, name, value in ctx.txn.scan_fields(head.collection):
        if len(name) > PACKED_BYTES_MAX or (head.type == HASH and len(value) > PACKED_BYTES_MAX):
            return large
    return small


OBJECT_FLAGS: Final = READ | GENERIC


@command(
    "OBJECT ENCODING",
    Key(),
    flags=OBJECT_FLAGS,
    since="2.2.3",
    summary="What Redis would call the encoding of such a value",
)
def object_encoding(ctx: Context, name: bytes) -> Reply:
    head = ctx.head(name)
    return None if head is None else encoding_of(ctx, head).encode()


@command("OBJECT REFCOUNT", Key(), flags=OBJECT_FLAGS, since="2.2.3", summary="Always 1")
def object_refcount(ctx: Context, name: bytes) -> Reply:
    return None if ctx.head(name) is None else 1


@command("OBJECT IDLETIME", Key(), flags=OBJECT_FLAGS, since="2.2.3", summary="Always 0: reads leave no trace")
def object_idletime(ctx: Context, name: bytes) -> Reply:
    """Always 0: reads leave no trace in a replicated store."""
    return None if ctx.head(name) is None else 0


@command("OBJECT FREQ", Key(), flags=OBJECT_FLAGS, since="4.0.0", summary="Refused: nothing counts accesses")
def object_freq(ctx: Context, name: bytes) -> Reply:
    if ctx.head(name) is None:
        return None
    raise CommandError(
        "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching "
        "between policies at runtime LRU and LFU data will take some time to adjust."
    )


HEAD_OVERHEAD_BYTES: Final = 56  # of a head record: page share, checksum, fixed fields
RECORD_OVERHEAD_BYTES: Final = 40


def _samples(ctx: Context, argv: list[bytes]) -> int:
    head = ctx.head(argv[2])
    if head is None:
        return 1
    return min(head.count, (integer(argv[4]) if len(argv) > 4 else 0) or head.count)


@command(
    "MEMORY USAGE",
    Key(),
    Options(Value("SAMPLES", Int("count"))),
    flags=READ | GENERIC,
    since="4.0.0",
    group="server",
    summary="Estimate the space of a key in the store",
    complexity="O(N), N: samples",
    size=_samples,
)
def memory_usage(ctx: Context, name: bytes, options: dict[str, Any]) -> Reply:
    """Bytes of its records, from the mean of SAMPLES (default 5; 0: all) of them."""
    samples: int = options.get("SAMPLES", 5)
    if samples < 0:
        raise CommandError(SYNTAX)
    head = ctx.head(name)
    if head is None:
        return None
    total = HEAD_OVERHEAD_BYTES + len(name) + len(head.value)
    return total if head.type == STRING else total + _collection_bytes(ctx, head, samples or head.count)


def _collection_bytes(ctx: Context, head: Head, samples: int) -> int:
    if head.type == LIST:
        sizes = (len(value) for _place, value in ctx.txn.scan_items(head.collection, head.first, head.last))
    else:
        sizes = (len(name) + len(value) for _h, name, value in ctx.txn.scan_fields(head.collection))
    total = seen = 0
    for size in sizes:
        ctx.breathe()
        total += size + RECORD_OVERHEAD_BYTES
        seen += 1
        if seen >= samples:
            break
    return total * head.count // max(seen, 1)


@command(
    "DEBUG OBJECT", Key(), flags=READ | GENERIC | DANGEROUS, group="server", summary="Show the head record of a key"
)
def debug_object(ctx: Context, name: bytes) -> Reply:
    head = ctx.head(name)
    if head is None:
        raise CommandError(NO_SUCH_KEY)
    size = len(head.value) if head.type == STRING else head.count
    text = f"+Value at:0x{head.collection:x} refcount:1 encoding:{encoding_of(ctx, head)} serializedlength:{size}"
    return Encoded(f"{text} lru:0 lru_seconds_idle:0 version:{head.version}\r\n".encode())


COMMANDS: list[Command] = [
    del_,
    unlink,
    exists,
    touch,
    type_,
    keys,
    scan,
    randomkey,
    rename,
    renamenx,
    move,
    copy,
    expire,
    pexpire,
    expireat,
    pexpireat,
    ttl,
    pttl,
    expiretime,
    pexpiretime,
    persist,
    dbsize,
    flushdb,
    flushall,
    swapdb,
    object_encoding,
    object_refcount,
    object_idletime,
    object_freq,
    memory_usage,
    debug_object,
]
