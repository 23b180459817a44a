"""The connect surface: what clients send before their first command, and what operators ask of a node."""

from __future__ import annotations

import json

import pytest

from raftdb.commands import transactions
from raftdb.commands.machine import Request, Transaction, Watch
from raftdb.errors import CommandError
from raftdb.net.resp import encode
from raftdb.net.session import Session
from raftdb.types import NULL_ARRAY, OK, Encoded, Verbatim

from .node import FakeNode


@pytest.fixture
def node():
    return FakeNode()


@pytest.fixture
def session():
    return Session(7, "127.0.0.1:5000", "127.0.0.1:6379")


# --- HELLO, AUTH ------------------------------------------------------------------------------------------------------


def test_hello_is_a_map_in_resp3_and_a_flat_array_in_resp2(node, session):
    reply = node(session, "hello", 3)
    assert session.protocol == 3
    assert encode(reply, 3).startswith(b"%7\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.2.4\r\n")
    reply = node(session, "HELLO", 2)
    assert session.protocol == 2
    assert encode(reply, 2).startswith(b"*14\r\n$6\r\nserver\r\n")
    assert node(session, "HELLO")[b"proto"] == 2


def test_hello_tells_followers_apart(node, session):
    node.is_leader = False
    assert node(session, "HELLO", 3)[b"role"] == b"replica"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["4"], "NOPROTO unsupported protocol version"),
        (["x"], "ERR Protocol version is not an integer or out of range"),
        (["3", "FOO"], "ERR Syntax error in HELLO option 'FOO'"),
        (["3", "AUTH", "default"], "ERR Syntax error in HELLO option 'AUTH'"),
        (["3", "SETNAME", "a b"], "ERR Client names cannot contain spaces, newlines or special characters."),
        (["3", "AUTH", "nobody", "x"], "WRONGPASS invalid username-password pair or user is disabled."),
    ],
)
def test_a_hello_that_fails_changes_nothing(node, session, words, text):
    assert str(node(session, "HELLO", *words)) == text
    assert session.protocol == 2


def test_a_stranger_must_authenticate_with_hello(node, session):
    node.password = b"secret"
    session.authenticated = False
    assert str(node(session, "HELLO", 3)).startswith("NOAUTH HELLO must be called")
    assert not session.authenticated
    assert session.protocol == 2
    assert str(node(session, "HELLO", 3, "AUTH", "default", "wrong")).startswith("WRONGPASS")
    assert node(session, "HELLO", 3, "AUTH", "default", "secret", "SETNAME", "me")[b"id"] == 7
    assert session.authenticated
    assert session.name == b"me"


def test_auth(node, session):
    assert str(node(session, "AUTH", "x")).startswith("ERR AUTH <password> called without any password configured")
    assert node(session, "AUTH", "default", "anything") == OK
    node.password = b"secret"
    session.authenticated = False
    for words in (["wrong"], ["default", "wrong"], ["other", "secret"]):
        assert str(node(session, "AUTH", *words)).startswith("WRONGPASS")
        assert not session.authenticated
    assert node(session, "AUTH", "secret") == OK
    assert session.authenticated
    assert "wrong number" in str(node(session, "AUTH", "a", "b", "c"))


def test_reset_forgets_everything(node, session):
    node.password = b"secret"
    for line in ("HELLO 3", "SELECT 5", "CLIENT SETNAME me", "MULTI", "READONLY", "CLIENT REPLY OFF"):
        node(session, *line.split())
    assert node(session, "RESET") == "RESET"
    assert (session.protocol, session.db, session.name, session.in_multi) == (2, 0, b"", False)
    assert (session.readonly, session.reply_mode, session.authenticated) == (False, "on", False)


def test_small_talk(node, session):
    assert encode(node(session, "PING"), 2) == b"+PONG\r\n"
    assert node(session, "PING", "x") == b"x"
    assert node(session, "ECHO", b"\x00\xff") == b"\x00\xff"
    assert node(session, "QUIT") == OK
    assert node(session, "TIME") == [b"1700000000", b"123456"]


@pytest.mark.parametrize("index", ["0", "15"])
def test_select(node, session, index):
    assert node(session, "SELECT", index) == OK
    assert session.db == int(index)


@pytest.mark.parametrize(("index", "text"), [("16", "DB index"), ("-1", "DB index"), ("a", "not an integer")])
def test_select_of_what_is_not_there(node, session, index, text):
    assert text in str(node(session, "SELECT", index))
    assert session.db == 0


# --- CLIENT -----------------------------------------------------------------------------------------------------------


def test_what_redis_py_sends_first(node, session):
    """redis-py 8: HELLO, MAINT_NOTIFICATIONS, SETINFO twice."""
    assert isinstance(node(session, "HELLO", 3), dict)
    moving = ["CLIENT", "MAINT_NOTIFICATIONS", "ON", "moving-endpoint-type", "internal-ip"]
    assert node(session, *moving) == OK
    assert session.maintenance
    assert node(session, "CLIENT", "SETINFO", "LIB-NAME", "redis-py") == OK
    assert node(session, "CLIENT", "SETINFO", "lib-ver", "8.1.0") == OK
    assert (session.lib_name, session.lib_version) == (b"redis-py", b"8.1.0")
    assert "Unrecognized option" in str(node(session, "CLIENT", "SETINFO", "LIB-X", "1"))
    assert "cannot contain" in str(node(session, "CLIENT", "SETINFO", "LIB-NAME", "a b"))


def test_client_list_is_one_line_per_client_whatever_its_name_is(node, session):
    other = Session(9, "127.0.0.1:5001", "127.0.0.1:6379")
    node.all_sessions = [other, session]
    assert "cannot contain" in str(node(session, "CLIENT", "SETNAME", b"a\nid=1"))
    assert node(session, "CLIENT", "SETNAME", "me") == OK
    lines = node(session, "CLIENT", "LIST").text.splitlines()
    assert [line.split()[0] for line in lines] == ["id=7", "id=9"]
    assert " name=me " in lines[0]
    assert "cannot be longer" in str(node(session, "CLIENT", "SETNAME", b"x" * 5_000))
    assert len(node(session, "CLIENT", "LIST", "ID", "9", "12").text.splitlines()) == 1
    assert node(session, "CLIENT", "LIST", "TYPE", "pubsub").text == ""
    assert node(session, "CLIENT", "INFO").text == lines[0] + "\n"
    for words in (["ID", "x"], ["TYPE", "x"], ["FOO"]):
        assert isinstance(node(session, "CLIENT", "LIST", *words), CommandError)


def test_client_kill(node, session):
    other = Session(9, "127.0.0.1:5001", "127.0.0.1:6379")
    node.all_sessions = [other, session]
    assert node(session, "CLIENT", "KILL", "127.0.0.1:5001") == OK
    assert str(node(session, "CLIENT", "KILL", "127.0.0.1:1")) == "ERR No such client"
    assert node(session, "CLIENT", "KILL", "ID", "7") == 0
    assert node(session, "CLIENT", "KILL", "ID", "7", "SKIPME", "no") == 1
    assert node(session, "CLIENT", "KILL", "LADDR", "127.0.0.1:6379") == 1
    assert [call for call in node.asked if call[0] == "kill_session"] == [("kill_session", n) for n in (9, 7, 9)]
    for words in (["ID", "0"], ["ID"], ["SKIPME", "maybe"], ["USER", "x"], ["TYPE", "x"], ["A", "b", "c"]):
        assert isinstance(node(session, "CLIENT", "KILL", *words), CommandError)


def test_client_reply_silences(node, session):
    assert node(session, "CLIENT", "REPLY", "off") == Encoded(b"")
    assert session.reply_mode == "off"
    assert node(session, "CLIENT", "REPLY", "ON") == OK
    assert node(session, "CLIENT", "REPLY", "SKIP") == Encoded(b"")
    assert "syntax" in str(node(session, "CLIENT", "REPLY", "x"))


def test_other_client_commands(node, session):
    assert node(session, "CLIENT", "ID") == 7
    assert node(session, "CLIENT", "GETNAME") is None
    assert node(session, "CLIENT", "NO-EVICT", "on") == OK
    assert node(session, "CLIENT", "NO-TOUCH", "on") == OK
    assert node(session, "CLIENT", "GETREDIR") == -1
    assert node(session, "CLIENT", "TRACKINGINFO")[b"flags"] == [b"off"]
    assert node(session, "CLIENT", "PAUSE", "100", "WRITE") == OK
    assert node(session, "CLIENT", "UNPAUSE") == OK
    assert node(session, "CLIENT", "UNBLOCK", "9", "ERROR") == 1
    now_ms = 1_700_000_000_123
    assert ("pause_clients", now_ms + 100, True) in node.asked
    assert str(node(session, "CLIENT", "PAUSE", "x")) == "ERR timeout is not an integer or out of range"
    assert str(node(session, "CLIENT", "PAUSE", "-1")) == "ERR timeout is negative"


# --- the node ---------------------------------------------------------------------------------------------------------


def test_info_has_what_clients_look_for(node, session):
    text = node(session, "INFO").text
    for line in (
        "redis_version:7.2.4",
        "redis_mode:standalone",
        "loading:0",
        "role:master",
        "maxmemory_policy:noeviction",
    ):
        assert f"\r\n{line}\r\n" in text
    for line in ("server_name:raftdb", "connected_clients:3", "db0:keys=5,expires=2,avg_ttl=0", "raft_term:7", "x:1"):
        assert f"\r\n{line}\r\n" in text
    assert "slave0:ip=10.0.0.2,port=6379,state=online,offset=41,lag=0" in text
    assert "# Sentinel" not in text
    assert text.startswith("# Server\r\n")


def test_info_of_a_follower_says_slave(node, session):
    node.is_leader = False
    text = node(session, "INFO", "replication").text
    assert "role:slave\r\nmaster_host:10.0.0.1\r\nmaster_port:6379\r\nmaster_link_status:up\r\n" in text
    assert "# Server" not in text


def test_info_json_is_json(node, session):
    """With the names of pyraft: the others by id, states as letters."""
    told = json.loads(node(session, "INFO", "json"))
    assert (told["nid"], told["state"], told["term"], told["index"]) == ("n1", "l", 7, 42)
    assert told["peers"].keys() == {"n2", "n3"}
    assert {"state": "f", "addr": "10.0.0.2:6379", "term": 7, "index": 41}.items() <= told["peers"]["n2"].items()
    assert {"state": "c", "index": 0}.items() <= told["peers"]["n3"].items()
    assert [row["id"] for row in told["members"]] == ["n1", "n2", "n3"]


def test_role(node, session):
    assert node(session, "ROLE") == [b"master", 42, [[b"10.0.0.2", b"6379", b"41"]]]
    node.is_leader = False
    assert node(session, "ROLE") == [b"slave", b"10.0.0.1", 6379, b"connected", 42]


def test_config(node, session):
    assert node(session, "CONFIG", "GET", "sav*", "maxmemory") == {b"maxmemory": b"0", b"save": b""}
    assert node(session, "CONFIG", "GET", "nothing") == {}
    assert node(session, "CONFIG", "SET", "MaxMemory", "1", "save", "x") == OK
    assert node.settings["maxmemory"] == "1"
    unknown = node(session, "CONFIG", "SET", "maxmemory", "2", "foo", "1")
    assert str(unknown) == "ERR Unknown option or number of arguments for CONFIG SET - 'foo'"
    assert node.settings["maxmemory"] == "1"
    assert "duplicate parameter" in str(node(session, "CONFIG", "SET", "save", "1", "save", "2"))
    assert "wrong number" in str(node(session, "CONFIG", "SET", "save"))


def test_command_introspection(node, session):
    rows = node(session, "COMMAND")
    assert len(rows) == node(session, "COMMAND", "COUNT") > 100
    get, missing = node(session, "COMMAND", "INFO", "get", "nope")
    assert missing is None
    assert get[:6] == [b"get", 2, ["readonly", "fast"], 1, 1, 1]
    assert encode(get, 3).startswith(
        b"*10\r\n$3\r\nget\r\n:2\r\n~2\r\n+readonly\r\n+fast\r\n:1\r\n:1\r\n:1\r\n~3\r\n+@read"
    )
    docs = node(session, "COMMAND", "DOCS", "set", "client|list")
    assert set(docs) == {b"set", b"client|list"}
    assert docs[b"set"][b"arguments"][0] == {b"name": b"key", b"type": b"key", b"key_spec_index": 0}
    assert len(node(session, "COMMAND", "DOCS")) == len(rows)
    for protocol in (2, 3):
        encode(node(session, "COMMAND", "DOCS"), protocol)
        encode(rows, protocol)
    assert b"lpush" in node(session, "COMMAND", "LIST", "FILTERBY", "PATTERN", "*push")
    assert b"get" in node(session, "COMMAND", "LIST", "FILTERBY", "ACLCAT", "string")
    assert node(session, "COMMAND", "LIST", "FILTERBY", "MODULE", "x") == []
    assert node(session, "COMMAND", "GETKEYS", "MSET", "a", "1", "b", "2") == [b"a", b"b"]
    assert str(node(session, "COMMAND", "GETKEYS", "nope", "a")) == "ERR Invalid command specified"
    assert "no key arguments" in str(node(session, "COMMAND", "GETKEYS", "PING", "a"))


def test_persistence_commands(node, session):
    assert node(session, "SAVE") == OK
    assert node(session, "BGSAVE") == "Background saving started"
    assert node(session, "LASTSAVE") == 1_700_000_000
    assert node(session, "CHECKPOINT", "name", "pickle") == OK
    assert ("checkpoint", "name", "pickle") in node.asked
    assert isinstance(node(session, "CHECKPOINT", "name", "yaml"), CommandError)
    assert isinstance(node(session, "CHECKPOINT", b"\xff"), CommandError)
    assert node(session, "SHUTDOWN", "NOSAVE") == Encoded(b"")
    assert ("shutdown", False, False) in node.asked
    assert "syntax" in str(node(session, "SHUTDOWN", "NOSAVE", "SAVE"))


def test_wait_is_about_the_last_write_of_this_connection(node, session):
    session.written_index = 41
    assert node(session, "WAIT", "2", "100") == 2
    assert ("wait_replicas", 41, 2, 100) in node.asked
    assert str(node(session, "WAIT", "2", "-1")) == "ERR timeout is negative"


def test_operations(node, session):
    assert node(session, "SLOWLOG", "GET")[0][3] == [b"KEYS", b"*"]
    assert node(session, "SLOWLOG", "LEN") == 1
    assert "greater than or equal to -1" in str(node(session, "SLOWLOG", "GET", "-2"))
    assert node(session, "LATENCY", "LATEST") == [[b"fsync", 1_700_000_000, 5, 90]]
    assert node(session, "LATENCY", "HISTOGRAM") == {}
    assert node(session, "MODULE", "LIST") == []
    assert node(session, "ACL", "WHOAMI") == b"default"
    assert b"keyspace" in node(session, "ACL", "CAT")
    assert b"hget" in node(session, "ACL", "CAT", "hash")
    assert "Unknown category" in str(node(session, "ACL", "CAT", "foo"))
    assert "cluster support disabled" in str(node(session, "CLUSTER", "INFO"))
    assert isinstance(node(session, "LATENCY", "DOCTOR"), Verbatim)


@pytest.mark.parametrize(("text", "span_s"), [("0.5", 0.5), ("-1", 0.0), ("nan", 0.0), ("x", 0.0), ("1e9", 3600.0)])
def test_debug_sleep_is_bounded(node, session, text, span_s):
    assert node(session, "DEBUG", "SLEEP", text) == OK
    assert ("sleep", span_s) in node.asked


def test_the_group(node, session):
    assert [(row[b"id"], row[b"match"]) for row in node(session, "RAFT.INFO")[b"peers"][:2]] == [
        (b"n1", 42),
        (b"n2", 41),
    ]
    assert node(session, "RAFT.LEADER") == [b"10.0.0.1", 6379]
    assert node(session, "RAFT.NODES") == [{b"id": b"n1", b"voter": True}]
    for line in ("ADD_NODE n2 h:1", "RAFT.ADD n2 h:1", "RAFT.ADD-LEARNER n2 h:1", "DEL_NODE n2", "RAFT.TRANSFER"):
        assert node(session, *line.split()) == OK
    steps = [call for call in node.asked if call[0] in ("add_node", "remove_node", "transfer_leadership")]
    assert steps == [
        ("add_node", "n2", "h:1", True),
        ("add_node", "n2", "h:1", True),
        ("add_node", "n2", "h:1", False),
        ("remove_node", "n2"),
        ("transfer_leadership", None),
    ]
    assert isinstance(node(session, "ADD_NODE", b"\xff", "h:1"), CommandError)
    assert node(session, "RAFT.BARRIER") == 42
    assert node(session, "GETLOG", "1", "2")[0][4] == [[b"SET", b"a", b"1"]]
    assert ("log_entries", 1, 2) in node.asked
    assert node(session, "GETDUMP") == b"{}"
    assert node(session, "RAFT.SNAPSHOT", "LIST") == [{b"name": b"a.dat", b"index": 42}]


def test_consistency_is_chosen_per_connection(node, session):
    assert node(session, "RAFT.CONSISTENCY") == [b"linearizable", 0]
    assert node(session, "RAFT.CONSISTENCY", "bounded", "500") == OK
    assert (session.consistency, session.bounded_ms) == ("bounded", 500)
    assert isinstance(node(session, "RAFT.CONSISTENCY", "bounded"), CommandError)
    assert isinstance(node(session, "RAFT.CONSISTENCY", "lease", "5"), CommandError)
    assert isinstance(node(session, "RAFT.CONSISTENCY", "wrong"), CommandError)


def test_every_reply_can_be_encoded(node, session):
    node.all_sessions = [session]
    for row in node.machine.table.every():
        if row.words_min == row.words_max == row.words and row.flags & 4:
            for protocol in (2, 3):
                encode(node(session, *row.name.split()), protocol)


# --- MULTI ------------------------------------------------------------------------------------------------------------


def queue(node, session, *lines):
    for line in lines:
        session.enqueue(line.encode().split())


def test_multi_and_its_mistakes(node, session):
    assert str(node(session, "EXEC")) == "ERR EXEC without MULTI"
    assert str(node(session, "DISCARD")) == "ERR DISCARD without MULTI"
    assert node(session, "MULTI") == OK
    assert str(node(session, "MULTI")) == "ERR MULTI calls can not be nested"
    assert str(node(session, "WATCH", "a")) == "ERR WATCH inside MULTI is not allowed"
    session.watch(0, b"a", 5)
    assert node(session, "DISCARD") == OK
    assert not session.watches
    assert not session.in_multi


def test_a_plan_holds_what_belongs_into_the_log(node, session):
    node(session, "MULTI")
    session.db = 3
    session.watch(3, b"w", 9)
    queue(node, session, "SET a 1", "PING", "SELECT 5", "GET b", "SELECT 77", "TIME", "CLIENT ID")
    plan = transactions.plan_exec(node.machine.table, session)
    requests = [(request.db, request.argv) for request in plan.transaction.requests]
    assert requests == [(3, [b"SET", b"a", b"1"]), (5, [b"GET", b"b"]), (5, [b"TIME"])]
    assert plan.transaction.watches == [Watch(3, b"w", 9)]
    assert not session.in_multi
    assert not session.watches
    run_local = transactions.local_runner(node.machine.table, node, session)
    merged = plan.merge([OK, b"b", [b"1", b"2"]], run_local, session)
    assert [encode(reply, 2) for reply in merged] == [
        b"+OK\r\n",
        b"+PONG\r\n",
        b"+OK\r\n",
        b"$1\r\nb\r\n",
        b"-ERR DB index is out of range\r\n",
        b"*2\r\n$1\r\n1\r\n$1\r\n2\r\n",
        b":7\r\n",
    ]
    assert session.db == 5


def test_an_aborted_plan_changes_nothing(node, session):
    node(session, "MULTI")
    queue(node, session, "SELECT 5", "PING")
    plan = transactions.plan_exec(node.machine.table, session)
    assert plan.merge(NULL_ARRAY, transactions.local_runner(node.machine.table, node, session), session) is NULL_ARRAY
    assert session.db == 0
    assert plan.is_empty


def test_a_command_that_could_not_be_queued_spoils_the_transaction(node, session):
    node(session, "MULTI")
    queue(node, session, "SET a 1")
    session.refuse_exec()
    with pytest.raises(CommandError, match=r"^EXECABORT Transaction discarded because of previous errors\.$"):
        transactions.plan_exec(node.machine.table, session)
    assert not session.in_multi


def test_what_is_queued(node):
    table = node.machine.table
    queued = {row.name for row in table.every() if transactions.is_queued(row)}
    assert {"GET", "PING", "UNWATCH", "SELECT", "CLIENT LIST"} <= queued
    assert not {"MULTI", "EXEC", "DISCARD", "WATCH", "QUIT", "RESET"} & queued
    assert transactions.refused_in_multi(table.find([b"SAVE"])) is not None
    assert transactions.refused_in_multi(table.find([b"GET", b"a"])) is None


def test_a_request_looks_like_what_the_payload_holds():
    assert Request(0, [b"GET", b"a"]) == Request(0, [b"GET", b"a"], None)
    assert Transaction(0, [], []).requests == []
