"""raftdb-dump over a directory that storage and machine have written: what it shows, and that nothing makes it fall."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from raftdb.commands.machine import Machine, Request, Transaction
from raftdb.commands.table import builtin_table
from raftdb.errors import UsageError
from raftdb.storage import datadir, keys, snapshot, verify
from raftdb.storage.checksum import chain_of
from raftdb.storage.datadir import DataDir
from raftdb.types import Entry, HardState, Kind, Member, Membership, NodeRef, Persist
from raftdb_tools import dump, output, reading

STAMP = 1_795_442_709_250
ME = NodeRef("n1", 0x0BADCAFE_00000001)


class Output(NamedTuple):
    code: int
    lines: list[str]
    error: str

    @property
    def json(self) -> list[dict]:
        return [json.loads(line) for line in self.lines]


def request(line: str, db: int = 0) -> Request:
    return Request(db, [word.encode("latin-1") for word in line.split(" ")])


BATCHES: list[list] = [
    [request("SET colour red"), request("INCR count")],
    [request("HSET h a 1 b 2"), request("RPUSH l x y z"), request("SET k v", db=3)],
    [Transaction(0, [], [request("APPEND colour ish"), request("SETEX short 100 x")])],
    [request("SET bin \xff\x00\n\x1b[2J")],
]


def write(directory: Path, batches: list[list] = BATCHES) -> Path:
    """A directory with a no-op and these batches, one per entry; closed cleanly."""
    member = Member(*ME, "127.0.0.1:6379", "127.0.0.1:6380", True)
    members = Membership(0, (member,))
    DataDir.create(directory, node_id="n1", cluster_id="c" * 32, incarnation=ME.incarnation, membership=members)
    data = DataDir.open(directory)
    machine = Machine(builtin_table())
    entries, chain = [], data.log.chain(0)
    for index, items in enumerate([None, *batches], 1):
        kind, payload = (Kind.NOOP, b"") if items is None else (Kind.COMMANDS, machine.encode(items))
        chain = chain_of(chain, index, 1 + index // 4, kind, STAMP + index, index, payload)
        entries.append(Entry(index, 1 + index // 4, kind, STAMP + index, index, payload, chain))
    persist = Persist(HardState(2, ME), None, tuple(entries), (), None, None, None, False)
    data.log.start()
    data.log.commit(persist)
    batch = data.kv.batch()
    for entry in entries:
        machine.apply(entry, None, batch)
    last = entries[-1]
    batch.commit(last.index, last.term, last.stamp, last.chain)
    data.close(clean=True)
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write(tmp_path_factory.mktemp("dump") / "data")


@pytest.fixture
def run(capsys):
    """Runs the program in this process."""

    def runner(*words: object) -> Output:
        capsys.readouterr()
        argv, sys.argv = sys.argv, ["raftdb-dump", *map(str, words)]
        try:
            with pytest.raises(SystemExit) as end:
                dump.main()
        finally:
            sys.argv = argv
        seen = capsys.readouterr()
        return Output(int(end.value.code or 0), seen.out.splitlines(), seen.err)

    return runner


def test_log_shows_every_entry(run, made):
    shown = run("log", made)
    assert shown.code == 0
    assert shown.lines == [
        "1@1 2026-11-23 14:05:09.251 noop",
        "2@1 2026-11-23 14:05:09.252 SET colour red; INCR count",
        "3@1 2026-11-23 14:05:09.253 HSET h a 1 b 2; RPUSH l x y z; [3] SET k v",
        "4@2 2026-11-23 14:05:09.254 MULTI APPEND colour ish; SETEX short 100 x EXEC",
        '5@2 2026-11-23 14:05:09.255 SET bin "\\xff\\x00\\n\\x1b[2J"',
    ]


@pytest.mark.parametrize(
    ("flags", "indexes"),
    [
        (["2", "3"], [2, 3]),
        (["4"], [4, 5]),
        (["4", "900"], [4, 5]),
        (["6"], []),
        (["--tail", "2"], [4, 5]),
        (["--term", "2"], [4, 5]),
        (["--command", "setex"], [4]),
        (["--key", "colour"], [2, 4]),
        (["--key", "k", "--db", "3"], [3]),
        (["--key", "k", "--db", "0"], []),
        (["--db", "3"], [3]),
        (["--key", "nowhere"], []),
    ],
)
def test_log_shows_what_is_asked_for(run, made, flags, indexes):
    shown = run("log", made, *flags, "--json")
    assert shown.code == 0
    assert [row["index"] for row in shown.json] == indexes


def test_log_history_of_a_key_leaves_the_other_commands_out(run, made):
    (first, _) = run("log", made, "--key", "colour", "--json").json
    assert first["commands"] == [{"db": 0, "argv": ["SET", "colour", "red"]}]
    assert first["time"] == "2026-11-23 14:05:09.252"


def test_log_json_keeps_bytes(run, made):
    (row,) = run("log", made, "5", "--json").json
    assert row["commands"][0]["argv"] == ["SET", "bin", {"base64": "/wAKG1sySg=="}]


def test_kv(run, made):
    shown = run("kv", made)
    assert shown.code == 0
    assert sorted(shown.lines) == sorted(
        [
            "colour string redish version 4",
            "count string 1 version 2",
            "h hash (2 elements) version 3",
            "l list (3 elements) version 3",
            "short string x version 4 expires 2026-11-23 14:06:49.254",
            'bin string "\\xff\\x00\\n\\x1b[2J" version 5',
            "[3] k string v version 3",
        ]
    )


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--db", "3"], {"k"}),
        (["--match", "c*"], {"colour", "count"}),
        (["--match", "[^clbs]"], {"h", "k"}),
        (["--type", "list"], {"l"}),
        (["--match", "co?nt"], {"count"}),
    ],
)
def test_kv_shows_what_is_asked_for(run, made, flags, keys):
    assert {row["key"] for row in run("kv", made, "--json", *flags).json} == keys


def test_kv_decodes_one_key(run, made):
    assert run("kv", made, "--key", "l").lines[1:] == ["  0 x", "  1 y", "  2 z"]
    assert {row["field"]: row["value"] for row in run("kv", made, "--key", "h", "--json").json[1:]} == {
        "a": "1",
        "b": "2",
    }
    assert run("kv", made, "--key", "l", "--limit", "1").lines[1:] == ["  0 x"]
    assert len(run("kv", made, "--limit", "2").lines) == 2


def test_summary(run, made):
    (facts,) = run("summary", made, "--json").json
    assert facts["identity"]["node"] == "n1"
    assert (facts["log"]["first"], facts["log"]["last"], facts["log"]["term"]) == (1, 5, 2)
    assert (facts["data"]["keys"], facts["data"]["applied"], facts["data"]["trusted"]) == (7, 5, True)
    assert run("summary", made).code == 0


def test_verify_and_nothing_is_written(run, made):
    before = {path: path.read_bytes() for path in sorted(made.rglob("*")) if path.is_file() and path.name != "lock.mdb"}
    assert run("verify", made).lines[-1].endswith(": sound")
    assert run("log", made).code == run("kv", made).code == 0
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.parametrize("command", ["summary", "log", "kv", "verify"])
def test_what_is_no_data_directory_is_a_mistake_of_the_user(run, tmp_path, command):
    for path in (tmp_path, tmp_path / "missing"):
        shown = run(command, path)
        assert (shown.code, len(shown.error.splitlines())) == (2, 1)


@pytest.mark.parametrize("words", [["log"], ["log", ".", "0"], ["kv", ".", "--type", "tree"], ["nothing"], ["-x"]])
def test_usage_errors(run, words):
    assert run(*words).code == 2


def test_missing_key_and_contradiction(run, made):
    assert run("kv", made, "--key", "nowhere").code == 2
    assert run("log", made, "1", "--tail", "2").code == 2
    backwards = run("log", made, "4", "3")
    assert (backwards.code, backwards.error) == (2, "raftdb-dump: FIRST 4 comes after LAST 3\n")
    assert run("log", made, "3", "3").code == 0


def test_a_flipped_bit_is_found_and_the_rest_is_shown(run, made, tmp_path):
    directory = tmp_path / "data"
    shutil.copytree(made, directory)
    file = datadir.log_path(directory) / "data.mdb"
    data = bytearray(file.read_bytes())
    at = data.index(b"RPUSH")
    data[at] ^= 0x20
    file.write_bytes(data)
    shown = run("log", directory)
    assert (shown.code, shown.error) == (5, "raftdb-dump: 1 damaged entry\n")
    assert [line.split()[0].partition("@")[0] for line in shown.lines] == ["1", "2", "3", "4", "5"]
    assert "DAMAGED" in shown.lines[2]
    verified = run("verify", directory)
    assert (verified.code, verified.error) == (5, f"raftdb-dump: {directory}: 1 finding\n")


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)


def test_verify_tells_place_and_meaning_of_each_finding(run, made, tmp_path):
    directory = tmp_path / "data"
    shutil.copytree(made, directory)
    data = DataDir.open(directory)
    (directory / "checkpoints").mkdir()
    with data.kv.view() as view:
        for file in (directory / "checkpoints" / "mine.dat", tmp_path / "alone.dat"):
            snapshot.write(view, file, node_id="n1", cluster_id="c")
    data.close(clean=True)
    assert run("verify", directory).lines == [f"{directory}: sound"]
    assert run("verify", tmp_path / "alone.dat").code == 0

    flip(directory / "identity", 20)
    flip(
        datadir.log_path(directory) / "data.mdb",
        (datadir.log_path(directory) / "data.mdb").read_bytes().index(b"RPUSH"),
    )
    flip(
        datadir.kv_path(directory) / "data.mdb",
        (datadir.kv_path(directory) / "data.mdb").read_bytes().rindex(b"redish"),
    )
    flip(directory / "checkpoints" / "mine.dat", 100)
    (directory / "checkpoints" / "notes.txt").write_text("not a snapshot")
    shown = run("verify", directory)
    assert shown.code == 5
    found = dict(line.split(": ", 1) for line in shown.lines)
    assert found["identity"].startswith("checksum does not match (the node does not start")
    assert found["log entry 3"].startswith(
        "checksum does not match (when the node needs it, it gets it from another member"
    )
    assert found["kv key colour"].startswith("checksum does not match (a copy of what snapshot and log hold: stop the")
    assert found["kv database 0"].startswith("has 5 keys, its count says 6 (")
    (checkpoint,) = (text for place, text in found.items() if place.startswith("checkpoints/mine.dat, bytes "))
    assert "no cluster can be started from this file" in checkpoint
    assert found["checkpoints/notes.txt"] == "is not a snapshot of raftdb (note)"
    assert shown.error == f"raftdb-dump: {directory}: 5 findings\n"

    rows = run("verify", directory, "--json").json
    assert all(row.keys() == {"place", "what", "meaning", "note", "index"} for row in rows)
    assert [row["index"] for row in rows if row["place"].startswith("log entry")] == [3]

    flip(tmp_path / "alone.dat", 100)
    alone = run("verify", tmp_path / "alone.dat")
    assert (alone.code, len(alone.lines)) == (5, 1)
    assert re.match(r"alone.dat, bytes \d+ to \d+: checksum does not match \(no node", alone.lines[0])


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [(r"a\*b", {"a*b"}), ("a*b", {"a*b", "axb"}), ("a[*x]b", {"a*b", "axb"}), ("a[^x]b", {"a*b"}), (r"\x41*", {"x41"})],
)
def test_patterns_are_those_of_scan(run, tmp_path, pattern, keys):
    directory = write(tmp_path / "data", [[request("SET a*b 1"), request("SET axb 2"), request("SET x41 3")]])
    assert {row["key"] for row in run("kv", directory, "--match", pattern, "--json").json} == keys


def test_the_history_of_a_key_that_came_from_another_database(run, tmp_path):
    lines = [request("SET k 1", db=2), request("MOVE k 3", db=2), request("SET k 1", db=4)]
    directory = write(tmp_path / "data", [lines])
    (row,) = run("log", directory, "--key", "k", "--db", "3", "--json").json
    assert [command["argv"][0] for command in row["commands"]] == ["MOVE"]


def test_places_of_records_are_told_in_names():
    def place(space: str, key: bytes) -> str:
        return reading.told(verify.Finding(f"{space} record {key[:40].hex()}", "x"), Path("data")).place

    assert place("fields", keys.field(7, b"f 1")) == 'kv field "f 1" of collection 7'
    assert place("scores", keys.score(7, 1.5, b"m")) == "kv member m of collection 7"
    head = keys.head(b"\0\0\0\1", b"colour")
    assert (place("heads", head), place("expiry", keys.expiry(head, 5))) == ("kv key colour", "kv expiry of key colour")
    assert place("heads", keys.head(b"\0\0\0\1", b"a" * 50)) == f"kv key {'a' * 30}..."
    assert place("items", keys.item(7, -1)) == f"kv items record {keys.item(7, -1).hex()}"
    assert place("heads", b"") == "kv heads record "


def corrupted(data: bytes, chance: random.Random) -> bytes:
    """One of the ways in which a file goes wrong."""
    way = chance.randrange(4)
    if way == 0:
        return data[: chance.randrange(len(data))]
    changed = bytearray(data)
    if way == 1:
        for _ in range(chance.choice((1, 10, 200))):
            changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif way == 2:
        at = chance.randrange(len(data))
        changed[at : at + 4096] = chance.randbytes(4096)
    else:
        return chance.randbytes(chance.choice((0, 10, 5_000)))
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_hostile_files_give_one_line(made, tmp_path, seed):
    """Any file cut, flipped or replaced: an exit code of ours, one line of error, never a traceback or a signal."""
    chance = random.Random(seed)
    directory = tmp_path / "data"
    shutil.copytree(made, directory)
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock.mdb"]
    file = chance.choice(files)
    file.write_bytes(corrupted(file.read_bytes(), chance))
    for words in (["summary"], ["log", "--key", "colour"], ["kv", "--key", "h"], ["kv"], ["verify", "--json"]):
        argv = [sys.executable, "-m", "raftdb_tools.dump", words[0], str(directory), *words[1:]]
        ran = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode in (0, 2, 5), f"{file.name}: {words}: {ran.returncode} {ran.stderr}"
        assert "Traceback" not in ran.stderr
        assert len(ran.stderr.splitlines()) <= 1


def test_a_pipe_that_is_closed_early_is_no_error(made):
    argv = f"{sys.executable} -m raftdb_tools.dump log {made} | head -n 1"
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", argv], capture_output=True, text=True, check=False)
    assert ran.stdout.startswith("1@1 ")
    assert ran.stderr == ""


def hear_ctrl_c() -> None:
    """Tests that run in the background of a shell have SIGINT ignored, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_follow_shows_new_entries_and_ends_with_ctrl_c(tmp_path):
    directory = write(tmp_path / "data")
    argv = [sys.executable, "-m", "raftdb_tools.dump", "log", str(directory), "--follow"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, preexec_fn=hear_ctrl_c
    ) as process:
        assert process.stdout
        assert [process.stdout.readline().split()[0] for _ in range(5)] == ["1@1", "2@1", "3@1", "4@2", "5@2"]
        data = DataDir.open(directory)
        chain = chain_of(data.log.chain(5), 6, 2, Kind.NOOP, STAMP + 6, 0, b"")
        entry = Entry(6, 2, Kind.NOOP, STAMP + 6, 0, b"", chain)
        data.log.commit(Persist(None, None, (entry,), (), None, None, None, False))
        data.close(clean=True)
        assert process.stdout.readline().startswith("6@2 ")
        process.send_signal(2)
        assert process.wait(20) == 0
        assert process.stderr
        assert process.stderr.read() == ""


def test_errors_are_one_printable_line(capsys):
    with pytest.raises(SystemExit) as end:
        output.fail("raftdb-dump", "two\nlines \x1b[2J", 5)
    assert end.value.code == 5
    assert capsys.readouterr().err == "raftdb-dump: two lines \\x1b[2J\n"


def test_arguments_name_any_bytes():
    assert dump.argument_bytes('\\"\\\\x41\\t') == b'"\\x41\t'
    for wrong in ("\\*", "\\", "\\x4", "a\\\\\\q"):
        with pytest.raises(UsageError, match="a backslash begins"):
            dump.argument_bytes(wrong)
    assert dump.argument_bytes("plain") == b"plain"
    assert dump.argument_bytes("grün") == "grün".encode()
    assert dump.argument_bytes("\\xff\\n\\\\") == b"\xff\n\\"
