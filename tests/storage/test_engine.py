"""What the engine refuses: a second opening, another thread, use after fork, network file systems; errors it
translates."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import lmdb
import pytest

from raftdb.errors import Bug, Damaged, DiskFull, StorageError, UsageError
from raftdb.storage import engine, files, kvstate
from raftdb.storage.engine import Environment
from raftdb.storage.kv import KvStore

from .build import MAP_BYTES, MEMBERS, apply, content, entries

SPACES = (b"one", b"meta")


@pytest.fixture
def environment(tmp_path):
    opened = Environment(tmp_path / "env", SPACES, sync=True, map_size_bytes=MAP_BYTES)
    yield opened
    opened.close()


def put(environment, key=b"k", value=b"v"):
    transaction = environment.writer()
    transaction.put(key, value, db=environment.databases[0])
    environment.commit(transaction)


def test_a_path_is_open_once_per_process(environment):
    for path in (environment.path, environment.path.parent / "env" / ".." / "env"):
        with pytest.raises(Bug, match="open in this process"):
            Environment(path, SPACES, sync=True, map_size_bytes=MAP_BYTES)
    environment.close()
    Environment(environment.path, SPACES, sync=True, map_size_bytes=MAP_BYTES).close()


def test_an_environment_that_nobody_holds_is_closed(tmp_path):
    Environment(tmp_path / "env", SPACES, sync=True, map_size_bytes=MAP_BYTES)
    gc.collect()
    Environment(tmp_path / "env", SPACES, sync=True, map_size_bytes=MAP_BYTES).close()


def in_thread(call):
    caught = []

    def run():
        try:
            call()
        except Exception as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return caught


def test_only_the_owner_thread_writes(environment):
    transaction = environment.writer()
    (error,) = in_thread(lambda: environment.commit(transaction))
    assert isinstance(error, Bug)
    transaction.abort()
    (error,) = in_thread(environment.writer)
    assert isinstance(error, Bug)

    def claim_and_write():
        environment.claim()
        put(environment)

    assert in_thread(claim_and_write) == []
    with pytest.raises(Bug):
        environment.writer()
    environment.claim()
    put(environment)


def test_a_forked_child_is_refused(environment, tmp_path):
    put(environment)
    answer = tmp_path / "answer"
    child = os.fork()
    if child == 0:
        try:
            environment.reader()
        except Bug as error:
            answer.write_text(str(error))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert "fork" in answer.read_text()
    put(environment, b"k2")  # the parent goes on


def test_network_file_systems_are_refused(tmp_path, monkeypatch):
    assert files.file_system_type(tmp_path) not in files.NETWORK_FILE_SYSTEMS
    assert files.file_system_type(Path("/proc")) == "proc"
    monkeypatch.setattr(files, "file_system_type", lambda path: "nfs4")
    with pytest.raises(UsageError, match="nfs4"):
        Environment(tmp_path / "env", SPACES, sync=True)
    assert not (tmp_path / "env").exists()


def test_the_map_has_room_for_the_file_system(tmp_path):
    status = os.statvfs(tmp_path)
    assert files.map_bytes(tmp_path) >= max(64 << 30, status.f_blocks * status.f_frsize - 65536)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lmdb.MapFullError("full"), DiskFull),
        (lmdb.DiskError("full"), DiskFull),
        (OSError(errno.ENOSPC, "full"), DiskFull),
        (OSError(errno.EDQUOT, "quota"), DiskFull),
        (OSError(errno.EIO, "broken"), StorageError),
        (lmdb.Error("mdb_txn_commit: Input/output error"), StorageError),
        (lmdb.CorruptedError("page"), Damaged),
        (lmdb.PanicError("panic"), StorageError),
    ],
)
def test_what_errors_mean(tmp_path, error, expected):
    assert type(engine.translate(error, tmp_path)) is expected


def test_a_cut_write_on_a_full_disk_is_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "free_bytes", lambda path: 1000)
    assert type(engine.translate(OSError(errno.EIO, "cut"), tmp_path)) is DiskFull


def test_a_stale_meta_page_is_told_from_the_right_one(tmp_path):
    """A flipped bit in the older meta page's transaction number makes LMDB go back by one commit."""
    path = tmp_path / "env"
    environment = Environment(path, SPACES, sync=True, map_size_bytes=MAP_BYTES)
    for number in range(6):
        put(environment, b"k", b"%d" % number)
    environment.close()
    data = bytearray((path / "data.mdb").read_bytes())
    numbers = [int.from_bytes(data[page + 144 : page + 152], "little") for page in (0, 4096)]
    older = numbers.index(min(numbers)) * 4096
    data[older + 145] ^= 1
    (path / "data.mdb").write_bytes(data)
    raw = lmdb.open(str(path), max_dbs=4, map_size=MAP_BYTES, readonly=True, lock=False)
    database = raw.open_db(b"one", create=False)
    with raw.begin() as transaction:
        assert transaction.get(b"k", db=database) == b"4"  # plain LMDB is deceived
    raw.close()
    with pytest.raises(Damaged, match="newest"):
        Environment(path, SPACES, sync=True, map_size_bytes=MAP_BYTES)


def test_small_files_are_replaced_durably(tmp_path):
    files.write_file(tmp_path / "file", b"one")
    files.write_file(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_a_synced_kv_stays_clean(tmp_path):
    kv = KvStore.open(tmp_path / "kv", tmp_path / "kv.state", map_size_bytes=MAP_BYTES, sync_each_batch=True)
    apply(kv, entries(1, 5), MEMBERS)
    assert kvstate.read(tmp_path / "kv.state") == "clean"
    kv.close(clean=False)
    assert kvstate.is_trusted(tmp_path / "kv.state", tmp_path / "kv")


def test_the_dirty_mark_is_written_before_the_first_write(tmp_path, monkeypatch):
    kv = KvStore.open(tmp_path / "kv", tmp_path / "kv.state", map_size_bytes=MAP_BYTES)
    assert kvstate.read(tmp_path / "kv.state") == ""
    seen = []
    real = Environment.writer

    def writer(self):
        seen.append(kvstate.read(tmp_path / "kv.state"))
        return real(self)

    monkeypatch.setattr(Environment, "writer", writer)
    kv.batch().abort()
    assert seen
    assert seen[0] == kvstate.dirty_line(tmp_path / "kv")
    kv.close(clean=False)


def test_readers_in_threads_see_committed_batches_only(tmp_path):
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES)
    made = entries(1, 300, payload=lambda index: b"a=%d" % index)
    wrong = []
    stop = threading.Event()

    def read():
        while not stop.is_set():
            with kv.view() as view:
                head = view.head(0, b"a")
                if (0 if head is None else int(head.value)) != view.applied:
                    wrong.append((head, view.applied))

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    apply(kv, made)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert content(kv) == {b"a": b"300"}
    kv.close(clean=False)


def test_another_process_reads_while_this_one_writes(tmp_path):
    kv = KvStore.open(tmp_path / "kv", tmp_path / "kv.state", map_size_bytes=MAP_BYTES)
    apply(kv, entries(1, 5))
    program = (
        "import sys; from pathlib import Path; from raftdb.storage.kv import KvStore\n"
        "kv = KvStore.open(Path(sys.argv[1]), Path(sys.argv[2]), read_only=True)\n"
        "with kv.view() as view: print(view.count(0), view.applied)\n"
        "kv.close(clean=True)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "kv"), str(tmp_path / "kv.state")]
    state = kvstate.read(tmp_path / "kv.state")
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout == "5 5\n"
    assert kvstate.read(tmp_path / "kv.state") == state
    apply(kv, entries(6, 5, kv.chain))
    kv.close(clean=True)


def test_what_can_be_reused_after_deleting(tmp_path):
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES)
    apply(kv, entries(1, 50, payload=lambda index: b"k%d=" % index + b"x" * 9000))
    before = kv.stats()["reusable_bytes"]
    batch = kv.batch()
    batch.begin(51, kv.stamp, 0)
    for number in range(1, 41):
        batch.drop_head(0, b"k%d" % number)
    batch.commit(51, 1, kv.stamp, 0)
    stats = kv.stats()
    assert 40 * 9000 <= stats["reusable_bytes"] - before <= stats["used_bytes"]
    kv.close(clean=False)
