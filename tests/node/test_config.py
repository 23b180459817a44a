"""Settings: flag over environment over file over default; every mistake is one line that names its origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftdb.config import MIB, SETTINGS, Config, load_config, own_names_in, peer_address, split_address
from raftdb.errors import UsageError


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('data-dir = "from-file"\nio_threads = 3\nworkers = 5\n')
    environment = {"RAFTDB_IO_THREADS": "2", "RAFTDB_WORKERS": "6"}
    config = load_config({"workers": "7", "address": None}, environment, str(file))
    assert (config.data_dir, config.io_threads, config.workers) == ("from-file", 2, 7)
    assert config.address == "127.0.0.1:6379"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("workers = 9\n")
    assert load_config({}, {"RAFTDB_CONFIG": str(file)}).workers == 9


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_has_a_flag_a_help_text_and_a_default_that_its_own_parser_accepts(name: str) -> None:
    setting = SETTINGS[name]
    assert any(flag.startswith("--") for flag in setting.flags)
    assert setting.help
    default = getattr(Config(), name)
    assert setting.parse(default) == default


@pytest.mark.parametrize(
    ("flags", "environment", "file", "wanted"),
    [
        ({}, {"RAFTDB_WORKES": "1"}, "", "unknown variable RAFTDB_WORKES"),
        ({}, {}, "workes = 1", "unknown key 'workes'"),
        ({}, {}, "workers = ", "Invalid value"),
        ({}, {}, "workers = 1\n[log]\nlevel = 1", "unknown key 'log'"),
        ({}, {}, 'data-dir = "a"\ndata_dir = "b"', "set already"),
        ({}, {}, "workers = true", "node.toml: workers: expected a whole number"),
        ({}, {"RAFTDB_WORKERS": "many"}, "", "RAFTDB_WORKERS: expected a whole number"),
        ({"workers": "1_0"}, {}, "", "--workers: expected a whole number"),
        ({"workers": "0"}, {}, "", "--workers: 0 is not between 1 and 64"),
        ({}, {"RAFTDB_WORKERS": "0"}, "", "RAFTDB_WORKERS: 0 is not between 1 and 64"),
        ({}, {}, "workers = 65", "node.toml: workers: 65 is not between 1 and 64"),
        ({"reads": "fast"}, {}, "", "--reads: expected one of linearizable"),
        ({"protected_mode": "maybe"}, {}, "", "--protected-mode: expected yes or no"),
        ({"map_size_bytes": "12 parsecs"}, {}, "", "--map-size: expected a size"),
        ({"address": "localhost"}, {}, "", "expected HOST:PORT"),
        ({"address": "::1:6379"}, {}, "", "brackets"),
        ({"address": "localhost:65535"}, {}, "", "PORT+1"),
        ({"address": "localhost:70000"}, {}, "", "expected HOST:PORT"),
        ({"node_id": "a,b"}, {}, "", "--id"),
        ({"node_id": "a\nb"}, {}, "", "--id"),
        ({"load": "x.dat", "ensemble": "h:1"}, {}, "", "-l starts a new cluster of one"),
        ({"heartbeat_ms": "20"}, {}, "", "--heartbeat-ms: 20 is shorter than a tick (50)"),
        ({"election_ms": "200"}, {}, "", "--election-ms: 200 leaves no room"),
        ({"lease_ms": "700"}, {}, "", "--lease-ms: 700 must stay"),
        ({"bulk_max_bytes": "65MiB"}, {}, "", "--bulk-max"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_origin(
    tmp_path: Path, flags: dict[str, str], environment: dict[str, str], file: str, wanted: str
) -> None:
    path = tmp_path / "node.toml"
    path.write_text(file)
    with pytest.raises(UsageError) as caught:
        load_config(flags, environment, str(path) if file else None)
    assert wanted in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match=r"--config /nowhere/x\.toml: No such file"):
        load_config({}, {}, "/nowhere/x.toml")


def test_the_variables_of_a_kubernetes_service_called_raftdb_are_not_ours() -> None:
    environment = {
        "RAFTDB_PORT": "tcp://10.0.0.1:6379",
        "RAFTDB_PORT_6379_TCP_ADDR": "10.0.0.1",
        "RAFTDB_SERVICE_HOST": "10.0.0.1",
        "RAFTDB_SERVICE_PORT_CLIENT": "6379",
    }
    assert load_config({}, environment) == Config()


def test_sizes_switches_and_units() -> None:
    config = load_config({"map_size_bytes": "8gb", "min_free_bytes": "64MiB", "overwrite": True}, {})
    assert config.map_size_bytes == 8 * 1024 * MIB
    assert config.min_free_bytes == 64 * MIB
    assert config.overwrite


def test_addresses() -> None:
    assert split_address("[::1]:6379") == ("::1", 6379)
    assert split_address("db.example:0") == ("db.example", 0)
    assert peer_address("[::1]:6379") == "[::1]:6380"
    assert peer_address("10.0.0.1:5010") == "10.0.0.1:5011"


def test_a_port_alone_stands_for_the_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftdb.config.own_host", lambda: "10.1.2.3")
    monkeypatch.setattr("raftdb.config.socket.gethostname", lambda: "pod-7")
    config = load_config({"address": ":5010", "node_id": "HOSTNAME"}, {})
    assert (config.address, config.own_id) == ("10.1.2.3:5010", "pod-7")
    assert own_names_in("2/:5020, :5030,h:1") == "2/10.1.2.3:5020,10.1.2.3:5030,h:1"


def test_what_follows_from_the_settings() -> None:
    config = Config(address="10.0.0.1:5010")
    assert config.own_id == "10.0.0.1:5010"
    assert config.own_data_dir == Path("raftdb-data/10.0.0.1:5010")
    assert config.own_secret_file.name == "cluster.secret"
    assert config.own_secret_file.parent.name == "raftdb-data"
    assert Config(node_id="a b", data_dir="").own_data_dir == Path("raftdb-data/a_b")
    assert Config(node_id="..").own_data_dir == Path("raftdb-data/_.")
