"""Edges by ref and by source, the evolution log, attributes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from aesg.errors import InvalidInputError, NotFoundError
from aesg.protocols import GraphStore
from aesg.records import EVENT_DTYPE, JSON, Columns
from aesg.testing.base import ClauseGroup
from aesg.testing.clauses import clause
from aesg.testing.graphs import check_within


class EdgeClauses(ClauseGroup):
    """What an `EdgeStore` promises."""

    @clause("edges.out.newest-first")
    def test_out_edges_are_newest_first(self, store: GraphStore) -> None:
        """The out-edges of any list of rows, repeats included: of each row the newest first, in CSR form."""
        found = store.edges.out_edges([0, 4, 3, 0])
        assert found.indptr.tolist() == [0, 4, 4, 6, 10]
        assert found.refs.tolist() == [9, 5, 2, 0, 7, 6, 9, 5, 2, 0]
        assert found.target_rows.tolist() == [4, 11, 1, 1, 2, 1, 4, 11, 1, 1]
        assert found.use_count.tolist() == [0, 0, 0, 3, 0, 4, 0, 0, 0, 3]
        weight = np.linspace(0.1, 1, 10).astype(np.float32)
        assert np.array_equal(found.weight, weight[found.refs])
        assert np.array_equal(found.confidence, weight[::-1][found.refs])
        assert found.degrees.tolist() == store.edges.degrees([0, 4, 3, 0]).tolist() == [4, 0, 2, 4]
        kinds = {"refs": "i8", "target_rows": "i8", "weight": "f4", "confidence": "f4", "use_count": "u4"}
        for name, dtype in kinds.items():
            assert getattr(found, name).dtype == dtype
        check_within(store)

    @clause("edges.out.limit")
    def test_out_edges_may_be_limited(self, store: GraphStore) -> None:
        """With a limit each row gives its newest edges, so many at most; removed edges do not count."""
        everything = store.edges.out_edges([0, 4, 3, 0])
        for limit in (1, 2, 3, 4, 100):
            found = store.edges.out_edges([0, 4, 3, 0], limit)
            lists = [everything.refs[a:b][:limit].tolist() for a, b in pairwise(everything.indptr.tolist())]
            assert found.refs.tolist() == [ref for refs in lists for ref in refs]
            assert found.degrees.tolist() == [len(refs) for refs in lists]
            place = np.array([everything.refs.tolist().index(ref) for ref in found.refs.tolist()])
            for name in ("target_rows", "weight", "confidence", "use_count"):
                assert np.array_equal(getattr(found, name), getattr(everything, name)[place])
        store.edges.append([0, 0], [1, 2])
        store.edges.remove([9, 11])
        assert store.edges.out_edges([0], 3).refs.tolist() == [10, 5, 2]
        store.compact()
        assert store.edges.out_edges([0], 3).refs.tolist() == store.edges.out_edges([0]).refs[:3].tolist()
        for wrong in (0, -1, 1.5):
            with pytest.raises(InvalidInputError):
                store.edges.out_edges([0], wrong)  # type: ignore[arg-type]
        check_within(store)

    @clause("edges.out.fresh")
    def test_out_edges_show_what_was_written(self, store: GraphStore) -> None:
        """The lists show at once what was appended, written, transformed and removed."""
        before = store.edges.out_edges([0])
        store.edges.write([9], weight=7, confidence=0.5, use_count=2)
        found = store.edges.out_edges([0])
        assert (found.weight[0], found.confidence[0], found.use_count[0]) == (7, 0.5, 2)
        assert np.array_equal(found.weight[1:], before.weight[1:])
        (ref,) = store.edges.append([0], [7], 0.25)
        assert store.edges.out_edges([0]).refs.tolist() == [ref, 9, 5, 2, 0]
        store.edges.transform(lambda c: {"weight": c["weight"] * 2}, ["weight"], ["weight"])
        assert store.edges.out_edges([0]).weight[:2].tolist() == [0.5, 14]
        store.edges.remove([ref, 5])
        assert store.edges.out_edges([0]).refs.tolist() == [9, 2, 0]
        check_within(store)

    @clause("edges.refs.stay")
    def test_refs_ascend_and_stay(self, store: GraphStore) -> None:
        """Refs ascend and stay as they are when other edges are removed."""
        assert store.edges.append([1, 0], [0, 0]).tolist() == [10, 11]
        store.edges.remove([0, 9, 6])
        assert store.edges.out_edges([0]).refs.tolist() == [11, 5, 2]
        assert store.edges.read([11])["source_row"].tolist() == [0]
        assert store.edges.append([0], [0]).tolist() == [12]
        assert len(store.edges) == 9
        check_within(store)
        assert store.verify() == []

    @clause("edges.remove.all-of-a-row")
    def test_all_edges_of_a_row_can_be_removed(self, store: GraphStore) -> None:
        """All edges of a row can be removed, at once or one by one, and others made."""
        store.edges.remove([0, 2, 5, 9])
        store.edges.remove([7])
        store.edges.remove([6])
        assert store.edges.degrees([0, 3]).tolist() == [0, 0]
        store.edges.append([0, 3], [3, 0])
        assert store.edges.degrees([0, 3]).tolist() == [1, 1]
        check_within(store)
        assert store.verify() == []

    @clause("edges.remove.same-transaction")
    def test_edges_and_their_removal_within_one_transaction(self, store: GraphStore) -> None:
        """Edges appended, written and removed within one transaction are so at once and after it."""
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

    @clause("edges.transform.live-only")
    def test_transform_never_shows_removed_edges(self, store: GraphStore) -> None:
        """A transform of edges maps whole columns and never shows removed edges."""
        seen: list[int] = []

        def doubted(columns: Columns) -> Columns:
            seen.extend(columns["source_row"].tolist())
            five = np.full(len(columns["weight"]), 5)
            return {"confidence": columns["confidence"] * 2, "weight": 1 / columns["weight"], "use_count": five}

        before = store.edges.read([0, 9])
        store.edges.transform(doubted, ["confidence", "weight", "source_row"], ["confidence", "weight", "use_count"])
        assert seen == [0, 1, 0, 2, 0, 3, 3, 5, 0]
        after = store.edges.read([0, 9])
        assert after["confidence"].tolist() == (before["confidence"] * 2).tolist()
        assert after["weight"].tolist() == (1 / before["weight"]).tolist()
        assert after["use_count"].tolist() == [5, 5]
        assert store.verify() == []
        check_within(store)

    @clause("edges.transform.returns")
    def test_transform_of_edges_returns_what_it_found(self, store: GraphStore) -> None:
        """What else the function gives comes back to the caller, by ref, without removed edges."""
        store.edges.remove([3, 8])

        def weak(columns: Columns) -> Columns:
            return {"weak": columns["ref"][columns["weight"] < 0.45], "weight": columns["weight"] * 2}

        found = store.edges.transform(weak, ["ref", "weight"], ["weight"], ["weak"])
        assert found["weak"].tolist() == [0, 1, 2]
        assert store.edges.read([0, 1, 9], ["weight"])["weight"].tolist() == pytest.approx([0.2, 0.4, 2])
        store.edges.remove(found["weak"])
        left = store.edges.transform(lambda c: {"all": c["ref"]}, ["ref"], [], ["all"])
        assert left["all"].tolist() == [5, 6, 7, 9]  # `fill` has removed one, too
        check_within(store)


class LogClauses(ClauseGroup):
    """What the `EventLog` and the attributes promise."""

    @clause("events.read.slices")
    def test_events_are_read_back_by_slices(self, store: GraphStore) -> None:
        """Events come back to the bit, by Python's rules for slices."""
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

    @clause("events.append.padding")
    def test_padding_of_events_is_not_kept(self, store: GraphStore) -> None:
        """What a caller's array has between the fields of an event is not kept."""
        dirty = np.frombuffer(b"\xff" * 32, EVENT_DTYPE).copy()
        dirty["val"] = 1
        store.events.append(dirty)
        assert store.events.read(-1).tobytes()[9:12] == bytes(3)

    @clause("attrs.json.copies")
    def test_attributes_hold_json_and_give_copies(self, store: GraphStore) -> None:
        """Attributes are a mapping of JSON values that keeps its order and gives copies."""
        value: JSON = {"list": [1, 2.5, "ä", None, True, {"deep": []}], "": 0}
        store.attrs["new"] = value
        assert store.attrs["new"] == value
        given = store.attrs["new"]
        assert isinstance(given, dict)
        given.clear()
        assert store.attrs["new"] == value
        store.attrs["new"] = 1
        assert list(store.attrs) == ["config", "epoch", "new"]
        assert len(store.attrs) == 3
        assert "new" in store.attrs
        assert 3 not in store.attrs  # type: ignore[comparison-overlap]
        assert store.attrs.get("absent", 5) == 5
        del store.attrs["new"]
        assert "new" not in store.attrs
        assert store.attrs.pop("epoch") == 7
        store.attrs.update(a=1, b=[2])
        assert dict(store.attrs) == {"config": {"a": [1, 2.5, None, True], "ä": "ü"}, "a": 1, "b": [2]}
        store.attrs["tuple"] = (1, (2,))  # type: ignore[assignment]  # json makes lists of them
        assert store.attrs["tuple"] == [1, [2]]
        store.attrs["number"] = np.float64(0.1)
        assert store.attrs["number"] == 0.1

    @clause("attrs.json.large")
    def test_large_attributes(self, store: GraphStore) -> None:
        """An attribute may be large, and 64-bit whole numbers stay whole."""
        store.attrs["large"] = "x" * 100_000
        store.attrs["whole"] = [2**63, -(2**63), 2**53 + 1]
        assert store.attrs["large"] == "x" * 100_000
        assert store.attrs["whole"] == [2**63, -(2**63), 2**53 + 1]
