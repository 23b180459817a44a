"""The key-value store: what the log says, applied, in LMDB without flushing. A cache of snapshot + log (see kvstate).

Keys are described in keys.py, values in codec.py, the state record in txn.py. One LMDB transaction holds the changes
of a batch of entries together with the applied index, term, stamp, chain, digest and membership. View (view.py) reads a
snapshot of the store; any thread, for some seconds at most. Batch (batch.py) is the only writer.

Deleting is O(1): the head goes, its collection is noted in GARBAGE, reclaim() works through the records later. A
flushed database gets a new keyspace number; the old one is garbage. Garbage is invisible to reads, digests and
snapshots.

Invariants: a key's head is in HEADS under its database's keyspace exactly once; it has an EXPIRY record if and only if
expiry_ms > 0; a live collection is named by exactly one head; keys and expiring count the heads of the keyspace.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from threading import Lock

from raftdb.errors import Bug, Damaged, StorageError
from raftdb.storage import keys, kvstate
from raftdb.storage.batch import Batch
from raftdb.storage.checksum import crc32c
from raftdb.storage.codec import EXPIRY, FIELDS, GARBAGE, HEADS, ITEMS, META, SCORES, Head, encode_head
from raftdb.storage.engine import Environment, translate
from raftdb.storage.keys import DATABASES, HASH, LIST, SET, STRING, ZSET, hash48
from raftdb.storage.txn import NEVER, SPACES, State, Txn
from raftdb.storage.view import View
from raftdb.types import Membership

__all__ = [
    "DATABASES",
    "EXPIRY",
    "FIELDS",
    "GARBAGE",
    "HASH",
    "HEADS",
    "ITEMS",
    "LIST",
    "META",
    "SCORES",
    "SET",
    "STRING",
    "ZSET",
    "Batch",
    "Head",
    "KvStore",
    "Txn",
    "View",
    "collection_spaces",
    "hash48",
    "state_digest",
]


class KvStore:
    """An open kv environment. `applied`, `term`, `stamp`, `chain`, `digest`, `membership`: as of the last commit."""

    applied: int
    term: int
    stamp: int  # ms
    chain: int
    digest: bytes  # 16 bytes, rolling, after entry `applied`
    membership: Membership
    earliest_ms: int  # no key falls due before; NEVER: none has an expiry

    def __init__(self, environment: Environment, state_path: Path | None, sync_each_batch: bool) -> None:
        self.path = environment.path
        self.through_map = environment.through_map
        self._environment = environment
        self._state_path = state_path
        self._sync_each_batch = sync_each_batch
        self._marked_dirty = False
        self._open_batch = False
        self._sync_lock = Lock()  # one flush at a time; a second caller waits for its own
        with View(self, environment) as view:
            self.membership = view.membership()
            self._adopt(view.state())
            self.earliest_ms = self._first_expiry(view)

    @classmethod
    def open(
        cls,
        path: Path,
        state_path: Path | None,
        *,
        map_size_bytes: int | None = None,
        readers_max: int = 512,
        sync_each_batch: bool = False,
        read_only: bool = False,
        copied: bool = False,
        through_map: bool = False,
    ) -> KvStore:
        """Open, or make, the environment at `path`. Whether it may be believed (kvstate) is the caller's question.

        `state_path` None: this store is private, nobody asks kv.state about it. read_only: nothing is written at all.
        copied: made by copy(). through_map: write it through its map where that is safe (mapped.py).
        Raises Damaged, UsageError, DiskFull, StorageError.
        """
        environment = Environment(
            path,
            SPACES,
            sync=sync_each_batch,
            map_size_bytes=map_size_bytes,
            readers_max=readers_max,
            read_only=read_only,
            copied=copied,
            through_map=through_map and not sync_each_batch,
        )
        try:
            return cls(environment, None if read_only else state_path, sync_each_batch)
        except BaseException:
            environment.close()
            raise

    def _adopt(self, state: State) -> None:
        self.state = state
        self.applied, self.term, self.stamp, self.chain, self.digest = state[:5]

    def _first_expiry(self, view: View) -> int:
        first = NEVER
        for db in range(DATABASES):
            prefix = view._keyspace(db)
            for key, _ in islice(view.scan(EXPIRY, prefix, keys.after(prefix)), 1):
                first = min(first, keys.expiry_time(key))
        return first

    def view(self) -> View:
        """A read transaction for this thread. Any thread; raises StorageError."""
        return View(self, self._environment)

    def batch(self) -> Batch:
        """The write transaction of the owner thread; one at a time. Raises DiskFull, StorageError."""
        if self._open_batch:
            raise Bug("a second batch of kv was begun before the first one ended")
        if not self._marked_dirty:
            self._mark_dirty()
        batch = Batch(self, self._environment)
        self._open_batch = True
        return batch

    def _mark_dirty(self) -> None:
        if self._state_path is not None:
            if self._sync_each_batch:
                self._environment.sync()
                kvstate.write(self._state_path, kvstate.CLEAN)
            else:
                kvstate.write(self._state_path, kvstate.dirty_line(self.path))
        self._marked_dirty = True

    def committed(self, state: State, membership: Membership | None) -> None:
        """Called by the batch that was committed."""
        self._open_batch = False
        if membership is not None:
            self.membership = membership
        self._adopt(state)

    def aborted(self) -> None:
        """Called by the batch that was aborted."""
        self._open_batch = False
        with self.view() as view:
            self.earliest_ms = self._first_expiry(view)

    def failed(self, error: BaseException) -> BaseException:
        """The error to raise for what LMDB or a checksum reported. A damaged store is rebuilt at the next start."""
        if not isinstance(error, Damaged):
            error = translate(error, self.path)
        if isinstance(error, Damaged):
            self.distrust()
        return error

    def distrust(self) -> None:
        """Have the next start rebuild this store. Best effort: the process is about to end."""
        if self._state_path is not None:
            try:
                kvstate.write(self._state_path, kvstate.DAMAGED)
            except StorageError:
                return
            self._state_path = None

    def claim(self) -> None:
        """This thread writes from now on."""
        self._environment.claim()

    def sync(self) -> None:
        """Flush what is committed; may run in a background thread. An error is a StorageError: end the process."""
        with self._sync_lock:
            self._environment.sync()

    def earliest_expiry_ms(self) -> int:
        """No key falls due before this time; 0: none has an expiry. For the leader that proposes TIME entries."""
        return 0 if self.earliest_ms == NEVER else self.earliest_ms

    def copy(self, target: Path) -> None:
        """A compacted private copy into the empty directory `target`."""
        self._environment.copy(target)

    def retire(self) -> None:
        """Another store takes this one's place; views of this one stay valid, its last reference closes it."""
        self._environment.retire()

    def close(self, clean: bool) -> None:
        """clean: flush and write `clean` into kv.state. Raises StorageError."""
        if clean and self._state_path is not None and kvstate.read(self._state_path) != kvstate.CLEAN:
            self.sync()
            kvstate.write(self._state_path, kvstate.CLEAN)
        self._environment.close()

    def stats(self) -> dict[str, int]:
        with self.view() as view:
            garbage = view._txn.stat(self._environment.databases[GARBAGE])["entries"]
        return {**self._environment.stats(), "garbage_ranges": garbage}


def state_digest(view: View) -> bytes:
    """BLAKE2b-256 over all that clients can see, in order: databases, heads, the records of their collections."""
    digest = blake2b(digest_size=32)
    for db in range(DATABASES):
        digest.update(b"database %d" % db)
        for _, name, head in view.scan_heads(db):
            digest.update(crc32c(name).to_bytes(4, "little") + len(name).to_bytes(4, "little"))
            digest.update(encode_head(name, head._replace(collection=0), None))
            for space in collection_spaces(head.type):
                prefix = head.collection.to_bytes(8, "big")
                for key, body in view.scan(space, prefix, keys.after(prefix)):
                    digest.update(struct.pack("<BHI", space, len(key), len(body)) + key[8:] + body)
    return digest.digest()


def collection_spaces(kind: int) -> tuple[int, ...]:
    """The spaces that hold the records of a collection of this type."""
    if kind == STRING:
        return ()
    return {LIST: (ITEMS,), ZSET: (FIELDS, SCORES)}.get(kind, (FIELDS,))
