"""Sets of faults on real processes, and the run around them: traffic, faults, healing, verdict.

A run is: form a cluster behind proxies; let clients write for a moment (a run with too little traffic before the
faults proves nothing and is void); break things, again and again, for the given time; heal everything; writes must go
through again within a bound; all replicas must come to the same index and digest; every key is read back; the history
must be linearizable. A fault set is a function that breaks one thing, waits, and mends it; the run calls it until the
time is over. Which member of a cluster it hits is drawn from the run's seed.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import redis

from tests.e2e.churn import Churn
from tests.e2e.network import Network
from tests.e2e.processes import STALL_S, LocalCluster, NodeProcess, wait_for
from tests.e2e.workload import Workload

TRAFFIC_FLOOR_PER_S = 50  # acknowledged operations before the first fault
HEAL_S = 20.0  # a healed cluster accepts writes within this (measured: far less; the machine is shared)
ELECTION_S = 1.5  # the longest election time-out by default


class Report(NamedTuple):
    """One line of the ledger."""

    faults: str
    seed: int
    seconds: float
    ok: int
    refused: int
    unknown: int
    longest_gap_s: float
    injected: int
    verdict: str  # "clean", or what was wrong
    stalled_s: float = 0.0  # the whole machine stood still for so long: part of the gap, and nobody's fault


class Stalls(threading.Thread):
    """How long this process was not let run: then the nodes were not, either."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.stalled_s = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            before = time.monotonic()
            self.over.wait(0.1)
            late_s = time.monotonic() - before - 0.1
            if late_s > STALL_S:
                self.stalled_s += late_s


class Run:
    """What a fault set may use."""

    def __init__(self, cluster: LocalCluster, network: Network, rng: random.Random) -> None:
        self.cluster = cluster
        self.network = network
        self.rng = rng
        self.over = threading.Event()
        self.injected = 0

    def hold(self, least_s: float, most_s: float) -> None:
        """Leave things as they are for a while (less when the time of the run is over)."""
        self.over.wait(self.rng.uniform(least_s, most_s))

    def leader(self) -> NodeProcess:
        """Who leads now; while nobody does (or a node that comes and goes), any living node."""
        leader = self.cluster.leader()
        nodes = self.cluster.nodes
        if leader is not None and leader in nodes:
            return leader
        return self.rng.choice([n for n in nodes if n.alive])

    def follower(self) -> NodeProcess:
        leader = self.cluster.leader()
        return self.rng.choice([n for n in self.cluster.nodes if n is not leader])

    def restart(self, *nodes: NodeProcess) -> None:
        for node in nodes:
            if not node.alive:
                node.start()

    def others(self, node: NodeProcess) -> list[NodeProcess]:
        return [n for n in self.cluster.nodes if n is not node]


FaultSet = Callable[[Run], None]


# --- processes ---


def kill_leader(run: Run) -> None:
    victim = run.leader()
    victim.kill()
    run.hold(0.5, 3.0)
    run.restart(victim)
    run.hold(1.0, 3.0)


def kill_follower(run: Run) -> None:
    victim = run.follower()
    victim.kill()
    run.hold(0.2, 2.0)
    run.restart(victim)
    run.hold(0.5, 2.0)


def kill_majority(run: Run) -> None:
    nodes = run.cluster.nodes
    victims = run.rng.sample(nodes, len(nodes) // 2 + 1)
    for victim in victims:
        victim.kill()
    run.hold(0.1, 1.5)
    run.restart(*victims)
    run.hold(2.0, 4.0)


def kill_all(run: Run) -> None:
    for node in run.cluster.nodes:
        node.kill()
    run.restart(*run.cluster.nodes)
    run.hold(3.0, 5.0)


def pause_leader(run: Run) -> None:
    victim = run.leader()
    victim.pause()
    run.hold(ELECTION_S, 2 * ELECTION_S)
    victim.resume()
    run.hold(1.0, 3.0)


def pause_any_briefly(run: Run) -> None:
    """Around the lease and the election time-out: where stale reads would hide."""
    victim = run.rng.choice(run.cluster.nodes)
    victim.pause()
    run.hold(0.05, 1.2)
    victim.resume()
    run.hold(0.1, 1.0)


def restart_gently(run: Run) -> None:
    """SIGTERM hands leadership over; a rolling restart."""
    victim = run.leader() if run.rng.random() < 0.6 else run.follower()
    with contextlib.suppress(Exception):
        victim.stop(10.0)
    victim.kill()
    run.restart(victim)
    run.hold(1.0, 2.5)


# --- disks ---


def slow_disk(run: Run) -> None:
    """Each flush of a node, of the leader mostly, takes a while; long enough for it to be replaced, at times."""
    strace = shutil.which("strace")
    assert strace is not None, "void: strace is not installed"
    victim = run.leader() if run.rng.random() < 0.7 else run.follower()
    delay_us = int(1e6 * run.rng.choice((0.02, 0.1, 0.4, 1.5)))
    assert victim.process is not None
    tracer = subprocess.Popen(
        [
            *(strace, "-f", "-qq", "-o", "/dev/null", "-p", str(victim.process.pid)),
            *("-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={delay_us}"),
        ],
        stdin=subprocess.DEVNULL,
    )
    try:
        run.hold(1.5, 4.0)
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(20)
    run.hold(0.5, 2.0)


# --- network ---


def isolate_leader(run: Run) -> None:
    leader = run.leader()
    for other in run.others(leader):
        run.network.cut(leader, other)
        run.network.cut(other, leader)
    run.hold(1.0, 4.0)
    run.network.heal()
    run.hold(1.0, 3.0)


def isolate_any(run: Run) -> None:
    victim = run.rng.choice(run.cluster.nodes)
    for other in run.others(victim):
        run.network.cut(victim, other)
        run.network.cut(other, victim)
    run.hold(0.5, 4.0)
    run.network.heal()
    run.hold(0.5, 2.0)


def one_way(run: Run) -> None:
    """What the leader (or another) says is lost, or what is said to it; the other direction works."""
    victim = run.leader() if run.rng.random() < 0.7 else run.follower()
    outward = run.rng.random() < 0.5
    for other in run.others(victim):
        run.network.silence(*((victim, other) if outward else (other, victim)))
    run.hold(1.0, 4.0)
    run.network.heal()
    run.hold(1.0, 3.0)


def bridge(run: Run) -> None:
    """Two halves that see each other only through one node in the middle."""
    nodes = run.rng.sample(run.cluster.nodes, len(run.cluster.nodes))
    middle, rest = nodes[0], nodes[1:]
    half = len(rest) // 2
    for one in rest[:half]:
        for other in rest[half:]:
            run.network.cut(one, other)
            run.network.cut(other, one)
    assert middle not in rest
    run.hold(1.0, 4.0)
    run.network.heal()
    run.hold(0.5, 2.0)


def flapping(run: Run) -> None:
    """A link that comes and goes faster than elections do."""
    one, other = run.rng.sample(run.cluster.nodes, 2)
    for _ in range(run.rng.randrange(3, 12)):
        run.network.cut(one, other)
        run.network.cut(other, one)
        run.hold(0.02, 0.4)
        run.network.heal()
        run.hold(0.02, 0.4)


def resets(run: Run) -> None:
    """Connections die in the middle of a frame."""
    for _ in range(run.rng.randrange(2, 8)):
        one, other = run.rng.sample(run.cluster.nodes, 2)
        run.network.reset_after(one, other, run.rng.randrange(1, 5_000))
        run.hold(0.05, 0.5)
    run.network.heal()
    run.hold(0.5, 1.0)


def slow_links(run: Run) -> None:
    for one in run.cluster.nodes:
        for other in run.others(one):
            run.network.delay(one, other, run.rng.uniform(0, 80))
    run.hold(2.0, 4.0)
    run.network.heal()
    run.hold(0.5, 1.0)


def throttled(run: Run) -> None:
    one = run.leader()
    for other in run.others(one):
        run.network.throttle(one, other, run.rng.choice((2_000, 20_000, 200_000)))
    run.hold(2.0, 4.0)
    run.network.heal()
    run.hold(0.5, 1.5)


# --- membership and leadership ---


def transfer(run: Run) -> None:
    leader = run.leader()
    with contextlib.suppress(redis.RedisError, OSError), leader.client(timeout_s=5.0) as client:
        client.execute_command("RAFT.TRANSFER", run.rng.choice(run.others(leader)).id)
    run.hold(0.2, 1.5)


def wipe_follower(run: Run) -> None:
    """A member loses its disk and takes its own place again with -o."""
    victim = run.follower()
    victim.kill()
    shutil.rmtree(victim.directory, ignore_errors=True)
    victim.start("-o")
    wait_until_member(run.cluster, victim)
    run.hold(0.5, 1.5)


def remove_and_add(run: Run) -> None:
    """DEL_NODE, then the node comes back empty as a new member."""
    victim = run.follower()
    leader = run.leader()
    if leader is victim:
        return
    try:
        with leader.client(timeout_s=8.0) as client:
            client.execute_command("DEL_NODE", victim.id)
    except (redis.RedisError, OSError):
        return
    victim.kill()
    shutil.rmtree(victim.directory, ignore_errors=True)
    run.hold(0.2, 1.0)
    victim.start()
    wait_until_member(run.cluster, victim)
    run.hold(0.5, 1.5)


def wait_until_member(cluster: LocalCluster, node: NodeProcess, seconds: float = 60.0) -> None:
    """Until the node is a voter again and has a leader."""

    def probe() -> bool:
        if not node.alive:
            raise AssertionError(f"node {node.id} ended:\n{node.log[-2000:]}")
        info = node.info()
        if info is None or not info.get("raft_cluster_id"):
            return False
        rows = [row for name, row in info.items() if name.startswith("raft_peer") and isinstance(row, dict)]
        return any(row.get("id") == node.id and row.get("voter") in ("yes", "True", True) for row in rows)

    wait_for(f"node {node.id} to be a voter again", probe, seconds)
    assert cluster.wait_leader(seconds)


# --- several at once ---


def anything(run: Run) -> None:
    run.rng.choice(SIMPLE)(run)


def kill_under_partition(run: Run) -> None:
    """The leader is cut off and then killed; a follower is killed while the rest elects."""
    leader = run.leader()
    for other in run.others(leader):
        run.network.cut(leader, other)
    run.hold(0.2, 1.0)
    leader.kill()
    second = run.rng.choice(run.others(leader))
    run.hold(0.0, 1.0)
    second.kill()
    run.restart(leader)
    run.network.heal()
    run.restart(second)
    run.hold(2.0, 4.0)


SIMPLE: Sequence[FaultSet] = (
    kill_leader,
    kill_follower,
    pause_leader,
    isolate_leader,
    one_way,
    flapping,
    resets,
    slow_links,
    transfer,
)


class Set(NamedTuple):
    """One row of the table of fault sets."""

    faults: FaultSet
    nodes: int
    flags: tuple[str, ...]  # for `raftdb serve`
    churn: bool = False  # a further node is added and removed all the time


_TABLE: dict[str, tuple[FaultSet, int, tuple[str, ...]]] = {
    "kill-leader": (kill_leader, 3, ()),
    "kill-follower": (kill_follower, 3, ()),
    "kill-majority": (kill_majority, 3, ()),
    "kill-all": (kill_all, 3, ()),
    "pause-leader": (pause_leader, 3, ()),
    "pause-leader-lease": (pause_leader, 3, ("--reads", "lease")),
    "pause-briefly-lease": (pause_any_briefly, 3, ("--reads", "lease")),
    "pause-briefly": (pause_any_briefly, 3, ()),
    "rolling-restart": (restart_gently, 3, ()),
    "slow-disk": (slow_disk, 3, ()),
    "isolate-leader": (isolate_leader, 3, ()),
    "isolate-leader-lease": (isolate_leader, 3, ("--reads", "lease")),
    "isolate-any-5": (isolate_any, 5, ()),
    "one-way": (one_way, 3, ()),
    "bridge-5": (bridge, 5, ()),
    "flapping": (flapping, 3, ()),
    "resets": (resets, 3, ()),
    "slow-links": (slow_links, 3, ()),
    "throttled": (throttled, 3, ()),
    "transfer": (transfer, 3, ()),
    "wipe-follower": (wipe_follower, 3, ("--snapshot-entries", "50", "--snapshot-log-bytes", "4096")),
    "remove-and-add": (remove_and_add, 3, ("--snapshot-entries", "50", "--snapshot-log-bytes", "4096")),
    "snapshots-and-kills": (
        kill_follower,
        3,
        ("--snapshot-entries", "20", "--snapshot-log-bytes", "4096", "--keep-entries", "10"),
    ),
    "kill-under-partition": (kill_under_partition, 3, ()),
    "everything": (anything, 3, ("--snapshot-entries", "100", "--snapshot-log-bytes", "4096", "--keep-entries", "20")),
}

#: While a further node joins and leaves, again and again.
_WITH_CHURN = (
    "kill-leader",
    "kill-follower",
    "kill-all",
    "pause-leader",
    "slow-disk",
    "isolate-leader",
    "one-way",
    "flapping",
)

FAULT_SETS: dict[str, Set] = {name: Set(*row) for name, row in _TABLE.items()}
FAULT_SETS |= {f"members-{name}": Set(*_TABLE[name], churn=True) for name in _WITH_CHURN}
FAULT_SETS["members-bridge"] = Set(bridge, 3, (), churn=True)


# --- the run ---


def run_faults(name: str, directory: Path, seconds: float, seed: int, clients: int = 6) -> Report:
    """One run; the report says "clean" or what was wrong, and the logs stay in `directory` in that case."""
    faults, nodes, flags, churning = FAULT_SETS[name]
    started = time.monotonic()
    workload: Workload | None = None
    run: Run | None = None
    verdict = "clean"
    stalls = Stalls()
    stalls.start()
    try:
        with (
            LocalCluster(directory, nodes, flags=flags, proxied=True, spare=int(churning)) as cluster,
            Network(cluster) as network,
        ):
            cluster.start()
            run = Run(cluster, network, random.Random(f"{name}/{seed}"))
            workload = Workload(cluster.nodes, clients, seed).start()
            _warm_up(workload)
            churn = Churn(cluster, seed) if churning else None
            if churn is not None:
                churn.start()
            _break(faults, run, seconds)
            _heal(run)
            if churn is not None:
                churn.finish()
            workload.stop()
            workload.read_back(cluster.wait_leader())
            cluster.wait_equal()
            workload.check()
    except AssertionError as error:
        verdict = str(error) or repr(error)
    finally:
        stalls.over.set()
        if workload is not None:
            workload.stopping.set()
    tally = workload.tally if workload else {"ok": 0, "failed": 0, "unknown": 0}
    return Report(
        name,
        seed,
        round(time.monotonic() - started, 1),
        tally["ok"],
        tally["failed"],
        tally["unknown"],
        round(workload.longest_gap_s, 2) if workload else 0.0,
        run.injected if run else 0,
        verdict,
        round(stalls.stalled_s, 1),
    )


def _warm_up(workload: Workload, seconds: float = 1.0) -> None:
    before, started = workload.acknowledged(), time.monotonic()
    workload.stopping.wait(seconds)
    rate = (workload.acknowledged() - before) / (time.monotonic() - started)
    assert rate >= TRAFFIC_FLOOR_PER_S, f"void: only {rate:.0f} operations a second before the first fault"


def _break(faults: FaultSet, run: Run, seconds: float) -> None:
    timer = threading.Timer(seconds, run.over.set)
    timer.start()
    try:
        while not run.over.is_set():
            faults(run)
            run.injected += 1
    finally:
        timer.cancel()


def _heal(run: Run) -> None:
    run.network.heal()
    for node in run.cluster.nodes:
        if node.paused:
            node.resume()
    for node in run.cluster.nodes:
        if not node.alive and node.process is not None and node.process.returncode not in (-9, 0):
            raise AssertionError(f"node {node.id} ended by itself with {node.process.returncode}:\n{node.log[-1500:]}")
    run.restart(*run.cluster.nodes)
    run.cluster.wait_leader(HEAL_S)
