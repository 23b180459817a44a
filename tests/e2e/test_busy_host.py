"""Busy threads of a program in whose process a node lives: the cluster goes on as if there were none, only slower."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raftdb.config import Config
from raftdb.node.node import Node
from tests.e2e.processes import wait_for
from tests.e2e.server import Raftdb
from tests.ports import free_port

pytestmark = pytest.mark.e2e

SECONDS = float(os.environ.get("MIXED_SECONDS", "15"))
KEYS = int(os.environ.get("MIXED_KEYS", "20000"))  # `make mixed-in-process`: a million
SWITCH_US = int(os.environ.get("MIXED_SWITCH_US", "5000"))  # Python's own


@pytest.fixture(autouse=True)
def switch_interval() -> Iterator[None]:
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_US / 1e6)
    yield
    sys.setswitchinterval(before_s)


@pytest.fixture
def ram() -> Iterator[Path]:
    """A directory in memory where there is one: it is the interpreter that is looked at here, not the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as directory:
        yield Path(directory)


class Busy:
    """Threads that compute in pure Python and never wait for anything."""

    def __init__(self, threads: int) -> None:
        self._stop = False
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        value = 1
        while not self._stop:
            value = value * 1_103_515_245 % 2_147_483_647

    def __enter__(self) -> Busy:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()


class Mixed:
    """Three nodes: one in this process, two as processes of their own."""

    def __init__(self, directory: Path) -> None:
        addresses = [f"127.0.0.1:{free_port()}"]
        self.others = []
        for name in ("n2", "n3"):
            self.others.append(Raftdb(directory / name))
            addresses.append(f"127.0.0.1:{self.others[-1].port}")
        secret = directory / "cluster.secret"
        secret.write_text("a secret for these three nodes")
        secret.chmod(0o600)
        lists = [",".join(other for other in addresses if other != mine) for mine in addresses]
        for name, server, others in zip(("n2", "n3"), self.others, lists[1:], strict=True):
            server.flags = ("-i", name, "-e", others, "--cluster-secret-file", str(secret), "--min-free", "0")
        self.node = Node(
            Config(
                address=addresses[0],
                node_id="n1",
                data_dir=str(directory / "n1"),
                ensemble=lists[0],
                cluster_secret_file=str(secret),
                min_free_bytes=0,
            )
        )

    def __enter__(self) -> Mixed:
        self.node.start()
        for server in self.others:
            server.start()
        assert self.node.wait_ready(60)
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self.others:
            server.kill()
        self.node.stop()

    def lead(self, node_id: str) -> None:
        def led() -> bool:
            leader = self.node.leader
            return leader is not None and leader.id == node_id and self.node.driver.ready_to_serve

        if not led():
            self.node.execute("RAFT.TRANSFER", node_id)
            wait_for(f"{node_id} to lead", led)


def writes_per_second(node: Node, seconds: float) -> float:
    started, count = time.monotonic(), 0
    while (passed := time.monotonic() - started) < seconds:
        node.execute("SET", "k", count)
        count += 1
    return count / passed


class Crowd:
    """Threads of the program that each execute the same again and again on the node, until it raises."""

    def __init__(self, node: Node, *works: tuple[str | int, ...]) -> None:
        self._node = node
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(words, n)) for n, words in enumerate(works)]
        self.done = [0] * len(works)
        self.longest_s = [0.0] * len(works)
        self.errors: list[tuple[str | int, Exception]] = []

    def _run(self, words: tuple[str | int, ...], number: int) -> None:
        try:
            while not self._stop.is_set():
                started_s = time.monotonic()
                self._node.execute(*words)
                self.longest_s[number] = max(self.longest_s[number], time.monotonic() - started_s)
                self.done[number] += 1
        except Exception as error:
            self.errors.append((words[0], error))

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("leader", ["n1", "n2"])
def test_the_mixed_load_inside_one_process_causes_no_election(ram, leader):
    """A busy thread, eight that write, one that reads 10,000 elements, one KEYS over all keys, one that makes
    checkpoints, all in the process of a node that leads, or follows."""
    with Mixed(ram) as cluster:
        node = cluster.node
        for start in range(0, KEYS, 1_000):
            node.execute("MSET", *(word for n in range(start, start + 1_000) for word in (f"key:{n}", "x")))
        node.execute("RPUSH", "l", *range(10_000))
        cluster.lead(leader)
        term = node.term
        writers = [("INCR", "count")] * 8
        others = [("LRANGE", "l", 0, -1), ("KEYS", "key:*7"), ("CHECKPOINT", "mine.dat")]
        started_s = time.monotonic()
        with Busy(1), Crowd(node, *writers, *others) as crowd:
            time.sleep(SECONDS)  # of load: there is nothing to wait for
        passed_s = time.monotonic() - started_s
        print(f"\n{leader} leads, {KEYS} keys, {passed_s:.0f} s: {sum(crowd.done[:8]) / passed_s:.0f} writes/s,")
        print(f"the longest {max(crowd.longest_s[:8]):.2f} s;", end="")
        for words, done, longest_s in zip(others, crowd.done[8:], crowd.longest_s[8:], strict=True):
            print(f" {done} {words[0]}, the longest {longest_s:.2f} s;", end="")
        assert crowd.errors == []
        assert min(crowd.done) > 0, crowd.done
        assert node.leader is not None
        assert (node.leader.id, node.term) == (leader, term)
        assert int(node.execute("GET", "count")) == sum(crowd.done[:8])


@pytest.mark.slow
@pytest.mark.parametrize("leader", ["n1", "n2"])
def test_a_busy_thread_of_the_program_causes_no_election(ram, leader):
    """With Python's own switch interval, the embedded node leading or following: ten seconds in one term."""
    with Mixed(ram) as cluster:
        cluster.lead(leader)
        term = cluster.node.term
        with Busy(1):
            rate = writes_per_second(cluster.node, 10)
        assert cluster.node.leader is not None
        assert (cluster.node.leader.id, cluster.node.term) == (leader, term)
        assert rate > 0
        assert cluster.node.execute("INCR", "counter") == 1
