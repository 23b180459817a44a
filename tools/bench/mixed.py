"""The mixed load: SET from 50 clients while long work runs beside it, against the same SETs undisturbed.

Beside the SETs: one client that loops LRANGE over a list of 10,000 elements, one KEYS over a million keys, and a
snapshot (BGSAVE). The data is the same in both halves, and so is redis-benchmark. A benchmark of SETs alone never shows
what one long read does to a server that has a single thread to run on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import hiredis

from . import resp
from .load import Cell, Sample, redis_benchmark, requests_for
from .processes import Failed
from .systems import Raftdb, RespSystem, fill

LIST_ELEMENTS: Final = 10_000
KEYS: Final = 1_000_000
CLIENTS: Final = 50
_LIST: Final = "bench:list"


class Mixed(NamedTuple):
    """Both halves of one repetition."""

    calm: Sample
    disturbed: Sample
    ranges: int  # LRANGEs done meanwhile
    keys_replies: int  # KEYS done meanwhile
    snapshots: int  # snapshots that were begun
    elections: int | None  # None: this system holds none

    @property
    def ratio(self) -> float:
        return self.disturbed.rate / self.calm.rate if self.calm.rate else 0.0

    @property
    def failure(self) -> str | None:
        return self.calm.failure or self.disturbed.failure


class Disturbance:
    """The long work, from threads of this process that mostly wait: replies are thrown away unparsed."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.ranges = self.keys_replies = self.snapshots = 0
        self.error: Exception | None = None
        self._over = threading.Event()

    @contextlib.contextmanager
    def running(self) -> Iterator[Disturbance]:
        threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._range, self._keys)]
        with resp.Connection(self.port) as connection:
            try:
                connection.call("BGSAVE")
            except hiredis.ReplyError as error:
                if "already in progress" not in str(error):  # one that the server has begun by itself will do
                    raise
            self.snapshots = 1
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _guarded(self, work: object) -> None:
        assert callable(work)
        try:
            with resp.Connection(self.port) as connection:
                work(connection)
        except (OSError, hiredis.HiredisError) as error:
            self.error = error

    def _range(self, connection: resp.Connection) -> None:
        while not self._over.is_set():
            connection.drain("LRANGE", _LIST, 0, -1)
            self.ranges += 1

    def _keys(self, connection: resp.Connection) -> None:
        connection.drain("KEYS", "*")
        self.keys_replies += 1


def prepare(system: RespSystem, keys: int) -> None:
    """A million keys of 100 bytes, and the list."""
    fill(system.port, keys, 100)
    with resp.Connection(system.port) as connection:
        for start in range(0, LIST_ELEMENTS, 1_000):
            connection.call("RPUSH", _LIST, *(f"element:{number:06d}" for number in range(start, start + 1_000)))


def measure(system: RespSystem, seconds: float, keys: int = KEYS) -> Mixed:
    """One repetition on a system that has been prepared."""
    cell = Cell("SET", CLIENTS, 1, keys=keys)
    _wait_for_snapshot(system)  # that filling it has brought about
    pilot = redis_benchmark(system.port, cell, 5_000)
    if pilot.failure:
        return Mixed(pilot, pilot, 0, 0, 0, None)
    requests = requests_for(pilot.rate, cell, seconds)
    before = _term(system)
    calm = redis_benchmark(system.port, cell, requests)
    with Disturbance(system.port).running() as beside:
        disturbed = redis_benchmark(system.port, cell, requests // 2)
        counts = (beside.ranges, beside.keys_replies, beside.snapshots)
    for program in system.programs:
        program.check()
    if beside.error is not None:
        disturbed = Sample(0.0, failure=f"the long work failed: {beside.error}")
    _wait_for_snapshot(system)
    after = _term(system)
    return Mixed(calm, disturbed, *counts, None if before is None or after is None else after - before)


def _term(system: RespSystem) -> int | None:
    return system.term() if isinstance(system, Raftdb) else None


def _wait_for_snapshot(system: RespSystem) -> None:
    """What comes next starts calm."""
    end = time.monotonic() + 120
    with resp.Connection(system.port) as connection:
        while connection.info("persistence").get("rdb_bgsave_in_progress") == "1":
            if time.monotonic() > end:
                raise Failed(f"{system.name}: a snapshot is not done after 120 s")
            time.sleep(0.1)
