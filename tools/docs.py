"""Rewrites the generated parts of docs/ from the tables in the code: `make docs`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. tests/test_docs.py fails while a page
differs from what this program would write.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Final

from raftdb.config import ENVIRONMENT_PREFIX, SETTINGS, Config, Setting

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(\n<!-- end -->)", re.DOTALL)


def settings_table() -> str:
    """One row per setting of `raftdb serve`, in the order of the code."""
    defaults = {field.name: field.default for field in fields(Config)}
    rows = ["| flag | environment | default | meaning |", "|---|---|---|---|"]
    rows += [_settings_row(name, setting, defaults[name]) for name, setting in SETTINGS.items()]
    return "\n".join(rows)


def _settings_row(name: str, setting: Setting, default: object) -> str:
    flags = ", ".join(f"`{flag}`" for flag in setting.flags)
    if setting.metavar:
        flags += f" `{setting.metavar}`".replace("|", "\\|")
    text, _, told = setting.help.removesuffix("]").partition(" [default: ")
    if isinstance(default, bool):
        default = "" if setting.is_switch else ("no", "yes")[default]
    cells = (flags, f"`{ENVIRONMENT_PREFIX}{name.upper()}`", str(told or default), text.replace("|", "\\|"))
    return "| " + " | ".join(cell.replace("<", "&lt;") for cell in cells) + " |"


PARTS: Final[dict[str, Callable[[], str]]] = {"settings": settings_table}


def rendered(page: str) -> str:
    """The page with every generated part written anew. Raises KeyError for a part that nobody generates."""
    return _PART.sub(lambda match: match[1] + PARTS[match[2]]() + match[3], page)


def main() -> None:
    """Rewrites the pages in place."""
    for path in sorted(DOCS.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"rewrote {path.name}")


if __name__ == "__main__":
    main()
