"""The tasks, done by this package. Run by `worker.Worker`.

A time is in seconds. What writes is committed when its clock stops.
"""

from __future__ import annotations

import time
from typing import Any

import data
import numpy as np
import torch
from worker import serve

import aesg
from aesg import AESGConfig, AESGMemory

open_memories: dict[str, AESGMemory] = {}


def about() -> dict[str, str]:
    """Which package this is."""
    return {"version": aesg.__version__, "file": str(aesg.__file__)}


def insert_one_by_one(directory: str, count: int, dim: int) -> float:
    """`create_sensory_concept` `count` times in a new store, and save."""
    stimuli = list(torch.from_numpy(data.vectors(count, dim)))
    with AESGMemory(directory, AESGConfig(vector_dim=dim)) as memory:
        start = time.perf_counter()
        for vector in stimuli:
            memory.cognitive_engine.create_sensory_concept(vector)
        memory.save()
        return time.perf_counter() - start


def insert_in_bulk(directory: str, count: int, dim: int) -> float:
    """Add all in one call to a new store, and save."""
    vectors = data.vectors(count, dim)
    with AESGMemory(directory, AESGConfig(vector_dim=dim)) as memory:
        start = time.perf_counter()
        memory.add_concepts(vectors)
        memory.save()
        return time.perf_counter() - start


def connect_in_bulk(directory: str, nodes: int, per_node: int, dim: int) -> float:
    """Connect the nodes of a new store in one call, and save."""
    sources, targets, weight = data.edges(nodes, per_node)
    with AESGMemory(directory, AESGConfig(vector_dim=dim)) as memory:
        memory.add_concepts(data.vectors(nodes, dim))
        memory.save()
        start = time.perf_counter()
        memory.connect(sources, targets, weight)
        memory.save()
        return time.perf_counter() - start


def build(directory: str, nodes: int, per_node: int, dim: int) -> None:
    """A closed store of the published format, for both sides."""
    with AESGMemory(directory, AESGConfig(vector_dim=dim)) as memory:
        memory.add_concepts(data.vectors(nodes, dim))
        memory.connect(*data.edges(nodes, per_node))


def open_memory(directory: str, dim: int, preset: str = "default") -> float:
    """Open a store, to stay open for the tasks that follow."""
    # Restructuring is what 0.3.0 has no counterpart of: consolidation is compared without it.
    config = AESGConfig.preset(preset, vector_dim=dim, consolidation_epoch_interval=0)
    start = time.perf_counter()
    memory = AESGMemory(directory, config)
    elapsed = time.perf_counter() - start
    open_memories[directory] = memory
    return elapsed


def reopen(directory: str, dim: int) -> float:
    """Open a store without a configuration: it has its own."""
    start = time.perf_counter()
    memory = AESGMemory(directory)
    elapsed = time.perf_counter() - start
    assert memory.vector_dim == dim
    open_memories[directory] = memory
    return elapsed


def retrieve(directory: str, dim: int, first: int, count: int) -> dict[str, Any]:
    """Ask, each time with no context; times, and the rows found."""
    memory = open_memories[directory].eval()
    times, found = [], []
    for query in torch.from_numpy(data.queries(first, count, dim)):
        memory.reset_state()
        start = time.perf_counter()
        context = memory.retrieve(query)
        times.append(time.perf_counter() - start)
        found.append([int(row) for row in context.activated_nodes])
    return {"seconds": times, "rows": found}


def set_condition(directory: str, nodes: int, forgotten: float) -> None:
    """Make the next consolidation prune a share of the nodes."""
    memory = open_memories[directory]
    memory.save()
    memory.store.nodes.write(np.arange(nodes), **data.condition(nodes, forgotten))
    memory.save()


def consolidate(directory: str) -> float:
    """One epoch, and its commit."""
    memory = open_memories[directory]
    start = time.perf_counter()
    memory.update_topology()
    return time.perf_counter() - start


def read_log(directory: str) -> dict[str, Any]:
    """The whole history as dicts: seconds, and how many there are."""
    start = time.perf_counter()
    history = open_memories[directory].logger.get_history()
    return {"seconds": time.perf_counter() - start, "events": len(history)}


def close(directory: str) -> None:
    """Let go of a store."""
    open_memories.pop(directory).close()


# For footprint.py: input comes in chunks, so that it is not what is measured.


def grow_one_by_one(directory: str, count: int, dim: int, chunk: int) -> None:
    """Build a store concept by concept and close it."""
    with AESGMemory(directory, AESGConfig(vector_dim=dim)) as memory:
        for first in range(0, count, chunk):
            for vector in torch.from_numpy(data.vectors(min(chunk, count - first), dim, seed=first)):
                memory.cognitive_engine.create_sensory_concept(vector)


def grow_in_chunks(directory: str, count: int, dim: int, chunk: int) -> None:
    """Build a store chunk by chunk and close it."""
    with AESGMemory(directory, AESGConfig(vector_dim=dim)) as memory:
        for first in range(0, count, chunk):
            memory.add_concepts(data.vectors(min(chunk, count - first), dim, seed=first))


def read_everything(directory: str) -> float:
    """Every field of every node, once; their sum, so that it is done."""
    with open_memories[directory].graph() as graph:
        return float(sum(c.sum(dtype=np.float64) for columns in graph.nodes.scan() for c in columns.values()))


if __name__ == "__main__":
    serve({name: task for name, task in globals().items() if callable(task)})
