"""Programs under measurement: each in its own directory and on its own port, gone when the measurement is over."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
_POLL_S: Final = 0.02


class Failed(Exception):
    """A program did not start, or a measurement did not come to its end; the text says why."""


def free_ports(count: int, stride: int = 2) -> list[int]:
    """So many ports, each free together with the next one (raftdb's peers use PORT+1)."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            one = held.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            others = [held.enter_context(socket.socket()) for _ in range(stride - 1)]
            with contextlib.suppress(OSError):
                for offset, other in enumerate(others, 1):
                    other.bind(("127.0.0.1", port + offset))
                found.append(port)
    return found


class Program:
    """One process, its output in a file beside its data."""

    def __init__(self, name: str, argv: Sequence[str], directory: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        directory.mkdir(parents=True, exist_ok=True)
        self.output_path = directory / f"{name}.log"
        with self.output_path.open("ab") as output:
            self.process = subprocess.Popen(
                list(argv), cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
            )

    @property
    def last_words(self) -> str:
        """The end of what it printed, on one line."""
        return " / ".join(self.output_path.read_text(errors="replace").splitlines()[-3:])[-500:]

    def check(self) -> None:
        """Raises Failed when it has ended by itself."""
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with code {self.process.returncode}: {self.last_words}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for what does not listen."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def wait_until(ready: Callable[[], bool], programs: Sequence[Program], what: str) -> None:
    """Polls until it is true. Raises Failed when a program ends first, or time runs out."""
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            if ready():
                return
        for program in programs:
            program.check()
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {START_TIMEOUT_S:.0f} s ({programs[0].last_words})")
        time.sleep(_POLL_S)
