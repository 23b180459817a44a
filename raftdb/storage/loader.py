"""Building a new kv environment from the rows of a snapshot.

Records are collected per space and written sorted, some tens of thousands per transaction, so that pages are filled
rather than touched at random; one flush at the end makes it durable. Heads come in the order of their keys already.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import lmdb

from raftdb.errors import Damaged
from raftdb.storage import codec, keys
from raftdb.storage.codec import EXPIRY, FIELDS, HEADS, ITEMS, META, SCORES
from raftdb.storage.engine import Environment, translate
from raftdb.storage.keys import DATABASES, SHORT_NAME_BYTES_MAX
from raftdb.storage.txn import SPACES, STATE_NAME, State, encode_membership, encode_state

if TYPE_CHECKING:
    from raftdb.storage.snapshot import Header
    from raftdb.types import Membership

BATCH_BYTES: Final = 16 << 20


class Loader:
    """add() every row, finish(), close()."""

    def __init__(self, path: Path, header: Header, map_size_bytes: int | None) -> None:
        self._header = header
        self._keyspaces = tuple(header.keyspaces[at : at + 4] for at in range(0, 4 * DATABASES, 4))
        self._environment = Environment(path, SPACES, sync=False, map_size_bytes=map_size_bytes)
        self._pending: list[dict[bytes, bytes]] = [{} for _ in SPACES]
        self._pending_bytes = 0
        self._collection = b""
        self._keys = [0] * DATABASES
        self._expiring = [0] * DATABASES

    def add(self, row: list[Any]) -> None:
        """A row that Reader has checked. Raises Damaged, DiskFull, StorageError."""
        kind = row[0]
        if kind <= 2:
            for place in range(2, len(row), 2):
                self._add_head(row[1], row[place], row[place + 1])
            if kind == 1:
                self._collection = b""
        elif not self._collection:
            raise Damaged("snapshot", "elements that belong to no key")
        else:
            self._add_elements(kind, row)
        if self._pending_bytes >= BATCH_BYTES:
            self._write()

    def _add_head(self, db: int, name: bytes, body: bytes) -> None:
        key = keys.head(self._keyspaces[db], name)
        head = codec.decode_content(body)
        if head.expiry_ms:
            self._expiring[db] += 1
            self._put(EXPIRY, keys.expiry(key, head.expiry_ms), b"")
        if head.collection >= self._header.next_collection:
            raise Damaged("snapshot", f"collection {head.collection} has not been given out yet")
        self._collection = head.collection.to_bytes(8, "big") if head.collection else b""
        if len(name) > SHORT_NAME_BYTES_MAX:
            body = body[: codec.HEAD_FIXED_BYTES] + codec.long_name(name) + body[codec.HEAD_FIXED_BYTES :]
        self._put(HEADS, key, body)
        self._keys[db] += 1

    def _add_elements(self, kind: int, row: list[Any]) -> None:
        number = int.from_bytes(self._collection, "big")
        for place in range(1, len(row), 2):
            key, value = row[place], row[place + 1]
            if kind == 3:
                body = value if len(key) <= SHORT_NAME_BYTES_MAX else codec.long_name(key) + value
                self._put(FIELDS, keys.field(number, key), body)
            elif kind == 4:
                self._put(ITEMS, keys.item(number, key), value)
            else:
                body = b"" if len(value) <= SHORT_NAME_BYTES_MAX else codec.long_name(value)
                self._put(SCORES, keys.score(number, key, value), body)

    def _put(self, space: int, key: bytes, body: bytes) -> None:
        self._pending[space][key] = codec.seal(space, key, body)
        self._pending_bytes += len(key) + len(body) + 64

    def _write(self) -> None:
        transaction = self._environment.writer()
        try:
            for space, records in enumerate(self._pending):
                if records:
                    transaction.cursor(self._environment.databases[space]).putmulti(sorted(records.items()))
                    records.clear()
        except lmdb.Error as error:
            transaction.abort()
            raise translate(error, self._environment.path) from error
        self._environment.commit(transaction)
        self._pending_bytes = 0

    def finish(self, membership: Membership) -> None:
        """Write what is pending and the state, compare the counts, flush. Raises Damaged, DiskFull, StorageError."""
        header = self._header
        if tuple(self._keys) != header.keys or tuple(self._expiring) != header.expiring:
            raise Damaged("snapshot", "the header counts other keys than there are")
        state = State(
            *(header.index, header.term, header.stamp, header.chain, header.kv_digest),
            *(header.next_collection, header.next_keyspace, self._keyspaces, header.keys, header.expiring),
            encode_membership(membership),
        )
        self._put(META, STATE_NAME, encode_state(state))
        self._write()
        with_entries = self._environment.reader()
        try:
            stored = with_entries.stat(self._environment.databases[HEADS])["entries"]
        finally:
            with_entries.abort()
        if stored != sum(header.keys):
            raise Damaged("snapshot", "a key stands in it twice")
        self._environment.sync()

    def close(self) -> None:
        self._environment.close()
