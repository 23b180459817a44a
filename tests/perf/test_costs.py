"""The regression guard: no stage of a command's road may cost 1.3 times what the baseline says (tests/perf/costs.py).

Whoever makes a stage cheaper, or dearer for a reason, writes a new baseline (`python -m tests.perf.costs --write`) and
says so in the commit.
"""

from __future__ import annotations

import pytest

from raftdb_tools.bench.stages import PIPELINE, VALUE, Workbench, on_wire
from tests.perf import costs


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return costs.measure(tmp_path_factory.mktemp("costs"))


def baseline() -> dict[str, float]:
    known = costs.baselines()
    if costs.VERSION not in known:
        pytest.skip(
            f"no baseline for Python {costs.VERSION}: its bytecode differs from that of {', '.join(sorted(known))}"
        )
    return known[costs.VERSION]


def test_no_stage_has_become_slower(measured):
    assert costs.slower(measured, baseline()) == []


def test_every_stage_is_guarded(measured):
    assert set(measured) == set(baseline())


def test_a_slow_down_of_one_and_a_half_is_noticed(measured):
    """Each stage in turn made half as dear again: the guard names exactly that one."""
    for stage in baseline():
        slowed = {**baseline(), stage: baseline()[stage] * 1.5}
        assert [line.partition(":")[0] for line in costs.slower(slowed, baseline())] == [stage]


def test_the_count_is_the_same_twice_and_grows_with_the_work(tmp_path):
    bench = Workbench(tmp_path / "bench")
    data = b"".join(on_wire([b"SET", b"k%d" % n, VALUE]) for n in range(PIPELINE))
    once = costs.cost_of(lambda: bench.parse(data))
    assert once == costs.cost_of(lambda: bench.parse(data))
    assert costs.cost_of(lambda: [bench.parse(data) for _ in range(3)]) == pytest.approx(3 * once, rel=0.1)
    bench.close()
