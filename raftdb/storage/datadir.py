"""The data directory: identity, layout, lock, and the table that decides how a node starts.

    identity        node id, cluster id, incarnation, format; text with a checksum; written last: its presence
                    means that the directory is whole
    log/            LMDB, synced: the truth (log.py)
    kv/, kv.state   LMDB, a cache of snapshot + log, and whether it may be believed (kv.py, kvstate.py)
    kv.<index>/     the same, built from a snapshot; `kv.current` names the directory in use (no such file: kv/)
    snapshots/      files that log/meta names (snapshot.py); everything else in it is swept at the start
    checkpoints/    copies that people asked for; never read, never swept
    reserve         8 MiB of nothing, given back when the disk is full, so that deleting can be logged

Directories have mode 0700, files 0600. One process at a time: flock on the directory itself. Tools that only read take
no lock.

Making one: everything is built under a temporary name beside the directory, synced, and renamed into place. Where the
directory is there already (a mount point), parts are built in `.new` inside it and moved out, identity last, then
`.new` is removed: as long as `.new` is there without an identity, nothing was promised and the parts may be thrown
away.

Start table. F, L: first and last entry of the log (F - 1 is its base), K: kv's applied index, S: a snapshot that
log/meta names, the newest valid one.

    kv trusted, F-1 <= K <= L, chain of K agrees         use kv
    otherwise, S valid, F-1 <= S.index <= L              rebuild kv from S, then the log above it
    otherwise, F = 1                                     rebuild kv from nothing and the whole log
    otherwise, other members exist                       needs a snapshot of the leader
    otherwise                                            stop: this node is alone and has lost data

A kv that is not used is left aside until the new one is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import resource
import shutil
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from raftdb.errors import Damaged, EntryDamaged, RaftdbError, StorageError, UsageError
from raftdb.storage import engine, files, kvstate, snapshot
from raftdb.storage.checksum import crc32c
from raftdb.storage.engine import guarded
from raftdb.storage.files import map_bytes, sync_directory, write_file
from raftdb.storage.kv import KvStore
from raftdb.storage.log import Log
from raftdb.storage.snapshot import Progress
from raftdb.types import Membership, Persist, SnapshotMeta

FORMAT: Final = 1
RESERVE_BYTES: Final = 8 << 20
YOUNG_S: Final = 10.0
YOUNG_DEATHS: Final = 3
_ACCEPT: Final = "raftdb check -d {} --accept-loss"
IDENTITY_BYTES_MAX: Final = 4096
MAPS: Final = 3  # of --map-size each: log, data, and data that is built anew beside it
_IDENTITY = "identity"
_NEW = ".new"
_TITLE = "raftdb data directory"
_IGNORED: Final = frozenset({"lost+found", "reserve", "checkpoints", _NEW})
_KV_NAME: Final = re.compile(r"kv(\.[0-9]+)*")


class Identity(NamedTuple):
    """Who this directory belongs to."""

    node_id: str
    cluster_id: str  # 32 hexadecimal digits
    incarnation: int
    format_version: int
    source_digest: str  # of the file given to -l, hexadecimal; empty otherwise


class StartWith(Enum):
    """The rows of the start table."""

    KV = "kv"
    SNAPSHOT = "snapshot"
    EMPTY = "empty"
    NEEDS_SNAPSHOT = "needs snapshot"
    STOP = "stop"


class StartPlan(NamedTuple):
    """What decide_start() says."""

    start_with: StartWith
    snapshot: SnapshotMeta | None
    reason: str


class KvFacts(NamedTuple):
    """What the start table needs to know of kv."""

    trusted: bool
    applied: int
    fits: bool  # the log's chain at `applied` is the one that kv remembers


def decide_start(
    first: int, last: int, kv: KvFacts | None, snapshots: tuple[tuple[SnapshotMeta, bool], ...], alone: bool
) -> StartPlan:
    """The start table. `kv` None: there is none; `snapshots`: newest first, with whether the file is valid; `alone`:
    no other member could send a snapshot."""
    if kv is not None and kv.trusted and first - 1 <= kv.applied <= last and kv.fits:
        return StartPlan(StartWith.KV, None, f"kv is trusted and stands at {kv.applied}")
    why = _why_not(first, last, kv) if last else "there is no data yet"
    for meta, valid in snapshots:
        if valid and first - 1 <= meta.index <= last:
            return StartPlan(StartWith.SNAPSHOT, meta, f"{why}: rebuilt from {meta.name} and the log")
    if first == 1:
        return StartPlan(StartWith.EMPTY, None, f"{why}: rebuilt from the log")
    if not alone:
        return StartPlan(StartWith.NEEDS_SNAPSHOT, None, f"{why} and no snapshot is whole: the leader must send one")
    return StartPlan(StartWith.STOP, None, f"{why}, no snapshot is whole, and the log begins at {first}")


def _why_not(first: int, last: int, kv: KvFacts | None) -> str:
    if kv is None:
        return "there is no kv"
    if not kv.trusted:
        return "kv may have lost writes"
    if not first - 1 <= kv.applied <= last:
        return f"kv stands at {kv.applied}, the log holds {first}..{last}"
    return "kv does not belong to this log"


# --- paths and identity ---------------------------------------------------------------------------------------------


def log_path(path: Path) -> Path:
    return path / "log"


def snapshot_path(path: Path) -> Path:
    return path / "snapshots"


def kv_state_path(path: Path) -> Path:
    return path / "kv.state"


def kv_path(path: Path) -> Path:
    """The kv directory in use. Raises Damaged."""
    try:
        name = (path / "kv.current").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return path / "kv"
    except (OSError, ValueError) as error:
        raise Damaged(str(path / "kv.current"), str(error)) from None
    if not _KV_NAME.fullmatch(name):
        raise Damaged(str(path / "kv.current"), "does not name a kv directory")
    return path / name


def encode_identity(identity: Identity) -> bytes:
    lines = [
        _TITLE,
        f"format: {identity.format_version}",
        f"node: {identity.node_id}",
        f"cluster: {identity.cluster_id}",
        f"incarnation: {identity.incarnation}",
        f"source: {identity.source_digest}",
    ]
    text = "".join(f"{line}\n" for line in lines)
    return f"{text}checksum: {crc32c(text.encode()):08x}\n".encode()


def decode_identity(data: bytes, where: str) -> Identity:
    """Raises Damaged, UsageError (a newer format)."""
    try:
        text = data.decode()
    except ValueError:
        raise Damaged(where, "is not text") from None
    lines = text.split("\n")
    if lines[0] == _TITLE and len(lines) > 1 and (newer := re.fullmatch(r"format: ([1-9][0-9]{0,8})", lines[1])):
        version = int(newer[1])
        if version > FORMAT:
            raise UsageError(f"{where} has format {version}, this program knows {FORMAT}: use a newer raftdb")
    body, _, checksum = text.rpartition("checksum: ")
    if not re.fullmatch(r"[0-9a-f]{8}\n", checksum) or int(checksum, 16) != crc32c(body.encode()):
        raise Damaged(where, "checksum does not match")
    found = re.fullmatch(
        rf"{_TITLE}\nformat: ([0-9]+)\nnode: ([^\n]{{1,255}})\ncluster: ([^\n]*)\nincarnation: ([0-9]{{1,20}})\n"
        r"source: ([0-9a-f]*)\n",
        body,
    )
    if found is None:
        raise Damaged(where, "does not have its shape")
    return Identity(found[2], found[3], int(found[4]), int(found[1]), found[5])


def read_identity(path: Path) -> Identity:
    """Without any lock. Raises UsageError when there is no data directory, Damaged."""
    file = path / _IDENTITY
    try:
        with file.open("rb") as stream:
            data = stream.read(IDENTITY_BYTES_MAX)
    except FileNotFoundError:
        raise UsageError(f"{path} is not a data directory of raftdb: it has no file called {_IDENTITY}") from None
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    return decode_identity(data, str(file))


def _parts(path: Path) -> set[str]:
    """Names in a directory. Raises UsageError."""
    try:
        return set(os.listdir(path))
    except NotADirectoryError:
        raise UsageError(f"{path} is not a directory") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None


class DataDir:
    """One locked data directory, opened: `log`, `kv`, how it was started, what is damaged."""

    path: Path
    identity: Identity
    log: Log
    kv: KvStore
    was_clean: bool  # the last run ended by close(clean=True)
    plan: StartPlan
    damaged: list[int]  # entries above kv.applied, for core.quarantine()

    def __init__(self, path: Path, lock: int) -> None:
        """Use open() or create()."""
        self.path = path
        self._lock = lock

    # --- is there data, and making it --------------------------------------------------------------------------------

    @classmethod
    def exists(cls, path: Path) -> bool:
        """True when there is data. Touches nothing.

        Raises UsageError for half a directory, a newer format, foreign content, missing rights; Damaged.
        """
        if not os.path.exists(path):  # Path.exists() raises where a directory above may not be looked into
            _need_writable_parent(path)
            return False
        names = _parts(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"{path} is not writable: choose another directory with -d, or correct its rights")
        ours = {name for name in names if name in (_IDENTITY, "log", "snapshots") or name.startswith("kv")}
        if not ours or (_NEW in names and _IDENTITY not in names):
            foreign = sorted(names - _IGNORED - ours)
            if foreign:
                raise UsageError(f"{path} is not empty and holds no data of raftdb ({foreign[0]}): use another -d")
            return False
        if {_IDENTITY, "log"} <= ours and (path / "log" / "data.mdb").exists():
            read_identity(path)
            _need_rights(path)
            return True
        missing = _IDENTITY if _IDENTITY not in ours else "log/data.mdb"
        raise UsageError(
            f"{path} is half a data directory, {missing} is missing: put it back, or move the directory away and start "
            "with -o to replace this member"
        )

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        node_id: str,
        cluster_id: str,
        incarnation: int,
        membership: Membership,
        snapshot: Path | None = None,
        source_digest: str = "",
        map_size_bytes: int | None = None,
        progress: Progress = lambda _: None,
    ) -> None:
        """Make a data directory with an empty log, or one that stands on the file `snapshot` (-l).

        `source_digest`: of the file that the operator named, when `snapshot` was made from it; by default `snapshot`'s
        own. `progress`: told how many bytes of `snapshot` are loaded.

        Raises UsageError (there is one, no rights, not a snapshot), Damaged, DiskFull, StorageError; nothing stays
        then.
        """
        if cls.exists(path):
            raise UsageError(f"{path} holds data already")
        identity = Identity(node_id, cluster_id, incarnation, FORMAT, source_digest)
        in_place = path.exists()
        building = path / _NEW if in_place else path.with_name(f".{path.name}.new")
        try:
            with guarded(path):
                if in_place:
                    _sweep_unfinished(path)
                else:
                    shutil.rmtree(building, ignore_errors=True)
                    path.parent.mkdir(parents=True, exist_ok=True)
                _build(building, identity, membership, snapshot, map_size_bytes, progress)
                if in_place:
                    _move_out(path)
                else:
                    os.rename(building, path)
                    sync_directory(path.parent)
        except BaseException:
            shutil.rmtree(building, ignore_errors=True)
            raise

    # --- opening -----------------------------------------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        map_size_bytes: int | None = None,
        readers_max: int = 512,
        kv_sync_always: bool = False,
        accept_loss: bool = False,
    ) -> DataDir:
        """Lock, check, run the start table, open log and kv.

        The caller replays the log from kv.applied + 1, calls sweep(), and log.start() before the node speaks. The
        thread that will write calls claim(). With `accept_loss` a sole voter drops what lies above its first damaged
        entry, and starts empty where it would have to stop.
        Raises UsageError (exit 2), Damaged, DiskFull, StorageError.
        """
        if not cls.exists(path):
            raise UsageError(f"{path} holds no data")
        data = cls(path, lock(path))
        data._map_size_bytes = map_size_bytes
        data._readers_max = readers_max
        data._kv_sync_always = kv_sync_always
        try:
            data._open(accept_loss)
        except BaseException:
            data._close_quietly()
            raise
        return data

    _map_size_bytes: int | None = None
    _readers_max: int = 512
    _kv_sync_always: bool = False

    def _open(self, accept_loss: bool) -> None:
        self.identity = read_identity(self.path)
        self.was_clean = kvstate.read(kv_state_path(self.path)) == kvstate.CLEAN
        self.log = Log.open(log_path(self.path), map_size_bytes=self._map_size_bytes, unclean=not self.was_clean)
        if self.log.incarnation != self.identity.incarnation:
            raise UsageError(
                f"{self.path}: identity and log belong to different lives of the node: put the right ones back, run "
                f"`raftdb check -d {self.path} --repair`, or move the directory away and start with -o to replace this "
                "member"
            )
        self._start_kv(accept_loss)
        self.damaged = self.log.check(self.kv.applied)
        if self.damaged and self.alone:
            self._lose_damaged(accept_loss)

    @property
    def alone(self) -> bool:
        """No other member holds the data. (A node that joins knows no members yet, and is not alone.)"""
        return len(self.log.membership.members) == 1

    def _start_kv(self, accept_loss: bool) -> None:
        log = self.log
        store = self._open_trusted_kv()
        facts = None if store is None else self._facts(store)
        if facts is None and kv_path(self.path).exists():
            facts = KvFacts(False, 0, False)
        need_snapshots = decide_start(log.first, log.last, facts, (), self.alone).start_with is not StartWith.KV
        named = [meta for meta in (log.snapshot, log.previous_snapshot) if meta is not None]
        checked = tuple((meta, need_snapshots and self._is_valid(meta)) for meta in named)
        self.plan = decide_start(log.first, log.last, facts, checked, self.alone)
        if self.plan.start_with is StartWith.KV and store is not None:
            self.kv = store
            return
        if store is not None:
            store.close(clean=False)
        if self.plan.start_with is StartWith.STOP and not accept_loss:
            raise StorageError(
                f"{self.path}: {self.plan.reason}: restore a backup, or go on without: {_ACCEPT.format(self.path)}"
            )
        if self.plan.snapshot is not None:
            self.kv = self.switch_kv(self.build_kv(self.plan.snapshot))
        else:
            self.kv = self.switch_kv(self._fresh_kv_path(0))
            if self.plan.start_with is StartWith.STOP:
                base = log.first - 1
                self.kv.batch().commit(base, log.term(base), log.stamp(base), log.chain(base), log.membership)
            elif self.plan.start_with is StartWith.EMPTY and (members := self._members_at_forming()) is not None:
                # No entry says who formed the cluster, and a snapshot without members would strand who installs it.
                self.kv.batch().commit(0, 0, 0, log.chain(0), members)

    def _members_at_forming(self) -> Membership | None:
        """The membership before the first entry; None when the log has forgotten it (or the node joined later)."""
        for membership in (self.log.membership, self.log.previous_membership):
            if membership is not None and membership.index == 0 and membership.members:
                return membership
        return None

    def _open_trusted_kv(self) -> KvStore | None:
        path = kv_path(self.path)
        if not kvstate.is_trusted(kv_state_path(self.path), path):
            return None
        if self._died_young() and engine.structure_findings(path / "data.mdb"):
            return None
        try:
            return self._open_kv(path)
        except Damaged:
            return None

    def _died_young(self) -> bool:
        """Have several runs in a row ended within seconds? A damaged page of kv may have ended them by SIGBUS.

        One young death says little (somebody killed the node), and the walk that it would cost takes seconds for a
        large kv: so a node in a crash loop comes out of it by itself at the fourth start.
        """
        marker = self.path / "kv.young"
        with guarded(self.path):
            began = kv_state_path(self.path).stat().st_mtime
            ended = (log_path(self.path) / "data.mdb").stat().st_mtime
            if self.was_clean or ended - began >= YOUNG_S:
                marker.unlink(missing_ok=True)
                return False
            deaths = marker.stat().st_size + 1 if marker.exists() else 1
            marker.write_bytes(b"x" * min(deaths, YOUNG_DEATHS))
        return deaths >= YOUNG_DEATHS

    def _open_kv(self, path: Path) -> KvStore:
        return KvStore.open(
            path,
            kv_state_path(self.path),
            map_size_bytes=self._map_size_bytes,
            readers_max=self._readers_max,
            sync_each_batch=self._kv_sync_always,
            through_map=True,
        )

    def _facts(self, store: KvStore) -> KvFacts:
        applied = store.applied
        if not self.log.first - 1 <= applied <= self.log.last:
            return KvFacts(True, applied, False)
        try:
            fits = self.log.chain(applied) == store.chain and self.log.term(applied) == store.term
        except EntryDamaged:
            fits = True  # the entry is applied; that it can no longer be read is the log's matter
        return KvFacts(True, applied, fits)

    def _is_valid(self, meta: SnapshotMeta) -> bool:
        try:
            found = snapshot.check_file(snapshot_path(self.path) / meta.name)
        except (StorageError, UsageError):
            return False
        return (found.index, found.term, found.digest) == (meta.index, meta.term, meta.digest)

    def _lose_damaged(self, accept_loss: bool) -> None:
        first = self.damaged[0]
        if not accept_loss:
            raise StorageError(
                f"{self.path}: log entry {first} is damaged and no other member has it: restore a backup, or drop it "
                f"and all later ones: {_ACCEPT.format(self.path)}"
            )
        log = self.log
        membership, previous = log.membership, log.previous_membership
        if membership.index >= first and previous is not None:
            membership, previous = previous, None
        log.commit(Persist(None, first, (), (), membership, previous, None, False))
        self.damaged = []

    # --- another kv --------------------------------------------------------------------------------------------------

    def build_kv(self, meta: SnapshotMeta) -> Path:
        """A new kv environment from a snapshot file of this directory, flushed, not yet in use. Any thread.

        Raises Damaged, UsageError, DiskFull, StorageError.
        """
        target = self._fresh_kv_path(meta.index)
        file = snapshot_path(self.path) / meta.name
        found = snapshot.load(file, target, map_size_bytes=self._map_size_bytes, membership=meta.membership)
        if (found.index, found.term, found.digest) != (meta.index, meta.term, meta.digest):
            shutil.rmtree(target, ignore_errors=True)
            raise Damaged(str(file), "is not the snapshot that the log names")
        return target

    def switch_kv(self, path: Path) -> KvStore:
        """Use the environment that build_kv() made; returns it as self.kv. The thread that calls it writes to it.

        Views of the former one stay valid until they end; its directory is removed by the next sweep().
        """
        state = kv_state_path(self.path)
        with guarded(self.path):
            kvstate.write(state, kvstate.DAMAGED)  # neither the old nor the new one is trusted for a moment
            if "kv" in self.__dict__:
                self.kv.retire()
            write_file(self.path / "kv.current", f"{path.name}\n".encode())
        self.kv = self._open_kv(path)
        self.kv.sync()
        kvstate.write(state, kvstate.CLEAN)
        return self.kv

    def install(self, meta: SnapshotMeta) -> KvStore:
        """build_kv() and switch_kv(): after Persist.install is committed. Returns the new kv."""
        return self.switch_kv(self.build_kv(meta))

    def _fresh_kv_path(self, index: int) -> Path:
        path, number = self.path / (f"kv.{index}" if index else "kv"), 0
        while path.exists():
            number += 1
            path = self.path / f"kv.{index}.{number}"
        return path

    # --- housekeeping ------------------------------------------------------------------------------------------------

    def claim(self) -> None:
        """This thread writes to log and kv from now on."""
        self.log.claim()
        self.kv.claim()

    def sweep(self) -> list[str]:
        """Remove kv directories that are not in use, files in snapshots/ that log/meta does not name, and temporary
        files; returns their names. To be called when kv is whole (the log is replayed) and no snapshot is being
        made."""
        removed = []
        with guarded(self.path):
            current = kv_path(self.path).name
            for name in sorted(_parts(self.path)):
                if name not in (current, "kv.state", "kv.current", "kv.young") and _KV_NAME.fullmatch(name):
                    shutil.rmtree(self.path / name)
                    removed.append(name)
            keep = {meta.name for meta in (self.log.snapshot, self.log.previous_snapshot) if meta is not None}
            directory = snapshot_path(self.path)
            for name in sorted(_parts(directory)):
                if name not in keep and not name.endswith(".part"):
                    _remove(directory / name)
                    removed.append(f"snapshots/{name}")
        return removed

    def free_bytes(self) -> int:
        """Room that is left on the fuller of the file systems of log and kv. Raises StorageError."""
        with guarded(self.path):
            return min(files.free_bytes(log_path(self.path)), files.free_bytes(self.kv.path))

    def release_reserve(self) -> bool:
        """Give the reserve back to the file system; True if there was one."""
        try:
            (self.path / "reserve").unlink()
        except OSError:
            return False
        return True

    def restore_reserve(self) -> bool:
        """Make the reserve again; False: no room for it now."""
        file = self.path / "reserve"
        try:
            if file.exists() and file.stat().st_size == RESERVE_BYTES:
                return True
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
            finally:
                os.close(descriptor)
        except OSError:
            self.release_reserve()
            return False
        return True

    def close(self, clean: bool) -> None:
        """clean: everything is flushed and kv.state says so. Raises StorageError; the lock is released in any case."""
        try:
            self.kv.close(clean)
            self.log.close()
        finally:
            os.close(self._lock)

    def _close_quietly(self) -> None:
        for part in ("kv", "log"):
            if part in self.__dict__:
                with contextlib.suppress(RaftdbError):
                    _close_one(self.__dict__[part])
        os.close(self._lock)


def _close_one(part: Log | KvStore) -> None:
    if isinstance(part, KvStore):
        part.close(clean=False)
    else:
        part.close()


def _need_rights(path: Path) -> None:
    """Raises UsageError that names the first part which this user may not write, before anything was touched."""
    directories = [
        part for part in path.iterdir() if part.is_dir() and part.name.startswith(("log", "snapshots", "kv"))
    ]
    for directory in sorted(directories):
        files = [file for file in (directory / "data.mdb", directory / "lock.mdb") if os.path.exists(file)]
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            files = [directory]
        for part in files:
            if not os.access(part, os.R_OK | os.W_OK):
                raise UsageError(f"{part} is not writable by this user: correct its owner or its rights")


def check_place(path: Path, map_size_bytes: int | None) -> None:
    """Can a node have its data here, as far as can be told before anything is touched?

    Log, data, and data that is built anew are mapped into memory whole, though not a byte of them need be there.
    Raises UsageError: the address space has no room for three such maps, or the place is on a network file system.
    """
    place = _existing(path)
    files.refuse_network_file_system(place)
    with guarded(place):
        size = map_size_bytes or map_bytes(place)
    reserved = []
    try:
        for _ in range(MAPS):
            reserved.append(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE, prot=0))
    except (OSError, ValueError, OverflowError):
        limit = "" if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY else " (ulimit -v is set)"
        raise UsageError(
            f"--map-size: the address space of a process has no room for {MAPS} maps of {size} bytes{limit}; give a "
            "smaller size"
        ) from None
    finally:
        for room in reserved:
            room.close()


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    path = path.absolute()
    return next(above for above in (path, *path.parents) if os.path.exists(above))


def _need_writable_parent(path: Path) -> None:
    parent = _existing(path)
    if not parent.is_dir():
        raise UsageError(f"{path} cannot be made: {parent} is not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be made: {parent} is not writable; choose another directory with -d")


def lock(path: Path) -> int:
    """The directory's lock, as a descriptor. Raises UsageError when another process has it."""
    with guarded(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UsageError(f"{path} is in use by another raftdb process") from None
    return descriptor


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _sweep_unfinished(path: Path) -> None:
    """What an interrupted _move_out() has left: nothing of it was ever promised."""
    for name in _parts(path):
        if name == _NEW or name in ("log", "snapshots") or name.startswith("kv"):
            _remove(path / name)


def _build(
    building: Path,
    identity: Identity,
    membership: Membership,
    source: Path | None,
    map_size_bytes: int | None,
    progress: Progress,
) -> None:
    building.mkdir(mode=0o700)
    snapshot_path(building).mkdir(mode=0o700)
    files.refuse_network_file_system(building)
    base = None
    if source is not None:
        base, digest = _adopt_snapshot(building, source, identity, membership, map_size_bytes, progress)
        identity = identity._replace(source_digest=identity.source_digest or digest.hex())
    Log.create(
        log_path(building),
        incarnation=identity.incarnation,
        membership=membership,
        base=base,
        map_size_bytes=map_size_bytes,
    )
    sync_directory(snapshot_path(building))
    write_file(building / _IDENTITY, encode_identity(identity))


def _adopt_snapshot(
    building: Path,
    source: Path,
    identity: Identity,
    membership: Membership,
    map_size_bytes: int | None,
    progress: Progress,
) -> tuple[SnapshotMeta, bytes]:
    """-l: the file's data under the new cluster's id and membership, as a snapshot of our own, and the file's digest.
    kv is built on the way."""
    meta = snapshot.load(
        source, building / "kv", map_size_bytes=map_size_bytes, membership=membership, progress=progress
    )
    name = snapshot.file_name(identity.node_id, meta.stamp // 1000, meta.index)
    store = KvStore.open(building / "kv", None, read_only=True)
    try:
        with store.view() as view:
            own = snapshot.write(
                view, snapshot_path(building) / name, node_id=identity.node_id, cluster_id=identity.cluster_id
            )
    finally:
        store.close(clean=False)
    kvstate.write(kv_state_path(building), kvstate.CLEAN)
    return own, meta.digest


def _move_out(path: Path) -> None:
    """Move the parts of `.new` into `path`, identity last."""
    building = path / _NEW
    for name in sorted(_parts(building) - {_IDENTITY}):
        os.rename(building / name, path / name)
    sync_directory(path)
    os.rename(building / _IDENTITY, path / _IDENTITY)
    sync_directory(path)
    building.rmdir()
    path.chmod(0o700)
    sync_directory(path)
