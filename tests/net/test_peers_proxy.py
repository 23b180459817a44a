"""PeerNets through the proxy: cuts at random bytes, black holes, slow lines, altered bytes; and the proxy itself."""

from __future__ import annotations

import random
import socket
import time

import pytest

from raftdb.consensus.messages import Append, Heartbeat
from raftdb.net.transfer import SnapshotFetcher, SnapshotSource
from raftdb.net.wire import ChunkReply, ChunkRequest
from raftdb.types import Entry
from tests.net.peerkit import QUICK, Cluster, Node, all_connected
from tests.net.test_transfer import digest_of, make_snapshot
from tests.proxy import Proxy


def beat(number: int) -> Heartbeat:
    return Heartbeat(1, number, 0, 0, None)


def append(size: int) -> Append:
    return Append(1, 0, 0, 0, 0, (Entry(1, 1, 1, 1, 1, bytes(size), 1),))


@pytest.fixture
def proxy():
    with Proxy() as made:
        yield made


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    made.close()


def by_way_of(proxy: Proxy, node: Node, other: Node) -> str:
    """A new address of `other` for `node`, through the proxy."""
    host, port = other.address.split(":")
    bound = proxy.listen(other.identity.id, (host, int(port)), source=node.identity.id)
    return f"{bound[0]}:{bound[1]}"


def wire_up(proxy: Proxy, *nodes: Node) -> None:
    """Every node is given addresses of the others that lead through the proxy."""
    for node in nodes:
        node.net.set_members([(other.ref, by_way_of(proxy, node, other)) for other in nodes if other is not node])


@pytest.fixture
def pair(cluster, proxy):
    config = QUICK._replace(silence_timeout_s=0.5)
    a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
    wire_up(proxy, a, b)
    cluster.until(lambda: all_connected([a, b]))
    return a, b


class TestPeers:
    def test_cuts_at_random_bytes(self, cluster, proxy, pair):
        """Whatever arrives is what was sent, in order, at most once; and they find each other again every time."""
        a, b = pair
        chance = random.Random(5)
        number = 0
        for _ in range(40):
            proxy.link("n1", "n2").close_after(chance.randrange(1, 4_000))
            if chance.random() < 0.3:
                proxy.link("n2", "n1").close_after(chance.randrange(1, 500))
            for _ in range(20):
                number += 1
                a.net.send(b.ref, beat(number))
                a.net.send(b.ref, append(chance.choice([0, 10, 70_000])))
            cluster.turns(3)
            cluster.until(lambda: all_connected([a, b]))
        rounds = [message.round for _, message in b.fake.messages if type(message) is Heartbeat]
        assert rounds == sorted(set(rounds))
        assert len(rounds) > 100
        assert len(b.fake.losses) > 10
        assert len(b.fake.connects) == len(b.fake.losses) + 1

    @pytest.mark.parametrize("pieces", [1, 7, 1000])
    def test_bytes_in_pieces(self, cluster, proxy, pair, pieces):
        a, b = pair
        proxy.link("n1", "n2").split(pieces)
        size = 2_000 if pieces < 100 else 300_000
        a.net.send(b.ref, append(size))
        a.net.send(b.ref, beat(1))
        cluster.until(lambda: len(b.fake.messages) == 2)
        assert b.fake.losses == []

    @pytest.mark.parametrize("fault", ["flip_next", "drop_next"])
    def test_altered_bytes_close_the_connection_and_nothing_wrong_arrives(self, cluster, proxy, pair, fault):
        a, b = pair
        for count in range(1, 12):
            getattr(proxy.link("n1", "n2"), fault)(count * 13)
            lost = len(b.fake.losses) + len(a.fake.losses)
            for number in range(10):
                a.net.send(b.ref, beat(count * 100 + number))
            cluster.until(lambda lost=lost: len(b.fake.losses) + len(a.fake.losses) > lost)
            cluster.until(lambda: all_connected([a, b]))
        for _, message in b.fake.messages:
            assert message == beat(message.round)

    @pytest.mark.parametrize(("source", "target"), [("n1", "n2"), ("n2", "n1")])
    def test_a_black_hole_in_one_direction_is_noticed_by_who_hears_nothing(self, cluster, proxy, pair, source, target):
        a, b = pair
        deaf = b if target == "n2" else a
        proxy.link(source, target).hold()
        cluster.until(lambda: deaf.fake.losses)
        assert "nothing heard" in deaf.fake.losses[0][1]
        proxy.heal()
        cluster.until(lambda: all_connected([a, b]))
        cluster.turns(20)
        assert all_connected([a, b])

    def test_a_partition_and_its_end(self, cluster, proxy):
        config = QUICK._replace(silence_timeout_s=0.5, connect_timeout_s=0.5, handshake_timeout_s=0.5)
        nodes = [cluster.add(f"n{i}", config=config) for i in range(3)]
        wire_up(proxy, *nodes)
        cluster.until(lambda: all_connected(nodes))
        for cut in (False, True):
            proxy.isolate("n0", ["n0", "n1", "n2"], cut=cut)
            cluster.until(lambda: not nodes[0].net.connected())
            cluster.until(lambda: len(nodes[1].net.connected()) == len(nodes[2].net.connected()) == 1)
            proxy.heal()
            cluster.until(lambda: all_connected(nodes))

    def test_flapping(self, cluster, proxy, pair):
        a, b = pair
        for _ in range(10):
            proxy.reset_connections()
            cluster.until(lambda: a.fake.losses)
            a.fake.losses.clear()
            cluster.until(lambda: all_connected([a, b]))
        cluster.turns(20)
        assert all_connected([a, b])

    def test_a_slow_line_keeps_heartbeats_ahead_of_bulk(self, cluster, proxy, pair):
        """8 MiB at 4 MB/s: heartbeats sent meanwhile do not wait for the end of it."""
        a, b = pair
        proxy.link("n1", "n2").throttle(4_000_000)
        a.net.send(b.ref, append(8 << 20))
        a.net.flush()
        before_the_end = 0
        for number in range(1, 2_000):
            a.net.send(b.ref, beat(number))
            cluster.turn()
            if any(type(message) is Append for _, message in b.fake.messages):
                break
            before_the_end = sum(type(message) is Heartbeat for _, message in b.fake.messages)
        assert before_the_end > 5
        assert a.fake.losses == b.fake.losses == []
        assert len(b.fake.contacts) > 3

    def test_delay_and_jitter_keep_the_order(self, cluster, proxy, pair):
        a, b = pair
        proxy.link("n1", "n2").delay(0.02, 0.05)
        for number in range(50):
            a.net.send(b.ref, beat(number))
            cluster.turn(0.001)
        cluster.until(lambda: len(b.fake.messages) == 50)
        assert [message.round for _, message in b.fake.messages] == list(range(50))

    def test_a_snapshot_over_connections_that_keep_breaking(self, cluster, proxy, pair, tmp_path):
        a, b = pair
        meta = make_snapshot(tmp_path / "from", 5_000_000)
        (tmp_path / "to").mkdir()
        fetched, failed = [], []
        source = SnapshotSource(tmp_path / "from", {meta.name: meta}.get, a.net.send, bandwidth_bytes=64 << 20)
        fetcher = SnapshotFetcher(
            tmp_path / "to",
            b.net.send,
            digest_of,
            fetched.append,
            lambda m, e: failed.append(e),
            free_bytes_min=0,
        )
        chance = random.Random(3)
        fetcher.start(meta, a.ref)
        cuts = 0
        deadline = time.monotonic() + 60
        while fetcher.busy:
            assert time.monotonic() < deadline
            if fetcher.progress()[0] > cuts * 400_000:
                proxy.link("n1", "n2").close_after(chance.randrange(1, 500_000))
                cuts += 1
            cluster.turn()
            for node, takers in ((a, {ChunkRequest: source.on_request}), (b, {ChunkReply: fetcher.on_reply})):
                frames, node.fake.frames = node.fake.frames, []
                for ref, message in frames:
                    takers[type(message)](ref, message)
            for lost in b.fake.losses:
                fetcher.lost(lost[0])
            b.fake.losses.clear()
            source.tick()
            fetcher.tick()
        assert fetched == [meta]
        assert failed == []
        assert cuts > 5


class TestProxy:
    """The tool itself: a fault that does nothing would make every test above pass."""

    @pytest.fixture
    def line(self, proxy):
        server = socket.create_server(("127.0.0.1", 0))
        address = proxy.listen("b", server.getsockname(), source="a")
        client = socket.create_connection(address)
        client.settimeout(10)
        accepted, _ = server.accept()
        accepted.settimeout(10)
        yield client, accepted
        for sock in (client, accepted, server):
            sock.close()

    def read(self, sock: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            data += sock.recv(count - len(data)) or pytest.fail("closed")
        return data

    def test_bytes_pass_both_ways_and_are_counted(self, proxy, line):
        client, accepted = line
        client.sendall(b"x" * 100_000)
        assert self.read(accepted, 100_000) == b"x" * 100_000
        accepted.sendall(b"back")
        assert self.read(client, 4) == b"back"
        assert (proxy.link("a", "b").passed_bytes, proxy.link("b", "a").passed_bytes) == (100_000, 4)

    def test_hold_and_release(self, proxy, line):
        client, accepted = line
        proxy.link("a", "b").hold()
        client.sendall(b"later")
        accepted.sendall(b"other way")
        assert self.read(client, 9) == b"other way"
        accepted.settimeout(0.2)
        with pytest.raises(TimeoutError):
            accepted.recv(1)
        proxy.link("a", "b").release()
        accepted.settimeout(10)
        assert self.read(accepted, 5) == b"later"

    def test_end_of_input_passes(self, line):
        client, accepted = line
        client.shutdown(socket.SHUT_WR)
        assert accepted.recv(1) == b""
        accepted.sendall(b"answer")
        assert self.read(client, 6) == b"answer"

    def test_cut_resets_and_refuses(self, proxy, line):
        client, accepted = line
        proxy.link("a", "b").cut()
        for sock in (client, accepted):
            with pytest.raises(ConnectionResetError):
                sock.recv(1)

    def test_close_after_cuts_behind_the_byte(self, proxy, line):
        client, accepted = line
        proxy.link("a", "b").close_after(10)
        client.sendall(b"0123456789abcdef")
        got = b""
        was_reset = False
        while not was_reset:
            try:
                got += accepted.recv(100)
            except ConnectionResetError:
                was_reset = True
        assert b"0123456789".startswith(got)

    def test_flip_and_drop(self, proxy, line):
        client, accepted = line
        proxy.link("a", "b").flip_next(2)
        client.sendall(b"aaaa")
        assert self.read(accepted, 4) == b"aa`a"
        proxy.link("a", "b").drop_next(3)
        client.sendall(b"bbbbcc")
        assert self.read(accepted, 3) == b"bcc"

    def test_split(self, proxy, line):
        client, accepted = line
        proxy.link("a", "b").split(1)
        client.sendall(b"abc" * 100)
        assert self.read(accepted, 300) == b"abc" * 100

    def test_throttle_takes_its_time(self, proxy, line):
        client, accepted = line
        proxy.link("a", "b").throttle(50_000)
        start_s = time.monotonic()
        client.sendall(b"x" * 10_000)
        self.read(accepted, 10_000)
        client.sendall(b"y")
        self.read(accepted, 1)
        assert time.monotonic() - start_s >= 0.19

    def test_sources_are_told_by_their_address(self, proxy):
        server = socket.create_server(("127.0.0.1", 0))
        address = proxy.listen("b", server.getsockname(), classify={"127.0.0.5": "five"}.get)
        with socket.create_connection(address, source_address=("127.0.0.5", 0)) as sock:
            sock.sendall(b"hi")
            accepted, _ = server.accept()
            assert self.read(accepted, 2) == b"hi"
            assert proxy.link("five", "b").passed_bytes == 2
            accepted.close()
        with socket.create_connection(address, source_address=("127.0.0.6", 0)) as sock:
            sock.settimeout(10)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        server.close()

    def test_it_leaves_nothing_behind(self):
        import threading

        before = threading.active_count()
        with Proxy() as proxy:
            server = socket.create_server(("127.0.0.1", 0))
            address = proxy.listen("b", server.getsockname(), source="a")
            client = socket.create_connection(address)
        assert threading.active_count() == before
        client.close()
        server.close()
