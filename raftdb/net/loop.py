"""A loop and its connections: the hot path between the kernel and the command handler.

One class serves all loops. Loop 0 is turned by the driver thread (`poll`, the driver's own work, `flush`); every other
one by a thread of its own (`run`). A turn: one recv() per readable connection, parse all of it, hand each connection's
commands to `Handler.on_commands`, then `Handler.end_of_turn` once, then one send() per connection that has output.

Ownership
---------
- Only the loop's thread receives, sends, closes, and touches anything of a connection but its session. Python closes a
  descriptor while another thread may still be about to use its number, and the kernel gives the number to the next
  client: whoever sent there would answer somebody else. So there is no send and no shutdown() outside the loop.
- A handler that takes commands is lent the connection (its session) until it has queued the last answer due.
- Any thread may answer. In the loop's thread an answer is appended to the output at once; elsewhere it goes, as
  (connection, bytes, commands answered, ticket), through the loop's one mailbox, which is emptied every turn. Answers
  to connections that are gone fall on the floor there. The wake-up is coalesced, and skipped when the loop is awake.
- A thread that turns a loop and also waits for the disk lets go of it meanwhile (`leave`, `enter`), so that a watchdog
  can tell its clients that the outcome is unknown (`rescue`). Both hold one lock; nobody else takes it.

Order
-----
`outstanding` counts the commands that were taken and not answered. While it is not zero, later commands wait in
`backlog`; the loop hands them over, as one batch, when the last answer is queued. Thus the batch of a pipelining client
grows by itself while the driver is busy, and no command overtakes another. A run of commands handed over has a number,
`ticket`; `abandon` answers for a handler that is stuck, and late answers that carry that ticket are dropped.

Bounds
------
Reading stops (the kernel's window then stops the client) while more than `backlog_bytes_max` wait, or more than
`output_soft_bytes` are unsent. A client over `output_bytes_max`, or the largest one when all of them together are over
`output_total_bytes_max`, is closed. Unfinished commands count towards `input_total_bytes_max` in the same way.
Strangers have `login_s` to log in, are parsed one command at a time, and never queue more than they may send.

A connection that we close with a last word (protocol error, QUIT, refusal) is first shut down for writing and drained:
closing a socket with unread input makes the kernel send a reset, which can overtake the error text.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, Final, NamedTuple, Protocol

from raftdb.clock import monotonic
from raftdb.errors import Bug
from raftdb.net import resp
from raftdb.net.session import Session
from raftdb.types import Reply

log = logging.getLogger("raftdb.net")

MIB: Final = 1024 * 1024
IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
_GONE: Final = select.EPOLLHUP | select.EPOLLERR

# Why a connection is not read; a set of bits.
_BACKLOG: Final = 1  # too much waits to be handed over
_OUTPUT: Final = 2  # too much waits to be sent
_ASKED: Final = 4  # pause_reading()
_STRANGER: Final = 8  # a command of someone not logged in is under way
_ENDED: Final = 16  # nothing more will be taken from this client

_PARSED_FACTOR: Final = 8  # memory of tiny commands, parsed, against their bytes
_SEND_SLICE_BYTES: Final = 1 * MIB  # one send() of a long queue
_SENDS_PER_TURN: Final = 8
EVENTS_PER_POLL: Final = 256  # the kernel hands out the others next time: a turn stays short with 1,000 deep pipelines
COMMAND_NAME_BYTES_MAX: Final = 64  # remembered for CLIENT LIST; an unknown command may be called anything
_DRAIN_BYTES_MAX: Final = 64 * MIB  # thrown away behind our last word
_CHECK_EVERY_S: Final = 0.5
_LOG_EVERY_S: Final = 10.0


class ServerLimits(NamedTuple):
    """Bounds of loops and connections; bytes, seconds, counts."""

    clients_max: int = 10_000
    resp: resp.Limits = resp.AUTHENTICATED
    receive_bytes: int = 64 * 1024  # one recv()
    backlog_bytes_max: int = 1 * MIB  # received behind commands that are under way
    output_soft_bytes: int = 1 * MIB  # above: the connection is congested
    output_bytes_max: int = 256 * MIB  # above: the connection is closed
    output_total_bytes_max: int = 1024 * MIB  # of one loop
    input_total_bytes_max: int = 1024 * MIB  # unfinished commands of one loop
    login_s: float = 10.0
    linger_s: float = 2.0  # behind our last word, until the client has closed too
    eof_s: float = 30.0  # for answers due to a client that has closed its side
    listen_backlog: int = 511
    keepalive_s: int = 300


class Handler(Protocol):
    """What a loop calls, always in the loop's own thread. An exception ends the loop (and with it the node)."""

    def on_open(self, conn: Connection) -> None:
        """A client was accepted; its session says authenticated. Set it up, or turn it away: `conn.refuse(line)`."""

    def on_commands(self, conn: Connection, argvs: list[list[bytes]]) -> int | None:
        """The commands of `conn` that are ready, in order, at least one. Returns how many are taken (None: all).

        Each command taken is answered exactly once, in order, now or later, by any thread: `conn.reply(r)`, or
        `conn.send(data, answered=n)` for n at a time. Until the last answer due is queued the connection is lent to the
        handler and gets nothing more. The others come again, with later ones behind them. Who takes 0 with nothing due
        is called again after `conn.resume()`, or by itself once a congested connection has been drained. Stop taking
        when `conn.congested`.
        """

    def on_eof(self, conn: Connection) -> None:
        """The client sends no more, and answers are due: cancel what it waits for (and answer it, or not)."""

    def on_close(self, conn: Connection) -> None:
        """The connection is gone: once for each on_open. Answers still due may be dropped."""

    def end_of_turn(self, loop: Loop) -> None:
        """Everything ready has been read and handed over: once per turn."""


class Connection:
    """One client. Methods marked [any] may be called from any thread; others only from the loop's, or while lent."""

    __slots__ = (
        "_dead_tickets",
        "_drained_bytes",
        "_events",
        "_feed",
        "_finishing",
        "_last_words",
        "_parked",
        "_pauses",
        "_pending_bytes",
        "_recv",
        "_send",
        "_settle",
        "backlog",
        "backlog_bytes",
        "closed",
        "closing",
        "context",
        "doomed",
        "fd",
        "loop",
        "out",
        "out_bytes",
        "outstanding",
        "parser",
        "session",
        "sock",
        "ticket",
    )

    def __init__(self, sock: socket.socket, loop: Loop, session: Session) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.loop = loop
        self.session = session
        self.context: Any = None  # the handler's own
        self.parser = resp.Parser(loop.limits.resp)
        self.out: list[bytes | memoryview] = []
        self.out_bytes = 0
        self.outstanding = 0  # commands taken and not answered
        self.ticket = 0  # number of the run of commands that was handed over last
        self.backlog: list[list[bytes]] = []  # parsed, not taken
        self.backlog_bytes = 0
        self.closing = False  # close when everything is answered and sent
        self.doomed = False  # close at the next safe point; nothing is queued any more
        self.closed = False
        self._recv: Callable[[int], bytes] = sock.recv
        self._send = sock.send
        self._feed = self.parser.feed
        self._dead_tickets = -1  # runs up to this one are answered for
        self._parked = False  # the handler took nothing: wait for resume()
        self._pauses = 0
        self._events = 0
        self._settle = False  # look again when the last answer is queued, even with no backlog
        self._last_words = b""
        self._finishing = False  # finish(): commands that wait are dropped
        self._pending_bytes = 0  # of the parser, as counted by the loop
        self._drained_bytes = -1  # >= 0: shut down for writing, input is thrown away

    def __repr__(self) -> str:
        return f"<Connection id={self.session.id} {self.session.address} fd={self.fd}>"

    # --- answers ----------------------------------------------------------------------------------------------------

    def reply(self, reply: Reply) -> None:
        """[any] Answer the oldest unanswered command, in the session's protocol."""
        self.send(resp.encode(reply, self.session.protocol))

    def send(self, data: bytes, answered: int = 1, ticket: int | None = None) -> None:
        """[any] Queue wire bytes (none is fine) that answer `answered` commands; 0 for a push.

        With a ticket the answer is dropped when `abandon` was faster.
        """
        loop = self.loop
        if get_ident() != loop.ident:
            loop.mail.append((self, data, answered, ticket))
            loop.wake()
            return
        self._put(loop, data, answered, ticket)

    def _put(self, loop: Loop, data: bytes, answered: int, ticket: int | None) -> None:
        """send(), in the thread of `loop`, which is this connection's."""
        if self.closed or self.doomed or (ticket is not None and ticket <= self._dead_tickets):
            return
        left = self.outstanding = self.outstanding - answered
        if data:
            out = self.out
            if not out:
                loop.dirty.append(self)
            out.append(data)
            size = len(data)
            self.out_bytes += size
            loop.out_bytes += size
            if self.out_bytes > loop.output_soft_bytes:
                self._check_output()
        if left <= 0 and (left or self.backlog or self._settle):
            if left < 0:
                raise Bug(f"{self!r}: more answers than commands")
            loop.ready.append(self)

    def queue(self, data: bytes, answered: int = 1, ticket: int | None = None) -> None:
        """[any] As send(), but another loop is not woken: the caller does that once, after many (`Server.wake`)."""
        loop = self.loop
        if get_ident() == loop.ident:
            self._put(loop, data, answered, ticket)
        else:
            loop.mail.append((self, data, answered, ticket))

    def push(self, reply: Reply) -> None:
        """[any] Queue something that answers no command (pub/sub, MOVING)."""
        self.send(resp.encode(reply, self.session.protocol), 0)

    def abandon(self, ticket: int, data: bytes) -> None:
        """[any] Answer what is due of the run `ticket` with `data` each, and drop later answers with that ticket."""
        self.loop.post(lambda: self.answer_for(ticket, data))

    def answer_for(self, ticket: int, data: bytes) -> None:
        """abandon(), by the thread that turns the loop."""
        if ticket == self.ticket and self.outstanding > 0 and not self.closed:
            self.send(data * self.outstanding, self.outstanding, ticket)
            self._dead_tickets = ticket

    @property
    def congested(self) -> bool:
        """More is unsent than the client seems able to read; take no more commands of it now."""
        return self.out_bytes > self.loop.output_soft_bytes

    def _check_output(self) -> None:
        loop = self.loop
        if self.out_bytes > loop.limits.output_bytes_max:
            loop.doom(self, "output buffer over its limit")
        elif loop.out_bytes > loop.limits.output_total_bytes_max:
            largest = max(loop.connections.values(), key=lambda conn: conn.out_bytes)
            loop.doom(largest, "output buffers of all clients over their limit")

    # --- flow and end -----------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """[any] Hand over again what the handler did not take."""
        self.loop.post(lambda: self.loop.unpark(self))

    def authenticated(self) -> None:
        """The session logged in, or out again: its limits change with its next command."""
        self.loop.post(lambda: self.loop.set_limits(self))

    def pause_reading(self) -> None:
        """Receive nothing until resume_reading()."""
        self.loop.pause(self, _ASKED)

    def resume_reading(self) -> None:
        self.loop.unpause(self, _ASKED)

    def refuse(self, line: bytes) -> None:
        """Send this error line (with its CRLF) and close. For on_open."""
        self.send(line, 0)
        self.close_after_flush()

    def close_after_flush(self) -> None:
        """[any] Take no more commands; close when what is due is answered and sent (QUIT)."""
        if get_ident() == self.loop.ident:
            self.loop.finish(self)
        else:
            self.loop.post(lambda: self.loop.finish(self))

    def kill(self) -> None:
        """[any] Close now, whatever is due (CLIENT KILL, time-outs)."""
        self.loop.post(lambda: self.loop.doom(self, "killed"))


def _nothing_more(_size: int) -> bytes:
    """recv() of a doomed connection."""
    raise BlockingIOError


Mail = tuple[Any, Any, int, int | None]


class Loop:
    """A selector, its connections, and other descriptors that its thread wants to watch."""

    def __init__(self, handler: Handler, limits: ServerLimits | None = None, *, name: str = "loop-0") -> None:
        self.handler = handler
        self.limits = limits or ServerLimits()
        self.name = name
        self.context: Any = None  # the handler's own
        self.ident: int | None = None  # of the thread that turns this loop
        self.connections: dict[int, Connection] = {}  # by file descriptor
        self.mail: deque[Mail] = deque()  # from other threads
        self.dirty: list[Connection] = []  # have output that was not offered to the kernel yet
        self.ready: deque[Connection] = deque()  # everything answered, and something to do
        self.out_bytes = 0
        self.pending_bytes = 0  # unfinished commands
        self.output_soft_bytes = self.limits.output_soft_bytes
        self.now_s = monotonic()  # read once per turn
        self.turns = self.commands = self.bytes_in = self.bytes_out = 0
        self.opened = self.protocol_errors = self.overruns = 0
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._doomed: list[tuple[Connection, str]] = []
        self._timed: list[tuple[float, Connection, str]] = []  # unordered; checked every half second
        self._later: list[tuple[float, Callable[[], None]]] = []
        self._next_check_s = 0.0
        self._next_log_s = 0.0
        self._finishing = False
        self._stopping = False
        self._closed = False
        self._asleep = False
        self._woken = False
        self._steering = Lock()  # held by the thread that turns the loop
        self._epoll = select.epoll()
        self._others = select.epoll()  # descriptors that are not connections: can be polled alone
        self._epoll.register(self._others.fileno(), IN)
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake_fd, IN)
        self._receive_bytes = self.limits.receive_bytes
        self._on_commands = handler.on_commands

    # --- other threads ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """[any] End a poll() that waits, or keep the next one from waiting. Coalesced."""
        if not self._woken:
            self._woken = True
            if self._asleep:
                try:
                    os.eventfd_write(self._wake_fd, 1)
                except OSError:
                    if not self._closed:  # the loop had woken, and ended, in the meantime
                        raise

    def post(self, fn: Callable[[], None]) -> None:
        """[any] Run fn in the loop's thread, in its next poll."""
        self.mail.append((None, fn, 0, None))
        self.wake()

    def later(self, delay_s: float, fn: Callable[[], None]) -> None:
        """Run fn in the loop's thread after about delay_s (to the half second of the loop's own checks)."""
        self._later.append((self.now_s + delay_s, fn))

    def stop(self) -> None:
        """[any] run() returns after the current turn."""
        self._stopping = True
        self.wake()

    # --- a loop that is stuck ---------------------------------------------------------------------------------------

    def enter(self) -> None:
        """From here on this thread turns the loop; the first poll() does it by itself."""
        self._steering.acquire()
        self.ident = get_ident()

    def leave(self) -> None:
        """Before a call that may block for long (a log commit): until enter(), `rescue` may answer from elsewhere."""
        self.ident = None
        self._steering.release()

    def rescue(self, due: list[tuple[Connection, int, bytes]]) -> bool:
        """[any] Answer runs (connection, ticket, answer per command) of a loop that sits in leave() ... enter().

        False, and nothing is done, when it does not: the loop is alive, and `Connection.abandon` reaches it. Sends at
        once what the kernel takes, closes nothing.
        """
        if not self._steering.acquire(blocking=False):
            return False
        try:
            self.ident = get_ident()
            for conn, ticket, data in due:
                conn.answer_for(ticket, data)
            self._offer([conn for conn, _, _ in due if conn.out])
        finally:
            self.ident = None
            self._steering.release()
        return True

    def _offer(self, conns: list[Connection]) -> None:
        """Send without closing on errors; what the kernel does not take stays queued."""
        for conn in conns:
            data = self._slice(conn.out)
            try:
                sent = conn._send(data)
            except OSError:
                sent = 0  # the loop meets the error again, and closes
            self._sent(conn, sent)
            if sent < len(data):
                conn.out.insert(0, memoryview(data)[sent:])
            if conn.out:
                self.dirty.append(conn)

    # --- descriptors that are not connections -------------------------------------------------------------------------

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Watch a descriptor: callback(events) in this loop's thread. It must stand a call for nothing (EAGAIN)."""
        self._callbacks[fd] = callback
        self._others.register(fd, events)

    def modify(self, fd: int, events: int) -> None:
        self._others.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Before the descriptor is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._others.unregister(fd)

    def poll_registered(self) -> int:
        """Serve these descriptors only, without waiting: peers, in the middle of long work. No client is heard."""
        events = self._others.poll(0)
        for fd, mask in events:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(mask)
        return len(events)

    # --- turns ------------------------------------------------------------------------------------------------------

    def turn(self, timeout_s: float) -> int:
        """poll, Handler.end_of_turn, flush. Returns the number of descriptors that were ready."""
        events = self.poll(timeout_s)
        self.handler.end_of_turn(self)
        self.flush()
        return events

    def run(self) -> None:
        """Turns until stop(); then every connection is closed."""
        while not self._stopping:
            self.turn(_CHECK_EVERY_S)
        self.close()

    def poll(self, timeout_s: float) -> int:
        """Wait up to timeout_s; receive, parse and hand over what is ready; take in what other threads answered."""
        if self.ident is None:
            self.enter()
        self.turns += 1
        self._asleep = True
        if self._woken or self.mail or self.ready or self.dirty:
            timeout_s = 0.0
        events = self._epoll.poll(timeout_s, EVENTS_PER_POLL)
        self._asleep = False
        self._woken = False
        self.now_s = monotonic()
        connection = self.connections.get
        for fd, mask in events:
            conn = connection(fd)
            if conn is None:
                self._own_event(fd)
            elif mask == IN:
                self._receive(conn)
            else:
                self._event(conn, mask)
        if self.mail:
            self._deliver()
        if self.ready:
            self._go_on()
        if self._doomed:
            self._bury()
        if self.now_s >= self._next_check_s:
            self._check_times()
        return len(events)

    def flush(self, connections_max: int | None = None) -> bool:
        """Offer queued output to the kernel, one send() per connection. True when some are left for the next call."""
        dirty = self.dirty
        if connections_max is None or len(dirty) <= connections_max:
            self.dirty = []
        else:
            self.dirty = dirty[connections_max:]
            dirty = dirty[:connections_max]
        for conn in dirty:
            out = conn.out
            if len(out) == 1:
                data = out[0]
            elif conn.out_bytes <= _SEND_SLICE_BYTES:
                data = b"".join(out)
            else:
                self._send_long(conn)
                continue
            if not data:
                continue
            try:
                sent = conn._send(data)
            except OSError as error:
                sent = self._send_failed(conn, error)
            if sent == len(data):
                conn.out = []
                conn.out_bytes = 0
                self.out_bytes -= sent
                self.bytes_out += sent
                if conn.closing or conn._pauses:
                    self._flushed(conn)
            elif not conn.closed:
                conn.out = [memoryview(data)[sent:]]
                self._sent(conn, sent)
                self._watch(conn)
        if self._doomed:
            self._bury()
        return bool(self.dirty)

    def _own_event(self, fd: int) -> None:
        if fd == self._wake_fd:
            os.eventfd_read(fd)
        elif fd == self._others.fileno():
            self.poll_registered()

    def _deliver(self) -> None:
        """Take in what other threads have queued up to now."""
        mail = self.mail
        for _ in range(len(mail)):
            conn, data, answered, ticket = mail.popleft()
            if conn is None:
                data()
            else:
                conn._put(self, data, answered, ticket)

    # --- input ------------------------------------------------------------------------------------------------------

    def _receive(self, conn: Connection) -> None:
        try:
            data = conn._recv(self._receive_bytes)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close_connection(conn, error.strerror or "receive failed")
            return
        if not data:
            self._eof(conn)
            return
        self.bytes_in += len(data)
        if conn._drained_bytes >= 0:
            self._throw_away(conn, len(data))
            return
        argvs = conn._feed(data)
        if argvs:
            if conn.outstanding or conn.backlog:
                conn.backlog += argvs
            else:
                conn.backlog = argvs
                self._hand_over(conn)
        if conn.backlog or conn._pending_bytes or not conn.parser.idle:
            self._unfinished(conn, len(data))

    def _hand_over(self, conn: Connection) -> None:
        """Give the backlog to the handler, until answers are due, nothing is left, or the client must read first."""
        session = conn.session
        while True:
            argvs = conn.backlog
            count = taken = len(argvs)
            conn.backlog = []
            conn.outstanding = count
            conn.ticket += 1
            answer = self._on_commands(conn, argvs)
            if answer is not None and answer < count:
                taken = answer
                self._put_back(conn, argvs, taken)
            else:
                conn.backlog_bytes = 0
            if taken:
                self.commands += taken
                session.commands += taken
                session.last_command_s = self.now_s
                session.last_command = argvs[taken - 1][0][:COMMAND_NAME_BYTES_MAX]
            if session.authenticated is not conn.parser.limits.authenticated:
                self.set_limits(conn)
            if conn._pending_bytes:
                self._count_pending(conn)
            if conn.out_bytes > self.output_soft_bytes:
                if not self._make_room(conn):
                    return
                conn._parked = False  # whoever took nothing since the client did not read may take some now
            if conn.outstanding or conn._parked or conn.closed:
                if conn._settle:
                    self.pause(conn, _STRANGER)
                return
            if not conn.backlog:
                if not conn._settle:
                    return
                self._settled(conn)
                if not conn.backlog or conn.outstanding:
                    return

    def _put_back(self, conn: Connection, argvs: list[list[bytes]], taken: int) -> None:
        """The handler took the first `taken` of these commands only."""
        left = len(argvs) - taken
        conn.outstanding -= left
        conn._parked = not taken and not conn.outstanding
        conn.backlog_bytes = conn.backlog_bytes * left // len(argvs)
        if not conn._finishing:
            conn.backlog = argvs[taken:]

    def _make_room(self, conn: Connection) -> bool:
        """Send now rather than at the end of the turn. False when the client has to read before it is served."""
        if conn.doomed:
            return False
        self._send_long(conn)
        if conn.closed or conn.out_bytes <= self.output_soft_bytes:
            return not conn.closed
        self.pause(conn, _OUTPUT)
        return False

    def _unfinished(self, conn: Connection, received: int) -> None:
        """What remains after a feed: an error, half a command, or commands that wait."""
        parser = conn.parser
        if conn.doomed or conn.closed:
            return
        if parser.error is not None:
            self._protocol_error(conn)
            return
        if conn.backlog:
            conn.backlog_bytes += received
            if conn.backlog_bytes > self.limits.backlog_bytes_max:
                self.pause(conn, _BACKLOG)
        self._count_pending(conn)
        while self.pending_bytes > self.limits.input_total_bytes_max:
            largest = max(self.connections.values(), key=lambda each: each._pending_bytes)
            self.doom(largest, "query buffers of all clients over their limit")

    def _count_pending(self, conn: Connection) -> None:
        """Commands that wait or are not whole, in about the memory that they take."""
        pending = conn.parser.pending_bytes + conn.backlog_bytes * _PARSED_FACTOR
        self.pending_bytes += pending - conn._pending_bytes
        conn._pending_bytes = pending

    def _protocol_error(self, conn: Connection) -> None:
        if conn._pauses & _ENDED:
            return
        text = str(conn.parser.error)
        self.protocol_errors += 1
        level = logging.WARNING if "HTTP" in text else logging.DEBUG
        if level == logging.DEBUG or self.now_s >= self._next_log_s:
            log.log(level, "client %s: protocol error: %s; closed", conn.session.address, text)
            self._next_log_s = self.now_s + _LOG_EVERY_S
        conn._last_words = resp.encode_error(f"ERR Protocol error: {text}")
        self.pause(conn, _ENDED)
        conn._settle = True
        if not conn.outstanding and not conn.backlog:
            self._settled(conn)

    # --- when the last answer is queued -----------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Connections whose last answer due has been queued: hand over what waited."""
        ready = self.ready
        for _ in range(len(ready)):
            conn = ready.popleft()
            if conn.closed or conn.doomed or conn.outstanding or conn._parked:
                continue
            if conn.out_bytes > self.output_soft_bytes and not self._make_room(conn):
                continue
            if conn.session.authenticated is not conn.parser.limits.authenticated:
                self.set_limits(conn)
            if conn.backlog:
                self._hand_over(conn)
                if conn._pauses & _BACKLOG and conn.backlog_bytes <= self.limits.backlog_bytes_max:
                    self.unpause(conn, _BACKLOG)
            elif conn._settle:
                self._settled(conn)
                if conn.backlog and not conn.outstanding and not conn._parked:
                    self._hand_over(conn)

    def _settled(self, conn: Connection) -> None:
        """Nothing is due and nothing waits: go on with a stranger's next command, or say the last words."""
        if not conn._pauses & _ENDED:
            conn._settle = not conn.session.authenticated
            conn.backlog = conn._feed(b"")
            self.unpause(conn, _STRANGER)
            if conn.parser.error is not None:
                self._protocol_error(conn)
            return
        words, conn._last_words = conn._last_words, b""
        conn.closing = True
        if words:
            conn.send(words, 0)
        elif not conn.out:
            self._flushed(conn)

    def set_limits(self, conn: Connection) -> None:
        """After AUTH, or RESET on a node with a password."""
        conn.parser.set_limits(self.limits.resp if conn.session.authenticated else resp.UNAUTHENTICATED)
        conn._settle = True

    def unpark(self, conn: Connection) -> None:
        """The handler wants to see the backlog again."""
        conn._parked = False
        if not conn.closed and conn.backlog and not conn.outstanding:
            self.ready.append(conn)

    # --- output -----------------------------------------------------------------------------------------------------

    def _send_long(self, conn: Connection) -> None:
        """Send a long queue in slices, as long as the kernel takes them."""
        for _ in range(_SENDS_PER_TURN):
            if not conn.out:
                break
            data = self._slice(conn.out)
            try:
                sent = conn._send(data)
            except OSError as error:
                sent = self._send_failed(conn, error)
                if conn.closed:
                    return
            if sent < len(data):
                conn.out.insert(0, memoryview(data)[sent:])
                self._sent(conn, sent)
                break
            self._sent(conn, sent)
        if conn.out:
            self._watch(conn)
        elif conn.closing or conn._pauses:
            self._flushed(conn)

    @staticmethod
    def _slice(out: list[bytes | memoryview]) -> bytes | memoryview:
        """Take about a mebibyte from the front of the queue."""
        size = count = 0
        while count < len(out) and size < _SEND_SLICE_BYTES:
            size += len(out[count])
            count += 1
        data = out[0] if count == 1 else b"".join(out[:count])
        del out[:count]
        return data

    def _sent(self, conn: Connection, size: int) -> None:
        """Account for a send; a partial one keeps the rest at the front."""
        conn.out_bytes -= size
        self.out_bytes -= size
        self.bytes_out += size

    def _send_failed(self, conn: Connection, error: OSError) -> int:
        if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOBUFS):
            return 0
        self.close_connection(conn, error.strerror or "send failed")
        return 0

    def _flushed(self, conn: Connection) -> None:
        """Everything is sent: say goodbye, or take up a client that was congested."""
        if conn.closing:
            self._goodbye(conn)
        elif conn._pauses & _OUTPUT:
            self.unpause(conn, _OUTPUT)
            conn._parked = False
            if not conn.outstanding and (conn.backlog or conn._settle):
                self.ready.append(conn)

    # --- events of one connection -------------------------------------------------------------------------------------

    def _event(self, conn: Connection, mask: int) -> None:
        if mask & _GONE:
            self.close_connection(conn, "connection lost")
            return
        if mask & OUT and conn.out:
            self._send_long(conn)
        if not conn.closed:
            self._watch(conn)
            if mask & IN:
                self._receive(conn)

    def pause(self, conn: Connection, reason: int) -> None:
        conn._pauses |= reason
        self._watch(conn)

    def unpause(self, conn: Connection, reason: int) -> None:
        if conn._pauses & reason:
            conn._pauses &= ~reason
            self._watch(conn)

    def _watch(self, conn: Connection) -> None:
        """Tell the kernel what this connection waits for."""
        if conn.closed:
            return
        reading = not conn._pauses or conn._drained_bytes >= 0
        events = (IN if reading else 0) | (OUT if conn.out else 0)
        if events != conn._events:
            conn._events = events
            self._epoll.modify(conn.fd, events)

    def _eof(self, conn: Connection) -> None:
        """The client has closed its side. What it is owed is still sent to it."""
        if conn._drained_bytes >= 0 or not (conn.outstanding or conn.backlog or conn.out):
            self.close_connection(conn, "closed by the client")
            return
        conn._settle = True
        self.pause(conn, _ENDED)
        self._timed.append((self.now_s + self.limits.eof_s, conn, "closed by the client"))
        if conn.outstanding:
            self.handler.on_eof(conn)
        elif not conn.backlog:
            conn.closing = True

    # --- begin and end ------------------------------------------------------------------------------------------------

    def adopt(self, sock: socket.socket, session: Session) -> None:
        """Make a connection of an accepted socket, in this loop's thread."""
        if self._closed or self._finishing:
            sock.close()
            return
        conn = Connection(sock, self, session)
        self.connections[conn.fd] = conn
        conn._events = IN
        self._epoll.register(conn.fd, IN)
        self.opened += 1
        self.handler.on_open(conn)
        if not conn.session.authenticated:
            self.set_limits(conn)
            self._timed.append((self.now_s + self.limits.login_s, conn, "not logged in in time"))

    def finish(self, conn: Connection) -> None:
        """Take no more commands from this client; close it when it has got what it is owed."""
        if conn.closed or conn._finishing:
            return
        conn._finishing = True
        conn.backlog = []
        conn._settle = True
        self.pause(conn, _ENDED)
        if not conn.outstanding:
            conn.closing = True
            if not conn.out:
                self.post(lambda: self._flush_empty(conn))

    def _flush_empty(self, conn: Connection) -> None:
        """A connection that is owed nothing is said goodbye to at the next safe point."""
        if not conn.closed and not conn.out:
            self._flushed(conn)

    def _goodbye(self, conn: Connection) -> None:
        """Our last word is with the kernel: close our side, and wait a little for the client to close its own."""
        if conn._drained_bytes >= 0:
            return
        try:
            conn.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close_connection(conn, "closed")
            return
        conn._drained_bytes = 0
        self._watch(conn)
        self._timed.append((self.now_s + self.limits.linger_s, conn, "closed"))

    def _throw_away(self, conn: Connection, size: int) -> None:
        conn._drained_bytes += size
        if conn._drained_bytes > _DRAIN_BYTES_MAX:
            self.close_connection(conn, "closed")

    def doom(self, conn: Connection, reason: str) -> None:
        """Close at the next safe point (never inside a call of the handler); its output is dropped now."""
        if conn.closed or conn.doomed:
            return
        conn.doomed = True
        conn._recv = _nothing_more
        self._forget(conn)
        self._doomed.append((conn, reason))

    def _bury(self) -> None:
        doomed, self._doomed = self._doomed, []
        for conn, reason in doomed:
            if not conn.closed and "limit" in reason:
                self.overruns += 1
                log.warning("client %s: %s; closed", conn.session.address, reason)
            self.close_connection(conn, reason)

    def _forget(self, conn: Connection) -> None:
        self.pending_bytes -= conn._pending_bytes
        conn._pending_bytes = 0
        self.out_bytes -= conn.out_bytes
        conn.out_bytes = 0
        conn.out = []

    def close_connection(self, conn: Connection, reason: str) -> None:
        """The only place where a client's descriptor is closed."""
        if conn.closed:
            return
        conn.closed = True
        self._forget(conn)
        conn.backlog = []
        self._epoll.unregister(conn.fd)
        del self.connections[conn.fd]
        conn.sock.close()
        log.debug("client %s: %s", conn.session.address, reason)
        self.handler.on_close(conn)

    def finish_all(self) -> None:
        """Graceful stop: no new clients, no new commands; each client goes when it has got what it is owed."""
        self._finishing = True
        for conn in list(self.connections.values()):
            self.finish(conn)

    def close(self) -> None:
        """Close everything. Loop thread, or after it has ended."""
        if self._closed:
            return
        self._closed = True
        self.ident = get_ident()
        for conn in list(self.connections.values()):
            self.close_connection(conn, "the server stops")
        self._epoll.close()
        self._others.close()
        os.close(self._wake_fd)

    def _check_times(self) -> None:
        """Close who has not logged in, or not closed, in time."""
        now = self.now_s
        self._next_check_s = now + _CHECK_EVERY_S
        later, self._later = self._later, []
        for due_s, fn in later:
            if due_s <= now:
                fn()
            else:
                self._later.append((due_s, fn))
        if not self._timed:
            return
        waiting = []
        for item in self._timed:
            due_s, conn, reason = item
            if conn.closed or (reason == "not logged in in time" and conn.session.authenticated):
                continue
            if now < due_s:
                waiting.append(item)
            else:
                self.close_connection(conn, reason)
        self._timed = waiting
