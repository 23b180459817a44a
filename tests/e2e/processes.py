"""Real `raftdb serve` processes on loopback, for end-to-end tests: start, kill, pause, ask.

Every node gets two addresses of its own out of 127/8: the *advertised* one, at which the others believe it to be, and
the *bind* one, at which it really listens and from which it dials. Between the two a proxy may stand (tests/proxy.py),
which tells who dials by the source address; without a proxy both are the same. Ports are free ones.

Waiting is done on what the system says (a line on standard output, an answer to INFO), with a deadline; nothing here
assumes how long a thing takes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port

READY_S = 20.0
POLL_S = 0.02
STALL_S = 1.0

T = TypeVar("T")


def wait_for(what: str, probe: Callable[[], T | None], seconds: float = READY_S) -> T:
    """The first answer of `probe` that is not None or False; AssertionError that names `what` after `seconds`.

    Time in which the whole machine stood still (a virtual one may, for a minute) does not count.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = probe()
        if answer:
            return answer
        before = time.monotonic()
        if before > deadline:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(POLL_S)
        slept_s = time.monotonic() - before
        if slept_s > STALL_S:
            deadline += slept_s


class NodeProcess:
    """One node: its directory and addresses stay, its process comes and goes."""

    def __init__(self, node_id: str, directory: Path, host: str, port: int, bind: str, flags: Sequence[str]) -> None:
        self.id = node_id
        self.directory = directory
        self.host, self.port, self.bind = host, port, bind
        self.flags = list(flags)
        self.ensemble = ""  # -e, set by the cluster
        self.process: subprocess.Popen[bytes] | None = None
        self.log_path = directory.parent / f"{node_id}.log"
        self.paused = False
        self.wrapper: list[str] = []  # e.g. strace ... in front of the command line
        #: What stands behind -i and -a, when that is not simply the id and the address; "" for the id: no -i at all.
        self.typed_id: str | None = None
        self.typed_address: str | None = None

    # --- the process

    def command(self, *extra: str) -> list[str]:
        line = [*self.wrapper, sys.executable, "-m", "raftdb", "serve"]
        node_id = self.id if self.typed_id is None else self.typed_id
        line += ["-i", node_id] if node_id else []
        line += ["-a", self.typed_address or f"{self.host}:{self.port}"]
        if self.bind != self.host:
            line += ["--bind", self.bind]
        line += ["-d", str(self.directory)]
        if self.ensemble:
            line += ["-e", self.ensemble]
        return [*line, *self.flags, *extra]

    def start(self, *extra: str) -> NodeProcess:
        assert not self.alive
        self.paused = False
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAFTDB_")}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(*extra), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
        return self

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _signal(self, number: int) -> None:
        if self.alive:
            assert self.process is not None
            self.process.send_signal(number)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self.process is not None:
            self.process.wait()
        self.paused = False

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)
        self.paused = True

    def resume(self) -> None:
        self._signal(signal.SIGCONT)
        self.paused = False

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        if self.paused:
            self.resume()
        self._signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def wait_exit(self, seconds: float = 15.0) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    # --- questions

    def client(self, *, timeout_s: float = 10.0, protocol: int = 3, **more: Any) -> redis.Redis:
        """A client that never repeats a command: what it did not see answered is unknown."""
        return redis.Redis(
            self.bind,
            self.port,
            protocol=protocol,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            single_connection_client=False,
            max_connections=4,
            **more,
        )

    def info(self, section: str = "raft") -> dict[str, Any] | None:
        """INFO of a section; None while nobody answers."""
        try:
            with self.client(timeout_s=1.0) as client:
                return dict(client.info(section))  # type: ignore[arg-type]
        except (redis.RedisError, OSError):
            return None

    def role(self) -> str | None:
        info = self.info() if self.alive and not self.paused else None
        return None if info is None else str(info.get("raft_role"))

    def wait_serving(self, seconds: float = READY_S) -> NodeProcess:
        """Until it answers PING; AssertionError with its log when it ended instead."""

        def probe() -> bool:
            if not self.alive:
                raise AssertionError(f"node {self.id} ended instead of serving:\n{self.log[-2000:]}")
            try:
                with self.client(timeout_s=1.0) as client:
                    return bool(client.ping())
            except (redis.RedisError, OSError):
                return False

        wait_for(f"node {self.id} to answer", probe, seconds)
        return self

    def digest(self) -> tuple[int, str] | None:
        """(applied index, digest of the state) as INFO tells them."""
        info = self.info()
        if info is None or "raft_digest" not in info:
            return None
        return int(info["raft_applied_index"]), str(info["raft_digest"])


_networks = itertools.count(random.SystemRandom().randrange(1 << 16))


def _two_networks() -> tuple[str, str]:
    number = next(_networks)
    a, b = 64 + number % 120, (number // 120) % 256
    return f"127.{a}.{b}", f"127.{a + 1}.{b}"


class LocalCluster:
    """N nodes formed by `-e`, each with the list of the others; a context manager that leaves nothing running."""

    def __init__(
        self,
        directory: Path,
        nodes: int = 3,
        *,
        flags: Sequence[str] = (),
        proxied: bool = False,
        spare: int = 0,
    ) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        advertised, bound = _two_networks()
        if not proxied:
            bound = advertised
        numbers = range(1, nodes + spare + 1)
        hosts = [f"{net}.{n}" for n in numbers for net in {advertised, bound}]
        self.port = free_port(hosts)
        self.flags = list(flags)
        everyone = [
            NodeProcess(f"n{n}", directory / f"n{n}", f"{advertised}.{n}", self.port, f"{bound}.{n}", flags)
            for n in numbers
        ]
        self.nodes, self.spares = everyone[:nodes], everyone[nodes:]
        for node in self.nodes:
            node.ensemble = ",".join(f"{o.id}/{o.host}:{o.port}" for o in self.nodes if o is not node)
        for node in self.spares:
            node.ensemble = ",".join(f"{o.host}:{o.port}" for o in self.nodes)

    @property
    def all(self) -> list[NodeProcess]:
        return self.nodes + self.spares

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(self, *exc: object) -> None:
        for node in self.all:
            node.kill()

    def start(self) -> LocalCluster:
        for node in self.nodes:
            node.start()
        for node in self.nodes:
            node.wait_serving()
        self.wait_leader()
        return self

    def node(self, node_id: str) -> NodeProcess:
        return next(n for n in self.all if n.id == node_id)

    def leaders(self) -> list[tuple[int, NodeProcess]]:
        """(term, node) of every node that says it leads (a deposed one may not know yet), newest term first."""
        found = []
        for node in self.all:
            info = node.info() if node.alive and not node.paused else None
            if info and info.get("raft_role") == "leader":
                found.append((int(info["raft_term"]), node))
        return sorted(found, key=lambda pair: -pair[0])

    def leader(self) -> NodeProcess | None:
        found = self.leaders()
        return found[0][1] if found else None

    def wait_leader(self, seconds: float = READY_S, other_than: NodeProcess | None = None) -> NodeProcess:
        """A leader that a write goes through on."""

        def probe() -> NodeProcess | None:
            for _, node in self.leaders():
                if node is other_than:
                    continue
                try:
                    with node.client(timeout_s=2.0) as client:
                        client.set("__probe", "1")
                    return node
                except (redis.RedisError, OSError):
                    continue
            return None

        return wait_for("a leader that accepts writes", probe, seconds)

    def followers(self) -> list[NodeProcess]:
        leader = self.wait_leader()
        return [n for n in self.nodes if n is not leader and n.alive]

    def wait_equal(self, seconds: float = 30.0) -> str:
        """Until all living nodes have applied the same index and say the same digest; the digest."""

        def probe() -> str | None:
            answers = {node.digest() for node in self.nodes if node.alive}
            if len(answers) != 1 or None in answers:
                by_index: dict[int, set[str]] = {}
                for answer in answers - {None}:
                    by_index.setdefault(answer[0], set()).add(answer[1])  # type: ignore[index]
                assert all(len(digests) == 1 for digests in by_index.values()), f"replicas differ: {by_index}"
                return None
            return answers.pop()[1]  # type: ignore[index]

        return wait_for("equal digests on all nodes", probe, seconds)

    def logs(self, characters: int = 3000) -> str:
        return "\n".join(f"--- {node.id}\n{node.log[-characters:]}" for node in self.all)


@contextlib.contextmanager
def background(function: Callable[[threading.Event], None], threads: int = 1) -> Iterator[list[BaseException]]:
    """Runs function(stop) in threads while the body runs; what they raised is in the list, and raised at the end."""
    stop, errors = threading.Event(), []  # type: ignore[var-annotated]

    def run() -> None:
        try:
            function(stop)
        except BaseException as error:  # handed over to the test
            errors.append(error)

    workers = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield errors
    finally:
        stop.set()
        for worker in workers:
            worker.join(30)
    if errors:
        raise errors[0]
