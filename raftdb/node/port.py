"""What LOCAL commands may ask of the node: commands.context.ServerPort over driver, snapshotter and server.

Methods that change what the driver owns run there (`_in_driver`) and wait for the result; they are called on workers.
Everything else only reads counters and settings, from any thread, and may be a moment old.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import resource
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from raftdb import __version__, clock
from raftdb.commands.context import Role as RoleReply
from raftdb.config import SETTINGS, split_address
from raftdb.errors import CommandError, RaftdbError, Uncertain, Unexecuted, UsageError
from raftdb.node import lending
from raftdb.node.forwarding import requests_of
from raftdb.node.pending import TIMED_OUT
from raftdb.types import Kind, Role

if TYPE_CHECKING:
    from raftdb.commands.context import SessionPort
    from raftdb.node.node import Node

T = TypeVar("T")

SLOWLOG_ENTRIES_MAX: Final = 128
SLOWLOG_ARGS_MAX: Final = 32
SLOWLOG_ARG_BYTES_MAX: Final = 128
LOG_ENTRIES_MAX: Final = 1_000  # of one GETLOG
LOG_BYTES_MAX: Final = 4 * 1024 * 1024
DUMP_BYTES_MAX: Final = 64 * 1024 * 1024
BARRIER_STEP_S: Final = 0.005

#: Redis' parameters that clients ask for, and what is true here.
_REDIS_PARAMETERS: Final = {
    "appendfsync": "always",
    "appendonly": "yes",
    "databases": "16",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "notify-keyspace-events": "",
    "proto-max-bulk-len": "",
    "save": "",
    "slowlog-log-slower-than": "10000",
    "slowlog-max-len": str(SLOWLOG_ENTRIES_MAX),
    "timeout": "0",
}
#: May be changed while the node runs: our own settings, and how Redis calls them where it differs.
_CHANGEABLE: Final = ("reads", "bounded_ms", "min_free_bytes", "requirepass", "log_level")


class Port:
    """See the module. One per node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._slow: deque[tuple[int, int, int, Sequence[bytes], str, str]] = deque(maxlen=SLOWLOG_ENTRIES_MAX)
        self._slow_id = 0
        self._stopping = threading.Event()
        self._slower_than_us = 10_000
        self._commands_base = 0

    # --- identity, time, settings -----------------------------------------------------------------------------------

    def node_id(self) -> str:
        return self._node.config.own_id

    def cluster_id(self) -> str:
        return self._node.data.identity.cluster_id if self._node.data is not None else ""

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return clock.monotonic()

    def password_required(self) -> bool:
        return bool(self._node.settings["requirepass"])

    def authenticate(self, user: bytes, password: bytes) -> bool:
        """Compared in constant time, over digests of equal length."""
        wanted = str(self._node.settings["requirepass"]).encode()
        same = hmac.compare_digest(hashlib.sha256(password).digest(), hashlib.sha256(wanted).digest())
        return user == b"default" and (same or not wanted)

    def default_consistency(self) -> str:
        return str(self._node.settings["reads"])

    def config_get(self) -> Mapping[str, str]:
        found = dict(_REDIS_PARAMETERS)
        found["proto-max-bulk-len"] = str(self._node.config.bulk_max_bytes)
        found["slowlog-log-slower-than"] = str(self._slower_than_us)
        found["dir"] = str(self._node.config.own_data_dir.absolute())
        found["bind"] = self._node.config.bind or self._node.config.host
        found["port"] = str(self._node.config.port)
        for name in SETTINGS:
            value = self._node.settings[name]
            text = ("yes" if value else "no") if isinstance(value, bool) else str(value)
            found[name.replace("_", "-")] = text
        return found

    def config_set(self, changes: Mapping[str, str]) -> None:
        """All or none."""
        values: dict[str, Any] = {}
        for parameter, text in changes.items():
            name = parameter.lower().replace("-", "_")
            if name == "slowlog_log_slower_than":
                values[name] = _number(parameter, text)
            elif name in _CHANGEABLE:
                values[name] = _parsed(parameter, name, text)
            elif parameter.lower() in self.config_get():
                raise CommandError(
                    f"ERR CONFIG SET failed (possibly related to argument '{parameter}') - can't set immutable config"
                )
            else:
                raise CommandError(f"ERR Unknown option or number of arguments for CONFIG SET - '{parameter}'")
        self._slower_than_us = values.pop("slowlog_log_slower_than", self._slower_than_us)
        self._node.change_settings(values)

    def reset_stats(self) -> None:
        self._commands_base = self._node.dispatch.commands()

    # --- INFO, ROLE, RAFT.* -----------------------------------------------------------------------------------------

    def info(self) -> Mapping[str, Mapping[str, object]]:
        return {
            "server": self._info_server(),
            "clients": self._info_clients(),
            "memory": _info_memory(),
            "persistence": self._info_persistence(),
            "stats": self._info_stats(),
            "replication": self._info_replication(),
            "cpu": _info_cpu(),
            "raft": self._info_raft(),
        }

    def _info_server(self) -> dict[str, object]:
        uptime_s = int(clock.monotonic() - self._node.started_s)
        return {
            "raftdb_version": __version__,
            "process_id": os.getpid(),
            "run_id": f"{self._node.life:016x}" * 2 + "00000000",
            "tcp_port": self._node.config.port,
            "server_time_usec": self.now_us(),
            "uptime_in_seconds": uptime_s,
            "uptime_in_days": uptime_s // 86_400,
            "config_file": "",
        }

    def _info_clients(self) -> dict[str, object]:
        return {"connected_clients": len(self.sessions()), "maxclients": self._node.settings["maxclients"]}

    def _info_persistence(self) -> dict[str, object]:
        node = self._node
        if node.data is None:
            return {"loading": 1}
        return {
            "loading": int(not node.serving),
            "rdb_changes_since_last_save": node.driver.log_entries_since_snapshot,
            "rdb_bgsave_in_progress": int(node.snapshotter.busy),
            "rdb_last_save_time": node.snapshotter.last_save_s,
            "rdb_last_bgsave_status": "err" if node.snapshotter.last_error else "ok",
            "aof_enabled": 1,
            "aof_last_write_status": "ok",
            "disk_free_bytes": node.housekeeper.free_bytes,
            "disk_low": int(node.housekeeper.low),
        }

    def _info_stats(self) -> dict[str, object]:
        if self._node.data is None:
            return {}
        return {
            "total_connections_received": self._node.dispatch.connections,
            "total_commands_processed": self._node.dispatch.commands() - self._commands_base,
            "log_flushes": self._node.driver.flushes,
            "log_flush_last_us": self._node.driver.flush_last_us,
            "log_flush_mean_us": self._node.driver.flush_mean_us(),
        }

    def _info_replication(self) -> dict[str, object]:
        role = self.role()
        found: dict[str, object] = {"role": "master" if role.leader else "slave"}
        if not role.leader and role.leader_addr is not None:
            found |= {"master_host": role.leader_addr[0], "master_port": role.leader_addr[1]}
        if not role.leader:
            found["master_link_status"] = "up" if role.leader_addr is not None else "down"
        found["connected_slaves"] = len(role.followers)
        for number, (host, port, index) in enumerate(role.followers):
            found[f"slave{number}"] = f"ip={host},port={port},state=online,offset={index},lag=0"
        found["master_replid"] = f"{self.cluster_id():0>40}"
        found["master_repl_offset"] = role.offset
        return found

    def _info_raft(self) -> dict[str, object]:
        status = dict(self.status())
        peers = status.pop("peers", ())
        found: dict[str, object] = {f"raft_{name}": value for name, value in status.items()}
        if isinstance(peers, list | tuple):
            for number, peer in enumerate(peers):
                found[f"raft_peer{number}"] = ",".join(f"{name}={value}" for name, value in peer.items())
        return found

    def keyspace(self) -> Sequence[tuple[int, int, int]]:
        if self._node.data is None:
            return []
        with self._node.data.kv.view() as view:
            rows = [(db, view.count(db), view.expiring(db)) for db in range(16)]
        return [row for row in rows if row[1]]

    def role(self) -> RoleReply:
        node = self._node
        if node.data is None:
            return RoleReply(False, None, 0, "connect", ())
        leading = node.role is Role.LEADER
        leader = node.leader_member()
        followers = []
        if leading:
            matched = node.matched()
            for member in node.data.log.membership.members:
                if member.id != node.config.own_id:
                    host, port = split_address(member.client_addr)
                    followers.append((host, port, matched.get(member.ref, 0)))
        address = split_address(leader.client_addr) if leader is not None else None
        return RoleReply(leading, address, node.driver.applied, "connected" if leader else "connect", followers)

    def status(self) -> Mapping[str, object]:
        return self._node.status()

    def nodes(self) -> Sequence[Mapping[str, object]]:
        return self._node.member_rows()

    # --- clients ----------------------------------------------------------------------------------------------------

    def sessions(self) -> Sequence[SessionPort]:
        return [conn.session for conn in self._node.server.clients()]

    def kill_session(self, session_id: int) -> bool:
        for conn in self._node.server.clients():
            if conn.session.id == session_id:
                conn.kill()
                return True
        return False

    def pause_clients(self, until_ms: int, writes_only: bool) -> None:
        self._node.dispatch.pause(clock.monotonic() + (until_ms - clock.wall_ms()) / 1000, writes_only)

    def unpause_clients(self) -> None:
        self._node.driver.call(self._node.dispatch.unpause)

    def unblock_client(self, session_id: int, with_error: bool) -> bool:
        """No command parks its client yet."""
        return False

    # --- persistence ------------------------------------------------------------------------------------------------

    def checkpoint(self, name: str | None, codec: str) -> str:
        if name is not None:
            lending.sweep(self._node.data.path, name)
        try:
            job = self._node.snapshotter.request(name, codec)
        except UsageError as error:
            raise CommandError(f"ERR {error}") from None
        return self._node.snapshotter.wait(job)

    def checkpoint_soon(self) -> bool:
        if self._node.snapshotter.busy:
            return False
        self._node.snapshotter.request()
        return True

    def last_save_s(self) -> int:
        return self._node.snapshotter.last_save_s

    def snapshots(self) -> Sequence[Mapping[str, object]]:
        log = self._node.data.log
        rows = [meta for meta in (log.snapshot, log.previous_snapshot) if meta is not None]
        return [
            {"name": meta.name, "index": meta.index, "term": meta.term, "bytes": meta.size_bytes, "stamp": meta.stamp}
            for meta in rows
        ]

    def read_snapshot(self, name: str, offset: int, length: int) -> tuple[int, bytes]:
        try:
            return lending.read(self._node.data.path, name, offset, length)
        except (RaftdbError, OSError) as error:
            raise CommandError(f"ERR {error}") from None

    def drop_checkpoint(self, name: str) -> bool:
        try:
            return lending.drop(self._node.data.path, name)
        except (RaftdbError, OSError) as error:
            raise CommandError(f"ERR {error}") from None

    # --- the group --------------------------------------------------------------------------------------------------

    def add_node(self, node_id: str, address: str, voter: bool) -> None:
        self._node.members.add(node_id, address, voter)

    def remove_node(self, node_id: str) -> None:
        self._node.members.remove(node_id)

    def promote(self, node_id: str) -> None:
        self._node.members.promote(node_id)

    def demote(self, node_id: str) -> None:
        self._node.members.demote(node_id)

    def transfer_leadership(self, node_id: str | None) -> None:
        self._node.members.transfer(node_id)

    def barrier(self) -> int:
        return self._node.barrier()

    def wait_replicas(self, index: int, replicas: int, timeout_ms: int) -> int:
        """Polls the leader's progress table: it changes with every acknowledgement."""
        end_s = clock.monotonic() + timeout_ms / 1000 if timeout_ms else float("inf")
        while True:
            count = sum(1 for matched in self._node.matched().values() if matched >= index)
            if count >= replicas or clock.monotonic() >= end_s or self._stopping.wait(BARRIER_STEP_S):
                return count

    def log_entries(self, start: int, stop: int) -> Sequence[tuple[int, int, int, str, Sequence[Sequence[bytes]]]]:
        node = self._node
        first = max(start, node.data.log.first)
        last = min(stop - 1, node.driver.applied, first + LOG_ENTRIES_MAX - 1)
        if last < first:
            return []
        rows = []
        for entry in self._in_driver(lambda: node.data.log.entries(first, last, LOG_BYTES_MAX)):
            items = node.machine.decode(entry.payload) if entry.kind == Kind.COMMANDS else []
            lines = [request.argv for item in items for request in requests_of(item)]
            rows.append((entry.index, entry.term, entry.stamp, _KINDS.get(entry.kind, str(entry.kind)), lines))
        return rows

    def dump(self) -> bytes:
        """The strings and heads of all databases as text."""
        out: list[bytes] = []
        size_bytes = 0
        breathe = clock.Breather()
        with self._node.data.kv.view() as view:
            for db in range(16):
                for _, name, head in view.scan_heads(db):
                    breathe()
                    line = f"{db} {name!r} {head.type} {head.expiry_ms} {head.value!r}\n".encode()
                    size_bytes += len(line)
                    if size_bytes > DUMP_BYTES_MAX:
                        raise CommandError("ERR the data is too large for GETDUMP; use CHECKPOINT")
                    out.append(line)
        return b"".join(out)

    # --- operations -------------------------------------------------------------------------------------------------

    def shutdown(self, save: bool, now: bool) -> None:
        """Ends the node as SIGTERM does. The log is durable as it is; `save` only makes the next start shorter."""
        if save:
            self.checkpoint(None, "msgpack")
        self._node.request_stop(now)

    def sleep(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def stop(self) -> None:
        """Wakes those who wait in here."""
        self._stopping.set()

    def slow(self, micros: int, argv: Sequence[bytes], session: SessionPort) -> None:
        """Remember a slow command (any thread; deque.appendleft is atomic)."""
        if micros < self._slower_than_us or self._slower_than_us < 0:
            return
        self._slow_id += 1
        cut = [arg[:SLOWLOG_ARG_BYTES_MAX] for arg in argv[:SLOWLOG_ARGS_MAX]]
        name = session.name.decode("utf-8", "replace")
        self._slow.appendleft((self._slow_id, int(time.time()), micros, cut, session.address, name))

    def slowlog(self, count: int) -> Sequence[tuple[int, int, int, Sequence[bytes], str, str]]:
        rows = list(self._slow)
        return rows if count < 0 else rows[:count]

    def slowlog_length(self) -> int:
        return len(self._slow)

    def slowlog_reset(self) -> None:
        self._slow.clear()

    def latency_latest(self) -> Sequence[tuple[str, int, int, int]]:
        return []

    def latency_reset(self) -> int:
        return 0

    # --- helpers ----------------------------------------------------------------------------------------------------

    def _in_driver(self, fn: Callable[[], T]) -> T:
        return self._node.in_driver(fn)


_KINDS: Final = {Kind.NOOP: "noop", Kind.COMMANDS: "commands", Kind.MEMBERSHIP: "membership", Kind.TIME: "time"}


def _number(parameter: str, text: str) -> int:
    if not (text.lstrip("-").isascii() and text.lstrip("-").isdigit() and len(text) < 18):
        raise CommandError(
            f"ERR CONFIG SET failed (possibly related to argument '{parameter}') - argument must be a number"
        )
    return int(text)


def _parsed(parameter: str, name: str, text: str) -> Any:
    try:
        return SETTINGS[name].parse(text)
    except ValueError as error:
        raise CommandError(f"ERR CONFIG SET failed (possibly related to argument '{parameter}') - {error}") from None


def _info_memory() -> dict[str, object]:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "used_memory": resident,
        "used_memory_rss": resident,
        "used_memory_peak": peak,
        "maxmemory": 0,
        "maxmemory_policy": "noeviction",
    }


def _info_cpu() -> dict[str, object]:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "used_cpu_sys": f"{own.ru_stime:.6f}",
        "used_cpu_user": f"{own.ru_utime:.6f}",
        "used_cpu_sys_children": f"{children.ru_stime:.6f}",
        "used_cpu_user_children": f"{children.ru_utime:.6f}",
    }


class DriverCalls:
    """Runs functions in the driver's thread for threads that wait for the result."""

    def __init__(self, call: Callable[[Callable[[], None]], None], stopped: threading.Event, wait_s: float) -> None:
        self._call = call
        self._stopped = stopped
        self._wait_s = wait_s

    def run(self, fn: Callable[[], T]) -> T:
        """What `fn` returns or raises. Uncertain when the driver does not come to it in time."""
        done = threading.Event()
        result: list[Any] = []

        def work() -> None:
            try:
                result.append((True, fn()))
            except RaftdbError as error:
                result.append((False, error))
            finally:
                done.set()

        self._call(work)
        end_s = clock.monotonic() + self._wait_s
        while not done.wait(0.1):
            if self._stopped.is_set():
                raise Unexecuted("CLUSTERDOWN this node is stopping")
            if clock.monotonic() > end_s:
                raise Uncertain(str(TIMED_OUT))
        succeeded, value = result[0]
        if succeeded:
            return value  # type: ignore[no-any-return]
        raise value
