"""The replicated log in LMDB, synced on every commit: the truth of a node.

    entries   index (8 bytes, big-endian) -> record             see records.py
    meta      name -> document crc                              see codec.py, space LOG_META

    format       (1,)                                           of this layout
    incarnation  (incarnation,)                                 drawn when the directory was made
    starts       (starts,)                                      counted up, synced, before the node speaks
    hard         (term, vote)                                   Raft's currentTerm and votedFor
    membership   membership as of the last entry
    previous     the membership before that one, or nil         what a truncation goes back to
    base         (first, term, chain, stamp)                    first entry kept; the rest describes entry first - 1
    tail         (last, term, chain, stamp)                     of the last entry (of the base when there is none)
    commit       number of the LMDB transaction that wrote it; see engine.py
    snapshot     description of the newest durable snapshot, or nil
    before       description of the one before, or nil

Invariants, checked when the log is opened and asserted before each commit:
  first - 1 <= last; entries first..last are all there; their chain is unbroken from base.chain to tail.chain;
  terms and stamps never go down; snapshot.index <= last; nothing is deleted because a checksum failed.

`commit(Persist)` is one LMDB transaction with full sync. In memory everything changes after the transaction is durable,
so a refused commit (DiskFull) leaves the object as it was. A bounded cache holds the newest entries, so the usual
reads (term and chain of the tail, entries for followers, entries to apply) do not touch LMDB.

`tail` says again what the last record says. It lets the log notice that its end has vanished (a flipped bit in
an LMDB page can hide records without breaking any checksum), and keeps last term and chain known when the last record
itself is damaged.

Entries below `first` may still be in LMDB for a while after a snapshot was installed; trim() removes them in bounded
steps.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from raftdb.errors import Bug, Damaged, EntryDamaged, UsageError
from raftdb.storage import codec, records
from raftdb.storage.checksum import chain_of
from raftdb.storage.codec import LOG_META, Malformed
from raftdb.storage.engine import Environment, structure_findings, translate
from raftdb.storage.files import drop_page_cache
from raftdb.types import Entry, HardState, Membership, Persist, SnapshotMeta

FORMAT: Final = 1
CACHE_BYTES_MAX: Final = 2 << 20
ENTRY_OVERHEAD_BYTES: Final = 250  # of an Entry in memory, besides its payload
MARK_BYTES: Final = 1 << 20  # distance of the marks that bytes_after() works with
DATABASES: Final = (b"entries", b"meta")


class Point(NamedTuple):
    """An entry's place and what later entries depend on."""

    index: int  # type: ignore[assignment]
    term: int
    chain: int
    stamp: int


def point_of(entry: Entry) -> Point:
    return Point(entry.index, entry.term, entry.chain, entry.stamp)


class Meta(NamedTuple):
    """Everything in log/meta, decoded."""

    incarnation: int
    starts: int
    hard: HardState
    membership: Membership
    previous: Membership | None
    base: Point  # of entry first - 1
    tail: Point  # of entry last
    snapshot: SnapshotMeta | None
    before: SnapshotMeta | None


def meta_documents(meta: Meta) -> dict[bytes, Any]:
    """Name -> document of every field."""
    return {
        b"format": (FORMAT,),
        b"incarnation": (meta.incarnation,),
        b"starts": (meta.starts,),
        b"hard": codec.hard_document(meta.hard),
        b"membership": codec.membership_document(meta.membership),
        b"previous": None if meta.previous is None else codec.membership_document(meta.previous),
        b"base": (meta.base.index + 1, *meta.base[1:]),
        b"tail": tuple(meta.tail),
        b"snapshot": codec.snapshot_document(meta.snapshot),
        b"before": codec.snapshot_document(meta.before),
    }


META_NAMES: Final = tuple(b"format incarnation starts hard membership previous base tail snapshot before".split())


def read_meta_document(name: bytes, value: bytes | None) -> Any:
    """The checked document of one meta record. Raises Damaged."""
    where = f"log/meta {name.decode('ascii', 'replace')}"
    if value is None:
        raise Damaged(where, "is missing")
    try:
        return codec.unpack(codec.unseal(LOG_META, name, value))
    except (Malformed, Damaged) as error:
        raise Damaged(where, getattr(error, "what", str(error))) from None


def read_meta(get: Any) -> Meta:
    """All of log/meta; `get(name)` gives the stored value. Raises Damaged, UsageError (a newer format)."""
    documents = {name: read_meta_document(name, get(name)) for name in META_NAMES}
    (version,) = _numbers(documents, b"format", 1)
    if version != FORMAT:
        raise UsageError(f"the log has format {version}, this program knows format {FORMAT}: use a newer raftdb")
    first, *rest = _numbers(documents, b"base", 4)
    if first < 1:
        raise Damaged("log/meta base", "the first entry has index 0")
    previous = documents[b"previous"]
    try:
        meta = Meta(
            incarnation=_numbers(documents, b"incarnation", 1)[0],
            starts=_numbers(documents, b"starts", 1)[0],
            hard=codec.hard_from(documents[b"hard"]),
            membership=codec.membership_from(documents[b"membership"]),
            previous=None if previous is None else codec.membership_from(previous),
            base=Point(first - 1, *rest),
            tail=Point(*_numbers(documents, b"tail", 4)),
            snapshot=codec.snapshot_from(documents[b"snapshot"]),
            before=codec.snapshot_from(documents[b"before"]),
        )
    except Malformed as error:
        raise Damaged("log/meta", str(error)) from None
    if meta.tail.index < meta.base.index:
        raise Damaged("log/meta tail", f"the last entry {meta.tail.index} is before the first one, {first}")
    return meta


def _numbers(documents: dict[bytes, Any], name: bytes, count: int) -> tuple[int, ...]:
    document = documents[name]
    if isinstance(document, tuple) and len(document) == count and all(type(number) is int for number in document):
        return document
    raise Damaged(f"log/meta {name.decode()}", "does not have its shape")


class Log:
    """A consensus LogView; writes only from the thread that opened it (or called claim())."""

    def __init__(self, environment: Environment, meta: Meta, cache_bytes_max: int) -> None:
        self._environment = environment
        self._entries, self._meta = environment.databases
        self._state = meta
        self._cache: dict[int, Entry] = {}
        self._cache_first = meta.tail.index + 1
        self._cache_bytes = 0
        self._cache_bytes_max = cache_bytes_max
        self._adopt(meta)
        self._marks = [meta.base.index, meta.tail.index]
        self._mark_bytes = [0, self._stored_bytes()]

    def _adopt(self, meta: Meta) -> None:
        self._state = meta
        self.incarnation = meta.incarnation
        self.starts = meta.starts
        self.hard = meta.hard
        self.membership = meta.membership
        self.previous_membership = meta.previous
        self.first = meta.base.index + 1
        self.last = meta.tail.index
        self.snapshot = meta.snapshot
        self.previous_snapshot = meta.before

    # --- making and opening ------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        incarnation: int,
        membership: Membership,
        base: SnapshotMeta | None = None,
        map_size_bytes: int | None = None,
    ) -> None:
        """Make a new log at `path` (a directory that has none), empty or standing on the snapshot `base`; synced.

        Raises UsageError, DiskFull, StorageError.
        """
        point = Point(0, 0, 0, 0) if base is None else Point(base.index, base.term, base.chain, base.stamp)
        hard = HardState(point.term, None)
        meta = Meta(incarnation, 0, hard, membership, None, point, point, base, None)
        environment = Environment(path, DATABASES, sync=True, map_size_bytes=map_size_bytes)
        try:
            with _transaction(environment) as transaction:
                for name, document in meta_documents(meta).items():
                    _put_meta(transaction, environment.databases[1], name, document)
        finally:
            environment.close()

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        map_size_bytes: int | None = None,
        cache_bytes_max: int = CACHE_BYTES_MAX,
        unclean: bool = True,
        read_only: bool = False,
    ) -> Log:
        """`unclean`: the last run did not end by a clean stop; the file's page cache is dropped first, so that what is
        checked is what the disk holds, and its pages are walked before LMDB sees them.

        Raises Damaged (hard state, other meta, a vanished tail), UsageError, StorageError.
        """
        if unclean and not read_only:
            drop_page_cache(path / "data.mdb")
            if findings := structure_findings(path / "data.mdb"):
                raise Damaged("log/data.mdb", findings[0])
        environment = Environment(path, DATABASES, sync=True, map_size_bytes=map_size_bytes, read_only=read_only)
        try:
            log = cls(environment, _read_checked_meta(environment), cache_bytes_max)
        except BaseException:
            environment.close()
            raise
        return log

    def refresh(self) -> None:
        """Read again what another process has committed (read-only logs: `log --follow`). Raises Damaged."""
        self._cut(self.last + 1)
        self._cache.clear()
        self._cache_bytes = 0
        self._adopt(_read_checked_meta(self._environment))
        self._cache_first = self.last + 1

    def claim(self) -> None:
        """This thread writes from now on."""
        self._environment.claim()

    def start(self) -> int:
        """starts += 1, synced: before the node speaks. Returns the new number. Raises DiskFull, StorageError."""
        self._change({b"starts": (self.starts + 1,)}, self._state._replace(starts=self.starts + 1))
        return self.starts

    def renew(self, incarnation: int) -> None:
        """Begin another life of this node (`check --repair`): a new incarnation has voted for nobody."""
        hard = HardState(self.hard.term, None)
        documents = {b"incarnation": (incarnation,), b"hard": codec.hard_document(hard)}
        self._change(documents, self._state._replace(incarnation=incarnation, hard=hard))

    def close(self) -> None:
        self._environment.close()

    def stats(self) -> dict[str, int]:
        return {
            **self._environment.stats(),
            "first": self.first,
            "last": self.last,
            "cached_entries": len(self._cache),
            "cached_bytes": self._cache_bytes,
        }

    # --- reading -----------------------------------------------------------------------------------------------------

    def term(self, index: int) -> int:
        """Term of an entry, first - 1 <= index <= last. Raises EntryDamaged, IndexError."""
        entry = self._cache.get(index)
        return entry.term if entry is not None else self._point(index).term

    def chain(self, index: int) -> int:
        """Chain of an entry, first - 1 <= index <= last. Raises EntryDamaged, IndexError."""
        entry = self._cache.get(index)
        return entry.chain if entry is not None else self._point(index).chain

    def stamp(self, index: int) -> int:
        """Stamp (ms) of an entry, first - 1 <= index <= last. Raises EntryDamaged, IndexError."""
        entry = self._cache.get(index)
        return entry.stamp if entry is not None else self._point(index).stamp

    def _point(self, index: int) -> Point:
        if index == self._state.tail.index:
            return self._state.tail
        if index == self._state.base.index:
            return self._state.base
        if not self.first <= index <= self.last:
            raise IndexError(f"log entry {index} is outside {self.first}..{self.last}")
        return point_of(self.read(index, index, 1)[0])

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Entries low..high, at least one, then as many as fit into `bytes_max` bytes of payload.

        Raises EntryDamaged for a damaged entry unless whole ones stand before it; IndexError.
        """
        if not self.first <= low <= high <= self.last:
            raise IndexError(f"log entries {low}..{high} are not all inside {self.first}..{self.last}")
        if low < self._cache_first:
            return self.read(low, high, bytes_max)
        found: list[Entry] = []
        size = 0
        for index in range(low, high + 1):
            entry = self._cache[index]
            size += len(entry.payload)
            if found and size > bytes_max:
                break
            found.append(entry)
        return found

    def read(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """entries() from the disk, checked; may be called by any thread. Raises EntryDamaged."""
        found: list[Entry] = []
        size = 0
        for index, record in self._records(low, high):
            try:
                entry = _decode_at(len(found) + low, index, record)
            except EntryDamaged:
                if found:
                    return found
                raise
            size += len(entry.payload)
            if found and size > bytes_max:
                return found
            found.append(entry)
        if not found:
            raise EntryDamaged(low, "is missing")
        return found

    def _records(self, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """(index, record) of the records that are stored under low..high."""
        transaction = self._environment.reader()
        try:
            cursor = transaction.cursor(self._entries)
            if not cursor.set_range(records.key(low)):
                return
            for key, record in cursor.iternext():
                index = records.index_of(key)
                if index > high:
                    return
                yield index, record
        except lmdb.Error as error:
            raise translate(error, self._environment.path) from error
        finally:
            transaction.abort()

    def check(self, above: int) -> list[int]:
        """Indexes of damaged entries above `above`, for core.quarantine(). Reads everything from there on."""
        return [finding.index for finding in self.findings(max(above, self.first - 1))]

    def findings(self, above: int) -> Iterator[EntryDamaged]:
        """Every damaged, missing or wrongly chained entry above `above` (first - 1 <= above), in order."""
        chain = self._known_chain(above)
        expected = above + 1
        for index, record in self._records(above + 1, self.last):
            for missing in range(expected, index):
                yield EntryDamaged(missing, "is missing")
                chain = None
            expected = index + 1
            try:
                entry = records.decode(index, record)
            except EntryDamaged as error:
                yield error
                chain = None
                continue
            if chain is not None and _chain(chain, entry) != entry.chain:
                yield EntryDamaged(index, "its chain does not continue the entry before")
            chain = entry.chain
        for missing in range(expected, self.last + 1):
            yield EntryDamaged(missing, "is missing")
        if expected == self.last + 1 and chain is not None and chain != self._state.tail.chain and above < self.last:
            yield EntryDamaged(self.last, "its chain is not the one that log/meta tail holds")

    def _known_chain(self, index: int) -> int | None:
        try:
            return self._point(index).chain
        except EntryDamaged:
            return None

    def walk(self) -> Iterator[Entry]:
        """All entries from first to last. Raises EntryDamaged."""
        expected = self.first
        for index, record in self._records(self.first, self.last):
            yield _decode_at(expected, index, record)
            expected += 1

    # --- writing -----------------------------------------------------------------------------------------------------

    def commit(self, persist: Persist) -> None:
        """One synced transaction: install, truncate, rewrite, append, hard state, memberships, in this order.

        Raises DiskFull (nothing has changed), StorageError (the process must end), Bug (the log would lose its
        invariants; nothing has changed).
        """
        state = self._after_install(persist)
        state = self._after_truncate(state, persist)
        self._check_rewrite(state, persist.rewrite)
        state = _after_append(state, persist.entries)
        state = _after_settings(state, persist)
        with _transaction(self._environment) as transaction:
            self._write_entries(transaction, persist)
            self._write_meta(transaction, state)
        self._adopt(state)
        self._refresh_cache(persist)

    def _after_install(self, persist: Persist) -> Meta:
        state, meta = self._state, persist.install
        if meta is None:
            return state
        base = Point(meta.index, meta.term, meta.chain, meta.stamp)
        if persist.keep_suffix:
            self._check_suffix(meta)
            tail = state.tail if meta.index < self.last else base
        else:
            tail = base
        before = state.snapshot if state.snapshot is None or state.snapshot.name != meta.name else state.before
        return state._replace(base=base, tail=tail, snapshot=meta, before=before)

    def _check_suffix(self, meta: SnapshotMeta) -> None:
        """What stays above the snapshot must follow it. Its own entry may be the damaged one: then the next one's
        chain tells. Raises Bug."""
        wrong = Bug(f"a snapshot of entry {meta.index} is to keep a suffix that does not match it")
        if not self.first - 1 <= meta.index <= self.last:
            raise wrong
        try:
            matches = self.term(meta.index) == meta.term
        except EntryDamaged:
            following = self._readable(meta.index + 1)
            matches = following is not None and _chain(meta.chain, following) == following.chain
        if not matches:
            raise wrong

    def _readable(self, index: int) -> Entry | None:
        try:
            return self.entries(index, index, 1)[0]
        except (EntryDamaged, IndexError):
            return None

    def _after_truncate(self, state: Meta, persist: Persist) -> Meta:
        index = persist.truncate_from
        if index is None or index > state.tail.index:
            return state
        if index <= state.base.index:
            raise Bug(f"truncation from {index} would cut into the base of the log, {state.base.index}")
        if index - 1 == state.base.index:
            return state._replace(tail=state.base)
        refill = next((entry for entry in persist.rewrite if entry.index == index - 1), None)
        return state._replace(tail=self._point_now(index - 1) if refill is None else point_of(refill))

    def _point_now(self, index: int) -> Point:
        entry = self._cache.get(index)
        return point_of(entry) if entry is not None else self._point(index)

    def _check_rewrite(self, state: Meta, entries: tuple[Entry, ...]) -> None:
        refilled = {entry.index: entry for entry in entries}
        for entry in entries:
            if not state.base.index < entry.index <= state.tail.index:
                raise Bug(f"entry {entry.index} is to be refilled, which the log does not hold")
            before = refilled.get(entry.index - 1)
            chain = before.chain if before is not None else self._known_chain(entry.index - 1)
            if chain is not None and _chain(chain, entry) != entry.chain:
                raise Bug(f"the refill of entry {entry.index} does not continue the chain")
            if entry.index == state.tail.index and (entry.term, entry.chain) != (state.tail.term, state.tail.chain):
                raise Bug(f"the refill of entry {entry.index} is not the entry that was there")

    def _write_entries(self, transaction: Any, persist: Persist) -> None:
        database = self._entries
        if persist.install is not None and not persist.keep_suffix:
            transaction.drop(database, delete=False)
        if persist.truncate_from is not None:
            _delete_from(transaction, database, persist.truncate_from)
        for entry in persist.rewrite:
            transaction.put(records.key(entry.index), records.encode(entry), db=database)
        for entry in persist.entries:
            transaction.put(records.key(entry.index), records.encode(entry), db=database, append=True)

    def _write_meta(self, transaction: Any, state: Meta) -> None:
        old = self._state
        changed: dict[bytes, Any] = {}
        if state.base is not old.base:
            changed[b"base"] = (state.base.index + 1, *state.base[1:])
        if state.tail is not old.tail:
            changed[b"tail"] = tuple(state.tail)
        if state.hard is not old.hard:
            changed[b"hard"] = codec.hard_document(state.hard)
        if state.membership is not old.membership or state.previous is not old.previous:
            documents = meta_documents(state)
            changed[b"membership"], changed[b"previous"] = documents[b"membership"], documents[b"previous"]
        if state.snapshot is not old.snapshot or state.before is not old.before:
            changed[b"snapshot"] = codec.snapshot_document(state.snapshot)
            changed[b"before"] = codec.snapshot_document(state.before)
        for name, document in changed.items():
            _put_meta(transaction, self._meta, name, document)

    def _change(self, documents: dict[bytes, Any], state: Meta) -> None:
        with _transaction(self._environment) as transaction:
            for name, document in documents.items():
                _put_meta(transaction, self._meta, name, document)
        self._adopt(state)

    def add_snapshot(self, meta: SnapshotMeta) -> None:
        """A durable snapshot of our own becomes `snapshot`, the former one `previous_snapshot`; synced.

        Raises Bug when it stands for an entry that the log does not know, DiskFull, StorageError.
        """
        entry = self._readable(meta.index)
        known = (
            self._state.base if meta.index == self.first - 1 else self._state.tail if meta.index == self.last else None
        )
        term = known.term if known is not None else entry.term if entry is not None else meta.term
        if not self.first - 1 <= meta.index <= self.last or term != meta.term:
            raise Bug(f"snapshot {meta.name} of entry {meta.index}@{meta.term} does not belong to this log")
        state = self._state._replace(snapshot=meta, before=self.snapshot)
        with _transaction(self._environment) as transaction:
            self._write_meta(transaction, state)
        self._adopt(state)

    def trim(self, first: int, records_max: int) -> int:
        """Drop entries below `first`, at most `records_max` of them, synced. Returns how many went; 0: nothing left.

        An entry that is damaged cannot become the base; the one before becomes it then. Raises DiskFull, StorageError.
        """
        first = min(first, self.last + 1)
        lowest = self._lowest_stored()
        if lowest is None or lowest >= first:
            return 0
        end = min(first, lowest + records_max)  # the first entry that stays this time
        base = self._state.base
        while end - 1 > self._state.base.index:
            try:
                base = self._point_now(end - 1)
                break
            except EntryDamaged:
                end -= 1
        if end <= lowest:
            return 0
        state = self._state._replace(base=base)
        with _transaction(self._environment) as transaction:
            for index in range(lowest, end):
                transaction.delete(records.key(index), db=self._entries)
            self._write_meta(transaction, state)
        self._adopt(state)
        self._evict_below(end)
        self._drop_marks()
        return end - lowest

    def _lowest_stored(self) -> int | None:
        for index, _ in self._records(0, self.last):
            return index
        return None

    # --- cache and size ----------------------------------------------------------------------------------------------

    def _refresh_cache(self, persist: Persist) -> None:
        cache = self._cache
        if persist.install is not None and not persist.keep_suffix:
            self._cut(self.first)
        if persist.truncate_from is not None:
            self._cut(persist.truncate_from)
        self._evict_below(self.first)
        if not cache:
            self._cache_first = persist.entries[0].index if persist.entries else self.last + 1
        for entry in persist.rewrite:
            if entry.index in cache:
                cache[entry.index] = entry
        size = self._mark_bytes[-1]
        for entry in persist.entries:
            cache[entry.index] = entry
            length = len(entry.payload)
            self._cache_bytes += length + ENTRY_OVERHEAD_BYTES
            size += length + records.HEADER_BYTES
        self._mark(size)
        while self._cache_bytes > self._cache_bytes_max and self._cache_first < self.last:
            self._evict_below(self._cache_first + 1)

    def _cut(self, index: int) -> None:
        """Forget what is known of entries `index` and above."""
        for above in range(max(index, self._cache_first), self._cache_first + len(self._cache)):
            self._cache_bytes -= len(self._cache.pop(above).payload) + ENTRY_OVERHEAD_BYTES
        if self._marks[-1] >= index:
            size = self._size_up_to(index - 1)
            while self._marks and self._marks[-1] >= index:
                self._marks.pop()
                self._mark_bytes.pop()
            self._marks.append(index - 1)
            self._mark_bytes.append(size)

    def _evict_below(self, index: int) -> None:
        while self._cache and self._cache_first < index:
            self._cache_bytes -= len(self._cache.pop(self._cache_first).payload) + ENTRY_OVERHEAD_BYTES
            self._cache_first += 1
        if not self._cache:
            self._cache_first = max(self._cache_first, index)

    def _mark(self, size: int) -> None:
        if len(self._marks) > 1 and size - self._mark_bytes[-2] < MARK_BYTES:
            self._marks[-1], self._mark_bytes[-1] = self.last, size
        elif self.last > self._marks[-1]:
            self._marks.append(self.last)
            self._mark_bytes.append(size)

    def _drop_marks(self) -> None:
        while len(self._marks) > 2 and self._marks[1] < self.first:
            del self._marks[0], self._mark_bytes[0]

    def _stored_bytes(self) -> int:
        transaction = self._environment.reader()
        try:
            stat = transaction.stat(self._entries)
            return int((stat["leaf_pages"] + stat["overflow_pages"]) * stat["psize"])
        finally:
            transaction.abort()

    def bytes_after(self, index: int) -> int:
        """Bytes of the records above `index`: within 1 MiB for what this run appended, estimated for what is older."""
        return self._mark_bytes[-1] - self._size_up_to(index)

    def _size_up_to(self, index: int) -> int:
        marks, sizes = self._marks, self._mark_bytes
        place = bisect_right(marks, index)
        if place == 0:
            return sizes[0]
        if place == len(marks):
            return sizes[-1]
        low, high = marks[place - 1], marks[place]
        return sizes[place - 1] + (index - low) * (sizes[place] - sizes[place - 1]) // (high - low)


def _read_checked_meta(environment: Environment) -> Meta:
    entries, meta_database = environment.databases
    transaction = environment.reader()
    try:
        meta = read_meta(lambda name: transaction.get(name, db=meta_database))
        last_key = transaction.cursor(entries)
        stored_last = records.index_of(last_key.key()) if last_key.last() else None
    except lmdb.Error as error:
        raise translate(error, environment.path) from error
    finally:
        transaction.abort()
    expected = meta.tail.index if meta.tail.index > meta.base.index else None
    if stored_last is not None and stored_last <= meta.base.index:
        stored_last = None  # entries below the base wait for being trimmed
    if stored_last != expected:
        raise Damaged("log", f"the last entry should be {expected}, the last one stored is {stored_last}")
    return meta


def _after_append(state: Meta, entries: Iterable[Entry]) -> Meta:
    last, term, chain, stamp = state.tail
    entry = None
    for entry in entries:
        if entry.index != last + 1 or entry.term < term or entry.stamp < stamp:
            raise Bug(f"entry {entry.index}@{entry.term} cannot follow {last}@{term}")
        if _chain(chain, entry) != entry.chain:
            raise Bug(f"entry {entry.index}@{entry.term} does not continue the chain")
        last, term, chain, stamp = entry.index, entry.term, entry.chain, entry.stamp
    return state if entry is None else state._replace(tail=Point(last, term, chain, stamp))


def _after_settings(state: Meta, persist: Persist) -> Meta:
    if persist.hard is not None:
        if persist.hard.term < state.hard.term:
            raise Bug(f"the term would go back from {state.hard.term} to {persist.hard.term}")
        state = state._replace(hard=persist.hard)
    if persist.membership is not None:
        state = state._replace(membership=persist.membership, previous=persist.previous_membership)
    return state


def _chain(previous: int, entry: Entry) -> int:
    return chain_of(previous, entry.index, entry.term, entry.kind, entry.stamp, entry.seed, entry.payload)


def _decode_at(expected: int, index: int, record: bytes) -> Entry:
    if index != expected:
        raise EntryDamaged(expected, "is missing")
    return records.decode(index, record)


def _put_meta(transaction: Any, database: Any, name: bytes, document: Any) -> None:
    transaction.put(name, codec.seal(LOG_META, name, codec.pack(document)), db=database)


def _delete_from(transaction: Any, database: Any, index: int) -> None:
    cursor = transaction.cursor(database)
    if cursor.set_range(records.key(index)):
        while cursor.delete():
            pass


@contextmanager
def _transaction(environment: Environment) -> Iterator[Any]:
    """A write transaction that is committed, synced, at the end, or leaves no trace."""
    transaction = environment.writer()
    try:
        yield transaction
    except lmdb.Error as error:
        transaction.abort()
        raise translate(error, environment.path) from error
    except BaseException:
        transaction.abort()
        raise
    environment.commit(transaction)
