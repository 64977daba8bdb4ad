"""The tasks of `stores.py`, done by one backend in a process of its own. Run by `worker.Worker`.

Where a task has a limit to hold against, the two take turns here. Times are in seconds. What is made for a turn is
made before its clock starts, and what comes out of it is let go after its clock stopped. What both sides read
is compared first: a store that gives something else is not measured.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any, Final, TypeAlias

import data
import numpy as np
import stores_limits as limits
from stores_raw import RawLMDB, beside, keys, recorded
from stores_turns import alternate, clock
from worker import serve

import aesg
from aesg.backends import registry
from aesg.backends.url import StoreURL
from aesg.protocols import GraphStore
from aesg.records import Columns, NodeBatch

CHUNK: Final = 100_000
"""Nodes of one `append` in bulk."""
DECAY: Final = np.float32(0.95)

Answer: TypeAlias = dict[str, Any]
"""Of a path: ours, limit: seconds of each turn; durability: what the store promised; notes: more seconds, by name."""

open_stores: list[GraphStore] = []
"""Those that stay open from one task to the next."""


def about(scheme: str) -> Answer:
    """Which backend this is; fails where it is not installed."""
    return {"version": aesg.__version__, "summary": registry.backend(scheme).summary}


# --- making stores ---------------------------------------------------------------------------------------------------


def build(scheme: str, place: str, nodes: int, edges: int, dim: int) -> Answer:
    """The store that the other tasks are given: closed, with everything where it belongs."""
    vectors = data.vectors(nodes, dim)
    sources, targets, weight = data.edges(nodes, edges // nodes)
    seconds = {}
    with opened(scheme, place, "lowest", dim=dim) as store:
        start = time.perf_counter()
        for first in range(0, nodes, CHUNK):
            store.nodes.append(NodeBatch(vectors[first : first + CHUNK]))
        seconds["nodes"] = time.perf_counter() - start
        for first in range(0, len(sources), 10 * CHUNK):
            part = slice(first, first + 10 * CHUNK)
            store.edges.append(sources[part], targets[part], weight[part])
        seconds["edges"] = time.perf_counter() - start - seconds["nodes"]
        store.flush()
    seconds["flush_and_close"] = time.perf_counter() - start - seconds["nodes"] - seconds["edges"]
    files = [entry.stat() for entry in Path(place).rglob("*") if entry.is_file()]
    return {
        "seconds": seconds,
        "files": len(files),
        "apparent_mb": sum(stat.st_size for stat in files) / 1e6,
        "allocated_mb": sum(stat.st_blocks * 512 for stat in files) / 1e6,
        "content_mb": (nodes * limits.node_bytes(dim) + len(sources) * limits.edge_bytes()) / 1e6,
    }


def address(
    scheme: str, place: str, durability: str = "", *, cache: int = 0, more: dict[str, str] | None = None
) -> str:
    """The URL of a store.

    Args:
        scheme: Its backend.
        place: Its folder.
        durability: "lowest" or "highest" of what the backend offers on disk; "": what it gives unasked.
        cache: Bytes, where the backend has a cache; 0: what it gives unasked.
        more: Further options.
    """
    backend = registry.backend(scheme)
    options = dict(more or {})
    if cache and "cache_bytes" in backend.options:
        options["cache_bytes"] = str(cache)
    promises = backend.promises
    if durability and promises is not None:
        pick = {"lowest": min, "highest": max}[durability]
        choices = [("durability", "process_crash"), ("durability", "power_loss"), ("sync", "false"), ("sync", "true")]
        offered = [(name, value) for name, value in choices if name in backend.options]
        if offered:
            name, value = pick(offered, key=lambda o: promises({o[0]: backend.options[o[0]].parse(o[1])}).durability)
            options[name] = value
    return str(StoreURL(scheme, "", place, options))


def opened(scheme: str, place: str, durability: str = "", *, cache: int = 0, dim: int | None = None) -> GraphStore:
    """Open a store: see `address`; `dim` to create it."""
    return aesg.open(address(scheme, place, durability, cache=cache), vector_dim=dim)


# --- what tasks have in common ---------------------------------------------------------------------------------------


def answer(store: GraphStore, times: dict[str, list[float]], **notes: float) -> Answer:
    """What a task gives back."""
    return {**times, "durability": promised(store), "notes": notes}


def promised(store: GraphStore) -> str:
    """The durability of a store, in words."""
    return store.capabilities.durability.name.lower()


def agree(ours: Any, expected: Any, what: str) -> None:
    """Two arrays are the same."""
    if not np.array_equal(ours, expected):
        raise RuntimeError(f"{what}: the store gives something else than was put in")


# --- the paths -------------------------------------------------------------------------------------------------------


def append(scheme: str, folder: str, nodes: int, dim: int, turns: int, budget: float) -> Answer:
    """Nodes into a new store, chunk by chunk, against their bytes into a new file."""
    chunk = min(nodes, CHUNK)
    batch = NodeBatch(data.vectors(chunk, dim))
    buffer = limits.noise(chunk * limits.node_bytes(dim))
    sizes = [min(chunk, nodes - first) for first in range(0, nodes, chunk)]
    closing: list[float] = []
    durability = ""

    def ours(turn: int) -> float:
        nonlocal durability
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            store = opened(scheme, f"{fresh}/store", "lowest", dim=dim)
            seconds = clock(lambda: [store.nodes.append(NodeBatch(batch.vector[:size])) for size in sizes])
            agree(len(store.nodes), nodes, "append")
            durability = promised(store)
            closing.append(clock(store.close))
        return seconds

    def limit(turn: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            return clock(lambda: limits.write_file(Path(fresh, "raw"), buffer, nodes * limits.node_bytes(dim)))

    def raw(turn: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            library = RawLMDB(Path(fresh), lowest, [])
            seconds = clock(lambda: library.put_all(transactions))
            library.close()
        return seconds

    with tempfile.TemporaryDirectory(dir=folder) as fresh, opened(scheme, f"{fresh}/store", "lowest", dim=dim) as store:
        lowest = store.capabilities.durability
        with recorded(scheme, store) as transactions:  # and what is imported late is imported now
            for size in sizes:
                store.nodes.append(NodeBatch(batch.vector[:size]))
    times = alternate(turns, budget, ours, limit, raw if transactions else None)
    return {**times, "durability": durability, "notes": {"close": float(np.median(closing))}}


def gather(scheme: str, place: str, nodes: int, dim: int, rows: int, cache: int, turns: int, budget: float) -> Answer:
    """Vectors of random rows, other ones each turn, against `np.take`; all rows were read before."""
    vectors = data.vectors(nodes, dim)
    draws = np.random.default_rng(5).integers(0, nodes, (turns, rows))
    with opened(scheme, place, cache=cache) as store:
        for first in range(0, nodes, CHUNK // 10):
            some = np.arange(first, min(first + CHUNK // 10, nodes))
            agree(store.nodes.read(some, ["vector"])["vector"], vectors[some], "gather")
        times = alternate(
            turns,
            budget,
            lambda turn: clock(lambda: store.nodes.read(draws[turn], ["vector"])["vector"]),
            lambda turn: clock(lambda: np.take(vectors, draws[turn], axis=0)),
        )
        return answer(store, times)


def scan(scheme: str, place: str, nodes: int, dim: int, turns: int, budget: float) -> Answer:
    """All vectors, chunk by chunk as the backend cuts them, against copies of the same chunks."""
    vectors = data.vectors(nodes, dim)
    with opened(scheme, place) as store:
        chunk, at = 0, 0
        for columns in store.nodes.scan(["vector"]):
            found = columns["vector"]
            chunk = max(chunk, len(found))
            agree(found, vectors[at : at + len(found)], "scan")
            at += len(found)
        agree(at, nodes, "scan")

        def ours(turn: int) -> float:
            return clock(lambda: sum(len(columns["vector"]) for columns in store.nodes.scan(["vector"])))

        def limit(turn: int) -> float:
            return clock(lambda: sum(len(copy) for copy in limits.copied(vectors, chunk)))

        return answer(store, alternate(turns, budget, ours, limit))


def out_edges(
    scheme: str, place: str, nodes: int, edges: int, rows: int, cache: int, turns: int, budget: float
) -> Answer:
    """The out-edges of random rows, other ones each turn, against a compiled walk; all were read before."""
    graph = limits.HeapGraph(nodes, *data.edges(nodes, edges // nodes))
    draws = np.random.default_rng(6).integers(0, nodes, (turns, rows))
    with opened(scheme, place, cache=cache) as store:
        for first in range(0, nodes, CHUNK // 10):
            some = np.arange(first, min(first + CHUNK // 10, nodes))
            mine = store.edges.out_edges(some)
            arrays = (mine.indptr, mine.refs, mine.target_rows, mine.weight, mine.confidence, mine.use_count)
            for array, expected in zip(arrays, graph.walk(some), strict=True):
                agree(array, expected, "out_edges")
        times = alternate(
            turns,
            budget,
            lambda turn: clock(lambda: store.edges.out_edges(draws[turn])),
            lambda turn: clock(lambda: graph.walk(draws[turn])),
        )
        return answer(store, times)


def commit_large(
    scheme: str, place: str, folder: str, nodes: int, edges: int, dim: int, turns: int, budget: float
) -> Answer:
    """Nodes, and edges between any nodes old or new, in one transaction, against their bytes appended and synced."""
    rng = np.random.default_rng(7)
    vectors = data.vectors(nodes, dim)
    weight = rng.uniform(0.5, 1, edges).astype(np.float32)
    buffer = limits.noise(nodes * limits.node_bytes(dim) + edges * limits.edge_bytes())
    file = limits.DurableFile(Path(folder, f"{scheme}-appended"))
    before_it = keys(scheme, place)
    with opened(scheme, place, "highest") as store, recorded(scheme, store) as transactions:

        def transact(ends: data.Ints) -> None:
            with store.transaction() as transaction:
                transaction.nodes.append(NodeBatch(vectors))
                transaction.edges.append(ends[0], ends[1], weight)

        def ours(turn: int) -> float:
            ends = rng.integers(0, len(store.nodes) + nodes, (2, edges))
            return clock(lambda: transact(ends))

        first = ours(-1)  # what is loaded or imported late is there now
        before = len(store.nodes), len(store.edges)
        with beside(scheme, store, folder, before_it, transactions) as raw:
            times = alternate(turns, budget, ours, lambda turn: clock(lambda: file.append(buffer)), raw)
        file.close()
        grown = (before[0] + len(times["ours"]) * nodes, before[1] + len(times["ours"]) * edges)
        agree((len(store.nodes), len(store.edges)), grown, "commit")
        return answer(store, times, first=first, flush=clock(store.flush))


def commit_small(scheme: str, place: str, folder: str, dim: int, turns: int, budget: float) -> Answer:
    """A node, and an edge from it to any other, in one transaction, against SQLite doing the same."""
    vectors = data.vectors(turns, dim)
    sqlite = limits.SQLite(Path(folder, f"{scheme}.sqlite"))
    before_it = keys(scheme, place)
    with opened(scheme, place, "highest") as store, recorded(scheme, store) as transactions:
        targets = np.random.default_rng(8).integers(0, len(store.nodes), turns)

        def transact(turn: int) -> None:
            with store.transaction() as transaction:
                row = transaction.nodes.append(NodeBatch(vectors[turn : turn + 1]))
                transaction.edges.append(row, targets[turn : turn + 1])

        first = clock(lambda: transact(0))  # what is loaded or imported late is there now
        before = len(store.nodes), len(store.edges)
        with beside(scheme, store, folder, before_it, transactions) as raw:
            times = alternate(
                turns,
                budget,
                lambda turn: clock(lambda: transact(turn)),
                lambda turn: clock(lambda: sqlite.commit(vectors[turn], int(targets[turn]))),
                raw,
            )
        sqlite.close()
        done = len(times["ours"])
        agree((len(store.nodes), len(store.edges)), (before[0] + done, before[1] + done), "commit")
        return answer(store, times, first=first, flush=clock(store.flush))


# Decay is held against another process, which `stores.py` lets alternate with this one.


def open_for_decay(scheme: str, place: str) -> str:
    """Open a store as it comes; gives back what it promises."""
    open_stores.append(opened(scheme, place))
    return promised(open_stores[-1])


def decay() -> float:
    """One column, committed."""
    store = open_stores[-1]
    before = store.nodes.read([0], ["relevance"])["relevance"]
    seconds = clock(lambda: store.nodes.transform(_faded, ["relevance"], ["relevance"]))
    agree(store.nodes.read([0], ["relevance"])["relevance"], before * DECAY, "decay")
    return seconds


def _faded(columns: Columns) -> Columns:
    return {"relevance": columns["relevance"] * DECAY}


# --- what it takes to have a store open ------------------------------------------------------------------------------


def opening(scheme: str, place: str) -> dict[str, float]:
    """Seconds that opening takes: the first time in a process, which imports the library, and once more."""
    seconds = {}
    for name in ("first", "again"):
        start = time.perf_counter()
        store = opened(scheme, place)
        seconds[name] = time.perf_counter() - start
        store.close()
    return seconds


def read_at_random(scheme: str, place: str, rows: int, cache: int, gathers: int, budget: float) -> Answer:
    """Open, gather vectors and out-edges of random rows again and again; the store stays open."""
    store = opened(scheme, place, cache=cache)
    open_stores.append(store)
    rng = np.random.default_rng(9)
    end = time.perf_counter() + budget
    done = 0
    while done < gathers and time.perf_counter() < end:
        draw = rng.integers(0, len(store.nodes), rows)
        store.nodes.read(draw, ["vector"])
        store.edges.out_edges(draw)
        done += 1
    return {"gathers": done, **resident()}


def close_stores() -> None:
    """Close what stays open otherwise."""
    while open_stores:
        open_stores.pop().close()


def resident() -> dict[str, float]:
    """What this process holds in memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kinds = {"VmRSS": "rss", "RssAnon": "anon", "RssFile": "file"}
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[kind].split()[0]) * 1024 / 1e6 for kind, name in kinds.items()}


if __name__ == "__main__":
    serve({name: task for name, task in globals().items() if callable(task)})
