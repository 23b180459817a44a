"""Lists: the commands. How a list lies in the store is told in sequence.py."""

from __future__ import annotations

from itertools import islice
from typing import Any, Final

from ..errors import CommandError
from ..types import NULL_ARRAY, OK, Reply
from .args import (
    INDEX_OUT_OF_RANGE,
    INT64_MIN,
    NO_SUCH_KEY,
    Bytes,
    Convert,
    Count,
    Int,
    Key,
    Many,
    NumKeys,
    OneOf,
    Optional,
    Options,
    Value,
    integer,
)
from .context import REPLY_ITEM_BYTES, Context
from .sequence import List
from .table import FAST, MAY_SHRINK, READ, WRITE, Command, command

Push = Many(Bytes("element"))


def _push_command(name: str, *, left: bool, must_exist: bool, since: str, summary: str) -> Command:
    def push(_ctx: Context, key: List, values: list[bytes]) -> Reply:
        if must_exist and not len(key):
            return 0
        key.push(values, left)
        key.save()
        return key.count

    complexity = "O(1) per element"
    return command(
        name,
        Key(List),
        Push,
        flags=WRITE | FAST,
        since=since,
        group="list",
        summary=summary,
        complexity=complexity,
    )(push)


lpush = _push_command(
    "LPUSH", left=True, must_exist=False, since="1.0.0", summary="Add elements at the head, one after the other"
)
rpush = _push_command("RPUSH", left=False, must_exist=False, since="1.0.0", summary="Add elements at the tail")
lpushx = _push_command(
    "LPUSHX", left=True, must_exist=True, since="2.2.0", summary="Add elements at the head of a list that exists"
)
rpushx = _push_command(
    "RPUSHX", left=False, must_exist=True, since="2.2.0", summary="Add elements at the tail of a list that exists"
)


def _pop_command(name: str, *, left: bool, summary: str) -> Command:
    def pop(_ctx: Context, key: List, count: int | None) -> Reply:
        if not len(key):
            return None if count is None else NULL_ARRAY
        if count == 0:
            return []
        reply = key.pop_one(left) if count is None else key.pop(count, left)
        key.save()
        return reply

    return command(
        name,
        Key(List),
        Optional(Count()),
        flags=WRITE | FAST | MAY_SHRINK,
        group="list",
        summary=summary,
        complexity="O(N), N: elements taken",
        words_max=3,
    )(pop)


lpop = _pop_command("LPOP", left=True, summary="Take elements from the head")
rpop = _pop_command("RPOP", left=False, summary="Take elements from the tail")

NOT_A_COUNT: Final = "ERR count should be greater than 0"


@command(
    "LMPOP",
    NumKeys(List),
    OneOf("LEFT", "RIGHT"),
    Options(Value("COUNT", Int("count", 1, error=NOT_A_COUNT))),
    flags=WRITE | MAY_SHRINK,
    since="7.0.0",
    group="list",
    summary="Take elements from an end of the first list that has any",
    complexity="O(N + M), N: keys looked at, M: elements taken",
)
def lmpop(ctx: Context, keys: list[List], where: str, options: dict[str, Any]) -> Reply:
    for key in keys:
        if len(key):
            values = key.pop(options.get("COUNT", 1), where == "LEFT")
            key.save()
            return [key.name, values]
    return NULL_ARRAY


@command(
    "LLEN", Key(List), flags=READ | FAST, group="list", summary="How many elements there are", complexity="O(log N)"
)
def llen(ctx: Context, key: List) -> Reply:
    return len(key)


def bounds(start: int, stop: int, size: int) -> tuple[int, int]:
    """What LRANGE's start and stop mean: ranks low <= rank < high; high <= low when there are none."""
    low = max(start + size, 0) if start < 0 else start
    high = stop + size if stop < 0 else min(stop, size - 1)
    return low, high + 1


def _range_size(ctx: Context, argv: list[bytes]) -> int:
    head = ctx.head(argv[1])
    if head is None:
        return 1
    low, high = bounds(integer(argv[2]), integer(argv[3]), head.count)
    return max(high - low, 1)


@command(
    "LRANGE",
    Key(List),
    Int("start"),
    Int("stop"),
    flags=READ,
    group="list",
    summary="Elements from one index to another, both included",
    complexity="O(log L + N), L: length, N: elements in the range",
    size=_range_size,
)
def lrange(ctx: Context, key: List, start: int, stop: int) -> Reply:
    low, high = bounds(start, stop, len(key))
    return key.slice(low, high)


@command(
    "LINDEX",
    Key(List),
    Bytes("index", "integer"),
    flags=READ,
    group="list",
    summary="The element at an index; -1 is the last",
    complexity="O(log N)",
)
def lindex(ctx: Context, key: List, index: bytes) -> Reply:
    if not len(key):
        return None
    rank = key.rank(integer(index))
    return None if rank is None else key.get(rank)


@command(
    "LSET",
    Key(List),
    Bytes("index", "integer"),
    Bytes("element"),
    flags=WRITE,
    group="list",
    summary="Replace the element at an index",
    complexity="O(log N)",
)
def lset(ctx: Context, key: List, index: bytes, value: bytes) -> Reply:
    if not len(key):
        raise CommandError(NO_SUCH_KEY)
    rank = key.rank(integer(index))
    if rank is None:
        raise CommandError(INDEX_OUT_OF_RANGE)
    key.set(rank, value)
    key.save()
    return OK


def _list_size(ctx: Context, argv: list[bytes]) -> int:
    head = ctx.head(argv[1])
    return 1 if head is None else head.count


@command(
    "LREM",
    Key(List),
    Int("count"),
    Bytes("element"),
    flags=WRITE | MAY_SHRINK,
    group="list",
    summary="Remove elements equal to a value, from the head, from the tail, or all",
    complexity="O(N) to look at N elements; the others are not moved.",
)
def lrem(ctx: Context, key: List, count: int, value: bytes) -> Reply:
    if not len(key):
        return 0
    matching = (label for label, element in key.rows(reverse=count < 0) if element == value)
    labels = list(islice(matching, min(abs(count), key.count) or None))
    if labels:
        _remove(key, labels)
        key.save()
    return len(labels)


def _remove(key: List, labels: list[int]) -> None:
    """A single element at an end is a pop, which leaves the list regular."""
    if len(labels) == 1 and labels[0] in (key.first, key.last):
        key.drop(1, labels[0] == key.first)
    else:
        key.remove(labels)
        key.compact()


@command(
    "LTRIM",
    Key(List),
    Int("start"),
    Int("stop"),
    flags=WRITE | MAY_SHRINK,
    group="list",
    summary="Keep only the elements from one index to another",
    complexity="O(N), N: elements removed, or kept if they are fewer",
)
def ltrim(ctx: Context, key: List, start: int, stop: int) -> Reply:
    size = len(key)
    if not size:
        return OK
    low, high = bounds(start, stop, size)
    if high <= low:
        key.count = 0
    elif high - low < size:
        key.trim(low, high)
    key.save()
    return OK


@command(
    "LINSERT",
    Key(List),
    OneOf("BEFORE", "AFTER"),
    Bytes("pivot"),
    Bytes("element"),
    flags=WRITE,
    since="2.2.0",
    group="list",
    summary="Put an element beside the first one equal to the pivot",
    complexity="O(N) to find the pivot; O(log N) to insert.",
)
def linsert(ctx: Context, key: List, where: str, pivot: bytes, value: bytes) -> Reply:
    if not len(key):
        return 0
    label = next((label for label, element in key.rows() if element == pivot), None)
    if label is None:
        return -1
    key.insert(label, value, where == "BEFORE")
    key.save()
    return key.count


NO_RANK: Final = (
    "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use negative to start from "
    "the end of the list"
)


class Rank(Int):
    """LPOS' RANK: any number but 0 and the one that has no opposite."""

    def converter(self) -> Convert | None:
        return lambda _ctx, token: self.read(token)

    def read(self, token: bytes) -> int:
        rank = super().read(token)
        if rank == 0:
            raise CommandError(NO_RANK)
        if rank == INT64_MIN:
            raise CommandError("ERR value is out of range")
        return rank


@command(
    "LPOS",
    Key(List),
    Bytes("element"),
    Options(
        Value("RANK", Rank("rank")),
        Value("COUNT", Int("num-matches", 0, error="ERR COUNT can't be negative")),
        Value("MAXLEN", Int("len", 0, error="ERR MAXLEN can't be negative")),
    ),
    flags=READ,
    since="6.0.6",
    group="list",
    summary="Indexes of elements equal to a value",
    complexity="O(N), N: elements looked at",
    size=_list_size,
)
def lpos(ctx: Context, key: List, value: bytes, options: dict[str, Any]) -> Reply:
    rank = options.get("RANK", 1)
    wanted = options.get("COUNT")
    size, backwards = len(key), rank < 0
    looked_at = islice(key.rows(reverse=backwards), min(options.get("MAXLEN") or size, size))
    matching = (size - 1 - n if backwards else n for n, (_, element) in enumerate(looked_at) if element == value)
    skipped, limit = min(abs(rank) - 1, size), 1 if wanted is None else wanted
    found: list[int] = []
    for place in islice(matching, skipped, skipped + min(limit, size) if limit else None):
        ctx.keep(REPLY_ITEM_BYTES)
        found.append(place)
    if wanted is None:
        return found[0] if found else None
    return found


def _move_element(source: List, target: List, from_left: bool, to_left: bool) -> Reply:
    if not len(source):
        return None
    if source.name == target.name:
        target = source
    else:
        target.load()
    value = source.pop_one(from_left)
    if target is not source:
        source.save()
    target.push([value], to_left)
    target.save()
    return value


@command(
    "LMOVE",
    Key(List, "source"),
    Key(List, "destination"),
    OneOf("LEFT", "RIGHT", name="wherefrom"),
    OneOf("LEFT", "RIGHT", name="whereto"),
    flags=WRITE,
    since="6.2.0",
    group="list",
    summary="Move an element from an end of one list to an end of another",
    complexity="O(log N)",
)
def lmove(ctx: Context, source: List, target: List, where_from: str, where_to: str) -> Reply:
    return _move_element(source, target, where_from == "LEFT", where_to == "LEFT")


@command(
    "RPOPLPUSH",
    Key(List, "source"),
    Key(List, "destination"),
    flags=WRITE,
    since="1.2.0",
    group="list",
    summary="Move the last element of a list to the head of another",
    complexity="O(log N)",
)
def rpoplpush(ctx: Context, source: List, target: List) -> Reply:
    return _move_element(source, target, False, True)


COMMANDS: list[Command] = [
    lpush,
    rpush,
    lpushx,
    rpushx,
    lpop,
    rpop,
    lmpop,
    llen,
    lrange,
    lindex,
    lset,
    lrem,
    ltrim,
    linsert,
    lpos,
    lmove,
    rpoplpush,
]
