"""Values of the kv environment, and the small documents (membership, snapshot) that log/meta and files hold.

Every value of LMDB, in kv and in log/meta, is

    value = body crc(4)          crc: CRC-32C, little-endian, over salt(space) key body

so a value found under another key, or in another space, does not pass. Since a CRC over data that ends with its own CRC
is a constant, the check is one call and one comparison.

    head body = type(1) form(1) expiry ms(8) version(8) [long name] content
    content   = the string's value                                     (type STRING)
              | collection(8) count(8) first(8) last(8)                (all other types)
    long name = length(4) name       present when the key has its greatest length (see keys)
    field     = [long name] value                       (of a sorted set's member: its score, a double of 8 bytes)
    score     = [long name]
    item      = element

    document = msgpack, arrays and scalars only, its shape checked field by field
"""

from __future__ import annotations

import struct
from typing import Any, Final, NamedTuple

import msgpack

from raftdb.errors import Damaged
from raftdb.storage.checksum import RESIDUE, crc32c, crc32c_extend
from raftdb.storage.keys import HEAD_PREFIX_BYTES, LONG_HEAD_KEY_BYTES, STRING, TYPES
from raftdb.types import HardState, Member, Membership, NodeRef, SnapshotMeta

HEADS: Final = 0
FIELDS: Final = 1
ITEMS: Final = 2
SCORES: Final = 3
EXPIRY: Final = 4
GARBAGE: Final = 5
META: Final = 6
LOG_META: Final = 7
SPACE_NAMES: Final = ("heads", "fields", "items", "scores", "expiry", "garbage", "meta", "log meta")
SALTS: Final = tuple(crc32c(f"raftdb {name}".encode()) for name in SPACE_NAMES)

U64_MAX: Final = (1 << 64) - 1
MEMBERS_MAX: Final = 1024
TEXT_BYTES_MAX: Final = 4096

_HEAD = struct.Struct("<BBQQ")
_COLLECTION = struct.Struct("<BBQQQQqq")
_CONTENT = struct.Struct("<QQqq")
_LENGTH = struct.Struct("<I")
_DOUBLE = struct.Struct("<d")
_HEAD_SALT = SALTS[HEADS]
HEAD_FIXED_BYTES: Final = _HEAD.size
CONTENT_BYTES: Final = _CONTENT.size


class Head(NamedTuple):
    """The head record of a key. A string lives in `value`; of other types `collection` names the records."""

    type: int  # keys.STRING LIST SET ZSET HASH
    expiry_ms: int  # absolute ms of Unix time; 0: never
    version: int  # index of the entry that changed it last (WATCH); Batch.put_head() sets it
    value: bytes = b""  # strings only
    collection: int = 0  # 0 for strings
    count: int = 0  # type: ignore[assignment]  # fields, members, elements
    first: int = 0  # lists: signed position of the first element
    last: int = 0  # lists: signed position of the last element; positions between may be empty
    form: int = 0  # belongs to the type's module (commands); 0..255


def seal(space: int, key: bytes, body: bytes) -> bytes:
    """The value that stores `body` under `key`."""
    return body + crc32c_extend(SALTS[space], key + body).to_bytes(4, "little")


def unseal(space: int, key: bytes, value: bytes) -> bytes:
    """The body of a value. Raises Damaged."""
    if crc32c_extend(SALTS[space], key + value) != RESIDUE or len(value) < 4:
        raise damaged(space, key)
    return value[:-4]


def damaged(space: int, key: bytes, what: str = "checksum does not match") -> Damaged:
    return Damaged(f"{SPACE_NAMES[space]} record {key[:40].hex()}", what)


def long_name(name: bytes) -> bytes:
    return _LENGTH.pack(len(name)) + name


def split_long_name(space: int, key: bytes, body: bytes) -> tuple[bytes, bytes]:
    """(whole name, rest of the body) of a record whose key has its greatest length. Raises Damaged."""
    if len(body) < 4:
        raise damaged(space, key, "no name where a long one must be")
    end = 4 + _LENGTH.unpack_from(body)[0]
    if end > len(body):
        raise damaged(space, key, "the name is longer than the record")
    return body[4:end], body[end:]


def encode_head(key: bytes, head: Head, name: bytes | None) -> bytes:
    """`name`: given only if it is a long one."""
    kind, expiry_ms, version, value, collection, count, first, last, form = head
    if kind != STRING:
        body = _COLLECTION.pack(kind, form, expiry_ms, version, collection, count, first, last)
        if name is not None:
            body = body[:HEAD_FIXED_BYTES] + long_name(name) + body[HEAD_FIXED_BYTES:]
    elif name is None:
        body = _HEAD.pack(kind, form, expiry_ms, version) + value
    else:
        body = _HEAD.pack(kind, form, expiry_ms, version) + long_name(name) + value
    return body + crc32c_extend(_HEAD_SALT, key + body).to_bytes(4, "little")


def string_head(version: int) -> bytes:
    """What stands before the value of a string that has no expiry and no long name."""
    return _HEAD.pack(STRING, 0, 0, version)


def expiry_of(value: bytes) -> int:
    """The expiry of a checked head value, ms; 0: none."""
    return int.from_bytes(value[2:10], "little")


def decode_head(key: bytes, value: bytes) -> Head:
    """Raises Damaged."""
    if crc32c_extend(_HEAD_SALT, key + value) != RESIDUE or len(value) < 22:
        raise damaged(HEADS, key)
    kind, form, expiry_ms, version = _HEAD.unpack_from(value)
    if len(key) == LONG_HEAD_KEY_BYTES:
        content = split_long_name(HEADS, key, value[HEAD_FIXED_BYTES:-4])[1]
    else:
        content = value[HEAD_FIXED_BYTES:-4]
    if kind == STRING:
        return Head(STRING, expiry_ms, version, content, 0, 0, 0, 0, form)
    if kind not in TYPES or len(content) != CONTENT_BYTES:
        raise damaged(HEADS, key, f"type {kind} with {len(content)} bytes")
    collection, count, first, last = _CONTENT.unpack(content)
    return Head(kind, expiry_ms, version, b"", collection, count, first, last, form)


def decode_content(body: bytes) -> Head:
    """The head of a body without a long name, whose length and type the caller has checked."""
    kind, form, expiry_ms, version = _HEAD.unpack_from(body)
    if kind == STRING:
        return Head(STRING, expiry_ms, version, body[HEAD_FIXED_BYTES:], 0, 0, 0, 0, form)
    collection, count, first, last = _CONTENT.unpack_from(body, HEAD_FIXED_BYTES)
    return Head(kind, expiry_ms, version, b"", collection, count, first, last, form)


def head_name(key: bytes, value: bytes) -> bytes:
    """The whole name of the key whose checked head value this is."""
    if len(key) == LONG_HEAD_KEY_BYTES:
        return split_long_name(HEADS, key, value[HEAD_FIXED_BYTES:-4])[0]
    return key[HEAD_PREFIX_BYTES:]


def double_bytes(number: float) -> bytes:
    """A sorted set's score as it stands in the member's record (exact, -0.0 kept)."""
    return _DOUBLE.pack(number)


def double_value(data: bytes) -> float:
    return float(_DOUBLE.unpack(data)[0])


# --- documents ------------------------------------------------------------------------------------------------------


class Malformed(ValueError):
    """A document does not have its shape. Callers turn it into Damaged with the place."""


def pack(document: Any) -> bytes:
    return bytes(msgpack.packb(document, use_bin_type=True))


def unpack(data: bytes, *, bytes_max: int = 1 << 20) -> Any:
    """Plain msgpack: no maps, no extension types, arrays of at most MEMBERS_MAX items. Raises Malformed."""
    if len(data) > bytes_max:
        raise Malformed(f"{len(data)} bytes, at most {bytes_max} are allowed")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            use_list=False,
            max_array_len=MEMBERS_MAX,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=TEXT_BYTES_MAX,
            max_bin_len=bytes_max,
        )
    except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise Malformed(f"not msgpack: {type(error).__name__}") from None


def membership_document(membership: Membership) -> Any:
    return membership.index, tuple(tuple(member) for member in membership.members)


def membership_from(document: Any) -> Membership:
    """Raises Malformed."""
    match document:
        case (int() as index, tuple() as rows) if 0 <= index <= U64_MAX:
            members = tuple(_member(row) for row in rows)
        case _:
            raise Malformed("not a membership")
    ids = [member.id for member in members]
    if ids != sorted(set(ids)):
        raise Malformed("members are not in the order of their ids")
    return Membership(index, members)


def _member(row: Any) -> Member:
    match row:
        case (str(), int() as incarnation, str(), str(), bool()) if 0 <= incarnation <= U64_MAX:
            return Member(*row)
    raise Malformed("not a member")


def hard_document(hard: HardState) -> Any:
    return hard.term, None if hard.vote is None else tuple(hard.vote)


def hard_from(document: Any) -> HardState:
    """Raises Malformed."""
    match document:
        case (int() as term, None) if 0 <= term <= U64_MAX:
            return HardState(term, None)
        case (int() as term, (str() as node_id, int() as incarnation)) if 0 <= term <= U64_MAX:
            return HardState(term, NodeRef(node_id, incarnation))
    raise Malformed("not a term and vote")


def snapshot_document(meta: SnapshotMeta | None) -> Any:
    if meta is None:
        return None
    return (*meta[:5], membership_document(meta.membership), meta.size_bytes, meta.digest)


def snapshot_from(document: Any) -> SnapshotMeta | None:
    """Raises Malformed."""
    match document:
        case None:
            return None
        case (str(), int(), int(), int(), int(), membership, int(), bytes() as digest) if len(digest) == 32:
            numbers = (*document[1:5], document[6])
            if all(0 <= number <= U64_MAX for number in numbers):
                name, index, term, chain, stamp = document[:5]
                size = document[6]
                return SnapshotMeta(name, index, term, chain, stamp, membership_from(membership), size, digest)
    raise Malformed("not a snapshot's description")
