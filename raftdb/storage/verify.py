"""Looking for damage in log, kv and snapshots, trusting nothing, changing nothing.

Each function yields findings: a place and what is wrong there in words; `note` marks what is worth knowing but no
damage. Nothing escapes but UsageError (not ours at all).

What makes sure that a flipped bit which changes an answer is found:

    a record's key or value          its CRC, which covers both and the space
    an LMDB page, pointer, count     lmdb.verify, a walk over the file in Python that never hands it to LMDB; it needs
                                     a file that nobody writes to, so it is left out while a node runs
    records that are hidden          log: numbers without a gap from log/meta base to tail; kv: counts of keys per
                                     database and of elements per collection, heads against the expiry index
    a whole other file               chain of entries; log/meta against snapshots; kv's chain against the log's

Memory: eight bytes and some per collection (which heads name which collections), the rest streams.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmdb

from raftdb.errors import Damaged, EntryDamaged, RaftdbError, StorageError, UsageError
from raftdb.storage import codec, datadir, keys, kvstate, snapshot
from raftdb.storage.codec import EXPIRY, FIELDS, GARBAGE, HEADS, ITEMS, META, SCORES, Head
from raftdb.storage.engine import COMMIT_NAME, Environment, structure_findings
from raftdb.storage.keys import DATABASES, LIST, STRING, ZSET
from raftdb.storage.log import Log
from raftdb.storage.txn import SPACES, STATE_NAME, State, decode_membership, decode_state, first_state
from raftdb.types import SnapshotMeta


class Finding(NamedTuple):
    """One thing that is wrong, or (`note`) worth knowing."""

    place: str
    what: str
    index: int | None = None  # type: ignore[assignment]  # of a log entry
    note: bool = False


def verify_directory(path: Path) -> Iterator[Finding]:
    """Everything in a data directory. Raises UsageError when it is none."""
    try:
        identity = datadir.read_identity(path)
    except Damaged as error:
        identity = None
        yield _finding(error)
    live = is_running(path)
    log: Log | None = None
    for step in (_directory_log(path, live), _directory_snapshots(path), _directory_kv(path, live)):
        yield from step
    try:
        log = Log.open(datadir.log_path(path), unclean=False, read_only=True)
        if identity is not None and log.incarnation != identity.incarnation:
            yield Finding("identity", "belongs to another life of the node than log/meta")
    except (RaftdbError, lmdb.Error):
        return  # reported above
    finally:
        if log is not None:
            log.close()


def is_running(path: Path) -> bool:
    """Does a process hold the directory's lock?"""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _directory_log(path: Path, live: bool) -> Iterator[Finding]:
    yield from verify_log(datadir.log_path(path), live=live)


def _directory_snapshots(path: Path) -> Iterator[Finding]:
    try:
        log = Log.open(datadir.log_path(path), unclean=False, read_only=True)
    except RaftdbError:
        return
    try:
        named = [meta for meta in (log.snapshot, log.previous_snapshot) if meta is not None]
    finally:
        log.close()
    for meta in named:
        yield from _named_snapshot(datadir.snapshot_path(path), meta)


def _named_snapshot(directory: Path, meta: SnapshotMeta) -> Iterator[Finding]:
    try:
        found = snapshot.check_file(directory / meta.name)
    except UsageError as error:
        yield Finding(f"snapshots/{meta.name}", str(error))
    except StorageError as error:
        yield _finding(error, f"snapshots/{meta.name}")
    else:
        if (found.index, found.term, found.digest) != (meta.index, meta.term, meta.digest):
            yield Finding(f"snapshots/{meta.name}", "is not the file that log/meta describes")


def _directory_kv(path: Path, live: bool) -> Iterator[Finding]:
    try:
        kv_path = datadir.kv_path(path)
    except Damaged as error:
        yield _finding(error)
        return
    if not (kv_path / "data.mdb").exists():
        yield Finding("kv", "is not there; the next start rebuilds it", note=True)
    elif not kvstate.is_trusted(datadir.kv_state_path(path), kv_path):
        yield Finding("kv.state", "kv may have lost writes; the next start rebuilds it", note=True)
    else:
        yield from verify_kv(kv_path, live=live)


def _finding(error: RaftdbError, place: str = "") -> Finding:
    if isinstance(error, EntryDamaged):
        return Finding(error.where, error.what, error.index)
    if isinstance(error, Damaged):
        return Finding(error.where, error.what)
    return Finding(place or "storage", str(error))


def verify_structure(path: Path, place: str) -> Iterator[Finding]:
    """Pages of an LMDB environment that nobody writes to."""
    for text in structure_findings(path / "data.mdb"):
        yield Finding(f"{place}/data.mdb", text)


def verify_snapshot(file: Path) -> Iterator[Finding]:
    """Every frame, row and count of a snapshot file. Raises UsageError when it is none."""
    try:
        with snapshot.Reader(file) as reader:
            counted = [0] * DATABASES
            for row in reader.walk():
                if row.kind == "key":
                    counted[row.db] += 1
            if tuple(counted) != reader.header.keys:
                yield Finding(file.name, "the header counts other keys than there are")
    except StorageError as error:
        yield _finding(error, file.name)


# --- log ------------------------------------------------------------------------------------------------------------


def verify_log(path: Path, from_index: int | None = None, *, live: bool = False) -> Iterator[Finding]:
    """Meta, and every entry from `from_index` (default: the first one). `live`: a node is writing to it."""
    damaged = [] if live else list(verify_structure(path, "log"))
    yield from damaged
    if damaged:
        return  # LMDB might follow a wild pointer
    try:
        log = Log.open(path, unclean=False, read_only=True)
    except RaftdbError as error:
        yield _finding(error, "log")
        return
    try:
        above = max(log.first - 1, (from_index or 0) - 1)
        yield from (_finding(error) for error in log.findings(min(above, log.last)))
    except RaftdbError as error:
        yield _finding(error, "log")
    finally:
        log.close()


# --- kv -------------------------------------------------------------------------------------------------------------


def verify_kv(path: Path, *, live: bool = False) -> Iterator[Finding]:
    """Every record: checksum, shape, counts, heads against collections and expiry index. `live`: being written to."""
    damaged = [] if live else list(verify_structure(path, "kv"))
    yield from damaged
    if damaged:
        return  # LMDB might follow a wild pointer
    try:
        environment = Environment(path, SPACES, sync=False, read_only=True)
    except RaftdbError as error:
        yield _finding(error, "kv")
        return
    try:
        transaction = environment.reader()
        try:
            yield from _KvCheck(transaction, environment.databases).run()
        finally:
            transaction.abort()
    except lmdb.Error as error:
        yield Finding("kv", str(error))
    finally:
        environment.close()


class _KvCheck:
    def __init__(self, transaction: Any, databases: tuple[Any, ...]) -> None:
        self._txn = transaction
        self._dbs = databases
        self._live: dict[int, int] = {}  # collection -> type
        self._garbage_collections: set[bytes] = set()
        self._garbage_keyspaces: set[bytes] = set()
        self._findings: list[Finding] = []

    def run(self) -> Iterator[Finding]:
        state = self._state()
        yield from self._drain()
        if state is None:
            return
        for step in (self._garbage(), self._heads(state), self._expiry(state), self._elements(state)):
            yield from step
            yield from self._drain()

    def _drain(self) -> Iterator[Finding]:
        yield from self._findings
        self._findings.clear()

    def _add(self, space: int, key: bytes, what: str) -> None:
        self._findings.append(_finding(codec.damaged(space, key, what)))

    def _state(self) -> State | None:
        for key, _ in self._txn.cursor(self._dbs[META]).iternext():
            if key not in (STATE_NAME, COMMIT_NAME):
                self._add(META, key, "is not known")
        value = self._txn.get(STATE_NAME, db=self._dbs[META])
        if value is None:
            if any(self._txn.stat(database)["entries"] for database in self._dbs):
                self._findings.append(Finding("kv meta state", "is missing"))
                return None
            return first_state()
        try:
            state = decode_state(codec.unseal(META, STATE_NAME, value))
            decode_membership(state.members)
        except Damaged as error:
            self._findings.append(_finding(error))
            return None
        return state

    def _records(self, space: int, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, body) of the records that pass their checksum; the others become findings."""
        cursor = self._txn.cursor(self._dbs[space])
        if not (cursor.set_range(prefix) if prefix else cursor.first()):
            return
        try:
            for key, value in cursor.iternext():
                if not key.startswith(prefix):
                    return
                try:
                    yield key, codec.unseal(space, key, value)
                except Damaged as error:
                    self._findings.append(_finding(error))
        except lmdb.Error as error:
            self._findings.append(Finding(f"kv {codec.SPACE_NAMES[space]}", str(error)))

    def _garbage(self) -> Iterator[Finding]:
        for key, _ in self._records(GARBAGE):
            if key[:1] == b"c" and len(key) == 9:
                self._garbage_collections.add(key[1:])
            elif key[:1] == b"k" and len(key) == 5:
                self._garbage_keyspaces.add(key[1:])
            else:
                self._add(GARBAGE, key, "is no garbage record")
        return iter(())

    def _heads(self, state: State) -> Iterator[Finding]:
        counts = dict.fromkeys(state.keyspaces, 0)
        for key, body in self._records(HEADS):
            head = self._head(key, body)
            if head is None:
                continue
            if head.collection and key[:4] not in self._garbage_keyspaces and head.collection in self._live:
                self._add(HEADS, key, f"collection {head.collection} belongs to another key as well")
            if head.collection:
                self._live[head.collection] = head.type
            if key[:4] in counts:
                counts[key[:4]] += 1
                self._check_head(key, head)
            elif key[:4] not in self._garbage_keyspaces:
                self._add(HEADS, key, "belongs to no database")
            yield from self._drain()
        for db, keyspace in enumerate(state.keyspaces):
            if counts[keyspace] != state.keys[db]:
                yield Finding(f"kv database {db}", f"has {counts[keyspace]} keys, its count says {state.keys[db]}")

    def _head(self, key: bytes, body: bytes) -> Head | None:
        try:
            head = codec.decode_head(key, codec.seal(HEADS, key, body))
            name = codec.head_name(key, codec.seal(HEADS, key, body))
        except Damaged as error:
            self._findings.append(_finding(error))
            return None
        if keys.head(key[:4], name) != key:
            self._add(HEADS, key, "does not stand where its name belongs")
        return head

    def _check_head(self, key: bytes, head: Head) -> None:
        if head.expiry_ms and self._txn.get(keys.expiry(key, head.expiry_ms), db=self._dbs[EXPIRY]) is None:
            self._add(HEADS, key, "has an expiry that the index does not know")
        if head.type == STRING:
            return
        prefix = head.collection.to_bytes(8, "big")
        if head.type == LIST:
            places = (keys.item_position(item) for item, _ in self._records(ITEMS, prefix))
            found = sum(1 for place in places if head.first <= place <= head.last)
        else:
            found = sum(1 for _ in self._records(FIELDS, prefix))
        if found != head.count:
            self._add(HEADS, key, f"has {found} elements, its count says {head.count}")
        if head.type == ZSET and (ordered := sum(1 for _ in self._records(SCORES, prefix))) != head.count:
            self._add(HEADS, key, f"has {ordered} elements in its order, its count says {head.count}")

    def _expiry(self, state: State) -> Iterator[Finding]:
        counts = dict.fromkeys(state.keyspaces, 0)
        for key, _ in self._records(EXPIRY):
            if key[:4] not in counts:
                if key[:4] not in self._garbage_keyspaces:
                    self._add(EXPIRY, key, "belongs to no database")
                continue
            counts[key[:4]] += 1
            head_key = keys.expiry_head(key)
            value = self._txn.get(head_key, db=self._dbs[HEADS])
            try:
                if value is None or codec.decode_head(head_key, value).expiry_ms != keys.expiry_time(key):
                    self._add(EXPIRY, key, "belongs to no key with this expiry")
            except Damaged:
                continue  # found among the heads
            yield from self._drain()
        for db, keyspace in enumerate(state.keyspaces):
            if counts[keyspace] != state.expiring[db]:
                what = f"has {counts[keyspace]} keys with an expiry, its count says {state.expiring[db]}"
                yield Finding(f"kv database {db}", what)

    def _elements(self, state: State) -> Iterator[Finding]:
        """Checksums of all elements; every one belongs to a collection that some head names, or is garbage."""
        for space in (FIELDS, ITEMS, SCORES):
            last = b""
            for key, body in self._records(space):
                prefix = key[:8]
                if prefix != last:
                    last = prefix
                    number = int.from_bytes(prefix, "big")
                    if number not in self._live and prefix not in self._garbage_collections:
                        self._add(space, key, "belongs to no key")
                    if number >= state.next_collection:
                        self._add(space, key, "belongs to a collection that was never made")
                if space == FIELDS and len(key) == keys.LONG_FIELD_KEY_BYTES:
                    self._check_long(space, key, body)
                yield from self._drain()

    def _check_long(self, space: int, key: bytes, body: bytes) -> None:
        try:
            name, _ = codec.split_long_name(space, key, body)
        except Damaged as error:
            self._findings.append(_finding(error))
            return
        if keys.field(int.from_bytes(key[:8], "big"), name) != key:
            self._add(space, key, "does not stand where its name belongs")
