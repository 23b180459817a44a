"""Runs of one command that are done at once (`Command.many`) leave what one after the other leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raftdb.commands import machine
from raftdb.commands.machine import Item, Request
from raftdb.errors import CommandError, Damaged
from raftdb.storage.kv import GARBAGE, Batch, KvStore, state_digest
from raftdb.types import Entry, Kind

from .replica import START_MS, Replica

NAMES = [b"k%d" % number for number in range(12)] + [b"", b"long" * 121, b"long" * 120 + b"x" * 5, b"\xff" * 480]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Replica, Replica]]:
    one, other = Replica(tmp_path / "one"), Replica(tmp_path / "other")
    yield one, other
    one.kv.close(clean=False)
    other.kv.close(clean=False)


def facts(kv: KvStore) -> tuple[Any, ...]:
    """All that a store knows, garbage included."""
    with kv.view() as view:
        garbage = list(view.scan(GARBAGE, b"", None))
        counts = [(view.count(db), view.expiring(db)) for db in range(2)]
        return kv.digest, state_digest(view), garbage, counts, kv.earliest_expiry_ms() > 0


def command(rng: random.Random) -> list[bytes]:
    name = rng.choice(NAMES)
    if rng.random() < 0.002:
        return [b"FLUSHDB"]
    if rng.random() < 0.8:
        return [b"SET", name, b"%d" % rng.randrange(100)]
    return rng.choice(
        [
            [b"INCR", name],
            [b"RPUSH", name, b"a", b"b"],
            [b"HSET", name, b"f", b"v"],
            [b"SET", name, b"7", b"PX", b"5"],
            [b"SET", name, b"1", b"NX"],
            [b"DEL", name],
            [b"EXPIRE", name, b"100"],
            [b"RENAME", name, rng.choice(NAMES)],
            [b"APPEND", name, b"x"],
            [b"GET", name],
            [b"DEL", name],
            [b"DEL", name],
        ]
    )


def test_runs_of_set_leave_what_single_ones_leave(
    pair: tuple[Replica, Replica], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(20)
    runs = 0
    original = machine.Machine._alike

    def counted(self: Any, *args: Any) -> Any:
        nonlocal runs
        found = original(self, *args)
        runs += bool(found)
        return found

    monkeypatch.setattr(machine.Machine, "_alike", counted)
    for index in range(1, 400):
        argvs = [command(rng) for _ in range(rng.choice((1, 3, 20, 60)))]
        db = rng.randrange(2)
        answers = []
        for replica, least in zip(pair, (2, 1 << 30), strict=True):
            monkeypatch.setattr(machine, "MANY_MIN", least)
            items: list[Item] = [Request(db, argv, replica.table.find(argv)) for argv in argvs]
            entry = Entry(index, 1, Kind.COMMANDS, START_MS + 3 * index, index * 77, b"", 0)
            answers.append([str(r) if isinstance(r, CommandError) else r for r in replica.apply_entry(entry, items)])
        assert answers[0] == answers[1]
        assert facts(pair[0].kv) == facts(pair[1].kv), f"after entry {index}"
    assert runs > 400


def test_several_entries_of_runs_in_one_batch(pair: tuple[Replica, Replica]) -> None:
    """Heads that were read ahead, overwritten and flushed in one batch are not taken for what LMDB held."""
    rng = random.Random(3)
    index = 0
    for _ in range(60):
        size = rng.choice((1, 4, 40))
        entries = [[command(rng) for _ in range(rng.choice((2, 8, 40)))] for _ in range(size)]
        for replica, together in zip(pair, (True, False), strict=True):
            batch, at = replica.kv.batch(), index
            for argvs in entries:
                at += 1
                entry = Entry(at, 1, Kind.COMMANDS, START_MS + 3 * at, at * 77, b"", 0)
                replica.machine.apply(entry, [Request(0, a, replica.table.find(a)) for a in argvs], batch)
                if at % 3 == 0:
                    batch.count(0)  # flushes the heads
                if not together or at == index + size:
                    batch.commit(at, 1, entry.stamp, 0)
                    if at != index + size:
                        batch = replica.kv.batch()
        index += size
        one, other = facts(pair[0].kv), facts(pair[1].kv)
        assert one == other


def test_a_mistake_behind_a_run_undoes_nothing_of_it(pair: tuple[Replica, Replica]) -> None:
    replica = pair[0]
    argvs = [[b"SET", b"k%d" % number, b"v"] for number in range(20)] + [[b"INCR", b"k3"]]
    replies = replica.apply(*[replica.request(*argv) for argv in argvs])
    assert isinstance(replies[-1], CommandError)
    assert [replica("GET", f"k{number}") for number in range(20)] == [b"v"] * 20


@pytest.mark.parametrize("spoil", [None, b"RPUSH", b"EXPIRE"])
def test_strings_alone_are_stored_without_a_look(pair: tuple[Replica, Replica], spoil: bytes | None) -> None:
    """A store that never had a collection, and no expiry: LMDB counts the keys."""
    rng = random.Random(11)
    looks = 0
    original = Batch._read_ahead

    def counted(self: Batch, wanted: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        nonlocal looks
        looks += 1
        return original(self, wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "_read_ahead", counted)
        index = 0
        for turn in range(80):
            argvs = [[b"SET", rng.choice(NAMES), b"%d" % turn] for _ in range(rng.choice((1, 8, 30)))]
            if turn >= 20:
                argvs += [rng.choice([[b"DEL", rng.choice(NAMES)], [b"INCR", b"k1"], [b"RENAME", b"k1", b"k2"]])]
            if turn == 40 and spoil == b"RPUSH":
                argvs += [[b"RPUSH", b"l", b"1"]]
            if turn >= 40 and spoil == b"EXPIRE":
                argvs += [[b"EXPIRE", b"k3", b"100"]]
            for replica, together in zip(pair, (True, False), strict=True):
                if together:
                    index += 1
                    _apply(replica, index, argvs, batch=replica.kv.batch())
                else:
                    with patch.context() as inner:
                        inner.setattr(machine, "MANY_MIN", 1 << 30)
                        _apply(replica, index, argvs, batch=replica.kv.batch())
            assert facts(pair[0].kv) == facts(pair[1].kv), f"after turn {turn}"
    assert (looks == 0) == (spoil is None)


def _apply(replica: Replica, index: int, argvs: list[list[bytes]], batch: Batch) -> None:
    entry = Entry(index, 1, Kind.COMMANDS, START_MS + index, index, b"", 0)
    replica.machine.apply(entry, [Request(0, argv, replica.table.find(argv)) for argv in argvs], batch)
    batch.commit(index, 1, entry.stamp, 0)


def test_strings_of_several_databases_in_one_transaction(pair: tuple[Replica, Replica]) -> None:
    for replica, least in zip(pair, (2, 1 << 30), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(machine, "MANY_MIN", least)
            for start in range(0, 60, 20):
                batch = replica.kv.batch()
                for at in range(1, 4):
                    argvs = [[b"SET", b"k%d" % number, b"v"] for number in range(start, start + 30)]
                    items: list[Item] = [Request(at % 2, argv, replica.table.find(argv)) for argv in argvs]
                    entry = Entry(start + at, 1, Kind.COMMANDS, START_MS + start + at, 1, b"", 0)
                    replica.machine.apply(entry, items, batch)
                batch.commit(start + 3, 1, START_MS + start + 3, 0)
    assert facts(pair[0].kv) == facts(pair[1].kv)
    with pair[0].kv.view() as view:
        assert (view.count(0), view.count(1)) == (70, 70)


def row(rng: random.Random) -> Any:
    """Of a payload: mostly in order."""
    words: Any = [rng.choice([b"SET", b"k", b"", b"x" * 20]) for _ in range(rng.choice((1, 2, 3, 3, 3)))]
    good = [rng.randrange(16), words]
    wrong: list[Any] = [
        *([16, words], [-1, words], [True, words], [0, []], [0, [b"SET", 1]], [0, [b"SET", None]], [0, b"SET"]),
        *([0], [], [0, words, [[0, words]]], b"row", None, 7, [0, [[0, b"k", 3]], [[0, words]]], [[0, words], words]),
    ]
    return rng.choice(wrong) if rng.random() < 0.04 else good


def test_items_that_are_checked_at_once_are_checked_as_one_by_one() -> None:
    rng = random.Random(5)
    refused = accepted = 0
    for _ in range(3_000):
        rows = [row(rng) for _ in range(rng.randrange(12))]
        at_once = machine._requests(rows)
        try:
            one_by_one = [machine._item(one) for one in rows]
        except Damaged:
            assert not at_once
            refused += 1
            continue
        assert at_once in ([], one_by_one)
        accepted += bool(at_once)
    assert min(refused, accepted) > 300
