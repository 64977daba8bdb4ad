"""The limits: what memory, the file system and the bare libraries take for the same, in a process of their own."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from aesg.bench import data, limits
from aesg.bench.data import FRONTIER, LANES, ROWS, Burst, Floats, Ints, digest
from aesg.bench.machine import calibration
from aesg.bench.plan import WORKLOADS
from aesg.protocols import Durability
from aesg.records import distinct

BLOCK = 65_024
"""Bytes of a value of LMDB that fill whole pages."""
SEEDS, DECAY, RESULTS = 20, np.float32(0.8), 10
"""As in the default configuration."""


class Limits:
    """The machine and the libraries, fed with what the contenders are fed.

    Args:
        folder: In which all files are made.
        nodes: Of a store.
        edges: Of a store.
        dim: Length of the vectors.
    """

    def __init__(self, folder: str, nodes: int, edges: int, dim: int) -> None:
        self._folder = Path(folder)
        self._nodes, self._edges, self._dim = nodes, edges, dim
        self._vectors: Floats = np.concatenate(list(data.vectors(nodes, dim)))
        parts = list(data.edges(nodes, edges))
        self._ends = [np.concatenate([part[i] for part in parts]) for i in range(3)]
        self._graph = limits.HeapGraph(nodes, *self._ends)
        self._unit = self._vectors / np.maximum(np.linalg.norm(self._vectors, axis=1, keepdims=True), 1e-12)
        self._relevance = np.ones(nodes, np.float32)
        self._age = np.zeros(nodes, np.uint32)
        self._confidence = np.ones(edges, np.float32)
        self._noise = limits.noise(1 << 24)
        self._files: dict[Any, Any] = {}

    def calibrate(self) -> float:
        """Seconds of the fixed work."""
        return calibration()

    def burst(self, workload: str, library: str, durability: int, state: str, number: int) -> Burst:
        """One round; see `Worker.burst`. The answer is empty where a contender's cannot be known here."""
        calls = WORKLOADS[workload].calls
        key = [list(WORKLOADS).index(workload), len(state), number + 1]
        sync = durability >= Durability.POWER_LOSS
        specific = getattr(self, f"_{workload}_{library}", None)
        work: Callable[..., tuple[list[float], list[Any]]] = specific or getattr(self, f"_{workload}")
        cpu = time.process_time()
        seconds, answers = work(key, calls, sync)
        used = time.process_time() - cpu
        known = state == "fresh" and workload in ("gather", "hops")
        return {"seconds": seconds, "cpu": used, "answer": digest(answers) if known else ""}

    # Reading

    def _gather(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        rows = data.draws(key, self._nodes, calls, ROWS)
        return _calls(calls, lambda call: np.take(self._vectors, rows[call], axis=0))

    def _hops(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        rows, walk = data.draws(key, self._nodes, calls, FRONTIER), self._graph.walk

        def hop(call: int) -> list[Any]:
            first = walk(rows[call])
            second = walk(distinct(first[2]))
            return [first[0], first[2], first[3], second[0], second[2], second[3]]

        return _calls(calls, hop)

    def _retrieve(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        queries = data.queries(self._nodes, self._dim, key, calls)
        return _calls(calls, lambda call: self._ask(queries[call]))

    def _ask(self, query: Floats) -> Ints:
        """Nearest nodes, and three hops from there: what somebody writes who has everything in RAM."""
        scores = self._unit @ (query / np.linalg.norm(query))
        seeds = np.argpartition(scores, -min(SEEDS, len(scores)))[-min(SEEDS, len(scores)) :]
        energy = np.zeros(self._nodes, np.float32)
        energy[seeds] = np.exp((scores[seeds] - scores[seeds].max()) / np.float32(0.05))
        frontier, passed = seeds, energy[seeds]
        for _ in range(3):
            indptr, _, targets, weight, _, _ = self._graph.walk(frontier)
            degrees = np.diff(indptr)
            out = np.repeat(passed, degrees) * DECAY * weight / np.sqrt(np.repeat(np.maximum(degrees, 1), degrees))
            arrived = np.bincount(targets, out * np.maximum(scores[targets], 0), minlength=self._nodes)
            frontier = np.flatnonzero(arrived > 0.01)
            passed = arrived[frontier].astype(np.float32)
            energy[frontier] += passed
        best = np.argpartition(energy, -RESULTS)[-RESULTS:]
        return best[np.argsort(-energy[best])]

    def _open(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        path = self._folder / "vectors.npy"
        if not path.exists():
            np.save(path, self._vectors)
        rows = data.draws(key, self._nodes, calls)
        return _calls(calls, lambda call: np.load(path, mmap_mode="r")[rows[call]].copy())

    def _open_lmdb(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        import lmdb

        place = str(self._folder / "open.lmdb")
        if not Path(place).exists():
            self._put_blocks(place, sync=False)

        def read(call: int) -> bytes:
            with lmdb.open(place, readonly=True, lock=False) as environment, environment.begin() as transaction:
                return bytes(transaction.get((0).to_bytes(8, "big")) or b"")

        seconds, _ = _calls(calls, read)
        return seconds, []

    def _open_zarr(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        import zarr

        place = str(self._folder / "open.zarr")
        if not Path(place).exists():
            self._put_arrays(place)
        rows = data.draws(key, self._nodes, calls)
        return _calls(calls, lambda call: zarr.open_array(f"{place}/vector", mode="r")[int(rows[call])])

    # Writing

    def _ingest(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        count = self._nodes * limits.node_bytes(self._dim) + self._edges * limits.edge_bytes()
        path = self._folder / "ingested"
        done = _calls(calls, lambda call: limits.write_file(path, self._noise, count, sync=sync))
        path.unlink()
        return done

    def _ingest_lmdb(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        place = self._folder / "ingested.lmdb"
        done = _calls(calls, lambda call: self._put_blocks(str(place), sync=sync))
        shutil.rmtree(place)
        return done

    def _ingest_zarr(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        place = self._folder / "ingested.zarr"
        done = _calls(calls, lambda call: self._put_arrays(str(place)))
        shutil.rmtree(place)
        return done

    def _put_blocks(self, place: str, *, sync: bool) -> None:
        """Everything into LMDB, in values that fill whole pages, in as many transactions as a store takes."""
        import lmdb

        parts = [len(part) * limits.node_bytes(self._dim) for part in data_parts(self._nodes, data.NODES)]
        parts += [len(part) * limits.edge_bytes() for part in data_parts(self._edges, data.EDGES)]
        number = 0
        with lmdb.open(place, map_size=1 << 40, sync=sync) as environment:
            for size in parts:
                with environment.begin(write=True) as transaction:
                    for first in range(0, size, BLOCK):
                        at = number * 4096 % (len(self._noise) - BLOCK)
                        transaction.put(number.to_bytes(8, "big"), self._noise[at : at + min(BLOCK, size - first)])
                        number += 1

    def _put_arrays(self, place: str) -> None:
        import zarr

        group = zarr.open_group(place, mode="w")
        for name, column in (("vector", self._vectors), *zip(("source", "target", "weight"), self._ends, strict=True)):
            chunk = (min(len(column), max(1, (4 << 20) // column[:1].nbytes)), *column.shape[1:])
            array = group.create_array(name, shape=column.shape, dtype=column.dtype, chunks=chunk, compressors=None)
            array[:] = column

    def _commit(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        size = limits.node_bytes(self._dim) + limits.edge_bytes()
        return self._appended(calls, size, sync)

    def _appended(self, calls: int, size: int, sync: bool) -> tuple[list[float], list[Any]]:
        file = self._file(sync)
        return _calls(calls, lambda call: file.append(self._noise[:size]))

    def _file(self, sync: bool) -> limits.DurableFile:
        if ("file", sync) not in self._files:
            self._files["file", sync] = limits.DurableFile(self._folder / f"appended-{sync}", sync=sync)
        found: limits.DurableFile = self._files["file", sync]
        return found

    def _commit_lmdb(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        import lmdb

        if ("lmdb", sync) not in self._files:
            place = str(self._folder / f"commit-{sync}.lmdb")
            self._put_blocks(place, sync=False)  # the tree is as deep as a store's
            self._files["lmdb", sync] = lmdb.open(place, map_size=1 << 40, sync=sync)
        environment = self._files["lmdb", sync]
        node, edge = limits.node_bytes(self._dim), limits.edge_bytes()

        def put(call: int) -> None:
            with environment.begin(write=True) as transaction:
                number = key[-1] * calls + call
                transaction.put(b"n" + number.to_bytes(8, "big"), self._noise[:node])
                transaction.put(b"e" + number.to_bytes(8, "big"), self._noise[:edge])

        return _calls(calls, put)

    def _commit_zarr(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        import zarr

        place = str(self._folder / "commit.zarr")
        if "zarr" not in self._files:
            group = zarr.open_group(place, mode="w")
            size = limits.node_bytes(self._dim), limits.edge_bytes()
            self._files["zarr"] = [
                group.create_array(name, shape=(0, width), chunks=(1024, width), dtype="u1", compressors=None)
                for name, width in zip(("node", "edge"), size, strict=True)
            ]
        arrays = self._files["zarr"]
        rows = [np.frombuffer(self._noise[: array.shape[1]], np.uint8)[None] for array in arrays]

        def append(call: int) -> None:
            for array, row in zip(arrays, rows, strict=True):
                array.append(row)

        return _calls(calls, append)

    def _learn(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        queries = data.queries(self._nodes, self._dim, key, calls * LANES)
        size = limits.node_bytes(self._dim) + 10 * limits.edge_bytes()
        file = self._file(sync)

        def learn(call: int) -> None:
            for query in queries[call * LANES : (call + 1) * LANES]:
                self._ask(query)
            file.append(self._noise[:size])

        return _calls(calls, learn)

    def _consolidate(self, key: list[int], calls: int, sync: bool) -> tuple[list[float], list[Any]]:
        path = self._folder / "columns"

        def consolidate(call: int) -> None:
            self._relevance *= np.float32(0.95)
            self._age += np.uint32(1)
            self._confidence *= np.float32(0.995)
            np.flatnonzero((self._age > 5) & (self._relevance < 0.05))
            np.flatnonzero(self._confidence < 0.0)
            with open(path.with_suffix(".new"), "wb", buffering=0) as file:
                for column in (self._relevance, self._age, self._confidence):
                    file.write(column.tobytes())
                if sync:
                    os.fdatasync(file.fileno())
            os.replace(path.with_suffix(".new"), path)

        return _calls(calls, consolidate)

    def end(self) -> None:
        """Close what is open."""
        for file in self._files.values():
            if hasattr(file, "close"):
                file.close()
        self._files.clear()


def data_parts(count: int, most: int) -> list[range]:
    """A count cut into parts of at most so many."""
    return [range(first, min(count, first + most)) for first in range(0, count, most)]


def _calls(calls: int, work: Callable[[int], Any]) -> tuple[list[float], list[Any]]:
    seconds, results = [], []
    for call in range(calls):
        start = time.perf_counter()
        result = work(call)
        seconds.append(time.perf_counter() - start)
        results.append(result)
    return seconds, results
