"""Commands on their way: what a client sent, where its answer goes, and what became of it.

A *ticket* is the run of commands that one connection handed over in one turn and that must be answered in order. It
ends in exactly one of three ways, told by the reply:

    executed        the replies of its commands
    not executed    -CLUSTERDOWN, -TRYAGAIN, ... : it never entered a log, or the entry that it was in was overwritten
    unknown         -UNCERTAIN: it was proposed or forwarded, and this node cannot tell (time ran out, contact was lost)

Whoever wants to answer a ticket must `claim()` it first; the first one wins. That is how the watchdog may answer while
the driver hangs in a system call, without a second answer when the driver comes back.

A *batch* is what one log entry holds: the tickets of a turn. Their decoded requests stay beside the entry, so that the
leader applies what it proposed without decoding it again; the reads between the writes of a pipeline ride along, and
are not in the entry.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from raftdb.errors import CommandError, Uncertain, Unexecuted
from raftdb.net.resp import encode, encode_many
from raftdb.types import NodeRef, Role

if TYPE_CHECKING:
    from raftdb.net.server import Connection

NO_LEADER: Final = Unexecuted("CLUSTERDOWN no leader is known; nothing was executed")
OVERWRITTEN: Final = Unexecuted("TRYAGAIN leadership moved before the command was committed; it was not executed")
LEADER_BUSY: Final = Unexecuted(
    "TRYAGAIN the leader is too busy, or cut off from its majority: the command waited in vain and was not executed"
)
LEADER_AWAY: Final = Unexecuted(
    "TRYAGAIN the leader cannot be reached from this node, or is busy; nothing was executed"
)
HANDING_OVER: Final = Unexecuted("TRYAGAIN leadership is being handed over; nothing was executed")
NOT_CONFIRMED: Final = Unexecuted("CLUSTERDOWN no majority has confirmed the leader in time; nothing was executed")
LAGGING: Final = Unexecuted("TRYAGAIN this node lags behind the leader; nothing was executed")
STOPPING: Final = Unexecuted("CLUSTERDOWN this node is stopping; nothing was executed")
DISK_LOW: Final = Unexecuted("OOM less than --min-free is left on the disk; only commands that free space are accepted")
TOO_BUSY: Final = Unexecuted("TRYAGAIN too many commands are waiting; nothing was executed")
TOO_LARGE: Final = CommandError("ERR the command does not fit into one entry of the log (64 MiB)")
TIMED_OUT: Final = Uncertain("UNCERTAIN no answer within the request time-out; the command may still be executed")
LOST_CONTACT: Final = Uncertain("UNCERTAIN contact with the leader was lost; the command may have been executed")
LEADERSHIP_LOST: Final = Uncertain("UNCERTAIN leadership was lost; the command may have been executed")


ENTRY_BYTES_MAX: Final = 64 * 1024 * 1024  # of what one ticket puts into the log, as encoded
ENCODED_BYTES_PER_WORD: Final = 5  # at most, besides the word
ENCODED_BYTES_PER_COMMAND: Final = 32  # at most, besides its words


def why_not_begun(role: Role, leader: NodeRef | None) -> Unexecuted:
    """What commands are told that have waited too long for their entry, at a node in this role."""
    if role is Role.LEADER:
        return LEADER_BUSY
    return NO_LEADER if leader is None else LEADER_AWAY


def fits_an_entry(argvs: Iterable[Sequence[bytes]]) -> bool:
    """Can these commands stand in one entry? Exact enough: it counts what the encoding needs at most."""
    size_bytes = 0
    for argv in argvs:
        size_bytes += ENCODED_BYTES_PER_COMMAND + ENCODED_BYTES_PER_WORD * len(argv) + sum(map(len, argv))
    return size_bytes <= ENTRY_BYTES_MAX


class Ticket:
    """Some commands of one connection. `items` holds them all, `writes` those that go into the log."""

    __slots__ = ("_unclaimed", "conn", "items", "protocol", "run", "since_s", "size_bytes", "writes")

    def __init__(
        self, conn: Connection, protocol: int, items: list[Any], writes: list[Any], size_bytes: int, since_s: float
    ) -> None:
        self.conn = conn
        self.run = 0 if conn is None else conn.ticket  # the loop's number of the commands that were handed over
        self.protocol = protocol  # as of the time the commands were read; 0: the client wants no answers
        self.items = items
        self.writes = writes  # the same list when all are writes
        self.size_bytes = size_bytes
        self.since_s = since_s
        self._unclaimed = [None]

    def claim(self) -> bool:
        """True for the first caller, who then must answer. Any thread: list.pop is atomic."""
        try:
            self._unclaimed.pop()
        except IndexError:
            return False
        return True

    def answer(self, replies: Sequence[Any], index: int) -> None:
        """One reply per item. Driver only: the sockets are woken at the end of its turn."""
        if not self.claim():
            return
        conn, count, protocol = self.conn, len(replies), self.protocol
        conn.session.written_index = index
        if not protocol:
            conn.queue(b"", count)
        elif count == 1:
            conn.queue(encode(replies[0], protocol), 1)
        else:
            conn.queue(encode_many(replies, protocol), count)

    def answer_encoded(self, data: bytes, index: int) -> None:
        """The answers as the leader has encoded them. Driver only."""
        if self.claim():
            self.conn.session.written_index = index
            self.conn.queue(data, len(self.items))

    def fail(self, error: CommandError) -> None:
        """The same error for each command. Driver only."""
        if self.claim():
            count = len(self.items)
            self.conn.queue(encode(error, self.protocol) * count if self.protocol else b"", count)


class Batch(NamedTuple):
    """The tickets of one log entry that this node proposed as leader of `term`."""

    term: int
    tickets: list[Any]  # Ticket, or a request that another node has forwarded: both have answer() and fail()
    items: list[Any]
    since_s: float


class Pending:
    """Batches by the index of their entry, in order. Owned by the driver; the watchdog reads copies."""

    def __init__(self) -> None:
        self._batches: dict[int, Batch] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def add(self, index: int, batch: Batch) -> None:
        """A batch proposed at `index`.

        An older one of ours that stood there was truncated here, yet another node may still hold it and get it
        committed: its outcome is unknown. Only a *committed* entry of another term in its place is proof: settled().
        """
        older = self._batches.pop(index, None)
        if older is not None:
            for ticket in older.tickets:
                ticket.fail(LEADERSHIP_LOST)
        self._batches[index] = batch

    def get(self, index: int, term: int) -> Batch | None:
        """The batch of the entry (index, term), which stays until settled()."""
        batch = self._batches.get(index)
        return batch if batch is not None and batch.term == term else None

    def settled(self, index: int, term: int) -> None:
        """Entry (index, term) has been applied: forget its batch; with another term ours was overwritten."""
        batch = self._batches.pop(index, None)
        if batch is not None and batch.term != term:
            for ticket in batch.tickets:
                ticket.fail(OVERWRITTEN)

    def skipped(self, index: int) -> None:
        """A snapshot replaced the log up to `index`: what became of the batches below it cannot be told."""
        for at in [at for at in self._batches if at <= index]:
            for ticket in self._batches.pop(at).tickets:
                ticket.fail(LEADERSHIP_LOST)

    def expire(self, before_s: float) -> None:
        """Answer batches older than `before_s`. They stay here: their entries may still be applied."""
        for batch in self._batches.values():
            if batch.since_s > before_s:
                return
            for ticket in batch.tickets:
                ticket.fail(TIMED_OUT)

    def fail_all(self, error: CommandError) -> None:
        for batch in self._batches.values():
            for ticket in batch.tickets:
                ticket.fail(error)
        self._batches.clear()

    def copies(self) -> list[Batch]:
        """For the watchdog, from another thread."""
        return list(self._batches.values())
