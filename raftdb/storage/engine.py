"""Ownership of LMDB environments: what LMDB does not forgive is refused here.

- One open environment per path and process: a second one would share, and on closing drop, the first one's locks.
- One thread writes. py-lmdb does not refuse a write transaction that two threads use; `writer()` asserts the owner.
- Never across fork(): a child's copy of the environment is made unusable, with one clear line.
- No network file systems: LMDB needs a coherent shared memory map and working locks.
- The map size is set once, when the environment is opened, to the size of the file system (at least 64 GiB): address
  space is free, and growing a map needs all transactions ended.
- A full map or a full disk is DiskFull: the transaction is gone, nothing has changed, reading goes on. Everything
  else that LMDB or the operating system reports is StorageError: after a failed flush the page cache shows data that
  the disk does not have, and LMDB would go on as if nothing had happened; so the process must end.

Short writes: LMDB reports a write that the full disk cut short as EIO. EIO is taken as DiskFull only when the file
system has next to no room left. That is safe: a commit that failed was not acknowledged, its pages are free ones, and
the next transaction writes whatever it uses of them again.

Every commit writes its own transaction number into the last database of the environment (`commit`). A flipped bit in
the number of the older one of LMDB's two meta pages makes LMDB take it for the newer: a perfect tree, one commit old.
The number inside that tree then differs from the page's, which is looked at when an environment is opened.

Short files: a data file that was cut ends the process by SIGBUS when LMDB reads behind its end. LMDB itself leaves
pages unwritten that a transaction took and gave back, so a file may rightly be a little short: who opens it for
writing extends it with zeros, which LMDB refuses as pages; a read-only opener walks the file with lmdb.verify first.

The data is written through its map where that is safe: what that takes stands in mapped.py, and whoever changes such an
environment calls expect() first.

Read transactions are kept by py-lmdb for reuse (max_spare_txns), so opening one is a reset and a renew.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

import lmdb
from lmdb import verify as lmdb_verify

from raftdb.errors import Bug, Damaged, DiskFull, RaftdbError, StorageError, UsageError
from raftdb.storage import mapped
from raftdb.storage.checksum import RESIDUE, crc32c
from raftdb.storage.files import free_bytes, map_bytes, refuse_network_file_system, sync_directory
from raftdb.storage.mapped import Room
from raftdb.storage.prealloc import Ahead

COMMIT_NAME: Final = b"commit"
SHORT_BYTES_MAX: Final = 1 << 20
READERS_MAX: Final = 1024
READER_SLOT_BYTES: Final = 128  # 64 on most machines, 128 where cache lines are longer
SPARE_READERS: Final = 64
NEARLY_FULL_BYTES: Final = 4 << 20
_open_paths: WeakValueDictionary[str, Environment] = WeakValueDictionary()
_kept_after_fork: list[Any] = []  # a child must not run the destructors of its parent's environments


class _Forked:
    """Stands in the place of an environment in a forked child."""

    def __getattr__(self, name: str) -> Any:
        raise Bug("an LMDB environment was used after fork(): start a new program instead (subprocess, spawn)")


def _after_fork() -> None:
    for environment in list(_open_paths.values()):
        _kept_after_fork.append((environment.lmdb, environment.databases))
        environment.lmdb = _Forked()
    _open_paths.clear()


os.register_at_fork(after_in_child=_after_fork)


def translate(error: BaseException, path: Path) -> RaftdbError:
    """The error of raftdb that an lmdb.Error or OSError at `path` stands for."""
    code = getattr(error, "errno", None) or getattr(error, "code", None)
    if isinstance(error, (lmdb.MapFullError, lmdb.DiskError)) or code in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(f"{path}: no room left ({error})")
    if (code == errno.EIO or "Input/output error" in str(error)) and _nearly_full(path):
        return DiskFull(f"{path}: no room left ({error})")
    corrupt = (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.InvalidError, lmdb.VersionMismatchError)
    if isinstance(error, corrupt):
        return Damaged(str(path), str(error))
    return StorageError(f"{path}: {error}")


def _nearly_full(path: Path) -> bool:
    try:
        return free_bytes(path) < NEARLY_FULL_BYTES
    except OSError:
        return False


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn lmdb.Error and OSError into raftdb's errors."""
    try:
        yield
    except (lmdb.Error, OSError) as error:
        raise translate(error, path) from error


_META = struct.Struct("<16xIIQQI")  # page header; magic, version, address, map size, page size
_META_TAIL = struct.Struct("<QQ")  # last page, transaction
_META_TAIL_AT: Final = 136
_MAGIC: Final = 0xBEEFC0DE


def missing_bytes(data_file: Path) -> int:
    """Bytes by which an LMDB data file is shorter than its newest meta page says. Raises Damaged, OSError."""
    with data_file.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return 0
        page = file.read(4096)
        if len(page) < 4096:
            raise Damaged(str(data_file), f"has only {size} bytes")
        page_bytes: int = _META.unpack_from(page)[4]
        if page_bytes not in (4096, 8192, 16384, 32768, 65536):
            return 0  # LMDB refuses it
        file.seek(page_bytes)
        pages = [page, file.read(4096)]
    found = [_META_TAIL.unpack_from(page, _META_TAIL_AT) for page in pages if _is_meta(page)]
    if not found:
        return 0
    last_page = int(max(found, key=lambda tail: int(tail[1]))[0])
    return max(0, (last_page + 1) * page_bytes - size)


def _is_meta(page: bytes) -> bool:
    return len(page) >= _META_TAIL_AT + _META_TAIL.size and _META.unpack_from(page)[0] == _MAGIC


def structure_findings(data_file: Path) -> list[str]:
    """What is wrong with the pages of an LMDB file that nobody writes to: a walk in Python that never hands it to LMDB.

    0.1 to 0.5 seconds for 50 MB. A flipped bit in a page's own bookkeeping can end the process by SIGBUS when LMDB
    follows it, so whoever has reason to doubt a file asks here first.
    """
    try:
        findings = lmdb_verify.verify(os.fspath(data_file), subdir=False)  # type: ignore[no-untyped-call]
    except (lmdb_verify.VerifyError, OSError, struct.error, IndexError, ValueError, OverflowError) as error:
        return [str(error) or type(error).__name__]
    return [str(text) for text in findings]


def _mend_length(data_file: Path, read_only: bool) -> None:
    """See 'short files' above. Raises Damaged, OSError."""
    missing = missing_bytes(data_file)
    if not missing:
        return
    if read_only or missing > SHORT_BYTES_MAX:
        findings = structure_findings(data_file)
        if findings:
            raise Damaged(str(data_file), f"{missing} bytes are missing at its end; {findings[0]}")
    if not read_only:
        os.truncate(data_file, data_file.stat().st_size + missing)


def _allocate_lock_file(lock_file: Path, readers_max: int) -> None:
    """Give LMDB's lock file its room on the disk before LMDB maps it: writing to a hole of it on a full disk is SIGBUS.

    A file that has its size already keeps it, since another process may have it mapped. Raises OSError.
    """
    descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size or 4096 + readers_max * READER_SLOT_BYTES
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


class Environment:
    """An open LMDB environment with its named databases."""

    def __init__(
        self,
        path: Path,
        databases: tuple[bytes, ...],
        *,
        sync: bool,
        map_size_bytes: int | None = None,
        readers_max: int = READERS_MAX,
        read_only: bool = False,
        copied: bool = False,
        through_map: bool = False,
    ) -> None:
        """Opens `path`, a directory, which is made when missing (not if `read_only`). `copied`: made by copy(), which
        starts transaction numbers anew. `through_map`: write it through its map if that can be done (mapped.py).

        Raises UsageError (network file system, map does not fit), Damaged, DiskFull, StorageError.
        """
        self.path = path
        self.read_only = read_only
        self.lmdb: Any = None
        self._ahead: Ahead | None = None
        self._room: Room | None = None
        self._page_bytes = 0
        self._key = os.path.realpath(path)
        self._owner = threading.get_ident()
        if self._key in _open_paths:
            raise Bug(f"{path} is open in this process already")
        refuse_network_file_system(path)
        with guarded(path):
            if not read_only:
                path.mkdir(mode=0o700, exist_ok=True)
            if not read_only:
                _allocate_lock_file(path / "lock.mdb", readers_max)
            if (path / "data.mdb").exists():
                _mend_length(path / "data.mdb", read_only)
            size = map_size_bytes or map_bytes(path)
            if not through_map or not self._open_through_map(size, readers_max):
                self.lmdb = self._open(sync, size, readers_max)
        _open_paths[self._key] = self
        try:
            with guarded(path):
                self.databases = tuple(self.lmdb.open_db(name, create=not read_only) for name in databases)
                if not copied:
                    self._check_commit()
                if through_map and self._room is None:
                    self._cut()
                if not read_only:
                    sync_directory(path)
                if sync and not read_only:
                    self._page_bytes = self.lmdb.stat()["psize"]
                    self._ahead = Ahead(path / "data.mdb")
        except RaftdbError:
            self.close()
            raise

    def _open_through_map(self, map_size_bytes: int, readers_max: int) -> bool:
        """False: it cannot be done here, and nothing is open."""
        if not mapped.suits(self.path / "data.mdb"):
            return False
        try:
            self.lmdb = self._open(False, map_size_bytes, readers_max, writemap=True)
            last_page = self.lmdb.info()["last_pgno"]
            self._room = Room(self.path / "data.mdb", self.lmdb.stat()["psize"], last_page)
        except (lmdb.Error, OSError, DiskFull, UsageError):
            if self.lmdb is not None:
                self.lmdb.close()
                self.lmdb = None
            return False
        return True

    def _cut(self) -> None:
        """The file may be as long as its map, after a process that wrote through it was killed. Raises OSError."""
        used_bytes = (self.lmdb.info()["last_pgno"] + 1) * self.lmdb.stat()["psize"]
        file = self.path / "data.mdb"
        if file.stat().st_size > used_bytes:
            os.truncate(file, used_bytes)

    def _open(self, sync: bool, map_size_bytes: int, readers_max: int, writemap: bool = False) -> Any:
        # A reader registers in lock.mdb; where it may not write (another user's files) it reads without.
        lock = not self.read_only or os.access(self.path / "lock.mdb", os.W_OK)
        try:
            return lmdb.open(
                os.fspath(self.path),
                map_size=map_size_bytes,
                max_dbs=16,
                max_readers=readers_max,
                max_spare_txns=SPARE_READERS,
                sync=sync,
                metasync=True,
                writemap=writemap,
                readonly=self.read_only,
                create=not self.read_only,
                lock=lock,
                mode=0o600,
            )
        except (MemoryError, lmdb.MemoryError) as error:
            raise UsageError(f"{self.path}: a map of {map_size_bytes} bytes does not fit: use --map-size") from error

    def _check_commit(self) -> None:
        """Raises Damaged."""
        with self.lmdb.begin() as transaction:
            value = transaction.get(COMMIT_NAME, db=self.databases[-1])
            if value is None and not transaction.stat(self.databases[-1])["entries"]:
                return  # nothing was ever committed
            if value is None or crc32c(value) != RESIDUE or int.from_bytes(value[:8], "little") != transaction.id():
                raise Damaged(str(self.path), "the newest meta page is not the one of the newest commit")

    @property
    def through_map(self) -> bool:
        """Is it written through its map?"""
        return self._room is not None

    def claim(self) -> None:
        """This thread writes from now on."""
        self._owner = threading.get_ident()

    def reader(self) -> Any:
        """A read transaction; end it with abort() within seconds."""
        try:
            return self.lmdb.begin(buffers=False)
        except lmdb.Error as error:
            raise translate(error, self.path) from error

    def writer(self) -> Any:
        """A write transaction of the owner thread. End it with commit() below, or abort()."""
        if threading.get_ident() != self._owner:
            raise Bug(f"a thread that does not own {self.path} wants to write to it")
        if self._room is not None:
            self._room.begin(self.lmdb.info()["last_pgno"])
        with guarded(self.path):
            return self.lmdb.begin(write=True, buffers=False)

    def expect(self, transaction: Any, database: Any, rows: int, row_bytes: int) -> None:
        """Before each change that `transaction` makes: so many rows of so many bytes together are put or deleted.

        Raises DiskFull: do none of it, and abort the transaction.
        """
        if self._room is not None:
            with guarded(self.path):
                self._room.expect(database, transaction.stat(database), rows, row_bytes)

    def commit(self, transaction: Any) -> None:
        """Raises DiskFull (nothing changed) or StorageError (the process must end)."""
        if threading.get_ident() != self._owner:
            raise Bug(f"a thread that does not own {self.path} wants to commit to it")
        try:
            number = transaction.id().to_bytes(8, "little")
            transaction.put(COMMIT_NAME, number + crc32c(number).to_bytes(4, "little"), db=self.databases[-1])
            transaction.commit()
        except (lmdb.Error, OSError) as error:
            transaction.abort()
            raise self._failed_commit(error) from error
        if self._ahead is not None:
            self._ahead.keep((self.lmdb.info()["last_pgno"] + 1) * self._page_bytes)

    def _failed_commit(self, error: BaseException) -> RaftdbError:
        """A commit that could not write its meta page leaves LMDB unusable, even when the disk was only full."""
        try:
            self.lmdb.begin().abort()
        except lmdb.Error:
            return StorageError(f"{self.path}: the last page of a commit could not be written: {error}")
        return translate(error, self.path)

    def sync(self) -> None:
        """Flush everything that is committed. Any thread. Raises StorageError."""
        try:
            self.lmdb.sync(True)
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"{self.path}: flushing failed: {error}") from error

    def copy(self, target: Path) -> None:
        """A compacted copy as of now into the directory `target`, which must exist and be empty."""
        with guarded(target):
            self.lmdb.copy(os.fspath(target), compact=True)

    def file_id(self) -> tuple[int, int]:
        """(device, inode) of the data file."""
        status = os.stat(self.path / "data.mdb")
        return status.st_dev, status.st_ino

    def stats(self) -> dict[str, int]:
        info, stat = self.lmdb.info(), self.lmdb.stat()
        with self.lmdb.begin() as transaction:
            counts = [stat, *(transaction.stat(database) for database in self.databases)]
        used = 2 + sum(one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"] for one in counts)
        return {
            "map_size_bytes": info["map_size"],
            "used_bytes": (info["last_pgno"] + 1) * stat["psize"],
            # Free for reuse, but for the few pages that hold LMDB's own list of them.
            "reusable_bytes": max(0, info["last_pgno"] + 1 - used) * stat["psize"],
            "last_transaction": info["last_txnid"],
            "readers": info["num_readers"],
        }

    def retire(self) -> None:
        """The directory is about to be replaced. Readers go on; the last reference that goes closes it."""
        _open_paths.pop(self._key, None)

    def close(self) -> None:
        if isinstance(self.lmdb, _Forked):
            return
        self.retire()
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        if self.lmdb is None:
            return
        room, self._room = self._room, None
        last_page = self.lmdb.info()["last_pgno"] if room is not None else 0
        self.lmdb.close()
        if room is not None:
            room.close(last_page)
