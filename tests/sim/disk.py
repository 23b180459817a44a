"""The simulated disk of one node: what is durable, what is only on its way there, and what a crash makes of it.

It has the parts of a real data directory, and the promises of their formats, no more:

    log         one transaction at a time becomes durable as a whole when its sync returns (LMDB: data, flush, meta,
                flush). Until then it is *pending*. A crash keeps none of the pending transactions, a prefix, or any
                subset: a driver that waits for each sync has at most one pending, and loses or keeps it; a driver that
                does not wait is punished the way a disk with a volatile cache punishes it. No transaction is torn: that
                LMDB's are not is what the crash images of tests/storage show.
    kv          state + applied index in one transaction, flushed now and then. It survives the death of the process,
                page by page: after a loss of power it is what was flushed, or what was written, or *torn*, some pages
                of each, and looks whole. It is believed or not by its line.
    kv.state    a line: `clean`, or `dirty` and the boot of the kernel that wrote kv. Written beside and renamed; when
                the power fails meanwhile it is the old one or the new one, or cut, though no file system that honours
                the flush should: no line but the two that are meant is believed.
    snapshots   a file has its name once it is written, flushed, and read back. While it is made it has another name
                (swept at the start); while it is pulled from a leader it is a *part*, which is gone on with after a
                crash, torn as it may be: only the digest of the whole tells.

The identity is not here: a directory has none until all of it is durable, so it is there as a whole or not at all.

A backup is a deep enough copy; restoring one is how "somebody put an old disk back" is played. An entry can be
*damaged*: its checksum does not fit any more; reading it raises EntryDamaged, rewriting it heals it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

from raftdb.consensus.membership import decode
from raftdb.errors import EntryDamaged
from raftdb.storage.records import decode as decode_record
from raftdb.storage.records import encode as encode_record
from raftdb.types import Entry, HardState, Kind, Membership, Persist, SnapshotMeta

CHAIN_MASK = 0xFFFFFFFF
ENCODED = 15  # one entry in so many plus one goes through the real record format
DIGEST_MASK = (1 << 61) - 1
CLEAN: Final = "clean"


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

    def whole(self) -> bool:
        """Is the digest over what is in the file the one that its header, or who offered it, promises?"""
        return self.digest.to_bytes(32, "big") == self.meta.digest

    def torn(self, rng: random.Random) -> Snapshot:
        """The same file, some of its sectors zeros or what was there before."""
        return self._replace(digest=self.digest ^ (rng.getrandbits(60) | 1))


class Part(NamedTuple):
    """What is there of a file that is being pulled."""

    meta: SnapshotMeta
    noise: int  # what a crash has done to the content; 0: nothing


class Kv(NamedTuple):
    """kv as of its last transaction."""

    applied: int
    digest: int
    membership: Membership


class Disk:
    """The data directory of one life of one node."""

    __slots__ = (
        "boots",
        "flushed",
        "formed",
        "kv",
        "line",
        "log",
        "making",
        "new_line",
        "part",
        "pending",
        "snapshots",
        "unnamed",
    )

    def __init__(self, membership: Membership) -> None:
        self.formed = membership
        self.log = SimLog(membership)
        self.kv: Kv | None = Kv(0, 0, membership)
        self.flushed = self.kv  # kv as of its last flush
        self.line = CLEAN  # what kv.state says
        self.new_line = ""  # it is being written
        self.boots = 1  # of the machine: the power fails between two
        self.snapshots: dict[str, Snapshot] = {}
        self.unnamed: set[str] = set()  # files of peers that no transaction of the log has named yet
        self.making: Snapshot | None = None  # under another name
        self.part: Part | None = None
        self.pending: list[Persist] = []

    def write(self, persist: Persist) -> None:
        """Start a transaction; it is durable after `sync`."""
        self.pending.append(persist)

    def sync(self) -> None:
        """The flush has returned."""
        for persist in self.pending:
            self._commit(persist)
        self.pending.clear()

    def _commit(self, persist: Persist) -> None:
        self.log.commit(persist)
        if persist.install is not None:
            self.unnamed.discard(persist.install.name)

    def crash(self, rng: random.Random, power: bool, torn: float = 0.5) -> list[str]:
        """The process is gone, and with `power` what no flush has covered; of that a share is torn, not lost.

        Returns what happened, by the names of the judge's counters.
        """
        pending, self.pending = self.pending, []
        kept = self._survivors(pending, rng)
        for persist in kept:
            self._commit(persist)
        happened = ["lost writes"] * (len(pending) - len(kept))
        if power:
            self.boots += 1
            happened += self._tear_kv(rng, torn) + self._tear_line(rng, torn) + self._tear_files(rng, torn)
        self.making = None
        return happened

    def _survivors(self, pending: list[Persist], rng: random.Random) -> list[Persist]:
        how = rng.randrange(3)
        if how == 0:
            return []
        if how == 1:
            return pending[: rng.randrange(len(pending) + 1)]
        return [p for p in pending if rng.random() < 0.5]

    def _tear_kv(self, rng: random.Random, torn: float) -> list[str]:
        if self.kv is None or self.kv == self.flushed:
            return []
        kept = rng.choice((self.flushed, self.kv))
        if rng.random() >= torn:
            self.kv = kept
            return []
        self.kv = kept._replace(digest=kept.digest ^ (rng.getrandbits(60) | 1))
        return ["torn states"]

    def _tear_line(self, rng: random.Random, torn: float) -> list[str]:
        line, self.new_line = self.new_line, ""
        if not line:
            return []
        if rng.random() >= torn:
            self.line = rng.choice((self.line, line))
            return []
        self.line = line[: rng.randrange(len(line))]
        return ["torn lines"]

    def _tear_files(self, rng: random.Random, torn: float) -> list[str]:
        happened = []
        if self.part is not None:
            if rng.random() < torn:
                self.part = self.part._replace(noise=rng.getrandbits(60) | 1)
                happened.append("torn files")
            elif rng.random() < 0.5:
                self.part = None
        if self.making is not None and rng.random() < torn:
            happened.append("torn files")
            name = self.making.meta.name
            if name in self.snapshots:  # (a driver that gave it its name before it was flushed; ours does not)
                self.snapshots[name] = self.making.torn(rng)
        return happened

    # --- kv ---------------------------------------------------------------------------------------------------------

    def flush_kv(self) -> None:
        """Everything that was written is durable."""
        if self.kv is not None:
            self.flushed = self.kv

    def switch_kv(self, kv: Kv) -> None:
        """Another environment takes the place of kv. It was built beside it, and flushed."""
        self.kv = self.flushed = kv
        self.line = CLEAN

    def mark_dirty(self) -> None:
        """Durable before anything is written to kv."""
        self.line = f"dirty {self.boots}"

    def trusted(self) -> bool:
        """May kv be believed? Nothing in it could tell."""
        return self.line in (CLEAN, f"dirty {self.boots}")

    def stop(self) -> Iterator[None]:
        """An orderly end, in the steps between which the power may fail."""
        self.sync()
        self.flush_kv()
        yield
        self.new_line = CLEAN
        yield
        self.line, self.new_line = CLEAN, ""

    # --- files ------------------------------------------------------------------------------------------------------

    def begin_part(self, meta: SnapshotMeta) -> None:
        """This file will be pulled; what an earlier attempt has left of it, in this life or before, is gone on with."""
        if self.part is None or self.part.meta.digest != meta.digest:
            self.part = Part(meta, 0)

    def receive(self, snapshot: Snapshot) -> bool:
        """The rest of the part is there. It is flushed and read back, and counts when it is what was offered."""
        part, self.part = self.part, None
        if part is not None and part.noise and part.meta.digest == snapshot.meta.digest:
            snapshot = snapshot._replace(digest=snapshot.digest ^ part.noise)
        if not snapshot.whole():
            return False
        if snapshot.meta.name not in self.snapshots:
            self.unnamed.add(snapshot.meta.name)
        self.put_snapshot(snapshot)
        return True

    def put_snapshot(self, snapshot: Snapshot) -> None:
        """A whole file, durable; two are kept."""
        self.snapshots[snapshot.meta.name] = snapshot
        while len(self.snapshots) > 2:
            oldest = min(self.snapshots.values(), key=lambda s: s.meta.index)
            del self.snapshots[oldest.meta.name]
            self.unnamed.discard(oldest.meta.name)

    def boot(self) -> None:
        """The start table of the design: count the start, then find a state to go on from.

        kv is used when it may be believed and the log reaches back to it; else the snapshot that the log names, or the
        one before it; else nothing, and the leader must send a snapshot (for a log that begins at 1: an empty state).
        """
        log = self.log
        log.starts += 1
        if self.kv is None or not self.trusted() or not log.first - 1 <= self.kv.applied <= log.last:
            self.switch_kv(self._rebuilt())
        self.mark_dirty()

    def _rebuilt(self) -> Kv:
        log = self.log
        for snapshot in sorted(self._named(), key=lambda s: -s.meta.index):
            if log.first - 1 <= snapshot.meta.index <= log.last and snapshot.whole():
                return Kv(snapshot.meta.index, snapshot.digest, snapshot.meta.membership)
        return Kv(0, 0, self.formed)

    def starved(self) -> bool:
        """Is there no state that reaches the log?"""
        log = self.log
        if self.kv is not None and self.trusted() and log.first - 1 <= self.kv.applied:
            return False
        return log.first > 1 and all(snapshot.meta.index < log.first - 1 for snapshot in self._named())

    def _named(self) -> list[Snapshot]:
        """A file that was received, and whose install the log does not know of, may not fit to the log at all."""
        return [snapshot for name, snapshot in self.snapshots.items() if name not in self.unnamed]

    def copy(self) -> Disk:
        twin = Disk.__new__(Disk)
        for name in Disk.__slots__:
            setattr(twin, name, getattr(self, name))
        twin.log, twin.snapshots, twin.pending = self.log.copy(), dict(self.snapshots), []
        twin.unnamed = set(self.unnamed)
        return twin

    def backup(self) -> Disk:
        """A copy of the directory. A line that says `dirty` names the data file it is about, which a copy is not."""
        twin = self.copy()
        if twin.line != CLEAN:
            twin.line = "dirty elsewhere"
        return twin
