"""A leader that hands over takes no proposals: keys that fall due meanwhile wait, and nothing breaks."""

from __future__ import annotations

import time

from raftdb.types import NodeRef
from tests.node.conftest import StartNode


def test_a_key_that_falls_due_while_leadership_is_handed_over_does_not_stop_the_node(start_node: StartNode) -> None:
    node = start_node()
    node.execute("SET", "k", "v", "PX", 100)

    def hand_over() -> None:
        """As between TimeoutNow and the first word of the next leader, who never comes."""
        node.core.transferring = NodeRef("n2", 1)
        node.core.transfer_tick = node.core.ticks

    node.in_driver(hand_over)
    time.sleep(0.3)  # the key falls due meanwhile; ticks look for such keys
    node.in_driver(hand_over)
    assert node.execute("GET", "k") is None  # answered when the hand-over has failed and the time may move again
    assert node.failure is None
