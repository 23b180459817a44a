"""The hunt for planted bugs: every mutant must be caught, and it is written down by what and how soon.

Each runs in a process of its own (see mutate.py). The seeds that caught a mutant are stored; CI runs them first, and
only if they fail to catch it (the core has changed, other dice fall) looks for new ones.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from tests.sim.mutants import MUTANTS, Mutant
from tests.sim.mutate import plant

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
STORED = HERE / "mutant_seeds.json"
TABLE = ROOT / "docs" / "mutants.md"
EVENTS = 5_000
TRANSCRIPT = "transcript"


class Catch(NamedTuple):
    """How a mutant was caught; rule "" when it was not."""

    name: str
    rule: str
    text: str
    seed: int
    seeds: int  # that had to be run
    cpu_s: float


class Known(NamedTuple):
    """What is stored about a mutant: the seeds that caught it, and how the last search from seed 0 on went."""

    seeds: list[int]
    rule: str
    tries: int
    cpu_s: float


# --- one mutant, in its own process ---------------------------------------------------------------------------------


def child(name: str, seeds: str, events: int, seconds_max: float) -> int:
    """Plant, run seeds until one fails, print a line of JSON."""
    mutant = next(m for m in MUTANTS if m.name == name)
    plant(mutant.patches)
    from tests.sim.runner import run_seed
    from tests.sim.settings import draw, readers

    started = time.process_time()
    number = 0
    for number, seed in enumerate(_seeds(seeds), 1):
        changes = readers(draw(seed), random.Random(seed))._asdict() if mutant.readers else {}
        changes.pop("seed", None)
        result = run_seed(seed, events, **changes)
        if result.failure:
            spent = time.process_time() - started
            print(json.dumps(Catch(name, result.rule, result.failure[:300], seed, number, round(spent, 2))._asdict()))
            return 0
        if time.process_time() - started > seconds_max:
            break
    if mutant.script and (text := transcript(mutant.script)):
        print(json.dumps(Catch(name, TRANSCRIPT, text, -1, number, round(time.process_time() - started, 2))._asdict()))
        return 0
    print(json.dumps(Catch(name, "", "", -1, number, round(time.process_time() - started, 2))._asdict()))
    return 1


def transcript(name: str) -> str:
    """What this transcript shows with the bug planted, and does not without: its first such line; "": none."""
    from tests.consensus.forming_scripts import FormingScript
    from tests.consensus.scripts import Script, replay

    path = ROOT / "tests" / "scripts" / f"{name}.txt"
    script = FormingScript() if name.startswith("forming_") else Script()
    wanted, happened = path.read_text().splitlines(), replay(path, script).splitlines()
    return next((f"{name}: {b}" for a, b in zip_longest(wanted, happened, fillvalue="(the end)") if a != b), "")


def _seeds(text: str) -> Iterable[int]:
    """`A..B` (B included), or seeds with commas; "": none."""
    if not text:
        return []
    if ".." in text:
        first, _, last = text.partition("..")
        return range(int(first), int(last) + 1)
    return [int(seed) for seed in text.split(",")]


# --- all of them ----------------------------------------------------------------------------------------------------


def hunt(mutant: Mutant, known: Known | None, seconds_max: float) -> Catch:
    """What caught it before, the stored seeds or the transcript; then new seeds."""
    if known is not None and (known.seeds or known.rule == TRANSCRIPT):
        catch = _run(mutant, ",".join(map(str, known.seeds)), seconds_max)
        if catch.rule:
            return catch
    return _run(mutant, "0..999999", seconds_max)


def _run(mutant: Mutant, seeds: str, seconds_max: float) -> Catch:
    command = [sys.executable, "-m", "tests.sim", "mutant", mutant.name, "--seeds", seeds, "--events", str(EVENTS)]
    command += ["--seconds", str(seconds_max)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds_max * 10 + 60)
    lines = done.stdout.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        raise RuntimeError(f"{mutant.name}: {done.stderr.strip()[-2000:]}")
    return Catch(**json.loads(lines[-1]))


def load() -> dict[str, Known]:
    if not STORED.exists():
        return {}
    return {name: Known(**row) for name, row in json.loads(STORED.read_text()).items()}


def run_all(names: list[str], fresh: bool, jobs: int, seconds_max: float) -> list[Catch]:
    """Every mutant, or those named; `fresh`: without the stored seeds."""
    chosen = [m for m in MUTANTS if m.name in names] if names else MUTANTS
    known = {} if fresh else load()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(hunt, mutant, known.get(mutant.name), seconds_max) for mutant in chosen]
        catches = []
        for mutant, future in zip(chosen, futures, strict=True):
            catch = future.result()
            catches.append(catch)
            where = f"seed {catch.seed}" if catch.seed >= 0 else "its script"
            verdict = f"{catch.rule:18} {where}, {catch.seeds} seeds" if catch.rule else "NOT CAUGHT"
            print(f"{mutant.name:34} {verdict:50} {catch.cpu_s:6.1f} CPU-s  {catch.text[:90]!r}", flush=True)
    return catches


def main(names: list[str], stored_only: bool, jobs: int, seconds_max: float) -> int:
    catches = run_all(names, not stored_only, jobs, seconds_max)
    missed = [c.name for c in catches if not c.rule]
    tail = f": missed {', '.join(missed)}" if missed else ""
    print(f"{len(catches) - len(missed)} of {len(catches)} planted bugs caught{tail}")
    if not stored_only:
        store(catches)
        TABLE.write_text(table(load()))
    return 1 if missed else 0


def store(catches: list[Catch]) -> None:
    """Keep up to three seeds per mutant, the newest first."""
    known = {name: row for name, row in load().items() if any(m.name == name for m in MUTANTS)}
    for catch in catches:
        old = known[catch.name].seeds if catch.name in known else []
        seeds = [catch.seed, *(seed for seed in old if seed != catch.seed)][:3] if catch.seed >= 0 else old
        known[catch.name] = Known(seeds, catch.rule, catch.seeds, catch.cpu_s)
    rows = {name: known[name]._asdict() for name in sorted(known)}
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def table(known: dict[str, Known]) -> str:
    """The page docs/mutants.md."""
    caught = sum(bool(m.name in known and known[m.name].rule) for m in MUTANTS)
    lines = [
        "# Planted bugs",
        "",
        "Written by `python -m tests.sim mutants`; do not edit. Each row is a small change to the source of the core,",
        "or to the way the simulated node uses its storage, planted in its own process. *Caught by* names the check",
        "that saw it (tests/sim/judge.py explains the numbers; `core:` is an assertion of the core, `disk` means that",
        "the disk was asked for what does not fit). *Seeds* is how many seeds, from 0 on, of",
        f"{EVENTS:,} events and a liveness phase were run until one failed. (Bugs of reads and leases: in busy",
        "clusters that work well and set traps for stale reads, `readers` in tests/sim/settings.py.) Where it says",
        f"`{TRANSCRIPT}`, so many seeds found nothing, since another rule stands behind the one that was left out;",
        "what saw it is the script of tests/scripts that was written for this rule and is named there.",
        "",
        f"{caught} of {len(MUTANTS)} are caught.",
        "",
        "| bug | what it is | caught by | seeds | CPU s |",
        "|---|---|---|---|---|",
    ]
    for mutant in MUTANTS:
        row: Any = known.get(mutant.name, Known([], "", 0, 0.0))
        rule = row.rule or "**missed**"
        if rule == TRANSCRIPT:
            rule = f"{TRANSCRIPT} {mutant.script}"
        lines.append(f"| {mutant.name} | {mutant.what} | {rule} | {row.tries} | {row.cpu_s} |")
    return "\n".join([*lines, ""])
