"""What a message costs, in us of processor time: `python -m tests.net.bench_wire`. Target: an ack below 5."""

from __future__ import annotations

import os
import time
import timeit
from typing import Any

from raftdb.consensus.messages import Append, AppendReply, Heartbeat, HeartbeatReply
from raftdb.net.wire import Codec, Forward, FrameReader, FrameWriter
from raftdb.types import Entry

KEY = os.urandom(32)
REPEATS = 5


def entry(size: int) -> Entry:
    return Entry(123_456, 7, 1, 1_795_445_852_339, 2**60, os.urandom(size), 2**31)


def measure(message: Any, count: int) -> tuple[float, float, int]:
    """(encode + seal, open + decode, bytes of the frame); microseconds, the best of some runs."""
    codec, writer = Codec(), FrameWriter(KEY)

    def encode() -> bytes:
        out: list[Any] = []
        writer.write(out, *codec.dump(message))
        return b"".join(out)

    encode_us = min(timeit.repeat(encode, timer=time.process_time, number=count, repeat=REPEATS)) / count * 1e6
    fresh = FrameWriter(KEY)
    frames = [fresh.frame(*codec.dump(message)) for _ in range(count)]
    decode_us = float("inf")
    for _ in range(REPEATS):
        reader = FrameReader(KEY)
        start_s = time.process_time()
        for frame in frames:
            for item in reader.feed(frame):
                codec.load(*item)
        decode_us = min(decode_us, (time.process_time() - start_s) / count * 1e6)
    return encode_us, decode_us, len(frames[0])


def main() -> None:
    rows = {
        "AppendReply (ack)": AppendReply(7, True, 123_456, 0, 0),
        "Heartbeat": Heartbeat(7, 123_456, 123_456, 1_795_445_852_339, 12),
        "HeartbeatReply": HeartbeatReply(7, 123_456, 123_456, 1_795_445_852_339),
        "Append, 1 entry of 100 B": Append(7, 123_455, 7, 2**40, 123_450, (entry(100),)),
        "Append, 1 entry of 10 KiB": Append(7, 123_455, 7, 2**40, 123_450, (entry(10 * 1024),)),
        "Append, 1 entry of 60 KiB": Append(7, 123_455, 7, 2**40, 123_450, (entry(60 * 1024),)),
        "Forward of 500 B": Forward(7, 7, b"context", os.urandom(500)),
    }
    print(f"{'message':28} {'out':>8} {'in':>8} {'sum':>8}   frame")
    for name, message in rows.items():
        out_us, in_us, size = measure(message, 2_000 if size_of(message) > 1_000 else 20_000)
        print(f"{name:28} {out_us:8.2f} {in_us:8.2f} {out_us + in_us:8.2f}   {size} bytes")


def size_of(message: Any) -> int:
    return len(Codec().dump(message)[1])


if __name__ == "__main__":
    main()
