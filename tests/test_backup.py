"""Backup, restore, `serve -l`: what went in comes out, from any node, in both codecs; what is damaged is refused."""

from __future__ import annotations

import os
import pty
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from raftdb import backup as backups
from raftdb.errors import CommandError, Damaged, RaftdbError, UsageError
from raftdb.node import lending
from raftdb.storage import snapshot
from raftdb.storage.datadir import DataDir, read_identity
from raftdb.storage.kv import state_digest
from tests import round_trip
from tests.e2e.server import Raftdb, StartFailed
from tests.node.conftest import start_node  # noqa: F401  (a fixture)
from tests.node.test_cluster import form, leader_of

CODECS = ["msgpack", "pickle"]


def digest_of(node):
    with node.data.kv.view() as view:
        return state_digest(view)


def digest_in(directory):
    data = DataDir.open(directory)
    try:
        with data.kv.view() as view:
            return state_digest(view)
    finally:
        data.close(clean=True)


@pytest.fixture
def filled(start_node):  # noqa: F811
    """A node with a little of everything."""
    node = start_node("n1")
    round_trip.fill(node.config.port, keys=300)
    return node


def backup(node, target, **options):
    return backups.backup(node.config.address, target, **options)


# --- round trips ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_what_was_backed_up_is_restored(filled, start_node, tmp_path, codec):  # noqa: F811
    meta = backup(filled, tmp_path / "b.dat", codec=codec)
    assert meta == snapshot.check_file(tmp_path / "b.dat", (codec,))
    assert meta.index == filled.driver.applied
    identity = backups.restore(tmp_path / "b.dat", tmp_path / "new", node_id="m1")
    assert (identity.node_id, identity.source_digest) == ("m1", meta.digest.hex())
    assert identity.cluster_id != filled.data.identity.cluster_id
    assert identity.incarnation != filled.data.identity.incarnation
    assert digest_in(tmp_path / "new") == digest_of(filled)
    restored = start_node("m1", data_dir=str(tmp_path / "new"))
    assert restored.driver.applied > meta.index
    assert restored.term > meta.term
    assert [member.id for member in restored.data.log.membership.members] == ["m1"]
    assert digest_of(restored) == digest_of(filled)
    assert restored.execute("RPUSH", "goes", "on") == 1


@pytest.mark.parametrize("codec", CODECS)
def test_a_checkpoint_starts_a_cluster(filled, start_node, tmp_path, codec):  # noqa: F811
    """CHECKPOINT name [PICKLE], then serve -l, of thousands of keys of all types."""
    round_trip.fill(filled.config.port, keys=3_000, seed=2)
    filled.execute("CHECKPOINT", "mine.dat", codec)
    file = filled.config.own_data_dir / "checkpoints" / "mine.dat"
    loaded = start_node("m1", load=str(file))
    assert digest_of(loaded) == digest_of(filled)
    assert snapshot.read_header(file).codec == codec


def test_any_node_gives_a_backup_of_everything_acknowledged(start_node, tmp_path):  # noqa: F811
    nodes = form(start_node)
    leader = leader_of(nodes)
    for node in nodes:
        leader.execute("SET", "last", node.config.own_id)
        backup(node, tmp_path / f"{node.config.own_id}.dat")
        with snapshot.Reader(tmp_path / f"{node.config.own_id}.dat") as reader:
            values = {row.name: row.head.value for row in reader.walk() if row.head is not None}
        assert values[b"last"] == node.config.own_id.encode()
        assert list((node.config.own_data_dir / "checkpoints").iterdir()) == []
    for node in nodes:
        if node is not leader:
            node.stop()
    with pytest.raises(RaftdbError):
        backup(leader, tmp_path / "late.dat")
    assert backup(leader, tmp_path / "stale.dat", stale=True).index >= 4
    assert not (tmp_path / "late.dat").exists()


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_a_flipped_byte_is_refused_with_its_place(start_node, tmp_path, codec):  # noqa: F811
    """Every byte of a small file; each 61st also by restore, which leaves nothing behind."""
    node = start_node("n1")
    round_trip.fill(node.config.port, keys=7)
    backup(node, tmp_path / "b.dat", codec=codec)
    good = (tmp_path / "b.dat").read_bytes()
    broken_file = tmp_path / "broken.dat"
    for place in range(len(good)):
        broken = bytearray(good)
        broken[place] ^= 1 << place % 8
        broken_file.write_bytes(broken)
        with pytest.raises((Damaged, UsageError)) as refused:
            snapshot.check_file(broken_file)
        assert names_the_place(str(refused.value), good, place), (place, str(refused.value))
        if place % 61 == 0:
            with pytest.raises(UsageError) as refused:
                backups.restore(broken_file, tmp_path / "new")
            assert names_the_place(str(refused.value), good, place)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["b.dat", "broken.dat", "cluster.secret", "n1"]


def frame_of(good: bytes, place: int) -> int:
    """Where the frame begins in which this byte lies."""
    start = len(snapshot.MAGIC)
    while True:
        end = start + 9 + int.from_bytes(good[start : start + 4], "little")
        if place < end:
            return start
        start = end


def names_the_place(text: str, good: bytes, place: int) -> bool:
    """The frame in which the byte lies; of the first eight bytes, that it is no snapshot or one of another format."""
    if place < len(snapshot.MAGIC):
        return "is not a snapshot of raftdb" in text or "has snapshot format" in text
    found = re.search(r"bytes (\d+) to (\d+): ", text)
    return found is not None and int(found[1]) == frame_of(good, place) and place < int(found[2])


def test_what_arrives_damaged_is_refused(filled, tmp_path, monkeypatch):
    def flipped(*arguments):
        size, data = lending_read(*arguments)
        return size, data[:500] + bytes([data[500] ^ 4]) + data[501:]

    lending_read = lending.read
    monkeypatch.setattr(lending, "read", flipped)
    with pytest.raises(Damaged, match=r"what arrived: .*bytes \d+ to \d+: checksum"):
        backup(filled, tmp_path / "b.dat")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cluster.secret", "n1"]
    assert list((filled.config.own_data_dir / "checkpoints").iterdir()) == []


# --- the target -------------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_never_replaced_unasked(filled, tmp_path):
    target = tmp_path / "b.dat"
    target.write_text("mine")
    with pytest.raises(UsageError, match=r"is there already.*--force"):
        backup(filled, target)

    def comes_between(what, done, total):
        if what == "checking":
            (tmp_path / "c.dat").write_text("theirs")

    with pytest.raises(UsageError, match="has come to be meanwhile"):
        backup(filled, tmp_path / "c.dat", progress=comes_between)
    assert (target.read_text(), (tmp_path / "c.dat").read_text()) == ("mine", "theirs")
    backup(filled, target, force=True)
    assert snapshot.check_file(target).index == filled.driver.applied
    assert target.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir() if ".part" in path.name] == []


@pytest.mark.parametrize(("target", "reason"), [("missing/b.dat", "is not a directory"), ("n1", "is a directory")])
def test_targets_that_cannot_be(filled, tmp_path, target, reason):
    with pytest.raises(UsageError, match=reason):
        backup(filled, tmp_path / target)


def test_a_directory_that_is_not_empty_is_not_restored_into(filled, start_node, tmp_path):  # noqa: F811
    backup(filled, tmp_path / "b.dat")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="not empty"):
        backups.restore(tmp_path / "b.dat", tmp_path / "full")
    with pytest.raises(UsageError, match="holds data already"):
        backups.restore(tmp_path / "b.dat", filled.config.own_data_dir)
    (tmp_path / "empty").mkdir()
    backups.restore(tmp_path / "b.dat", tmp_path / "empty")
    assert digest_in(tmp_path / "empty") == digest_of(filled)
    assert os.listdir(tmp_path / "full") == ["letter.txt"]


# --- the way ----------------------------------------------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_again(filled, tmp_path):
    filled.execute("SET", "large", random.Random(1).randbytes(3_500_000))
    pieces = []

    def cut(what, done, total):
        if what == "receiving":
            pieces.append(done)
            if len(pieces) == 2:
                assert filled.execute("CLIENT", "KILL", "TYPE", "normal") >= 1

    backup(filled, tmp_path / "b.dat", progress=cut)
    assert len(pieces) == 4
    assert pieces[-1] == (tmp_path / "b.dat").stat().st_size
    backups.restore(tmp_path / "b.dat", tmp_path / "new")
    assert digest_in(tmp_path / "new") == digest_of(filled)


@pytest.mark.parametrize("name", ["../identity", "/etc/passwd", "..", "", "x", "identity", "a\0b", "\udcff"])
def test_only_snapshots_and_checkpoints_can_be_fetched(filled, name):
    for words in (("READ", name.encode("utf-8", "surrogateescape"), 0, 100), ("DROP", "../identity")):
        with pytest.raises(CommandError, match="ERR"):
            filled.execute("RAFT.SNAPSHOT", *words)
    assert (filled.config.own_data_dir / "identity").exists()


def test_pieces_are_bounded(filled):
    filled.execute("CHECKPOINT", "c.dat")
    size, data = filled.execute("RAFT.SNAPSHOT", "READ", "c.dat", 0, 1 << 20)
    assert size == len(data)
    assert filled.execute("RAFT.SNAPSHOT", "READ", "c.dat", size - 3, 100) == [size, data[-3:]]
    assert filled.execute("RAFT.SNAPSHOT", "READ", "c.dat", size + 3, 100) == [size, b""]
    for offset, length in ((0, 0), (0, (1 << 20) + 1), (-1, 5), (1 << 63, 5)):
        with pytest.raises(CommandError):
            filled.execute("RAFT.SNAPSHOT", "READ", "c.dat", offset, length)
    assert filled.execute("RAFT.SNAPSHOT", "DROP", "c.dat") == 1
    assert filled.execute("RAFT.SNAPSHOT", "DROP", "c.dat") == 0


def test_what_a_killed_backup_left_is_removed_by_a_later_one(filled, tmp_path):
    checkpoints = filled.config.own_data_dir / "checkpoints"
    filled.execute("CHECKPOINT", "backup-0123456789abcdef.dat")
    filled.execute("CHECKPOINT", "kept.dat")
    backup(filled, tmp_path / "one.dat")
    assert len(list(checkpoints.iterdir())) == 2  # it may be read yet
    old = time.time() - lending.LENT_S - 1
    for path in checkpoints.iterdir():
        os.utime(path, (old, old))
    backup(filled, tmp_path / "two.dat")
    assert [path.name for path in checkpoints.iterdir()] == ["kept.dat"]


# --- the programs -----------------------------------------------------------------------------------------------------


def raftdb(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "raftdb", *map(str, words)]
    return subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.e2e
def test_the_programs(tmp_path):
    """backup, restore and serve -l as a person uses them: what they print, and their exit codes."""
    with Raftdb(tmp_path / "first") as server:
        address = f"127.0.0.1:{server.port}"
        redis.Redis(port=server.port).config_set("requirepass", "secret")
        done = raftdb("backup", "-a", address, "--password", "secret", "b.dat", cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.fullmatch(r"b\.dat: entry \d+ of term \d+, \d+ bytes, digest [0-9a-f]{64}\n", done.stdout)
        again = raftdb("backup", "-a", address, "--password", "secret", "b.dat", cwd=tmp_path)
        assert (again.returncode, again.stdout) == (2, "")
        denied = raftdb("backup", "-a", address, "c.dat", cwd=tmp_path)
        assert denied.returncode == 1
        assert "NOAUTH" in denied.stderr
    nobody = raftdb("backup", "-a", address, "c.dat", cwd=tmp_path)
    assert nobody.returncode == 3
    assert nobody.stderr == f"raftdb: {address}: Connection refused\n"
    restored = raftdb("restore", "b.dat", "-d", "new/data", "-i", "m1", "-a", address, cwd=tmp_path)
    assert restored.returncode == 0, restored.stderr
    assert f"raftdb serve -d new/data -i m1 -a {address}\n" in restored.stdout
    assert read_identity(tmp_path / "new" / "data").node_id == "m1"
    twice = raftdb("restore", "b.dat", "-d", "new/data", cwd=tmp_path)
    assert (twice.returncode, twice.stderr) == (
        2,
        "raftdb: new/data holds data already: restore into a directory of its own\n",
    )
    (tmp_path / "cut.dat").write_bytes((tmp_path / "b.dat").read_bytes()[:-1])
    cut = raftdb("restore", "cut.dat", "-d", "other", cwd=tmp_path)
    assert cut.returncode == 2
    assert re.fullmatch(
        r"raftdb: cut\.dat is damaged: cut\.dat, bytes \d+ to \d+: the file ends too early\n", cut.stderr
    )
    assert raftdb("restore", "missing.dat", "-d", "other", cwd=tmp_path).returncode == 2


@pytest.mark.e2e
def test_serve_from_a_file(tmp_path):
    with Raftdb(tmp_path / "first") as server:
        raftdb("backup", "-a", f"127.0.0.1:{server.port}", "b.dat", cwd=tmp_path)
    with Raftdb(tmp_path / "second", "-l", "../b.dat") as server:
        server.stop()
        server.start()  # with -l again
        assert "-l is ignored" in server.output
    other = Raftdb(tmp_path / "first", "-l", "../b.dat")
    other.directory = tmp_path / "first"
    damaged = bytearray((tmp_path / "b.dat").read_bytes())
    damaged[60] ^= 1
    (tmp_path / "damaged.dat").write_bytes(damaged)
    refused = [
        (other, r"holds other data than \.\./b\.dat"),
        (Raftdb(tmp_path / "third", "-l", "../b.dat", "-e", "127.0.0.1:1"), "cannot be used together with -e"),
        (Raftdb(tmp_path / "fourth", "-l", "../damaged.dat"), r"damaged\.dat is damaged: damaged\.dat, bytes 8 to \d+"),
        (Raftdb(tmp_path / "fifth", "-l", "../missing.dat"), "No such file"),
    ]
    for server, reason in refused:
        with pytest.raises(StartFailed, match=f"exit code 2:(.|\n)*{reason}"):
            server.start()
    assert not (tmp_path / "fourth" / "data").exists()


def test_progress_is_for_terminals(filled, tmp_path):
    """On a terminal there is a bar, with its control sequences; in a pipe nothing but the result."""
    argv = [sys.executable, "-m", "raftdb", "backup", "-a", filled.config.address, str(tmp_path / "b.dat")]
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=child, env=environment, timeout=60, check=True)
    os.close(child)
    seen = os.read(parent, 1 << 16).decode(errors="replace")
    os.close(parent)
    assert "\x1b[" in seen
    assert "checkpoint" in seen
    assert b"\x1b" not in done.stdout
