"""docs/commands.md, printed from the table: `python -m raftdb.commands.docs > docs/commands.md`. A test compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final

from .table import LOCAL, READ, WRITE, Command, Table, builtin_table

GROUPS: Final = (
    ("string", "Strings"),
    ("generic", "Keys"),
    ("hash", "Hashes"),
    ("list", "Lists"),
    ("transactions", "Transactions"),
    ("connection", "Connection"),
    ("server", "Server"),
    ("cluster", "Replicas"),
    ("raft", "The Raft group"),
    ("tree", "Trees (pyraft's)"),
)
INTRODUCTION: Final = """\
# Commands

Printed from the table in `raftdb/commands` by `python -m raftdb.commands.docs`; a test fails when this page is not
current. Replies and error texts are those of Redis 7.0, except for what [differences.md](differences.md) lists.

Where a command runs: a *write* goes through the log and is executed by every replica; a *read* runs on the node that
was asked, linearizable by default; a *local* command is answered by that node from its own state.
"""


def markdown(table: Table) -> str:
    """The page."""
    known = {group for group, _ in GROUPS}
    groups = [*GROUPS, *sorted((row.group, row.group.capitalize()) for row in table.every() if row.group not in known)]
    sections = (_section(table, group, title) for group, title in dict.fromkeys(groups))
    return INTRODUCTION + "".join(sections)


def _section(table: Table, group: str, title: str) -> str:
    rows = [row for row in table.every() if row.group == group and not row.name.endswith(" HELP")]
    return f"\n## {title}\n\n" + "\n".join(_lines(rows)) + "\n" if rows else ""


def _lines(rows: list[Command]) -> Iterator[str]:
    yield "| command | runs as | since | what it does |"
    yield "|---|---|---|---|"
    for row in rows:
        synopsis = row.synopsis().replace("|", "\\|")
        yield f"| `{synopsis}` | {_place(row)} | {row.since} | {row.summary} |"


def _place(row: Command) -> str:
    return {WRITE: "write", READ: "read", LOCAL: "local"}[row.flags & (WRITE | READ | LOCAL)]


if __name__ == "__main__":
    sys.stdout.write(markdown(builtin_table()))
