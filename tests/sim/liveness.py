"""The second half of a run: the faults stop on a random majority, the rest stays broken, and the cluster has to heal.

Which majority: one of the committed members and of every set of members that a log still carries uncommitted, since
any of them may be the one that counts. Its nodes have whole disks, are up, and hear each other. All others are down,
or cut off, or cut off in one direction only. Then, within `LIMIT` of simulated time: a leader, a write of ours
committed, and everybody of the majority who is a member has applied it (I22).
"""

from __future__ import annotations

from raftdb.types import Membership, NodeRef, Role
from tests.sim.judge import Violation
from tests.sim.settings import MS, NEVER, TICK
from tests.sim.world import FATES, World

LIMIT = 60_000 * MS
STEP = 100 * MS
CUT_BOTH_WAYS = 2
AGAIN = 5_000 * MS  # an answer that has not come by then does not come


def settle(world: World) -> bool:
    """Calm down and converge. False: no majority of whole disks is left, so nothing can be asked."""
    if world.rng.random() < 0.2:
        botch(world)
    chosen = choose(world)
    if not chosen:
        return False
    style = calm(world, chosen)
    deadline = world.now + LIMIT
    op, asked = 0, 0
    while world.now < deadline:
        pass_time(world, STEP)
        if op and world.ops[op].index and caught_up(world, chosen, world.ops[op].index):
            if style == CUT_BOTH_WAYS:
                come_back(world, chosen)
            return True
        if not op or (not world.ops[op].index and world.now > asked + AGAIN):
            op, asked = probe(world, chosen), world.now
    raise Violation("I22", f"{LIMIT // MS // 1000} s after the faults stopped on {chosen}: {state(world)}")


def pass_time(world: World, span: int) -> None:
    horizon = world.now + span
    while world.heap and world.heap[0][0] <= horizon:
        world.run(1)
    world.now = horizon


def botch(world: World) -> None:
    """The last trouble: a leadership is handed over to somebody who then cannot be heard."""
    leader = world.leader()
    if leader is not None:
        target = world.rng.choice(world.ids)
        world.act(world.do_transfer, leader.id, target)
        world.faults.mute(target)
        pass_time(world, 3 * STEP)


def come_back(world: World, chosen: list[str]) -> None:
    """Who was cut off, and comes back, does not depose the leader: he has not even moved on to another term."""
    if world.settings.jump_every < NEVER:
        return  # a leader whose clock is off hands over by itself
    patience = 3 * world.config.election_ticks_max * TICK + 100 * (world.settings.delay + world.settings.sync)
    # (late messages are in by then, and slow flushes over)
    pass_time(world, patience)
    outside = [
        n for i in world.ids if i not in chosen and (n := world.nodes[i]) is not None and not n.core.is_sole_voter()
    ]
    before = [node.core.term for node in outside]
    pass_time(world, patience)
    if [node.core.term for node in outside] != before:
        raise Violation("I22", f"cut off, {[node.id for node in outside]} went on to new terms: {state(world)}")
    leader = world.leader()
    if leader is None or leader.id not in chosen or any(term > leader.core.term for term in before):
        return
    term = leader.core.term
    world.cuts.clear()
    pass_time(world, patience)
    if leader.core.term != term or leader.core.role is not Role.LEADER:
        raise Violation("I22", f"{leader.id} led term {term} until the others came back: {state(world)}")


def choose(world: World) -> list[str]:
    """The smallest prefix of a random order of the nodes that is a majority of whole disks wherever one may be
    needed."""
    needed = relevant(world)
    order = list(world.ids)
    world.rng.shuffle(order)
    chosen: list[str] = []
    for node_id in order:
        chosen.append(node_id)
        if all(enough(world, members, chosen) for members in needed):
            return sorted(chosen)
    return []


def relevant(world: World) -> list[Membership]:
    """The committed members, and whatever newer ones a disk or a node still holds."""
    judge = world.judge
    found: list[Membership] = []
    last = max(key >> 64 for key in judge.memberships if is_committed(world, key))
    found.append(judge.memberships[last << 64 | judge.terms[last]])
    held = [disk.log.membership for disk in world.disks.values()]
    held += [node.core.membership for node in world.nodes.values() if node is not None]
    for membership in held:
        if membership.index > last and membership not in found:
            found.append(membership)
    return found


def is_committed(world: World, key: int) -> bool:
    index, term = key >> 64, key & (1 << 64) - 1
    return index <= world.judge.committed and world.judge.terms[index] == term


def enough(world: World, members: Membership, chosen: list[str]) -> bool:
    """Are the chosen a majority of these members?"""
    voters = [m.ref for m in members.voters]
    able = [r for r in voters if r.id in chosen and whole(world, r)]
    return 2 * len(able) > len(voters)


def whole(world: World, ref: NodeRef) -> bool:
    disk = world.disks.get(ref)
    return (
        disk is not None
        and world.refs[ref.id] == ref
        and ref.id not in world.halted
        and ref not in world.restored
        and not disk.log.damaged
        and not disk.starved()
    )


def calm(world: World, chosen: list[str]) -> int:
    world.act(world.do_quiet)
    world.cuts.clear()
    outside = [i for i in world.ids if i not in chosen]
    style = world.rng.randrange(5)
    for node_id in outside:
        if style == 0:
            world.act(world.do_crash, node_id, 0, False)
            world.held.add(node_id)
        elif style == 1:
            world.act(world.do_pause, node_id)
            world.held.add(node_id)
        else:
            node = world.nodes[node_id]
            if node is not None:
                world.act(world.do_resume, node_id, node.life)
            for other in world.ids:
                if style != 3:  # it cannot be heard
                    world.cuts[node_id, other] = 1 << 30
                if style != 4:  # it cannot hear
                    world.cuts[other, node_id] = 1 << 30
    world.fates = [(world.settings.delay,)] * FATES
    for node_id in chosen:
        node = world.nodes[node_id]
        if node is None:
            world.act(world.do_start, node_id)
        else:
            world.act(world.do_resume, node_id, node.life)
    return style if outside else 0


def probe(world: World, chosen: list[str]) -> int:
    """A write of our own, given to the leader among the chosen."""
    leaders = [n for i in chosen if (n := world.nodes[i]) is not None and n.core.role.name == "LEADER"]
    if not leaders:
        return 0
    leader = max(leaders, key=lambda n: n.core.term)
    world.next_op += 1
    op = world.next_op
    world.act(world.do_op, op, len(world.clients), 0, False, False)
    world.act(world.do_request, op, leader.id)
    return op


def caught_up(world: World, chosen: list[str], index: int) -> bool:
    (members, *_) = relevant(world)
    present = {m.ref for m in members.members}
    nodes = [world.nodes[i] for i in chosen]
    return all(n.ref not in present or n.applied >= index for n in nodes if n is not None)


def state(world: World) -> str:
    """One phrase per node, for the report."""
    parts = []
    for node_id in world.ids:
        node = world.nodes[node_id]
        if node is None:
            parts.append(f"{node_id} down")
        else:
            core, log = node.core, node.disk.log
            parts.append(
                f"{node_id} {core.role.value} term {core.term} log {log.first}..{log.last} applied {node.applied}"
                f"{' damaged' if log.damaged else ''}{' paused' if node.paused else ''}"
            )
    return "; ".join(parts)
