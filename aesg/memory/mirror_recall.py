"""A retrieval that a mirror answers: the lanes' contexts go in, a context on the mirror's device comes out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from aesg.config import AESGConfig
from aesg.engine.activation import Energies
from aesg.memory.context import BatchContext
from aesg.memory.mirror import WORK_BYTES, Mirror, room
from aesg.memory.mirror_spread import Reflection, activate
from aesg.memory.state import Lane
from aesg.records import Vectors


class MirroredContext(BatchContext):
    """A `BatchContext` whose tensors were made where they lie.

    Args:
        found: What the batch activated.
        num_primary: See there; so are `dim` and `dtype`.
        dim: See there.
        dtype: See there.
    """

    def __init__(self, found: Reflection, *, num_primary: int, dim: int, dtype: torch.dtype) -> None:
        lanes = len(found.ends) - 1
        self._ends = found.ends.tolist()
        self._paths = found.paths
        self.num_primary = num_primary
        self.dim = dim
        self.explanation = found.explanation.tolist()
        self.born = [None] * lanes
        self.cut = found.cut.tolist()
        self.ids = found.ids
        self.activated_nodes = found.rows.tolist()
        self.weights = found.weights.to(dtype)
        self.concept_vectors = found.vectors.to(dtype) if len(found.rows) else None


def recall(
    mirror: Mirror,
    config: AESGConfig,
    queries: Vectors,
    extra: Sequence[Energies | None],
    lanes: Sequence[Lane],
    dtype: torch.dtype,
    url: str,
) -> MirroredContext:
    """Retrieve from a mirror; the lanes' contexts move on.

    Args:
        mirror: Where to look.
        config: One that it supports.
        queries: float32 [B, D].
        extra: Per lane, seeds given by the caller.
        lanes: The B lanes.
        dtype: Of the context's tensors.
        url: The store's, for messages.

    Raises:
        CapacityError: The device has too little memory.
        NotFoundError: An extra seed that is no row of the graph.
    """
    with room(url, mirror.device, mirror.bytes + WORK_BYTES[mirror.device.type]):
        found = activate(mirror, config, queries, [lane.carried for lane in lanes], extra)
        context = MirroredContext(found, num_primary=config.num_primary, dim=config.vector_dim, dtype=dtype)
    _follow(lanes, found, config.num_primary)
    return context


def _follow(lanes: Sequence[Lane], found: Reflection, num_primary: int) -> None:
    """`Lane.follow` for all lanes, with the arithmetic done at once."""
    counts = np.diff(found.ends)
    best = np.repeat(np.append(found.energies, np.float32(1))[found.ends[:-1]], counts)
    # The best one of a lane that has any has energy: what fills up comes after.
    relative = found.energies / best
    place = np.arange(len(relative)) - np.repeat(found.ends[:-1], counts)
    kept = np.flatnonzero((place < num_primary) & (found.energies > 0))
    rows, energies = found.rows[kept], relative[kept]
    ends = np.searchsorted(kept, found.ends).tolist()
    first = np.append(found.rows, -1)[found.ends[:-1]].tolist()
    for i, lane in enumerate(lanes):
        start, stop = ends[i], ends[i + 1]
        lane.carried = Energies(rows[start:stop], energies[start:stop]) if start < stop else None
        lane.first = first[i] if counts[i] else None
