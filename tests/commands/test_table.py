"""Commands as data: finding, refusing, replacing, arguments, what COMMAND and the docs say of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.commands import (
    FAST,
    LOCAL,
    MAY_SHRINK,
    READ,
    WRITE,
    Bytes,
    CommandError,
    Flag,
    Int,
    Key,
    Many,
    ManyPairs,
    NumKeys,
    OneOf,
    Optional,
    Options,
    Table,
    Value,
    builtin_table,
    command,
)
from raftdb.commands.args import INT64_MAX, INT64_MIN, integer
from raftdb.commands.docs import markdown
from raftdb.commands.strings import String
from raftdb.errors import UsageError
from tests.sources import ROOT

TABLE = builtin_table()


def declared(*args, **more):
    """A command of these arguments whose reply is what its handler was given."""
    return command("TEST", *args, flags=READ, **more)(lambda _ctx, *values: list(values))


def given_to(row, *words):
    return row.run(None, [b"TEST", *words])


# --- finding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [b"get", b"GET", b"Get", b"gEt"])
def test_names_are_found_in_any_case(name):
    assert TABLE.find([name, b"a"]).name == "GET"
    assert TABLE.get(name).name == "GET"


def test_subcommands_are_found_in_any_case():
    assert TABLE.find([b"Client", b"sEtName", b"x"]).full_name == "client|setname"
    assert TABLE.find([b"command"]).name == "COMMAND"
    assert TABLE.find([b"COMMAND", b"count"]).name == "COMMAND COUNT"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([b"nope", b"a", b"b"], "ERR unknown command 'nope', with args beginning with: 'a' 'b' "),
        ([b"no\r\npe"], "ERR unknown command 'no  pe', with args beginning with: "),
        ([b"x" * 200], f"ERR unknown command '{'x' * 128}', with args beginning with: "),
        ([b"client", b"nope"], "ERR unknown subcommand 'nope'. Try CLIENT HELP."),
        ([b"get"], "ERR wrong number of arguments for 'get' command"),
        ([b"GET", b"a", b"b"], "ERR wrong number of arguments for 'get' command"),
        ([b"client"], "ERR wrong number of arguments for 'client' command"),
        ([b"client", b"setname"], "ERR wrong number of arguments for 'client|setname' command"),
    ],
)
def test_what_is_not_found_is_told_in_redis_words(words, text):
    with pytest.raises(CommandError) as caught:
        TABLE.find(words)
    assert str(caught.value) == text


def test_an_error_line_stays_short_and_on_one_line():
    with pytest.raises(CommandError) as caught:
        TABLE.find([b"x\n" * 5000, *[b"y\r" * 5000] * 50])
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    assert "\r" not in str(caught.value)


def test_every_container_explains_itself():
    lines = TABLE.find([b"CLIENT", b"HELP"]).run(None, [])
    assert lines[0] == "CLIENT <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"
    assert "SETNAME connection-name" in lines


# --- adding -----------------------------------------------------------------------------------------------------------


def test_a_taken_name_is_refused_unless_it_says_replaces():
    mine = command("GET", Key(), flags=READ)(lambda _ctx, name: name)
    with pytest.raises(UsageError, match="exists already"):
        TABLE.extended([mine])
    mine = command("GET", Key(), flags=READ, replaces=True)(lambda _ctx, name: name)
    assert TABLE.extended([mine]).find([b"get", b"a"]) is mine
    assert TABLE.find([b"get", b"a"]) is not mine


def test_an_added_subcommand_stays_out_of_the_built_in_table():
    mine = command("CLIENT FROB", flags=LOCAL)(lambda _ctx: 1)
    assert TABLE.extended([mine]).find([b"client", b"frob"]) is mine
    with pytest.raises(CommandError):
        TABLE.find([b"client", b"frob"])


@pytest.mark.parametrize("name", ["get", "A B C", "", "Get"])
def test_names_are_one_or_two_words_in_upper_case(name):
    with pytest.raises(UsageError):
        command(name, flags=READ)(lambda _ctx: 1)


def test_tables_of_one_process_share_nothing():
    assert builtin_table().find([b"COMMAND"]) is not TABLE.find([b"COMMAND"])
    assert len(Table()) == 0


# --- arguments --------------------------------------------------------------------------------------------------------


@given(st.integers(INT64_MIN, INT64_MAX))
def test_integers_are_read_as_they_are_written(number):
    assert integer(b"%d" % number) == number


@pytest.mark.parametrize(
    "text", ["", "-", "+1", " 1", "1 ", "01", "-0", "1_0", "1.0", "1e3", "٣", "9" * 19, "-" + "9" * 19]
)
def test_what_only_python_takes_for_an_integer_is_refused(text):
    with pytest.raises(CommandError, match="not an integer"):
        integer(text.encode())


def test_words_are_converted_in_their_order():
    row = declared(Key(), Int("n"), OneOf("A", "B"))
    assert row.arity == 4
    assert given_to(row, b"k", b"5", b"b") == [b"k", 5, "B"]


def test_optional_many_and_pairs():
    assert given_to(declared(Key(), Optional(Int("n"), default=7)), b"k") == [b"k", 7]
    assert given_to(declared(Many(Key())), b"a", b"b") == [[b"a", b"b"]]
    assert given_to(declared(ManyPairs(Bytes("f"), Bytes("v"), "test")), b"a", b"1") == [[(b"a", b"1")]]
    with pytest.raises(CommandError, match="wrong number"):
        given_to(declared(ManyPairs(Bytes("f"), Bytes("v"), "test")), b"a", b"1", b"b")


def test_counted_keys():
    row = declared(NumKeys(), OneOf("LEFT"))
    assert given_to(row, b"2", b"a", b"b", b"left") == [[b"a", b"b"], "LEFT"]
    for words in ([b"3", b"a", b"b", b"left"], [b"2", b"a", b"b"], [b"2", b"a", b"b", b"left", b"more"]):
        with pytest.raises(CommandError, match="syntax"):
            given_to(row, *words)
    with pytest.raises(CommandError, match="numkeys"):
        given_to(row, b"0", b"a", b"left")


OPTIONS = Options(Flag("NX", "if"), Flag("XX", "if"), Value("EX", Int("s"), "time"), Value("PX", Int("ms"), "time"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("", {}),
        ("nx", {"NX": True}),
        ("EX 5 xx", {"EX": 5, "XX": True}),
        ("EX 5 EX 6", {"EX": 6}),
        ("NX XX", None),
        ("EX 5 PX 6", None),
        ("EX", None),
        ("FOO", None),
        ("EX x", None),
    ],
)
def test_options(line, found):
    row = declared(Key(), OPTIONS)
    if found is None:
        with pytest.raises(CommandError):
            given_to(row, b"k", *line.encode().split())
    else:
        assert given_to(row, b"k", *line.encode().split()) == [b"k", found]


@given(
    st.lists(st.sampled_from([b"2", b"a", b"LEFT", b"EX", b"5", b"NX", b"", b"-1", b"COUNT"]), min_size=1, max_size=9)
)
def test_no_command_line_gets_anything_but_a_command_error_out_of_parsing(words):
    """Handlers are not called: the contexts of keys are never looked at."""
    for row in TABLE.every():
        quiet = command("TEST", *row.args, flags=READ)(lambda _ctx, *values: values)
        if quiet.words_min <= len(words) + 1 <= quiet.words_max:
            try:
                quiet.run(None, [b"TEST", *words])
            except CommandError:
                continue


# --- what the table tells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "keys"),
    [
        ("GET a", [b"a"]),
        ("MSET a 1 b 2", [b"a", b"b"]),
        ("RENAME a b", [b"a", b"b"]),
        ("LMPOP 2 a b LEFT", [b"a", b"b"]),
        ("LMPOP x a b LEFT", []),
        ("OBJECT ENCODING a", [b"a"]),
        ("DEL a b c", [b"a", b"b", b"c"]),
        ("PING", []),
    ],
)
def test_the_keys_of_a_command_line(line, keys):
    argv = line.encode().split()
    assert TABLE.find(argv).keys(argv) == keys


def test_the_keys_of_a_cut_command_line_are_none():
    assert TABLE.get(b"RENAME").keys([b"RENAME"]) == []
    assert TABLE.get(b"LMPOP").keys([b"LMPOP"]) == []


def test_every_command_is_of_one_kind_and_described():
    for row in TABLE.every():
        kinds = [flag for flag in (READ, WRITE, LOCAL) if row.flags & flag]
        assert len(kinds) == 1, row.name
        assert row.summary, row.name
        assert row.categories(), row.name


def test_only_what_frees_is_allowed_on_a_full_disk():
    growing = {row.name for row in TABLE.every() if row.flags & WRITE and not row.flags & MAY_SHRINK}
    assert {"SET", "APPEND", "HSET", "RPUSH", "LINSERT", "LSET", "COPY", "INCR", "MSET"} <= growing
    assert not {"DEL", "UNLINK", "LPOP", "LTRIM", "HDEL", "FLUSHALL", "GETDEL", "EXPIRE", "RENAME"} & growing


def test_an_application_declares_its_command_as_the_built_in_ones_are(make_replica):
    @command("CAS", Key(String), Bytes("expected"), Bytes("value"), flags=WRITE | FAST)
    def cas(ctx, key, expected, value):
        """Set the key if it holds the expected value; answer whether it did."""
        if key.get() != expected:
            return 0
        key.set(value)
        return 1

    assert cas.summary.startswith("Set the key if")
    replica = make_replica(TABLE.extended([cas]))
    replica("SET", "a", "old")
    assert [replica("CAS", "a", "old", "new"), replica("CAS", "a", "old", "newer")] == [1, 0]
    assert replica("GET", "a") == b"new"
    assert str(replica("CAS", "a")) == "ERR wrong number of arguments for 'cas' command"


def test_the_page_of_commands_is_current():
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page == markdown(TABLE), "run: python -m raftdb.commands.docs > docs/commands.md"
