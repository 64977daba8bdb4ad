"""What the engine's tests share: small random graphs and a naive reference."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

import aesg
from aesg.config import AESGConfig
from aesg.engine.activation import Energies
from aesg.records import NodeBatch


@dataclass
class Sketch:
    """A graph as plain arrays; edges in the order in which they are made."""

    vectors: np.ndarray
    active: np.ndarray
    region: np.ndarray
    source: np.ndarray
    target: np.ndarray
    weight: np.ndarray
    confidence: np.ndarray

    def store(self) -> Any:
        store = aesg.open("memory:", vector_dim=self.vectors.shape[1])
        columns = {"is_active": self.active.astype(np.uint8), "region_id": self.region.astype(np.uint32)}
        store.nodes.append(NodeBatch(self.vectors, np.arange(100, 100 + len(self.vectors), dtype=np.uint64), columns))
        if len(self.source):
            store.edges.append(self.source, self.target, self.weight, self.confidence)
        return store

    def permuted(self, order: np.ndarray) -> Sketch:
        """The same graph with row `order[i]` as row i."""
        place = np.argsort(order)
        return Sketch(
            self.vectors[order],
            self.active[order],
            self.region[order],
            place[self.source],
            place[self.target],
            self.weight,
            self.confidence,
        )


def sketch(seed: int, nodes: int = 12, edges: int = 30, dim: int = 3) -> Sketch:
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((nodes, dim)).astype(np.float32)
    vectors[rng.random(nodes) < 0.1] = 0
    edges = edges if nodes else 0
    return Sketch(
        vectors,
        rng.random(nodes) < 0.85,
        rng.integers(0, 3, nodes),
        rng.integers(0, max(1, nodes), edges),
        rng.integers(0, max(1, nodes), edges),
        (rng.random(edges) * 1.5 * (rng.random(edges) < 0.95)).astype(np.float32),
        rng.random(edges).astype(np.float32),
    )


@dataclass
class Reached:
    """What the reference found."""

    energies: dict[int, float] = field(default_factory=dict)  # in the order in which rows became active
    cosines: dict[int, float] = field(default_factory=dict)
    paths: list[list[int]] = field(default_factory=list)
    carrying: list[tuple[int, int]] = field(default_factory=list)  # (ref, target)
    fill: list[int] = field(default_factory=list)
    margin: float = math.inf  # how near a decision came to going the other way


def reference(
    graph: Sketch, config: AESGConfig, query: np.ndarray, carried: Energies | None, extra: Energies | None
) -> Reached:
    """Recipe L with all our options, node by node and edge by edge, in Python floats."""
    out = Reached()

    def over(value: float, threshold: float) -> bool:
        if value != threshold:  # equal values are equal in any precision: zeros mostly
            out.margin = min(out.margin, abs(value - threshold) / max(abs(value), abs(threshold)))
        return value > threshold

    def cosine(row: int) -> float | None:
        a, b = graph.vectors[row].astype(float), np.asarray(query, float)
        lengths = math.sqrt(a @ a) * math.sqrt(b @ b)
        return float(a @ b) / lengths if lengths else None

    asks = bool(np.any(query != 0))
    can_seed = [r for r in range(len(graph.vectors)) if graph.active[r] or config.seed_pruned]
    near = [(r, c) for r in can_seed if (c := cosine(r)) is not None and over(c, config.min_seed_similarity)]
    near.sort(key=lambda p: -p[1])
    for (_, a), (_, b) in pairwise(near):
        out.margin = min(out.margin, (a - b) * 10)
    best = near[0][1] if near and near[0][1] > 0 else 1.0

    def gate(row: int) -> float:
        c = cosine(row)
        return 1.0 if not config.query_gate or c is None else max(0.0, c) / best

    def clamped(energy: float) -> float:
        return min(energy, config.energy_clamp) if config.energy_clamp else energy

    context = []
    if carried is not None and asks and (config.context_replaces_query or config.context_carry):
        rows = zip(carried.rows.tolist(), carried.energies.tolist(), strict=True)
        context = [(r, e) for r, e in rows if graph.active[r] or config.seed_pruned]
    seeds: list[tuple[int, float]] = []
    if config.context_replaces_query and context:
        seeds = [(r, 1.0) for r in {r for r, _ in context}]
    else:
        chosen = near[: config.num_seeds]
        if config.seed_energy == "softmax":
            seeds = [(r, math.exp((c - chosen[0][1]) / config.seed_temperature)) for r, c in chosen]
        else:
            rows_in_order = [r for r, _ in chosen]
            seeds = [(r, 1.0) for r in (set(rows_in_order) if config.context_replaces_query else rows_in_order)]
        seeds += [(r, config.context_carry * e * gate(r)) for r, e in context]
    if extra is not None:
        seeds += [(r, e) for r, e in zip(extra.rows.tolist(), extra.energies.tolist(), strict=True) if graph.active[r]]
    energy: dict[int, float] = {}
    for row, e in seeds:
        if e > 0:
            energy[row] = energy.get(row, 0.0) + e
    energy = {row: clamped(e) for row, e in energy.items()}
    received = dict(energy)

    regions = [int(graph.region[r]) for r, _ in context]
    dominant = max(set(regions), key=regions.count, default=0)
    for _ in range(config.spreading_activation_steps):
        passing = received if config.wavefront else energy
        sums: dict[int, float] = {}
        moves = []
        for source in [row for row in energy if row in passing]:
            e = passing[source]
            if not (e > 0 and (config.firing_threshold == 0 or over(e, config.firing_threshold))):
                continue
            edges = np.flatnonzero(graph.source == source)[::-1].tolist()
            total = sum(float(graph.weight[i]) * float(graph.confidence[i]) for i in edges)
            fan = total**config.fan_exponent if config.fan_exponent and total else 1.0
            for i in edges:
                target = int(graph.target[i])
                moved = e / fan * float(graph.weight[i]) * float(graph.confidence[i])
                moved *= config.spreading_activation_decay
                home, there = graph.region[source], graph.region[target]
                favoured = there == dominant if config.region_zero_counts else home == there != 0
                if favoured:
                    moved *= config.region_facilitation_multiplier
                if graph.active[target] and over(moved, config.transfer_threshold):
                    sums[target] = sums.get(target, 0.0) + moved
                    moves.append((source, target, i))
        received = {}
        for target, arrived in sums.items():
            if over(arrived * gate(target), config.arrival_threshold):
                received[target] = clamped(arrived * gate(target))
        for target, e in received.items():
            had = energy.get(target, 0.0)
            energy[target] = clamped(had + e if config.combine == "sum" else max(had, e))
        out.paths += [[s, t] for s, t, _ in moves if t in received]
        out.carrying += [(i, t) for _, t, i in moves if t in received]
    out.energies = energy
    out.cosines = {row: cosine(row) or 0.0 for row in energy}
    if config.fill_nearest and energy:
        out.fill = [r for r, _ in near if r not in energy][: max(0, config.top_k - len(energy))]
    return out
