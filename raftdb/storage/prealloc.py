"""Room in front of a file that is synced on every commit.

A flush of pages that lie inside a file costs the disk one write. A flush that also makes the file longer, or that fills
a hole of it, costs a commit of the file system's journal besides: on ext4 0.22-0.26 ms against 0.13-0.15 ms for a plain
fdatasync of 4 KiB, 0.48-0.55 against 0.32-0.37 ms for a commit of the log with an entry of 4 KB. So the log's file is
made longer ahead of time, in steps, by writing zeros: posix_fallocate() would only move the price, since its extents
count as unwritten until their first flush, which then goes through the journal again.

LMDB does not mind: it knows from its meta page how far it has got, and writes its pages wherever they belong. Zeros are
no page to it. The steps are small (a quarter of what is used, 256 KiB to 4 MiB), because the next flush has them to
write; and none is taken when the file system has little room, where the room must stay for what is real.

The zeros are written in small pieces: ext4 keeps what one write() brings in one folio of the page cache, and walks over
all blocks of a folio for each page that is written into it later. With pieces of 1 MiB that walk was 5 to 10 % of the
processor time of a follower, with 16 KiB it is 1.5 %.

Only the thread that writes to the environment may call, and only between its transactions: zeros written while LMDB
writes there would be the end of the data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

STEP_BYTES_MIN: Final = 256 << 10
STEP_BYTES_MAX: Final = 4 << 20
FREE_STEPS_MIN: Final = 64  # so many steps must be free on the file system, or none is taken
CHUNK_BYTES: Final = 16 << 10
RETRY_CALLS: Final = 4096  # after a step that found no room


class Ahead:
    """Keeps zeros in front of the used part of a file."""

    def __init__(self, file: Path) -> None:
        """Raises OSError."""
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        self._file_bytes = os.fstat(self._descriptor).st_size
        self._rest = 0  # calls until it is tried again

    def keep(self, used_bytes: int) -> None:
        """The file is used up to here: make it longer when less than half a step is left. Never raises."""
        step = min(STEP_BYTES_MAX, max(STEP_BYTES_MIN, used_bytes // 4 // 4096 * 4096))
        if used_bytes + step // 2 <= self._file_bytes:
            return
        if self._rest:
            self._rest -= 1
            return
        try:
            self._lengthen(used_bytes, step)
        except OSError:
            self._rest = RETRY_CALLS

    def _lengthen(self, used_bytes: int, step: int) -> None:
        """Raises OSError."""
        status = os.fstatvfs(self._descriptor)
        if status.f_bavail * status.f_frsize < FREE_STEPS_MIN * step:
            self._rest = RETRY_CALLS
            return
        size = max(os.fstat(self._descriptor).st_size, used_bytes)
        end = used_bytes + step
        while size < end:
            size += os.pwrite(self._descriptor, bytes(min(end - size, CHUNK_BYTES)), size)
        self._file_bytes = size

    def close(self) -> None:
        os.close(self._descriptor)
