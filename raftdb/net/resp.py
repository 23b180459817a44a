r"""RESP, both directions, as pure functions of bytes: no socket, nothing remembered but the unfinished command.

Requests
--------
    request  = array | inline
    array    = "*" count CRLF count*( "$" length CRLF bytes CRLF )      count >= 1
    inline   = words [CR] LF                                            as telnet sends it; quoting as in Redis
    count, length = "0" | digit without a leading zero, more digits     nothing else: no sign, blank, underscore

Python's int() is no protocol parser (it takes `1_000`, ` 12 ` and `+5`), so a length is matched against digits first
and its number of digits is bounded. Where Redis has an error text for a mistake, the same text is used. Three things
are stricter than in Redis: `*0` and `*-1` are errors instead of nothing, the CRLF after an argument is checked, and so
is the whole size of one command.

The parser has one grammar and two speeds, and the result never depends on how the stream was cut:

- `_walk`: chunks that hold whole commands in their canonical form are split at CRLF, once, in C. A command is the
  next 2n + 1 parts when the parts at odd places are exactly `$` and the length of the part behind them. An argument
  that holds a CRLF, a long argument or a cut command fails that comparison, and from there on
- `_step` goes from header to header, as the grammar says.

Figures (one core, SET with 20 and 100 bytes, per command): split 0.41-0.56 us in pipelines, 0.9 us alone; header by
header 2 us. hiredis' Reader takes 0.17 us and 0.4 us, but it is a parser for replies: it takes `+GET`, `(12`, `|1`
for arguments, any two bytes for the CRLF behind one, and reserves 8 bytes per element that a header merely promises.
To prove that what it returned is what was sent costs 0.35 us more, so it serves as the oracle of the tests instead.

Replies
-------
One reply model (raftdb/types.py), two protocols. `encode` takes the usual replies first; a long array gives the
interpreter up between slices.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from raftdb.clock import Breather
from raftdb.errors import Bug, CommandError, ProtocolError
from raftdb.types import NULL_ARRAY, Encoded, Pairs, Push, Reply, ReplySet, Verbatim

MIB: Final = 1024 * 1024
BULK_BYTES_HARD_MAX: Final = 64 * MIB
ARG_OVERHEAD_BYTES: Final = 48  # what an argument costs in memory besides its bytes; counts towards query_bytes_max


class Limits(NamedTuple):
    """What a parser accepts."""

    args_max: int = 1_048_576  # arguments of one command
    bulk_bytes_max: int = 16 * MIB  # one argument
    inline_bytes_max: int = 64 * 1024  # one inline line
    query_bytes_max: int = 128 * MIB  # one command in all, ARG_OVERHEAD_BYTES per argument included
    authenticated: bool = True  # False: one command per feed(), and Redis' texts for strangers


UNAUTHENTICATED: Final = Limits(10, 16 * 1024, 16 * 1024, 64 * 1024, authenticated=False)
AUTHENTICATED: Final = Limits()

Command = list[bytes]

_CRLF: Final = b"\r\n"
_STAR: Final = 0x2A
_DOLLAR: Final = 0x24
_CR: Final = 0x0D
_LF: Final = 0x0A
_HEADER_BYTES_MAX: Final = 32  # of a count or a length, with its first byte and CRLF
_number: Final = re.compile(rb"0|[1-9][0-9]{0,18}").fullmatch
_blank_lines: Final = re.compile(rb"(?:\r?\n)*+").match
_SPACE: Final = b" \t\n\v\f\r"

_LENGTHS: Final = [b"$%d" % n for n in range(4096)]
_length_line: Final = _LENGTHS.__getitem__
_lengths: Final = {b"$%d\r\n" % n: n for n in range(4096)}.get
_counts: Final = {b"*%d" % n: n for n in range(1, 1025)}.get


class Parser:
    """Bytes in, commands out; one per connection.

    `feed` never raises for what a client sent: commands before a mistake are still due their answers. It sets `error`
    (a ProtocolError, once and for all) and returns the commands that came before.
    """

    __slots__ = ("_argv", "_bulk", "_bytes", "_missing", "_need", "_tail", "_walk_bytes_max", "error", "idle", "limits")

    def __init__(self, limits: Limits = UNAUTHENTICATED) -> None:
        self.error: ProtocolError | None = None
        self.idle = True  # nothing unfinished is kept, and there was no error
        self._tail = bytearray()  # received, not parsed
        self._need = 0  # no use in looking at _tail before it has so many bytes
        self._argv: Command = []  # arguments so far of the command under way
        self._missing = 0  # arguments that it still needs; 0: between two commands
        self._bulk = -1  # length of the argument under way; -1: its header comes next
        self._bytes = 0  # size of the command under way, as counted for query_bytes_max
        self.set_limits(limits)

    def set_limits(self, limits: Limits) -> None:
        """Between two feeds (after AUTH)."""
        self.limits = limits
        # Chunks up to this size cannot break the limits on bytes, so that _walk need not look at them.
        self._walk_bytes_max = min(limits.bulk_bytes_max, limits.query_bytes_max // 16) if limits.authenticated else 0

    @property
    def pending_bytes(self) -> int:
        """Memory held for a command that is not whole."""
        return len(self._tail) + self._bytes

    def feed(self, data: bytes) -> list[Command]:
        """Commands that are complete now; none after an error.

        While not authenticated: at most one, since it may change the limits. feed(b"") goes on.
        """
        commands: list[Command] = []
        at = 0
        if self.idle:
            if len(data) <= self._walk_bytes_max and data[:1] == b"*":
                at = self._walk(data, commands)
                if at == len(data):
                    return commands
        elif self.error is not None:
            return commands
        else:
            self._tail += data
            if len(self._tail) < self._need:
                return commands
            data = bytes(self._tail)
            self._tail = bytearray()
        try:
            self._parse(data, at, commands)
            self.idle = not (self._tail or self._missing)
        except ProtocolError as error:
            self.error = error
            self.idle = False
            self._tail = bytearray()
            self._argv = []
            self._bytes = 0
        return commands

    def _parse(self, data: bytes, at: int, commands: list[Command]) -> None:
        """Everything in `data` from `at` on, where the last feed stopped or _walk did."""
        end = len(data)
        authenticated = self.limits.authenticated
        if self._missing:
            at = self._step(data, at, commands)
            if commands and at < end and end - at <= self._walk_bytes_max and data[at] == _STAR:
                at += self._walk(data[at:], commands)
        while at < end and (authenticated or not commands):
            before = at
            at = self._step(data, at, commands)
            if self._missing or at == before:
                break
        if at < end:
            self._tail += data[at:]

    # --- whole commands at once -------------------------------------------------------------------------------------

    def _walk(self, data: bytes, commands: list[Command]) -> int:
        """Take canonical commands from the front of `data` for as long as that goes; return the bytes taken."""
        parts = data.split(_CRLF)
        count = _counts(parts[0])
        if count is None or count > self.limits.args_max:
            return 0
        last = len(parts) - 1  # the part behind the last CRLF: empty, or the start of something
        width = 2 * count + 1
        try:
            if last == width:
                argv = parts[2:last:2]
                if list(map(_length_line, map(len, argv))) == parts[1:last:2]:
                    commands.append(argv)
                    return len(data) - len(parts[last])
                return 0
            taken = self._columns(parts, last // width, width, commands) if last > width else 0
            taken = self._rows(parts, taken, last, commands)
        except IndexError:  # an argument longer than the table of lengths
            taken = self._rows(parts, 0, last, commands)
        if taken == last:
            return len(data) - len(parts[last])
        return sum(map(len, parts[:taken])) + 2 * taken

    def _columns(self, parts: list[bytes], rows: int, width: int, commands: list[Command]) -> int:
        """Commands that all have the same number of arguments, argument by argument. All or nothing: parts taken."""
        end = rows * width
        if parts[0:end:width].count(parts[0]) != rows:
            return 0
        columns = []
        for place in range(2, width, 2):
            column = parts[place:end:width]
            if list(map(_length_line, map(len, column))) != parts[place - 1 : end : width]:
                return 0
            columns.append(column)
        commands += map(list, zip(*columns, strict=True))
        return end

    def _rows(self, parts: list[bytes], at: int, last: int, commands: list[Command]) -> int:
        """Command by command, from part `at` on, up to the first that is cut or not canonical: parts taken."""
        args_max = self.limits.args_max
        while at < last:
            count = _counts(parts[at])
            if count is None or count > args_max:
                break
            end = at + 1 + 2 * count
            if end > last:
                break
            argv = parts[at + 2 : end : 2]
            try:
                if list(map(_length_line, map(len, argv))) != parts[at + 1 : end : 2]:
                    break
            except IndexError:
                break
            commands.append(argv)
            at = end
        return at

    # --- header by header -------------------------------------------------------------------------------------------

    def _step(self, data: bytes, at: int, commands: list[Command]) -> int:
        """Go on with, or begin, one command at `at`; return where it stopped, keeping the rest when it is cut."""
        self._need = 0
        if not self._missing:
            if data[at] != _STAR:
                return self._inline(data, at, commands)
            at = self._count(data, at)
            if not self._missing:
                return at
        at = self._arguments(data, at)
        if self._missing:
            self._tail += data[at:]
            return len(data)
        commands.append(self._argv)
        self._argv = []
        self._bytes = 0
        return at

    def _arguments(self, data: bytes, at: int) -> int:
        """Arguments of the command under way, as many as are whole; returns what is behind them."""
        append = self._argv.append
        bulk = self._bulk
        end = len(data)
        while self._missing:
            if bulk < 0:
                behind = data.find(_CRLF, at, at + _HEADER_BYTES_MAX) + 2
                bulk = self._length(data, at, behind)
                if bulk < 0:
                    break
                at = behind
            stop = at + bulk
            if end < stop + 2:
                self._need = bulk + 2
                break
            if data[stop] != _CR or data[stop + 1] != _LF:
                raise ProtocolError("expected CRLF after an argument")
            append(data[at:stop])
            self._missing -= 1
            bulk = -1
            at = stop + 2
        self._bulk = bulk
        return at

    def _count(self, data: bytes, at: int) -> int:
        """`*count`: sets _missing and returns what is behind it, or leaves both when the line is cut."""
        end = data.find(_CRLF, at, at + _HEADER_BYTES_MAX)
        if end < 0:
            if len(data) - at >= _HEADER_BYTES_MAX:
                raise ProtocolError("too big mbulk count string")
            return at
        count = _strict_int(data[at + 1 : end])
        if count < 1 or count > 0x7FFFFFFF:
            raise ProtocolError("invalid multibulk length")
        if count > self.limits.args_max:
            if not self.limits.authenticated:
                raise ProtocolError("unauthenticated multibulk length")
            raise ProtocolError("invalid multibulk length")
        self._missing = count
        self._bytes = ARG_OVERHEAD_BYTES * count  # what a command promises counts, not what has come
        if self._bytes > self.limits.query_bytes_max:
            raise ProtocolError("too big query")
        return end + 2

    def _length(self, data: bytes, at: int, behind: int) -> int:
        """`$length` up to `behind`, which is 1 when its CRLF was not found; -1 when the line is cut."""
        length = _lengths(data[at:behind])
        if length is None:
            if at >= len(data):
                return -1
            if data[at] != _DOLLAR:
                raise ProtocolError(f"expected '$', got '{_printable(data[at])}'")
            if behind < 2:
                if len(data) - at >= _HEADER_BYTES_MAX:
                    raise ProtocolError("too big bulk count string")
                return -1
            length = _strict_int(data[at + 1 : behind - 2])
        if length < 0 or length > self.limits.bulk_bytes_max:
            if length > 0 and not self.limits.authenticated:
                raise ProtocolError("unauthenticated bulk length")
            raise ProtocolError("invalid bulk length")
        self._bytes += length
        if self._bytes > self.limits.query_bytes_max:
            raise ProtocolError("too big query")
        return length

    def _inline(self, data: bytes, at: int, commands: list[Command]) -> int:
        """One line of words; blank lines are nothing. Returns `at` when the line is cut."""
        blank = _blank_lines(data, at)
        at = blank.end() if blank else at
        if at >= len(data) or data[at] == _STAR:
            return at
        line_max = self.limits.inline_bytes_max
        end = data.find(b"\n", at, at + line_max + 1)
        if end < 0:
            if len(data) - at > line_max:
                raise ProtocolError("too big inline request")
            self._tail += data[at:]
            return len(data)
        argv = split_words(data[at:end])
        if argv:
            if argv[0].lower() in (b"post", b"host:"):
                raise ProtocolError("this is not an HTTP server")
            commands.append(argv)
        return end + 1


def _strict_int(digits: bytes) -> int:
    """The number, or -1 when the bytes are not plain decimal digits of at most 19 places."""
    return int(digits) if _number(digits) else -1


def _printable(byte: int) -> str:
    return chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}"


# --- inline words ---------------------------------------------------------------------------------------------------

_ESCAPES: Final = {0x6E: 10, 0x72: 13, 0x74: 9, 0x62: 8, 0x61: 7}  # n r t b a
_hex_pair: Final = re.compile(rb"[0-9a-fA-F]{2}").fullmatch
_plain_word: Final = re.compile(rb"[^ \t\n\v\f\r\"']+").match


def split_words(line: bytes) -> Command:
    r"""Words of an inline line, as sdssplitargs of Redis splits them.

    "double quotes" know \n \r \t \b \a \xHH and \ before any other byte; 'single quotes' know \' only; behind a closing
    quote must be a blank. A line ends at its first NUL. Raises ProtocolError (unbalanced quotes).
    """
    nul = line.find(b"\0")
    if nul >= 0:
        line = line[:nul]
    if b'"' not in line and b"'" not in line:
        return line.split()
    words: Command = []
    at, end = 0, len(line)
    while True:
        while at < end and line[at] in _SPACE:
            at += 1
        if at >= end:
            return words
        word = bytearray()
        at = _word(line, at, word)
        words.append(bytes(word))


def _word(line: bytes, at: int, word: bytearray) -> int:
    """One word, which may begin plain and go on quoted; returns what is behind it."""
    while at < len(line) and line[at] not in _SPACE:
        if line[at] == 0x22:
            return _behind_quote(line, _double_quoted(line, at + 1, word))
        if line[at] == 0x27:
            return _behind_quote(line, _single_quoted(line, at + 1, word))
        plain = _plain_word(line, at)
        assert plain is not None
        word += plain.group()
        at = plain.end()
    return at


def _behind_quote(line: bytes, at: int) -> int:
    if at < len(line) and line[at] not in _SPACE:
        raise ProtocolError("unbalanced quotes in request")
    return at


def _double_quoted(line: bytes, at: int, word: bytearray) -> int:
    """From behind the opening quote to behind the closing one."""
    end = len(line)
    while at < end:
        byte = line[at]
        if byte == 0x22:
            return at + 1
        if byte == 0x5C and at + 1 < end:
            if line[at + 1] == 0x78 and _hex_pair(line, at + 2, at + 4):
                word.append(int(line[at + 2 : at + 4], 16))
                at += 4
                continue
            at += 1
            byte = _ESCAPES.get(line[at], line[at])
        word.append(byte)
        at += 1
    raise ProtocolError("unbalanced quotes in request")


def _single_quoted(line: bytes, at: int, word: bytearray) -> int:
    """From behind the opening quote to behind the closing one."""
    end = len(line)
    while at < end:
        if line[at : at + 2] == b"\\'":
            at += 1
        elif line[at] == 0x27:
            return at + 1
        word.append(line[at])
        at += 1
    raise ProtocolError("unbalanced quotes in request")


# --- replies --------------------------------------------------------------------------------------------------------

_SLICE: Final = 256  # items encoded between two looks at the clock
_INTS: Final = [b":%d\r\n" % n for n in range(1024)]
_HEADS: Final = [b"$%d\r\n" % n for n in range(1024)]
_NULLS: Final = (b"$-1\r\n", b"_\r\n")  # RESP2, RESP3
_NULL_ARRAYS: Final = (b"*-1\r\n", b"_\r\n")
_BOOLS: Final = ((b":0\r\n", b":1\r\n"), (b"#f\r\n", b"#t\r\n"))
_clean: Final = str.maketrans("\r\n", "  ")


def encode(reply: Reply, protocol: int = 2) -> bytes:
    """A reply of raftdb.types for the wire. `protocol` is 2 or 3. Raises Bug for a type that no handler may return."""
    kind = type(reply)
    if kind is Encoded:
        return reply.data  # type: ignore[no-any-return]
    if kind is bytes:
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if reply is None:
        return _NULLS[protocol == 3]
    if kind is int:
        return _INTS[reply] if 0 <= reply < 1024 else b":%d\r\n" % reply
    if kind is list and len(reply) > 2 and set(map(type, reply)) == {bytes}:
        return _bulk_array(reply)
    parts: list[bytes] = []
    _encode(reply, protocol, parts, Breather())
    return b"".join(parts)


def encode_many(replies: Iterable[Reply], protocol: int = 2) -> bytes:
    """The replies of a pipeline, in order, as one piece."""
    return b"".join([encode(reply, protocol) for reply in replies])


def encode_error(text: str) -> bytes:
    """An error line. CR and LF in the text (which may quote the client) become blanks."""
    if "\r" in text or "\n" in text:
        text = text.translate(_clean)
    try:
        return b"-%b\r\n" % text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return b"-%b\r\n" % text.encode("utf-8", "replace")


def format_double(value: float) -> bytes:
    """As Redis 7.0 prints doubles: 17 significant digits, no trailing zeros, `inf`, `-inf`, `nan`."""
    return b"%.17g" % value


def _bulk_array(items: Sequence[bytes]) -> bytes:
    """An array of nothing but bulk strings, in slices."""
    breathe = Breather()
    parts = [b"*%d\r\n" % len(items)]
    for start in range(0, len(items), _SLICE):
        part = items[start : start + _SLICE]
        try:
            heads = list(map(_HEADS.__getitem__, map(len, part)))
        except IndexError:
            heads = [b"$%d\r\n" % len(item) for item in part]
        parts += chain.from_iterable(zip(heads, part, _ENDS, strict=False))
        breathe.now()
    return b"".join(parts)


_ENDS: Final = [_CRLF] * _SLICE

_Append = Callable[[Any, int, list[bytes], Breather], None]


def _encode(reply: Reply, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    """Append the pieces of any reply. Recursion is as deep as the handlers nest, which is no client's choice."""
    kind = type(reply)
    if kind is bytes:
        parts.append(b"$%d\r\n%b\r\n" % (len(reply), reply))
    elif reply is None:
        parts.append(_NULLS[protocol == 3])
    elif kind is int:
        parts.append(b":%d\r\n" % reply)
    else:
        encoder = _ENCODERS.get(kind) or _by_base(reply)
        encoder(reply, protocol, parts, breathe)


def _by_base(reply: Reply) -> _Append:
    """The encoder for a subclass (an error's, an enum's)."""
    for base in type(reply).__mro__:
        if base in _ENCODERS:
            return _ENCODERS[base]
    raise Bug(f"a handler returned {type(reply).__name__}, which is no reply")


def _items(items: Iterable[Reply], protocol: int, parts: list[bytes], breathe: Breather) -> None:
    for item in items:
        _encode(item, protocol, parts, breathe)
        breathe()


def _array(reply: Sequence[Reply], protocol: int, parts: list[bytes], breathe: Breather) -> None:
    parts.append(b"*%d\r\n" % len(reply))
    _items(reply, protocol, parts, breathe)


def _set(reply: ReplySet, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    parts.append((b"~%d\r\n" if protocol == 3 else b"*%d\r\n") % len(reply))
    _items(reply, protocol, parts, breathe)


def _push(reply: Push, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    parts.append((b">%d\r\n" if protocol == 3 else b"*%d\r\n") % len(reply))
    _items(reply, protocol, parts, breathe)


def _map(reply: dict[Any, Any], protocol: int, parts: list[bytes], breathe: Breather) -> None:
    parts.append(b"%%%d\r\n" % len(reply) if protocol == 3 else b"*%d\r\n" % (2 * len(reply)))
    _items(chain.from_iterable(reply.items()), protocol, parts, breathe)


def _pairs(reply: Pairs, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    if protocol == 3:
        _array(reply, protocol, parts, breathe)
        return
    parts.append(b"*%d\r\n" % (2 * len(reply)))
    _items(chain.from_iterable(reply), protocol, parts, breathe)


def _simple(reply: str, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    parts.append(b"+%b\r\n" % reply.translate(_clean).encode("utf-8", "replace"))


def _double(reply: float, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    text = format_double(reply)
    parts.append(b",%b\r\n" % text if protocol == 3 else b"$%d\r\n%b\r\n" % (len(text), text))


def _bool(reply: bool, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    parts.append(_BOOLS[protocol == 3][reply])


def _verbatim(reply: Verbatim, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    text = reply.text.encode("utf-8", "surrogateescape")
    if protocol == 3:
        parts.append(b"=%d\r\n%b:%b\r\n" % (len(text) + 4, reply.form[:3].encode("ascii"), text))
    else:
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))


def _bulk(reply: bytes | bytearray | memoryview, protocol: int, parts: list[bytes], breathe: Breather) -> None:
    data = bytes(reply)
    parts.append(b"$%d\r\n%b\r\n" % (len(data), data))


_ENCODERS: Final[dict[type, _Append]] = {
    bytes: _bulk,
    bytearray: _bulk,
    memoryview: _bulk,
    int: lambda reply, _protocol, parts, _breathe: parts.append(b":%d\r\n" % reply),
    bool: _bool,
    str: _simple,
    float: _double,
    list: _array,
    tuple: _array,
    dict: _map,
    ReplySet: _set,
    Pairs: _pairs,
    Push: _push,
    Verbatim: _verbatim,
    Encoded: lambda reply, _protocol, parts, _breathe: parts.append(reply.data),
    type(NULL_ARRAY): lambda _reply, protocol, parts, _breathe: parts.append(_NULL_ARRAYS[protocol == 3]),
    CommandError: lambda reply, _protocol, parts, _breathe: parts.append(encode_error(str(reply))),
}
