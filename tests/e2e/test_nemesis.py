"""A small share of the fault sets: three of those that meet most, and members that come and go during three faults.

Which three changes with the commit. The whole table runs by `make campaign-nemesis`, six sets of it with each landing
(`python -m tests.e2e ci`).
"""

from __future__ import annotations

import pytest

from tests.e2e.nemesis import FAULT_SETS, run_faults
from tests.rotation import sample

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 6.0
CHURN_SECONDS = 4.0
CHURN_RUNS = 3
SEED = 20


def clean(tmp_path, name: str, seconds: float) -> None:
    report = run_faults(name, tmp_path / "cluster", seconds, SEED)
    assert report.verdict == "clean", f"{report.verdict}\n{report}"
    assert report.injected > 0
    assert report.ok > 0


@pytest.mark.parametrize("name", ["kill-majority", "snapshots-and-kills", "everything"])
def test_faults(tmp_path, name):
    clean(tmp_path, name, SECONDS)


@pytest.mark.parametrize("name", sample([name for name, row in FAULT_SETS.items() if row.churn], CHURN_RUNS))
def test_members_come_and_go_during(tmp_path, name, require):
    if name.endswith("-disk"):
        require("strace")
    clean(tmp_path, name, CHURN_SECONDS)
