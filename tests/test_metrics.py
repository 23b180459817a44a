"""raftdb.metrics: histograms against sorted lists, and the registry."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.metrics import Histogram, Registry

values = st.lists(st.integers(0, 2**40), min_size=1, max_size=200)


def filled(numbers: list[int]) -> Histogram:
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    return histogram


@given(values, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_is_right_to_a_factor_of_two(numbers, share):
    exact = sorted(numbers)[max(0, -int(-share * len(numbers) // 1) - 1)]
    assert exact <= filled(numbers).percentile(share) <= max(2 * exact, 1)


@given(values, values)
def test_merged_is_what_one_thread_would_have_counted(left, right):
    merged, whole = Histogram.merged([filled(left), filled(right)]), filled(left + right)
    assert (merged.buckets, merged.count, merged.total, merged.largest) == (
        whole.buckets,
        whole.count,
        whole.total,
        whole.largest,
    )
    assert merged.mean == pytest.approx(sum(left + right) / len(left + right))


def test_extremes():
    histogram = filled([-5, 2**70])
    assert histogram.buckets[0] == 1
    assert histogram.buckets[-1] == 1
    assert Histogram().percentile(0.5) == 0
    assert Histogram().mean == 0.0


def test_a_registry_reads_when_asked():
    registry = Registry()
    count = 0
    registry.register("b_total", lambda: count)
    registry.register("a_bytes", lambda: 7)
    count = 3
    assert list(registry.read().items()) == [("a_bytes", 7), ("b_total", 3)]
    with pytest.raises(ValueError, match="a_bytes"):
        registry.register("a_bytes", lambda: 8)
