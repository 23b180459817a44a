"""Transcripts: a script of commands for a whole cluster, and what the cores did in answer, side by side in one file.

    # What this turn shows.
    command
    command
    ----
    what happened

A file is a sequence of such turns, separated by blank lines. test_scripts.py compares; with RAFTDB_REWRITE=1 it writes
what happened instead of comparing: read it before you commit it.

Nothing happens by itself. Messages lie on the network until they are delivered, in the order they were sent:

    cluster nodes=3 [learners=1] [leader=1] [inflight=2] [append_bytes=100] ...   n1, n2, n3 (leader=1: n1 is elected)
    deliver [from to [Type]]    everything under way now (of that link, of that type), once
    settle                      deliver until nothing is under way
    drop / repeat / swap [from to [Type]]    lose it / it comes twice / reverse its order
    cut n1 [n2] / join n1 [n2]  messages sent from now on over these links are lost / are carried
    tick n1 [count]             time passes for one node;  pass 15: for all of them, without a word on the network
    silence n1 ...              the least election timeout has passed there since a leader was heard
    timeout n1                  the election timeout of n1 fires
    propose n1 a b / read n1 7 / transfer n1 [n2] / change n1 remove n2 / stepdown n1 reason / set n1 fit=no
    disk n1 slow|fast / sync n1 the log commits of n1 wait for `sync`
    crash n1 ... / restart n1 ...   what was not synced is gone
    wipe n1 incarnation         a new, empty disk
    backup n1 / restore n1      the disk is put back to what it was
    damage n1 5 [header] / rot n1 5 [header]    entry 5 fails its checksum / and nobody has noticed yet
    snapshot n1 5 / trim n1 6 / fetched n2 / unfetched n2
    forge n9 n1 Type field=value ...   a message that n9 never sent
    clock 100 / lease n1        time of the leases in ms
    status [n1 ...] / log n1
    quietly <command>           without the output
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raftdb import format as text
from raftdb.consensus import messages as m
from raftdb.consensus.core import Busy, Change, ChangeKind, ChangeRefused, Core, CoreConfig, NotLeader
from raftdb.consensus.lease import Lease
from raftdb.consensus.ready import Ready, Released
from raftdb.errors import Bug, StorageError
from raftdb.types import Entry, HardState, Kind, Membership, NodeRef, Persist, SnapshotMeta
from tests.consensus.cluster import Disk, Node, chain_of, commands, decode_members, member, membership_of

SETTLE_WAVES_MAX = 200
KINDS = {Kind.NOOP: "noop", Kind.TIME: "time"}


class Clustered(Node):
    """A node of a script: beside core and disk, what the script may do to it."""

    def __init__(self, node_id: str, disk: Disk, config: CoreConfig, incarnation: int, seed: int) -> None:
        super().__init__(node_id, disk, config, incarnation, seed)
        self.is_slow = False
        self.saved: Disk | None = None
        self.to_fetch: SnapshotMeta | None = None
        self.lease = Lease(600, 750, 50)

    @property
    def id(self) -> str:
        return self.ref.id


class Script:
    """The interpreter: one cluster, one network, one list of output lines."""

    def __init__(self) -> None:
        self.nodes: dict[str, Clustered] = {}
        self.network: list[tuple[NodeRef, NodeRef, Any]] = []
        self.severed: set[tuple[str, str]] = set()
        self.lines: list[str] = []
        self.config = CoreConfig()
        self.now_ms = 0

    # --- running ----------------------------------------------------------------------------------------------------

    def run(self, command: str) -> list[str]:
        """The lines that one command causes."""
        self.lines = []
        words = command.split()
        is_quiet = words[0] == "quietly"
        if is_quiet:
            words = words[1:]
        options = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        arguments = [word for word in words[1:] if "=" not in word]
        verb: Callable[..., None] = getattr(self, "do_" + words[0])
        verb(*arguments, **options)
        return [] if is_quiet else self.lines

    def say(self, node: Clustered, line: str) -> None:
        self.lines.append(f"{node.id} {line}")

    def act(self, node: Clustered, action: Callable[[Core], Any]) -> Any:
        """Do something to a core, then carry its effects out. Errors are output; a Bug stops the node."""
        if node.core is None:
            self.say(node, "is down")
            return None
        try:
            result = action(node.core)
            self.turn(node)
        except (NotLeader, Busy, ChangeRefused) as error:
            self.say(node, f"{type(error).__name__}: {error}")
            return None
        except (Bug, StorageError) as error:
            self.say(node, f"stops: {error}")
            node.crash()
            return None
        return result

    def turn(self, node: Clustered) -> None:
        while node.core is not None:
            ready = node.core.ready()
            if ready is None:
                return
            node.lease.before_send(ready, self.now_ms)
            if ready.lease_end:
                self.say(node, "lease ends")
            self.send(node, ready.send)
            if ready.sends_only:
                continue
            if node.is_slow and ready.persist is not None:
                self.say(node, f"disk waits: {persist_text(ready.persist)}")
                node.pending = ready
                continue
            self.finish(node, ready)

    def finish(self, node: Clustered, ready: Ready) -> None:
        assert node.core is not None
        if ready.persist is not None:
            node.disk.commit(ready.persist)
            self.say(node, f"disk {persist_text(ready.persist)}")
        released = node.core.persisted(ready)
        node.lease.after_persist(released)
        self.released(node, released)

    def released(self, node: Clustered, released: Released) -> None:
        role = released.role
        if role is not None:
            leader = "" if role.leader is None or role.leader == node.ref else f", follows {self.name(role.leader)}"
            reason = f" ({role.reason})" if role.reason else ""
            self.say(node, f"is {role.role.value} in t{role.term}{leader}{reason}")
        self.send(node, released.send)
        if released.fetch is not None:
            node.to_fetch = released.fetch
            self.say(node, f"fetches {released.fetch.name}")
        for read in released.reads:
            self.say(node, f"read {read.read_id} " + ("refused" if read.index < 0 else f"at {read.index}"))
        known = len(node.applied)
        node.apply(released)
        done = node.applied[known:]
        if done:
            self.say(node, "applies " + " ".join(entry_text(entry) for entry in done))

    def send(self, node: Clustered, envelopes: tuple[m.Envelope, ...]) -> None:
        for to, message in envelopes:
            is_lost = (node.id, to.id) in self.severed
            self.say(node, f"{'-x' if is_lost else '->'} {self.name(to)} {message_text(message)}")
            if not is_lost:
                self.network.append((node.ref, to, message))

    def name(self, ref: NodeRef) -> str:
        """n2, or n2/7 for a life that is not the first (n2/0: a place that is kept)."""
        return ref.id if ref.incarnation == 1 else f"{ref.id}/{ref.incarnation}"

    def ref(self, name: str) -> NodeRef:
        node_id, _, incarnation = name.partition("/")
        return NodeRef(node_id, int(incarnation) if incarnation else 1)

    # --- cluster ----------------------------------------------------------------------------------------------------

    def do_cluster(self, nodes: str = "3", learners: str = "0", leader: str = "", **options: str) -> None:
        names = {"inflight": "inflight_messages_max", "append_bytes": "append_bytes_max"}
        settings: dict[str, Any] = {names.get(key, key): int(value) for key, value in options.items()}
        self.config = CoreConfig(**settings)
        voters = tuple(f"n{i}" for i in range(1, int(nodes) + 1))
        others = tuple(f"n{i}" for i in range(int(nodes) + 1, int(nodes) + int(learners) + 1))
        for node_id in voters + others:
            self.add_node(node_id, membership_of(*voters, learners=others), 1)
        if leader:
            self.elect(f"n{leader}")
        self.lines = []

    def add_node(self, node_id: str, membership: Membership, incarnation: int) -> None:
        self.nodes[node_id] = Clustered(node_id, Disk(membership), self.config, incarnation, int(node_id[1:]))
        self.turn(self.nodes[node_id])

    def elect(self, node_id: str) -> None:
        self.do_silence(*self.nodes)
        self.do_timeout(node_id)
        self.do_settle()
        self.do_tick(node_id, str(self.config.heartbeat_ticks))
        self.do_settle()

    def do_node(self, name: str) -> None:
        """A node without data that is to join."""
        ref = self.ref(name)
        self.add_node(ref.id, Membership(0, ()), ref.incarnation)
        self.lines = []

    def do_silence(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            core = self.nodes[name].core
            if core is not None:
                core.contact = max(core.contact, core.config.election_ticks_min)

    def do_timeout(self, name: str) -> None:
        node = self.nodes[name]
        if node.core is not None:
            node.core.elapsed = node.core.timeout
        self.act(node, lambda core: core.tick())

    def do_tick(self, name: str, count: str = "1") -> None:
        for _ in range(int(count)):
            self.act(self.nodes[name], lambda core: core.tick())

    def do_pass(self, count: str) -> None:
        for _ in range(int(count)):
            for name in self.nodes:
                if self.nodes[name].core is not None:
                    self.do_tick(name)

    # --- network ----------------------------------------------------------------------------------------------------

    def select(self, sender: str = "", to: str = "", kind: str = "") -> list[tuple[NodeRef, NodeRef, Any]]:
        chosen = []
        for item in self.network:
            fits = (not sender or item[0].id == sender) and (not to or item[1].id == to)
            if fits and (not kind or type(item[2]).__name__ == kind):
                chosen.append(item)
        self.network = [item for item in self.network if not any(item is one for one in chosen)]
        return chosen

    def do_deliver(self, *which: str) -> None:
        for sender, to, message in self.select(*which):
            self.arrive(sender, to, message)

    def arrive(self, sender: NodeRef, to: NodeRef, message: Any) -> None:
        node = self.nodes.get(to.id)
        if node is None or node.core is None or node.ref != to:
            return
        self.act(node, lambda core: self.step(node, core, sender, message))

    def step(self, node: Clustered, core: Core, sender: NodeRef, message: Any) -> None:
        reason = core.step(sender, message)
        if reason is not None:
            self.say(node, f"on {type(message).__name__} from {self.name(sender)}: {reason}")

    def do_settle(self) -> None:
        for _ in range(SETTLE_WAVES_MAX):
            if not self.network:
                return
            self.do_deliver()
        self.lines.append("!!! never quiet")

    def do_drop(self, *which: str) -> None:
        self.select(*which)

    def do_repeat(self, *which: str) -> None:
        chosen = self.select(*which)
        self.network += chosen + chosen

    def do_swap(self, *which: str) -> None:
        self.network += reversed(self.select(*which))

    def links(self, one: str, other: str) -> set[tuple[str, str]]:
        others = [other] if other else [name for name in self.nodes if name != one]
        return {(one, name) for name in others} | {(name, one) for name in others}

    def do_cut(self, one: str, other: str = "") -> None:
        self.severed |= self.links(one, other)
        self.network = [item for item in self.network if (item[0].id, item[1].id) not in self.severed]

    def do_cutway(self, sender: str, to: str) -> None:
        """One direction only."""
        self.severed.add((sender, to))

    def do_join(self, one: str, other: str = "") -> None:
        self.severed -= self.links(one, other)

    def do_unreachable(self, name: str, peer: str) -> None:
        self.act(self.nodes[name], lambda core: core.unreachable(self.ref(peer)))

    def do_forge(self, sender: str, to: str, kind: str, **fields: str) -> None:
        core = self.nodes[to].core
        assert core is not None
        if kind == "Append":
            chain = core.log.chain(min(int(fields["prev_index"]), core.log.last))
            fields.setdefault("prev_chain", str(chain))
            entries = forged_entries(fields.pop("entries"), chain)
            message = m.Append(entries=entries, **{key: int(value) for key, value in fields.items()})
        else:
            message = getattr(m, kind)(**{key: forged_field(value) for key, value in fields.items()})
        self.arrive(self.ref(sender), self.nodes[to].ref, message)

    # --- clients ----------------------------------------------------------------------------------------------------

    def do_propose(self, name: str, *payloads: str) -> None:
        self.act(self.nodes[name], lambda core: core.propose(commands(*payloads)))

    def do_stamped(self, name: str, stamp: str, *payloads: str) -> None:
        self.act(self.nodes[name], lambda core: core.propose(commands(*payloads, stamp=int(stamp))))

    def do_read(self, name: str, *read_ids: str) -> None:
        self.act(self.nodes[name], lambda core: [core.read_index(int(read_id)) for read_id in read_ids])

    def do_transfer(self, name: str, target: str = "") -> None:
        self.act(self.nodes[name], lambda core: core.transfer(target or None))

    def do_stepdown(self, name: str, *reason: str) -> None:
        self.act(self.nodes[name], lambda core: core.step_down(" ".join(reason)))

    def do_change(self, name: str, kind: str, target: str) -> None:
        ref = self.ref(target)
        change = Change(ChangeKind[kind.upper().replace("-", "_")], member(ref.id, incarnation=ref.incarnation))
        self.act(self.nodes[name], lambda core: core.propose_membership(change, 0, 0))

    def do_set(self, name: str, fit: str) -> None:
        core = self.nodes[name].core
        assert core is not None
        core.fit = fit == "yes"

    # --- disks ------------------------------------------------------------------------------------------------------

    def do_disk(self, name: str, speed: str) -> None:
        self.nodes[name].is_slow = speed == "slow"

    def do_sync(self, name: str) -> None:
        node = self.nodes[name]
        ready, node.pending = node.pending, None
        if ready is None:
            self.say(node, "has nothing to sync")
            return
        self.act(node, lambda core: self.finish(node, ready))

    def do_crash(self, *names: str) -> None:
        for name in names:
            self.nodes[name].crash()

    def do_restart(self, *names: str) -> None:
        for name in names:
            node = self.nodes[name]
            node.is_slow = False
            node.lease = Lease(600, 750, 50)
            try:
                node.start()
                self.turn(node)
            except (Bug, StorageError) as error:
                self.say(node, f"stops: {error}")
                node.crash()

    def do_wipe(self, name: str, incarnation: str) -> None:
        self.nodes[name] = Clustered(name, Disk(Membership(0, ())), self.config, int(incarnation), int(name[1:]))
        self.turn(self.nodes[name])
        self.lines = []

    def do_backup(self, name: str) -> None:
        self.nodes[name].saved = copy.deepcopy(self.nodes[name].disk)

    def do_restore(self, name: str) -> None:
        node = self.nodes[name]
        assert node.saved is not None
        node.crash()
        node.disk = copy.deepcopy(node.saved)

    def do_damage(self, name: str, index: str, what: str = "payload") -> None:
        node = self.nodes[name]
        (node.disk.header_damaged if what == "header" else node.disk.damaged).add(int(index))
        if node.core is not None:
            self.act(node, lambda core: core.quarantine(int(index)))

    def do_rot(self, name: str, index: str, what: str = "payload") -> None:
        """As damage, and nobody has noticed."""
        disk = self.nodes[name].disk
        (disk.header_damaged if what == "header" else disk.damaged).add(int(index))

    def do_snapshot(self, name: str, index: str) -> None:
        self.act(self.nodes[name], lambda core: core.snapshot_available(self.meta(self.nodes[name], int(index))))

    def meta(self, node: Clustered, index: int) -> SnapshotMeta:
        disk = node.disk
        membership = disk.membership
        if membership.index > index:
            assert disk.previous is not None
            membership = disk.previous
        stamp = disk.log[index - disk.first].stamp
        return SnapshotMeta(
            f"raft_{node.id}_{index}.dat",
            index,
            disk.term(index),
            disk.chain(index),
            stamp,
            membership,
            1000,
            b"d" * 32,
        )

    def do_trim(self, name: str, first: str) -> None:
        self.nodes[name].disk.trim(int(first))
        self.act(self.nodes[name], lambda core: core.log_trimmed())

    def do_lose_kv(self, name: str, first: str) -> None:
        """A restart finds that the data is gone and the log begins at `first`."""
        node = self.nodes[name]
        node.crash()
        node.disk.trim(int(first))
        node.disk.applied = 0
        node.disk.snapshot = None

    def do_fetched(self, name: str) -> None:
        node = self.nodes[name]
        meta, node.to_fetch = node.to_fetch, None
        assert meta is not None
        reason = self.act(node, lambda core: core.snapshot_received(meta))
        if reason:
            self.say(node, f"does not install: {reason}")

    def do_unfetched(self, name: str) -> None:
        node = self.nodes[name]
        meta, node.to_fetch = node.to_fetch, None
        assert meta is not None
        self.act(node, lambda core: core.fetch_failed(meta))

    # --- looking ----------------------------------------------------------------------------------------------------

    def do_clock(self, ms: str) -> None:
        self.now_ms += int(ms)

    def do_lease(self, name: str) -> None:
        lease = self.nodes[name].lease
        holds = f"holds until {lease.until_ms}" if lease.holds(self.now_ms) else "does not hold"
        self.lines.append(f"{name} at {self.now_ms} ms: the lease {holds}")

    def do_status(self, *names: str) -> None:
        for name in names or tuple(self.nodes):
            self.lines.append(f"{name} {self.status(self.nodes[name])}")

    def status(self, node: Clustered) -> str:
        core = node.core
        if core is None:
            return "is down"
        damaged = f" damaged {sorted(core.log.holes)}" if core.log.holes else ""
        log = [text.at(i, core.log.term_or_hole(i)) for i in range(core.log.first, core.log.last + 1)]
        log = [one.replace("@-1", "@?") for one in log]
        base = "" if core.log.first == 1 else f" base {core.log.first - 1}"
        return f"{core.role.value} t{core.term} commit {core.commit}{base}{damaged} log [{' '.join(log)}]"

    def do_members(self, name: str) -> None:
        core = self.nodes[name].core
        assert core is not None
        rows = [self.name(one.ref) + ("" if one.voter else " (learner)") for one in core.membership.members]
        self.lines.append(f"{name} as of {core.membership.index}: {', '.join(rows)}")

    def do_stamps(self, name: str) -> None:
        self.lines.append(f"{name} stamps {' '.join(str(entry.stamp) for entry in self.nodes[name].disk.log)}")

    def do_peers(self, name: str) -> None:
        core = self.nodes[name].core
        assert core is not None
        for peer in core.status().peers:
            self.lines.append(
                f"{name}: {self.name(peer.ref)} {peer.mode} match {peer.match} next {peer.next}"
                f" under way {peer.inflight_messages}"
            )


# --- text -----------------------------------------------------------------------------------------------------------


def forged_field(value: str) -> Any:
    if value in ("yes", "no"):
        return value == "yes"
    if value == "-":
        return None
    return int(value)


def forged_entries(value: str, chain: int) -> tuple[Entry, ...]:
    """`[5@2:x,6@2:y]` linked to the receiver's chain; `5@2:x:9` has chain 9 instead."""
    entries = []
    for part in value.strip("[]").split(","):
        if part:
            place, payload, *wrong = part.split(":")
            index, term = (int(number) for number in place.split("@"))
            chain = chain_of(chain, index, term, Kind.COMMANDS, 0, 0, payload.encode())
            if wrong:
                chain = int(wrong[0])
            entries.append(Entry(index, term, Kind.COMMANDS, 0, 0, payload.encode(), chain))
    return tuple(entries)


def entry_text(entry: Entry) -> str:
    what = KINDS.get(entry.kind)
    if entry.kind == Kind.MEMBERSHIP:
        rows = decode_members(entry.payload, entry.index).members
        what = "{" + " ".join(row.id + ("" if row.voter else "?") for row in rows) + "}"
    return f"{text.at(entry.index, entry.term)}:{what or entry.payload.decode()}"


def persist_text(persist: Persist) -> str:
    """What one log transaction does, in its order."""
    parts = []
    if persist.install is not None:
        kept = "keeps the suffix" if persist.keep_suffix else "drops the log"
        parts.append(f"install {persist.install.name} ({kept})")
    if persist.truncate_from is not None:
        parts.append(f"truncate from {persist.truncate_from}")
    parts += ["rewrite " + entry_text(entry) for entry in persist.rewrite]
    if persist.entries:
        parts.append("append " + " ".join(entry_text(entry) for entry in persist.entries))
    if persist.hard is not None:
        parts.append(hard_text(persist.hard))
    if persist.membership is not None:
        rows = [row.id + ("" if row.voter else "?") for row in persist.membership.members]
        parts.append(f"membership {persist.membership.index} {{{' '.join(rows)}}}")
    return ", ".join(parts)


def hard_text(hard: HardState) -> str:
    return f"t{hard.term} vote {hard.vote.id if hard.vote else '-'}"


def message_text(message: Any) -> str:
    """Short: what a reader of the paper needs."""
    match message:
        case m.Append(term, prev, prev_term, _, commit, entries):
            items = " ".join(entry_text(entry) for entry in entries)
            return f"Append t{term} after {text.at(prev, prev_term)} [{items}] commit {commit}"
        case m.AppendReply(term, True, index):
            return f"AppendReply t{term} ok {index}"
        case m.AppendReply(term, _, index, hint, hint_term):
            return f"AppendReply t{term} no {index}, try {text.at(hint, hint_term)}"
        case m.Heartbeat(term, number, commit):
            return f"Heartbeat t{term} round {number} commit {commit}"
        case m.HeartbeatReply(term, number, last):
            return f"HeartbeatReply t{term} round {number} last {last}"
        case m.VoteRequest(term, last, last_term, pre, transfer):
            kind = "PreVote" if pre else "Vote"
            return f"{kind}Request t{term} last {text.at(last, last_term)}" + (" transfer" if transfer else "")
        case m.VoteReply(term, granted, pre):
            return f"{'PreVote' if pre else 'Vote'}Reply t{term} {'granted' if granted else 'refused'}"
        case m.SnapshotOffer(term, meta):
            return f"SnapshotOffer t{term} {meta.name} {text.at(meta.index, meta.term)}"
        case m.TimeoutNow(term, last, last_term):
            return f"TimeoutNow t{term} last {text.at(last, last_term)}"
        case m.ReadRequest(term, context):
            return f"ReadRequest t{term} {context >> 32}.{context & 0xFFFFFFFF}"
        case m.ReadReply(term, context, index):
            return f"ReadReply t{term} {context >> 32}.{context & 0xFFFFFFFF} at {index}"
    return f"{type(message).__name__} t{message.term} from {message.index}"


# --- files ----------------------------------------------------------------------------------------------------------


def replay(path: Path, script: Any) -> str:
    """The file as it should be: its comments and commands, and the output that they cause now."""
    blocks = []
    for block in path.read_text().strip("\n").split("\n\n"):
        head = [line for line in block.split("\n----", 1)[0].splitlines() if line != "----"]
        if all(line.startswith("#") for line in head):
            blocks.append("\n".join(head))
            continue
        output: list[str] = []
        for line in head:
            if not line.startswith("#"):
                output += script.run(line)
        blocks.append("\n".join([*head, "----", *output]))
    return "\n\n".join(blocks) + "\n"
