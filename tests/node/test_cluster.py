"""Three nodes in one process: forming, joining, forwarding, membership, snapshots over the network."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from raftdb.node.node import Node
from raftdb.types import Role
from tests.node.conftest import StartNode
from tests.ports import free_port

WAIT_S = 30.0


def eventually(condition: Callable[[], Any], what: str = "", wait_s: float = WAIT_S) -> Any:
    """Look again and again until it is true; what it gave."""
    end_s = time.monotonic() + wait_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end_s, f"not within {wait_s} s: {what or condition}"
        threading.Event().wait(0.02)


def client(node: Node, **options: Any) -> redis.Redis:
    return redis.Redis(port=node.config.port, socket_timeout=15, **options)


def leader_of(nodes: list[Node]) -> Node:
    return eventually(
        lambda: next((n for n in nodes if n.role is Role.LEADER and n.is_ready), None),
        "leader",
    )


def form(start_node: StartNode, count: int = 3, **settings: Any) -> list[Node]:
    """A new cluster of nodes that list each other."""
    ports = [free_port() for _ in range(count)]
    nodes = []
    for number, port in enumerate(ports, 1):
        others = ",".join(f"127.0.0.1:{other}" for other in ports if other != port)
        nodes.append(start_node(f"n{number}", address=f"127.0.0.1:{port}", ensemble=others, ready=False, **settings))
    eventually(lambda: all(node.is_ready for node in nodes), "formed")
    return nodes


def test_three_nodes_that_list_each_other_form_one_cluster_and_any_of_them_serves(start_node: StartNode) -> None:
    nodes = form(start_node)
    assert len({node.data.identity.cluster_id for node in nodes}) == 1
    for node in nodes:
        assert client(node).set(f"by-{node.config.own_id}", "x")
    for node in nodes:
        assert client(node).mget("by-n1", "by-n2", "by-n3") == [b"x", b"x", b"x"]
        assert client(node).incr("counter")
    assert client(nodes[0]).get("counter") == b"3"


def test_nodes_of_which_one_is_missing_form_nothing_and_say_for_whom_they_wait(start_node: StartNode) -> None:
    ports = [free_port() for _ in range(3)]
    nodes = []
    for number in (1, 2):
        others = ",".join(f"127.0.0.1:{port}" for at, port in enumerate(ports, 1) if at != number)
        nodes.append(start_node(f"n{number}", address=f"127.0.0.1:{ports[number - 1]}", ensemble=others, ready=False))
    missing = f"127.0.0.1:{ports[2]}"
    eventually(lambda: missing in str(nodes[0].dispatch.not_ready) and missing in str(nodes[1].dispatch.not_ready))
    with pytest.raises(redis.RedisError, match=missing):
        client(nodes[0]).set("a", 1)
    assert client(nodes[0]).ping()
    assert all(node.data is None for node in nodes)
    others = ",".join(f"127.0.0.1:{port}" for port in ports[:2])
    nodes.append(start_node("n3", address=f"127.0.0.1:{ports[2]}", ensemble=others, ready=False))
    eventually(lambda: all(node.is_ready for node in nodes), "formed")
    assert client(nodes[2]).set("a", 1)


def grow(start_node: StartNode, count: int = 3, **settings: Any) -> list[Node]:
    """A node alone, a second that knows the first, a third that knows the second: as pyraft's README does it."""
    nodes = [start_node("n1", address=f"127.0.0.1:{free_port()}", **settings)]
    for number in range(2, count + 1):
        ensemble = nodes[-1].config.address
        node = start_node(f"n{number}", address=f"127.0.0.1:{free_port()}", ensemble=ensemble, ready=False, **settings)
        nodes.append(node)
        eventually(lambda: len(nodes[0].core.membership.voters) == len(nodes), f"n{number} votes")
    eventually(lambda: all(node.is_ready for node in nodes))
    return nodes


def test_a_cluster_grows_node_by_node(start_node: StartNode) -> None:
    nodes = grow(start_node)
    client(nodes[2]).set("k", "v")
    assert client(nodes[1]).get("k") == b"v"
    assert [row["voter"] for row in nodes[0].member_rows()] == ["yes"] * 3


def test_leadership_moves_by_command_and_nothing_is_lost_meanwhile(start_node: StartNode) -> None:
    nodes = form(start_node)
    leader = leader_of(nodes)
    stop, counts, errors = threading.Event(), [0] * 3, []

    def write(at: int) -> None:
        connection = client(nodes[at], retry=None)
        while not stop.is_set():
            try:
                connection.incr(f"c{at}")
                counts[at] += 1
            except redis.RedisError as error:
                errors.append(str(error))

    writers = [threading.Thread(target=write, args=(at,)) for at in range(3)]
    for writer in writers:
        writer.start()
    eventually(lambda: min(counts) > 5)
    other = next(node for node in nodes if node is not leader)
    client(leader).execute_command("RAFT.TRANSFER", other.config.own_id)
    assert leader_of(nodes) is not leader
    seen = list(counts)
    eventually(lambda: all(now > then + 5 for now, then in zip(counts, seen, strict=True)))
    stop.set()
    for writer in writers:
        writer.join()
    assert errors == []
    assert [int(client(nodes[0]).get(f"c{at}") or 0) for at in range(3)] == counts


def test_a_follower_that_lost_too_much_log_gets_a_snapshot(start_node: StartNode) -> None:
    settings = {"snapshot_log_bytes": 64 * 1024, "snapshot_entries": 50, "keep_entries": 5, "keep_bytes": 1024}
    nodes = form(start_node, **settings)
    leader = leader_of(nodes)
    gone = next(node for node in nodes if node is not leader)
    config = gone.config
    gone.stop()
    connection = client(leader)
    for batch in range(6):
        for number in range(200):
            connection.set(f"k{number}", f"{batch}-" + "x" * 500)
        connection.save()
    eventually(lambda: leader.data.log.first > gone.driver.applied + 1, "log trimmed")
    again = start_node(
        gone.config.own_id,
        address=config.address,
        ensemble=config.ensemble,
        data_dir=config.data_dir,
        ready=False,
        **settings,
    )
    nodes[nodes.index(gone)] = again
    eventually(lambda: again.driver is not None and again.driver.applied >= leader.driver.applied, "caught up")
    again_client = client(again)
    again_client.execute_command("RAFT.CONSISTENCY", "stale")
    assert again_client.get("k7") == b"5-" + b"x" * 500
    assert again_client.dbsize() == 200
    assert again.data.kv.digest == leader.data.kv.digest
    connection.set("after", "1")
    assert client(again).get("after") == b"1"


def test_a_member_is_removed_and_stays_outside(start_node: StartNode) -> None:
    nodes = grow(start_node)
    leader = leader_of(nodes)
    client(leader).execute_command("DEL_NODE", "n3")
    assert leader.core.membership.get("n3") is None
    config = nodes[2].config
    nodes[2].stop()
    outside = start_node("n3", address=config.address, ensemble=config.ensemble, data_dir=config.data_dir, ready=False)
    client(leader).set("k", "v")
    assert outside.role is not Role.LEADER
    assert leader.core.membership.get("n3") is None
    assert client(leader).get("k") == b"v"


def test_the_leader_removes_itself_and_another_leads(start_node: StartNode) -> None:
    nodes = grow(start_node)
    leader = leader_of(nodes)
    with contextlib.suppress(
        redis.RedisError
    ):  # it may learn that it leads no longer before it can say that it is done
        client(leader).execute_command("RAFT.REMOVE", leader.config.own_id)
    rest = [node for node in nodes if node is not leader]
    new = leader_of(rest)
    eventually(lambda: new.core.membership.get(leader.config.own_id) is None)
    assert client(new).set("k", "v")


def test_a_member_without_its_data_is_refused_until_it_is_told_to_replace_itself(
    start_node: StartNode, tmp_path: Path
) -> None:
    nodes = form(start_node)
    lost = nodes[2]
    config = lost.config
    client(nodes[0]).set("k", "v")
    lost.stop()
    lost.data.path.rename(tmp_path / "lost")
    blank = start_node("n3", address=config.address, ensemble=config.ensemble, data_dir=config.data_dir, ready=False)
    assert blank.join(WAIT_S)
    assert "use -o" in str(blank.failure)
    blank.stop()
    leader_of(nodes[:2])
    again = start_node(
        "n3", address=config.address, ensemble=config.ensemble, data_dir=config.data_dir, overwrite=True, ready=False
    )
    eventually(lambda: again.driver is not None and again.driver.applied > 0, "it is taken in")
    leader = leader_of(nodes[:2])
    eventually(lambda: len(leader.core.membership.voters) == 3, "it votes again")
    eventually(lambda: again.is_ready, "it knows that it is let in")
    assert client(again).get("k") == b"v"


def test_a_member_that_comes_back_at_another_address_is_moved(start_node: StartNode) -> None:
    nodes = form(start_node)
    moved = nodes[2]
    config = moved.config
    moved.stop()
    address = f"127.0.0.1:{free_port()}"
    again = start_node("n3", address=address, ensemble=config.ensemble, data_dir=config.data_dir, ready=False)
    leader = leader_of(nodes[:2])
    eventually(lambda: getattr(leader.core.membership.get("n3"), "client_addr", "") == address, "moved")
    eventually(lambda: again.is_ready)
    assert client(again).set("k", "v")


@pytest.mark.parametrize("mode", ["linearizable", "lease", "bounded", "stale"])
def test_every_mode_of_reading_sees_the_own_writes(start_node: StartNode, mode: str) -> None:
    nodes = form(start_node, reads=mode)
    for node in nodes:
        connection = client(node)
        for number in range(30):
            connection.set("k", number)
            assert connection.get("k") == str(number).encode(), (mode, node.role)


def test_a_transaction_through_a_follower_keeps_local_commands_in_their_places(start_node: StartNode) -> None:
    nodes = form(start_node)
    follower = next(node for node in nodes if node.role is not Role.LEADER)
    pipeline = client(follower).pipeline()
    pipeline.set("a", 1).ping().rpush("l", "x", "y").lrange("l", 0, -1).get("a")
    assert pipeline.execute() == [True, True, 2, [b"x", b"y"], b"1"]
    assert follower.execute("GET", "a") == b"1"
