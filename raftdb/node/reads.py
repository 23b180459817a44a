"""When a read may be answered: linearizable (default), lease, bounded, stale.

    linearizable   the leader tells the index that was committed when the read came, after a round in which a quorum
                   confirmed it; the read waits until this node has applied so far (ReadIndex, dissertation 6.4). All
                   reads that came in one turn share one question. A node that leads alone is its own quorum: at once.
    lease          on the leader while its lease holds: first the view is opened, then the lease is looked at. Elsewhere
                   and otherwise as linearizable.
    bounded MS     at once when a quorum confirmed the leader within the last MS milliseconds, as its heartbeats tell.
                   Otherwise as linearizable.
    stale          at once.

In every mode a connection sees its own writes: a read waits until the index of the connection's last write is applied
here, which matters on followers that forwarded the write.

`StampBehind`: the leader met a key that is due by its clock and not yet by the time of the log. It appends an entry
that only moves the time, and the read is done again when that is applied. So expiry, too, is linearizable.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from raftdb import clock
from raftdb.consensus.core import Busy
from raftdb.node.pending import HANDING_OVER, LAGGING, NO_LEADER, NOT_CONFIRMED, OVERWRITTEN, STOPPING
from raftdb.types import Role

if TYPE_CHECKING:
    from raftdb.consensus.ready import ReadReady
    from raftdb.net.server import Loop
    from raftdb.node.dispatch import Dispatch, Run
    from raftdb.node.driver import Driver

LINEARIZABLE: Final = "linearizable"
LEASE: Final = "lease"
BOUNDED: Final = "bounded"
STALE: Final = "stale"


class Reads:
    """Owned by the driver, but for `take` and `await_stamp`, which loops and workers call."""

    def __init__(self, driver: Driver, dispatch: Dispatch) -> None:
        self._driver = driver
        self._dispatch = dispatch
        self._asked: dict[int, tuple[Loop, Sequence[Run]]] = {}  # read id -> what waits for its index
        self._next_id = 0
        self._waiting: list[tuple[int, int, Loop, Sequence[Run]]] = []  # heap by index: known, not yet applied here
        self._confirmed_s = 0.0  # follower: the leader was confirmed at this time of clock.monotonic(); 0: never
        self._again: list[Run] = []  # to be asked anew with the next tick
        self.at_once = False  # this node leads alone, and has applied the first entry of its term

    # --- any thread -------------------------------------------------------------------------------------------------

    def take(self, loop: Loop, runs: list[Run]) -> None:
        """Runs of one turn of `loop`, in its thread: answer what may be answered now, ask for the others."""
        if self._driver.applier.open and threading.current_thread() is self._driver.thread:
            self._driver.applier.show()
        if self.at_once and self._dispatch.serve(runs, self._alone):
            return
        now: list[Run] = []
        leased: list[Run] = []
        ask: list[Run] = []
        for run in runs:
            where = self._road(run)
            (now if where == STALE else leased if where == LEASE else ask).append(run)
        if now:
            self._dispatch.serve(now)
        if leased and not self._dispatch.serve(leased, self._leased):
            ask += leased
        if ask:
            self._in_driver(lambda: self._ask(loop, ask))

    def _alone(self, view_applied: int) -> bool:
        """May a node that leads alone answer from this view? A learner that applies quicker may have served more."""
        if not self.at_once:
            return False
        driver = self._driver
        if view_applied < driver.applier.known:
            return False  # something is answered that this view has not
        return len(driver.log.membership.members) == 1 or view_applied >= driver.core.read_floor

    def _leased(self, view_applied: int) -> bool:
        """Whether the lease covers an answer from this view: asked *after* it was opened (lease.py, holes 1, 6, 7)."""
        driver = self._driver
        if view_applied < driver.applier.known:
            return False
        return driver.lease.holds_for(view_applied, driver.core.read_floor, int(clock.boottime() * 1000))

    def lease_holds(self) -> bool:
        """Is there a lease at all? Whether it covers a view is `_leased`."""
        return self._driver.lease.holds(int(clock.boottime() * 1000))

    def await_stamp(self, run: Run, due_ms: int) -> None:
        """Do this read again when the time of the log has reached `due_ms`."""
        self._in_driver(lambda: self._await_stamp(run, due_ms))

    def _road(self, run: Run) -> str:
        """STALE: at once; LEASE: at once if the lease holds; LINEARIZABLE: ask."""
        session = run.conn.session
        mode = STALE if session.readonly else session.consistency
        if mode == LINEARIZABLE or session.written_index > self._driver.applied:
            return LINEARIZABLE
        if mode == BOUNDED:
            return STALE if self._age_ms() <= session.bounded_ms else LINEARIZABLE
        if mode == LEASE:
            return LEASE if self.lease_holds() else LINEARIZABLE
        return STALE

    def _age_ms(self) -> float:
        """How old the knowledge is that the leader whose commits are seen here leads."""
        if self._driver.core.role is Role.LEADER:
            age_ms = self._driver.lease.age_ms(int(clock.boottime() * 1000))
            return float("inf") if age_ms is None else age_ms
        return (clock.monotonic() - self._confirmed_s) * 1000 if self._confirmed_s else float("inf")

    def _in_driver(self, fn: Callable[[], None]) -> None:
        if threading.current_thread() is self._driver.thread:
            fn()
        else:
            self._driver.call(fn)

    # --- the driver -------------------------------------------------------------------------------------------------

    def _ask(self, loop: Loop, runs: Sequence[Run]) -> None:
        self._next_id += 1
        self._asked[self._next_id] = (loop, runs)
        self._driver.core.read_index(self._next_id)

    def answered(self, reads: Sequence[ReadReady]) -> None:
        """The core says what index these reads must see."""
        for read_id, index in reads:
            loop, runs = self._asked.pop(read_id)
            if index < 0:
                for run in runs:
                    run.fail(NO_LEADER if self._driver.core.leader is None else NOT_CONFIRMED)
                continue
            self._when_applied(max(index, *(run.conn.session.written_index for run in runs)), loop, runs)

    def _when_applied(self, index: int, loop: Loop, runs: Sequence[Run]) -> None:
        if self._driver.applied < index <= self._driver.applier.executed:
            self._driver.applier.show()
        if index <= self._driver.applied:
            self._serve(loop, runs)
        else:
            self._next_id += 1
            heapq.heappush(self._waiting, (index, self._next_id, loop, runs))

    def waits_for(self, index: int) -> bool:
        """Does a read wait for entries up to `index` to be applied here?"""
        return bool(self._waiting) and self._waiting[0][0] <= index

    def applied(self, index: int) -> None:
        """Everything up to `index` is applied here."""
        while self._waiting and self._waiting[0][0] <= index:
            _, _, loop, runs = heapq.heappop(self._waiting)
            self._serve(loop, runs)

    def _serve(self, loop: Loop, runs: Sequence[Run]) -> None:
        if loop is self._driver.loop:
            self._dispatch.serve(runs)
        else:
            loop.post(lambda: self._served(runs))

    def _served(self, runs: Sequence[Run]) -> None:
        """In the thread of another loop."""
        self._dispatch.serve(runs)

    def _await_stamp(self, run: Run, due_ms: int) -> None:
        driver = self._driver
        if driver.core.role is not Role.LEADER:
            run.fail(OVERWRITTEN)
        elif driver.kv.stamp >= due_ms:
            self._serve(run.conn.loop, [run])
        else:
            try:
                index = driver.move_time(due_ms)
            except Busy:  # leadership is being handed over: with the next tick it is asked anew who leads
                self._again.append(run)
                return
            self._when_applied(index, run.conn.loop, [run])

    def expire(self, before_s: float) -> None:
        """Once per tick. Reads that wait for entries which this node does not get (it is cut off, or catches up)."""
        again, self._again = self._again, []
        for run in again:
            if run.since_s < before_s:
                run.fail(HANDING_OVER)
            else:
                self._ask(run.conn.loop, [run])
        if self._waiting and any(run.since_s < before_s for row in self._waiting for run in row[3]):
            late = [row for row in self._waiting if row[3][0].since_s < before_s]
            self._waiting = [row for row in self._waiting if row[3][0].since_s >= before_s]
            heapq.heapify(self._waiting)
            for row in late:
                for run in row[3]:
                    run.fail(LAGGING)

    def fail_all(self) -> None:
        """The node stops."""
        for _, runs in self._asked.values():
            for run in runs:
                run.fail(STOPPING)
        for row in self._waiting:
            for run in row[3]:
                run.fail(STOPPING)
        for run in self._again:
            run.fail(STOPPING)
        self._asked.clear()
        self._waiting.clear()
        self._again.clear()

    # --- freshness --------------------------------------------------------------------------------------------------

    def told_age(self, age_ms: int) -> None:
        """The leader's heartbeat says how old its last confirmed round is."""
        self._confirmed_s = max(self._confirmed_s, clock.monotonic() - age_ms / 1000)
