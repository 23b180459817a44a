"""A node with -e and without data: asks everybody listed, then joins a cluster or forms one with them.

The rules are consensus/forming.py, a value; this module gives it the answers and does what it decides:

    Wait    say for whom, in a line every five seconds and to every client (-CLUSTERDOWN waiting for ...)
    Join    make a data directory for that cluster, its membership still empty: the log brings it, and until then this
            node counts for nothing; it then asks to be added (peering.py)
    Accept  make a data directory with the plan as membership: from then on this node is formed, whatever happens
    Stop    end with the reason: only the operator can mend this

Questions and answers are StatusRequest and StatusReply, asked four times a second of every listed node that is
connected. Payload (msgpack): ["blank", member, [ref, ...], complete] or ["formed", cluster id, [member, ...]].

It runs in the driver's thread, before there is a driver: it turns loop 0 and the peers' sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgpack

from raftdb import clock
from raftdb.config import Config, peer_address
from raftdb.consensus.forming import Accept, Answer, Blank, Formed, Forming, Join, Plan, Stop, Wait
from raftdb.errors import PeerError, Unexecuted, UsageError
from raftdb.net.wire import FormProposal, FormReply, Reason, StatusReply, StatusRequest
from raftdb.node.peering import INVITED, encode_formed, listed_addresses, listed_names
from raftdb.types import Member, NodeRef

if TYPE_CHECKING:
    from raftdb.net.peers import Refusal, SeedStatus
    from raftdb.net.server import Loop
    from raftdb.node.dispatch import Dispatch
    from raftdb.node.peering import Peering

log = logging.getLogger("raftdb.forming")

ASK_EVERY_S: Final = 0.25
LINE_EVERY_S: Final = 5.0
TURN_S: Final = 0.05
MEMBERS_MAX: Final = 64


class Outcome:
    """What the data directory is to be made with."""

    def __init__(self, cluster_id: str, members: tuple[Member, ...]) -> None:
        self.cluster_id = cluster_id
        self.members = members


class Former:
    """One per node without data. `run` returns the outcome, or None when it was stopped."""

    def __init__(self, config: Config, peering: Peering, dispatch: Dispatch, incarnation: int, cluster_id: str) -> None:
        self._config = config
        self._peering = peering
        self._dispatch = dispatch
        listed, self._is_dns = listed_addresses(config)
        self._listed = listed
        self._names = listed_names(config)
        me = Member(config.own_id, incarnation, config.address, peer_address(config.address), True)
        self._me = me
        self._forming = Forming(
            me,
            () if self._is_dns else listed,
            cluster_id,
            is_dns=self._is_dns,
            expect=config.expect or None,
            overwrite=config.overwrite,
        )
        self._answers: dict[NodeRef, Answer] = {}
        self._refusals: dict[str, str] = {}
        self._several: list[str] = []  # addresses of the list behind which several nodes answer
        self._plan_refused: tuple[NodeRef, str] | None = None  # logged once
        self._fatal = ""
        self._next_line_s = 0.0
        self._line = ""
        self._request_id = 0
        self.stopping = False

    def run(self, loop: Loop) -> Outcome | None:
        """Turns until it is decided. Raises UsageError for what only the operator can mend."""
        self._peering.former = self
        self._peering.net.set_seeds(self._listed)
        next_ask_s = 0.0
        while not self.stopping:
            loop.turn(TURN_S)
            self._peering.net.tick()
            now_s = clock.monotonic()
            if now_s >= next_ask_s:
                next_ask_s = now_s + ASK_EVERY_S
                self._ask()
                outcome = self._decide(now_s)
                if outcome is not None:
                    return outcome
            self._peering.net.flush()
        return None

    def accepted(self) -> None:
        """The data directory is made: what was decided is durable."""
        if self._forming.plan is not None:
            self._forming.accepted()

    # --- answers ----------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        rows = self._peering.net.seeds()
        if self._is_dns:
            self._forming.resolve(row.endpoint for row in rows if row.endpoint)
        places = places_of(rows, self._is_dns)
        self._several = [place for place, answered in places.items() if len(answered) > 1]
        for place, answered in places.items():
            self._hear(place, answered)
        for identity in self._peering.net.connected():
            self._request_id += 1
            self._peering.net.send(identity.ref, StatusRequest(self._request_id))

    def _hear(self, place: str, answered: Collection[NodeRef | None]) -> None:
        """Who answers at this place of the list: one node, nobody, or (several) nobody that can be told apart."""
        ref = next(iter(answered)) if len(answered) == 1 else None
        if len(answered) == 1 and ref is None:
            self._forming.answer(place, Blank(self._me, (), False))  # this node itself
        elif ref is not None and ref in self._answers:
            self._forming.answer(place, self._answers[ref])
        else:
            self._forming.silent(place)

    def lost(self, ref: NodeRef) -> None:
        self._answers.pop(ref, None)

    def refused(self, address: str, node_id: str, refusal: Refusal) -> None:
        """Both sides know the secret, so this is meant."""
        if refusal.reason is Reason.SAME_ID:
            self._fatal = f"node {node_id} at {address} has this node's id: {refusal.text}"
        elif refusal.reason is not Reason.MYSELF:
            self._refusals[address] = refusal.text

    def on_frame(self, ref: NodeRef, message: Any) -> None:
        kind = type(message)
        try:
            if kind is StatusRequest:
                self._peering.net.send(ref, StatusReply(message.request_id, encode_answer(self._forming.report())))
            elif kind is StatusReply:
                answer = decode_answer(message.payload)
                _need(not isinstance(answer, Blank) or answer.member.ref == ref)
                self._answers[ref] = answer
            elif kind is FormProposal:
                self._offered(ref, message)
        except PeerError as error:
            log.warning("node %s: %s", ref.id, error)

    def _offered(self, ref: NodeRef, message: FormProposal) -> None:
        _need(bool(message.cluster_id) and any(member.ref == ref for member in message.members))
        reason = self._forming.offered(Plan(message.cluster_id, tuple(message.members)))
        if reason is not None:
            if self._plan_refused != (ref, reason):
                self._plan_refused = (ref, reason)
                log.warning("node %s proposes a cluster: %s", ref.id, reason)
            self._peering.net.send(ref, FormReply(message.cluster_id, False, reason))

    # --- decisions --------------------------------------------------------------------------------------------------

    def _decide(self, now_s: float) -> Outcome | None:
        if self._fatal:
            raise UsageError(self._fatal)
        decision = self._forming.decide()
        if isinstance(decision, Stop):
            raise UsageError(decision.reason)
        if isinstance(decision, Accept):
            log.info("forming cluster %s of %s", decision.plan.cluster_id, _names(decision.plan.members))
            return Outcome(decision.plan.cluster_id, decision.plan.members)
        if isinstance(decision, Join):
            return self._join(decision)
        assert isinstance(decision, Wait)
        self._wait(self._for_whom() or decision.text, now_s)
        return None

    def _for_whom(self) -> str:
        """The nodes of the list that have not answered, as the operator wrote them; "" = nobody, or a DNS name."""
        if self._is_dns:
            return ""
        forming = self._forming
        silent = [self._names.get(place, place) for place in forming.listed if place not in forming.answers]
        several = [f"{self._names.get(place, place)} (several nodes answer there)" for place in self._several]
        rest = [name for name in silent if not any(each.startswith(name) for each in several)]
        return "waiting for " + ", ".join(several + rest) if silent else ""

    def _join(self, decision: Join) -> Outcome:
        formed = next(
            a for a in self._answers.values() if isinstance(a, Formed) and a.cluster_id == decision.cluster_id
        )
        log.info("joining cluster %s of %s", decision.cluster_id, _names(formed.members))
        return Outcome(decision.cluster_id, ())

    def _wait(self, text: str, now_s: float) -> None:
        text += self._troubles()
        self._dispatch.not_ready = Unexecuted(f"CLUSTERDOWN {text}")
        if now_s >= self._next_line_s or text != self._line:
            self._next_line_s, self._line = now_s + LINE_EVERY_S, text
            log.info("%s", text)

    def _troubles(self) -> str:
        rows = [
            f"{row.address}: {row.trouble}" for row in self._peering.net.seeds() if row.trouble and not row.connected
        ]
        rows += [f"{address}: {text}" for address, text in self._refusals.items()]
        return f" ({'; '.join(dict.fromkeys(rows))})" if rows else ""


def places_of(rows: Iterable[SeedStatus], is_dns: bool) -> dict[str, set[NodeRef | None]]:
    """Per place of the list, who is connected that answers there; None stands for this node itself.

    A place is an address as it was given, or with a DNS name each of the addresses that it stands for. A host name may
    have several addresses (IPv4 and IPv6, say); it is one node as long as one node answers at them.
    """
    places: dict[str, set[NodeRef | None]] = {}
    for row in rows:
        place = row.endpoint if is_dns else row.address
        answered = places.setdefault(place, set()) if place else set()
        if row.myself:
            answered.add(None)
        elif row.connected:
            answered.add(row.node)
    return places


def _names(members: tuple[Member, ...]) -> str:
    return ", ".join(f"{member.id} ({member.client_addr})" for member in members) or "members not known yet"


# --- the answers on the wire ----------------------------------------------------------------------------------------


def encode_answer(answer: Answer) -> bytes:
    if isinstance(answer, Formed):
        return encode_formed(answer.cluster_id, answer.members)
    packed: bytes = msgpack.packb(("blank", answer.member, answer.met, answer.complete), use_bin_type=True)
    return packed


def decode_answer(payload: bytes) -> Answer:
    """Raises PeerError for anything that encode_answer() cannot have made."""
    try:
        row = msgpack.unpackb(
            payload, raw=False, use_list=True, max_map_len=0, max_ext_len=0, max_array_len=MEMBERS_MAX
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError(f"malformed answer ({type(error).__name__})") from None
    _need(type(row) is list and len(row) > 0)
    if row[0] == "formed":
        _need(len(row) == 3 and _is_text(row[1]) and type(row[2]) is list)
        members = tuple(_member(each) for each in row[2])
        return Formed(row[1], tuple(member for member in members if member.incarnation != INVITED))
    _need(len(row) == 4 and row[0] == "blank" and type(row[2]) is list and type(row[3]) is bool)
    return Blank(_member(row[1]), tuple(_ref(each) for each in row[2]), row[3])


def _member(row: Any) -> Member:
    _need(type(row) is list and len(row) == 5 and type(row[4]) is bool)
    _need(all(map(_is_text, (row[0], row[2], row[3]))) and _is_incarnation(row[1]))
    return Member(*row)


def _ref(row: Any) -> NodeRef:
    _need(type(row) is list and len(row) == 2 and _is_text(row[0]) and _is_incarnation(row[1]))
    return NodeRef(*row)


def _is_text(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= 512


def _is_incarnation(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _need(condition: bool) -> None:
    if not condition:
        raise PeerError("malformed answer")
