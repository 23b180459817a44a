"""Runs of seeds: one, many, over several processes; what came of them; one line that repeats a failure."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterable
from typing import Any, NamedTuple

from tests.sim.disk import LostEntry
from tests.sim.judge import COUNTERS, Violation
from tests.sim.liveness import settle
from tests.sim.settings import Settings, draw
from tests.sim.world import World

EVENTS = 5_000


class Result(NamedTuple):
    """What came of one seed."""

    seed: int
    events: int
    trace: int
    failure: str  # "" when nothing was found
    rule: str  # which check found it
    where: str  # the end of a stack trace, for bugs that show as exceptions
    counts: dict[str, int]


def run_seed(seed: int, events: int = EVENTS, **changes: Any) -> Result:
    """The safety half, the liveness half, the clients' history."""
    world = World(draw(seed)._replace(**changes))
    rule, failure, where = "", "", ""
    try:
        world.start()
        world.run(events)
        if not settle(world):
            world.judge.counts["unsettled"] += 1
        world.judge_history()
    except Exception as error:  # whatever it is, it is a finding
        rule, failure, where = explain(error)
    return Result(seed, world.events, world.trace, failure, rule, where, world.judge.counts)


def explain(error: Exception) -> tuple[str, str, str]:
    """(rule, text, where)."""
    if isinstance(error, Violation):
        rule = error.rule
    elif isinstance(error, LostEntry):
        rule = "disk"
    else:
        rule = f"core:{type(error).__name__}"
    return rule, str(error), "".join(traceback.format_exception(error)[-6:])


class Total:
    """The sum of many results."""

    def __init__(self) -> None:
        self.seeds = 0
        self.last_seed = -1
        self.events = 0
        self.counts = dict.fromkeys(COUNTERS, 0)
        self.failures: list[Result] = []
        self.cpu_s = 0.0

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.last_seed = max(self.last_seed, result.seed)
        self.events += result.events
        for name, value in result.counts.items():
            self.counts[name] += value
        if result.failure:
            self.failures.append(result)


def run_seeds(seeds: Iterable[int], events: int, seconds_max: float = 1e9, failures_max: int = 1) -> Total:
    """One process."""
    total = Total()
    deadline = time.monotonic() + seconds_max
    started = time.process_time()
    for seed in seeds:
        total.add(run_seed(seed, events))
        if len(total.failures) >= failures_max or time.monotonic() > deadline:
            break
    total.cpu_s = time.process_time() - started
    return total


def settings_of(seed: int) -> Settings:
    return draw(seed)
