"""`raftdb status`: what it makes of answers, also of none and of odd ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from raftdb import status
from raftdb.cli import cli
from raftdb.errors import CommandError


class Talker:
    """A server that answers every command with the same bytes."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                connection.sendall(self.answer)

    def close(self) -> None:
        self.listener.close()


@pytest.fixture
def talk() -> Iterator:
    made: list[Talker] = []

    def make(answer: bytes) -> Talker:
        made.append(Talker(answer))
        return made[-1]

    yield make
    for talker in made:
        talker.close()


def bulk(text: str) -> bytes:
    return f"${len(text)}\r\n{text}\r\n".encode()


def info(role: str, node_id: str, peers: list[str], **more: object) -> str:
    lines = {"node_id": node_id, "cluster_id": "c1", "role": role, "term": 3, "last_index": 9, **more}
    text = "# Raft\r\n" + "".join(f"raft_{name}:{value}\r\n" for name, value in lines.items())
    return text + "".join(f"raft_peer{n}:{peer}\r\n" for n, peer in enumerate(peers))


def test_a_cluster_with_one_dead_member(talk):
    with socket.create_server(("127.0.0.1", 0)) as dead:
        dead_address = f"127.0.0.1:{dead.getsockname()[1]}"
    second = talk(bulk(info("follower", "n2", [], applied_index=8)))
    rows = [
        "id=n1,addr=127.0.0.1:1,voter=yes,state=leader",
        f"id=n2,addr={second.address},voter=yes,state=follower,match=7,lag=2,lag_ms=12,contact_ms=40",
        f"id=n3,addr={dead_address},voter=yes,state=follower,lag=9,lag_ms=,contact_ms=9000",
        f"id=n4,addr={second.address},voter=no,state=follower",
    ]
    first = talk(bulk(info("leader", "n1", rows, commit_index=9)))
    found = status.cluster_status(first.address)
    assert found.leader_id == "n1"
    assert found.term == 3
    assert found.failures_survivable == 0  # three voters, one of them dead
    by_id = {member.id: member for member in found.members}
    assert by_id["n2"].lag_entries == 2
    assert by_id["n2"].lag_ms == 12
    assert by_id["n2"].applied_index == 8
    assert not by_id["n3"].is_reachable
    assert by_id["n3"].role.startswith("unreachable")
    assert by_id["n3"].lag_ms is None
    assert not by_id["n4"].voter
    assert "survives no further failure" in status.headline(found)


def test_no_leader_is_said_and_has_its_exit_code(talk):
    row = "id=n1,addr=127.0.0.1:1,voter=yes,state=candidate"
    lost = talk(bulk(info("candidate", "n1", [row])))
    done = CliRunner().invoke(cli, ["status", "-a", lost.address])
    assert done.exit_code == 4
    assert "no leader" in done.output
    done = CliRunner().invoke(cli, ["status", "-a", lost.address, "--quiet"])
    assert (done.exit_code, done.output) == (4, "")


def test_json_has_every_field(talk):
    row = "id=n1,addr=127.0.0.1:1,voter=yes,state=leader"
    one = talk(bulk(info("leader", "n1", [row])))
    done = CliRunner().invoke(cli, ["status", "-a", one.address, "--json"])
    data = json.loads(done.output)
    assert done.exit_code == 0
    assert data["members"][0]["id"] == "n1"
    assert set(data["members"][0]) == set(status.MemberStatus._fields)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"$5\r\nab",
        bulk("redis_version:7.0.0"),
        b"-NOAUTH Authentication required.\r\n",
        b"*1\r\n" * 100,
        b"$99999999\r\n" + b"x" * (2 << 20),
    ],
)
def test_odd_answers_are_one_line_and_exit_code_3(talk, answer):
    odd = talk(answer)
    done = CliRunner().invoke(cli, ["status", "-a", odd.address])
    assert done.exit_code == 3
    assert "Traceback" not in done.output
    with pytest.raises((status.Unreachable, CommandError)):
        status.cluster_status(odd.address)


def test_a_bad_address_is_a_usage_error():
    assert CliRunner().invoke(cli, ["status", "-a", "nowhere"]).exit_code == 2


def test_watch_goes_on_when_nobody_answers():
    def fetch() -> status.ClusterStatus:
        raise status.Unreachable("127.0.0.1:1: refused")

    status.watch(fetch, 0.0, rounds=2, pause=lambda s: None)
