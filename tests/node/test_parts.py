"""The small parts of a node: callbacks, housekeeping, secrets, ports, the splitting of forwarded arrays."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from raftdb.config import Config
from raftdb.errors import PeerError, StorageError, UsageError
from raftdb.net.resp import encode
from raftdb.node import starting
from raftdb.node.dispatch import elements
from raftdb.node.events import QUEUE_EVENTS_MAX, Events
from raftdb.node.forming import decode_answer, encode_answer
from raftdb.node.housekeeper import SYNC_BYTES, Housekeeper
from raftdb.node.peering import listed_addresses
from raftdb.types import Member, NodeRef, Pairs, ReplySet


def test_events_wait_for_a_callback_that_hangs_and_come_in_order() -> None:
    gate, seen = threading.Event(), []
    done = threading.Event()
    events = Events("node")
    events.subscribe("on_leader", lambda node: (gate.wait(10), seen.append("leader")))
    events.subscribe("on_follower", lambda node: (seen.append("follower"), done.set()))
    events.start()
    events.emit("on_leader")
    events.emit("on_follower")
    assert seen == []
    gate.set()
    assert done.wait(10)
    assert seen == ["leader", "follower"]
    events.stop(10)


def test_events_are_bounded() -> None:
    events = Events("node")
    for _ in range(QUEUE_EVENTS_MAX + 5):
        events.emit("on_leader")
    assert len(events._queue) == QUEUE_EVENTS_MAX
    with pytest.raises(KeyError):
        events.subscribe("on_nothing", print)


def test_a_failed_sync_ends_the_node(tmp_path: Path) -> None:
    failed, reason = threading.Event(), []

    def sync() -> None:
        raise StorageError("EIO")

    def fail(error: BaseException) -> None:
        reason.append(error)
        failed.set()

    keeper = Housekeeper([tmp_path], 0, sync, fail)
    keeper.start()
    keeper.wrote(SYNC_BYTES)  # wakes it before its second is over
    assert failed.wait(10)
    assert isinstance(reason[0], StorageError)
    keeper.stop()


def test_little_room_is_seen_at_the_start(tmp_path: Path) -> None:
    keeper = Housekeeper([tmp_path], 1 << 60, lambda: None, lambda error: None)
    keeper.start()
    assert keeper.low
    keeper.stop()


def test_the_first_node_makes_the_secret_and_the_others_read_it(tmp_path: Path) -> None:
    one = starting.cluster_secret(Config(data_dir=str(tmp_path / "n1")))
    two = starting.cluster_secret(Config(data_dir=str(tmp_path / "n2"), ensemble="127.0.0.1:7000"))
    assert one == two
    assert len(one) >= 32
    assert stat.S_IMODE((tmp_path / "cluster.secret").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["cluster.secret"]


def test_a_node_elsewhere_is_told_where_the_secret_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="copy it from another node"):
        starting.cluster_secret(Config(data_dir=str(tmp_path / "n2"), ensemble="203.0.113.7:7000"))
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(UsageError, match="16 to 4096"):
        starting.cluster_secret(Config(data_dir=str(tmp_path / "n2"), cluster_secret_file=str(tmp_path / "short")))


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        ("", ((), False)),
        ("2/127.0.0.1:5020,3/127.0.0.1:5030", (("127.0.0.1:5021", "127.0.0.1:5031"), False)),
        ("127.0.0.1:5010, 127.0.0.1:5020", (("127.0.0.1:5021",), False)),
        ("db.example:5010", (("db.example:5011",), True)),
        ("2/db.example:5010", (("db.example:5011",), False)),
        ("a.example:5010,b.example:5010", (("a.example:5011", "b.example:5011"), False)),
        ("localhost:5020", (("localhost:5021",), False)),
        ("[::1]:5020", (("[::1]:5021",), False)),
    ],
)
def test_what_the_list_of_others_means(ensemble: str, expected: Any) -> None:
    assert listed_addresses(Config(address="127.0.0.1:5010", ensemble=ensemble)) == expected


def test_a_forwarded_array_is_split_into_its_elements() -> None:
    items = [
        b"bulk\r\n",
        None,
        7,
        [b"a", [b"b", 1]],
        {b"k": [1, 2]},
        1.5,
        True,
        "OK",
        ReplySet([b"x"]),
        Pairs([(b"m", 1.0)]),
    ]
    for protocol in (2, 3):
        assert elements(encode(items, protocol)) == [encode(item, protocol) for item in items]
    assert elements(b"*0\r\n") == []


def test_answers_of_nodes_without_data_are_checked() -> None:
    from raftdb.consensus.forming import Blank, Formed

    member = Member("n1", 5, "127.0.0.1:1", "127.0.0.1:2", True)
    for answer in (Blank(member, (NodeRef("n1", 5),), True), Formed("c" * 32, (member,))):
        assert decode_answer(encode_answer(answer)) == answer
    for payload in (b"", b"\xc1", b"\x90", b"\x93\xa6formed\x01\x90", encode_answer(Formed("c", (member,)))[:-1]):
        with pytest.raises(PeerError):
            decode_answer(payload)
