"""The time that a leader stamps into entries: the design's section 4, as arithmetic over given clocks.

The target is the lower median of the wall clocks of the voters that are heard (the own one among them; a node that
leads alone has only its own), so that no minority of broken clocks moves it. Behind the target: step to it. Ahead of it
(the last stamp came from a leader whose clock ran ahead): go on at half the speed of the own monotonic clock, until the
target has caught up. Time never stands still and never goes back, and a new leader continues from the last stamp *in
the log*, whatever its own clock says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from raftdb.consensus.quorum import lower_median

WARN_MS: Final = 1_000  # off the median by more: a warning
UNFIT_MS: Final = 30_000  # off by more: does not campaign, hands leadership over


class Stamps:
    """One node's clock for entries. Times are ms; `monotonic_ms` may start anywhere."""

    def __init__(self, last_stamp: int, monotonic_ms: float) -> None:
        self._last = last_stamp
        self._at_ms = monotonic_ms  # when `_last` was given or seen

    def seen(self, stamp: int, monotonic_ms: float) -> None:
        """An entry of another leader's came into the log."""
        if stamp > self._last:
            self._last, self._at_ms = stamp, monotonic_ms

    def now(self, target: int, monotonic_ms: float) -> int:
        """What `next` would give; nothing changes."""
        if target >= self._last:
            return target
        return self._last + max(0, int(monotonic_ms - self._at_ms)) // 2

    def next(self, target: int, monotonic_ms: float) -> int:
        """The stamp of the next entry."""
        stamp = self.now(target, monotonic_ms)
        if stamp > self._last:
            self._last, self._at_ms = stamp, monotonic_ms
        return self._last


def target_of(own_wall_ms: int, others_wall_ms: Iterable[int], voters: int) -> int:
    """The lower median of the clocks that are heard.

    Clocks of voters that are not heard would only be guesses; while a quorum is heard, as a leader's is, the median of
    these lies between clocks of working nodes.
    """
    heard = [own_wall_ms, *others_wall_ms]
    return lower_median(heard[:voters] if voters else heard)
