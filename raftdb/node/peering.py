"""The other nodes, as this one meets them: who is let in, what they say, who else wants to be a member.

PeerNet moves the messages; this module is what the node makes of them. Consensus messages go to the core, forwarded
commands to forwarding.py, pieces of snapshots to the transfer, and what nodes without data say to forming.py. All of
it runs in the driver's thread, called from its polls and ticks.

**Joining.** A node that has made its data directory for an existing cluster (forming.py) has no membership yet: it
counts for nothing, and asks to be added, once a second, any member it can reach; one that does not lead names the
leader's address. The leader adds it as a learner and the core promotes it. The place may have been reserved by
ADD_NODE (a learner whose incarnation is INVITED): then that row is removed first, as the row of a lost disk is for -o.

**Removed.** A node learns of its removal from the log, or from a leader that refuses it: only a leader knows that its
membership is the newest, and a log that holds something belongs to a node that was a member. It waits, says so in its
log and to its clients, and never asks to be added again. What it says of the others' refusals ends when it has a
leader.

**Changed addresses.** A member that greets with other addresses than the membership has is moved by the leader.

**A plan is handed on.** While the membership is the one given at forming, a member that has not accepted the plan yet
(its greeting names no cluster) is given it by every member of the plan that it meets. (Not by a node that joins: it
holds no plan.)

**Progress in greetings** (last index, term) is read from the durable log when a greeting is made: a leader takes a
member that shows less than it has acknowledged for one that was restored from a backup.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack

from raftdb import __version__, clock
from raftdb.config import Config, own_names_in, peer_address, split_address
from raftdb.consensus.core import Busy, Core, NotLeader
from raftdb.consensus.handshake import Greeting, refusal
from raftdb.consensus.membership import Change, ChangeKind, ChangeRefused
from raftdb.consensus.messages import Envelope, Heartbeat, HeartbeatReply
from raftdb.consensus.stamp import Deviation, WallClocks, deviation
from raftdb.errors import PeerError, RaftdbError, Unexecuted, UsageError
from raftdb.net.handshake import cluster_key
from raftdb.net.peers import PeerNet, Refusal
from raftdb.net.transfer import SnapshotFetcher, SnapshotSource
from raftdb.net.wire import (
    ChunkReply,
    ChunkRequest,
    FormProposal,
    FormReply,
    Forward,
    ForwardReply,
    Hint,
    Identity,
    JoinReply,
    JoinRequest,
    Reason,
    StatusReply,
    StatusRequest,
)
from raftdb.node.forwarding import Forwarding
from raftdb.storage import snapshot
from raftdb.types import Member, NodeRef, Role, SnapshotMeta

if TYPE_CHECKING:
    from raftdb.net.server import Loop
    from raftdb.node.driver import Driver
    from raftdb.node.forming import Former
    from raftdb.node.members import Errands

log = logging.getLogger("raftdb.peers")

JOIN_EVERY_S: Final = 1.0
CARE_EVERY_S: Final = 0.5  # identity, members to be connected to, plans, addresses
WAITING_LINE_EVERY_S: Final = 5.0
JOIN_AGAIN_S: Final = 0.25  # the place was not free yet, or the leader another one
#: Forward.context of a membership command (members.py); the payload is its words.
ERRAND: Final = b"members"
NOT_LEADER: Final = "not the leader"
REFUSALS_MAX: Final = 64
IN_FLIGHT_MAX: Final = 8
FLUSHES_PER_ENTRY: Final = 2
FLUSH_MIN_S: Final = 0.001  # what a turn costs besides
#: The incarnation of a member that ADD_NODE has announced and that has not come yet: it never answers, nor counts.
INVITED: Final = 0
#: Refusals that are about the connection, or about the moment, and not about what this node is.
_PASSING: Final = frozenset({Reason.MYSELF, Reason.UNEXPECTED, Reason.DUPLICATE, Reason.FULL})


def listed_addresses(config: Config) -> tuple[tuple[str, ...], bool]:
    """The peer addresses that -e names, the own one removed, and whether it is one DNS name.

    Raises UsageError.
    """
    entries = _entries(config)
    own = peer_address(config.address)
    found = dict.fromkeys(_peer_address(address) for _, address in entries)
    is_name = len(entries) == 1 and not entries[0][0] and _is_dns_name(split_address(entries[0][1])[0])
    return tuple(address for address in found if address != own), is_name


def listed_names(config: Config) -> dict[str, str]:
    """What people call the nodes at the peer addresses of -e: "n2 at HOST:PORT", as far as -e says it."""
    return {
        _peer_address(address): f"{node_id} at {address}" if node_id else address
        for node_id, address in _entries(config)
    }


def _entries(config: Config) -> list[tuple[str, str]]:
    """(id, "" when -e has none; client address) per entry of -e."""
    entries = [entry.strip().rpartition("/") for entry in own_names_in(config.ensemble).split(",") if entry.strip()]
    return [(node_id, address) for node_id, _, address in entries]


def _peer_address(address: str) -> str:
    host, port = split_address(address)
    if not host or not 0 < port < 65_535:
        raise UsageError(f"-e {address}: expected HOST:PORT, with room for the peers' port, which is PORT+1")
    return peer_address(address)


def _is_dns_name(host: str) -> bool:
    """A name that may stand for several nodes: has letters, is no IPv6 address, is not this machine's loopback."""
    return host != "localhost" and ":" not in host and any(c.isalpha() for c in host)


class Peering:
    """PeerHandler of net.peers, Outbound of the driver. One per node, from before it is formed until it stops."""

    def __init__(self, config: Config, loop: Loop, secret: bytes, identity: Identity) -> None:
        self.config = config
        self.driver: Driver | None = None  # None while there is no data
        self.former: Former | None = None  # set while there is no data
        self.identity = identity
        bind = config.bind or config.host
        dial_from = bind if bind not in ("0.0.0.0", "::") and bind[:1].isdigit() else ""
        self.net = PeerNet(loop, self, identity, cluster_key(secret), dial_from=dial_from)
        self.walls = WallClocks()
        self.forwarding: Forwarding = None  # type: ignore[assignment]  # set by attach()
        self.source: SnapshotSource = None  # type: ignore[assignment]
        self.fetcher: SnapshotFetcher = None  # type: ignore[assignment]
        self.leader_hint = ""  # peer address
        self.refusals: dict[str, str] = {}  # by node id: why that node does not let this one in
        self.errands: Errands | None = None  # membership commands on their way to the leader; set by members.py
        self._join_seeds: tuple[str, ...] = ()  # peer addresses of the members that a joining node was told
        self._not_ready: Unexecuted | None = None  # what this module has put before the clients' commands
        self._client_text = ""
        self._join_text = ""  # logged last
        self._anew = False  # its log counts for nothing: the entry that made it a member was never committed
        self._listed = listed_addresses(config)[0]
        self._next_care_s = 0.0
        self._next_join_s = 0.0
        self._next_line_s = 0.0
        self._members_set: object = None
        self._clock_state = Deviation.FINE
        self._status_id = 0

    def listen(self) -> None:
        """Raises OSError."""
        host, port = split_address(peer_address(self.config.address))
        self.net.listen(self.config.bind or host, port)

    def attach(self, driver: Driver, identity: Identity) -> None:
        """There is data now: the core takes part."""
        self.driver = driver
        self.former = None
        directory = snapshot_directory(driver)
        self.forwarding = Forwarding(driver, self)
        self.source = SnapshotSource(
            directory, self._find_snapshot, self.net.send, bandwidth_bytes=self.config.snapshot_bandwidth_bytes
        )
        self.fetcher = SnapshotFetcher(
            directory, self.net.send, snapshot.check_received, self._fetched, self._fetch_failed
        )
        self._set_identity(identity)
        self.net.progress = lambda: (0 if self._anew else driver.log.last, driver.log.hard.term)
        self._care(clock.monotonic())

    def _set_identity(self, identity: Identity) -> None:
        if identity != self.identity:
            self.identity = identity
            self.net.set_identity(identity)

    # --- the driver's side ------------------------------------------------------------------------------------------

    def send(self, envelopes: tuple[Envelope, ...]) -> None:
        send = self.net.send
        for to, message in envelopes:
            send(to, message)

    def send_to(self, ref: NodeRef, message: Any) -> bool:
        """False: certainly not sent."""
        return self.net.send(ref, message)

    def flush(self) -> None:
        """Also looks whether a node that was outside is let in: its membership entry is acknowledged right before."""
        self.net.flush()
        if self._client_text and self.driver is not None:
            self._refuse_clients(self.driver, self._reason(self.driver))

    def is_connected(self, ref: NodeRef) -> bool:
        return self.net.is_connected(ref)

    def tick(self) -> None:
        self.net.tick()
        driver = self.driver
        if driver is None:
            return
        self._keep_clocks(driver)
        self.source.tick()
        self.fetcher.tick()
        now_s = clock.monotonic()
        self.forwarding.expire(now_s - self.config.request_timeout_ms / 1000)
        if now_s >= self._next_care_s:
            self._next_care_s = now_s + CARE_EVERY_S
            self._care(now_s)
        self.net.flush()

    def close(self) -> None:
        if self.source is not None:
            self.source.close()
            self.fetcher.stop()
        self.net.close()

    # --- clocks -----------------------------------------------------------------------------------------------------

    def target_ms(self) -> int | None:
        """What stamps follow: the lower median of the voters' clocks; None when too few of them are known."""
        driver = self.driver
        assert driver is not None
        voters = [member.ref for member in driver.core.membership.voters]
        return self.walls.target(driver.core.me, clock.wall_ms(), voters, _mono_ms())

    def _keep_clocks(self, driver: Driver) -> None:
        core = driver.core
        wall_ms = clock.wall_ms()
        if core.role is not Role.LEADER:
            core.wall_ms = wall_ms
            return
        core.age_ms = driver.lease.age_ms(int(clock.boottime() * 1000))
        target_ms = self.target_ms()
        core.wall_ms = wall_ms if target_ms is None else target_ms
        self._judge(wall_ms, target_ms)

    def _judge(self, wall_ms: int, target_ms: int | None) -> None:
        """Warn about the own clock; one that is far off must not lead."""
        state = deviation(wall_ms, target_ms)
        if state is not self._clock_state:
            self._clock_state = state
            if state is not Deviation.FINE:
                log.warning(
                    "this node's clock is %d ms off the others': check its time service", wall_ms - (target_ms or 0)
                )
        assert self.driver is not None
        self.driver.clock_fit = state is not Deviation.UNFIT

    # --- what peers say: PeerHandler --------------------------------------------------------------------------------

    def authorize(self, identity: Identity) -> Refusal | None:
        driver = self.driver
        if driver is None or not identity.cluster_id:
            return None
        return refusal_of(driver.core, Greeting(identity.ref, identity.starts, identity.term, identity.last_index))

    def on_connected(self, identity: Identity) -> None:
        self.refusals.pop(identity.id, None)
        if self.driver is not None:
            self.driver.core.unreachable(identity.ref)
        self._next_care_s = 0.0

    def on_identity(self, identity: Identity) -> None:
        self._next_care_s = 0.0

    def on_lost(self, ref: NodeRef, reason: str) -> None:
        if self.former is not None:
            self.former.lost(ref)
        if self.driver is not None:
            self.driver.core.unreachable(ref)
            self.forwarding.lost(ref)
            if self.errands is not None:
                self.errands.lost(ref)
            self.source.lost(ref)
            self.fetcher.lost(ref)

    def on_message(self, ref: NodeRef, message: Any) -> None:
        driver = self.driver
        if driver is None:
            return
        kind = type(message)
        if kind is HeartbeatReply:
            self.walls.hear(ref, message.wall_ms, _mono_ms())
        elif kind is Heartbeat and message.term >= driver.core.term:
            self._heard_leader(driver, message)
        driver.core.step(ref, message)

    def _heard_leader(self, driver: Driver, heartbeat: Heartbeat) -> None:
        if heartbeat.age_ms is not None:
            driver.reads.told_age(heartbeat.age_ms)
        self._judge(clock.wall_ms(), heartbeat.wall_ms)

    def on_frame(self, ref: NodeRef, message: Any) -> None:
        if self.driver is None:
            if self.former is not None:
                self.former.on_frame(ref, message)
            return
        handler = self._FRAMES.get(type(message))
        if handler is not None:
            try:
                handler(self, ref, message)
            except PeerError as error:
                log.warning("node %s: %s", ref.id, error)

    def on_contact(self, ref: NodeRef) -> None:
        """A piece of a long message: the leader lives."""
        if self.driver is not None and self.driver.core.leader == ref:
            self.driver.core.heard_leader(ref)

    def on_refused(self, address: str, node_id: str, refusal: Refusal) -> None:
        if self.former is not None:
            self.former.refused(address, node_id, refusal)
            return
        if refusal.reason in _PASSING or len(self.refusals) >= REFUSALS_MAX:
            return
        self._next_care_s = 0.0
        removed = refusal.reason is Reason.REMOVED and not self._anew
        if removed and self.driver is not None and never_member(self.driver.core):
            self._anew = True
            log.info("this node's place was never committed; it asks for one again")
            return
        replaces = refusal.reason is Reason.RESTORED and self.config.overwrite and not self._anew
        if replaces and self.driver is not None and is_another_life(self.driver.core):
            self._anew = True
            log.info("this is another life of member %s; it asks for its place (-o)", self.driver.core.me.id)
            return
        self.refusals[node_id] = refusal.text

    # --- frames -----------------------------------------------------------------------------------------------------

    def _on_forward(self, ref: NodeRef, message: Forward) -> None:
        if message.context == ERRAND and self.errands is not None:
            self.errands.on_forward(ref, message)
        else:
            self.forwarding.on_forward(ref, message)

    def _on_forward_reply(self, ref: NodeRef, message: ForwardReply) -> None:
        if self.errands is None or not self.errands.on_reply(ref, message):
            self.forwarding.on_reply(ref, message)

    def _on_chunk_request(self, ref: NodeRef, message: ChunkRequest) -> None:
        self.source.on_request(ref, message)

    def _on_chunk_reply(self, ref: NodeRef, message: ChunkReply) -> None:
        self.fetcher.on_reply(ref, message)

    def _on_status(self, ref: NodeRef, message: StatusRequest) -> None:
        """A node without data asks whether this one has some."""
        driver = self.driver
        assert driver is not None
        payload = encode_formed(driver.data.identity.cluster_id, driver.core.membership.members)
        self.net.send(ref, StatusReply(message.request_id, payload))

    def _on_proposal(self, ref: NodeRef, message: FormProposal) -> None:
        assert self.driver is not None
        same = message.cluster_id == self.driver.data.identity.cluster_id
        self.net.send(ref, FormReply(message.cluster_id, same, "" if same else "this node has accepted another plan"))

    def _on_form_reply(self, ref: NodeRef, message: FormReply) -> None:
        if not message.accepted:
            log.error("node %s does not accept the new cluster: %s", ref.id, message.text)

    def _on_join(self, ref: NodeRef, message: JoinRequest) -> None:
        """Somebody wants to be added. Only its own place may be asked for."""
        driver = self.driver
        assert driver is not None
        if (message.id, message.incarnation) != ref:
            raise PeerError("asks for a place for somebody else")
        accepted, text = self._let_in(driver, message) if driver.core.role is Role.LEADER else (False, NOT_LEADER)
        leader = driver.core.leader
        member = driver.core.membership.get(leader.id) if leader is not None else None
        address = member.peer_addr if member is not None else ""
        reply = JoinReply(accepted, text, driver.data.identity.cluster_id, address, driver.core.membership)
        self.net.send(ref, reply)

    def _let_in(self, driver: Driver, wanted: JoinRequest) -> tuple[bool, str]:
        member = Member(wanted.id, wanted.incarnation, wanted.client_addr, wanted.peer_addr, False)
        present = driver.core.membership.get(wanted.id)
        if present is not None and present.incarnation == wanted.incarnation:
            return True, ""
        if present is not None and not wanted.replace and present.incarnation != INVITED:
            return False, f"{wanted.id} is a member with other data: use -o to replace it"
        change = Change(ChangeKind.ADD_LEARNER, member) if present is None else Change(ChangeKind.REMOVE, present)
        text = self._propose(driver, change)
        return not text and present is None, text or "its place is being made free"

    @staticmethod
    def _propose(driver: Driver, change: Change) -> str:
        try:
            driver.propose_change(change, None)
        except (Busy, NotLeader, ChangeRefused) as error:
            return str(error)
        log.info("%s: %s (%s)", change.kind.value, change.member.id, change.member.client_addr)
        return ""

    def _on_join_reply(self, ref: NodeRef, message: JoinReply) -> None:
        self.leader_hint = message.leader
        if message.membership is not None:
            self._join_seeds = tuple(member.peer_addr for member in message.membership.members if member.ref != ref)
        text = "the cluster takes this node in" if message.accepted else f"not added yet: {message.text}"
        if message.text != NOT_LEADER and text != self._join_text:
            self._join_text = text
            log.info("%s", text)
        self._next_join_s = clock.monotonic() + (JOIN_EVERY_S if message.accepted else JOIN_AGAIN_S)

    def _on_hint(self, ref: NodeRef, message: Hint) -> None:
        self.leader_hint = message.peer_addr

    _FRAMES: Final[dict[type, Callable[[Any, NodeRef, Any], None]]] = {
        Forward: _on_forward,
        ForwardReply: _on_forward_reply,
        ChunkRequest: _on_chunk_request,
        ChunkReply: _on_chunk_reply,
        StatusRequest: _on_status,
        FormProposal: _on_proposal,
        FormReply: _on_form_reply,
        JoinRequest: _on_join,
        JoinReply: _on_join_reply,
        Hint: _on_hint,
    }

    # --- now and then -----------------------------------------------------------------------------------------------

    def _care(self, now_s: float) -> None:
        driver = self.driver
        assert driver is not None
        core = driver.core
        if core.membership is not self._members_set:
            self._members_set = core.membership
            self.net.set_members([(member.ref, member.peer_addr) for member in core.membership.members])
            self.walls.forget_all_but(member.ref for member in core.membership.members)
        self._set_identity(self.identity._replace(last_index=driver.log.last, term=driver.log.hard.term))
        self._keep_seeds(core.leader is not None and core.is_member(core.me))
        if core.membership.index == 0 and core.is_member(core.me):
            self._hand_on_plan(driver)
        if core.role is Role.LEADER:
            self._move_members(driver)
            self._drop_removed(driver)
            driver.in_flight_max = entries_in_flight(self._quorum_round_trip_s(core), driver.flush_mean_us() / 1e6)
        self._outside(driver, now_s)

    def _quorum_round_trip_s(self, core: Core) -> float:
        """What an entry waits for on the network: the nearest other voters that make a majority with this node."""
        others = [member.ref for member in core.membership.voters if member.ref != core.me]
        known = sorted(s for ref in others if (s := self.net.round_trip_s(ref)) is not None)
        needed = (len(others) + 1) // 2
        return known[needed - 1] if 0 < needed <= len(known) else 0.0

    def _keep_seeds(self, settled: bool) -> None:
        """Who follows a leader knows the members' addresses; who does not looks where -e says, too."""
        self.net.set_seeds(() if settled else tuple(dict.fromkeys((*self._listed, *self._join_seeds))))

    def _drop_removed(self, driver: Driver) -> None:
        """A removed member that was not told in time, and is still connected, is told now."""
        for identity in self.net.connected():
            if identity.cluster_id and was_removed(driver.core, identity.ref, identity.last_index):
                self.net.drop(identity.ref, Refusal(Reason.REMOVED, _removed_text(identity.id)))

    def _hand_on_plan(self, driver: Driver) -> None:
        plan = FormProposal(driver.data.identity.cluster_id, driver.core.membership.members)
        for identity in self.net.connected():
            if not identity.cluster_id and driver.core.is_member(identity.ref):
                self.net.send(identity.ref, plan)

    def _move_members(self, driver: Driver) -> None:
        """Leader: members that greet from other addresses than the membership has."""
        for identity in self.net.connected():
            member = driver.core.membership.get(identity.id)
            if member is None or member.incarnation != identity.incarnation or not identity.cluster_id:
                continue
            if (member.client_addr, member.peer_addr) != (identity.client_addr, identity.peer_addr):
                moved = member._replace(client_addr=identity.client_addr, peer_addr=identity.peer_addr)
                self._propose(driver, Change(ChangeKind.ADDRESS, moved))
                return
        own = driver.core.membership.get(driver.core.me.id)
        if own is not None and own.client_addr != self.config.address:
            moved = own._replace(client_addr=self.config.address, peer_addr=peer_address(self.config.address))
            self._propose(driver, Change(ChangeKind.ADDRESS, moved))

    def _outside(self, driver: Driver, now_s: float) -> None:
        """Not a member yet, or no longer, or refused: clients are told why, and so is the log every five seconds."""
        reason = self._reason(driver)
        self._refuse_clients(driver, reason)
        if not reason:
            self._next_line_s = 0.0
        elif now_s >= self._next_line_s:
            self._next_line_s = now_s + WAITING_LINE_EVERY_S
            log.warning("%s", reason)
        if now_s >= self._next_join_s and wants_place(driver.core, self._anew):
            self._next_join_s = now_s + (JOIN_EVERY_S if self._ask_to_join(driver) else 0.0)

    def _reason(self, driver: Driver) -> str:
        self._anew = self._anew and driver.core.leader is None
        return outside_reason(driver.core, self.refusals, driver.data.path, self._anew)

    def _refuse_clients(self, driver: Driver, reason: str) -> None:
        """Told again each time: the node clears what was told while it formed, after its parts were put together."""
        if reason != self._client_text:
            self._client_text = reason
            self._not_ready = Unexecuted(f"CLUSTERDOWN {reason}") if reason else None
        driver.dispatch.not_ready = self._not_ready

    def _ask_to_join(self, driver: Driver) -> bool:
        """False: nobody is there to be asked."""
        me = driver.core.me
        request = JoinRequest(
            me.id, me.incarnation, self.config.address, peer_address(self.config.address), self.config.overwrite
        )
        up = [identity for identity in self.net.connected() if identity.cluster_id]
        up.sort(key=lambda identity: (identity.peer_addr != self.leader_hint, identity.id))
        return bool(up) and self.net.send(up[0].ref, request)

    # --- snapshots --------------------------------------------------------------------------------------------------

    def _find_snapshot(self, name: str) -> SnapshotMeta | None:
        assert self.driver is not None
        for meta in (self.driver.log.snapshot, self.driver.log.previous_snapshot):
            if meta is not None and meta.name == name:
                return meta
        return None

    def fetch(self, meta: SnapshotMeta) -> None:
        """The leader offers this file."""
        assert self.driver is not None
        leader = self.driver.core.leader
        if leader is not None:
            try:
                self.fetcher.start(meta, leader)
            except PeerError as error:
                log.warning("snapshot of node %s: %s", leader.id, error)
                self.driver.core.fetch_failed(meta)

    def _fetched(self, meta: SnapshotMeta) -> None:
        assert self.driver is not None
        reason = self.driver.core.snapshot_received(meta)
        if reason:
            log.info("snapshot %s is not installed: %s", meta.name, reason)

    def _fetch_failed(self, meta: SnapshotMeta, error: RaftdbError) -> None:
        assert self.driver is not None
        log.warning("snapshot %s: %s", meta.name, error)
        self.driver.core.fetch_failed(meta)


# --- decisions: pure ------------------------------------------------------------------------------------------------


def refusal_of(core: Core, greeting: Greeting) -> Refusal | None:
    """Why a peer of this cluster is not let in.

    A log that holds nothing cannot have acknowledged or voted: such a node is about to ask for a place (-o says so in
    its request), unless this very incarnation has been removed.
    """
    ref = greeting.ref
    joins = greeting.last == 0 and ref.id != core.me.id and not core.is_member(ref) and ref not in core.retired
    if joins:
        return None
    text = refusal(core, greeting, None)
    if text is None:
        return Refusal(Reason.REMOVED, _removed_text(ref.id)) if was_removed(core, ref, greeting.last) else None
    reason = Reason.REMOVED if "removed" in text else Reason.RESTORED if "restored" in text else Reason.OTHER
    return Refusal(reason, text)


def entries_in_flight(round_trip_s: float, flush_s: float) -> int:
    """How many entries may be under way at once: 1 where the disk is what they wait for, more where the network is.

    A batch that waits grows, and shares its flush; so another entry pays only where several flushes fit into a round
    trip. The figures are in ARCHITECTURE.md, under the road of a write.
    """
    fits = int(round_trip_s / (FLUSHES_PER_ENTRY * max(flush_s, FLUSH_MIN_S)))
    return min(1 + fits, IN_FLIGHT_MAX)


def was_removed(core: Core, ref: NodeRef, last_index: int) -> bool:
    """A leader with a settled membership meets a log that holds something and belongs to no member."""
    if ref in core.retired:
        return ref not in core.peers
    settled = core.role is Role.LEADER and not core.change_open and core.commit >= core.noop_index
    return settled and last_index > 0 and core.membership.get(ref.id) is None and ref not in core.peers


def _removed_text(node_id: str) -> str:
    return f"{node_id} was removed from the cluster"


def wants_place(core: Core, anew: bool) -> bool:
    """Does this node have to ask for a place, or for the one again that a leader gave it who could not keep it?

    Such a leader was cut off: its entry was overwritten, and with it the place; who lost contact since, and never saw
    the entry committed, asks whoever leads now. A leader that has it as a member just says so.
    """
    lost = core.contact >= 2 * core.config.election_ticks_max
    if core.leader is not None and not lost:
        return False
    return anew or (never_member(core) and (lost or not core.is_member(core.me)))


def never_member(core: Core) -> bool:
    """As far as this node knows no membership that holds it was ever committed.

    The leader that was adding it died before the others had the entry; nothing that it acknowledged has counted.
    """
    if core.me in core.retired:
        return False
    before = core.previous.get(core.me.id) if core.previous is not None else None
    if before is not None and before.incarnation == core.me.incarnation:
        return False
    return core.change_open or not core.is_member(core.me)


def is_another_life(core: Core) -> bool:
    """By this node's log another incarnation is the member of its id: it was repaired, or has just been replaced.

    This incarnation has acknowledged nothing and voted for nobody, whatever its log holds.
    """
    member = core.membership.get(core.me.id)
    return member is not None and member.incarnation != core.me.incarnation


def outside_reason(core: Core, refusals: Mapping[str, str], directory: Path, anew: bool) -> str:
    """Why this node does not take part; "" = it does."""
    way_back = f"to let it join anew, move {directory} away and start it with -e"
    if core.role is Role.LEADER:
        return ""
    if core.me in core.retired:
        return f"this node was removed from the cluster; {way_back}"
    if core.leader is not None:
        going = core.change_open and not never_member(core)
        return "" if core.is_member(core.me) or going else "waiting to be added to the cluster: its log is being copied"
    if refusals:
        told = "; ".join(f"{node_id}: {text}" for node_id, text in sorted(refusals.items()))
        removed = any("removed" in text for text in refusals.values())
        return f"waiting: the cluster refuses this node ({told})" + (f"; {way_back}" if removed else "")
    if core.is_member(core.me) and not anew:
        return ""
    if not anew and not never_member(core):
        return "waiting: by its log this node is being removed from the cluster, and no leader is known"
    return "waiting to be added to the cluster (-e names its members)"


def snapshot_directory(driver: Driver) -> Any:
    return driver.data.path / "snapshots"


def encode_formed(cluster_id: str, members: tuple[Member, ...]) -> bytes:
    """The answer "I belong to this cluster"."""
    packed: bytes = msgpack.packb(("formed", cluster_id, members), use_bin_type=True)
    return packed


def own_identity(config: Config, incarnation: int, life: int, listed: tuple[str, ...], table: bytes) -> Identity:
    """The greeting of a node without data."""
    return Identity(
        cluster_id="",
        id=config.own_id,
        incarnation=incarnation,
        starts=1,  # what the directory will count first
        life=life,
        last_index=0,
        term=0,
        table=table,
        client_addr=config.address,
        peer_addr=peer_address(config.address),
        listed=listed,
        software=f"raftdb {__version__}",
    )


def _mono_ms() -> int:
    return int(clock.monotonic() * 1000)
