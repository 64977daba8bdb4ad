"""Random sequences of operations on a store and on the in-memory reference: always the same graph.

The reference is the simplest code that can be correct. Rules reopen the store, move it, copy it as a kill would leave
it, compact it, take snapshots of it and read it beside its writer.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aesg.backends import registry
from aesg.backends.registry import Mode
from aesg.errors import TransactionError
from aesg.protocols import Graph, GraphStore, Readers, ReaderView, Snapshot
from aesg.records import Columns, EventType, NodeBatch, events
from aesg.testing.base import ClauseGroup
from aesg.testing.clauses import clause
from aesg.testing.fuzz import tries
from aesg.testing.graphs import Contents, assert_same, check_within, contents, scanned
from aesg.testing.target import Target

seeds = st.integers(0, 2**32)
share = st.sampled_from([0, 0.001, 0.002, 0.005, 0.03, 0.1, 0.35])
"""A batch's size as part of the largest graph: none, few or many."""


class GraphMachine(RuleBasedStateMachine):
    """The same operations on both. `graph` and `model` are what is written through: a store, or a transaction.

    Attributes:
        target: What is tested.
        folder: Where stores are made.
        dim: Length of the vectors.
        nodes_at_most: How large a graph gets.
        edges_at_most: And with how many edges.
        steps: Operations of a sequence.
    """

    target: ClassVar[Target]
    folder: ClassVar[Path]
    dim: ClassVar[int] = 2
    nodes_at_most: ClassVar[int] = 600
    edges_at_most: ClassVar[int] = 900
    steps: ClassVar[int] = 30

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=self.folder))
        self.place = self.root / "store-0"
        self.model_store: GraphStore = registry.open("memory:", vector_dim=self.dim)
        self.store = self.target.create(self.place, vector_dim=self.dim)
        self.reader: GraphStore | None = None
        self.reader_shows: Contents = {}
        self.snapshots: list[tuple[Snapshot, Contents]] = []
        self.moves = self.ids = 0
        self.verified = (-1, -1)
        self.end_transaction()

    def teardown(self) -> None:
        """Close everything."""
        self.drop_handles()
        self.store.close()
        shutil.rmtree(self.root)

    @property
    def in_transaction(self) -> bool:
        """Whether one is open."""
        return self.graph is not self.store

    def end_transaction(self) -> None:
        """From now on the stores themselves are written to."""
        self.graph: Any = self.store
        self.model: Any = self.model_store

    def both(self, act: Callable[[Any], Any]) -> None:
        """Do the same to both; they answer the same."""
        got, wanted = act(self.graph), act(self.model)
        assert np.array_equal(got, wanted), f"{got} where {wanted} was due"

    def shown(self, graph: Graph) -> Contents:
        """What is compared of a graph."""
        return contents(graph)

    def some(self, seed: int, count: int, among: int) -> npt.NDArray[np.int64]:
        """So many numbers below `among`; none when that is 0."""
        return np.random.default_rng(seed).integers(0, among, count if among else 0)

    def nodes_of(self, part: float) -> int:
        """A batch's size."""
        return round(part * self.nodes_at_most)

    def edges_of(self, part: float) -> int:
        """A batch's size."""
        return round(part * self.edges_at_most)

    def live_refs(self) -> npt.NDArray[np.int64]:
        """The refs of all edges that were not removed."""
        chunks = [chunk["ref"] for chunk in self.model.edges.scan(["weight"])]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int64)

    # Nodes

    @initialize(part=st.sampled_from([0.1, 0.35, 0.005, 0]), edges=st.sampled_from([0.35, 0.1, 0.01, 0]), seed=seeds)
    def begin_with_some(self, part: float, edges: float, seed: int) -> None:
        """Sequences begin with graphs of all sizes."""
        self.append_nodes(part, seed)
        self.append_edges(edges, seed, hubs=False)

    @rule(part=share, seed=seeds)
    def append_nodes(self, part: float, seed: int) -> None:
        """Ids come in runs and at random, and those of rolled-back nodes come again."""
        n = max(0, min(self.nodes_of(part), self.nodes_at_most - len(self.model.nodes)))
        rng = np.random.default_rng(seed)
        new = np.arange(n) + self.ids if seed % 2 else rng.integers(2**40, 2**63, n)
        self.ids += n if not self.in_transaction else 0
        new = np.asarray(new, np.uint64)
        new = new[self.model.nodes.rows_of(new) < 0]
        times = np.full(len(new), seed, np.uint64)
        columns: Columns = {"created_at": times, "modified_at": times, "relevance": rng.random(len(new), np.float32)}
        vector = rng.standard_normal((len(new), self.dim), np.float32)
        self.both(lambda g: g.nodes.append(NodeBatch(vector, new, columns)))

    @rule(part=share, seed=seeds, fields=st.sets(st.sampled_from(["age", "vector", "relevance", "is_active"])))
    def write_nodes(self, part: float, seed: int, fields: set[str]) -> None:
        """Rows repeat."""
        rows = self.some(seed, self.nodes_of(part), len(self.model.nodes))
        rng = np.random.default_rng(seed + 1)
        columns: Columns = {
            "age": rng.integers(0, 2**32, len(rows)),
            "vector": rng.standard_normal((len(rows), self.dim)),
            "relevance": rng.standard_normal(len(rows)),
            "is_active": rng.integers(0, 4, len(rows)) > 0,
        }
        self.both(lambda g: g.nodes.write(rows, **{name: columns[name] for name in sorted(fields)}))

    @rule(every=st.sampled_from([1, 3, 50]), field=st.sampled_from(["age", "vector", "stability"]))
    def transform_nodes(self, every: int, field: str) -> None:
        """All rows, a third, or few."""

        def fn(columns: Columns) -> Columns:
            values = columns[field].copy()
            chosen = columns["id"] % np.uint64(every) == 0
            values[chosen] = values[chosen] // 2 + 1 if field == "age" else -values[chosen]
            return {field: values}

        self.both(lambda g: g.nodes.transform(fn, ["id", field], [field]))

    @rule(asked=st.lists(st.integers(0, 400), max_size=10), seed=seeds, part=share)
    def look_ids_up(self, asked: list[int], seed: int, part: float) -> None:
        """Ids that are there and ids that are not."""
        some = self.model.nodes.read(self.some(seed, self.nodes_of(part), len(self.model.nodes)), ["id"])["id"]
        ids = np.concatenate([some, np.array(asked, np.uint64)])
        self.both(lambda g: g.nodes.rows_of(ids))

    # Edges

    @rule(part=share, seed=seeds, hubs=st.booleans())
    def append_edges(self, part: float, seed: int, hubs: bool) -> None:
        """From anywhere, or from a few hubs."""
        n = len(self.model.nodes)
        count = max(0, min(self.edges_of(part), self.edges_at_most - len(self.live_refs())))
        source = self.some(seed, count, min(n, 3) if hubs else n)
        target = self.some(seed + 1, count, n)
        weight = np.random.default_rng(seed).random(len(source))
        self.both(lambda g: g.edges.append(source, target, weight, weight[::-1]))

    @rule(part=share, seed=seeds, fields=st.sets(st.sampled_from(["weight", "confidence", "use_count"])))
    def write_edges(self, part: float, seed: int, fields: set[str]) -> None:
        """Refs repeat."""
        live = self.live_refs()
        refs = live[self.some(seed, self.edges_of(part), len(live))]
        columns: Columns = {
            "weight": np.random.default_rng(seed).random(len(refs)),
            "confidence": np.random.default_rng(seed + 1).random(len(refs)),
            "use_count": np.arange(len(refs)),
        }
        self.both(lambda g: g.edges.write(refs, **{name: columns[name] for name in sorted(fields)}))

    @rule(weakest=st.sampled_from([0.0, 0.5, 0.99]))
    def transform_edges(self, weakest: float) -> None:
        """None of them, half, or nearly all."""

        def fn(columns: Columns) -> Columns:
            weak = columns["weight"] < weakest
            return {"confidence": np.where(weak, columns["confidence"] * np.float32(0.5), columns["confidence"])}

        self.both(lambda g: g.edges.transform(fn, ["weight", "confidence"], ["confidence"]))

    @rule(part=share, seed=seeds)
    def remove_edges(self, part: float, seed: int) -> None:
        """Anywhere."""
        live = self.live_refs()
        refs = np.random.default_rng(seed).permutation(live)[: self.edges_of(part)]
        self.both(lambda g: g.edges.remove(refs))

    @rule(seed=seeds)
    def remove_all_edges_of_a_node(self, seed: int) -> None:
        """So that lists become empty."""
        rows = self.some(seed, 1, len(self.model.nodes))
        refs = self.model.edges.out_edges(rows).refs
        self.both(lambda g: g.edges.remove(refs))

    # Events, attributes

    @rule(part=share, seed=seeds)
    def append_events(self, part: float, seed: int) -> None:
        """Few or many."""
        log = events(EventType.PRUNE, np.arange(self.nodes_of(part)), seed, 0.5, timestamp=seed)
        self.both(lambda g: g.events.append(log))

    @rule(
        name=st.sampled_from("abc"),
        value=st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5), st.just("x" * 20_000)),
    )
    def set_attr(self, name: str, value: int | str) -> None:
        """Small and large."""
        self.both(lambda g: g.attrs.__setitem__(name, value))

    @rule(name=st.sampled_from("abc"))
    def delete_attr(self, name: str) -> None:
        """If it is there."""
        self.both(lambda g: g.attrs.pop(name, None))

    # Transactions

    @precondition(lambda self: not self.in_transaction)
    @rule()
    def begin(self) -> None:
        """From now on all goes into a transaction."""
        self.graph, self.model = self.store.transaction(), self.model_store.transaction()

    @precondition(lambda self: self.in_transaction)
    @rule(commits=st.booleans())
    def end(self, commits: bool) -> None:
        """Commit or roll back."""
        self.both(lambda g: g.commit() if commits else g.rollback())
        self.end_transaction()

    @precondition(lambda self: self.in_transaction and len(self.model.nodes) > 0)
    @rule()
    def fail_in_a_transform(self) -> None:
        """The transaction is rolled back by that, unless the chunk with the bad row was the only one."""

        def fn(columns: Columns) -> Columns:
            good = np.float32(1 if 0 in columns["age"] else np.nan)
            return {"age": columns["age"] + 1, "relevance": np.full(len(columns["age"]), good)}

        for graph in (self.graph, self.model):
            try:
                graph.nodes.transform(fn, ["age"], ["age", "relevance"])
                graph.rollback()
            except ValueError:
                with pytest.raises(TransactionError):
                    len(graph.nodes)
        self.end_transaction()

    # The store as a whole

    @precondition(lambda self: not self.in_transaction)
    @rule(part=share, seed=seeds)
    def compact(self, part: float, seed: int) -> None:
        """Rows and refs are given anew, when there is anything to drop."""
        rows = self.some(seed, self.nodes_of(part), len(self.model.nodes))
        self.both(lambda g: g.nodes.write(rows, is_active=0))
        generation = self.store.generation
        self.both(lambda g: g.compact())
        assert self.store.generation > generation

    @precondition(lambda self: not self.in_transaction)
    @rule()
    def flush(self) -> None:
        """Changes nothing that shows."""
        self.store.flush()

    @precondition(lambda self: self.target.persists)
    @rule(moved=st.booleans(), mode=st.sampled_from("ar"))
    def reopen(self, moved: bool, mode: Mode) -> None:
        """Close and open again, perhaps for reading first, perhaps elsewhere. Rolls an open transaction back."""
        if self.in_transaction:
            self.model.rollback()
        generation, identity = self.store.generation, self.store.uuid
        if moved or len(self.snapshots) > 1:
            self.drop_handles()
        self.drop_snapshots()
        self.store.close()
        if moved:
            self.moves += 1
            new = self.root / f"store-{self.moves}"
            if self.moves % 2:
                self.place.rename(new)
            else:
                shutil.copytree(self.place, new)
            self.place = new
        if mode == "r":
            with self.target.open(self.place, "r") as reader:
                assert_same(self.shown(reader), self.shown(self.model_store))
        self.store = self.target.open(self.place)
        self.end_transaction()
        assert (self.store.generation, self.store.uuid) == (generation, identity)

    @precondition(lambda self: self.target.persists)
    @rule(mode=st.sampled_from("ar"))
    def be_killed(self, mode: Mode) -> None:
        """A copy of the files of an open store is what a kill would leave: it opens at the last commit."""
        left = self.root / "left"
        shutil.copytree(self.place, left)
        due = self.shown(self.model_store)
        modes: tuple[Mode, ...] = ("a", "r") if mode == "a" else ("r", "a")
        for wanted in modes:
            with self.target.open(left, wanted) as store:
                assert_same(self.shown(store), due)
                assert store.generation == self.store.generation
                assert store.uuid == self.store.uuid
                assert store.verify() == []
        shutil.rmtree(left)

    def drop_snapshots(self) -> None:
        """Close all snapshots."""
        while self.snapshots:
            self.let_a_snapshot_go(0)

    def drop_handles(self) -> None:
        """Close everything but the store."""
        self.drop_snapshots()
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    @precondition(lambda self: self.target.capabilities.snapshots and len(self.snapshots) < 3)
    @rule()
    def take_a_snapshot(self) -> None:
        """It stays as it is, whatever becomes of the store."""
        self.snapshots.append((self.store.snapshot(), self.shown(self.model_store)))

    @precondition(lambda self: self.snapshots)
    @rule(which=st.integers(0, 2))
    def let_a_snapshot_go(self, which: int) -> None:
        """In any order."""
        snapshot, shows = self.snapshots.pop(which % len(self.snapshots))
        self.check_snapshot(snapshot, shows)
        snapshot.close()

    def check_snapshot(self, snapshot: Snapshot, shows: Contents) -> None:
        """It still shows what the store did when it was taken."""
        assert_same(self.shown(snapshot), shows)

    @precondition(lambda self: self.target.capabilities.readers >= Readers.OTHER_PROCESSES)
    @rule()
    def open_a_reader(self) -> None:
        """Beside the writer."""
        if self.reader is not None:
            self.reader.close()
        self.reader = self.target.open(self.place, "r")
        self.reader_shows = self.shown(self.model_store)

    @precondition(lambda self: self.reader is not None)
    @rule()
    def refresh_the_reader(self) -> None:
        """It is at the newest commit then; says whether that moved it."""
        assert self.reader is not None
        before = self.reader.generation
        assert self.reader.refresh() == (self.reader.generation != before)
        assert self.reader.generation == self.store.generation
        self.reader_shows = self.shown(self.model_store)

    # What always holds

    @invariant()
    def the_same_graph(self) -> None:
        """Everything that can be seen of it, by every handle."""
        wanted = self.shown(self.model_store)
        assert_same(self.shown(self.store), wanted)
        if self.verified != (self.store.generation, self.moves):
            check_within(self.store)
            assert self.store.verify() == []  # of what lies there, which commits alone change
            self.verified = self.store.generation, self.moves
        if self.in_transaction:
            assert_same(self.shown(self.graph), self.shown(self.model))
            check_within(self.graph)
        if self.reader is not None:
            if self.target.capabilities.reader_view is ReaderView.LATEST:
                self.reader_shows = wanted
                assert self.reader.generation == self.store.generation
            assert_same(self.shown(self.reader), self.reader_shows)
        if self.snapshots:  # the oldest; the others are looked at when they go
            self.check_snapshot(*self.snapshots[0])


class LargeGraphMachine(GraphMachine):
    """Fewer and larger graphs: columns of many blocks, batches that cross them, logs that are merged.

    The reference takes its time over the lists of so many rows; `check_within` compares them with the scans instead.
    """

    dim = 32
    nodes_at_most = 12_000
    edges_at_most = 60_000
    steps = 12

    def shown(self, graph: Graph) -> Contents:
        """Without the lists."""
        return scanned(graph)


def run_machine(machine: type[GraphMachine], target: Target, folder: Path, count: int) -> None:
    """Run so many sequences of a machine on a target."""
    attributes = {"target": target, "folder": folder, "__module__": machine.__module__}
    run_state_machine_as_test(
        type(machine.__name__, (machine,), attributes), settings=tries(count, stateful_step_count=machine.steps)
    )


class MachineClauses(ClauseGroup):
    """Random sequences."""

    @clause("machine.small-graphs")
    def test_small_graphs(self, target: Target, folder: Path) -> None:
        """Random sequences of operations on small graphs give what they give on the in-memory reference."""
        run_machine(GraphMachine, target, folder, 20)

    @clause("machine.large-graphs")
    def test_large_graphs(self, target: Target, folder: Path) -> None:
        """The same on graphs that take many blocks."""
        run_machine(LargeGraphMachine, target, folder, 10)
