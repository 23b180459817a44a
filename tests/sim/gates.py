"""Two gates. A simulator that is not deterministic cannot repeat what it found; one in which nothing happens finds
nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.sim.runner import Total, run_seeds

ROOT = Path(__file__).parent.parent.parent

#: Of each thing at least so many per thousand seeds: about a third of what is usual.
ENOUGH_PER_THOUSAND_SEEDS = {
    "leaders": 2_000,
    "truncations": 60,
    "installs": 150,
    "memberships": 700,
    "refills": 12,
    "reads": 9_000,
    "lease reads": 1_500,
    "lost writes": 40,
    "torn states": 300,
    "torn lines": 30,
    "torn files": 40,
    "refused files": 5,
    "stops": 500,
    "crashes": 3_000,
    "commits": 20_000,
    "acknowledged": 15_000,
    "unknown": 5_000,
    "cuts": 2_000,
    "pauses": 1_000,
    "transfers": 200,
    "wipes": 90,
    "restores": 10,
    "damages": 40,
    "spoiled": 8,
    "encoded": 20_000,
    "flooded": 100,
    "grown": 45,
    "replaced": 28,
    "flipped": 12,
    "read everywhere": 50,
    "kept": 14,
    "came back": 29,
}
UNSETTLED_MAX_PER_THOUSAND_SEEDS = 40  # runs whose faults left no majority that could be asked to heal


def too_few(total: Total) -> list[str]:
    """What did not happen often enough in these runs to prove anything."""
    scale = total.seeds / 1000
    found = [
        f"{total.counts[name]} {name} in {total.seeds} seeds, at least {int(least * scale)} are wanted"
        for name, least in ENOUGH_PER_THOUSAND_SEEDS.items()
        if total.counts[name] < int(least * scale)
    ]
    if total.counts["unsettled"] > UNSETTLED_MAX_PER_THOUSAND_SEEDS * scale + 2:
        found.append(f"{total.counts['unsettled']} of {total.seeds} runs could not be asked to heal")
    return found


def same_traces(seeds: int, events: int = 2_000) -> str:
    """The same seeds in two processes that hash text differently: "" or the first difference."""
    command = [sys.executable, "-m", "tests.sim", "trace", "--seeds", f"0..{seeds - 1}", "--events", str(events)]
    outputs = []
    for hash_seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        outputs.append(done.stdout.splitlines())
    first, second = outputs
    if len(first) != seeds:
        return f"{len(first)} traces instead of {seeds}"
    return next((f"{a!r} and {b!r}" for a, b in zip(first, second, strict=True) if a != b), "")


def main(seeds: int) -> int:
    difference = same_traces(seeds)
    print(f"{seeds} seeds under two PYTHONHASHSEED values: {difference or 'the same traces'}")
    missing = too_few(run_seeds(range(10 * seeds), 3_000))
    print("\n".join(missing) or f"enough of everything happened in {10 * seeds} seeds")
    return 1 if difference or missing else 0
