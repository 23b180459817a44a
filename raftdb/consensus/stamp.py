"""Stamps: the time that the leader writes into entries, so that no replica ever looks at a clock while it applies.

Stamps never fall. They follow a *target*: the lower median of the wall clocks of a quorum of voters, so that one wrong
clock moves nothing, and a leader elected with a wrong clock does not either. The clocks of the others ride in
heartbeats (`HeartbeatReply.wall_ms`), and are carried on by the own monotonic clock until the next one arrives.

    behind the target      step to it
    ahead of it            go on at half the speed of the own monotonic clock: never back, never still
    no quorum of clocks    as if ahead

A node whose wall clock is more than 1 s off the target warns; more than 30 s off it does not campaign and a leader
hands over (`core.fit = False`). The leader puts its target into `core.wall_ms`, others their own wall clock; so every
member knows both sides of the comparison. A follower forgets a target that is older than CLOCK_AGE_MAX_MS: nobody stays
unfit for what a leader has said who is gone.

Everything here is arithmetic on times that are given as arguments, in integer milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

from raftdb.consensus.quorum import lower_median, majority
from raftdb.types import NodeRef

WARN_MS: Final = 1_000
UNFIT_MS: Final = 30_000
CLOCK_AGE_MAX_MS: Final = 5_000
"""A wall clock that was heard longer ago than this does not take part in the target."""


class StampClock:
    """The stamps of one node: what the log holds, and what comes next."""

    __slots__ = ("anchor_mono_ms", "anchor_ms", "last_ms")

    def __init__(self, last_ms: int, mono_ms: int) -> None:
        """`last_ms`: stamp of the last entry of the log, else of the snapshot."""
        self.last_ms = last_ms
        self.anchor_ms = last_ms
        self.anchor_mono_ms = mono_ms

    def observe(self, stamp_ms: int, mono_ms: int) -> None:
        """An entry with this stamp is in the log (appended by any leader): go on from there."""
        if stamp_ms > self.last_ms:
            self._anchor(stamp_ms, mono_ms)

    def next(self, target_ms: int | None, mono_ms: int) -> int:
        """The stamp for an entry that is proposed now."""
        slow_ms = self.anchor_ms + max(0, mono_ms - self.anchor_mono_ms) // 2
        if target_ms is not None and target_ms >= slow_ms:
            self._anchor(max(target_ms, self.last_ms), mono_ms)
        else:
            self.last_ms = max(self.last_ms, slow_ms)
        return self.last_ms

    def _anchor(self, stamp_ms: int, mono_ms: int) -> None:
        self.last_ms = self.anchor_ms = stamp_ms
        self.anchor_mono_ms = mono_ms


class WallClocks:
    """The wall clocks of the other members, as last heard."""

    __slots__ = ("heard",)

    def __init__(self) -> None:
        self.heard: dict[NodeRef, tuple[int, int]] = {}  # member -> (wall, own monotonic clock when it was heard)

    def hear(self, ref: NodeRef, wall_ms: int, mono_ms: int) -> None:
        self.heard[ref] = (wall_ms, mono_ms)

    def forget_all_but(self, refs: Iterable[NodeRef]) -> None:
        """The membership has changed."""
        self.heard = {ref: self.heard[ref] for ref in refs if ref in self.heard}

    def target(self, me: NodeRef, own_wall_ms: int, voters: Iterable[NodeRef], mono_ms: int) -> int | None:
        """The lower median over the voters whose clock is known; None when that is no quorum of them."""
        voters = list(voters)
        walls = [own_wall_ms] if me in voters else []
        for ref in voters:
            if ref != me and ref in self.heard:
                wall_ms, heard_ms = self.heard[ref]
                if mono_ms - heard_ms <= CLOCK_AGE_MAX_MS:
                    walls.append(wall_ms + (mono_ms - heard_ms))
        return lower_median(walls) if walls and len(walls) >= majority(len(voters)) else None


class Deviation(Enum):
    FINE = "fine"
    WARN = "warn"  # more than 1 s off: say so
    UNFIT = "unfit"  # more than 30 s off: do not campaign, hand over


def deviation(own_wall_ms: int, target_ms: int | None) -> Deviation:
    """How far the own wall clock is off the target."""
    if target_ms is None:
        return Deviation.FINE
    off_ms = abs(own_wall_ms - target_ms)
    if off_ms > UNFIT_MS:
        return Deviation.UNFIT
    return Deviation.WARN if off_ms > WARN_MS else Deviation.FINE
