"""What a run comes to: Markdown for people, JSON for programs, plots of both."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from .load import Cell
from .plan import Figure, Results

FSYNC_PROBES: Final = 200


def machine(directory: Path) -> dict[str, Any]:
    """What the figures depend on: processors, memory, kernel, interpreter, disk, commit."""
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short=12", "HEAD") + ("+" if _git("status", "--porcelain", "-uno") else ""),
        "processors": f"{os.cpu_count()} x {_processor()}",
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "fdatasync_ms": round(fdatasync_ms(directory), 3),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _git(*words: str) -> str:
    ran = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return ran.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def fdatasync_ms(directory: Path) -> float:
    """Median time to append a page to a file and sync it: what the disk costs per acknowledged batch."""
    directory.mkdir(parents=True, exist_ok=True)
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(FSYNC_PROBES):
            file.write(b"x" * 4096)
            file.flush()
            started = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(results: Results, facts: dict[str, Any], title: str) -> str:
    """The whole report."""
    parts = [f"## {title}", _facts(facts), _systems(results), "### Throughput", _throughput(results)]
    parts += ["### Latency, milliseconds (p50 / p99)", _latency(results)]
    if results.mixed:
        parts += ["### Mixed load", _mixed(results)]
    parts += ["### Budgets", _budgets(results)]
    if failures := results.failures():
        parts += ["### Failed", "\n".join(f"- {line}" for line in failures)]
    return "\n\n".join(parts) + "\n"


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def _systems(results: Results) -> str:
    rows = [f"| {s.name} | {s.version()} | {s.nodes} | {s.synced} |" for s in results.systems]
    rows += [f"| {name} | left out | | {reason} |" for name, reason in results.left_out.items()]
    return "\n".join(["| system | version | nodes | on disk when a write is answered |", "|---|---|---|---|", *rows])


def _cells(results: Results) -> list[Cell]:
    return list(dict.fromkeys(cell for _, cell in results.figures))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _throughput(results: Results) -> str:
    """Median (least - most) requests a second, and the ratio to redis."""
    names = [system.name for system in results.systems]
    rows = [[str(cell), *(_rate(results, name, cell) for name in names)] for cell in _cells(results)]
    return _table(["requests a second: median (least-most), ratio to redis", *names], rows)


def _rate(results: Results, name: str, cell: Cell) -> str:
    figure = results.figures.get((name, cell))
    if figure is None:
        return ""
    if figure.failure:
        return "failed"
    low, high = figure.spread
    ratio = results.ratio(name, cell)
    told = f", **{ratio:.2f}**" if ratio is not None and name != "redis" else ""
    return f"{figure.rate:,.0f} ({low:,.0f}-{high:,.0f}){told}"


def _latency(results: Results) -> str:
    names = [system.name for system in results.systems]
    rows = [[str(cell), *(_percentiles(results.figures.get((n, cell))) for n in names)] for cell in _cells(results)]
    return _table(["", *names], rows)


def _percentiles(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return "failed" if figure.failure else f"{figure.latency('p50_ms'):.2f} / {figure.latency('p99_ms'):.2f}"


def _mixed(results: Results) -> str:
    rows = []
    for name, all_of in results.mixed.items():
        if reason := next((one.failure for one in all_of if one.failure), None):
            rows.append([name, "failed", reason, "", "", ""])
            continue
        ratios = [one.ratio for one in all_of]
        rows.append(
            [
                name,
                f"{statistics.median(one.calm.rate for one in all_of):,.0f}",
                f"{statistics.median(one.disturbed.rate for one in all_of):,.0f}",
                f"**{statistics.median(ratios):.2f}** ({min(ratios):.2f}-{max(ratios):.2f})",
                f"{statistics.median(one.ranges for one in all_of):,.0f}",
                "-" if all_of[0].elections is None else str(sum(one.elections or 0 for one in all_of)),
            ]
        )
    return _table(["", "calm SET/s", "disturbed SET/s", "ratio", "LRANGE meanwhile", "elections"], rows)


def _budgets(results: Results) -> str:
    rows = []
    for what, ratio, must in results.budgets():
        shown = "no figure" if ratio is None else f"{ratio:.2f}"
        rows.append([what, shown, f"{must:.2f}", "holds" if ratio is not None and ratio >= must else "**missed**"])
    return _table(["", "measured", "must", ""], rows)


# --- JSON -----------------------------------------------------------------------------------------------------------


def as_json(results: Results, facts: dict[str, Any]) -> str:
    """Every sample of the run."""
    return json.dumps(
        {
            "machine": facts,
            "systems": {
                s.name: {"version": s.version(), "nodes": s.nodes, "synced": s.synced} for s in results.systems
            },
            "left_out": results.left_out,
            "cells": [
                {"system": name, **cell._asdict(), "samples": [sample._asdict() for sample in figure.samples]}
                for (name, cell), figure in results.figures.items()
            ],
            "mixed": {
                name: [{**one._asdict(), "calm": one.calm._asdict(), "disturbed": one.disturbed._asdict()} for one in m]
                for name, m in results.mixed.items()
            },
            "budgets": results.budgets(),
            "failures": results.failures(),
        },
        indent=1,
    )
