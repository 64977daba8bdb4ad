"""Which edges leave which rows, for edges that are not in the sorted columns yet.

A run is edges sorted by source, newest first. Appending makes a new run; runs of like size are merged into one, so that
there are never more than a few (as in a log-structured merge tree). Runs are never changed: a transaction, a snapshot
and the store can share them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from aesg.records import Refs, Rows

_RATIO: Final = 4
"""A run is merged with an older one that is less than so many times as long."""


@dataclass(frozen=True, slots=True)
class Run:
    """Edges sorted by source, and by falling ref among those of one source.

    Attributes:
        sources: int64 [n].
        refs: int64 [n].
    """

    sources: Rows
    refs: Refs

    @classmethod
    def of(cls, sources: Rows, first_ref: int) -> Run:
        """A run of edges that were appended one after another."""
        backwards = np.ascontiguousarray(sources[::-1])
        order = np.argsort(backwards, kind="stable")
        return cls(backwards[order], first_ref + len(sources) - 1 - order)

    def find(self, rows: Rows) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where the edges of each row begin, and how many there are."""
        starts = np.searchsorted(self.sources, rows, "left")
        return starts, np.searchsorted(self.sources, rows, "right") - starts


Runs = tuple[Run, ...]
"""From the oldest to the newest."""


def appended(runs: Runs, sources: Rows, first_ref: int) -> Runs:
    """The runs with more edges."""
    stack = [*runs, Run.of(sources, first_ref)]
    while len(stack) > 1 and len(stack[-2].refs) < _RATIO * len(stack[-1].refs):
        newer, older = stack.pop(), stack.pop()
        stack.append(merged(newer.sources, newer.refs, older.sources, older.refs))
    return tuple(stack)


def merged(sources: Rows, refs: Refs, older_sources: Rows, older_refs: Refs) -> Run:
    """One run of two, the first of which has the newer edges."""
    both = np.concatenate([sources, older_sources])
    order = np.argsort(both, kind="stable")  # finds the two sorted halves by itself: linear
    return Run(both[order], np.concatenate([refs, older_refs])[order])
