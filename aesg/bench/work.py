"""What a contender does, in a process of its own.

Times are in seconds. What is made for a call is made before its clock starts, and what comes out of it is looked at
after its clock stopped. The answers of a burst are digested, so that they can be compared with everybody else's.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends import registry
from aesg.backends.url import StoreURL
from aesg.bench import data
from aesg.bench.data import FRONTIER, LANES, ROWS, Burst, digest
from aesg.bench.machine import resident, settled
from aesg.bench.plan import PARTS, WORKLOADS
from aesg.config import AESGConfig
from aesg.memory.controller import AESGMemory
from aesg.protocols import GraphStore
from aesg.records import NodeBatch, distinct

CLOSE: Final = 4
"""Digits in which energies are compared: the order of a sum is a backend's own business."""


class Worker:
    """One contender: its store, opened as a store or as a memory.

    Args:
        url: Of the store; backend and options, and a path where the backend's stores have one.
        folder: In which everything lies that belongs to it.
        nodes: Of the store.
        edges: Of the store.
        dim: Length of the vectors.
        in_files: Whether the store is there again when it is opened the next time.
        exact: Whether queries look at all nodes.
    """

    def __init__(self, url: str, folder: str, nodes: int, edges: int, dim: int, in_files: bool, exact: bool) -> None:
        self._folder = Path(folder)
        parsed = StoreURL.parse(url)
        self._url = parsed
        self._nodes, self._edges, self._dim = nodes, edges, dim
        self._in_files = in_files
        self._options = {"index": "exact"} if exact else {}
        self._config = AESGConfig(vector_dim=dim, commit_interval=0, consolidation_epoch_interval=0)
        self._store: GraphStore | None = None
        self._memory: AESGMemory | None = None
        self._round = 0

    # The store, once as a store and once as a memory

    def _address(self, name: str = "store") -> str:
        path = str(self._folder / name) if self._in_files else ""
        return str(StoreURL(self._url.scheme, "", path, self._url.options | self._options))

    def _close(self) -> None:
        if self._memory is not None:
            self._memory.close()
        elif self._store is not None:
            self._store.close()
        self._memory = self._store = None

    def _as_store(self) -> GraphStore:
        if self._store is None or (self._memory is not None and self._in_files):
            self._close()
            self._store = registry.open(self._address())
        return self._store

    def _as_memory(self) -> AESGMemory:
        if self._memory is None:
            self._close()
            self._memory = AESGMemory(self._address(), self._config)
            self._store = self._memory.store
        return self._memory

    # Preparing

    def about(self) -> dict[str, Any]:
        """What this process holds before it holds a store: packages, and what they load late; bytes."""
        nodes = min(self._nodes, 1000)
        path, options = (str(self._folder / "probe") if self._in_files else ""), self._url.options | self._options
        with AESGMemory(str(StoreURL(self._url.scheme, "", path, options)), self._config) as memory:
            memory.add_concepts(next(data.vectors(nodes, self._dim)))
            for sources, targets, weight in data.edges(nodes, 10 * nodes):
                memory.connect(sources, targets, weight)
            memory.eval()
            for query in data.queries(nodes, self._dim, [0], 100):
                memory.retrieve(query)
        return {"memory_before": settled()}

    def build(self) -> Burst:
        """The store that everything else is done to."""
        if self._in_files:
            seconds, cpu = self._ingest(self._address())
        else:  # it lives in the process: its memory is opened first, and kept
            memory = self._as_memory()
            seconds, cpu = self._fill(memory.store)
        return {"seconds": [seconds], "cpu": cpu, "answer": self.content()}

    def _ingest(self, url: str) -> tuple[float, float]:
        with registry.open(url, vector_dim=self._dim) as store:
            return self._fill(store)

    def _fill(self, store: GraphStore) -> tuple[float, float]:
        seconds = cpu = 0.0
        for vectors in data.vectors(self._nodes, self._dim):
            took, used, _ = _timed(lambda: store.nodes.append(NodeBatch(vectors)))  # noqa: B023 - called at once
            seconds, cpu = seconds + took, cpu + used
        for part in data.edges(self._nodes, self._edges):
            took, used, _ = _timed(lambda: store.edges.append(*part))  # noqa: B023 - called at once
            seconds, cpu = seconds + took, cpu + used
        took, used, _ = _timed(store.flush)
        return seconds + took, cpu + used

    def churn(self) -> Burst:
        """Updates, removals, prunes and new nodes, in a few transactions: what a store looks like that was used."""
        store = self._as_store()
        seconds = cpu = 0.0
        for part in range(PARTS):
            refs = np.concatenate([chunk["ref"] for chunk in store.edges.scan(["weight"])])
            count, part_of = len(store.nodes), 1 / PARTS
            changed, pruned = data.share([part, 0], count, part_of), data.share([part, 1], count, part_of / 10)
            weighed, removed = data.share([part, 2], len(refs), part_of), data.share([part, 3], len(refs), part_of / 5)
            new = data.queries(self._nodes, self._dim, [part, 4], max(1, count // 200))
            ends = data.draws([part, 5], count, 2, max(1, len(refs) // 50))
            weights = np.random.default_rng([7, part]).uniform(0.3, 1, len(weighed)).astype(np.float32)

            def change() -> None:
                with store.transaction() as transaction:
                    transaction.nodes.write(changed, relevance=np.float32(0.7), use_frequency=3)  # noqa: B023
                    transaction.edges.write(refs[weighed], weight=weights)  # noqa: B023
                    transaction.edges.remove(refs[removed])  # noqa: B023
                    transaction.nodes.write(pruned, is_active=0)  # noqa: B023
                    rows = transaction.nodes.append(NodeBatch(new))  # noqa: B023
                    transaction.edges.append(*ends)  # noqa: B023
                    transaction.edges.append(rows, ends[0][: len(rows)])  # noqa: B023

            took, used, _ = _timed(change)
            seconds, cpu = seconds + took, cpu + used
        store.flush()
        return {"seconds": [seconds], "cpu": cpu, "answer": self.content()}

    # What is measured

    def burst(self, workload: str, state: str, number: int) -> Burst:
        """One round of a workload; the round -1 is not counted: it loads what is loaded late."""
        calls = WORKLOADS[workload].calls
        key = [list(WORKLOADS).index(workload), len(state), number + 1]
        done: Callable[[list[int], int], tuple[list[float], float, list[Any]]] = getattr(self, f"_{workload}_burst")
        seconds, cpu, answers = done(key, calls)
        return {"seconds": seconds, "cpu": cpu, "answer": digest(answers)}

    def _ingest_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        if self._in_files:
            seconds, cpu = self._ingest(self._address("another"))
            for path in self._folder.glob("another*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            seconds, cpu = self._ingest(self._address())
        return [seconds], cpu, []

    def _open_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        self._close()
        address, rows = self._address(), data.draws(key, self._nodes, calls, 1)

        def read(call: int) -> npt.NDArray[Any]:
            with registry.open(address, "r") as store:
                return store.nodes.read(rows[call], ["vector"])["vector"]

        return _calls(calls, read)

    def _gather_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        store, rows = self._as_store(), data.draws(key, self._nodes, calls, ROWS)
        return _calls(calls, lambda call: store.nodes.read(rows[call], ["vector"])["vector"])

    def _hops_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        store, rows = self._as_store(), data.draws(key, self._nodes, calls, FRONTIER)

        def hop(call: int) -> list[npt.NDArray[Any]]:
            first = store.edges.out_edges(rows[call])
            second = store.edges.out_edges(distinct(first.target_rows))
            return [first.indptr, first.target_rows, first.weight, second.indptr, second.target_rows, second.weight]

        return _calls(calls, hop)

    def _retrieve_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        memory, queries = self._as_memory(), data.queries(self._nodes, self._dim, key, calls)
        memory.eval()

        def ask(call: int) -> Any:
            memory.reset_state()
            return memory.retrieve(queries[call])

        seconds, cpu, found = _calls(calls, ask)
        return seconds, cpu, [_recalled(context) for context in found]

    def _commit_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        store, vectors = self._as_store(), data.queries(self._nodes, self._dim, key, calls)
        targets = data.draws(key, self._nodes, calls, 1)

        def commit(call: int) -> npt.NDArray[Any]:
            with store.transaction() as transaction:
                row = transaction.nodes.append(NodeBatch(vectors[call : call + 1]))
                transaction.edges.append(row, targets[call])
            return row

        return _calls(calls, commit)

    def _learn_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        memory, queries = self._as_memory(), data.queries(self._nodes, self._dim, key, calls * LANES)
        queries[::LANES] = np.random.default_rng([8, *key]).standard_normal(self._dim, np.float32)  # it comes back
        memory.reset_state()
        memory.train()
        try:
            done = _calls(calls, lambda call: memory.retrieve(queries[call * LANES : (call + 1) * LANES]))
        finally:
            memory.eval()
        seconds, cpu, found = done
        return seconds, cpu, [*(_recalled(context) for batch in found for context in batch), len(memory.store.nodes)]

    def _consolidate_burst(self, key: list[int], calls: int) -> tuple[list[float], float, list[Any]]:
        memory = self._as_memory()
        seconds, cpu, _ = _calls(calls, lambda call: memory.update_topology())
        return seconds, cpu, [len(memory.store.nodes), len(memory.store.edges)]

    # What is looked at

    def content(self) -> str:
        """A digest of all nodes and edges but for ids and times, which are each store's own."""
        store = self._store if self._store is not None else self._as_store()
        found = hashlib.sha256()
        for columns in store.nodes.scan(["vector", "relevance", "age", "use_frequency", "is_active"], data.NODES):
            for name in sorted(columns):
                found.update(np.ascontiguousarray(columns[name]).tobytes())
        edges: dict[str, list[npt.NDArray[Any]]] = {}
        for columns in store.edges.scan(["source_row", "target_row", "weight", "confidence", "use_count"]):
            for name, column in columns.items():
                edges.setdefault(name, []).append(column)
        for name in sorted(edges.keys() - {"ref"}):  # which numbers refs have is a backend's own business
            found.update(np.concatenate(edges[name]).tobytes())
        return found.hexdigest()

    def footprint(self) -> dict[str, Any]:
        """Bytes on disk of the store, closed; and in memory, after it was opened and read at random with all of it."""
        if self._in_files:
            self._close()
        files = [path for path in self._folder.rglob("*") if path.is_file()]
        mine = [path.lstat() for path in files if path.relative_to(self._folder).parts[0].startswith("store")]
        unique = {(stat.st_dev, stat.st_ino): stat for stat in mine}.values()
        before = settled() if self._in_files else {}
        store = self._as_store()
        for call in range(30):
            rows = data.draws([call, 9], self._nodes, ROWS)
            store.nodes.read(rows, ["vector"])
            store.edges.out_edges(rows[:FRONTIER])
        return {
            "files": len(unique),
            "disk": sum(stat.st_blocks * 512 for stat in unique),
            "length": sum(stat.st_size for stat in unique),
            "memory_before": before,
            "memory": resident() if self._in_files else settled(),
        }

    def end(self) -> None:
        """Close what is open."""
        self._close()


def _timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds, seconds of processor time, and what came out."""
    cpu, start = time.process_time(), time.perf_counter()
    result = work()
    return time.perf_counter() - start, time.process_time() - cpu, result


def _calls(calls: int, work: Callable[[int], Any]) -> tuple[list[float], float, list[Any]]:
    seconds, total, results = [], 0.0, []
    for call in range(calls):
        took, cpu, result = _timed(lambda: work(call))  # noqa: B023 - called at once
        seconds.append(took)
        total += cpu
        results.append(result)
    return seconds, total, results


def _recalled(context: Any) -> list[Any]:
    """Rows that were found, and their energies in a few digits, in the order of rows: equals may change places."""
    rows, energies = np.asarray(context.activated_nodes), np.asarray(context.weights)
    order = np.argsort(rows, kind="stable")
    return [rows[order], np.round(energies[order].astype(np.float64), CLOSE)]
