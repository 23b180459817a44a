"""Hostile bytes against everything that peers' bytes reach: `python -m tests.fuzz.wire --seconds 60 [--seed 1]`.

Four targets, taken in turn: the decoder of each message type (mutated payloads of valid messages, and msgpack made of
hostile tokens), the frames (mutated streams, in pieces), frames with a good seal and a bad payload, and the handshake.
The oracle: only PeerError escapes; what is decoded encodes to a message that decodes to the same and passes the gateway
of the core; messages of an altered stream are a prefix of those that were sent; memory stays within a multiple of the
input. Every failing input is printed with its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack

from raftdb.consensus import messages
from raftdb.errors import PeerError
from raftdb.net import wire
from raftdb.net.handshake import Handshake, Side, State, cluster_key
from raftdb.net.schema import ARRAY_ITEMS_MAX
from raftdb.net.wire import TYPES, Codec, FrameReader, FrameWriter
from raftdb.types import Entry, Member, Membership, NodeRef, SnapshotMeta

KEY = cluster_key(b"a secret for the fuzzer")
SEAL = b"s" * 32
MEMORY_FACTOR = 64  # of decoded objects against bytes: a one-byte number takes up to 40 with its place in a tuple
#: Lengths that are announced and not kept: msgpack makes an array of that many places per level, at most 1,024 levels.
MEMORY_FLOOR_BYTES = 1_100 * 8 * ARRAY_ITEMS_MAX

MEMBERS = Membership(3, (Member("n1", 5, "a:1", "a:2", True), Member("n2", 2**64 - 1, "b:1", "b:2", False)))
META = SnapshotMeta("raft_n1_1_9.dat", 9, 3, 2**64 - 1, 1_700_000_000_000, MEMBERS, 10_000, b"d" * 32)
ENTRIES = tuple(Entry(i, 3, i % 4, 1_700_000_000_000, 2**64 - 1, bytes(i % 50), 7) for i in range(1, 30))
VALID: list[Any] = [
    wire.Identity("c", "n1", 5, 1, 2**64 - 1, 9, 3, b"table", "a:1", "a:2", ("b:2", "c:2"), "raftdb"),
    wire.Accept(5),
    wire.Refuse(wire.Reason.REMOVED, "text"),
    wire.Ping(1, 2),
    wire.Forward(1, 3, b"context", b"payload"),
    wire.ForwardReply(1, True, 9, b"payload"),
    wire.ChunkRequest(META.name, META.digest, 0, 1000),
    wire.ChunkReply(META.name, META.digest, 0, bytes(1000), ""),
    wire.JoinReply(True, "", "c", "a:2", MEMBERS),
    wire.Hint(3, NodeRef("n1", 5), "a:1", "a:2"),
    wire.Hint(3, None, "", ""),
    wire.FormProposal("c", MEMBERS.members),
    messages.Append(3, 0, 0, 2**64 - 1, 0, ENTRIES),
    messages.Append(3, 9, 3, 0, 9, ()),
    messages.AppendReply(3, True, 9, 0, 0),
    messages.Heartbeat(3, 1, 9, 1_700_000_000_000, None),
    messages.SnapshotOffer(3, META),
    messages.ReadReply(3, 2**64 - 1, 9),
]
TOKENS = [
    b"\x90", b"\x91", b"\x92", b"\x9f", b"\xdc\xff\xff", b"\xdc\x10\x00", b"\xdd\xff\xff\xff\xff",
    b"\xdd\x00\x00\x10\x00",
    b"\x80", b"\x81\x01\x01", b"\xde\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc0", b"\xc1", b"\xc2", b"\xc3",
    b"\xc4\x00", b"\xc4\xff", b"\xc5\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc6\x04\x00\x00\x00", b"\xa0", b"\xa1x",
    b"\xa1\xff",
    b"\xd9\xff", b"\xda\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x00", b"\x7f", b"\xff", b"\xcc\xff", b"\xcd\xff\xff",
    b"\xcf" + b"\xff" * 8, b"\xcf\x40" + bytes(7), b"\xd3\x80" + bytes(7), b"\xd0\xff", b"\xca\x7f\xc0\x00\x00",
    b"\xcb" + bytes(8), b"\xd4\x05x", b"\xd6\xff" + bytes(4), b"\xc7\x0c\xff" + bytes(12), b"\xc9\xff\xff\xff\xff\x05",
    b"\x91" * 100, b"\x91" * 2_000, b"\x9f" + b"\x90" * 15, b"\x95\x01\xc3\x01\x01\x01",
]  # fmt: skip


SCALARS = [0, 1, -1, 2**62, 2**64 - 1, -(2**63), True, None, 1.5, "", "n1", b"", b"d" * 32, "x" * 600]


def mutated(chance: random.Random, data: bytes) -> bytes:
    """Some bytes changed, dropped, doubled, moved, or hostile tokens put in."""
    stream = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 1, 2, 4])):
        at = chance.randrange(len(stream) + 1)
        match chance.randrange(5):
            case 0 if at < len(stream):
                stream[at] ^= 1 << chance.randrange(8)
            case 1:
                del stream[at : at + chance.randrange(1, 9)]
            case 2:
                stream[at:at] = chance.choice(TOKENS)
            case 3:
                stream[at : at + 1] = chance.choice(TOKENS)
            case _:
                start = chance.randrange(len(stream) + 1)
                stream[at:at] = stream[start : start + 30]
    return bytes(stream)


def payload(chance: random.Random) -> tuple[int, bytes]:
    """A message type, and bytes for it that are often nearly right."""
    code, data = Codec().dump(chance.choice(VALID))
    kind = chance.random()
    if kind < 0.6:
        return code, mutated(chance, data)
    code = chance.choice(sorted(TYPES))
    if kind < 0.8:
        return code, b"".join(chance.choice(TOKENS) for _ in range(chance.randrange(12)))
    if kind < 0.95:
        return code, msgpack.packb(nested(chance, 4))
    return code, chance.randbytes(chance.randrange(100))


def nested(chance: random.Random, depth: int) -> Any:
    """Arrays of the kinds of values that messages hold."""
    if depth == 0 or chance.random() < 0.3:
        return chance.choice(
            [0, 1, -1, 2**62, 2**64 - 1, -(2**63), True, None, 1.5, "", "n1", b"", b"d" * 32, "x" * 600]
        )
    return [nested(chance, depth - 1) for _ in range(chance.randrange(9))]


# --- targets: each gives what is wrong, "" when nothing is -----------------------------------------------------------


def try_message(chance: random.Random) -> tuple[str, bytes]:
    code, data = payload(chance)
    try:
        message = Codec().load(code, data)
    except PeerError:
        return "", data
    if type(message) is not TYPES[code].cls:
        return f"type {code} became {type(message)}", data
    if Codec().load(*Codec().dump(message)) != message:
        return f"{message!r} does not survive the way", data
    if TYPES[code].consensus:
        try:
            messages.check(message)
        except PeerError as error:
            return f"passed here and not at the gateway of the core: {error}", data
    return "", data


def try_frames(chance: random.Random) -> tuple[str, bytes]:
    """A stream that was altered gives a prefix of what was sent, or an error."""
    codec, writer = Codec(), FrameWriter(SEAL)
    sent = [codec.dump(chance.choice(VALID)) for _ in range(chance.randrange(1, 5))]
    clean = b"".join(writer.frame(*item) for item in sent)
    stream = mutated(chance, clean)
    reader = FrameReader(SEAL)
    got: list[Any] = []
    cuts = sorted(chance.randrange(len(stream) + 1) for _ in range(chance.randrange(6)))
    try:
        for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            got += reader.feed(stream[start:stop])
    except PeerError:
        pass
    if got != sent[: len(got)]:
        return "messages that were never sent", stream
    if reader.buffered_bytes > len(stream):
        return f"{reader.buffered_bytes} bytes kept of {len(stream)}", stream
    return "", stream


def try_sealed(chance: random.Random) -> tuple[str, bytes]:
    """Somebody who knows the secret and sends nonsense: types, flags, fragments and payloads at will."""
    codec, writer, reader = Codec(), FrameWriter(SEAL), FrameReader(SEAL)
    stream = b""
    for _ in range(chance.randrange(1, 6)):
        code, data = payload(chance)
        flags = chance.choice([0, 0, 1, 3, 3, chance.randrange(256)])
        stream += writer.frame(chance.choice([code, code, chance.randrange(256)]), data, flags)
    try:
        for code, data in reader.feed(stream):
            codec.load(code, data)
    except PeerError:
        pass
    return "", stream


def try_handshake(chance: random.Random) -> tuple[str, bytes]:
    """Nobody comes through with altered words; and both sides of an unaltered handshake always do."""
    dialer = Handshake(Side.DIALER, KEY, "n1", chance.randbytes(32))
    acceptor = Handshake(Side.ACCEPTOR, KEY, "n2", chance.randbytes(32))
    words = b""
    altered = False
    try:
        data, sides = dialer.start(), (acceptor, dialer)
        for turn in range(4):
            said = mutated(chance, data) if chance.random() < 0.3 else data
            # What stands behind a proof belongs to the frames already.
            altered = altered or (said != data if turn < 2 else said[: len(data)] != data)
            words += said
            data = sides[turn % 2].receive(said)
    except PeerError:
        return ("" if altered else "an unaltered handshake failed"), words
    done = acceptor.state is State.DONE and dialer.state is State.DONE
    if done == altered:
        return f"done: {done}, altered: {altered}", words
    return "", words


def try_memory(chance: random.Random) -> tuple[str, bytes]:
    """Large hostile payloads: what msgpack makes of them before anybody can look is bounded."""
    unit = b"".join(chance.choice(TOKENS) for _ in range(chance.randrange(1, 4)))
    size = chance.choice([60_000, 300_000, 1_000_000])
    head = chance.choice([b"", b"\xdc\x10\x00", b"\x96\x01\x01\x01\x01\x01\xdc\x10\x00", b"\xdd\x00\x00\x10\x00" * 3])
    data = head + unit * (size // len(unit))
    tracemalloc.start()
    with contextlib.suppress(PeerError):
        Codec().load(chance.choice([16, 64]), data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    small = min(len(data), 64 * 1024)
    if peak > len(data) + MEMORY_FACTOR * small + MEMORY_FLOOR_BYTES:
        return f"{peak} bytes of memory for {len(data)} bytes of {unit[:40]!r}", data[:200]
    return "", data


TARGETS: list[Callable[[random.Random], tuple[str, bytes]]] = [try_message, try_frames, try_sealed, try_handshake]


def fuzz(seconds: float, seed: int) -> tuple[int, str]:
    """(inputs tried, what went wrong or "")."""
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        tried += 1
        chance = random.Random(f"{seed}/{tried}")
        target = try_memory if tried % 2_000 == 0 else TARGETS[tried % len(TARGETS)]
        data = b""
        try:
            wrong, data = target(chance)
        except Exception as error:
            wrong = f"{type(error).__name__} escaped: {error}"
        if wrong:
            return tried, f"{wrong}\n{target.__name__}, input {tried} of seed {seed}:\n{data!r}"
    return tried, ""


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 when something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: of the clock, printed")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else time.time_ns() % 2**32
    tried, wrong = fuzz(options.seconds, seed)
    print(f"fuzz wire: {tried} inputs of seed {seed}: {wrong or 'only PeerError escapes'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
