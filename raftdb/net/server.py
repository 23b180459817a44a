"""The server around the loops: listener, I/O threads, worker pool.

    server = Server(handler, io_threads=0, limits=ServerLimits(), on_failure=stop_the_node)
    port = server.listen("127.0.0.1", 6379)
    server.start()                       # the I/O threads; loop 0 is turned by the driver:
    while running: server.loop.turn(0.05)
    server.drain(patience_s); server.close()

Loop 0 accepts, since accepting is rare, and deals connections out: with no I/O threads to itself, else to the others in
turn (`connections_on_loop_0` tells whether loop 0 gets a share). A process that is out of descriptors must neither
spin on a listening socket that stays readable nor die: one descriptor is held in reserve, given up to accept and turn
away one client at a time, and when even that fails, accepting pauses for a moment.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import resource
import socket
import time
from collections.abc import Callable
from itertools import count
from threading import Thread, get_ident
from typing import Final

from raftdb.clock import monotonic
from raftdb.net.loop import IN, OUT, Connection, Handler, Loop, ServerLimits
from raftdb.net.session import LINEARIZABLE, Session

__all__ = [
    "IN",
    "OUT",
    "Connection",
    "Handler",
    "Listener",
    "Loop",
    "Server",
    "ServerLimits",
    "WorkerPool",
    "is_loopback",
    "protected_mode_refusal",
    "raise_descriptor_limit",
]

log = logging.getLogger("raftdb.net")

Failure = Callable[[str, BaseException], None]  # (name of the thread, what escaped): the node must stop

_ACCEPTS_PER_EVENT: Final = 64
_DESCRIPTORS_BESIDES_CLIENTS: Final = 64
_PAUSE_S: Final = 0.1
_FULL: Final = b"-ERR max number of clients reached\r\n"
_PROTECTED: Final = (
    b"-DENIED raftdb is running in protected mode because it has no password: it takes connections from this machine "
    b"only. Set a password (--requirepass), or start it with --protected-mode no if everybody who can reach the port "
    b"may read and write everything.\r\n"
)


class Listener:
    """A listening socket on a loop, which deals the clients out to `targets`."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._next_log_s = 0.0
        self._paused = False
        host, port = sock.getsockname()[:2]
        self.address = format_address(host, port)
        self.port: int = port
        sock.setblocking(False)
        server.loop.register(sock.fileno(), IN, self._on_ready)

    def close(self) -> None:
        """Stop accepting. Loop 0's thread."""
        if self._sock.fileno() >= 0:
            self._server.loop.unregister(self._sock.fileno())
            self._sock.close()
            os.close(self._reserve)

    def _on_ready(self, _events: int) -> None:
        for _ in range(_ACCEPTS_PER_EVENT):
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._out_of_descriptors()
                elif error.errno in (errno.ENOBUFS, errno.ENOMEM):
                    self._pause()
                else:
                    continue  # the client went away before it was accepted
                return
            self._accepted(sock, peer)

    def _accepted(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        server = self._server
        if server.client_count >= server.clients_max:
            server.refused += 1
            _turn_away(sock)
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, server.limits.keepalive_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, server.limits.keepalive_s // 3))
        except OSError:  # gone already
            sock.close()
            return
        server.deal(sock, format_address(*peer[:2]), self.address)

    def _out_of_descriptors(self) -> None:
        now = monotonic()
        if now >= self._next_log_s:
            log.warning("out of file descriptors: turning clients away (ulimit -n, --maxclients)")
            self._next_log_s = now + 60.0
        os.close(self._reserve)
        try:
            sock, _ = self._sock.accept()
            self._server.refused += 1
            _turn_away(sock)
        except OSError:
            self._pause()
        finally:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _pause(self) -> None:
        """Look away from the socket for a moment; Server.tick takes it up again."""
        if not self._paused:
            self._paused = True
            self._server.loop.modify(self._sock.fileno(), 0)
            self._server.loop.later(_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if self._sock.fileno() >= 0:
            self._paused = False
            self._server.loop.modify(self._sock.fileno(), IN)


class Server:
    """Loops, listeners and limits: what the node builds."""

    def __init__(
        self,
        handler: Handler,
        *,
        io_threads: int = 0,
        limits: ServerLimits | None = None,
        on_failure: Failure | None = None,
        consistency: str = LINEARIZABLE,
        connections_on_loop_0: bool | None = None,
    ) -> None:
        """`consistency`: of new sessions. `connections_on_loop_0` None: only when there are no I/O threads."""
        self.limits = limits or ServerLimits()
        self.loops = [Loop(handler, self.limits, name=f"loop-{n}") for n in range(io_threads + 1)]
        self.loop = self.loops[0]
        self.listeners: list[Listener] = []
        self.clients_max = self.limits.clients_max  # may be changed (CONFIG SET maxclients)
        self.refused = 0
        self._consistency = consistency
        self._on_failure = on_failure or _log_failure
        shared = io_threads > 0 and not connections_on_loop_0
        self._targets = self.loops[1:] if shared else self.loops
        self._dealt = 0
        self._ids = count(1)
        self._threads: list[Thread] = []

    # --- begin --------------------------------------------------------------------------------------------------------

    def listen(self, host: str, port: int) -> int:
        """Bind, listen, return the port (asked for with 0). Raises OSError. An empty host: all addresses."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            sock.listen(self.limits.listen_backlog)
        except OSError:
            sock.close()
            raise
        return self.listen_on(sock)

    def listen_on(self, sock: socket.socket) -> int:
        """Take over a socket that listens already."""
        listener = Listener(self, sock)
        self.listeners.append(listener)
        return listener.port

    def start(self) -> None:
        """Start the I/O threads."""
        for loop in self.loops[1:]:
            thread = Thread(target=self._run, args=(loop,), name=f"raftdb-{loop.name}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, loop: Loop) -> None:
        try:
            loop.run()
        except BaseException as error:
            self._on_failure(loop.name, error)

    # --- clients ------------------------------------------------------------------------------------------------------

    def deal(self, sock: socket.socket, address: str, laddr: str) -> None:
        """Give an accepted socket to the next loop. Loop 0's thread."""
        session = Session(next(self._ids), address, laddr, consistency=self._consistency, now_s=self.loop.now_s)
        loop = self._targets[self._dealt % len(self._targets)]
        self._dealt += 1
        if loop is self.loop:
            loop.adopt(sock, session)
        else:
            loop.post(lambda: loop.adopt(sock, session))

    @property
    def client_count(self) -> int:
        return sum(len(loop.connections) for loop in self.loops)

    def clients(self) -> list[Connection]:
        """[any] Every connection at this moment."""
        return [conn for loop in self.loops for conn in list(loop.connections.values())]

    def client(self, session_id: int) -> Connection | None:
        """[any] The connection with this client id."""
        return next((conn for conn in self.clients() if conn.session.id == session_id), None)

    def wake(self) -> None:
        """[any] Wake each loop that something was queued for: once, at the end of a driver turn."""
        for loop in self.loops:
            if loop.mail:
                loop.wake()

    # --- end ----------------------------------------------------------------------------------------------------------

    def stop_accepting(self) -> None:
        """Close the listeners. Loop 0's thread."""
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    def finish(self) -> None:
        """[any] Stop accepting and reading; each client is closed when it has got what it is owed."""
        self.loop.post(self.stop_accepting)
        for loop in self.loops:
            loop.post(loop.finish_all)

    @property
    def finished(self) -> bool:
        """After finish(): no client is left."""
        return not any(loop.connections or loop.mail for loop in self.loops)

    def drain(self, patience_s: float) -> bool:
        """[any] finish(), and wait until every client has gone. False when patience_s was not enough.

        Loop 0 must be turning: in its own thread, drain() turns it.
        """
        self.finish()
        deadline_s = monotonic() + patience_s
        own = self.loop.ident in (None, get_ident())
        while not self.finished and monotonic() < deadline_s:
            if own:
                self.loop.turn(0.01)
            else:
                time.sleep(0.005)
        return self.finished

    def close(self, timeout_s: float = 5.0) -> None:
        """Close everything now. Loop 0's thread."""
        self.stop_accepting()
        for loop in self.loops[1:]:
            loop.stop()
        for thread in self._threads:
            thread.join(timeout_s)
        self._threads = []
        self.loop.close()


class WorkerPool:
    """Threads for commands that may be long. A job answers through its connection, which wakes its loop."""

    def __init__(self, workers: int, *, jobs_max: int = 4096, on_failure: Failure | None = None) -> None:
        self.jobs_max = jobs_max
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._on_failure = on_failure or _log_failure
        self._stopped = False
        self._threads = [Thread(target=self._work, name=f"raftdb-worker-{n}", daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Callable[[], None]) -> bool:
        """[any] Run the job on a worker. False when the queue is full or the pool stopped: answer instead."""
        if self._stopped or self._jobs.qsize() >= self.jobs_max:
            return False
        self._jobs.put(job)
        return True

    def __len__(self) -> int:
        """Jobs that wait."""
        return self._jobs.qsize()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Take no more jobs, finish those that wait, end the threads (or leave them after timeout_s each)."""
        self._stopped = True
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            try:
                job()
            except BaseException as error:
                self._on_failure("worker", error)
                return


def format_address(host: str, port: int) -> str:
    """HOST:PORT, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether a HOST:PORT, as format_address writes it, is of this machine."""
    host = address.rpartition(":")[0].strip("[]")
    return host.startswith(("127.", "::ffff:127.")) or host == "::1"


def protected_mode_refusal(address: str, *, protected: bool, has_password: bool) -> bytes | None:
    """The line to refuse this client with (Connection.refuse), or None when it is welcome."""
    if not protected or has_password or is_loopback(address):
        return None
    return _PROTECTED


def raise_descriptor_limit(clients_max: int) -> int:
    """Ask the system for enough descriptors; returns how many clients fit into what it gives."""
    wanted = clients_max + _DESCRIPTORS_BESIDES_CLIENTS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted and soft != resource.RLIM_INFINITY:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return clients_max
    return max(1, min(clients_max, soft - _DESCRIPTORS_BESIDES_CLIENTS))


def _turn_away(sock: socket.socket) -> None:
    """One line, if it fits into the socket, and goodbye."""
    try:
        sock.setblocking(False)
        sock.send(_FULL)
    except OSError:
        pass
    finally:
        sock.close()


def _log_failure(thread: str, error: BaseException) -> None:
    log.critical("%s stopped by a bug: %r", thread, error, exc_info=error)
