"""Large replies on three nodes: nobody is elected for them, and writes go on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.e2e.processes import LocalCluster, background

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
READERS = 20
ROUNDS = 3


def test_large_replies_cost_no_election_and_no_write(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, 3, flags=("--min-free", "0")) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        names = [f"large{number}" for number in range(8)]
        with leader.client(timeout_s=60.0) as db:
            for name in names:
                db.set(name, b"v" * (8 * MIB))
            db.rpush("list", *range(20_000))
            for number in range(0, 5_000, 100):
                db.mset({f"key{number + step}": "v" for step in range(100)})
        cluster.wait_equal()
        term = leader.info()["raft_term"]  # type: ignore[index]
        written = [0]

        def write(stop: threading.Event) -> None:
            with leader.client(timeout_s=60.0) as db:
                while not stop.is_set():
                    assert db.set("meanwhile", written[0])
                    written[0] += 1

        def read(number: int) -> None:
            node = cluster.nodes[number % 3]
            with node.client(timeout_s=120.0) as db:
                for _ in range(ROUNDS):
                    if number % 4 == 0:
                        assert len(db.lrange("list", 0, -1)) == 20_000
                        assert len(db.keys("key*")) == 5_000
                        continue
                    with db.pipeline(transaction=number % 4 == 1) as pipe:
                        pipe.mget(names).get(names[number % 8])
                        values, value = pipe.execute()
                    assert [len(each) for each in values] == [8 * MIB] * 8
                    assert len(value) == 8 * MIB

        with background(write):
            readers = [threading.Thread(target=read, args=(number,)) for number in range(READERS)]
            failed: list[object] = []
            threading.excepthook, usual = (lambda args: failed.append(args.exc_value)), threading.excepthook
            try:
                for reader in readers:
                    reader.start()
                for reader in readers:
                    reader.join()
            finally:
                threading.excepthook = usual
            assert failed == []
        assert written[0] > 0
        infos = [node.info() for node in cluster.nodes]
        assert [info["raft_term"] for info in infos if info] == [term] * 3
        cluster.wait_equal()
