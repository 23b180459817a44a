"""A new incarnation for a directory whose vote is damaged; refusal where nothing can be mended."""

from __future__ import annotations

import pytest

from raftdb.errors import Damaged, UsageError
from raftdb.storage import datadir
from raftdb.storage.datadir import DataDir
from raftdb.storage.engine import Environment
from raftdb.storage.log import DATABASES
from raftdb.storage.repair import repair
from raftdb.types import HardState, NodeRef

from . import dir_workload
from .build import MAP_BYTES, content, persist


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data"
    dir_workload.make(path)
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    data.log.start()
    data.log.commit(persist(hard=HardState(7, NodeRef("n2", 3))))
    dir_workload.append(data, 20)
    dir_workload.replay(data)
    data.close(clean=True)
    return path


def damage(path, name):
    environment = Environment(path / "log", DATABASES, sync=True, map_size_bytes=MAP_BYTES)
    transaction = environment.writer()
    transaction.put(name, b"rot", db=environment.databases[1])
    environment.commit(transaction)
    environment.close()


@pytest.mark.parametrize("name", [b"hard", b"starts", b"incarnation", b"previous", b"snapshot", b"before", b"format"])
def test_what_can_be_mended(path, name):
    damage(path, name)
    with pytest.raises(Damaged):
        DataDir.open(path, map_size_bytes=MAP_BYTES)
    (text,) = repair(path, 4711, map_size_bytes=MAP_BYTES)
    assert name.decode() in text
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    assert (data.identity.incarnation, data.log.incarnation) == (4711, 4711)
    assert data.log.hard == HardState(7, None)
    assert content(data.kv) == dir_workload.expected(20)
    data.close(clean=True)


@pytest.mark.parametrize("name", [b"tail", b"base", b"membership"])
def test_what_cannot_be_mended(path, name):
    damage(path, name)
    before = (path / "log" / "data.mdb").read_bytes(), (path / "identity").read_bytes()
    with pytest.raises(UsageError, match=r"beyond repair.*-o"):
        repair(path, 4711, map_size_bytes=MAP_BYTES)
    assert ((path / "log" / "data.mdb").read_bytes(), (path / "identity").read_bytes()) == before


def test_a_repair_that_was_cut_off_is_made_again(path, monkeypatch):
    damage(path, b"hard")
    monkeypatch.setattr("raftdb.storage.repair.write_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        repair(path, 1, map_size_bytes=MAP_BYTES)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="different lives"):
        DataDir.open(path, map_size_bytes=MAP_BYTES)
    assert repair(path, 2, map_size_bytes=MAP_BYTES) == []
    DataDir.open(path, map_size_bytes=MAP_BYTES).close(clean=True)
    assert datadir.read_identity(path).incarnation == 2


def test_a_directory_in_use_is_not_repaired(path):
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    with pytest.raises(UsageError, match="in use"):
        repair(path, 4711, map_size_bytes=MAP_BYTES)
    data.close(clean=True)
