"""Forming under chance: never two clusters where one is meant."""

from __future__ import annotations

import random

import pytest

from raftdb.consensus.forming import Accept, Answer, Blank, Formed, Forming, Join, Plan, Stop, Wait
from raftdb.types import Member, NodeRef


def node(address: str, listed: list[str], incarnation: int = 1, **options: object) -> Forming:
    row = Member(f"id-{address}", incarnation, address, address, True)
    return Forming(row, listed, f"cluster-{address}-{incarnation}", **options)  # type: ignore[arg-type]


class World:
    """Nodes at addresses. What a node has accepted is on its disk; everything else is lost with a crash."""

    def __init__(self, chance: random.Random, lists: dict[str, list[str]], options: dict[str, object]) -> None:
        self.chance = chance
        self.lists = lists
        self.options = options
        self.lives = dict.fromkeys(lists, 1)
        self.disks: dict[str, Plan | None] = dict.fromkeys(lists)
        self.nodes = {address: node(address, lists[address], **options) for address in lists}
        self.plans: set[Plan] = set()
        self.accepted: dict[NodeRef, Plan] = {}

    def move(self, is_calm: bool = False) -> None:
        address = self.chance.choice(sorted(self.nodes))
        other = self.chance.choice(sorted(self.nodes))
        action = self.chance.choice(
            ["ask"] * 8 + ["decide"] * 4 + ["offer"] * 3 + ([] if is_calm else ["silent", "crash"])
        )
        me = self.nodes[address]
        if action == "ask" and other in me.listed:
            me.answer(other, self.nodes[other].report())
        elif action == "silent":
            me.silent(other)
        elif action == "decide":
            self.decide(address)
        elif action == "offer" and me.is_formed and me.plan is not None and other != address:
            self.nodes[other].offered(me.plan)
        elif action == "crash":
            self.restart(address)

    def decide(self, address: str) -> None:
        me = self.nodes[address]
        decision = me.decide()
        assert isinstance(decision, Wait | Join | Accept | Stop)
        if isinstance(decision, Accept):
            assert self.disks[address] in (None, decision.plan), "a second plan"
            self.disks[address] = decision.plan
            self.accepted[me.me.ref] = decision.plan
            self.plans.add(decision.plan)
            me.accepted()

    def restart(self, address: str) -> None:
        self.nodes[address] = node(address, self.lists[address], self.lives[address], **self.options)
        if self.disks[address] is not None:
            self.nodes[address].plan = self.disks[address]
            self.nodes[address].accepted()

    def wipe(self, address: str) -> None:
        self.lives[address] += 1
        self.disks[address] = None
        self.restart(address)


def quorums_of(plan: Plan, accepted: dict[NodeRef, Plan]) -> bool:
    """Whether a majority of the plan's members has accepted it: it can elect."""
    holders = [row for row in plan.members if accepted.get(row.ref) == plan]
    return len(holders) > len(plan.members) // 2


@pytest.mark.parametrize("seed", range(60))
def test_one_list_one_cluster(seed: int) -> None:
    chance = random.Random(seed)
    addresses = [f"h{i}" for i in range(chance.randint(1, 5))]
    world = World(chance, {one: [a for a in addresses if a != one or chance.random() < 0.3] for one in addresses}, {})
    for _ in range(600):
        world.move()
    assert len(world.plans) <= 1
    for _ in range(2000):
        world.move(is_calm=True)
    assert len(world.plans) == 1
    assert set(world.disks.values()) == world.plans


@pytest.mark.parametrize("seed", range(60))
def test_wiped_disks_never_make_a_second_cluster_that_elects(seed: int) -> None:
    """Disks are lost at any moment, a minority of them at most: one plan at most gets a majority."""
    chance = random.Random(seed)
    addresses = [f"h{i}" for i in range(3 + 2 * chance.randint(0, 1))]
    world = World(chance, dict.fromkeys(addresses, addresses), {})
    wipes_left = (len(addresses) - 1) // 2
    for _ in range(800):
        if wipes_left and chance.random() < 0.01:
            wipes_left -= 1
            world.wipe(chance.choice(addresses))
        world.move()
    able = [plan for plan in world.plans if quorums_of(plan, world.accepted)]
    assert len(able) <= 1 or not set.intersection(*({row.id for row in plan.members} for plan in able))


@pytest.mark.parametrize("seed", range(40))
def test_a_name_that_shows_parts_forms_nothing(seed: int) -> None:
    chance = random.Random(seed)
    addresses = ["h0", "h1", "h2", "h3", "h4"]
    world = World(chance, {one: [] for one in addresses}, {"is_dns": True, "expect": 5})
    for _ in range(1500):
        one = chance.choice(addresses)
        if chance.random() < 0.2:
            world.lists[one] = chance.sample(addresses, chance.randint(1, 4))
            world.nodes[one].resolve(world.lists[one])
        world.move()
    assert not world.plans
    for one in addresses:
        world.lists[one] = addresses
        world.nodes[one].resolve(addresses)
    for _ in range(2000):
        world.move(is_calm=True)
    assert set(world.disks.values()) == world.plans
    assert len(world.plans) == 1


def test_alone() -> None:
    me = node("h0", ["h0"])
    decision = me.decide()
    assert isinstance(decision, Accept)
    assert [row.id for row in decision.plan.members] == ["id-h0"]


def test_a_name_without_expect_never_forms() -> None:
    me = node("h0", [], is_dns=True)
    assert isinstance(me.decide(), Wait)
    me.resolve(["h1"])
    answer: Answer = Blank(Member("id-h1", 1, "h1", "h1", True), (NodeRef("id-h0", 1), NodeRef("id-h1", 1)), True)
    me.answer("h1", answer)
    assert isinstance(me.decide(), Wait)
    me.answer("h1", Formed("red", (Member("id-h1", 1, "h1", "h1", True),)))
    assert me.decide() == Join("red", ("h1",), None)


def test_an_answer_from_outside_the_list_counts_for_nothing() -> None:
    me = node("h0", ["h1"])
    me.answer("h9", Formed("red", ()))
    assert isinstance(me.decide(), Wait)
