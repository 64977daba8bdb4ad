"""Novelty: how well the graph explains an input, and when an unexplained one has come often enough to be kept."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine.activation import Activation
from aesg.engine.kernels import LOOPS, explain
from aesg.engine.seeds import units
from aesg.protocols import Graph
from aesg.records import Rows, Vectors

MAX_CANDIDATES: Final = 1024
"""So many unexplained inputs are remembered at once; then the one that was not seen for longest is forgotten."""


def explanation_score(query: npt.NDArray[np.float32], activation: Activation) -> float:
    """How well the activated subgraph explains this query, in [0, 1].

    The larger of two cosines with the query: that of the nearest activated node, and that of the activated nodes' unit
    vectors averaged with their energies as weights. The first makes the score 1 for an input that is known; by the
    second an input between two known concepts counts as explained by both of them. Cosines do not grow with the number
    of nodes or with D, so one threshold serves graphs of all sizes. Nodes that only fill up the result explain nothing.

    Args:
        query: float32 [D].
        activation: What the query activated.
    """
    active = activation.energies > 0
    if not active.any() or not query.any():
        return 0.0
    vectors = activation.vectors
    mean: float = LOOPS.get(explain, vectors.size)(np.ascontiguousarray(vectors), activation.energies, query)
    return min(1.0, max(0.0, activation.nearest, float(activation.cosines[active].max()), mean))


def centroid_score(graph: Graph, query: npt.NDArray[np.float32], rows: Rows) -> float:
    """0.3.0's explanation score: max(0, cosine of the query with the mean vector of the *previous* active set).

    Args:
        graph: Where the rows are.
        query: float32 [D].
        rows: int64 [n], the previous active set; the score is 0 when it is empty.
    """
    if not len(rows):
        return 0.0
    mean = graph.nodes.read(rows, ["vector"])["vector"].mean(axis=0, dtype=np.float64)
    return max(0.0, float(units(mean[None])[0] @ units(query[None])[0]))


class NoveltyCounter:
    """Counts how often what is not explained comes back.

    By default it counts per *input*: unexplained inputs are remembered as candidates, and one that returns
    `novelty_birth_threshold` times is due to be born, whatever came in between and in whichever lane. What does not
    return loses a count every `novelty_patience` observations and is forgotten at 0, so isolated noise dies out.

    With `novelty_by_lane` it counts per lane, as 0.3.0 does: up with every novel input, down with every other one.

    A zero query is no input: it is never counted.
    """

    def __init__(self, config: AESGConfig) -> None:
        self._config = config
        self._lanes: dict[int, int] = {}
        self._tick = 0
        # The candidates, one to a slot; a slot whose count has run out is free.
        self._directions: Vectors = np.zeros((0, config.vector_dim), np.float32)
        self._counts = np.zeros(0, np.int64)
        self._seen = np.zeros(0, np.int64)

    def observe(self, lane: int, query: npt.NDArray[np.float32], score: float) -> bool:
        """Take note of an input and its explanation score.

        Args:
            lane: Which lane it came in.
            query: float32 [D].
            score: How well it is explained, in [0, 1].

        Returns:
            Whether a node is to be born of it now; its count starts anew then.
        """
        direction = units(query[None])[0]
        if not direction.any():
            return False
        novel = score < self._config.novelty_explanation_threshold
        return (
            self._observe_lane(lane, novel) if self._config.novelty_by_lane else self._observe_input(direction, novel)
        )

    def reset_lane(self, lane: int) -> None:
        """A lane starts afresh. What was counted per input stays: it is about the input, not about the lane."""
        self._lanes.pop(lane, None)

    def reset(self) -> None:
        """All lanes start afresh."""
        self._lanes.clear()

    def count(self, lane: int = 0) -> int:
        """The count of a lane (`novelty_by_lane`)."""
        return self._lanes.get(lane, 0)

    def _observe_lane(self, lane: int, novel: bool) -> bool:
        count = self.count(lane) + 1 if novel else max(0, self.count(lane) - 1)
        due = novel and count >= self._config.novelty_birth_threshold
        self._lanes[lane] = 0 if due else count
        return due

    def _observe_input(self, direction: npt.NDArray[np.float32], novel: bool) -> bool:
        self._tick += 1
        if not novel:
            return False
        others = self._tick - self._seen - 1  # observations since each candidate was last seen
        left = self._counts - others // self._config.novelty_patience
        alive = left > 0
        similarity = np.where(alive, self._directions @ direction, -np.inf)
        slot = int(similarity.argmax()) if len(similarity) else -1
        if slot >= 0 and similarity[slot] >= self._config.novelty_match_similarity:
            count = int(left[slot]) + 1
        else:
            slot, count = self._free_slot(alive), 1
            self._directions[slot] = direction
        due = count >= self._config.novelty_birth_threshold
        self._counts[slot] = 0 if due else count
        self._seen[slot] = self._tick
        return due

    def _free_slot(self, alive: npt.NDArray[np.bool_]) -> int:
        """A slot without a candidate; if need be the one that was not seen for longest loses its own."""
        free = np.flatnonzero(~alive)
        if len(free):
            return int(free[0])
        size = len(alive)
        if size == MAX_CANDIDATES:
            return int(self._seen.argmin())
        more = min(max(8, size), MAX_CANDIDATES - size)
        self._directions = np.concatenate([self._directions, np.zeros((more, self._directions.shape[1]), np.float32)])
        self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
        self._seen = np.concatenate([self._seen, np.zeros(more, np.int64)])
        return size
