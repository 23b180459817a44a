"""Snapshot files: round trips in both codecs, flips and cuts anywhere, hostile bytes, names, the child process."""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.errors import Damaged, RaftdbError, StorageError, UsageError
from raftdb.storage import snapshot
from raftdb.storage.kv import HASH, STRING, Head, KvStore, state_digest
from raftdb.storage.verify import verify_kv

from . import model as m
from .build import MAP_BYTES, MEMBERS


def scratch():
    return Path(tempfile.mkdtemp(prefix="raftdb-snapshot-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))


def write(kv, target, codec="msgpack"):
    with kv.view() as view:
        return snapshot.write(view, target, node_id="n1", cluster_id="c1", codec_name=codec)


@given(m.programs, st.sampled_from(snapshot.CODECS))
def test_what_was_written_is_loaded(program, codec):
    path = scratch()
    try:
        kv = KvStore.open(path / "kv", None, map_size_bytes=MAP_BYTES)
        model = m.Model()
        m.run(kv, model, program, [2])
        meta = write(kv, path / "s.dat", codec)
        assert (meta.index, meta.term, meta.chain, meta.membership) == (kv.applied, kv.term, kv.chain, kv.membership)
        assert snapshot.check_file(path / "s.dat") == meta
        assert snapshot.load(path / "s.dat", path / "new", map_size_bytes=MAP_BYTES) == meta
        new = KvStore.open(path / "new", None, map_size_bytes=MAP_BYTES)
        assert m.digests(new) == m.digests(kv)
        with new.view() as view, kv.view() as old:
            assert view.state() == old.state()
            m.compare_all(view, model)
        m.run(new, model, [[([("scan", 0), ("expire", 3), ("flush", 1)], False)]], [1], reclaim=5)
        new.close(clean=False)
        assert list(verify_kv(path / "new")) == []
        kv.close(clean=False)
    finally:
        shutil.rmtree(path)


@pytest.fixture
def kv(tmp_path):
    store = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES)
    batch = store.batch()
    batch.begin(1, 10, 0)
    collection = batch.new_collection()
    for number in range(50):
        batch.put_field(collection, b"f%d" % number, b"v" * number)
    batch.put_head(0, b"hash", Head(HASH, 0, 0, b"", collection, 50))
    for number in range(30):
        batch.put_string(number % 3, b"key%d" % number, b"value", 1000 * (number % 2))
    batch.commit(1, 1, 10, 99, MEMBERS)
    yield store
    store.close(clean=False)


@pytest.mark.parametrize("codec", snapshot.CODECS)
def test_every_flipped_bit_is_found(kv, tmp_path, codec):
    meta = write(kv, tmp_path / "s.dat", codec)
    data = (tmp_path / "s.dat").read_bytes()
    assert len(data) == meta.size_bytes
    broken_file = tmp_path / "broken.dat"
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << (place % 8)
        broken_file.write_bytes(broken)
        with pytest.raises((Damaged, UsageError)):
            snapshot.check_file(broken_file)


def test_every_cut_and_every_addition_is_found(kv, tmp_path):
    write(kv, tmp_path / "s.dat")
    data = (tmp_path / "s.dat").read_bytes()
    broken_file = tmp_path / "broken.dat"
    for length in range(len(data)):
        broken_file.write_bytes(data[:length])
        with pytest.raises((Damaged, UsageError)):
            snapshot.check_file(broken_file)
    broken_file.write_bytes(data + b"\0")
    with pytest.raises(Damaged):
        snapshot.file_digest(broken_file)


def test_a_damaged_file_leaves_no_kv_behind(kv, tmp_path):
    write(kv, tmp_path / "s.dat")
    data = bytearray((tmp_path / "s.dat").read_bytes())
    data[-100] ^= 1
    (tmp_path / "s.dat").write_bytes(data)
    with pytest.raises(Damaged):
        snapshot.load(tmp_path / "s.dat", tmp_path / "new", map_size_bytes=MAP_BYTES)
    assert not (tmp_path / "new").exists()


def forge(path, header_change=None, rows=None, codec="msgpack"):
    """A file with right checksums around wrong content."""
    header = snapshot.Header(
        *(codec, "c", "n", 1, 5, 1, 2, 3, bytes(16), 10, 100),
        *(b"".join(number.to_bytes(4, "big") for number in range(16)), (1,) + (0,) * 15, (0,) * 16, MEMBERS),
    )
    header = header if header_change is None else header._replace(**header_change)
    rows = [[1, 0, b"a", b"\1\0" + bytes(16) + b"x"]] if rows is None else rows
    with path.open("wb") as file:
        out = snapshot._FrameWriter(file)
        document = (*header[:-1], snapshot.codec.membership_document(header.membership))
        out.frame(snapshot._HEADER_KIND, snapshot.codec.pack(document))
        for block, _ in snapshot._blocks(((row, 10) for row in rows), codec):
            out.block(block)
        out.footer(len(rows), 1)
    return path


HASH_HEAD = b"\5\0" + bytes(16) + (3).to_bytes(8, "little") + bytes(24)
WRONG_ROWS = [
    [[1, 16, b"a", b"\1\0" + bytes(16)]],
    [[1, 0, b"a", b"\1"]],
    [[1, 0, b"a"]],
    [[1, 0, b"a", HASH_HEAD]],
    [[1, 0, "text", b"\1\0" + bytes(16)]],
    [[2, 0, b"a", HASH_HEAD, b"b", HASH_HEAD]],
    [[2, 0, b"a", b"\1\0" + bytes(16)]],
    [[2, 0, b"a", b"\x09\0" + bytes(48)]],
    [[3, b"field", b"value"]],  # belongs to no key
    [[2, 0, b"a", HASH_HEAD], [3, b"field"]],
    [[2, 0, b"a", HASH_HEAD], [4, 1 << 63, b"x"]],
    [[2, 0, b"a", HASH_HEAD], [5, float("nan"), b"x"]],
    [[2, 0, b"a", HASH_HEAD], [6, b"x", b"y"]],
    [[2, 0, b"a", b"\5\0" + bytes(16) + (10).to_bytes(8, "little") + bytes(24)]],  # a collection not given out yet
    [[1, 0, b"a", b"\1\0" + bytes(16), b"a", b"\1\0" + bytes(16)]],  # the key twice
    [],
    [[]],
    [[[[[]]]]],
    [[None, None, None]],
    [[1, True, b"a", b"\1\0" + bytes(16)]],
]


@pytest.mark.parametrize("codec", snapshot.CODECS)
@pytest.mark.parametrize("rows", WRONG_ROWS, ids=repr)
def test_wrong_rows_behind_right_checksums(tmp_path, rows, codec):
    file = forge(tmp_path / "forged.dat", rows=rows, codec=codec)
    with pytest.raises(Damaged):
        snapshot.load(file, tmp_path / "new", map_size_bytes=MAP_BYTES)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"index": -1},
        {"term": True},
        {"kv_digest": b"short"},
        {"keyspaces": bytes(64)},
        {"keys": (1,)},
        {"expiring": ("a",) * 16},
        {"cluster_id": 5},
        {"created_ms": 1.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_wrong_headers_behind_right_checksums(tmp_path, change):
    file = forge(tmp_path / "forged.dat", change)
    with pytest.raises(Damaged):
        snapshot.read_header(file)


def test_a_forged_file_that_is_right_loads(tmp_path):
    snapshot.load(forge(tmp_path / "forged.dat"), tmp_path / "new", map_size_bytes=MAP_BYTES)


def test_a_peer_cannot_send_pickle(kv, tmp_path):
    write(kv, tmp_path / "s.dat", "pickle")
    snapshot.check_file(tmp_path / "s.dat")
    with pytest.raises(UsageError, match="codec"):
        snapshot.check_received(tmp_path / "s.dat")


def test_other_files_are_told_from_damaged_ones(tmp_path):
    (tmp_path / "x").write_bytes(b"REDIS0009" + bytes(100))
    with pytest.raises(UsageError, match="not a snapshot"):
        snapshot.read_header(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"RAFTDBS\x09" + bytes(100))
    with pytest.raises(UsageError, match="format 9"):
        snapshot.read_header(tmp_path / "x")
    with pytest.raises(StorageError):
        snapshot.read_header(tmp_path / "missing")


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_behind_a_right_start(kv, tmp_path, seed):
    write(kv, tmp_path / "s.dat")
    data = (tmp_path / "s.dat").read_bytes()
    rng = random.Random(seed)
    cut = rng.randrange(8, len(data))
    (tmp_path / "s.dat").write_bytes(data[:cut] + rng.randbytes(rng.randrange(1, 3000)))
    with pytest.raises(Damaged):
        snapshot.check_file(tmp_path / "s.dat")


def test_values_larger_than_a_chunk(tmp_path):
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES * 2)
    batch = kv.batch()
    batch.begin(1, 0, 0)
    rng = random.Random(5)
    for size in (1 << 20, (1 << 20) - 50, 3_500_000):
        batch.put_string(0, b"%d" % size, rng.randbytes(size))
    batch.commit(1, 1, 0, 0)
    for codec in snapshot.CODECS:
        write(kv, tmp_path / f"{codec}.dat", codec)
        snapshot.load(tmp_path / f"{codec}.dat", tmp_path / codec, map_size_bytes=MAP_BYTES * 2)
        new = KvStore.open(tmp_path / codec, None, map_size_bytes=MAP_BYTES * 2)
        assert m.digests(new) == m.digests(kv)
        new.close(clean=False)
    kv.close(clean=False)


def test_garbage_is_not_in_a_snapshot(kv, tmp_path):
    with kv.view() as view:
        before = state_digest(view)
    batch = kv.batch()
    batch.begin(2, 10, 0)
    collection = batch.new_collection()
    batch.put_field(collection, b"secret", b"garbage-value")
    batch.put_head(0, b"gone", Head(HASH, 0, 0, b"", collection, 1))
    batch.put_string(9, b"flushed-name", b"")
    batch.drop_head(0, b"gone")
    batch.flush_db(9)
    batch.commit(2, 1, 10, 100)
    write(kv, tmp_path / "s.dat")
    data = (tmp_path / "s.dat").read_bytes()
    assert b"garbage-value" not in data
    assert b"flushed-name" not in data
    with kv.view() as view:
        assert state_digest(view) == before


def test_rows_for_tools(kv, tmp_path):
    write(kv, tmp_path / "s.dat")
    with snapshot.Reader(tmp_path / "s.dat") as reader:
        rows = list(reader.walk())
    found = {(row.db, row.name): row.head for row in rows if row.kind == "key"}
    assert len(found) == 31
    assert found[1, b"key1"].type == STRING
    assert found[1, b"key1"].expiry_ms == 1000
    fields = {row.key: row.value for row in rows if row.kind == "field"}
    assert fields == {b"f%d" % number: b"v" * number for number in range(50)}
    assert {row.name for row in rows if row.kind == "field"} == {b"hash"}


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc/passwd", "../x", ".hidden", "a\0b", "a\nb", "x" * 201, "a..b", "x.part", "x.tmp", "é"],
)
def test_names_that_are_not_plain(name):
    with pytest.raises(UsageError):
        snapshot.plain_name(name)


@given(st.text(max_size=150), st.integers(0, 2**34), st.integers(0, 2**64 - 1))
def test_every_node_id_gives_a_plain_name(node_id, when, index):
    assert snapshot.plain_name(snapshot.file_name(node_id, when, index)).endswith(f"_{when}_{index}.dat")


def test_the_child_process(kv, tmp_path):
    target = tmp_path / "s.dat"
    argv = snapshot.child_command(kv.path, target, node_id="n1", cluster_id="c1")
    done = subprocess.run(argv, capture_output=True, check=True)
    meta = snapshot.child_result(done.stdout)
    assert meta == snapshot.check_file(target)
    assert meta.membership == MEMBERS
    assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kv", "s.dat"]


def test_the_child_says_why_it_failed(kv, tmp_path):
    argv = snapshot.child_command(tmp_path / "nothing", tmp_path / "s.dat", node_id="n1", cluster_id="c1")
    done = subprocess.run(argv, capture_output=True, check=False)
    assert done.returncode == 1
    with pytest.raises(StorageError, match="nothing"):
        snapshot.child_result(done.stdout)
    assert [path.name for path in tmp_path.iterdir()] == ["kv"]


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b"\xff", b'{"snapshot": [1]}', b'{"error": "x"}'])
def test_an_odd_answer_of_the_child(answer):
    with pytest.raises(RaftdbError):
        snapshot.child_result(answer)
