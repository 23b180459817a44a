"""Strings. The value lives in the head record: one read, one write per command.

INCRBYFLOAT computes in decimal, exactly, and rounds to 17 digits behind the point. Redis computes in the C type
`long double`, whose width depends on the machine; see docs/differences.md.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from typing import Any, Final

from ..errors import CommandError
from ..storage.keys import STRING
from ..types import OK, Reply
from .args import (
    INT64_MAX,
    INT64_MIN,
    NO_OPTIONS,
    NOT_A_FLOAT,
    Bytes,
    Flag,
    Int,
    Key,
    Many,
    ManyPairs,
    Options,
    Value,
    integer,
)
from .context import Context
from .table import FAST, MAY_SHRINK, READ, WRITE, Command, command

STRING_BYTES_MAX: Final = 64 * 1024 * 1024
TOO_LONG: Final = "ERR string exceeds maximum allowed size (proto-max-bulk-len)"
OVERFLOW: Final = "ERR increment or decrement would overflow"
NOT_FINITE: Final = "ERR increment would produce NaN or Infinity"
FLOAT_TEXT_BYTES_MAX: Final = 5 * 1024
EXPONENT_MAX: Final = 4932  # of the widest long double: beyond it Redis has infinity

#: Decimals with room for every sum of two numbers within the exponent range; nothing but quantize() rounds.
DECIMALS: Final = decimal.Context(prec=10_500, rounding=decimal.ROUND_HALF_EVEN, Emax=99_999, Emin=-99_999)
SEVENTEEN_DIGITS: Final = decimal.Decimal(1).scaleb(-17)


class String:
    """A key that holds a string, or nothing."""

    __slots__ = ("ctx", "name")

    def __init__(self, ctx: Context, name: bytes) -> None:
        self.ctx = ctx
        self.name = name

    def get(self) -> bytes | None:
        """The value; None when the key is absent. Raises CommandError (WRONGTYPE)."""
        head = self.ctx.head_of(self.name, STRING)
        return None if head is None else head.value

    def set(self, value: bytes, expiry_ms: int = 0) -> None:
        """Store the value, whatever was there; expiry_ms is absolute, 0 for none."""
        ctx = self.ctx
        ctx.writing().put_string(ctx.db, self.name, value, expiry_ms)

    def replace(self, value: bytes) -> None:
        """Store the value and keep the expiry."""
        head = self.ctx.head(self.name)
        self.set(value, 0 if head is None else head.expiry_ms)

    def exists(self) -> bool:
        """Does the key exist, of any type?"""
        return self.ctx.head(self.name) is not None

    def delete(self) -> None:
        self.ctx.writing().drop_head(self.ctx.db, self.name)


def expiry_of(ctx: Context, token: bytes, *, unit_ms: int, relative: bool, name: str) -> int:
    """The absolute expiry that EX, PX, EXAT, PXAT mean. Raises CommandError unless it lies after 1970 and fits."""
    when = integer(token)
    if when <= 0 or when > INT64_MAX // unit_ms:
        raise CommandError(f"ERR invalid expire time in '{name}' command")
    when *= unit_ms
    if relative:
        if when > INT64_MAX - ctx.now:
            raise CommandError(f"ERR invalid expire time in '{name}' command")
        when += ctx.now
    return when


#: option -> (milliseconds per unit, relative)
EXPIRY_OPTIONS: Final = {"EX": (1000, True), "PX": (1, True), "EXAT": (1000, False), "PXAT": (1, False)}


def expiry_option(ctx: Context, options: dict[str, Any], name: str) -> int | None:
    """The absolute expiry that the options say; None when they say none."""
    for token, (unit_ms, relative) in EXPIRY_OPTIONS.items():
        if token in options:
            return expiry_of(ctx, options[token], unit_ms=unit_ms, relative=relative, name=name)
    return None


def check_length(size_bytes: int) -> None:
    if size_bytes > STRING_BYTES_MAX:
        raise CommandError(TOO_LONG)


@command(
    "GET",
    Key(String),
    flags=READ | FAST,
    group="string",
    summary="Read a string",
    complexity="O(log N)",
)
def get(ctx: Context, key: String) -> Reply:
    return key.get()


def set_many(ctx: Context, argvs: list[list[bytes]]) -> list[Reply]:
    """SET key value, many at once: it can neither fail nor does it look at what was there."""
    ctx.writing().put_strings(ctx.db, [argv[1] for argv in argvs], [argv[2] for argv in argvs])
    return [OK] * len(argvs)


@command(
    "SET",
    Key(String),
    Bytes("value"),
    Options(
        Flag("NX", "condition"),
        Flag("XX", "condition"),
        Flag("GET"),
        Value("EX", Bytes("seconds", "integer"), "expiration"),
        Value("PX", Bytes("milliseconds", "integer"), "expiration"),
        Value("EXAT", Bytes("unix-time-seconds", "unix-time"), "expiration"),
        Value("PXAT", Bytes("unix-time-milliseconds", "unix-time"), "expiration"),
        Flag("KEEPTTL", "expiration"),
    ),
    flags=WRITE,
    group="string",
    summary="Store a string, whatever was there",
    complexity="O(log N)",
    many=set_many,
)
def set_(ctx: Context, key: String, value: bytes, options: dict[str, Any]) -> Reply:
    if options is NO_OPTIONS:
        key.set(value)
        return OK
    expiry_ms = expiry_option(ctx, options, "set") or 0
    reply: Reply = key.get() if "GET" in options else OK
    if "NX" in options or "XX" in options or "KEEPTTL" in options:
        head = ctx.head(key.name)
        if ("NX" in options and head is not None) or ("XX" in options and head is None):
            return reply if "GET" in options else None
        if "KEEPTTL" in options and head is not None:
            expiry_ms = head.expiry_ms
    key.set(value, expiry_ms)
    return reply


@command(
    "SETNX",
    Key(String),
    Bytes("value"),
    flags=WRITE | FAST,
    group="string",
    summary="Store a string, if the key does not exist",
    complexity="O(log N)",
)
def setnx(ctx: Context, key: String, value: bytes) -> Reply:
    if key.exists():
        return 0
    key.set(value)
    return 1


@command(
    "SETEX",
    Key(String),
    Bytes("seconds", "integer"),
    Bytes("value"),
    flags=WRITE,
    since="2.0.0",
    group="string",
    summary="Store a string for some seconds",
    complexity="O(log N)",
)
def setex(ctx: Context, key: String, seconds: bytes, value: bytes) -> Reply:
    key.set(value, expiry_of(ctx, seconds, unit_ms=1000, relative=True, name="setex"))
    return OK


@command(
    "PSETEX",
    Key(String),
    Bytes("milliseconds", "integer"),
    Bytes("value"),
    flags=WRITE,
    since="2.6.0",
    group="string",
    summary="Store a string for some milliseconds",
    complexity="O(log N)",
)
def psetex(ctx: Context, key: String, milliseconds: bytes, value: bytes) -> Reply:
    key.set(value, expiry_of(ctx, milliseconds, unit_ms=1, relative=True, name="psetex"))
    return OK


@command(
    "GETSET",
    Key(String),
    Bytes("value"),
    flags=WRITE | FAST,
    group="string",
    summary="Store a string; the reply is what was there",
    complexity="O(log N)",
)
def getset(ctx: Context, key: String, value: bytes) -> Reply:
    old = key.get()
    key.set(value)
    return old


@command(
    "GETDEL",
    Key(String),
    flags=WRITE | FAST | MAY_SHRINK,
    since="6.2.0",
    group="string",
    summary="Read a string and remove its key",
    complexity="O(log N)",
)
def getdel(ctx: Context, key: String) -> Reply:
    old = key.get()
    if old is not None:
        key.delete()
    return old


@command(
    "GETEX",
    Key(String),
    Options(
        Value("EX", Bytes("seconds", "integer"), "expiration"),
        Value("PX", Bytes("milliseconds", "integer"), "expiration"),
        Value("EXAT", Bytes("unix-time-seconds", "unix-time"), "expiration"),
        Value("PXAT", Bytes("unix-time-milliseconds", "unix-time"), "expiration"),
        Flag("PERSIST", "expiration"),
    ),
    flags=WRITE | FAST | MAY_SHRINK,
    since="6.2.0",
    group="string",
    summary="Read a string and change its expiry",
    complexity="O(log N)",
)
def getex(ctx: Context, key: String, options: dict[str, Any]) -> Reply:
    value = key.get()
    if value is None:
        return None
    expiry_ms = expiry_option(ctx, options, "getex")
    if expiry_ms is not None and expiry_ms <= ctx.now:
        key.delete()
    elif expiry_ms is not None:
        ctx.writing().room_for(len(value))
        key.set(value, expiry_ms)
    elif "PERSIST" in options:
        head = ctx.head(key.name)
        if head is not None and head.expiry_ms:
            ctx.writing().room_for(len(value))
            key.set(value)
    return value


def _many(_ctx: Context, argv: list[bytes]) -> int:
    return len(argv) - 1


@command(
    "MGET",
    Many(Key()),
    flags=READ | FAST,
    group="string",
    summary="Read several strings; null for what is no string",
    complexity="O(log N) per key",
    size=_many,
)
def mget(ctx: Context, names: list[bytes]) -> Reply:
    return ctx.kept(_strings(ctx, names))


def _strings(ctx: Context, names: list[bytes]) -> Iterator[bytes | None]:
    """The values of these keys, one by one, so that who collects them may stop."""
    head_of, db, alive, breathe = ctx.txn.head, ctx.db, ctx.alive, ctx.breathe
    for name in names:
        breathe()
        head = head_of(db, name)
        yield head.value if head is not None and head.type == STRING and alive(head) else None


@command(
    "MSET",
    ManyPairs(Key(), Bytes("value"), "mset"),
    flags=WRITE,
    since="1.0.1",
    group="string",
    summary="Store several strings at once",
    complexity="O(log N) per key",
)
def mset(ctx: Context, pairs: list[tuple[bytes, bytes]]) -> Reply:
    put, db = ctx.writing().put_string, ctx.db
    for name, value in pairs:
        put(db, name, value)
        ctx.breathe()
    return OK


@command(
    "MSETNX",
    ManyPairs(Key(), Bytes("value"), "msetnx"),
    flags=WRITE,
    since="1.0.1",
    group="string",
    summary="Store several strings, if none of the keys exists",
    complexity="O(log N) per key",
)
def msetnx(ctx: Context, pairs: list[tuple[bytes, bytes]]) -> Reply:
    if any(ctx.head(name) is not None for name, _ in pairs):
        return 0
    mset.handler(ctx, pairs)
    return 1


@command(
    "APPEND",
    Key(String),
    Bytes("value"),
    flags=WRITE | FAST,
    since="2.0.0",
    group="string",
    summary="Lengthen a string by a value",
    complexity="O(N), N: length of the result",
)
def append(ctx: Context, key: String, value: bytes) -> Reply:
    head = ctx.head_of(key.name, STRING)
    if head is None:
        key.set(value)
        return len(value)
    check_length(len(head.value) + len(value))
    ctx.writing().room_for(len(head.value) + len(value))
    key.set(head.value + value, head.expiry_ms)
    return len(head.value) + len(value)


@command(
    "STRLEN",
    Key(String),
    flags=READ | FAST,
    since="2.2.0",
    group="string",
    summary="Length of a string in bytes",
    complexity="O(log N)",
)
def strlen(ctx: Context, key: String) -> Reply:
    return len(key.get() or b"")


def _get_range(ctx: Context, key: String, start: int, end: int) -> Reply:
    value = key.get() or b""
    size = len(value)
    if start < 0 and end < 0 and start > end:
        return b""
    start = max(start + size, 0) if start < 0 else start
    end = max(end + size, 0) if end < 0 else end
    return value[start : end + 1]


getrange = command(
    "GETRANGE",
    Key(String),
    Int("start"),
    Int("end"),
    flags=READ,
    since="2.4.0",
    group="string",
    summary="Part of a string, from one byte to another, both included",
    complexity="O(N), N: length of the reply",
)(_get_range)

substr = command(
    "SUBSTR",
    Key(String),
    Int("start"),
    Int("end"),
    flags=READ,
    group="string",
    summary="Part of a string, from one byte to another, both included",
    complexity="O(N), N: length of the reply",
)(_get_range)


@command(
    "SETRANGE",
    Key(String),
    Int("offset"),
    Bytes("value"),
    flags=WRITE,
    since="2.2.0",
    group="string",
    summary="Overwrite bytes of a string from an offset on, padding with zero bytes",
    complexity="O(N), N: length of the result",
)
def setrange(ctx: Context, key: String, offset: int, value: bytes) -> Reply:
    if offset < 0:
        raise CommandError("ERR offset is out of range")
    head = ctx.head_of(key.name, STRING)
    old = b"" if head is None else head.value
    if not value:
        return len(old)
    check_length(offset + len(value))
    ctx.writing().room_for(max(offset + len(value), len(old)))
    new = old[:offset].ljust(offset, b"\0") + value + old[offset + len(value) :]
    key.set(new, 0 if head is None else head.expiry_ms)
    return len(new)


def _add(ctx: Context, key: String, increment: int) -> int:
    head = ctx.head_of(key.name, STRING)
    total = increment if head is None else integer(head.value) + increment
    if not INT64_MIN <= total <= INT64_MAX:
        raise CommandError(OVERFLOW)
    key.set(b"%d" % total, 0 if head is None else head.expiry_ms)
    return total


@command(
    "INCR",
    Key(String),
    flags=WRITE | FAST,
    group="string",
    summary="Add one to a whole number",
    complexity="O(log N)",
)
def incr(ctx: Context, key: String) -> Reply:
    return _add(ctx, key, 1)


@command(
    "DECR",
    Key(String),
    flags=WRITE | FAST,
    group="string",
    summary="Subtract one from a whole number",
    complexity="O(log N)",
)
def decr(ctx: Context, key: String) -> Reply:
    return _add(ctx, key, -1)


@command(
    "INCRBY",
    Key(String),
    Int("increment"),
    flags=WRITE | FAST,
    group="string",
    summary="Add to a whole number",
    complexity="O(log N)",
)
def incrby(ctx: Context, key: String, increment: int) -> Reply:
    return _add(ctx, key, increment)


@command(
    "DECRBY",
    Key(String),
    Int("decrement"),
    flags=WRITE | FAST,
    group="string",
    summary="Subtract from a whole number",
    complexity="O(log N)",
)
def decrby(ctx: Context, key: String, decrement: int) -> Reply:
    if decrement == INT64_MIN:
        raise CommandError("ERR decrement would overflow")
    return _add(ctx, key, -decrement)


def decimal_of(token: bytes, error: str = NOT_A_FLOAT) -> decimal.Decimal:
    """A decimal number, or +-infinity. Raises CommandError for anything else and for exponents out of range."""
    text = token.decode("ascii", "replace")
    if not text or len(text) >= FLOAT_TEXT_BYTES_MAX or "_" in text or text != text.strip():
        raise CommandError(error)
    try:
        number = decimal.Decimal(text)
    except decimal.InvalidOperation:
        raise CommandError(error) from None
    if number.is_nan() or (number and number.is_finite() and abs(number.adjusted()) > EXPONENT_MAX):
        raise CommandError(error)
    return number


def add_decimals(one: decimal.Decimal, other: decimal.Decimal) -> bytes:
    """The text of the sum. Raises CommandError when it is not finite."""
    if not (one.is_finite() and other.is_finite()):
        raise CommandError(NOT_FINITE)
    total = DECIMALS.add(one, other)
    if total and total.adjusted() >= EXPONENT_MAX:
        raise CommandError(NOT_FINITE)
    text = format(DECIMALS.quantize(total, SEVENTEEN_DIGITS), "f")
    text = text.rstrip("0").rstrip(".")
    return b"0" if text in ("-0", "") else text.encode()


@command(
    "INCRBYFLOAT",
    Key(String),
    Bytes("increment", "double"),
    flags=WRITE | FAST,
    since="2.6.0",
    group="string",
    summary="Add to a decimal number",
    complexity="O(log N)",
)
def incrbyfloat(ctx: Context, key: String, increment: bytes) -> Reply:
    head = ctx.head_of(key.name, STRING)
    old = decimal.Decimal(0) if head is None else decimal_of(head.value)
    total = add_decimals(old, decimal_of(increment))
    key.set(total, 0 if head is None else head.expiry_ms)
    return total


COMMANDS: list[Command] = [
    get,
    set_,
    setnx,
    setex,
    psetex,
    getset,
    getdel,
    getex,
    mget,
    mset,
    msetnx,
    append,
    strlen,
    getrange,
    substr,
    setrange,
    incr,
    decr,
    incrby,
    decrby,
    incrbyfloat,
]
