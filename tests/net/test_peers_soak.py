"""Five nodes and every fault of the proxy at random: whatever happened, afterwards everybody is connected, once.

Invariants, on every message: what arrives was sent by that peer to this one, never twice, and in order within its lane.
"""

from __future__ import annotations

import random

import pytest

from raftdb.consensus.messages import Append, Heartbeat
from raftdb.net.link import Stage
from raftdb.net.wire import Forward, ForwardReply
from raftdb.types import Entry, NodeRef
from tests.net.peerkit import QUICK, Cluster, Node, all_connected
from tests.net.test_peers_proxy import by_way_of, wire_up
from tests.proxy import Proxy

NODES = 5
ROUNDS = 40
CONFIG = QUICK._replace(
    silence_timeout_s=0.6, handshake_timeout_s=0.6, connect_timeout_s=0.6, outbox_bytes_max=2 << 20, backoff_max_s=0.2
)


class Traffic:
    """Numbers everything that one node sends to another, and looks at what arrives."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = {node.ref: node for node in nodes}
        self.sent = 0
        self.seen: dict[tuple[NodeRef, NodeRef, type], int] = {}

    def send(self, chance: random.Random) -> None:
        a, b = chance.sample(list(self.nodes.values()), 2)
        self.sent += 1
        size = chance.choice([0, 10, 1_000, 100_000]) if chance.random() < 0.98 else 1_500_000
        message = chance.choice(
            [
                Heartbeat(1, self.sent, 0, 0, None),
                Append(1, self.sent, 0, 0, 0, (Entry(self.sent + 1, 1, 1, 0, 0, bytes(size), 0),)),
                Forward(self.sent, 1, b"", bytes(size)),
                ForwardReply(self.sent, True, 1, bytes(size)),
            ]
        )
        a.net.send(b.ref, message)

    def look(self) -> int:
        arrived = 0
        for node in self.nodes.values():
            for source, message in node.fake.messages + node.fake.frames:
                arrived += 1
                number = message[1] if type(message) in (Heartbeat, Append) else message[0]
                key = (source, node.ref, type(message))
                assert source in self.nodes
                assert number > self.seen.get(key, 0), f"{key}: {number} after {self.seen[key]}"
                assert number <= self.sent
                self.seen[key] = number
            node.fake.messages.clear()
            node.fake.frames.clear()
        return arrived


def trouble(proxy: Proxy, chance: random.Random) -> None:
    names = [f"n{i}" for i in range(NODES)]
    a, b = chance.sample(names, 2)
    link = proxy.link(a, b)
    match chance.randrange(10):
        case 0:
            link.hold()
        case 1:
            link.cut()
        case 2:
            link.close_after(chance.randrange(1, 200_000))
        case 3:
            link.flip_next(chance.randrange(1_000))
        case 4:
            link.drop_next(chance.randrange(1, 100))
        case 5:
            link.delay(chance.uniform(0, 0.05), 0.05)
        case 6:
            link.split(chance.choice([100, 1_000, 10_000]))
        case 7:
            link.throttle(1_000_000)
        case 8:
            proxy.isolate(a, names, cut=chance.random() < 0.5)
        case _:
            proxy.reset_connections(a if chance.random() < 0.5 else None)
    if chance.random() < 0.3:
        proxy.heal()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_faults_at_random(seed):
    chance = random.Random(seed)
    cluster = Cluster()
    with Proxy(seed) as proxy:
        nodes = [cluster.add(f"n{i}", config=CONFIG) for i in range(NODES)]
        wire_up(proxy, *nodes)
        for node in nodes:  # as after a start: seeds and members are the same nodes
            others = [other for other in nodes if other is not node]
            node.net.set_seeds([by_way_of(proxy, node, other) for other in chance.sample(others, 2)])
        cluster.until(lambda: all_connected(nodes))
        traffic = Traffic(nodes)
        arrived = 0
        for _ in range(ROUNDS):
            trouble(proxy, chance)
            for _ in range(chance.randrange(40)):
                for _ in range(chance.randrange(20)):
                    traffic.send(chance)
                cluster.turn()
                arrived += traffic.look()
        proxy.heal()
        cluster.until(lambda: all_connected(nodes), patience_s=30)
        cluster.turns(100)
        arrived += traffic.look()
        assert all_connected(nodes)
        for node in nodes:
            up = [link for link in node.net._links if link.stage is Stage.UP]
            assert len(up) == NODES - 1
            assert len(node.net._links) == NODES - 1, [link.stage for link in node.net._links]
            assert set(node.net._dialled) <= set(node.net._links)
            assert len(node.fake.connects) == len(node.fake.losses) + NODES - 1
        assert sum(len(node.fake.losses) for node in nodes) > 20
        assert arrived > traffic.sent / 10
        cluster.close()
