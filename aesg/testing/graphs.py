"""What the clauses share: a graph with a bit of everything, and all that a graph shows, for comparing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.protocols import Graph
from aesg.records import EDGE_FIELDS, NODE_FIELDS, Columns, EventType, NodeBatch, event_dicts, events
from aesg.testing.target import DIM as DIM

Contents: TypeAlias = dict[str, Any]
"""Everything that a graph shows, as name → plain value or the bytes of an array."""


def vectors(n: int, value: float = 1.0, dtype: npt.DTypeLike = np.float32, dim: int = DIM) -> npt.NDArray[Any]:
    """`n` vectors of one number, [n, dim]."""
    return np.full((n, dim), value, dtype)


def batch(n: int, first_id: int = 100, seed: int = 0, dim: int = DIM, **columns: npt.NDArray[Any]) -> NodeBatch:
    """A batch of n nodes that says everything, so that no clock and no random id has a part in it."""
    rng = np.random.default_rng(seed)
    return NodeBatch(
        rng.standard_normal((n, dim), dtype=np.float32),
        np.uint64(first_id) + np.arange(n, dtype=np.uint64),
        {
            "created_at": np.full(n, 1_700_000_000, np.uint64),
            "modified_at": np.full(n, 1_700_000_001, np.uint64),
            "use_frequency": rng.integers(0, 9, n, np.uint32),
            "relevance": rng.random(n, np.float32),
            "age": rng.integers(0, 9, n, np.uint32),
            "stability": rng.random(n, np.float32),
            "region_id": rng.integers(0, 3, n, np.uint32),
            **columns,
        },
    )


def fill(graph: Graph, nodes: int = 12) -> None:
    """A bit of everything: several edges between two nodes, a loop, a removed edge, a pruned node, events and attrs."""
    graph.nodes.append(batch(nodes, dim=graph.vector_dim))
    graph.nodes.write([nodes - 1], is_active=0)
    source = np.array([0, 1, 0, 2, 0, 0, 3, 3, 5, 0])
    target = np.array([1, 2, 1, 0, 0, nodes - 1, 1, 2, 5, 4])
    graph.edges.append(source, target, np.linspace(0.1, 1, 10), np.linspace(1, 0.1, 10))
    graph.edges.write([0, 6], use_count=[3, 4])
    graph.edges.remove([4])
    graph.events.append(events(EventType.CREATE, np.arange(100, 100 + nodes), 0, 1.0, timestamp=1_700_000_000))
    graph.events.append(events(EventType.CONSOLIDATE, 1, nodes, 0.0, timestamp=1_700_000_001))
    graph.attrs["config"] = {"a": [1, 2.5, None, True], "ä": "ü"}
    graph.attrs["epoch"] = 7


def change_everything(graph: Graph) -> None:
    """Change every part of a graph that `fill` filled."""
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


def joined(chunks: Iterable[Columns], names: Sequence[str]) -> dict[str, npt.NDArray[Any] | None]:
    """The chunks of a scan in one; None for each name where there was no chunk."""
    found = list(chunks)
    return {name: np.concatenate([chunk[name] for chunk in found]) if found else None for name in names}


def contents(graph: Graph, chunk: int | None = None) -> Contents:
    """Everything that a graph shows.

    Args:
        graph: A store, a transaction or a snapshot.
        chunk: Rows and edges a chunk of the scans.
    """
    shown = scanned(graph, chunk)
    adjacency = graph.edges.out_edges(np.arange(shown["nodes"]))
    for name in ("indptr", "refs", "target_rows", "weight", "confidence", "use_count"):
        shown[f"lists {name}"] = getattr(adjacency, name).tobytes()
    return shown


def scanned(graph: Graph, chunk: int | None = None) -> Contents:
    """Everything that a graph shows but its lists of out-edges; see `contents`."""
    nodes = joined(graph.nodes.scan(chunk_rows=chunk), list(NODE_FIELDS))
    edges = joined(graph.edges.scan(chunk_edges=chunk), ["ref", *EDGE_FIELDS])
    shown: Contents = {
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "events": len(graph.events),
        "dim": graph.vector_dim,
    }
    for name, kind in NODE_FIELDS.items():
        column = nodes[name]
        assert column is None or column.dtype == kind
        shown[f"node {name}"] = b"" if column is None else column.tobytes()
    for name in ("ref", *EDGE_FIELDS):
        column = edges[name]
        shown[f"edge {name}"] = b"" if column is None else column.tobytes()
    shown["rows of ids"] = [] if nodes["id"] is None else graph.nodes.rows_of(nodes["id"]).tolist()
    shown["rows of nobody"] = graph.nodes.rows_of(np.array([1, 2**63 - 5], np.uint64)).tolist()
    shown["log"] = event_dicts(graph.events.read())
    shown["attrs"] = json.dumps(dict(graph.attrs))
    return shown


def assert_same(got: Contents, wanted: Contents) -> None:
    """Two results of `contents` are equal; says which parts are not."""
    different = [name for name in wanted if got[name] != wanted[name]]
    assert not different, f"different: {', '.join(different)}"


def check_within(graph: Graph) -> None:
    """The lists, the scan of all edges and the lengths of one graph tell the same story."""
    edges = joined(graph.edges.scan(), ["ref", *EDGE_FIELDS])
    adjacency = graph.edges.out_edges(np.arange(len(graph.nodes)))
    refs, sources = edges["ref"], edges["source_row"]
    if refs is None or sources is None:
        assert len(graph.edges) == len(adjacency.refs) == 0
        return
    order = np.lexsort((-refs, sources))  # of each source the newest first
    assert len(graph.edges) == len(order)
    assert np.array_equal(adjacency.refs, refs[order])
    for name, listed in (
        ("target_row", adjacency.target_rows),
        ("weight", adjacency.weight),
        ("confidence", adjacency.confidence),
        ("use_count", adjacency.use_count),
    ):
        column = edges[name]
        assert column is not None
        assert np.array_equal(listed, column[order])
    assert np.array_equal(adjacency.degrees, np.bincount(sources, minlength=len(graph.nodes)))
