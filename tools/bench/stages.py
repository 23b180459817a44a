"""The road of a command, cut into stages that can be timed apart: `make bench-commands`, and the regression guard.

    parse      bytes of a pipeline -> argument lists
    look up    argument lists -> commands, arity checked
    encode     requests -> the payload of one log entry
    log        the entry into the log's LMDB, one synced transaction
    handler    the entry on a batch of the data
    kv         the batch into the data's LMDB
    reply      replies -> bytes

The pieces are the node's own, put together without its threads and sockets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from raftdb.commands.machine import Machine, Request
from raftdb.commands.table import WRITE, builtin_table
from raftdb.net.resp import AUTHENTICATED, Parser, encode_many
from raftdb.storage.checksum import chain_of
from raftdb.storage.kv import KvStore
from raftdb.storage.log import Log
from raftdb.types import Entry, Kind, Membership, Persist

PIPELINE: Final = 32
VALUE: Final = b"x" * 100
STAMP: Final = 1_700_000_000_000
MAP_BYTES: Final = 1 << 30
STAGES: Final = ("parse", "look up", "encode", "log", "handler", "kv", "reply")

Argv = list[bytes]


def on_wire(argv: Argv) -> bytes:
    """A command as a client sends it."""
    return b"*%d\r\n" % len(argv) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in argv)


class Workbench:
    """Parser, machine, log and data of one node, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.parser = Parser(AUTHENTICATED)
        self.table = builtin_table()
        self.machine = Machine(self.table)
        Log.create(directory / "log", incarnation=1, membership=Membership(0, ()), map_size_bytes=MAP_BYTES)
        self.log = Log.open(directory / "log", map_size_bytes=MAP_BYTES, unclean=False)
        self.kv = KvStore.open(directory / "kv", None, map_size_bytes=MAP_BYTES)
        self.log.claim()
        self.kv.claim()

    def close(self) -> None:
        self.kv.close(clean=False)
        self.log.close()

    # --- stages ---------------------------------------------------------------------------------------------------

    def parse(self, data: bytes) -> list[Argv]:
        return self.parser.feed(data)

    def look_up(self, argvs: list[Argv]) -> list[Request]:
        find = self.table.find
        return [Request(0, argv, find(argv)) for argv in argvs]

    def entry(self, requests: list[Request]) -> Entry:
        """The next entry of the log."""
        index = self.log.last + 1
        return self.sealed(index, self.machine.encode(requests))

    def sealed(self, index: int, payload: bytes) -> Entry:
        chain = chain_of(self.log.chain(index - 1), index, 1, Kind.COMMANDS, STAMP + index, index, payload)
        return Entry(index, 1, Kind.COMMANDS, STAMP + index, index, payload, chain)

    def append(self, entry: Entry) -> None:
        self.log.commit(Persist(None, None, (entry,), (), None, None, None, False))

    def apply(self, batch: Any, entry: Entry, requests: list[Request]) -> list[Any]:
        return self.machine.apply(entry, requests, batch)

    def read(self, requests: list[Request]) -> list[Any]:
        with self.kv.view() as view:
            ctx = self.machine.context(view, 0)
            return [self.machine.read_in(ctx, request) for request in requests]

    def reply(self, replies: list[Any]) -> bytes:
        return encode_many(replies, 2)

    # --- the whole road -------------------------------------------------------------------------------------------

    def run(self, argvs: list[Argv], spent: dict[str, float]) -> list[Any]:
        """One pipeline; the seconds of each stage are added to `spent`. Its replies."""
        data = b"".join(map(on_wire, argvs))
        with timed(spent, "parse"):
            parsed = self.parse(data)
        with timed(spent, "look up"):
            requests = self.look_up(parsed)
        command = requests[0].command
        assert command is not None
        if command.flags & WRITE:
            replies = self._write(requests, spent)
        else:
            with timed(spent, "handler"):
                replies = self.read(requests)
        with timed(spent, "reply"):
            self.reply(replies)
        return replies

    def _write(self, requests: list[Request], spent: dict[str, float]) -> list[Any]:
        with timed(spent, "encode"):
            entry = self.entry(requests)
        with timed(spent, "log"):
            self.append(entry)
        batch = self.kv.batch()
        with timed(spent, "handler"):
            replies = self.apply(batch, entry, requests)
        with timed(spent, "kv"):
            batch.commit(entry.index, entry.term, entry.stamp, entry.chain)
        return replies


@contextmanager
def timed(spent: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    spent[stage] = spent.get(stage, 0.0) + time.perf_counter() - started


# --- what is sent ---------------------------------------------------------------------------------------------------

#: name -> arguments of the n-th call. Keys that start with the names of SETUP exist.
EXAMPLES: Final[dict[str, Callable[[int], Argv]]] = {
    "SET": lambda n: [b"SET", b"key:%012d" % n, VALUE],
    "GET": lambda n: [b"GET", b"string:%d" % (n % 100)],
    "SETEX": lambda n: [b"SETEX", b"key:%012d" % n, b"1000", VALUE],
    "INCR": lambda n: [b"INCR", b"counter:%d" % (n % 100)],
    "APPEND": lambda n: [b"APPEND", b"grow:%d" % (n % 1000), b"x"],
    "GETRANGE": lambda n: [b"GETRANGE", b"string:%d" % (n % 100), b"0", b"10"],
    "MSET": lambda n: [b"MSET", *(word for k in range(10) for word in (b"key:%d:%d" % (n, k), VALUE))],
    "MGET": lambda n: [b"MGET", *(b"string:%d" % ((n + k) % 100) for k in range(10))],
    "DEL": lambda n: [b"DEL", b"key:%012d" % n],
    "EXISTS": lambda n: [b"EXISTS", b"string:%d" % (n % 100)],
    "EXPIRE": lambda n: [b"EXPIRE", b"string:%d" % (n % 100), b"1000"],
    "TTL": lambda n: [b"TTL", b"string:%d" % (n % 100)],
    "TYPE": lambda n: [b"TYPE", b"string:%d" % (n % 100)],
    "SCAN": lambda n: [b"SCAN", b"0", b"COUNT", b"10"],
    "HSET": lambda n: [b"HSET", b"hash:%d" % (n % 100), b"field:%d" % n, VALUE],
    "HGET": lambda n: [b"HGET", b"hash:%d" % (n % 100), b"f5"],
    "HINCRBY": lambda n: [b"HINCRBY", b"hash:%d" % (n % 100), b"n", b"1"],
    "HGETALL": lambda n: [b"HGETALL", b"small:%d" % (n % 100)],
    "LPUSH": lambda n: [b"LPUSH", b"queue:%d" % (n % 100), VALUE],
    "RPUSH": lambda n: [b"RPUSH", b"queue:%d" % (n % 100), VALUE],
    "LPOP": lambda n: [b"LPOP", b"queue:%d" % (n % 100)],
    "LRANGE": lambda n: [b"LRANGE", b"list:%d" % (n % 100), b"0", b"9"],
    "LINDEX": lambda n: [b"LINDEX", b"list:%d" % (n % 100), b"5"],
    "LLEN": lambda n: [b"LLEN", b"list:%d" % (n % 100)],
}


def set_up(bench: Workbench) -> None:
    """The keys that EXAMPLES read."""
    for n in range(100):
        fields = [word for k in range(10) for word in (b"f%d" % k, VALUE)]
        bench.run([[b"SET", b"string:%d" % n, VALUE]], {})
        bench.run([[b"HSET", b"hash:%d" % n, *fields]], {})
        bench.run([[b"HSET", b"small:%d" % n, *fields]], {})
        bench.run([[b"RPUSH", b"list:%d" % n, *([VALUE] * 100)]], {})


def microseconds(bench: Workbench, name: str, pipelines: int) -> dict[str, float]:
    """Microseconds of each stage per command, over so many pipelines of one. Raises ValueError on an error reply."""
    spent: dict[str, float] = {}
    for turn in range(pipelines):
        replies = bench.run([EXAMPLES[name](turn * PIPELINE + n) for n in range(PIPELINE)], spent)
        if any(isinstance(reply, Exception) for reply in replies):
            raise ValueError(f"{name} answered {replies[0]}")
    return {stage: spent.get(stage, 0.0) * 1e6 / (pipelines * PIPELINE) for stage in STAGES}
