"""Samples of what takes too long to run whole each time: chosen by the commit, so that each takes another one.

One commit has one sample, on every machine and in every process. TESTS_SAMPLE=HASH takes the sample of another commit,
TESTS_SAMPLE=all everything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, TypeVar

from tests.ledger import git

T = TypeVar("T")

ALL: Final = "all"
ASKED: Final = os.environ.get("TESTS_SAMPLE", "")


def commit_number() -> int:
    """0 where there is no git."""
    commit = ASKED if ASKED != ALL else ""
    return int(commit or git("rev-parse", "--short=12", "HEAD") or "0", 16)


def sample(items: Sequence[T], count: int, number: int | None = None) -> list[T]:
    """So many of them, evenly spread from one that the commit (or `number`) draws."""
    if number is None and ASKED == ALL:
        return list(items)
    count = min(count, len(items))
    start = commit_number() if number is None else number
    return [items[(start + len(items) * n // count) % len(items)] for n in range(count)]
