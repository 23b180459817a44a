"""Changes of the group that people ask for: ADD_NODE, DEL_NODE, RAFT.ADD, REMOVE, PROMOTE, TRANSFER.

They run on worker threads, of any node: on a follower the words go to the leader in a Forward (`Errands`), one hop, and
a worker of the leader does them. An answer OK means: committed, and applied on the leader.

**What may be repeated.** A change says what shall be true ("n3 is no member"), so one whose fate is unknown is asked
again, of the next leader, until the request time-out. Who is meant is pinned before that: the incarnation that the
first node knew. So a removal that is repeated cannot hit a node that has taken the place meanwhile.

    answer                      then
    done                        OK
    refused (ERR ...)           that is the answer
    certainly not executed      again
    unknown                     again, if it is pinned; what is true already is OK

**Invitations.** A node is added by its own doing: it is started with -e and asks for a place (peering.py), since only
it knows its incarnation, and only once its directory is durable. ADD_NODE reserves the place: a learner whose
incarnation is INVITED, which answers nothing and counts for nothing, is committed, and is seen in RAFT.NODES as
`invited`. The node's own request takes its place. DEL_NODE takes an invitation back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgpack

from raftdb import clock
from raftdb.config import peer_address, split_address
from raftdb.consensus.core import Busy, NotLeader
from raftdb.consensus.membership import Change, ChangeKind, ChangeRefused
from raftdb.errors import CommandError, PeerError, RaftdbError, Uncertain, Unexecuted, UsageError
from raftdb.net.wire import Forward, ForwardReply
from raftdb.node.peering import ERRAND, INVITED
from raftdb.node.pending import LEADERSHIP_LOST, LOST_CONTACT, NO_LEADER, STOPPING, TIMED_OUT, TOO_BUSY, Ticket
from raftdb.types import Member, Membership, NodeRef, Role

if TYPE_CHECKING:
    from raftdb.net.server import WorkerPool
    from raftdb.node.node import Node
    from raftdb.node.peering import Peering

log = logging.getLogger("raftdb.members")

POLL_S: Final = 0.02
RESIGNED_S: Final = 1.0  # between the end of leadership and the answer of an entry that was committed before it
ID_BYTES_MAX: Final = 255
NO_LASTING_LEARNERS: Final = CommandError("ERR learners become voters by themselves: a member cannot stay a learner")
#: Request ids of errands; those of forwarded commands count from 1.
ERRAND_IDS: Final = 1 << 62


class Wish(NamedTuple):
    """What somebody wants to be true of the group."""

    verb: str  # add, remove, promote, transfer
    node_id: str  # "" = anybody (transfer)
    address: str  # client address (add)
    incarnation: int | None  # who is meant, as the asked node knew it; None: it knew nobody
    repeated: bool  # an earlier attempt may have been executed


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
        self._errands = Errands(node.peering, node.pool, self._do_for_other)
        node.peering.errands = self._errands

    def add(self, node_id: str, address: str, voter: bool) -> None:
        """Reserve a place for `node_id` at client address `address`; it comes in when it is started with -e.

        It becomes a voter by itself when it has caught up; a learner that stays one (not `voter`) there is not.
        """
        if not voter:
            raise NO_LASTING_LEARNERS
        _check_id(node_id)
        _check_address(address)
        self._fulfil(Wish("add", node_id, address, None, False))

    def remove(self, node_id: str) -> None:
        self._fulfil(self._pinned("remove", node_id))

    def promote(self, node_id: str) -> None:
        self._fulfil(self._pinned("promote", node_id))

    def demote(self, node_id: str) -> None:
        raise NO_LASTING_LEARNERS

    def transfer(self, node_id: str | None) -> None:
        """Hand leadership over, and wait until somebody else leads."""
        self._fulfil(Wish("transfer", node_id or "", "", None, False))

    def hand_over(self, wait_s: float) -> None:
        """Before this node stops: let another one lead, if there is one."""
        node = self._node
        if node.role is not Role.LEADER or node.driver.stopped.is_set():
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

    # --- on the node that was asked ---------------------------------------------------------------------------------

    def _pinned(self, verb: str, node_id: str) -> Wish:
        member = self._member(node_id)
        return Wish(verb, node_id, "", None if member is None else member.incarnation, False)

    def _member(self, node_id: str) -> Member | None:
        return self._node.data.log.membership.get(node_id)

    def _fulfil(self, wish: Wish) -> None:
        """Again and again, until it is done, refused, or time is over. Raises CommandError."""
        end_s = clock.monotonic() + self._node.config.request_timeout_ms / 1000
        first_leader = self._node.leader
        why: CommandError = NO_LEADER
        while True:
            try:
                self._attempt(wish, end_s)
                return
            except Uncertain as error:
                why = error
                wish = wish._replace(repeated=True)
            except Unexecuted as error:
                why = why if wish.repeated else error
            if wish.repeated and self._is_true(wish, first_leader):
                return
            if clock.monotonic() >= end_s or (wish.repeated and not may_repeat(wish)):
                raise why
            if self._node.driver.stopped.wait(POLL_S):
                raise why if wish.repeated else STOPPING

    def _attempt(self, wish: Wish, end_s: float) -> None:
        if self._node.role is Role.LEADER:
            self._lead(wish, end_s)
            return
        leader = self._node.leader
        if leader is None:
            raise NO_LEADER
        term = self._node.term
        errand = self._node.in_driver(lambda: self._errands.send(leader, term, wish))
        if not errand.done.wait(max(0.0, end_s - clock.monotonic())):
            errand.finish(TIMED_OUT)
        if errand.error is not None:
            raise errand.error

    def _is_true(self, wish: Wish, first_leader: NodeRef | None) -> bool:
        """What this node's own log and leader say about a wish whose fate is unknown."""
        core, leader = self._node.core, self._node.leader
        if wish.verb == "transfer":
            moved = leader is not None and leader != first_leader
            return moved and leader is not None and wish.node_id in ("", leader.id)
        return not core.change_open and holds(core.membership, wish)

    # --- on the leader ----------------------------------------------------------------------------------------------

    def _do_for_other(self, wish: Wish) -> None:
        self._lead(wish, clock.monotonic() + self._node.config.request_timeout_ms / 1000)

    def _lead(self, wish: Wish, end_s: float) -> None:
        """Raises CommandError for what is refused; Unexecuted, Uncertain."""
        if self._node.role is not Role.LEADER:
            raise Unexecuted("CLUSTERDOWN this node leads no longer")
        if wish.verb == "transfer":
            self._hand_to(wish.node_id, end_s)
            return
        while True:
            try:
                self._change(wish, end_s)
                return
            except Unexecuted:  # another change is under way, or this leader has committed nothing yet
                if clock.monotonic() >= end_s or self._node.role is not Role.LEADER:
                    raise
                if self._node.driver.stopped.wait(POLL_S):
                    raise

    def _change(self, wish: Wish, end_s: float) -> None:
        """Propose the step and wait until it is applied here."""
        ticket = self._core(lambda: self._propose(wish))
        if ticket is None:
            return
        lost_s = float("inf")
        while not ticket.done.wait(POLL_S):
            now_s = clock.monotonic()
            if self._node.role is Role.LEADER:
                lost_s = float("inf")
            elif lost_s == float("inf"):
                lost_s = now_s + RESIGNED_S
            if now_s >= end_s or now_s >= lost_s or self._node.driver.stopped.is_set():
                raise TIMED_OUT if now_s >= end_s else LEADERSHIP_LOST
        if ticket.error is not None:
            raise ticket.error

    def _propose(self, wish: Wish) -> ChangeTicket | None:
        """Driver: append the step, or nothing when it is true and committed already."""
        core = self._node.core
        change = change_for(core.membership, wish)
        if change is not None:
            return self._node.driver.propose_change(change, ChangeTicket())
        if core.change_open:
            raise ChangeRefused("another membership change is not committed yet")
        return None

    def _core(self, fn: Callable[[], Any]) -> Any:
        core = self._node.core
        try:
            return self._node.in_driver(fn)
        except ChangeRefused as error:
            if core.change_open or core.commit < core.noop_index:
                raise Unexecuted(f"TRYAGAIN {error}") from None
            raise CommandError(f"ERR {error}") from None
        except Busy as error:
            raise Unexecuted(f"TRYAGAIN {error}") from None
        except NotLeader:
            raise Unexecuted("CLUSTERDOWN this node leads no longer") from None

    def _hand_to(self, node_id: str, end_s: float) -> None:
        node = self._node
        if node_id == node.config.own_id:
            return
        self._core(lambda: node.core.transfer(node_id or None))
        given_up = 0
        while node.role is Role.LEADER or node.leader is None:
            given_up = given_up + 1 if node.role is Role.LEADER and node.core.transferring is None else 0
            if given_up > 2:  # twice: the role is told a moment after the transfer ends
                raise CommandError("ERR leadership was not taken over in time; this node still leads")
            if clock.monotonic() >= end_s or node.driver.stopped.wait(POLL_S):
                raise Uncertain("UNCERTAIN leadership was handed over, and no new leader is known yet")


# --- decisions: pure ------------------------------------------------------------------------------------------------


def change_for(membership: Membership, wish: Wish) -> Change | None:
    """The step that makes the wish true; None: it is true. Raises CommandError for what cannot be asked."""
    if holds(membership, wish):
        return None
    member = membership.get(wish.node_id)
    if wish.verb == "add":
        return _addition(membership, member, wish)
    if member is None:
        raise CommandError(f"ERR node {wish.node_id} is not a member")
    if wish.verb == "remove":
        return Change(ChangeKind.REMOVE, member)
    if member.incarnation == INVITED:
        raise CommandError(f"ERR node {wish.node_id} is invited and has not come yet")
    return Change(ChangeKind.PROMOTE, member)


def _addition(membership: Membership, present: Member | None, wish: Wish) -> Change:
    other = next((m for m in membership.members if m.client_addr == wish.address and m.id != wish.node_id), None)
    if other is not None:
        raise CommandError(f"ERR {wish.address} is the address of node {other.id}")
    invited = Member(wish.node_id, INVITED, wish.address, peer_address(wish.address), False)
    if present is None:
        return Change(ChangeKind.ADD_LEARNER, invited)
    if present.incarnation == INVITED:
        return Change(ChangeKind.ADDRESS, invited)
    raise CommandError(
        f"ERR node {wish.node_id} is a member at {present.client_addr}; started with another address it moves by itself"
    )


def holds(membership: Membership, wish: Wish) -> bool:
    """Is the wish true in this membership? Who is not there (any more) cannot be removed, unless it was so before."""
    member = membership.get(wish.node_id)
    if wish.verb == "add":
        return member is not None and member.client_addr == wish.address
    if wish.verb == "remove":
        return wish.repeated and wish.incarnation is not None and not _is_meant(member, wish)
    return member is not None and _is_meant(member, wish) and member.voter


def _is_meant(member: Member | None, wish: Wish) -> bool:
    return member is not None and wish.incarnation in (None, member.incarnation)


def may_repeat(wish: Wish) -> bool:
    """An unpinned removal could hit somebody else when it is repeated."""
    return wish.verb != "remove" or wish.incarnation is not None


def _check_id(node_id: str) -> None:
    size = len(node_id.encode())
    if (
        not 0 < size <= ID_BYTES_MAX
        or not node_id.isprintable()
        or node_id != node_id.strip()
        or set(node_id) & {*",/"}
    ):
        raise CommandError(f"ERR a node id has 1 to {ID_BYTES_MAX} bytes of printable text without ',' and '/'")


def _check_address(address: str) -> None:
    try:
        host, port = split_address(address)
    except UsageError as error:
        raise CommandError(f"ERR {error}") from None
    if not host or not 0 < port < 65_535:
        raise CommandError(
            f"ERR address {address!r}: expected HOST:PORT, with room for the peers' port, which is PORT+1"
        )


# --- to the leader and back -----------------------------------------------------------------------------------------


class Errand:
    """A wish that was sent to the leader."""

    __slots__ = ("done", "error", "to")

    def __init__(self, to: NodeRef) -> None:
        self.to = to
        self.done = threading.Event()
        self.error: CommandError | None = None

    def finish(self, error: CommandError | None) -> None:
        self.error = error
        self.done.set()


class Errands:
    """Both sides of a wish's way to the leader. Driver thread; at most one per worker is under way.

    Payloads (msgpack): Forward [verb, id, address, incarnation or nil, repeated]; ForwardReply [""] for done, else
    [kind, text] with kind "refused", "unexecuted" or "uncertain".
    """

    def __init__(self, peering: Peering, pool: WorkerPool, do: Callable[[Wish], None]) -> None:
        self._peering = peering
        self._pool = pool
        self._do = do
        self._sent: dict[int, Errand] = {}
        self._next_id = ERRAND_IDS

    def send(self, leader: NodeRef, term: int, wish: Wish) -> Errand:
        errand = Errand(leader)
        for number in [number for number, sent in self._sent.items() if sent.done.is_set()]:
            del self._sent[number]
        self._next_id += 1
        payload = msgpack.packb(wish, use_bin_type=True)
        if self._peering.send_to(leader, Forward(self._next_id, term, ERRAND, payload)):
            self._sent[self._next_id] = errand
        else:
            errand.finish(NO_LEADER)
        return errand

    def lost(self, ref: NodeRef) -> None:
        """The connection is gone, and with it the answers."""
        for number in [number for number, errand in self._sent.items() if errand.to == ref]:
            self._sent.pop(number).finish(LOST_CONTACT)

    def on_reply(self, sender: NodeRef, reply: ForwardReply) -> bool:
        """Whether it was meant for this object. Raises PeerError."""
        if reply.request_id < ERRAND_IDS:
            return False
        errand = self._sent.get(reply.request_id)
        if errand is not None and errand.to == sender:
            del self._sent[reply.request_id]
            errand.finish(decode_outcome(reply.payload))
        return True

    def on_forward(self, sender: NodeRef, forward: Forward) -> None:
        """Leader: a worker does it. Raises PeerError."""
        wish = decode_wish(forward.payload)
        driver = self._peering.driver
        assert driver is not None
        if driver.core.role is not Role.LEADER or driver.core.term != forward.term or not driver.takes_writes:
            self._answer(sender, forward.request_id, NO_LEADER)
            return

        def work() -> None:
            outcome: CommandError | None = None
            try:
                self._do(wish)
            except CommandError as error:
                outcome = error
            driver.call(lambda: self._answer(sender, forward.request_id, outcome))

        if not self._pool.submit(work):
            self._answer(sender, forward.request_id, TOO_BUSY)

    def _answer(self, to: NodeRef, request_id: int, outcome: CommandError | None) -> None:
        executed = not isinstance(outcome, Unexecuted)
        self._peering.send_to(to, ForwardReply(request_id, executed, 0, encode_outcome(outcome)))


def encode_outcome(outcome: CommandError | None) -> bytes:
    kind = (
        "uncertain"
        if isinstance(outcome, Uncertain)
        else "unexecuted"
        if isinstance(outcome, Unexecuted)
        else "refused"
    )
    packed: bytes = msgpack.packb([""] if outcome is None else [kind, str(outcome)])
    return packed


def decode_outcome(payload: bytes) -> CommandError | None:
    """Raises PeerError for anything that encode_outcome() cannot have made."""
    match _unpacked(payload):
        case [""]:
            return None
        case [str() as kind, str() as text] if kind in _OUTCOMES:
            return _OUTCOMES[kind](text)
    raise PeerError("malformed answer about the members")


_OUTCOMES: Final[dict[str, type[CommandError]]] = {
    "refused": CommandError,
    "unexecuted": Unexecuted,
    "uncertain": Uncertain,
}
_VERBS: Final = ("add", "remove", "promote", "transfer")


def decode_wish(payload: bytes) -> Wish:
    """Raises PeerError for what no node sends: the words are checked here as a client's are."""
    match _unpacked(payload):
        case [str() as verb, str() as node_id, str() as address, int() | None as incarnation, bool() as repeated]:
            pass
        case _:
            raise PeerError("malformed wish about the members")
    try:
        if verb not in _VERBS or type(incarnation) is bool or not 0 <= (incarnation or 0) < 1 << 64:
            raise PeerError("malformed wish about the members")
        if verb != "transfer" or node_id:
            _check_id(node_id)
        if verb == "add":
            _check_address(address)
    except CommandError as error:
        raise PeerError(f"malformed wish about the members: {error}") from None
    return Wish(verb, node_id, address, incarnation, repeated)


def _unpacked(payload: bytes) -> Any:
    try:
        return msgpack.unpackb(payload, raw=False, use_list=True, max_map_len=0, max_ext_len=0, max_array_len=8)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError(f"malformed payload ({type(error).__name__})") from None
