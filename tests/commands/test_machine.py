"""Payloads, rollback, chance, order of reads, expiry and reclaiming: what every replica must do alike."""

from __future__ import annotations

import time

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.commands import READ, WRITE, Bytes, CommandError, Key, Table, builtin_table, command
from raftdb.commands.context import StampBehind
from raftdb.commands.machine import (
    EXPIRED_KEYS_PER_ENTRY_MAX,
    HANDLER_FAILED,
    PAYLOAD_VERSION,
    Machine,
    Request,
    Transaction,
    UnknownCommand,
    Watch,
    is_read_only,
)
from raftdb.commands.strings import String
from raftdb.errors import Bug, Damaged, StorageError
from raftdb.storage.kv import state_digest
from raftdb.types import NULL_ARRAY, Entry, Kind

MACHINE = Machine(builtin_table())
words = st.lists(st.binary(max_size=20), min_size=1, max_size=5)
databases = st.integers(0, 15)
requests = st.builds(Request, databases, words, st.none())
watches = st.builds(Watch, databases, st.binary(max_size=8), st.integers(0, 2**63))
transactions = st.builds(Transaction, databases, st.lists(watches, max_size=3), st.lists(requests, max_size=3))


# --- payload ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(requests, transactions), max_size=6))
def test_a_payload_is_read_as_it_was_written(items):
    assert MACHINE.decode(MACHINE.encode(items)) == items


@given(st.binary(max_size=60))
def test_any_bytes_are_items_or_damaged(data):
    try:
        items = MACHINE.decode(data)
    except Damaged:
        return
    assert MACHINE.decode(MACHINE.encode(items)) == items


@given(st.lists(st.one_of(requests, transactions), min_size=1, max_size=4), st.data())
def test_a_damaged_payload_is_items_or_damaged(items, data):
    payload = bytearray(MACHINE.encode(items))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        MACHINE.decode(bytes(payload))
    except Damaged:
        return


plain = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 20), st.binary(max_size=5), st.text(max_size=3)),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_any_plain_document_is_items_or_damaged(document):
    data = msgpack.packb([PAYLOAD_VERSION, [document]])
    try:
        MACHINE.decode(data)
    except Damaged:
        return


@pytest.mark.parametrize(
    "row",
    [
        [],
        [0],
        [16, [b"GET"]],
        [-1, [b"GET"]],
        [True, [b"GET"]],
        [0, []],
        [0, ["GET"]],
        [0, [b"GET"], 1],
        [0, [[0, b"k", "1"]], []],
        [0, [], [[0, []]]],
        {"a": 1},
    ],
)
def test_what_is_no_item_is_damaged(row):
    with pytest.raises(Damaged):
        MACHINE.decode(msgpack.packb([PAYLOAD_VERSION, [row]]))


def test_a_length_that_is_only_promised_reserves_nothing():
    with pytest.raises(Damaged):
        MACHINE.decode(b"\x92\x01\xdd\x7f\xff\xff\xff")  # an array of two thousand million items, in seven bytes


def test_arrays_inside_arrays_that_are_only_promised_reserve_little():
    begun = time.thread_time()
    with pytest.raises(Damaged):
        MACHINE.decode(b"\xdd\x00\x0f\xff\xff" * 2_000)
    assert time.thread_time() - begun < 1


def test_an_entry_that_followers_would_refuse_is_not_made(monkeypatch):
    monkeypatch.setattr("raftdb.commands.machine.ITEMS_MAX", 3)
    with pytest.raises(Bug, match="4 commands"):
        MACHINE.encode([Request(0, [b"PING"])] * 4)


def test_deep_nesting_is_damaged():
    with pytest.raises(Damaged):
        MACHINE.decode(b"\x91" * 100_000)


# --- failing commands -------------------------------------------------------------------------------------------------


@command("HALF", Key(String), Bytes("how"), flags=WRITE)
def half(ctx, key, how):
    """Change something, then fail in the way that is asked for."""
    key.set(b"half")
    raise FAILURES[how]


FAILURES = {
    b"command": CommandError("ERR refused"),
    b"value": ValueError("a mistake"),
    b"key": KeyError("a mistake"),
    b"memory": MemoryError(),
    b"os": OSError(5, "Input/output error"),
    b"recursion": RecursionError(),
    b"storage": StorageError("the disk failed"),
    b"bug": Bug("an invariant"),
}


@command("SNEAK", Key(String), flags=READ)
def sneak(ctx, key):
    key.set(b"written by a read")


@pytest.fixture
def table():
    return builtin_table().extended([half, sneak])


def test_a_command_error_leaves_no_trace(make_replica, table):
    replica = make_replica(table)
    replica("SET", "a", "whole")
    digest = replica.kv.digest
    with replica.kv.view() as view:
        before = state_digest(view)
    assert str(replica("HALF", "a", "command")) == "ERR refused"
    assert replica("GET", "a") == b"whole"
    assert replica.kv.digest == digest
    with replica.kv.view() as view:
        assert state_digest(view) == before


@pytest.mark.parametrize("how", ["value", "key"])
def test_a_mistake_in_a_handler_is_rolled_back_and_folded_into_the_digest(make_replica, table, how):
    replica = make_replica(table)
    replica("SET", "a", "whole")
    digest = replica.kv.digest
    assert str(replica("HALF", "a", how)) == HANDLER_FAILED
    assert replica("GET", "a") == b"whole"
    assert replica.kv.digest != digest


@pytest.mark.parametrize("how", ["memory", "os", "recursion", "storage", "bug"])
def test_what_other_replicas_may_not_have_met_stops_the_node(make_replica, table, how):
    replica = make_replica(table)
    with pytest.raises((MemoryError, OSError, RecursionError, StorageError, Bug)):
        replica("HALF", "a", how)
    assert replica("GET", "a") is None


def test_a_read_cannot_write(make_replica, table):
    replica = make_replica(table)
    assert "must not write" in str(replica("SNEAK", "a"))
    in_an_entry = replica.apply(replica.request("SNEAK", "a"), logged=())
    assert "must not write" in str(in_an_entry[0])
    assert replica("GET", "a") is None


def test_a_command_that_the_table_does_not_know_stops_the_node_and_is_named(replica):
    with pytest.raises(UnknownCommand, match="NEWER"):
        replica.apply(Request(0, [b"NEWER", b"a"]))
    assert replica.kv.applied == 0


def test_an_arity_that_dispatch_would_have_refused_is_an_error_here_too(replica):
    assert "wrong number" in str(replica.apply(Request(0, [b"SET", b"a"]))[0])


# --- order and chance -------------------------------------------------------------------------------------------------


@command("DRAW", Key(String), flags=WRITE)
def draw(ctx, key):
    key.set(b"%d" % ctx.random.below(1 << 60))
    return key.get()


def test_reads_that_ride_along_change_neither_state_nor_chance(make_replica):
    table = builtin_table().extended([draw])
    leader, follower = make_replica(table), make_replica(table)
    first, second = leader.request("DRAW", "a"), leader.request("DRAW", "b")
    reads = leader.request("GET", "a"), leader.request("RANDOMKEY")
    replies = leader.apply(first, *reads, second, leader.request("GET", "b"), logged=(first, second))
    assert replies[0] == replies[1]
    assert replies[3] == replies[4]
    assert replies[0] != replies[3]
    assert follower.apply_entry(leader.log[0]) == [replies[0], replies[3]]
    assert follower.kv.digest == leader.kv.digest


def test_a_command_draws_alike_alone_and_in_a_batch_of_entries(make_replica):
    table = builtin_table().extended([draw])
    one, other = make_replica(table), make_replica(table)
    for n in range(5):
        one("DRAW", f"k{n}")
    batch = other.kv.batch()
    for entry in one.log:
        other.machine.apply(entry, None, batch)
    batch.commit(one.index, 1, one.now_ms, 0)
    assert other.kv.digest == one.kv.digest


# --- transactions -----------------------------------------------------------------------------------------------------


def transaction(replica, *lines, watched=()):
    return Transaction(0, [Watch(0, *row) for row in watched], [replica.request(*line.split()) for line in lines])


def test_a_transaction_goes_on_after_an_error_as_in_redis(replica):
    replies = replica.apply(transaction(replica, "SET a x", "INCR a", "SET b 1", "GET a"))[0]
    assert [str(reply) for reply in replies[1:2]] == ["ERR value is not an integer or out of range"]
    assert replies[3] == b"x"
    assert replica("GET", "b") == b"1"


def test_a_watched_key_that_changed_gives_a_null_array(replica):
    replica("SET", "a", 1)
    with replica.kv.view() as view:
        version = replica.machine.watch(view, 0, [b"a"])[0]
    replica("SET", "other", 1)
    ok = transaction(replica, "INCR a", watched=[(b"a", version)])
    assert replica.apply(ok) == [[2]]
    assert replica.apply(ok) == [NULL_ARRAY]
    assert replica("GET", "a") == b"2"


@pytest.mark.parametrize(
    "change", ["SET a 1", "EXPIRE a 100", "APPEND a x", "DEL a", "RENAME a b", "FLUSHALL", "SWAPDB 0 1"]
)
def test_every_kind_of_change_is_noticed(replica, change):
    replica("SET", "a", 1)
    with replica.kv.view() as view:
        version = replica.machine.watch(view, 0, [b"a"])[0]
    replica(*change.split())
    assert replica.apply(transaction(replica, "SET c 1", watched=[(b"a", version)])) == [NULL_ARRAY]


@pytest.mark.parametrize(
    "change", ["HSET h f 2", "HDEL h f", "LPUSH l y", "LSET l 0 z", "LREM l 0 x", "LPOP l", "LTRIM l 0 0"]
)
def test_changes_inside_collections_are_noticed(replica, change):
    replica("HSET", "h", "f", 1, "g", 1)
    replica("RPUSH", "l", "x", "y")
    name = change.split()[1].encode()
    with replica.kv.view() as view:
        version = replica.machine.watch(view, 0, [name])[0]
    replica(*change.split())
    assert replica.apply(transaction(replica, "SET c 1", watched=[(name, version)])) == [NULL_ARRAY]


@pytest.mark.parametrize(
    "line", ["SETNX a 2", "SET a 2 NX", "GET a", "EXPIRE nokey 1", "PERSIST a", "LREM l 0 nothere", "HDEL h no"]
)
def test_what_changes_nothing_is_not_noticed(replica, line):
    replica("SET", "a", 1)
    replica("RPUSH", "l", "x")
    replica("HSET", "h", "f", 1)
    names = [b"a", b"l", b"h"]
    with replica.kv.view() as view:
        versions = replica.machine.watch(view, 0, names)
    replica(*line.split())
    watched = list(zip(names, versions, strict=True))
    assert replica.apply(transaction(replica, "GET a", watched=watched)) == [[b"1"]]


def test_a_watched_key_that_expired_is_noticed(replica):
    replica("SET", "a", 1, "PX", 50)
    with replica.kv.view() as view:
        version = replica.machine.watch(view, 0, [b"a"])[0]
    replica.now_ms += 100
    assert replica.apply(transaction(replica, "SET c 1", watched=[(b"a", version)])) == [NULL_ARRAY]


def test_only_reads_may_skip_the_log(replica):
    assert is_read_only(transaction(replica, "GET a", "LLEN b"))
    assert not is_read_only(transaction(replica, "GET a", "SET b 1"))
    replica("SET", "a", 5)
    assert replica.read(transaction(replica, "GET a", "TTL a")) == [b"5", -1]


# --- expiry -----------------------------------------------------------------------------------------------------------


def test_a_key_is_dead_from_its_time_on(replica):
    replica("SET", "a", 1, "PXAT", replica.now_ms + 10)
    replica.pass_ms(7)  # and one for the entry itself
    assert replica("PTTL", "a") == 1
    replica.pass_ms(0)
    assert replica("GET", "a") is None
    assert replica("DBSIZE") == 0


def test_a_dead_key_that_is_still_there_is_dead_to_writes(replica):
    replica("SET", "a", 5, "PX", 10)
    replica("RPUSH", "l", "old")
    replica("PEXPIRE", "l", 10)
    replica.now_ms += 100
    with replica.kv.view() as view:
        assert view.count(0) == 2
    assert replica.apply(replica.request("INCR", "a"), replica.request("RPUSH", "l", "new")) == [1, 1]
    assert replica("TTL", "a") == -1
    assert replica("LRANGE", "l", 0, -1) == [b"new"]


def test_expired_keys_are_removed_in_bounded_portions(replica):
    number = EXPIRED_KEYS_PER_ENTRY_MAX + 50
    replica.apply(*(replica.request("SET", f"k{n}", "x", "PX", 100) for n in range(number)))
    replica.pass_ms(200)
    assert replica("DBSIZE") == 50
    assert replica("KEYS", "*") == []
    replica.pass_ms(0)
    assert replica("DBSIZE") == 0


def test_a_read_that_the_stamp_cannot_judge_says_so(replica):
    replica("SET", "a", 1, "PX", 100)
    request = replica.request("GET", "a")
    due = replica.now_ms + 100
    assert replica.read(request, clock_ms=due - 1) == b"1"
    with pytest.raises(StampBehind) as caught:
        replica.read(request, clock_ms=due)
    assert caught.value.due_ms == due
    assert replica.read(request) == b"1"  # a follower does not look at its clock
    replica.pass_ms(200)
    assert replica.read(request, clock_ms=due + 500) is None


def test_time_entries_move_the_stamp_alone(replica):
    replica("SET", "a", 1)
    digest = replica.kv.digest
    entry = Entry(replica.index + 1, 1, Kind.TIME, replica.now_ms + 5000, 0, b"", 0)
    assert replica.apply_entry(entry) == []
    assert replica.kv.stamp == replica.now_ms + 5000
    assert replica.kv.digest == digest


# --- reclaiming -------------------------------------------------------------------------------------------------------


def test_a_large_key_goes_at_once_and_its_records_in_portions(replica):
    for start in range(0, 5000, 1000):
        replica("RPUSH", "l", *range(start, start + 1000))
    replica("DEL", "l")
    assert replica("EXISTS", "l") == 0
    for _ in range(10):
        replica.pass_ms(0)
    with replica.kv.view() as view:
        assert not list(view.scan(2, b"", None))


def test_long_work_breathes_all_the_way_through(replica):
    """Between two breaths at apply, and in the commit that follows, only a bounded number of records is touched."""
    breaths = []
    request = replica.request("RPUSH", "l", *range(30_000))
    batch = replica.kv.batch()
    entry = Entry(1, 1, Kind.COMMANDS, replica.now_ms, 0, b"", 0)
    assert replica.machine.apply(entry, [request], batch, lambda: breaths.append("apply")) == [30_000]
    at_apply = len(breaths)
    batch.commit(1, 1, replica.now_ms, 0)
    assert at_apply >= 30_000 // 64
    assert len(breaths) - at_apply >= 10_000 // 512


def test_an_empty_table_knows_nothing(make_replica):
    replica = make_replica(Table())
    assert "unknown command 'GET'" in str(replica("GET", "a"))
