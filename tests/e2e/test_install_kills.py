"""Kills of a follower while it installs a snapshot: a sample of the calls, which changes with the commit.

`make install-kills` takes all of them, `make install-kills ARGS=--second` those of the second test.
"""

from __future__ import annotations

import pytest

from tests.e2e import install_kills

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_a_kill_at_any_call_of_an_install_leaves_a_node_that_starts(tmp_path, require):
    result = install_kills.run(tmp_path / "cluster", require("strace"), 6)
    assert result.killed[install_kills.TAKES_EFFECT] >= 1, result
    assert result.calls > 30, result
    assert result.killed.total() == result.tried == 6, result


@pytest.mark.timeout(300)
def test_a_kill_while_a_second_install_overtakes_the_first_one(tmp_path, require):
    """A snapshot comes while the one before is being built; kills from then on."""
    result = install_kills.run(tmp_path / "cluster", require("strace"), 3, second=True)
    assert result.killed[install_kills.TAKES_EFFECT] >= 1, result
    assert result.calls > 50, result
    assert result.killed.total() == result.tried == 3, result
