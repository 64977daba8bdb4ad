"""An HNSW graph of unit vectors, by usearch.

usearch's binding locks only some of its calls, and in some versions none; so all of them go through one lock here.
Adding a vector takes a good part of a millisecond, so adding is done in small steps, between which searches go first.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.records import Vectors
from aesg.threads import cores

Slots = npt.NDArray[np.int64]

CONNECTIVITY: Final = 16
EXPANSION_ADD: Final = 128
EXPANSION: Final = 64
"""Candidates that a search keeps in view, at least."""
_STEP: Final = 1e-3
"""Seconds that a search may have to wait for the vectors that are being added."""
_APART: Final = 2048
"""Vectors in the graph for each one that is added at the same time."""
_BATCH: Final = 2048
"""Vectors that are added in one step while nobody searches."""


class HNSW:
    """Unit vectors by slot, and which are nearest to a direction, nearly always.

    Args:
        dim: Length of the vectors.

    Attributes:
        lock: Held by whoever uses the graph, if only to ask for its size: while another adds that is a crash.
        nbytes: Memory in use.
        crew: Threads that add. In the background they have to be many more than there are cores: the first of them
            waits for Python's lock at every vector, and the others must not wait for it.
        busy: A save is under way: a search would have to wait for it.
        removed: Vectors removed since it was built.
        dead: Their places that are still empty: each lengthens the way of a search.
    """

    def __init__(self, dim: int) -> None:
        from usearch.index import Index  # takes a while; and faiss crashes when it is imported later

        self._index: Any = Index(
            ndim=dim,
            metric="ip",
            dtype="bf16",
            connectivity=CONNECTIVITY,
            expansion_add=EXPANSION_ADD,
            expansion_search=EXPANSION,
        )
        self._dim = dim
        self.lock = threading.Lock()
        self._counting = threading.Lock()
        self._asking = 0
        self._step = 8
        self.busy = False
        self.crew = cores()
        self.nbytes = 0
        self._count = 0
        self.removed = 0
        self.dead = 0

    def __len__(self) -> int:
        """Number of vectors."""
        return self._count

    @property
    def expansion(self) -> int:
        """Candidates that a search keeps in view; a search for more than that keeps as many as it looks for."""
        return int(self._index.expansion_search)

    @expansion.setter
    def expansion(self, value: int) -> None:
        self._index.expansion_search = value

    def search(self, directions: Vectors, count: int) -> tuple[npt.NDArray[np.int64], Slots]:
        """(place in `directions`, slot) of the `count` nearest of each; fewer where there are no more."""
        threads = cores() if len(directions) > 8 else 1
        with self._counting:
            self._asking += 1
        try:
            with self.lock:
                if not self._count:
                    return np.empty(0, np.int64), np.empty(0, np.int64)
                found = self._index.search(directions, count, threads=threads)
        finally:
            with self._counting:
                self._asking -= 1
        if len(directions) == 1:
            slots = found.keys.astype(np.int64)
            return np.zeros(len(slots), np.int64), slots
        # Of fewer than `count` the rest of the row is padding.
        valid = np.arange(found.keys.shape[1]) < np.asarray(found.counts)[:, None]
        return np.nonzero(valid)[0], found.keys[valid].astype(np.int64)

    def add(self, slots: Slots, units: Vectors, *, politely: bool, stopped: Callable[[], bool]) -> int:
        """Add vectors; every one has to be at length 1, because a single NaN would ruin all searches.

        Args:
            slots: int64 [n], new ones.
            units: float32 [n, D].
            politely: Searches go on meanwhile and must not wait for long.
            stopped: Whether to leave off.

        Returns:
            How many were added, the first ones; all unless it left off.
        """
        lengths = np.vecdot(units, units)
        assert bool((np.abs(lengths - 1) < 1e-3).all())  # whoever is zero or not finite has no slot
        at = 0
        while at < len(slots) and not stopped():
            stop = min(at + (self._step if politely else _BATCH), len(slots))
            began = time.perf_counter()
            with self.lock:
                # What is added at the same time is not seen by each other: in a small graph that costs recall.
                threads = min(self.crew, 1 + self._count // _APART)
                self._index.add(slots[at:stop].astype(np.uint64), units[at:stop], threads=threads)
                self._measure()
            self.dead = max(0, self.dead - (stop - at))
            at = stop
            if politely:
                slow = time.perf_counter() - began > _STEP
                self._step = max(4, self._step // 2) if slow else min(2 * self._step, _BATCH)
                if self._asking:  # or this thread would have the lock again before it is awake
                    time.sleep(2e-4)
        return at

    def remove(self, slots: Slots) -> None:
        """Remove vectors."""
        if len(slots):
            with self.lock:
                self._index.remove(slots.astype(np.uint64))
                self._measure()
            self.removed += len(slots)
            self.dead += len(slots)

    def save(self, path: Path) -> None:
        """Write it into a new file.

        Raises:
            RuntimeError: The system refused.
        """
        self.busy = True
        try:
            with self.lock:
                self._index.save(os.fspath(path))
        finally:
            self.busy = False

    def load(self, path: Path) -> bool:
        """Take what is in a file, whose bytes are known to be what was saved; whether it fits."""
        with self.lock:
            expected: Any = (self._index.ndim, self._index.dtype, self._index.metric_kind)
            self._index.load(os.fspath(path))
            found: Any = (self._index.ndim, self._index.dtype, self._index.metric_kind)
            self._index.expansion_add, self._index.expansion_search = EXPANSION_ADD, EXPANSION  # loading resets them
            self._measure()
        return bool(found == expected and self._index.connectivity == CONNECTIVITY)

    def _measure(self) -> None:
        self._count, self.nbytes = len(self._index), int(self._index.memory_usage)

    def after_fork_in_child(self) -> None:
        """The locks may be held by threads that are not there."""
        self.lock, self._counting, self._asking = threading.Lock(), threading.Lock(), 0
