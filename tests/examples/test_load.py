"""`raftdb serve -l FILE` in all three formats, as an operator moves a cluster: the first node from the file, two join.

pyraft_checkpoint.dat was written by pyraft 1.0.0 itself.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import redis

from tests import round_trip
from tests.e2e.processes import LocalCluster, wait_for

pytestmark = pytest.mark.e2e

FORERUNNER = Path(__file__).with_name("pyraft_checkpoint.dat")
KEYS = 400
USAGE = 2  # exit code


def ask(node: Any, *words: Any) -> Any:
    with node.client(decode_responses=True) as client:
        return client.execute_command(*words)


def voters(node: Any) -> int:
    info = node.info()
    return int(info["raft_voters"]) if info else 0


@pytest.fixture(scope="module")
def old(tmp_path_factory) -> Any:
    """A cluster with keys of all types, and its checkpoints in both codecs."""
    with LocalCluster(tmp_path_factory.mktemp("old"), 1) as cluster:
        cluster.start()
        (node,) = cluster.nodes
        with redis.Redis(node.bind, node.port) as client, client.pipeline(transaction=False) as pipe:
            for words in round_trip.commands(KEYS):
                pipe.execute_command(*words)
            pipe.execute()
        for codec in ("msgpack", "pickle"):
            ask(node, "CHECKPOINT", f"{codec}.dat", codec)
        yield node


def file_of(old: Any, kind: str) -> Path:
    return FORERUNNER if kind == "pyraft" else old.directory / "checkpoints" / f"{kind}.dat"


@pytest.mark.parametrize("kind", ["msgpack", "pickle", "pyraft"])
def test_a_file_becomes_a_cluster_of_three(old, tmp_path, kind):
    with LocalCluster(tmp_path, 3) as cluster:
        first, *others = cluster.nodes
        first.ensemble = ""
        first.start("-l", str(file_of(old, kind))).wait_serving()
        for node in others:
            node.ensemble = f"{first.host}:{first.port}"
            node.start().wait_serving()
        wait_for("three voters", lambda: voters(first) == 3)
        cluster.wait_equal()
        for node in cluster.nodes:
            check_content(old, node, kind)
        # It is the state machine's state from here on: the first node may go.
        first.kill()
        leader = cluster.wait_leader(other_than=first)
        assert ask(leader, "INCR", "after") == 1
        # The same file again is not loaded again.
        first.start("-l", str(file_of(old, kind))).wait_serving()
        wait_for("it to have caught up", lambda: ask(first, "GET", "after") == "1")
        assert "is ignored" in first.log


def check_content(old: Any, node: Any, kind: str) -> None:
    if kind != "pyraft":
        for db in range(16):
            with node.client(db=db) as one, old.client(db=db) as other:
                assert one.dbsize() == other.dbsize()
                names = sorted(other.keys())
                assert sorted(one.keys()) == names
                assert [one.type(name) for name in names] == [other.type(name) for name in names]
                assert [one.pexpiretime(name) for name in names] == [other.pexpiretime(name) for name in names]
                strings = [name for name in names if other.type(name) == b"string"]
                assert [one.get(name) for name in strings] == [other.get(name) for name in strings]
                lists = [name for name in names if other.type(name) == b"list"]
                assert [one.lrange(name, 0, -1) for name in lists] == [other.lrange(name, 0, -1) for name in lists]
                hashes = [name for name in names if other.type(name) == b"hash"]
                assert [one.hgetall(name) for name in hashes] == [other.hgetall(name) for name in hashes]
        return
    assert [ask(node, "GET", f"key{n}") for n in range(12)] == [f"value'\"\\ {n} ключ \U0001f600" for n in range(12)]
    assert (ask(node, "GET", "num"), ask(node, "GET", "float"), ask(node, "GET", "gone")) == ("5", "1.5", None)
    assert ask(node, "LRANGE", "list", 0, -1) == [f"e{n}" for n in range(5)]
    assert ask(node, "HGETALL", "hash") == {f"f{n}": f"v\n\t{n}" for n in range(5)}
    assert ask(node, "PEXPIRETIME", "t") == 4_795_460_928_198
    assert (ask(node, "TLS", "a"), "deep" in str(ask(node, "TGET", "a/b"))) == (["b"], True)
    info = node.info()
    assert info is not None
    assert (int(info["raft_term"]) >= 12, int(info["raft_applied_index"]) > 30) == (True, True)


@pytest.mark.parametrize("kind", ["msgpack", "pickle", "pyraft"])
def test_a_damaged_file_is_refused_with_its_place_and_nothing_is_left(old, tmp_path, kind):
    file = tmp_path / "broken.dat"
    shutil.copy(file_of(old, kind), file)
    data = bytearray(file.read_bytes())
    at = data.index(b"'list': [") + 7 if kind == "pyraft" else len(data) // 2
    data[at] ^= 0x20
    file.write_bytes(data)
    with LocalCluster(tmp_path / "cluster", 1) as cluster:
        (node,) = cluster.nodes
        node.start("-l", str(file))
        assert node.wait_exit() == USAGE
        last = node.log.strip().splitlines()[-1]
        assert last.startswith("raftdb: ")
        assert "Traceback" not in node.log
        assert re.search(r"bytes \d+ to \d+|at character \d+", last), last
        assert not node.directory.exists()


def test_a_directory_with_other_data_is_not_overwritten(old, tmp_path):
    with LocalCluster(tmp_path, 1) as cluster:
        cluster.start()
        (node,) = cluster.nodes
        ask(node, "SET", "own", "data")
        node.stop()
        node.start("-l", str(file_of(old, "msgpack")))
        assert node.wait_exit() == USAGE
        node.start().wait_serving()
        assert ask(node, "GET", "own") == "data"
