"""What is done, how much of it and how often; and whether the machine has room for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from aesg.bench.contenders import Contender
from aesg.bench.limits import edge_bytes, node_bytes
from aesg.bench.machine import free_memory
from aesg.errors import InvalidInputError


@dataclass(frozen=True)
class Workload:
    """One thing that stores do.

    Attributes:
        title: What it is called, for people.
        what: What is done, in a sentence.
        calls: How often in each round.
        limit: What the figure of any backend is held against …
        limits: … and that of some, by their library.
    """

    title: str
    what: str
    calls: int
    limit: str
    limits: dict[str, str] = field(default_factory=dict)

    def limit_of(self, library: str) -> str:
        """What is held against a contender with that library, in words."""
        return self.limits.get(library, self.limit)


WORKLOADS: Final[dict[str, Workload]] = {
    "ingest": Workload(
        "Ingest",
        "all nodes and edges into a new store, in bulk, committed and flushed",
        1,
        "the same bytes into a new file",
        {
            "lmdb": "the same bytes into LMDB by itself",
            "zarr": "the same arrays by zarr itself, uncompressed, unsynced",
        },
    ),
    "open": Workload(
        "Open",
        "open the store for reading, read one node, close it",
        3,
        "open a raw file with np.memmap, read one row",
        {"lmdb": "LMDB by itself, read one value", "zarr": "zarr by itself, read one row"},
    ),
    "gather": Workload("Gather", "the vectors of 1,000 random nodes", 40, "np.take in RAM"),
    "hops": Workload(
        "Hops", "the edges of 100 random nodes, and those of what they lead to", 20, "CSR in RAM, compiled"
    ),
    "retrieve": Workload(
        "Retrieve", "one query: its nearest nodes and three hops from there", 20, "the same by hand: NumPy, all in RAM"
    ),
    "commit": Workload(
        "Commit",
        "a transaction of one node and one edge",
        40,
        "append the same bytes to a file",
        {"lmdb": "two values into LMDB by itself", "zarr": "two rows appended by zarr itself, unsynced"},
    ),
    "learn": Workload(
        "Learn",
        "a training step on 8 queries, committed",
        4,
        "the 8 queries by hand, and a node and 10 edges appended to a file",
    ),
    "consolidate": Workload(
        "Consolidate",
        "age, forget and prune all nodes and edges, committed",
        1,
        "the same columns in NumPy, written to a new file",
    ),
}
"""In the order in which they are done: first what only reads, on a store as it was made."""

READING: Final = frozenset({"open", "gather", "hops", "retrieve"})
"""Those that change nothing."""
STATES: Final = {"fresh": "as it was ingested", "churned": "after updates, removals, prunes and new nodes"}
PARTS: Final = 10
"""Transactions in which a store is churned; each touches this share of what there is, on average once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much of everything.

    Attributes:
        nodes: Of each store.
        edges: Of each store.
        dim: Length of the vectors.
        workload: Names of `WORKLOADS`, in any order.
        repeats: Rounds.
        patience: Seconds after which a process that does not answer is ended.
        seed: Of the order in which contenders take turns.

    Raises:
        InvalidInputError: A number out of range or an unknown workload.
    """

    nodes: int = 50_000
    edges: int = 500_000
    dim: int = 128
    workload: Sequence[str] = tuple(WORKLOADS)
    repeats: int = 5
    patience: float = 600
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("nodes", 100), ("edges", 100), ("dim", 1), ("repeats", 1)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        unknown = [name for name in self.workload if name not in WORKLOADS]
        if unknown or not self.workload:
            raise InvalidInputError(f"unknown workload {', '.join(unknown) or '(none)'}; known: {', '.join(WORKLOADS)}")

    @property
    def workloads(self) -> list[str]:
        """Those that are done, in their order."""
        return [name for name in WORKLOADS if name in self.workload]

    def states_of(self, workload: str) -> list[str]:
        """In which states of the store it is done."""
        return ["fresh"] if workload == "ingest" else list(STATES)

    @property
    def content_bytes(self) -> int:
        """Of all fields of all nodes and edges."""
        return self.nodes * node_bytes(self.dim) + self.edges * edge_bytes()

    @property
    def exact(self) -> bool:
        """Whether queries find their nearest nodes by looking at all: it is stores that are compared, not an index."""
        return self.nodes * self.dim > 8_000_000

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self) | {"workload": self.workloads}


def disk_needed(plan: Plan, contenders: Sequence[Contender]) -> int:
    """Bytes of disk at most: each has a store, and one at a time a second one; and so have the limits."""
    in_files = sum(contender.in_files for contender in contenders)
    return int(plan.content_bytes * (2.0 * in_files + 2 + 1.5)) + (64 << 20)


def memory_needed(plan: Plan, contenders: Sequence[Contender]) -> int:
    """Bytes of memory at most: a process each, pages of what is read, and the limits' copy of everything."""
    in_heap = sum(not contender.in_files for contender in contenders)
    return int(plan.content_bytes * (2 + 3 * in_heap + 0.5 * len(contenders))) + (len(contenders) + 1) * (350 << 20)


def lacking(plan: Plan, contenders: Sequence[Contender], folder: Path) -> list[str]:
    """What the machine does not have enough of, a sentence each; told before anything begins."""
    found = []
    disk, memory = disk_needed(plan, contenders), memory_needed(plan, contenders)
    free = shutil.disk_usage(folder).free
    if disk > free:
        found.append(f"this needs up to {disk / 1e9:.1f} GB of disk, {free / 1e9:.1f} GB are free")
    if memory > free_memory():
        found.append(f"this needs up to {memory / 1e9:.1f} GB of memory, {free_memory() / 1e9:.1f} GB are free")
    return found
