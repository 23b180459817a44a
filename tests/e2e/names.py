"""Real name look-ups that say what a test wants: a small DNS server, and processes that ask it.

Each node gets a name server of its own, at an address of 127/8 and port 53 (glibc knows no other), and sees it by a
mount namespace in which /etc/resolv.conf is another file. So every node may be told something else, and at any moment
something new, through the resolver that it has in earnest. This needs root; a test is skipped where it is not allowed.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.processes import LocalCluster, NodeProcess

NAME: Final = "raftdb-test.example"
A, IN = 1, 1
NXDOMAIN, SERVFAIL = 3, 2

#: What a view is asked for each time: addresses, or one of the words below.
Answer = Sequence[str] | str
UNKNOWN: Final = "unknown"  # there is no such name
BROKEN: Final = "broken"  # the server has failed
SILENCE: Final = "silence"  # no answer at all
CUT: Final = "cut"  # a truncated answer that goes on over TCP, where nobody listens


class View:
    """What one node is told, by the name asked for. Change it from any thread."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.asked: Counter[str] = Counter()  # questions for addresses

    def tell(self, answer: Answer | Callable[[], Answer], name: str = NAME) -> None:
        self.answers[name] = answer if callable(answer) else lambda: answer


class NameServer:
    """One thread, one socket per view. A context manager."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.views = [View(address) for address in addresses]
        self._sockets = []
        self._over = threading.Event()
        for address in addresses:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._sockets.append(sock)
            sock.bind((address, 53))
        self._threads = [
            threading.Thread(target=self._serve, args=pair, daemon=True)
            for pair in zip(self._sockets, self.views, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> NameServer:
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for view in self.views:  # recvfrom() does not see that its socket was closed
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"", (view.address, 53))
        for thread, sock in zip(self._threads, self._sockets, strict=True):
            thread.join(10)
            sock.close()

    def _serve(self, sock: socket.socket, view: View) -> None:
        while True:
            question, peer = sock.recvfrom(4096)
            if self._over.is_set():
                return
            reply = answer_to(question, view)
            if reply is not None:
                with contextlib.suppress(OSError):
                    sock.sendto(reply, peer)


def answer_to(question: bytes, view: View) -> bytes | None:
    """RFC 1035, as much as a resolver that asks for addresses needs."""
    number = struct.unpack_from("!H", question)[0]
    labels, at = [], 12
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode())
        at += 1 + length
    name, kind = ".".join(labels).lower(), struct.unpack_from("!H", question, at + 1)[0]
    asked = question[12 : at + 5]
    answer = view.answers.get(name, lambda: UNKNOWN)() if kind == A else view.answers.get(name) and []
    if kind == A:
        view.asked[name] += 1
    if answer == SILENCE:
        return None
    flags = 0x8580 | {UNKNOWN: NXDOMAIN, BROKEN: SERVFAIL}.get(answer if isinstance(answer, str) else "", 0)
    flags |= 0x0200 if answer == CUT else 0
    addresses = [] if isinstance(answer, str) or answer is None else answer
    rows = [struct.pack("!HHHIH4s", 0xC00C, A, IN, 0, 4, socket.inet_aton(address)) for address in addresses]
    return struct.pack("!HHHHHH", number, flags, 1, len(rows), 0, 0) + asked + b"".join(rows)


_SCRIPT: Final = """
mount --bind "$1/resolv.conf" /etc/resolv.conf &&
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf &&
shift && exec "$@"
"""


def _wrapper(directory: Path, server: str) -> list[str]:
    """A command line in front of another one, which then asks this name server and nobody else."""
    directory.mkdir()
    (directory / "resolv.conf").write_text(f"nameserver {server}\noptions timeout:1 attempts:1\n")
    (directory / "nsswitch.conf").write_text("hosts: dns\n")
    return ["unshare", "--mount", "sh", "-c", _SCRIPT, "sh", str(directory)]


@contextlib.contextmanager
def names_for(cluster: LocalCluster) -> Iterator[dict[NodeProcess, View]]:
    """Each node of the cluster asks a server of its own; skips the test where that cannot be had."""
    if shutil.which("unshare") is None:
        pytest.skip("unshare is not installed")
    for file in ("/etc/resolv.conf", "/etc/nsswitch.conf"):
        if not Path(file).exists():
            pytest.skip(f"there is no {file} to put another one in place of")
    addresses = [f"{node.host.rpartition('.')[0]}.{100 + number}" for number, node in enumerate(cluster.all)]
    try:
        server = NameServer(addresses)
    except OSError as error:
        pytest.skip(f"port 53 cannot be taken: {error.strerror}")
    with server:
        for node, view in zip(cluster.all, server.views, strict=True):
            node.wrapper = _wrapper(cluster.directory / f"{node.id}-names", view.address)
        tried = subprocess.run([*node.wrapper, "true"], capture_output=True, text=True, check=False)
        if tried.returncode:
            pytest.skip(f"a mount namespace cannot be had: {tried.stderr.strip()}")
        yield dict(zip(cluster.all, server.views, strict=True))
