"""One connection to one peer: handshake, lanes, frames. What it means is decided by its owner (peers.PeerNet).

    CONNECTING   our connect is under way
    PROVING      hello and proof (raftdb.net.handshake)
    JUDGING      sealed; identities are exchanged, each side says Accept or Refuse
    UP           both have accepted: messages
    CLOSING      our last word (Refuse) is on its way; of what comes only a Refuse is looked at, until the other side
                 closes or a second has passed
    CLOSED

**Two lanes.** Small urgent messages (heartbeats, votes, replies to appends) leave before bulk (entries, forwarded
requests, snapshot pieces) that was queued earlier. Frames are made when they are handed to the kernel, so the counter
of a frame is its place on the wire. One flush makes one send() of about `send_bytes_max`, urgent frames first; what is
left waits until the kernel can take more. With TCP_NOTSENT_LOWAT an urgent message waits behind little more than that.

**Bounds.** Per lane `outbox_bytes_max`, checked before a message is queued (one message may stand above it); input: one
frame, plus one message in fragments.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

from raftdb import clock
from raftdb.errors import PeerError
from raftdb.net.handshake import Handshake, Side
from raftdb.net.transport import Transport
from raftdb.net.wire import (
    FRAGMENT_BYTES,
    OVERHEAD_BYTES,
    ROWS,
    TYPES,
    Accept,
    Codec,
    FrameReader,
    FrameWriter,
    Identity,
    Ping,
    Pong,
    Reason,
    Refuse,
    split,
)

log = logging.getLogger("raftdb.peers")

#: Of epoll, and of poll on every system; whatever else comes (errors, hang-ups) is found out by reading and writing.
READ: Final = 1
WRITE: Final = 4
#: Nothing that is read before the proof is longer.
_HANDSHAKE_READ_BYTES: Final = 512
_LINGER_S: Final = 1.0
#: A round trip over this says little about the other side's wall clock.
_ROUND_TRIP_MAX_S: Final = 1.0
ROUND_TRIPS_KEPT: Final = 16


class PeerConfig(NamedTuple):
    """Limits and times."""

    connect_timeout_s: float = 3.0  # TCP connect
    handshake_timeout_s: float = 5.0  # from accept, or connected, to up
    ping_interval_s: float = 0.5  # carries the wall clocks, and keeps the line warm
    silence_timeout_s: float = 4.0  # nothing at all came for this long: hung, closed
    backoff_min_s: float = 0.1
    backoff_max_s: float = 2.0
    outbox_bytes_max: int = 16 * 1024 * 1024  # per peer and lane, besides one message that went in below it
    strangers_max: int = 64  # accepted connections that have not proven anything yet; then the oldest goes
    connections_max: int = 64  # that are up
    send_bytes_max: int = 256 * 1024  # handed to the kernel at once
    receive_bytes_max: int = 256 * 1024


class Refusal(NamedTuple):
    """Why a peer is not let in; it is told both."""

    reason: Reason
    text: str


class Stage(Enum):
    CONNECTING = "connecting"
    PROVING = "proving"
    JUDGING = "judging"
    UP = "up"
    CLOSING = "closing"
    CLOSED = "closed"


class Poller(Protocol):
    """What is needed of the driver's loop (loop.Loop has it). Events: epoll's masks; calls for nothing do no harm."""

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None: ...

    def modify(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...


class Owner(Protocol):
    """Who decides."""

    config: PeerConfig
    poller: Poller
    codec: Codec

    def identity_for(self, link: Link) -> Identity: ...

    def judge(self, link: Link) -> Refusal | None:
        """link.peer has just been told: may it come in?"""

    def link_up(self, link: Link) -> None: ...

    def link_message(self, link: Link, message: Any) -> None:
        """A message other than those about the connection itself."""

    def link_identity(self, link: Link, identity: Identity) -> None:
        """A peer that is up says again who it is."""

    def link_contact(self, link: Link) -> None:
        """A piece of a long message has come from a peer that is up, and no whole message with it."""

    def link_refused(self, link: Link, refusal: Refusal) -> None:
        """The other side does not want us; link_closed follows, or was before when we did not want it either."""

    def link_closed(self, link: Link, reason: str) -> None:
        """Once per link."""

    def wall_ms(self) -> int: ...


class Counters:
    """What INFO shows of a link."""

    __slots__ = ("bytes_in", "bytes_out", "dropped", "messages_in", "messages_out")

    def __init__(self) -> None:
        self.bytes_in = self.bytes_out = self.messages_in = self.messages_out = self.dropped = 0


class Link:
    """See above. Every method is called in the driver's thread."""

    def __init__(self, owner: Owner, transport: Transport, handshake: Handshake, where: str) -> None:
        """`where`: the address of the other end, for people."""
        dialled = handshake.side is Side.DIALER
        self.owner = owner
        self.transport = transport
        self.where = where
        self.dialled = dialled
        self.stage = Stage.CONNECTING if dialled else Stage.PROVING
        self.handshake = handshake
        self.peer: Identity | None = None
        self.superfluous = False  # its end is no trouble: another connection to the peer is up
        self.told: Identity | None = None  # what the other side knows of us
        self.opened_s = clock.monotonic()
        self.up_s = 0.0
        self.heard_s = self.opened_s  # when bytes came last
        self.pinged_s = 0.0
        self.round_trip_s = 0.0
        self.round_trips_s: deque[float] = deque(maxlen=ROUND_TRIPS_KEPT)  # the last ones
        self.wall_offset_ms: float | None = None  # the peer's wall clock minus our monotonic clock
        self.counters = Counters()
        self.outbox_bytes = [0, 0]  # bulk, urgent
        self._lanes: tuple[deque[tuple[int, bytes]], deque[tuple[int, bytes]]] = (deque(), deque())
        self._pieces: deque[tuple[memoryview, int]] = deque()  # of the bulk message under way in fragments
        self._pieces_code = 0
        self._unsent: memoryview | None = None  # frames that the kernel did not take yet
        self._writer: FrameWriter | None = None
        self._reader: FrameReader | None = None
        self._accepts = 0  # Accepts sent and received
        self._fd = transport.fileno()
        self._events = WRITE if dialled else READ
        owner.poller.register(self._fd, self._events, self._on_events)

    # --- what the owner asks for ---

    @property
    def name(self) -> str:
        """For log lines: escaped, since nobody has proven it before the seal."""
        if self.peer is not None:
            return f"{self.peer.id if self.peer.id.isprintable() else repr(self.peer.id)} ({self.where})"
        claimed = self.handshake.peer
        return f"{claimed.node_id!r} ({self.where})" if claimed is not None else self.where

    @property
    def buffered_bytes(self) -> int:
        """Memory that this link holds for input and output, about."""
        unsent = len(self._unsent) if self._unsent is not None else 0
        return sum(self.outbox_bytes) + unsent + (self._reader.buffered_bytes if self._reader is not None else 0)

    def queue(self, message: Any) -> bool:
        """False: the lane is full (or there is no seal yet). Raises PeerError when the message is over its limit."""
        row = ROWS[type(message)]
        if self.outbox_bytes[row.urgent] >= self.owner.config.outbox_bytes_max or self._writer is None:
            self.counters.dropped += 1
            return False
        code, payload = self.owner.codec.dump(message)
        self._lanes[row.urgent].append((code, payload))
        self.outbox_bytes[row.urgent] += len(payload) + OVERHEAD_BYTES
        return True

    def flush(self) -> None:
        """One send if something is queued, unless the kernel is known to be full."""
        if (self._lanes[1] or self._lanes[0]) and not self._events & WRITE and self.stage is not Stage.CLOSED:
            self._send_some()

    def refuse(self, refusal: Refusal) -> None:
        """Say why, then close; what was queued is dropped."""
        self._lanes[0].clear()
        self._pieces.clear()
        self.queue(Refuse(refusal.reason, refusal.text))
        self._finish(f"refused: {refusal.text}")

    def say_identity(self) -> None:
        self.told = self.owner.identity_for(self)
        self.queue(self.told)

    def ping(self, now_s: float) -> None:
        self.pinged_s = now_s
        self.queue(Ping(int(now_s * 1e6), self.owner.wall_ms()))

    def overdue(self, now_s: float) -> str:
        """Why it is time to give this link up; "" = it is not."""
        config = self.owner.config
        age_s = now_s - self.opened_s
        if self.stage is Stage.CONNECTING:
            return "no answer to connect" if age_s > config.connect_timeout_s else ""
        if self.stage is Stage.CLOSING:
            return "closed" if now_s - self.heard_s > _LINGER_S else ""
        if self.stage is not Stage.UP:
            limit_s = config.handshake_timeout_s + (config.connect_timeout_s if self.dialled else 0)
            return f"no end of the handshake ({self.stage.value})" if age_s > limit_s else ""
        silent_s = now_s - self.heard_s
        return f"nothing heard for {silent_s:.1f} s" if silent_s > config.silence_timeout_s else ""

    def excuse(self, away_s: float, now_s: float) -> None:
        """This node was away for so long: the other side is not to blame for that time."""
        self.heard_s = min(now_s, self.heard_s + away_s)
        self.opened_s = min(now_s, self.opened_s + away_s)

    def close(self, reason: str) -> None:
        """At once. Told to the owner once."""
        if self.stage is Stage.CLOSED:
            return
        told = self.stage is Stage.CLOSING
        self._let_go()
        if not told:
            self.owner.link_closed(self, reason)

    def abandon(self) -> None:
        """Close without telling anybody."""
        if self.stage is not Stage.CLOSED:
            self._let_go()

    def _let_go(self) -> None:
        self.stage = Stage.CLOSED
        self.owner.poller.unregister(self._fd)
        self.transport.close()
        self._unsent = self._reader = self._writer = None
        for lane in self._lanes:
            lane.clear()
        self._pieces.clear()
        self.outbox_bytes = [0, 0]

    # --- events of the socket ---

    def _on_events(self, events: int) -> None:
        others = events & ~(READ | WRITE)
        try:
            if events & WRITE or (others and self._events & WRITE):
                self._writable()
            if (events & READ or others) and self.stage is not Stage.CLOSED:
                self._readable()
        except PeerError as error:
            self.close(str(error))

    def _writable(self) -> None:
        if self.stage is Stage.CONNECTING:
            self._connected()
        elif self.stage is not Stage.CLOSED:
            self._send_some()

    def _connected(self) -> None:
        error = self.transport.connect_error()
        if error:
            self.close(error)
            return
        self.stage = Stage.PROVING
        self.heard_s = clock.monotonic()
        self._send_raw(self.handshake.start())

    def _readable(self) -> None:
        if self.stage is Stage.CONNECTING:
            return
        sealed = self._reader is not None
        try:
            data = self.transport.receive(self.owner.config.receive_bytes_max if sealed else _HANDSHAKE_READ_BYTES)
        except OSError as error:
            self.close(_why(error))
            return
        if data is None:
            return
        if not data:
            self.close(self._end_of_input())
            return
        self.counters.bytes_in += len(data)
        if self.stage is not Stage.CLOSING:
            self.heard_s = clock.monotonic()
        if self.stage is Stage.PROVING:
            data = self._prove(data)
        if self._reader is not None and data:
            self._take_frames(data)

    def _end_of_input(self) -> str:
        if self.stage is Stage.PROVING and self.dialled and self.handshake.peer is not None:
            return "closed the connection during the proof (another cluster secret?)"
        return "closed the connection"

    def _prove(self, data: bytes) -> bytes:
        """Feeds the handshake; once it is done: seals, own identity. Returns what belongs to the frames."""
        out = self.handshake.receive(data)
        if out:
            self._send_raw(out)
        keys = self.handshake.keys
        if keys is None or self.stage is Stage.CLOSED:
            return b""
        self._writer, self._reader = FrameWriter(keys.send), FrameReader(keys.receive)
        self.stage = Stage.JUDGING
        self.say_identity()
        self.flush()
        return self.handshake.rest

    # --- frames in ---

    def _take_frames(self, data: bytes) -> None:
        reader = self._reader
        assert reader is not None
        pieces = reader.fragments
        whole = reader.feed(data)
        for code, payload in whole:
            self.counters.messages_in += 1
            message = self.owner.codec.load(code, payload)
            if self.stage is not Stage.CLOSING or type(message) is Refuse:
                self._take(code, message)
            if self.stage is Stage.CLOSED:
                return
        if reader.fragments != pieces and not whole and self.stage is Stage.UP:
            self.owner.link_contact(self)

    def _take(self, code: int, message: Any) -> None:
        if self.stage is not Stage.UP and type(message) not in _BEFORE_UP:
            raise PeerError(f"{TYPES[code].cls.__name__} before both sides have accepted")
        own = _ABOUT_THE_LINK.get(type(message))
        if own is not None:
            own(self, message)
        else:
            self.owner.link_message(self, message)

    def _on_identity(self, identity: Identity) -> None:
        if self.peer is not None:
            self._again(identity)
            return
        claimed = self.handshake.peer
        if claimed is None or identity.id != claimed.node_id:
            raise PeerError("its id is not the one of its hello")
        self.peer = identity
        refusal = self.owner.judge(self)
        if refusal is not None:
            self.refuse(refusal)
            return
        self.queue(Accept(self.owner.wall_ms()))
        self._accepted()
        self.flush()

    def _again(self, identity: Identity) -> None:
        """Only what is up is judged again, so nothing unjudged can come in this way."""
        assert self.peer is not None
        if self.stage is not Stage.UP:
            raise PeerError("Identity out of turn")
        if (identity.ref, identity.starts, identity.life) != (self.peer.ref, self.peer.starts, self.peer.life):
            raise PeerError("became another node on one connection")
        self.peer = identity
        self.owner.link_identity(self, identity)

    def _on_accept(self, message: Accept) -> None:
        if self.peer is None or self.stage is Stage.UP:
            raise PeerError("Accept out of turn")
        self.wall_offset_ms = message.wall_ms - clock.monotonic() * 1000
        self._accepted()

    def _accepted(self) -> None:
        self._accepts += 1
        if self._accepts == 2:
            self.stage = Stage.UP
            self.up_s = self.pinged_s = clock.monotonic()
            self.owner.link_up(self)

    def _on_refuse(self, message: Refuse) -> None:
        self.owner.link_refused(self, Refusal(message.reason, message.text))
        self.close(f"refused us: {message.text!r}")

    def _on_ping(self, message: Ping) -> None:
        self.queue(Pong(message.sent_us, self.owner.wall_ms()))

    def _on_pong(self, message: Pong) -> None:
        now_s = clock.monotonic()
        round_trip_s = now_s - message.sent_us / 1e6
        if round_trip_s < 0:
            raise PeerError("Pong of a Ping that was never sent")
        self.round_trip_s = round_trip_s
        self.round_trips_s.append(round_trip_s)
        if self.wall_offset_ms is None or round_trip_s < _ROUND_TRIP_MAX_S:
            self.wall_offset_ms = message.wall_ms - (now_s - round_trip_s / 2) * 1000

    # --- bytes out ---

    def _send_raw(self, data: bytes) -> None:
        """Bytes of the handshake; they come before every frame and are small."""
        if self._unsent is not None:
            data = bytes(self._unsent) + data
        self._push(data)

    def _send_some(self) -> None:
        """What the kernel did not take before, or else the next frames."""
        data = self._unsent if self._unsent is not None else self._gather()
        if data:
            self._push(data)
        elif self._events & WRITE:
            self._watch(READ)
        if self.stage is Stage.CLOSING and not self._events & WRITE:
            self.transport.finish()

    def _push(self, data: bytes | memoryview) -> None:
        try:
            sent = self.transport.send(data)
        except OSError as error:
            self.close(_why(error))
            return
        self.counters.bytes_out += sent
        self._unsent = memoryview(data)[sent:] if sent < len(data) else None
        more = self._unsent is not None or bool(self._pieces or self._lanes[0] or self._lanes[1])
        self._watch(READ | WRITE if more else READ)

    def _gather(self) -> bytes:
        """The next frames: all that is urgent, then bulk up to the limit of one send."""
        writer, limit = self._writer, self.owner.config.send_bytes_max
        if writer is None:
            return b""
        out: list[bytes | memoryview] = []
        size = 0
        urgent = self._lanes[1]
        while urgent:
            code, payload = urgent.popleft()
            size += writer.write(out, code, payload)
            self.counters.messages_out += 1
        self.outbox_bytes[1] = 0
        while size < limit and (piece := self._next_piece()) is not None:
            size += writer.write(out, *piece)
        return b"".join(out)

    def _next_piece(self) -> tuple[int, bytes | memoryview, int] | None:
        """The next bulk frame as (code, payload, flags)."""
        bulk = self._lanes[0]
        if not self._pieces:
            if not bulk:
                return None
            code, payload = bulk.popleft()
            self.outbox_bytes[0] -= len(payload) + OVERHEAD_BYTES
            self.counters.messages_out += 1
            if len(payload) <= FRAGMENT_BYTES:
                return code, payload, 0
            self._pieces.extend(split(payload))
            self._pieces_code = code
        piece, flags = self._pieces.popleft()
        return self._pieces_code, piece, flags

    def _finish(self, reason: str) -> None:
        """CLOSING: our last frames leave, then we wait for the other side to close."""
        self.stage = Stage.CLOSING
        self.heard_s = clock.monotonic()
        self.owner.link_closed(self, reason)
        if self._events & WRITE:
            return
        self._send_some()

    def _watch(self, events: int) -> None:
        if events != self._events and self.stage is not Stage.CLOSED:
            self._events = events
            self.owner.poller.modify(self._fd, events)


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


_BEFORE_UP: Final = frozenset({Identity, Accept, Refuse})
_ABOUT_THE_LINK: Final[dict[type, Callable[[Link, Any], None]]] = {
    Identity: Link._on_identity,
    Accept: Link._on_accept,
    Refuse: Link._on_refuse,
    Ping: Link._on_ping,
    Pong: Link._on_pong,
}
