"""Who waits in vain is told what is true: busy, cut off, lagging; and a driver that is stuck says what it is about."""

from __future__ import annotations

import contextlib
import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from raftdb import clock
from raftdb.commands.args import Key
from raftdb.commands.strings import String
from raftdb.commands.table import WRITE, command
from raftdb.node import watchdog
from raftdb.node.pending import HANDING_OVER, LAGGING, LEADER_AWAY, LEADER_BUSY, NO_LEADER, NOT_CONFIRMED
from raftdb.node.pending import why_not_begun as why
from raftdb.node.reads import Reads
from raftdb.node.watchdog import Watchdog
from raftdb.types import NodeRef, Role
from tests.node.conftest import StartNode

WAIT_S = 20.0


def client(node: Any) -> redis.Redis:
    return redis.Redis(port=node.config.port, socket_timeout=WAIT_S)


def test_commands_that_waited_on_a_busy_leader_are_not_told_that_there_is_none(start_node: StartNode) -> None:
    node = start_node(leader_wait_ms=100)
    node.driver.in_flight_max = 0  # so that nothing is proposed
    with client(node) as db:
        with pytest.raises(redis.ResponseError, match="the leader is too busy"):
            db.execute_command("SET", "a", 1)
        node.driver.in_flight_max = 1
        assert db.get("a") is None
        assert db.set("a", 1)


def test_why_a_command_was_not_begun() -> None:
    leader = NodeRef("n2", 1)
    assert why(Role.LEADER, NodeRef("n1", 1)) is LEADER_BUSY
    assert why(Role.FOLLOWER, leader) is LEADER_AWAY
    assert why(Role.LEARNER, leader) is LEADER_AWAY
    assert why(Role.FOLLOWER, None) is NO_LEADER
    assert why(Role.CANDIDATE, None) is NO_LEADER


class FakeRun:
    """A read that remembers what it was told."""

    def __init__(self) -> None:
        self.since_s = 1.0
        self.conn = SimpleNamespace(loop=None, session=SimpleNamespace(written_index=0))
        self.told: Any = None

    def fail(self, error: Any) -> None:
        self.told = error


def test_why_a_read_was_not_answered() -> None:
    core = SimpleNamespace(leader=NodeRef("n2", 1), read_index=lambda _id: None)
    applier = SimpleNamespace(executed=0)
    driver = SimpleNamespace(core=core, applied=0, applier=applier, loop=None)
    reads = Reads(driver, SimpleNamespace())  # type: ignore[arg-type]
    unconfirmed, leaderless, lagging, handed_over = (FakeRun() for _ in range(4))
    reads._ask(None, [unconfirmed])  # type: ignore[arg-type, list-item]
    reads.answered([(1, -1)])  # type: ignore[list-item]
    assert unconfirmed.told is NOT_CONFIRMED
    core.leader = None
    reads._ask(None, [leaderless])  # type: ignore[arg-type, list-item]
    reads.answered([(2, -1)])  # type: ignore[list-item]
    assert leaderless.told is NO_LEADER
    reads._ask(None, [lagging])  # type: ignore[arg-type, list-item]
    reads.answered([(3, 9)])  # type: ignore[list-item]
    reads._again.append(handed_over)  # type: ignore[arg-type]
    reads.expire(2.0)
    assert lagging.told is LAGGING
    assert handed_over.told is HANDING_OVER


# --- the watchdog -----------------------------------------------------------------------------------------------------


class Heard(logging.Handler):
    """Lines of the watchdog; `came` is set with the first."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.came = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.came.set()


@pytest.fixture
def heard() -> Any:
    handler = Heard()
    logging.getLogger("raftdb.watchdog").addHandler(handler)
    yield handler
    logging.getLogger("raftdb.watchdog").removeHandler(handler)


def test_a_stuck_driver_is_told_of_once_with_what_it_is_about(heard: Heard) -> None:
    driver = SimpleNamespace(
        turn_started_s=clock.monotonic() - 100, doing=watchdog.SENDING, tickets=list, loop=SimpleNamespace()
    )
    dog = Watchdog(driver, 5.0)  # type: ignore[arg-type]
    dog.start()
    assert heard.came.wait(WAIT_S)
    heard.came.clear()
    driver.turn_started_s, driver.doing = clock.monotonic() - 100, watchdog.READING
    assert heard.came.wait(WAIT_S)
    dog.stop()
    assert [line.partition(": ")[2] for line in heard.lines] == [
        "sending replies",
        "reading the commands of its clients",
    ]


def test_a_slow_command_is_not_blamed_on_the_disk(start_node: StartNode, heard: Heard) -> None:
    def hang(ctx: Any, key: String) -> int:
        assert heard.came.wait(WAIT_S)
        return 1

    row = command("HANG", Key(String), flags=WRITE, summary="Wait for the watchdog")(hang)
    node = start_node(commands=[row], request_timeout_ms=100)
    with client(node) as db, pytest.raises(redis.ResponseError, match=r"no answer within|UNCERTAIN"):
        db.execute_command("HANG", "x")
    assert heard.lines[0].endswith("s: executing commands")


@pytest.mark.parametrize(("part", "wanted"), [("log", "writing the log"), ("data", "committing to the data")])
def test_a_hanging_disk_is_named_with_its_file(
    start_node: StartNode, heard: Heard, monkeypatch: pytest.MonkeyPatch, part: str, wanted: str
) -> None:
    node = start_node(request_timeout_ms=100)
    if part == "log":
        commit = node.driver.log.commit

        def hang(*args: Any) -> Any:
            assert heard.came.wait(WAIT_S)
            return commit(*args)

        monkeypatch.setattr(node.driver.log, "commit", hang)
    else:
        environment = node.driver.kv._environment
        usual = environment.commit

        def hang_too(*args: Any) -> Any:
            assert heard.came.wait(WAIT_S)
            return usual(*args)

        monkeypatch.setattr(environment, "commit", hang_too)
    with client(node) as db:
        with contextlib.suppress(redis.ResponseError):  # UNCERTAIN, unless it was answered before the data had it
            db.set("a", 1)
        assert heard.came.wait(WAIT_S)
    assert wanted in heard.lines[0]
    assert "the disk does not answer?" in heard.lines[0]
