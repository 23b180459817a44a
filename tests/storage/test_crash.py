"""Shares of the long crash tests: images of the log, faults at system calls, lost pages of kv, full disks, bit flips.

The whole of each is run by `python -m tests.storage`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from raftdb.errors import Damaged, DiskFull, StorageError
from raftdb.storage import engine, kvstate
from raftdb.storage.datadir import DataDir, StartWith
from raftdb.storage.kv import KvStore
from raftdb.storage.log import Log
from raftdb.storage.verify import verify_directory
from tests import smalldisk
from tests.smalldisk import fill

from . import dir_workload, images, killpoints
from .build import MAP_BYTES, MEMBERS, apply, content, entries, persist


def deadline():
    return time.monotonic() + 600


def test_crash_images_of_the_log(require, tmp_path):
    require("strace")
    checker = images.run(300, 7, deadline(), tmp_path)
    assert checker.wrong == []
    assert checker.images == 300
    assert checker.kept_only > 50


@pytest.mark.parametrize("fault", ["unsynced", "metasync"])
def test_a_planted_fault_is_found_by_the_images(require, tmp_path, fault):
    require("strace")
    checker = images.run(300, 7, deadline(), tmp_path, fault)
    assert checker.wrong


def test_faults_at_system_calls(require, tmp_path):
    require("strace")
    tried, total, wrong = killpoints.run(["kill", "eio", "enospc"], 25, 11, deadline(), tmp_path)
    assert wrong == []
    assert tried == 25
    assert total > 300


def test_a_failed_flush_ends_the_process_with_a_reason(require, tmp_path):
    require("strace")
    dir_workload.make_leader(tmp_path / "leader")
    done = killpoints.workload(
        tmp_path, tmp_path / "leader", ["-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=9"]
    )
    assert done.returncode == 3
    assert done.stdout.startswith(b"storage error: ")
    assert b"Input/output error" in done.stdout
    last, _ = killpoints.promised(tmp_path / "marks")
    assert killpoints.check_directory(tmp_path / "data", last) is None


@pytest.mark.parametrize("kind", ["log", "kv"])
def test_a_sample_of_bit_flips(kind):
    arguments = [sys.executable, "-m", "tests.storage.flips", kind, "--sample", "250", "--seed", "3"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout, done.stderr[-500:])
    assert ", 0 missed" in done.stdout


@pytest.mark.parametrize("seed", range(12))
def test_kv_of_another_boot_with_any_of_its_pages_is_rebuilt(tmp_path, seed):
    """Power failed: of the pages written since the last flush any subset is there, each old or new."""
    rng = random.Random(seed)
    path = tmp_path / "data"
    dir_workload.make(path)
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    dir_workload.append(data, 40)
    dir_workload.take_snapshot(data)
    data.kv.sync()
    data.log.trim(30, 100)
    before = (path / "kv" / "data.mdb").read_bytes()
    dir_workload.append(data, 60)
    dir_workload.replay(data)
    data.close(clean=False)
    after = (path / "kv" / "data.mdb").read_bytes()
    pages = []
    for place in range(0, len(after), 4096):
        old = before[place : place + 4096].ljust(4096, b"\0")
        pages.append(after[place : place + 4096] if rng.random() < rng.choice((0.1, 0.5, 0.9)) else old)
    (path / "kv" / "data.mdb").write_bytes(b"".join(pages))
    line = kvstate.read(path / "kv.state").split()
    line[1] = "00000000-0000-0000-0000-000000000000"
    (path / "kv.state").write_text(" ".join(line) + "\n")
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    assert data.plan.start_with is StartWith.SNAPSHOT
    dir_workload.replay(data)
    assert content(data.kv) == dir_workload.expected(100)
    data.sweep()
    data.close(clean=True)
    assert list(verify_directory(path)) == []


# --- full disks -----------------------------------------------------------------------------------------------------


def test_a_full_map_of_the_log_refuses_and_recovers(tmp_path):
    path = tmp_path / "log"
    Log.create(path, incarnation=9, membership=MEMBERS, map_size_bytes=1 << 20)
    log = Log.open(path, map_size_bytes=1 << 20)
    made = entries(1, 200, payload=lambda index: b"x" * 9000)
    with pytest.raises(DiskFull):
        commit_each(log, made)
    kept = log.last
    assert kept > 20
    assert log.entries(1, kept, 10**9) == list(made[:kept])
    assert log.trim(kept, 10) == 10
    assert log.trim(kept, 1000) > 0
    log.commit(persist(entries=made[kept : kept + 5]))
    log.close()
    log = Log.open(path, map_size_bytes=1 << 20)
    assert (log.first, log.last) == (kept, kept + 5)
    assert log.check(log.first - 1) == []
    log.close()


def test_a_full_map_of_kv_refuses_keeps_reading_and_recovers(tmp_path):
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=1 << 20)
    made = entries(1, 200, payload=lambda index: b"k%d=" % index + b"x" * 9000)
    with pytest.raises(DiskFull):
        apply(kv, made)
    kept = kv.applied
    assert kept > 20
    assert len(content(kv)) == kept
    with pytest.raises(DiskFull):
        apply(kv, made[kept:])
    assert kv.applied == kept
    batch = kv.batch()
    batch.begin(kept + 1, kv.stamp + 1, 0)
    for index in range(1, 11):
        batch.drop_head(0, b"k%d" % index)
    batch.commit(kept + 1, 1, kv.stamp + 1, 0)
    assert len(content(kv)) == kept - 10
    kv.close(clean=False)


@pytest.fixture
def small_disk(tmp_path):
    with smalldisk.small_disk(tmp_path / "disk", 12) as place:
        yield place


def commit_each(log, made):
    for one in made:
        log.commit(persist(entries=(one,)))


def test_a_full_file_system(small_disk):
    path = small_disk / "data"
    dir_workload.make(path)
    data = DataDir.open(path)
    data.log.start()
    dir_workload.append(data, 20)
    dir_workload.replay(data)
    assert data.restore_reserve()
    filler = fill(small_disk)
    assert data.free_bytes() < 65536
    made = entries(21, 400, data.log.chain(20), payload=lambda index: b"k%d=" % (index % 17) + b"x" * 3000)
    with pytest.raises(DiskFull):
        commit_each(data.log, made)
    last = data.log.last
    with pytest.raises(DiskFull):
        apply(data.kv, entries(21, 400, payload=lambda index: b"new%d=" % index + b"x" * 3000))
    applied = data.kv.applied
    with data.kv.view() as view:
        assert view.head(0, b"k1") is not None  # reads go on
    assert data.log.entries(1, 20, 10**9)
    assert not data.restore_reserve() or data.release_reserve()
    data.release_reserve()
    batch = data.kv.batch()
    batch.begin(applied + 1, data.kv.stamp, 0)
    batch.drop_head(0, b"k1")
    batch.commit(applied + 1, 1, data.kv.stamp, 0)  # deleting works from the reserve
    filler.unlink()
    data.log.commit(persist(entries=made[last - 20 : last - 10]))  # and writing when there is room again
    assert data.log.last == last + 10
    data.close(clean=False)
    log = Log.open(path / "log")
    assert log.last == last + 10
    assert log.check(0) == []
    log.close()


def test_no_room_for_a_new_directory_leaves_nothing(small_disk):
    fill(small_disk)
    with pytest.raises(DiskFull):
        dir_workload.make(small_disk / "data")
    assert os.listdir(small_disk) == ["filler"]


# --- the engine's own refusals --------------------------------------------------------------------------------------


def test_a_short_file_is_damaged_not_a_crash(tmp_path):
    path = tmp_path / "data"
    dir_workload.make(path)
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    data.log.commit(persist(entries=entries(1, 50, payload=lambda index: b"x" * 5000)))
    data.close(clean=True)
    whole = (path / "log" / "data.mdb").read_bytes()
    for length in (0, 100, 4096, 8192, 12288, len(whole) // 4, len(whole) // 2):
        (path / "log" / "data.mdb").write_bytes(whole[:length])
        for clean in (True, False):
            (path / "kv.state").write_text("clean" if clean else "dirty x 0 0")
            with pytest.raises((Damaged, StorageError)):
                DataDir.open(path, map_size_bytes=MAP_BYTES).close(clean=False)
        assert [finding for finding in verify_directory(path) if not finding.note]
    (path / "log" / "data.mdb").write_bytes(whole)
    DataDir.open(path, map_size_bytes=MAP_BYTES).close(clean=True)


def test_zeros_at_the_end_that_lmdb_has_not_written_are_no_damage(tmp_path):
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES)
    apply(kv, entries(1, 5))
    kv.close(clean=True)
    file = tmp_path / "kv" / "data.mdb"
    assert engine.missing_bytes(file) == 0
    file.write_bytes(file.read_bytes().ljust(1 << 20, b"\0"))
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES)
    assert len(content(kv)) == 5
    kv.close(clean=True)
