"""The simulated disk of one node: what is durable, what is only on its way there, and what a crash makes of it.

It has the parts of a real data directory, and the promises of their formats, no more:

    log         one transaction at a time becomes durable as a whole when its sync returns (LMDB: data, flush, meta,
    flush).
                Until then it is *pending*. A crash keeps none of the pending transactions, a prefix, or any subset: a
                driver that waits for each sync has at most one pending, and loses or keeps it; a driver that does not
                wait is punished the way a disk with a volatile cache punishes it.
    kv          state + applied index in one transaction, never synced by itself. It survives the death of the
    process. After
                a loss of power it is not trusted: gone, to be rebuilt from snapshot and log.
    snapshots   a file counts once it is written, synced, renamed, and the directory synced; before that a crash drops
    it.

A backup is a deep enough copy; restoring one is how "somebody put an old disk back" is played. An entry can be
*damaged*: its checksum does not fit any more; reading it raises EntryDamaged, rewriting it heals it.
"""

from __future__ import annotations

import random
from typing import NamedTuple
from zlib import crc32

from raftdb.consensus.membership import decode
from raftdb.errors import EntryDamaged
from raftdb.storage.records import decode as decode_record
from raftdb.storage.records import encode as encode_record
from raftdb.types import Entry, HardState, Kind, Membership, Persist, SnapshotMeta

CHAIN_MASK = 0xFFFFFFFF
ENCODED = 15  # one entry in so many plus one goes through the real record format
DIGEST_MASK = (1 << 61) - 1


def chain_of(previous: int, index: int, term: int, kind: int, stamp: int, seed: int, payload: bytes) -> int:
    """The checksum chain of the simulation: 32 bits like the real one. Tuples of ints hash the same in every
    process."""
    return (hash((previous, index, term, kind, stamp, seed)) ^ crc32(payload)) & CHAIN_MASK


def fold(digest: int, chain: int) -> int:
    """The state after one more entry was applied: any difference in order, number or content shows."""
    return (digest * 1_000_003 + chain + 1) & DIGEST_MASK


def decode_members(entry: Entry) -> Membership:
    """The members that a membership entry stands for."""
    return decode(entry.payload, entry.index)


class LostEntry(AssertionError):
    """The disk was asked for something it does not have, or to write what does not fit."""


class SimLog:
    """The log environment: what `raftdb.consensus` calls a LogView, and the transactions on it."""

    __slots__ = (
        "base_chain",
        "base_members",
        "base_term",
        "damaged",
        "first",
        "hard",
        "items",
        "last",
        "member_entries",
        "membership",
        "previous_membership",
        "snapshot",
        "starts",
    )

    def __init__(self, membership: Membership) -> None:
        self.first = 1
        self.last = 0
        self.base_term = 0
        self.base_chain = 0
        self.items: list[Entry] = []
        self.hard = HardState(0, None)
        self.membership = membership
        self.previous_membership: Membership | None = None
        self.snapshot: SnapshotMeta | None = None
        self.starts = 0
        self.damaged: set[int] = set()
        # A model of our own of who the members are, kept beside what the core asks to write:
        self.base_members: Membership | None = membership  # as of first - 1
        self.member_entries: list[Entry] = []

    # --- LogView ----------------------------------------------------------------------------------------------------

    def term(self, index: int) -> int:
        if self.damaged and index in self.damaged:
            raise EntryDamaged(index, "CRC")
        offset = index - self.first
        if offset >= 0:
            return self.items[offset].term
        if offset == -1:
            return self.base_term
        raise LostEntry(f"term of {index}: the log is {self.first}..{self.last}")

    def chain(self, index: int) -> int:
        if self.damaged and index in self.damaged:
            raise EntryDamaged(index, "CRC")
        offset = index - self.first
        if offset >= 0:
            return self.items[offset].chain
        if offset == -1:
            return self.base_chain
        raise LostEntry(f"chain of {index}: the log is {self.first}..{self.last}")

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """low..high, at least one, then no more than fit into bytes_max of payload."""
        if not self.first <= low <= high <= self.last:
            raise LostEntry(f"entries {low}..{high}: the log is {self.first}..{self.last}")
        if self.damaged:
            for index in range(low, high + 1):
                if index in self.damaged:
                    if index == low:
                        raise EntryDamaged(index, "CRC")
                    high = index - 1
                    break
        found = self.items[low - self.first : high + 1 - self.first]
        size = 0
        for n, entry in enumerate(found):
            size += len(entry.payload)
            if size > bytes_max and n:
                return found[:n]
        return found

    # --- transactions -----------------------------------------------------------------------------------------------

    def commit(self, persist: Persist) -> None:
        """Everything in `persist`, in the order its type states."""
        if persist.install is not None:
            self.install(persist.install, persist.keep_suffix)
        if persist.truncate_from is not None:
            self.truncate(persist.truncate_from)
        for entry in persist.rewrite:
            self.rewrite(entry)
        if persist.entries:
            self.append(persist.entries)
        if persist.hard is not None:
            self.hard = persist.hard
        if persist.membership is not None:
            self.membership = persist.membership
            self.previous_membership = persist.previous_membership

    def install(self, meta: SnapshotMeta, keep_suffix: bool) -> None:
        if keep_suffix:
            if not self.first - 1 <= meta.index <= self.last or self.true_term(meta.index) != meta.term:
                raise LostEntry(f"the suffix above {meta.index}@{meta.term} is kept, but does not match")
            del self.items[: meta.index + 1 - self.first]
        else:
            self.items.clear()
            self.last = meta.index
        self.first = meta.index + 1
        self.base_term, self.base_chain, self.base_members = meta.term, meta.chain, meta.membership
        self.member_entries = [e for e in self.member_entries if self.first <= e.index <= self.last]
        self.damaged = {index for index in self.damaged if self.first <= index <= self.last}
        self.snapshot = meta

    def truncate(self, index: int) -> None:
        if not self.first <= index <= self.last:
            raise LostEntry(f"truncate from {index}: the log is {self.first}..{self.last}")
        del self.items[index - self.first :]
        self.last = index - 1
        while self.member_entries and self.member_entries[-1].index >= index:
            self.member_entries.pop()
        if self.damaged:
            self.damaged = {i for i in self.damaged if i < index}

    def rewrite(self, entry: Entry) -> None:
        """Refill in place: the header is the claim that stays, the content comes back."""
        old = self.items[entry.index - self.first]
        if (old.term, old.chain) != (entry.term, entry.chain):
            raise LostEntry(f"refill of {entry.index}@{old.term} with {entry.index}@{entry.term} or another chain")
        self.damaged.discard(entry.index)

    def append(self, entries: tuple[Entry, ...]) -> None:
        index, chain = self.last, self.items[-1].chain if self.items else self.base_chain
        for entry in entries:
            index += 1
            if entry.index != index:
                raise LostEntry(f"append of {entry.index} after {index - 1}")
            chain = chain_of(chain, index, entry.term, entry.kind, entry.stamp, entry.seed, entry.payload)
            if entry.chain != chain:
                raise LostEntry(f"the chain of {index}@{entry.term} does not fit")
            if entry.kind == Kind.MEMBERSHIP:
                self.member_entries.append(entry)
            if not index & ENCODED and decode_record(index, encode_record(entry)) != entry:
                raise LostEntry(f"{index}@{entry.term} is another after it was written and read back")
        self.items.extend(entries)
        self.last = index

    def trim(self, first: int) -> None:
        """Drop what lies below `first`."""
        if first <= self.first:
            return
        if first - 1 > self.last:
            raise LostEntry(f"trim to {first}: the log is {self.first}..{self.last}")
        self.base_term, self.base_chain = self.true_term(first - 1), self.true_chain(first - 1)
        del self.items[: first - self.first]
        self.first = first
        while self.member_entries and self.member_entries[0].index < first:
            self.base_members = decode_members(self.member_entries.pop(0))
        if self.damaged:
            self.damaged = {i for i in self.damaged if i >= first}

    # --- looking ----------------------------------------------------------------------------------------------------

    def true_term(self, index: int) -> int:
        """What was written there, damaged since or not."""
        return self.items[index - self.first].term if index >= self.first else self.base_term

    def true_chain(self, index: int) -> int:
        return self.items[index - self.first].chain if index >= self.first else self.base_chain

    def claims(self, index: int, term: int) -> bool:
        """Was this entry written here? (Damaged since or not: a damaged node neither votes nor leads.)"""
        if index < self.first:
            return True
        return index <= self.last and self.items[index - self.first].term == term

    def holds(self, index: int, term: int) -> bool:
        """Is this entry here, whole?"""
        return self.claims(index, term) and index not in self.damaged

    def copy(self) -> SimLog:
        twin = SimLog.__new__(SimLog)
        for name in SimLog.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.items, twin.damaged, twin.member_entries = list(self.items), set(self.damaged), list(self.member_entries)
        return twin


class Snapshot(NamedTuple):
    """A snapshot file: its header and what the state in it folds to."""

    meta: SnapshotMeta
    digest: int


class Kv(NamedTuple):
    """kv as of its last transaction."""

    applied: int
    digest: int
    membership: Membership


class Disk:
    """The data directory of one life of one node."""

    __slots__ = ("formed", "kv", "log", "lost_writes", "pending", "snapshots")

    def __init__(self, membership: Membership) -> None:
        self.formed = membership
        self.log = SimLog(membership)
        self.kv: Kv | None = Kv(0, 0, membership)
        self.snapshots: dict[str, Snapshot] = {}
        self.pending: list[Persist] = []
        self.lost_writes = 0

    def write(self, persist: Persist) -> None:
        """Start a transaction; it is durable after `sync`."""
        self.pending.append(persist)

    def sync(self) -> None:
        """The flush has returned."""
        for persist in self.pending:
            self.log.commit(persist)
        self.pending.clear()

    def crash(self, rng: random.Random, power: bool) -> None:
        """The process is gone, and with `power` everything that no flush has covered."""
        pending, self.pending = self.pending, []
        for persist in self._survivors(pending, rng):
            self.log.commit(persist)
        if power:
            self.kv = None

    def _survivors(self, pending: list[Persist], rng: random.Random) -> list[Persist]:
        how = rng.randrange(3)
        if how == 0:
            kept = []
        elif how == 1:
            kept = pending[: rng.randrange(len(pending) + 1)]
        else:
            kept = [p for p in pending if rng.random() < 0.5]
        self.lost_writes += len(pending) - len(kept)
        return kept

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """A whole file, durable; two are kept."""
        self.snapshots[snapshot.meta.name] = snapshot
        while len(self.snapshots) > 2:
            oldest = min(self.snapshots.values(), key=lambda s: s.meta.index)
            del self.snapshots[oldest.meta.name]

    def boot(self) -> None:
        """The start table of the design: count the start, then find a state to go on from.

        kv is used when the log reaches back to it; else the snapshot that the log names, or the one before it; else
        nothing, and the leader must send a snapshot (for a log that begins at 1: an empty state).
        """
        log = self.log
        log.starts += 1
        if self.kv is not None and log.first - 1 <= self.kv.applied <= log.last:
            return
        for snapshot in sorted(self.snapshots.values(), key=lambda s: -s.meta.index):
            if log.first - 1 <= snapshot.meta.index <= log.last:
                self.kv = Kv(snapshot.meta.index, snapshot.digest, snapshot.meta.membership)
                return
        self.kv = Kv(0, 0, self.formed)

    def starved(self) -> bool:
        """Is there no state that reaches the log?"""
        log = self.log
        if self.kv is not None and log.first - 1 <= self.kv.applied:
            return False
        return log.first > 1 and all(snapshot.meta.index < log.first - 1 for snapshot in self.snapshots.values())

    def copy(self) -> Disk:
        twin = Disk.__new__(Disk)
        twin.log, twin.formed = self.log.copy(), self.formed
        twin.kv, twin.snapshots, twin.pending, twin.lost_writes = self.kv, dict(self.snapshots), [], 0
        return twin
