"""raftdb-dump beside three running nodes: it sees what they do, shows the same of each, and never cries wolf."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import LocalCluster, background

from .test_dump import hear_ctrl_c

pytestmark = pytest.mark.e2e

ROUNDS = 4  # of looking, while clients write
KEYS = 200


def dump(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "raftdb_tools.dump", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def rows(*words: object) -> list[dict]:
    ran = dump(*words, "--json")
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("dump")) as running:
        yield running.start()


def test_a_directory_is_sound_while_clients_write(cluster):
    written = []

    def write(stop: threading.Event) -> None:
        with cluster.nodes[1].client() as client:
            while not stop.is_set():
                number = len(written)
                with client.pipeline() as pipe:
                    pipe.hset(f"h{number % KEYS}", f"f{number}", "v" * 50).rpush(f"l{number % KEYS}", number)
                    pipe.lpop(f"l{(number + 7) % KEYS}").set(f"s{number % KEYS}", number, px=50 + number % 100)
                    pipe.delete(f"h{(number + 99) % KEYS}").execute()
                written.append(number)

    with background(write):
        for _ in range(ROUNDS):
            for node in cluster.nodes:
                ran = dump("verify", node.directory)
                assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
                assert rows("log", node.directory, "--tail", 5)
                assert rows("kv", node.directory, "--limit", 5)
                assert dump("summary", node.directory).returncode == 0
    assert len(written) > ROUNDS


def test_all_nodes_show_the_same_log_and_the_same_data(cluster):
    with cluster.wait_leader().client() as client:
        client.flushall()
        client.mset({f"k{n}": n for n in range(KEYS)})
        client.hset("h", mapping={"f": "1", "g": "2"})
        client.rpush("l", "a", "b")
    cluster.wait_equal()
    logs = [rows("log", node.directory) for node in cluster.nodes]
    last = min(log[-1]["index"] for log in logs)
    first = max(log[0]["index"] for log in logs)
    one, *others = [[row for row in log if first <= row["index"] <= last] for log in logs]
    assert [row["index"] for row in one] == list(range(first, last + 1))
    assert all(other == one for other in others)
    data = [rows("kv", node.directory) for node in cluster.nodes]
    assert len(data[0]) == KEYS + 2
    assert data[1] == data[2] == data[0]
    decoded = [rows("kv", node.directory, "--key", "h") for node in cluster.nodes]
    assert decoded[1] == decoded[2] == decoded[0]
    assert {row["field"]: row["value"] for row in decoded[0][1:]} == {"f": "1", "g": "2"}


def test_a_pipeline_of_redis_py_is_one_entry(cluster):
    with cluster.followers()[0].client() as client, client.pipeline() as pipe:
        pipe.set("one", 1).hset("two", "f", "v").rpush("three", "x").execute()
    cluster.wait_equal()
    *_, entry = rows("log", cluster.nodes[0].directory, "--key", "two")  # FLUSHALL concerns it too
    (transaction,) = [item["multi"] for item in entry["commands"]]
    assert [request["argv"] for request in transaction] == [
        ["SET", "one", "1"],
        ["HSET", "two", "f", "v"],
        ["RPUSH", "three", "x"],
    ]


def test_the_history_of_a_key_is_followed(cluster, tmp_path: Path):
    """On a follower's disk, while the leader takes writes of this key and of others."""
    leader = cluster.wait_leader()
    follower = next(node for node in cluster.nodes if node is not leader)
    argv = [sys.executable, "-m", "raftdb_tools.dump", "log", str(follower.directory), "--key", "watched", "--follow"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        subprocess.Popen(
            [*argv, "--json"], stdout=subprocess.PIPE, text=True, env=environment, preexec_fn=hear_ctrl_c
        ) as process,
        leader.client() as client,
    ):
        assert process.stdout
        for number in range(20):
            client.set("other", number)
            client.set("watched", number)
        client.rename("watched", "gone")
        seen = []
        while not seen or seen[-1]["argv"][0] != "RENAME":
            row = json.loads(process.stdout.readline())
            assert {"index", "term", "time", "stamp_ms"} <= row.keys()
            seen += row["commands"]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    changes = [command["argv"] for command in seen if command["argv"][0] != "FLUSHALL"]
    assert changes == [*(["SET", "watched", str(n)] for n in range(20)), ["RENAME", "watched", "gone"]]


def test_damage_on_one_node_is_shown_and_the_node_heals_it(cluster):
    """A flipped byte of an old entry: verify says 5 and where; a node that needs the entry gets it from the others."""
    with cluster.wait_leader().client() as client:
        for number in range(5):
            client.set("victim", f"needle-{number}")
    cluster.wait_equal()
    leader = cluster.wait_leader()
    node = next(node for node in cluster.nodes if node is not leader)
    node.stop()
    file = node.directory / "log" / "data.mdb"
    (row,) = [row for row in rows("log", node.directory, "--key", "victim") if "needle-2" in str(row)]
    file.write_bytes(file.read_bytes().replace(b"needle-2", b"meedle-2"))  # in pages that are not used any more as well
    ran = dump("verify", node.directory)
    assert ran.returncode == 5
    assert ran.stdout.startswith(f"log entry {row['index']}: checksum does not match (when the node needs it, it ")
    shown = dump("log", node.directory, row["index"])
    assert shown.returncode == 5
    assert f"{row['index']} DAMAGED: checksum does not match" in shown.stdout
    shutil.rmtree(node.directory / "kv")  # to be rebuilt from the log
    node.start()
    cluster.wait_equal()
    node.stop()
    assert dump("verify", node.directory).returncode == 0
    node.start()
