"""Files of this node that clients may fetch: snapshots and checkpoints, piece by piece, under their plain names.

Checkpoints called backup-<16 hexadecimal digits>.dat are lent: `raftdb backup` has one made, reads it and drops it.
Should it not come to that (the program was killed, the network failed), it is removed when another one is to be made
and this one has not been read for LENT_S.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final

from raftdb.errors import UsageError
from raftdb.storage import snapshot

LENT_S: Final = 600.0
LENT: Final = re.compile(r"backup-[0-9a-f]{16}\.dat")


def read(data_dir: Path, name: str, offset: int, length: int) -> tuple[int, bytes]:
    """(size of the file, at most `length` bytes from `offset` on). Raises UsageError (no such file), OSError."""
    snapshot.plain_name(name)
    for directory in (_checkpoints(data_dir), data_dir / "snapshots"):
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if LENT.fullmatch(name):
                    os.utime(descriptor)
                return os.fstat(descriptor).st_size, os.pread(descriptor, length, offset)
            finally:
                os.close(descriptor)
    raise UsageError(f"there is no snapshot or checkpoint called {name}")


def drop(data_dir: Path, name: str) -> bool:
    """Delete a checkpoint; was there one? Raises UsageError (not a plain name), OSError."""
    try:
        (_checkpoints(data_dir) / snapshot.plain_name(name)).unlink()
    except FileNotFoundError:
        return False
    return True


def sweep(data_dir: Path, name: str) -> None:
    """A checkpoint `name` is about to be made; if it is to be lent, remove those that nobody has read for a while."""
    if not LENT.fullmatch(name):
        return
    with contextlib.suppress(OSError):  # best effort: it is about disk space only
        for path in _checkpoints(data_dir).iterdir():
            if LENT.fullmatch(path.name) and time.time() - path.stat().st_mtime >= LENT_S:
                path.unlink()


def _checkpoints(data_dir: Path) -> Path:
    return data_dir / "checkpoints"
