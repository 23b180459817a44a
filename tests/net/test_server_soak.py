"""Many clients of all kinds at once, from a seed: who behaves gets every answer in order, and nothing is left over.

A client pipelines commands that are answered at once, by a worker, or by other threads after a while; it reads, or
stops reading, or closes its side, or resets, or sends a mistake at the end. When all have gone, every count of the
loops must be back at zero: bytes unsent, bytes unfinished, connections, timers; and each connection was opened and
closed once.
"""

from __future__ import annotations

import random
import socket
import threading

import pytest

from raftdb.net.server import ServerLimits, WorkerPool
from tests.net.respkit import command
from tests.net.serverkit import PATIENCE_S, Client, Steered, encoded, running, wait_for

CLIENTS = 12
ROUNDS = 6
LIMITS = ServerLimits(
    backlog_bytes_max=16 * 1024, output_soft_bytes=32 * 1024, output_bytes_max=64 * 1024 * 1024, eof_s=1.0, linger_s=0.5
)


class Answerers:
    """Threads that answer what the handler holds, in any order between connections."""

    def __init__(self, handler: Steered, seed: int) -> None:
        self._handler = handler
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(random.Random(seed + n),)) for n in range(2)]
        for thread in self._threads:
            thread.start()

    def _run(self, chance: random.Random) -> None:
        held = self._handler.held
        while not self._stop.is_set():
            try:
                conn, word, ticket = held.pop(chance.randrange(len(held)))
            except (ValueError, IndexError):
                self._stop.wait(0.0005)
                continue
            if chance.random() < 0.5:
                conn.send(encoded(word), ticket=ticket)
            else:
                conn.queue(encoded(word), ticket=ticket)
                conn.loop.wake()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def behave(port: int, chance: random.Random) -> None:
    """One client's life. Fails when an answer is missing, or not the one that is due."""
    words, stream = [], b""
    for _ in range(chance.choice([1, 5, 40, 300])):
        word = b"%x" % chance.getrandbits(64) * chance.choice([1, 1, 1, 50, 2000])
        words.append(word)
        stream += command(chance.choice([b"ECHO", b"ECHO", b"ECHO", b"WORK", b"LATER"]), word)
    end = chance.choice(["read", "read", "half", "mistake", "reset", "deaf", "quit"])
    stream += {"mistake": b"*1\r\n+PING\r\n", "quit": b"QUIT\r\nECHO no\r\n"}.get(end, b"")
    with Client(port) as client:
        sender = threading.Thread(target=send_in_pieces, args=(client.sock, stream, chance.randrange(2**32), end))
        sender.start()
        if end in ("reset", "deaf"):
            for word in words[: chance.randrange(len(words))]:
                assert client.read() == word
            client.reset()
        else:
            for word in words:
                assert client.read() == word
        sender.join()
        if end == "quit":
            assert client.read() == b"OK"
        elif end == "mistake":
            assert str(client.read()) == "ERR Protocol error: expected '$', got '+'"
        if end in ("half", "quit", "mistake"):
            with pytest.raises(EOFError):
                client.read()


def send_in_pieces(sock: socket.socket, stream: bytes, seed: int, end: str) -> None:
    chance = random.Random(seed)
    at = 0
    try:
        while at < len(stream):
            size = chance.choice([1, 10, 1000, 100_000])
            sock.sendall(stream[at : at + size])
            at += size
        if end == "half":
            sock.shutdown(socket.SHUT_WR)
    except OSError:
        assert end in ("reset", "deaf")


@pytest.mark.slow
@pytest.mark.parametrize(("io_threads", "seed"), [(0, 1), (0, 2), (2, 3), (2, 4)])
def test_all_kinds_of_clients_at_once(io_threads, seed):
    pool = WorkerPool(2)
    handler = Steered(pool)
    answerers = Answerers(handler, seed)
    wrong: list[BaseException] = []

    def lives(number: int) -> None:
        chance = random.Random(seed * 1000 + number)
        try:
            for _ in range(ROUNDS):
                behave(host.port, chance)
        except BaseException as error:
            wrong.append(error)
            raise

    with running(handler, io_threads=io_threads, limits=LIMITS) as host:
        threads = [threading.Thread(target=lives, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * PATIENCE_S)
        assert not wrong
        wait_for(lambda: len(handler.closed) == CLIENTS * ROUNDS, "every client is closed")
        assert set(handler.closed) == set(handler.opened)
        for loop in host.server.loops:
            wait_for(lambda loop=loop: not (loop.mail or loop.ready or loop.dirty))
            assert (loop.out_bytes, loop.pending_bytes, loop.connections, loop.overruns) == (0, 0, {}, 0)
            wait_for(lambda loop=loop: not loop._timed)
    answerers.stop()
    pool.stop()
