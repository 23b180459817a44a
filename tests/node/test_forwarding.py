"""Answers that travel back from the leader to the node that forwarded the commands."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from raftdb.commands.machine import Request
from raftdb.commands.table import builtin_table
from raftdb.net.wire import ForwardReply
from raftdb.node import forwarding
from raftdb.node.forwarding import ForwardedTicket
from raftdb.types import OK, NodeRef

TABLE = builtin_table()


class Line:
    """A connection to a peer, as far as replies go."""

    def __init__(self) -> None:
        self.sent: list[ForwardReply] = []

    def send_to(self, _ref: NodeRef, message: ForwardReply) -> bool:
        self.sent.append(message)
        return True


def request(*words: str) -> Request:
    argv = [word.encode() for word in words]
    return Request(0, argv, TABLE.find(argv))


def answered(replies: list[Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """(executed, payload) of the answer to GET a, SET a 1 of one client and GETDEL b of another."""
    monkeypatch.setattr(forwarding, "REPLY_BYTES_MAX", 1_000)
    line = Line()
    parts = [(2, [request("GET", "a"), request("SET", "a", "1")]), (3, [request("GETDEL", "b")])]
    ForwardedTicket(line, NodeRef("n2", 1), 7, parts).answer(replies, 9)  # type: ignore[arg-type]
    (message,) = line.sent
    return message.executed, msgpack.unpackb(message.payload)


def test_replies_travel_per_client(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered([b"old", OK, b"gone"], monkeypatch) == (True, ["ok", [b"$3\r\nold\r\n+OK\r\n", b"$4\r\ngone\r\n"]])


def test_what_was_taken_out_arrives_though_what_was_read_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    executed, (kind, answers) = answered([b"x" * 900, OK, b"y" * 900], monkeypatch)
    assert (executed, kind) == (True, "ok")
    assert answers == [b"-%b\r\n+OK\r\n" % str(forwarding.READ_TOO_LARGE).encode(), b"$900\r\n%b\r\n" % (b"y" * 900)]


def test_a_reply_that_is_too_large_alone_is_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert answered([None, OK, b"y" * 1_100], monkeypatch) == (True, ["error", str(forwarding.TOO_LARGE)])


def test_with_little_disk_left_only_the_writes_of_a_forward_are_refused() -> None:
    line = Line()
    parts = [(2, [request("GET", "a"), request("SET", "a", "1"), request("DEL", "a")]), (3, [request("INCR", "n")])]
    ticket = ForwardedTicket(line, NodeRef("n2", 1), 7, parts, low=True)  # type: ignore[arg-type]
    assert [item.argv[0] for item in ticket.items] == [b"GET", b"DEL"]
    ticket.answer([b"old", 1], 9)
    (message,) = line.sent
    refused = b"-%b\r\n" % str(forwarding.DISK_LOW).encode()
    assert msgpack.unpackb(message.payload) == ["ok", [b"$3\r\nold\r\n" + refused + b":1\r\n", refused]]
