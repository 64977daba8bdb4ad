"""What the campaigns' writers do, step by step: step k changes a graph in a way that only k and the graph decide.

So the state after k steps is the same on every backend and in every run, and a store that is found after a kill can be
compared with what the in-memory store holds after as many steps.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

import aesg
from aesg.protocols import Graph, GraphStore
from aesg.records import EDGE_FIELDS, EVENT_DTYPE, NODE_FIELDS, Columns, EventType, NodeBatch, Refs, events

DIM: Final = 6
"""Length of the vectors."""
NODES_AT_MOST: Final = 3000
"""No nodes are appended beyond."""


def step(graph: Graph, k: int) -> None:
    """Step k, inside one transaction; `attrs["k"]` becomes k."""
    rng = np.random.default_rng(k)
    n = len(graph.nodes)
    if n < NODES_AT_MOST:
        new = int(rng.choice([0, 1, 5, 60, 400], p=[0.2, 0.3, 0.2, 0.2, 0.1]))
        batch = NodeBatch(
            rng.standard_normal((new, DIM), dtype=np.float32),
            np.uint64(1_000_000 * (k + 1)) + np.arange(new, dtype=np.uint64),
            {"created_at": np.full(new, k, np.uint64), "modified_at": np.full(new, k, np.uint64)},
        )
        graph.nodes.append(batch)
        n += new
    if n:
        rows = rng.integers(0, n, int(rng.integers(1, 40)))
        graph.nodes.write(rows, relevance=rng.random(len(rows), dtype=np.float32), use_frequency=k)
        edges = int(rng.choice([0, 1, 30, 700], p=[0.2, 0.4, 0.3, 0.1]))
        weight = rng.random(edges, dtype=np.float32)
        graph.edges.append(rng.integers(0, n, edges), rng.integers(0, n, edges), weight, 0.5)
        if k % 5 == 2:
            graph.nodes.transform(decayed, ["relevance", "age", "is_active"], ["relevance", "age"])
            graph.edges.transform(doubted, ["confidence"], ["confidence"])
        if k % 7 == 3:
            graph.nodes.write(rng.integers(0, n, n // 3), is_active=0)
    refs = live_refs(graph)
    if len(refs):
        graph.edges.write(rng.choice(refs, min(20, len(refs))), weight=rng.random(), use_count=k)
        graph.edges.remove(np.unique(rng.choice(refs, min(int(rng.integers(0, 8)), len(refs)))))
    graph.events.append(events(EventType.CONSOLIDATE, np.arange(int(rng.integers(0, 4))), k, 0.5, timestamp=k))
    graph.attrs["k"] = k


def decayed(columns: Columns) -> Columns:
    """Of every node: less relevant, older."""
    return {"relevance": columns["relevance"] * np.float32(0.9), "age": columns["age"] + columns["is_active"]}


def doubted(columns: Columns) -> Columns:
    """Of every edge: less certain."""
    return {"confidence": columns["confidence"] * np.float32(0.99)}


def live_refs(graph: Graph) -> Refs:
    """Refs of all edges that were not removed."""
    return np.concatenate([np.empty(0, np.int64), *(chunk["ref"] for chunk in graph.edges.scan(["weight"]))])


def compacts_after(k: int, every: int) -> bool:
    """Whether the store is compacted, in a commit of its own, after step k."""
    return k % every == every // 2


def last_step(graph: Graph) -> int:
    """The step that a graph is at; -1 before the first."""
    k = graph.attrs.get("k", -1)
    return k if isinstance(k, int) else -2


def digest(graph: Graph) -> str:
    """A hash of all that a graph holds, refs and the order of everything included."""
    out = hashlib.sha256()

    def take(array: npt.NDArray[Any]) -> None:
        out.update(np.ascontiguousarray(array).tobytes())

    for columns in graph.nodes.scan(chunk_rows=512):
        for name in sorted(columns):
            take(columns[name])
    for columns in graph.edges.scan(chunk_edges=512):
        for name in sorted(columns):
            take(columns[name])
    log = graph.events.read()
    for name in EVENT_DTYPE.names or ():  # not the padding, which NumPy leaves as it comes
        take(log[name])
    out.update(json.dumps(dict(graph.attrs), sort_keys=True).encode())
    return out.hexdigest()


def inconsistencies(graph: Graph) -> list[str]:
    """What the parts of one graph tell differently: lengths, the scan of all edges and the edge lists, ids and rows."""
    found = []

    def check(holds: bool, said: str) -> None:
        if not holds:
            found.append(said)

    n = len(graph.nodes)
    nodes = _joined(list(graph.nodes.scan()), list(NODE_FIELDS))
    if any(len(column) != n for column in nodes.values()):
        return ["the scan of nodes has not as many rows as there are"]  # and what follows would ask for others
    rows = np.arange(n)
    gathered = graph.nodes.read(rows[::-1])
    for name in NODE_FIELDS if n else ():
        check(np.array_equal(gathered[name][::-1], nodes[name]), f"a gather of {name} differs from the scan")
    check(np.array_equal(graph.nodes.rows_of(nodes["id"]), rows), "rows_of does not lead from the ids to their rows")

    edges = _joined(list(graph.edges.scan()), ["ref", *EDGE_FIELDS])
    check(len(graph.edges) == len(edges["ref"]), "the scan of edges has not as many as there are")
    lists = graph.edges.out_edges(rows)
    order = np.lexsort((-edges["ref"], edges["source_row"]))  # of each source the newest first
    check(np.array_equal(lists.refs, edges["ref"][order]), "the edge lists do not hold the edges of the scan in order")
    for name in ("target_row", "weight", "confidence", "use_count"):
        listed = lists.target_rows if name == "target_row" else getattr(lists, name)
        check(np.array_equal(listed, edges[name][order]), f"{name} in the edge lists differs from the scan")
    degrees = np.bincount(edges["source_row"].astype(np.int64), minlength=n) if len(edges["ref"]) else np.zeros(n)
    check(np.array_equal(lists.degrees, degrees), "the lengths of the edge lists differ from the scan")
    check(np.array_equal(graph.edges.degrees(rows), degrees), "degrees differ from the scan")
    read = graph.edges.read(edges["ref"][::-1])
    for name in EDGE_FIELDS:
        check(np.array_equal(read[name][::-1], edges[name]), f"{name} read by ref differs from the scan")
    check(len(graph.events) == len(graph.events.read()), "the log has not as many events as it says")
    return found


def _joined(chunks: list[Columns], names: list[str]) -> Columns:
    empty = np.empty(0, np.int64)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) if chunks else empty for name in names}


@dataclass
class Model:
    """What a store holds after each step, by the in-memory store.

    Attributes:
        every: It is compacted once in so many steps.
    """

    every: int
    _store: GraphStore = field(default_factory=lambda: aesg.open("memory:", vector_dim=DIM))
    _k: int = -1
    _states: dict[int, list[str]] = field(default_factory=dict)

    def after(self, k: int) -> list[str]:
        """Digests that a store may have whose last step is k: before a due compaction, and after it."""
        if not self._states:
            self._states[-1] = [digest(self._store)]
        while self._k < k:
            self._k += 1
            with self._store.transaction() as transaction:
                step(transaction, self._k)
            self._states[self._k] = [digest(self._store)]
            if compacts_after(self._k, self.every):
                self._store.compact()
                self._states[self._k].append(digest(self._store))
        return self._states[k]


@cache
def model(every: int) -> Model:
    """The model for stores that are compacted once in so many steps; shared by all campaigns of a process."""
    return Model(every)
