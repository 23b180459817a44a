"""What can be measured: raftdb with any number of nodes, redis-server, and others that speak its protocol."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from raftdb import __version__

from . import load, resp
from .load import Cell, Sample
from .processes import Failed, Program, free_ports, wait_until

FILL_BATCH_KEYS: Final = 100


class System:
    """A group of programs that serve one data set. `start` and `stop` frame a repetition; its data is new each time."""

    def __init__(self, name: str, synced: str, nodes: int = 1) -> None:
        self.name = name
        self.synced = synced  # what is on disk when a write is answered, in words
        self.nodes = nodes
        self.programs: list[Program] = []

    def missing(self) -> str | None:
        """Why it cannot be measured here; None when it can."""
        return None

    def version(self) -> str:
        raise NotImplementedError

    def start(self, directory: Path) -> None:
        """Starts every node and waits until writes are taken. Raises Failed."""
        raise NotImplementedError

    def measure(self, cell: Cell, seconds: float) -> Sample:
        """One sample. Raises Failed when a program died."""
        raise NotImplementedError

    def takes(self, cell: Cell) -> bool:
        """Whether this cell means anything for this system."""
        return True

    def stop(self) -> None:
        for program in self.programs:
            program.stop()
        self.programs = []


class RespSystem(System):
    """A system that redis-benchmark can drive; `port` is where writes are taken without a detour."""

    port: int
    _filled: tuple[int, int] | None = None  # keys and value size that this start was filled with

    def measure(self, cell: Cell, seconds: float) -> Sample:
        if cell.command == "GET":
            self._fill(cell)
        sample = load.timed(self.port, cell, seconds)
        for program in self.programs:
            program.check()
        return sample

    def _fill(self, cell: Cell) -> None:
        """GETs should find something: the keys that redis-benchmark asks for, once per start."""
        if self._filled != (cell.keys, cell.value_bytes):
            fill(self.port, cell.keys, cell.value_bytes)
            self._filled = (cell.keys, cell.value_bytes)

    def start(self, directory: Path) -> None:
        self._filled = None
        self.launch(directory)

    def launch(self, directory: Path) -> None:
        """What `start` does for this system."""
        raise NotImplementedError


def fill(port: int, keys: int, value_bytes: int, prefix: str = "key:") -> None:
    """Writes the key space of redis-benchmark in large MSETs."""
    value = b"x" * value_bytes
    with resp.Connection(port) as connection:
        for start in range(0, keys, FILL_BATCH_KEYS):
            names = (f"{prefix}{number:012d}" for number in range(start, min(start + FILL_BATCH_KEYS, keys)))
            connection.call("MSET", *(word for name in names for word in (name, value)))


class Redis(RespSystem):
    """redis-server that syncs every write: the measure of all ratios."""

    def __init__(self) -> None:
        super().__init__("redis", "append-only file, fsync before every reply (appendfsync always)")

    def missing(self) -> str | None:
        return None if shutil.which("redis-server") else "redis-server is not installed"

    def version(self) -> str:
        text = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"v=(\S+)", text)
        return f"redis {found[1] if found else '?'}"

    def launch(self, directory: Path) -> None:
        (self.port,) = free_ports(1)
        argv = f"redis-server --port {self.port} --appendonly yes --appendfsync always --dir . --save".split()
        self.programs = [Program("redis", [*argv, ""], directory)]
        wait_until(lambda: resp.answers(self.port), self.programs, "redis-server answers")


class Raftdb(RespSystem):
    """raftdb with its defaults; `flags` are added."""

    def __init__(self, nodes: int = 1, flags: Sequence[str] = (), name: str | None = None, only: str = "") -> None:
        synced = "log, fsync before every reply" + (" on a majority of the nodes" if nodes > 1 else "")
        super().__init__(name or f"raftdb-{nodes}", synced, nodes)
        self.flags = tuple(flags)
        self.only = only  # the one command that this variant is about

    def version(self) -> str:
        return f"raftdb {__version__}"

    def takes(self, cell: Cell) -> bool:
        return not self.only or cell.command == self.only

    def launch(self, directory: Path) -> None:
        self.ports = free_ports(self.nodes)
        addresses = [f"127.0.0.1:{port}" for port in self.ports]
        env = {name: value for name, value in os.environ.items() if not name.startswith("RAFTDB_")}
        for number, address in enumerate(addresses, 1):
            argv = [sys.executable, "-m", "raftdb", "serve", "-a", address, "-d", str(directory / f"data{number}")]
            argv += ["-e", ",".join(addresses)] if self.nodes > 1 else []
            self.programs.append(Program(f"n{number}", [*argv, *self.flags], directory, env))
        wait_until(self._led, self.programs, "a leader takes writes")

    def _led(self) -> bool:
        """Finds the leader and checks that it takes a write."""
        for port in self.ports:
            with resp.Connection(port, timeout_s=2) as connection:
                if connection.call("ROLE")[0] == b"master":
                    connection.call("SET", "bench:ready", "yes")
                    self.port = port
                    return True
        return False

    def term(self) -> int:
        """The leader's term: another one afterwards means that there was an election."""
        with resp.Connection(self.port) as connection:
            return int(connection.info("raft")["raft_term"])


class Other(RespSystem):
    """A system of a TOML file: command lines with {port}, {peer_port}, {dir}, {ports}; it must speak RESP."""

    def __init__(self, name: str, table: dict[str, Any]) -> None:
        super().__init__(name, str(table.get("synced", "unknown")), len(table["nodes"]))
        self.commands = [str(line) for line in table["nodes"]]
        self.after = [str(line) for line in table.get("after", [])]
        self.version_text = str(table.get("version", "unknown version"))

    def version(self) -> str:
        return f"{self.name} {self.version_text}"

    def missing(self) -> str | None:
        program = shlex.split(self.commands[0])[0]
        return None if shutil.which(program) else f"{program} is not there"

    def launch(self, directory: Path) -> None:
        ports = free_ports(self.nodes)
        names = {f"port{number}": port for number, port in enumerate(ports, 1)}
        for number, (line, port) in enumerate(zip(self.commands, ports, strict=True), 1):
            place = directory / f"n{number}"
            argv = shlex.split(line.format(port=port, peer_port=port + 1, dir=place, **names))
            self.programs.append(Program(f"n{number}", argv, place))
        self.port = ports[0]
        wait_until(lambda: all(map(resp.answers, ports)), self.programs, f"{self.name} answers")
        for line in self.after:
            argv = shlex.split(line.format(**names))
            ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
            if ran.returncode != 0:
                raise Failed(f"{line}: {ran.stderr.strip() or ran.stdout.strip()}")
        wait_until(self._writable, self.programs, f"{self.name} takes writes")

    def _writable(self) -> bool:
        with resp.Connection(self.port, timeout_s=2) as connection:
            return bool(connection.call("SET", "bench:ready", "yes") == b"OK")


def others(path: Path) -> list[System]:
    """The systems of a TOML file: `[name]`, `nodes = ["command line", ...]`, `after`, `synced`. Raises Failed."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        return [Other(name, table) for name, table in tables.items()]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise Failed(f"{path}: {error}") from None
