"""The simulator on a few seeds, and the simulator itself: its disk, its determinism, its shrinker, its judge."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from raftdb.errors import EntryDamaged
from raftdb.types import Entry, HardState, Kind, Membership, NodeRef, Persist, SnapshotMeta
from tests.sim import batch, gates, hunt
from tests.sim.disk import Disk, Kv, LostEntry, SimLog, Snapshot, chain_of
from tests.sim.faults import member
from tests.sim.liveness import Calm
from tests.sim.mutants import MUTANTS
from tests.sim.mutate import Patch, PatchFailed, patched
from tests.sim.runner import Result, Total, run_seed, run_seeds
from tests.sim.scope import SEARCHES, Search, search
from tests.sim.settings import MS, draw
from tests.sim.shrink import fails, record
from tests.sim.world import World

FORMED = Membership(0, tuple(member(NodeRef(name, 1), True) for name in ("n1", "n2", "n3")))


def entries(first: int, count: int, term: int, chain: int = 0) -> tuple[Entry, ...]:
    made = []
    for index in range(first, first + count):
        chain = chain_of(chain, index, term, Kind.COMMANDS, 0, 0, b"x")
        made.append(Entry(index, term, Kind.COMMANDS, 0, 0, b"x", chain))
    return tuple(made)


def persist(**fields: Any) -> Persist:
    empty: dict[str, Any] = dict.fromkeys(Persist._fields)
    return Persist(**{**empty, "entries": (), "rewrite": (), "keep_suffix": False, **fields})


# --- runs -------------------------------------------------------------------------------------------------------------


def test_seeds_find_nothing_and_are_not_vacuous() -> None:
    """120 clusters, each with a liveness phase; every kind of event occurs."""
    total = run_seeds(range(120), 2_000)
    assert not total.failures, total.failures
    assert total.events > 240_000
    for name in ("leaders", "truncations", "installs", "memberships", "reads", "lease reads", "crashes", "wipes"):
        assert total.counts[name], f"no {name} in {total.seeds} seeds"


def test_same_seeds_same_traces() -> None:
    """Under two values of PYTHONHASHSEED, in two processes."""
    assert gates.same_traces(8, 1_500) == ""


def test_vacuous_batches_fail_the_gate() -> None:
    """A batch in which nothing happened is named in every point; one with plenty of everything passes."""
    total = Total()
    total.seeds = 1_000
    assert len(gates.too_few(total)) == len(gates.ENOUGH_PER_THOUSAND_SEEDS)
    total.counts = dict.fromkeys(total.counts, 10**6) | {"unsettled": 0}
    assert gates.too_few(total) == []
    total.counts["truncations"] = 3
    total.counts["unsettled"] = 900
    assert len(gates.too_few(total)) == 2


def test_a_finding_comes_with_the_line_that_repeats_it() -> None:
    total = Total()
    total.add(Result(7, 4_000, 1, "I2: two votes", "I2", "", {}))
    assert "again: python -m tests.sim repro --seed 7 --events 3000" in batch.report(total, 3_000)


def test_a_run_can_be_replayed_from_its_events() -> None:
    """The list of events does the same as the seed did: the histories of the judge agree."""
    for seed in (3, 12, 25):
        settings = draw(seed)
        run = record(settings, 1_500)
        assert run.rule == ""
        assert fails(settings, run.events) == ("", "")


# --- planted bugs -----------------------------------------------------------------------------------------------------


def test_every_patch_still_applies() -> None:
    """Each piece of source is found exactly once, and what comes out compiles."""
    for mutant in MUTANTS:
        for module in {patch.module for patch in mutant.patches}:
            path = hunt.ROOT.joinpath(*module.split(".")).with_suffix(".py")
            source = patched(path.read_text(), [patch for patch in mutant.patches if patch.module == module])
            compile(source, str(path), "exec")


def test_a_patch_that_no_longer_applies_is_an_error() -> None:
    with pytest.raises(PatchFailed):
        patched("a = 1\n", [Patch("m", "b = 1", "b = 2")])
    with pytest.raises(PatchFailed):
        patched("a = 1\na = 1\n", [Patch("m", "a = 1", "b = 2")])


def test_there_are_enough_mutants_and_all_were_caught() -> None:
    known = hunt.load()
    assert len(MUTANTS) >= 40
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert [mutant.name for mutant in MUTANTS if mutant.name not in known or not known[mutant.name].rule] == []
    for mutant in MUTANTS:
        row = known[mutant.name]
        assert row.seeds or (row.rule == hunt.TRANSCRIPT and mutant.script), mutant.name


@pytest.mark.parametrize(
    "name",
    [
        "vote-not-persisted",
        "older-term-commits",
        "read-before-noop",
        "rollback-forgotten",
        "duties-starved-by-reads",
        "lease-before-noop",
    ],
)
def test_a_planted_bug_is_caught_by_its_stored_seeds(name: str) -> None:
    """(All of them: `python -m tests.sim mutants --stored`.)"""
    (mutant,) = (m for m in MUTANTS if m.name == name)
    catch = hunt.hunt(mutant, hunt.load()[name], 20.0)
    assert catch.rule, name


def test_a_long_log_over_a_slow_line_is_waited_for() -> None:
    """Found by a run of seeds: a learner who was sent 88 entries a second, one at a time, lacked 2,900 and should have
    had them in half a minute, while 90 more came each second."""
    world = World(draw(3242)._replace(voters=1, spares=1, delay=5 * MS, sync=MS), script=[])
    world.start()
    world.do_start("n1")
    world.disks[world.refs["n1"]].log.append(entries(1, 3_000, 1))
    assert Calm(world, ["n1", "n2"]).catching_up() == 3_000 * 12 * MS
    assert run_seed(3242, 3_000).rule == ""


def test_a_flip_is_asked_to_be_healed_only_where_a_whole_majority_is_left() -> None:
    """Once the faults have stopped, what was under way damages nothing; `flip` does, on a node that can be spared."""
    world = World(draw(3)._replace(voters=3, spares=0), script=[])
    world.start()
    for node_id in world.ids:
        world.do_start(node_id)
    log = world.disks[world.refs["n1"]].log
    log.append(entries(1, 3, 1))
    world.do_quiet()
    world.do_damage("n1", 2)
    assert not log.damaged
    assert Calm(world, ["n1", "n2", "n3"]).spares_one("n1")
    assert not Calm(world, ["n1", "n2"]).spares_one("n1")
    world.do_last_damage("n1", 2)
    assert log.damaged == {2}
    assert not Calm(world, ["n1", "n2", "n3"]).spares_one("n2")


# --- the small scope --------------------------------------------------------------------------------------------------


def test_small_scope_finds_nothing() -> None:
    outcomes = list(search(12_000, 60.0))
    assert len(outcomes) == len(SEARCHES)
    for outcome in outcomes:
        assert outcome.finding == ""
        assert outcome.states >= 3_000
        assert outcome.depth >= 3


def test_small_scope_is_the_same_every_time() -> None:
    start, bounds = SEARCHES[0]
    assert start == "led"
    runs = []
    for _ in range(2):
        one = Search(bounds)
        one.run(one.led(one.first()), 1_000, 60.0)
        runs.append((len(one.seen), one.steps, sorted(one.kinds.items())))
    assert runs[0] == runs[1]


# --- the disk ---------------------------------------------------------------------------------------------------------


def test_a_synced_transaction_survives() -> None:
    disk = Disk(FORMED)
    disk.write(persist(entries=entries(1, 3, 1), hard=HardState(1, None)))
    disk.sync()
    disk.crash(random.Random(1), True)
    assert (disk.log.last, disk.log.hard) == (3, HardState(1, None))


def test_a_crash_keeps_or_loses_what_is_pending() -> None:
    """One transaction is there as a whole or not at all; of several, any subset."""
    ends = set()
    for seed in range(40):
        disk = Disk(FORMED)
        disk.write(persist(entries=entries(1, 3, 1)))
        disk.crash(random.Random(seed), False)
        ends.add(disk.log.last)
    assert ends == {0, 3}


def test_the_disk_refuses_holes_and_wrong_chains() -> None:
    log = SimLog(FORMED)
    with pytest.raises(LostEntry):
        log.commit(persist(entries=entries(2, 1, 1)))
    with pytest.raises(LostEntry):
        log.commit(persist(entries=(entries(1, 1, 1)[0]._replace(payload=b"y"),)))
    log.commit(persist(entries=entries(1, 2, 1)))
    with pytest.raises(LostEntry):
        log.commit(persist(truncate_from=3))


def test_damage_is_noticed_and_healed_by_a_rewrite() -> None:
    log = SimLog(FORMED)
    three = entries(1, 3, 1)
    log.commit(persist(entries=three))
    log.damaged.add(2)
    with pytest.raises(EntryDamaged):
        log.entries(2, 3, 1_000)
    with pytest.raises(EntryDamaged):
        log.term(2)
    assert [entry.index for entry in log.entries(1, 3, 1_000)] == [1]
    log.commit(persist(rewrite=(three[1],)))
    assert len(log.entries(1, 3, 1_000)) == 3


def test_a_start_finds_a_state_to_go_on_from() -> None:
    disk = Disk(FORMED)
    disk.boot()
    disk.write(persist(entries=entries(1, 3, 1)))
    disk.sync()
    disk.crash(random.Random(1), True)
    assert not disk.trusted()
    assert not disk.starved()
    disk.boot()
    assert disk.trusted()
    assert disk.kv is not None
    assert disk.kv.applied == 0
    assert disk.log.starts == 2
    disk.log.trim(3)
    disk.kv = None
    assert disk.starved()


def snapshot_of(index: int, digest: int) -> Snapshot:
    meta = SnapshotMeta(f"raft_n1_{index}", index, 1, 0, 0, FORMED, 100, digest.to_bytes(32, "big"))
    return Snapshot(meta, digest)


def test_a_loss_of_power_leaves_kv_old_new_or_torn_and_it_is_not_believed() -> None:
    """What the process wrote survives its own death, and no loss of power; nothing in kv tells."""
    found = set()
    for seed in range(40):
        disk = Disk(FORMED)
        disk.boot()
        disk.kv = Kv(3, 77, FORMED)
        disk.crash(random.Random(seed), False)
        assert disk.trusted()
        assert disk.kv == Kv(3, 77, FORMED)
        torn = disk.crash(random.Random(seed), True) == ["torn states"]
        assert not disk.trusted()
        assert torn == (disk.kv not in (Kv(0, 0, FORMED), Kv(3, 77, FORMED)))
        found.add("torn" if torn else disk.kv.applied)
    assert found == {0, 3, "torn"}


def test_an_orderly_end_leaves_a_kv_that_is_believed_after_the_power_failed() -> None:
    disk = Disk(FORMED)
    disk.boot()
    disk.kv = Kv(3, 77, FORMED)
    for _ in disk.stop():
        pass
    assert disk.crash(random.Random(1), True) == []
    assert disk.trusted()
    assert disk.kv == Kv(3, 77, FORMED)


def test_power_fails_at_each_step_of_an_orderly_end() -> None:
    """Whenever the line says that kv may be believed, kv is what was written."""
    lines = set()
    for seed in range(60):
        for steps in range(3):
            disk = Disk(FORMED)
            disk.boot()
            disk.kv = Kv(3, 77, FORMED)
            stop = disk.stop()
            for _ in range(steps):
                next(stop)
            disk.crash(random.Random(seed), True)
            assert not disk.trusted() or disk.kv == Kv(3, 77, FORMED)
            lines.add(disk.line)
    assert {"clean", "dirty 1"} < lines  # and cut ones
    assert len(lines) > 4


def test_a_torn_part_is_gone_on_with_and_refused() -> None:
    snapshot = snapshot_of(3, 5)
    disk = Disk(FORMED)
    disk.begin_part(snapshot.meta)
    assert disk.crash(random.Random(1), True, torn=1.0) == ["torn files"]
    disk.begin_part(snapshot.meta)
    assert not disk.receive(snapshot)
    assert not disk.snapshots
    disk.begin_part(snapshot.meta)  # once more, from its beginning
    assert disk.receive(snapshot)
    assert list(disk.snapshots) == [snapshot.meta.name]


def test_a_start_passes_over_a_torn_snapshot() -> None:
    disk = Disk(FORMED)
    disk.boot()
    disk.log.commit(persist(entries=entries(1, 9, 1)))
    disk.put_snapshot(snapshot_of(3, 5))
    disk.put_snapshot(snapshot_of(6, 8).torn(random.Random(1)))
    disk.crash(random.Random(1), True)
    disk.boot()
    assert disk.kv is not None
    assert (disk.kv.applied, disk.kv.digest) == (3, 5)


def test_a_start_passes_over_a_file_whose_install_the_log_does_not_know_of() -> None:
    """The power fails between the file of a leader and the log's transaction: other entries may stand there still."""
    disk = Disk(FORMED)
    disk.boot()
    disk.log.commit(persist(entries=entries(1, 9, 1)))
    disk.put_snapshot(snapshot_of(3, 5))
    received = snapshot_of(6, 8)
    disk.begin_part(received.meta)
    assert disk.receive(received)
    disk.write(persist(install=received.meta))
    lost = disk.copy()
    lost.crash(random.Random(1), True)
    lost.boot()
    assert lost.kv is not None
    assert (lost.kv.applied, lost.kv.digest) == (3, 5)
    disk.sync()
    disk.crash(random.Random(1), True)
    disk.boot()
    assert disk.kv is not None
    assert (disk.kv.applied, disk.kv.digest) == (6, 8)


# --- the shrinker -----------------------------------------------------------------------------------------------------


def repro(*arguments: str) -> str:
    command = [sys.executable, "-m", "tests.sim", "repro", *arguments]
    done = subprocess.run(command, cwd=hunt.ROOT, capture_output=True, text=True, check=False, timeout=120)
    return done.stdout


TEARING = ["kv-trusted-after-power-loss", "clean-before-flush", "clean-line-kept", "torn-part-believed"]
TEARING += ["torn-snapshot-believed"]


@pytest.mark.parametrize("name", TEARING)
def test_only_tearing_finds_it(name: str) -> None:
    """The same seed in which what is not flushed is either lost or kept, and never torn, finds nothing."""
    seed = str(hunt.load()[name].seeds[0])
    arguments = ("--seed", seed, "--mutant", name, "--shrink", "0")
    assert "I11: " in repro(*arguments)
    assert "nothing is found" in repro(*arguments, "--set", "torn=0")


@pytest.mark.parametrize(
    ("name", "rule", "most"),
    [("learner-counted", "I22", 100), ("lost-append-not-resent", "I22", 300), ("vote-not-persisted", "I2", 200)],
)
def test_findings_are_shrunk(name: str, rule: str, most: int) -> None:
    """From thousands of events to few; also what does not heal, where the history before the calm is shrunk."""
    for seed in hunt.load()[name].seeds:  # a mutant may be caught by another rule too
        lines = repro("--seed", str(seed), "--mutant", name, "--shrink", "12").splitlines()
        if f"{rule}: " in lines[-1]:
            break
    first, last = next(line for line in lines if " (after " in line), lines[-1]
    before, after = int(first.rsplit("(after ")[-1].split(" events")[0]), int(last.split(" events")[0])
    assert after < most
    assert after <= before // 2
    assert f"{rule}: " in last
    assert (" before the faults stop: " in last) == (rule == "I22")
