"""What a node tells about itself and its group: the raft section of INFO, RAFT.INFO, RAFT.NODES, `raftdb status`.

Read from any thread: numbers may be a moment old, and rows of one answer of different moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raftdb import clock
from raftdb.errors import EntryDamaged
from raftdb.node.peering import INVITED
from raftdb.types import Member, Role

if TYPE_CHECKING:
    from raftdb.node.node import Node


def status(node: Node) -> dict[str, object]:
    """Names become raft_<name> in INFO."""
    if node.data is None:
        return {
            "node_id": node.config.own_id,
            "cluster_id": "",
            "role": "candidate",
            "term": 0,
            "voters": 0,
            "peers": [],
        }
    members = node.data.log.membership.members
    leader = node.leader_member()
    voters = sum(1 for member in members if member.voter)
    driver, log = node.driver, node.data.log
    meta = log.snapshot
    return {
        "node_id": node.data.identity.node_id,
        "cluster_id": node.data.identity.cluster_id,
        "role": node.role.value,
        "term": node.term,
        "leader_id": leader.id if leader is not None else "",
        "leader_addr": leader.client_addr if leader is not None else "",
        "commit_index": driver.commit,
        "applied_index": driver.applied,
        "first_index": log.first,
        "last_index": log.last,
        "voters": voters,
        "learners": len(members) - voters,
        "failures_survivable": _survivable(node, members),
        "snapshot_index": meta.index if meta is not None else 0,
        "log_bytes": driver.log_bytes_since_snapshot,
        "flush_last_us": driver.flush_last_us,
        "flush_mean_us": driver.flush_mean_us(),
        "uptime_s": int(clock.monotonic() - node.started_s),
        "digest": node.data.kv.digest.hex(),
        "peers": member_rows(node),
    }


def _survivable(node: Node, members: Sequence[Member]) -> object:
    """How many more voters may be lost now without losing the majority; "" on a node that does not lead."""
    if node.role is not Role.LEADER:
        return ""
    heard = {row["id"] for row in member_rows(node) if row["state"] != "silent"}
    voters = [member for member in members if member.voter]
    return max(-1, sum(1 for member in voters if member.id in heard) - (len(voters) // 2 + 1))


def member_rows(node: Node) -> Sequence[Mapping[str, Any]]:
    """One row per member, by id. What only the leader knows is "" elsewhere."""
    if node.data is None:
        return []
    matched = node.matched()
    contacts = {row["id"]: row["contact_ms"] for row in node.peering.net.status() if row["stage"] == "up"}
    return [_row(node, member, matched, contacts) for member in node.data.log.membership.members]


def _row(node: Node, member: Member, matched: Mapping[Any, int], contacts: Mapping[str, int]) -> dict[str, Any]:
    last = node.data.log.last
    own = member.id == node.data.identity.node_id
    leading = node.role is Role.LEADER
    match: int | str = last if own else matched.get(member.ref, 0) if leading else ""
    return {
        "id": member.id,
        "addr": member.client_addr,
        "peer_addr": member.peer_addr,
        "voter": "yes" if member.voter else "no",
        "state": _state(node, member, own, contacts),
        "match": match,
        "lag": last - match if leading and isinstance(match, int) else "",
        "lag_ms": _lag_ms(node, match) if leading and isinstance(match, int) else "",
        "contact_ms": 0 if own else contacts.get(member.id, ""),
    }


def _state(node: Node, member: Member, own: bool, contacts: Mapping[str, int]) -> str:
    if own:
        return node.role.value
    if member.incarnation == INVITED:
        return "invited"
    if member.id not in contacts:
        return "silent"
    if member.ref == node.leader:
        return "leader"
    return "follower" if member.voter else "learner"


def _lag_ms(node: Node, match: int) -> int:
    """Age of the first entry that is not known to be there; 0 when there is none."""
    log = node.data.log
    if match >= log.last:
        return 0
    try:
        return max(0, clock.wall_ms() - log.stamp(max(match + 1, log.first)))
    except (EntryDamaged, KeyError, IndexError):
        return 0
