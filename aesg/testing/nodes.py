"""Nodes: appending, reading, writing, scanning, whole columns, ids."""

from __future__ import annotations

import numpy as np
import pytest

from aesg.protocols import GraphStore
from aesg.records import EDGE_FIELDS, EVENT_DTYPE, NODE_DEFAULTS, NODE_FIELDS, Columns, EventType, NodeBatch, events
from aesg.testing.base import ClauseGroup
from aesg.testing.clauses import clause
from aesg.testing.graphs import assert_same, batch, contents, fill, vectors
from aesg.testing.target import DIM


class NodeClauses(ClauseGroup):
    """What a `NodeStore` promises, and what nodes and edges have in common."""

    @clause("nodes.append.rows")
    def test_rows_are_consecutive(self, empty: GraphStore) -> None:
        """Appended nodes get consecutive rows, and what is not said of them has its starting value."""
        given = np.arange(12.0).reshape(3, DIM)
        assert empty.nodes.append(NodeBatch(given)).tolist() == [0, 1, 2]
        assert empty.nodes.append(NodeBatch(given)).tolist() == [3, 4, 5]
        assert len(empty.nodes) == 6
        found = empty.nodes.read(np.arange(6))
        assert list(found) == list(NODE_FIELDS)
        for name, dtype in NODE_FIELDS.items():
            assert found[name].dtype == dtype
        assert np.array_equal(found["vector"], np.concatenate([given, given]))
        for name, value in NODE_DEFAULTS.items():
            assert (found[name] == value).all()
        assert len(set(found["id"].tolist())) == 6
        assert (found["created_at"] > 1_700_000_000).all()
        assert np.array_equal(found["created_at"], found["modified_at"])

    @clause("nodes.append.columns")
    def test_what_is_said_of_them_is_kept(self, empty: GraphStore) -> None:
        """Appended nodes keep what is said of them, to the ends of each field's range."""
        said = {
            "created_at": np.array([1, 2**64 - 1], np.uint64),
            "modified_at": np.array([3, 4], np.uint64),
            "use_frequency": np.array([2**32 - 1, 0], np.int64),
            "relevance": np.array([0.25, -3]),
            "age": np.array([7, 8], np.uint8),
            "stability": np.array([1, 2]),
            "region_id": np.array([2**32 - 1, 1], np.uint64),
            "is_active": np.array([False, True]),
        }
        ids = np.array([2**64 - 1, 0], np.uint64)
        empty.nodes.append(NodeBatch(vectors(2), ids, said))
        found = empty.nodes.read([0, 1])
        assert found["id"].tolist() == ids.tolist()
        for name, values in said.items():
            assert found[name].tolist() == values.tolist()
        assert empty.nodes.rows_of(ids[::-1]).tolist() == [1, 0]

    @clause("nodes.read.order")
    def test_reading_orders_and_repeats_as_asked(self, store: GraphStore) -> None:
        """Reading gives the rows in the order asked for, repeats included, and the fields asked for."""
        found = store.nodes.read([3, 0, 3, 11, 0], ["vector", "id"])
        assert list(found) == ["vector", "id"]
        assert found["id"].tolist() == [103, 100, 103, 111, 100]
        assert np.array_equal(found["vector"][0], found["vector"][2])
        assert store.nodes.read(5, ["id"])["id"].tolist() == [105]
        assert store.nodes.read(np.uint8(5), ["id"])["id"].tolist() == [105]
        assert store.edges.read([3, 1, 3], ["source_row"])["source_row"].tolist() == [2, 1, 2]

    @clause("nodes.write.last-counts")
    def test_of_a_row_written_twice_the_last_value_counts(self, store: GraphStore) -> None:
        """Of a row or ref written twice in one call the last value counts."""
        store.nodes.write([2, 5, 2, 2], age=[10, 20, 30, 40], vector=np.arange(16).reshape(4, 4))
        found = store.nodes.read([2, 5])
        assert found["age"].tolist() == [40, 20]
        assert found["vector"].tolist() == [[12, 13, 14, 15], [4, 5, 6, 7]]
        store.edges.write([1, 1, 2], weight=[0.5, 0.25, 0.75], use_count=[1, 2, 3])
        assert store.edges.read([1, 2])["weight"].tolist() == [0.25, 0.75]
        assert store.edges.read([1, 2])["use_count"].tolist() == [2, 3]
        many = np.tile(np.arange(12), 50)
        store.nodes.write(many, region_id=np.arange(600))
        assert store.nodes.read(np.arange(12))["region_id"].tolist() == list(range(588, 600))

    @clause("nodes.write.broadcast")
    def test_a_scalar_and_a_single_vector_are_broadcast(self, store: GraphStore) -> None:
        """A scalar, or a single vector, is written to all rows."""
        store.nodes.write([1, 2, 4], relevance=0.5, age=3, is_active=False, vector=[1, 2, 3, 4])
        found = store.nodes.read([1, 2, 4])
        assert found["relevance"].tolist() == [0.5] * 3
        assert found["age"].tolist() == [3] * 3
        assert found["is_active"].tolist() == [0] * 3
        assert found["vector"].tolist() == [[1, 2, 3, 4]] * 3
        refs = store.edges.append([0, 1], [1, 1], weight=0.25, confidence=np.float64(0.5))
        assert store.edges.read(refs)["weight"].tolist() == [0.25, 0.25]
        assert store.edges.read(refs)["confidence"].tolist() == [0.5, 0.5]
        defaults = store.edges.read(store.edges.append(1, 2), ["weight", "confidence"])
        assert defaults == {"weight": [1], "confidence": [1]}

    @clause("nodes.write.alone")
    def test_writing_leaves_the_rest_alone(self, store: GraphStore) -> None:
        """Writing a field of a row leaves all other fields and rows as they were."""
        before = store.nodes.read(np.arange(12))
        store.nodes.write([4], age=77)
        after = store.nodes.read(np.arange(12))
        assert after.pop("age").tolist() == [*before["age"][:4], 77, *before.pop("age")[5:]]
        for name in after:
            assert np.array_equal(after[name], before[name])

    @clause("nodes.scan.chunks")
    def test_scans_walk_in_order_by_chunks_of_any_size(self, store: GraphStore) -> None:
        """A scan gives all rows in order, whatever the size of its chunks; none is larger than asked for."""
        whole = contents(store)
        for size in (1, 2, 5, 12, 1000, np.int64(7)):
            assert_same(contents(store, int(size)), whole)
            lengths = [len(chunk["id"]) for chunk in store.nodes.scan(["id"], int(size))]
            assert max(lengths) <= size
            assert sum(lengths) == 12
        assert [list(chunk) for chunk in store.nodes.scan(["age", "id"], 6)] == [["age", "id"]] * 2
        (chunk,) = store.edges.scan(["weight"])
        assert set(chunk) == {"weight", "ref"}
        assert chunk["ref"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]

    @clause("nodes.scan.begun")
    def test_a_scan_sees_the_rows_that_were_there_when_it_began(self, store: GraphStore) -> None:
        """A scan ends with the rows that were there when it began."""
        scan = store.nodes.scan(["id"], 5)
        next(scan)
        store.nodes.append(batch(5, 700))
        assert [chunk["id"].tolist() for chunk in scan] == [[105, 106, 107, 108, 109], [110, 111]]

    @clause("nodes.arrays.own")
    def test_arrays_given_back_are_the_callers_own(self, store: GraphStore) -> None:
        """What a caller does to arrays that were given back changes nothing in the store."""
        before = contents(store)
        for found in (store.nodes.read([0, 1]), store.edges.read([0, 1]), *store.nodes.scan(), *store.edges.scan()):
            for values in found.values():
                values[...] = 0
        adjacency = store.edges.out_edges([0, 1])
        for name in ("refs", "target_rows", "weight", "confidence", "use_count", "indptr"):
            getattr(adjacency, name)[...] = 0
        store.nodes.rows_of([100])[...] = 3
        log = store.events.read()
        log["val"] = 9
        config = store.attrs["config"]
        assert isinstance(config, dict)
        config["a"] = 4
        assert_same(contents(store), before)

    @clause("nodes.arrays.stay")
    def test_arrays_given_back_stay_as_they_were(self, store: GraphStore) -> None:
        """Arrays that were given back stay as they were when the store is written to."""
        rows = np.arange(12)
        lists = store.edges.out_edges(rows)
        given = [*store.nodes.read(rows).values(), *next(store.nodes.scan()).values(), lists.refs, lists.weight]
        kept = [values.copy() for values in given]
        store.nodes.write(rows, vector=[9, 9, 9, 9], age=1000, relevance=9)
        store.edges.write([0, 9, 7], weight=9, confidence=9)
        store.nodes.append(batch(100, 500))
        store.edges.append(rows, rows, 9)
        assert [values.tobytes() for values in given] == [values.tobytes() for values in kept]

    @clause("nodes.arrays.taken")
    def test_arrays_taken_are_copied(self, store: GraphStore) -> None:
        """What a caller does to arrays that the store has taken changes nothing in the store."""
        given = batch(3, 500)
        log = events(EventType.MERGE, [1, 2], timestamp=1)
        weight, rows = np.ones(2, np.float32), np.array([0, 1])
        store.nodes.append(given)
        store.events.append(log)
        refs = store.edges.append(rows, rows, weight)
        ages = np.array([4, 5], np.uint32)
        store.nodes.write(rows, age=ages)
        deep: list[int] = [1]
        store.attrs["value"] = {"a": deep}  # type: ignore[dict-item]  # a list of int is JSON
        before = contents(store)
        assert given.id is not None
        for array in (given.vector, given.id, log["val"], weight, rows, ages, refs, *given.columns.values()):
            array[...] = 3
        deep.append(2)
        assert_same(contents(store), before)

    @clause("nodes.transform.columns")
    @pytest.mark.parametrize("rows", [12, 3000])
    def test_transform_maps_whole_columns(self, empty: GraphStore, rows: int) -> None:
        """A transform maps the columns it reads to the columns it writes, and touches no others."""
        with empty.transaction() as graph:
            fill(graph, rows)
        before = empty.nodes.read(np.arange(rows))

        def older(columns: Columns) -> Columns:
            assert set(columns) == {"age", "is_active", "relevance"}
            return {"age": columns["age"] + columns["is_active"], "relevance": columns["relevance"] * np.float32(0.5)}

        empty.nodes.transform(older, ["age", "is_active", "relevance"], ["age", "relevance"])
        after = empty.nodes.read(np.arange(rows))
        assert np.array_equal(after["age"], before["age"] + before["is_active"])
        assert np.array_equal(after["relevance"], before["relevance"] * np.float32(0.5))
        for name in set(NODE_FIELDS) - {"age", "relevance"}:
            assert np.array_equal(after[name], before[name])
        empty.nodes.transform(lambda c: {"vector": -c["vector"]}, ["vector"], ["vector"])
        assert (-before["vector"]).tobytes() == empty.nodes.read(np.arange(rows))["vector"].tobytes()
        empty.nodes.transform(lambda c: {"stability": np.float32(0.125)}, [], ["stability"])  # type: ignore[dict-item]
        assert set(empty.nodes.read(np.arange(rows))["stability"].tolist()) == {0.125}
        generation, unchanged = empty.generation, contents(empty)
        empty.nodes.transform(lambda c: {}, ["age"], [])
        assert_same(contents(empty), unchanged)
        assert empty.generation == generation

    @clause("nodes.transform.returns")
    @pytest.mark.parametrize("rows", [0, 12, 3000])
    def test_transform_returns_what_it_found(self, empty: GraphStore, rows: int) -> None:
        """What else the function gives comes back to the caller, in order of row; without writes nothing changes."""
        if rows:
            with empty.transaction() as graph:
                fill(graph, rows)
        before = contents(empty)

        def even(columns: Columns) -> Columns:
            return {"even": columns["row"][columns["row"] % 2 == 0], "ids": columns["id"]}

        found = empty.nodes.transform(even, ["row", "id"], [], ["even", "ids"])
        assert found["even"].tolist() == list(range(0, rows, 2))
        assert found["even"].dtype == np.int64
        assert found["ids"].tolist() == empty.nodes.read(np.arange(rows), ["id"])["id"].tolist()
        assert_same(contents(empty), before)

        def older(columns: Columns) -> Columns:
            return {"age": columns["age"] + 1, "oldest": np.array([columns["age"].max(initial=0)])}

        ages = empty.nodes.read(np.arange(rows), ["age"])["age"]
        found = empty.nodes.transform(older, ["age"], ["age"], ["oldest"])
        assert found["oldest"].max() == ages.max(initial=0)
        assert np.array_equal(empty.nodes.read(np.arange(rows), ["age"])["age"], ages + 1)

    @clause("nodes.transform.sign-of-zero")
    def test_transform_keeps_the_sign_of_zero(self, empty: GraphStore) -> None:
        """Numbers come back to the bit: the sign of zero too."""
        empty.nodes.append(NodeBatch(vectors(3, 0.0)))
        empty.nodes.transform(lambda c: {"vector": -c["vector"]}, ["vector"], ["vector"])
        assert np.signbit(empty.nodes.read([0, 1, 2])["vector"]).all()

    @clause("nodes.ids.any-order")
    def test_rows_of_many_ids_in_any_order_present_or_not(self, empty: GraphStore) -> None:
        """Ids are found in any order and number; -1 for those that no node has."""
        ids = np.random.default_rng(0).permutation(np.arange(0, 40_000, 7).astype(np.uint64) * np.uint64(2**40))
        empty.nodes.append(NodeBatch(vectors(len(ids)), ids))
        asked = np.concatenate([ids[::-3], [1, 2, 3], ids[:5], ids[:5]]).astype(np.uint64)
        place = {int(id): row for row, id in enumerate(ids)}
        assert empty.nodes.rows_of(asked).tolist() == [place.get(int(id), -1) for id in asked]
        assert empty.nodes.rows_of(int(ids[9])).tolist() == [9]

    @clause("nodes.ids.rolled-back")
    def test_ids_that_were_rolled_back_are_not_found(self, empty: GraphStore) -> None:
        """Ids whose nodes were rolled back are not found, in a store that has no others either, and may come again."""
        ids = np.arange(300, dtype=np.uint64) + 7
        for _ in range(2):
            graph = empty.transaction()
            graph.nodes.append(NodeBatch(vectors(300), ids))
            assert graph.nodes.rows_of(ids).tolist() == list(range(300))
            graph.rollback()
            assert empty.nodes.rows_of(ids).tolist() == [-1] * 300
            assert empty.nodes.rows_of(ids[:1]).tolist() == [-1]
        assert empty.nodes.append(NodeBatch(vectors(300), ids[::-1])).tolist() == list(range(300))
        assert empty.nodes.rows_of(ids[:2]).tolist() == [299, 298]

    @clause("nodes.batches.empty")
    def test_empty_batches_do_nothing(self, store: GraphStore) -> None:
        """Batches of nothing are fine, change nothing and are no commit."""
        before, generation = contents(store), store.generation
        none = np.empty(0, np.int64)
        assert store.nodes.append(NodeBatch(np.empty((0, DIM), np.float32))).shape == (0,)
        batch_of_none = NodeBatch(np.empty((0, DIM)), np.empty(0, np.uint64), {"age": none})
        assert store.nodes.append(batch_of_none).shape == (0,)
        assert store.edges.append(none, none, np.empty(0), np.empty(0)).shape == (0,)
        store.nodes.write([], age=[], vector=np.empty((0, DIM)))
        store.edges.write([], weight=[])
        store.edges.write([], weight=1.0)
        store.edges.remove([])
        store.events.append(np.empty(0, EVENT_DTYPE))
        assert store.nodes.rows_of([]).shape == (0,)
        assert {k: len(v) for k, v in store.nodes.read([]).items()} == dict.fromkeys(NODE_FIELDS, 0)
        assert {k: len(v) for k, v in store.edges.read([]).items()} == dict.fromkeys(EDGE_FIELDS, 0)
        found = store.edges.out_edges([])
        assert found.indptr.tolist() == [0]
        assert found.refs.shape == found.weight.shape == (0,)
        assert store.edges.degrees([]).shape == (0,)
        assert_same(contents(store), before)
        assert store.generation == generation
