"""The forerunner's door, in one process: handler table, data, callbacks, requests."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator

import pytest
import redis

from raftdb import raft
from tests.e2e.processes import wait_for
from tests.ports import free_port


class Door:
    """A node that a test has opened; closed at the end."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.node: raft.RaftNode | None = None

    def open(self, handlers=None, cls=raft.RaftNode, ready=True) -> raft.RaftNode:
        port = free_port()
        node = self.node = cls("n1", f"127.0.0.1:{port}", config={"data_dir": str(self.directory / "n1")})
        for name, row in (handlers or {}).items():
            node.worker.handler[name] = row
        node.start()
        if ready:
            wait_for("the node to lead", lambda: node.state == "l" and node.node.wait_ready(1))
        return node

    def close(self) -> None:
        if self.node is not None:
            self.node.shutdown()
            self.node = None


@pytest.fixture
def door(tmp_path) -> Iterator[Door]:
    opened = Door(tmp_path)
    yield opened
    opened.close()


def client(node: raft.RaftNode) -> redis.Redis:
    return redis.Redis(node.ip, node.port, decode_responses=True, socket_timeout=10)


def cas(node, words):
    """The command of the forerunner's third example."""
    key, expected, value = words[1:]
    node.check_ttl(key)
    if key not in node.data:
        if expected.lower() != "none":
            return None
        node.data[key] = expected
    old = node.data[key]
    if old != expected:
        return old
    node.data[key] = value
    node.clear_ttl(key)
    return expected


def test_a_command_of_the_application_is_served_like_any_other(door):
    node = door.open({"cas": [cas, "we", 3, 3]})
    with client(node) as r:
        assert r.execute_command("CAS", "k", "none", "one") == "none"
        assert r.execute_command("cas", "k", "wrong", "two") == "one"
        assert r.execute_command("cas", "k", "one", "two") == "one"
        assert r.get("k") == "two"
        with pytest.raises(redis.ResponseError, match="wrong number of arguments for 'cas'"):
            r.execute_command("cas", "k", "one")
        assert "cas" in r.command()


def test_what_is_changed_in_place_is_written_back(door):
    def push(node, words):
        if words[1] not in node.data:
            node.data[words[1]] = []
        values = node.data[words[1]]
        if not isinstance(values, list):
            raise raft.ERROR_TYPE
        values.extend(words[2:])
        return len(values)

    def mark(node, words):
        fields = node.data.get(words[1], {})
        fields[words[2]] = words[3]
        node.data[words[1]] = fields
        return True

    node = door.open({"push": [push, "we", 2, -1], "mark": [mark, "we", 3, 3]})
    assert node.request("push", "l", "a", "b") == 2
    assert node.request("expire", "l", "1000") == 1
    assert node.request("push", "l", "c") == 3
    assert node.request("lrange", "l", "0", "-1") == ["a", "b", "c"]
    assert node.request("ttl", "l") > 900  # a changed value keeps its expiry
    assert node.request("mark", "h", "f", "1") is True
    assert node.request("mark", "h", "g", "2") is True
    assert node.data["h"] == {"f": "1", "g": "2"}
    assert node.request("hget", "h", "g") == "2"
    assert isinstance(node.request("push", "h", "x"), raft.RaftException)


def test_a_handler_that_raises_leaves_no_trace(door):
    def half(node, words):
        node.data["first"] = "1"
        node.data["l"] = ["x"]
        raise raft.RaftException("SORRY no")

    def crash(node, words):
        node.data["second"] = "1"
        return 1 // 0

    node = door.open({"half": [half, "we", 0, 0], "crash": [crash, "we", 0, 0]})
    with client(node) as r:
        with pytest.raises(redis.ResponseError, match=r"SORRY no"):
            r.execute_command("half")
        with pytest.raises(redis.ResponseError, match="failed inside its handler"):
            r.execute_command("crash")
        assert r.keys() == []
        assert r.set("after", "1")


def test_a_builtin_may_be_replaced_and_a_reader_cannot_write(door):
    def lrange(node, words):
        return ["mine", *words[1:]]

    def sneaky(node, words):
        node.data["x"] = "1"

    node = door.open({"lrange": [lrange, "r", 0, 2], "sneaky": [sneaky, "r", 0, 0]})
    with client(node) as r:
        assert r.execute_command("LRANGE", "a") == ["mine", "a"]
        with pytest.raises(redis.ResponseError, match="flag 'e'"):
            r.execute_command("SNEAKY")
    with pytest.raises(raft.RaftException, match="flag 'e'"):
        node.data["x"] = "1"
    # What `data` builds on is not what was replaced.
    node.request("rpush", "l", "1")
    assert node.data["l"] == ["1"]


def test_a_replicated_handler_that_asks_for_another_entry_is_told_no(door):
    def nested(node, words):
        return node.request("set", "a", "1")

    node = door.open({"nested": [nested, "we", 0, 0]})
    answer = node.request("nested")
    assert isinstance(answer, raft.RaftException)
    assert "cannot wait for another entry" in str(answer)
    assert node.request("set", "a", "2") is True


def test_commands_are_registered_before_the_start(door):
    node = door.open()
    with pytest.raises(raft.RaftException, match="before start"):
        node.worker.handler["late"] = [cas, "we", 3, 3]
    with pytest.raises(raft.RaftException, match="expected"):
        raft.RaftWorker().handler["x"] = [cas, "we"]


def test_time_and_chance_in_a_handler_are_the_entrys(door):
    def look(node, words):
        first = node.now
        for _ in range(20_000):
            pass
        return [str(first), str(node.now), node.random.below(1 << 60)]

    node = door.open({"look": [look, "we", 0, 0]})
    first, second, _ = node.request("look")
    assert first == second
    assert node.request("look")[2] != node.request("look")[2]
    assert node.now >= float(first)
    with pytest.raises(raft.RaftException, match="for handlers"):
        _ = node.random


def test_expiry_through_ttl(door):
    def keep(node, words):
        node.data[words[1]] = "v"
        assert node.set_ttl(words[1], node.now + float(words[2]))
        return node.set_ttl("absent", node.now)

    node = door.open({"keep": [keep, "we", 2, 2]})
    assert node.request("keep", "k", "1000") == 0
    assert 990 < node.request("ttl", "k") <= 1000
    assert dict(node.ttl).keys() == {"k"}
    assert node.request("keep", "gone", "-1") == 0
    assert node.request("get", "gone") is None
    assert "gone" not in node.data


def test_callbacks_come_in_order_after_the_state_and_may_misbehave(door):
    seen: list[tuple[str, str]] = []
    let_go = threading.Event()

    class Mine(raft.RaftNode):
        def on_start(self) -> None:
            seen.append(("on_start", self.state))
            raise RuntimeError("a callback that raises")

        def on_leader(self) -> None:
            seen.append(("on_leader", self.state))
            self.request("set", "by", "callback")
            seen.append(("asked", self.request("get", "by")))
            let_go.wait(20)  # one that hangs

    node = door.open(cls=Mine)
    wait_for("the callback to have asked", lambda: len(seen) == 3)
    assert seen == [("on_start", "c"), ("on_leader", "l"), ("asked", "callback")] or seen[0][1] in "cf"
    assert seen[1:] == [("on_leader", "l"), ("asked", "callback")]
    assert node.request("set", "still", "serving") is True
    let_go.set()


def test_names_of_callbacks_are_no_commands(door):
    node = door.open({"on_leader": lambda node: None})
    with client(node) as r, pytest.raises(redis.ResponseError, match="unknown command"):
        r.execute_command("on_leader")


def test_another_thread_iterates_while_the_store_changes(door):
    node = door.open()
    with client(node) as r:
        r.mset({f"url_{n}": str(n) for n in range(3 * raft.PAGE_KEYS)})
        seen = {}
        for key, value in node.data.items():
            if len(seen) == raft.PAGE_KEYS // 2:
                r.delete(*[f"url_{n}" for n in range(0, 3 * raft.PAGE_KEYS, 2)])
                r.set("other", "1")
            seen[key] = value
        assert {f"url_{n}" for n in range(1, 3 * raft.PAGE_KEYS, 2)} <= seen.keys()
    assert len(node.data) == 3 * raft.PAGE_KEYS // 2 + 1


def test_requests_give_errors_as_values_and_futures_can_carry_none(door):
    node = door.open()
    assert node.request("set", "k", "v") is True
    assert node.request("get", "absent") is None
    assert isinstance(node.request("nonsense"), raft.RaftException)
    assert isinstance(node.request("incr", "k"), raft.RaftException)
    with pytest.raises(raft.RaftException, match="not an integer"):
        node.propose(["incr", "k"])
    futures = [node.request_async("incr", "n") for _ in range(50)]
    assert sorted(f.get(10) for f in futures) == list(range(1, 51))
    assert node.request_async("get", "absent").get(10) is None
    with pytest.raises(raft.RaftException, match="UNCERTAIN"):
        raft.Future().get(0.01)


def test_text_that_is_not_utf8_survives(door):
    node = door.open()
    with redis.Redis(node.ip, node.port) as r:
        r.set(b"k\xff", b"\x00\r\n\xfe")
        (key,) = node.data
        assert raft.bytes_of(key) == b"k\xff"
        assert raft.bytes_of(node.data[key]) == b"\x00\r\n\xfe"
        assert raft.bytes_of(node.request("get", key)) == b"\x00\r\n\xfe"


def test_the_data_is_there_after_a_restart(door):
    node = door.open({"cas": [cas, "we", 3, 3]})
    node.request("cas", "k", "none", "v")
    index = node.index
    door.close()
    node = door.open({"cas": [cas, "we", 3, 3]})
    assert node.data["k"] == "v"
    assert node.index > index
    assert node.get_peers() == {}


def test_replies_cannot_break_the_protocol():
    assert raft.to_reply("+OK\r\n:1\r\n") == b"+OK\r\n:1\r\n"  # a bulk string, whatever is in it
    assert raft.to_reply([True, False, None, 1.5, ["x"]]) == ["OK", 0, None, b"1.5", [b"x"]]


def test_ensembles_are_parsed_as_the_readme_writes_them():
    assert raft._ensemble("2/127.0.0.1:5020,3/127.0.0.1:5030") == {"2": "127.0.0.1:5020", "3": "127.0.0.1:5030"}
    assert list(raft._ensemble("127.0.0.1:5020,127.0.0.1:5030").values()) == ["127.0.0.1:5020", "127.0.0.1:5030"]
    assert raft._ensemble("raft.example.com:5010") == {"__TEMP_raft.example.com:5010__": "raft.example.com:5010"}
    for text in ("127.0.0.1", "a b:1", "::1:5"):
        with contextlib.suppress(raft.RaftException), pytest.raises(raft.UsageError):
            raft._ensemble(text)


def test_names_of_the_door():
    wanted = "RaftNode make_default_node parse_default_args RaftException Future CONF_LOG_MAX CONF_VOTING_TIME"
    assert all(hasattr(raft, name) for name in wanted.split())
    methods = "start shutdown join load checkpoint get_snapshot add_node del_node get_peers propose request"
    more = "request_async get_handler get_handler_func check_ttl clear_ttl set_ttl get_pending_time log_info"
    assert all(callable(getattr(raft.RaftNode, name)) for name in itertools.chain(methods.split(), more.split()))


# --- what handlers may do ---------------------------------------------------------------------------------------------


def said(node: raft.RaftNode, lines: bytes) -> bytes:
    """Everything that the node answers to these lines until it closes, or for a second."""
    received = b""
    with socket.create_connection((node.ip, node.port), timeout=10) as connection:
        connection.sendall(lines)
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(4096):
            received += data
    return received


def test_a_handler_may_end_the_connection_or_answer_in_bytes(door):
    node = door.open(
        {
            "leave": [lambda node, words: {"quit": True}, "r", 0, 0],
            "farewell": [lambda node, words: {"quit_after_send": words[1:]}, "r", 0, -1],
            "raw": [lambda node, words: {"bypass": b":" + words[1].encode() + b"\r\n"}, "r", 1, 1],
            "rawwrite": [lambda node, words: {"bypass": b":1\r\n:2\r\n"}, "we", 0, 0],
            "writeleave": [lambda node, words: {"quit": True}, "we", 0, 0],
        }
    )
    connection = socket.create_connection((node.ip, node.port), timeout=10)
    with connection:  # not closed by this side
        connection.sendall(b"raw 7\r\nfarewell a b\r\n")
        received = b""
        while data := connection.recv(4096):
            received += data
    assert received == b":7\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n"
    with socket.create_connection((node.ip, node.port), timeout=10) as connection:
        connection.sendall(b"leave\r\n")
        assert connection.recv(4096) == b""
    assert b"not one reply of the protocol" in said(node, b"rawwrite\r\n")
    assert said(node, b"writeleave\r\nping\r\n") == b"+OK\r\n+PONG\r\n"
    assert node.request("farewell", "a") == ["a"]
    assert node.request("raw", "1\r\n:2").args[0].startswith("ERR what the handler passed by")


def test_reads_of_handlers_need_no_other_worker(door):
    """More clients than workers, each in a handler that asks for what needs a worker itself."""

    def outer(node, words):
        return [node.request("inner", *words[1:]), *node.request("lrange", "l", 0, -1)]

    def inner(node, words):
        return words[1]

    node = door.open({"outer": [outer, "r", 1, 1], "inner": [inner, "r", 1, 1]})
    node.request("rpush", "l", *(str(n) for n in range(2_000)))
    answers = []

    def ask(number: int) -> None:
        with client(node) as r:
            answers.append(r.execute_command("outer", number))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(3 * node.node.config.workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(int(answer[0]) for answer in answers) == list(range(len(threads)))
    assert all(answer[1:] == [str(n) for n in range(2_000)] for answer in answers)


def test_reads_of_a_replicated_handler_see_what_it_wrote(door):
    def run(node, words):
        node.data["l"] = ["a"]
        first = node.request("lrange", "l", 0, -1)
        node.data["l"].append("b")
        return [*first, *node.request("show"), len(node.data), sorted(node.data), str(node.request("info"))]

    def show(node, words):
        return node.data["l"]

    node = door.open({"run": [run, "we", 0, 0], "show": [show, "r", 0, 0]})
    *found, info = node.request("run")
    assert found == ["a", "a", "b", 1, ["l"]]
    assert "cannot wait" in info
    assert node.data["l"] == ["a", "b"]


def test_a_reading_handler_that_asks_for_a_write_sees_it(door):
    def take(node, words):
        before = node.data.get("count", "0")
        return [before, node.request("incr", "count"), node.data["count"], node.request("get", "count")]

    node = door.open({"take": [take, "r", 0, 0]})
    assert node.request("take") == ["0", 1, "1", "1"]
    assert node.request("take") == ["1", 2, "2", "2"]


def test_handlers_work_on_the_database_that_the_client_selected(door):
    def put(node, words):
        node.data[words[1]] = words[2]
        return sorted(node.data)

    node = door.open({"put": [put, "we", 2, 2]})
    with redis.Redis(node.ip, node.port, db=3, decode_responses=True) as third:
        assert third.execute_command("put", "a", "1") == ["a"]
        assert third.get("a") == "1"
    assert len(node.data) == 0
    assert node.request("put", "b", "2") == ["b"]
    assert dict(node.data) == {"b": "2"}


def test_values_that_have_no_form_are_refused(door):
    values = {"nested": {"a": ["b"]}, "listed": [["b"]], "none": None, "set": {"a"}, "fine": ("a", 1, 1.5)}

    def put(node, words):
        node.data["k"] = values[words[1]]

    def grow(node, words):
        node.data["fine"] = ["a"]
        node.data["fine"].append({"b": "c"})

    node = door.open({"put": [put, "we", 1, 1], "grow": [grow, "we", 0, 0]})
    for name in ("nested", "listed", "none", "set"):
        assert "has no form in the store" in str(node.request("put", name))
    assert "a dict has no form" in str(node.request("grow"))
    assert len(node.data) == 0
    node.request("put", "fine")
    assert node.data["k"] == ["a", "1", "1.5"]


def test_what_is_put_into_the_queue_is_executed(door):
    node = door.open()
    waiting = [raft.Future(("incr", "n")) for _ in range(20)]
    for future in waiting:
        node.q_entry.put(future)
    assert sorted(future.get(10) for future in waiting) == list(range(1, 21))


def test_a_node_starts_again_after_its_shutdown(door):
    node = door.open()
    assert node.request("set", "k", "v") is True
    node.shutdown()
    node.join()
    assert node.shutdown_flag
    node.start()
    wait_for("the node to lead", lambda: node.state == "l" and node.node.wait_ready(1))
    assert node.data["k"] == "v"
    assert node.request_async("get", "k").get(10) == "v"
    assert not node.shutdown_flag


def test_a_callback_or_a_handler_may_shut_the_node_down(door):
    def on_leader(node):
        if "stop" in node.data:
            node.shutdown()

    def leave(node, words):
        threading.Thread(target=node.shutdown).start()
        return True

    node = door.open({"on_leader": on_leader, "leave": [leave, "r", 0, 0]})
    node.request("set", "stop", "1")
    with client(node) as r:
        assert r.execute_command("leave")
    node.join()
    node.start()
    node.join()
    assert node.node.failure is None


def test_checkpoint_and_load(door, tmp_path):
    """checkpoint() gives the file's name; load() starts another cluster from such a file."""
    node = door.open()
    node.request("set", "colour", "red")
    assert node.checkpoint("mine.dat") == "mine.dat"
    own = node.checkpoint()
    assert (door.directory / "n1" / "snapshots" / own).is_file()
    assert node.last_checkpoint == int(own.rpartition("_")[2].removesuffix(".dat"))
    with pytest.raises(raft.RaftException, match="plain file name"):
        node.checkpoint("../mine.dat")
    door.close()
    other = raft.RaftNode("n2", f"127.0.0.1:{free_port()}", config={"data_dir": str(tmp_path / "n2")})
    assert not other.load(str(tmp_path / "missing.dat"))
    assert other.load(str(tmp_path / "n1" / "checkpoints" / "mine.dat"))
    door.node = other
    other.start()
    wait_for("the node to lead", lambda: other.state == "l" and other.node.wait_ready(1))
    assert other.data["colour"] == "red"


def test_a_checkpoint_in_every_so_many_entries(door, monkeypatch):
    """The readme: "can be changed by raft.CONF_LOG_MAX"."""
    monkeypatch.setattr(raft, "CONF_LOG_MAX", 40)
    node = door.open()
    for number in range(50):
        node.request("set", "k", number)
    wait_for("a checkpoint", lambda: node.last_checkpoint >= 40)


# --- several nodes in one process, as the tests of the forerunner had them --------------------------------------------


class Group:
    """Nodes of one process; the first founds, the others join it or, with `together`, list each other."""

    def __init__(self, directory) -> None:
        self.directory = directory
        self.nodes: dict[str, raft.RaftNode] = {}

    def make(self, nid: str, addr: str, ensemble: dict[str, str]) -> raft.RaftNode:
        node = raft.RaftNode(nid, addr, ensemble, config={"data_dir": str(self.directory / nid)})
        self.nodes[nid] = node
        node.start()
        return node

    def join(self, nid: str) -> raft.RaftNode:
        others = {other.nid: other.addr for other in self.nodes.values()}
        return self.make(nid, f"127.0.0.1:{free_port()}", others)

    def found(self, count: int) -> None:
        ports = set()
        while len(ports) < count:
            port = free_port()
            if not {port - 1, port, port + 1} & ports:
                ports.add(port)
        ensemble = {str(number): f"127.0.0.1:{port}" for number, port in enumerate(sorted(ports))}
        for nid, addr in ensemble.items():
            self.make(nid, addr, ensemble)

    def is_calm(self) -> bool:
        """One leader, everybody else follows, all in one term and serving."""
        states = sorted(node.state for node in self.nodes.values())
        if states != ["f"] * (len(states) - 1) + ["l"] or len({node.term for node in self.nodes.values()}) > 1:
            return False
        return all(node.node.is_ready for node in self.nodes.values())

    def end(self, nid: str) -> None:
        node = self.nodes.pop(nid)
        node.shutdown()
        node.join()


@pytest.fixture
def group(tmp_path) -> Iterator[Group]:
    made = Group(tmp_path)
    yield made
    for nid in list(made.nodes):
        made.end(nid)


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 4, 13])
def test_nodes_that_list_each_other_elect_one_leader(group, count):
    group.found(count)
    wait_for("one leader", group.is_calm, 60)
    for node in list(group.nodes.values())[:3]:
        assert node.request("incr", "n") == int(node.nid) + 1
        assert node.data["n"] == str(int(node.nid) + 1)  # what was answered is seen, on a follower too
        assert len(node.peers) == count - 1


@pytest.mark.slow
def test_recovery_as_the_forerunner_tested_it(group):
    """One node, two, three, each with everything; the first goes, the others go on; it comes back as a follower."""
    keys = 0

    def write_and_read() -> None:
        nonlocal keys
        wait_for("one leader", group.is_calm, 60)
        for node in group.nodes.values():
            for _ in range(20):
                assert node.request("set", f"key_{keys}", keys) is True
                keys += 1
        for node in group.nodes.values():
            assert node.request("mget", *(f"key_{n}" for n in range(keys))) == [str(n) for n in range(keys)]
            assert sum(key.startswith("key_") for key in node.data) == keys

    for nid in ("1", "2", "3"):
        group.join(nid)
        write_and_read()
    first = group.nodes["1"]
    group.end("1")
    write_and_read()
    others = {other.nid: other.addr for other in group.nodes.values()}
    again = group.make("1", first.addr, others)
    write_and_read()
    assert again.state == "f"
