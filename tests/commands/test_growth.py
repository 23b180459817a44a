"""What an operation costs must not depend on the size of its collection: a million against a hundred.

The measure is processor time of this thread, as the ratio of medians of many repetitions; of what is reclaimed later,
the records that are left.
"""

from __future__ import annotations

import statistics
import time

import pytest

from raftdb.commands.machine import Request
from raftdb.types import Entry, Kind

from .replica import Replica

SMALL = 100
LARGE = 1_000_000
RATIO_MAX = 5.0
REPETITIONS = 60
FILL = 20_000  # elements per entry


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    replica = Replica(tmp_path_factory.mktemp("growth"))
    for size in (SMALL, LARGE):
        for start in range(0, size, FILL):
            numbers = [b"%07d" % n for n in range(start, min(size, start + FILL))]
            pairs = [word for number in numbers for word in (b"field:" + number, b"value:" + number)]
            replica("HSET", f"hash:{size}", *pairs)
            replica("RPUSH", f"list:{size}", *numbers)
    yield replica
    replica.close()


def cost_s(replica: Replica, lines: list[tuple]) -> float:
    """Median processor time of executing each of these commands as an entry of its own."""
    costs = []
    for line in lines:
        request: Request = replica.request(*line)
        begun = time.thread_time()
        if request.command.name in ("HGET", "LINDEX", "HLEN"):
            replica.read(request)
        else:
            replica.apply(request)
        costs.append(time.thread_time() - begun)
    return statistics.median(costs)


def lines_of(name: str, size: int) -> list[tuple]:
    """Repetitions of one operation, spread over the collection."""
    places = [n * size // REPETITIONS for n in range(REPETITIONS)]
    hash_key, list_key = f"hash:{size}", f"list:{size}"
    made = {
        "HSET new": [("HSET", hash_key, f"new:{n}", "x") for n in range(REPETITIONS)],
        "HSET old": [("HSET", hash_key, f"field:{place:07d}", "x") for place in places],
        "HGET": [("HGET", hash_key, f"field:{place:07d}") for place in places],
        "HDEL": [("HDEL", hash_key, f"new:{n}") for n in range(REPETITIONS)],
        "LINDEX": [("LINDEX", list_key, place) for place in places],
        "LSET": [("LSET", list_key, place, "x") for place in places],
        "RPUSH": [("RPUSH", list_key, "x") for _ in range(REPETITIONS)],
        "LPUSH": [("LPUSH", list_key, "x") for _ in range(REPETITIONS)],
        "LPOP": [("LPOP", list_key) for _ in range(REPETITIONS)],
        "RPOP": [("RPOP", list_key) for _ in range(REPETITIONS)],
        "RENAME": [("RENAME", *((hash_key, "away") if n % 2 == 0 else ("away", hash_key))) for n in range(REPETITIONS)],
    }
    return made[name]


OPERATIONS = ["HSET new", "HSET old", "HGET", "HDEL", "LINDEX", "LSET", "RPUSH", "LPUSH", "LPOP", "RPOP", "RENAME"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_costs_the_same_on_a_million_elements(replica, name):
    small = cost_s(replica, lines_of(name, SMALL))
    large = cost_s(replica, lines_of(name, LARGE))
    assert large <= RATIO_MAX * small, f"{name}: {large * 1e6:.0f} us against {small * 1e6:.0f} us"


def cost_of_an_end_s(replica: Replica, name: str, line: list) -> float:
    """Median processor time of an entry that ends this key, its share of reclaiming included; each time given up."""
    items = [replica.request(*line)] if line else []
    kind = Kind.COMMANDS if items else Kind.TIME
    payload = replica.machine.encode(items) if items else b""
    entry = Entry(replica.index + 1, 1, kind, replica.now_ms + 1_000, 7, payload, 0)
    costs = []
    for _ in range(REPETITIONS):
        batch = replica.kv.batch()
        begun = time.thread_time()
        replica.machine.apply(entry, items or None, batch)
        costs.append(time.thread_time() - begun)
        assert batch.head(0, name.encode()) is None
        batch.abort()
    return statistics.median(costs)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["hash", "list"])
@pytest.mark.parametrize("way", ["DEL", "UNLINK", "PEXPIREAT", "falls due", "is overwritten"])
def test_the_end_of_a_million_elements_costs_the_same(replica, kind, way):
    costs = []
    for size in (SMALL, LARGE):
        name = f"{kind}:{size}"
        line = {"falls due": [], "PEXPIREAT": ["PEXPIREAT", name, 1], "is overwritten": ["RENAME", "other", name]}
        if way == "falls due":
            replica("PEXPIREAT", name, replica.now_ms + 500)
        replica("SET", "other", "x")
        gone = "other" if way == "is overwritten" else name
        costs.append(cost_of_an_end_s(replica, gone, line.get(way, [way, name])))
        replica("PERSIST", name)
        assert replica("EXISTS", name) == 1
    small, large = costs
    assert large <= RATIO_MAX * small, f"{way} {kind}: {large * 1e6:.0f} us against {small * 1e6:.0f} us"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_deleting_a_million_elements_touches_one_head(replica):
    """DEL with its share of reclaiming, and every entry after it, does a bounded number of steps."""
    replica("RENAME", f"list:{LARGE}", "gone")
    for request in [replica.request("DEL", "gone"), *(replica.request("SET", "a", n) for n in range(20))]:
        replica.apply(request)
    assert replica("EXISTS", "gone") == 0
    with replica.kv.view() as view:
        left = sum(1 for _ in view.scan(2, b"", None))
    assert left > LARGE // 2, "the records go in bounded portions"
    for _ in range(2_100):
        replica.pass_ms(0)
    with replica.kv.view() as view:
        assert sum(1 for _ in view.scan(2, b"", None)) <= SMALL + REPETITIONS


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_middle_of_a_large_list_is_found_after_removals_and_insertions(replica):
    numbers = [b"%07d" % n for n in range(200_000)]
    for start in range(0, len(numbers), FILL):
        replica("RPUSH", "worn", *numbers[start : start + FILL])
    for place in range(5_000, 195_000, 5_000):
        replica("LREM", "worn", 1 if place < 100_000 else -1, b"%07d" % place)
        numbers.remove(b"%07d" % place)
    replica("LINSERT", "worn", "AFTER", numbers[1_000], "new")
    numbers.insert(1_001, b"new")
    worn = cost_s(replica, [("LINDEX", "worn", place) for place in range(0, len(numbers), len(numbers) // REPETITIONS)])
    fresh = cost_s(replica, [("LINDEX", f"list:{SMALL}", place) for place in range(REPETITIONS)])
    assert worn <= 100 * fresh, f"{worn * 1e6:.0f} us against {fresh * 1e6:.0f} us"
    for place in range(0, len(numbers), 9_999):
        assert replica("LINDEX", "worn", place) == numbers[place]
