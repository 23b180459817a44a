"""What people see of a cluster: INFO raft, `raftdb status`, and the program behind `make cluster`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.e2e.test_clients import Terminal
from tests.ports import free_port, is_free

pytestmark = pytest.mark.e2e


def status(node: NodeProcess, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftdb", "status", "-a", f"{node.host}:{node.port}", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_info_raft_has_its_lines_on_every_node(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        cluster.wait_equal()
        for node in cluster.nodes:
            info = wait_for("all three", lambda node=node: (i := node.info()) and i.get("raft_leader_id") and i)
            assert info["raft_role"] == ("leader" if node is leader else "follower")
            assert info["raft_leader_id"] == leader.id
            assert info["raft_leader_addr"] == f"{leader.host}:{leader.port}"
            assert info["raft_term"] >= 1
            assert info["raft_commit_index"] >= info["raft_applied_index"] >= 1
            assert (info["raft_voters"], info["raft_learners"]) == (3, 0)
            assert {info[f"raft_peer{n}"]["id"] for n in range(3)} == {n.id for n in cluster.nodes}
            replication = node.info("replication")
            assert replication["role"] == ("master" if node is leader else "slave")


def test_status_asked_from_any_node(tmp_path):
    """A table, JSON, the exit code; how many failures are survived now, with all alive and with one dead."""
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        dead, other = cluster.followers()
        for node in cluster.nodes:
            shown = status(node)
            assert shown.returncode == 0, shown.stderr
            assert all(n.id in shown.stdout for n in cluster.nodes)
            data = json.loads(status(node, "--json").stdout)
            assert data["leader_id"] == leader.id
            assert sorted(row["id"] for row in data["members"]) == ["n1", "n2", "n3"]
            assert data["failures_survivable"] == 1
        dead.kill()
        wait_for("the loss to be seen", lambda: json.loads(status(other, "--json").stdout)["failures_survivable"] == 0)
        leader.kill()
        wait_for("exit code 4: no leader", lambda: status(other, "--quiet").returncode == 4)
        assert status(dead).returncode == 3
        assert len(status(dead).stderr.strip().splitlines()) == 1


def test_status_tells_how_far_behind_a_member_is(tmp_path):
    """In entries and milliseconds, when it was last heard, and what a flush takes."""
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        cluster.wait_equal()
        away, other = cluster.followers()

        def rows() -> dict[str, dict]:
            return {row["id"]: row for row in json.loads(status(other, "--json").stdout)["members"]}

        level = wait_for("all to be level", lambda: (r := rows()) and r[away.id]["lag_entries"] == 0 and r)
        assert level[away.id]["lag_ms"] == 0
        assert 0 <= level[away.id]["contact_ms"] < 5_000
        assert all(row["flush_us"] > 0 for row in level.values())
        away.pause()
        with leader.client() as client:
            for number in range(20):
                client.set("k", str(number))

        def behind() -> bool:
            row = rows()[away.id]
            silent = row["contact_ms"] is None or row["contact_ms"] > 500
            return row["lag_entries"] >= 20 and row["lag_ms"] > 500 and silent

        wait_for("it to be seen as far behind", behind)
        away.resume()
        wait_for("it to be level again", lambda: rows()[away.id]["lag_entries"] == 0)


def test_status_watches_until_ctrl_c(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        asked, victim = cluster.followers()
        terminal = Terminal(
            [sys.executable, "-m", "raftdb", "status", "-a", f"{asked.host}:{asked.port}", "--watch", "--every", "0.2"]
        )
        try:
            terminal.wait_for(r"survives 1\s+failure", 20)
            terminal.forget()
            victim.kill()
            terminal.wait_for(r"survives no\s+further\s+failure", 30)
            terminal.forget()
            victim.start()
            terminal.wait_for(r"survives 1\s+failure", 30)
            asked.kill()
            terminal.wait_for("no answer", 30)
            terminal.type("\x03")
            with contextlib.suppress(OSError, AssertionError):
                terminal.wait_for("Traceback", 10)  # until it has closed the terminal
            assert "Traceback" not in terminal.screen
        finally:
            terminal.close()


def test_the_program_of_make_cluster(tmp_path):
    """Three nodes in one terminal: killed and started by their number, paused, looked at, stopped."""
    ports = _ports_ten_apart()
    terminal = Terminal(
        [sys.executable, "-m", "raftdb_tools.cluster", "--port", str(ports[0]), "--directory", str(tmp_path)]
    )
    try:
        terminal.wait_for("q: quit", 20)
        for number in (1, 2, 3):
            terminal.wait_for(rf"n{number} .*serves on", 30)
        terminal.wait_for("leader in term", 30)
        _write(ports[1], "k", "v")
        terminal.type("1")
        terminal.wait_for("n1 killed", 20)
        _write(ports[1], "k", "w")
        assert not _answers(ports[0])
        terminal.forget()
        terminal.type("1")
        terminal.wait_for("n1 starting", 20)
        terminal.wait_for("n1 .*serves on", 30)
        wait_for("n1 to have it", lambda: _read(ports[0], "k") == b"w")
        terminal.type("z2")
        terminal.wait_for("n2 paused", 20)
        terminal.type("z2")
        terminal.wait_for("n2 goes on", 20)
        terminal.forget()
        terminal.type("s")
        terminal.wait_for("leader", 30)
        terminal.type("q")
        wait_for("the program to end", lambda: not _children(terminal.pid), 40)
    finally:
        with contextlib.suppress(OSError):
            terminal.type("q")
        terminal.close()
    assert not any(_answers(port) for port in ports)


def _children(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def _answers(port: int) -> bool:
    """Asked once: redis-py would knock again and again, for seconds."""
    with contextlib.suppress(redis.ConnectionError):
        return bool(redis.Redis(port=port, retry=None).ping())
    return False


def _write(port: int, key: str, value: str) -> None:
    def written() -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(redis.Redis(port=port, socket_timeout=10).set(key, value))
        return False

    wait_for("a write", written)


def _read(port: int, key: str) -> bytes | None:
    with contextlib.suppress(redis.RedisError):
        return redis.Redis(port=port, socket_timeout=10).get(key)
    return None


def _ports_ten_apart() -> list[int]:
    for _ in range(100):
        first = free_port()
        if all(is_free("127.0.0.1", first + more) for more in (0, 1, 10, 11, 20, 21)):
            return [first, first + 10, first + 20]
    raise AssertionError("no free ports found")
