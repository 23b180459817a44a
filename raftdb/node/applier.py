"""Applying: what is committed in the log is executed, answered, and committed to the data, in this order or another.

    executed   entries up to here are in the open transaction of the data; what they answered may have been sent
    applied    entries up to here are committed to the data (`Driver.applied`): views see them; applied <= executed
    known      the highest `executed` there ever was: somebody may know what these entries answered

A write may be answered before the data's transaction is committed: the log is what makes it durable, and who restarts
executes it again. What must not happen is that somebody who knows of the answer looks at the data without it. So the
transaction may stay open for a while (`deferring`), and is committed, `show()`, before anybody looks:

    reads of clients         wait for `applied`, as they always did (reads.py), and have it moved if it is behind
    answers from a view      of a lone leader and of a lease: the view must have all that is known
    local commands           INFO, SAVE, GETDUMP and so on: shown before they run
    other entries            memberships, no-ops, time: shown at once
    programs that embed      their threads open views of their own: no deferring there, nor beside I/O threads
    installs, the end        shown before

and besides after DEFER_S, DEFER_ENTRIES_MAX, DEFER_BYTES_MAX or DEFER_BYTES_MAX_MAPPED. Why: a commit of the data
copies every page that it touches, and may have to write it out. Entries that follow each other closely share pages, the
branch pages above all; the answers leave earlier; and a follower, of which nobody reads, does for many entries at once
what it owes nobody at once.

When the data has no room, the transaction is gone with all that was executed in it, and the entries are tried one by
one. Nothing is answered again: tickets that were answered are forgotten, and what is executed once more comes from the
log.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

from raftdb import clock
from raftdb.config import MIB
from raftdb.consensus import membership
from raftdb.errors import DiskFull, EntryDamaged
from raftdb.node.watchdog import COMMITTING, WORKING
from raftdb.types import Entry, Kind, Membership, Role

if TYPE_CHECKING:
    from raftdb.node.driver import Driver
    from raftdb.node.pending import Batch
    from raftdb.storage.kv import Batch as DataBatch

log = logging.getLogger("raftdb.driver")

APPLY_ENTRIES_MAX: Final = 256  # executed in one go, before answers are sent and the peers are looked at
APPLY_BYTES_MAX: Final = 16 * MIB
DEFER_S: Final = 0.05
#: Where the data is not written through its map, LMDB keeps what a transaction makes dirty in memory, page by page, and
#: never gives it back: a set of 110 bytes may cost a page of 4 KiB. 512 KiB cost 12 MiB more with a million keys.
DEFER_BYTES_MAX: Final = MIB // 8
#: Through the map (storage/mapped.py) the page cache has them. 2 MiB were 6 % faster, with pauses of 40 ms.
DEFER_BYTES_MAX_MAPPED: Final = MIB // 2
DEFER_ENTRIES_MAX: Final = 256
DISK_RETRY_S: Final = 1.0

Answers = list[tuple["Batch", list[Any], int]]


class Applier:
    """Owns the data's write transaction. The driver's thread only, but for reading `known`."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.executed = driver.applied
        self.known = driver.applied
        self.answered = 0  # clients that were answered together last
        self.deferring = False
        self.running = False  # a command is at work: its transaction cannot be committed now
        self._batch: DataBatch | None = None
        self._last: Entry | None = None  # the last one in the transaction
        self._members: Membership | None = None  # of the last membership entry in it
        self._bytes = 0
        self._opened_s = 0.0
        self._no_room_until_s = 0.0
        self._entries_max = APPLY_ENTRIES_MAX  # at once; fewer after they found no room together

    @property
    def open(self) -> bool:
        """Is something executed that nobody can see yet?"""
        return self._batch is not None

    @property
    def due_s(self) -> float:
        """When the open transaction is to be shown at the latest, by clock.monotonic()."""
        return self._opened_s + DEFER_S

    @property
    def has_room(self) -> bool:
        """False after the data found no room on the disk, until something was committed to it."""
        return not self._no_room_until_s

    def can_run(self) -> bool:
        """False: the disk is full, and it is not time yet to try again; or a command is at work."""
        return not self.running and (not self._no_room_until_s or clock.monotonic() >= self._no_room_until_s)

    def run(self) -> bool:
        """Execute and answer a bounded part of what is committed in the log. False when there is no room for it."""
        self.running = True
        try:
            self._execute()
        except DiskFull as error:
            return self._try_less(error)
        except EntryDamaged as error:
            self.abandon()
            self._driver.damaged(error)
            return False
        except BaseException:
            self.abandon()
            raise
        finally:
            self.running = False
            self._driver.doing = WORKING
        return True

    def _execute(self) -> None:
        driver, batch = self._driver, self._transaction()
        answers: Answers = []
        done: list[Entry] = []
        size_bytes, plain, large_bytes = 0, True, batch.large_bytes
        driver.begin_long_work()
        while self.executed < driver.commit and len(done) < self._entries_max and size_bytes < APPLY_BYTES_MAX:
            entry = self._entry(self.executed + 1)
            mine = driver.pending.get(entry.index, entry.term)
            # Every kind goes through the machine: keys fall due by the stamp of any entry.
            replies = driver.machine.apply(entry, mine.items if mine is not None else None, batch, driver.breathe)
            if mine is not None:
                answers.append((mine, replies, entry.index))
            if entry.kind != Kind.COMMANDS:
                plain = False
                if entry.kind == Kind.MEMBERSHIP:
                    self._members = membership.decode(entry.payload, entry.index)
            size_bytes += max(len(entry.payload), batch.large_bytes - large_bytes)  # a little SETRANGE may write much
            large_bytes = batch.large_bytes
            done.append(entry)
            self._last, self.executed = entry, entry.index
        self._bytes += size_bytes
        self.known = max(self.known, self.executed)
        if not plain or not self._may_wait():
            self._commit()
        self._answer(answers, done)

    def _transaction(self) -> DataBatch:
        if self._batch is None:
            self._batch = self._driver.kv.batch()
            self._opened_s = clock.monotonic()
            self._bytes = 0
        return self._batch

    def _entry(self, index: int) -> Entry:
        driver = self._driver
        entry = driver.recent.get(index)
        if entry is None or entry.term != driver.log.term(index):
            entry = driver.log.entries(index, index, 1)[0]
        return entry

    def _may_wait(self) -> bool:
        """May what is executed stay unseen for now?"""
        driver = self._driver
        return (
            self.deferring
            and self._entries_max == APPLY_ENTRIES_MAX
            and self._bytes < (DEFER_BYTES_MAX_MAPPED if driver.kv.through_map else DEFER_BYTES_MAX)
            and self.executed - driver.applied < DEFER_ENTRIES_MAX
            and not driver.reads.waits_for(self.executed)
            and clock.monotonic() - self._opened_s < DEFER_S
        )

    def _answer(self, answers: Answers, done: list[Entry]) -> None:
        """One reply per item of each ticket; then these entries are settled."""
        if answers:
            self.answered = sum([len(batch.tickets) for batch, _, _ in answers])
        for batch, replies, at in answers:
            start = 0
            for ticket in batch.tickets:
                stop = start + len(ticket.items)
                ticket.answer(replies[start:stop], at)
                start = stop
        for entry in done:
            self._driver.pending.settled(entry.index, entry.term)

    # --- showing ----------------------------------------------------------------------------------------------------

    def show(self) -> None:
        """Commit what is executed, so that views have it. Nothing, while a command is at work or nothing is open."""
        if self._batch is None or self.running:
            return
        try:
            self._commit()
        except DiskFull as error:
            self._try_less(error)

    def _commit(self) -> None:
        """Raises DiskFull: nothing that was executed since the last commit has happened."""
        batch, last = self._batch, self._last
        assert batch is not None
        if last is None:
            self.abandon()
            return
        driver = self._driver
        driver.doing = COMMITTING
        batch.commit(last.index, last.term, last.stamp, last.chain, self._members)
        driver.doing = WORKING
        self._entries_max = min(2 * self._entries_max, APPLY_ENTRIES_MAX)
        self._batch = self._last = self._members = None
        first, driver.applied = driver.applied + 1, last.index
        for at in range(first, last.index + 1):
            driver.forget(at)
        driver.core.applied_to(last.index)
        driver.housekeeper.wrote(self._bytes)
        if self._no_room_until_s:
            self._no_room_until_s = 0.0
            log.warning("there is room for the data again")
        driver.reads.at_once = self._leads_alone()
        driver.reads.applied(last.index)

    def _leads_alone(self) -> bool:
        """Then this node is its own quorum, and what it has applied is all that was ever acknowledged."""
        driver = self._driver
        if driver.core.role is not Role.LEADER or not 0 < driver.core.noop_index <= driver.applied:
            return False
        voters = driver.log.membership.voters
        return len(voters) == 1 and voters[0].ref == driver.core.me

    # --- the other ends ---------------------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Drop the open transaction: what is executed and not committed will be executed again."""
        batch, self._batch, self._last, self._members = self._batch, None, None, None
        self.executed = self._driver.applied
        if batch is not None:
            batch.abort()

    def switched(self) -> None:
        """Other data has taken the place of the old, and the driver's `applied` is of it."""
        assert self._batch is None
        self.executed = self._driver.applied
        self.known = max(self.known, self.executed)

    def _try_less(self, error: DiskFull) -> bool:
        """What entries need together is a worst case (storage/mapped.py), and one alone may fit. False: it does not."""
        if self._entries_max == 1:
            self._no_room(error)
            return False
        self.abandon()
        self._entries_max = 1
        return True

    def _no_room(self, error: DiskFull) -> None:
        """The data has no room. Committed entries stay in the log; it is tried again in a second."""
        self.abandon()
        self._entries_max = 1
        if not self._no_room_until_s:
            log.error("no room for the data, applying waits (started again, a node gets by with less): %s", error)
            self._driver.core.step_down("no room on the disk")
        self._no_room_until_s = clock.monotonic() + DISK_RETRY_S
