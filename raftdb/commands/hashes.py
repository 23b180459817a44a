"""Hashes. One record per field, in the order of the 48-bit hash of its name; the head knows how many there are.

A hash without fields does not exist. Each change writes the head too, also when the number of fields stays: the head's
version is what WATCH compares.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import Final

from ..errors import Bug, CommandError
from ..storage.keys import HASH, SHORT_NAME_BYTES_MAX
from ..storage.keys import field as field_key
from ..storage.kv import FIELDS, Head
from ..types import OK, Pairs, Reply
from .args import (
    INT64_MAX,
    INT64_MIN,
    NOT_A_FLOAT,
    SYNTAX,
    Bytes,
    Int,
    Key,
    Many,
    ManyPairs,
    integer,
)
from .context import REPLY_ITEM_BYTES, Context
from .keyspace import HASH_SPAN, SCAN_COUNT, Cursor, draw, scan_count, scan_match, scan_options
from .strings import OVERFLOW, add_decimals, decimal_of
from .table import FAST, MAY_SHRINK, READ, WRITE, Command, command

RANDOM_FIELDS_MAX: Final = 1_048_576  # of one HRANDFIELD with a negative count, which may ask for any number
SCANNED_FOR_CHOICE_MAX: Final = 1_000  # up to so many fields HRANDFIELD reads them all and chooses evenly
OUT_OF_RANGE: Final = "ERR value is out of range"


class Hash:
    """A key that holds a hash, or nothing."""

    __slots__ = ("ctx", "name")

    def __init__(self, ctx: Context, name: bytes) -> None:
        self.ctx = ctx
        self.name = name

    def head(self) -> Head | None:
        """Raises CommandError (WRONGTYPE)."""
        return self.ctx.head_of(self.name, HASH)

    def __len__(self) -> int:
        head = self.head()
        return 0 if head is None else head.count

    def get(self, field: bytes) -> bytes | None:
        head = self.head()
        return None if head is None else self.ctx.txn.field(head.collection, field)

    def get_many(self, fields: list[bytes]) -> Iterator[bytes | None]:
        """The values one by one, so that who collects them may stop."""
        head, field, breathe = self.head(), self.ctx.txn.field, self.ctx.breathe
        for name in fields:
            breathe()
            yield None if head is None else field(head.collection, name)

    def items(self, from_hash: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(48-bit hash, field, value) in hash order."""
        head = self.head()
        if head is None:
            return
        breathe = self.ctx.breathe
        for row in self.ctx.txn.scan_fields(head.collection, from_hash):
            breathe()
            yield row

    def set(self, field: bytes, value: bytes) -> bool:
        """Store one field; was it new?"""
        return self.set_many([(field, value)]) == 1

    def set_many(self, pairs: list[tuple[bytes, bytes]]) -> int:
        """Store fields; how many of them are new."""
        ctx = self.ctx
        batch, head = ctx.writing(), self.head()
        if head is None:
            head = Head(HASH, 0, 0, b"", batch.new_collection())
        collection, added = head.collection, 0
        get, put, breathe = batch.get, batch.put, ctx.breathe
        for name, value in pairs:
            breathe()
            if len(name) <= SHORT_NAME_BYTES_MAX:
                place = field_key(collection, name)  # computed once for both
                added += get(FIELDS, place) is None
                put(FIELDS, place, value)
            else:
                added += batch.field(collection, name) is None
                batch.put_field(collection, name, value)
        batch.put_head(ctx.db, self.name, head._replace(count=head.count + added) if added else head)
        return added

    def delete(self, *fields: bytes) -> int:
        """Remove fields; how many there were. The key goes with its last field."""
        ctx, head, removed = self.ctx, self.head(), 0
        if head is None:
            return 0
        batch, collection = ctx.writing(), head.collection
        for name in fields:
            ctx.breathe()
            if batch.field(collection, name) is not None:
                batch.delete_field(collection, name)
                removed += 1
        if removed == head.count:
            batch.drop_head(ctx.db, self.name)
        elif removed:
            batch.put_head(ctx.db, self.name, head._replace(count=head.count - removed))
        return removed


def _hash_size(ctx: Context, argv: list[bytes]) -> int:
    head = ctx.head(argv[1])
    return 1 if head is None else head.count


def _set(_ctx: Context, key: Hash, pairs: list[tuple[bytes, bytes]]) -> Reply:
    return key.set_many(pairs)


hset = command(
    "HSET",
    Key(Hash),
    ManyPairs(Bytes("field"), Bytes("value"), "hset"),
    flags=WRITE | FAST,
    since="2.0.0",
    group="hash",
    summary="Store fields",
    complexity="O(log N) per field",
)(_set)


@command(
    "HMSET",
    Key(Hash),
    ManyPairs(Bytes("field"), Bytes("value"), "hmset"),
    flags=WRITE | FAST,
    since="2.0.0",
    group="hash",
    summary="Store fields (the old name of HSET)",
    complexity="O(log N) per field",
)
def hmset(ctx: Context, key: Hash, pairs: list[tuple[bytes, bytes]]) -> Reply:
    key.set_many(pairs)
    return OK


@command(
    "HSETNX",
    Key(Hash),
    Bytes("field"),
    Bytes("value"),
    flags=WRITE | FAST,
    since="2.0.0",
    group="hash",
    summary="Store a field that is not there yet",
    complexity="O(log N)",
)
def hsetnx(ctx: Context, key: Hash, field: bytes, value: bytes) -> Reply:
    if key.get(field) is not None:
        return 0
    return key.set_many([(field, value)])


@command(
    "HGET",
    Key(Hash),
    Bytes("field"),
    flags=READ | FAST,
    since="2.0.0",
    group="hash",
    summary="The value of a field",
    complexity="O(log N)",
)
def hget(ctx: Context, key: Hash, field: bytes) -> Reply:
    return key.get(field)


def _field_count(_ctx: Context, argv: list[bytes]) -> int:
    return len(argv) - 2


@command(
    "HMGET",
    Key(Hash),
    Many(Bytes("field")),
    flags=READ | FAST,
    since="2.0.0",
    group="hash",
    summary="The values of several fields; null for those that are missing",
    complexity="O(log N) per field",
    size=_field_count,
)
def hmget(ctx: Context, key: Hash, fields: list[bytes]) -> Reply:
    return ctx.kept(key.get_many(fields))


@command(
    "HDEL",
    Key(Hash),
    Many(Bytes("field")),
    flags=WRITE | FAST | MAY_SHRINK,
    since="2.0.0",
    group="hash",
    summary="Remove fields; the key goes with the last one",
    complexity="O(log N) per field",
)
def hdel(ctx: Context, key: Hash, fields: list[bytes]) -> Reply:
    return key.delete(*fields)


@command(
    "HEXISTS",
    Key(Hash),
    Bytes("field"),
    flags=READ | FAST,
    since="2.0.0",
    group="hash",
    summary="Is there such a field?",
    complexity="O(log N)",
)
def hexists(ctx: Context, key: Hash, field: bytes) -> Reply:
    return int(key.get(field) is not None)


@command(
    "HLEN",
    Key(Hash),
    flags=READ | FAST,
    since="2.0.0",
    group="hash",
    summary="How many fields there are",
    complexity="O(log N)",
)
def hlen(ctx: Context, key: Hash) -> Reply:
    return len(key)


@command(
    "HSTRLEN",
    Key(Hash),
    Bytes("field"),
    flags=READ | FAST,
    since="3.2.0",
    group="hash",
    summary="Length of a field's value in bytes",
    complexity="O(log N)",
)
def hstrlen(ctx: Context, key: Hash, field: bytes) -> Reply:
    return len(key.get(field) or b"")


@command(
    "HGETALL",
    Key(Hash),
    flags=READ,
    since="2.0.0",
    group="hash",
    summary="All fields with their values",
    complexity="O(N), N: fields",
    size=_hash_size,
)
def hgetall(ctx: Context, key: Hash) -> Reply:
    return dict(_pairs(key))


def _pairs(key: Hash) -> list[tuple[bytes, bytes]]:
    """All fields with their values, as a reply. Raises CommandError when they are too much for one."""
    words = key.ctx.kept(chain.from_iterable((name, value) for _, name, value in key.items()))
    return list(zip(words[::2], words[1::2], strict=True))


@command(
    "HKEYS",
    Key(Hash),
    flags=READ,
    since="2.0.0",
    group="hash",
    summary="All field names",
    complexity="O(N), N: fields",
    size=_hash_size,
)
def hkeys(ctx: Context, key: Hash) -> Reply:
    return ctx.kept(name for _, name, _value in key.items())


@command(
    "HVALS",
    Key(Hash),
    flags=READ,
    since="2.0.0",
    group="hash",
    summary="All values",
    complexity="O(N), N: fields",
    size=_hash_size,
)
def hvals(ctx: Context, key: Hash) -> Reply:
    return ctx.kept(value for _, _name, value in key.items())


@command(
    "HINCRBY",
    Key(Hash),
    Bytes("field"),
    Int("increment"),
    flags=WRITE | FAST,
    since="2.0.0",
    group="hash",
    summary="Add to a field's whole number",
    complexity="O(log N)",
)
def hincrby(ctx: Context, key: Hash, field: bytes, increment: int) -> Reply:
    old = key.get(field)
    total = increment if old is None else integer(old, "ERR hash value is not an integer") + increment
    if not INT64_MIN <= total <= INT64_MAX:
        raise CommandError(OVERFLOW)
    key.set(field, b"%d" % total)
    return total


@command(
    "HINCRBYFLOAT",
    Key(Hash),
    Bytes("field"),
    Bytes("increment", "double"),
    flags=WRITE | FAST,
    since="2.6.0",
    group="hash",
    summary="Add to a field's decimal number",
    complexity="O(log N)",
)
def hincrbyfloat(ctx: Context, key: Hash, field: bytes, increment: bytes) -> Reply:
    step = decimal_of(increment, NOT_A_FLOAT)
    if not step.is_finite():
        raise CommandError("ERR value is NaN or Infinity")
    old = key.get(field)
    total = add_decimals(decimal_of(old if old is not None else b"0", "ERR hash value is not a float"), step)
    key.set(field, total)
    return total


# --- scanning and chance ----------------------------------------------------------------------------------------------


def _scan_size(ctx: Context, argv: list[bytes]) -> int:
    words = [word.upper() for word in argv]
    wanted = integer(argv[words.index(b"COUNT") + 1]) if b"COUNT" in words else SCAN_COUNT
    return min(wanted, _hash_size(ctx, argv))


HSCAN_OPTIONS: Final = scan_options()


@command(
    "HSCAN",
    Key(Hash),
    Cursor("cursor"),
    Many(Bytes("option"), least=0),
    flags=READ,
    since="2.8.0",
    group="hash",
    summary="Walk over a hash in steps",
    complexity="O(COUNT) per call",
    size=_scan_size,
)
def hscan(ctx: Context, key: Hash, start: int, words: list[bytes]) -> Reply:
    """HSCAN key cursor [MATCH pattern] [COUNT count]. The options of an absent key are not looked at, as in Redis."""
    if key.head() is None:
        return [b"0", []]
    options, _ = HSCAN_OPTIONS.parse(ctx, words, 0)
    count, match = scan_count(options), scan_match(options)
    found: list[bytes] = []
    last = -1
    for seen, (place, name, value) in enumerate(key.items(start) if start < HASH_SPAN else ()):
        if seen >= count and place != last:
            return [b"%d" % place, found]
        last = place
        if match is None or match(name):
            found += ctx.kept((name, value))
    return [b"0", found]


class Chooser:
    """Draws fields of a hash that is not empty. Values are kept, and counted, only when they are answered."""

    def __init__(self, key: Hash, with_values: bool) -> None:
        self.key = key
        self.with_values = with_values
        self.random = key.ctx.random
        self.size = len(key)

    def different(self, count: int) -> list[tuple[bytes, bytes]]:
        """`count` different fields, in random order; fewer than there are."""
        if self.size <= SCANNED_FOR_CHOICE_MAX or count * 3 > self.size:
            return self._at(self.random.sample(self.size, count))
        chosen: dict[bytes, bytes] = {}
        while len(chosen) < count:
            name, value = self._seek()
            chosen[name] = value
        return list(chosen.items())

    def again_and_again(self, count: int) -> list[tuple[bytes, bytes]]:
        """`count` fields, each drawn from all."""
        if self.size <= SCANNED_FOR_CHOICE_MAX or count > self.size:
            return self._at([self.random.below(self.size) for _ in range(count)])
        return [self._seek() for _ in range(count)]

    def _at(self, places: list[int]) -> list[tuple[bytes, bytes]]:
        """The fields of these places in hash order, in one walk."""
        wanted = Counter(places)
        rows: dict[int, tuple[bytes, bytes]] = {}
        for at, (_, name, value) in enumerate(self.key.items()):
            if at in wanted:
                rows[at] = self._kept(name, value, wanted[at])
        if len(rows) < len(wanted):
            raise Bug(f"hash {self.key.name!r} has less than {self.size} fields")
        return [rows[at] for at in places]

    def _seek(self) -> tuple[bytes, bytes]:
        row = draw(self.random, self.key.items, self.size)
        if row is None:
            raise Bug(f"hash {self.key.name!r} has no fields")
        return self._kept(row[1], row[2], 1)

    def _kept(self, name: bytes, value: bytes, times: int) -> tuple[bytes, bytes]:
        """The row, counted as often as it is going to be answered."""
        if not self.with_values:
            value = b""
        self.key.ctx.keep(times * (2 * REPLY_ITEM_BYTES + len(name) + len(value)))
        return name, value


def _random_count(words: list[bytes]) -> tuple[int, bool]:
    with_values = len(words) == 2
    count = integer(words[0])
    if count == INT64_MIN:
        raise CommandError(OUT_OF_RANGE)
    if len(words) > 2 or (with_values and words[1].upper() != b"WITHVALUES"):
        raise CommandError(SYNTAX)
    if count < -RANDOM_FIELDS_MAX or (with_values and count > INT64_MAX // 2):
        raise CommandError(OUT_OF_RANGE)
    return count, with_values


def _random_size(ctx: Context, argv: list[bytes]) -> int:
    size = _hash_size(ctx, argv)
    return min(size, SCANNED_FOR_CHOICE_MAX) if len(argv) < 3 else max(size, abs(integer(argv[2])))


@command(
    "HRANDFIELD",
    Key(Hash),
    Many(Bytes("option"), least=0),
    flags=READ,
    since="6.2.0",
    group="hash",
    summary="Fields drawn at random",
    complexity="O(N), N: fields drawn",
    size=_random_size,
)
def hrandfield(ctx: Context, key: Hash, words: list[bytes]) -> Reply:
    """HRANDFIELD key [count [WITHVALUES]]."""
    if not words:
        return Chooser(key, False).again_and_again(1)[0][0] if len(key) else None
    count, with_values = _random_count(words)
    if not len(key) or not count:
        return []
    if count < 0:
        rows = Chooser(key, with_values).again_and_again(-count)
    elif count < len(key):
        rows = Chooser(key, with_values).different(count)
    elif with_values:
        rows = _pairs(key)
    else:
        return hkeys.handler(ctx, key)
    return Pairs(rows) if with_values else [name for name, _ in rows]


COMMANDS: list[Command] = [
    hset,
    hmset,
    hsetnx,
    hget,
    hmget,
    hdel,
    hexists,
    hlen,
    hstrlen,
    hgetall,
    hkeys,
    hvals,
    hincrby,
    hincrbyfloat,
    hscan,
    hrandfield,
]
