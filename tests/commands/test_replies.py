"""Replies are bounded while they are built: no command, transaction or entry makes a node keep more than it may."""

from __future__ import annotations

from typing import Any

import pytest

from raftdb.commands import context, machine
from raftdb.commands.context import REPLY_ITEM_BYTES, REPLY_TOO_LARGE
from raftdb.commands.machine import Request, Transaction
from raftdb.errors import CommandError
from raftdb.storage.kv import state_digest
from tests.commands.replica import Replica

ROOM_BYTES = 10_000
VALUE = b"v" * 1_000
FITS = ROOM_BYTES // (len(VALUE) + REPLY_ITEM_BYTES)


@pytest.fixture
def replica(tmp_path, monkeypatch) -> Replica:
    """One with little room: ten values, or so."""
    for module in (context, machine):
        monkeypatch.setattr(module, "REPLY_BYTES_MAX", ROOM_BYTES)
    monkeypatch.setattr(context, "WRITE_REPLY_BYTES_MAX", ROOM_BYTES)
    made = Replica(tmp_path / "r")
    for number in range(20):
        made("SET", f"s{number}", VALUE)
        made("HSET", "h", f"f{number}", VALUE)
        made("RPUSH", "l", VALUE)
        made("HSET", "t", f"a{number}", VALUE)
    made("HSET", "few", "a", VALUE, "b", VALUE)
    return made


def refused(reply: Any) -> bool:
    return isinstance(reply, CommandError) and str(reply) == REPLY_TOO_LARGE


@pytest.mark.parametrize(
    "words",
    [
        ("MGET", *[f"s{number}" for number in range(20)]),
        ("MGET", *["s1"] * 20),
        ("HMGET", "h", *["f1"] * 20),
        ("HGETALL", "h"),
        ("HVALS", "h"),
        ("HSCAN", "h", 0, "COUNT", 100),
        ("HRANDFIELD", "h", -20, "WITHVALUES"),
        ("HRANDFIELD", "h", 19, "WITHVALUES"),
        ("HRANDFIELD", "h", 20, "WITHVALUES"),
        ("HRANDFIELD", "h", -1_000_000),
        ("LRANGE", "l", 0, -1),
        ("TGET", "t"),
    ],
    ids=lambda words: " ".join(map(str, words[:3])),
)
def test_a_read_that_would_answer_too_much_is_refused_and_a_smaller_one_is_not(replica, words):
    assert refused(replica(*words))
    assert replica("MGET", *["s1"] * FITS) == [VALUE] * FITS
    assert len(replica("LRANGE", "l", 0, FITS - 1)) == FITS
    assert len(replica("HRANDFIELD", "h", 20)) == 20
    assert len(replica("HRANDFIELD", "h", 3, "WITHVALUES")) == 3


def test_names_count_as_values_do(replica):
    for number in range(700):
        replica("SET", f"name{number}", "")
        replica("HSET", "names", f"name{number}", "")
    assert refused(replica("KEYS", "*"))
    assert refused(replica("SCAN", 0, "COUNT", 1000))
    assert refused(replica("HKEYS", "names"))
    assert refused(replica("HRANDFIELD", "names", 600))
    assert replica("KEYS", "name7") == [b"name7"]


def test_the_fields_that_are_drawn_are_the_same_with_and_without_values(replica):
    for count in (1, 5, -7):
        seeded = [Request(0, [b"HRANDFIELD", b"h", b"%d" % count, *more]) for more in ([], [b"WITHVALUES"])]
        with replica.kv.view() as view:
            drawn = []
            for request in seeded:
                replica.machine._reads = 41
                drawn.append(replica.machine.read(view, request))
        assert drawn[0] == [name for name, _ in drawn[1]]


def test_a_transaction_that_reads_has_the_room_of_one_read(replica):
    requests = [replica.request("GET", f"s{number}") for number in range(20)]
    replies = replica.read(Transaction(0, [], requests))
    assert replies[:FITS] == [VALUE] * FITS
    assert all(map(refused, replies[FITS:]))


def test_writes_whose_replies_do_not_fit_are_rolled_back_alike(replica, tmp_path):
    """In one entry: what has no room for its reply did not happen, and a second replica sees the same."""
    requests = [replica.request("GETDEL", f"s{number}") for number in range(20)]
    pop = replica.request("LPOP", "l", 20)
    replies = replica.apply(*requests, pop, replica.request("SET", "after", "1"))
    assert replies[:FITS] == [VALUE] * FITS
    assert all(map(refused, replies[FITS:-1]))
    assert str(replies[-1]) != REPLY_TOO_LARGE
    assert replica("EXISTS", *[f"s{number}" for number in range(20)]) == 20 - FITS
    assert replica("LLEN", "l") == 20
    assert len(replica("LPOP", "l", FITS)) == FITS
    assert refused(replica("LPOP", "l", 20))
    assert len(replica("LMPOP", 1, "l", "LEFT", "COUNT", FITS)[1]) == FITS
    assert replica("LLEN", "l") == 20 - 2 * FITS
    other = Replica(tmp_path / "other")
    for entry in replica.log:
        other.apply_entry(entry)
    assert replica.kv.digest == other.kv.digest
    with replica.kv.view() as one, other.kv.view() as two:
        assert state_digest(one) == state_digest(two)


def test_one_value_may_always_be_taken(replica):
    replica("SET", "big", b"b" * (2 * ROOM_BYTES))
    replica("RPUSH", "large", b"b" * (2 * ROOM_BYTES))
    assert len(replica("GETDEL", "big")) == 2 * ROOM_BYTES
    assert len(replica("LPOP", "large")) == 2 * ROOM_BYTES


def test_reads_that_ride_along_do_not_take_the_room_of_writes(replica):
    reads = [replica.request("GET", f"s{number}") for number in range(20)]
    takes = [replica.request("GETDEL", f"s{number}") for number in range(FITS)]
    replies = replica.apply(*reads, *takes, logged=tuple(takes))
    assert replies[:FITS] == [VALUE] * FITS
    assert all(map(refused, replies[FITS:20]))
    assert replies[20:] == [VALUE] * FITS


def test_a_transaction_keeps_its_plain_writes_when_its_reads_have_no_room(replica):
    reads = [replica.request("GET", f"s{number}") for number in range(20)]
    (replies,) = replica.apply(Transaction(0, [], [*reads, replica.request("INCR", "n"), reads[0]]))
    assert replies[20] == 1
    assert refused(replies[21])
    assert replica("GET", "n") == b"1"


def test_trimming_and_removing_are_no_replies(replica):
    replica("LINSERT", "l", "BEFORE", VALUE, "x")
    assert str(replica("LTRIM", "l", 0, 15)) != REPLY_TOO_LARGE
    assert replica("LLEN", "l") == 16
    assert replica("LREM", "l", 0, VALUE) == 15
    assert replica("LRANGE", "l", 0, -1) == [b"x"]
