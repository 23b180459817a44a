"""Large values: a batch is bounded in bytes, whatever few and short commands an entry holds."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raftdb.commands.machine import Transaction
from raftdb.errors import CommandError
from raftdb.storage import batch as batches
from raftdb.storage.batch import TOO_MUCH, Batch
from raftdb.storage.kv import state_digest
from tests.commands.replica import Replica

SMALL_LIMITS = {
    "LARGE_BYTES": 100,
    "HELD_BYTES_MAX": 4_000,
    "ENTRY_LARGE_BYTES_MAX": 20_000,
    "PAGE_BYTES_MAX": 2_000,
}
VALUE = b"v" * 1_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL_LIMITS.items():
        monkeypatch.setattr(batches, name, value)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The most bytes of values that a batch held at a savepoint, by where."""
    most = {"overlays": 0, "cache": 0}
    savepoint = Batch.savepoint

    def watched(batch: Batch) -> None:
        savepoint(batch)
        heads = sum(len(head.value) for head in batch._heads.values() if head is not None)
        records = sum(len(value) for over in batch._over[1:4] for value in over.values() if value is not None)
        most["overlays"] = max(most["overlays"], heads + records)
        cached = sum(len(head.value) for head in batch._base.values() if head is not None)
        most["cache"] = max(most["cache"], cached + sum(map(len, batch._ahead.values())))

    monkeypatch.setattr(Batch, "savepoint", watched)
    return most


def refused(reply: Any) -> bool:
    return isinstance(reply, CommandError) and str(reply) == TOO_MUCH


@pytest.mark.usefixtures("small")
def test_short_commands_that_make_large_values_are_refused_beyond_a_bound(tmp_path: Path) -> None:
    """Of one entry; the next one has room again. SET is never refused. A second replica comes to the same."""
    one = Replica(tmp_path / "one")
    replies = one.apply(*[one.request("SETRANGE", f"k{number}", 999, "x") for number in range(40)])
    assert replies[:20] == [1_000] * 20
    assert all(map(refused, replies[20:]))
    assert one("DBSIZE") == 20
    assert one("SETRANGE", "again", 999, "x") == 1_000
    grow = [one.request("APPEND", f"k{number}", "y") for number in range(20)]
    replies = one.apply(*[one.request("SET", f"s{number}", VALUE) for number in range(30)], *grow)
    assert not any(map(refused, replies[:30]))
    assert all(map(refused, replies[30:]))
    two = Replica(tmp_path / "two")
    for entry in one.log:
        two.apply_entry(entry)
    assert one.kv.digest == two.kv.digest
    with one.kv.view() as view, two.kv.view() as other:
        assert state_digest(view) == state_digest(other)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    "words",
    [
        ("EXPIRE", "k", 100),
        ("PERSIST", "e"),
        ("GETEX", "k", "EX", 100),
        ("APPEND", "k", "x"),
        ("SETRANGE", "k", 0, "x"),
        ("COPY", "k", "other", "REPLACE"),
        ("RENAME", "k", "l", "RENAME", "l", "k"),
        ("COPY", "h", "other", "REPLACE"),
        ("COPY", "l", "other", "REPLACE"),
        ("LMOVE", "l", "l", "LEFT", "RIGHT"),
    ],
    ids=lambda words: " ".join(map(str, words[:2])),
)
def test_whatever_writes_large_values_without_bringing_them_is_bounded(tmp_path: Path, words: tuple[Any, ...]) -> None:
    one = Replica(tmp_path / "one")
    one("SET", "k", VALUE)
    one("HSET", "h", "f", VALUE)
    one("RPUSH", "l", VALUE, VALUE)
    rounds = []
    for _ in range(100):
        if words[0] == "PERSIST":
            rounds.append(one.request("SET", "e", VALUE, "EX", 100))
        rounds += [one.request(*words[:3]), one.request(*words[3:])] if len(words) == 6 else [one.request(*words)]
    replies = one.apply(*rounds)
    assert any(map(refused, replies))
    assert not refused(replies[1])
    assert len(one("GET", "k") or one("GET", "l")) >= len(VALUE)


@pytest.mark.usefixtures("small")
def test_runs_of_set_count_alike_whatever_rides_along(tmp_path: Path) -> None:
    """The leader has reads between the SETs and does them one by one; the others do them all at once."""
    one, two = Replica(tmp_path / "one"), Replica(tmp_path / "two")
    writes = [one.request("SET", f"s{number}", VALUE) for number in range(15)]
    grow = [one.request("SETRANGE", f"g{number}", 999, "x") for number in range(10)]
    mixed = [item for write in writes for item in (write, one.request("STRLEN", "s1"))]
    replies = one.apply(*mixed, *grow, logged=(*writes, *grow))
    assert [refused(reply) for reply in replies[-10:]] == [False] * 5 + [True] * 5
    for entry in one.log:
        two.apply_entry(entry)
    assert one.kv.digest == two.kv.digest


@pytest.mark.usefixtures("small")
def test_what_a_batch_holds_is_bounded(tmp_path: Path, held: dict[str, int]) -> None:
    one = Replica(tmp_path / "one")
    for start in range(0, 60, 20):
        one.apply(*[one.request("SETRANGE", f"k{start + number}", 999, "x") for number in range(20)])
    one("HSET", "h", *[word for number in range(15) for word in (f"f{number}", VALUE)])
    reads = [one.request("STRLEN", f"k{number}") for number in range(60)]
    one.apply(Transaction(0, [], [*reads, one.request("SET", "a", 1)]))
    one.apply(*[one.request("SET", f"k{number}", "short") for number in range(60)])
    one.apply(*[one.request("SET", f"k{number}", VALUE) for number in range(60)])
    assert one.apply(Transaction(0, [], [one.request("HVALS", "h"), one.request("INCR", "n")]))[0][0] == [VALUE] * 15
    bound = SMALL_LIMITS["HELD_BYTES_MAX"] + len(VALUE)
    assert held["cache"] <= bound
    assert held["overlays"] <= 60 * len(VALUE)  # a run of SET is done at once: its values came with the entry


@pytest.mark.usefixtures("small")
def test_pages_of_large_records_are_short(tmp_path: Path) -> None:
    one = Replica(tmp_path / "one")
    for _ in range(20):
        one("RPUSH", "l", *[VALUE] * 10)
    sizes: list[int] = []
    page = batches._page

    def watched(rows: Any, size: int) -> Any:
        found = page(rows, size)
        sizes.append(len(found[0]))
        return found

    patch = pytest.MonkeyPatch()
    patch.setattr(batches, "_page", watched)
    try:
        (reply,) = one.apply(Transaction(0, [], [one.request("LRANGE", "l", 0, -1), one.request("INCR", "n")]))
    finally:
        patch.undo()
    assert reply[0] == [VALUE] * 200
    assert max(sizes) <= SMALL_LIMITS["PAGE_BYTES_MAX"] // len(VALUE) + batches.PAGE_ROWS_AT_ONCE


def test_an_entry_of_few_bytes_does_not_take_all_memory(tmp_path: Path) -> None:
    """The real limits but one, in a process that may have 1.5 GiB: 200 commands ask for 12.5 GiB."""
    program = f"""
import sys
from pathlib import Path
from raftdb.storage import batch
batch.ENTRY_LARGE_BYTES_MAX = 512 << 20
from tests.commands.replica import Replica
one = Replica(Path({str(tmp_path / "one")!r}))
replies = one.apply(*[one.request("SETRANGE", f"k{{n}}", (64 << 20) - 1, "x") for n in range(200)])
print(sum(reply == 64 << 20 for reply in replies), sum(str(reply) == batch.TOO_MUCH for reply in replies))
print(one("STRLEN", "k0"), one("EXISTS", "k199"))
"""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (1536 << 20, 1536 << 20))

    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=limit, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.stdout.split() == ["8", "192", str(64 << 20), "0"], done.stderr[-2_000:]
