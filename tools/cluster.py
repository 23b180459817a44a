"""`make cluster`: a whole cluster in one terminal, to look at and to break.

Starts N nodes on loopback as processes of their own, prints their logs side by side in colours, and takes keys:

    1 .. 9   kill that node (SIGKILL), or start it again      z then 1 .. 9   pause it (SIGSTOP), or let it go on
    s        status of the cluster                             ?               the keys
    q        stop everything (as Ctrl-C does)

Nothing here is needed by a node: it is a skin over `raftdb serve` and `raftdb status`. Without a terminal on standard
input it only shows the logs.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

import click

COLOURS: Final = ("cyan", "yellow", "green", "magenta", "blue", "red", "white", "bright_cyan", "bright_yellow")
NODES_MAX: Final = len(COLOURS)
STOP_TIMEOUT_S: Final = 10.0
STATUS_TIMEOUT_S: Final = 10.0
KEYS: Final = "1-{n}: kill or start a node   z 1-{n}: pause or go on   s: status   q: quit"


class Process:
    """One node: its command line, its process while there is one, and the thread that prints its log."""

    def __init__(self, number: int, arguments: list[str]) -> None:
        self.number = number
        self.arguments = arguments
        self.child: subprocess.Popen[str] | None = None
        self.paused = False

    @property
    def alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def start(self) -> None:
        self.child = subprocess.Popen(
            self.arguments,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C in the terminal is ours: we stop the nodes one by one
        )
        self.paused = False
        assert self.child.stdout is not None
        threading.Thread(target=self._print, args=(self.child.stdout, self.child), daemon=True).start()

    def _print(self, lines: IO[str], child: subprocess.Popen[str]) -> None:
        for line in lines:
            say(self.number, line.rstrip("\n"))
        code = child.wait()
        say(self.number, "killed" if code == -signal.SIGKILL else f"ended with exit code {code}", strong=True)

    def kill_or_start(self) -> None:
        if self.alive:
            assert self.child is not None
            self.child.kill()
        else:
            say(self.number, "starting", strong=True)
            self.start()

    def pause_or_resume(self) -> None:
        if not self.alive:
            return
        assert self.child is not None
        self.child.send_signal(signal.SIGCONT if self.paused else signal.SIGSTOP)
        self.paused = not self.paused
        say(self.number, "paused" if self.paused else "goes on", strong=True)

    def ask_to_stop(self) -> None:
        if self.alive:
            assert self.child is not None
            if self.paused:
                self.child.send_signal(signal.SIGCONT)
            self.child.terminate()

    def wait(self) -> None:
        if self.child is None:
            return
        try:
            self.child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def say(number: int, text: str, *, strong: bool = False) -> None:
    """One line of node `number`, in its colour. Raw terminals want CR as well."""
    prefix = click.style(f"n{number} ", fg=COLOURS[number - 1], bold=True)
    click.echo(f"{prefix}{click.style(text, bold=True) if strong else text}\r")


def port_of(number: int, first_port: int) -> int:
    """Ten apart: PORT+1 is the peers' port."""
    return first_port + 10 * (number - 1)


def serve_arguments(number: int, nodes: int, first_port: int, directory: Path, extra: tuple[str, ...]) -> list[str]:
    """The command line of node `number`, as a person would type it."""
    others = ",".join(f"{n}/127.0.0.1:{port_of(n, first_port)}" for n in range(1, nodes + 1) if n != number)
    command = [sys.executable, "-m", "raftdb", "serve", "-i", str(number)]
    command += ["-a", f"127.0.0.1:{port_of(number, first_port)}", "-d", str(directory / str(number))]
    if others:
        command += ["-e", others]
    return [*command, *extra]


def show_status(first_port: int, nodes: int) -> None:
    """`raftdb status` through the first node that answers; one that is paused accepts connections and says nothing."""
    for number in range(1, nodes + 1):
        address = ("127.0.0.1", port_of(number, first_port))
        with (
            contextlib.suppress(OSError, subprocess.TimeoutExpired),
            socket.create_connection(address, timeout=0.5),
        ):
            done = subprocess.run(
                [sys.executable, "-m", "raftdb", "status", "-a", f"127.0.0.1:{address[1]}"],
                capture_output=True,
                text=True,
                timeout=STATUS_TIMEOUT_S,
                check=False,
            )
            if done.stdout:
                click.echo(done.stdout.replace("\n", "\r\n"))
                return
    click.echo("no node answers\r")


@contextlib.contextmanager
def keys_at_once() -> Iterator[bool]:
    """The terminal gives every key as it is typed (Ctrl-C stays a signal). Yields False when there is no terminal."""
    if not sys.stdin.isatty():
        yield False
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield True
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Cluster:
    def __init__(self, processes: list[Process], first_port: int) -> None:
        self.processes = processes
        self.first_port = first_port
        self.pausing = False

    def run(self) -> None:
        for process in self.processes:
            process.start()
        try:
            with keys_at_once() as typed:
                if typed:
                    self._help()
                self._take_keys(typed)
        except KeyboardInterrupt:
            pass
        finally:
            self._stop()

    def _take_keys(self, typed: bool) -> None:
        while any(process.alive for process in self.processes) or typed:
            ready, _, _ = select.select([sys.stdin] if typed else [], [], [], 0.5)
            if ready and not self._key(os.read(sys.stdin.fileno(), 1).decode(errors="replace")):
                return

    def _key(self, key: str) -> bool:
        """False when it is time to go."""
        pausing, self.pausing = self.pausing, key == "z"
        if key in ("q", ""):
            return False
        if key.isdigit() and 1 <= int(key) <= len(self.processes):
            process = self.processes[int(key) - 1]
            (process.pause_or_resume if pausing else process.kill_or_start)()
        elif key == "s":
            show_status(self.first_port, len(self.processes))
        elif key != "z":
            self._help()
        return True

    def _help(self) -> None:
        click.secho(KEYS.format(n=len(self.processes)) + "\r", bold=True)

    def _stop(self) -> None:
        for process in self.processes:
            process.ask_to_stop()
        for process in self.processes:
            process.wait()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True})
@click.option("--nodes", default=3, show_default=True, type=click.IntRange(1, NODES_MAX), help="How many nodes.")
@click.option("--port", default=6379, show_default=True, type=click.IntRange(1, 65_000), help="Port of the first node.")
@click.option("--directory", default="raftdb-data/cluster", show_default=True, help="Where the data goes.")
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def main(nodes: int, port: int, directory: str, extra: tuple[str, ...]) -> None:
    """Run a cluster on this machine, with its logs in one terminal. EXTRA goes to every `raftdb serve`."""
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    processes = [Process(n, serve_arguments(n, nodes, port, path, extra)) for n in range(1, nodes + 1)]
    Cluster(processes, port).run()


if __name__ == "__main__":
    main()
