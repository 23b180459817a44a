"""The documentation names what exists: flags, commands, make targets, files; and what it names exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from raftdb_tools import docs
from tests.sources import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def everything_written() -> str:
    return "\n".join(text(page) for page in PAGES)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and most renderers make of the headings."""
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in HEADING.findall(text(page))}


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", text(ROOT / "Makefile"), re.MULTILINE))


def commands(group: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """('raftdb serve', command), ... of a click program, the groups included."""
    yield path, group
    if isinstance(group, click.Group):
        for name, command in group.commands.items():
            if not command.hidden:
                yield from commands(command, f"{path} {name}")


def programs() -> list[tuple[str, click.Command]]:
    from raftdb.cli import cli
    from raftdb_tools.dump import cli as dump

    return [*commands(cli, "raftdb"), *commands(dump, "raftdb-dump")]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page):
    dead = []
    for target in LINK.findall(text(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_targets_that_are_named_exist(page):
    named = set(re.findall(r"`make ([a-z][a-z0-9-]*)", text(page))) | set(
        re.findall(r"^\$ make ([a-z][a-z0-9-]*)", text(page), re.MULTILINE)
    )
    assert named <= make_targets()


def test_the_two_commands_of_the_readme_come_first():
    shown = re.findall(r"^\$ (.*?)(?:\s+#.*)?$", text(ROOT / "README.md"), re.MULTILINE)
    assert shown[:2] == ["make serve", "make test"]


def test_every_command_is_described_and_documented():
    written = everything_written()
    missing = [path for path, command in programs() if not command.help or f"{path}" not in written]
    assert not missing, f"no help text, or in no page: {missing}"


def test_every_flag_has_help_and_is_documented():
    written = everything_written()
    missing = []
    for path, command in programs():
        for option in command.params:
            if not isinstance(option, click.Option):
                continue
            if not option.help or not any(f"`{flag}" in written for flag in option.opts):
                missing.append(f"{path} {option.opts[0]}")
    assert not missing, f"no help text, or in no page: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_generated_parts_are_fresh(page):
    assert docs.rendered(text(page)) == text(page), "run `make docs`"


def test_every_page_is_reachable():
    """A page that nobody links to is a page that nobody reads."""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in LINK.findall(text(page))
        if not re.match(r"[a-z]+:", target) and not target.startswith("#")
    }
    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= linked
