"""Plots of a run: throughput against clients, latency, the mixed load, growth with keys and with value size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from .load import Cell
from .plan import Results

DPI: Final = 110
PERCENTILES: Final = ("p50_ms", "p95_ms", "p99_ms", "max_ms")


def write(results: Results, directory: Path) -> list[str]:
    """Writes the plots that the run has figures for; their file names. Empty without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("agg")
    from matplotlib import pyplot

    made = []
    for name, (draw, cells) in _plots(results).items():
        if not cells:
            continue
        figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
        draw(axes, cells)
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize="small")
        figure.savefig(directory / f"{name}.svg", dpi=DPI)
        pyplot.close(figure)
        made.append(f"{name}.svg")
    return made


Draw = Callable[[Any, list[Cell]], None]


def _plots(results: Results) -> dict[str, tuple[Draw, list[Cell]]]:
    """Name of a plot -> (how, over which cells)."""
    cells = list(dict.fromkeys(cell for _, cell in results.figures))
    base = [
        cell for cell in cells if cell.keys == Cell("", 1, 1).keys and cell.value_bytes == Cell("", 1, 1).value_bytes
    ]

    def against(what: str, label: str) -> Draw:
        return lambda axes, chosen: _lines(axes, results, chosen, what, label)

    plots: dict[str, tuple[Draw, list[Cell]]] = {}
    for command in ("SET", "GET"):
        calm = [cell for cell in base if cell.command == command and cell.pipeline == 1]
        plots[f"clients-{command.lower()}"] = (
            against("clients", f"clients ({command})"),
            calm if len(calm) > 1 else [],
        )
        fifty = [cell for cell in calm if cell.clients == 50]
        plots[f"latency-{command.lower()}"] = (lambda axes, chosen: _latency(axes, results, chosen[0]), fifty)
    for field in ("keys", "value_bytes"):
        grown = [cell for cell in cells if cell not in base and _only_differs(cell, field)]
        at_rest = [cell for cell in base if any(_same_but(cell, other, field) for other in grown)]
        plots[f"growth-{field.replace('_', '-')}"] = (against(field, field.replace("_", " ")), at_rest + grown)
    return plots


def _only_differs(cell: Cell, field: str) -> bool:
    changed: dict[str, Any] = {field: getattr(cell, field)}
    return cell == Cell(cell.command, cell.clients, cell.pipeline)._replace(**changed)


def _same_but(one: Cell, other: Cell, field: str) -> bool:
    nothing: dict[str, Any] = {field: 0}
    return one._replace(**nothing) == other._replace(**nothing)


def _lines(axes: Any, results: Results, cells: Sequence[Cell], what: str, label: str) -> None:
    """Median rate of each system over one property of the cells; the bars are the spread."""
    for system in results.systems:
        for command in dict.fromkeys(cell.command for cell in cells):
            points = []
            for cell in sorted((c for c in cells if c.command == command), key=lambda c: getattr(c, what)):
                figure = results.figures.get((system.name, cell))
                if figure and figure.rate:
                    low, high = figure.spread
                    points.append((getattr(cell, what), figure.rate, figure.rate - low, high - figure.rate))
            if points:
                x, y, below, above = zip(*points, strict=True)
                name = f"{system.name} {command}" if len({c.command for c in cells}) > 1 else system.name
                axes.errorbar(x, y, yerr=(below, above), marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("requests a second")


def _latency(axes: Any, results: Results, cell: Cell) -> None:
    """Percentiles of each system in one cell."""
    for system in results.systems:
        figure = results.figures.get((system.name, cell))
        if figure and figure.rate:
            values = [figure.latency(name) for name in PERCENTILES]
            axes.plot(["p50", "p95", "p99", "max"], values, marker="o", label=system.name)
    axes.set_yscale("log")
    axes.set_xlabel(str(cell))
    axes.set_ylabel("milliseconds")
