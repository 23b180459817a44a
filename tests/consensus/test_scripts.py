"""Every transcript of tests/scripts happens again as it is written. RAFTDB_REWRITE=1 writes instead of comparing."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.consensus.forming_scripts import FormingScript
from tests.consensus.scripts import Script, replay

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = sorted((ROOT / "tests" / "scripts").glob("*.txt"))
SCRIPTS_MIN = 60
REFERENCE = re.compile(r"[\w.-]+(?:/[\w.-]+)?#\d+")


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


# --- bugs of other systems: the table of docs/consensus.md -----------------------------------------------------------


def bug_rows() -> list[list[str]]:
    """The rows of both tables, as cells."""
    page = (ROOT / "docs" / "consensus.md").read_text()
    section = page.split("## Bugs of other systems\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if not line.startswith(("| bug", "|-"))
    ]


def comments(path: Path) -> str:
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))


def numbers(text: str) -> set[tuple[str, str]]:
    """(repository without its owner, number); a bare `#17` belongs to the repository named before it."""
    found, name = set(), ""
    for match in re.finditer(r"([\w./-]*)#(\d+)", text):
        name = match[1].split("/")[-1] or name
        found.add((name.lower(), match[2]))
    return found


def transcripts_of(cell: str) -> list[Path]:
    """The transcripts that a cell consists of; [] if it says something else."""
    paths = [ROOT / "tests" / "scripts" / f"{name}.txt" for name in cell.split(", ")]
    return paths if all(re.fullmatch(r"[a-z0-9_]+", path.stem) for path in paths) else []


def test_bugs_of_other_systems_have_transcripts() -> None:
    """Each named bug stands in the comments of a transcript of its row, and each transcript of a row names one."""
    rows = [row for row in bug_rows() if transcripts_of(row[2])]
    assert len({reference for row in rows for reference in REFERENCE.findall(row[0])}) >= 50
    for bugs, _, where in rows:
        named = [numbers(comments(path)) for path in transcripts_of(where)]
        wanted = numbers(bugs)
        assert wanted <= set().union(*named), f"{bugs}: not named in {where}"
        assert all(wanted & mine for mine in named), f"{where}: one of them does not name any of {bugs}"


def test_bugs_named_in_transcripts_stand_in_the_table() -> None:
    known = set().union(*(numbers(row[0]) for row in bug_rows()))
    named = {(path.stem, bug) for path in SCRIPTS for bug in numbers(comments(path)) if bug[0]}
    assert [item for item in sorted(named) if item[1] not in known] == []


def test_bugs_that_are_no_matter_of_the_core_are_tested_elsewhere() -> None:
    """The files exist, and the planted bugs."""
    from tests.sim.mutants import MUTANTS

    rows = [row for row in bug_rows() if not transcripts_of(row[2])]
    assert len(rows) >= 5
    planted = {mutant.name for mutant in MUTANTS}
    for bugs, _, where in rows:
        files = re.findall(r"tests/[\w/.]+\w", where)
        assert files, bugs
        assert [file for file in files if not (ROOT / file).exists()] == []
        assert [name for name in re.findall(r"planted as `([\w-]+)`", where) if name not in planted] == []
