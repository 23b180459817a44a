"""Flame graphs of a leader and a follower under a named load, by py-spy: `make profile`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

from .load import Cell, redis_benchmark, requests_for
from .processes import Failed, Program
from .systems import Raftdb

RATE_HZ: Final = 500
LOADS: Final = {
    "set": Cell("SET", 50, 1),
    "set-pipelined": Cell("SET", 50, 16),
    "get": Cell("GET", 50, 1),
    "get-pipelined": Cell("GET", 50, 16),
    "set-one-client": Cell("SET", 1, 1),
}


def py_spy() -> str:
    """The program. Raises Failed."""
    found = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if found is None:
        raise Failed("py-spy is not installed: pip install 'raftdb[bench]'")
    return found


def record(nodes: int, load: str, seconds: float, directory: Path, out: Path) -> list[Path]:
    """Runs the load on a cluster and records its leader and one follower; the files. Raises Failed."""
    cell, spy = LOADS[load], py_spy()
    system = Raftdb(nodes)
    out.mkdir(parents=True, exist_ok=True)
    try:
        system.start(directory)
        pilot = redis_benchmark(system.port, cell, 5_000)
        if pilot.failure:
            raise Failed(pilot.failure)
        leader = system.ports.index(system.port)
        chosen = {"leader": system.programs[leader]}
        if nodes > 1:
            chosen["follower"] = system.programs[(leader + 1) % nodes]
        requests = requests_for(pilot.rate, cell, seconds * 1.5 + 2)
        worker = threading.Thread(target=redis_benchmark, args=(system.port, cell, requests))
        worker.start()
        files = _record_all(spy, chosen, seconds, out, f"{load}-{nodes}")
        worker.join()
        return files
    finally:
        system.stop()


def _record_all(spy: str, chosen: dict[str, Program], seconds: float, out: Path, name: str) -> list[Path]:
    running = []
    for role, program in chosen.items():
        file = out / f"{name}-{role}.svg"
        argv = [spy, "record", "--pid", str(program.process.pid), "--output", str(file), "--rate", str(RATE_HZ)]
        argv += ["--duration", str(max(int(seconds), 1)), "--threads", "--gil", "--nonblocking"]
        running.append((file, subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)))
    files = []
    for file, process in running:
        _, errors = process.communicate()
        if process.returncode != 0:
            raise Failed(f"py-spy: {errors.strip().splitlines()[-1:]} (it may need root to look into a process)")
        files.append(file)
    return files
