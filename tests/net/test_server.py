"""raftdb.net.server and raftdb.net.loop over real sockets: order, limits, odd clients, threads, ends."""

from __future__ import annotations

import os
import random
import resource
import select
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import hiredis
import pytest

from raftdb.net import resp
from raftdb.net.loop import IN
from raftdb.net.server import (
    Server,
    ServerLimits,
    WorkerPool,
    format_address,
    is_loopback,
    protected_mode_refusal,
    raise_descriptor_limit,
)
from tests.net.respkit import command
from tests.net.serverkit import PATIENCE_S, Client, Steered, encoded, running, wait_for

MIB = 1024 * 1024
LOOPS = pytest.mark.parametrize("io_threads", [0, 2], ids=["loop0", "threads"])


# --- order ----------------------------------------------------------------------------------------------------------


@LOOPS
def test_a_pipeline_is_answered_in_order(io_threads):
    with running(io_threads=io_threads) as host, host.client() as client:
        words = [b"%d" % n for n in range(20_000)]
        sender = threading.Thread(
            target=client.sock.sendall, args=(b"".join(command(b"ECHO", word) for word in words),)
        )
        sender.start()
        assert [client.read() for _ in words] == words
        sender.join()


@LOOPS
def test_input_cut_anywhere(io_threads):
    chance = random.Random(4)
    words = [bytes(chance.choices(b"\r\n*$1a", k=chance.randrange(40))) for _ in range(300)]
    stream = b"".join(command(b"ECHO", word) for word in words) + b"ECHO 'in line'\r\n"
    with running(io_threads=io_threads) as host, host.client() as client:
        client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        at = 0
        while at < len(stream):
            size = chance.choice([1, 1, 2, 7, 100])
            client.sock.sendall(stream[at : at + size])
            at += size
        assert [client.read() for _ in words] == words
        assert client.read() == b"in line"


@LOOPS
def test_answers_from_workers_and_other_threads_keep_the_order_of_the_commands(io_threads):
    pool = WorkerPool(3)
    handler = Steered(pool)
    chance = random.Random(5)
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            if handler.held:
                conn, word, _ = handler.held.pop(0)
                conn.send(encoded(word))
            else:
                stop.wait(0.0005)

    threads = [threading.Thread(target=answer)]
    threads[0].start()
    with running(handler, io_threads=io_threads) as host, ExitStack() as stack:
        clients = [stack.enter_context(host.client()) for _ in range(8)]
        words = [b"%d" % n for n in range(150)]
        for client in clients:
            client.sock.sendall(b"".join(command(chance.choice([b"ECHO", b"WORK", b"LATER"]), word) for word in words))
        for client in clients:
            assert [client.read() for _ in words] == words
    stop.set()
    threads[0].join()
    pool.stop()


def test_commands_behind_one_under_way_come_as_one_batch():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.send("LATER", "a")
        conn, _, _ = wait_for(lambda: handler.held and handler.held.pop())
        for n in range(50):
            client.send("ECHO", str(n))
            wait_for(lambda count=n + 1: len(conn.backlog) == count)
        handler.batches.clear()
        conn.send(encoded(b"a"))
        assert [client.read() for _ in range(51)] == [b"a", *(b"%d" % n for n in range(50))]
        assert handler.batches == [50]


def test_a_handler_may_take_one_command_at_a_time():
    class OneByOne(Steered):
        def on_commands(self, conn, argvs):
            self.batches.append(len(argvs))
            self.command(conn, argvs[0])
            return 1

    handler = OneByOne()
    with running(handler) as host, host.client() as client:
        client.sock.sendall(b"".join(command(b"ECHO", b"%d" % n) for n in range(100)))
        assert [client.read() for _ in range(100)] == [b"%d" % n for n in range(100)]
        assert host.call(lambda: handler.opened[0].session.commands) == 100


def test_a_handler_may_take_nothing_until_resume():
    class Shy(Steered):
        open = False

        def on_commands(self, conn, argvs):
            return super().on_commands(conn, argvs) if self.open else 0

    handler = Shy()
    with running(handler) as host, host.client() as client:
        client.send("ECHO", "a")
        conn = wait_for(lambda: handler.opened and handler.opened[0])
        wait_for(lambda: conn.backlog)
        client.send("ECHO", "b")
        wait_for(lambda: len(conn.backlog) == 2)
        handler.open = True
        conn.resume()
        assert [client.read(), client.read()] == [b"a", b"b"]


def test_a_push_answers_nothing():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.send("LATER", "a")
        conn, _, _ = wait_for(lambda: handler.held and handler.held.pop())
        conn.push([b"news", 1])
        assert client.read() == [b"news", 1]
        assert host.call(lambda: conn.outstanding) == 1
        conn.reply(b"a")
        assert client.read() == b"a"


def test_answers_queued_without_a_wake_up_leave_with_one():
    handler = Steered()
    with running(handler, io_threads=1) as host, ExitStack() as stack:
        clients = [stack.enter_context(host.client()) for _ in range(5)]
        for client in clients:
            client.send("LATER", "a")
        wait_for(lambda: len(handler.held) == 5)
        for conn, word, _ in handler.held:
            conn.queue(encoded(word))
        host.server.wake()
        assert [client.read() for client in clients] == [b"a"] * 5


# --- a client that has gone, a handler that is stuck ----------------------------------------------------------------


def test_who_takes_nothing_from_a_congested_client_is_asked_again_when_it_has_read():
    class Careful(Steered):
        refused = 0

        def on_commands(self, conn, argvs):
            if conn.congested:
                self.refused += 1
                return 0
            self.command(conn, argvs[0])
            return 1

    handler = Careful()
    limits = ServerLimits(output_soft_bytes=64 * 1024)
    with running(handler, limits=limits) as host, host.client(receive_bytes=4096) as client:
        client.send("LATER", "a")
        conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
        client.sock.sendall(command(b"BIG", b"200000") * 50)
        conn.push(b"y" * 8 * MIB)
        conn.send(encoded(word))
        assert len(client.read()) == 8 * MIB
        assert client.read() == b"a"
        assert [len(client.read()) for _ in range(50)] == [200_000] * 50


def test_nobody_stays_parked_when_the_kernel_takes_the_output_at_once():
    class Careful(Steered):
        def on_commands(self, conn, argvs):
            return 0 if conn.congested else super().on_commands(conn, argvs)

    handler = Careful()
    server = Server(handler, limits=ServerLimits(output_soft_bytes=64 * 1024))
    port = server.listen("127.0.0.1", 0)
    with Client(port) as client:
        wait_for(lambda: server.loop.turn(0.01) and handler.opened)
        client.send("ECHO", "a")
        select.select([handler.opened[0].sock], [], [], PATIENCE_S)
        handler.opened[0].push(b"y" * 100_000)
        for _ in range(3):
            server.loop.turn(0)
        assert len(client.read()) == 100_000
        assert client.read() == b"a"
    server.close()


@LOOPS
def test_a_late_answer_never_reaches_the_next_client_on_the_same_descriptor(io_threads):
    handler = Steered()
    with running(handler, io_threads=io_threads, connections_on_loop_0=False) as host:
        for n in range(40):
            victim = host.client()
            victim.send("LATER", "secret")
            conn, word, ticket = wait_for(lambda: handler.held and handler.held.pop())
            fd = conn.fd
            victim.reset()
            wait_for(lambda conn=conn: conn.closed)
            with host.client() as heir:
                assert heir.ask("ECHO", "hello") == b"hello"
                wait_for(lambda count=2 * n + 2: len(handler.opened) == count)
                assert handler.opened[-1].fd == fd  # the number was given out again
                conn.send(encoded(word))
                conn.send(encoded(word), ticket=ticket)
                conn.push(word)
                conn.kill()
                assert heir.ask("ECHO", "still me") == b"still me"
                assert heir.ask("PING") == b"PONG"
            wait_for(lambda count=2 * n + 2: len(handler.closed) == count)
        assert handler.closed == handler.opened


def test_closing_while_many_threads_answer():
    """Clients come and go at random while threads answer whoever asked last: nobody gets a stranger's word."""
    handler = Steered()
    stop = threading.Event()

    def answer() -> None:
        while not stop.is_set():
            try:
                conn, word, _ = handler.held.pop()
            except IndexError:
                stop.wait(0.0002)
            else:
                conn.send(encoded(word))

    threads = [threading.Thread(target=answer) for _ in range(3)]
    for thread in threads:
        thread.start()
    chance = random.Random(6)
    with running(handler, io_threads=1) as host:
        for n in range(300):
            client = host.client()
            word = b"word-%d" % n
            client.send("LATER", word)
            if chance.random() < 0.5:
                client.reset()
            else:
                assert client.read() == word
                client.close()
        wait_for(lambda: len(handler.closed) == 300)
    stop.set()
    for thread in threads:
        thread.join()


def test_abandoned_commands_are_answered_once_and_late_answers_dropped():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.send("LATER", "a")
        client.send("ECHO", "b")
        conn, word, ticket = wait_for(lambda: handler.held and handler.held.pop())
        conn.abandon(ticket, b"-UNCERTAIN too slow\r\n")
        assert isinstance(client.read(), hiredis.ReplyError)
        assert client.read() == b"b"
        conn.send(encoded(word), ticket=ticket)
        conn.abandon(ticket, b"-UNCERTAIN too slow\r\n")
        assert client.ask("ECHO", "c") == b"c"


def test_an_answer_that_was_faster_than_abandon_stands():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.send("LATER", "a")
        conn, word, ticket = wait_for(lambda: handler.held and handler.held.pop())
        conn.send(encoded(word), ticket=ticket)
        conn.abandon(ticket, b"-UNCERTAIN too slow\r\n")
        assert client.read() == b"a"
        assert client.ask("ECHO", "c") == b"c"


def test_a_loop_that_waits_for_the_disk_is_answered_for():
    handler = Steered()
    disk = threading.Event()
    waiting = threading.Event()
    with running(handler) as host, host.client() as client, host.client() as other:
        loop = host.server.loop

        def commit() -> None:
            loop.leave()
            waiting.set()
            disk.wait(PATIENCE_S)
            loop.enter()

        client.send("LATER", "a")
        conn, word, ticket = wait_for(lambda: handler.held and handler.held.pop())
        assert not loop.rescue([(conn, ticket, b"-UNCERTAIN\r\n")])  # the loop is alive
        loop.post(commit)
        assert waiting.wait(PATIENCE_S)
        other.send("PING")
        assert loop.rescue([(conn, ticket, b"-UNCERTAIN\r\n")])
        assert str(client.read()) == "UNCERTAIN"
        assert loop.rescue([(conn, ticket, b"-UNCERTAIN\r\n")])  # nothing is due any more
        conn.send(encoded(word), ticket=ticket)
        disk.set()
        assert other.read() == b"PONG"
        assert client.ask("ECHO", "c") == b"c"


# --- hostile and odd clients ----------------------------------------------------------------------------------------

HOSTILE = {
    "negative count": (b"*-1\r\n", b"invalid multibulk length"),
    "no arguments": (b"*0\r\n", b"invalid multibulk length"),
    "negative length": (b"*1\r\n$-5\r\n", b"invalid bulk length"),
    "underscore": (b"*1_000\r\n", b"invalid multibulk length"),
    "plus": (b"*1\r\n$+5\r\nhello\r\n", b"invalid bulk length"),
    "5,000 digits": (b"*" + b"1" * 5000 + b"\r\n", b"too big mbulk count string"),
    "5,000 digit length": (b"*1\r\n$" + b"1" * 5000 + b"\r\n", b"too big bulk count string"),
    "huge count": (b"*100000000\r\n", b"invalid multibulk length"),
    "huge length": (b"*1\r\n$99999999999\r\n", b"invalid bulk length"),
    "no CRLF": (b"*1\r\n$4\r\nPINGxx", b"expected CRLF after an argument"),
    "nested": (b"*1\r\n" * 100_000, b"expected '$', got '*'"),
    "long line": (b"x" * 100_000, b"too big inline request"),
    "quotes": (b'SET a "b\r\n', b"unbalanced quotes in request"),
    "http post": (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nFLUSHALL\r\n", b"HTTP"),
    "tls hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n*0\r\n", b"invalid multibulk length"),
}


@LOOPS
@pytest.mark.parametrize("name", HOSTILE)
def test_a_mistake_is_answered_once_and_closed_and_nobody_else_notices(name, io_threads):
    bytes_sent, text = HOSTILE[name]
    with running(io_threads=io_threads) as host, host.client() as friend, host.client() as client:
        assert friend.ask("ECHO", "before") == b"before"
        client.sock.sendall(command(b"ECHO", b"first") + bytes_sent)
        answer = client.rest()
        assert answer.startswith(b"$5\r\nfirst\r\n")
        last = answer.removesuffix(b"\r\n").rpartition(b"\r\n")[2]
        assert last.startswith(b"-ERR Protocol error: ")
        assert text in last
        assert b"Traceback" not in answer
        assert friend.ask("ECHO", "after") == b"after"
        assert host.server.client_count >= 1


def test_the_error_text_arrives_though_the_client_goes_on_sending():
    """Closing a socket with unread input sends a reset that may overtake the text; so we close our side and drain."""
    with running() as host:
        for _ in range(20):
            with host.client() as client:
                client.sock.sendall(b"*0\r\n" + b"x" * 3_000_000)
                assert client.rest() == b"-ERR Protocol error: invalid multibulk length\r\n"


def test_answers_under_way_come_before_the_error():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.sock.sendall(command(b"LATER", b"a") + command(b"ECHO", b"b") + b"*0\r\n")
        conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
        assert not client.gone
        conn.reply(word)
        assert client.rest() == b"$1\r\na\r\n$1\r\nb\r\n-ERR Protocol error: invalid multibulk length\r\n"


def test_a_client_that_never_reads_is_closed_and_its_memory_bounded():
    limits = ServerLimits(output_soft_bytes=256 * 1024, output_bytes_max=4 * MIB)

    class Deaf(Steered):
        """Takes everything at once, whatever is unsent: the worst handler."""

        def on_commands(self, conn, argvs):
            for argv in argvs:
                self.command(conn, argv)
                self.peak = max(getattr(self, "peak", 0), conn.out_bytes)
            return

    handler = Deaf()
    with running(handler, limits=limits) as host, host.client() as friend, host.client(receive_bytes=4096) as client:
        client.sock.settimeout(0.2)
        with pytest.raises((ConnectionError, TimeoutError)):
            client.sock.sendall(command(b"BIG", b"100000") * 1_000_000)
        wait_for(lambda: handler.closed)
        assert handler.peak <= 4 * MIB + 200_000
        assert friend.ask("ECHO", "well") == b"well"
        assert host.call(lambda: host.server.loop.out_bytes) == 0
        assert host.server.loop.overruns == 1


def test_a_handler_that_minds_congestion_keeps_such_a_client_small_and_open():
    limits = ServerLimits(output_soft_bytes=256 * 1024, output_bytes_max=4 * MIB, backlog_bytes_max=64 * 1024)
    handler = Steered()
    total = 3000
    with running(handler, limits=limits) as host, host.client(receive_bytes=4096) as client:
        sender = threading.Thread(target=client.sock.sendall, args=(command(b"BIG", b"20000") * total,))
        sender.start()
        conn = wait_for(lambda: handler.opened and handler.opened[0])
        wait_for(lambda: conn.congested)
        with host.client() as friend:
            for _ in range(50):
                assert friend.ask("ECHO", "well") == b"well"
                assert conn.out_bytes < 600_000
        for _ in range(total):
            assert len(client.read()) == 20_000
        sender.join()
        assert not conn.closed


def test_when_all_outputs_together_are_too_large_the_largest_goes():
    limits = ServerLimits(output_total_bytes_max=8 * MIB, output_soft_bytes=1 * MIB)
    handler = Steered()
    with running(handler, limits=limits) as host, ExitStack() as stack:
        clients = [stack.enter_context(host.client(receive_bytes=4096)) for _ in range(4)]
        for client, size in zip(clients, [9, 7, 3, 2], strict=True):
            client.send("BIG", str(size * MIB))
            wait_for(lambda: sum(handler.batches) == len(handler.batches))
        wait_for(lambda: handler.closed)
        assert wait_for(lambda: host.call(lambda: host.server.loop.out_bytes) <= 8 * MIB)
        assert len(handler.closed) < 4


def test_unfinished_commands_of_all_clients_together_are_bounded():
    limits = ServerLimits(input_total_bytes_max=8 * MIB)
    handler = Steered()
    with running(handler, limits=limits) as host, ExitStack() as stack:
        friend = stack.enter_context(host.client())
        for _ in range(6):
            client = stack.enter_context(host.client())
            client.sock.sendall(b"*2\r\n$4\r\nECHO\r\n$3000000\r\n" + b"x" * 100_000)
        wait_for(lambda: len(handler.closed) >= 3)
        assert host.call(lambda: host.server.loop.pending_bytes) <= 8 * MIB
        assert friend.ask("PING") == b"PONG"


def test_commands_that_wait_count_as_unfinished_until_they_are_handed_over():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        loop = host.server.loop
        client.send("LATER", "a")
        conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
        client.sock.sendall(b"PING\r\n" * 10_000)
        wait_for(lambda: len(conn.backlog) == 10_000)
        assert host.call(lambda: loop.pending_bytes) >= 60_000
        conn.reply(word)
        assert [client.read() for _ in range(10_001)] == [b"a"] + [b"PONG"] * 10_000
        assert host.call(lambda: loop.pending_bytes) == 0


def test_reading_pauses_also_for_a_handler_that_takes_one_command_at_a_time():
    class OneLater(Steered):
        def on_commands(self, conn, argvs):
            self.held.append((conn, argvs[0][1], conn.ticket))
            return 1

    handler = OneLater()
    limits = ServerLimits(backlog_bytes_max=128 * 1024)
    with running(handler, limits=limits) as host, host.client() as client:
        sender = threading.Thread(target=client.sock.sendall, args=(command(b"ECHO", b"x" * 1000) * 3000,))
        sender.start()
        peak = 0
        for _ in range(3000):
            conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
            peak = max(peak, len(conn.backlog))
            conn.send(encoded(word))
            assert len(client.read()) == 1000
        sender.join()
        assert peak < 3 * (128 * 1024 + 65_536) / 1000


def test_a_client_that_sends_single_bytes_costs_a_few_events_and_nobody_waits():
    with running() as host, host.client() as slow, host.client() as friend:
        slow.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in command(b"ECHO", b"patience"):
            slow.sock.sendall(bytes([byte]))
            assert friend.ask("PING") == b"PONG"
        assert slow.read() == b"patience"


def test_reading_stops_while_too_much_waits_behind_a_command():
    limits = ServerLimits(backlog_bytes_max=128 * 1024)
    handler = Steered()
    with running(handler, limits=limits) as host, host.client() as client:
        client.send("LATER", "a")
        conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
        sender = threading.Thread(target=client.sock.sendall, args=(command(b"ECHO", b"x" * 1000) * 20_000,))
        sender.start()
        wait_for(lambda: conn.backlog_bytes > 128 * 1024)
        for _ in range(20):
            host.call(lambda: None)
        assert host.call(lambda: conn.backlog_bytes) <= 128 * 1024 + 65_536
        conn.reply(word)
        assert client.read() == b"a"
        assert all(len(client.read()) == 1000 for _ in range(20_000))
        sender.join()


#: From an address of their own: ten thousand ports of 127.0.0.1 would be missed by the tests that run beside this one.
MANY_CLIENTS = """
import resource, sys
from tests.net.serverkit import Client
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
port, count = int(sys.argv[1]), int(sys.argv[2])
clients = [Client(port, source="127.0.0.2") for _ in range(count)]
for client in clients:
    client.send("ECHO", "hello")
assert all(client.read() == b"hello" for client in clients)
print("connected", flush=True)
sys.stdin.readline()
for _ in range(10):
    busy = clients[:: max(1, count // 200)]
    for client in busy:
        client.send("ECHO", "again")
    assert all(client.read() == b"again" for client in busy)
print("answered", flush=True)
sys.stdin.readline()
"""


@pytest.mark.slow
def test_ten_thousand_connections():
    """10,000 clients, or as many as the system's limit on descriptors allows (the message says how many)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        count = min(10_000, hard - len(os.listdir("/proc/self/fd")) - 100)
        assert count >= 200, f"only {hard} descriptors"
        with (
            running(limits=ServerLimits(clients_max=20_000)) as host,
            subprocess.Popen(
                [sys.executable, "-c", MANY_CLIENTS, str(host.port), str(count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            ) as many,
            host.client() as friend,
        ):
            assert many.stdin
            assert many.stdout
            assert many.stdout.readline() == "connected\n"
            print(f"{count} connections of {hard} descriptors")
            assert host.server.client_count == count + 1
            assert friend.ask("ECHO", "hello") == b"hello"
            many.stdin.write("\n")
            many.stdin.flush()
            assert many.stdout.readline() == "answered\n"
            many.stdin.close()
            assert many.wait(PATIENCE_S) == 0
            wait_for(lambda: host.server.client_count == 1)
            assert friend.ask("PING") == b"PONG"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- limits on clients ----------------------------------------------------------------------------------------------


def test_one_client_too_many_is_told_so():
    with running(limits=ServerLimits(clients_max=3)) as host, ExitStack() as stack:
        friends = [stack.enter_context(host.client()) for _ in range(3)]
        assert [friend.ask("PING") for friend in friends] == [b"PONG"] * 3
        assert host.client().rest() == b"-ERR max number of clients reached\r\n"
        friends[0].close()
        wait_for(lambda: host.server.client_count == 2)
        with host.client() as late:
            assert late.ask("PING") == b"PONG"
        host.server.clients_max = 1
        assert host.client().rest() == b"-ERR max number of clients reached\r\n"


OUT_OF_DESCRIPTORS = """
import resource, socket, sys
from tests.net.serverkit import Steered, running, wait_for
with running() as host:
    print(host.port, flush=True)
    # from here on: room for 10 more descriptors
    used = max(int(n) for n in __import__("os").listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 10, used + 10))
    print("ready", flush=True)
    sys.stdin.read()
    print(host.server.refused, flush=True)
"""


def test_running_out_of_descriptors_stops_nothing():
    with subprocess.Popen(
        [sys.executable, "-c", OUT_OF_DESCRIPTORS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        port = int(process.stdout.readline())
        assert process.stdout.readline() == "ready\n"
        with ExitStack() as stack:
            clients = [stack.enter_context(Client(port)) for _ in range(40)]
            for client in clients:
                client.send("PING")
            answers = []
            for client in clients:
                try:
                    answers.append(client.read())
                except (EOFError, ConnectionError):
                    answers.append(None)
            served = [client for client, answer in zip(clients, answers, strict=True) if answer == b"PONG"]
            assert 5 <= len(served) < 40
            assert all(client.ask("ECHO", "on") == b"on" for client in served)
        with Client(port) as late:  # all of them have gone: there is room again
            assert late.ask("PING") == b"PONG"
        process.stdin.close()
        assert int(process.stdout.readline()) > 0
        assert process.wait(PATIENCE_S) == 0


def test_the_descriptor_limit_says_how_many_clients_fit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        assert raise_descriptor_limit(50) == 50
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 114
        if hard != resource.RLIM_INFINITY:
            assert raise_descriptor_limit(hard * 2) == hard - 64
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- strangers ------------------------------------------------------------------------------------------------------


def test_a_stranger_has_little_time():
    with running(Steered(password=b"pw"), limits=ServerLimits(login_s=0.01)) as host:
        with host.client() as client:
            assert client.rest() == b""
        with host.client() as client:
            client.send("AUTH", "pw")
            assert client.read() == b"OK"
            host.call(lambda: None)
            assert wait_for(lambda: host.call(lambda: not host.server.loop._timed))
            assert client.ask("PING") == b"PONG"


def test_limits_change_with_the_command_that_logs_in():
    with running(Steered(password=b"pw")) as host:
        with host.client() as client:
            client.sock.sendall(command(b"AUTH", b"pw") + command(b"ECHO", b"x" * 100_000) + b"PING\r\n")
            assert [client.read(), len(client.read()), client.read()] == [b"OK", 100_000, b"PONG"]
        with host.client() as client:
            client.sock.sendall(command(b"AUTH", b"no") + b"PING\r\n" + command(b"ECHO", b"x" * 100_000))
            assert client.rest() == (b":0\r\n+NOAUTH\r\n-ERR Protocol error: unauthenticated bulk length\r\n")


def test_a_slow_login_holds_back_what_follows():
    class Slow(Steered):
        def command(self, conn, argv):
            if argv[0] == b"AUTH":
                self.held.append((conn, argv[1], conn.ticket))
                return False
            return super().command(conn, argv)

    handler = Slow(password=b"pw")
    with running(handler) as host, host.client() as client:
        client.sock.sendall(command(b"AUTH", b"pw") + command(b"ECHO", b"x" * 100_000) * 3)
        conn, _, _ = wait_for(lambda: handler.held and handler.held.pop())
        conn.session.authenticated = True
        conn.reply("OK")
        assert client.read() == b"OK"
        assert [len(client.read()) for _ in range(3)] == [100_000] * 3


def test_who_logs_out_is_a_stranger_again():
    class Forgetful(Steered):
        def command(self, conn, argv):
            if argv[0] == b"RESET":
                conn.session.authenticated = False
                conn.reply("RESET")
                return True
            return super().command(conn, argv)

    with running(Forgetful(password=b"pw")) as host, host.client() as client:
        assert client.ask("AUTH", "pw") == b"OK"
        assert client.ask("RESET") == b"RESET"
        client.send("ECHO", "x" * 100_000)
        assert client.rest() == b"-ERR Protocol error: unauthenticated bulk length\r\n"


def test_protected_mode():
    assert protected_mode_refusal("10.0.0.1:5", protected=True, has_password=False).startswith(b"-DENIED ")
    assert protected_mode_refusal("10.0.0.1:5", protected=True, has_password=True) is None
    assert protected_mode_refusal("10.0.0.1:5", protected=False, has_password=False) is None
    assert protected_mode_refusal("127.0.0.1:5", protected=True, has_password=False) is None
    assert [is_loopback(a) for a in ("[::1]:5", "[::ffff:127.0.0.1]:5", "[::2]:5", "127.9.9.9:1", "1.127.0.0:1")] == [
        True,
        True,
        False,
        True,
        False,
    ]
    assert format_address("::1", 5) == "[::1]:5"


def test_a_client_may_be_refused_when_it_comes():
    class Closed(Steered):
        def on_open(self, conn):
            super().on_open(conn)
            conn.refuse(b"-DENIED go away\r\n")

    handler = Closed()
    with running(handler) as host, host.client() as client:
        client.sock.sendall(command(b"PING"))
        assert client.rest() == b"-DENIED go away\r\n"
        client.close()
        wait_for(lambda: handler.closed == handler.opened)
        assert handler.batches == []


# --- ends -----------------------------------------------------------------------------------------------------------


def test_quit_answers_closes_and_drops_what_follows():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.sock.sendall(command(b"ECHO", b"a") + command(b"QUIT") + command(b"ECHO", b"b"))
        assert client.rest() == b"$1\r\na\r\n+OK\r\n"


@LOOPS
def test_a_client_that_closes_its_side_gets_what_it_is_owed(io_threads):
    pool = WorkerPool(1)
    handler = Steered(pool)
    with running(handler, io_threads=io_threads) as host, host.client() as client:
        client.sock.sendall(command(b"ECHO", b"a") + command(b"WORK", b"b") + command(b"BIG", b"500000") + b"PING\r\n")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b"$1\r\na\r\n$1\r\nb\r\n" + encoded(b"x" * 500_000) + b"+PONG\r\n"
        wait_for(lambda: handler.closed)
    pool.stop()


def test_the_handler_hears_that_a_waiting_client_has_left():
    handler = Steered()
    with running(handler, limits=ServerLimits(eof_s=0.01)) as host:
        client = host.client()
        client.send("LATER", "a")
        conn, _, _ = wait_for(lambda: handler.held and handler.held.pop())
        client.close()
        wait_for(lambda: handler.ended == [conn])
        wait_for(lambda: handler.closed == [conn])  # never answered: closed after a while all the same


def test_a_killed_client_is_gone_whatever_is_due():
    handler = Steered()
    with running(handler) as host, host.client() as client, host.client() as friend:
        client.send("LATER", "a")
        conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
        conn.kill()
        assert client.rest() == b""
        conn.reply(word)
        wait_for(lambda: handler.closed == [conn])
        assert friend.ask("PING") == b"PONG"


def test_drain_lets_everybody_finish():
    handler = Steered()
    with running(handler, io_threads=1) as host, host.client() as idle, host.client() as client:
        assert idle.ask("PING") == b"PONG"
        client.send("LATER", "a")
        conn, word, _ = wait_for(lambda: handler.held and handler.held.pop())
        host.server.finish()
        assert idle.rest() == b""
        wait_for(lambda: not host.server.listeners)
        with pytest.raises(ConnectionRefusedError):
            host.client()
        assert not host.server.finished
        conn.reply(word)
        assert client.read() == b"a"
        assert client.rest() == b""
        idle.close()
        client.close()
        assert host.server.drain(PATIENCE_S)
        assert len(handler.closed) == 2


def test_drain_gives_up_on_who_does_not_finish():
    handler = Steered()
    with running(handler) as host, host.client() as client:
        client.send("LATER", "a")
        wait_for(lambda: handler.held)
        assert not host.call(lambda: host.server.drain(0.05))
    assert handler.closed == handler.opened  # by the close at the end


def test_every_connection_is_opened_and_closed_once():
    handler = Steered()
    with running(handler, io_threads=2, connections_on_loop_0=True) as host:
        clients = [host.client() for _ in range(30)]
        assert all(client.ask("PING") == b"PONG" for client in clients)
        assert {len(loop.connections) for loop in host.server.loops} == {10}
        assert len(handler.threads) == 3
        ids = [conn.session.id for conn in host.server.clients()]
        assert sorted(ids) == list(range(1, 31))
        some = host.server.client(17)
        assert some is not None
        assert some.session.address == format_address(*some.sock.getpeername())
        assert some.session.laddr == f"127.0.0.1:{host.port}"
        for client in clients:
            client.close()
        wait_for(lambda: len(handler.closed) == 30)
        assert host.server.client(17) is None
    assert set(handler.closed) == set(handler.opened)
    assert len(handler.closed) == 30


# --- the loop as others use it --------------------------------------------------------------------------------------


def test_other_descriptors_on_the_same_selector():
    heard: list[bytes] = []
    with running() as host, host.client() as client:
        loop = host.server.loop
        left, right = socket.socketpair()
        left.setblocking(False)

        def on_ready(events: int) -> None:
            assert events & IN
            heard.append(left.recv(100))

        host.call(lambda: loop.register(left.fileno(), IN, on_ready))
        right.send(b"one")
        wait_for(lambda: heard == [b"one"])
        host.call(lambda: loop.modify(left.fileno(), 0))
        right.send(b"two")
        assert client.ask("PING") == b"PONG"
        assert heard == [b"one"]
        host.call(lambda: loop.modify(left.fileno(), IN))
        wait_for(lambda: heard == [b"one", b"two"])
        host.call(lambda: loop.unregister(left.fileno()))
        host.call(lambda: loop.unregister(left.fileno()))
        right.send(b"three")
        assert client.ask("PING") == b"PONG"
        assert heard == [b"one", b"two"]
        left.close()
        right.close()


def test_registered_descriptors_can_be_served_alone():
    handler = Steered()
    server = Server(handler)
    port = server.listen("127.0.0.1", 0)
    with Client(port) as client:
        wait_for(lambda: server.loop.turn(0.01) and handler.opened)
        client.send("PING")
        select.select([handler.opened[0].sock], [], [], PATIENCE_S)
        heard = []
        left, right = socket.socketpair()
        server.loop.register(left.fileno(), IN, lambda events: heard.append(left.recv(10)))
        right.send(b"frame")
        assert server.loop.poll_registered() == 1
        assert heard == [b"frame"]
        assert handler.batches == []
        server.loop.turn(0)
        assert client.read() == b"PONG"
        left.close()
        right.close()
    server.close()


def test_flush_in_portions():
    handler = Steered()
    server = Server(handler)
    port = server.listen("127.0.0.1", 0)
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(port)) for _ in range(5)]
        wait_for(lambda: server.loop.turn(0.01) or len(handler.opened) == 5)
        for client in clients:
            client.send("PING")
        wait_for(lambda: server.loop.poll(0.01) or sum(handler.batches) == 5)
        assert server.loop.flush(2)
        assert server.loop.flush(2)
        assert not server.loop.flush(2)
        assert [client.read() for client in clients] == [b"PONG"] * 5
    server.close()


def test_a_wake_up_that_comes_too_early_is_not_lost():
    """wake() before poll() must keep poll() from waiting: what it announces may not be in the loop's mailbox."""
    server = Server(Steered())
    server.loop.turn(0)
    server.loop.wake()
    done = threading.Thread(target=server.loop.turn, args=(3600.0,), daemon=True)
    server.loop.leave()
    done.start()
    done.join(PATIENCE_S)
    assert not done.is_alive()


def test_a_bug_in_a_handler_is_reported_and_ends_its_loop_only():
    class Buggy(Steered):
        def command(self, conn, argv):
            if argv[0] == b"BUG":
                raise RuntimeError("a bug")
            return super().command(conn, argv)

    failures = []
    server = Server(Buggy(), io_threads=1, on_failure=lambda *args: failures.append(args))
    port = server.listen("127.0.0.1", 0)
    server.start()
    client = Client(port)
    wait_for(lambda: server.loop.turn(0.01) or server.client_count)
    client.send("BUG")
    wait_for(lambda: failures)
    assert failures[0][0] == "loop-1"
    assert isinstance(failures[0][1], RuntimeError)
    client.close()
    server.close()


def test_more_answers_than_commands_is_a_bug():
    handler = Steered()
    server = Server(handler)
    port = server.listen("127.0.0.1", 0)
    with Client(port):
        wait_for(lambda: server.loop.turn(0.01) and handler.opened)
        with pytest.raises(resp.Bug, match="more answers"):
            handler.opened[0].reply(b"x")
    server.close()


# --- workers --------------------------------------------------------------------------------------------------------


def test_a_full_pool_says_no():
    gate, started = threading.Event(), threading.Event()
    pool = WorkerPool(1, jobs_max=2)

    def block() -> None:
        started.set()
        gate.wait(PATIENCE_S)

    assert pool.submit(block)
    assert started.wait(PATIENCE_S)
    assert [pool.submit(gate.wait) for _ in range(4)] == [True, True, False, False]
    assert len(pool) == 2
    gate.set()
    pool.stop()
    assert not pool.submit(gate.wait)


def test_a_bug_on_a_worker_is_reported():
    failures = []
    pool = WorkerPool(1, on_failure=lambda *args: failures.append(args))
    pool.submit(lambda: 1 // 0)
    wait_for(lambda: failures)
    assert isinstance(failures[0][1], ZeroDivisionError)
    pool.stop()
