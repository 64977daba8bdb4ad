"""The memory that `retrieval.py` asks: clustered vectors, and edges of which half stay in the cluster.

Everything is made chunk by chunk from fixed seeds, so that each process can make it again. NumPy only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from data import Floats, Ints

CLUSTER: Final = 500
"""Nodes of a cluster: a million make two thousand clusters."""
NOISE: Final = np.float32(0.5)
"""Standard deviation of a vector's components around its centre's, whose own is 1."""
CHUNK: Final = 100_000
"""Rows that are made at a time."""

Edges: TypeAlias = tuple[Ints, Ints, Floats, Floats]
"""Source rows, target rows, weight, confidence."""


def clusters(nodes: int) -> int:
    """How many there are. Row r lies in cluster r modulo that many: a cluster is spread over the whole store."""
    return max(1, nodes // CLUSTER)


def vectors(nodes: int, dim: int) -> Iterator[Floats]:
    """The vectors of all rows, float32 [at most CHUNK, dim] each."""
    centres = _centres(nodes, dim)
    for first in range(0, nodes, CHUNK):
        rows = np.arange(first, min(first + CHUNK, nodes))
        yield _near(centres[rows % len(centres)], np.random.default_rng([11, dim, first]))


def queries(nodes: int, dim: int, count: int) -> Floats:
    """Points of the clusters that are not stored, float32 [count, dim]."""
    rng, centres = np.random.default_rng([12, dim]), _centres(nodes, dim)
    return _near(centres[rng.integers(0, len(centres), count)], rng)


def edges(nodes: int, per_node: int) -> Iterator[Edges]:
    """One edge from every row at a time, `per_node` times; weight and confidence are uniform in (0, 1].

    The targets of every other time are rows of the source's cluster, else any rows.
    """
    every, count = np.arange(nodes), clusters(nodes)
    for turn in range(per_node):
        rng = np.random.default_rng([13, nodes, turn])
        if turn % 2 == 0:
            home = every % count
            targets = home + count * rng.integers(0, (nodes - 1 - home) // count + 1)
        else:
            targets = rng.integers(0, nodes, nodes)
        weight, confidence = (np.float32(1) - rng.random(nodes, np.float32) for _ in range(2))
        yield every, targets, weight, confidence


def save(path: Path, nodes: int, dim: int) -> None:
    """Write all vectors to a .npy file, which processes map instead of each making its own."""
    out = np.lib.format.open_memmap(path, "w+", np.float32, (nodes, dim))
    for i, chunk in enumerate(vectors(nodes, dim)):
        out[i * CHUNK : i * CHUNK + len(chunk)] = chunk


def load(path: str) -> Floats:
    """Map what `save` wrote."""
    mapped: Floats = np.load(path, mmap_mode="r")
    return mapped


def directions(array: npt.NDArray[np.float32]) -> Floats:
    """The vectors [n, dim] at length 1."""
    unit: Floats = array / np.linalg.norm(array, axis=1, keepdims=True)
    return unit


def _centres(nodes: int, dim: int) -> Floats:
    return np.random.default_rng([10, dim]).standard_normal((clusters(nodes), dim), np.float32)


def _near(centres: Floats, rng: np.random.Generator) -> Floats:
    return centres + NOISE * rng.standard_normal(centres.shape, np.float32)
