"""The verbs of the core beyond what transcripts show: stages, errors, assertions, bounds, chance."""

from __future__ import annotations

import pickle
import random

import pytest

from raftdb.consensus import candidate, leader
from raftdb.consensus.chance import SplitMix64
from raftdb.consensus.core import Busy, Core, CoreConfig, NotLeader
from raftdb.consensus.handshake import Greeting, refusal
from raftdb.consensus.membership import Change, ChangeKind
from raftdb.consensus.messages import (
    TERM_MAX,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    VoteReply,
    VoteRequest,
    check,
)
from raftdb.errors import Bug, Damaged, PeerError, UsageError
from raftdb.types import Entry, Kind, Membership, NodeRef, Proposal, Role
from tests.consensus.cluster import Disk, Node, chain_of, commands, membership_of, ref
from tests.consensus.test_handlers import PLAUSIBLE, in_role


def a_leader(**config: int) -> tuple[Node, Core]:
    """n1 of three, its no-op acknowledged by n2."""
    node = Node("n1", Disk(membership_of("n1", "n2", "n3")), CoreConfig(**config))  # type: ignore[arg-type]
    core = node.core
    assert core is not None
    candidate.elect(core, transfer=False)
    node.turn()
    core.step(ref("n2"), VoteReply(1, True, False))
    node.turn()
    core.step(ref("n2"), AppendReply(1, True, 1, 0, 0))
    node.turn()
    assert (core.role, core.commit) == (Role.LEADER, 1)
    return node, core


# --- stages ---------------------------------------------------------------------------------------------------------


def test_nothing_to_do_is_none() -> None:
    _, core = a_leader()
    assert core.ready() is None


def test_news_that_are_held_leave_with_the_next_append_or_when_nothing_follows() -> None:
    """What a driver gains that has the next batch at hand: one message less per entry and member."""

    def told(core: Core) -> list[tuple[str, int]]:
        ready = core.ready()
        if ready is None:
            return []
        core.persisted(ready)
        return [(type(each.message).__name__, each.message.commit) for each in ready.send if each.to == ref("n2")]

    node, core = a_leader()
    core.propose(commands("a"))
    node.turn()
    core.hold_news = True
    core.step(ref("n2"), AppendReply(1, True, 2, 0, 0))
    assert core.commit == 2
    assert told(core) == []
    assert core.news_held
    core.propose(commands("b"))
    assert told(core) == [("Append", 2)]
    core.step(ref("n2"), AppendReply(1, True, 3, 0, 0))
    assert told(core) == []
    core.hold_news = False
    assert told(core) == [("Heartbeat", 3)]
    assert not core.news_held
    core.step(ref("n2"), AppendReply(1, True, 3, 0, 0))
    assert told(core) == [], "told once"


def test_who_goes_because_it_was_removed_holds_no_news_back() -> None:
    node, core = a_leader()
    core.propose_membership(Change(ChangeKind.REMOVE, core.membership.members[0]), 5, 5)
    node.turn()
    core.hold_news = True
    for name in ("n2", "n3"):
        core.step(ref(name), AppendReply(1, True, 2, 0, 0))
    assert core.role is not Role.LEADER
    ready = core.ready()
    assert ready is not None
    assert ref("n2") in {each.to for each in ready.send if type(each.message) is Heartbeat and each.message.commit == 2}


def test_what_waits_for_the_disk_is_not_in_ready() -> None:
    """A vote: stage one shows what must be written, only stage two the answer."""
    core = in_role(Role.FOLLOWER)
    core.contact = core.config.election_ticks_min
    core.step(ref("n2"), PLAUSIBLE[VoteRequest])
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    assert ready.persist.hard == (1, ref("n2"))
    assert not ready.send
    released = core.persisted(ready)
    assert [type(envelope.message) for envelope in released.send] == [VoteReply]


def test_while_a_ready_is_open_only_sends_leave() -> None:
    node, core = a_leader()
    core.propose(commands("a"))
    first = core.ready()
    assert first is not None
    assert core.ready() is None
    core.tick()
    core.tick()
    second = core.ready()
    assert second is not None
    assert second.sends_only
    assert {type(envelope.message) for envelope in second.send} == {Heartbeat}
    with pytest.raises(Bug, match="open Ready"):
        core.persisted(second)
    assert first.persist is not None
    node.disk.commit(first.persist)
    core.persisted(first)
    with pytest.raises(Bug, match="open Ready"):
        core.persisted(first)


def test_a_batch_is_committed_by_one_pair_of_stages_on_a_sole_node() -> None:
    node = Node("n1", Disk(membership_of("n1")), CoreConfig())
    core = node.core
    assert core is not None
    core.tick()
    node.turn()
    assert core.propose(commands("a", "b", "c")) == 2
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    node.disk.commit(ready.persist)
    assert core.persisted(ready).commit == 4
    assert core.ready() is None


def test_the_floor_of_reads_is_the_noop_and_what_is_committed() -> None:
    node, core = a_leader()
    assert core.read_floor == core.noop_index == 1
    core.propose(commands("a", "b"))
    node.turn()
    assert core.read_floor == 1
    core.step(ref("n2"), AppendReply(core.term, True, 3, 0, 0))
    assert core.read_floor == 3, "committed, and not applied yet"


def test_ready_names_the_round_that_it_starts() -> None:
    _, core = a_leader()
    started = core.round
    core.read_index(1)
    ready = core.ready()
    assert ready is not None
    assert ready.round == started + 1
    core.persisted(ready)
    core.step(ref("n3"), HeartbeatReply(1, started + 1, 0, 0))
    ready = core.ready()
    assert ready is not None
    assert ready.round == 0
    released = core.persisted(ready)
    assert released.confirmed_round == started + 1
    assert released.reads == ((1, 1),)


def test_damage_found_at_apply_takes_the_release_back_until_it_is_healed() -> None:
    """Entries 2 and 3 are released; 2 turns out to be damaged before it is applied."""
    node = Node("n1", Disk(membership_of("n1", "n2", "n3")), CoreConfig())
    core = node.core
    assert core is not None
    chain, made = 0, []
    for index in (1, 2, 3):
        chain = chain_of(chain, index, 1, Kind.COMMANDS, 0, 0, b"x")
        made.append(Entry(index, 1, Kind.COMMANDS, 0, 0, b"x", chain))

    def stages() -> int:
        ready = core.ready()
        assert ready is not None
        if ready.persist is not None:
            node.disk.commit(ready.persist)
        return core.persisted(ready).commit

    core.step(ref("n2"), Append(1, 0, 0, 0, 3, tuple(made)))
    assert stages() == 3
    core.applied_to(1)
    node.disk.damaged.add(2)
    core.quarantine(2)
    core.step(ref("n2"), Heartbeat(1, 1, 3, 0, None))
    assert stages() == 1
    core.step(ref("n2"), Append(1, 1, 1, made[0].chain, 3, tuple(made[1:])))
    assert stages() == 3


# --- errors and bounds ----------------------------------------------------------------------------------------------


def test_only_a_leader_takes_proposals() -> None:
    core = in_role(Role.FOLLOWER)
    for call in (lambda: core.propose(commands("a")), lambda: core.transfer(None)):
        with pytest.raises(NotLeader, match="unknown"):
            call()


def test_kinds_of_the_core_cannot_be_proposed() -> None:
    _, core = a_leader()
    for kind in (Kind.NOOP, Kind.MEMBERSHIP):
        with pytest.raises(Bug):
            core.propose([Proposal(kind, 0, 0, b"")])
    with pytest.raises(Bug):
        core.propose([])


def test_a_large_batch_is_taken_when_nothing_is_under_way() -> None:
    _, core = a_leader(uncommitted_bytes_max=10)
    core.propose(commands("x" * 1000))
    with pytest.raises(Busy):
        core.propose(commands("y"))
    core.step(ref("n3"), AppendReply(1, True, 2, 0, 0))
    assert core.commit == 1, "the leader's own copy is not durable yet"
    with pytest.raises(Busy):
        core.propose(commands("y"))


def test_reads_are_bounded() -> None:
    core = in_role(Role.FOLLOWER)
    core.config = core.config._replace(reads_waiting_max=3)
    for read_id in range(5):
        core.read_index(read_id)
    ready = core.ready()
    assert ready is not None
    assert core.persisted(ready).reads == ((3, -1), (4, -1))


def test_catch_up_reads_are_bounded_per_turn() -> None:
    node, core = a_leader(catch_up_bytes_per_turn=1000, append_bytes_max=400, inflight_messages_max=100)
    core.propose(commands(*["x" * 100] * 50))
    node.turn()
    core.step(ref("n3"), AppendReply(1, False, 0, 1, 0))
    core.unreachable(ref("n3"))
    core.step(ref("n3"), AppendReply(1, True, 1, 0, 0))
    ready = core.ready()
    assert ready is not None
    sent = sum(len(e.message.entries) for e in ready.send if e.to == ref("n3"))  # type: ignore[union-attr]
    assert 0 < sent <= 1000 // 148 + 1


def test_invariants_stop_the_node() -> None:
    _, core = a_leader()
    with pytest.raises(Bug, match="applied"):
        core.applied_to(5)
    with pytest.raises(Bug, match="applied"):
        core.applied_to(0)
    with pytest.raises(Bug, match="term 1 would fall"):
        core.set_term(0, None)
    with pytest.raises(Bug, match="second vote"):
        core.set_term(1, ref("n3"))
    with pytest.raises(Bug, match="commit 9"):
        core.commit_to(9)
    with pytest.raises(Bug, match="campaigns"):
        candidate.elect(core, transfer=False)
    with pytest.raises(Bug, match="adopted"):
        core.adopt(Membership(0, ()))
    with pytest.raises(Bug, match="more than one step"):
        core.adopt(membership_of("n7", "n8", "n9", index=5))


def test_a_node_with_missing_entries_cannot_lead() -> None:
    core = in_role(Role.CANDIDATE)
    core.log.holes.add(1)
    with pytest.raises(Bug, match="damaged"):
        leader.become_leader(core)


def test_a_start_that_contradicts_itself() -> None:
    disk = Disk(membership_of("n1"))
    disk.applied = 7
    with pytest.raises(Bug, match="start"):
        Node("n1", disk, CoreConfig())


@pytest.mark.parametrize(
    "wrong",
    [
        {"inflight_messages_max": 0},
        {"append_bytes_max": -1},
        {"heartbeat_ticks": 15},
        {"election_ticks_min": 31},
        {"election_ticks_max": 14},
    ],
)
def test_settings_with_which_nothing_works(wrong: dict[str, int]) -> None:
    config = CoreConfig()._replace(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=next(iter(wrong)).split("_")[0]):
        Node("n1", Disk(membership_of("n1")), config)


def test_the_last_term_is_never_left() -> None:
    core = in_role(Role.FOLLOWER)
    core.set_term(TERM_MAX, None)
    with pytest.raises(Bug, match="last one"):
        candidate.elect(core, transfer=False)


def test_lost_acknowledged_entries_are_damage() -> None:
    core = in_role(Role.FOLLOWER)
    with pytest.raises(Damaged, match="restored"):
        core.step(ref("n2"), Heartbeat(1, 1, 5, 0, None))


# --- the gateway ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(PLAUSIBLE), ids=lambda kind: kind.__name__)
def test_check_refuses_every_wrong_field(kind: type) -> None:
    good = PLAUSIBLE[kind]
    wrong_values = (-1, 1 << 64, 1.5, "x", b"x", [], object())
    for name in good._fields:
        for wrong in wrong_values:
            with pytest.raises(PeerError, match=name):
                check(good._replace(**{name: wrong}))
    with pytest.raises(PeerError, match="not a message"):
        check(object())


def test_check_refuses_paths_as_file_names() -> None:
    offer = next(message for kind, message in PLAUSIBLE.items() if kind.__name__ == "SnapshotOffer")
    for name in ("../x", "a/b", "", "x" * 300, "..", "a\0b"):
        with pytest.raises(PeerError, match="meta"):
            check(offer._replace(meta=offer.meta._replace(name=name)))  # type: ignore[union-attr, call-arg]


# --- handshake ------------------------------------------------------------------------------------------------------


def test_handshake() -> None:
    _, core = a_leader()
    good = Greeting(ref("n2"), 3, 1, 1)
    assert refusal(core, good, None) is None
    assert refusal(core, good, 3) is None
    assert "itself" in (refusal(core, good._replace(ref=ref("n1")), None) or "")
    assert "two nodes" in (refusal(core, good._replace(ref=ref("n1", 5)), None) or "")
    assert "another incarnation" in (refusal(core, good._replace(ref=ref("n2", 5)), None) or "")
    assert "started" in (refusal(core, good, 4) or "")
    assert "has acknowledged 1 and holds 0" in (refusal(core, good._replace(last=0), None) or "")
    assert refusal(core, good._replace(last=0, term=0), None) is None
    core.retired[ref("n8")] = None
    assert "removed" in (refusal(core, good._replace(ref=ref("n8")), None) or "")


# --- values ---------------------------------------------------------------------------------------------------------


def test_splitmix64_is_the_published_sequence() -> None:
    """The first values for seed 1234567, from the reference implementation."""
    generator = SplitMix64(1234567)
    assert [generator.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_timeouts_are_spread_over_the_whole_span() -> None:
    drawn = {in_core.timeout for in_core in (Node("n1", Disk(membership_of("n1", "n2")), CoreConfig(), seed=s).core
                                              for s in range(300)) if in_core is not None}  # fmt: skip
    assert drawn == set(range(15, 31))


def test_a_core_can_be_cloned() -> None:
    _, core = a_leader()
    core.propose(commands("a"))
    clone = pickle.loads(pickle.dumps(core))  # noqa: S301
    one, other = core.ready(), clone.ready()
    assert one == other
    assert clone.role is Role.LEADER
    assert clone.step(ref("n9"), AppendReply(1, True, 2, 0, 0)) == "not a member"


# --- chance ---------------------------------------------------------------------------------------------------------


class Judge:
    """Effects of all nodes: same index, same entry; a read is never older than what was committed when it was asked."""

    def __init__(self) -> None:
        self.entries: dict[int, object] = {}
        self.asked: dict[int, int] = {}
        self.highest = 0
        self.answered = 0

    def on_ready(self, node: Node, ready: object) -> None:
        return None

    def on_released(self, node: Node, released: object) -> None:
        for read in released.reads:  # type: ignore[attr-defined]
            if read.index >= 0:
                assert read.index >= self.asked[read.read_id]
                self.answered += 1

    def on_apply(self, node: Node, entry: object) -> None:
        assert self.entries.setdefault(entry.index, entry) == entry  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(12))
def test_chance(seed: int) -> None:
    """A short random walk, as a smoke test of the rig's disk; the simulator does this in earnest."""
    chance = random.Random(seed)
    ids = [f"n{i}" for i in range(1, chance.choice([1, 2, 3, 5]) + 1)]
    config = CoreConfig(inflight_messages_max=chance.choice([1, 2, 16]), append_bytes_max=200)
    nodes = {i: Node(i, Disk(membership_of(*ids)), config, seed=seed * 10 + int(i[1:])) for i in ids}
    drop = chance.choice([0.0, 0.05, 0.3])
    network: list[tuple[NodeRef, NodeRef, Message]] = []
    judge = Judge()
    leaders: dict[int, str] = {}
    for step in range(4000):
        node = nodes[chance.choice(ids)]
        action = chance.random()
        if action < 0.03 and node.core is None:
            node.start()
        elif action < 0.001:
            node.crash()
        elif action < 0.2 and node.core is not None:
            node.core.tick()
        elif action < 0.25 and node.core is not None and node.core.role is Role.LEADER:
            node.core.propose(commands(f"{step}"))
        elif action < 0.27 and node.core is not None:
            judge.asked[step] = judge.highest
            node.core.read_index(step)
        elif network:
            sender, to, message = network.pop(chance.randrange(min(len(network), chance.choice([1, 1, 1, 10]))))
            node = nodes[to.id]
            if chance.random() >= drop and node.core is not None:
                node.core.step(sender, message)
        network += [(node.ref, to, message) for to, message in node.turn(judge)]
        if node.core is not None:
            judge.highest = max(judge.highest, node.core.commit)
            if node.core.role is Role.LEADER:
                assert leaders.setdefault(node.core.term, node.ref.id) == node.ref.id
    assert len(judge.entries) > 20
    assert judge.answered > 0
