"""Log records, kv values, keys: round trips, every single-bit flip is found, arbitrary bytes raise what is declared."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.errors import Damaged, EntryDamaged
from raftdb.storage import codec, keys, records
from raftdb.storage.codec import FIELDS, HEADS, Head, Malformed
from raftdb.storage.keys import HASH, LIST, SET, STRING, ZSET
from raftdb.types import Entry, HardState, Member, Membership, NodeRef, SnapshotMeta

u64 = st.integers(0, 2**64 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
names = st.one_of(st.binary(max_size=30), st.binary(min_size=478, max_size=484), st.binary(min_size=600, max_size=700))
entries = st.builds(Entry, u64, u64, st.integers(0, 255), u64, u64, st.binary(max_size=200), u64)
heads = st.one_of(
    st.builds(
        lambda expiry, version, value, form: Head(STRING, expiry, version, value, form=form),
        *(u64, u64, st.binary(max_size=100), st.integers(0, 255)),
    ),
    st.builds(
        *(Head, st.sampled_from([LIST, SET, ZSET, HASH]), u64, u64, st.just(b""), st.integers(1, 2**64 - 1), u64),
        *(i64, i64, st.integers(0, 255)),
    ),
)
text = st.text(max_size=20)
members = st.builds(Member, text, u64, text, text, st.booleans())
memberships = st.builds(
    lambda index, rows: Membership(index, tuple(sorted({row.id: row for row in rows}.values(), key=lambda m: m.id))),
    *(u64, st.lists(members, max_size=5)),
)


@given(entries)
def test_a_record_reads_back(entry):
    record = records.encode(entry)
    assert len(record) == records.HEADER_BYTES + len(entry.payload)
    assert records.decode(entry.index, record) == entry


def test_every_flip_of_a_record_is_found():
    record = records.encode(Entry(7, 2, 1, 1000, 5, b"payload", 99))
    for bit in range(len(record) * 8):
        broken = bytearray(record)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(EntryDamaged):
            records.decode(7, bytes(broken))
    with pytest.raises(EntryDamaged):
        records.decode(8, record)


@given(u64, st.binary(max_size=300))
def test_arbitrary_bytes_are_no_record(index, data):
    with pytest.raises(EntryDamaged):
        records.decode(index, data)


@given(st.binary(min_size=4, max_size=4), names, heads)
def test_a_head_reads_back(keyspace, name, head):
    key = keys.head(keyspace, name)
    assert len(key) <= 511
    long = name if len(name) > keys.SHORT_NAME_BYTES_MAX else None
    value = codec.encode_head(key, head, long)
    assert codec.decode_head(key, value) == head
    assert codec.head_name(key, value) == name


def test_every_flip_of_a_head_or_its_key_is_found():
    for name in (b"name", b"n" * 500):
        key = keys.head(b"\0\0\0\1", name)
        value = codec.encode_head(key, Head(HASH, 5, 6, b"", 7, 8, 9, 10), name if len(name) > 480 else None)
        for bit in range(len(value) * 8):
            broken = bytearray(value)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Damaged):
                codec.decode_head(key, bytes(broken))
        for bit in range(len(key) * 8):
            broken = bytearray(key)
            broken[bit // 8] ^= 1 << bit % 8
            with pytest.raises(Damaged):
                codec.decode_head(bytes(broken), value)


@given(st.binary(min_size=1, max_size=511), st.binary(max_size=200))
def test_arbitrary_bytes_are_no_head(key, value):
    with pytest.raises(Damaged):
        codec.decode_head(key, value)
    sealed = codec.seal(HEADS, key, value)  # a forger's: only declared errors, bounded work
    with contextlib.suppress(Damaged):
        codec.decode_head(key, sealed)
        codec.head_name(key, sealed)


def test_a_value_of_another_space_or_key_does_not_pass():
    value = codec.seal(HEADS, b"key", b"body")
    assert codec.unseal(HEADS, b"key", value) == b"body"
    for space, key in ((FIELDS, b"key"), (HEADS, b"kez"), (HEADS, b"ke")):
        with pytest.raises(Damaged):
            codec.unseal(space, key, value)


@given(names, names)
def test_names_have_keys_of_their_own(one, other):
    assert (keys.head(b"\0\0\0\0", one) == keys.head(b"\0\0\0\0", other)) == (one == other)
    assert (keys.field(3, one) == keys.field(3, other)) == (one == other)
    assert len(keys.score(3, 0.5, one)) <= 511
    assert (keys.score(3, 0.5, one) == keys.score(3, 0.5, other)) == (one == other)
    if max(len(one), len(other)) <= keys.SHORT_NAME_BYTES_MAX:
        assert (keys.score(3, 0.5, one) < keys.score(3, 0.5, other)) == (one < other)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_scores_order_as_doubles_do(one, other):
    assert (keys.score_bytes(one) < keys.score_bytes(other)) == (one < other)
    assert keys.score_value(keys.score_bytes(one)) == one
    exact = codec.double_value(codec.double_bytes(one))
    assert exact == one
    assert math.copysign(1, exact) == math.copysign(1, one)


@given(i64, i64)
def test_positions_order_as_integers_do(one, other):
    assert (keys.item(1, one) < keys.item(1, other)) == (one < other)
    assert keys.item_position(keys.item(1, one)) == one


@given(names, st.integers(1, 2**64 - 1))
def test_expiry_keys_lead_back_to_the_head(name, when):
    head_key = keys.head(b"\0\0\0\2", name)
    key = keys.expiry(head_key, when)
    assert len(key) <= 511
    assert keys.expiry_head(key) == head_key
    assert keys.expiry_time(key) == when


def test_the_key_behind_a_prefix():
    assert keys.after(b"\0\xff") == b"\1\0"
    assert keys.after(b"\xff\xff") is None


@given(memberships)
def test_a_membership_reads_back(membership):
    assert codec.membership_from(codec.unpack(codec.pack(codec.membership_document(membership)))) == membership


@given(u64, st.one_of(st.none(), st.builds(NodeRef, text, u64)))
def test_a_hard_state_reads_back(term, vote):
    hard = HardState(term, vote)
    assert codec.hard_from(codec.unpack(codec.pack(codec.hard_document(hard)))) == hard


@given(st.tuples(text, u64, u64, u64, u64, memberships, u64, st.binary(min_size=32, max_size=32)))
def test_a_snapshot_description_reads_back(fields):
    meta = SnapshotMeta(*fields)
    assert codec.snapshot_from(codec.unpack(codec.pack(codec.snapshot_document(meta)))) == meta


@given(st.binary(max_size=200))
def test_arbitrary_documents_are_refused_politely(data):
    for shape in (codec.membership_from, codec.hard_from, codec.snapshot_from):
        with contextlib.suppress(Malformed):
            shape(codec.unpack(data))


def test_documents_that_would_reserve_memory_are_refused():
    for data in (b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 5000 + b"\x90", b"\xdc\xff\xff" * 2000):
        with pytest.raises(Malformed):
            codec.unpack(data)
