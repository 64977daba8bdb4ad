"""Seeds from a mirror: one matrix product for all queries, chunk by chunk, and the best of each once more.

Matrix products round differently with their shapes (and may be allowed to round a lot), so the few rows that come out
best are compared again, each on its own: equal vectors get equal cosines, and the lower row comes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from aesg.memory.mirror import Mirror

_ROUNDING: Final = 2e-6
"""Cosines of the product that differ by less may be in the wrong order."""
_SPARE: Final = 64
"""So many rows beyond the k best are compared again."""
_HALF_FACTOR: Final = 4
"""And so many times as many where float16 was searched."""
_LEAST_CHUNK: Final = 4096


@dataclass(frozen=True, slots=True)
class NearestRows:
    """The nearest rows of each query, best first.

    Attributes:
        rows: int64 [L, k].
        cosines: float32 [L, k]; -inf where there is none, and in all places after it.
    """

    rows: Tensor
    cosines: Tensor


def directions_of(queries: Tensor) -> Tensor:
    """Vectors [n, D] at length 1, float32; one without a direction becomes zero."""
    wide = queries.double()
    lengths = wide.square().sum(dim=1).sqrt()
    directed = torch.isfinite(lengths) & (lengths > 0)
    return torch.where(directed[:, None], (wide / lengths[:, None]).float(), 0.0)


def width(mirror: Mirror, k: int) -> int:
    """How many rows of each query are compared again."""
    return min(mirror.count, k * (_HALF_FACTOR if mirror.halves is not None else 1) + _SPARE)


def nearest(
    mirror: Mirror, directions: Tensor, k: int, min_similarity: float, *, include_pruned: bool, elements: int
) -> NearestRows:
    """The at most `k` active rows of highest cosine above `min_similarity`, ties by row.

    Args:
        mirror: Where to look.
        directions: float32 [L, D], at length 1 or 0; one of length 0 has no neighbours.
        k: At least 1.
        min_similarity: Exclusive.
        include_pruned: Pruned rows count too.
        elements: How many similarities may be held at a time.
    """
    several = width(mirror, k)
    some, found = _search(mirror, directions, several, include_pruned, elements, by_row=False)
    if k < several < mirror.count:
        # Where a crowd of equals was cut off, the product's order among them is nobody's: by row, then.
        crowd = torch.isfinite(some[:, -1]) & (some[:, -1] >= some[:, k - 1] - _ROUNDING)
        if crowd.any():
            again, rows = _search(mirror, directions[crowd], several, include_pruned, elements // 4, by_row=True)
            some[crowd], found[crowd] = again, rows
    vectors = mirror.vectors.index_select(0, found.reshape(-1)).view(*found.shape, directions.shape[1])
    exact = vectors.mul_(directions[:, None]).sum(dim=2) * mirror.reciprocal[found]
    exact.clamp_(-1, 1)
    asks = directions.any(dim=1, keepdim=True)
    exact = torch.where(torch.isfinite(some) & asks & (exact > min_similarity), exact, -torch.inf)
    found, order = found.sort(dim=1)
    exact, order = exact.gather(1, order).sort(dim=1, descending=True, stable=True)
    return NearestRows(found.gather(1, order)[:, :k].contiguous(), exact[:, :k].contiguous())


def _search(
    mirror: Mirror, directions: Tensor, several: int, include_pruned: bool, elements: int, *, by_row: bool
) -> tuple[Tensor, Tensor]:
    """Similarities, -inf for rows that cannot seed, and rows of the best of each query: [L, several] both."""
    lanes, count, device = len(directions), mirror.count, directions.device
    best = torch.full((lanes, several), -torch.inf, device=device)
    rows = torch.arange(several, device=device).expand(lanes, several)
    wanted = directions if mirror.halves is None else directions.half()
    step = max(_LEAST_CHUNK, elements // max(1, lanes))
    for start in range(0, count, step):
        chunk = slice(start, min(start + step, count))
        reciprocal = mirror.reciprocal[chunk]
        can = reciprocal > 0 if include_pruned else (reciprocal > 0) & mirror.is_active[chunk]
        bias = torch.where(can, 0.0, -torch.inf)
        if mirror.halves is None:
            similarity = wanted @ mirror.vectors[chunk].T
            torch.addcmul(bias, similarity, reciprocal, out=similarity)
        else:
            similarity = (wanted @ mirror.halves[chunk].T).float() + bias
        least = min(several, similarity.shape[1])
        if by_row:
            among = _ordered(similarity).topk(least, dim=1).indices
            values = similarity.gather(1, among)
        else:
            values, among = similarity.topk(least, dim=1)
        best, rows = torch.cat([best, values], dim=1), torch.cat([rows, among + start], dim=1)
        # Rows of the beginning that stand for nothing have -inf and lose to everything; best first is by row already.
        order = best.sort(dim=1, descending=True, stable=True).indices[:, :several]
        best, rows = best.gather(1, order), rows.gather(1, order)
    return best, rows


def _ordered(similarity: Tensor) -> Tensor:
    """Integers that are ordered as similarities are, and equal ones with the lower row first; int64 [L, n]."""
    bits = similarity.view(torch.int32)
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    rows = torch.arange(similarity.shape[1], device=similarity.device)
    return (rising << 32) - rows
