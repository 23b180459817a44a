"""Every setting of a node: one row each, from which flags, environment, file, checks and help come.

    flag  over  environment (RAFTDB_<NAME>)  over  file (--config FILE.toml)  over  default

A row is a field of `Config`; its metadata says how it is written on the command line, how text becomes a value, and
what it means. An unknown key is an error that names it, wherever it comes from: a misspelt limit that is silently
ignored is worse than a refusal to start. One exception: the variables that Kubernetes puts into every container beside
a service called `raftdb` (RAFTDB_PORT..., RAFTDB_SERVICE_...) are not ours.

Units stand in the names: `_ms` milliseconds, `_bytes` bytes (also written as 64MiB, 16mb), `_us` microseconds.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from raftdb.errors import UsageError

ENVIRONMENT_PREFIX: Final = "RAFTDB_"
_KUBERNETES = re.compile(r"RAFTDB_(PORT|SERVICE)(_.*)?$|RAFTDB_.*_(PORT|SERVICE)_.*")

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

_SIZE = re.compile(r"\s*(\d{1,18})\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)
_SIZE_FACTORS = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": 1024 * GIB}


# --- text to value --------------------------------------------------------------------------------------------------


def _text(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("expected text")
    return raw


def _integer(raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise ValueError("expected a whole number")
    text = str(raw).strip()
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError(f"expected a whole number, not {text[:40]!r}")
    return int(text)


def _size(raw: Any) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    match = _SIZE.fullmatch(str(raw))
    if match is None:
        raise ValueError(f"expected a size such as 67108864 or 64MiB, not {str(raw)[:40]!r}")
    return int(match[1]) * _SIZE_FACTORS[match[2].lower()]


def _yes_no(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    answer = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}
    try:
        return answer[str(raw).strip().lower()]
    except KeyError:
        raise ValueError(f"expected yes or no, not {str(raw)[:40]!r}") from None


def _one_of(*choices: str) -> Callable[[Any], str]:
    def parse(raw: Any) -> str:
        text = _text(raw).strip().lower()
        if text not in choices:
            raise ValueError(f"expected one of {', '.join(choices)}, not {text[:40]!r}")
        return text

    return parse


_LEVELS = ("debug", "info", "warning", "warn", "error", "fatal")


class Setting(NamedTuple):
    """What the command line, the environment and the file need to know about one field of `Config`."""

    flags: tuple[str, ...]
    parse: Callable[[Any], Any]
    help: str
    metavar: str
    is_switch: bool  # a flag without a value
    secret: bool  # never printed


def _setting(
    default: Any,
    flags: str,
    parse: Callable[[Any], Any],
    metavar: str,
    text: str,
    *,
    switch: bool = False,
    secret: bool = False,
) -> Any:
    row = Setting(tuple(flags.split()), parse, text, metavar, switch, secret)
    return field(default=default, metadata={"setting": row})


# --- the settings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """The settings of one node. Raises UsageError, naming the setting, for a value that cannot work."""

    # who and where
    address: str = _setting(
        "127.0.0.1:6379",
        "-a --address",
        _text,
        "HOST:PORT",
        "Where clients reach this node. The peers' port is PORT+1. :PORT stands for this host's own address.",
    )
    node_id: str = _setting(
        "",
        "-i --id",
        _text,
        "ID",
        "Name of this node, unlike all others; HOSTNAME = the machine's name. [default: the address]",
    )
    data_dir: str = _setting("", "-d --data-dir", _text, "DIR", "Data directory. [default: raftdb-data/<node id>]")
    bind: str = _setting("", "--bind", _text, "HOST", "Interface to listen on when it differs from the address.")

    # the others
    ensemble: str = _setting(
        "",
        "-e --ensemble",
        _text,
        "LIST",
        "The other nodes: ID/HOST:PORT or HOST:PORT, comma separated, or one DNS name with port.",
    )
    expect: int = _setting(
        0, "--expect", _integer, "N", "With a DNS name in -e: form a new cluster when N distinct nodes have answered."
    )
    overwrite: bool = _setting(
        False,
        "-o --overwrite",
        _yes_no,
        "",
        "Take the place of the member with this id, whose data is lost.",
        switch=True,
    )
    load: str = _setting("", "-l --load", _text, "FILE", "Start a new cluster of one from this snapshot.")
    cluster_secret_file: str = _setting(
        "",
        "--cluster-secret-file",
        _text,
        "FILE",
        "The secret that members prove to each other. [default: cluster.secret beside the data directory]",
    )

    # who may come in
    protected_mode: bool = _setting(
        True,
        "--protected-mode",
        _yes_no,
        "yes|no",
        "Listen beyond loopback only with a password and a secret file. [default: yes]",
    )
    requirepass: str = _setting("", "--requirepass", _text, "PASSWORD", "Clients must AUTH with this.", secret=True)
    maxclients: int = _setting(10_000, "--maxclients", _integer, "N", "Clients served at one time.")

    # reading and time
    reads: str = _setting(
        "linearizable",
        "--reads",
        _one_of("linearizable", "lease", "bounded", "stale"),
        "MODE",
        "Default for reads: linearizable, lease, bounded or stale; per connection by RAFT.CONSISTENCY.",
    )
    bounded_ms: int = _setting(1_000, "--bounded-ms", _integer, "MS", "With --reads bounded: how old an answer may be.")
    tick_ms: int = _setting(50, "--tick-ms", _integer, "MS", "Unit of all consensus timers.")
    heartbeat_ms: int = _setting(100, "--heartbeat-ms", _integer, "MS", "The leader is heard at least this often.")
    election_ms: int = _setting(
        750,
        "--election-ms",
        _integer,
        "MS",
        "Shortest wait for a leader before an election; the longest is twice that.",
    )
    lease_ms: int = _setting(600, "--lease-ms", _integer, "MS", "How long a confirmed round allows lease reads.")
    request_timeout_ms: int = _setting(
        5_000, "--request-timeout-ms", _integer, "MS", "After this a command without an outcome is answered -UNCERTAIN."
    )
    leader_wait_ms: int = _setting(
        5_000, "--leader-wait-ms", _integer, "MS", "How long commands wait for a leader to be known."
    )

    # threads
    io_threads: int = _setting(0, "--io-threads", _integer, "N", "I/O threads beside the driver's own loop.")
    workers: int = _setting(2, "--workers", _integer, "N", "Threads for long commands.")
    switch_interval_us: int = _setting(
        200, "--switch-interval-us", _integer, "US", "Longest time a thread keeps the interpreter to itself."
    )

    # disk
    kv_sync: str = _setting(
        "background",
        "--kv-sync",
        _one_of("background", "always"),
        "MODE",
        "background: the data follows the synced log within a second; always: sync the data with every batch as well.",
    )
    map_size_bytes: int = _setting(
        0,
        "--map-size",
        _size,
        "SIZE",
        "Upper bound of the data file. [default: size of the file system, at least 64 GiB]",
    )
    min_free_bytes: int = _setting(
        256 * MIB,
        "--min-free",
        _size,
        "SIZE",
        "Below this much free disk only commands that shrink the data are accepted.",
    )
    snapshot_log_bytes: int = _setting(
        64 * MIB, "--snapshot-log-bytes", _size, "SIZE", "Log written since the last snapshot that calls for the next."
    )
    snapshot_entries: int = _setting(
        100_000,
        "--snapshot-entries",
        _integer,
        "N",
        "Log entries since the last snapshot that call for the next, once the log has a quarter of its size.",
    )
    keep_entries: int = _setting(
        10_000, "--keep-entries", _integer, "N", "Log entries kept behind a snapshot for followers that lag."
    )
    keep_bytes: int = _setting(64 * MIB, "--keep-bytes", _size, "SIZE", "The same in bytes; the smaller of both holds.")
    snapshot_bandwidth_bytes: int = _setting(
        64 * MIB,
        "--snapshot-bandwidth",
        _size,
        "SIZE",
        "Bytes per second that this node spends on sending snapshots, to all members together.",
    )

    # limits of a request
    bulk_max_bytes: int = _setting(16 * MIB, "--bulk-max", _size, "SIZE", "Longest argument (at most 64 MiB).")

    # logging
    log_level: str = _setting(
        "info", "--log-level -loglevel", _one_of(*_LEVELS), "LEVEL", "debug, info, warning, error or fatal."
    )
    log_file: str = _setting(
        "", "--log-file -logfile", _text, "FILE", "Log here (1 MiB x 10) instead of standard error."
    )

    def __post_init__(self) -> None:
        _check(self)

    @property
    def host(self) -> str:
        return split_address(self.address)[0]

    @property
    def port(self) -> int:
        return split_address(self.address)[1]

    @property
    def own_id(self) -> str:
        """The node id: `-i`, else the address."""
        return self.node_id or self.address

    @property
    def own_data_dir(self) -> Path:
        """The data directory: `-d`, else raftdb-data/<node id>, with what a file name should not hold replaced."""
        if self.data_dir:
            return Path(self.data_dir)
        name = re.sub(r"[^A-Za-z0-9._:@-]", "_", self.own_id)
        return Path("raftdb-data") / (f"_{name[1:]}" if name.startswith(".") else name)

    @property
    def own_secret_file(self) -> Path:
        """The cluster's secret: `--cluster-secret-file`, else cluster.secret in the parent of the data directory."""
        if self.cluster_secret_file:
            return Path(self.cluster_secret_file)
        return self.own_data_dir.absolute().parent / "cluster.secret"


SETTINGS: Final[dict[str, Setting]] = {f.name: f.metadata["setting"] for f in fields(Config)}


# --- checks ---------------------------------------------------------------------------------------------------------

MAP_SIZE_MIN_BYTES: Final = 16 * MIB

#: setting -> (least, most), both included
_RANGES: Final[dict[str, tuple[int, int]]] = {
    "expect": (0, 9),
    "maxclients": (1, 1_000_000),
    "bounded_ms": (1, 3_600_000),
    "tick_ms": (5, 10_000),
    "heartbeat_ms": (5, 60_000),
    "election_ms": (50, 600_000),
    "lease_ms": (0, 600_000),
    "request_timeout_ms": (10, 3_600_000),
    "leader_wait_ms": (0, 3_600_000),
    "io_threads": (0, 64),
    "workers": (1, 64),
    "switch_interval_us": (10, 1_000_000),
    "map_size_bytes": (0, 1 << 46),
    "min_free_bytes": (0, 1 << 46),
    "snapshot_log_bytes": (4 * KIB, 1 << 46),
    "snapshot_entries": (1, 1 << 40),
    "keep_entries": (0, 1 << 40),
    "keep_bytes": (0, 1 << 46),
    "snapshot_bandwidth_bytes": (64 * KIB, 1 << 46),
    "bulk_max_bytes": (KIB, 64 * MIB),
}


def flag_of(name: str) -> str:
    """The long spelling on the command line, for messages."""
    return next((flag for flag in SETTINGS[name].flags if flag.startswith("--")), name)


def _check_range(name: str, value: Any, where: str) -> None:
    """`where`: the flag, variable or key of a file that said so."""
    least, most = _RANGES.get(name, (value, value))
    if not least <= value <= most:
        raise UsageError(f"{where}: {value} is not between {least} and {most}")


def _check(config: Config) -> None:
    for name in _RANGES:
        _check_range(name, getattr(config, name), flag_of(name))
    _check_identity(config)
    _check_timers(config)
    if 0 < config.map_size_bytes < MAP_SIZE_MIN_BYTES:
        raise UsageError(f"--map-size: {config.map_size_bytes} leaves no room for data: at least {MAP_SIZE_MIN_BYTES}")
    if config.load and config.ensemble:
        raise UsageError("-l starts a new cluster of one: it cannot be used together with -e")
    if "\x00" in config.requirepass or len(config.requirepass) > 512:
        raise UsageError("--requirepass: at most 512 characters, none of them NUL")


def _check_identity(config: Config) -> None:
    port = split_address(config.address)[1]
    if port == 65_535:
        raise UsageError("--address: port 65535 leaves no room for the peers' port, which is PORT+1")
    if len(config.node_id.encode()) > 255 or not (
        config.node_id.isprintable() and config.node_id == config.node_id.strip()
    ):
        raise UsageError("--id: at most 255 bytes of printable text without spaces around it")
    if "," in config.node_id or "/" in config.node_id:
        raise UsageError("--id: ',' and '/' separate the entries of -e and cannot be part of an id")


def _check_timers(config: Config) -> None:
    if config.heartbeat_ms < config.tick_ms:
        raise UsageError(f"--heartbeat-ms: {config.heartbeat_ms} is shorter than a tick ({config.tick_ms})")
    if config.election_ms < 2 * config.heartbeat_ms + config.tick_ms:
        raise UsageError(
            f"--election-ms: {config.election_ms} leaves no room for two heartbeats ({config.heartbeat_ms}) and a tick"
        )
    longest = config.election_ms - config.tick_ms - config.election_ms // 10
    if config.lease_ms > longest:
        raise UsageError(
            f"--lease-ms: {config.lease_ms} must stay a tick and 10 % below --election-ms: at most {max(longest, 0)}"
        )


def split_address(address: str) -> tuple[str, int]:
    """'host:port' or '[v6]:port' -> (host without brackets, port). Raises UsageError."""
    host, colon, digits = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"address {address!r}: an IPv6 address stands in brackets, as in [::1]:6379")
    if not colon or not digits.isascii() or not digits.isdigit() or len(digits) > 5 or int(digits) > 65_535:
        raise UsageError(f"address {address!r}: expected HOST:PORT")
    if any(c.isspace() or c in ",/" for c in host):
        raise UsageError(f"address {address!r}: expected HOST:PORT")
    return host, int(digits)


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def peer_address(address: str) -> str:
    """The peers' address of a client address: the next port."""
    host, port = split_address(address)
    return join_address(host, port + 1)


def own_host() -> str:
    """This machine's address for ':PORT': what its host name resolves to, unless that is a loopback address."""
    name = socket.gethostname()
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]
    except OSError:
        found = []
    for host in found:
        if not host.startswith("127."):
            return host
    return name if found else "127.0.0.1"


# --- where values come from -----------------------------------------------------------------------------------------


def _from_file(path: str) -> dict[str, tuple[str, Any]]:
    """name -> (where it stands, raw value)."""
    try:
        with open(path, "rb") as stream:
            table = tomllib.load(stream)
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from None
    names = {spelling: name for name in SETTINGS for spelling in _spellings(name)}
    found: dict[str, tuple[str, Any]] = {}
    for key, raw in table.items():
        name = names.get(key.replace("-", "_").lower())
        if name is None:
            raise UsageError(f"--config {path}: unknown key {key!r}")
        if name in found:
            raise UsageError(f"--config {path}: {key!r} sets what {found[name][0].split(': ', 1)[1]} has set already")
        found[name] = (f"{path}: {key}", raw)
    return found


def _spellings(name: str) -> set[str]:
    """How a setting may be written in the file and the environment: the field's name, or its long flag."""
    return {name, flag_of(name).lstrip("-").replace("-", "_")}


def _from_environment(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    names = {ENVIRONMENT_PREFIX + spelling.upper(): name for name in SETTINGS for spelling in _spellings(name)}
    found: dict[str, tuple[str, Any]] = {}
    for key, raw in environment.items():
        if not key.startswith(ENVIRONMENT_PREFIX) or key == ENVIRONMENT_PREFIX + "CONFIG":
            continue
        if key in names:
            found[names[key]] = (key, raw)
        elif not _KUBERNETES.fullmatch(key):
            raise UsageError(f"environment: unknown variable {key}")
    return found


def load_config(
    flags: Mapping[str, Any], environment: Mapping[str, str] | None = None, file: str | None = None
) -> Config:
    """Flags (by field name; None = not given) over environment over file over defaults. Raises UsageError.

    `file` is `--config`; without it RAFTDB_CONFIG of the environment is used.
    """
    environment = os.environ if environment is None else environment
    file = file or environment.get(ENVIRONMENT_PREFIX + "CONFIG")
    raw: dict[str, tuple[str, Any]] = _from_file(file) if file else {}
    raw |= _from_environment(environment)
    raw |= {name: (flag_of(name), value) for name, value in flags.items() if value is not None}
    values: dict[str, Any] = {}
    for name, (where, value) in raw.items():
        try:
            values[name] = SETTINGS[name].parse(value)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        _check_range(name, values[name], where)
    return _with_own_names(values)


def _with_own_names(values: dict[str, Any]) -> Config:
    """Replaces ':PORT' and HOSTNAME, which mean something only on the machine that reads them."""
    address = values.get("address", "")
    if re.fullmatch(r":\d+", address):
        values["address"] = own_host() + address
    if values.get("node_id") == "HOSTNAME":
        values["node_id"] = socket.gethostname()
    return Config(**values)


def own_names_in(ensemble: str) -> str:
    """':PORT' entries of `-e` with this host's address filled in."""
    entries = [entry.strip() for entry in ensemble.split(",") if entry.strip()]
    return ",".join(re.sub(r"^(.*/)?:(\d+)$", lambda m: f"{m[1] or ''}{own_host()}:{m[2]}", entry) for entry in entries)
