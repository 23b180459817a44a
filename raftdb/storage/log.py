"""The replicated log: signatures first, bodies follow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from raftdb.types import Entry, HardState, Membership, Persist, SnapshotMeta


class Log:
    """A consensus LogView; writes only from the thread that opened it."""

    first: int
    last: int
    hard: HardState
    membership: Membership
    previous_membership: Membership | None
    snapshot: SnapshotMeta | None  # the newest durable one
    previous_snapshot: SnapshotMeta | None  # the one before (two are kept)
    starts: int
    incarnation: int

    @classmethod
    def create(cls, path: Path, *, incarnation: int, membership: Membership, base: SnapshotMeta | None = None) -> None:
        """Make a new, empty log (synced)."""
        raise NotImplementedError

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        map_size_bytes: int | None = None,
        cache_bytes_max: int = 16 << 20,
        unclean: bool = True,
        read_only: bool = False,
    ) -> Log:
        """unclean: drop the page cache of the file first. Raises Damaged for hard state, meta, last entry."""
        raise NotImplementedError

    def start(self) -> int:
        """starts += 1, synced: before the node speaks. Returns the new number."""
        raise NotImplementedError

    def check(self, above: int) -> list[int]:
        """Indexes > above whose record or chain is damaged: give each to core.quarantine()."""
        raise NotImplementedError

    def term(self, index: int) -> int:
        raise NotImplementedError

    def chain(self, index: int) -> int:
        raise NotImplementedError

    def stamp(self, index: int) -> int:
        """Stamp of entry `index`; of the base for first - 1."""
        raise NotImplementedError

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        raise NotImplementedError

    def commit(self, persist: Persist) -> None:
        """One synced transaction. Raises DiskFull (nothing changed), StorageError (end the process), Bug (chain)."""
        raise NotImplementedError

    def add_snapshot(self, meta: SnapshotMeta) -> None:
        """A durable own snapshot: becomes `snapshot`, the former one `previous_snapshot`; synced."""
        raise NotImplementedError

    def trim(self, first: int, records_max: int) -> int:
        """Drop entries below `first`, at most that many, synced. Returns how many went; call again until 0."""
        raise NotImplementedError

    def bytes_after(self, index: int) -> int:
        """Bytes of the records above index (approximate below the cache)."""
        raise NotImplementedError

    def walk(self) -> Iterator[Entry]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
