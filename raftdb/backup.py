"""`raftdb backup` and `raftdb restore`: a cluster's data as one file, and a new cluster from it.

    backup    any node makes a checkpoint (a child process of it; the node goes on serving)
              it comes in pieces of PIECE_BYTES into a file beside the target; a broken connection is taken up again
              fsync, read back from the disk: every checksum, every row, the digest
              the target's name, never over an existing file unless that is meant; fsync of the directory
    restore   `raftdb serve -l` without serving: built aside, checked on the way, renamed at the end

A backup holds everything that was acknowledged before it began, whichever node is asked: the node waits for that
(RAFT.BARRIER) before the checkpoint. `stale` leaves that out, for a node that has lost its majority.

Nothing stands under the target's name before it is whole. A program that is killed leaves `.<name>.<random>.part`
behind, and a checkpoint on the node, which the node removes itself (node/lending.py).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import hiredis

from raftdb.config import Config, split_address
from raftdb.errors import CommandError, Damaged, RaftdbError, UsageError
from raftdb.node import starting
from raftdb.storage import datadir, snapshot
from raftdb.storage.datadir import Identity
from raftdb.storage.engine import guarded
from raftdb.storage.files import drop_page_cache, sync_directory
from raftdb.types import SnapshotMeta

DEFAULT_ADDRESS: Final = "127.0.0.1:6379"
PIECE_BYTES: Final = 1 << 20
REPLY_BYTES_MAX: Final = PIECE_BYTES + 65_536
FILE_BYTES_MAX: Final = 1 << 50
CONNECT_S: Final = 5.0
ANSWER_S: Final = 30.0  # for what needs no long work
TRIES: Final = 5  # to take a broken connection up again
PAUSE_S: Final = 1.0
#: TCP keepalive while the node makes the checkpoint, which may take long: a dead one is noticed after about 25 s.
KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))

#: Told what is being done, how many bytes of it are done, and of how many (0: not known).
Progress = Callable[[str, int, int], object]


class Lost(RaftdbError):
    """The node does not answer, or not what it should; the text says where and why."""


def silent(what: str, done: int, total: int) -> None:
    """The Progress that shows nothing."""


# --- talking to the node ----------------------------------------------------------------------------------------------


class Link:
    """One connection to one node. Raises Lost for everything that is not an answer, CommandError for an error reply."""

    def __init__(self, address: str, password: str) -> None:
        self._address = address
        self._reader = hiredis.Reader()
        host, port = split_address(address)
        with self._named():
            self._socket = socket.create_connection((host, port), timeout=CONNECT_S)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            if password:
                self.ask("AUTH", password)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Lost(f"{self._address}: {error.strerror or error}") from None
        except hiredis.HiredisError as error:
            raise Lost(f"{self._address}: not an answer of a raftdb node: {error}") from None

    def ask(self, *words: str, wait_s: float | None = ANSWER_S) -> Any:
        """One command; `wait_s` None: as long as the node lives."""
        with self._named():
            self._socket.settimeout(wait_s)
            self._socket.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub knows one word
            reply = self._reply()
        if isinstance(reply, hiredis.ReplyError):
            raise CommandError(str(reply))
        return reply

    def _reply(self) -> Any:
        received = 0
        while (reply := self._reader.gets()) is False:
            data = self._socket.recv(1 << 18)
            received += len(data)
            if not data or received > REPLY_BYTES_MAX:
                raise OSError("the connection was closed" if not data else "the reply is too long")
            self._reader.feed(data)
        return reply


class Source:
    """The checkpoint on the node that is asked: made, read from any offset, dropped."""

    def __init__(self, address: str, password: str) -> None:
        self._address = address
        self._password = password
        self._link = Link(address, password)
        self.name = f"backup-{secrets.token_hex(8)}.dat"

    def make(self, codec: str, stale: bool) -> None:
        if not stale:
            self._link.ask("RAFT.BARRIER")
        self._link.ask("CHECKPOINT", self.name, codec.upper(), wait_s=None)

    def pieces(self) -> Iterator[tuple[bytes, int]]:
        """(bytes, size of the whole), in order. Raises Lost when the node is gone for good, CommandError."""
        offset, total = 0, -1
        while offset != total:
            size, data = self._piece(offset)
            if total not in (-1, size) or not 0 < len(data) <= min(PIECE_BYTES, size - offset):
                raise Lost(f"{self._address}: the checkpoint changed while it was read")
            total = size
            offset += len(data)
            yield data, total

    def _piece(self, offset: int) -> tuple[int, bytes]:
        for attempt in range(1, TRIES + 1):
            try:
                reply = self._link.ask("RAFT.SNAPSHOT", "READ", self.name, str(offset), str(PIECE_BYTES))
                break
            except Lost:
                if attempt == TRIES:
                    raise
                time.sleep(PAUSE_S)
                self._again()
        match reply:
            case [int() as size, bytes() as data] if 0 < size <= FILE_BYTES_MAX:
                return size, data
        raise Lost(f"{self._address}: not an answer of a raftdb node")

    def _again(self) -> None:
        """A new connection, if there is somebody; else the next attempt fails on the old one."""
        self._link.close()
        with contextlib.suppress(Lost):
            self._link = Link(self._address, self._password)

    def close(self) -> None:
        """Drop the checkpoint; if that does not succeed, the node does it itself later."""
        with contextlib.suppress(Lost, CommandError):
            self._link.ask("RAFT.SNAPSHOT", "DROP", self.name)
        self._link.close()


# --- backup -----------------------------------------------------------------------------------------------------------


def backup(
    address: str,
    target: Path,
    *,
    password: str = "",
    codec: str = "msgpack",
    force: bool = False,
    stale: bool = False,
    progress: Progress = silent,
) -> SnapshotMeta:
    """Write the data of the cluster that the node at `address` belongs to into the file `target`; what it holds.

    Raises UsageError (the target is there already, or cannot be made), Lost, CommandError (the node's reason),
    StorageError, DiskFull, Damaged (what arrived is not what was sent). Nothing stands at `target` then.
    """
    _check_target(target, force)
    progress("waiting for the checkpoint", 0, 0)
    source = Source(address, password)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        source.make(codec, stale)
        with guarded(target):
            _fetch(source, part, progress)
        found = _verified(part, codec, progress)
        with guarded(target):
            _publish(part, target, force)
        return found._replace(name=target.name)
    finally:
        source.close()
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _check_target(target: Path, force: bool) -> None:
    """Before any work. Raises UsageError."""
    if target.is_dir():
        raise UsageError(f"{target} is a directory: name a file")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already: choose another name, or say --force to replace it")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        reason = "is not writable" if target.parent.is_dir() else "is not a directory"
        raise UsageError(f"{target} cannot be made: {target.absolute().parent} {reason}")


def _fetch(source: Source, part: Path, progress: Progress) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    done = 0
    with os.fdopen(descriptor, "wb") as file:
        for data, total in source.pieces():
            file.write(data)
            done += len(data)
            progress("receiving", done, total)
        file.flush()
        os.fsync(descriptor)


def _verified(part: Path, codec: str, progress: Progress) -> SnapshotMeta:
    """Every byte, from the disk and not from memory. Raises Damaged."""
    drop_page_cache(part)
    size = part.stat().st_size
    try:
        return snapshot.check_file(part, (codec,), lambda done: progress("checking", done, size))
    except Damaged as error:
        raise Damaged("what arrived", str(error)) from None


def _publish(part: Path, target: Path, force: bool) -> None:
    """Give the file its name, in one step, and make that durable. Raises UsageError, OSError."""
    if force:
        os.replace(part, target)
    else:
        try:
            os.link(part, target)  # unlike rename() this never replaces what came in between
        except FileExistsError:
            raise UsageError(f"{target} has come to be meanwhile: nothing was replaced") from None
        part.unlink()
    sync_directory(target.absolute().parent)


# --- restore ----------------------------------------------------------------------------------------------------------


def restore(
    file: Path, data_dir: Path, *, node_id: str = "", address: str = DEFAULT_ADDRESS, progress: Progress = silent
) -> Identity:
    """Make a data directory of a new cluster of one out of a backup, a snapshot, or a checkpoint of pyraft.

    Its index and term go on from the file's. Raises UsageError (the directory is not empty; the file cannot be read, is
    damaged, with the place), DiskFull, StorageError; nothing is left in `data_dir` then.
    """
    config = Config(load=str(file), data_dir=str(data_dir), node_id=node_id, address=address)
    if starting.has_data(config):
        raise UsageError(f"{data_dir} holds data already: restore into a directory of its own")
    if data_dir.is_dir() and any(data_dir.iterdir()):
        raise UsageError(f"{data_dir} is not empty: restore into a directory of its own")
    size = file.stat().st_size
    starting.create_alone(config, lambda done: progress("loading", done, size))
    return datadir.read_identity(data_dir)


# --- showing ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """A progress bar on standard error if that is a terminal; otherwise nothing at all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    if not console.is_terminal:
        yield silent
        return
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Bars(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=None)
            bars.update(tasks[what], completed=done, total=total or None)

        yield show
