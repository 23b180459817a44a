"""raftdb: a replicated, durable key-value database that speaks the Redis protocol.

The public names, for programs that embed a node and bring commands of their own; see docs/embedding.md. They are
loaded when they are first asked for, so that `import raftdb` and `raftdb --help` need neither LMDB nor the node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .commands import (
        ADMIN,
        BLOCKING,
        FAST,
        LOCAL,
        MAY_SHRINK,
        READ,
        SLOW,
        WRITE,
        Bytes,
        Command,
        Context,
        Count,
        Flag,
        Hash,
        Int,
        Key,
        List,
        LocalContext,
        Many,
        ManyPairs,
        NumKeys,
        OneOf,
        Optional,
        Options,
        String,
        Value,
        command,
    )
    from .config import Config
    from .errors import CommandError, DiskFull, RaftdbError, StorageError, Uncertain, Unexecuted, UsageError
    from .node.node import Node
    from .types import OK, Pairs, Reply, ReplySet, Role, Verbatim

#: module -> the names that come from it
_HOMES = {
    "commands": (
        *("ADMIN", "BLOCKING", "FAST", "LOCAL", "MAY_SHRINK", "READ", "SLOW", "WRITE"),
        *("Bytes", "Command", "Context", "Count", "Flag", "Hash", "Int", "Key", "List", "LocalContext", "Many"),
        *("ManyPairs", "NumKeys", "OneOf", "Optional", "Options", "String", "Value", "command"),
    ),
    "config": ("Config",),
    "errors": ("CommandError", "DiskFull", "RaftdbError", "StorageError", "Uncertain", "Unexecuted", "UsageError"),
    "node.node": ("Node",),
    "types": ("OK", "Pairs", "Reply", "ReplySet", "Role", "Verbatim"),
}

__all__ = [
    "ADMIN",
    "BLOCKING",
    "FAST",
    "LOCAL",
    "MAY_SHRINK",
    "OK",
    "READ",
    "SLOW",
    "WRITE",
    "Bytes",
    "Command",
    "CommandError",
    "Config",
    "Context",
    "Count",
    "DiskFull",
    "Flag",
    "Hash",
    "Int",
    "Key",
    "List",
    "LocalContext",
    "Many",
    "ManyPairs",
    "Node",
    "NumKeys",
    "OneOf",
    "Optional",
    "Options",
    "Pairs",
    "RaftdbError",
    "Reply",
    "ReplySet",
    "Role",
    "StorageError",
    "String",
    "Uncertain",
    "Unexecuted",
    "UsageError",
    "Value",
    "Verbatim",
    "__version__",
    "command",
]

if not TYPE_CHECKING:  # a type checker is to see the names above and no others

    def __getattr__(name: str) -> object:
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
