"""Forming, joining, leaving, coming back: real processes, as an operator would start them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import time

import pytest
import redis

from tests.e2e.churn import change, wait_settled
from tests.e2e.nemesis import wait_until_member
from tests.e2e.network import Network
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.ports import free_port

pytestmark = pytest.mark.e2e


def write(node: NodeProcess, key: str, value: str) -> None:
    with node.client() as client:
        assert client.set(key, value)


def read(node: NodeProcess, key: str) -> str | None:
    with node.client() as client:
        value = client.get(key)
    return None if value is None else value.decode()


def voters(node: NodeProcess) -> int:
    info = node.info()
    return 0 if info is None else int(info.get("raft_voters", 0))


def waits(node: NodeProcess) -> str | None:
    """What a node that has no cluster yet answers to a write."""
    try:
        with node.client(timeout_s=2.0) as client:
            client.set("k", "v")
    except redis.exceptions.ClusterDownError as error:
        return str(error)
    except (redis.RedisError, OSError):
        return None
    return None


def cluster_ids(nodes: list[NodeProcess]) -> set[str]:
    return {str(info["raft_cluster_id"]) for node in nodes if (info := node.info())}


def test_the_readmes_walk_through(tmp_path):
    """Node 1 alone, node 2 by node 1's address, node 3 by node 2's; write on any, read on any."""
    with LocalCluster(tmp_path, 3) as cluster:
        n1, n2, n3 = cluster.nodes
        n1.ensemble, n2.ensemble, n3.ensemble = "", f"{n1.host}:{n1.port}", f"{n2.host}:{n2.port}"
        n1.start().wait_serving()
        cluster.wait_leader()
        write(n1, "color", "red")
        n2.start().wait_serving()
        wait_until_member(cluster, n2)
        assert read(n2, "color") == "red"
        n3.start().wait_serving()
        wait_until_member(cluster, n3)
        wait_for("three voters", lambda: voters(n1) == voters(n2) == voters(n3) == 3)
        for number, node in enumerate(cluster.nodes):
            write(node, "turn", str(number))
            assert [read(other, "turn") for other in cluster.nodes] == [str(number)] * 3
        cluster.wait_equal()
        n1.kill()
        cluster.wait_leader(other_than=n1)
        write(n3, "turn", "after")
        assert read(n2, "turn") == "after"


def test_a_cluster_forms_only_when_everybody_listed_is_there(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        n1, n2, n3 = cluster.nodes
        n1.start()
        n2.start()
        said = wait_for("n1 to say for whom it waits", lambda: waits(n1))
        assert "waiting for" in said
        assert str(n3.port) in said or n3.id in said
        time_of_one_line = wait_for("a line in the log", lambda: re.search(r"waiting for.*", n1.log))
        assert time_of_one_line
        n3.start()
        cluster.wait_leader()
        wait_for("all to know one cluster", lambda: len(cluster_ids(cluster.nodes)) == 1)


def test_trace_a_wiped_node_that_restarts_first_does_not_found_a_second_cluster(tmp_path):
    """n2 loses its disk and comes back with its list before n1 and n3 answer: it must wait for them."""
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        n1, n2, n3 = cluster.nodes
        write(n1, "k", "old")
        before = cluster_ids(cluster.nodes)
        for node in cluster.nodes:
            node.kill()
        shutil.rmtree(n2.directory)
        n2.start()
        wait_for("n2 to wait", lambda: waits(n2))
        n1.start()
        n3.start()
        leader = cluster.wait_leader()
        assert leader is not n2
        assert cluster_ids([n1, n3]) == before
        assert read(n1, "k") == "old"
        # A member id that comes back without its data could vote twice: it is refused until -o says so.
        wait_for("n2 to be told about -o", lambda: "-o" in n2.log)
        assert voters(n1) == 3
        n2.kill()
        n2.start("-o")
        wait_until_member(cluster, n2)
        assert read(n2, "k") == "old"
        wait_for("three voters", lambda: voters(n1) == 3)
        cluster.wait_equal()


def test_trace_lists_that_differ_never_form(tmp_path):
    """A and B list {A, B}; C, D and E list {C, D, E} and B: nobody who was named by different lists may form twice."""
    with LocalCluster(tmp_path, 5) as cluster:
        a, b, c, d, e = cluster.nodes

        def listed(*nodes: NodeProcess) -> str:
            return ",".join(f"{n.host}:{n.port}" for n in nodes)

        a.ensemble, b.ensemble = listed(b), listed(a)
        c.ensemble, d.ensemble, e.ensemble = listed(b, d, e), listed(b, c, e), listed(b, c, d)
        for node in cluster.nodes:
            node.start()
        # {A, B} agree with each other and form; C, D, E wait for B to report their list, find it formed, and join it.
        wait_for("one cluster of five", lambda: [voters(n) for n in cluster.nodes] == [5] * 5, 60)
        assert len(cluster_ids(cluster.nodes)) == 1


def test_trace_two_start_forming_at_once(tmp_path):
    """All start in the same instant, again and again: one cluster each time."""
    for attempt in range(3):
        with LocalCluster(tmp_path / str(attempt), 3) as cluster:
            cluster.start()
            assert len(cluster_ids(cluster.nodes)) == 1
            assert [voters(node) for node in cluster.nodes] == [3, 3, 3]


def test_forming_survives_kills(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        for node in cluster.nodes:
            node.start()
        for delay_s in (0.3, 0.5, 0.7, 0.9):
            time.sleep(delay_s)  # the moment of the kill is the input of this test
            victim = cluster.nodes[int(delay_s * 10) % 3]
            victim.kill()
            victim.start()
        for node in cluster.nodes:
            node.wait_serving()
        cluster.wait_leader()
        wait_for("one cluster", lambda: len(cluster_ids(cluster.nodes)) == 1 and voters(cluster.nodes[0]) == 3)
        write(cluster.nodes[0], "k", "v")
        cluster.wait_equal()


def test_equal_ids_are_refused(tmp_path):
    with LocalCluster(tmp_path, 2) as cluster:
        n1, n2 = cluster.nodes
        n1.ensemble = ""
        n1.start().wait_serving()
        n2.id, n2.ensemble = n1.id, f"{n1.host}:{n1.port}"
        n2.log_path = tmp_path / "second.log"
        n2.start()
        assert wait_for("the second n1 to be refused", lambda: (n1.id in n2.log and "-o" in n2.log) or not n2.alive)
        assert voters(n1) == 1


def test_a_removed_node_waits_and_says_so(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        victim = cluster.followers()[0]
        rest = [n for n in cluster.nodes if n is not victim]
        with rest[0].client() as client:
            assert client.execute_command("DEL_NODE", victim.id)
        wait_for("two voters", lambda: voters(rest[0]) == voters(rest[1]) == 2)
        wait_for("the removed node to say so", lambda: "removed" in victim.log)
        victim.kill()
        victim.start()
        said = wait_for("the removed node to refuse work", lambda: waits(victim))
        assert "removed" in said
        assert victim.alive
        write(rest[0], "k", "v")
        assert voters(rest[0]) == 2
        # The others can be removed down to one.
        leader = cluster.wait_leader()
        other = next(n for n in rest if n is not leader)
        with leader.client() as client:
            assert client.execute_command("DEL_NODE", other.id)
        wait_for("one voter", lambda: voters(leader) == 1)
        assert read(leader, "k") == "v"


def test_the_leader_can_be_removed(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        rest = [n for n in cluster.nodes if n is not leader]
        with leader.client() as client:
            assert client.execute_command("DEL_NODE", leader.id)
        cluster.wait_leader(other_than=leader)
        wait_for("two voters", lambda: voters(rest[0]) == voters(rest[1]) == 2)
        write(rest[0], "k", "v")
        assert read(rest[1], "k") == "v"
        said = wait_for("the former leader to say why it serves no more", lambda: waits(leader))
        assert "removed from the cluster" in said


def test_add_node_by_command(tmp_path):
    with LocalCluster(tmp_path, 2, spare=1) as cluster:
        cluster.start()
        (spare,) = cluster.spares
        with cluster.nodes[0].client() as client:
            assert client.execute_command("ADD_NODE", spare.id, f"{spare.host}:{spare.port}")
        spare.start()
        wait_until_member(cluster, spare)
        wait_for("three voters", lambda: voters(cluster.nodes[0]) == 3)
        write(cluster.nodes[1], "k", "v")
        assert read(spare, "k") == "v"


def test_a_member_may_move_to_another_address(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        mover = cluster.followers()[0]
        mover.stop()
        old = mover.port
        mover.port = free_port([mover.host])
        assert mover.port != old
        mover.start().wait_serving()
        rest = [n for n in cluster.nodes if n is not mover]

        def known() -> bool:
            with rest[0].client() as client:
                return f"{mover.host}:{mover.port}" in str(client.info("raft"))

        wait_for("the new address to be committed", known)
        for node in rest:
            node.kill()
        for node in rest:
            node.start()
        cluster.wait_leader()
        write(mover, "k", "v")
        cluster.wait_equal()


def test_a_restored_backup_is_refused(tmp_path):
    """A copy of a data directory, taken before entries that the node acknowledged since, must not vote again."""
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        victim = cluster.followers()[0]
        victim.stop()
        shutil.copytree(victim.directory, tmp_path / "backup")
        victim.start().wait_serving()
        wait_until_member(cluster, victim)
        for number in range(50):
            write(cluster.nodes[0], f"k{number}", "v")
        cluster.wait_equal()
        victim.kill()
        shutil.rmtree(victim.directory)
        shutil.copytree(tmp_path / "backup", victim.directory)
        victim.start()
        wait_for("the backup to be recognised", lambda: "backup" in victim.log or "starts" in victim.log)
        victim.kill()
        shutil.rmtree(victim.directory)
        victim.start("-o")
        wait_until_member(cluster, victim)
        cluster.wait_equal()


def test_another_secret_is_refused_and_logged_once(tmp_path):
    with LocalCluster(tmp_path, 2) as cluster:
        n1, n2 = cluster.nodes
        n1.ensemble = ""
        n1.start().wait_serving()
        cluster.wait_leader()
        (tmp_path / "other").mkdir()
        n2.ensemble = f"{n1.host}:{n1.port}"
        n2.flags += ["--cluster-secret-file", str(tmp_path / "other" / "cluster.secret")]
        (tmp_path / "other" / "cluster.secret").write_text("0123456789abcdef0123456789abcdef\n")
        (tmp_path / "other" / "cluster.secret").chmod(0o600)
        n2.start()
        wait_for("the refusal in n2's log", lambda: "secret" in n2.log)
        wait_for("n2 to wait", lambda: waits(n2))
        wait_for("n2 to say again for whom it waits", lambda: n2.log.count("waiting for") >= 2, 30)
        assert len([line for line in n1.log.splitlines() if "secret" in line and "made" not in line]) <= 2
        assert voters(n1) == 1


def test_recover_makes_a_cluster_of_the_survivor(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        write(cluster.nodes[0], "k", "v")
        cluster.wait_equal()
        for node in cluster.nodes:
            node.kill()
        survivor = cluster.nodes[1]
        command = [sys.executable, "-m", "raftdb", "recover", "-d", str(survivor.directory), "--force-members"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert "lose" in done.stdout + done.stderr  # it warns what may be lost
        survivor.ensemble = ""
        survivor.start().wait_serving()
        wait_for("the survivor to lead alone", lambda: survivor.role() == "leader" and voters(survivor) == 1)
        assert read(survivor, "k") == "v"
        write(survivor, "k", "w")
        # The others are of a cluster that is gone: they do not come back with what they had.
        former = cluster.nodes[2]
        former.start()
        said = wait_for("a former member to be refused", lambda: waits(former))
        assert "refuses this node" in said
        assert voters(survivor) == 1
        former.kill()
        other = cluster.nodes[0]
        shutil.rmtree(other.directory)
        other.ensemble = f"{survivor.host}:{survivor.port}"
        other.start()
        wait_until_member(cluster, other)
        assert read(other, "k") == "w"


@pytest.mark.slow
def test_the_leader_dies_while_members_come_and_go(tmp_path):
    """ADD_NODE and DEL_NODE are asked of a follower, and the leader is killed while they are under way."""
    with LocalCluster(tmp_path, 3, spare=1) as cluster:
        cluster.start()
        (spare,) = cluster.spares
        address = f"{spare.host}:{spare.port}"
        home = {node.id for node in cluster.nodes}
        for number, delay_s in enumerate((0.0, 0.002, 0.01, 0.03, 0.1)):
            write(cluster.nodes[0], f"round{number}", "before")
            for words, expected in (
                (("ADD_NODE", spare.id, address), home | {spare.id}),
                (("DEL_NODE", spare.id), home),
            ):
                leader = cluster.wait_leader()
                asked = next(n for n in cluster.nodes if n is not leader)
                killer = threading.Timer(delay_s, leader.kill)
                if words[0] == "ADD_NODE":
                    spare.start()  # it asks for a place at the same time
                killer.start()
                outcome = change(asked, *words)
                killer.join()
                assert outcome in ("done", "again") or "not a member" in outcome, outcome
                leader.start().wait_serving()
                while outcome == "again":
                    outcome = change(asked, *words)
                assert outcome == "done" or "not a member" in outcome, outcome
                wait_settled(cluster, expected)
            wait_for("the removed node to say so", lambda: "removed" in (waits(spare) or ""))
            spare.kill()
            shutil.rmtree(spare.directory)
        cluster.wait_equal()
        assert [read(cluster.nodes[1], f"round{number}") for number in range(5)] == ["before"] * 5
        assert len(cluster_ids(cluster.nodes)) == 1


@pytest.mark.slow
def test_a_leader_that_is_cut_off_while_it_changes_the_members(tmp_path):
    """What it has appended alone is undone, whatever it answered; what it answered OK holds."""
    with LocalCluster(tmp_path, 3, proxied=True) as cluster, Network(cluster) as network:
        cluster.start()
        for _ in range(2):
            leader = cluster.wait_leader()
            others = [node for node in cluster.nodes if node is not leader]
            for other in others:
                network.silence(leader, other)
            outcome = change(leader, "DEL_NODE", others[0].id)
            assert outcome == "again", outcome  # nobody but the leader can have it
            new = cluster.wait_leader(other_than=leader)
            assert voters(new) == 3
            write(new, "k", "v")
            network.heal()
            wait_settled(cluster, {node.id for node in cluster.nodes})
            cluster.wait_equal()
