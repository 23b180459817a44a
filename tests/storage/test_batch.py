"""Batch and View against a dictionary model; rollback, flushing, digests, reclaiming, O(1) deletion."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.errors import Bug
from raftdb.storage import batch as batch_module
from raftdb.storage.kv import HASH, LIST, STRING, Head, KvStore
from raftdb.storage.verify import verify_kv

from . import model as m

MAP = 64 << 20


@pytest.fixture
def kv(tmp_path):
    store = KvStore.open(tmp_path / "kv", tmp_path / "kv.state", map_size_bytes=MAP)
    yield store
    store.close(clean=False)


def scratch():
    return Path(tempfile.mkdtemp(prefix="raftdb-kv-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


@contextmanager
def small_overlay(records_max):
    """Flush after a few records, in the middle of commands."""
    usual = batch_module.OVERLAY_RECORDS_MAX
    batch_module.OVERLAY_RECORDS_MAX = records_max
    try:
        yield
    finally:
        batch_module.OVERLAY_RECORDS_MAX = usual


@given(
    program=m.programs,
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    reclaim=st.integers(0, 7),
    overlay_max=st.sampled_from([0, 1, 3, 20_000]),
)
def test_against_a_dictionary(program, sizes, reclaim, overlay_max):
    path = scratch()
    try:
        one = KvStore.open(path / "one", None, map_size_bytes=MAP)
        other = KvStore.open(path / "other", None, map_size_bytes=MAP)
        model, again = m.Model(), m.Model()
        with small_overlay(overlay_max):
            m.run(one, model, program, sizes, reclaim)
        m.run(other, again, program, [1])
        with one.view() as view:
            m.compare_all(view, model)
        assert m.digests(one) == m.digests(other)
        with one.view() as a, other.view() as b:
            assert a.state() == b.state()
        one.close(clean=False)
        assert list(verify_kv(path / "one")) == []
        one = KvStore.open(path / "one", None, map_size_bytes=MAP)
        with one.view() as view:
            m.compare_all(view, model)
        one.close(clean=False)
        other.close(clean=False)
    finally:
        shutil.rmtree(path)


def put(kv, *pairs, db=0):
    batch = kv.batch()
    batch.begin(kv.applied + 1, kv.stamp, 0)
    for name, value in pairs:
        batch.put_string(db, name, value)
    batch.commit(batch.index, 1, batch.stamp, 0)


def test_a_rolled_back_command_leaves_no_trace_even_after_a_flush(kv):
    put(kv, (b"a", b"1"))
    batch = kv.batch()
    batch.begin(2, 0, 0)
    batch.put_string(0, b"b", b"2")
    batch.savepoint()
    batch.put_string(0, b"a", b"9", 77)
    batch.drop_head(0, b"b")
    batch.put_string(0, b"c", b"3")
    assert [name for _, name, _ in batch.scan_heads(0)] != []  # flushes
    batch.put_string(0, b"a", b"10")
    batch.rollback()
    batch.commit(2, 1, 0, 0)
    with kv.view() as view:
        assert {name: head.value for _, name, head in view.scan_heads(0)} == {b"a": b"1", b"b": b"2"}
        assert view.count(0) == 2
        assert view.expiring(0) == 0
        assert view.head(0, b"a").version == 1


def test_taking_and_putting_a_collection_back_keeps_it(kv):
    batch = kv.batch()
    batch.begin(1, 0, 0)
    collection = batch.new_collection()
    batch.put_field(collection, b"f", b"v")
    batch.put_head(0, b"h", Head(HASH, 0, 0, b"", collection, 1))
    batch.savepoint()
    head = batch.take_head(0, b"h")
    batch.put_head(1, b"x", head)
    batch.rollback()
    head = batch.take_head(0, b"h")
    batch.put_head(2, b"y", head)
    batch.commit(1, 1, 0, 0)
    batch = kv.batch()
    assert batch.reclaim(100) == 0
    assert batch.field(batch.head(2, b"y").collection, b"f") == b"v"
    batch.abort()


def test_deleting_costs_nothing_and_reclaiming_is_bounded(kv):
    batch = kv.batch()
    batch.begin(1, 0, 0)
    collection = batch.new_collection()
    for number in range(1000):
        batch.put_item(collection, number, b"x")
    batch.put_head(0, b"l", Head(LIST, 0, 0, b"", collection, 1000, 0, 999))
    batch.commit(1, 1, 0, 0)
    batch = kv.batch()
    batch.begin(2, 0, 0)
    batch.drop_head(0, b"l")
    batch.commit(2, 1, 0, 0)
    digest = kv.digest
    with kv.view() as view:
        assert view.count(0) == 0
    steps = 0
    while True:
        batch = kv.batch()
        removed = batch.reclaim(100)
        batch.commit(kv.applied, 1, 0, 0)
        assert removed <= 101
        if not removed:
            break
        steps += 1
    assert steps >= 10
    assert kv.digest == digest
    with kv.view() as view:
        assert view.item(collection, 5) is None


def test_a_flushed_database_is_empty_at_once_and_later_writes_are_seen(kv):
    put(kv, *((b"%d" % number, b"v") for number in range(500)), db=4)
    batch = kv.batch()
    batch.begin(2, 0, 0)
    batch.flush_db(4)
    assert batch.count(4) == 0
    batch.put_string(4, b"1", b"new")
    assert [name for _, name, _ in batch.scan_heads(4)] == [b"1"]
    batch.commit(2, 1, 0, 0)
    while True:
        batch = kv.batch()
        removed = batch.reclaim(99)
        batch.commit(2, 1, 0, 0)
        if not removed:
            break
    with kv.view() as view:
        assert [(name, head.value) for _, name, head in view.scan_heads(4)] == [(b"1", b"new")]
        assert view.count(4) == 1


def test_what_the_stamp_makes_due(kv):
    batch = kv.batch()
    batch.begin(1, 100, 0)
    for db, name, when in [(0, b"a", 300), (1, b"b", 200), (0, b"never", 0), (0, b"c", 400), (0, b"L" * 700, 250)]:
        batch.put_string(db, name, b"", when)
    batch.commit(1, 1, 100, 0)
    assert kv.earliest_expiry_ms() == 200
    batch = kv.batch()
    batch.begin(2, 300, 0)
    assert batch.due(199, 10) == []
    assert batch.due(300, 2) == [(1, b"b"), (0, b"L" * 700)]
    assert batch.due(300, 10) == [(1, b"b"), (0, b"L" * 700), (0, b"a")]
    for db, name in batch.due(300, 10):
        batch.drop_head(db, name)
    assert batch.due(300, 10) == []
    batch.commit(2, 1, 300, 0)
    assert kv.earliest_expiry_ms() == 400


def test_an_aborted_batch_changes_nothing(kv):
    put(kv, (b"a", b"1"))
    batch = kv.batch()
    batch.begin(2, 5, 0)
    batch.put_string(0, b"a", b"2", 50)
    batch.abort()
    assert kv.applied == 1
    assert kv.earliest_expiry_ms() == 0
    with kv.view() as view:
        assert view.head(0, b"a").value == b"1"


def test_entries_go_forward_only(kv):
    batch = kv.batch()
    batch.begin(3, 10, 0)
    with pytest.raises(Bug):
        batch.begin(3, 10, 0)
    with pytest.raises(Bug):
        batch.begin(4, 9, 0)
    with pytest.raises(Bug):
        kv.batch()
    batch.abort()


def test_a_view_sees_its_moment(kv):
    put(kv, (b"a", b"1"))
    with kv.view() as view:
        put(kv, (b"a", b"2"))
        assert view.head(0, b"a").value == b"1"
        assert view.applied == 1
    with kv.view() as view:
        assert view.head(0, b"a").value == b"2"


def test_scores_order_as_doubles(kv):
    members = [(float("-inf"), b"a"), (-2.5, b"m"), (-0.0, b"x"), (0.0, b"y"), (1e-300, b"q"), (7.0, b"L" * 500)]
    members += [(7.0, b"M"), (float("inf"), b"z")]
    batch = kv.batch()
    batch.begin(1, 0, 0)
    collection = batch.new_collection()
    for score, member in members:
        batch.put_score(collection, score, member)
    assert list(batch.scan_scores(collection)) == members
    assert list(batch.scan_scores(collection, reverse=True)) == members[::-1]
    assert list(batch.scan_scores(collection, -2.5, 7.0)) == members[1:7]
    assert list(batch.scan_scores(collection, 7.0, 7.0, member_from=b"M")) == [(7.0, b"M")]
    batch.delete_score(collection, 7.0, b"L" * 500)
    batch.commit(1, 1, 0, 0)
    with kv.view() as view:
        assert len(list(view.scan_scores(collection))) == 7
        assert list(view.scan_scores(collection, reverse=True, member_from=b"z", low=1.0)) == [(7.0, b"M")]


def test_many_records_in_one_batch_are_written_in_pages(kv):
    batch = kv.batch()
    for index in range(1, 60):
        batch.begin(index, 0, 0)
        for number in range(500):
            batch.put_string(0, b"%d-%d" % (index, number), b"v")
    assert sum(1 for _ in batch.scan_heads(0)) == 59 * 500
    batch.commit(59, 1, 0, 0)
    with kv.view() as view:
        assert view.count(0) == 59 * 500
        assert view.head(0, b"3-77") == Head(STRING, 0, 3, b"v")


def test_iteration_over_what_the_loop_deletes(kv):
    batch = kv.batch()
    batch.begin(1, 0, 0)
    for number in range(300):
        batch.put_string(0, b"%d" % number, b"v")
    seen = 0
    for _, name, _ in batch.scan_heads(0):
        batch.drop_head(0, name)
        seen += 1
    assert seen == 300
    assert batch.count(0) == 0
    batch.abort()


def test_long_work_breathes(kv):
    breaths = []
    batch = kv.batch()
    batch.breathe = lambda: breaths.append(1)
    batch.begin(1, 0, 0)
    collection = batch.new_collection()
    for number in range(50_000):
        batch.put_item(collection, number, b"x")
    batch.put_head(0, b"l", Head(LIST, 0, 0, b"", collection, 50_000, 0, 49_999))
    assert len(breaths) > 50  # flushed on the way
    before = len(breaths)
    batch.commit(1, 1, 0, 0)
    assert len(breaths) - before > 100
    batch = kv.batch()
    batch.breathe = lambda: breaths.append(1)
    batch.begin(2, 0, 0)
    batch.drop_head(0, b"l")
    before = len(breaths)
    assert batch.reclaim(60_000) == 50_001
    assert len(breaths) - before > 90
    batch.abort()


def test_the_digest_of_many_changes_does_not_depend_on_their_order(tmp_path):
    digests = set()
    for turn in (1, -1):
        store = KvStore.open(tmp_path / f"kv{turn}", None, map_size_bytes=MAP)
        batch = store.batch()
        batch.begin(1, 0, 0)
        for number in list(range(9000))[::turn]:
            batch.put_string(0, b"%d" % number, b"v")
        batch.commit(1, 1, 0, 0)
        digests.add(store.digest)
        store.close(clean=False)
    assert len(digests) == 1
