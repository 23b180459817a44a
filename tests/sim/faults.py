"""Trouble: who breaks what, when, for how long. Every draw ends in a `do_` event of the world with plain arguments.

What is never done, since no system could stand it: damage to the last whole copy of a committed entry, and a restored
backup that nobody could know to be one (see `restore`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from raftdb.consensus.core import Change, ChangeKind
from raftdb.types import Member, NodeRef
from tests.sim.settings import MS, NEVER, TICK

if TYPE_CHECKING:
    from tests.sim.node import SimNode
    from tests.sim.world import World


def member(ref: NodeRef, voter: bool) -> Member:
    """A row of a membership."""
    return Member(ref.id, ref.incarnation, f"{ref.id}:6379", f"{ref.id}:6380", voter)


class Faults:
    """Draws faults for a world until it is told to stop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng: random.Random = world.rng
        s = world.settings
        self.kinds = [
            (s.crash_every, self.crash),
            (s.stop_every, self.stop),
            (s.blackout_every, self.blackout),
            (s.cut_every, self.cut),
            (s.pause_every, self.pause),
            (s.jump_every, self.jump),
            (s.transfer_every, self.transfer),
            (s.member_every, self.member),
            (s.wipe_every, self.wipe),
            (s.restore_every, self.restore),
            (s.damage_every, self.damage),
            (s.trap_every, self.trap),
            (s.pull_every, self.pull),
        ]

    def start(self) -> None:
        for number, (every, _) in enumerate(self.kinds):
            if every < NEVER:
                self.world.later(self.world.spread(every), self.draw, number)

    def draw(self, number: int) -> None:
        """Do one fault of this kind now, and plan the next."""
        world = self.world
        if world.quiet:
            return
        every, fault = self.kinds[number]
        fault()
        world.later(world.spread(every), self.draw, number)

    def victim(self) -> str:
        """A node; with the seed's bias, the leader."""
        world = self.world
        if self.rng.random() < world.settings.aim:
            leader = world.leader()
            if leader is not None:
                return leader.id
        return world.ids[self.rng.randrange(len(world.ids))]

    def span(self) -> int:
        """How long a fault lasts: from a blink to several elections."""
        return int(10 * MS * 500 ** self.rng.random())

    # --- processes and machines -------------------------------------------------------------------------------------

    def crash(self) -> None:
        world, victim = self.world, self.victim()
        world.later(0, world.do_crash, victim, self.rng.getrandbits(32), self.rng.random() < world.settings.power)
        world.later(self.span(), world.do_start, victim)

    def stop(self) -> None:
        world, victim = self.world, self.victim()
        world.later(0, world.do_stop, victim, self.rng.getrandbits(32), self.rng.random() < world.settings.power)
        world.later(self.span(), world.do_start, victim)

    def blackout(self) -> None:
        world = self.world
        world.later(0, world.do_blackout, self.rng.getrandbits(32))
        for node_id in world.ids:
            world.later(self.span(), world.do_start, node_id)

    def pause(self) -> None:
        world, victim = self.world, self.victim()
        node = world.nodes[victim]
        if node is not None:
            world.later(0, world.do_pause, victim)
            world.later(self.span(), world.do_resume, victim, node.life)

    def jump(self) -> None:
        """A wall clock is set: by a little, by an hour, by years."""
        world = self.world
        size = self.rng.choice((200, 5_000, 3_600_000, 10**11))
        world.later(0, world.do_jump, self.victim(), self.rng.randrange(-size, size))

    def pull(self) -> None:
        """The power fails where a file is being pulled. It is soon back, and goes on with what is left of the file."""
        world = self.world
        pulling = [i for i in world.ids if (node := world.nodes[i]) is not None and node.fetching is not None]
        if pulling:
            victim = self.rng.choice(pulling)
            world.later(0, world.do_crash, victim, self.rng.getrandbits(32), True)
            world.later(self.rng.randrange(100 * MS) + 1, world.do_start, victim)

    # --- network ----------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        world = self.world
        pairs = self._pairs()
        world.later(0, world.do_cut, pairs)
        world.later(self.span() * 2, world.do_heal, pairs)

    def _pairs(self) -> tuple[tuple[str, str], ...]:
        """Directed links to cut."""
        world, rng = self.world, self.rng
        style = world.settings.cut_style
        if style == 4:
            style = rng.randrange(4)
        ids = world.ids
        if style == 3:
            return tuple((a, b) for a in ids for b in ids if a != b and rng.random() < 0.4)
        alone = {self.victim()} if style else {i for i in ids if rng.random() < 0.5}
        both = style < 2 or rng.random() < 0.3
        out = rng.random() < 0.5
        return tuple((a, b) for a in ids for b in ids if (a in alone) != (b in alone) and (both or (a in alone) == out))

    def trap(self) -> None:
        """The leader is made to believe that it leads for longer than it does, while somebody reads on its lease."""
        world, leader = self.world, self.world.leader()
        if leader is None:
            return
        others = [i for i in world.ids if i != leader.id]
        self.rng.shuffle(others)
        least = world.config.election_ticks_min * TICK  # the least election timeout
        kind = self.rng.randrange(5) if world.settings.leases else 4
        if kind == 0:  # it stands still for about as long as an election takes
            for _ in range(4):
                world.draw_read(leader.id, True)
            world.later(self.rng.randrange(10 * MS), world.do_pause, leader.id)
            world.later(int(least * (0.8 + 1.5 * self.rng.random())), world.do_resume, leader.id, leader.life)
        elif kind == 1:  # it is cut off at once; what is under way to it still arrives
            self.part(leader.id, others, 0, 3 * least)
        elif kind == 2:  # first one voter loses it and wants an election, then another, who has perhaps just restarted
            half = len(others) // 2
            wait = int(2 * least * self.rng.random()) + least // 2
            lull = 0
            if self.rng.random() < 0.5:  # nobody writes meanwhile: the first misses nothing, and may win
                lull = 20 * world.settings.delay
                world.hush = world.now + lull + wait
            self.part(leader.id, others[:half], lull, 5 * least)
            wait += lull
            self.part(leader.id, others[half:], wait, 3 * least)
            if self.rng.random() < 0.6:
                for other in others[half:]:
                    world.later(wait, world.do_crash, other, self.rng.getrandbits(32), False)
                    world.later(wait + MS, world.do_start, other)
        elif kind == 4 and others:  # a follower dies while it is answered, and asks again at once in its next life
            victim, delay = others[0], world.settings.delay
            world.later(0, world.draw_read, victim, False)
            death = 0
            for _ in range(1 + self.rng.randrange(3)):  # (the first question of one life, the first of the next)
                death += int(delay * (2 + 6 * self.rng.random()))
                power = self.rng.random() < 0.5
                world.later(death, world.do_crash, victim, self.rng.getrandbits(32), power)
                world.later(death + 1, world.do_start, victim)
        elif others:  # it hands over, and hears nothing of what becomes of that
            world.later(0, world.do_transfer, leader.id, others[0])
            pairs = tuple((other, leader.id) for other in others)
            delay = self.rng.randrange(2 * world.settings.delay + 1)
            world.later(delay, world.do_cut, pairs)
            world.later(delay + 3 * least, world.do_heal, pairs)
        wait = max(0, world.hush - world.now)
        for _ in range(10):
            world.later(wait + int(3 * least * self.rng.random()), world.draw_read, leader.id, True)
        for _ in range(4):  # whoever leads by then
            span = wait + int(3 * least * self.rng.random())
            for other in others:
                world.later(span, world.draw_write, other)
                world.later(span, world.draw_read, other, True)

    def part(self, node_id: str, others: list[str], delay: int, span: int) -> None:
        """Cut the links between one node and others."""
        pairs = tuple(pair for other in others for pair in ((node_id, other), (other, node_id)))
        self.world.later(delay, self.world.do_cut, pairs)
        self.world.later(delay + span, self.world.do_heal, pairs)

    # --- operators --------------------------------------------------------------------------------------------------

    def transfer(self) -> None:
        world, leader = self.world, self.world.leader()
        if leader is not None:
            target = self.rng.choice((None, *world.ids))
            world.later(0, world.do_transfer, leader.id, target)
            if target is not None and self.rng.random() < 0.4:
                self.mute(target)

    def mute(self, node_id: str) -> None:
        """It will not be heard for a while: a handed-over leadership gets stuck half-way, in a new term."""
        world = self.world
        pairs = tuple((node_id, other) for other in world.ids if other != node_id)
        delay = world.settings.delay // 2 + 1
        world.later(delay, world.do_cut, pairs)
        world.later(delay + self.span() // 4, world.do_heal, pairs)

    def member(self) -> None:
        """One change of the members, asked of the leader (or of somebody who no longer is)."""
        world, leader = self.world, self.world.leader()
        if leader is not None:
            if self.rng.random() < 0.2:
                world.later(0, world.do_ghost, leader.id)
            change = self._change(leader)
            if change is not None:
                world.later(0, world.do_change, leader.id, change)

    def _change(self, leader: SimNode) -> Change | None:
        world, rng = self.world, self.rng
        members = leader.core.membership
        present = {m.id: m for m in members.members}
        lost = [m for m in members.members if world.refs[m.id] != m.ref]
        if lost and rng.random() < 0.7:
            return Change(ChangeKind.REMOVE, lost[0])
        absent = [i for i in world.ids if i not in present and world.refs[i] not in world.judge.removed]
        gone = [i for i in world.ids if i not in present and world.refs[i] in world.judge.removed]
        if gone and rng.random() < 0.5:
            world.later(0, world.do_wipe, gone[0], rng.getrandbits(60))
            world.later(self.span(), world.do_start, gone[0])
        dice = rng.random()
        if absent and dice < 0.45:
            ref = world.refs[rng.choice(absent)]
            return Change(ChangeKind.ADD_LEARNER, member(ref, False))
        some = rng.choice(members.members)
        if dice < 0.6 and not some.voter:
            return Change(ChangeKind.PROMOTE, some)
        if dice < 0.68 and some.voter:
            return Change(ChangeKind.DEMOTE, some)
        if dice < 0.9:
            me = present.get(leader.id)
            return Change(ChangeKind.REMOVE, me if me is not None and rng.random() < 0.3 else some)
        return Change(ChangeKind.ADDRESS, some._replace(client_addr=f"{some.id}:{rng.randrange(1000)}"))

    # --- disks ------------------------------------------------------------------------------------------------------

    def whole(self, node_id: str) -> bool:
        """Can this node's disk be counted on?"""
        world = self.world
        disk = world.disks[world.refs[node_id]]
        return node_id not in world.halted and not disk.log.damaged and not disk.starved()

    def voters(self) -> list[NodeRef]:
        """The voters, as the highest leader has them."""
        leader = self.world.leader()
        if leader is None:
            return []
        return [m.ref for m in leader.core.membership.voters]

    def wipe(self) -> None:
        """The disk of a node is lost; it comes back as another incarnation. A majority of whole voters stays."""
        world, voters = self.world, self.voters()
        victim = self.victim()
        others = [r for r in voters if r.id != victim and world.refs[r.id] == r and self.whole(r.id)]
        if voters and 2 * len(others) > len(voters) and all(self.whole(r.id) for r in others):
            if any(not self.whole(r.id) for r in voters if world.refs[r.id] == r):
                return
            world.later(0, world.do_wipe, victim, self.rng.getrandbits(60))
            world.later(self.span(), world.do_start, victim)

    def damage(self) -> None:
        """One entry of one disk, or all its state. Every other voter's disk is whole; enough others hold the entry."""
        world, rng = self.world, self.rng
        victim = world.refs[world.ids[rng.randrange(len(world.ids))]]
        log = world.disks[victim].log
        voters = self.voters()
        others = [r for r in voters if r != victim]
        if log.damaged or log.last < log.first or victim not in voters or len(voters) < 3:
            return
        if any(world.refs[r.id] != r or not self.whole(r.id) for r in others):
            return
        if rng.random() < 0.2:
            world.later(0, world.do_spoil, victim.id)
            world.later(self.span(), world.do_start, victim.id)
            return
        index = log.last if rng.random() < 0.3 else rng.randrange(log.first, log.last + 1)
        term = log.true_term(index)
        if sum(world.disks[r].log.holds(index, term) for r in others) * 2 >= len(voters):
            world.later(0, world.do_damage, victim.id, index)

    def restore(self) -> None:
        """A backup of a disk is made, or one made before is put back (which somebody who is up must be able to
        notice)."""
        world = self.world
        ref = world.refs[self.victim()]
        backup = world.backups.get(ref)
        if backup is None or self.rng.random() < 0.15:
            world.later(0, world.do_backup, ref.id)
        elif world.noticed(ref, backup):
            world.later(0, world.do_restore, ref.id)
            world.later(self.span(), world.do_start, ref.id)
