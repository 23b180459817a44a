"""Records of the log: one entry each, under its index.

    record  = version(1) kind(1) zero(2) length(4) crc(4) term(8) stamp(8) seed(8) chain(8) payload
    crc     = CRC-32C over index(8) and the record without its crc field
    length  = bytes of the payload

All integers are little-endian, the header has 44 bytes. The CRC also covers the index, which is the record's key, so
that a record that has come under another key does not pass. `chain` links the entry to the one before
(checksum.chain_of); it is an assertion and never decides anything: log matching stays (index, term).

Weak points: a CRC finds accidents, not forgers; the length is checked before the CRC, so a damaged length is reported
as such.
"""

from __future__ import annotations

import struct
from typing import Final

from raftdb.errors import EntryDamaged
from raftdb.storage.checksum import crc32c, crc32c_extend
from raftdb.types import Entry

VERSION: Final = 1
PAYLOAD_BYTES_MAX: Final = 65 << 20  # an entry holds 64 MiB of commands and a little around them
_BEFORE = struct.Struct("<BBHI")
_AFTER = struct.Struct("<QQQQ")
_HEADER = struct.Struct("<BBHIIQQQQ")
HEADER_BYTES: Final = _HEADER.size


def key(index: int) -> bytes:
    return index.to_bytes(8, "big")


def index_of(record_key: bytes) -> int:
    return int.from_bytes(record_key, "big")


def encode(entry: Entry) -> bytes:
    index, term, kind, stamp, seed, payload, chain = entry
    before = _BEFORE.pack(VERSION, kind, 0, len(payload))
    after = _AFTER.pack(term, stamp, seed, chain)
    crc = crc32c_extend(crc32c(index.to_bytes(8, "big") + before + after), payload)
    return b"".join((before, crc.to_bytes(4, "little"), after, payload))


def decode(index: int, record: bytes) -> Entry:
    """Raises EntryDamaged."""
    if len(record) < HEADER_BYTES:
        raise EntryDamaged(index, f"the record has only {len(record)} bytes")
    version, kind, zero, length, crc, term, stamp, seed, chain = _HEADER.unpack_from(record)
    if length != len(record) - HEADER_BYTES:
        raise EntryDamaged(index, f"the header says {length} bytes of payload, {len(record) - HEADER_BYTES} are there")
    payload = record[HEADER_BYTES:]
    if crc32c_extend(crc32c(index.to_bytes(8, "big") + record[:8] + record[12:HEADER_BYTES]), payload) != crc:
        raise EntryDamaged(index, "checksum does not match")
    if version != VERSION or zero:
        raise EntryDamaged(index, f"record version {version} is not known")
    return Entry(index, term, kind, stamp, seed, payload, chain)
