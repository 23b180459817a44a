"""`python -m tests.differential --commands 30000 --seed S [--minutes N]`: compare with redis-server.

Exit code 1 on a difference, after printing the shortest program found that shows it.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import time

from .duel import Duel
from .players import RaftdbPlayer, WirePlayer
from .programs import Generator


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--commands", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--redis-server", default="redis-server")
    parser.add_argument("--wire", action="store_true", help="a raftdb server over TCP instead of the machine alone")
    options = parser.parse_args(argv)
    if shutil.which(options.redis_server) is None:
        print(f"differential: skipped, {options.redis_server} is not installed")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no server is left behind
    ours = WirePlayer() if options.wire else RaftdbPlayer(options.seed)
    return run(options.redis_server, ours, options.commands, options.seed, options.minutes)


def run(redis_server: str, ours: RaftdbPlayer | WirePlayer, commands: int, seed: int, minutes: float) -> int:
    """The exit code."""
    played, difference = search(redis_server, ours, commands, seed, minutes)
    print(difference or f"differential: {played} commands, seed {seed}: no difference")
    return 1 if difference else 0


def search(
    redis_server: str, ours: RaftdbPlayer | WirePlayer, commands: int, seed: int, minutes: float
) -> tuple[int, str]:
    """(commands played, the first difference or "")."""
    duel, generator = Duel(redis_server, ours), Generator(seed)
    deadline = time.monotonic() + 60 * minutes
    programs = 0
    try:
        while duel.commands < commands and time.monotonic() < deadline:
            found = duel.play(generator.program())
            programs += 1
            if found is not None:
                return duel.commands, f"differential: seed {seed}, program {programs}:\n{duel.shrink(found)}"
        wrong = ours.finish()
        return duel.commands, f"differential: seed {seed}: {wrong}" if wrong is not None else ""
    finally:
        duel.close()


if __name__ == "__main__":
    sys.exit(main())
