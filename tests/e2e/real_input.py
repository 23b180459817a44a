"""Real input: the word list of Debian's package wamerican as a stream of commands, and what must be there afterwards.

    python -m tests.e2e.real_input                 # 1,000,000 commands through redis-cli --pipe, every key read back
    python -m tests.e2e.real_input --commands 5000 --server redis

`make real-input` runs it, tests/e2e/test_real_input.py a sample. The model is a dict that executes the same commands.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.e2e.server import Server, server_class

WORD_LISTS = (Path("/usr/share/dict/american-english"), Path("/usr/share/dict/words"))
COMMANDS = 1_000_000
LIFETIME_S = 100_000  # of SETEX: long enough that nothing falls due during a run
KEYS_PER_READ = 500


def word_list() -> list[bytes] | None:
    """The words in their own order and encoding; None where the package is not installed."""
    path = next((path for path in WORD_LISTS if path.exists()), None)
    return path.read_bytes().split() if path else None


class Model:
    """A dict that executes the commands of the stream."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.expiring: set[bytes] = set()

    def set(self, key: bytes, value: bytes) -> None:
        self.values[key] = value
        self.expiring.discard(key)

    def setex(self, key: bytes, seconds: bytes, value: bytes) -> None:
        self.values[key] = value
        self.expiring.add(key)

    def incr(self, key: bytes) -> None:
        self.values[key] = b"%d" % (int(self.values.get(key, b"0")) + 1)

    def append(self, key: bytes, value: bytes) -> None:
        self.values[key] = self.values.get(key, b"") + value

    def mset(self, *pairs: bytes) -> None:
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            self.set(key, value)


def commands(words: list[bytes], count: int, seed: int) -> Iterator[list[bytes]]:
    """A stream that walks the list again and again in shuffled order, with all five commands mixed."""
    chance = random.Random(seed)
    deck: list[bytes] = []
    for number in range(count):
        if len(deck) < 3:
            deck = words.copy()
            chance.shuffle(deck)
        word, pick = deck.pop(), chance.random()
        if pick < 0.40:
            yield [b"SET", word, b"%s:%d" % (word[::-1], number)]
        elif pick < 0.55:
            yield [b"SETEX", word, b"%d" % LIFETIME_S, b"soon gone %d" % number]
        elif pick < 0.75:
            yield [b"INCR", b"count:" + word[:3]]
        elif pick < 0.90:
            yield [b"APPEND", word, b"+" + word]
        else:
            yield [b"MSET", word, b"%d" % number, deck.pop(), b"", b"len:%d" % len(word), word * 3]


def encoded(argv: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(argv) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in argv)


def pipe(server: Server, stream: Iterator[list[bytes]], model: Model) -> int:
    """Sends the stream through `redis-cli --pipe` and runs the model beside it; the number of replies.

    Raises AssertionError when redis-cli reports an error.
    """
    cli = [shutil.which("redis-cli") or "redis-cli", "-p", str(server.port), "--pipe", "--pipe-timeout", "120"]
    process = subprocess.Popen(cli, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdin
    assert process.stdout
    with process.stdin as sink:
        for argv in stream:
            sink.write(encoded(argv))
            getattr(model, argv[0].decode().lower())(*argv[1:])
    report = process.stdout.read().decode()
    code = process.wait()
    found = re.search(r"errors: (\d+), replies: (\d+)", report)
    assert found, report
    assert (code, int(found[1])) == (0, 0), report
    return int(found[2])


def differences(server: Server, model: Model) -> list[str]:
    """Every key of the model read back through redis-py, and nothing else may be there."""
    client = redis.Redis(port=server.port)
    wrong = []
    if client.dbsize() != len(model.values):
        wrong.append(f"{client.dbsize()} keys instead of {len(model.values)}")
    keys = sorted(model.values)
    for start in range(0, len(keys), KEYS_PER_READ):
        page = keys[start : start + KEYS_PER_READ]
        with client.pipeline(transaction=False) as pipeline:
            for key in page:
                pipeline.get(key).ttl(key)
            replies = pipeline.execute()
        for key, value, ttl in zip(page, replies[::2], replies[1::2], strict=True):
            if value != model.values[key]:
                wrong.append(f"{key!r}: {value!r} instead of {model.values[key]!r}")
            if (ttl > 0) != (key in model.expiring):
                wrong.append(f"{key!r}: TTL {ttl}")
    return wrong


def main() -> int:
    """The whole run, with its figures; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--commands", type=int, default=COMMANDS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=("raftdb", "redis"), default="raftdb")
    options = parser.parse_args()
    words = word_list()
    if words is None:
        print("no word list: install the package wamerican", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as directory, server_class(options.server)(Path(directory)) as server:
        model, started = Model(), time.perf_counter()
        replies = pipe(server, commands(words, options.commands, options.seed), model)
        seconds = time.perf_counter() - started
        print(f"{replies} commands in {seconds:.1f} s ({replies / seconds:,.0f} a second), {len(model.values)} keys")
        wrong = differences(server, model)
        server.kill()
        restart = server.start()
        wrong += [f"after kill -9: {line}" for line in differences(server, model)]
    print(f"every key read back before and after kill -9 (restart {restart:.2f} s): {len(wrong)} differences")
    print("\n".join(wrong[:20]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
