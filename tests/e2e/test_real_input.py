"""Samples of the long programs: real input, kills under load. `make real-input` and `make kill-load` run them whole."""

from __future__ import annotations

import time

import pytest

from tests.e2e import kill_load, real_input
from tests.e2e.server import Raftdb

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SAMPLE_COMMANDS = 30_000
SAMPLE_KILLS = 3


def test_word_list_sample(tmp_path, require):
    require("redis-cli")
    words = real_input.word_list()
    if words is None:
        pytest.skip("no word list: the package wamerican is not installed")
    model = real_input.Model()
    with Raftdb(tmp_path) as server:
        replies = real_input.pipe(server, real_input.commands(words, SAMPLE_COMMANDS, seed=7), model)
        assert replies == SAMPLE_COMMANDS
        assert real_input.differences(server, model) == []
        server.kill()
        server.start()
        assert real_input.differences(server, model) == []


def test_the_comparison_sees_a_difference(tmp_path, require):
    require("redis-cli")
    model = real_input.Model()
    with Raftdb(tmp_path) as server:
        real_input.pipe(server, iter([[b"SET", b"a", b"1"], [b"SETEX", b"b", b"1000", b"2"]]), model)
        model.values[b"a"] = b"other"
        model.expiring.clear()
        model.values[b"c"] = b"never written"
        assert len(real_input.differences(server, model)) == 4


def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path):
    server = Raftdb(tmp_path)
    try:
        acknowledged, wrong = kill_load.run(server, SAMPLE_KILLS, seed=int(time.time()))
    finally:
        server.kill()
    assert wrong == []
    assert acknowledged > 0
