"""The second half of a run: the faults stop on a random majority, the rest stays broken, and the cluster has to heal.

Which majority: one of the committed members and of every set of members that a log still carries uncommitted, since
any of them may be the one that counts. Its nodes have whole disks, are up, and hear each other. All others are down,
or cut off, or cut off in one direction only; in some runs there are no others. Then, within `LIMIT` of simulated time:
a leader, a write of ours committed, and everybody of the majority who is a member has applied it (I22).

In some runs somebody reads at one node or at all nodes in every tick meanwhile: whatever is done "every so often" must
not be put off by traffic. (A core that began to count anew with each heartbeat round did nothing but reads, and this
simulator of low loads did not see it.)

A cluster that has healed is then asked for one thing more (`EXTRAS`): to make a voter of a new node, to replace a
leader whose clock is wrong, to refill a damaged entry, to read everywhere over a slow line, to keep a leader whom only
one node cannot hear; or, where the others were cut off, not to be disturbed when they come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from raftdb.consensus.core import Change, ChangeKind
from raftdb.types import Membership, NodeRef, Role
from tests.sim.faults import member
from tests.sim.judge import Violation
from tests.sim.node import SimNode
from tests.sim.settings import MS, NEVER, TICK
from tests.sim.world import FATES, World

LIMIT = 60_000 * MS
EXTRA_LIMIT = 30_000 * MS
STEP = 100 * MS
CUT_BOTH_WAYS = 2
AGAIN = 5_000 * MS  # an answer that has not come by then does not come
HOUR_MS = 3_600_000
FLOODED: Final = 0.3  # share of the runs in which somebody reads in every tick
READS_PER_TICK = 0.9


class Calm:
    """A world whose faults have stopped: who is chosen, what becomes of the others, who reads all the time."""

    def __init__(self, world: World, chosen: list[str]) -> None:
        self.world = world
        self.chosen = chosen
        self.style = 0
        self.readers: list[str] = []  # nodes at which somebody reads in every tick; "": wherever the leader is

    # --- time -------------------------------------------------------------------------------------------------------

    def pass_time(self, span: int) -> None:
        """Let things happen, and read where it is wanted."""
        if not self.readers:
            pass_time(self.world, span)
            return
        end = self.world.now + span
        while self.world.now < end:
            pass_time(self.world, min(TICK, end - self.world.now))
            for node_id in self.readers:
                if self.world.rng.random() < READS_PER_TICK:
                    self.read(node_id)

    def until(self, done: Callable[[], bool], what: str, limit: int = EXTRA_LIMIT) -> None:
        """It must come true."""
        deadline = self.world.now + limit
        while not done():
            if self.world.now >= deadline:
                readers = f", read at {self.readers}" if self.readers else ""
                raise Violation("I22", f"{limit // MS // 1000} s {what} {self.chosen}{readers}: {state(self.world)}")
            self.pass_time(STEP)

    def election(self) -> int:
        """The longest election timeout, and what messages and flushes that are under way may take."""
        world = self.world
        return world.config.election_ticks_max * TICK + 100 * (world.settings.delay + world.settings.sync)

    def catching_up(self) -> int:
        """How long a whole log may take to somebody who has nothing, and is sent one entry at a time."""
        nodes = [node for node in self.world.nodes.values() if node is not None]
        return max((len(node.disk.log.items) for node in nodes), default=0) * self.world.entry_span()

    # --- clients ----------------------------------------------------------------------------------------------------

    def leader(self) -> SimNode | None:
        """The leader among the chosen."""
        nodes = [self.world.nodes[i] for i in self.chosen]
        leaders = [node for node in nodes if node is not None and node.core.role is Role.LEADER]
        return max(leaders, key=lambda node: node.core.term, default=None)

    def write(self) -> int:
        """A write of our own, given to the leader; 0: there is none."""
        leader = self.leader()
        if leader is None:
            return 0
        op = self.ask(False)
        self.world.act(self.world.do_request, op, leader.id)
        return op

    def read(self, node_id: str) -> int:
        """A read at this node ("": at the leader); 0: there is none."""
        leader = self.leader()
        if not node_id and leader is None:
            return 0
        op = self.ask(True)
        self.world.act(self.world.do_request, op, node_id or (leader.id if leader is not None else ""))
        return op

    def ask(self, read: bool) -> int:
        world = self.world
        op = world.next_op = world.next_op + 1
        world.act(world.do_op, op, len(world.clients), 0, read, False)
        return op

    # --- what is wanted ---------------------------------------------------------------------------------------------

    def converge(self, limit: int, what: str) -> None:
        """A write gets through, and every member among the chosen applies it."""
        op, asked = 0, 0

        def done() -> bool:
            nonlocal op, asked
            index = self.world.ops[op].index if op else 0
            if index:
                return caught_up(self.world, self.chosen, index)
            if not op or self.world.now > asked + AGAIN:
                op, asked = self.write(), self.world.now
            return False

        self.until(done, what, limit + self.catching_up())

    def members(self) -> list[SimNode]:
        """The chosen who are members and up."""
        (now, *_) = relevant(self.world)
        present = {row.ref for row in now.members}
        nodes = [self.world.nodes[i] for i in self.chosen]
        return [node for node in nodes if node is not None and node.ref in present]

    def spares_one(self, node_id: str) -> bool:
        """Would the chosen be a majority of whole disks without this one too?"""
        rest = [i for i in self.chosen if i != node_id]
        return all(enough(self.world, members, rest) for members in relevant(self.world))


def settle(world: World) -> bool:
    """Calm down and converge. False: no majority of whole disks is left, so nothing can be asked."""
    if world.rng.random() < 0.2:
        botch(world)
    chosen = choose(world)
    if not chosen:
        return False
    calm = Calm(world, sorted(world.ids) if world.rng.random() < 0.3 else chosen)
    calm_down(calm)
    if world.rng.random() < FLOODED:
        calm.readers = [""] if world.rng.random() < 0.5 else calm.chosen
        world.judge.counts["flooded"] += 1
    calm.converge(LIMIT, "after the faults stopped on")
    if calm.style == CUT_BOTH_WAYS:
        calm.readers = []
        come_back(calm)
    else:
        world.rng.choice(EXTRAS)(calm)
    return True


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


# --- a majority -------------------------------------------------------------------------------------------------------


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


def calm_down(calm: Calm) -> None:
    """No more faults; what becomes of those who are not chosen is the style."""
    world = calm.world
    world.act(world.do_quiet)
    outside = [i for i in world.ids if i not in calm.chosen]
    style = world.rng.randrange(5)
    cuts: list[tuple[str, str]] = []
    for node_id in outside:
        if style == 0:
            world.act(world.do_crash, node_id, 0, False)
            world.act(world.do_hold, node_id)
        elif style == 1:
            world.act(world.do_pause, node_id)
            world.act(world.do_hold, node_id)
        else:
            node = world.nodes[node_id]
            if node is not None:
                world.act(world.do_resume, node_id, node.life)
            if style != 3:  # it cannot be heard
                cuts += [(node_id, other) for other in world.ids]
            if style != 4:  # it cannot hear
                cuts += [(other, node_id) for other in world.ids]
    world.act(world.do_cut_for_good, tuple(cuts))
    world.fates = [(world.settings.delay,)] * FATES
    for node_id in calm.chosen:
        node = world.nodes[node_id]
        if node is None:
            world.act(world.do_start, node_id)
        else:
            world.act(world.do_resume, node_id, node.life)
    calm.style = style if outside else 0


def caught_up(world: World, chosen: list[str], index: int) -> bool:
    (members, *_) = relevant(world)
    present = {m.ref for m in members.members}
    nodes = [world.nodes[i] for i in chosen]
    return all(n.ref not in present or n.applied >= index for n in nodes if n is not None)


# --- one thing more ---------------------------------------------------------------------------------------------------


def come_back(calm: Calm) -> None:
    """Who was cut off, and comes back, does not depose the leader: he has not even moved on to another term."""
    world = calm.world
    if world.settings.jump_every < NEVER:
        return  # a leader whose clock is off hands over by itself
    patience = 2 * world.config.election_ticks_max * TICK + calm.election()
    # (late messages are in by then, and slow flushes over)
    calm.pass_time(patience)
    outside = [
        n
        for i in world.ids
        if i not in calm.chosen and (n := world.nodes[i]) is not None and not n.core.is_sole_voter()
    ]
    before = [node.core.term for node in outside]
    calm.pass_time(patience)
    if [node.core.term for node in outside] != before:
        raise Violation("I22", f"cut off, {[node.id for node in outside]} went on to new terms: {state(world)}")
    leader = world.leader()
    if leader is None or leader.id not in calm.chosen or any(term > leader.core.term for term in before):
        return
    term = leader.core.term
    world.judge.counts["came back"] += 1
    world.act(world.do_cut_for_good, ())
    calm.pass_time(patience)
    if leader.core.term != term or leader.core.role is not Role.LEADER:
        raise Violation("I22", f"{leader.id} led term {term} until the others came back: {state(world)}")


def set_clocks(calm: Calm) -> None:
    """All wall clocks are right, and everybody knows."""
    world = calm.world
    for node_id in world.ids:
        world.act(world.do_jump, node_id, -world.offsets[node_id])
    calm.pass_time(4 * calm.election())


def grow(calm: Calm) -> None:
    """A node is added. It catches up and becomes a voter, however much is read meanwhile."""
    world = calm.world
    new = newcomer(calm)
    if new is None:
        return
    calm.pass_time(calm.election())  # what learners have reached by now does not count any more
    world.act(world.do_promote, True)

    def done() -> bool:
        leader = calm.leader()
        if leader is None:
            return False
        row = leader.core.membership.get(new.id)
        if row is None:
            world.act(world.do_last_change, leader.id, Change(ChangeKind.ADD_LEARNER, member(new, False)))
        return row is not None and row.voter and not leader.core.change_open

    calm.until(done, f"after {new.id} joined", EXTRA_LIMIT + calm.catching_up())
    world.judge.counts["grown"] += 1
    world.act(world.do_promote, False)


def newcomer(calm: Calm) -> NodeRef | None:
    """A learner among the chosen, or somebody who can be added to the members; his disk is whole."""
    (now, *newer) = relevant(calm.world)
    for node_id in calm.chosen:
        ref = calm.world.refs[node_id]
        row = now.get(node_id)
        stranger = row is not None and row.ref != ref
        known = any(members.get(node_id) != row for members in newer)
        if stranger or known or ref in calm.world.judge.removed or not whole(calm.world, ref):
            continue
        if calm.world.nodes[node_id] is not None and (row is None or not row.voter):
            return ref
    return None


def replace_unfit_leader(calm: Calm) -> None:
    """The clock of the leader is set to another hour: somebody else leads, however much is read meanwhile."""
    set_clocks(calm)
    voters = [node for node in calm.members() if node.ref in node.voters()]
    leader = calm.leader()
    if len(voters) < 3 or leader is None:
        return
    calm.world.act(calm.world.do_jump, leader.id, calm.world.rng.choice((-HOUR_MS, HOUR_MS)))

    def done() -> bool:
        now = calm.leader()
        return now is not None and now is not leader

    calm.until(done, f"after the clock of {leader.id} went wrong")
    calm.world.judge.counts["replaced"] += 1
    calm.converge(EXTRA_LIMIT, f"after {leader.id} should have handed over")


def flip(calm: Calm) -> None:
    """A bit flips on one of the chosen, and a majority of whole disks is left: nothing stops, and it is refilled."""
    world = calm.world
    victims = [n for n in calm.members() if calm.spares_one(n.id) and n.disk.log.first <= n.disk.log.last]
    if not victims:
        return
    victim = world.rng.choice(victims)
    log = victim.disk.log
    index = world.rng.choice((log.last, world.rng.randrange(log.first, log.last + 1)))
    others = [n for n in calm.members() if n is not victim and n.ref in n.voters()]
    if 2 * sum(n.disk.log.holds(index, log.true_term(index)) for n in others) < len(victim.voters()):
        return  # damage to a copy that is needed is never done (faults.py)
    world.act(world.do_last_damage, victim.id, index)
    world.judge.counts["flipped"] += 1
    calm.converge(EXTRA_LIMIT, f"after {index} was damaged on {victim.id} of")


def read_everywhere(calm: Calm) -> None:
    """Over a line that is slow, and quick enough for elections, each member answers reads."""
    world = calm.world
    round_trips_per_election = 3
    delay = world.config.election_ticks_min * TICK // (2 * round_trips_per_election)
    calm.readers = []
    world.fates = [(max(delay, world.settings.delay),)] * FATES
    calm.pass_time(calm.election())
    asked: dict[str, tuple[int, int]] = {}

    def done() -> bool:
        missing = 0
        for node in calm.members():
            op, when = asked.get(node.id, (0, 0))
            if op and world.ops[op].by == node.id:
                continue
            missing += 1
            if not op or world.now > when + AGAIN:
                asked[node.id] = calm.read(node.id), world.now
        return not missing

    calm.until(done, "after reads were asked over a slow line of")
    world.judge.counts["read everywhere"] += 1


def keep_the_leader(calm: Calm) -> None:
    """One node and the leader do not hear each other, all others hear both: the leader stays."""
    set_clocks(calm)
    leader = calm.leader()
    others = [n for n in calm.members() if n is not leader and calm.spares_one(n.id)]
    if leader is None or not others or calm.style:
        return
    lost = calm.world.rng.choice(others)
    term = leader.core.term
    calm.world.judge.counts["kept"] += 1
    calm.world.act(calm.world.do_cut_for_good, ((leader.id, lost.id), (lost.id, leader.id)))
    calm.pass_time(4 * calm.election())
    if leader.core.term != term or leader.core.role is not Role.LEADER:
        raise Violation("I22", f"{leader.id} led term {term}, which only {lost.id} did not hear: {state(calm.world)}")


#: What a cluster that has healed is asked for.
EXTRAS: Final = (grow, grow, replace_unfit_leader, flip, read_everywhere, keep_the_leader)


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
