"""A strict msgpack codec that is derived from the field annotations of NamedTuples.

What the annotation says is all that is accepted: a message is one msgpack array with exactly its fields in their
order, nested NamedTuples and `tuple[X, ...]` are arrays again. No maps, no ext types, no floats, nothing behind it.

    annotation       on the wire                            accepted
    int              int                                    0 <= n < 2**64; terms, indexes, times (by name): < 2**62
    bool, None       bool, nil                              as they are (a bool is no int)
    str              str                                    UTF-8, at most STR_BYTES_MAX bytes
    bytes            bin                                    up to the limit of the message
    X | None         X or nil
    NamedTuple       array                                  exactly its fields
    tuple[X, ...]    array                                  at most ARRAY_ITEMS_MAX items
    Enum             its value

Why not check field by field: most fields are scalars, and one `tuple(map(type, raw)) in shapes` checks the types of all
of them in C. What is left (ranges, nesting, enums) is done by small closures that are made once per class. A reply of
eight numbers costs about 1 us to encode and decode.

Memory: msgpack makes Python objects before anybody looks at them, and hostile bytes can ask for 50 times their own
size (arrays of arrays), or for room that they never fill (16 MiB for 1,024 open arrays of ARRAY_ITEMS_MAX). Array
lengths are bounded before the items are read, and in messages over 64 KiB a hook counts the items of finished arrays
and gives up at OBJECTS_MAX. Only who knows the cluster's secret gets here at all.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from enum import Enum
from functools import partial
from itertools import product
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from raftdb.errors import PeerError

ARRAY_ITEMS_MAX: Final = 2_048  # an Append holds at most 1,024 entries
STR_BYTES_MAX: Final = 2_048
OBJECTS_MAX: Final = 10 * ARRAY_ITEMS_MAX
#: Below this size the items need not be counted: 50 times as much is still little.
UNCOUNTED_BYTES_MAX: Final = 64 * 1024
#: msgpack's packer never gives its buffer back; after a message of this size a new one is taken.
PACKER_BYTES_MAX: Final = 1024 * 1024
INT_MAX: Final = 2**64 - 1
INDEX_MAX: Final = 2**62 - 1
#: Names that end like this are counts, places or times; the others may use all 64 bits (seeds, checksums, draws).
INDEX_SUFFIXES: Final = (
    *("term", "index", "commit", "last", "first", "starts", "applied", "round"),
    *("stamp", "_ms", "_us", "_bytes", "offset", "length"),
)
#: The exceptions: (least, most).
RANGES: Final[dict[str, tuple[int, int]]] = {"kind": (0, 255)}

M = TypeVar("M", bound=NamedTuple)
Raw = tuple[Any, ...]
#: Gives the checked value (maybe another object) or raises PeerError.
Convert = Callable[[Any], Any]


class Field(NamedTuple):
    """What one annotation comes to."""

    types: frozenset[type]  # of the raw value
    convert: Convert | None  # None: nothing more to check than the type
    plain_int: bool  # only a range to check: done for all such fields at once


# --- decoding -------------------------------------------------------------------------------------------------------


def decoder(cls: type[M]) -> Callable[[Raw], M]:
    """Makes the checking constructor of a NamedTuple class: raw msgpack array -> message, or PeerError."""
    hints = get_type_hints(cls)
    names = cls._fields
    fields = [_field(hints[name], name) for name in names]
    shapes = frozenset(product(*(sorted(f.types, key=repr) for f in fields)))
    converts = [(i, f.convert) for i, f in enumerate(fields) if f.convert is not None]
    ints = [i for i, f in enumerate(fields) if f.plain_int]
    narrow = [i for i in ints if names[i].endswith(INDEX_SUFFIXES)]
    lowest, highest = _picker(ints), _picker(narrow)
    name, make = cls.__name__, partial(tuple.__new__, cls)  # cls._make would count the fields again

    def decode_plain(raw: Raw) -> M:
        if type(raw) is not tuple or tuple(map(type, raw)) not in shapes:
            raise PeerError(f"{name}: wrong fields")
        if min(lowest(raw)) < 0 or max(highest(raw)) > INDEX_MAX:
            raise PeerError(f"{name}: number out of range")
        return make(raw)

    def decode_numbers(raw: Raw) -> M:
        """All fields are indexes and flags (most replies): no field needs to be picked out."""
        if type(raw) is not tuple or tuple(map(type, raw)) not in shapes:
            raise PeerError(f"{name}: wrong fields")
        if min(raw) < 0 or max(raw) > INDEX_MAX:
            raise PeerError(f"{name}: number out of range")
        return make(raw)

    def decode_nested(raw: Raw) -> M:
        values = list(decode_plain(raw))
        for i, convert in converts:
            values[i] = convert(values[i])
        return make(values)

    if converts:
        return decode_nested
    only_numbers = ints == narrow and all(f.plain_int or f.types == {bool} for f in fields)
    return decode_numbers if only_numbers else decode_plain


def _picker(places: list[int]) -> Callable[[Raw], Raw]:
    """Something that takes these fields out as a tuple that is not empty."""
    if not places:
        return lambda raw: (0,)
    if len(places) == 1:
        return itemgetter(slice(places[0], places[0] + 1))
    return itemgetter(*places)


def _field(hint: Any, name: str) -> Field:
    """What to do for one annotation.

    Raises TypeError (at import, never on input) for an annotation that has no place on the wire.
    """
    if hint is int:
        special = name in RANGES
        return Field(frozenset({int}), _int_range(name) if special else None, not special)
    if hint in (bool, str, bytes, types.NoneType):
        return Field(frozenset({hint}), None, False)
    if get_origin(hint) in (Union, types.UnionType):
        return _optional(hint, name)
    if get_origin(hint) is tuple:
        return Field(frozenset({tuple}), _array(hint, name), False)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint, name)
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return Field(frozenset({tuple}), decoder(hint), False)
    raise TypeError(f"no wire form for {name}: {hint}")


def _optional(hint: Any, name: str) -> Field:
    inner = [arg for arg in get_args(hint) if arg is not types.NoneType]
    if len(inner) != 1:
        raise TypeError(f"no wire form for {name}: {hint}")
    field = _field(inner[0], name)
    convert = _int_range(name) if field.plain_int else field.convert
    either = field.types | {types.NoneType}
    if convert is None:
        return Field(either, None, False)
    return Field(either, lambda value: None if value is None else convert(value), False)


def _int_range(name: str) -> Convert:
    least, most = RANGES.get(name, (0, INDEX_MAX if name.endswith(INDEX_SUFFIXES) else INT_MAX))

    def convert(value: Any) -> Any:
        if not least <= value <= most:
            raise PeerError(f"{name}: number out of range")
        return value

    return convert


def _array(hint: Any, name: str) -> Convert:
    args = get_args(hint)
    if len(args) != 2 or args[1] is not Ellipsis:
        raise TypeError(f"no wire form for {name}: {hint}")
    field = _field(args[0], name)
    convert = _int_range(name) if field.plain_int else field.convert
    allowed = field.types

    def items(value: Any) -> Any:
        if not allowed.issuperset(map(type, value)):
            raise PeerError(f"{name}: wrong items")
        return value if convert is None else tuple(map(convert, value))

    return items


def _enum(hint: type[Enum], name: str) -> Field:
    members = {member.value: member for member in hint}

    def convert(value: Any) -> Any:
        try:
            return members[value]
        except KeyError:
            raise PeerError(f"{name}: unknown value") from None

    return Field(frozenset(type(value) for value in members), convert, False)


def unpack(payload: bytes | bytearray, bytes_max: int) -> Any:
    """One msgpack value without maps, floats' tricks or ext types, with bounded lengths; arrays become tuples.

    Raises PeerError for anything else, trailing bytes included.
    """
    hook = None if len(payload) <= UNCOUNTED_BYTES_MAX else _Counter()
    try:
        return msgpack.unpackb(
            payload,
            use_list=False,
            raw=False,
            strict_map_key=True,
            list_hook=hook,
            ext_hook=_no_ext,
            max_array_len=min(ARRAY_ITEMS_MAX, len(payload)),
            max_map_len=0,
            max_ext_len=0,
            max_str_len=STR_BYTES_MAX,
            max_bin_len=bytes_max,
        )
    except PeerError:
        raise
    except (ValueError, msgpack.UnpackException, OverflowError, RecursionError) as error:
        # msgpack's texts hold lengths and type names, never bytes of the message.
        raise PeerError(f"malformed message ({type(error).__name__})") from None


class _Counter:
    """Gives up when more objects were made than any real message holds. Called for each finished array."""

    __slots__ = ("objects",)

    def __init__(self) -> None:
        self.objects = 0

    def __call__(self, items: Any) -> Any:
        self.objects += 1 + len(items)
        if self.objects > OBJECTS_MAX:
            raise PeerError("malformed message (too many items)")
        return items


def _no_ext(code: int, data: bytes) -> Any:
    raise PeerError("malformed message (ext type)")


# --- encoding -------------------------------------------------------------------------------------------------------


class Encoder:
    """Packs messages; owned by one thread. NamedTuples are tuples to msgpack, so nothing is converted but enums."""

    __slots__ = ("_pack",)

    def __init__(self) -> None:
        self._pack = _new_pack()

    def encode(self, message: tuple[Any, ...]) -> bytes:
        data: bytes = self._pack(message)
        if len(data) > PACKER_BYTES_MAX:
            self._pack = _new_pack()
        return data


def _new_pack() -> Callable[[Any], bytes]:
    pack: Callable[[Any], bytes] = msgpack.Packer(default=_enum_value, use_bin_type=True).pack
    return pack


def _enum_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"no wire form for {type(value).__name__}")
