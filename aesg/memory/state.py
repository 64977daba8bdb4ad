"""What a memory remembers between two queries of a lane.

A *lane* is a row of the batch: a sequence of queries that belong together. Every thread has lanes of its own, so that
threads that share a memory do not become each other's context.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from aesg.engine.activation import Activation, Energies
from aesg.records import Rows


@dataclass(slots=True)
class Lane:
    """One lane.

    Attributes:
        carried: What the previous query activated most, with energies relative to the best; None at the start.
        first: The first of them, from which the next query's first concept is reached; None at the start.
    """

    carried: Energies | None = None
    first: int | None = None

    def move(self, row_map: Rows) -> None:
        """After a compaction: the rows that its concepts have now. Those that were dropped are forgotten."""
        if self.first is not None:
            first = int(row_map[self.first])
            self.first = first if first >= 0 else None
        if self.carried is not None:
            rows = row_map[self.carried.rows]
            stays = rows >= 0
            self.carried = Energies(rows[stays], self.carried.energies[stays]) if stays.any() else None

    def follow(self, activation: Activation, num_primary: int) -> None:
        """Take what a query activated as the context of the lane's next one."""
        self.carried = carried_on(activation, num_primary)
        self.first = int(activation.rows[0]) if len(activation.rows) else None


def carried_on(activation: Activation, num_primary: int) -> Energies | None:
    """The primary rows that have energy (rows that only fill the result up have none), the best at 1.0."""
    energies = activation.energies[:num_primary]
    has_energy = energies > 0
    if not has_energy.any():
        return None
    kept = energies[has_energy]
    return Energies(activation.rows[:num_primary][has_energy], (kept / kept.max()).astype(np.float32))


class Lanes:
    """The lanes of the thread that asks."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def resize(
        self, count: int, *, era: int, moved: Callable[[int], Rows | None], forget: Callable[[int], None]
    ) -> list[Lane]:
        """This thread's lanes, as many as the batch has rows; those that are left keep their state.

        Args:
            count: Rows of the batch.
            era: Rows mean what they meant as long as this number is the same.
            moved: Gives, for an earlier era, the row that each row of then has now (-1: none); None where nobody knows,
                and lanes of that era start afresh.
            forget: Called with the number of each lane that is dropped.
        """
        lanes = self._here()
        before = getattr(self._threads, "era", era)
        if before != era:
            row_map = moved(before)
            if row_map is None:
                lanes.clear()
            else:
                for known in lanes:
                    known.move(row_map)
        self._threads.era = era
        for lane in range(count, len(lanes)):
            forget(lane)
        del lanes[count:]
        lanes.extend(Lane() for _ in range(count - len(lanes)))
        return lanes

    def clear(self) -> None:
        """Forget this thread's lanes."""
        self._here().clear()

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._here())

    def _here(self) -> list[Lane]:
        try:
            return self._threads.lanes  # type: ignore[no-any-return]
        except AttributeError:
            self._threads.lanes = []
            return self._threads.lanes  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        other = type(self)()
        other._threads.lanes = copy.deepcopy(self._here(), memo)
        if hasattr(self._threads, "era"):
            other._threads.era = self._threads.era
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()  # a pickled memory starts without context
