"""One simulated node: the driver of the design around the real core, with a simulated disk, clock and network.

The order of effects is that of the real driver (ARCHITECTURE.md): drain the inbox -> core -> `Ready.send` -> one log
commit -> `persisted()` -> `Released.send` -> apply -> reads and replies. It is told apart from the disk, which
survives, as a process is.

Two ways of waiting for the disk are played: the real driver's (nothing happens in the node until the flush has
returned; what arrives waits), and the one the core also allows (messages and ticks go on meanwhile).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from raftdb.consensus.core import Busy, Change, ChangeRefused, Core, CoreConfig, NotLeader
from raftdb.consensus.handshake import Greeting
from raftdb.consensus.lease import Lease, lease_ms_max
from raftdb.consensus.messages import AppendReply, Heartbeat, HeartbeatReply, Message
from raftdb.consensus.ready import Ready, Released
from raftdb.consensus.stamp import CLOCK_AGE_MAX_MS, Deviation, StampClock, WallClocks, deviation
from raftdb.errors import EntryDamaged
from raftdb.types import Entry, Kind, Membership, NodeRef, Persist, Proposal, Role, SnapshotMeta
from tests.sim.disk import Disk, Kv, Snapshot, chain_of, decode_members, fold
from tests.sim.judge import Violation

if TYPE_CHECKING:
    from tests.sim.world import World

TICK_MS = 50
WALL_MS = 1_700_000_000_000  # where wall clocks begin
WAITING_MAX = 64  # writes that wait for a place in an entry
APPLY_MAX = 4  # entries per transaction of kv, when applying takes time
TURN_MAX = 200  # stages of one turn
INBOX_MAX = 1_000  # messages that wait for the disk


class SimNode:
    """A process. A crash throws it away; a start makes a new one around the same disk."""

    def __init__(self, world: World, ref: NodeRef, disk: Disk, config: CoreConfig, life: int, rate: float) -> None:
        self.world = world
        self.judge = world.judge
        self.ref = ref
        self.id = ref.id
        self.disk = disk
        self.life = life
        self.rate = rate  # of its clocks, against true time
        self.paused = False
        self.backlog: list[tuple[NodeRef, Message]] = []
        self.parked: list[int] = []  # ops that came while it was paused
        self.inbox: list[tuple[NodeRef, Message]] = []
        self.writing: Ready | None = None
        self.overlap = world.settings.overlap
        self.quarantined: dict[int, int] = {}  # damaged index -> how many Readies there had been when it was noticed
        self.readies = 2
        self.seen: dict[NodeRef, int] = {}  # peer -> the highest number of starts it has shown
        self.connected: dict[NodeRef, int] = {}  # peer -> starts of the life we are connected to
        self.waiting: list[int] = []  # ops
        self.proposed: dict[int, tuple[int, tuple[int, ...]]] = {}  # index -> (term, ops)
        self.reads: dict[int, int] = {}  # op -> index to wait for, -1 while unknown
        # op -> (applied index of the read transaction opened for it, commit index at that time)
        self.lease_reads: dict[int, tuple[int, int]] = {}
        self.matches: dict[tuple[NodeRef, int], int] = {}  # (peer, term) -> match, for the judge
        self.target = 0  # released: may be applied
        self.applying = False
        self.snapshotting = False
        self.fetching: SnapshotMeta | None = None

        disk.boot()
        log = disk.log
        kv = disk.kv
        assert kv is not None
        self.applied, self.digest, self.members = kv
        self.commit = self.applied
        self.role: Role | None = None
        self.term = log.hard.term
        self._voters: tuple[NodeRef, ...] = ()
        self._voters_of: Membership | None = None
        self.core = Core(
            ref,
            config,
            log,
            log.hard,
            log.membership,
            log.previous_membership,
            self.applied,
            self.applied,
            chain_of,
            world.core_seed(ref, log.starts),
            log.starts,
            stamp=log.items[-1].stamp if log.items else (log.snapshot.stamp if log.snapshot else 0),
            snapshot=log.snapshot if log.snapshot is not None and log.snapshot.name in disk.snapshots else None,
        )
        election_ms = config.election_ticks_min * TICK_MS
        self.lease = Lease(lease_ms_max(election_ms, TICK_MS), election_ms, TICK_MS)
        self.clocks = WallClocks()
        self.stamps = StampClock(self.core.log.last_stamp, self.clock_ms())
        self.target_ms: int | None = None  # the leader's idea of the time, and when it was heard
        self.target_at_ms = 0
        for index in sorted(log.damaged):
            self.quarantine(index)
        self.readies = 4

    # --- one turn ---------------------------------------------------------------------------------------------------

    def receive(self, sender: NodeRef, message: Message) -> None:
        """A message of a peer has arrived."""
        if self.writing is not None and not self.overlap:
            if len(self.inbox) < INBOX_MAX:
                self.inbox.append((sender, message))
            return
        self.step(sender, message)
        self.turn()

    def step(self, sender: NodeRef, message: Message) -> None:
        try:
            self.core.step(sender, message)
        except EntryDamaged as error:
            self.quarantine(error.index)
        if self.core.role is not self.role or self.core.term != self.term:
            self.role_changed()
        kind = type(message)
        if kind is AppendReply:
            if self.role is Role.LEADER:
                self.judge.matched(self, sender)
        elif kind is HeartbeatReply:
            self.clocks.hear(sender, message.wall_ms, self.clock_ms())  # type: ignore[union-attr]
        elif kind is Heartbeat and self.core.leader == sender:
            self.target_ms, self.target_at_ms = message.wall_ms, self.clock_ms()  # type: ignore[union-attr]

    def tick(self) -> None:
        if self.writing is not None and not self.overlap:
            return
        core = self.core
        self.look_at_clocks()
        core.tick()
        if core.role is Role.LEADER and core.snapshot_wanted:
            self.want_snapshot()
        self.turn()

    def turn(self) -> None:
        """Carry out what the core wants, until it wants no more or the disk is busy."""
        self.core.hold_news = self.world.settings.hold_news and bool(self.proposed or self.waiting)
        for _ in range(TURN_MAX):
            try:
                ready = self.core.ready()
            except EntryDamaged as error:
                self.quarantine(error.index)
                continue
            if ready is None:
                break
            self.readies += 1
            if ready.round or ready.lease_end:
                self.lease.before_send(ready, self.clock_ms())
            if ready.send:
                self.judge.early(self, ready.send)
                self.world.send(self, ready.send)
            if ready.sends_only:
                break
            persist = ready.persist
            if persist is not None:
                self.judge.persist(self, persist)
                self.disk.write(persist)
                self.writing = ready
                if self.world.start_sync(self):
                    break
                self.disk.sync()
            self.finish(ready)
        else:
            raise Violation("I22", f"{self.id} is never done with its turn")
        self.look()

    def synced(self) -> None:
        """The flush has returned."""
        ready = self.writing
        assert ready is not None
        self.disk.sync()
        self.finish(ready)
        inbox, self.inbox = self.inbox, []
        for sender, message in inbox:
            self.step(sender, message)
        self.turn()

    def finish(self, ready: Ready) -> None:
        """Stage two: what the durable state allows."""
        self.writing = None
        released = self.core.persisted(ready)
        if released.confirmed_round:
            self.lease.after_persist(released)
        if self.core.role is not self.role or self.core.term != self.term:
            self.role_changed()
        if released.send:
            self.judge.late(self, released.send)
            self.world.send(self, released.send)
        persist = ready.persist
        if persist is not None:
            if persist.install is not None:
                self.installed(persist.install)
            if persist.membership is not None or persist.truncate_from is not None or persist.install is not None:
                self.judge.members_fit(self)
            if persist.rewrite:
                self.forget_healed()
        if released.commit > self.applied or released.reads or released.role is not None or released.fetch is not None:
            self.release(released)

    def release(self, released: Released) -> None:
        self.target = released.commit
        if released.commit > self.applied:
            self.look()
            if not self.world.settings.apply:
                self.apply(released.commit)
            elif not self.applying:
                self.applying = True
                self.world.start_apply(self)
        for read in released.reads:
            self.world.read_ready(self, read.read_id, read.index)
        if released.role is not None and released.role.role is not Role.LEADER:
            self.give_up_waiting()
        if released.fetch is not None and self.fetching != released.fetch:
            self.fetching = released.fetch
            self.world.start_fetch(self, released.fetch)

    def look(self) -> None:
        """Show the judge what has changed."""
        core = self.core
        if core.role is not self.role or core.term != self.term:
            self.role_changed()
        commit = core.commit
        if commit != self.commit:
            self.judge.commit(self, commit)
            self.commit = commit

    def role_changed(self) -> None:
        self.role, self.term = self.core.role, self.core.term
        if self.role is Role.LEADER:
            self.proposed.clear()  # of a former term: whether they are executed is not known
            self.stamps.observe(self.core.log.last_stamp, self.clock_ms())
            self.clocks.forget_all_but(())
        self.judge.role(self)

    # --- state ------------------------------------------------------------------------------------------------------

    def apply_later(self) -> None:
        """A part of what has been released meanwhile."""
        self.applying = False
        if self.target > self.applied:
            self.apply(min(self.target, self.applied + APPLY_MAX))
            if self.target > self.applied and not self.quarantined:
                self.applying = True
                self.world.start_apply(self)
        self.turn()

    def apply(self, upto: int) -> None:
        """One kv transaction: the entries and the applied index together."""
        log = self.disk.log
        digest, applied = self.digest, self.applied
        done: list[int] = []
        for index in range(applied + 1, upto + 1):
            if index in log.damaged:
                self.quarantine(index)
                break
            entry = log.items[index - log.first]
            digest = fold(digest, entry.chain)
            self.judge.apply(self, entry, digest)
            if entry.kind == Kind.MEMBERSHIP:
                self.members = decode_members(entry)
            if index in self.proposed:
                done.append(index)
            applied = index
        self.digest, self.applied = digest, applied
        self.disk.kv = Kv(applied, digest, self.members)
        self.core.applied_to(applied)
        self.judge.bounds(self)
        for index in done:
            self.answer(index)
        if self.reads:
            self.serve()
        if self.waiting:
            self.propose()
        if applied - self.snapshot_index() >= self.world.settings.snapshot_entries:
            self.want_snapshot()

    def answer(self, index: int) -> None:
        """Applied: whoever asked for this entry gets the reply."""
        term, ops = self.proposed.pop(index)
        if self.disk.log.term(index) == term:
            self.judge.acknowledge(self, index)
            self.world.wrote(self, ops)

    def installed(self, meta: SnapshotMeta) -> None:
        """The log begins at the snapshot: kv is switched over to what the file holds."""
        if meta.index > self.applied:  # (else only the base of a damaged log has moved, the state is ahead of it)
            snapshot = self.disk.snapshots[meta.name]
            self.applied, self.digest, self.members = meta.index, snapshot.digest, meta.membership
            self.disk.switch_kv(Kv(self.applied, self.digest, self.members))
            self.disk.mark_dirty()
        self.commit = max(self.commit, self.applied)
        self.fetching = None
        self.forget_healed()
        self.core.snapshot_available(meta)
        self.core.applied_to(self.applied)
        self.judge.bounds(self)
        if self.reads:
            self.serve()

    def fetched(self, snapshot: Snapshot) -> None:
        """The leader's file is durable here."""
        self.fetching = snapshot.meta
        if self.core.snapshot_received(snapshot.meta) is not None:
            self.fetching = None  # not installed; the leader's next offer, of this file or another, is looked at anew

    def snapshot_index(self) -> int:
        snapshot = self.disk.log.snapshot
        return 0 if snapshot is None else snapshot.index

    def want_snapshot(self) -> None:
        """A snapshot of the state as it is now, unless there is one already or on its way."""
        if not self.snapshotting and self.applied > self.snapshot_index():
            self.snapshotting = True
            self.disk.making = snapshot = self.make_snapshot()
            self.world.start_snapshot(self, snapshot)

    def make_snapshot(self) -> Snapshot:
        log, index = self.disk.log, self.applied
        meta = SnapshotMeta(
            f"raft_{self.id}_{index}",
            index,
            log.term(index),
            log.chain(index),
            log.items[index - log.first].stamp if index >= log.first else 0,
            self.members,
            100,
            self.digest.to_bytes(32, "big"),
        )
        return Snapshot(meta, self.digest)

    def snapshot_done(self, snapshot: Snapshot) -> None:
        """The file is durable: name it in the log, trim what is below the older of the two kept."""
        self.snapshotting, self.disk.making = False, None
        self.disk.flush_kv()  # (it does so now and then, from a thread of its own)
        log = self.disk.log
        if snapshot.meta.index <= self.snapshot_index():
            return
        older = log.snapshot
        self.disk.put_snapshot(snapshot)
        log.snapshot = snapshot.meta
        self.core.snapshot_available(snapshot.meta)
        if older is not None:
            log.trim(min(older.index, self.applied - self.world.settings.keep_entries) + 1)
            self.core.log_trimmed()
        self.judge.bounds(self)
        self.turn()

    def quarantine(self, index: int) -> None:
        if index not in self.quarantined:
            self.quarantined[index] = self.readies
            self.core.quarantine(index)

    def forget_healed(self) -> None:
        damaged = self.disk.log.damaged
        self.quarantined = {index: when for index, when in self.quarantined.items() if index in damaged}

    def known_holes(self) -> list[int]:
        """What was known to be damaged before the messages that leave now were thought of."""
        return [index for index, when in self.quarantined.items() if when < self.readies - 1]

    # --- clients ----------------------------------------------------------------------------------------------------

    def write(self, op: int) -> bool:
        """A client's write. False: certainly not executed."""
        if self.core.role is not Role.LEADER or len(self.waiting) >= WAITING_MAX:
            return False
        self.waiting.append(op)
        self.propose()
        return True

    def propose(self) -> None:
        """One entry holds what waits; a new one waits until there are fewer than `in_flight` uncommitted."""
        settings = self.world.settings
        if len(self.proposed) >= settings.in_flight or (self.writing is not None and not self.overlap):
            return
        ops = tuple(self.waiting[: settings.batch])
        payload = b"".join([op.to_bytes(4, "big") for op in ops])
        try:
            index = self.core.propose((Proposal(Kind.COMMANDS, self.stamp(), ops[0], payload),))
        except (NotLeader, Busy):
            self.give_up_waiting()
            return
        del self.waiting[: len(ops)]
        self.proposed[index] = (self.core.term, ops)

    def give_up_waiting(self) -> None:
        """No longer the leader: what was not proposed is certainly not executed."""
        waiting, self.waiting = self.waiting, []
        for op in waiting:
            self.world.refused(self, op)

    def change(self, change: Change) -> None:
        """An operator's membership change."""
        try:
            self.core.propose_membership(change, self.stamp(), 7)
        except (NotLeader, Busy, ChangeRefused):
            self.judge.counts["refused"] += 1
        self.turn()

    def transfer(self, target: str | None) -> None:
        """An operator's wish to hand over."""
        try:
            self.core.transfer(target)
            self.judge.counts["transfers"] += 1
        except (NotLeader, Busy, ChangeRefused):
            self.judge.counts["refused"] += 1
        self.turn()

    def open_lease_read(self, op: int) -> bool:
        """Open the read transaction of a lease read; the lease is looked at after that, when it is served."""
        if self.core.role is not Role.LEADER:
            return False
        self.lease_reads[op] = self.applied, self.core.commit
        return True

    def lease_read(self, op: int) -> int | None:
        """The state to answer from, if the lease holds and the state is not older than what others may have seen.

        One from before the no-op of the term was applied may lack what former leaders acknowledged. One from before
        everything known to be committed was applied may lack what followers have shown to their readers.
        """
        view, commit = self.lease_reads.pop(op)
        if view < commit:
            return None
        return view if self.lease.holds_for(view, self.core.noop_index, self.clock_ms()) else None

    def serve(self) -> None:
        """Reads whose index is applied."""
        for op in [op for op, index in self.reads.items() if 0 <= index <= self.applied]:
            del self.reads[op]
            self.world.served(self, op, self.applied, "ReadIndex")

    # --- clocks -----------------------------------------------------------------------------------------------------

    def clock_ms(self) -> int:
        """The monotonic clock of this node, which counts suspended time too."""
        return int(self.world.now * self.rate) // 1000

    def wall_ms(self) -> int:
        return WALL_MS + self.world.now // 1000 + self.world.offsets[self.id]

    def look_at_clocks(self) -> None:
        """Once per tick: what goes out with heartbeats and their replies, and whether this clock is fit to lead."""
        core, wall, now = self.core, self.wall_ms(), self.clock_ms()
        if core.role is Role.LEADER:
            self.target_ms = self.clocks.target(self.ref, wall, self.voters(), now)
            self.target_at_ms = now
            core.wall_ms = wall if self.target_ms is None else self.target_ms
            core.age_ms = self.lease.age_ms(now)
        else:
            core.wall_ms = wall
        target, age = self.target_ms, now - self.target_at_ms
        known = target is not None and age <= CLOCK_AGE_MAX_MS
        core.fit = not known or deviation(wall, target + age) is not Deviation.UNFIT  # type: ignore[operator]

    def stamp(self) -> int:
        """For an entry that is proposed now."""
        now = self.clock_ms()
        target = self.target_ms
        return self.stamps.next(None if target is None else target + now - self.target_at_ms, now)

    def greeting(self) -> Greeting:
        """What this node says of itself when it connects."""
        log = self.disk.log
        return Greeting(self.ref, log.starts, log.hard.term, log.last)

    # --- for the judge ----------------------------------------------------------------------------------------------

    def entry(self, index: int) -> Entry | None:
        """What this node takes to be at `index`, on the disk or not yet; None below the base or beyond the end."""
        log, disk = self.core.log, self.disk.log
        if index >= log.offset:
            return log.unstable[index - log.offset] if index <= log.last else None
        return disk.items[index - disk.first] if log.first <= index <= disk.last and index >= disk.first else None

    def stamp_before(self, index: int, persist: Persist) -> int:
        """The stamp of the entry before `index`, in the transaction about to be written or on the disk; 0 if
        unknown."""
        first = persist.entries[0].index
        if index > first:
            return persist.entries[index - 1 - first].stamp
        log = self.disk.log
        return log.items[index - 1 - log.first].stamp if log.first < index <= log.last + 1 else 0

    def voters(self) -> tuple[NodeRef, ...]:
        membership = self.core.membership
        if membership is not self._voters_of:
            self._voters_of = membership
            self._voters = tuple(m.ref for m in membership.voters)
        return self._voters

    def membership_before(self, index: int, persist: Persist | None = None) -> Membership | None:
        """The members as of index - 1, by the entries on the disk and in the transaction about to be written."""
        if persist is not None:
            if persist.truncate_from is not None:
                index_on_disk = min(index, persist.truncate_from)
            else:
                index_on_disk = index
            for entry in reversed(persist.entries):
                if entry.index < index and entry.kind == Kind.MEMBERSHIP:
                    return decode_members(entry)
            index = index_on_disk
        for entry in reversed(self.disk.log.member_entries):
            if entry.index < index:
                return decode_members(entry)
        return self.disk.log.base_members
