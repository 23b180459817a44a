"""Changes of the group that people ask for: ADD_NODE, DEL_NODE, RAFT.ADD, RAFT.REMOVE, RAFT.PROMOTE, RAFT.TRANSFER.

They run on worker threads and wait until the change is committed (or until what was asked for is true anyway: a change
that is repeated after a lost answer succeeds). On a follower the request goes to the leader through `admin` below, one
hop, as writes do.

A node is added by its own doing: it is started with -e and asks to be let in (joining.py). ADD_NODE names a node that
is such a candidate already, or that answers at the address; it is let in as a learner and becomes a voter by itself
when it has caught up.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from raftdb import clock
from raftdb.config import peer_address
from raftdb.consensus.core import Busy, NotLeader
from raftdb.consensus.membership import Change, ChangeKind, ChangeRefused
from raftdb.errors import CommandError, RaftdbError, Unexecuted
from raftdb.node.pending import TIMED_OUT, Ticket
from raftdb.types import Member, Role

if TYPE_CHECKING:
    from raftdb.node.node import Node

log = logging.getLogger("raftdb.members")

POLL_S: Final = 0.02


class ChangeTicket(Ticket):
    """Waits for a membership entry instead of a client's commands."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        super().__init__(None, 2, [], [], 0, clock.monotonic())  # type: ignore[arg-type]
        self.done = threading.Event()
        self.error: CommandError | None = None

    def answer(self, replies: Any, index: int) -> None:
        if self.claim():
            self.done.set()

    def fail(self, error: CommandError) -> None:
        if self.claim():
            self.error = error
            self.done.set()


class Members:
    """The verbs. Worker threads."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def add(self, node_id: str, address: str, voter: bool) -> None:
        """Let `node_id` at client address `address` in; with `voter` wait until it votes."""
        end_s = self._end_s()
        self._check_leader()
        while True:
            member = self._member(node_id)
            if member is not None and member.client_addr == address and (member.voter or not voter):
                return
            if member is None:
                self._invite(node_id, address)
            elif member.client_addr != address:
                moved = member._replace(client_addr=address, peer_addr=peer_address(address))
                self._change(Change(ChangeKind.ADDRESS, moved))
            if clock.monotonic() > end_s:
                raise CommandError(self._why_not_yet(node_id, address, member))
            self._node.driver.stopped.wait(POLL_S)

    def _why_not_yet(self, node_id: str, address: str, member: Member | None) -> str:
        if member is not None:
            return f"ERR node {node_id} is a member now, but has not caught up yet; it becomes a voter by itself"
        return f"ERR no node {node_id} without data answers at {address}: start it with -e naming this cluster"

    def _invite(self, node_id: str, address: str) -> None:
        """Look for the node at its address, and let it in when it is there."""
        found = self._node.in_driver(lambda: self._node.peering.invite(node_id, peer_address(address)))
        if found is not None:
            member = Member(node_id, found.incarnation, found.client_addr, found.peer_addr, False)
            self._change(Change(ChangeKind.ADD_LEARNER, member))

    def remove(self, node_id: str) -> None:
        self._check_leader()
        member = self._member(node_id)
        if member is None:
            raise CommandError(f"ERR node {node_id} is not a member")
        self._change(Change(ChangeKind.REMOVE, member))

    def promote(self, node_id: str) -> None:
        self._set_voter(node_id, True)

    def demote(self, node_id: str) -> None:
        self._set_voter(node_id, False)

    def _set_voter(self, node_id: str, voter: bool) -> None:
        self._check_leader()
        member = self._member(node_id)
        if member is None:
            raise CommandError(f"ERR node {node_id} is not a member")
        if member.voter != voter:
            self._change(Change(ChangeKind.PROMOTE if voter else ChangeKind.DEMOTE, member))

    def transfer(self, node_id: str | None) -> None:
        """Hand leadership over, and wait until somebody else leads."""
        node = self._node
        self._check_leader()
        if node_id == node.config.own_id:
            return
        self._core(lambda: node.core.transfer(node_id))
        end_s = self._end_s()
        while node.role is Role.LEADER or node.leader is None:
            if clock.monotonic() > end_s:
                raise CommandError("ERR leadership was not taken over in time; this node may still lead")
            node.driver.stopped.wait(POLL_S)

    def hand_over(self, wait_s: float) -> None:
        """Before this node stops: let another voter lead, if there is one. Never fails."""
        node = self._node
        if node.role is not Role.LEADER or len(node.data.log.membership.voters) < 2:
            return
        try:
            node.in_driver(lambda: node.core.transfer(None))
        except (RaftdbError, CommandError) as error:
            log.info("leadership is not handed over: %s", error)
            return
        end_s = clock.monotonic() + wait_s
        while node.role is Role.LEADER and clock.monotonic() < end_s and not node.driver.stopped.wait(POLL_S):
            pass
        log.info("leadership handed over" if node.role is not Role.LEADER else "nobody took the lead in time")

    # --- steps ------------------------------------------------------------------------------------------------------

    def _end_s(self) -> float:
        return clock.monotonic() + self._node.config.request_timeout_ms / 1000

    def _member(self, node_id: str) -> Member | None:
        return self._node.data.log.membership.get(node_id)

    def _check_leader(self) -> None:
        if self._node.role is not Role.LEADER:
            leader = self._node.leader_member()
            where = f"; the leader is {leader.id} at {leader.client_addr}" if leader is not None else ""
            raise Unexecuted(f"CLUSTERDOWN only the leader changes the members{where}")

    def _change(self, change: Change) -> None:
        """Propose one step and wait until it is applied here. One step at a time: waits for another's to be over."""
        end_s = self._end_s()
        while True:
            try:
                ticket = self._core(lambda: self._node.driver.propose_change(change, ChangeTicket()))
                break
            except Unexecuted:
                if clock.monotonic() > end_s or self._node.role is not Role.LEADER:
                    raise
                self._node.driver.stopped.wait(POLL_S)
        if not ticket.done.wait(max(0.0, end_s - clock.monotonic())):
            raise TIMED_OUT
        if ticket.error is not None:
            raise ticket.error

    def _core(self, fn: Callable[[], Any]) -> Any:
        try:
            return self._node.in_driver(fn)
        except ChangeRefused as error:
            raise CommandError(f"ERR {error}") from None
        except Busy as error:
            raise Unexecuted(f"TRYAGAIN {error}") from None
        except NotLeader:
            raise Unexecuted("CLUSTERDOWN this node leads no longer") from None
