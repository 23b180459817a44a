"""What the comparison with redis-server does not reach: scans while keys come and go, chance, digits, encodings."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.commands.context import Random
from raftdb.commands.keyspace import cursor_of
from raftdb.commands.strings import add_decimals, decimal_of
from raftdb.errors import CommandError

# --- scanning ---------------------------------------------------------------------------------------------------------


def scan(replica, *words, between=lambda: None, at=0):
    """All that a full iteration returns. `at`: where the cursor stands among the words."""
    words, found = list(words), []
    while True:
        cursor, rows = replica(*words)
        found += rows
        if cursor == b"0":
            return found
        words[at] = cursor
        between()


def test_keys_that_stay_are_returned_once_while_others_come_and_go(replica):
    staying = {b"stay:%d" % n for n in range(300)}
    replica("MSET", *(word for name in staying for word in (name, b"x")))
    chance, coming = random.Random(3), []

    def between():
        replica("MSET", *(word for n in range(5) for word in (f"come:{chance.random()}:{n}", "x")))
        coming.append(replica("RANDOMKEY"))
        if coming[-1] not in staying:
            replica("DEL", coming[-1])

    found = Counter(scan(replica, "SCAN", 0, "COUNT", 7, between=between, at=1))
    assert {name for name, times in found.items() if times == 1} >= staying
    assert not [name for name in staying if found[name] != 1]


def test_a_cursor_is_good_on_another_replica(make_replica):
    one, other = make_replica(), make_replica()
    for n in range(100):
        one("SET", f"k{n}", n)
    for entry in one.log:
        other.apply_entry(entry)
    cursor, first = one("SCAN", 0, "COUNT", 40)
    rest = scan(other, "SCAN", cursor, "COUNT", 9, at=1)
    assert sorted(first + rest) == sorted(b"k%d" % n for n in range(100))
    assert int(cursor) < 1 << 48


def test_a_scan_looks_at_no_more_than_it_was_asked_for(replica):
    replica("MSET", *(word for n in range(1000) for word in (f"k{n}", "x")))
    cursor, found = replica("SCAN", 0, "COUNT", 50, "MATCH", "nothing")
    assert (found, cursor != b"0") == ([], True)
    assert len(replica("SCAN", 0, "COUNT", 50)[1]) == 50


def test_a_hash_is_scanned_by_count_whatever_its_size_is(replica):
    replica("HSET", "h", *(word for n in range(30) for word in (f"f{n}", n)))
    cursor, rows = replica("HSCAN", "h", 0, "COUNT", 10)
    assert (len(rows), cursor != b"0") == (20, True)
    rows = scan(replica, "HSCAN", "h", 0, "COUNT", 4, "MATCH", "f1*", at=2)
    assert sorted(rows[::2]) == sorted(b"f%d" % n for n in range(30) if str(n).startswith("1"))


@pytest.mark.parametrize(
    ("token", "cursor"),
    [
        *(
            (b"0", 0),
            (b"", 0),
            (b"\x00\xff\r\n", 0),
            (b"7\x00junk", 7),
            (b"+7", 7),
            (b"000000000000000000000000007", 7),
        ),
        *((b"-1", 2**64 - 1), (b"-00", 0), (b"18446744073709551615", 2**64 - 1)),
        *((b"18446744073709551616", None), (b"x", None), (b"7x", None), (b" 7", None), (b"-", None), (b"+\x00", None)),
    ],
)
def test_cursors_are_read_as_redis_reads_them(token, cursor):
    """That is, by strtoul: a C string, an optional sign, decimal digits and nothing else."""
    if cursor is not None:
        assert cursor_of(token) == cursor
        return
    with pytest.raises(CommandError, match="invalid cursor"):
        cursor_of(token)


# --- chance -----------------------------------------------------------------------------------------------------------


def test_the_generator_is_splitmix64():
    """First numbers of the reference implementation for the seed 1234567."""
    numbers = Random(1234567)
    assert [numbers.next64() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.integers(0, 2**64 - 1), st.integers(1, 200), st.data())
def test_samples_are_different_members(seed, bound, data):
    count = data.draw(st.integers(0, bound))
    picks = Random(seed).sample(bound, count)
    assert len(set(picks)) == count
    assert all(0 <= pick < bound for pick in picks)


def test_chance_is_even_enough():
    numbers = Random(5)
    counts = Counter(numbers.below(10) for _ in range(10_000))
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150


def test_every_key_and_field_is_drawn_some_time(replica):
    replica("MSET", *(word for n in range(20) for word in (f"k{n}", "x")))
    drawn = Counter(replica("RANDOMKEY") for _ in range(2_000))
    assert set(drawn) == {b"k%d" % n for n in range(20)}
    assert max(drawn.values()) < 2 * min(drawn.values())
    replica("HSET", "h", *(word for n in range(20) for word in (f"f{n}", n)))
    assert {replica("HRANDFIELD", "h") for _ in range(500)} == {b"f%d" % n for n in range(20)}
    assert len(set(replica("HRANDFIELD", "h", 7))) == 7
    assert len(replica("HRANDFIELD", "h", -50)) == 50


def test_fields_of_a_large_hash_are_drawn_by_seeks(replica):
    for start in range(0, 3_000, 500):
        replica("HSET", "h", *(word for n in range(start, start + 500) for word in (f"f{n}", n)))
    drawn = replica("HRANDFIELD", "h", 100, "WITHVALUES")
    assert len({name for name, _ in drawn}) == 100
    assert all(name == b"f" + value for name, value in drawn)
    assert len(replica("HRANDFIELD", "h", -20)) == 20
    assert str(replica("HRANDFIELD", "h", -(2**40))) == "ERR value is out of range"


# --- decimal digits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "total"),
    [
        (b"0.1", b"0.2", b"0.3"),
        (b"1000", b"0.1", b"1000.1"),
        (b"10.50", b"0.1", b"10.6"),
        (b"5.0e3", b"2.0e2", b"5200"),
        (b"-0", b"0", b"0"),
        (b"1e-17", b"0", b"0.00000000000000001"),
        (b"1e-18", b"0", b"0"),
        (b"3e-18", b"3e-18", b"0.00000000000000001"),
        (b"9223372036854775807", b"1", b"9223372036854775808"),
        (b"1e30", b"0.5", b"1" + b"0" * 30 + b".5"),
        (b"-1.5", b"1.5", b"0"),
    ],
)
def test_sums_are_exact_and_rounded_to_17_places(one, other, total):
    assert add_decimals(decimal_of(one), decimal_of(other)) == total


@pytest.mark.parametrize(
    "text", [b"", b" 1", b"1 ", b"1_0", b"nan", b"0x10", b"1e", b"\xd9\xa3", b"1e99999", b"1" * 6000]
)
def test_what_is_no_decimal_number(text):
    with pytest.raises(CommandError, match="not a valid float"):
        decimal_of(text)


@pytest.mark.parametrize("text", [b"inf", b"-Infinity", b"9e4932"])
def test_no_sum_is_infinite(text):
    with pytest.raises(CommandError, match="NaN or Infinity"):
        add_decimals(decimal_of(text), decimal_of(b"1"))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-(10**9), max_value=10**9), st.data())
def test_adding_and_taking_away_gives_back_the_same_digits(number, data):
    step = data.draw(st.decimals(allow_nan=False, allow_infinity=False, places=6, min_value=-1000, max_value=1000))
    there = add_decimals(number, step)
    back = add_decimals(decimal_of(there), -step)
    assert decimal_of(back) == number


# --- introspection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "encoding"),
    [
        (["SET", "a", "5"], b"int"),
        (["SET", "a", "5.0"], b"embstr"),
        (["SET", "a", "x" * 44], b"embstr"),
        (["SET", "a", "x" * 45], b"raw"),
        (["RPUSH", "a", "x"], b"quicklist"),
        (["HSET", "a", "f", "v"], b"listpack"),
        (["HSET", "a", "f", "v" * 65], b"hashtable"),
        (["HSET", "a", *map(str, range(260))], b"hashtable"),
    ],
)
def test_encodings(replica, line, encoding):
    replica(*line)
    assert replica("OBJECT", "ENCODING", "a") == encoding


def test_memory_usage_grows_with_what_is_stored(replica):
    replica("SET", "s", "x" * 1000)
    replica("RPUSH", "l", *["x" * 100] * 50)
    replica("HSET", "h", *[word for n in range(50) for word in (f"f{n}", "x" * 100)])
    assert 1000 < replica("MEMORY", "USAGE", "s") < 1200
    for name in ("l", "h"):
        assert 5_000 < replica("MEMORY", "USAGE", name) < 9_000
        sampled, whole = replica("MEMORY", "USAGE", name), replica("MEMORY", "USAGE", name, "SAMPLES", 0)
        assert abs(sampled - whole) < 100
    assert replica("MEMORY", "USAGE", "nothing") is None
    assert "syntax" in str(replica("MEMORY", "USAGE", "s", "SAMPLES", -1))


def test_a_string_is_limited(replica):
    assert str(replica("SETRANGE", "a", 64 * 1024 * 1024, "x")).startswith("ERR string exceeds maximum allowed size")
    assert replica("EXISTS", "a") == 0
