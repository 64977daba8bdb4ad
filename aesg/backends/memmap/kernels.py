"""Loops over records: the walk of edge lists, the probing of the id table, and the gather of vectors.

The walk is written once, as plain Python over arrays, in the part of the language that numba compiles. A process runs
it as plain Python for its first ten thousands of edges: importing numba and loading what it compiled takes half a
second, which nobody who looks at a few edges should wait for. After that it runs compiled, sixty times as fast, and
without the GIL.

Most of the time goes into waiting for memory, as hardly any two records share a page. So the loops that touch new
records do little else, and a core has many loads under way at once; and lists are walked in blocks, so that a block's
records are still at hand when their values are copied.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from aesg.backends.memmap.format import END
from aesg.jit import compiled
from aesg.records import Ids, Refs, Rows

Array = npt.NDArray[Any]

_BLOCK: Final = 128
"""Lists that are walked in lockstep: more than a core has loads under way, few enough for its nearest caches."""
_BATCH: Final = 2048
"""Ids that are looked up together."""
_PATIENCE: Final = 1 << 15
"""Edges that are walked in plain Python, some tenth of a second, before what is compiled is loaded."""
_ROWS_AS_AN_EDGE: Final = 16
"""Vectors that NumPy gathers in the time that plain Python takes for an edge."""
_IDS_AS_AN_EDGE: Final = 32
"""Ids that NumPy looks up."""
_UNLIMITED: Final = (1 << 63) - 1

_FINE, _POINTER, _OWNER, _LIMIT = range(4)

_NODE_FIELDS: Final = ("id", "head_edge_idx")
_EDGE_FIELDS: Final = ("source_id", "target_id", "weight", "confidence", "use_count", "next_edge_idx")


class Overlay(NamedTuple):
    """A transaction's changes to a column of int64: what counts in place of the file's values.

    Attributes:
        held: The column's first rows; they count before anything else.
        slots: uint32, each row's position in `values`, plus 1; 0, and a row past the end, has none.
        values: Values of single rows.
    """

    held: npt.NDArray[np.int64]
    slots: npt.NDArray[np.uint32]
    values: npt.NDArray[np.int64]


NO_OVERLAY: Final = Overlay(np.empty(0, np.int64), np.empty(0, np.uint32), np.empty(0, np.int64))


class Source(NamedTuple):
    """Records of nodes or edges.

    Attributes:
        columns: Field → column of the file.
        overlay: What lies over the pointers.
    """

    columns: Mapping[str, Array]
    overlay: Overlay


@dataclass(frozen=True, slots=True)
class Lists:
    """Edge lists in CSR form: list i is `indptr[i]:indptr[i + 1]` of the others.

    Attributes:
        indptr: int64 [lists + 1].
        refs: int64 [E].
        target_ids: uint64 [E].
        weight: float32 [E]; like the others what the file has.
        confidence: float32 [E].
        use_count: uint32 [E].
    """

    indptr: npt.NDArray[np.int64]
    refs: Refs
    target_ids: Ids
    weight: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    use_count: npt.NDArray[np.uint32]


class BrokenListError(Exception):
    """A list leads to where no list can.

    Attributes:
        row: Whose list it is.
        found: What it leads to, in words.
    """

    def __init__(self, row: int, found: str) -> None:
        super().__init__(row, found)
        self.row = row
        self.found = found


class Loops:
    """The loops as a process runs them.

    Attributes:
        find: `_find`, once it is compiled; as plain Python it would be slower than array operations.
        enter: `_enter`, likewise.
    """

    def __init__(self, patience: int = _PATIENCE) -> None:
        self._patience = patience
        self._walk: Callable[..., Any] = _walk
        self.find: Callable[..., Rows] | None = None
        self.enter: Callable[..., None] | None = None
        self._ids_left = _IDS_AS_AN_EDGE * patience
        self._rows_left = _ROWS_AS_AN_EDGE * patience
        self._gather: Callable[..., None] | None = None

    def finder(self, ids: int) -> Callable[..., Rows] | None:
        """`find` for so many ids; None where that is not worth compiling yet, or cannot be compiled."""
        if self._patience < _UNLIMITED:
            self._ids_left -= ids
            if self._ids_left < 0:
                self._load()
        return self.find

    def gatherer(self, rows: int) -> Callable[..., None] | None:
        """`gathering.gather` for so many rows; None where that is not worth compiling yet, or cannot be compiled."""
        if self._patience < _UNLIMITED:
            self._rows_left -= rows
            if self._rows_left < 0:
                self._load()
        return self._gather

    def walk(
        self, rows: Rows, nodes: Source, edges: Source, count: int, expected: int, most: int | None = None
    ) -> Lists:
        """Walk the edge lists of rows. Every pointer is checked before it is followed: it leads down, or ends the list.

        Args:
            rows: int64 [n].
            nodes: The nodes; what lies over `head_edge_idx`.
            edges: The edges; what lies over `next_edge_idx`.
            count: Number of edges; no list may lead there or further.
            expected: About how many will be found.
            most: So many edges of each list; all when None.

        Raises:
            BrokenListError: A pointer that leads up, outside or to a removed edge, or an edge of another source.
        """
        room = expected + expected // 8 + 16
        if room > self._patience:
            self._load()
        columns = [*(nodes.columns[name] for name in _NODE_FIELDS), *nodes.overlay]
        columns += [*(edges.columns[name] for name in _EDGE_FIELDS), *edges.overlay]
        longest = _UNLIMITED if most is None else most
        status, at, ref, above, *found = self._walk(rows, *columns, count, room, self._patience, longest)
        if status == _LIMIT:
            self._load()
            status, at, ref, above, *found = self._walk(rows, *columns, count, room, self._patience, longest)
        if status == _POINTER:
            raise BrokenListError(int(rows[at]), f"edge {int(ref)} where one below {int(above)} or -1 is due")
        if status == _OWNER:
            raise BrokenListError(int(rows[at]), f"edge {int(ref)}, which belongs to another node")
        indptr, *values = found
        total = int(indptr[-1])
        if self._patience < _UNLIMITED:
            self._patience -= total
        # Nobody should hold twice the memory that the edges take; what is much smaller than expected is soon copied.
        ample = 4 * total < 3 * len(values[0])
        return Lists(indptr, *(array[:total].copy() if ample else array[:total] for array in values))

    def _load(self) -> None:
        """Go on with what is compiled, or without it for good."""
        loaded = _compiled()
        if loaded is not None:
            self._walk, self.find, self.enter, self._gather = loaded
        self._patience = _UNLIMITED  # last: until then other threads do not set out on a long way in plain Python


# --- compiling -------------------------------------------------------------------------------------------------------


def _compiled() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any], Callable[..., Any] | None] | None:
    """`_walk`, `_find`, `_enter` and, if it can be had, the gather.

    None where numba has been told not to compile, or cannot be imported.
    """
    try:
        from numba import extending, types
    except Exception as error:  # ImportError, and whatever a numba says to a NumPy that is newer than it knows
        warnings.warn(f"numba cannot be imported, edges are walked slowly: {error}", RuntimeWarning, stacklevel=4)
        return None

    def column(kind: Any) -> Any:
        return types.Array(kind, 1, "A", readonly=True, aligned=False)

    u4, u8, f4, i8 = types.uint32, types.uint64, types.float32, types.int64
    overlay = [i8, u4, i8]
    walk = [i8, u8, i8, *overlay, u8, u8, f4, f4, u4, i8, *overlay]
    extending.register_jitable(_grown)
    walking = compiled(_walk, (*map(column, walk), i8, i8, i8, i8))
    if walking is _walk:  # NUMBA_DISABLE_JIT gives back what it was given
        return None
    find = compiled(_find, (column(u8), u8[::1], i8, column(u8), column(i8), column(u4), i8))
    enter = compiled(_enter, (column(u8), i8, u4[::1], u8, u8))
    try:
        from aesg.backends.memmap import gathering

        return walking, find, enter, compiled(gathering.gather, gathering.SIGNATURE)
    except Exception as error:  # it is made of parts of numba that another version may not have
        warnings.warn(f"vectors are gathered slowly with this numba: {error}", RuntimeWarning, stacklevel=4)
        return walking, find, enter, None


# --- the loops -------------------------------------------------------------------------------------------------------


def _grown(array: Array, room: int) -> Array:
    out = np.empty(room, array.dtype)
    out[: len(array)] = array
    return out


def _walk(
    rows: Rows,
    ids: Ids,
    heads: Refs,
    held_heads: Refs,
    head_slots: npt.NDArray[np.uint32],
    new_heads: Refs,
    sources: Ids,
    targets: Ids,
    weights: Array,
    confidences: Array,
    use_counts: Array,
    pointers: Refs,
    held_pointers: Refs,
    pointer_slots: npt.NDArray[np.uint32],
    new_pointers: Refs,
    count: int,
    room: int,
    limit: int,
    longest: int,
) -> tuple[Any, ...]:
    """See `Loops.walk`.

    Returns:
        Status; for a broken list the position of its row, the edge, and what that has to lie below; the arrays of
        `Lists`, but for indptr with room behind the edges.
    """
    indptr = np.zeros(len(rows) + 1, np.int64)
    refs = np.empty(room, np.int64)
    target_ids = np.empty(room, np.uint64)
    weight = np.empty(room, np.float32)
    confidence = np.empty(room, np.float32)
    use_count = np.empty(room, np.uint32)
    # A block's edges, in the order in which they are met, and the list of each.
    met = np.empty(min(room, 16 * _BLOCK), np.int64)
    met_by = np.empty(len(met), np.int64)
    # Of the lists that go on: which they are, where they have come to, and below what that has to lie. In a step the
    # latter two change places: what the pointer of an edge says is where to go, and must lie below the edge.
    lane = np.empty(_BLOCK, np.int64)
    here = np.empty(_BLOCK, np.int64)
    above = np.empty(_BLOCK, np.int64)
    source = np.empty(_BLOCK, np.uint64)
    owner = np.empty(_BLOCK, np.uint64)
    place = np.empty(_BLOCK, np.int64)
    status, bad, ref, total = _FINE, 0, 0, 0
    begin = 0
    while begin < len(rows):
        block = min(_BLOCK, len(rows) - begin)
        for i in range(block):
            here[i] = heads[rows[begin + i]]
            owner[i] = ids[rows[begin + i]]
        if len(held_heads) + len(head_slots) > 0:
            for i in range(block):
                at = rows[begin + i]
                if at < len(held_heads):
                    here[i] = held_heads[at]
                elif at < len(head_slots) and head_slots[at] > 0:
                    here[i] = new_heads[np.int64(head_slots[at]) - 1]
        for i in range(block):
            lane[i] = i
            above[i] = count
            place[i] = 0
        going, found = block, 0
        while True:
            wrong = False
            for i in range(going):
                wrong |= (here[i] >= above[i]) | (here[i] < END)
            if wrong:
                status = _POINTER
                break
            left = 0
            for i in range(going):
                lane[left] = lane[i]
                here[left] = here[i]
                left += here[i] != END and place[lane[i]] < longest
            going = left
            if going == 0:
                break
            if total + found + going > limit:
                status = _LIMIT
                break
            if found + going > len(met):
                met = _grown(met, 2 * (found + going))
                met_by = _grown(met_by, 2 * (found + going))
            for i in range(going):
                above[i] = pointers[here[i]]
                source[i] = sources[here[i]]
            if len(held_pointers) + len(pointer_slots) > 0:
                for i in range(going):
                    ref = here[i]
                    if ref < len(held_pointers):
                        above[i] = held_pointers[ref]
                    elif ref < len(pointer_slots) and pointer_slots[ref] > 0:
                        above[i] = new_pointers[np.int64(pointer_slots[ref]) - 1]
            for i in range(going):
                wrong |= source[i] != owner[lane[i]]
                met[found + i] = here[i]
                met_by[found + i] = lane[i]
                place[lane[i]] += 1
            if wrong:
                status = _OWNER
                break
            for i in range(going):
                ref = here[i]
                here[i] = above[i]
                above[i] = ref
            found += going
        if status != _FINE:
            for i in range(going):
                bad = i
                if status == _POINTER and (here[i] >= above[i] or here[i] < END):
                    break
                if status == _OWNER and source[i] != owner[lane[i]]:
                    break
            trouble = (status, begin + lane[bad], here[bad], above[bad])
            return *trouble, indptr, refs, target_ids, weight, confidence, use_count
        if total + found > len(refs):
            room = 2 * (total + found)
            refs = _grown(refs, room)
            target_ids = _grown(target_ids, room)
            weight = _grown(weight, room)
            confidence = _grown(confidence, room)
            use_count = _grown(use_count, room)
        at = total
        for i in range(block):
            length = place[i]
            place[i] = at
            at += length
            indptr[begin + i + 1] = at
        for i in range(found):
            refs[place[met_by[i]]] = met[i]
            place[met_by[i]] += 1
        for i in range(total, total + found):
            ref = refs[i]
            target_ids[i] = targets[ref]
            weight[i] = weights[ref]
            confidence[i] = confidences[ref]
            use_count[i] = use_counts[ref]
        total += found
        begin += block
    return status, 0, 0, 0, indptr, refs, target_ids, weight, confidence, use_count


def _find(
    node_ids: Ids,
    seen: Ids,
    committed: int,
    ids: Ids,
    homes: npt.NDArray[np.int64],
    table: npt.NDArray[np.uint32],
    count: int,
) -> Rows:
    """Rows of ids by open addressing, as `IdIndex.lookup` does it.

    Args:
        node_ids: uint64, the id of each row.
        seen: uint64, the same as far as it has been read, 0 where it has not: close together, where `node_ids` has a
            page for every few. Filled in here; at least one.
        committed: So many rows are there for good, and so may be put into `seen`.
        ids: uint64 [n], what to look up.
        homes: int64 [n], where in the table to begin.
        table: uint32, rows + 1; 0: free. Its length is a power of two.
        count: Number of rows; what the table has past them is out of date.

    Returns:
        int64 [n], -1 where absent.
    """
    out = np.empty(len(ids), np.int64)
    mask = len(table) - 1
    known_rows = min(count, len(seen))
    looking = np.empty(_BATCH, np.int64)
    slots = np.empty(_BATCH, np.int64)
    rows = np.empty(_BATCH, np.int64)
    known = np.empty(_BATCH, np.uint64)
    for begin in range(0, len(ids), _BATCH):
        left = min(_BATCH, len(ids) - begin)
        for i in range(left):
            looking[i] = begin + i
            slots[i] = homes[begin + i]
        while left > 0:
            for i in range(left):
                rows[i] = np.int64(table[slots[i]]) - 1
            for i in range(left):
                known[i] = seen[rows[i] if 0 <= rows[i] < known_rows else 0]
            for i in range(left):
                if (known[i] == 0) | (rows[i] >= known_rows):
                    at = rows[i] if 0 <= rows[i] < count else 0
                    known[i] = node_ids[at]
                    if at < committed:
                        seen[at] = known[i]
            others = 0
            for i in range(left):
                at, row, slot = looking[i], rows[i], slots[i]
                out[at] = row
                looking[others] = at
                slots[others] = (slot + 1) & mask
                # Not branched upon, as it cannot be predicted.
                others += (row >= 0) & ((row >= count) | (known[i] != ids[at]))
            left = others
    return out


def _enter(ids: Ids, first: int, table: npt.NDArray[np.uint32], multiplier: np.uint64, shift: np.uint64) -> None:
    """Put rows into the table of an `IdIndex`, each at the first free place from its own on.

    Args:
        ids: uint64 [n], of the rows from `first` on.
        first: Row.
        table: In, out: uint32, rows + 1; 0: free. Its length is a power of two.
        multiplier: An id times this, shifted right …
        shift: … by this, is its own place.
    """
    mask = len(table) - 1
    for i in range(len(ids)):
        at = np.int64((ids[i] * multiplier) >> shift)
        while table[at] != 0:
            at = (at + 1) & mask
        table[at] = first + i + 1


LOOPS: Final = Loops()
"""Those of this process."""
