"""The parts of 0.3.0's memory that its readme uses: `memory.storage`, `memory.logger`, `memory.cognitive_engine`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from aesg.engine.consolidation import Report
from aesg.records import event_dicts

if TYPE_CHECKING:
    from aesg.memory.controller import AESGMemory


class Part:
    """Something to be asked of a memory under a name of its own."""

    __slots__ = ("_memory",)

    def __init__(self, memory: AESGMemory) -> None:
        self._memory = memory


class Storage(Part):
    """`memory.storage`: figures and columns, with what is not committed yet."""

    __slots__ = ()

    @property
    def vector_dim(self) -> int:
        """D."""
        return self._memory.vector_dim

    @property
    def node_count(self) -> int:
        """Number of rows, pruned ones included."""
        with self._memory.graph() as graph:
            return len(graph.nodes)

    @property
    def edge_count(self) -> int:
        """Number of edges."""
        with self._memory.graph() as graph:
            return len(graph.edges)

    @property
    def nodes(self) -> NodeColumns:
        """`nodes[field]` is a copy of a whole column, by row."""
        return NodeColumns(self._memory)


class NodeColumns(Part):
    """`memory.storage.nodes`."""

    __slots__ = ()

    def __getitem__(self, field: str) -> npt.NDArray[Any]:
        with self._memory.graph() as graph:
            chunks = [chunk[field] for chunk in graph.nodes.scan([field])]
            return np.concatenate(chunks) if chunks else graph.nodes.read([], [field])[field]

    def __len__(self) -> int:
        return self._memory.storage.node_count


class Logger(Part):
    """`memory.logger`: the evolution log."""

    __slots__ = ()

    def get_history(self) -> list[dict[str, Any]]:
        """All events, oldest first, as dicts: timestamp, type (its name), id1, id2, val."""
        with self._memory.graph() as graph:
            return event_dicts(graph.events.read())


class CognitiveEngine(Part):
    """`memory.cognitive_engine`: creating concepts by hand."""

    __slots__ = ()

    def create_sensory_concept(self, vector: Tensor | npt.ArrayLike) -> int:
        """Store a vector [D] as it came; returns its row. `AESGMemory.add_concepts` takes many at once."""
        return self._memory._create_concept(vector)

    def create_abstract_concept(self, rows: Sequence[int] | npt.ArrayLike | Tensor) -> int:
        """Make a concept of the mean of others, linked with each of them; returns its row."""
        return self._memory._create_abstract(rows)

    def consolidate(self) -> Report:
        """See `AESGMemory.update_topology`."""
        return self._memory.update_topology()
