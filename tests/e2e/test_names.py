"""Names resolved late, partly, differently or wrongly: by the system's own resolver, from a real name server."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest

from tests.e2e.names import BROKEN, CUT, NAME, SILENCE, UNKNOWN, View, names_for
from tests.e2e.nemesis import wait_until_member
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.e2e.test_membership import cluster_ids, read, voters, waits, write

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LOOK_UPS = 3  # how many more look-ups a node must survive before it counts as one that waits


def by_name(cluster: LocalCluster, expect: int) -> None:
    """All under one name; `expect` 0 = they are not told how many."""
    share_secret(cluster)
    for node in cluster.nodes:
        node.ensemble = f"{NAME}:{node.port}"
        node.flags += ["--expect", str(expect)] if expect else []


def share_secret(cluster: LocalCluster) -> None:
    """A node makes one of its own only when it knows that all others are on this machine."""
    file = cluster.directory / "secret"
    file.write_text("s" * 32 + "\n")
    file.chmod(0o600)
    for node in cluster.nodes:
        node.flags += ["--cluster-secret-file", str(file)]


def hosts(nodes: Sequence[NodeProcess]) -> list[str]:
    return [node.host for node in nodes]


def wait_look_ups(views: dict[NodeProcess, View], nodes: Sequence[NodeProcess], name: str = NAME) -> None:
    before = {node: views[node].asked[name] for node in nodes}
    wait_for(
        "more look-ups by each node",
        lambda: all(views[node].asked[name] >= before[node] + LOOK_UPS for node in nodes),
        60,
    )


def wait_formed(cluster: LocalCluster, nodes: Sequence[NodeProcess]) -> None:
    """One cluster of exactly these."""
    wait_for("one cluster", lambda: [voters(node) for node in nodes] == [len(nodes)] * len(nodes), 60)
    assert len(cluster_ids(list(nodes))) == 1
    cluster.wait_leader()
    write(nodes[0], "k", "v")
    assert [read(node, "k") for node in nodes] == ["v"] * len(nodes)


def wait_waiting(nodes: Sequence[NodeProcess], text: str) -> None:
    for node in nodes:

        def says(node: NodeProcess = node) -> bool:
            assert node.alive, node.log
            return text in (waits(node) or "")

        wait_for(f"{node.id} to say {text!r}", says, 30)


def assert_nothing_formed(nodes: Sequence[NodeProcess]) -> None:
    assert not any(voters(node) for node in nodes)
    assert not any(node.directory.exists() for node in nodes)


def test_a_b_are_told_of_a_b_and_c_d_e_of_c_d_e(tmp_path):
    """The trace of the design: two halves that see only themselves form nothing, and later one cluster."""
    with LocalCluster(tmp_path, 5) as cluster, names_for(cluster) as views:
        by_name(cluster, 5)
        halves = cluster.nodes[:2], cluster.nodes[2:]
        for half in halves:
            for node in half:
                views[node].tell(hosts(half))
                node.start()
        for half in halves:
            wait_waiting(half, f"{len(half)} nodes have answered, 5 are expected")
        wait_look_ups(views, cluster.nodes)
        assert_nothing_formed(cluster.nodes)
        for node in cluster.nodes:
            views[node].tell(hosts(cluster.nodes))
        wait_formed(cluster, cluster.nodes)


def test_a_name_that_answers_with_the_asker_alone(tmp_path):
    """As a headless service does whose other pods are not ready: nobody founds a cluster of one."""
    with LocalCluster(tmp_path, 3) as cluster, names_for(cluster) as views:
        by_name(cluster, 3)
        for node in cluster.nodes:
            views[node].tell([node.host])
            node.start()
        wait_waiting(cluster.nodes, "1 nodes have answered, 3 are expected")
        wait_look_ups(views, cluster.nodes)
        assert_nothing_formed(cluster.nodes)
        for node in cluster.nodes:
            views[node].tell(hosts(cluster.nodes))
        wait_formed(cluster, cluster.nodes)


def test_without_expect_a_name_only_joins(tmp_path):
    """Three who see each other wait all the same; once one of them has a cluster the others join it."""
    with LocalCluster(tmp_path, 3) as cluster, names_for(cluster) as views:
        by_name(cluster, 0)
        first, *rest = cluster.nodes
        for node in rest:
            views[node].tell(hosts(rest))
            node.start()
        wait_waiting(rest, "a DNS name forms one only with --expect")
        wait_look_ups(views, rest)
        assert_nothing_formed(rest)
        first.ensemble = ""
        first.start().wait_serving()
        write(first, "k", "theirs")
        for node in rest:
            views[node].tell(hosts(cluster.nodes))
        for node in rest:
            wait_until_member(cluster, node)
        assert read(rest[0], "k") == "theirs"
        wait_formed(cluster, cluster.nodes)


@pytest.mark.parametrize(
    "before", [UNKNOWN, BROKEN, SILENCE, CUT, ()], ids=["unknown", "broken", "silent", "cut", "empty"]
)
def test_a_name_that_appears_late(tmp_path, before):
    with LocalCluster(tmp_path, 3) as cluster, names_for(cluster) as views:
        by_name(cluster, 3)
        for node in cluster.nodes:
            views[node].tell(before)
            node.start()
        wait_waiting(cluster.nodes, "name look-up failed")
        assert_nothing_formed(cluster.nodes)
        for node in cluster.nodes:
            views[node].tell(hosts(cluster.nodes))
        wait_formed(cluster, cluster.nodes)


def test_names_of_a_list_that_appear_late(tmp_path):
    """-e with a name per node: while one of them is unknown, or stands for two nodes, nothing is formed."""
    with LocalCluster(tmp_path, 3) as cluster, names_for(cluster) as views:
        share_secret(cluster)
        named = {node: f"{node.id}.example" for node in cluster.nodes}
        late = cluster.nodes[2]
        for node in cluster.nodes:
            node.ensemble = ",".join(f"{name}:{node.port}" for name in named.values())
            for other, name in named.items():
                views[node].tell(UNKNOWN if other is late else [other.host], name)
            node.start()
        rest = cluster.nodes[:2]
        wait_waiting(rest, f"waiting for {named[late]}:{late.port}")
        for node in rest:
            views[node].tell(hosts(cluster.nodes[1:]), named[late])
        wait_waiting(rest, "several nodes answer there")
        assert_nothing_formed(cluster.nodes)
        for node in cluster.nodes:
            views[node].tell([late.host], named[late])
        wait_formed(cluster, cluster.nodes)


@pytest.mark.parametrize("seed", [1, 2])
def test_answers_that_differ_each_time(tmp_path, seed):
    """Some of the addresses, none, or an error, by chance: whatever comes together is one cluster of all."""
    with LocalCluster(tmp_path, 4) as cluster, names_for(cluster) as views:
        by_name(cluster, 4)
        chance = random.Random(seed)

        def drawn(node: NodeProcess) -> Callable[[], Sequence[str] | str]:
            def answer() -> Sequence[str] | str:
                word = chance.choice([None, None, None, UNKNOWN, BROKEN, CUT, SILENCE])
                return word or chance.sample(hosts(cluster.nodes), chance.randint(0, 3))

            return answer

        for node in cluster.nodes:
            views[node].tell(drawn(node))
            node.start()
        wait_look_ups(views, cluster.nodes)
        assert len(cluster_ids(cluster.nodes) - {""}) <= 1
        for node in cluster.nodes:
            views[node].tell(hosts(cluster.nodes))
        wait_formed(cluster, cluster.nodes)


def test_all_members_have_moved_and_find_each_other_by_name(tmp_path):
    """Every address that the members know is out of date: the name helps, and the leader commits the new ones."""
    with LocalCluster(tmp_path, 3, spare=3) as cluster, names_for(cluster) as views:
        by_name(cluster, 3)
        for node in cluster.nodes:
            views[node].tell(hosts(cluster.nodes))
            node.start()
        wait_formed(cluster, cluster.nodes)
        before = cluster_ids(cluster.nodes)
        for node in cluster.nodes:
            node.stop()
        for node, place in zip(cluster.nodes, cluster.spares, strict=True):
            node.host, node.bind = place.host, place.bind
            views[node].tell(hosts(cluster.spares))
        for node in cluster.nodes:
            node.start()
        cluster.wait_leader(60)
        for node in cluster.nodes:
            wait_for(
                f"{node.id} to know the new addresses",
                lambda node=node: all(f"{other.host}:{other.port}" in str(node.info()) for other in cluster.nodes),
                60,
            )
        assert cluster_ids(cluster.nodes) == before
        assert read(cluster.nodes[0], "k") == "v"
