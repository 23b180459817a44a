"""As much of a Redis client as the benchmarks need: commands over one socket, replies parsed by hiredis."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Any, Final

import hiredis
from hiredis import ReplyError as ReplyError

_READ_BYTES: Final = 1 << 16
_TIMEOUT_S: Final = 60.0


def pack(words: tuple[bytes | str | int, ...]) -> bytes:
    """A command for the wire."""
    return hiredis.pack_command(words)  # type: ignore[arg-type,no-any-return,unused-ignore]  # its stub wants a 1-tuple


class Connection:
    """A blocking connection. Raises OSError when the server is gone, ReplyError for an error reply."""

    def __init__(self, port: int, timeout_s: float = _TIMEOUT_S) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._reader = hiredis.Reader()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def call(self, *words: bytes | str | int) -> Any:
        """One command, one reply."""
        return self.pipeline([words])[0]

    def pipeline(self, commands: Iterable[tuple[bytes | str | int, ...]]) -> list[Any]:
        """All commands in one go, then all replies. Raises the first error among them."""
        packed = [pack(command) for command in commands]
        self._socket.sendall(b"".join(packed))
        replies = [self._reply() for _ in packed]
        for reply in replies:
            if isinstance(reply, ReplyError):
                raise reply
        return replies

    def drain(self, *words: bytes | str | int) -> int:
        """One command whose reply is thrown away unparsed (the load should not be the parser); its size in bytes."""
        mark = b"raftdb-bench-mark"
        self._socket.sendall(pack(words) + pack(("ECHO", mark)))
        ending, tail, count = b"$%d\r\n%s\r\n" % (len(mark), mark), b"", 0
        while not tail.endswith(ending):
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("closed by the server")
            count += len(data)
            tail = (tail + data)[-len(ending) :]
        return count - len(ending)

    def info(self, section: str = "") -> dict[str, str]:
        """INFO as a dictionary."""
        text = self.call("INFO", section) if section else self.call("INFO")
        lines = (line.partition(":") for line in text.decode().splitlines() if ":" in line)
        return {name: value for name, _, value in lines}

    def _reply(self) -> Any:
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(_READ_BYTES)
            if not data:
                raise ConnectionResetError("closed by the server")
            self._reader.feed(data)
        return reply


def answers(port: int) -> bool:
    """Whether a server on this port answers PING."""
    with Connection(port, timeout_s=2) as connection:
        return bool(connection.call("PING") == b"PONG")
