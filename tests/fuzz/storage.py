"""Random and mutated bytes for everything that storage reads: only declared errors escape, time and memory are bounded.

    python -m tests.fuzz.storage [--seconds N] [--seed S]

Targets: log records, log/meta documents, kv heads and fields, identity, snapshots (both codecs), pickles. Half of the
inputs are mutations of good ones, and half of those get right checksums again, so that what stands behind a checksum is
reached as well.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

from raftdb.errors import RaftdbError
from raftdb.storage import codec, datadir, keys, pickled, records, snapshot
from raftdb.storage.checksum import crc32c, crc32c_extend
from raftdb.storage.codec import FIELDS, HEADS, LOG_META, Head, Malformed
from raftdb.storage.log import META_NAMES, Meta, Point, meta_documents, read_meta
from raftdb.types import Entry, HardState, Member, Membership, NodeRef, SnapshotMeta

SECONDS_MAX = 0.5  # for one small input; generous, the machine is shared
MEMORY_BASE_BYTES = 12 << 20

MEMBERS = Membership(4, tuple(Member(f"n{i}", i, f"h{i}:1", f"h{i}:2", i < 3) for i in range(4)))
SNAPSHOT = SnapshotMeta("raft_n1_1_9.dat", 9, 2, 77, 900, MEMBERS, 4711, bytes(range(32)))
POINT = Point(9, 2, 77, 900)
META = Meta(5, 3, HardState(7, NodeRef("n2", 9)), MEMBERS, MEMBERS, POINT, POINT._replace(index=30), SNAPSHOT, None)
ENTRY = Entry(7, 2, 1, 1000, 5, b"payload" * 9, 99)


def mutate(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 5)):
        place = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif kind == 2:
            del out[place : place + rng.randrange(1, 9)]
        elif kind == 3:
            out[place : place + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xdd\xff\xff\xff", b"\x7f\xff\xff\xff")
            )
        elif kind == 4:
            out[place:] = rng.randbytes(rng.randrange(64))
        else:
            out[place:place] = out[place // 2 : place]
    return bytes(out)


def sealed(rng: random.Random, space: int, key: bytes, body: bytes) -> bytes:
    value = codec.seal(space, key, body)
    return mutate(rng, value) if rng.random() < 0.5 else codec.seal(space, key, mutate(rng, body))


def fuzz_record(rng: random.Random) -> int:
    data = mutate(rng, records.encode(ENTRY))
    if rng.random() < 0.5 and len(data) >= records.HEADER_BYTES:
        length = (len(data) - records.HEADER_BYTES).to_bytes(4, "little")
        head = data[:4] + length
        rest = data[12 : records.HEADER_BYTES]
        crc = crc32c_extend(crc32c((7).to_bytes(8, "big") + head + rest), data[records.HEADER_BYTES :])
        data = head + crc.to_bytes(4, "little") + rest + data[records.HEADER_BYTES :]
    records.decode(7, data)
    return len(data)


def fuzz_meta(rng: random.Random) -> int:
    stored = {name: codec.seal(LOG_META, name, codec.pack(value)) for name, value in meta_documents(META).items()}
    name = rng.choice(META_NAMES)
    stored[name] = sealed(rng, LOG_META, name, codec.pack(meta_documents(META)[name]))
    read_meta(stored.get)
    return sum(map(len, stored.values()))


def fuzz_document(rng: random.Random) -> int:
    documents = (
        codec.membership_document(MEMBERS),
        codec.snapshot_document(SNAPSHOT),
        codec.hard_document(META.hard),
    )
    data = mutate(rng, codec.pack(rng.choice(documents))) if rng.random() < 0.7 else rng.randbytes(rng.randrange(200))
    document = codec.unpack(data)
    for shape in (codec.membership_from, codec.snapshot_from, codec.hard_from):
        try:
            shape(document)
        except Malformed:
            continue
    return len(data)


def fuzz_head(rng: random.Random) -> int:
    name = rng.choice((b"", b"name", b"n" * 480, b"n" * 481, b"n" * 3000))
    key = keys.head(b"\0\0\0\1", name)
    head = Head(rng.choice((1, 2, 3, 4, 5)), 5, 6, b"value", 7, 8, 9, 10)
    value = codec.encode_head(key, head, name if len(name) > keys.SHORT_NAME_BYTES_MAX else None)
    value = sealed(rng, HEADS, key, value[:-4])
    codec.decode_head(key, value)
    codec.head_name(key, value)
    return len(value) + len(key)


def fuzz_long_field(rng: random.Random) -> int:
    key = keys.field(3, b"f" * 900)
    value = sealed(rng, FIELDS, key, codec.long_name(b"f" * 900) + b"value")
    codec.split_long_name(FIELDS, key, codec.unseal(FIELDS, key, value))
    return len(value)


def fuzz_identity(rng: random.Random) -> int:
    identity = datadir.Identity("n1", "ab" * 16, rng.getrandbits(64), 1, "")
    data = mutate(rng, datadir.encode_identity(identity))
    if rng.random() < 0.5:
        body = data.rpartition(b"checksum: ")[0]
        data = body + b"checksum: %08x\n" % crc32c(body)
    datadir.decode_identity(data, "identity")
    return len(data)


def fuzz_pickle(rng: random.Random) -> int:
    good = pickled.dumps([[1, 0, b"name", b"body" * 20], [3, b"f", b"v" * 300], [5, 2.5, b"m"], [4, -(2**40), b""]])
    data = mutate(rng, good) if rng.random() < 0.8 else b"\x80\x05" + rng.randbytes(rng.randrange(100))
    pickled.loads(data)
    return len(data)


class Snapshots:
    """Whole files, good ones made once."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "snapshot"
        self._good: list[bytes] = []
        for codec_name in snapshot.CODECS:
            self._write(codec_name, ROWS)
            self._good.append(self._file.read_bytes())

    def _write(self, codec_name: str, rows: list[list[object]], blocks: list[bytes] | None = None) -> None:
        header = snapshot.Header(
            *(codec_name, "c", "n", 1, 5, 1, 2, 3, bytes(16), 10, 100),
            *(b"".join(number.to_bytes(4, "big") for number in range(16)), (2,) + (0,) * 15, (0,) * 16, MEMBERS),
        )
        document = codec.pack((*header[:-1], codec.membership_document(MEMBERS)))
        with self._file.open("wb") as file:
            out = snapshot._FrameWriter(file)
            out.frame(snapshot._HEADER_KIND, document)
            made = [block for block, _ in snapshot._blocks(((row, 10) for row in rows), codec_name)]
            for block in blocks or made:
                out.block(block)
            out.footer(len(rows), 2)

    def fuzz(self, rng: random.Random) -> int:
        which = rng.randrange(2)
        if rng.random() < 0.5:
            self._file.write_bytes(mutate(rng, self._good[which]))
        else:
            name = snapshot.CODECS[which]
            blocks = [mutate(rng, block) for block, _ in snapshot._blocks(((row, 10) for row in ROWS), name)]
            self._write(name, ROWS, [block for block in blocks if block] or [b"\x90"])
        size = self._file.stat().st_size
        with snapshot.Reader(self._file) as reader:
            for _ in reader.walk():
                pass
        return size


HASH_BODY = b"\5\0" + bytes(16) + (3).to_bytes(8, "little") + bytes(24)
ROWS: list[list[object]] = [
    [1, 0, b"string", b"\1\0" + bytes(16) + b"value"],
    [2, 0, b"hash", HASH_BODY],
    [3, b"f", b"v", b"g", b"w" * 200],
    [4, -5, b"item"],
    [5, 2.5, b"member"],
]


def run(seconds: float, seed: int) -> dict[str, int]:
    """Runs of each target. Raises whatever escapes, with the seed that brings it back."""
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="raftdb-fuzz-", dir=memory) as place:
        targets: list[Callable[[random.Random], int]] = [
            *(fuzz_record, fuzz_meta, fuzz_document, fuzz_head, fuzz_long_field, fuzz_identity, fuzz_pickle),
            Snapshots(Path(place)).fuzz,
        ]
        counts = {target.__name__: 0 for target in targets}
        refused = dict(counts)
        until = time.monotonic() + seconds
        number = seed * 1_000_003
        while time.monotonic() < until:
            for target in targets:
                for _ in range(50):
                    number += 1
                    counts[target.__name__] += 1
                    refused[target.__name__] += one(target, number, watch=number % 50 == 0)
    for name, count in counts.items():
        assert refused[name] > count // 10, f"{name} refuses next to nothing: {refused[name]} of {count}"
    return counts


def one(target: Callable[[random.Random], int], number: int, *, watch: bool) -> bool:
    """Run one input; True when it was refused. `watch`: measure its memory as well."""
    if watch:
        tracemalloc.start()
    started = time.process_time()
    try:
        target(random.Random(number))
        return False
    except (RaftdbError, Malformed, pickled.NotPlain):
        return True
    except BaseException as error:
        error.add_note(f"{target.__name__} with seed {number}")
        raise
    finally:
        took = time.process_time() - started
        peak = 0
        if watch:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert took < SECONDS_MAX, f"{target.__name__} with seed {number} took {took:.2f} s"
        assert peak < MEMORY_BASE_BYTES, f"{target.__name__} with seed {number} took {peak} bytes"


def fuzz(seconds: float, seed: int) -> tuple[int, str]:
    """For tests.fuzz: (inputs tried, what went wrong or "")."""
    try:
        return sum(run(seconds, seed).values()), ""
    except Exception as error:
        return 0, f"{type(error).__name__}: {error} ({'; '.join(getattr(error, '__notes__', []))})"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    counts = run(options.seconds, options.seed)
    print(f"fuzz storage: {sum(counts.values())} inputs, only declared errors: {counts}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
