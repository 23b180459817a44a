"""A load for etcd that is not the bottleneck: unary gRPC calls over HTTP/2, written by hand, from one selector loop.

grpcio's Python client costs more processor time per call than etcd itself; on a small machine it would measure itself.
A call is two frames whose bytes hardly change, so they are made once: HEADERS (literals only, no HPACK table), DATA
(5 bytes of gRPC, one protobuf message). An answer is a HEADERS, a DATA and a HEADERS frame with END_STREAM; one without
a DATA frame is an error (gRPC sends the status alone then), and the measurement has failed.

Each client is a connection with `pipeline` calls under way, as redis-benchmark has it.
"""

from __future__ import annotations

import random
import selectors
import socket
import statistics
import struct
import time
from collections.abc import Callable
from typing import Final

from .load import Cell, Sample
from .processes import Failed

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
RUN_TIMEOUT_S: Final = 60.0
_HEADER = struct.Struct(">HBBBI")  # length as 2 + 1 bytes, type, flags, stream


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """One frame: 9 bytes of header, then the payload."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream) + payload


def header_block(path: str) -> bytes:
    """The request headers of a gRPC call: indexed and literal fields, nothing that needs a table to be read."""

    def literal(prefix: bytes, value: bytes) -> bytes:
        return prefix + bytes([len(value)]) + value

    return b"".join(
        (
            b"\x83\x86",  # :method POST, :scheme http
            literal(b"\x04", path.encode()),
            literal(b"\x01", b"etcd"),  # :authority
            literal(b"\x0f\x10", b"application/grpc"),  # content-type
            literal(b"\x00\x02te", b"trailers"),
        )
    )


def message(*fields: bytes) -> bytes:
    """A gRPC message whose protobuf fields 1, 2, ... are these bytes."""
    body = b""
    for number, value in enumerate(fields, 1):
        body += bytes([number << 3 | 2]) + _varint(len(value)) + value
    return b"\x00" + struct.pack(">I", len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


class Client:
    """One connection with a few calls under way."""

    def __init__(self, port: int, headers: bytes, next_message: Callable[[], bytes]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A large window for what comes: no further updates during a run.
        grown = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", (1 << 30)))
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, b"") + grown)
        self._headers = headers
        self._next_message = next_message
        self._stream = -1
        self._buffer = b""
        self._begun: dict[int, float] = {}
        self._answered: set[int] = set()
        self.latencies: list[float] = []

    def begin(self, calls: int) -> None:
        """Sends so many calls."""
        out = bytearray()
        for _ in range(calls):
            self._stream += 2
            out += frame(HEADERS, END_HEADERS, self._stream, self._headers)
            out += frame(DATA, END_STREAM, self._stream, self._next_message())
            self._begun[self._stream] = time.perf_counter()
        self.socket.sendall(out)

    def receive(self) -> int:
        """Reads what is there; how many calls have ended. Raises Failed for a call that failed."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise Failed("etcd closed the connection")
        buffer, place, ended = self._buffer + data, 0, 0
        while len(buffer) - place >= 9:
            high, low, kind, flags, stream = _HEADER.unpack_from(buffer, place)
            end = place + 9 + (high << 8 | low)
            if len(buffer) < end:
                break
            ended += self._frame(kind, flags, stream, buffer[place + 9 : end])
            place = end
        self._buffer = buffer[place:]
        return ended

    def _frame(self, kind: int, flags: int, stream: int, payload: bytes) -> int:
        if kind == DATA and payload:
            self._answered.add(stream)
        elif kind in (RST_STREAM, GOAWAY):
            raise Failed(f"etcd ended a call: {payload[-80:]!r}")
        elif kind == SETTINGS and not flags & ACK:
            self.socket.sendall(frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, 0, payload))
        if kind not in (DATA, HEADERS) or not flags & END_STREAM:
            return 0
        if stream not in self._answered:
            raise Failed("etcd answered a call with an error")
        self._answered.discard(stream)
        self.latencies.append(time.perf_counter() - self._begun.pop(stream))
        return 1


def run(port: int, cell: Cell, requests: int) -> Sample:
    """So many Put or Range calls from cell.clients connections; each keeps cell.pipeline calls under way."""
    chance, value = random.Random(1), b"x" * cell.value_bytes

    def key() -> bytes:
        return b"key:%012d" % chance.randrange(cell.keys)

    if cell.command == "SET":
        headers, next_message = header_block("/etcdserverpb.KV/Put"), lambda: message(key(), value)
    else:
        headers, next_message = header_block("/etcdserverpb.KV/Range"), lambda: message(key())
    clients = [Client(port, headers, next_message) for _ in range(cell.clients)]
    try:
        seconds = _drive(clients, cell.pipeline, requests)
    except (Failed, OSError) as error:
        return Sample(0.0, failure=str(error))
    finally:
        for client in clients:
            client.socket.close()
    latencies = sorted(latency * 1000 for client in clients for latency in client.latencies)
    cut = statistics.quantiles(latencies, n=100)
    return Sample(len(latencies) / seconds, cut[49], cut[94], cut[98], latencies[-1])


def _drive(clients: list[Client], pipeline: int, requests: int) -> float:
    """Calls until all have ended; the seconds that took. Raises Failed, OSError."""
    left = requests
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        for client in clients:
            selector.register(client.socket, selectors.EVENT_READ, client)
            client.begin(pipeline)
            left -= pipeline
        under_way = pipeline * len(clients)
        while under_way:
            for ready, _ in selector.select(timeout=30):
                client = ready.data
                ended = client.receive()
                again = min(ended, max(left, 0))
                if again:
                    client.begin(again)
                left -= again
                under_way += again - ended
            if time.perf_counter() - started > RUN_TIMEOUT_S:
                raise Failed(f"not done after {RUN_TIMEOUT_S:.0f} s")
        return time.perf_counter() - started
