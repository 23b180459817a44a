"""Where reads run and what they may keep: the driver's loop never waits for a long one, and replies are bounded."""

from __future__ import annotations

import socket
import struct
import threading
from typing import Any

import pytest
import redis

from raftdb import clock
from raftdb.commands import machine
from raftdb.commands.args import Key
from raftdb.commands.strings import String
from raftdb.commands.table import READ, SLOW, command
from raftdb.config import MIB
from raftdb.errors import Uncertain
from raftdb.net.resp import encode
from raftdb.node import dispatch
from raftdb.node.dispatch import Run
from tests.node.conftest import StartNode

WAIT_S = 20.0


def client(node: Any, **options: Any) -> redis.Redis:
    return redis.Redis(port=node.config.port, socket_timeout=WAIT_S, **options)


def wire(*words: Any) -> bytes:
    return encode([word if isinstance(word, bytes) else str(word).encode() for word in words])


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, bytes, int]]:
    """(thread, name of the first command, requests answered) of each run that was executed, in order."""
    seen: list[tuple[str, bytes, int]] = []
    execute = Run.execute

    def watched(run: Run, machine: Any, ctx: Any) -> bool:
        before = run.at
        try:
            return execute(run, machine, ctx)
        finally:
            argv = run.requests[0].argv
            seen.append((threading.current_thread().name, argv[0], run.at - before))

    monkeypatch.setattr(Run, "execute", watched)
    return seen


def by_driver(seen: list[tuple[str, bytes, int]], name: bytes) -> int:
    """Requests of runs that begin with this command which the driver's thread has answered."""
    return sum(count for thread, first, count in seen if first == name and thread == "raftdb-driver")


def by_workers(seen: list[tuple[str, bytes, int]], name: bytes) -> int:
    return sum(count for thread, first, count in seen if first == name and thread.startswith("raftdb-worker"))


def test_mget_of_large_values_runs_on_a_worker(start_node: StartNode, ran: Any) -> None:
    """Few keys and many bytes: no head record counts as more than one, so the bytes must."""
    node = start_node()
    with client(node) as db:
        for number in range(4):
            db.set(f"big{number}", bytes([number]) * (4 * MIB))
        values = db.mget([f"big{number}" for number in range(4)])
    node.stop()  # then `ran` is complete
    assert [value[:1] for value in values] == [bytes([number]) for number in range(4)]
    assert by_driver(ran, b"MGET") == 0
    assert by_workers(ran, b"MGET") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("EXISTS", *[f"big{number}" for number in range(4)]), 4),
        (("LRANGE", "l", 0, -1), 3),
        (("HVALS", "h"), 3),
        (("HGETALL", "h"), 6),
        (("GETRANGE", "huge", 0, 9), 10),
        (("KEYS", "*"), 7),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_whatever_reads_many_bytes_runs_on_a_worker(
    start_node: StartNode, ran: Any, words: tuple[Any, ...], expected: int
) -> None:
    node = start_node()
    with client(node) as db:
        for number in range(4):
            db.set(f"big{number}", b"b" * (4 * MIB))
        for number in range(3):
            db.rpush("l", b"l" * (4 * MIB))
            db.hset("h", f"f{number}", b"h" * (4 * MIB))
        db.setrange("huge", 12 * MIB, b"x")
        answer = db.execute_command(*words)
    node.stop()
    assert (answer if isinstance(answer, int) else len(answer) * (2 if words[0] == "HGETALL" else 1)) == expected
    assert by_driver(ran, words[0].encode()) == 0
    assert by_workers(ran, words[0].encode()) == 1


def test_reads_of_one_turn_share_its_room(start_node: StartNode, ran: Any) -> None:
    """Each of them is small enough for the loop; all together are not."""
    node = start_node()
    socks = [socket.create_connection(("127.0.0.1", node.config.port), WAIT_S) for _ in range(30)]
    with client(node) as db:
        db.rpush("l", *[b"1234"] * 900)
    reply = b"*900\r\n" + b"$4\r\n1234\r\n" * 900
    node.driver.call(lambda: [sock.sendall(wire("LRANGE", "l", 0, 899)) for sock in socks])  # all come in one turn
    for sock in socks:
        received = b""
        while len(received) < len(reply):
            received += sock.recv(65_536)
        assert received == reply
        sock.close()
    node.stop()
    assert by_driver(ran, b"LRANGE") < 30
    assert by_workers(ran, b"LRANGE") > 0


def test_a_transaction_that_only_reads_runs_on_a_worker_when_it_is_long(start_node: StartNode, monkeypatch) -> None:
    threads: list[str] = []

    def notice(ctx: Any, key: String) -> int:
        threads.append(threading.current_thread().name)
        return 1

    row = command("NOTICE", Key(String), flags=READ, summary="Remember the thread")(notice)
    with client(start_node(commands=[row])) as db:
        db.rpush("l", *range(600))
        for number in range(4):
            db.set(f"big{number}", b"b" * (4 * MIB))
        with db.pipeline(transaction=True) as pipe:
            pipe.execute_command("NOTICE", "x")
            pipe.lrange("l", 0, -1)
            assert len(pipe.execute()[1]) == 600
        assert set(threads) == {"raftdb-driver"}
        with db.pipeline(transaction=True) as pipe:
            pipe.execute_command("NOTICE", "x")
            pipe.lrange("l", 0, -1)
            pipe.lrange("l", 0, -1)
            pipe.execute()
        assert threads[-1].startswith("raftdb-worker")
        with db.pipeline(transaction=True) as pipe:
            for number in range(4):
                pipe.get(f"big{number}")
            pipe.execute_command("NOTICE", "x")
            pipe.execute()
        assert threads[-1].startswith("raftdb-worker")


def test_a_reply_that_is_too_large_is_an_error_and_the_connection_stays(start_node: StartNode, monkeypatch) -> None:
    monkeypatch.setattr(machine, "REPLY_BYTES_MAX", 10 * MIB)
    with client(start_node()) as db:
        db.set("big", b"b" * (4 * MIB))
        with pytest.raises(redis.ResponseError, match="reply would be too large"):
            db.mget(["big"] * 3)
        assert len(db.mget(["big"] * 2)) == 2
        with db.pipeline(transaction=True) as pipe:
            for _ in range(3):
                pipe.get("big")
            replies = pipe.execute(raise_on_error=False)
        assert [type(reply) for reply in replies] == [bytes, bytes, redis.ResponseError]
        assert db.ping()


def test_a_write_of_local_commands_does_not_hold_the_driver(start_node: StartNode, monkeypatch) -> None:
    """MULTI with hundreds of local commands: answered by a worker, beside the writes of the transaction."""
    node = start_node()
    threads: set[str] = set()
    run_local = dispatch.transactions.local_runner

    def watched(*args: Any) -> Any:
        threads.add(threading.current_thread().name)
        return run_local(*args)

    monkeypatch.setattr(dispatch.transactions, "local_runner", watched)
    with client(node) as db:
        for write in (True, False):
            with db.pipeline(transaction=True) as pipe:
                if write:
                    pipe.set("a", 1)
                for _ in range(200):
                    pipe.echo("x")
                assert len(pipe.execute()) == 200 + write
        assert db.get("a") == b"1"
    assert threads
    assert all(name.startswith("raftdb-worker") for name in threads)


def test_deep_pipelines_of_many_clients_let_the_driver_turn(start_node: StartNode, monkeypatch) -> None:
    """No turn answers more than READS_PER_TURN_MAX reads, and each of them is answered in its order."""
    monkeypatch.setattr(dispatch, "READS_PER_TURN_MAX", 100)
    node = start_node()
    turns: dict[int, int] = {}
    execute = Run.execute

    def watched(run: Run, machine: Any, ctx: Any) -> bool:
        before = run.at
        try:
            return execute(run, machine, ctx)
        finally:
            turns[node.server.loop.turns] = turns.get(node.server.loop.turns, 0) + run.at - before

    monkeypatch.setattr(Run, "execute", watched)
    requests = b"".join(wire("ECHO" if number % 300 == 299 else "GET", number) for number in range(900))
    socks = [socket.create_connection(("127.0.0.1", node.config.port), WAIT_S) for _ in range(5)]
    try:
        for sock in socks:
            sock.sendall(requests)
        for sock in socks:
            replies = b""
            while replies.count(b"\r\n") < 900 + 3:
                replies += sock.recv(65536)
            assert replies == (b"$-1\r\n" * 299 + b"$3\r\n%d\r\n") * 3 % (299, 599, 899)
    finally:
        for sock in socks:
            sock.close()
    assert sum(turns.values()) == 5 * 897
    assert max(turns.values()) < 100 + dispatch.RUN_COMMANDS_MAX
    assert len(turns) >= 5 * 3


def test_long_reads_wait_while_the_output_of_others_is_not_sent(start_node: StartNode, monkeypatch) -> None:
    """Twenty clients that do not read ask for 4 MiB each: only a few replies are in memory, and all of them arrive."""
    monkeypatch.setattr(dispatch, "UNSENT_BYTES_MAX", 6 * MIB)
    monkeypatch.setattr(dispatch, "UNSENT_PATIENCE_S", 600.0)
    node = start_node()
    loop, most = node.server.loop, [0]
    flush = loop.flush

    def watched(connections_max: int | None = None) -> bool:
        most[0] = max(most[0], loop.out_bytes)
        return flush(connections_max)

    monkeypatch.setattr(loop, "flush", watched)
    with client(node) as db:
        db.set("big", b"b" * (4 * MIB))
        socks = [socket.create_connection(("127.0.0.1", node.config.port), WAIT_S) for _ in range(20)]
        try:
            for sock in socks:
                sock.sendall(wire("MGET", "big", "big", "big"))
            deadline_s = clock.monotonic() + WAIT_S
            while not loop.out_bytes and clock.monotonic() < deadline_s:
                db.ping()
            assert db.set("others", "are served")  # by the driver, whatever waits
            for sock in socks:
                left = len(b"*3\r\n") + 3 * (len(b"$4194304\r\n\r\n") + 4 * MIB)
                while left > 0:
                    left -= len(sock.recv(MIB))
                assert left == 0
        finally:
            for sock in socks:
                sock.close()
    reply_bytes = 12 * MIB + 100
    assert most[0] <= 6 * MIB + (node.config.workers + 1) * reply_bytes
    assert loop.overruns == 0


def test_a_client_that_left_costs_no_worker(start_node: StartNode, ran: Any) -> None:
    node = start_node()
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(WAIT_S)

    with client(node) as db:
        db.rpush("l", *range(2_000))
        for _ in range(node.config.workers):
            assert node.pool.submit(hold)
        assert started.wait(WAIT_S)
        with socket.create_connection(("127.0.0.1", node.config.port), WAIT_S) as sock:
            sock.sendall(wire("LRANGE", "l", 0, -1))
            while not len(node.pool):
                db.ping()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not a farewell
        while node.server.client_count > 1:
            db.ping()
        go_on.set()
        assert len(db.lrange("l", 0, -1)) == 2_000
    node.stop()
    assert by_workers(ran, b"LRANGE") == 1


def test_the_name_of_an_unknown_command_is_not_kept(start_node: StartNode) -> None:
    node = start_node()
    with client(node) as db:
        with pytest.raises(redis.ResponseError, match="unknown command"):
            db.execute_command(b"x" * MIB)
        (session,) = (conn.session for conn in node.server.clients())
        assert len(session.last_command) <= 64


def test_long_reads_of_the_embedding_program_are_answered(start_node: StartNode, monkeypatch) -> None:
    monkeypatch.setattr(dispatch, "UNSENT_BYTES_MAX", -1)
    node = start_node()
    node.execute("RPUSH", "l", *range(2_000))
    assert len(node.execute("LRANGE", "l", 0, -1)) == 2_000


def test_a_long_read_of_the_embedding_program_is_waited_for_once_it_has_begun(start_node: StartNode) -> None:
    """A worker computes beside the program's own threads: KEYS of a million keys then takes half a minute."""
    bound_s = 0.6  # how long execute() waits: twice the request time-out, and for a leader
    begun, released = threading.Event(), threading.Event()

    def doze(ctx: Any) -> int:
        begun.set()
        assert released.wait(WAIT_S)
        return 1

    row = command("DOZE", flags=READ | SLOW, summary="Wait to be woken")(doze)
    node = start_node(commands=[row], workers=1, request_timeout_ms=200, leader_wait_ms=200)
    answers: list[Any] = []
    dozing = threading.Thread(target=lambda: answers.append(node.execute("DOZE")))
    dozing.start()
    assert begun.wait(WAIT_S)
    started_s = clock.monotonic()
    with pytest.raises(Uncertain, match="no answer within the request time-out"):
        node.execute("DOZE")  # there is no worker for it
    assert clock.monotonic() - started_s >= bound_s
    released.set()
    dozing.join(WAIT_S)
    assert answers == [1]


def test_a_handler_that_catches_every_exception_does_not_catch_that_it_is_too_long(start_node: StartNode) -> None:
    def careless(ctx: Any, key: String) -> Any:
        try:
            return len(key.get() or b"")
        except Exception:
            return -1

    row = command("CARELESS", Key(String), flags=READ, summary="Length, or -1")(careless)
    with client(start_node(commands=[row])) as db:
        db.set("big", b"b" * (12 * MIB))
        assert db.execute_command("CARELESS", "big") == 12 * MIB
