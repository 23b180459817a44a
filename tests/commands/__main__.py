"""What CI and campaigns run of this folder: `python -m tests.commands ci|campaign [--minutes N] [--seed S]`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.differential.__main__ import main as differential

COMMANDS = {"ci": 30_000, "campaign": 500_000}
PART = 50_000  # of a campaign: the log that is replayed at the end of a run stays in memory


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.commands", description=__doc__)
    parser.add_argument("share", choices=sorted(COMMANDS))
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * options.minutes
    left, seed = COMMANDS[options.share], options.seed
    while left > 0 and time.monotonic() < deadline:
        minutes = (deadline - time.monotonic()) / 60
        words = ["--commands", str(min(left, PART)), "--seed", str(seed), "--minutes", f"{minutes:.3f}"]
        if differential(words):
            return 1
        left -= PART
        seed += 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
