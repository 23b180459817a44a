"""A TCP proxy in user space between peers: cuts, holds, delays, throttles, corrupts; per direction, at run time.

One asyncio loop in a thread of its own; every control may be called from any thread.

    with Proxy() as proxy:
        host, port = proxy.listen("n2", ("127.0.0.1", 7001), source="n1")       # n1 is given this address of n2
        host, port = proxy.listen("n2", target, classify={"127.0.12.1": "n1"}.get, host="127.0.11.2", port=7001)
        proxy.link("n1", "n2").hold()          # bytes from n1 to n2 stand still, whoever has dialled
        proxy.partition(["n1"], ["n2", "n3"])  # both ways
        proxy.heal()

A *link* is a direction: `link(i, j)` is for the bytes from i to j, on connections that i has dialled and on those that
j has dialled. What "lost packets" do to TCP is `hold`: bytes wait (and come late, after `release`), closing is not seen
either. `cut` resets what is there and refuses what comes. `drop_next` and `flip_next` change the stream itself: no
network does this to TCP, but an attacker or a broken middle box does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable, Iterable
from typing import Any

READ_BYTES = 64 * 1024
QUEUE_CHUNKS = 16
POLL_S = 0.01


class Link:
    """The controls of one direction. Set them from any thread; they act on the next bytes."""

    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self.passed_bytes = 0  # since the start
        self.connections = 0  # dialled by source to target and accepted, since the start
        self.refused = 0
        self.closed = 0  # by close_after(), since the start
        self.reset_all()

    def reset_all(self) -> None:
        """No fault."""
        self.held = False
        self.is_cut = False
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.bytes_per_s = 0.0  # 0: as fast as it goes
        self.write_bytes = 0  # 0: as read; else pieces of at most this
        self.close_after_bytes: int | None = None
        self.close_again_bytes: int | None = None
        self.dropping_bytes = 0
        self.flip_after_bytes: int | None = None

    def hold(self) -> None:
        """Bytes of this direction stand still: a black hole as TCP sees it."""
        self.held = True

    def release(self) -> None:
        self.held = False

    def cut(self) -> None:
        """Connections that carry this direction are reset; new ones dialled by source to target are refused."""
        self.is_cut = True

    def mend(self) -> None:
        self.is_cut = False

    def delay(self, delay_s: float, jitter_s: float = 0.0) -> None:
        self.delay_s, self.jitter_s = delay_s, jitter_s

    def throttle(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s

    def split(self, write_bytes: int) -> None:
        """Hand bytes on in pieces of this size, each in a write of its own."""
        self.write_bytes = write_bytes

    def close_after(self, count: int, *, again: bool = False) -> None:
        """Reset the connection that carries the `count`-th byte from now, after that byte: mid-frame, mostly.

        Once, or `again` after as many bytes each time.
        """
        self.close_after_bytes = count
        self.close_again_bytes = count if again else None

    def drop_next(self, count: int) -> None:
        """The next `count` bytes vanish. Once."""
        self.dropping_bytes = count

    def flip_next(self, after: int = 0) -> None:
        """One bit of the byte behind the next `after` ones is flipped. Once."""
        self.flip_after_bytes = after

    def alter(self, data: bytes) -> tuple[bytes, bool]:
        """What goes on of these bytes, and whether the connection is reset behind it."""
        if self.dropping_bytes:
            gone = min(self.dropping_bytes, len(data))
            self.dropping_bytes -= gone
            data = data[gone:]
        if self.flip_after_bytes is not None and data:
            if self.flip_after_bytes < len(data):
                place = self.flip_after_bytes
                data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
                self.flip_after_bytes = None
            else:
                self.flip_after_bytes -= len(data)
        if self.close_after_bytes is None:
            return data, False
        if len(data) < self.close_after_bytes:
            self.close_after_bytes -= len(data)
            return data, False
        data, self.close_after_bytes = data[: self.close_after_bytes], self.close_again_bytes
        self.closed += 1
        return data, True


class Proxy:
    """Listeners and relays; a context manager."""

    def __init__(self, seed: int = 1) -> None:
        self._links: dict[tuple[str, str], Link] = {}
        self._lock = threading.Lock()
        self._chance = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._relays: set[_Relay] = set()
        self._servers: list[asyncio.Server] = []
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    def link(self, source: str, target: str) -> Link:
        with self._lock:
            return self._links.setdefault((source, target), Link(source, target))

    def links(self) -> list[Link]:
        with self._lock:
            return list(self._links.values())

    def listen(
        self,
        target: str,
        address: tuple[str, int],
        *,
        source: str | None = None,
        classify: Callable[[str], str | None] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> tuple[str, int]:
        """A listener for connections to `target`, whose real address is `address`; gives the address to dial.

        Who dials is `source`, or what `classify` makes of the source IP (None: refused).
        """

        async def start() -> tuple[str, int]:
            async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                name = source if classify is None else classify(writer.get_extra_info("peername")[0])
                with contextlib.suppress(asyncio.CancelledError):  # by close()
                    await self._accepted(name, target, address, reader, writer)

            server = await asyncio.start_server(accepted, host, port, limit=READ_BYTES)
            self._servers.append(server)
            bound = server.sockets[0].getsockname()
            return str(bound[0]), int(bound[1])

        return self._call(start())

    async def _accepted(
        self,
        source: str | None,
        target: str,
        address: tuple[str, int],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if source is None or self.link(source, target).is_cut or self.link(target, source).is_cut:
            if source is not None:
                self.link(source, target).refused += 1
            _reset(writer)
            return
        relay = _Relay(self, self.link(source, target), self.link(target, source), reader, writer)
        self._relays.add(relay)
        try:
            await relay.run(address)
        finally:
            self._relays.discard(relay)

    def partition(self, one: Iterable[str], other: Iterable[str], *, cut: bool = False) -> None:
        """Nothing passes between the two groups, in both directions: bytes stand still, or connections are cut."""
        other = list(other)
        for a in one:
            for b in other:
                for link in (self.link(a, b), self.link(b, a)):
                    if cut:
                        link.cut()
                    else:
                        link.hold()

    def isolate(self, name: str, others: Iterable[str], *, cut: bool = False) -> None:
        self.partition([name], [other for other in others if other != name], cut=cut)

    def heal(self) -> None:
        """No fault anywhere."""
        for link in self.links():
            link.reset_all()

    def reset_connections(self, source: str | None = None, target: str | None = None) -> None:
        """Reset the connections dialled by source (or anybody) to target (or anybody), once."""

        async def reset() -> None:
            for relay in list(self._relays):
                if source in (None, relay.forth.source) and target in (None, relay.forth.target):
                    relay.reset()

        self._call(reset())

    def close(self) -> None:
        async def stop() -> None:
            for server in self._servers:
                server.close()
            for relay in list(self._relays):
                relay.reset()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self._loop.is_closed():
            return
        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)
        self._loop.close()


class _Relay:
    """One connection through the proxy: two directions."""

    def __init__(
        self, proxy: Proxy, forth: Link, back: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.forth = forth
        self.back = back
        self._proxy = proxy
        self._reader = reader
        self._writers = [writer]

    async def run(self, address: tuple[str, int]) -> None:
        while self.forth.held or self.back.held:  # a SYN or its answer is lost
            if self.forth.is_cut or self.back.is_cut:
                self.reset()
                return
            await asyncio.sleep(POLL_S)
        try:
            reader, writer = await asyncio.open_connection(*address, limit=READ_BYTES)
        except OSError:
            self.reset()
            return
        self._writers.append(writer)
        self.forth.connections += 1
        tasks = [
            asyncio.ensure_future(self._pass(self._reader, writer, self.forth)),
            asyncio.ensure_future(self._pass(reader, self._writers[0], self.back)),
            asyncio.ensure_future(self._watch_cut()),
        ]
        try:
            await asyncio.wait(tasks[:2], return_when=asyncio.ALL_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for each in self._writers:
                with contextlib.suppress(OSError):
                    each.close()

    async def _watch_cut(self) -> None:
        while not (self.forth.is_cut or self.back.is_cut):
            await asyncio.sleep(POLL_S)
        self.reset()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
        """One direction, delayed by a bounded queue."""
        loop = asyncio.get_running_loop()
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUE_CHUNKS)

        async def read() -> None:
            due_s = 0.0
            while True:
                data = await _read(reader)
                jitter_s = self._proxy._chance.uniform(0, link.jitter_s) if link.jitter_s else 0.0
                due_s = max(due_s, loop.time() + link.delay_s + jitter_s)
                await chunks.put((due_s, data))
                if not data:
                    return

        task = asyncio.ensure_future(read())
        try:
            while True:
                due_s, data = await chunks.get()
                if due_s > loop.time():
                    await asyncio.sleep(due_s - loop.time())
                while link.held:
                    await asyncio.sleep(POLL_S)
                if not data:
                    if writer.can_write_eof():
                        writer.write_eof()
                    return
                if not await self._write(writer, link, data):
                    return
        except OSError:
            while self._other(link).held and not link.is_cut:  # nor does a reset come through
                await asyncio.sleep(POLL_S)
            self.reset()
        finally:
            task.cancel()

    def _other(self, link: Link) -> Link:
        return self.back if link is self.forth else self.forth

    async def _write(self, writer: asyncio.StreamWriter, link: Link, data: bytes) -> bool:
        data, is_last = link.alter(data)
        size = link.write_bytes or len(data)
        for start in range(0, len(data), max(1, size)):
            piece = data[start : start + size]
            while link.held:
                await asyncio.sleep(POLL_S)
            link.passed_bytes += len(piece)  # before: who has received them must find them counted
            writer.write(piece)
            await writer.drain()
            if link.bytes_per_s:
                await asyncio.sleep(len(piece) / link.bytes_per_s)
            elif link.write_bytes:
                await asyncio.sleep(0)
        if is_last:
            self.reset()
        return not is_last

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(READ_BYTES)
    except OSError:
        return b""


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST rather than FIN."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
