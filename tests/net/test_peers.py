"""PeerNets in one process: who is let in, which connection stays, what is sent, dropped and told."""

from __future__ import annotations

import logging
import random
import socket
import time
from types import SimpleNamespace

import pytest

from raftdb.consensus.messages import Append, Heartbeat, HeartbeatReply
from raftdb.errors import PeerError
from raftdb.net.handshake import cluster_key
from raftdb.net.link import Stage
from raftdb.net.loop import Loop
from raftdb.net.peers import PeerConfig, Refusal
from raftdb.net.transport import Resolver, look_up, split_address
from raftdb.net.wire import FormProposal, Forward, ForwardReply, JoinRequest, Reason
from raftdb.types import Entry, NodeRef
from tests.net.peerkit import QUICK, Cluster, Node, all_connected, identity

BEAT = Heartbeat(3, 1, 10, 5, None)


def append(size: int) -> Append:
    return Append(3, 0, 0, 0, 0, (Entry(1, 3, 1, 1, 1, bytes(size), 1),))


@pytest.fixture
def cluster():
    made = Cluster()
    yield made
    made.close()


@pytest.fixture
def pair(cluster):
    a, b = cluster.add("n1"), cluster.add("n2")
    cluster.introduce(a, b)
    cluster.until(lambda: all_connected([a, b]))
    return a, b


def links_between(a: Node, b: Node) -> int:
    return sum(link.stage is Stage.UP for link in a.net._links if link.peer is not None and link.peer.ref == b.ref)


class TestConnecting:
    @pytest.mark.parametrize("count", [2, 3, 7])
    def test_everybody_finds_everybody_over_one_connection_each(self, cluster, count):
        nodes = [cluster.add(f"n{i}") for i in range(count)]
        cluster.introduce(*nodes)
        cluster.until(lambda: all_connected(nodes))
        cluster.turns(10)
        for a in nodes:
            for b in nodes:
                assert a is b or links_between(a, b) == 1
            assert len(a.net.connected()) == count - 1
            assert a.fake.losses == []

    def test_both_dial_at_once_and_agree_on_one(self, cluster):
        """No politeness: both dials are under way before either end has seen the other's."""
        for _ in range(20):
            a, b = cluster.add("n1"), cluster.add("n2")
            cluster.introduce(a, b)
            for node, other in ((a, b), (b, a)):
                node.net._members[other.ref].due_s = 0
                node.net.tick()
            cluster.until(lambda a=a, b=b: all_connected([a, b]))
            cluster.turns(5)
            assert all_connected([a, b])
            assert links_between(a, b) == links_between(b, a) == 1
            for node in (a, b):
                node.net.close()
                cluster.nodes.remove(node)

    def test_a_member_and_a_seed_that_are_one_node_get_one_connection(self, cluster):
        """Two dials of one side at once: the other side takes the newer, so this side must not have accepted both."""
        chance = random.Random(1)
        for _ in range(20):
            a, b = cluster.add("n1", host="0.0.0.0"), cluster.add("n2", host="0.0.0.0")
            for node, other in ((a, b),) if chance.random() < 0.7 else ((b, a),):
                node.net.set_members([(other.ref, other.address.replace("0.0.0.0", "127.0.0.1"))])
                node.net.set_seeds([other.address.replace("0.0.0.0", "127.0.0.2")])
            cluster.until(lambda a=a, b=b: all_connected([a, b]))
            cluster.turns(5)
            assert a.fake.losses == b.fake.losses == []
            for node in (a, b):
                node.net.close()
                cluster.nodes.remove(node)

    @pytest.mark.parametrize(
        ("own", "old_dialled", "new_dialled", "old_age_s", "old_stays"),
        [
            # n1 < n2: what n1 has dialled is preferred
            ("n1", True, False, 0, True),
            ("n1", True, False, 60, False),
            ("n1", False, True, 0, False),
            ("n1", False, True, 60, False),
            ("n1", True, True, 0, True),
            ("n1", True, True, 60, True),
            ("n1", False, False, 0, False),
            # the same connections, as n2 sees them
            ("n2", False, True, 0, True),
            ("n2", False, True, 60, False),
            ("n2", True, False, 0, False),
            ("n2", True, False, 60, False),
            ("n2", False, False, 0, False),
            ("n2", True, True, 0, True),
        ],
    )
    def test_the_table_of_which_connection_stays(self, cluster, own, old_dialled, new_dialled, old_age_s, old_stays):
        net = cluster.add(own).net
        peer = identity("n2" if own == "n1" else "n1")
        old = SimpleNamespace(dialled=old_dialled, peer=peer, up_s=time.monotonic() - old_age_s)
        new = SimpleNamespace(dialled=new_dialled, peer=peer, up_s=time.monotonic())
        assert net._stays(old, new) is old_stays
        new.peer = peer._replace(life=peer.life + 1)
        assert net._stays(old, new) is False

    def test_one_side_alone_may_know_the_other(self, cluster):
        a, b = cluster.add("n1"), cluster.add("n2")
        b.net.set_members([(a.ref, a.address)])
        cluster.until(lambda: all_connected([a, b]))

    def test_messages_arrive_as_they_were_sent_in_both_directions(self, cluster, pair):
        a, b = pair
        assert a.net.send(b.ref, BEAT)
        assert b.net.send(a.ref, HeartbeatReply(3, 1, 10, 6))
        assert a.net.send(b.ref, Forward(1, 3, b"c", b"payload"))
        cluster.until(lambda: b.fake.messages and a.fake.messages and b.fake.frames)
        assert b.fake.messages == [(a.ref, BEAT)]
        assert a.fake.messages == [(b.ref, HeartbeatReply(3, 1, 10, 6))]
        assert b.fake.frames == [(a.ref, Forward(1, 3, b"c", b"payload"))]

    def test_to_nobody_is_not_sent(self, cluster, pair):
        assert pair[0].net.send(NodeRef("n9", 1), BEAT) is False
        assert pair[0].net.send(NodeRef("n2", 12345), BEAT) is False  # another incarnation of n2

    def test_a_peer_that_starts_later_is_found(self, cluster):
        a = cluster.add("n1")
        free = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        b = cluster.add("n2")
        a.net.set_members([(b.ref, address)])
        cluster.turns(20)
        assert not a.net.connected()
        a.net.set_members([(b.ref, b.address)])
        cluster.until(lambda: all_connected([a, b]))

    def test_a_lost_peer_is_told_once_and_found_again(self, cluster, pair):
        a, b = pair
        b.net.close()
        cluster.nodes.remove(b)
        cluster.until(lambda: a.fake.losses)
        again = cluster.add("n2", starts=2, life=77)
        a.net.set_members([(again.ref, again.address)])
        cluster.until(lambda: all_connected([a, again]))
        assert [ref for ref, _ in a.fake.losses] == [b.ref], a.fake.losses
        assert len(a.fake.connects) == 2

    def test_a_restarted_peer_replaces_its_former_life(self, cluster):
        """The old socket is still open here (half-open); the new life must not wait for a time-out."""
        config = QUICK._replace(handshake_timeout_s=3600.0, silence_timeout_s=3600.0)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        cluster.nodes.remove(b)  # b hangs: no turn, no close
        again = cluster.add("n2", starts=2, life=78)
        again.net.set_members([(a.ref, a.address)])
        cluster.until(lambda: len(a.fake.connects) == 2)
        assert a.net.connected()[0].life == 78
        assert [ref for ref, _ in a.fake.losses] == [b.ref], a.fake.losses
        b.net.close()

    def test_a_hung_peer_is_given_up(self, cluster):
        config = QUICK._replace(silence_timeout_s=0.3)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        cluster.nodes.remove(b)
        cluster.until(lambda: a.fake.losses)
        assert "nothing heard" in a.fake.losses[0][1]
        b.net.close()

    def test_an_idle_connection_is_not_given_up(self, cluster):
        config = QUICK._replace(silence_timeout_s=0.3)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        cluster.turns(100)
        assert a.fake.losses == b.fake.losses == []

    def test_own_stall_is_not_the_peers_silence(self, cluster):
        config = QUICK._replace(silence_timeout_s=0.3)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        for link in a.net._links:
            link.heard_s -= 60
        a.net._ticked_s -= 60
        a.net.tick()
        assert a.fake.losses == []

    def test_an_address_may_change_at_run_time(self, cluster, pair):
        a, b = pair
        moved = b.identity._replace(peer_addr="127.0.0.1:9999")
        b.net.set_identity(moved)
        cluster.until(lambda: a.fake.identities)
        assert a.fake.identities == [moved]
        assert a.net.connected() == [moved]

    def test_term_and_last_index_are_not_worth_a_message(self, cluster, pair):
        a, b = pair
        b.net.set_identity(b.identity._replace(term=9, last_index=100))
        a.net.send(b.ref, BEAT)
        cluster.until(lambda: b.fake.messages)
        cluster.turns(5)
        assert a.fake.identities == []

    def test_a_member_that_is_taken_out_stays_until_it_is_dropped(self, cluster, pair):
        a, b = pair
        a.net.set_members([])
        b.net.set_members([])
        cluster.turns(5)
        assert all_connected(pair)
        a.net.drop(b.ref, Refusal(Reason.REMOVED, "n2 was removed"))
        cluster.until(lambda: b.fake.refusals)
        assert b.fake.refusals[0][1:] == ("n1", Refusal(Reason.REMOVED, "n2 was removed"))
        assert not a.net.connected()
        assert [ref for ref, _ in b.fake.losses] == [a.ref]

    def test_wall_clocks_are_known(self, cluster, pair):
        a, b = pair
        cluster.until(lambda: any(link.round_trip_s for link in a.net._links))
        assert set(a.net.walls()) == {b.ref}
        assert abs(a.net.walls()[b.ref] - a.net.wall_ms()) < 60_000
        assert {row["id"] for row in a.net.status()} == {"n2"}

    def test_ipv6(self, cluster):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError:
            pytest.skip("no IPv6 loopback")
        a, b = cluster.add("n1"), cluster.add("n2", host="::1")
        assert b.address.startswith("[::1]:")
        a.net.set_members([(b.ref, b.address)])
        cluster.until(lambda: all_connected([a, b]))

    def test_the_source_address_may_be_given(self, cluster):
        a, b = cluster.add("n1", dial_from="127.0.0.9"), cluster.add("n2")
        a.net.set_members([(b.ref, b.address)])
        cluster.until(lambda: all_connected([a, b]))
        assert [link.where for link in b.net._links] == ["127.0.0.9"]


class TestRefusing:
    def never(self, cluster: Cluster, a: Node, b: Node) -> None:
        cluster.turns(20)
        assert not a.net.connected()
        assert not b.net.connected()
        assert a.fake.connects == b.fake.connects == []
        assert a.fake.messages == b.fake.messages == []

    def test_another_secret(self, cluster, caplog):
        a, b = cluster.add("n1"), cluster.add("n2", key=cluster_key(b"another secret, long enough"))
        cluster.introduce(a, b)
        with caplog.at_level(logging.WARNING, "raftdb.peers"):
            self.never(cluster, a, b)
        assert "another cluster secret" in caplog.text
        assert a.fake.refusals == b.fake.refusals == []  # nobody has proven anything: nothing is told

    def test_another_cluster_both_are_told(self, cluster):
        a, b = cluster.add("n1", cluster_id="c1"), cluster.add("n2", cluster_id="c2")
        cluster.introduce(a, b)
        cluster.until(lambda: a.fake.refusals and b.fake.refusals)
        self.never(cluster, a, b)
        assert a.fake.refusals[0][2].reason is Reason.OTHER_CLUSTER
        assert len(a.fake.refusals) == len(b.fake.refusals) == 1  # and not once per attempt

    def test_the_own_id_twice(self, cluster):
        a, b = cluster.add("n1"), cluster.add("n1", incarnation=99, life=99)
        a.net.set_seeds([b.address])
        cluster.until(lambda: a.fake.refusals and b.fake.refusals)
        self.never(cluster, a, b)
        assert a.fake.refusals[0][2].reason is b.fake.refusals[0][2].reason is Reason.SAME_ID

    def test_itself(self, cluster):
        a = cluster.add("n1")
        a.net.set_seeds([a.address])
        cluster.until(lambda: any(seed.myself for seed in a.net.seeds()))
        cluster.turns(10)
        assert a.net.connected() == []
        assert a.fake.connects == []

    def test_another_node_than_the_one_dialled(self, cluster):
        a, b = cluster.add("n1"), cluster.add("n2")
        a.net.set_members([(NodeRef("n3", 5), b.address)])
        cluster.until(lambda: b.fake.refusals)
        assert b.fake.refusals[0][2].reason is Reason.UNEXPECTED
        assert "'n3' was expected" in b.fake.refusals[0][2].text

    def test_fewer_starts_than_seen(self, cluster):
        a, b = cluster.add("n1"), cluster.add("n2", starts=5)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        b.net.close()
        cluster.nodes.remove(b)
        restored = cluster.add("n2", starts=4, life=123)
        restored.net.set_members([(a.ref, a.address)])
        cluster.until(lambda: restored.fake.refusals)
        assert restored.fake.refusals[0][2].reason is Reason.OLD_STARTS
        assert "restored from a backup" in restored.fake.refusals[0][2].text

    def test_a_copy_of_a_data_directory(self, cluster, pair):
        a, _ = pair
        copy = cluster.add("n2", life=321)
        copy.net.set_members([(a.ref, a.address)])
        cluster.until(lambda: copy.fake.refusals)
        assert copy.fake.refusals[0][2].reason is Reason.OLD_STARTS
        assert a.fake.losses == []

    @pytest.mark.parametrize("reason", [Reason.REMOVED, Reason.OLD_INCARNATION, Reason.NOT_A_MEMBER, Reason.RESTORED])
    def test_what_the_node_says(self, cluster, reason):
        a, b = cluster.add("n1"), cluster.add("n2")
        a.fake.verdict = lambda identity: Refusal(reason, f"{identity.id} may not")
        b.net.set_members([(a.ref, a.address)])
        cluster.until(lambda: b.fake.refusals)
        self.never(cluster, a, b)
        assert b.fake.refusals == [(a.address, "n1", Refusal(reason, "n2 may not"))]

    def test_a_connected_peer_that_becomes_of_another_cluster(self, cluster):
        a, b = cluster.add("n1", cluster_id=""), cluster.add("n2", cluster_id="")
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        a.net.set_identity(a.identity._replace(cluster_id="c1"))
        b.net.set_identity(b.identity._replace(cluster_id="c2"))
        cluster.until(lambda: not a.net.connected() and not b.net.connected())
        assert a.fake.losses
        assert b.fake.losses

    def test_trouble_is_logged_once_and_not_once_per_attempt(self, cluster, caplog):
        a = cluster.add("n1")
        free = socket.create_server(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        with caplog.at_level(logging.WARNING, "raftdb.peers"):
            a.net.set_members([(NodeRef("n2", 1), address)])
            cluster.until(lambda: a.net._members[NodeRef("n2", 1)].lines)
            (line,) = a.net._members[NodeRef("n2", 1)].lines.values()
            cluster.until(lambda: line.failures > 5)
        assert [record.getMessage() for record in caplog.records] == [
            f"no connection to n2 at {address}: connection refused; going on trying"
        ]

    def test_strangers_are_logged_once(self, cluster, caplog):
        a = cluster.add("n1")
        host, port = a.address.split(":")
        with caplog.at_level(logging.WARNING, "raftdb.peers"):
            for i in range(10):
                with socket.create_connection((host, int(port))) as sock:
                    sock.sendall(f"PING number {i}\r\n".encode())
                    cluster.turns(3)
        assert len(caplog.records) == 1


def test_an_identity_that_cannot_be_told_is_refused_at_once(cluster):
    for changes in ({"node_id": "x" * 256}, {"node_id": "n1", "listed": ("x" * 1_000,) * 100}):
        node_id = changes.pop("node_id")
        with pytest.raises(PeerError):
            cluster.add(node_id, **changes)


class TestUnformed:
    """Without a common cluster: forming and joining, nothing else."""

    @pytest.fixture
    def strangers(self, cluster):
        a, b = cluster.add("n1", cluster_id="c1"), cluster.add("n2", cluster_id="")
        b.net.set_seeds([a.address])
        cluster.until(lambda: all_connected([a, b]))
        return a, b

    def test_joining_and_forming_messages_pass(self, cluster, strangers):
        a, b = strangers
        join = JoinRequest("n2", 5, "a:1", "a:2", False)
        assert b.net.send(a.ref, join)
        assert a.net.send(b.ref, FormProposal("c9", ()))
        cluster.until(lambda: a.fake.frames and b.fake.frames)
        assert a.fake.frames == [(b.ref, join)]

    def test_consensus_and_requests_are_not_sent(self, cluster, strangers):
        a, b = strangers
        assert a.net.send(b.ref, BEAT) is False
        assert b.net.send(a.ref, Forward(1, 1, b"", b"")) is False

    def test_consensus_and_requests_are_not_taken(self, cluster, strangers):
        a, b = strangers
        (link,) = b.net._links
        link.queue(BEAT)
        link.queue(Forward(1, 1, b"", b""))
        cluster.until(lambda: a.net.strays == 2)
        assert a.fake.messages == a.fake.frames == []

    def test_after_forming_it_goes_on_over_the_same_connection(self, cluster, strangers):
        a, b = strangers
        b.net.set_identity(b.identity._replace(cluster_id="c1"))
        assert b.net.send(a.ref, BEAT)
        cluster.until(lambda: a.fake.messages)
        cluster.until(lambda: a.net.send(b.ref, BEAT))
        cluster.until(lambda: b.fake.messages)
        assert a.fake.losses == b.fake.losses == []

    def test_seeds_tell_who_answered(self, cluster, strangers):
        a, b = strangers
        (row,) = b.net.seeds()
        assert (row.node, row.connected, row.myself, row.trouble) == (a.ref, True, False, "")


class TestLanes:
    def test_a_heartbeat_overtakes_a_long_append(self, cluster, pair):
        a, b = pair
        assert a.net.send(b.ref, append(8 << 20))
        a.net.flush()
        assert a.net.send(b.ref, BEAT)
        cluster.until(lambda: len(b.fake.messages) == 2)
        assert [type(message) for _, message in b.fake.messages] == [Heartbeat, Append]

    def test_appends_keep_their_order(self, cluster, pair):
        a, b = pair
        sizes = [3 << 20, 10, 200_000, 0, 70_000]
        for size in sizes:
            assert a.net.send(b.ref, append(size))
        cluster.until(lambda: len(b.fake.messages) == len(sizes))
        assert [len(message.entries[0].payload) for _, message in b.fake.messages] == sizes

    def test_an_entry_of_64_mib_arrives_and_its_pieces_are_contact(self, cluster, pair):
        a, b = pair
        assert a.net.send(b.ref, append(64 << 20))
        cluster.until(lambda: b.fake.messages, patience_s=60)
        assert len(b.fake.messages[0][1].entries[0].payload) == 64 << 20
        assert len(b.fake.contacts) > 10
        assert set(b.fake.contacts) == {a.ref}
        assert b.fake.losses == []

    def test_what_leaves_in_a_turn_is_one_send(self, cluster, pair):
        a, b = pair
        (link,) = a.net._links
        calls = []
        send = link.transport.send

        class Counting:
            def __getattr__(self, name):
                return getattr(transport, name)

            def send(self, data):
                calls.append(len(data))
                return send(data)

        transport, link.transport = link.transport, Counting()
        for _ in range(50):
            a.net.send(b.ref, BEAT)
            a.net.send(b.ref, append(100))
        a.net.flush()
        assert len(calls) == 1
        a.net.flush()
        assert len(calls) == 1  # nothing to send costs no call
        cluster.until(lambda: len(b.fake.messages) == 100)

    def test_a_full_outbox_drops_consensus_and_counts(self, cluster):
        config = QUICK._replace(outbox_bytes_max=1 << 20)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        sent = [a.net.send(b.ref, append(100_000)) for _ in range(30)]
        assert sent.count(False) > 15
        assert sent.index(False) == 11  # the one that fills it goes in
        assert a.net.status()[0]["messages_dropped"] == sent.count(False)
        assert a.net.send(b.ref, BEAT)  # the other lane is free
        cluster.until(lambda: len(b.fake.messages) == 1 + sent.count(True))
        assert all_connected([a, b])

    def test_a_reply_that_does_not_fit_closes_the_connection(self, cluster):
        config = QUICK._replace(outbox_bytes_max=1 << 20)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        for _ in range(12):
            a.net.send(b.ref, append(100_000))
        assert a.net.send(b.ref, ForwardReply(1, True, 5, b"x")) is False
        assert a.fake.losses
        cluster.until(lambda: b.fake.losses)

    def test_memory_is_bounded_while_the_other_side_does_not_read(self, cluster):
        config = QUICK._replace(outbox_bytes_max=1 << 20, silence_timeout_s=60)
        a, b = cluster.add("n1", config=config), cluster.add("n2", config=config)
        cluster.introduce(a, b)
        cluster.until(lambda: all_connected([a, b]))
        cluster.nodes.remove(b)
        for link in b.net._links:
            b.net.poller.unregister(link.transport.fileno())
        most = 0
        for _ in range(300):
            a.net.send(b.ref, append(200_000))
            a.net.send(b.ref, BEAT)
            cluster.turn(0)
            most = max(most, a.net.buffered_bytes)
        assert most < 3 << 20
        assert a.net.status()[0]["messages_dropped"] > 100
        for link in b.net._links:
            b.net.poller.register(link.transport.fileno(), 1, link._on_events)
        b.net.close()

    def test_a_message_over_its_limit_is_the_senders_mistake(self, pair):
        a, b = pair
        with pytest.raises(PeerError, match="over the limit"):
            a.net.send(b.ref, JoinRequest("n2", 1, "x" * 10_000, "", False))
        assert all_connected(pair)


class TestNames:
    def test_names_are_looked_up_and_found_late(self, cluster, monkeypatch):
        """The name does not exist first; then it stands for one node, then for two."""
        a, b = cluster.add("n1"), cluster.add("n2")
        port = int(b.address.rpartition(":")[2])
        c = cluster.add("n3", host="127.0.0.2", port=port)
        answers: list[list[str]] = [[]]

        def getaddrinfo(host, port, **kwargs):
            if not answers[0]:
                raise socket.gaierror(-2, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers[0]]

        monkeypatch.setattr("raftdb.net.transport.socket.getaddrinfo", getaddrinfo)
        monkeypatch.setattr("raftdb.net.peers.LOOK_UP_AGAIN_S", 0.05)
        a.net.set_seeds([f"db.example:{port}"])
        cluster.until(lambda: a.net.seeds()[0].trouble)
        assert "name look-up failed" in a.net.seeds()[0].trouble
        answers[0] = ["127.0.0.1"]
        cluster.until(lambda: a.net.is_connected(b.ref))
        answers[0] = ["127.0.0.1", "127.0.0.2"]
        cluster.until(lambda: a.net.is_connected(c.ref))
        assert {row.node for row in a.net.seeds()} == {b.ref, c.ref}

    def test_a_name_server_that_hangs_holds_up_nobody(self, cluster, monkeypatch):
        import threading

        release = threading.Event()
        monkeypatch.setattr("raftdb.net.transport.socket.getaddrinfo", lambda *a, **k: release.wait(30) and [])
        a, b = cluster.add("n1"), cluster.add("n2")
        a.net.set_seeds([f"host{i}.example:7000" for i in range(10)] + [b.address])
        cluster.until(lambda: all_connected([a, b]))
        release.set()

    def test_a_question_is_asked_once_at_a_time(self):
        resolver = Resolver()
        resolver.ask("127.0.0.1:7000")
        resolver.ask("[::1]:7001")
        answers = {answer.address: answer.endpoints for answer in resolver.answers()}
        assert [str(e) for e in answers["127.0.0.1:7000"]] == ["127.0.0.1:7000"]
        assert [str(e) for e in answers["[::1]:7001"]] == ["[::1]:7001"]
        assert resolver.answers() == []
        resolver.close()

    @pytest.mark.parametrize(
        "address", ["", "host", "host:", ":1", "host:0", "host:65536", "host:1_0", "host:+1", "host: 1", "h:٣"]
    )
    def test_what_is_no_address(self, address):
        with pytest.raises(PeerError, match="not an address"):
            split_address(address)

    def test_a_name_that_cannot_be(self):
        answer = look_up("x" * 300 + ":1")
        assert answer.endpoints == ()
        assert "failed" in answer.error


def test_limits_have_units_in_their_names():
    assert all(name.rpartition("_")[2] in {"s", "max"} for name in PeerConfig._fields)


class TestOnTheLoopOfTheDriver:
    """The same on net.loop.Loop, whose descriptors beside clients may be served alone."""

    class Handler:
        def end_of_turn(self, loop):
            pass

        on_open = on_eof = on_close = on_commands = end_of_turn

    @pytest.mark.parametrize("alone", [False, True])
    def test_connecting_and_talking(self, alone):
        loop = Loop(self.Handler())
        cluster = Cluster(loop)
        a, b = cluster.add("n1"), cluster.add("n2")
        cluster.introduce(a, b)
        if alone:
            loop.poll = lambda timeout_s: loop.poll_registered()
        cluster.until(lambda: all_connected([a, b]))
        a.net.send(b.ref, append(3 << 20))
        b.net.send(a.ref, append(3 << 20))
        cluster.until(lambda: a.fake.messages and b.fake.messages)
        b.net.close()
        cluster.nodes.remove(b)
        cluster.until(lambda: a.fake.losses)
        cluster.turns(20)  # refused again and again
        cluster.close()
