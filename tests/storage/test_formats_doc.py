"""The worked examples of docs/formats.md are what the code writes."""

from __future__ import annotations

import re
from pathlib import Path

from raftdb.storage import codec, datadir, keys, records, snapshot
from raftdb.storage.checksum import chain_of
from raftdb.storage.codec import HEADS, LOG_META, Head
from raftdb.storage.keys import STRING
from raftdb.storage.kv import KvStore
from raftdb.types import Entry, HardState, NodeRef

from .build import MAP_BYTES

TEXT = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```\n(.*?)```", TEXT, re.DOTALL)
HEXES = [bytes.fromhex(block) for block in BLOCKS if re.fullmatch(r"[0-9a-f\s]+", block)]


def test_identity():
    (text,) = [block for block in BLOCKS if block.startswith("raftdb data directory")]
    identity = datadir.Identity("n1", "ab" * 16, 77, 1, "")
    assert datadir.decode_identity(text.encode(), "docs") == identity
    assert datadir.encode_identity(identity) == text.encode()


def test_the_entry():
    header = (1, 1, 1, 1700000000000, 5, b"hi")
    entry = Entry(*header, chain_of(0, *header))
    assert records.encode(entry) == HEXES[0]
    assert f"`{entry.chain:016x}`" in TEXT


def test_the_hard_state():
    value = codec.seal(LOG_META, b"hard", codec.pack(codec.hard_document(HardState(3, NodeRef("n2", 77)))))
    assert value == HEXES[1]


def test_the_key():
    key = keys.head(bytes(4), b"color")
    assert HEXES[2] == key + codec.encode_head(key, Head(STRING, 0, 7, b"red"), None)
    assert codec.unseal(HEADS, key, HEXES[2][len(key) :])


def test_the_snapshot(tmp_path):
    kv = KvStore.open(tmp_path / "kv", None, map_size_bytes=MAP_BYTES)
    batch = kv.batch()
    batch.begin(7, 1700000000000, 1)
    batch.put_string(0, b"color", b"red")
    batch.commit(7, 1, 1700000000000, 9)
    with kv.view() as view:
        snapshot.write(view, tmp_path / "s.dat", node_id="n1", cluster_id="ab" * 16)
    kv.close(clean=False)
    data = (tmp_path / "s.dat").read_bytes()
    assert data.startswith(HEXES[3])
    with snapshot.Reader(tmp_path / "s.dat") as reader:
        assert list(reader.blocks()) == [HEXES[4]]
    assert len(HEXES) == 5
