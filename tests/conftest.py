"""What all tests share: hypothesis profiles, `require` for programs that a machine may lack, a cache of bytecode.

`make test` needs nothing but Python: a test that wants redis-server, node or strace says so with `require` and is
skipped with its reason. Where TESTS_REQUIRE lists programs ("redis-server,strace,node"), they are promised to be
there, and a test that misses one fails: .ci/run installs them and promises them, so that nothing is skipped in silence.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The suite starts processes by the thousand. Where no bytecode may lie beside the sources each of them would compile
# the package anew, longer than all else that it does before it serves.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(__file__).parent.parent / ".pytest_cache" / "bytecode"))

PROMISED = frozenset(filter(None, os.environ.get("TESTS_REQUIRE", "").split(",")))

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("campaign", parent=settings.get_profile("suite"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes, which mostly wait, in turns with those that compute: nobody is left with one kind.

    (`make test` lets pytest-xdist hand out the files in this order.)
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    waiting = [tests for tests in files.values() if tests[0].get_closest_marker("e2e")]
    computing = [tests for tests in files.values() if not tests[0].get_closest_marker("e2e")]
    places = [(n / len(kind), tests) for kind in (waiting, computing) for n, tests in enumerate(kind)]
    items[:] = [item for _, tests in sorted(places, key=lambda place: place[0]) for item in tests]


def require_program(name: str) -> str:
    """The path of a program; skips the test when it is absent, fails it when TESTS_REQUIRE promised it."""
    path = shutil.which(name)
    if path is None and name in PROMISED:
        pytest.fail(f"{name} was promised by TESTS_REQUIRE and is not installed")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


@pytest.fixture(scope="session")
def require():
    """`require("redis-server")` in a test or fixture: its path, or the test is skipped with the reason."""
    return require_program
