"""Connections to the other nodes. (Signatures; the body of this module follows.)"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from raftdb.net.wire import Identity, Reason
from raftdb.types import NodeRef


class Refusal(NamedTuple):
    """Why a peer is not let in; it is told both."""

    reason: Reason
    text: str


class Poller(Protocol):
    """What PeerNet needs of the driver's loop (server.Loop has it)."""

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None: ...

    def modify(self, fd: int, events: int) -> None: ...

    def unregister(self, fd: int) -> None: ...


class PeerHandler(Protocol):
    """What the node gives to PeerNet. All calls come in the driver's thread, from poll callbacks, tick() or flush()."""

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
        """A node-level message of net.wire (Forward, ChunkRequest, JoinRequest ...) or a forming message."""

    def on_contact(self, ref: NodeRef) -> None:
        """A piece of a long message arrived: the peer lives, though there is no message to hand over yet."""

    def on_refused(self, address: str, node_id: str, refusal: Refusal) -> None:
        """The other side has refused us (after authentication, so it is true). Once per change of the reason."""


class PeerConfig(NamedTuple):
    """Limits and times."""

    connect_timeout_s: float = 3.0  # TCP connect
    handshake_timeout_s: float = 5.0  # from accept or connect to "up"
    ping_interval_s: float = 0.5  # a peer that hears nothing for this long is sent a Ping
    silence_timeout_s: float = 4.0  # nothing at all came for this long: hung, closed
    backoff_min_s: float = 0.1
    backoff_max_s: float = 2.0
    outbox_bytes_max: int = 16 * 1024 * 1024  # per peer and lane, besides one message that went in below it
    strangers_max: int = 32  # connections that have not proven anything yet
    connections_max: int = 64
    send_bytes_max: int = 256 * 1024  # handed to the kernel at once
    receive_bytes_max: int = 256 * 1024


class PeerNet:
    """Listener, dialler and connections of one node; lives on the driver's selector, in the driver's thread."""

    def __init__(
        self,
        poller: Poller,
        handler: PeerHandler,
        identity: Identity,
        key: bytes,
        *,
        config: PeerConfig = PeerConfig(),  # noqa: B008 an immutable default
    ) -> None:
        """`key`: handshake.cluster_key(secret)."""
        raise NotImplementedError

    def listen(self, host: str, port: int) -> tuple[str, int]:
        """Starts to accept; gives the address that was bound. Raises OSError."""
        raise NotImplementedError

    def set_identity(self, identity: Identity) -> None:
        """Cluster formed, new address, new term or last index (for handshakes to come). Tells connected peers when
        cluster id, addresses, list or table changed."""
        raise NotImplementedError

    def set_members(self, members: Sequence[tuple[NodeRef, str]]) -> None:
        """The peers to be connected to, with their peer addresses, in place of the former ones; the own id is skipped.
        Connections to peers that are not among them stay up until drop() or until the peer leaves."""
        raise NotImplementedError

    def set_seeds(self, addresses: Sequence[str]) -> None:
        """Addresses (HOST:PORT, peer port) whose nodes are not known yet (-e): dialled until someone answers there; a
        name may stand for several nodes."""
        raise NotImplementedError

    def drop(self, ref: NodeRef, refusal: Refusal) -> None:
        """Refuse a connected peer from now on: it is told, then closed."""
        raise NotImplementedError

    def send(self, to: NodeRef, message: Any) -> bool:
        """Queue a message (of consensus or of net.wire) for a peer; it leaves with flush(). Never blocks.

        False: not queued (no connection, or the outbox is full) and certainly never sent. A ForwardReply that does not
        fit closes the connection.
        """
        raise NotImplementedError

    def flush(self) -> None:
        """Hand what is queued to the kernel: one send per peer."""
        raise NotImplementedError

    def tick(self) -> None:
        """Time-outs, pings, reconnects, results of name look-ups. Call it about every 50 ms."""
        raise NotImplementedError

    def connected(self) -> list[Identity]:
        raise NotImplementedError

    def is_connected(self, ref: NodeRef) -> bool:
        raise NotImplementedError

    def walls(self) -> dict[NodeRef, int]:
        """The wall clocks of the connected peers, in ms of Unix time, moved on to now."""
        raise NotImplementedError

    def status(self) -> list[dict[str, Any]]:
        """Per peer: address, state, last contact, round trip, outbox, counters. For INFO and logs."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError
