"""pyraft's tree commands."""

from __future__ import annotations

import json

import pytest

from raftdb.errors import CommandError


def test_nodes_attributes_and_children(replica):
    assert replica("TMK", "app").data == b"+OK\r\n"
    assert replica("TMK", "app/web", "port", "80", "host", "a").data == b"+OK\r\n"
    assert replica("TMK", "app/db", '{"size": 1e3, "on": true, "main": {"role": "first"}, "none": null}')
    assert replica("TLS", "app") == [b"db", b"web"]
    assert replica("TGET", "app/web", "port") == b"80"
    assert json.loads(replica("TGET", "app/db")) == {"size": "1e3", "on": "true", "none": "null"}
    assert replica("TGET", "app/db/main", "role") == b"first"
    replica("TSET", "app/web", "port", "81")
    assert json.loads(replica("TGET", "app/web")) == {"port": "81", "host": "a"}
    replica("TSET", "app", '{"web": {"more": "x"}}')
    assert replica("TGET", "app/web", "more") == b"x"


def test_removing(replica):
    replica("TMK", "a", '{"x": "1", "y": "2", "b": {"c": {"d": {"e": "f"}}}}')
    replica("TRM", "a", "x", "y")
    assert replica("TGET", "a") == b"{}"
    assert replica("TLS", "a") == [b"b"]
    assert replica("EXISTS", "a/b", "a/b/c", "a/b/c/d") == 3
    replica("TRM", "a/b")
    assert replica("KEYS", "*") == [b"a"]
    assert replica("TLS", "a") == []
    assert replica("TMK", "a/b").data == b"+OK\r\n"
    replica("TRM", "a")
    assert replica("DBSIZE") == 0


def test_a_hash_is_a_node(replica):
    replica("HSET", "h", "field", "value")
    assert replica("TGET", "h", "field") == b"value"
    assert replica("TLS", "h") == []
    assert replica("TMK", "h/child").data == b"+OK\r\n"
    assert replica("TLS", "h") == [b"child"]


@pytest.mark.parametrize(
    "line",
    [
        ["TMK", "no/such/parent"],
        ["TMK", "a"],
        ["TMK", "a/b"],
        ["TMK", "a/x"],
        ["TMK", ""],
        ["TMK", "a//c"],
        ["TMK", "/".join("a" * 65)],
        ["TMK", "a/c", "odd", "number", "of"],
        ["TMK", "a/c", "na/me", "x"],
        ["TMK", "a/c", "[1]"],
        ["TMK", "a/c", '{"list": [1]}'],
        ["TMK", "a/c", '{"": 1}'],
        ["TMK", "a/c", "{"],
        ["TMK", "a/c", '{"\\ud800": 1}'],
        ["TMK", "a/c", "{" * 100_000],
        ["TMK", "a/c", '{"a":' * 5_000 + "1" + "}" * 5_000],
        ["TSET", "a", '{"b": "text over a child"}'],
        ["TSET", "a", '{"x": {}}'],
        ["TSET", "nosuch", "k", "v"],
        ["TGET", "a", "nosuch"],
        ["TGET", "a", "/b"],
        ["TGET", "nosuch"],
        ["TGET", "text"],
        ["TLS", "nosuch"],
        ["TRM", "a", "nosuch"],
        ["TRM", "nosuch"],
    ],
)
def test_mistakes_are_command_errors_and_change_nothing(replica, line):
    replica("TMK", "a", '{"x": "1", "b": {}}')
    replica("SET", "text", "x")
    digest = replica.kv.digest
    assert isinstance(replica(*line), CommandError)
    assert replica.kv.digest == digest
