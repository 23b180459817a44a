"""raftdb-dump: what is on disk, of a running node or of a dead one.

    raftdb-dump summary DIR              one page: identity, log, data, snapshots
    raftdb-dump log DIR [FIRST [LAST]]   entries; --key K is the history of one key
    raftdb-dump kv DIR                   keys; --key K decodes one whole
    raftdb-dump snapshot FILE            a snapshot's header and rows
    raftdb-dump verify DIR|FILE          every checksum, link and count

It reads and never writes: no lock is taken, no recovery is run, a node may work on the same files meanwhile. Nothing
that it meets on disk makes it fail other than with one line: exit code 0 sound, 5 damaged, 2 usage. With --json each
command prints JSON for programs, one object per line where there are many.

The commands are thin: reading is raftdb.storage and tools/reading.py, wording is raftdb.format, printing is
tools/output.py.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raftdb import __version__
from raftdb import format as text
from raftdb.errors import UsageError

from . import output, reading

#: The escapes in which keys are shown.
_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b'"': b'"', b"\\": b"\\"}
_ESCAPE = re.compile(rb'\\(x[0-9a-fA-F]{2}|[nrtab"\\])')
_NO_ESCAPE = re.compile(rb'(?<!\\)(?:\\\\)*\\(?!x[0-9a-fA-F]{2}|[nrtab"\\])')
DIRECTORY = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="JSON for programs instead of text.")
DATABASE = click.option("--db", type=click.IntRange(0, 15), help="Only this database.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="raftdb-dump %(version)s")
def cli() -> None:
    """Show what a raftdb node has on disk; read-only, also while the node runs.

    Exit code: 0 sound, 5 damaged, 2 usage.
    """


def main() -> None:
    """Entry point of the console script."""
    output.run("raftdb-dump", cli)


@cli.command()
@DIRECTORY
@JSON
def summary(directory: Path, as_json: bool) -> None:
    """One page about a data directory: identity, log, data, snapshots."""
    sections = reading.summary(directory)
    if as_json:
        output.print_json(sections)
    else:
        print_table(reading.summary_lines(sections))
    if reading.is_damaged(sections):
        output.fail("raftdb-dump", f"{directory}: damaged", output.EXIT_DAMAGED)


@cli.command()
@DIRECTORY
@click.argument("first", type=click.IntRange(1), required=False)
@click.argument("last", type=click.IntRange(1), required=False)
@click.option("--tail", type=click.IntRange(1), help="Only the last so many entries.")
@click.option("--term", type=click.IntRange(1), help="Only entries of this term.")
@click.option("--command", "name", metavar="NAME", help="Only commands of this name.")
@click.option("--key", metavar="KEY", help="The history of one key: what named it, and what emptied its database.")
@DATABASE
@click.option("--follow", is_flag=True, help="Go on with entries as they are written, until Ctrl-C.")
@JSON
def log(
    directory: Path,
    first: int | None,
    last: int | None,
    tail: int | None,
    term: int | None,
    name: str | None,
    key: str | None,
    db: int | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Log entries FIRST to LAST, by default all that are kept."""
    if tail and (first or last):
        raise UsageError("--tail and FIRST LAST say the same thing twice")
    if first and last and first > last:
        raise UsageError(f"FIRST {first} comes after LAST {last}")
    wanted = reading.Wanted(term, name.upper().encode() if name else None, argument_bytes(key), db)
    damaged = 0
    with contextlib.suppress(*([KeyboardInterrupt] if follow else [])):  # how following ends
        for row in reading.log_rows(directory, first, last, tail, wanted, follow):
            damaged += row.damage is not None
            if as_json:
                output.print_json(row.facts())
            else:
                click.echo(row.text())
    if damaged:
        output.fail("raftdb-dump", f"{damaged} damaged {'entry' if damaged == 1 else 'entries'}", output.EXIT_DAMAGED)


@cli.command()
@DIRECTORY
@DATABASE
@click.option("--match", "pattern", metavar="PATTERN", help="Only keys that match, as in SCAN: user:*")
@click.option("--type", "kind", type=click.Choice(reading.TYPE_NAMES), help="Only keys of this type.")
@click.option("--key", metavar="KEY", help="This key with everything in it.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many keys, or elements of --key.")
@JSON
def kv(
    directory: Path,
    db: int | None,
    pattern: str | None,
    kind: str | None,
    key: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Keys with type, size and expiry; dead ones that are not removed yet are marked."""
    if key is not None:
        rows = reading.key_rows(directory, db or 0, argument_bytes(key) or b"", limit)
    else:
        rows = reading.keyspace_rows(directory, db, os.fsencode(pattern) if pattern is not None else None, kind, limit)
    output.print_all(rows, as_json, reading.row_text)


@cli.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--rows", is_flag=True, help="The keys in it as well.")
@click.option("--limit", type=click.IntRange(1), help="Stop after so many rows.")
@JSON
def snapshot(file: Path, rows: bool, limit: int | None, as_json: bool) -> None:
    """A snapshot file: its header and, with --rows, what it holds."""
    header = reading.snapshot_header(file)
    if as_json:
        output.print_json(header)
    else:
        print_table(reading.summary_lines({"": header}))
    if rows:
        output.print_all(reading.snapshot_rows(file, limit), as_json, reading.row_text)


@cli.command()
@click.argument("path", metavar="DIR|FILE", type=click.Path(path_type=Path))
@JSON
def verify(path: Path, as_json: bool) -> None:
    """Check everything: checksums, chain, links and counts of log, data and snapshots."""
    damaged = 0
    for finding in reading.findings(path):
        damaged += not finding.note
        if as_json:
            output.print_json(finding)
        else:
            click.echo(finding.text())
    if damaged:
        output.fail("raftdb-dump", f"{path}: {damaged} finding{'' if damaged == 1 else 's'}", output.EXIT_DAMAGED)
    if not as_json:
        click.echo(f"{path}: sound")


def print_table(rows: Iterable[tuple[str, str, str]]) -> None:
    """Three columns, the last one as long as it is."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def argument_bytes(argument: str | None) -> bytes | None:
    r"""The bytes of a command line argument: as they were typed; `\xff`, `\n`, `\\` stand for what cannot be typed."""
    if argument is None:
        return None
    raw = os.fsencode(argument)
    if _NO_ESCAPE.search(raw):
        raise UsageError(f'{text.safe(argument)}: a backslash begins \\xHH, \\n, \\r, \\t, \\a, \\b, \\" or \\\\')
    return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1]) or bytes((int(found[1][1:], 16),)), raw)


if __name__ == "__main__":
    main()
