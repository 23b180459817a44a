"""A server with a handler that a test can steer, and a client that says what it sees."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hiredis

from raftdb.net.resp import encode
from raftdb.net.server import Connection, Loop, Server, ServerLimits, WorkerPool
from tests.net.respkit import command

PATIENCE_S = 20.0


def wait_for(condition: Callable[[], Any], what: str = "") -> Any:
    """Poll until the condition holds; fails the test when it does not."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.002)
    return value


class Steered:
    """A handler with a few commands; those in LATER are kept in `held` until the test answers them.

    PING, ECHO x, BIG n (n bytes), AUTH word, QUIT; WORK x (echoed by a worker); LATER x (held for the test).
    """

    def __init__(self, pool: WorkerPool | None = None, password: bytes = b"") -> None:
        self.pool = pool
        self.password = password
        self.held: list[tuple[Connection, bytes, int]] = []  # connection, argument, ticket
        self.batches: list[int] = []  # commands per on_commands
        self.threads: set[int] = set()
        self.opened: list[Connection] = []
        self.ended: list[Connection] = []
        self.closed: list[Connection] = []
        self.turns = 0

    def on_open(self, conn: Connection) -> None:
        self.opened.append(conn)
        conn.session.authenticated = not self.password

    def on_eof(self, conn: Connection) -> None:
        self.ended.append(conn)

    def on_close(self, conn: Connection) -> None:
        self.closed.append(conn)

    def end_of_turn(self, loop: Loop) -> None:
        self.turns += 1

    def on_commands(self, conn: Connection, argvs: list[list[bytes]]) -> int:
        self.batches.append(len(argvs))
        self.threads.add(threading.get_ident())
        for taken, argv in enumerate(argvs, 1):
            if not self.command(conn, argv):
                return taken
            if conn.congested:
                return taken
        return len(argvs)

    def command(self, conn: Connection, argv: list[bytes]) -> bool:
        """Answer it; False when the answer comes later, so that nothing behind it may be answered yet."""
        name = argv[0].upper()
        if name == b"AUTH":
            conn.session.authenticated = argv[1] == self.password
            conn.reply("OK" if conn.session.authenticated else 0)
        elif not conn.session.authenticated:
            conn.reply("NOAUTH")
        elif name == b"ECHO":
            conn.reply(argv[1])
        elif name == b"BIG":
            conn.reply(b"x" * int(argv[1]))
        elif name == b"QUIT":
            conn.reply("OK")
            conn.close_after_flush()
            return False
        elif name == b"WORK":
            assert self.pool is not None
            if not self.pool.submit(lambda: conn.reply(argv[1])):
                conn.reply("BUSY")
                return True
            return False
        elif name == b"LATER":
            self.held.append((conn, argv[1], conn.ticket))
            return False
        else:
            conn.reply("PONG")
        return True


class Client:
    """A blocking client; replies as Python values."""

    def __init__(self, port: int, *, receive_bytes: int = 0, source: str = "") -> None:
        self.sock = socket.socket()
        if source:
            self.sock.bind((source, 0))
        if receive_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(("127.0.0.1", port))
        self.reader = hiredis.Reader(notEnoughData=False)

    def send(self, *args: bytes | str) -> None:
        self.sock.sendall(command(*[arg.encode() if isinstance(arg, str) else arg for arg in args]))

    def read(self) -> Any:
        """The next reply; EOFError when the server has closed."""
        while (reply := self.reader.gets()) is False:
            data = self.sock.recv(65_536)
            if not data:
                raise EOFError
            self.reader.feed(data)
        return reply

    def ask(self, *args: bytes | str) -> Any:
        self.send(*args)
        return self.read()

    def rest(self) -> bytes:
        """Every byte until the server closes, also when it does so with a reset."""
        got = b""
        try:
            while data := self.sock.recv(65_536):
                got += data
        except ConnectionResetError:
            got += b"<reset>"
        return got

    @property
    def gone(self) -> bool:
        """The server has closed (reads and drops what it has sent)."""
        self.sock.settimeout(0)
        try:
            while self.sock.recv(65_536):
                pass
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            self.sock.settimeout(PATIENCE_S)
        return True

    def reset(self) -> None:
        """Close with RST: the server learns at once, whatever is under way."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Running:
    """A server whose loop 0 is turned by a thread of this object."""

    def __init__(self, handler: Any, server: Server, port: int) -> None:
        self.handler = handler
        self.server = server
        self.port = port
        self.failures: list[BaseException] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()

    def _drive(self) -> None:
        try:
            while not self._stop.is_set():
                self.server.loop.turn(0.05)
            self.server.close()
        except BaseException as error:
            self.failures.append(error)
            raise

    def client(self, **kwargs: Any) -> Client:
        return Client(self.port, **kwargs)

    def call(self, fn: Callable[[], Any]) -> Any:
        """Run fn in loop 0's thread and return what it returns."""
        done = threading.Event()
        result: list[Any] = []

        def run() -> None:
            result.append(fn())
            done.set()

        self.server.loop.post(run)
        assert done.wait(PATIENCE_S)
        return result[0]

    def stop(self) -> None:
        self._stop.set()
        self.server.loop.wake()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert not self.failures


@contextmanager
def running(
    handler: Any = None, *, io_threads: int = 0, limits: ServerLimits | None = None, **kwargs: Any
) -> Iterator[Running]:
    """A server on a free port, turned by a thread, closed at the end; fails the test when a loop failed."""
    handler = handler or Steered()
    failures: list[tuple[str, BaseException]] = []
    server = Server(
        handler, io_threads=io_threads, limits=limits, on_failure=lambda *args: failures.append(args), **kwargs
    )
    port = server.listen("127.0.0.1", 0)
    server.start()
    host = Running(handler, server, port)
    try:
        yield host
    finally:
        host.stop()
        assert not failures


def encoded(value: Any) -> bytes:
    return encode(value, 2)
