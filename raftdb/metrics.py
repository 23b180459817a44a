"""Counters and histograms that cost next to nothing where they are fed, and are put together when somebody asks.

A counter is an attribute that one thread adds to: `loop.commands += n`. Nobody needs a lock, and nothing is added up
before INFO or a scrape wants it; then `Registry.read()` calls the readers that others have registered, each of which
sums its own loops. What a reader sees may be a turn old; it is never torn, since an int is replaced as a whole.

`Histogram` keeps powers of two, so that a percentile is right to a factor of two, in 64 integers, for about 0.2 us a
value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BUCKETS: Final = 64


class Histogram:
    """Counts of values by their number of binary digits; one thread feeds it. The unit is the feeder's (say `_us`)."""

    __slots__ = ("buckets", "count", "largest", "total")

    def __init__(self) -> None:
        self.buckets = [0] * BUCKETS  # buckets[n]: values v with v.bit_length() == n, that is 2**(n-1) <= v < 2**n
        self.count = 0
        self.total = 0
        self.largest = 0

    def add(self, value: int) -> None:
        """Count one value; below zero counts as zero."""
        if value < 0:
            value = 0
        self.buckets[min(value.bit_length(), BUCKETS - 1)] += 1
        self.count += 1
        self.total += value
        if value > self.largest:
            self.largest = value

    def percentile(self, share: float) -> int:
        """An upper bound for the value that `share` (0 < share <= 1) of the values do not exceed; 0 when empty."""
        wanted = share * self.count
        seen = 0
        for digits, count in enumerate(self.buckets):
            seen += count
            if count and seen >= wanted:
                return min((1 << digits) - 1, self.largest)
        return self.largest

    @property
    def mean(self) -> float:
        """Of all values; 0.0 when empty."""
        return self.total / self.count if self.count else 0.0

    @staticmethod
    def merged(parts: list[Histogram]) -> Histogram:
        """One histogram out of several threads'."""
        whole = Histogram()
        for part in parts:
            whole.buckets = [a + b for a, b in zip(whole.buckets, part.buckets, strict=True)]
            whole.count += part.count
            whole.total += part.total
            whole.largest = max(whole.largest, part.largest)
        return whole


Reader = Callable[[], float]


class Registry:
    """Names of figures and how to read them. Names end in their unit (`_total`, `_bytes`, `_seconds`)."""

    def __init__(self) -> None:
        self._readers: dict[str, Reader] = {}

    def register(self, name: str, reader: Reader) -> None:
        """A second reader of the same name is a mistake: ValueError."""
        if name in self._readers:
            raise ValueError(f"a metric {name} exists already")
        self._readers[name] = reader

    def read(self) -> dict[str, float]:
        """All figures at this moment, by name."""
        return {name: reader() for name, reader in sorted(self._readers.items())}
