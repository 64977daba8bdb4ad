"""The parts of `retrieval.py`, done by this package and its rivals. Run by `worker.Worker`.

Times are in seconds. A part gives back a finding per row: see `retrieval_cases.compared` and `plain`.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

import data
import numpy as np
import retrieval_data as made
import retrieval_rivals as rivals
import stores_limits as limits
import torch
from retrieval_cases import compared, plain
from stores_tasks import address, resident
from stores_turns import alternate, clock
from torch import Tensor
from worker import serve

import aesg
from aesg import AESGConfig, AESGMemory
from aesg.errors import InvalidInputError

EASY: Final = 0.995
"""A rival need not find more than this share of the nearest, even where ours searches exactly."""
CHECKED: Final = 200
"""Queries of which the true nearest are known."""
PATIENCE: Final = 0.02
"""Seconds between two looks at whether the index is ready."""

BUFFERED: Final = 10_000
"""Rows that may wait beside the index."""

Findings: TypeAlias = dict[str, Any]
"""Row → finding."""

open_memories: list[AESGMemory] = []
"""Those that stay open from one task to the next."""


# --- what tasks have in common ---------------------------------------------------------------------------------------


def about() -> dict[str, str]:
    """Which package this is; when it answers, everything is imported."""
    return {"version": aesg.__version__, "file": str(aesg.__file__)}


def index_stats(memory: AESGMemory) -> dict[str, Any]:
    """What the memory says of its seed index; one without says nothing and searches exactly."""
    ask: Callable[[], dict[str, Any] | None] | None = getattr(memory, "index_stats", None)
    return (ask() if ask is not None else None) or {"kind": "exact", "ready": True}


def wait_for_index(memory: AESGMemory, query: Tensor, *, settled: bool = True, budget: float = 1800) -> dict[str, Any]:
    """Ask, which wakes the index, and wait until it answers (`settled`: and does nothing else); what it says then.

    Raises:
        RuntimeError: It does not become ready.
    """
    memory.eval().retrieve(query)
    end = time.perf_counter() + budget
    while not _answers(stats := index_stats(memory)) or (settled and stats.get("doing")):
        if time.perf_counter() > end:
            raise RuntimeError(f"the index is not ready after {budget:g} s: {stats}")
        time.sleep(PATIENCE)
    return stats


def _answers(stats: dict[str, Any]) -> bool:
    """Whether queries are answered by the index, but for the newest rows, or none is wanted."""
    ready = stats.get("ready", stats.get("state") in ("ready", "exact"))
    return bool(ready) and stats.get("waiting_rows", stats.get("waiting", 0)) <= BUFFERED


@functools.cache
def without_index() -> dict[str, str]:
    """The option that keeps a store from having an index, where there is one."""
    try:
        aesg.open("memory:?index=exact", vector_dim=1).close()
    except InvalidInputError:
        return {}
    return {"index": "exact"}


def asked(memory: AESGMemory, queries: list[Tensor]) -> list[float]:
    """Ask one by one, each time with no context."""
    times = []
    for query in queries:
        memory.reset_state()
        start = time.perf_counter()
        memory.retrieve(query)
        times.append(time.perf_counter() - start)
    return times


def tensors(path: str, count: int = -1, first: int = 0) -> list[Tensor]:
    """Queries of a file."""
    return list(torch.from_numpy(np.array(made.load(path)[first:][:count] if count >= 0 else made.load(path)[first:])))


def warm(memory: AESGMemory, queries: list[Tensor], budget: float) -> None:
    """Ask what is asked later, until the budget of seconds is spent."""
    end = time.perf_counter() + budget
    for first in range(0, len(queries), 10):
        asked(memory, queries[first : first + 10])
        if time.perf_counter() > end:
            break


def within(budget: float, queries: list[Tensor], ask: Callable[[list[Tensor]], list[float]]) -> list[float]:
    """Times of as many queries as the budget allows, at least one."""
    end, times = time.perf_counter() + budget, []
    for query in queries:
        times += ask([query])
        if time.perf_counter() > end:
            break
    return times


# --- making ----------------------------------------------------------------------------------------------------------


def prepare(vectors: str, queries: str, truth: str, nodes: int, dim: int, count: int) -> None:
    """Write what the other tasks read: vectors, queries, and the rows that are really nearest to some of them."""
    made.save(Path(vectors), nodes, dim)
    asking = made.queries(nodes, dim, count)
    np.save(queries, asking)
    unit = made.directions(asking[:CHECKED])
    cosines, rows = np.empty((len(unit), 0), np.float32), np.empty((len(unit), 0), np.int64)
    for first in range(0, nodes, made.CHUNK):
        some = made.directions(made.load(vectors)[first : first + made.CHUNK])
        cosines = np.hstack([cosines, unit @ some.T])
        rows = np.hstack([rows, np.broadcast_to(np.arange(first, first + len(some)), (len(unit), len(some)))])
        best = np.argsort(-cosines, axis=1)[:, :10]
        cosines, rows = np.take_along_axis(cosines, best, 1), np.take_along_axis(rows, best, 1)
    np.save(truth, rows)


def build(url: str, vectors: str, per_node: int) -> Findings:
    """The memory that the other tasks ask: nodes until its index answers, then edges; closed."""
    points = made.load(vectors)
    nodes, dim = points.shape
    with AESGMemory(url, AESGConfig(vector_dim=dim)) as memory:
        start = time.perf_counter()
        for first in range(0, nodes, made.CHUNK):
            memory.add_concepts(points[first : first + made.CHUNK])
        memory.save()
        saved = time.perf_counter() - start
        stats = wait_for_index(memory, torch.from_numpy(np.array(points[0])), settled=False)
        ready = time.perf_counter() - start
        for edges in made.edges(nodes, per_node):
            memory.connect(*edges)
        memory.save()
        linked = time.perf_counter() - start - ready
    closed = time.perf_counter() - start - ready - linked
    notes = {"saved_s": saved, "ready_s": ready, "edges_s": linked, "close_s": closed, "index": stats}
    return {"ingest": plain([nodes / ready], [ready], **notes)}


def build_rival(name: str, path: str, vectors: str) -> float:
    """A rival's index; nodes per second."""
    points = made.load(vectors)
    kind: Any = {"faiss": rivals.Faiss, "usearch": rivals.USearch}[name]
    return len(points) / float(kind(points.shape[1], Path(path)).build(points))


# --- asking ----------------------------------------------------------------------------------------------------------


def ask(url: str, files: dict[str, str], indexes: dict[str, str], per_node: int, turns: int, budget: float) -> Findings:
    """One by one: alone, and taking turns with the rivals query by query."""
    if "faiss" in indexes:
        rivals.library("faiss", "faiss-cpu")  # before usearch, which ours may import: the other way round it crashes
    asking = tensors(files["queries"])
    truth = np.load(files["truth"])
    found = recall(url, asking, truth)
    with AESGMemory(url) as memory:
        stats = wait_for_index(memory, asking[0])
        warm(memory, asking[:turns], budget)
        times = within(budget, asking[:turns], functools.partial(asked, memory))
        touched = [len(memory.retrieve(query).paths) for query in asking[:10]]
        p50, p99 = median(times), float(np.percentile(times, 99))
        notes = {"p50_ms": p50 * 1e3, "p99_ms": p99 * 1e3, "recall": found, "index": stats}
        findings: Findings = {
            "retrieve": plain([t * 1e3 for t in times], times, **notes, transfers=median(touched)),
            "tail": plain([p99 / p50], times),
        }
        sides: dict[str, Any] = {}
        for name, path in indexes.items():
            try:
                sides[name] = rival(name, path, files, per_node, min(found, EASY))
            except RuntimeError as error:
                findings[name] = {"problem": str(error)}
        findings.update(in_turns(memory, sides, asking[:turns], budget, found))
    return findings


def recall(url: str, queries: list[Tensor], truth: data.Ints) -> float:
    """Recall@10 of ours: without a hop a result is the nearest."""
    with AESGMemory(url, mode="r") as memory:
        config = memory.config.replace(spreading_activation_steps=0, top_k=truth.shape[1])
    with AESGMemory(url, config, mode="r") as memory:
        wait_for_index(memory, queries[0])
        hits = 0
        for query, nearest in zip(queries, truth, strict=False):
            memory.reset_state()
            hits += int(np.isin(nearest, memory.retrieve(query).activated_nodes).sum())
    return hits / truth[: len(queries)].size


def rival(name: str, path: str, files: dict[str, str], per_node: int, wanted: float) -> tuple[Any, dict[str, float]]:
    """What is asked, and how its index was tuned to a recall."""
    points = made.load(files["vectors"])
    nodes, dim = points.shape
    config = AESGConfig(vector_dim=dim)
    rivals.check_recipe(config)
    unit, graph = made.directions(points), rivals.sparse(nodes, per_node, config)
    queries, truth = made.directions(made.load(files["queries"])[:CHECKED]), np.load(files["truth"])
    if name == "faiss":
        index: rivals.Index = rivals.Faiss(dim, Path(path))
        tuned = rivals.tune(index, queries, truth, wanted)
        return rivals.ByNumPy(index, graph, unit, config), tuned
    index = rivals.USearch(dim, Path(path), unit)
    tuned = rivals.tune(index, queries, truth, wanted)
    return rivals.ByNumba(index, graph, unit, config), tuned


def in_turns(memory: AESGMemory, sides: dict[str, Any], queries: list[Tensor], budget: float, found: float) -> Findings:
    """Ours and the rivals, each query by all, each first as often as the others."""
    if not sides:
        return {}
    times: dict[str, list[float]] = {"ours": [], **{name: [] for name in sides}}
    shared: dict[str, list[int]] = {name: [] for name in sides}
    end = time.perf_counter() + budget * len(times)
    order = list(times)
    for query in [*queries[-20:], *queries]:  # the first ones warm up
        array = query.numpy()
        answers: dict[str, Any] = {}
        for name in order:
            memory.reset_state()
            start = time.perf_counter()
            answers[name] = memory.retrieve(query) if name == "ours" else sides[name][0].ask(array)
            times[name].append(time.perf_counter() - start)
        order.append(order.pop(0))
        for name in sides:
            shared[name].append(int(np.isin(answers[name], answers["ours"].activated_nodes).sum()))
        if time.perf_counter() > end and len(times["ours"]) > 30:
            break
    times = {name: seconds[20:] for name, seconds in times.items()}
    top = memory.config.top_k
    return {
        name: compared(
            times["ours"],
            times[name],
            recall_ours=found,
            recall_theirs=tuned["recall"],
            expansion=tuned["expansion"],
            results_shared=float(np.mean(shared[name])) / top,
        )
        for name, (_, tuned) in sides.items()
    }


def batches(url: str, queries: str, size: int, turns: int, budget: float) -> Findings:
    """Many at once against the same one by one; ratio of queries per second."""
    asking = torch.stack(tensors(queries))
    with AESGMemory(url) as memory:
        wait_for_index(memory, asking[0])

        def batch(turn: int) -> Tensor:
            return asking[(turn * size + torch.arange(size)) % len(asking)]

        def together(turn: int) -> float:
            memory.reset_state()
            part = batch(turn)
            return clock(lambda: memory.retrieve(part))

        def one_by_one(turn: int) -> float:
            return sum(asked(memory, list(batch(turn))))

        together(-1), one_by_one(-1)  # warms up, and the kernels of a batch are loaded
        times = alternate(turns, budget, together, one_by_one)
    return {"batches": compared(times["ours"], times["limit"], per_second=size / median(times["ours"]))}


def train(url: str, queries: str, block: int, turns: int, budget: float) -> Findings:
    """Learning against reading: blocks of queries in turn; what learning commits by itself falls where it falls."""
    asking = tensors(queries)
    saves: list[float] = []
    births = 0
    with AESGMemory(url) as memory:
        wait_for_index(memory, asking[0])

        def part(turn: int) -> list[Tensor]:
            return [asking[(turn * block + i) % len(asking)] for i in range(block)]

        def learning(turn: int) -> float:
            nonlocal births
            before = memory.storage.node_count
            memory.train()
            seconds = sum(asked(memory, part(turn)))
            memory.eval()
            births += memory.storage.node_count - before
            saves.append(clock(memory.save))
            return seconds

        def reading(turn: int) -> float:
            return sum(asked(memory, part(turn)))

        learning(-1), reading(-1)
        saves.clear()
        times = alternate(turns, budget, learning, reading)
    notes = {"queries_a_turn": block, "births": births, "save_s": median(saves)}
    return {"train": compared(times["ours"], times["limit"], slower=True, **notes)}


def first(url: str, queries: str) -> dict[str, Any]:
    """Open and ask once, in a process that has imported everything that `import aesg` imports."""
    query = torch.from_numpy(np.array(made.load(queries)[0]))
    start = time.perf_counter()
    memory = AESGMemory(url)
    opened = time.perf_counter() - start
    memory.eval().retrieve(query)
    both = time.perf_counter() - start
    stats = index_stats(memory)
    memory.close()
    return {"open": opened, "both": both, "index": stats}


def stay(url: str, queries: str, count: int, budget: float) -> dict[str, Any]:
    """Open and ask; the memory stays open."""
    memory = AESGMemory(url)
    open_memories.append(memory)
    asking = tensors(queries, count)
    stats = wait_for_index(memory, asking[0])
    done = len(within(budget, asking, functools.partial(asked, memory)))
    return {"queries": done, "index": stats, **resident()}


def stay_small(folder: str, dim: int) -> None:
    """Open and ask a small memory, so that everything is imported and compiled; it is closed."""
    with AESGMemory(f"{folder}/small", AESGConfig(vector_dim=dim)) as memory:
        memory.add_concepts(data.vectors(1000, dim))
        memory.connect(*data.edges(1000, 10))
        asked(memory.eval(), [torch.from_numpy(v) for v in data.vectors(20, dim)])


def leave() -> None:
    """Close what stayed open."""
    while open_memories:
        open_memories.pop().close()


def pace(url: str, queries: str, turns: int, budget: float) -> dict[str, Any]:
    """Times of queries one by one, alone and warm."""
    asking = tensors(queries, turns)
    with AESGMemory(url) as memory:
        wait_for_index(memory, asking[0])
        warm(memory, asking, budget)
        return {"seconds": within(budget, asking, functools.partial(asked, memory)), "index": index_stats(memory)}


def hub(url: str, files: dict[str, str], turns: int, budget: float) -> Findings:
    """Give the first node an edge to each node, then ask at it, in turns with other queries."""
    points = made.load(files["vectors"])
    nodes = len(points)
    others = tensors(files["queries"], turns)
    at_hub = torch.from_numpy(np.array(points[0]))
    with AESGMemory(url) as memory:
        memory.connect(np.zeros(nodes, np.int64), np.random.default_rng(14).permutation(nodes))
        memory.save()
        wait_for_index(memory, at_hub)
        warm(memory, others, budget)
        asked(memory, [at_hub])
        times = alternate(
            len(others), budget, lambda turn: asked(memory, [at_hub])[0], lambda turn: asked(memory, [others[turn]])[0]
        )
        memory.reset_state()
        cut = getattr(memory.retrieve(at_hub), "cut", None)
    notes = {"edges": nodes, "cut": cut, "p50_ms": median(times["ours"]) * 1e3}
    return {"hub": compared(times["ours"], times["limit"], slower=True, **notes)}


# For 0.3.0, which a process of its own runs in turn with this one.


def open_as_published(url: str, dim: int) -> None:
    """Open for reading with the preset that mimics 0.3.0; it stays open."""
    open_memories.append(AESGMemory(url, AESGConfig.preset("aesg-0.3", vector_dim=dim), mode="r").eval())


def answer(queries: str, turn: int, count: int) -> dict[str, Any]:
    """Queries of a file from number `turn` on: seconds of each, and the first one's rows."""
    memory, asked = open_memories[-1], made.load(queries)
    seconds: list[float] = []
    rows: list[int] = []
    for number in range(turn, turn + count):
        query = torch.from_numpy(np.array(asked[number % len(asked)]))
        memory.reset_state()
        start = time.perf_counter()
        context = memory.retrieve(query)
        seconds.append(time.perf_counter() - start)
        if number == turn:
            rows = [int(row) for row in context.activated_nodes]
    return {"seconds": seconds, "rows": rows}


# --- writing ---------------------------------------------------------------------------------------------------------


def append(scheme: str, folder: str, vectors: str, turns: int, budget: float) -> Findings:
    """`add_concepts` chunk by chunk into a new memory, and save, against the bytes of all fields into a new file."""
    points = np.array(made.load(vectors))
    nodes, dim = points.shape
    size = nodes * limits.node_bytes(dim)
    buffer = limits.noise(min(size, made.CHUNK * limits.node_bytes(dim)))
    saves: list[float] = []

    def ours(turn: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            url = address(scheme, f"{fresh}/store", "lowest", more=without_index())
            with AESGMemory(url, AESGConfig(vector_dim=dim)) as memory:
                memory.save()
                chunks = range(0, nodes, made.CHUNK)
                seconds = clock(lambda: [memory.add_concepts(points[i : i + made.CHUNK]) for i in chunks])
                saves.append(clock(memory.save))
                return seconds + saves[-1]

    def limit(turn: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            return clock(lambda: limits.write_file(Path(fresh, "raw"), buffer, size))

    ours(-1)
    saves.clear()
    times = alternate(turns, budget, ours, limit)
    return {"append": compared(times["ours"], times["limit"], save_s=median(saves))}


def connect(scheme: str, folder: str, nodes: int, per_node: int, turns: int, budget: float) -> Findings:
    """All edges into a memory that has the nodes, an edge from each at a time, and save."""
    edges = list(made.edges(nodes, per_node))
    seconds, saves = [], []
    end = time.perf_counter() + budget
    for turn in range(turns):
        if turn and time.perf_counter() > end:
            break
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            url = address(scheme, f"{fresh}/store", "lowest", more=without_index())
            with AESGMemory(url, AESGConfig(vector_dim=8)) as memory:  # their length is no matter here
                memory.add_concepts(data.vectors(nodes, 8))
                memory.save()
                start = time.perf_counter()
                for part in edges:
                    memory.connect(*part)
                seconds.append(time.perf_counter() - start)
                saves.append(clock(memory.save))
    whole = [a + b for a, b in zip(seconds, saves, strict=True)]
    return {"connect": plain([nodes * per_node / 1e6 / s for s in whole], whole, save_s=median(saves))}


class Columns:
    """What consolidation changes, as NumPy columns in heap that are rewritten to disk, synced, after each."""

    def __init__(self, folder: str, nodes: int) -> None:
        self._folder = Path(folder)
        self._nodes = nodes
        self._columns: dict[str, Any] = {}

    def set_condition(self, forgotten: float) -> None:
        """As `data.condition` has it."""
        self._columns = data.condition(self._nodes, forgotten)

    def consolidate(self) -> float:
        """Age, forget, prune, write; seconds."""
        columns, config = self._columns, AESGConfig()
        start = time.perf_counter()
        alive = columns["is_active"] != 0
        columns["age"] += alive
        columns["relevance"] *= np.where(alive, np.float32(config.relevance_decay), np.float32(1))
        gone = alive & (columns["age"] > 5) & (columns["relevance"] < config.survival_threshold_relevance)
        gone &= columns["use_frequency"] < config.survival_threshold_frequency
        columns["is_active"][gone] = 0
        for name in ["age", "relevance", *(["is_active"] if gone.any() else [])]:
            fresh = self._folder / f"{name}.new"
            with open(fresh, "wb") as file:
                file.write(columns[name].data)
                os.fsync(file.fileno())
            fresh.rename(self._folder / name)
        directory = os.open(self._folder, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
        return time.perf_counter() - start


def durable(scheme: str, place: str, folder: str, nodes: int, turns: int, budget: float) -> Findings:
    """Consolidation at the highest durability, preset aesg-0.3, against `Columns`."""
    findings: Findings = {}
    columns = Columns(folder, nodes)
    url = address(scheme, place, "highest", more=without_index())
    with AESGMemory(url, mode="r") as memory:
        dim = memory.vector_dim
    with AESGMemory(url, AESGConfig.preset("aesg-0.3", vector_dim=dim)) as memory:
        for share, forgotten in (("none", 0.0), ("half", 0.5)):

            def ours(turn: int, forgotten: float = forgotten) -> float:
                memory.store.nodes.write(np.arange(nodes), **data.condition(nodes, forgotten))
                memory.save()
                start = time.perf_counter()
                report = memory.update_topology()
                seconds = time.perf_counter() - start
                if report.pruned != int(nodes * forgotten):
                    raise RuntimeError(f"{report.pruned} of {nodes} nodes were pruned, not {forgotten:.0%}")
                return seconds

            def limit(turn: int, forgotten: float = forgotten) -> float:
                columns.set_condition(forgotten)
                return columns.consolidate()

            ours(-1), limit(-1)
            times = alternate(turns, budget, ours, limit)
            findings[f"durable_{share}"] = compared(
                times["ours"], times["limit"], durability=memory.store.capabilities.durability.name.lower()
            )
    return findings


if __name__ == "__main__":
    serve({name: task for name, task in globals().items() if callable(task)})
