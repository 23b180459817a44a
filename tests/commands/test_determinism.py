"""The same log on replicas whose hash seed, time zone and clocks differ: the same digest after every entry."""

from __future__ import annotations

import os
import subprocess
import sys

import msgpack
import pytest

from raftdb.storage.kv import state_digest
from raftdb.types import Kind
from tests.differential.players import RaftdbPlayer
from tests.differential.programs import Generator
from tests.sources import ROOT

from .replica import START_MS

WORLDS = (
    {"PYTHONHASHSEED": "0", "TZ": "UTC", "LANG": "C"},
    {"PYTHONHASHSEED": "12345", "TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8", "shift": "86400000"},
    {"PYTHONHASHSEED": "99", "TZ": "America/St_Johns", "LC_ALL": "de_DE.UTF-8", "shift": "-1500000000"},
)


@pytest.fixture
def recorded():
    """The log of random programs, applied by a leader that mixes reads in and commits several entries at a time."""
    player, generator = RaftdbPlayer(seed=11), Generator(11)
    player.stamp = START_MS
    for _ in range(25):
        program = generator.program()
        player.begin(program.protocol)
        for step in program.steps:
            player.play(step)
    player.commit()
    with player.kv.view() as view:
        yield player.log, player.kv.digest, state_digest(view)
    player.close()


def run_world(world: dict[str, str], directory, data: bytes) -> list[str]:
    settings = {name: value for name, value in world.items() if name != "shift"}
    argv = [sys.executable, "-m", "tests.commands.determinism", str(directory), world.get("shift", "0")]
    environment = {**os.environ, **settings}
    done = subprocess.run(argv, input=data, capture_output=True, cwd=ROOT, env=environment, check=False, timeout=100)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split("\n")


@pytest.mark.slow
def test_replicas_agree_after_every_entry(recorded, tmp_path):
    log, digest, state = recorded
    assert sum(entry.kind == Kind.COMMANDS for entry in log) > 500
    data = b"".join(msgpack.packb(tuple(entry)) for entry in log)
    first, *others = [run_world(world, tmp_path / str(n), data) for n, world in enumerate(WORLDS)]
    assert len(first) == len(log) + 2
    for other in others:
        assert other == first
    assert first[len(log) - 1] == f"{log[-1].index} {digest.hex()}"
    assert first[len(log)] == f"state {state.hex()}"
