"""RaftLog against a plain list, under random appends, truncations, installs, slow syncs and crashes."""

from __future__ import annotations

import random

import pytest

from raftdb.consensus.log import RaftLog
from raftdb.errors import Bug, EntryDamaged
from raftdb.types import Entry, HardState, Persist, SnapshotMeta
from tests.consensus.cluster import Disk, chain_of, membership_of


def entry_after(log: RaftLog, term: int, payload: bytes = b"x") -> Entry:
    index = log.last + 1
    return Entry(index, term, 1, 0, 0, payload, chain_of(log.last_chain, index, term, 1, 0, 0, payload))


def persist_of(log: RaftLog) -> Persist:
    changes = log.take()
    return Persist(
        HardState(0, None), changes.truncate_from, changes.entries, changes.rewrite, None, None, changes.install,
        changes.keep_suffix,
    )  # fmt: skip


def new_log(count: int = 0, term: int = 1) -> tuple[RaftLog, Disk]:
    disk = Disk(membership_of("n1"))
    log = RaftLog(disk, chain_of, 0)
    for _ in range(count):
        log.append(entry_after(log, term))
    sync(log, disk)
    return log, disk


def sync(log: RaftLog, disk: Disk) -> None:
    disk.commit(persist_of(log))
    log.settled()


class Model:
    """What RaftLog must be: a list from `base` on, how much of it is durable, and what the disk would hold."""

    def __init__(self) -> None:
        self.base = (0, 0, 0)  # index, term, chain
        self.entries: list[Entry] = []

    @property
    def last(self) -> int:
        return self.base[0] + len(self.entries)

    def check(self, log: RaftLog) -> None:
        assert (log.first, log.last) == (self.base[0] + 1, self.last)
        expected_last = (self.entries[-1].term, self.entries[-1].chain) if self.entries else self.base[1:]
        assert (log.last_term, log.last_chain) == expected_last
        assert (log.term(self.base[0]), log.chain(self.base[0])) == self.base[1:]
        for entry in self.entries:
            assert (log.term(entry.index), log.chain(entry.index)) == (entry.term, entry.chain)
            assert log.entry(entry.index) == entry
        assert self.base[0] <= log.durable <= self.last


def a_snapshot(model: Model, index: int, term: int, chain: int) -> SnapshotMeta:
    return SnapshotMeta("s.dat", index, term, chain, 0, membership_of("n1"), 1, b"d" * 32)


@pytest.mark.parametrize("seed", range(150))
def test_against_a_list(seed: int) -> None:
    chance = random.Random(seed)
    disk = Disk(membership_of("n1"))
    log = RaftLog(disk, chain_of, 0)
    model = Model()
    term = 1
    pending: Persist | None = None
    for _ in range(150):
        action = chance.choice(["append"] * 5 + ["truncate", "take", "settle", "settle", "crash", "install"])
        if action == "append":
            term += chance.random() < 0.2
            entry = entry_after(log, term, chance.randbytes(chance.randrange(9)))
            log.append(entry)
            model.entries.append(entry)
        elif action == "truncate" and model.entries:
            index = chance.randint(model.base[0] + 1, model.last)
            log.truncate(index, model.base[0])
            del model.entries[index - model.base[0] - 1 :]
            term += 1
        elif action == "take" and pending is None and log.dirty:
            pending = persist_of(log)
        elif action == "settle" and pending is not None:
            disk.commit(pending)
            log.settled()
            pending = None
        elif action == "install":
            install(log, model, chance, term)
            term += 1
        elif action == "crash":
            if pending is not None and chance.random() < 0.5:
                disk.commit(pending)
            pending = None
            log = RaftLog(disk, chain_of, 0)
            base = (disk.base_index, disk.base_term, disk.base_chain)
            model.base, model.entries = base, list(disk.log)
            term = max(term, log.last_term)
        model.check(log)
    if pending is not None:
        disk.commit(pending)
        log.settled()
    sync(log, disk)
    assert disk.log == model.entries
    assert not log.dirty
    assert log.durable == log.last


def install(log: RaftLog, model: Model, chance: random.Random, term: int) -> None:
    """A snapshot at, before or beyond the end, of the same history or of another one."""
    index = chance.randint(model.base[0] + 1, model.last + 3)
    if index <= model.last and chance.random() < 0.7:
        own = model.entries[index - model.base[0] - 1]
        meta = a_snapshot(model, index, own.term, own.chain)
    else:
        meta = a_snapshot(model, index, term + 1, chance.getrandbits(32))
    keep = log.suffix_fits(meta)
    assert keep == (index < model.last and log.term(index) == meta.term)
    log.start_install(meta, bool(keep))
    model.entries = model.entries[index - model.base[0] :] if keep else []
    model.base = (meta.index, meta.term, meta.chain)


def test_truncation_below_commit_is_a_bug() -> None:
    log, _ = new_log(5)
    with pytest.raises(Bug, match="committed"):
        log.truncate(3, 3)


def test_gap_and_falling_term_are_bugs() -> None:
    log, _ = new_log(2, term=3)
    with pytest.raises(Bug, match="after"):
        log.append(entry_after(log, 3)._replace(index=9))
    with pytest.raises(Bug, match="term"):
        log.append(entry_after(log, 2))


def test_entries_are_cut_by_bytes_and_never_empty() -> None:
    log, disk = new_log()
    for size in (10, 1000, 10):
        log.append(entry_after(log, 1, b"x" * size))
    assert [e.index for e in log.from_memory(1, 200)[0]] == [1]
    assert [e.index for e in log.from_memory(2, 200)[0]] == [2]
    assert [e.index for e in log.from_memory(1, 10**6)[0]] == [1, 2, 3]
    sync(log, disk)
    assert [e.index for e in log.from_disk(2, 1)[0]] == [2]
    entries, size_bytes = log.from_disk(1, 10**6)
    assert size_bytes == sum(len(e.payload) + 48 for e in entries)


def test_hints_are_bisected() -> None:
    log, disk = new_log()
    for term in (1, 1, 2, 2, 2, 5, 5, 7):
        log.append(entry_after(log, term))
    for _ in range(2):
        assert [log.first_index_of_term(i, 1) for i in range(1, 9)] == [1, 1, 3, 3, 3, 6, 6, 8]
        assert [log.last_index_of_term_at_most(t, 8) for t in range(1, 9)] == [2, 5, 5, 5, 7, 7, 8, 8]
        assert log.first_index_of_term(5, 4) == 4
        sync(log, disk)


def test_a_damaged_last_entry_is_found_at_the_start() -> None:
    _, disk = new_log(3)
    disk.header_damaged.add(3)
    log = RaftLog(disk, chain_of, 0)
    assert log.holes == {3}
    entry = disk.log[2]
    log.heal(entry)
    assert (log.last_term, log.last_chain, log.term(3)) == (entry.term, entry.chain, entry.term)
    with pytest.raises(EntryDamaged):
        disk.term(3)
    sync(log, disk)
    assert not log.holes
    assert log.term(3) == entry.term


def test_truncation_to_a_damaged_entry() -> None:
    _, disk = new_log(4)
    disk.header_damaged.add(2)
    log = RaftLog(disk, chain_of, 0)
    log.truncate(3, 0)
    assert log.holes == {2}
    log.heal(disk.log[1])
    assert log.last_chain == disk.log[1].chain


def test_a_suffix_behind_a_damaged_entry_is_judged_by_the_next_one() -> None:
    _, disk = new_log(4)
    disk.header_damaged.add(2)
    log = RaftLog(disk, chain_of, 0)
    log.holes.add(2)
    own = disk.log[1]
    good = SnapshotMeta("s", 2, own.term, own.chain, 0, membership_of("n1"), 1, b"d" * 32)
    assert log.suffix_fits(good) is True
    assert log.suffix_fits(good._replace(chain=own.chain + 1)) is False
    log.holes.add(3)
    assert log.suffix_fits(good) is None
