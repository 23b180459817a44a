"""The table role x message: every cell is filled, and no cell breaks on a plausible message."""

from __future__ import annotations

import itertools

import pytest

from raftdb.consensus import candidate, leader
from raftdb.consensus.core import HANDLERS, Core, CoreConfig
from raftdb.consensus.messages import (
    MESSAGES,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    RefillRequest,
    SnapshotOffer,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    check,
)
from raftdb.errors import Bug
from raftdb.types import Role, SnapshotMeta
from tests.consensus.cluster import Disk, Node, membership_of, ref

TERM = 1

PLAUSIBLE: dict[type, Message] = {
    Append: Append(TERM, 0, 0, 0, 0, ()),
    AppendReply: AppendReply(TERM, True, 0, 0, 0),
    Heartbeat: Heartbeat(TERM, 1, 0, 0, None),
    HeartbeatReply: HeartbeatReply(TERM, 1, 0, 0),
    VoteRequest: VoteRequest(TERM, 0, 0, False, False),
    VoteReply: VoteReply(TERM, True, False),
    SnapshotOffer: SnapshotOffer(TERM, SnapshotMeta("raft_n2_9.dat", 9, 1, 7, 0, membership_of("n1"), 10, b"d" * 32)),
    TimeoutNow: TimeoutNow(TERM, 0, 0),
    ReadRequest: ReadRequest(TERM, 1),
    ReadReply: ReadReply(TERM, 1, 0),
    RefillRequest: RefillRequest(TERM, 1),
}


def in_role(role: Role) -> Core:
    """A core of term 1 in that role, in a group of three."""
    learners = ("n1",) if role is Role.LEARNER else ()
    voters = ("n2", "n3") if role is Role.LEARNER else ("n1", "n2", "n3")
    node = Node("n1", Disk(membership_of(*voters, learners=learners)), CoreConfig())
    core = node.core
    assert core is not None
    if role in (Role.CANDIDATE, Role.LEADER):
        candidate.elect(core, transfer=False)
        node.turn()
    else:
        core.become_follower(TERM, None)
    if role is Role.LEADER:
        leader.become_leader(core)
        node.turn()
    assert (core.role, core.term) == (role, TERM)
    return core


def test_every_cell_is_filled() -> None:
    assert set(HANDLERS) == set(Role)
    for role, row in HANDLERS.items():
        assert set(row) == set(MESSAGES), role


def test_there_is_a_plausible_message_of_each_kind() -> None:
    assert set(PLAUSIBLE) == set(MESSAGES)
    for message in PLAUSIBLE.values():
        assert check(message) is message


@pytest.mark.parametrize(("role", "kind"), list(itertools.product(Role, MESSAGES)))
def test_cell(role: Role, kind: type) -> None:
    core = in_role(role)
    message = PLAUSIBLE[kind]
    if role is Role.LEADER and kind in (Append, Heartbeat, SnapshotOffer, TimeoutNow, ReadReply):
        with pytest.raises(Bug, match="two leaders"):
            core.step(ref("n2"), message)
        return
    reason = core.step(ref("n2"), message)
    assert reason is None or reason
    assert core.term == TERM or kind is TimeoutNow
    assert core.membership.get("n2") is not None


@pytest.mark.parametrize(("role", "kind"), list(itertools.product(Role, MESSAGES)))
def test_cell_of_a_lower_term_changes_nothing(role: Role, kind: type) -> None:
    core = in_role(role)
    before = (core.role, core.term, core.vote, core.leader, core.commit, core.log.last)
    assert core.step(ref("n2"), PLAUSIBLE[kind]._replace(term=0)) is not None
    assert (core.role, core.term, core.vote, core.leader, core.commit, core.log.last) == before


@pytest.mark.parametrize(("role", "kind"), list(itertools.product(Role, MESSAGES)))
def test_cell_of_a_higher_term(role: Role, kind: type) -> None:
    """A pre-vote (asked or granted) moves no term; neither does a vote while a leader may be alive; all else does."""
    core = in_role(role)
    core.step(ref("n2"), PLAUSIBLE[kind]._replace(term=5))
    is_bound = kind is VoteRequest and (role is not Role.CANDIDATE or core.contact < core.config.election_ticks_min)
    if kind is TimeoutNow and role is not Role.LEARNER and core.role is Role.CANDIDATE:
        assert core.term == 6
    else:
        assert core.term == (TERM if is_bound else 5)
    assert core.term == TERM or core.role in (Role.FOLLOWER, Role.LEARNER, Role.CANDIDATE)
