"""Random sequences of operations on a memmap store and on the in-memory reference: always the same graph.

Most runs make the constants of the backend small, so that what a large store does now and then (growth, whole columns,
checkpoints, several chunks and blocks) happens all the time in a tiny one. `AESG_FUZZ_EXAMPLES=1000` is the long form.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from store_support import assert_same, check_within, contents

import aesg
from aesg.backends import parts
from aesg.backends.memmap import compact, directory, ids, redo, table, tables, verify, writer
from aesg.errors import TransactionError
from aesg.protocols import Durability
from aesg.records import EventType, NodeBatch, events

DIM = 2
NODES_AT_MOST = 600
EDGES_AT_MOST = 900
EXAMPLES = int(os.environ.get("AESG_FUZZ_EXAMPLES", "0"))

seeds = st.integers(0, 2**32)
few_or_many = st.sampled_from([0, 1, 2, 3, 17, 60, 200])


class StoreMachine(RuleBasedStateMachine):
    """The same operations on both; `target` and `model` are what is written through: a store or a transaction."""

    options = ""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.path = self.root / "store-0"
        self.model_store = aesg.open("memory:", vector_dim=DIM)
        self.store = aesg.open(self.url(), vector_dim=DIM)
        self.model = self.target = self.reader = None
        self.moves = self.ids = 0
        self.end_transaction()

    def url(self, path=None):
        return f"memmap://{path or self.path}{self.options}"

    def teardown(self):
        if self.reader is not None:
            self.reader.close()
        self.store.close()
        shutil.rmtree(self.root)

    @property
    def in_transaction(self):
        return self.target is not self.store

    def end_transaction(self):
        self.target, self.model = self.store, self.model_store

    def both(self, act):
        """Do the same to both; they answer the same."""
        got, wanted = act(self.target), act(self.model)
        assert np.array_equal(got, wanted), f"{got} where {wanted} was due"
        return wanted

    def some(self, seed, count, among):
        return np.random.default_rng(seed).integers(0, among, count if among else 0)

    def live_refs(self):
        chunks = [chunk["ref"] for chunk in self.model.edges.scan(["weight"])]
        return np.concatenate(chunks) if chunks else np.empty(0, np.int64)

    # Nodes

    @initialize(n=few_or_many, seed=seeds)
    def begin_with_some(self, n, seed):
        self.append_nodes(n, seed)

    @rule(n=few_or_many, seed=seeds)
    def append_nodes(self, n, seed):
        n = max(0, min(n, NODES_AT_MOST - len(self.model.nodes)))
        rng = np.random.default_rng(seed)
        # Ids come in runs and at random, and those of rolled-back nodes come again.
        new = np.arange(n) + self.ids if seed % 2 else rng.integers(2**40, 2**63, n)
        self.ids += n if not self.in_transaction else 0
        new = np.asarray(new, np.uint64)
        new = new[self.model.nodes.rows_of(new) < 0]
        times = np.full(len(new), seed, np.uint64)
        columns = {"created_at": times, "modified_at": times, "relevance": rng.random(len(new), np.float32)}
        vector = rng.standard_normal((len(new), DIM), np.float32)
        self.both(lambda g: g.nodes.append(NodeBatch(vector, new, columns)))

    @rule(count=few_or_many, seed=seeds, fields=st.sets(st.sampled_from(["age", "vector", "relevance", "is_active"])))
    def write_nodes(self, count, seed, fields):
        rows = self.some(seed, count, len(self.model.nodes))
        rng = np.random.default_rng(seed + 1)
        columns = {
            "age": rng.integers(0, 2**32, len(rows)),
            "vector": rng.standard_normal((len(rows), DIM)),
            "relevance": rng.standard_normal(len(rows)),
            "is_active": rng.integers(0, 4, len(rows)) > 0,
        }
        self.both(lambda g: g.nodes.write(rows, **{name: columns[name] for name in sorted(fields)}))

    @rule(every=st.sampled_from([1, 3, 50]), field=st.sampled_from(["age", "vector", "stability"]))
    def transform_nodes(self, every, field):
        def fn(columns):
            values = columns[field].copy()
            chosen = columns["id"] % np.uint64(every) == 0
            values[chosen] = values[chosen] // 2 + 1 if field == "age" else -values[chosen]
            return {field: values}

        self.both(lambda g: g.nodes.transform(fn, ["id", field], [field]))

    @rule(asked=st.lists(st.integers(0, 400), max_size=10), seed=seeds, count=few_or_many)
    def look_ids_up(self, asked, seed, count):
        some = self.model.nodes.read(self.some(seed, count, len(self.model.nodes)), ["id"])["id"]
        asked = np.concatenate([some, np.array(asked, np.uint64)])
        self.both(lambda g: g.nodes.rows_of(asked))

    # Edges

    @rule(count=few_or_many, seed=seeds, hubs=st.booleans())
    def append_edges(self, count, seed, hubs):
        n = len(self.model.nodes)
        count = max(0, min(count, EDGES_AT_MOST - len(self.live_refs())))
        source = self.some(seed, count, min(n, 3) if hubs else n)
        target = self.some(seed + 1, count, n)
        weight = np.random.default_rng(seed).random(len(source))
        self.both(lambda g: g.edges.append(source, target, weight, weight[::-1]))

    @rule(count=few_or_many, seed=seeds, fields=st.sets(st.sampled_from(["weight", "confidence", "use_count"])))
    def write_edges(self, count, seed, fields):
        live = self.live_refs()
        refs = live[self.some(seed, count, len(live))]
        columns = {
            "weight": np.random.default_rng(seed).random(len(refs)),
            "confidence": np.random.default_rng(seed + 1).random(len(refs)),
            "use_count": np.arange(len(refs)),
        }
        self.both(lambda g: g.edges.write(refs, **{name: columns[name] for name in sorted(fields)}))

    @rule(weakest=st.sampled_from([0.0, 0.5, 0.99]))
    def transform_edges(self, weakest):
        def fn(columns):
            weak = columns["weight"] < weakest
            return {"confidence": np.where(weak, columns["confidence"] * np.float32(0.5), columns["confidence"])}

        self.both(lambda g: g.edges.transform(fn, ["weight", "confidence"], ["confidence"]))

    @rule(count=few_or_many, seed=seeds)
    def remove_edges(self, count, seed):
        live = self.live_refs()
        refs = np.random.default_rng(seed).permutation(live)[:count]
        self.both(lambda g: g.edges.remove(refs))

    @rule(seed=seeds)
    def remove_all_edges_of_a_node(self, seed):
        rows = self.some(seed, 1, len(self.model.nodes))
        refs = self.model.edges.out_edges(rows).refs
        self.both(lambda g: g.edges.remove(refs))

    # Events, attributes

    @rule(count=few_or_many, seed=seeds)
    def append_events(self, count, seed):
        log = events(EventType.PRUNE, np.arange(count), seed, 0.5, timestamp=seed)
        self.both(lambda g: g.events.append(log))

    @rule(name=st.sampled_from("abc"), value=st.one_of(st.integers(), st.text(max_size=5), st.just("x" * 20_000)))
    def set_attr(self, name, value):
        self.both(lambda g: g.attrs.__setitem__(name, value))

    @rule(name=st.sampled_from("abc"))
    def delete_attr(self, name):
        self.both(lambda g: g.attrs.pop(name, None))

    # Transactions

    @precondition(lambda self: not self.in_transaction)
    @rule()
    def begin(self):
        self.target, self.model = self.store.transaction(), self.model_store.transaction()

    @precondition(lambda self: self.in_transaction)
    @rule(commits=st.booleans())
    def end(self, commits):
        self.both(lambda g: g.commit() if commits else g.rollback())
        self.end_transaction()

    @precondition(lambda self: self.in_transaction and len(self.model.nodes))
    @rule()
    def fail_in_a_transform(self):
        def fn(columns):
            return {"age": columns["age"] + 1, "relevance": 1 if 0 in columns["age"] else np.nan}

        for graph in (self.target, self.model):
            try:
                graph.nodes.transform(fn, ["age"], ["age", "relevance"])
                graph.rollback()
            except ValueError:
                with pytest.raises(TransactionError):
                    len(graph.nodes)
        self.end_transaction()

    # The store as a whole

    @precondition(lambda self: not self.in_transaction)
    @rule()
    def compact(self):
        generation = self.store.generation
        self.both(lambda g: g.compact())
        assert self.store.generation > generation

    @precondition(lambda self: not self.in_transaction)
    @rule()
    def flush(self):
        self.store.flush()

    @rule(moved=st.booleans(), without_index=st.booleans(), plain=st.booleans())
    def reopen(self, moved, without_index, plain):
        """An open transaction is rolled back by that."""
        if self.in_transaction:
            self.model.rollback()
        generation, identity = self.store.generation, self.store.uuid
        self.store.close()
        assert sorted(entry.name for entry in self.path.iterdir() if entry.name != "ids.index") == sorted(
            ["nodes.aesg", "edges.aesg", "meta.npy", "evolution.aesglog", "store.json", "writer.lock"]
        )
        if moved:
            self.drop_reader()
            self.moves += 1
            new = self.root / f"store-{self.moves}"
            self.path.rename(new) if self.moves % 2 else shutil.copytree(self.path, new)
            self.path = new
        if without_index:
            (self.path / "ids.index").unlink(missing_ok=True)
        self.store = aesg.open(self.path if plain and not self.options else self.url())
        self.end_transaction()
        assert (self.store.generation, self.store.uuid) == (generation, identity)

    @rule(mode=st.sampled_from("ar"))
    def be_killed(self, mode):
        """A copy of the directory of an open store is what a kill would leave: it opens at the last commit."""
        left = self.root / "left"
        shutil.copytree(self.path, left)
        for wanted in (mode, "r", "a"):
            with aesg.open(self.url(left), mode=wanted) as store:
                assert_same(contents(store), contents(self.model_store))
                assert store.generation == self.store.generation
                assert store.uuid == self.store.uuid
                assert store.verify() == []
        shutil.rmtree(left)

    def drop_reader(self):
        if self.reader is not None:
            self.reader.close()
            self.reader = None

    @rule()
    def open_a_reader(self):
        self.drop_reader()
        self.reader = aesg.open(self.url(), mode="r")

    # What always holds

    @invariant()
    def the_same_graph(self):
        wanted = contents(self.model_store)
        assert_same(contents(self.store, 97), wanted)
        check_within(self.store)
        assert self.store.verify() == []
        if self.in_transaction:
            assert_same(contents(self.target), contents(self.model))
            check_within(self.target)
        if self.reader is not None:
            assert_same(contents(self.reader), wanted)
            assert self.reader.generation == self.store.generation


class SyncedMachine(StoreMachine):
    options = "?durability=power_loss"


def make_small(monkeypatch):
    monkeypatch.setattr(table, "_SPARSE_ROWS", 4)
    monkeypatch.setattr(tables, "_EDGES_AT_ONCE", 7)
    monkeypatch.setattr(ids, "_WORTH_KEEPING", 1)
    monkeypatch.setattr(ids, "_MIN_BITS", 2)
    monkeypatch.setattr(ids, "_BLOCK", 13)
    monkeypatch.setattr(compact, "_CHUNK", 11)
    monkeypatch.setattr(verify, "_CHUNK", 19)
    monkeypatch.setattr(redo, "STATE_HEAD", 64)
    monkeypatch.setattr(writer, "_CHECKPOINT_BYTES", dict.fromkeys(Durability, 5000))
    monkeypatch.setattr(writer, "_JOURNALED_TAIL", 1000)
    monkeypatch.setattr(directory, "MIN_NODES", 1)
    monkeypatch.setattr(directory, "MIN_EDGES", 1)
    monkeypatch.setattr(parts, "_chunk_size", lambda given, *rest: 23 if given is None else int(given))


@pytest.mark.parametrize(
    ("machine", "small", "examples"),
    [(StoreMachine, True, 100), (SyncedMachine, True, 60), (StoreMachine, False, 60)],
    ids=["small", "small-power_loss", "as it is"],
)
def test_memmap_is_the_in_memory_reference(machine, small, examples, monkeypatch):
    if small:
        make_small(monkeypatch)
    run_state_machine_as_test(machine, settings=settings(max_examples=EXAMPLES or examples, stateful_step_count=40))
