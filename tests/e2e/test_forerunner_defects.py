"""pyraft's defects, one by one, where no other test shows that they stayed behind; and the table that lists them all.

The table stands in docs/coming-from-pyraft.md: what pyraft did, what raftdb does, which tests or transcripts show it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from raftdb import raft
from raftdb.storage.snapshot import Reader
from tests.e2e.memory import rss
from tests.e2e.processes import LocalCluster, NodeProcess, background, wait_for
from tests.e2e.server import Raftdb
from tests.examples.programs import Program, free_ports
from tests.sources import ROOT

pytestmark = pytest.mark.e2e

PAGE = (ROOT / "docs" / "coming-from-pyraft.md").read_text(encoding="utf-8")
#: How many there are of each kind: consensus safety, durability, data semantics, protocol, performance and operations.
DEFECTS = {"C": 9, "D": 6, "S": 3, "P": 9, "O": 7}

# --- the table --------------------------------------------------------------------------------------------------------


def rows() -> dict[str, str]:
    """id -> what the last column of its row names."""
    return {found[1]: found[2] for found in re.finditer(r"^\| ([CDSPO]\d) \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)}


def test_every_defect_has_a_row_and_a_proof():
    assert list(rows()) == [f"{kind}{number}" for kind, count in DEFECTS.items() for number in range(1, count + 1)]
    assert [name for name, shown in rows().items() if not re.search(r"`[^`]+`", shown)] == []


def test_every_test_and_transcript_that_the_table_names_is_there():
    named = [name for shown in rows().values() for name in re.findall(r"`([^`]+)`", shown)]
    missing = []
    for name in named:
        path, _, function = name.partition("::")
        file = ROOT / "tests" / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        is_transcript = bool(text) and file.suffix == ".txt" and not function
        if not is_transcript and not re.search(rf"^ *(async )?def {function or '-'}\(", text, re.MULTILINE):
            missing.append(name)
    assert len(named) > 60
    assert missing == []


# --- three nodes ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("defects"), flags=["--reads", "lease"]) as running:
        yield running.start()


@pytest.fixture
def follower(cluster) -> NodeProcess:
    return cluster.followers()[0]


def told(node: NodeProcess, field: str) -> int:
    info = node.info()
    return int(info[field]) if info is not None else -1


def exchange(host: str, port: int, data: bytes) -> bytes:
    """What is answered to `data`, until the other side closes or has nothing more to say to the end of the input."""
    received = b""
    with socket.create_connection((host, port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        try:
            while piece := connection.recv(65_536):
                received += piece
        except ConnectionResetError:
            pass
    return received


def test_c6_a_new_leader_costs_one_term_and_no_entry_is_fetched_again(cluster):
    cluster.wait_equal()
    leader = cluster.leader()
    assert leader is not None
    before = {node.id: (told(node, "raft_term"), told(node, "raft_applied_index")) for node in cluster.nodes}
    starts = {node.id: told(node, "raft_first_index") for node in cluster.nodes}
    target = next(node for node in cluster.nodes if node is not leader)
    applied: list[int] = []

    def watch(stop: threading.Event) -> None:
        while not stop.is_set():
            applied.extend(told(node, "raft_applied_index") for node in cluster.nodes)

    with background(watch):
        with leader.client() as client:
            client.execute_command("RAFT.TRANSFER", target.id)
        wait_for("it to lead", lambda: target.role() == "leader")
    cluster.wait_equal()
    (term,) = {told(node, "raft_term") for node in cluster.nodes}
    assert 1 <= term - before[leader.id][0] < 5  # one, or a few on a machine that stands still now and then
    assert min(index for index in applied if index >= 0) >= min(index for _, index in before.values())
    assert {node.id: told(node, "raft_first_index") for node in cluster.nodes} == starts


def test_c7_whoever_calls_at_the_peers_port_becomes_no_member(cluster):
    """pyraft's own line to get in, and what then killed its leader: bytes that are no acknowledgement."""
    leader = cluster.wait_leader()
    term = told(leader, "raft_term")
    for node in cluster.nodes:
        for line in (b"id stranger 127.0.0.9:5010 0\r\n", b"vote 4711\r\n", b"append_entry 9 9 9 9 9\r\nnonsense\r\n"):
            answer = exchange(node.host, node.port + 1, line * 100)
            assert b"stranger" not in answer
            assert b"yes" not in answer
            assert b"ack" not in answer
    for node in cluster.nodes:
        assert (told(node, "raft_voters"), told(node, "raft_learners")) == (3, 0)
        assert told(node, "raft_term") == term
    with leader.client() as client:
        assert client.set("after", "strangers")


def test_c9_a_member_that_is_started_without_the_others_follows_all_the_same(cluster, follower):
    """Its data say who they are. (pyraft without -e elected itself, beside the others.)"""
    listed, follower.ensemble = follower.ensemble, ""
    try:
        assert follower.stop() == 0
        follower.start().wait_serving()
        wait_for("it to follow", lambda: follower.role() == "follower")
        with cluster.wait_leader().client() as client:
            client.set("k", "after the restart")
        with follower.client() as client:
            assert client.get("k") == b"after the restart"
    finally:
        follower.ensemble = listed
    assert told(follower, "raft_voters") == 3


def test_s1_all_replicas_have_one_expiry_before_and_after_a_replay(cluster, follower):
    with follower.client() as client:
        client.set("session", "x")
        assert client.execute_command("EXPIRE", "session", 5_000) == 1
        client.set("short", "x", px=300)
    cluster.wait_equal()

    def expiries() -> set[int]:
        found = set()
        for node in cluster.nodes:
            with node.client() as client:
                client.execute_command("RAFT.CONSISTENCY", "stale")
                found.add(int(client.execute_command("PEXPIRETIME", "session")))
        return found

    before = expiries()
    assert len(before) == 1
    follower.kill()
    # What it had applied is thrown away: at the start everything comes from the log.
    for path in (follower.directory / "kv").iterdir():
        path.unlink()
    (follower.directory / "kv.state").unlink()
    follower.start().wait_serving()
    cluster.wait_equal()
    assert expiries() == before
    with follower.client() as client:
        wait_for("the short one to end", lambda: client.get("short") is None)
        assert client.delete("short") == 0


def test_p4_a_follower_that_relays_nothing_found_goes_on(cluster, follower):
    with follower.client(protocol=2) as client, follower.client(protocol=3) as other:
        for _ in range(3):
            assert client.lpop("no such list") is None
            assert other.execute_command("LPOP", "no such list", 2) is None
            assert client.set("k", "v", xx=True, get=True) in (None, b"v", b"after the restart")
        assert client.set("k", "relayed")
        assert other.get("k") == b"relayed"


def test_p6_clients_of_a_follower_get_their_own_answers(cluster, follower):
    def relay(stop: threading.Event) -> None:
        me = str(threading.get_ident())
        with follower.client() as client:
            for number in range(100):
                assert client.incr(f"count:{me}") == number + 1
                assert client.getset(f"last:{me}", f"{me}:{number}") == (
                    f"{me}:{number - 1}".encode() if number else None
                )

    with background(relay, threads=16):
        pass


def test_o1_a_peer_that_hangs_holds_nobody_up(cluster, follower):
    """pyraft waited up to a second for each acknowledgement, one peer after the other, one entry at a time."""
    leader = cluster.wait_leader()
    with leader.client() as client:
        follower.pause()
        try:
            started = time.monotonic()
            for number in range(100):
                client.set("k", number)
            assert time.monotonic() - started < 20  # a second each would be 100
        finally:
            follower.resume()
    cluster.wait_equal()


# --- one node ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Raftdb]:
    with Raftdb(tmp_path_factory.mktemp("defects")) as running:
        yield running


def test_c8_an_error_in_consensus_ends_the_node_and_closes_its_port(tmp_path, monkeypatch):
    """It does not go on answering clients as if it were a member."""
    (port,) = free_ports(1)
    node = raft.RaftNode("n1", f"127.0.0.1:{port}", config={"data_dir": str(tmp_path / "n1")})
    node.start()
    try:
        assert node.node.wait_ready(20)
        with redis.Redis(port=port) as client:
            assert client.set("k", "v")

            def broken(_: object) -> None:
                raise ZeroDivisionError("a mistake in the core")

            monkeypatch.setattr(type(node.node.core), "tick", broken)
            with pytest.raises(raft.RaftException, match=r"had to stop.*a mistake in the core"):
                node.join()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        node.shutdown()


def test_d4_a_checkpoint_is_one_moment_while_writes_go_on(server):
    """Two counters that every transaction raises together are equal in each file, and the file knows its index."""

    def write(stop: threading.Event) -> None:
        with redis.Redis(port=server.port) as client:
            while not stop.is_set():
                with client.pipeline() as pipe:
                    pipe.incr("one").incr("two").execute()

    found = []
    with background(write, threads=4), redis.Redis(port=server.port) as client:
        for number in range(5):
            wait_for("further writes", lambda: int(client.get("one") or 0) > (found[-1][0] if found else 0))
            client.execute_command("CHECKPOINT", f"moment{number}.dat")
            with Reader(server.data / "checkpoints" / f"moment{number}.dat") as reader:
                heads = {row.name: row.head for row in reader.walk()}
                values = {name: int(heads[name].value) for name in (b"one", b"two")}
                found.append((values[b"one"], values[b"two"], reader.header.index))
    assert all(one == two for one, two, _ in found)
    assert [index for *_, index in found] == sorted({index for *_, index in found})


def test_d6_expiries_come_through_a_checkpoint_and_still_fall_due(server, tmp_path):
    with redis.Redis(port=server.port) as client:
        client.set("long", "x", ex=5_000)
        client.set("short", "x", px=1_500)
        at = client.pexpiretime("long")
        client.execute_command("CHECKPOINT", "expiries.dat")
    file = server.data / "checkpoints" / "expiries.dat"
    with Raftdb(tmp_path, "-l", str(file)) as other, redis.Redis(port=other.port) as client:
        assert client.pexpiretime("long") == at
        wait_for("the short one to end", lambda: client.get("short") is None)
        assert client.delete("short") == 0


def test_s3_no_name_belongs_to_the_node(server):
    """pyraft kept its expiries, its description and ZooKeeper's tree under these names, beside the user's keys."""
    names = ("ttl", "_META_", "ZK", "zk_session")
    with redis.Redis(port=server.port, decode_responses=True) as client:
        for name in names:
            assert client.set(name, "mine")
        assert client.set("k", "v", ex=1_000)
        assert client.delete("ttl") == 1
        assert client.rpush("ttl", "a") == 1
        assert client.execute_command("CHECKPOINT") == "OK"
        server.kill()
        server.start()
        assert client.get("_META_") == client.get("ZK") == client.get("zk_session") == "mine"
        assert client.lrange("ttl", 0, -1) == ["a"]
        assert 900 < client.ttl("k") <= 1_000
        assert client.delete(*names) == 4


def test_p1_p2_p3_any_bytes_are_a_value(server):
    """Lengths count bytes, nothing in a value is protocol, and what is no UTF-8 hangs nobody; typed and as arrays."""
    for value in ("größer ключ \U0001f600".encode(), b"short\r\n+OK\r\n", b"\xff\xfe\x00", b"\r\n", b"$-1"):
        sent = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$%d\r\n%s\r\n" % (len(value), value)
        received = exchange("127.0.0.1", server.port, sent + b"get k\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
        assert received == b"+OK\r\n" + b"$%d\r\n%s\r\n" % (len(value), value) * 2
    text = "ключ".encode()
    assert exchange("127.0.0.1", server.port, b"set %s %s\r\nget %s\r\n" % (text, text, text)) == (
        b"+OK\r\n$%d\r\n%s\r\n" % (len(text), text)
    )


def test_p9_info_json_is_json_whatever_the_node_is_called(tmp_path):
    nid = 'it\'s "n1" \\ größer'
    with Raftdb(tmp_path, "-i", nid) as server:
        answer = exchange("127.0.0.1", server.port, b"info json\r\n")
        assert json.loads(answer.partition(b"\r\n")[2])["nid"] == nid


def test_o1_an_idle_node_does_not_compute(server):
    """pyraft's loop never slept."""

    def cpu_s() -> float:
        fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    before_s, started_s = cpu_s(), time.monotonic()
    threading.Event().wait(3)  # of idleness, which is what is measured
    assert (cpu_s() - before_s) / (time.monotonic() - started_s) < 0.2


def test_o7_data_are_on_the_disk_and_not_in_memory(server):
    before, _ = rss(server)
    with redis.Redis(port=server.port) as client:
        for number in range(100):
            client.set(f"large{number}", bytes([number]) * 1_000_000)
        assert client.strlen("large99") == 1_000_000
        grown, _ = rss(server)
        assert grown - before < 50_000_000
        client.delete(*(f"large{number}" for number in range(100)))


# --- the door ---------------------------------------------------------------------------------------------------------


def test_o4_a_listener_of_another_protocol_is_refused_in_words():
    node = raft.RaftNode("n1", "127.0.0.1:5010")
    with pytest.raises(raft.RaftException, match="listeners of other protocols are not supported"):
        node.regist_worker(2, raft.RaftWorker())


def test_o5_a_level_and_a_file_of_the_log_go_together(tmp_path):
    script = tmp_path / "run.py"
    script.write_text("from raftdb import raft\nnode = raft.make_default_node()\nnode.start()\nnode.join()\n")
    program = Program(tmp_path, script, "1", free_ports(1)[0], "", "-loglevel", "warning", "-logfile", "node.log")
    try:
        wait_for("it to serve", program.answers, 30)
        assert program.terminate() == 0, program.output
    finally:
        program.kill()
    assert "INFO" not in (tmp_path / "node.log").read_text()
