"""Typed arguments: what a command takes, said as data and compiled once into the function that parses it.

A declaration such as

    @command("SET", Key(String), Bytes("value"), Options(...), flags=WRITE, ...)

is read three times: to compute arity and key positions, to print COMMAND DOCS and docs/commands.md, and to build the
one closure `run(ctx, argv)` that turns the words of a request into the arguments of the handler. Nothing of this is
done again per command: a plain GET costs one call of `run`, one `String(ctx, name)` and one call of the handler.

Arguments come in two sorts. A *word* is one token (`Key`, `Bytes`, `Int`, `OneOf`). A *tail* takes what is left
(`Many`, `ManyPairs`, `Optional`, `NumKeys`, `Options`) and so stands last, but for `NumKeys` and `Optional`, after
which further arguments may follow.

Texts of errors are Redis' own (7.0), each once, here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from ..errors import CommandError

INT64_MAX: Final = 2**63 - 1
INT64_MIN: Final = -(2**63)

NOT_AN_INTEGER: Final = "ERR value is not an integer or out of range"
NOT_POSITIVE: Final = "ERR value is out of range, must be positive"
NOT_A_FLOAT: Final = "ERR value is not a valid float"
SYNTAX: Final = "ERR syntax error"
WRONGTYPE: Final = "WRONGTYPE Operation against a key holding the wrong kind of value"
NO_SUCH_KEY: Final = "ERR no such key"
INDEX_OUT_OF_RANGE: Final = "ERR index out of range"

Kind = Callable[[Any, bytes], Any]
Handler = Callable[..., Any]
Run = Callable[[Any, list[bytes]], Any]
Convert = Callable[[Any, bytes], Any]


def wrong_arity(name: str) -> CommandError:
    return CommandError(f"ERR wrong number of arguments for '{name}' command")


def printable(token: bytes, limit: int = 128) -> str:
    """A client's word inside an error line: cut, up to a zero byte as in C, and without line breaks."""
    text = token[:limit].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return text.replace("\r", " ").replace("\n", " ")


def integer(token: bytes, error: str = NOT_AN_INTEGER) -> int:
    """A 64-bit integer exactly as Redis reads it: no sign but '-', no space, no leading zero, no '_'."""
    if len(token) <= 20:
        try:
            value = int(token)
        except ValueError:
            raise CommandError(error) from None
        if INT64_MIN <= value <= INT64_MAX and b"%d" % value == token:
            return value
    raise CommandError(error)


class Arg:
    """One declared argument. Subclasses say how many words it takes and how a word becomes a value."""

    #: COMMAND DOCS type
    kind: str = "string"
    #: least number of words
    words: int = 1
    #: takes a varying number of words
    varies: bool = False
    name: str = ""

    def converter(self) -> Convert | None:
        """(ctx, word) -> value, or None when the word is the value."""
        return None

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        """Value and the place of the next word. Raises CommandError."""
        raise NotImplementedError

    def doc(self) -> dict[str, Any]:
        return {"name": self.name, "type": self.kind}

    def synopsis(self) -> str:
        return self.name


class Word(Arg):
    """Exactly one word."""

    def __init__(self, name: str) -> None:
        self.name = name

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        if at >= len(argv):
            raise CommandError(SYNTAX)
        convert = self.converter()
        return (argv[at] if convert is None else convert(ctx, argv[at])), at + 1


def raw_key(_ctx: Any, name: bytes) -> bytes:
    """The kind of `Key()`: the handler gets the bare name."""
    return name


class Key(Word):
    """A key. `kind` makes what the handler gets: `String`, `Hash`, `List`, or the bare name."""

    kind = "key"

    def __init__(self, kind: Kind = raw_key, name: str = "key") -> None:
        super().__init__(name)
        self.make = kind

    def converter(self) -> Convert | None:
        return None if self.make is raw_key else self.make


class Bytes(Word):
    """Any bytes."""

    def __init__(self, name: str = "value", kind: str = "string") -> None:
        super().__init__(name)
        self.kind = kind


class Int(Word):
    """A 64-bit integer within [low, high]; `error` is for a bad number, `range_error` for one outside."""

    kind = "integer"

    def __init__(
        self,
        name: str = "integer",
        low: int = INT64_MIN,
        high: int = INT64_MAX,
        *,
        error: str = NOT_AN_INTEGER,
        range_error: str | None = None,
    ) -> None:
        super().__init__(name)
        self.low = low
        self.high = high
        self.error = error
        self.range_error = range_error or error

    def converter(self) -> Convert | None:
        if self.low == INT64_MIN and self.high == INT64_MAX and self.error is NOT_AN_INTEGER:
            return lambda _ctx, token: integer(token)
        return lambda _ctx, token: self.read(token)

    def read(self, token: bytes) -> int:
        value = integer(token, self.error)
        if not self.low <= value <= self.high:
            raise CommandError(self.range_error)
        return value


def Count(name: str = "count") -> Int:
    """A count that may be 0 but not negative, with Redis' text for both mistakes."""
    return Int(name, 0, INT64_MAX, error=NOT_POSITIVE)


class OneOf(Word):
    """One of some fixed words, in any case; the handler gets it in upper case."""

    kind = "oneof"

    def __init__(self, *choices: str, name: str = "where", error: str = SYNTAX) -> None:
        super().__init__(name)
        self.choices = {choice.encode(): choice for choice in choices}
        self.error = error

    def converter(self) -> Convert | None:
        return lambda _ctx, token: self.read(token)

    def read(self, token: bytes) -> str:
        choice = self.choices.get(token.upper())
        if choice is None:
            raise CommandError(self.error)
        return choice

    def doc(self) -> dict[str, Any]:
        options = [{"name": c.lower(), "type": "pure-token", "token": c} for c in self.choices.values()]
        return {"name": self.name, "type": "oneof", "arguments": options}

    def synopsis(self) -> str:
        return "<" + " | ".join(self.choices.values()) + ">"


class Optional(Arg):
    """A word that may be missing; the handler then gets `default`."""

    words = 0
    varies = True

    def __init__(self, arg: Word, default: Any = None) -> None:
        self.arg = arg
        self.name = arg.name
        self.kind = arg.kind
        self.default = default

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        return self.arg.parse(ctx, argv, at) if at < len(argv) else (self.default, at)

    def doc(self) -> dict[str, Any]:
        return {**self.arg.doc(), "flags": ["optional"]}

    def synopsis(self) -> str:
        return f"[{self.arg.synopsis()}]"


class Many(Arg):
    """One or more words of one kind (none or more with least=0), as a list."""

    varies = True

    def __init__(self, arg: Word, least: int = 1) -> None:
        self.arg = arg
        self.name = arg.name
        self.kind = arg.kind
        self.words = least

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        convert = self.arg.converter()
        rest = argv[at:]
        return (rest if convert is None else [convert(ctx, token) for token in rest]), len(argv)

    def doc(self) -> dict[str, Any]:
        flags = ["multiple"] if self.words else ["optional", "multiple"]
        return {**self.arg.doc(), "flags": flags}

    def synopsis(self) -> str:
        once = self.arg.synopsis()
        return f"{once} [{once} ...]" if self.words else f"[{once} ...]"


class ManyPairs(Arg):
    """One or more pairs of words, as a list of tuples; an odd number is a wrong number of arguments."""

    kind = "block"
    words = 2
    varies = True

    def __init__(self, first: Word, second: Word, command: str) -> None:
        self.first = first
        self.second = second
        self.command = command  # lower case, for the error
        self.name = f"{first.name}_{second.name}"

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        if (len(argv) - at) % 2:
            raise wrong_arity(self.command)
        firsts: Any = argv[at::2]
        convert = self.first.converter()
        if convert is not None:
            firsts = [convert(ctx, token) for token in firsts]
        return list(zip(firsts, argv[at + 1 :: 2], strict=True)), len(argv)

    def doc(self) -> dict[str, Any]:
        parts = [self.first.doc(), self.second.doc()]
        return {"name": self.name, "type": "block", "flags": ["multiple"], "arguments": parts}

    def synopsis(self) -> str:
        once = f"{self.first.synopsis()} {self.second.synopsis()}"
        return f"{once} [{once} ...]"


class NumKeys(Arg):
    """A number and then so many keys, as one list (LMPOP, EVAL)."""

    kind = "key"
    words = 2
    varies = True

    def __init__(self, kind: Kind = raw_key, name: str = "key", *, least: int = 1, error: str | None = None) -> None:
        self.name = name
        self.make = kind
        self.least = least
        self.words = 1 + least
        self.error = error or "ERR numkeys should be greater than 0"

    def count(self, argv: list[bytes], at: int) -> int:
        """The number of keys. Raises CommandError."""
        number = integer(argv[at], self.error)
        if number < self.least:
            raise CommandError(self.error)
        return number

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        number = self.count(argv, at)
        stop = at + 1 + number
        if stop > len(argv):
            raise CommandError(SYNTAX)
        names: Any = argv[at + 1 : stop]
        return (names if self.make is raw_key else [self.make(ctx, name) for name in names]), stop

    def doc(self) -> dict[str, Any]:
        numkeys = {"name": "numkeys", "type": "integer"}
        keys = {"name": self.name, "type": "key", "flags": ["multiple"]}
        return {"name": "keys", "type": "block", "arguments": [numkeys, keys]}

    def synopsis(self) -> str:
        return f"numkeys {self.name} [{self.name} ...]"


class Flag:
    """An option word without a value. Options of one `group` exclude each other."""

    words = 0

    def __init__(self, token: str, group: str = "") -> None:
        self.token = token
        self.group = group or token

    def read(self, _ctx: Any, _argv: list[bytes], _at: int) -> Any:
        return True

    def doc(self) -> dict[str, Any]:
        return {"name": self.token.lower(), "type": "pure-token", "token": self.token, "flags": ["optional"]}

    def synopsis(self) -> str:
        return self.token


class Value(Flag):
    """An option word followed by one word."""

    words = 1

    def __init__(self, token: str, arg: Word, group: str = "") -> None:
        super().__init__(token, group)
        self.arg = arg
        self.convert = arg.converter()

    def read(self, ctx: Any, argv: list[bytes], at: int) -> Any:
        return argv[at] if self.convert is None else self.convert(ctx, argv[at])

    def doc(self) -> dict[str, Any]:
        return {**self.arg.doc(), "token": self.token, "flags": ["optional"]}

    def synopsis(self) -> str:
        return f"{self.token} {self.arg.synopsis()}"


NO_OPTIONS: Final[dict[str, Any]] = {}


class Options(Arg):
    """Options in any order up to the end, as a dict from token to value (`True` for a flag).

    Two of one group, an unknown word or a missing value are syntax errors. An option given twice counts once, the last.
    """

    kind = "block"
    words = 0
    varies = True

    def __init__(self, *options: Flag, error: str = SYNTAX) -> None:
        self.options = options
        self.error = error
        self.by_token = {option.token.encode(): option for option in options}
        self.name = "options"

    def parse(self, ctx: Any, argv: list[bytes], at: int) -> tuple[Any, int]:
        end = len(argv)
        if at >= end:
            return NO_OPTIONS, end
        found: dict[str, Any] = {}
        groups: dict[str, str] = {}
        while at < end:
            option = self.by_token.get(argv[at].upper())
            if option is None or at + option.words >= end:
                raise CommandError(self.error)
            if groups.setdefault(option.group, option.token) != option.token:
                raise CommandError(self.error)
            found[option.token] = option.read(ctx, argv, at + 1)
            at += 1 + option.words
        return found, at

    def docs(self) -> Iterator[dict[str, Any]]:
        groups: dict[str, list[Flag]] = {}
        for option in self.options:
            groups.setdefault(option.group, []).append(option)
        for name, members in groups.items():
            if len(members) == 1:
                yield members[0].doc()
            else:
                parts = [{k: v for k, v in m.doc().items() if k != "flags"} for m in members]
                yield {"name": name.lower(), "type": "oneof", "flags": ["optional"], "arguments": parts}

    def synopsis(self) -> str:
        groups: dict[str, list[str]] = {}
        for option in self.options:
            groups.setdefault(option.group, []).append(option.synopsis())
        return " ".join("[" + " | ".join(members) + "]" for members in groups.values())


# --- what the table computes from a declaration ----------------------------------------------------------------------


def arity(args: tuple[Arg, ...], words: int) -> int:
    """Redis' arity: words of the name included; negative when more may follow. `words`: of the name (1 or 2)."""
    least = words + sum(arg.words for arg in args)
    return -least if any(arg.varies for arg in args) else least


def key_positions(args: tuple[Arg, ...], words: int) -> tuple[int, int, int]:
    """(first, last, step) as COMMAND shows them; (0, 0, 0) without keys or with movable ones."""
    at, first, last, step = words, 0, 0, 0
    for arg in args:
        if isinstance(arg, Key):
            first, last, step = first or at, at, 1
        elif isinstance(arg, Many) and isinstance(arg.arg, Key):
            first, last, step = first or at, -1, 1
        elif isinstance(arg, ManyPairs) and isinstance(arg.first, Key):
            first, last, step = first or at, -1, 2
        at += arg.words
    return first, last, step


def keys_of(args: tuple[Arg, ...], words: int, argv: list[bytes]) -> list[bytes]:
    """The keys in a command line, also the movable ones. Raises CommandError when it cannot be parsed so far."""
    at, found = words, []
    for arg in args:
        if isinstance(arg, NumKeys):
            number = arg.count(argv, at)
            found += argv[at + 1 : at + 1 + number]
            at += 1 + number
            continue
        if isinstance(arg, Key):
            found.append(argv[at])
        elif isinstance(arg, Many) and isinstance(arg.arg, Key):
            found += argv[at:]
        elif isinstance(arg, ManyPairs) and isinstance(arg.first, Key):
            found += argv[at::2]
        at += 1 if isinstance(arg, Optional) else arg.words
    return found


def docs_of(args: tuple[Arg, ...]) -> list[dict[str, Any]]:
    """The `arguments` of COMMAND DOCS."""
    rows: list[dict[str, Any]] = []
    for arg in args:
        rows += arg.docs() if isinstance(arg, Options) else [arg.doc()]
    return rows


def compile_run(handler: Handler, args: tuple[Arg, ...], words: int, name: str) -> Run:
    """The function (ctx, argv) -> reply of a command whose arity has been checked."""
    if all(isinstance(arg, Word) for arg in args):
        return _compile_words(handler, [arg.converter() for arg in args], words)
    if words == 1 and len(args) == 3 and isinstance(args[0], Key) and isinstance(args[1], Bytes):
        return _compile_key_value_rest(handler, args, name)
    return _compile_any(handler, args, words, name)


def _compile_words(handler: Handler, converters: list[Convert | None], words: int) -> Run:
    """Fixed arguments: the shapes of the hot commands get a closure of their own."""
    if words == 1 and len(converters) == 1 and converters[0]:
        only = converters[0]
        return lambda ctx, argv: handler(ctx, only(ctx, argv[1]))
    if words == 1 and len(converters) == 2 and converters[0] and not converters[1]:
        key = converters[0]
        return lambda ctx, argv: handler(ctx, key(ctx, argv[1]), argv[2])
    if words == 1 and len(converters) == 3 and converters[0] and not converters[1] and not converters[2]:
        three = converters[0]
        return lambda ctx, argv: handler(ctx, three(ctx, argv[1]), argv[2], argv[3])
    plan = [(at, convert) for at, convert in enumerate(converters, words)]

    def run(ctx: Any, argv: list[bytes]) -> Any:
        values = [argv[at] if convert is None else convert(ctx, argv[at]) for at, convert in plan]
        return handler(ctx, *values)

    return run


def _compile_key_value_rest(handler: Handler, args: tuple[Arg, ...], name: str) -> Run:
    """SET and its like: a key, a value, and usually nothing more."""
    tail = args[2]
    general = _compile_any(handler, args, 1, name)
    if not isinstance(args[0], Key) or not isinstance(tail, Options):
        return general
    key = args[0].make

    def run(ctx: Any, argv: list[bytes]) -> Any:
        if len(argv) == 3:
            return handler(ctx, key(ctx, argv[1]), argv[2], NO_OPTIONS)
        return general(ctx, argv)

    return run


def _compile_any(handler: Handler, args: tuple[Arg, ...], words: int, name: str) -> Run:
    parsers = [arg.parse for arg in args]
    closed = not args or not args[-1].varies or isinstance(args[-1], Optional | NumKeys)

    def run(ctx: Any, argv: list[bytes]) -> Any:
        values, at = [], words
        for parse in parsers:
            value, at = parse(ctx, argv, at)
            values.append(value)
        if closed and at != len(argv):
            raise CommandError(SYNTAX)
        return handler(ctx, *values)

    return run
