"""The long storage tests.

    python -m tests.storage ci [--minutes N]          CI's share: 5,000 crash images, faults, bit flips, planted faults
    python -m tests.storage campaign [--minutes N]    100,000 images, every fault, one bit of every byte
    python -m tests.storage campaign --only images    one part of it: images, log, kv or faults

Exit code 0: nothing was found. One closing line says what was done. Each part of a campaign draws from a seed that was
never used and leaves a line in the ledger (tests/storage/ledger.jsonl). Needs strace.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.ledger import CLEAN, Ledger

from . import images, killpoints


class Share(NamedTuple):
    minutes: float
    images: int
    faults: int | None  # None: all there are
    flips: int | None
    images_share: float  # of the time


class Part(NamedTuple):
    """What one part came to."""

    name: str
    counted: int
    text: str
    wrong: list[str]


SHARES = {"ci": Share(2.0, 5_000, 160, 1_500, 0.5), "campaign": Share(120.0, 100_000, None, None, 0.6)}
PARTS = ("images", "log", "kv", "faults")
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None
LEDGER = Path(__file__).with_name("ledger.jsonl")
SOURCES = ("raftdb/storage", "tests/storage")
FIRST_SEED = 1_000
IMAGES_PLANTED = 300


def crash_images(share: Share, seed: int, until: float) -> Part:
    """First with planted faults, which must be found; then of the product."""
    wrong = []
    with tempfile.TemporaryDirectory(prefix="raftdb-images-", dir=PLACE) as scratch:
        for fault in ("unsynced", "metasync"):
            (Path(scratch) / fault).mkdir()
            if not images.run(IMAGES_PLANTED, seed, until, Path(scratch) / fault, fault).wrong:
                wrong.append(f"the planted fault {fault} was not found")
        checker = images.run(share.images, seed, until, Path(scratch))
    return Part("images", checker.images, f"{checker.images} crash images", wrong + checker.wrong)


def flips(kind: str, share: Share, seed: int) -> Part:
    arguments = [sys.executable, "-m", "tests.storage.flips", kind, "--seed", str(seed)]
    if share.flips is not None:
        arguments += ["--sample", str(share.flips)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    if done.returncode:
        return Part(kind, 0, f"bit flips in {kind}", [f"bit flips in {kind}: {text} {done.stderr[-300:]}"])
    return Part(kind, int(text.split()[4]), text, [])


def faults(share: Share, seed: int, until: float) -> Part:
    with tempfile.TemporaryDirectory(prefix="raftdb-kill-", dir=PLACE) as scratch:
        tried, total, failed = killpoints.run(
            ["kill", "eio", "enospc"], share.faults, seed, max(until, time.monotonic() + 5), Path(scratch)
        )
    return Part("faults", tried, f"{tried} of {total} faults at system calls", failed)


def parts(share: Share, only: str, seed: int, minutes: float) -> Iterator[Part]:
    started = time.monotonic()
    ends = started + 60 * minutes
    if only in ("", "images"):
        yield crash_images(share, seed, ends if only else started + 60 * minutes * share.images_share)
    for kind in ("log", "kv"):
        if only in ("", kind):
            yield flips(kind, share, seed)
    if only in ("", "faults"):
        yield faults(share, seed, ends)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storage")
    parser.add_argument("share", choices=sorted(SHARES))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", choices=PARTS, default="")
    options = parser.parse_args()
    share = SHARES[options.share]
    if shutil.which("strace") is None:
        print("storage: strace is not installed")
        return 1
    ledger = Ledger(LEDGER, *SOURCES) if options.share == "campaign" else None
    seed = options.seed or (ledger.next_seed(FIRST_SEED) if ledger else 1)
    started = time.monotonic()
    done: list[Part] = []
    for part in parts(share, options.only, seed, options.minutes or share.minutes):
        done.append(part)
        if ledger:
            verdict = CLEAN if not part.wrong else part.wrong[:5]
            ledger.append(tool=part.name, seed=seed, tried=part.counted, text=part.text, verdict=verdict)
    wrong = [text for part in done for text in part.wrong]
    for text in wrong[:20]:
        print(text)
    told = "; ".join(part.text for part in done)
    print(f"storage {options.share}: {told}; {len(wrong)} wrong; {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
