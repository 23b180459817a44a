"""Reads of the kv environment, the same for View and Batch, and the `state` record that every commit writes.

state = applied(8) term(8) stamp(8) chain(8) digest(16) next collection(8) next keyspace(4)
        16 x keyspace(4, big-endian)  16 x keys(8)  16 x expiring keys(8)           little-endian but for keyspaces
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple

from raftdb.errors import Damaged
from raftdb.storage import codec, keys
from raftdb.storage.codec import (
    FIELDS,
    HEADS,
    ITEMS,
    SCORES,
    Head,
    Malformed,
    decode_head,
    head_name,
)
from raftdb.storage.keys import DATABASES, SHORT_NAME_BYTES_MAX
from raftdb.types import Membership

SPACES: Final = (b"heads", b"fields", b"items", b"scores", b"expiry", b"garbage", b"meta")
NEVER: Final = (1 << 64) - 1
STATE_NAME: Final = b"state"

_STATE = struct.Struct("<QQQQ16sQI")
COUNTS: Final = struct.Struct(f"<{DATABASES}Q")
KEYSPACES_AT: Final = _STATE.size
KEYS_AT: Final = KEYSPACES_AT + 4 * DATABASES
EXPIRING_AT: Final = KEYS_AT + 8 * DATABASES
STATE_BYTES: Final = EXPIRING_AT + 8 * DATABASES
_NO_MEMBERSHIP: Final = Membership(0, ())


class State(NamedTuple):
    """The decoded `state` record."""

    applied: int
    term: int
    stamp: int  # ms
    chain: int
    digest: bytes
    next_collection: int
    next_keyspace: int
    keyspaces: tuple[bytes, ...]
    keys: tuple[int, ...]
    expiring: tuple[int, ...]
    members: bytes  # the membership as of `applied`, a document; empty: none yet


def first_state() -> State:
    """Of a store to which nothing has been applied."""
    keyspaces = tuple(number.to_bytes(4, "big") for number in range(DATABASES))
    return State(0, 0, 0, 0, bytes(16), 1, DATABASES, keyspaces, (0,) * DATABASES, (0,) * DATABASES, b"")


def encode_state(state: State) -> bytes:
    counts = COUNTS.pack(*state.keys) + COUNTS.pack(*state.expiring)
    return _STATE.pack(*state[:7]) + b"".join(state.keyspaces) + counts + state.members


def decode_state(body: bytes) -> State:
    """Raises Damaged."""
    if len(body) < STATE_BYTES:
        raise Damaged("kv meta state", f"has {len(body)} bytes")
    spaces = tuple(body[at : at + 4] for at in range(KEYSPACES_AT, KEYS_AT, 4))
    key_counts, expiring = COUNTS.unpack_from(body, KEYS_AT), COUNTS.unpack_from(body, EXPIRING_AT)
    return State._make((*_STATE.unpack_from(body), spaces, key_counts, expiring, body[STATE_BYTES:]))


def encode_membership(membership: Membership) -> bytes:
    return codec.pack(codec.membership_document(membership))


def decode_membership(body: bytes) -> Membership:
    """Raises Damaged."""
    if not body:
        return _NO_MEMBERSHIP
    try:
        return codec.membership_from(codec.unpack(body))
    except Malformed as error:
        raise Damaged("kv meta membership", str(error)) from None


class Txn:
    """Reads, the same for View and Batch. All raise Damaged for a record that does not pass its checksum."""

    applied: int  # index of the last entry that this transaction sees as applied
    stamp: int  # ms; the clock of every read: a key is dead when 0 < expiry_ms <= stamp

    # --- what View and Batch provide ---------------------------------------------------------------------------------

    def head(self, db: int, name: bytes) -> Head | None:
        """Not filtered by expiry."""
        raise NotImplementedError

    def get(self, space: int, key: bytes) -> bytes | None:
        raise NotImplementedError

    def scan(
        self, space: int, start: bytes, stop: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """(key, body) with start <= key < stop in the order of keys; reverse: from the end. Values are checked.

        On a Batch the range is read in pages: records that are changed meanwhile behind the iterator's place are seen
        as they are then.
        """
        raise NotImplementedError

    def count(self, db: int) -> int:
        """Keys in db, dead but not yet removed ones included. O(1) on a View."""
        raise NotImplementedError

    def expiring(self, db: int) -> int:
        """Keys of db that have an expiry. O(1) on a View."""
        raise NotImplementedError

    def _keyspace(self, db: int) -> bytes:
        raise NotImplementedError

    # --- heads -------------------------------------------------------------------------------------------------------

    def heads(self, db: int, names: Sequence[bytes]) -> list[Head | None]:
        head = self.head
        return [head(db, name) for name in names]

    def scan_heads(self, db: int, from_hash: int = 0) -> Iterator[tuple[int, bytes, Head]]:
        """(48-bit hash, name, head) in hash order from `from_hash` on.

        SCAN's cursor is the hash to go on from; keys of equal hash must be returned together.
        """
        prefix = self._keyspace(db)
        start = prefix + from_hash.to_bytes(6, "big")
        for key, value in self._scan_values(HEADS, start, keys.after(prefix)):
            yield int.from_bytes(key[4:10], "big"), head_name(key, value), decode_head(key, value)

    def _scan_values(self, space: int, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """As scan(), values as stored."""
        raise NotImplementedError

    # --- elements ----------------------------------------------------------------------------------------------------

    def field(self, collection: int, name: bytes) -> bytes | None:
        """Hash fields, set members (value b''), sorted set members (value: codec.double_bytes(score))."""
        key = collection.to_bytes(8, "big") + blake2b(name, digest_size=6).digest() + keys.name_part(name)
        body = self.get(FIELDS, key)
        if body is None or len(name) <= SHORT_NAME_BYTES_MAX:
            return body
        return codec.split_long_name(FIELDS, key, body)[1]

    def fields(self, collection: int, names: Sequence[bytes]) -> list[bytes | None]:
        field = self.field
        return [field(collection, name) for name in names]

    def scan_fields(self, collection: int, from_hash: int = 0) -> Iterator[tuple[int, bytes, bytes]]:
        """(48-bit hash, name, value) in hash order from `from_hash` on. A seeded seek starts at a random hash."""
        prefix = collection.to_bytes(8, "big")
        for key, body in self.scan(FIELDS, prefix + from_hash.to_bytes(6, "big"), keys.after(prefix)):
            number = int.from_bytes(key[8:14], "big")
            if len(key) == keys.LONG_FIELD_KEY_BYTES:
                yield number, *codec.split_long_name(FIELDS, key, body)
            else:
                yield number, key[14:], body

    def item(self, collection: int, position: int) -> bytes | None:
        """Element of a list at a signed 64-bit position."""
        return self.get(ITEMS, keys.item(collection, position))

    def scan_items(self, collection: int, first: int, last: int, reverse: bool = False) -> Iterator[tuple[int, bytes]]:
        """(position, element) from `first` to `last`, both included."""
        start, stop = keys.item(collection, first), keys.item(collection, last) + b"\0"
        for key, body in self.scan(ITEMS, start, stop, reverse):
            yield keys.item_position(key), body

    def scan_scores(
        self,
        collection: int,
        low: float = float("-inf"),
        high: float = float("inf"),
        reverse: bool = False,
        member_from: bytes | None = None,
    ) -> Iterator[tuple[float, bytes]]:
        """(score, member) ordered by score, then member; low <= score <= high.

        `member_from`: forward, start at this member of score `low`; reverse, start below this member of score `high`.
        """
        prefix = collection.to_bytes(8, "big")
        start = prefix + keys.score_bytes(low)
        stop = keys.after(prefix + keys.score_bytes(high))
        if member_from is not None and reverse:
            stop = keys.score(collection, high, member_from)
        elif member_from is not None:
            start = keys.score(collection, low, member_from)
        for key, body in self.scan(SCORES, start, stop, reverse):
            if len(key) == keys.LONG_SCORE_KEY_BYTES:
                yield keys.score_value(key[8:16]), codec.split_long_name(SCORES, key, body)[0]
            else:
                yield keys.score_value(key[8:16]), key[16:]

    def get_many(self, space: int, wanted: Sequence[bytes]) -> list[bytes | None]:
        get = self.get
        return [get(space, key) for key in wanted]


def records_between(
    txn: Any, database: Any, start: bytes, stop: bytes | None, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    cursor = txn.cursor(database)
    if not reverse:
        if not cursor.set_range(start):
            return
        for key, value in cursor.iternext():
            if stop is not None and key >= stop:
                return
            yield key, value
        return
    found = cursor.last() if stop is None or not cursor.set_range(stop) else cursor.prev()
    if not found:
        return
    for key, value in cursor.iterprev():
        if key < start:
            return
        yield key, value
