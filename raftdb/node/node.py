"""A node: the parts put together, started and stopped in the right order, and the embedding API.

with Node(Config(address="127.0.0.1:6379"), commands=[cas]) as node:
    node.execute("SET", "color", "red")

start   settings, ports, secret            a mistake ends here and has touched nothing
        data directory, start table        DataDir.open
        core, driver                       `starts` is counted, synced, before the node speaks
        threads                            disk, snapshots, callbacks, workers, driver with loop 0, I/O loops
stop    the reverse: leadership is handed over, no new clients, what is under way is finished, data synced
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

import hiredis

from raftdb import __version__, clock
from raftdb.commands.context import Context
from raftdb.commands.machine import Machine, Request
from raftdb.commands.table import LOCAL, WRITE, Command, Table, builtin_table
from raftdb.config import SETTINGS, Config
from raftdb.consensus.core import Core, CoreConfig
from raftdb.consensus.ready import RoleChange
from raftdb.errors import Bug, CommandError, RaftdbError, Unexecuted, UsageError
from raftdb.net import resp
from raftdb.net.server import Server, ServerLimits, WorkerPool, raise_descriptor_limit
from raftdb.net.session import LINEARIZABLE, Session
from raftdb.net.wire import Identity
from raftdb.node import describe, starting
from raftdb.node.dispatch import Dispatch, Run
from raftdb.node.driver import Driver
from raftdb.node.events import Callback, Events
from raftdb.node.forming import Former
from raftdb.node.housekeeper import Housekeeper
from raftdb.node.installer import Installer
from raftdb.node.members import Members
from raftdb.node.peering import Peering, listed_addresses, own_identity
from raftdb.node.pending import TIMED_OUT, Ticket
from raftdb.node.port import DriverCalls, Port
from raftdb.node.reads import Reads
from raftdb.node.snapshotter import Snapshotter
from raftdb.node.watchdog import Watchdog
from raftdb.storage.checksum import chain_of
from raftdb.storage.datadir import DataDir
from raftdb.types import Member, NodeRef, Role, SnapshotMeta

log = logging.getLogger("raftdb.node")

T = TypeVar("T")

STOP_POLL_S: Final = 0.05
STOP_DRAIN_S: Final = 5.0  # for commands that are under way when the node stops
STOP_HAND_OVER_S: Final = 2.0  # for another member to take the lead
CALLBACK_WAIT_S: Final = 2.0
READY_POLL_S: Final = 0.01
SETTLE_POLL_S: Final = 0.001

_EVENTS: Final = {
    Role.LEADER: "on_leader",
    Role.FOLLOWER: "on_follower",
    Role.LEARNER: "on_follower",
    Role.CANDIDATE: "on_candidate",
}


class Node:
    """One member of a cluster. start() and stop() once each; the rest from any thread in between."""

    def __init__(self, config: Config | None = None, commands: Iterable[Command] = ()) -> None:
        self.config = config or Config()
        self.settings: dict[str, Any] = {}  # current values; CONFIG SET changes some
        self.table = builtin_table().extended(commands)
        self.life = secrets.randbits(64)
        self.role = Role.FOLLOWER
        self.leader: NodeRef | None = None
        self.term = 0
        self.met_leader = False  # a leader was known at some time since the start
        self._event_told = ""  # the newest of on_leader, on_follower, on_candidate
        self.events = Events(self)
        self.serving = False
        self.alone_in_process = False  # nobody but clients looks at the data: see applier.py
        self.started_s = clock.monotonic()
        self.driver: Driver = None  # type: ignore[assignment]  # these while there is no data
        self.data: DataDir = None  # type: ignore[assignment]
        self.port: Port = None  # type: ignore[assignment]
        self.peering: Peering = None  # type: ignore[assignment]
        self.former: Former | None = None
        self._forming_thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._on_end: list[Callable[[], None]] = []
        self._stop_lock = threading.Lock()
        self._stopped = False

    # --- start ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Bring everything up. Raises UsageError (nothing was touched, or one line says what to do) or StorageError."""
        if not __debug__:
            raise UsageError("raftdb does not run under python -O: its assertions protect the data")
        starting.check_protected(self.config)
        self.machine = Machine(self.table)
        self.pool = WorkerPool(self.config.workers, on_failure=self._thread_failed)
        self.dispatch = Dispatch(self.config, self.table, self.machine, self.pool)
        self.settings = self.dispatch.settings
        self.server = Server(
            self.dispatch,
            io_threads=self.config.io_threads,
            limits=ServerLimits(
                clients_max=raise_descriptor_limit(self.config.maxclients),
                resp=resp.AUTHENTICATED._replace(bulk_bytes_max=self.config.bulk_max_bytes),
            ),
            on_failure=self._thread_failed,
            consistency=self.config.reads,
        )
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self.config = self.dispatch.config = starting.listen(self.config, self.server)
        self.settings.update({name: getattr(self.config, name) for name in SETTINGS})
        self.port = self.dispatch.port = Port(self)
        has_data = starting.has_data(self.config)
        secret = starting.cluster_secret(self.config)
        identity = own_identity(
            self.config, secrets.randbits(64), self.life, listed_addresses(self.config)[0], table_digest(self.table)
        )
        self.peering = Peering(self.config, self.server.loop, secret, identity)
        starting.listen_for_peers(self.config, self.peering)
        starting.warn_unprotected(self.config)
        if has_data or not self.config.ensemble:
            if has_data and self.config.load:
                starting.check_loaded(self.config)
            if not has_data:
                starting.create_alone(self.config)
            self._assemble()
            self.driver.start(self._driver_ended)
        else:
            self.dispatch.not_ready = Unexecuted("CLUSTERDOWN this node has no data yet and asks the others")
            self._forming_thread = threading.Thread(target=self._form, name="raftdb-driver", daemon=True)
            self._forming_thread.start()
        self.server.start()

    def _form(self) -> None:
        """The driver's thread of a node with -e and without data."""
        incarnation = self.peering.identity.incarnation
        self.former = Former(self.config, self.peering, self.dispatch, incarnation, secrets.token_hex(16))
        try:
            outcome = self.former.run(self.server.loop)
            if outcome is None:
                return
            starting.create_member(self.config, incarnation, outcome.cluster_id, outcome.members)
            self.former.accepted()
            self._assemble()
        except Exception as error:
            self._form_failed(error)
            return
        self.dispatch.not_ready = None
        self.driver.run_here(self._driver_ended)

    def _form_failed(self, error: Exception) -> None:
        known = isinstance(error, RaftdbError | OSError)
        self._failure = error if known else Bug(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)
        log.critical("stopping: %s", error, exc_info=None if known else error)
        self._driver_ended()

    def _assemble(self) -> None:
        """Open the data and put the parts together, in the thread that is going to be the driver's or before it."""
        self.data = starting.open_data(self.config)
        config, data = self.config, self.data
        self.machine.kv = data.kv
        self.housekeeper = Housekeeper(
            [data.path], config.min_free_bytes, lambda: self.data.kv.sync(), self._fail, self._reusable_bytes
        )
        starts = data.log.start()
        self.core = self._new_core(starts)
        driver = Driver(
            config, data, self.core, self.machine, self.server, self.dispatch, self.housekeeper, self._role_changed
        )
        driver.applier.deferring = self.alone_in_process and not config.io_threads
        driver.reads = Reads(driver, self.dispatch)
        driver.peers = self.peering
        driver.snapshotter = self.snapshotter = Snapshotter(config, data, driver.call, self._snapshot_made, self._fail)
        driver.installer = Installer(data, driver.call, driver.switched, self._fail)
        self.dispatch.driver = driver
        self._calls = DriverCalls(driver.call, driver.stopped, config.request_timeout_ms / 1000)
        self.watchdog = Watchdog(driver, config.request_timeout_ms / 1000)
        self.members = Members(self)
        self._session = Session(0, "embedded", "embedded", consistency=config.reads)
        self.peering.attach(driver, self._identity(starts))
        self.driver = driver  # last: from now on stop() ends it
        self._start_helpers()

    def _reusable_bytes(self) -> int:
        """What both log and data could still take without growing their files."""
        parts = (self.data.log, self.data.kv)
        return min(part.stats().get("reusable_bytes", 0) for part in parts)

    def _start_helpers(self) -> None:
        self.housekeeper.start()
        self.snapshotter.start()
        self.events.start()
        self.events.emit("on_start")
        self.watchdog.start()
        self.serving = True

    def _identity(self, starts: int) -> Identity:
        return self.peering.identity._replace(
            cluster_id=self.data.identity.cluster_id,
            incarnation=self.data.identity.incarnation,
            starts=starts,
            last_index=self.core.last_index,
            term=self.core.term,
        )

    def _new_core(self, starts: int) -> Core:
        data, config = self.data, self.config
        election_ticks = max(2, config.election_ms // config.tick_ms)
        core = Core(
            NodeRef(data.identity.node_id, data.identity.incarnation),
            CoreConfig(
                heartbeat_ticks=max(1, config.heartbeat_ms // config.tick_ms),
                election_ticks_min=election_ticks,
                election_ticks_max=2 * election_ticks,
                read_wait_ticks=max(1, config.leader_wait_ms // config.tick_ms),
            ),
            data.log,
            data.log.hard,
            data.log.membership,
            data.log.previous_membership,
            commit=data.kv.applied,
            applied=data.kv.applied,
            chain_of=chain_of,
            seed=secrets.randbits(64),
            starts=starts,
            stamp=data.log.stamp(data.log.last),
            snapshot=data.log.snapshot,
        )
        core.wall_ms = clock.wall_ms()  # the first answer may leave before the first tick
        for index in data.damaged:
            core.quarantine(index)
        return core

    def greeting(self) -> str:
        """One line: where the node listens, and how to connect."""
        host, port = self.config.bind or self.config.host, self.config.port
        where = "" if host in ("127.0.0.1", "localhost") else f"-h {self.config.host} "
        password = " --askpass" if self.config.requirepass else ""
        where_data = f"data in {self.config.own_data_dir}"
        how = f"connect with: redis-cli {where}-p {port}{password}"
        return f"raftdb {__version__}: node {self.config.own_id} serves on {self.config.address}, {where_data}; {how}"

    # --- stop -------------------------------------------------------------------------------------------------------

    @property
    def failure(self) -> BaseException | None:
        """Why the node stopped by itself; None when it was asked to, or runs."""
        return self._failure or (self.driver.failure if self.driver is not None else None)

    def on_end(self, fn: Callable[[], None]) -> None:
        """Call `fn` when the node ends by itself (storage error, SHUTDOWN): somebody should then call stop()."""
        self._on_end.append(fn)
        if self._ended.is_set():
            fn()

    def request_stop(self, now: bool) -> None:
        """SHUTDOWN: end as if asked from outside; `now`: without handing leadership over. Any thread."""
        if now and self.driver is not None:
            self.driver.stop()
        else:
            self._driver_ended()

    def _driver_ended(self) -> None:
        self._ended.set()
        for fn in self._on_end:
            fn()

    def _thread_failed(self, thread: str, error: BaseException) -> None:
        self._fail(Bug(f"thread {thread}: {type(error).__name__}: {error}").with_traceback(error.__traceback__))

    def _fail(self, error: BaseException) -> None:
        if self.driver is not None:
            self.driver.fail(error)

    def stop(self) -> None:
        """Hand over, finish what is under way, sync, close. Any thread but the driver's; a second call waits."""
        with self._stop_lock:
            if not self._stopped:
                self._stopped = True
                self._stop()
                self._ended.set()

    def _stop(self) -> None:
        self.serving = False
        if self.port is not None:
            self.port.stop()
        self._stop_forming()
        if self.driver is not None:
            self._stop_driver()
        if self._forming_thread is not None:
            self._forming_thread.join()
        if self.peering is not None:
            self.peering.close()
        self.server.close()
        self.pool.stop()
        if self.data is not None:
            self._stop_helpers(self.data)

    def _stop_forming(self) -> None:
        """End the search for others; it may just have become a driver, which is then stopped as one."""
        thread = self._forming_thread
        while thread is not None and thread.is_alive() and self.driver is None:
            if self.former is not None:
                self.former.stopping = True
            thread.join(STOP_POLL_S)

    def _stop_driver(self) -> None:
        assert self.driver is not None
        self.members.hand_over(STOP_HAND_OVER_S)
        self.driver.drain(STOP_DRAIN_S)
        self.driver.stop()
        self.driver.join()

    def _stop_helpers(self, data: DataDir) -> None:
        self.watchdog.stop()
        self.events.emit("on_shutdown")
        self.snapshotter.stop()
        self.driver.installer.join()
        self.housekeeper.stop()
        self.events.stop(CALLBACK_WAIT_S)
        data.claim()
        data.close(clean=self.failure is None)

    def join(self, wait_s: float | None = None) -> bool:
        """Wait until the node has ended; whether it has."""
        return self._ended.wait(wait_s)

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- the driver tells -------------------------------------------------------------------------------------------

    def _role_changed(self, change: RoleChange) -> None:
        """Driver: state first, then the callbacks. A follower is one when it first knows whom it follows."""
        before, leader_before = self.role, self.leader
        self.role, self.term, self.leader = change.role, change.term, change.leader
        self.met_leader = self.met_leader or change.leader is not None
        if change.role is not before or change.leader not in (None, leader_before):
            followed = f" of {change.leader.id}" if change.leader is not None and change.role is not Role.LEADER else ""
            reason = f" ({change.reason})" if change.reason and change.role is not before else ""
            log.info("%s%s in term %d%s", change.role.value, followed, change.term, reason)
        event = _EVENTS[change.role]
        if event != self._event_told and (self.met_leader or event != "on_follower"):
            self._event_told = event
            self.events.emit(event)

    def _snapshot_made(self, meta: SnapshotMeta) -> None:
        """Driver: a durable file that may be the base of the log."""
        if meta.index < self.data.log.first - 1:
            # The leader's snapshot was installed while the child wrote ours: the log begins after it, and the next
            # sweep takes the file away.
            log.info("snapshot %s is older than the one that was installed meanwhile", meta.name)
            return
        self.data.log.add_snapshot(meta)
        self.core.snapshot_available(meta)
        self.driver.snapshot_made(meta)

    # --- what the node knows ----------------------------------------------------------------------------------------

    def leader_member(self) -> Member | None:
        leader = self.leader if self.data is not None else None
        member = self.data.log.membership.get(leader.id) if leader is not None else None
        return member if member is not None and member.ref == leader else None

    def matched(self) -> Mapping[NodeRef, int]:
        """Leader: the acknowledged index of each other member."""
        return self.core.matched() if self.role is Role.LEADER else {}

    def status(self) -> dict[str, object]:
        """The raft section of INFO, and RAFT.INFO."""
        return describe.status(self)

    def member_rows(self) -> Sequence[Mapping[str, object]]:
        return describe.member_rows(self)

    def in_driver(self, fn: Callable[[], T]) -> T:
        """Run `fn` in the driver's thread and wait. Raises what it raises; Uncertain when the driver hangs."""
        return self._calls.run(fn)

    def change_settings(self, values: Mapping[str, Any]) -> None:
        """CONFIG SET, checked already."""
        self.settings.update(values)
        if "min_free_bytes" in values:
            self.housekeeper.min_free_bytes = values["min_free_bytes"]
        if "log_level" in values:
            level = {"warn": "WARNING", "fatal": "CRITICAL"}.get(values["log_level"], str(values["log_level"]).upper())
            logging.getLogger("raftdb").setLevel(level)

    def barrier(self) -> int:
        """Wait until everything that was committed when this was called is applied here; the index.

        Raises CommandError when no majority has confirmed what that is.
        """
        call = Call(self, [Request(0, [b"DBSIZE"], self.table.get(b"DBSIZE"))])
        call.session = Session(0, "embedded", "embedded", consistency=LINEARIZABLE)
        self.driver.reads.take(self.server.loop, [call.run()])
        reply = call.result(self.config.request_timeout_ms / 1000)[0]
        if isinstance(reply, CommandError):
            raise reply
        return self.driver.applied

    # --- embedding --------------------------------------------------------------------------------------------------

    def subscribe(self, name: str, callback: Callback) -> None:
        """Call `callback(node)` on on_start, on_leader, on_follower, on_candidate, on_shutdown."""
        self.events.subscribe(name, callback)

    def execute(self, *words: str | bytes | int | float) -> Any:
        """Run one command as a client would; its reply. Raises CommandError (Unexecuted, Uncertain).

        Replies are what RESP3 makes of them, the same on every node: bytes, str for simple strings ("OK"), int, float,
        bool, None, lists, dicts. Not to be called from the driver's thread, that is, not from a command.
        """
        argv = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        row = self.table.find(argv)
        if row.flags & LOCAL:
            reply = self.machine.local(self.port, self._session, row, argv)
        else:
            call = Call(self, [Request(self._session.db, argv, row)])
            if row.flags & WRITE:
                self.driver.submit([call.ticket()])
            else:
                self.driver.reads.take(self.server.loop, [call.run()])
            reply = call.result(2 * self.config.request_timeout_ms / 1000 + self.config.leader_wait_ms / 1000)[0]
        if isinstance(reply, CommandError):
            raise reply
        return reply if isinstance(reply, _PLAIN) else _plain(resp.encode(reply, 3))

    def settle(self) -> None:
        """Wait, for the leader wait at most, until this node has applied every write that execute() was answered for.

        For reads that go to the store by themselves. Not from a command.
        """
        index = self._session.written_index
        if self.driver.applied >= index:
            return
        end_s = clock.monotonic() + self.config.leader_wait_ms / 1000
        while self.driver.applied < index and clock.monotonic() < end_s and not self._ended.wait(SETTLE_POLL_S):
            pass

    @property
    def is_ready(self) -> bool:
        """This node takes commands: it has data, is let in, and knows a leader (or is one that has caught up)."""
        return self.driver is not None and self.driver.ready_to_serve and self.dispatch.not_ready is None

    def wait_ready(self, wait_s: float) -> bool:
        """Wait until is_ready, or until the node has ended; whether it is ready."""
        end_s = clock.monotonic() + wait_s
        while clock.monotonic() < end_s and not self.is_ready:
            if self._ended.wait(READY_POLL_S):
                break
        return self.is_ready


_PLAIN: Final = (bytes, str, int, float, type(None))


def _plain(data: bytes) -> Any:
    """One encoded reply as plain values; an error as CommandError."""
    reader = hiredis.Reader()
    reader.feed(data)
    reply = reader.gets()
    if isinstance(reply, hiredis.ReplyError):
        return CommandError(str(reply))
    return reply.decode() if data.startswith(b"+") else reply


class Call:
    """Commands of the embedding program: the connection, ticket and run that the driver knows, without a socket."""

    context = None  # no loop gathers for it
    closed = False

    def __init__(self, node: Node, requests: list[Any]) -> None:
        self.session = node._session
        self.loop = node.server.loop
        self.requests = requests
        self.begun = False  # a thread is reading: how long that takes says nothing about the node
        self._ended = node._ended
        self._done = threading.Event()
        self._replies: Sequence[Any] = ()

    def ticket(self) -> Ticket:
        size_bytes = sum(sum(map(len, request.argv)) for request in self.requests)
        return _CallTicket(self, self.requests, size_bytes)

    def run(self) -> Run:
        return _CallRun(self, self.requests)

    def close_after_flush(self) -> None:
        """A handler would end its client's connection; there is none."""

    def abandon(self, _ticket: object, _data: bytes) -> None:
        """The watchdog answers in the place of a driver that is stuck. (It has claimed the ticket.)"""
        self.finish([TIMED_OUT] * len(self.requests))

    answer_for = abandon

    def finish(self, replies: Sequence[Any]) -> None:
        self._replies = replies
        self._done.set()

    def result(self, wait_s: float) -> Sequence[Any]:
        """The replies. Raises TIMED_OUT, but not for a long read (KEYS of a million keys) that has begun by then."""
        while not self._done.wait(wait_s):
            if not self.begun or self._ended.is_set():
                raise TIMED_OUT
        return self._replies


class _CallTicket(Ticket):
    __slots__ = ("call",)

    def __init__(self, call: Call, requests: list[Any], size_bytes: int) -> None:
        super().__init__(call, 3, requests, requests, size_bytes, clock.monotonic())  # type: ignore[arg-type]
        self.call = call

    def answer(self, replies: Sequence[Any], index: int) -> None:
        if self.claim():
            self.call.session.written_index = index
            self.call.finish(list(replies))

    def answer_encoded(self, data: bytes, index: int) -> None:
        """From the leader, in RESP3. (execute() sends one command at a time.)"""
        self.answer([_plain(data)], index)

    def fail(self, error: CommandError) -> None:
        if self.claim():
            self.call.finish([error] * len(self.items))


class _CallRun(Run):
    __slots__ = ("call",)

    def __init__(self, call: Call, requests: list[Any]) -> None:
        super().__init__(call, 3, requests, clock.monotonic())  # type: ignore[arg-type]
        self.call = call

    def execute(self, machine: Machine, ctx: Context) -> bool:
        self.call.begun = True
        self.answer([machine.read_in(ctx, request) for request in self.requests])
        return True

    def answer(self, replies: Sequence[Any]) -> None:
        self.call.finish(list(replies))


def table_digest(table: Table) -> bytes:
    """Tells whether two nodes have the same commands in the same versions."""
    rows = "\n".join(f"{name} {version}" for name, version in sorted(table.versions().items()))
    return hashlib.blake2b(rows.encode(), digest_size=16).digest()
