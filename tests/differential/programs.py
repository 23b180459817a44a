"""Random programs: short sequences of commands of two clients, the same for every seed.

Keys are few, so that commands meet the same ones, of the right and of the wrong type; values are few, so that LREM and
LPOS find some; numbers lie around every limit. About one command in thirty is damaged: a word dropped, doubled or
replaced. Expiry times lie far away or in the past, never near, since the two servers do not share a clock.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

STEPS_MAX = 120
FAR_S = 4_000_000_000  # year 2096
Words = list[bytes]


class Step(NamedTuple):
    client: int  # 0 or 1
    argv: tuple[bytes, ...]

    def __str__(self) -> str:
        return f"{self.client}> " + " ".join(repr(word)[1:] for word in self.argv)


class Program(NamedTuple):
    protocol: int  # RESP of both clients
    steps: tuple[Step, ...]


class Generator:
    """Words and commands drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.pick = self.random.choice

    def program(self) -> Program:
        steps: list[Step] = []
        self.theme = self.pick(THEMES)
        while len(steps) < STEPS_MAX and self.random.random() > 0.01:
            steps += self.episode()
        return Program(self.pick((2, 3)), tuple(steps))

    def episode(self) -> list[Step]:
        chance = self.random.random()
        if chance < 0.04:
            return self.transaction()
        if chance < 0.05:
            return [Step(0, (b"SELECT", self.pick((b"0", b"1", b"9", b"16", b"x"))))]
        return [Step(self.random.random() < 0.1, tuple(self.command()))]

    def transaction(self) -> list[Step]:
        """MULTI, perhaps behind WATCH, perhaps with commands of the other client in between.

        A watched key that is absent, comes and goes again is a wanted difference: so either every watched key is there
        before WATCH, or nothing goes until EXEC.
        """
        steps: list[Step] = []
        names = None
        if self.random.random() < 0.5:
            watched = [self.key() for _ in range(self.random.randint(1, 3))]
            if self.random.random() < 0.5:
                steps += [Step(0, (b"SETNX", key, b"1")) for key in watched]
            else:
                names = KEEPING
            steps.append(Step(0, (b"WATCH", *watched)))
            for _ in range(self.random.randint(0, 2)):
                steps.append(Step(self.random.random() < 0.5, tuple(self.command(names=names))))
        if self.random.random() < 0.1:
            steps.append(Step(0, (b"UNWATCH",)))
        steps.append(Step(0, (b"MULTI",)))
        for _ in range(self.random.randint(0, 6)):
            inside = self.random.random()
            if inside < 0.04:
                steps.append(Step(0, (self.pick((b"MULTI", b"WATCH", b"PING", b"UNWATCH")), *self.some_words())))
            elif inside < 0.08:
                steps.append(Step(0, (b"SELECT", self.pick((b"0", b"1", b"77")))))
            else:
                steps.append(Step(0, tuple(self.command(maimed=0.01))))
            if self.random.random() < 0.1:
                steps.append(Step(1, tuple(self.command(names=names))))
        steps.append(Step(0, (b"DISCARD" if self.random.random() < 0.1 else b"EXEC",)))
        return steps

    def command(self, maimed: float = 0.03, names: frozenset[str] | None = None) -> Words:
        """One of the theme; with `names` one of these (every theme has some)."""
        rows, weights = self.theme
        if names is not None:
            weights = [weight * (name in names) for name, weight in zip(rows, weights, strict=True)]
        words = COMMANDS[self.random.choices(rows, weights)[0]](self)
        if self.random.random() < maimed:
            words = self.maim(words)
        if self.random.random() < 0.1:
            words[0] = self.pick((words[0].lower(), words[0].title()))
        return words

    def maim(self, words: Words) -> Words:
        at = self.random.randrange(1, len(words)) if len(words) > 1 else 0
        chance = self.random.random()
        if TIMED.intersection(word.upper() for word in words) and chance < 0.9:
            chance = 0.0  # no other damage: it might make a time that is near
        if not set(DECIMAL_KEYS).isdisjoint(words[1:3]):
            chance *= 0.6  # nor a large number
        if chance < 0.3 and at:
            return words[:at] + words[at + 1 :]
        if chance < 0.6:
            return [*words, self.word()]
        if chance < 0.9 and at:
            return [*words[:at], self.word(), *words[at + 1 :]]
        return [self.pick((b"NOSUCH", b"get2", b"\xff\x00bin", b"")) or b"X", *words[1:]]

    # --- words ------------------------------------------------------------------------------------------------------

    def key(self) -> bytes:
        """Mostly of the theme's own few names; sometimes any, of any type."""
        if self.random.random() < 0.02:
            return self.pick((b"", b"\x00\xff\r\n", b"k" * 600, b"k" * 600 + b"2", "ключ".encode()))
        return b"%b%d" % (self.pick((b"s", b"h", b"l", b"k")), self.random.randint(0, 3))

    def key_of(self, kind: bytes) -> bytes:
        return b"%b%d" % (kind, self.random.randint(0, 3)) if self.random.random() < 0.85 else self.key()

    def string(self) -> bytes:
        return self.key_of(b"s")

    def hash(self) -> bytes:
        return self.key_of(b"h")

    def list(self) -> bytes:
        return self.key_of(b"l")

    def field(self) -> bytes:
        if self.random.random() < 0.03:
            return self.pick((b"", b"f" * 500, b"f" * 500 + b"2", b"\xff\x00"))
        return b"f%d" % self.random.randint(0, 9)

    def value(self) -> bytes:
        chance = self.random.random()
        if chance < 0.5:
            return self.pick((b"a", b"b", b"c", b"d"))
        if chance < 0.8:
            return self.number()
        return self.pick((b"", b"hello", b"x" * 70, b"\r\n", b"\x00\xfe", b" 1", b"1 ", b"+1", b"01", b"1_0", b"-0"))

    def number(self) -> bytes:
        if self.random.random() < 0.8:
            return b"%d" % self.random.randint(-5, 20)
        return self.pick(EDGES)

    def index(self) -> bytes:
        return b"%d" % self.random.randint(-8, 8) if self.random.random() < 0.93 else self.pick(EDGES)

    def count(self) -> bytes:
        return b"%d" % self.random.randint(-3, 5) if self.random.random() < 0.95 else self.pick(EDGES)

    def decimal(self) -> bytes:
        return self.pick(DECIMALS)

    def decimal_key(self) -> bytes:
        """Keys of their own: beside a large number the digits of the two servers differ, which is wanted."""
        return self.pick(DECIMAL_KEYS)

    def word(self) -> bytes:
        return self.pick((self.key, self.value, self.number, self.option))()

    def option(self) -> bytes:
        return self.pick(OPTION_WORDS)

    def some_words(self) -> Words:
        return [self.word() for _ in range(self.random.choice((0, 0, 0, 1, 2)))]

    def pattern(self) -> bytes:
        return self.pick(PATTERNS)

    def expiry(self) -> Words:
        """An expiry option: far away, past, or wrong."""
        return list(self.pick(EXPIRIES))

    def many(self, draw: Callable[[], bytes], most: int = 4) -> Words:
        return [draw() for _ in range(self.random.randint(1, most))]

    def maybe(self, *words: bytes, chance: float = 0.5) -> Words:
        return list(words) if self.random.random() < chance else []


TIMED = frozenset(
    (*(b"EX", b"PX", b"EXAT", b"PXAT", b"SETEX", b"PSETEX"), *(b"EXPIRE", b"PEXPIRE", b"EXPIREAT", b"PEXPIREAT"))
)
CURSORS = (b"0", b"0", b"x", b"1.5", b"", b"\x00x", b"7\x00", b"+7", b" 7", b"-", b"0" * 30, b"18446744073709551616")
DECIMAL_KEYS = (b"d0", b"d1", b"d2")
EDGES = (
    *(b"9223372036854775807", b"9223372036854775806", b"-9223372036854775808", b"-9223372036854775807"),
    *(b"9223372036854775808", b"-9223372036854775809", b"99999999999999999999", b"1e3", b"1_0", b"", b"-", b"1.5"),
    *(b"4294967296", b"2147483648", b"-1", b"0", b"00", b"-0", b"+5", b" 5", b"5 ", b"1_000", b"abc"),
)
DECIMALS = (
    *(b"0.5", b"-0.25", b"1.125", b"3", b"-7", b"1e2", b"2.5e-1", b"0", b"-0", b"+1.5", b".5", b"5."),
    *(b"", b"abc", b"nan", b"inf", b"-inf", b"Infinity", b"1e", b" 1", b"1 ", b"1_0", b"1e5000", b"--1"),
)
OPTION_WORDS = (
    b"NX",
    b"xx",
    b"GET",
    b"EX",
    b"PX",
    b"KEEPTTL",
    b"COUNT",
    b"MATCH",
    b"LEFT",
    b"RIGHT",
    b"PERSIST",
    b"GT",
)
PATTERNS = (
    *(
        b"*",
        b"s*",
        b"?1",
        b"[sh]*",
        b"[^s]*",
        b"[a-k]?",
        b"k0",
        b"\\k0",
        b"*0*",
        b"",
        b"[k-a]1",
        b"[",
        b"[s",
        b"*[",
        b"s?",
    ),
    *(b"**1", b"\\", b"h\\1", b"[]", b"[^]", b"[\\]s]1", b"nosuch"),
)
EXPIRIES: tuple[tuple[bytes, ...], ...] = (
    *((b"EX", b"100000"), (b"PX", b"100000000"), (b"EXAT", b"%d" % FAR_S), (b"PXAT", b"%d" % (FAR_S * 1000 + 7))),
    *(
        (b"EXAT", b"1"),
        (b"PXAT", b"1000"),
        (b"EX", b"0"),
        (b"PX", b"-1"),
        (b"EX", b"9223372036854775807"),
        (b"EX", b"x"),
    ),
    *((b"EX", b"9223372036854775"), (b"EX",), (b"KEEPTTL",), (b"PERSIST",), (b"EX", b"10000", b"PX", b"10000")),
)


def _times(g: Generator) -> bytes:
    return g.pick((b"100000", b"5000000", b"0", b"-1", b"-100", b"9223372036854775807", b"-9223372036854775808", b"x"))


def _moments(g: Generator) -> bytes:
    return g.pick(
        (b"%d" % FAR_S, b"%d" % (FAR_S + 5), b"1", b"0", b"-5", b"1000000000", b"9223372036854775807", b"1.5")
    )


def _moments_ms(g: Generator) -> bytes:
    return g.pick((b"%d" % (FAR_S * 1000), b"%d" % (FAR_S * 1000 + 499), b"1", b"-5", b"9223372036854775807", b"zz"))


def _conditions(g: Generator) -> Words:
    return [g.pick((b"NX", b"XX", b"GT", b"LT", b"gt", b"nx", b"foo")) for _ in range(g.pick((0, 0, 0, 0, 1, 1, 2)))]


def _fields(g: Generator) -> Words:
    return [word for _ in range(g.random.randint(1, 4)) for word in (g.field(), g.value())]


def _pairs(g: Generator) -> Words:
    return [word for _ in range(g.random.randint(1, 4)) for word in (g.string(), g.value())]


def _scan_options(g: Generator) -> Words:
    return g.maybe(b"MATCH", g.pattern(), chance=0.4) + g.maybe(b"COUNT", g.pick((b"1", b"3", b"100")), chance=0.4)


def _numbered_lists(g: Generator) -> Words:
    keys = g.many(g.list, 3)
    number = b"%d" % len(keys) if g.random.random() < 0.9 else g.number()
    return [number, *keys]


def _lpos_options(g: Generator) -> Words:
    return [
        *g.maybe(b"RANK", g.count().replace(b"5808", b"5807"), chance=0.4),
        *g.maybe(b"COUNT", g.count(), chance=0.4),
        *g.maybe(b"MAXLEN", g.count(), chance=0.3),
    ]


def _drawn(g: Generator) -> bytes:
    """How many HRANDFIELD shall draw. Redis takes a count like -2**62 at its word and never ends."""
    count = g.count()
    return b"-5" if count.startswith(b"-9") else count


def _side(g: Generator) -> bytes:
    return g.pick((b"LEFT", b"RIGHT", b"left", b"right", b"RIGHT", b"LEFT", b"LEFT", b"UP"))


Draw = Callable[[Generator], Words]
STRINGS: dict[str, Draw] = {
    "SET": lambda g: [b"SET", g.string(), g.value()],
    "SET+": lambda g: [
        *(b"SET", g.string(), g.value()),
        *g.maybe(g.pick((b"NX", b"XX", b"nx")), chance=0.4),
        *g.maybe(b"GET", chance=0.3),
        *(g.expiry() if g.random.random() < 0.6 else []),
    ],
    "GET": lambda g: [b"GET", g.string()],
    "SETNX": lambda g: [b"SETNX", g.string(), g.value()],
    "SETEX": lambda g: [b"SETEX", g.string(), _times(g), g.value()],
    "PSETEX": lambda g: [b"PSETEX", g.string(), g.pick((b"99999999", b"0", b"-4", b"y")), g.value()],
    "GETSET": lambda g: [b"GETSET", g.string(), g.value()],
    "GETDEL": lambda g: [b"GETDEL", g.string()],
    "GETEX": lambda g: [b"GETEX", g.string(), *(g.expiry() if g.random.random() < 0.7 else [])],
    "MGET": lambda g: [b"MGET", *g.many(g.key, 5)],
    "MSET": lambda g: [b"MSET", *_pairs(g)],
    "MSETNX": lambda g: [b"MSETNX", *_pairs(g)],
    "APPEND": lambda g: [b"APPEND", g.string(), g.value()],
    "STRLEN": lambda g: [b"STRLEN", g.string()],
    "GETRANGE": lambda g: [g.pick((b"GETRANGE", b"SUBSTR")), g.string(), g.index(), g.index()],
    "SETRANGE": lambda g: [b"SETRANGE", g.string(), g.pick((b"0", b"1", b"5", b"30", b"-1", b"x")), g.value()],
    "INCR": lambda g: [g.pick((b"INCR", b"DECR")), g.string()],
    "INCRBY": lambda g: [g.pick((b"INCRBY", b"DECRBY")), g.string(), g.number()],
    "INCRBYFLOAT": lambda g: [b"INCRBYFLOAT", g.decimal_key(), g.decimal()],
    "SETFLOAT": lambda g: [b"SET", g.decimal_key(), g.decimal()],
    "GETFLOAT": lambda g: [b"GET", g.decimal_key()],
    "NOFLOAT": lambda g: [g.pick((b"RPUSH", b"DEL")), g.decimal_key(), *g.maybe(b"0.5")],
}
KEYS: dict[str, Draw] = {
    "DEL": lambda g: [g.pick((b"DEL", b"UNLINK")), *g.many(g.key, 3)],
    "EXISTS": lambda g: [g.pick((b"EXISTS", b"TOUCH")), *g.many(g.key, 3)],
    "TYPE": lambda g: [b"TYPE", g.key()],
    "KEYS": lambda g: [b"KEYS", g.pattern()],
    "SCAN": lambda g: [
        *(b"SCAN", b"0"),
        *_scan_options(g),
        *g.maybe(b"TYPE", g.pick((b"string", b"hash", b"LIST", b"nosuch")), chance=0.3),
    ],
    "SCAN?": lambda g: [b"SCAN", g.pick(CURSORS), g.option(), g.number()],
    "RANDOMKEY": lambda g: [b"RANDOMKEY"],
    "RENAME": lambda g: [g.pick((b"RENAME", b"RENAMENX")), g.key(), g.key()],
    "COPY": lambda g: [
        *(b"COPY", g.key(), g.key()),
        *g.maybe(b"DB", g.pick((b"0", b"1", b"99", b"q")), chance=0.2),
        *g.maybe(b"REPLACE", chance=0.5),
    ],
    "MOVE": lambda g: [b"MOVE", g.key(), g.pick((b"1", b"0", b"9", b"99", b"w"))],
    "EXPIRE": lambda g: [g.pick((b"EXPIRE", b"PEXPIRE")), g.key(), _times(g), *_conditions(g)],
    "EXPIREAT": lambda g: [b"EXPIREAT", g.key(), _moments(g), *_conditions(g)],
    "PEXPIREAT": lambda g: [b"PEXPIREAT", g.key(), _moments_ms(g), *_conditions(g)],
    "TTL": lambda g: [g.pick((b"TTL", b"PTTL", b"EXPIRETIME", b"PEXPIRETIME")), g.key()],
    "PERSIST": lambda g: [b"PERSIST", g.key()],
    "DBSIZE": lambda g: [b"DBSIZE"],
    "FLUSHDB": lambda g: [b"FLUSHDB", *g.maybe(g.pick((b"ASYNC", b"sync", b"now")), chance=0.3)],
    "OBJECT": lambda g: [b"OBJECT", g.pick((b"FREQ", b"NOSUCH")), g.key()],
}
HASHES: dict[str, Draw] = {
    "HSET": lambda g: [g.pick((b"HSET", b"HSET", b"HMSET")), g.hash(), *_fields(g)],
    "HSETNX": lambda g: [b"HSETNX", g.hash(), g.field(), g.value()],
    "HGET": lambda g: [b"HGET", g.hash(), g.field()],
    "HMGET": lambda g: [b"HMGET", g.hash(), *g.many(g.field)],
    "HDEL": lambda g: [b"HDEL", g.hash(), *g.many(g.field)],
    "HEXISTS": lambda g: [b"HEXISTS", g.hash(), g.field()],
    "HLEN": lambda g: [b"HLEN", g.hash()],
    "HSTRLEN": lambda g: [b"HSTRLEN", g.hash(), g.field()],
    "HGETALL": lambda g: [g.pick((b"HGETALL", b"HKEYS", b"HVALS")), g.hash()],
    "HINCRBY": lambda g: [b"HINCRBY", g.hash(), g.field(), g.number()],
    "HINCRBYFLOAT": lambda g: [b"HINCRBYFLOAT", g.hash(), g.decimal_key(), g.decimal()],
    "HSCAN": lambda g: [b"HSCAN", g.hash(), b"0", *_scan_options(g)],
    "HSCAN?": lambda g: [b"HSCAN", g.hash(), g.pick(CURSORS), g.option(), g.number()],
    "HRANDFIELD": lambda g: [
        *(b"HRANDFIELD", g.hash()),
        *g.maybe(_drawn(g), *g.maybe(b"WITHVALUES", chance=0.4), chance=0.7),
    ],
}
LISTS: dict[str, Draw] = {
    "LPUSH": lambda g: [g.pick((b"LPUSH", b"RPUSH")), g.list(), *g.many(g.value, 5)],
    "LPUSHX": lambda g: [g.pick((b"LPUSHX", b"RPUSHX")), g.list(), *g.many(g.value, 3)],
    "LPOP": lambda g: [g.pick((b"LPOP", b"RPOP")), g.list(), *g.maybe(g.count(), chance=0.4)],
    "LMPOP": lambda g: [b"LMPOP", *_numbered_lists(g), _side(g), *g.maybe(b"COUNT", g.count(), chance=0.4)],
    "LLEN": lambda g: [b"LLEN", g.list()],
    "LRANGE": lambda g: [b"LRANGE", g.list(), g.index(), g.index()],
    "LINDEX": lambda g: [b"LINDEX", g.list(), g.index()],
    "LSET": lambda g: [b"LSET", g.list(), g.index(), g.value()],
    "LREM": lambda g: [b"LREM", g.list(), g.count(), g.value()],
    "LTRIM": lambda g: [b"LTRIM", g.list(), g.index(), g.index()],
    "LINSERT": lambda g: [b"LINSERT", g.list(), g.pick((b"BEFORE", b"AFTER", b"after", b"AT")), g.value(), g.value()],
    "LPOS": lambda g: [b"LPOS", g.list(), g.value(), *_lpos_options(g)],
    "LMOVE": lambda g: [b"LMOVE", g.list(), g.list(), _side(g), _side(g)],
    "RPOPLPUSH": lambda g: [b"RPOPLPUSH", g.list(), g.list()],
}
COMMANDS: dict[str, Draw] = {**STRINGS, **KEYS, **HASHES, **LISTS}
#: After which every key is still there that was there before, and lives.
KEEPING = frozenset(
    (
        *(
            "SET",
            "GET",
            "SETNX",
            "GETSET",
            "MGET",
            "MSET",
            "MSETNX",
            "APPEND",
            "STRLEN",
            "GETRANGE",
            "SETRANGE",
            "INCR",
        ),
        *("EXISTS", "TYPE", "TTL", "PERSIST", "HSET", "HSETNX", "HGET", "HMGET", "HLEN", "HGETALL", "HINCRBY"),
        *("LPUSH", "LPUSHX", "LLEN", "LRANGE", "LINDEX", "LSET", "LPOS"),
    )
)
RARE = {"FLUSHDB": 0.05, "SCAN?": 0.3, "HSCAN?": 0.3, "MOVE": 0.3, "OBJECT": 0.5, "LTRIM": 0.4, "KEYS": 0.5, "DEL": 0.5}


def _theme(**weights: float) -> tuple[list[str], list[float]]:
    groups = {"strings": STRINGS, "keys": KEYS, "hashes": HASHES, "lists": LISTS}
    rows = {name: weight * RARE.get(name, 1.0) for group, weight in weights.items() for name in groups[group]}
    return list(rows), list(rows.values())


THEMES = (
    _theme(strings=1, keys=1, hashes=1, lists=1),
    _theme(strings=4, keys=1),
    _theme(hashes=4, keys=1),
    _theme(lists=6, keys=1),
    _theme(lists=1),
)
