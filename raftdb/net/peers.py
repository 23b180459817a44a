"""Connections to the other nodes: who dials whom, who is let in, which connection stays, and what is told to the node.

PeerNet lives on the driver's selector, in the driver's thread; only names are looked up elsewhere. The node tells it

- the members (id, incarnation, address): each is dialled until a connection is up, in either direction;
- seeds (addresses of -e): whoever answers there is let in or not by the node; a name may stand for several nodes.

**One connection per peer.** Both sides dial. Preferred is the one dialled by the smaller (id, incarnation):

    there is        and comes           then
    nothing         any                 it is taken
    any             any, new life       the new one replaces: the peer has been started again
    ours            ours                the old one stays (a seed and a member were the same node)
    preferred       the other kind      the old one stays while it is younger than a handshake may take: both dialled at
                                        once; later the new one replaces: the peer would not dial if it had one
    the other kind  preferred           the new one replaces
    theirs          theirs              the new one replaces: the peer knows that the old one is dead

Both sides come to the same one, whatever the order in which they see the two.

**Who is let in**: knows the secret (handshake.py); is not this node; has not its id; is not of another cluster; is the
node that was dialled; has not been seen with more `starts`; and the node agrees (membership, incarnation, backup). A
refusal is told under the seal, and both sides close.

**Peers of no common cluster** (one side has not joined or formed yet) may exchange identities, forming, joining and
status messages; everything else is dropped, and never sent.

**Log lines** come when something changes, not when it is tried again.
"""

from __future__ import annotations

import logging
import os
import random
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

from raftdb import clock
from raftdb.errors import PeerError
from raftdb.net.handshake import NONCE_BYTES, Handshake, Side
from raftdb.net.link import READ, Link, PeerConfig, Poller, Refusal, Stage
from raftdb.net.transport import Endpoint, Resolver, TcpTransport, dial, listen
from raftdb.net.wire import ROWS, Codec, ForwardReply, Identity, Reason
from raftdb.types import NodeRef

__all__ = ["PeerConfig", "PeerHandler", "PeerNet", "Poller", "Refusal", "SeedStatus"]

log = logging.getLogger("raftdb.peers")

ACCEPTS_PER_EVENT_MAX: Final = 16
LIVES_MAX: Final = 1_024
LOG_KEYS_MAX: Final = 256
LOG_AGAIN_S: Final = 3_600.0
LOOK_UP_AGAIN_S: Final = 2.0
#: A seed address that turned out to be this node is dialled again this late: addresses may move.
MYSELF_AGAIN_S: Final = 30.0
#: The driver was away for more than this part of the silence time-out (stopped, swapped out, long work): that time does
#: not count as silence of the peers, whose words may be waiting in the sockets.
STALL_PART: Final = 1 / 4
#: The side whose dialling is not preferred waits a little, so that two dials at once are rare.
POLITE_S: Final = 0.2


class PeerHandler(Protocol):
    """What the node gives to PeerNet. Called in the driver's thread, from poll callbacks, tick() and flush()."""

    def authorize(self, identity: Identity) -> Refusal | None:
        """Is this peer let in? Asked after the secret, the cluster id, `starts` and the id have been checked.

        A peer whose cluster_id is "" may be let in: only forming and joining messages are taken from it. Pure, quick.
        """

    def on_connected(self, identity: Identity) -> None:
        """The connection to this peer is up (or was replaced by a newer one: then on_lost came before)."""

    def on_identity(self, identity: Identity) -> None:
        """A connected peer tells a new address, cluster id, table ..."""

    def on_lost(self, ref: NodeRef, reason: str) -> None:
        """The connection is gone: what was sent on it and not answered has an unknown fate."""

    def on_message(self, ref: NodeRef, message: Any) -> None:
        """A message of consensus.messages, from a peer of the own cluster."""

    def on_frame(self, ref: NodeRef, message: Any) -> None:
        """A node-level message of net.wire (Forward, ChunkRequest, JoinRequest, FormProposal ...)."""

    def on_contact(self, ref: NodeRef) -> None:
        """A piece of a long message arrived: the peer lives, though there is no message to hand over yet."""

    def on_refused(self, address: str, node_id: str, refusal: Refusal) -> None:
        """The other side has refused us; it knows the secret, so it means it. Once per change of the reason."""


class SeedStatus(NamedTuple):
    """What is known about one numeric address behind a seed."""

    address: str  # as given
    endpoint: str  # "" = the name has not been resolved yet
    node: NodeRef | None  # who answered there
    myself: bool
    connected: bool
    trouble: str  # "" = none


class Line:
    """One numeric address that is dialled."""

    __slots__ = ("answered", "due_s", "endpoint", "failures", "link", "myself", "target", "trouble")

    def __init__(self, target: Target, endpoint: Endpoint, due_s: float) -> None:
        self.target = target
        self.endpoint = endpoint
        self.due_s = due_s
        self.failures = 0
        self.link: Link | None = None
        self.answered: NodeRef | None = None
        self.myself = False
        self.trouble = ""


class Target:
    """One address (HOST:PORT) that we want to be connected to: a member's, or a seed."""

    __slots__ = ("address", "due_s", "expected", "lines", "looked_up_s", "trouble")

    def __init__(self, address: str, expected: NodeRef | None, due_s: float) -> None:
        self.address = address
        self.expected = expected  # None: a seed
        self.due_s = due_s
        self.looked_up_s = float("-inf")
        self.lines: dict[Endpoint, Line] = {}
        self.trouble = ""


class PeerNet:
    """Listener, dialler and connections of one node."""

    def __init__(
        self,
        poller: Poller,
        handler: PeerHandler,
        identity: Identity,
        key: bytes,
        *,
        config: PeerConfig = PeerConfig(),  # noqa: B008 an immutable default
        dial_from: str = "",
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`key`: handshake.cluster_key(secret). `dial_from`: numeric address that outgoing connections are bound to.

        Raises PeerError for an identity that cannot be told to others (the id is too long, say).
        """
        self.poller = poller
        self.handler = handler
        self.config = config
        self.codec = Codec()
        self.dial_from = dial_from
        self.progress: Callable[[], tuple[int, int]] | None = None  # (durable last index, term) for new greetings
        self.strays = 0  # messages dropped because there is no common cluster
        self._identity = identity
        self._key = key
        self._entropy = entropy
        self._chance = random.Random(entropy(16))
        self._resolver = Resolver()
        self._listener: socket.socket | None = None
        self._accepting = False
        self._links: set[Link] = set()
        self._up: dict[NodeRef, Link] = {}
        self._members: dict[NodeRef, Target] = {}
        self._seeds: dict[str, Target] = {}
        self._dialled: dict[Link, Line] = {}
        self._lives: OrderedDict[NodeRef, tuple[int, int]] = OrderedDict()  # (starts, life) seen
        self._refused: dict[str, Refusal] = {}  # by node id: what we were told last
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._ticked_s = clock.monotonic()
        self._handshake(Side.DIALER)
        self.codec.dump(identity)

    # --- what the node asks for ---

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Starts to accept; gives the address that was bound. Raises OSError."""
        self._listener = listen(host, port)
        self._accept(True)
        name = self._listener.getsockname()
        return str(name[0]), int(name[1])

    def set_identity(self, identity: Identity) -> None:
        """Cluster formed, new address, new term or last index. Connected peers are told unless only the latter changed.

        Term and last index are for handshakes to come, so once in a while is enough for them.
        """
        before, self._identity = self._identity, identity
        if _lasting(before) == _lasting(identity):
            return
        for link in list(self._up.values()):
            refusal = self._stranger(_peer(link))
            if refusal is not None:
                link.refuse(refusal)
            else:
                link.say_identity()

    def set_members(self, members: Sequence[tuple[NodeRef, str]]) -> None:
        """The peers to be connected to, with their peer addresses, in place of the former ones; the own id is skipped.

        Connections to peers that are not among them stay up until drop(), or until the peer leaves.
        """
        wanted = {ref: address for ref, address in members if ref.id != self._identity.id}
        for ref, target in list(self._members.items()):
            if wanted.get(ref) != target.address:
                self._forget(self._members.pop(ref))
        now_s = clock.monotonic()
        for ref, address in wanted.items():
            if ref not in self._members:
                polite_s = 0.0 if self._identity.ref < ref else POLITE_S
                self._members[ref] = Target(address, ref, now_s + polite_s)
                self._look_up(self._members[ref], now_s)

    def set_seeds(self, addresses: Sequence[str]) -> None:
        """Addresses (HOST:PORT, peer port) whose nodes are not known yet (-e): dialled until someone answers there.

        Names are looked up again and again as long as they are set. Raises PeerError for what is no address.
        """
        for address in list(self._seeds):
            if address not in addresses:
                self._forget(self._seeds.pop(address))
        for address in addresses:
            if address not in self._seeds:
                self._seeds[address] = Target(address, None, clock.monotonic())
                self._look_up(self._seeds[address], clock.monotonic())

    def seeds(self) -> list[SeedStatus]:
        """What has come of the seeds, one row per numeric address."""
        rows: list[SeedStatus] = []
        for target in self._seeds.values():
            if not target.lines:
                rows.append(SeedStatus(target.address, "", None, False, False, target.trouble))
            for line in target.lines.values():
                connected = line.answered in self._up
                trouble = "" if connected else line.trouble
                endpoint = str(line.endpoint)
                rows.append(SeedStatus(target.address, endpoint, line.answered, line.myself, connected, trouble))
        return rows

    def drop(self, ref: NodeRef, refusal: Refusal) -> None:
        """Refuse a connected peer: it is told, then closed. authorize() has to refuse it when it comes again."""
        link = self._up.get(ref)
        if link is not None:
            link.refuse(refusal)

    def send(self, to: NodeRef, message: Any) -> bool:
        """Queue a message (of consensus or of net.wire) for a peer; it leaves with flush(). Never blocks.

        False: not queued (no connection, no common cluster, or the outbox is full) and certainly never sent. A
        ForwardReply that does not fit closes the connection. Raises PeerError for a message over its limit.
        """
        link = self._up.get(to)
        if link is None or (ROWS[type(message)].members_only and not self._common(link)):
            return False
        if link.queue(message):
            return True
        if type(message) is ForwardReply:
            link.close("a reply did not fit into the outbox")
        return False

    def flush(self) -> None:
        """Hand what is queued to the kernel: one send per peer. Call it once per turn; it costs nothing when idle."""
        for link in list(self._up.values()):
            link.flush()

    def tick(self) -> None:
        """Time-outs, pings, reconnects, results of name look-ups. Call it about every 50 ms, after the sockets."""
        now_s = clock.monotonic()
        away_s = now_s - self._ticked_s
        self._ticked_s = now_s
        if away_s < self.config.silence_timeout_s * STALL_PART:
            away_s = 0.0
        for link in list(self._links):
            self._check_link(link, now_s, away_s)
        self._take_answers(now_s)
        for target in (*self._members.values(), *self._seeds.values()):
            self._dial_due(target, now_s)
        self._accept(True)
        self.flush()

    def connected(self) -> list[Identity]:
        """The peers that are up."""
        return [_peer(link) for link in self._up.values()]

    def is_connected(self, ref: NodeRef) -> bool:
        return ref in self._up

    def round_trip_s(self, ref: NodeRef) -> float | None:
        """What the line takes: the shortest of the last pings, which met no long turn on either side. None: unknown."""
        link = self._up.get(ref)
        return min(link.round_trips_s) if link is not None and link.round_trips_s else None

    def walls(self) -> dict[NodeRef, int]:
        """The wall clocks of the connected peers, in ms of Unix time, moved on to now by the own monotonic clock."""
        now_ms = clock.monotonic() * 1000
        return {
            ref: int(link.wall_offset_ms + now_ms) for ref, link in self._up.items() if link.wall_offset_ms is not None
        }

    def status(self) -> list[dict[str, Any]]:
        """Per connection: who, state, last contact, round trip, outbox, counters. For INFO and `raftdb status`."""
        now_s = clock.monotonic()
        rows = []
        for link in self._links:
            counters = link.counters
            rows.append(
                {
                    "id": link.peer.id if link.peer is not None else "",
                    "address": link.where,
                    "stage": link.stage.value,
                    "dialled": link.dialled,
                    "contact_ms": int((now_s - link.heard_s) * 1000),
                    "round_trip_us": int(link.round_trip_s * 1e6),
                    "outbox_bytes": sum(link.outbox_bytes),
                    "messages_in": counters.messages_in,
                    "messages_out": counters.messages_out,
                    "messages_dropped": counters.dropped,
                    "bytes_in": counters.bytes_in,
                    "bytes_out": counters.bytes_out,
                }
            )
        return rows

    @property
    def buffered_bytes(self) -> int:
        """Memory held for input and output of all connections, about."""
        return sum(link.buffered_bytes for link in self._links)

    def close(self) -> None:
        """Everything, at once, without callbacks."""
        self._accept(False)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._up.clear()
        self._dialled.clear()
        self._members.clear()
        self._seeds.clear()
        for link in list(self._links):
            link.abandon()
        self._links.clear()
        self._resolver.close()

    # --- accepting ---

    def _accept(self, on: bool) -> None:
        if self._listener is None or on == self._accepting:
            return
        self._accepting = on
        if on:
            self.poller.register(self._listener.fileno(), READ, self._on_accept)
        else:
            self.poller.unregister(self._listener.fileno())

    def _on_accept(self, events: int) -> None:
        for _ in range(ACCEPTS_PER_EVENT_MAX):
            if self._listener is None:
                return
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                # No descriptors left: looking again at once would spin; the next tick looks again.
                self._log_once(("", "accept"), f"cannot accept connections of peers: {error.strerror}")
                self._accept(False)
                return
            self._make_room()
            self._links.add(Link(self, TcpTransport(sock), self._handshake(Side.ACCEPTOR), str(address[0])))

    def _make_room(self) -> None:
        """Who has not proven anything is worth least, the oldest first: a real peer needs milliseconds."""
        strangers = [link for link in self._links if link.stage is Stage.PROVING and not link.dialled]
        if len(strangers) >= self.config.strangers_max:
            min(strangers, key=lambda link: link.opened_s).close("too many connections without a proof")

    def _handshake(self, side: Side) -> Handshake:
        return Handshake(side, self._key, self._identity.id, self._entropy(NONCE_BYTES))

    # --- dialling ---

    def _take_answers(self, now_s: float) -> None:
        for answer in self._resolver.answers():
            for target in (*self._members.values(), *self._seeds.values()):
                if target.address == answer.address:
                    self._resolved(target, answer.endpoints, answer.error, now_s)

    def _resolved(self, target: Target, endpoints: tuple[Endpoint, ...], error: str, now_s: float) -> None:
        """New lines for new addresses; addresses that are gone are dropped unless a connection is on them."""
        if error:
            self._trouble(target, target.address, error)
            return
        target.trouble = ""
        for endpoint, line in list(target.lines.items()):
            if endpoint not in endpoints and line.link is None:
                del target.lines[endpoint]
        for endpoint in endpoints:
            if endpoint not in target.lines:
                target.lines[endpoint] = Line(target, endpoint, max(now_s, target.due_s))

    def _look_up(self, target: Target, now_s: float) -> None:
        target.looked_up_s = now_s
        self._resolver.ask(target.address)

    def _dial_due(self, target: Target, now_s: float) -> None:
        if target.expected is not None and target.expected in self._up:
            return
        if target.expected is None and any(member.address == target.address for member in self._members.values()):
            return  # is dialled as a member
        if now_s >= target.due_s and now_s - target.looked_up_s >= LOOK_UP_AGAIN_S:
            self._look_up(target, now_s)
        lines = [line for line in target.lines.values() if line.link is None and not self._answered(line)]
        if target.expected is not None and lines:
            busy = any(line.link is not None for line in target.lines.values())
            lines = [] if busy else [min(lines, key=lambda line: line.due_s)]
        for line in lines:
            if now_s >= line.due_s:
                self._dial(line, now_s)

    def _answered(self, line: Line) -> bool:
        return line.answered is not None and line.answered in self._up

    def _dial(self, line: Line, now_s: float) -> None:
        try:
            transport = dial(line.endpoint, self.dial_from)
        except OSError as error:
            self._failed(line, (error.strerror or str(error)).lower(), now_s)
            return
        link = Link(self, transport, self._handshake(Side.DIALER), str(line.endpoint))
        line.link = link
        self._dialled[link] = line
        self._links.add(link)

    def _failed(self, line: Line, reason: str, now_s: float) -> None:
        """Later again: the wait doubles, with chance in it so that nodes do not keep step."""
        line.link = None
        wait_s = min(self.config.backoff_max_s, self.config.backoff_min_s * 2 ** min(line.failures, 16))
        line.failures += 1
        line.due_s = now_s + (MYSELF_AGAIN_S if line.myself else wait_s * self._chance.uniform(0.5, 1.5))
        if reason and not line.myself:
            who = line.target.expected.id if line.target.expected is not None else line.target.address
            where = str(line.endpoint)
            self._trouble(line, where if who == where else f"{who} at {where}", reason)

    def _trouble(self, where: Line | Target, name: str, reason: str) -> None:
        """One log line when the reason is another one than the last time."""
        if where.trouble != reason:
            where.trouble = reason
            log.warning("no connection to %s: %s; going on trying", name, reason)

    def _forget(self, target: Target) -> None:
        """No more dialling there; a connection that is up stays."""
        for line in target.lines.values():
            link, line.link = line.link, None
            if link is not None:
                self._dialled.pop(link, None)
                if link.stage is not Stage.UP:
                    link.superfluous = True
                    link.close("not needed any more")

    # --- the links' owner ---

    def wall_ms(self) -> int:
        return clock.wall_ms()

    def identity_for(self, link: Link) -> Identity:
        """With last index and term as of now: what has been acknowledged must never be more than what is told."""
        if self.progress is None:
            return self._identity
        last_index, term = self.progress()
        return self._identity._replace(last_index=last_index, term=term)

    def judge(self, link: Link) -> Refusal | None:
        peer = _peer(link)
        line = self._dialled.get(link)
        if line is not None:
            line.answered = peer.ref
            line.myself = self._is_me(peer)
        refusal = self._stranger(peer) or self._wrong_node(peer, line) or self._former_life(peer)
        refusal = refusal or self.handler.authorize(peer) or self._one_too_many(link)
        if refusal is None:
            self._lives[peer.ref] = (peer.starts, peer.life)
            self._lives.move_to_end(peer.ref)
            _trim(self._lives, LIVES_MAX)
        return refusal

    def _is_me(self, peer: Identity) -> bool:
        return (peer.ref, peer.life) == (self._identity.ref, self._identity.life)

    def _stranger(self, peer: Identity) -> Refusal | None:
        me = self._identity
        if self._is_me(peer):
            return Refusal(Reason.MYSELF, "this is the node itself")
        if peer.id == me.id:
            return Refusal(Reason.SAME_ID, f"two nodes have the id {me.id!r}: {me.peer_addr} and {peer.peer_addr}")
        if me.cluster_id and peer.cluster_id and me.cluster_id != peer.cluster_id:
            return Refusal(
                Reason.OTHER_CLUSTER, f"{me.id!r} is of cluster {me.cluster_id}, {peer.id!r} of {peer.cluster_id}"
            )
        return None

    def _wrong_node(self, peer: Identity, line: Line | None) -> Refusal | None:
        expected = line.target.expected if line is not None else None
        if expected is None or expected.id == peer.id:
            return None
        return Refusal(Reason.UNEXPECTED, f"{expected.id!r} was expected at this address, {peer.id!r} answered")

    def _former_life(self, peer: Identity) -> Refusal | None:
        starts, life = self._lives.get(peer.ref, (0, peer.life))
        if peer.starts < starts:
            return Refusal(
                Reason.OLD_STARTS,
                f"{peer.id!r} was seen with {starts} starts and has {peer.starts} now: restored from a backup? use -o",
            )
        if peer.starts == starts and peer.life != life:
            return Refusal(
                Reason.OLD_STARTS,
                f"two copies of the data directory of {peer.id!r} were started: restored from a backup? use -o",
            )
        return None

    def _one_too_many(self, link: Link) -> Refusal | None:
        old = self._up.get(_peer(link).ref)
        if (old is not None and self._stays(old, link)) or self._other_dial(link):
            link.superfluous = True
            return Refusal(Reason.DUPLICATE, "another connection is up")
        if old is None and len(self._up) >= self.config.connections_max:
            return Refusal(Reason.FULL, f"{len(self._up)} peers are connected already")
        return None

    def _stays(self, old: Link, new: Link) -> bool:
        """The table at the top of this module."""
        if _peer(old).life != _peer(new).life:
            return False
        if old.dialled and new.dialled:
            return True
        young = clock.monotonic() - old.up_s < self.config.handshake_timeout_s
        return self._preferred(old) and not self._preferred(new) and young

    def _other_dial(self, link: Link) -> bool:
        """Have we accepted this peer on another dial of ours (a member's and a seed's) that is not up yet?

        The other side takes the newest of our dials, so there must never be two.
        """
        if not link.dialled:
            return False
        peer = _peer(link)
        return any(
            other is not link
            and other.stage is Stage.JUDGING
            and other.peer is not None
            and (other.peer.ref, other.peer.life) == (peer.ref, peer.life)
            for other in self._dialled
        )

    def _preferred(self, link: Link) -> bool:
        return link.dialled == (self._identity.ref < _peer(link).ref)

    def link_up(self, link: Link) -> None:
        peer = _peer(link)
        old = self._up.get(peer.ref)
        if old is not None and self._stays(old, link):
            link.superfluous = True
            link.close("another connection is up")
            return
        if old is not None:
            old.close("replaced by a newer connection")
        self._up[peer.ref] = link
        self._settle(link)
        self._refused.pop(peer.id, None)
        log.info("connected to %s", link.name)
        if link.told is None or _lasting(link.told) != _lasting(self._identity):
            link.say_identity()
        self.handler.on_connected(peer)

    def _settle(self, link: Link) -> None:
        """Our dial has come through, or another connection has made it needless."""
        line = self._dialled.get(link)
        if line is not None:
            line.failures = 0
            line.trouble = ""
        ref = _peer(link).ref
        for other, line in list(self._dialled.items()):
            if other is link or other.stage is Stage.UP or line.target.expected != ref:
                continue
            if link.dialled or not self._identity.ref < ref:
                other.superfluous = True
                other.close("another connection is up")

    def link_message(self, link: Link, message: Any) -> None:
        row = ROWS[type(message)]
        if row.members_only and not self._common(link):
            self.strays += 1
        elif row.consensus:
            self.handler.on_message(_peer(link).ref, message)
        else:
            self.handler.on_frame(_peer(link).ref, message)

    def link_contact(self, link: Link) -> None:
        self.handler.on_contact(_peer(link).ref)

    def link_identity(self, link: Link, identity: Identity) -> None:
        refusal = self._stranger(identity) or self.handler.authorize(identity)
        if refusal is not None:
            link.refuse(refusal)
        else:
            self.handler.on_identity(identity)

    def link_refused(self, link: Link, refusal: Refusal) -> None:
        node_id = _peer(link).id
        if refusal.reason is Reason.DUPLICATE:
            link.superfluous = True
        elif self._refused.get(node_id) != refusal:
            if len(self._refused) >= LIVES_MAX:
                self._refused.clear()
            self._refused[node_id] = refusal
            self.handler.on_refused(link.where, node_id, refusal)

    def link_closed(self, link: Link, reason: str) -> None:
        peer = link.peer
        was_up = peer is not None and self._up.get(peer.ref) is link
        if peer is not None and was_up:
            del self._up[peer.ref]
            self._be_polite(peer.ref)
        self._line_closed(link, "" if was_up or link.superfluous else reason)
        if peer is not None and was_up:
            log.info("lost %s: %s", link.name, reason)
            self.handler.on_lost(peer.ref, reason)
        elif not link.dialled and not link.superfluous:
            # Who has proven nothing could make up a new reason for each attempt.
            key = reason if peer is not None else ""
            self._log_once((link.where, key), f"connection from {link.name} ended before it was up: {reason}")

    def _be_polite(self, ref: NodeRef) -> None:
        target = self._members.get(ref)
        if target is not None and not self._identity.ref < ref:
            for line in target.lines.values():
                line.due_s = max(line.due_s, clock.monotonic() + POLITE_S)

    def _line_closed(self, link: Link, reason: str) -> None:
        line = self._dialled.pop(link, None)
        if line is not None:
            self._failed(line, reason, clock.monotonic())

    def _common(self, link: Link) -> bool:
        mine = self._identity.cluster_id
        return mine != "" and mine == _peer(link).cluster_id

    def _check_link(self, link: Link, now_s: float, away_s: float) -> None:
        if link.stage is Stage.CLOSED:
            self._links.discard(link)
            return
        if away_s:
            link.excuse(away_s, now_s)
        reason = link.overdue(now_s)
        if reason:
            link.close(reason)
        elif link.stage is Stage.UP and now_s - link.pinged_s >= self.config.ping_interval_s:
            link.ping(now_s)

    def _log_once(self, key: tuple[str, str], text: str) -> None:
        """Strangers do not get a log line per attempt."""
        now_s = clock.monotonic()
        logged_s = self._logged.get(key)
        if logged_s is None or now_s - logged_s > LOG_AGAIN_S:
            self._logged[key] = now_s
            _trim(self._logged, LOG_KEYS_MAX)
            log.warning("%s", text)


def _peer(link: Link) -> Identity:
    """The identity of a link that has been judged."""
    if link.peer is None:
        raise PeerError("not known yet")
    return link.peer


def _lasting(identity: Identity) -> tuple[Any, ...]:
    """An identity without what moves all the time."""
    return identity._replace(last_index=0, term=0)


def _trim(table: OrderedDict[Any, Any], size_max: int) -> None:
    while len(table) > size_max:
        table.popitem(last=False)
