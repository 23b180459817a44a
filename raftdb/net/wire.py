"""What two nodes say to each other: message types, frames, and the seal on each frame. Pure: bytes in, bytes out.

The page docs/peer-protocol.md tells the same with a worked example.

    connection   = hello proof frame*                  each direction; hello and proof: raftdb.net.handshake
    frame        = length type flags counter payload mac
    length       = u32, bytes of the payload, 0 ..= 1 MiB: checked before anything is kept
    type         = u8, a row of TYPES
    flags        = u8: 0 = a whole message; 1 = a fragment; 3 = the last fragment
    counter      = u64: 0, 1, 2 ... per direction; any other number than the next closes the connection
    payload      = one msgpack array (raftdb.net.schema), or a fragment of one
    mac          = 16 bytes, BLAKE2b keyed with the key of this connection and this direction, over all before it

All numbers are big endian. The key comes from the cluster's secret and the nonces of both sides, so a frame fits into
one place of one direction of one connection: a recorded, repeated, dropped, swapped or altered frame fails its counter
or its mac. An attacker without the secret can cut connections and delay them; he cannot speak.

**Fragments.** A message over FRAGMENT_BYTES is cut. At most one message per direction is under way in fragments, and
whole small messages (heartbeats, votes) may travel between them: that is why a 64 MiB entry does not stop an election
timer from being reset. What is put together is bounded by the limit of its type before it is kept.

**The order** of messages within a lane (see peers.py) holds; between the two lanes it does not. Raft does not need it.

Cost: BLAKE2b gives the interpreter lock up when it is fed 2,048 bytes or more at once, and getting it back beside a
busy thread takes a switch interval. Payloads up to 64 KiB are therefore fed in smaller slices (7 % slower, no
hand-over).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import IntEnum
from hmac import compare_digest
from struct import Struct
from typing import Any, Final, NamedTuple

from raftdb.consensus import messages
from raftdb.errors import PeerError
from raftdb.net.schema import Encoder, decoder, unpack
from raftdb.types import Member, Membership, NodeRef

WIRE_VERSION: Final = 1
WIRE_VERSION_MIN: Final = 1

PAYLOAD_BYTES_MAX: Final = 1024 * 1024
FRAGMENT_BYTES: Final = 64 * 1024
#: An entry (64 MiB) and what stands around it.
MESSAGE_BYTES_MAX: Final = 65 * 1024 * 1024
CHUNK_BYTES_MAX: Final = 256 * 1024
WORDS_BYTES_MAX: Final = 1_024

HEADER: Final = Struct(">IBBQ")
MAC_BYTES: Final = 16
OVERHEAD_BYTES: Final = HEADER.size + MAC_BYTES
FRAGMENT: Final = 1
LAST: Final = 2

#: hashlib gives the interpreter lock up from 2,048 bytes on.
_SLICE_BYTES: Final = 2_047
_SLICED_BYTES_MAX: Final = 64 * 1024


# --- messages of the handshake, and about the connection ------------------------------------------------------------


class Identity(NamedTuple):
    """Who a node is. The first frame of each side, and again when something in it has changed."""

    cluster_id: str  # "" = not (yet) of a formed cluster
    id: str
    incarnation: int  # 64 bits, drawn when the data directory was made
    starts: int  # grows with each start of this data directory
    life: int  # 64 bits, drawn at each start of the process: tells a copy from the original, and me from others
    last_index: int  # of its log
    term: int  # current
    table: bytes  # digest of its command table, at most 64 bytes
    client_addr: str  # HOST:PORT for clients
    peer_addr: str  # HOST:PORT for peers
    listed: tuple[str, ...]  # what -e says, the own address removed: forming compares it
    software: str  # "raftdb 0.1.0": for people

    @property
    def ref(self) -> NodeRef:
        return NodeRef(self.id, self.incarnation)


class Reason(IntEnum):
    """Why a connection is refused. Told only to a side that has proven that it knows the secret."""

    OTHER_CLUSTER = 1
    NOT_A_MEMBER = 2
    REMOVED = 3
    OLD_INCARNATION = 4
    OLD_STARTS = 5
    SAME_ID = 6
    MYSELF = 7
    UNEXPECTED = 8  # dialled for another id
    DUPLICATE = 9  # another connection between the two lives
    RESTORED = 10  # its log is behind what it has acknowledged
    FULL = 11  # too many connections
    OTHER = 12


class Accept(NamedTuple):
    """The other side's identity is fine. A connection is up when both sides have said so."""

    wall_ms: int


class Refuse(NamedTuple):
    """The last frame before the connection is closed."""

    reason: Reason
    text: str


class Ping(NamedTuple):
    """Sent when nothing else was sent for a while; answered at once. Both carry the wall clock."""

    sent_us: int  # the sender's monotonic clock: comes back in Pong
    wall_ms: int


class Pong(NamedTuple):
    sent_us: int  # of the Ping
    wall_ms: int


# --- messages between nodes, beside those of consensus ---------------------------------------------------------------


class Forward(NamedTuple):
    """Client requests for the leader. What is inside is between the two nodes."""

    request_id: int  # the sender's; comes back in ForwardReply
    term: int  # the term whose leader is meant: in another term the answer is "not executed"
    context: bytes  # database, consistency, rights
    payload: bytes  # the batch of requests


class ForwardReply(NamedTuple):
    """The answer to a Forward. Never dropped: what cannot be sent closes the connection, and the fate is unknown."""

    request_id: int
    executed: bool  # False: certainly not executed
    at_index: int  # of the entry; later reads of that connection wait for it
    payload: bytes  # replies, or the error text


class ForwardCancel(NamedTuple):
    """The client of a forwarded blocking request has left."""

    request_id: int


class ChunkRequest(NamedTuple):
    """A follower pulls a piece of a snapshot file."""

    name: str  # plain name inside snapshots/
    digest: bytes  # 32 bytes, of the whole file
    offset: int
    length: int  # at most CHUNK_BYTES_MAX


class ChunkReply(NamedTuple):
    name: str
    digest: bytes
    offset: int
    data: bytes  # empty with `error`
    error: str  # "" = fine; else why there is no data ("no such snapshot", ...)


class StatusRequest(NamedTuple):
    request_id: int


class StatusReply(NamedTuple):
    request_id: int
    payload: bytes  # as the node encodes it


class JoinRequest(NamedTuple):
    """ "Please add me as a learner." Any member answers; one that is not the leader says who is."""

    id: str
    incarnation: int
    client_addr: str
    peer_addr: str
    replace: bool  # -o: the old incarnation of this id is to be removed


class JoinReply(NamedTuple):
    accepted: bool
    text: str  # why not
    cluster_id: str
    leader: str  # peer address of the leader, "" = unknown
    membership: Membership | None


class Leave(NamedTuple):
    """The sender is about to stop, or has been removed: do not wait for it."""

    text: str


class Hint(NamedTuple):
    """ "Who is the leader?" told unasked, to a node that asks the wrong one."""

    term: int
    leader: NodeRef | None
    client_addr: str
    peer_addr: str


class FormProposal(NamedTuple):
    """ "Let us be this cluster": from the node that coordinates, or handed on by one that has accepted."""

    cluster_id: str
    members: tuple[Member, ...]


class FormReply(NamedTuple):
    cluster_id: str
    accepted: bool  # durably
    text: str  # why not


# --- the table of types ---------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """What holds for all messages of a type."""

    code: int
    cls: Any
    decode: Callable[[Any], Any]
    bytes_max: int  # of the encoded message
    urgent: bool  # overtakes long messages on the way
    members_only: bool  # taken only from, and sent only to, a peer of the own cluster
    consensus: bool  # for the core
    words: str  # the field with words for people, which is cut to WORDS_BYTES_MAX; "" = none


KIB: Final = 1024

#: code -> (class, most bytes, urgent, members only). Codes are for ever: a retired one is not used again.
_NODE_TYPES: Final[dict[int, tuple[Any, int, bool, bool]]] = {
    1: (Identity, 64 * KIB, True, False),
    2: (Accept, KIB, True, False),
    3: (Refuse, 4 * KIB, True, False),
    4: (Ping, KIB, True, False),
    5: (Pong, KIB, True, False),
    16: (Forward, MESSAGE_BYTES_MAX, False, True),
    17: (ForwardReply, MESSAGE_BYTES_MAX, False, True),
    18: (ForwardCancel, KIB, False, True),
    19: (ChunkRequest, 4 * KIB, False, True),
    20: (ChunkReply, CHUNK_BYTES_MAX + 4 * KIB, False, True),
    21: (StatusRequest, KIB, False, False),
    22: (StatusReply, PAYLOAD_BYTES_MAX, False, False),
    23: (JoinRequest, 4 * KIB, False, False),
    24: (JoinReply, 256 * KIB, False, False),
    25: (Leave, 4 * KIB, False, False),
    26: (Hint, 4 * KIB, False, False),
    27: (FormProposal, 256 * KIB, False, False),
    28: (FormReply, 4 * KIB, False, False),
}
#: The code of a consensus message is this plus its place in messages.MESSAGES.
CONSENSUS_CODE: Final = 64
_BULK: Final = {messages.Append: MESSAGE_BYTES_MAX, messages.SnapshotOffer: 256 * KIB}
#: Must not overtake the entries that were sent before it: it is void when they are missing.
_ORDERED: Final = (messages.TimeoutNow,)


def _words(cls: Any) -> str:
    return next((name for name in ("text", "error") if name in cls._fields), "")


def _checked(decode: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """With consensus' own gateway behind it, for messages with more rules than types and ranges."""
    return lambda raw: messages.check(decode(raw))


def _consensus_row(place: int, cls: Any) -> Row:
    decode = _checked(decoder(cls)) if cls is messages.SnapshotOffer else decoder(cls)
    urgent = cls not in _BULK and cls not in _ORDERED
    return Row(CONSENSUS_CODE + place, cls, decode, _BULK.get(cls, KIB), urgent, True, True, "")


_ROWS: Final = (
    *(Row(code, cls, decoder(cls), size, u, m, False, _words(cls)) for code, (cls, size, u, m) in _NODE_TYPES.items()),
    *(_consensus_row(place, cls) for place, cls in enumerate(messages.MESSAGES)),
)
TYPES: Final[dict[int, Row]] = {row.code: row for row in _ROWS}
ROWS: Final[dict[type, Row]] = {row.cls: row for row in _ROWS}
_WHOLE_BYTES_MAX: Final = {row.code: min(row.bytes_max, PAYLOAD_BYTES_MAX) for row in _ROWS}


class Codec(Encoder):
    """Messages to (type, payload) and back; owned by one thread."""

    __slots__ = ("_dumped", "_message")

    def __init__(self) -> None:
        super().__init__()
        self._message: Any = None  # the last one, which often goes to several peers
        self._dumped = (0, b"")

    def dump(self, message: Any) -> tuple[int, bytes]:
        """Raises PeerError when the message is over its limit (the sender's mistake, found before it is sent)."""
        if message is self._message:
            return self._dumped
        row, short = ROWS[type(message)], message
        if row.words:
            short = message._replace(**{row.words: clip(getattr(message, row.words))})
        payload = self.encode(short)
        if len(payload) > row.bytes_max:
            raise PeerError(f"{type(message).__name__} of {len(payload)} bytes is over the limit")
        self._message, self._dumped = message, (row.code, payload)
        return self._dumped

    def load(self, code: int, payload: bytes | bytearray) -> Any:
        """Raises PeerError for anything that dump() would not have made."""
        row = TYPES.get(code)
        if row is None:
            raise PeerError(f"unknown message type {code}")
        return row.decode(unpack(payload, row.bytes_max))


def clip(text: str) -> str:
    """Words for people, short enough for every reader: a long reason must not make the reader close the connection."""
    raw = text.encode(errors="replace")
    if len(raw) <= WORDS_BYTES_MAX:
        return raw.decode()
    return raw[: WORDS_BYTES_MAX - 3].decode(errors="ignore") + "..."


# --- frames ---------------------------------------------------------------------------------------------------------


class Seal:
    """One direction of one connection: the key and the next counter."""

    __slots__ = ("_keyed", "counter")

    def __init__(self, key: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES)
        self.counter = 0

    def mac(self, header: bytes, payload: bytes | memoryview) -> bytes:
        """The mac over header and payload; copying a keyed state is cheaper than keying."""
        state = self._keyed.copy()
        state.update(header)
        size = len(payload)
        if size <= _SLICE_BYTES or size > _SLICED_BYTES_MAX:
            state.update(payload)
        else:
            view = memoryview(payload)
            for start in range(0, size, _SLICE_BYTES):
                state.update(view[start : start + _SLICE_BYTES])
        return state.digest()


class FrameWriter(Seal):
    """Makes the frames of one direction. The counter is taken when a frame is made: make them in sending order."""

    __slots__ = ()

    def write(self, out: list[bytes | memoryview], code: int, payload: bytes | memoryview, flags: int = 0) -> int:
        """Appends one frame to `out` in pieces (no copy of the payload); returns its size in bytes."""
        header = HEADER.pack(len(payload), code, flags, self.counter)
        self.counter += 1
        out.append(header)
        out.append(payload)
        out.append(self.mac(header, payload))
        return OVERHEAD_BYTES + len(payload)

    def frame(self, code: int, payload: bytes, flags: int = 0) -> bytes:
        out: list[bytes | memoryview] = []
        self.write(out, code, payload, flags)
        return b"".join(out)


class FrameReader(Seal):
    """Takes the bytes of one direction apart: checks, and puts fragments together.

    After a PeerError the connection must be closed; nothing that came after is looked at.
    """

    __slots__ = ("_code", "_needed", "_parts", "_rest", "fragments")

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self._rest = bytearray()
        self._needed = 0  # bytes of _rest before it is worth looking again
        self._code = 0  # of the message in fragments, 0 = none
        self._parts = bytearray()
        self.fragments = 0  # read so far: contact, though no message is whole yet

    @property
    def buffered_bytes(self) -> int:
        return len(self._rest) + len(self._parts)

    def feed(self, data: bytes) -> list[tuple[int, bytes | bytearray]]:
        """All messages that are whole now, as (type, payload).

        Raises PeerError: oversize, counter, mac, unknown type, fragments out of order.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest.clear()
        whole: list[tuple[int, bytes | bytearray]] = []
        start, end = 0, len(data)
        while end - start >= HEADER.size:
            length, code, flags, counter = HEADER.unpack_from(data, start)
            if flags or counter != self.counter or length > _WHOLE_BYTES_MAX.get(code, -1):
                self._check_header(length, code, flags, counter)
            stop = start + OVERHEAD_BYTES + length
            if stop > end:
                break
            payload = self._open(data, start, length)
            start = stop
            if flags == 0:
                whole.append((code, payload))
            else:
                self._gather(code, flags, payload, whole)
        self._keep(data, start, end)
        return whole

    def _check_header(self, length: int, code: int, flags: int, counter: int) -> None:
        """Raises PeerError unless this may be the next frame."""
        if length > PAYLOAD_BYTES_MAX:
            raise PeerError(f"frame of {length} bytes is over the limit of {PAYLOAD_BYTES_MAX}")
        if counter != self.counter:
            raise PeerError(f"frame {counter} where {self.counter} was due: repeated, dropped or out of order")
        row = TYPES.get(code)
        if row is None:
            raise PeerError(f"unknown message type {code}")
        if flags not in (0, FRAGMENT, FRAGMENT | LAST):
            raise PeerError(f"unknown frame flags {flags}")
        if length + (len(self._parts) if flags else 0) > row.bytes_max:
            raise PeerError(f"{row.cls.__name__} is over its limit of {row.bytes_max} bytes")

    def _open(self, data: bytes, start: int, length: int) -> bytes:
        body = start + HEADER.size
        payload = data[body : body + length]
        mac = self.mac(data[start:body], payload)
        if not compare_digest(mac, data[body + length : body + length + MAC_BYTES]):
            raise PeerError("frame with a wrong seal: altered on the way, or not from this peer")
        self.counter += 1
        return payload

    def _gather(self, code: int, flags: int, payload: bytes, whole: list[tuple[int, bytes | bytearray]]) -> None:
        if not payload or self._code not in (0, code):
            raise PeerError("fragments out of order")
        self._code = code
        self._parts += payload
        self.fragments += 1
        if flags & LAST:
            whole.append((code, self._parts))
            self._code, self._parts = 0, bytearray()

    def _keep(self, data: bytes, start: int, end: int) -> None:
        """Keeps what belongs to the next frame, and notes how much it takes."""
        if start == end:
            return
        self._rest += data[start:] if start else data
        self._needed = HEADER.size
        if end - start >= HEADER.size:
            self._needed = OVERHEAD_BYTES + HEADER.unpack_from(data, start)[0]


def split(payload: bytes) -> list[tuple[memoryview, int]]:
    """A payload over FRAGMENT_BYTES as (piece, flags)."""
    view = memoryview(payload)
    pieces = [view[i : i + FRAGMENT_BYTES] for i in range(0, len(payload), FRAGMENT_BYTES)]
    last = len(pieces) - 1
    return [(piece, FRAGMENT | (LAST if i == last else 0)) for i, piece in enumerate(pieces)]
