"""A store as a whole: new, generations, names, snapshots, copies, compaction, closing, read-only handles."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from aesg.backends import registry
from aesg.backends.registry import Mode
from aesg.errors import (
    ClosedError,
    ConflictError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    SchemaMismatchError,
    UnsupportedError,
)
from aesg.protocols import GraphStore, Snapshot, Transaction
from aesg.records import EVENT_DTYPE, NODE_FIELDS, EventType, NodeBatch, events
from aesg.testing.base import NOT_DECLARED, ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.graphs import assert_same, batch, change_everything, check_within, contents, fill
from aesg.testing.scenes import newest
from aesg.testing.target import DIM, Target

PERSISTS: Final = {"durability": "process_crash"}
BOTH: Final[tuple[Mode, ...]] = ("r", "a")


def uses(store: GraphStore) -> dict[str, Callable[[], object]]:
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


def writes(store: GraphStore) -> dict[str, Callable[[], object]]:
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


class StoreClauses(ClauseGroup):
    """What a `GraphStore` promises while it is open."""

    @clause("stores.new.empty")
    def test_a_new_store_is_empty(self, empty: GraphStore) -> None:
        """A new store is empty, writable and sound, and every call works on it."""
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

    @clause("stores.new.vector-dim")
    def test_a_new_store_needs_vector_dim(self, stores: Stores) -> None:
        """A new store needs vector_dim, and a refused creation leaves nothing behind."""
        folder = stores.folder()
        for wrong in (None, 0, -1, 2**30, 1.5, True):
            with pytest.raises(InvalidInputError):
                stores.open(folder, vector_dim=wrong)
        assert list(folder.iterdir()) == []
        with stores.new(folder, vector_dim=1) as store:
            store.nodes.append(NodeBatch(np.ones((3, 1))))
            assert store.vector_dim == 1

    @clause("stores.written-directly")
    def test_each_write_through_the_store_is_a_transaction_of_its_own(self, empty: GraphStore, stores: Stores) -> None:
        """Each write through the store is a transaction of its own; the outcome is that of one that holds them all."""
        fill(empty)
        other = stores.new()
        with other.transaction() as graph:
            fill(graph)
        assert_same(contents(empty), contents(other))
        assert empty.generation > other.generation
        assert empty.verify() == []

    @clause("stores.protocol")
    def test_protocols_are_kept_to_the_letter(self, store: GraphStore) -> None:
        """Store, transaction and snapshot have every name of their protocols."""

        def names(protocol: type) -> set[str]:
            return {n for base in protocol.__mro__[:2] for n in vars(base) if not n.startswith("_")}

        with store.transaction() as graph:
            assert names(Transaction) <= set(dir(graph))
        assert names(GraphStore) <= set(dir(store))
        if store.capabilities.snapshots:
            with store.snapshot() as old:
                assert names(Snapshot) <= set(dir(old))

    @clause("stores.generation")
    def test_generation_grows_with_each_commit_and_only_then(self, store: GraphStore) -> None:
        """The generation grows with each commit, and with nothing else."""
        seen = store.generation

        def grew() -> bool:
            nonlocal seen
            seen, before = store.generation, seen
            return seen > before

        acts: list[Callable[[GraphStore], object]] = [
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
        ]
        for act in acts:
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

    @clause("stores.uuid")
    def test_every_store_has_a_name_of_its_own(self, stores: Stores) -> None:
        """Every store has a uuid of its own."""
        one, other = stores.new(), stores.new()
        assert one.uuid
        assert one.uuid != other.uuid

    @clause("stores.stats")
    def test_stats_count(self, store: GraphStore) -> None:
        """The figures of `stats` are right, and JSON."""
        stats = store.stats()
        expected = {"nodes": 12, "active_nodes": 11, "edges": 9, "removed_edges": 1, "events": 13}
        assert {name: stats[name] for name in expected} == expected
        assert stats["bytes_on_disk"] >= 0
        json.dumps(stats)

    @clause("stores.refresh")
    def test_refresh_of_a_writer_changes_nothing(self, store: GraphStore) -> None:
        """A writing handle is always at the newest commit: refresh says False."""
        assert store.refresh() is False
        store.attrs["a"] = 1
        assert store.refresh() is False

    @clause("stores.closed")
    def test_a_closed_store_refuses_everything_but_closing(self, store: GraphStore) -> None:
        """A closed store refuses everything but being closed again."""
        with store as same:
            assert same is store
        acts = uses(store) | writes(store) | {"flush": store.flush, "snapshot": store.snapshot}
        for name, act in acts.items():
            with pytest.raises(ClosedError) as caught:
                act()
            assert store.url in str(caught.value), name
        store.close()


class SnapshotClauses(ClauseGroup):
    """What a `Snapshot` promises, or that there are none."""

    @clause("snapshots.stay", needs={"snapshots": True})
    def test_snapshots_stay_as_they_were(self, store: GraphStore) -> None:
        """A snapshot stays as it was when it was taken: over commits, an open transaction and a compaction."""
        before = contents(store)
        with store.snapshot() as old:
            with store.transaction() as graph:
                change_everything(graph)
                with store.snapshot() as during:
                    assert_same(contents(during), before)
            assert_same(contents(old), before)
            with store.snapshot() as newer:
                after = contents(store)
                store.compact()
                assert_same(contents(old), before)
                assert_same(contents(newer), after)
            check_within(old)
        assert contents(store)["nodes"] == 311

    @clause("snapshots.read-only", needs={"snapshots": True})
    def test_snapshots_are_read_only(self, store: GraphStore) -> None:
        """A snapshot refuses every write, and everything once it is closed."""
        with store.snapshot() as old:
            acts: list[Callable[[], object]] = [
                lambda: old.nodes.append(batch(1, 900)),
                lambda: old.nodes.write([0], age=1),
                lambda: old.nodes.transform(dict, ["age"], ["age"]),
                lambda: old.edges.append([0], [0]),
                lambda: old.edges.write([0], weight=1),
                lambda: old.edges.remove([0]),
                lambda: old.events.append(np.zeros(1, EVENT_DTYPE)),
                lambda: old.attrs.__setitem__("a", 1),
            ]
            for act in acts:
                with pytest.raises(ReadOnlyError, match="snapshot"):
                    act()
        old.close()
        with pytest.raises(ClosedError, match="snapshot"):
            old.nodes.read([0])

    @clause("snapshots.refused", unless={"snapshots": True})
    def test_snapshots_are_refused(self, store: GraphStore) -> None:
        """A store that declares no snapshots refuses to take one, and says which capability that is."""
        with pytest.raises(UnsupportedError, match="snapshots") as caught:
            store.snapshot()
        assert isinstance(caught.value, NotImplementedError)
        assert store.url in str(caught.value)


class CopyClauses(ClauseGroup):
    """Copies and pickles of a handle."""

    @clause("copies.same")
    def test_copies_are_the_same_store(self, store: GraphStore) -> None:
        """Copies of what refers to a store refer to the same one."""
        assert copy.copy(store) is store
        assert copy.deepcopy({"a": [store]})["a"][0] is store

    @clause("copies.pickle", needs={"readers": "other_processes"})
    def test_pickles_are_readers(self, store: GraphStore) -> None:
        """A pickle keeps the URL: the copy is opened for reading."""
        with pickle.loads(pickle.dumps(store)) as reader:  # noqa: S301 - our own
            assert reader.read_only
            assert reader.url == store.url
            assert_same(contents(reader), contents(store))
            assert reader.uuid == store.uuid
            assert reader.generation == store.generation
            store.attrs["more"] = 1
            assert_same(contents(newest(reader)), contents(store))

    @clause("copies.pickle-refused", unless=PERSISTS)
    def test_what_does_not_last_cannot_be_pickled(self, store: GraphStore) -> None:
        """A store that does not last refuses to be pickled: its URL would find another one."""
        with pytest.raises(UnsupportedError, match="pickle"):
            pickle.dumps(store)


class CompactClauses(ClauseGroup):
    """What `compact` promises."""

    @clause("compact.rows-anew")
    def test_compact_drops_what_is_pruned_and_gives_rows_anew(self, store: GraphStore) -> None:
        """Compaction drops pruned nodes, their edges and removed edges, keeps all else and tells the new rows."""
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

    @clause("compact.weak-edges")
    def test_compact_drops_edges_of_too_little_confidence_if_asked(self, store: GraphStore) -> None:
        """Compaction drops edges of less confidence than is said, and none for that when nothing is said."""
        store.edges.write([0], confidence=-1.0)
        before = store.edges.read([0, 1, 2, 3, 6, 7, 8, 9])
        store.compact()
        assert np.array_equal(store.edges.read(np.arange(8))["weight"], before["weight"])
        assert store.compact(min_confidence=0.25).tolist() == list(range(11))
        kept = before["confidence"] >= np.float32(0.25)
        assert 0 < np.count_nonzero(kept) < 7
        found = store.edges.read(np.arange(np.count_nonzero(kept)))
        assert np.array_equal(found["weight"], before["weight"][kept])
        assert len(store.edges) == len(found["weight"])
        for bad in (np.nan, np.inf, "half"):
            with pytest.raises(InvalidInputError):
                store.compact(min_confidence=bad)  # type: ignore[arg-type]
        check_within(store)
        assert store.verify(deep=False) == store.verify(deep=True) == []

    @clause("compact.everything")
    def test_compact_of_everything(self, store: GraphStore) -> None:
        """A store all of whose nodes are pruned is empty after compaction, and is filled again."""
        store.nodes.write(np.arange(12), is_active=0)
        assert store.compact().tolist() == [-1] * 12
        assert (len(store.nodes), len(store.edges), len(store.events)) == (0, 0, 13)
        fill(store)
        check_within(store)
        assert store.verify() == []

    @clause("compact.during-a-scan")
    def test_a_scan_over_a_compaction_is_ended_not_garbled(self, empty: GraphStore) -> None:
        """A scan over a compaction that took rows away is ended with ConflictError, not garbled."""
        with empty.transaction() as graph:
            fill(graph, 2000)
        nodes, edges = empty.nodes.scan(["id"], 100), empty.edges.scan(["weight"], 2)
        next(nodes)
        next(edges)
        empty.nodes.write(np.arange(5, 2000), is_active=0)
        empty.compact()
        for scan in (nodes, edges):
            with pytest.raises(ConflictError, match="compacted") as caught:
                list(scan)
            assert empty.url in str(caught.value)


class ReopeningClauses(ClauseGroup):
    """What a store is when it is opened again, read-only or elsewhere."""

    @clause("reopening.as-it-was", needs=PERSISTS)
    def test_what_was_closed_opens_as_it_was(self, stores: Stores) -> None:
        """What was closed opens as it was, for reading and for writing, and is sound."""
        with stores.new() as store:
            fill(store)
            before, generation, identity = contents(store), store.generation, store.uuid
        for mode in BOTH * 2:
            with stores.open(store.url, mode=mode) as again:
                assert_same(contents(again), before)
                assert (again.generation, again.uuid, again.url) == (generation, identity, store.url)
                assert again.read_only == (mode == "r")
                assert again.verify() == []
                check_within(again)

    @clause("reopening.keeps-the-last-commit", needs=PERSISTS)
    def test_the_last_commit_is_there_again(self, stores: Stores) -> None:
        """Whatever the last commit before closing was, it is there when the store is opened again."""
        store = stores.new()
        fill(store)
        acts: list[Callable[[GraphStore], object]] = [
            lambda g: g.nodes.append(batch(3, 900)),
            lambda g: g.nodes.write([0], vector=[4, 3, 2, 1], age=50),
            lambda g: g.nodes.transform(lambda c: {"age": c["age"] + 1}, ["age"], ["age"]),
            lambda g: g.edges.append([0, 13], [14, 0], [0.5, 0.25]),
            lambda g: g.edges.write([0], weight=4),
            lambda g: g.edges.remove([1]),
            lambda g: g.events.append(events(EventType.PRUNE, 1, timestamp=5)),
            lambda g: g.attrs.__setitem__("a", {"b": [1]}),
            lambda g: g.attrs.__delitem__("a"),
            lambda g: g.compact(),
        ]
        for act in acts:
            act(store)
            wanted, generation = contents(store), store.generation
            store.close()
            store = stores.open(store.url)
            assert_same(contents(store), wanted)
            assert store.generation == generation
            check_within(store)

    @clause("reopening.read-only", needs=PERSISTS)
    def test_a_reader_refuses_every_write(self, stores: Stores) -> None:
        """A handle that was opened for reading refuses every write, and reads everything."""
        with stores.new() as store:
            fill(store)
            before, generation, identity = contents(store), store.generation, store.uuid
        reader = stores.open(store.url, mode="r")
        assert reader.read_only
        assert isinstance(reader, GraphStore)
        for name, act in writes(reader).items():
            with pytest.raises(ReadOnlyError) as caught:
                act()
            assert reader.url in str(caught.value), name
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

    @clause("reopening.reading-changes-no-file", needs=PERSISTS)
    def test_reading_changes_no_file(self, stores: Stores, target: Target) -> None:
        """Opening a closed store for reading, and reading all of it, changes none of its data files."""
        folder = stores.folder()
        with stores.new(folder) as store:
            fill(store)
        before = {path.relative_to(folder): path.read_bytes() for path in target.files(folder)}
        with stores.open(folder, mode="r") as reader:
            contents(reader)
            assert reader.verify() == []
        after = {path.relative_to(folder): path.read_bytes() for path in target.files(folder)}
        changed = [str(path) for path in before if after.get(path) != before[path] and "lock" not in path.name]
        assert not changed

    @clause("reopening.what-is-not-there", needs=PERSISTS)
    def test_reading_what_is_not_there(self, stores: Stores) -> None:
        """Opening for reading what is not there is a NotFoundError, and creates nothing."""
        folder = stores.folder()
        with pytest.raises(NotFoundError):
            stores.open(folder, mode="r")
        assert list(folder.iterdir()) == []

    @clause("reopening.vector-dim", needs=PERSISTS)
    def test_an_existing_store_has_its_own_vector_dim(self, stores: Stores) -> None:
        """An existing store is opened without vector_dim; another than its own is refused."""
        with stores.new() as store:
            fill(store)
        for mode in BOTH:
            with stores.open(store.url, mode=mode) as again:
                assert again.vector_dim == DIM
            stores.open(store.url, mode=mode, vector_dim=np.int64(DIM)).close()
            with pytest.raises(SchemaMismatchError, match=str(DIM)):
                stores.open(store.url, mode=mode, vector_dim=DIM + 1)

    @clause("reopening.bare-path", needs=PERSISTS)
    def test_a_bare_path_is_recognised(self, stores: Stores, target: Target) -> None:
        """A bare path is opened by the backend that recognises what lies there."""
        folder = stores.folder()
        with stores.new(folder) as store:
            fill(store)
            before = contents(store)
        place = target.place(folder)
        if not registry.backend(target.scheme).recognises(place):
            pytest.skip(NOT_DECLARED + "the backend recognises no bare path")
        with stores.open(str(place), mode="r") as again:
            assert_same(contents(again), before)
            assert registry.resolve(again.url).scheme == target.scheme

    @clause("reopening.moved-folder", needs=PERSISTS)
    def test_a_moved_or_copied_folder_is_the_same_store(self, stores: Stores, folder: Path) -> None:
        """A closed store whose folder was moved or copied elsewhere opens there, and is the same."""
        first = stores.folder()
        with stores.new(first) as store:
            fill(store)
            before, generation, identity = contents(store), store.generation, store.uuid
        moved, copied = folder / "moved to ü ?#%20", folder / "copied"
        first.rename(moved)
        shutil.copytree(moved, copied)
        for place in (moved, copied):
            for mode in BOTH:
                with stores.open(place, mode=mode) as again:
                    assert_same(contents(again), before)
                    assert (again.generation, again.uuid) == (generation, identity)
                    assert again.verify() == []
        with stores.open(copied) as one, stores.open(moved) as other:  # two stores now, each with its own lock
            one.attrs["which"] = "copy"
            assert "which" not in other.attrs
