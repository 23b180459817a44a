"""Lists against Python's, with everything that makes them irregular."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftdb.commands.context import Context
from raftdb.commands.sequence import HOLES, INDEX_BASE, LEVEL_BITS, LEVELS, REGULAR, STRIDE_BITS, List
from raftdb.storage.kv import ITEMS, KvStore

from .replica import START_MS


class Model:
    """A list of ours and one of Python's, changed together inside one batch."""

    def __init__(self, kv: KvStore) -> None:
        self.batch = kv.batch()
        self.batch.begin(kv.applied + 1, START_MS, 0)
        self.ctx = Context(self.batch, self.batch, now=START_MS, index=1)
        self.expected: list[bytes] = []
        self.number = 0

    @property
    def list(self) -> List:
        self.batch.savepoint()  # each change is a command of its own
        return List(self.ctx, b"l").load()

    def fresh(self, count: int) -> list[bytes]:
        self.number += count
        return [b"%d" % n for n in range(self.number - count, self.number)]

    def push(self, left: bool, count: int) -> None:
        values, ours = self.fresh(count), self.list
        ours.push(values, left)
        ours.save()
        self.expected = values[::-1] + self.expected if left else self.expected + values

    def pop(self, left: bool, count: int) -> None:
        ours, count = self.list, min(count, len(self.expected))
        if not count:
            return
        popped = ours.pop(count, left)
        ours.save()
        gone = self.expected[:count] if left else self.expected[::-1][:count]
        assert popped == gone
        self.expected = self.expected[count:] if left else self.expected[:-count]

    def remove(self, ranks: list[int]) -> None:
        ours, size = self.list, len(self.expected)
        chosen = sorted({rank % size for rank in ranks}) if size else []
        if not chosen:
            return
        labels = [label for label, _ in ours.rows()]
        ours.remove([labels[rank] for rank in chosen])
        ours.compact()
        ours.save()
        gone = set(chosen)
        self.expected = [value for rank, value in enumerate(self.expected) if rank not in gone]

    def insert(self, rank: int, before: bool, count: int) -> None:
        """Always beside the same neighbour, which uses the room between labels up."""
        if not self.expected:
            return
        rank %= len(self.expected)
        for value in self.fresh(count):
            ours = self.list
            ours.insert(ours.label(rank), value, before)
            ours.save()
            self.expected.insert(rank if before else rank + 1, value)

    def trim(self, start: int, stop: int) -> None:
        ours, size = self.list, len(self.expected)
        start, stop = (start % size, stop % size) if size else (0, 0)
        if start < stop:
            ours.trim(start, stop)
            ours.save()
            self.expected = self.expected[start:stop]

    def check(self, ranks: range | list[int] | None = None) -> None:
        ours = self.list
        assert [value for _, value in ours.rows()] == self.expected
        assert [value for _, value in ours.rows(reverse=True)] == self.expected[::-1]
        for rank in range(len(self.expected)) if ranks is None else ranks:
            assert ours.get(rank) == self.expected[rank], rank
        check_index(ours)


def check_index(ours: List) -> None:
    """The invariants in the head of sequence.py."""
    if not ours.count:
        return
    labels = [label for label, _ in ours.rows()]
    assert (labels[0], labels[-1], len(labels)) == (ours.first, ours.last, ours.count)
    low, high = ours.first >> STRIDE_BITS, ours.last >> STRIDE_BITS
    wanted: dict[int, dict[int, int]] = {level: {} for level in range(LEVELS)}
    if ours.form != REGULAR:
        counts: dict[int, int] = dict.fromkeys(range(low, high + 1), -1)
        for label in labels:
            counts[label >> STRIDE_BITS] += 1
        for level in range(LEVELS):
            for slot, excess in counts.items():
                prefix = slot >> level * LEVEL_BITS
                wanted[level][prefix] = wanted[level].get(prefix, 0) + excess
    for level in range(LEVELS):
        nodes = dict(ours._nodes(level, -(1 << 52), 1 << 52))
        assert nodes == {prefix: excess for prefix, excess in wanted[level].items() if excess}, level


@pytest.fixture
def model(replica):
    model = Model(replica.kv)
    yield model
    model.batch.abort()


counts = st.integers(1, 40)
ranks = st.integers(0, 10_000)
steps = st.one_of(
    st.tuples(st.just("push"), st.booleans(), counts),
    st.tuples(st.just("pop"), st.booleans(), counts),
    st.tuples(st.just("remove"), st.lists(ranks, min_size=1, max_size=30)),
    st.tuples(st.just("insert"), ranks, st.booleans(), counts),
    st.tuples(st.just("trim"), ranks, ranks),
)


@settings(max_examples=150)
@given(plan=st.lists(steps, min_size=1, max_size=12))
def test_a_list_is_what_pythons_list_is(tmp_path_factory, plan):
    kv = KvStore.open(tmp_path_factory.mktemp("kv"), None, map_size_bytes=1 << 30)
    model = Model(kv)
    try:
        for name, *arguments in plan:
            getattr(model, name)(*arguments)
        model.check()
    finally:
        model.batch.abort()
        kv.close(clean=False)


def test_pushing_and_popping_keep_a_list_regular(model):
    model.push(False, 50)
    model.push(True, 50)
    model.pop(True, 30)
    model.pop(False, 5)
    model.check()
    assert model.list.form == REGULAR
    assert not list(model.ctx.txn.scan_items(model.list.collection, INDEX_BASE, (1 << 63) - 1))


def test_many_insertions_at_one_place(model):
    model.push(False, 600)
    model.insert(300, True, 3_000)
    model.check(range(0, 3_600, 7))
    model.insert(1_000, False, 2_000)
    model.check(range(0, 5_600, 13))


def test_insertions_everywhere(model):
    chance = random.Random(7)
    model.push(False, 100)
    for _ in range(2_000):
        model.insert(chance.randrange(len(model.expected)), chance.random() < 0.5, 1)
    model.check(range(0, 2_100, 11))


def test_holes_everywhere_and_then_popping_to_the_end(model):
    model.push(False, 3_000)
    model.remove([rank for rank in range(3_000) if rank % 5 in (1, 2)])
    assert model.list.form == HOLES
    model.check(range(0, 1_800, 17))
    while model.expected:
        model.pop(len(model.expected) % 2 == 0, 190)
        model.check(range(0, len(model.expected), 29))


def test_a_list_whose_holes_are_popped_away_is_regular_again(model):
    model.push(False, 200)
    model.remove([3, 7, 190])
    model.pop(True, 10)
    assert model.list.form == HOLES
    model.pop(False, 12)
    assert model.list.form == REGULAR
    model.check()


def test_a_list_with_more_holes_than_elements_is_written_anew(model):
    model.push(False, 1_000)
    model.remove(list(range(1, 999)))
    assert model.list.form == REGULAR
    model.check()


def test_levels_above_the_lowest_are_used(model):
    """Over 65,536 slots with holes, so that ranks are found through all levels but the highest."""
    model.push(False, 70_000)
    model.remove(list(range(1_000, 30_000, 3)))
    model.remove(list(range(40_000, 60_000)))
    model.push(False, 50)
    model.check(range(0, len(model.expected), 501))


def test_copying_an_irregular_list_copies_its_index(replica):
    replica("RPUSH", "l", *range(300))
    replica("LREM", "l", 0, "150")
    replica("LINSERT", "l", "BEFORE", "20", "new")
    assert replica("COPY", "l", "copy") == 1
    replica("DEL", "l")
    for _ in range(3):
        replica.pass_ms(0)
    expected = [str(n).encode() for n in range(300) if n != 150]
    expected.insert(20, b"new")
    assert replica("LRANGE", "copy", 0, -1) == expected
    assert [replica("LINDEX", "copy", n) for n in range(len(expected))] == expected


def test_records_of_a_dropped_irregular_list_are_reclaimed(replica):
    replica("RPUSH", "l", *range(300))
    replica("LREM", "l", 0, "150")
    replica("DEL", "l")
    for _ in range(3):
        replica.pass_ms(0)
    with replica.kv.view() as view:
        assert not list(view.scan(ITEMS, b"", None))
