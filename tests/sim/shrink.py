"""From a failing seed to the few events that matter.

First the same is looked for in shorter runs: the same settings, other dice. (In a long history each message depends on
those before it, and little can be left out.) The run is written down as a list of events (see world.py); then halves,
quarters, ..., what belongs together, and single events are left out for as long as what remains fails by the same rule.
What is left is printed in words.

What fails in the liveness phase is a thing that does not happen. So what is shrunk is the history before that phase: as
long as the cluster does not heal after it, when all is quiet, it has in it what matters.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Final, NamedTuple

from tests.sim.liveness import settle
from tests.sim.runner import explain
from tests.sim.settings import Settings, draw
from tests.sim.world import Event, Rest, World

LIVENESS: Final = "I22"
DICE: Final = 8  # with which a shorter run is looked for
KINDS_MAX: Final = 50  # what is less than this part of all events is left to the halving
OPERATIONS: Final = ("do_op", "do_request", "do_give_up", "do_retry", "do_again", "do_lease_read")


Label = tuple[str, ...]


class Record(NamedTuple):
    """A run, written down."""

    events: list[Event]  # up to the failure; for what does not heal, up to the liveness phase
    rule: str  # "" if nothing is found
    text: str
    rest: Rest | None  # for what does not heal: what the liveness phase began with


def record(settings: Settings, events: int, heal: bool = True) -> Record:
    """Run and write down. `heal`: with the liveness phase."""
    world = World(settings, record=True)
    assert world.recorded is not None
    rest, safe = None, 0
    try:
        world.start()
        world.run(events)
        if heal:
            rest, safe = world.rest(), len(world.recorded)
            settle(world)
        world.judge_history()
    except Exception as error:  # a finding
        rule, text, _ = explain(error)
        if rule == LIVENESS and rest is not None:
            return Record(world.recorded[:safe], rule, text, rest)
        return Record(world.recorded, rule, text, None)
    return Record(world.recorded, "", "", None)


def fails(settings: Settings, script: list[Event], rest: Rest | None = None) -> tuple[str, str]:
    """(rule, text) of replaying these events, and of asking the cluster to heal after them."""
    world = World(settings, script=script)
    try:
        world.replay()
        if rest is not None:
            world.go_on(rest)
            settle(world)
        else:
            world.judge_history()
    except Exception as error:  # a finding
        rule, text, _ = explain(error)
        return rule, text
    return "", ""


def shorter(settings: Settings, found: Record, seconds_max: float) -> tuple[Settings, Record]:
    """The same finding after fewer events: shorter runs with the same settings, with these dice and others."""
    deadline = time.monotonic() + seconds_max
    heal = found.rest is not None
    limit = 25
    while limit < len(found.events):
        for dice in range(DICE):
            other = settings._replace(seed=settings.seed + dice)
            run = record(other, limit, heal)
            if run.rule == found.rule and heal == (run.rest is not None):
                return other, run
            if time.monotonic() > deadline:
                return settings, found
        limit *= 2
    return settings, found


def shrink(settings: Settings, found: Record, seconds_max: float = 120.0) -> list[Event]:
    """Leave out whatever can be left out with the failure still there."""
    deadline = time.monotonic() + seconds_max
    script = found.events

    def without(candidate: list[Event]) -> bool:
        nonlocal script
        if time.monotonic() > deadline or fails(settings, candidate, found.rest)[0] != found.rule:
            return False
        script = candidate
        return True

    def halve(size: int, least: int) -> None:
        while size >= least and time.monotonic() < deadline:
            at, smaller = 0, False
            while at < len(script) and time.monotonic() < deadline:
                if without(script[:at] + script[at + size :]):
                    smaller = True
                else:
                    at += size
            if size == 1 and not smaller:
                break
            size = size // 2 or 1

    without([])
    eighth = max(1, len(script) // 8)
    halve(len(script) // 2, eighth)
    for label in kinds(script):
        without([event for event in script if label not in labels(event)])
    halve(len(script) // 2, 1)
    return script


def kinds(script: list[Event]) -> list[Label]:
    """Sets of events that may go together: those that are a fair part of all, the largest first."""
    sets: Counter[Label] = Counter()
    for event in script:
        sets.update(labels(event))
    fair = [label for label in sets if sets[label] * KINDS_MAX >= len(script)]
    return sorted(fair, key=lambda label: (-sets[label], label))


def labels(event: Event) -> list[Label]:
    """What an event is one of."""
    _, name, args = event
    if name == "do_deliver":
        sender, _, to, message = args
        kind = type(message).__name__
        return [(kind,), (kind, sender.id, to.id)]
    if name in OPERATIONS:
        return [("operation",)]
    return [(name,), (name, str(args[0]))] if args else [(name,)]


def tell(event: Event) -> str:
    """One line for an event."""
    now, name, args = event
    return f"{now / 1e6:9.4f} s  {name.removeprefix('do_'):9} {', '.join(_short(arg) for arg in args)}"


def _short(value: Any) -> str:
    if hasattr(value, "incarnation") and hasattr(value, "id") and len(value) == 2:
        return str(value.id)
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def main(seed: int, events: int, seconds_max: float, changes: list[str]) -> int:
    """Repeat, shrink, print. 1 when there is a failure to see."""
    settings = draw(seed)
    for change in changes:
        name, _, value = change.partition("=")
        settings = settings._replace(**{name: type(getattr(settings, name))(float(value))})
    print(settings)
    found = record(settings, events)
    if not found.rule:
        print("nothing is found")
        return 0
    print(f"{found.rule}: {found.text} (after {len(found.events)} events)")
    if fails(settings, found.events, found.rest)[0] != found.rule:
        print("the list of events does not repeat it: not shrunk")
        return 1
    script = found.events
    if seconds_max:
        settings, found = shorter(settings, found, seconds_max / 2)
        print(f"the same after {len(found.events)} events with the dice of {settings.seed}")
        script = shrink(settings, found, seconds_max / 2)
    print("\n".join(tell(event) for event in script[-200:]))
    print(f"{len(script)} events{' before the faults stop' if found.rest else ''}: ", end="")
    print(": ".join(fails(settings, script, found.rest)))
    return 1
