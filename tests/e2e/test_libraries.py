"""Libraries that people use do their everyday job against three nodes while the leader is handed around, or killed.

What they still miss is tested too: the day it works, docs/libraries.md has to change.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.exceptions import BusyLoadingError, ClusterDownError, MovedError, TryAgainError
from redis.retry import Retry

from tests.e2e.processes import LocalCluster, NodeProcess, background, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS = 30  # of everyday work per library
CHANGES = 3  # of the leader, at least, while it is done
KILLS = 2  # of the leader, at least: once it is the node that the library talks to, once another


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("libraries")) as running:
        yield running.start()


@pytest.fixture
def url(cluster) -> str:
    """Of one node, whoever leads."""
    node = cluster.nodes[0]
    return f"redis://{node.host}:{node.port}"


def meanwhile(cluster: LocalCluster, work) -> None:
    """`work(round)` again and again until the leader has changed often enough; nothing may fail."""
    changes = []

    def hand_around(stop: threading.Event) -> None:
        while not stop.is_set():
            leader = cluster.wait_leader()
            with leader.client() as client:
                client.execute_command("RAFT.TRANSFER")
            cluster.wait_leader(other_than=leader)
            changes.append(leader.id)
            stop.wait(0.3)

    with background(hand_around):
        number = 0
        while number < ROUNDS or len(changes) < CHANGES:
            work(number)
            number += 1


def test_redis_py(cluster, url):
    with redis.Redis.from_url(url, decode_responses=True) as client:

        def work(number: int) -> None:
            assert client.incr("count") == number + 1
            client.hset("hash", mapping={f"f{number}": number})
            with client.pipeline() as pipe:
                pipe.rpush("list", number).llen("list")
                assert pipe.execute() == [number + 1, number + 1]
            with client.pipeline() as pipe:
                pipe.watch("watched")
                value = int(pipe.get("watched") or 0)
                pipe.multi()
                pipe.set("watched", value + 1)
                assert pipe.execute() == [True]

        meanwhile(cluster, work)
        done = int(client.get("count"))
        assert client.lrange("list", 0, -1) == [str(n) for n in range(done)]
        assert client.hlen("hash") == int(client.get("watched")) == done


@pytest.fixture(scope="module")
def django_cache(cluster):
    pytest.importorskip("django", reason="Django is not installed: pip install '.[libraries]'")
    from django.conf import settings
    from django.core.cache import caches

    node = cluster.nodes[0]
    backend = {
        "BACKEND": "django.core.cache.backends.redis.RedisCache",
        "LOCATION": f"redis://{node.host}:{node.port}/1",
    }
    if not settings.configured:
        settings.configure(CACHES={"default": backend})
    return caches["default"]


def test_django_cache(cluster, django_cache):
    cache = django_cache
    cache.set("hits", 0, None)

    def work(number: int) -> None:
        cache.set(f"page:{number}", {"html": "<p>größer</p>", "number": number}, 300)
        assert cache.get(f"page:{number}") == {"html": "<p>größer</p>", "number": number}
        assert not cache.add(f"page:{number}", "taken")
        assert cache.incr("hits") == number + 1
        assert cache.touch(f"page:{number}", 600)
        assert cache.set_many({f"a{number}": 1, f"b{number}": [2]}, 300) == []
        assert cache.get_many([f"a{number}", f"b{number}", "none"]) == {f"a{number}": 1, f"b{number}": [2]}
        cache.delete_many([f"a{number}", f"b{number}"])
        assert not cache.has_key(f"a{number}")
        assert cache.get_or_set(f"made:{number}", lambda: number, 300) == number
        cache.set("versioned", number, version=2)
        assert cache.incr_version("versioned", version=2) == 3

    meanwhile(cluster, work)
    cache.clear()
    assert cache.get("hits") is None


def test_rq_lists_and_jobs(cluster, url):
    pytest.importorskip("rq", reason="RQ is not installed: pip install '.[libraries]'")
    from rq import Queue
    from rq.job import Job

    with redis.Redis.from_url(url) as client:
        queue = Queue("everyday", connection=client)

        def work(number: int) -> None:
            job = Job.create("builtins.sum", args=([number, 1],), connection=client, id=f"job{number}")
            job.save()
            job.meta["number"] = number
            job.save_meta()
            queue.push_job_id("waits")
            queue.push_job_id(job.id, at_front=True)
            assert queue.get_job_ids() == [job.id, "waits"]
            taken = queue.pop_job_id()
            assert taken == job.id
            fetched = Job.fetch(taken, connection=client)
            assert (fetched.args, fetched.get_meta()) == (([number, 1],), {"number": number})
            assert queue.remove("waits") == 1
            assert (queue.count, Queue.dequeue_any([queue], None, connection=client)) == (0, None)

        meanwhile(cluster, work)


def test_what_rq_still_misses(url):
    pytest.importorskip("rq", reason="RQ is not installed: pip install '.[libraries]'")
    from rq import Queue, SimpleWorker

    with redis.Redis.from_url(url) as client:
        queue = Queue("missing", connection=client)
        for attempt, command in (
            (lambda: queue.enqueue("builtins.sum", [1, 2]), "SADD"),
            (lambda: SimpleWorker([queue], connection=client).work(burst=True), "SADD"),
            (lambda: Queue.all(connection=client), "SMEMBERS"),
            (queue.empty, "EVALSHA"),
        ):
            with pytest.raises(redis.ResponseError, match=f"unknown command '{command}'"):
                attempt()


def test_arq_results_and_health(cluster, url):
    pytest.importorskip("arq", reason="arq is not installed: pip install --no-deps arq")
    from arq import connections, jobs

    settings = connections.RedisSettings.from_dsn(url)
    settings.max_connections = 1_000  # all_job_results() asks for each result over a connection of its own

    async def everyday(number: int) -> None:
        pool = await connections.create_pool(settings)
        try:
            name = f"job{number}"
            result = jobs.serialize_result("add", (number, 1), {}, 1, 0, True, number + 1, 0, 0, "ref", "queue", name)
            await pool.psetex(connections.result_key_prefix + name, 300_000, result)
            found = await jobs.Job(name, pool).result_info()
            assert (found.function, found.args, found.result) == ("add", (number, 1), number + 1)
            assert name in {row.job_id for row in await pool.all_job_results()}
        finally:
            await pool.aclose()

    meanwhile(cluster, lambda number: asyncio.run(everyday(number)))


def test_what_arq_still_misses(url):
    pytest.importorskip("arq", reason="arq is not installed: pip install --no-deps arq")
    from arq import connections, jobs

    async def attempts() -> None:
        pool = await connections.create_pool(connections.RedisSettings.from_dsn(url))
        try:
            job = jobs.Job("x", pool)
            for attempt, command in (
                (pool.enqueue_job("add", 1), "ZADD"),
                (job.status(), "ZSCORE"),
                (pool.queued_jobs(), "ZRANGE"),
            ):
                with pytest.raises(redis.ResponseError, match=f"unknown command '{command}'"):
                    await attempt
        finally:
            await pool.aclose()

    asyncio.run(attempts())


# --- the leader is killed ---------------------------------------------------------------------------------------------

UNKNOWN = object()  # the outcome of a command that may or may not have been executed
#: What the server says of a command that was not executed. All but LOADING are ResponseErrors to redis-py.
NOT_EXECUTED = (ClusterDownError, TryAgainError, BusyLoadingError, MovedError)


class Caller:
    """Calls a library as its user does who reads the errors: what was not done is done again, the rest is unknown."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    def once(self, call: Callable[[], Any]) -> Any:
        """For what must not be done twice: the answer, or UNKNOWN."""
        answers: list[Any] = []

        def attempt() -> bool:
            try:
                answers.append(call())
            except redis.RedisError as error:
                if self._was_not_done(error):
                    return False
                answers.append(UNKNOWN)
            return True

        wait_for("an answer", attempt, 60)
        return answers[0]

    def repeat(self, call: Callable[[], Any]) -> Any:
        """For what may be done twice: until there is an answer."""
        while (answer := self.once(call)) is UNKNOWN:
            pass
        return answer

    def _was_not_done(self, error: redis.RedisError) -> bool:
        """Raises what no user should ever see."""
        if isinstance(error, NOT_EXECUTED):
            self.seen["not executed"] += 1
            return True
        if isinstance(error, redis.ConnectionError) and "connecting to" in str(error):
            self.seen["refused"] += 1
            return True
        if isinstance(error, redis.ConnectionError | redis.WatchError):  # it watched over a connection that has gone
            self.seen["lost"] += 1
            return False
        if str(error).startswith("UNCERTAIN "):
            self.seen["uncertain"] += 1
            return False
        raise error


def lead(cluster: LocalCluster, node: NodeProcess) -> None:
    """Until this node leads."""

    def asked() -> bool:
        leader = cluster.leader()
        if leader is not None and leader is not node:
            with contextlib.suppress(redis.RedisError), leader.client() as client:
                client.execute_command("RAFT.TRANSFER", node.id)
        return leader is node

    wait_for(f"{node.id} to lead", asked, 60)


def under_kills(cluster: LocalCluster, work: Callable[[int], None]) -> int:
    """`work(round)` again and again while leaders are killed (-9) and started again; how many rounds."""
    killed: list[str] = []

    def kill_leaders(stop: threading.Event) -> None:
        while not stop.is_set():
            node = cluster.nodes[len(killed) % 2]
            lead(cluster, node)
            node.kill()
            cluster.wait_leader(other_than=node)
            node.start().wait_serving()
            killed.append(node.id)

    number = 0
    with background(kill_leaders) as errors:
        while not errors and (number < ROUNDS or len(killed) < KILLS):
            work(number)
            number += 1
    cluster.wait_equal()
    return number


def careful(url: str, **more: Any) -> redis.Redis:
    """A client that repeats nothing by itself: its user wants to know."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0), socket_timeout=20, **more)


def test_redis_py_while_leaders_are_killed(cluster, url):
    caller, unknown = Caller(), Counter()
    pushed, maybe_pushed, watched = [], [], 0
    with careful(url, decode_responses=True) as client:
        client.delete("killed:count", "killed:list", "killed:watched", "killed:hash")

        def push(value: str) -> Any:
            with client.pipeline() as pipe:
                return pipe.rpush("killed:list", value).hset("killed:hash", value, value).execute()

        def watch() -> Any:
            with client.pipeline() as pipe:
                pipe.watch("killed:watched")
                value = int(pipe.get("killed:watched") or 0)
                pipe.multi()
                return pipe.set("killed:watched", value + 1).execute()

        last = 0

        def work(number: int) -> None:
            nonlocal last, watched
            count = caller.once(lambda: client.incr("killed:count"))
            if count is UNKNOWN:
                unknown["count"] += 1
            else:
                assert last < count <= number + 1
                last = count
            (maybe_pushed if caller.once(lambda: push(f"v{number}")) is UNKNOWN else pushed).append(f"v{number}")
            if caller.once(watch) is UNKNOWN:
                unknown["watched"] += 1
            else:
                watched += 1

        rounds = under_kills(cluster, work)
        assert caller.seen["refused"] > 0, caller.seen  # the node that it talks to was dead
        values = client.lrange("killed:list", 0, -1)
        assert len(values) == len(set(values))
        assert set(pushed) <= set(values) <= {*pushed, *maybe_pushed}
        assert client.hgetall("killed:hash") == {value: value for value in values}  # MULTI: both or none
        assert rounds - unknown["count"] <= int(client.get("killed:count")) <= rounds
        assert watched <= int(client.get("killed:watched")) <= watched + unknown["watched"]


def test_django_cache_while_leaders_are_killed(cluster, django_cache):
    """With redis-py's own repetitions, as Django has them: a page is there when it was set, a count may be too high."""
    cache, caller = django_cache, Caller()
    hits = 0
    cache.clear()
    caller.repeat(lambda: cache.set("hits", 0, None))

    def page(number: int) -> dict[str, Any]:
        return {"html": "<p>größer</p>", "number": number}

    def work(number: int) -> None:
        nonlocal hits
        caller.repeat(lambda: cache.set(f"page:{number}", page(number), 3_000))
        assert caller.repeat(lambda: cache.get(f"page:{number}")) == page(number)
        assert not caller.repeat(lambda: cache.add(f"page:{number}", "taken"))
        if caller.once(lambda: cache.incr("hits")) is not UNKNOWN:
            hits += 1
        assert caller.repeat(lambda: cache.touch(f"page:{number}", 6_000))
        assert caller.repeat(lambda: cache.set_many({f"a{number}": 1, f"b{number}": [2]}, 3_000)) == []
        caller.repeat(lambda: cache.delete_many([f"a{number}"]))

    rounds = under_kills(cluster, work)
    assert cache.get("hits") >= hits > 0
    assert cache.get_many([f"page:{n}" for n in range(rounds)]) == {f"page:{n}": page(n) for n in range(rounds)}
    assert cache.get_many([f"a{n}" for n in range(rounds)]) == {}
    assert cache.get_many([f"b{n}" for n in range(rounds)]) == {f"b{n}": [2] for n in range(rounds)}
    cache.clear()


def test_rq_lists_and_jobs_while_leaders_are_killed(cluster, url):
    """One that puts jobs into the queue and takes them out: what it was not told it looks up in the queue."""
    pytest.importorskip("rq", reason="RQ is not installed: pip install '.[libraries]'")
    from rq import Queue
    from rq.job import Job

    caller = Caller()
    with careful(url) as client:
        queue = Queue("killed", connection=client)

        def is_queued(job_id: str) -> bool:
            return job_id in caller.repeat(queue.get_job_ids)

        def work(number: int) -> None:
            job = Job.create("builtins.sum", args=([number, 1],), connection=client, id=f"killed{number}")
            caller.repeat(job.save)
            while caller.once(lambda: queue.push_job_id(job.id)) is UNKNOWN and not is_queued(job.id):
                pass
            assert caller.repeat(queue.get_job_ids) == [job.id]
            while (taken := caller.once(queue.pop_job_id)) is UNKNOWN and is_queued(job.id):
                pass
            assert taken in (job.id, UNKNOWN)
            assert caller.repeat(lambda: queue.count) == 0
            assert caller.repeat(lambda: Job.fetch(job.id, connection=client)).args == ([number, 1],)

        rounds = under_kills(cluster, work)
        assert caller.seen["refused"] > 0, caller.seen
        ids = [f"killed{n}" for n in range(rounds)]
        assert [job.args for job in Job.fetch_many(ids, connection=client)] == [([n, 1],) for n in range(rounds)]


def test_arq_results_while_leaders_are_killed(cluster, url):
    pytest.importorskip("arq", reason="arq is not installed: pip install --no-deps arq")
    from arq import connections, jobs

    settings, caller = connections.RedisSettings.from_dsn(url), Caller()
    kept: dict[str, Any] = {}

    async def everyday(number: int) -> None:
        pool = await connections.create_pool(settings)
        try:
            name = f"killed{number}"
            result = jobs.serialize_result("add", (number, 1), {}, 1, 0, True, number + 1, 0, 0, "ref", "queue", name)
            await pool.psetex(connections.result_key_prefix + name, 3_000_000, result)
            found = await jobs.Job(name, pool).result_info()
            assert (found.function, found.args, found.result) == ("add", (number, 1), number + 1)
        finally:
            await pool.aclose()

    async def read(rounds: int) -> None:
        pool = await connections.create_pool(settings)
        try:
            for name in (f"killed{n}" for n in range(rounds)):
                result = await jobs.Job(name, pool).result_info()
                kept[name] = result and result.result
        finally:
            await pool.aclose()

    rounds = under_kills(cluster, lambda number: caller.repeat(lambda: asyncio.run(everyday(number))))
    asyncio.run(read(rounds))
    assert kept == {f"killed{n}": n + 1 for n in range(rounds)}


def test_the_nodes_agree_in_the_end(cluster):
    """After all that, and on the same data everywhere."""
    wait_for("a leader", cluster.leader)
    cluster.wait_equal()
