"""Hostile and odd clients of a whole node: bounded memory, no traceback, and the other clients do not notice.

What each mistake is answered with stands in tests/net; here a `raftdb serve` process bears all of it, its anonymous
memory is looked at, and a client beside it counts what it was answered.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from raftdb.commands.context import REPLY_TOO_LARGE
from raftdb.net.resp import encode
from tests.e2e.processes import wait_for
from tests.e2e.server import Raftdb

pytestmark = pytest.mark.e2e

MIB = 1024 * 1024
WAIT_S = 60.0
#: Anonymous memory that a bad client may cost for a moment, above what the node had.
SMALL_BYTES = 24 * MIB


def wire(*words: bytes) -> bytes:
    return encode(list(words))


class Watched:
    """A node, its memory, and a well-behaved client that never stops asking."""

    def __init__(self, server: Raftdb) -> None:
        self.server = server
        self.db = redis.Redis(port=server.port, socket_timeout=WAIT_S)
        self.asked = 0
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        """One write and one read, again and again, each answered with what it must be."""
        try:
            with redis.Redis(port=self.server.port, socket_timeout=WAIT_S, retry=None) as db:
                for number in itertools.count():
                    if self._stop.is_set():
                        return
                    assert db.set("friend", number)
                    assert db.get("friend") == b"%d" % number
                    self.asked = number
        except BaseException as error:
            self._errors.append(error)

    def rss_anon(self) -> int:
        """Bytes of memory that are no file's."""
        status = Path(f"/proc/{self.server.pid}/status").read_text()
        return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))

    def served_on(self) -> None:
        """The friend gets ten more answers; nothing has gone wrong for it, nor in the node."""
        wanted = self.asked + 10
        wait_for("the other client to be served", lambda: self._errors or self.asked >= wanted, WAIT_S)
        assert self._errors == []
        assert "Traceback" not in self.server.output

    def connect(self, receive_bytes: int = 0) -> socket.socket:
        sock = socket.socket()
        if receive_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.settimeout(WAIT_S)
        sock.connect(("127.0.0.1", self.server.port))
        return sock

    def clients(self) -> int:
        return int(self.db.info("clients")["connected_clients"])

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self.db.close()
        assert self._errors == []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raftdb]:
    with Raftdb(tmp_path_factory.mktemp("hostile") / "n1", "--min-free", "0") as node:
        yield node
        assert node.stop() == 0
        assert "Traceback" not in node.output


@pytest.fixture
def node(server: Raftdb) -> Iterator[Watched]:
    watched = Watched(server)
    watched.served_on()
    yield watched
    watched.served_on()
    watched.close()


def rest(sock: socket.socket) -> bytes:
    """Everything until the node closes."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65_536):
            received += data
    return bytes(received)


BAD_INPUT = {
    "malformed": b"*2\r\n$3\r\nGET\r\n:7\r\n",
    "huge count": b"*2000000000\r\n",
    "huge length": b"*2\r\n$3\r\nGET\r\n$9999999999\r\n",
    "*-1": b"*-1\r\n",
    "$-5": b"*2\r\n$3\r\nGET\r\n$-5\r\n",
    "1_000": b"*1_000\r\n$4\r\nPING\r\n",
    "length 1_0": b"*1\r\n$1_0\r\n",
    "5,000 digits": b"*" + b"9" * 5_000 + b"\r\n",
    "5,000 digits of a length": b"*1\r\n$" + b"9" * 5_000 + b"\r\n",
    "inline over 64 KiB": b"x" * 70_000,
    "binary noise": bytes(range(256)) * 1_000,
    "HTTP POST": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nFLUSHALL\r\n",
    "HTTP GET": b"GET / HTTP/1.1\r\nHost: x\r\n\r\nFLUSHALL\r\n",
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_a_protocol_error_and_costs_nothing(node: Watched, name: str) -> None:
    before = node.rss_anon()
    for _ in range(20):
        with node.connect() as sock:
            with contextlib.suppress(ConnectionError):
                sock.sendall(BAD_INPUT[name])
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
            received = rest(sock)
            assert received.startswith(b"-ERR"), received[:100]
            assert len(received) < 1_000
    assert node.db.get("friend") is not None  # nothing behind the mistake was executed
    assert node.rss_anon() - before < SMALL_BYTES


def test_a_promise_of_the_largest_command_reserves_nothing(node: Watched) -> None:
    before = node.rss_anon()
    with contextlib.ExitStack() as stack:
        for _ in range(50):  # counted as if all of it had come: 64 of them would be the limit of all clients together
            stack.enter_context(node.connect()).sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$16777216\r\nx")
        wait_for("all to be there", lambda: node.clients() >= 50)
        assert node.rss_anon() - before < SMALL_BYTES


def test_clients_that_never_read_cost_a_bounded_part_of_what_they_ask_for(node: Watched) -> None:
    """Each of twenty asks for 1,000 x 1 MiB; the node holds a few of them, and the others are served."""
    node.db.set("big", b"b" * MIB)
    before = node.rss_anon()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(node.connect(4_096)) for _ in range(20)]
        for sock in socks:
            sock.sendall(wire(b"GET", b"big") * 1_000)
        node.served_on()
        node.served_on()
        assert node.rss_anon() - before < 20 * 4 * MIB + SMALL_BYTES
        assert node.clients() >= 20  # they are not closed for it: they may read later
        assert socks[0].recv(10) == b"$1048576\r\n"
    wait_for("them to be gone", lambda: node.clients() <= 3)


def test_fifty_clients_that_ask_for_large_replies_at_once(node: Watched) -> None:
    """5 GiB of replies in all: a few are built at a time; what is refused costs what it held for a moment."""
    for number in range(8):
        node.db.set(f"large{number}", b"%d" % number * (8 * MIB))
    names = [b"large%d" % (number % 8) for number in range(15)]  # 120 MiB
    before = node.rss_anon()
    most = 0
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(node.connect()) for _ in range(50)]
        for sock in socks[:45]:
            sock.sendall(wire(b"MGET", *names))
        for sock in socks[45:]:
            sock.sendall(wire(b"MGET", *names * 3))  # 360 MiB: more than any reply may have
        left = dict.fromkeys(socks[:45], len(b"*15\r\n") + 15 * (len(b"$8388608\r\n\r\n") + 8 * MIB))
        left.update(dict.fromkeys(socks[45:], len(f"-{REPLY_TOO_LARGE}\r\n")))
        ready = selectors.DefaultSelector()
        for sock in socks:
            ready.register(sock, selectors.EVENT_READ)
        while left:
            for key, _ in ready.select(WAIT_S):
                sock = next(each for each in left if each is key.fileobj)
                received = len(sock.recv(MIB))
                assert received, "closed"
                left[sock] -= received
                if not left[sock]:
                    ready.unregister(sock)
                    del left[sock]
                    most = max(most, node.rss_anon() - before)
    # two workers with values and reply each, and what was unsent when they began
    assert most < 2 * 2 * 120 * MIB + 256 * MIB + 2 * 120 * MIB, f"{most / MIB:.0f} MiB"
    print(f"at most {most / MIB:.0f} MiB more than before")


def test_clients_that_send_a_byte_at_a_time_keep_nobody_waiting(node: Watched) -> None:
    before = node.rss_anon()
    request = wire(b"SET", b"slow", b"client")
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(node.connect()) for _ in range(50)]
        for byte in request:
            for sock in socks:
                sock.sendall(bytes([byte]))
            node.served_on()  # between any two bytes of theirs
        for sock in socks:
            assert sock.recv(100) == b"+OK\r\n"
    assert node.rss_anon() - before < SMALL_BYTES


def test_clients_that_close_in_the_middle_of_everything(node: Watched) -> None:
    before = node.rss_anon()
    request = wire(b"SET", b"cut", b"v" * 1_000) + wire(b"GET", b"cut") * 10
    for cut in range(1, len(request), 37):
        with node.connect() as sock:
            sock.sendall(request[:cut])
    wait_for("them to be gone", lambda: node.clients() <= 3)
    assert node.rss_anon() - before < SMALL_BYTES


#: From an address of their own: ten thousand ports of 127.0.0.1 would be missed by the tests that run beside this one.
MANY = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
socks = [socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.2", 0)) for _ in range(count)]
for sock in socks:
    sock.sendall(b"*2\\r\\n$4\\r\\nECHO\\r\\n$5\\r\\nhello\\r\\n")
for sock in socks:
    received = b""
    while len(received) < 11:
        received += sock.recv(11)
    assert received == b"$5\\r\\nhello\\r\\n", received
print("answered", flush=True)
sys.stdin.readline()
"""


def test_ten_thousand_connections(node: Watched) -> None:
    """As many as the system's limit on descriptors allows; each is answered and costs a few KiB."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = 9_990 if hard == resource.RLIM_INFINITY else min(9_990, hard - 200)
    assert count >= 500, f"only {hard} descriptors"
    before = node.rss_anon()

    def allow() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    with subprocess.Popen(
        [sys.executable, "-c", MANY, str(node.server.port), str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=allow,
    ) as many:
        assert many.stdout
        assert many.stdin
        assert many.stdout.readline() == "answered\n"
        assert node.clients() >= count
        node.served_on()
        cost = node.rss_anon() - before
        many.stdin.close()
        assert many.wait(WAIT_S) == 0
    wait_for("them to be gone", lambda: node.clients() <= 3, WAIT_S)
    assert cost < count * 16 * 1024, f"{cost / count:.0f} bytes each"
    print(f"{count} connections: {cost / count:.0f} bytes each")


def test_the_node_is_what_it_was(node: Watched) -> None:
    """Last in this file: what the others cost for a moment is given back, or used again."""
    assert node.rss_anon() < 512 * MIB
    assert os.path.exists(f"/proc/{node.server.pid}")
