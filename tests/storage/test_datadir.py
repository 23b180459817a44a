"""The data directory: making, refusing, locking, the start table row by row, another kv, sweeping."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from raftdb.errors import Damaged, StorageError, UsageError
from raftdb.storage import datadir, kvstate, records, snapshot
from raftdb.storage.datadir import DataDir, KvFacts, StartWith, decide_start
from raftdb.storage.engine import Environment
from raftdb.storage.kv import KvStore
from raftdb.storage.log import DATABASES
from raftdb.storage.txn import SPACES
from raftdb.storage.verify import verify_directory
from raftdb.types import Member, Membership

from .build import MAP_BYTES, MEMBERS, THREE, apply, content, entries, persist, snapshot_meta


def create(path, members=MEMBERS, **options):
    identity = {"node_id": "n1", "cluster_id": "ab" * 16, "incarnation": 5}
    DataDir.create(path, **identity, membership=members, map_size_bytes=MAP_BYTES, **options)


def open_dir(path, **options):
    return DataDir.open(path, map_size_bytes=MAP_BYTES, **options)


def grow(data, count):
    made = entries(data.log.last + 1, count, data.log.chain(data.log.last))
    data.log.commit(persist(entries=made))
    apply(data.kv, made, data.log.membership)


def take_snapshot(data):
    name = snapshot.file_name("n1", 1, data.kv.applied)
    with data.kv.view() as view:
        meta = snapshot.write(view, datadir.snapshot_path(data.path) / name, node_id="n1", cluster_id="ab" * 16)
    data.log.add_snapshot(meta)
    return meta


def replay(data):
    if data.kv.applied < data.log.last:
        apply(data.kv, data.log.entries(data.kv.applied + 1, data.log.last, 10**9), data.log.membership)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def data(path):
    create(path)
    opened = open_dir(path)
    grow(opened, 30)
    return opened


# --- the start table ------------------------------------------------------------------------------------------------

S10, S20, S5 = (snapshot_meta(index, 1, 1, f"s{index}") for index in (10, 20, 5))


@pytest.mark.parametrize(
    ("first", "last", "kv", "snapshots", "alone", "start_with", "used"),
    [
        # kv is used when it is trusted and stands inside the log
        (1, 30, KvFacts(True, 30, True), [], True, StartWith.KV, None),
        (1, 30, KvFacts(True, 0, True), [], True, StartWith.KV, None),
        (11, 30, KvFacts(True, 10, True), [(S10, True)], True, StartWith.KV, None),
        (11, 10, KvFacts(True, 10, True), [(S10, True)], True, StartWith.KV, None),
        (1, 0, KvFacts(True, 0, True), [], False, StartWith.KV, None),
        # not trusted, before the base, behind the end, of another history: a snapshot
        (11, 30, KvFacts(False, 20, True), [(S20, True), (S10, True)], True, StartWith.SNAPSHOT, S20),
        (11, 30, KvFacts(True, 9, True), [(S20, True), (S10, True)], True, StartWith.SNAPSHOT, S20),
        (11, 30, KvFacts(True, 31, True), [(S20, True), (S10, True)], True, StartWith.SNAPSHOT, S20),
        (11, 30, KvFacts(True, 20, False), [(S20, True), (S10, True)], True, StartWith.SNAPSHOT, S20),
        (11, 30, None, [(S20, True), (S10, True)], False, StartWith.SNAPSHOT, S20),
        # the one before when the newest is damaged, too old or beyond the log
        (11, 30, None, [(S20, False), (S10, True)], True, StartWith.SNAPSHOT, S10),
        (11, 15, None, [(S20, True), (S10, True)], True, StartWith.SNAPSHOT, S10),
        (1, 30, None, [(S20, False), (S10, False)], True, StartWith.EMPTY, None),
        # the whole log is there
        (1, 30, None, [], True, StartWith.EMPTY, None),
        (1, 0, None, [], True, StartWith.EMPTY, None),
        (1, 30, KvFacts(False, 30, True), [], False, StartWith.EMPTY, None),
        (1, 4, None, [(S5, True)], True, StartWith.EMPTY, None),
        # nothing reaches back to the base
        (11, 30, None, [], False, StartWith.NEEDS_SNAPSHOT, None),
        (11, 30, None, [(S5, True)], False, StartWith.NEEDS_SNAPSHOT, None),
        (11, 30, KvFacts(False, 20, True), [(S20, False), (S10, False)], False, StartWith.NEEDS_SNAPSHOT, None),
        (11, 30, None, [(S5, True)], True, StartWith.STOP, None),
        (11, 30, KvFacts(True, 5, True), [(S20, False)], True, StartWith.STOP, None),
    ],
)
def test_every_row_of_the_start_table(first, last, kv, snapshots, alone, start_with, used):
    plan = decide_start(first, last, kv, tuple(snapshots), alone)
    assert (plan.start_with, plan.snapshot) == (start_with, used)
    assert plan.reason


def test_a_clean_stop_is_remembered(data, path):
    digest = data.kv.digest
    data.close(clean=True)
    assert kvstate.read(path / "kv.state") == "clean"
    data = open_dir(path)
    assert (data.was_clean, data.plan.start_with, data.kv.digest) == (True, StartWith.KV, digest)
    data.close(clean=False)
    assert kvstate.read(path / "kv.state") == "clean"  # nothing was written in between
    data = open_dir(path)
    grow(data, 1)
    assert kvstate.read(path / "kv.state").startswith("dirty ")
    data.close(clean=False)
    data = open_dir(path)
    assert (data.was_clean, data.plan.start_with) == (False, StartWith.KV)
    data.close(clean=True)


def forget(path):
    boot, device, inode = kvstate.read(path / "kv.state").split()[1:]
    (path / "kv.state").write_text(f"dirty {'0' * len(boot)} {device} {inode}\n")


@pytest.mark.parametrize("line", ["dirty x 1 2", "", "clean?", "damaged", None], ids=str)
def test_kv_is_rebuilt_when_its_state_is_not_good(data, path, line):
    expected, digest = content(data.kv), data.kv.digest
    take_snapshot(data)
    data.log.trim(20, 1000)
    grow(data, 5)
    expected, digest = content(data.kv), data.kv.digest
    data.close(clean=True)
    if line is None:
        (path / "kv.state").unlink()
    else:
        (path / "kv.state").write_text(line)
    data = open_dir(path)
    assert data.plan.start_with is StartWith.SNAPSHOT
    assert data.kv.applied == 30
    replay(data)
    assert (content(data.kv), data.kv.digest) == (expected, digest)
    assert data.kv.membership == MEMBERS
    assert data.sweep() == ["kv"]
    data.close(clean=True)
    data = open_dir(path)
    assert data.plan.start_with is StartWith.KV
    assert content(data.kv) == expected
    data.close(clean=True)


def test_another_boot_device_or_inode_is_not_trusted(data, path):
    grow(data, 1)
    data.close(clean=False)
    good = kvstate.read(path / "kv.state").split()
    assert kvstate.is_trusted(path / "kv.state", path / "kv")
    for place in (1, 2, 3):
        words = list(good)
        words[place] += "1"
        (path / "kv.state").write_text(" ".join(words))
        assert not kvstate.is_trusted(path / "kv.state", path / "kv")
    (path / "kv.state").write_text("clean")
    shutil.rmtree(path / "kv")
    assert not kvstate.is_trusted(path / "kv.state", path / "kv")


def test_kv_of_another_history_is_not_used(data, path, tmp_path):
    data.close(clean=True)
    other = tmp_path / "other"
    create(other)
    stranger = open_dir(other)
    made = entries(1, 30, payload=lambda index: b"foreign=%d" % index)
    stranger.log.commit(persist(entries=made))
    apply(stranger.kv, made)
    stranger.close(clean=True)
    shutil.rmtree(path / "kv")
    shutil.copytree(other / "kv", path / "kv")
    data = open_dir(path)
    assert data.plan.start_with is StartWith.EMPTY
    replay(data)
    assert b"foreign" not in content(data.kv)
    assert len(content(data.kv)) == 30
    data.close(clean=True)


def test_a_damaged_snapshot_makes_the_one_before_serve(data, path):
    take_snapshot(data)
    grow(data, 10)
    second = take_snapshot(data)
    data.log.trim(31, 1000)
    expected = content(data.kv)
    data.close(clean=False)
    forget(path)
    file = path / "snapshots" / second.name
    broken = bytearray(file.read_bytes())
    broken[len(broken) // 2] ^= 1
    file.write_bytes(broken)
    (finding,) = [finding for finding in verify_directory(path) if not finding.note]
    assert finding.place.startswith(second.name)
    data = open_dir(path)
    assert data.plan.snapshot.index == 30
    replay(data)
    assert content(data.kv) == expected
    data.close(clean=True)


def test_alone_without_any_whole_data_it_stops(data, path):
    meta = take_snapshot(data)
    data.log.trim(31, 1000)
    grow(data, 3)
    data.close(clean=False)
    forget(path)
    (path / "snapshots" / meta.name).unlink()
    with pytest.raises(StorageError, match="--accept-loss"):
        open_dir(path)
    data = open_dir(path, accept_loss=True)
    assert data.kv.applied == 30
    replay(data)
    assert len(content(data.kv)) == 3
    data.close(clean=True)


def test_with_others_it_asks_for_a_snapshot_instead(path):
    create(path, THREE)
    data = open_dir(path)
    grow(data, 30)
    take_snapshot(data)
    data.log.trim(31, 1000)
    data.close(clean=False)
    forget(path)
    shutil.rmtree(path / "snapshots")
    (path / "snapshots").mkdir()
    data = open_dir(path)
    assert (data.plan.start_with, data.kv.applied) == (StartWith.NEEDS_SNAPSHOT, 0)
    data.close(clean=True)


def break_entry(path, index):
    environment = Environment(path / "log", DATABASES, sync=True, map_size_bytes=MAP_BYTES)
    transaction = environment.writer()
    transaction.put(records.key(index), b"rot", db=environment.databases[0])
    environment.commit(transaction)
    environment.close()


def test_a_damaged_entry_of_a_member_is_named_for_quarantine(path):
    create(path, THREE)
    data = open_dir(path)
    data.log.commit(persist(entries=entries(1, 10)))
    data.close(clean=False)
    break_entry(path, 7)
    data = open_dir(path)
    assert data.damaged == [7]
    data.close(clean=True)


def test_a_damaged_entry_of_a_sole_node_stops_it(path):
    create(path)
    data = open_dir(path)
    data.log.commit(persist(entries=entries(1, 10)))
    data.close(clean=False)
    break_entry(path, 7)
    with pytest.raises(StorageError, match=r"entry 7 is damaged.*--accept-loss"):
        open_dir(path)
    data = open_dir(path, accept_loss=True)
    assert (data.log.last, data.damaged) == (6, [])
    data.close(clean=True)


def test_a_damaged_entry_that_is_applied_already_does_not_stop_a_sole_node(data, path):
    data.close(clean=True)
    break_entry(path, 7)
    data = open_dir(path)
    assert data.plan.start_with is StartWith.KV
    assert data.damaged == []
    data.close(clean=True)


# --- making, refusing, locking --------------------------------------------------------------------------------------


def test_a_new_directory(path):
    assert not DataDir.exists(path)
    create(path)
    assert DataDir.exists(path)
    assert path.stat().st_mode & 0o777 == 0o700
    for directory, _, files in os.walk(path):
        assert os.stat(directory).st_mode & 0o077 == 0
        for name in files:
            assert os.stat(os.path.join(directory, name)).st_mode & 0o077 == 0
    assert os.listdir(path.parent) == [path.name]
    data = open_dir(path)
    assert (data.log.first, data.log.last, data.kv.applied, data.damaged) == (1, 0, 0, [])
    assert data.identity == datadir.Identity("n1", "ab" * 16, 5, 1, "")
    assert data.log.membership == MEMBERS
    data.close(clean=True)
    with pytest.raises(UsageError, match="already"):
        create(path)


def test_a_directory_that_is_there_already(path):
    path.mkdir()
    (path / "lost+found").mkdir()
    assert not DataDir.exists(path)
    create(path)
    open_dir(path).close(clean=True)
    assert path.stat().st_mode & 0o777 == 0o700


def test_an_interrupted_creation_is_taken_up_again(path, monkeypatch):
    path.mkdir()
    renames = []
    real = os.rename

    for stop in range(1, 4):

        def rename(source, target, stop=stop):
            if len(renames) + 1 == stop:
                raise KeyboardInterrupt
            renames.append(source)
            real(source, target)

        renames.clear()
        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)  # the process died: nobody cleans up
        with pytest.raises(KeyboardInterrupt):
            create(path)
        monkeypatch.undo()
        if not DataDir.exists(path):
            create(path)
        open_dir(path).close(clean=True)
        shutil.rmtree(path)
        path.mkdir()


def test_a_failed_creation_leaves_nothing(path, tmp_path):
    (tmp_path / "nonsense").write_bytes(b"nonsense")
    with pytest.raises(UsageError):
        create(path, snapshot=tmp_path / "nonsense")
    assert os.listdir(tmp_path) == ["nonsense"]


@pytest.mark.parametrize("missing", ["identity", "log"])
def test_half_a_directory_is_refused_and_untouched(data, path, missing):
    data.close(clean=True)
    target = path / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    before = sorted(os.listdir(path))
    for attempt in (DataDir.exists, open_dir, create):
        with pytest.raises(UsageError, match=f"half a data directory.*{missing}.*-o"):
            attempt(path)
    assert sorted(os.listdir(path)) == before


def test_foreign_directories_and_files_are_refused(tmp_path):
    (tmp_path / "letter.txt").write_text("dear diary")
    with pytest.raises(UsageError, match=r"letter\.txt"):
        DataDir.exists(tmp_path)
    with pytest.raises(UsageError, match="not a directory"):
        DataDir.exists(tmp_path / "letter.txt")
    with pytest.raises(UsageError, match="not a directory"):
        DataDir.exists(tmp_path / "letter.txt" / "data")


def test_missing_rights_are_told(data, path, monkeypatch):
    data.close(clean=True)
    monkeypatch.setattr(os, "access", lambda place, mode: not mode & os.W_OK)  # root may write everywhere
    with pytest.raises(UsageError, match="not writable"):
        open_dir(path)
    with pytest.raises(UsageError, match="not writable"):
        create(path.parent / "new" / "data")


def test_a_newer_format_is_refused(data, path):
    data.close(clean=True)
    text = (path / "identity").read_text().replace("format: 1", "format: 2")
    (path / "identity").write_text(text)
    with pytest.raises(UsageError, match="newer raftdb"):
        open_dir(path)


def test_every_flip_in_identity_is_found(data, path):
    data.close(clean=True)
    good = (path / "identity").read_bytes()
    for bit in range(len(good) * 8):
        broken = bytearray(good)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises((Damaged, UsageError)):
            datadir.decode_identity(bytes(broken), "identity")


def test_identity_and_log_of_different_lives(data, path):
    data.close(clean=True)
    identity = datadir.read_identity(path)._replace(incarnation=6)
    (path / "identity").write_bytes(datadir.encode_identity(identity))
    with pytest.raises(UsageError, match=r"different lives.*-o"):
        open_dir(path)
    assert any("another life" in finding.what for finding in verify_directory(path))


def test_a_second_process_is_refused(data, path):
    program = (
        "import sys; from pathlib import Path; from raftdb.storage.datadir import DataDir\n"
        "from raftdb.errors import UsageError\n"
        "try: DataDir.open(Path(sys.argv[1]))\n"
        "except UsageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, text=True)
    assert done.stdout == f"{path} is in use by another raftdb process\n"
    data.close(clean=True)
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, check=True, text=True)
    assert done.stdout == ""


def test_a_failed_open_releases_everything(data, path):
    data.close(clean=True)
    broken = bytearray((path / "identity").read_bytes())
    broken[40] ^= 1
    good = (path / "identity").read_bytes()
    (path / "identity").write_bytes(broken)
    with pytest.raises((Damaged, UsageError)):
        open_dir(path)
    (path / "identity").write_bytes(good)
    open_dir(path).close(clean=True)


# --- another kv, sweeping, reserve ----------------------------------------------------------------------------------


def test_install_switches_while_readers_go_on(data, path, tmp_path):
    other = tmp_path / "other"
    create(other)
    leader = open_dir(other)
    grow(leader, 100)
    meta = take_snapshot(leader)
    shutil.copy(other / "snapshots" / meta.name, path / "snapshots" / meta.name)
    expected = content(leader.kv)
    leader.close(clean=True)
    old_kv = data.kv
    with old_kv.view() as view:
        data.log.commit(persist(install=meta))
        new = data.install(meta)
        assert data.kv is new
        assert view.count(0) == 30  # the old one is still readable
        assert len(list(view.scan_heads(0))) == 30
        with old_kv.view() as again:
            assert again.count(0) == 30
        assert data.sweep() == ["kv"]
        assert len(list(view.scan_heads(0))) == 30
    assert content(data.kv) == expected
    grow(data, 2)
    data.close(clean=False)
    data = open_dir(path)
    assert (data.plan.start_with, data.kv.applied, data.log.first) == (StartWith.KV, 102, 101)
    data.close(clean=True)


@pytest.mark.parametrize("lost", ["kv.current", "kv.state", "kv.100"])
def test_a_crash_between_the_steps_of_a_switch(data, path, tmp_path, lost):
    """Whatever of the switch is missing, the start finds the way: the log says what kv must hold."""
    grow(data, 70)
    take_snapshot(data)
    expected = content(data.kv)
    data.install(data.log.snapshot)
    data.close(clean=False)
    target = path / lost
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    data = open_dir(path)
    replay(data)
    assert content(data.kv) == expected
    data.close(clean=True)


def test_sweeping_keeps_what_is_named(data, path):
    meta = take_snapshot(data)
    for name in ("stray.dat", ".x.dat.tmp", "half.part"):
        (path / "snapshots" / name).write_bytes(b"x")
    (path / "snapshots" / ".y.dat.copy").mkdir()
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "mine.dat").write_bytes(b"x")
    (path / "kv.77").mkdir()
    assert data.sweep() == ["kv.77", "snapshots/.x.dat.tmp", "snapshots/.y.dat.copy", "snapshots/stray.dat"]
    assert sorted(os.listdir(path / "snapshots")) == ["half.part", meta.name]
    assert (path / "checkpoints" / "mine.dat").exists()
    data.close(clean=True)


def test_a_new_cluster_from_a_snapshot(data, path, tmp_path):
    meta = take_snapshot(data)
    expected, digest = content(data.kv), data.kv.digest
    data.close(clean=True)
    for codec in snapshot.CODECS:
        file = tmp_path / f"{codec}.dat"
        store = KvStore.open(path / "kv", None, map_size_bytes=MAP_BYTES, read_only=True)
        with store.view() as view:
            snapshot.write(view, file, node_id="n1", cluster_id="ab" * 16, codec_name=codec)
        store.close(clean=False)
        target = tmp_path / f"from-{codec}"
        create(target, THREE, snapshot=file)
        new = open_dir(target)
        assert (new.log.first, new.log.last, new.kv.applied) == (31, 30, 30)
        assert (content(new.kv), new.kv.digest) == (expected, digest)
        assert new.kv.membership == new.log.membership == THREE
        assert new.log.snapshot.membership == THREE
        assert new.identity.source_digest == snapshot.file_digest(file).hex()
        assert new.log.hard.term == meta.term
        grow(new, 3)
        new.close(clean=True)
        assert list(verify_directory(target)) == []
        forget_state = target / "kv.state"
        forget_state.write_text("damaged\n")
        new = open_dir(target)
        assert new.plan.start_with is StartWith.SNAPSHOT
        assert new.kv.membership == THREE
        new.close(clean=True)


def test_the_reserve(data, path):
    assert data.restore_reserve()
    assert (path / "reserve").stat().st_size == datadir.RESERVE_BYTES
    assert data.restore_reserve()
    assert data.release_reserve()
    assert not data.release_reserve()
    assert data.free_bytes() > 0
    data.close(clean=True)


def test_a_damaged_record_in_kv_makes_the_next_start_rebuild_it(data, path):
    data.close(clean=True)
    environment = Environment(path / "kv", SPACES, sync=True, map_size_bytes=MAP_BYTES)
    transaction = environment.writer()
    cursor = transaction.cursor(environment.databases[0])
    cursor.first()
    key, value = cursor.item()
    transaction.put(key, value[:-1] + bytes((value[-1] ^ 1,)), db=environment.databases[0])
    environment.commit(transaction)
    environment.close()
    data = open_dir(path)
    with data.kv.view() as view, pytest.raises(Damaged):
        list(view.scan_heads(0))
    data.close(clean=False)
    assert kvstate.read(path / "kv.state") == "damaged"
    data = open_dir(path)
    assert data.plan.start_with is StartWith.EMPTY
    replay(data)
    assert len(content(data.kv)) == 30
    data.close(clean=True)


def test_runs_that_died_young_have_the_pages_of_kv_looked_at(data, path, monkeypatch):
    """A wild pointer in kv ends the process by SIGBUS: a node in a crash loop must come out of it by itself."""
    data.close(clean=False)
    opened = []
    with monkeypatch.context() as patched:
        patched.setattr(datadir.engine, "structure_findings", lambda file: opened.append(file) or [])
        for _ in range(datadir.YOUNG_DEATHS - 1):
            open_dir(path).close(clean=False)
        assert opened == []  # one young death is no reason for a walk that takes seconds
    pages = bytearray((path / "kv" / "data.mdb").read_bytes())
    for place in range(2 * 4096, len(pages), 4096):
        pages[place + 10] ^= 0x40  # flags of a page
    (path / "kv" / "data.mdb").write_bytes(pages)
    data = open_dir(path)
    assert data.plan.start_with is StartWith.EMPTY
    replay(data)
    assert len(content(data.kv)) == 30
    data.close(clean=True)
    open_dir(path).close(clean=True)
    assert not (path / "kv.young").exists()


def test_a_node_that_joins_is_not_alone(path):
    create(path, Membership(0, ()))
    data = open_dir(path)
    assert not data.alone
    data.close(clean=True)


def test_the_snapshot_of_a_formed_cluster_names_those_who_formed_it(tmp_path):
    """No entry says it: a follower that installed such a file believed that everybody had been removed."""
    members = tuple(Member(f"n{n}", n, f"h{n}:1", f"h{n}:2", True) for n in (1, 2, 3))
    path = tmp_path / "n1"
    DataDir.create(path, node_id="n1", cluster_id="0" * 32, incarnation=1, membership=Membership(0, members))
    data = DataDir.open(path)
    try:
        assert data.kv.membership.members == members
        assert data.kv.applied == 0
        with data.kv.view() as view:
            assert view.membership().members == members
    finally:
        data.close(clean=True)
    data = DataDir.open(path)
    try:
        assert data.kv.membership.members == members
    finally:
        data.close(clean=True)
