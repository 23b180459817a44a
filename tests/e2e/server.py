"""One real server process for the tests of this folder: start it, kill it, start it again on the same data.

`Raftdb` is what is tested. `Redis` runs Debian's redis-server with `appendfsync always` in the same place: a test
program that fails against it is wrong itself.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from tests.ports import free_port

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0


class StartFailed(Exception):
    """The process ended, or never answered; the text has what it printed."""


PORT_TRIES = 5
PORT_TAKEN = "Address already in use"


def ping(port: int, timeout_s: float = 2.0) -> bytes:
    """The first line that the server answers to an inline PING; empty when it closes. Raises OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout_s) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(1024)


class Server:
    """A server process on its own port and directory. As a context manager it is gone at the end."""

    def __init__(self, directory: Path, *flags: str) -> None:
        self.directory = directory
        self.flags = flags
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def argv(self) -> list[str]:
        raise NotImplementedError

    @property
    def output_path(self) -> Path:
        return self.directory / "output.txt"

    @property
    def output(self) -> str:
        """Everything that all runs printed."""
        return self.output_path.read_text(encoding="utf-8", errors="replace")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def start(self) -> float:
        """Starts the process; returns the seconds until it answered PING. Raises StartFailed.

        Between free_port() and the first start another program may have taken the port, or the next one.
        """
        for _ in range(PORT_TRIES if not self.output_path.exists() else 0):
            try:
                return self._start()
            except StartFailed as failure:
                if PORT_TAKEN not in str(failure):
                    raise
                self.port = free_port()
        return self._start()

    def _start(self) -> float:
        started = time.perf_counter()
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv, cwd=self.directory, stdout=output, stderr=subprocess.STDOUT, env=self._environment()
            )
        while True:
            with contextlib.suppress(OSError):
                if ping(self.port).startswith(b"+PONG"):
                    return time.perf_counter() - started
            if self.process.poll() is not None:
                raise StartFailed(f"exit code {self.process.returncode}:\n{self.output[-4000:]}")
            if time.perf_counter() - started > START_TIMEOUT_S:
                self.kill()
                raise StartFailed(f"no answer after {START_TIMEOUT_S:.0f} s:\n{self.output[-4000:]}")
            time.sleep(0.002)

    @staticmethod
    def _environment() -> dict[str, str]:
        """Settings of whoever runs the tests must not reach the server."""
        return {name: value for name, value in os.environ.items() if not name.startswith("RAFTDB_")}

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


class Raftdb(Server):
    """`python -m raftdb serve` with its data in `directory`/data."""

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def argv(self) -> list[str]:
        address = f"127.0.0.1:{self.port}"
        return [sys.executable, "-m", "raftdb", "serve", "-a", address, "-d", str(self.data), *self.flags]


class Redis(Server):
    """redis-server, every write synced."""

    @property
    def argv(self) -> list[str]:
        settings = {"port": str(self.port), "appendonly": "yes", "appendfsync": "always", "save": "", "dir": "."}
        words = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return [shutil.which("redis-server") or "redis-server", *words, *self.flags]


def server_class(name: str) -> type[Server]:
    """For the programs of this folder that take --server raftdb or --server redis."""
    return {"raftdb": Raftdb, "redis": Redis}[name]
