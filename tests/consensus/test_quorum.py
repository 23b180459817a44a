"""Majorities, the clever way against the dumb one."""

from __future__ import annotations

import itertools

import pytest

from raftdb.consensus.quorum import lower_median, majority, overlap, reached
from raftdb.types import NodeRef
from tests.consensus.cluster import ref

EVERYBODY = tuple(ref(name) for name in "abcdef")


def majorities(voters: frozenset[NodeRef]) -> list[frozenset[NodeRef]]:
    needed = len(voters) // 2 + 1
    return [frozenset(some) for size in range(needed, len(voters) + 1) for some in itertools.combinations(voters, size)]


def subsets() -> list[frozenset[NodeRef]]:
    return [frozenset(some) for size in range(1, 6) for some in itertools.combinations(EVERYBODY, size)]


def test_overlap_against_brute_force() -> None:
    """All pairs of memberships of one to five out of six nodes."""
    sets = subsets()
    for old, new in itertools.product(sets[::1], sets[::3]):
        dumb = all(a & b for a in majorities(old) for b in majorities(new))
        assert overlap(old, new) == dumb, (old, new)


def test_one_voter_more_or_less_always_overlaps() -> None:
    for old in subsets():
        for one in EVERYBODY:
            new = old ^ {one}
            if new:
                assert overlap(old, new)


@pytest.mark.parametrize("size", range(1, 8))
def test_reached_against_counting(size: int) -> None:
    for values in itertools.product(range(4), repeat=min(size, 5)):
        dumb = max(v for v in range(5) if v == 0 or sum(1 for one in values if one >= v) >= majority(len(values)))
        assert reached(values) == dumb


def test_no_voters_reach_nothing() -> None:
    assert reached([]) == 0


def test_lower_median() -> None:
    assert [lower_median(v) for v in ([5], [1, 9], [1, 5, 9], [1, 5, 7, 9])] == [5, 1, 5, 5]
