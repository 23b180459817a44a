"""What a leader knows of a member."""

from __future__ import annotations

import pytest

from raftdb.consensus.progress import PROBE, REPLICATE, Progress
from raftdb.errors import Bug
from tests.consensus.cluster import ref


def replicating(match: int) -> Progress:
    peer = Progress(ref("n2"), True, match + 1, 0)
    peer.acknowledge(match)
    peer.to_replicate()
    return peer


def test_a_window() -> None:
    peer = replicating(4)
    peer.sent(6, 100, 1, 0)
    peer.sent(9, 50, 1, 0)
    assert (peer.next, peer.inflight_bytes, len(peer.inflight)) == (10, 150, 2)
    peer.acknowledge(7)
    assert (peer.match, peer.next, peer.inflight_bytes, len(peer.inflight)) == (7, 10, 50, 1)
    peer.acknowledge(9)
    assert (peer.inflight_bytes, len(peer.inflight)) == (0, 0)


def test_match_never_falls() -> None:
    """I9: a late acknowledgement changes nothing."""
    peer = replicating(4)
    peer.acknowledge(2)
    assert (peer.match, peer.next) == (4, 5)


def test_next_stays_above_match() -> None:
    peer = Progress(ref("n2"), True, 1, 0)
    peer.acknowledge(9)
    assert peer.next == 10


def test_what_is_lost_is_sent_again_from_match() -> None:
    peer = replicating(4)
    peer.sent(9, 10, 1, 0)
    peer.to_probe()
    assert (peer.mode, peer.next, peer.inflight_bytes) == (PROBE, 5, 0)
    peer.to_probe(2)
    assert peer.next == 5, "never at or below what is acknowledged"
    peer.to_probe(8)
    assert peer.next == 8


def test_from_probe_to_replicate_nothing_is_skipped() -> None:
    peer = Progress(ref("n2"), True, 50, 0)
    peer.acknowledge(10)
    peer.to_replicate()
    assert (peer.mode, peer.next) == (REPLICATE, 11)


def test_sending_backwards_is_a_bug() -> None:
    peer = replicating(4)
    with pytest.raises(Bug, match="backwards"):
        peer.sent(3, 1, 1, 0)
