"""Stamps and leases: arithmetic over given times."""

from __future__ import annotations

import random

import pytest

from raftdb.consensus.lease import ROUNDS_MAX, Lease, lease_ms_max
from raftdb.consensus.ready import Ready, Released
from raftdb.consensus.stamp import CLOCK_AGE_MAX_MS, Deviation, StampClock, WallClocks, deviation
from tests.consensus.cluster import ref

# --- stamps ---------------------------------------------------------------------------------------------------------


def test_behind_the_target_it_steps() -> None:
    clock = StampClock(1_000, 0)
    assert clock.next(50_000, 10) == 50_000
    assert clock.next(50_007, 20) == 50_007


def test_ahead_of_the_target_it_goes_at_half_speed_and_never_stands_still() -> None:
    clock = StampClock(100_000, 0)
    assert [clock.next(1_000, mono) for mono in (0, 1, 2, 3, 10, 1_000)] == [
        100_000, 100_000, 100_001, 100_001, 100_005, 100_500,
    ]  # fmt: skip


def test_half_speed_until_the_target_has_caught_up() -> None:
    """Asked every millisecond, no fraction is lost: 10 s ahead takes 20 s."""
    clock = StampClock(10_000, 0)
    stamps = [clock.next(mono, mono) for mono in range(25_000)]
    assert stamps == sorted(stamps)
    assert stamps[19_998] == 19_999
    assert stamps[20_100] == 20_100


def test_without_a_quorum_of_clocks_it_goes_on_slowly() -> None:
    assert StampClock(1_000, 0).next(None, 500) == 1_250


def test_it_continues_from_the_log() -> None:
    clock = StampClock(0, 0)
    clock.observe(7_000, 100)
    clock.observe(6_000, 200)
    assert clock.next(5_000, 300) == 7_100


@pytest.mark.parametrize("seed", range(20))
def test_stamps_never_fall(seed: int) -> None:
    chance = random.Random(seed)
    clock = StampClock(chance.randrange(10**6), 0)
    mono = 0
    last = 0
    for _ in range(300):
        mono += chance.randrange(2_000)
        if chance.random() < 0.2:
            clock.observe(chance.randrange(2 * 10**6), mono)
        target = None if chance.random() < 0.1 else chance.randrange(2 * 10**6)
        stamp = clock.next(target, mono)
        assert stamp >= last
        last = stamp


def test_one_wrong_clock_of_three_moves_nothing() -> None:
    voters = [ref(name) for name in ("n1", "n2", "n3")]
    for wrong in (0, 10**12):
        clocks = WallClocks()
        clocks.hear(voters[1], 5_000, 0)
        clocks.hear(voters[2], wrong, 0)
        assert clocks.target(voters[0], 5_010, voters, 0) in (5_000, 5_010)


def test_clocks_go_on_between_heartbeats_and_are_forgotten_when_old() -> None:
    voters = [ref(name) for name in ("n1", "n2", "n3")]
    clocks = WallClocks()
    assert clocks.target(voters[0], 1_000, voters, 0) is None
    clocks.hear(voters[1], 900, 0)
    assert clocks.target(voters[0], 2_000, voters, 1_000) == 1_900
    assert clocks.target(voters[0], 2_000, voters, CLOCK_AGE_MAX_MS + 1) is None
    assert clocks.target(voters[0], 2_000, voters[:1], 0) == 2_000
    clocks.forget_all_but([voters[0]])
    assert not clocks.heard


def test_deviation() -> None:
    assert [deviation(50_000, t) for t in (None, 49_000, 48_999, 20_000, 19_999, 80_001)] == [
        Deviation.FINE, Deviation.FINE, Deviation.WARN, Deviation.WARN, Deviation.UNFIT, Deviation.UNFIT,
    ]  # fmt: skip


# --- leases ---------------------------------------------------------------------------------------------------------


def ready(number: int = 0, lease_end: bool = False) -> Ready:
    return Ready((), None, False, number, lease_end, False)


def released(confirmed: int = 0, lease: int = 0) -> Released:
    return Released((), 0, (), None, None, confirmed, lease)


def a_lease() -> Lease:
    return Lease(600, 750, 50)


def test_a_lease_must_be_shorter_than_the_election_timeout() -> None:
    assert lease_ms_max(750, 50) == 625
    Lease(625, 750, 50)
    with pytest.raises(ValueError, match="election timeout"):
        Lease(626, 750, 50)


def test_it_counts_from_the_sending() -> None:
    lease = a_lease()
    lease.before_send(ready(1), 1_000)
    lease.after_persist(released(1, 1))
    assert lease.holds(1_599)
    assert not lease.holds(1_600)
    assert lease.age_ms(1_500) == 500


def test_an_unknown_round_gives_nothing() -> None:
    lease = a_lease()
    lease.after_persist(released(5, 5))
    assert not lease.holds(0)
    assert lease.age_ms(0) is None


def test_a_confirmed_round_that_may_not_count_gives_freshness_only() -> None:
    lease = a_lease()
    lease.before_send(ready(1), 1_000)
    lease.after_persist(released(1, 0))
    assert not lease.holds(1_001)
    assert lease.age_ms(1_010) == 10


def test_the_end_comes_before_the_sending() -> None:
    lease = a_lease()
    lease.before_send(ready(1), 1_000)
    lease.after_persist(released(1, 1))
    lease.before_send(ready(2, lease_end=True), 1_100)
    assert not lease.holds(1_100)
    lease.after_persist(released(2, 2))
    assert lease.holds(1_699)


def test_rounds_of_a_new_term_start_again() -> None:
    """Round 1 of this term must not be taken for round 1 of the former one."""
    lease = a_lease()
    for number in (1, 2, 3):
        lease.before_send(ready(number), 1_000 * number)
    lease.before_send(ready(1), 9_000)
    lease.after_persist(released(1, 1))
    assert lease.until_ms == 9_600
    lease.after_persist(released(3, 3))
    assert lease.until_ms == 9_600


def test_a_late_confirmation_never_shortens() -> None:
    lease = a_lease()
    lease.before_send(ready(1), 1_000)
    lease.before_send(ready(2), 1_100)
    lease.after_persist(released(2, 2))
    lease.after_persist(released(1, 1))
    assert lease.until_ms == 1_700


def test_a_view_from_before_the_lease_is_not_answered_from() -> None:
    """Found by the simulator: opened at 4, before the no-op 6 and the predecessor's entry 5 were applied."""
    lease = a_lease()
    lease.before_send(ready(1), 1_000)
    lease.after_persist(released(1, 1))
    assert not lease.holds_for(4, 6, 1_100)
    assert not lease.holds_for(5, 6, 1_100)
    assert lease.holds_for(6, 6, 1_100)
    assert not lease.holds_for(6, 6, 1_600)
    assert not lease.holds_for(0, 0, 1_100), "never led"


def test_a_view_that_lags_behind_the_commit_index_is_not_answered_from() -> None:
    """Found by the simulator: 5 is committed, a follower has served it; the leader has applied 3."""
    lease = a_lease()
    lease.before_send(ready(1), 1_000)
    lease.after_persist(released(1, 1))
    assert not lease.holds_for(3, 5, 1_100)
    assert lease.holds_for(5, 5, 1_100)


def test_memory_is_bounded() -> None:
    lease = a_lease()
    for number in range(1, 10 * ROUNDS_MAX):
        lease.before_send(ready(number), number)
    assert len(lease.sent) == ROUNDS_MAX
