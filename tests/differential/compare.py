"""Are two replies the same? Byte for byte, but for what this file says.

- Order: where Redis promises none (KEYS, SCAN, HGETALL, HKEYS, HVALS, HSCAN, HRANDFIELD of all), both are sorted. SCAN
  and HSCAN are iterated to their end first.
- Chance: of RANDOMKEY and HRANDFIELD the number and the membership of what was drawn are compared.
- Clock: a time to live set relative to now may differ by what passes between the two servers.

Wanted differences are listed in docs/differences.md; the generator does not go there.
"""

from __future__ import annotations

from typing import Protocol

from .programs import Step
from .wire import Reply

CLOCK_TOLERANCE_MS = 2_000
UNORDERED = frozenset((b"KEYS", b"HKEYS", b"HVALS"))
TIMES = {b"TTL": 2, b"PTTL": CLOCK_TOLERANCE_MS, b"EXPIRETIME": 2, b"PEXPIRETIME": CLOCK_TOLERANCE_MS}


class Player(Protocol):
    def play(self, step: Step) -> Reply: ...
    def tidy(self) -> None: ...


def same(step: Step, ours: Reply, theirs: Reply) -> bool:
    """May these two be the answers to this step?"""
    if ours.raw == theirs.raw:
        return True
    name = step.argv[0].upper()
    if ours.kind != theirs.kind or ours.is_error or ours.value is None or theirs.value is None:
        return False
    if name in UNORDERED:
        return sorted(ours.items()) == sorted(theirs.items())
    if name == b"HGETALL":
        return pairs(ours.items()) == pairs(theirs.items())
    if name in TIMES:
        return near(ours, theirs, TIMES[name])
    if name == b"EXEC":
        return same_transaction(ours, theirs)
    if name == b"RANDOMKEY":
        return True
    if name == b"HRANDFIELD":
        return same_draw(ours, theirs)
    return False


def pairs(items: list[bytes]) -> list[tuple[bytes, bytes]]:
    return sorted(zip(items[::2], items[1::2], strict=True))


def near(ours: Reply, theirs: Reply, tolerance: int) -> bool:
    one, other = int(ours.value), int(theirs.value)
    return one > 0 and other > 0 and abs(one - other) <= tolerance


def same_draw(ours: Reply, theirs: Reply) -> bool:
    if not isinstance(ours.value, list):
        return True
    if len(ours.value) != len(theirs.value):
        return False
    return [shape(item) for item in ours.value] == [shape(item) for item in theirs.value]


def shape(reply: Reply) -> object:
    return [shape(item) for item in reply.value] if isinstance(reply.value, list) else reply.kind


def same_transaction(ours: Reply, theirs: Reply) -> bool:
    """Each reply inside EXEC alone; which command it answers is not known here, so all leniencies hold."""
    if len(ours.value) != len(theirs.value):
        return False
    return all(leniently_same(one, other) for one, other in zip(ours.value, theirs.value, strict=True))


def leniently_same(ours: Reply, theirs: Reply) -> bool:
    if ours.raw == theirs.raw:
        return True
    if ours.kind != theirs.kind or ours.is_error or ours.value is None or theirs.value is None:
        return False
    if isinstance(ours.value, list):
        return flat(ours) == flat(theirs) or same_draw(ours, theirs)
    return ours.kind in (b"$", b":") and (ours.kind == b"$" or near(ours, theirs, CLOCK_TOLERANCE_MS))


def flat(reply: Reply) -> list[bytes]:
    """All scalars in it, sorted: for a cursor and its rows, whose places may differ."""
    if isinstance(reply.value, list):
        return sorted(scalar for item in reply.value for scalar in flat(item))
    return [reply.raw]


def iterate(player: Player, step: Step) -> Reply | list[bytes] | list[tuple[bytes, bytes]]:
    """SCAN or HSCAN to its end: what was found, in order and once; or the error.

    A cursor that is not 0 means something else to each server: what it finds is not compared, only whether it errs.
    """
    at = 1 if step.argv[0].upper() == b"SCAN" else 2
    argv, found = list(step.argv), []
    if at < len(argv) and argv[at] != b"0":
        reply = player.play(step)
        return reply if reply.is_error else []
    for _ in range(10_000):
        reply = player.play(Step(step.client, tuple(argv)))
        if not isinstance(reply.value, list):
            return reply
        cursor, rows = reply.value
        found += rows.items()
        argv[at] = cursor.value
        if cursor.value == b"0":
            return sorted(set(found)) if at == 1 else sorted(set(zip(found[::2], found[1::2], strict=True)))
    raise AssertionError(f"{step} does not come to an end")


def is_scan(step: Step) -> bool:
    return step.argv[0].upper() in (b"SCAN", b"HSCAN") and len(step.argv) > 1


def is_alone(step: Step) -> bool:
    """Not for MULTI: cursors differ, so a scan must go on behind EXEC; and dead keys are counted until looked at."""
    return step.argv[0].upper() in (b"SCAN", b"HSCAN", b"DBSIZE")


def contents(player: Player) -> dict[bytes, tuple[object, ...]]:
    """Everything that database 0 and 1 hold, as client 1 (which is never inside MULTI) sees it."""
    found: dict[bytes, tuple[object, ...]] = {}
    player.tidy()
    for db in (b"0", b"1"):
        ask(player, b"SELECT", db)
        found[b"size " + db] = (ask(player, b"DBSIZE").raw,)
        for name in sorted(ask(player, b"KEYS", b"*").items()):
            found[db + b" " + name] = content(player, name)
    ask(player, b"SELECT", b"0")
    return found


def ask(player: Player, *argv: bytes) -> Reply:
    return player.play(Step(1, argv))


def content(player: Player, name: bytes) -> tuple[object, ...]:
    kind = ask(player, b"TYPE", name).value
    expiry = int(ask(player, b"PEXPIRETIME", name).value) // 10_000_000  # hours: the two clocks differ by less
    if kind == b"string":
        return kind, expiry, ask(player, b"GET", name).value
    if kind == b"hash":
        return kind, expiry, ask(player, b"HLEN", name).value, pairs(ask(player, b"HGETALL", name).items())
    elements = ask(player, b"LRANGE", name, b"0", b"-1").items()
    one_by_one = [ask(player, b"LINDEX", name, b"%d" % rank).value for rank in range(len(elements))]
    return kind, expiry, ask(player, b"LLEN", name).value, elements, one_by_one == elements
