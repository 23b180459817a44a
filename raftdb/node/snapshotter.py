"""Snapshots: when one is due, the child process that makes it, and the log that may go afterwards.

A child that is executed anew, not forked, copies the data with one read transaction and encodes from its private copy:
encoding is pure Python, and here it would take the interpreter from the driver. It is asked for by a trigger:

    log bytes since the last one >= max(--snapshot-log-bytes, its size)
    or --snapshot-entries entries, if the log has also grown by a quarter of its size

or by CHECKPOINT, SAVE and BGSAVE. A snapshot becomes the base of the log only when its file is durable and was read
back with the right digest, which is what the child reports. Then the log's meta names it, and entries that are older
than the snapshot *before* it are dropped, in steps, so that a damaged newest file costs nothing. The last
--keep-entries (or --keep-bytes) stay for followers that lag.

Checkpoints under a name of the user's, or in another codec, are copies for people: they stand in checkpoints/, the log
knows nothing of them, and nobody sweeps them away.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from raftdb.errors import CommandError, DiskFull, RaftdbError, StorageError, UsageError
from raftdb.storage import snapshot

if TYPE_CHECKING:
    from raftdb.config import Config
    from raftdb.storage.datadir import DataDir
    from raftdb.types import SnapshotMeta

log = logging.getLogger("raftdb.snapshots")

TRIM_RECORDS: Final = 2_000  # log entries dropped in one step: a synced transaction of the driver
CHILD_NICENESS: Final = 10
LOW_LOG_BYTES: Final = 1024 * 1024  # on a disk that is nearly full this much log is worth a snapshot
RETRY_S: Final = 10.0  # after a failed snapshot the triggers rest


class Job:
    """One snapshot: asked for, under way, done."""

    def __init__(self, name: str | None, codec: str) -> None:
        self.name = name  # None: a base for the log, under a name of its own
        self.codec = codec
        self.done = threading.Event()
        self.file = ""
        self.error: RaftdbError | None = None


class Snapshotter:
    """Runs one child at a time, from a thread of its own. `in_driver` runs a function in the driver's thread."""

    def __init__(
        self,
        config: Config,
        data: DataDir,
        in_driver: Callable[[Callable[[], None]], None],
        on_snapshot: Callable[[SnapshotMeta], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._data = data
        self._in_driver = in_driver
        self._on_snapshot = on_snapshot  # driver: log meta and core are told
        self._fail = fail
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._running: Job | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._rest_until_s = 0.0
        self._trim_to = 0  # entries below this index may go
        self.last_save_s = 0  # Unix time
        self.last_error = ""
        self.made = 0

    def start(self) -> None:
        meta = self._data.log.snapshot
        self.last_save_s = int(time.time()) if meta is None else meta.stamp // 1000
        self._thread = threading.Thread(target=self._run, name="raftdb-snapshots", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a child that is under way is killed (its file has a temporary name)."""
        with self._changed:
            self._stopping = True
            for job in self._jobs:
                self._end(job, UsageError("the node is stopping"))
            self._jobs.clear()
            if self._child is not None:
                self._child.kill()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    # --- asking -----------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self._running is not None or bool(self._jobs)

    def request(self, name: str | None = None, codec: str = "msgpack") -> Job:
        """Queue a snapshot. A base for the log that is queued already serves both. Any thread.

        Raises UsageError for a name that is not a plain file name.
        """
        if name is not None:
            snapshot.plain_name(name)
        with self._changed:
            for job in self._jobs:
                if job.name is None and name is None and job.codec == codec:
                    return job
            job = Job(name, codec)
            if self._stopping:
                self._end(job, UsageError("the node is stopping"))
            else:
                self._jobs.append(job)
                self._changed.notify()
            return job

    def wait(self, job: Job) -> str:
        """The file name, when it is durable. Raises CommandError. Worker threads."""
        job.done.wait()
        if job.error is not None:
            raise CommandError(f"ERR snapshot failed: {job.error}")
        return job.file

    def trigger(self, applied: int, log_bytes: int, now_s: float, low: bool) -> None:
        """Driver, about once a second: is a snapshot due? `low`: the disk is nearly full, and old log could go."""
        if self.busy or now_s < self._rest_until_s:
            return
        if not self._data.kv.membership.members:
            return  # a node that joined and has not applied its own joining yet: nobody could start from its file
        last = self._data.log.snapshot
        entries = applied - (last.index if last is not None else 0)
        last_bytes = last.size_bytes if last is not None else 0
        bound = max(self._config.snapshot_log_bytes, last_bytes)
        if low:
            bound = min(bound, LOW_LOG_BYTES)
        if low and self._older_holds_log():
            self._rest_until_s = now_s + RETRY_S
            self.request()
        elif entries > 0 and (
            log_bytes >= bound or (entries >= self._config.snapshot_entries and log_bytes >= last_bytes // 4)
        ):
            log.info("snapshot: %d entries and %d KiB of log since the last one", entries, log_bytes // 1024)
            if low:
                self._rest_until_s = now_s + RETRY_S
            self.request()

    def _older_holds_log(self) -> bool:
        """Would a second snapshot at the place of the last one let much of the log go, and an older, larger file?"""
        last, older = self._data.log.snapshot, self._data.log.previous_snapshot
        if last is None or (older is not None and older.index >= last.index):
            return False
        held_bytes = self._data.log.bytes_after(older.index if older is not None else 0)
        return held_bytes - self._data.log.bytes_after(last.index) >= LOW_LOG_BYTES

    # --- the log ----------------------------------------------------------------------------------------------------

    def trim(self, pinned: int) -> bool:
        """Driver, once per tick: drop some old entries. `pinned`: the first index that a follower still needs."""
        data_log = self._data.log
        older = data_log.previous_snapshot
        if older is None:
            return False
        to = min(older.index + 1, pinned)
        if to <= data_log.first or self._kept_from() <= data_log.first:
            return False
        return data_log.trim(min(to, self._kept_from()), TRIM_RECORDS) > 0

    def _kept_from(self) -> int:
        """The first of the last entries that stay for followers that lag: bounded in number and in bytes."""
        data_log = self._data.log
        low = max(data_log.first, data_log.last - self._config.keep_entries + 1)
        high = data_log.last + 1
        if data_log.bytes_after(low - 1) <= self._config.keep_bytes:
            return low
        while low < high:
            middle = (low + high) // 2
            if data_log.bytes_after(middle - 1) > self._config.keep_bytes:
                low = middle + 1
            else:
                high = middle
        return low

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._make(job)
                self._end(job, None)
            except UsageError as error:  # the caller's, or the node stops: no snapshot has failed
                self._end(job, error)
            except (DiskFull, StorageError) as error:
                self._failed(job, error)
            except OSError as error:
                self._failed(job, StorageError(f"snapshot: {error}"))
            except Exception as error:
                self._failed(job, StorageError(f"snapshot: {type(error).__name__}"))
                self._fail(error)

    def _next(self) -> Job | None:
        with self._changed:
            self._running = None
            while not self._jobs and not self._stopping:
                self._changed.wait()
            if self._stopping:
                return None
            self._running = self._jobs.pop(0)
            return self._running

    def _make(self, job: Job) -> None:
        target = self._target(job)
        kv = self._data.kv
        kv.sync()
        meta = self._run_child(kv.path, target, job.codec)
        job.file = target.name
        self.made += 1
        self.last_error = ""
        self.last_save_s = int(time.time())
        if job.name is None and job.codec == "msgpack":
            self._register(meta)
        log.info("snapshot %s: index %d, %d KiB", meta.name, meta.index, meta.size_bytes // 1024)

    def _target(self, job: Job) -> Path:
        """Where the file goes."""
        if job.name is None and job.codec == "msgpack":
            return self._new_base()
        own = self._file_name(int(time.time()))
        directory = self._data.path / "checkpoints"
        directory.mkdir(mode=0o700, exist_ok=True)
        return directory / (job.name or own)

    def _new_base(self) -> Path:
        """A name that no file has: one that the log names must not be replaced by another with the same name."""
        unix_s = int(time.time())
        while (target := self._data.path / "snapshots" / self._file_name(unix_s)).exists():
            unix_s += 1
        return target

    def _file_name(self, unix_s: int) -> str:
        return snapshot.file_name(self._data.identity.node_id, unix_s, self._data.kv.applied)

    def _run_child(self, kv_path: Path, target: Path, codec: str) -> SnapshotMeta:
        identity = self._data.identity
        argv = snapshot.child_command(
            kv_path, target, node_id=identity.node_id, cluster_id=identity.cluster_id, codec=codec
        )
        with self._changed:
            if self._stopping:
                raise UsageError("the node is stopping")
            child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self._child = child
        _be_nice(child.pid)
        stdout, stderr = child.communicate()
        with self._changed:
            self._child = None
        if child.returncode != 0 and not stdout.strip():
            reason = stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
            raise StorageError(f"the snapshot process ended with {child.returncode}: {reason}")
        return snapshot.child_result(stdout)

    def _register(self, meta: SnapshotMeta) -> None:
        """The log's meta names it: in the driver, which owns the log; wait for that."""
        told = threading.Event()

        def tell() -> None:
            try:
                self._on_snapshot(meta)
            finally:
                told.set()

        self._in_driver(tell)
        while not told.wait(0.2):
            if self._stopping:
                raise UsageError("the node is stopping")

    def _failed(self, job: Job, error: RaftdbError) -> None:
        if not self._stopping:
            log.error("snapshot failed: %s", error)
        self.last_error = str(error)
        self._rest_until_s = time.monotonic() + RETRY_S
        self._end(job, error)

    @staticmethod
    def _end(job: Job, error: RaftdbError | None) -> None:
        job.error = error
        job.done.set()


def _be_nice(pid: int) -> None:
    """The child yields to the driver; it may have ended already."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, CHILD_NICENESS)
    except OSError:
        log.debug("the snapshot process runs at normal priority")
