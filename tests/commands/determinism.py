"""One replica in a process of its own: reads entries, prints the digest after each.

    python -m tests.commands.determinism DIRECTORY [SHIFT_S] < entries

The caller sets PYTHONHASHSEED and TZ; SHIFT_S moves every clock that Python code can read. Entries are msgpack arrays.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import msgpack

from raftdb.storage.kv import state_digest
from raftdb.types import Entry

from .replica import Replica


def shift_clocks(shift_s: float) -> None:
    """Make the clocks of this process run elsewhere, and faster."""
    true_time, true_monotonic = time.time, time.monotonic_ns
    time.time = lambda: true_time() * 1.5 + shift_s
    time.time_ns = lambda: int(time.time() * 1e9)
    time.monotonic_ns = lambda: true_monotonic() * 2


def main(directory: str, shift_s: str = "0") -> None:
    shift_clocks(float(shift_s))
    replica = Replica(Path(directory))
    for row in msgpack.Unpacker(sys.stdin.buffer, use_list=False):
        entry = Entry(*row)
        replica.apply_entry(entry)
        print(entry.index, replica.kv.digest.hex())
    with replica.kv.view() as view:
        print("state", state_digest(view).hex())
    replica.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
