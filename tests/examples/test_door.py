"""pyraft's door as its programs use it: three processes, each with a subclass of RaftNode whose callbacks misbehave."""

from __future__ import annotations

import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import wait_for

from .programs import Program, free_ports, leader_of, programs

pytestmark = pytest.mark.e2e

SCRIPT = Path(__file__).with_name("door.py")


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[list[Program]]:
    with programs(tmp_path_factory.mktemp("door"), SCRIPT, 3) as started:
        yield started


@pytest.fixture
def leader(running) -> Program:
    return wait_for("a leader", lambda: leader_of(running))


@pytest.fixture
def followers(running, leader) -> list[Program]:
    return [program for program in running if program is not leader]


def ask(program: Program, *words: Any) -> Any:
    with program.client() as r:
        return json.loads(r.execute_command(*words))


def call(program: Program, method: str, *words: Any) -> Any:
    return ask(program, "call", method, *words)


def caught_up(program: Program, leader: Program) -> Any:
    """The attributes of a program that has applied what its leader has."""
    index = ask(leader, "attributes")["index"]

    def look() -> Any:
        found = ask(program, "attributes")
        return found if found["index"] >= index else None

    return wait_for(f"{program.nid} to catch up", look)


def test_every_attribute_on_every_node(running, leader, followers):
    with leader.client() as r:
        r.set("color", "red", ex=1_000)
        r.rpush("l", "a", "b")
        r.hset("h", mapping={"f": "1"})
    told = {program.nid: caught_up(program, leader) for program in running}
    for program in running:
        found = told[program.nid]
        assert (found["nid"], found["addr"]) == (program.nid, program.addr)
        assert (found["ip"], found["port"]) == ("127.0.0.1", program.port)
        assert found["state"] == ("l" if program is leader else "f")
        assert (found["shutdown_flag"], found["overwrite_peer"], found["locked"]) == (False, False, True)
        assert found["term"] >= 1
        assert 0 < found["index"] == found["last_applied"] <= found["commit_index"] <= found["log"][1]
        assert {"color": "red", "l": ["a", "b"], "h": {"f": "1"}}.items() <= found["data"].items()
        assert found["ttl"].keys() == {"color"}
        assert found["worker"] == ["attributes", "call", "later", "stamp"]
        assert found["waiting"] == found["last_checkpoint"] == 0
        assert found["peers"].keys() == {"1", "2", "3"} - {program.nid}
        for nid, peer in found["peers"].items():
            assert (peer["nid"], peer["ip"]) == (nid, "127.0.0.1")
            assert peer["addr"] == running[int(nid) - 1].addr == f"{peer['ip']}:{peer['port']}"
            assert peer["state"] == ("l" if nid == leader.nid else "f")
        assert (found["pending"] is None) == (program is not leader)
    assert len({(found["term"], found["ttl"]["color"]) for found in told.values()}) == 1
    assert all(0 < peer["index"] <= told[leader.nid]["log"][1] for peer in told[leader.nid]["peers"].values())
    assert 0 <= told[leader.nid]["pending"] < 5


def test_callbacks_came_in_order_and_their_misbehaviour_stopped_nothing(running, leader, followers):
    for program in running:
        seen = ask(program, "attributes")["seen"]
        assert seen[0] == ["on_start", "c"]
        assert seen[-1] == (["on_leader", "l"] if program is leader else ["on_follower", "f"])
        assert {tuple(row) for row in seen} <= {
            ("on_start", "c"),
            ("on_candidate", "c"),
            ("on_follower", "f"),
            ("on_leader", "l"),
        }
        assert "on_start raises" in program.output
    with leader.client() as r:
        wait_for("the followers to have called back", lambda: r.hlen("followed") >= 2)
        assert set(r.hkeys("followed")) >= {program.nid for program in followers}


def test_a_replicated_handler_runs_once_on_every_replica_with_the_same_time_and_chance(running, leader, followers):
    before = {program.nid: caught_up(program, leader)["stamped"] for program in running}
    with followers[0].client() as first, followers[1].client() as second, leader.client() as third:
        answers = {str(n): r.execute_command("stamp", n) for n, r in enumerate((first, second, third, first))}
    assert len(set(answers.values())) == 4
    for program in running:
        found = caught_up(program, leader)
        assert found["stamped"] - before[program.nid] == 4
        assert {key[6:]: text for key, text in found["data"].items() if key.startswith("stamp_")} == answers


def test_info_json_as_the_forerunner_told_it(running, leader):
    for program in running:
        with program.client() as r:
            r.response_callbacks.clear()
            told = json.loads(r.execute_command("INFO", "json"))
        assert (told["nid"], told["state"]) == (program.nid, "l" if program is leader else "f")
        assert told["peers"].keys() == {"1", "2", "3"} - {program.nid}
        for nid, peer in told["peers"].items():
            assert peer["state"] == ("l" if nid == leader.nid else "f")
            assert (peer["addr"], peer["term"]) == (running[int(nid) - 1].addr, told["term"])
            assert peer["index"] <= told["index"] + 100


def test_requests_on_every_node(running, leader):
    for number, program in enumerate(running):
        assert call(program, "request", "set", "k", number) is True
        assert call(program, "request", "get", "k") == str(number)
        assert call(program, "request", "get", "absent") is None
        assert "not an integer" in call(program, "request", "incr", "l") or "WRONGTYPE" in call(
            program, "request", "incr", "l"
        )
        assert "unknown command" in call(program, "request", "nonsense")
        assert ask(program, "later", "incr", "async") == [3 * number + n for n in (1, 2, 3)]
        assert ask(program, "later", "get", "absent") == [None] * 3
        assert "wrong number" in call(program, "propose", "get")["raised"]
        assert call(program, "propose", "lrange", "l", 0, -1) == ["a", "b"]


def test_a_silent_follower_shows_in_the_pending_time(leader, followers):
    assert call(leader, "get_pending_time") < 5
    followers[0].process.send_signal(signal.SIGSTOP)
    try:
        wait_for("the pending time to grow", lambda: call(leader, "get_pending_time") > 0.4)
    finally:
        followers[0].process.send_signal(signal.SIGCONT)
    wait_for("the pending time to fall", lambda: call(leader, "get_pending_time") < 0.4)
    assert call(followers[1], "get_pending_time") is None


def test_checkpoints_by_method(running, leader):
    for program in running:
        name = call(program, "checkpoint")
        assert re.fullmatch(rf"raft_{program.nid}_\d+_\d+\.dat", name)
        assert (program.directory / program.nid / "snapshots" / name).is_file()
        assert ask(program, "attributes")["last_checkpoint"] == int(re.split(r"[_.]", name)[3])
        assert call(program, "checkpoint", "mine.dat") == "mine.dat"
        assert "plain file name" in call(program, "checkpoint", "../x")["raised"]
        assert "color" in call(program, "get_snapshot")


def test_members_by_method(running, leader, followers):
    """del_node() of one that has died, add_node() of another in its place."""
    gone, stays = followers
    data = ask(leader, "attributes")["data"]
    gone.kill()
    assert call(stays, "del_node", gone.nid) is True
    wait_for("the peer to go", lambda: ask(leader, "attributes")["peers"].keys() == {stays.nid})
    assert call(leader, "del_node", gone.nid) is False
    (port,) = free_ports(1)
    assert call(stays, "add_node", "4", f"127.0.0.1:{port}") is True
    assert call(leader, "add_node", "5", stays.addr) is False  # the address is taken
    fourth = Program(gone.directory, SCRIPT, "4", port, leader.addr)
    running[running.index(gone)] = fourth
    wait_for("the fourth to serve", fourth.answers, 30)
    assert call(fourth, "get_peers").keys() == {leader.nid, stays.nid}
    assert caught_up(fourth, leader)["data"]["color"] == data["color"]
    wait_for("it to be a voter", lambda: voters(leader) == 3)


def voters(program: Program) -> int:
    with program.client() as r:
        return int(r.info("raft")["raft_voters"])


def test_another_leads_when_the_leader_dies_though_its_callback_hung(running, leader, followers):
    with leader.client() as r:
        r.set("last", "before")
    leader.kill()
    second = wait_for("another leader", lambda: leader_of(followers))
    wait_for("its callback", lambda: ["on_leader", "l"] in ask(second, "attributes")["seen"])
    assert call(second, "request", "get", "last") == "before"
    other = next(program for program in followers if program is not second)
    assert call(other, "request", "set", "last", "after") is True
    leader.start()
    wait_for("the former leader to serve", leader.answers)
    found = caught_up(leader, second)
    assert (found["state"], found["data"]["last"]) == ("f", "after")
    assert found["seen"] == [["on_start", "c"], ["on_follower", "f"]]


def test_a_new_cluster_loads_the_checkpoint_of_the_old_one(running, leader, tmp_path):
    call(leader, "request", "set", "loaded", "yes")
    call(leader, "checkpoint", "move.dat")
    file = leader.directory / leader.nid / "checkpoints" / "move.dat"
    one, two = free_ports(2)
    first = Program(tmp_path, SCRIPT, "1", one, "", "-l", str(file))
    second = None
    try:
        wait_for("the new node to serve", first.answers, 30)
        second = Program(tmp_path, SCRIPT, "2", two, first.addr)
        wait_for("the second to serve", second.answers, 30)
        assert caught_up(second, first)["data"]["loaded"] == "yes"
        assert second.terminate() == first.terminate() == 0
    finally:
        first.kill()
        if second is not None:
            second.kill()


def test_sigterm_ends_a_program_cleanly(running, followers):
    program = followers[0]
    assert program.terminate() == 0, program.output
    assert f"node {program.nid} ends" in program.output


@pytest.mark.parametrize(
    "words", [("-a", "nowhere"), ("-a", "127.0.0.1:70000"), ("-loglevel", "loud"), ("-e", "a b:1")]
)
def test_a_mistake_on_the_command_line_is_a_raft_exception(tmp_path, words):
    program = Program(tmp_path, SCRIPT, "1", 5_010, "", *words)
    assert program.process.wait(20) == 1
    assert program.output.splitlines()[-1].startswith("raftdb.raft.RaftException: ")


def typed(program: Program, *lines: str) -> str:
    """What telnet shows for these lines."""
    with socket.create_connection(("127.0.0.1", program.port), timeout=20) as connection:
        connection.sendall("".join(f"{line}\r\n" for line in (*lines, "quit")).encode())
        return b"".join(iter(lambda: connection.recv(4096), b"")).decode()


def test_the_daemon_grows_to_three_as_the_readme_types_it(tmp_path):
    """`python -m pyraft.run_raft -i 1 -a ...`; 2 is given 1's address, 3 is given 2's; what one was told all know."""
    ports = free_ports(3)
    running: list[Program] = []
    try:
        for number, port in enumerate(ports, 1):
            others = f"127.0.0.1:{ports[number - 2]}" if running else ""
            running.append(Program(tmp_path, "raftdb.raft", str(number), port, others))
            wait_for(f"{number} to serve", running[-1].answers, 30)
            if number == 1:
                assert typed(running[0], "set key value", "get key") == "+OK\r\n$5\r\nvalue\r\n+OK\r\n"
        for program in running:
            wait_for("three voters", lambda program=program: voters(program) == 3)
            assert typed(program, "get key") == "$5\r\nvalue\r\n+OK\r\n"
        assert typed(running[2], "expire key 1000", "del key", "get key") == ":1\r\n:1\r\n$-1\r\n+OK\r\n"
        assert [program.terminate() for program in reversed(running)] == [0, 0, 0]
    finally:
        for program in running:
            program.kill()


def test_a_default_node_never_begins_empty_in_place_of_a_file(tmp_path):
    script = tmp_path / "run_raft.py"
    script.write_text("from raftdb import raft\nnode = raft.make_default_node()\nnode.start()\nnode.join()\n")
    program = Program(tmp_path, script, "1", free_ports(1)[0], "", "-l", "missing.dat")
    assert program.process.wait(20) == 1
    assert "cannot load missing.dat: no such file" in program.output.splitlines()[-1]
    assert not (tmp_path / "1").exists()
