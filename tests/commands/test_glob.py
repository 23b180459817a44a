"""Patterns against Redis' own algorithm, written down naively; and no pattern takes more than linear time."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raftdb.commands.glob import PATTERN_BYTES_MAX, literal, matcher
from raftdb.errors import CommandError

STAR, MARK, OPEN, CLOSE, CARET, BACKSLASH, DASH = b"*?[]^\\-"


def naive(pattern: bytes, name: bytes) -> bool:
    """Every length is tried for every star."""
    while pattern and name:
        first = pattern[0]
        if first == STAR:
            rest = pattern[1:]
            return any(naive(rest, name[skipped:]) for skipped in range(len(name) + 1))
        if first == MARK:
            pattern = pattern[1:]
        elif first == OPEN:
            matched, pattern = naive_class(pattern[1:], name[0])
            if not matched:
                return False
        else:
            if first == BACKSLASH and len(pattern) >= 2:
                pattern = pattern[1:]
            if pattern[0] != name[0]:
                return False
            pattern = pattern[1:]
        name = name[1:]
    return not name and not pattern.strip(b"*")


def naive_class(rest: bytes, byte: int) -> tuple[bool, bytes]:
    """`rest` begins behind the bracket. Does the class hold the byte, and what follows it?"""
    negated = rest[:1] == b"^"
    rest = rest[1:] if negated else rest
    matched = False
    while rest:
        if rest[0] == BACKSLASH and len(rest) >= 2:
            matched |= rest[1] == byte
            rest = rest[2:]
        elif rest[0] == CLOSE:
            return matched != negated, rest[1:]
        elif len(rest) >= 3 and rest[1] == DASH:
            low, high = sorted((rest[0], rest[2]))
            matched |= low <= byte <= high
            rest = rest[3:]
        else:
            matched |= rest[0] == byte
            rest = rest[1:]
    return matched != negated, rest


letters = st.text("ab*?[]^-\\c\n\0", max_size=9).map(str.encode)
names = st.text("abc]-^\\\n\0", max_size=8).map(str.encode)


@given(letters, names)
@example(b"[", b"a")
@example(b"[a", b"a")
@example(b"[^", b"a")
@example(b"[]", b"")
@example(b"a\\", b"a\\")
@example(b"[b-a]", b"a")
@example(b"[a-]", b"-")
@example(b"**a*", b"bab")
@example(b"*[", b"[")
def test_patterns_match_as_in_redis(pattern, name):
    assert bool(matcher(pattern)(name)) is naive(pattern, name)


def test_a_pattern_that_kills_backtracking_matchers_is_harmless():
    begun = time.thread_time()
    assert not matcher(b"a*" * 1_000 + b"b")(b"a" * 20_000)
    assert not matcher(b"*a?" * 300 + b"!")(b"a" * 5_000)
    assert time.thread_time() - begun < 5  # seconds; a backtracking matcher would need longer than the universe has


def test_the_length_is_limited():
    matcher(b"a" * PATTERN_BYTES_MAX)
    with pytest.raises(CommandError, match="longer than"):
        matcher(b"a" * (PATTERN_BYTES_MAX + 1))


def test_a_pattern_without_special_bytes_is_a_name():
    assert literal(b"plain") == b"plain"
    assert [literal(pattern) for pattern in (b"a*", b"?", b"[a]", b"\\a")] == [None] * 4
