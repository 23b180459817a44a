"""From parsed commands to the place that answers them: the server's handler.

    LOCAL   answered at once (those that may wait: on a worker)
    READ    at the end of the loop's turn, on one view for all connections of the turn; long ones on a worker
    WRITE   a ticket for the driver, handed over once per turn

A connection's commands are taken in *runs*. A run of reads is answered from a view. A run that holds a write goes to
the driver as one ticket, the reads in it included: they run between the writes when the entry is applied, so that a
mixed pipeline costs one commit and keeps its order. Whatever is neither (MULTI, SELECT, CLIENT, an error) ends the
run and is looked at when the run has been answered.

**Freshness.** The view is opened in `end_of_turn`, after everything that the turn serves was received: a write that
was acknowledged anywhere before a read was sent is in the view. That is all a node needs that leads alone; otherwise
`reads.py` asks the leader first. What mode a run wants is its connection's `consistency`.

**What is long?** Head records tell how many records a read will touch; beyond RECORDS_ON_LOOP_MAX it goes to a worker
at once. What they do not tell (the size of values, commands that declare nothing) shows while it runs: a `Room` is
what all reads of a turn may cost together, and who finds it used up is begun anew on a worker. A worker does not begin
a read while a lot of its loop's output is unsent: replies of 240 MiB are allowed, but not fifty of them in memory.

Each loop calls this object in its own thread; what a loop gathers stands in its own `Gather`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import lmdb

from raftdb import clock
from raftdb.commands import transactions
from raftdb.commands.context import LongRead, StampBehind
from raftdb.commands.machine import Request, is_read_only
from raftdb.commands.table import BLOCKING, LOADING, LOCAL, MAY_SHRINK, NOAUTH, READ, SLOW, TRANSACTION, WRITE
from raftdb.commands.transactions import Plan
from raftdb.config import SETTINGS
from raftdb.errors import CommandError, RaftdbError
from raftdb.net.resp import encode, encode_many
from raftdb.net.server import protected_mode_refusal
from raftdb.node.pending import DISK_LOW, ENTRY_BYTES_MAX, TOO_BUSY, Ticket, fits_an_entry
from raftdb.node.pending import TOO_LARGE as TOO_LARGE_FOR_AN_ENTRY
from raftdb.types import OK, Encoded

if TYPE_CHECKING:
    from raftdb.commands.context import Context
    from raftdb.commands.machine import Machine
    from raftdb.commands.table import Command, Table
    from raftdb.config import Config
    from raftdb.net.server import Connection, Loop, WorkerPool
    from raftdb.node.driver import Driver
    from raftdb.node.port import Port
    from raftdb.storage.view import View

log = logging.getLogger("raftdb.dispatch")

RECORDS_ON_LOOP_MAX: Final = 1_000  # a run that touches more goes to a worker
RECORDS_PER_TURN_MAX: Final = 10_000  # of all runs of a turn together
VALUE_BYTES_PER_TURN_MAX: Final = 8 * 1024 * 1024  # large values that a turn reads: 16 MiB take about 20 ms
READS_PER_TURN_MAX: Final = 4_096  # the others of a turn wait for the next one: the peers come in between
LOCALS_ON_LOOP_MAX: Final = 16  # local commands of one EXEC; more are answered by a worker
UNSENT_BYTES_MAX: Final = 256 * 1024 * 1024  # of a loop's output, above which its long reads wait
UNSENT_PATIENCE_S: Final = 5.0  # after it one more is begun all the same: who does not read is in danger, not who waits
RUN_COMMANDS_MAX: Final = 1_024  # of one connection in one turn: the others wait meanwhile
READS_IN_TICKET_MAX: Final = 16  # reads that ride along with writes: their replies are all in memory at once
REPLY_BYTES_MAX: Final = 1024 * 1024  # of one run at a time
COMMAND_OVERHEAD_BYTES: Final = 16
DATA: Final = READ | WRITE
#: Not a mistake in one command: the node must stop.
FATAL: Final = (RaftdbError, OSError, MemoryError, lmdb.Error)

INTERNAL: Final = CommandError("ERR internal error; the log of the node tells more")
NO_AUTH: Final = CommandError("NOAUTH Authentication required.")
TOO_LARGE: Final = CommandError("ERR the transaction is too large; EXEC will fail")


class Run:
    """Reads of one connection that are answered together."""

    __slots__ = ("at", "conn", "protocol", "requests", "since_s")

    def __init__(self, conn: Connection, protocol: int, requests: list[Any], since_s: float) -> None:
        self.at = 0  # requests before this one are answered
        self.conn = conn
        self.protocol = protocol  # 0: the client wants no answers
        self.requests = requests
        self.since_s = since_s

    def execute(self, machine: Machine, ctx: Context) -> bool:
        """Answer in order, up to REPLY_BYTES_MAX at a time; False: not all are answered yet. Raises StampBehind."""
        read, requests, protocol = machine.read_in, self.requests, self.protocol
        parts: list[bytes] = []
        size_bytes = 0
        start = at = self.at
        try:
            while at < len(requests) and size_bytes < REPLY_BYTES_MAX:
                part = encode(read(ctx, requests[at]), protocol) if protocol else b""
                parts.append(part)
                size_bytes += len(part)
                at += 1
        finally:
            self.at = at
            if at > start:
                self.conn.send(b"".join(parts), at - start)
        return at == len(requests)

    def is_long(self, machine: Machine, view: View) -> bool:
        """Does this belong on a worker? Head records tell."""
        return are_long(self.requests[self.at :] if self.at else self.requests, machine, view)

    @property
    def left(self) -> int:
        """Requests that are not answered yet."""
        return len(self.requests) - self.at

    def answer(self, replies: Sequence[Any]) -> None:
        """The rest at once. Any thread that was lent the connection."""
        self.at = len(self.requests)
        data = encode_many(replies, self.protocol) if self.protocol else b""
        self.conn.send(data, len(replies))

    def fail(self, error: CommandError) -> None:
        """The same error for each request that is not answered yet."""
        self.answer([error] * self.left)


def are_long(requests: Sequence[Any], machine: Machine, view: View) -> bool:
    """Do these reads together belong on a worker?"""
    records = 0
    for request in requests:
        row = request.command
        if row.flags & SLOW:
            return True
        if row.size is not None:
            records += machine.size(view, request)
            if records > RECORDS_ON_LOOP_MAX:
                return True
    return False


class Room:
    """What the reads of one turn may cost on their loop. Raises LongRead when it is used up."""

    __slots__ = ("reads", "records", "value_bytes")

    def __init__(self) -> None:
        self.reads = READS_PER_TURN_MAX
        self.records = RECORDS_PER_TURN_MAX
        self.value_bytes = VALUE_BYTES_PER_TURN_MAX

    def breathe(self) -> None:
        """Of commands: once per record."""
        self.records -= 1
        if self.records < 0:
            raise LongRead

    def on_large(self, size_bytes: int) -> None:
        """Of views: before a large value is decoded."""
        self.value_bytes -= size_bytes
        if self.value_bytes < 0:
            raise LongRead


class WatchRun(Run):
    """WATCH: the versions of the keys, remembered in the session."""

    __slots__ = ()

    def execute(self, machine: Machine, ctx: Context) -> bool:
        request = self.requests[0]
        keys = request.argv[1:]
        versions = machine.watch(ctx.txn, request.db, keys, ctx.clock_ms)
        for key, version in zip(keys, versions, strict=True):
            self.conn.session.watch(request.db, key, version)
        self.answer([OK])
        return True

    def is_long(self, machine: Machine, view: View) -> bool:
        return False


class ExecRun(Run):
    """EXEC of a transaction that only reads."""

    __slots__ = ("finish", "plan")

    def __init__(
        self, conn: Connection, protocol: int, plan: Plan, since_s: float, finish: Callable[[Any], Any]
    ) -> None:
        super().__init__(conn, protocol, [plan.transaction], since_s)
        self.plan = plan
        self.finish = finish

    def execute(self, machine: Machine, ctx: Context) -> bool:
        self.answer([machine.read(ctx.txn, self.requests[0], ctx.clock_ms, ctx.breathe)])
        return True

    def is_long(self, machine: Machine, view: View) -> bool:
        requests = self.requests[0].requests
        return len(requests) > RUN_COMMANDS_MAX or has_long_locals(self.plan) or are_long(requests, machine, view)

    def answer(self, replies: Sequence[Any]) -> None:
        super().answer([self.finish(reply) for reply in replies])


def has_long_locals(plan: Plan) -> bool:
    """Should a worker answer the local commands of this EXEC?"""
    return len(plan.local) > LOCALS_ON_LOOP_MAX or any(row.flags & SLOW for row, _ in plan.local.values())


class ExecTicket(Ticket):
    """EXEC of a transaction that writes: local commands of the queue are answered when it has been executed."""

    __slots__ = ("finish", "plan", "pool")

    def __init__(
        self,
        conn: Connection,
        protocol: int,
        plan: Plan,
        size_bytes: int,
        since_s: float,
        finish: Callable[[Any], Any],
        pool: WorkerPool,
    ) -> None:
        items = [plan.transaction]
        super().__init__(conn, protocol, items, items, size_bytes, since_s)
        self.plan = plan
        self.finish = finish
        self.pool = pool

    def answer(self, replies: Sequence[Any], index: int) -> None:
        if not self._finish_on_worker(replies[0], index):
            super().answer([self.finish(reply) for reply in replies], index)

    def answer_encoded(self, data: bytes, index: int) -> None:
        """The leader's array, with the answers of the local commands put in their places."""
        if not data.startswith(b"*") or data.startswith(b"*-"):
            super().answer_encoded(data, index)
            return
        replies = [Encoded(element) for element in elements(data)]
        if not self._finish_on_worker(replies, index):
            super().answer_encoded(encode(self.finish(replies), self.protocol), index)

    def _finish_on_worker(self, reply: Any, index: int) -> bool:
        """Not by the driver when it may take long. False: there is no need to, or no worker."""
        if not has_long_locals(self.plan):
            return False

        def work() -> None:
            data = encode(self.finish(reply), self.protocol) if self.protocol else b""
            self.conn.send(data, 1, self.run)

        if not self.claim():
            return True
        self.conn.session.written_index = index
        if not self.pool.submit(work):
            work()
        return True


class Gather:
    """What one loop has taken in the current turn."""

    __slots__ = ("admitted_s", "commands", "due", "held", "room", "runs", "stalled", "tickets")

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.runs: list[Run] = []
        self.due: list[Run] = []  # may be answered, but the turn's room was used up
        self.held: list[Run] = []  # long ones that wait until more of the loop's output is sent
        self.stalled: list[Run] = []  # answered in part: go on when the client has read
        self.admitted_s = 0.0  # when a long read was begun last
        self.room = Room()  # of the current turn
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
        self._plain: dict[bytes, Command] = {}  # those of them that are short data commands
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
        if len(argvs) == 1 and self._take_plain(conn, argvs[0]):
            return None
        session = conn.session
        taken = 0
        while taken < len(argvs) and not conn.congested:
            if self._paused_until_s and self._is_paused(conn, argvs[taken]):
                break
            if session.authenticated and not session.in_multi and self.not_ready is None and session.reply_mode == "on":
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
        gather.room = Room()
        if gather.due:
            due, gather.due = gather.due, []
            self.serve(due)
        if gather.held:
            self._take_up(loop, gather)
        if gather.stalled:
            self._go_on(gather)
        if gather.runs:
            runs, gather.runs = gather.runs, []
            self.driver.reads.take(loop, runs)

    def has_writes(self, loop: Loop) -> bool:
        """Was a write taken in this turn of `loop`?"""
        gather = self._gathers.get(loop)
        return gather is not None and bool(gather.tickets)

    def writes_taken(self, loop: Loop) -> int:
        """From how many connections writes were taken in this turn of `loop`."""
        gather = self._gathers.get(loop)
        return 0 if gather is None else len(gather.tickets)

    @staticmethod
    def _go_on(gather: Gather) -> None:
        """Runs whose client has read what it got are served further; those of clients that left are dropped."""
        stalled, gather.stalled = gather.stalled, []
        for run in stalled:
            if run.conn.congested and not run.conn.closed:
                gather.stalled.append(run)
            elif not run.conn.closed:
                gather.runs.append(run)

    def _take_up(self, loop: Loop, gather: Gather) -> None:
        """Long reads that waited for room in the loop's output: they look again themselves, one after the other."""
        held = gather.held
        if not _must_wait(loop, gather, clock.monotonic()):
            gather.held = []
            for run in held:
                self._serve_on_worker(run)

    def commands(self) -> int:
        """Commands taken since the start of the process. Any thread."""
        return sum(gather.commands for gather in list(self._gathers.values()))

    # --- runs -------------------------------------------------------------------------------------------------------

    def _take_plain(self, conn: Connection, argv: list[bytes]) -> bool:
        """One short data command of a connection on which nothing is special, taken in a third of the steps of a run.

        False, and nothing is done, for all others.
        """
        row, session = self._plain.get(argv[0]), conn.session
        if (
            row is None
            or not row.words_min <= len(argv) <= row.words_max
            or session.in_multi
            or not session.authenticated
            or session.reply_mode != "on"
            or self.not_ready is not None
            or self._paused_until_s
            or conn.congested
        ):
            return False
        gather: Gather = conn.context
        items = [tuple.__new__(Request, (session.db, argv, row))]
        if row.flags & WRITE:
            size_bytes = COMMAND_OVERHEAD_BYTES + sum(map(len, argv))
            if size_bytes > ENTRY_BYTES_MAX // 4 or self.driver.housekeeper.low:
                return False
            gather.tickets.append(Ticket(conn, session.protocol, items, items, size_bytes, conn.loop.now_s))
        else:
            gather.runs.append(Run(conn, session.protocol, items, conn.loop.now_s))
        gather.commands += 1
        return True

    def _take_run(self, conn: Connection, argvs: list[list[bytes]], start: int) -> int:
        """The longest run of data commands from `start` on; how many it holds (0: a special one is first)."""
        rows, db, new = self._rows, conn.session.db, tuple.__new__
        requests: list[Request] = []
        union = riding = 0
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
            elif union & WRITE and row.flags & READ:
                riding += 1
                if riding > READS_IN_TICKET_MAX:
                    break
            union |= row.flags
            requests.append(new(Request, (db, argv, row)))  # half the time of Request(...)
        return self._hand_over(conn, requests, union) if requests else 0

    def _hand_over(self, conn: Connection, items: list[Any], union: int) -> int:
        """How many of them are taken: not all when they do not fit into one entry of the log."""
        gather: Gather = conn.context
        now_s = clock.monotonic()
        protocol = self._protocol(conn)
        if not union & WRITE:
            gather.runs.append(Run(conn, protocol, items, now_s))
            return len(items)
        if self.driver.housekeeper.low:
            count, taken = _alike_on_a_low_disk(items)
            if not taken:
                conn.send(encode_many([DISK_LOW] * count, protocol) if protocol else b"", count)
                return count
            if count < len(items):
                return self._hand_over(conn, items[:count], _union(items[:count]))
        writes = items if not union & READ else [item for item in items if item.command.flags & WRITE]
        size_bytes = sum([COMMAND_OVERHEAD_BYTES + sum(map(len, item.argv)) for item in writes])
        if size_bytes > ENTRY_BYTES_MAX // 4 and not fits_an_entry(item.argv for item in items):
            return self._hand_over_in_part(conn, items, protocol)
        gather.tickets.append(Ticket(conn, protocol, items, writes, size_bytes, now_s))
        return len(items)

    def _hand_over_in_part(self, conn: Connection, items: list[Any], protocol: int) -> int:
        """The first half of a run that is too large for an entry; one command alone is refused."""
        if len(items) == 1:
            conn.send(encode(TOO_LARGE_FOR_AN_ENTRY, protocol) if protocol else b"")
            return 1
        part = items[: len(items) // 2]
        return self._hand_over(conn, part, _union(part))

    @staticmethod
    def _protocol(conn: Connection) -> int:
        """The protocol that the answers of the commands at hand are due in; 0 when the client wants none."""
        session = conn.session
        if session.reply_mode == "on":
            return session.protocol
        if session.reply_mode == "skip":
            session.reply_mode = "on"
        return 0

    def _row(self, name: bytes) -> Command | None:
        """The command of this name, remembered under the client's spelling (spellings are finite: 2**letters)."""
        row = self.table.get(name)
        if row is not None and row.subcommands is None and len(self._rows) < 4_096:
            self._rows[name] = row
            if row.flags & DATA and row.size is None and not row.flags & SLOW:
                self._plain[name] = row
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
        if session.in_multi and transactions.is_queued(row):
            return self._reply(conn, self._queue(conn, row, argv))
        if self.not_ready is not None and not row.flags & LOADING:
            return self._reply(conn, self.not_ready)
        if row.flags & TRANSACTION:
            return self._transaction(conn, row, argv)
        if row.flags & DATA:
            self._hand_over(conn, [Request(session.db, argv, row)], row.flags)
            return False
        return self._local(conn, row, argv)

    def _reply(self, conn: Connection, reply: Any) -> bool:
        """Answer now."""
        if self._protocol(conn):
            conn.reply(reply)
        else:
            conn.send(b"")
        return True

    def _local(self, conn: Connection, row: Command, argv: list[bytes]) -> bool:
        if self.driver is not None and conn.loop is self.driver.loop:
            self.driver.applier.show()  # it may look at the data by itself
        if row.flags & (SLOW | BLOCKING):
            return self._on_worker(conn, lambda: self._run_local(conn, row, argv))
        mode = conn.session.reply_mode
        reply = self._run_local(conn, row, argv)
        if mode == conn.session.reply_mode:
            self._reply(conn, reply)
        else:
            conn.reply(reply)  # CLIENT REPLY itself: its own answer is right
        if row.name == "QUIT":
            conn.close_after_flush()
            return False
        return True

    def _run_local(self, conn: Connection, row: Command, argv: list[bytes]) -> Any:
        try:
            return self.machine.local(self.port, conn.session, row, argv)
        except FATAL:
            raise
        except Exception:  # a bug in one command, which has changed no record: its client is told, the others go on
            log.exception("bug in %s", row.name)
            return INTERNAL

    def _on_worker(self, conn: Connection, fn: Callable[[], Any]) -> bool:
        """Run `fn`, which answers one command of `conn`, on a worker; False, since its answer comes later."""

        def guarded() -> None:
            try:
                reply = fn()
            except CommandError as error:
                reply = error
            except Exception as error:
                reply = INTERNAL
                self.driver.fail(error)
            self._reply(conn, reply)

        if not self.pool.submit(guarded):
            conn.reply(TOO_BUSY)
        return False

    # --- MULTI ------------------------------------------------------------------------------------------------------

    @staticmethod
    def _queue(conn: Connection, row: Command, argv: list[bytes]) -> Any:
        refused = transactions.refused_in_multi(row)
        if refused is not None:
            conn.session.refuse_exec()
            return refused
        if not conn.session.enqueue(argv):
            return TOO_LARGE
        return transactions.QUEUED

    def _transaction(self, conn: Connection, row: Command, argv: list[bytes]) -> bool:
        """MULTI, EXEC, DISCARD, WATCH, UNWATCH."""
        session = conn.session
        if session.in_multi and row.name == "EXEC":
            return self._exec(conn)
        if row.name == "WATCH" and not session.in_multi:
            request = Request(session.db, argv, row)
            conn.context.runs.append(WatchRun(conn, self._protocol(conn), [request], clock.monotonic()))
            return False
        return self._reply(conn, self.machine.local(self.port, session, row, argv))

    def _exec(self, conn: Connection) -> bool:
        session = conn.session
        try:
            plan = transactions.plan_exec(self.table, session)
        except CommandError as error:
            return self._reply(conn, error)

        def finish(reply: Any) -> Any:
            return plan.merge(reply, transactions.local_runner(self.table, self.port, session), session)

        if plan.is_empty and has_long_locals(plan):
            return self._on_worker(conn, lambda: finish([]))
        if plan.is_empty:
            return self._reply(conn, finish([]))
        return self._execute(conn, plan, finish)

    def _execute(self, conn: Connection, plan: Plan, finish: Callable[[Any], Any]) -> bool:
        """A transaction that only reads is a read; any other is a write."""
        protocol, now_s = self._protocol(conn), clock.monotonic()
        transaction = plan.transaction
        if is_read_only(transaction):
            conn.context.runs.append(ExecRun(conn, protocol, plan, now_s, finish))
            return False
        if self.driver.housekeeper.low and not all(_shrinks(request) for request in transaction.requests):
            conn.send(encode(DISK_LOW, protocol) if protocol else b"")
            return True
        size_bytes = sum([COMMAND_OVERHEAD_BYTES + sum(map(len, request.argv)) for request in transaction.requests])
        conn.context.tickets.append(ExecTicket(conn, protocol, plan, size_bytes, now_s, finish, self.pool))
        return False

    # --- serving reads ----------------------------------------------------------------------------------------------

    def serve(self, runs: Sequence[Run], still: Callable[[int], bool] | None = None) -> bool:
        """Answer runs that may be served now, on one view. The thread of the runs' loop.

        `still(applied index of the view)` is asked once the view is open (leases end, a node may stop to lead alone,
        the view may lack what others have shown); False: nothing was answered.
        """
        clock_ms = self.driver.clock_for_reads()
        with self.machine.kv.view() as view:  # type: ignore[union-attr]
            if still is not None and not still(view.applied):
                return False
            room = self._room_of(runs[0])
            view.on_large = room.on_large
            ctx = self.machine.context(view, 0, clock_ms, room.breathe)
            for at, run in enumerate(runs):
                if room.reads <= 0:
                    self._serve_later(runs[at:])
                    break
                room.reads -= run.left
                self._serve_run(view, ctx, run)
        return True

    @staticmethod
    def _room_of(run: Run) -> Room:
        """What the turn of the run's loop has left. Commands of the embedding program run in its own threads."""
        gather = run.conn.context
        return Room() if gather is None else gather.room

    @staticmethod
    def _serve_later(runs: Sequence[Run]) -> None:
        """In the next turn. What could be served now may be served then: a view that is opened later is fresher."""
        conn = runs[0].conn
        conn.context.due += runs
        conn.loop.wake()

    def _serve_run(self, view: View, ctx: Context, run: Run) -> None:
        try:
            if run.is_long(self.machine, view):
                raise LongRead
            if not run.execute(self.machine, ctx):
                run.conn.context.stalled.append(run)
        except LongRead:
            self._serve_on_worker(run)
        except StampBehind as behind:
            self.driver.reads.await_stamp(run, behind.due_ms)
        except FATAL:
            raise
        except Exception:  # as for local commands
            log.exception("bug in a read")
            run.fail(INTERNAL)

    def _serve_on_worker(self, run: Run) -> None:
        """The whole run on a worker: a view that is opened later is only fresher."""

        def work() -> None:
            started_s, loop = clock.monotonic(), run.conn.loop
            if run.conn.closed:
                return
            gather = run.conn.context
            if gather is not None:
                if _must_wait(loop, gather, started_s):
                    loop.post(lambda: gather.held.append(run))
                    return
                gather.admitted_s = started_s
            try:
                with self.machine.kv.view() as view:  # type: ignore[union-attr]
                    breathe = clock.Breather()
                    view.on_large = lambda _size_bytes: breathe.now()
                    ctx = self.machine.context(view, 0, self.driver.clock_for_reads(), breathe)
                    done = run.execute(self.machine, ctx)
            except StampBehind as behind:
                self.driver.reads.await_stamp(run, behind.due_ms)
                return
            except FATAL:
                raise
            except Exception:  # as on the loop
                log.exception("bug in a read")
                run.fail(INTERNAL)
                return
            if ctx.closing:
                run.conn.close_after_flush()
            if not done:
                loop.post(lambda: run.conn.context.stalled.append(run))
            self._note_slow(started_s, run)

        if not self.pool.submit(work):
            run.fail(TOO_BUSY)

    def _note_slow(self, started_s: float, run: Run) -> None:
        micros = int((clock.monotonic() - started_s) * 1e6)
        request = run.requests[0]
        argv = request.argv if isinstance(request, Request) else [b"EXEC"]
        self.port.slow(micros, argv, run.conn.session)

    # --- CLIENT PAUSE -----------------------------------------------------------------------------------------------

    def pause(self, until_s: float, writes_only: bool) -> None:
        """Hold commands (or only writes) back until `until_s` of the monotonic clock. Any thread."""
        self._paused_writes_only = writes_only
        self._paused_until_s = until_s

    def unpause(self) -> None:
        self._paused_until_s = 0.0
        while self._paused:  # one by one: other loops add to it meanwhile
            conn, _ = self._paused.popitem()
            conn.resume()

    def _is_paused(self, conn: Connection, argv: list[bytes]) -> bool:
        row = self.table.get(argv[0])
        if row is None or (row.flags & LOCAL and not row.flags & TRANSACTION):
            return False
        if self._paused_writes_only and not row.flags & WRITE and row.name != "EXEC":
            return False
        self._paused[conn] = None
        return bool(self._paused_until_s)  # unpause() may have been faster than this line: nobody would resume it

    def tick(self, now_s: float) -> None:
        """Driver, once per tick."""
        if self._paused_until_s and now_s >= self._paused_until_s:
            self.unpause()


def _must_wait(loop: Loop, gather: Gather, now_s: float) -> bool:
    """Is so much of the loop's output unsent that a long read should not add to it now?"""
    return loop.out_bytes > UNSENT_BYTES_MAX and now_s <= gather.admitted_s + UNSENT_PATIENCE_S


def _union(items: Sequence[Request]) -> int:
    """The flags of these requests together."""
    union = 0
    for item in items:
        union |= item.command.flags  # type: ignore[union-attr]
    return union


def _alike_on_a_low_disk(items: Sequence[Request]) -> tuple[int, bool]:
    """How many of the first requests share one fate, and whether they are taken: reads and what frees space are."""
    taken = _shrinks(items[0])
    return next((at for at, item in enumerate(items) if _shrinks(item) != taken), len(items)), taken


def _shrinks(request: Any) -> bool:
    """Is this request taken when there is little room on the disk?"""
    return not request.command.flags & WRITE or bool(request.command.flags & MAY_SHRINK)


def elements(data: bytes) -> list[bytes]:
    """The elements of one encoded array, each as it stands on the wire."""
    at = data.index(b"\r\n") + 2
    found = []
    while at < len(data):
        stop = _end(data, at)
        found.append(data[at:stop])
        at = stop
    return found


def _end(data: bytes, at: int) -> int:
    """Where the reply that starts at `at` ends."""
    line = data.index(b"\r\n", at)
    kind = data[at : at + 1]
    if kind in b"$=!":
        size = int(data[at + 1 : line])
        return line + 2 if size < 0 else line + 4 + size
    if kind not in b"*~>%":
        return line + 2
    count = int(data[at + 1 : line]) * (2 if kind == b"%" else 1)
    at = line + 2
    for _ in range(count):
        at = _end(data, at)
    return at
