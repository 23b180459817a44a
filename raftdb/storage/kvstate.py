"""kv.state: may the kv environment be believed?

kv is written without flushing, so it survives the death of the process but not the death of the kernel: after a power
failure it may hold any subset of its pages and look whole. Nothing inside kv could tell. So a line stands beside it:

    clean                                   env.sync() returned after the last write, and nothing was written since
    dirty <boot id> <device> <inode>        being written to, by this boot of the kernel, in this very data.mdb
    (anything else, or no file)             not to be believed

The dirty line is durable (file and directory) before the first write transaction of a run, the clean one is written
after everything is flushed. kv is trusted when the line says clean, or dirty with the same boot, device and inode.
A run that meets a damaged record writes `damaged`, so that the next start rebuilds kv instead of meeting it again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from raftdb.storage.engine import guarded
from raftdb.storage.files import write_file

CLEAN: Final = "clean"
DAMAGED: Final = "damaged"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Identity of this boot of the kernel; empty where it cannot be told."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def dirty_line(kv_path: Path) -> str:
    """Raises OSError when kv_path holds no data file."""
    status = (kv_path / "data.mdb").stat()
    return f"dirty {boot_id() or 'unknown'} {status.st_dev} {status.st_ino}"


def read(state_path: Path) -> str:
    """The line, or an empty text."""
    try:
        return state_path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def write(state_path: Path, line: str) -> None:
    """Durably. Raises DiskFull, StorageError."""
    with guarded(state_path):
        write_file(state_path, line.encode("ascii") + b"\n")


def is_trusted(state_path: Path, kv_path: Path) -> bool:
    line = read(state_path)
    if not (kv_path / "data.mdb").exists():
        return False
    if line == CLEAN:
        return True
    return bool(boot_id()) and line == dirty_line(kv_path)
