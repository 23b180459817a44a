"""What one client connection remembers between commands: a plain value with no socket in it.

The session belongs to its connection, and the connection to its loop; a command handler that was lent the connection
(driver, worker) may read and write the session until it has queued the last reply of the commands it took.

Two limits are checked here because only the session sees the whole queue: a MULTI holds at most 100,000 commands and
64 MiB of arguments.
"""

from __future__ import annotations

from typing import Final

DATABASES: Final = 16
MULTI_COMMANDS_MAX: Final = 100_000
MULTI_BYTES_MAX: Final = 64 * 1024 * 1024
COMMAND_OVERHEAD_BYTES: Final = 64  # of a queued command, besides its arguments
WORD_OVERHEAD_BYTES: Final = 16  # of an argument, which may be empty; more than the log's encoding needs for it

# Consistency of reads. The node's --reads is the default of a new session; RAFT.CONSISTENCY and READONLY change it.
LINEARIZABLE: Final = "linearizable"
LEASE: Final = "lease"
BOUNDED: Final = "bounded"
STALE: Final = "stale"


class Session:
    """State of one client. Times are seconds of `clock.monotonic()` where they end in `_s`.

    Commands see it through `commands.context.SessionPort`.
    """

    __slots__ = (
        "address",
        "authenticated",
        "bounded_ms",
        "commands",
        "connected_s",
        "consistency",
        "db",
        "dirty_exec",
        "id",
        "in_multi",
        "laddr",
        "last_command",
        "last_command_s",
        "lib_name",
        "lib_version",
        "maintenance",
        "name",
        "no_evict",
        "no_touch",
        "protocol",
        "queue",
        "queued_bytes",
        "readonly",
        "reply_mode",
        "user",
        "watches",
        "written_index",
    )

    def __init__(
        self,
        id: int = 0,
        address: str = "",
        laddr: str = "",
        *,
        authenticated: bool = True,
        consistency: str = LINEARIZABLE,
        now_s: float = 0.0,
    ) -> None:
        self.id = id  # counts up over the life of the process
        self.address = address  # HOST:PORT of the client
        self.laddr = laddr  # HOST:PORT that it connected to
        self.connected_s = now_s
        self.last_command_s = now_s
        self.last_command = b""  # its name, as the client spelt it
        self.commands = 0  # commands received
        self.user = "default"
        self.authenticated = authenticated
        self.consistency = consistency
        self.bounded_ms = 0  # with BOUNDED: how old a read may be
        self.lib_name = b""
        self.lib_version = b""
        self.written_index = 0  # log index of the last write of this connection: later reads wait for it
        self.no_evict = False
        self.reset(consistency=consistency)

    def reset(self, *, consistency: str | None = None) -> None:
        """What RESET does, but for the authentication, which depends on the node's settings."""
        self.protocol = 2
        self.db = 0
        self.name = b""
        self.readonly = False
        self.reply_mode = "on"  # CLIENT REPLY: "on", "off" or "skip" (the next reply only)
        self.no_touch = False
        self.maintenance = False  # CLIENT MAINT_NOTIFICATIONS ON: would take MOVING pushes
        if consistency is not None:
            self.consistency = consistency
        self.clear_transaction()
        self.watches: dict[tuple[int, bytes], int] = {}

    # --- MULTI ------------------------------------------------------------------------------------------------------

    def begin_multi(self) -> None:
        """MULTI. WATCHed keys stay watched."""
        self.in_multi = True

    def clear_transaction(self) -> None:
        """End of EXEC or DISCARD: nothing is queued. Watches are the caller's (`unwatch`)."""
        self.in_multi = False
        self.dirty_exec = False
        self.queue: list[list[bytes]] = []
        self.queued_bytes = 0

    def enqueue(self, argv: list[bytes]) -> bool:
        """Queue a command inside MULTI. False, and EXEC will fail, when a limit is reached."""
        size = COMMAND_OVERHEAD_BYTES + WORD_OVERHEAD_BYTES * len(argv) + sum(map(len, argv))
        if len(self.queue) >= MULTI_COMMANDS_MAX or self.queued_bytes + size > MULTI_BYTES_MAX:
            self.dirty_exec = True
            self.queue = []
            self.queued_bytes = 0
            return False
        if not self.dirty_exec:
            self.queue.append(argv)
            self.queued_bytes += size
        return True

    def refuse_exec(self) -> None:
        """A command could not be queued (unknown, wrong arity): EXEC answers EXECABORT and the queue can go."""
        self.dirty_exec = True
        self.queue = []
        self.queued_bytes = 0

    # --- WATCH ------------------------------------------------------------------------------------------------------

    def watch(self, db: int, key: bytes, version: int) -> None:
        """Remember the version (index of the last change; 0: absent) seen first: a later WATCH does not renew it."""
        self.watches.setdefault((db, key), version)

    def unwatch(self) -> None:
        self.watches = {}
