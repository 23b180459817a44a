"""The two that play a program: Debian's redis-server, and raftdb's machine over a real store, in this process."""

from __future__ import annotations

import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from raftdb.commands import transactions
from raftdb.commands.machine import Machine, Request, is_read_only
from raftdb.commands.table import LOCAL, READ, Command, builtin_table
from raftdb.errors import CommandError
from raftdb.net.resp import encode
from raftdb.net.session import Session
from raftdb.storage.kv import Batch, KvStore
from raftdb.types import Entry, Kind
from raftdb.types import Reply as Answer
from tests.e2e.server import Raftdb

from .programs import Step
from .wire import Client, Reply, parse_reply

CLIENTS = 2
BATCH_ENTRIES_MAX = 6


class RedisPlayer:
    """A redis-server of its own, on a Unix socket in a temporary directory."""

    def __init__(self, program: str = "redis-server") -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="differential-")
        path = str(Path(self.directory.name) / "socket")
        settings = (
            "--port",
            "0",
            "--unixsocket",
            path,
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            self.directory.name,
        )
        argv = (program, *settings, "--enable-debug-command", "yes", "--daemonize", "no")
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
        self.clients = [self._connect(path) for _ in range(CLIENTS)]
        self.admin = self._connect(path)
        self.admin(b"DEBUG", b"SET-ACTIVE-EXPIRE", b"0")

    def _connect(self, path: str) -> Client:
        for _ in range(200):
            if self.process.poll() is not None:
                raise RuntimeError("redis-server ended at once")
            try:
                return Client(path)
            except OSError:
                time.sleep(0.05)  # there is no event to wait for
        raise RuntimeError("redis-server does not answer")

    def begin(self, protocol: int) -> None:
        for client in self.clients:
            client(b"RESET")
            client(b"HELLO", b"%d" % protocol)
        self.clients[0](b"FLUSHALL")

    def play(self, step: Step) -> Reply:
        if step.argv[0].upper() == b"DBSIZE":
            self.tidy()
        return self.clients[step.client](*step.argv)

    def tidy(self) -> None:
        """Have dead keys removed: SCAN does it."""
        for db in (b"0", b"1", b"9"):
            self.admin(b"SELECT", db)
            self.admin(b"SCAN", b"0", b"COUNT", b"10000")

    def close(self) -> None:
        for client in (*self.clients, self.admin):
            client.close()
        self.process.kill()
        self.process.wait(10)
        self.directory.cleanup()


class WirePlayer:
    """A raftdb server process, over TCP."""

    def __init__(self, *flags: str) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="differential-")
        self.server = Raftdb(Path(self.directory.name), *flags)
        try:
            self.server.start()
            self.clients = [Client(("127.0.0.1", self.server.port)) for _ in range(CLIENTS + 1)]
        except BaseException:
            self.close()
            raise
        self.admin = self.clients.pop()

    def begin(self, protocol: int) -> None:
        for client in self.clients:
            client(b"RESET")
            client(b"HELLO", b"%d" % protocol)
        self.clients[0](b"FLUSHALL")

    def play(self, step: Step) -> Reply:
        if step.argv[0].upper() == b"DBSIZE":
            self.tidy()
        return self.clients[step.client](*step.argv)

    def tidy(self) -> None:
        """Any entry of the log removes keys that are due by its stamp."""
        self.admin(b"DEL", b"no such key")

    def finish(self) -> str | None:
        return None

    def close(self) -> None:
        self.server.kill()
        self.directory.cleanup()


class Port:
    """The little of a node that programs come across."""

    def password_required(self) -> bool:
        return False

    def default_consistency(self) -> str:
        return "linearizable"


class RaftdbPlayer:
    """Machine and KvStore, driven as a leader drives them: several commands in an entry, several entries in a batch.

    With `keep_log` every entry is kept, so that replaying the log on another store can be compared.
    """

    def __init__(self, seed: int = 0, *, keep_log: bool = True) -> None:
        self.random = random.Random(seed)
        self.directory = tempfile.TemporaryDirectory(prefix="differential-")
        self.kv = open_store(Path(self.directory.name))
        self.table = builtin_table()
        self.machine = Machine(self.table, self.kv)
        self.log: list[Entry] = []
        self.keep_log = keep_log
        self.index = 0
        self.stamp = 0
        self.batch: Batch | None = None
        self.entries_in_batch = 0
        self.sessions = [Session(n) for n in range(CLIENTS)]

    def begin(self, protocol: int) -> None:
        for session in self.sessions:
            session.reset()
            session.protocol = protocol
        self.apply([Request(0, [b"FLUSHALL"], self.table.get(b"FLUSHALL"))])

    def play(self, step: Step) -> Reply:
        session = self.sessions[step.client]
        if step.argv[0].upper() == b"DBSIZE":
            self.tidy()
        answer = self.execute(session, list(step.argv))
        return parse_reply(encode(answer, session.protocol))

    def tidy(self) -> None:
        """What an idle leader does while keys fall due."""
        self.apply([], kind=Kind.TIME)

    def execute(self, session: Session, argv: list[bytes]) -> Answer:
        try:
            command = self.table.find(argv)
        except CommandError as error:
            if session.in_multi:
                session.refuse_exec()
            return error
        if session.in_multi and transactions.is_queued(command):
            session.enqueue(argv)
            return transactions.QUEUED
        if command.name == "EXEC" and session.in_multi:
            return self.exec(session)
        if command.name == "WATCH" and not session.in_multi:
            return self.watch(session, argv[1:])
        if command.flags & LOCAL and command.name != "TIME":
            return self.machine.local(Port(), session, command, argv)  # type: ignore[arg-type]
        return self.request(Request(session.db, argv, command), command)

    def request(self, request: Request, command: Command) -> Answer:
        """Reads run on a view, or, as in the pipeline of one connection, between the writes of an entry."""
        if not command.flags & READ:
            return self.apply([request])[0]
        if self.random.random() < 0.5:
            return self.apply([request], payload=[])[0]
        self.commit()
        with self.kv.view() as view:
            self.machine.size(view, request)
            return self.machine.read(view, request)

    def exec(self, session: Session) -> Answer:
        try:
            plan = transactions.plan_exec(self.table, session)
        except CommandError as error:
            return error
        run_local = transactions.local_runner(self.table, Port(), session)  # type: ignore[arg-type]
        if is_read_only(plan.transaction) and self.random.random() < 0.5:
            self.commit()
            with self.kv.view() as view:
                reply = self.machine.read(view, plan.transaction)
        else:
            reply = self.apply([plan.transaction])[0]
        return plan.merge(reply, run_local, session)

    def watch(self, session: Session, names: list[bytes]) -> Answer:
        self.commit()
        with self.kv.view() as view:
            versions = self.machine.watch(view, session.db, names)
        for name, version in zip(names, versions, strict=True):
            session.watch(session.db, name, version)
        return "OK"

    def apply(
        self, items: Sequence[object], kind: int = Kind.COMMANDS, payload: list[object] | None = None
    ) -> list[Answer]:
        """One entry. `payload`: what of the items is in the log, if not all."""
        self.index += 1
        self.stamp = max(self.stamp, time.time_ns() // 1_000_000)
        in_log = items if payload is None else payload
        data = self.machine.encode(in_log) if kind == Kind.COMMANDS else b""
        entry = Entry(self.index, 1, kind, self.stamp, self.random.getrandbits(64), data, 0)
        if self.keep_log:
            self.log.append(entry)
        if self.batch is None:
            self.batch = self.kv.batch()
        from_payload = payload is None and self.random.random() < 0.5
        replies = self.machine.apply(entry, None if from_payload else items, self.batch)
        self.entries_in_batch += 1
        if self.random.random() < 0.3 or self.entries_in_batch >= BATCH_ENTRIES_MAX:
            self.commit()
        return replies

    def commit(self) -> None:
        if self.batch is not None:
            self.batch.commit(self.index, 1, self.stamp, 0)
            self.batch = None
            self.entries_in_batch = 0

    def finish(self) -> str | None:
        """What is wrong with the log as a whole, if anything."""
        self.commit()
        return None if replay(self.log) == self.kv.digest else "replaying the log gives another digest"

    def close(self) -> None:
        self.commit()
        self.kv.close(clean=False)
        self.directory.cleanup()


def open_store(directory: Path) -> KvStore:
    path = directory / "kv"
    path.mkdir()
    return KvStore.open(path, None, map_size_bytes=1 << 30)


def replay(log: Sequence[Entry]) -> bytes:
    """The digest that a follower comes to, one batch per entry, everything decoded from the payload."""
    with tempfile.TemporaryDirectory(prefix="differential-") as directory:
        kv = open_store(Path(directory))
        machine = Machine(builtin_table(), kv)
        for entry in log:
            batch = kv.batch()
            machine.apply(entry, None, batch)
            batch.commit(entry.index, entry.term, entry.stamp, 0)
        digest = kv.digest
        kv.close(clean=False)
    return digest
