"""The log: commits against a list model, the cache, truncation, install, trimming, damage, refusals."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.errors import Bug, Damaged, EntryDamaged, UsageError
from raftdb.storage import codec, records
from raftdb.storage.checksum import crc32c
from raftdb.storage.codec import LOG_META
from raftdb.storage.log import META_NAMES, Log, read_meta
from raftdb.types import HardState, NodeRef

from .build import MAP_BYTES, MEMBERS, THREE, entries, entry, persist, snapshot_meta


def make(path, **options):
    Log.create(path, incarnation=9, membership=MEMBERS, map_size_bytes=MAP_BYTES, **options)
    return Log.open(path, map_size_bytes=MAP_BYTES)


def reopen(log, path, **options):
    log.close()
    return Log.open(path, map_size_bytes=MAP_BYTES, **options)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log"


def tamper(path, database, change):
    """Change raw records: change(transaction, database)."""
    env = lmdb.open(str(path), max_dbs=4, map_size=MAP_BYTES)
    with env.begin(write=True) as transaction:
        change(transaction, env.open_db(database, txn=transaction))
        number = transaction.id().to_bytes(8, "little")
        commit = number + crc32c(number).to_bytes(4, "little")
        transaction.put(b"commit", commit, db=env.open_db(b"meta", txn=transaction))
    env.close()


def test_what_is_committed_is_there_after_opening(path):
    log = make(path)
    made = entries(1, 20)
    hard = HardState(3, NodeRef("n2", 77))
    log.commit(persist(hard=hard, entries=made, membership=THREE, previous=MEMBERS))
    assert log.start() == 1
    log = reopen(log, path)
    assert log.start() == 2
    assert (log.first, log.last, log.hard, log.incarnation) == (1, 20, hard, 9)
    assert (log.membership, log.previous_membership) == (THREE, MEMBERS)
    assert log.entries(1, 20, 10**9) == list(made)
    assert list(log.walk()) == list(made)
    assert [log.term(i) for i in (0, 1, 20)] == [0, 1, 1]
    assert log.chain(20) == made[-1].chain
    assert log.stamp(20) == 200
    log.close()


def test_entries_stop_at_the_bound_but_give_at_least_one(path):
    log = make(path)
    log.commit(persist(entries=entries(1, 10, payload=lambda index: b"x" * 100)))
    for _ in range(2):  # from the cache, then from the disk
        assert len(log.entries(1, 10, 1)) == 1
        assert len(log.entries(1, 10, 250)) == 2
        assert len(log.entries(3, 10, 10**6)) == 8
        with pytest.raises(IndexError):
            log.entries(5, 11, 10)
        with pytest.raises(IndexError):
            log.entries(0, 5, 10)
        log = reopen(log, path)
    log.close()


class ListModel:
    def __init__(self):
        self.base = entry(0, 0)._replace(term=0, chain=0, stamp=0)
        self.items = []

    def at(self, index):
        return self.base if index == self.base.index else self.items[index - self.base.index - 1]

    @property
    def last(self):
        return self.items[-1] if self.items else self.base


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 6), st.integers(0, 2)),
        st.tuples(st.just("truncate"), st.integers(0, 8), st.integers(0, 3)),
        st.tuples(st.just("trim"), st.integers(0, 8), st.integers(1, 4)),
        st.tuples(st.just("install"), st.integers(0, 8), st.booleans()),
        st.tuples(st.just("reopen"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@given(steps, st.sampled_from([1, 700, 1 << 20]))
def test_against_a_list(program, cache_bytes):
    path = Path(tempfile.mkdtemp(prefix="raftdb-log-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        Log.create(path / "log", incarnation=9, membership=MEMBERS, map_size_bytes=MAP_BYTES)
        log = Log.open(path / "log", map_size_bytes=MAP_BYTES, cache_bytes_max=cache_bytes)
        model = ListModel()
        for step in program:
            log = do_step(log, model, path, step, cache_bytes)
            compare(log, model)
        log.close()
    finally:
        shutil.rmtree(path)


def do_step(log, model, path, step, cache_bytes):
    verb, one, two = step
    if verb == "append":
        last = model.last
        made = []
        for number in range(one):
            made.append(entry(last.chain, last.index + 1, last.term + (two if number == 0 else 0), b"p" * number))
            last = made[-1]
        log.commit(persist(entries=tuple(made)))
        model.items += made
    elif verb == "truncate" and model.items:
        index = max(model.base.index + 1, model.last.index - one)
        keep = model.items[: index - model.base.index - 1]
        last = keep[-1] if keep else model.base
        made = entries(index, two, last.chain, max(1, model.last.term + 1))
        log.commit(persist(truncate_from=index, entries=made))
        model.items = [*keep, *made]
    elif verb == "trim":
        first = min(model.base.index + 1 + one, model.last.index + 1)
        while log.trim(first, two):
            pass
        model.items, model.base = model.items[first - model.base.index - 1 :], model.at(first - 1)
    elif verb == "install":
        install(log, model, one, two)
    elif verb == "reopen":
        log = reopen(log, path / "log", cache_bytes_max=cache_bytes)
    return log


def install(log, model, distance, keep):
    if keep and model.items:
        index = max(model.base.index + 1, model.last.index - distance)
        point = model.at(index)
        log.commit(persist(install=snapshot_meta(index, point.term, point.chain), keep_suffix=True))
        model.items, model.base = model.items[index - model.base.index :], point
    else:
        index = model.last.index + distance
        point = entry(5, index, model.last.term + 1)
        log.commit(persist(install=snapshot_meta(index, point.term, point.chain)))
        model.items, model.base = [], point
    assert log.snapshot.index == index


def compare(log, model):
    assert (log.first - 1, log.last) == (model.base.index, model.last.index)
    for index in range(model.base.index, model.last.index + 1):
        found = model.at(index)
        assert (log.term(index), log.chain(index), log.stamp(index)) == (found.term, found.chain, found.stamp)
    if model.items:
        assert log.entries(log.first, log.last, 10**9) == model.items
        assert log.read(log.first, log.last, 10**9) == model.items
    assert log.check(log.first - 1) == []
    assert log.bytes_after(log.last) == 0
    assert log.bytes_after(log.first - 1) >= 0


def test_what_would_break_an_invariant_is_refused_and_changes_nothing(path):
    log = make(path)
    made = entries(1, 5)
    log.commit(persist(hard=HardState(4, None), entries=made))
    last = made[-1]
    refused = [
        persist(entries=(entry(last.chain, 7),)),  # a gap
        persist(entries=(entry(last.chain ^ 1, 6),)),  # another history
        persist(entries=(entry(last.chain, 6)._replace(chain=1),)),
        persist(entries=(entry(last.chain, 6, term=0),)),  # the term goes back
        persist(entries=(entry(last.chain, 6, stamp=1),)),  # the stamp goes back
        persist(hard=HardState(3, None)),
        persist(truncate_from=0),
        persist(rewrite=(entry(0, 9),)),
        persist(rewrite=(made[2]._replace(payload=b"other"),)),
        persist(install=snapshot_meta(3, 9, 1), keep_suffix=True),
    ]
    for change in refused:
        with pytest.raises(Bug):
            log.commit(change)
        assert log.entries(1, 5, 10**9) == list(made)
    with pytest.raises(Bug):
        log.add_snapshot(snapshot_meta(3, 2, 1))
    log = reopen(log, path)
    assert log.entries(1, 5, 10**9) == list(made)
    assert log.hard == HardState(4, None)
    log.close()


def test_a_damaged_entry_is_named_and_refilled_in_place(path):
    log = make(path)
    made = entries(1, 10)
    log.commit(persist(entries=made))
    log.close()
    broken = bytearray(records.encode(made[3]))
    broken[-1] ^= 4
    tamper(path, b"entries", lambda txn, db: txn.put(records.key(4), bytes(broken), db=db))
    log = Log.open(path, map_size_bytes=MAP_BYTES)
    assert log.check(0) == [4]
    assert log.check(4) == []
    with pytest.raises(EntryDamaged) as caught:
        log.entries(4, 10, 10**9)
    assert caught.value.index == 4
    assert log.entries(1, 10, 10**9) == list(made[:3])
    assert log.entries(5, 10, 10**9) == list(made[4:])
    log.commit(persist(rewrite=(made[3],)))
    assert log.check(0) == []
    assert log.entries(1, 10, 10**9) == list(made)
    log.close()


def test_a_missing_entry_and_a_foreign_one_are_found(path):
    log = make(path)
    made = entries(1, 10)
    log.commit(persist(entries=made))
    log.close()
    foreign = entry(12345, 7, payload=b"from another history")

    def change(txn, db):
        txn.delete(records.key(3), db=db)
        txn.put(records.key(7), records.encode(foreign), db=db)

    tamper(path, b"entries", change)
    log = Log.open(path, map_size_bytes=MAP_BYTES)
    assert log.check(0) == [3, 7, 8]  # 8 does not continue the foreign 7
    with pytest.raises(EntryDamaged):
        log.entries(3, 5, 10**9)
    log.close()


def test_a_vanished_end_is_not_taken_for_a_shorter_log(path):
    log = make(path)
    log.commit(persist(entries=entries(1, 10)))
    log.close()
    tamper(path, b"entries", lambda txn, db: txn.delete(records.key(10), db=db))
    with pytest.raises(Damaged):
        Log.open(path, map_size_bytes=MAP_BYTES)


def test_a_damaged_last_entry_keeps_its_term_and_chain(path):
    log = make(path)
    made = entries(1, 10, term=3)
    log.commit(persist(entries=made))
    log.close()
    tamper(path, b"entries", lambda txn, db: txn.put(records.key(10), b"rot", db=db))
    log = Log.open(path, map_size_bytes=MAP_BYTES)
    assert (log.last, log.term(10), log.chain(10)) == (10, 3, made[-1].chain)
    assert log.check(9) == [10]
    log.close()


@pytest.mark.parametrize("name", META_NAMES, ids=bytes.decode)
def test_every_flip_in_meta_is_found_when_opening(path, name):
    log = make(path)
    log.commit(persist(hard=HardState(3, NodeRef("n2", 77)), entries=entries(1, 3)))
    log.close()
    env = lmdb.open(str(path), max_dbs=4, map_size=MAP_BYTES)
    database = env.open_db(b"meta")
    with env.begin() as txn:
        sound = {one: txn.get(one, db=database) for one in META_NAMES}
        value = sound[name]
    for bit in range(len(value) * 8):
        broken = bytearray(value)
        broken[bit // 8] ^= 1 << bit % 8
        stored = {**sound, name: bytes(broken)}
        with pytest.raises(Damaged):
            read_meta(stored.get)
    with env.begin(write=True, db=database) as txn:
        txn.delete(name)
    env.close()
    with pytest.raises(Damaged):
        Log.open(path, map_size_bytes=MAP_BYTES)


def test_a_newer_format_is_refused(path):
    log = make(path)
    log.close()
    value = codec.seal(LOG_META, b"format", codec.pack((2,)))
    tamper(path, b"meta", lambda txn, db: txn.put(b"format", value, db=db))
    with pytest.raises(UsageError, match="newer raftdb"):
        Log.open(path, map_size_bytes=MAP_BYTES)


def test_two_snapshots_are_remembered(path):
    log = make(path)
    made = entries(1, 10)
    log.commit(persist(entries=made))
    for index in (3, 6, 9):
        log.add_snapshot(snapshot_meta(index, 1, made[index - 1].chain, f"s{index}.dat"))
    log = reopen(log, path)
    assert (log.snapshot.name, log.previous_snapshot.name) == ("s9.dat", "s6.dat")
    log.close()


def test_renewing_forgets_the_vote_but_not_the_term(path):
    log = make(path)
    log.commit(persist(hard=HardState(6, NodeRef("n2", 7))))
    log.renew(4711)
    log = reopen(log, path)
    assert (log.incarnation, log.hard) == (4711, HardState(6, None))
    log.close()


def test_another_process_can_read_and_follow(path):
    log = make(path)
    made = entries(1, 10)
    log.commit(persist(entries=made[:5]))
    with pytest.raises(Bug):
        Log.open(path, read_only=True, unclean=False)
    log.close()
    reader = Log.open(path, read_only=True, unclean=False)
    assert reader.last == 5
    reader.refresh()
    assert reader.entries(1, 5, 10**9) == list(made[:5])
    reader.close()


def test_bytes_after_follows_what_was_appended(path):
    log = make(path)
    log.commit(persist(entries=entries(1, 100, payload=lambda index: b"x" * 100_000)))
    whole = log.bytes_after(0)
    assert 100 * 100_000 <= whole - log._mark_bytes[0] <= 100 * 100_100 + 4096 * 10
    half = log.bytes_after(50)
    assert abs(half - whole / 2) < 1 << 20
    log.commit(persist(truncate_from=51))
    assert abs(log.bytes_after(0) - half) < 1 << 20
    log.close()


def broken_log(path, count, index):
    """A log of `count` entries whose entry `index` is damaged."""
    log = make(path)
    made = entries(1, count)
    log.commit(persist(entries=made))
    log.close()
    tamper(path, b"entries", lambda txn, db: txn.put(records.key(index), b"rot", db=db))
    return Log.open(path, map_size_bytes=MAP_BYTES), made


def test_a_snapshot_of_a_damaged_entry_keeps_the_suffix_that_follows_it(path):
    log, made = broken_log(path, 10, 6)
    with pytest.raises(Bug):
        log.commit(persist(install=snapshot_meta(6, 1, 12345), keep_suffix=True))
    log.commit(persist(install=snapshot_meta(6, 1, made[5].chain), keep_suffix=True))
    assert (log.first, log.last, log.check(6)) == (7, 10, [])
    log = reopen(log, path)
    assert log.entries(7, 10, 10**9) == list(made[6:])
    log.close()


def test_a_refill_and_a_truncation_behind_it_in_one_commit(path):
    log, made = broken_log(path, 10, 6)
    new = entries(7, 2, made[5].chain, term=2)
    log.commit(persist(truncate_from=7, rewrite=(made[5],), entries=new))
    assert log.entries(1, 8, 10**9) == [*made[:6], *new]
    assert log.check(0) == []
    log.close()


def test_a_damaged_entry_does_not_become_the_base(path):
    log, made = broken_log(path, 10, 6)
    assert log.trim(7, 100) == 5
    assert (log.first, log.term(5), log.chain(5)) == (6, 1, made[4].chain)
    assert log.trim(9, 100) == 3
    assert (log.first, log.check(8)) == (9, [])
    log.close()


def test_a_snapshot_heals_what_lies_below_it(path):
    log, made = broken_log(path, 10, 6)
    log.add_snapshot(snapshot_meta(6, 1, made[5].chain))
    with pytest.raises(Bug):
        log.add_snapshot(snapshot_meta(7, 2, made[6].chain))
    log.close()
