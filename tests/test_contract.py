"""Every promise and every refusal of `aesg.protocols`, on every backend."""

import copy
import json
import pickle
import threading
from functools import partial

import numpy as np
import pytest
from store_support import DIM, assert_same, batch, check_within, contents, fill

from aesg.errors import (
    ClosedError,
    ConflictError,
    DuplicateIdError,
    InvalidInputError,
    InvalidVectorError,
    NotFoundError,
    ReadOnlyError,
    TransactionError,
    UnsupportedError,
)
from aesg.protocols import GraphStore, Snapshot, Transaction
from aesg.records import EDGE_FIELDS, EVENT_DTYPE, NODE_DEFAULTS, NODE_FIELDS, EventType, NodeBatch, events

NAN, INF, HUGE = float("nan"), float("inf"), 1e39  # HUGE is finite, but not as float32


@pytest.fixture
def empty(backend_url, open_store):
    return open_store(backend_url, vector_dim=DIM)


@pytest.fixture
def store(empty):
    fill(empty)
    return empty


def vectors(n, value=1.0, dtype=np.float32, dim=DIM):
    return np.full((n, dim), value, dtype)


def is_memory(store):
    return store.url.startswith("memory:")


# --- nodes -----------------------------------------------------------------------------------------------------------


def test_a_new_store_is_empty(empty):
    assert isinstance(empty, GraphStore)
    assert (len(empty.nodes), len(empty.edges), len(empty.events), len(empty.attrs)) == (0, 0, 0, 0)
    assert empty.vector_dim == DIM
    assert not empty.read_only
    assert list(empty.nodes.scan()) == list(empty.edges.scan()) == []
    assert empty.nodes.rows_of([5]).tolist() == [-1]
    assert empty.edges.out_edges([]).indptr.tolist() == [0]
    assert empty.nodes.read([])["vector"].shape == (0, DIM)
    assert empty.events.read().dtype == EVENT_DTYPE
    empty.nodes.transform(lambda c: c, ["age"], ["age"])
    empty.edges.transform(lambda c: c, ["weight"], ["weight"])
    assert empty.compact().shape == (0,)
    assert empty.verify() == []


def test_appended_nodes_have_starting_values_and_get_consecutive_rows(empty):
    given = np.arange(12.0).reshape(3, DIM)
    assert empty.nodes.append(NodeBatch(given)).tolist() == [0, 1, 2]
    assert empty.nodes.append(NodeBatch(given)).tolist() == [3, 4, 5]
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


def test_appended_nodes_keep_what_is_said_of_them(empty):
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


def test_a_batch_is_as_good_as_one_by_one(backend_url, tmp_path, open_store):
    whole = batch(700, seed=3)
    sources, targets = np.random.default_rng(1).integers(0, 700, (2, 900))
    weight = np.random.default_rng(2).random(900, np.float32)
    log = events(EventType.PRUNE, np.arange(50), 1, 2.0, timestamp=5)

    def by(size, name):
        store = open_store(backend_url.replace("store", name), vector_dim=DIM)
        with store.transaction() as graph:
            for at in range(0, 700, size):
                part = slice(at, at + size)
                graph.nodes.append(
                    NodeBatch(whole.vector[part], whole.id[part], {k: v[part] for k, v in whole.columns.items()})
                )
            for at in range(0, 900, size):
                part = slice(at, at + size)
                graph.edges.append(sources[part], targets[part], weight[part], 0.5)
            for at in range(0, 50, size):
                graph.events.append(log[at : at + size])
            for at in range(0, 400, size):
                rows = np.arange(at, min(at + size, 400)) * 3 % 700
                graph.nodes.write(rows, age=rows, vector=whole.vector[rows] * 2)
                graph.edges.write(rows, weight=rows / 7)
            for at in range(0, 300, size):
                graph.edges.remove(np.arange(at, min(at + size, 300)) * 2)
        check_within(store)
        assert store.verify() == []
        return contents(store)

    one = by(1, "one")
    assert_same(by(1000, "all"), one)
    assert_same(by(37, "some"), one)


def test_empty_batches_do_nothing(store):
    before, generation = contents(store), store.generation
    none = np.empty(0, np.int64)
    assert store.nodes.append(NodeBatch(np.empty((0, DIM), np.float32))).shape == (0,)
    assert store.nodes.append(NodeBatch(np.empty((0, DIM)), np.empty(0, np.uint64), {"age": none})).shape == (0,)
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


def test_reading_repeats_and_orders_as_asked(store):
    rows = [3, 0, 3, 11, 0]
    found = store.nodes.read(rows, ["vector", "id"])
    assert list(found) == ["vector", "id"]
    assert found["id"].tolist() == [103, 100, 103, 111, 100]
    assert np.array_equal(found["vector"][0], found["vector"][2])
    assert store.nodes.read(5, ["id"])["id"].tolist() == [105]
    assert store.nodes.read(np.uint8(5), ["id"])["id"].tolist() == [105]
    assert store.edges.read([3, 1, 3], ["source_row"])["source_row"].tolist() == [2, 1, 2]


def test_of_a_row_written_twice_the_last_value_counts(store):
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


def test_a_scalar_and_a_single_vector_are_broadcast(store):
    store.nodes.write([1, 2, 4], relevance=0.5, age=3, is_active=False, vector=[1, 2, 3, 4])
    found = store.nodes.read([1, 2, 4])
    assert found["relevance"].tolist() == [0.5] * 3
    assert found["age"].tolist() == [3] * 3
    assert found["is_active"].tolist() == [0] * 3
    assert found["vector"].tolist() == [[1, 2, 3, 4]] * 3
    refs = store.edges.append([0, 1], [1, 1], weight=0.25, confidence=np.float64(0.5))
    assert store.edges.read(refs)["weight"].tolist() == [0.25, 0.25]
    assert store.edges.read(refs)["confidence"].tolist() == [0.5, 0.5]
    assert store.edges.read(store.edges.append(1, 2), ["weight", "confidence"]) == {"weight": [1], "confidence": [1]}


def test_writing_leaves_the_other_fields_and_rows_alone(store):
    before = store.nodes.read(np.arange(12))
    store.nodes.write([4], age=77)
    after = store.nodes.read(np.arange(12))
    assert after.pop("age").tolist() == [*before["age"][:4], 77, *before.pop("age")[5:]]
    for name in after:
        assert np.array_equal(after[name], before[name])


def test_scan_walks_in_order_by_chunks_of_any_size(store):
    whole = contents(store)
    for size in (1, 2, 5, 12, 1000, np.int64(7)):
        assert_same(contents(store, size), whole)
        lengths = [len(chunk["id"]) for chunk in store.nodes.scan(["id"], size)]
        assert max(lengths) <= size
        assert sum(lengths) == 12
    assert [list(chunk) for chunk in store.nodes.scan(["age", "id"], 6)] == [["age", "id"]] * 2
    (chunk,) = store.edges.scan(["weight"])
    assert set(chunk) == {"weight", "ref"}
    assert chunk["ref"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_arrays_given_back_are_the_callers_own(store):
    before = contents(store)
    for found in (store.nodes.read([0, 1]), store.edges.read([0, 1]), *store.nodes.scan(), *store.edges.scan()):
        for values in found.values():
            values[...] = 0
    found = store.edges.out_edges([0, 1])
    for name in ("refs", "target_rows", "weight", "confidence", "use_count", "indptr"):
        getattr(found, name)[...] = 0
    store.nodes.rows_of([100])[...] = 3
    log = store.events.read()
    log["val"] = 9
    store.attrs["config"]["a"].append(4)
    assert_same(contents(store), before)


def test_arrays_taken_are_copied(store):
    given = batch(3, 500)
    log = events(EventType.MERGE, [1, 2], timestamp=1)
    weight, rows = np.ones(2, np.float32), np.array([0, 1])
    store.nodes.append(given)
    store.events.append(log)
    refs = store.edges.append(rows, rows, weight)
    ages = np.array([4, 5], np.uint32)
    store.nodes.write(rows, age=ages)
    value = {"a": [1]}
    store.attrs["value"] = value
    before = contents(store)
    for array in (given.vector, given.id, log["val"], weight, rows, ages, refs, *given.columns.values()):
        array[...] = 3
    value["a"].append(2)
    assert_same(contents(store), before)


@pytest.mark.parametrize("rows", [12, 3000])
def test_transform_maps_whole_columns(empty, rows):
    fill(empty, rows)
    before = empty.nodes.read(np.arange(rows))

    def older(columns):
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
    empty.nodes.transform(lambda c: {"stability": 0.125}, [], ["stability"])
    assert set(empty.nodes.read(np.arange(rows))["stability"].tolist()) == {0.125}
    generation, unchanged = empty.generation, contents(empty)
    empty.nodes.transform(lambda c: {}, ["age"], [])
    assert_same(contents(empty), unchanged)
    assert empty.generation == generation


def test_transform_keeps_the_sign_of_zero(empty):
    empty.nodes.append(NodeBatch(vectors(3, 0.0)))
    empty.nodes.transform(lambda c: {"vector": -c["vector"]}, ["vector"], ["vector"])
    assert np.signbit(empty.nodes.read([0, 1, 2])["vector"]).all()


def test_transform_of_edges_never_shows_removed_ones(store):
    seen = []

    def doubted(columns):
        seen.extend(columns["source_row"].tolist())
        return {"confidence": columns["confidence"] * 2, "weight": 1 / columns["weight"], "use_count": 5}

    before = store.edges.read([0, 9])
    store.edges.transform(doubted, ["confidence", "weight", "source_row"], ["confidence", "weight", "use_count"])
    assert seen == [0, 1, 0, 2, 0, 3, 3, 5, 0]
    after = store.edges.read([0, 9])
    assert after["confidence"].tolist() == (before["confidence"] * 2).tolist()
    assert after["weight"].tolist() == (1 / before["weight"]).tolist()
    assert after["use_count"].tolist() == [5, 5]
    assert store.verify() == []
    check_within(store)


def test_rows_of_many_ids_in_any_order_present_or_not(empty):
    ids = np.random.default_rng(0).permutation(np.arange(0, 40_000, 7).astype(np.uint64) * np.uint64(2**40))
    empty.nodes.append(NodeBatch(vectors(len(ids)), ids))
    asked = np.concatenate([ids[::-3], [1, 2, 3], ids[:5], ids[:5]]).astype(np.uint64)
    place = {int(id): row for row, id in enumerate(ids)}
    assert empty.nodes.rows_of(asked).tolist() == [place.get(int(id), -1) for id in asked]
    assert empty.nodes.rows_of(int(ids[9])).tolist() == [9]


# --- edges -----------------------------------------------------------------------------------------------------------


def test_out_edges_are_newest_first_for_any_list_of_rows(store):
    found = store.edges.out_edges([0, 4, 3, 0])
    assert found.indptr.tolist() == [0, 4, 4, 6, 10]
    assert found.refs.tolist() == [9, 5, 2, 0, 7, 6, 9, 5, 2, 0]
    assert found.target_rows.tolist() == [4, 11, 1, 1, 2, 1, 4, 11, 1, 1]
    assert found.use_count.tolist() == [0, 0, 0, 3, 0, 4, 0, 0, 0, 3]
    weight = np.linspace(0.1, 1, 10).astype(np.float32)
    assert np.array_equal(found.weight, weight[found.refs])
    assert np.array_equal(found.confidence, weight[::-1][found.refs])
    assert found.degrees.tolist() == store.edges.degrees([0, 4, 3, 0]).tolist() == [4, 0, 2, 4]
    for name, dtype in (
        ("refs", "i8"), ("target_rows", "i8"), ("weight", "f4"), ("confidence", "f4"), ("use_count", "u4"),
    ):  # fmt: skip
        assert getattr(found, name).dtype == dtype
    check_within(store)


def test_refs_ascend_and_stay_when_others_are_removed(store):
    assert store.edges.append([1, 0], [0, 0]).tolist() == [10, 11]
    store.edges.remove([0, 9, 6])
    assert store.edges.out_edges([0]).refs.tolist() == [11, 5, 2]
    assert store.edges.read([11])["source_row"].tolist() == [0]
    assert store.edges.append([0], [0]).tolist() == [12]
    assert len(store.edges) == 9
    check_within(store)
    assert store.verify() == []


def test_all_edges_of_a_row_can_be_removed_at_once_or_one_by_one(store):
    store.edges.remove([0, 2, 5, 9])
    store.edges.remove([7])
    store.edges.remove([6])
    assert store.edges.degrees([0, 3]).tolist() == [0, 0]
    store.edges.append([0, 3], [3, 0])
    assert store.edges.degrees([0, 3]).tolist() == [1, 1]
    check_within(store)
    assert store.verify() == []


def test_edges_and_their_removal_within_one_transaction(store):
    with store.transaction() as graph:
        refs = graph.edges.append([0, 0, 6], [1, 2, 3], [1, 2, 3])
        graph.edges.remove(refs[1:2])
        graph.edges.remove([9])
        graph.edges.write(refs[:1], weight=9)
        assert graph.edges.out_edges([0]).refs.tolist() == [10, 5, 2, 0]
        assert graph.edges.out_edges([0]).weight[0] == 9
        with pytest.raises(NotFoundError, match="removed"):
            graph.edges.read(refs[1:2])
    assert store.edges.out_edges([0]).refs.tolist() == [10, 5, 2, 0]
    check_within(store)
    assert store.verify() == []


# --- events and attributes -------------------------------------------------------------------------------------------


def test_events_are_read_back_by_slices(store):
    log = store.events.read()
    assert len(log) == len(store.events) == 13
    assert log["id1"].tolist() == [*range(100, 112), 1]
    assert log["type"].tolist() == [0] * 12 + [4]
    for start, stop in ((0, 3), (5, None), (-2, None), (3, 2), (50, 60), (-100, 100), (2, -2)):
        assert store.events.read(start, stop).tolist() == log[start:stop].tolist()
    strange = np.zeros(2, EVENT_DTYPE)
    strange["type"], strange["timestamp"], strange["id1"], strange["val"] = 255, 2**64 - 1, 2**64 - 1, -3.4e38
    store.events.append(strange)
    assert store.events.read(-2).tolist() == strange.tolist()
    store.events.append(strange[0])
    assert len(store.events) == 16


def test_padding_of_events_is_not_kept(store):
    dirty = np.frombuffer(b"\xff" * 32, EVENT_DTYPE).copy()
    dirty["val"] = 1
    store.events.append(dirty)
    assert store.events.read(-1).tobytes()[9:12] == bytes(3)


def test_attributes_hold_json_and_give_copies(store):
    value = {"list": [1, 2.5, "ä", None, True, {"deep": []}], "": 0}
    store.attrs["new"] = value
    assert store.attrs["new"] == value
    store.attrs["new"]["list"].clear()
    assert store.attrs["new"] == value
    store.attrs["new"] = 1
    assert list(store.attrs) == ["config", "epoch", "new"]
    assert len(store.attrs) == 3
    assert "new" in store.attrs
    assert 3 not in store.attrs
    assert store.attrs.get("absent", 5) == 5
    del store.attrs["new"]
    assert "new" not in store.attrs
    assert store.attrs.pop("epoch") == 7
    store.attrs.update(a=1, b=[2])
    assert dict(store.attrs) == {"config": {"a": [1, 2.5, None, True], "ä": "ü"}, "a": 1, "b": [2]}
    store.attrs["tuple"] = (1, (2,))
    assert store.attrs["tuple"] == [1, [2]]
    store.attrs["number"] = np.float64(0.1)
    assert store.attrs["number"] == 0.1
    store.attrs["large"] = "x" * 100_000
    assert store.attrs["large"] == "x" * 100_000


# --- refusals --------------------------------------------------------------------------------------------------------

circular = []
circular.append(circular)
deep = json.loads("[" * 900 + "]" * 900)
for _ in range(100_000):
    deep = [deep]


class Unwilling:
    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("no array of this")


def appending(**columns):
    return lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([1, 2], np.uint64), columns))


def returning(out, writes=("age",), part="nodes"):
    return lambda g: getattr(g, part).transform(lambda c: out, ["age" if part == "nodes" else "weight"], writes)


def raising(columns):
    raise ZeroDivisionError("fn's own")


REFUSED = {
    InvalidVectorError: {
        "too long": lambda g: g.nodes.append(NodeBatch(vectors(2, dim=DIM + 1))),
        "too short": lambda g: g.nodes.append(NodeBatch(vectors(2, dim=DIM - 1))),
        "one element, which 0.3.0 broadcast": lambda g: g.nodes.append(NodeBatch(vectors(1, dim=1))),
        "one vector": lambda g: g.nodes.append(NodeBatch(np.ones(DIM))),
        "three axes": lambda g: g.nodes.append(NodeBatch(np.ones((1, 1, DIM)))),
        "a number": lambda g: g.nodes.append(NodeBatch(np.float32(1))),
        "nan": lambda g: g.nodes.append(NodeBatch(np.array([[0, 0, 0, 0], [0, NAN, 0, 0]]))),
        "inf": lambda g: g.nodes.append(NodeBatch(vectors(2, -INF))),
        "inf among many": lambda g: g.nodes.append(NodeBatch(np.where(np.arange(8000) == 7999, INF, 1).reshape(-1, 4))),
        "inf and -inf among many": lambda g: g.nodes.append(
            NodeBatch(np.where(np.arange(8000) < 2, [INF, -INF] * 4000, 1).reshape(-1, 4))
        ),
        "overflow": lambda g: g.nodes.append(NodeBatch(vectors(2, HUGE, np.float64))),
        "text": lambda g: g.nodes.append(NodeBatch(np.full((1, DIM), "1"))),
        "objects": lambda g: g.nodes.append(NodeBatch(np.full((1, DIM), None))),
        "bool": lambda g: g.nodes.append(NodeBatch(np.ones((1, DIM), bool))),
        "complex": lambda g: g.nodes.append(NodeBatch(np.ones((1, DIM), complex))),
        "write nan": lambda g: g.nodes.write([0], vector=vectors(1, NAN)),
        "write overflow": lambda g: g.nodes.write([0, 1], vector=vectors(2, HUGE, np.float64)),
        "write too few": lambda g: g.nodes.write([0, 1], vector=vectors(1)),
        "write too long": lambda g: g.nodes.write([0], vector=vectors(1, dim=DIM + 1)),
        "write a number": lambda g: g.nodes.write([0], vector=1.0),
        "transform to nan": returning({"vector": vectors(12, NAN)}, ["vector"]),
        "transform to too few": returning({"vector": vectors(11)}, ["vector"]),
    },
    DuplicateIdError: {
        "in the store": lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([7, 105], np.uint64))),
        "of a pruned node": lambda g: g.nodes.append(NodeBatch(vectors(1), np.array([111], np.uint64))),
        "in the batch": lambda g: g.nodes.append(NodeBatch(vectors(3), np.array([7, 8, 7], np.uint64))),
    },
    InvalidInputError: {
        "not a batch": lambda g: g.nodes.append(vectors(2)),
        "ragged vectors": lambda g: g.nodes.append(NodeBatch([[1, 2, 3, 4], [1]])),
        "no array": lambda g: g.nodes.append(NodeBatch(Unwilling())),
        "too few ids": lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([7], np.uint64))),
        "one id": lambda g: g.nodes.append(NodeBatch(vectors(2), np.uint64(7))),
        "ids of two axes": lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([[7, 8]], np.uint64))),
        "float ids": lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([7.0, 8.0]))),
        "negative id": lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([7, -8]))),
        "id of 65 bits": lambda g: g.nodes.append(NodeBatch(vectors(1), np.array([2**64]))),
        "unknown field": appending(colour=np.array([1, 2])),
        "head_edge_idx": appending(head_edge_idx=np.array([1, 2])),
        "id among the columns": appending(id=np.array([1, 2])),
        "vector among the columns": appending(vector=vectors(2)),
        "column of another length": appending(age=np.array([1, 2, 3])),
        "column of two axes": appending(age=np.array([[1, 2]])),
        "negative age": appending(age=np.array([1, -1])),
        "age of 33 bits": appending(age=np.array([1, 2**32])),
        "float age": appending(age=np.array([1.0, 2.0])),
        "relevance nan": appending(relevance=np.array([1, NAN])),
        "relevance inf": appending(relevance=np.array([1, INF], np.float32)),
        "relevance overflow": appending(relevance=np.array([1, HUGE])),
        "is_active 2": appending(is_active=np.array([1, 2])),
        "negative created_at": appending(created_at=np.array([1, -2])),
        "text": appending(stability=np.array(["1", "2"])),
        "read float rows": lambda g: g.nodes.read([0.0]),
        "read bool rows": lambda g: g.nodes.read([True, False]),
        "read rows of two axes": lambda g: g.nodes.read([[0]]),
        "read ragged rows": lambda g: g.nodes.read([[0], [1, 2]]),
        "read text rows": lambda g: g.nodes.read("0"),
        "read unknown field": lambda g: g.nodes.read([0], ["id", "colour"]),
        "read head_edge_idx": lambda g: g.nodes.read([0], ["head_edge_idx"]),
        "read fields as a string": lambda g: g.nodes.read([0], "id"),
        "write id": lambda g: g.nodes.write([0], id=5),
        "write created_at": lambda g: g.nodes.write([0], created_at=5),
        "write unknown field": lambda g: g.nodes.write([0], age=5, colour=1),
        "write another length": lambda g: g.nodes.write([0, 1], age=[1, 2, 3]),
        "write one for two": lambda g: g.nodes.write([0, 1], age=[1]),
        "write nan": lambda g: g.nodes.write([0], age=5, relevance=NAN),
        "write overflow": lambda g: g.nodes.write([0], stability=HUGE),
        "write negative": lambda g: g.nodes.write([0], region_id=-1),
        "write float age": lambda g: g.nodes.write([0], age=1.5),
        "write is_active 2": lambda g: g.nodes.write([0], is_active=2),
        "write none": lambda g: g.nodes.write([0], age=None),
        "write ragged": lambda g: g.nodes.write([0], age=[[1], [1, 2]]),
        "scan unknown field": lambda g: list(g.nodes.scan(["colour"])),
        "scan no rows at a time": lambda g: list(g.nodes.scan(chunk_rows=0)),
        "scan half a row at a time": lambda g: list(g.nodes.scan(chunk_rows=0.5)),
        "scan edges unknown field": lambda g: list(g.edges.scan(["colour"])),
        "scan edges none at a time": lambda g: list(g.edges.scan(chunk_edges=-1)),
        "float ids asked": lambda g: g.nodes.rows_of([1.0]),
        "negative ids asked": lambda g: g.nodes.rows_of([-1]),
        "ids of two axes asked": lambda g: g.nodes.rows_of([[1]]),
        "edges of unequal lengths": lambda g: g.edges.append([0, 1], [1]),
        "edges from floats": lambda g: g.edges.append([0.0], [1]),
        "edges of two axes": lambda g: g.edges.append([[0]], [[1]]),
        "weight of another length": lambda g: g.edges.append([0, 1], [1, 2], [1, 2, 3]),
        "weight nan": lambda g: g.edges.append([0, 1], [1, 2], [1, NAN]),
        "confidence inf": lambda g: g.edges.append([0, 1], [1, 2], 1, INF),
        "weight overflow": lambda g: g.edges.append([0, 1], [1, 2], HUGE),
        "weight none": lambda g: g.edges.append([0], [1], None),
        "read unknown edge field": lambda g: g.edges.read([0], ["next_edge_idx"]),
        "write source_row": lambda g: g.edges.write([0], source_row=1),
        "write target_row": lambda g: g.edges.write([0], weight=1, target_row=1),
        "write next_edge_idx": lambda g: g.edges.write([0], next_edge_idx=1),
        "write weight nan": lambda g: g.edges.write([0], use_count=1, weight=NAN),
        "write use_count negative": lambda g: g.edges.write([0], use_count=-1),
        "write use_count float": lambda g: g.edges.write([0], use_count=1.0),
        "write edge another length": lambda g: g.edges.write([0, 1], weight=[1, 2, 3]),
        "events of no dtype": lambda g: g.events.append(np.zeros(3)),
        "events of other widths": lambda g: g.events.append(
            np.zeros(1, [("timestamp", "f8"), ("type", "i8"), ("id1", "i8"), ("id2", "i8"), ("val", "f8")])
        ),
        "events of other names": lambda g: g.events.append(np.zeros(1, [("timestamp", "<u8")])),
        "events of two axes": lambda g: g.events.append(np.zeros((1, 1), EVENT_DTYPE)),
        "event nan": lambda g: g.events.append(events(EventType.MERGE, 1, 2, [1, NAN])),
        "event inf": lambda g: g.events.append(events(EventType.MERGE, 1, 2, INF)),
        "attribute of a set": lambda g: g.attrs.__setitem__("a", {1}),
        "attribute of bytes": lambda g: g.attrs.__setitem__("a", b"1"),
        "attribute nan": lambda g: g.attrs.__setitem__("a", [NAN]),
        "attribute of an array": lambda g: g.attrs.__setitem__("a", np.ones(2)),
        "attribute without end": lambda g: g.attrs.__setitem__("a", circular),
        "attribute too deep": lambda g: g.attrs.__setitem__("a", deep),
        "attribute of no name": lambda g: g.attrs.__setitem__(3, 1),
        "transform unknown reads": lambda g: g.nodes.transform(dict, ["colour"], ["age"]),
        "transform unknown writes": lambda g: g.nodes.transform(dict, ["age"], ["colour"]),
        "transform id": lambda g: g.nodes.transform(dict, ["id"], ["id"]),
        "transform created_at": lambda g: g.nodes.transform(dict, ["created_at"], ["created_at"]),
        "transform edges source_row": lambda g: g.edges.transform(dict, ["source_row"], ["source_row"]),
        "transform edges unknown reads": lambda g: g.edges.transform(dict, ["colour"], ["weight"]),
    },
    NotFoundError: {
        "row 12": lambda g: g.nodes.read([0, 12]),
        "row -1": lambda g: g.nodes.read([-1]),
        "row 2**63": lambda g: g.nodes.read(np.array([2**63], np.uint64)),
        "write row 12": lambda g: g.nodes.write([0, 12], age=1),
        "write row -1": lambda g: g.nodes.write([-1], age=1),
        "edge from nowhere": lambda g: g.edges.append([0, 12], [1, 2]),
        "edge to nowhere": lambda g: g.edges.append([0, 1], [1, 12]),
        "edge to -1": lambda g: g.edges.append([0, 1], [1, -1]),
        "out_edges of row 12": lambda g: g.edges.out_edges([0, 12]),
        "degree of row -1": lambda g: g.edges.degrees([-1]),
        "edge 10": lambda g: g.edges.read([0, 10]),
        "edge -1": lambda g: g.edges.read([-1]),
        "removed edge": lambda g: g.edges.read([0, 4]),
        "write edge 10": lambda g: g.edges.write([0, 10], weight=1),
        "write removed edge": lambda g: g.edges.write([0, 4], weight=1),
        "remove edge 10": lambda g: g.edges.remove([0, 10]),
        "remove removed edge": lambda g: g.edges.remove([0, 4]),
        "remove an edge twice": lambda g: g.edges.remove([0, 1, 0]),
        "attribute": lambda g: g.attrs["absent"],
        "attribute to delete": lambda g: g.attrs.__delitem__("absent"),
    },
}  # fmt: skip
ALL_REFUSED = [pytest.param(error, act, id=f"{error.__name__}-{name}".replace(" ", "_")) for error, acts in
               REFUSED.items() for name, act in acts.items()]  # fmt: skip


@pytest.mark.parametrize(("error", "act"), ALL_REFUSED)
def test_refused_and_nothing_was_written(store, error, act):
    before, generation = contents(store), store.generation
    with pytest.raises(error) as caught:
        act(store)
    assert type(caught.value) is error or "vector" in str(caught.value)
    assert store.url in str(caught.value), "the message names the store"
    assert_same(contents(store), before)
    assert store.generation == generation
    store.nodes.append(NodeBatch(vectors(1)))  # and nothing is left locked
    assert store.verify() == []


@pytest.mark.parametrize("within", ["all of it", "on top of a commit"])
def test_refused_in_a_transaction_which_goes_on_as_before(empty, within):
    if within == "on top of a commit":
        fill(empty)
    with empty.transaction() as graph:
        if within == "all of it":
            fill(graph)
        graph.attrs["mine"] = 1
        before = contents(graph)
        for error, acts in REFUSED.items():
            for name, act in acts.items():
                # What `fn` returned for a later chunk comes too late to leave the earlier ones as they were: see below.
                if not name.startswith("transform to"):
                    with pytest.raises(error):
                        act(graph)
        assert_same(contents(graph), before)
        graph.nodes.write([0], age=4)
    assert empty.attrs["mine"] == 1
    assert empty.nodes.read([0], ["age"])["age"].tolist() == [4]
    assert empty.verify() == []


BAD_FUNCTIONS = {
    "too little": (InvalidInputError, lambda c: {}),
    "too much": (InvalidInputError, lambda c: {"age": c["age"], "relevance": 1.0, "stability": 1.0}),
    "another name": (InvalidInputError, lambda c: {"age": c["age"], "colour": 1}),
    "nothing": (InvalidInputError, lambda c: None),
    "nan": (InvalidInputError, lambda c: {"age": 1, "relevance": c["relevance"] * np.float32(NAN)}),
    "another length": (InvalidInputError, lambda c: {"age": 1, "relevance": c["relevance"][1:]}),
    "negative": (InvalidInputError, lambda c: {"age": c["age"].astype(np.int64) - 1000, "relevance": 1}),
    "raises": (ZeroDivisionError, raising),
}


@pytest.mark.parametrize("name", BAD_FUNCTIONS)
def test_a_bad_transform_is_rolled_back_whole(empty, name, monkeypatch):
    monkeypatch.setattr("aesg.backends.parts.CHUNK_BYTES", 1 << 15)
    fill(empty, 2000)  # several chunks, the first ones of which go well
    error, bad = BAD_FUNCTIONS[name]
    calls = []

    def fn(columns):
        calls.append(len(columns["age"]))
        return bad(columns) if len(calls) > 2 else {"age": columns["age"] + 1, "relevance": 0.0}

    before = contents(empty)
    with pytest.raises(error):
        empty.nodes.transform(fn, ["age", "relevance"], ["age", "relevance"])
    assert len(calls) == 3
    assert_same(contents(empty), before)
    calls.clear()

    def swallowing():
        with empty.transaction() as graph:
            graph.attrs["half"] = True
            with pytest.raises(error):
                graph.nodes.transform(fn, ["age", "relevance"], ["age", "relevance"])

    with pytest.raises(TransactionError, match="rolled back"):
        swallowing()
    assert_same(contents(empty), before)
    assert empty.verify() == []


# --- transactions ----------------------------------------------------------------------------------------------------


def change_everything(graph):
    rows = graph.nodes.append(batch(300, 1000))
    graph.nodes.write([0, rows[0]], relevance=0.75, vector=vectors(2, 5))
    graph.nodes.write(np.arange(200), region_id=9)
    graph.nodes.transform(lambda c: {"age": c["age"] + 1}, ["age"], ["age"])
    refs = graph.edges.append([0, rows[1], 3, 0], [rows[2], 1, rows[3], 0], 0.5)
    graph.edges.write([0, refs[0]], use_count=8)
    graph.edges.remove([9, refs[1]])
    graph.edges.transform(lambda c: {"confidence": c["confidence"] / 2}, ["confidence"], ["confidence"])
    graph.events.append(events(EventType.SPLIT, [1, 2, 3], timestamp=4))
    graph.attrs["epoch"] = 8
    del graph.attrs["config"]


def test_a_transaction_sees_its_writes_and_nobody_else_does(store):
    before = contents(store)
    graph = store.transaction()
    change_everything(graph)
    inside = contents(graph)
    assert inside["nodes"] == 312
    assert inside["attrs"] == '{"epoch": 8}'
    check_within(graph)
    assert_same(contents(store), before)
    assert store.verify() == []
    graph.commit()
    assert_same(contents(store), inside)
    assert store.verify() == []


def test_many_and_few_rows_again_and_again_in_one_transaction(empty):
    """Against plain arrays, which are written to in the same order."""
    fill(empty, 1500)
    rng = np.random.default_rng(4)
    wanted = empty.nodes.read(np.arange(1500))
    with empty.transaction() as graph:
        for turn in range(12):
            rows = rng.integers(0, 1500, [3, 1400, 40, 2000][turn % 4])
            age, vector = rng.integers(0, 2**32, len(rows)), rng.standard_normal((len(rows), DIM)).astype(np.float32)
            if turn % 3:
                graph.nodes.write(rows, age=age)
            else:
                graph.nodes.write(rows, age=age, vector=vector)
                wanted["vector"][rows] = vector
            wanted["age"][rows] = age
            if turn % 5 == 2:
                graph.nodes.transform(
                    lambda c: {"stability": c["stability"] + c["age"] % 2}, ["stability", "age"], ["stability"]
                )
                wanted["stability"] = (wanted["stability"] + wanted["age"] % 2).astype(np.float32)
            asked = rng.integers(0, 1500, 700)
            for name, values in graph.nodes.read(asked).items():
                assert np.array_equal(values, wanted[name][asked]), name
            at = 0
            for chunk in graph.nodes.scan(chunk_rows=190):
                for name, values in chunk.items():
                    assert np.array_equal(values, wanted[name][at : at + len(values)]), name
                at += len(chunk["id"])
    for name, values in empty.nodes.read(np.arange(1500)).items():
        assert np.array_equal(values, wanted[name]), name


def test_rollback_forgets_everything(store):
    before, generation = contents(store), store.generation
    graph = store.transaction()
    change_everything(graph)
    graph.rollback()
    graph.rollback()
    assert_same(contents(store), before)
    assert store.generation == generation
    assert store.verify() == []
    # Rows, refs and ids that were rolled back come again, with other contents.
    assert store.nodes.append(batch(2, 1001, seed=5)).tolist() == [12, 13]
    assert store.nodes.rows_of([1000, 1001, 1002, 1003]).tolist() == [-1, 12, 13, -1]
    with pytest.raises(DuplicateIdError):
        store.nodes.append(batch(1, 1002))
    assert store.edges.append([13], [0]).tolist() == [10]
    assert len(store.events) == 13
    assert store.verify() == []
    check_within(store)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InvalidInputError])
def test_an_exception_in_the_block_rolls_back(store, error):
    before = contents(store)

    def failing():
        with store.transaction() as graph:
            change_everything(graph)
            raise error("why")

    with pytest.raises(error, match="why"):
        failing()
    assert_same(contents(store), before)
    store.attrs["goes"] = "on"


def test_a_block_may_commit_or_roll_back_itself(store):
    with store.transaction() as graph:
        graph.attrs["a"] = 1
        graph.commit()
    with store.transaction() as graph:
        graph.attrs["b"] = 1
        graph.rollback()
    assert store.attrs.get("a") == 1
    assert "b" not in store.attrs


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_transaction_that_ended_refuses(store, end):
    graph = store.transaction()
    getattr(graph, end)()
    for act in (
        lambda: graph.nodes.append(batch(1)),
        lambda: graph.nodes.read([0]),
        lambda: len(graph.nodes),
        lambda: list(graph.nodes.scan()),
        lambda: graph.nodes.transform(dict, ["age"], ["age"]),
        lambda: graph.edges.append([0], [0]),
        lambda: graph.edges.out_edges([0]),
        lambda: graph.events.append(np.zeros(1, EVENT_DTYPE)),
        lambda: graph.events.read(),
        lambda: graph.attrs["epoch"],
        lambda: graph.attrs.__setitem__("a", 1),
        lambda: graph.vector_dim,
        lambda: graph.commit(),
    ):
        with pytest.raises(TransactionError, match="ended") as caught:
            act()
        assert store.url in str(caught.value)
    graph.rollback()


def test_a_thread_does_not_wait_for_itself(store):
    with store.transaction() as graph:
        graph.attrs["a"] = 1
        for act in (
            store.transaction,
            store.compact,
            store.flush,
            lambda: store.nodes.append(batch(1)),
            lambda: store.nodes.write([0], age=1),
            lambda: store.nodes.transform(dict, ["age"], ["age"]),
            lambda: store.edges.append([0], [0]),
            lambda: store.edges.remove([0]),
            lambda: store.events.append(np.zeros(1, EVENT_DTYPE)),
            lambda: store.attrs.__setitem__("b", 1),
        ):
            with pytest.raises(TransactionError) as caught:
                act()
            assert store.url in str(caught.value)
        graph.attrs["c"] = 1
    assert set(store.attrs) == {"config", "epoch", "a", "c"}


def in_thread(act):
    """Run in a thread of its own; gives the thread and a list for the result or the exception."""
    out = []

    def run():
        try:
            out.append(act())
        except BaseException as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, out


def test_another_thread_waits_and_reads_meanwhile(store):
    graph = store.transaction()
    graph.attrs["epoch"] = 8
    begun = threading.Event()

    def write():
        begun.set()
        with store.transaction() as mine:
            mine.attrs["epoch"] += 1

    writer, wrote = in_thread(write)
    assert begun.wait(5)
    writer.join(0.2)
    assert writer.is_alive(), "the second transaction did not wait"
    reader, read = in_thread(lambda: (store.attrs["epoch"], len(store.nodes)))
    reader.join(5)
    assert read == [(7, 12)], "a reader waited, or saw what was not committed"
    graph.commit()
    writer.join(5)
    assert wrote == [None]
    assert store.attrs["epoch"] == 9


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_begun_in_one_thread_and_ended_in_another(store, end):
    graph = store.transaction()
    graph.attrs["a"] = 1

    def finish():
        graph.attrs["b"] = 2
        getattr(graph, end)()

    thread, out = in_thread(finish)
    thread.join(5)
    assert out == [None]
    assert ("a" in store.attrs, "b" in store.attrs) == ((end == "commit"),) * 2
    store.attrs["c"] = 3
    thread, out = in_thread(lambda: store.attrs.__setitem__("d", 4))
    thread.join(5)
    assert out == [None]
    assert store.attrs["d"] == 4


def test_many_threads_write_and_nothing_is_lost(store):
    def write(number):
        for turn in range(10):
            with store.transaction() as graph:
                (row,) = graph.nodes.append(batch(1, 10_000 + 100 * number + turn))
                graph.edges.append([row], [number])
                graph.attrs["count"] = graph.attrs.get("count", 0) + 1
                check_within(graph)
            store.nodes.write([number], use_frequency=turn)

    threads = [in_thread(partial(write, number)) for number in range(4)]
    for thread, _ in threads:
        thread.join(60)
    assert [out for _, out in threads] == [[None]] * 4
    assert store.attrs["count"] == 40
    assert len(store.nodes) == 12 + 40
    assert store.nodes.read([0, 1, 2, 3])["use_frequency"].tolist() == [9] * 4
    assert store.verify() == []


def test_closing_rolls_an_open_transaction_back(backend_url, open_store):
    store = open_store(backend_url, vector_dim=DIM)
    fill(store)
    graph = store.transaction()
    graph.attrs["half"] = True
    waiting, out = in_thread(lambda: store.attrs.__setitem__("late", 1))
    store.close()
    waiting.join(5)
    assert isinstance(out[0], ClosedError)
    with pytest.raises((TransactionError, ClosedError)):
        graph.attrs["half"] = False
    graph.rollback()
    if not is_memory(store):
        assert "half" not in open_store(backend_url).attrs


# --- generation, identity, snapshots, copies -------------------------------------------------------------------------


def test_generation_grows_with_each_commit_and_only_then(store):
    seen = store.generation

    def grew():
        nonlocal seen
        seen, before = store.generation, seen
        return seen > before

    for act in (
        lambda g: g.nodes.append(batch(1, 900)),
        lambda g: g.nodes.write([0], age=50),
        lambda g: g.nodes.transform(lambda c: {"age": c["age"] + 1}, ["age"], ["age"]),
        lambda g: g.edges.append([0], [1]),
        lambda g: g.edges.write([0], weight=4),
        lambda g: g.edges.transform(lambda c: {"weight": c["weight"] + 1}, ["weight"], ["weight"]),
        lambda g: g.edges.remove([1]),
        lambda g: g.events.append(events(EventType.PRUNE, 1)),
        lambda g: g.attrs.__setitem__("a", 1),
        lambda g: g.attrs.__delitem__("a"),
    ):
        act(store)
        assert grew()
        store.flush()
        contents(store)
        assert not grew(), "reading and flushing are no commits"
    with store.transaction() as graph:
        change_everything(graph)
        assert not grew(), "nothing was committed yet"
    assert grew()
    with store.transaction() as graph:
        graph.attrs["a"] = 1
        graph.rollback()
    assert not grew()
    with pytest.raises(NotFoundError):
        store.nodes.write([10_000], age=1)
    assert not grew()
    store.compact()
    assert grew()


def test_every_store_has_a_name_of_its_own(backend_url, open_store):
    one = open_store(backend_url, vector_dim=DIM)
    other = open_store(backend_url.replace("store", "other"), vector_dim=DIM)
    assert one.uuid
    assert one.uuid != other.uuid


def test_snapshots_stay_as_they_were_or_are_refused(store):
    if not store.capabilities.snapshots:
        with pytest.raises(UnsupportedError, match="snapshots") as caught:
            store.snapshot()
        assert isinstance(caught.value, NotImplementedError)
        assert store.url in str(caught.value)
        return
    before = contents(store)
    with store.snapshot() as old:
        with store.transaction() as graph:
            change_everything(graph)
            with store.snapshot() as during:
                assert_same(contents(during), before)
        store.compact()
        assert_same(contents(old), before)
        for act in (
            lambda: old.nodes.append(batch(1, 900)),
            lambda: old.nodes.write([0], age=1),
            lambda: old.nodes.transform(dict, ["age"], ["age"]),
            lambda: old.edges.append([0], [0]),
            lambda: old.edges.write([0], weight=1),
            lambda: old.edges.remove([0]),
            lambda: old.events.append(np.zeros(1, EVENT_DTYPE)),
            lambda: old.attrs.__setitem__("a", 1),
        ):
            with pytest.raises(ReadOnlyError, match="snapshot"):
                act()
    old.close()
    with pytest.raises(ClosedError, match="snapshot"):
        old.nodes.read([0])
    assert contents(store)["nodes"] == 311


def test_protocols_are_kept_to_the_letter(store):
    def names(protocol):
        return {n for base in protocol.__mro__[:2] for n in vars(base) if not n.startswith("_")}

    with store.transaction() as graph:
        assert names(Transaction) <= set(dir(graph))
    assert names(GraphStore) <= set(dir(store))
    if store.capabilities.snapshots:
        with store.snapshot() as old:
            assert names(Snapshot) <= set(dir(old))


def test_copies_are_the_same_store_and_pickles_are_readers(store, open_store):
    assert copy.copy(store) is store
    assert copy.deepcopy({"a": [store]})["a"][0] is store
    if is_memory(store):
        with pytest.raises(UnsupportedError, match="pickle"):
            pickle.dumps(store)
        return
    with pickle.loads(pickle.dumps(store)) as reader:
        assert reader.read_only
        assert_same(contents(reader), contents(store))
        assert reader.uuid == store.uuid
        assert reader.generation == store.generation
        store.attrs["more"] = 1
        assert_same(contents(reader), contents(store))


# --- capabilities ----------------------------------------------------------------------------------------------------


def test_capabilities_are_those_of_the_opened_store(store):
    shown = store.capabilities.as_dict()
    json.dumps(shown)
    expected = {"memory:": "none", "process_crash": "process_crash", "power_loss": "power_loss"}
    kind = "memory:" if is_memory(store) else "power_loss" if "power_loss" in store.url else "process_crash"
    assert shown["durability"] == expected[kind]
    assert shown["atomicity"] == "graph"
    assert shown["snapshots"] is is_memory(store)
    assert shown["remote"] is False
    assert shown["readers"] == ("same_process" if is_memory(store) else "other_processes")


def test_require_refuses_what_is_not_promised(backend_url, open_store):
    store = open_store(backend_url, vector_dim=DIM, require={"atomicity": "graph", "durability": "NONE"})
    store.close()
    lacking = {"remote": True, "writers": "many"}
    with pytest.raises(UnsupportedError) as caught:
        open_store(backend_url, vector_dim=DIM, require=lacking)
    assert "remote true was required, this store gives false" in str(caught.value)
    assert "writers many was required, this store gives one_process" in str(caught.value)
    for wrong in ({"colour": 1}, {"durability": "eternal"}, {"snapshots": "yes"}, {"durability": []}):
        with pytest.raises(InvalidInputError):
            open_store(backend_url, vector_dim=DIM, require=wrong)
    open_store(backend_url, vector_dim=DIM)  # a refusal leaves nothing open


# --- compaction, flushing, closing -----------------------------------------------------------------------------------


def test_compact_drops_what_is_pruned_and_gives_rows_anew(store):
    store.nodes.write([1, 7], is_active=0)
    before = store.nodes.read(np.arange(12))
    edges = store.edges.read([3, 7, 8, 9])
    row_map = store.compact()
    assert row_map.dtype == np.int64
    assert row_map.tolist() == [0, -1, 1, 2, 3, 4, 5, -1, 6, 7, 8, -1]
    stays = np.flatnonzero(row_map >= 0)
    after = store.nodes.read(np.arange(9))
    for name in NODE_FIELDS:
        assert np.array_equal(after[name], before[name][stays])
    found = store.edges.read(np.arange(4))
    assert np.array_equal(found["source_row"], row_map[edges["source_row"]])
    assert np.array_equal(found["target_row"], row_map[edges["target_row"]])
    assert np.array_equal(found["weight"], edges["weight"])
    assert len(store.edges) == 4
    assert len(store.events) == 13
    assert store.attrs["epoch"] == 7
    assert store.nodes.rows_of(before["id"]).tolist() == row_map.tolist()
    check_within(store)
    assert store.verify() == []
    store.nodes.append(batch(1, 101))  # the id of a dropped node is free again
    assert store.compact().tolist() == list(range(10))
    with pytest.raises(NotFoundError):
        store.nodes.read([10])


def test_compact_of_everything(store):
    store.nodes.write(np.arange(12), is_active=0)
    assert store.compact().tolist() == [-1] * 12
    assert (len(store.nodes), len(store.edges), len(store.events)) == (0, 0, 13)
    fill(store)
    check_within(store)
    assert store.verify() == []


def test_a_scan_over_a_compaction_is_ended_not_garbled(empty):
    fill(empty, 2000)
    nodes, edges = empty.nodes.scan(["id"], 100), empty.edges.scan(["weight"], 2)
    next(nodes), next(edges)
    empty.nodes.write(np.arange(5, 2000), is_active=0)
    empty.compact()
    for scan in (nodes, edges):
        with pytest.raises(ConflictError, match="compacted") as caught:
            list(scan)
        assert empty.url in str(caught.value)


def test_a_scan_sees_the_rows_that_were_there_when_it_began(store):
    scan = store.nodes.scan(["id"], 5)
    next(scan)
    store.nodes.append(batch(5, 700))
    assert [chunk["id"].tolist() for chunk in scan] == [[105, 106, 107, 108, 109], [110, 111]]


def test_stats_count(store):
    stats = store.stats()
    expected = {"nodes": 12, "active_nodes": 11, "edges": 9, "removed_edges": 1, "events": 13}
    assert {name: stats[name] for name in expected} == expected
    json.dumps(stats)


def test_refresh_of_a_writer_changes_nothing(store):
    assert store.refresh() is False


def uses(store):
    """Everything that needs an open store."""
    return {
        "len": lambda: len(store.nodes),
        "read": lambda: store.nodes.read([0]),
        "scan": lambda: list(store.nodes.scan()),
        "rows_of": lambda: store.nodes.rows_of([1]),
        "out_edges": lambda: store.edges.out_edges([0]),
        "degrees": lambda: store.edges.degrees([0]),
        "edge scan": lambda: list(store.edges.scan()),
        "edge read": lambda: store.edges.read([0]),
        "events": lambda: store.events.read(),
        "attrs": lambda: dict(store.attrs),
        "dim": lambda: store.vector_dim,
        "verify": lambda: store.verify(),
        "stats": lambda: store.stats(),
        "refresh": lambda: store.refresh(),
    }


def writes(store):
    """Everything that changes one."""
    return {
        "transaction": store.transaction,
        "append": lambda: store.nodes.append(batch(1, 900)),
        "append of nothing": lambda: store.nodes.append(NodeBatch(np.empty((0, DIM)))),
        "write": lambda: store.nodes.write([0], age=1),
        "transform": lambda: store.nodes.transform(dict, ["age"], ["age"]),
        "connect": lambda: store.edges.append([0], [0]),
        "edge write": lambda: store.edges.write([0], weight=1),
        "remove": lambda: store.edges.remove([0]),
        "edge transform": lambda: store.edges.transform(dict, ["weight"], ["weight"]),
        "log": lambda: store.events.append(np.zeros(1, EVENT_DTYPE)),
        "set": lambda: store.attrs.__setitem__("a", 1),
        "delete": lambda: store.attrs.__delitem__("epoch"),
        "compact": store.compact,
    }


def test_a_closed_store_refuses_everything_but_closing(store):
    with store as same:
        assert same is store
    acts = uses(store) | writes(store) | {"flush": store.flush, "snapshot": store.snapshot}
    for name, act in acts.items():
        with pytest.raises(ClosedError) as caught:
            act()
        assert store.url in str(caught.value), name
    store.close()
    assert "closed" in repr(store)


def test_a_reader_refuses_every_write(disk_url, open_store):
    with open_store(disk_url, vector_dim=DIM) as store:
        fill(store)
        before, generation, identity = contents(store), store.generation, store.uuid
    reader = open_store(disk_url, mode="r")
    assert reader.read_only
    assert isinstance(reader, GraphStore)
    for act in writes(reader).values():
        with pytest.raises(ReadOnlyError) as caught:
            act()
        assert reader.url in str(caught.value)
    for act in uses(reader).values():
        act()
    reader.flush()
    assert reader.refresh() is False
    assert_same(contents(reader), before)
    assert (reader.generation, reader.uuid) == (generation, identity)
    reader.close()
    for act in uses(reader).values():
        with pytest.raises(ClosedError):
            act()


def test_what_was_closed_opens_as_it_was(disk_url, open_store):
    with open_store(disk_url, vector_dim=DIM) as store:
        fill(store)
        before, generation, identity = contents(store), store.generation, store.uuid
    for mode in ("r", "a", "r", "a"):
        with open_store(disk_url, mode=mode) as store:
            assert_same(contents(store), before)
            assert (store.generation, store.uuid) == (generation, identity)
            assert store.verify() == []
            check_within(store)
