"""Edge lists that were read, kept side by side.

Where a store has the edges of a row they lie scattered: in memmap each record says where the next one is, and the row
of its target has to be looked up by id; in blocks every field lies somewhere else. To read the same edges from where
they lie together takes a fraction of the time, most of which the processor needs to find out where in memory so many
pages are. So the lists that were read last are kept in a ring of bounded size, in large pages where the system has
them; the oldest give way. Only committed lists are kept, and all of them are forgotten when a commit changes any.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.backends.registry import Option, size
from aesg.jit import Loops, records
from aesg.records import Adjacency, Rows
from aesg.threads import in_threads, parts

Array: TypeAlias = npt.NDArray[Any]

CACHE_BYTES: Final = 1 << 27
CACHE_OPTION: Final = Option(size(), "memory that edge lists which were read may take, e.g. 64MiB; default 128MiB")

EDGE: Final = np.dtype(
    [
        ("ref", np.uint32),
        ("target_row", np.uint32),
        ("weight", np.float32),
        ("confidence", np.float32),
        ("use_count", np.uint32),
    ]
)
_MISSING: Final = -1
_LENGTH_BITS: Final = 20
_LONGEST: Final = (1 << _LENGTH_BITS) - 1
_SHARE: Final = 16
"""No list takes more than this part of the ring."""
_EDGES_A_SLOT: Final = 8
"""So many edges of the ring have a slot: there are enough where lists are no shorter."""
_WAYS: Final = 8
"""Slots in which a row's list may be noted: they lie in two cache lines."""
_SLOT_BYTES: Final = 16
EDGE_BYTES: Final = EDGE.itemsize + 2 * _SLOT_BYTES // _EDGES_A_SLOT
"""What an edge takes in all. The slots are a power of two: up to twice as many as are needed."""
_MOST: Final = 1 << 32
"""Refs of 32 bits are kept only; rows have no more."""
_ROW_HASH: Final = np.int64(-7046029254386353131)  # 2**64 / golden ratio
_PATIENCE: Final = 1 << 14
"""Rows that are read without it, before what is compiled is loaded."""
_UNLIMITED: Final = (1 << 63) - 1
_WORTH_A_THREAD: Final = 1024
"""Lists to read that are worth waking a thread for."""


class ListCache:
    """The edges of rows, as they were when they were last read. Not to be used by several threads at once.

    Args:
        nbytes: How much memory it may take.
    """

    def __init__(self, nbytes: int = CACHE_BYTES) -> None:
        self.nbytes = nbytes
        self._room = nbytes // EDGE_BYTES
        self._longest = min(self._room // _SHARE, _LONGEST)
        self._ring = np.empty(0, EDGE)
        self._slots = np.empty((0, 2), np.int64)  # row + 1, position << _LENGTH_BITS | length
        self._bounds = np.zeros(2, np.int64)  # what lies before the first position was overwritten; the next position

    def clear(self) -> None:
        """Forget everything."""
        self._bounds[:] = self._bounds[1] + 1  # one further: an empty list may have been noted at the next position

    def is_of_use(self, rows: int) -> bool:
        """Whether so many rows are worth it: not before the loops are compiled."""
        return self._longest > 0 and LOOPS.are_compiled(rows)

    def out_edges(
        self, rows: Rows, limit: int | None, read: Callable[[Rows], Adjacency], *, in_many_threads: bool
    ) -> Adjacency:
        """The edges of rows.

        Args:
            rows: int64 [n].
            limit: At most so many of each row, the first ones; None for all.
            read: Reads the lists that are not here; cut already.
            in_many_threads: Whether several threads may read at once.
        """
        most = _UNLIMITED if limit is None else limit

        def find(some: slice) -> tuple[Adjacency, Rows, Adjacency | None]:
            places, missing = self._look_up(rows[some])
            if not missing:
                return self._join(places, most, None), _NO_INTS, None
            absent = rows[some] if missing == len(places) else rows[some][places < 0]
            others = read(absent)
            return others if missing == len(places) else self._join(places, most, others), absent, others

        shares = parts(len(rows), _WORTH_A_THREAD) if in_many_threads else [slice(0, len(rows))]
        found = in_threads(find, shares)
        for _, absent, others in found:  # which only one may do
            if others is not None:
                self._keep(absent, others, most)
        return found[0][0] if len(found) == 1 else Adjacency.joined([edges for edges, _, _ in found])

    def _look_up(self, rows: Rows) -> tuple[Rows, int]:
        """Where the lists of rows are, int64 [n], for `_join`; and how many are not here."""
        places = np.empty(len(rows), np.int64)
        if not len(self._slots):
            places.fill(_MISSING)
            return places, len(rows)
        missing = LOOPS.get(find, len(rows))(rows, self._slots, self._bounds, self._room, places)
        return places, missing

    def _join(self, places: Rows, most: int, others: Adjacency | None) -> Adjacency:
        """The edges of all rows, at most `most` of each; `others` are those that are not here, in their order."""
        others = _NOTHING if others is None else others
        loop = LOOPS.get(join, 8 * len(places) + len(others.refs))
        return Adjacency(*loop(places, most, self._ring, *_arrays(others)))

    def _keep(self, rows: Rows, edges: Adjacency, most: int) -> None:
        """Remember lists that were read; one of `most` edges may go on, and is not kept."""
        if not len(self._slots):
            self._ring = _in_large_pages(self._room * EDGE.itemsize).view(EDGE)
            slots = _WAYS << (self._room // _EDGES_A_SLOT // _WAYS).bit_length()
            self._slots = _in_large_pages(slots * _SLOT_BYTES).view(np.int64).reshape(-1, 2)
        loop, longest = LOOPS.get(keep, len(edges.refs)), min(self._longest, most - 1)
        loop(rows, longest, self._slots, self._bounds, self._ring, *_arrays(edges))


def _arrays(edges: Adjacency) -> tuple[Array, ...]:
    return edges.indptr, edges.refs, edges.target_rows, edges.weight, edges.confidence, edges.use_count


def _in_large_pages(nbytes: int) -> npt.NDArray[np.uint8]:
    """Zeros that take memory where they are touched, some megabytes at a time where the system can."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(nbytes, np.uint8)
    mapping = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not a forked child's too
    with suppress(OSError):  # a kernel without large pages
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)


# --- the loops -------------------------------------------------------------------------------------------------------


def first_slot(slots: Array, row: int) -> int:
    """The first of the slots in which a row's list may be noted; the others follow it."""
    return ((row * _ROW_HASH) >> 20) & (len(slots) - _WAYS)  # type: ignore[return-value]


def find(rows: Array, slots: Array, bounds: Array, room: int, places: Array) -> int:
    """Where the lists of rows are.

    Args:
        rows: int64 [n].
        slots: int64 [power of two, 2].
        bounds: int64 [2].
        room: Length of the ring.
        places: Out: int64 [n], offset in the ring << _LENGTH_BITS | length, or _MISSING.

    Returns:
        How many are missing.
    """
    missing = 0
    for i in range(len(rows)):
        at, places[i] = first_slot(slots, rows[i]), _MISSING
        for slot in range(at, at + _WAYS):
            position = slots[slot, 1] >> _LENGTH_BITS
            if slots[slot, 0] == rows[i] + 1 and position >= bounds[0]:
                places[i] = (position % room) << _LENGTH_BITS | (slots[slot, 1] & _LONGEST)
        missing += places[i] == _MISSING
    return missing


def join(
    places: Array,
    most: int,
    ring: Array,
    other_indptr: Array,
    other_ref: Array,
    other_target: Array,
    other_weight: Array,
    other_confidence: Array,
    other_count: Array,
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """The edges of rows: from the ring, and of those whose place is missing from the others, in their order.

    Args:
        places: int64 [n], see `find`.
        most: At most so many of each row.
        ring: `EDGE`.
        other_indptr: int64 [missing + 1], with the rest the other edges, cut already.
        other_ref: int64.
        other_target: int64.
        other_weight: float32.
        other_confidence: float32.
        other_count: uint32.

    Returns:
        The arrays of an `Adjacency`.
    """
    refs, targets, weights = ring["ref"], ring["target_row"], ring["weight"]
    confidences, counts = ring["confidence"], ring["use_count"]
    indptr = np.empty(len(places) + 1, np.int64)
    indptr[0] = 0
    total = other = 0
    for i in range(len(places)):
        if places[i] == _MISSING:
            total += other_indptr[other + 1] - other_indptr[other]
            other += 1
        else:
            total += min(places[i] & _LONGEST, most)
        indptr[i + 1] = total
    ref, target = np.empty(total, np.int64), np.empty(total, np.int64)
    weight, confidence = np.empty(total, np.float32), np.empty(total, np.float32)
    count = np.empty(total, np.uint32)
    other = 0
    for i in range(len(places)):
        to, length = indptr[i], indptr[i + 1] - indptr[i]
        if places[i] == _MISSING:
            at = other_indptr[other]
            other += 1
            for k in range(length):
                ref[to + k], target[to + k] = other_ref[at + k], other_target[at + k]
                weight[to + k], confidence[to + k] = other_weight[at + k], other_confidence[at + k]
                count[to + k] = other_count[at + k]
        else:
            at = places[i] >> _LENGTH_BITS
            for k in range(length):
                ref[to + k], target[to + k] = refs[at + k], targets[at + k]
                weight[to + k], confidence[to + k] = weights[at + k], confidences[at + k]
                count[to + k] = counts[at + k]
    return indptr, ref, target, weight, confidence, count


def keep(
    rows: Array,
    longest: int,
    slots: Array,
    bounds: Array,
    ring: Array,
    indptr: Array,
    ref: Array,
    target: Array,
    weight: Array,
    confidence: Array,
    count: Array,
) -> None:
    """Put lists into the ring. Those with an edge to a node that is not there are left out: it may come.

    Args:
        rows: int64 [n].
        longest: No list of more edges is kept.
        slots: int64 [power of two, 2].
        bounds: int64 [2].
        ring: `EDGE`.
        indptr: int64 [n + 1], with the others the edges of `rows`.
        ref: int64.
        target: int64, rows; -1 leads nowhere.
        weight: float32.
        confidence: float32.
        count: uint32.
    """
    refs, targets, weights = ring["ref"], ring["target_row"], ring["weight"]
    confidences, counts = ring["confidence"], ring["use_count"]
    for i in range(len(rows)):
        start, length = indptr[i], indptr[i + 1] - indptr[i]
        fits = length <= longest
        for k in range(start, start + (length if fits else 0)):
            fits &= (target[k] >= 0) & (ref[k] < _MOST)
        if not fits:
            continue
        position = bounds[1]
        if position % len(ring) + length > len(ring):
            position += len(ring) - position % len(ring)
        at = position % len(ring)
        for k in range(length):
            refs[at + k], targets[at + k] = ref[start + k], target[start + k]
            weights[at + k], confidences[at + k] = weight[start + k], confidence[start + k]
            counts[at + k] = count[start + k]
        bounds[1] = position + length
        bounds[0] = max(bounds[0], bounds[1] - len(ring))
        # The row's slot where it has one already, else the one that was noted longest ago.
        at = first_slot(slots, rows[i])
        chosen = at
        for slot in range(at, at + _WAYS):
            if slots[slot, 0] == rows[i] + 1:
                chosen = slot
                break
            if slots[slot, 1] < slots[chosen, 1]:
                chosen = slot
        slots[chosen, 0], slots[chosen, 1] = rows[i] + 1, position << _LENGTH_BITS | length


def _signatures(types: Any) -> list[tuple[Any, ...]]:
    i8, u4, f4 = types.int64[::1], types.uint32[::1], types.float32[::1]
    slots, edges = types.int64[:, ::1], (i8, i8, i8, f4, f4, u4)
    ring = records(EDGE)
    return [
        (i8, slots, i8, types.int64, i8),
        (i8, types.int64, ring, *edges),
        (i8, types.int64, slots, i8, ring, *edges),
    ]


_NO_INTS: Final = np.empty(0, np.int64)
_NO_FLOATS: Final = np.empty(0, np.float32)
_NOTHING: Final = Adjacency(np.zeros(1, np.int64), _NO_INTS, _NO_INTS, _NO_FLOATS, _NO_FLOATS, np.empty(0, np.uint32))
LOOPS: Final = Loops("the reading of edges", (find, join, keep), (first_slot,), _signatures, _PATIENCE)
