"""The data directory: signatures first, bodies follow."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import NamedTuple

from raftdb.storage.kv import KvStore
from raftdb.storage.log import Log
from raftdb.types import Membership, SnapshotMeta


class Identity(NamedTuple):
    node_id: str
    cluster_id: str  # 32 hexadecimal digits
    incarnation: int
    format_version: int
    source_digest: str  # of the file given to -l, hexadecimal; empty otherwise


class StartWith(Enum):
    KV = "kv"  # kv is trusted and fits the log
    EMPTY = "empty"  # rebuild from the first entry of the log
    SNAPSHOT = "snapshot"  # rebuild from `snapshot`
    NEEDS_SNAPSHOT = "needs snapshot"  # a member asks the leader for one, a sole voter stops


class StartPlan(NamedTuple):
    start_with: StartWith
    snapshot: SnapshotMeta | None
    reason: str


class DataDir:
    """One locked data directory."""

    path: Path
    identity: Identity
    log: Log
    kv: KvStore
    was_clean: bool  # the last run ended by close(clean=True)

    @classmethod
    def exists(cls, path: Path) -> bool:
        """True when there is data. Raises UsageError for half a directory, a newer format, not a directory, ..."""
        raise NotImplementedError

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        node_id: str,
        cluster_id: str,
        incarnation: int,
        membership: Membership,
        snapshot: Path | None = None,
    ) -> None:
        """Build under a temporary name, rename into place. `snapshot`: the file of -l becomes the base."""
        raise NotImplementedError

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        map_size_bytes: int | None = None,
        readers_max: int = 512,
        kv_sync_always: bool = False,
        accept_loss: bool = False,
    ) -> DataDir:
        """Lock, check, run the start table, open log and kv (rebuilt from a snapshot when needed; the caller replays
        the log from kv.applied + 1). log.start() is the caller's next step."""
        raise NotImplementedError

    plan: StartPlan
    damaged: list[int]  # indexes for core.quarantine()

    def install(self, meta: SnapshotMeta) -> KvStore:
        """After Persist.install is committed: build kv.<index> from the received file, switch the pointer; returns the
        new kv (self.kv); views of the old one stay valid until they end."""
        raise NotImplementedError

    def sweep(self) -> list[str]:
        """Remove files in snapshots/ that log/meta does not name, and old kv directories."""
        raise NotImplementedError

    def free_bytes(self) -> int:
        """Room that is left on the fuller of the file systems."""
        raise NotImplementedError

    def release_reserve(self) -> None:
        raise NotImplementedError

    def restore_reserve(self) -> bool:
        raise NotImplementedError

    def close(self, clean: bool) -> None:
        raise NotImplementedError
