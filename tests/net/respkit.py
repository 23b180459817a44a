"""RESP for tests: an encoder of requests, a slow and obvious parser to compare with, and streams to feed both."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from hypothesis import strategies as st

from raftdb.errors import ProtocolError
from raftdb.net.resp import ARG_OVERHEAD_BYTES, Limits, Parser, split_words

CRLF = b"\r\n"


def command(*args: bytes) -> bytes:
    """A request as every client library sends it."""
    return b"*%d\r\n" % len(args) + b"".join(b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args)


def run(stream: bytes, cuts: Iterable[int], limits: Limits) -> tuple[list[list[bytes]], str | None]:
    """Feed a parser the stream in pieces; every command it finds, and its error."""
    parser = Parser(limits)
    found: list[list[bytes]] = []
    places = [0, *sorted(cuts), len(stream)]
    for start, stop in itertools.pairwise(places):
        commands = parser.feed(stream[start:stop])
        while commands:
            found += commands
            commands = [] if limits.authenticated else parser.feed(b"")
    return found, None if parser.error is None else str(parser.error)


class Cut(Exception):
    """The stream ends inside a command."""


def reference(stream: bytes, limits: Limits) -> tuple[list[list[bytes]], str | None]:
    """What the grammar says about the whole stream, header by header, with no state and no speed."""
    found: list[list[bytes]] = []
    at = 0
    try:
        while at < len(stream):
            argv, at = _array(stream, at, limits) if stream[at : at + 1] == b"*" else _line(stream, at, limits)
            if argv:
                found.append(argv)
    except Cut:
        pass
    except ProtocolError as error:
        return found, str(error)
    return found, None


def _header(stream: bytes, at: int, what: str) -> tuple[int, int]:
    end = stream[: at + 32].find(CRLF, at)
    if end < 0:
        if len(stream) >= at + 32:
            raise ProtocolError(f"too big {what} count string")
        raise Cut
    digits = stream[at + 1 : end]
    return (int(digits) if re.fullmatch(rb"0|[1-9]\d{0,18}", digits) else -1), end + 2


def _array(stream: bytes, at: int, limits: Limits) -> tuple[list[bytes], int]:
    count, at = _header(stream, at, "mbulk")
    if not 1 <= count < 2**31:
        raise ProtocolError("invalid multibulk length")
    if count > limits.args_max:
        raise ProtocolError(f"{'invalid' if limits.authenticated else 'unauthenticated'} multibulk length")
    size = count * ARG_OVERHEAD_BYTES
    if size > limits.query_bytes_max:
        raise ProtocolError("too big query")
    argv = []
    for _ in range(count):
        if at >= len(stream):
            raise Cut
        if stream[at] != ord("$"):
            shown = chr(stream[at]) if 32 <= stream[at] < 127 else f"\\x{stream[at]:02x}"
            raise ProtocolError(f"expected '$', got '{shown}'")
        length, at = _header(stream, at, "bulk")
        if length < 0 or length > limits.bulk_bytes_max:
            word = "unauthenticated" if length > 0 and not limits.authenticated else "invalid"
            raise ProtocolError(f"{word} bulk length")
        size += length
        if size > limits.query_bytes_max:
            raise ProtocolError("too big query")
        if at + length + 2 > len(stream):
            raise Cut
        if stream[at + length : at + length + 2] != CRLF:
            raise ProtocolError("expected CRLF after an argument")
        argv.append(stream[at : at + length])
        at += length + 2
    return argv, at


def _line(stream: bytes, at: int, limits: Limits) -> tuple[list[bytes], int]:
    end = stream.find(b"\n", at)
    if end < 0 or end - at > limits.inline_bytes_max:
        if len(stream) - at > limits.inline_bytes_max:
            raise ProtocolError("too big inline request")
        raise Cut
    argv = split_words(stream[at:end])
    if argv and argv[0].lower() in (b"post", b"host:"):
        raise ProtocolError("this is not an HTTP server")
    return argv, end + 1


# --- streams --------------------------------------------------------------------------------------------------------

#: Arguments that try to look like something else.
arguments = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"", b"$3", b"*1", CRLF, b"a\r\nb", b"\r\n$1\r\nx\r\n", b"SET", b"+OK", b"*3\r\n$3\r\nSET\r\n"]),
)
commands = st.lists(arguments, min_size=1, max_size=12).map(lambda args: command(*args))
lines = st.one_of(
    st.sampled_from(
        [b"PING\r\n", b"\n", b"\r\n", b"  SET  a 'b c'\r\n", b'SET a "\\x00\\n\\q"\n', b'GET "x\n', b"\r\r\n"]
    ),
    st.binary(max_size=30).map(lambda text: text + b"\n"),
)
#: Each is a mistake, or the start of one.
mistakes = st.sampled_from(
    [
        b"*-1\r\n",
        b"*0\r\n",
        b"*01\r\n$1\r\na\r\n",
        b"*+1\r\n$1\r\na\r\n",
        b"*1_0\r\n",
        b"* 1\r\n",
        b"*\r\n",
        b"*1\n$1\na\n",
        b"*1\r\n$-1\r\n",
        b"*1\r\n$-5\r\n",
        b"*1\r\n$1_000\r\n",
        b"*1\r\n$+5\r\nhello\r\n",
        b"*1\r\n$ 1\r\na\r\n",
        b"*1\r\n$05\r\nhello\r\n",
        b"*1\r\n$" + b"9" * 5000 + b"\r\n",
        b"*" + b"1" * 5000 + b"\r\n",
        b"*1\r\n$3\r\nabcXX",
        b"*1\r\n$3\r\nabc\n\r",
        b"*1\r\n+GET\r\n",
        b"*1\r\n:5\r\n",
        b"*1\r\n*1\r\n$1\r\na\r\n",
        b"*1\r\n=5\r\ntxt:a\r\n",
        b"*1\r\n(12\r\n",
        b"*1\r\n\x00\r\n",
        b"*2147483648\r\n",
        b"*1048577\r\n",
        b"*100000000\r\n",
        b"*99999999999999999999\r\n",
        b"*1\r\n$16777217\r\n",
        b"*1\r\n$99999999999\r\n",
        b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"x" * 70_000,
    ]
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Requests of all kinds, one after the other, possibly with a few bytes changed."""
    pieces = draw(st.lists(st.one_of(commands, commands, commands, lines, mistakes), max_size=8))
    stream = bytearray(b"".join(pieces))
    for _ in range(draw(st.integers(0, 2))):
        if stream:
            place = draw(st.integers(0, len(stream) - 1))
            if draw(st.booleans()):
                stream[place] = draw(st.sampled_from(b"\r\n*$0123456789-+\x00aZ "))
            else:
                del stream[place]
    return bytes(stream)
