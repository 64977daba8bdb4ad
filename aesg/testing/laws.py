"""Laws of batches: a batch is as good as one by one, order and repeats are kept. Hypothesis looks for exceptions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aesg.protocols import Graph, GraphStore
from aesg.records import EDGE_FIELDS, NODE_FIELDS, EventType, NodeBatch, events
from aesg.testing.base import ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.fuzz import tries
from aesg.testing.graphs import Contents, assert_same, batch, check_within, contents

ROWS = 400
EDGES = 900


def law(body: Callable[..., None], *strategies: st.SearchStrategy[Any], short: int = 40) -> None:
    """Have Hypothesis try a law."""
    tries(short)(given(*strategies)(body))()


def spread(graph: Graph) -> None:
    """Many nodes, and edges of which some nodes have hundreds, most a few and some none."""
    rng = np.random.default_rng(7)
    graph.nodes.append(batch(ROWS, dim=graph.vector_dim))
    sources = (rng.random(EDGES) ** 4 * ROWS).astype(np.int64)
    refs = graph.edges.append(sources, rng.integers(0, ROWS, EDGES), rng.random(EDGES), rng.random(EDGES))
    graph.edges.remove(refs[::9])


rows = st.lists(st.integers(0, ROWS - 1), max_size=60)
live_refs = st.lists(st.integers(0, EDGES - 1).filter(lambda ref: ref % 9), max_size=60)
cuts = st.lists(st.integers(0, 120), max_size=6).map(sorted)


class LawClauses(ClauseGroup):
    """Batches obey the laws that arrays obey."""

    @clause("laws.batch-is-one-by-one")
    def test_a_batch_is_as_good_as_one_by_one(self, stores: Stores) -> None:
        """One large batch, many small ones and one by one leave the same graph."""
        whole = batch(700, seed=3)
        assert whole.id is not None
        ids = whole.id
        sources, targets = np.random.default_rng(1).integers(0, 700, (2, 900))
        weight = np.random.default_rng(2).random(900, np.float32)
        log = events(EventType.PRUNE, np.arange(50), 1, 2.0, timestamp=5)

        def by(size: int) -> Contents:
            store = stores.new()
            with store.transaction() as graph:
                for at in range(0, 700, size):
                    part = slice(at, at + size)
                    columns = {name: values[part] for name, values in whole.columns.items()}
                    graph.nodes.append(NodeBatch(whole.vector[part], ids[part], columns))
                for at in range(0, 900, size):
                    part = slice(at, at + size)
                    graph.edges.append(sources[part], targets[part], weight[part], 0.5)
                for at in range(0, 50, size):
                    graph.events.append(log[at : at + size])
                for at in range(0, 400, size):
                    chosen = np.arange(at, min(at + size, 400)) * 3 % 700
                    graph.nodes.write(chosen, age=chosen, vector=whole.vector[chosen] * 2)
                    graph.edges.write(chosen, weight=chosen / 7)
                for at in range(0, 300, size):
                    graph.edges.remove(np.arange(at, min(at + size, 300)) * 2)
            check_within(store)
            assert store.verify() == []
            return contents(store)

        one = by(1)
        assert len(one["lists refs"]) == 8 * 600
        assert_same(by(1000), one)
        assert_same(by(37), one)

    @clause("laws.cut-anywhere")
    def test_batches_may_be_cut_anywhere(self, stores: Stores) -> None:
        """Where a batch is cut, and whether into calls or transactions, makes no difference."""
        whole = batch(120, seed=8)
        assert whole.id is not None
        ids = whole.id
        sources, targets = np.random.default_rng(1).integers(0, 120, (2, 120))
        log = events(EventType.MERGE, np.arange(120), timestamp=5)

        def made(at: list[int], each_commits: bool) -> Contents:
            with stores.new() as store:
                graph: Any = store if each_commits else store.transaction()
                for start, stop in zip([0, *at], [*at, 120], strict=True):
                    part = slice(start, stop)
                    columns = {name: values[part] for name, values in whole.columns.items()}
                    appended = graph.nodes.append(NodeBatch(whole.vector[part], ids[part], columns))
                    assert appended.tolist() == list(range(start, stop))
                    graph.events.append(log[part])
                for start, stop in zip([0, *at], [*at, 120], strict=True):
                    refs = graph.edges.append(sources[start:stop], targets[start:stop], np.arange(start, stop))
                    assert refs.tolist() == list(range(start, stop))
                if not each_commits:
                    graph.commit()
                return contents(store)

        wanted = made([], each_commits=False)

        def cut(at: list[int], each_commits: bool) -> None:
            assert_same(made(at, each_commits), wanted)

        law(cut, cuts, st.booleans(), short=12)

    @clause("laws.reading-is-gathering")
    def test_reading_is_gathering(self, empty: GraphStore) -> None:
        """What is read of a list of rows or refs is what is read of each alone, in that order."""
        with empty.transaction() as graph:
            spread(graph)
        nodes = empty.nodes.read(np.arange(ROWS))
        live = np.array([ref for ref in range(EDGES) if ref % 9])
        edges = empty.edges.read(live)
        place = np.zeros(EDGES, np.int64)
        place[live] = np.arange(len(live))

        def gathered(asked: list[int], refs: list[int]) -> None:
            found = empty.nodes.read(asked)
            for name in NODE_FIELDS:
                assert found[name].tobytes() == nodes[name][asked].tobytes(), name
            found = empty.edges.read(refs)
            for name in EDGE_FIELDS:
                assert found[name].tobytes() == edges[name][place[np.asarray(refs, np.int64)]].tobytes(), name
            assert empty.nodes.rows_of(nodes["id"][asked]).tolist() == asked

        law(gathered, rows, live_refs)

    @clause("laws.out-edges-of-a-list")
    def test_out_edges_of_a_list_are_those_of_each(self, empty: GraphStore) -> None:
        """The out-edges of a list of rows are those of each row alone, one after the other."""
        with empty.transaction() as graph:
            spread(graph)
        alone = [empty.edges.out_edges([row]) for row in range(ROWS)]
        assert sum(len(found.refs) for found in alone) == len(empty.edges)

        def listed(asked: list[int]) -> None:
            found = empty.edges.out_edges(asked)
            for name in ("refs", "target_rows", "weight", "confidence", "use_count"):
                parts = [getattr(alone[row], name) for row in asked]
                assert getattr(found, name).tolist() == [value for part in parts for value in part.tolist()], name
            lengths = [len(alone[row].refs) for row in asked]
            assert found.indptr.tolist() == [0, *np.cumsum(lengths).tolist()]
            assert empty.edges.degrees(asked).tolist() == lengths

        law(listed, rows)

    @clause("laws.writing-in-order")
    def test_writing_a_list_is_writing_one_after_another(self, empty: GraphStore) -> None:
        """Writing a list of rows, repeats included, is as writing one after another."""
        with empty.transaction() as graph:
            spread(graph)
        before = contents(empty)

        def written(asked: list[int], refs: list[int]) -> None:
            shown = []
            values, weights = np.arange(len(asked)) + 1000, np.arange(len(refs)) / 8
            for one_by_one in (False, True):
                graph = empty.transaction()
                if one_by_one:
                    for row, value in zip(asked, values.tolist(), strict=True):
                        graph.nodes.write([row], age=value, relevance=value)
                    for ref, weight in zip(refs, weights.tolist(), strict=True):
                        graph.edges.write([ref], weight=weight)
                else:
                    graph.nodes.write(asked, age=values, relevance=values)
                    graph.edges.write(refs, weight=weights)
                shown.append(contents(graph))
                graph.rollback()
            assert_same(shown[0], shown[1])

        law(written, rows, live_refs, short=12)
        assert_same(contents(empty), before)
