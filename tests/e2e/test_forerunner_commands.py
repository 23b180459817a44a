"""The commands by which people steered pyraft, as they typed them; the table of docs/coming-from-pyraft.md."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import pytest
import redis

from raftdb.storage import snapshot
from tests.e2e.server import Raftdb
from tests.sources import ROOT

pytestmark = pytest.mark.e2e

THIRTY = """
    info shutdown quit add_node del_node checkpoint getdump getlog
    get set del expire pexpire expireat pexpireat
    hgetall hset hget hdel hlen
    lpush rpush lpop rpop lrange lindex llen lset lrem ltrim
""".split()  # noqa: SIM905 (a table to be read)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Raftdb(tmp_path_factory.mktemp("forerunner")) as running:
        yield running


@pytest.fixture
def client(server):
    with redis.Redis(port=server.port, decode_responses=True) as client:
        client.flushall()
        yield client


def test_every_command_is_here_and_its_row_is_in_the_table(client):
    page = (ROOT / "docs" / "coming-from-pyraft.md").read_text(encoding="utf-8")
    assert len(set(THIRTY)) == 30
    assert set(THIRTY) <= {name.lower() for name in client.execute_command("COMMAND LIST")}
    assert [name for name in THIRTY if f"`{name.upper()}`" not in page] == []


def test_the_table_tells_the_truth(client):
    """The rows that say where raftdb answers otherwise than pyraft did."""
    run = client.execute_command
    assert run("HSET", "h", "a", 1, "b", 2) == 2
    assert run("HGET", "h", "none") is None
    assert run("HDEL", "h", "a", "b") == 2
    assert run("EXISTS", "h") == 0
    assert run("RPUSH", "l", "a", "b", "a") == 3
    assert run("LINDEX", "l", 9) is None
    assert run("LREM", "l", -1, "a") == 1
    run("LTRIM", "l", 1, 1)
    assert run("LRANGE", "l", 0, -1) == ["b"]
    assert run("LRANGE", "none", 0, -1) == []
    with pytest.raises(redis.ResponseError, match="no such key"):
        run("LSET", "none", 0, "x")
    assert (run("LPOP", "l"), run("LPOP", "l"), run("EXISTS", "l")) == ("b", None, 0)
    run("SET", "k", "v")
    assert (run("EXPIRE", "k", 100), run("EXPIRE", "none", 100)) == (1, 0)
    assert (run("EXPIREAT", "k", 4_000_000_000), run("EXPIRETIME", "k")) == (1, 4_000_000_000)
    assert (run("PEXPIREAT", "k", 1), run("DEL", "k")) == (1, 0)
    assert run("RPUSH", "l", "x") == 1
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        run("GET", "l")


def status(server) -> dict:
    """INFO json, as it comes over the wire: redis-py would take any INFO apart."""
    with redis.Redis(port=server.port) as client:
        client.response_callbacks.clear()
        return json.loads(client.execute_command("INFO", "json"))


def test_info_json(server):
    told = status(server)
    assert (told["nid"], told["state"], told["index"]) == (told["node_id"], "l", told["applied_index"])
    assert [(member["id"], member["addr"]) for member in told["members"]] == [(told["nid"], told["leader_addr"])]
    assert told["peers"] == {}
    assert told["last_checkpoint"] >= 0
    assert told["node_id"] == f"127.0.0.1:{server.port}"
    assert told["role"] == "leader"
    assert told["term"] >= 1
    assert {"commit_index", "applied_index", "last_index", "peers", "cluster_id"} <= set(told)


def test_getlog(client, server):
    client.set("colour", "red")
    client.hset("h", mapping={"f": "v"})
    last = status(server)["last_index"]
    everything = client.execute_command("GETLOG")
    assert [row[0] for row in everything] == list(range(everything[0][0], last + 1))
    assert [row[3] for row in everything[:2]] == ["noop", "commands"]
    index, term, stamp, kind, lines = client.execute_command("GETLOG", last - 1, last)[0]
    assert (index, kind, lines) == (last - 1, "commands", [["SET", "colour", "red"]])
    assert term >= 1
    assert stamp > 1_600_000_000_000
    assert [row[0] for row in client.execute_command("GETLOG", last)] == [last]
    assert client.execute_command("GETLOG", last + 1) == []
    with pytest.raises(redis.ResponseError, match="not an integer"):
        client.execute_command("GETLOG", "first")


def test_getdump(client):
    client.set("colour", "red")
    client.rpush("l", "a", "b")
    dump = client.execute_command("GETDUMP")
    assert "b'colour'" in dump
    assert "b'red'" in dump
    assert "b'l'" in dump


def test_checkpoint(client, server):
    client.set("colour", "red")
    run = client.execute_command
    assert run("CHECKPOINT") in (True, "OK")
    newest = run("RAFT.SNAPSHOT", "LIST")[0]
    name = newest["name"] if isinstance(newest, dict) else dict(zip(newest[::2], newest[1::2], strict=True))["name"]
    assert re.fullmatch(r"raft_127\.0\.0\.1:\d+_\d+_\d+\.dat", name)
    assert snapshot.check_file(server.data / "snapshots" / name).name == name
    for codec, words in (("msgpack", ()), ("msgpack", ("MSGPACK",)), ("pickle", ("PICKLE",))):
        assert run("CHECKPOINT", "mine.dat", *words) in (True, "OK")
        assert snapshot.read_header(server.data / "checkpoints" / "mine.dat").codec == codec
    for name in ("../out.dat", "/tmp/out.dat", "a/b", ".hidden"):
        with pytest.raises(redis.ResponseError, match="not a plain file name"):
            run("CHECKPOINT", name)
    assert not Path(server.directory / "out.dat").exists()
    with pytest.raises(redis.ResponseError, match="syntax error"):
        run("CHECKPOINT", "x.dat", "JSON")


def test_quit_in_telnet(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"set key value\r\nget key\r\nquit\r\n")
        received = b""
        while data := connection.recv(1024):
            received += data
    assert received == b"+OK\r\n$5\r\nvalue\r\n+OK\r\n"


def test_shutdown_stops_this_node_cleanly(tmp_path):
    with Raftdb(tmp_path) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(b"set key value\r\nshutdown\r\n")
            received = b""
            while data := connection.recv(1024):
                received += data
        assert received == b"+OK\r\n"
        assert server.process is not None
        assert server.process.wait(30) == 0
        server.start()
        with redis.Redis(port=server.port) as client:
            assert client.get("key") == b"value"
