"""A small life of a data directory, run by its own process so that it can be killed, or its system calls made to fail.

    python -m tests.storage.dir_workload DIRECTORY MARKS LEADER_DIRECTORY

Entry N sets the key `k<N % 17>` to `v<N>`, so the right content follows from the last index alone. MARKS gets `ack N`
when entry N is promised, `full` when a step was refused for lack of room (it is then tried again), `done` at the end.
Exit codes: 0 done, 3 storage error.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from raftdb.errors import DiskFull, StorageError
from raftdb.storage import datadir, snapshot
from raftdb.storage.datadir import DataDir
from raftdb.storage.engine import guarded
from raftdb.storage.files import sync_directory
from raftdb.types import HardState, NodeRef

from .build import MAP_BYTES, MEMBERS, THREE, apply, entries, persist

LEADER_ENTRIES = 80
KEYS = 17


def payload(index: int) -> bytes:
    return b"k%d=v%d" % (index % KEYS, index)


def expected(last: int) -> dict[bytes, bytes]:
    """What kv holds after entry `last`."""
    return dict(payload(index).split(b"=") for index in range(max(1, last - KEYS + 1), last + 1))


def make(path: Path) -> None:
    DataDir.create(
        path, node_id="n1", cluster_id="ab" * 16, incarnation=5, membership=MEMBERS, map_size_bytes=MAP_BYTES
    )


def make_leader(path: Path) -> None:
    """A directory whose newest snapshot is one that the workload installs."""
    make(path)
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    append(data, LEADER_ENTRIES)
    take_snapshot(data)
    data.close(clean=True)


def append(data: DataDir, count: int) -> None:
    last = data.log.last
    made = entries(last + 1, count, data.log.chain(last), max(1, data.log.hard.term), payload)
    data.log.commit(persist(entries=made))


def replay(data: DataDir) -> None:
    if data.kv.applied < data.log.last:
        apply(data.kv, data.log.entries(data.kv.applied + 1, data.log.last, 10**9), data.log.membership)


def take_snapshot(data: DataDir) -> None:
    replay(data)
    data.kv.sync()
    target = datadir.snapshot_path(data.path) / snapshot.file_name("n1", 1, data.kv.applied)
    with data.kv.view() as view:
        data.log.add_snapshot(snapshot.write(view, target, node_id="n1", cluster_id="ab" * 16))


def install(data: DataDir, leader: Path) -> None:
    """The leader's file is received, becomes the base of the log, then kv."""
    (file,) = (leader / "snapshots").iterdir()
    target = datadir.snapshot_path(data.path) / file.name
    part = target.with_name(target.name + ".part")
    with guarded(part):
        with file.open("rb") as source, part.open("wb") as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
        meta = snapshot.check_file(part)._replace(name=file.name)
        os.rename(part, target)
        sync_directory(target.parent)
    if data.log.last < meta.index:
        data.log.commit(persist(hard=HardState(max(1, data.log.hard.term), None), install=meta))
    data.install(data.log.snapshot)
    data.sweep()


def steps(leader: Path):
    """(name, call) in order."""
    yield "append", lambda data: append(data, 3)
    yield "apply", replay
    yield "vote", lambda data: data.log.commit(persist(hard=HardState(2, NodeRef("n2", 5))))
    yield "append", lambda data: append(data, 10)
    yield "snapshot", take_snapshot
    yield "append", lambda data: append(data, 10)
    yield "members", lambda data: data.log.commit(persist(membership=THREE, previous=data.log.membership))
    yield "apply", replay
    yield "snapshot", take_snapshot
    yield "trim", lambda data: data.log.trim(14, 5)
    yield "trim", lambda data: data.log.trim(14, 100)
    yield "sweep", lambda data: data.sweep()
    yield "reserve", lambda data: data.restore_reserve()
    yield "append", lambda data: append(data, 5)
    yield "install", lambda data: install(data, leader)
    yield "append", lambda data: append(data, 4)
    yield "apply", replay


def main() -> int:
    path, marks, leader = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def mark(text: str) -> None:
        os.write(descriptor, f"{text}\n".encode())

    def until_room(call):
        try:
            return call()
        except DiskFull:
            mark("full")
            return call()

    try:
        until_room(lambda: make(path))
        data = until_room(lambda: DataDir.open(path, map_size_bytes=MAP_BYTES))
        until_room(data.log.start)
        mark("ack 0")
        for _, call in steps(leader):
            until_room(lambda call=call: call(data))
            mark(f"ack {data.log.last}")
        until_room(lambda: data.close(clean=True))
        mark("done")
    except StorageError as error:
        print(f"storage error: {error}")
        return 3
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
