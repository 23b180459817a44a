"""The Raft group as clients see and steer it: RAFT.*, and pyraft's names for the same things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ..errors import CommandError
from ..types import OK, Reply
from .args import Bytes, Int, OneOf, Optional
from .context import LocalContext
from .table import (
    ADMIN,
    BLOCKING,
    CONNECTION,
    DANGEROUS,
    FAST,
    LOADING,
    LOCAL,
    NOMULTI,
    NOSCRIPT,
    SLOW,
    Command,
    command,
)

SHOW: Final = LOCAL | LOADING
STEER: Final = LOCAL | ADMIN | NOSCRIPT | DANGEROUS | BLOCKING | NOMULTI
LOG_ENTRIES_MAX: Final = 1_000  # of one GETLOG
SNAPSHOT_READ_BYTES_MAX: Final = 1 << 20  # of one RAFT.SNAPSHOT READ
FILE_OFFSET_MAX: Final = (1 << 63) - 1

COPY: Final = SHOW | ADMIN | NOSCRIPT | DANGEROUS | SLOW | NOMULTI  # files of this node: on a worker

CONSISTENCY_LEVELS: Final = ("LINEARIZABLE", "LEASE", "BOUNDED", "STALE")


def shown(value: object) -> Reply:
    """A value of the node's reports as a reply: containers go deep, what RESP has no type for is text."""
    if value is None or isinstance(value, bool | int | float | bytes):
        return value
    if isinstance(value, Mapping):
        return {str(name).encode(): shown(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shown(item) for item in value]
    return str(value).encode()


def _text(token: bytes, what: str) -> str:
    try:
        return token.decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError(f"ERR {what} is not UTF-8 text") from None


@command("RAFT.INFO", flags=SHOW, group="raft", summary="State of this node in its group")
def raft_info(ctx: LocalContext) -> Reply:
    return shown(ctx.server.status())


@command("RAFT.LEADER", flags=SHOW | FAST, group="raft", summary="Host and port of the leader; null when unknown")
def raft_leader(ctx: LocalContext) -> Reply:
    address = ctx.server.role().leader_addr
    return None if address is None else [address[0].encode(), address[1]]


@command("RAFT.NODES", flags=SHOW, group="raft", summary="The members and how far they are")
def raft_nodes(ctx: LocalContext) -> Reply:
    return [shown(node) for node in ctx.server.nodes()]


def _add(ctx: LocalContext, node_id: bytes, address: bytes) -> Reply:
    ctx.server.add_node(_text(node_id, "the node id"), _text(address, "the address"), True)
    return OK


def _remove(ctx: LocalContext, node_id: bytes) -> Reply:
    ctx.server.remove_node(_text(node_id, "the node id"))
    return OK


raft_add = command(
    "RAFT.ADD",
    Bytes("node-id"),
    Bytes("host:port"),
    flags=STEER,
    group="raft",
    summary="Let a node join as learner; it becomes a voter when it has caught up",
)(_add)
add_node = command(
    "ADD_NODE", Bytes("node-id"), Bytes("host:port"), flags=STEER, group="raft", summary="As RAFT.ADD (pyraft's name)"
)(_add)


@command(
    "RAFT.ADD-LEARNER",
    Bytes("node-id"),
    Bytes("host:port"),
    flags=STEER,
    group="raft",
    summary="Refused: learners become voters by themselves",
)
def raft_add_learner(ctx: LocalContext, node_id: bytes, address: bytes) -> Reply:
    ctx.server.add_node(_text(node_id, "the node id"), _text(address, "the address"), False)
    return OK


raft_remove = command("RAFT.REMOVE", Bytes("node-id"), flags=STEER, group="raft", summary="Remove a member")(_remove)
del_node = command("DEL_NODE", Bytes("node-id"), flags=STEER, group="raft", summary="As RAFT.REMOVE (pyraft's name)")(
    _remove
)


@command("RAFT.PROMOTE", Bytes("node-id"), flags=STEER, group="raft", summary="Make a learner a voter")
def raft_promote(ctx: LocalContext, node_id: bytes) -> Reply:
    ctx.server.promote(_text(node_id, "the node id"))
    return OK


@command("RAFT.DEMOTE", Bytes("node-id"), flags=STEER, group="raft", summary="Refused: no member stays a learner")
def raft_demote(ctx: LocalContext, node_id: bytes) -> Reply:
    ctx.server.demote(_text(node_id, "the node id"))
    return OK


@command(
    "RAFT.TRANSFER",
    Optional(Bytes("node-id")),
    flags=STEER,
    group="raft",
    summary="Hand leadership over, to a named node or to the one that is furthest",
    words_max=2,
)
def raft_transfer(ctx: LocalContext, node_id: bytes | None) -> Reply:
    ctx.server.transfer_leadership(None if node_id is None else _text(node_id, "the node id"))
    return OK


@command(
    "RAFT.BARRIER",
    flags=LOCAL | BLOCKING | NOMULTI | NOSCRIPT,
    group="raft",
    summary="Wait until everything committed so far is applied on this node; its index",
)
def raft_barrier(ctx: LocalContext) -> Reply:
    return ctx.server.barrier()


@command(
    "RAFT.CONSISTENCY",
    Optional(OneOf(*CONSISTENCY_LEVELS, name="level")),
    Optional(Int("milliseconds", 0, 86_400_000)),
    flags=SHOW | FAST | CONNECTION,
    group="raft",
    summary="Choose how fresh the reads of this connection are; without arguments: tell",
    words_max=3,
)
def raft_consistency(ctx: LocalContext, level: str | None, age_ms: int | None) -> Reply:
    session = ctx.session
    if level is None:
        return [session.consistency.encode(), session.bounded_ms]
    if (level == "BOUNDED") != (age_ms is not None):
        raise CommandError("ERR BOUNDED, and only it, takes milliseconds")
    session.consistency = level.lower()
    session.bounded_ms = age_ms or 0
    return OK


@command("RAFT.SNAPSHOT NOW", flags=STEER | SLOW, group="raft", summary="Make a snapshot; its file name")
def raft_snapshot_now(ctx: LocalContext) -> Reply:
    return ctx.server.checkpoint(None, "msgpack").encode()


@command("RAFT.SNAPSHOT LIST", flags=SHOW, group="raft", summary="The snapshots that are kept")
def raft_snapshot_list(ctx: LocalContext) -> Reply:
    return [shown(snapshot) for snapshot in ctx.server.snapshots()]


@command(
    "RAFT.SNAPSHOT READ",
    Bytes("name"),
    Int("offset", 0, FILE_OFFSET_MAX),
    Int("length", 1, SNAPSHOT_READ_BYTES_MAX),
    flags=COPY,
    group="raft",
    summary="Size of a snapshot or checkpoint of this node, and the bytes of it from an offset on",
)
def raft_snapshot_read(ctx: LocalContext, name: bytes, offset: int, length: int) -> Reply:
    size_bytes, data = ctx.server.read_snapshot(_text(name, "the name"), offset, length)
    return [size_bytes, data]


@command(
    "RAFT.SNAPSHOT DROP", Bytes("name"), flags=COPY, group="raft", summary="Delete a checkpoint of this node: 1 or 0"
)
def raft_snapshot_drop(ctx: LocalContext, name: bytes) -> Reply:
    return int(ctx.server.drop_checkpoint(_text(name, "the name")))


def _get_log(ctx: LocalContext, start: int | None, stop: int | None) -> Reply:
    """[index, term, stamp, kind, [command line, ...]] for start <= index < stop, at most LOG_ENTRIES_MAX."""
    first = 1 if start is None else max(start, 1)
    limit = first + LOG_ENTRIES_MAX
    entries = ctx.server.log_entries(first, limit if stop is None else min(stop, limit))
    return [
        [index, term, stamp, kind.encode(), [list(argv) for argv in lines]]
        for index, term, stamp, kind, lines in entries
    ]


getlog = command(
    "GETLOG",
    Optional(Int("start")),
    Optional(Int("end")),
    flags=SHOW | ADMIN | DANGEROUS | SLOW,
    group="raft",
    summary="Entries of this node's log, end excluded",
    words_max=3,
)(_get_log)
raft_log = command(
    "RAFT.LOG RANGE",
    Optional(Int("start")),
    Optional(Int("end")),
    flags=SHOW | ADMIN | DANGEROUS | SLOW,
    group="raft",
    summary="Entries of this node's log, end excluded",
    words_max=4,
)(_get_log)


@command("GETDUMP", flags=SHOW | ADMIN | DANGEROUS | SLOW, group="raft", summary="The whole state as text")
def getdump(ctx: LocalContext) -> Reply:
    return ctx.server.dump()


COMMANDS: list[Command] = [
    raft_info,
    raft_leader,
    raft_nodes,
    raft_add,
    add_node,
    raft_add_learner,
    raft_remove,
    del_node,
    raft_promote,
    raft_demote,
    raft_transfer,
    raft_barrier,
    raft_consistency,
    raft_snapshot_now,
    raft_snapshot_list,
    raft_snapshot_read,
    raft_snapshot_drop,
    raft_log,
    getlog,
    getdump,
]
