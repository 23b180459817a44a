"""Many seeds over several processes, and the report about them."""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.sim.runner import Total, run_seeds

CHUNK = 20


def run(seeds: range, events: int, jobs: int, seconds_max: float, failures_max: int) -> Total:
    """All seeds, until the time is up or enough failures are found."""
    if jobs == 1:
        return run_seeds(seeds, events, seconds_max, failures_max)
    total = Total()
    deadline = time.monotonic() + seconds_max
    with ProcessPoolExecutor(jobs) as pool:
        pending = set()
        chunks = iter([seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)])
        for chunk in chunks:
            pending.add(pool.submit(run_seeds, chunk, events, deadline - time.monotonic(), failures_max))
            if len(pending) >= 2 * jobs:
                done = next(as_completed(pending))
                pending.remove(done)
                merge(total, done.result())
            if len(total.failures) >= failures_max or time.monotonic() > deadline:
                break
        for done in as_completed(pending):
            merge(total, done.result())
    return total


def merge(total: Total, part: Total) -> None:
    total.seeds += part.seeds
    total.last_seed = max(total.last_seed, part.last_seed)
    total.events += part.events
    total.cpu_s += part.cpu_s
    for name, value in part.counts.items():
        total.counts[name] += value
    total.failures += part.failures


def report(total: Total, events: int) -> str:
    """What was run, what happened in it, what failed and how to see it again."""
    rate = total.events / total.cpu_s if total.cpu_s else 0
    lines = [
        ", ".join(f"{value} {name}" for name, value in total.counts.items() if value),
        f"{total.seeds} seeds, {total.events} events, {rate:,.0f} events per CPU-second: "
        f"{len(total.failures)} violations",
    ]
    for result in sorted(total.failures):
        lines.append(f"seed {result.seed} after {result.events} events: {result.rule}: {result.failure}")
        lines.append(result.where.rstrip())
        lines.append(f"again: python -m tests.sim repro --seed {result.seed} --events {events}")
    return "\n".join(lines)
