"""Majorities: the only arithmetic that safety rests on. Pure functions over small sequences.

Single-step changes are safe because any majority of n members meets any majority of n, n - 1 or n + 1 of the same
ones; `overlap` says it for two given sets, and a test compares it with brute force over all pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from raftdb.types import NodeRef


def majority(size: int) -> int:
    """How many of `size` voters make a majority."""
    return size // 2 + 1


def reached(values: Iterable[int]) -> int:
    """The largest value that a majority of the voters has reached (one value per voter); 0 when there are no voters."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2] if ordered else 0


def lower_median(values: Iterable[int]) -> int:
    """The lower of the two middle values: `reached` said for clocks. 0 when there are no values."""
    return reached(values)


def overlap(old: Set[NodeRef], new: Set[NodeRef]) -> bool:
    """Whether every majority of `old` shares a member with every majority of `new`.

    Two majorities can be kept apart by taking each set's private members first, then dividing the common ones.
    """
    common = len(old & new)
    needed_from_common = max(0, majority(len(old)) - len(old - new)) + max(0, majority(len(new)) - len(new - old))
    return needed_from_common > common
