"""Anything that a peer may say: well-typed, and otherwise without sense.

Only the declared errors leave the core, and what it has promised stays: terms, votes and commit never go back, nothing
committed is replaced, and what stage two releases is on the disk.
"""

from __future__ import annotations

import random

import pytest

from raftdb.consensus import messages as m
from raftdb.consensus.core import FROM_LEADER, Core, CoreConfig
from raftdb.consensus.messages import Message, check
from raftdb.errors import Bug, Damaged
from raftdb.types import Entry, Kind, Member, NodeRef, Role, SnapshotMeta
from tests.consensus.cluster import Disk, Node, chain_of, commands, membership_of, ref

SMALL = (0, 1, 2, 3, 4, 5, 6, 7, 8)
LARGE = (m.TERM_MAX, m.TERM_MAX - 1, 1 << 33, 1 << 31)


def number(chance: random.Random) -> int:
    return chance.choice(SMALL) if chance.random() < 0.97 else chance.choice(LARGE)


def entries(chance: random.Random, core: Core, prev_index: int, term: int) -> tuple[Entry, ...]:
    """Mostly linked to the receiver's own log, so that some of it is taken."""
    chain = core.log.chain(prev_index) if core.log.first - 1 <= prev_index <= core.log.last else 0
    made = []
    for index in range(prev_index + 1, prev_index + 1 + chance.randrange(4)):
        entry_term = max(0, term - chance.choice((0, 0, 0, 1)))
        kind = chance.choice((Kind.COMMANDS, Kind.COMMANDS, Kind.MEMBERSHIP, 77))
        payload = chance.randbytes(chance.randrange(5))
        chain = chain_of(chain, index, entry_term, kind, 0, 0, payload)
        if chance.random() < 0.03:
            index, chain = index + 1, chance.getrandbits(32)
        made.append(Entry(index, entry_term, kind, 0, 0, payload, chain))
    return tuple(made)


def any_message(chance: random.Random, core: Core) -> Message:
    kind = chance.choice(m.MESSAGES)
    term = core.term + chance.choice((0, 0, 0, 0, -1, 1)) if chance.random() < 0.95 else number(chance)
    values: dict[str, object] = {"term": max(0, term)}
    for name in kind._fields[1:]:
        if name in ("ok", "granted", "pre", "transfer"):
            values[name] = chance.random() < 0.5
        elif name == "age_ms":
            values[name] = None
        elif name == "meta":
            values[name] = any_snapshot(chance)
        elif name != "entries":
            values[name] = number(chance)
    if kind is m.Heartbeat and chance.random() < 0.9:
        values["commit"] = chance.randint(0, core.log.last)
    if kind is m.Append:
        prev_index = min(int(str(values["prev_index"])), core.log.last + 1)
        values["prev_index"] = prev_index
        if core.log.first - 1 <= prev_index <= core.log.last and chance.random() < 0.9:
            values |= {"prev_term": core.log.term(prev_index), "prev_chain": core.log.chain(prev_index)}
        values["entries"] = entries(chance, core, prev_index, int(str(values["term"])))
    return check(kind(**values))


def any_snapshot(chance: random.Random) -> SnapshotMeta:
    rows = tuple(Member(f"n{i}", 1, "a", "a", True) for i in range(1, chance.randint(2, 4)))
    membership = membership_of("n1")._replace(members=rows)
    return SnapshotMeta("s.dat", number(chance), number(chance), number(chance), 0, membership, 1, b"d" * 32)


@pytest.mark.parametrize("seed", range(150))
def test_no_message_breaks_the_core(seed: int) -> None:
    chance = random.Random(seed)
    membership = membership_of("n1", "n2", "n3") if seed % 3 else membership_of("n1", learners=("n2", "n3"))
    node = Node("n1", Disk(membership), CoreConfig(read_wait_ticks=20), seed=seed)
    senders = [ref("n2"), ref("n3"), ref("n4"), NodeRef("n2", 9)]
    applied: dict[int, Entry] = {}
    term, commit = 0, 0
    for step in range(250):
        core = node.core
        assert core is not None
        try:
            move(chance, core, node, senders, step)
            node.turn()
        except (Bug, Damaged):
            node.crash()
            node.start()
            core = node.core
        assert core is not None
        assert core.term == node.disk.hard.term >= term, "durable, and never back"
        assert node.disk.applied >= commit
        assert core.log.first - 1 <= core.commit <= core.log.last
        for entry in node.applied:
            assert applied.setdefault(entry.index, entry) == entry
        node.applied.clear()
        term, commit = node.disk.hard.term, node.disk.applied


def move(chance: random.Random, core: Core, node: Node, senders: list[NodeRef], step: int) -> None:
    action = chance.random()
    if action < 0.15:
        core.tick()
    elif action < 0.2:
        core.elapsed = core.timeout
        core.contact = 99
        core.tick()
    elif action < 0.25:
        core.read_index(step)
    elif action < 0.3 and core.role is Role.LEADER:
        core.propose(commands("x"))
    elif action < 0.32 and core.fetching is not None:
        core.snapshot_received(core.fetching)
    else:
        message = any_message(chance, core)
        sender = chance.choice(senders)
        if type(message) in FROM_LEADER and core.leader not in (None, core.me) and chance.random() < 0.9:
            sender = core.leader or sender  # else most of it would end with "two leaders"
        core.step(sender, message)
