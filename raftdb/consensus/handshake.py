"""Whom to talk to: what a node's own memory says about a peer that greets it.

Cluster id and protocol version are compared before (net); here is what only the core can know. `starts` counts lives
of a data directory: a peer that shows fewer than were seen has gone back in time. The leader of the peer's own term
knows how much of its log that peer has acknowledged: a peer that shows less has lost what others count on.
The starts that were seen need to live in memory only: they are a second net, below identity and incarnation.
"""

from __future__ import annotations

from typing import NamedTuple

from raftdb.consensus.state import State
from raftdb.types import NodeRef, Role


class Greeting(NamedTuple):
    """What a peer says of itself in the handshake."""

    ref: NodeRef
    starts: int
    term: int
    last: int  # last index of its log, durable


def refusal(core: State, greeting: Greeting, seen_starts: int | None) -> str | None:
    """Why the connection must be refused, or None. `seen_starts`: the highest seen of this (id, incarnation)."""
    ref = greeting.ref
    if ref == core.me:
        return f"{ref.id} is this node itself"
    member = core.membership.get(ref.id)
    if ref.id == core.me.id:
        return f"{ref.id} is this node's id: two nodes cannot share it"
    if ref in core.retired:
        return f"{ref.id} was removed from the cluster with this incarnation"
    if member is not None and member.incarnation != ref.incarnation and not core.change_open and is_newest(core):
        return f"{ref.id} is a member with another incarnation: its data was lost or restored? use -o"
    if seen_starts is not None and greeting.starts < seen_starts:
        return f"{ref.id} has been started {seen_starts} times, not {greeting.starts}: restored from a backup? use -o"
    return _lost_entries(core, greeting)


def is_newest(core: State) -> bool:
    """Only a leader knows that its membership is the newest; a follower may be behind."""
    return core.role is Role.LEADER


def _lost_entries(core: State, greeting: Greeting) -> str | None:
    if core.role is not Role.LEADER or greeting.term != core.term:
        return None
    peer = core.peers.get(greeting.ref)
    if peer is None or peer.match <= greeting.last:
        return None
    return f"{greeting.ref.id} has acknowledged {peer.match} and holds {greeting.last}: restored from a backup? use -o"
