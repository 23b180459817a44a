"""kill -9 at each mutating call of a follower that fetches and installs a snapshot.

    python -m tests.e2e install-kills              # at each of them (`make install-kills`); needs strace
    python -m tests.e2e install-kills --second     # of a snapshot that comes while the one before is being built

The follower, which lacks entries that the leader has trimmed, runs under strace, which holds every call that changes
the disk for a moment before it is made and says so. Here they are counted as they come, whichever thread makes them,
from the first piece of the file until the new key-value store is in use; the k-th is where the node is killed. What the
trace says afterwards shows that the call was not made. k goes from 1 up until an install has come to its end before its
k-th call, so no call is left out, however their number differs from run to run; and a kind of call that no k has met,
since threads make theirs in another order each time, is aimed at by its name. (`strace -e inject=...:when=` counts
per thread and name and kills a snapshot's child alone: calls were missed that way.)

After each kill the follower starts again, and what the attempt has left must do it no harm: it installs (a second
install upon the first one, when that had gone far enough) and comes to the same digest as the others. Meanwhile the
leader goes on, so each attempt is about a newer file than the one before.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from tests.e2e.nemesis import wait_until_member
from tests.e2e.network import Network
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.rotation import commit_number, sample

#: Calls that change what is on the disk.
MUTATING = (
    "pwrite64,pwritev,write,fdatasync,fsync,msync,fallocate,ftruncate,"
    "rename,renameat,renameat2,unlink,unlinkat,mkdir,rmdir"
)
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
HELD_MS: Final = 30  # each call; so that a kill comes before it is made (else the point is tried again, held longer)
BUILD_HELD_S: Final = 4.0  # the first call of a build that the next snapshot is to overtake (else likewise)
TRIES: Final = 4
REACHED: Final = 7 / 8  # of the calls of one install, at least so many are made by any other


class Call(NamedTuple):
    """What names are given in each install anew stands as PART, FILE and N."""

    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.name} {self.path}"


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
    last = int((leader.info() or {})["raft_last_index"])
    for number in range(10):
        load(leader, 10, 200, f"{word}{number}-")
    needs_snapshot(cluster, last)


def is_level(leader: NodeProcess, follower: NodeProcess) -> bool:
    """The leader knows that the follower has the same log."""
    rows = [row for name, row in (leader.info() or {}).items() if name.startswith("raft_peer")]
    return any(row["id"] == follower.id and row["lag"] == 0 for row in rows)


#: The call after which the node has what was installed.
TAKES_EFFECT: Final = Call("rename", "kv.current")


class Target(NamedTuple):
    """Where to kill: at the `number`-th call of an install, or of those that are like `call`; number 0 = nowhere."""

    number: int
    call: Call | None = None

    def __str__(self) -> str:
        return f"call {self.number}" if self.call is None else f"{self.call} no. {self.number}"

    def is_last_of(self, calls: Sequence[Call]) -> bool:
        if self.call is None:
            return len(calls) == self.number
        return calls[-1] == self.call and calls.count(self.call) == self.number


NOWHERE: Final = Target(0)


class Held(NamedTuple):
    """How long calls are held up."""

    each_ms: int
    build_s: float


class Trace(threading.Thread):
    """A node that runs under strace: its calls, counted; killed at one of them. `launch` or `attach`, then `end`."""

    def __init__(
        self,
        strace: str,
        node: NodeProcess,
        fifo: Path,
        *,
        target: Target,
        held: Held,
        second: bool = False,
    ) -> None:
        """`second`: count from the second snapshot's first piece on."""
        super().__init__(daemon=True)
        self.node = node
        self.target = target
        self.parts_wanted = 2 if second else 1
        self.calls: list[Call] = []
        self.building = threading.Event()  # of the first snapshot
        self.over = threading.Event()  # the new store is in use
        self.killed_at: Call | None = None
        self.made = False  # the kill came too late: the call was made
        self.overtaken = False  # the second snapshot's first piece came before the first one was built
        self._fifo = fifo
        self._text = ""
        self._half = False  # the first line of _text was looked at when it had no end yet
        self._process: int | None = None
        self._threads: dict[int, bool] = {}  # of the node itself, not of a child
        self._parts: set[str] = set()
        self._stores: set[str] = set()
        self._victim: int | None = None  # the thread that made the call
        self._pointed = self._clean = False
        self._last: int | None = None  # the thread that makes the last call
        self._tracer: subprocess.Popen[bytes] | None = None
        fifo.unlink(missing_ok=True)
        os.mkfifo(fifo)
        names = MUTATING.replace(",mkdir", "") if second else MUTATING
        self._strace = [strace, "-f", "-qq", "-y", "-s", "0", "-o", str(fifo), "-e", f"trace={MUTATING}"]
        self._strace += ["-e", f"inject={names}:delay_enter={held.each_ms * 1000}"]
        if second:  # of each thread: the build's, and the driver's when it opens what was built
            self._strace += ["-e", f"inject=mkdir:delay_enter={held.build_s * 1e6:.0f}:when=1"]

    def launch(self) -> None:
        """The node, under strace from its first call on."""
        self.node.wrapper = self._strace
        self.node.start()
        self.start()

    def attach(self) -> None:
        """To the node, which runs."""
        assert self.node.process is not None
        self._process = self.node.process.pid
        self._tracer = subprocess.Popen(
            [*self._strace, "-p", str(self._process)],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # it complains about its own delays when it is killed with what it holds
        )
        self.start()
        threads = Path(f"/proc/{self._process}/task")
        wait_for("strace", lambda: all("TracerPid:\t0\n" not in p.read_text() for p in threads.glob("*/status")))

    def end(self) -> None:
        """The node is killed, below its strace."""
        assert self.node.process is not None
        pid = self.node.process.pid
        with contextlib.suppress(OSError):
            for child in [pid] if self._tracer else Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(child), signal.SIGKILL)
        self.node.process.wait(20)
        if self._tracer is not None:
            self._tracer.wait(20)
        self.node.wrapper = []
        if self.ident is not None:
            self.join(20)

    def run(self) -> None:
        with self._fifo.open("rb", buffering=0) as stream:
            while data := stream.read(65536):
                self._feed(data.decode(errors="replace"))

    def _feed(self, text: str) -> None:
        """strace hands on a call when it is entered, and the rest of its line when it is left."""
        *lines, self._text = (self._text + text).split("\n")
        for line in lines:
            if not self._half:
                self._entered(line)
            self._half = False
            self._left(line)
        if self._text and not self._half:
            self._half = True
            self._entered(self._text)

    def _entered(self, line: str) -> None:
        match = re.match(r"(\d+) +(\w+)\((.*)", line)
        if match is None:
            return
        thread, name, arguments = int(match[1]), match[2], match[3]
        self._process = self._process or thread
        paths = re.findall(rf"[<\"]{re.escape(str(self.node.directory))}(?:/([^>\"]*))?[>\"]", arguments)
        if not paths or not self._is_ours(thread) or paths[-1].startswith("snapshots/."):
            return  # (the last: a snapshot of its own)
        path = paths[-1]
        if name == "mkdir" and (self.node.directory / path).exists():
            return  # changes nothing
        self._follow(thread, name, path)
        if len(self._parts) < self.parts_wanted or self.over.is_set():
            return
        self.calls.append(Call(name, generic(path)))
        if self.target.is_last_of(self.calls):
            self._victim, self.killed_at = thread, self.calls[-1]
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)

    def _is_ours(self, thread: int) -> bool:
        if thread not in self._threads:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{thread}/status").read_text()
                self._threads[thread] = f"Tgid:\t{self._process}\n" in status
        return self._threads.get(thread, False)

    def _follow(self, thread: int, name: str, path: str) -> None:
        """How far the install is."""
        if path.endswith(".part") and name == "pwrite64":
            self._parts.add(path)
            self.overtaken = len(self._parts) == 2 and len(self._stores) == 1
        elif name == "mkdir" and path.startswith("kv."):
            self._stores.add(path)
            self.building.set()
        elif path == "kv.current" and name == "rename":
            self._pointed = True
        elif path == "kv.state" and name == "rename" and self._pointed and self._parts:
            self._clean = True
        elif path == "" and name == "fsync" and self._clean:
            self._last = thread

    def _left(self, line: str) -> None:
        match = re.match(r"(\d+) .*\) += -?\d", line)
        if match is None:
            return
        thread = int(match[1])
        self.made = self.made or thread == self._victim
        if thread == self._last:
            self.over.set()


def generic(path: str) -> str:
    path = re.sub(r"[^/]*\.part$", "PART", path)
    path = re.sub(r"raft_[^/]*\.dat", "FILE", path)
    return re.sub(r"^kv\.\d+(\.\d+)?", "kv.N", path) or "."


class Result(NamedTuple):
    """What a run came to."""

    calls: int  # of the longest install
    tried: int
    killed: Counter[Call]

    def __str__(self) -> str:
        rows = "".join(f"\n  {count:3} {call}" for call, count in sorted(self.killed.items()))
        return f"{self.calls} calls of an install; killed at {self.killed.total()} of {self.tried}, clean:{rows}"


def chosen(calls: Sequence[Call], count: int) -> list[Target]:
    """Where the new store comes into use; and, as the commit draws them, other renames and any other calls."""
    renames = [Target(calls[: n + 1].count(call), call) for n, call in enumerate(calls) if call.name == "rename"]
    taking = [target for target in renames if target.call == TAKES_EFFECT]
    rest = [Target(n) for n in range(1, int(len(calls) * REACHED)) if calls[n - 1].name != "rename"]
    drawn, half = commit_number(), count // 2
    others = sample([target for target in renames if target not in taking], half, drawn)
    return taking + others + sample(rest, count - len(taking) - len(others), drawn)


def run(
    directory: Path,
    strace: str,
    count: int = 0,
    part: tuple[int, int] = (1, 1),
    *,
    second: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Result:
    """AssertionError when a follower does not come back after a kill, or a call is not reached.

    `count`: calls to try (`chosen`), 0 = all; `part` (k, n): every n-th of them, from the k-th on.
    """
    cluster = LocalCluster(directory, 3, flags=SMALL_SNAPSHOTS, proxied=second)
    with cluster, Network(cluster) if second else contextlib.nullcontext() as network:
        cluster.start()
        attempts = _Attempts(cluster, network, strace, directory / "calls")
        load(cluster.wait_leader(), 200, 500)
        whole = attempts.whole()
        say(f"{len(whole)} calls of a whole install")
        kinds, longest = Counter(whole), len(whole)
        killed: Counter[Call] = Counter()
        tried = (chosen(whole, count) if count else [Target(n + 1) for n in range(longest)])[part[0] - 1 :: part[1]]
        for target in tried:
            call = attempts.kill_at(target)
            assert call is not None, f"{target} of {longest} was not reached: installs had fewer"
            killed[call] += 1
            say(f"{target}: {call}")
        if not count and part[0] == part[1]:  # an install may have had more calls than the one that was counted
            while (call := attempts.kill_at(Target(longest + 1), 1)) is not None:
                longest += 1
                tried.append(Target(longest))
                killed[call] += 1
                say(f"{longest}: {call}")
        if not count and part == (1, 1):  # two threads make their calls in another order each time
            for kind in sorted(set(kinds) - set(killed)):
                tried.append(Target(1, kind))
                assert attempts.kill_at(tried[-1]) == kind, f"never killed at {kind}"
                killed[kind] += 1
                say(str(tried[-1]))
        return Result(longest, len(tried), killed)


class _Attempts:
    """One follower of a cluster, again and again."""

    def __init__(self, cluster: LocalCluster, network: Network | None, strace: str, fifo: Path) -> None:
        self._cluster, self._network, self._strace, self._fifo = cluster, network, strace, fifo
        self._follower = cluster.followers()[0]
        self._follower.stop()
        self._number = 0
        self._held = Held(HELD_MS, BUILD_HELD_S)

    def kill_at(self, target: Target, tries: int = TRIES) -> Call | None:
        """Where it was killed; None: again and again installs had fewer calls."""
        for _ in range(tries):
            trace = self._one(target)
            if trace.killed_at is not None and not trace.made and (self._network is None or trace.overtaken):
                return trace.killed_at
        return None

    def whole(self) -> list[Call]:
        for _ in range(TRIES):
            trace = self._one(NOWHERE)
            if self._network is None or trace.overtaken:
                return trace.calls
        raise AssertionError("the first snapshot was built each time before the second one came")

    def _one(self, target: Target) -> Trace:
        """In the end the follower is equal to the others, and stopped. What was too fast is held longer next time."""
        self._number += 1
        fall_behind(self._cluster, f"p{self._number}-")
        second = self._network is not None
        trace = Trace(self._strace, self._follower, self._fifo, target=target, held=self._held, second=second)
        try:
            if self._network is None:
                trace.launch()
            else:
                self._overtake(self._network, trace)
            wait_for(
                f"the kill at {target}, or the end of the install",
                lambda: trace.over.is_set() or not self._follower.alive,
                INSTALL_S,
            )
            if trace.over.is_set() and not target.number:
                self._cluster.wait_equal(INSTALL_S)
        finally:
            trace.end()
        fall_behind(self._cluster, "more-")  # so that the next start installs, too, upon what this attempt has left
        self._follower.start()
        wait_until_member(self._cluster, self._follower)
        self._cluster.wait_equal(INSTALL_S)
        self._follower.kill()
        if trace.made:
            self._held = self._held._replace(each_ms=2 * self._held.each_ms)
        if second and not trace.overtaken:
            self._held = self._held._replace(build_s=2 * self._held.build_s)
        return trace

    def _overtake(self, network: Network, trace: Trace) -> None:
        """While the first snapshot is being built the node is cut off, and comes back to a second one."""
        follower, leader = trace.node, self._cluster.wait_leader()

        def cut() -> None:
            for other in self._cluster.nodes:
                if other is not follower:
                    network.cut(follower, other)
                    network.cut(other, follower)

        cut()
        follower.start().wait_serving()
        trace.attach()
        network.heal()
        wait_for("the first snapshot to be built", trace.building.is_set, INSTALL_S)
        wait_for("the leader to know that it has come", lambda: is_level(leader, follower), INSTALL_S)
        cut()
        fall_behind(self._cluster, f"second{self._number}-")
        network.heal()
