"""What storage asks of the file system: its kind and its room, files replaced whole, names made durable."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from raftdb.errors import UsageError

MAP_BYTES_MIN: Final = 64 << 30
NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "coda", "ncpfs", "glusterfs", "fuse.glusterfs"),
        *("fuse.sshfs", "fuse.s3fs", "lustre", "gfs2", "ocfs2", "beegfs", "gpfs", "vboxsf"),
    }
)


def free_bytes(path: Path) -> int:
    """Room for this user on the file system of `path`. Raises OSError."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def map_bytes(path: Path) -> int:
    """Default map size: the file system's size, at least 64 GiB, in whole pages."""
    status = os.statvfs(path)
    size = max(MAP_BYTES_MIN, status.f_blocks * status.f_frsize)
    return size // 65536 * 65536


def file_system_type(path: Path) -> str:
    """Type of the file system that holds `path`, from /proc/self/mountinfo; empty when that cannot be told."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path) + "/"
    best, found = "", ""
    for line in lines:
        before, _, behind = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ").rstrip("/") + "/"
        if real.startswith(point) and len(point) >= len(best):
            best, found = point, behind.split()[0]
    return found


def refuse_network_file_system(path: Path) -> None:
    """Raises UsageError."""
    kind = file_system_type(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise UsageError(
            f"{path} is on a network file system ({kind}), which LMDB cannot use: choose a local disk (-d)"
        )


def sync_directory(path: Path) -> None:
    """fsync of a directory: makes names in it durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes) -> None:
    """Replace a small file durably: temporary name, fsync, rename, fsync of the directory. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)
    sync_directory(path.parent)


def drop_page_cache(path: Path) -> None:
    """Forget what the page cache holds of a file, so that the next read comes from the disk. Best effort."""
    if not hasattr(os, "posix_fadvise"):
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
