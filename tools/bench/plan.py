"""Which systems answer which cells, in which order; and what the figures come to.

Systems take turns: repetition 1 of each, then repetition 2 of each. A machine that slows down for a minute slows all of
them down; a ratio is the median of the ratios of the turns, and survives it. Each turn starts on empty directories.
"""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from .load import Cell, Sample
from .mixed import Mixed
from .processes import Failed
from .systems import System

CLIENTS: Final = (1, 50, 200)
PIPELINES: Final = (1, 16)
CELLS: Final = tuple(
    Cell(command, clients, pipeline) for command in ("SET", "GET") for pipeline in PIPELINES for clients in CLIENTS
)

#: How throughput changes with the number of keys and with the size of values.
GROWTH: Final = tuple(
    [Cell(command, 50, 1, keys=keys) for command in ("SET", "GET") for keys in (1_000, 1_000_000)]
    + [Cell(command, 50, 1, value_bytes=size) for command in ("SET", "GET") for size in (10, 1_000, 10_000)]
)


class Budget(NamedTuple):
    """At least `must` times what `base` does, in one run, each in its own cell."""

    system: str
    cell: Cell
    base: str
    base_cell: Cell
    must: float

    def __str__(self) -> str:
        other = f", {self.base_cell}" if self.base_cell != self.cell else ""
        return f"{self.system}, {self.cell} / {self.base}{other}"


def _budget(system: str, command: str, pipeline: int, base: str, must: float) -> Budget:
    cell = Cell(command, 50, pipeline)
    return Budget(system, cell, base, cell, must)


#: The "must" column: raftdb against others of the same run.
BUDGETS: Final = (
    _budget("raftdb-1", "SET", 1, "redis", 0.50),
    _budget("raftdb-1", "SET", 16, "redis", 0.35),
    _budget("raftdb-1", "GET", 1, "redis", 0.60),
    _budget("raftdb-3", "SET", 1, "redis", 0.30),
    _budget("raftdb-3", "SET", 16, "redis", 0.15),
    Budget("raftdb-3", Cell("SET", 200, 1), "raftdb-3", Cell("SET", 50, 1), 1.2),
    _budget("raftdb-3-lease", "GET", 1, "redis", 0.50),
    _budget("raftdb-3", "GET", 1, "redis", 0.35),
    _budget("raftdb-3", "SET", 1, "etcd-3", 4.0),
    _budget("raftdb-3", "SET", 1, "pysyncobj-3", 6.0),
)
MUST_MIXED: Final = 0.4


class Figure(NamedTuple):
    """All samples of one system in one cell."""

    samples: tuple[Sample, ...]

    @property
    def failure(self) -> str | None:
        """The first failure: one failed request makes the cell failed."""
        return next((sample.failure for sample in self.samples if sample.failure), None)

    @property
    def rate(self) -> float:
        """Median of the requests a second; 0 when a run failed."""
        return 0.0 if self.failure or not self.samples else statistics.median(s.rate for s in self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        rates = [sample.rate for sample in self.samples] or [0.0]
        return min(rates), max(rates)

    def latency(self, name: str) -> float:
        """Median over the runs of p50_ms, p95_ms, p99_ms or max_ms."""
        return 0.0 if self.failure or not self.samples else statistics.median(getattr(s, name) for s in self.samples)


class Results(NamedTuple):
    """Everything that one run measured."""

    systems: tuple[System, ...]
    left_out: dict[str, str]  # system -> why
    figures: dict[tuple[str, Cell], Figure]
    mixed: dict[str, tuple[Mixed, ...]]

    def ratio(self, system: str, cell: Cell, base: str = "redis", base_cell: Cell | None = None) -> float | None:
        """Median of the ratios of the turns, which cancels the machine; None where one of both has no figure."""
        mine, other = self.figures.get((system, cell)), self.figures.get((base, base_cell or cell))
        if not (mine and other and mine.rate and other.rate):
            return None
        return statistics.median(a.rate / b.rate for a, b in zip(mine.samples, other.samples, strict=False))

    def failures(self) -> list[str]:
        """Runs in which something failed, and budgets that do not hold, one line each."""
        lines = [f"{name}, {cell}: {figure.failure}" for (name, cell), figure in self.figures.items() if figure.failure]
        lines += [
            f"{name}, mixed: {one.failure or f'{one.elections} elections'}"
            for name, all_of in self.mixed.items()
            for one in all_of
            if one.failure or one.elections
        ]
        return lines

    def budgets(self) -> list[tuple[str, float | None, float]]:
        """(what, measured ratio, must) for every budget that this run can judge."""
        rows = [
            (str(budget), self.ratio(budget.system, budget.cell, budget.base, budget.base_cell), budget.must)
            for budget in BUDGETS
            if (budget.system, budget.cell) in self.figures and (budget.base, budget.base_cell) in self.figures
        ]
        for name, all_of in self.mixed.items():
            if name.startswith("raftdb"):
                ratio = statistics.median(one.ratio for one in all_of) if not any(o.failure for o in all_of) else None
                rows.append((f"{name}, mixed against calm", ratio, MUST_MIXED))
        return rows


def present(systems: Sequence[System]) -> tuple[tuple[System, ...], dict[str, str]]:
    """Those that can be measured here, and why the others cannot."""
    reasons = {system.name: system.missing() for system in systems}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    return tuple(system for system in systems if system.name not in left_out), left_out


Say = Callable[[str], None]


class Run:
    """One run: repetitions in turns, figures gathered."""

    def __init__(self, directory: Path, seconds: float, say: Say) -> None:
        self.directory = directory
        self.seconds = seconds
        self.say = say
        self.samples: dict[tuple[str, Cell], list[Sample]] = {}
        self.mixed: dict[str, list[Mixed]] = {}
        self.given_up: dict[str, str] = {}  # system -> the cell that it did not end in time: it is asked no more

    def repeat(
        self,
        systems: Sequence[System],
        cells: Sequence[Cell],
        repetitions: int,
        mixed: Callable[[System], Mixed | None] | None = None,
        together: bool = False,
    ) -> None:
        """Every cell of every system, `repetitions` times in turns; then the mixed load likewise.

        together: all systems are up at the same time, one of them works; they take turns cell by cell. That is the
        fairest comparison, for systems that cost nothing while they are idle.
        """
        groups = [systems] if together else [[system] for system in systems]
        for turn in range(1, repetitions + 1):
            for group in groups:
                self._turn(group, cells, turn)
            for system in systems if mixed else ():
                with self._running([system], f"{turn}-mixed") as up:
                    self._guarded(system, partial(self._mixed, mixed=mixed, turn=turn), up)

    def _turn(self, group: Sequence[System], cells: Sequence[Cell], turn: int) -> None:
        with self._running(group, f"{turn}-cells") as up:
            for cell in cells:
                for system in [system for system in group if system in up and system.takes(cell)]:
                    self._guarded(system, partial(self._sample, cell=cell, turn=turn), up)

    @contextmanager
    def _running(self, group: Sequence[System], name: str) -> Iterator[list[System]]:
        """The systems of the group that started; all are stopped and their data removed, whatever happens."""
        up = list(group)
        places = {system.name: self.directory / f"{system.name}-{name}" for system in group}
        try:
            for system in group:
                self._guarded(system, lambda system: system.start(places[system.name]), up)
            yield up
        finally:
            for system in group:
                system.stop()
                shutil.rmtree(places[system.name], ignore_errors=True)

    def _guarded(self, system: System, work: Callable[[System], None], up: list[System]) -> None:
        """A system that dies is out of this turn, and has no figure in any cell, those before included."""
        if system not in up:
            return
        try:
            work(system)
        except (Failed, OSError) as error:
            self.say(f"{system.name}: {error}")
            up.remove(system)
            for (name, _), samples in self.samples.items():
                if name == system.name:
                    samples.append(Sample(0.0, failure=str(error)))

    def _sample(self, system: System, cell: Cell, turn: int) -> None:
        kept = self.samples.setdefault((system.name, cell), [])
        if system.name in self.given_up:
            sample = Sample(0.0, failure=self.given_up[system.name])
        else:
            sample = system.measure(cell, self.seconds)
            if sample.timed_out:
                self.given_up[system.name] = f"not asked: {cell} was {sample.failure}"
        kept.append(sample)
        self.say(f"[{turn}] {system.name:16} {cell!s:32} {sample.failure or f'{sample.rate:10,.0f} /s'}")

    def _mixed(self, system: System, mixed: Callable[[System], Mixed | None] | None, turn: int) -> None:
        assert mixed
        result = mixed(system)
        if result is None:
            return
        self.mixed.setdefault(system.name, []).append(result)
        told = f"{result.calm.rate:,.0f} -> {result.disturbed.rate:,.0f} /s, {result.ratio:.2f}"
        self.say(
            f"[{turn}] {system.name:16} mixed: {result.failure or told} ({result.ranges} LRANGE, "
            f"{result.keys_replies} KEYS, elections: {'-' if result.elections is None else result.elections})"
        )

    def results(self, systems: Sequence[System], left_out: dict[str, str]) -> Results:
        figures = {key: Figure(tuple(samples)) for key, samples in self.samples.items()}
        return Results(tuple(systems), left_out, figures, {name: tuple(all_of) for name, all_of in self.mixed.items()})
