"""The RESP server: loops, connections, the listener, and the pool for commands that may be long."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from raftdb.net.session import Session
from raftdb.types import Reply


class Handler(Protocol):
    """What a loop calls, always in the loop's own thread. (Signatures; the body of this module follows.)"""

    def on_connect(self, conn: Connection) -> None:
        """A client was accepted. The handler may set `conn.session` (authenticated, consistency), or refuse: `conn.refuse(error)`."""

    def on_commands(self, conn: Connection, argvs: list[list[bytes]]) -> int | None:
        """All commands of `conn` that are ready this turn, in order. Returns how many it takes (None: all).

        For each command it takes, exactly one answer is due, in order, now or later, from any thread: `conn.reply(r)`,
        or `conn.send(data, answered=n)` for n at once. Until the last of them is queued the connection is lent to the
        handler and gets no further commands. Commands not taken come again (with later ones behind them) when the
        answers due have been queued; taking 0 with nothing due parks the connection until `conn.resume()`.
        """

    def on_close(self, conn: Connection) -> None:
        """The client is gone: once per connection that on_connect accepted. Answers still due may be dropped."""

    def end_of_turn(self, loop: Loop) -> None:
        """Every ready connection of this turn has been read: hand what was gathered to the driver, in one go."""


class Connection:
    """One client. Only the loop reads, sends and closes; everybody else replies and shuts down."""

    session: Session
    loop: Loop
    tag: Any  # the handler's own

    def reply(self, reply: Reply) -> None:
        """Answer the oldest unanswered command (encoded for session.protocol). Any thread; wakes the loop when needed."""

    def send(self, data: bytes, answered: int = 1) -> None:
        """Queue wire bytes that answer `answered` commands (0: a push). Any thread; wakes the loop when needed."""

    def post(self, data: bytes, answered: int = 1) -> None:
        """As send(), without waking: the caller wakes `conn.loop.wake()` once after many (driver: `server.wake()`)."""

    def push(self, reply: Reply) -> None:
        """Queue a reply that answers no command (pub/sub, MOVING)."""

    def resume(self) -> None:
        """Commands that the handler did not take are handed over again in the next turn. Any thread."""

    def authenticated(self) -> None:
        """The session has logged in: full limits, no login time-out. Loop thread, or lent."""

    def close_after_reply(self) -> None:
        """QUIT: take no more input, close when everything queued is sent. Any thread."""

    def refuse(self, error: bytes) -> None:
        """Answer this error line and close (protected mode). From on_connect."""

    def shutdown(self) -> None:
        """CLIENT KILL and time-outs: shut the socket down, from any thread; the loop notices and closes."""


class Loop:
    """A selector and its connections. `Loop.run` in a thread of its own, or poll/flush driven by the driver."""

    connections: dict[int, Connection]  # by file descriptor

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Watch a descriptor that is not a connection (peers, timers). callback(events) runs in the loop's thread."""

    def modify(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...

    def poll(self, timeout_s: float) -> int:
        """Wait up to timeout_s, read and parse what is ready, call the handler, drain what other threads queued."""
        raise NotImplementedError

    def flush(self, connections_max: int | None = None) -> bool:
        """Send what is queued, one send() per connection. True when connections are left (connections_max reached)."""
        raise NotImplementedError

    def turn(self, timeout_s: float) -> int:
        """poll, handler.end_of_turn, flush."""
        raise NotImplementedError

    def run(self) -> None:
        """Turns until stop()."""

    def wake(self) -> None:
        """End a poll() that waits. Any thread; coalesced."""

    def call(self, fn: Callable[[], None]) -> None:
        """Run fn in the loop's thread, in its next poll. Any thread."""

    def stop(self) -> None:
        """run() returns after the current turn. Any thread."""


class Server:
    """Loops + listeners + limits: what the node builds.

    server = Server(handler, io_threads=0, limits=Limits())
    server.loop          loop 0, for the driver: poll / flush / register
    server.loops         loop 0 and the I/O threads' loops
    server.listen(host, port) -> port     raises OSError
    server.start()       starts the I/O threads
    server.wake()        wakes each loop that has something posted: once at the end of a driver turn
    server.clients()     every connection (CLIENT LIST), as a list; any thread
    server.stop_accepting(); server.drain(deadline_s); server.close()
    """

    loop: Loop
    loops: Sequence[Loop]


class WorkerPool:
    """`--workers` threads for commands that may be long; bounded queue."""

    def __init__(self, workers: int, queue_max: int = 1024) -> None: ...

    def submit(self, fn: Callable[[], None]) -> bool:
        """Run fn on a worker. False when the queue is full. fn replies through conn.reply(), which wakes the loop."""
        raise NotImplementedError

    def stop(self) -> None: ...
