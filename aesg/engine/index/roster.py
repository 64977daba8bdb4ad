"""Which rows the entries of an index stand for.

Every row that can seed has a *print*, 64 bits of its direction in the index's precision, bfloat16; a row that cannot
(pruned, zero, not finite) has print 0. Rows of equal print are *twins*, which the index could not tell apart: only the
lowest, their leader, enters it, because a thousand equal vectors would be each other's only neighbours there. The
others are found through it.

An entry of the index is a number that never changes, its slot. The roster says which row a slot stands for; when a
store has changed, or was compacted and all its rows have moved, only what has another print is entered or removed.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.engine.scan import reciprocals, units
from aesg.jit import Loops
from aesg.records import Columns, Rows, Vectors

Prints: TypeAlias = npt.NDArray[np.uint64]
Slots: TypeAlias = npt.NDArray[np.int64]

MOST_ROWS: Final = (1 << 31) - 2
"""Rows are kept in 32 bits here."""


def prints_of(columns: Columns) -> Prints:
    """The prints of nodes; columns: vector [n, D] and is_active [n]. uint64 [n]."""
    vectors: Vectors = np.ascontiguousarray(columns["vector"], np.float32)
    out = np.zeros(len(vectors), np.uint64)
    if vectors.size:
        lengths = reciprocals(vectors, columns["is_active"])
        with np.errstate(all="ignore"):
            directions = vectors * lengths[:, None]
        odd = np.flatnonzero(np.isinf(lengths))
        directions[odd] = units(vectors[odd])
        factors = _factors(vectors.shape[1])
        _LOOPS.get(fold, vectors.size)(directions.view(np.uint32), lengths == lengths, factors, out)
    return out


class Roster:
    """Slots, the rows they stand for, and those rows' twins.

    Attributes:
        rows: int32 [slots], the row that each slot stands for, -1 for none.
        seedless: How many rows cannot seed.
    """

    def __init__(self) -> None:
        self.rows = np.empty(0, np.int32)
        self._prints = np.empty(0, np.uint64)
        self._count = 0
        self.seedless = 0
        self._twin = np.empty(0, np.int32)  # the next row of equal print; from the last one, the first
        self._table = np.zeros(1 << 10, np.int32)  # print → the last row that has it, plus 1; 0 where free
        self._taken = 0

    def __len__(self) -> int:
        """Number of rows that it knows, those that cannot seed included."""
        return self._count

    @property
    def prints(self) -> Prints:
        """uint64 [rows]."""
        return self._prints[: self._count]

    @property
    def live(self) -> int:
        """Slots that stand for a row."""
        return int(np.count_nonzero(self.rows >= 0))

    @property
    def nbytes(self) -> int:
        """Memory in use."""
        return self.rows.nbytes + self._prints.nbytes + self._twin.nbytes + self._table.nbytes

    def extend(self, prints: Prints) -> Rows:
        """Learn of the next rows, by their prints.

        Returns:
            Those among them that are leaders, ascending: they are to be entered.
        """
        first, count = self._count, self._count + len(prints)
        if count > len(self._prints):
            room = max(count, len(self._prints) * 5 // 4)
            self._prints = _grown(self._prints, room)
            self._twin = _grown(self._twin, room)
        self._prints[first:count] = prints
        self.seedless += len(prints) - int(np.count_nonzero(prints))
        if 2 * count > len(self._table):
            self._table = np.zeros(1 << (2 * count).bit_length(), np.int32)
            first = 0
        leads = np.zeros(count, np.bool_)
        _LOOPS.get(link, count - first)(self._prints, first, count, self._table, self._twin, leads)
        found = np.flatnonzero(leads[self._count :]) + self._count
        self._count = count
        return found

    def enter(self, rows: Rows) -> Slots:
        """Give leaders their slots; int64 [n], new ones and ascending."""
        slots = np.arange(len(self.rows), len(self.rows) + len(rows))
        self.rows = np.concatenate([self.rows, rows.astype(np.int32)])
        return slots

    def leave(self, slots: Slots) -> None:
        """Have slots stand for nothing."""
        self.rows[slots] = -1

    def adopt(self, old: Roster) -> tuple[Slots, Rows]:
        """Take over the slots of an older roster, wherever their vectors have gone.

        Returns:
            Slots whose vector is nowhere any more, to be removed; leaders that have no slot, to be entered.
        """
        prints = np.zeros(len(old.rows), np.uint64)
        used = np.flatnonzero(old.rows >= 0)
        prints[used] = old.prints[old.rows[used]]
        self.rows = np.full(len(prints), -1, np.int32)
        _LOOPS.get(look_up, len(prints))(prints, self._prints, self._table, self._twin, self.rows)
        leads = np.zeros(self._count, np.bool_)
        _LOOPS.get(leaders, len(self._table))(self._table, self._twin, leads)
        leads[self.rows[self.rows >= 0]] = False
        return used[self.rows[used] < 0], np.flatnonzero(leads)

    def expand(self, slots: Slots, most: int) -> tuple[Slots, Rows]:
        """The rows that slots stand for, with at most `most` twins each, the lowest.

        Returns:
            (place in `slots`, row) of each; slots that stand for nothing are left out.
        """
        places = np.flatnonzero(slots < len(self.rows))
        rows = self.rows[slots[places]].astype(np.int64)
        stands = rows >= 0
        places, rows = places[stands], rows[stands]
        some = np.flatnonzero(self._twin[rows] != rows)
        if not len(some):
            return places, rows
        more_places, more_rows = [places], [rows]
        for at in some.tolist():
            leader = int(rows[at])
            found: list[int] = []
            row = int(self._twin[leader])
            while row != leader and len(found) < most:
                found.append(row)
                row = int(self._twin[row])
            more_rows.append(np.array(found, np.int64))
            more_places.append(np.full(len(found), places[at]))
        return np.concatenate(more_places), np.concatenate(more_rows)


def restored(prints: Prints, rows: npt.NDArray[np.int32], *, complete: bool) -> Roster | None:
    """The roster that had these prints and slots; None when they cannot have been one's.

    Args:
        prints: uint64 [rows].
        rows: int32 [slots].
        complete: Whether every leader has a slot; else some do.
    """
    roster = Roster()
    leads = roster.extend(prints)
    standing = rows[rows >= 0]
    if len(standing) and standing.max() >= len(prints):
        return None
    stands = np.zeros(len(prints), np.bool_)
    stands[standing] = True
    once = np.count_nonzero(stands) == len(standing) == np.count_nonzero(stands[leads])
    if not once or (complete and len(standing) != len(leads)):
        return None
    roster.rows = rows
    return roster


def _grown(array: npt.NDArray[Any], room: int) -> npt.NDArray[Any]:
    out = np.empty(room, array.dtype)
    out[: len(array)] = array
    return out


def _factors(dim: int) -> Prints:
    """Odd numbers without a pattern (splitmix64), the same everywhere: they are in files."""
    z = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


# --- the loops -------------------------------------------------------------------------------------------------------

_MIX: Final = np.uint64(0xFF51AFD7ED558CCD)
_HALF: Final = np.uint64(33)
_ROUND: Final = np.uint64(1 << 15)
_SHIFT: Final = np.uint64(16)
_ONE: Final = np.uint64(1)


def fold(bits: npt.NDArray[np.uint32], seeds: npt.NDArray[np.bool_], factors: Prints, out: Prints) -> None:
    """The print of each row that can seed: its components times the factors, summed up modulo 2**64, and mixed.

    As the factors are odd, a change of one component always changes the sum.

    Args:
        bits: uint32 [n, D], the directions as float32; their upper halves, rounded, are bfloat16.
        seeds: bool [n], which rows can.
        factors: uint64 [D].
        out: Out: uint64 [n].
    """
    for i in range(len(bits)):
        total = np.uint64(0)
        if seeds[i]:
            for j in range(bits.shape[1]):
                total += np.uint64((np.uint64(bits[i, j]) + _ROUND) >> _SHIFT) * factors[j]
            total ^= total >> _HALF
            total *= _MIX
            total ^= total >> _HALF
            if total == np.uint64(0):
                total = _ONE
        out[i] = total


def place_of(prints: Prints, wanted: Any, table: npt.NDArray[np.int32]) -> int:
    """Where in the table a print is, or has its free place."""
    mask = len(table) - 1
    at = np.int64(wanted >> np.uint64(20)) & mask
    while table[at] != 0 and prints[table[at] - 1] != wanted:
        at = (at + 1) & mask
    return at  # type: ignore[return-value]


def link(
    prints: Prints,
    start: int,
    stop: int,
    table: npt.NDArray[np.int32],
    twin: npt.NDArray[np.int32],
    leads: npt.NDArray[np.bool_],
) -> None:
    """Put rows start:stop into the table, and each into the ring of its twins.

    Args:
        prints: uint64 [rows].
        start: First row.
        stop: Row after the last.
        table: int32 [power of two], print → last row of a ring, plus 1.
        twin: Out: int32 [rows], the next row of the ring.
        leads: Out: bool [rows], whether a row is the first of its ring.
    """
    for row in range(start, stop):
        twin[row] = row
        if prints[row] != np.uint64(0):
            at = place_of(prints, prints[row], table)
            if table[at] == 0:
                leads[row] = True
            else:
                last = table[at] - 1
                twin[row] = twin[last]
                twin[last] = row
            table[at] = row + 1


def look_up(
    wanted: Prints,
    prints: Prints,
    table: npt.NDArray[np.int32],
    twin: npt.NDArray[np.int32],
    rows: npt.NDArray[np.int32],
) -> None:
    """The leader of each wanted print, where there is one.

    Args:
        wanted: uint64 [n], 0 for nothing.
        prints: uint64 [rows].
        table: See `link`.
        twin: See `link`.
        rows: Out: int32 [n].
    """
    for i in range(len(wanted)):
        if wanted[i] != np.uint64(0):
            last = table[place_of(prints, wanted[i], table)]
            if last != 0:
                rows[i] = twin[last - 1]


def leaders(table: npt.NDArray[np.int32], twin: npt.NDArray[np.int32], leads: npt.NDArray[np.bool_]) -> None:
    """Mark the first row of each ring; see `link`."""
    for at in range(len(table)):
        if table[at] != 0:
            leads[twin[table[at] - 1]] = True


def _signatures(t: Any) -> list[list[Any]]:
    u8, i4, flag = t.uint64[::1], t.int32[::1], t.boolean[::1]
    bits = t.Array(t.uint32, 2, "C", readonly=True)
    return [
        [bits, flag, u8, u8],
        [u8, t.int64, t.int64, i4, i4, flag],
        [u8, u8, i4, i4, i4],
        [i4, i4, flag],
    ]


_LOOPS: Final = Loops("the seed index", (fold, link, look_up, leaders), (place_of,), _signatures, 1 << 16)
