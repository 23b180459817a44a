"""When a node asks for a place in its cluster; above all for the one that a deposed leader gave it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from raftdb.node.peering import wants_place
from raftdb.types import Member, Membership, NodeRef

ME = NodeRef("n4", 7)
OTHERS = tuple(Member(f"n{number}", number, "", "", True) for number in (1, 2, 3))
MINE = Member("n4", 7, "", "", False)
ELECTION_TICKS_MAX = 30


def core(
    *,
    leader: NodeRef | None,
    contact: int,
    member: bool,
    change_open: bool,
    before: bool = False,
    retired: bool = False,
) -> Any:
    previous = Membership(3, (*OTHERS, MINE) if before else OTHERS)
    return SimpleNamespace(
        me=ME,
        leader=leader,
        contact=contact,
        change_open=change_open,
        previous=previous,
        retired={ME} if retired else set(),
        config=SimpleNamespace(election_ticks_max=ELECTION_TICKS_MAX),
        is_member=lambda ref: member,
    )


N2 = NodeRef("n2", 2)
LONG = 2 * ELECTION_TICKS_MAX


@pytest.mark.parametrize(
    ("situation", "asks"),
    [
        (core(leader=None, contact=0, member=False, change_open=False), True),  # it was never added
        (core(leader=N2, contact=0, member=True, change_open=True), False),  # it is being added
        (core(leader=N2, contact=LONG, member=True, change_open=True), True),  # who added it is not heard any more
        (core(leader=None, contact=LONG, member=True, change_open=True), True),
        (core(leader=N2, contact=LONG - 1, member=True, change_open=True), False),
        (core(leader=N2, contact=LONG, member=True, change_open=False), False),  # its place is committed
        (core(leader=None, contact=LONG, member=True, change_open=True, before=True), False),  # so it is here
        (core(leader=None, contact=LONG, member=False, change_open=False, retired=True), False),  # it was removed
    ],
)
def test_who_lost_an_uncommitted_place_asks_again(situation: Any, asks: bool) -> None:
    assert wants_place(situation, anew=False) is asks
