"""The import table of ARCHITECTURE.md, read from the syntax trees.

Each rule carries its row of the table as text, and the rows must stand in ARCHITECTURE.md exactly so: neither can be
changed without the other. Third-party names that a row does not list are allowed only where `third_party` gives them.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import pytest

from tests.sources import ROOT, Import, imports, module_name, python_files

LAYER_0 = ("raftdb.errors", "raftdb.types", "raftdb.clock", "raftdb.metrics")
PURE_STDLIB = frozenset({"__future__", "dataclasses", "enum", "typing", "collections", "heapq", "bisect"})


class Rule(NamedTuple):
    """What the modules below `packages` may import: of raftdb, of other distributions, of the standard library."""

    row: str
    packages: tuple[str, ...]
    inside: tuple[str, ...]
    third_party: frozenset[str] = frozenset()
    stdlib: frozenset[str] | None = None  # None: all of it


RULES = (
    Rule("| 0 | errors, types, clock, metrics | standard library |", LAYER_0, LAYER_0),
    Rule(
        "| 1 | consensus | types, errors"
        " (of the standard library: dataclasses, enum, typing, collections, heapq, bisect) |",
        ("raftdb.consensus",),
        ("raftdb.types", "raftdb.errors"),
        stdlib=PURE_STDLIB,
    ),
    Rule(
        "| 1 | storage | layer 0, lmdb, msgpack, crcmod (google_crc32c when importable) |",
        ("raftdb.storage",),
        LAYER_0,
        frozenset({"lmdb", "msgpack", "crcmod", "google_crc32c"}),
    ),
    Rule(
        "| 2 | commands | storage.kv, storage.keys, layer 0; never consensus, net, node |",
        ("raftdb.commands",),
        ("raftdb.storage.kv", "raftdb.storage.keys", *LAYER_0),
        frozenset({"msgpack", "lupa"}),
    ),
    Rule(
        "| 2 | net | consensus.messages, layer 0; never storage, commands, node |",
        ("raftdb.net",),
        ("raftdb.consensus.messages", *LAYER_0),
        frozenset({"hiredis", "msgpack"}),
    ),
    Rule(
        "| 2 | format | layer 0, consensus.messages, storage.records, commands.table |",
        ("raftdb.format",),
        ("raftdb.consensus.messages", "raftdb.storage.records", "raftdb.commands.table", *LAYER_0),
    ),
    Rule(
        "| 3 | node | everything above |",
        ("raftdb.node",),
        (
            "raftdb.consensus",
            "raftdb.storage",
            "raftdb.commands",
            "raftdb.net",
            "raftdb.format",
            "raftdb.config",
            "raftdb",  # its version
            *LAYER_0,
        ),
        frozenset({"msgpack", "lmdb", "hiredis"}),
    ),
    Rule("| 3 | config | layer 0 |", ("raftdb.config",), LAYER_0, frozenset({"click"})),
    Rule(
        "| 4 | cli, raft, status, `__init__` | node, config, the public names of commands |",
        ("raftdb.cli", "raftdb.raft", "raftdb.status", "raftdb.__main__", "raftdb"),
        (
            "raftdb",
            "raftdb.cli",
            "raftdb.raft",
            "raftdb.status",
            "raftdb.backup",
            "raftdb.node",
            "raftdb.config",
            "raftdb.commands",
            *LAYER_0,
        ),
        frozenset({"click", "rich", "hiredis"}),
    ),
    Rule(
        "| 4 | backup | node, storage, config, layer 0 |",
        ("raftdb.backup",),
        ("raftdb.node", "raftdb.storage", "raftdb.config", *LAYER_0),
        frozenset({"hiredis", "rich"}),
    ),
    Rule(
        "| 4 | tools | storage, commands (machine, table, glob), format, config, layer 0;"
        " never node or net, so that it works on a dead node |",
        ("tools",),
        (
            "raftdb",
            "raftdb.storage",
            "raftdb.commands.machine",
            "raftdb.commands.table",
            "raftdb.commands.glob",
            "raftdb.format",
            "raftdb.config",
            *LAYER_0,
        ),
        frozenset({"click", "rich", "lmdb"}),
    ),
    Rule(
        "| 4 | tools.bench | starts programs and talks to them; the command table and machine to time their parts |",
        ("tools.bench",),
        (
            "raftdb",
            "raftdb.storage",
            "raftdb.commands",
            "raftdb.net.resp",
            "raftdb.consensus",
            "raftdb.format",
            *LAYER_0,
        ),
        frozenset({"click", "rich", "redis", "psutil", "matplotlib", "hiredis", "pysyncobj"}),
    ),
)

SOURCES = python_files("raftdb", "tools")


def below(module: str, packages: tuple[str, ...]) -> bool:
    """Whether the module is one of these or inside one. `raftdb` alone stands for its `__init__`."""
    return any(module == package or (package != "raftdb" and module.startswith(f"{package}.")) for package in packages)


def rule_of(module: str) -> Rule:
    """The rule with the longest matching package; a module without a rule is a mistake."""
    fitting = [(len(package), rule) for rule in RULES for package in rule.packages if below(module, (package,))]
    assert fitting, f"{module} has no row in the import table of ARCHITECTURE.md"
    return max(fitting, key=lambda pair: pair[0])[1]


def objection(rule: Rule, found: Import) -> str | None:
    """What is wrong with this import, None when it is allowed."""
    top = found.module.partition(".")[0]
    if top == "raftdb_tools":
        return "tools import each other relatively"
    if top in ("raftdb", "tools"):
        ok = below(found.module, rule.packages) or below(found.module, rule.inside)
        return None if ok else "not in its row"
    if top in sys.stdlib_module_names:
        return None if rule.stdlib is None or top in rule.stdlib else "not of this standard library subset"
    return None if top in rule.third_party else "this distribution is not in its row"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_table(path):
    rule = rule_of(module_name(path))
    wrong = [f"line {found.line}: {found.module}: {why}" for found in imports(path) if (why := objection(rule, found))]
    assert not wrong, f"{module_name(path)} ({rule.row}):\n" + "\n".join(wrong)


def test_the_table_is_the_one_in_the_tour():
    tour = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    section = tour.split("## Layers", 1)[1].split("\n## ", 1)[0]
    rows = {line.strip() for line in section.splitlines() if line.startswith("| ") and not line.startswith("| layer")}
    assert rows == {rule.row for rule in RULES}


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("raftdb.consensus.core", "raftdb.types", True),
        ("raftdb.consensus.core", "random", False),
        ("raftdb.consensus.core", "raftdb.storage.log", False),
        ("raftdb.commands.strings", "raftdb.storage.kv", True),
        ("raftdb.commands.strings", "raftdb.storage.log", False),
        ("raftdb.net.wire", "raftdb.consensus.messages", True),
        ("raftdb.net.wire", "raftdb.consensus.core", False),
        ("raftdb.net.server", "lmdb", False),
        ("raftdb.format", "raftdb.storage.kv", False),
        ("tools.dump", "raftdb.node.driver", False),
        ("tools.dump", "raftdb.storage.verify", True),
    ],
)
def test_the_rules_tell_right_from_wrong(module, imported, allowed):
    assert (objection(rule_of(module), Import(module, imported, 1)) is None) is allowed
