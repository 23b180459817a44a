"""The small scope: every state that a small cluster can get into, breadth first, over the implementation itself.

Three nodes (the real core in the simulated node of node.py, with its disk), a few terms, a few entries, a bag of
messages that may be delivered in any order, twice, or never. A step is one of

    timeout n     node n's election timeout passes and it asks for votes
    deliver m     a message of the bag arrives (it leaves the bag; `again`: it stays, within a budget)
    propose n     the leader n takes a client's entry
    beat n        the leader n starts a heartbeat round
    read n        a client reads at n
    crash n       n dies and starts again

and what a step makes a node write is flushed before the step ends, or (within the budget of crashes) the node dies
on the way: before the flush has returned, with the transaction kept or lost, in both cases after what may leave
early has left. (That messages wait for a flush needs no steps of its own: they can wait in the bag.)

After each step the judge looks at everything, as in a run from a seed; what he remembers (who led, who voted, what is
committed) is part of the state. Clocks are taken out: between any two steps as much time may have passed as it takes to
lose faith in a leader. (So nothing is learnt about leases here, and the pre-vote, which only saves time, is left out.)

One search begins with three empty nodes, the others where n1 leads and has committed its no-op with n2.

A node is never changed in place: a step works on a clone. Nodes that agree in all that matters (`key_of`) are kept
once, so a state is three references, the bag, and the judge's memory.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, NamedTuple

from raftdb.consensus import candidate
from raftdb.consensus.chance import SplitMix64
from raftdb.consensus.core import Core, CoreConfig
from raftdb.consensus.log import RaftLog
from raftdb.consensus.messages import Envelope, Message
from raftdb.consensus.progress import Progress
from raftdb.consensus.reads import Batch, Reads
from raftdb.consensus.state import State as CoreState
from raftdb.types import Kind, Membership, NodeRef, Proposal, Role
from tests.sim.disk import Disk
from tests.sim.faults import member
from tests.sim.judge import Judge
from tests.sim.node import SimNode
from tests.sim.runner import explain

IDS = ("n1", "n2", "n3")
REFS = tuple(NodeRef(node_id, 1) for node_id in IDS)


class Bounds(NamedTuple):
    """How small the scope is."""

    terms: int = 3
    entries: int = 2
    bag: int = 5  # messages under way; what is sent beyond that is lost
    crashes: int = 1
    again: int = 1  # deliveries that leave the message in the bag
    reads: int = 1
    beats: int = 1


LATER = 1_000  # ticks: whatever was sent and not answered was sent long ago
FLUSHED, LOST, KEPT = ENDS = ("flushed", "dies before the flush", "dies after the flush")

Sent = tuple[NodeRef, NodeRef, Message]
Past = tuple[Any, ...]


class State(NamedTuple):
    """One state, as it is kept."""

    nodes: tuple[SimNode, ...]
    past: Past  # what the judge remembers
    bag: tuple[Sent, ...]
    used: tuple[int, ...]  # entries, crashes, again, reads, beats


class Scope:
    """Stands in for the world around three nodes."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.config = CoreConfig(
            heartbeat_ticks=1,
            election_ticks_min=2,
            election_ticks_max=2,
            inflight_messages_max=2,
            promote_learners=False,
        )
        self.settings = SimpleNamespace(
            overlap=False, in_flight=2, batch=1, apply=0, snapshot_entries=99, keep_entries=0, hold_news=False
        )
        self.now = 0
        self.offsets = dict.fromkeys(IDS, 0)
        self.graves: dict[NodeRef, Disk] = {}
        self.disks: dict[NodeRef, Disk] = {}
        self.judge = Judge(Membership(0, tuple(member(ref, True) for ref in REFS)))
        self.out: list[tuple[NodeRef, NodeRef, Message]] = []
        self.began: dict[int, int] = {}
        self.found: Counter[str] = Counter()

    # --- what a node asks of its world ------------------------------------------------------------------------------

    def core_seed(self, ref: NodeRef, starts: int) -> int:
        return 1

    def send(self, node: SimNode, envelopes: tuple[Envelope, ...]) -> None:
        self.out += [(node.ref, to, message) for to, message in envelopes]

    def start_sync(self, node: SimNode) -> bool:
        return True

    def committed(self, low: int, high: int) -> None:
        self.found["commits"] += high - low + 1

    def read_ready(self, node: SimNode, op: int, index: int) -> None:
        if op in node.reads and index >= 0:
            node.reads[op] = index
            node.serve()

    def served(self, node: SimNode, op: int, view: int, how: str) -> None:
        self.judge.read(node, self.began[op], view, how)
        self.found["reads"] += 1

    def wrote(self, node: SimNode, ops: tuple[int, ...]) -> None:
        self.found["acknowledged"] += 1

    def refused(self, node: SimNode, op: int) -> None:
        """Nobody waits."""

    # --- states -----------------------------------------------------------------------------------------------------

    def first(self) -> State:
        formed = self.judge.memberships[0]
        nodes = [SimNode(self, ref, Disk(formed), self.config, 1, 1.0) for ref in REFS]  # type: ignore[arg-type]
        for node in nodes:
            settle_clocks(node)
        return State(tuple(nodes), self.past(), (), (0, 0, 0, 0, 0))

    def past(self) -> Past:
        """The judge's memory as a value."""
        j = self.judge
        return (
            tuple(sorted(j.leaders.items())),
            tuple(j.committed_chains),
            tuple(j.terms),
            tuple(j.digests),
            (j.committed, j.committed_in, j.proved, j.acknowledged),
            tuple(sorted(self.began.items())),
            tuple(sorted(j.votes.items())),
            tuple(sorted(j.chains.items())),
        )

    def remember(self, past: Past) -> None:
        j = self.judge
        leaders, chains, terms, digests, numbers, began, votes, entries = past
        j.leaders, j.votes, j.chains, self.began = dict(leaders), dict(votes), dict(entries), dict(began)
        j.committed_chains, j.terms, j.digests = list(chains), list(terms), list(digests)
        j.committed, j.committed_in, j.proved, j.acknowledged = numbers
        j.payloads = [b""] * len(terms)


# --- clones -----------------------------------------------------------------------------------------------------------

_CORE = tuple(CoreState.__slots__)
_LOG = tuple(RaftLog.__slots__)
_READS = tuple(Reads.__slots__)
_PROGRESS = tuple(Progress.__slots__)
_core_of, _log_of, _reads_of, _progress_of = (attrgetter(*names) for names in (_CORE, _LOG, _READS, _PROGRESS))


def clone_node(node: SimNode) -> SimNode:
    """A node that can be changed without changing this one."""
    twin = SimNode.__new__(SimNode)
    twin.__dict__ = fields = node.__dict__.copy()
    for name in ("inbox", "proposed", "reads", "waiting", "seen", "connected", "quarantined", "matches"):
        fields[name] = fields[name].copy()
    twin.disk = node.disk.copy()
    twin.disk.pending = node.disk.pending.copy()
    twin.core = clone_core(node.core, twin)
    return twin


def clone_core(core: Core, owner: SimNode) -> Core:
    twin = Core.__new__(Core)
    for name, value in zip(_CORE, _core_of(core), strict=True):
        setattr(twin, name, value)
    for name in ("early", "late", "open_late", "done_reads", "votes", "sizes", "retired", "transfer_failed"):
        setattr(twin, name, getattr(core, name).copy())
    twin.chance = SplitMix64(core.chance.state)
    twin.log = clone_slots(core.log, RaftLog.__new__(RaftLog), _LOG, _log_of)
    twin.log.view = owner.disk.log
    twin.log.unstable, twin.log.holes = core.log.unstable.copy(), core.log.holes.copy()
    twin.log.healing = core.log.healing.copy()
    twin.reads = clone_slots(core.reads, Reads.__new__(Reads), _READS, _reads_of)
    twin.reads.waiting, twin.reads.asked = core.reads.waiting.copy(), core.reads.asked.copy()
    twin.reads.remote = core.reads.remote.copy()
    twin.reads.batches = deque(Batch(b.round, b.index, b.local, b.remote) for b in core.reads.batches)
    twin.own = clone_progress(core.own)
    twin.peers = {ref: clone_progress(peer) for ref, peer in core.peers.items()}
    twin.others = [twin.peers[peer.ref] for peer in core.others]
    twin.voters = [twin.own if peer is core.own else twin.peers[peer.ref] for peer in core.voters]
    return twin


def clone_progress(peer: Progress) -> Progress:
    twin: Progress = clone_slots(peer, Progress.__new__(Progress), _PROGRESS, _progress_of)
    twin.inflight = peer.inflight.copy()
    return twin


def clone_slots(old: Any, new: Any, names: tuple[str, ...], values: Any) -> Any:
    for name, value in zip(names, values(old), strict=True):
        setattr(new, name, value)
    return new


# --- what matters -----------------------------------------------------------------------------------------------------


def settle_clocks(node: SimNode) -> None:
    """Take out of a node how many ticks have passed, so that states that differ in nothing else are one."""
    core = node.core
    core.elapsed = core.heartbeat_elapsed = core.open_ticks = 0
    core.ticks = LATER
    core.contact = core.timeout = core.config.election_ticks_min
    core.chance.state = 7
    node.matches.clear()
    for peer in (core.own, *core.others):
        peer.heard_tick = peer.goal_tick = LATER
        peer.offer_tick = peer.probe_tick = 0
        peer.goal = 0
        if peer.inflight:
            peer.inflight = deque((last, size, number, 0) for last, size, number, _ in peer.inflight)


def key_of(node: SimNode) -> tuple[Any, ...]:
    """All that matters in a node."""
    core, disk = node.core, node.disk.log
    log, reads = core.log, core.reads
    return (
        node.ref,
        core.role,
        core.term,
        core.vote,
        core.leader,
        core.pre,
        tuple(sorted(core.votes.items())),
        core.commit,
        core.applied,
        core.round,
        core.confirmed_round,
        core.hard_dirty,
        tuple([(e.index, e.chain) for e in log.unstable]),
        log.offset,
        log.truncate_from,
        disk.hard,
        disk.starts,
        tuple([e.chain for e in disk.items]),
        tuple(
            [
                (p.ref, p.match, p.next, p.mode, p.probe_sent, p.probe_round, p.commit_sent, p.round, *p.inflight)
                for p in (core.own, *core.others)
            ]
        ),
        len(reads.waiting),
        reads.context,
        tuple([(b.round, b.index, len(b.local), *b.remote.items()) for b in reads.batches]),
        tuple(reads.remote.items()),
        tuple(node.reads.items()),
        node.writing is not None and node.writing.persist,
        tuple(core.open_late),
        tuple(node.proposed.items()),
    )


class Search:
    """Breadth first from the first state."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.scope = Scope(bounds)
        self.seen: set[int] = set()
        self.known: dict[tuple[Any, ...], SimNode] = {}
        self.keys: dict[int, int] = {}  # id of a kept node -> hash of its key
        self.steps = 0
        self.depth = 0
        self.kinds: Counter[str] = Counter()

    def keep(self, node: SimNode) -> SimNode:
        """The one node that stands for all that agree with this one in what matters."""
        key = key_of(node)
        kept = self.known.setdefault(key, node)
        if kept is node:
            self.keys[id(node)] = hash(key)
        return kept

    def run(self, start: State, states_max: int, seconds_max: float) -> str:
        """Until so many states are known, or all, or the time is up. Returns "" or what was found."""
        deadline = time.monotonic() + seconds_max
        frontier: list[tuple[State, Any]] = [(start, ())]
        while frontier:
            following: list[tuple[State, Any]] = []
            for state, path in frontier:
                for step in self.actions(state):
                    for end in ENDS if state.used[1] < self.bounds.crashes else ENDS[:1]:
                        self.steps += 1
                        try:
                            reached, wrote = self.act(state, *step, end)
                        except Exception as error:  # whatever it is, it is a finding
                            rule, text, where = explain(error)
                            return f"{rule}: {text}\n{where}\n{tell((path, (*step, end)))}"
                        if reached is not None:
                            following.append((reached, (path, (*step, end))))
                        if not wrote:
                            break
                if len(self.seen) >= states_max or time.monotonic() > deadline:
                    return ""
            frontier = following
            self.depth += 1
        return ""

    def first(self) -> State:
        """Three nodes with nothing."""
        state = self.scope.first()
        return state._replace(nodes=tuple([self.keep(node) for node in state.nodes]))

    def led(self, state: State) -> State:
        """n1 leads term 1 and has committed its no-op with n2; n3 has heard nothing yet."""
        state = self.force(state, "timeout", 0, None)
        while state.bag:
            state = self.force(state, "deliver", REFS.index(state.bag[0][1]), (0, False))
        if state.nodes[0].core.role is not Role.LEADER or state.nodes[0].applied != 1:
            raise AssertionError("n1 should lead by now")
        return state._replace(bag=(), used=(0, 0, 0, 0, 0))

    def force(self, state: State, name: str, number: int, argument: Any) -> State:
        """One step. n3 hears nothing."""
        reached, _ = self.act(state, name, number, argument, FLUSHED)
        if reached is None:
            raise AssertionError(f"{name} {number} leads nowhere new")
        return reached._replace(bag=tuple(sent for sent in reached.bag if REFS[2] not in sent[:2]))

    def actions(self, state: State) -> Iterator[tuple[str, int, Any]]:
        bounds = self.bounds
        entries, crashes, again, reads, beats = state.used
        for number, (_, to, _) in enumerate(state.bag):
            yield "deliver", REFS.index(to), (number, False)
            if again < bounds.again:
                yield "deliver", REFS.index(to), (number, True)
        for number, node in enumerate(state.nodes):
            core = node.core
            if crashes < bounds.crashes:
                yield "crash", number, None
            if core.role is not Role.LEADER and core.term < bounds.terms:
                yield "timeout", number, None
            if core.role is Role.LEADER:
                if entries < bounds.entries:
                    yield "propose", number, entries
                if beats < bounds.beats:
                    yield "beat", number, None
            if reads < bounds.reads and core.leader is not None:
                yield "read", number, reads

    def act(self, state: State, name: str, number: int, argument: Any, end: str) -> tuple[State | None, bool]:
        """One step on a clone: (the state it leads to, None if it is known; was anything written)."""
        scope = self.scope
        scope.remember(state.past)
        node = clone_node(state.nodes[number])
        for other in state.nodes:
            scope.disks[other.ref] = other.disk
        scope.disks[node.ref] = node.disk
        scope.out = []
        bag, used = list(state.bag), list(state.used)
        node = self.do(node, name, argument, bag, used)
        wrote = node.writing is not None
        if wrote and end == FLUSHED:
            while node.writing is not None:
                node.synced()
        elif wrote:
            used[1] += 1
            node = self.crash(node, end == KEPT)
        settle_clocks(node)
        for sent in scope.out:
            if sent not in bag and len(bag) < self.bounds.bag:
                bag.append(sent)
        nodes = list(state.nodes)
        nodes[number] = self.keep(node)
        past = scope.past()
        key = hash((*[self.keys[id(n)] for n in nodes], frozenset(bag), *used, past))
        if key in self.seen:
            return None, wrote
        self.seen.add(key)
        self.kinds[name if end == FLUSHED else f"{name}, {end}"] += 1
        return State(tuple(nodes), past, tuple(bag), tuple(used)), wrote

    def do(self, node: SimNode, name: str, argument: Any, bag: list[Sent], used: list[int]) -> SimNode:
        core = node.core
        if name == "deliver":
            sender, _, message = bag[argument[0]]
            if argument[1]:
                used[2] += 1
            else:
                del bag[argument[0]]
            node.receive(sender, message)
        elif name == "timeout":
            candidate.elect(core, transfer=False)
            node.turn()
        elif name == "propose":
            used[0] += 1
            index = core.propose((Proposal(Kind.COMMANDS, 1, 1, bytes([argument])),))
            node.proposed[index] = (core.term, (argument,))
            node.turn()
        elif name == "beat":
            used[4] += 1
            core.want_round = True
            node.turn()
        elif name == "read":
            used[3] += 1
            self.scope.began[argument] = self.scope.judge.acknowledged
            node.reads[argument] = -1
            core.read_index(argument)
            node.turn()
        else:
            used[1] += 1
            node = self.crash(node, False)
        return node

    def crash(self, node: SimNode, keep: bool) -> SimNode:
        disk = node.disk
        if keep:
            disk.sync()
        disk.pending.clear()
        node = SimNode(self.scope, node.ref, disk, self.scope.config, node.life + 1, 1.0)  # type: ignore[arg-type]
        node.turn()
        while node.writing is not None:
            node.synced()
        return node


def tell(path: Any) -> str:
    """The steps that lead to a state, one per line."""
    lines: list[str] = []
    while path:
        path, step = path
        lines.append(f"{step[0]} {IDS[step[1]]} {step[2] if step[2] is not None else ''} {step[3]}")
    return "\n".join(reversed(lines))


#: (where a search begins, its bounds): what one of them has no room for, another looks at.
SEARCHES = (
    ("led", Bounds(terms=3, entries=1, bag=4, crashes=0, again=0, reads=0, beats=0)),
    ("led", Bounds(terms=3, entries=2, bag=4, crashes=1, again=0, reads=0, beats=0)),
    ("led", Bounds(terms=2, entries=1, bag=5, crashes=0, again=0, reads=1, beats=1)),
    ("empty", Bounds(terms=3, entries=1, bag=5, crashes=1, again=1, reads=0, beats=0)),
)


class Outcome(NamedTuple):
    """What came of one search."""

    start: str
    bounds: Bounds
    states: int
    steps: int
    depth: int
    cpu_s: float
    finding: str

    def __str__(self) -> str:
        rate = self.states / self.cpu_s if self.cpu_s else 0
        return (
            f"{self.start}, {self.bounds}: {self.states} states, {self.steps} steps, depth {self.depth} done, "
            f"{rate:,.0f} states per CPU-second: {self.finding or '0 violations'}"
        )


def search(states_max: int, seconds_max: float) -> Iterator[Outcome]:
    """All searches, each with its part of the states."""
    for start, bounds in SEARCHES:
        one = Search(bounds)
        began = time.process_time()
        first = one.first()
        found = one.run(
            one.led(first) if start == "led" else first, states_max // len(SEARCHES), seconds_max / len(SEARCHES)
        )
        yield Outcome(start, bounds, len(one.seen), one.steps, one.depth, time.process_time() - began, found)


def main(states_max: int, seconds_max: float) -> int:
    states, findings = 0, 0
    for outcome in search(states_max, seconds_max):
        print(outcome, flush=True)
        states += outcome.states
        findings += bool(outcome.finding)
    print(f"{states} states, {findings} violations")
    return 1 if findings else 0
