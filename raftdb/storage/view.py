"""Read transactions of kv: a snapshot of the store for one thread.

Whoever has no time for long reads sets `on_large`: it is told of every value of more than LARGE_BYTES before it is
checked and decoded, and may raise. A value of 16 MiB takes about 20 ms, which no count of records tells.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from hashlib import blake2b
from types import TracebackType
from typing import TYPE_CHECKING, Final

import lmdb

from raftdb.errors import Damaged
from raftdb.storage import codec, keys
from raftdb.storage.checksum import RESIDUE, crc32c_extend
from raftdb.storage.codec import (
    HEADS,
    META,
    Head,
    decode_head,
)
from raftdb.storage.engine import Environment
from raftdb.storage.keys import SHORT_NAME_BYTES_MAX
from raftdb.storage.txn import (
    COUNTS,
    EXPIRING_AT,
    KEYS_AT,
    KEYSPACES_AT,
    STATE_BYTES,
    STATE_NAME,
    State,
    Txn,
    decode_membership,
    decode_state,
    encode_state,
    first_state,
    records_between,
)
from raftdb.types import Membership

if TYPE_CHECKING:
    from raftdb.storage.kv import KvStore

LARGE_BYTES: Final = 16 * 1024


def _never_mind(_size_bytes: int) -> None:
    """The on_large of who has time."""


class View(Txn):
    """A read transaction: `with kv.view() as view`. For one thread; not to be held longer than a few seconds."""

    __slots__ = ("_dbs", "_get", "_kv", "_state", "_txn", "applied", "on_large", "stamp")

    def __init__(self, kv: KvStore, environment: Environment) -> None:
        self._kv = kv
        self._dbs = environment.databases
        self._txn = txn = environment.reader()
        self._get = txn.get
        self.on_large: Callable[[int], None] = _never_mind
        try:
            self._state = state = self.get(META, STATE_NAME) or encode_state(first_state())
            self.applied, _, self.stamp = struct.unpack_from("<QQQ", state)
        except BaseException:
            txn.abort()
            raise

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._txn.abort()

    close = __exit__

    def state(self) -> State:
        return decode_state(self._state)

    def membership(self) -> Membership:
        return decode_membership(self._state[STATE_BYTES:])

    def _keyspace(self, db: int) -> bytes:
        at = KEYSPACES_AT + 4 * db
        return self._state[at : at + 4]

    def count(self, db: int) -> int:
        return int(COUNTS.unpack_from(self._state, KEYS_AT)[db])

    def expiring(self, db: int) -> int:
        return int(COUNTS.unpack_from(self._state, EXPIRING_AT)[db])

    def head(self, db: int, name: bytes) -> Head | None:
        at = KEYSPACES_AT + 4 * db
        key = self._state[at : at + 4] + blake2b(name, digest_size=6).digest()
        key += name if len(name) <= SHORT_NAME_BYTES_MAX else keys.name_part(name)
        try:
            value = self._get(key, None, self._dbs[HEADS])
            if value is None:
                return None
            if len(value) > LARGE_BYTES:
                self.on_large(len(value))
            return decode_head(key, value)
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None

    def get(self, space: int, key: bytes) -> bytes | None:
        try:
            value = self._get(key, None, self._dbs[space])
            if value is None:
                return None
            if len(value) > LARGE_BYTES:
                self.on_large(len(value))
            if crc32c_extend(codec.SALTS[space], key + value) != RESIDUE:
                raise codec.damaged(space, key)
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None
        return bytes(value[:-4])

    def scan(
        self, space: int, start: bytes, stop: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        salt = codec.SALTS[space]
        try:
            for key, value in records_between(self._txn, self._dbs[space], start, stop, reverse):
                if len(value) > LARGE_BYTES:
                    self.on_large(len(value))
                if crc32c_extend(salt, key + value) != RESIDUE:
                    raise codec.damaged(space, key)
                yield key, value[:-4]
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None

    def _scan_values(self, space: int, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        try:
            for key, value in records_between(self._txn, self._dbs[space], start, stop, False):
                if len(value) > LARGE_BYTES:
                    self.on_large(len(value))
                if crc32c_extend(codec.SALTS[space], key + value) != RESIDUE:
                    raise codec.damaged(space, key)
                yield key, value
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None
