"""`raftdb check --repair` on members of living clusters: a node whose vote is damaged comes back as another life."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raftdb.storage import datadir
from raftdb.storage.engine import Environment
from raftdb.storage.log import DATABASES
from tests.e2e.processes import LocalCluster, wait_for
from tests.e2e.test_membership import voters, wait_until_member, write

pytestmark = pytest.mark.e2e


def check(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raftdb", "check", *words], capture_output=True, text=True, timeout=120, check=False
    )


def damage_vote(directory: Path) -> None:
    environment = Environment(directory / "log", DATABASES, sync=True)
    transaction = environment.writer()
    transaction.put(b"hard", b"rot", db=environment.databases[1])
    environment.commit(transaction)
    environment.close()


def test_a_member_with_a_damaged_vote_is_repaired_and_taken_in_again(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        for number in range(20):
            write(cluster.nodes[0], f"k{number}", "v")
        victim = cluster.followers()[0]
        victim.stop()
        incarnation = datadir.read_identity(victim.directory).incarnation
        damage_vote(victim.directory)
        victim.start()
        assert victim.wait_exit() == 1
        assert f"raftdb check -d {victim.directory}" in victim.log.splitlines()[-1]
        assert check("-d", str(victim.directory)).returncode == 5
        repaired = check("-d", str(victim.directory), "--repair")
        assert repaired.returncode == 0, repaired.stderr
        assert "start it with -o" in repaired.stdout
        write(next(node for node in cluster.nodes if node is not victim), "meanwhile", "v")
        victim.start("-o")
        wait_until_member(cluster, victim)
        wait_for("a vote", lambda: victim.role() in ("follower", "leader") and voters(victim) == 3)
        cluster.wait_equal()
        assert datadir.read_identity(victim.directory).incarnation != incarnation
        other = next(node for node in cluster.nodes if node is not victim)
        other.kill()  # now its vote and its disk are needed
        survivor = next(node for node in cluster.nodes if node not in (victim, other))
        wait_for("the two others to lead", lambda: cluster.wait_leader())
        write(survivor, "after", "v")
        assert check("-d", str(victim.directory)).returncode == 2  # in use


def test_a_node_that_is_alone_goes_on_after_a_repair(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, 1) as cluster:
        cluster.start()
        (node,) = cluster.nodes
        for number in range(20):
            write(node, f"k{number}", "v")
        node.stop()
        damage_vote(node.directory)
        node.start()
        assert node.wait_exit() == 1
        repaired = check("-d", str(node.directory), "--repair")
        assert repaired.returncode == 0, repaired.stderr
        node.start().wait_serving()
        cluster.wait_leader()
        with node.client() as db:
            assert all(db.get(f"k{number}") == b"v" for number in range(20))
