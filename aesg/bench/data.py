"""What every contender is fed: the same numbers from the same seeds, a piece at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

NODES: Final = 20_000
"""Nodes of one append in bulk."""
EDGES: Final = 500_000
"""Edges of one append in bulk."""
FAMILY: Final = 50
"""Nodes that are near to each other."""
ROWS: Final = 1000
"""Nodes that are gathered at a time."""
FRONTIER: Final = 100
"""Nodes from which hops begin."""
LANES: Final = 8
"""Queries of a training step."""

Burst: TypeAlias = dict[str, Any]
"""seconds: of each call; cpu: seconds of processor time of all; answer: a digest of all that was given back."""


def vectors(nodes: int, dim: int) -> Iterator[Floats]:
    """Clustered vectors, float32 [at most `NODES`, dim], `nodes` of them together."""
    centers = np.random.default_rng([1, dim]).standard_normal((max(1, nodes // FAMILY), dim), np.float32)
    for first in range(0, nodes, NODES):
        count = min(NODES, nodes - first)
        own = np.random.default_rng([2, dim, first]).standard_normal((count, dim), np.float32)
        yield centers[np.arange(first, first + count) % len(centers)] + np.float32(0.5) * own


def edges(nodes: int, count: int) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Random edges, as many from each node: source rows, target rows, weights in [0.5, 1); at most `EDGES` each."""
    for first in range(0, count, EDGES):
        rng = np.random.default_rng([3, nodes, first])
        size = min(EDGES, count - first)
        sources = np.arange(first, first + size, dtype=np.int64) % nodes
        yield sources, rng.integers(0, nodes, size), rng.uniform(0.5, 1, size).astype(np.float32)


def queries(nodes: int, dim: int, key: list[int], count: int) -> Floats:
    """Vectors near to stored ones, float32 [count, dim]; others for each key."""
    rng = np.random.default_rng([4, *key])
    centers = np.random.default_rng([1, dim]).standard_normal((max(1, nodes // FAMILY), dim), np.float32)
    noise = np.float32(0.6) * rng.standard_normal((count, dim), np.float32)
    found: Floats = centers[rng.integers(0, len(centers), count)] + noise
    return found


def draws(key: list[int], below: int, *shape: int) -> Ints:
    """Random rows, int64 of a shape; others for each key."""
    return np.random.default_rng([5, *key]).integers(0, below, shape)


def share(key: list[int], of: int, part: float) -> npt.NDArray[Any]:
    """Some of the first `of` numbers, ascending, none twice."""
    return np.sort(np.random.default_rng([6, *key]).choice(of, max(1, int(of * part)), replace=False))


def digest(answers: Iterable[Any]) -> str:
    """Of arrays and numbers, nested: the same for the same values, whatever their width."""
    found = hashlib.sha256()
    for answer in answers:
        if isinstance(answer, list):
            found.update(digest(answer).encode())
        else:
            array = np.asarray(answer)
            wide = array.astype(np.float64 if array.dtype.kind == "f" else np.int64)
            found.update((wide + 0.0 if wide.dtype.kind == "f" else wide).tobytes())  # no -0.0
    return found.hexdigest()
