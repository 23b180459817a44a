"""raftdb/format.py: one printable line for anything, and the forms that transcripts rely on."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb import format as text
from raftdb.types import Entry, HardState, Kind, Member, Membership, NodeRef, SnapshotMeta

N1 = NodeRef("n1", 0x0BADCAFE_00000001)
N2 = NodeRef("n2", 0x12345678_00000002)
MEMBERS = Membership(
    7,
    (
        Member(*N1, "127.0.0.1:6379", "127.0.0.1:6380", True),
        Member(*N2, "127.0.0.1:6389", "127.0.0.1:6390", False),
    ),
)


class Request(NamedTuple):
    db: int
    argv: tuple[bytes, ...]


class Transaction(NamedTuple):
    db: int
    watches: tuple
    requests: tuple


class Append(NamedTuple):
    term: int
    entries: tuple
    leader: NodeRef | None
    final: bool


def entry(index: int, term: int, kind: int = Kind.COMMANDS, payload: bytes = b"") -> Entry:
    return Entry(index, term, kind, 0, 0, payload, 0)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"red", "red"),
        (b"", '""'),
        (b"two words", '"two words"'),
        (b'say "hi"\\', '"say \\"hi\\"\\\\"'),
        (b"\x00\xff\n\x1b[2J", '"\\x00\\xff\\n\\x1b[2J"'),
        ("ü".encode(), '"\\xc3\\xbc"'),
        (b"it's", '"it\'s"'),
        (b"a" * 100, "a" * 64 + "...(100 bytes)"),
    ],
)
def test_quote(data, shown):
    assert text.quote(data) == shown


@given(st.binary(max_size=300))
def test_quote_is_one_printable_ascii_line(data):
    shown = text.quote(data)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) <= 4 * text.VALUE_CHARS_MAX + 2 + len("...(300 bytes)")


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_quote_tells_values_apart(one, other):
    assert (text.quote(one) == text.quote(other)) == (one == other)


@given(st.text(max_size=40))
def test_names_from_hostile_files_stay_on_their_line(name):
    assert text.safe(name).isprintable()


@given(st.integers(-(2**70), 2**70))
def test_stamp_takes_any_number(ms):
    assert text.stamp(ms)


def test_small_values():
    assert text.stamp(1_795_442_709_250) == "2026-11-23 14:05:09.250"
    assert [text.size(n) for n in (0, 1023, 1536, 64 << 20, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "64.0 MiB",
        "5120.0 TiB",
    ]
    assert text.node(N1) == "n1:0badcafe"
    assert text.hard_state(HardState(3, None)) == "term 3, vote -"
    assert text.hard_state(HardState(3, N1)) == "term 3, vote n1:0badcafe"
    assert text.membership(MEMBERS) == (
        "members as of 7: n1:0badcafe 127.0.0.1:6379, n2:12345678 127.0.0.1:6389 learner"
    )


def test_snapshot():
    meta = SnapshotMeta("raft_n1_1_9.dat", 9, 2, 5, 1_795_442_709_250, MEMBERS, 2048, bytes(range(32)))
    assert text.snapshot(meta) == (
        "raft_n1_1_9.dat: 9@2, 2026-11-23 14:05:09.250, 2.0 KiB, 2 members, digest 0001020304050607"
    )


def test_entries():
    items = [Request(0, (b"set", b"color", b"dark red")), Request(3, (b"incr", b"n"))]
    assert text.entry(entry(2, 1), items) == '2@1 SET color "dark red"; [3] INCR n'
    assert text.entry(entry(1, 1, Kind.NOOP)) == "1@1 noop"
    assert text.entry(entry(3, 1, payload=b"x" * 10)) == "3@1 commands (10 B)"
    assert text.entry(entry(3, 1, kind=77)) == "3@1 kind 77"
    both = Transaction(0, (), (Request(0, (b"GET", b"a")), Request(0, (b"DEL", b"a"))))
    assert text.request(both) == "MULTI GET a; DEL a EXEC"


def test_long_commands_are_cut_and_say_so():
    assert text.arguments([b"DEL", *(b"k%d" % n for n in range(20))]).endswith("k14 ...(5 more)")


def test_messages():
    run = (entry(2, 1), entry(3, 2))
    assert text.message(Append(2, run, N1, True)) == "Append term=2 entries=[2@1..3@2] leader=n1:0badcafe final=yes"
    assert text.message(Append(2, (), None, False)) == "Append term=2 entries=[] leader=- final=no"
    assert text.span([entry(2, 1)]) == "[2@1]"
