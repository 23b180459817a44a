"""pyraft's door: `from raftdb import raft` instead of `from pyraft import raft`, and the program goes on as it was.

What stands behind the names is raftdb: the log is durable, reads are linearizable, members prove who they are. What an
application of pyraft must know is little:

- **Handlers.** `node.worker.handler[name] = [func, flags, least, most]` before `start()`. `func(node, words)` is called
  with the command's words as text. With `e` in the flags the command goes through the log and `func` runs on *every*
  replica, so it must be a function of its words and of `node.data` alone: for the time it asks `node.now` (seconds, the
  same on every replica), never `time.time()`; for chance `node.random`, never the `random` module. Without `e` it runs
  once, on a worker thread of the node that was asked, and cannot change anything. A handler may replace a built-in.
- **Data.** `node.data` is a mapping over database 0 (in a handler: over the one that the client has selected): text,
  lists of text, dicts of text. Inside an `e` handler it is the entry's own transaction: what was taken out and changed
  in place (`node.data["l"].append("x")`) is written back when the handler returns, and an exception undoes everything.
  Other threads read; each page of an iteration is a read of its own, so a long loop holds nothing up. To change
  something from a thread, `node.request("set", key, value)`; what is read afterwards has it.
- **Requests of handlers.** Any handler may ask for reads (`node.request("lrange", key, 0, -1)`); they see what it has
  written. A handler without `e` may ask for writes too.
- **Callbacks** (`on_start`, `on_leader`, `on_follower`, `on_candidate`, `on_shutdown`; rows of the same table, or
  methods of a subclass) are called in order by a thread of their own, after `node.state` has changed. They may raise,
  hang or call back into the node.

Not taken over: listeners of other protocols (`regist_worker`), and a single node that forgets its data at restart.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import queue
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final, NoReturn

import hiredis

from raftdb import clock
from raftdb.cli import set_up_logging
from raftdb.commands.args import Bytes, Many
from raftdb.commands.context import Context
from raftdb.commands.table import READ, SLOW, TRANSACTION, WRITE, Command, builtin_table
from raftdb.config import Config, own_host, split_address
from raftdb.errors import CommandError, RaftdbError, UsageError
from raftdb.node.node import Node
from raftdb.types import NULL_ARRAY, OK, Encoded, Pairs, ReplySet, Role, Verbatim

#: Entries since the last checkpoint that call for the next one; read at start().
CONF_LOG_MAX = 100_000
#: Kept for programs that set it: the log is one LMDB environment, not a row of files.
CONF_LOG_FILE_MAX = 10_000
#: Seconds; the least election time-out is three quarters of it. Read at start().
CONF_VOTING_TIME = 1.0
#: Kept for programs that set it; the election time-out follows CONF_VOTING_TIME.
CONF_PING_TIMEOUT = 5

REQUESTS_WAITING_MAX: Final = 4_096  # of request_async
REQUEST_THREADS: Final = 4
PAGE_KEYS: Final = 500
JOIN_POLL_S: Final = 0.2  # how soon a signal is seen
EVENTS: Final = ("on_start", "on_shutdown", "on_leader", "on_follower", "on_candidate")
_LOG_LEVELS: Final = ("debug", "info", "warning", "error", "fatal")
_BUILTIN: Final = builtin_table()  # what handlers and `data` build on, whatever the application replaces
_STATES: Final = {Role.LEADER: "l", Role.FOLLOWER: "f", Role.LEARNER: "f", Role.CANDIDATE: "c"}


class RaftException(Exception):
    """Raised by a handler: the text is the error reply, and nothing was changed."""


ERROR_CAST = RaftException("number format error")
ERROR_APPEND_ENTRY = RaftException("append entry failed")
ERROR_TYPE = RaftException("invalid data type")
ERROR_NOT_EXISTS = RaftException("not exists")
ERROR_INVALID_PARAM = RaftException("invalid parameter")


def text_of(data: bytes) -> str:
    """Bytes as text, both ways without loss (what is not UTF-8 becomes lone surrogates)."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogateescape")


# --- replies ----------------------------------------------------------------------------------------------------------


def to_reply(value: Any) -> Any:
    """What a handler returned, as a reply: True is +OK, False 0, text and numbers with a fraction are bulk strings.

    (pyraft sent short text as a simple string, which a CR LF in it could break out of.)
    """
    if value is True:
        return "OK"
    if value is False:
        return 0
    if value is None or isinstance(value, int | bytes | Encoded):
        return value
    if isinstance(value, BaseException):
        raise _command_error(value)
    if isinstance(value, dict):
        return _dict_reply(value)
    if isinstance(value, list | tuple):
        return [to_reply(item) for item in value]
    return bytes_of(value)


def _dict_reply(value: dict[Any, Any]) -> Any:
    """pyraft's control words: `bypass` is one encoded reply; behind `quit` and `quit_after_send` the client is left."""
    if "bypass" in value:
        return Encoded(_checked(bytes_of(value["bypass"])))
    if "quit" in value:
        return OK
    if "quit_after_send" in value:
        return to_reply(value["quit_after_send"])
    return [to_reply(item) for pair in value.items() for item in pair]


def _checked(data: bytes) -> bytes:
    """Exactly one reply of the protocol: anything else would be taken for the answers of other commands."""
    reader = hiredis.Reader()
    with contextlib.suppress(hiredis.HiredisError):
        reader.feed(data)
        if (reader.gets() is not False or data[:1] == b"#") and not reader.has_data():
            return data
    raise CommandError("ERR what the handler passed by is not one reply of the protocol")


def _ends_connection(value: Any) -> bool:
    return isinstance(value, dict) and ("quit" in value or "quit_after_send" in value) and "bypass" not in value


def _command_error(error: BaseException) -> CommandError:
    text = str(error) or type(error).__name__
    has_code = re.match(r"[A-Z][A-Z0-9]+ ", text)
    return CommandError(text if has_code else f"ERR {text}")


def from_reply(reply: Any) -> Any:
    """A reply as pyraft's request() gives it: text, numbers, lists; +OK is True."""
    if isinstance(reply, bytes):
        return text_of(reply)
    if isinstance(reply, Encoded):
        return True if reply.data == b"+OK\r\n" else text_of(reply.data[1:].strip())
    if reply is NULL_ARRAY:
        return None
    if isinstance(reply, Verbatim):
        return reply.text
    if isinstance(reply, CommandError):
        return RaftException(str(reply))
    if isinstance(reply, dict):
        return [from_reply(item) for pair in reply.items() for item in pair]
    if isinstance(reply, Pairs):
        return [from_reply(item) for pair in reply for item in pair]
    if isinstance(reply, ReplySet | list | tuple):
        return [from_reply(item) for item in reply]
    return True if reply == "OK" else reply


class Future:
    """The answer of request_async(), which comes later; None is an answer like any other."""

    def __init__(self, cmd: Any = None, worker_offset: int = 0) -> None:
        self.cmd = cmd
        self.worker_offset = worker_offset
        self.value: Any = None
        self._set = threading.Event()

    def set(self, value: Any) -> None:
        self.value = value
        self._set.set()

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the answer. Raises RaftException after `timeout` seconds: the command may still be executed."""
        if not self._set.wait(timeout):
            raise RaftException("UNCERTAIN no answer within the time-out; the command may still be executed")
        return self.value


# --- the handler table ------------------------------------------------------------------------------------------------


class Handlers(dict[str, Any]):
    """name -> [func, flags, least, most], or a bare callback under the name of an event. Names are of any case."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def __setitem__(self, name: str, row: Any) -> None:
        if self.closed and name.lower() not in EVENTS:
            raise RaftException(f"{name}: register commands before start(), so that every replica knows them")
        if name.lower() in EVENTS:
            if not callable(row) and not (isinstance(row, list | tuple) and row and callable(row[0])):
                raise RaftException(f"{name}: expected a function")
        else:
            check_row(name, row)
        super().__setitem__(name.lower(), row)

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


def check_row(name: str, row: Any) -> None:
    """Raises RaftException for a row that could not work."""
    if not isinstance(row, list | tuple) or len(row) != 4 or not callable(row[0]) or not isinstance(row[1], str):
        raise RaftException(f"{name}: expected [function, flags, least, most]")
    least, most = row[2], row[3]
    if not isinstance(least, int) or not isinstance(most, int) or least < 0 or (most > 0 and most < least):
        raise RaftException(f"{name}: {least!r} to {most!r} parameters cannot be (0 or -1 as most: any number)")
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,64}", name):
        raise RaftException(f"{name!r}: a command name is one word")


class RaftWorker:
    """Holds the handler table: `node.worker.handler`."""

    def __init__(self, addr: str = "") -> None:
        self.addr = addr
        self.worker_offset = 0
        self.handler = Handlers()

    def init_node(self, node: RaftNode) -> None:
        """pyraft's hook: called once by the node that takes this worker."""

    def get_handler(self, name: str) -> Any:
        return self.handler.get(name)


def _commands(node: RaftNode) -> Iterator[Command]:
    """The rows of the handler table as commands like any other."""
    for name, row in node.worker.handler.items():
        if name in EVENTS:
            continue
        func, flags, least, most = row
        replicated = "e" in flags
        yield Command(
            name.upper(),
            (Many(Bytes("word"), least=0),),
            _adapter(node, func, replicated, name, least, most),
            flags=WRITE if replicated else READ | SLOW,
            group="application",
            summary=(func.__doc__ or "a command of the application").strip().partition("\n")[0],
            replaces=True,
        )


def _adapter(
    node: RaftNode, func: Callable[..., Any], replicated: bool, name: str, least: int, most: int
) -> Callable[..., Any]:
    def run(ctx: Context, words: list[bytes]) -> Any:
        given = len(words)
        if given < least or (most > 0 and given > most):
            raise CommandError(f"ERR wrong number of arguments for '{name}' command")
        line = [name, *(text_of(word) for word in words)]
        with node.data.inside(ctx, replicated):
            try:
                value = func(node, line)
                reply = to_reply(value)
                if replicated:
                    node.data.write_back()
            except RaftException as error:
                raise _command_error(error) from None
        if not replicated and _ends_connection(value):
            ctx.closing = True
            return reply if "quit_after_send" in value else Encoded(b"")
        return reply

    return run


# --- data -------------------------------------------------------------------------------------------------------------


class _Scope:
    """What a handler that is running sees."""

    __slots__ = ("ctx", "has_written", "originals", "taken", "writes")

    def __init__(self, ctx: Context, writes: bool) -> None:
        self.ctx = ctx
        self.writes = writes
        self.has_written = False  # a handler that only reads has asked for a write: what it saw so far is too old
        self.taken: dict[str, Any] = {}  # collections that were handed out
        self.originals: dict[str, Any] = {}  # as they were then


class Data(MutableMapping[str, Any]):
    """Database 0 as a mapping of text to text, list of text, or dict of text. Any thread may read it."""

    def __init__(self, node: RaftNode) -> None:
        self._node = node
        self._here = threading.local()

    # --- where we are

    @contextlib.contextmanager
    def inside(self, ctx: Context, writes: bool) -> Iterator[None]:
        """The running thread is in a handler whose records are `ctx`'s."""
        before = getattr(self._here, "scope", None)
        self._here.scope = _Scope(ctx, writes)
        try:
            yield
        finally:
            self._here.scope = before

    @property
    def scope(self) -> _Scope | None:
        return getattr(self._here, "scope", None)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Context]:
        scope = self.scope
        if scope is not None and not scope.has_written:
            yield scope.ctx
            return
        node = self._node.node
        node.settle()
        assert node.machine.kv is not None
        with node.machine.kv.view() as view:
            yield node.machine.context(view, scope.ctx.db if scope is not None else 0, breathe=clock.Breather())

    def _writing(self, what: str) -> _Scope:
        scope = self.scope
        if scope is None or not scope.writes:
            raise RaftException(
                f"{what}: data is changed by commands with the flag 'e', or by node.request('set', key, value)"
            )
        return scope

    def read(self, row: Command, argv: list[bytes]) -> Any:
        """The reply of a READ command: of what the running handler sees, in other threads of what is applied."""
        scope = self.scope
        if scope is not None and scope.writes:
            self.write_back()
        with self._reading() as ctx:
            return row.run(ctx, argv)

    def _run(self, ctx: Context, *words: str | bytes) -> Any:
        argv = [bytes_of(word) for word in words]
        return self._node.builtin(argv[0]).run(ctx, argv)

    # --- the mapping

    def __getitem__(self, key: str) -> Any:
        scope = self.scope
        if scope is not None and key in scope.taken:
            return scope.taken[key]
        with self._reading() as ctx:
            value = self._value(ctx, bytes_of(key))
        if value is None:
            raise KeyError(key)
        if scope is not None and scope.writes and not isinstance(value, str):
            scope.taken[key] = value
            scope.originals[key] = value.copy()
        return value

    def _value(self, ctx: Context, name: bytes) -> Any:
        kind = from_reply(self._run(ctx, "TYPE", name))
        if kind == "string":
            return text_of(self._run(ctx, "GET", name))
        if kind == "list":
            return [text_of(item) for item in self._run(ctx, "LRANGE", name, "0", "-1")]
        if kind == "hash":
            return {text_of(field): text_of(value) for field, value in self._run(ctx, "HGETALL", name).items()}
        return None

    def __contains__(self, key: object) -> bool:
        scope = self.scope
        if scope is not None and key in scope.taken:
            return True
        with self._reading() as ctx:
            return bool(self._run(ctx, "EXISTS", bytes_of(key)))

    def __setitem__(self, key: str, value: Any) -> None:
        scope = self._writing(f"data[{key!r}] = ...")
        _check_value(key, value)
        scope.taken.pop(key, None)
        if isinstance(value, tuple):
            value = list(value)
        if isinstance(value, list | dict):
            scope.taken[key] = value
            scope.originals[key] = None
        else:
            self._run(scope.ctx, "SET", key, value, "KEEPTTL")

    def __delitem__(self, key: str) -> None:
        scope = self._writing(f"del data[{key!r}]")
        was_new = scope.taken.pop(key, None) is not None and scope.originals.get(key) is None
        if not self._run(scope.ctx, "DEL", key) and not was_new:
            raise KeyError(key)

    def __len__(self) -> int:
        self._write_back_here()
        with self._reading() as ctx:
            return int(self._run(ctx, "DBSIZE"))

    def __iter__(self) -> Iterator[str]:
        """The keys, a page at a time; between two pages the store goes on."""
        self._write_back_here()
        cursor = b"0"
        while True:
            with self._reading() as ctx:
                cursor, names = self._run(ctx, "SCAN", cursor, "COUNT", str(PAGE_KEYS))
                page = [text_of(name) for name in names]
            yield from page
            if bytes_of(cursor) == b"0":
                return

    def items(self) -> Any:
        """(key, value) pairs; a key that goes while they are read is left out."""
        return self._items()

    def _items(self) -> Iterator[tuple[str, Any]]:
        for key in self:
            with contextlib.suppress(KeyError):
                yield key, self[key]

    def values(self) -> Any:
        return (value for _, value in self._items())

    def __repr__(self) -> str:
        return f"<data of node {self._node.nid}: {len(self)} keys>"

    # --- what was changed in place

    def _write_back_here(self) -> None:
        scope = self.scope
        if scope is not None and scope.writes:
            self.write_back()

    def write_back(self) -> None:
        """Put collections that the handler changed into the transaction. Empty ones do not exist."""
        scope = self.scope
        assert scope is not None
        for key, value in scope.taken.items():
            if value == scope.originals[key]:
                continue
            _check_value(key, value)
            scope.originals[key] = value.copy()
            expiry = self._run(scope.ctx, "PEXPIRETIME", key)
            self._run(scope.ctx, "DEL", key)
            if isinstance(value, list) and value:
                self._run(scope.ctx, "RPUSH", key, *value)
            elif value:
                self._run(scope.ctx, "HSET", key, *(item for pair in value.items() for item in pair))
            if value and isinstance(expiry, int) and expiry > 0:
                self._run(scope.ctx, "PEXPIREAT", key, str(expiry))


def _check_value(key: str, value: Any) -> None:
    """Raises RaftException for what has no form in the store."""
    if isinstance(value, dict):
        parts: Any = [*value.keys(), *value.values()]
    else:
        parts = value if isinstance(value, list | tuple) else (value,)
    for part in parts:
        if not isinstance(part, str | bytes | int | float):
            raise RaftException(f"data[{key!r}]: a {type(part).__name__} has no form in the store there")


class Ttl(MutableMapping[str, float]):
    """key -> when it falls due, in seconds of Unix time. Changes as `data` does."""

    def __init__(self, data: Data) -> None:
        self._data = data

    def __getitem__(self, key: str) -> float:
        with self._data._reading() as ctx:
            expiry = self._data._run(ctx, "PEXPIRETIME", key)
        if expiry < 0:
            raise KeyError(key)
        return float(expiry) / 1000

    def __setitem__(self, key: str, when_s: float) -> None:
        scope = self._data._writing(f"ttl[{key!r}] = ...")
        self._data._run(scope.ctx, "PEXPIREAT", key, str(math.ceil(when_s * 1000)))

    def __delitem__(self, key: str) -> None:
        scope = self._data._writing(f"del ttl[{key!r}]")
        if not self._data._run(scope.ctx, "PERSIST", key):
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._data if key in self)

    def __contains__(self, key: object) -> bool:
        with self._data._reading() as ctx:
            return bool(self._data._run(ctx, "PEXPIRETIME", bytes_of(key)) >= 0)

    def __len__(self) -> int:
        return sum(1 for _ in self)


# --- the node ---------------------------------------------------------------------------------------------------------


class Peer:
    """Another member, as this node knows it."""

    def __init__(self, nid: str, addr: str, state: str, term: int, index: int) -> None:
        self.nid = nid
        self.addr = addr
        self.state = state
        self.term = term
        self.index = index
        self.ip, self.port = split_address(addr)

    def __repr__(self) -> str:
        return f"<peer {self.nid}/{self.addr} ({self.state})>"


def _peer(row: Mapping[str, Any], term: int) -> Peer:
    """`index` is what the leader knows to be durable there; elsewhere it is not known, and 0."""
    state = {"leader": "l", "follower": "f", "learner": "f"}.get(row["state"], "c")
    return Peer(str(row["id"]), str(row["addr"]), state, term, row["match"] or 0)


class _Requests(queue.Queue[Future]):
    """What waits for its turn; the first that comes starts the threads that execute them."""

    def __init__(self, start: Callable[[], None]) -> None:
        super().__init__(REQUESTS_WAITING_MAX)
        self._start = start

    def put(self, item: Future, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._start()


class RaftNode:
    """A member of a cluster, with pyraft's methods and attributes; may be subclassed.

    `ensemble` maps node ids to addresses; ids that begin with `__TEMP_` stand for "whoever is there". `config` gives
    settings that have no pyraft name (a data directory, say); the three arguments win over it.
    """

    def __init__(
        self,
        nid: str,
        addr: str,
        ensemble: dict[str, str] | None = None,
        peer: bool = False,
        worker: RaftWorker | None = None,
        overwrite_peer: bool = False,
        config: dict[str, Any] | None = None,
    ) -> None:
        if peer:
            raise RaftException("peer=True was for pyraft's own use: see get_peers()")
        self.nid = str(nid)
        self.addr = addr
        self.ip, self.port = split_address(addr)
        self.ensemble = dict(ensemble or {})
        self.overwrite_peer = overwrite_peer
        self.logger = logging.getLogger("raftdb")
        self.shutdown_flag = False
        self.data = Data(self)
        self.ttl = Ttl(self.data)
        self.data_lock = threading.RLock()  # for applications that take it; the store needs none
        self.worker = worker or RaftWorker(addr)
        self.worker.init_node(self)
        self.q_entry: queue.Queue[Future] = _Requests(self._start_senders)
        self._settings = dict(config or {})
        self._load = ""
        self._node: Node | None = None
        self._senders: list[threading.Thread] = []
        self._senders_lock = threading.Lock()

    # --- life

    def start(self) -> None:
        """Start serving. Raises UsageError for a mistake that the caller can mend, StorageError for the disk's."""
        self.shutdown_flag = False
        self._senders = []
        self.worker.handler.closed = True
        node = self._node = Node(self._config(), commands=list(_commands(self)))
        for name in EVENTS:
            node.subscribe(name, self._caller(name))
        node.start()

    def _caller(self, name: str) -> Callable[[Any], None]:
        def call(_: Any) -> None:
            getattr(self, name)()

        return call

    def _config(self) -> Config:
        settings: dict[str, Any] = {
            "snapshot_entries": CONF_LOG_MAX,
            "election_ms": max(350, int(750 * CONF_VOTING_TIME)),
            **self._settings,
            "address": self.addr,
            "node_id": self.nid,
            "overwrite": self.overwrite_peer,
            "ensemble": ",".join(
                addr if pid.startswith("__TEMP_") else f"{pid}/{addr}"
                for pid, addr in self.ensemble.items()
                if pid != self.nid and addr != self.addr
            ),
        }
        if self._load:
            settings["load"] = self._load
        return Config(**settings)

    def shutdown(self) -> None:
        """Hand leadership over, finish what is under way, sync and stop. Not from a replicated handler."""
        self._not_in_entry("shutdown")
        self.shutdown_flag = True
        for _ in self._senders:
            with contextlib.suppress(queue.Full):
                self.q_entry.put_nowait(Future())
        if self._node is not None:
            self._node.stop()

    def join(self) -> None:
        """Wait until the node ends. Ctrl-C ends it cleanly; so does SIGTERM, unless the program handles it itself."""
        asked: list[int] = []  # no Event: whoever sets one in a signal handler may wait for its own thread
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
        try:
            while not asked and not self.node.join(JOIN_POLL_S):
                pass
        except KeyboardInterrupt:
            pass
        self.shutdown()
        if self.node.failure is not None:
            raise RaftException(f"the node had to stop: {self.node.failure}")

    @property
    def node(self) -> Node:
        """The raftdb node behind this one. Raises RaftException before start()."""
        if self._node is None:
            raise RaftException("the node has not been started")
        return self._node

    def load(self, filename: str) -> bool:
        """Start from this checkpoint (before start()); False when there is no such file. See `raftdb serve -l`."""
        if self._node is not None:
            raise RaftException("load() comes before start()")
        if not Path(filename).is_file():
            self.log_error(f"cannot load {filename}: no such file")
            return False
        self._load = filename
        return True

    # --- what the node knows

    @property
    def state(self) -> str:
        """'l' leader, 'f' follower (or learner), 'c' candidate, or no leader has been known since the start."""
        if self._node is None:
            return "c"
        state = _STATES[self._node.role]
        return "c" if state == "f" and not self._node.met_leader else state

    @property
    def term(self) -> int:
        return self._node.term if self._node is not None else 0

    @property
    def index(self) -> int:
        """Index of the last applied entry."""
        return self._node.driver.applied if self._node is not None else 0

    last_applied = index

    @property
    def commit_index(self) -> int:
        return self._node.driver.commit if self._node is not None else 0

    @property
    def last_checkpoint(self) -> int:
        """Index of the last durable checkpoint."""
        meta = self._node.data.log.snapshot if self._node is not None else None
        return meta.index if meta is not None else 0

    @property
    def log(self) -> Any:
        """The replicated log (first, last, entries(low, high, bytes_max))."""
        return self.node.data.log

    @property
    def now(self) -> float:
        """Replicated time, seconds of Unix time: inside a handler the same on every replica. Use it for time.time()."""
        scope = self.data.scope
        if scope is not None:
            return scope.ctx.now / 1000
        with self.data._reading() as ctx:
            return ctx.now / 1000

    @property
    def random(self) -> Any:
        """Replicated chance inside a handler: below(n), bytes(n), sample(n, k)."""
        scope = self.data.scope
        if scope is None:
            raise RaftException("node.random is for handlers; elsewhere use the random module")
        return scope.ctx.random

    @property
    def peers(self) -> dict[str, Peer]:
        return self.get_peers()

    def get_peers(self) -> dict[str, Peer]:
        """The other members by id (a copy)."""
        if self._node is None:
            return {}
        return {str(row["id"]): _peer(row, self.term) for row in self._node.member_rows() if row["id"] != self.nid}

    def get_pending_time(self) -> float | None:
        """Leader: seconds since the least recently heard member was heard. None elsewhere: it is not known there."""
        self._not_in_entry("get_pending_time")
        if self.state != "l":
            return None
        node = self.node
        peers = node.in_driver(node.core.status).peers
        return max((peer.silent_ticks for peer in peers), default=0) * node.config.tick_ms / 1000

    def get_snapshot(self) -> str:
        """Everything as text, for a person to read (GETDUMP). Raises RaftException when it is too much for that."""
        return str(self._raising("getdump"))

    # --- requests

    def propose(self, cmd: Any, worker_offset: int = 0, async_run: bool = False) -> Any:
        """Execute a command as a client would, on any node; its reply. Raises RaftException."""
        if worker_offset:
            raise RaftException("raftdb listens for one protocol: worker_offset must be 0")
        if async_run:
            return self.request_async(*cmd)
        return self._raising(*cmd)

    def _raising(self, *cmd: Any) -> Any:
        try:
            return from_reply(self._execute([bytes_of(word) for word in cmd]))
        except CommandError as error:
            raise RaftException(str(error)) from None

    def _execute(self, argv: list[bytes]) -> Any:
        """In a handler reads run at once, on what it sees: another worker for them might never come free."""
        scope = self.data.scope
        if scope is None:
            return self.node.execute(*argv)
        row = self.node.table.find(argv)
        if row.flags & READ and not row.flags & TRANSACTION:
            return self.data.read(row, argv)
        self._not_in_entry(text_of(argv[0]))
        scope.has_written = True
        return self.node.execute(*argv)

    def request(self, *cmd: Any) -> Any:
        """As propose(), but an error comes back as a value (a RaftException)."""
        try:
            return self._raising(*cmd)
        except RaftException as error:
            return error

    def request_async(self, *cmd: Any) -> Future:
        """As request(), later: a Future on every node. Raises RaftException when too many are waiting."""
        future = Future(cmd)
        try:
            self.q_entry.put_nowait(future)
        except queue.Full:
            raise RaftException(f"{REQUESTS_WAITING_MAX} requests are waiting") from None
        return future

    def _start_senders(self) -> None:
        with self._senders_lock:
            for number in range(len(self._senders), REQUEST_THREADS):
                thread = threading.Thread(target=self._send, name=f"raftdb-request-{number}", daemon=True)
                self._senders.append(thread)
                thread.start()

    def _send(self) -> None:
        while not self.shutdown_flag:
            future = self.q_entry.get()
            if future.cmd is not None:
                future.set(self.request(*future.cmd))

    def _not_in_entry(self, what: str) -> None:
        scope = self.data.scope
        if scope is not None and scope.writes:
            raise RaftException(f"{what}: a replicated handler cannot wait for another entry; change node.data instead")

    def checkpoint(self, filename: str | None = None) -> str:
        """Write a snapshot now; its file name, when it is durable. Raises RaftException."""
        self._not_in_entry("checkpoint")
        try:
            return self.node.port.checkpoint(filename, "msgpack")
        except CommandError as error:
            raise RaftException(str(error)) from None

    def add_node(self, nid: str, addr: str) -> bool:
        """Add a member (it joins as a learner and becomes a voter). Before start(): part of the ensemble."""
        if self._node is None:
            if nid == self.nid or nid in self.ensemble:
                return False
            self.ensemble[nid] = addr
            return True
        return self._accepted("add_node", nid, addr)

    def del_node(self, nid: str) -> bool:
        if self._node is None:
            return self.ensemble.pop(nid, None) is not None
        return self._accepted("del_node", nid)

    def _accepted(self, *cmd: str) -> bool:
        try:
            self._raising(*cmd)
        except RaftException as error:
            self.log_warn(f"{' '.join(cmd)}: {error}")
            return False
        return True

    def builtin(self, name: bytes) -> Command:
        """The built-in command of this name, whatever the application replaced."""
        row = _BUILTIN.get(name)
        if row is None:
            raise RaftException(f"unknown command {text_of(name)}")
        return row

    # --- expiry, for handlers

    def check_ttl(self, key: str) -> None:
        """A key that is due is gone for every reader already; nothing is left to do."""

    def clear_ttl(self, key: str) -> None:
        with contextlib.suppress(KeyError):
            del self.ttl[key]

    def set_ttl(self, key: str, ts: float) -> bool:
        """Let `key` fall due at `ts` (seconds of Unix time, from node.now); False when there is no such key."""
        if key not in self.data:
            return False
        self.data.write_back()
        self.ttl[key] = ts
        return True

    # --- handlers and callbacks

    def regist_worker(self, offset: int, worker: Any) -> NoReturn:
        raise RaftException("listeners of other protocols are not supported: register commands in node.worker.handler")

    def get_handler(self, name: str, worker_offset: int = 0) -> Any:
        return self.worker.get_handler(name)

    def get_handler_func(self, name: str, worker_offset: int = 0) -> Any:
        row = self.get_handler(name)
        return row[0] if isinstance(row, list | tuple) else row

    def _callback(self, name: str) -> None:
        self.log_info(f"{name} called")
        func = self.get_handler_func(name)
        if func is not None:
            func(self)

    def on_start(self) -> None:
        self._callback("on_start")

    def on_shutdown(self) -> None:
        self._callback("on_shutdown")

    def on_leader(self) -> None:
        self._callback("on_leader")

    def on_follower(self) -> None:
        self._callback("on_follower")

    def on_candidate(self) -> None:
        self._callback("on_candidate")

    # --- logging

    def _line(self, message: str) -> str:
        return f"[{self.nid}-{self.term}({self.state})] {message}"

    def log_debug(self, msg: str) -> None:
        self.logger.debug(self._line(msg))

    def log_info(self, msg: str) -> None:
        self.logger.info(self._line(msg))

    def log_warn(self, msg: str) -> None:
        self.logger.warning(self._line(msg))

    def log_error(self, msg: str) -> None:
        self.logger.error(self._line(msg))


# --- the command line of a program ---


def parse_default_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the node's flags to a program's own parser, parse, and set up logging. `.ensemble_map` is for RaftNode."""
    parser.add_argument(
        "-a", dest="addr", help="address for clients, HOST:PORT; peers use PORT+1; :PORT is this host's"
    )
    parser.add_argument(
        "-e", dest="ensemble", help="the others: ID/HOST:PORT or HOST:PORT, comma separated, or NAME:PORT"
    )
    parser.add_argument("-i", dest="nid", help="node id; HOSTNAME is the machine's name (default: the address)")
    parser.add_argument("-l", dest="load", help="start a new cluster of one from this checkpoint")
    parser.add_argument(
        "-o", dest="overwrite_peer", action="store_true", help="take the place of the lost node of this id"
    )
    parser.add_argument("-d", dest="data_dir", default="", help="data directory (default: raftdb-data/ID)")
    parser.add_argument("-loglevel", dest="loglevel", default="info", help="debug, info, warning, error, fatal")
    parser.add_argument("-logfile", dest="logfile", default="", help="log into this file, 1 MiB x 10")
    args = parser.parse_args()
    if args.addr is None:
        parser.print_help()
        raise RaftException("addr is required")
    try:
        if args.addr.startswith(":"):
            args.addr = own_host() + args.addr
        split_address(args.addr)
        if args.loglevel.lower() not in _LOG_LEVELS:
            raise UsageError(f"-loglevel {args.loglevel}: expected one of {', '.join(_LOG_LEVELS)}")
        set_up_logging(Config(log_level=args.loglevel.lower(), log_file=args.logfile or ""))
        args.ensemble_map = _ensemble(args.ensemble or "")
    except UsageError as error:
        raise RaftException(str(error)) from None
    if args.nid is None:
        args.nid = args.addr
    if args.nid == "HOSTNAME":
        args.nid = socket.gethostname()
    return args


def _ensemble(text: str) -> dict[str, str]:
    """`2/127.0.0.1:5020,127.0.0.1:5030` or `name:port` as a map. Raises UsageError."""
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        nid, slash, addr = entry.rpartition("/")
        if addr.startswith(":"):
            addr = own_host() + addr
        split_address(addr)
        found[nid if slash else f"__TEMP_{addr}__"] = addr
    return found


def make_default_node(args: argparse.Namespace | None = None) -> RaftNode:
    """A node from the command line (or from what parse_default_args() made of it), serving the Redis protocol."""
    args = args or parse_default_args(argparse.ArgumentParser())
    settings = {"data_dir": args.data_dir} if args.data_dir else {}
    node = RaftNode(args.nid, args.addr, args.ensemble_map, overwrite_peer=args.overwrite_peer, config=settings)
    if args.load is not None and not node.load(args.load):
        raise RaftException(f"cannot load {args.load}: no such file")  # never begin empty in its place
    return node


def main() -> None:
    """`python -m raftdb.raft -a ...`: what `python -m pyraft.run_raft` was."""
    try:
        node = make_default_node()
        node.start()
        node.join()
    except (RaftdbError, RaftException) as error:
        print(f"raftdb: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
