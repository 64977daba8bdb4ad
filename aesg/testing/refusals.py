"""Refusals: what is wrong raises the right error, the message names the store, and nothing was written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
import pytest

from aesg.errors import (
    AESGError,
    DuplicateIdError,
    InvalidInputError,
    InvalidVectorError,
    NotFoundError,
    TransactionError,
)
from aesg.protocols import Graph, GraphStore
from aesg.records import EVENT_DTYPE, Columns, EventType, NodeBatch, events
from aesg.testing.base import ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.graphs import assert_same, batch, contents, fill, vectors
from aesg.testing.target import DIM

Act: TypeAlias = Callable[[Any], object]
"""Does something with a graph; what is wrong with its arguments is no business of the type checker."""

NAN, INF, HUGE = float("nan"), float("inf"), 1e39  # HUGE is finite, but not as float32
MANY_AND_INF: Final = np.where(np.arange(8000) == 7999, INF, 1).reshape(-1, 4)
MANY_AND_BOTH: Final = np.where(np.arange(8000) < 2, [INF, -INF] * 4000, 1).reshape(-1, 4)  # their sum is NaN
OTHER_WIDTHS: Final = [("timestamp", "f8"), ("type", "i8"), ("id1", "i8"), ("id2", "i8"), ("val", "f8")]

circular: list[Any] = []
circular.append(circular)
deep: list[Any] = json.loads("[" * 900 + "]" * 900)
for _ in range(100_000):
    deep = [deep]


class Unwilling:
    """No array can be made of it."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise RuntimeError("no array of this")


def adding(given: Any, ids: Any = None) -> Act:
    """Append nodes of these vectors and ids."""
    return lambda g: g.nodes.append(NodeBatch(given, ids))


def appending(**columns: Any) -> Act:
    """Append two nodes that say this."""
    return lambda g: g.nodes.append(NodeBatch(vectors(2), np.array([1, 2], np.uint64), columns))


def returning(out: Any, writes: list[str]) -> Act:
    """Transform by a function that returns this."""
    return lambda g: g.nodes.transform(lambda c: out, ["age"], writes)


REFUSED: Final[Mapping[str, Mapping[str, tuple[type[AESGError], Act]]]] = {
    "vectors": {
        "too long": (InvalidVectorError, adding(vectors(2, dim=DIM + 1))),
        "too short": (InvalidVectorError, adding(vectors(2, dim=DIM - 1))),
        "one element, which 0.3.0 broadcast": (InvalidVectorError, adding(vectors(1, dim=1))),
        "one vector": (InvalidVectorError, adding(np.ones(DIM))),
        "three axes": (InvalidVectorError, adding(np.ones((1, 1, DIM)))),
        "a number": (InvalidVectorError, adding(np.float32(1))),
        "text": (InvalidVectorError, adding(np.full((1, DIM), "1"))),
        "objects": (InvalidVectorError, adding(np.full((1, DIM), None))),
        "bool": (InvalidVectorError, adding(np.ones((1, DIM), bool))),
        "complex": (InvalidVectorError, adding(np.ones((1, DIM), complex))),
        "write too few": (InvalidVectorError, lambda g: g.nodes.write([0, 1], vector=vectors(1))),
        "write too long": (InvalidVectorError, lambda g: g.nodes.write([0], vector=vectors(1, dim=DIM + 1))),
        "write a number": (InvalidVectorError, lambda g: g.nodes.write([0], vector=1.0)),
        "transform to too few": (InvalidVectorError, returning({"vector": vectors(11)}, ["vector"])),
    },
    "non-finite": {
        "vector nan": (InvalidVectorError, adding(np.array([[0, 0, 0, 0], [0, NAN, 0, 0]]))),
        "vector inf": (InvalidVectorError, adding(vectors(2, -INF))),
        "vector inf among many": (InvalidVectorError, adding(MANY_AND_INF)),
        "vector inf and -inf among many": (InvalidVectorError, adding(MANY_AND_BOTH)),
        "vector overflow": (InvalidVectorError, adding(vectors(2, HUGE, np.float64))),
        "write vector nan": (InvalidVectorError, lambda g: g.nodes.write([0], vector=vectors(1, NAN))),
        "write vector overflow": (InvalidVectorError, lambda g: g.nodes.write([0], vector=[HUGE] * DIM)),
        "transform to nan": (InvalidVectorError, returning({"vector": vectors(12, NAN)}, ["vector"])),
        "relevance nan": (InvalidInputError, appending(relevance=np.array([1, NAN]))),
        "relevance inf": (InvalidInputError, appending(relevance=np.array([1, INF], np.float32))),
        "relevance overflow": (InvalidInputError, appending(relevance=np.array([1, HUGE]))),
        "write nan": (InvalidInputError, lambda g: g.nodes.write([0], age=5, relevance=NAN)),
        "write overflow": (InvalidInputError, lambda g: g.nodes.write([0], stability=HUGE)),
        "weight nan": (InvalidInputError, lambda g: g.edges.append([0, 1], [1, 2], [1, NAN])),
        "confidence inf": (InvalidInputError, lambda g: g.edges.append([0, 1], [1, 2], 1, INF)),
        "weight overflow": (InvalidInputError, lambda g: g.edges.append([0, 1], [1, 2], HUGE)),
        "write weight nan": (InvalidInputError, lambda g: g.edges.write([0], use_count=1, weight=NAN)),
        "event nan": (InvalidInputError, lambda g: g.events.append(events(EventType.MERGE, 1, 2, [1, NAN]))),
        "event inf": (InvalidInputError, lambda g: g.events.append(events(EventType.MERGE, 1, 2, INF))),
        "attribute nan": (InvalidInputError, lambda g: g.attrs.__setitem__("a", [NAN])),
    },
    "duplicate-ids": {
        "in the store": (DuplicateIdError, adding(vectors(2), np.array([7, 105], np.uint64))),
        "of a pruned node": (DuplicateIdError, adding(vectors(1), np.array([111], np.uint64))),
        "in the batch": (DuplicateIdError, adding(vectors(3), np.array([7, 8, 7], np.uint64))),
    },
    "shapes-and-ranges": {
        "not a batch": (InvalidInputError, lambda g: g.nodes.append(vectors(2))),
        "ragged vectors": (InvalidInputError, adding([[1, 2, 3, 4], [1]])),
        "no array": (InvalidInputError, adding(Unwilling())),
        "too few ids": (InvalidInputError, adding(vectors(2), np.array([7], np.uint64))),
        "one id": (InvalidInputError, adding(vectors(2), np.uint64(7))),
        "ids of two axes": (InvalidInputError, adding(vectors(2), np.array([[7, 8]], np.uint64))),
        "float ids": (InvalidInputError, adding(vectors(2), np.array([7.0, 8.0]))),
        "negative id": (InvalidInputError, adding(vectors(2), np.array([7, -8]))),
        "id of 65 bits": (InvalidInputError, adding(vectors(1), np.array([2**64]))),
        "column of another length": (InvalidInputError, appending(age=np.array([1, 2, 3]))),
        "column of two axes": (InvalidInputError, appending(age=np.array([[1, 2]]))),
        "negative age": (InvalidInputError, appending(age=np.array([1, -1]))),
        "age of 33 bits": (InvalidInputError, appending(age=np.array([1, 2**32]))),
        "float age": (InvalidInputError, appending(age=np.array([1.0, 2.0]))),
        "is_active 2": (InvalidInputError, appending(is_active=np.array([1, 2]))),
        "negative created_at": (InvalidInputError, appending(created_at=np.array([1, -2]))),
        "text": (InvalidInputError, appending(stability=np.array(["1", "2"]))),
        "read float rows": (InvalidInputError, lambda g: g.nodes.read([0.0])),
        "read bool rows": (InvalidInputError, lambda g: g.nodes.read([True, False])),
        "read rows of two axes": (InvalidInputError, lambda g: g.nodes.read([[0]])),
        "read ragged rows": (InvalidInputError, lambda g: g.nodes.read([[0], [1, 2]])),
        "read text rows": (InvalidInputError, lambda g: g.nodes.read("0")),
        "write another length": (InvalidInputError, lambda g: g.nodes.write([0, 1], age=[1, 2, 3])),
        "write one for two": (InvalidInputError, lambda g: g.nodes.write([0, 1], age=[1])),
        "write negative": (InvalidInputError, lambda g: g.nodes.write([0], region_id=-1)),
        "write float age": (InvalidInputError, lambda g: g.nodes.write([0], age=1.5)),
        "write is_active 2": (InvalidInputError, lambda g: g.nodes.write([0], is_active=2)),
        "write none": (InvalidInputError, lambda g: g.nodes.write([0], age=None)),
        "write ragged": (InvalidInputError, lambda g: g.nodes.write([0], age=[[1], [1, 2]])),
        "scan no rows at a time": (InvalidInputError, lambda g: list(g.nodes.scan(chunk_rows=0))),
        "scan half a row at a time": (InvalidInputError, lambda g: list(g.nodes.scan(chunk_rows=0.5))),
        "scan edges none at a time": (InvalidInputError, lambda g: list(g.edges.scan(chunk_edges=-1))),
        "float ids asked": (InvalidInputError, lambda g: g.nodes.rows_of([1.0])),
        "negative ids asked": (InvalidInputError, lambda g: g.nodes.rows_of([-1])),
        "ids of two axes asked": (InvalidInputError, lambda g: g.nodes.rows_of([[1]])),
        "edges of unequal lengths": (InvalidInputError, lambda g: g.edges.append([0, 1], [1])),
        "edges from floats": (InvalidInputError, lambda g: g.edges.append([0.0], [1])),
        "edges of two axes": (InvalidInputError, lambda g: g.edges.append([[0]], [[1]])),
        "weight of another length": (InvalidInputError, lambda g: g.edges.append([0, 1], [1, 2], [1, 2, 3])),
        "weight none": (InvalidInputError, lambda g: g.edges.append([0], [1], None)),
        "write use_count negative": (InvalidInputError, lambda g: g.edges.write([0], use_count=-1)),
        "write use_count float": (InvalidInputError, lambda g: g.edges.write([0], use_count=1.0)),
        "write edge another length": (InvalidInputError, lambda g: g.edges.write([0, 1], weight=[1, 2, 3])),
    },
    "fields": {
        "unknown field": (InvalidInputError, appending(colour=np.array([1, 2]))),
        "head_edge_idx": (InvalidInputError, appending(head_edge_idx=np.array([1, 2]))),
        "id among the columns": (InvalidInputError, appending(id=np.array([1, 2]))),
        "vector among the columns": (InvalidInputError, appending(vector=vectors(2))),
        "read unknown field": (InvalidInputError, lambda g: g.nodes.read([0], ["id", "colour"])),
        "read head_edge_idx": (InvalidInputError, lambda g: g.nodes.read([0], ["head_edge_idx"])),
        "read fields as a string": (InvalidInputError, lambda g: g.nodes.read([0], "id")),
        "write id": (InvalidInputError, lambda g: g.nodes.write([0], id=5)),
        "write created_at": (InvalidInputError, lambda g: g.nodes.write([0], created_at=5)),
        "write unknown field": (InvalidInputError, lambda g: g.nodes.write([0], age=5, colour=1)),
        "scan unknown field": (InvalidInputError, lambda g: list(g.nodes.scan(["colour"]))),
        "scan edges unknown field": (InvalidInputError, lambda g: list(g.edges.scan(["colour"]))),
        "read unknown edge field": (InvalidInputError, lambda g: g.edges.read([0], ["next_edge_idx"])),
        "write source_row": (InvalidInputError, lambda g: g.edges.write([0], source_row=1)),
        "write target_row": (InvalidInputError, lambda g: g.edges.write([0], weight=1, target_row=1)),
        "write next_edge_idx": (InvalidInputError, lambda g: g.edges.write([0], next_edge_idx=1)),
    },
    "events": {
        "events of no dtype": (InvalidInputError, lambda g: g.events.append(np.zeros(3))),
        "events of other widths": (InvalidInputError, lambda g: g.events.append(np.zeros(1, OTHER_WIDTHS))),
        "events of other names": (InvalidInputError, lambda g: g.events.append(np.zeros(1, [("timestamp", "<u8")]))),
        "events of two axes": (InvalidInputError, lambda g: g.events.append(np.zeros((1, 1), EVENT_DTYPE))),
    },
    "attrs": {
        "attribute of a set": (InvalidInputError, lambda g: g.attrs.__setitem__("a", {1})),
        "attribute of bytes": (InvalidInputError, lambda g: g.attrs.__setitem__("a", b"1")),
        "attribute of an array": (InvalidInputError, lambda g: g.attrs.__setitem__("a", np.ones(2))),
        "attribute without end": (InvalidInputError, lambda g: g.attrs.__setitem__("a", circular)),
        "attribute too deep": (InvalidInputError, lambda g: g.attrs.__setitem__("a", deep)),
        "attribute of no name": (InvalidInputError, lambda g: g.attrs.__setitem__(3, 1)),
    },
    "transforms": {
        "transform unknown reads": (InvalidInputError, lambda g: g.nodes.transform(dict, ["colour"], ["age"])),
        "transform unknown writes": (InvalidInputError, lambda g: g.nodes.transform(dict, ["age"], ["colour"])),
        "transform id": (InvalidInputError, lambda g: g.nodes.transform(dict, ["id"], ["id"])),
        "transform created_at": (InvalidInputError, lambda g: g.nodes.transform(dict, ["created_at"], ["created_at"])),
        "transform source_row": (InvalidInputError, lambda g: g.edges.transform(dict, ["source_row"], ["source_row"])),
        "transform edges unknown reads": (InvalidInputError, lambda g: g.edges.transform(dict, ["colour"], ["weight"])),
    },
    "not-found": {
        "row 12": (NotFoundError, lambda g: g.nodes.read([0, 12])),
        "row -1": (NotFoundError, lambda g: g.nodes.read([-1])),
        "row 2**63": (NotFoundError, lambda g: g.nodes.read(np.array([2**63], np.uint64))),
        "write row 12": (NotFoundError, lambda g: g.nodes.write([0, 12], age=1)),
        "write row -1": (NotFoundError, lambda g: g.nodes.write([-1], age=1)),
        "edge from nowhere": (NotFoundError, lambda g: g.edges.append([0, 12], [1, 2])),
        "edge to nowhere": (NotFoundError, lambda g: g.edges.append([0, 1], [1, 12])),
        "edge to -1": (NotFoundError, lambda g: g.edges.append([0, 1], [1, -1])),
        "out_edges of row 12": (NotFoundError, lambda g: g.edges.out_edges([0, 12])),
        "degree of row -1": (NotFoundError, lambda g: g.edges.degrees([-1])),
        "edge 10": (NotFoundError, lambda g: g.edges.read([0, 10])),
        "edge -1": (NotFoundError, lambda g: g.edges.read([-1])),
        "removed edge": (NotFoundError, lambda g: g.edges.read([0, 4])),
        "write edge 10": (NotFoundError, lambda g: g.edges.write([0, 10], weight=1)),
        "write removed edge": (NotFoundError, lambda g: g.edges.write([0, 4], weight=1)),
        "remove edge 10": (NotFoundError, lambda g: g.edges.remove([0, 10])),
        "remove removed edge": (NotFoundError, lambda g: g.edges.remove([0, 4])),
        "remove an edge twice": (NotFoundError, lambda g: g.edges.remove([0, 1, 0])),
        "attribute": (NotFoundError, lambda g: g.attrs["absent"]),
        "attribute to delete": (NotFoundError, lambda g: g.attrs.__delitem__("absent")),
    },
}  # fmt: skip
"""Subject → what is tried on a graph of `fill` → the error that is due."""


def raising(columns: Columns) -> Columns:
    """A function that fails in its own way."""
    raise ZeroDivisionError("fn's own")


BAD_FUNCTIONS: Final[Mapping[str, tuple[type[Exception], Callable[[Columns], Any]]]] = {
    "too little": (InvalidInputError, lambda c: {}),
    "too much": (InvalidInputError, lambda c: {"age": c["age"], "relevance": 1.0, "stability": 1.0}),
    "another name": (InvalidInputError, lambda c: {"age": c["age"], "colour": 1}),
    "nothing": (InvalidInputError, lambda c: None),
    "nan": (InvalidInputError, lambda c: {"age": 1, "relevance": c["relevance"] * np.float32(NAN)}),
    "another length": (InvalidInputError, lambda c: {"age": 1, "relevance": c["relevance"][1:]}),
    "negative": (InvalidInputError, lambda c: {"age": c["age"].astype(np.int64) - 1000, "relevance": 1}),
    "raises": (ZeroDivisionError, raising),
}


def what_is_wrong(graph: Graph, subject: str, url: str) -> list[str]:
    """Try everything of a subject; what did not go as it should, a sentence each."""
    before, wrong = contents(graph), []
    for name, (error, act) in REFUSED[subject].items():
        try:
            act(graph)
        except error as caught:
            if type(caught) is not error and not isinstance(caught, InvalidVectorError):
                wrong.append(f"{name}: {type(caught).__name__} instead of {error.__name__}")
            if url not in str(caught):
                wrong.append(f"{name}: the message does not name the store: {caught}")
        except Exception as caught:
            wrong.append(f"{name}: {caught!r} instead of {error.__name__}")
        else:
            wrong.append(f"{name}: was not refused")
        try:
            assert_same(contents(graph), before)
        except AssertionError as caught:
            wrong.append(f"{name}: changed the graph: {str(caught).splitlines()[0]}")
            before = contents(graph)
    return wrong


class RefusalClauses(ClauseGroup):
    """What is refused, and that nothing was written."""

    def refused(self, store: GraphStore, subject: str) -> None:
        """Everything of a subject is refused, by the store and within a transaction, which goes on as before."""
        generation = store.generation
        wrong = what_is_wrong(store, subject, store.url)
        if store.generation != generation:
            wrong.append("the generation grew")
        assert not wrong, "; ".join(wrong)

    @clause("refusals.vectors")
    def test_refused_vectors(self, store: GraphStore) -> None:
        """Vectors that are not float [n, D] are refused."""
        self.refused(store, "vectors")

    @clause("refusals.non-finite")
    def test_refused_non_finite(self, store: GraphStore) -> None:
        """NaN, infinity and what overflows float32 are refused everywhere."""
        self.refused(store, "non-finite")

    @clause("refusals.duplicate-ids")
    def test_refused_duplicate_ids(self, store: GraphStore) -> None:
        """An id that is in the store, of a pruned node too, or twice in a batch is refused."""
        self.refused(store, "duplicate-ids")

    @clause("refusals.shapes-and-ranges")
    def test_refused_shapes_and_ranges(self, store: GraphStore) -> None:
        """Wrong shapes, dtypes and ranges are refused."""
        self.refused(store, "shapes-and-ranges")

    @clause("refusals.fields")
    def test_refused_fields(self, store: GraphStore) -> None:
        """Unknown fields are refused, and writing those that may not change."""
        self.refused(store, "fields")

    @clause("refusals.events")
    def test_refused_events(self, store: GraphStore) -> None:
        """Events of another dtype or shape are refused."""
        self.refused(store, "events")

    @clause("refusals.attrs")
    def test_refused_attrs(self, store: GraphStore) -> None:
        """Attributes that are not JSON are refused."""
        self.refused(store, "attrs")

    @clause("refusals.transforms")
    def test_refused_transforms(self, store: GraphStore) -> None:
        """A transform of what is unknown, or to what may not change, is refused before it begins."""
        self.refused(store, "transforms")

    @clause("refusals.not-found")
    def test_refused_not_found(self, store: GraphStore) -> None:
        """Rows, refs and attributes that are not there are a NotFoundError."""
        self.refused(store, "not-found")

    @clause("refusals.leave-no-lock")
    def test_the_store_goes_on(self, store: GraphStore) -> None:
        """After refusals the store is written to as before."""
        for subject in REFUSED:
            _, act = next(iter(REFUSED[subject].values()))
            with pytest.raises(AESGError):
                act(store)
            store.attrs["refused"] = subject
        assert store.nodes.append(NodeBatch(vectors(1))).tolist() == [12]
        assert store.verify() == []

    @clause("refusals.in-a-transaction")
    @pytest.mark.parametrize("within", ["all of it", "on top of a commit"])
    def test_a_transaction_goes_on_after_refusals(self, empty: GraphStore, within: str) -> None:
        """A refused call leaves a transaction as it was, and it goes on."""
        if within == "on top of a commit":
            fill(empty)
        with empty.transaction() as graph:
            if within == "all of it":
                fill(graph)
            graph.attrs["mine"] = 1
            before, wrong = contents(graph), []
            for acts in REFUSED.values():
                for name, (error, act) in acts.items():
                    # What `fn` returned for a later chunk comes too late to leave the earlier ones as they were.
                    if not name.startswith("transform to"):
                        try:
                            act(graph)
                        except error:
                            continue
                        wrong.append(name)
            assert not wrong
            assert_same(contents(graph), before)
            graph.nodes.write([0], age=4)
        assert empty.attrs["mine"] == 1
        assert empty.nodes.read([0], ["age"])["age"].tolist() == [4]
        assert empty.verify() == []

    @clause("refusals.bad-transform")
    def test_a_bad_transform_is_rolled_back_whole(self, stores: Stores) -> None:
        """A transform whose function fails, in whichever chunk, is rolled back with the whole transaction."""
        store = stores.new(vector_dim=1000)  # long vectors, so that a thousand rows are more than one chunk
        with store.transaction() as graph:
            graph.nodes.append(batch(1200, dim=1000))
        calls = 0

        def counted(columns: Columns) -> Columns:
            nonlocal calls
            calls += 1
            return {"age": columns["age"], "relevance": columns["relevance"]}

        store.nodes.transform(counted, ["age", "relevance"], ["age", "relevance"])
        chunks, before = calls, store.nodes.read(np.arange(1200), ["age", "relevance"])
        for name, (error, bad) in BAD_FUNCTIONS.items():
            self.fails_late(store, name, error, bad, chunks)
            now = store.nodes.read(np.arange(1200), ["age", "relevance"])
            assert now["age"].tobytes() == before["age"].tobytes(), name
            assert now["relevance"].tobytes() == before["relevance"].tobytes(), name
            assert "half" not in store.attrs, name
        assert store.verify() == []

    def fails_late(
        self, store: GraphStore, name: str, error: type[Exception], bad: Callable[[Columns], Any], chunks: int
    ) -> None:
        """The last chunk of a transform goes wrong: of one through the store, and of one in a transaction."""
        calls = 0

        def fn(columns: Columns) -> Any:
            nonlocal calls
            calls += 1
            if calls == chunks:
                return bad(columns)
            return {"age": columns["age"] + 1, "relevance": np.zeros(len(columns["age"]))}

        with pytest.raises(error):
            store.nodes.transform(fn, ["age", "relevance"], ["age", "relevance"])
        assert calls == chunks, name
        calls = 0

        def swallowing() -> None:
            with store.transaction() as graph:
                graph.attrs["half"] = True
                with pytest.raises(error):
                    graph.nodes.transform(fn, ["age", "relevance"], ["age", "relevance"])

        with pytest.raises(TransactionError, match="rolled back"):
            swallowing()
