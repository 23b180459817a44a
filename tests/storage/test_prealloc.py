"""Room in front of the log's file: there, never in the way, never taken from the last of the disk."""

from __future__ import annotations

import errno
import itertools
import os
from pathlib import Path

import pytest

from raftdb.storage import prealloc
from raftdb.storage.checksum import chain_of
from raftdb.storage.log import Log
from raftdb.storage.prealloc import STEP_BYTES_MAX, STEP_BYTES_MIN, Ahead
from raftdb.types import Entry, Kind, Membership, Persist

PAYLOAD = os.urandom(6_000)


def append(log: Log, count: int) -> None:
    for _ in range(count):
        index = log.last + 1
        chain = chain_of(log.chain(index - 1), index, 1, Kind.COMMANDS, index, 0, PAYLOAD)
        entry = Entry(index, 1, Kind.COMMANDS, index, 0, PAYLOAD, chain)
        log.commit(Persist(None, None, (entry,), (), None, None, None, False))


def make(path: Path) -> Log:
    Log.create(path / "log", incarnation=1, membership=Membership(0, ()))
    return Log.open(path / "log", unclean=False)


def size(path: Path) -> int:
    return (path / "log" / "data.mdb").stat().st_size


def test_commits_seldom_make_the_file_longer(tmp_path: Path) -> None:
    log = make(tmp_path)
    try:
        sizes = []
        for _ in range(600):
            append(log, 1)
            sizes.append(size(tmp_path))
            assert log.stats()["used_bytes"] <= sizes[-1] <= log.stats()["used_bytes"] + 2 * STEP_BYTES_MAX
        changes = sum(before != after for before, after in itertools.pairwise(sizes))
        assert 3 <= changes <= 30
    finally:
        log.close()


@pytest.mark.parametrize("unclean", [True, False])
def test_the_log_opens_again_with_room_in_front(tmp_path: Path, unclean: bool) -> None:
    log = make(tmp_path)
    append(log, 100)
    log.close()
    for _ in range(3):
        log = Log.open(tmp_path / "log", unclean=unclean)
        assert [entry.payload for entry in log.walk()] == [PAYLOAD] * log.last
        append(log, 50)
        log.close()
    assert log.last == 250


def test_a_disk_without_room_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 4096)
    ahead = Ahead(file)
    try:
        monkeypatch.setattr(prealloc, "FREE_STEPS_MIN", 1 << 40)
        ahead.keep(4096)
        assert file.stat().st_size == 4096
    finally:
        ahead.close()


def test_no_room_for_a_step_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def full(*_: object) -> int:
        nonlocal tries
        tries += 1
        raise OSError(errno.ENOSPC, "no room")

    log = make(tmp_path)
    try:
        monkeypatch.setattr(prealloc.os, "pwrite", full)
        append(log, 200)
        assert tries == 1
        monkeypatch.undo()
        assert [entry.payload for entry in log.walk()] == [PAYLOAD] * 200
    finally:
        log.close()


def test_what_stands_behind_the_used_part_is_not_overwritten(tmp_path: Path) -> None:
    """Another writer has made the file longer meanwhile."""
    file = tmp_path / "file"
    file.write_bytes(b"x" * 4096)
    ahead = Ahead(file)
    try:
        with file.open("ab") as other:
            other.write(b"y" * 8192)
        ahead.keep(4096)
        data = file.read_bytes()
        assert data[: 3 * 4096] == b"x" * 4096 + b"y" * 8192
        assert len(data) >= 4096 + STEP_BYTES_MIN
        assert not any(data[3 * 4096 :])
    finally:
        ahead.close()
