"""Systems that do not speak Redis' protocol, or come from the package registry: etcd, PySyncObj, pyraft.

PySyncObj and pyraft live in a virtual environment of their own in the user's cache directory: nothing of theirs gets
into raftdb's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Final

from . import http2, load, resp
from .load import Cell, Sample
from .processes import Failed, Program, free_ports, wait_until
from .systems import RespSystem, System

PYSYNCOBJ: Final = "pysyncobj==0.3.17"
PYRAFT: Final = "pyraft==1.0.0"
_SCRIPTS: Final = Path(__file__).parent


# --- etcd -----------------------------------------------------------------------------------------------------------


class Etcd(System):
    """etcd of the distribution, asked over gRPC at its leader."""

    def __init__(self, nodes: int) -> None:
        super().__init__(f"etcd-{nodes}", "write-ahead log, fsync before every reply on a majority", nodes)
        self.port = 0

    def missing(self) -> str | None:
        return None if shutil.which("etcd") else "etcd is not installed"

    def version(self) -> str:
        text = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=False).stdout
        return "etcd " + text.splitlines()[0].rpartition(" ")[2]

    def start(self, directory: Path) -> None:
        ports = free_ports(self.nodes)
        peers = {f"n{number}": f"http://127.0.0.1:{port + 1}" for number, port in enumerate(ports, 1)}
        members = ",".join(f"{name}={url}" for name, url in peers.items())
        for (name, url), port in zip(peers.items(), ports, strict=True):
            client = f"http://127.0.0.1:{port}"
            flags = {
                "name": name,
                "data-dir": str(directory / f"data-{name}"),
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": url,
                "initial-advertise-peer-urls": url,
                "initial-cluster": members,
                "initial-cluster-state": "new",
                "quota-backend-bytes": str(8 << 30),
                "log-level": "error",
            }
            argv = ["etcd", *(f"--{flag}={value}" for flag, value in flags.items())]
            self.programs.append(Program(name, argv, directory))
        wait_until(lambda: self._leader(ports), self.programs, "etcd has a leader")

    def _leader(self, ports: list[int]) -> bool:
        """Finds the node that says that it leads."""
        for port in ports:
            status = _post(f"http://127.0.0.1:{port}/v3/maintenance/status")
            if "leader" in status and status["leader"] == status["header"]["member_id"]:
                self.port = port
                return True
        return False

    def measure(self, cell: Cell, seconds: float) -> Sample:
        pilot = http2.run(self.port, cell, max(500, 4 * cell.clients * cell.pipeline))
        if pilot.failure:
            return pilot
        sample = http2.run(self.port, cell, load.requests_for(pilot.rate, cell, seconds))
        for program in self.programs:
            program.check()
        return sample


def _post(url: str) -> dict[str, Any]:
    request = urllib.request.Request(url, data=b"{}", headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=2) as answer:
        return dict(json.load(answer))


# --- from the package registry --------------------------------------------------------------------------------------


def environment_of(requirement: str) -> Path:
    """The interpreter of a virtual environment with this package, made when it is not there. Raises Failed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "raftdb-bench"
    place = cache / requirement.replace("==", "-")
    python = place / "bin" / "python"
    if (place / "installed").exists():
        return python
    for argv in (
        [sys.executable, "-m", "venv", "--clear", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement],
    ):
        ran = subprocess.run(argv, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise Failed(f"{requirement} could not be installed: {ran.stderr.strip().splitlines()[-1:]}")
    (place / "installed").touch()
    return python


class PySyncObj(System):
    """PySyncObj with its journal; the load runs inside the leader's process, which spares it any client protocol."""

    def __init__(self, nodes: int = 3) -> None:
        super().__init__(f"pysyncobj-{nodes}", "nothing: its journal is written, but never synced", nodes)
        self.ports: list[int] = []

    def missing(self) -> str | None:
        try:
            environment_of(PYSYNCOBJ)
        except Failed as error:
            return str(error)
        return None

    def version(self) -> str:
        return PYSYNCOBJ.replace("==", " ")

    def takes(self, cell: Cell) -> bool:
        return cell.command == "SET"  # a read is a look into a dict of the own process

    def start(self, directory: Path) -> None:
        self.ports = free_ports(self.nodes)
        python = environment_of(PYSYNCOBJ)
        script = str(_SCRIPTS / "pysyncobj_node.py")
        for number, port in enumerate(self.ports):
            others = [str(other) for other in self.ports if other != port]
            argv = [str(python), script, str(port), str(directory / f"journal{number}"), *others]
            self.programs.append(Program(f"n{number + 1}", argv, directory))
        wait_until(lambda: self._leader() is not None, self.programs, "PySyncObj has a leader")

    def _leader(self) -> int | None:
        return next((port for port in self.ports if self._ask(port, {"ask": "leader"}).get("leader")), None)

    def measure(self, cell: Cell, seconds: float) -> Sample:
        port = self._leader()
        if port is None:
            return Sample(0.0, failure="no leader")
        words = {"ask": "load", "outstanding": cell.clients * cell.pipeline, "seconds": seconds}
        answer = self._ask(port, {**words, "value_bytes": cell.value_bytes, "keys": cell.keys}, timeout_s=seconds + 60)
        for program in self.programs:
            program.check()
        return Sample(**answer)

    @staticmethod
    def _ask(port: int, question: dict[str, Any], timeout_s: float = 5) -> dict[str, Any]:
        """One JSON line to the control port (PORT+1) of a node, one back."""
        with socket.create_connection(("127.0.0.1", port + 1), timeout=timeout_s) as connection:
            connection.sendall(json.dumps(question).encode() + b"\n")
            line = connection.makefile("rb").readline()
        return dict(json.loads(line)) if line else {}


class Pyraft(RespSystem):
    """The forerunner. It speaks a part of Redis' protocol, so redis-benchmark can try."""

    def __init__(self, nodes: int = 3) -> None:
        super().__init__(f"pyraft-{nodes}", "nothing: its log is written after commit, but never synced", nodes)

    def missing(self) -> str | None:
        try:
            environment_of(PYRAFT)
        except Failed as error:
            return str(error)
        return None

    def version(self) -> str:
        return PYRAFT.replace("==", " ")

    def launch(self, directory: Path) -> None:
        ports = free_ports(self.nodes)
        python = environment_of(PYRAFT)
        for number, port in enumerate(ports, 1):
            others = ",".join(f"{n}/127.0.0.1:{p}" for n, p in enumerate(ports, 1) if p != port)
            argv = [str(python), "-m", "pyraft.run_raft", "-i", str(number), "-a", f"127.0.0.1:{port}"]
            argv += ["-e", others] if others else []
            self.programs.append(Program(f"n{number}", argv, directory / f"n{number}"))
        wait_until(lambda: self._takes_writes(ports), self.programs, "pyraft takes writes")

    def _takes_writes(self, ports: list[int]) -> bool:
        """Its leader is the node that does not refuse a SET."""
        for port in ports:
            with resp.Connection(port, timeout_s=2) as connection:
                try:
                    connection.call("SET", "bench:ready", "yes")
                except resp.ReplyError:
                    continue
                self.port = port
                return True
        return False

    def _fill(self, cell: Cell) -> None:
        """It has no MSET of many keys in time; GETs of keys that the SETs before left."""
