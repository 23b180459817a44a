"""A follower that was away catches up while writes go on; clients pour in more than the disks take. Memory is bounded.

    python -m tests.e2e catch-up                   # the four parts, a million writes each (`make catch-up`)
    python -m tests.e2e catch-up --writes 20000 --only log

    log        the follower was away and the log still holds everything: it gets the entries
    snapshot   the log was trimmed meanwhile: it gets a file, then entries
    values     clients send values of 16 KiB to 1 MiB as fast as the sockets take them, and read no replies
    slow-disk  the same, and each flush of each node takes 50 ms longer (needs strace)

**Memory** is RssAnon of /proc/PID/status, sampled five times a second for each node: what a process holds for itself.
The pages of LMDB's files, which the kernel may drop at any time, are not in it. What is judged is the growth above what
the node held when the part began, against MEMORY_MAX_MIB, which is the sum of the bounds that hold for one node in the
worst case of these loads (see there), and does not depend on how much is written.

**Nothing acknowledged is lost.** Each value tells its key and number. After a flood the replies are read: what was
answered OK must be there on every node, with its value; `-TRYAGAIN` and `-UNCERTAIN` are allowed answers, and what was
refused with a word that promises "not executed" must not be there. Then all replicas have the same digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import redis

from tests.e2e.processes import LocalCluster, NodeProcess, background, wait_for

LEDGER = Path(__file__).with_name("catch-up.jsonl")
MIB = 1 << 20
WRITES = 1_000_000
VALUE = b"v" * 100
KEYS = 100_000
PIPELINE = 200
SAMPLE_S = 0.2
CATCH_UP_S = 600.0
#: Growth of one node, in MiB. What one node may hold at a time: 64 of commands that wait and 64 of entries appended and
#: not yet applied (driver.py), 2 peers x 16 of outbox (link.py), one entry of 8 decoded, encoded and framed (3 x 8), 16
#: of entries being applied with their batch (2 x 16), the 16 clients' backlogs (16 x 1, loop.py); the allocator keeps
#: about a quarter on top of that.
MEMORY_MAX_MIB = 300
FLOOD_CLIENTS = 16
FLOOD_MIN_BYTES, FLOOD_MAX_BYTES = 16 << 10, 1 << 20


# --- memory ---


def anonymous_kib(pid: int) -> int:
    """RssAnon; 0 when the process is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    return 0


class Memory(threading.Thread):
    """The most that each node has held since `start()`, and what it held then, in KiB."""

    def __init__(self, nodes: Sequence[NodeProcess]) -> None:
        super().__init__(daemon=True)
        self.nodes = nodes
        self.first: dict[str, int] = {}
        self.most: dict[str, int] = {}
        self.samples = 0
        self.over = threading.Event()

    def run(self) -> None:
        while True:
            for node in self.nodes:
                if node.alive:
                    assert node.process is not None
                    self._note(node.id, anonymous_kib(node.process.pid))
            self.samples += 1
            if self.over.wait(SAMPLE_S):
                return

    def _note(self, node_id: str, kib: int) -> None:
        if kib:
            self.first.setdefault(node_id, kib)
            self.most[node_id] = max(self.most.get(node_id, 0), kib)

    def growth_mib(self) -> dict[str, int]:
        return {node_id: (most - self.first[node_id]) // 1024 for node_id, most in self.most.items()}

    def stop(self) -> dict[str, int]:
        self.over.set()
        self.join()
        return self.growth_mib()


class Outcome(NamedTuple):
    """One line of the ledger."""

    part: str
    writes: int  # acknowledged
    seconds: float  # from the follower's start until it had everything; of a flood: until the last reply
    writes_meanwhile: int
    refused: int
    unknown: int
    anonymous_mib: dict[str, int]  # the most that each node held
    growth_mib: dict[str, int]  # above what it held when the part began
    leader: str
    follower: str  # that was away; "" in a flood
    snapshots_installed: int


# --- a follower that was away ---


class Pour:
    """Pipelines of SETs over KEYS keys, without an end; a slow disk may leave some of them unanswered in time."""

    def __init__(self, node: NodeProcess) -> None:
        self.node = node
        self.sent = self.done = self.unknown = 0

    def go(self, writes: int, stop: threading.Event | None = None, pause_s: float = 0.0) -> int:
        """So many acknowledged writes more, or until told to stop; how many were acknowledged in all."""
        goal = self.done + writes
        with self.node.client(timeout_s=60) as client:
            while self.done < goal and not (stop is not None and stop.is_set()):
                pipe = client.pipeline(transaction=False)
                for number in range(self.sent, self.sent + PIPELINE):
                    pipe.set(f"key:{number * 7919 % KEYS:06d}", VALUE)
                self.sent += PIPELINE
                for reply in pipe.execute(raise_on_error=False):
                    unknown = isinstance(reply, redis.ResponseError) and str(reply).startswith("UNCERTAIN")
                    assert reply is True or unknown, repr(reply)
                    self.done += reply is True
                    self.unknown += unknown
                if pause_s and stop is not None:
                    stop.wait(pause_s)
        return self.done

    def go_on(self, stop: threading.Event) -> None:
        """Until told to stop, leaving the nodes some time for other things."""
        self.go(1 << 62, stop, pause_s=0.02)


def flags_of(part: str, writes: int) -> list[str]:
    """How much log stays: everything, or so little that the follower needs a file."""
    if part == "log":
        return ["--snapshot-entries", "1000000000", "--snapshot-log-bytes", "64GiB"]
    entries = max(20, writes // PIPELINE // 20)
    few = ["--snapshot-entries", str(entries), "--snapshot-log-bytes", "4096"]
    return [*few, "--keep-entries", str(entries // 4), "--keep-bytes", "1MiB"]


def first_index(node: NodeProcess) -> int:
    """The first entry that the node's log still holds."""
    return int((node.info() or {"raft_first_index": 0})["raft_first_index"])


def trim(leader: NodeProcess, applied: int) -> None:
    """Until the leader lacks what a follower at `applied` needs: the log is kept back to the older of two files."""
    with leader.client(timeout_s=60) as client:
        for number in range(2):
            client.set("between", number)
            client.execute_command("SAVE")
    wait_for("the log to be trimmed", lambda: first_index(leader) > applied + 1, 60)


def catch_up(directory: Path, part: str, writes: int) -> Outcome:
    """Raises AssertionError when the follower does not come to the same state."""
    with LocalCluster(directory, 3, flags=flags_of(part, writes)) as cluster:
        cluster.start()
        leader = cluster.wait_leader()
        away = cluster.followers()[0]
        applied = int((away.info() or {})["raft_applied_index"])
        away.kill()
        pour = Pour(leader)
        done = pour.go(writes)
        if part == "snapshot":
            trim(leader, applied)
        else:
            assert first_index(leader) <= applied + 1, "the log was trimmed"
        memory = Memory(cluster.nodes)
        away.start()
        away.wait_serving(60)
        started = time.monotonic()
        with background(pour.go_on):
            memory.start()
            wait_until_level(leader, away)
            seconds = time.monotonic() - started
        growth = memory.stop()
        cluster.wait_equal(120)
        assert cluster.wait_leader() is leader, f"leadership moved while the follower caught up:\n{cluster.logs()}"
        return Outcome(
            part,
            pour.done,
            round(seconds, 1),
            pour.done - done,
            0,
            pour.unknown,
            {node: kib // 1024 for node, kib in memory.most.items()},
            growth,
            leader.id,
            away.id,
            away.log.count("installing snapshot"),
        )


def wait_until_level(leader: NodeProcess, away: NodeProcess) -> None:
    """Until the follower has applied what the leader had committed when it was asked; writes go on."""

    def probe() -> bool:
        there, here = leader.info(), away.info()
        if there is None or here is None:
            return False
        return int(here["raft_applied_index"]) + 20 >= int(there["raft_commit_index"])

    wait_for("the follower to catch up", probe, CATCH_UP_S)


# --- a flood ---


class Flood(threading.Thread):
    """One client that sends SETs without reading, until it is told to stop; then reads all replies."""

    def __init__(self, node: NodeProcess, number: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self.node = node
        self.number = number
        self.over = over
        self.rng = random.Random(number)
        self.sent: list[tuple[str, bytes]] = []  # key, digest of the value
        self.replies: list[bytes] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with socket.create_connection((self.node.bind, self.node.port), 30) as stream:
                self._send(stream)
                self._read(stream)
        except BaseException as error:  # handed over to the flood
            self.error = error

    def _send(self, stream: socket.socket) -> None:
        stream.settimeout(120.0)  # a server that takes more slowly is what this is about
        while not self.over.is_set():
            key = f"flood:{self.number}:{len(self.sent)}"
            size = int(FLOOD_MIN_BYTES * (FLOOD_MAX_BYTES / FLOOD_MIN_BYTES) ** self.rng.random())
            value = key.encode() + b":" + self.rng.randbytes(size)
            self.sent.append((key, hashlib.blake2b(value, digest_size=16).digest()))
            head = b"*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%d\r\n" % (len(key), key.encode(), len(value))
            stream.sendall(head + value + b"\r\n")

    def _read(self, stream: socket.socket) -> None:
        with stream.makefile("rb") as lines:
            for _ in self.sent:
                self.replies.append(lines.readline())

    def outcomes(self) -> Iterator[tuple[str, bytes, str]]:
        """(key, digest of the value, "ok" | "refused" | "unknown"). Raises AssertionError for any other answer."""
        for (key, digest), reply in zip(self.sent, self.replies, strict=True):
            if reply == b"+OK\r\n":
                yield key, digest, "ok"
            elif reply.startswith(b"-UNCERTAIN"):
                yield key, digest, "unknown"
            else:
                assert reply.startswith((b"-TRYAGAIN", b"-CLUSTERDOWN")), f"{key}: {reply!r}"
                yield key, digest, "refused"


def flood(directory: Path, part: str, seconds: float, strace: str | None = None) -> Outcome:
    """Raises AssertionError when something acknowledged is not there, or something refused is."""
    with LocalCluster(directory, 3) as cluster, contextlib.ExitStack() as stack:
        cluster.start()
        leader = cluster.wait_leader()
        if strace is not None:
            for node in cluster.nodes:
                stack.enter_context(slow_flushes(strace, node))
        memory = Memory(cluster.nodes)
        memory.start()
        over = threading.Event()
        floods = [Flood(cluster.nodes[number % 3], number, over) for number in range(FLOOD_CLIENTS)]
        started = time.monotonic()
        for each in floods:
            each.start()
        over.wait(seconds)
        over.set()
        for each in floods:
            each.join(300)
        took_s = time.monotonic() - started
        growth = memory.stop()
        for each in floods:
            assert each.error is None, f"client {each.number}: {each.error!r}"
        stack.close()
        tally = judge(cluster, floods)
        cluster.wait_equal(120)
        mib = {node: kib // 1024 for node, kib in memory.most.items()}
        return Outcome(
            part, tally["ok"], round(took_s, 1), 0, tally["refused"], tally["unknown"], mib, growth, leader.id, "", 0
        )


def judge(cluster: LocalCluster, floods: Sequence[Flood]) -> Counter[str]:
    """Looks at every key on every node."""
    tally: Counter[str] = Counter()
    for node in cluster.nodes:
        with node.client(timeout_s=60) as client:
            for each in floods:
                for key, digest, outcome in each.outcomes():
                    tally[outcome] += node is cluster.nodes[0]
                    value = client.get(key)
                    found = None if value is None else hashlib.blake2b(value, digest_size=16).digest()
                    if outcome == "ok":
                        assert found == digest, f"{key} was acknowledged and is not on {node.id} as it was sent"
                    elif outcome == "refused":
                        assert found is None, f"{key} was refused as not executed and is on {node.id}"
                    else:
                        assert found in (None, digest), f"{key} is on {node.id}, and not as it was sent"
    return tally


@contextlib.contextmanager
def slow_flushes(strace: str, node: NodeProcess, delay_us: int = 50_000) -> Iterator[None]:
    """Every fdatasync of the node takes this much longer."""
    assert node.process is not None
    line = [strace, "-f", "-qq", "-o", "/dev/null", "-p", str(node.process.pid), "-e", "trace=fdatasync"]
    tracer = subprocess.Popen([*line, "-e", f"inject=fdatasync:delay_enter={delay_us}"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        tracer.send_signal(signal.SIGINT)
        tracer.wait(60)


# --- all of it ---

Part = Callable[[Path, int, float, "str | None"], Outcome]
PARTS: dict[str, Part] = {
    "log": lambda directory, writes, seconds, strace: catch_up(directory, "log", writes),
    "snapshot": lambda directory, writes, seconds, strace: catch_up(directory, "snapshot", writes),
    "values": lambda directory, writes, seconds, strace: flood(directory, "values", seconds),
    "slow-disk": lambda directory, writes, seconds, strace: flood(directory, "slow-disk", seconds, strace),
}


def measure(names: Sequence[str], writes: int, seconds: float, strace: str | None, commit: str) -> bool:
    """Prints each part and appends it to the ledger; False when a node held more than the bound, or a part failed."""
    good = True
    for name in names:
        if name == "slow-disk" and strace is None:
            print("slow-disk: left out, strace is not installed")
            continue
        with tempfile.TemporaryDirectory(prefix="raftdb-catch-up-") as directory:
            outcome = PARTS[name](Path(directory) / "cluster", writes, seconds, strace)
        most = max(outcome.growth_mib.values())
        good = good and most <= MEMORY_MAX_MIB
        print(
            f"{name}: {outcome.writes} acknowledged, {outcome.refused} refused, {outcome.unknown} unknown, "
            f"{outcome.seconds} s; anonymous memory {outcome.anonymous_mib} MiB, grown by at most {most} "
            f"(bound {MEMORY_MAX_MIB}); {outcome.writes_meanwhile} writes meanwhile",
            flush=True,
        )
        row = {"commit": commit, "time": datetime.now(UTC).isoformat(timespec="seconds"), **outcome._asdict()}
        with LEDGER.open("a") as ledger:
            ledger.write(json.dumps(row) + "\n")
    return good
