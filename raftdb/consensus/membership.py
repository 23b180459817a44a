"""The members of the group: the payload of a membership entry, and the single-step changes of them.

Payload (all integers big-endian; strict on decode, so that equal members have equal bytes and nothing else decodes):

    payload = version:1 (=1)  count:2  member * count
    member  = id:text  incarnation:8  client_addr:text  peer_addr:text  flags:1 (1 = voter, 0 = learner)
    text    = length:2  utf-8 bytes (1 .. TEXT_BYTES_MAX)

Members are ordered by id, each id once. A replacement of a lost disk is two changes (remove the old incarnation, add
the new one): in one step, the majorities {A, old C} of {A, B, old C} and {B, new C} of {A, B, new C} would not meet.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from raftdb.consensus.quorum import overlap
from raftdb.errors import RaftdbError
from raftdb.types import Member, Membership, NodeRef

VERSION: Final = 1
TEXT_BYTES_MAX: Final = 512
MEMBERS_MAX: Final = 64
RESERVED: Final = 0
"""The incarnation of a place that is kept for a node which has not come yet: a learner that answers nothing. No node
has it, so it is never retired, and never promoted."""


class BadMembership(RaftdbError):
    """These bytes are not a membership entry."""


class ChangeRefused(RaftdbError):
    """This membership change may not be proposed (now); nothing was changed. The text says why."""


class ChangeKind(Enum):
    ADD_LEARNER = "add learner"  # every member starts as one
    PROMOTE = "promote"  # learner -> voter; the leader does it by itself when the learner has caught up
    DEMOTE = "demote"  # voter -> learner
    REMOVE = "remove"
    ADDRESS = "change address"  # the same id and incarnation at another place


class Change(NamedTuple):
    """One single-step change. Of `member` only ADD_LEARNER and ADDRESS read the addresses; none reads `voter`."""

    kind: ChangeKind
    member: Member


# --- payload --------------------------------------------------------------------------------------------------------


def encode(members: tuple[Member, ...]) -> bytes:
    """The payload of a membership entry. Raises BadMembership for what `decode` would not take back."""
    parts = [VERSION.to_bytes(1, "big"), len(members).to_bytes(2, "big")]
    for member in members:
        parts += [
            _text(member.id),
            member.incarnation.to_bytes(8, "big"),
            _text(member.client_addr),
            _text(member.peer_addr),
            b"\1" if member.voter else b"\0",
        ]
    payload = b"".join(parts)
    decode(payload, 0)
    return payload


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "strict")
    if not 0 < len(data) <= TEXT_BYTES_MAX:
        raise BadMembership(f"a text of {len(data)} bytes")
    return len(data).to_bytes(2, "big") + data


class _Reader:
    """A cursor over the payload that never reads beyond it."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise BadMembership("ends in the middle")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def text(self) -> str:
        size = self.number(2)
        if not 0 < size <= TEXT_BYTES_MAX:
            raise BadMembership(f"a text of {size} bytes")
        try:
            return self.take(size).decode("utf-8", "strict")
        except UnicodeDecodeError:
            raise BadMembership("a text that is not UTF-8") from None


def decode(payload: bytes, index: int) -> Membership:
    """The membership that the entry `index` makes. Raises BadMembership, and nothing else, for any other bytes."""
    reader = _Reader(payload)
    version = reader.number(1)
    if version != VERSION:
        raise BadMembership(f"version {version}")
    count = reader.number(2)
    if count > MEMBERS_MAX:
        raise BadMembership(f"{count} members")
    members = tuple(_member(reader) for _ in range(count))
    if reader.at != len(payload):
        raise BadMembership("bytes after the end")
    if any(members[i - 1].id >= members[i].id for i in range(1, count)):
        raise BadMembership("members out of order")
    if not any(member.voter for member in members):
        raise BadMembership("no voter")
    return Membership(index, members)


def _member(reader: _Reader) -> Member:
    member_id = reader.text()
    incarnation = reader.number(8)
    client_addr = reader.text()
    peer_addr = reader.text()
    flags = reader.number(1)
    if flags > 1:
        raise BadMembership(f"flags {flags}")
    return Member(member_id, incarnation, client_addr, peer_addr, flags == 1)


# --- changes --------------------------------------------------------------------------------------------------------


def voter_refs(membership: Membership) -> frozenset[NodeRef]:
    return frozenset(NodeRef(m.id, m.incarnation) for m in membership.members if m.voter)


def refs(membership: Membership) -> frozenset[NodeRef]:
    return frozenset(NodeRef(m.id, m.incarnation) for m in membership.members)


def is_single_step(old: Membership, new: Membership) -> bool:
    """Whether every majority of the one meets every majority of the other (I15)."""
    return overlap(voter_refs(old), voter_refs(new))


def changed(membership: Membership, change: Change) -> tuple[Member, ...]:
    """The members after `change`, ordered by id. Raises ChangeRefused."""
    kind, wanted = change
    present = membership.get(wanted.id)
    if kind is ChangeKind.ADD_LEARNER:
        if present is not None:
            raise ChangeRefused(_already_there(present, wanted))
        members = [*membership.members, wanted._replace(voter=False)]
    else:
        if present is None or present.incarnation != wanted.incarnation:
            raise ChangeRefused(f"{wanted.id} (incarnation {wanted.incarnation:016x}) is not a member")
        members = [m for m in membership.members if m is not present]
        if kind is not ChangeKind.REMOVE:
            members.append(_moved(present, kind, wanted))
    return _checked(membership, members)


def _already_there(present: Member, wanted: Member) -> str:
    if present.incarnation == wanted.incarnation:
        return f"{wanted.id} is a member already"
    return f"{wanted.id} is a member with another incarnation: remove that one first"


def _moved(present: Member, kind: ChangeKind, wanted: Member) -> Member:
    if kind is ChangeKind.ADDRESS:
        return present._replace(client_addr=wanted.client_addr, peer_addr=wanted.peer_addr)
    voter = kind is ChangeKind.PROMOTE
    if voter and present.incarnation == RESERVED:
        raise ChangeRefused(f"{wanted.id} has not come yet")
    if present.voter == voter:
        raise ChangeRefused(f"{wanted.id} is a {'voter' if voter else 'learner'} already")
    return present._replace(voter=voter)


def _checked(membership: Membership, members: list[Member]) -> tuple[Member, ...]:
    members.sort(key=lambda member: member.id)
    result = tuple(members)
    if not any(member.voter for member in result):
        raise ChangeRefused("the last voter cannot go")
    if len(result) > MEMBERS_MAX:
        raise ChangeRefused(f"more than {MEMBERS_MAX} members")
    if result == membership.members:
        raise ChangeRefused("nothing would change")
    return result
