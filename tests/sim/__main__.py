"""python -m tests.sim: simulated clusters, planted bugs, the small scope, gates, campaigns. `--help` tells the rest.

Nothing of the core may be imported before a mutant is planted, so each command imports what it needs.
"""

from __future__ import annotations

import argparse
import sys


def seeds_of(text: str) -> range:
    """`A..B` (B included), or one seed."""
    first, _, last = text.partition("..")
    return range(int(first), int(last or first) + 1)


def plant_bug(name: str) -> None:
    if name:
        from tests.sim.mutants import MUTANTS
        from tests.sim.mutate import plant

        plant(next(mutant for mutant in MUTANTS if mutant.name == name).patches)


def run(args: argparse.Namespace) -> int:
    from tests.sim import batch

    total = batch.run(seeds_of(args.seeds), args.events, args.jobs, args.seconds, args.failures)
    print(batch.report(total, args.events))
    return 1 if total.failures else 0


def repro(args: argparse.Namespace) -> int:
    plant_bug(args.mutant)
    from tests.sim import shrink

    return shrink.main(args.seed, args.events, args.shrink, args.set)


def mutants(args: argparse.Namespace) -> int:
    from tests.sim import hunt

    return hunt.main(args.names, args.stored, args.jobs, args.seconds)


def mutant(args: argparse.Namespace) -> int:
    from tests.sim import hunt

    return hunt.child(args.name, args.seeds, args.events, args.seconds)


def scope(args: argparse.Namespace) -> int:
    plant_bug(args.mutant)
    if args.ledger:
        from tests.sim import campaign

        return campaign.scope(args.states)
    from tests.sim.scope import main

    return main(args.states, args.seconds)


def gates(args: argparse.Namespace) -> int:
    from tests.sim.gates import main

    return main(args.seeds)


def trace(args: argparse.Namespace) -> int:
    from tests.sim.runner import run_seed

    for seed in seeds_of(args.seeds):
        result = run_seed(seed, args.events)
        print(seed, result.events, f"{result.trace:016x}", result.failure.split("\n")[0])
    return 0


def campaign(args: argparse.Namespace) -> int:
    from tests.sim.campaign import main

    return main(args.minutes * 60 + args.seconds, args.jobs)


def ci(args: argparse.Namespace) -> int:
    from tests.sim.campaign import ci

    return ci(args.commit, args.minutes * 60 + args.seconds, args.jobs)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(main=globals()[name])
        return made

    one = add("run", "run seeds")
    one.add_argument("--seeds", default="0..99", help="A..B")
    one.add_argument("--events", type=int, default=5_000, help="events per seed before the liveness half")
    one.add_argument("--jobs", type=int, default=1)
    one.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    one.add_argument("--failures", type=int, default=1, help="stop after so many")
    one = add("repro", "repeat one failing seed, and shrink it")
    one.add_argument("--seed", type=int, required=True)
    one.add_argument("--events", type=int, default=5_000)
    one.add_argument("--shrink", type=float, default=60.0, metavar="SECONDS", help="0: do not shrink")
    one.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another value of a setting")
    one.add_argument("--mutant", default="", help="with this bug planted")
    one = add("mutants", "plant every bug and see that it is caught; writes docs/mutants.md and the stored seeds")
    one.add_argument("names", nargs="*")
    one.add_argument("--stored", action="store_true", help="only the stored seeds; write nothing")
    one.add_argument("--jobs", type=int, default=1)
    one.add_argument("--seconds", type=float, default=60.0, help="CPU seconds per mutant")
    one = add("mutant", "plant one bug and run seeds until it is caught (used by `mutants`)")
    one.add_argument("name")
    one.add_argument("--seeds", default="0..999999")
    one.add_argument("--events", type=int, default=5_000)
    one.add_argument("--seconds", type=float, default=60.0)
    one = add("scope", "all states of a small cluster, breadth first")
    one.add_argument("--states", type=int, default=250_000)
    one.add_argument("--seconds", type=float, default=1e9)
    one.add_argument("--mutant", default="", help="with this bug planted")
    one.add_argument("--ledger", action="store_true", help="larger bounds; append to tests/sim/ledger.jsonl")
    one = add("gates", "same seeds, same traces; and enough of everything happened")
    one.add_argument("--seeds", type=int, default=60)
    one = add("trace", "print the trace hashes of seeds (used by `gates`)")
    one.add_argument("--seeds", default="0..9")
    one.add_argument("--events", type=int, default=2_000)
    one = add("campaign", "new seeds until the time is up; appends to tests/sim/ledger.jsonl")
    one = add("ci", "the share of one landing: seeds, mutants, small scope, gates")
    one.add_argument("--commit", default="", help="half of the seeds come from this hash; default: HEAD")
    for name in ("campaign", "ci"):
        one = commands.choices[name]
        one.add_argument("--minutes", type=float, default=0.0)
        one.add_argument("--seconds", type=float, default=0.0)
        one.add_argument("--jobs", type=int, default=2 if name == "ci" else 1)
    return top


if __name__ == "__main__":
    arguments = parser().parse_args()
    sys.exit(int(arguments.main(arguments)))
