"""The engine on a backend, through a proxy that shows the protocol alone: it does what it does on `memory:`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends import registry
from aesg.config import AESGConfig
from aesg.engine.activation import Activation, Energies, activate
from aesg.engine.consolidation import consolidate
from aesg.engine.plasticity import credit, link_newborn
from aesg.engine.structure import create_abstract, create_sensory, find_regions, merge, split
from aesg.protocols import Graph, GraphStore
from aesg.records import EDGE_FIELDS, NODE_FIELDS, Columns, NodeBatch
from aesg.testing.base import ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.graphs import check_within, joined
from aesg.testing.proxy import Bare

DIM: Final = 6
NODES: Final = 300
PLAIN: Final = AESGConfig(vector_dim=DIM)
CONFIGS: Final = {
    "the default": PLAIN,
    "0.3.0": AESGConfig.preset("aesg-0.3", vector_dim=DIM),
    "widest": PLAIN.replace(spreading_activation_steps=6, arrival_threshold=0.0, top_k=200, wavefront=False),
    "pruned ones seed": PLAIN.replace(seed_pruned=True, combine="max", fan_exponent=0.0),
    "carried": PLAIN.replace(context_carry=0.5, query_gate=False, fill_nearest=False),
}
ROUGH: Final = PLAIN.replace(
    max_concepts=250,
    max_edges_per_node=12,
    consolidation_epoch_interval=2,
    coactivation_threshold_create=3,
    merge_similarity_threshold=0.9,
    split_density_threshold=9,
    prune_confidence_threshold=0.3,
    edge_confidence_decay=0.9,
    relevance_decay=0.8,
)
"""Everything that consolidation and restructuring can do happens soon."""


def populate(graph: Graph) -> None:
    """A few hundred nodes of all kinds, thousands of edges: hubs, loops, links of no weight."""
    rng = np.random.default_rng(11)
    vectors = rng.standard_normal((NODES, DIM)).astype(np.float32)
    vectors[rng.random(NODES) < 0.05] = 0
    vectors[1:40:2] = vectors[0:39:2] * 2 + 0.01
    columns: Columns = {
        "is_active": (rng.random(NODES) < 0.9).astype(np.uint8),
        "region_id": rng.integers(0, 5, NODES),
        "use_frequency": rng.integers(0, 12, NODES),
        "created_at": np.arange(NODES),
        "modified_at": np.arange(NODES),
    }
    graph.nodes.append(NodeBatch(vectors, np.arange(NODES, dtype=np.uint64) + 100, columns))
    sources = (rng.random(3000) ** 3 * NODES).astype(np.int64)
    weight = rng.random(3000) * 1.5 * (rng.random(3000) < 0.95)
    refs = graph.edges.append(sources, rng.integers(0, NODES, 3000), weight, rng.random(3000))
    graph.edges.write(refs[::5], use_count=rng.integers(0, 9, 600))
    graph.edges.remove(refs[::11])


def ask(graph: Graph, config: AESGConfig, seed: int, lanes: int = 8) -> list[Activation]:
    """Activate the graph with queries, context of before and extra seeds."""
    rng = np.random.default_rng(seed)
    queries = rng.standard_normal((lanes, DIM)).astype(np.float32)
    queries[0] = 0

    def some() -> Energies | None:
        rows = rng.permutation(len(graph.nodes))[: rng.integers(0, 6)].astype(np.int64)
        return Energies(rows, rng.random(len(rows)).astype(np.float32)) if len(rows) else None

    return activate(graph, config, queries, [some() for _ in range(lanes)], [some() for _ in range(lanes)])


def assert_activations(got: Iterable[Activation], wanted: Iterable[Activation]) -> None:
    """The same rows, ways and transfers; numbers may differ in the last digit, as the order of a sum may."""
    for one, other in zip(got, wanted, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        assert one.paths.tolist() == other.paths.tolist()
        assert one.transfers.tolist() == other.transfers.tolist()
        np.testing.assert_array_equal(one.vectors, other.vectors)
        np.testing.assert_allclose(one.energies, other.energies, rtol=1e-5)


def assert_alike(got: Graph, wanted: Graph) -> None:
    """The same graph, but for ids and times, which the engine leaves to chance and the clock."""
    ours, theirs = (joined(graph.nodes.scan(), list(NODE_FIELDS)) for graph in (got, wanted))
    assert_columns(ours, theirs, sorted(set(NODE_FIELDS) - {"id", "created_at", "modified_at"}))
    ours, theirs = (joined(graph.edges.scan(), ["ref", *EDGE_FIELDS]) for graph in (got, wanted))
    assert_columns(ours, theirs, ["ref", *EDGE_FIELDS])
    for name in ("type", "val"):
        assert got.events.read()[name].tolist() == wanted.events.read()[name].tolist()
    assert dict(got.attrs) == dict(wanted.attrs)


def assert_columns(
    got: dict[str, npt.NDArray[Any] | None], wanted: dict[str, npt.NDArray[Any] | None], names: list[str]
) -> None:
    """Whole numbers are equal, others to the last digits."""
    for name in names:
        one, other = got[name], wanted[name]
        assert one is not None
        assert other is not None
        if one.dtype.kind == "f":
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7, err_msg=name)
        else:
            np.testing.assert_array_equal(one, other, err_msg=name)


class EngineClauses(ClauseGroup):
    """The engine's essential behaviour."""

    def lived(self, stores: Stores, live: Callable[[Graph], object]) -> tuple[GraphStore, GraphStore]:
        """Let the same happen to a store of the target and to one in memory, each in one transaction."""
        ours = stores.new(vector_dim=DIM)
        reference = stores.keep(registry.open("memory:", vector_dim=DIM))
        for store in (ours, reference):
            with store.transaction() as graph:
                populate(graph)
            with store.transaction() as graph:
                live(Bare(graph))
        return ours, reference

    @clause("engine.activation")
    def test_activation(self, stores: Stores) -> None:
        """Activation finds the same rows by the same ways, through the store, a transaction and a snapshot."""
        ours, reference = self.lived(stores, lambda graph: None)
        for seed, config in enumerate(CONFIGS.values()):
            wanted = ask(reference, config, seed)
            assert sum(len(each.rows) for each in wanted) > 50
            assert_activations(ask(Bare(ours), config, seed), wanted)
            with ours.transaction() as graph:
                assert_activations(ask(Bare(graph), config, seed), wanted)
            if ours.capabilities.snapshots:
                with ours.snapshot() as graph:
                    assert_activations(ask(Bare(graph), config, seed), wanted)

    @clause("engine.learning")
    def test_learning(self, stores: Stores) -> None:
        """Credit, reinforcement, succession and links of the newborn change the graph as they do in memory."""

        def live(graph: Graph) -> None:
            previous: list[int | None] = [None] * 8
            for turn in range(12):
                activations = ask(graph, ROUGH, turn)
                credit(graph, ROUGH, activations, previous)
                previous = [int(each.rows[0]) if len(each.rows) else None for each in activations]
                if turn % 4 == 3:
                    vectors = np.random.default_rng(turn).standard_normal((8, DIM)).astype(np.float32)
                    rows = create_sensory(graph, vectors, np.arange(8, dtype=np.uint64) + 1000 * turn)
                    link_newborn(graph, ROUGH, rows, activations)

        ours, reference = self.lived(stores, live)
        assert_alike(ours, reference)
        assert len(ours.nodes) == NODES + 24
        assert_activations(ask(ours, PLAIN, 99), ask(reference, PLAIN, 99))
        check_within(ours)
        assert ours.verify() == []

    @clause("engine.consolidation")
    def test_consolidation(self, stores: Stores) -> None:
        """Consolidation ages, forgets, prunes, merges, splits and abstracts as it does in memory."""
        reports = []

        def live(graph: Graph) -> None:
            for turn in range(8):
                credit(graph, ROUGH, ask(graph, ROUGH, turn), [None] * 8)
                reports.append(consolidate(graph, ROUGH))

        ours, reference = self.lived(stores, live)
        assert reports[:8] == reports[8:]
        assert sum(report.pruned for report in reports) > 0
        assert sum(report.removed_edges for report in reports) > 0
        assert_alike(ours, reference)
        assert set(ours.events.read()["type"].tolist()) >= {1, 2, 3, 4, 5}
        assert ours.compact().tolist() == reference.compact().tolist()
        assert_alike(ours, reference)
        assert_activations(ask(ours, PLAIN, 99), ask(reference, PLAIN, 99))
        check_within(ours)
        assert ours.verify() == []

    @clause("engine.structure")
    def test_structure(self, stores: Stores) -> None:
        """Concepts are created, merged, split and grouped into regions as they are in memory."""
        found = []

        def live(graph: Graph) -> None:
            create_sensory(graph, np.ones((3, DIM), np.float32))
            create_abstract(graph, [0, 5, NODES])
            merge(graph, 7, 9)
            split(graph, 0)
            found.append(find_regions(graph))

        ours, reference = self.lived(stores, live)
        assert found[0] == found[1] > 0
        assert_alike(ours, reference)
        check_within(ours)
