"""pyraft's checkpoints: what becomes of each value, and that no text of a stranger is believed or evaluated."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb import clock
from raftdb.config import Config
from raftdb.errors import UsageError
from raftdb.node import forerunner, starting
from raftdb.node.forerunner import Parser
from raftdb.storage.datadir import DataDir, read_identity
from tests.node.conftest import StartNode

META = {"id": "1", "term": 11, "index": 4711, "state": "l", "ensemble": {"1": "127.0.0.1:5010"}}


def write(path: Path, data: dict[Any, Any], meta: Any = META) -> Path:
    """What pyraft writes: repr of the dictionary, in text mode."""
    path.write_text(repr({"ttl": {}, "_META_": meta, **data}), encoding="utf-8")
    return path


def parsed(text: str) -> dict[bytes, Any]:
    return dict(Parser(text, "t").pairs())


def as_parsed(value: Any) -> Any:
    """What the parser is to make of a value, said once more in the simplest way."""
    if isinstance(value, dict):
        return {as_parsed(key): as_parsed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_parsed(item) for item in value]
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    return {True: b"true", False: b"false", None: b"null"}.get(value) if value in (True, False, None) else b"%r" % value


VALUES = st.recursive(
    st.text() | st.binary() | st.integers(2, 10**30) | st.none() | st.floats(2.5, 1e300) | st.just('it\'s "both"\\\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text() | st.binary(), VALUES))
def test_every_repr_of_plain_data_is_read(data: dict[Any, Any]) -> None:
    if len({as_parsed(key) for key in data}) == len(data):
        assert parsed(repr(data)) == as_parsed(data)


HOSTILE = [
    "",
    "x",
    "{",
    "}",
    "[]",
    "{'a'}",
    "{'a': }",
    "{'a': b}",
    "{'a': 1",
    "{'a': 1,, 'b': 2}",
    "{'a': 1} trailing",
    "{'a': __import__('os').system('true')}",
    "{'a': open('/etc/passwd').read()}",
    "{'a': 'x' * 1000000000}",
    "{'a': 9**9**9}",
    "{'a': " + "9" * 10_000 + "}",
    "{'a': 1e}",
    "{'a': --1}",
    "{'a': 'unclosed}",
    "{'a': 'two\nlines'}",
    r"{'a': '\xzz'}",
    r"{'a': '\N{BULLET}'}",
    r"{'a': '\U00110000'}",
    r"{'a': b'\u20ac'}",
    "{1: 2}",
    "{'a': 1, 'a': 2}",
    "{'a': {1, 2}}",
    "{'a': " + "[" * 100_000 + "]" * 100_000 + "}",
    "{'a': " + "{'b': " * 70 + "1" + "}" * 71,
    "{'a': lambda: 0}",
    "{'a': 'x' 'y'}",
    "{'a': f'{1}'}",
    "{'a': nan}",
    "{'a': 1 # comment\n}",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:30]))
def test_what_repr_does_not_write_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(UsageError, match=r"^t at character \d+: [^\n]+$"):
        parsed(text)


def test_mutated_text_is_read_or_refused() -> None:
    """Nothing but UsageError comes out of any text."""
    good = repr({"ttl": {"k": 1.5}, "k": "v\n'\"", "l": ["a", "b"], "h": {"f": "ü", "g": b"\xff"}, "_META_": META})
    rng = random.Random(6)
    refused = 0
    for _ in range(5_000):
        at = rng.randrange(len(good))
        text = (
            good[:at]
            + rng.choice(["", "'", "\\", "{", "]", "9", "\0", "\n", good[rng.randrange(len(good)) :]])
            + good[at + 1 :]
        )
        try:
            parsed(text)
        except UsageError:
            refused += 1
    assert 1_000 < refused < 5_000


BAD = [
    ({}, {"term": 1}, "no index"),
    ({}, {"term": 0, "index": 5}, "no term"),
    ({}, {"term": 1 << 63, "index": 5}, "no term"),
    ({}, {"term": -1, "index": 5}, "no term"),
    ({}, {"term": 1.5, "index": 5}, "no term"),
    ({}, 5, "no index"),
    ({"ttl": {"k": "soon"}}, META, "ttl of b'k' is not a time"),
    ({"ttl": {"k": [1]}}, META, "ttl of b'k' is not a time"),
    ({"ttl": {"k": 1e300}}, META, "ttl of b'k' is not a time"),
    ({"ttl": []}, META, "ttl is not a dict"),
    ({"k": [["nested"]]}, META, "key b'k' holds a list in a list"),
    ({"k": {"f": ["x"]}}, META, "key b'k' holds a list in a dict"),
    ({"k": {"a/b": {"x": "y"}}}, META, "cannot be stored"),
]


@pytest.mark.parametrize(("data", "meta", "reason"), BAD, ids=[reason for *_, reason in BAD])
def test_what_has_no_form_here_is_refused_and_nothing_is_left(
    tmp_path: Path, data: Any, meta: Any, reason: str
) -> None:
    file = write(tmp_path / "raft_1_5_5.dat", data, meta)
    with pytest.raises(UsageError, match=reason):
        starting.create_alone(Config(node_id="n1", data_dir=str(tmp_path / "d"), load=str(file), min_free_bytes=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raft_1_5_5.dat"]


def test_a_checkpoint_becomes_a_cluster_of_one(start_node: StartNode, tmp_path: Path) -> None:
    soon = clock.wall_ms() / 1000 + 3600
    file = write(
        tmp_path / "raft_1_1700000000_4711.dat",
        {
            "ttl": {"short": soon, "gone": 1000.5, "nobody": soon},
            "colour": 'dark "red"\r\n\'',
            "grün": "größer",
            "short": "lived",
            "gone": "long ago",
            "number": 7,
            "flag": True,
            "list": ["a", "b", "ü"],
            "hash": {"f": "1", "g": ""},
            "tree": {"size": 3, "below": {"deep": "yes", "empty": {}}},
            "empty list": [],
            "empty hash": {},
            "ZK": {"zookeeper": {}},
            "binary": b"\x00\xff",
        },
    )
    node = start_node(load=str(file))
    assert (node.execute("GET", "colour"), node.execute("GET", "grün")) == (b'dark "red"\r\n\'', "größer".encode())
    assert node.execute("PEXPIRETIME", "short") == int(soon * 1000)
    assert (node.execute("GET", "gone"), node.execute("GET", "flag")) == (None, b"true")
    assert node.execute("INCR", "number") == 8
    assert node.execute("LRANGE", "list", 0, -1) == [b"a", b"b", "ü".encode()]
    assert node.execute("HGET", "hash", "f") == b"1"
    assert node.execute("TLS", "tree") == [b"below"]
    assert node.execute("TLS", "tree/below") == [b"empty"]
    assert node.execute("TGET", "tree/below", "deep") == b"yes"
    assert node.execute("GET", "binary") == b"\x00\xff"
    assert node.execute("EXISTS", "empty list", "empty hash", "ZK", "ttl", "_META_", "nobody") == 0
    assert node.driver.applied > META["index"]
    assert node.term > META["term"]
    assert read_identity(Path(node.config.data_dir)).source_digest == forerunner.digest(file)


def test_the_same_checkpoint_again_is_ignored_and_another_is_refused(start_node: StartNode, tmp_path: Path) -> None:
    file = write(tmp_path / "raft_1_5_5.dat", {"k": "v"})
    node = start_node(load=str(file))
    node.execute("SET", "k", "newer")
    node.stop()
    again = start_node(load=str(file), address=node.config.address)
    assert again.execute("GET", "k") == b"newer"
    again.stop()
    other = write(tmp_path / "other.dat", {"k": "w"})
    with pytest.raises(UsageError, match="holds other data"):
        start_node(load=str(other))


def test_an_interrupted_attempt_is_swept(tmp_path: Path) -> None:
    (tmp_path / ".d.import" / "kv").mkdir(parents=True)
    file = write(tmp_path / "c.dat", {"k": "v"})
    starting.create_alone(Config(node_id="n1", data_dir=str(tmp_path / "d"), load=str(file), min_free_bytes=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.dat", "d"]
    data = DataDir.open(tmp_path / "d")
    assert (data.log.hard.term, data.log.last, data.kv.applied) == (META["term"], META["index"], META["index"])
    data.close(clean=True)
