"""Libraries that people use do their everyday job against three nodes while the leader is handed around.

What they still miss is tested too: the day it works, docs/libraries.md has to change.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest
import redis

from tests.e2e.processes import LocalCluster, background, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS = 30  # of everyday work per library
CHANGES = 3  # of the leader, at least, while it is done


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


def test_the_nodes_agree_in_the_end(cluster):
    """After all that, and on the same data everywhere."""
    wait_for("a leader", cluster.leader)
    cluster.wait_equal()
