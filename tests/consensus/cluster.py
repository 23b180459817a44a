"""A whole cluster in one process, for transcripts and tests: real cores, and disks that are lists.

Nothing moves by itself. A test says which node ticks, which messages arrive, whose disk syncs; so every order of events
can be told. `Disk` keeps what was synced apart from what was not, so that `crash` takes the difference away.
"""

from __future__ import annotations

import zlib
from typing import Any

from raftdb.consensus import membership as members
from raftdb.consensus.core import Core, CoreConfig
from raftdb.consensus.messages import Envelope
from raftdb.consensus.ready import Ready, Released
from raftdb.errors import Bug, EntryDamaged
from raftdb.types import Entry, HardState, Kind, Member, Membership, NodeRef, Persist, Proposal, SnapshotMeta


def chain_of(previous: int, index: int, term: int, kind: int, stamp: int, seed: int, payload: bytes) -> int:
    """A checksum chain like storage's, of another shape: the core must not care."""
    return zlib.crc32(b"%d %d %d %d %d %d " % (previous, index, term, kind, stamp, seed) + payload)


def member(node_id: str, voter: bool = True, incarnation: int = 1) -> Member:
    return Member(node_id, incarnation, f"{node_id}:6379", f"{node_id}:6380", voter)


def ref(node_id: str, incarnation: int = 1) -> NodeRef:
    return NodeRef(node_id, incarnation)


def membership_of(*ids: str, learners: tuple[str, ...] = (), index: int = 0) -> Membership:
    rows = [member(i) for i in ids] + [member(i, voter=False) for i in learners]
    return Membership(index, tuple(sorted(rows)))


class Disk:
    """The durable state of one node; implements LogView."""

    def __init__(self, membership: Membership) -> None:
        self.base_index = 0
        self.base_term = 0
        self.base_chain = 0
        self.base_stamp = 0
        self.log: list[Entry] = []
        self.hard = HardState(0, None)
        self.membership = membership
        self.previous: Membership | None = None
        self.snapshot: SnapshotMeta | None = None
        self.starts = 0
        self.applied = 0
        self.damaged: set[int] = set()
        self.header_damaged: set[int] = set()

    @property
    def first(self) -> int:
        return self.base_index + 1

    @property
    def last(self) -> int:
        return self.base_index + len(self.log)

    def _entry(self, index: int) -> Entry:
        if not self.first <= index <= self.last:
            raise Bug(f"disk: entry {index} outside {self.first}..{self.last}")
        return self.log[index - self.first]

    def _check_header(self, index: int) -> None:
        if index in self.header_damaged:
            raise EntryDamaged(index, "header checksum")

    def term(self, index: int) -> int:
        self._check_header(index)
        return self.base_term if index == self.base_index else self._entry(index).term

    def chain(self, index: int) -> int:
        self._check_header(index)
        return self.base_chain if index == self.base_index else self._entry(index).chain

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        result: list[Entry] = []
        for index in range(low, high + 1):
            if index in self.damaged or index in self.header_damaged:
                if result:
                    break
                raise EntryDamaged(index, "payload checksum")
            entry = self._entry(index)
            bytes_max -= len(entry.payload) + 48
            if result and bytes_max < 0:
                break
            result.append(entry)
        return result

    def commit(self, persist: Persist) -> None:
        """One synced transaction, in the order that types.Persist states; checks what storage checks."""
        if persist.install is not None:
            self._install(persist.install, persist.keep_suffix)
        if persist.truncate_from is not None:
            assert self.first <= persist.truncate_from <= self.last, "truncation outside the log"
            del self.log[persist.truncate_from - self.first :]
            self.damaged = {i for i in self.damaged if i < persist.truncate_from}
            self.header_damaged = {i for i in self.header_damaged if i < persist.truncate_from}
        for entry in persist.rewrite:
            old = self._entry(entry.index)
            assert old == entry, "a rewrite must put the identical entry back"
            self.damaged.discard(entry.index)
            self.header_damaged.discard(entry.index)
        for entry in persist.entries:
            assert entry.index == self.last + 1, f"append of {entry.index} after {self.last}"
            previous = self.log[-1].chain if self.log else self.base_chain
            assert chain_of(previous, *entry[:-1]) == entry.chain, "chain"
            self.log.append(entry)
        if persist.hard is not None:
            assert persist.hard.term >= self.hard.term, "the term fell"
            self.hard = persist.hard
        if persist.membership is not None:
            self.membership = persist.membership
            if persist.previous_membership is not None:
                self.previous = persist.previous_membership

    def _install(self, meta: SnapshotMeta, keep_suffix: bool) -> None:
        keep = [e for e in self.log if e.index > meta.index] if keep_suffix else []
        self.log = keep
        self.base_index, self.base_term, self.base_chain = meta.index, meta.term, meta.chain
        self.base_stamp = meta.stamp
        self.damaged = {i for i in self.damaged if i > meta.index and keep_suffix}
        self.header_damaged = {i for i in self.header_damaged if i > meta.index and keep_suffix}
        self.snapshot = meta
        self.applied = max(self.applied, meta.index)

    def trim(self, first: int) -> None:
        """Drop the entries below `first`."""
        base = self._entry(first - 1)
        del self.log[: first - self.first]
        self.base_index, self.base_term, self.base_chain, self.base_stamp = (
            base.index,
            base.term,
            base.chain,
            base.stamp,
        )

    @property
    def stamp(self) -> int:
        return self.log[-1].stamp if self.log else self.base_stamp


class Node:
    """One node: a core and its disk. `turn` runs both stages; `ready` and `sync` run them apart."""

    def __init__(self, node_id: str, disk: Disk, config: CoreConfig, incarnation: int = 1, seed: int = 0) -> None:
        self.ref = NodeRef(node_id, incarnation)
        self.disk = disk
        self.config = config
        self.seed = seed
        self.core: Core | None = None
        self.pending: Ready | None = None
        self.applied: list[Entry] = []
        self.start()

    def start(self) -> None:
        disk = self.disk
        disk.starts += 1
        self.pending = None
        self.core = Core(
            self.ref, self.config, disk, disk.hard, disk.membership, disk.previous, disk.applied, disk.applied,
            chain_of, self.seed * 1000 + disk.starts, disk.starts, disk.stamp, disk.snapshot,
        )  # fmt: skip
        for index in sorted(disk.damaged | disk.header_damaged):
            self.core.quarantine(index)

    def crash(self) -> None:
        self.core = None
        self.pending = None

    def turn(self, effects: Any = None) -> list[Envelope]:
        """Ready, sync, Released, apply, until there is nothing left; return what leaves, in order."""
        sent: list[Envelope] = []
        while self.core is not None:
            ready = self.core.ready()
            if ready is None:
                return sent
            sent += ready.send
            if effects is not None:
                effects.on_ready(self, ready)
            if ready.sends_only:
                continue
            sent += self.sync(ready, effects)
        return sent

    def sync(self, ready: Ready, effects: Any = None) -> list[Envelope]:
        assert self.core is not None
        if ready.persist is not None:
            self.disk.commit(ready.persist)
        released = self.core.persisted(ready)
        if effects is not None:
            effects.on_released(self, released)
        self.apply(released, effects)
        return list(released.send)

    def apply(self, released: Released, effects: Any = None) -> None:
        assert self.core is not None
        disk = self.disk
        while disk.applied < released.commit:
            entry = disk.entries(disk.applied + 1, disk.applied + 1, 1)[0]
            disk.applied += 1
            self.applied.append(entry)
            if effects is not None:
                effects.on_apply(self, entry)
        if disk.applied > self.core.applied:
            self.core.applied_to(disk.applied)


def commands(*payloads: str, stamp: int = 0) -> list[Proposal]:
    return [Proposal(Kind.COMMANDS, stamp, 0, payload.encode()) for payload in payloads]


def decode_members(payload: bytes, index: int) -> Membership:
    return members.decode(payload, index)
