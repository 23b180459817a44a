"""Installing a leader's snapshot: the third step, after the file is checked and the log's meta names it.

The new key-value environment is built beside the old one by a thread of its own (it may take seconds, and the node
goes on voting and acknowledging meanwhile), then the driver switches. Until then nothing is applied, and reads that
need a newer index wait. A snapshot that arrives while another one is being built waits for it and is built next; a
crash at any point is the start table's business (storage/datadir.py), since the log's meta says what is right.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from raftdb.errors import DiskFull, RaftdbError, StorageError

if TYPE_CHECKING:
    from raftdb.storage.datadir import DataDir
    from raftdb.types import SnapshotMeta

log = logging.getLogger("raftdb.install")


class Installer:
    """`in_driver` runs a function in the driver's thread; `switched` is called there with what was installed."""

    def __init__(
        self,
        data: DataDir,
        in_driver: Callable[[Callable[[], None]], None],
        switched: Callable[[SnapshotMeta], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._data = data
        self._in_driver = in_driver
        self._switched = switched
        self._fail = fail
        self._next: SnapshotMeta | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """Nothing may be applied."""
        return self._thread is not None

    def install(self, meta: SnapshotMeta) -> None:
        """Driver: the log has `meta` as its base now."""
        if self._thread is not None:
            self._next = meta
            return
        log.info("installing snapshot %s: index %d, %d KiB", meta.name, meta.index, meta.size_bytes // 1024)
        self._thread = threading.Thread(target=self._build, args=(meta,), name="raftdb-install", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait for a build that is under way. Not in the driver's thread."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _build(self, meta: SnapshotMeta) -> None:
        try:
            path = self._data.build_kv(meta)
        except (StorageError, DiskFull, RaftdbError, OSError) as error:
            self._fail(error if isinstance(error, RaftdbError) else StorageError(f"install: {error}"))
            return
        self._in_driver(lambda: self._built(meta, path))

    def _built(self, meta: SnapshotMeta, path: Path) -> None:
        self._thread = None
        if self._next is not None:
            newer, self._next = self._next, None
            self.install(newer)
            return
        if meta.index <= self._data.kv.applied:
            return  # what was applied before the build began is newer; sweep() removes what was built
        self._data.switch_kv(path)
        self._switched(meta)
