"""Which edges leave which rows, for edges that are not in the sorted columns yet.

A run is edges sorted by source, newest first. Appending makes a new run; now and then runs of like size are merged into
one, so that there are never more than a few (as in a log-structured merge tree). Runs are never changed: a transaction,
a snapshot and the store can share them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from aesg.records import Refs, Rows

_RATIO: Final = 2
"""A run is merged with an older one that is less than so many times as long."""
FEW: Final = 8
"""So many runs are read one after another; it is worth merging more before they are read."""
_MOST: Final = 64
"""More are merged even if nobody reads them."""


@dataclass(frozen=True, slots=True)
class Run:
    """Edges sorted by source, and by falling ref among those of one source.

    Attributes:
        sources: int64 [m], rising: the rows that edges leave.
        starts: int64 [m + 1]: where the edges of each begin.
        refs: int64 [n].
    """

    sources: Rows
    starts: npt.NDArray[np.int64]
    refs: Refs

    @classmethod
    def of_sorted(cls, sources: Rows, refs: Refs) -> Run:
        """A run of edges that are sorted already; both [n], n > 0."""
        firsts = np.append(0, np.flatnonzero(sources[1:] != sources[:-1]) + 1)
        return cls(sources[firsts], np.append(firsts, len(sources)), refs)

    @classmethod
    def of(cls, sources: Rows, first_ref: int) -> Run:
        """A run of edges that were appended one after another."""
        if len(sources) == 1:
            return cls(sources.copy(), np.array([0, 1]), np.array([first_ref]))
        ordered, order = by_source(sources[::-1])
        return cls.of_sorted(ordered, first_ref + len(sources) - 1 - order)

    def expanded(self) -> Rows:
        """The source of each edge, int64 [n]."""
        return np.repeat(self.sources, np.diff(self.starts))

    def find(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the edges of each row begin, and how many there are."""
        at = np.minimum(np.searchsorted(self.sources, rows), len(self.sources) - 1)
        starts = self.starts[at]
        return starts, np.where(self.sources[at] == rows, self.starts[at + 1] - starts, 0)


Runs = tuple[Run, ...]
"""From the oldest to the newest."""


def appended(runs: Runs, sources: Rows, first_ref: int) -> Runs:
    """The runs with more edges."""
    more = (*runs, Run.of(sources, first_ref))
    return more if len(more) <= _MOST else fewer(more)


def fewer(runs: Runs) -> Runs:
    """The same edges in runs each of which is at least `_RATIO` times as long as the next."""
    groups: list[list[Run]] = []
    sizes: list[int] = []
    for run in runs:
        groups.append([run])
        sizes.append(len(run.refs))
        while len(sizes) > 1 and sizes[-2] < _RATIO * sizes[-1]:
            sizes[-2:] = [sizes[-2] + sizes[-1]]
            groups[-2:] = [groups[-2] + groups[-1]]
    return tuple(group[0] if len(group) == 1 else _as_one(group) for group in groups)


def _as_one(runs: Sequence[Run]) -> Run:
    return Run.of_sorted(*merged([(run.expanded(), run.refs) for run in reversed(runs)]))


def merged(parts: Sequence[tuple[Rows, Refs]]) -> tuple[Rows, Refs]:
    """Sources and refs of several sorted lists of edges, the newest first, as one."""
    sources, order = by_source(np.concatenate([sources for sources, _ in parts]))
    return sources, np.concatenate([refs for _, refs in parts])[order]


def by_source(sources: Rows) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Sources sorted, and where each was; equal ones stay in their order."""
    n = len(sources)
    bits = n.bit_length()
    if n and int(sources.max()) >> (62 - bits):
        order = np.argsort(sources, kind="stable")
        return sources[order], order
    # Sorting numbers takes a fifth of sorting their positions: let the number end in its position.
    keys = (sources << bits) | np.arange(n)
    keys.sort()
    return keys >> bits, keys & ((1 << bits) - 1)
