"""Crash images of the log environment: every state that a power failure may leave, opened and compared.

    python -m tests.storage.images [--images N] [--seed S] [--minutes M] [--fault unsynced|metasync]

A recorded life of a log (log_workload) gives the writes, flushes and promises in their order. A disk keeps what was
flushed; of later writes any subset, whole or torn into sectors of 512 or 4,096 bytes. For each point of the record,
first the plain cases are made (nothing, everything, each prefix, each single write, all but one), then random subsets
and torn ones, until N different images were opened. Each must open with the product's own recovery and show the state
after the last promise that was kept, or after the one that was being made. `--fault` plants one; it must be found.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from raftdb.errors import RaftdbError
from raftdb.storage.log import Log

from . import log_workload, trace
from .build import MAP_BYTES
from .trace import Flush, Resize, Write


class Point:
    """A moment of the record: what is durable, what is under way, which promises were kept."""

    def __init__(self, durable: bytes, pending: list[tuple[int, bytes]], kept: int, tried: int) -> None:
        self.durable = durable
        self.pending = pending
        self.kept = kept
        self.tried = tried


def points(events: list[trace.Event], data_file: str, marks: str) -> list[Point]:
    durable = bytearray()
    pending: list[tuple[int, bytes]] = []
    kept, tried, started = -1, 0, False
    found: list[Point] = []
    for event in events:
        if isinstance(event, Write) and event.path == marks:
            word, number = event.data.split()
            if word == b"ack":
                kept, started = int(number), True
            else:
                tried = int(number)
        elif event.path == data_file:
            if isinstance(event, Flush):
                for write in pending:
                    _put(durable, *write)
                pending = []
            elif isinstance(event, Resize):
                pending.append((event.size, b""))
            else:
                pending.append((event.offset, event.data))
                if started:
                    found.append(Point(bytes(durable), list(pending), kept, tried))
                if event.synced:
                    _put(durable, *pending.pop())
        else:
            continue
        if started:
            found.append(Point(bytes(durable), list(pending), kept, tried))
    return found


def _put(image: bytearray, offset: int, data: bytes) -> None:
    if len(image) < offset + len(data):
        image.extend(bytes(offset + len(data) - len(image)))
    image[offset : offset + len(data)] = data


def plain_images(point: Point) -> Iterator[bytes]:
    count = len(point.pending)
    choices = [range(length) for length in range(count + 1)]
    choices += [range(one, one + 1) for one in range(count)]
    for choice in choices:
        yield build(point.durable, [point.pending[number] for number in choice])
    for left_out in range(count):
        yield build(point.durable, [write for number, write in enumerate(point.pending) if number != left_out])


def random_image(point: Point, rng: random.Random) -> bytes:
    chosen = [write for write in point.pending if rng.random() < rng.choice((0.2, 0.5, 0.8))]
    torn: list[tuple[int, bytes]] = []
    sector = rng.choice((512, 4096))
    tear = rng.random() < 0.6
    for offset, data in chosen:
        if not tear or not data:
            torn.append((offset, data))
            continue
        for piece in pieces(offset, data, sector):
            if rng.random() < 0.7:
                torn.append(piece)
    return build(point.durable, torn)


def pieces(offset: int, data: bytes, sector: int) -> Iterator[tuple[int, bytes]]:
    """A write, cut at the borders of sectors."""
    place = 0
    while place < len(data):
        end = min(len(data), place + sector - (offset + place) % sector)
        yield offset + place, data[place:end]
        place = end


def build(durable: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    image = bytearray(durable)
    for write in writes:
        _put(image, *write)
    return bytes(image)


class Checker:
    """Opens images with the product's recovery and compares."""

    def __init__(self, directory: Path, signatures: list[str]) -> None:
        self._directory = directory
        self._signatures = signatures
        self._seen: set[bytes] = set()
        self.images = 0
        self.kept_only = 0
        self.wrong: list[str] = []

    def check(self, image: bytes, point: Point) -> None:
        key = blake2b(image + bytes((point.kept, point.tried)), digest_size=16).digest()
        if key in self._seen:
            return
        self._seen.add(key)
        self.images += 1
        path = self._directory / "log"
        path.mkdir(exist_ok=True)
        (path / "data.mdb").write_bytes(image)
        allowed = self._signatures[point.kept : point.tried + 1]
        try:
            log = Log.open(path, map_size_bytes=MAP_BYTES)
            try:
                found = log_workload.signature(log)
                damaged = log.check(log.first - 1)
            finally:
                log.close()
        except RaftdbError as error:
            self.wrong.append(f"after promise {point.kept}: does not open: {error}")
            return
        if found not in allowed or damaged:
            state = self._signatures.index(found) if found in self._signatures else "an unknown one"
            self.wrong.append(f"after promise {point.kept} (trying {point.tried}): state {state}, damaged {damaged}")
        elif found == self._signatures[point.kept]:
            self.kept_only += 1


def run(images_max: int, seed: int, deadline_s: float, scratch: Path, fault: str = "") -> Checker:
    marks, log_path = scratch / "marks", scratch / "recorded"
    arguments = ["-m", "tests.storage.log_workload", str(log_path), str(marks)]
    trace.record([*arguments, fault] if fault else arguments, scratch / "trace")
    found = points(trace.events(scratch / "trace"), str(log_path / "data.mdb"), str(marks))
    assert found[-1].kept == log_workload.STEPS
    checker = Checker(scratch, log_workload.expected_signatures(scratch / "expected"))
    for point in found:
        for image in plain_images(point):
            checker.check(image, point)
            if checker.images >= images_max or time.monotonic() > deadline_s:
                return checker
    rng = random.Random(seed)
    torn = [point for point in found if point.pending]
    tries = 0
    while checker.images < images_max and time.monotonic() < deadline_s and tries < 20 * images_max:
        point = rng.choice(torn)
        tries += 1
        checker.check(random_image(point, rng), point)
    return checker


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--fault", choices=["unsynced", "metasync"], default="")
    options = parser.parse_args()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raftdb-images-", dir=place) as scratch:
        deadline_s = started + options.minutes * 60
        checker = run(options.images, options.seed, deadline_s, Path(scratch), options.fault)
    for text in checker.wrong[:20]:
        print(text)
    print(
        f"crash images of the log: {checker.images} opened in {time.monotonic() - started:.0f} s, "
        f"{checker.kept_only} without the unfinished commit, {len(checker.wrong)} wrong"
    )
    return 1 if checker.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
