"""MULTI, EXEC, DISCARD, WATCH, UNWATCH.

The queue and the watches live in the session, on the node that the client talks to. EXEC makes one Transaction of the
queue, which becomes (part of) one log entry; the versions of the watched keys are compared when it is applied, so the
answer is right wherever the leader is by then.

Some queued commands have no meaning in an entry: PING, CLIENT, CONFIG, INFO, SELECT. They are left out of the
Transaction; `Plan.merge` answers them on the node and puts the answers in their places. SELECT is worked out when the
plan is made: each request carries its own database.

What the node does at EXEC:

    plan = plan_exec(table, session)              raises CommandError (EXECABORT); the queue is gone then
    reply = ... log or read plan.transaction ...  (a plan without requests and watches needs neither: reply = [])
    reply = plan.merge(reply, run_local)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..errors import CommandError
from ..types import OK, Encoded, Reply
from .args import Key, Many
from .connection import select
from .context import REPLY_BYTES_MAX, REPLY_ITEM_BYTES, REPLY_TOO_LARGE, LocalContext, ServerPort, SessionPort
from .keyspace import database
from .machine import Request, Transaction, Watch
from .table import FAST, IN_ENTRY, LOADING, LOCAL, NOMULTI, NOSCRIPT, TRANSACTION, Command, Table, command

QUEUED: Final = Encoded(b"+QUEUED\r\n")
NESTED: Final = "ERR MULTI calls can not be nested"
EXEC_ALONE: Final = "ERR EXEC without MULTI"
DISCARD_ALONE: Final = "ERR DISCARD without MULTI"
WATCH_INSIDE: Final = "ERR WATCH inside MULTI is not allowed"
ABORTED: Final = "EXECABORT Transaction discarded because of previous errors."
NOT_IN_MULTI: Final = "ERR Command not allowed inside a transaction"

TALK: Final = LOCAL | LOADING | NOSCRIPT | TRANSACTION
#: (command, argv) -> reply, on the node
RunLocal = Callable[[Command, list[bytes]], Reply]


@command(
    "MULTI",
    flags=TALK | FAST,
    since="1.2.0",
    group="transactions",
    summary="Queue the commands that follow, until EXEC",
)
def multi(ctx: LocalContext) -> Reply:
    if ctx.session.in_multi:
        raise CommandError(NESTED)
    ctx.session.begin_multi()
    return OK


@command(
    "DISCARD",
    flags=TALK | FAST,
    since="2.0.0",
    group="transactions",
    summary="Forget what was queued since MULTI, and the watched keys",
)
def discard(ctx: LocalContext) -> Reply:
    if not ctx.session.in_multi:
        raise CommandError(DISCARD_ALONE)
    ctx.session.clear_transaction()
    ctx.session.unwatch()
    return OK


@command(
    "EXEC",
    flags=TALK,
    since="1.2.0",
    group="transactions",
    summary="Run what was queued since MULTI as one entry of the log",
)
def exec_(ctx: LocalContext) -> Reply:
    """Outside MULTI; inside it the node calls plan_exec()."""
    raise CommandError(EXEC_ALONE)


@command(
    "WATCH",
    Many(Key()),
    flags=TALK | FAST,
    since="2.2.0",
    group="transactions",
    summary="Let EXEC do nothing if one of these keys changes before it",
)
def watch(ctx: LocalContext, _names: list[bytes]) -> Reply:
    """Inside MULTI; outside it the node reads the versions on a view (Machine.watch)."""
    raise CommandError(WATCH_INSIDE)


@command("UNWATCH", flags=TALK | FAST, since="2.2.0", group="transactions", summary="Forget the watched keys")
def unwatch(ctx: LocalContext) -> Reply:
    """Inside MULTI it is queued, and then does nothing: EXEC forgets the watches anyway."""
    ctx.session.unwatch()
    return OK


#: never queued: executed at once also inside MULTI (QUIT and RESET end it)
AT_ONCE: Final = frozenset(("MULTI", "EXEC", "DISCARD", "WATCH", "QUIT", "RESET"))


def is_queued(command: Command) -> bool:
    """Inside MULTI: is this command queued (else it is executed at once)?"""
    return command.name not in AT_ONCE


def refused_in_multi(command: Command) -> CommandError | None:
    """The error of a command that must not stand inside MULTI; the transaction is then to be refused."""
    return CommandError(NOT_IN_MULTI) if command.flags & NOMULTI else None


class Plan:
    """One EXEC: what goes into the log, and how its replies and the local ones are put together."""

    __slots__ = ("db", "local", "size", "transaction")

    def __init__(
        self, transaction: Transaction, local: dict[int, tuple[Command, list[bytes]]], size: int, db: int
    ) -> None:
        self.transaction = transaction
        self.local = local  # place in the queue -> command that the node answers
        self.size = size
        self.db = db  # of the session when the transaction has been executed

    @property
    def is_empty(self) -> bool:
        """Is there nothing to execute or to compare on records?"""
        return not self.transaction.requests and not self.transaction.watches

    def merge(self, reply: Reply, run_local: RunLocal, session: SessionPort | None = None) -> Reply:
        """The reply of EXEC, from the transaction's. A null array or an error stays what it is."""
        if not isinstance(reply, list):
            return reply
        if session is not None:
            session.db = self.db
        if not self.local:
            return reply
        rest = iter(reply)
        merged: list[Reply] = []
        room_bytes = REPLY_BYTES_MAX
        for place in range(self.size):
            local = self.local.get(place)
            if local is None:
                merged.append(next(rest))
                continue
            answer = _answer(local, run_local) if room_bytes > 0 else CommandError(REPLY_TOO_LARGE)
            room_bytes -= weight(answer)
            merged.append(answer)
        return merged


def weight(reply: Reply) -> int:
    """About how many bytes of memory a reply takes."""
    if isinstance(reply, bytes | str):
        return REPLY_ITEM_BYTES + len(reply)
    if isinstance(reply, dict):
        return REPLY_ITEM_BYTES + sum(weight(item) for row in reply.items() for item in row)
    if isinstance(reply, list | tuple):
        return REPLY_ITEM_BYTES + sum(map(weight, reply))
    return REPLY_ITEM_BYTES


def _answer(local: tuple[Command, list[bytes]], run_local: RunLocal) -> Reply:
    row, argv = local
    if row.name != "SELECT":
        return run_local(row, argv)
    try:
        database(argv[1])
    except CommandError as error:
        return error
    return OK


def plan_exec(table: Table, session: SessionPort) -> Plan:
    """Take the session's queue and watches and make one transaction of them. MULTI is over then, whatever happens.

    Raises CommandError (EXECABORT) when a command could not be queued.
    """
    queue, dirty, watched, db = session.queue, session.dirty_exec, session.watches, session.db
    session.clear_transaction()
    session.unwatch()
    if dirty:
        raise CommandError(ABORTED)
    requests: list[Request] = []
    local: dict[int, tuple[Command, list[bytes]]] = {}
    first_db = db
    for place, argv in enumerate(queue):
        row = table.find(argv)
        if row.flags & LOCAL and not row.flags & IN_ENTRY:
            local[place] = (row, argv)
            db = _selected(row, argv, db)
        else:
            requests.append(Request(db, argv, row))
    watches = [Watch(watched_db, key, version) for (watched_db, key), version in watched.items()]
    return Plan(Transaction(first_db, watches, requests), local, len(queue), db)


def _selected(row: Command, argv: list[bytes], db: int) -> int:
    if row.name != select.name:
        return db
    try:
        return database(argv[1])
    except CommandError:
        return db


def local_runner(table: Table, server: ServerPort, session: SessionPort) -> RunLocal:
    """The `run_local` of a session."""

    def run(row: Command, argv: list[bytes]) -> Reply:
        try:
            return row.run(LocalContext(table, server, session), argv)
        except CommandError as error:
            return error

    return run


COMMANDS: list[Command] = [multi, discard, exec_, watch, unwatch]
