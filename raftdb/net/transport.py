"""The little that peers need of a socket, so that something else (TLS) can stand in its place; and name look-ups.

A transport never blocks. Whoever adds TLS writes a class with these five members and gives PeerNet two functions that
make it from a connected and from an accepted socket; no other module touches peer sockets.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import socket
import threading
from typing import Final, NamedTuple, Protocol

from raftdb.errors import PeerError

log = logging.getLogger("raftdb.peers")

#: Linux: a socket is writable only while less than this many bytes wait unsent in the kernel, so that a heartbeat does
#: not stand behind megabytes of a bulk transfer.
_TCP_NOTSENT_LOWAT: Final = 25
_NOTSENT_BYTES: Final = 256 * 1024
_LOOKUPS_MAX: Final = 256
_RESOLVER_THREADS: Final = 2


class Endpoint(NamedTuple):
    """A numeric socket address: what a name has come to."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Transport(Protocol):
    """A non-blocking stream."""

    def fileno(self) -> int: ...

    def receive(self, bytes_max: int) -> bytes | None:
        """None: nothing there now. b"": the other side has closed. Raises OSError."""

    def send(self, data: bytes | memoryview) -> int:
        """How many bytes were taken, 0 when none now. Raises OSError."""

    def connect_error(self) -> str:
        """Why the connect has failed, "" when it has not. Asked when the socket is writable for the first time."""

    def finish(self) -> None:
        """No more will be sent; what is under way still arrives."""

    def close(self) -> None: ...


class TcpTransport:
    """Plain TCP."""

    __slots__ = ("_sock",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, _NOTSENT_BYTES)
        except OSError:
            log.debug("this system has no TCP_NOTSENT_LOWAT")
        self._sock = sock

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self, bytes_max: int) -> bytes | None:
        try:
            return self._sock.recv(bytes_max)
        except (BlockingIOError, InterruptedError):
            return None

    def send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0

    def connect_error(self) -> str:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return _reason(code) if code else ""

    def finish(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            log.debug("the peer was gone before the connection was finished")

    def close(self) -> None:
        self._sock.close()


def dial(endpoint: Endpoint, source_host: str = "") -> TcpTransport:
    """Starts to connect; the socket is writable when that has ended, well or badly. Raises OSError.

    `source_host`: numeric address to connect from ("" = the system chooses).
    """
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        transport = TcpTransport(sock)
        if source_host:
            sock.bind((source_host, 0))
        code = sock.connect_ex((endpoint.host, endpoint.port))
        if code not in (0, errno.EINPROGRESS, errno.EAGAIN):
            raise OSError(code, _reason(code))
    except OSError:
        sock.close()
        raise
    return transport


def listen(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A listening socket that does not block. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def split_address(address: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT. Raises PeerError."""
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not host or not digits or not 0 < int(port) < 65_536:
        raise PeerError(f"not an address: {address!r}")
    return host, int(port)


def numeric(host: str) -> bool:
    """Is this an IP address rather than a name?"""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return True
    return False


class Answer(NamedTuple):
    """What a look-up has come to."""

    address: str
    endpoints: tuple[Endpoint, ...]
    error: str  # "" = fine


class Resolver:
    """Looks names up in helper threads; a name server that hangs holds up names, never the driver.

    Asked again for a name that is being looked up it does nothing; answers are taken with `answers()`.
    """

    def __init__(self) -> None:
        self._asked: set[str] = set()
        self._questions: queue.Queue[str | None] = queue.Queue(_LOOKUPS_MAX)
        self._answers: queue.Queue[Answer] = queue.Queue()
        self._threads: list[threading.Thread] = []

    def ask(self, address: str) -> None:
        """Numeric addresses are answered at once, without a thread. Raises PeerError for what is no address."""
        if address in self._asked:
            return
        host, port = split_address(address)
        if numeric(host):
            self._answers.put(Answer(address, (Endpoint(host, port),), ""))
            return
        try:
            self._questions.put_nowait(address)
        except queue.Full:
            return
        self._asked.add(address)
        if len(self._threads) < _RESOLVER_THREADS:
            thread = threading.Thread(target=self._run, name="raftdb-names", daemon=True)
            self._threads.append(thread)
            thread.start()

    def answers(self) -> list[Answer]:
        found: list[Answer] = []
        while True:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                return found
            self._asked.discard(answer.address)
            found.append(answer)

    def close(self) -> None:
        """Threads end after the look-up they are in; they are not waited for."""
        for _ in self._threads:
            try:
                self._questions.put_nowait(None)
            except queue.Full:
                return

    def _run(self) -> None:
        while (address := self._questions.get()) is not None:
            self._answers.put(look_up(address))


def look_up(address: str) -> Answer:
    """Blocks. Every address that the name stands for, without repetition, in the order of the system's resolver."""
    host, port = split_address(address)
    try:
        rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Answer(address, (), f"name look-up failed ({error})")
    endpoints = dict.fromkeys(Endpoint(str(row[4][0]), port) for row in rows)
    return Answer(address, tuple(endpoints), "")


def _reason(code: int) -> str:
    return os.strerror(code).lower()
