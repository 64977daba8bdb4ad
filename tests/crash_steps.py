"""What the crash tests' writers do, step by step: step k changes a graph in a way that only k and the graph decide.

So the state after k steps is the same on every backend and in every run, and a store found after a kill can be compared
with what the in-memory store holds after as many steps.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from aesg.records import EVENT_DTYPE, EventType, NodeBatch, events

DIM = 6
NODES_AT_MOST = 3000


def step(graph, k):
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
    live = [chunk["ref"] for chunk in graph.edges.scan(["weight"])]
    refs = np.concatenate(live) if live else np.empty(0, np.int64)
    if len(refs):
        graph.edges.write(rng.choice(refs, min(20, len(refs))), weight=rng.random(), use_count=k)
        graph.edges.remove(np.unique(rng.choice(refs, min(int(rng.integers(0, 8)), len(refs)))))
    graph.events.append(events(EventType.CONSOLIDATE, np.arange(int(rng.integers(0, 4))), k, 0.5, timestamp=k))
    graph.attrs["k"] = k


def compacts_after(k):
    """Whether the store is compacted, in a commit of its own, after step k."""
    return k % 7 == 3


def decayed(columns):
    return {"relevance": columns["relevance"] * np.float32(0.9), "age": columns["age"] + columns["is_active"]}


def doubted(columns):
    return {"confidence": columns["confidence"] * np.float32(0.99)}


def digest(graph):
    """A hash of all that a graph holds, refs and the order of everything included."""
    out = hashlib.sha256()
    for columns in graph.nodes.scan(chunk_rows=512):
        for name in sorted(columns):
            out.update(np.ascontiguousarray(columns[name]).tobytes())
    for columns in graph.edges.scan(chunk_edges=512):
        for name in sorted(columns):
            out.update(np.ascontiguousarray(columns[name]).tobytes())
    log = graph.events.read()
    assert log.dtype == EVENT_DTYPE
    for name in log.dtype.names:  # not the padding, which NumPy leaves as it comes
        out.update(np.ascontiguousarray(log[name]).tobytes())
    out.update(json.dumps(dict(graph.attrs), sort_keys=True).encode())
    return out.hexdigest()


def check_lists(graph):
    """The edge lists hold what the scan of all edges holds, newest first."""
    chunks = list(graph.edges.scan(["source_row", "target_row", "weight"]))
    adjacency = graph.edges.out_edges(np.arange(len(graph.nodes)))
    if not chunks:
        assert len(adjacency.refs) == 0
        return
    source = np.concatenate([c["source_row"] for c in chunks])
    ref = np.concatenate([c["ref"] for c in chunks])
    order = np.lexsort((-ref, source))
    assert np.array_equal(adjacency.refs, ref[order])
    assert np.array_equal(adjacency.target_rows, np.concatenate([c["target_row"] for c in chunks])[order])
    assert np.array_equal(adjacency.weight, np.concatenate([c["weight"] for c in chunks])[order])
    assert np.array_equal(adjacency.degrees, np.bincount(source, minlength=len(graph.nodes)))
