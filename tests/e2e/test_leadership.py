"""Leadership that moves: by command without a failed request, by a kill within a bound, by SIGTERM, by a pause."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import redis

from tests.e2e.processes import LocalCluster, NodeProcess, wait_for

pytestmark = pytest.mark.e2e

CLIENTS = Path(__file__).with_name("clients")
TRANSFERS = 3


class Writer(threading.Thread):
    """A redis-py client with its defaults that keeps counting on one node."""

    def __init__(self, node: NodeProcess) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.key = f"writer-{node.id}"
        self.stopping = threading.Event()
        self.done = 0
        self.errors: list[str] = []

    def run(self) -> None:
        client = redis.Redis(self.node.bind, self.node.port)
        while not self.stopping.is_set():
            try:
                client.incr(self.key)
                self.done += 1
            except redis.RedisError as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            self.stopping.wait(0.002)


@pytest.fixture
def node_writer(require):
    """Starts clients/writer.mjs; the test is skipped where node or the npm client is missing."""
    program = require("node")
    if not (CLIENTS / "node_modules" / "redis").is_dir():
        pytest.skip("the npm clients are not installed (npm install in tests/e2e/clients)")

    def start(node: NodeProcess) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [program, "writer.mjs", node.bind, str(node.port), f"js-{node.id}"],
            cwd=CLIENTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def hand_over(cluster: LocalCluster, times: int, settled) -> None:
    """RAFT.TRANSFER to each other node in turn; `settled()` says that traffic has gone on after it."""
    for number in range(times):
        leader = cluster.wait_leader()
        target = next(n for n in itertools.islice(itertools.cycle(cluster.nodes), number, None) if n is not leader)
        with leader.client() as client:
            client.execute_command("RAFT.TRANSFER", target.id)
        wait_for(f"{target.id} to lead", lambda target=target: target.role() == "leader")
        settled()


def test_a_planned_transfer_fails_no_request_of_plain_redis_py(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        writers = [Writer(node) for node in cluster.nodes]
        for writer in writers:
            writer.start()

        def settled() -> None:
            before = [writer.done for writer in writers]
            wait_for("all writers to go on", lambda: all(w.done > b + 20 for w, b in zip(writers, before, strict=True)))

        settled()
        hand_over(cluster, TRANSFERS, settled)
        for writer in writers:
            writer.stopping.set()
        for writer in writers:
            writer.join(10)
        assert [writer.errors for writer in writers] == [[], [], []]
        with cluster.nodes[0].client() as client:
            for writer in writers:
                assert int(client.get(writer.key)) == writer.done  # each counted once


def test_a_planned_transfer_fails_no_request_of_plain_node_redis(tmp_path, node_writer):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        writers = [node_writer(node) for node in cluster.nodes]
        for writer in writers:
            assert writer.stderr.readline() == "writing\n"

        def settled() -> None:
            with cluster.nodes[0].client() as client:
                keys = [f"js-{node.id}" for node in cluster.nodes]
                before = [int(v or 0) for v in client.mget(keys)]
                wait_for(
                    "all writers to go on",
                    lambda: all(int(v or 0) > b + 20 for v, b in zip(client.mget(keys), before, strict=True)),
                )

        settled()
        hand_over(cluster, TRANSFERS, settled)
        results = [json.loads(writer.communicate("")[0]) for writer in writers]
        assert [result["errors"] for result in results] == [[], [], []]
        assert all(result["done"] == result["last"] > 0 for result in results)


def test_sigterm_hands_leadership_over_before_it_ends(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        other = next(n for n in cluster.nodes if n is not leader)
        writer = Writer(other)
        writer.start()
        wait_for("some writes", lambda: writer.done > 20)
        assert leader.stop() == 0, leader.log
        before = writer.done
        wait_for("writes to go on", lambda: writer.done > before + 20)
        writer.stopping.set()
        writer.join(10)
        assert writer.errors == []
        leader.start().wait_serving()
        cluster.wait_equal()


class Pipeliner(threading.Thread):
    """A bare socket that sends INCRs in pipelines of 20 until the node closes it, and counts what it is told."""

    def __init__(self, node: NodeProcess, number: int) -> None:
        super().__init__(daemon=True)
        self.key = f"pipeliner-{number}"
        self.done = self.unknown = self.refused = 0
        self.running = threading.Event()
        self._socket = socket.create_connection((node.bind, node.port), timeout=30)

    def run(self) -> None:
        pipeline = f"INCR {self.key}\r\n".encode() * 20
        with self._socket, self._socket.makefile("rb") as replies:
            try:
                while True:
                    self._socket.sendall(pipeline)
                    for _ in range(20):
                        line = replies.readline()
                        if not line.endswith(b"\r\n"):
                            return
                        self.done += line.startswith(b":")
                        self.unknown += line.startswith(b"-UNCERTAIN ")
                        self.refused += line.startswith((b"-CLUSTERDOWN ", b"-TRYAGAIN "))
                    if self.done > 200:
                        self.running.set()
            except (ConnectionError, BrokenPipeError):
                return  # what the node had not read is thrown away by the kernel


@pytest.mark.parametrize("which", ["leader", "follower"])
def test_a_node_that_stops_closes_no_socket_with_a_write_of_unknown_fate_on_it(tmp_path, which):
    """Clients repeat what a closed socket did not answer: so that may not have been executed, not one of it."""
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        node = leader if which == "leader" else next(n for n in cluster.nodes if n is not leader)
        clients = [Pipeliner(node, number) for number in range(4)]
        for client in clients:
            client.start()
            assert client.running.wait(30)
        assert node.stop() == 0, node.log
        for client in clients:
            client.join(30)
            assert not client.is_alive()
        other = next(n for n in cluster.nodes if n is not node)
        wait_for("somebody to lead", lambda: any(n.role() == "leader" for n in cluster.nodes if n is not node))
        with other.client() as connection:
            for client in clients:
                counted = int(connection.get(client.key))
                assert client.done <= counted <= client.done + client.unknown


def test_callers_of_a_dead_leader_get_through_again(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        rest = [n for n in cluster.nodes if n is not leader]
        leader.kill()
        # A write sent now waits for the next leader instead of failing.
        with rest[0].client() as client:
            assert client.set("k", "v")
        with rest[1].client() as client:
            assert client.get("k") == b"v"
        roles = sorted(str(node.role()) for node in rest)
        assert roles == ["follower", "leader"]
        follower = next(n for n in rest if n.role() == "follower")
        with follower.client() as client:
            assert client.info("replication")["role"] == "slave"
            assert client.info("raft")["raft_voters"] == 3


def test_a_minority_answers_nothing_but_says_that_nothing_was_done(tmp_path):
    with LocalCluster(tmp_path, 3, flags=["--leader-wait-ms", "500", "--request-timeout-ms", "1500"]) as cluster:
        cluster.start()
        alone = cluster.nodes[0]
        for node in cluster.nodes[1:]:
            node.kill()
        wait_for("no leader to be known", lambda: (alone.info() or {"raft_leader_id": "?"})["raft_leader_id"] == "")
        with alone.client() as client:
            with pytest.raises(redis.exceptions.ClusterDownError):
                client.set("k", "v")
            with pytest.raises(redis.exceptions.ClusterDownError):
                client.get("k")
            client.execute_command("RAFT.CONSISTENCY", "stale")
            assert client.ping()
        for node in cluster.nodes[1:]:
            node.start()
        cluster.wait_leader()
        with alone.client() as client:
            assert client.get("k") is None


def test_a_whole_cluster_comes_back_from_its_disks(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        with cluster.nodes[0].client() as client:
            for number in range(200):
                client.set(f"k{number}", str(number))
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start()
        cluster.wait_leader()
        with cluster.nodes[2].client() as client:
            assert client.mget([f"k{n}" for n in range(200)]) == [str(n).encode() for n in range(200)]
        cluster.wait_equal()


def test_a_copy_of_one_directory_is_no_second_node(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        original = cluster.nodes[0]
        twin = NodeProcess(original.id, tmp_path / "twin", original.host, original.port, original.bind, [])
        twin.log_path = tmp_path / "twin.log"
        original.stop()
        shutil.copytree(original.directory, twin.directory)
        original.start().wait_serving()
        twin.start()
        assert twin.wait_exit() == 2  # its port is taken: one line, nothing touched
        assert len(twin.log.strip().splitlines()) <= 2


def test_a_write_on_a_follower_does_not_wait_for_a_tick(tmp_path):
    """Forwards lay in the outbox until the next tick: with a tick of half a second ten writes took five."""
    flags = ["--tick-ms", "500", "--heartbeat-ms", "500", "--election-ms", "3000", "--lease-ms", "1000"]
    with LocalCluster(tmp_path, 3, flags=flags) as cluster:
        cluster.start()
        with cluster.followers()[0].client() as client:
            client.set("k", "0")
            started = time.monotonic()
            for number in range(20):
                client.set("k", str(number))
            assert time.monotonic() - started < 20 * 0.5 / 2  # in units of the tick: half of one each would be too much
