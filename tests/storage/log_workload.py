"""A small life of a log, run by its own process so that its system calls can be recorded, killed or made to fail.

    python -m tests.storage.log_workload DIRECTORY MARKS [unsynced|metasync]

Every step is one call that promises something. Before a step the line `try N`, after it `ack N` is written to MARKS;
`signature()` of the log after each step is what the checker compares with. The third argument plants a fault that the
checker must find: LMDB does not flush at all, or does not wait for its meta page.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import lmdb

from raftdb.storage import log as log_module
from raftdb.storage.engine import Environment
from raftdb.storage.log import Log
from raftdb.types import HardState, NodeRef

from .build import MAP_BYTES, MEMBERS, THREE, entries, persist, snapshot_meta

STEPS = 60


def signature(log: Log) -> str:
    """Everything that the log promises, as one digest."""
    digest = hashlib.blake2b(digest_size=16)
    fields = (log.first, log.last, log.hard, log.membership, log.previous_membership, log.snapshot, log.starts)
    digest.update(repr((fields, log.previous_snapshot, log.incarnation)).encode())
    for found in log.walk():
        digest.update(repr(found).encode())
    return digest.hexdigest()


def step(log: Log, number: int) -> None:
    """One promise; deterministic."""
    last = log.last
    term = log.hard.term
    payload_bytes = (20, 400, 5000, 60)[number % 4]

    def payload(index: int) -> bytes:
        return bytes((index * 31 + number) % 256 for _ in range(payload_bytes))

    kind = number % 10
    if kind in (0, 1, 2, 3, 5, 7):
        made = entries(last + 1, 1 + number % 3, log.chain(last), max(1, term), payload)
        log.commit(persist(entries=made))
    elif kind == 4:
        log.commit(persist(hard=HardState(term + 1, NodeRef("n2", number))))
    elif kind == 6:
        cut = max(log.first, last - 1)
        hard = HardState(term + 1, None)
        made = entries(cut, 2, log.chain(cut - 1), term + 1, payload)
        membership = THREE if number % 20 == 6 else MEMBERS
        log.commit(persist(hard=hard, truncate_from=cut, entries=made, membership=membership, previous=log.membership))
    elif kind == 8:
        if number % 20 == 8:
            log.add_snapshot(snapshot_meta(last, log.term(last), log.chain(last), f"s{number}.dat"))
        else:
            meta = snapshot_meta(last + 3, max(1, term), number, f"s{number}.dat")
            keep = snapshot_meta(last, log.term(last), log.chain(last), f"k{number}.dat")
            log.commit(persist(install=keep if number % 40 == 18 else meta, keep_suffix=number % 40 == 18))
    else:
        log.trim(max(1, log.last - 4), 3)


def faulty(fault: str):
    """An Environment that forgets a flush: `unsynced` all of them, `metasync` those of meta pages."""

    class Faulty(Environment):
        def _open(self, sync, map_size_bytes, readers_max):
            options = {"map_size": map_size_bytes, "max_dbs": 16, "max_readers": readers_max, "mode": 0o600}
            return lmdb.open(os.fspath(self.path), **options, sync=fault != "unsynced", metasync=fault != "metasync")

    return Faulty


def mark(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())


def expected_signatures(directory: Path) -> list[str]:
    """signature() before the first step and after each one, from a run of our own."""
    Log.create(directory, incarnation=9, membership=MEMBERS, map_size_bytes=MAP_BYTES)
    log = Log.open(directory, map_size_bytes=MAP_BYTES, cache_bytes_max=2000)
    log.start()
    found = [signature(log)]
    for number in range(STEPS):
        step(log, number)
        found.append(signature(log))
    log.close()
    return found


def main() -> int:
    directory, marks = Path(sys.argv[1]), sys.argv[2]
    if len(sys.argv) > 3:
        log_module.Environment = faulty(sys.argv[3])
    descriptor = os.open(marks, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    Log.create(directory, incarnation=9, membership=MEMBERS, map_size_bytes=MAP_BYTES)
    log = Log.open(directory, map_size_bytes=MAP_BYTES, cache_bytes_max=2000)
    log.start()
    mark(descriptor, "ack 0")
    for number in range(STEPS):
        mark(descriptor, f"try {number + 1}")
        step(log, number)
        mark(descriptor, f"ack {number + 1}")
    log.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
