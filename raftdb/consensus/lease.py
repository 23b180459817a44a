"""Leases: reads on the leader without a round, for as long as nobody else can have become leader.

A quorum that answered heartbeat round r will not vote for anybody during the least election timeout after it received
the heartbeat, which was after it was sent. So from the *send* time of r on, this node is the only leader for that long;
the lease is shorter by a tick and ten percent, for clocks that run unevenly. Seven holes, and what closes each:

    1. the lease is checked, the node pauses, then answers from what it had read before: see below
    2. counted from the answer instead of the sending: `before_send` notes the time, `after_persist` only looks it up
    3. a voter that restarts forgets whom it has heard: no (pre-)vote in the least election timeout after a start
    4. TimeoutNow makes a voter ignore the timeout: the core ends the lease before it is sent, for the rest of the term
    5. the quorum of yesterday's membership, or a leader whose state machine lacks the commits of its predecessors:
       the core reports no round that began before a membership entry was adopted or was confirmed before the no-op
       was applied
    6. a view that was opened before the lease began, and is looked at when it holds: it may lack what the predecessor
       committed (found by the simulator)
    7. the leader applies late: what it has committed was served on a member that is quicker, and a view of the leader
       still lacks it: reads would go back (found by the simulator)

1, 6 and 7 are the reader's duty: note `core.read_floor` (the no-op of the term, the commit index) once the read has
come, open the view, then ask `holds_for`: the view must have applied the floor, and the lease must hold by then.
2 is this file; 3-5 are the core's: it says `Ready.lease_end` and reports only rounds that may count
(`Released.lease_round`). The clock is an argument: one that counts the time the machine was suspended. Leases do not
survive a paused virtual machine whose clock stops.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from raftdb.consensus.ready import Ready, Released

ROUNDS_MAX: Final = 256
"""Send times that are remembered; a round that is answered later than that many rounds gives no lease."""


def lease_ms_max(election_ms_min: int, tick_ms: int) -> int:
    """The longest lease that the least election timeout allows: shorter by a tick plus ten percent."""
    return election_ms_min - tick_ms - (election_ms_min + 9) // 10


class Lease:
    """The lease of one node, and the age of its last confirmed round. Times in ms of a clock that is given."""

    __slots__ = ("confirmed_ms", "lease_ms", "sent", "until_ms")

    def __init__(self, lease_ms: int, election_ms_min: int, tick_ms: int) -> None:
        """Raises ValueError for a lease that the least election timeout does not allow."""
        if lease_ms > lease_ms_max(election_ms_min, tick_ms):
            raise ValueError(f"a lease of {lease_ms} ms needs an election timeout well above {election_ms_min} ms")
        self.lease_ms = lease_ms
        self.sent: deque[tuple[int, int]] = deque(maxlen=ROUNDS_MAX)  # (round, send time) of this term
        self.until_ms = 0
        self.confirmed_ms: int | None = None  # send time of the last round that a quorum confirmed

    def before_send(self, ready: Ready, now_ms: int) -> None:
        """Call with every Ready before its messages are sent."""
        if ready.lease_end:
            self.end()
        if ready.round:
            if self.sent and ready.round <= self.sent[-1][0]:
                self.sent.clear()  # a new term counts from 1 again
                self.confirmed_ms = None
            self.sent.append((ready.round, now_ms))

    def after_persist(self, released: Released) -> None:
        """Call with every Released."""
        if released.confirmed_round:
            sent_ms = self._sent_ms(released.confirmed_round)
            if sent_ms is not None:
                self.confirmed_ms = sent_ms
        if released.lease_round:
            sent_ms = self._sent_ms(released.lease_round)
            if sent_ms is not None:
                self.until_ms = max(self.until_ms, sent_ms + self.lease_ms)

    def _sent_ms(self, number: int) -> int | None:
        return next((sent_ms for sent, sent_ms in reversed(self.sent) if sent == number), None)

    def end(self) -> None:
        """No lease from now on, until the core reports a round that may count."""
        self.until_ms = 0

    def holds(self, now_ms: int) -> bool:
        """Whether there is a lease. To answer from a view takes more: `holds_for`."""
        return now_ms < self.until_ms

    def holds_for(self, view_applied: int, floor: int, now_ms: int) -> bool:
        """Whether a view that was opened *before* this, with that applied index, may be answered from.

        `floor`: `core.read_floor` of this node as it was at any moment since the read came.
        """
        return view_applied >= floor > 0 and now_ms < self.until_ms

    def age_ms(self, now_ms: int) -> int | None:
        """How old the knowledge is that this node leads (None: there is none): the freshness of `bounded` reads."""
        return None if self.confirmed_ms is None else max(0, now_ms - self.confirmed_ms)
