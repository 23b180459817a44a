"""The command line: `raftdb serve`, `status`, `check`, `recover`, `backup`, `restore`.

Exit codes: 0 done, 1 the node had to stop (storage error, bug), 2 usage (flags, files, ports, data directory),
3 cannot connect, 4 no leader, 5 something is damaged. Whatever goes wrong, the user reads one line; a traceback is for
the log, at level debug.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import logging.handlers
import os
import select
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from raftdb import __version__
from raftdb.config import SETTINGS, Config, Setting, load_config
from raftdb.errors import Bug, RaftdbError, UsageError

if TYPE_CHECKING:
    from raftdb.node.node import Node

EXIT_STOPPED: Final = 1
EXIT_USAGE: Final = 2
EXIT_UNREACHABLE: Final = 3
EXIT_NO_LEADER: Final = 4
EXIT_DAMAGED: Final = 5
LOG_FILE_BYTES: Final = 1024 * 1024
LOG_FILES: Final = 10

log = logging.getLogger("raftdb")


def main() -> None:
    """Entry point of the console script."""
    if not __debug__:
        _fail(
            "python -O and PYTHONOPTIMIZE switch off the assertions that protect the data: start without them",
            EXIT_USAGE,
        )
    try:
        sys.exit(cli(prog_name="raftdb", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(EXIT_USAGE)
    except click.UsageError as error:
        _fail(f"{error.format_message()} (see {error.ctx.command_path if error.ctx else 'raftdb'} --help)", EXIT_USAGE)
    except click.ClickException as error:
        _fail(error.format_message(), EXIT_USAGE)
    except click.Abort:
        sys.exit(130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"raftdb: {message}", file=sys.stderr)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="raftdb %(version)s")
def cli() -> None:
    """A replicated, durable key-value database that speaks the Redis protocol."""


def _option(name: str, setting: Setting) -> Any:
    if setting.is_switch:
        return click.option(*setting.flags, name, is_flag=True, default=None, help=setting.help)
    return click.option(*setting.flags, name, metavar=setting.metavar, default=None, help=setting.help)


def _settings(command: Any) -> Any:
    """Adds one option per setting, in the order of `Config`."""
    for name, setting in reversed(SETTINGS.items()):
        command = _option(name, setting)(command)
    return command


# --- serve ----------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("--config", "config_file", metavar="FILE", help="TOML file with settings, keyed by their long names.")
@_settings
def serve(config_file: str | None, **flags: Any) -> None:
    """Run a node in the foreground.

    Every option can also be set by an environment variable (--data-dir is RAFTDB_DATA_DIR) or in the file of --config;
    a flag wins over the environment, the environment over the file.
    """
    try:
        config = load_config(flags, os.environ, config_file)
        set_up_logging(config)
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    sys.exit(run(config))


def set_up_logging(config: Config) -> None:
    """Handlers and level of the `raftdb` loggers; the root logger is left alone. Raises UsageError."""
    level = {"warn": "WARNING", "fatal": "CRITICAL"}.get(config.log_level, config.log_level.upper())
    handler: logging.Handler
    if config.log_file:
        try:
            handler = logging.handlers.RotatingFileHandler(
                config.log_file, maxBytes=LOG_FILE_BYTES, backupCount=LOG_FILES, encoding="utf-8"
            )
        except OSError as error:
            raise UsageError(f"--log-file {config.log_file}: {error.strerror or error}") from None
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)


def run(config: Config) -> int:
    """Serves until a signal or an error ends it; the exit code."""
    from raftdb.node.node import Node  # late: `raftdb --help` and `status` need no LMDB

    stop = StopRequest()
    stop.catch(signal.SIGTERM, signal.SIGINT)
    sys.setswitchinterval(config.switch_interval_us / 1e6)
    node = Node(config)
    node.alone_in_process = True
    _tune_collector()
    try:
        node.start()
    except UsageError as error:
        print(f"raftdb: {error}", file=sys.stderr)
        return EXIT_USAGE
    except (RaftdbError, OSError, MemoryError) as error:
        return _stopped(error)
    except Exception as error:  # a bug; its traceback is for the log
        return _stopped(Bug(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__))
    return _serve_until(stop, node)


def _tune_collector() -> None:
    """A turn of the driver allocates tens of thousands of tuples and lists that reference counting frees by itself.

    With its defaults the cycle collector looked at them again and again, a tenth of the time of pipelined writes. What
    exists now stays for good; cycles are looked for all the same, less often.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


class StopRequest:
    """Set by whoever wants the end: the node itself, from its own thread, or a signal.

    No threading.Event: a handler runs in the main thread between any two instructions, those of Event.wait() and of
    Event.set() included, and would wait for ever for the lock that its own thread holds. And when two signals come at
    once the kernel hands one of them to another thread, which wakes nobody; the interpreter's wake-up descriptor does.
    """

    def __init__(self) -> None:
        self.asked = self.signalled = False
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def set(self) -> None:
        """Any thread, and signal handlers."""
        self.asked = True
        with contextlib.suppress(BlockingIOError):  # full: it is awake
            os.write(self._wake, b"\0")

    def catch(self, *signals: signal.Signals) -> None:
        """The first asks for a clean stop, the second ends the process at once (which loses nothing)."""
        for number in signals:
            signal.signal(number, self._caught)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)

    def wait(self) -> None:
        while not self.asked:
            select.select([self._woken], [], [])
            with contextlib.suppress(BlockingIOError):
                os.read(self._woken, 64)

    def _caught(self, number: int, _frame: FrameType | None) -> None:
        if self.signalled:
            os._exit(128 + number)
        self.signalled = True
        self.set()


def _serve_until(stop: StopRequest, node: Node) -> int:
    node.on_end(stop.set)
    print(node.greeting(), flush=True)
    stop.wait()
    node.stop()
    if node.failure is not None:
        return _stopped(node.failure)
    return 0


def _stopped(error: BaseException) -> int:
    log.debug("stopped", exc_info=error)
    reason = str(error) or type(error).__name__
    print(f"raftdb: stopped: {reason}", file=sys.stderr)
    return EXIT_USAGE if isinstance(error, UsageError) else EXIT_STOPPED


# --- status ---------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("-a", "--address", default="127.0.0.1:6379", show_default=True, metavar="HOST:PORT", help="Any node.")
@click.option("--password", envvar="RAFTDB_REQUIREPASS", default="", metavar="PASSWORD", help="What AUTH wants.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--watch", "watching", is_flag=True, help="Again and again, until Ctrl-C.")
@click.option(
    "--every", default=1.0, show_default=True, metavar="S", type=click.FloatRange(0.1, 3600), help="With --watch."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing: the exit code says whether there is a leader.")
def status(address: str, password: str, as_json: bool, watching: bool, every: float, quiet: bool) -> None:
    """Show a cluster, asked from any of its nodes: roles, indexes, lag, and how many failures it survives now.

    Exit codes: 0 there is a leader, 3 nobody answers at the address, 4 no leader.
    """
    from raftdb import status as cluster  # late, as rich is: they are not needed to serve

    try:
        if watching:
            cluster.watch(lambda: cluster.cluster_status(address, password), every)
        found = cluster.cluster_status(address, password)
    except KeyboardInterrupt:
        sys.exit(130)
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    except RaftdbError as error:
        _fail(str(error), EXIT_UNREACHABLE)
    if as_json:
        print(json.dumps(cluster.as_data(found), indent=2))
    elif not quiet:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 160).print(cluster.table(found))
    sys.exit(0 if found.leader_id else EXIT_NO_LEADER)


# --- check ----------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("-d", "--data-dir", required=True, metavar="DIR", help="Data directory of a node that is not running.")
@click.option(
    "--repair", is_flag=True, help="If its term or vote is damaged: a new incarnation, which voted for nobody."
)
@click.option(
    "--accept-loss", is_flag=True, help="Of a node that is alone: drop entries that are damaged and all later ones."
)
def check(data_dir: str, repair: bool, accept_loss: bool) -> None:
    """Look for damage in the data directory of a node that is stopped, and mend what does not mend itself.

    Without a flag nothing is changed. Exit codes: 0 nothing is damaged (or it was mended), 1 the disk failed, 2 usage:
    no data directory, in use, beyond repair, 5 something is damaged. For a node that runs: raftdb-dump verify DIR.
    """
    from raftdb.node import checking  # late: it needs LMDB

    path = Path(data_dir)
    try:
        if repair and accept_loss:
            raise UsageError("--repair or --accept-loss: one after the other")
        if repair:
            _tell_repair(checking.repair_directory(path), path)
        elif accept_loss:
            _tell_loss(checking.accept_loss(path))
        else:
            sys.exit(_tell_findings(checking.check_directory(path), path))
    except KeyboardInterrupt:
        sys.exit(130)
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    except (RaftdbError, OSError) as error:
        _fail(str(error), EXIT_STOPPED)


def _tell_findings(findings: list[Any], path: Path) -> int:
    for finding in findings:
        print(f"{finding.place}: {finding.what}")
    wrong = [finding for finding in findings if not finding.note]
    if not wrong:
        print(f"{path}: nothing is damaged")
        return 0
    places = {finding.place.split(" ")[0] for finding in wrong}
    if any(place.startswith(("log/meta", "identity")) for place in places):
        print(f"the node cannot be started like this: raftdb check -d {path} --repair")
    else:
        print("start the node: it rebuilds its data, and asks the other members for what is damaged in its log")
    return EXIT_DAMAGED


def _tell_repair(done: Any, path: Path) -> None:
    if not done.replaced:
        print(f"{path}: term, vote and counters are whole: nothing was changed")
        return
    for text in done.replaced:
        print(f"replaced: {text}")
    if done.alone:
        print(f"node {done.node_id} has a new incarnation and is its own cluster, as before: start it")
    else:
        print(
            f"node {done.node_id} has a new incarnation: start it with -o, and the cluster takes it in again, with the "
            "log that it has"
        )


def _tell_loss(lost: Any) -> None:
    if lost.last < lost.former_last:
        print(f"dropped log entries {lost.last + 1} to {lost.former_last}")
    if lost.emptied:
        print("the data begins anew with the first entry of the log: what only a lost snapshot held is gone")
    if lost.last == lost.former_last and not lost.emptied:
        print("nothing had to be dropped")


# --- recover --------------------------------------------------------------------------------------------------------


@cli.command()
@click.option("-d", "--data-dir", required=True, metavar="DIR", help="Data directory of the survivor (not running).")
@click.option("--force-members", is_flag=True, help="Say that it is meant: this node alone becomes the cluster.")
def recover(data_dir: str, force_members: bool) -> None:
    """Go on with one node when the majority of its cluster is gone for good.

    The node becomes a new cluster of one with the data that it has. What the others had acknowledged and this node had
    not received is lost. The former members must not come back with their data: empty their directories and let them
    join (-e). Choose the survivor with the highest last term, then the highest last index (raftdb-dump summary DIR).
    """
    from raftdb.node.recovering import recover as make_sole

    if not force_members:
        _fail(
            "recover may lose writes that only the lost members had: if a majority can still be started, start it "
            "instead; if not, say --force-members",
            EXIT_USAGE,
        )
    try:
        found = make_sole(Path(data_dir))
    except UsageError as error:
        _fail(str(error), EXIT_USAGE)
    except (RaftdbError, OSError) as error:
        _fail(str(error), EXIT_STOPPED)
    others = ", ".join(node for node in found.former_members if node != found.identity.node_id) or "none"
    print(f"node {found.identity.node_id} is a cluster of one now: {found.identity.cluster_id}")
    print(f"log: last entry {found.last_index} of term {found.last_term}; former other members: {others}")
    print(
        "WARNING: this may lose what the others had acknowledged beyond that. Start this node without -e; empty the "
        "directories of the others before they join it with -e."
    )


# --- backup and restore -----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-a", "--address", default="127.0.0.1:6379", show_default=True, metavar="HOST:PORT", help="Any node.")
@click.option("--password", envvar="RAFTDB_REQUIREPASS", default="", metavar="PASSWORD", help="What AUTH wants.")
@click.option(
    "--codec", type=click.Choice(["msgpack", "pickle"]), default="msgpack", show_default=True, help="Of the file."
)
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@click.option("--stale", is_flag=True, help="What this node has, also without a leader; it may lag.")
def backup(file: Path, address: str, password: str, codec: str, force: bool, stale: bool) -> None:
    """Write the data of a running cluster into FILE, asked from any of its nodes.

    The file holds everything that was acknowledged before. It is checked on arrival, and stands under its name only
    when it is whole and durable. Exit codes: 0 done, 1 the node or the disk failed, 2 usage, 3 nobody answers.
    """
    from raftdb import backup as backups  # late: it needs LMDB

    try:
        with backups.shown() as progress:
            found = backups.backup(
                address, file, password=password, codec=codec, force=force, stale=stale, progress=progress
            )
    except KeyboardInterrupt:
        sys.exit(130)
    except backups.Lost as error:
        _fail(str(error), EXIT_UNREACHABLE)
    except (RaftdbError, OSError) as error:
        _fail(str(error), EXIT_USAGE if isinstance(error, UsageError) else EXIT_STOPPED)
    print(f"{file}: entry {found.index} of term {found.term}, {found.size_bytes} bytes, digest {found.digest.hex()}")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-d", "--data-dir", required=True, type=click.Path(path_type=Path), metavar="DIR", help="To be made.")
@click.option("-i", "--node-id", default="", metavar="ID", help="Of the new node; default: its address.")
@click.option(
    "-a", "--address", default="127.0.0.1:6379", show_default=True, metavar="HOST:PORT", help="Of the new node."
)
def restore(file: Path, data_dir: Path, node_id: str, address: str) -> None:
    """Make the data directory of a new cluster of one out of FILE, without starting it.

    FILE is a backup, a snapshot, or a checkpoint of pyraft. Start the node with the same -d, -i and -a; others join it
    with -e. Exit codes: 0 done, 1 the disk failed, 2 usage: the directory is not empty, the file is damaged.
    """
    from raftdb import backup as backups

    try:
        set_up_logging(Config(log_level="warning"))
        with backups.shown() as progress:
            made = backups.restore(file, data_dir, node_id=node_id, address=address, progress=progress)
    except KeyboardInterrupt:
        sys.exit(130)
    except (RaftdbError, OSError) as error:
        _fail(str(error), EXIT_USAGE if isinstance(error, UsageError) else EXIT_STOPPED)
    print(f"{data_dir}: node {made.node_id} of the new cluster {made.cluster_id}")
    print(f"start it with: raftdb serve -d {data_dir} -i {made.node_id} -a {address}")
