"""Redis' glob patterns (KEYS, SCAN MATCH, ...), matched in linear time.

    *        any bytes, also none          [abc]  one of these; [^abc] none of these; [a-c] a range, in either order
    ?        one byte                      \\x     the byte x itself

Redis' own matcher tries every length for every `*` and so needs exponential time for `a*a*a*a*b`. Here a pattern is
translated into a regular expression in which whatever follows a `*` is an atomic group: once the text up to the next
`*` has been found at its first place, no later place can do better, so nothing is ever tried again.

Oddities kept: a class that is not closed ends with the pattern, a backslash at the very end is itself, `[^]` matches
any byte and `[]` none.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from ..errors import CommandError

PATTERN_BYTES_MAX: Final = 4096
TOO_LONG: Final = f"ERR pattern is longer than {PATTERN_BYTES_MAX} bytes"
SPECIAL: Final = frozenset(b"*?[\\")

Match = Callable[[bytes], object]


def matcher(pattern: bytes) -> Match:
    """A function that tells whether a name matches (truthy) or not. Raises CommandError for a pattern too long."""
    if len(pattern) > PATTERN_BYTES_MAX:
        raise CommandError(TOO_LONG)
    return _compiled(pattern)


def literal(pattern: bytes) -> bytes | None:
    """The one name that this pattern matches, if it has no special byte."""
    return None if SPECIAL.intersection(pattern) else pattern


@lru_cache(maxsize=64)
def _compiled(pattern: bytes) -> Match:
    return re.compile(translate(pattern), re.DOTALL).fullmatch


def translate(pattern: bytes) -> bytes:
    """The regular expression of a glob pattern."""
    pieces: list[bytes] = []  # between the stars
    piece: list[bytes] = []
    at, end = 0, len(pattern)
    while at < end:
        byte = pattern[at : at + 1]
        at += 1
        if byte == b"*":
            pieces.append(b"".join(piece))
            piece = []
        elif byte == b"?":
            piece.append(b".")
        elif byte == b"[":
            text, at = _class(pattern, at)
            piece.append(text)
        else:
            if byte == b"\\" and at < end:
                byte = pattern[at : at + 1]
                at += 1
            piece.append(re.escape(byte))
    pieces.append(b"".join(piece))
    return _join(pieces)


def _join(pieces: list[bytes]) -> bytes:
    if len(pieces) == 1:
        return pieces[0]
    middle = [b"(?>.*?%b)" % piece for piece in pieces[1:-1] if piece]
    return pieces[0] + b"".join(middle) + b".*" + pieces[-1]


def _class(pattern: bytes, at: int) -> tuple[bytes, int]:
    """A class from behind its `[`; returns its expression and the place behind its `]`."""
    end = len(pattern)
    negated = at < end and pattern[at] == 0x5E
    if negated:
        at += 1
    members: set[int] = set()
    while at < end:
        byte = pattern[at]
        if byte == 0x5C and at + 1 < end:
            members.add(pattern[at + 1])
            at += 2
        elif byte == 0x5D:
            at += 1
            break
        elif at + 2 < end and pattern[at + 1] == 0x2D:
            low, high = sorted((byte, pattern[at + 2]))
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(byte)
            at += 1
    if negated:
        members = set(range(256)) - members
    if not members:
        return b"(?!)", at
    return b"[" + b"".join(b"\\x%02x" % member for member in sorted(members)) + b"]", at
