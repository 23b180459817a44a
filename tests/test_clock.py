"""raftdb.clock: three clocks, and a breath that is taken in time."""

from __future__ import annotations

import time

import pytest

from raftdb import clock
from raftdb.clock import BREATH_NS, CHECK_EVERY, Breather


class FakeTime:
    """Stands in for the module `time`: moves only when told, and counts the breaths."""

    def __init__(self) -> None:
        self.ns = 1_000_000_000
        self.slept: list[float] = []

    def monotonic_ns(self) -> int:
        return self.ns

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def fake(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(clock, "time", fake)
    return fake


def test_no_breath_before_its_time(fake):
    breathe = Breather()
    fake.ns += BREATH_NS - 1
    for _ in range(10 * CHECK_EVERY):
        breathe()
    assert not breathe.now()
    assert fake.slept == []


def test_a_breath_within_a_bounded_number_of_calls(fake):
    breathe = Breather()
    fake.ns += BREATH_NS
    for _ in range(CHECK_EVERY):
        breathe()
    assert fake.slept == [0]


def test_now_looks_at_once_and_starts_the_next_span(fake):
    breathe = Breather()
    fake.ns += BREATH_NS
    assert breathe.now()
    assert not breathe.now()
    fake.ns += BREATH_NS
    assert breathe.now()
    assert fake.slept == [0, 0]


def test_clocks_agree_with_the_system():
    assert abs(clock.wall_ms() - time.time() * 1000) < 10_000
    assert clock.boottime() >= clock.monotonic() - 1.0  # suspended time only adds
    assert isinstance(clock.wall_ms(), int)
