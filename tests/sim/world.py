"""The world of one seed: nodes, disks, network, clients, faults, and the heap of things that will happen.

Everything that happens is an *event*: a call of one of the `do_` methods with plain arguments. In a run from a seed
the events come from a heap ordered by simulated time and the dice of the seed decide what is put there. In a *replay*
the events come from a list, and nothing else happens: a message is delivered if one equal to it has been sent, a
flush returns if one is under way. So a failing run can be written down as a list of events, and any part of that list
can be replayed: that is what the shrinker needs. (For what does not happen there is no list: the liveness phase is run
again behind each part, `go_on`.)

What is deterministic rests on this: ints and tuples of ints as the only things hashed, dicts in the order of
insertion, no sets iterated, one `random.Random(seed)`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from raftdb.consensus.core import Change, ChangeKind, CoreConfig
from raftdb.consensus.handshake import refusal
from raftdb.consensus.messages import Envelope, Message
from raftdb.net.wire import Codec
from raftdb.types import Membership, NodeRef, Role, SnapshotMeta
from tests.linear import OK, UNKNOWN, History, Register, check
from tests.sim.disk import Disk, Snapshot
from tests.sim.faults import Faults, member
from tests.sim.judge import Judge, Violation
from tests.sim.node import SimNode
from tests.sim.settings import MS, TICK, Settings

MASK = (1 << 61) - 1
ENCODED = 15  # one message in so many plus one goes through the real encoding
FATES = 1021  # entries of the table of what happens to messages
KEYS = 3
OF_ONE_LIFE = frozenset(("do_tick", "do_sync", "do_apply", "do_snapshot", "do_fetch", "do_resume"))

Event = tuple[Any, ...]


class Client:
    """One operation at a time, with retries of what certainly was not executed."""

    __slots__ = ("hint", "number", "op", "tries")

    def __init__(self, number: int) -> None:
        self.number = number
        self.op = -1
        self.hint: str | None = None
        self.tries = 0


class Op:
    """One operation of a client."""

    __slots__ = ("began", "by", "client", "committed", "done", "failed", "index", "key", "lease", "read", "token")

    def __init__(self, client: int, key: int, read: bool, lease: bool, began: int, token: int) -> None:
        self.client = client
        self.key = key
        self.read = read
        self.lease = lease
        self.began = began  # what was acknowledged when it was asked
        self.token = token
        self.done = False
        self.failed = False  # the client was told that it is certainly not executed
        self.index = 0  # committed there
        self.committed = 0  # the event at which that was known first
        self.by = ""  # the node that answered a read


class Rest(NamedTuple):
    """What was still to come where a run was cut in two, so that a replay of its first part can go on by itself."""

    now: int
    dice: Any
    heap: list[Event]  # (when, name, args), in order
    lives: dict[str, int]
    fate: int
    hush: int
    next_op: int


class World:
    """See the module's text. `script`: replay these events instead of drawing them."""

    def __init__(self, settings: Settings, script: list[Event] | None = None, record: bool = False) -> None:
        self.settings = settings
        self.rng = random.Random(settings.seed)
        self.now = 0
        self.events = 0
        self.trace = 0
        self.heap: list[Event] = []
        self.order = count()
        self.script = script
        self.recorded: list[Event] | None = [] if record else None
        self.sent: dict[tuple[NodeRef, NodeRef, Message], int] = {}  # replay: all that was sent, and in which life
        self.quiet = False  # the liveness phase: no new faults
        self.hush = 0  # until then clients begin nothing

        ids = [f"n{n}" for n in range(1, settings.voters + settings.spares + 1)]
        formed = Membership(0, tuple(member(NodeRef(i, 1), True) for i in ids[: settings.voters]))
        self.judge = Judge(formed)
        self.disks: dict[NodeRef, Disk] = {}
        self.refs: dict[str, NodeRef] = {}
        self.nodes: dict[str, SimNode | None] = {}
        self.lives: dict[str, int] = {}
        self.rates: dict[str, float] = {}
        self.offsets: dict[str, int] = {}  # wall clocks, ms
        self.halted: dict[str, str] = {}  # stopped for a reason an operator must see to
        # What a disk held when it was lost. Its owner never speaks again, so a majority may still count it: whoever is
        # elected without it needs the others of that majority.
        self.graves: dict[NodeRef, Disk] = {}
        self.held: set[str] = set()  # the liveness phase: these stay down or paused
        self.backups: dict[NodeRef, Disk] = {}
        self.restored: set[NodeRef] = set()  # whose disk is an old one
        self.cuts: dict[tuple[str, str], int] = {}  # directed link -> how many cuts lie on it
        self.config = self._core_config()
        self.ids = ids
        for n, node_id in enumerate(ids):
            voter = n < settings.voters
            ref = NodeRef(node_id, 1)
            self.refs[node_id] = ref
            self.disks[ref] = Disk(formed if voter else Membership(0, ()))
            self.nodes[node_id] = None
            self.lives[node_id] = 0
            self.rates[node_id] = 1.0 + settings.drift * (2 * self.rng.random() - 1)
            self.offsets[node_id] = 0
        self.codec = Codec()
        self.fates = self._fates()
        self.fate = 0

        self.history = History(lambda: self.events)
        self.ops: dict[int, Op] = {}
        self.next_op = 0
        self.clients = [Client(n) for n in range(settings.clients)]
        self.versions: list[list[tuple[int, int]]] = [[] for _ in range(KEYS)]  # per key: (index, op)
        self.unknown = 0

    def _core_config(self) -> CoreConfig:
        s = self.settings
        low, high, beat = ((15, 30, 2), (4, 8, 1), (3, 4, 1))[s.haste]
        return CoreConfig(
            heartbeat_ticks=beat,
            election_ticks_min=low,
            election_ticks_max=high,
            inflight_messages_max=s.in_flight,
            append_bytes_max=self.rng.choice((1, 60, 1 << 20)),
            read_wait_ticks=40,
            snapshot_retry_ticks=8,
        )

    def _fates(self) -> list[tuple[int, ...]]:
        """What happens to a message: () lost, else the delays of its copies. Drawn once, walked through in a circle."""
        s, rng = self.settings, self.rng
        table: list[tuple[int, ...]] = []
        for _ in range(FATES):
            copies = 0 if rng.random() < s.drop else 1 + (rng.random() < s.duplicate)
            table.append(tuple(self._delay() for _ in range(copies)))
        return table

    def _delay(self) -> int:
        s, rng = self.settings, self.rng
        if rng.random() < s.late:
            return int(s.delay * 100 * rng.random())
        return int(s.delay * (0.5 + rng.random()))

    def core_seed(self, ref: NodeRef, starts: int) -> int:
        """The core draws its election timeouts from this."""
        return (
            self.settings.seed * 1_000_003 + self.ids.index(ref.id) * 7_919 + ref.incarnation * 104_729 + starts
        ) & MASK

    # --- running ----------------------------------------------------------------------------------------------------

    def later(self, delay: int, do: Callable[..., None], *args: Any) -> None:
        """Something will happen. In a replay only the script makes things happen."""
        if self.script is None:
            heappush(self.heap, (self.now + delay, next(self.order), do, args))

    def start(self) -> None:
        """Everything that begins by itself."""
        for node_id in self.ids:
            self.later(0, self.do_start, node_id)
        self.faults = Faults(self)
        self.faults.start()
        for client in self.clients:
            self.later(self.spread(500 * MS), self.draw_op, client.number)

    def run(self, events: int) -> None:
        """Until so many events have happened in all."""
        heap, recorded = self.heap, self.recorded
        limit = self.events + events
        number = self.events
        while number < limit and heap:
            self.now, _, do, args = heappop(heap)
            number += 1
            self.events = number
            if recorded is not None and do.__name__.startswith("do_"):
                recorded.append((self.now, do.__name__, args))
            do(*args)

    def act(self, do: Callable[..., None], *args: Any) -> None:
        """Make something happen now."""
        if self.recorded is not None:
            self.recorded.append((self.now, do.__name__, args))
        do(*args)

    def do_quiet(self) -> None:
        """The liveness phase begins: no new faults, quick disks, and the members stay as they are."""
        self.quiet = True
        self.do_promote(False)

    def do_promote(self, promote: bool) -> None:
        """From now on leaders make voters of learners that have caught up, or leave them what they are."""
        self.config = self.config._replace(promote_learners=promote)
        for node in self.nodes.values():
            if node is not None:
                node.core.config = self.config

    def replay(self) -> None:
        """The script, event by event."""
        assert self.script is not None
        for now, name, args in self.script:
            self.now = now
            self.events += 1
            getattr(self, name)(*args)

    def rest(self) -> Rest:
        """Everything that will happen by itself from here on."""
        heap = [(when, do.__name__, args) for when, _, do, args in sorted(self.heap, key=lambda event: event[:2])]
        return Rest(self.now, self.rng.getstate(), heap, dict(self.lives), self.fate, self.hush, self.next_op)

    def go_on(self, rest: Rest) -> None:
        """After a replay: things happen by themselves again, those that were under way at the end of what is replayed.

        Where the replay left something out there may be nodes that nothing is under way for: nobody is left waiting for
        his own clock or disk.
        """
        self.script = None
        self.now, self.fate, self.hush, self.next_op = rest.now, rest.fate, rest.hush, rest.next_op
        self.rng.setstate(rest.dice)
        self.faults = Faults(self)
        ticking = set()
        for when, name, args in rest.heap:
            if name in OF_ONE_LIFE:
                node_id, life, *others = args
                if life != rest.lives[node_id]:
                    continue
                args = (node_id, self.lives[node_id], *others)
                ticking |= {node_id} if name == "do_tick" else set()
            heappush(self.heap, (when, next(self.order), getattr(self, name, None) or getattr(self.faults, name), args))
        for node in [node for node in self.nodes.values() if node is not None]:
            if node.id not in ticking:
                self.later(self.rng.randrange(TICK) + 1, self.do_tick, node.id, node.life)
            self.later(MS, self.do_sync, node.id, node.life)
            self.later(MS, self.do_apply, node.id, node.life)
            if node.snapshotting:
                self.start_snapshot(node, node.make_snapshot())
            if node.fetching is not None:
                self.start_fetch(node, node.fetching)

    def same(self, node: SimNode, life: int) -> bool:
        """Was this meant for this life of the node? In a replay lives are not told apart, since crashes may have been
        left out; so an event that came too late does not stand in the record."""
        if node.life == life or self.script is not None:
            return True
        if self.recorded:
            self.recorded.pop()
        return False

    def spread(self, mean: int) -> int:
        return int(self.rng.expovariate(1.0 / mean)) + 1

    def _mark(self, a: int, b: int) -> None:
        self.trace = (self.trace * 1_000_003 ^ (self.now + a * 31 + b)) & MASK

    # --- nodes ------------------------------------------------------------------------------------------------------

    def do_start(self, node_id: str) -> None:
        if self.nodes[node_id] is not None or node_id in self.halted or node_id in self.held:
            return
        life = self.lives[node_id] = self.lives[node_id] + 1
        ref = self.refs[node_id]
        if ref in self.restored and not self.noticed(ref, self.disks[ref]):
            self.halted[node_id] = "nobody who is up could know that this is a backup"
            return
        node = SimNode(self, ref, self.disks[ref], self.config, life, self.rates[node_id])
        self.nodes[node_id] = node
        if ref not in self.restored:
            self.judge.started(node)
        else:
            self.start_restored(node)
            if node_id in self.halted:
                return
        node.turn()
        self.later(self.rng.randrange(TICK) + 1, self.do_tick, node_id, life)
        if self.settings.reads and life > 1 and not self.quiet:
            self.draw_read(node_id, False)

    def do_tick(self, node_id: str, life: int) -> None:
        node = self.nodes[node_id]
        if node is None or not self.same(node, life):
            return
        self.later(int(TICK / node.rate), self.do_tick, node_id, life)
        if not node.paused:
            node.tick()
            self.trace = (self.trace * 1_000_003 ^ (self.now + node.commit)) & MASK

    def start_sync(self, node: SimNode) -> bool:
        """A flush begins. True: it takes time, and `do_sync` ends it."""
        s = self.settings
        if not s.sync or self.quiet:
            return False
        dice = self.rng.random()
        span = int(s.sync * (0.5 + dice)) if dice >= s.slow_disk else s.sync * 100
        self.later(span, self.do_sync, node.id, node.life)
        return True

    def do_sync(self, node_id: str, life: int) -> None:
        node = self.nodes[node_id]
        if node is not None and self.same(node, life) and node.writing is not None:
            node.synced()

    def start_apply(self, node: SimNode) -> None:
        self.later(self.spread(self.settings.apply), self.do_apply, node.id, node.life)

    def do_apply(self, node_id: str, life: int) -> None:
        node = self.nodes[node_id]
        if node is None or not self.same(node, life) or not node.applying:
            return
        if node.writing is not None or node.paused:
            self.later(MS, self.do_apply, node_id, life)
        else:
            node.apply_later()

    def do_crash(self, node_id: str, dice: int, power: bool) -> None:
        node = self.nodes[node_id]
        if node is None:
            return
        self.judge.counts["crashes"] += 1
        self.lose(node.disk, random.Random(dice), power)
        self.nodes[node_id] = None

    def lose(self, disk: Disk, rng: random.Random, power: bool) -> None:
        """What the end of a process, or of the power, does to a disk."""
        for name in disk.crash(rng, power, self.settings.torn):
            self.judge.counts[name] += 1

    def do_blackout(self, dice: int) -> None:
        """The power of all nodes fails at once. Who is down has his last writes in the kernel's memory, or had."""
        for n, node_id in enumerate(self.ids):
            if self.nodes[node_id] is None:
                self.lose(self.disks[self.refs[node_id]], random.Random(dice + n), True)
            self.do_crash(node_id, dice + n, True)

    def do_stop(self, node_id: str, dice: int, power: bool) -> None:
        """Somebody stops a process in good order; with `power` the power fails meanwhile, or right after."""
        node = self.nodes[node_id]
        if node is None or node.paused:
            return
        self.judge.counts["stops"] += 1
        rng = random.Random(dice)
        steps = node.disk.stop()
        for _ in range(1 + rng.randrange(3) if power else 3):
            next(steps, None)
        if power:
            self.lose(node.disk, rng, True)
        self.nodes[node_id] = None

    def do_pause(self, node_id: str) -> None:
        node = self.nodes[node_id]
        if node is not None:
            node.paused = True
            self.judge.counts["pauses"] += 1

    def do_hold(self, node_id: str) -> None:
        """The liveness phase: it stays as it is, down or paused."""
        self.held.add(node_id)

    def do_resume(self, node_id: str, life: int) -> None:
        """Clients' requests, then what peers have sent, and only then the clock is seen to have moved on."""
        node = self.nodes[node_id]
        if node is None or not self.same(node, life) or not node.paused or node_id in self.held:
            return
        node.paused = False
        for op in list(node.lease_reads):
            self.do_lease_read(op, node_id, life)
        parked, node.parked = node.parked, []
        for op in parked:
            self.do_request(op, node_id)
            if op in node.lease_reads:
                self.do_lease_read(op, node_id, life)
        backlog, node.backlog = node.backlog, []
        for sender, message in backlog:
            node.receive(sender, message)

    def do_jump(self, node_id: str, by_ms: int) -> None:
        self.offsets[node_id] += by_ms

    # --- disks ------------------------------------------------------------------------------------------------------

    def do_wipe(self, node_id: str, incarnation: int) -> None:
        """The data directory is gone; what comes back under this id is somebody else, who knows no cluster yet."""
        self.do_crash(node_id, 0, True)
        self.judge.counts["wipes"] += 1
        self.graves[self.refs[node_id]] = self.disks.pop(self.refs[node_id])
        ref = self.refs[node_id] = NodeRef(node_id, incarnation)
        self.disks[ref] = Disk(Membership(0, ()))
        self.halted.pop(node_id, None)

    def do_damage(self, node_id: str, index: int) -> None:
        """A bit of this entry's record flips.

        Not once the faults have stopped: the majority that is then chosen is one of whole disks and may have nobody to
        spare; with a damaged disk in it nobody can be elected, and none should be (seed 1255554015 of c939a52: of three
        voters one was cut off, and this was one of the other two). What is asked after that is a flip for which a whole
        majority is left: liveness.flip.
        """
        if not self.quiet:
            self.damage(node_id, index)

    def damage(self, node_id: str, index: int) -> None:
        log = self.disks[self.refs[node_id]].log
        if log.first <= index <= log.last:
            log.damaged.add(index)
            self.judge.counts["damages"] += 1

    def do_last_damage(self, node_id: str, index: int) -> None:
        """As `do_damage`, in the liveness phase: nothing else is under way any more."""
        self.damage(node_id, index)

    def do_spoil(self, node_id: str) -> None:
        """The state is lost, kv and snapshots; the log is there, but does not reach back far enough."""
        self.do_crash(node_id, 0, True)
        disk = self.disks[self.refs[node_id]]
        disk.snapshots.clear()
        disk.kv = disk.log.snapshot = None
        self.judge.counts["spoiled"] += 1

    def do_backup(self, node_id: str) -> None:
        ref = self.refs[node_id]
        self.backups[ref] = self.disks[ref].backup()

    def do_restore(self, node_id: str) -> None:
        """Somebody puts the backup back. (Not once the faults have stopped: this one may have been under way then.)"""
        if self.quiet:
            return
        self.do_crash(node_id, 0, True)
        ref = self.refs[node_id]
        if ref in self.backups:
            self.graves.setdefault(ref, self.disks[ref])  # put back twice: what it once had is in the first grave
            self.restored.add(ref)
            self.disks[ref] = self.backups[ref].copy()
            self.judge.counts["restores"] += 1

    # --- network ----------------------------------------------------------------------------------------------------

    def do_cut(self, pairs: tuple[tuple[str, str], ...]) -> None:
        self.judge.counts["cuts"] += 1
        for pair in pairs:
            self.cuts[pair] = self.cuts.get(pair, 0) + 1
            source, target = pair
            if (node := self.nodes[target]) is not None:
                node.connected.pop(self.refs[source], None)

    def do_cut_for_good(self, pairs: tuple[tuple[str, str], ...]) -> None:
        """The liveness phase: these links are cut from now on, and no others."""
        self.cuts = dict.fromkeys(pairs, 1 << 30)

    def do_heal(self, pairs: tuple[tuple[str, str], ...]) -> None:
        for pair in pairs:
            left = self.cuts.get(pair, 0) - 1
            if left > 0:
                self.cuts[pair] = left
            else:
                self.cuts.pop(pair, None)

    def send(self, node: SimNode, envelopes: tuple[Envelope, ...]) -> None:
        sender, life = node.ref, node.disk.log.starts
        source = node.id
        if self.script is not None:
            for to, message in envelopes:
                self.sent[sender, to, message] = life
            return
        cuts, fates, now, heap, order = self.cuts, self.fates, self.now, self.heap, self.order
        fate = self.fate
        for to, message in envelopes:
            fate = fate + 1 if fate < FATES - 1 else 0
            if cuts and (source, to.id) in cuts:
                continue
            if not fate & ENCODED:
                message = self.through_the_wire(message)
            for delay in fates[fate]:
                heappush(heap, (now + delay, next(order), self.do_deliver, (sender, life, to, message)))
        self.fate = fate

    def through_the_wire(self, message: Message) -> Message:
        """Encode and decode: what arrives must be what was sent."""
        code, payload = self.codec.dump(message)
        arrived: Message = self.codec.load(code, payload)
        if arrived != message or type(arrived) is not type(message):
            raise Violation("wire", f"{message} arrives as {arrived}")
        self.judge.counts["encoded"] += 1
        return arrived

    def do_deliver(self, sender: NodeRef, life: int, to: NodeRef, message: Message) -> None:
        node = self.nodes.get(to.id)
        if node is None or node.ref != to:
            return
        if self.script is not None:
            life = self.sent.get((sender, to, message), 0)
            if not life:
                return
        if node.connected.get(sender) != life and not self.shake_hands(node, sender, life):
            return
        if node.paused:
            if len(node.backlog) < 500:
                node.backlog.append((sender, message))
            return
        node.receive(sender, message)
        self.trace = (self.trace * 1_000_003 ^ (self.now + node.commit)) & MASK

    def shake_hands(self, node: SimNode, sender: NodeRef, life: int) -> bool:
        """The first message over a new connection: both sides look at what the other says of itself.

        Who is told that its disk is a backup stops, until an operator gives it a new incarnation.
        """
        peer = self.nodes[sender.id]
        if peer is None or peer.ref != sender or peer.disk.log.starts != life:
            return False  # that life is over, and its connections with it
        for one, other in ((node, peer), (peer, node)):
            reason = refusal(one.core, other.greeting(), one.seen.get(other.ref))
            if reason is not None:
                self.judge.counts["refused peers"] += 1
                if "restored from a backup" in reason:
                    if other.ref not in self.restored:
                        raise Violation("I23", f"{one.id} takes {other.id} for a backup: {reason}")
                    self.halt(other.id, reason)
                return False
        node.seen[sender] = node.connected[sender] = life
        peer.seen[node.ref] = node.disk.log.starts
        node.core.unreachable(sender)
        return True

    def halt(self, node_id: str, reason: str) -> None:
        """The process ends and says why; starting it again does not help."""
        self.do_crash(node_id, 0, False)
        self.halted[node_id] = reason
        self.judge.counts["halts"] += 1

    def noticed(self, ref: NodeRef, disk: Disk) -> bool:
        """Would anybody who is up know that this disk is an old one? (Worked out without asking the core's rule.)"""
        for node in self.nodes.values():
            if node is None or node.ref == ref or node.paused:
                continue
            if node.seen.get(ref, 0) > disk.log.starts + 1:
                return True
            if node.core.role is Role.LEADER and node.core.term == disk.log.hard.term:
                peer = node.core.peers.get(ref)
                if peer is not None and peer.match > disk.log.last:
                    return True
        return False

    def start_restored(self, node: SimNode) -> None:
        """The first to be greeted is somebody who remembers more than this disk does; he must refuse."""
        for other in self.nodes.values():
            if other is not None and other is not node and not other.paused:
                reason = refusal(other.core, node.greeting(), other.seen.get(node.ref))
                if reason is not None:  # as a backup; or, being removed meanwhile, as one that is no member
                    self.halt(node.id, reason)
                    return

    # --- snapshots --------------------------------------------------------------------------------------------------

    def start_snapshot(self, node: SimNode, snapshot: Snapshot) -> None:
        self.later(self.spread(20 * MS + self.settings.files), self.do_snapshot, node.id, node.life, snapshot)

    def do_snapshot(self, node_id: str, life: int, snapshot: Snapshot) -> None:
        node = self.nodes[node_id]
        if node is None or not self.same(node, life):
            return
        if node.writing is not None:
            self.later(MS, self.do_snapshot, node_id, life, snapshot)
            return
        if self.script is not None:
            index, chains = snapshot.meta.index, self.judge.committed_chains
            if index > node.applied or chains[index] != snapshot.meta.chain:
                snapshot = node.make_snapshot()
        node.snapshot_done(snapshot)

    def start_fetch(self, node: SimNode, meta: SnapshotMeta) -> None:
        leader = node.core.leader
        source = leader.id if leader is not None else node.id
        node.disk.begin_part(meta)
        span = self.settings.delay * 3 + (0 if self.quiet else self.settings.files)
        self.later(self.spread(span), self.do_fetch, node.id, node.life, source, meta)

    def do_fetch(self, node_id: str, life: int, source: str, meta: SnapshotMeta) -> None:
        """The file has been pulled, or not: its owner is gone, or has swept it, or the link is cut."""
        node, owner = self.nodes[node_id], self.nodes[source]
        if node is None or not self.same(node, life):
            return
        if node.writing is not None:
            self.later(MS, self.do_fetch, node_id, life, source, meta)
            return
        if self.script is not None and node.fetching is not None:
            meta = node.fetching
        if node.fetching != meta:
            return
        node.fetching = None
        snapshot = owner.disk.snapshots.get(meta.name) if owner is not None else None
        if snapshot is None or snapshot.meta != meta or (source, node_id) in self.cuts:
            node.core.fetch_failed(meta)
        elif node.disk.receive(snapshot):
            node.fetched(snapshot)
        else:
            self.judge.counts["refused files"] += 1
            node.fetching = meta
            self.start_fetch(node, meta)  # once more, from its beginning
        node.turn()

    # --- clients ----------------------------------------------------------------------------------------------------

    def draw_op(self, number: int) -> None:
        """A client begins an operation."""
        client, s, rng = self.clients[number], self.settings, self.rng
        if self.now < self.hush:
            self.later(self.hush - self.now, self.draw_op, number)
            return
        op = self.next_op = self.next_op + 1
        read = rng.random() < s.reads
        self.later(0, self.do_op, op, number, rng.randrange(KEYS), read, read and rng.random() < s.leases)
        self.later(s.patience, self.do_give_up, op)
        client.op = op
        self._request(client)

    def draw_read(self, node_id: str, lease: bool) -> None:
        """Somebody reads at this very node: at one that leads no more, or has just started."""
        if self.quiet:
            return
        op = self.next_op = self.next_op + 1
        self.later(0, self.do_op, op, len(self.clients), self.rng.randrange(KEYS), True, lease)
        self.clients.append(Client(len(self.clients)))
        self.later(self.rng.randrange(min(self.settings.delay, 3 * MS)) + 1, self.do_request, op, node_id)
        self.later(self.settings.patience, self.do_give_up, op)

    def draw_write(self, node_id: str) -> None:
        """Somebody writes at this very node: at one that may lead by now, though all clients wait for another."""
        if self.quiet or self.now < self.hush:
            return
        op = self.next_op = self.next_op + 1
        self.later(0, self.do_op, op, len(self.clients), self.rng.randrange(KEYS), False, False)
        self.clients.append(Client(len(self.clients)))
        self.later(1, self.do_request, op, node_id)
        self.later(self.settings.patience, self.do_give_up, op)

    def do_op(self, op: int, number: int, key: int, read: bool, lease: bool) -> None:
        token = self.history.invoke((number, self.unknown), key, "read" if read else "write", None if read else op)
        self.ops[op] = Op(number, key, read, lease, self.judge.acknowledged, token)
        while number >= len(self.clients):
            self.clients.append(Client(len(self.clients)))
        self.clients[number].op = op
        self.clients[number].tries = 0

    def _request(self, client: Client) -> None:
        node_id = client.hint or self.ids[self.rng.randrange(len(self.ids))]
        client.hint = None
        client.tries += 1
        self.later(self.settings.delay, self.do_request, client.op, node_id)

    def do_request(self, op: int, node_id: str) -> None:
        """An operation arrives at a node."""
        if op not in self.ops:
            return
        node, wanted = self.nodes[node_id], self.ops[op]
        if node is None or wanted.done:
            return
        if node.paused:
            if len(node.parked) < 20:
                node.parked.append(op)
            return
        if not wanted.read:
            if not node.write(op):
                self.refused(node, op)
            node.turn()
            return
        if wanted.lease and node.open_lease_read(op):
            self.later(self.spread(MS if op & 1 else 20 * MS), self.do_lease_read, op, node_id, node.life)
            return
        self.ask_index(node, op)

    def ask_index(self, node: SimNode, op: int) -> None:
        node.reads[op] = -1
        node.core.read_index(op)
        node.turn()

    def do_lease_read(self, op: int, node_id: str, life: int) -> None:
        """The read transaction is open: may it be used?"""
        node = self.nodes[node_id]
        if node is None or not self.same(node, life) or op not in node.lease_reads or self.ops[op].done:
            return
        if node.paused:
            return  # it goes on when the node does
        view = node.lease_read(op)
        if view is None:
            self.ask_index(node, op)
        else:
            self.judge.counts["lease reads"] += 1
            self.served(node, op, view, "lease")

    def refused(self, node: SimNode, op: int) -> None:
        """The node says: certainly not executed. The client may ask another one."""
        leader = node.core.leader
        self.later(self.settings.delay, self.do_retry, op, leader.id if leader is not None else "")

    def do_retry(self, op: int, hint: str) -> None:
        if op not in self.ops:
            return
        wanted = self.ops[op]
        client = self.clients[wanted.client]
        if wanted.done or client.op != op:
            return
        if client.tries >= 20:
            self.finish(op)
            wanted.failed = True
            self.history.failed(wanted.token)
            return
        client.hint = hint or None
        if client.tries > 2:
            self.later(self.spread(100 * MS), self.do_again, op)
        else:
            self._request(client)

    def do_again(self, op: int) -> None:
        if op in self.ops and not self.ops[op].done:
            self._request(self.clients[self.ops[op].client])

    def do_give_up(self, op: int) -> None:
        """The client has waited long enough: it will never know."""
        if op not in self.ops or self.ops[op].done:
            return
        self.unknown += 1
        self.judge.counts["unknown"] += 1
        self.finish(op)
        self.history.unknown(self.ops[op].token)

    def finish(self, op: int) -> None:
        wanted = self.ops[op]
        wanted.done = True
        if wanted.client < self.settings.clients:
            self.later(self.spread(self.think()), self.draw_op, wanted.client)

    def think(self) -> int:
        """The mean pause of a client. In the liveness phase there is less to do, and all clients together write less
        than a quarter of what a member can be sent who is sent one entry at a time, or he would never catch up."""
        s = self.settings
        return max(10 * s.think, 4 * s.clients * self.entry_span()) if self.quiet else s.think

    def entry_span(self) -> int:
        """What it takes to send one entry and have its acknowledgement: a round trip and a flush."""
        return 2 * self.settings.delay + self.settings.sync + MS

    def wrote(self, node: SimNode, ops: tuple[int, ...]) -> None:
        """Applied and answered."""
        for op in ops:
            self.judge.counts["acknowledged"] += 1
            if not self.ops[op].done:
                self.history.ok(self.ops[op].token, None)
                self.finish(op)

    def read_ready(self, node: SimNode, op: int, index: int) -> None:
        if op not in node.reads:
            return
        if index < 0:
            del node.reads[op]
            self.refused(node, op)
        elif index <= node.applied:
            del node.reads[op]
            self.served(node, op, node.applied, "ReadIndex")
        else:
            node.reads[op] = index

    def served(self, node: SimNode, op: int, view: int, how: str) -> None:
        """A read is answered from the state at `view`."""
        wanted = self.ops[op]
        wanted.by = node.id
        self.judge.read(node, wanted.began, view, how)
        if not wanted.done:
            self.history.ok(wanted.token, self.value(wanted.key, view))
            self.finish(op)

    def value(self, key: int, index: int) -> int | None:
        """What a node that has applied `index` holds under `key`."""
        for at, op in reversed(self.versions[key]):
            if at <= index:
                return op
        return None

    def committed(self, low: int, high: int) -> None:
        """The judge saw these entries committed for the first time."""
        payloads = self.judge.payloads
        self.judge.counts["commits"] += high - low + 1
        for index in range(low, high + 1):
            payload = payloads[index]
            for at in range(0, len(payload), 4):
                op = int.from_bytes(payload[at : at + 4], "big")
                wanted = self.ops[op]
                if wanted.index:
                    raise Violation("I19", f"operation {op} is committed at {wanted.index} and again at {index}")
                if wanted.failed:
                    raise Violation("I18", f"operation {op}, refused for certain, is committed at {index}")
                wanted.index, wanted.committed = index, self.events
                self.versions[wanted.key].append((index, op))

    def judge_history(self) -> None:
        """I16: what the clients saw.

        Writes of unknown fate are not unknown to us: what is not in the one history of committed entries never
        happened, and what is there had happened when it was known to be committed.
        """
        known = [op for op in self.history.all() if op.outcome != UNKNOWN]
        for op in [op for op in self.history.all() if op.outcome == UNKNOWN]:
            if op.name == "write" and (mine := self.ops[op.argument]).index:
                known.append(op._replace(outcome=OK, returned=max(mine.committed, op.invoked + 1)))
        verdict = check(known, Register(), steps_max=400_000, seconds_max=None)
        if not verdict.good:
            raise Violation("I16", str(verdict))

    # --- operators --------------------------------------------------------------------------------------------------

    def leader(self) -> SimNode | None:
        """The leader of the highest term, if it is up."""
        best: SimNode | None = None
        for node in self.nodes.values():
            if node is not None and node.core.role is Role.LEADER and (best is None or node.core.term > best.core.term):
                best = node
        return best

    def do_change(self, node_id: str, change: Change) -> None:
        if not self.quiet:
            self.do_last_change(node_id, change)

    def do_ghost(self, node_id: str) -> None:
        """Somebody who was removed is to be added again as he was, and the leader was there when he was removed."""
        node = self.nodes[node_id]
        if node is None or node.paused or self.quiet or node.writing is not None:
            return
        known = [ref for ref in self.judge.removed if ref in node.core.retired and self.refs[ref.id] == ref]
        if known:
            node.change(Change(ChangeKind.ADD_LEARNER, member(known[0], False)))

    def do_last_change(self, node_id: str, change: Change) -> None:
        """As `do_change`, in the liveness phase."""
        node = self.nodes[node_id]
        if node is not None and not node.paused and (node.writing is None or node.overlap):
            node.change(change)

    def do_transfer(self, node_id: str, target: str | None) -> None:
        node = self.nodes[node_id]
        if node is not None and not node.paused and not self.quiet:
            node.transfer(target)
