"""The job of `rivals.py`: its data, its rule, and what is right, in plain NumPy.

Everything is drawn from fixed seeds, so that each process can make it again. Edges are given ordered by source, nodes
by number: node r of every system is row r here, edge e is position e, and what is learned counts on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import retrieval_data as made
from data import Floats, Ints
from retrieval_rivals import check_recipe

from aesg import AESGConfig

BIRTHS: Final = 100
"""Nodes that are learned at a time."""
LINKS: Final = 1000
"""Edges that are learned at a time."""
TOUCHED: Final = 1000
"""Edges that are reinforced at a time."""
DECAY: Final = np.float32(0.95)
"""Factor on relevance when consolidating."""
LEAST: Final = np.float32(0.5)
"""Relevance below which a node is pruned; no node's is near to it."""
BORDERLINE: Final = 1e-4
"""What arrives so near to the threshold, relatively, may be rounded to either side: such queries prove nothing."""
CLOSE: Final = 1e-3
"""Relative difference of two energies that are the same."""

FILES: Final = ("vectors", "relevance", "source", "target", "weight", "confidence", "queries")

Doubles: TypeAlias = npt.NDArray[np.float64]
EdgesOf: TypeAlias = Callable[[Ints], tuple[Ints, Ints, Floats]]
"""Rows, ascending → source, target and strength (weight times confidence) of the edges that leave them, any order."""
CosinesOf: TypeAlias = Callable[[Ints], tuple[Ints, Floats]]
"""Rows → those of them that are there, and their cosines with the query, any order."""


@dataclass(frozen=True)
class Rule:
    """How activation spreads: the default recipe, as far as it matters to a query without a context."""

    seeds: int
    hops: int
    top: int
    decay: float
    temperature: float
    fan: float
    threshold: float

    @classmethod
    def of(cls, dim: int) -> Rule:
        """The defaults.

        Raises:
            RuntimeError: The recipe has changed, this rule has not.
        """
        config = AESGConfig(vector_dim=dim)
        check_recipe(config)
        return cls(
            config.num_seeds,
            config.spreading_activation_steps,
            config.top_k,
            config.spreading_activation_decay,
            config.seed_temperature,
            config.fan_exponent,
            config.arrival_threshold,
        )


@dataclass(frozen=True)
class Activated:
    """What a query activated.

    Attributes:
        seeds: int64 [k], best first.
        rows: int64 [n].
        energies: float64 [n]; None where the system gives only the order.
        margin: How near to the threshold anything came, relatively.
    """

    seeds: Ints
    rows: Ints
    energies: Doubles | None
    margin: float = 1.0


# --- the data --------------------------------------------------------------------------------------------------------


def write(folder: Path, nodes: int, per_node: int, dim: int, queries: int) -> None:
    """Write what every system is given, one .npy file for each of `FILES`."""
    made.save(folder / "vectors.npy", nodes, dim)
    rng = np.random.default_rng([21, nodes])
    forgotten = rng.permutation(nodes) < nodes // 2
    relevance = np.where(forgotten, 0.1 + 0.3 * rng.random(nodes), 0.6 + 0.4 * rng.random(nodes))
    np.save(folder / "relevance.npy", relevance.astype(np.float32))
    np.save(folder / "source.npy", np.repeat(np.arange(nodes), per_node))
    target = np.empty((nodes, per_node), np.int64)
    weight, confidence = np.empty((2, nodes, per_node), np.float32)
    for i, (_, to, one, other) in enumerate(made.edges(nodes, per_node)):
        target[:, i], weight[:, i], confidence[:, i] = to, one, other
    for name, column in (("target", target), ("weight", weight), ("confidence", confidence)):
        np.save(folder / f"{name}.npy", column.reshape(-1))
    np.save(folder / "queries.npy", made.queries(nodes, dim, queries))


def read(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """Map what `write` wrote."""
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in FILES}


@dataclass(frozen=True)
class Lesson:
    """Nodes and edges that are learned at once.

    Attributes:
        ids: int64 [BIRTHS], the new nodes.
        vectors: float32 [BIRTHS, dim].
        relevance: float32 [BIRTHS].
        edge_ids: int64 [LINKS], the new edges.
        source: int64 [LINKS]: half of them leave a new node.
        target: int64 [LINKS].
        weight: float32 [LINKS].
        confidence: float32 [LINKS].
    """

    ids: Ints
    vectors: Floats
    relevance: Floats
    edge_ids: Ints
    source: Ints
    target: Ints
    weight: Floats
    confidence: Floats


def lesson(turn: int, nodes: int, edges: int, dim: int) -> Lesson:
    """What is learned in a turn by a memory that began with so many nodes and edges."""
    rng = np.random.default_rng([22, nodes, turn])
    ids = nodes + turn * BIRTHS + np.arange(BIRTHS)
    centres = rng.standard_normal((BIRTHS, dim), np.float32)
    new, old = ids[np.arange(LINKS // 2) % BIRTHS], rng.integers(0, nodes, (2, LINKS // 2))
    weight, confidence = np.float32(1) - rng.random((2, LINKS), np.float32)
    return Lesson(
        ids,
        centres,
        np.ones(BIRTHS, np.float32),
        edges + turn * LINKS + np.arange(LINKS),
        np.concatenate([new, old[0]]),
        np.concatenate([old[1], new]),
        weight,
        confidence,
    )


def touched(turn: int, edges: int) -> Ints:
    """The edges that are reinforced in a turn, int64, ascending: some that were there in the beginning."""
    return np.sort(np.random.default_rng([23, edges, turn]).choice(edges, min(TOUCHED, edges), replace=False))


def reinforced(confidence: Floats, rate: float) -> Floats:
    """Confidences once they have gone a share of the way to 1."""
    return (confidence + np.float32(rate) * (np.float32(1) - confidence)).astype(np.float32)


# --- the rule --------------------------------------------------------------------------------------------------------


def spread(rule: Rule, seeds: Ints, cosines: Floats, edges_of: EdgesOf, cosines_of: CosinesOf) -> Activated:
    """Spread activation from seeds by asking for the edges and the cosines of a hop at a time.

    Args:
        rule: How.
        seeds: int64 [k], best first.
        cosines: float32 [k], theirs with the query.
        edges_of: Asked with the firing rows.
        cosines_of: Asked with the rows that energy arrives at.
    """
    best = float(cosines[0])
    order = np.argsort(seeds)
    rows = seeds[order]
    energy = np.exp((cosines[order].astype(np.float64) - best) / rule.temperature)
    all_rows, all_energies, margin = [rows], [energy], 1.0
    for _ in range(rule.hops):
        source, target, strength = edges_of(rows)
        if not len(source):
            break
        at = np.searchsorted(rows, source)
        strength = strength.astype(np.float64)
        fan = np.bincount(at, strength, len(rows)) ** rule.fan
        reached, place = np.unique(target, return_inverse=True)
        sums = _summed(place, energy[at] * strength * rule.decay / fan[at])
        margin = min(margin, _margin(sums, rule.threshold))
        rows, sums = reached[sums > rule.threshold], sums[sums > rule.threshold]
        there, cosine = cosines_of(rows)
        sums, rows = sums[np.searchsorted(rows, there)], there
        energy = sums * np.maximum(cosine, 0) / best
        margin = min(margin, _margin(energy, rule.threshold))
        kept = np.flatnonzero(energy > rule.threshold)
        kept = kept[np.argsort(rows[kept])]
        rows, energy = rows[kept], energy[kept]
        all_rows.append(rows)
        all_energies.append(energy)
        if not len(rows):
            break
    active, place = np.unique(np.concatenate(all_rows), return_inverse=True)
    return Activated(seeds, active, _summed(place, np.concatenate(all_energies)), margin)


def best_of(found: Activated, count: int) -> Ints:
    """The rows with the most energy, best first."""
    assert found.energies is not None
    return found.rows[np.argsort(-found.energies, kind="stable")[:count]]


def _summed(place: Ints, energies: Doubles) -> Doubles:
    """The sum at each place, float64."""
    sums: Doubles = np.bincount(place, energies).astype(np.float64, copy=False)
    return sums


def _margin(energies: Doubles, threshold: float) -> float:
    return float(np.abs(energies / threshold - 1).min()) if len(energies) else 1.0


# --- what is right ---------------------------------------------------------------------------------------------------


class Reference:
    """The memory as it has to be, in RAM; searched by comparing with every vector."""

    def __init__(self, given: dict[str, npt.NDArray[Any]], rule: Rule) -> None:
        self.rule = rule
        self._began = len(given["vectors"]), len(given["source"])
        self._units = made.directions(np.asarray(given["vectors"]))
        self._relevance = np.array(given["relevance"])
        self._alive = np.ones(len(self._units), np.bool_)
        self._edges = {name: np.array(given[name]) for name in ("source", "target", "weight", "confidence")}
        self._kept = np.ones(len(self._edges["source"]), np.bool_)
        self._order()

    @property
    def counts(self) -> tuple[int, int]:
        """Nodes and edges that are left."""
        return int(self._alive.sum()), int(self._kept.sum())

    def learn(self, turn: int) -> None:
        """See `lesson`."""
        new = lesson(turn, *self._began, self._units.shape[1])
        self._units = np.concatenate([self._units, made.directions(new.vectors)])
        self._relevance = np.concatenate([self._relevance, new.relevance])
        self._alive = np.concatenate([self._alive, np.ones(len(new.ids), np.bool_)])
        for name in self._edges:
            self._edges[name] = np.concatenate([self._edges[name], getattr(new, name)])
        self._kept = np.concatenate([self._kept, np.ones(len(new.edge_ids), np.bool_)])
        self._order()

    def reinforce(self, turn: int, rate: float) -> None:
        """See `touched`."""
        some = touched(turn, self._began[1])
        self._edges["confidence"][some] = reinforced(self._edges["confidence"][some], rate)

    def consolidate(self) -> None:
        """Decay, prune, remove the edges of what was pruned."""
        self._relevance *= DECAY
        self._alive &= self._relevance >= LEAST
        self._kept &= self._alive[self._edges["source"]] & self._alive[self._edges["target"]]
        self._order()

    def nearest(self, query: Floats, count: int) -> tuple[Ints, Floats]:
        """The nearest living rows and their cosines, best first."""
        cosines = self._units @ (query / np.linalg.norm(query))
        cosines[~self._alive] = -2
        rows = np.argpartition(-cosines, count)[:count] if count < len(cosines) else np.arange(len(cosines))
        rows = rows[np.argsort(-cosines[rows])]
        return rows, cosines[rows]

    def activate(self, query: Floats, seeds: Ints | None = None) -> Activated:
        """What a query activates, from its own nearest rows or from given ones."""
        unit = query / np.linalg.norm(query)
        rows = self.nearest(query, self.rule.seeds)[0] if seeds is None else seeds
        return spread(self.rule, rows, self._units[rows] @ unit, self._out, lambda r: (r, self._units[r] @ unit))

    def _order(self) -> None:
        """Edges by source."""
        kept = np.flatnonzero(self._kept)
        self._by_source = kept[np.argsort(self._edges["source"][kept], kind="stable")]
        counts = np.bincount(self._edges["source"][kept], minlength=len(self._units))
        self._starts = np.concatenate([[0], np.cumsum(counts)])

    def _out(self, rows: Ints) -> tuple[Ints, Ints, Floats]:
        starts, counts = self._starts[rows], np.diff(self._starts)[rows]
        ends = np.cumsum(counts)
        some = self._by_source[np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)]
        strength = self._edges["weight"][some] * self._edges["confidence"][some]
        return self._edges["source"][some], self._edges["target"][some], strength


@dataclass
class Findings:
    """How a system's answers compare with the reference's.

    Attributes:
        recall: Share of the true nearest rows that were among the seeds.
        compared: Queries whose activated set was compared, from the system's own seeds.
        undecided: Queries that were not, because something came too near to the threshold.
        faults: What was wrong, one sentence each.
    """

    recall: float
    compared: int
    undecided: int
    faults: list[str]


def compare(reference: Reference, queries: Floats, answers: list[Activated]) -> Findings:
    """Compare a system's answers, one for each query, with what the rule makes of the same seeds."""
    hits = total = compared = undecided = 0
    faults: list[str] = []
    for i, (query, answer) in enumerate(zip(queries, answers, strict=True)):
        truth = reference.nearest(query, reference.rule.seeds)[0]
        hits += int(np.isin(truth, answer.seeds).sum())
        total += len(truth)
        if len(answer.seeds) != len(truth):
            faults.append(f"query {i}: {len(answer.seeds)} seeds instead of {len(truth)}")
            continue
        right = reference.activate(query, answer.seeds)
        if right.margin < BORDERLINE:
            undecided += 1
            continue
        compared += 1
        faults += [f"query {i}: {fault}" for fault in _differences(right, answer)]
    return Findings(hits / total, compared, undecided, faults)


def _differences(right: Activated, answer: Activated) -> list[str]:
    """What is wrong with an answer."""
    missing, surplus = np.setdiff1d(right.rows, answer.rows), np.setdiff1d(answer.rows, right.rows)
    if len(missing) or len(surplus) or len(answer.rows) != len(right.rows):
        return [f"{len(missing)} of {len(right.rows)} activated rows are missing, {len(surplus)} are too many"]
    assert right.energies is not None
    expected = right.energies[np.searchsorted(right.rows, answer.rows)]
    if answer.energies is None:  # in order of energy, best first
        wrong = bool((np.diff(expected) > CLOSE * expected[1:]).any())
    else:
        wrong = not np.allclose(answer.energies, expected, rtol=CLOSE, atol=0)
    return ["the activated rows have other energies"] if wrong else []
