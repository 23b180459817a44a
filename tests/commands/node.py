"""A node for tests of LOCAL commands: it answers what its fields say and remembers what it was asked to do."""

from __future__ import annotations

from typing import Any

from raftdb.commands.context import Role
from raftdb.commands.machine import Machine
from raftdb.commands.table import builtin_table
from raftdb.errors import CommandError
from raftdb.net.session import Session


class FakeNode:
    """Implements commands.context.ServerPort as far as LOCAL commands go."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.password = b""
        self.settings = {"maxmemory": "0", "save": "", "appendonly": "yes"}
        self.is_leader = True
        self.all_sessions: list[Session] = []
        self.machine = Machine(builtin_table())

    def __call__(self, session: Session, *words: Any) -> Any:
        argv = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        try:
            command = self.machine.table.find(argv)
        except CommandError as error:
            return error
        return self.machine.local(self, session, command, argv)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """Whatever only has to be passed on."""
        if name.startswith("_"):
            raise AttributeError(name)

        def passed_on(*arguments: Any) -> Any:
            self.asked.append((name, *arguments))
            return ANSWERS.get(name)

        return passed_on

    def password_required(self) -> bool:
        return bool(self.password)

    def authenticate(self, user: bytes, password: bytes) -> bool:
        return user == b"default" and bool(self.password) and password == self.password

    def config_get(self) -> dict[str, str]:
        return self.settings

    def config_set(self, changes: dict[str, str]) -> None:
        self.settings.update(changes)

    def role(self) -> Role:
        followers = (("10.0.0.2", 6379, 41),) if self.is_leader else ()
        return Role(self.is_leader, ("10.0.0.1", 6379), 42, "connected", followers)

    def sessions(self) -> list[Session]:
        return self.all_sessions


MEMBERS = [
    {"id": "n1", "addr": "10.0.0.1:6379", "state": "leader", "match": 42},
    {"id": "n2", "addr": "10.0.0.2:6379", "state": "follower", "match": 41},
    {"id": "n3", "addr": "10.0.0.3:6379", "state": "silent", "match": ""},
]
ANSWERS: dict[str, Any] = {
    "now_us": 1_700_000_000_123_456,
    "monotonic_s": 100.0,
    "default_consistency": "linearizable",
    "info": {"clients": {"connected_clients": 3}, "raft": {"raft_term": 7}, "odd": {"x": 1}},
    "keyspace": [(0, 5, 2), (3, 1, 0)],
    "status": {"node_id": "n1", "role": "leader", "term": 7, "applied_index": 42, "leader": None, "peers": MEMBERS},
    "nodes": [{"id": "n1", "voter": True}],
    "kill_session": True,
    "unblock_client": True,
    "checkpoint": "raft_n1_1700000000_42.dat",
    "checkpoint_soon": True,
    "last_save_s": 1_700_000_000,
    "snapshots": [{"name": "a.dat", "index": 42}],
    "barrier": 42,
    "wait_replicas": 2,
    "log_entries": [(1, 1, 1_700_000_000_000, "commands", [[b"SET", b"a", b"1"]])],
    "dump": b"{}",
    "slowlog": [(1, 1_700_000_000, 12_345, [b"KEYS", b"*"], "127.0.0.1:5", "me")],
    "slowlog_length": 1,
    "latency_latest": [("fsync", 1_700_000_000, 5, 90)],
    "latency_reset": 1,
}
