"""Fixtures of the command tests."""

from __future__ import annotations

import itertools

import pytest

from .replica import Replica


@pytest.fixture
def make_replica(tmp_path):
    """`make_replica(table)`: further replicas, closed at the end."""
    made: list[Replica] = []
    numbers = itertools.count()

    def make(table=None):
        made.append(Replica(tmp_path / f"replica-{next(numbers)}", table))
        return made[-1]

    yield make
    for replica in made:
        replica.close()


@pytest.fixture
def replica(make_replica):
    return make_replica()
