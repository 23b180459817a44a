"""Reads without a round of their own must not show less than another member has shown already (lease.py, hole 7)."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from raftdb import clock
from raftdb.consensus.lease import Lease
from raftdb.node.reads import Reads


def reads_of(floor: int, members: int, lease: Lease) -> Reads:
    core = SimpleNamespace(read_floor=floor)
    log = SimpleNamespace(membership=SimpleNamespace(members=(None,) * members))
    return Reads(SimpleNamespace(core=core, log=log, lease=lease, applier=SimpleNamespace(known=0)), SimpleNamespace())


@pytest.fixture
def lease() -> Lease:
    held = Lease(600, 750, 50)
    held.until_ms = int(clock.boottime() * 1000) + 60_000
    return held


def test_a_lease_does_not_cover_a_view_that_lacks_what_is_committed(lease):
    reads = reads_of(floor=5, members=3, lease=lease)
    assert reads.lease_holds()
    assert not reads._leased(3)
    assert not reads._leased(4)
    assert reads._leased(5)
    lease.end()
    assert not reads._leased(5)


def test_a_sole_voter_with_learners_does_not_answer_from_such_a_view_either(lease):
    reads = reads_of(floor=5, members=2, lease=lease)
    reads.at_once = True
    assert not reads._alone(3)
    assert reads._alone(5)
    alone = reads_of(floor=5, members=1, lease=lease)
    assert not alone._alone(5)
    alone.at_once = True
    assert alone._alone(3)  # nobody else could have shown more
