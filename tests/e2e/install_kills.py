"""kill -9 at each mutating call of a follower that fetches and installs a snapshot.

    python -m tests.e2e install-kills              # at each of them (`make install-kills`); needs strace

A first, whole run under strace tells which calls there are in the data directory, from the first piece of the file on.
Then, for each of them: the follower, which lacks entries that the leader has trimmed, is killed by strace in that call;
it starts again, and what the first attempt has left must do it no harm: it installs (a second install upon the first
one, when that had gone far enough) and comes to the same digest as the others. Meanwhile the leader goes on, so each
attempt is about a newer file than the one before.

strace counts calls per thread and name, so a point is (name, how many of that name the thread has made). Threads make
different calls in each run; where a point is not reached the follower simply installs, and that is told apart.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.e2e.nemesis import wait_until_member
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for

#: Calls that change what is on the disk.
MUTATING = "pwrite64,pwritev,write,fdatasync,fsync,rename,renameat,renameat2,unlink,unlinkat,ftruncate,mkdir,rmdir"
SMALL_SNAPSHOTS = [
    "--snapshot-entries",
    "20",
    "--snapshot-log-bytes",
    "4096",
    "--keep-entries",
    "5",
    "--keep-bytes",
    "0",
]
INSTALL_S = 60.0


class Point(NamedTuple):
    """A call, as strace counts it."""

    name: str
    number: int


def load(node: NodeProcess, keys: int, size_bytes: int, prefix: str = "k") -> None:
    """So many SETs of random values, in pipelines of a hundred; a frozen machine may leave some unanswered."""
    with node.client(timeout_s=60) as client:
        for first in range(0, keys, 100):
            pipe = client.pipeline(transaction=False)
            for number in range(first, min(first + 100, keys)):
                pipe.set(f"{prefix}{number}", os.urandom(size_bytes))
            for reply in pipe.execute(raise_on_error=False):
                assert reply is True or str(reply).startswith("UNCERTAIN"), repr(reply)


def needs_snapshot(cluster: LocalCluster, behind: int = 1) -> None:
    """Until the leader has trimmed what a follower at `behind` would need (the older of two snapshots keeps log)."""
    leader = cluster.wait_leader()
    with leader.client(timeout_s=60) as client:
        for number in range(2):
            client.set("between", str(number))
            client.execute_command("SAVE")
    wait_for("the log to be trimmed", lambda: int((leader.info() or {}).get("raft_first_index", 0)) > behind, 60)


def fall_behind(cluster: LocalCluster, word: str) -> None:
    """The leader writes and trims more than the follower that is away has."""
    leader = cluster.wait_leader()
    for number in range(10):
        load(leader, 10, 200, f"{word}{number}-")
    last = int((leader.info() or {})["raft_last_index"])
    needs_snapshot(cluster, last - 20)


def traced(strace: str, *more: str) -> list[str]:
    return [strace, "-f", "-qq", "-e", f"trace={MUTATING}", *more]


def stop_traced(node: NodeProcess) -> None:
    """Kill the node below its strace."""
    assert node.process is not None
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{node.process.pid}/task/{node.process.pid}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
    node.process.wait(20)
    node.wrapper = []


def points_of(trace: str, directory: Path) -> list[Point]:
    """The calls of a whole run that touch the directory, from the first piece of a snapshot on."""
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[Point, None] = {}
    begun = False
    for line in trace.splitlines():
        match = re.match(r"(\d+) +(\w+)\(", line)
        if match is None:
            continue
        thread, name = match.groups()
        seen[thread, name] += 1
        begun = begun or ".part" in line
        if begun and str(directory) in line:
            found.setdefault(Point(name, seen[thread, name]))
    return list(found)


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """So many of them, evenly; 0 = all."""
    if not 0 < count < len(points):
        return list(points)
    return [points[len(points) * n // count + len(points) // (2 * count)] for n in range(count)]


class Result(NamedTuple):
    """What a run came to."""

    points: int  # calls that an install makes
    killed: int  # of those tried: how often the kill came
    unreached: int


def run(directory: Path, strace: str, count: int = 0, part: tuple[int, int] = (1, 1)) -> Result:
    """AssertionError when a follower does not come back after a kill.

    `count`: points to try, 0 = all; `part` (k, n): every n-th of them, from the k-th on.
    """
    with LocalCluster(directory, 3, flags=SMALL_SNAPSHOTS) as cluster:
        cluster.start()
        follower = cluster.followers()[0]
        follower.stop()
        load(cluster.wait_leader(), 200, 500)
        fall_behind(cluster, "first-")
        points = _whole_install(cluster, follower, strace, directory / "calls.txt")
        assert len(points) > 20, points
        killed = 0
        tried = spread(points, count)[part[0] - 1 :: part[1]]
        for number, point in enumerate(tried):
            fall_behind(cluster, f"p{number}-")
            killed += _kill_at(cluster, follower, strace, point)
        return Result(len(points), killed, len(tried) - killed)


def _whole_install(cluster: LocalCluster, follower: NodeProcess, strace: str, trace: Path) -> list[Point]:
    follower.wrapper = traced(strace, "-y", "-o", str(trace))
    follower.start()
    wait_until_member(cluster, follower)
    wait_for("the install", lambda: "installing snapshot" in follower.log)
    cluster.wait_equal(INSTALL_S)
    stop_traced(follower)
    return points_of(trace.read_text(errors="replace"), follower.directory)


def _kill_at(cluster: LocalCluster, follower: NodeProcess, strace: str, point: Point) -> bool:
    """Was it killed there? In the end the follower is equal to the others, and stopped."""
    inject = f"inject={point.name}:signal=SIGKILL:when={point.number}"
    follower.wrapper = traced(strace, "-o", "/dev/null", "-e", inject)
    follower.start()

    def over() -> bool:
        leader = cluster.leader()
        equal = leader is not None and leader is not follower and leader.digest() == (follower.digest() or 0)
        return equal or not follower.alive

    wait_for(f"the kill at {point}, or the end of the install", over, INSTALL_S)
    killed = not follower.alive
    stop_traced(follower)
    fall_behind(cluster, "more-")  # so that the next start installs, too, upon what the first attempt has left
    follower.start()
    wait_until_member(cluster, follower)
    cluster.wait_equal(INSTALL_S)
    follower.kill()
    return killed
