"""How long a restart takes after kill -9, with a million keys against a thousand.

    python -m tests.e2e.restart_time               # `make restart-time`

From the start of the process to the first answered PING and the first GET of a stored key; the median of several kills.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.e2e.real_input import Model, pipe
from tests.e2e.server import Server, server_class

SMALL, LARGE = 1_000, 1_000_000
VALUE = b"v" * 100
REPETITIONS = 5
RATIO_MAX = 3.0  # section 11 of the design: "must"


def load(server: Server, keys: int) -> None:
    """Fills the store with keys of 100-byte values."""
    stream: Iterator[list[bytes]] = ([b"SET", b"key:%08d" % number, VALUE] for number in range(keys))
    pipe(server, stream, Model())


def restart_s(server: Server, keys: int) -> float:
    """kill -9, start, first read of a key that must be there."""
    server.kill()
    started = time.perf_counter()
    server.start()
    assert redis.Redis(port=server.port).get(b"key:%08d" % (keys - 1)) == VALUE
    return time.perf_counter() - started


def main() -> int:
    """Prints both medians and their ratio; exit code 1 when it is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=LARGE)
    parser.add_argument("--server", choices=("raftdb", "redis"), default="raftdb")
    options = parser.parse_args()
    kind = server_class(options.server)
    with (
        tempfile.TemporaryDirectory() as directory,
        kind(Path(directory) / "small") as small,
        kind(Path(directory) / "large") as large,
    ):
        load(small, SMALL)
        load(large, options.keys)
        few, many = [], []
        for _ in range(REPETITIONS):  # interleaved: both see the same machine
            few.append(restart_s(small, SMALL))
            many.append(restart_s(large, options.keys))
    for keys, times in ((SMALL, few), (options.keys, many)):
        print(f"{keys} keys: {statistics.median(times):.3f} s (from {min(times):.3f} to {max(times):.3f})")
    ratio = statistics.median(many) / statistics.median(few)
    print(f"ratio {ratio:.2f}, at most {RATIO_MAX}")
    return 0 if ratio <= RATIO_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
