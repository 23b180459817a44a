"""splitmix64: the core's only source of chance, from the seed that it is given.

Small and specified to the bit, so that a run can be repeated on any Python version (Steele, Lea, Flood: "Fast
splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

from typing import Final

MASK: Final = (1 << 64) - 1


class SplitMix64:
    __slots__ = ("state",)

    def __init__(self, seed: int) -> None:
        self.state = seed & MASK

    def next(self) -> int:
        """64 bits."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def between(self, low: int, high: int) -> int:
        """low .. high inclusive. The bias of the modulus is below 2^-50 for the spans used here."""
        return low + self.next() % (high - low + 1)
