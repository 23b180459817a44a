"""The handshake: both know the secret, and nobody else can pretend to, whatever he repeats, mirrors or mixes."""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.errors import PeerError
from raftdb.net import handshake as hs
from raftdb.net.handshake import HELLO_BYTES_MAX, NONCE_BYTES, PROOF_BYTES, Handshake, Side, State, cluster_key
from raftdb.net.wire import WIRE_VERSION
from tests.net.peerkit import KEY

OTHER_KEY = cluster_key(b"another secret of enough bytes")


def dialer(key: bytes = KEY, node_id: str = "n1") -> Handshake:
    return Handshake(Side.DIALER, key, node_id, os.urandom(NONCE_BYTES))


def acceptor(key: bytes = KEY, node_id: str = "n2") -> Handshake:
    return Handshake(Side.ACCEPTOR, key, node_id, os.urandom(NONCE_BYTES))


def run(one: Handshake, other: Handshake) -> None:
    to_other, to_one = one.start(), other.start()
    while to_other or to_one:
        to_one, to_other = (other.receive(to_other) if to_other else b""), (one.receive(to_one) if to_one else b"")


def test_both_come_to_the_same_keys_one_per_direction():
    one, other = dialer(), acceptor()
    run(one, other)
    assert one.state is other.state is State.DONE
    assert one.keys is not None
    assert other.keys is not None
    assert one.keys.send == other.keys.receive != one.keys.receive == other.keys.send
    assert (one.peer.node_id, other.peer.node_id) == ("n2", "n1")
    assert one.version == other.version == WIRE_VERSION


def test_keys_are_new_for_each_connection():
    seen = set()
    for _ in range(3):
        one, other = dialer(), acceptor()
        run(one, other)
        seen |= set(one.keys)
    assert len(seen) == 6


@given(st.lists(st.integers(0, 400), max_size=10))
def test_any_chunking_gives_the_same(cuts):
    one, other = dialer(), acceptor()

    def feed(side: Handshake, data: bytes) -> bytes:
        places = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        return b"".join(side.receive(data[a:b]) for a, b in itertools.pairwise(places))

    hello = feed(other, one.start())
    proof = feed(one, hello)
    answer = feed(other, proof)
    feed(one, answer)
    assert one.keys.send == other.keys.receive


def test_bytes_behind_the_handshake_are_kept():
    one, other = dialer(), acceptor()
    proof = one.receive(other.receive(one.start()))
    answer = other.receive(proof + b"first frame of the dialer")
    assert other.rest == b"first frame of the dialer"
    one.receive(answer + b"first frame of the acceptor")
    assert one.rest == b"first frame of the acceptor"


def test_a_wrong_secret_is_found_by_the_acceptor_before_it_proves_anything():
    one, other = dialer(OTHER_KEY), acceptor()
    proof = one.receive(other.receive(one.start()))
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        other.receive(proof)


def test_a_stranger_who_connects_gets_nothing_but_a_hello():
    """What could be searched off-line for a weak secret is only sent to who has proven it."""
    other = acceptor()
    out = other.receive(dialer(OTHER_KEY).start())
    assert len(out) <= HELLO_BYTES_MAX
    assert out == other._own


def test_an_acceptor_without_the_secret_is_found_by_the_dialer():
    one = dialer()
    liar = acceptor(OTHER_KEY)
    one.receive(liar.receive(one.start()))
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        one.receive(os.urandom(PROOF_BYTES))
    assert one.keys is None


def test_own_hello_sent_back_is_refused():
    one = dialer()
    with pytest.raises(PeerError, match="our own hello"):
        one.receive(one.start())


def test_own_proof_sent_back_is_refused():
    one, other = dialer(), acceptor()
    proof = one.receive(other.receive(one.start()))
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        one.receive(proof)


def test_reflection_over_a_second_connection_towards_the_dialer_fails():
    """Mallory is dialled by A; he dials A in turn to let A itself make the proofs that he owes."""
    dialling, accepting = dialer(node_id="a"), acceptor(node_id="a")
    hello_of_victim = dialling.start()
    # He repeats A's own hello on the second connection, to get a proof over the same nonce...
    hello_back = accepting.receive(hello_of_victim)
    proof_of_victim = dialling.receive(hello_back)
    # ... and passes A's proof as dialer to A as acceptor: this is a plain relay, A speaks with itself.
    answer = accepting.receive(proof_of_victim)
    dialling.receive(answer)
    assert dialling.keys.send == accepting.keys.receive
    # Mallory has seen everything and still cannot make a frame: both keys are functions of the secret.
    assert dialling.peer.node_id == "a"  # and PeerNet sees by `life` that it talks to itself


def test_reflection_with_an_own_nonce_fails():
    """Mallory answers A's dial with a nonce of his, and asks A-as-acceptor for a proof: it is of other hellos."""
    dialling, accepting = dialer(node_id="a"), acceptor(node_id="a")
    mallory = Handshake(Side.ACCEPTOR, OTHER_KEY, "m", os.urandom(NONCE_BYTES))
    proof = dialling.receive(mallory.receive(dialling.start()))
    accepting.receive(Handshake(Side.DIALER, OTHER_KEY, "m", mallory._own[12 : 12 + NONCE_BYTES]).start())
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        accepting.receive(proof)
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        dialling.receive(proof)


def test_a_recorded_handshake_cannot_be_played_again():
    one, other = dialer(), acceptor()
    hello = one.start()
    answer = other.receive(hello)
    proof = one.receive(answer)
    final = other.receive(proof)
    again = acceptor()
    assert again.receive(hello) != answer  # another nonce
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        again.receive(proof)
    victim = dialer()
    victim.receive(answer)
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        victim.receive(final)


def test_the_id_is_part_of_what_is_proven():
    one, other = dialer(node_id="n1"), acceptor()
    forged = one.start().replace(b"n1", b"n9")
    proof = one.receive(other.receive(forged))
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        other.receive(proof)


def test_a_version_cannot_be_talked_down(monkeypatch):
    one, other = dialer(), acceptor()
    monkeypatch.setattr(hs, "WIRE_VERSION", WIRE_VERSION + 1)
    newer = dialer()
    hello = newer.start()
    lowered = hello[:8] + WIRE_VERSION.to_bytes(2, "big") + hello[10:]
    proof = newer.receive(other.receive(lowered))
    with pytest.raises(PeerError, match="does not know the cluster secret"):
        other.receive(proof)
    assert one.version == 0


def test_the_lower_common_version_is_taken(monkeypatch):
    other = acceptor()
    monkeypatch.setattr(hs, "WIRE_VERSION", WIRE_VERSION + 5)
    newer = dialer()
    monkeypatch.undo()
    run(newer, other)
    assert newer.version == other.version == WIRE_VERSION


def test_versions_without_a_common_one_are_told(monkeypatch):
    monkeypatch.setattr(hs, "WIRE_VERSION", 9)
    monkeypatch.setattr(hs, "WIRE_VERSION_MIN", 9)
    newer = dialer()
    monkeypatch.undo()
    with pytest.raises(PeerError, match=r"speaks peer protocol 9 to 9, this node 1 to 1"):
        acceptor().receive(newer.start())


@pytest.mark.parametrize(
    "data", [b"*1\r\n$4\r\nPING\r\n", b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", b"x", b"raftdb-q", bytes(300)]
)
def test_other_protocols_are_refused_by_their_first_bytes(data):
    with pytest.raises(PeerError, match="does not speak the peer protocol"):
        acceptor().receive(data)


def test_ids_that_are_no_utf_8_are_refused():
    hello = dialer(node_id="ab").start()
    with pytest.raises(PeerError, match="not UTF-8"):
        acceptor().receive(hello[:-2] + b"\xff\xfe")


def test_little_is_kept_before_the_proof():
    other = acceptor()
    other.receive(dialer().start())
    other.receive(b"x" * (PROOF_BYTES - 1))
    assert len(other._buffer) < PROOF_BYTES


@pytest.mark.parametrize("secret", [b"", b"short", b"   fifteen bytes \n\n"])
def test_short_secrets_are_refused(secret):
    with pytest.raises(PeerError, match="shorter than 16 bytes"):
        cluster_key(secret)


def test_white_space_around_the_secret_does_not_count():
    assert cluster_key(b"0123456789abcdef\n") == cluster_key(b"0123456789abcdef")


@pytest.mark.parametrize("node_id", ["", "x" * 256])
def test_ids_have_a_length(node_id):
    with pytest.raises(PeerError, match="1 to 255 bytes"):
        dialer(node_id=node_id)


@given(st.binary(max_size=600), st.sampled_from(list(Side)))
def test_noise_is_refused_or_waited_for(data, side):
    shake = Handshake(side, KEY, "n1", bytes(NONCE_BYTES))
    try:
        shake.receive(data)
    except PeerError:
        return
    assert shake.state is not State.DONE
