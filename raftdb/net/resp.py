"""RESP, both directions, as pure functions of bytes."""

from __future__ import annotations

from typing import NamedTuple

from raftdb.types import Reply


class Limits(NamedTuple):
    """What a parser accepts. Bytes and counts."""

    args_max: int = 1_048_576
    bulk_bytes_max: int = 16 * 1024 * 1024
    inline_bytes_max: int = 64 * 1024
    query_bytes_max: int = 64 * 1024 * 1024  # one command in all, headers included


UNAUTHENTICATED = Limits(args_max=10, bulk_bytes_max=16 * 1024, inline_bytes_max=16 * 1024, query_bytes_max=64 * 1024)
AUTHENTICATED = Limits()


class Parser:
    """Bytes in, commands out. One per connection."""

    def __init__(self, limits: Limits = UNAUTHENTICATED) -> None: ...

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Every command that is complete now. Raises errors.ProtocolError; the commands before it are in `.parsed`."""
        raise NotImplementedError


def encode(reply: Reply, protocol: int = 2) -> bytes:
    """A reply of raftdb.types as wire bytes."""
    raise NotImplementedError
