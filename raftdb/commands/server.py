"""The node as clients and operators see it: COMMAND, INFO, CONFIG, SLOWLOG, LATENCY, DEBUG, SAVE, SHUTDOWN, ACL, WAIT.

COMMAND and its kin are printed from the table itself. INFO says `redis_version:7.2.4`, since some clients switch
features on by it, and raftdb's own version beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..errors import CommandError
from ..types import OK, Encoded, Reply, ReplySet, Verbatim
from .args import Bytes, Flag, Int, Many, ManyPairs, OneOf, Optional, Options, integer, printable
from .connection import REDIS_VERSION
from .context import Context, LocalContext
from .glob import matcher
from .table import (
    ADMIN,
    BLOCKING,
    CATEGORIES,
    CONNECTION,
    DANGEROUS,
    FAST,
    IN_ENTRY,
    LOADING,
    LOCAL,
    NOMULTI,
    NOSCRIPT,
    READ,
    SLOW,
    Command,
    Table,
    command,
)

RAFTDB_VERSION: Final = "0.1.0"
TALK: Final = LOCAL | LOADING
OPERATE: Final = LOCAL | LOADING | ADMIN | NOSCRIPT | DANGEROUS
NO_CLUSTER: Final = "ERR This instance has cluster support disabled"

# --- COMMAND ----------------------------------------------------------------------------------------------------------


def _simple(words: Iterable[str]) -> ReplySet:
    return ReplySet(words)  # str items are simple strings


def _key_specs(row: Command) -> list[Any]:
    """One range per command, as Redis describes keys since 7.0."""
    if not row.first_key:
        return []
    access = ["RO", "access"] if row.flags & READ else ["RW", "update"]
    last = row.last_key - row.first_key if row.last_key >= 0 else row.last_key
    begin = {b"type": b"index", b"spec": {b"index": row.first_key}}
    find = {b"type": b"range", b"spec": {b"lastkey": last, b"keystep": row.key_step, b"limit": 0}}
    return [{b"flags": _simple(access), b"begin_search": begin, b"find_keys": find}]


def _subcommands(row: Command) -> list[Command]:
    return sorted({id(sub): sub for sub in (row.subcommands or {}).values()}.values(), key=lambda sub: sub.name)


def command_row(row: Command) -> list[Any]:
    """The ten fields of COMMAND INFO."""
    return [
        row.full_name.encode(),
        row.arity,
        _simple(row.flag_names()),
        row.first_key,
        row.last_key,
        row.key_step,
        _simple(f"@{category}" for category in row.categories()),
        [],
        _key_specs(row),
        [command_row(sub) for sub in _subcommands(row)],
    ]


def _doc_argument(doc: Mapping[str, Any]) -> dict[bytes, Any]:
    shown: dict[bytes, Any] = {b"name": doc["name"].encode(), b"type": doc["type"].encode()}
    if doc["type"] == "key":
        shown[b"key_spec_index"] = 0
    if "token" in doc:
        shown[b"token"] = doc["token"].encode()
    if "flags" in doc:
        shown[b"flags"] = _simple(doc["flags"])
    if "arguments" in doc:
        shown[b"arguments"] = [_doc_argument(part) for part in doc["arguments"]]
    return shown


def command_doc(row: Command) -> dict[bytes, Any]:
    """The map of COMMAND DOCS."""
    doc: dict[bytes, Any] = {
        b"summary": row.summary.encode(),
        b"since": row.since.encode(),
        b"group": row.group.encode(),
    }
    if row.complexity:
        doc[b"complexity"] = row.complexity.encode()
    arguments = [_doc_argument(argument) for argument in row.docs()]
    if arguments:
        doc[b"arguments"] = arguments
    subcommands = _subcommands(row)
    if subcommands:
        doc[b"subcommands"] = {sub.full_name.encode(): command_doc(sub) for sub in subcommands}
    return doc


def _named(table: Table, name: bytes) -> Command | None:
    """A command by COMMAND's name for it: `get`, `client|list`."""
    first, _, second = name.partition(b"|")
    row = table.get(first)
    if row is None or not second:
        return row
    return (row.subcommands or {}).get(second.upper())


@command("COMMAND", flags=TALK | CONNECTION, since="2.8.13", group="server", summary="Details of all commands")
def command_(ctx: LocalContext) -> Reply:
    return [command_row(row) for row in ctx.table]


@command(
    "COMMAND COUNT", flags=TALK | CONNECTION, since="2.8.13", group="server", summary="How many commands there are"
)
def command_count(ctx: LocalContext) -> Reply:
    return len(ctx.table)


@command(
    "COMMAND INFO",
    Many(Bytes("command-name"), least=0),
    flags=TALK | CONNECTION,
    since="2.8.13",
    group="server",
    summary="Details of the named commands, or of all",
)
def command_info(ctx: LocalContext, names: list[bytes]) -> Reply:
    if not names:
        return command_.handler(ctx)
    rows = [_named(ctx.table, name) for name in names]
    return [None if row is None else command_row(row) for row in rows]


@command(
    "COMMAND DOCS",
    Many(Bytes("command-name"), least=0),
    flags=TALK | CONNECTION,
    since="7.0.0",
    group="server",
    summary="What this page says, for programs",
)
def command_docs(ctx: LocalContext, names: list[bytes]) -> Reply:
    rows = [_named(ctx.table, name) for name in names] if names else list(ctx.table)
    return {row.full_name.encode(): command_doc(row) for row in rows if row is not None}


@command(
    "COMMAND LIST",
    Many(Bytes("filter"), least=0),
    flags=TALK | CONNECTION,
    since="7.0.0",
    group="server",
    summary="Names of commands, all or filtered",
)
def command_list(ctx: LocalContext, words: list[bytes]) -> Reply:
    """COMMAND LIST [FILTERBY MODULE name | ACLCAT category | PATTERN glob]."""
    rows = list(ctx.table)
    if words:
        if len(words) != 3 or words[0].upper() != b"FILTERBY":
            raise CommandError("ERR syntax error")
        rows = _filtered(rows, words[1].upper(), words[2])
    return [row.full_name.encode() for row in rows]


def _filtered(rows: list[Command], by: bytes, value: bytes) -> list[Command]:
    if by == b"MODULE":
        return []
    if by == b"ACLCAT":
        return [row for row in rows if value.decode("latin-1").lower() in row.categories()]
    if by == b"PATTERN":
        match = matcher(value.lower())
        return [row for row in rows if match(row.full_name.encode())]
    raise CommandError("ERR syntax error")


@command(
    "COMMAND GETKEYS",
    Bytes("command"),
    Many(Bytes("arg")),
    flags=TALK | CONNECTION,
    since="2.8.13",
    group="server",
    summary="The keys that a command line names",
)
def command_getkeys(ctx: LocalContext, name: bytes, words: list[bytes]) -> Reply:
    argv = [name, *words]
    if ctx.table.get(name) is None:
        raise CommandError("ERR Invalid command specified")
    try:
        row = ctx.table.find(argv)
    except CommandError:
        raise CommandError("ERR Invalid number of arguments specified for command") from None
    keys = row.keys(argv)
    if not keys:
        raise CommandError("ERR The command has no key arguments")
    return keys


# --- INFO and ROLE ----------------------------------------------------------------------------------------------------

SECTIONS: Final = (
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "modules",
    "errorstats",
    "cluster",
    "keyspace",
    "raft",
)
#: said by this module, unless the node says otherwise
INFO_DEFAULTS: Final[dict[str, dict[str, object]]] = {
    "server": {
        "redis_version": REDIS_VERSION,
        "server_name": "raftdb",
        "raftdb_version": RAFTDB_VERSION,
        "redis_git_sha1": "00000000",
        "redis_git_dirty": 0,
        "redis_mode": "standalone",
        "arch_bits": 64,
    },
    "memory": {"maxmemory": 0, "maxmemory_human": "0B", "maxmemory_policy": "noeviction"},
    "persistence": {"loading": 0, "async_loading": 0, "aof_enabled": 1},
    "cluster": {"cluster_enabled": 0},
}


def _replication(ctx: LocalContext) -> dict[str, object]:
    role = ctx.server.role()
    fields: dict[str, object] = {"role": "master" if role.leader else "slave"}
    if role.leader:
        fields["connected_slaves"] = len(role.followers)
        for number, (host, port, offset) in enumerate(role.followers):
            fields[f"slave{number}"] = f"ip={host},port={port},state=online,offset={offset},lag=0"
    else:
        host, port = role.leader_addr or ("", 0)
        up = role.leader_addr is not None and role.state == "connected"
        fields.update(master_host=host, master_port=port, master_link_status="up" if up else "down")
        fields.update(slave_repl_offset=role.offset, slave_read_only=0)
    fields.update(master_failover_state="no-failover", master_repl_offset=role.offset)
    return fields


def _keyspace(ctx: LocalContext) -> dict[str, object]:
    return {f"db{db}": f"keys={keys},expires={expires},avg_ttl=0" for db, keys, expires in ctx.server.keyspace()}


def info_sections(ctx: LocalContext) -> dict[str, dict[str, object]]:
    """Every section with its fields."""
    given = ctx.server.info()
    sections = {name: {**INFO_DEFAULTS.get(name, {}), **given.get(name, {})} for name in SECTIONS}
    sections["replication"] = {**_replication(ctx), **given.get("replication", {})}
    sections["keyspace"] = _keyspace(ctx)
    for name in given:
        sections.setdefault(name, dict(given[name]))
    return sections


def _section_text(name: str, fields: Mapping[str, object]) -> str:
    title = "CPU" if name == "cpu" else name.capitalize()
    return f"# {title}\r\n" + "".join(f"{field}:{value}\r\n" for field, value in fields.items())


@command(
    "INFO",
    Many(Bytes("section"), least=0),
    flags=TALK | DANGEROUS,
    group="server",
    summary="State and figures of this node, in sections",
)
def info(ctx: LocalContext, names: list[bytes]) -> Reply:
    """All sections, or the named ones; `INFO json` is one JSON object of the state of the group, as pyraft had it."""
    wanted = [name.decode("latin-1").lower() for name in names]
    if wanted == ["json"]:
        return json.dumps(_with_names_of_pyraft(ctx.server.status()), default=str).encode()
    sections = info_sections(ctx)
    if wanted and not {"all", "default", "everything"} & set(wanted):
        sections = {name: fields for name, fields in sections.items() if name in wanted}
    return Verbatim("\r\n".join(_section_text(name, fields) for name, fields in sections.items()))


def _with_names_of_pyraft(status: Mapping[str, object]) -> dict[str, object]:
    """The report of the node, and what pyraft's INFO called some of it: `peers` are the others, by id."""
    states = {"leader": "l", "follower": "f", "learner": "f"}
    members: Any = status.get("peers", ())
    others = {
        row["id"]: {
            **row,
            "state": states.get(row["state"], "c"),
            "term": status.get("term"),
            "index": row["match"] or 0,
        }
        for row in members
        if row["id"] != status.get("node_id")
    }
    return {
        **status,
        "members": members,
        "peers": others,
        "nid": status.get("node_id"),
        "state": states.get(str(status.get("role")), "c"),
        "index": status.get("applied_index"),
        "last_checkpoint": status.get("snapshot_index"),
    }


@command(
    "ROLE",
    flags=LOCAL | LOADING | FAST | ADMIN | NOSCRIPT,
    since="2.8.12",
    group="server",
    summary="Leader or follower, and who the others are",
)
def role(ctx: LocalContext) -> Reply:
    role = ctx.server.role()
    if role.leader:
        rows = [[host.encode(), b"%d" % port, b"%d" % offset] for host, port, offset in role.followers]
        return [b"master", role.offset, rows]
    host, port = role.leader_addr or ("", 0)
    return [b"slave", host.encode(), port, role.state.encode(), role.offset]


@command(
    "TIME", flags=TALK | FAST | IN_ENTRY, since="2.6.0", group="server", summary="Seconds and microseconds of Unix time"
)
def time(ctx: LocalContext | Context) -> Reply:
    """The node's clock; inside a transaction the stamp of the entry, which is the same everywhere."""
    now_us = ctx.now * 1000 if isinstance(ctx, Context) else ctx.server.now_us()
    return [b"%d" % (now_us // 1_000_000), b"%d" % (now_us % 1_000_000)]


# --- CONFIG -----------------------------------------------------------------------------------------------------------


@command(
    "CONFIG GET",
    Many(Bytes("parameter")),
    flags=OPERATE,
    since="2.0.0",
    group="server",
    summary="Settings whose names match one of the patterns",
)
def config_get(ctx: LocalContext, patterns: list[bytes]) -> Reply:
    matches = [matcher(pattern.lower()) for pattern in patterns]
    settings = ctx.server.config_get()
    names = sorted(name for name in settings if any(match(name.encode()) for match in matches))
    return {name.encode(): settings[name].encode() for name in names}


@command(
    "CONFIG SET",
    ManyPairs(Bytes("parameter"), Bytes("value"), "config|set"),
    flags=OPERATE,
    since="2.0.0",
    group="server",
    summary="Change settings of this node while it runs",
)
def config_set(ctx: LocalContext, pairs: list[tuple[bytes, bytes]]) -> Reply:
    settings = ctx.server.config_get()
    changes: dict[str, str] = {}
    for parameter, value in pairs:
        name = printable(parameter)
        if name.lower() not in settings:
            raise CommandError(f"ERR Unknown option or number of arguments for CONFIG SET - '{name}'")
        if name.lower() in changes:
            raise CommandError(f"ERR CONFIG SET failed (possibly related to argument '{name}') - duplicate parameter")
        changes[name.lower()] = value.decode("utf-8", "surrogateescape")
    ctx.server.config_set(changes)
    return OK


@command(
    "CONFIG RESETSTAT", flags=OPERATE, since="2.0.0", group="server", summary="Set the counters of INFO back to zero"
)
def config_resetstat(ctx: LocalContext) -> Reply:
    ctx.server.reset_stats()
    return OK


@command(
    "CONFIG REWRITE",
    flags=OPERATE,
    since="2.8.0",
    group="server",
    summary="Refused: settings are given by flags, environment and file",
)
def config_rewrite(ctx: LocalContext) -> Reply:
    raise CommandError("ERR The server is running without a config file")


# --- persistence ------------------------------------------------------------------------------------------------------


@command(
    "SAVE",
    flags=OPERATE | SLOW | NOMULTI,
    group="server",
    summary="Make a snapshot and wait until it is durable",
)
def save(ctx: LocalContext) -> Reply:
    ctx.server.checkpoint(None, "msgpack")
    return OK


@command(
    "BGSAVE",
    Options(Flag("SCHEDULE")),
    flags=OPERATE,
    group="server",
    summary="Make a snapshot in the background",
)
def bgsave(ctx: LocalContext, _options: dict[str, Any]) -> Reply:
    if not ctx.server.checkpoint_soon():
        raise CommandError("ERR Background save already in progress")
    return "Background saving started"


@command("LASTSAVE", flags=TALK | FAST | ADMIN | DANGEROUS, group="server", summary="Unix time of the last snapshot")
def lastsave(ctx: LocalContext) -> Reply:
    return ctx.server.last_save_s()


@command(
    "CHECKPOINT",
    Optional(Bytes("name")),
    Optional(OneOf("PICKLE", "MSGPACK", name="codec")),
    flags=OPERATE | SLOW | NOMULTI,
    group="server",
    summary="Make a snapshot under a name of its own and wait until it is durable",
    words_max=3,
)
def checkpoint(ctx: LocalContext, name: bytes | None, codec: str | None) -> Reply:
    """+OK as in pyraft; the file is told by RAFT.SNAPSHOT LIST."""
    try:
        text = None if name is None else name.decode("ascii")
    except UnicodeDecodeError:
        raise CommandError("ERR a snapshot's name is ASCII text") from None
    ctx.server.checkpoint(text, (codec or "MSGPACK").lower())
    return OK


@command(
    "SHUTDOWN",
    Options(Flag("NOSAVE", "save"), Flag("SAVE", "save"), Flag("NOW"), Flag("FORCE"), Flag("ABORT")),
    flags=OPERATE | NOMULTI,
    group="server",
    summary="Shut this node down; the others go on",
)
def shutdown(ctx: LocalContext, options: dict[str, Any]) -> Reply:
    if "ABORT" in options:
        raise CommandError("ERR No shutdown in progress.")
    ctx.server.shutdown("SAVE" in options, "NOW" in options)
    return Encoded(b"")


@command(
    "WAIT",
    Int("numreplicas"),
    Bytes("timeout", "integer"),
    flags=LOCAL | BLOCKING | CONNECTION,
    since="3.0.0",
    group="generic",
    summary="Wait until the writes of this connection are durable on so many followers",
)
def wait(ctx: LocalContext, replicas: int, timeout: bytes) -> Reply:
    timeout_ms = integer(timeout, "ERR timeout is not an integer or out of range")
    if timeout_ms < 0:
        raise CommandError("ERR timeout is negative")
    return ctx.server.wait_replicas(ctx.session.written_index, replicas, timeout_ms)


# --- operations -------------------------------------------------------------------------------------------------------


@command(
    "SLOWLOG GET",
    Optional(Int("count", -1, error="ERR count should be greater than or equal to -1")),
    flags=OPERATE,
    since="2.2.12",
    group="server",
    summary="The latest slow commands of this node",
    words_max=3,
)
def slowlog_get(ctx: LocalContext, count: int | None) -> Reply:
    rows = ctx.server.slowlog(10 if count is None else count)
    return [[number, at, us, list(argv), addr.encode(), name.encode()] for number, at, us, argv, addr, name in rows]


@command("SLOWLOG LEN", flags=OPERATE, since="2.2.12", group="server", summary="How many slow commands are kept")
def slowlog_len(ctx: LocalContext) -> Reply:
    return ctx.server.slowlog_length()


@command("SLOWLOG RESET", flags=OPERATE, since="2.2.12", group="server", summary="Forget the slow commands")
def slowlog_reset(ctx: LocalContext) -> Reply:
    ctx.server.slowlog_reset()
    return OK


@command(
    "LATENCY LATEST", flags=OPERATE, since="2.8.13", group="server", summary="The latest sample of each kind of delay"
)
def latency_latest(ctx: LocalContext) -> Reply:
    return [[event.encode(), at, last, worst] for event, at, last, worst in ctx.server.latency_latest()]


@command(
    "LATENCY RESET",
    Many(Bytes("event"), least=0),
    flags=OPERATE,
    since="2.8.13",
    group="server",
    summary="Forget latency samples",
)
def latency_reset(ctx: LocalContext, _events: list[bytes]) -> Reply:
    return ctx.server.latency_reset()


@command(
    "LATENCY HISTORY", Bytes("event"), flags=OPERATE, since="2.8.13", group="server", summary="Samples of one event"
)
def latency_history(ctx: LocalContext, event: bytes) -> Reply:
    return [[at, last] for name, at, last, _ in ctx.server.latency_latest() if name.encode() == event]


@command(
    "LATENCY HISTOGRAM",
    Many(Bytes("command"), least=0),
    flags=OPERATE,
    since="7.0.0",
    group="server",
    summary="Cumulative distribution of latencies; none are kept",
)
def latency_histogram(ctx: LocalContext, _names: list[bytes]) -> Reply:
    return {}


@command("LATENCY DOCTOR", flags=OPERATE, since="2.8.13", group="server", summary="The latency samples in words")
def latency_doctor(ctx: LocalContext) -> Reply:
    rows = ctx.server.latency_latest()
    lines = [f"{event}: last {last} ms, worst {worst} ms" for event, _, last, worst in rows]
    return Verbatim("\n".join(lines) or "No event was slow enough to be recorded.")


@command("MEMORY DOCTOR", flags=TALK, since="4.0.0", group="server", summary="A word on where the memory is")
def memory_doctor(ctx: LocalContext) -> Reply:
    return Verbatim("Data lives in LMDB, in the page cache; see INFO memory.")


@command("MEMORY STATS", flags=TALK, since="4.0.0", group="server", summary="The memory section of INFO as a map")
def memory_stats(ctx: LocalContext) -> Reply:
    return {name.encode(): _memory_value(value) for name, value in ctx.server.info().get("memory", {}).items()}


def _memory_value(value: object) -> Reply:
    return value if isinstance(value, int | float) else str(value).encode()


@command(
    "DEBUG SLEEP", Bytes("seconds", "double"), flags=OPERATE | BLOCKING, group="server", summary="Sleep, on a worker"
)
def debug_sleep(ctx: LocalContext, seconds: bytes) -> Reply:
    """At most an hour; what is no number means no time, as in Redis."""
    try:
        span_s = float(seconds)
    except ValueError:
        span_s = 0.0
    ctx.server.sleep(min(span_s, 3600.0) if span_s > 0 else 0.0)
    return OK


@command(
    "MODULE LIST", flags=TALK | ADMIN | NOSCRIPT, since="4.0.0", group="server", summary="No modules: an empty list"
)
def module_list(ctx: LocalContext) -> Reply:
    return []


# --- ACL --------------------------------------------------------------------------------------------------------------


@command("ACL WHOAMI", flags=TALK | NOSCRIPT, since="6.0.0", group="server", summary="The user of this connection")
def acl_whoami(ctx: LocalContext) -> Reply:
    return ctx.session.user.encode()


@command(
    "ACL CAT",
    Optional(Bytes("categoryname")),
    flags=TALK | NOSCRIPT,
    since="6.0.0",
    group="server",
    summary="Categories of commands, or the commands of one",
    words_max=3,
)
def acl_cat(ctx: LocalContext, category: bytes | None) -> Reply:
    if category is None:
        return [name.encode() for name in CATEGORIES]
    name = printable(category)
    if name.lower() not in CATEGORIES:
        raise CommandError(f"ERR Unknown category '{name}'")
    return [row.full_name.encode() for row in ctx.table.every() if name.lower() in row.categories()]


def _default_user(ctx: LocalContext) -> bytes:
    secret = "#<hidden>" if ctx.server.password_required() else "nopass"
    return f"user default on {secret} ~* &* +@all".encode()


@command("ACL LIST", flags=OPERATE, since="6.0.0", group="server", summary="The rules; there is one user")
def acl_list(ctx: LocalContext) -> Reply:
    return [_default_user(ctx)]


@command("ACL USERS", flags=OPERATE, since="6.0.0", group="server", summary="The users; there is one")
def acl_users(ctx: LocalContext) -> Reply:
    return [b"default"]


@command(
    "CLUSTER",
    Many(Bytes("subcommand")),
    flags=TALK,
    since="3.0.0",
    group="cluster",
    summary="Redis Cluster is not spoken: every node answers for all keys",
)
def cluster(ctx: LocalContext, _words: list[bytes]) -> Reply:
    raise CommandError(NO_CLUSTER)


COMMANDS: list[Command] = [
    command_,
    command_count,
    command_info,
    command_docs,
    command_list,
    command_getkeys,
    info,
    role,
    time,
    config_get,
    config_set,
    config_resetstat,
    config_rewrite,
    save,
    bgsave,
    lastsave,
    checkpoint,
    shutdown,
    wait,
    slowlog_get,
    slowlog_len,
    slowlog_reset,
    latency_latest,
    latency_reset,
    latency_history,
    latency_histogram,
    latency_doctor,
    memory_doctor,
    memory_stats,
    debug_sleep,
    module_list,
    acl_whoami,
    acl_cat,
    acl_list,
    acl_users,
    cluster,
]
