"""Snapshot files: signatures first, bodies follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from raftdb.types import Membership, SnapshotMeta

CHUNK_BYTES_MAX = 1 << 20


class Header(NamedTuple):
    codec: str  # "msgpack" or "pickle"
    cluster_id: str
    node_id: str
    created_ms: int
    index: int
    term: int
    chain: int
    stamp: int
    kv_digest: bytes
    membership: Membership
    keys: int


class Written(NamedTuple):
    meta: SnapshotMeta
    rows: int


def plain_name(name: str) -> str:
    """`name` if it is a plain file name that may stand in snapshots/; else raises UsageError."""
    raise NotImplementedError


def file_name(node_id: str, unix_time_s: int, index: int) -> str:
    """raft_<node>_<unix time>_<index>.dat"""
    raise NotImplementedError


def child_command(kv_path: Path, target: Path, *, node_id: str, cluster_id: str, codec: str = "msgpack") -> list[str]:
    """argv of the child process that writes a durable snapshot. Its stdout is one JSON line, see child_result()."""
    raise NotImplementedError


def child_result(stdout: bytes) -> SnapshotMeta:
    """What the child wrote; raises StorageError / DiskFull with its reason."""
    raise NotImplementedError


def check_file(path: Path) -> SnapshotMeta:
    """Read the whole file: every CRC, the digest, every row. Raises Damaged (with the place) or UsageError."""
    raise NotImplementedError


def read_header(path: Path) -> Header:
    raise NotImplementedError


class Reader:
    """Streams a snapshot: `with Reader(path) as reader: for row in reader.rows(): ...`"""

    header: Header

    def __init__(self, path: Path) -> None:
        raise NotImplementedError

    def rows(self) -> Any:
        """Head rows (db, name, Head) and element rows, see docs/formats.md."""
        raise NotImplementedError


def load(path: Path, kv_path: Path, *, map_size_bytes: int | None = None) -> SnapshotMeta:
    """Build a new, synced kv environment at kv_path (must not exist) from a snapshot."""
    raise NotImplementedError


class Receiver:
    """A snapshot that comes from the leader: resumable by (name, digest, offset)."""

    offset: int

    def __init__(self, directory: Path, meta: SnapshotMeta) -> None:
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> int:
        """Append; returns the new offset. A wrong offset changes nothing and returns the right one."""
        raise NotImplementedError

    def finish(self) -> SnapshotMeta:
        """Check, fsync, rename, fsync the directory. Raises Damaged."""
        raise NotImplementedError
