"""What the tests of verify, repair and compact share: backends, a graph with a bit of everything, jobs for children."""

import numpy as np

import aesg
from aesg.records import EDGE_FIELDS, NODE_FIELDS, EventType, NodeBatch, events

BACKENDS = {
    "memmap": "memmap://{}",
    "lmdb": "lmdb://{}",
    "zarr": "zarr://{}",
    "zarr-zstd": "zarr://{}?codec=zstd",
    "zarr-power_loss": "zarr://{}?durability=power_loss",
    "icechunk": "icechunk://{}",
}
MAIN = ("memmap", "lmdb", "zarr", "icechunk")
DIM = 24


def fill(url, nodes=3000, edges=20_000, seed=0, pruned=0.2, dim=DIM):
    """A store of several blocks, sorted and unsorted edges, a log, pruned nodes, removed edges, events and attrs."""
    rng = np.random.default_rng(seed)
    with aesg.open(url, vector_dim=dim) as store:
        with store.transaction() as graph:
            add_nodes(graph, nodes - 10, rng)
            n = len(graph.nodes)
            weight, confidence = rng.random(edges, np.float32), rng.random(edges, np.float32)
            graph.edges.append(rng.integers(0, n, edges), rng.integers(0, n, edges), weight, confidence)
            graph.edges.write(np.arange(0, edges, 7), use_count=np.arange(0, edges, 7))
            graph.edges.remove(np.arange(5, edges, 11))
            graph.events.append(events(EventType.CREATE, np.arange(1, n + 1), 0, 1.0, timestamp=1_700_000_000))
            graph.attrs["config"] = {"prune_confidence_threshold": 0.1}
        store.flush()
        for k in range(5):  # small commits: they wait in a log or a journal
            with store.transaction() as graph:
                rows = add_nodes(graph, 2, rng)
                graph.edges.append(rows, rng.integers(0, len(graph.nodes), 2), 0.5, 0.75)
                graph.nodes.write([k], relevance=0.25, stability=0.125)
                graph.attrs["k"] = k
        if pruned:
            rows = rng.choice(nodes, int(nodes * pruned), replace=False)
            store.nodes.write(rows, is_active=0)
    return url


def add_nodes(graph, n, rng):
    """Append nodes that say everything; ids are their rows plus 1."""
    first = len(graph.nodes)
    return graph.nodes.append(
        NodeBatch(
            rng.standard_normal((n, graph.vector_dim), np.float32),
            np.arange(first + 1, first + n + 1, dtype=np.uint64),
            {
                "created_at": np.full(n, 1_700_000_000, np.uint64),
                "modified_at": np.arange(n, dtype=np.uint64) + 1_700_000_000,
                "use_frequency": rng.integers(0, 90, n, np.uint32),
                "relevance": rng.random(n, np.float32),
                "age": rng.integers(0, 9, n, np.uint32),
                "region_id": rng.integers(0, 3, n, np.uint32),
            },
        )
    )


def contents(graph):
    """All that a graph shows: columns of nodes, columns of edges with ids for rows, events, attrs."""
    nodes = graph.nodes.read(np.arange(len(graph.nodes)))
    chunks = list(graph.edges.scan())
    edges = {
        name: np.concatenate([c[name] for c in chunks] or [np.empty(0, kind)]) for name, kind in EDGE_FIELDS.items()
    }
    for end in ("source", "target"):
        edges[f"{end}_id"] = nodes["id"][edges.pop(f"{end}_row")]
    lists = graph.edges.out_edges(np.arange(len(graph.nodes)))
    edges["list"] = np.concatenate([nodes["id"][lists.target_rows].astype(np.float64), lists.weight, lists.degrees])
    return {"nodes": nodes, "edges": edges, "events": graph.events.read(), "attrs": dict(graph.attrs)}


def snapshot_of(url):
    """What a store holds, opened for reading."""
    with aesg.open(url, mode="r") as store:
        return contents(store)


def same(one, other):
    """Whether two contents are equal, bit by bit."""
    if one["attrs"] != other["attrs"] or one["events"].tobytes() != other["events"].tobytes():
        return False
    kinds = [(name, one[part][name], other[part][name]) for part in ("nodes", "edges") for name in one[part]]
    return all(a.tobytes() == b.tobytes() for _, a, b in kinds)


def expected_compaction(before, least):
    """What a compaction makes of contents, but for the lists, which `verify` looks at."""
    stays = before["nodes"]["is_active"] == 1
    ids = before["nodes"]["id"][stays]
    edges = before["edges"]
    kept = (
        np.isin(edges["source_id"], ids) & np.isin(edges["target_id"], ids) & ~(edges["confidence"] < np.float32(least))
    )
    nodes = {name: before["nodes"][name][stays] for name in NODE_FIELDS}
    return nodes, {name: values[kept] for name, values in edges.items() if name != "list"}


def compact_job(url):
    """For a child: compact, and say when it begins and when it is done."""
    from aesg.migration.compacting import compact
    from aesg.testing.forks import say

    say("begin")
    compact(url)
    say("done")
