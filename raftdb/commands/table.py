"""The table of commands: everything that is known about a command, in one place, as data.

COMMAND, arity errors, ACL categories, the docs and the routing of a request (log, read, or answered on the spot) come
from here. There is no registry that modules fill when they are imported: each module of a type lists its commands in
`COMMANDS`, `builtin_table()` puts the lists together, and an embedding application passes its own:

    @command("CAS", Key(String), Bytes("expected"), Bytes("value"), flags=WRITE, summary="Compare and set")
    def cas(ctx, key, expected, value):
        if key.get() != expected:
            return 0
        key.set(value)
        return 1

    table = builtin_table().extended([cas])

A command that has the name of another is refused unless it says `replaces=True`.

Where a request goes:

    WRITE   into the log, executed by every replica when its entry is applied
    READ    executed on a view of the node that the client asked; also inside an entry (MULTI, scripts)
    LOCAL   answered by the node itself from its own state (`ctx.server`, `ctx.session`); never in an entry
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from ..errors import CommandError, UsageError
from .args import (
    Arg,
    Handler,
    NumKeys,
    Run,
    arity,
    compile_run,
    docs_of,
    key_positions,
    keys_of,
    printable,
    wrong_arity,
)

READ: Final = 1 << 0
WRITE: Final = 1 << 1
LOCAL: Final = 1 << 2
FAST: Final = 1 << 3  # constant or logarithmic time (Redis' flag; shows in COMMAND and @fast)
SLOW: Final = 1 << 4  # may be long whatever the head record says: always to a worker
ADMIN: Final = 1 << 5
NOSCRIPT: Final = 1 << 6
BLOCKING: Final = 1 << 7  # may park its client: a LOCAL one goes to a worker
MAY_SHRINK: Final = 1 << 8  # a write that is allowed on a full disk: it only frees
NOAUTH: Final = 1 << 9  # allowed before AUTH
NOMULTI: Final = 1 << 10  # refused inside MULTI
PUBSUB: Final = 1 << 11
LOADING: Final = 1 << 12  # answered also while the node loads or has no leader
DANGEROUS: Final = 1 << 13
TRANSACTION: Final = 1 << 14  # MULTI, EXEC, DISCARD, WATCH, UNWATCH: not queued inside MULTI
CONNECTION: Final = 1 << 15
IN_ENTRY: Final = 1 << 16  # a LOCAL command that also has a replicated meaning (TIME): travels in a transaction's entry
KEYSPACE: Final = 1 << 17

#: as COMMAND names them, in Redis' order
FLAG_NAMES: Final = (
    (WRITE, "write"),
    (READ, "readonly"),
    (ADMIN, "admin"),
    (PUBSUB, "pubsub"),
    (NOSCRIPT, "noscript"),
    (BLOCKING, "blocking"),
    (LOADING, "loading"),
    (LOADING, "stale"),
    (FAST, "fast"),
    (NOAUTH, "no_auth"),
    (NOMULTI, "no_multi"),
)
GROUP_CATEGORIES: Final = {
    "generic": "keyspace",
    "string": "string",
    "list": "list",
    "hash": "hash",
    "set": "set",
    "sorted-set": "sortedset",
    "connection": "connection",
    "transactions": "transaction",
    "scripting": "scripting",
    "pubsub": "pubsub",
}
#: every category that ACL CAT names, in its order
CATEGORIES: Final = tuple(
    word
    for line in (
        "keyspace read write set sortedset list hash string bitmap hyperloglog geo stream pubsub",
        "admin fast slow blocking dangerous connection transaction scripting",
    )
    for word in line.split(" ")
)

SizeOf = Callable[[Any, list[bytes]], int]
Many = Callable[[Any, list[list[bytes]]], list[Any]]


class Command:
    """One row. Immutable after construction; `run(ctx, argv)` parses the arguments and calls the handler."""

    __slots__ = (
        "args",
        "arity",
        "complexity",
        "first_key",
        "flags",
        "full_name",
        "group",
        "handler",
        "key_step",
        "last_key",
        "many",
        "name",
        "replaces",
        "run",
        "since",
        "size",
        "subcommands",
        "summary",
        "words_max",
        "words_min",
    )

    def __init__(
        self,
        name: str,
        args: tuple[Arg, ...],
        handler: Handler,
        *,
        flags: int,
        since: str = "1.0.0",
        group: str = "generic",
        summary: str = "",
        complexity: str = "",
        size: SizeOf | None = None,
        replaces: bool = False,
        words_max: int | None = None,
        many: Many | None = None,
    ) -> None:
        words = len(name.split())
        if not 1 <= words <= 2 or (name != name.upper()):
            raise UsageError(f"command name {name!r}: one or two words in upper case")
        self.name = name  # upper case, "CLIENT LIST" for a subcommand
        self.full_name = name.lower().replace(" ", "|")  # as errors and COMMAND name it
        self.flags = flags
        self.args = args
        self.handler = handler
        self.since = since
        self.group = group
        self.summary = summary
        self.complexity = complexity
        self.size = size  # (ctx, argv) -> records it will touch, from head records alone
        self.replaces = replaces
        self.many = (
            many  # (ctx, argvs of words_min words) -> replies: as run() of each, for what can neither fail nor read
        )
        self.subcommands: dict[bytes, Command] | None = None
        self.arity = arity(args, words)
        self.words_min = abs(self.arity)
        self.words_max = self.arity if self.arity > 0 else 1 << 30
        self.first_key, self.last_key, self.key_step = key_positions(args, words)
        run = compile_run(handler, args, words, self.full_name)
        self.run: Run = run if words_max is None else _limited(run, words_max, self.full_name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The handler itself, for tests and for handlers that build on another."""
        return self.handler(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Command {self.name}>"

    @property
    def words(self) -> int:
        return 2 if " " in self.name else 1

    @property
    def movable_keys(self) -> bool:
        return any(isinstance(arg, NumKeys) for arg in self.args)

    def keys(self, argv: Sequence[bytes]) -> list[bytes]:
        """The keys that this command line names, in order; none when it cannot be parsed so far."""
        try:
            return keys_of(self.args, self.words, list(argv))
        except (CommandError, IndexError):
            return []

    def check(self, argv: list[bytes]) -> CommandError | None:
        """The arity error of this command line, if it has one."""
        if self.words_min <= len(argv) <= self.words_max:
            return None
        return wrong_arity(self.full_name)

    def flag_names(self) -> list[str]:
        """Redis' names; a write that may grow the data is `denyoom`."""
        names = [name for flag, name in FLAG_NAMES if self.flags & flag]
        if self.flags & WRITE and not self.flags & MAY_SHRINK:
            names.insert(1, "denyoom")
        if self.movable_keys:
            names.append("movablekeys")
        return names

    def categories(self) -> list[str]:
        """ACL categories, in the order of CATEGORIES."""
        found = {
            "read": self.flags & READ,
            "write": self.flags & WRITE,
            "admin": self.flags & ADMIN,
            "fast": self.flags & FAST,
            "slow": not self.flags & FAST,
            "blocking": self.flags & BLOCKING,
            "dangerous": self.flags & (DANGEROUS | ADMIN),
            "connection": self.flags & CONNECTION,
            "keyspace": self.flags & KEYSPACE,
            GROUP_CATEGORIES.get(self.group, ""): True,
        }
        return [name for name in CATEGORIES if found.get(name)]

    def synopsis(self) -> str:
        return " ".join([self.name, *(arg.synopsis() for arg in self.args)])

    def docs(self) -> list[dict[str, Any]]:
        return docs_of(self.args)


def command(
    name: str,
    *args: Arg,
    flags: int,
    since: str = "1.0.0",
    group: str = "generic",
    summary: str = "",
    complexity: str = "",
    size: SizeOf | None = None,
    replaces: bool = False,
    words_max: int | None = None,
    many: Many | None = None,
) -> Callable[[Handler], Command]:
    """Declare a command: the decorated handler becomes a `Command`, to be passed to a table.

    The handler is called with the context and one value per declared argument. Its reply follows `raftdb.types`.
    It fails by raising CommandError; whatever it had changed is then rolled back. It must be a pure function of its
    arguments, the records, `ctx.now` and `ctx.random`.
    """

    def declare(handler: Handler) -> Command:
        return Command(
            name,
            args,
            handler,
            flags=flags,
            since=since,
            group=group,
            summary=summary or (handler.__doc__ or "").strip().partition("\n")[0],
            complexity=complexity,
            size=size,
            replaces=replaces,
            words_max=words_max,
            many=many,
        )

    return declare


def _limited(run: Run, words_max: int, name: str) -> Run:
    """Redis checks some upper limits only when the command runs, so that such a line can be queued in MULTI."""

    def limited(ctx: Any, argv: list[bytes]) -> Any:
        if len(argv) > words_max:
            raise wrong_arity(name)
        return run(ctx, argv)

    return limited


class Table:
    """Commands by name, in any case. A container (CLIENT, CONFIG, ...) holds its subcommands."""

    def __init__(self, commands: Iterable[Command] = ()) -> None:
        self._by_name: dict[bytes, Command] = {}
        for row in commands:
            self.add(row)

    def add(self, row: Command) -> None:
        """Add one command. Raises UsageError when the name is taken and the command does not say `replaces=True`."""
        first, _, second = row.name.partition(" ")
        if not second:
            self._claim(self._by_name, first, row)
            return
        container = self._by_name.get(first.encode())
        if container is None or container.subcommands is None:
            container = self._add_container(first, row, container)
        self._claim(container.subcommands or {}, second, row)

    def extended(self, commands: Iterable[Command]) -> Table:
        """A copy of this table with an application's commands added."""
        table = Table()
        for row in self:
            table._put(row.name, row if row.subcommands is None else _container(row, row.subcommands))
        for row in commands:
            table.add(row)
        return table

    def get(self, name: bytes) -> Command | None:
        """The command (or container) of this name."""
        return self._by_name.get(name) or self._by_name.get(name.upper())

    def find(self, argv: list[bytes]) -> Command:
        """The command that this command line calls, subcommand resolved and arity checked.

        Raises CommandError with Redis' texts: unknown command, unknown subcommand, wrong number of arguments.
        """
        row = self._by_name.get(argv[0]) or self._by_name.get(argv[0].upper())
        if row is None:
            raise unknown_command(argv)
        if row.subcommands is not None and len(argv) > 1:
            sub = row.subcommands.get(argv[1]) or row.subcommands.get(argv[1].upper())
            if sub is None:
                raise CommandError(f"ERR unknown subcommand '{printable(argv[1])}'. Try {row.name} HELP.")
            row = sub
        if row.words_min <= len(argv) <= row.words_max:
            return row
        raise wrong_arity(row.full_name)

    def check_arity(self, row: Command, argv: list[bytes]) -> CommandError | None:
        return row.check(argv)

    def __iter__(self) -> Iterator[Command]:
        """Every top-level command once, by name."""
        return iter(sorted({id(row): row for row in self._by_name.values()}.values(), key=lambda row: row.name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def every(self) -> Iterator[Command]:
        """Every command and subcommand, containers left out."""
        for row in self:
            if row.subcommands is None:
                yield row
            else:
                rows = {id(sub): sub for sub in row.subcommands.values()}
                yield from sorted(rows.values(), key=lambda sub: sub.name)

    def versions(self) -> dict[str, str]:
        """name -> declared version, for the handshake: a leader proposes only what every member's table has."""
        return {row.name: row.since for row in self.every() if not row.flags & LOCAL}

    def _claim(self, names: dict[bytes, Command], name: str, row: Command) -> None:
        taken = names.get(name.encode())
        if taken is not None and not row.replaces:
            raise UsageError(f"command {row.name} exists already; say replaces=True to replace it")
        names[name.encode()] = row
        names[name.lower().encode()] = row

    def _put(self, name: str, row: Command) -> None:
        self._by_name[name.encode()] = self._by_name[name.lower().encode()] = row

    def _add_container(self, name: str, of: Command, alone: Command | None) -> Command:
        """A container for `of`; `alone`: the command of that name, which then also runs without a subcommand."""
        bare = alone or Command(name, (), _no_handler, flags=of.flags & LOCAL, group=of.group, since=of.since)
        container = _container(bare, {})
        if alone is None:
            container.arity, container.words_min, container.words_max = -2, 2, 1 << 30
        self._put(name, container)
        return container


def _no_handler(*_args: Any) -> Any:
    raise CommandError("ERR this command needs a subcommand")


def _container(row: Command, subcommands: dict[bytes, Command]) -> Command:
    """A copy of `row` that holds subcommands of its own, HELP among them."""
    flags, group, since = row.flags, row.group, row.since
    copy = Command(row.name, row.args, row.handler, flags=flags, group=group, since=since, summary=row.summary)
    copy.arity, copy.words_min, copy.words_max = -1, row.words_min, row.words_max
    copy.subcommands = dict(subcommands)

    def show_help(_ctx: Any) -> list[str]:
        return _help_lines(copy)

    about = "Show helpful text about the different subcommands"
    help_row = Command(f"{row.name} HELP", (), show_help, flags=LOCAL | LOADING, group=group, summary=about)
    copy.subcommands[b"HELP"] = copy.subcommands[b"help"] = help_row
    return copy


def _help_lines(container: Command) -> list[str]:
    lines = [f"{container.name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"]
    rows = {id(row): row for row in (container.subcommands or {}).values()}
    for row in sorted(rows.values(), key=lambda row: row.name):
        lines += [row.synopsis().partition(" ")[2], f"    {row.summary}"]
    return lines


def unknown_command(argv: list[bytes]) -> CommandError:
    """Redis quotes the arguments until 128 bytes are reached."""
    quoted, length = [], 0
    for token in argv[1:]:
        if length >= 128:
            break
        piece = f"'{printable(token, 128 - length)}' "
        quoted.append(piece)
        length += len(piece)
    return CommandError(f"ERR unknown command '{printable(argv[0])}', with args beginning with: {''.join(quoted)}")


def builtin_table() -> Table:
    """All built-in commands."""
    from . import cluster, connection, hashes, keyspace, lists, server, strings, transactions, tree

    modules = (strings, keyspace, hashes, lists, transactions, connection, server, cluster, tree)
    return Table(row for module in modules for row in module.COMMANDS)
