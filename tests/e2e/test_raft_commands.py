"""The RAFT.* family and the read modes on three real processes, asked of leader and followers alike."""

from __future__ import annotations

import pytest
import redis

from tests.e2e.churn import members, wait_settled
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.e2e.test_membership import read, write

pytestmark = pytest.mark.e2e

BRIEFLY = ("--leader-wait-ms", "500", "--request-timeout-ms", "1500")


def ask(node: NodeProcess, *words: str | int):
    with node.client(timeout_s=20) as client:
        return client.execute_command(*words)


def one_connection(node: NodeProcess) -> redis.Redis:
    """RAFT.CONSISTENCY is a matter of the connection."""
    return redis.Redis(node.bind, node.port, protocol=3, single_connection_client=True, socket_timeout=10)


def leave_alone(cluster: LocalCluster) -> NodeProcess:
    """A follower whose majority is gone, and that knows it."""
    alone = cluster.followers()[0]
    for node in cluster.nodes:
        if node is not alone:
            node.kill()
    wait_for("no leader to be known", lambda: (alone.info() or {"raft_leader_id": "?"})["raft_leader_id"] == "")
    return alone


def test_each_node_tells_who_leads_and_who_is_there(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        for node in cluster.nodes:
            info = ask(node, "RAFT.INFO")
            assert info[b"role"] == (b"leader" if node is leader else b"follower")
            assert info[b"leader_id"] == leader.id.encode()
            assert ask(node, "RAFT.LEADER") == [leader.host.encode(), leader.port]
            rows = ask(node, "RAFT.NODES")
            assert {row[b"id"].decode(): row[b"addr"].decode() for row in rows} == {
                other.id: f"{other.host}:{other.port}" for other in cluster.nodes
            }


def test_members_and_leadership_are_steered_from_any_node(tmp_path):
    """A member added, promoted, removed; leadership to whom it is given, and to whoever is next."""
    with LocalCluster(tmp_path, 3, spare=1) as cluster:
        cluster.start()
        (spare,) = cluster.spares
        home = {node.id for node in cluster.nodes}
        follower, other = cluster.followers()
        assert ask(follower, "RAFT.ADD", spare.id, f"{spare.host}:{spare.port}") == b"OK"
        wait_for("a place to be kept for it", lambda: (spare.id, "no") in members(other))
        assert (int(other.info()["raft_voters"]), int(other.info()["raft_learners"])) == (3, 1)
        spare.start()
        wait_settled(cluster, home | {spare.id})  # it has promoted itself
        assert ask(other, "RAFT.PROMOTE", spare.id) == b"OK"  # what is true already
        for words in (("RAFT.DEMOTE", spare.id), ("RAFT.ADD-LEARNER", "n9", "127.0.0.1:1")):
            with pytest.raises(redis.ResponseError, match="learners become voters by themselves"):
                ask(follower, *words)
        assert ask(spare, "RAFT.REMOVE", other.id) == b"OK"
        wait_settled(cluster, home - {other.id} | {spare.id})
        for words in (("RAFT.REMOVE", other.id), ("RAFT.PROMOTE", "nobody"), ("RAFT.TRANSFER", "nobody")):
            with pytest.raises(redis.ResponseError, match=r"is (not a member|no other voter)"):
                ask(follower, *words)
        assert ask(spare, "RAFT.TRANSFER", follower.id) == b"OK"
        wait_for("the named one to lead", lambda: follower.role() == "leader")
        assert ask(spare, "RAFT.TRANSFER") == b"OK"
        cluster.wait_leader(other_than=follower)


def test_a_barrier_and_a_snapshot_on_each_node(tmp_path):
    with LocalCluster(tmp_path, 3) as cluster:
        cluster.start()
        for number, node in enumerate(cluster.nodes):
            write(cluster.nodes[number - 1], "k", str(number))
            with one_connection(node) as client:
                client.execute_command("RAFT.CONSISTENCY", "stale")
                index = client.execute_command("RAFT.BARRIER")
                assert client.get("k") == str(number).encode()  # applied here, though another node wrote it
                assert index >= int(client.info("raft")["raft_applied_index"]) - 1
            name = ask(node, "RAFT.SNAPSHOT", "NOW")
            rows = ask(node, "RAFT.SNAPSHOT", "LIST")
            assert name in [row[b"name"] for row in rows]
            size, data = ask(node, "RAFT.SNAPSHOT", "READ", name, 0, 8)
            assert size == (node.directory / "snapshots" / name.decode()).stat().st_size
            assert data.startswith(b"RAFTDBS")


def test_read_modes_of_a_connection(tmp_path):
    """All four on each node; what is left of them on a node that has lost its majority."""
    with LocalCluster(tmp_path, 3, flags=BRIEFLY) as cluster:
        cluster.start()
        write(cluster.nodes[0], "k", "v")
        cluster.wait_equal()
        modes = ("linearizable",), ("lease",), ("bounded", 60_000), ("stale",)
        for node in cluster.nodes:
            with one_connection(node) as client:
                assert client.execute_command("RAFT.CONSISTENCY")[0] == b"linearizable"
                for mode in modes:
                    client.execute_command("RAFT.CONSISTENCY", *mode)
                    assert client.execute_command("RAFT.CONSISTENCY") == [mode[0].encode(), *mode[1:], 0][:2]
                    assert client.get("k") == b"v"
        alone = leave_alone(cluster)
        with one_connection(alone) as client:
            for mode, served in zip((*modes, ("bounded", 1)), (False, False, True, True, False), strict=True):
                client.execute_command("RAFT.CONSISTENCY", *mode)
                if served:
                    assert client.get("k") == b"v"
                else:
                    with pytest.raises(redis.exceptions.ClusterDownError):
                        client.get("k")
            client.execute_command("READONLY")
            assert client.get("k") == b"v"
            client.execute_command("READWRITE")
            with pytest.raises(redis.exceptions.ClusterDownError):
                client.get("k")


@pytest.mark.parametrize(("flags", "served"), [(("--reads", "stale"), True), (("--reads", "lease"), False)])
def test_read_modes_by_flag(tmp_path, flags, served):
    with LocalCluster(tmp_path, 3, flags=[*BRIEFLY, *flags]) as cluster:
        cluster.start()
        write(cluster.nodes[0], "k", "v")
        cluster.wait_equal()
        assert [read(node, "k") for node in cluster.nodes] == ["v"] * 3
        alone = leave_alone(cluster)
        if served:
            assert read(alone, "k") == "v"
        else:
            with pytest.raises(redis.exceptions.ClusterDownError):
                read(alone, "k")
