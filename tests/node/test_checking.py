"""`raftdb check`: what it finds, what it mends, what it refuses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raftdb.cli import cli
from raftdb.storage import datadir
from raftdb.storage.datadir import DataDir
from raftdb.types import Member, Membership
from tests.storage import dir_workload
from tests.storage.build import THREE, entries, persist
from tests.storage.test_datadir import break_entry
from tests.storage.test_repair import damage


def check(*words: Any) -> Result:
    return CliRunner().invoke(cli, ["check", *map(str, words)])


def make(path: Path, membership: Membership = THREE, applied: int = 20, more: int = 0) -> Path:
    """A directory of a node that was stopped: `applied` entries are in the data, `more` are not."""
    DataDir.create(path, node_id="n1", cluster_id="ab" * 16, incarnation=5, membership=membership)
    data = DataDir.open(path)
    data.log.start()
    dir_workload.append(data, applied)
    dir_workload.replay(data)
    if more:
        last = data.log.last
        rest = entries(last + 1, more, data.log.chain(last), 1, dir_workload.payload)
        data.log.commit(persist(entries=rest))
    data.close(clean=True)
    return path


ALONE = Membership(0, (Member("n1", 5, "127.0.0.1:7000", "127.0.0.1:7001", True),))


def test_a_whole_directory_is_told_so_and_not_touched(tmp_path: Path) -> None:
    path = make(tmp_path / "n1")
    result = check("-d", path)
    assert (result.exit_code, result.output) == (0, f"{path}: nothing is damaged\n")
    result = check("-d", path, "--repair")
    assert (result.exit_code, result.output) == (0, f"{path}: term, vote and counters are whole: nothing was changed\n")
    assert datadir.read_identity(path).incarnation == 5


def test_a_damaged_vote_of_a_member_gives_it_a_new_incarnation(tmp_path: Path) -> None:
    path = make(tmp_path / "n1")
    damage(path, b"hard")
    result = check("-d", path)
    assert result.exit_code == 5
    assert "log/meta hard" in result.output
    assert f"raftdb check -d {path} --repair" in result.output
    result = check("-d", path, "--repair")
    assert result.exit_code == 0
    assert "replaced: log/meta hard" in result.output
    assert "start it with -o" in result.output
    assert check("-d", path).exit_code == 0
    data = DataDir.open(path)
    assert data.identity.incarnation not in (5, 0)
    assert data.log.incarnation == data.identity.incarnation
    assert (data.log.last, data.kv.applied, data.log.hard.vote) == (20, 20, None)
    data.close(clean=True)


def test_a_damaged_vote_of_a_node_that_is_alone_makes_it_its_own_cluster(tmp_path: Path) -> None:
    path = make(tmp_path / "n1", ALONE)
    damage(path, b"hard")
    result = check("-d", path, "--repair")
    assert result.exit_code == 0
    assert "is its own cluster" in result.output
    data = DataDir.open(path)
    (member,) = data.log.membership.members
    assert member.incarnation == data.identity.incarnation != 5
    assert data.log.last == 21  # the entry that says so
    data.close(clean=True)


def test_a_repair_that_was_cut_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "n1")
    damage(path, b"hard")
    monkeypatch.setattr("raftdb.storage.repair.write_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert check("-d", path, "--repair").exit_code == 130
    monkeypatch.undo()
    assert check("-d", path).exit_code == 5
    result = check("-d", path, "--repair")
    assert result.exit_code == 0
    assert "different lives" in result.output
    DataDir.open(path).close(clean=True)


def test_what_is_damaged_and_mends_itself_is_said_so(tmp_path: Path) -> None:
    path = make(tmp_path / "n1", more=10)
    break_entry(path, 25)
    result = check("-d", path)
    assert result.exit_code == 5
    assert "log entry 25" in result.output
    assert "asks the other members" in result.output
    result = check("-d", path, "--accept-loss")
    assert result.exit_code == 2
    assert "may have what is damaged here" in result.output


def test_a_node_that_is_alone_drops_what_nobody_else_has(tmp_path: Path) -> None:
    path = make(tmp_path / "n1", ALONE, more=10)
    break_entry(path, 25)
    with pytest.raises(Exception, match=rf"entry 25 is damaged.*raftdb check -d {path} --accept-loss"):
        DataDir.open(path)
    result = check("-d", path, "--accept-loss")
    assert (result.exit_code, result.output) == (0, "dropped log entries 25 to 30\n")
    result = check("-d", path, "--accept-loss")
    assert (result.exit_code, result.output) == (0, "nothing had to be dropped\n")
    data = DataDir.open(path)
    assert (data.log.last, data.kv.applied) == (24, 20)
    data.close(clean=True)


@pytest.mark.parametrize("flags", [(), ("--repair",), ("--accept-loss",)], ids=str)
def test_a_directory_in_use_and_none_at_all_are_refused(tmp_path: Path, flags: tuple[str, ...]) -> None:
    path = make(tmp_path / "n1")
    damage(path, b"starts")
    before = (path / "log" / "data.mdb").read_bytes()
    held = datadir.lock(path)
    result = check("-d", path, *flags)
    os.close(held)
    assert result.exit_code == 2
    assert "in use" in result.output
    assert (path / "log" / "data.mdb").read_bytes() == before
    for nothing in (tmp_path / "no", tmp_path):
        result = check("-d", nothing, *flags)
        assert result.exit_code == 2, result.output
        assert len(result.output.splitlines()) == 1


@pytest.mark.parametrize("name", [b"membership", b"tail"])
def test_what_cannot_be_mended_is_refused_with_the_way_out(tmp_path: Path, name: bytes) -> None:
    path = make(tmp_path / "n1")
    damage(path, name)
    result = check("-d", path, "--repair")
    assert result.exit_code == 2
    assert "beyond repair" in result.output
    assert "-o" in result.output
    assert datadir.read_identity(path).incarnation == 5


def test_both_flags_at_once_are_refused(tmp_path: Path) -> None:
    assert check("-d", tmp_path, "--repair", "--accept-loss").exit_code == 2
