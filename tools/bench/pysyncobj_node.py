"""A PySyncObj node with its own load, run by the interpreter of PySyncObj's environment (tools/bench/foreign.py).

    python pysyncobj_node.py PORT JOURNAL OTHER_PORT...

The ticks run in the main loop (autoTick off), and entries are sent at once instead of ten times a second
(appendEntriesUseBatch off): the fastest way to drive it. The control port is PORT+1, one JSON line in, one out:

    {"ask": "leader"}
    {"ask": "load", "outstanding": 50, "seconds": 2, "value_bytes": 100, "keys": 100000}
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from typing import Any

from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found,unused-ignore]


class Store(SyncObj):  # type: ignore[misc,unused-ignore]
    """A replicated dict."""

    def __init__(self, port: str, journal: str, others: list[str]) -> None:
        conf = SyncObjConf(autoTick=False, journalFile=journal, commandsQueueSize=100_000, appendEntriesUseBatch=False)
        super().__init__(f"127.0.0.1:{port}", [f"127.0.0.1:{other}" for other in others], conf)
        self.data: dict[str, str] = {}

    @replicated  # type: ignore[untyped-decorator,unused-ignore]
    def put(self, key: str, value: str) -> None:
        self.data[key] = value


class Load:
    """Keeps so many writes under way for so many seconds."""

    def __init__(self, store: Store, question: dict[str, Any]) -> None:
        self.store = store
        self.end = time.perf_counter() + question["seconds"]
        self.keys = question["keys"]
        self.value = "x" * question["value_bytes"]
        self.under_way = 0
        self.latencies: list[float] = []
        self.failure: str | None = None
        for _ in range(question["outstanding"]):
            self.begin()

    def begin(self) -> None:
        started = time.perf_counter()
        self.under_way += 1
        key = f"key:{random.randrange(self.keys):012d}"
        self.store.put(key, self.value, callback=lambda _, error: self.ended(started, error))

    def ended(self, started: float, error: int) -> None:
        now = time.perf_counter()
        self.under_way -= 1
        self.latencies.append((now - started) * 1000)
        if error:
            self.failure = f"PySyncObj answered a write with error {error}"
        elif now < self.end:
            self.begin()

    def sample(self, seconds: float) -> dict[str, Any]:
        times = sorted(self.latencies)

        def at(share: float) -> float:
            return times[min(int(len(times) * share), len(times) - 1)]

        return {
            "rate": len(times) / seconds,
            "p50_ms": at(0.5),
            "p95_ms": at(0.95),
            "p99_ms": at(0.99),
            "max_ms": times[-1],
            "failure": self.failure,
        }


def answer(store: Store, question: dict[str, Any]) -> dict[str, Any]:
    """Runs the load, ticking; or says whether this node leads."""
    if question["ask"] == "leader":
        return {"leader": bool(store._isLeader() and store.isReady())}
    started = time.perf_counter()
    load = Load(store, question)
    while load.under_way and time.perf_counter() < load.end + 30:
        store.doTick(0.001)
    seconds = time.perf_counter() - started
    if load.under_way:
        load.failure = f"{load.under_way} writes were never answered"
    return load.sample(seconds)


def main() -> None:
    port, journal, *others = sys.argv[1:]
    store = Store(port, journal, others)
    control = socket.create_server(("127.0.0.1", int(port) + 1))
    control.setblocking(False)
    while True:
        store.doTick(0.01)
        try:
            connection, _ = control.accept()
        except BlockingIOError:
            continue
        with connection:
            connection.setblocking(True)
            line = connection.makefile("rb").readline()
            connection.sendall(json.dumps(answer(store, json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    main()
