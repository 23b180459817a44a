"""The checker is checked: by hand-written histories, by 1,000 good ones it must not refuse, by 1,000 bad ones it must
not pass.

A bad history counts as bad only after the dumbest possible judge, which tries every order of at most 8 operations,
said so.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest

from tests.linear import (
    FAILED,
    OK,
    UNKNOWN,
    Answer,
    AppendList,
    Counter,
    History,
    Model,
    Op,
    Register,
    Txn,
    ValueSet,
    check,
    find_cycle,
)


def op(
    process: int, name: str, argument: Any, result: Any, invoked: float, returned: float | None, outcome: str = OK
) -> Op:
    if returned is None:
        outcome = UNKNOWN
    return Op(process, "k", name, argument, result, invoked, returned or 0, outcome)


# --- hand-written -----------------------------------------------------------------------------------------------------

W, R = "write", "read"
GOOD: dict[str, tuple[Model, list[Op]]] = {
    "nothing": (Register(), []),
    "a read sees the write before it": (Register(), [op(1, W, 1, None, 1, 2), op(2, R, None, 1, 3, 4)]),
    "an overlapping read may see the old value": (Register(), [op(1, W, 1, None, 1, 4), op(2, R, None, None, 2, 3)]),
    "an overlapping read may see the new value": (Register(), [op(1, W, 1, None, 1, 4), op(2, R, None, 1, 2, 3)]),
    "an unknown write may have happened": (Register(), [op(1, W, 1, None, 1, None), op(2, R, None, 1, 5, 6)]),
    "an unknown write may never happen": (Register(), [op(1, W, 1, None, 1, None), op(2, R, None, None, 5, 6)]),
    "an unknown write may happen late": (
        Register(),
        [op(1, W, 1, None, 1, None), op(2, W, 2, None, 2, 3), op(2, R, None, 2, 4, 5), op(2, R, None, 1, 6, 7)],
    ),
    "a failed write is not there": (Register(), [op(1, W, 1, None, 1, 2, FAILED), op(2, R, None, None, 3, 4)]),
    "cas that fits": (Register(), [op(1, W, 1, None, 1, 2), op(1, "cas", (1, 2), True, 3, 4), op(2, R, None, 2, 5, 6)]),
    "equal times overlap": (Register(), [op(1, W, 1, None, 1, 2), op(2, R, None, None, 2, 3)]),
    "counter": (Counter(), [op(1, "incr", 1, 2, 1, 9), op(2, "incr", 1, 1, 2, 8), op(3, R, None, 1, 3, 7)]),
    "counter with an unknown incr": (Counter(), [op(1, "incr", 5, None, 1, None), op(2, "incr", 1, 6, 2, 8)]),
    "list": (
        AppendList(),
        [op(1, "append", "a", 2, 1, 9), op(2, "append", "b", 1, 2, 8), op(3, R, None, ("b", "a"), 3, 10)],
    ),
    "set": (ValueSet(), [op(1, "add", 1, True, 1, 2), op(2, "add", 1, False, 3, 4), op(2, "remove", 1, True, 5, 6)]),
}
BAD: dict[str, tuple[Model, list[Op]]] = {
    "a stale read": (Register(), [op(1, W, 1, None, 1, 2), op(2, R, None, None, 3, 4)]),
    "a value from nowhere": (Register(), [op(1, W, 1, None, 1, 2), op(2, R, None, 7, 3, 4)]),
    "a value from the future": (Register(), [op(2, R, None, 1, 1, 2), op(1, W, 1, None, 3, 4)]),
    "a failed write shows": (Register(), [op(1, W, 1, None, 1, 2, FAILED), op(2, R, None, 1, 3, 4)]),
    "reads go back": (Register(), [op(1, W, 1, None, 1, 9), op(2, R, None, 1, 2, 3), op(3, R, None, None, 4, 5)]),
    "two readers disagree on the order": (
        Register(),
        [
            op(1, W, 1, None, 1, 20),
            op(2, W, 2, None, 1, 20),
            op(3, R, None, 1, 2, 3),
            op(3, R, None, 2, 4, 5),
            op(4, R, None, 2, 2, 3),
            op(4, R, None, 1, 6, 7),
        ],
    ),
    "an unknown write happens twice": (
        Register(),
        [op(1, W, 1, None, 1, None), op(2, R, None, 1, 2, 3), op(2, W, 2, None, 4, 5), op(2, R, None, 1, 6, 7)],
    ),
    "cas succeeds twice": (
        Register(0),
        [op(1, "cas", (0, 1), True, 1, 5), op(2, "cas", (0, 1), True, 1, 5)],
    ),
    "an increment is lost": (Counter(), [op(1, "incr", 1, 1, 1, 9), op(2, "incr", 1, 1, 2, 8)]),
    "an increment counts twice": (Counter(), [op(1, "incr", 1, 1, 1, 2), op(2, R, None, 2, 3, 4)]),
    "an append is lost": (AppendList(), [op(1, "append", "a", 1, 1, 2), op(2, R, None, (), 3, 4)]),
    "an append comes twice": (AppendList(), [op(1, "append", "a", None, 1, 2), op(2, R, None, ("a", "a"), 3, 4)]),
    "two are first": (ValueSet(), [op(1, "add", 1, True, 1, 5), op(2, "add", 1, True, 1, 5)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_passes(name: str) -> None:
    model, ops = GOOD[name]
    assert check(ops, model).good
    assert brute_force(ops, model)


@pytest.mark.parametrize("name", BAD)
def test_refuses(name: str) -> None:
    model, ops = BAD[name]
    verdict = check(ops, model)
    assert verdict.answer is Answer.BAD
    assert "key 'k'" in str(verdict)
    assert not brute_force(ops, model)


def test_keys_are_judged_alone() -> None:
    fine = op(1, W, 1, None, 1, 2)._replace(key="fine")
    stale = [op(1, W, 1, None, 1, 2), op(2, R, None, None, 3, 4)]
    verdict = check([fine, *stale], Register())
    assert (verdict.answer, verdict.key, len(verdict.ops)) == (Answer.BAD, "k", 2)


def test_undecided_is_not_good() -> None:
    """Forty overlapping unknown increments and an impossible read: hopeless, and said so rather than passed."""
    ops = [op(n, "incr", 2**n, None, 1, None) for n in range(40)] + [op(99, R, None, -1, 2, 3)]
    verdict = check(ops, Counter(), steps_max=50_000, seconds_max=None)
    assert verdict.answer is Answer.UNDECIDED
    assert not verdict.good


def test_history_records_intervals() -> None:
    history = History(itertools.count(1).__next__)
    a = history.invoke("p", "k", "write", 1)
    b = history.invoke("q", "k", "read")
    history.ok(b, 1)
    history.unknown(a)
    c = history.invoke("p", "k", "write", 2)
    history.failed(c)
    history.invoke("q", "k", "read")
    ops = sorted(history.all(), key=lambda o: (o.process, o.invoked))
    assert [(o.process, o.outcome, o.invoked, o.returned) for o in ops] == [
        ("p", UNKNOWN, 1, 0),
        ("p", FAILED, 4, 5),
        ("q", OK, 2, 3),
        ("q", UNKNOWN, 6, 0),
    ]
    assert check(ops, Register()).good


# --- against the dumb judge -------------------------------------------------------------------------------------------


def brute_force(ops: list[Op], model: Model) -> bool:
    """Every choice of unknown operations, every order that respects real time."""
    sure = [o for o in ops if o.outcome == OK]
    maybe = [o for o in ops if o.outcome == UNKNOWN]
    for count in range(len(maybe) + 1):
        for chosen in itertools.combinations(maybe, count):
            if _some_order([*sure, *chosen], model, model.initial):
                return True
    return False


def _some_order(left: list[Op], model: Model, state: Any) -> bool:
    if not left:
        return True
    for o in left:
        if any(p is not o and p.outcome == OK and p.returned < o.invoked for p in left):
            continue
        fits, after = model.step(state, o.name, o.argument, o.result, o.outcome == OK)
        if fits and _some_order([p for p in left if p is not o], model, after):
            return True
    return False


def generate(model: Model, rng: random.Random, count: int, processes: int, unknown: float) -> list[Op]:
    """Run a true object: each operation takes effect at one instant between its call and its return."""
    state: Any = model.initial
    history = History(itertools.count(1).__next__)
    idle = list(range(processes))
    called: list[tuple[int, int, str, Any]] = []
    effective: list[tuple[int, int, Any]] = []
    made = 0
    values = itertools.count(1)
    fresh = itertools.count(processes)
    while made < count or called or effective:
        choice = rng.random()
        if choice < 0.4 and made < count and idle:
            process = idle.pop(rng.randrange(len(idle)))
            name, argument = _random_call(model, rng, values)
            called.append((process, history.invoke(process, "k", name, argument), name, argument))
            made += 1
        elif choice < 0.7 and called:
            process, token, name, argument = called.pop(rng.randrange(len(called)))
            result, state = _true_step(model, state, name, argument)
            effective.append((process, token, result))
        elif effective:
            process, token, result = effective.pop(rng.randrange(len(effective)))
            if rng.random() < unknown:
                history.unknown(token)
                process = next(fresh)
            else:
                history.ok(token, result)
            idle.append(process)
        elif called and rng.random() < unknown:  # lost before it took effect
            _, token, _, _ = called.pop(rng.randrange(len(called)))
            (history.unknown if rng.random() < 0.5 else history.failed)(token)
            idle.append(next(fresh))
    return history.all()


def _random_call(model: Model, rng: random.Random, values: itertools.count[int]) -> tuple[str, Any]:
    if rng.random() < 0.45:
        return "read", None
    if isinstance(model, Register):
        kind = rng.random()
        if kind < 0.15:
            return "cas", (rng.randrange(6), next(values))
        return ("write", next(values)) if kind < 0.9 else ("delete", None)
    if isinstance(model, Counter):
        return "incr", rng.choice((1, 1, 2))
    if isinstance(model, AppendList):
        return "append", next(values)
    return rng.choice(("add", "remove")), rng.randrange(3)


def _true_step(model: Model, state: Any, name: str, argument: Any) -> tuple[Any, Any]:
    """What the object answers: the only result among the candidates that fits."""
    if name == "read":
        candidates: list[Any] = [state]
    elif isinstance(model, Register):
        candidates = [None] if name == "write" else [True, False]
    elif isinstance(model, Counter):
        candidates = [state + argument]
    elif isinstance(model, AppendList):
        candidates = [len(state) + 1]
    else:
        candidates = [True, False]
    for result in candidates:
        fits, after = model.step(state, name, argument, result, True)
        if fits:
            return result, after
    raise AssertionError((state, name, argument))


MODELS: list[Model] = [Register(), Counter(), AppendList(), ValueSet()]


def test_no_false_alarms() -> None:
    """1,000 histories of true objects, up to 60 operations of up to 6 processes."""
    for seed in range(1000):
        rng = random.Random(seed)
        model = MODELS[seed % 4]
        ops = generate(model, rng, rng.randrange(5, 60), rng.randrange(1, 7), rng.choice((0, 0.05, 0.2)))
        verdict = check(ops, model, seconds_max=None)
        assert verdict.good, f"seed {seed}: {verdict}"


def mutate(ops: list[Op], rng: random.Random) -> list[Op]:
    """Stale, lost, reordered, duplicated: one of them."""
    ops = list(ops)
    n = rng.randrange(len(ops))
    kind = rng.randrange(4)
    if kind == 0:  # an answer that belongs to another operation of the same name
        donors = [o for o in ops if o.name == ops[n].name and o.outcome == OK]
        ops[n] = ops[n]._replace(result=rng.choice(donors).result) if donors else ops[n]
    elif kind == 1:  # an operation is lost
        del ops[n]
    elif kind == 2:  # an operation is moved in time
        shift = rng.choice((-9, -5, 5, 9))
        ops[n] = ops[n]._replace(invoked=ops[n].invoked + shift, returned=ops[n].returned + shift)
    else:  # a second operation claims the same
        ops.append(ops[n]._replace(process=-1, invoked=ops[n].invoked + 20, returned=ops[n].returned + 20))
    return ops


def test_no_misses() -> None:
    """1,000 mutants of at most 8 operations that the dumb judge calls bad; and those it calls good are passed."""
    rng = random.Random(4)
    bad = good = 0
    while bad < 1000:
        model = MODELS[rng.randrange(4)]
        ops = generate(model, rng, rng.randrange(2, 8), rng.randrange(1, 4), rng.choice((0, 0.2)))
        ops = mutate(ops, rng)[:8]
        expected = brute_force(ops, model)
        verdict = check(ops, model, seconds_max=None)
        assert verdict.answer is (Answer.GOOD if expected else Answer.BAD), f"dumb judge says {expected}: {verdict}"
        bad += not expected
        good += expected
    assert good > 200


# --- transactions -----------------------------------------------------------------------------------------------------


def txn(process: int, invoked: float, returned: float, *actions: tuple[str, str, Any], outcome: str = OK) -> Txn:
    return Txn(process, actions, invoked, returned, outcome)


def test_serial_transactions_have_no_cycle() -> None:
    assert find_cycle([
        txn(1, 1, 2, ("append", "x", 1), ("append", "y", 1)),
        txn(2, 3, 4, ("read", "x", (1,)), ("read", "y", (1,)), ("append", "x", 2)),
        txn(3, 5, 6, ("read", "x", (1, 2)), ("read", "y", (1,))),
    ]) is None  # fmt: skip


def test_fractured_read_is_a_cycle() -> None:
    """The reader sees one half of a transaction."""
    cycle = find_cycle([
        txn(1, 1, 9, ("append", "x", 1), ("append", "y", 1)),
        txn(2, 1, 9, ("read", "x", (1,)), ("read", "y", ())),
        txn(3, 10, 11, ("read", "y", (1,))),
    ])  # fmt: skip
    assert isinstance(cycle, list)
    assert len(cycle) == 2


def test_write_skew_is_a_cycle() -> None:
    cycle = find_cycle([
        txn(1, 1, 9, ("read", "x", ()), ("append", "y", 1)),
        txn(2, 1, 9, ("read", "y", ()), ("append", "x", 1)),
        txn(3, 10, 11, ("read", "x", (1,)), ("read", "y", (1,))),
    ])  # fmt: skip
    assert isinstance(cycle, list)


def test_stale_transaction_is_a_cycle() -> None:
    """Serializable, but not in the order of real time."""
    assert find_cycle([txn(1, 1, 2, ("append", "x", 1)), txn(2, 3, 4, ("read", "x", ()))]) is not None


def test_value_twice_and_failed_value_are_named() -> None:
    twice = find_cycle([txn(1, 1, 2, ("append", "x", 1)), txn(2, 3, 4, ("read", "x", (1, 1)))])
    assert isinstance(twice, str)
    assert "twice" in twice
    failed = find_cycle([txn(1, 1, 2, ("append", "x", 1), outcome=FAILED), txn(2, 3, 4, ("read", "x", (1,)))])
    assert isinstance(failed, str)
    assert "failed" in failed


def test_random_serial_runs_have_no_cycle() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        lists: dict[str, tuple[int, ...]] = dict.fromkeys("xyz", ())
        txns, values = [], itertools.count()
        for n in range(30):
            actions: list[tuple[str, str, Any]] = []
            for _ in range(rng.randrange(1, 4)):
                key = rng.choice("xyz")
                if rng.random() < 0.5:
                    actions.append(("read", key, lists[key]))
                else:
                    value = next(values)
                    lists[key] += (value,)
                    actions.append(("append", key, value))
            outcome = OK if rng.random() < 0.9 else UNKNOWN
            txns.append(txn(n, n * 10 - rng.randrange(30), n * 10 + rng.randrange(30), *actions, outcome=outcome))
        rng.shuffle(txns)
        assert find_cycle(txns) is None, seed
