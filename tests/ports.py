"""Ports for nodes: pairs (the clients' and the peers') out of a range from which the system takes none by itself.

A port that the system picks for "any" may be taken as soon as it is free again, by the next connection that somebody
opens: tests that stop a node and start it at the same port would fail by chance, and the more often the more of them
run at once.
"""

from __future__ import annotations

import itertools
import random
import socket
from collections.abc import Sequence
from typing import Final

FIRST: Final = 10_000
END: Final = 32_000  # Linux gives 32768 to 60999 to connections that do not care
PAIRS: Final = (END - FIRST) // 2

_pairs = itertools.count(random.SystemRandom().randrange(PAIRS))  # each process of the suite begins elsewhere


def free_port(hosts: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port that is free, with its successor, on all `hosts`; not twice in a process (but after thousands)."""
    for _ in range(PAIRS):
        port = FIRST + 2 * (next(_pairs) % PAIRS)
        if all(is_free(host, p) for host in hosts for p in (port, port + 1)):
            return port
    raise AssertionError("no pair of free ports found")


def is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
