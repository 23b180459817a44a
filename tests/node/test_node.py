"""A node of its own: start, commands, callbacks, stop, and what it refuses to start on."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any

import pytest
import redis

from raftdb import clock
from raftdb.commands.args import Bytes, Key
from raftdb.commands.strings import String
from raftdb.commands.table import WRITE, command
from raftdb.errors import CommandError, Uncertain, UsageError
from tests.e2e.processes import wait_for
from tests.node.conftest import StartNode
from tests.ports import free_port


def client(node: Any, **options: Any) -> redis.Redis:
    return redis.Redis(port=node.config.port, socket_timeout=10, **options)


def test_what_was_answered_is_there_after_a_restart(start_node: StartNode) -> None:
    node = start_node()
    assert node.execute("SET", "color", "red") == "OK"
    assert node.execute("INCR", "n") == 1
    node.stop()
    again = start_node()
    assert again.execute("GET", "color") == b"red"
    assert again.execute("INCR", "n") == 2
    assert again.term > node.term


def test_a_core_knows_the_time_before_its_first_tick(start_node: StartNode) -> None:
    """Its first answer carries the wall clock: with 0 in it the leader would take its own clock for a wrong one."""
    before = clock.wall_ms()
    assert before <= start_node()._new_core(1).wall_ms <= clock.wall_ms()


def test_execute_raises_the_error_of_the_command(start_node: StartNode) -> None:
    node = start_node()
    node.execute("SET", "color", "red")
    with pytest.raises(CommandError, match="not an integer"):
        node.execute("INCR", "color")
    with pytest.raises(CommandError, match="unknown command"):
        node.execute("NOSUCH")
    assert node.execute("PING") in (b"PONG", "PONG") or node.execute("PING").data == b"+PONG\r\n"


def test_execute_is_answered_though_the_driver_is_stuck(start_node: StartNode) -> None:
    """By the watchdog, each time anew: UNCERTAIN."""
    node = start_node(request_timeout_ms=300)
    for count in (1, 2):
        stuck, released = threading.Event(), threading.Event()
        node.driver.call(lambda: (stuck.set(), released.wait(30)))  # noqa: B023 (called before the loop goes on)
        assert stuck.wait(10)
        try:
            with pytest.raises(Uncertain, match="no answer within the request time-out"):
                node.execute("INCR", "n")
        finally:
            released.set()
        assert node.execute("SET", "after", count) == "OK"


@command("CAS", Key(String), Bytes("expected"), Bytes("value"), flags=WRITE, summary="Compare and set")
def cas(ctx: Any, key: Any, expected: bytes, value: bytes) -> int:
    if key.get() != expected:
        return 0
    key.set(value)
    return 1


def test_a_command_of_the_application_is_a_command(start_node: StartNode) -> None:
    node = start_node(commands=[cas])
    connection = client(node)
    connection.set("color", "red")
    assert connection.execute_command("CAS", "color", "blue", "green") == 0
    assert connection.execute_command("CAS", "color", "red", "green") == 1
    assert node.execute("GET", "color") == b"green"


def test_callbacks_come_in_order_after_the_state_has_changed_and_may_raise(start_node: StartNode) -> None:
    from raftdb.config import MIB, Config
    from raftdb.node.node import Node

    seen: list[tuple[str, str]] = []
    done = threading.Event()

    def note(name: str) -> Any:
        def callback(node: Any) -> None:
            seen.append((name, node.role.value))
            if name == "on_leader":
                node.execute("SET", "from", "callback")
                done.set()
            raise RuntimeError("the application's own trouble")

        return callback

    node = start_node(ready=False)
    node.stop()
    config = Config(address="127.0.0.1:0", node_id="n1", data_dir=node.config.data_dir, map_size_bytes=256 * MIB)
    second = Node(config)
    for name in ("on_start", "on_leader", "on_shutdown"):
        second.subscribe(name, note(name))
    second.start()
    assert done.wait(20)
    assert second.execute("GET", "from") == b"callback"
    second.stop()
    assert [name for name, _ in seen] == ["on_start", "on_leader", "on_shutdown"]
    assert seen[1] == ("on_leader", "leader")


def test_pipelines_keep_their_order_whatever_they_mix(start_node: StartNode) -> None:
    connection = client(start_node())
    pipeline = connection.pipeline(transaction=False)
    for number in range(50):
        pipeline.set("k", number)
        pipeline.get("k")
        if number % 7 == 0:
            pipeline.echo(f"e{number}")
        if number % 11 == 0:
            pipeline.incr("nothing")
            pipeline.execute_command("SELECT", 0)
    expected: list[Any] = []
    count = 0
    for number in range(50):
        expected += [True, str(number).encode()]
        if number % 7 == 0:
            expected.append(f"e{number}".encode())
        if number % 11 == 0:
            count += 1
            expected += [count, True]
    assert [item if item != b"OK" else True for item in pipeline.execute()] == expected


def test_with_little_disk_left_only_the_writes_of_a_mixed_pipeline_are_refused(start_node: StartNode) -> None:
    node = start_node()
    with client(node) as db:
        db.mset({"a": 1, "b": 2, "c": 3})
        node.housekeeper.min_free_bytes = 1 << 60
        node.housekeeper._look()
        with db.pipeline(transaction=False) as pipe:
            pipe.get("a").set("a", 2).get("a").delete("b").exists("b").incr("n").strlen("c").lrange("l", 0, -1)
            replies = pipe.execute(raise_on_error=False)
        assert [str(reply)[:12] if isinstance(reply, Exception) else reply for reply in replies] == [
            *(b"1", "less than --", b"1", 1, 0, "less than --", 1, []),
        ]
        with db.pipeline(transaction=True) as pipe, pytest.raises(redis.ResponseError, match="less than --min-free"):
            pipe.get("a").set("a", 2).execute()
        node.housekeeper.min_free_bytes = 0
        node.housekeeper._look()
        assert db.set("a", 2)


def test_exec_aborts_when_a_watched_key_was_written(start_node: StartNode) -> None:
    node = start_node()
    one, other = client(node), client(node)
    one.set("k", "1")
    with one.pipeline() as pipeline:
        pipeline.watch("k")
        other.set("k", "2")
        pipeline.multi()
        pipeline.set("k", "3")
        with pytest.raises(redis.WatchError):
            pipeline.execute()
    assert one.get("k") == b"2"


def test_exec_runs_local_commands_in_their_places(start_node: StartNode) -> None:
    connection = client(start_node())
    pipeline = connection.pipeline()
    pipeline.set("a", 1).ping().get("a").execute_command("SELECT", 3)
    pipeline.set("a", 2)
    assert pipeline.execute() == [True, True, b"1", True, True]


def test_a_client_that_wants_no_replies_gets_none(start_node: StartNode) -> None:
    node = start_node()
    with socket.create_connection(("127.0.0.1", node.config.port), timeout=10) as sock:
        sock.sendall(b"CLIENT REPLY OFF\r\nSET a 1\r\nGET a\r\nPING\r\nCLIENT REPLY ON\r\nGET a\r\n")
        data = b""
        while not data.endswith(b"$1\r\n1\r\n"):
            data += sock.recv(1000)
        assert data == b"+OK\r\n$1\r\n1\r\n"
        sock.sendall(b"CLIENT REPLY SKIP\r\nSET a 2\r\nGET a\r\n")
        assert sock.recv(1000) == b"$1\r\n2\r\n"


def test_a_password_is_asked_for(start_node: StartNode) -> None:
    node = start_node(requirepass="sesame")
    with pytest.raises(redis.AuthenticationError):
        client(node, retry=None).get("a")
    assert client(node, password="sesame").set("a", 1)
    with pytest.raises(redis.AuthenticationError):
        client(node, password="wrong", retry=None).get("a")


def test_keys_fall_due_without_anybody_writing(start_node: StartNode) -> None:
    connection = client(start_node())
    connection.set("short", "x", px=60)
    connection.set("long", "x", ex=1000)
    deadline = threading.Event()
    for _ in range(400):
        if connection.dbsize() == 1:
            break
        deadline.wait(0.02)
    assert connection.get("short") is None
    assert connection.dbsize() == 1


def test_save_and_checkpoint_make_files(start_node: StartNode) -> None:
    node = start_node()
    connection = client(node)
    connection.mset({f"k{n}": n for n in range(100)})
    assert connection.save()
    assert node.data.log.snapshot is not None
    assert node.data.log.snapshot.index == node.driver.applied
    connection.execute_command("CHECKPOINT", "mine.dat")
    assert (node.data.path / "checkpoints" / "mine.dat").exists()
    with pytest.raises(redis.ResponseError):
        connection.execute_command("CHECKPOINT", "../outside.dat")


def test_so_many_entries_call_for_a_snapshot_but_not_for_one_of_much_more_data(start_node: StartNode) -> None:
    node = start_node(snapshot_entries=50)
    for number in range(60):
        node.execute("SET", "k", number)
    wait_for("a snapshot", lambda: node.data.log.snapshot is not None)
    node.execute("SET", "large", "x" * 8_000_000)
    name = node.port.checkpoint(None, "msgpack")
    last = node.data.log.snapshot
    assert last is not None
    assert last.name == name
    asked: list[None] = []

    def looks(entries: int, log_bytes: int) -> bool:
        node.in_driver(lambda: node.snapshotter.trigger(last.index + entries, log_bytes, clock.monotonic(), False))
        return bool(asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.snapshotter, "request", lambda: asked.append(None))
        assert not looks(50, last.size_bytes // 4 - 1)
        assert not looks(49, last.size_bytes // 4)
        assert looks(50, last.size_bytes // 4)


@pytest.mark.parametrize("name", ["a/b", "..", "../x", "", "x.part", "a" * 300])
def test_a_bad_name_of_a_checkpoint_is_the_mistake_of_its_caller_only(start_node: StartNode, name: str) -> None:
    node = start_node()
    with client(node) as db:
        with pytest.raises(redis.ResponseError, match="is not a plain file name"):
            db.execute_command("CHECKPOINT", name)
        assert db.info("persistence")["rdb_last_bgsave_status"] == "ok"
        with pytest.raises(UsageError):  # whoever asks the snapshotter itself
            node.snapshotter.request(name or "/")
        assert db.info("persistence")["rdb_last_bgsave_status"] == "ok"
        db.save()


def test_info_and_role_tell_the_truth(start_node: StartNode) -> None:
    connection = client(start_node(), decode_responses=True)
    raft = connection.info("raft")
    assert raft["raft_role"] == "leader"
    assert raft["raft_voters"] == 1
    assert raft["raft_peer0"]["id"] == "n1"
    assert connection.info("replication")["role"] == "master"
    assert connection.config_get("reads") == {"reads": "linearizable"}
    connection.config_set("reads", "stale")
    assert connection.config_get("reads") == {"reads": "stale"}
    with pytest.raises(redis.ResponseError, match="immutable"):
        connection.config_set("workers", "9")


# --- what it refuses to start on ------------------------------------------------------------------------------------


def test_a_taken_port_is_named_and_nothing_is_touched(start_node: StartNode, tmp_path: Path) -> None:
    node = start_node()
    with pytest.raises(UsageError, match=rf"cannot listen on 127\.0\.0\.1:{node.config.port}"):
        start_node("n2", address=node.config.address)
    port = free_port()
    with (
        socket.create_server(("127.0.0.1", port + 1)),
        pytest.raises(UsageError, match="peers' port of node n2"),
    ):
        start_node("n2", address=f"127.0.0.1:{port}")
    assert not (tmp_path / "n2").exists()


def test_a_data_directory_has_one_node(start_node: StartNode) -> None:
    node = start_node()
    with pytest.raises(UsageError):
        start_node("n1", data_dir=node.config.data_dir)
    assert node.execute("DBSIZE") == 0


def test_data_of_another_id_is_refused_and_stays_as_it_is(start_node: StartNode, tmp_path: Path) -> None:
    start_node().stop()
    with pytest.raises(UsageError, match="holds the data of node 'n1'"):
        start_node("n2", data_dir=str(tmp_path / "n1"))
    assert start_node().execute("DBSIZE") == 0


def test_protected_mode_wants_a_password_and_a_secret_beyond_loopback(start_node: StartNode, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--requirepass"):
        start_node(address="127.0.0.1:0", bind="0.0.0.0")
    with pytest.raises(UsageError, match="--cluster-secret-file"):
        start_node(address="127.0.0.1:0", bind="0.0.0.0", requirepass="sesame")
    assert not (tmp_path / "n1").exists()
    assert start_node(address="127.0.0.1:0", bind="0.0.0.0", protected_mode=False)


def test_an_own_snapshot_that_an_install_has_overtaken_is_left_alone(start_node: StartNode) -> None:
    """The child was still writing it when a leader's newer one became the base of the log."""
    node = start_node(keep_entries=1, keep_bytes=1)
    connection = client(node)
    for number in range(3):
        connection.set("k", number)
        connection.save()
    older, newest = node.data.log.previous_snapshot, node.data.log.snapshot
    assert older is not None
    assert newest is not None
    node.in_driver(lambda: node.data.log.trim(newest.index + 1, 1000))
    assert node.data.log.first > older.index + 1
    node.in_driver(lambda: node._snapshot_made(older._replace(index=older.index - 1)))
    assert node.data.log.snapshot == newest
    assert connection.set("k", "still here")
