"""`raftdb recover`: a crash before or after each of its steps, and then run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raftdb.config import MIB
from raftdb.errors import UsageError
from raftdb.node import recovering
from raftdb.storage.checksum import chain_of
from raftdb.storage.datadir import DataDir
from raftdb.storage.log import Log
from raftdb.types import Entry, HardState, Kind, Member, Membership, Persist

MEMBERS = tuple(Member(f"n{n}", n, f"127.0.0.1:{n}010", f"127.0.0.1:{n}011", True) for n in (1, 2, 3))
CLUSTER = "ab" * 16


class PowerCut(Exception):
    """The process ends here."""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A member of three, with two entries of which nobody knows whether they were committed."""
    path = tmp_path / "n1"
    DataDir.create(
        path,
        node_id="n1",
        cluster_id=CLUSTER,
        incarnation=1,
        membership=Membership(0, MEMBERS),
        map_size_bytes=64 * MIB,
    )
    data = DataDir.open(path, map_size_bytes=64 * MIB)
    entries, chain = [], data.log.chain(0)
    for index in (1, 2):
        chain = chain_of(chain, index, 4, Kind.NOOP, index, 0, b"")
        entries.append(Entry(index, 4, Kind.NOOP, index, 0, b"", chain))
    data.log.commit(Persist(HardState(4, None), None, tuple(entries), (), None, None, None, False))
    data.close(clean=True)
    return path


def cut(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: bool) -> None:
    real = getattr(owner, name)

    def dying(*args: Any, **options: Any) -> Any:
        if not before:
            real(*args, **options)
        raise PowerCut(name)

    monkeypatch.setattr(owner, name, dying)


def check_recovered(path: Path, found: recovering.Recovered) -> None:
    data = DataDir.open(path, map_size_bytes=64 * MIB)
    try:
        assert data.identity == found.identity
        assert data.identity.cluster_id != CLUSTER
        assert data.identity.incarnation != 1
        assert data.log.incarnation == data.identity.incarnation
        (sole,) = data.log.membership.members
        assert (sole.id, sole.incarnation, sole.voter) == ("n1", data.identity.incarnation, True)
        assert data.log.last == 3  # one membership entry, however often it was run
        assert data.log.hard.term == data.log.term(3) == 5
        assert [data.log.term(index) for index in (1, 2)] == [4, 4]
        assert not (path / recovering.NEW_IDENTITY).exists()
    finally:
        data.close(clean=True)
    assert found.former_members == ("n1", "n2", "n3")


STEPS = [
    (recovering, "write_file"),
    (Log, "commit"),
    (Log, "renew"),
    (recovering, "_take_identity"),
    (recovering, "sync_directory"),
]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_crash_at_each_step_is_mended_by_another_run(
    directory: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, before: bool
) -> None:
    with monkeypatch.context() as patch:
        cut(patch, owner, name, before)
        with pytest.raises(PowerCut):
            recovering.recover(directory)
    if name == "sync_directory" or (name == "_take_identity" and not before):
        data = DataDir.open(directory, map_size_bytes=64 * MIB)  # it was the last step: there is nothing left to do
        try:
            assert data.log.incarnation == data.identity.incarnation
            assert len(data.log.membership.members) == 1
        finally:
            data.close(clean=True)
        return
    check_recovered(directory, recovering.recover(directory))


def test_it_takes_one_run_when_nothing_happens(directory: Path) -> None:
    check_recovered(directory, recovering.recover(directory))


def test_a_torn_first_step_is_begun_anew(directory: Path) -> None:
    (directory / recovering.NEW_IDENTITY).write_bytes(b"raftdb identi")
    check_recovered(directory, recovering.recover(directory))


def test_a_directory_in_use_is_refused(directory: Path) -> None:
    data = DataDir.open(directory, map_size_bytes=64 * MIB)
    try:
        with pytest.raises(UsageError):
            recovering.recover(directory)
    finally:
        data.close(clean=True)


def test_a_node_that_was_removed_is_no_survivor(directory: Path) -> None:
    data = DataDir.open(directory, map_size_bytes=64 * MIB)
    payload = recovering.membership.encode(MEMBERS[1:])
    chain = chain_of(data.log.chain(2), 3, 4, Kind.MEMBERSHIP, 2, 0, payload)
    entry = Entry(3, 4, Kind.MEMBERSHIP, 2, 0, payload, chain)
    without = Membership(3, MEMBERS[1:])
    data.log.commit(Persist(None, None, (entry,), (), without, data.log.membership, None, False))
    data.close(clean=True)
    with pytest.raises(UsageError, match="no member any more"):
        recovering.recover(directory)
