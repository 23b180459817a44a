"""Once a second: make the data follow the log to the disk, and look how much room is left.

The key-value store is committed without fsync; the log is its truth. `KvStore.sync()` still runs here every second,
or after 32 MiB of changes: it bounds what a restart of the machine must replay, and what an fdatasync of the log must
wait for on file systems that order their writes (ext4). A sync that fails ends the process: what the page cache says
after that is not what the disk holds.

Neither the sync nor statvfs may run on the driver: a disk that hangs would stop the heartbeats.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from raftdb.config import MIB
from raftdb.errors import StorageError

log = logging.getLogger("raftdb.disk")

SYNC_BYTES: Final = 32 * MIB
PERIOD_S: Final = 1.0


class Housekeeper:
    """`sync` makes the data durable, `fail` stops the node. `low` is read by the driver before it takes writes."""

    def __init__(
        self,
        paths: list[Path],
        min_free_bytes: int,
        sync: Callable[[], None],
        fail: Callable[[BaseException], None],
        reusable_bytes: Callable[[], int] = lambda: 0,
    ) -> None:
        """`reusable_bytes`: room inside the files, which do not shrink when their data does."""
        self._paths = paths
        self._reusable_bytes = reusable_bytes
        self.min_free_bytes = min_free_bytes
        self._sync = sync
        self._fail = fail
        self._due = threading.Event()
        self._stopping = False
        self._unsynced_bytes = 0
        self._thread: threading.Thread | None = None
        self.low = False  # less than --min-free is left on one of the paths
        self.free_bytes = 0  # the least of the paths, as of the last look

    def start(self) -> None:
        self._look()
        self._thread = threading.Thread(target=self._run, name="raftdb-disk", daemon=True)
        self._thread.start()

    def wrote(self, size_bytes: int) -> None:
        """Driver: so much was committed to the data without sync. Wakes the thread at 32 MiB."""
        self._unsynced_bytes += size_bytes
        if self._unsynced_bytes >= SYNC_BYTES:
            self._unsynced_bytes = 0
            self._due.set()

    def stop(self) -> None:
        """Ends the thread after the sync that may be under way. The final sync is the caller's."""
        self._stopping = True
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait(PERIOD_S)
            self._due.clear()
            if self._stopping:
                return
            try:
                self._look()
                self._sync()
            except (StorageError, OSError) as error:
                self._fail(error if isinstance(error, StorageError) else StorageError(f"sync of the data: {error}"))
                return

    def _look(self) -> None:
        free_bytes = min(free_space_bytes(path) for path in self._paths) + self._reusable_bytes()
        low = free_bytes < self.min_free_bytes
        if low != self.low:
            log.warning(
                "%d MiB free, --min-free is %d MiB: %s",
                free_bytes // MIB,
                self.min_free_bytes // MIB,
                "only commands that shrink the data are accepted" if low else "writes are accepted again",
            )
        self.free_bytes, self.low = free_bytes, low


def free_space_bytes(path: Path) -> int:
    """What an unprivileged process may still write on the file system of `path`. Raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize
