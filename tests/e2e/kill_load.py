"""kill -9 at random moments under load: nothing that was acknowledged is lost, nothing is there twice.

    python -m tests.e2e.kill_load                  # twenty kills (`make kill-load`)
    python -m tests.e2e.kill_load --kills 3 --server redis

Clients never retry, and every write can be told from every other one:

    SET     a key of its own with a value of its own        acknowledged -> there, with that value
    APPEND  a token of its own to the client's key          acknowledged -> there once; unanswered -> at most once
    INCR    the client's counter                            between the acknowledged and the sent
    MSET    two keys of its own                             both or none, acknowledged -> both
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.e2e.server import Server, server_class

CLIENTS = 8
KILLS = 20
LOAD_MIN_S, LOAD_MAX_S = 0.2, 1.5


def connect(port: int) -> redis.Redis:
    """A client that sends each command once."""
    return redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=20)


class Writer(threading.Thread):
    """One client: writes until its server is gone, and remembers what was sent and what was acknowledged."""

    def __init__(self, name: str, port: int, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.port = port
        self.chance = random.Random(seed)
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self.incremented = Counter[str]()  # sent, acknowledged
        self.refused: list[str] = []
        self.ended: Exception | None = None

    def run(self) -> None:
        number = 0
        try:
            client = connect(self.port)
            while True:
                number += 1
                self.write(client, number)
        except redis.ResponseError as error:  # a live server must take every one of these writes
            self.refused.append(str(error))
        except (redis.RedisError, OSError) as error:
            self.ended = error

    def write(self, client: redis.Redis, number: int) -> None:
        verb = self.chance.choice(("set", "append", "incr", "mset"))
        token = f"{verb}:{self.name}:{number}"
        self.sent.add(token)
        if verb == "set":
            client.set(token, token)
        elif verb == "append":
            client.append(f"tokens:{self.name}", f"{token};")
        elif verb == "mset":
            client.mset({f"{token}:a": token, f"{token}:b": token})
        else:
            self.incremented["sent"] += 1
            client.incr(f"counter:{self.name}")
            self.incremented["acknowledged"] += 1
        self.acknowledged.add(token)


def faults(client: redis.Redis, writer: Writer) -> list[str]:
    """What the store lacks or has twice of one writer's work."""
    wrong = [f"{writer.name} was refused: {text}" for text in writer.refused]
    tokens = (client.get(f"tokens:{writer.name}") or b"").decode().split(";")
    found = Counter(filter(None, tokens))
    for token in sorted(writer.sent):
        there = _times_there(client, token, found)
        if there not in (0, 1) or (there == 0 and token in writer.acknowledged):
            wrong.append(f"{token}: {there} times, {'acknowledged' if token in writer.acknowledged else 'unanswered'}")
    wrong += [f"{token}: nobody wrote it" for token in found.keys() - writer.sent]
    count = int(client.get(f"counter:{writer.name}") or 0)
    if not writer.incremented["acknowledged"] <= count <= writer.incremented["sent"]:
        wrong.append(f"counter:{writer.name} is {count}: {dict(writer.incremented)}")
    return wrong


def _times_there(client: redis.Redis, token: str, appended: Counter[str]) -> float:
    """How often this write took effect: 0 or 1; anything else is a fault (0.5: half of an MSET)."""
    verb = token.partition(":")[0]
    if verb == "append":
        return appended[token]
    if verb == "incr":
        return 1  # judged by the counter
    keys = [token] if verb == "set" else [f"{token}:a", f"{token}:b"]
    values = client.mget(keys)
    if any(value not in (None, token.encode()) for value in values):
        return 2
    return sum(value is not None for value in values) / len(keys)


def run(server: Server, kills: int, seed: int) -> tuple[int, list[str]]:
    """Loads, kills, restarts, checks, `kills` times on the same data: (acknowledged writes, faults)."""
    chance = random.Random(seed)
    writers: list[Writer] = []
    wrong: list[str] = []
    server.start()
    for life in range(kills):
        fresh = [Writer(f"{life}.{n}", server.port, chance.getrandbits(32)) for n in range(CLIENTS)]
        for writer in fresh:
            writer.start()
        time.sleep(chance.uniform(LOAD_MIN_S, LOAD_MAX_S))  # the moment of the kill is what is varied here
        server.kill()
        for writer in fresh:
            writer.join(30)
            assert not writer.is_alive(), "a client did not notice that its server was killed"
        writers += fresh
        server.start()
        with contextlib.closing(connect(server.port)) as client:
            wrong += [fault for writer in fresh for fault in faults(client, writer)]
    with contextlib.closing(connect(server.port)) as client:  # the first lives' writes have survived all later kills
        wrong += [f"at the end: {fault}" for writer in writers for fault in faults(client, writer)]
    return sum(len(writer.acknowledged) for writer in writers), wrong


def main() -> int:
    """The whole run, with its figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--server", choices=("raftdb", "redis"), default="raftdb")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        server = server_class(options.server)(Path(directory))
        try:
            acknowledged, wrong = run(server, options.kills, options.seed)
        finally:
            server.kill()
    print(f"seed {options.seed}: {options.kills} kills, {acknowledged} acknowledged writes, {len(wrong)} faults")
    print("\n".join(wrong[:20]))
    return 1 if wrong or not acknowledged else 0


if __name__ == "__main__":
    sys.exit(main())
