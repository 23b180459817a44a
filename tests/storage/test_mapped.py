"""The data written through its map: no store into a hole, whatever is done to it and however full the disk is."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import lmdb
import pytest

from raftdb.errors import DiskFull
from raftdb.storage import engine, files, mapped
from raftdb.storage.engine import Environment
from raftdb.storage.kv import KvStore
from raftdb.storage.mapped import Room

from .build import MAP_BYTES, apply, content, entries

PAGE_BYTES = 4096
SPACES = (b"one", b"two")


@pytest.fixture(autouse=True)
def any_disk_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "FREE_BYTES_MIN", 0)


@pytest.fixture
def through_map(tmp_path: Path) -> None:
    if files.file_system_type(tmp_path) not in mapped.IN_PLACE:
        pytest.skip("temporary files are on a file system that is not written through the map")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 16 MiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a size-limited tmpfs needs root")
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"mounting a size-limited tmpfs is not allowed here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    file = place / "filler"
    with file.open("ab", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        for_ever(lambda: filler.write(bytes(PAGE_BYTES)))
    return file


def for_ever(step: Callable[[], object]) -> NoReturn:
    while True:
        step()


def file_bytes(path: Path) -> int:
    return (path / "data.mdb").stat().st_size


# --- what is asked for covers what is taken --------------------------------------------------------------------------


class Work:
    """Transactions at random over two databases, each of which tells Room what it is about to do."""

    def __init__(self, environment: Environment, seed: int) -> None:
        self.environment = environment
        self.rng = random.Random(seed)
        self.keys = [self.rng.randbytes(self.rng.choice((4, 20, 20, 100, 500))) for _ in range(3000)]
        self.readers: list[lmdb.Transaction] = []
        self.least_left = 1 << 60

    def run(self, transactions: int) -> None:
        for _ in range(transactions):
            self._readers()
            self._transaction()

    def _readers(self) -> None:
        """Who reads keeps freed pages from being used again."""
        if self.rng.random() < 0.3 and len(self.readers) < 8:
            self.readers.append(self.environment.reader())
        while self.readers and self.rng.random() < 0.3:
            self.readers.pop(self.rng.randrange(len(self.readers))).abort()

    def _transaction(self) -> None:
        transaction = self.environment.writer()
        for _ in range(self.rng.choice((1, 1, 3))):
            database = self.rng.choice(self.environment.databases)
            self._change(transaction, database)
        self.environment.commit(transaction)
        room, last_page = self.environment._room, self.environment.lmdb.info()["last_pgno"]
        assert room is not None
        self.least_left = min(self.least_left, room._first + room._taken - (last_page + 1))
        assert self.least_left >= 0, "pages were taken that nobody had asked for"
        assert data_end(self.environment.path) >= (last_page + 1) * PAGE_BYTES

    def _change(self, transaction: lmdb.Transaction, database: object) -> None:
        rng, count = self.rng, self.rng.choice((1, 2, 10, 100, 1000))
        keys = rng.sample(self.keys, count)
        if rng.random() < 0.25:
            self.environment.expect(transaction, database, len(keys), 0)
            for key in keys:
                transaction.delete(key, db=database)
            return
        low, high = rng.choice(((0, 20), (90, 130), (0, 3000), (1400, 2100), (1900, 5000), (4070, 4100), (0, 40000)))
        rows = [(key, rng.randbytes(rng.randint(low, high))) for key in keys]
        if rng.random() < 0.8:
            rows.sort()
        self.environment.expect(transaction, database, len(rows), sum(len(value) for _, value in rows))
        transaction.cursor(database).putmulti(rows)


def data_end(path: Path) -> int:
    """Offset of the first hole of the data file."""
    descriptor = os.open(path / "data.mdb", os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_HOLE)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("seed", range(6))
def test_no_transaction_takes_more_pages_than_it_was_given(tmp_path: Path, through_map: None, seed: int) -> None:
    environment = Environment(tmp_path / "env", SPACES, sync=False, map_size_bytes=4 << 30, through_map=True)
    try:
        work = Work(environment, seed)
        work.run(60)
        assert work.least_left < 1 << 60
    finally:
        environment.close()


def test_sequential_loads_and_full_pages_split_no_further(tmp_path: Path, through_map: None) -> None:
    """Pages filled to the brim by sorted keys, each of which splits when a row comes in between."""
    environment = Environment(tmp_path / "env", SPACES, sync=False, map_size_bytes=4 << 30, through_map=True)
    try:
        work = Work(environment, 1)
        database = environment.databases[0]
        for start in range(0, 20_000, 5_000):
            work.keys = [b"%010d" % number for number in range(start, start + 5_000)]
            transaction = environment.writer()
            rows = [(key, b"v" * 100) for key in work.keys]
            environment.expect(transaction, database, len(rows), 100 * len(rows))
            transaction.cursor(database).putmulti(rows, append=True)
            environment.commit(transaction)
        work.keys = [b"%010d+" % number for number in range(0, 20_000, 4)]
        work.run(20)
    finally:
        environment.close()


# --- full disks -----------------------------------------------------------------------------------------------------


def write_until_full(kv: KvStore, value: bytes) -> None:
    with pytest.raises(DiskFull):
        for_ever(lambda: apply(kv, entries(kv.applied + 1, 40, payload=lambda index: b"k%d=" % index + value)))


@pytest.mark.parametrize("size", [10, 100, 3_000, 30_000])
def test_a_full_disk_is_an_error_and_no_signal(small_disk: Path, size: int) -> None:
    """Were a page taken that has no block, this process would be dead."""
    kv = KvStore.open(small_disk / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    assert kv._environment._room is not None
    apply(kv, entries(1, 40, payload=lambda index: b"k%d=first" % index))
    spare = small_disk / "spare"
    spare.write_bytes(bytes(4 << 20))
    fill(small_disk)
    if size >= 3_000:
        write_until_full(kv, b"x" * size)
    spare.unlink()
    if size >= 3_000:
        write_until_full(kv, b"y" * size)
    before = content(kv)
    for _ in range(50):  # overwriting goes on: pages that are free again are used again, or it is refused
        with_room = kv.applied
        try:
            apply(kv, entries(with_room + 1, 20, payload=lambda index: b"k%d=" % (index % 20) + b"z" * size))
        except DiskFull:
            assert content(kv) == before
            break
        before = content(kv)
    (small_disk / "filler").unlink()
    apply(kv, entries(kv.applied + 1, 40, payload=lambda index: b"k%d=last" % index))
    assert set(content(kv).values()) >= {b"last"}
    kv.close(clean=False)
    kv = KvStore.open(small_disk / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    assert set(content(kv).values()) >= {b"last"}
    kv.close(clean=False)


def test_a_disk_that_is_full_at_the_start_is_written_to_without_the_map(small_disk: Path) -> None:
    KvStore.open(small_disk / "kv", None, map_size_bytes=MAP_BYTES).close(clean=False)
    fill(small_disk)
    kv = KvStore.open(small_disk / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    assert kv._environment._room is None
    with kv.view() as view:
        assert view.head(0, b"k1") is None
    kv.close(clean=False)


def test_taking_room_leaves_the_last_of_the_disk_alone(small_disk: Path) -> None:
    """Or the log could not take in the command that makes room."""
    file = small_disk / "file"
    file.write_bytes(b"")
    room = Room(file, PAGE_BYTES, 1)
    try:
        stat = {"branch_pages": 0, "leaf_pages": 1, "depth": 1}
        with pytest.raises(DiskFull):
            for_ever(lambda: room.expect("database", stat, 100, 40_000))
        assert files.free_bytes(small_disk) >= mapped.KEPT_BYTES
    finally:
        room.close(1)


# --- the file -------------------------------------------------------------------------------------------------------


def test_a_closed_file_is_as_long_as_what_it_holds(tmp_path: Path, through_map: None) -> None:
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    apply(kv, entries(1, 100))
    assert file_bytes(tmp_path / "kv") == MAP_BYTES
    used = kv.stats()["used_bytes"]
    kv.close(clean=False)
    assert file_bytes(tmp_path / "kv") == used
    assert engine.structure_findings(tmp_path / "kv" / "data.mdb") == []
    for through in (False, True, False):
        kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES, through_map=through)
        assert len(content(kv)) == 100
        apply(kv, entries(kv.applied + 1, 1, payload=lambda index: b"k1=v"))
        kv.close(clean=False)


KILLED = """
import os, signal, sys
from pathlib import Path
from raftdb.storage import mapped
from raftdb.storage.kv import KvStore
from tests.storage.build import apply, entries
mapped.FREE_BYTES_MIN = 0
kv = KvStore.open(Path(sys.argv[1]), None, map_size_bytes=1 << 30, through_map=True)
assert kv._environment._room is not None
apply(kv, entries(1, 100))
batch = kv.batch()
for entry in entries(101, 400):
    batch.begin(entry.index, entry.stamp, 0)
    batch.put_string(0, b"half%d" % entry.index, b"done" * 100)
batch._flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_in_a_transaction_leaves_the_commit_before(tmp_path: Path, through_map: None) -> None:
    """What it stored into the map is in the file; no meta page names it."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "kv")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert file_bytes(tmp_path / "kv") == 1 << 30
    assert engine.structure_findings(tmp_path / "kv" / "data.mdb") == []
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=1 << 30, through_map=True)
    assert kv.applied == 100
    assert len(content(kv)) == 100
    kv.close(clean=False)


# --- where it is done -----------------------------------------------------------------------------------------------


def test_where_the_map_is_used(tmp_path: Path, through_map: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.mdb"
    assert mapped.suits(file)
    for kind, suits in (
        ("ext4", True),
        ("xfs", True),
        ("btrfs", False),
        ("zfs", False),
        ("overlay", False),
        ("", False),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(files, "file_system_type", lambda path, kind=kind: kind)
            assert mapped.suits(file) is suits
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "FREE_BYTES_MIN", 1 << 60)
        assert not mapped.suits(file)
    file.write_bytes(os.urandom(1 << 20))
    with monkeypatch.context() as patch:
        patch.setattr(mapped, "_memory_bytes", lambda: 1 << 20)
        assert not mapped.suits(file)
    with monkeypatch.context() as patch:
        limit = tmp_path / "memory.max"
        patch.setattr(mapped, "_CGROUP_LIMIT", limit)
        without = mapped._memory_bytes()
        for text, bytes_ in (("max\n", without), ("1048576\n", 1 << 20), ("9" * 19, without)):
            limit.write_text(text)
            assert mapped._memory_bytes() == bytes_


def test_a_map_that_cannot_be_written_through_is_no_error(
    tmp_path: Path, through_map: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(engine, "_allocate_lock_file", lambda *_: None)
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    assert kv._environment._room is None
    apply(kv, entries(1, 10))
    assert len(content(kv)) == 10
    kv.close(clean=False)


def test_the_room_taken_ahead_counts_as_free(tmp_path: Path, through_map: None) -> None:
    """Or --min-free would refuse writes for the room that was taken for them."""
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    apply(kv, entries(1, 10))
    taken = os.stat(tmp_path / "kv" / "data.mdb").st_blocks * 512
    stats = kv.stats()
    assert taken - stats["used_bytes"] <= stats["reusable_bytes"] + mapped.BASE_PAGES * PAGE_BYTES
    assert stats["reusable_bytes"] >= mapped.BASE_PAGES * PAGE_BYTES // 2
    kv.close(clean=False)
