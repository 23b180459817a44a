"""raftdb.net.resp: the parser against the grammar, against hiredis, against cuts; the encoders against hiredis."""

from __future__ import annotations

import math
import time

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raftdb.errors import Bug, CommandError, Uncertain
from raftdb.net.resp import (
    AUTHENTICATED,
    UNAUTHENTICATED,
    Limits,
    Parser,
    encode,
    encode_error,
    encode_many,
    split_words,
)
from raftdb.types import NULL_ARRAY, OK, Encoded, Pairs, Push, ReplySet, Verbatim
from tests.fuzz.resp import fuzz
from tests.net.respkit import arguments, command, commands, reference, run, streams

SMALL = Limits(args_max=8, bulk_bytes_max=24, inline_bytes_max=20, query_bytes_max=1000)
LIMITS = pytest.mark.parametrize("limits", [AUTHENTICATED, UNAUTHENTICATED, SMALL], ids=["full", "stranger", "small"])


def parse(stream: bytes, limits: Limits = AUTHENTICATED) -> tuple[list[list[bytes]], str | None]:
    return run(stream, (), limits)


# --- what is understood ---------------------------------------------------------------------------------------------


def test_a_pipeline_comes_out_in_order():
    stream = b"".join(command(b"SET", b"key:%d" % n, b"v" * n) for n in range(200))
    assert parse(stream) == ([[b"SET", b"key:%d" % n, b"v" * n] for n in range(200)], None)


def test_shapes_may_change_inside_a_pipeline():
    argvs = [[b"GET", b"k"], [b"SET", b"k", b"v\r\n$1"], [b"PING"], [b"SET", b"k", b"x" * 9000], [b"GET", b""]] * 7
    assert parse(b"".join(command(*argv) for argv in argvs)) == (argvs, None)


def test_inline_and_arrays_mix():
    assert parse(b'\r\n\nPING\r\n*1\r\n$4\r\nECHO\r\nset a "b c"\n*1\r\n$1\r\nx\r\n') == (
        [[b"PING"], [b"ECHO"], [b"set", b"a", b"b c"], [b"x"]],
        None,
    )


def test_a_large_argument_arrives_in_pieces():
    value = bytes(range(256)) * 4096
    stream = command(b"SET", b"k", value)
    assert run(stream, range(0, len(stream), 65_536), AUTHENTICATED) == ([[b"SET", b"k", value]], None)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"set  a\tb ", [b"set", b"a", b"b"]),
        (b'"a b" c', [b"a b", b"c"]),
        (b"'a b' c", [b"a b", b"c"]),
        (rb'"\x41\x7a\xzz\n\r\t\b\a\"\\q"', [b"Az" + b'xzz\n\r\t\b\a"\\q']),
        (rb"'\n\'x'", [rb"\n" + b"'x"]),
        (b'""', [b""]),
        (b"''  \"\"", [b"", b""]),
        (b'a"b"', [b"ab"]),
        (b"one\0two three", [b"one"]),
        (b"", []),
        (b" \t ", []),
        (b"\xff\xfe", [b"\xff\xfe"]),
    ],
)
def test_inline_words_as_redis_splits_them(line, words):
    assert split_words(line) == words


@pytest.mark.parametrize("line", [b'"a', b"'a", b'"a"b', b"'a'b", b'a "', b'"a\\', b'"a\0"'])
def test_unbalanced_quotes(line):
    assert parse(line + b"\r\n") == ([], "unbalanced quotes in request")


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"*-1\r\n", "invalid multibulk length"),
        (b"*0\r\n", "invalid multibulk length"),
        (b"*01\r\n", "invalid multibulk length"),
        (b"*+1\r\n", "invalid multibulk length"),
        (b"*1_0\r\n", "invalid multibulk length"),
        (b"* 1\r\n", "invalid multibulk length"),
        (b"*abc\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*\xd9\xa1\r\n", "invalid multibulk length"),  # an Arabic digit: int() would take it as text
        (b"*1048577\r\n", "invalid multibulk length"),
        (b"*100000000\r\n", "invalid multibulk length"),
        (b"*4294967295\r\n", "invalid multibulk length"),
        (b"*" + b"1" * 5000 + b"\r\n", "too big mbulk count string"),
        (b"*1\r\n$" + b"1" * 5000 + b"\r\n", "too big bulk count string"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$-5\r\n", "invalid bulk length"),
        (b"*1\r\n$1_000\r\n", "invalid bulk length"),
        (b"*1\r\n$+5\r\nhello\r\n", "invalid bulk length"),
        (b"*1\r\n$05\r\nhello\r\n", "invalid bulk length"),
        (b"*1\r\n$16777217\r\n", "invalid bulk length"),
        (b"*1\r\n$99999999999999999999999\r\n", "invalid bulk length"),
        (b"*1\r\n$3\r\nabcXX", "expected CRLF after an argument"),
        (b"*1\r\n$3\r\nabcd\r\n", "expected CRLF after an argument"),
        (b"*1\r\n+GET\r\n", "expected '$', got '+'"),
        (b"*1\r\n:5\r\n", "expected '$', got ':'"),
        (b"*1\r\n\x00", "expected '$', got '\\x00'"),
        (b"*2\r\n$1\r\na\r\n*1\r\n", "expected '$', got '*'"),
        (b"x" * 65_537, "too big inline request"),
        (b"x" * 70_000 + b"\r\n", "too big inline request"),
        (b"POST / HTTP/1.1\r\n", "this is not an HTTP server"),
        (b"hOsT: localhost\r\n", "this is not an HTTP server"),
    ],
)
def test_mistakes_and_their_texts(stream, text):
    before = command(b"SET", b"a", b"b")
    assert parse(before + stream + before) == ([[b"SET", b"a", b"b"]], text)
    assert run(before + stream + before, range(len(before + stream)), AUTHENTICATED) == ([[b"SET", b"a", b"b"]], text)


@pytest.mark.parametrize(
    ("stream", "text"),
    [
        (b"*11\r\n", "unauthenticated multibulk length"),
        (b"*1\r\n$16385\r\n", "unauthenticated bulk length"),
        (command(*[b"x" * 16_000] * 5), "too big query"),
        (b"x" * 20_000, "too big inline request"),
    ],
)
def test_strangers_get_little_room(stream, text):
    assert parse(stream, UNAUTHENTICATED) == ([], text)


def test_an_http_get_reaches_only_its_first_line():
    found, text = parse(b"GET /admin HTTP/1.1\r\nHost: localhost:6379\r\nAccept: */*\r\n\r\nFLUSHALL\r\n")
    assert found == [[b"GET", b"/admin", b"HTTP/1.1"]]
    assert text == "this is not an HTTP server"


def test_nothing_is_taken_after_an_error():
    parser = Parser(AUTHENTICATED)
    assert parser.feed(b"*0\r\n") == []
    first = parser.error
    assert first is not None
    assert parser.feed(command(b"PING")) == []
    assert parser.error is first
    assert parser.pending_bytes == 0


def test_the_size_of_one_command_is_bounded_by_what_it_promises():
    limits = AUTHENTICATED._replace(query_bytes_max=1024 * 1024)
    assert parse(b"*20000\r\n", limits)[1] is None
    assert parse(b"*30000\r\n", limits)[1] == "too big query"
    assert parse(b"*3\r\n$500000\r\n" + b"x" * 500_000 + b"\r\n$600000\r\n", limits)[1] == "too big query"


# --- strangers ------------------------------------------------------------------------------------------------------


def test_a_stranger_is_parsed_one_command_at_a_time():
    parser = Parser(UNAUTHENTICATED)
    big = command(b"SET", b"k", b"x" * 20_000)
    assert parser.feed(command(b"AUTH", b"pw") + big) == [[b"AUTH", b"pw"]]
    parser.set_limits(AUTHENTICATED)
    assert parser.feed(b"") == [[b"SET", b"k", b"x" * 20_000]]
    assert parser.idle


def test_the_same_bytes_are_refused_while_the_stranger_has_not_logged_in():
    parser = Parser(UNAUTHENTICATED)
    assert parser.feed(command(b"AUTH", b"no") + command(b"SET", b"k", b"x" * 20_000)) == [[b"AUTH", b"no"]]
    assert parser.feed(b"") == []
    assert str(parser.error) == "unauthenticated bulk length"


# --- the grammar, cuts, hiredis -------------------------------------------------------------------------------------


@LIMITS
@given(data=st.data())
@settings(max_examples=300)
def test_any_cut_gives_what_the_grammar_says(limits, data):
    stream = data.draw(streams())
    expected = reference(stream, limits)
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    assert run(stream, (), limits) == expected
    assert run(stream, cuts, limits) == expected


@LIMITS
@given(stream=streams())
@settings(max_examples=60)
def test_byte_by_byte(limits, stream):
    stream = stream[:4000]
    assert run(stream, range(len(stream)), limits) == reference(stream, limits)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=5))
def test_plain_noise(noise, cuts):
    cuts = [min(cut, len(noise)) for cut in cuts]
    assert run(noise, cuts, AUTHENTICATED) == reference(noise, AUTHENTICATED)


@given(st.lists(st.lists(arguments, min_size=1, max_size=9), max_size=30))
def test_valid_pipelines_as_hiredis_reads_them(argvs):
    stream = b"".join(command(*argv) for argv in argvs)
    reader = hiredis.Reader(notEnoughData=False)
    reader.feed(stream)
    theirs = []
    while (argv := reader.gets()) is not False:
        theirs.append(argv)
    assert parse(stream) == (theirs, None)
    assert theirs == argvs


@given(st.lists(commands, min_size=1, max_size=30), st.data())
def test_a_cut_pipeline_loses_nothing(pieces, data):
    stream = b"".join(pieces)
    cut = data.draw(st.integers(0, len(stream)))
    parser = Parser(AUTHENTICATED)
    found = parser.feed(stream[:cut]) + parser.feed(stream[cut:])
    assert b"".join(command(*argv) for argv in found) == stream
    assert parser.idle
    assert parser.pending_bytes == 0


# --- time and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unit",
    [b"\r\n", b"\n", b"a\n", b"*1\r\n$0\r\n\r\n", command(b"SET", b"k", b"\r\n" * 8), b"'' \n"],
    ids=["crlf", "lf", "inline", "empty", "crlf-values", "quotes"],
)
def test_a_chunk_takes_time_in_proportion_to_its_size(unit):
    def cost(size: int) -> float:
        chunk = unit * (size // len(unit))
        best = math.inf
        for _ in range(3):
            parser = Parser(AUTHENTICATED)
            start = time.process_time()
            parser.feed(chunk)
            best = min(best, time.process_time() - start)
        return best

    cost(8_192)
    assert cost(8 * 65_536) < 40 * cost(65_536) + 0.01  # quadratic: 64 times


def test_a_promise_reserves_nothing():
    parser = Parser(AUTHENTICATED)
    parser.feed(b"*1048576\r\n$16777216\r\nabc")
    assert parser.error is None
    assert len(parser._tail) == 3
    assert parser.pending_bytes > 16 * 1024 * 1024  # but it counts in full


# --- replies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "resp2", "resp3"),
    [
        (b"abc", b"$3\r\nabc\r\n", None),
        (b"", b"$0\r\n\r\n", None),
        (5, b":5\r\n", None),
        (-5, b":-5\r\n", None),
        (2**63 - 1, b":9223372036854775807\r\n", None),
        (1024, b":1024\r\n", None),
        (None, b"$-1\r\n", b"_\r\n"),
        (NULL_ARRAY, b"*-1\r\n", b"_\r\n"),
        (True, b":1\r\n", b"#t\r\n"),
        (False, b":0\r\n", b"#f\r\n"),
        ("OK", b"+OK\r\n", None),
        ("a\r\nb", b"+a  b\r\n", None),
        (OK, b"+OK\r\n", None),
        (Encoded(b":1\r\n:2\r\n"), b":1\r\n:2\r\n", None),
        (1.5, b"$3\r\n1.5\r\n", b",1.5\r\n"),
        (3.0, b"$1\r\n3\r\n", b",3\r\n"),
        (0.1, b"$19\r\n0.10000000000000001\r\n", b",0.10000000000000001\r\n"),
        (1e21, b"$5\r\n1e+21\r\n", b",1e+21\r\n"),
        (math.inf, b"$3\r\ninf\r\n", b",inf\r\n"),
        (-math.inf, b"$4\r\n-inf\r\n", b",-inf\r\n"),
        ([], b"*0\r\n", None),
        ([b"a", b"b", b"c"], b"*3\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n", None),
        ((1, [b"a", None]), b"*2\r\n:1\r\n*2\r\n$1\r\na\r\n$-1\r\n", b"*2\r\n:1\r\n*2\r\n$1\r\na\r\n_\r\n"),
        ({b"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
        ({}, b"*0\r\n", b"%0\r\n"),
        (ReplySet([b"a"]), b"*1\r\n$1\r\na\r\n", b"~1\r\n$1\r\na\r\n"),
        (Push([b"m", 1]), b"*2\r\n$1\r\nm\r\n:1\r\n", b">2\r\n$1\r\nm\r\n:1\r\n"),
        (Pairs([(b"a", 1.0)]), b"*2\r\n$1\r\na\r\n$1\r\n1\r\n", b"*1\r\n*2\r\n$1\r\na\r\n,1\r\n"),
        (Verbatim("hé"), b"$3\r\nh\xc3\xa9\r\n", b"=7\r\ntxt:h\xc3\xa9\r\n"),
        (CommandError("ERR no"), b"-ERR no\r\n", None),
        (Uncertain("UNCERTAIN x\r\n+OK"), b"-UNCERTAIN x  +OK\r\n", None),
        ([CommandError("ERR no"), 1], b"*2\r\n-ERR no\r\n:1\r\n", None),
        (bytearray(b"ab"), b"$2\r\nab\r\n", None),
        ([bytearray(b"ab"), memoryview(b"c")], b"*2\r\n$2\r\nab\r\n$1\r\nc\r\n", None),
        ([OK, Encoded(b":1\r\n")], b"*2\r\n+OK\r\n:1\r\n", None),
    ],
)
def test_replies_in_both_protocols(reply, resp2, resp3):
    assert encode(reply, 2) == resp2
    assert encode(reply, 3) == (resp2 if resp3 is None else resp3)


def test_an_error_line_stays_one_line_whatever_it_quotes():
    assert encode_error("ERR unknown command 'a\r\n+OK\r\n'") == b"-ERR unknown command 'a  +OK  '\r\n"
    assert encode_error("ERR " + b"\xff\xfe".decode("utf-8", "surrogateescape")) == b"-ERR \xff\xfe\r\n"
    assert encode_error("ERR \ud800") == b"-ERR ?\r\n"


def test_what_is_no_reply_is_a_bug():
    with pytest.raises(Bug, match="object"):
        encode([object()])


def test_a_pipeline_of_replies():
    assert encode_many([OK, None, 7], 3) == b"+OK\r\n_\r\n:7\r\n"


def test_long_arrays_in_slices():
    items = [b"x" * (n % 1500) for n in range(10_000)]
    reader = hiredis.Reader()
    reader.feed(encode(items))
    assert reader.gets() == items


replies = st.recursive(
    st.one_of(st.binary(max_size=20), st.integers(-(2**63), 2**63 - 1), st.none(), st.booleans()),
    lambda inner: st.lists(inner, max_size=5),
    max_leaves=12,
)


@given(replies)
def test_hiredis_reads_back_what_is_encoded(reply):
    reader = hiredis.Reader()
    reader.feed(encode(reply, 3))
    assert reader.gets() == reply


@given(st.floats(allow_nan=False))
def test_doubles_come_back_exactly(value):
    assert float(encode(value, 3)[1:-2]) == value


def test_a_few_seconds_of_the_fuzzer():
    tried, wrong = fuzz(2.0, 1)
    assert not wrong
    assert tried > 100
