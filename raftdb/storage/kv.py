"""The key-value store: signatures first, bodies follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from raftdb.types import Membership

HEADS: Final = 0
FIELDS: Final = 1
ITEMS: Final = 2
SCORES: Final = 3
EXPIRY: Final = 4
GARBAGE: Final = 5
META: Final = 6

STRING: Final = 1
LIST: Final = 2
SET: Final = 3
ZSET: Final = 4
HASH: Final = 5

DATABASES: Final = 16


class Head(NamedTuple):
    """The head record of a key. A string lives in `value`; of other types `collection` names the records."""

    type: int  # STRING LIST SET ZSET HASH
    expiry_ms: int  # absolute ms of Unix time; 0: never
    version: int  # index of the entry that changed it last (WATCH); put_head() sets it to batch.index
    value: bytes = b""  # strings only
    collection: int = 0  # 0 for strings
    count: int = 0  # fields, members, elements
    first: int = 0  # lists: position of the first element; position of the last is first + count - 1 == last
    last: int = -1


class Txn:
    """What View and Batch have in common: reads."""

    applied: int  # index of the last applied entry that this transaction sees
    stamp: int  # ms; the clock of every read: a key is dead when 0 < expiry_ms <= stamp

    def head(self, db: int, name: bytes) -> Head | None:
        """Not filtered by expiry."""
        raise NotImplementedError

    def heads(self, db: int, names: Sequence[bytes]) -> list[Head | None]:
        raise NotImplementedError

    def count(self, db: int) -> int:
        """Keys in db, dead but not yet removed ones included. O(1) on a View."""
        raise NotImplementedError

    def expiring(self, db: int) -> int:
        """Keys of db that have an expiry."""
        raise NotImplementedError

    def scan_heads(self, db: int, from_hash: int = 0) -> Iterator[tuple[int, bytes, Head]]:
        """(48-bit hash, name, head) in hash order from `from_hash` on. SCAN's cursor is the hash to go on from;
        keys of equal hash must be returned together; 0 when the iterator ends."""
        raise NotImplementedError

    def field(self, collection: int, name: bytes) -> bytes | None:
        """Hash fields, set members (value b''), sorted set members (value: codec.score_bytes)."""
        raise NotImplementedError

    def fields(self, collection: int, names: Sequence[bytes]) -> list[bytes | None]:
        raise NotImplementedError

    def scan_fields(self, collection: int, from_hash: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(48-bit hash, name, value) in hash order; seeded seeks (SPOP, SRANDMEMBER) start at a random hash."""
        raise NotImplementedError

    def item(self, collection: int, position: int) -> bytes | None:
        """Element of a list at a signed 64-bit position."""
        raise NotImplementedError

    def scan_items(
        self, collection: int, first: int, last: int, reverse: bool = False
    ) -> Iterator[tuple[int, bytes]]:
        """(position, element), both ends included."""
        raise NotImplementedError

    def scan_scores(
        self,
        collection: int,
        low: float = float("-inf"),
        high: float = float("inf"),
        reverse: bool = False,
        member_from: bytes | None = None,
    ) -> Iterator[tuple[float, bytes]]:
        """(score, member), ordered by score, then member."""
        raise NotImplementedError

    # the records below the helpers
    def get(self, space: int, key: bytes) -> bytes | None:
        raise NotImplementedError

    def get_many(self, space: int, keys: Sequence[bytes]) -> list[bytes | None]:
        raise NotImplementedError

    def scan(self, space: int, start: bytes, stop: bytes | None, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """start <= key < stop in key order (reverse: from the end). Values are checked."""
        raise NotImplementedError


class View(Txn):
    """A read transaction of this thread: `with kv.view() as view`. Not to be held longer than a few seconds."""

    def __enter__(self) -> View:
        raise NotImplementedError

    def __exit__(self, *exc: object) -> None:
        raise NotImplementedError


class Batch(Txn):
    """The write transaction of the driver, behind a write-back dict. One at a time."""

    index: int  # of the entry being applied
    seed: int

    def begin(self, index: int, stamp: int, seed: int) -> None:
        """Start applying entry `index`; ends the entry before. `stamp` becomes batch.stamp."""
        raise NotImplementedError

    def savepoint(self) -> None:
        """What was done so far in this entry stays."""
        raise NotImplementedError

    def rollback(self) -> None:
        """Undo everything since savepoint()."""
        raise NotImplementedError

    def fold(self, outcome: bytes) -> None:
        """Make `outcome` (an error text, a reply) part of the rolling digest."""
        raise NotImplementedError

    def put_head(self, db: int, name: bytes, head: Head) -> None:
        """Keeps count, expiry index, version; a collection that the key held before (another id) goes to GARBAGE."""
        raise NotImplementedError

    def put_string(self, db: int, name: bytes, value: bytes, expiry_ms: int = 0) -> None:
        """put_head() of a string without a Head made by the caller: the fast way of SET."""
        raise NotImplementedError

    def drop_head(self, db: int, name: bytes) -> Head | None:
        """Delete the key, whatever its size, in O(1). Returns what it was."""
        raise NotImplementedError

    def take_head(self, db: int, name: bytes) -> Head | None:
        """Remove the key but not its collection: for RENAME and MOVE, which put the head elsewhere."""
        raise NotImplementedError

    def flush_db(self, db: int) -> None:
        """Empty a database in O(1); reclaiming follows in bounded steps."""
        raise NotImplementedError

    def swap_db(self, one: int, other: int) -> None:
        """Exchange two databases in O(1)."""
        raise NotImplementedError

    def new_collection(self) -> int:
        raise NotImplementedError

    def put_field(self, collection: int, name: bytes, value: bytes) -> None:
        raise NotImplementedError

    def delete_field(self, collection: int, name: bytes) -> None:
        raise NotImplementedError

    def put_item(self, collection: int, position: int, value: bytes) -> None:
        raise NotImplementedError

    def delete_item(self, collection: int, position: int) -> None:
        raise NotImplementedError

    def put_score(self, collection: int, score: float, member: bytes) -> None:
        """The (score, member) order record only; the member's own record is put_field()."""
        raise NotImplementedError

    def delete_score(self, collection: int, score: float, member: bytes) -> None:
        raise NotImplementedError

    def due(self, stamp: int, keys_max: int) -> list[tuple[int, bytes]]:
        """(db, name) of keys whose expiry is at or before `stamp`, oldest first. O(1) when there are none."""
        raise NotImplementedError

    def reclaim(self, records_max: int) -> int:
        """Delete up to that many records of dropped collections and databases. Returns how many; 0: nothing left."""
        raise NotImplementedError

    def put(self, space: int, key: bytes, value: bytes) -> None:
        raise NotImplementedError

    def delete(self, space: int, key: bytes) -> None:
        raise NotImplementedError

    def commit(self, applied: int, term: int, stamp: int, chain: int, membership: Membership | None = None) -> None:
        """One LMDB transaction: data and applied index together. `chain`: of entry `applied`. membership None: unchanged.

        Raises DiskFull (nothing changed) or StorageError (end the process).
        """
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError


class KvStore:
    applied: int
    term: int
    stamp: int
    chain: int
    digest: bytes  # 16 bytes, rolling, after entry `applied`
    membership: Membership

    @classmethod
    def open(
        cls,
        path: Path,
        state_path: Path,
        *,
        map_size_bytes: int | None = None,
        readers_max: int = 512,
        sync_each_batch: bool = False,
        read_only: bool = False,
    ) -> KvStore:
        raise NotImplementedError

    def view(self) -> View:
        raise NotImplementedError

    def batch(self) -> Batch:
        raise NotImplementedError

    def sync(self) -> None:
        """env.sync(); may run in a background thread. An error is a StorageError: end the process."""
        raise NotImplementedError

    def earliest_expiry_ms(self) -> int:
        """Lower bound of the next key to fall due; 0: none. For the leader that proposes TIME entries."""
        raise NotImplementedError

    def close(self, clean: bool) -> None:
        """clean: sync and write `clean` into kv.state."""
        raise NotImplementedError

    def stats(self) -> dict[str, Any]:
        raise NotImplementedError
