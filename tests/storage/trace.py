"""Recording what a process writes, by strace, and reading the record back.

Only what matters for durability is kept: writes with their data and offset, flushes, sizes, and to which file. A write
through a descriptor that was opened with O_SYNC or O_DSYNC is marked as synced.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

CALLS = "openat,open,creat,close,dup,dup2,dup3,lseek,write,writev,pwrite64,pwritev,pwritev2,fsync,fdatasync,ftruncate"
BYTES_MAX = 1 << 22

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_HEX = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


class Write(NamedTuple):
    path: str
    offset: int  # -1: appended
    data: bytes
    synced: bool


class Flush(NamedTuple):
    path: str


class Resize(NamedTuple):
    path: str
    size: int


class _File:
    def __init__(self, path: str, synced: bool, append: bool) -> None:
        self.path = path
        self.synced = synced
        self.append = append
        self.place = 0


Event = Write | Flush | Resize


def record(arguments: list[str], trace: Path) -> None:
    """Run a Python module under strace. Raises CalledProcessError."""
    command = ["strace", "-f", "-xx", "-s", str(BYTES_MAX), "-e", f"trace={CALLS}", "-o", os.fspath(trace)]
    subprocess.run([*command, sys.executable, *arguments], check=True, capture_output=True)


def events(trace: Path) -> list[Event]:
    """The events of a record of one thread."""
    open_files: dict[int, _File] = {}
    found: list[Event] = []
    with trace.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            match = _CALL.match(line)
            if match is None:
                continue
            name, arguments, result = match[1], match[2], int(match[3])
            if result < 0:
                continue
            event = _event(name, arguments, result, open_files)
            if event is not None:
                found.append(event)
    return found


def _event(name: str, arguments: str, result: int, open_files: dict[int, _File]) -> Event | None:
    if name in ("openat", "open", "creat"):
        path = _strings(arguments)[0].decode(errors="replace")
        synced = "O_SYNC" in arguments or "O_DSYNC" in arguments
        open_files[result] = _File(path, synced, "O_APPEND" in arguments)
        return None
    descriptor = int(re.match(r"\d+", arguments)[0])
    if name == "close":
        open_files.pop(descriptor, None)
        return None
    if name.startswith("dup"):
        if descriptor in open_files:
            open_files[result] = open_files[descriptor]
        return None
    if descriptor not in open_files:
        return None
    file = open_files[descriptor]
    if name == "lseek":
        file.place = result
        return None
    if name in ("fsync", "fdatasync"):
        return Flush(file.path)
    if name == "ftruncate":
        return Resize(file.path, int(arguments.rpartition(", ")[2]))
    data = b"".join(_strings(arguments))[:result]
    offset = -1 if file.append else file.place
    if name in ("write", "writev"):
        file.place += result
    elif name == "pwritev2":
        offset = int(arguments.split(", ")[-2])
    elif name.startswith("pwrite"):
        offset = int(arguments.rpartition(", ")[2])
    assert len(data) == result, f"{name} of {result} bytes is recorded with {len(data)}"
    return Write(file.path, offset, data, file.synced)


def _strings(arguments: str) -> list[bytes]:
    return [bytes.fromhex(text.replace("\\x", "")) for text in _HEX.findall(arguments)]
