"""Fill a node with keys of all types, save them in both codecs, start new clusters from the files, compare.

python -m tests.round_trip --keys 1000000        (`make round-trip`; prints seconds and sizes)
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis

from raftdb.storage import snapshot
from raftdb.storage.datadir import DataDir
from raftdb.storage.kv import KvStore, state_digest
from tests.e2e import server as servers
from tests.e2e.server import Raftdb

FAR_S = 86_400 * 365


def commands(keys: int, seed: int = 1) -> Iterator[tuple[Any, ...]]:
    """Commands that make about `keys` keys: strings, hashes, lists (regular and not), trees; odd names; expiries;
    several databases; keys that are changed and removed again. Set to database 0 at the end."""
    rng = random.Random(seed)
    yield "SELECT", 0
    for number in range(keys):
        if number % 500 == 499:
            yield "SELECT", rng.randrange(16)
        yield from _key(rng, _name(rng, seed, number), number)
    yield "SELECT", 0


def _name(rng: random.Random, seed: int, number: int) -> bytes:
    plain = b"%d:%d" % (seed, number)
    kind = rng.randrange(20)
    if kind == 0:
        return plain + bytes(rng.randrange(256) for _ in range(20))
    if kind == 1:
        return plain + b"long" * rng.randrange(110, 300)  # beyond what LMDB takes as a key
    return b"key:" + plain


def _key(rng: random.Random, name: bytes, number: int) -> Iterator[tuple[Any, ...]]:
    kind = rng.randrange(10)
    if kind == 0:
        yield "HSET", name, *(word for at in range(rng.randrange(1, 30)) for word in (b"f%d" % at, rng.randbytes(20)))
        yield "HDEL", name, b"f0"
    elif kind == 1:
        yield "RPUSH", name, *(b"%d" % (at % 7) for at in range(rng.randrange(1, 40)))
        yield "LPUSH", name, b"first"
    elif kind == 2:
        yield "RPUSH", name, *(b"e%d" % (at % 5) for at in range(30))
        yield "LREM", name, 2, b"e3"
        yield "LINSERT", name, "BEFORE", b"e4", b"inserted"
    elif kind == 3:
        yield (
            "TMK",
            b"tree:" + name.replace(b"/", b":").strip(),
            b'{"size": %d, "below": {"deep": "%d"}}' % (number, number),
        )
    elif kind == 4:
        yield "SET", name, rng.randbytes(rng.randrange(2_000)), "EX", FAR_S + number
    elif kind == 5:
        yield "SET", name, b"gone soon"
        yield "DEL", name
    else:
        yield "SET", name, rng.randbytes(rng.randrange(100))


def fill(port: int, keys: int, seed: int = 1) -> None:
    """Run the commands through pipelines."""
    with redis.Redis(port=port) as client, client.pipeline(transaction=False) as pipe:
        for number, words in enumerate(commands(keys, seed), 1):
            pipe.execute_command(*words)
            if number % 1_000 == 0:
                pipe.execute()
        pipe.execute()


# --- as a program -----------------------------------------------------------------------------------------------------


def _digest(directory: Path) -> tuple[str, int]:
    """(digest of all that clients can see, keys) of a node that is stopped."""
    data = DataDir.open(directory)
    try:
        return _digest_of(data.kv)
    finally:
        data.close(clean=True)


def _digest_of(kv: KvStore) -> tuple[str, int]:
    with kv.view() as view:
        return state_digest(view).hex(), sum(view.count(db) for db in range(16))


def run(directory: Path, keys: int) -> int:
    """Prints one line per step; the exit code."""
    started = time.perf_counter()

    def done(what: str) -> None:
        nonlocal started
        print(f"{time.perf_counter() - started:8.1f} s  {what}", flush=True)
        started = time.perf_counter()

    with Raftdb(directory / "first") as server:
        fill(server.port, keys)
        done(f"{keys} keys written")
        client = redis.Redis(port=server.port, socket_timeout=600)  # a checkpoint takes its time
        for codec in snapshot.CODECS:
            client.execute_command("CHECKPOINT", f"{codec}.dat", codec)
            size = (server.data / "checkpoints" / f"{codec}.dat").stat().st_size
            done(f"CHECKPOINT {codec}.dat {codec.upper()}: {size >> 10} KiB")
        server.stop()
    wanted, count = _digest(directory / "first" / "data")
    done(f"digest of {count} keys: {wanted}")
    equal = True
    for codec in snapshot.CODECS:
        file = directory / "first" / "data" / "checkpoints" / f"{codec}.dat"
        with Raftdb(directory / codec, "-l", str(file)) as server:
            done(f"serve -l {codec}.dat")
            server.stop()
        found, count = _digest(directory / codec / "data")
        equal = equal and found == wanted
        done(f"digest of {count} keys: {found} ({'equal' if found == wanted else 'DIFFERENT'})")
    return 0 if equal else 1


def main() -> int:
    servers.START_TIMEOUT_S = 600.0  # -l answers when the file is loaded
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    with tempfile.TemporaryDirectory(prefix="raftdb-round-trip-") as directory:
        return run(Path(directory), parser.parse_args().keys)


if __name__ == "__main__":
    sys.exit(main())
