"""A small share of the comparison with redis-server, and of what it is made of."""

from __future__ import annotations

import pytest

from raftdb.commands.table import builtin_table

from . import compare
from .__main__ import run
from .duel import Duel
from .players import RaftdbPlayer, RedisPlayer, WirePlayer
from .programs import Generator, Program, Step
from .wire import Reply, parse_reply


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_random_programs_have_the_same_replies(require, seed, capsys):
    assert run(require("redis-server"), RaftdbPlayer(seed), 2_000, seed, minutes=2) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.e2e
def test_a_server_has_the_same_replies_over_tcp(require, capsys):
    assert run(require("redis-server"), WirePlayer(), 1_000, seed=21, minutes=2) == 0, capsys.readouterr().out


def test_a_program_depends_on_its_seed_alone():
    assert Generator(5).program() == Generator(5).program()
    assert Generator(5).program() != Generator(6).program()


#: Programs that once showed a difference, one line per command of the first client.
MENDED = [[rb"HSCAN h \x00\xff MATCH *", rb"SCAN 7\x00junk", rb"SCAN 00000000000000000000000000"]]


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("lines", MENDED)
def test_what_once_differed_is_the_same(require, lines, protocol):
    duel = Duel(require("redis-server"), RaftdbPlayer())
    words = [[word.decode("unicode_escape").encode("latin-1") for word in line.split()] for line in lines]
    try:
        found = duel.play(Program(protocol, tuple(Step(0, tuple(argv)) for argv in words)))
    finally:
        duel.close()
    assert found is None, found


def test_a_difference_is_found_and_shrunk(require, monkeypatch):
    """The comparison can fail: a raftdb whose APPEND forgets a byte is found out by a short program."""
    ours = RaftdbPlayer()
    duel = Duel(require("redis-server"), ours)
    append = ours.table.get(b"APPEND")
    true_run = append.run
    monkeypatch.setattr(append, "run", lambda ctx, argv: true_run(ctx, [*argv[:2], argv[2][:-1]]))
    words = [b"SET a 1", b"GET a", b"APPEND a xyz", b"GET b", b"STRLEN a"]
    program = Program(2, tuple(Step(0, tuple(line.split())) for line in words))
    try:
        found = duel.shrink(duel.play(program))
    finally:
        duel.close()
    assert len(found.program.steps) == 1
    assert found.program.steps[0].argv[0] == b"APPEND"


@pytest.mark.parametrize(
    ("line", "ours", "theirs", "same"),
    [
        (b"GET a", b"$1\r\na\r\n", b"$1\r\nb\r\n", False),
        (b"GET a", b"$-1\r\n", b"_\r\n", False),
        (b"KEYS *", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\nb\r\n$1\r\na\r\n", True),
        (b"LRANGE l 0 -1", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\nb\r\n$1\r\na\r\n", False),
        (b"HGETALL h", b"*2\r\n$1\r\na\r\n$1\r\nb\r\n", b"*2\r\n$1\r\nb\r\n$1\r\na\r\n", False),
        (b"PTTL a", b":100\r\n", b":150\r\n", True),
        (b"PTTL a", b":-1\r\n", b":150\r\n", False),
        (b"DBSIZE", b":100\r\n", b":150\r\n", False),
        (b"EXEC", b"*1\r\n:1\r\n", b"*2\r\n:1\r\n:1\r\n", False),
    ],
)
def test_what_counts_as_the_same(line, ours, theirs, same):
    step = Step(0, tuple(line.split()))
    assert compare.same(step, parse_reply(ours), parse_reply(theirs)) is same


def test_arity_and_keys_are_those_of_redis(require):
    """COMMAND INFO of every command that both have: name, arity, first, last and step of its keys."""
    server = RedisPlayer(require("redis-server"))
    try:
        for row in builtin_table():
            reply = server.clients[0](b"COMMAND", b"INFO", row.full_name.encode())
            theirs = reply.value[0].value
            if theirs:
                assert [int(item.value) for item in (theirs[1], *theirs[3:6])] == shape_of(row), row.name
                check_subcommands(row, theirs[9].value)
    finally:
        server.close()


def shape_of(row) -> list[int]:
    return [row.arity, row.first_key, row.last_key, row.key_step]


def check_subcommands(row, theirs: list[Reply]) -> None:
    arities = {item.value[0].value.decode(): int(item.value[1].value) for item in theirs}
    for sub in {id(sub): sub for sub in (row.subcommands or {}).values()}.values():
        if sub.full_name in arities:
            assert sub.arity == arities[sub.full_name], sub.name


def test_flags_are_those_of_redis(require):
    """Of the flags that routing depends on, for every data command."""
    server = RedisPlayer(require("redis-server"))
    told = {"write", "readonly", "denyoom", "fast", "movablekeys"}
    try:
        for row in builtin_table():
            reply = server.clients[0](b"COMMAND", b"INFO", row.full_name.encode())
            theirs = reply.value[0].value
            if theirs and row.group in ("string", "generic", "hash", "list") and row.subcommands is None:
                flags = {item.value.decode() for item in theirs[2].value} & told
                assert set(row.flag_names()) & told == flags, row.name
    finally:
        server.close()
