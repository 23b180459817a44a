"""Keys of the kv environment: how a name, a field, a position, a score becomes bytes that LMDB orders.

    HEADS    keyspace(4) hash(6) name           one per key of a database
    FIELDS   collection(8) hash(6) name         fields of hashes, members of sets and sorted sets
    ITEMS    collection(8) position(8)          elements of lists; a signed position, stored plus 2**63
    SCORES   collection(8) score(8) name        members of sorted sets in their order
    EXPIRY   keyspace(4) time ms(8) hash(6) name
    GARBAGE  b"c" collection(8)                 a dropped collection
             b"k" keyspace(4)                   a flushed database
    META     ASCII names

All integers are big-endian, so that bytes order as numbers do. A *keyspace* is what a database (SELECT 0-15) is made
of: FLUSHDB gives the database a new keyspace number and leaves the old one to be reclaimed; SWAPDB exchanges two
numbers. A *collection* is the number that a head record points to.

hash = BLAKE2b of the name with a digest of 48 bits. It spreads keys evenly, so that a random seek draws a random key
and a SCAN cursor is a number that fits the doubles of JavaScript clients.

LMDB keys hold at most 511 bytes. A name of more than 480 bytes is represented by 481 bytes: a BLAKE2b digest of
256 bits, then its first 449 bytes; under SCORES first the 449 bytes, then the digest, so that members of equal score
stay ordered by their first 449 bytes. Short names never have 481 bytes, so the two cannot be confused. The whole of a
long name stands in the value (see codec).
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final

STRING: Final = 1
LIST: Final = 2
SET: Final = 3
ZSET: Final = 4
HASH: Final = 5
TYPES: Final = {STRING: "string", LIST: "list", SET: "set", ZSET: "zset", HASH: "hash"}

DATABASES: Final = 16
HASH_BITS: Final = 48
HASH_MAX: Final = (1 << HASH_BITS) - 1
SHORT_NAME_BYTES_MAX: Final = 480
LONG_PART_BYTES: Final = SHORT_NAME_BYTES_MAX + 1
_DIGEST_BYTES: Final = 32
_START_BYTES: Final = LONG_PART_BYTES - _DIGEST_BYTES

HEAD_PREFIX_BYTES: Final = 4 + 6
FIELD_PREFIX_BYTES: Final = 8 + 6
SCORE_PREFIX_BYTES: Final = 8 + 8
EXPIRY_PREFIX_BYTES: Final = 4 + 8 + 6
LONG_HEAD_KEY_BYTES: Final = HEAD_PREFIX_BYTES + LONG_PART_BYTES
LONG_FIELD_KEY_BYTES: Final = FIELD_PREFIX_BYTES + LONG_PART_BYTES
LONG_SCORE_KEY_BYTES: Final = SCORE_PREFIX_BYTES + LONG_PART_BYTES

_DOUBLE = struct.Struct(">d")
_SIGN: Final = 1 << 63
_ALL: Final = (1 << 64) - 1


def hash_bytes(name: bytes) -> bytes:
    """The 48-bit hash of a name, as it stands in keys."""
    return blake2b(name, digest_size=6).digest()


def hash48(name: bytes) -> int:
    """The 48-bit hash of a name, as SCAN cursors show it."""
    return int.from_bytes(blake2b(name, digest_size=6).digest(), "big")


def name_part(name: bytes) -> bytes:
    """The bytes that represent a name in HEADS, FIELDS and EXPIRY."""
    if len(name) <= SHORT_NAME_BYTES_MAX:
        return name
    return blake2b(name, digest_size=_DIGEST_BYTES).digest() + name[:_START_BYTES]


def head(keyspace: bytes, name: bytes) -> bytes:
    """`keyspace`: its four bytes."""
    return keyspace + blake2b(name, digest_size=6).digest() + name_part(name)


def field(collection: int, name: bytes) -> bytes:
    return collection.to_bytes(8, "big") + blake2b(name, digest_size=6).digest() + name_part(name)


def item(collection: int, position: int) -> bytes:
    """`position`: -2**63 <= position < 2**63."""
    return collection.to_bytes(8, "big") + (position + _SIGN).to_bytes(8, "big")


def item_position(key: bytes) -> int:
    return int.from_bytes(key[8:16], "big") - _SIGN


def score(collection: int, value: float, member: bytes) -> bytes:
    return collection.to_bytes(8, "big") + score_bytes(value) + member_part(member)


def member_part(member: bytes) -> bytes:
    """The bytes that represent a member in SCORES: ordered by the member's first 449 bytes."""
    if len(member) <= SHORT_NAME_BYTES_MAX:
        return member
    return member[:_START_BYTES] + blake2b(member, digest_size=_DIGEST_BYTES).digest()


def score_bytes(value: float) -> bytes:
    """A double as 8 bytes that order as the doubles do; -0.0 and 0.0 are equal. NaN is not a score."""
    if value == 0:
        return b"\x80\0\0\0\0\0\0\0"
    number = int.from_bytes(_DOUBLE.pack(value), "big")
    number = number ^ _ALL if number & _SIGN else number | _SIGN
    return number.to_bytes(8, "big")


def score_value(data: bytes) -> float:
    """Inverse of score_bytes()."""
    number = int.from_bytes(data, "big")
    number = number & ~_SIGN if number & _SIGN else number ^ _ALL
    return float(_DOUBLE.unpack(number.to_bytes(8, "big"))[0])


def expiry(head_key: bytes, expiry_ms: int) -> bytes:
    """EXPIRY's key of the head at `head_key`."""
    return head_key[:4] + expiry_ms.to_bytes(8, "big") + head_key[4:]


def expiry_head(key: bytes) -> bytes:
    """HEADS' key of an EXPIRY key."""
    return key[:4] + key[12:]


def expiry_time(key: bytes) -> int:
    return int.from_bytes(key[4:12], "big")


def after(prefix: bytes) -> bytes | None:
    """The first key behind all keys that start with `prefix`; None: there is none."""
    number = int.from_bytes(prefix, "big") + 1
    if number >> (8 * len(prefix)):
        return None
    return number.to_bytes(len(prefix), "big")


def garbage_collection(collection: int) -> bytes:
    return b"c" + collection.to_bytes(8, "big")


def garbage_keyspace(keyspace: bytes) -> bytes:
    return b"k" + keyspace
