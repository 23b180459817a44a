"""A selector, a fake node and a pump for tests of PeerNet: everything in one thread, driven by hand."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable
from typing import Any

from raftdb.net.handshake import cluster_key
from raftdb.net.peers import PeerConfig, PeerNet, Refusal
from raftdb.net.transport import Endpoint
from raftdb.net.wire import Identity
from raftdb.types import NodeRef

SECRET = b"a secret of at least sixteen bytes"
KEY = cluster_key(SECRET)
PATIENCE_S = 20.0


class Poller:
    """The part of net.loop.Loop that PeerNet needs."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}

    def register(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        self._epoll.unregister(fd)
        del self._callbacks[fd]

    def poll(self, timeout_s: float) -> None:
        for fd, events in self._epoll.poll(timeout_s):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback(events)

    def close(self) -> None:
        assert not self._callbacks, "descriptors were left behind"
        self._epoll.close()


class FakeNode:
    """Remembers what it was told; lets everybody in unless told otherwise."""

    def __init__(self) -> None:
        self.net: PeerNet
        self.connects: list[Identity] = []
        self.identities: list[Identity] = []
        self.losses: list[tuple[NodeRef, str]] = []
        self.messages: list[tuple[NodeRef, Any]] = []
        self.frames: list[tuple[NodeRef, Any]] = []
        self.contacts: list[NodeRef] = []
        self.refusals: list[tuple[str, str, Refusal]] = []
        self.verdict: Callable[[Identity], Refusal | None] = lambda identity: None

    def authorize(self, identity: Identity) -> Refusal | None:
        return self.verdict(identity)

    def on_connected(self, identity: Identity) -> None:
        self.connects.append(identity)

    def on_identity(self, identity: Identity) -> None:
        self.identities.append(identity)

    def on_lost(self, ref: NodeRef, reason: str) -> None:
        self.losses.append((ref, reason))

    def on_message(self, ref: NodeRef, message: Any) -> None:
        self.messages.append((ref, message))

    def on_frame(self, ref: NodeRef, message: Any) -> None:
        self.frames.append((ref, message))

    def on_contact(self, ref: NodeRef) -> None:
        self.contacts.append(ref)

    def on_refused(self, address: str, node_id: str, refusal: Refusal) -> None:
        self.refusals.append((address, node_id, refusal))


def identity(node_id: str, **changes: Any) -> Identity:
    base = Identity(
        cluster_id="c1",
        id=node_id,
        incarnation=sum(node_id.encode()),
        starts=1,
        life=hash_of(node_id),
        last_index=0,
        term=0,
        table=b"t",
        client_addr="127.0.0.1:1",
        peer_addr="127.0.0.1:2",
        listed=(),
        software="raftdb test",
    )
    return base._replace(**changes)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[:8], "big")


#: Quick reconnects, so that tests wait for events that come soon.
QUICK = PeerConfig(backoff_min_s=0.01, backoff_max_s=0.05, ping_interval_s=0.05, handshake_timeout_s=2.0)


class Node:
    """A PeerNet with its own fake node and address, on a poller that may be shared."""

    def __init__(
        self,
        poller: Poller,
        node_id: str,
        *,
        key: bytes = KEY,
        config: PeerConfig = QUICK,
        dial_from: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        **changes: Any,
    ) -> None:
        self.fake = FakeNode()
        self.identity = identity(node_id, **changes)
        self.ref = self.identity.ref
        self.net = PeerNet(poller, self.fake, self.identity, key, config=config, dial_from=dial_from)
        self.fake.net = self.net
        self.address = str(Endpoint(*self.net.listen(host, port)))
        self.identity = self.identity._replace(peer_addr=self.address)
        self.net.set_identity(self.identity)


class Cluster:
    """Some nodes on one poller."""

    def __init__(self, poller: Any = None) -> None:
        self.poller = poller or Poller()
        self.nodes: list[Node] = []

    def add(self, node_id: str, **options: Any) -> Node:
        node = Node(self.poller, node_id, **options)
        self.nodes.append(node)
        return node

    def introduce(self, *nodes: Node) -> None:
        """Everybody is a member for everybody."""
        for node in nodes:
            node.net.set_members([(other.ref, other.address) for other in nodes])

    def turn(self, timeout_s: float = 0.01) -> None:
        self.poller.poll(timeout_s)
        for node in self.nodes:
            node.net.tick()

    def until(self, condition: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            self.turn()

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.turn()

    def close(self) -> None:
        for node in self.nodes:
            node.net.close()
        self.poller.close()


def all_connected(nodes: Iterable[Node]) -> bool:
    group = list(nodes)
    return all(a.net.is_connected(b.ref) for a in group for b in group if a is not b)
