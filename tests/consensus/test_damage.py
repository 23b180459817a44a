"""What may be put into the place of a damaged entry, and what may not."""

from __future__ import annotations

import pytest

from raftdb.consensus.core import Core, CoreConfig
from raftdb.consensus.messages import Append, RefillRequest
from raftdb.errors import Bug
from raftdb.types import Entry, Kind, SnapshotMeta
from tests.consensus.cluster import Disk, Node, chain_of, membership_of, ref


def history(*terms: int, payload: bytes = b"x") -> tuple[Entry, ...]:
    chain, made = 0, []
    for index, term in enumerate(terms, start=1):
        chain = chain_of(chain, index, term, Kind.COMMANDS, 0, 0, payload)
        made.append(Entry(index, term, Kind.COMMANDS, 0, 0, payload, chain))
    return tuple(made)


def follower_with(entries: tuple[Entry, ...], commit: int, term: int = 3) -> tuple[Node, Core]:
    """n1 with these entries on its disk, following n2 in `term`."""
    node = Node("n1", Disk(membership_of("n1", "n2", "n3")), CoreConfig())
    core = node.core
    assert core is not None
    assert core.step(ref("n2"), Append(term, 0, 0, 0, commit, entries)) is None
    node.turn()
    return node, core


def send(core: Core, entries: tuple[Entry, ...], start: int, term: int = 3) -> str | None:
    """The leader's entries from `start` on."""
    before = entries[start - 2] if start > 1 else None
    prev = (start - 1, before.term if before else 0, before.chain if before else 0)
    return core.step(ref("n2"), Append(term, *prev, 0, entries[start - 1 :]))


@pytest.mark.parametrize("part", ["damaged", "header_damaged"])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_the_identical_entry_heals(part: str, index: int) -> None:
    entries = history(1, 1, 2)
    node, core = follower_with(entries, 3)
    getattr(node.disk, part).add(index)
    core.quarantine(index)
    assert send(core, entries, index) is None
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    assert ready.persist.rewrite == (entries[index - 1],)
    assert core.log.holes, "until it is durable"
    node.disk.commit(ready.persist)
    core.persisted(ready)
    assert not core.log.holes
    assert node.disk.log == list(entries)


@pytest.mark.parametrize("part", ["damaged", "header_damaged"])
def test_several_holes_heal_with_one_append(part: str) -> None:
    entries = history(1, 1, 2, 2, 2)
    node, core = follower_with(entries, 5)
    getattr(node.disk, part).update((2, 3, 5))
    for index in (2, 3, 5):
        core.quarantine(index)
    assert send(core, entries, 2) is None
    node.turn()
    assert not core.log.holes
    assert node.disk.log == list(entries)


def test_an_uncommitted_hole_of_another_term_is_cut() -> None:
    node, core = follower_with(history(1, 2, 2), 1)
    node.disk.damaged.add(2)
    core.quarantine(2)
    others = history(1, 3)
    assert send(core, others, 2) is None
    node.turn()
    assert node.disk.log == list(others)
    assert not core.log.holes


def test_an_uncommitted_hole_with_the_same_term_and_another_chain_stays() -> None:
    node, core = follower_with(history(1, 2), 1)
    node.disk.damaged.add(2)
    core.quarantine(2)
    others = (history(1, 2)[0], *history(1, 2, payload=b"y")[1:])
    chain = chain_of(others[0].chain, 2, 2, Kind.COMMANDS, 0, 0, b"y")
    other = others[1]._replace(chain=chain)
    reason = core.step(ref("n2"), Append(3, 1, 1, others[0].chain, 0, (other,)))
    assert reason is not None
    assert "another chain" in reason
    assert core.log.holes == {2}
    node.turn()
    assert node.disk.log == list(history(1, 2)), "never overwritten"


def test_a_committed_hole_is_never_given_to_another_history() -> None:
    for part in ("damaged", "header_damaged"):
        node, core = follower_with(history(1, 2, 2), 3)
        getattr(node.disk, part).add(2)
        core.quarantine(2)
        others = history(1, 3, 3)
        if part == "damaged":
            with pytest.raises(Bug, match="committed entry 2"):
                send(core, others, 2)
        else:
            assert send(core, others, 2) == "entry 2 does not lead to the next one"
        assert core.log.holes == {2}


def test_an_entry_that_does_not_link_is_refused() -> None:
    entries = history(1, 1, 1)
    node, core = follower_with(entries, 3)
    node.disk.header_damaged.add(2)
    core.quarantine(2)
    wrong = entries[1]._replace(payload=b"other")
    reason = core.step(ref("n2"), Append(3, 1, 1, entries[0].chain, 0, (wrong,)))
    assert reason == "the chain of entry 2 does not fit"


def test_an_append_that_starts_at_a_hole_asks_for_it() -> None:
    entries = history(1, 1, 1)
    node, core = follower_with(entries[:2], 2)
    node.disk.damaged.add(2)
    core.quarantine(2)
    assert send(core, entries, 3) == "entry 2 is damaged"
    assert [e.message for e in node.turn()] == [RefillRequest(3, 2)]


def test_damage_that_a_handler_meets_is_quarantined() -> None:
    """Nobody has noticed yet: the comparison of an Append reads the entry."""
    entries = history(1, 1, 1, 1)
    node, core = follower_with(entries, 1)
    node.disk.header_damaged.add(2)
    reason = core.step(ref("n2"), Append(3, 2, 2, 7, 0, ()))
    assert reason is not None
    assert "entry 2" in reason
    assert core.log.holes == {2}


def test_damage_that_an_install_meets_is_quarantined() -> None:
    entries = history(1, 1, 1, 1)
    node, core = follower_with(entries, 1)
    node.disk.header_damaged.update((2, 3))
    core.quarantine(2)
    own = entries[1]
    meta = SnapshotMeta("s.dat", 2, own.term, own.chain, 0, membership_of("n1", "n2", "n3"), 1, b"d" * 32)
    reason = core.snapshot_received(meta)
    assert reason is not None
    assert "entry 3" in reason
    assert core.log.holes == {2, 3}
    assert "cannot tell" in (core.snapshot_received(meta) or "")
    node.turn()
    assert node.disk.base_index == 0


def test_an_install_that_contradicts_what_is_committed_stops() -> None:
    entries = history(1, 1, 1, 1)
    node, core = follower_with(entries, 3)
    node.disk.damaged.add(2)
    core.quarantine(2)
    meta = SnapshotMeta("s.dat", 2, 9, 77, 0, membership_of("n1", "n2", "n3"), 1, b"d" * 32)
    with pytest.raises(Bug, match="contradicts"):
        core.snapshot_received(meta)


def test_what_is_not_durable_cannot_be_damaged() -> None:
    _, core = follower_with(history(1), 1)
    core.quarantine(7)
    core.quarantine(0)
    assert not core.log.holes
