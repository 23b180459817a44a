"""How two nodes prove to each other that they know the cluster's secret, and agree on keys. A pure state machine.

    dialer                                       acceptor
      hello_d = magic versions nonce_d id_d  ->
                                             <-  hello_a = magic versions nonce_a id_a
      proof_d = B(K, "dialer",   hello_d hello_a)  ->
                                             <-  proof_a = B(K, "acceptor", hello_d hello_a)
      ============ frames, sealed with the key of their direction; the first of each side is its Identity ============

B is keyed BLAKE2b of 32 bytes with the label in its `person` field; K comes from the secret; the direction keys are B
again with labels of their own. Numbers are big endian:

    hello = "raftdb-p" version u16, oldest version u16, nonce (32 bytes), length u8, id (UTF-8, 1..255 bytes)

Why it holds:

- Both nonces are in everything, so neither side can be made to speak to a recording of the other.
- Labels say who speaks: a proof sent back to its maker ("reflection", also over a second connection opened towards the
  victim) is a proof of the wrong direction, and over hellos whose other half the victim drew itself.
- The dialer proves first. Who merely connects to the peer port gets a nonce and nothing that could be searched off-line
  for a weak secret; a node only ever dials what it was told to.
- The versions are inside what is proven: nobody in between can talk both sides down.
- Identity (cluster, id, incarnation, addresses) is only sent under the seal, and reasons for a refusal only told there.

What it does not do: hide what is said (no encryption; that is TLS's work, behind the same transport type), or protect
recorded traffic when the secret leaks later (no key exchange: the standard library has none).

A stranger costs at most HELLO_BYTES_MAX + PROOF_BYTES of memory here; time is limited by the owner of the socket.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import Enum
from struct import Struct
from typing import Final, NamedTuple

from raftdb.errors import PeerError
from raftdb.net.wire import WIRE_VERSION, WIRE_VERSION_MIN

MAGIC: Final = b"raftdb-p"
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
SECRET_BYTES_MIN: Final = 16
ID_BYTES_MAX: Final = 255
_FIXED: Final = Struct(f">8sHH{NONCE_BYTES}sB")
HELLO_BYTES_MAX: Final = _FIXED.size + ID_BYTES_MAX


class Side(Enum):
    DIALER = "dialer"
    ACCEPTOR = "acceptor"


class State(Enum):
    HELLO = "waits for the hello"
    PROOF = "waits for the proof"
    DONE = "done"


class Hello(NamedTuple):
    """What is said before anything is proven: for logs, and for `version`. Never believed."""

    version: int
    version_min: int
    nonce: bytes
    node_id: str


class Keys(NamedTuple):
    """What the seals of the two directions start from, as seen from this side."""

    send: bytes
    receive: bytes


def cluster_key(secret: bytes) -> bytes:
    """K, from the bytes of the secret file (white space around them does not count).

    Raises PeerError when the secret is shorter than 16 bytes.
    """
    secret = secret.strip()
    if len(secret) < SECRET_BYTES_MIN:
        raise PeerError(f"the cluster secret is shorter than {SECRET_BYTES_MIN} bytes")
    return hashlib.blake2b(secret, digest_size=32, person=b"raftdb secret").digest()


class Handshake:
    """One side of one handshake. The owner sends what start() and receive() return, in order, until state is DONE.

    After a PeerError the connection must be closed.
    """

    def __init__(self, side: Side, key: bytes, node_id: str, nonce: bytes) -> None:
        """`nonce`: 32 bytes that were never used before (os.urandom)."""
        assert len(key) == 32
        assert len(nonce) == NONCE_BYTES
        self.side = side
        self.state: State = State.HELLO
        self.peer: Hello | None = None
        self.keys: Keys | None = None
        self.version = 0  # the one both speak
        self.rest = b""  # when DONE: bytes behind the handshake, for the FrameReader
        self._key = key
        self._own = _hello(node_id, nonce)
        self._transcript = b""
        self._buffer = b""

    def start(self) -> bytes:
        """The dialer's hello; the acceptor has nothing to say before it is spoken to."""
        return self._own if self.side is Side.DIALER else b""

    def receive(self, data: bytes) -> bytes:
        """Takes what came, in pieces of any size; returns what is to be sent.

        Raises PeerError: not a raftdb peer, no common version, own words sent back, other secret.
        """
        assert self.state is not State.DONE
        self._buffer += data
        out = b""
        if self.state is State.HELLO:
            out += self._take_hello()
        if self.state is State.PROOF:
            out += self._take_proof()
        if self.keys is not None:
            self.rest, self._buffer = self._buffer, b""
        return out

    def _take_hello(self) -> bytes:
        size = min(len(self._buffer), len(MAGIC))
        if self._buffer[:size] != MAGIC[:size]:
            raise PeerError("does not speak the peer protocol (is this the client port?)")
        if len(self._buffer) < _FIXED.size:
            return b""
        _, version, version_min, nonce, id_bytes = _FIXED.unpack_from(self._buffer)
        stop = _FIXED.size + id_bytes
        if len(self._buffer) < stop:
            return b""
        raw, self._buffer = self._buffer[:stop], self._buffer[stop:]
        self.peer = Hello(version, version_min, nonce, _node_id(raw[_FIXED.size :]))
        self.version = _common_version(self.peer)
        if hmac.compare_digest(nonce, self._own[_FIXED.size - 1 - NONCE_BYTES : _FIXED.size - 1]):
            raise PeerError("sends back our own hello")
        self.state = State.PROOF
        if self.side is Side.DIALER:
            self._transcript = self._own + raw
            return self._label(b"raftdb dialer")
        self._transcript = raw + self._own
        return self._own

    def _take_proof(self) -> bytes:
        if len(self._buffer) < PROOF_BYTES:
            return b""
        dialer = self.side is Side.DIALER
        proof, self._buffer = self._buffer[:PROOF_BYTES], self._buffer[PROOF_BYTES:]
        expected = self._label(b"raftdb acceptor" if dialer else b"raftdb dialer")
        if not hmac.compare_digest(proof, expected):
            raise PeerError("does not know the cluster secret")
        forth, back = self._label(b"raftdb key d>a"), self._label(b"raftdb key a>d")
        self.keys = Keys(forth, back) if dialer else Keys(back, forth)
        self.state = State.DONE
        return b"" if dialer else self._label(b"raftdb acceptor")

    def _label(self, person: bytes) -> bytes:
        return hashlib.blake2b(self._transcript, key=self._key, digest_size=32, person=person).digest()


def _hello(node_id: str, nonce: bytes) -> bytes:
    name = node_id.encode()
    if not 1 <= len(name) <= ID_BYTES_MAX:
        raise PeerError(f"a node id has 1 to {ID_BYTES_MAX} bytes")
    return _FIXED.pack(MAGIC, WIRE_VERSION, WIRE_VERSION_MIN, nonce, len(name)) + name


def _node_id(raw: bytes) -> str:
    try:
        return raw.decode() or "?"
    except UnicodeDecodeError:
        raise PeerError("node id is not UTF-8") from None


def _common_version(peer: Hello) -> int:
    version = min(peer.version, WIRE_VERSION)
    if version < max(peer.version_min, WIRE_VERSION_MIN):
        raise PeerError(
            f"speaks peer protocol {peer.version_min} to {peer.version}, this node {WIRE_VERSION_MIN} to {WIRE_VERSION}"
        )
    return version
