"""A linearizability checker: is there one order of the operations that explains every answer the clients saw?

A *history* is a list of operations. Each has an interval (when the client asked, when it had the answer) and an
outcome:

    OK       the answer arrived: the operation took effect at one instant inside its interval
    FAILED   the server said "certainly not executed": it must never take effect, so it is left out of the search;
    what a
             later read shows of it makes the history bad all by itself
    UNKNOWN  no answer, or "may or may not have been executed": it took effect at any instant after it was asked,
    possibly
             long after the client gave up, or never

The search is Wing and Gong's, with Lowe's cache, in the shape Porcupine gave it: the calls and returns of one key
stand in a doubly linked list in the order of time. From the front we may linearize any call that stands before the
first return. A call whose answer fits the model's state is lifted out together with its return and the walk starts
over from the front; when the walk meets a return, the call it belongs to should have been linearized before: we take
back the last decision and go on behind it. The set of linearized operations is a Python int (a bitmask); a pair
(mask, state) seen before need not be entered again, however we came to it. An UNKNOWN operation has no return in the
list, so nothing ever forces it.

Linearizability is local: a history is linearizable if and only if the part of each key is. So the keys are checked
one by one, which is what makes this feasible at all: the search is exponential in the number of operations that
overlap, and cheap in the number of those that do not.

What it does not do: transactions over several keys (see `find_cycle` for list-append histories), and finding the
*shortest* explanation of a failure. It names the key, the operations of it, and the longest prefix that could be
explained.

A search that runs out of steps or seconds is UNDECIDED. `Verdict.good` is false for it: not knowing counts as a
failure.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from enum import Enum
from typing import Any, NamedTuple, Protocol

OK = "ok"
FAILED = "failed"
UNKNOWN = "unknown"


class Op(NamedTuple):
    """One operation of one client on one key."""

    process: Hashable  # who asked; a process has one operation under way at a time
    key: Hashable
    name: str  # what the model calls it: "write", "read", ...
    argument: Any
    result: Any  # meaningful for OK alone
    invoked: float  # any clock that all processes share: nanoseconds, or the number of an event
    returned: float  # meaningful for OK alone
    outcome: str  # OK, FAILED, UNKNOWN


class Model(Protocol):
    """A sequential object. States are hashable values."""

    @property
    def initial(self) -> Hashable: ...

    @property
    def reads(self) -> frozenset[str]:
        """Operations that never change the state, whatever it is."""

    def step(self, state: Any, name: str, argument: Any, result: Any, known: bool) -> tuple[bool, Any]:
        """(does `result` fit, state after). With `known` False nobody saw a result: it fits if the operation can run
        at all."""

    def useless(self, ops: list[Op]) -> set[int]:
        """Positions of UNKNOWN operations that cannot help to explain anything (they only make the search longer)."""


class Answer(Enum):
    GOOD = "linearizable"
    BAD = "not linearizable"
    UNDECIDED = "undecided: out of steps or time"


class Verdict(NamedTuple):
    answer: Answer
    key: Hashable = None  # the key that decided it, unless GOOD
    ops: tuple[Op, ...] = ()  # the operations of that key, by invocation
    explained: tuple[Op, ...] = ()  # the longest order found that explains a prefix
    steps: int = 0

    @property
    def good(self) -> bool:
        return self.answer is Answer.GOOD

    def __str__(self) -> str:
        if self.good:
            return f"linearizable ({self.steps} steps)"
        lines = [f"key {self.key!r}: {self.answer.value} ({self.steps} steps); operations:"]
        done = {id(op) for op in self.explained}
        lines += [f"  {'+' if id(op) in done else '?'} {describe(op)}" for op in self.ops]
        return "\n".join(lines)


def describe(op: Op) -> str:
    """One line: who, when, what."""
    end = f"{op.returned}" if op.outcome == OK else "..."
    tail = f" -> {op.result!r}" if op.outcome == OK else f" ({op.outcome})"
    return f"[{op.invoked}, {end}] {op.process}: {op.name} {op.argument!r}{tail}"


# --- models -----------------------------------------------------------------------------------------------------------


class Register:
    """write v; read -> v or None; cas (expected, new) -> did it; delete -> did it exist."""

    reads = frozenset({"read"})

    def __init__(self, initial: Hashable = None) -> None:
        self.initial: Hashable = initial

    def step(self, state: Any, name: str, argument: Any, result: Any, known: bool) -> tuple[bool, Any]:
        if name == "read":
            return not known or state == result, state
        if name == "write":
            return True, argument
        if name == "cas":
            fits = state == argument[0]
            return not known or fits == result, argument[1] if fits else state
        if name == "delete":
            return not known or (state is not None) == result, None
        raise ValueError(f"a register does not know {name!r}")

    def names_its_writers(self, ops: list[Op]) -> bool:
        """Does each value tell who wrote it? Then `clusters_fit` decides without a search."""
        written = [op.argument for op in ops if op.name == "write"]
        return all(op.name in ("read", "write") for op in ops) and len({*written, self.initial}) == len(written) + 1

    def useless(self, ops: list[Op]) -> set[int]:
        """An UNKNOWN write whose value nobody saw: an order that contains it stays good without it. (Not so beside
        `cas` and `delete`, whose answers tell something about values that they do not name.)"""
        if any(op.name in ("cas", "delete") for op in ops):
            return _unknown_reads(ops)
        seen = {op.result for op in ops if op.name == "read" and op.outcome == OK}
        return {
            n for n, op in enumerate(ops) if op.outcome == UNKNOWN and (op.name == "read" or op.argument not in seen)
        }


class Counter:
    """incr n -> value after; read -> value."""

    reads = frozenset({"read"})
    initial: Hashable = 0

    def step(self, state: Any, name: str, argument: Any, result: Any, known: bool) -> tuple[bool, Any]:
        if name == "read":
            return not known or state == result, state
        if name == "incr":
            after = state + argument
            return not known or after == result, after
        raise ValueError(f"a counter does not know {name!r}")

    def useless(self, ops: list[Op]) -> set[int]:
        return _unknown_reads(ops)


class AppendList:
    """append v -> length after; read -> tuple of all values."""

    reads = frozenset({"read"})
    initial: Hashable = ()

    def step(self, state: Any, name: str, argument: Any, result: Any, known: bool) -> tuple[bool, Any]:
        if name == "read":
            return not known or state == tuple(result), state
        if name == "append":
            return not known or result is None or len(state) + 1 == result, (*state, argument)
        raise ValueError(f"a list does not know {name!r}")

    def useless(self, ops: list[Op]) -> set[int]:
        return _unknown_reads(ops)


class ValueSet:
    """add v -> was it new; remove v -> was it there; has v -> bool; read -> all values."""

    reads = frozenset({"read", "has"})
    initial: Hashable = frozenset()

    def step(self, state: Any, name: str, argument: Any, result: Any, known: bool) -> tuple[bool, Any]:
        if name == "read":
            return not known or state == frozenset(result), state
        present = argument in state
        if name == "has":
            return not known or present == result, state
        if name == "add":
            return not known or present != result, state | {argument}
        if name == "remove":
            return not known or present == result, state - {argument}
        raise ValueError(f"a set does not know {name!r}")

    def useless(self, ops: list[Op]) -> set[int]:
        return _unknown_reads(ops, ("read", "has"))


def _unknown_reads(ops: list[Op], names: tuple[str, ...] = ("read",)) -> set[int]:
    return {n for n, op in enumerate(ops) if op.outcome == UNKNOWN and op.name in names}


# --- recording --------------------------------------------------------------------------------------------------------


class History:
    """Collects operations. `clock` gives the times: strictly monotonic, shared by all processes.

    >>> history = History(itertools.count().__next__)
    >>> token = history.invoke("c1", "k", "write", 1)
    >>> history.ok(token, None)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic_ns) -> None:
        self.clock = clock
        self.ops: list[Op] = []
        self.open: dict[int, Op] = {}
        self.tokens = 0

    def invoke(self, process: Hashable, key: Hashable, name: str, argument: Any = None) -> int:
        self.tokens += 1
        self.open[self.tokens] = Op(process, key, name, argument, None, self.clock(), 0, UNKNOWN)
        return self.tokens

    def ok(self, token: int, result: Any) -> None:
        self.ops.append(self.open.pop(token)._replace(result=result, returned=self.clock(), outcome=OK))

    def failed(self, token: int) -> None:
        """The server said that it was certainly not executed."""
        self.ops.append(self.open.pop(token)._replace(returned=self.clock(), outcome=FAILED))

    def unknown(self, token: int) -> None:
        self.ops.append(self.open.pop(token))

    def all(self) -> list[Op]:
        """Everything recorded; what still has no answer is UNKNOWN."""
        return self.ops + list(self.open.values())


# --- registers whose values are unique ---


def clusters_fit(ops: list[Op], initial: Hashable = None) -> bool:
    """Linearizability of writes of unique values and reads, exactly and without a search (Gibbons and Korach, Testing
    shared memories, 1997): the search is exponential in what overlaps on one key, and this is not.

    A *cluster* is a write with the reads that saw it; in any order that explains the history it stands together. With
    f the first return and s the last call in a cluster, A must stand before B if f(A) < s(B). The history is good if
    and only if no read returned before its write was called and no two clusters must stand before each other.
    """
    forever, never = float("inf"), float("-inf")
    first: dict[Hashable, float] = {initial: never}  # value -> f
    last: dict[Hashable, float] = {initial: never}  # value -> s
    called: dict[Hashable, float] = {initial: never}
    refused = {op.argument for op in ops if op.name == "write" and op.outcome == FAILED}
    for op in ops:
        if op.name == "write" and op.outcome != FAILED:
            first[op.argument] = op.returned if op.outcome == OK else forever
            last[op.argument] = called[op.argument] = op.invoked
    for op in ops:
        if op.name != "read" or op.outcome != OK:
            continue
        if op.result in refused or op.result not in called or op.returned < called[op.result]:
            return False
        first[op.result] = min(first[op.result], op.returned)
        last[op.result] = max(last[op.result], op.invoked)
    clusters = [(first[value], last[value]) for value in called if first[value] < forever]
    clusters.sort()
    return not any(
        first_b < last_a  # sorted: first_a <= first_b, so A before B is asked for by first_a < last_b
        for place, (first_a, last_a) in enumerate(clusters)
        for first_b, last_b in clusters[place + 1 :]
        if first_a < last_b
    )


# --- the search -------------------------------------------------------------------------------------------------------


def check(
    ops: Iterable[Op], model: Model, *, steps_max: int = 20_000_000, seconds_max: float | None = 300.0
) -> Verdict:
    """Check each key on its own; the first key that is not GOOD decides. Limits are per call, over all keys.

    With `seconds_max=None` the answer is a function of the history alone (simulations need that).
    """
    by_key: dict[Hashable, list[Op]] = defaultdict(list)
    for op in ops:
        by_key[op.key].append(op)
    budget = _Budget(steps_max, None if seconds_max is None else time.monotonic() + seconds_max)
    for key, mine in by_key.items():
        mine.sort(key=lambda op: op.invoked)
        if isinstance(model, Register) and model.names_its_writers(mine):
            answer, explained = (Answer.GOOD if clusters_fit(mine, model.initial) else Answer.BAD), ()
            budget.spend(len(mine))
        else:
            answer, explained = _check_key(mine, model, budget)
        if answer is not Answer.GOOD:
            return Verdict(answer, key, tuple(mine), explained, budget.used)
    return Verdict(Answer.GOOD, steps=budget.used)


class _Budget:
    def __init__(self, steps_max: int, deadline: float | None) -> None:
        self.used = 0
        self.steps_max = steps_max
        self.deadline = deadline

    def spend(self, steps: int) -> bool:
        """Count steps; False when the budget is gone."""
        self.used += steps
        if self.used > self.steps_max:
            return False
        return self.deadline is None or time.monotonic() < self.deadline


_SLICE = 4096  # steps between two looks at the budget


def _check_key(ops: list[Op], model: Model, budget: _Budget) -> tuple[Answer, tuple[Op, ...]]:
    """The search on one key. `ops` are sorted by invocation."""
    useless = model.useless(ops)
    ops = [op for n, op in enumerate(ops) if op.outcome != FAILED and n not in useless]
    must = sum(op.outcome == OK for op in ops)
    call_of, following, preceding, return_of = _links(ops)
    end = len(call_of) - 1

    step, state, reads = model.step, model.initial, model.reads
    mask = 0
    cache: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Any]] = []  # (slot of the call, state before it)
    best: list[int] = []
    spent = 0
    slot = following[0]
    while must:
        spent += 1
        if spent == _SLICE:
            if not budget.spend(spent):
                return Answer.UNDECIDED, _order(ops, call_of, best)
            spent = 0
        number = call_of[slot] if slot != end else -1
        if number >= 0:
            op = ops[number]
            known = op.outcome == OK
            fits, after = step(state, op.name, op.argument, op.result, known)
            bit = 1 << number
            if fits and (known or after != state) and (mark := (mask | bit, after)) not in cache:
                cache.add(mark)
                stack.append((slot, state))
                state, mask = after, mask | bit
                must -= known
                _lift(slot, return_of[slot], following, preceding)
                slot = following[0]
            else:
                slot = following[slot]
            continue
        # A return that nobody has linearized (or the end of the list): the last decision was wrong.
        if len(stack) > len(best):
            best = [s for s, _ in stack]
        if not stack:
            budget.spend(spent)
            return Answer.BAD, _order(ops, call_of, best)
        while True:
            slot, state = stack.pop()
            number = call_of[slot]
            mask &= ~(1 << number)
            must += ops[number].outcome == OK
            _unlift(slot, return_of[slot], following, preceding)
            if ops[number].name not in reads or not stack:
                break
        slot = following[slot] if ops[number].name not in reads else end
    budget.spend(spent)
    return Answer.GOOD, ()


def _links(ops: list[Op]) -> tuple[list[int], list[int], list[int], list[int]]:
    """The doubly linked list of calls and returns as four arrays over slots; slot 0 is the front, the last slot the
    end.

    call_of[slot] is the position of the op whose call stands there, -1 for a return. return_of[slot] is the slot of
    the return that belongs to the call there, -1 if it has none. At equal times calls come first: clocks have a
    resolution, and what may have overlapped is taken to have overlapped.
    """
    marks = [(op.invoked, 0, n) for n, op in enumerate(ops)]
    marks += [(op.returned, 1, n) for n, op in enumerate(ops) if op.outcome == OK]
    marks.sort()
    size = len(marks) + 2
    call_of, return_of = [-1] * size, [-1] * size
    where: dict[int, int] = {}
    for slot, (_, is_return, n) in enumerate(marks, 1):
        if is_return:
            return_of[where[n]] = slot
        else:
            call_of[slot] = n
            where[n] = slot
    following = [*range(1, size), size - 1]
    preceding = [0, *range(size - 1)]
    return call_of, following, preceding, return_of


def _lift(call: int, ret: int, following: list[int], preceding: list[int]) -> None:
    following[preceding[call]] = following[call]
    preceding[following[call]] = preceding[call]
    if ret >= 0:
        following[preceding[ret]] = following[ret]
        preceding[following[ret]] = preceding[ret]


def _unlift(call: int, ret: int, following: list[int], preceding: list[int]) -> None:
    if ret >= 0:
        following[preceding[ret]] = ret
        preceding[following[ret]] = ret
    following[preceding[call]] = call
    preceding[following[call]] = call


def _order(ops: list[Op], call_of: list[int], slots: list[int]) -> tuple[Op, ...]:
    return tuple(ops[call_of[slot]] for slot in slots)


# --- transactions over several keys -----------------------------------------------------------------------------------


class Txn(NamedTuple):
    """One MULTI/EXEC: ("append", key, value) with a value unique in the history, or ("read", key, tuple of values
    seen)."""

    process: Hashable
    actions: tuple[tuple[str, Hashable, Any], ...]
    invoked: float
    returned: float
    outcome: str


def find_cycle(txns: list[Txn]) -> list[Txn] | str | None:
    """Strict serializability of list-append transactions, after Elle. None: good. Else a cycle, or a sentence.

    Each value is appended once, so the longest read of a key tells the order of its versions. Edges: who appended v
    before who appended the next value (ww); the appender of the last value seen before its reader (wr); a reader
    before the appender of the first value it did not see (rw); whoever had its answer before another was asked (real
    time). A cycle means that no serial order exists. UNKNOWN transactions take part only if somebody saw what they
    appended.
    """
    writer: dict[tuple[Hashable, Any], int] = {}
    for n, txn in enumerate(txns):
        for name, key, value in txn.actions:
            if name == "append":
                if (key, value) in writer:
                    return f"value {value!r} was appended to {key!r} twice by the test itself"
                writer[key, value] = n
    orders: dict[Hashable, tuple[Any, ...]] = {}
    reads: list[tuple[int, Hashable, tuple[Any, ...]]] = []
    for n, txn in enumerate(txns):
        if txn.outcome != OK:
            continue
        own: dict[Hashable, list[Any]] = defaultdict(list)
        for name, key, value in txn.actions:
            if name == "append":
                own[key].append(value)
                continue
            seen = tuple(value)
            mine = tuple(own[key])
            if mine and seen[-len(mine) :] != mine:
                return f"{txn} does not see its own appends"
            reads.append((n, key, seen[: len(seen) - len(mine)]))
            for item in seen:
                if (key, item) not in writer:
                    return f"{key!r} shows {item!r}, which nobody appended"
                if txns[writer[key, item]].outcome == FAILED:
                    return f"{key!r} shows {item!r} of a transaction that failed"
            if len(set(seen)) != len(seen):
                return f"{key!r} shows a value twice: {seen!r}"
            known = orders.get(key, ())
            short, long = sorted((known, seen), key=len)
            if long[: len(short)] != short:
                return f"{key!r} was read as {known!r} and as {seen!r}"
            orders[key] = long
    edges: dict[int, set[int]] = defaultdict(set)
    for key, order in orders.items():
        for earlier, later in itertools.pairwise(order):
            edges[writer[key, earlier]].add(writer[key, later])
    # An OK append that the longest read does not show comes after everything shown.
    for (key, value), n in writer.items():
        order = orders.get(key, ())
        if txns[n].outcome == OK and order and value not in order:
            edges[writer[key, order[-1]]].add(n)
    for n, key, seen in reads:
        if seen:
            edges[writer[key, seen[-1]]].add(n)
        order = orders[key]
        if len(seen) < len(order):
            edges[n].add(writer[key, order[len(seen)]])
        else:
            for (other_key, value), w in writer.items():
                if other_key == key and txns[w].outcome == OK and value not in order:
                    edges[n].add(w)
    _real_time(txns, edges)
    return _cycle(txns, edges)


def _real_time(txns: list[Txn], edges: dict[int, set[int]]) -> None:
    """Edges from each answered transaction to those asked after it (transitively reduced: enough to keep the order)."""
    done = sorted((t.returned, n) for n, t in enumerate(txns) if t.outcome == OK)
    for n, txn in enumerate(txns):
        before = [m for returned, m in done if returned < txn.invoked]
        latest = max((txns[m].invoked for m in before), default=None)
        for m in before:
            if txns[m].returned >= (latest if latest is not None else 0):
                edges[m].add(n)


def _cycle(txns: list[Txn], edges: dict[int, set[int]]) -> list[Txn] | None:
    """Depth-first search with an explicit stack; edges from a transaction to itself do not count."""
    colour = [0] * len(txns)
    for root in range(len(txns)):
        if colour[root]:
            continue
        path = [root]
        iterators = [iter(sorted(edges[root]))]
        colour[root] = 1
        while path:
            for child in iterators[-1]:
                if child == path[-1]:
                    continue
                if colour[child] == 1:
                    return [txns[n] for n in path[path.index(child) :]]
                if not colour[child]:
                    colour[child] = 1
                    path.append(child)
                    iterators.append(iter(sorted(edges[child])))
                    break
            else:
                colour[path.pop()] = 2
                iterators.pop()
    return None
