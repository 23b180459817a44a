"""From a failing seed to the few events that matter.

The run is written down as a list of events (see world.py); then halves, quarters, ... single events are left out for
as long as what remains fails by the same rule. What is left is printed in words.
"""

from __future__ import annotations

import time
from typing import Any

from tests.sim.liveness import settle
from tests.sim.runner import explain
from tests.sim.settings import Settings, draw
from tests.sim.world import Event, World


def record(settings: Settings, events: int) -> tuple[list[Event], str, str]:
    """(events up to the failure, rule, text); rule "" if nothing is found."""
    world = World(settings, record=True)
    assert world.recorded is not None
    try:
        world.start()
        world.run(events)
        settle(world)
        world.judge_history()
    except Exception as error:  # a finding
        rule, text, _ = explain(error)
        return world.recorded, rule, text
    return world.recorded, "", ""


def fails(settings: Settings, script: list[Event]) -> tuple[str, str]:
    """(rule, text) of replaying these events."""
    world = World(settings, script=script)
    try:
        world.replay()
        world.judge_history()
    except Exception as error:  # a finding
        rule, text, _ = explain(error)
        return rule, text
    return "", ""


def shrink(settings: Settings, script: list[Event], rule: str, seconds_max: float = 120.0) -> list[Event]:
    """Leave out whatever can be left out with the failure still there."""
    deadline = time.monotonic() + seconds_max
    size = len(script) // 2
    while size and time.monotonic() < deadline:
        at, smaller = 0, False
        while at < len(script) and time.monotonic() < deadline:
            candidate = script[:at] + script[at + size :]
            if fails(settings, candidate)[0] == rule:
                script, smaller = candidate, True
            else:
                at += size
        size = size // 2 if not smaller or size > 1 else size
        if size == 1 and not smaller:
            break
    return script


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
    script, rule, text = record(settings, events)
    if not rule:
        print("nothing is found")
        return 0
    print(f"{rule}: {text} (after {len(script)} events)")
    if rule == "I22":
        return 1  # what does not happen has no shortest list of events
    if fails(settings, script)[0] != rule:
        print("the list of events does not repeat it: not shrunk")
        return 1
    if seconds_max:
        script = shrink(settings, script, rule, seconds_max)
    print("\n".join(tell(event) for event in script[-200:]))
    print(f"{len(script)} events: {': '.join(fails(settings, script))}")
    return 1
