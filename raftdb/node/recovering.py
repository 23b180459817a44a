"""`raftdb recover --force-members`: go on with one node when the majority is gone for good.

What it does to a data directory whose node is stopped: the node gets a new incarnation and the directory a new cluster
id, and a membership entry is appended that names this node alone, in a higher term. So the survivor leads by itself
when it is started, and the former members, should one of them come back, belong to another cluster and are refused:
without that, two of three "dead" nodes could form a majority of the old cluster beside the new one.

What it may lose: whatever the others had acknowledged and this node had not received. Entries that this node has and
that were never committed become part of the data. That is why a flag has to say that it is meant.

Order (each step synced; a second run goes on where a first one was cut off):

    1  identity.new      the new identity
    2  log               the membership entry and the higher term, one transaction
    3  log/meta          the new incarnation
    4  identity.new -> identity

From step 2 on the directory belongs to no cluster until step 4 is done. So `serve` refuses a directory that holds a
whole identity.new (`check_finished`): the only way on is another run.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Final, NamedTuple

from raftdb.consensus import membership
from raftdb.errors import Damaged, UsageError
from raftdb.storage import datadir
from raftdb.storage.checksum import chain_of
from raftdb.storage.datadir import DataDir, Identity
from raftdb.storage.files import sync_directory, write_file
from raftdb.storage.log import Log
from raftdb.types import Entry, HardState, Kind, Member, Membership, Persist

NEW_IDENTITY: Final = "identity.new"


class Recovered(NamedTuple):
    """What was made of the directory."""

    identity: Identity
    member: Member
    last_index: int
    last_term: int
    former_members: tuple[str, ...]


def recover(path: Path) -> Recovered:
    """Make the node of this data directory a cluster of one.

    Raises UsageError (no data, in use, not a member, damaged tail), StorageError.
    """
    found = _unfinished(path)
    if found is None:
        found = _begin(path)
    lock = datadir.lock(path)
    try:
        log = Log.open(datadir.log_path(path))
        try:
            former = tuple(member.id for member in (log.previous_membership or log.membership).members)
            member = _make_sole(log, found)
            if log.incarnation != found.incarnation:
                log.renew(found.incarnation)
            _take_identity(path)
            return Recovered(found, member, log.last, log.term(log.last), former)
        finally:
            log.close()
    finally:
        os.close(lock)


def check_finished(path: Path) -> None:
    """Raises UsageError when a run was cut off in this directory."""
    if _unfinished(path) is not None:
        raise UsageError(
            f"{path}: `raftdb recover` was cut off here: run `raftdb recover -d {path} --force-members` again"
        )


def _take_identity(path: Path) -> None:
    """Step 4: from here on the node belongs to the new cluster."""
    os.replace(path / NEW_IDENTITY, path / "identity")
    sync_directory(path)


def _unfinished(path: Path) -> Identity | None:
    """The identity that a run which was cut off has chosen."""
    file = path / NEW_IDENTITY
    if not file.exists():
        return None
    try:
        return datadir.decode_identity(file.read_bytes(), str(file))
    except (OSError, Damaged):
        return None  # torn: it was cut off before anything else was done


def _begin(path: Path) -> Identity:
    """Step 1. The directory is opened as a node would, so that whatever is wrong with it is said now."""
    data = DataDir.open(path)
    try:
        if data.damaged:
            raise UsageError(
                f"{path}: log entry {data.damaged[0]} is damaged: recover from another member's directory, or repair it"
            )
        if data.log.membership.get(data.identity.node_id) is None:
            raise UsageError(f"{path}: node {data.identity.node_id} is no member any more: use a member's directory")
        identity = data.identity._replace(cluster_id=secrets.token_hex(16), incarnation=secrets.randbits(64))
    finally:
        data.close(clean=True)
    write_file(path / NEW_IDENTITY, datadir.encode_identity(identity))
    return identity


def _make_sole(log: Log, identity: Identity) -> Member:
    """Step 2, unless it was done."""
    own = log.membership.get(identity.node_id)
    assert own is not None
    if log.membership.members == (own,) and own.incarnation == identity.incarnation:
        return own
    member = own._replace(incarnation=identity.incarnation, voter=True)
    payload = membership.encode((member,))
    term, index, last = log.hard.term + 1, log.last + 1, log.last
    stamp = log.stamp(last)
    chain = chain_of(log.chain(last), index, term, Kind.MEMBERSHIP, stamp, 0, payload)
    log.commit(
        Persist(
            hard=HardState(term, None),
            truncate_from=None,
            entries=(Entry(index, term, Kind.MEMBERSHIP, stamp, 0, payload, chain),),
            rewrite=(),
            membership=Membership(index, (member,)),
            previous_membership=log.membership,
            install=None,
            keep_suffix=False,
        )
    )
    return member
