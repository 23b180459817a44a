"""Run the checker over the histories that the Go checker Porcupine keeps, whose verdicts are known: a check of the
checker.

    python -m tests.porcupine DIRECTORY      # a checkout of anishathalye/porcupine

They are not part of this repository. The verdicts are read from Porcupine's own test file. Prints one line per
disagreement, then a summary; the exit code is 1 when there was a disagreement.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Hashable
from pathlib import Path
from typing import Any

from tests.linear import History, Op, Register, check

JEPSEN = re.compile(r"INFO +jepsen\.util - (\d+)\t:(\w+)\t:(\w+)\t(.*)")
KV = re.compile(r'\{:process (\d+), :type :(\w+), :f :(\w+), :key "(.*)", :value (nil|"(.*)")\}')


class Text:
    """put v, append v, get -> text."""

    initial: Hashable = ""
    reads = frozenset({"get"})

    def step(self, state: Any, name: str, argument: Any, result: Any, known: bool) -> tuple[bool, Any]:
        if name == "get":
            return not known or state == result, state
        return True, argument if name == "put" else state + argument

    def useless(self, ops: list[Op]) -> set[int]:
        return {n for n, op in enumerate(ops) if op.outcome == "unknown" and op.name == "get"}


def read_jepsen(text: str) -> list[Op]:
    count = iter(range(10**9))
    history = History(lambda: next(count))
    tokens: dict[str, int] = {}
    for process, kind, name, value in JEPSEN.findall(text):
        if kind == "invoke":
            tokens[process] = history.invoke(process, "k", name, _jepsen_value(name, value))
        elif kind == "ok":
            result = _jepsen_value(name, value) if name == "read" else name == "cas" or None
            history.ok(tokens.pop(process), result)
        elif kind == "fail" and name == "cas":
            history.ok(tokens.pop(process), False)
        elif kind == "fail":
            history.failed(tokens.pop(process))
        else:
            history.unknown(tokens.pop(process))
    return history.all()


def _jepsen_value(name: str, value: str) -> Any:
    if name == "cas":
        old, new = value.strip("[]").split()
        return int(old), int(new)
    return None if value in ("nil", ":timed-out") else int(value)


def read_kv(text: str) -> list[Op]:
    count = iter(range(10**9))
    history = History(lambda: next(count))
    tokens: dict[str, int] = {}
    for process, kind, name, key, _, value in KV.findall(text):
        if kind == "invoke":
            tokens[process] = history.invoke(process, key, name, value)
        else:
            history.ok(tokens.pop(process), value if name == "get" else None)
    return history.all()


def main(directory: str) -> int:
    root = Path(directory)
    tests = (root / "porcupine_test.go").read_text()
    wrong = 0
    started = time.monotonic()
    cases = [
        (f"jepsen/etcd_{int(n):03}.log", good == "true")
        for n, good in re.findall(r"checkJepsen\(t, (\d+), (\w+)\)", tests)
    ]
    cases += [
        (f"kv/{name.name}", name.name.endswith("-ok.txt")) for name in sorted((root / "test_data" / "kv").iterdir())
    ]
    for name, good in cases:
        text = (root / "test_data" / name).read_text()
        model = Register() if name.startswith("jepsen") else Text()
        verdict = check(read_jepsen(text) if name.startswith("jepsen") else read_kv(text), model)
        if verdict.good != good:
            wrong += 1
            print(f"{name}: expected {good}, got {verdict.answer.value}")
    print(f"{len(cases) - wrong} of {len(cases)} verdicts agree, {time.monotonic() - started:.1f} s")
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
