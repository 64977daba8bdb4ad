"""What both sides are fed: the same numbers from the same seeds. NumPy only."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]


def vectors(count: int, dim: int, seed: int = 1) -> Floats:
    """Random directions, float32 [count, dim]."""
    return np.random.default_rng([seed, dim]).standard_normal((count, dim), np.float32)


def queries(first: int, count: int, dim: int) -> Floats:
    """Noisy copies of the vectors `first`, … that `vectors` gives, float32 [count, dim]."""
    stored = vectors(first + count, dim)  # a longer draw begins with the shorter one
    noise: Floats = np.float32(0.5) * vectors(first + count, dim, seed=2)
    return (stored + noise)[first:]


def edges(nodes: int, per_node: int, seed: int = 3) -> tuple[Ints, Ints, Floats]:
    """A random graph: source rows, target rows, weights in [0.5, 1); `per_node` leave each node."""
    rng = np.random.default_rng([seed, nodes])
    count = nodes * per_node
    sources = np.arange(count, dtype=np.int64) % nodes
    return sources, rng.integers(0, nodes, count), rng.uniform(0.5, 1, count).astype(np.float32)


def condition(nodes: int, forgotten: float) -> dict[str, npt.NDArray[Any]]:
    """Node columns of which the next consolidation prunes the share `forgotten`, evenly spread."""
    old = np.diff(np.floor(np.arange(nodes + 1) * forgotten)) > 0
    return {
        "is_active": np.ones(nodes, np.uint8),
        "age": np.where(old, 10, 0).astype(np.uint32),
        "relevance": np.where(old, 0.01, 1).astype(np.float32),
        "use_frequency": np.zeros(nodes, np.uint32),
    }
