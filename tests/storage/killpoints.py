"""SIGKILL, EIO and ENOSPC at every mutating system call of a data directory's life, by strace.

    python -m tests.storage.killpoints [--sample N] [--seed S] [--minutes M] [--faults kill,eio,enospc]

The life (dir_workload) makes a directory, appends, votes, applies, takes snapshots, trims, sweeps, installs a leader's
snapshot and stops. After each fault the directory is opened by the product and compared with the promises made:

    kill     nothing promised is lost; it opens; kv equals the model; verify finds nothing
    eio      at a flush: the process ends with a reason and a non-zero code, and promises nothing more
    enospc   at a write: the step is refused, changes nothing, works when tried again; or, for what has no way back,
             the process ends with a reason
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from raftdb.errors import RaftdbError
from raftdb.storage.datadir import DataDir
from raftdb.storage.verify import verify_directory

from . import dir_workload
from .build import MAP_BYTES, content

WRITES = ("write", "writev", "pwrite64", "pwritev")
FLUSHES = ("fsync", "fdatasync", "msync")
OTHERS = ("ftruncate", "fallocate", "rename", "renameat", "mkdir", "unlink", "unlinkat", "rmdir")
FAULTS = {
    "kill": (WRITES + FLUSHES + OTHERS, "signal=SIGKILL"),
    "eio": (FLUSHES, "error=EIO"),
    "enospc": (("writev", "pwrite64", "pwritev", "mkdir", "fallocate"), "error=ENOSPC"),
}
Place = tuple[str, str, int]  # fault, system call, which one


def workload(scratch: Path, leader: Path, options: list[str]) -> subprocess.CompletedProcess[bytes]:
    arguments = ["-m", "tests.storage.dir_workload", str(scratch / "data"), str(scratch / "marks"), str(leader)]
    command = ["strace", "-f", "-o", str(scratch / "trace"), *options, sys.executable, "-B", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=100)


def count_calls(scratch: Path, leader: Path) -> Counter[str]:
    """How often each mutating call is made, marks and output included."""
    done = workload(scratch, leader, ["-e", f"trace={','.join(WRITES + FLUSHES + OTHERS)}"])
    assert done.returncode == 0, done
    found: Counter[str] = Counter()
    for line in (scratch / "trace").read_text(errors="replace").splitlines():
        match = re.match(r"(?:\d+ +)?(\w+)\(", line)
        if match:
            found[match[1]] += 1
    return found


def places(calls: Counter[str], faults: list[str]) -> list[Place]:
    return [
        (fault, name, number) for fault in faults for name in FAULTS[fault][0] for number in range(1, calls[name] + 1)
    ]


def promised(marks: Path) -> tuple[int, list[str]]:
    """(last promised index or -1, all words)."""
    lines = marks.read_text().splitlines() if marks.exists() else []
    acked = [int(line.split()[1]) for line in lines if line.startswith("ack")]
    return (acked[-1] if acked else -1), lines


def try_place(place: Place, scratch: Path, leader: Path) -> str | None:
    """What is wrong, or None."""
    fault, name, number = place
    inject = f"inject={name}:{FAULTS[fault][1]}:when={number}"
    done = workload(scratch, leader, ["-e", f"trace={name}", "-e", inject])
    last, words = promised(scratch / "marks")
    output = (done.stdout + done.stderr).decode(errors="replace")
    if "Traceback" in output:
        return f"a traceback: {output.splitlines()[-1]}"
    if fault == "kill" and done.returncode == 0:
        return "was not killed"
    if fault == "eio" and done.returncode == 0 and name == "fdatasync":
        return "a failed flush went unnoticed"
    if fault != "kill" and done.returncode not in (0, 3):
        return f"ended with {done.returncode}: {output[-300:]}"
    if done.returncode == 3 and "storage error: " not in output:
        return "ended without a reason"
    if done.returncode == 0 and "done" not in words:
        return "ended early without saying so"
    return check_directory(scratch / "data", last)


def check_directory(path: Path, last: int) -> str | None:
    try:
        if not DataDir.exists(path):
            return None if last < 0 else "the directory has gone"
        findings = [finding for finding in verify_directory(path) if not finding.note]
        if findings:
            return f"verify: {findings[0]}"
        data = DataDir.open(path, map_size_bytes=MAP_BYTES)
        try:
            if data.log.last < last:
                return f"entry {last} was promised, the log ends at {data.log.last}"
            if data.damaged:
                return f"damaged entries {data.damaged}"
            dir_workload.replay(data)
            if content(data.kv) != dir_workload.expected(data.log.last):
                return f"kv is not what the log says at {data.log.last}"
            data.sweep()
            dir_workload.append(data, 1)
        finally:
            data.close(clean=True)
    except RaftdbError as error:
        return f"does not open after promise {last}: {type(error).__name__}: {error}"
    return None


def run(
    faults: list[str], sample: int | None, seed: int, deadline_s: float, scratch: Path
) -> tuple[int, int, list[str]]:
    """(tried, there are, what went wrong)."""
    leader = scratch / "leader"
    dir_workload.make_leader(leader)
    first = scratch / "count"
    first.mkdir()
    found = places(count_calls(first, leader), faults)
    chosen = found if sample is None else random.Random(seed).sample(found, min(sample, len(found)))
    wrong = []
    tried = 0
    for place in chosen:
        if time.monotonic() > deadline_s:
            break
        here = scratch / "run"
        here.mkdir()
        tried += 1
        if (text := try_place(place, here, leader)) is not None:
            wrong.append(f"{place}: {text}")
            print(wrong[-1], flush=True)
        shutil.rmtree(here)
    return tried, len(found), wrong


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--faults", default="kill,eio,enospc")
    options = parser.parse_args()
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raftdb-kill-", dir=place) as scratch:
        deadline_s = started + options.minutes * 60
        tried, total, wrong = run(options.faults.split(","), options.sample, options.seed, deadline_s, Path(scratch))
    print(
        f"faults at system calls: {tried} of {total} places in {time.monotonic() - started:.0f} s, {len(wrong)} wrong"
    )
    return 1 if wrong or not tried else 0


if __name__ == "__main__":
    raise SystemExit(main())
