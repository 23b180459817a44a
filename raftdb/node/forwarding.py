"""Any node serves: a follower hands its clients' writes to the leader and their answers back.

    follower   all tickets of a turn -> one Forward(request id, the term it is meant for)
    leader     another term, or not the leader: "again", certainly not executed
               else: one ticket for its driver, which proposes it beside its own
               applied: ForwardReply(request id, index, wire bytes per ticket)
    follower   the bytes go to the clients as they are; later reads of these connections wait for the index

One hop: a leader never forwards. What may be sent twice and what not:

    answer "again"            certainly not executed: the tickets wait for the next leader, up to the leader wait
    connection lost, time-out unknown: -UNCERTAIN; never sent again
    no connection to send on  certainly not sent: the tickets wait

A connection has one ticket under way at a time, so its writes are never under way to two leaders or two terms.

Payloads (msgpack): Forward [[protocol, batch of commands.machine], ...]; ForwardReply [kind, ...] with kind "ok" and
the bytes per ticket, or "error" and the text, or "again".
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgpack

from raftdb import clock
from raftdb.commands.machine import Transaction
from raftdb.commands.table import MAY_SHRINK, WRITE
from raftdb.errors import CommandError, Damaged, PeerError, Uncertain, Unexecuted
from raftdb.net.resp import encode_many
from raftdb.net.wire import MESSAGE_BYTES_MAX, Forward, ForwardReply
from raftdb.node.pending import DISK_LOW, LOST_CONTACT, OVERWRITTEN, TIMED_OUT, Ticket
from raftdb.types import NodeRef, Role

if TYPE_CHECKING:
    from raftdb.node.driver import Driver
    from raftdb.node.peering import Peering

log = logging.getLogger("raftdb.forwarding")

FORWARD_BYTES_MAX: Final = 8 * 1024 * 1024  # gathered into one Forward; one ticket alone may be larger
REPLY_BYTES_MAX: Final = MESSAGE_BYTES_MAX - 64 * 1024
TICKETS_MAX: Final = 4_096
UNDER_WAY_MAX: Final = 64  # Forwards not answered yet

TOO_LARGE: Final = Uncertain("UNCERTAIN the command was executed, but its reply is too large to be forwarded")
READ_TOO_LARGE: Final = Unexecuted("TRYAGAIN what was read between writes is too large to be forwarded; read it alone")


class Sent:
    """A Forward that waits for its answer."""

    __slots__ = ("since_s", "tickets", "to")

    def __init__(self, to: NodeRef, tickets: list[Ticket], since_s: float) -> None:
        self.to = to
        self.tickets = tickets
        self.since_s = since_s


class ForwardedTicket(Ticket):
    """On the leader: the tickets of one Forward, as one. Its answer goes back over the peer connection."""

    __slots__ = ("low", "parts", "peering", "request_id", "sender")

    def __init__(
        self, peering: Peering, sender: NodeRef, request_id: int, parts: list[tuple[int, list[Any]]], low: bool = False
    ) -> None:
        """`low`: there is little room on the disk; what would take more is left out, and answered with an error."""
        self.low = low
        items = [item for _, batch in parts for item in batch if not low or shrinks(item)]
        writes = [item for item in items if is_write(item)]
        size_bytes = sum(size_of(item) for item in items)
        super().__init__(None, 2, items, writes, size_bytes, clock.monotonic())  # type: ignore[arg-type]
        self.parts = parts
        self.peering = peering
        self.sender = sender
        self.request_id = request_id

    def answer(self, replies: Sequence[Any], index: int) -> None:
        if not self.claim():
            return
        answers = self._encoded(replies)
        if sum(map(len, answers)) > REPLY_BYTES_MAX:  # what was only read can be read again
            rows = zip(self.items, replies, strict=True)
            answers = self._encoded([reply if is_write(item) else READ_TOO_LARGE for item, reply in rows])
        if sum(map(len, answers)) > REPLY_BYTES_MAX:
            self._send(True, index, ("error", str(TOO_LARGE)))
        else:
            self._send(True, index, ("ok", answers))

    def _encoded(self, replies: Sequence[Any]) -> list[bytes]:
        """The answers of each client's ticket."""
        rest, answers = iter(replies), []
        for protocol, items in self.parts:
            each = [DISK_LOW if self.low and not shrinks(item) else next(rest) for item in items]
            answers.append(encode_many(each, protocol) if protocol else b"")
        return answers

    def fail(self, error: CommandError) -> None:
        if not self.claim():
            return
        if error is OVERWRITTEN:
            self._send(False, 0, ("again",))
        else:
            self._send(not isinstance(error, Unexecuted), 0, ("error", str(error)))

    def _send(self, executed: bool, index: int, answer: tuple[Any, ...]) -> None:
        payload = msgpack.packb(answer, use_bin_type=True)
        self.peering.send_to(self.sender, ForwardReply(self.request_id, executed, index, payload))


class Forwarding:
    """Both sides. Driver thread."""

    def __init__(self, driver: Driver, peering: Peering) -> None:
        self._driver = driver
        self._peering = peering
        self._sent: dict[int, Sent] = {}
        self._next_id = 0

    @property
    def under_way(self) -> int:
        return len(self._sent)

    # --- follower ---------------------------------------------------------------------------------------------------

    def forward(self, waiting: deque[Ticket]) -> int:
        """Send what waits to the leader, if there is one and a connection to it; returns the bytes that went."""
        core = self._driver.core
        leader = core.leader
        if core.role is Role.LEADER or leader is None or not self._peering.is_connected(leader):
            return 0
        sent_bytes = 0
        while waiting and len(self._sent) < UNDER_WAY_MAX:
            tickets: list[Ticket] = []
            size_bytes = 0
            while waiting and size_bytes < FORWARD_BYTES_MAX and len(tickets) < TICKETS_MAX:
                if tickets and size_bytes + waiting[0].size_bytes > FORWARD_BYTES_MAX:
                    break
                ticket = waiting.popleft()
                size_bytes += ticket.size_bytes
                if ticket.conn is None:
                    ticket.fail(OVERWRITTEN)  # from another node, when this one led: one hop only, it asks elsewhere
                else:
                    tickets.append(ticket)
            if tickets and not self._send(leader, core.term, tickets):
                waiting.extendleft(reversed(tickets))
                size_bytes -= sum(ticket.size_bytes for ticket in tickets)
                return sent_bytes + size_bytes
            sent_bytes += size_bytes
        return sent_bytes

    def _send(self, leader: NodeRef, term: int, tickets: list[Ticket]) -> bool:
        encode = self._driver.machine.encode
        payload = msgpack.packb([(t.protocol, encode(t.items)) for t in tickets], use_bin_type=True)
        self._next_id += 1
        if not self._peering.send_to(leader, Forward(self._next_id, term, b"", payload)):
            return False
        self._sent[self._next_id] = Sent(leader, tickets, clock.monotonic())
        return True

    def on_reply(self, sender: NodeRef, reply: ForwardReply) -> None:
        """Raises PeerError for an answer that cannot be one."""
        sent = self._sent.get(reply.request_id)
        if sent is None or sent.to != sender:
            return  # it came after the time-out
        del self._sent[reply.request_id]
        kind, *rest = _unpacked(reply.payload)
        executed, at = reply[1], reply[2]  # not by name: tuples have a method called index
        if kind == "again":
            self._driver.wait_again(sent.tickets)
        elif kind == "ok" and len(rest) == 1 and len(rest[0]) == len(sent.tickets):
            for ticket, data in zip(sent.tickets, rest[0], strict=True):
                ticket.answer_encoded(data, at)
        else:
            text = str(rest[0]) if rest else "ERR the leader's answer cannot be read"
            error = Uncertain(text) if executed else Unexecuted(text)
            for ticket in sent.tickets:
                ticket.fail(error)

    def lost(self, ref: NodeRef) -> None:
        """The connection is gone: whatever was sent on it may or may not have arrived."""
        for request_id in [number for number, sent in self._sent.items() if sent.to == ref]:
            for ticket in self._sent.pop(request_id).tickets:
                ticket.fail(LOST_CONTACT)

    def expire(self, before_s: float) -> None:
        for request_id in [number for number, sent in self._sent.items() if sent.since_s < before_s]:
            for ticket in self._sent.pop(request_id).tickets:
                ticket.fail(TIMED_OUT)

    def fail_all(self) -> None:
        for sent in self._sent.values():
            for ticket in sent.tickets:
                ticket.fail(LOST_CONTACT)
        self._sent.clear()

    def copies(self) -> list[Sent]:
        """For the watchdog, from another thread."""
        return list(self._sent.values())

    # --- leader -----------------------------------------------------------------------------------------------------

    def on_forward(self, sender: NodeRef, forward: Forward) -> None:
        """Raises PeerError for a payload that forward() cannot have made."""
        core = self._driver.core
        if core.role is not Role.LEADER or core.term != forward.term or not self._driver.takes_writes:
            payload = msgpack.packb(("again",), use_bin_type=True)
            self._peering.send_to(sender, ForwardReply(forward.request_id, False, 0, payload))
            return
        parts = [self._part(row) for row in _unpacked(forward.payload)]
        ticket = ForwardedTicket(self._peering, sender, forward.request_id, parts, self._driver.housekeeper.low)
        if ticket.items:
            self._driver.submit([ticket])
        else:
            ticket.answer([], self._driver.applied)

    def _part(self, row: Any) -> tuple[int, list[Any]]:
        if type(row) is not list or len(row) != 2 or row[0] not in (0, 2, 3) or type(row[1]) is not bytes:
            raise PeerError("malformed Forward")
        machine = self._driver.machine
        try:
            return row[0], [resolved(machine.table, item) for item in machine.decode(row[1])]
        except (Damaged, CommandError) as error:
            raise PeerError(f"malformed Forward: {error}") from None


def resolved(table: Any, item: Any) -> Any:
    """The item with its commands looked up. Raises CommandError for a command that is not in the table."""
    if isinstance(item, Transaction):
        return item._replace(requests=[resolved(table, request) for request in item.requests])
    return item._replace(command=table.find(item.argv))


def is_write(item: Any) -> bool:
    """Does this item belong into the log?"""
    if isinstance(item, Transaction):
        return True
    return bool(item.command.flags & WRITE)


def requests_of(item: Any) -> Sequence[Any]:
    """The commands of an item."""
    return item.requests if isinstance(item, Transaction) else (item,)


def shrinks(item: Any) -> bool:
    """Is this item taken on a full disk?"""
    return all(not each.command.flags & WRITE or each.command.flags & MAY_SHRINK for each in requests_of(item))


def size_of(item: Any) -> int:
    """Bytes of the words, about what it takes in an entry."""
    return sum(16 + sum(map(len, request.argv)) for request in requests_of(item))


def _unpacked(payload: bytes | bytearray) -> Any:
    try:
        value = msgpack.unpackb(
            payload, raw=False, use_list=True, max_map_len=0, max_ext_len=0, max_array_len=TICKETS_MAX + 16
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise PeerError(f"malformed payload ({type(error).__name__})") from None
    if type(value) is not list or not value:
        raise PeerError("malformed payload")
    return value
