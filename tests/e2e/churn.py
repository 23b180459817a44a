"""Members that come and go while other things happen: ADD_NODE, a vote, DEL_NODE, an empty directory, and again."""

from __future__ import annotations

import contextlib
import random
import shutil
import threading
import time

import redis

from tests.e2e.processes import LocalCluster, NodeProcess, wait_for

STEP_S = 40.0  # after healing, for the last removal
ASK_S = 7.0  # longer than the request time-out: the node's own answer, unless it is stopped
#: What a node says that starts empty under an id that somebody still knows: the removal may not have reached everybody.
STALE = "use -o to replace that node"
AGAIN = ("UNCERTAIN", "CLUSTERDOWN", "TRYAGAIN", "LOADING")


def change(node: NodeProcess, *words: str, timeout_s: float = 15.0) -> str:
    """What a membership command came to: "done", "refused ...", or "again" for what may or may not have happened."""
    try:
        with node.client(timeout_s=timeout_s) as client:
            client.execute_command(*words)
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
        return "again"
    except redis.exceptions.ResponseError as error:
        # redis-py cuts off the codes it knows: its own classes say as much.
        known = (redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError, redis.exceptions.BusyLoadingError)
        return "again" if isinstance(error, known) or str(error).startswith(AGAIN) else f"refused {error}"
    return "done"


def members(node: NodeProcess) -> frozenset[tuple[str, str]]:
    """(id, "yes" or "no" for its vote) of every member that this node knows of."""
    info = node.info() or {}
    rows = [row for name, row in info.items() if name.startswith("raft_peer") and isinstance(row, dict)]
    return frozenset((str(row["id"]), str(row["voter"])) for row in rows)


def wait_settled(cluster: LocalCluster, expected: set[str], seconds: float = STEP_S) -> None:
    """Until the living nodes agree that exactly these are the voters, and nobody else is a member."""
    wanted = frozenset((node_id, "yes") for node_id in expected)
    living = [node for node in cluster.all if node.alive and node.id in expected]
    wait_for(f"the members {sorted(expected)}", lambda: all(members(node) == wanted for node in living), seconds)


class Churn(threading.Thread):
    """Adds the cluster's spare node, removes it, again and again. `start()`, then `finish()` when all is healed."""

    def __init__(self, cluster: LocalCluster, seed: int) -> None:
        super().__init__(daemon=True)
        self.cluster = cluster
        (self.spare,) = cluster.spares
        self.rng = random.Random(f"churn/{seed}")
        self.added = self.removed = 0
        self.over = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self._add()
                self.over.wait(self.rng.uniform(0.0, 0.5))
                self._remove()
        except BaseException as error:  # raised by finish()
            self.error = error

    def finish(self) -> None:
        """All is healed: the spare goes for good. AssertionError when something went wrong, or nothing was changed."""
        self.over.set()
        self.join(2 * STEP_S)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), "a membership change hangs"
        wait_settled(self.cluster, {node.id for node in self.cluster.nodes})
        assert self.added > 0, "void: no member was added"
        assert self.removed > 0, "void: no member was removed"

    def _add(self) -> None:
        """The spare asks for a place, and somebody announces it meanwhile; until it votes, or the run is over.

        The first one is waited for, so that each run has one: what began under the fault ends after it at the latest.
        """
        shutil.rmtree(self.spare.directory, ignore_errors=True)
        self.spare.start()
        address = f"{self.spare.host}:{self.spare.port}"
        self._ask("ADD_NODE", self.spare.id, address)

        def voting() -> bool:
            if not self.spare.alive and STALE in self.spare.log[-500:]:
                self.spare.start()  # a member that is cut off still knows the one that was removed: try again
            assert self.spare.alive, f"the node that joins ended:\n{self.spare.log[-1500:]}"
            return (self.spare.id, "yes") in members(self.spare)

        while not voting():
            if self.over.is_set() and self.added:
                return
            if self.over.is_set():
                wait_for("the node that joins to vote", voting, STEP_S)
            time.sleep(0.1)
        self.added += 1

    def _remove(self) -> None:
        """Until somebody says that it is done, or that there is no such member."""
        deadline = None
        while True:
            outcome = self._ask("DEL_NODE", self.spare.id)
            if outcome == "done" or "not a member" in outcome:
                break
            assert outcome == "again" or "membership change" in outcome, outcome
            if self.over.is_set():
                deadline = deadline or time.monotonic() + STEP_S
                assert time.monotonic() < deadline, f"the spare cannot be removed: {outcome}"
            self.over.wait(0.1)
        self.removed += 1
        self.spare.kill()
        shutil.rmtree(self.spare.directory, ignore_errors=True)

    def _ask(self, *words: str) -> str:
        asked = [node for node in self.cluster.nodes if node.alive and not node.paused]
        if not asked:
            return "again"
        with contextlib.suppress(OSError):
            return change(self.rng.choice(asked), *words, timeout_s=ASK_S)
        return "again"
