"""Long searches with a ledger, and the share that runs on every landing.

The ledger (tests/sim/ledger.jsonl) is append-only: one line per slice, with the commit, the hash of the last change
to the core, the seeds, the events, the verdict. Hours add up over many runs; seeds are never used twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.sim import batch, gates, hunt
from tests.sim.runner import Total
from tests.sim.scope import search

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
LEDGER = HERE / "ledger.jsonl"
FIRST_SEED = 1_000_000
SLICE_SECONDS = 300.0
SLICE_SEEDS = 1_000_000
EVENTS = 5_000

CI_EVENTS = 12_000_000
CI_EVENTS_PER_SEED = 3_000
CI_STATES = 250_000


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def entries() -> list[dict[str, Any]]:
    if not LEDGER.exists():
        return []
    return [json.loads(line) for line in LEDGER.read_text().splitlines() if line]


def core_commit() -> str:
    return git("log", "-1", "--format=%h", "--", "raftdb/consensus")


class Ledger:
    """What was tested is what this process has loaded: the commit is the one it found when it began."""

    def __init__(self) -> None:
        self.commit = git("rev-parse", "--short=12", "HEAD")
        self.core = core_commit()
        self.clean = not git("status", "--porcelain", "--", "raftdb/consensus", "tests/sim/*.py")

    def append(self, row: dict[str, Any]) -> None:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stamp = {"when": when, "commit": self.commit, "core": self.core, "clean": self.clean}
        with LEDGER.open("a") as file:
            file.write(json.dumps({**stamp, **row}) + "\n")

    def outdated(self) -> bool:
        """Has the core moved on since?"""
        return core_commit() != self.core


def main(seconds: float, jobs: int) -> int:
    """Slices of new seeds until the time is up (0: for ever), or something is found.

    When the core has changed meanwhile, the next slice begins in a new process.
    """
    ledger = Ledger()
    deadline = time.monotonic() + (seconds or 1e9)
    while time.monotonic() < deadline:
        first = max((row["seeds"][1] + 1 for row in entries() if "seeds" in row), default=FIRST_SEED)
        total = batch.run(
            range(first, first + SLICE_SEEDS), EVENTS, jobs, min(SLICE_SECONDS, deadline - time.monotonic()), 1
        )
        ledger.append(seed_row(first, total))
        print(batch.report(total, EVENTS), flush=True)
        if total.failures:
            return 1
        if ledger.outdated():
            left = f"{max(1.0, deadline - time.monotonic()):.0f}" if seconds else "0"
            command = [sys.executable, "-m", "tests.sim", "campaign", "--seconds", left, "--jobs", str(jobs)]
            os.execv(sys.executable, command)
    print(summary())
    return 0


def seed_row(first: int, total: Total) -> dict[str, Any]:
    return {
        "tool": "seeds",
        "seeds": [first, total.last_seed],
        "events_per_seed": EVENTS,
        "events": total.events,
        "cpu_s": round(total.cpu_s),
        "verdict": "ok" if not total.failures else [f"{r.seed}: {r.rule}: {r.failure[:200]}" for r in total.failures],
    }


def scope(states: int) -> int:
    """Small-scope searches that are written into the ledger."""
    failed, ledger = False, Ledger()
    for outcome in search(states, 1e9):
        failed |= bool(outcome.finding)
        row = {"tool": "scope", "start": outcome.start, "bounds": outcome.bounds._asdict(), "states": outcome.states}
        row |= {"steps": outcome.steps, "depth": outcome.depth, "cpu_s": round(outcome.cpu_s)}
        ledger.append({**row, "verdict": outcome.finding[:300] or "ok"})
        print(outcome, flush=True)
    return 1 if failed else 0


def summary() -> str:
    """What the ledger adds up to, for the core as it is now and in all."""
    core = core_commit()
    rows = entries()
    parts = []
    for name, chosen in (("this core", [r for r in rows if r["core"] == core]), ("all", rows)):
        events = sum(r.get("events", 0) for r in chosen)
        states = sum(r.get("states", 0) for r in chosen)
        bad = sum(r["verdict"] != "ok" for r in chosen)
        parts.append(f"{name}: {events / 1e6:.1f} M events, {states / 1e6:.2f} M states, {bad} slices with findings")
    return "; ".join(parts)


# --- the share of one landing ---------------------------------------------------------------------------------------


def ci(commit: str, seconds: float, jobs: int) -> int:
    """Gates, all mutants by their stored seeds, the small scope, and seeds: half fixed, half from the commit.

    In `seconds` at most (0: as long as it takes); what did not fit is said.
    """
    deadline = time.monotonic() + (seconds or 1e9)
    commit = commit or git("rev-parse", "HEAD") or "0"
    problems: list[str] = []

    difference = gates.same_traces(30)
    if difference:
        problems.append(f"the same seeds gave different traces: {difference}")

    catches = hunt.run_all([], False, jobs, 30.0)
    missed = [catch.name for catch in catches if not catch.rule]
    if missed:
        problems.append(f"planted bugs that were not caught: {', '.join(missed)}")

    states, found = scope_share(deadline)
    if found:
        problems.append(f"small scope: {found}")

    total = seed_share(commit, deadline, jobs)
    print(batch.report(total, CI_EVENTS_PER_SEED))
    problems += [f"seed {r.seed}: {r.rule}: {r.failure}" for r in total.failures]
    problems += gates.too_few(total)

    print("\n".join(problems))
    print(
        f"simulation: {total.events:,} events in {total.seeds} seeds ({total.events / max(total.cpu_s, 1):,.0f} per "
        f"CPU-second), {len(total.failures)} violations; {len(catches) - len(missed)} of {len(catches)} planted bugs "
        f"caught; {states:,} small-scope states; {len(problems)} problems"
    )
    return 1 if problems else 0


def scope_share(deadline: float) -> tuple[int, str]:
    outcomes = list(search(CI_STATES, max(10.0, (deadline - time.monotonic()) / 2)))
    return sum(outcome.states for outcome in outcomes), next((o.finding for o in outcomes if o.finding), "")


def seed_share(commit: str, deadline: float, jobs: int) -> Total:
    """As many events as wanted, or as the time allows."""
    total = Total()
    own = int(commit[:10], 16) % 10**9 + 10**9  # far from the fixed ones and from the campaign's
    count = CI_EVENTS // CI_EVENTS_PER_SEED // 2
    for seeds in (range(count), range(own, own + count)):
        left = (deadline - time.monotonic()) / (2 if seeds.start == 0 else 1)
        part = batch.run(seeds, CI_EVENTS_PER_SEED, jobs, max(left, 5.0), 3)
        batch.merge(total, part)
    return total
