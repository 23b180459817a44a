"""The work of a step does not grow with the log: counted in reads of the durable log, not in time."""

from __future__ import annotations

from collections import Counter

import pytest

from raftdb.consensus.messages import Append, AppendReply
from raftdb.types import Entry, Kind, Role
from tests.consensus.cluster import Disk, chain_of, commands, ref
from tests.consensus.test_core import a_leader
from tests.consensus.test_handlers import in_role


class CountingView:
    """A LogView that counts its reads."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self.reads: Counter[str] = Counter()

    @property
    def first(self) -> int:
        return self.disk.first

    @property
    def last(self) -> int:
        return self.disk.last

    def term(self, index: int) -> int:
        self.reads["term"] += 1
        return self.disk.term(index)

    def chain(self, index: int) -> int:
        self.reads["chain"] += 1
        return self.disk.chain(index)

    def entries(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        self.reads["entries"] += 1
        return self.disk.entries(low, high, bytes_max)


def reads_of_a_leader(size: int) -> Counter[str]:
    """Reads per write and acknowledgement, with `size` entries in the log."""
    node, core = a_leader()
    core.propose(commands(*["x"] * size))
    node.turn()
    for follower in ("n2", "n3"):
        core.step(ref(follower), AppendReply(core.term, True, core.log.last, 0, 0))
        node.turn()
    view = CountingView(node.disk)
    core.log.view = view
    core.propose(commands("y"))
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    node.disk.commit(ready.persist)
    core.persisted(ready)
    core.step(ref("n2"), AppendReply(core.term, True, core.log.last, 0, 0))
    ready = core.ready()
    assert ready is not None
    core.persisted(ready)
    assert core.commit == core.log.last
    return view.reads


def test_a_leader_reads_nothing_back_for_those_who_keep_up() -> None:
    assert reads_of_a_leader(10) == reads_of_a_leader(5_000)
    assert reads_of_a_leader(10)["entries"] == 0


@pytest.mark.parametrize("size", [10, 5_000])
def test_a_follower_that_keeps_up_reads_nothing(size: int) -> None:
    core = in_role(Role.FOLLOWER)
    chain, made = 0, []
    for index in range(1, size + 2):
        chain = chain_of(chain, index, 1, Kind.COMMANDS, 0, 0, b"x")
        made.append(Entry(index, 1, Kind.COMMANDS, 0, 0, b"x", chain))
    core.step(ref("n2"), Append(1, 0, 0, 0, 0, tuple(made[:-1])))
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    disk = core.log.view
    assert isinstance(disk, Disk)
    disk.commit(ready.persist)
    core.persisted(ready)
    view = CountingView(disk)
    core.log.view = view
    core.step(ref("n2"), Append(1, size, 1, made[-2].chain, size, tuple(made[-1:])))
    assert core.log.last == size + 1
    assert not view.reads


def test_a_conflict_is_found_with_logarithmic_reads() -> None:
    """The hint of a refusal bisects: a term of 4,096 entries costs a dozen reads, not 4,096."""
    core = in_role(Role.FOLLOWER)
    chain, made = 0, []
    for index in range(1, 4_098):
        chain = chain_of(chain, index, 1, Kind.COMMANDS, 0, 0, b"x")
        made.append(Entry(index, 1, Kind.COMMANDS, 0, 0, b"x", chain))
    core.step(ref("n2"), Append(1, 0, 0, 0, 0, tuple(made)))
    ready = core.ready()
    assert ready is not None
    assert ready.persist is not None
    disk = core.log.view
    assert isinstance(disk, Disk)
    disk.commit(ready.persist)
    core.persisted(ready)
    view = CountingView(disk)
    core.log.view = view
    assert core.step(ref("n3"), Append(2, 4_096, 2, 7, 0, ())) is not None
    assert view.reads["term"] <= 16
