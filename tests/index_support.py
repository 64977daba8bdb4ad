"""What the tests of the seed index share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import aesg
from aesg.engine.index.owner import SeedIndex
from aesg.engine.seeds import exact, nearest, units
from aesg.records import NodeBatch

D = 16


def clustered(n: int, seed: int = 0, dim: int = D) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, n // 100), dim))
    return (centres[rng.integers(0, len(centres), n)] + 0.6 * rng.standard_normal((n, dim))).astype(np.float32)


def filled(url: str, vectors: np.ndarray, **columns: Any) -> Any:
    store = aesg.open(url, vector_dim=vectors.shape[1])
    store.nodes.append(NodeBatch(vectors, columns=columns))
    return store


def queries(vectors: np.ndarray, count: int = 40, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    chosen = vectors[rng.choice(len(vectors), count)]
    return (chosen + 0.2 * rng.standard_normal(chosen.shape)).astype(np.float32)


def recall(graph: Any, asked: np.ndarray, k: int = 10, index: Any = None) -> float:
    """Share of the exact answer that `nearest` gives; what it gives is in order, and has the exact cosines."""
    right = exact(graph, units(asked), k, -2.0)
    hits = total = 0
    for want, have in zip(right, nearest(graph, asked, k, -2.0, index=index), strict=True):
        known = dict(zip(want.rows.tolist(), want.cosines.tolist(), strict=True))
        for row, cosine in zip(have.rows.tolist(), have.cosines.tolist(), strict=True):
            assert known.get(row, cosine) == cosine
        assert np.lexsort((have.rows, -have.cosines)).tolist() == list(range(len(have.rows)))
        assert len(set(have.rows.tolist())) == len(have.rows)
        hits += len(known.keys() & set(have.rows.tolist()))
        total += len(known)
    return hits / total


def asks_the_index(index: SeedIndex, graph: Any, query: np.ndarray, k: int = 10) -> bool:
    """Whether the index answers for the graph as it is."""
    return index.candidates(graph, units(query), k, -2.0) is not None


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
