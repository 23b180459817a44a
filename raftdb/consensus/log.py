"""The log as the core sees it: the durable part behind a `LogView`, and on top of it what is not yet on disk.

              first                 offset                    last
    base |  entries of the view     |  unstable entries       |
    ------------------------------- | ----------------------- |
              durable               |  to be appended by the next Persist

- `durable` = offset - 1: everything up to there is on disk and is still what the core means. Acknowledgements,
  the leader's own count and `apply` never go beyond it (I10).
- A truncation at or below what the disk holds is remembered in `truncate_from` for the next Persist.
- A Persist may be open (taken, not yet settled) while the log moves on. Entries that were truncated meanwhile are not
  counted as durable when it settles (I6).
- `holes` are damaged entries. Their place is kept; nothing is truncated for them. `healing` holds the identical
  entries that a leader has sent again, until the Persist that rewrites them has settled.

Reads are O(1) except `first_index_of_term`, which bisects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from raftdb.errors import Bug, EntryDamaged
from raftdb.types import ChainOf, Entry, SnapshotMeta

ENTRY_OVERHEAD_BYTES: Final = 48
"""What an entry costs beside its payload, in every sum of bytes of the core."""
ENTRIES_MAX: Final = 1024
"""One Append holds at most this many entries."""


class LogView(Protocol):
    """What the core reads of the durable log. storage.log.Log and the simulator's disk implement it."""

    @property
    def first(self) -> int:
        """First entry kept; first - 1 is the base (0, a snapshot, or where trimming stopped)."""

    @property
    def last(self) -> int:
        """Last entry kept; first - 1 when there is none."""

    def term(self, index: int) -> int:
        """Of an entry or the base: first - 1 <= index <= last. May raise EntryDamaged."""

    def chain(self, index: int) -> int:
        """As `term`."""

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """low .. high inclusive, cut when the sum exceeds bytes_max but at least one. Raises EntryDamaged."""


class LogChanges(NamedTuple):
    """What the next Persist does to the log."""

    install: SnapshotMeta | None
    keep_suffix: bool
    truncate_from: int | None
    rewrite: tuple[Entry, ...]
    entries: tuple[Entry, ...]


class RaftLog:
    """See the module's text. Indexes are inclusive."""

    __slots__ = (
        "base_chain",
        "base_index",
        "base_term",
        "chain_of",
        "disk_last",
        "healing",
        "holes",
        "install",
        "keep_suffix",
        "last",
        "last_chain",
        "last_stamp",
        "last_term",
        "offset",
        "open_heals",
        "open_last",
        "truncate_from",
        "unstable",
        "view",
    )

    def __init__(self, view: LogView, chain_of: ChainOf, stamp: int) -> None:
        self.view = view
        self.chain_of = chain_of
        self.unstable: list[Entry] = []
        self.holes: set[int] = set()
        self.healing: dict[int, Entry] = {}
        self.open_heals: tuple[int, ...] = ()
        self.truncate_from: int | None = None
        self.install: SnapshotMeta | None = None
        self.keep_suffix = False
        self.open_last = 0  # last entry that the open Persist makes durable
        self.base_index = -1  # base of an install that the view may not know yet
        self.base_term = 0
        self.base_chain = 0
        self.last = view.last
        self.disk_last = self.last  # last entry that the disk holds once the open Persist is done
        self.offset = self.last + 1
        self.last_stamp = stamp
        self.last_term = self._guarded(view.term, self.last)
        self.last_chain = self._guarded(view.chain, self.last)

    def _guarded(self, read: Callable[[int], int], index: int) -> int:
        """`term` or `chain` of an entry whose record may be damaged: then it is a hole and the answer is 0."""
        try:
            return read(index)
        except EntryDamaged as damage:
            self.holes.add(damage.index)
            return 0

    # --- reading ----------------------------------------------------------------------------------------------------

    @property
    def first(self) -> int:
        first = self.view.first
        return first if first > self.base_index else self.base_index + 1

    @property
    def durable(self) -> int:
        return self.offset - 1

    @property
    def first_hole(self) -> int:
        """The lowest damaged entry (INDEX_MAX-like when there is none): nothing from here on may be applied."""
        return min(self.holes) if self.holes else 1 << 62

    @property
    def first_open_hole(self) -> int:
        """The lowest damaged entry that nobody has sent again: nothing from here on may be acknowledged."""
        return min((index for index in self.holes if index not in self.healing), default=1 << 62)

    def term(self, index: int) -> int:
        """Term of an entry or of the base. Raises EntryDamaged, or Bug for an index outside."""
        if index == self.last:
            return self.last_term
        if index >= self.offset:
            if index - self.offset >= len(self.unstable):
                raise Bug(f"term of entry {index} after the last one, {self.last}")
            return self.unstable[index - self.offset].term
        if index == self.base_index:
            return self.base_term
        if index < self.first - 1:
            raise Bug(f"term of entry {index} before the base {self.first - 1}")
        if self.healing and index in self.healing:
            return self.healing[index].term
        return self.view.term(index)

    def chain(self, index: int) -> int:
        """Chain of an entry or of the base. Raises as `term`."""
        if index == self.last:
            return self.last_chain
        if index >= self.offset:
            return self.unstable[index - self.offset].chain
        if index == self.base_index:
            return self.base_chain
        if self.healing and index in self.healing:
            return self.healing[index].chain
        return self.view.chain(index)

    def has(self, index: int, term: int) -> bool:
        """Whether the log holds the entry (or the base) `index` with that term: then all before it match too."""
        return self.first - 1 <= index <= self.last and self.term(index) == term

    def entry(self, index: int) -> Entry:
        """Raises EntryDamaged."""
        if index >= self.offset:
            return self.unstable[index - self.offset]
        return self.view.entries(index, index, 1)[0]

    def from_disk(self, low: int, bytes_max: int) -> tuple[tuple[Entry, ...], int]:
        """Durable entries from `low` on, at most `bytes_max` but at least one, and their bytes. Raises EntryDamaged."""
        high = min(self.offset - 1, low + ENTRIES_MAX - 1)
        entries = tuple(self.view.entries(low, high, bytes_max))
        if entries[0].index != low:
            raise Bug(f"the log returned entry {entries[0].index} for {low}")
        return entries, sum([len(entry.payload) for entry in entries]) + ENTRY_OVERHEAD_BYTES * len(entries)

    def from_memory(self, low: int, bytes_max: int) -> tuple[tuple[Entry, ...], int]:
        """The same from the entries that are not on disk yet."""
        start = end = low - self.offset
        size_bytes = 0
        for entry in self.unstable[start : start + ENTRIES_MAX]:
            size_bytes += len(entry.payload) + ENTRY_OVERHEAD_BYTES
            if size_bytes > bytes_max and end > start:
                size_bytes -= len(entry.payload) + ENTRY_OVERHEAD_BYTES
                break
            end += 1
        return tuple(self.unstable[start:end]), size_bytes

    def first_index_of_term(self, index: int, floor: int) -> int:
        """The first entry >= floor that has the same term as entry `index` (terms never fall along a log)."""
        term = self.term(index)
        low, high = max(floor, self.first), index
        while low < high:
            middle = (low + high) // 2
            if self.term(middle) < term:
                low = middle + 1
            else:
                high = middle
        return low

    def last_index_of_term_at_most(self, term: int, high: int) -> int:
        """The last entry <= high (or the base) whose term is <= `term`."""
        low = self.first - 1
        high = min(high, self.last)
        while low < high:
            middle = (low + high + 1) // 2
            if self.term(middle) <= term:
                low = middle
            else:
                high = middle - 1
        return low

    # --- writing ----------------------------------------------------------------------------------------------------

    def append(self, entry: Entry) -> None:
        if entry.index != self.last + 1:
            raise Bug(f"entry {entry.index} appended after {self.last}")
        if entry.term < self.last_term:
            raise Bug(f"entry {entry.index} of term {entry.term} after one of term {self.last_term}")
        self.unstable.append(entry)
        self.last = entry.index
        self.last_term = entry.term
        self.last_chain = entry.chain
        self.last_stamp = entry.stamp

    def truncate(self, index: int, commit: int) -> None:
        """Drop entries from `index` on: they conflict with the leader's. Never a committed one (I6)."""
        if index <= commit:
            raise Bug(f"truncation at {index} although {commit} is committed")
        if not self.first <= index <= self.last:
            raise Bug(f"truncation at {index} outside {self.first}..{self.last}")
        if index <= self.disk_last:
            self.truncate_from = index if self.truncate_from is None else min(index, self.truncate_from)
        if index < self.offset:
            self.unstable.clear()
            self.offset = index
        else:
            del self.unstable[index - self.offset :]
        self.open_last = min(self.open_last, index - 1)
        self.holes = {hole for hole in self.holes if hole < index}
        self.healing = {hole: entry for hole, entry in self.healing.items() if hole < index}
        self._set_last(index - 1)

    def _set_last(self, index: int) -> None:
        self.last = -1  # so that term() and chain() do not answer from the cache
        term, chain = self._guarded(self.term, index), self._guarded(self.chain, index)
        self.last, self.last_term, self.last_chain = index, term, chain

    def forget_holes_below(self, first: int) -> None:
        """The log begins at `first` now: damage below it is gone."""
        if self.holes:
            self.holes = {index for index in self.holes if index >= first}
            self.healing = {index: entry for index, entry in self.healing.items() if index >= first}

    def heal(self, entry: Entry) -> None:
        """The identical entry for a hole, checked by the caller; durable with the next Persist."""
        if entry.index not in self.holes:
            raise Bug(f"entry {entry.index} is not damaged")
        self.healing[entry.index] = entry
        if entry.index == self.last:
            self.last_term, self.last_chain, self.last_stamp = entry.term, entry.chain, entry.stamp

    def suffix_fits(self, meta: SnapshotMeta) -> bool | None:
        """Whether the entries after meta.index follow on the snapshot (I14); None: there are some, it cannot be told.

        A damaged entry at the place itself is asked through the chain of the next one.
        """
        index = meta.index
        if index >= self.last:
            return False
        if index < self.first - 1:
            return None
        if index not in self.holes:
            return self.term(index) == meta.term
        if index + 1 in self.holes:
            return None
        following = self.entry(index + 1)
        return self.link(meta.chain, following) == following.chain

    def link(self, previous_chain: int, entry: Entry) -> int:
        """The chain that `entry` has when it follows on `previous_chain`."""
        return self.chain_of(
            previous_chain, entry.index, entry.term, entry.kind, entry.stamp, entry.seed, entry.payload
        )

    def start_install(self, meta: SnapshotMeta, keep: bool) -> None:
        """A received snapshot becomes the base. `keep`: the suffix fits and stays; else every entry goes (I14)."""
        index = meta.index
        if keep:
            self._cut_before(index + 1)
        else:
            self.unstable.clear()
            self.offset = index + 1
            self.open_last = 0
            self.truncate_from = None
            self.last, self.last_term, self.last_chain = index, meta.term, meta.chain
            self.last_stamp = meta.stamp
        # What the disk holds above the base is kept only when it is the suffix that the core means.
        self.keep_suffix = keep and self.disk_last > index and (self.truncate_from or 1 << 62) > index
        if not self.keep_suffix:
            self.disk_last = index
            self.truncate_from = None
        self.holes = {hole for hole in self.holes if keep and hole > index}
        self.healing = {hole: entry for hole, entry in self.healing.items() if hole in self.holes}
        self.base_index, self.base_term, self.base_chain = index, meta.term, meta.chain
        self.install = meta

    def term_or_hole(self, index: int) -> int:
        """The term, or -1 when the entry is damaged."""
        try:
            return -1 if index in self.holes and index not in self.healing else self.term(index)
        except EntryDamaged:
            return -1

    def _cut_before(self, index: int) -> None:
        """Entries below `index` leave memory; they are below the new base."""
        if index > self.offset:
            del self.unstable[: index - self.offset]
            self.offset = index

    # --- the disk ---------------------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        return bool(
            self.disk_last < self.last or self.truncate_from is not None or self.healing or self.install is not None
        )

    def take(self) -> LogChanges:
        """What the next Persist must do; it is open from now until `settled`."""
        changes = LogChanges(
            self.install, self.keep_suffix, self.truncate_from, tuple(self.healing.values()), tuple(self.unstable)
        )
        self.open_last = self.disk_last = self.last
        self.open_heals = tuple(self.healing)
        self.truncate_from = None
        self.install = None
        return changes

    def settled(self) -> None:
        """The open Persist is durable."""
        count = self.open_last - self.offset + 1
        if count > 0:
            if count == len(self.unstable):
                self.unstable = []
            else:
                del self.unstable[:count]
            self.offset += count
        for index in self.open_heals:
            if self.healing.pop(index, None) is not None:
                self.holes.discard(index)
        self.open_heals = ()
