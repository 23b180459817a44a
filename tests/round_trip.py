"""Fill a node with keys of all types, save them in both codecs, start new clusters from the files, compare.

python -m tests.round_trip --keys 1000000        (`make round-trip`; prints seconds and sizes, writes the ledger)

Then single bytes of the files are flipped, and `serve -l` must refuse each with its place.
"""

from __future__ import annotations

import argparse
import random
import re
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
from tests.ledger import CLEAN, Ledger

FAR_S = 86_400 * 365
FLIPS = 6
USAGE = 2  # exit code
LEDGER = Path(__file__).with_name("round_trip.jsonl")
SOURCES = ("raftdb",)


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


def flipped_places(size: int) -> list[int]:
    """Bytes of the first frames, some in between, and of the footer."""
    return [0, 9, 40, *(size * part // FLIPS for part in range(1, FLIPS)), size - 40, size - 1]


def refused(file: Path, directory: Path, place: int) -> str:
    """What `serve -l` does wrong with this byte flipped: it must name the place and leave nothing. Else ""."""
    with file.open("r+b") as handle:
        handle.seek(place)
        byte = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes((byte ^ 1 << place % 8,)))
    server = Raftdb(directory, "-l", str(file))
    try:
        server.start()
        return f"byte {place}: the file was taken"
    except servers.StartFailed:
        pass
    finally:
        server.kill()
        with file.open("r+b") as handle:
            handle.seek(place)
            handle.write(bytes((byte,)))
    told = server.output.strip().splitlines()[-1]
    found = re.search(r"bytes (\d+) to (\d+): ", told)
    if place >= len(snapshot.MAGIC) and not (found and int(found[1]) <= place < int(found[2])):
        return f"byte {place}: the place is not named: {told[-300:]}"
    code = server.process.returncode if server.process else None
    if code != USAGE or not told.startswith("raftdb: ") or server.data.exists():
        return f"byte {place}: exit code {code}, {told[-300:]}"
    return ""


def run(directory: Path, keys: int, flips: bool, seed: int) -> tuple[list[str], dict[str, Any]]:
    """(what went wrong, figures); prints one line per step."""
    started = time.perf_counter()
    facts: dict[str, Any] = {}
    wrong: list[str] = []

    def done(what: str, fact: str, value: Any = None) -> None:
        nonlocal started
        seconds = round(time.perf_counter() - started, 1)
        print(f"{seconds:8.1f} s  {what}", flush=True)
        facts[fact] = seconds if value is None else value
        started = time.perf_counter()

    with Raftdb(directory / "first") as server:
        fill(server.port, keys, seed)
        done(f"{keys} keys written", "write_s")
        client = redis.Redis(port=server.port, socket_timeout=600)  # a checkpoint takes its time
        for codec in snapshot.CODECS:
            client.execute_command("CHECKPOINT", f"{codec}.dat", codec)
            size = (server.data / "checkpoints" / f"{codec}.dat").stat().st_size
            facts[f"{codec}_bytes"] = size
            done(f"CHECKPOINT {codec}.dat {codec.upper()}: {size >> 10} KiB", f"{codec}_checkpoint_s")
        server.stop()
    wanted, count = _digest(directory / "first" / "data")
    done(f"digest of {count} keys: {wanted}", "keys_held", count)
    for codec in snapshot.CODECS:
        file = directory / "first" / "data" / "checkpoints" / f"{codec}.dat"
        with Raftdb(directory / codec, "-l", str(file)) as server:
            done(f"serve -l {codec}.dat", f"{codec}_load_s")
            server.stop()
        found, count = _digest(directory / codec / "data")
        equal = found == wanted
        wrong += [] if equal else [f"{codec}: digest {found} of {count} keys, not {wanted}"]
        done(f"digest of {count} keys: {found} ({'equal' if equal else 'DIFFERENT'})", f"{codec}_equal", equal)
        places = flipped_places(file.stat().st_size) if flips else []
        for number, place in enumerate(places):
            text = refused(file, directory / f"{codec}-flip-{number}", place)
            wrong += [f"{codec}: {text}"] if text else []
        done(f"{len(places)} flipped bytes of {codec}.dat, each by serve -l", f"{codec}_flips", len(places))
    return wrong, facts


def main() -> int:
    servers.START_TIMEOUT_S = 600.0  # -l answers when the file is loaded
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--no-flips", action="store_true")
    options = parser.parse_args()
    ledger = Ledger(LEDGER, *SOURCES)
    seed = ledger.next_seed(1)
    with tempfile.TemporaryDirectory(prefix="raftdb-round-trip-") as directory:
        wrong, facts = run(Path(directory), options.keys, not options.no_flips, seed)
    ledger.append(seed=seed, keys=options.keys, **facts, verdict=wrong[:5] or CLEAN)
    print("\n".join(wrong[:5]) or "round trip: equal digests; every flipped byte was refused with its place")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
