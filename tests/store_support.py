"""What the tests of stores share: a graph with a bit of everything, and all that a graph shows, for comparing."""

import json

import numpy as np

from aesg.records import EDGE_FIELDS, NODE_FIELDS, EventType, NodeBatch, event_dicts, events

DIM = 4


def batch(n, first_id=100, seed=0, dim=DIM, **columns):
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


def fill(graph, nodes=12):
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


def joined(chunks, names):
    chunks = list(chunks)
    return {name: np.concatenate([chunk[name] for chunk in chunks]) if chunks else None for name in names}


def contents(graph, chunk=None):
    """Everything that a graph shows, as name → plain value or the bytes of an array."""
    n = len(graph.nodes)
    nodes = joined(graph.nodes.scan(chunk_rows=chunk), NODE_FIELDS)
    edges = joined(graph.edges.scan(chunk_edges=chunk), ["ref", *EDGE_FIELDS])
    adjacency = graph.edges.out_edges(np.arange(n))
    shown = {"nodes": n, "edges": len(graph.edges), "events": len(graph.events), "dim": graph.vector_dim}
    for name, kind in NODE_FIELDS.items():
        assert nodes[name] is None or nodes[name].dtype == kind
        shown[f"node {name}"] = b"" if nodes[name] is None else nodes[name].tobytes()
    for name in ("ref", *EDGE_FIELDS):
        shown[f"edge {name}"] = b"" if edges[name] is None else edges[name].tobytes()
    for name in ("indptr", "refs", "target_rows", "weight", "confidence", "use_count"):
        shown[f"lists {name}"] = getattr(adjacency, name).tobytes()
    shown["rows of ids"] = [] if nodes["id"] is None else graph.nodes.rows_of(nodes["id"]).tolist()
    shown["rows of nobody"] = graph.nodes.rows_of(np.array([1, 2**63 - 5], np.uint64)).tolist()
    shown["log"] = event_dicts(graph.events.read())
    shown["attrs"] = json.dumps(dict(graph.attrs))
    return shown


def assert_same(got, wanted):
    """Two results of `contents` are equal; says which parts are not."""
    different = [name for name in wanted if got[name] != wanted[name]]
    assert not different, f"different: {', '.join(different)}"


def check_within(graph):
    """The lists, the scan of all edges and the lengths of one graph tell the same story."""
    edges = joined(graph.edges.scan(), ["ref", *EDGE_FIELDS])
    adjacency = graph.edges.out_edges(np.arange(len(graph.nodes)))
    if edges["ref"] is None:
        assert len(graph.edges) == len(adjacency.refs) == 0
        return
    order = np.lexsort((-edges["ref"], edges["source_row"]))  # of each source the newest first
    assert len(graph.edges) == len(order)
    assert np.array_equal(adjacency.refs, edges["ref"][order])
    assert np.array_equal(adjacency.target_rows, edges["target_row"][order])
    for name in ("weight", "confidence", "use_count"):
        assert np.array_equal(getattr(adjacency, name), edges[name][order])
    assert np.array_equal(adjacency.degrees, np.bincount(edges["source_row"], minlength=len(graph.nodes)))
