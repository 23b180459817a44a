"""docs/end-to-end.md names what is there: every test, every set of faults, all twenty-four scenarios."""

from __future__ import annotations

import re
from pathlib import Path

from tests.e2e.nemesis import FAULT_SETS

HERE = Path(__file__).parent
PAGE = (HERE.parent.parent / "docs" / "end-to-end.md").read_text(encoding="utf-8")


def test_every_test_it_names_is_there():
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", PAGE)
    assert len(named) > 25
    missing = [
        (file, name) for file, name in named if f"\ndef {name}(" not in (HERE / file).read_text(encoding="utf-8")
    ]
    assert not missing


def test_every_set_it_names_is_there():
    named = set(re.findall(r"`(members-[a-z-]*[a-z])`", PAGE))
    assert named == {name for name, row in FAULT_SETS.items() if row.churn}


def test_no_scenario_is_left_out():
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == list(range(1, 25))
    assert all(re.search(r"`(test_|members-)", shown) for _, _, shown in rows)
