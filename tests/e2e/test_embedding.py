"""A node inside a program: public names, types, the manual's program, callbacks that misbehave."""

from __future__ import annotations

import re
import subprocess
import sys
import threading

import pytest

import raftdb
from raftdb.config import Config
from raftdb.node.node import Node
from raftdb.types import Role
from tests.e2e.processes import wait_for
from tests.ports import free_port
from tests.sources import ROOT

pytestmark = pytest.mark.e2e

#: What programs may rely on. A name that is taken away here is taken away from somebody.
PUBLIC_TEXT = """
    ADMIN BLOCKING FAST LOCAL MAY_SHRINK OK READ SLOW WRITE
    Bytes Command CommandError Config Context Count DiskFull Flag Hash Int Key List LocalContext Many ManyPairs Node
    NumKeys OneOf Optional Options Pairs RaftdbError Reply ReplySet Role StorageError String Uncertain Unexecuted
    UsageError Value Verbatim __version__ command
"""
PUBLIC = PUBLIC_TEXT.split()


def programs() -> list[str]:
    """The Python blocks of the page."""
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def test_the_public_names():
    assert raftdb.__all__ == PUBLIC
    assert all(getattr(raftdb, name) is not None for name in PUBLIC)
    assert set(PUBLIC) <= set(dir(raftdb))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        raftdb.nothing  # noqa: B018


def test_import_loads_nothing_else():
    """`import raftdb` is free; the node comes when it is asked for."""
    look = "import sys, raftdb; print(sorted(m for m in sys.modules if m.startswith(('raftdb.', 'lmdb', 'hiredis'))))"
    look += "; raftdb.Node; print('lmdb' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\nTrue\n"


def test_the_program_of_the_manual_runs(tmp_path):
    (tmp_path / "stock.py").write_text(programs()[0], encoding="utf-8")
    argv = [sys.executable, "stock.py", f"127.0.0.1:{free_port()}", "data"]
    for _ in range(2):  # the second run finds the data of the first
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        lines = sorted(done.stdout.splitlines())
        assert re.fullmatch(r"leading in term \d+", lines[0])
        assert lines[1:] == ["left: 2", "refused: OUTOFSTOCK there is less than that"]


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        (("", ""), None),
        (("node.subscribe(", "node.subscrib("), 'has no attribute "subscrib"'),
        (("node.wait_ready(30)", 'node.wait_ready("30")'), 'incompatible type "str"'),
        (("raftdb.Config(address=address", "raftdb.Config(adress=address"), "Unexpected keyword argument"),
        (("raftdb.CommandError as", "raftdb.Comandeer as"), "has no attribute"),
    ],
)
def test_the_program_of_the_manual_is_checked_by_mypy(tmp_path, change, objection):
    pytest.importorskip("mypy")
    (tmp_path / "stock.py").write_text(programs()[0].replace(*change), encoding="utf-8")
    argv = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(ROOT / ".mypy_cache")]
    argv.append(str(tmp_path / "stock.py"))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    if objection is None:
        assert done.returncode == 0, done.stdout
    else:
        assert objection in done.stdout


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_that_raise_or_call_back_disturb_nobody(tmp_path, caplog):
    called = []

    def raises(node):
        called.append("raises")
        raise RuntimeError("an application's mistake")

    def calls_back(node):
        called.append(node.execute("INCR", "led"))

    config = Config(address="127.0.0.1:0", data_dir=str(tmp_path / "n1"), node_id="n1", min_free_bytes=0)
    node = Node(config)
    node.subscribe("on_leader", raises)
    node.subscribe("on_leader", calls_back)
    with node:
        assert node.wait_ready(20)
        wait_for("both callbacks", lambda: len(called) == 2)
        assert called == ["raises", 1]
        assert node.execute("GET", "led") == b"1"
    assert node.failure is None
    assert "an application's mistake" in caplog.text
    with pytest.raises(KeyError):
        node.subscribe("on_holiday", raises)


def test_a_callback_that_hangs_does_not_stop_consensus(tmp_path):
    entered, release = threading.Event(), threading.Event()

    def hangs(node):
        entered.set()
        release.wait(60)

    config = Config(address="127.0.0.1:0", data_dir=str(tmp_path / "n1"), node_id="n1", min_free_bytes=0)
    node = Node(config)
    node.subscribe("on_leader", hangs)
    try:
        with node:
            assert node.wait_ready(20)
            assert entered.wait(20)
            assert [node.execute("INCR", "n") for _ in range(20)] == list(range(1, 21))
            assert (node.role, node.failure) == (Role.LEADER, None)
    finally:
        release.set()
    assert node.failure is None
