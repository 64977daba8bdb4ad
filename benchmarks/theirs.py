"""The tasks of `ours.py`, done by the published 0.3.0. Run by `worker.Worker`.

A time is in seconds. Where 0.3.0 writes, its `save` is not counted.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from typing import Any

import data
import torch
from worker import serve

# 0.3.0's `aesg`, of which the type checker knows nothing: it sees ours.
AESGMemory: Any = importlib.import_module("aesg.memory.controller").AESGMemory
AESGConfig: Any = importlib.import_module("aesg.config").AESGConfig

open_memories: dict[str, Any] = {}


def about() -> dict[str, str]:
    """Which package this is."""
    return {"version": importlib.metadata.version("aesg"), "file": str(importlib.import_module("aesg").__file__)}


def insert_one_by_one(directory: str, count: int, dim: int) -> float:
    """`create_sensory_concept` `count` times in a new store."""
    stimuli = list(torch.from_numpy(data.vectors(count, dim)))
    memory = AESGMemory(directory, AESGConfig(vector_dim=dim, max_concepts=count))
    start = time.perf_counter()
    for vector in stimuli:
        memory.cognitive_engine.create_sensory_concept(vector)
    return time.perf_counter() - start


def insert_in_bulk(directory: str, count: int, dim: int) -> float:
    """Add all to a new store: a loop, since 0.3.0 has nothing else; it logs no events."""
    vectors = data.vectors(count, dim)
    memory = AESGMemory(directory, AESGConfig(vector_dim=dim, max_concepts=count))
    start = time.perf_counter()
    for node_id, vector in enumerate(vectors):
        memory.storage.add_node(node_id, vector)
    return time.perf_counter() - start


def connect_in_bulk(directory: str, nodes: int, per_node: int, dim: int) -> float:
    """Connect the nodes of a new store: a loop."""
    sources, targets, weight = (array.tolist() for array in data.edges(nodes, per_node))
    memory = AESGMemory(directory, AESGConfig(vector_dim=dim, max_concepts=nodes * max(1, per_node)))
    for node_id, vector in enumerate(data.vectors(nodes, dim)):
        memory.storage.add_node(node_id, vector)  # so that an id is a row
    start = time.perf_counter()
    for source, target, w in zip(sources, targets, weight, strict=True):
        memory.storage.add_edge(source, target, w)
    return time.perf_counter() - start


def open_memory(directory: str, dim: int) -> float:
    """Open a store, to stay open for the tasks that follow."""
    config = AESGConfig(vector_dim=dim)
    start = time.perf_counter()
    memory = AESGMemory(directory, config)
    elapsed = time.perf_counter() - start
    open_memories[directory] = memory
    return elapsed


def reopen(directory: str, dim: int) -> float:
    """Open a store; 0.3.0 must be told how long its vectors are."""
    return open_memory(directory, dim)


def retrieve(directory: str, dim: int, first: int, count: int) -> dict[str, Any]:
    """Ask, each time with no context; times, and the rows found."""
    memory = open_memories[directory]
    times, found = [], []
    for query in torch.from_numpy(data.queries(first, count, dim)):
        memory.reset_state()  # it also keeps anything from being born
        start = time.perf_counter()
        context = memory.retrieve(query)
        times.append(time.perf_counter() - start)
        found.append([int(row) for row in (*context.primary_concepts, *context.secondary_concepts)])
    return {"seconds": times, "rows": found}


def set_condition(directory: str, nodes: int, forgotten: float) -> None:
    """Make the next consolidation prune a share of the nodes."""
    for name, column in data.condition(nodes, forgotten).items():
        open_memories[directory].storage.nodes[name][:nodes] = column


def consolidate(directory: str) -> float:
    """One epoch, without the `storage.flush` that `update_topology` adds."""
    memory = open_memories[directory]
    start = time.perf_counter()
    memory.cognitive_engine.consolidate()
    return time.perf_counter() - start


def read_log(directory: str) -> dict[str, Any]:
    """The whole history as dicts: seconds, and how many there are."""
    start = time.perf_counter()
    history = open_memories[directory].logger.get_history()
    return {"seconds": time.perf_counter() - start, "events": len(history)}


def close(directory: str) -> None:
    """Let go of a store; 0.3.0 has no call for that."""
    open_memories.pop(directory).save()


# For footprint.py.


def grow_one_by_one(directory: str, count: int, dim: int, chunk: int) -> None:
    """Build a store concept by concept."""
    memory = AESGMemory(directory, AESGConfig(vector_dim=dim, max_concepts=count))
    for first in range(0, count, chunk):
        for vector in torch.from_numpy(data.vectors(min(chunk, count - first), dim, seed=first)):
            memory.cognitive_engine.create_sensory_concept(vector)
    memory.save()


def read_everything(directory: str) -> float:
    """Every field of every node, once; their sum, so that it is done."""
    storage = open_memories[directory].storage
    total, step = 0.0, 1 << 16
    for first in range(0, storage.node_count, step):
        records = storage.nodes[first : min(first + step, storage.node_count)]
        total += sum(float(records[name].sum()) for name in records.dtype.names)
    return total


if __name__ == "__main__":
    serve({name: task for name, task in globals().items() if callable(task)})
