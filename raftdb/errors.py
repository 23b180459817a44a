"""Every error that raftdb raises on purpose.

    RaftdbError
    +-- CommandError            the client's: answered as an error line; the same on every replica; nothing changed
    |   +-- Unexecuted          CLUSTERDOWN, TRYAGAIN, LOADING, MOVED ...: certainly not executed, may be sent again
    |   +-- Uncertain           UNCERTAIN: may or may not have been executed
    +-- ProtocolError           the client's bytes are not RESP: answered once, then the connection is closed
    +-- PeerError               a peer's frame or handshake is refused: the connection is closed
    +-- UsageError              the operator's: flags, configuration, data directory; one line, exit code 2
    +-- DiskFull                no room for a write: refused, reads and deletes go on
    +-- StorageError            the disk's: ends the process with its reason
    |   +-- Damaged             a checksum or a structure does not fit: says where
    |       +-- EntryDamaged    one log entry (quarantined, refilled from a peer)
    +-- Bug                     an invariant does not hold: stop rather than go on wrong

Texts that clients see stand once, in `raftdb.commands` (command errors) or here (the state of the cluster).
"""

from __future__ import annotations


class RaftdbError(Exception):
    """Root of everything below."""


class CommandError(RaftdbError):
    """An error reply, computed from log and state alone. The text starts with its Redis code (`ERR`, `WRONGTYPE`)."""


class Unexecuted(CommandError):
    """The command was certainly not executed."""


class Uncertain(CommandError):
    """The command may or may not have been executed: leadership was lost, or time ran out, after it was proposed."""


class ProtocolError(RaftdbError):
    """Bytes that are not RESP, or over a limit. The text is sent to the client as `-ERR Protocol error: ...`."""


class PeerError(RaftdbError):
    """A peer is refused. The text names the peer and the reason."""


class UsageError(RaftdbError):
    """Something only the operator can mend; the text says how."""


class DiskFull(RaftdbError):
    """The file system or the map has no room. Nothing was changed."""


class StorageError(RaftdbError):
    """The disk failed (EIO, failed fsync). The process must end: what the page cache says is no longer known."""


class Damaged(StorageError):
    """A checksum, a length or a link does not fit."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where = where
        self.what = what

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class EntryDamaged(Damaged):
    """The log entry `index` does not match its checksum or chain."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"log entry {index}", what)
        self.index = index


class Bug(RaftdbError):
    """An invariant of the program is broken. The process stops."""
