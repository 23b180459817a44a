"""Single-bit flips in the LMDB files of log and kv: do verify and the start find those that change an answer?

    python -m tests.storage.flips log|kv [--sample N] [--seed S]        without --sample: one bit of every byte

For each flip the raw content is read with plain LMDB. A flip is *harmless* when the content is as before; every other
one must be found by verify; one that changes log/meta or the last entry must be found by opening and Log.check().
Reading through View must never give a wrong value. A crash of the process (LMDB following a wild pointer) is a failure:
the runner is a process of its own and says first which bit it is about to flip.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

import lmdb

from raftdb.errors import Damaged, RaftdbError
from raftdb.storage.engine import missing_bytes, structure_findings
from raftdb.storage.kv import HASH, LIST, ZSET, Head, KvStore
from raftdb.storage.log import DATABASES, Log
from raftdb.storage.txn import SPACES
from raftdb.storage.verify import verify_kv, verify_log
from raftdb.types import HardState, NodeRef

from .build import MAP_BYTES, MEMBERS, THREE, entries, persist

ERROR = "error"


def build_log(path: Path) -> None:
    Log.create(path, incarnation=9, membership=MEMBERS, map_size_bytes=MAP_BYTES)
    log = Log.open(path, map_size_bytes=MAP_BYTES)
    log.start()
    made = entries(1, 60, payload=lambda index: b"x" * (6000 if index == 20 else 100))
    log.commit(persist(hard=HardState(3, NodeRef("n2", 77)), entries=made[:40]))
    log.commit(persist(entries=made[40:], membership=THREE, previous=MEMBERS))
    log.trim(10, 100)
    log.close()


def build_kv(path: Path) -> None:
    kv = KvStore.open(path, None, map_size_bytes=MAP_BYTES)
    batch = kv.batch()
    batch.begin(1, 10, 0)
    for number in range(60):
        batch.put_string(number % 2, b"key%d" % number, b"v" * (6000 if number == 7 else 80), 500 * (number % 3))
    for kind, name in ((HASH, b"hash"), (LIST, b"list"), (ZSET, b"zset")):
        collection = batch.new_collection()
        for number in range(20):
            if kind == LIST:
                batch.put_item(collection, number, b"element")
            else:
                batch.put_field(collection, b"f%d" % number, b"12345678")
            if kind == ZSET:
                batch.put_score(collection, number, b"f%d" % number)
        batch.put_head(0, name, Head(kind, 0, 0, b"", collection, 20, 0, 19))
    batch.commit(1, 1, 10, 5, MEMBERS)
    batch = kv.batch()
    batch.begin(2, 20, 0)
    batch.drop_head(0, b"key10")
    batch.commit(2, 1, 20, 6)
    kv.close(clean=True)


def raw_content(path: Path, names: tuple[bytes, ...]) -> list[dict[bytes, bytes]] | str:
    """Everything as plain LMDB reads it, or ERROR."""
    try:
        if missing_bytes(path / "data.mdb") or structure_findings(path / "data.mdb"):
            return ERROR  # LMDB could run into SIGBUS
        env = lmdb.open(os.fspath(path), max_dbs=16, map_size=MAP_BYTES, readonly=True, lock=False)
    except (lmdb.Error, Damaged):
        return ERROR
    try:
        databases = [env.open_db(name, create=False) for name in names]
        with env.begin() as txn:
            content = [dict(txn.cursor(database).iternext()) for database in databases]
            for database, found in zip(databases, content, strict=True):
                if any(txn.get(key, db=database) != value for key, value in found.items()):
                    return ERROR  # in the scan, but not where a search looks for it
            return content
    except (lmdb.Error, MemoryError, UnicodeError):
        return ERROR
    finally:
        env.close()


class Count:
    """What the flips came to."""

    def __init__(self) -> None:
        self.flips = self.harmless = self.found = 0
        self.missed: list[int] = []


def check_log(path: Path, sound, broken) -> str | None:
    """What is wrong, or None."""
    if not list(verify_log(path)):
        return "verify does not find it"
    tail = max(sound[0])
    if broken == ERROR or (broken[1] == sound[1] and broken[0].get(tail) == sound[0][tail]):
        return None
    try:
        log = Log.open(path, map_size_bytes=MAP_BYTES, read_only=True, unclean=False)
    except RaftdbError:
        return None
    try:
        return None if log.check(log.last - 1) else "the start does not find it"
    finally:
        log.close()


def check_kv(path: Path, sound, broken) -> str | None:
    if not list(verify_kv(path)):
        return "verify does not find it"
    if broken == ERROR:
        return None  # reading could end the process by SIGBUS
    try:
        kv = KvStore.open(path, None, map_size_bytes=MAP_BYTES, read_only=True)
    except RaftdbError:
        return None
    try:
        return wrong_reads(kv, sound)
    finally:
        kv.close(clean=False)


def wrong_reads(kv: KvStore, sound) -> str | None:
    """Reads may fail, or miss a record that the tree lost; a wrong value is never given."""
    with kv.view() as view:
        for space, records in enumerate(sound):
            for key, value in records.items():
                try:
                    found = view.get(space, key)
                except Damaged:
                    continue
                except RaftdbError:
                    continue
                if found is not None and found != value[:-4]:
                    return "a read gives a wrong value"
    return None


def run(kind: str, sample: int | None, seed: int, path: Path) -> Count:
    names = DATABASES if kind == "log" else SPACES
    (build_log if kind == "log" else build_kv)(path)
    check = check_log if kind == "log" else check_kv
    sound = raw_content(path, names)
    assert sound != ERROR
    assert not list(verify_log(path) if kind == "log" else verify_kv(path))
    data = (path / "data.mdb").read_bytes()
    rng = random.Random(seed)
    bits = [byte * 8 + rng.randrange(8) for byte in range(len(data))]
    if sample is not None:
        bits = rng.sample(bits, min(sample, len(bits)))
    count = Count()
    descriptor = os.open(path / "data.mdb", os.O_RDWR)
    for bit in bits:
        print(f"\rbit {bit}", end="", file=sys.stderr, flush=True)
        byte, mask = bit // 8, 1 << bit % 8
        os.pwrite(descriptor, bytes((data[byte] ^ mask,)), byte)
        count.flips += 1
        broken = raw_content(path, names)
        if broken == sound:
            count.harmless += 1
        elif (wrong := check(path, sound, broken)) is None:
            count.found += 1
        else:
            count.missed.append(bit)
            print(f"\n{kind} bit {bit}: {wrong}", file=sys.stderr)
        os.pwrite(descriptor, data[byte : byte + 1], byte)
    os.close(descriptor)
    return count


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["log", "kv"])
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="raftdb-flips-", dir=place) as scratch:
        count = run(options.kind, options.sample, options.seed, Path(scratch) / options.kind)
    print(
        f"bit flips in {options.kind}: {count.flips} flips, {count.harmless} change nothing, {count.found} found, "
        f"{len(count.missed)} missed"
    )
    return 1 if count.missed or not count.found else 0


if __name__ == "__main__":
    raise SystemExit(main())
