"""The long storage tests.

    python -m tests.storage ci [--minutes N]          CI's share: 5,000 crash images, faults, bit flips, planted faults
    python -m tests.storage campaign [--minutes N]    100,000 images, every fault, one bit of every byte

Exit code 0: nothing was found. One closing line says what was done. Needs strace.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from . import images, killpoints

SHARES = {
    "ci": {"minutes": 2.0, "images": 5_000, "faults": 160, "flips": 1_500, "images_share": 0.5},
    "campaign": {"minutes": 120.0, "images": 100_000, "faults": None, "flips": None, "images_share": 0.6},
}
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None


def flips(kind: str, sample: int | None, seed: int) -> str:
    """The closing line of tests.storage.flips; raises CalledProcessError when a flip was missed."""
    arguments = [sys.executable, "-m", "tests.storage.flips", kind, "--seed", str(seed)]
    if sample is not None:
        arguments += ["--sample", str(sample)]
    return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.storage")
    parser.add_argument("share", choices=sorted(SHARES))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    share = SHARES[options.share]
    if shutil.which("strace") is None:
        print("storage: strace is not installed")
        return 1
    started = time.monotonic()
    minutes = options.minutes or share["minutes"]
    wrong: list[str] = []
    parts: list[str] = []

    with tempfile.TemporaryDirectory(prefix="raftdb-images-", dir=PLACE) as scratch:
        for fault in ("unsynced", "metasync"):
            (Path(scratch) / fault).mkdir()
            if not images.run(300, options.seed, started + 60 * minutes, Path(scratch) / fault, fault).wrong:
                wrong.append(f"the planted fault {fault} was not found")
        until = started + 60 * minutes * share["images_share"]
        checker = images.run(share["images"], options.seed, until, Path(scratch))
    wrong += checker.wrong
    parts.append(f"{checker.images} crash images")

    for kind in ("log", "kv"):
        try:
            parts.append(flips(kind, share["flips"], options.seed))
        except subprocess.CalledProcessError as error:
            wrong.append(f"bit flips in {kind}: {error.stdout.strip()} {error.stderr[-300:]}")

    with tempfile.TemporaryDirectory(prefix="raftdb-kill-", dir=PLACE) as scratch:
        faults = ["kill", "eio", "enospc"]
        until = max(started + 60 * minutes, time.monotonic() + 5)
        tried, total, failed = killpoints.run(faults, share["faults"], options.seed, until, Path(scratch))
    wrong += failed
    parts.append(f"{tried} of {total} faults at system calls")

    for text in wrong[:20]:
        print(text)
    print(f"storage {options.share}: {'; '.join(parts)}; {len(wrong)} wrong; {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
