"""The data written through its map: no store into a hole, whatever is done to it and however full the disk is."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from raftdb.errors import DiskFull
from raftdb.storage import engine, files, mapped
from raftdb.storage.engine import Environment
from raftdb.storage.kv import HASH, Head, KvStore
from tests import smalldisk
from tests.smalldisk import fill, for_ever

from .build import MAP_BYTES, apply, content, entries

PAGE_BYTES = 4096
SPACES = (b"one", b"two")


@pytest.fixture(autouse=True)
def any_disk_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "FREE_BYTES_MIN", 0)
    monkeypatch.setattr(mapped, "SPARE_BYTES", 1 << 20)
    monkeypatch.setattr(mapped, "AHEAD_BYTES_MIN", 2 << 20)
    monkeypatch.setattr(mapped, "AHEAD_BYTES_MAX", 2 << 20)


@pytest.fixture
def through_map(tmp_path: Path) -> None:
    if files.file_system_type(tmp_path) not in mapped.IN_PLACE:
        pytest.skip("temporary files are on a file system that is not written through the map")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with smalldisk.small_disk(tmp_path / "disk", 16) as place:
        yield place


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
        self.check()

    def check(self) -> None:
        room, last_page = self.environment._room, self.environment.lmdb.info()["last_pgno"]
        assert room is not None
        self.least_left = min(self.least_left, room._first + room.needed_pages - (last_page + 1))
        assert self.least_left >= 0, "pages were taken that nobody had asked for"

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


def test_room_is_not_taken_for_the_worst_case(tmp_path: Path, through_map: None) -> None:
    """A hundred times what really happens would fill the disk, and starve the log (found by review)."""
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=4 << 30, through_map=True)
    apply(kv, entries(1, 2_000))
    batch = kv.batch()
    for one in entries(2_001, 50):
        batch.begin(one.index, one.stamp, one.seed)
        for number in range(1, 2_001):
            batch.put_string(0, b"k%d" % number, b"%d" % one.index)
        batch._flush()
    room = kv._environment._room
    assert room is not None
    assert room.needed_pages > 50_000
    batch.commit(2_050, 1, 2_050 * 10, 0)
    assert kv.stats()["used_bytes"] + (3 << 20) > os.stat(tmp_path / "kv" / "data.mdb").st_blocks * 512
    kv.close(clean=False)


def test_a_full_disk_leaves_the_room_kept_ahead_to_deletes(small_disk: Path) -> None:
    """And to the reclaiming of what they drop, which does what there is room for, and goes on later."""
    kv = KvStore.open(small_disk / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    collection = 0
    for index in range(1, 21):
        batch = kv.batch()
        batch.begin(index, 10 * index, 0)
        if index == 1:
            collection = batch.new_collection()
            batch.put_head(0, b"h", Head(HASH, 0, 1, b"", collection, 5_000, 0, 0, 0))
        for number in range(250 * index - 250, 250 * index):
            batch.put_field(collection, b"field %d" % number, b"x" * 400)
        batch.commit(index, 1, 10 * index, 0)
    fill(small_disk)
    for index in range(21, 600):
        batch = kv.batch()
        batch.begin(index, 10 * index, 0)
        if index == 21:
            batch.drop_head(0, b"h")
        batch.savepoint()
        batch.reclaim(500)
        batch.commit(index, 1, 10 * index, 0)
    with kv.view() as view:
        assert view.head(0, b"h") is None
    assert kv.stats()["garbage_ranges"] == 0
    kv.close(clean=False)


def test_room_is_kept_ahead_only_where_there_is_plenty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixty-fourth of a large file may be more than all that is free: taking it would leave nothing to the log."""
    file = tmp_path / "data.mdb"
    file.write_bytes(b"")
    taken: list[int] = []
    free = [1 << 60]
    monkeypatch.setattr(os, "posix_fallocate", lambda _file, _start, size: taken.append(size))
    monkeypatch.setattr(mapped.Room, "_free_bytes", lambda _: free[0])
    room = mapped.Room(file, PAGE_BYTES, 25_000_000)
    free[0] = 200 << 20
    for last_page in range(25_000_000, 25_400_000, 1_000):
        with contextlib.suppress(DiskFull):
            room.begin(last_page)
    assert len(taken) == 1
    with pytest.raises(DiskFull):
        mapped.Room(file, PAGE_BYTES, 25_000_000)
    assert len(taken) == 1
    room._file.close()


@pytest.mark.parametrize("last_page", [1, 1_000, 1_000_000, 1_000_000_000])
def test_deletes_go_on_when_somebody_else_has_filled_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_page: int
) -> None:
    """However large the file: the list of its free pages grows with it."""
    file = tmp_path / "data.mdb"
    file.write_bytes(b"")
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: None)
    monkeypatch.setattr(mapped.Room, "_free_bytes", lambda _: 1 << 60)
    room = mapped.Room(file, PAGE_BYTES, last_page)
    monkeypatch.setattr(room, "_free_bytes", lambda: 0)
    stat = {"branch_pages": last_page // 200, "leaf_pages": last_page, "depth": 4}
    for further in range(100):
        room.begin(last_page + further)
        room.expect("database", stat, 10, 0)
        room.expect("garbage", stat, 1, 0)
    room._file.close()


@pytest.mark.parametrize("pinned", [False, True])
def test_pages_that_a_transaction_frees_itself_are_listed_by_it(
    tmp_path: Path, through_map: None, pinned: bool
) -> None:
    """A value that grows within one transaction, while somebody reads: the list of its former pages takes pages."""
    environment = Environment(tmp_path / "env", SPACES, sync=False, map_size_bytes=4 << 30, through_map=True)
    reader = environment.reader() if pinned else None
    try:
        work = Work(environment, 0)
        transaction = environment.writer()
        for megabytes in range(8, 24):
            value = bytes(megabytes << 20)
            environment.expect(transaction, environment.databases[0], 1, len(value))
            transaction.put(b"key", value, db=environment.databases[0])
        environment.commit(transaction)
        work.check()
    finally:
        if reader is not None:
            reader.abort()
        environment.close()


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


def test_a_retired_store_keeps_no_file_open(tmp_path: Path, through_map: None) -> None:
    """Found by review: each snapshot installed would have cost the disk the size of the data before it."""
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES, through_map=True)
    apply(kv, entries(1, 10))
    kv.retire()
    shutil.rmtree(tmp_path / "kv")
    del kv
    gc.collect()
    opened = [
        os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and os.path.lexists(link)
    ]
    assert not [name for name in opened if name.startswith(str(tmp_path))]


def test_a_long_file_is_cut_by_the_next_start_without_the_map(
    tmp_path: Path, through_map: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "kv")], check=False)
    assert done.returncode == -signal.SIGKILL
    monkeypatch.setattr(mapped, "FREE_BYTES_MIN", 1 << 60)
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=1 << 30, through_map=True)
    assert not kv.through_map
    assert file_bytes(tmp_path / "kv") == kv.stats()["used_bytes"]
    assert len(content(kv)) == 100
    apply(kv, entries(101, 100))
    assert len(content(kv)) == 200
    kv.close(clean=False)


# --- where it is done -----------------------------------------------------------------------------------------------


def test_where_the_map_is_used(tmp_path: Path, through_map: None, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.mdb"
    assert mapped.suits(file)
    for kind in ("ext4", "tmpfs", "xfs", "btrfs", "zfs", "overlay", ""):
        with monkeypatch.context() as patch:
            patch.setattr(files, "file_system_type", lambda path, kind=kind: kind)
            assert mapped.suits(file) is (kind in ("ext4", "tmpfs"))
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
