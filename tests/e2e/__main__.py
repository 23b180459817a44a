"""Fault sets on real processes, from the command line.

    python -m tests.e2e ci --minutes 5             six fault sets of 20 s, chosen by the commit
    python -m tests.e2e campaign --minutes 120     all fault sets in turn, 60 s each; each run a line in ledger.jsonl
    python -m tests.e2e run NAME --seed 7          one run, its directory kept
    python -m tests.e2e failover                   thirty times kill -9 of the leader: how long writes stop
    python -m tests.e2e catch-up                   a follower that was away, clients that pour in: memory is bounded
    python -m tests.e2e install-kills              kill -9 at each mutating call of the install of a snapshot
    python -m tests.e2e list

Exit code 1 when a run was not clean; its logs and data then stay where the message says.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import click

from tests.e2e import catch_up as catching_up
from tests.e2e import failover as failovers
from tests.e2e import install_kills as installs
from tests.e2e.nemesis import FAULT_SETS, Report, run_faults
from tests.rotation import commit_number, sample

LEDGER = Path(__file__).with_name("ledger.jsonl")
CI_RUNS = 6
CI_SECONDS = 20.0
CAMPAIGN_SECONDS = 60.0


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def one_run(name: str, seconds: float, seed: int) -> Report:
    directory = Path(tempfile.mkdtemp(prefix=f"raftdb-{name}-"))
    report = run_faults(name, directory / "cluster", seconds, seed)
    if report.verdict == "clean":
        shutil.rmtree(directory, ignore_errors=True)
    else:
        click.echo(f"{name} seed {seed}: {report.verdict}\nlogs and data: {directory}")
        click.echo(f"again: python -m tests.e2e run {name} --seed {seed} --seconds {seconds:g}")
    click.echo(
        f"{name}: {'clean' if report.verdict == 'clean' else 'NOT CLEAN'}; {report.injected} faults, {report.ok} ok, "
        f"{report.refused} refused, {report.unknown} unknown, longest gap {report.longest_gap_s} s, {report.seconds} s"
        + (f", of which the machine stood still {report.stalled_s} s" if report.stalled_s else "")
    )
    return report


def end(reports: list[Report]) -> None:
    bad = sum(r.verdict != "clean" for r in reports)
    click.echo(f"{len(reports) - bad} passed, {bad} failed")
    raise SystemExit(1 if bad else 0)


@click.group()
def main() -> None:
    """Fault sets on real processes."""


@main.command("list")
def show() -> None:
    for name, (faults, nodes, flags, churn) in FAULT_SETS.items():
        click.echo(f"{name:24} {nodes}{'+1' if churn else '  '} nodes  {faults.__name__} {' '.join(flags)}")


@main.command()
@click.option("--minutes", default=5.0, help="No new run is started when less than a run's time is left.")
@click.option("--seed", default=None, type=int, help="Instead of the one drawn from the commit.")
def ci(minutes: float, seed: int | None) -> None:
    """The share of the continuous integration: six sets, rotating by commit."""
    deadline = time.monotonic() + 60 * minutes
    number = commit_number() if seed is None else seed
    reports: list[Report] = []
    for name in sample(list(FAULT_SETS), CI_RUNS, number):
        if reports and time.monotonic() + 2.5 * CI_SECONDS > deadline:
            click.echo(f"{name}: left out, the time is over")
            continue
        reports.append(one_run(name, CI_SECONDS, number % 1_000_003))
    end(reports)


@main.command()
@click.option("--minutes", default=60.0)
@click.option("--seconds", default=CAMPAIGN_SECONDS, help="Of faults per run.")
@click.option("--only", multiple=True, help="Names of fault sets.")
@click.option("--seed", default=None, type=int)
def campaign(minutes: float, seconds: float, only: tuple[str, ...], seed: int | None) -> None:
    """Runs for as long as it is told, and writes the ledger."""
    deadline = time.monotonic() + 60 * minutes
    reports: list[Report] = []
    number = seed if seed is not None else int(time.time())
    names = list(only or FAULT_SETS)
    while time.monotonic() < deadline:
        report = one_run(names[len(reports) % len(names)], seconds, number + len(reports))
        reports.append(report)
        row = {"commit": commit(), "time": datetime.now(UTC).isoformat(timespec="seconds"), **report._asdict()}
        row["verdict"] = report.verdict.splitlines()[0][:200]
        with LEDGER.open("a") as ledger:
            ledger.write(json.dumps(row) + "\n")
    end(reports)


@main.command()
@click.argument("name", type=click.Choice(list(FAULT_SETS)))
@click.option("--seed", default=1)
@click.option("--seconds", default=CI_SECONDS)
def run(name: str, seed: int, seconds: float) -> None:
    """One run."""
    end([one_run(name, seconds, seed)])


@main.command()
@click.option("--kills", default=failovers.KILLS)
@click.option("--seed", default=1, help="Draws the moments.")
def failover(kills: int, seed: int) -> None:
    """kill -9 of the leader, again and again: how long writes stop. Exit code 1 when over the budget."""
    raise SystemExit(0 if failovers.measure(kills, seed, commit()) else 1)


@main.command("catch-up")
@click.option("--writes", default=catching_up.WRITES, help="While the follower is away.")
@click.option("--seconds", default=30.0, help="Of a flood.")
@click.option("--only", multiple=True, type=click.Choice(list(catching_up.PARTS)), help="Parts.")
def catch_up(writes: int, seconds: float, only: tuple[str, ...]) -> None:
    """A follower that was away, clients that pour in more than the disks take. Exit code 1 when memory grew too far."""
    names = list(only or catching_up.PARTS)
    raise SystemExit(0 if catching_up.measure(names, writes, seconds, shutil.which("strace"), commit()) else 1)


@main.command("install-kills")
@click.option("--count", default=0, help="Calls, chosen by the commit; 0 = all.")
@click.option("--part", default=(1, 1), type=(int, int), metavar="K N", help="Every N-th of them, from the K-th on.")
@click.option("--second", is_flag=True, help="A snapshot that comes while the one before is being built.")
def install_kills(count: int, part: tuple[int, int], second: bool) -> None:
    """kill -9 of a follower at each mutating call of the install of a snapshot. Needs strace."""
    strace = shutil.which("strace")
    if strace is None:
        raise click.ClickException("strace is not installed")
    with tempfile.TemporaryDirectory(prefix="raftdb-install-kills-") as directory:
        result = installs.run(Path(directory) / "cluster", strace, count, part, second=second, say=click.echo)
    click.echo(result)


if __name__ == "__main__":
    main()
