"""The write transaction of kv: what commands write, kept in dicts over LMDB until it commits or a range is read.

    handler -> overlay (decoded, per space) -> encoded at the end of the entry -> LMDB at flush -> commit

Rollback of one command: an undo list of (space, key, former overlay value, was it changed by this entry before). A
flush in the middle of a command first replaces "not in the overlay" in that list by what LMDB holds, so undoing goes
through the overlay again. Counts of keys and the expiry index are derived from heads at flush, by comparison with the
head that LMDB holds; so they need no undoing.

Digest: after each entry that changed something or folded an outcome in,

    digest = BLAKE2b-128(digest, index,
                         for each space and changed key in a fixed order: CRC of the new value, or ~CRC of a
                         deleted key,
                         length and bytes of each folded outcome)

Memory is bounded in bytes, too. Values of more than LARGE_BYTES are counted: those that are only cached are forgotten
beyond HELD_BYTES_MAX, those that wait to be written are flushed at the next savepoint. LMDB keeps what a transaction
writes in memory, so an entry may write ENTRY_LARGE_BYTES_MAX of large values; a command that goes beyond fails, on
every replica alike. (Forty bytes of SETRANGE make a value of 64 MiB: without a bound one entry could end every node,
and end it again at each restart.)

The digest does not depend on how entries were grouped into batches, nor on reclaiming. `kv.state_digest()` is the
other one: over all that a client can see, from a full scan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from hashlib import blake2b
from heapq import merge
from itertools import islice
from operator import add, itemgetter
from typing import TYPE_CHECKING, Any, Final

import lmdb

from raftdb.errors import Bug, CommandError, Damaged, DiskFull
from raftdb.storage import codec, keys
from raftdb.storage.checksum import RESIDUE, crc32c, crc32c_extend
from raftdb.storage.codec import (
    EXPIRY,
    FIELDS,
    GARBAGE,
    HEADS,
    ITEMS,
    META,
    SCORES,
    Head,
    decode_head,
    encode_head,
    head_name,
)
from raftdb.storage.engine import Environment
from raftdb.storage.keys import DATABASES, LIST, SHORT_NAME_BYTES_MAX, STRING, ZSET
from raftdb.storage.txn import (
    NEVER,
    SPACES,
    STATE_NAME,
    State,
    Txn,
    encode_membership,
    encode_state,
    records_between,
)
from raftdb.types import Membership

if TYPE_CHECKING:
    from raftdb.storage.kv import KvStore

PAGE_RECORDS_FIRST: Final = 64  # a Batch reads ranges in pages that grow
PAGE_RECORDS_MAX: Final = 1024
OVERLAY_RECORDS_MAX: Final = 20_000  # in one space; more are flushed
RECLAIM_RECORDS: Final = 16  # for which there must be room at once
BREATH_RECORDS: Final = 512  # encoded, folded, written or reclaimed between two calls of `breathe`
LARGE_BYTES: Final = 16 * 1024
HELD_BYTES_MAX: Final = 64 * 1024 * 1024
#: Changing it changes what old entries do. Much more than an entry's payload, so that SET and its like never fail.
ENTRY_LARGE_BYTES_MAX: Final = 1024 * 1024 * 1024
READ_AHEAD_KEYS: Final = 16  # at once: their values are in memory together
PAGE_ROWS_AT_ONCE: Final = 8  # likewise
PAGE_BYTES_MAX: Final = 1024 * 1024
TOO_MUCH: Final = "ERR what is executed together would write more than 1 GiB; this command was not executed"
SORTED_KEYS_MAX: Final = 8192  # of one entry and space that are sorted at once for the digest
_TABLE: Final = 7  # the pseudo space of the batch's own table: database -> keyspace, and the two counters
_NEXT_COLLECTION: Final = "collection"
_NEXT_KEYSPACE: Final = "keyspace"
_FOLDED: Final = (HEADS, FIELDS, ITEMS, SCORES)
_MISSING: Final[Any] = object()
_value: Final = itemgetter(1)


def _no_breath() -> None:
    return


class Batch(Txn):
    """The write transaction of the driver, behind write-back dicts. One at a time; commit() or abort() ends it.

    `breathe` is called every BREATH_RECORDS records of long work; whoever sets it may do anything there but use kv.
    """

    index: int  # of the entry being applied
    seed: int

    def __init__(self, kv: KvStore, environment: Environment) -> None:
        self._kv = kv
        self._environment = environment
        self._dbs = environment.databases
        self._txn = environment.writer()
        self.applied = kv.applied
        self.stamp = kv.stamp
        self.index = kv.applied
        self.seed = 0
        state = kv.state
        self._digest = state.digest
        self._keyspace_keys = dict(zip(state.keyspaces, state.keys, strict=True))
        self._keyspace_expiring = dict(zip(state.keyspaces, state.expiring, strict=True))
        self._base: dict[bytes, Head | None] = {}  # heads as LMDB has them
        self._ahead: dict[bytes, bytes] = {}  # checked values of heads that were read ahead and not decoded yet
        self._long_names: dict[bytes, bytes] = {}  # head key -> whole name
        self._heads: dict[bytes, Head | None] = {}
        self._table: dict[Any, Any] = dict(enumerate(state.keyspaces))
        self._table[_NEXT_COLLECTION] = state.next_collection
        self._table[_NEXT_KEYSPACE] = state.next_keyspace
        self._over: list[dict[Any, Any]] = [self._heads, {}, {}, {}, {}, {}, {}, self._table]
        # Changed by this entry: key -> None, or, when flushed already, what the digest takes of the value.
        self._entry: list[dict[Any, bytes | None]] = [{}, {}, {}, {}, {}, {}, {}, {}]
        self._changed_heads = self._entry[HEADS]
        self._encoded: list[dict[bytes, bytes | None]] = [{}, {}, {}, {}, {}, {}, {}]
        self._fresh: dict[bytes, bytes] = {}  # values of heads that put_strings() of this entry has encoded
        self._blind: set[bytes] = set()  # heads overwritten without a look at what LMDB holds; see _looks_needed
        self._blind_keyspaces: set[bytes] = set()
        self._plain = True  # all heads in the overlay are strings of put_strings()
        self._undo: list[tuple[int, Any, Any, Any]] = []
        self._filled: dict[int, int] = {}  # space -> steps of the undo list whose preimages are filled in
        self._outcomes: list[bytes] = []
        self._base_bytes = 0  # of large values in _base
        self._over_bytes = 0  # of large values in the overlays
        self._entry_bytes = 0  # of large values that this entry has written
        self.entry_bytes_max = ENTRY_LARGE_BYTES_MAX
        self.large_bytes = 0  # of large values that this transaction has written
        self.breathe: Callable[[], None] = _no_breath

    # --- entries and commands ----------------------------------------------------------------------------------------

    def begin(self, index: int, stamp: int, seed: int) -> None:
        """Start applying entry `index`; ends the entry before. `stamp` becomes batch.stamp."""
        if index <= self.index or stamp < self.stamp:
            raise Bug(f"entry {index} (stamp {stamp}) cannot be applied after {self.index} (stamp {self.stamp})")
        self._end_entry()
        if sum(map(len, self._over)) + len(self._base) > OVERLAY_RECORDS_MAX:
            self._flush()
            self._forget_base()
        self.index, self.stamp, self.seed = index, stamp, seed
        self._entry_bytes = 0

    def savepoint(self) -> None:
        """What was done so far in this entry stays."""
        self._forget_undo()
        if self._over_bytes > HELD_BYTES_MAX:
            self._relieve()

    def rollback(self) -> None:
        """Undo everything since savepoint(), begin() or the batch's beginning, whichever came last."""
        for space, key, old, former in reversed(self._undo):
            if old is _MISSING:
                self._over[space].pop(key, None)
            else:
                self._over[space][key] = old
            if former is _MISSING:
                self._entry[space].pop(key, None)
            else:
                self._entry[space][key] = former
        self._forget_undo()

    def fold(self, outcome: bytes) -> None:
        """Make `outcome` (an error text, a reply) part of the rolling digest."""
        self._outcomes.append(outcome)

    def _end_entry(self) -> None:
        self._forget_undo()
        if not any(self._entry) and not self._outcomes:
            return
        digest = blake2b(self._digest + self.index.to_bytes(8, "little"), digest_size=16)
        for space in _FOLDED:
            changed = self._entry[space]
            if changed:
                self._encode_changed(space, changed)
                for group in self._in_order(changed):
                    digest.update(self._fold_space(space, group))
        for outcome in self._outcomes:
            digest.update(len(outcome).to_bytes(4, "little") + outcome)
        self._digest = digest.digest()
        self._outcomes.clear()
        for space in (GARBAGE, META):
            for key in self._entry[space]:
                self._encoded[space].pop(key, None)  # stale: an earlier entry's value
        for changed in self._entry:
            changed.clear()

    def _in_order(self, changed: dict[Any, bytes | None]) -> Iterator[list[bytes]]:
        """The keys, sorted; many of them in groups of equal checksums, so that no sorting takes long."""
        if len(changed) <= SORTED_KEYS_MAX:
            yield sorted(changed)
            return
        groups: list[list[bytes]] = [[] for _ in range(256)]
        for number, key in enumerate(changed):
            groups[crc32c(key) & 255].append(key)
            if number % BREATH_RECORDS == 0:
                self.breathe()
        for group in groups:
            group.sort()
            yield group
            self.breathe()

    def _encode_changed(self, space: int, changed: dict[Any, bytes | None]) -> None:
        fresh = self._fresh
        if space != HEADS or not fresh:
            self._encode(space, list(changed))
            return
        if len(fresh) < len(changed):
            self._encode(space, [key for key in changed if key not in fresh])
        self._encoded[HEADS].update(fresh)
        self._fresh = {}

    def _encode(self, space: int, wanted: list[bytes]) -> None:
        if len(wanted) <= BREATH_RECORDS:
            self._encode_some(space, wanted)
            return
        for start in range(0, len(wanted), BREATH_RECORDS):
            self._encode_some(space, wanted[start : start + BREATH_RECORDS])
            self.breathe()

    def _encode_some(self, space: int, wanted: list[bytes]) -> None:
        over, encoded = self._over[space], self._encoded[space]
        salt = codec.SALTS[space]
        if space == HEADS:
            names = self._long_names
            for key in wanted:
                if key in over:
                    head = over[key]
                    encoded[key] = None if head is None else encode_head(key, head, names.get(key))
            return
        for key in wanted:
            if key in over:
                body = over[key]
                encoded[key] = None if body is None else body + crc32c_extend(salt, key + body).to_bytes(4, "little")

    def _fold_space(self, space: int, changed: list[bytes]) -> bytes:
        encoded, entry, parts = self._encoded[space], self._entry[space], []
        if not any(entry.values()):  # most of all: nothing of this entry is flushed yet, and nothing is deleted
            values = [encoded.get(key) for key in changed]
            if None not in values:
                return b"".join([value[-4:] for value in values if value])
        for key in changed:
            part = entry[key]
            if part is None:
                value = encoded[key]
                part = value[-4:] if value is not None else self._fold_part(space, key, None)
            parts.append(part)
        return b"".join(parts)

    @staticmethod
    def _fold_part(space: int, key: bytes, value: bytes | None) -> bytes:
        if value is None:
            return (~crc32c_extend(codec.SALTS[space], key) & 0xFFFFFFFF).to_bytes(4, "big")
        return value[-4:]

    def _stored(self, space: int, key: bytes) -> bytes | None:
        try:
            value = self._txn.get(key, None, self._dbs[space])
        except lmdb.Error as error:
            raise self._kv.failed(error) from None
        return None if value is None else bytes(value)

    # --- heads -------------------------------------------------------------------------------------------------------

    def _head_key(self, db: int, name: bytes) -> bytes:
        key: bytes = self._table[db] + blake2b(name, digest_size=6).digest()
        if len(name) <= SHORT_NAME_BYTES_MAX:
            return key + name
        key += keys.name_part(name)
        self._long_names[key] = name
        return key

    def _load(self, key: bytes) -> Head | None:
        try:
            value = self._ahead.pop(key, None)
            if value is None or len(value) == codec.HEAD_FIXED_BYTES:  # of large ones only the beginning is kept
                value = self._txn.get(key, None, self._dbs[HEADS])
            head = None if value is None else decode_head(key, value)
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None
        if value is not None and len(value) > LARGE_BYTES:
            self._base_bytes += len(value)
            if self._base_bytes > HELD_BYTES_MAX:
                self._forget_base()
            self.breathe()
        self._base[key] = head
        return head

    def room_for(self, size_bytes: int) -> None:
        """A command that makes large values of small ones, or of none, asks first. Raises CommandError.

        Never for values that came with the entry: SET must not fail, alone or in a run (put_strings).
        """
        if size_bytes > LARGE_BYTES and self._entry_bytes + size_bytes > self.entry_bytes_max:
            raise CommandError(TOO_MUCH)

    def _weigh(self, size_bytes: int) -> None:
        """A large value is about to be written."""
        self._entry_bytes += size_bytes
        self.large_bytes += size_bytes
        self._over_bytes += size_bytes
        self.breathe()
        if self._over_bytes > 4 * HELD_BYTES_MAX:  # within one command
            self._relieve()

    def _relieve(self) -> None:
        self._flush()
        self._forget_base()
        self._over_bytes = 0

    def _read_ahead(self, wanted: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """(key, stored value) of these heads, in one pass over LMDB; what it lacks is noted in `_base`."""
        wanted.sort()
        cursor = self._txn.cursor(self._dbs[HEADS])
        for start in range(0, len(wanted), READ_AHEAD_KEYS):
            some = wanted[start : start + READ_AHEAD_KEYS]
            try:
                found: list[tuple[bytes, bytes]] = cursor.getmulti(some)
            except lmdb.Error as error:
                raise self._kv.failed(error) from None
            if len(found) < len(some):
                there = {key for key, _ in found}
                self._base.update(dict.fromkeys([key for key in some if key not in there]))
            yield from found

    def head(self, db: int, name: bytes) -> Head | None:
        key = self._head_key(db, name)
        if key in self._heads:
            return self._heads[key]
        return self._head_in_lmdb(key)

    def _head_in_lmdb(self, key: bytes) -> Head | None:
        if key in self._base:
            return self._base[key]
        return self._load(key)

    def put_head(self, db: int, name: bytes, head: Head) -> None:
        """Keeps counts, expiry index and version (= batch.index). A collection that the key held before, under
        another id, goes to GARBAGE; so never put the head of a collection that drop_head() dropped.

        Raises CommandError (room_for)."""
        if head.version != self.index:
            head = head._replace(version=self.index)
        if len(head.value) > LARGE_BYTES:
            self.room_for(len(head.value))
            self._weigh(len(head.value))
        self._set_head(self._head_key(db, name), head)

    def put_string(self, db: int, name: bytes, value: bytes, expiry_ms: int = 0) -> None:
        """put_head() of a string: the fast way of SET. expiry_ms 0: none, an old one is cleared."""
        if len(value) > LARGE_BYTES:
            self._weigh(len(value))
        self._set_head(self._head_key(db, name), Head(STRING, expiry_ms, self.index, value))

    def put_strings(self, db: int, names: list[bytes], values: list[bytes]) -> None:
        """put_string() of many, which cannot fail; with a savepoint before, between and behind them.

        The hashes, the look-ups and the dicts are done for all at once: a third of the time of one after the other.
        """
        self.savepoint()
        if max(map(len, values)) > LARGE_BYTES:
            self._weigh(sum([len(value) for value in values if len(value) > LARGE_BYTES]))
        keyspace = self._table[db]
        keys_ = [keyspace + blake2b(name, digest_size=6).digest() + name for name in names]
        if max(map(len, keys_)) >= keys.LONG_HEAD_KEY_BYTES:
            keys_ = [self._head_key(db, name) for name in names]
        heads = self._heads
        if self._looks_needed(keyspace):
            self._drop_collections_of(keys_)
        else:
            base = self._base
            self._ahead.clear()
            self._blind.update([key for key in keys_ if key not in heads and key not in base])
            self._blind_keyspaces.add(keyspace)
        index, new = self.index, tuple.__new__
        heads.update(zip(keys_, [new(Head, (STRING, 0, index, value, 0, 0, 0, 0, 0)) for value in values], strict=True))
        self._changed_heads.update(dict.fromkeys(keys_))
        if not self._long_names:
            fixed, salt, extend = codec.string_head(index), codec.SALTS[HEADS], crc32c_extend
            bodies = [fixed + value for value in values]
            sums = [extend(salt, key + body).to_bytes(4, "little") for key, body in zip(keys_, bodies, strict=True)]
            self._fresh.update(zip(keys_, map(add, bodies, sums), strict=True))
        elif self._fresh:
            for key in keys_:
                self._fresh.pop(key, None)
        if len(heads) > OVERLAY_RECORDS_MAX:
            self._flush_space(HEADS)

    def _looks_needed(self, keyspace: bytes) -> bool:
        """Must a string that is stored know what it overwrites?

        It must if that could have an expiry, whose record goes, or be a collection, which goes to GARBAGE. A keyspace
        without any expiry in a store that has never had a collection knows it has neither. LMDB tells whether the key
        was there at all when the head is written.
        """
        return self._table[_NEXT_COLLECTION] > 1 or bool(self._keyspace_expiring.get(keyspace, 0))

    def _drop_collections_of(self, wanted: list[bytes]) -> None:
        """What these keys hold now is about to be overwritten by strings: collections go to GARBAGE."""
        heads, base, ahead = self._heads, self._base, self._ahead
        unknown = [key for key in dict.fromkeys(wanted) if key not in heads and key not in base and key not in ahead]
        known = len(unknown) < len(wanted)
        if unknown:
            salt = codec.SALTS[HEADS]
            for key, value in self._read_ahead(unknown):
                if crc32c_extend(salt, key + value) != RESIDUE or len(value) < codec.HEAD_FIXED_BYTES + 4:
                    raise self._kv.failed(codec.damaged(HEADS, key))
                ahead[key] = value if len(value) <= LARGE_BYTES else value[: codec.HEAD_FIXED_BYTES]
                if value[0] != STRING:
                    known = True
        if not known:
            return
        for key in dict.fromkeys(wanted):
            if key in heads:
                former = heads[key]
            elif key in ahead and ahead[key][0] == STRING:
                continue
            else:
                former = self._head_in_lmdb(key)
            if former is not None and former.collection:
                self.put(GARBAGE, keys.garbage_collection(former.collection), bytes((former.type,)))
        self._forget_undo()

    def _set_head(self, key: bytes, head: Head | None, *, drop: bool = True) -> Head | None:
        """Returns the former head."""
        heads = self._heads
        self._plain = False
        old = heads.get(key, _MISSING)
        former: Head | None
        if old is not _MISSING:
            former = old
        else:
            former = self._head_in_lmdb(key)
        if former is not None and former.collection and drop and (head is None or head.collection != former.collection):
            self.put(GARBAGE, keys.garbage_collection(former.collection), bytes((former.type,)))
        self._undo.append((HEADS, key, old, self._changed_heads.get(key, _MISSING)))
        self._fresh.pop(key, None)
        heads[key] = head
        self._changed_heads[key] = None
        if len(heads) > OVERLAY_RECORDS_MAX:
            self._flush_space(HEADS)
        if head is not None and 0 < head.expiry_ms < self._kv.earliest_ms:
            self._kv.earliest_ms = head.expiry_ms
        return former

    def drop_head(self, db: int, name: bytes) -> Head | None:
        """Delete the key, whatever its size, in O(1). Returns what it was."""
        if self.head(db, name) is None:
            return None
        return self._set_head(self._head_key(db, name), None)

    def take_head(self, db: int, name: bytes) -> Head | None:
        """Remove the key but not its collection: for RENAME and MOVE, which put the head elsewhere."""
        if self.head(db, name) is None:
            return None
        return self._set_head(self._head_key(db, name), None, drop=False)

    def move_head(self, db: int, name: bytes, other_db: int, other_name: bytes) -> Head | None:
        """RENAME and MOVE in O(1): what the target held before is dropped. Returns the head; None: no such key."""
        head = self.take_head(db, name)
        if head is not None:
            self.put_head(other_db, other_name, head)
        return head

    def flush_db(self, db: int) -> None:
        """Empty a database in O(1); its records are reclaimed later, in bounded steps."""
        number = self._table[_NEXT_KEYSPACE]
        if number >> 32:
            raise Bug("no keyspace numbers left")
        self.put(GARBAGE, keys.garbage_keyspace(self._table[db]), b"")
        self._set_table(_NEXT_KEYSPACE, number + 1)
        self._set_table(db, number.to_bytes(4, "big"))
        self.fold(b"flush %d" % db)

    def swap_db(self, one: int, other: int) -> None:
        """Exchange two databases in O(1)."""
        first, second = self._table[one], self._table[other]
        self._set_table(one, second)
        self._set_table(other, first)
        self.fold(b"swap %d %d" % (one, other))

    def new_collection(self) -> int:
        """A number that no collection has had."""
        number: int = self._table[_NEXT_COLLECTION]
        self._set_table(_NEXT_COLLECTION, number + 1)
        return number

    def _set_table(self, key: Any, value: Any) -> None:
        self._undo.append((_TABLE, key, self._table[key], None))
        self._table[key] = value

    def _keyspace(self, db: int) -> bytes:
        return bytes(self._table[db])

    def count(self, db: int) -> int:
        self._flush_space(HEADS)
        return self._keyspace_keys.get(self._table[db], 0)

    def expiring(self, db: int) -> int:
        self._flush_space(HEADS)
        return self._keyspace_expiring.get(self._table[db], 0)

    # --- elements and records ----------------------------------------------------------------------------------------

    def put_field(self, collection: int, name: bytes, value: bytes) -> None:
        body = value if len(name) <= SHORT_NAME_BYTES_MAX else codec.long_name(name) + value
        self.put(FIELDS, keys.field(collection, name), body)

    def delete_field(self, collection: int, name: bytes) -> None:
        self.delete(FIELDS, keys.field(collection, name))

    def put_item(self, collection: int, position: int, value: bytes) -> None:
        self.put(ITEMS, keys.item(collection, position), value)

    def delete_item(self, collection: int, position: int) -> None:
        self.delete(ITEMS, keys.item(collection, position))

    def put_score(self, collection: int, score: float, member: bytes) -> None:
        """The order record (score, member) only; the member's own record is put_field()."""
        body = b"" if len(member) <= SHORT_NAME_BYTES_MAX else codec.long_name(member)
        self.put(SCORES, keys.score(collection, score, member), body)

    def delete_score(self, collection: int, score: float, member: bytes) -> None:
        self.delete(SCORES, keys.score(collection, score, member))

    def get(self, space: int, key: bytes) -> bytes | None:
        body = self._over[space].get(key, _MISSING)
        if body is not _MISSING:
            return body  # type: ignore[no-any-return]
        try:
            value = self._txn.get(key, None, self._dbs[space])
            if value is None:
                return None
            if crc32c_extend(codec.SALTS[space], key + value) != RESIDUE:
                raise codec.damaged(space, key)
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None
        return bytes(value[:-4])

    def put(self, space: int, key: bytes, value: bytes) -> None:
        """Raw record of a space; heads have put_head(). Raises CommandError (room_for)."""
        if len(value) > LARGE_BYTES:
            self.room_for(len(value))
            self._weigh(len(value))
        over, changed = self._over[space], self._entry[space]
        self._undo.append((space, key, over.get(key, _MISSING), changed.get(key, _MISSING)))
        over[key] = value
        changed[key] = None
        if len(over) > OVERLAY_RECORDS_MAX:
            self._flush_space(space)

    def delete(self, space: int, key: bytes) -> None:
        over, changed = self._over[space], self._entry[space]
        self._undo.append((space, key, over.get(key, _MISSING), changed.get(key, _MISSING)))
        over[key] = None
        changed[key] = None
        if len(over) > OVERLAY_RECORDS_MAX:
            self._flush_space(space)

    def scan(
        self, space: int, start: bytes, stop: bytes | None, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        for key, value in self._pages(space, start, stop, reverse):
            yield key, value[:-4]

    def _scan_values(self, space: int, start: bytes, stop: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        return self._pages(space, start, stop, False)

    def _pages(self, space: int, start: bytes, stop: bytes | None, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        salt, size = codec.SALTS[space], PAGE_RECORDS_FIRST
        while True:
            self._flush_space(space)
            try:
                page, more = _page(records_between(self._txn, self._dbs[space], start, stop, reverse), size)
                for key, value in page:
                    if crc32c_extend(salt, key + value) != RESIDUE:
                        raise codec.damaged(space, key)
            except (lmdb.Error, Damaged) as error:
                raise self._kv.failed(error) from None
            yield from page
            if not more:
                return
            if reverse:
                stop = page[-1][0]
            else:
                start = page[-1][0] + b"\0"
            size = min(2 * size, PAGE_RECORDS_MAX)

    # --- expiry and reclaiming ---------------------------------------------------------------------------------------

    def due(self, stamp: int, keys_max: int) -> list[tuple[int, bytes]]:
        """(db, name) of keys whose expiry is at or before `stamp`, oldest first; the caller removes each of them.

        O(1) when none is due.
        """
        if stamp < self._kv.earliest_ms:
            return []
        self._flush_space(HEADS)
        found = list(islice(self._by_expiry(stamp), keys_max))
        if len(found) < keys_max:
            self._kv.earliest_ms = next((when for when, _, _ in self._by_expiry(NEVER) if when > stamp), NEVER)
        return [(db, self._name_at(keys.expiry_head(key))) for _, db, key in found]

    def _by_expiry(self, stamp: int) -> Iterator[tuple[int, int, bytes]]:
        return merge(*(self._database_expiry(db, stamp) for db in range(DATABASES)))

    def _database_expiry(self, db: int, stamp: int) -> Iterator[tuple[int, int, bytes]]:
        prefix = self._table[db]
        if not self._keyspace_expiring.get(prefix, 0):
            return
        for key, _ in self._pages(EXPIRY, prefix, keys.after(prefix), False):
            when = keys.expiry_time(key)
            if when > stamp and stamp != NEVER:
                return
            yield when, db, key

    def _name_at(self, head_key: bytes) -> bytes:
        if len(head_key) < keys.LONG_HEAD_KEY_BYTES:
            return head_key[keys.HEAD_PREFIX_BYTES :]
        value = self._stored(HEADS, head_key)
        if value is None:
            raise self._kv.failed(codec.damaged(HEADS, head_key, "has an expiry record but no head"))
        decode_head(head_key, value)
        name = self._long_names[head_key] = head_name(head_key, value)
        return name

    def reclaim(self, records_max: int) -> int:
        """Delete up to that many records of dropped collections and databases, after an entry's last command.

        Returns how many went; 0: nothing is left, or there is no room to delete in.
        """
        self._end_entry()  # what the entry has changed is in the digest before any of it goes
        if not self._over[GARBAGE] and not self._txn.stat(self._dbs[GARBAGE])["entries"]:
            return 0
        self._flush()
        removed = 0
        try:
            while removed < records_max:
                cursor = self._txn.cursor(self._dbs[GARBAGE])
                if not cursor.first():
                    break
                removed += self._reclaim_one(cursor.key(), cursor.value(), records_max - removed)
        except DiskFull:
            pass  # what is left is garbage still, and nobody waits for it
        except (lmdb.Error, Damaged) as error:
            raise self._kv.failed(error) from None
        return removed

    def _reclaim_one(self, key: bytes, value: bytes, records_max: int) -> int:
        if key[:1] == b"c":
            kind = codec.unseal(GARBAGE, key, value)
            spaces = {LIST: (ITEMS,), ZSET: (FIELDS, SCORES)}.get(kind[0], (FIELDS,))
        else:
            spaces = (HEADS, EXPIRY)
        removed = 0
        for space in spaces:
            removed += self._delete_range(space, key[1:], records_max - removed)
            if removed >= records_max:
                return removed
        self._expect(GARBAGE, 1)
        self._txn.delete(key, db=self._dbs[GARBAGE])
        return removed + 1

    def _expect(self, space: int, rows: int, row_bytes: int = 0) -> None:
        """Before `rows` records are put or deleted. Raises DiskFull: do neither."""
        self._environment.expect(self._txn, self._dbs[space], rows, row_bytes)

    def _delete_range(self, space: int, prefix: bytes, records_max: int) -> int:
        cursor = self._txn.cursor(self._dbs[space])
        found, removed = cursor.set_range(prefix), 0
        while found and removed < records_max and cursor.key().startswith(prefix):
            if removed % RECLAIM_RECORDS == 0:
                self._expect(space, RECLAIM_RECORDS)
            if space == HEADS:
                self._drop_collection_of(cursor.key(), cursor.value())
            cursor.delete()
            found = bool(cursor.key())
            removed += 1
            if removed % BREATH_RECORDS == 0:
                self.breathe()
        return removed

    def _drop_collection_of(self, key: bytes, value: bytes) -> None:
        head = decode_head(key, value)
        self._base.pop(key, None)
        self._ahead.pop(key, None)
        if head.collection:
            garbage = keys.garbage_collection(head.collection)
            self._expect(GARBAGE, 1)
            self._txn.put(garbage, codec.seal(GARBAGE, garbage, bytes((head.type,))), db=self._dbs[GARBAGE])

    # --- flushing ----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        for space in range(len(SPACES)):
            self._flush_space(space)

    def _flush_space(self, space: int) -> None:
        over = self._over[space]
        if not over:
            return
        self._fill_preimages(space)
        encoded, changed = self._encoded[space], self._entry[space]
        if changed:
            self._encode_changed(space, changed)
        if len(encoded) < len(over):
            self._encode(space, [key for key in over if key not in encoded])
        if changed and space in _FOLDED:
            for key in over:
                if key in changed:
                    changed[key] = self._fold_part(space, key, encoded[key])
        if space == HEADS:
            self._flush_heads(encoded)
        else:
            self._write(space, encoded)
        encoded.clear()
        over.clear()
        if space == HEADS:
            self._plain = True
        if len(self._base) > OVERLAY_RECORDS_MAX:
            self._forget_base()

    def _forget_base(self) -> None:
        self._base_bytes = 0
        self._base.clear()
        self._ahead.clear()

    def _fill_preimages(self, flushed: int) -> None:
        """Replace "not in the overlay" in the undo list by what LMDB holds; each step is looked at once per space."""
        undo = self._undo
        for place in range(self._filled.get(flushed, 0), len(undo)):
            space, key, old, was = undo[place]
            if space == flushed and old is _MISSING:
                undo[place] = (space, key, self._preimage(space, key), was)
        if undo:
            self._filled[flushed] = len(undo)

    def _preimage(self, space: int, key: bytes) -> Any:
        if space == HEADS:
            return self._head_in_lmdb(key)
        value = self._stored(space, key)
        return None if value is None else codec.unseal(space, key, value)

    def _forget_undo(self) -> None:
        self._undo.clear()
        if self._filled:
            self._filled.clear()

    def _flush_heads(self, encoded: dict[bytes, bytes | None]) -> None:
        """Heads, and what follows from them. LMDB counts the keys that were set without a look."""
        blind = self._blind
        if not blind:
            self._blind_keyspaces.clear()
            self._flush_derived()
            self._write(HEADS, encoded)
            return
        keyspace = self._blind_keyspaces.pop()
        if self._blind_keyspaces:
            self._blind_keyspaces.clear()
            for key in blind:
                self._load(key)
            blind.clear()
            self._flush_heads(encoded)
            return
        known = self._flush_derived()
        stat, database = self._txn.stat, self._dbs[HEADS]
        before = stat(database)["entries"]
        self._write(HEADS, encoded)
        more = stat(database)["entries"] - before - known
        self._keyspace_keys[keyspace] = self._keyspace_keys.get(keyspace, 0) + more
        blind.clear()

    def _flush_derived(self) -> int:
        """Counts and expiry index: what heads in the overlay change against those in LMDB.

        Returns how many keys more there are, but for those that were set without a look.
        """
        base, ahead = self._base, self._ahead
        if self._plain and len(self._blind) == len(self._heads):
            base.update(self._heads)  # none has or had an expiry, and none is counted here
            return 0
        expiry: dict[bytes, bytes | None] = {}
        key_count, expiring = self._keyspace_keys, self._keyspace_expiring
        blind, known = self._blind, 0
        for key, head in self._heads.items():
            if key in blind:
                there, before = head is not None, 0  # nothing is counted here; it had no expiry
            elif (value := ahead.pop(key, None)) is not None:
                there, before = True, codec.expiry_of(value)
            else:
                old = base[key] if key in base else self._load(key)
                there, before = old is not None, 0 if old is None else old.expiry_ms
            base[key] = head
            if there == (head is None):
                keyspace, more = key[:4], -1 if there else 1
                key_count[keyspace] = key_count.get(keyspace, 0) + more
                known += more
            now = 0 if head is None else head.expiry_ms
            if before != now:
                keyspace = key[:4]
                expiring[keyspace] = expiring.get(keyspace, 0) + (now > 0) - (before > 0)
                if before:
                    expiry[keys.expiry(key, before)] = None
                if now:
                    place = keys.expiry(key, now)
                    expiry[place] = codec.seal(EXPIRY, place, b"")
        if expiry:
            self._write(EXPIRY, expiry)
        return known

    def _write(self, space: int, values: dict[bytes, bytes | None]) -> None:
        database = self._dbs[space]
        puts = sorted(values.items())  # keys differ, so values are never compared
        if None in values.values():
            puts = [row for row in puts if row[1] is not None]
        if self._environment.through_map:
            self._expect(space, len(values), sum(map(len, map(_value, puts))))  # (keys are 511 bytes at most)
        try:
            if len(puts) <= BREATH_RECORDS:
                self._txn.cursor(database).putmulti(puts)
            else:
                for start in range(0, len(puts), BREATH_RECORDS):
                    self._txn.cursor(database).putmulti(puts[start : start + BREATH_RECORDS])
                    self.breathe()
            if len(puts) < len(values):
                for number, key in enumerate(sorted([key for key, value in values.items() if value is None])):
                    self._txn.delete(key, db=database)
                    if number % BREATH_RECORDS == BREATH_RECORDS - 1:
                        self.breathe()
        except lmdb.Error as error:
            raise self._kv.failed(error) from None

    def commit(self, applied: int, term: int, stamp: int, chain: int, membership: Membership | None = None) -> None:
        """One LMDB transaction: data and applied index together. `term`, `stamp`, `chain`: of entry `applied`.
        membership None: unchanged.

        Raises DiskFull (nothing changed: apply the same entries again later) or StorageError (end the process).
        """
        if applied < self.index or stamp < self.stamp:
            raise Bug(f"batch of entry {self.index} is to be committed as {applied}")
        try:
            self._end_entry()
            self._flush()
            members = self._kv.state.members if membership is None else encode_membership(membership)
            state = self._next_state(applied, term, stamp, chain, members)
            self._put_meta(STATE_NAME, encode_state(state))
            self._environment.commit(self._txn)
        except (lmdb.Error, OSError) as error:
            self.abort()
            raise self._kv.failed(error) from None
        except BaseException:
            self.abort()
            raise
        self._kv.committed(state, membership)

    def _next_state(self, applied: int, term: int, stamp: int, chain: int, members: bytes) -> State:
        table = self._table
        keyspaces = tuple(table[db] for db in range(DATABASES))
        key_counts = tuple(self._keyspace_keys.get(keyspace, 0) for keyspace in keyspaces)
        expiring = tuple(self._keyspace_expiring.get(keyspace, 0) for keyspace in keyspaces)
        counters = table[_NEXT_COLLECTION], table[_NEXT_KEYSPACE]
        return State(applied, term, stamp, chain, self._digest, *counters, keyspaces, key_counts, expiring, members)

    def _put_meta(self, name: bytes, body: bytes) -> None:
        self._txn.put(name, codec.seal(META, name, body), db=self._dbs[META])

    def abort(self) -> None:
        """Drop everything; kv stays as it was."""
        self._txn.abort()
        self._kv.aborted()


def _page(rows: Iterator[tuple[bytes, bytes]], size: int) -> tuple[list[tuple[bytes, bytes]], bool]:
    """(the first rows: `size` of them, or fewer large ones; may there be more?)"""
    page: list[tuple[bytes, bytes]] = []
    size_bytes = 0
    while len(page) < size and size_bytes < PAGE_BYTES_MAX:
        some = list(islice(rows, PAGE_ROWS_AT_ONCE))
        page += some
        if len(some) < PAGE_ROWS_AT_ONCE:
            return page, False
        size_bytes += sum([len(value) for _, value in some])
    return page, True
