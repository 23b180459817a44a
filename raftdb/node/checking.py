"""`raftdb check`: what is damaged in the directory of a node that is stopped, and the two things that can be done.

    --repair        term, vote or the count of starts cannot be read: the node must not speak under its name, since it
                    could vote twice. It gets a new incarnation (storage/repair.py), which the cluster takes in like a
                    new member that brings its log along. A node that is alone has nobody who could: it becomes the
                    cluster (recovering.py), and loses nothing by that.
    --accept-loss   an entry that is not applied yet is damaged, or neither snapshot nor data fit the log, and no other
                    member has it: drop what cannot be had back. Only for a node that is alone.

Everything else mends itself when the node starts: data is rebuilt from snapshot and log, entries are fetched from other
members. `raftdb-dump verify` tells the same findings, of a running node too, and changes nothing.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NamedTuple

from raftdb.errors import UsageError
from raftdb.node.recovering import check_finished, recover
from raftdb.storage import datadir
from raftdb.storage.datadir import DataDir
from raftdb.storage.log import Log
from raftdb.storage.repair import damaged, repair
from raftdb.storage.verify import Finding, verify_directory


class Repaired(NamedTuple):
    """What repair_directory() did; nothing, when `replaced` is empty."""

    node_id: str
    replaced: tuple[str, ...]  # what was damaged, in words
    alone: bool  # it is a cluster of one now; else the cluster has to take it in


class Lost(NamedTuple):
    """What accept_loss() did; last == former_last and not `emptied`: nothing was lost."""

    former_last: int  # index of the last entry before
    last: int
    emptied: bool  # the data begins anew from the log's first entry


def check_directory(path: Path) -> list[Finding]:
    """What is damaged, or worth knowing. Raises UsageError: in use, not a data directory."""
    _need_stopped(path)
    return list(verify_directory(path))


def repair_directory(path: Path) -> Repaired:
    """Give the node a new incarnation if its vote cannot be believed. Raises UsageError, DiskFull, StorageError."""
    _need_stopped(path)
    check_finished(path)
    found = damaged(path)
    node_id = datadir.read_identity(path).node_id
    if not found:
        return Repaired(node_id, (), alone=False)
    repair(path, secrets.randbits(64))
    alone = _members(path) == [node_id]
    if alone:
        recover(path)
    return Repaired(node_id, tuple(found), alone)


def accept_loss(path: Path) -> Lost:
    """Drop what is damaged and nobody else has. Raises UsageError (other members have it), DiskFull, StorageError."""
    _need_stopped(path)
    check_finished(path)
    node_id = datadir.read_identity(path).node_id
    others = [name for name in _members(path) if name != node_id]
    if others:
        raise UsageError(
            f"{path}: {', '.join(others)} may have what is damaged here: start this node, and it asks them"
        )
    former_last = _last_index(path)
    data = DataDir.open(path, accept_loss=True)
    try:
        return Lost(former_last, data.log.last, data.plan.start_with is datadir.StartWith.STOP)
    finally:
        data.close(clean=True)


def _need_stopped(path: Path) -> None:
    """Raises UsageError when a process has the directory, or there is none."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a directory")
    os.close(datadir.lock(path))


def _members(path: Path) -> list[str]:
    log = Log.open(datadir.log_path(path), read_only=True)
    try:
        return [member.id for member in log.membership.members]
    finally:
        log.close()


def _last_index(path: Path) -> int:
    log = Log.open(datadir.log_path(path), read_only=True)
    try:
        return log.last
    finally:
        log.close()
