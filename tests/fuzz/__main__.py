"""All fuzzers of this folder in turns: `python -m tests.fuzz campaign [--minutes N] [--seed S]` (`make campaign-fuzz`).

A fuzzer is a module with `fuzz(seconds, seed) -> (inputs tried, what went wrong or "")`. The suite runs each for a few
seconds; a campaign goes round until its time is over, with a new seed for every round. Exit code 1 on a finding, which
is printed with its seed.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import time
from collections.abc import Callable

import tests.fuzz

SLICE_S = 60.0
SHARES = {"ci": 1.0, "campaign": 60.0}  # minutes by default

Fuzzer = Callable[[float, int], tuple[int, str]]


def fuzzers() -> dict[str, Fuzzer]:
    """Every module of the folder that has a `fuzz`."""
    names = [module.name for module in pkgutil.iter_modules(tests.fuzz.__path__)]
    modules = {
        name: importlib.import_module(f"tests.fuzz.{name}") for name in names if not name.startswith(("_", "test_"))
    }
    return {name: module.fuzz for name, module in modules.items() if hasattr(module, "fuzz")}


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("share", choices=sorted(SHARES))
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(argv)
    minutes = SHARES[options.share] if options.minutes is None else options.minutes
    end, seed, tried = time.monotonic() + 60 * minutes, options.seed, dict.fromkeys(fuzzers(), 0)
    while time.monotonic() < end:
        for name, fuzz in fuzzers().items():
            seconds = min(SLICE_S, max(end - time.monotonic(), 1) / len(tried))
            count, wrong = fuzz(seconds, seed)
            tried[name] += count
            if wrong:
                print(f"{name}, seed {seed}: {wrong}")
                return 1
        seed += 1
    print(
        f"fuzz, seeds {options.seed}-{seed - 1}: {', '.join(f'{n} {c}' for n, c in tried.items())} inputs, no finding"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
