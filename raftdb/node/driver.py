"""The driver: the only place where sockets, clock, core, log, data and replies meet. One thread.

    turn    read all sockets (clients of loop 0, peers) and the inbox of the other loops
            messages of peers -> core; at most one tick                                     messages before ticks
            propose what has come: one entry for all commands of the turn
            Ready: frames to the peers  ->  one synced log commit  ->  Released: more frames
            apply what is committed, in one transaction of the data  ->  replies
            send the replies, looking at the peers again after every 32 of them

Why one entry per turn: an entry costs a synced commit, so commands that arrive while one is under way share the next.
A new entry waits until the one before is committed (`in_flight_max` entries at most); the batch then grows by itself
with the load, and a lone client waits for nobody.

**Long work** (`breathe`). Commands call back every thousand records. After 50 ms a *control turn* runs in between:
peers are read, heartbeats and votes go out, the log may be written, time passes; nothing is proposed and nothing
applied, since the apply that is under way holds the data's transaction. What got committed meanwhile is applied
afterwards.

**Errors.** A storage error, MemoryError, or a broken invariant ends the process (`fail`): what this node would say
after it could be wrong, and a restart from the log is right. A full disk is not such an error: writes are refused and
the entries that are committed wait in the log until there is room.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import lmdb

from raftdb import clock
from raftdb.config import MIB
from raftdb.consensus.core import Busy, NotLeader
from raftdb.consensus.lease import Lease
from raftdb.consensus.stamp import StampClock
from raftdb.errors import Bug, DiskFull, EntryDamaged, RaftdbError, StorageError
from raftdb.node.applier import DISK_RETRY_S, Applier
from raftdb.node.pending import LEADERSHIP_LOST, STOPPING, TOO_BUSY, Batch, Pending, Ticket, why_not_begun
from raftdb.node.watchdog import EXECUTING, FLUSHING, READING, SENDING, SERVING, WORKING
from raftdb.types import Entry, Kind, Persist, Proposal, Role, SnapshotMeta

if TYPE_CHECKING:
    from raftdb.commands.machine import Machine
    from raftdb.config import Config
    from raftdb.consensus.core import Core
    from raftdb.consensus.membership import Change
    from raftdb.consensus.ready import Ready, Released, RoleChange
    from raftdb.net.server import Server
    from raftdb.node.dispatch import Dispatch
    from raftdb.node.housekeeper import Housekeeper
    from raftdb.node.installer import Installer
    from raftdb.node.members import ChangeTicket
    from raftdb.node.peering import Peering
    from raftdb.node.reads import Reads
    from raftdb.node.snapshotter import Snapshotter
    from raftdb.storage.datadir import DataDir

log = logging.getLogger("raftdb.driver")

CONTROL_TURN_S: Final = 0.05  # a long apply lets the peers in this often
REPLIES_PER_LOOK: Final = 32  # client replies sent before the peers are looked at again
ENTRY_BYTES_MAX: Final = 8 * MIB  # commands gathered into one entry; one ticket alone may be larger
RECENT_ENTRIES_MAX: Final = 100_000
RECENT_BYTES_MAX: Final = 64 * MIB
ENTRY_COMMANDS_MAX: Final = 4_096  # each may touch a page of its own: see DEFER_BYTES_MAX in applier.py
WAITING_BYTES_MAX: Final = 64 * MIB  # of commands that wait for their entry, or for a leader
HOUSEKEEPING_S: Final = 0.5  # snapshot triggers and trimming
GATHER_MIN: Final = 4  # clients answered together that are worth waiting for
GATHER_S: Final = 0.0008  # at most: about a flush of three nodes on one disk
GATHER_PAUSE_MAX: Final = 63  # entries that wait for nobody, after others were waited for in vain
NEWS_WAIT_S: Final = 0.001  # for a write that takes the news of the last commit along
DRAIN_POLL_S: Final = 0.005
GOODBYE_S: Final = 2.0  # for replies that are still to be sent when the node stops

#: What ends the process when the driver meets it.
FATAL: Final = (StorageError, Bug, AssertionError, MemoryError, OSError, lmdb.Error, RecursionError)


class Driver:
    """Owns the core and both LMDB write transactions. Everything but the marked methods is for its own thread."""

    def __init__(
        self,
        config: Config,
        data: DataDir,
        core: Core,
        machine: Machine,
        server: Server,
        dispatch: Dispatch,
        housekeeper: Housekeeper,
        on_role: Callable[[RoleChange], None],
    ) -> None:
        self.config = config
        self.data = data
        self.core = core
        self.log = data.log
        self.kv = data.kv
        self.machine = machine
        self.server = server
        self.loop = server.loop
        self.dispatch = dispatch
        self.housekeeper = housekeeper
        self.peers: Peering = None  # type: ignore[assignment]  # set by the node, as the next ones
        self.reads: Reads = None  # type: ignore[assignment]
        self.snapshotter: Snapshotter = None  # type: ignore[assignment]
        self.installer: Installer = None  # type: ignore[assignment]
        self.on_role = on_role
        self.pending = Pending()
        self.clock_fit = True  # False: this node's clock is too far off the others' to lead
        self.inbox: deque[Ticket] = deque()  # appended by any loop
        self.waiting: deque[Ticket] = deque()  # taken from the inbox, not yet proposed
        self.recent: dict[int, Entry] = {}  # appended and not yet applied: apply need not read the log
        self.in_flight_max = 1
        self.applied = self.kv.applied
        self.commit = self.kv.applied
        self.turn_started_s = clock.monotonic()
        self.doing = READING  # in this turn, for the watchdog
        self.log_bytes_since_snapshot = self._log_bytes()
        self.flushes = 0
        self.flush_last_us = 0
        self.failure: BaseException | None = None
        self.stopping = False
        self.stopped = threading.Event()
        self._next_tick_s = 0.0
        self._next_control_s = 0.0
        self._gather_pause = 0  # entries to come that wait for nobody
        self._gather_patience = 0  # how many the last pause was
        self._next_housekeeping_s = 0.0
        self._led_in_need = False
        self._leader_seen_s = 0.0
        self._waiting_bytes = 0
        self._flushed_us = 0  # sum over all flushes
        self._open: Ready | None = None  # its persist found no room on the disk
        self._log_room_s = 0.0  # try again then
        self._recent_bytes = 0
        self._stamps = StampClock(self.log.stamp(self.log.last), _mono_ms())
        self.lease = Lease(config.lease_ms, config.election_ms, config.tick_ms)
        self.applier = Applier(self)
        self._on_end: Callable[[], None] = _nothing
        self.thread: threading.Thread | None = None

    # --- from other threads -----------------------------------------------------------------------------------------

    def submit(self, tickets: list[Ticket]) -> None:
        """Hand over the writes of one loop's turn. Any thread."""
        self.inbox.extend(tickets)
        if threading.current_thread() is not self.thread:
            self.loop.wake()

    def call(self, fn: Callable[[], None]) -> None:
        """Run `fn` in the driver's thread, in its next turn. Any thread."""
        self.loop.post(fn)

    def fail(self, error: BaseException) -> None:
        """The node cannot go on: remember why, and stop. Any thread; the first reason counts."""
        if self.failure is None:
            self.failure = error
            log.critical("stopping: %s", error or type(error).__name__, exc_info=error if _is_bug(error) else None)
        self.stopping = True
        self.loop.wake()

    def stop(self) -> None:
        """Ask for the end of run(). Any thread."""
        self.stopping = True
        self.loop.wake()

    def start(self, on_end: Callable[[], None]) -> None:
        """Start the thread; `on_end` is called by it when it ends."""
        self._on_end = on_end
        self.thread = threading.Thread(target=self.run, name="raftdb-driver", daemon=True)
        self.thread.start()

    def run_here(self, on_end: Callable[[], None]) -> None:
        """run() in the calling thread."""
        self._on_end = on_end
        self.run()

    def drain(self, wait_s: float) -> None:
        """Wait until nothing is under way. Any other thread."""
        end_s = clock.monotonic() + wait_s
        while (
            self.inbox or self.waiting or len(self.pending) or self.peers.forwarding.under_way
        ) and clock.monotonic() < end_s:
            if self.stopped.wait(DRAIN_POLL_S):
                return

    @property
    def ready_to_serve(self) -> bool:
        """A leader is known; if it is this node, it has applied the first entry of its term. Any thread."""
        if self.core.role is Role.LEADER:
            return 0 < self.core.noop_index <= self.applied
        return self.core.leader is not None

    @property
    def log_entries_since_snapshot(self) -> int:
        meta = self.log.snapshot
        return self.applied - (meta.index if meta is not None else 0)

    @property
    def takes_writes(self) -> bool:
        """A node that is about to stop takes none from others."""
        return not self.stopping

    def flush_mean_us(self) -> int:
        return self._flushed_us // max(1, self.flushes)

    def tickets(self) -> list[Ticket]:
        """Everything that waits for an answer, as far as it can be seen from another thread: for the watchdog."""
        try:
            found = [ticket for batch in self.pending.copies() for ticket in batch.tickets]
            found += [ticket for sent in self.peers.forwarding.copies() for ticket in sent.tickets]
            return found + list(self.waiting) + list(self.inbox)
        except RuntimeError:  # changed while it was copied: so the driver is not stuck
            return []

    def clock_for_reads(self) -> int | None:
        """On a leader the time by which keys fall due, in ms; None elsewhere. Any thread."""
        return self.target_ms() if self.core.role is Role.LEADER else None

    def join(self) -> None:
        if self.thread is not None:
            self.thread.join()

    # --- the turn ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turns until stop() or until something makes it impossible to go on."""
        self.thread = threading.current_thread()
        try:
            self.data.claim()
            self._next_tick_s = clock.monotonic() + self.config.tick_ms / 1000
            while not self.stopping:
                self.turn()
        except FATAL as error:
            self.fail(error)
        except Exception as error:  # a bug, whatever it is: stop rather than go on wrong
            self.fail(Bug(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__))
        finally:
            self._end()

    def turn(self) -> None:
        """One turn of the module's table."""
        self.loop.poll(self._patience_s())
        if self.dispatch.has_writes(self.loop):
            self._await_others()
        now_s = self.turn_started_s = clock.monotonic()
        self.doing = SERVING
        self.dispatch.end_of_turn(self.loop)
        self.doing = WORKING
        if now_s >= self._next_tick_s:
            self._tick(now_s)
        self._propose(now_s)
        # Whose write is answered now will most likely write again: the next append tells the followers of the commit.
        self.core.hold_news = bool(self.waiting) or len(self.pending) > 0
        self._settle()
        if self.applier.open and self.applier.due_s <= now_s:
            self.applier.show()
        if self.peers is not None:
            self.peers.flush()  # forwards and their replies: without this they would lie there until the next tick
        self.doing = SENDING
        self.server.wake()
        while self.loop.flush(REPLIES_PER_LOOK):
            self._look_at_peers()
        self.doing = READING

    def _await_others(self) -> None:
        """Who was answered last is just asking again, and an entry costs as much for one command as for all of them.

        With many clients in a closed loop entries would else hold a half of them each, and twice as many be flushed.
        So those who were answered together are waited for, about as long as a flush takes; when they do not come, the
        next entries wait for nobody, for longer each time.
        """
        poll, taken = self.loop.poll, self.dispatch.writes_taken
        poll(0.0)
        wanted = self.applier.answered - self.applier.answered // 16
        if wanted < GATHER_MIN or len(self.pending) >= self.in_flight_max or self.core.role is not Role.LEADER:
            return
        if self._gather_pause:
            self._gather_pause -= 1
            return
        until_s = clock.monotonic() + GATHER_S
        while (missing := taken(self.loop) < wanted) and clock.monotonic() < until_s:
            poll(0.001)
        if missing:
            self._gather_patience = min(2 * self._gather_patience + 1, GATHER_PAUSE_MAX)
            self._gather_pause = self._gather_patience
        else:
            self._gather_patience = 0

    def _patience_s(self) -> float:
        """How long the next poll may wait."""
        applier = self.applier
        if self.inbox:
            return 0.0
        if self.commit > applier.executed and applier.can_run() and not self.installer.busy:
            return 0.0
        now_s = clock.monotonic()
        until_s = min(self._next_tick_s, applier.due_s) if applier.open else self._next_tick_s
        if self.core.news_held:
            until_s = min(until_s, now_s + NEWS_WAIT_S)
        return max(0.0, until_s - now_s)

    def _tick(self, now_s: float) -> None:
        """At most one per turn: after a stall the messages that waited come first, and no election is invented."""
        self._next_tick_s = max(self._next_tick_s + self.config.tick_ms / 1000, now_s + self.config.tick_ms / 2000)
        self.core.tick()
        self.peers.tick()
        self.core.fit = self.clock_fit and self.applier.has_room and self._room_to_lead(now_s)
        self.pending.expire(now_s - self.config.request_timeout_ms / 1000)
        self._expire_waiting(now_s - self.config.leader_wait_ms / 1000)
        self.reads.expire(now_s - self.config.request_timeout_ms / 1000)
        self.dispatch.tick(now_s)
        if not self.applier.running:
            self._keep_time()
        if now_s >= self._next_housekeeping_s:
            self._next_housekeeping_s = now_s + HOUSEKEEPING_S
            self._keep_log_short(now_s)

    def _keep_log_short(self, now_s: float) -> None:
        """Snapshot triggers, and one bounded step of trimming."""
        self.snapshotter.trigger(self.applied, self.log_bytes_since_snapshot, now_s, self.housekeeper.low)
        if self.core.snapshot_wanted and not self.snapshotter.busy:
            log.info("snapshot: a member needs entries that are no longer in the log")
            self.snapshotter.request()
        if not self.installer.busy and self.snapshotter.trim(self.core.pinned + 1):
            self.core.log_trimmed()
            self._next_housekeeping_s = now_s  # more to do

    def snapshot_made(self, meta: SnapshotMeta) -> None:
        """The log's meta names this file now; what it does not name any more goes."""
        self.log_bytes_since_snapshot = self.log.bytes_after(meta.index)
        if not self.installer.busy and not self.peers.fetcher.busy:
            removed = self.data.sweep()
            if removed:
                log.info("removed %s", ", ".join(removed))

    def _log_bytes(self) -> int:
        meta = self.log.snapshot
        return self.log.bytes_after(meta.index if meta is not None else 0)

    def _room_to_lead(self, now_s: float) -> bool:
        """A node with little room lets others lead; it leads all the same when nobody else does (all may be full).

        Once it was elected in spite of that it stays: handing over to and fro would help nobody.
        """
        if not self.housekeeper.low:
            self._led_in_need = False
            self._leader_seen_s = now_s
            return True
        if self.core.role is Role.LEADER:
            return self._led_in_need
        if self.core.leader is not None:
            self._led_in_need = False
            self._leader_seen_s = now_s
        elif now_s - self._leader_seen_s > 4 * self.config.election_ms / 1000:
            self._led_in_need = True
        return self._led_in_need

    def _expire_waiting(self, before_s: float) -> None:
        while self.waiting and self.waiting[0].since_s < before_s:
            ticket = self.waiting.popleft()
            self._waiting_bytes -= ticket.size_bytes
            ticket.fail(why_not_begun(self.core.role, self.core.leader))

    def _look_at_peers(self) -> None:
        """Between client replies: what the peers have to say does not wait."""
        if self.loop.poll_registered():
            self._settle()
            self.server.wake()

    # --- proposing --------------------------------------------------------------------------------------------------

    def _propose(self, now_s: float) -> None:
        inbox = self.inbox
        for _ in range(len(inbox)):
            self._wait(inbox.popleft())
        if not self.waiting or len(self.pending) >= self.in_flight_max:
            return
        if self.core.role is not Role.LEADER:
            self._waiting_bytes -= self.peers.forwarding.forward(self.waiting)
            return
        tickets = self._gather()
        items = [item for ticket in tickets for item in ticket.items]
        writes = items if all(t.writes is t.items for t in tickets) else [w for t in tickets for w in t.writes]
        try:
            self.propose(Kind.COMMANDS, self.machine.encode(writes), Batch(self.core.term, tickets, items, now_s))
        except (
            NotLeader,
            Busy,
        ):  # leadership is being handed over: nothing was appended, they wait for the next leader
            self.wait_again(tickets)

    def wait_again(self, tickets: list[Ticket]) -> None:
        """These were certainly not executed: back to the front, in their order."""
        self.waiting.extendleft(reversed(tickets))
        self._waiting_bytes += sum(ticket.size_bytes for ticket in tickets)

    def _wait(self, ticket: Ticket) -> None:
        """Into the queue, whose bytes are bounded: what comes beyond is refused, which is not executing it."""
        if self._waiting_bytes + ticket.size_bytes > WAITING_BYTES_MAX and self.waiting:
            ticket.fail(TOO_BUSY)
            return
        self._waiting_bytes += ticket.size_bytes
        self.waiting.append(ticket)

    def _gather(self) -> list[Ticket]:
        """Whole tickets, from the front, up to the bounds of an entry."""
        tickets: list[Ticket] = []
        if self._waiting_bytes <= ENTRY_BYTES_MAX and sum([len(t.items) for t in self.waiting]) <= ENTRY_COMMANDS_MAX:
            tickets.extend(self.waiting)
            self.waiting.clear()
            self._waiting_bytes = 0
            return tickets
        size_bytes = commands = 0
        while self.waiting and size_bytes < ENTRY_BYTES_MAX and commands < ENTRY_COMMANDS_MAX:
            ticket = self.waiting[0]
            if tickets and size_bytes + ticket.size_bytes > ENTRY_BYTES_MAX:
                break
            size_bytes += ticket.size_bytes
            commands += len(ticket.items)
            tickets.append(self.waiting.popleft())
        self._waiting_bytes -= size_bytes
        return tickets

    def propose(self, kind: int, payload: bytes, batch: Batch | None) -> int:
        """Append an entry to this leader's log; `batch` is answered when it is applied. Raises NotLeader, Busy."""
        index = self.core.propose((Proposal(kind, self._stamp(), secrets.randbits(64), payload),))
        if batch is not None:
            self.pending.add(index, batch)
        return index

    def propose_change(self, change: Change, ticket: ChangeTicket | None) -> ChangeTicket | None:
        """Append a membership entry; `ticket` is answered when it is applied.

        Raises NotLeader, Busy, ChangeRefused.
        """
        index = self.core.propose_membership(change, self._stamp(), secrets.randbits(64))
        if ticket is not None:
            self.pending.add(index, Batch(self.core.term, [ticket], [], clock.monotonic()))
        return ticket

    def move_time(self, due_ms: int) -> int:
        """Leader: the index of an entry whose stamp is at least `due_ms`; appends one that only moves the time.

        Raises Busy.
        """
        if self._stamps.last_ms < due_ms or self.core.last_index <= self.applied:
            self.propose(Kind.TIME, b"", None)
        return self.core.last_index

    def _stamp(self) -> int:
        """The time of the next entry: never behind the last one of the log."""
        return self._stamps.next(self.target_ms(), _mono_ms())

    def target_ms(self) -> int | None:
        """What the stamps follow: the own clock when alone, else the median of the voters' clocks."""
        return self.peers.target_ms()

    def _keep_time(self) -> None:
        """An idle leader moves the time on when a key falls due, at most once per tick."""
        if self.core.role is not Role.LEADER or len(self.pending) or self.housekeeper.low:
            return
        due_ms = self.kv.earliest_expiry_ms()
        if 0 < due_ms <= (self.target_ms() or 0):
            with contextlib.suppress(Busy):  # leadership is being handed over: the next leader moves it
                self.propose(Kind.TIME, b"", Batch(self.core.term, [], [], clock.monotonic()))

    # --- consensus to disk to apply ---------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Everything that the core wants done, until it wants nothing more."""
        while True:
            moved = self._drain_core()
            if self.commit > self.applier.executed and self.applier.can_run() and not self.installer.busy:
                moved = self.applier.run() or moved
            if not moved:
                return

    def _drain_core(self) -> bool:
        moved = False
        while (ready := self._open or self.core.ready()) is not None:
            if ready is not self._open:
                self._send_early(ready)
                if ready.sends_only:
                    moved = True
                    continue
            if not self._persist(ready):
                return self._send_meanwhile() or moved
            moved = True
            self._second_stage(self.core.persisted(ready))
        return moved

    def _send_meanwhile(self) -> bool:
        """The disk has no room for what is to be persisted: what needs no disk still leaves."""
        ready = self.core.ready()
        if ready is not None:
            self._send_early(ready)
        return ready is not None

    def _send_early(self, ready: Ready) -> None:
        if ready.lease_end:
            self.reads.at_once = False
        if ready.lease_end or ready.round:
            self.lease.before_send(ready, boottime_ms())
        if ready.send:
            self.peers.send(ready.send)
            self.peers.flush()

    def _persist(self, ready: Ready) -> bool:
        """The one synced commit. False: no room; `ready` stays open and is tried again."""
        persist = ready.persist
        if persist is None:
            return True
        start_s = clock.monotonic()
        if start_s < self._log_room_s:
            return False
        if persist.install is not None:
            self.applier.show()
        was, self.doing = self.doing, FLUSHING
        self.loop.leave()
        try:
            self.log.commit(persist)
        except DiskFull as error:
            self._no_room_for_log(ready, error)
            return False
        finally:
            self.loop.enter()
            self.doing = was
        self._open = None
        self._count_flush(start_s)
        self._keep(persist)
        if persist.install is not None and persist.install.index > self.applied:
            self.installer.install(persist.install)  # else it only replaces damaged entries below what is applied
        return True

    def _keep(self, persist: Persist) -> None:
        """What apply will need stays in memory, up to a bound; the rest is read back from the log."""
        recent = self.recent
        if persist.truncate_from is not None:
            for index in [index for index in recent if index >= persist.truncate_from]:
                self.forget(index)
        for entry in persist.entries:
            self.forget(entry.index)
            self.log_bytes_since_snapshot += len(entry.payload)
            if len(recent) < RECENT_ENTRIES_MAX and self._recent_bytes < RECENT_BYTES_MAX:
                recent[entry.index] = entry
                self._recent_bytes += len(entry.payload)
        if persist.entries:
            self._stamps.observe(persist.entries[-1].stamp, _mono_ms())

    def forget(self, index: int) -> Entry | None:
        entry = self.recent.pop(index, None)
        if entry is not None:
            self._recent_bytes -= len(entry.payload)
        return entry

    def _count_flush(self, start_s: float) -> None:
        took_us = int((clock.monotonic() - start_s) * 1e6)
        self.flushes += 1
        self.flush_last_us = took_us
        self._flushed_us += took_us

    def _second_stage(self, released: Released) -> None:
        if released.send:
            self.peers.send(released.send)
            self.peers.flush()
        self.commit = max(self.commit, released.commit)
        if released.role is not None:
            self._role_changed(released.role)
        if released.confirmed_round:
            self.lease.after_persist(released)
        if released.reads:
            self.reads.answered(released.reads)
        if released.fetch is not None:
            self.peers.fetch(released.fetch)

    def _role_changed(self, change: RoleChange) -> None:
        if change.role is not Role.LEADER:
            self.reads.at_once = False
            self.lease.end()
        self.on_role(change)

    # --- long work --------------------------------------------------------------------------------------------------

    def begin_long_work(self) -> None:
        """Commands are executed now, and call breathe()."""
        self._next_control_s = clock.monotonic() + CONTROL_TURN_S
        self.doing = EXECUTING

    def breathe(self) -> None:
        """Called by commands every 1,000 records: let the other threads run, and the peers in when it takes long."""
        now_s = clock.monotonic()
        if now_s < self._next_control_s:
            return
        self._control_turn(now_s)
        self._next_control_s = clock.monotonic() + CONTROL_TURN_S

    def _control_turn(self, now_s: float) -> None:
        """Heartbeats, votes, ticks; no proposals, no apply (`applier.running`)."""
        self.turn_started_s = now_s
        self.loop.poll_registered()
        if now_s >= self._next_tick_s:
            self._tick(now_s)
        self._drain_core()

    def damaged(self, error: EntryDamaged) -> None:
        """A member waits until the leader has sent the entry again; who has nobody to ask stops."""
        if self.core.is_sole_voter():
            raise error
        log.error("%s: asking the other members for it", error)
        self.core.quarantine(error.index)
        self.commit = min(self.commit, error.index - 1)

    def _no_room_for_log(self, ready: Ready, error: DiskFull) -> None:
        """Nothing was written. The reserve is given back to the file system, and it is tried again."""
        self._open = ready
        freed = self.data.release_reserve()
        if not freed:
            log.error("no room for the log: %s", error)
        self._log_room_s = clock.monotonic() + (0.0 if freed else DISK_RETRY_S)

    def switched(self, meta: SnapshotMeta) -> None:
        """A leader's snapshot is the data now."""
        self.kv = self.machine.kv = self.data.kv
        for index in [index for index in self.recent if index <= self.kv.applied]:
            self.forget(index)
        self.applied = self.kv.applied
        self.applier.switched()
        self.commit = max(self.commit, self.applied)
        self.pending.skipped(self.applied)
        self.log_bytes_since_snapshot = self._log_bytes()
        self.reads.applied(self.applied)
        self.core.snapshot_available(meta)
        log.info("snapshot %s is installed: index %d", meta.name, meta.index)

    # --- the end ----------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """Nothing more will be executed: tell those who wait, then let the thread go."""
        while self.inbox:
            self.waiting.append(self.inbox.popleft())
        while self.waiting:
            self.waiting.popleft().fail(STOPPING)
        self._close_data()
        self.pending.fail_all(LEADERSHIP_LOST)
        self.reads.fail_all()
        self.peers.forwarding.fail_all()
        self.server.wake()
        self._see_clients_off()
        self.stopped.set()
        self._on_end()

    def _close_data(self) -> None:
        """No transaction stays open. What is executed and not shown is in the log."""
        try:
            if self.failure is None:
                self.applier.show()
            self.applier.abandon()
        except FATAL as error:
            self.fail(error)

    def _see_clients_off(self) -> None:
        """Every client gets what it is owed, and is then told goodbye; those that do not read are left behind."""
        try:
            self.server.finish()
            end_s = clock.monotonic() + GOODBYE_S
            while not self.server.finished and clock.monotonic() < end_s:
                self.loop.poll(0.01)
                self.loop.flush()
        except FATAL as error:
            self.fail(error)


def _mono_ms() -> int:
    return int(clock.monotonic() * 1000)


def boottime_ms() -> int:
    """The clock of leases: counts the time that the machine was suspended."""
    return int(clock.boottime() * 1000)


def _nothing() -> None:
    """The on_end of a driver that nobody waits for."""


def _is_bug(error: BaseException) -> bool:
    return not isinstance(error, RaftdbError) or isinstance(error, Bug)
