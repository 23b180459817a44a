"""Snapshot files: everything that clients can see, as of one log index, in one checked file.

    file   = magic(8) frame(H) frame(C|D)* frame(F)
    frame  = length(4) crc(4) kind(1) bytes            crc: CRC-32C over kind and bytes; length of the bytes, <= 1 MiB
    H      header, a document (codec.py)                C, D  data; a block is the bytes of C C ... D
    F      footer, a document: (rows, keys, digest)     digest: BLAKE2b-256 over everything before the footer's frame
    block  = rows in the header's codec: msgpack arrays one after the other, or one pickle of a list of rows
    row    = [1, database, name, head, name, head, ...]                strings
           | [2, database, name, head]                                 another key; the rows that follow belong to it
           | [3, name, value, ...]    fields, members
           | [4, position, value, ...]    elements of a list
           | [5, score, member, ...]    order of a sorted set
    head   = head body of codec.py without the long name

Keys stand in the order of keyspace number, hash, name. EXPIRY and counts are made anew from the heads when a file
is loaded, and compared with the header's counts.

A snapshot is *durable* when its file is synced, was read back from the disk with the right digest, has its name, and
the directory is synced; until then it has a temporary name that every start sweeps away. Nothing else may let the log
be trimmed.

It is written by a child process (`python -m raftdb.storage.snapshot`), executed, not forked: it copies kv with one
read transaction at disk speed and encodes from its private copy, so that no transaction stays open for long and no
Python of the encoder holds the node's interpreter. The parent gives kv's path, the target and two names; index,
term, chain, stamp and membership come from the copy, since kv holds them in the same transaction as the data.

Whatever is read is hostile until checked: every length has a bound, rows are checked field by field, a block has at
most BLOCK_BYTES_MAX bytes. Weak points: the CRCs and the digest find accidents; who can write files can forge them.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import msgpack

from raftdb.errors import Damaged, DiskFull, RaftdbError, StorageError, UsageError
from raftdb.storage import codec, keys, pickled
from raftdb.storage.checksum import crc32c, crc32c_extend
from raftdb.storage.codec import FIELDS, HEADS, ITEMS, Head, Malformed
from raftdb.storage.engine import guarded
from raftdb.storage.files import drop_page_cache, sync_directory
from raftdb.storage.keys import DATABASES, STRING
from raftdb.storage.kv import KvStore, View, collection_spaces
from raftdb.types import Membership, SnapshotMeta

MAGIC: Final = b"RAFTDBS\x01"
CHUNK_BYTES_MAX: Final = 1 << 20
BLOCK_BYTES_TARGET: Final = 256 << 10
BLOCK_BYTES_MAX: Final = 80 << 20
ROW_ITEMS_MAX: Final = 1024
ROW_BYTES_TARGET: Final = 32 << 10
CODECS: Final = ("msgpack", "pickle")
FOOTER_BYTES_MAX: Final = 256

#: Told how many bytes of a file have been read.
Progress = Callable[[int], object]

_FRAME = struct.Struct("<IIB")
_HEADER_KIND, _MORE, _LAST, _FOOTER_KIND = b"HCDF"
_STRINGS, _KEY, _FIELD_ROW, _ITEM_ROW, _SCORE_ROW = 1, 2, 3, 4, 5
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+=,\[\]-]{0,199}")


class Header(NamedTuple):
    """What stands at the beginning of a file."""

    codec: str  # one of CODECS
    cluster_id: str
    node_id: str
    created_ms: int
    index: int  # type: ignore[assignment]
    term: int
    chain: int
    stamp: int
    kv_digest: bytes  # 16 bytes: KvStore.digest
    next_collection: int
    next_keyspace: int
    keyspaces: bytes  # 16 x 4
    keys: tuple[int, ...]  # per database
    expiring: tuple[int, ...]
    membership: Membership


class Row(NamedTuple):
    """One record of a file, decoded, for tools. `head` for the key itself; else `key` and `value` of one element."""

    db: int
    name: bytes
    head: Head | None
    kind: str  # "key", "field", "item", "score"
    key: Any = None
    value: Any = None


# --- names ----------------------------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """`name`, if it is a plain file name that may stand in the directory of snapshots. Raises UsageError."""
    if not _PLAIN_NAME.fullmatch(name) or ".." in name or name.endswith((".part", ".tmp")):
        raise UsageError(f"{name[:80]!r} is not a plain file name")
    return name


def file_name(node_id: str, unix_time_s: int, index: int) -> str:
    """raft_<node>_<unix time>_<index>.dat; what a file name cannot have in the node's id becomes `_`."""
    node = re.sub(r"[^A-Za-z0-9_.:-]|\.\.", "_", node_id)[:100]
    return plain_name(f"raft_{node}_{unix_time_s}_{index}.dat")


# --- writing --------------------------------------------------------------------------------------------------------


class _FrameWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = blake2b(digest_size=32)
        self.size = 0
        self._raw(MAGIC)

    def _raw(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def frame(self, kind: int, data: bytes) -> None:
        crc = crc32c_extend(crc32c(bytes((kind,))), data)
        self._raw(_FRAME.pack(len(data), crc, kind) + data)

    def block(self, data: bytes) -> None:
        for start in range(0, len(data) - CHUNK_BYTES_MAX, CHUNK_BYTES_MAX):
            self.frame(_MORE, data[start : start + CHUNK_BYTES_MAX])
        rest = (len(data) - 1) // CHUNK_BYTES_MAX * CHUNK_BYTES_MAX
        self.frame(_LAST, data[rest:])

    def footer(self, rows: int, key_count: int) -> bytes:
        digest = self._digest.digest()
        self.frame(_FOOTER_KIND, codec.pack((rows, key_count, digest)))
        return digest


def write(view: View, target: Path, *, node_id: str, cluster_id: str, codec_name: str = "msgpack") -> SnapshotMeta:
    """Write a durable snapshot of what `view` sees to `target`.

    Raises DiskFull, StorageError, Damaged (in kv); no file is left then.
    """
    if codec_name not in CODECS:
        raise UsageError(f"{codec_name!r} is not a codec of snapshots: {' or '.join(CODECS)}")
    state, membership = view.state(), view.membership()
    created_ms = int(time.time() * 1000)
    header = Header(
        *(codec_name, cluster_id, node_id, created_ms, state.applied, state.term, state.chain, state.stamp),
        *(state.digest, state.next_collection, state.next_keyspace, b"".join(state.keyspaces)),
        *(state.keys, state.expiring, membership),
    )
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with guarded(target):
            with open(temporary, "wb", opener=_private) as file:
                size, digest = _write_file(file, header, view)
                file.flush()
                os.fsync(file.fileno())
            drop_page_cache(temporary)
            if file_digest(temporary) != digest:
                raise StorageError(f"{target}: what was written does not read back")
            os.replace(temporary, target)
            sync_directory(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return SnapshotMeta(target.name, header.index, header.term, header.chain, header.stamp, membership, size, digest)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _write_file(file: BinaryIO, header: Header, view: View) -> tuple[int, bytes]:
    out = _FrameWriter(file)
    out.frame(_HEADER_KIND, codec.pack((*header[:-1], codec.membership_document(header.membership))))
    rows = 0
    for block, count in _blocks(_rows(view), header.codec):
        out.block(block)
        rows += count
    digest = out.footer(rows, sum(header.keys))
    return out.size, digest


def _blocks(rows: Iterable[tuple[list[Any], int]], codec_name: str) -> Iterator[tuple[bytes, int]]:
    """(bytes of a block, its rows)."""
    pack = msgpack.Packer(use_bin_type=True).pack
    block: list[Any] = []
    size = 0
    for row, row_bytes in rows:
        block.append(pack(row) if codec_name == "msgpack" else row)
        size += row_bytes
        if size >= BLOCK_BYTES_TARGET:
            yield _join(block, codec_name), len(block)
            block, size = [], 0
    if block:
        yield _join(block, codec_name), len(block)


def _join(block: list[Any], codec_name: str) -> bytes:
    return b"".join(block) if codec_name == "msgpack" else pickled.dumps(block)


def _rows(view: View) -> Iterator[tuple[list[Any], int]]:
    """(row, its bytes, about), keys in the order of their keys in HEADS."""
    keyspaces = view.state().keyspaces
    for db in sorted(range(DATABASES), key=lambda number: keyspaces[number]):
        strings: list[Any] = [_STRINGS, db]
        size = 0
        for name, body in _heads(view, keyspaces[db]):
            if body[0] != STRING:
                if len(strings) > 2:
                    yield strings, size
                    strings, size = [_STRINGS, db], 0
                yield [_KEY, db, name, body], len(name) + 64
                yield from _element_rows(view, codec.decode_content(body))
                continue
            strings += (name, body)
            size += len(name) + len(body) + 8
            if size > ROW_BYTES_TARGET or len(strings) >= ROW_ITEMS_MAX - 2:
                yield strings, size
                strings, size = [_STRINGS, db], 0
        if len(strings) > 2:
            yield strings, size


def _heads(view: View, keyspace: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, head body without the long name)."""
    for key, body in view.scan(HEADS, keyspace, keys.after(keyspace)):
        if len(key) < keys.LONG_HEAD_KEY_BYTES:
            yield key[keys.HEAD_PREFIX_BYTES :], body
        else:
            name, content = codec.split_long_name(HEADS, key, body[codec.HEAD_FIXED_BYTES :])
            yield name, body[: codec.HEAD_FIXED_BYTES] + content


def _element_rows(view: View, head: Head) -> Iterator[tuple[list[Any], int]]:
    low, high = -(1 << 63), (1 << 63) - 1
    for space in collection_spaces(head.type):
        if space == FIELDS:
            found: Iterable[tuple[Any, bytes]] = (row[1:] for row in view.scan_fields(head.collection))
            yield from _packed(_FIELD_ROW, found)
        elif space == ITEMS:
            yield from _packed(_ITEM_ROW, view.scan_items(head.collection, low, high))
        else:
            yield from _packed(_SCORE_ROW, view.scan_scores(head.collection))


def _packed(kind: int, found: Iterable[tuple[Any, bytes]]) -> Iterator[tuple[list[Any], int]]:
    row: list[Any] = [kind]
    size = 0
    for key, value in found:
        row += (key, value)
        size += len(value) + (len(key) if kind == _FIELD_ROW else 8) + 8
        if size > ROW_BYTES_TARGET or len(row) >= ROW_ITEMS_MAX - 2:
            yield row, size
            row, size = [kind], 0
    if len(row) > 1:
        yield row, size


# --- reading --------------------------------------------------------------------------------------------------------


class Reader:
    """Streams a file: `with Reader(path) as reader: for row in reader.walk(): ...`

    Everything raises Damaged with the place, the bytes of the frame in which it lies; UsageError for what is not a
    snapshot of raftdb, a newer version, or a codec that is not in `codecs`; OSError becomes StorageError.
    `progress` is called with the bytes read so far, once per frame.
    """

    def __init__(self, path: Path, codecs: tuple[str, ...] = CODECS, progress: Progress = lambda _: None) -> None:
        self._path = path
        self._place = 0
        self._start = 0  # of the frame that is being read
        self._progress = progress
        self._digest = blake2b(digest_size=32)
        self.rows = 0
        self.digest = b""  # after the footer was met
        self.size = 0
        with guarded(path):
            self._file = open(path, "rb")  # noqa: SIM115 (closed by close())
        try:
            self.header = self._read_header(codecs)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def _damaged(self, what: str) -> Damaged:
        return Damaged(f"{self._path.name}, bytes {self._start} to {self._place}", what)

    def _read_header(self, codecs: tuple[str, ...]) -> Header:
        magic = self._read(len(MAGIC))
        if magic[:7] != MAGIC[:7]:
            raise UsageError(f"{self._path} is not a snapshot of raftdb")
        if magic != MAGIC:
            raise UsageError(f"{self._path} has snapshot format {magic[7]}, this program knows {MAGIC[7]}")
        self._digest.update(magic)
        kind, data = self._frame(CHUNK_BYTES_MAX)
        if kind != _HEADER_KIND:
            raise self._damaged("the header is missing")
        header = self._header_from(data)
        if header.codec not in codecs:
            raise UsageError(f"{self._path}: a snapshot in the codec {header.codec!r} is not accepted here")
        return header

    def _header_from(self, data: bytes) -> Header:
        try:
            document = codec.unpack(data)
            if type(document) is not tuple or len(document) != len(Header._fields):
                raise Malformed("not a header")
            header = Header._make((*document[:-1], codec.membership_from(document[-1])))
        except Malformed as error:
            raise self._damaged(str(error)) from None
        numbers = (*header[3:8], *header[9:11])
        texts = header[:3]
        tables = header.keys, header.expiring
        if (
            not all(type(number) is int and 0 <= number <= codec.U64_MAX for number in numbers)
            or not all(type(text) is str for text in texts)
            or not all(type(table) is tuple and len(table) == DATABASES for table in tables)
            or not all(type(number) is int and 0 <= number <= codec.U64_MAX for table in tables for number in table)
            or not (type(header.kv_digest) is bytes and len(header.kv_digest) == 16)
            or not (type(header.keyspaces) is bytes and len(header.keyspaces) == 4 * DATABASES)
            or len(set(_split(header.keyspaces))) != DATABASES
            or header.next_keyspace >> 32
        ):
            raise self._damaged("the header does not have its shape")
        return header

    def _read(self, size: int) -> bytes:
        with guarded(self._path):
            data = self._file.read(size)
        self._place += len(data)
        if len(data) != size:
            raise self._damaged("the file ends too early")
        return data

    def _frame(self, bytes_max: int) -> tuple[int, bytes]:
        self._start = self._place
        self._progress(self._place)
        start = self._read(_FRAME.size)
        length, crc, kind = _FRAME.unpack(start)
        if length > bytes_max:
            raise self._damaged(f"a frame of {length} bytes")
        data = self._read(length)
        if crc32c_extend(crc32c(bytes((kind,))), data) != crc:
            raise self._damaged("checksum does not match")
        if kind == _FOOTER_KIND:
            self.digest = self._digest.digest()
        else:
            self._digest.update(start)
            self._digest.update(data)
        return kind, data

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Data frames, checked; ends after the footer was checked as well."""
        while True:
            kind, data = self._frame(CHUNK_BYTES_MAX)
            if kind == _FOOTER_KIND:
                self._check_footer(data)
                return
            if kind not in (_MORE, _LAST):
                raise self._damaged(f"a frame of kind {kind}")
            yield kind, data

    def _check_footer(self, data: bytes) -> None:
        try:
            document = codec.unpack(data, bytes_max=FOOTER_BYTES_MAX)
        except Malformed as error:
            raise self._damaged(str(error)) from None
        match document:
            case (int() as rows, int() as key_count, bytes() as digest):
                pass
            case _:
                raise self._damaged("the footer does not have its shape")
        if digest != self.digest:
            raise self._damaged("the digest of the file does not match")
        if key_count != sum(self.header.keys):
            raise self._damaged("header and footer count keys differently")
        if self._file.read(1):
            self._start = self._place
            raise self._damaged("there is something behind the footer")
        self.size = self._place
        self.rows_expected = rows

    def blocks(self) -> Iterator[bytes]:
        parts: list[bytes] = []
        size = 0
        for kind, data in self.frames():
            size += len(data)
            if size > BLOCK_BYTES_MAX:
                raise self._damaged(f"a block of more than {BLOCK_BYTES_MAX} bytes")
            parts.append(data)
            if kind == _LAST:
                yield b"".join(parts)
                parts, size = [], 0
        if parts:
            raise self._damaged("the last block is not complete")

    def raw_rows(self) -> Iterator[list[Any]]:
        """Rows, each checked for its shape; ends after footer and row count were checked."""
        decode = self._msgpack_rows if self.header.codec == "msgpack" else self._pickle_rows
        for block in self.blocks():
            for row in decode(block):
                self._check_row(row)
                self.rows += 1
                yield row
        if self.rows != self.rows_expected:
            raise self._damaged(f"{self.rows} rows, the footer says {self.rows_expected}")

    def _msgpack_rows(self, block: bytes) -> Iterator[Any]:
        unpacker = msgpack.Unpacker(
            raw=False,
            max_buffer_size=BLOCK_BYTES_MAX,
            max_array_len=ROW_ITEMS_MAX,
            max_map_len=0,
            max_ext_len=0,
            max_str_len=0,
            max_bin_len=BLOCK_BYTES_MAX,
        )
        try:
            unpacker.feed(block)
            yield from unpacker
        except (ValueError, msgpack.exceptions.UnpackException, RecursionError) as error:
            raise self._damaged(f"not msgpack: {type(error).__name__}") from None
        if unpacker.tell() != len(block):
            raise self._damaged("a block ends inside a row")

    def _pickle_rows(self, block: bytes) -> Iterator[Any]:
        try:
            rows = pickled.loads(block)
        except pickled.NotPlain as error:
            raise self._damaged(str(error)) from None
        if type(rows) is not list:
            raise self._damaged("a block is not a list of rows")
        yield from rows

    def _check_row(self, row: Any) -> None:
        if type(row) is not list or len(row) < 3 or len(row) > ROW_ITEMS_MAX or type(row[0]) is not int:
            raise self._damaged("a row does not have its shape")
        kind = row[0]
        if kind in (_STRINGS, _KEY):
            good = type(row[1]) is int and 0 <= row[1] < DATABASES and len(row) % 2 == 0 and len(row) >= 4
            good = good and all(type(item) is bytes for item in row[2:]) and (kind == _STRINGS or len(row) == 4)
            good = good and all(_is_head(body, kind) for body in row[3::2])
        else:
            key_type = {_FIELD_ROW: bytes, _ITEM_ROW: int, _SCORE_ROW: float}.get(kind)
            good = key_type is not None and len(row) % 2 == 1
            good = good and all(type(item) is key_type for item in row[1::2])
            good = good and all(type(item) is bytes for item in row[2::2])
            good = good and (kind != _ITEM_ROW or all(-(1 << 63) <= item < 1 << 63 for item in row[1::2]))
            good = good and (kind != _SCORE_ROW or all(item == item for item in row[1::2]))
        if not good:
            raise self._damaged("a row does not have its shape")

    def walk(self) -> Iterator[Row]:
        """Every key and element, decoded."""
        db, name = 0, b""
        for row in self.raw_rows():
            kind = row[0]
            if kind in (_STRINGS, _KEY):
                db = row[1]
                for name, body in zip(row[2::2], row[3::2], strict=True):
                    yield Row(db, name, codec.decode_content(body), "key")
            else:
                text = ("field", "item", "score")[kind - _FIELD_ROW]
                for key, value in zip(row[1::2], row[2::2], strict=True):
                    yield Row(db, name, None, text, key, value)

    def meta(self) -> SnapshotMeta:
        """After everything was read."""
        header = self.header
        return SnapshotMeta(
            *(self._path.name, header.index, header.term, header.chain, header.stamp, header.membership),
            *(self.size, self.digest),
        )


def _is_head(body: bytes, kind: int) -> bool:
    if len(body) < codec.HEAD_FIXED_BYTES:
        return False
    if kind == _STRINGS:
        return body[0] == STRING
    return body[0] != STRING and body[0] in keys.TYPES and len(body) == codec.HEAD_FIXED_BYTES + codec.CONTENT_BYTES


def _split(keyspaces: bytes) -> tuple[bytes, ...]:
    return tuple(keyspaces[at : at + 4] for at in range(0, len(keyspaces), 4))


def read_header(path: Path) -> Header:
    """Raises Damaged, UsageError, StorageError."""
    with Reader(path) as reader:
        return reader.header


def file_digest(path: Path, codecs: tuple[str, ...] = CODECS) -> bytes:
    """Check every frame and the digest of a file, and return the digest. Raises as Reader does."""
    with Reader(path, codecs) as reader:
        for _ in reader.frames():
            pass
        return reader.digest


def check_file(path: Path, codecs: tuple[str, ...] = CODECS, progress: Progress = lambda _: None) -> SnapshotMeta:
    """Read a whole file: every CRC, the digest, every row. Raises as Reader does."""
    with Reader(path, codecs, progress) as reader:
        for _ in reader.raw_rows():
            pass
        return reader.meta()


def check_received(path: Path) -> bytes:
    """check_file() for what a peer has sent: msgpack only. Returns the digest."""
    return check_file(path, ("msgpack",)).digest


# --- loading --------------------------------------------------------------------------------------------------------


def load(
    path: Path,
    kv_path: Path,
    *,
    map_size_bytes: int | None = None,
    membership: Membership | None = None,
    progress: Progress = lambda _: None,
) -> SnapshotMeta:
    """Build a new kv environment at `kv_path`, which must not exist, from a file; synced when this returns.

    `membership`: in place of the file's. Raises Damaged, UsageError, DiskFull, StorageError; nothing is left at
    kv_path then.
    """
    from raftdb.storage.loader import Loader

    if kv_path.exists():
        raise UsageError(f"{kv_path} is there already")
    try:
        with Reader(path, progress=progress) as reader:
            loader = Loader(kv_path, reader.header, map_size_bytes)
            try:
                for row in reader.raw_rows():
                    loader.add(row)
                loader.finish(reader.header.membership if membership is None else membership)
            finally:
                loader.close()
            return reader.meta()
    except BaseException:
        shutil.rmtree(kv_path, ignore_errors=True)
        raise


# --- the child process ----------------------------------------------------------------------------------------------


def child_command(kv_path: Path, target: Path, *, node_id: str, cluster_id: str, codec: str = "msgpack") -> list[str]:
    """argv of the process that writes a durable snapshot of kv. It prints one JSON line, see child_result()."""
    return [
        *(sys.executable, "-m", "raftdb.storage.snapshot"),
        *(os.fspath(kv_path), os.fspath(target), node_id, cluster_id, codec),
    ]


def child_result(stdout: bytes) -> SnapshotMeta:
    """What the child has written. Raises DiskFull, StorageError with the child's reason."""
    try:
        answer = json.loads(stdout)
        if "error" in answer:
            text = str(answer["error"])
            raise DiskFull(text) if answer["kind"] == "DiskFull" else StorageError(text)
        fields = answer["snapshot"]
        members = codec.membership_from((fields[5][0], tuple(tuple(row) for row in fields[5][1])))
        meta = codec.snapshot_from(
            (*fields[:5], codec.membership_document(members), fields[6], bytes.fromhex(fields[7]))
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StorageError(f"the snapshot process gave no answer ({type(error).__name__})") from None
    if meta is None:
        raise StorageError("the snapshot process gave no answer")
    return meta


def child(kv_path: Path, target: Path, node_id: str, cluster_id: str, codec_name: str) -> SnapshotMeta:
    """The work of the child: private copy, encode, sync, read back, rename."""
    private = target.with_name(f".{target.name}.copy")
    shutil.rmtree(private, ignore_errors=True)
    with guarded(target):
        private.mkdir(mode=0o700)
    try:
        source = KvStore.open(kv_path, None, read_only=True)
        try:
            source.copy(private)
        finally:
            source.close(clean=False)
        copy = KvStore.open(private, None, read_only=True, copied=True)
        try:
            with copy.view() as view:
                return write(view, target, node_id=node_id, cluster_id=cluster_id, codec_name=codec_name)
        finally:
            copy.close(clean=False)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def main(arguments: list[str]) -> int:
    """Entry of the child process: kv path, target, node id, cluster id, codec."""
    try:
        kv_path, target, node_id, cluster_id, codec_name = arguments
        meta = child(Path(kv_path), Path(target), node_id, cluster_id, codec_name)
    except RaftdbError as error:
        print(json.dumps({"error": str(error), "kind": type(error).__name__}))
        return 1
    except (OSError, MemoryError, ValueError) as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}", "kind": "StorageError"}))
        return 1
    document = list(codec.snapshot_document(meta))
    print(json.dumps({"snapshot": [*document[:7], meta.digest.hex()]}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
