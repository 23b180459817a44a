"""How a list lies in the store: labels with room between them, and an index of what is irregular.

Every element has a *label*, a signed integer; the elements lie in the order of their labels. Pushing takes the next
multiple of STRIDE, so a list that has only been pushed to and popped from is *regular*: the element of rank r has the
label first + r * STRIDE, and no index is needed. That is nearly every list there is.

LREM and LINSERT do not move the other elements. Removing leaves a hole; inserting takes a label between its neighbours.
Where there is none left, the labels of a small neighbourhood are spread anew (Bender, Cole, Demaine, Farach-Colton,
Zito: Two simplified algorithms for maintaining order in a list, 2002): the smallest aligned range of 2**k labels that
is less dense than (1/SPREAD)**k, so that an insertion costs O(log n) moves, amortised, wherever the others go.

Such a list is *irregular* (head.form is HOLES or INSERTED). To find a rank in it there is an index over *slots*, a slot
being STRIDE labels, which in a regular list hold one element. A node counts by how much the elements in its slots
exceed the number of slots (a hole: -1; one inserted: +1); a node that is missing counts 0, so untouched parts cost
nothing.

    level 0     1 slot per node          level 2     65,536 slots per node
    level 1   256 slots per node         level 3     16,777,216 slots per node

Finding a rank walks down the levels, over at most 256 nodes each, and then over one slot's elements. The nodes are
items of the collection too, at positions from 2**62 on, where no label ever is.

Invariants: first and last are labels of elements; nodes exist only for slots from first's to last's; the sum of level 3
plus the number of these slots is count. A regular list has no nodes; a list that only has holes is regular again when
they have been popped away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from ..errors import Bug, CommandError
from ..storage.keys import LIST
from ..storage.kv import Batch, Head
from .context import Context

STRIDE_BITS: Final = 10
STRIDE: Final = 1 << STRIDE_BITS
LABEL_MAX: Final = 1 << 61  # of either sign: enough for 2**51 pushes
LEVELS: Final = 4
LEVEL_BITS: Final = 8
INDEX_BASE: Final = 1 << 62
LEVEL_ROOM_BITS: Final = 54
PREFIX_BIAS: Final = 1 << 53
SPREAD: Final = 1.1  # greater: fewer moves per insertion, but less room
REGULAR: Final = 0
HOLES: Final = 1  # irregular, but every label is the first of its slot
INSERTED: Final = 2
HOLES_MIN: Final = 64  # fewer never cause a list to be written anew


class List:
    """A key that holds a list, or nothing. Changes are kept by `save()`, once per command."""

    __slots__ = ("collection", "count", "ctx", "expiry_ms", "first", "form", "last", "name")

    def __init__(self, ctx: Context, name: bytes) -> None:
        self.ctx = ctx
        self.name = name
        self.count = -1  # not looked at yet: a wrong type is an error of the handler's first access

    def load(self) -> List:
        """Read the head, once. Raises CommandError (WRONGTYPE)."""
        if self.count < 0:
            head = self.ctx.head_of(self.name, LIST)
            self._adopt(head or Head(LIST, 0, 0))
        return self

    def _adopt(self, head: Head) -> None:
        self.collection = head.collection
        self.count = head.count
        self.first = head.first
        self.last = head.last
        self.form = head.form
        self.expiry_ms = head.expiry_ms

    def __len__(self) -> int:
        return self.load().count

    def save(self) -> None:
        """Write the head; the key goes with its last element."""
        batch = self.ctx.writing()
        if not self.count:
            batch.drop_head(self.ctx.db, self.name)
            return
        fields = (self.collection, self.count, self.first, self.last, self.form)
        batch.put_head(self.ctx.db, self.name, Head(LIST, self.expiry_ms, batch.index, b"", *fields))

    # --- reading ----------------------------------------------------------------------------------------------------

    def rank(self, index: int) -> int | None:
        """The rank that an index means (negative: from the end); None when there is none."""
        rank = index + self.count if index < 0 else index
        return rank if 0 <= rank < self.count else None

    def get(self, rank: int) -> bytes:
        """The element of a rank that exists."""
        value = self.ctx.txn.item(self.collection, self.label(rank))
        if value is None:
            raise Bug(f"list {self.name!r} has no element at rank {rank}")
        return value

    def rows(self, first: int | None = None, reverse: bool = False) -> Iterator[tuple[int, bytes]]:
        """(label, element), from label `first` on (reverse: down from it)."""
        breathe = self.ctx.breathe
        if not self.count:
            return
        low, high = self.first, self.last
        if first is not None:
            low, high = (low, first) if reverse else (first, high)
        for row in self.ctx.txn.scan_items(self.collection, low, high, reverse):
            breathe()
            yield row

    def slice(self, start: int, stop: int) -> list[bytes]:
        """Elements of ranks start <= rank < stop, which exist, as a reply. Raises CommandError: too many for one."""
        if stop <= start:
            return []
        return self.ctx.kept(value for _, value in islice(self.rows(self.label(start)), stop - start))

    def label(self, rank: int) -> int:
        """The label of a rank that exists."""
        if self.form == REGULAR:
            return self.first + rank * STRIDE
        if rank == 0:
            return self.first
        if rank == self.count - 1:
            return self.last
        slot, left = self._slot_of(rank)
        low = max(slot << STRIDE_BITS, self.first)
        rows = self.ctx.txn.scan_items(self.collection, low, (slot << STRIDE_BITS) + STRIDE - 1)
        for label, _ in islice(rows, left, None):
            return label
        raise Bug(f"the index of list {self.name!r} does not fit at rank {rank}")

    def _slot_of(self, rank: int) -> tuple[int, int]:
        """(slot, how many of its elements come before this rank). See the head of this file."""
        low, high, left = self.first >> STRIDE_BITS, (self.last >> STRIDE_BITS) + 1, rank
        for level in range(LEVELS - 1, -1, -1):
            low, high, left = self._narrow(level, low, high, left)
        return low, left

    def _narrow(self, level: int, low: int, high: int, left: int) -> tuple[int, int, int]:
        """The part of the slots low <= slot < high, under one node of this level, that holds the element `left`."""
        bits = level * LEVEL_BITS
        at = low
        for prefix, excess in self._nodes(level, low >> bits, (high - 1) >> bits):
            start, end = max(prefix << bits, low), min((prefix + 1) << bits, high)
            if left < start - at:
                break
            left -= start - at
            elements = end - start + excess
            if left < elements:
                return start, end, left
            left -= elements
            at = end
        # between nodes a block of slots holds as many elements as slots, though perhaps not one in each
        block = (at + left) >> bits
        start = max(block << bits, at)
        return start, min((block + 1) << bits, high), left - (start - at)

    def _nodes(self, level: int, first: int, last: int) -> Iterator[tuple[int, int]]:
        """(prefix, excess) of the nodes of this level with first <= prefix <= last."""
        base = _node(level, 0)
        for position, body in self.ctx.txn.scan_items(self.collection, _node(level, first), _node(level, last)):
            self.ctx.breathe()
            yield position - base, int.from_bytes(body, "big", signed=True)

    # --- the ends ---------------------------------------------------------------------------------------------------

    def push(self, values: Sequence[bytes], left: bool) -> None:
        """Add elements one after the other at one end."""
        batch = self.ctx.writing()
        if not self.load().count:
            self._begin(batch)
        collection, breathe, step = self.collection, self.ctx.breathe, -1 if left else 1
        slot = ((self.first if left else self.last) >> STRIDE_BITS) + (step if self.count else 0)
        for value in values:
            batch.put_item(collection, slot << STRIDE_BITS, value)
            breathe()
            slot += step
        end = (slot - step) << STRIDE_BITS
        if abs(end) > LABEL_MAX:
            raise CommandError("ERR this list has been pushed to too often; copy it")
        if left or not self.count:
            self.first = end if left else 0
        if not left or not self.count:
            self.last = 0 if left else end
        self.count += len(values)

    def _begin(self, batch: Batch) -> None:
        self.collection = batch.new_collection()
        self.first = self.last = self.form = 0

    def pop(self, number: int, left: bool) -> list[bytes]:
        """Take up to `number` elements from one end, as a reply in the order in which they come off.

        Raises CommandError: they are too much for one.
        """
        return self.ctx.kept(self._taken(number, left))

    def pop_one(self, left: bool) -> bytes:
        """Take the element at an end of a list that has some."""
        (value,) = self._taken(1, left)
        return value

    def drop(self, number: int, left: bool) -> None:
        """Take up to `number` elements from one end, and forget them."""
        for _ in self._taken(number, left):
            pass

    def _taken(self, number: int, left: bool) -> Iterator[bytes]:
        """Elements from one end, which leave the list. To be used up: what the list is then, it is at the end."""
        number = min(number, self.load().count)
        if self.form != REGULAR:
            labels = []
            for place, element in islice(self.rows(reverse=not left), number):
                labels.append(place)
                yield element
            self._drop_end(labels, left)
            return
        batch, collection = self.ctx.writing(), self.collection
        label, step = (self.first, STRIDE) if left else (self.last, -STRIDE)
        for _ in range(number):
            value = batch.item(collection, label)
            if value is None:
                raise Bug(f"list {self.name!r} has no element at label {label}")
            yield value
            batch.delete_item(collection, label)
            self.ctx.breathe()
            label += step
        if left:
            self.first = label
        else:
            self.last = label
        self.count -= number

    # --- the middle -------------------------------------------------------------------------------------------------

    def set(self, rank: int, value: bytes) -> None:
        """Replace the element of a rank that exists."""
        self.ctx.writing().put_item(self.collection, self.label(rank), value)

    def remove(self, labels: Sequence[int]) -> None:
        """Remove the elements of these labels."""
        if not labels:
            return
        batch = self.ctx.writing()
        if len(labels) == self.count:
            self.count = 0
            return
        for label in labels:
            batch.delete_item(self.collection, label)
            self.ctx.breathe()
        self.count -= len(labels)
        self._count_in(labels, -1)
        self._tighten(self.first, self.last)

    def _drop_end(self, labels: Sequence[int], left: bool) -> None:
        """Remove the outermost elements of an irregular list, from the end inwards. Their slots leave the index."""
        if not labels or len(labels) == self.count:
            self.count -= len(labels)
            return
        batch = self.ctx.writing()
        for label in labels:
            batch.delete_item(self.collection, label)
            self.ctx.breathe()
        self.count -= len(labels)
        low, high = (labels[-1], self.last) if left else (self.first, labels[-1])
        end = next(self.ctx.txn.scan_items(self.collection, low, high, not left))[0] >> STRIDE_BITS
        shared = sum(1 for label in labels if label >> STRIDE_BITS == end)
        if shared:
            self._add({end: -shared})
        self._tighten(low, high)

    def trim(self, start: int, stop: int) -> None:
        """Keep the ranks start <= rank < stop, which exist."""
        if stop - start < self.count // 2:
            self.rewrite(start, stop)
            return
        right = self.count - stop
        for number, left in ((start, True), (right, False)):
            if number:
                self.drop(number, left)

    def rewrite(self, start: int, stop: int) -> None:
        """Keep the ranks start <= rank < stop, in a new and regular collection; the old one is reclaimed later."""
        batch, count = self.ctx.writing(), max(stop - start, 0)
        if count:
            rows = self.ctx.txn.scan_items(self.collection, self.label(start), self.last)
            self._begin(batch)
            for rank, (_, value) in enumerate(islice(rows, count)):
                batch.put_item(self.collection, rank * STRIDE, value)
                self.ctx.breathe()
            self.last = (count - 1) * STRIDE
        self.count = count

    def compact(self) -> None:
        """Write the list anew if it has more holes than elements."""
        slots = (self.last >> STRIDE_BITS) - (self.first >> STRIDE_BITS) + 1
        if self.count and self.form != REGULAR and slots > 2 * self.count + HOLES_MIN:
            self.rewrite(0, self.count)

    def insert(self, pivot: int, value: bytes, before: bool) -> None:
        """Add an element next to the one of label `pivot`."""
        if pivot == (self.first if before else self.last):
            self.push([value], before)
            return
        other = next(islice(self.rows(pivot, reverse=before), 1, 2))[0]
        low, high = (other, pivot) if before else (pivot, other)
        if high - low == 1:
            low, high = self._make_room(low)
        label = _between(low, high)
        self.ctx.writing().put_item(self.collection, label, value)
        self.count += 1
        self._count_in([label], 1)

    def _make_room(self, label: int) -> tuple[int, int]:
        """Spread the labels around `label`; returns the new labels of its element and of the one behind."""
        for bits in range(2, LABEL_MAX.bit_length()):
            low = (label >> bits) << bits
            room = 1 << bits
            enough = min((2 / SPREAD) ** bits, room / 2)
            rows = list(islice(self._window(low, low + room - 1), int(enough) + 1))
            if len(rows) < enough:
                return self._spread(rows, low, room, label)
        raise CommandError("ERR no room is left inside this list; copy it")

    def _window(self, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        breathe = self.ctx.breathe
        for row in self.ctx.txn.scan_items(self.collection, max(low, self.first), min(high, self.last)):
            breathe()
            yield row

    def _spread(self, rows: list[tuple[int, bytes]], low: int, room: int, label: int) -> tuple[int, int]:
        batch, size = self.ctx.writing(), len(rows)
        old = [row[0] for row in rows]
        new = [low + rank * room // size for rank in range(size)]
        at = old.index(label)
        behind = next((place for place, _ in islice(self.rows(old[-1]), 1, 2)), None)
        for place in old:
            batch.delete_item(self.collection, place)
        for place, (_, value) in zip(new, rows, strict=True):
            batch.put_item(self.collection, place, value)
            self.ctx.breathe()
        self._count_in(old, -1)
        self._count_in(new, 1)
        first, last = self.first, self.last
        self.first = new[0] if first == old[0] else first
        self.last = new[-1] if last == old[-1] else last
        self._clear_outside(first, last)
        following = new[at + 1] if at + 1 < size else behind
        if following is None:
            raise Bug("an element was to be inserted behind the last one")
        return new[at], following

    # --- the index --------------------------------------------------------------------------------------------------

    def _count_in(self, labels: Sequence[int], by: int) -> None:
        """Elements of these labels have come (by=1) or gone (by=-1). The list is irregular from now on."""
        self.form = INSERTED if by > 0 or self.form == INSERTED else HOLES
        slots: dict[int, int] = {}
        for label in labels:
            slot = label >> STRIDE_BITS
            slots[slot] = slots.get(slot, 0) + by
        self._add(slots)

    def _add(self, slots: dict[int, int]) -> None:
        """Add to the excess of slots, on every level."""
        batch, collection, changes = self.ctx.writing(), self.collection, slots
        for level in range(LEVELS):
            above: dict[int, int] = {}
            for prefix, change in changes.items():
                self.ctx.breathe()
                parent = prefix >> LEVEL_BITS
                above[parent] = above.get(parent, 0) + change
                if change:
                    position = _node(level, prefix)
                    excess = int.from_bytes(batch.item(collection, position) or b"", "big", signed=True) + change
                    if excess:
                        batch.put_item(collection, position, excess.to_bytes(8, "big", signed=True))
                    else:
                        batch.delete_item(collection, position)
            changes = above

    def _tighten(self, low: int, high: int) -> None:
        """Elements have been removed: find the new ends, which are within low..high, and forget the slots outside."""
        first, last = self.first, self.last
        scan = self.ctx.txn.scan_items
        self.first = next(scan(self.collection, low, high))[0]
        self.last = next(scan(self.collection, self.first, high, True))[0]
        self._clear_outside(first, last)
        if self.form == HOLES and self.last - self.first == (self.count - 1) * STRIDE:
            self.form = REGULAR

    def _clear_outside(self, first: int, last: int) -> None:
        """The ends were at these labels: drop the nodes of slots that are not between the ends any more, and give
        slots that were not before what they lack."""
        old_low, old_high = first >> STRIDE_BITS, last >> STRIDE_BITS
        low, high = self.first >> STRIDE_BITS, self.last >> STRIDE_BITS
        outside: dict[int, int] = {}
        for start, end in ((old_low, low - 1), (high + 1, old_high)):
            if start <= end:
                outside.update((slot, -excess) for slot, excess in self._nodes(0, start, end))
        for start, end in ((low, old_low - 1), (old_high + 1, high)):
            outside.update((slot, -1) for slot in range(start, end + 1))
        self._add(outside)


def _node(level: int, prefix: int) -> int:
    """The position of an index node."""
    return INDEX_BASE + (level << LEVEL_ROOM_BITS) + PREFIX_BIAS + prefix


def _between(low: int, high: int) -> int:
    """A label between two that are not neighbours: of an empty slot if there is one, else half-way."""
    low_slot, high_slot = low >> STRIDE_BITS, high >> STRIDE_BITS
    if high_slot - low_slot >= 2:
        return ((low_slot + high_slot) // 2) << STRIDE_BITS
    return (low + high) // 2


def copy_items(ctx: Context, head: Head, collection: int) -> None:
    """All records of a list, its index included, into another collection. The head's other fields hold for both."""
    batch = ctx.writing()
    ranges = [(head.first, head.last)]
    if head.form != REGULAR:
        ranges.append((INDEX_BASE, INDEX_BASE + (LEVELS << LEVEL_ROOM_BITS)))
    for first, last in ranges:
        for position, body in batch.scan_items(head.collection, first, last):
            ctx.breathe()
            batch.put_item(collection, position, body)
