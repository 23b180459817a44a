"""The command line of the benchmarks."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from . import mixed, plan, plots, profile, report, stages
from .foreign import Etcd, Pyraft, PySyncObj
from .load import Cell
from .processes import Failed
from .systems import Raftdb, Redis, RespSystem, System, others

DIRECTORY = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), default=Path("bench-data"), show_default=True,
    help="Where the systems keep their data while they are measured; on the disk that is to be measured.",
)  # fmt: skip
REPETITIONS = click.option("--repetitions", type=click.IntRange(1), default=5, show_default=True, help="Turns.")
SECONDS = click.option("--seconds", type=float, default=2.0, show_default=True, help="Length of one measurement.")
OUT = click.option("--out", type=click.Path(path_type=Path), help="Write report.md, report.json and plots here.")
ONLY = click.option("--only", multiple=True, metavar="TEXT", help="Only cells whose name has this text: 'SET 50'.")
VARIANT = click.option(
    "--variant", "variants", multiple=True, metavar="NAME=FLAGS",
    help="Another raftdb with these flags of `raftdb serve`, as in --variant 'io2=--io-threads 2'.",
)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Measure raftdb beside others, in one run on this machine."""


@cli.command()
@DIRECTORY
@REPETITIONS
@SECONDS
@OUT
@VARIANT
@click.option("--mixed-keys", type=int, default=mixed.KEYS, show_default=True, help="Keys under the mixed load.")
@click.option("--mixed-seconds", type=float, default=6.0, show_default=True, help="Length of its calm half.")
@click.option("--no-mixed", is_flag=True, help="Only the cells.")
@ONLY
def single(
    directory: Path,
    repetitions: int,
    seconds: float,
    out: Path | None,
    variants: tuple[str, ...],
    mixed_keys: int,
    mixed_seconds: float,
    no_mixed: bool,
    only: tuple[str, ...],
) -> None:
    """One node beside redis-server with appendfsync always: SET, GET, the mixed load."""
    systems: list[System] = [Redis(), Raftdb(1), *(variant(text) for text in variants)]
    cells = chosen_cells(plan.CELLS, only)

    def disturb(system: System) -> mixed.Mixed:
        assert isinstance(system, RespSystem)
        mixed.prepare(system, mixed_keys)
        return mixed.measure(system, mixed_seconds, mixed_keys)

    measure(systems, cells, directory, repetitions, seconds, out, None if no_mixed else disturb, "One node", True)


@cli.command("all")
@DIRECTORY
@click.option("--repetitions", type=click.IntRange(1), default=3, show_default=True, help="Turns.")
@SECONDS
@OUT
@click.option("--config", type=click.Path(path_type=Path), help="TOML file with further systems; see tools/bench.toml.")
@click.option("--without", multiple=True, metavar="NAME", help="Leave this system out.")
@ONLY
@click.option("--no-growth", is_flag=True, help="Without the cells of many keys and of large values.")
@click.option("--no-mixed", is_flag=True, help="Without the mixed load.")
def everything(
    directory: Path,
    repetitions: int,
    seconds: float,
    out: Path | None,
    config: Path | None,
    without: tuple[str, ...],
    only: tuple[str, ...],
    no_growth: bool,
    no_mixed: bool,
) -> None:
    """1, 3 and 5 nodes beside redis-server, etcd, PySyncObj, pyraft and the systems of a TOML file."""
    systems: list[System] = [
        Redis(),
        Raftdb(1),
        Raftdb(3),
        Raftdb(3, ["--reads", "lease"], name="raftdb-3-lease", only="GET"),
        Raftdb(5),
        Etcd(1),
        Etcd(3),
        PySyncObj(3),
        Pyraft(3),
        *(others(config) if config else ()),
    ]
    chosen = [system for system in systems if system.name not in without]
    cells = [cell for cell in plan.CELLS if cell.clients * cell.pipeline <= 1_000]
    cells += [] if no_growth else plan.GROWTH
    cells = chosen_cells(cells, only)
    measure(chosen, cells, directory, repetitions, seconds, out, None if no_mixed else disturb_one, "All systems")


def chosen_cells(cells: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    return [cell for cell in cells if not only or any(text in str(cell) for text in only)]


def disturb_one(system: System) -> mixed.Mixed | None:
    """The mixed load is for what knows BGSAVE, KEYS and LRANGE; one and three nodes have a budget for it."""
    if not isinstance(system, Redis | Raftdb) or system.name.endswith("lease") or system.nodes > 3:
        return None
    mixed.prepare(system, mixed.KEYS)
    return mixed.measure(system, 6.0)


@cli.command("commands")
@click.option("--pipelines", type=click.IntRange(1), default=100, show_default=True, help="Of 32 commands, each.")
@click.option("--only", multiple=True, metavar="NAME", help="Only these commands.")
def commands_(pipelines: int, only: tuple[str, ...]) -> None:
    """Per command: microseconds in parse, look-up, encode, log, handler, kv, reply; in pipelines of 32."""
    names = [name for name in stages.EXAMPLES if not only or name in {word.upper() for word in only}]
    with tempfile.TemporaryDirectory() as directory:
        bench = stages.Workbench(Path(directory))
        stages.set_up(bench)
        click.echo(f"{'':10}" + "".join(f"{stage:>10}" for stage in (*stages.STAGES, "sum")))
        for name in names:
            spent = stages.microseconds(bench, name, pipelines)
            figures = [*spent.values(), sum(spent.values())]
            click.echo(f"{name:10}" + "".join(f"{figure:10.2f}" for figure in figures))
        bench.close()


@cli.command("profile")
@DIRECTORY
@click.option(
    "--nodes", type=click.Choice(["1", "3", "5"]), default="3", show_default=True, help="Size of the cluster."
)
@click.option("--load", type=click.Choice(list(profile.LOADS)), default="set", show_default=True, help="The load.")
@click.option("--seconds", type=float, default=10.0, show_default=True, help="How long to record.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("profile"), show_default=True, help="Where to.")
def profile_(directory: Path, nodes: str, load: str, seconds: float, out: Path) -> None:
    """Flame graphs of leader and follower under a load."""
    try:
        for file in profile.record(int(nodes), load, seconds, directory.absolute(), out):
            click.echo(f"wrote {file}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def variant(text: str) -> Raftdb:
    """NAME=FLAGS of --variant."""
    name, _, flags = text.partition("=")
    return Raftdb(1, flags.split(), name=f"raftdb-1-{name}")


def measure(
    systems: list[System],
    cells: list[Cell],
    directory: Path,
    repetitions: int,
    seconds: float,
    out: Path | None,
    disturb: Any,
    title: str,
    together: bool = False,
) -> None:
    """Runs, reports, and ends with exit code 1 when something failed or a budget does not hold."""
    here, left_out = plan.present(systems)
    for name, reason in left_out.items():
        click.echo(f"{name} is left out: {reason}")
    facts = report.machine(directory)
    run = plan.Run(directory.absolute(), seconds, click.echo)
    try:
        run.repeat(here, cells, repetitions, disturb, together)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    results = run.results(here, left_out)
    text = report.markdown(results, facts, title)
    click.echo("\n" + text)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "report.md").write_text(text, encoding="utf-8")
        (out / "report.json").write_text(report.as_json(results, facts), encoding="utf-8")
        for name in plots.write(results, out):
            click.echo(f"wrote {out / name}")
    missed = [what for what, ratio, must in results.budgets() if ratio is None or ratio < must]
    if missed or results.failures():
        raise SystemExit(1)


def main() -> None:
    try:
        cli(prog_name="python -m raftdb_tools.bench")
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
