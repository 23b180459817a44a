"""One replica for tests: machine and store, driven command by command, with a clock that the test sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raftdb.commands.machine import Item, Machine, Request
from raftdb.commands.table import READ, Table, builtin_table
from raftdb.errors import CommandError
from raftdb.storage.kv import KvStore
from raftdb.types import Entry, Kind

START_MS = 1_700_000_000_000


class Replica:
    """Call it with words: `replica("SET", "a", 1)`. Writes are one entry each; reads run on a view."""

    def __init__(self, path: Path, table: Table | None = None) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.kv = KvStore.open(path, None, map_size_bytes=1 << 32)
        self.table = builtin_table() if table is None else table
        self.machine = Machine(self.table, self.kv)
        self.index = self.kv.applied
        self.now_ms = START_MS
        self.log: list[Entry] = []
        self.db = 0

    def request(self, *words: Any) -> Request:
        argv = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        return Request(self.db, argv, self.table.find(argv))

    def __call__(self, *words: Any) -> Any:
        try:
            request = self.request(*words)
        except CommandError as error:
            return error
        assert request.command is not None
        return self.read(request) if request.command.flags & READ else self.apply(request)[0]

    def read(self, item: Item, clock_ms: int | None = None) -> Any:
        with self.kv.view() as view:
            return self.machine.read(view, item, clock_ms)

    def apply(self, *items: Item, logged: tuple[Item, ...] | None = None, kind: int = Kind.COMMANDS) -> list[Any]:
        """One entry; `logged`: what of the items is in its payload, if not all."""
        self.index += 1
        self.now_ms += 1
        payload = self.machine.encode(items if logged is None else logged) if kind == Kind.COMMANDS else b""
        return self.apply_entry(Entry(self.index, 1, kind, self.now_ms, mix(self.index), payload, 0), list(items))

    def apply_entry(self, entry: Entry, items: list[Item] | None = None) -> list[Any]:
        batch = self.kv.batch()
        try:
            replies = self.machine.apply(entry, items, batch)
            batch.commit(entry.index, entry.term, entry.stamp, 0)
        except BaseException:
            batch.abort()
            raise
        self.log.append(entry)
        self.index = entry.index
        return replies

    def pass_ms(self, span_ms: int) -> None:
        """Let time pass, as an idle leader does."""
        self.now_ms += span_ms
        self.apply(kind=Kind.TIME)

    def close(self) -> None:
        self.kv.close(clean=False)


def mix(index: int) -> int:
    return (index * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
