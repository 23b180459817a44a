"""How many entries are under way: one where the disk is what writes wait for, several where the network is."""

from __future__ import annotations

import threading

import pytest

from raftdb.node.peering import IN_FLIGHT_MAX, entries_in_flight
from raftdb.types import NodeRef
from tests.node.conftest import StartNode
from tests.node.test_cluster import client, eventually, form, leader_of

CLIENTS = 12
WRITES = 60


@pytest.mark.parametrize(
    ("round_trip_s", "flush_s", "expected"),
    [
        (0.0, 0.0, 1),  # alone, or nobody has answered a ping yet
        (0.0003, 0.001, 1),  # loopback
        (0.0015, 0.0005, 1),  # loopback, busy
        (0.010, 0.002, 3),
        (0.010, 0.010, 1),  # the disk is as slow as the network
        (0.040, 0.005, 5),
        (10.0, 0.0, IN_FLIGHT_MAX),
    ],
)
def test_the_number_follows_round_trip_and_flush(round_trip_s: float, flush_s: float, expected: int) -> None:
    assert entries_in_flight(round_trip_s, flush_s) == expected


def test_several_entries_under_way_lose_and_double_nothing(
    start_node: StartNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All lines are said to be long; writers of every node count, in pipelines, and each answer is in its order."""
    nodes = form(start_node)
    leader = leader_of(nodes)
    for node in nodes:
        monkeypatch.setattr(node.peering.net, "round_trip_s", lambda ref: 0.1)
    eventually(lambda: leader.driver.in_flight_max > 1, "told by the next look")
    most = [0]
    propose = leader.driver.propose

    def watching(*args: object) -> int:
        index = propose(*args)  # type: ignore[arg-type]
        most[0] = max(most[0], len(leader.driver.pending))
        return index

    monkeypatch.setattr(leader.driver, "propose", watching)
    wrong: list[object] = []

    def write(number: int) -> None:
        connection = client(nodes[number % 3])
        for round_number in range(WRITES):
            pipe = connection.pipeline(transaction=False)
            pipe.incr(f"own{number}")
            pipe.incr("shared")
            pipe.get(f"own{number}")
            own, _, read = pipe.execute()
            if (own, int(read)) != (round_number + 1, round_number + 1):
                wrong.append((number, round_number, own, read))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(CLIENTS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert wrong == []
    assert int(client(leader).get("shared")) == CLIENTS * WRITES
    assert most[0] > 1, "there was never more than one entry under way"


def test_the_nearest_majority_counts(start_node: StartNode, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = form(start_node)
    leader = leader_of(nodes)
    near, far = (node.core.me for node in nodes if node is not leader)
    times = {near: 0.001, far: 0.1}

    def told(ref: NodeRef) -> float | None:
        return times.get(ref)

    monkeypatch.setattr(leader.peering.net, "round_trip_s", told)
    eventually(lambda: leader.driver.in_flight_max == 1)
    assert leader.peering._quorum_round_trip_s(leader.core) == 0.001
    del times[near]
    assert leader.peering._quorum_round_trip_s(leader.core) == 0.1
    times.clear()
    assert leader.peering._quorum_round_trip_s(leader.core) == 0.0
