"""What a leader knows of one member, itself included.

    PROBE      one Append at a time, until a common entry is found
    REPLICATE  a window of appends under way, `next` runs ahead of `match`
    SNAPSHOT   the next entry is trimmed here; the member pulls a file, the leader repeats the offer now and then

`match` never falls, for as long as the leader's term lasts (I9). `next` > `match` always.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from raftdb.errors import Bug
from raftdb.types import NodeRef

PROBE: Final = 0
REPLICATE: Final = 1
SNAPSHOT: Final = 2

MODE_NAMES: Final = ("probe", "replicate", "snapshot")


class Progress:
    """One member, as its leader sees it. Ticks are the leader's own count."""

    __slots__ = (
        "ack_tick",
        "commit_sent",
        "goal",
        "goal_tick",
        "heard_tick",
        "inflight",
        "inflight_bytes",
        "leaving",
        "match",
        "mode",
        "next",
        "offer_tick",
        "probe_round",
        "probe_sent",
        "probe_tick",
        "ref",
        "round",
        "snapshot_index",
        "voter",
        "wants_snapshot",
    )

    def __init__(self, ref: NodeRef, voter: bool, next_index: int, tick: int) -> None:
        self.ref = ref
        self.voter = voter
        self.leaving = False  # removed by an entry that is not known here to be known there: still replicated to
        self.match = 0  # durable there and equal to the leader's log up to here
        self.next = next_index  # next entry to send
        self.mode = PROBE
        self.probe_sent = False  # PROBE: one is under way
        self.probe_round = 0  # the heartbeat round before it
        self.probe_tick = tick
        self.inflight: deque[tuple[int, int, int, int]] = deque()  # (last index, bytes, round before it, tick)
        self.inflight_bytes = 0
        self.commit_sent = 0  # the member has been told of this commit index
        self.round = 0  # the highest heartbeat round it has answered
        self.heard_tick = tick  # last sign of life
        self.ack_tick = tick  # last acknowledgement
        self.snapshot_index = 0  # SNAPSHOT: index of the offered file
        self.offer_tick = 0  # when it was offered
        self.wants_snapshot = False  # it said that only a file helps
        self.goal = 0  # learner: reach this index within an election timeout of goal_tick to be promoted
        self.goal_tick = tick

    def acknowledge(self, index: int) -> None:
        """Everything up to `index` is durable there."""
        if index > self.match:
            self.match = index
        if self.next <= self.match:
            self.next = self.match + 1
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]

    def to_probe(self, next_index: int | None = None) -> None:
        """What was under way is taken for lost."""
        self.mode = PROBE
        self.probe_sent = False
        self.next = max(self.match + 1, next_index or 0)
        self.inflight.clear()
        self.inflight_bytes = 0

    def to_replicate(self) -> None:
        self.mode = REPLICATE
        self.probe_sent = False
        self.next = self.match + 1
        self.inflight.clear()
        self.inflight_bytes = 0

    def to_snapshot(self, index: int, tick: int) -> None:
        self.mode = SNAPSHOT
        self.snapshot_index = index
        self.offer_tick = tick
        self.inflight.clear()
        self.inflight_bytes = 0

    def sent(self, last_index: int, size_bytes: int, round_number: int, tick: int) -> None:
        """An Append up to `last_index` leaves in REPLICATE mode."""
        if last_index < self.next:
            raise Bug(f"sent backwards to {self.ref}: {last_index} < {self.next}")
        self.next = last_index + 1
        self.inflight.append((last_index, size_bytes, round_number, tick))
        self.inflight_bytes += size_bytes
