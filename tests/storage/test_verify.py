"""verify: nothing to find in sound data, a finding with its place for each kind of damage, also while a node runs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from raftdb.errors import UsageError
from raftdb.storage import codec, keys, records
from raftdb.storage.codec import EXPIRY, FIELDS, GARBAGE, HEADS, ITEMS, META
from raftdb.storage.datadir import DataDir
from raftdb.storage.engine import Environment
from raftdb.storage.kv import HASH, LIST, Head
from raftdb.storage.log import DATABASES
from raftdb.storage.txn import SPACES
from raftdb.storage.verify import verify_directory, verify_log, verify_snapshot

from . import dir_workload
from .build import MAP_BYTES, entries


@pytest.fixture
def path(tmp_path):
    """A closed directory with keys of several types, garbage, two snapshots and a trimmed log."""
    path = tmp_path / "data"
    dir_workload.make(path)
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    dir_workload.append(data, 20)
    dir_workload.take_snapshot(data)
    batch = data.kv.batch()
    made = entries(21, 2, data.log.chain(20))
    data.log.commit(dir_workload.persist(entries=made))
    batch.begin(21, made[0].stamp, 1)
    for kind, name in ((HASH, b"hash"), (HASH, b"gone"), (LIST, b"list")):
        collection = batch.new_collection()
        for number in range(10):
            if kind == LIST:
                batch.put_item(collection, number, b"e")
            else:
                batch.put_field(collection, b"f%d" % number if number else b"L" * 700, b"v")
        batch.put_head(0, name, Head(kind, 0, 0, b"", collection, 10, 0, 9))
    batch.put_string(0, b"due", b"v", 10**13)
    batch.put_string(3, b"flushed", b"v", 10**13)
    batch.begin(22, made[1].stamp, 1)
    batch.drop_head(0, b"gone")
    batch.flush_db(3)
    batch.commit(22, 1, made[1].stamp, made[1].chain)
    dir_workload.take_snapshot(data)
    data.log.trim(10, 100)
    data.close(clean=True)
    return path


def damages(path):
    return [finding for finding in verify_directory(path) if not finding.note]


def change(path, databases, number, act):
    environment = Environment(path, databases, sync=True, map_size_bytes=MAP_BYTES)
    transaction = environment.writer()
    act(transaction, environment.databases[number])
    environment.commit(transaction)
    environment.close()


def change_kv(path, space, act):
    change(path / "kv", SPACES, space, act)


def first(transaction, database, prefix=b""):
    cursor = transaction.cursor(database)
    assert cursor.set_range(prefix) if prefix else cursor.first()
    return cursor.item()


def test_sound_data_has_no_findings(path):
    assert list(verify_directory(path)) == []


def test_while_a_node_runs(path):
    program = (
        "import sys; from pathlib import Path; from raftdb.storage.verify import *\n"
        "print(is_running(Path(sys.argv[1])), list(verify_directory(Path(sys.argv[1]))))\n"
    )
    data = DataDir.open(path, map_size_bytes=MAP_BYTES)
    dir_workload.append(data, 5)
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
    data.close(clean=True)


def test_kv_that_is_not_trusted_is_a_note(path):
    (path / "kv.state").write_text("damaged\n")
    assert [(finding.place, finding.note) for finding in verify_directory(path)] == [("kv.state", True)]


def test_no_data_directory(tmp_path):
    with pytest.raises(UsageError):
        list(verify_directory(tmp_path))


def test_an_entry(path):
    change(path / "log", DATABASES, 0, lambda txn, db: txn.put(records.key(15), b"rot", db=db))
    (finding,) = damages(path)
    assert (finding.index, finding.place) == (15, "log entry 15")
    assert list(verify_log(path / "log", 16)) == []


def flip(txn, db, key):
    value = bytearray(txn.get(key, db=db))
    value[0] ^= 1
    txn.put(key, bytes(value), db=db)


@pytest.mark.parametrize("space", [HEADS, FIELDS, ITEMS, EXPIRY, GARBAGE])
def test_a_record_of_kv(path, space):
    change_kv(path, space, lambda txn, db: flip(txn, db, first(txn, db)[0]))
    assert any(codec.SPACE_NAMES[space] in finding.place for finding in damages(path))


@pytest.mark.parametrize("space", [HEADS, FIELDS, ITEMS, EXPIRY])
def test_a_record_of_kv_that_has_vanished(path, space):
    change_kv(path, space, lambda txn, db: txn.delete(first(txn, db)[0], db=db))
    assert damages(path)


def test_the_state_of_kv_has_vanished(path):
    change_kv(path, META, lambda txn, db: txn.delete(b"state", db=db))
    assert any("state" in finding.place for finding in damages(path))


def test_an_unknown_record_in_meta(path):
    change_kv(path, META, lambda txn, db: txn.put(b"membershiq", b"x", db=db))
    assert any("not known" in finding.what for finding in damages(path))


def add(space, key, body):
    return lambda txn, db: txn.put(key, codec.seal(space, key, body), db=db)


@pytest.mark.parametrize(
    ("space", "key", "body", "what"),
    [
        (FIELDS, keys.field(999, b"f"), b"v", "belongs to no key"),
        (ITEMS, keys.item(999, 1), b"v", "never made"),
        (EXPIRY, keys.expiry(keys.head(bytes(4), b"nobody"), 77), b"", "belongs to no key"),
        (EXPIRY, keys.expiry(keys.head(b"\0\0\1\1", b"x"), 77), b"", "belongs to no database"),
        (GARBAGE, b"nonsense", b"", "no garbage record"),
        (HEADS, keys.head(bytes(4), b"extra"), b"\1\0" + bytes(16), "keys, its count says"),
        (HEADS, keys.head(b"\0\0\1\1", b"x"), b"\1\0" + bytes(16), "belongs to no database"),
        (HEADS, keys.head(bytes(4), b"x")[:-1] + b"y", b"\1\0" + bytes(16), "where its name belongs"),
        (HEADS, keys.head(bytes(4), b"x"), b"\7\0" + bytes(16), "type 7"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_records_that_do_not_belong(path, space, key, body, what):
    change_kv(path, space, add(space, key, body))
    assert any(what in finding.what for finding in damages(path)), damages(path)


def test_two_keys_with_one_collection(path):
    def act(txn, db):
        key = keys.head(bytes(4), b"hash")
        head = codec.decode_head(key, txn.get(key, db=db))
        other = keys.head(bytes(4), b"hash2")
        txn.put(other, codec.encode_head(other, head, None), db=db)

    change_kv(path, HEADS, act)
    assert any("another key as well" in finding.what for finding in damages(path))


def test_a_snapshot(path):
    file = sorted((path / "snapshots").iterdir())[0]
    data = bytearray(file.read_bytes())
    data[-60] ^= 1
    file.write_bytes(data)
    (finding,) = damages(path)
    assert finding.place.startswith(file.name)
    assert list(verify_snapshot(file))
    file.unlink()
    assert len(damages(path)) == 1


def test_a_snapshot_of_another_file(path):
    one, other = sorted((path / "snapshots").iterdir())
    other.write_bytes(one.read_bytes())
    assert any("not the file" in finding.what for finding in damages(path))


def test_identity(path):
    data = bytearray((path / "identity").read_bytes())
    data[-3] ^= 1
    (path / "identity").write_bytes(data)
    assert any("identity" in finding.place for finding in damages(path))


def test_a_page_of_lmdb(path):
    data = bytearray((path / "kv" / "data.mdb").read_bytes())
    for place in range(2 * 4096, len(data), 4096):  # whichever of them are in use
        data[place + 10] ^= 0x40  # flags of a page
    (path / "kv" / "data.mdb").write_bytes(data)
    assert any(finding.place == "kv/data.mdb" for finding in damages(path))
