"""Pickle protocol 5 for rows of plain data, for people who want to read a checkpoint with Python's own tools.

Reading executes nothing: before the unpickler sees the bytes, a walk over the opcodes admits lists, integers, bytes,
doubles and None only (no globals, no reduce, no persistent ids, no memo index chosen by the file, which could reserve
gigabytes), and `find_class` refuses everything besides. Only files that an operator names are ever read this way; a
peer's snapshot must be msgpack.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Final

_FIXED: Final = {  # opcode -> bytes of its argument
    0x80: 1,  # PROTO
    0x95: 8,  # FRAME
    0x94: 0,  # MEMOIZE
    ord("]"): 0,  # EMPTY_LIST
    ord("("): 0,  # MARK
    ord("a"): 0,  # APPEND
    ord("e"): 0,  # APPENDS
    ord("N"): 0,  # NONE
    ord("K"): 1,  # BININT1
    ord("M"): 2,  # BININT2
    ord("J"): 4,  # BININT
    ord("G"): 8,  # BINFLOAT
    ord("h"): 1,  # BINGET
    ord("j"): 4,  # LONG_BINGET
    ord("."): 0,  # STOP
}
_COUNTED: Final = {  # opcode -> bytes of the length that stands before its argument
    0x8A: 1,  # LONG1
    ord("C"): 1,  # SHORT_BINBYTES
    ord("B"): 4,  # BINBYTES
    0x8E: 8,  # BINBYTES8
}


_BAD_PICKLE: Final = (
    *(pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, ArithmeticError),
    AttributeError,  # APPEND to something that is no list
)


class NotPlain(ValueError):
    """The bytes are not a pickle of plain data."""


def dumps(rows: list[Any]) -> bytes:
    return pickle.dumps(rows, protocol=5)


def loads(data: bytes) -> Any:
    """Raises NotPlain."""
    _admit(data)
    try:
        return _Plain(io.BytesIO(data)).load()
    except _BAD_PICKLE as error:
        raise NotPlain(f"{type(error).__name__} in a pickle") from None


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise NotPlain("a pickle asks for a class")

    def persistent_load(self, pid: Any) -> Any:
        raise NotPlain("a pickle asks for a persistent object")


def _admit(data: bytes) -> None:
    place, end = 0, len(data)
    while place < end:
        opcode = data[place]
        place += 1
        if opcode in _FIXED:
            place += _FIXED[opcode]
            if opcode == 0x2E:  # STOP
                break
        elif opcode in _COUNTED:
            width = _COUNTED[opcode]
            place += width + int.from_bytes(data[place : place + width], "little")
        else:
            raise NotPlain(f"opcode {opcode:#04x} of a pickle is not one of plain data")
    if place != end:
        raise NotPlain("a pickle does not end where it says")
