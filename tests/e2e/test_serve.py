"""`raftdb serve` as a process: what it prints, how it ends, and what a mistake costs (one line, exit code 2)."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.e2e.server import Raftdb
from tests.ports import free_port

pytestmark = pytest.mark.e2e

USAGE = 2


def run(
    *flags: str,
    directory: Path,
    python: tuple[str, ...] = (),
    wait_s: float = 60.0,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`raftdb serve FLAGS` that is expected to end by itself."""
    program = python if "-c" in python else (*python, "-m", "raftdb")
    argv = [sys.executable, *program, "serve", *flags]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAFTDB_", "PYTHONOPTIMIZE"))}
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        timeout=wait_s,
        cwd=directory,
        env=environment,
        preexec_fn=before,
        check=False,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a user reads; never a traceback."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == USAGE, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("raftdb: ")
    return lines[0]


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--workers", "0"), "--workers"),
        (("-a", "nowhere"), "HOST:PORT"),
        (("-a", "::1:7000"), "address '::1:7000': an IPv6 address stands in brackets"),
        (("-a", "127.0.0.1:0", "--map-size", "4096"), "--map-size"),
        (("-a", "127.0.0.1:0", "--map-size", "64TiB"), "--map-size"),
        (("-a", "127.0.0.1:0", "--map-size", "50TiB"), "--map-size"),
        (("-a", "127.0.0.1:0", "-l", "missing.dat"), "missing.dat"),
        (("-a", "127.0.0.1:0", "-l", "x.dat", "-e", "127.0.0.1:7000"), "-e"),
        (("-a", "127.0.0.1:0", "--bind", "0.0.0.0"), "--requirepass"),
        (("-a", "127.0.0.1:0", "--config", "missing.toml"), "missing.toml"),
        (("-a", "127.0.0.1:0", "-logfile", "no/such/directory/log"), "--log-file"),
        (("-a", "127.0.0.1:0", "-loglevel", "loud"), "--log-level"),
        (("-a", "192.0.2.1:7000", "--protected-mode", "no"), "192.0.2.1:7000"),
    ],
)
def test_a_mistake_is_one_line_and_touches_nothing(tmp_path: Path, flags: tuple[str, ...], wanted: str) -> None:
    assert wanted in one_line(run(*flags, directory=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_address_space_is_one_line_and_touches_nothing(tmp_path: Path) -> None:
    """ulimit -v below the default map size."""
    line = one_line(
        run(
            *("-a", "127.0.0.1:0"),
            directory=tmp_path,
            before=lambda: resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30)),
        )
    )
    assert "--map-size" in line
    assert "ulimit -v" in line
    assert list(tmp_path.iterdir()) == []


#: what another user may have made unwritable, and how it is then named
UNWRITABLE = {
    ".": "data is not writable",
    "log": "data/log is not writable",
    "log/data.mdb": "data/log/data.mdb is not writable",
    "log/lock.mdb": "data/log/lock.mdb is not writable",
    "kv": "data/kv is not writable",
    "kv/data.mdb": "data/kv/data.mdb is not writable",
    "snapshots": "data/snapshots is not writable",
    "identity": "data/identity cannot be read",
    "..": "is not writable",
}


#: the program as another user, who may not be allowed to read where it is installed
AS_USER = """
import difflib, os, raftdb.cli, raftdb.node.node
if os.getuid() == 0:
    os.setgroups([]), os.setgid({user}), os.setuid({user})
raftdb.cli.main()
"""


@pytest.mark.parametrize("part", UNWRITABLE, ids=str)
def test_a_data_directory_that_this_user_may_not_write_is_one_line_and_is_not_touched(part: str) -> None:
    """As a user without privileges, whoever runs the tests (root may write everything)."""
    with tempfile.TemporaryDirectory(prefix="raftdb-rights-") as name:
        parent = Path(name)
        os.chmod(parent, 0o755)
        with Raftdb(parent) as node:
            node.stop()
        user = 65_534 if os.getuid() == 0 else os.getuid()
        for path in (parent, *parent.rglob("*")):
            os.chown(path, user, -1)
        target, flags = parent / "data", ("-a", "127.0.0.1:0")
        if part == "..":
            target = parent / "closed" / "new"
            target.parent.mkdir(mode=0o500)
            os.chown(target.parent, user, -1)
        else:
            os.chmod(target / part, 0o000 if part == "identity" else 0o500 if (target / part).is_dir() else 0o400)
        before = {path: path.stat().st_mtime_ns for path in parent.rglob("*")}
        line = one_line(run(*flags, "-d", str(target), directory=Path("/"), python=("-c", AS_USER.format(user=user))))
        assert UNWRITABLE[part] in line
        assert {path: path.stat().st_mtime_ns for path in parent.rglob("*")} == before


def test_an_unknown_flag_is_named(tmp_path: Path) -> None:
    assert "--wrokers" in one_line(run("--wrokers", "1", directory=tmp_path))
    assert "surplus" in one_line(run("surplus", directory=tmp_path))
    assert "--workers" in one_line(run("--workers", directory=tmp_path))


def test_optimized_python_is_refused(tmp_path: Path) -> None:
    assert "python -O" in one_line(run("-a", "127.0.0.1:0", directory=tmp_path, python=("-O",)))


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert f"127.0.0.1:{port}" in one_line(run("-a", f"127.0.0.1:{port}", "-d", "data", directory=tmp_path))
    assert not (tmp_path / "data").exists()


def test_half_a_data_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data" / "log").mkdir(parents=True)
    (tmp_path / "data" / "log" / "data.mdb").write_bytes(b"")
    assert "half a data directory" in one_line(run("-a", "127.0.0.1:0", "-d", "data", directory=tmp_path))


def test_data_of_a_newer_format_are_one_line_and_are_not_touched(tmp_path: Path) -> None:
    with Raftdb(tmp_path / "n1") as server:
        assert server.stop() == 0
    identity = server.data / "identity"
    identity.write_text(identity.read_text().replace("format: 1", "format: 2"))
    before = {path: path.stat().st_mtime_ns for path in server.data.rglob("*")}
    line = one_line(run("-a", f"127.0.0.1:{server.port}", "-d", str(server.data), directory=tmp_path))
    assert "newer raftdb" in line
    assert {path: path.stat().st_mtime_ns for path in server.data.rglob("*")} == before


def test_the_data_of_others_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.txt").write_text("dear")
    assert "letter.txt" in one_line(run("-a", "127.0.0.1:0", "-d", "data", directory=tmp_path))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with Raftdb(tmp_path / "n1") as server:
        client = redis.Redis(port=server.port)
        client.set("k", "v")
        assert f"connect with: redis-cli -p {server.port}" in server.output
        assert server.process is not None
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        server.start()
        assert redis.Redis(port=server.port).get("k") == b"v"


@pytest.mark.parametrize("turn", range(5))
def test_two_signals_at_once_end_it_and_do_not_hang_it(tmp_path: Path, turn: int) -> None:
    """The second came while the first one's handler held the lock of the event that it set: the node hung for ever."""
    with Raftdb(tmp_path / "n1") as server:
        client = redis.Redis(port=server.port)
        client.set("k", "v")
        assert server.process is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            server.process.send_signal(number)
        assert server.process.wait(30) in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)
        server.start()
        assert redis.Redis(port=server.port).get("k") == b"v"


def test_shutdown_ends_it_cleanly(tmp_path: Path) -> None:
    with Raftdb(tmp_path / "n1") as server:
        redis.Redis(port=server.port, retry=None).shutdown()  # (else it knocks again and again at the closed port)
        assert server.process is not None
        assert server.process.wait(30) == 0


def test_a_second_node_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with Raftdb(tmp_path / "n1") as server:
        data = next(path for path in (tmp_path / "n1").rglob("identity")).parent
        line = one_line(run("-a", f"127.0.0.1:{free_port()}", "-i", "x", "-d", str(data), directory=tmp_path))
        assert str(data) in line
        assert redis.Redis(port=server.port).ping()


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    with Raftdb(tmp_path / "n1") as server:
        for round_number in range(3):
            client = redis.Redis(port=server.port, retry=None)
            before = int(client.get("n") or 0)
            for _ in range(20):
                before = client.incr("n")
            server.kill()
            server.start()
            assert int(redis.Redis(port=server.port).get("n") or 0) == before, round_number


def test_a_command_too_large_for_an_entry_is_refused_and_the_node_stays(tmp_path: Path) -> None:
    with Raftdb(tmp_path / "n1") as server:
        client = redis.Redis(port=server.port, retry=None)
        value = b"v" * (16 * 1024 * 1024)
        with pytest.raises(redis.ResponseError, match="does not fit"):
            client.mset({f"k{number}": value for number in range(5)})
        assert client.dbsize() == 0
        assert client.mset({f"k{number}": value for number in range(3)})
        assert client.strlen("k2") == len(value)


def test_empty_words_count_in_a_transaction(tmp_path: Path) -> None:
    """They cost memory, and bytes in the log's encoding: without that, one MULTI could take all of both."""
    with Raftdb(tmp_path / "n1") as server, socket.create_connection(("127.0.0.1", server.port), timeout=60) as sock:
        replies = sock.makefile("rb")
        words = 1_000_000
        command = b"*%d\r\n$3\r\nDEL\r\n" % (words + 1) + b"$0\r\n\r\n" * words
        sock.sendall(b"MULTI\r\n")
        assert replies.readline() == b"+OK\r\n"
        for _ in range(4):  # 16 bytes per word
            sock.sendall(command)
            assert replies.readline() == b"+QUEUED\r\n"
        sock.sendall(command)
        assert replies.readline().startswith(b"-ERR the transaction is too large")
        sock.sendall(b"EXEC\r\nSET k v\r\n")
        assert replies.readline().startswith(b"-EXECABORT")
        assert replies.readline() == b"+OK\r\n"


def test_snapshots_of_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    """Else the second takes the place of the first, which the log still names with another digest."""
    with Raftdb(tmp_path / "n1") as server:
        client = redis.Redis(port=server.port)
        client.set("k", "v")
        for _ in range(4):
            client.save()
        rows = client.execute_command("RAFT.SNAPSHOT", "LIST")
        names = {row[b"name"] if isinstance(row, dict) else row[1] for row in rows}
        assert len(names) == 2
        assert names <= {path.name.encode() for path in (server.directory / "data" / "snapshots").iterdir()}
