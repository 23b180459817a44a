"""Room for an environment that is written through its map (LMDB's MDB_WRITEMAP).

Without it LMDB copies every page that a transaction touches into memory of its own, and writes each of them out at the
commit: 3.9 us per random put of a large transaction, and the memory is kept for ever. Through the map a page is copied
once, into the page cache, where it stays: 2.4 us, and nothing anonymous. So the data (kv) is written through its map
where that is safe. The log is not: what a commit of it must not do, namely reach the disk before its meta page may, the
kernel does whenever it likes with a page of a map.

What has to be true, and how it is made true:

- **No hole is written to.** A store into a hole of the file takes a block, and on a full disk the answer is a signal
  (SIGBUS) that ends the process, where write() says ENOSPC. So blocks are taken beforehand, with posix_fallocate(),
  up to the last page that the transaction can take: expect() is told before each batch of changes how many rows and
  bytes they are, and raises DiskFull when the file system does not have them. The worst case counts: every row copies
  each page on its way through the tree (but none twice), splits its leaf, and finds no page to use again.
- **What has blocks keeps them.** True where a file system writes in place: ext4, xfs, tmpfs. One that copies on write
  (btrfs, zfs, ...) takes new blocks for old pages, so there, and where the kind is not known, write() is used.
- **The data fits into memory.** Storing into a page of the map reads it first if it is not in the page cache; write()
  replaces it blindly. Data larger than half of the memory at the start of a node is written with write().
- **The disk has room now.** A node that starts with less than FREE_BYTES_MIN uses write(), whose demands are exact.

A process that is killed leaves what it stored: pages that no meta page names, or a whole commit. A kernel that dies
leaves anything, which is why kv is believed only within one boot (kvstate), whichever way it is written.

LMDB makes the file as long as its map when it opens it this way: 64 GiB and more of hole. close() cuts it to what is
used; after a kill it stays long, and every tool that knows holes (du, cp, tar -S, rsync -S) sees what it is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from raftdb.errors import DiskFull, StorageError
from raftdb.storage import files

IN_PLACE: Final = frozenset({"ext4", "xfs", "tmpfs"})
FREE_BYTES_MIN: Final = 1 << 30
KEPT_BYTES: Final = 1 << 20  # of the file system that are not taken ahead of time: the log wants room, too
STEP_BYTES_MIN: Final = 256 << 10
STEP_BYTES_MAX: Final = 16 << 20
FREE_STEPS_MIN: Final = 64  # so many steps must be free, or only what is needed is taken
BASE_PAGES: Final = 64  # per transaction: the roots, the state, the number of the commit
LARGE_BYTES: Final = 1500  # a row of more, beside its key of up to 511, may stand in pages of its own
#: LMDB's list of free pages takes 8 bytes per page, and may be written anew by any commit, old and new one together;
#: its tree is small beside it.
LIST_PAGES_PER_PAGE: Final = 128
_CGROUP_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")


def suits(data_file: Path) -> bool:
    """May the environment with this data file, made or yet to be made, be written through its map?"""
    place = data_file.parent if data_file.parent.exists() else data_file.parent.parent
    try:
        used_bytes = data_file.stat().st_blocks * 512 if data_file.exists() else 0
        return (
            hasattr(os, "posix_fallocate")
            and files.file_system_type(place) in IN_PLACE
            and files.free_bytes(place) >= FREE_BYTES_MIN
            and used_bytes <= _memory_bytes() // 2
        )
    except OSError:
        return False


def _memory_bytes() -> int:
    """Of the machine, or what the control group of this process may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such group, or "max"
        return machine


class Room:
    """Blocks for the file from its start up to a page that moves on. One thread, the one that writes."""

    def __init__(self, data_file: Path, page_bytes: int, last_page: int) -> None:
        """Fills the holes of what is used, and takes room for a first transaction. Raises OSError, DiskFull."""
        self._path = data_file
        self._page_bytes = page_bytes
        self._pages = 0  # from the start of the file that have blocks
        self._first = last_page + 1  # the first one that this transaction would take
        self._taken = 0  # pages that it can have taken, as told so far
        self._copied: dict[Any, int] = {}  # of them: copies of pages of each database
        self._descriptor = os.open(data_file, os.O_RDWR | os.O_CLOEXEC)
        try:
            self.begin(last_page)
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def unused_bytes(self) -> int:
        """Of the blocks that were taken ahead of time, as of the beginning of the last transaction."""
        return max(0, self._pages - self._first) * self._page_bytes

    def begin(self, last_page: int) -> None:
        """A transaction begins on pages up to this one. Raises DiskFull."""
        self._first = last_page + 1
        self._taken = BASE_PAGES + self._first // LIST_PAGES_PER_PAGE
        self._copied.clear()
        if self._first + self._taken > self._pages:
            self._take()

    def expect(self, database: Any, stat: dict[str, int], rows: int, row_bytes: int) -> None:
        """So many rows of so many bytes together will be put, or deleted, in `database`, of which this is the `stat`.

        Raises DiskFull: none of them may be.
        """
        pages = stat["branch_pages"] + stat["leaf_pages"]
        copied = self._copied.get(database, 0)
        copies = min(copied + rows * (stat["depth"] + 1), pages)
        if copies > copied:
            self._copied[database] = copies
            self._taken += copies - copied
        # A leaf splits for each row at worst, a branch for every few of its leaves; large rows lie in whole pages.
        self._taken += rows + rows // 4 + 4 + row_bytes // self._page_bytes + min(rows, row_bytes // LARGE_BYTES)
        if self._first + self._taken > self._pages:
            self._take()

    def _take(self) -> None:
        """Raises DiskFull."""
        needed = self._first + self._taken - self._pages
        status = os.fstatvfs(self._descriptor)
        free_bytes = status.f_bavail * status.f_frsize
        if needed * self._page_bytes + KEPT_BYTES > free_bytes:
            raise DiskFull(f"{self._path}: no room left ({needed * self._page_bytes} bytes are needed)")
        step = min(STEP_BYTES_MAX, max(STEP_BYTES_MIN, self._pages * self._page_bytes // 8))
        if free_bytes >= FREE_STEPS_MIN * step:
            needed = max(needed, step // self._page_bytes)
        try:
            os.posix_fallocate(self._descriptor, self._pages * self._page_bytes, needed * self._page_bytes)
        except OSError as error:
            raise DiskFull(f"{self._path}: no room left ({error})") from error
        self._pages += needed

    def close(self, last_page: int) -> None:
        """After the environment was closed: cuts the file behind its last page. Raises StorageError."""
        try:
            os.ftruncate(self._descriptor, (last_page + 1) * self._page_bytes)
        except OSError as error:
            raise StorageError(f"{self._path}: {error}") from error
        finally:
            os.close(self._descriptor)
