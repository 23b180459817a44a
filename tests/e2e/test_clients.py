"""Real clients with their defaults against a real node: redis-py, node-redis, ioredis, redis-cli, telnet."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest
import redis
import redis.asyncio

from tests.e2e.server import Raftdb

pytestmark = pytest.mark.e2e

CLIENTS = Path(__file__).parent / "clients"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Raftdb(tmp_path_factory.mktemp("clients")) as running:
        yield running


@pytest.fixture(autouse=True)
def empty(server):
    redis.Redis(port=server.port).flushall()


# --- redis-py -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [None, 2, 3])
def test_redis_py(server, protocol):
    options = {} if protocol is None else {"protocol": protocol}
    with redis.Redis(port=server.port, **options) as client:
        assert client.ping()
        assert client.set("k", b"\x00\xff\r\n")
        assert client.get("k") == b"\x00\xff\r\n"
        assert client.get("none") is None
        assert client.mset({f"k{n}": n for n in range(100)})
        assert client.mget([f"k{n}" for n in range(100)]) == [b"%d" % n for n in range(100)]
        assert client.set("t", "x", ex=100, nx=True)
        assert client.set("t", "y", nx=True) is None
        assert 90 < client.ttl("t") <= 100
        assert sorted(client.scan_iter("k1*", count=10)) == sorted([b"k1", *(b"k%d" % n for n in range(10, 20))])
        assert client.info("server")["redis_version"] == "7.2.4"
        with pytest.raises(redis.ResponseError, match="not an integer"):
            client.incr("k")
        assert client.delete("k", "k1", "none") == 2


def test_redis_py_pipelines(server):
    client = redis.Redis(port=server.port)
    with client.pipeline() as pipe:
        pipe.set("n", 1).incr("n").get("n").incr("n")
        assert pipe.execute() == [True, 2, b"2", 3]
    with client.pipeline(transaction=False) as pipe:
        for n in range(1_000):
            pipe.set(f"p{n}", n).get(f"p{n}")
        assert pipe.execute()[1::2] == [b"%d" % n for n in range(1_000)]


def test_redis_py_watch(server):
    client, other = redis.Redis(port=server.port), redis.Redis(port=server.port)
    with client.pipeline() as pipe:
        pipe.watch("w")
        other.set("w", "changed")
        pipe.multi()
        pipe.set("w", "mine")
        with pytest.raises(redis.WatchError):
            pipe.execute()
    assert client.get("w") == b"changed"

    def increment(pipe):
        count = int(pipe.get("count") or 0)
        pipe.multi()
        pipe.set("count", count + 1)

    assert client.transaction(increment, "count") == [True]
    assert client.get("count") == b"1"


def test_redis_py_hashes_and_lists(server):
    client = redis.Redis(port=server.port)
    assert client.hset("h", mapping={"a": 1, "b": b"\x00"}) == 2
    assert client.hgetall("h") == {b"a": b"1", b"b": b"\x00"}
    assert client.rpush("l", *range(10)) == 10
    assert client.lrange("l", -3, -1) == [b"7", b"8", b"9"]
    assert client.lpop("l") == b"0"
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.get("h")


def test_redis_py_asyncio(server):
    async def everyday():
        async with redis.asyncio.Redis(port=server.port) as client:
            assert await client.ping()
            await client.set("k", "v")
            assert await client.get("k") == b"v"
            counts = await asyncio.gather(*(client.incr("n") for _ in range(100)))
            assert sorted(counts) == list(range(1, 101))
            async with client.pipeline() as pipe:
                assert await pipe.set("a", 1).incr("a").execute() == [True, 2]

    asyncio.run(everyday())


# --- npm clients ----------------------------------------------------------------------------------------------------

EVERYDAY = {
    "ping": "PONG",
    "set": "OK",
    "get": "grün",
    "missing": None,
    "binary": 0,
    "counts": list(range(1, 101)),
    "many": ["1", "2", None],
    "ttl": True,
    "multi": ["OK", 2, "2"],
    "error": "ERR value is not an integer or out of range",
    "hash": {"f": "1", "g": "2"},
    "list": ["a", "b", "c"],
    "scanned": 9,
    "deleted": 2,
}


@pytest.mark.parametrize("package", ["redis", "ioredis"])
def test_npm_client(server, require, package):
    node = require("node")
    if not (CLIENTS / "node_modules" / package).exists():
        pytest.skip(f"the npm package {package} is not installed: npm install --prefix {CLIENTS.name} (see .ci/run)")
    script = [node, "everyday.mjs", package, str(server.port)]
    ran = subprocess.run(script, cwd=CLIENTS, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == EVERYDAY


# --- redis-cli ------------------------------------------------------------------------------------------------------


def cli(server, *words: str, stdin: bytes | None = None) -> str:
    ran = subprocess.run(["redis-cli", "-p", str(server.port), *words], input=stdin, capture_output=True, timeout=60)
    return ran.stdout.decode()


def test_redis_cli_one_shot(server, require):
    require("redis-cli")
    assert cli(server, "set", "colour", "dark red") == "OK\n"
    assert cli(server, "get", "colour") == "dark red\n"
    assert cli(server, "--no-raw", "get", "colour") == '"dark red"\n'
    assert cli(server, "-3", "--no-raw", "get", "none") == "(nil)\n"
    assert cli(server, "get") == "ERR wrong number of arguments for 'get' command\n\n"
    assert "redis_version:7.2.4" in cli(server, "info", "server")
    assert cli(server, "-n", "3", "set", "k", "v") == "OK\n"
    assert cli(server, "-n", "3", "dbsize") == "1\n"
    assert cli(server, "--scan", "--pattern", "col*") == "colour\n"
    assert cli(server, "-x", "set", "from:stdin", stdin=b"line\n") == "OK\n"
    assert "PONG" in cli(server, stdin=b"ping\n")


def test_redis_cli_pipe(server, require):
    require("redis-cli")
    stream = b"".join(b"*3\r\n$3\r\nSET\r\n$6\r\nk%05d\r\n$1\r\nv\r\n" % n for n in range(5_000))
    assert "errors: 0, replies: 5000" in cli(server, "--pipe", stdin=stream)
    assert cli(server, "dbsize") == "5000\n"


@pytest.mark.parametrize("mode", [("--bigkeys",), ("--memkeys",), ("--latency", "--raw", "-i", "1")])
def test_redis_cli_modes_come_to_an_end(server, require, mode):
    require("redis-cli")
    cli(server, "set", "k", "v")
    ran = subprocess.run(["redis-cli", "-p", str(server.port), *mode], capture_output=True, timeout=30, check=False)
    assert ran.returncode == 0, ran.stderr
    assert b"ERR" not in ran.stdout


class Terminal:
    """A program on a pseudo terminal, as a person sees it."""

    def __init__(self, argv: list[str]) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm")
            for number in (signal.SIGINT, signal.SIGHUP):  # nohup, and a shell's background, have them ignored
                signal.signal(number, signal.SIG_DFL)
            os.execvp(argv[0], argv)
        fcntl.ioctl(self.descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._raw = b""
        self.screen = ""

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def forget(self) -> None:
        """What has shown up until now does not count any more."""
        self._raw, self.screen = b"", ""

    def wait_for(self, pattern: str, timeout_s: float = 10.0) -> str:
        """Reads until the pattern shows; escape sequences are left out of the screen."""
        end = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.screen)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.descriptor], [], [], left)[0]:
                raise AssertionError(f"{pattern!r} did not show up in {self.screen!r}")
            self._raw += os.read(self.descriptor, 65536)  # (one read may end within a sequence)
            self.screen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._raw.decode(errors="replace"))
        return found[0]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)
        os.waitpid(self.pid, 0)


def test_redis_cli_shows_hints_from_command_docs(server, require):
    """Interactive redis-cli asks COMMAND DOCS once and completes what is typed with the arguments that are missing."""
    require("redis-cli")
    terminal = Terminal(["redis-cli", "-p", str(server.port)])
    try:
        terminal.wait_for(rf"127\.0\.0\.1:{server.port}> ")
        terminal.type("setrange ")
        terminal.wait_for("key offset value")
        terminal.type("k 0 abc\r")
        # What is typed between the reply and the next prompt is thrown away: entering raw mode flushes the terminal.
        terminal.wait_for(rf"\(integer\) 3\s+127\.0\.0\.1:{server.port}> ")
        terminal.type("help setrange\r")
        terminal.wait_for("SETRANGE key offset value")
        terminal.type("quit\r")
    finally:
        terminal.close()


# --- a person with telnet -------------------------------------------------------------------------------------------


def test_inline_commands(server):
    """Lines as telnet sends them, one character at a time as well, quotes included."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        reader = connection.makefile("rb")
        connection.sendall(b"PING\r\n")
        assert reader.readline() == b"+PONG\r\n"
        connection.sendall(b'set greeting "hello\\x20world\\n"\n\r\n')
        assert reader.readline() == b"+OK\r\n"
        for byte in b"GET greeting\r\n":
            connection.sendall(bytes([byte]))
        assert reader.readline() + reader.readline() + reader.readline() == b"$12\r\nhello world\n\r\n"
        connection.sendall(b'set "unbalanced\r\n')
        assert reader.readline() == b"-ERR Protocol error: unbalanced quotes in request\r\n"
        assert reader.read() == b""
