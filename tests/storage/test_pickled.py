"""Pickles of plain data only: nothing is looked up, called or reserved on behalf of the bytes."""

from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftdb.storage.pickled import NotPlain, dumps, loads

plain = st.lists(
    st.lists(st.one_of(st.integers(-(2**70), 2**70), st.binary(max_size=300), st.floats(allow_nan=False)), max_size=5),
    max_size=5,
)


@given(plain)
def test_rows_read_back(rows):
    assert loads(dumps(rows)) == rows


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/owned",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Evil(), 5),
        pickle.dumps(Evil(), 0),
        pickle.dumps([os.system], 5),
        pickle.dumps({"a": 1}, 5),
        pickle.dumps({1, 2}, 5),
        pickle.dumps("text", 5),
        pickle.dumps(bytearray(b"x"), 5),
        pickle.dumps((1, 2), 5),
        b"\x80\x05P1\n.",  # persistent id
        b"\x80\x05]r\xff\xff\xff\xff.",  # a memo index that would reserve gigabytes
        b"\x80\x05B\xff\xff\xff\x7fxx.",  # a length beyond the end
        b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\xffxx.",
        b"\x80\x05].]",
        b"\x80\x05",
        b".",
        b"",
        b"\x80\x05e.",
        b"\x80\x05](e.K",
        b"\x80\xff].",
        b"\x80\x05h\x05.",
        b"\x80\x05C\x01xK\x01a.",  # APPEND to bytes
    ],
    ids=range(21),
)
def test_everything_else_is_refused(data):
    with pytest.raises(NotPlain):
        loads(data)


@given(st.binary(max_size=200), st.integers(0, 300), st.binary(max_size=20))
def test_arbitrary_bytes_take_no_memory(data, place, patch):
    good = dumps([[1, b"abc", 2.5], [3, b"x" * 300, b""]])
    broken = good[:place] + patch + good[place + len(patch) :]
    tracemalloc.start()
    try:
        for one in (data, b"\x80\x05" + data, broken):
            with contextlib.suppress(NotPlain):
                loads(one)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
