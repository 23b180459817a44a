"""What somebody on the network can try against the peer port, with and without the secret."""

from __future__ import annotations

import os
import socket

import pytest

from raftdb.consensus.messages import Append, Heartbeat
from raftdb.net.handshake import NONCE_BYTES, Handshake, Side, cluster_key
from raftdb.net.link import Stage
from raftdb.net.wire import HEADER, Accept, Codec, Forward, FrameReader, FrameWriter, Ping, Pong, Reason, Refuse
from tests.net.peerkit import KEY, QUICK, Cluster, Node, all_connected, identity

BEAT = Heartbeat(3, 1, 10, 5, None)


class Client:
    """A peer by hand: a blocking socket that speaks as far as a test wants, while the cluster turns."""

    def __init__(self, cluster: Cluster, node: Node, key: bytes = KEY, node_id: str = "m") -> None:
        self.cluster = cluster
        host, _, port = node.address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)))
        self.sock.setblocking(False)
        self.shake = Handshake(Side.DIALER, key, node_id, os.urandom(NONCE_BYTES))
        self.codec = Codec()
        self.received = b""
        self.sent = b""
        self.closed = False

    def send(self, data: bytes) -> None:
        self.sent += data
        try:
            self.sock.sendall(data)
        except OSError:
            self.closed = True

    def turn(self) -> bytes:
        self.cluster.turn(0.002)
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        self.closed = self.closed or not data
        self.received += data
        return data

    def prove(self) -> Client:
        """Through the handshake."""
        self.send(self.shake.start())
        while self.shake.keys is None:
            assert not self.closed
            data = self.turn()
            if data:
                self.send(self.shake.receive(data))
        self.writer = FrameWriter(self.shake.keys.send)
        self.reader = FrameReader(self.shake.keys.receive)
        self.messages = [self.codec.load(*item) for item in self.reader.feed(self.shake.rest)]
        return self

    def say(self, message: object) -> None:
        self.send(self.writer.frame(*self.codec.dump(message)))

    def enter(self, **changes: object) -> Client:
        """Up to UP."""
        self.prove()
        self.say(identity(self.shake.start()[45:].decode(), **changes))
        self.say(Accept(0))
        self.hear(Accept)
        return self

    def hear(self, kind: type) -> object:
        while True:
            for message in self.messages:
                if type(message) is kind:
                    return message
            assert not self.closed
            self.messages += [self.codec.load(*item) for item in self.reader.feed(self.turn())]

    def until_closed(self) -> None:
        self.cluster.until(lambda: self.turn() is None or self.closed)


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def node(cluster):
    return cluster.add("n1")


def test_the_client_by_hand_is_a_good_peer(cluster, node):
    """The tests below mean something only if this one gets in."""
    client = Client(cluster, node).enter()
    client.say(BEAT)
    cluster.until(lambda: node.fake.messages)
    assert node.fake.messages[0][1] == BEAT


def test_recorded_frames_of_another_connection_are_refused(cluster, node):
    first = Client(cluster, node).enter()
    first.say(BEAT)
    cluster.until(lambda: node.fake.messages)
    recording = first.sent
    first.sock.close()
    cluster.until(lambda: not node.net.connected())
    again = Client(cluster, node)
    again.send(recording)
    again.until_closed()
    assert len(node.fake.messages) == 1
    assert len(node.fake.connects) == 1


def test_a_repeated_frame_closes_the_connection(cluster, node):
    client = Client(cluster, node).enter()
    frame = client.writer.frame(*client.codec.dump(BEAT))
    client.send(frame + frame)
    client.until_closed()
    assert len(node.fake.messages) <= 1
    assert "repeated, dropped or out of order" in node.fake.losses[0][1]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: c.writer.frame(4, b"\x91") * 1,
        lambda c: c.writer.frame(4, b"\xc1"),
        lambda c: c.writer.frame(4, b""),
        lambda c: c.writer.frame(200, b"\x90"),
        lambda c: c.writer.frame(64, b"\x91" * 1000),
        lambda c: c.writer.frame(64, b"\xdd\xff\xff\xff\xff"),
        lambda c: c.writer.frame(4, b"\x92\xcf" + b"\xff" * 8 + b"\x00"),
        lambda c: HEADER.pack(1 << 31, 16, 0, c.writer.counter),
        lambda c: HEADER.pack(10, 16, 0, c.writer.counter + 1) + bytes(26),
        lambda c: HEADER.pack(10, 16, 0, c.writer.counter) + bytes(26),
        lambda c: c.writer.frame(16, b"x", 2),
        lambda c: os.urandom(100),
        lambda c: c.writer.frame(*c.codec.dump(Accept(0))),
        lambda c: c.writer.frame(*c.codec.dump(Pong(2**61, 0))),
        lambda c: c.writer.frame(*c.codec.dump(identity("m", life=9))),
        lambda c: c.writer.frame(*c.codec.dump(identity("n2"))),
    ],
)
def test_malformed_frames_close_the_connection(cluster, node, spoil):
    client = Client(cluster, node).enter()
    client.send(spoil(client))
    client.until_closed()
    assert len(node.fake.losses) == 1
    assert node.fake.messages == node.fake.frames == []
    assert node.net.connected() == []


@pytest.mark.parametrize("message", [BEAT, Ping(1, 1), Accept(1), Forward(1, 1, b"", b""), Append(1, 0, 0, 0, 0, ())])
def test_nothing_is_taken_before_both_have_accepted(cluster, node, message):
    client = Client(cluster, node).prove()
    client.say(message)
    client.until_closed()
    assert node.fake.connects == []
    assert node.fake.messages == node.fake.frames == []


@pytest.mark.parametrize("message", [BEAT, Ping(1, 1), Pong(1, 1), identity("m", listed=("x",))])
def test_nothing_is_taken_between_the_verdict_and_accept(cluster, node, message):
    client = Client(cluster, node).prove()
    client.say(identity("m"))
    client.hear(Accept)
    client.say(message)
    client.say(Accept(0))
    client.until_closed()
    assert node.fake.connects == node.fake.identities == []
    assert node.fake.messages == []


def test_an_id_that_is_not_the_one_of_the_hello(cluster, node):
    client = Client(cluster, node, node_id="m").prove()
    client.say(identity("n2"))
    client.say(Accept(0))
    client.until_closed()
    assert node.fake.connects == []


def test_without_the_secret_nothing_is_told(cluster, node):
    client = Client(cluster, node, cluster_key(b"a guess of enough bytes"))
    client.send(client.shake.start())
    while not (data := client.turn()):
        assert not client.closed
    client.send(client.shake.receive(data))
    client.until_closed()
    hello = node.net._handshake(Side.ACCEPTOR)._own
    assert len(client.received) == len(hello)  # a hello and not a byte more


def test_a_stranger_who_says_nothing_is_closed(cluster):
    node = cluster.add("n1", config=QUICK._replace(handshake_timeout_s=0.2))
    client = Client(cluster, node)
    client.until_closed()
    assert client.received == b""


def test_slow_loris_one_byte_now_and_then_is_closed_in_time(cluster):
    node = cluster.add("n1", config=QUICK._replace(handshake_timeout_s=0.3))
    client = Client(cluster, node)
    hello = client.shake.start()
    for i in range(10_000):
        if client.closed:
            break
        client.send(hello[i : i + 1] if i < len(hello) - 1 else b"")
        client.turn()
    client.until_closed()
    assert not node.net._links or all(link.stage is Stage.CLOSED for link in node.net._links)


def test_who_proves_and_then_says_nothing_is_closed(cluster):
    node = cluster.add("n1", config=QUICK._replace(handshake_timeout_s=0.2))
    client = Client(cluster, node).prove()
    client.until_closed()


def test_a_crowd_of_strangers_does_not_keep_peers_out(cluster):
    config = QUICK._replace(strangers_max=8)
    a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
    crowd = []
    for _ in range(40):
        crowd.append(Client(cluster, a))
        cluster.turn(0.001)
    assert sum(link.stage is Stage.PROVING for link in a.net._links) <= 8
    b.net.set_members([(a.ref, a.address)])
    cluster.until(lambda: all_connected([a, b]))
    crowd += [Client(cluster, a) for _ in range(20)]
    cluster.turns(10)
    assert all_connected([a, b])
    for client in crowd:
        client.sock.close()


def test_too_many_peers_are_told(cluster):
    node = cluster.add("n1", config=QUICK._replace(connections_max=2))
    good = [Client(cluster, node, node_id=f"m{i}").enter() for i in range(2)]
    late = Client(cluster, node, node_id="m9").prove()
    late.say(identity("m9"))
    refuse = late.hear(Refuse)
    assert "2 peers are connected" in refuse.text
    assert len(good) == len(node.net.connected())


def test_a_refused_peer_that_goes_on_talking_is_not_listened_to(cluster, node):
    client = Client(cluster, node).prove()
    client.say(identity("m", cluster_id="other"))
    client.say(BEAT)
    assert "of cluster" in client.hear(Refuse).text
    for _ in range(20):
        client.say(Forward(1, 1, b"", bytes(10_000)))
        client.turn()
    client.until_closed()
    assert node.fake.messages == node.fake.frames == node.fake.connects == []


def test_running_out_of_descriptors_is_survived(cluster, node, monkeypatch):
    real = node.net._listener
    calls = []

    class Exhausted:
        def accept(self):
            calls.append(1)
            raise OSError(24, "Too many open files")

        def __getattr__(self, name):
            return getattr(real, name)

    node.net._listener = Exhausted()
    client = Client(cluster, node)
    for _ in range(50):
        cluster.poller.poll(0.001)
    assert len(calls) == 1  # no spinning until the next tick
    node.net._listener = real
    client.enter()


def test_reflection_through_the_real_thing(cluster):
    """Mallory stands where n2 should be and passes everything on to n1 itself."""
    a = cluster.add("n1")
    trap = socket.create_server(("127.0.0.1", 0))
    trap.setblocking(False)
    a.net.set_seeds([f"127.0.0.1:{trap.getsockname()[1]}"])
    pairs: list[tuple[socket.socket, socket.socket]] = []
    for _ in range(300):
        cluster.turn(0.002)
        try:
            dialled, _ = trap.accept()
            dialled.setblocking(False)
            back = Client(cluster, a).sock
            pairs.append((dialled, back))
        except BlockingIOError:
            pass
        for one, other in pairs:
            for source, sink in ((one, other), (other, one)):
                try:
                    sink.sendall(source.recv(65536))
                except OSError:
                    continue
        if any(seed.myself for seed in a.net.seeds()):
            break
    assert any(seed.myself for seed in a.net.seeds())
    assert a.fake.connects == a.fake.messages == []
    trap.close()
    for one, other in pairs:
        one.close()
        other.close()


def test_log_lines_do_not_carry_control_characters(cluster, node, caplog):
    client = Client(cluster, node, cluster_key(b"a guess of enough bytes"), node_id="evil\n2026 ERROR fake\x1b[31m")
    client.send(client.shake.start())
    while not (data := client.turn()):
        assert not client.closed
    client.send(client.shake.receive(data))
    client.until_closed()
    cluster.turns(3)
    assert caplog.records
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_words_of_peers_are_escaped_too(cluster, node, caplog):
    """A peer knows the secret; its words still do not get to forge lines of the log."""
    caplog.set_level("INFO")
    client = Client(cluster, node, node_id="m\nx").enter()
    client.say(Refuse(Reason.OTHER, "bye\n2026 ERROR fake"))
    client.until_closed()
    assert len(caplog.records) == 2
    assert all(record.getMessage().isprintable() for record in caplog.records)
