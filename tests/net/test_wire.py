"""Messages and frames: the codec accepts exactly what it makes, a frame fits into exactly one place."""

from __future__ import annotations

import itertools
import os
import typing
from enum import Enum
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.consensus import messages
from raftdb.errors import PeerError
from raftdb.net import schema, wire
from raftdb.net.wire import (
    FRAGMENT,
    FRAGMENT_BYTES,
    HEADER,
    LAST,
    MAC_BYTES,
    OVERHEAD_BYTES,
    PAYLOAD_BYTES_MAX,
    ROWS,
    TYPES,
    Codec,
    FrameReader,
    FrameWriter,
    split,
)
from raftdb.types import Entry, Membership, NodeRef, SnapshotMeta
from tests.fuzz.wire import fuzz
from tests.net.peerkit import identity

KEY = b"k" * 32
SMALL = st.integers(0, 2**62 - 1)
WIDE = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=40)


def strategy(hint: Any, name: str) -> st.SearchStrategy[Any]:
    """Valid values of an annotation, made independently of the decoder's own rules."""
    if hint is int:
        if name == "kind":
            return st.integers(0, 255)
        wide = name in {"incarnation", "seed", "chain", "prev_chain", "context", "life", "request_id"}
        return WIDE if wide else SMALL
    if hint is str:
        return st.sampled_from(["raft_n1_1_1.dat", "n1"]) if name in {"name", "id"} else TEXT.filter(bool)
    if hint is bytes:
        return st.binary(min_size=32, max_size=32) if name == "digest" else st.binary(max_size=200)
    if hint is bool:
        return st.booleans()
    if typing.get_origin(hint) is tuple:
        return st.lists(strategy(typing.get_args(hint)[0], name), max_size=4).map(tuple)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return st.sampled_from(list(hint))
    if typing.get_args(hint):
        inner = next(arg for arg in typing.get_args(hint) if arg is not type(None))
        return st.none() | strategy(inner, name)
    return instances(hint)


def instances(cls: Any) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(lambda *values: cls(*values), *(strategy(hints[name], name) for name in cls._fields))


ANY_MESSAGE = st.sampled_from(list(ROWS)).flatmap(instances)


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def frames(*messages_: Any, key: bytes = KEY) -> list[bytes]:
    codec, writer = Codec(), FrameWriter(key)
    return [writer.frame(*codec.dump(message)) for message in messages_]


class TestMessages:
    @given(ANY_MESSAGE)
    def test_every_message_survives_the_way(self, message):
        codec = Codec()
        code, payload = codec.dump(message)
        back = codec.load(code, payload)
        assert back == message
        assert type(back) is type(message)

    def test_nested_parts_come_back_as_their_types(self):
        entry = Entry(1, 1, 0, 5, 2**64 - 1, b"payload", 7)
        codec = Codec()
        back = codec.load(*codec.dump(messages.Append(1, 0, 0, 0, 0, (entry,))))
        assert type(back.entries[0]) is Entry
        hint = codec.load(*codec.dump(wire.Hint(1, NodeRef("n1", 5), "a", "b")))
        assert type(hint.leader) is NodeRef

    def test_every_message_of_the_core_has_a_row(self):
        assert set(messages.MESSAGES) <= set(ROWS)
        assert [ROWS[cls].code for cls in messages.MESSAGES] == list(range(64, 64 + len(messages.MESSAGES)))

    def test_codes_are_for_ever(self):
        """Golden: a code that changes its meaning breaks mixed clusters."""
        assert {code: row.cls.__name__ for code, row in TYPES.items() if code < 64} == {
            1: "Identity",
            2: "Accept",
            3: "Refuse",
            4: "Ping",
            5: "Pong",
            16: "Forward",
            17: "ForwardReply",
            18: "ForwardCancel",
            19: "ChunkRequest",
            20: "ChunkReply",
            21: "StatusRequest",
            22: "StatusReply",
            23: "JoinRequest",
            24: "JoinReply",
            25: "Leave",
            26: "Hint",
            27: "FormProposal",
            28: "FormReply",
        }

    @given(ANY_MESSAGE.filter(lambda m: ROWS[type(m)].consensus))
    def test_what_passes_here_passes_the_gateway_of_the_core(self, message):
        codec = Codec()
        messages.check(codec.load(*codec.dump(message)))

    @pytest.mark.parametrize(
        ("changes", "what"),
        [
            ({"term": -1}, "range"),
            ({"term": 2**62}, "range"),
            ({"term": 2**63}, "range"),
            ({"index": 2**64 - 1}, "range"),
            ({"ok": 1}, "fields"),
            ({"term": True}, "fields"),
            ({"term": 1.0}, "fields"),
            ({"term": None}, "fields"),
            ({"term": "1"}, "fields"),
            ({"term": b"1"}, "fields"),
            ({"index": (1,)}, "fields"),
        ],
    )
    def test_wrong_scalars_are_refused(self, changes, what):
        raw = messages.AppendReply(3, True, 9, 0, 0)._replace(**changes)
        with pytest.raises(PeerError, match=what):
            Codec().load(ROWS[messages.AppendReply].code, msgpack.packb(raw))

    @pytest.mark.parametrize("kind", [-1, 256, 2**40])
    def test_kinds_of_entries_fit_a_byte(self, kind):
        raw = (1, 0, 0, 0, 0, ((1, 1, kind, 0, 0, b"", 0),))
        with pytest.raises(PeerError, match="kind"):
            Codec().load(ROWS[messages.Append].code, msgpack.packb(raw))

    @pytest.mark.parametrize(
        "raw",
        [
            (1, 0, 0, 0, 0, (1,)),
            (1, 0, 0, 0, 0, ((1, 1, 1, 1, 1, b""),)),
            (1, 0, 0, 0, 0, ((1, 1, 1, 1, 1, "text", 1),)),
            (1, 0, 0, 0, 0, (((),),)),
            (1, 0, 0, 0),
            (1, 0, 0, 0, 0, (), 0),
            (),
            1,
            None,
            b"bytes",
            "text",
        ],
    )
    def test_wrong_shapes_are_refused(self, raw):
        with pytest.raises(PeerError):
            Codec().load(ROWS[messages.Append].code, msgpack.packb(raw))

    def test_a_snapshot_with_a_path_for_a_name_is_refused(self):
        meta = SnapshotMeta("../etc/passwd", 1, 1, 1, 1, Membership(0, ()), 5, b"d" * 32)
        code, payload = Codec().dump(messages.SnapshotOffer(1, meta))
        with pytest.raises(PeerError):
            Codec().load(code, payload)

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\x93\x01",
            b"\xc1",
            msgpack.packb((1, True, 1, 1, 1)) + b"\x00",
            msgpack.packb({1: 2}),
            msgpack.packb(msgpack.ExtType(5, b"x")),
            msgpack.packb(msgpack.Timestamp(1)),
            b"\x95\x01\xc3\x01\x01\xd6\xffabcd",
            msgpack.packb((1.5, True, 1, 1, 1)),
            b"\x91" * 600 + b"\x01",
            b"\x91" * 100_000 + b"\x01",
            b"\xdd\xff\xff\xff\xff",
            b"\xdf\xff\xff\xff\xff",
            b"\xc6\xff\xff\xff\xff",
            b"\xdb\xff\xff\xff\xff",
            b"\xa2\xff\xfe",
            b"\xdc\x40\x00" * 1000,
        ],
    )
    def test_hostile_msgpack_is_refused(self, payload):
        for code in (ROWS[messages.AppendReply].code, ROWS[messages.Append].code):
            with pytest.raises(PeerError):
                Codec().load(code, payload)

    def test_arrays_of_arrays_do_not_grow_without_bound(self):
        """2 MiB of one-item arrays would be 100 MiB of tuples; the count stops it."""
        many = msgpack.packb([[1]] * 2_000)
        payload = b"\xdc" + (500).to_bytes(2, "big") + many * 500
        with pytest.raises(PeerError, match="too many items"):
            schema.unpack(payload, wire.MESSAGE_BYTES_MAX)

    def test_the_largest_append_passes(self):
        entries = tuple(Entry(i + 1, 1, 1, 1, 1, b"x" * 40, 1) for i in range(schema.ARRAY_ITEMS_MAX))
        codec = Codec()
        message = messages.Append(1, 0, 0, 0, 0, entries)
        assert codec.load(*codec.dump(message)) == message

    def test_an_entry_of_64_mib_passes_and_more_does_not(self):
        codec = Codec()
        message = messages.Append(1, 0, 0, 0, 0, (Entry(1, 1, 1, 1, 1, bytes(64 << 20), 1),))
        assert codec.load(*codec.dump(message)) == message
        too_much = messages.Append(1, 0, 0, 0, 0, (Entry(1, 1, 1, 1, 1, bytes(66 << 20), 1),))
        with pytest.raises(PeerError, match="over the limit"):
            codec.dump(too_much)

    @pytest.mark.parametrize("text", ["x" * 100_000, "é" * 1_023, "\ud800" * 10, "", "fine"])
    def test_words_for_people_are_cut_and_not_refused(self, text):
        codec = Codec()
        for message in (wire.Refuse(wire.Reason.OTHER, text), wire.ChunkReply("n", b"", 0, b"", text)):
            back = codec.load(*codec.dump(message))
            told = back.text if type(back) is wire.Refuse else back.error
            assert len(told.encode()) <= wire.WORDS_BYTES_MAX
            assert told[:4] == text[:4] or "\ud800" in text

    def test_unknown_types_are_refused(self):
        with pytest.raises(PeerError, match="unknown message type 200"):
            Codec().load(200, b"\x90")

    def test_an_annotation_without_a_wire_form_fails_at_import(self):
        class Bad(typing.NamedTuple):
            value: float

        with pytest.raises(TypeError):
            schema.decoder(Bad)

    @given(st.binary(max_size=200), st.sampled_from(sorted(TYPES)))
    def test_noise_is_refused_or_is_a_message(self, payload, code):
        try:
            message = Codec().load(code, payload)
        except PeerError:
            return
        assert type(message) is TYPES[code].cls


class TestFrames:
    @given(st.lists(ANY_MESSAGE, max_size=5), st.lists(st.integers(0, 5_000), max_size=12))
    def test_any_chunking_gives_the_same(self, sent, cuts):
        data = b"".join(frames(*sent))
        codec, reader = Codec(), FrameReader(KEY)
        got = [codec.load(*item) for chunk in chunked(data, cuts) for item in reader.feed(chunk)]
        assert got == sent
        assert reader.buffered_bytes == 0

    def test_byte_by_byte(self):
        data = b"".join(frames(identity("n1"), messages.VoteReply(1, True, False)))
        reader = FrameReader(KEY)
        got = [item for i in range(len(data)) for item in reader.feed(data[i : i + 1])]
        assert [code for code, _ in got] == [1, ROWS[messages.VoteReply].code]

    @given(st.integers(0, 10_000), st.integers(0, 7))
    def test_any_flipped_bit_is_found(self, place, bit):
        data = bytearray(b"".join(frames(messages.VoteReply(1, True, False), wire.Ping(1, 2))))
        data[place % len(data)] ^= 1 << bit
        reader = FrameReader(KEY)
        try:
            got = reader.feed(bytes(data))
        except PeerError:
            return
        # A flipped length may make the reader wait for more, but never hand over what was altered.
        assert len(got) < 2
        assert all(Codec().load(*item) in (messages.VoteReply(1, True, False),) for item in got)

    def test_a_repeated_frame_is_refused(self):
        one = frames(wire.Ping(1, 2))[0]
        reader = FrameReader(KEY)
        assert len(reader.feed(one)) == 1
        with pytest.raises(PeerError, match="repeated, dropped or out of order"):
            reader.feed(one)

    def test_a_dropped_frame_is_refused(self):
        _, second = frames(wire.Ping(1, 2), wire.Ping(3, 4))
        with pytest.raises(PeerError, match="frame 1 where 0 was due"):
            FrameReader(KEY).feed(second)

    def test_swapped_frames_are_refused(self):
        first, second = frames(wire.Ping(1, 2), wire.Ping(3, 4))
        with pytest.raises(PeerError):
            FrameReader(KEY).feed(second + first)

    def test_a_frame_of_another_key_is_refused(self):
        with pytest.raises(PeerError, match="wrong seal"):
            FrameReader(b"j" * 32).feed(frames(wire.Ping(1, 2))[0])

    def test_a_counter_that_was_mended_fails_the_seal(self):
        _, second = frames(wire.Ping(1, 2), wire.Ping(3, 4))
        length, code, flags, _ = HEADER.unpack_from(second)
        with pytest.raises(PeerError, match="wrong seal"):
            FrameReader(KEY).feed(HEADER.pack(length, code, flags, 0) + second[HEADER.size :])

    @pytest.mark.parametrize("length", [PAYLOAD_BYTES_MAX + 1, 2**31, 2**32 - 1])
    def test_an_oversize_frame_is_refused_by_its_header(self, length):
        reader = FrameReader(KEY)
        with pytest.raises(PeerError, match="over the limit"):
            reader.feed(HEADER.pack(length, 16, 0, 0))

    def test_a_small_message_may_not_be_announced_large(self):
        with pytest.raises(PeerError, match="Ping is over its limit"):
            FrameReader(KEY).feed(HEADER.pack(2_000, 4, 0, 0))

    @pytest.mark.parametrize("flags", [2, 4, 7, 255])
    def test_unknown_flags_are_refused(self, flags):
        with pytest.raises(PeerError, match="flags"):
            FrameReader(KEY).feed(HEADER.pack(1, 16, flags, 0))

    def test_an_unknown_type_is_refused_by_its_header(self):
        with pytest.raises(PeerError, match="unknown message type"):
            FrameReader(KEY).feed(HEADER.pack(1, 250, 0, 0))

    def test_the_kept_bytes_are_one_frame_at_most(self):
        writer, reader = FrameWriter(KEY), FrameReader(KEY)
        frame = writer.frame(16, bytes(PAYLOAD_BYTES_MAX))
        for start in range(0, len(frame) - 1, 1_000):
            assert reader.feed(frame[start : min(start + 1_000, len(frame) - 1)]) == []
        assert reader.buffered_bytes == len(frame) - 1 <= PAYLOAD_BYTES_MAX + OVERHEAD_BYTES

    @pytest.mark.parametrize("size", [0, 1, 2_046, 2_047, 2_048, 4_094, 64 * 1024, 64 * 1024 + 1, 300_000])
    def test_the_seal_does_not_depend_on_how_it_is_computed(self, size):
        import hashlib

        payload = os.urandom(size)
        frame = FrameWriter(KEY).frame(16, payload)
        assert frame[-MAC_BYTES:] == hashlib.blake2b(frame[:-MAC_BYTES], key=KEY, digest_size=MAC_BYTES).digest()
        assert FrameReader(KEY).feed(frame) == [(16, payload)]


class TestFragments:
    def send(self, payload: bytes, writer: FrameWriter) -> list[bytes]:
        return [writer.frame(16, bytes(piece), flags) for piece, flags in split(payload)]

    @pytest.mark.parametrize("size", [FRAGMENT_BYTES + 1, 3 * FRAGMENT_BYTES, 1_000_001])
    def test_a_long_message_is_put_together(self, size):
        payload, reader = os.urandom(size), FrameReader(KEY)
        pieces = self.send(payload, FrameWriter(KEY))
        assert all(len(piece) <= PAYLOAD_BYTES_MAX + OVERHEAD_BYTES for piece in pieces)
        got = [item for piece in pieces for item in reader.feed(piece)]
        assert got == [(16, bytearray(payload))]
        assert reader.fragments == len(pieces)
        assert reader.buffered_bytes == 0

    def test_small_messages_travel_between_fragments(self):
        writer, reader = FrameWriter(KEY), FrameReader(KEY)
        payload = os.urandom(2 * FRAGMENT_BYTES)
        (one, flags), (two, last) = split(payload)
        data = writer.frame(16, bytes(one), flags) + writer.frame(4, b"ping") + writer.frame(16, bytes(two), last)
        assert reader.feed(data) == [(4, b"ping"), (16, bytearray(payload))]

    def test_two_long_messages_at_once_are_refused(self):
        writer, reader = FrameWriter(KEY), FrameReader(KEY)
        reader.feed(writer.frame(16, b"x", FRAGMENT))
        with pytest.raises(PeerError, match="out of order"):
            reader.feed(writer.frame(17, b"x", FRAGMENT))

    def test_empty_fragments_are_refused(self):
        with pytest.raises(PeerError, match="out of order"):
            FrameReader(KEY).feed(FrameWriter(KEY).frame(16, b"", FRAGMENT))

    def test_fragments_stop_at_the_limit_of_the_type(self):
        writer, reader = FrameWriter(KEY), FrameReader(KEY)
        limit = TYPES[24].bytes_max
        reader.feed(writer.frame(24, bytes(limit), FRAGMENT))
        with pytest.raises(PeerError, match="over its limit"):
            reader.feed(writer.frame(24, b"x", FRAGMENT | LAST))
        assert reader.buffered_bytes <= limit + OVERHEAD_BYTES + 1

    def test_a_type_of_64_mib_is_bounded_too(self):
        writer, reader = FrameWriter(KEY), FrameReader(KEY)
        piece = bytes(PAYLOAD_BYTES_MAX)
        for _ in range(wire.MESSAGE_BYTES_MAX // PAYLOAD_BYTES_MAX):
            assert reader.feed(writer.frame(16, piece, FRAGMENT)) == []
        with pytest.raises(PeerError, match="over its limit"):
            reader.feed(writer.frame(16, b"x", FRAGMENT))


def test_a_second_of_fuzzing_finds_nothing():
    """The campaign is longer; this keeps the fuzzer itself alive."""
    tried, wrong = fuzz(1.0, seed=7)
    assert wrong == ""
    assert tried > 100
