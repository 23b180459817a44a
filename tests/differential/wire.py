"""RESP replies as trees: read from a socket or from bytes, RESP2 and RESP3, with the bytes that they were made of."""

from __future__ import annotations

import io
import socket
from collections.abc import Sequence
from typing import Any, BinaryIO, NamedTuple

AGGREGATES = {b"*": 1, b"~": 1, b">": 1, b"%": 2}


class Reply(NamedTuple):
    """`kind` is the first byte; `value` bytes, or a list of Reply; None for a null."""

    kind: bytes
    value: Any
    raw: bytes

    @property
    def is_error(self) -> bool:
        return self.kind == b"-"

    def items(self) -> list[bytes]:
        return [item.value for item in self.value or ()]

    def __str__(self) -> str:
        return repr(self.raw)[1:]


def read_reply(stream: BinaryIO) -> Reply:
    """One reply. Raises EOFError at the end of the stream and ValueError for what is not RESP."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise EOFError(f"the stream ended in {line!r}")
    kind, text = line[:1], line[1:-2]
    if kind in AGGREGATES:
        if text == b"-1":
            return Reply(kind, None, line)
        parts = [read_reply(stream) for _ in range(int(text) * AGGREGATES[kind])]
        return Reply(kind, parts, line + b"".join(part.raw for part in parts))
    if kind in b"$=!":
        if text == b"-1":
            return Reply(kind, None, line)
        data = stream.read(int(text) + 2)
        return Reply(kind, data[:-2], line + data)
    if kind in b"+-:,#(_":
        return Reply(kind, None if kind == b"_" else text, line)
    raise ValueError(f"not RESP: {line!r}")


def parse_reply(data: bytes) -> Reply:
    """The one reply that these bytes are."""
    stream = io.BytesIO(data)
    reply = read_reply(stream)
    if stream.read(1):
        raise ValueError(f"more than one reply: {data!r}")
    return reply


def encode_command(argv: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(argv) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in argv)


class Client:
    """A connection over a Unix or TCP socket."""

    def __init__(self, address: str | tuple[str, int], timeout_s: float = 20.0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout_s)
        self.socket.connect(address)
        self.stream = self.socket.makefile("rb")

    def __call__(self, *argv: bytes) -> Reply:
        return self.pipeline([argv])[0]

    def pipeline(self, commands: Sequence[Sequence[bytes]]) -> list[Reply]:
        self.socket.sendall(b"".join(encode_command(argv) for argv in commands))
        return [read_reply(self.stream) for _ in commands]

    def close(self) -> None:
        self.stream.close()
        self.socket.close()
