"""Mutated bytes against the RESP parser: `python -m tests.fuzz.resp --seconds 60 [--seed 1]`.

A round takes a stream of valid requests, lines, mistakes and noise, changes a few bytes, and feeds it whole, in random
pieces, and to the slow reference parser. The oracle: nothing escapes, an error is a ProtocolError, all three agree,
what is kept is bounded by what was sent, and time stays in proportion to the bytes. A failing stream is printed with
its seed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc

from raftdb.errors import ProtocolError
from raftdb.net.resp import AUTHENTICATED, UNAUTHENTICATED, Limits, Parser
from tests.net.respkit import command, reference, run

SMALL = Limits(args_max=8, bulk_bytes_max=24, inline_bytes_max=20, query_bytes_max=1000)
ALL_LIMITS = (AUTHENTICATED, AUTHENTICATED, UNAUTHENTICATED, SMALL)
SECONDS_PER_MEBIBYTE_MAX = 20.0  # the worst chunk measured takes 1.5
KEPT_BYTES_FACTOR = 20  # memory while parsing against bytes fed: a part of 2 bytes and its CRLF is an object of 48

TOKENS = [
    b"*", b"$", b"\r\n", b"\r", b"\n", b"0", b"1", b"3", b"-1", b"+5", b"1_000", b"16777217", b"1048577", b"9" * 40,
    b"*1\r\n", b"*3\r\n", b"$0\r\n\r\n", b"$3\r\nSET\r\n", b"$-1\r\n", b"+OK\r\n", b":5\r\n", b"%1\r\n", b"\0", b" ",
    b'"', b"'", b"\\x41", b"PING\r\n", b"POST / HTTP/1.1\r\n", b"Host: a\r\n", b"x" * 700, b"\xff\xfe",
]  # fmt: skip


def piece(chance: random.Random) -> bytes:
    """A request, a line, or a few tokens."""
    kind = chance.random()
    if kind < 0.5:
        size = chance.choice([0, 1, 3, 16, 30])
        return command(*[chance.randbytes(chance.randrange(size + 1)) for _ in range(chance.randrange(1, 12))])
    if kind < 0.6:
        return b" ".join(chance.choice(TOKENS) for _ in range(chance.randrange(4))) + b"\r\n"
    if kind < 0.9:
        return b"".join(chance.choice(TOKENS) for _ in range(chance.randrange(6)))
    return chance.randbytes(chance.randrange(60))


def mutated(chance: random.Random) -> bytes:
    """Some pieces, with some bytes changed, dropped, doubled or moved."""
    stream = bytearray(b"".join(piece(chance) for _ in range(chance.randrange(8))))
    for _ in range(chance.choice([0, 0, 1, 1, 2, 5])):
        if not stream:
            break
        at = chance.randrange(len(stream))
        match chance.randrange(4):
            case 0:
                stream[at] = chance.randrange(256)
            case 1:
                del stream[at : at + chance.randrange(1, 5)]
            case 2:
                stream[at:at] = chance.choice(TOKENS)
            case _:
                stream[at:at] = stream[chance.randrange(len(stream)) :][:20]
    return bytes(stream)


def check(stream: bytes, cuts: list[int], limits: Limits) -> str:
    """What is wrong with this stream; empty when nothing is."""
    spent_max = 0.05 + SECONDS_PER_MEBIBYTE_MAX * len(stream) / 2**20
    for _ in range(3):  # a collection of the whole process's garbage may fall into one of them
        start = time.thread_time()
        whole = run(stream, (), limits)
        pieces = run(stream, cuts, limits)
        spent = time.thread_time() - start
        if spent <= spent_max:
            break
    expected = reference(stream, limits)
    if whole != expected:
        return f"whole: {whole!r} is not {expected!r}"
    if pieces != expected:
        return f"in pieces {cuts}: {pieces!r} is not {expected!r}"
    if spent > spent_max:
        return f"took {spent:.3f} s for {len(stream)} bytes"
    return ""


def check_memory(chance: random.Random) -> str:
    """A large stream of small things may not cost much more memory than its bytes, whatever it promises."""
    unit = chance.choice([b"\r\n", b"a\n", b"*1\r\n$0\r\n\r\n", b"*1048576\r\n$16777216\r\n", mutated(chance) or b"x"])
    stream = unit * (200_000 // len(unit))
    parser = Parser(AUTHENTICATED)
    tracemalloc.start()
    commands = parser.feed(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if parser.error is not None and not isinstance(parser.error, ProtocolError):
        return f"error of type {type(parser.error)}"
    arguments = sum(map(len, commands))
    if peak > KEPT_BYTES_FACTOR * len(stream) + 120 * (arguments + len(commands)):
        return f"{peak} bytes of memory for {len(stream)} bytes of {unit[:40]!r}"
    return ""


def fuzz(seconds: float, seed: int) -> tuple[int, str]:
    """(streams tried, what went wrong or "")."""
    chance = random.Random(seed)
    end = time.monotonic() + seconds
    tried = 0
    while time.monotonic() < end:
        tried += 1
        stream = mutated(chance)
        cuts = [chance.randrange(len(stream) + 1) for _ in range(chance.randrange(6))]
        limits = chance.choice(ALL_LIMITS)
        wrong = check(stream, cuts, limits)
        if not wrong and tried % 2_000 == 0:
            wrong = check_memory(chance)
        if wrong:
            return tried, f"{wrong}\nstream {tried} of seed {seed}, {limits}:\n{stream!r}"
    return tried, ""


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 when something was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None, help="default: of the clock, printed")
    options = parser.parse_args(argv)
    seed = options.seed if options.seed is not None else time.time_ns() & 0xFFFF_FFFF
    tried, wrong = fuzz(options.seconds, seed)
    if wrong:
        print(wrong)
        return 1
    print(f"resp: {tried} streams in {options.seconds:.0f} s, seed {seed}: nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
