"""Programs with a node in them, as processes of their own: one, or three that list each other."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.e2e.processes import wait_for
from tests.ports import free_port
from tests.sources import ROOT

END_S = 20.0


def free_ports(count: int) -> list[int]:
    """Ports whose successors are free too."""
    ports: list[int] = []
    while len(ports) < count:
        port = free_port()
        if all(abs(port - other) > 1 for other in ports):
            ports.append(port)
    return ports


class Program:
    """A program (a file, or the name of a module) on a node's command line. `others`: what stands behind -e."""

    def __init__(self, directory: Path, script: Path | str, nid: str, port: int, others: str = "", *more: str) -> None:
        self.nid = nid
        self.port = port
        self.directory = directory
        self.output_path = directory / f"{nid}.txt"
        program = ["-m", script] if isinstance(script, str) else [str(script)]
        self.command = [sys.executable, "-u", *program, "-a", f"127.0.0.1:{port}", "-i", nid]
        self.command += ["-d", str(directory / nid), *(["-e", others] if others else []), *more]
        self.start()

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAFTDB_")} | {"PYTHONPATH": str(ROOT)}
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=self.directory,
                env=environment,
            )

    @property
    def addr(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        return self.process.poll() is None

    @property
    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def client(self) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, decode_responses=True, socket_timeout=10)

    def answers(self) -> bool:
        assert self.is_alive, self.output
        with contextlib.suppress(redis.RedisError, OSError), self.client() as r:
            return bool(r.set("__probe", "1"))
        return False

    def role(self) -> str:
        """ "" when it does not answer."""
        if self.is_alive:
            with contextlib.suppress(redis.RedisError, OSError), self.client() as r:
                return str(r.info("raft")["raft_role"])
        return ""

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(END_S)


@contextlib.contextmanager
def programs(directory: Path, script: Path, count: int, *more: str) -> Iterator[list[Program]]:
    """`count` of them that list each other, all of which accept writes."""
    ports = free_ports(count)
    running = []
    for number, port in enumerate(ports, 1):
        others = ",".join(f"{n}/127.0.0.1:{other}" for n, other in enumerate(ports, 1) if other != port)
        running.append(Program(directory, script, str(number), port, others, *more))
    try:
        for program in running:
            wait_for(f"{program.command} to accept writes", program.answers, 30)
        yield running
    finally:
        for program in running:
            program.kill()


def leader_of(running: list[Program]) -> Program | None:
    return next((program for program in running if program.role() == "leader"), None)
