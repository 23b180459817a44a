"""Small forms of `make catch-up` and `make failover`: a follower that was away, a flood of clients, a killed leader."""

from __future__ import annotations

import pytest

from tests.e2e import catch_up, failover

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WRITES = 20_000
SECONDS = 1.5


@pytest.mark.parametrize("part", ["log", "snapshot"])
def test_a_follower_that_was_away_catches_up_while_writes_go_on(tmp_path, part):
    outcome = catch_up.catch_up(tmp_path / "cluster", part, WRITES)
    assert outcome.writes >= WRITES
    assert outcome.writes_meanwhile > 0
    assert (outcome.snapshots_installed > 0) == (part == "snapshot")
    assert max(outcome.growth_mib.values()) <= catch_up.MEMORY_MAX_MIB, outcome


def test_clients_that_send_more_than_the_disks_take_fill_no_memory(tmp_path):
    outcome = catch_up.flood(tmp_path / "cluster", "values", SECONDS)
    assert outcome.writes > 30
    assert max(outcome.growth_mib.values()) <= catch_up.MEMORY_MAX_MIB, outcome


def test_the_same_with_slow_disks(tmp_path, require):
    outcome = catch_up.flood(tmp_path / "cluster", "slow-disk", SECONDS, require("strace"))
    assert outcome.writes > 30
    assert max(outcome.growth_mib.values()) <= catch_up.MEMORY_MAX_MIB, outcome


def test_writes_resume_after_each_kill_of_the_leader(tmp_path):
    kills = failover.kill_leaders(tmp_path / "cluster", 2, seed=1)
    assert len(kills) == 2
    assert all(0 < kill.first_s <= kill.all_s for kill in kills)


def test_the_figures_of_failovers():
    kills = [failover.Kill(n / 10, n / 5) for n in range(1, 31)]
    assert failover.summary(kills) == {
        "first_p50_s": 1.55,
        "first_p90_s": 2.7,
        "first_worst_s": 3.0,
        "all_p50_s": 3.1,
        "all_p90_s": 5.4,
        "all_worst_s": 6.0,
    }
