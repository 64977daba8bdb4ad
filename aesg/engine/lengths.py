"""Reciprocal lengths of a store's vectors, remembered for as long as the store does not change.

Of an exact scan over 100,000 vectors a quarter goes into their lengths, which are the same for every query. They are 4
bytes a node, found by the first scan and kept until the next commit: equal generations mean equal contents.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from aesg.protocols import Graph

Floats: TypeAlias = npt.NDArray[np.float32]

_kept: Final[WeakKeyDictionary[Any, dict[bool, tuple[int, Floats]]]] = WeakKeyDictionary()


class Lengths:
    """The reciprocal lengths that one scan needs: known ones, or new ones to be remembered.

    Only a store has a generation; a transaction changes without one, and is measured each time.

    Args:
        graph: What is scanned.
        include_pruned: Whether pruned rows have a length (they are NaN otherwise).
    """

    def __init__(self, graph: Graph, include_pruned: bool) -> None:
        self._graph = graph
        self._pruned = include_pruned
        self._generation = getattr(graph, "generation", None)
        self._new: list[Floats] = []
        kept = None if self._generation is None else _kept.get(graph, {}).get(include_pruned)
        self._known = kept[1] if kept is not None and kept[0] == self._generation else None

    @property
    def fields(self) -> list[str]:
        """Node fields that the scan has to read."""
        return ["vector"] if self._pruned or self._known is not None else ["vector", "is_active"]

    def known(self, start: int, stop: int) -> Floats | None:
        """Those of rows start:stop, [n]; None when they have to be measured."""
        if self._known is None or stop > len(self._known):
            return None
        return self._known[start:stop]

    def measured(self, lengths: Floats) -> None:
        """Take those of the next rows, [n]."""
        if self._generation is not None:
            self._new.append(lengths)

    def keep(self) -> None:
        """Remember what was measured, unless the store has changed meanwhile."""
        if self._known is None and self._new and self._graph.generation == self._generation:  # type: ignore[attr-defined]
            assert self._generation is not None
            _kept.setdefault(self._graph, {})[self._pruned] = (int(self._generation), np.concatenate(self._new))
