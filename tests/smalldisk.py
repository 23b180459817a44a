"""A file system that is soon full."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int) -> Iterator[Path]:
    """A tmpfs of this size at `path`; the test is skipped where that is not allowed."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a size-limited tmpfs needs root")
    path.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a size-limited tmpfs is not allowed here: {done.stderr.decode().strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def fill(place: Path) -> Path:
    """The file that takes all that is left."""
    file = place / "filler"
    with file.open("ab", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        for_ever(lambda: filler.write(bytes(4096)))
    return file


def for_ever(step: Callable[[], object]) -> NoReturn:
    while True:
        step()
