"""ReadIndex: linearizable reads without a log entry (dissertation 6.4).

    on the leader     waiting --round starts--> batch(round, commit index) --quorum answers the round--> answered
    on the others     waiting --ReadRequest(context)--> asked --ReadReply(context, index)--> answered

All reads that arrive while a round (or a request) is under way share the next one. The index of a batch is the commit
index when its round starts, which is not before the reads arrived; the caller has seen to it that the leader has
committed an entry of its own term by then. A context contains the start count of the asker, so that a late answer to
a former life matches nothing (I17). A request that may be lost is repeated with its context: an index that was
confirmed after the first of them left is good for all its reads. A read that nobody answered within `wait_ticks` is
refused: index -1.
"""

from __future__ import annotations

from collections import deque
from typing import Final, NamedTuple

from raftdb.consensus.ready import ReadReady
from raftdb.types import NodeRef

COUNTER_BITS: Final = 32


class Waiting(NamedTuple):
    read_id: int
    born: int  # tick


class Batch(NamedTuple):
    """Reads that wait for one heartbeat round."""

    round: int
    index: int  # type: ignore[assignment]
    local: list[Waiting]
    remote: dict[NodeRef, int]  # asker -> context


class Reads:
    """The reads of one node, whatever its role."""

    __slots__ = ("asked", "asked_tick", "batches", "context", "counter", "remote", "starts", "waiting")

    def __init__(self, starts: int) -> None:
        self.starts = starts
        self.counter = 0
        self.waiting: list[Waiting] = []
        self.remote: dict[NodeRef, int] = {}  # leader: one open context per asker
        self.batches: deque[Batch] = deque()  # leader
        self.asked: list[Waiting] = []  # others: under way to the leader
        self.asked_tick = 0
        self.context = 0  # 0: nothing under way

    @property
    def has_waiting(self) -> bool:
        return bool(self.waiting or self.remote)

    def count(self) -> int:
        return len(self.waiting) + len(self.asked) + sum(len(batch.local) for batch in self.batches)

    # --- leader -----------------------------------------------------------------------------------------------------

    def start_round(self, number: int, commit: int) -> None:
        """Everything that waits now waits for this round."""
        if self.waiting or self.remote:
            self.batches.append(Batch(number, commit, self.waiting, self.remote))
            self.waiting = []
            self.remote = {}

    def confirmed(self, number: int) -> list[Batch]:
        """The batches that rounds up to `number` answer."""
        done = []
        while self.batches and self.batches[0].round <= number:
            done.append(self.batches.popleft())
        return done

    # --- others -----------------------------------------------------------------------------------------------------

    def ask(self, tick: int) -> int:
        """Take what waits into one request; return its context."""
        self.counter += 1
        self.context = ((self.starts << COUNTER_BITS) | (self.counter & ((1 << COUNTER_BITS) - 1))) & ((1 << 64) - 1)
        self.asked, self.waiting = self.waiting, []
        self.asked_tick = tick
        return self.context

    def answered(self, context: int, index: int) -> list[ReadReady] | None:
        """The reads of that request; None when it is not the one under way (late, or of a former life)."""
        if not self.context or context != self.context:
            return None
        done = [ReadReady(read.read_id, index) for read in self.asked]
        self.asked = []
        self.context = 0
        return done

    def ask_again(self) -> None:
        """The request under way is taken for lost; its reads wait for the next."""
        self.waiting = self.asked + self.waiting
        self.asked = []
        self.context = 0

    # --- both -------------------------------------------------------------------------------------------------------

    def restart(self) -> None:
        """Leadership changed: nothing under way counts, own reads wait for the next leader, others must ask again."""
        for batch in reversed(self.batches):
            self.waiting = batch.local + self.waiting
        self.batches.clear()
        self.remote = {}
        self.ask_again()

    def expire(self, tick: int, wait_ticks: int) -> list[ReadReady]:
        """Refuse what has waited too long. Batches of a leader are left alone: they end with its leadership."""
        limit = tick - wait_ticks
        if self.asked and self.asked[0].born <= limit:
            self.ask_again()
        if not self.waiting or min(read.born for read in self.waiting) > limit:
            return []
        refused = [ReadReady(read.read_id, -1) for read in self.waiting if read.born <= limit]
        self.waiting = [read for read in self.waiting if read.born > limit]
        return refused
