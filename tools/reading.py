"""What raftdb-dump reads, as dictionaries of plain facts (JSON prints them as they are), and the text of each.

Views of the data are short, a page of keys each: a long read transaction makes LMDB's file of a running node grow.
A damaged entry is a row like any other, so that what lies behind it is shown too.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from raftdb import format as text
from raftdb.commands import glob
from raftdb.commands.machine import Machine
from raftdb.commands.table import Table, builtin_table
from raftdb.errors import Damaged, EntryDamaged, RaftdbError, UsageError
from raftdb.storage import datadir, keys, kvstate, snapshot, verify
from raftdb.storage.kv import DATABASES, HASH, LIST, SET, STRING, ZSET, Head, KvStore, View
from raftdb.storage.log import Log
from raftdb.types import Entry, Kind, Member

TYPES: Final[dict[int, str]] = {STRING: "string", LIST: "list", SET: "set", ZSET: "zset", HASH: "hash"}
TYPE_NAMES: Final = tuple(TYPES.values())
READ_BYTES_MAX: Final = 1 << 20  # of log entries at a time
KEYS_PER_VIEW: Final = 1_000
FOLLOW_WAIT_S: Final = 0.2

#: Commands that change keys which they do not name, as a key's history has to show them.
_WHOLE_DATABASE: Final = frozenset({b"FLUSHDB"})
_ALL_DATABASES: Final = frozenset({b"FLUSHALL", b"SWAPDB"})
#: Commands whose keys may lie in another database as well.
_OTHER_DATABASE: Final = frozenset({b"MOVE", b"COPY"})

Facts = dict[str, Any]
Decode = Callable[[bytes], list[Any]]


# --- a whole directory ----------------------------------------------------------------------------------------------


def summary(directory: Path) -> dict[str, Facts]:
    """Sections of facts. A part that cannot be read is told in its section; the others are shown all the same.

    Raises UsageError when this is no data directory at all, Damaged when its identity is.
    """
    identity = datadir.read_identity(directory)
    running = "a node runs on it" if verify.is_running(directory) else "no node runs on it"
    return {
        "directory": {"path": str(directory), "state": running},
        "identity": {
            "node": identity.node_id,
            "cluster": identity.cluster_id,
            "incarnation": f"{identity.incarnation:016x}",
            "format": identity.format_version,
        },
        "log": _told(_log_facts, directory),
        "data": _told(_kv_facts, directory),
        "snapshots": _told(_snapshot_facts, directory),
    }


def _told(facts: Callable[[Path], Facts], directory: Path) -> Facts:
    try:
        return facts(directory)
    except Damaged as error:
        return {"damaged": str(error)}


def is_damaged(sections: dict[str, Facts]) -> bool:
    return any("damaged" in facts for facts in sections.values())


def _log_facts(directory: Path) -> Facts:
    log = open_log(directory)
    try:
        return {
            "term": log.hard.term,
            "vote": text.node(log.hard.vote),
            "first": log.first,
            "last": log.last,
            "last_term": log.term(log.last),
            "last_time": text.stamp(log.stamp(log.last)),
            "starts": log.starts,
            "members_as_of": log.membership.index,
            "members": [_member_facts(row) for row in log.membership.members],
            "snapshot": log.snapshot.name if log.snapshot else None,
            "previous_snapshot": log.previous_snapshot.name if log.previous_snapshot else None,
            "file_bytes": _file_bytes(datadir.log_path(directory)),
        }
    finally:
        log.close()


def _member_facts(row: Member) -> Facts:
    return {
        "id": row.id,
        "incarnation": f"{row.incarnation:016x}",
        "client_addr": row.client_addr,
        "peer_addr": row.peer_addr,
        "voter": row.voter,
    }


def _kv_facts(directory: Path) -> Facts:
    store = open_kv(directory)
    try:
        with store.view() as view:
            state = view.state()
            counts = {str(db): view.count(db) for db in range(DATABASES) if view.count(db)}
            expiring = sum(view.expiring(db) for db in range(DATABASES))
    finally:
        store.close(clean=False)
    path = datadir.kv_path(directory)
    return {
        "path": path.name,
        "state": kvstate.read(datadir.kv_state_path(directory)) or "unknown",
        "trusted": kvstate.is_trusted(datadir.kv_state_path(directory), path),
        "applied": state.applied,
        "term": state.term,
        "time": text.stamp(state.stamp),
        "digest": state.digest.hex(),
        "keys": sum(counts.values()),
        "keys_by_database": counts,
        "with_expiry": expiring,
        "file_bytes": _file_bytes(path),
    }


def _snapshot_facts(directory: Path) -> Facts:
    folder = datadir.snapshot_path(directory)
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return {"files": [{"name": file.name, "bytes": file.stat().st_size} for file in files]}


def _file_bytes(environment: Path) -> int:
    """What the file takes on disk, which is less than its size where it has holes."""
    try:
        return (environment / "data.mdb").stat().st_blocks * 512
    except OSError as error:
        raise Damaged(str(environment), error.strerror or str(error)) from None


def summary_lines(sections: dict[str, Facts]) -> Iterator[tuple[str, str, str]]:
    """(section, name, value) rows of text."""
    for section, facts in sections.items():
        for name, value in facts.items():
            for shown in _fact_texts(name, value):
                yield section, name.replace("_", " "), shown
                section = name = ""


def _fact_texts(name: str, value: Any) -> list[str]:
    if isinstance(value, list):
        return [_inline(item) for item in value] or ["none"]
    if isinstance(value, dict):
        return [", ".join(f"db{key}: {item}" for key, item in value.items()) or "none"]
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if name.endswith("bytes"):
        return [text.size(value)]
    return ["none" if value is None else text.safe(str(value))]


def _inline(item: Facts) -> str:
    if "bytes" in item:
        return f"{text.safe(item['name'])} ({text.size(item['bytes'])})"
    return " ".join((text.safe(item["id"]), text.safe(item["client_addr"]), "voter" if item["voter"] else "learner"))


# --- the log --------------------------------------------------------------------------------------------------------


class Wanted(NamedTuple):
    """Which entries to show; None: any."""

    term: int | None
    command: bytes | None  # upper case
    key: bytes | None
    db: int | None

    @property
    def about_commands(self) -> bool:
        return self.command is not None or self.key is not None or self.db is not None


class LogRow(NamedTuple):
    """One entry: its commands that were asked for, or what is wrong with it."""

    index: int  # type: ignore[assignment]  # hides tuple.index
    entry: Entry | None
    items: list[Any] | None  # None: not a command entry
    damage: str | None = None

    def text(self) -> str:
        if self.entry is None:
            return f"{self.index} DAMAGED: {text.safe(self.damage or '')}"
        name, _, rest = text.entry(self.entry, self.items).partition(" ")
        note = f" DAMAGED: {text.safe(self.damage)}" if self.damage else ""
        return f"{name} {text.stamp(self.entry.stamp)} {rest}{note}"

    def facts(self) -> Facts:
        if self.entry is None:
            return {"index": self.index, "damage": self.damage}
        entry = self.entry
        facts: Facts = {
            "index": entry.index,
            "term": entry.term,
            "kind": text.KIND_NAMES.get(entry.kind, entry.kind),
            "stamp_ms": entry.stamp,
            "time": text.stamp(entry.stamp),
            "seed": entry.seed,
            "chain": entry.chain,
            "payload_bytes": len(entry.payload),
        }
        if self.items is not None:
            facts["commands"] = [item_facts(item) for item in self.items]
        if self.damage:
            facts["damage"] = self.damage
        return facts


def item_facts(item: Any) -> Facts:
    """A request, or a transaction with its requests."""
    if hasattr(item, "requests"):
        return {"db": item.db, "multi": [item_facts(inner) for inner in item.requests]}
    return {"db": item.db, "argv": list(item.argv)}


def open_log(directory: Path) -> Log:
    """Raises UsageError when this is no data directory, Damaged when the log cannot be read at all."""
    datadir.read_identity(directory)
    return Log.open(datadir.log_path(directory), unclean=False, read_only=True)


def log_rows(
    directory: Path, first: int | None, last: int | None, tail: int | None, wanted: Wanted, follow: bool
) -> Iterator[LogRow]:
    """The rows of a range, cut to what is kept; with `follow` it goes on until somebody interrupts."""
    log = open_log(directory)
    try:
        table = builtin_table()
        decode = Machine(table).decode
        low = max(first or 1, log.first, log.last - tail + 1 if tail else 1)
        while True:
            high = min(last, log.last) if last else log.last
            for row in _entries(log, low, high, decode):
                shown = chosen(row, wanted, table)
                if shown is not None:
                    yield shown
            low = max(low, high + 1)
            if not follow or (last is not None and low > last):
                return
            time.sleep(FOLLOW_WAIT_S)
            log.refresh()
            low = max(low, log.first)
    finally:
        log.close()


def _entries(log: Log, low: int, high: int, decode: Decode) -> Iterator[LogRow]:
    """low..high; a damaged entry is one row, and reading goes on behind it."""
    while low <= high:
        try:
            entries = log.entries(low, high, READ_BYTES_MAX)
        except EntryDamaged as damage:
            yield from _entries(log, low, damage.index - 1, decode)
            yield LogRow(damage.index, None, None, damage.what)
            low = damage.index + 1
            continue
        for entry in entries:
            yield decoded(entry, decode)
        low = entries[-1].index + 1


def decoded(entry: Entry, decode: Decode) -> LogRow:
    if entry.kind != Kind.COMMANDS:
        return LogRow(entry.index, entry, None)
    try:
        return LogRow(entry.index, entry, decode(entry.payload))
    except RaftdbError as error:
        return LogRow(entry.index, entry, None, str(error))


def chosen(row: LogRow, wanted: Wanted, table: Table) -> LogRow | None:
    """The row with only the commands that were asked for; None when nothing is left. Damage is always shown."""
    if row.entry is None or row.damage:
        return row
    if wanted.term is not None and row.entry.term != wanted.term:
        return None
    if not wanted.about_commands:
        return row
    items = [item for item in row.items or () if any(concerns(inner, wanted, table) for inner in flat(item))]
    return row._replace(items=items) if items else None


def flat(item: Any) -> tuple[Any, ...]:
    """The requests of a transaction, or the one request."""
    return tuple(getattr(item, "requests", (item,)))


def concerns(request: Any, wanted: Wanted, table: Table) -> bool:
    """Whether this request is of the command, the database, and about the key that were asked for."""
    name = bytes(request.argv[0]).upper() if request.argv else b""
    if wanted.command is not None and name != wanted.command:
        return False
    everywhere = name in _ALL_DATABASES
    if wanted.db not in (None, request.db) and not everywhere and name not in _OTHER_DATABASE:
        return False
    if wanted.key is None or everywhere or name in _WHOLE_DATABASE:
        return True
    return wanted.key in keys_of(table, request.argv)


def keys_of(table: Table, argv: list[bytes]) -> list[bytes]:
    """The keys that a command line names; of a command that this program does not know, every argument counts."""
    try:
        return table.find(list(argv)).keys(list(argv))
    except RaftdbError:
        return list(argv[1:])


# --- the data -------------------------------------------------------------------------------------------------------


def open_kv(directory: Path) -> KvStore:
    datadir.read_identity(directory)
    return KvStore.open(datadir.kv_path(directory), datadir.kv_state_path(directory), read_only=True)


def keyspace_rows(
    directory: Path, db: int | None, pattern: bytes | None, kind: str | None, limit: int | None
) -> Iterator[Facts]:
    """Every key that fits, by database and hash order."""
    store = open_kv(directory)
    fits = _glob(pattern)
    left = limit if limit is not None else -1
    try:
        for database in range(DATABASES) if db is None else (db,):
            for name, head, stamp in _heads(store, database):
                if fits(name) and kind in (None, TYPES.get(head.type)):
                    if left == 0:
                        return
                    left -= 1
                    yield key_facts(database, name, head, stamp)
    finally:
        store.close(clean=False)


def _heads(store: KvStore, db: int) -> Iterator[tuple[bytes, Head, int]]:
    """(name, head, stamp) of a database, a page per view."""
    from_hash, more = 0, True
    while more:
        page, from_hash, more = _page(store, db, from_hash)
        yield from page


def _page(store: KvStore, db: int, from_hash: int) -> tuple[list[tuple[bytes, Head, int]], int, bool]:
    """Names of one hash are never torn apart: the next page starts at a hash."""
    page: list[tuple[bytes, Head, int]] = []
    with store.view() as view:
        before = -1
        for name_hash, name, head in view.scan_heads(db, from_hash):
            if len(page) >= KEYS_PER_VIEW and name_hash != before:
                return page, name_hash, True
            before = name_hash
            page.append((name, head, view.stamp))
    return page, 0, False


def _glob(pattern: bytes | None) -> Callable[[bytes], object]:
    """A matcher for Redis' patterns. Raises UsageError for one that is too long."""
    if pattern is None:
        return lambda name: True
    try:
        return glob.matcher(pattern)
    except RaftdbError as error:
        raise UsageError(str(error)) from None


def key_facts(db: int, name: bytes, head: Head, stamp: int) -> Facts:
    facts: Facts = {
        "db": db,
        "key": name,
        "type": TYPES.get(head.type, f"type {head.type}"),
        "version": head.version,
    }
    if head.type == STRING:
        facts["value"] = head.value
    else:
        facts["count"] = head.count
    if head.expiry_ms:
        facts["expires_ms"] = head.expiry_ms
        facts["expires"] = text.stamp(head.expiry_ms)
        facts["dead"] = head.expiry_ms <= stamp
    return facts


def key_rows(directory: Path, db: int, name: bytes, limit: int | None) -> Iterator[Facts]:
    """The key's facts, then its elements. Raises UsageError when there is no such key."""
    store = open_kv(directory)
    try:
        with store.view() as view:
            head = view.head(db, name)
            if head is None:
                raise UsageError(f"database {db} has no key {text.quote(name)}")
            yield key_facts(db, name, head, view.stamp)
            yield from itertools.islice(elements(view, head), limit)
    finally:
        store.close(clean=False)


def elements(view: View, head: Head) -> Iterator[Facts]:
    """What a collection holds, in its order."""
    if head.type == HASH:
        for _, field, value in view.scan_fields(head.collection):
            yield {"field": field, "value": value}
    elif head.type == SET:
        for _, member, _ in view.scan_fields(head.collection):
            yield {"member": member}
    elif head.type == ZSET:
        for score, member in view.scan_scores(head.collection):
            yield {"member": member, "score": score}
    elif head.type == LIST:
        items = view.scan_items(head.collection, head.first, head.last)  # positions have gaps
        for place, (_, value) in enumerate(items):
            yield {"index": place, "value": value}


def row_text(facts: Facts) -> str:
    """A line for a key or for one element of it."""
    if "key" not in facts:
        return "  " + " ".join(_plain_text(value) for value in facts.values())
    held = _plain_text(facts["value"]) if "value" in facts else f"({facts.get('count', '?')} elements)"
    database = f"[{facts['db']}] " if facts["db"] else ""
    line = f"{database}{text.quote(facts['key'])} {facts['type']} {held} version {facts['version']}"
    if "expires" in facts:
        line += f" {'dead since' if facts['dead'] else 'expires'} {facts['expires']}"
    return line


def _plain_text(value: Any) -> str:
    return text.quote(value) if isinstance(value, bytes) else text.safe(str(value))


# --- snapshots ------------------------------------------------------------------------------------------------------


def snapshot_header(file: Path) -> Facts:
    """Raises Damaged, UsageError (no such file, not a snapshot)."""
    header = snapshot.read_header(file)
    facts: Facts = {"file": str(file), "bytes": file.stat().st_size}
    for name in ("codec", "cluster_id", "node_id", "created_ms", "index", "term", "stamp"):
        facts[name] = getattr(header, name)
    facts["created"] = text.stamp(header.created_ms)
    facts["time"] = text.stamp(header.stamp)
    facts["digest"] = header.kv_digest.hex()
    facts["keys_by_database"] = {str(db): count for db, count in enumerate(header.keys) if count}
    facts["with_expiry"] = sum(header.expiring)
    facts["members"] = [_member_facts(row) for row in header.membership.members]
    return facts


def snapshot_rows(file: Path, limit: int | None) -> Iterator[Facts]:
    """Keys and elements in the order of the file. Raises Damaged where reading ends."""
    with snapshot.Reader(file) as reader:
        for row in itertools.islice(reader.walk(), limit):
            yield _snapshot_row(row, reader.header.stamp)


def _snapshot_row(row: snapshot.Row, stamp: int) -> Facts:
    if row.head is not None:
        return key_facts(row.db, row.name, row.head, stamp)
    names = {"field": ("field", "value"), "item": ("position", "value"), "score": ("score", "member")}
    first, second = names.get(row.kind, ("name", "value"))
    return {first: row.key, second: row.value}


# --- verify ---------------------------------------------------------------------------------------------------------

#: What a finding means for the node, by the beginning of its place.
_MEANINGS: Final = (
    ("log entry", "when the node needs it, it gets it from another member, or alone out of its data if that has it"),
    ("log", "the node does not start: move the directory away and start with -o, or alone from a backup with -l"),
    (
        "kv",
        "a copy of what snapshot and log hold: stop the node and delete kv and kv.current, the next start rebuilds it",
    ),
    ("snapshots", "no node can start from this file: the one before it is used; CHECKPOINT makes another"),
    ("checkpoints", "no cluster can be started from this file"),
    ("identity", "the node does not start: put the file back, or move the directory away and start with -o"),
)


_RECORD: Final = re.compile(r"^(heads|fields|items|scores|expiry|garbage|meta) record ([0-9a-f]*)$")
RECORD_KEY_BYTES: Final = 40  # of a longer key the place of a finding names so many


class Told(NamedTuple):
    """A finding in full."""

    place: str
    what: str
    meaning: str
    note: bool
    index: int | None = None  # type: ignore[assignment]  # of a log entry; hides tuple.index

    def text(self) -> str:
        if self.note:
            return f"{text.safe(self.place)}: {text.safe(self.what)} (note)"
        return f"{text.safe(self.place)}: {text.safe(self.what)}" + (f" ({self.meaning})" if self.meaning else "")


def findings(path: Path) -> Iterator[Told]:
    """Of a data directory or a snapshot file. Raises UsageError when it is neither."""
    if path.is_dir():
        for finding in itertools.chain(verify.verify_directory(path), _checkpoint_findings(path)):
            yield told(finding, path)
    elif path.is_file():
        for finding in verify.verify_snapshot(path):
            yield Told(
                finding.place, finding.what, "no node and no cluster can be started from this file", finding.note
            )
    else:
        raise UsageError(f"{path}: no such file or directory")


def _checkpoint_findings(path: Path) -> Iterator[verify.Finding]:
    """The files that people asked for; what has a temporary name is being written."""
    directory = path / "checkpoints"
    for file in sorted(directory.iterdir()) if directory.is_dir() else ():
        if file.is_file() and not file.name.startswith(".") and file.suffix not in (".part", ".tmp"):
            try:
                yield from (
                    finding._replace(place=f"checkpoints/{finding.place}") for finding in verify.verify_snapshot(file)
                )
            except UsageError:
                yield verify.Finding(f"checkpoints/{file.name}", "is not a snapshot of raftdb", note=True)


def _record_place(found: re.Match[str]) -> str:
    """`kv key colour`, `kv field f of collection 12`, instead of the bytes of a record's key in LMDB."""
    space, data = found[1], bytes.fromhex(found[2])
    start = {"heads": keys.HEAD_PREFIX_BYTES, "fields": keys.FIELD_PREFIX_BYTES, "scores": keys.SCORE_PREFIX_BYTES}
    start["expiry"] = keys.EXPIRY_PREFIX_BYTES
    if space not in start or len(data) < start[space]:
        return f"kv {found[0]}"
    name = text.quote(data[start[space] :]) + ("..." if len(data) == RECORD_KEY_BYTES else "")
    collection = int.from_bytes(data[:8], "big")
    if space == "heads":
        return f"kv key {name}"
    if space == "expiry":
        return f"kv expiry of key {name}"
    return f"kv {'field' if space == 'fields' else 'member'} {name} of collection {collection}"


def told(finding: verify.Finding, path: Path) -> Told:
    """With its place inside of the directory, and its meaning."""
    place = _RECORD.sub(_record_place, finding.place.removeprefix(f"{path}/"))
    if place.partition(",")[0].endswith(".dat") and "/" not in place:
        place = f"snapshots/{place}"
    what = "there is no such file" if "[Errno 2]" in finding.what else finding.what
    meaning = next((meaning for begin, meaning in _MEANINGS if place.startswith(begin)), "")
    return Told(place, what, "" if finding.note else meaning, finding.note, finding.index)
