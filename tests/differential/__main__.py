"""`python -m tests.differential --commands 30000 --seed S [--minutes N]`: compare with redis-server.

Exit code 1 on a difference, after printing the shortest program found that shows it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time

from .duel import Duel
from .players import replay
from .programs import Generator


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--commands", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--redis-server", default="redis-server")
    options = parser.parse_args(argv)
    if shutil.which(options.redis_server) is None:
        print(f"differential: skipped, {options.redis_server} is not installed")
        return 0
    return run(options.redis_server, options.commands, options.seed, options.minutes)


def run(redis_server: str, commands: int, seed: int, minutes: float) -> int:
    duel, generator = Duel(redis_server, seed), Generator(seed)
    deadline = time.monotonic() + 60 * minutes
    programs = 0
    try:
        while duel.commands < commands and time.monotonic() < deadline:
            found = duel.play(generator.program())
            programs += 1
            if found is not None:
                print(f"differential: seed {seed}, program {programs}:\n{duel.shrink(found)}")
                return 1
        duel.ours.commit()
        if replay(duel.ours.log) != duel.ours.kv.digest:
            print(f"differential: seed {seed}: replaying the log gives another digest")
            return 1
    finally:
        duel.close()
    print(f"differential: {duel.commands} commands in {programs} programs, seed {seed}: no difference; the log replays")
    return 0


if __name__ == "__main__":
    sys.exit(main())
