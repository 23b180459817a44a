"""Clients that write down what they saw: registers, counters and keys appended to, checked for linearizability.

Each client is a thread with a connection to one node at a time and no retries. It asks, and notes what it was told:

    an answer                                            OK
    CLUSTERDOWN, TRYAGAIN, LOADING, MOVED, READONLY ...  FAILED: the server promises that it was not executed
    UNCERTAIN, a time-out, a closed connection           UNKNOWN: it may take effect now, later or never

Keys are used up: after `OPS_PER_KEY` operations a client goes on to the next generation of keys, because the search of
the checker is exponential in what overlaps on one key. Values are unique in the whole run, so a doubled or lost write
shows. The three kinds stand for three ways to break: a register shows stale and lost values, a counter shows doubled
increments, a key appended to shows order.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter as Tally
from typing import Any

import redis

from tests import linear
from tests.e2e.processes import NodeProcess

OPS_PER_KEY = 120
KEYS_AT_ONCE = 4
TIMEOUT_S = 8.0

#: error codes that promise "certainly not executed": those redis-py has classes for (it strips the code), and others
NOT_EXECUTED_CLASSES = (
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
    redis.exceptions.MovedError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.BusyLoadingError,
    redis.exceptions.OutOfMemoryError,
)
NOT_EXECUTED_CODES = ("BUSY", "MISCONF", "NOREPLICAS", "MASTERDOWN")


def not_executed(error: BaseException) -> bool:
    return isinstance(error, NOT_EXECUTED_CLASSES) or str(error).startswith(NOT_EXECUTED_CODES)


class Workload:
    """N clients on the nodes of a cluster; `stop()`, then `check()`."""

    def __init__(self, nodes: list[NodeProcess], clients: int = 6, seed: int = 0, pause_s: float = 0.0) -> None:
        self.nodes = nodes
        self.history = linear.History()
        self.lock = threading.Lock()  # guards history, tally, acknowledged
        self.tally: Tally[str] = Tally()
        self.values = itertools.count(1)
        self.used: Tally[str] = Tally()
        self.stopping = threading.Event()
        self.pause_s = pause_s
        self.longest_gap_s = 0.0  # the longest time without any acknowledged write
        self._last_write = 0.0
        self.errors: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self._client, args=(n, random.Random(f"{seed}/{n}")), daemon=True)
            for n in range(clients)
        ]

    def start(self) -> Workload:
        self._last_write = time.monotonic()
        for thread in self.threads:
            thread.start()
        return self

    def stop(self) -> Workload:
        self.stopping.set()
        for thread in self.threads:
            thread.join(TIMEOUT_S + 5)
        if self.errors:
            raise self.errors[0]
        return self

    def acknowledged(self) -> int:
        return self.tally["ok"]

    # --- one client

    def _client(self, number: int, rng: random.Random) -> None:
        try:
            while not self.stopping.is_set():
                node = rng.choice(self.nodes)
                with node.client(timeout_s=TIMEOUT_S, protocol=rng.choice((2, 3))) as client:
                    self._talk(number, rng, client)
        except BaseException as error:  # reported by stop()
            self.errors.append(error)

    def _talk(self, number: int, rng: random.Random, client: redis.Redis) -> None:
        """Operations on one connection until it breaks, or for a while: then another node has its turn."""
        for _ in range(rng.randrange(20, 200)):
            if self.stopping.is_set() or not self._one(f"c{number}", rng, client):
                # An operation of unknown fate may still be under way: the next one must come from "another" process.
                return
            if self.pause_s:
                self.stopping.wait(self.pause_s * rng.random())

    def _one(self, process: str, rng: random.Random, client: redis.Redis) -> bool:
        """One operation. False when the connection should not be used again."""
        kind = rng.choice(("register", "counter", "list"))
        key, name, argument, command = self._choose(kind, rng)
        with self.lock:
            token = self.history.invoke((process, id(client)), (kind, key), name, argument)
        try:
            result = client.execute_command(*command)
        except (redis.ResponseError, redis.exceptions.BusyLoadingError) as error:
            self._note(token, "failed" if not_executed(error) else self._uncertain(error))
            return not_executed(error)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            # Refused at connect: nothing was sent.
            self._note(token, "failed" if "refused" in str(error) else "unknown")
            if "refused" in str(error):
                self.stopping.wait(0.05)
            return False
        self._note(token, "ok", _parse(kind, name, result))
        return True

    def _uncertain(self, error: BaseException) -> str:
        if str(error).startswith("UNCERTAIN"):
            return "unknown"
        raise AssertionError(f"an error that no client expects: {type(error).__name__} {error}")

    def _choose(self, kind: str, rng: random.Random) -> tuple[str, str, Any, tuple[Any, ...]]:
        slot = f"{kind}{rng.randrange(KEYS_AT_ONCE)}"
        with self.lock:
            self.used[slot] += 1
            key = f"{slot}.{self.used[slot] // OPS_PER_KEY}"
            value = next(self.values)
        if rng.random() < 0.4:
            return key, "read", None, ("GET", key)
        if kind == "register":
            return key, "write", str(value), ("SET", key, value)
        if kind == "counter":
            return key, "incr", 1, ("INCRBY", key, 1)
        return key, "append", str(value), ("APPEND", key, f"{value},")

    def _note(self, token: int, outcome: str, result: Any = None) -> None:
        with self.lock:
            self.tally[outcome] += 1
            if outcome == "ok":
                now = time.monotonic()
                if self.history.open[token].name != "read":
                    self.longest_gap_s = max(self.longest_gap_s, now - self._last_write)
                    self._last_write = now
                self.history.ok(token, result)
            elif outcome == "failed":
                self.history.failed(token)
            else:
                self.history.unknown(token)

    # --- the verdict

    def check(self) -> None:
        """AssertionError with the smallest part of the history that cannot be explained."""
        for kind, model in (
            ("register", linear.Register()),
            ("counter", linear.Counter()),
            ("list", linear.AppendList()),
        ):
            mine = [op for op in self.history.all() if op.key[0] == kind]  # type: ignore[index]
            verdict = linear.check(mine, model)
            assert verdict.good, f"{kind}s: {verdict}"

    def read_back(self, node: NodeProcess) -> None:
        """After everything healed: reads of every key, which must show every acknowledged write."""
        with node.client(timeout_s=TIMEOUT_S) as client:
            for key in sorted({op.key for op in self.history.all()}, key=str):
                kind, name = key  # type: ignore[misc]
                token = self.history.invoke("reader", key, "read", None)
                self.history.ok(token, _parse(kind, "read", client.get(name)))

    def summary(self) -> str:
        return (
            f"{self.tally['ok']} ok, {self.tally['failed']} refused, {self.tally['unknown']} unknown, "
            f"longest gap between writes {self.longest_gap_s:.2f} s"
        )


def _parse(kind: str, name: str, result: Any) -> Any:
    """What the model of `kind` calls the answer."""
    if name == "write":
        return None
    if name == "append":
        return None  # the length in bytes says less than the reads do
    if name == "incr":
        return int(result)
    if kind == "register":
        return None if result is None else result.decode()
    if kind == "counter":
        return 0 if result is None else int(result)
    return () if result is None else tuple(result.decode().split(",")[:-1])
