"""Room for an environment that is written through its map (LMDB's MDB_WRITEMAP).

Without it LMDB copies every page that a transaction touches into memory of its own, and writes each of them out at the
commit: 3.9 us per random put of a large transaction, and the memory is kept for ever. Through the map a page is copied
once, into the page cache, where it stays: 2.4 us, and nothing anonymous. So the data (kv) is written through its map
where that is safe. The log is not: what a commit of it must not do, namely reach the disk before its meta page may, the
kernel does whenever it likes with a page of a map.

The danger: a store into a hole of the file takes a block, and on a full disk the answer is no ENOSPC but a signal
(SIGBUS) that ends the process. So before each batch of changes expect() is told how many rows and bytes they are. From
that comes the number of pages that the transaction takes at worst: every row copies the pages on its way through the
tree and a neighbour of each, but none twice, splits its leaf, and finds no page to use again. These pages must either

- have their blocks already: 4 to 16 MiB behind the last page, and a sixty-fourth of the file, are kept allocated, which
  is what lets deletes go on when somebody else has filled the disk; or
- find room: the file system has what they need and SPARE_BYTES more. Nothing is allocated for the worst case, which is
  many times what really happens.

Otherwise it is DiskFull, before anything has changed. Whoever runs into it tries less at once (node/applier.py).

What is left: another program takes all of a disk in the instant between the look and the store (fallocate can), and
this transaction needs more than what is kept ahead. Then the process dies by SIGBUS. Nothing is lost, since kv is a
cache of snapshot and log: the next start finds a commit, sees the full disk, and writes with write().

Where the map is not used, but write(), whose demands are exact:

- on file systems that may take new blocks for old pages: all that copy on write (btrfs, zfs, xfs with reflinks), and
  those that are not known;
- where less than FREE_BYTES_MIN of the disk is free at the start;
- where the data is larger than half of the memory at the start: storing into a page of the map reads it first if it is
  not in the page cache; write() replaces it blindly.

A process that is killed leaves what it stored: pages that no meta page names, or a whole commit. A kernel that dies
leaves anything, which is why kv is believed only within one boot (kvstate), whichever way it is written.

The kernel's log may show `EXT4-fs warning ... ext4_convert_unwritten_extents_endio`, a few times a day under full load:
room was taken beside blocks that were being written. It splits the extent and goes on; nothing is lost.

LMDB makes the file as long as its map when it opens it this way: 64 GiB and more of hole. close() cuts it to what is
used; after a kill it stays long until the next start. Tools that know holes (du, cp, tar -S, rsync -S) see what it is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from raftdb.errors import DiskFull, StorageError
from raftdb.storage import files

IN_PLACE: Final = frozenset({"ext4", "tmpfs"})
FREE_BYTES_MIN: Final = 1 << 30
SPARE_BYTES: Final = 64 << 20
AHEAD_BYTES_MIN: Final = 4 << 20
AHEAD_BYTES_MAX: Final = 16 << 20
BASE_PAGES: Final = 64  # per transaction: the roots, the state, the number of the commit
LARGE_BYTES: Final = 1500  # a row of more, beside its key of up to 511, may stand in pages of its own
#: LMDB's list of free pages takes 8 bytes per page, and may be written anew by any commit, old and new one together.
PAGES_PER_LIST_PAGE: Final = 256
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
    """Of the machine, or of the container: the limit of the control group that is the root of this namespace."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_CGROUP_LIMIT.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such limit, or "max"
        return machine


class Room:
    """Answers whether a transaction may store what it wants to. One thread, the one that writes."""

    def __init__(self, data_file: Path, page_bytes: int, last_page: int) -> None:
        """Fills the holes of what is used, and keeps some room ahead. Raises OSError, DiskFull."""
        self._path = data_file
        self._page_bytes = page_bytes
        self._pages = 0  # from the start of the file that have blocks
        self._first = last_page + 1  # the first one that this transaction would take
        self._taken = 0  # pages that it can have taken, as told so far
        self._copied: dict[Any, int] = {}  # of them: copies of pages of each database
        # An object, which is closed with the last reference: an environment may end without close() (retire()).
        self._file = data_file.open("r+b", buffering=0)
        try:
            self._keep_ahead()
        except BaseException:
            self._file.close()
            raise

    def begin(self, last_page: int) -> None:
        """A transaction begins on pages up to this one. Raises DiskFull."""
        self._first = last_page + 1
        self._taken = BASE_PAGES
        self._copied.clear()
        if self._pages - self._first < self._ahead_pages() // 2:
            with suppress(DiskFull):  # what this transaction needs may be there all the same
                self._keep_ahead()
        self._check()

    def expect(self, database: Any, stat: dict[str, int], rows: int, row_bytes: int) -> None:
        """So many rows of so many bytes together will be put, or deleted, in `database`, of which this is the `stat`.

        Raises DiskFull: none of them may be.
        """
        copied = self._copied.get(database, 0)
        copies = min(copied + 2 * rows * stat["depth"], stat["branch_pages"] + stat["leaf_pages"])
        if copies > copied:
            self._copied[database] = copies
            self._taken += copies - copied
        # A leaf splits for each row at worst, a branch for every few of its leaves; large rows lie in whole pages.
        self._taken += rows + rows // 4 + 4 + row_bytes // self._page_bytes + min(rows, row_bytes // LARGE_BYTES)
        self._check()

    @property
    def needed_pages(self) -> int:
        """That this transaction can have taken at its end, the list of free pages included."""
        return self._taken + (self._first + self._taken) // PAGES_PER_LIST_PAGE

    def _check(self) -> None:
        """Raises DiskFull."""
        missing = self._first + self.needed_pages - self._pages
        if missing <= 0:
            return
        missing_bytes = missing * self._page_bytes
        if missing_bytes + SPARE_BYTES > (free_bytes := self._free_bytes()):
            raise DiskFull(
                f"{self._path}: no room left (of {free_bytes} bytes {SPARE_BYTES} must stay free, "
                f"and up to {missing_bytes} are needed)"
            )

    def _free_bytes(self) -> int:
        status = os.fstatvfs(self._file.fileno())
        return status.f_bavail * status.f_frsize

    def _ahead_pages(self) -> int:
        """Half of them, which is what is always left, are enough for the list of free pages and some deletes."""
        ahead_bytes = min(AHEAD_BYTES_MAX, max(AHEAD_BYTES_MIN, self._first * self._page_bytes // 8))
        return ahead_bytes // self._page_bytes + 4 * self._first // PAGES_PER_LIST_PAGE

    def _keep_ahead(self) -> None:
        """Raises DiskFull."""
        ahead = self._ahead_pages()
        if ahead * self._page_bytes + SPARE_BYTES > self._free_bytes():
            raise DiskFull(f"{self._path}: no room left to keep {ahead * self._page_bytes} bytes ahead")
        pages = self._first + ahead
        start = min(self._pages, self._first)  # what was stored beyond the room kept ahead may have holes between
        try:
            os.posix_fallocate(self._file.fileno(), start * self._page_bytes, (pages - start) * self._page_bytes)
        except OSError as error:
            raise DiskFull(f"{self._path}: no room left ({error})") from error
        self._pages = pages

    def close(self, last_page: int) -> None:
        """After the environment was closed: cuts the file behind its last page. Raises StorageError."""
        try:
            os.ftruncate(self._file.fileno(), (last_page + 1) * self._page_bytes)
        except OSError as error:
            raise StorageError(f"{self._path}: {error}") from error
        finally:
            self._file.close()
