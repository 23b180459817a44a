"""How much anonymous memory a node takes: idle, with a million keys, while they are read, and after a restart.

    python -m tests.e2e.memory               # `make memory`

Data stays in the page cache, so what counts is RssAnon of /proc/PID/status: memory that is no file's. The bound is
section 11 of the design; redis-server, which keeps everything in memory, stands beside it when it is installed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.e2e.real_input import Model, pipe
from tests.e2e.server import Raftdb, Redis, Server

KEYS = 1_000_000
VALUE = b"v" * 100
MIB = 1024 * 1024
ANONYMOUS_BYTES_MAX = 40 * MIB  # "must"
SETTLE_S = 5.0  # for buffers of the load to be given back
READS = 100_000


def rss(server: Server) -> tuple[int, int]:
    """(anonymous, of files) bytes that are resident."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    sizes = {line.split()[0]: int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("Rss")}
    return sizes["RssAnon:"], sizes["RssFile:"]


def load(server: Server, keys: int) -> None:
    stream: Iterator[list[bytes]] = ([b"SET", b"key:%08d" % number, VALUE] for number in range(keys))
    pipe(server, stream, Model())


def read(server: Server, keys: int) -> None:
    """Keys from everywhere, in pipelines of a hundred."""
    with redis.Redis(port=server.port) as db:
        for start in range(0, READS, 100):
            pipeline = db.pipeline(transaction=False)
            for number in range(start, start + 100):
                pipeline.get(b"key:%08d" % (number * 7919 % keys))
            assert pipeline.execute() == [VALUE] * 100


def report(what: str, server: Server) -> int:
    anonymous, of_files = rss(server)
    print(f"{what:44} anonymous {anonymous / MIB:6.1f} MiB, of files {of_files / MIB:7.1f} MiB", flush=True)
    return anonymous


def main() -> int:
    """Prints what each state takes; exit code 1 when one is over the bound."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=int, default=KEYS)
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as directory:
        with Raftdb(Path(directory) / "raftdb") as node:
            time.sleep(1.0)
            found.append(report("idle", node))
            load(node, options.keys)
            report(f"{options.keys} keys, just loaded", node)
            time.sleep(SETTLE_S)
            found.append(report(f"{options.keys} keys, {SETTLE_S:.0f} s later", node))
            read(node, options.keys)
            found.append(report(f"{options.keys} keys, {READS} of them read", node))
            node.stop()
            node.start()
            time.sleep(1.0)
            found.append(report(f"{options.keys} keys, started again", node))
        if shutil.which("redis-server"):
            with Redis(Path(directory) / "redis") as beside:
                load(beside, options.keys)
                report(f"redis-server with {options.keys} keys", beside)
    worst = max(found)
    print(f"at most {worst / MIB:.1f} MiB anonymous, the bound is {ANONYMOUS_BYTES_MAX / MIB:.0f}")
    return 0 if worst <= ANONYMOUS_BYTES_MAX else 1


if __name__ == "__main__":
    sys.exit(main())
