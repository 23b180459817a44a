"""Commands as data, and the machine that executes them. These are the names for embedding applications."""

from ..errors import CommandError
from .args import Bytes, Count, Flag, Int, Key, Many, ManyPairs, NumKeys, OneOf, Optional, Options, Value
from .context import Context, LocalContext, Random, ServerPort, SessionPort
from .hashes import Hash
from .sequence import List
from .strings import String
from .table import ADMIN, BLOCKING, FAST, LOCAL, MAY_SHRINK, READ, SLOW, WRITE, Command, Table, builtin_table, command

__all__ = [
    "ADMIN",
    "BLOCKING",
    "FAST",
    "LOCAL",
    "MAY_SHRINK",
    "READ",
    "SLOW",
    "WRITE",
    "Bytes",
    "Command",
    "CommandError",
    "Context",
    "Count",
    "Flag",
    "Hash",
    "Int",
    "Key",
    "List",
    "LocalContext",
    "Many",
    "ManyPairs",
    "NumKeys",
    "OneOf",
    "Optional",
    "Options",
    "Random",
    "ServerPort",
    "SessionPort",
    "String",
    "Table",
    "Value",
    "builtin_table",
    "command",
]
