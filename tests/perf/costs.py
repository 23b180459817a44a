"""What a stage costs, counted instead of timed: a figure that is the same on every run of one Python version.

    python -m tests.perf.costs            # measure and compare with the baseline
    python -m tests.perf.costs --write    # make these figures the baseline of this Python version

A clock on a shared machine cannot tell 1.5x from noise; counting can. The cost of a call is the number of bytecode
instructions that it executes, plus CALL_COST for each call into C (LMDB, msgpack, a bytes.join). It does not see how
long a C function takes; it does see one that is called twice, a copy per command, a loop that has moved from C to
Python, an object that is made per command.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from raftdb_tools.bench.stages import EXAMPLES, PIPELINE, Workbench, on_wire, set_up
from tests.consensus.bench import leader_of
from tests.consensus.cluster import commands, ref

CALL_COST = 5  # instructions that a call into C stands for: 60 ns and more beside 10-15 ns
BASELINE = Path(__file__).parent / "baseline.json"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
BOUND = 1.3  # a slow-down of 1.5x fails, a few instructions more do not


def cost_of(work: Callable[[], Any]) -> int:
    """Instructions and weighted C calls of one call."""
    return _monitored(work) if sys.version_info >= (3, 12) else _traced(work)


def _monitored(work: Callable[[], Any]) -> int:
    """By sys.monitoring, from Python 3.12 on."""
    monitoring = sys.monitoring  # type: ignore[attr-defined,unused-ignore]
    events, tool, count = monitoring.events, monitoring.PROFILER_ID, 0

    def instruction(*_: Any) -> None:
        nonlocal count
        count += 1

    def c_return(*_: Any) -> None:
        nonlocal count
        count += CALL_COST

    monitoring.use_tool_id(tool, "costs")
    monitoring.register_callback(tool, events.INSTRUCTION, instruction)
    monitoring.register_callback(tool, events.C_RETURN, c_return)
    monitoring.set_events(tool, events.INSTRUCTION | events.CALL)
    try:
        work()
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


def _traced(work: Callable[[], Any]) -> int:
    """By sys.settrace and sys.setprofile, which Python 3.11 has."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            count += 1
        return trace

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        if event == "c_call":
            count += CALL_COST

    sys.settrace(trace)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        sys.settrace(None)
    return count


def measure(directory: Path) -> dict[str, float]:
    """Cost per command of each stage: SETs and GETs in pipelines of 32; propose: per entry, three nodes."""
    bench = Workbench(directory)
    try:
        set_up(bench)
        costs = {}
        for name in ("SET", "GET", "HSET"):
            costs |= {f"{stage} {name}": cost / PIPELINE for stage, cost in _stages(bench, name).items()}
    finally:
        bench.close()
    return costs | _consensus()


def _stages(bench: Workbench, name: str) -> dict[str, int]:
    argvs = [EXAMPLES[name](n) for n in range(PIPELINE)]
    bench.run(argvs, {})  # caches are warm, keys exist
    data = b"".join(map(on_wire, argvs))
    made: dict[str, Any] = {}

    def keep(label: str, work: Callable[[], Any]) -> Callable[[], None]:
        def kept() -> None:
            made[label] = work()

        return kept

    costs = {"parse": cost_of(keep("argvs", lambda: bench.parse(data)))}
    costs["dispatch"] = cost_of(keep("requests", lambda: bench.look_up(made["argvs"])))
    if name == "GET":
        costs["read"] = cost_of(keep("replies", lambda: bench.read(made["requests"])))
    else:
        costs["propose payload"] = cost_of(keep("entry", lambda: bench.entry(made["requests"])))
        costs["append"] = cost_of(lambda: bench.append(made["entry"]))
        batch, entry = bench.kv.batch(), made["entry"]
        costs["apply"] = cost_of(keep("replies", lambda: bench.apply(batch, entry, made["requests"])))
        costs["kv commit"] = cost_of(lambda: batch.commit(entry.index, entry.term, entry.stamp, entry.chain))
    costs["encode"] = cost_of(lambda: bench.reply(made["replies"]))
    return costs


def _consensus() -> dict[str, float]:
    """One entry on the leader of three: propose, ready, persisted; one acknowledgement and what it releases."""
    from raftdb.consensus.messages import AppendReply

    node = leader_of(3)
    core = node.core
    assert core is not None
    payload = commands("x" * 100)

    def propose() -> None:
        core.propose(payload)
        ready = core.ready()
        assert ready is not None
        assert ready.persist is not None
        node.disk.commit(ready.persist)
        node.apply(core.persisted(ready))

    def acknowledge() -> None:
        core.step(ref("n2"), AppendReply(core.term, True, core.log.last, 0, 0))
        ready = core.ready()
        if ready is not None:
            node.apply(core.persisted(ready))

    for work in (propose, acknowledge):  # once for what happens only the first time
        work()
    return {"propose entry": cost_of(propose), "acknowledge entry": cost_of(acknowledge)}


def baselines() -> dict[str, dict[str, float]]:
    """Python version -> stage -> cost."""
    return dict(json.loads(BASELINE.read_text(encoding="utf-8"))) if BASELINE.exists() else {}


def slower(costs: dict[str, float], base: dict[str, float]) -> list[str]:
    """The stages that are over the bound, one line each."""
    return [
        f"{stage}: {costs[stage]:.1f} instructions, {costs[stage] / was:.2f}x of the baseline's {was:.1f}"
        for stage, was in base.items()
        if costs.get(stage, float("inf")) > BOUND * was
    ]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        costs = {stage: round(cost, 2) for stage, cost in measure(Path(directory)).items()}
    known = baselines()
    for stage, cost in costs.items():
        was = known.get(VERSION, {}).get(stage)
        print(f"{stage:24} {cost:10.2f}" + (f" {cost / was:6.2f}x" if was else ""))
    if options.write:
        known[VERSION] = costs
        BASELINE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
