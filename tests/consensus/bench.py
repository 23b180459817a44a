"""How long a leader takes for an acknowledgement: `python -m tests.consensus.bench`. Prints, judges nothing."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

from raftdb.consensus import candidate
from raftdb.consensus.core import CoreConfig
from raftdb.consensus.messages import AppendReply, HeartbeatReply
from tests.consensus.cluster import Disk, Node, commands, membership_of, ref


def leader_of(size: int) -> Node:
    """A leader of `size` nodes whose followers have acknowledged its no-op."""
    ids = [f"n{i}" for i in range(1, size + 1)]
    node = Node("n1", Disk(membership_of(*ids)), CoreConfig())
    core = node.core
    assert core is not None
    candidate.elect(core, transfer=False)
    node.turn()
    for other in ids[1:]:
        if core.votes:
            candidate.count(core, ref(other), True)
    node.turn()
    for other in ids[1:]:
        core.step(ref(other), AppendReply(core.term, True, core.log.last, 0, 0))
    node.turn()
    return node


def measure(size: int, rounds: int = 20_000) -> dict[str, float]:
    """Microseconds per call (median), on the leader of `size` nodes: one entry per round, acknowledged by everybody."""
    node = leader_of(size)
    core = node.core
    assert core is not None
    clock = time.perf_counter
    followers = [ref(f"n{i}") for i in range(2, size + 1)]
    spent: dict[str, list[float]] = defaultdict(list)
    payload = commands("x" * 100)
    for _ in range(rounds):
        a = clock()
        core.propose(payload)
        b = clock()
        ready = core.ready()
        c = clock()
        assert ready is not None
        assert ready.persist is not None
        node.disk.commit(ready.persist)
        d = clock()
        released = core.persisted(ready)
        e = clock()
        node.apply(released)
        ack = AppendReply(core.term, True, core.log.last, 0, 0)
        spent["propose"].append(b - a)
        spent["ready"].append(c - b)
        spent["persisted"].append(e - d)
        for follower in followers:
            a = clock()
            core.step(follower, ack)
            b = clock()
            ready = core.ready()
            if ready is not None:
                node.apply(core.persisted(ready))
            c = clock()
            spent["step ack"].append(b - a)
            spent["ready+persisted after ack"].append(c - b)
        a = clock()
        core.ready()
        spent["idle ready"].append(clock() - a)
        core.want_round = True
        ready = core.ready()
        assert ready is not None
        core.persisted(ready)
        for follower in followers:
            reply = HeartbeatReply(core.term, core.round, core.log.last, 0)
            a = clock()
            core.step(follower, reply)
            spent["step heartbeat reply"].append(clock() - a)
            ready = core.ready()
            if ready is not None:
                core.persisted(ready)
        if core.log.last % 1000 == 0:
            node.disk.trim(node.disk.last)
            node.applied.clear()
    return {name: statistics.median(seconds) * 1e6 for name, seconds in spent.items()}


def main() -> None:
    for size in (3, 5):
        print(f"{size} nodes, leader, microseconds per call (median):")
        for name, us in measure(size).items():
            print(f"  {name:28} {us:6.2f}")


if __name__ == "__main__":
    main()
