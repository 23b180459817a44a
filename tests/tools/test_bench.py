"""The benchmarks judge others, so they are tested themselves: what failed is never a figure, and turns are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from raftdb_tools.bench import http2, load, mixed, plan, plots, report, resp, stages
from raftdb_tools.bench.foreign import Etcd
from raftdb_tools.bench.load import Cell, Sample
from raftdb_tools.bench.processes import Failed, Program, free_ports, wait_until
from raftdb_tools.bench.systems import Redis, System, others

CELL = Cell("SET", 50, 1)
FACTS = {"time": "now", "commit": "abc"}


class Fake(System):
    """A system without programs: what it answers is given, and what is done to it is written down."""

    def __init__(self, name: str, rates: list[float], diary: list[str] | None = None, dies_in: int = 0) -> None:
        super().__init__(name, "nothing")
        self.rates = iter(rates)
        self.diary = [] if diary is None else diary
        self.dies_in = dies_in
        self.starts = 0

    def version(self) -> str:
        return "1"

    def start(self, directory: Path) -> None:
        self.starts += 1
        self.diary.append(f"{self.name} start")
        directory.mkdir(parents=True)

    def measure(self, cell: Cell, seconds: float) -> Sample:
        if self.starts == self.dies_in:
            raise Failed(f"{self.name} ended with code 1")
        rate = next(self.rates)
        return Sample(rate, 1, 2, 3, 4) if rate else Sample(0.0, failure="ERR no")

    def stop(self) -> None:
        self.diary.append(f"{self.name} stop")


def results(*systems: Fake, cells=(CELL,), turns: int = 3, directory: Path) -> plan.Results:
    run = plan.Run(directory, 0.0, lambda line: None)
    run.repeat(systems, cells, turns)
    return run.results(systems, {})


def test_systems_take_turns_and_are_always_stopped(tmp_path):
    diary: list[str] = []
    results(Fake("a", [1, 1], diary), Fake("b", [1, 1], diary, dies_in=1), turns=2, directory=tmp_path)
    assert diary == [f"{name} {what}" for _ in range(2) for name in "ab" for what in ("start", "stop")]
    assert list(tmp_path.iterdir()) == []


def test_cell_by_cell_when_all_are_up_together(tmp_path):
    diary: list[str] = []
    run = plan.Run(tmp_path, 0.0, lambda line: diary.append(line.split()[1]))
    run.repeat([Fake("a", [1, 1], diary), Fake("b", [1, 1], diary)], [CELL, Cell("GET", 1, 1)], 1, together=True)
    assert diary == ["a start", "b start", "a", "b", "a", "b", "a stop", "b stop"]


def test_medians_and_ratios(tmp_path):
    found = results(Fake("redis", [100, 300, 200]), Fake("raftdb-1", [120, 90, 100]), directory=tmp_path)
    assert found.figures["redis", CELL].rate == 200
    assert found.figures["redis", CELL].spread == (100, 300)
    assert found.ratio("raftdb-1", CELL) == 0.5
    assert found.budgets() == [("raftdb-1, SET 50 clients / redis", 0.5, 0.5)]


@pytest.mark.parametrize("broken", [{"rates": [100, 0, 100]}, {"rates": [100, 100], "dies_in": 2}])
def test_one_failed_request_makes_the_cell_failed(tmp_path, broken):
    found = results(Fake("redis", [100] * 3), Fake("raftdb-1", **broken), directory=tmp_path)
    assert found.figures["raftdb-1", CELL].rate == 0
    assert found.ratio("raftdb-1", CELL) is None
    assert len(found.failures()) == 1
    text = report.markdown(found, FACTS, "T")
    assert "| failed |" in text
    assert "no figure" in text
    assert "**missed**" in text


def test_who_does_not_end_one_cell_in_time_is_not_asked_for_the_others(tmp_path):
    """Else a system that cannot do it takes a minute for each cell of each turn."""

    class Stuck(Fake):
        def measure(self, cell: Cell, seconds: float) -> Sample:
            self.diary.append(str(cell))
            return Sample(0.0, failure="not done after 60 s", timed_out=True)

    stuck, other = Stuck("pyraft-3", []), Cell("GET", 1, 1)
    found = results(Fake("redis", [100] * 4), stuck, cells=(CELL, other), turns=2, directory=tmp_path)
    assert stuck.diary.count(str(CELL)) == 1
    assert str(other) not in stuck.diary
    assert found.figures["pyraft-3", CELL].failure == "not done after 60 s"
    assert found.figures["pyraft-3", other].failure == "not asked: SET 50 clients was not done after 60 s"
    assert found.figures["redis", other].rate == 100


def test_report_says_what_was_left_out_and_json_has_every_sample(tmp_path):
    run = plan.Run(tmp_path, 0.0, lambda line: None)
    fakes = [Fake("redis", [100, 200])]
    run.repeat(fakes, [CELL], 2)
    found = run.results(fakes, {"etcd-3": "etcd is not installed"})
    assert "etcd is not installed" in report.markdown(found, FACTS, "T")
    (cell,) = json.loads(report.as_json(found, FACTS))["cells"]
    assert [sample["rate"] for sample in cell["samples"]] == [100, 200]


def test_mixed_load_needs_both_halves():
    good, bad = Sample(100.0), Sample(0.0, failure="ERR")
    assert mixed.Mixed(good, Sample(50.0), 1, 1, 1, 0).ratio == 0.5
    assert mixed.Mixed(good, bad, 1, 1, 1, 0).failure == "ERR"
    found = plan.Results((), {}, {}, {"raftdb-1": (mixed.Mixed(good, good, 1, 1, 1, 1),)})
    assert found.failures() == ["raftdb-1, mixed: 1 elections"]


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    cells = [Cell("SET", 1, 1), CELL, Cell("SET", 50, 1, keys=1_000)]
    found = results(Fake("redis", [1, 2, 3] * 2), cells=cells, turns=2, directory=tmp_path / "run")
    assert plots.write(found, tmp_path) == ["clients-set.svg", "latency-set.svg", "growth-keys.svg"]
    assert all((tmp_path / name).stat().st_size > 1_000 for name in ("clients-set.svg", "growth-keys.svg"))


# --- the loads ------------------------------------------------------------------------------------------------------

HEADER = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"'
)


@pytest.mark.parametrize(
    ("code", "output", "errors"),
    [
        (1, HEADER, "Error from server: ERR unknown command"),
        (0, f'{HEADER}\n"SET","1.0","1","1","1","1","1","1"', "Error: Connection reset by peer"),
        (0, HEADER, ""),
        (139, "", ""),
    ],
)
def test_redis_benchmark_failures(code, output, errors):
    assert load._parsed(code, output, errors).failure


def test_a_server_without_config_is_measured_all_the_same():
    row = f'{HEADER}\n"SET","1.0","1","1","1","1","1","1"'
    complaint = "ERROR: failed to fetch CONFIG from 127.0.0.1:1\nWARNING: Could not fetch server CONFIG\n"
    assert load._parsed(0, row, complaint).failure is None


def test_redis_benchmark_figures():
    sample = load._parsed(0, f'{HEADER}\n"SET","86956.52","0.3","0.1","0.29","0.6","0.8","2.1"', "")
    assert sample == Sample(86956.52, 0.29, 0.6, 0.8, 2.1)


def refusal(port: int) -> str:
    """The error that PING is answered with."""
    with resp.Connection(port, timeout_s=2) as connection:
        with pytest.raises(resp.ReplyError) as refused:
            connection.call("PING")
        return str(refused.value)


def test_a_real_server_that_refuses_is_a_failure(tmp_path, require):
    require("redis-server")
    require("redis-benchmark")
    (port,) = free_ports(1)
    argv = ["redis-server", "--port", str(port), "--save", "", "--requirepass", "secret"]
    program = Program("redis", argv, tmp_path)
    try:
        wait_until(lambda: bool(refusal(port)), [program], "it refuses")
        assert "NOAUTH" in str(load.redis_benchmark(port, CELL, 100).failure)
    finally:
        program.stop()


@pytest.mark.slow
def test_redis_and_the_mixed_load(tmp_path, require):
    require("redis-server")
    require("redis-benchmark")
    system = Redis()
    system.start(tmp_path)
    try:
        assert system.measure(Cell("GET", 2, 1, keys=1_000), 0.05).rate > 0
        mixed.prepare(system, 2_000)
        one = mixed.measure(system, 0.2, 2_000)
        assert one.failure is None
        assert one.keys_replies == 1
        assert one.ranges > 0
    finally:
        system.stop()


@pytest.mark.slow
def test_etcd_over_http2(tmp_path, require):
    require("etcd")
    system = Etcd(1)
    system.start(tmp_path)
    try:
        for command in ("SET", "GET"):
            sample = http2.run(system.port, Cell(command, 3, 4), 200)
            assert sample.failure is None
            assert 0 < sample.p50_ms <= sample.max_ms
    finally:
        system.stop()


def test_http2_frames():
    assert http2.frame(http2.HEADERS, http2.END_HEADERS, 5, b"abc") == b"\x00\x00\x03\x01\x04\x00\x00\x00\x05abc"
    assert http2.message(b"key", b"v" * 200) == b"\x00\x00\x00\x00\xd0\x0a\x03key\x12\xc8\x01" + b"v" * 200


def test_systems_of_a_toml_file(tmp_path):
    file = tmp_path / "others.toml"
    file.write_text('[x-2]\nsynced = "no"\nnodes = ["nothere --port {port}", "nothere --port {port}"]\n')
    (system,) = others(file)
    assert (system.name, system.nodes, system.missing()) == ("x-2", 2, "nothere is not there")
    file.write_text("[x]\n")
    with pytest.raises(Failed):
        others(file)
    assert len(others(Path(__file__).parents[2] / "tools" / "bench.toml")) == 1


def test_every_example_command_is_timed(tmp_path):
    bench = stages.Workbench(tmp_path)
    stages.set_up(bench)
    for name in stages.EXAMPLES:
        spent = stages.microseconds(bench, name, pipelines=2)
        assert spent["parse"] > 0
        assert spent["handler"] > 0
    bench.close()


def test_a_program_that_ends_is_told_with_its_last_words(tmp_path):
    program = Program("sh", ["sh", "-c", "echo no such flag; exit 3"], tmp_path)
    with pytest.raises(Failed, match=r"code 3: no such flag"):
        wait_until(lambda: False, [program], "it answers")
