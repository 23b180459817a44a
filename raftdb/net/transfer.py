"""Snapshot files over the network: pulled piece by piece by the follower, whole files only, checked before they count.

    follower (SnapshotFetcher)                          leader (SnapshotSource)
    ChunkRequest(name, digest, offset, 256 KiB)  ->     is it one of my durable files, with this digest?
    ... up to 4 under way                        <-     ChunkReply(name, digest, offset, data), within the bandwidth
    the last piece is there:
      fsync, check the whole file, rename, fsync the directory      (helper thread; the driver looks at the result)
      on_fetched(meta)

**Resumable.** The file grows in order under `<digest>.<size>.part`; its length says how far it is. A reconnect, another
leader, even a restart goes on from there when digest and size agree. What a crash left in it is not trusted: the whole
file is checked at the end, and a bad one is dropped and fetched once more from the start.

**Hostile or confused sources** cannot do harm: names are plain names, a piece must be one that was asked for, in its
length, at its offset; everything else is counted and ignored. A wrong piece is found by the digest of the whole.

**Bounds.** WINDOW_CHUNKS pieces under way per fetch; REQUESTS_MAX waiting per peer at the source; the bandwidth of the
source (`--snapshot-bandwidth`) is a token bucket over all peers. Reads and writes are at most 256 KiB, from and to the
page cache; what may take long (fsync, check) runs in a thread of its own, one at a time. Full disk: looked at before
the first piece, and reported as such when it comes all the same.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from raftdb import clock
from raftdb.errors import Damaged, DiskFull, PeerError, RaftdbError, StorageError
from raftdb.net.wire import CHUNK_BYTES_MAX, ChunkReply, ChunkRequest
from raftdb.types import NodeRef, SnapshotMeta

log = logging.getLogger("raftdb.transfer")

WINDOW_CHUNKS: Final = 4
REQUESTS_MAX: Final = 16
ANSWER_TIMEOUT_S: Final = 5.0  # a piece that has not come is asked for again; on a slow line later
ANSWER_TIMEOUT_MAX_S: Final = 300.0
OPEN_FILES_MAX: Final = 4
FILE_IDLE_S: Final = 30.0
#: Attempts from the start after the whole file turned out to be wrong.
ATTEMPTS_MAX: Final = 2
PART: Final = ".part"

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+=,\[\]-]{0,199}")

Send = Callable[[NodeRef, Any], bool]


def plain_name(name: str) -> str:
    """The name, if it is a file name without any path, hidden or temporary meaning. Raises PeerError."""
    if not _PLAIN_NAME.fullmatch(name) or name.endswith(PART) or ".." in name:
        raise PeerError(f"not a snapshot name: {name[:80]!r}")
    return name


class TokenBucket:
    """So many bytes per second, with a fifth of a second's worth saved up at most. May go into debt by one piece."""

    def __init__(self, bytes_per_s: int, now_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._tokens = float(bytes_per_s) / 5
        self._filled_s = now_s

    def take(self, size: int, now_s: float) -> bool:
        """True: `size` bytes may be sent now."""
        most = max(self.bytes_per_s / 5, 1.0)
        self._tokens = min(most, self._tokens + (now_s - self._filled_s) * self.bytes_per_s)
        self._filled_s = now_s
        if self._tokens <= 0:
            return False
        self._tokens -= size
        return True

    def give_back(self, size: int) -> None:
        """They were not sent after all."""
        self._tokens += size


class _OpenFile(NamedTuple):
    fd: int
    used_s: float


class SnapshotSource:
    """Answers ChunkRequests. Driver thread."""

    def __init__(
        self,
        directory: Path,
        find: Callable[[str], SnapshotMeta | None],
        send: Send,
        *,
        bandwidth_bytes: int,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        """`find`: the durable snapshot of this name, if there is one. `bandwidth_bytes`: per second."""
        self._directory = directory
        self._find = find
        self._send = send
        self._now = now
        self._bucket = TokenBucket(bandwidth_bytes, now())
        self._waiting: OrderedDict[NodeRef, deque[ChunkRequest]] = OrderedDict()
        self._files: OrderedDict[str, _OpenFile] = OrderedDict()
        self.sent_bytes = 0

    def on_request(self, peer: NodeRef, request: ChunkRequest) -> None:
        """Answers at once when the bandwidth allows it, else from tick(). Raises StorageError when the disk fails."""
        waiting = self._waiting.setdefault(peer, deque())
        if len(waiting) < REQUESTS_MAX and request not in waiting:  # asked again, since its turn has not come yet
            waiting.append(request)
        self._serve()

    def tick(self) -> None:
        """Serves what waits for bandwidth or outbox; closes files that nobody reads. Raises StorageError."""
        self._serve()
        now_s = self._now()
        for name, file in list(self._files.items()):
            if now_s - file.used_s > FILE_IDLE_S:
                self._close(name)

    def lost(self, peer: NodeRef) -> None:
        """Nobody is there to be answered."""
        self._waiting.pop(peer, None)

    def close(self) -> None:
        for name in list(self._files):
            self._close(name)

    def _serve(self) -> None:
        """One piece per peer in turn, until bandwidth, outboxes or questions are used up."""
        stuck: set[NodeRef] = set()
        while True:
            peer = next((p for p, waiting in self._waiting.items() if waiting and p not in stuck), None)
            if peer is None:
                break
            waiting = self._waiting[peer]
            size = min(waiting[0].length, CHUNK_BYTES_MAX)
            if not self._bucket.take(size, self._now()):
                break
            if self._send(peer, self._answer(waiting[0])):
                waiting.popleft()
                self._waiting.move_to_end(peer)
            else:
                self._bucket.give_back(size)
                stuck.add(peer)
        for peer in [p for p, waiting in self._waiting.items() if not waiting]:
            del self._waiting[peer]

    def _answer(self, request: ChunkRequest) -> ChunkReply:
        try:
            data = self._read(request)
        except (PeerError, FileNotFoundError) as error:
            text = str(error) if isinstance(error, PeerError) else "no such snapshot here any more"
            return ChunkReply(request.name, request.digest, request.offset, b"", text)
        except OSError as error:
            raise StorageError(f"cannot read snapshot {request.name}: {error.strerror}") from error
        self.sent_bytes += len(data)
        return ChunkReply(request.name, request.digest, request.offset, data, "")

    def _read(self, request: ChunkRequest) -> bytes:
        meta = self._find(plain_name(request.name))
        if meta is None or meta.digest != request.digest:
            raise PeerError("no such snapshot here")
        if not 0 < request.length <= CHUNK_BYTES_MAX or request.offset >= meta.size_bytes:
            raise PeerError("a piece outside of the snapshot")
        data = os.pread(self._open(meta.name), request.length, request.offset)
        if len(data) != min(request.length, meta.size_bytes - request.offset):
            raise PeerError("the snapshot is shorter than it should be")
        return data

    def _open(self, name: str) -> int:
        file = self._files.get(name)
        if file is None:
            while len(self._files) >= OPEN_FILES_MAX:
                self._close(next(iter(self._files)))
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        else:
            fd = file.fd
        self._files[name] = _OpenFile(fd, self._now())
        self._files.move_to_end(name)
        return fd

    def _close(self, name: str) -> None:
        os.close(self._files.pop(name).fd)


class _Fetch:
    """One file under way."""

    def __init__(self, meta: SnapshotMeta, path: Path, fd: int, have_bytes: int) -> None:
        self.meta = meta
        self.path = path
        self.fd = fd
        self.have_bytes = have_bytes  # everything before is written
        self.asked: dict[int, tuple[int, float]] = {}  # offset -> (length, when)
        self.ahead: dict[int, bytes] = {}  # pieces that came before the one in front of them
        self.attempt = 1
        #: A piece is asked for again after this. It grows with what answers take: asking a slow line twice makes it
        #: carry everything twice.
        self.patience_s = ANSWER_TIMEOUT_S
        self.ask_from = have_bytes


class SnapshotFetcher:
    """Pulls one snapshot at a time from the leader. Driver thread, but for the last check."""

    def __init__(
        self,
        directory: Path,
        send: Send,
        check: Callable[[Path], bytes],
        on_fetched: Callable[[SnapshotMeta], None],
        on_failed: Callable[[SnapshotMeta, RaftdbError], None],
        *,
        free_bytes_min: int = 64 * 1024 * 1024,
        now: Callable[[], float] = clock.monotonic,
    ) -> None:
        """`check`: reads a whole snapshot file and gives its digest, or raises Damaged; called in a helper thread.

        `on_fetched`: the file is durable under its name. `on_failed`: PeerError (the source has it no longer, or sent
        another file than it promised) or DiskFull; the core may be told to ask again later.
        """
        self._directory = directory
        self._send = send
        self._check = check
        self._on_fetched = on_fetched
        self._on_failed = on_failed
        self._free_bytes_min = free_bytes_min
        self._now = now
        self._source: NodeRef | None = None
        self._fetch: _Fetch | None = None
        self._job: _Job | None = None
        self._next: tuple[SnapshotMeta, NodeRef] | None = None
        self.ignored = 0  # pieces that nobody asked for

    @property
    def busy(self) -> bool:
        return self._fetch is not None or self._job is not None

    def progress(self) -> tuple[int, int]:
        """(bytes received, bytes in all); (0, 0) when idle."""
        if self._job is not None:
            return self._job.meta.size_bytes, self._job.meta.size_bytes
        return (self._fetch.have_bytes, self._fetch.meta.size_bytes) if self._fetch is not None else (0, 0)

    def start(self, meta: SnapshotMeta, source: NodeRef) -> None:
        """The leader offers this file. The same file again, maybe from another source: goes on. Another file: instead.

        Raises PeerError for a hostile name, StorageError when the disk fails.
        """
        plain_name(meta.name)
        if self._job is not None:
            if not _same(self._job.meta, meta):
                self._next = (meta, source)
            return
        if self._fetch is not None and _same(self._fetch.meta, meta):
            if source != self._source:
                self._change_source(source)
            return
        self._abort()
        self._source = source
        self._begin(meta)

    def lost(self, peer: NodeRef) -> None:
        """What was asked of this peer will not be answered; asked again when it is back, or of the next source."""
        if peer == self._source and self._fetch is not None:
            self._forget_asked(self._fetch)

    def stop(self) -> None:
        """No fetch any more (this node leads, or shuts down); the part stays for the next time."""
        if self._fetch is not None:
            os.close(self._fetch.fd)
            self._fetch = None
        self._next = None

    def on_reply(self, peer: NodeRef, reply: ChunkReply) -> None:
        """A piece. Raises StorageError when the disk fails."""
        fetch = self._fetch
        if fetch is None or peer != self._source or (reply.name, reply.digest) != (fetch.meta.name, fetch.meta.digest):
            self.ignored += 1
            return
        asked = fetch.asked.get(reply.offset)
        if asked is None:
            self.ignored += 1
            return
        if reply.error:
            self._fail(PeerError(f"snapshot {fetch.meta.name}: {reply.error[:200]!r}"))
            return
        if len(reply.data) != asked[0]:
            self.ignored += 1
            return
        del fetch.asked[reply.offset]
        took_s = self._now() - asked[1]
        fetch.patience_s = max(ANSWER_TIMEOUT_S, min(2 * WINDOW_CHUNKS * took_s, ANSWER_TIMEOUT_MAX_S))
        fetch.ahead[reply.offset] = reply.data
        self._write_ready(fetch)

    def tick(self) -> None:
        """Asks for pieces, looks whether the last check is done. Raises StorageError when the disk fails."""
        if self._job is not None:
            self._look_at_job()
        if self._fetch is not None:
            self._ask(self._fetch)

    # --- pieces ---

    def _begin(self, meta: SnapshotMeta) -> None:
        path, check = self._directory / meta.name, self._check
        if path.exists():
            self._job = _Job(meta, None, lambda: _look_at_existing(meta, path, check))
        else:
            self._begin_part(meta)

    def _begin_part(self, meta: SnapshotMeta) -> None:
        path = self._directory / f"{meta.digest.hex()[:40]}.{meta.size_bytes}{PART}"
        try:
            self._sweep(path.name)
            have = self._part_bytes(path, meta.size_bytes)
            missing = meta.size_bytes - have
            if shutil.disk_usage(self._directory).free < missing + self._free_bytes_min:
                self._on_failed(meta, DiskFull(f"no room for snapshot {meta.name} ({missing} bytes)"))
                return
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            self._disk_error(meta, error)
            return
        log.info("fetching snapshot %s of %d bytes, from byte %d on", meta.name, meta.size_bytes, have)
        self._fetch = _Fetch(meta, path, fd, have)
        self._write_ready(self._fetch)

    def _part_bytes(self, path: Path, size_bytes: int) -> int:
        """How much of the file an earlier attempt has left; a part that cannot be one is dropped."""
        if not path.exists():
            return 0
        have = path.lstat().st_size
        if path.is_symlink() or not path.is_file() or have > size_bytes:
            path.unlink()
            return 0
        return have

    def _ask(self, fetch: _Fetch) -> None:
        """Keeps the window full; what was not answered in time is asked again."""
        source, now_s = self._source, self._now()
        if source is None:
            return
        late = [(at, length) for at, (length, asked_s) in fetch.asked.items() if now_s - asked_s > fetch.patience_s]
        if late:
            fetch.patience_s = min(2 * fetch.patience_s, ANSWER_TIMEOUT_MAX_S)
        for offset, length in late:
            if self._ask_one(fetch, source, offset, length):
                fetch.asked[offset] = (length, now_s)
        while len(fetch.asked) + len(fetch.ahead) < WINDOW_CHUNKS and fetch.ask_from < fetch.meta.size_bytes:
            length = min(CHUNK_BYTES_MAX, fetch.meta.size_bytes - fetch.ask_from)
            if not self._ask_one(fetch, source, fetch.ask_from, length):
                return
            fetch.asked[fetch.ask_from] = (length, now_s)
            fetch.ask_from += length

    def _ask_one(self, fetch: _Fetch, source: NodeRef, offset: int, length: int) -> bool:
        return self._send(source, ChunkRequest(fetch.meta.name, fetch.meta.digest, offset, length))

    def _write_ready(self, fetch: _Fetch) -> None:
        """Writes what is next in order; starts the last check when that was all."""
        try:
            while (data := fetch.ahead.pop(fetch.have_bytes, None)) is not None:
                _write_all(fetch.fd, data, fetch.have_bytes)
                fetch.have_bytes += len(data)
        except OSError as error:
            self._abort()
            self._disk_error(fetch.meta, error)
            return
        if fetch.have_bytes == fetch.meta.size_bytes:
            self._fetch = None
            path, check = self._directory / fetch.meta.name, self._check
            self._job = _Job(fetch.meta, fetch, lambda: _finish(fetch, path, check))
        else:
            self._ask(fetch)

    def _forget_asked(self, fetch: _Fetch) -> None:
        fetch.asked.clear()
        fetch.ahead.clear()
        fetch.ask_from = fetch.have_bytes
        fetch.patience_s = ANSWER_TIMEOUT_S

    def _change_source(self, source: NodeRef) -> None:
        self._source = source
        if self._fetch is not None:
            self._forget_asked(self._fetch)

    # --- the end ---

    def _look_at_job(self) -> None:
        job = self._job
        if job is None or not job.done.is_set():
            return
        self._job = None
        error = job.error
        if error is None:
            log.info("snapshot %s is here and whole", job.meta.name)
            self._on_fetched(job.meta)
        elif isinstance(error, Damaged) and job.fetch is not None:
            self._damaged(job.fetch, error)
        elif isinstance(error, Damaged):
            self._begin_part(job.meta)
        elif isinstance(error, OSError):
            self._disk_error(job.meta, error)
        elif isinstance(error, PeerError):
            self._on_failed(job.meta, error)
        else:
            raise error
        if self._next is not None and not self.busy:
            (meta, source), self._next = self._next, None
            self.start(meta, source)

    def _damaged(self, fetch: _Fetch, error: Damaged) -> None:
        """Not what was promised: once more from the start, then it is the source's fault."""
        log.warning("snapshot %s came damaged (%s)", fetch.meta.name, error)
        if fetch.attempt >= ATTEMPTS_MAX or self._next is not None:
            self._on_failed(fetch.meta, PeerError(f"snapshot {fetch.meta.name} does not have the promised digest"))
            return
        self._begin_part(fetch.meta)
        if self._fetch is not None:
            self._fetch.attempt = fetch.attempt + 1

    def _fail(self, error: RaftdbError) -> None:
        fetch = self._fetch
        self._abort()
        if fetch is not None:
            self._on_failed(fetch.meta, error)

    def _abort(self) -> None:
        """Drops the fetch and its part."""
        if self._fetch is not None:
            os.close(self._fetch.fd)
            self._fetch.path.unlink(missing_ok=True)
            self._fetch = None

    def _sweep(self, keep: str) -> None:
        """Parts of other files are of no use any more."""
        for path in self._directory.glob(f"*{PART}"):
            if path.name != keep:
                path.unlink(missing_ok=True)

    def _disk_error(self, meta: SnapshotMeta, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._on_failed(meta, DiskFull(f"no room for snapshot {meta.name}"))
            return
        raise StorageError(f"cannot write snapshot {meta.name}: {error.strerror}") from error


class _Job:
    """What may take long, in a helper thread. Look at `done`, then at `error`."""

    def __init__(self, meta: SnapshotMeta, fetch: _Fetch | None, work: Callable[[], None]) -> None:
        self.meta = meta
        self.fetch = fetch  # None: a file that was there already is looked at
        self.error: Exception | None = None
        self.done = threading.Event()
        self._work = work
        threading.Thread(target=self._run, name="raftdb-snapshot-check", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # handed to the driver, which raises what it does not know
            self.error = error
        self.done.set()


def _finish(fetch: _Fetch, path: Path, check: Callable[[Path], bytes]) -> None:
    """fsync, read the whole back from the disk, rename to `path`, fsync the directory.

    Unless all went well there is no part any more: after a failed fsync nobody knows what the page cache is worth.
    """
    try:
        try:
            os.fsync(fetch.fd)
            os.posix_fadvise(fetch.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fetch.fd)
        if check(fetch.path) != fetch.meta.digest:
            raise Damaged(fetch.meta.name, "digest of the whole file")
        os.rename(fetch.path, path)
    except BaseException:
        fetch.path.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _look_at_existing(meta: SnapshotMeta, path: Path, check: Callable[[Path], bytes]) -> None:
    """A file of that name is here. Returns when it is the one; Damaged: may be replaced; PeerError: must not be."""
    if check(path) != meta.digest:
        raise PeerError(f"another snapshot has the name {meta.name}")
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _same(one: SnapshotMeta, other: SnapshotMeta) -> bool:
    return (one.name, one.digest, one.size_bytes) == (other.name, other.digest, other.size_bytes)


def _write_all(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
