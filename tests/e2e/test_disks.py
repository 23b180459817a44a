"""Disks that are full, slow or failing under a cluster, and a snapshot on its way to a follower."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess

import pytest
import redis

from raftdb.net.wire import CHUNK_BYTES_MAX
from tests.e2e.install_kills import SMALL_SNAPSHOTS, load, needs_snapshot
from tests.e2e.network import Network
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.e2e.workload import not_executed
from tests.smalldisk import small_disk

pytestmark = pytest.mark.e2e


def attach(strace: str, node: NodeProcess) -> list[str]:
    """A command line that traces the flushes of a running node."""
    assert node.process is not None
    return [strace, "-f", "-qq", "-o", "/dev/null", "-p", str(node.process.pid), "-e", "trace=fdatasync"]


def fill(node: NodeProcess, stop_at: int = 4_000) -> int:
    """Writes 32 KiB values until one is refused for want of room; how many went in."""
    with node.client(timeout_s=20) as client:
        for number in range(stop_at):
            try:
                client.set(f"fill{number}", os.urandom(32_768))
            except redis.exceptions.OutOfMemoryError:
                return number
    raise AssertionError("the disk never became full")


def test_a_full_disk_refuses_writes_and_recovers(tmp_path):
    """A node of its own: reads and deletes go on, writes come back."""
    with small_disk(tmp_path / "disk", 96) as disk, LocalCluster(tmp_path / "c", 1) as cluster:
        (node,) = cluster.nodes
        node.directory = disk / "n1"
        node.flags += [
            "--min-free",
            "24MiB",
            "--keep-bytes",
            "1MiB",
            "--snapshot-log-bytes",
            "8MiB",
            "--map-size",
            "1GiB",
        ]
        node.start().wait_serving()
        cluster.wait_leader()
        with node.client(timeout_s=20) as client:
            client.set("keep", "me")
            filled = fill(node)
            assert filled > 20
            assert client.get("keep") == b"me"
            assert len(client.get("fill0")) == 32_768
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                client.set("more", b"x" * 1000)
            for number in range(filled):
                client.delete(f"fill{number}")

            def accepted() -> bool:
                with contextlib.suppress(redis.exceptions.OutOfMemoryError):
                    return bool(client.set("more", "x"))
                return False

            wait_for("writes to be accepted again", accepted, 60)
            assert client.get("keep") == b"me"
        assert node.stop() == 0, node.log


def test_a_leader_with_a_full_disk_is_replaced(tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk, LocalCluster(tmp_path / "c", 3) as cluster:
        cramped = cluster.nodes[0]
        cramped.directory = disk / "n1"
        secret = tmp_path / "cluster.secret"
        secret.write_text("0123456789abcdef0123456789abcdef\n")
        secret.chmod(0o600)
        for node in cluster.nodes:
            node.flags += ["--cluster-secret-file", str(secret), "--map-size", "1GiB"]
        cramped.flags += ["--min-free", "16MiB"]
        cluster.start()
        leader = cluster.wait_leader()
        if leader is not cramped:
            with leader.client() as client:
                client.execute_command("RAFT.TRANSFER", cramped.id)
            wait_for("the cramped node to lead", lambda: cramped.role() == "leader")
        filler = disk / "filler"
        with filler.open("wb") as stream, contextlib.suppress(OSError):
            while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > 8 << 20:
                stream.write(b"\0" * (1 << 20))
                stream.flush()
        rest = cluster.nodes[1:]
        wait_for("another leader", lambda: any(node.role() == "leader" for node in rest), 30)
        with rest[0].client() as client:
            assert client.set("k", "v")
        with cramped.client() as client:
            assert client.get("k") == b"v"  # it goes on serving
        filler.unlink()
        wait_for("the node to keep up again", lambda: cramped.digest() == rest[0].digest(), 30)


def test_full_disks_on_all_nodes_refuse_writes_and_recover(tmp_path):
    """Nobody has room to lead: somebody leads all the same, reads and deletes go on, nothing acknowledged is lost."""
    with contextlib.ExitStack() as stack:
        disks = [stack.enter_context(small_disk(tmp_path / f"disk{n}", 96)) for n in range(3)]
        cluster = stack.enter_context(LocalCluster(tmp_path / "c", 3))
        secret = tmp_path / "cluster.secret"
        secret.write_text("0123456789abcdef0123456789abcdef\n")
        secret.chmod(0o600)
        for node, disk in zip(cluster.nodes, disks, strict=True):
            node.directory = disk / node.id
            node.flags += ["--cluster-secret-file", str(secret), "--map-size", "1GiB", "--min-free", "24MiB"]
            node.flags += ["--keep-bytes", "1MiB", "--snapshot-log-bytes", "8MiB"]
        cluster.start()
        leader = cluster.wait_leader()
        with leader.client() as client:
            client.set("keep", "me")
        filled = fill(leader)
        assert filled > 20

        def refused(node: NodeProcess, filling: bool = False) -> bool:
            """filling: a snapshot and the trimming after it give room back, which is filled again."""
            nonlocal filled
            with node.client(timeout_s=20) as client:
                try:
                    for _ in range(20 if filling else 0):
                        client.set(f"fill{filled}", os.urandom(32_768))
                        filled += 1
                    client.set("more", b"x" * 1000)
                except redis.exceptions.OutOfMemoryError:
                    return True
                except redis.exceptions.ResponseError as error:
                    if not not_executed(error):
                        raise
                return False

        for node in cluster.nodes:
            wait_for(f"{node.id} to refuse writes", lambda node=node: refused(node, True))
            with node.client(timeout_s=20) as client:
                assert client.get("keep") == b"me"
                assert len(client.get("fill0")) == 32_768

        def deleted(number: int) -> bool:
            """By any node, whoever leads."""
            with contextlib.suppress(redis.exceptions.ResponseError), cluster.nodes[number % 3].client() as client:
                client.delete(f"fill{number}")
                return True
            return False

        for number in range(filled + 1):  # (one more may have been written without an answer)
            wait_for("a delete to be taken", lambda number=number: deleted(number))
        for node in cluster.nodes:
            wait_for(f"{node.id} to take writes again", lambda node=node: not refused(node), 60)
        with leader.client() as client:
            assert client.get("keep") == b"me"
            assert client.dbsize() <= 3  # keep, more, and what the harness writes
        cluster.wait_equal(60)
        assert all(node.alive for node in cluster.nodes)


def test_a_leader_with_a_hung_disk_is_replaced(tmp_path, require):
    """Every flush of the leader takes seconds: its heartbeats must not keep the cluster (hashicorp/raft#503)."""
    strace = require("strace")
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        rest = [n for n in cluster.nodes if n is not leader]
        tracer = subprocess.Popen(
            [*attach(strace, leader), "-e", "inject=fdatasync:delay_enter=6000000"],
            stdin=subprocess.DEVNULL,
        )
        try:

            def replaced() -> bool:
                # An idle leader has nothing to flush, and a write from before the tracer was there hangs nowhere.
                with contextlib.suppress(redis.RedisError, OSError), leader.client(timeout_s=0.5) as client:
                    client.set("poke", "1")
                return any(node.role() == "leader" for node in rest)

            wait_for("another leader", replaced, 60)
            with rest[0].client() as client:
                assert client.set("k", "v")
        finally:
            tracer.send_signal(signal.SIGINT)
            tracer.wait(20)
        cluster.wait_equal(60)


def test_a_failed_flush_ends_the_process(tmp_path, require):
    """EIO on fdatasync: what the page cache says is not known any more. Nothing acknowledged is lost."""
    strace = require("strace")
    with LocalCluster(tmp_path, 1) as cluster:
        (node,) = cluster.nodes
        node.start().wait_serving()
        cluster.wait_leader()
        with node.client() as client:
            client.set("before", "1")
        tracer = subprocess.Popen(
            [*attach(strace, node), "-e", "inject=fdatasync:error=EIO"],
            stdin=subprocess.DEVNULL,
        )

        def fails() -> bool:
            with contextlib.suppress(redis.RedisError, OSError), node.client(timeout_s=5) as client:
                client.set("during", "1")
            return not node.alive

        wait_for("the node to end", fails)
        tracer.wait(20)
        assert node.process.returncode not in (0, -signal.SIGKILL)
        assert "raftdb: stopped:" in node.log
        assert "Traceback" not in node.log.split("raftdb: stopped:")[1]
        node.start().wait_serving()
        cluster.wait_leader()
        with node.client() as client:
            assert client.get("before") == b"1"


# --- a snapshot on its way ---


def test_a_snapshot_cut_at_every_chunk_arrives(tmp_path):
    """Each connection carries one whole chunk and dies in the next; the transfer goes on where it was."""
    with LocalCluster(tmp_path, 3, flags=SMALL_SNAPSHOTS, proxied=True) as cluster, Network(cluster) as network:
        cluster.start()
        follower = cluster.followers()[0]
        applied = int(follower.info()["raft_applied_index"])
        follower.kill()
        load(cluster.wait_leader(), 300, 20_000)  # 6 MB
        for number in range(60):
            load(cluster.wait_leader(), 1, 10, f"step{number}-")
        needs_snapshot(cluster, applied + 1)
        leader = cluster.wait_leader()
        link = network.proxy.link(leader.id, follower.id)
        before = link.passed_bytes
        link.close_after(CHUNK_BYTES_MAX * 11 // 10, again=True)
        follower.start()
        held: set[int] = set()  # so much of the file was there, at one time or another

        def caught_up() -> bool:
            for part in (follower.directory / "snapshots").glob("*.part"):
                with contextlib.suppress(FileNotFoundError):
                    held.add(part.stat().st_size)
            return follower.digest() is not None and follower.digest() == leader.digest()

        wait_for("the follower to catch up through the cuts", caught_up, 120)
        cuts = link.closed
        network.heal()
        (size_bytes,) = {int(n) for n in re.findall(r"fetching snapshot .* of (\d+) bytes", follower.log)}
        chunks = -(-size_bytes // CHUNK_BYTES_MAX)
        assert chunks > 20
        assert cuts >= chunks - 1, f"{cuts} cuts, {chunks} chunks"
        assert held >= {CHUNK_BYTES_MAX * number for number in range(1, chunks)}, "two chunks came by one connection"
        passed = link.passed_bytes - before
        assert passed < 2 * size_bytes, f"{passed} bytes were sent for a snapshot of {size_bytes}"
        cluster.wait_equal()
