"""The payload of a membership entry, and the changes."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.consensus import membership as members
from raftdb.consensus.membership import BadMembership, Change, ChangeKind, ChangeRefused
from raftdb.types import Member, Membership
from tests.consensus.cluster import member, membership_of

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
rows = st.builds(Member, texts, st.integers(0, 2**64 - 1), texts, texts, st.booleans())
tables = (
    st.lists(rows, min_size=1, max_size=9, unique_by=lambda row: row.id)
    .map(lambda some: tuple(sorted(some, key=lambda row: row.id)))
    .filter(lambda some: any(row.voter for row in some))
)


@given(tables)
def test_round_trip(table: tuple[Member, ...]) -> None:
    payload = members.encode(table)
    assert members.decode(payload, 7) == Membership(7, table)
    assert members.encode(members.decode(payload, 7).members) == payload


@given(st.binary(max_size=200))
def test_hostile_bytes_raise_only_the_declared_error(data: bytes) -> None:
    try:
        decoded = members.decode(data, 1)
    except BadMembership:
        return
    assert members.encode(decoded.members) == data


@given(tables, st.data())
def test_every_altered_byte_is_refused_or_another_membership(table: tuple[Member, ...], data: st.DataObject) -> None:
    payload = bytearray(members.encode(table))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(BadMembership):
        assert members.decode(bytes(payload), 1).members != table


@given(tables, st.integers(1, 50))
def test_truncated_and_extended(table: tuple[Member, ...], size: int) -> None:
    payload = members.encode(table)
    for wrong in (payload[: -min(size, len(payload))], payload + bytes(size)):
        with pytest.raises(BadMembership):
            members.decode(wrong, 1)


@pytest.mark.parametrize(
    "table",
    [
        (),
        (member("n1", voter=False),),
        (member("n2"), member("n1")),
        (member("n1"), member("n1", incarnation=2)),
        (member("n1")._replace(client_addr=""),),
        (member("n1")._replace(peer_addr="x" * 600),),
        tuple(member(f"n{i:03}") for i in range(members.MEMBERS_MAX + 1)),
    ],
)
def test_what_must_not_be_encoded(table: tuple[Member, ...]) -> None:
    with pytest.raises(BadMembership):
        members.encode(table)


def every_change(membership: Membership) -> list[Change]:
    names = [row.id for row in membership.members] + ["n9"]
    return [Change(kind, member(name)) for kind in ChangeKind for name in names]


@pytest.mark.parametrize(("voters", "learners"), list(itertools.product(range(1, 6), range(3))))
def test_every_change_is_a_single_step(voters: int, learners: int) -> None:
    """I15: whatever `changed` lets through overlaps with what was before, and can be encoded."""
    ids = [f"n{i}" for i in range(1, voters + learners + 1)]
    before = membership_of(*ids[:voters], learners=tuple(ids[voters:]))
    let_through = 0
    for change in every_change(before):
        try:
            after = members.decode(members.encode(members.changed(before, change)), 5)
        except ChangeRefused:
            continue
        let_through += 1
        assert members.is_single_step(before, after)
        assert abs(len(after.voters) - len(before.voters)) <= 1
    assert let_through >= 1


def test_replacing_in_one_step_would_not_overlap() -> None:
    """Why a lost disk takes two changes."""
    before = membership_of("a", "b", "c")
    after = Membership(1, (*before.members[:2], member("c", incarnation=2)))
    assert not members.is_single_step(before, after)
