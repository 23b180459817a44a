"""pyraft's checkpoints: the text that `repr` made of its dictionary, read and never evaluated.

    {'ttl': {key: seconds of Unix time, ...}, '_META_': {'term': 11, 'index': 4711, ...}, key: value, ...}

    value      becomes
    text       a string
    number     a string, written as in the file (an application can have put it there); True, False, None as in JSON
    list       a list
    dict       a hash; one that holds dicts becomes a node of pyraft's tree (TMK), which is a hash as well
    []  {}     nothing: an empty collection does not exist

What `ttl` says becomes the key's expiry; keys that are due by now are left out. pyraft's ZooKeeper data (`ZK`,
`zk_session`) are left out with a line, since raftdb does not speak that protocol.

The grammar is what `repr` writes of plain data, no more: no names, calls, operators, comments. Lengths, nesting and
digits have bounds; everything else is a UsageError that says at which character. The keys are stored by the commands
themselves (SET, RPUSH, HSET, TMK), so a converted key is one that a client could have written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from raftdb import clock
from raftdb.commands.context import Context
from raftdb.commands.table import builtin_table
from raftdb.errors import CommandError, UsageError
from raftdb.storage import snapshot
from raftdb.storage.engine import guarded
from raftdb.storage.kv import KvStore

log = logging.getLogger("raftdb.start")

FILE_BYTES_MAX: Final = 1 << 30
NESTING_MAX: Final = 64
NUMBER_CHARACTERS_MAX: Final = 320
INDEX_MAX: Final = (1 << 62) - 1
EXPIRY_MS_MAX: Final = (1 << 53) - 1
PROGRESS_KEYS: Final = 1_000  # between two calls of progress()

_TOKEN = re.compile(
    r"""[ ]* (?: (?P<text> '[^'\\\n]*(?:\\.[^'\\\n]*)*' | "[^"\\\n]*(?:\\.[^"\\\n]*)*" )
           | b(?P<bytes> '[^'\\\n]*(?:\\.[^'\\\n]*)*' | "[^"\\\n]*(?:\\.[^"\\\n]*)*" )
           | (?P<number> -?[0-9][0-9.e+-]* )
           | (?P<word> True | False | None )
           | (?P<mark> [{}\[\](),:] ) )""",
    re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?:([\\'\"nrt])|x([0-9a-f]{2})|u([0-9a-f]{4})|U(000[0-9a-f]{5}|0010[0-9a-f]{4})|)", re.ASCII)
_SIMPLE: Final = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}
_WORDS: Final = {"True": b"true", "False": b"false", "None": b"null"}
_CLOSING: Final = {"[": "]", "(": ")", "{": "}"}
_ZOOKEEPER: Final = frozenset({b"ZK", b"zk_session"})

#: A value of the file: scalars are bytes already.
Value = bytes | list[Any] | dict[bytes, Any]


class Meta(NamedTuple):
    """What `_META_` says."""

    index: int  # type: ignore[assignment]
    term: int


def is_checkpoint(path: Path) -> bool:
    """Does the file begin as pyraft's do (and as no snapshot of raftdb does)? Raises StorageError."""
    with guarded(path), open(path, "rb") as file:
        return file.read(1) == b"{"


# --- the text ---------------------------------------------------------------------------------------------------------


class Parser:
    """Streams the pairs of the outermost dict. Raises UsageError with the character's number for anything odd."""

    def __init__(self, text: str, name: str) -> None:
        self._text = text
        self._name = name
        self.place = 0

    def _wrong(self, what: str) -> UsageError:
        return UsageError(f"{self._name} at character {self.place}: {what}")

    def _next(self) -> tuple[str, Any]:
        """(kind, content) of the next token: text and bytes decoded."""
        found = _TOKEN.match(self._text, self.place)
        if found is None:
            raise self._wrong("not the text of a checkpoint of pyraft" if self.place else "not a checkpoint of pyraft")
        kind, token = str(found.lastgroup), found[found.lastgroup or 0]
        content: Any = token
        if kind in ("text", "bytes"):
            content = self._unescaped(token[1:-1], kind)
        elif kind == "number":
            content = self._number(token)
        elif kind == "word":
            content = _WORDS[token]
        self.place = found.end()
        return kind, content

    def _unescaped(self, body: str, kind: str) -> bytes:
        text = _ESCAPE.sub(self._character, body) if "\\" in body else body
        if kind == "bytes":
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise self._wrong("a character in bytes") from None
        return text.encode("utf-8", "surrogatepass")

    def _character(self, found: re.Match[str]) -> str:
        simple, *numbers = found.groups()
        if simple:
            return _SIMPLE[simple]
        digits = next((number for number in numbers if number), None)
        if digits is None:
            raise self._wrong("a backslash that repr does not write")
        return chr(int(digits, 16))

    def _number(self, token: str) -> bytes:
        if len(token) > NUMBER_CHARACTERS_MAX:
            raise self._wrong(f"a number of {len(token)} characters")
        try:
            float(token)
        except ValueError:
            raise self._wrong(f"not a number: {token[:40]}") from None
        return token.encode()

    def pairs(self) -> Iterator[tuple[bytes, Value]]:
        """Key and value, in the order of the file; a key that comes twice is refused."""
        if self._next() != ("mark", "{"):
            raise self._wrong("not a checkpoint of pyraft")
        yield from self._pairs(1)
        if self._text[self.place :].strip(" \r\n"):
            raise self._wrong("there is something behind the end")

    def _pairs(self, depth: int) -> Iterator[tuple[bytes, Value]]:
        seen: set[bytes] = set()
        kind, key = self._next()
        while (kind, key) != ("mark", "}"):
            if kind not in ("text", "bytes"):
                raise self._wrong("a key that is not text")
            if key in seen:
                raise self._wrong(f"the key {key[:40]!r} comes twice")
            seen.add(key)
            if self._next() != ("mark", ":"):
                raise self._wrong("no colon behind a key")
            yield key, self._value(*self._next(), depth)
            kind, key = self._after_item("}")

    def _after_item(self, end: str) -> tuple[str, Any]:
        """The token that stands where the next item begins, or the end."""
        found = self._next()
        if found == ("mark", ","):
            return self._next()
        if found != ("mark", end):
            raise self._wrong(f"neither a comma nor {end}")
        return found

    def _value(self, kind: str, content: Any, depth: int) -> Value:
        if kind != "mark":
            return bytes(content)
        if depth >= NESTING_MAX:
            raise self._wrong(f"nested more than {NESTING_MAX} deep")
        if content == "{":
            return dict(self._pairs(depth + 1))
        if content in ("[", "("):
            return list(self._items(_CLOSING[content], depth + 1))
        raise self._wrong(f"{content} where a value must be")

    def _items(self, end: str, depth: int) -> Iterator[Value]:
        kind, content = self._next()
        while (kind, content) != ("mark", end):
            yield self._value(kind, content, depth)
            kind, content = self._after_item(end)


# --- as commands ------------------------------------------------------------------------------------------------------


def commands_of(key: bytes, value: Value) -> Iterator[list[bytes]]:
    """The commands that make this key. Raises ValueError for what has no form in raftdb."""
    if isinstance(value, bytes):
        yield [b"SET", key, value]
    elif isinstance(value, list):
        if not all(isinstance(item, bytes) for item in value):
            raise ValueError("a list in a list")
        if value:
            yield [b"RPUSH", key, *value]
    elif any(isinstance(item, dict) for item in value.values()):
        yield from _tree(key, value)
    elif not all(isinstance(item, bytes) for item in value.values()):
        raise ValueError("a list in a dict")
    elif value:
        yield [b"HSET", key, *(word for pair in value.items() for word in pair)]


def _tree(path: bytes, node: dict[bytes, Any]) -> Iterator[list[bytes]]:
    children = {name: item for name, item in node.items() if isinstance(item, dict)}
    attributes = [(name, item) for name, item in node.items() if not isinstance(item, dict)]
    if not all(isinstance(item, bytes) for _, item in attributes):
        raise ValueError("a list in a dict")
    yield [b"TMK", path, *(word for pair in attributes for word in pair)]
    for name, child in children.items():
        yield from _tree(path + b"/" + name, child)


def _meta(value: Value | None, name: str) -> Meta:
    """Raises UsageError."""
    numbers = []
    for field in (b"index", b"term"):
        text = value.get(field) if isinstance(value, dict) else None
        if not isinstance(text, bytes) or not re.fullmatch(rb"[0-9]{1,19}", text) or not 1 <= int(text) <= INDEX_MAX:
            raise UsageError(f"{name}: no {field.decode()} from 1 to 2**62 in _META_")
        numbers.append(int(text))
    return Meta(*numbers)


def _expiries(value: Value, name: str) -> Iterator[tuple[bytes, int]]:
    """(key, milliseconds of Unix time). Raises UsageError."""
    if not isinstance(value, dict):
        raise UsageError(f"{name}: ttl is not a dict")
    for key, when in value.items():
        try:
            if not isinstance(when, bytes):
                raise TypeError("not a number")
            when_ms = int(float(when) * 1000)
            if not 0 < when_ms <= EXPIRY_MS_MAX:
                raise ValueError("out of range")
        except (ValueError, TypeError, OverflowError):
            raise UsageError(f"{name}: the ttl of {key[:40]!r} is not a time") from None
        yield key, when_ms


# --- converting -------------------------------------------------------------------------------------------------------


class _Writer:
    """Runs commands on a batch, as one entry."""

    def __init__(self, store: KvStore, name: str) -> None:
        self._batch = store.batch()
        self._batch.entry_bytes_max = sys.maxsize  # no entry: a file, which is bounded otherwise
        self._name = name
        self._table = builtin_table()
        self.stamp = clock.wall_ms()
        self._batch.begin(1, self.stamp, 0)
        self._context = Context(self._batch, self._batch, now=self.stamp, index=1)

    def run(self, argv: list[bytes]) -> None:
        self._batch.savepoint()
        try:
            self._table.find(argv).run(self._context, argv)
        except CommandError as error:
            raise UsageError(f"{self._name}: key {argv[1][:40]!r} cannot be stored: {error}") from None

    def commit(self, meta: Meta) -> None:
        self._batch.commit(meta.index, meta.term, self.stamp, 0)


def _read(path: Path) -> tuple[str, str]:
    """(text, digest of the file). Raises UsageError, StorageError."""
    with guarded(path):
        if os.path.getsize(path) > FILE_BYTES_MAX:
            raise UsageError(f"{path}: a checkpoint of pyraft of more than {FILE_BYTES_MAX >> 20} MiB is not read")
        data = path.read_bytes()
    try:
        return data.decode("utf-8"), blake2b(data, digest_size=32).hexdigest()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} at byte {error.start}: not UTF-8 text") from None


def digest(path: Path) -> str:
    """What identifies this file. Raises UsageError, StorageError."""
    return _read(path)[1]


def _store(parser: Parser, writer: _Writer, name: str, progress: Callable[[int], object]) -> Meta:
    special: dict[bytes, Value] = {}
    for number, (key, value) in enumerate(parser.pairs()):
        if number % PROGRESS_KEYS == 0:
            progress(parser.place)
        if key in (b"ttl", b"_META_"):
            special[key] = value
        elif key in _ZOOKEEPER:
            log.warning("%s: %s is left out: raftdb does not speak ZooKeeper's protocol", name, key.decode())
        else:
            try:
                for argv in commands_of(key, value):
                    writer.run(argv)
            except ValueError as error:
                raise UsageError(f"{name}: key {key[:40]!r} holds {error}, which raftdb has no form for") from None
    for key, when_ms in _expiries(special.get(b"ttl", {}), name):
        writer.run([b"PEXPIREAT", key, b"%d" % when_ms])
    return _meta(special.get(b"_META_"), name)


@contextlib.contextmanager
def converted(
    path: Path, work: Path, node_id: str, progress: Callable[[int], object] = lambda _: None
) -> Iterator[tuple[Path, str]]:
    """(a snapshot of raftdb with what the checkpoint at `path` holds, digest of `path`).

    The snapshot stands in the directory `work`, which is removed at the end, whatever an earlier attempt left in it
    included. Raises UsageError, DiskFull, StorageError.
    """
    text, found = _read(path)
    shutil.rmtree(work, ignore_errors=True)
    try:
        with guarded(work):
            work.mkdir(mode=0o700, parents=True)
        store = KvStore.open(work / "kv", None)
        try:
            writer = _Writer(store, path.name)
            writer.commit(_store(Parser(text, path.name), writer, path.name, progress))
            del text
            with store.view() as view:
                snapshot.write(view, work / "converted.dat", node_id=node_id, cluster_id="")
        finally:
            store.close(clean=False)
        yield work / "converted.dat", found
    finally:
        shutil.rmtree(work, ignore_errors=True)
