"""Answers for a driver that is stuck.

When a system call of the driver hangs (a disk that does not come back), or a command does, nobody on its thread can
tell the clients. The driver notes what it is about (`Driver.doing`), so that the log can say what takes so long.
This thread looks four times a second. Once a turn has lasted longer than the request time-out it claims the tickets
that are older than that and answers them -UNCERTAIN: at once over the driver's own loop if the driver hangs in the
log commit (`Loop.rescue`), through the loop of the connection otherwise. What the driver has to say later falls on
the floor.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final

from raftdb import clock
from raftdb.net.resp import encode
from raftdb.node.pending import TIMED_OUT, Ticket

if TYPE_CHECKING:
    from raftdb.net.server import Connection
    from raftdb.node.driver import Driver

log = logging.getLogger("raftdb.watchdog")

PERIOD_S: Final = 0.25

#: What a turn is about, in words for the log: the watchdog names it when it takes too long.
READING: Final = "reading the commands of its clients"
SERVING: Final = "answering reads"
WORKING: Final = "consensus: messages, time, snapshots"
EXECUTING: Final = "executing commands"
COMMITTING: Final = "committing to the data (kv): the disk does not answer?"
FLUSHING: Final = "writing the log: the disk does not answer?"
SENDING: Final = "sending replies"


class Watchdog:
    """One thread, which only reads the driver's state and claims tickets."""

    def __init__(self, driver: Driver, request_timeout_s: float) -> None:
        self._driver = driver
        self._timeout_s = request_timeout_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._told_s = 0.0

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="raftdb-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            now_s = clock.monotonic()
            started_s = self._driver.turn_started_s
            if now_s - started_s > self._timeout_s:
                self._answer(now_s - self._timeout_s)
                if self._told_s != started_s:
                    self._told_s = started_s
                    log.error("the driver has been stuck for %.1f s: %s", now_s - started_s, self._driver.doing)

    def _answer(self, before_s: float) -> None:
        """Tickets that came before `before_s`."""
        due: list[tuple[Connection, int, bytes]] = []
        for ticket in self._driver.tickets():
            if ticket.since_s < before_s and ticket.claim():
                due += self._due(ticket)
        own = [row for row in due if row[0].loop is self._driver.loop]
        if own and self._driver.loop.rescue(own):
            due = [row for row in due if row[0].loop is not self._driver.loop]
        for conn, run, line in due:
            conn.abandon(run, line)

    @staticmethod
    def _due(ticket: Ticket) -> list[tuple[Connection, int, bytes]]:
        """(connection, run, answer per command); none for tickets of other nodes, which time out there."""
        if ticket.conn is None:
            return []
        return [(ticket.conn, ticket.run, encode(TIMED_OUT, ticket.protocol) if ticket.protocol else b"")]
