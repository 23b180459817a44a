"""Writes are answered before their transaction is committed to the data, and nobody can tell."""

from __future__ import annotations

import contextlib
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from raftdb.errors import DiskFull
from raftdb.node.applier import APPLY_ENTRIES_MAX
from raftdb.node.node import Node
from raftdb.storage.kv import Batch

from .conftest import StartNode


def client(node: Node) -> redis.Redis:
    host, port = node.config.address.rsplit(":", 1)
    return redis.Redis(host, int(port), socket_timeout=20.0)


def in_driver(node: Node, fn: Any) -> Any:
    """fn(), called between two turns."""
    done, found = threading.Event(), []

    def call() -> None:
        found.append(fn())
        done.set()

    node.driver.call(call)
    assert done.wait(20.0)
    return found[0]


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The index of each commit to the data."""
    seen: list[int] = []
    original = Batch.commit

    def commit(self: Batch, applied: int, *rest: Any) -> None:
        original(self, applied, *rest)
        seen.append(applied)

    monkeypatch.setattr(Batch, "commit", commit)
    return seen


def test_entries_that_follow_each_other_share_a_commit(start_node: StartNode, commits: list[int]) -> None:
    node = start_node(alone=True)
    del commits[:]
    first = node.driver.log.last
    stop = threading.Event()

    def write(number: int) -> None:
        with client(node) as conn:
            for turn in range(400):
                if stop.is_set():
                    return
                conn.set(f"key{number}", turn)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    entries = node.driver.log.last - first
    assert entries >= 400
    assert 0 < len(commits) < entries


def test_a_transaction_that_nobody_asks_about_is_shown_in_time(start_node: StartNode) -> None:
    """An idle node keeps nothing open: the tick is longer than DEFER_S."""
    node = start_node(alone=True)
    with client(node) as conn:
        for number in range(5):
            conn.set("k", number)
    shown = threading.Event()

    def look() -> None:
        driver = node.driver
        if not driver.applier.open and driver.applied == driver.applier.executed:
            shown.set()

    for _ in range(400):
        in_driver(node, look)
        if shown.wait(0.005):
            break
    assert shown.is_set()


def test_clients_that_were_answered_together_are_waited_for(start_node: StartNode) -> None:
    """Sixteen clients in a closed loop share entries; without the wait there were about as many entries as commands."""
    node = start_node(alone=True)
    before, rounds, clients = node.driver.log.last, 60, 16
    at_once = threading.Barrier(clients)

    def write(number: int) -> None:
        with client(node) as conn:
            at_once.wait(20.0)
            for turn in range(rounds):
                conn.set(f"key{number}", turn)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(clients)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert node.driver.log.last - before <= rounds * clients // 2


def test_who_does_not_come_again_is_not_waited_for_for_ever(start_node: StartNode) -> None:
    node = start_node(alone=True)
    driver = node.driver

    def alone() -> tuple[int, int]:
        driver.applier.answered = 50  # fifty were answered together, and one of them goes on
        return driver._gather_pause, driver._gather_patience

    with client(node) as conn:
        patience = []
        for number in range(80):
            patience.append(in_driver(node, alone)[1])
            conn.set("k", number)
    assert patience[0] == 0
    assert max(patience) >= 15, "the pauses grow"


def test_embedded_nodes_show_before_they_answer(start_node: StartNode) -> None:
    node = start_node()
    assert not node.driver.applier.deferring
    for number in range(50):
        node.execute("SET", "k", str(number))
        with node.data.kv.view() as view:
            head = view.head(0, b"k")
        assert head is not None
        assert head.value == b"%d" % number


@pytest.mark.parametrize("reads", ["linearizable", "lease", "stale"])
def test_who_was_answered_sees_it(start_node: StartNode, reads: str) -> None:
    """With stale reads only the writer itself."""
    node = start_node(alone=True, reads=reads)
    rng = random.Random(7)
    model: dict[str, int] = {}
    with client(node) as one, client(node) as other:
        for number in range(600):
            key = f"k{rng.randrange(20)}"
            writer = rng.choice((one, other))
            reader = writer if reads == "stale" else rng.choice((one, other))
            writer.set(key, number)
            model[key] = number
            match rng.randrange(8):
                case 0:
                    assert reader.dbsize() == len(model)
                case 1:
                    assert sorted(reader.keys()) == sorted(key.encode() for key in model)
                case 2:
                    assert reader.info("keyspace")["db0"]["keys"] == len(model)
                case 3:
                    assert reader.mget(list(model)) == [b"%d" % value for value in model.values()]
                case _:
                    assert reader.get(key) == b"%d" % number


def test_a_snapshot_has_what_was_answered(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(alone=True)
    with client(node) as conn:
        for number in range(10):
            conn.set("k", number)
            conn.save()
            assert node.data.log.snapshot is not None
            assert node.data.log.snapshot.index >= node.driver.log.last - 1  # but for an entry of time


def test_a_full_disk_after_the_answers_loses_and_doubles_nothing(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = start_node(alone=True)
    original = Batch.commit
    failures: list[int] = []

    def full(self: Batch, applied: int, *rest: Any) -> None:
        if len(failures) < 3 and applied > 20:
            failures.append(applied)
            self.abort()
            raise DiskFull("kv: no room left")
        original(self, applied, *rest)

    with client(node) as conn:
        conn.set("count", 0)
        monkeypatch.setattr(Batch, "commit", full)
        answers: list[int] = []
        refused: list[str] = []
        for _ in range(100):
            try:
                answers.append(conn.incr("count"))
            except redis.RedisError as error:  # it steps down for a moment
                refused.append(str(error))
        assert all(line.startswith(("CLUSTERDOWN", "TRYAGAIN")) for line in refused)
        assert failures
        assert answers == sorted(set(answers)), "no number twice"
        assert int(conn.get("count")) == answers[-1]


def test_reads_miss_nothing_that_was_answered_before_the_data_found_no_room(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is executed is dropped with the transaction, and is known to clients all the same."""
    node = start_node(alone=True)
    original = Batch.commit
    failing = threading.Event()

    def full(self: Batch, *rest: Any) -> None:
        if failing.is_set():
            self.abort()
            raise DiskFull("kv: no room left")
        original(self, *rest)

    with client(node) as conn:
        conn.set("count", 0)
        monkeypatch.setattr(Batch, "commit", full)
        for _ in range(2):
            answered = conn.incr("count")
            failing.set()
            with contextlib.suppress(redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError):
                assert int(conn.get("count")) == answered
            failing.clear()
            while not redis_answers(conn):
                pass  # it steps down, and leads again in the next term
            assert int(conn.get("count")) == answered


def redis_answers(conn: redis.Redis) -> bool:
    try:
        return conn.set("probe", 1) is not None
    except redis.RedisError:
        return False


def test_entries_that_find_no_room_together_are_applied_one_by_one(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a transaction needs is a worst case; one entry alone may fit, and then nobody has to step down."""
    node = start_node(alone=True)
    original = Batch.commit
    refused: list[int] = []

    def little_room(self: Batch, applied: int, *rest: Any) -> None:
        if applied - self._kv.applied > 1:
            refused.append(applied)
            self.abort()
            raise DiskFull("kv: no room left")
        original(self, applied, *rest)

    with client(node) as conn:
        conn.set("count", 0)
        term = node.driver.core.term
        monkeypatch.setattr(Batch, "commit", little_room)
        assert [conn.incr("count") for _ in range(100)] == list(range(1, 101))
        assert int(conn.get("count")) == 100
        assert refused
        assert node.driver.core.term == term
        monkeypatch.setattr(Batch, "commit", original)
        assert [conn.incr("count") for _ in range(600)] == list(range(101, 701))
        assert node.driver.applier._entries_max == APPLY_ENTRIES_MAX


def test_the_end_of_a_node_with_an_open_transaction(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node(alone=True, data_dir=str(tmp_path / "data"))
    with client(node) as conn:
        pipe = conn.pipeline(transaction=False)
        for number in range(200):
            pipe.set(f"k{number}", number)
        pipe.execute()
    node.stop()
    assert node.failure is None
    again = start_node(alone=True, data_dir=str(tmp_path / "data"))
    with client(again) as conn:
        assert conn.mget([f"k{number}" for number in range(200)]) == [b"%d" % number for number in range(200)]


def test_reads_from_the_driver_show_first(start_node: StartNode) -> None:
    node = start_node(alone=True)
    with client(node) as conn:
        conn.set("k", 1)

        def state() -> tuple[bool, bool]:
            applier = node.driver.applier
            before = applier.open
            applier.show()
            return before, applier.open or node.driver.applied != applier.executed

        assert in_driver(node, state)[1] is False


def test_a_local_command_behind_a_write_of_its_pipeline(start_node: StartNode) -> None:
    """It is handed over when the write is answered: in the middle of the turn."""
    node = start_node(alone=True)
    with client(node) as conn:
        for number in range(50):
            pipe = conn.pipeline(transaction=False)
            pipe.set(f"k{number}", 1)
            pipe.info("keyspace")
            pipe.set(f"more{number}", 1)
            pipe.execute_command("GETDUMP")
            _, info, _, dump = pipe.execute()
            assert info["db0"]["keys"] == 2 * number + 1
            assert f"more{number}".encode() in dump
