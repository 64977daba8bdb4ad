"""What a researcher writes by hand, all in RAM: a vector index of a library, and hops over compressed sparse rows.

Both follow the default configuration's recipe. They know that nothing is ever learned: what an edge passes on, weight,
confidence, fan and decay together, is one number made beforehand.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import retrieval_data as made
from data import Floats, Ints

from aesg import AESGConfig

CONNECTIVITY: Final = 16
EXPANSION: Final = 128
"""Of both indexes, while they are built."""
CANDIDATES: Final = 64
"""Of usearch, whose vectors are rounded to bf16: so many are compared again."""
LADDER: Final = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)
"""Expansions that are tried for the search."""

Nearest: TypeAlias = tuple[Ints, Floats]
"""Rows and cosines, best first."""


@dataclass(frozen=True)
class Sparse:
    """The edges by source.

    Attributes:
        starts: int64 [nodes + 1].
        targets: int32 [edges].
        passes: float32 [edges], the share of what the source received that the target gets.
    """

    starts: Ints
    targets: npt.NDArray[np.int32]
    passes: Floats


def sparse(nodes: int, per_node: int, config: AESGConfig) -> Sparse:
    """The edges that `retrieval_data.edges` makes."""
    targets = np.empty((nodes, per_node), np.int32)
    passes = np.empty((nodes, per_node), np.float32)
    for i, (_, to, weight, confidence) in enumerate(made.edges(nodes, per_node)):
        targets[:, i] = to
        passes[:, i] = weight * confidence
    fan = passes.sum(axis=1, dtype=np.float64) ** config.fan_exponent
    passes *= (config.spreading_activation_decay / fan).astype(np.float32)[:, None]
    return Sparse(np.arange(nodes + 1) * per_node, targets.reshape(-1), passes.reshape(-1))


def check_recipe(config: AESGConfig) -> None:
    """What the hops below do is what the configuration says.

    Raises:
        RuntimeError: It is not any more.
    """
    values = {name: getattr(config, name) for name in RECIPE}
    if values != RECIPE:
        raise RuntimeError(f"the default recipe has changed, the rivals have not: {values} is not {RECIPE}")


RECIPE: Final = {
    "seed_energy": "softmax",
    "min_seed_similarity": 0.0,
    "firing_threshold": 0.0,
    "transfer_threshold": 0.0,
    "combine": "sum",
    "wavefront": True,
    "energy_clamp": 0.0,
    "query_gate": True,
    "fill_nearest": True,
}


class Index(Protocol):
    """A library's vector index."""

    def build(self, vectors: Floats) -> float:
        """Add all; seconds."""

    def search(self, query: Floats, count: int) -> Nearest:
        """The nearest of a unit vector [D], at most `count`."""

    def expand(self, expansion: int) -> None:
        """How far a search looks around."""


class Faiss:
    """faiss's HNSW, inner product of float32."""

    def __init__(self, dim: int, path: Path) -> None:
        self._path = path
        self._faiss = library("faiss", "faiss-cpu")
        if path.exists():
            self._index = self._faiss.read_index(str(path))
        else:
            self._index = self._faiss.IndexHNSWFlat(dim, CONNECTIVITY, self._faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = EXPANSION

    def build(self, vectors: Floats) -> float:
        start = time.perf_counter()
        for first in range(0, len(vectors), made.CHUNK):
            self._index.add(made.directions(vectors[first : first + made.CHUNK]))
        seconds = time.perf_counter() - start
        self._faiss.write_index(self._index, str(self._path))
        return seconds

    def search(self, query: Floats, count: int) -> Nearest:
        cosines, rows = self._index.search(query[None], count)
        found = rows[0] >= 0
        return rows[0][found], cosines[0][found]

    def expand(self, expansion: int) -> None:
        self._index.hnsw.efSearch = expansion


class USearch:
    """usearch's HNSW, inner product of bf16; the best candidates are compared again in float32."""

    def __init__(self, dim: int, path: Path, units: Floats | None = None) -> None:
        self._path = path
        self._units = units
        kind = library("usearch.index", "usearch").Index
        self._index = kind(ndim=dim, metric="ip", dtype="bf16", connectivity=CONNECTIVITY, expansion_add=EXPANSION)
        if path.exists():
            self._index.load(str(path))

    def build(self, vectors: Floats) -> float:
        start = time.perf_counter()
        for first in range(0, len(vectors), made.CHUNK):
            part = made.directions(vectors[first : first + made.CHUNK])
            self._index.add(np.arange(first, first + len(part)), part)
        seconds = time.perf_counter() - start
        self._index.save(str(self._path))
        return seconds

    def search(self, query: Floats, count: int) -> Nearest:
        assert self._units is not None
        rows = self._index.search(query, max(count, CANDIDATES)).keys.astype(np.int64)
        cosines = self._units[rows] @ query
        best = np.argsort(-cosines)[:count]
        return rows[best], cosines[best]

    def expand(self, expansion: int) -> None:
        self._index.expansion_search = expansion


def library(module: str, package: str) -> Any:
    """Import what need not be installed.

    Raises:
        RuntimeError: It is not.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"{package}, which this is held against, is not installed: pip install {package}") from error


def recall(index: Index, queries: Floats, truth: Ints) -> float:
    """Share of the true nearest rows [n, k] that are among the k best found."""
    k = truth.shape[1]
    hits = [np.isin(truth[i], index.search(query, 2 * k)[0][:k]).sum() for i, query in enumerate(queries)]
    return float(np.sum(hits) / truth.size)


def tune(index: Index, queries: Floats, truth: Ints, wanted: float) -> dict[str, float]:
    """Give a search the least expansion that reaches a recall."""
    for expansion in LADDER:
        index.expand(expansion)
        reached = recall(index, queries, truth)
        if reached >= wanted:
            break
    return {"expansion": float(expansion), "recall": reached}


# --- asking ----------------------------------------------------------------------------------------------------------


class ByNumPy:
    """Hops of NumPy."""

    def __init__(self, index: Index, graph: Sparse, units: Floats, config: AESGConfig) -> None:
        self._index, self._graph, self._units, self._config = index, graph, units, config
        self._energy = np.zeros(len(units), np.float32)

    def ask(self, query: Floats) -> Ints:
        """A query [D] → rows, best first."""
        config, graph, total = self._config, self._graph, self._energy
        query = query / np.linalg.norm(query)
        rows, cosines = self._index.search(query, config.num_seeds)
        best, nearest = cosines[0], rows
        energy = np.exp((cosines - best) / np.float32(config.seed_temperature))
        total[rows] = energy
        active = [rows]
        for _ in range(config.spreading_activation_steps):
            starts = graph.starts[rows]
            counts = graph.starts[rows + 1] - starts
            ends = np.cumsum(counts)
            edges = np.repeat(starts - ends + counts, counts) + np.arange(ends[-1])
            targets, place = np.unique(graph.targets[edges], return_inverse=True)
            sums = np.bincount(place, np.repeat(energy, counts) * graph.passes[edges])
            some = np.flatnonzero(sums > config.arrival_threshold)
            rows = targets[some].astype(np.int64)
            gates = np.maximum(self._units[rows] @ query, 0) / best
            energy = (sums[some] * gates).astype(np.float32)
            arrived = energy > config.arrival_threshold
            rows, energy = rows[arrived], energy[arrived]
            total[rows] += energy
            active.append(rows)
            if not len(rows):
                break
        found = np.unique(np.concatenate(active))
        answer = found[np.argsort(-total[found])[: config.top_k]]
        total[found] = 0
        if len(answer) < config.top_k:
            answer = np.concatenate([answer, nearest[~np.isin(nearest, answer)]])[: config.top_k]
        return answer


class ByNumba:
    """Hops in one compiled loop."""

    def __init__(self, index: Index, graph: Sparse, units: Floats, config: AESGConfig) -> None:
        self._index, self._graph, self._units, self._config = index, graph, units, config
        compiled: Callable[..., Ints] = library("numba", "numba").njit(fastmath=True)(_spread)
        self._compiled = compiled
        # Energy, what arrives, gate: together, so that a node is one cache line.
        self._state = np.zeros((len(units), 4), np.float32)
        self._lists = np.empty((4, len(units)), np.int32)

    def ask(self, query: Floats) -> Ints:
        """A query [D] → rows, best first."""
        config, graph = self._config, self._graph
        query = query / np.linalg.norm(query)
        rows, cosines = self._index.search(query, config.num_seeds)
        answer = self._compiled(
            query,
            rows,
            cosines,
            graph.starts,
            graph.targets,
            graph.passes,
            self._units,
            self._state,
            self._lists,
            np.float32(config.seed_temperature),
            config.spreading_activation_steps,
            np.float32(config.arrival_threshold),
            config.top_k,
        )
        if len(answer) < config.top_k:
            answer = np.concatenate([answer, rows[~np.isin(rows, answer)]])[: config.top_k]
        return answer


def _spread(
    query: Floats,
    seeds: Ints,
    cosines: Floats,
    starts: Ints,
    targets: npt.NDArray[np.int32],
    passes: Floats,
    units: Floats,
    state: Floats,
    lists: npt.NDArray[np.int32],
    temperature: np.float32,
    hops: int,
    threshold: np.float32,
    top_k: int,
) -> Ints:
    """Compiled by numba: spread, and give back the best active rows."""
    touched, active, known, firing = lists[0], lists[1], lists[2], lists[3]
    passing = state[:, 3]
    best = cosines[0]
    n_firing = n_active = n_known = 0
    for i in range(len(seeds)):
        row = seeds[i]
        energy = np.exp((cosines[i] - best) / temperature)
        state[row, 0] = energy
        state[row, 2] = cosines[i] / best
        state[row, 3] = energy
        active[n_active] = row
        known[n_known] = row
        firing[n_firing] = row
        n_active += 1
        n_known += 1
        n_firing += 1
    for _ in range(hops):
        n_touched = 0
        for i in range(n_firing):
            row = firing[i]
            sent = passing[row]
            for edge in range(starts[row], starts[row + 1]):
                target = targets[edge]
                if state[target, 1] == 0:
                    touched[n_touched] = target
                    n_touched += 1
                state[target, 1] += sent * passes[edge]
        n_firing = 0
        for i in range(n_touched):
            row = touched[i]
            arriving = state[row, 1]
            state[row, 1] = 0
            if arriving <= threshold:
                continue
            gate = state[row, 2]
            if gate == 0:
                cosine = np.float32(0)
                for j in range(len(query)):
                    cosine += units[row, j] * query[j]
                gate = cosine / best if cosine > 0 else np.float32(-1)
                state[row, 2] = gate
                known[n_known] = row
                n_known += 1
            arriving *= gate
            if arriving <= threshold:
                continue
            if state[row, 0] == 0:
                active[n_active] = row
                n_active += 1
            state[row, 0] += arriving
            state[row, 3] = arriving
            firing[n_firing] = row
            n_firing += 1
    energies = np.empty(n_active, np.float32)
    for i in range(n_active):
        energies[i] = state[active[i], 0]
    for i in range(n_known):
        state[known[i], 0] = state[known[i], 2] = 0
    chosen = np.argsort(-energies)[:top_k]
    answer = np.empty(len(chosen), np.int64)
    for i in range(len(chosen)):
        answer[i] = active[chosen[i]]
    return answer
