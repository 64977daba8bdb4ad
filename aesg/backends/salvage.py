"""What a backend gives of a store that is damaged: whatever is sound, and what is not.

A `Wreck` gives rows as far as they were once there, each with the fields that are known of it. It says nothing of
whether rows fit each other: ids that come twice, edges that lead nowhere and numbers that are not finite are the
business of `aesg.migration.salvaging`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from aesg.records import JSON, Columns

_SHOWN: Final = 1000
"""Places that are listed."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that is damaged.

    Attributes:
        part: What is damaged: "nodes", "edges", "events", "attrs", "commits", or "derived" where nothing is lost by it.
        place: Where: a file, a block, a row.
        detail: What was found.
    """

    part: str
    place: str
    detail: str


class Losses:
    """Collects what is damaged.

    Attributes:
        places: The first ones, in the order in which they were met.
        further: How many more there are.
    """

    def __init__(self) -> None:
        self.places: list[Loss] = []
        self.further = 0

    def add(self, part: str, place: str, detail: str) -> None:
        """Note one."""
        if len(self.places) < _SHOWN:
            self.places.append(Loss(part, place, detail))
        else:
            self.further += 1


Known = Mapping[str, npt.NDArray[np.bool_]]
"""Field → which rows it is known of; a field that is not here is known of all of them."""


class Wreck(Protocol):
    """A damaged store, as far as it can be read. Nothing that it does changes the store.

    Attributes:
        url: Where it lies.
        vector_dim: Length of the vectors.
        attrs: The attributes, as far as they are known.
        node_rows: Rows of nodes that were once there.
        edge_slots: Refs that were given, those of removed edges included.
        event_rows: Events that were once there.
        missing: "nodes", "edges", "events": how many more there were, behind the last ones, of which nothing is left.
        losses: What was found damaged.
    """

    url: str
    vector_dim: int
    attrs: Mapping[str, JSON]
    node_rows: int
    edge_slots: int
    event_rows: int
    missing: Mapping[str, int]
    losses: Losses

    def nodes(self, start: int, stop: int) -> tuple[Columns, Known]:
        """Rows start:stop, all of `records.NODE_FIELDS`; what is not known may hold anything."""

    def edges(self, start: int, stop: int) -> tuple[Columns, Known]:
        """Refs start:stop: all of `records.EDGE_FIELDS`, and "removed". Rows are -1 where an edge names no node."""

    def events(self, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Events start:stop of `records.EVENT_DTYPE`, and which of them are known."""

    def close(self) -> None:
        """Let go of everything."""
