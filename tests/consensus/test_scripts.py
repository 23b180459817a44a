"""Every transcript of tests/scripts happens again as it is written. RAFTDB_REWRITE=1 writes instead of comparing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.consensus.forming_scripts import FormingScript
from tests.consensus.scripts import Script, replay

SCRIPTS = sorted((Path(__file__).parent.parent / "scripts").glob("*.txt"))
SCRIPTS_MIN = 60


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    script = FormingScript() if path.stem.startswith("forming_") else Script()
    happened = replay(path, script)
    if os.environ.get("RAFTDB_REWRITE") == "1":
        path.write_text(happened)
    assert path.read_text() == happened


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_says_what_it_shows(path: Path) -> None:
    blocks = path.read_text().strip("\n").split("\n\n")
    assert all(block.startswith("#") for block in blocks), "each turn begins with a comment"
    assert "!!!" not in path.read_text()


def test_there_are_enough() -> None:
    assert len(SCRIPTS) >= SCRIPTS_MIN
