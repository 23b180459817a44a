"""Nodes with -e and without data, in one process: names that lie, lists that clash, places that were reserved."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import redis

from raftdb.config import peer_address, split_address
from raftdb.errors import UsageError
from raftdb.net import transport
from raftdb.net.transport import Answer, Endpoint
from raftdb.node.node import Node
from raftdb.types import Role
from tests.node.conftest import StartNode
from tests.node.test_cluster import client, eventually, grow, leader_of
from tests.ports import free_port

_networks = itertools.count(random.SystemRandom().randrange(1 << 14))


class Names:
    """A name server: each name stands for some of the hosts, as of now."""

    def __init__(self) -> None:
        self.hosts: dict[str, tuple[str, ...]] = {}

    def look_up(self, address: str) -> Answer:
        name, port = split_address(address)
        if name not in self.hosts:
            return Answer(address, (), "name look-up failed (no such name)")
        return Answer(address, tuple(Endpoint(host, port) for host in self.hosts[name]), "")


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    server = Names()
    monkeypatch.setattr(transport, "look_up", server.look_up)
    return server


def hosts(count: int) -> tuple[list[str], int]:
    """Loopback addresses with one port that is free on all of them."""
    number = next(_networks)
    found = [f"127.{190 + number % 60}.{number // 60 % 256}.{n}" for n in range(1, count + 1)]
    return found, free_port(found)


@pytest.fixture
def start_at(start_node: StartNode, tmp_path: Path) -> StartNode:
    """start_at(node_id, host, port, name, **settings): a node whose -e is a DNS name."""
    secret = tmp_path / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef\n")
    secret.chmod(0o600)

    def start(node_id: str, host: str, port: int, name: str, **settings: object) -> Node:
        return start_node(
            node_id,
            address=f"{host}:{port}",
            ensemble=f"{name}:{port}",
            cluster_secret_file=str(secret),
            ready=False,
            **settings,
        )

    return start


def serves(node: Node) -> bool:
    return node.driver is not None and node.driver.ready_to_serve


def text(node: Node) -> str:
    return str(node.dispatch.not_ready)


def test_partial_answers_of_a_name_never_form_a_cluster(names: Names, start_at: StartNode) -> None:
    """The trace: A and B resolve {A, B}, while C, D and E resolve {C, D, E}; five are expected."""
    at, port = hosts(5)
    names.hosts = {"ab.test": tuple(at[:2]), "cde.test": tuple(at[2:])}
    nodes = [
        start_at(f"n{number}", host, port, "ab.test" if number <= 2 else "cde.test", expect=5)
        for number, host in enumerate(at, 1)
    ]
    for node, met in zip(nodes, (2, 2, 3, 3, 3), strict=True):
        eventually(lambda node=node, met=met: f"{met} nodes have answered, 5 are expected" in text(node), text(node))
    assert all(node.data is None for node in nodes)
    names.hosts = dict.fromkeys(names.hosts, tuple(at))
    eventually(lambda: all(map(serves, nodes)), "formed")
    assert len({node.data.identity.cluster_id for node in nodes}) == 1
    assert len(nodes[0].core.membership.voters) == 5


def test_a_name_without_an_expected_number_only_joins(names: Names, start_at: StartNode) -> None:
    at, port = hosts(3)
    names.hosts = {"group.test": tuple(at)}
    two, three = (start_at(f"n{n}", at[n - 1], port, "group.test") for n in (2, 3))
    for node in (two, three):
        eventually(lambda node=node: "waiting for a cluster to join" in text(node), text(node))
    assert two.data is None
    assert three.data is None


def test_a_name_that_comes_late_is_looked_up_again_and_joined(
    names: Names, start_at: StartNode, start_node: StartNode, tmp_path: Path
) -> None:
    at, port = hosts(2)
    one = start_node("n1", address=f"{at[0]}:{port}", cluster_secret_file=str(tmp_path / "secret"))
    two = start_at("n2", at[1], port, "late.test")
    eventually(lambda: "no such name" in text(two), text(two))
    names.hosts = {"late.test": tuple(at)}
    eventually(lambda: serves(two) and len(one.core.membership.voters) == 2, "joined")
    assert two.data.identity.cluster_id == one.data.identity.cluster_id


def test_a_list_of_two_clusters_or_of_the_own_id_stops_with_a_line(start_node: StartNode) -> None:
    one, two = (start_node(f"n{n}", address=f"127.0.0.1:{free_port()}") for n in (1, 2))
    both = f"{one.config.address},{two.config.address}"
    third = start_node("n3", address=f"127.0.0.1:{free_port()}", ensemble=both, ready=False)
    assert third.join(20)
    assert isinstance(third.failure, UsageError)
    for node in (one, two):
        assert peer_address(node.config.address) in str(third.failure)
        assert node.data.identity.cluster_id in str(third.failure)
    assert third.data is None


def test_a_cluster_that_was_grown_takes_a_fourth_and_a_fifth(start_node: StartNode) -> None:
    """Their logs begin with entries of a time when the cluster had one member."""
    nodes = grow(start_node, 5)
    client(nodes[4]).set("k", "v")
    assert client(nodes[3]).get("k") == b"v"
    assert all(node.failure is None for node in nodes)


def test_a_place_is_reserved_seen_taken_back_and_taken(start_node: StartNode) -> None:
    nodes = grow(start_node, 2)
    follower = next(node for node in nodes if node.role is not Role.LEADER)
    address = f"127.0.0.1:{free_port()}"
    assert client(follower).execute_command("ADD_NODE", "n3", "127.0.0.1:1")
    assert client(follower).execute_command("ADD_NODE", "n3", address)  # not there yet: it may be moved
    leader = leader_of(nodes)
    row = next(row for row in leader.member_rows() if row["id"] == "n3")
    assert (row["addr"], row["state"], row["voter"]) == (address, "invited", "no")
    assert client(follower).execute_command("DEL_NODE", "n3")
    assert leader.core.membership.get("n3") is None
    with pytest.raises(redis.ResponseError, match="not a member"):
        client(follower).execute_command("DEL_NODE", "n3")
    assert client(follower).execute_command("ADD_NODE", "n3", address)
    third = start_node("n3", address=address, ensemble=nodes[0].config.address, ready=False)
    eventually(lambda: serves(third) and len(leader.core.membership.voters) == 3, "it votes")
    assert client(third).execute_command("ADD_NODE", "n3", address)  # true already


def test_every_node_carries_every_verb_to_the_leader(start_node: StartNode) -> None:
    nodes = grow(start_node)
    leader = leader_of(nodes)
    follower, other = (node for node in nodes if node is not leader)
    assert client(follower).execute_command("RAFT.TRANSFER", other.config.own_id)
    eventually(lambda: other.role is Role.LEADER, "the other leads")
    assert client(follower).execute_command("RAFT.PROMOTE", leader.config.own_id)  # is one
    with pytest.raises(redis.ResponseError, match="not a member"):
        client(follower).execute_command("RAFT.PROMOTE", "n9")
    with pytest.raises(redis.ResponseError, match="no other voter"):
        client(follower).execute_command("RAFT.TRANSFER", "n9")
    for words in (("RAFT.DEMOTE", "n1"), ("RAFT.ADD-LEARNER", "n9", "127.0.0.1:1")):
        with pytest.raises(redis.ResponseError, match="cannot stay a learner"):
            client(follower).execute_command(*words)
    eventually(lambda: leader.leader == other.core.me, "it follows")
    assert client(leader).execute_command("RAFT.REMOVE", other.config.own_id)  # the leader, by a follower
    new = leader_of([leader, follower])
    eventually(lambda: len(new.core.membership.members) == 2)
    assert client(new).execute_command("DEL_NODE", new.config.own_id)  # the leader itself
    last = follower if new is leader else leader
    assert leader_of([last]) is last
    with pytest.raises(redis.ResponseError, match="last voter"):
        client(last).execute_command("DEL_NODE", last.config.own_id)
    assert client(last).set("k", "v")
    eventually(lambda: "removed" in text(new) and "removed" in text(other), "they say so")
    with pytest.raises(redis.RedisError, match="removed from the cluster"):
        client(new).set("k", "w")
