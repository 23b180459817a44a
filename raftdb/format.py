"""Human text for what the log, the data and the wire hold: for raftdb-dump, the test transcripts and debug logs.

Everything here is a pure function from a value to one line. Bytes of clients come out quoted as redis-cli quotes them:
nothing that a terminal or a log would take for more than text (a newline, an escape sequence) gets through. Long values
are cut, and the cut says how much there was. Entries are named `index@term` throughout: `12@3` is entry 12 of term 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from raftdb.types import Entry, HardState, Kind, Member, Membership, NodeRef, SnapshotMeta

VALUE_CHARS_MAX: Final = 64  # of one argument in a line of text; --json gives the whole
ARGUMENTS_MAX: Final = 16

KIND_NAMES: Final[dict[int, str]] = {
    Kind.NOOP: "noop",
    Kind.COMMANDS: "commands",
    Kind.MEMBERSHIP: "membership",
    Kind.TIME: "time",
}

_ESCAPES: Final[dict[int, str]] = {
    0x07: "\\a",
    0x08: "\\b",
    0x09: "\\t",
    0x0A: "\\n",
    0x0D: "\\r",
    0x22: '\\"',
    0x5C: "\\\\",
}
_PLAIN: Final = frozenset(range(0x21, 0x7F)) - frozenset(b"\"'\\")


# --- bytes ----------------------------------------------------------------------------------------------------------


def quote(data: bytes, chars_max: int = VALUE_CHARS_MAX) -> str:
    """`red`, `"two words"`, `"\\x00\\xff"`; cut after chars_max bytes: `"aaaa"...(1048576 bytes)`."""
    cut = data[:chars_max]
    text = cut.decode("ascii") if cut and _PLAIN.issuperset(cut) else '"' + "".join(map(_escape, cut)) + '"'
    return text if len(data) <= chars_max else f"{text}...({len(data)} bytes)"


def _escape(byte: int) -> str:
    return _ESCAPES.get(byte) or (chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}")


def readable(data: bytes) -> str:
    """All of it, for JSON: text where it is UTF-8, else the escapes of `quote` without the quotes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(map(_escape, data))


# --- small values ---------------------------------------------------------------------------------------------------


def at(index: int, term: int) -> str:
    """`12@3`: the name of an entry."""
    return f"{index}@{term}"


def stamp(ms: int) -> str:
    """Milliseconds of Unix time as UTC text: `2026-11-23 14:05:09.250`; what no calendar holds stays a number."""
    try:
        return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S") + f".{ms % 1000:03d}"
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"


def size(count_bytes: int) -> str:
    """`512 B`, `1.5 KiB`, `64.0 MiB`."""
    amount, units = float(count_bytes), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while amount >= 1024 and unit != "TiB":
        amount, unit = amount / 1024, next(units)
    return f"{count_bytes} B" if unit == "B" else f"{amount:.1f} {unit}"


def node(ref: NodeRef | None) -> str:
    """`n1:0badcafe`: the id, and the start of the incarnation that tells two lives apart; `-` for none."""
    return "-" if ref is None else f"{safe(ref.id)}:{ref.incarnation >> 32:08x}"


def safe(text: str) -> str:
    """Text from a file or the wire as one printable line."""
    return text if text.isprintable() else quote(text.encode("utf-8", "backslashreplace"))


def hard_state(hard: HardState) -> str:
    return f"term {hard.term}, vote {node(hard.vote)}"


def member(row: Member) -> str:
    return f"{node(row.ref)} {safe(row.client_addr)}{'' if row.voter else ' learner'}"


def membership(members: Membership) -> str:
    """`members as of 7: n1:... 127.0.0.1:6379, n2:... 127.0.0.1:6389 learner`."""
    return f"members as of {members.index}: " + (", ".join(map(member, members.members)) or "none")


def snapshot(meta: SnapshotMeta) -> str:
    return (
        f"{safe(meta.name)}: {at(meta.index, meta.term)}, {stamp(meta.stamp)}, {size(meta.size_bytes)}, "
        f"{len(meta.membership.members)} members, digest {meta.digest.hex()[:16]}"
    )


# --- commands and entries -------------------------------------------------------------------------------------------


def arguments(argv: Sequence[bytes], chars_max: int = VALUE_CHARS_MAX) -> str:
    """A command as one would type it: `SET color "dark red"`."""
    words = [quote(argv[0], chars_max).upper(), *(quote(word, chars_max) for word in argv[1:ARGUMENTS_MAX])]
    left = len(argv) - ARGUMENTS_MAX
    return " ".join(words) + (f" ...({left} more)" if left > 0 else "")


def request(item: Any) -> str:
    """A Request (db, argv) or a Transaction (db, watches, requests) of an entry."""
    database = f"[{item.db}] " if item.db else ""
    if hasattr(item, "requests"):
        return f"{database}MULTI " + "; ".join(arguments(inner.argv) for inner in item.requests) + " EXEC"
    return database + arguments(item.argv)


def entry(value: Entry, items: Iterable[Any] | None = None) -> str:
    """`2@1 SET color red; INCR n`, `1@1 noop`. `items` are the decoded commands; without them the size is told."""
    name = at(value.index, value.term)
    if items is not None:
        return f"{name} " + "; ".join(map(request, items))
    kind = KIND_NAMES.get(value.kind, f"kind {value.kind}")
    return f"{name} {kind}" + (f" ({size(len(value.payload))})" if value.payload else "")


def span(entries: Sequence[Entry]) -> str:
    """A run of entries by name only: `[2@1]`, `[2@1..9@3]`, `[]`."""
    if not entries:
        return "[]"
    first, last = entries[0], entries[-1]
    if first.index == last.index:
        return f"[{at(first.index, first.term)}]"
    return f"[{at(first.index, first.term)}..{at(last.index, last.term)}]"


# --- messages -------------------------------------------------------------------------------------------------------


def message(value: Any) -> str:
    """Any message of consensus.messages: its name and its fields, `Append term=2 base=1@1 entries=[2@2]`."""
    fields = " ".join(f"{name}={_field(getattr(value, name))}" for name in _field_names(value))
    return f"{type(value).__name__} {fields}".rstrip()


def _field_names(value: Any) -> tuple[str, ...]:
    """Of a NamedTuple, a dataclass or a slotted class."""
    for attribute in ("_fields", "__dataclass_fields__", "__slots__"):
        if names := getattr(value, attribute, ()):
            return tuple(names)
    return ()


def _field(value: Any) -> str:
    """One field of a message: the shared values by their own text, everything else as Python shows it."""
    text = _KNOWN.get(type(value))
    if text is not None:
        return str(text(value))
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple | list):
        return span(value) if value and isinstance(value[0], Entry) else "[" + ", ".join(map(_field, value)) + "]"
    return repr(value)


_KNOWN: Final[dict[type, Any]] = {
    bytes: quote,
    str: safe,
    bool: lambda value: "yes" if value else "no",
    NodeRef: node,
    HardState: hard_state,
    Membership: membership,
    SnapshotMeta: snapshot,
    type(None): lambda _: "-",
}
