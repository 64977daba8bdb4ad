"""What a retrieval returns: the activated concepts of one query, or of a ragged batch of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aesg.engine.activation import Activation
from aesg.engine.activation import Ways as EngineWays
from aesg.records import Ids


class Ways(Protocol):
    """Transfers of energy of one lane: an array int64 [P, 2], or what becomes one when it is asked for."""

    def tolist(self) -> Any:
        """[source row, target row] of each."""


@dataclass(frozen=True, slots=True)
class _Paths:
    """The paths of a lane that the engine activated."""

    ways: EngineWays

    def tolist(self) -> Any:
        return self.ways.paths.tolist()


class Lanewise(Protocol):
    """The transfers of each lane."""

    def __getitem__(self, lane: int, /) -> Ways: ...


@dataclass(frozen=True, eq=False)
class RetrievedContext:
    """What one query activated, best first.

    Tensors are on the query's device and of its dtype.

    Attributes:
        concept_vectors: Tensor [N, D]; None when nothing was activated.
        activated_nodes: The N rows.
        ids: uint64 [N], their ids.
        weights: Tensor [N], their energies; 0 for a concept that only fills the result up.
        explanation: How well the memory explains the query, from 0 to 1.
        born: The row of the concept that this query gave birth to, or None.
        num_primary: How many of the concepts are primary.
        dim: D.
        cut: Whether there were more edges than `config.max_hop_edges`, so that some were not followed.
    """

    concept_vectors: Tensor | None
    activated_nodes: list[int]
    ids: Ids
    weights: Tensor
    explanation: float
    born: int | None
    num_primary: int
    dim: int
    cut: bool
    _paths: Ways = field(repr=False)

    @cached_property
    def paths(self) -> list[list[int]]:
        """[source row, target row] of every transfer of energy, in the order in which they happened."""
        return self._paths.tolist()  # type: ignore[no-any-return]

    @property
    def primary_concepts(self) -> list[int]:
        """Rows of the strongest concepts: the context of the lane's next query."""
        return self.activated_nodes[: self.num_primary]

    @property
    def secondary_concepts(self) -> list[int]:
        """The other rows."""
        return self.activated_nodes[self.num_primary :]

    @property
    def vectors(self) -> Tensor | None:
        """`concept_vectors` by its name in 0.3.0."""
        return self.concept_vectors

    def aggregate(self) -> Tensor:
        """One vector [D]: the mean of the concepts, weighted by energy; zeros when nothing was activated."""
        if self.concept_vectors is None:
            return self.weights.new_zeros(self.dim)
        return _weighted_means(self.concept_vectors, self.weights, None, 1)[0]


class BatchContext:
    """What the B queries of a batch activated: as many concepts for each as there were (ragged).

    Every attribute of `RetrievedContext` is here too, lane after lane; `batch_index` tells whose is whose.
    `batch[i]` is lane i's own `RetrievedContext`, and iterating gives them one by one.

    Attributes:
        concept_vectors: Tensor [N, D], N concepts of all lanes together; None when no lane activated any.
        activated_nodes: The N rows.
        ids: uint64 [N].
        weights: Tensor [N].
        explanation: One score per lane.
        born: Per lane, the row of the concept born of its query, or None.
        dim: D.
        cut: Per lane, whether some edges were not followed.
    """

    def __init__(
        self,
        activations: Sequence[Activation],
        explanation: list[float],
        born: list[int | None],
        *,
        num_primary: int,
        dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        counts = [len(a.rows) for a in activations]
        self._ends = np.cumsum([0, *counts]).tolist()
        self._paths: Lanewise = [_Paths(a.ways) for a in activations]
        self.num_primary = num_primary
        self.dim = dim
        self.explanation = explanation
        self.born = born
        self.cut = [a.cut for a in activations]
        self.ids = _joined([a.ids for a in activations], _NO_IDS)
        self.activated_nodes: list[int] = [row for a in activations for row in a.rows.tolist()]

        total = self._ends[-1]
        self.weights = _tensor(_joined([a.energies for a in activations], _NO_ENERGIES), device, dtype)
        self.concept_vectors: Tensor | None = None
        if total:
            vectors = _joined([a.vectors for a in activations], np.empty((0, dim), np.float32))
            self.concept_vectors = _tensor(vectors, device, dtype)

    @cached_property
    def batch_index(self) -> Tensor:
        """The lane of each concept, int64 [N]."""
        return torch.repeat_interleave(torch.tensor(np.diff(self._ends), device=self.weights.device))

    def __len__(self) -> int:
        """B."""
        return len(self._ends) - 1

    def __getitem__(self, lane: int) -> RetrievedContext:
        """Lane `lane`'s own context; its tensors are views of the batch's."""
        index = range(len(self))[lane]
        start, stop = self._ends[index : index + 2]
        vectors, weights = self.concept_vectors, self.weights
        if len(self) > 1:  # a slice of a tensor takes as long as a hop's arithmetic
            vectors = vectors[start:stop] if vectors is not None and start < stop else None
            weights = weights[start:stop]
        return RetrievedContext(
            concept_vectors=vectors,
            activated_nodes=self.activated_nodes[start:stop],
            ids=self.ids[start:stop],
            weights=weights,
            explanation=self.explanation[index],
            born=self.born[index],
            num_primary=self.num_primary,
            dim=self.dim,
            cut=self.cut[index],
            _paths=self._paths[index],
        )

    def __iter__(self) -> Iterator[RetrievedContext]:
        return (self[lane] for lane in range(len(self)))

    @property
    def paths(self) -> list[list[int]]:
        """[source row, target row] of every transfer, lane after lane."""
        return [path for lane in self for path in lane.paths]

    @property
    def primary_concepts(self) -> list[int]:
        """Rows of each lane's strongest concepts, lane after lane."""
        return [row for lane in self for row in lane.primary_concepts]

    @property
    def secondary_concepts(self) -> list[int]:
        """The other rows, lane after lane."""
        return [row for lane in self for row in lane.secondary_concepts]

    @property
    def vectors(self) -> Tensor | None:
        """`concept_vectors` by its name in 0.3.0."""
        return self.concept_vectors

    def aggregate(self) -> Tensor:
        """One vector per lane, [B, D]: see `RetrievedContext.aggregate`."""
        if self.concept_vectors is None:
            return self.weights.new_zeros(len(self), self.dim)
        return _weighted_means(self.concept_vectors, self.weights, self.batch_index, len(self))

    def to_padded(self) -> tuple[Tensor, Tensor]:
        """The concepts as a rectangle, for attention and the like.

        Returns:
            Vectors [B, K, D], zeros beyond a lane's own, where K is the largest lane's count; and a bool mask [B, K],
            True where a concept is.
        """
        return self._padded(self.concept_vectors, self.dim), self._mask()

    def padded_weights(self) -> Tensor:
        """The weights in the places of `to_padded`'s vectors: [B, K], zeros beyond a lane's own."""
        return self._padded(self.weights[:, None], 1)[..., 0]

    def _mask(self) -> Tensor:
        counts = torch.tensor(np.diff(self._ends), device=self.weights.device)
        return torch.arange(self._width, device=counts.device) < counts[:, None]

    def _padded(self, values: Tensor | None, width: int) -> Tensor:
        out = self.weights.new_zeros(len(self), self._width, width)
        if values is not None:
            out[self._mask()] = values  # row-major order of the mask is lane after lane
        return out

    @property
    def _width(self) -> int:
        return max(np.diff(self._ends).tolist(), default=0)

    def __repr__(self) -> str:
        return f"BatchContext(lanes={len(self)}, concepts={len(self.activated_nodes)})"


_NO_IDS: Final[Ids] = np.empty(0, np.uint64)
_NO_ENERGIES: Final = np.empty(0, np.float32)


def _joined(arrays: Sequence[npt.NDArray[Any]], empty: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate([empty, *arrays])


def _tensor(array: npt.NDArray[Any], device: torch.device, dtype: torch.dtype) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor if tensor.dtype == dtype and tensor.device == device else tensor.to(device, dtype)


def _weighted_means(vectors: Tensor, weights: Tensor, lanes: Tensor | None, count: int) -> Tensor:
    """Energy-weighted mean of `vectors` [N, D] per lane, [count, D]; computed in float32 at least."""
    wide = torch.promote_types(vectors.dtype, torch.float32)
    where = torch.zeros(len(weights), dtype=torch.long, device=weights.device) if lanes is None else lanes
    energy = weights.to(wide)
    sums = torch.zeros(count, vectors.shape[1], dtype=wide, device=vectors.device)
    sums.index_add_(0, where, vectors.to(wide) * energy[:, None])
    totals = torch.zeros(count, dtype=wide, device=vectors.device).index_add_(0, where, energy)
    return (sums / totals.clamp_min(torch.finfo(wide).tiny)[:, None]).to(vectors.dtype)
