"""`raftdb recover --force-members` and kill -9: what is half recovered never serves, and the command goes on.

`make recover-kills` kills at each call; the suite at those that decide, and at some that change with the commit.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.install_kills import MUTATING
from tests.e2e.processes import LocalCluster, NodeProcess, wait_for
from tests.rotation import sample

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

COMMIT = ("fdatasync", "pwrite64")
MORE = 2  # calls besides those that decide


def recover(directory: Path, *wrapper: str) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-m", "raftdb", "recover", "-d", str(directory), "--force-members"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def calls(strace: str, directory: Path, trace: Path) -> list[tuple[str, int, str]]:
    """(name, which call of that name, line) of the mutating calls in the data directory, the first run being whole."""
    done = recover(directory, strace, "-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={MUTATING}")
    assert done.returncode == 0, done.stderr
    found, seen = [], Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        match = re.match(r"\d+ +(\w+)\(", line)
        if match:
            seen[match[1]] += 1  # strace counts each call by its name
            if str(directory) in line and "= -1" not in line:
                found.append((match[1], seen[match[1]], line))
    return found


def chosen(points: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    """Renames, LMDB's commits (the meta page, which it writes after a flush) and the last call; some of the others."""
    before = ["", *(name for name, _, _ in points)]
    deciding = [p for p, b in zip(points, before, strict=False) if p[0] == "rename" or (b, p[0]) == COMMIT]
    deciding += [p for p in points[-1:] if p not in deciding]
    return deciding + sample([p for p in points if p not in deciding], MORE)


def start(node: NodeProcess) -> str:
    """What `serve` makes of the directory: "refused", "alone" (it leads, and has the data), or "member" (as it was)."""
    node.start()

    def probe() -> str | None:
        if not node.alive:
            assert node.process.returncode == 2, node.log
            assert "recover` was cut off" in node.log
            return "refused"
        info = node.info()
        if info is None or not info.get("raft_cluster_id"):
            return None
        return {1: "alone", 3: "member"}[int(info["raft_voters"])]

    found = wait_for("the node to serve or to refuse", probe)
    if found == "alone":
        wait_for("the node to lead", lambda: node.role() == "leader")
        with node.client() as client:
            assert client.get("k") == b"v"
    if found == "member":
        assert node.role() != "leader"
    node.kill()
    node.log_path.unlink()
    return found


def test_a_recovery_killed_at_any_call_is_refused_by_serve_and_finished_by_another_run(tmp_path, require):
    strace = require("strace")
    with LocalCluster(tmp_path / "c", 3) as cluster:
        cluster.start()
        with cluster.nodes[0].client() as client:
            client.set("k", "v")
        cluster.wait_equal()
        survivor = cluster.nodes[1]
        assert survivor.stop() == 0  # cleanly: whether kv of a copy is trusted must not depend on inode numbers
        for node in cluster.nodes:
            node.kill()
        survivor.log_path.unlink()
        before = tmp_path / "before"
        shutil.copytree(survivor.directory, before)

        def put_back() -> None:
            shutil.rmtree(survivor.directory)
            shutil.copytree(before, survivor.directory)

        put_back()
        points = calls(strace, survivor.directory, tmp_path / "calls")
        begun = next(n for n, (_, _, line) in enumerate(points) if "identity.new" in line)
        seen: Counter[str] = Counter()
        assert len(points[begun:]) >= 10, points
        for name, number, line in chosen(points[begun:]):
            put_back()
            inject = f"inject={name}:signal=SIGKILL:when={number}"
            cut = recover(
                survivor.directory, strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject
            )
            assert cut.returncode != 0, line
            found = start(survivor)
            seen[found] += 1
            if found != "alone":
                done = recover(survivor.directory)
                assert done.returncode == 0, f"{line}: {done.stderr}"
                assert "lose" in done.stdout
                assert start(survivor) == "alone", line
        assert seen["refused"] >= 3, seen  # killed at a call of step 2, 3 or 4
        assert seen["member"] >= 1, seen  # of step 1
        assert seen["alone"] >= 1, seen  # after the last one
