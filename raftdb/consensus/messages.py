"""The messages that peers send to each other: plain immutable values, every one with its sender's term first.

`raftdb.net.wire` turns them into frames and back; `check` is the gateway that a decoded message must pass before it
may reach the core. The number of a message on the wire is its place in `MESSAGES`; new ones go to the end.

    leader -> member            member -> leader           anyone -> anyone
    Append                      AppendReply                VoteRequest    (pre-vote and vote)
    Heartbeat                   HeartbeatReply             VoteReply
    SnapshotOffer               RefillRequest
    TimeoutNow                  ReadRequest
    ReadReply

Sources: Raft paper figure 2; dissertation 3.10 (TimeoutNow), 6.4 (ReadIndex), 9.6 (pre-vote). Refill is TigerBeetle's
and FAST'18's "protocol-aware recovery": a damaged entry is asked for again, never truncated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias

from raftdb.errors import PeerError
from raftdb.types import Entry, Membership, NodeRef, SnapshotMeta

TERM_MAX: Final = (1 << 62) - 1
"""No term of a healthy cluster comes near it; a term above it is refused whatever the node's own term is."""
INDEX_MAX: Final = (1 << 62) - 1
STAMP_MAX: Final = (1 << 62) - 1
UINT64_MAX: Final = (1 << 64) - 1


class Append(NamedTuple):
    """AppendEntries with entries (or a probe without any). `entries[0].index == prev_index + 1`."""

    term: int
    prev_index: int
    prev_term: int
    prev_chain: int  # the leader's chain at prev_index: an assertion, log matching is (index, term)
    commit: int  # the leader's commit index; the receiver takes at most prev_index + len(entries)
    entries: tuple[Entry, ...]


class AppendReply(NamedTuple):
    """ok: everything up to `index` is durable here and equals the leader's log.

    Not ok: the Append with prev_index == `index` was refused. `hint_term` is the term of the entry that sits there
    instead (0: the log is shorter) and `hint_index` the first index of that term (or last + 1).
    Also the answer to leaders of a lower term (then `term` alone matters).
    """

    term: int
    ok: bool
    index: int  # type: ignore[assignment]
    hint_index: int
    hint_term: int


class Heartbeat(NamedTuple):
    """Contact, commit index, and a numbered round. Round 0 asks for no answer: it only tells the commit index."""

    term: int
    round: int  # counts from 1 within a leader's term
    commit: int  # min(leader's commit, the receiver's match): never beyond what the receiver acknowledged
    wall_ms: int  # the leader's wall clock, carried for the node (stamp.py); the core never looks at it
    age_ms: int | None  # age of the last quorum-confirmed round, for `bounded` reads; None: none yet


class HeartbeatReply(NamedTuple):
    """The receiver of round `round` had not moved to a higher term when it answered."""

    term: int
    round: int
    last: int  # the sender's last log index, durable when this leaves
    wall_ms: int  # the sender's wall clock, carried for the leader's stamps


class VoteRequest(NamedTuple):
    """RequestVote. `pre`: would you vote for me in `term`? It changes no term. `transfer`: the old leader wants it."""

    term: int  # the term to be elected in; the sender is still in term - 1 while pre-voting
    last_index: int
    last_term: int
    pre: bool
    transfer: bool


class VoteReply(NamedTuple):
    """Granted: `term` is that of the request. Refused: `term` is the voter's own."""

    term: int
    granted: bool
    pre: bool


class SnapshotOffer(NamedTuple):
    """The receiver's next entry is no longer in the leader's log: fetch this file instead."""

    term: int
    meta: SnapshotMeta


class TimeoutNow(NamedTuple):
    """Leadership is yours: campaign at once. Void when the term or the receiver's last entry is another one."""

    term: int
    last_index: int
    last_term: int


class ReadRequest(NamedTuple):
    """A member asks for a read index. `context` names the batch: (starts of the asker << 32) + counter."""

    term: int
    context: int


class ReadReply(NamedTuple):
    """All reads of the batch `context` may be served once `index` is applied."""

    term: int
    context: int
    index: int  # type: ignore[assignment]


class RefillRequest(NamedTuple):
    """Entry `index` is damaged here: send again from there on, whatever was acknowledged before."""

    term: int
    index: int  # type: ignore[assignment]


Message: TypeAlias = (
    Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | VoteRequest
    | VoteReply
    | SnapshotOffer
    | TimeoutNow
    | ReadRequest
    | ReadReply
    | RefillRequest
)

#: The number of a message on the wire is its place here. Append only.
MESSAGES: Final[tuple[type[Any], ...]] = (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    VoteRequest,
    VoteReply,
    SnapshotOffer,
    TimeoutNow,
    ReadRequest,
    ReadReply,
    RefillRequest,
)


class Envelope(NamedTuple):
    """A message and whom it is for."""

    to: NodeRef
    message: Message


# --- the gateway ----------------------------------------------------------------------------------------------------


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_term(value: object) -> bool:
    return _is_int(value, 0, TERM_MAX)


def _is_index(value: object) -> bool:
    return _is_int(value, 0, INDEX_MAX)


def _is_stamp(value: object) -> bool:
    return _is_int(value, 0, STAMP_MAX)


def _is_age(value: object) -> bool:
    return value is None or _is_stamp(value)


def _is_uint64(value: object) -> bool:
    return _is_int(value, 0, UINT64_MAX)


def _is_bool(value: object) -> bool:
    return type(value) is bool


def _is_entry(value: object) -> bool:
    return (
        isinstance(value, Entry)
        and _is_index(value.index)
        and _is_term(value.term)
        and _is_int(value.kind, 0, 255)
        and _is_stamp(value.stamp)
        and _is_uint64(value.seed)
        and type(value.payload) is bytes
        and _is_uint64(value.chain)
    )


def _is_entries(value: object) -> bool:
    return type(value) is tuple and all(_is_entry(entry) for entry in value)


def _is_text(value: object, length_max: int) -> bool:
    return type(value) is str and 0 < len(value) <= length_max


def _is_membership(value: object) -> bool:
    if not isinstance(value, Membership) or not _is_index(value.index) or type(value.members) is not tuple:
        return False
    return all(
        _is_text(m.id, 255)
        and _is_uint64(m.incarnation)
        and _is_text(m.client_addr, 512)
        and _is_text(m.peer_addr, 512)
        and _is_bool(m.voter)
        for m in value.members
    )


def _is_snapshot(value: object) -> bool:
    return (
        isinstance(value, SnapshotMeta)
        and _is_text(value.name, 255)
        and "/" not in value.name
        and "\0" not in value.name
        and value.name not in (".", "..")
        and _is_index(value.index)
        and _is_term(value.term)
        and _is_uint64(value.chain)
        and _is_stamp(value.stamp)
        and _is_membership(value.membership)
        and _is_int(value.size_bytes, 0, INDEX_MAX)
        and type(value.digest) is bytes
        and len(value.digest) == 32
    )


#: What each field must be, by its name; a name means the same in every message.
FIELDS: Final[dict[str, Callable[[object], bool]]] = {
    "term": _is_term,
    "prev_term": _is_term,
    "hint_term": _is_term,
    "last_term": _is_term,
    "index": _is_index,
    "prev_index": _is_index,
    "hint_index": _is_index,
    "last_index": _is_index,
    "last": _is_index,
    "commit": _is_index,
    "round": _is_index,
    "prev_chain": _is_uint64,
    "context": _is_uint64,
    "wall_ms": _is_stamp,
    "age_ms": _is_age,
    "ok": _is_bool,
    "granted": _is_bool,
    "pre": _is_bool,
    "transfer": _is_bool,
    "entries": _is_entries,
    "meta": _is_snapshot,
}

_CHECKS: Final = {kind: tuple((name, FIELDS[name]) for name in kind._fields) for kind in MESSAGES}


def check(message: object) -> Message:
    """Return `message` when every field has the right type and range; raise PeerError naming the first that has not.

    For whoever decodes bytes of a peer; the core trusts what comes through `step`, except for terms and for the order
    of entries, which it checks itself.
    """
    checks = _CHECKS.get(type(message))
    if checks is None:
        raise PeerError(f"not a message: {type(message).__name__}")
    assert isinstance(message, tuple)
    for value, (name, is_valid) in zip(message, checks, strict=True):
        if not is_valid(value):
            raise PeerError(f"{type(message).__name__}.{name} is out of range")
    return message  # type: ignore[return-value]
