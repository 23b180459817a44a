"""From parsed commands to the place that answers them: the server's handler.

    LOCAL   answered at once (those that may wait: on a worker)
    READ    at the end of the loop's turn, on one view for all connections of the turn; big ones on a worker
    WRITE   a ticket for the driver, handed over once per turn

A connection's commands are taken in *runs*. A run of reads is answered from a view. A run that holds a write goes to
the driver as one ticket, the reads in it included: they run between the writes when the entry is applied, so that a
mixed pipeline costs one commit and keeps its order. Whatever is neither (MULTI, SELECT, CLIENT, an error) ends the
run and is looked at when the run has been answered.

**Freshness.** The view is opened in `end_of_turn`, after everything that the turn serves was received: a write that
was acknowledged anywhere before a read was sent is in the view. That is all a node needs that leads alone; otherwise
`reads.py` asks the leader first. What mode a run wants is its connection's `consistency`.

Each loop calls this object in its own thread; what a loop gathers stands in its own `Gather`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from raftdb import clock
from raftdb.commands import transactions
from raftdb.commands.context import StampBehind
from raftdb.commands.machine import Request, is_read_only
from raftdb.commands.table import BLOCKING, LOADING, LOCAL, MAY_SHRINK, NOAUTH, NOMULTI, READ, SLOW, TRANSACTION, WRITE
from raftdb.config import SETTINGS
from raftdb.errors import CommandError
from raftdb.net.resp import encode, encode_many
from raftdb.net.server import protected_mode_refusal
from raftdb.node.pending import DISK_LOW, TOO_BUSY, Ticket

if TYPE_CHECKING:
    from raftdb.commands.machine import Machine
    from raftdb.commands.table import Command, Table
    from raftdb.config import Config
    from raftdb.net.server import Connection, Loop, WorkerPool
    from raftdb.node.driver import Driver
    from raftdb.node.port import Port

log = logging.getLogger("raftdb.dispatch")

RECORDS_ON_LOOP_MAX: Final = 1_000  # a read that touches more goes to a worker
RUN_COMMANDS_MAX: Final = 1_024  # of one connection in one turn: the others wait meanwhile
COMMAND_OVERHEAD_BYTES: Final = 16
DATA: Final = READ | WRITE

NO_AUTH: Final = CommandError("NOAUTH Authentication required.")
NOT_IN_MULTI: Final = CommandError("ERR Command not allowed inside a transaction")


class Run:
    """Reads of one connection that are answered together."""

    __slots__ = ("conn", "protocol", "requests", "since_s")

    def __init__(self, conn: Connection, protocol: int, requests: list[Any], since_s: float) -> None:
        self.conn = conn
        self.protocol = protocol
        self.requests = requests
        self.since_s = since_s

    def answer(self, replies: Sequence[Any]) -> None:
        """Any thread that was lent the connection."""
        self.conn.send(encode_many(replies, self.protocol), len(replies))

    def fail(self, error: CommandError) -> None:
        self.answer([error] * len(self.requests))


class Gather:
    """What one loop has taken in the current turn."""

    __slots__ = ("commands", "runs", "tickets")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.runs: list[Run] = []
        self.commands = 0  # since the start of the process


class Dispatch:
    """The Handler of net.server."""

    def __init__(self, config: Config, table: Table, machine: Machine, pool: WorkerPool) -> None:
        self.config = config
        self.settings: dict[str, Any] = {name: getattr(config, name) for name in SETTINGS}  # CONFIG SET changes some
        self.table = table
        self.machine = machine
        self.pool = pool
        self.driver: Driver = None  # type: ignore[assignment]  # set by the node before the first turn
        self.port: Port = None  # type: ignore[assignment]
        self.not_ready: CommandError | None = None  # while forming, loading: why data commands are refused
        self.connections = 0  # accepted since the start of the process
        self._gathers: dict[Loop, Gather] = {}
        self._rows: dict[bytes, Command] = {}  # names as clients spell them
        self._paused: dict[Connection, None] = {}
        self._paused_until_s = 0.0
        self._paused_writes_only = False

    # --- the Handler ------------------------------------------------------------------------------------------------

    def on_open(self, conn: Connection) -> None:
        session, settings = conn.session, self.settings
        session.authenticated = not settings["requirepass"]
        session.consistency = settings["reads"]
        session.bounded_ms = settings["bounded_ms"]
        self.connections += 1
        conn.context = self._gathers.setdefault(conn.loop, Gather())
        refusal = protected_mode_refusal(
            session.address, protected=self.config.protected_mode, has_password=bool(settings["requirepass"])
        )
        if refusal is not None:
            conn.refuse(refusal)

    def on_eof(self, conn: Connection) -> None:
        """Nothing waits for its client alone yet: what is under way is answered, and falls on the floor."""

    def on_close(self, conn: Connection) -> None:
        self._paused.pop(conn, None)

    def on_commands(self, conn: Connection, argvs: list[list[bytes]]) -> int | None:
        """Takes as many commands as make one run, or the special ones in front one by one."""
        session = conn.session
        taken = 0
        while taken < len(argvs):
            if self._paused_until_s and self._is_paused(conn, argvs[taken]):
                break
            if session.authenticated and not session.in_multi and self.not_ready is None:
                count = self._take_run(conn, argvs, taken)
                if count:
                    taken += count
                    break
            taken += 1
            if not self._special(conn, argvs[taken - 1]):
                break
        conn.context.commands += taken
        return taken

    def end_of_turn(self, loop: Loop) -> None:
        gather = self._gathers.get(loop)
        if gather is None:
            return
        if gather.tickets:
            tickets, gather.tickets = gather.tickets, []
            self.driver.submit(tickets)
        if gather.runs:
            runs, gather.runs = gather.runs, []
            self.driver.reads.take(loop, runs)

    def commands(self) -> int:
        """Commands taken since the start of the process. Any thread."""
        return sum(gather.commands for gather in list(self._gathers.values()))

    # --- runs -------------------------------------------------------------------------------------------------------

    def _take_run(self, conn: Connection, argvs: list[list[bytes]], start: int) -> int:
        """The longest run of data commands from `start` on; how many it holds (0: a special one is first)."""
        rows, db = self._rows, conn.session.db
        requests: list[Request] = []
        union = 0
        for argv in argvs[start : start + RUN_COMMANDS_MAX] if start or len(argvs) > RUN_COMMANDS_MAX else argvs:
            row = rows.get(argv[0]) or self._row(argv[0])
            if row is None or not row.flags & DATA or not row.words_min <= len(argv) <= row.words_max:
                break
            if row.size is not None or row.flags & SLOW:
                if union & WRITE:
                    break  # may be long: not while an entry is applied
                union |= SLOW
            elif union & SLOW and row.flags & WRITE:
                break
            union |= row.flags
            requests.append(Request(db, argv, row))
        if requests:
            self._hand_over(conn, requests, union)
        return len(requests)

    def _hand_over(self, conn: Connection, items: list[Any], union: int) -> None:
        gather: Gather = conn.context
        now_s = clock.monotonic()
        if not union & WRITE:
            gather.runs.append(Run(conn, conn.session.protocol, items, now_s))
            return
        writes = items if not union & READ else [item for item in items if item.command.flags & WRITE]
        if self.driver.housekeeper.low and not all(item.command.flags & MAY_SHRINK for item in writes):
            conn.send(encode(DISK_LOW, conn.session.protocol) * len(items), len(items))
            return
        size_bytes = sum([COMMAND_OVERHEAD_BYTES + sum(map(len, item.argv)) for item in writes])
        gather.tickets.append(Ticket(conn, conn.session.protocol, items, writes, size_bytes, now_s))

    def _row(self, name: bytes) -> Command | None:
        """The command of this name, remembered under the client's spelling (spellings are finite: 2**letters)."""
        row = self.table.get(name)
        if row is not None and row.subcommands is None and len(self._rows) < 4_096:
            self._rows[name] = row
        return row

    # --- one command at a time --------------------------------------------------------------------------------------

    def _special(self, conn: Connection, argv: list[bytes]) -> bool:
        """Answer or hand over one command. False: its answer comes later, take no more now."""
        session = conn.session
        try:
            row = self.table.find(argv)
        except CommandError as error:
            if session.in_multi:
                session.refuse_exec()
            return self._reply(conn, NO_AUTH if not session.authenticated else error)
        if not session.authenticated and not row.flags & NOAUTH:
            return self._reply(conn, NO_AUTH)
        if session.in_multi and not row.flags & TRANSACTION:
            return self._reply(conn, self._queue(conn, row, argv))
        if self.not_ready is not None and not row.flags & LOADING:
            return self._reply(conn, self.not_ready)
        if row.flags & TRANSACTION:
            return self._transaction(conn, row, argv)
        if row.flags & DATA:
            self._hand_over(conn, [Request(session.db, argv, row)], row.flags)
            return False
        return self._local(conn, row, argv)

    @staticmethod
    def _reply(conn: Connection, reply: Any) -> bool:
        conn.reply(reply)
        return True

    def _local(self, conn: Connection, row: Command, argv: list[bytes]) -> bool:
        if row.flags & (SLOW | BLOCKING):
            return self._on_worker(conn, lambda: conn.reply(self._run_local(conn, row, argv)))
        reply = self._run_local(conn, row, argv)
        conn.reply(reply)
        if row.name == "QUIT":
            conn.close_after_flush()
            return False
        return True

    def _run_local(self, conn: Connection, row: Command, argv: list[bytes]) -> Any:
        return self.machine.local(self.port, conn.session, row, argv)

    def _on_worker(self, conn: Connection, fn: Callable[[], None]) -> bool:
        """Run `fn`, which answers one command of `conn`, on a worker; False, since its answer comes later."""

        def guarded() -> None:
            try:
                fn()
            except CommandError as error:
                conn.reply(error)
            except Exception as error:
                conn.reply(CommandError("ERR internal error"))
                self.driver.fail(error)

        if not self.pool.submit(guarded):
            conn.reply(TOO_BUSY)
        return False

    # --- MULTI ------------------------------------------------------------------------------------------------------

    def _queue(self, conn: Connection, row: Command, argv: list[bytes]) -> Any:
        if row.flags & NOMULTI:
            conn.session.refuse_exec()
            return NOT_IN_MULTI
        return transactions.queue(self.table, conn.session, argv)

    def _transaction(self, conn: Connection, row: Command, argv: list[bytes]) -> bool:
        """MULTI, EXEC, DISCARD, WATCH, UNWATCH."""
        session = conn.session
        if row.name == "EXEC":
            return self._exec(conn)
        if row.name == "WATCH" and not session.in_multi:
            self._hand_over(conn, [Request(session.db, argv, row)], READ)
            return False
        return self._reply(conn, self.machine.local(self.port, session, row, argv))

    def _exec(self, conn: Connection) -> bool:
        try:
            transaction, merge = transactions.plan(self.table, conn.session)
        except CommandError as error:
            return self._reply(conn, error)
        raise NotImplementedError(transaction, merge, is_read_only)

    # --- serving reads ----------------------------------------------------------------------------------------------

    def serve(self, runs: Sequence[Run], still: Callable[[], bool] | None = None) -> bool:
        """Answer runs that may be served now, on one view. The thread of the runs' loop.

        `still` is asked once the view is open (leases end, a node may stop to lead alone); False: nothing was answered.
        """
        clock_ms = self.driver.clock_for_reads()
        with self.machine.kv.view() as view:  # type: ignore[union-attr]
            if still is not None and not still():
                return False
            for run in runs:
                self._serve_run(view, run, clock_ms)
        return True

    def _serve_run(self, view: Any, run: Run, clock_ms: int | None) -> None:
        read, size = self.machine.read, self.machine.size
        replies = []
        try:
            for request in run.requests:
                row = request.command
                if row.flags & SLOW or (row.size is not None and size(view, request) > RECORDS_ON_LOOP_MAX):
                    self._serve_on_worker(run)
                    return
                replies.append(read(view, request, clock_ms))
        except StampBehind as behind:
            self.driver.reads.await_stamp(run, behind.due_ms)
            return
        run.answer(replies)

    def _serve_on_worker(self, run: Run) -> None:
        """The whole run on a worker: a view that is opened later is only fresher."""

        def work() -> None:
            breathe = clock.Breather()
            try:
                with self.machine.kv.view() as view:  # type: ignore[union-attr]
                    clock_ms = self.driver.clock_for_reads()
                    replies = [self.machine.read(view, request, clock_ms, breathe) for request in run.requests]
            except StampBehind as behind:
                self.driver.reads.await_stamp(run, behind.due_ms)
                return
            run.answer(replies)

        if not self.pool.submit(work):
            run.fail(TOO_BUSY)

    # --- CLIENT PAUSE -----------------------------------------------------------------------------------------------

    def pause(self, until_s: float, writes_only: bool) -> None:
        """Hold commands (or only writes) back until `until_s` of the monotonic clock. Any thread."""
        self._paused_writes_only = writes_only
        self._paused_until_s = until_s

    def unpause(self) -> None:
        self._paused_until_s = 0.0
        for conn in list(self._paused):
            conn.resume()
        self._paused.clear()

    def _is_paused(self, conn: Connection, argv: list[bytes]) -> bool:
        row = self.table.get(argv[0])
        if row is None or (row.flags & LOCAL and not row.flags & TRANSACTION):
            return False
        if self._paused_writes_only and not row.flags & WRITE and row.name != "EXEC":
            return False
        self._paused[conn] = None
        return True

    def tick(self, now_s: float) -> None:
        """Driver, once per tick."""
        if self._paused_until_s and now_s >= self._paused_until_s:
            self.unpause()
