"""How long a leader takes for an acknowledgement: `python -m tests.consensus.bench`. Prints, judges nothing."""

from __future__ import annotations

import time

from raftdb.consensus.core import CoreConfig
from raftdb.consensus.messages import AppendReply, HeartbeatReply
from tests.consensus.cluster import Disk, Node, commands, membership_of, ref


def leader_of(size: int) -> Node:
    """A leader of `size` nodes whose followers have acknowledged its no-op."""
    ids = [f"n{i}" for i in range(1, size + 1)]
    node = Node("n1", Disk(membership_of(*ids)), CoreConfig())
    core = node.core
    assert core is not None
    from raftdb.consensus import candidate

    candidate.elect(core, transfer=False)
    node.turn()
    for other in ids[1:]:
        candidate.count(core, ref(other), True) if core.votes else None
    node.turn()
    for other in ids[1:]:
        core.step(ref(other), AppendReply(core.term, True, core.log.last, 0, 0))
    node.turn()
    return node


def measure(size: int, rounds: int = 20_000) -> dict[str, float]:
    """Microseconds per call, on the leader of `size` nodes: one entry per round, acknowledged by everybody."""
    node = leader_of(size)
    core = node.core
    assert core is not None
    clock = time.perf_counter
    followers = [ref(f"n{i}") for i in range(2, size + 1)]
    spent = {"propose": 0.0, "ready": 0.0, "persisted": 0.0, "step ack": 0.0, "ready+persisted after ack": 0.0}
    spent["idle ready"] = spent["step heartbeat reply"] = 0.0
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
        spent["propose"] += b - a
        spent["ready"] += c - b
        spent["persisted"] += e - d
        for follower in followers:
            a = clock()
            core.step(follower, ack)
            b = clock()
            ready = core.ready()
            if ready is not None:
                node.apply(core.persisted(ready))
            c = clock()
            spent["step ack"] += b - a
            spent["ready+persisted after ack"] += c - b
        a = clock()
        core.ready()
        spent["idle ready"] += clock() - a
        core.want_round = True
        ready = core.ready()
        assert ready is not None
        core.persisted(ready)
        for follower in followers:
            reply = HeartbeatReply(core.term, core.round, core.log.last, 0)
            a = clock()
            core.step(follower, reply)
            spent["step heartbeat reply"] += clock() - a
            ready = core.ready()
            if ready is not None:
                core.persisted(ready)
        if core.log.last % 1000 == 0:
            node.disk.trim(node.disk.last)
            node.applied.clear()
    per_follower = {"step ack", "ready+persisted after ack", "step heartbeat reply"}
    return {
        name: seconds * 1e6 / rounds / (len(followers) if name in per_follower else 1)
        for name, seconds in spent.items()
    }


def main() -> None:
    for size in (3, 5):
        print(f"{size} nodes, leader, microseconds per call:")
        for name, us in measure(size).items():
            print(f"  {name:28} {us:6.2f}")


if __name__ == "__main__":
    main()
