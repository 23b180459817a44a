"""A new life for a directory whose vote can no longer be believed (`raftdb check --repair`, node/checking.py).

A node whose term or vote is damaged must not speak under its name: it could vote twice. Its log may be whole all the
same. So the directory gets another incarnation, which has voted for nobody; the cluster has to take it in like a new
member, and it brings its log along. What can be mended: identity's and log/meta's incarnation, `hard`, `starts`, the
membership before, the names of snapshots. What cannot: pages of LMDB, first and last entry, the membership itself;
then the directory is to be moved away and the node started with -o.

The log is written first, identity after it; a repair that was cut off in between is simply made again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from raftdb.errors import Damaged, UsageError
from raftdb.storage import codec, datadir
from raftdb.storage.codec import LOG_META
from raftdb.storage.engine import Environment, guarded, structure_findings
from raftdb.storage.files import write_file
from raftdb.storage.log import DATABASES, FORMAT, META_NAMES, read_meta, read_meta_document
from raftdb.types import HardState


def repair(path: Path, incarnation: int, *, map_size_bytes: int | None = None) -> list[str]:
    """Give the directory `incarnation`; returns what was damaged and has been replaced, in words.

    Raises UsageError (in use, not ours, beyond repair), DiskFull, StorageError.
    """
    held = datadir.lock(path)
    try:
        identity = datadir.read_identity(path)
        replaced = _repair_log(datadir.log_path(path), incarnation, map_size_bytes)
        with guarded(path):
            write_file(path / "identity", datadir.encode_identity(identity._replace(incarnation=incarnation)))
    except Damaged as error:
        raise _beyond(path, error) from None
    finally:
        os.close(held)
    return replaced


def damaged(path: Path) -> list[str]:
    """What repair() would replace, in words; nothing is changed.

    Raises UsageError (in use, no data directory, beyond repair), StorageError.
    """
    held = datadir.lock(path)
    try:
        identity = datadir.read_identity(path)
        documents, replaced = _read_log(datadir.log_path(path), identity.incarnation)
        if not replaced and documents[b"was"] != (identity.incarnation,):
            replaced.append("identity and log belong to different lives of the node")
    except Damaged as error:
        raise _beyond(path, error) from None
    finally:
        os.close(held)
    return replaced


def _beyond(path: Path, error: Damaged) -> UsageError:
    return UsageError(f"{error}: beyond repair; move {path} away and start with -o to replace this member")


def _read_log(path: Path, incarnation: int) -> tuple[dict[bytes, Any], list[str]]:
    """As _mended(), read-only; b"was": the incarnation as it is."""
    if findings := structure_findings(path / "data.mdb"):
        raise Damaged("log/data.mdb", findings[0])
    environment = Environment(path, DATABASES, sync=True, read_only=True, copied=True)
    try:
        transaction = environment.reader()
        try:
            stored = {name: transaction.get(name, db=environment.databases[1]) for name in META_NAMES}
        finally:
            transaction.abort()
    finally:
        environment.close()
    documents, replaced = _mended(stored, incarnation)
    read_meta({name: codec.seal(LOG_META, name, codec.pack(document)) for name, document in documents.items()}.get)
    with contextlib.suppress(Damaged):
        documents[b"was"] = tuple(read_meta_document(b"incarnation", stored[b"incarnation"]))
    return documents, replaced


def _repair_log(path: Path, incarnation: int, map_size_bytes: int | None) -> list[str]:
    if findings := structure_findings(path / "data.mdb"):
        raise Damaged("log/data.mdb", findings[0])
    # `copied`: an older commit than the newest is good enough for a node that has promised nothing yet.
    environment = Environment(path, DATABASES, sync=True, map_size_bytes=map_size_bytes, copied=True)
    try:
        transaction = environment.writer()
        try:
            stored = {name: transaction.get(name, db=environment.databases[1]) for name in META_NAMES}
            documents, replaced = _mended(stored, incarnation)
            sealed = {name: codec.seal(LOG_META, name, codec.pack(document)) for name, document in documents.items()}
            read_meta(sealed.get)  # what cannot be mended shows here
            for name, value in sealed.items():
                transaction.put(name, value, db=environment.databases[1])
        except BaseException:
            transaction.abort()
            raise
        environment.commit(transaction)
    finally:
        environment.close()
    return replaced


def _mended(stored: dict[bytes, bytes | None], incarnation: int) -> tuple[dict[bytes, Any], list[str]]:
    defaults: dict[bytes, Any] = {
        b"format": (FORMAT,),
        b"incarnation": (incarnation,),
        b"starts": (0,),
        b"hard": None,
        b"previous": None,
        b"snapshot": None,
        b"before": None,
    }
    documents: dict[bytes, Any] = {}
    replaced = []
    for name in META_NAMES:
        try:
            documents[name] = read_meta_document(name, stored[name])
        except Damaged as error:
            if name not in defaults:
                raise
            documents[name] = defaults[name]
            replaced.append(str(error))
    documents[b"incarnation"] = (incarnation,)
    term = documents[b"tail"][1] if documents[b"hard"] is None else max(documents[b"tail"][1], documents[b"hard"][0])
    documents[b"hard"] = codec.hard_document(HardState(term, None))
    return documents, replaced
