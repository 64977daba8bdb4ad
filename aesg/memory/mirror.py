"""A copy of a graph in a device's memory, for large batches of queries.

It holds what asking needs and nothing else: vectors and their lengths, ids, which nodes are active, and the out-edges
of every row in compressed sparse row (CSR) form, newest first. It is made through the protocol, so any backend's store
can be mirrored, and it never changes: another generation of the store gets another mirror.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aesg.config import AESGConfig
from aesg.engine.seeds import units
from aesg.errors import CapacityError, InvalidInputError
from aesg.protocols import Graph, GraphStore
from aesg.records import Rows

DeviceCache: TypeAlias = bool | Literal["half"]

WORK_BYTES: Final = {"cuda": 1 << 30, "cpu": 1 << 28}
"""About what a query needs beside the mirror, by kind of device: batches are cut so that it suffices. A device of
another kind has no mirror: nobody has looked whether it can do what is needed, float64 among others."""
_EDGES_AT_ONCE: Final = 1 << 20
_TINY: Final = 1e-30
_HUGE: Final = 1e30
"""Squared lengths outside of these are measured in float64."""
_LARGEST: Final = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, eq=False)
class Mirror:
    """A graph on a device.

    Attributes:
        generation: The store's, when this was made.
        vectors: float32 [N, D], as they are stored, but for those of `odd_rows`.
        reciprocal: float32 [N], 1 / length of each of `vectors`; 0 where it has no direction.
        halves: float16 [N, D], at length 1, for the search; None when that takes `vectors`.
        odd_rows: int64 [M], ascending: rows whose vector is so short, so long or so damaged that float32 cannot
            compare it. `vectors` has them at length 1, or 0.
        odd_vectors: float32 [M, D], these as they are stored.
        ids: int64 [N], the bits of the uint64 ids.
        is_active: bool [N].
        crow: int64 [N + 1], where each row's edges begin.
        col: int32 [E], or int64 where that is too small: target rows; -1 where no active node is.
        strength: float32 [E], weight * confidence.
        home: bool [E], whether an edge stays within an assigned region; None when there are no regions.
    """

    generation: int
    vectors: Tensor
    reciprocal: Tensor
    halves: Tensor | None
    odd_rows: Tensor
    odd_vectors: Tensor
    ids: Tensor
    is_active: Tensor
    crow: Tensor
    col: Tensor
    strength: Tensor
    home: Tensor | None

    @property
    def count(self) -> int:
        """N."""
        return len(self.vectors)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.vectors.device

    @property
    def bytes(self) -> int:
        """What it takes of the device's memory."""
        held = (getattr(self, name) for name in self.__slots__)
        return sum(tensor.nbytes for tensor in held if isinstance(tensor, Tensor))

    def stored(self, rows: Tensor) -> Tensor:
        """The vectors of rows [n] as they are stored, float32 [n, D]."""
        out = self.vectors.index_select(0, rows)
        if len(self.odd_rows):
            at = torch.searchsorted(self.odd_rows, rows).clamp_(max=len(self.odd_rows) - 1)
            odd = self.odd_rows[at] == rows
            out[odd] = self.odd_vectors[at[odd]]
        return out


def bytes_needed(nodes: int, dim: int, edges: int, *, regions: bool, half: bool) -> int:
    """What a mirror takes of the device's memory, but for odd vectors, of which there are hardly any."""
    wide = 4 if nodes < 2**31 else 8
    per_node = 4 * dim + 4 + 8 + 1 + 8 + (2 * dim if half else 0)
    return nodes * per_node + edges * (wide + 4 + bool(regions)) + 8


def reflect(store: GraphStore, device: torch.device, *, half: bool = False) -> Mirror | None:
    """Copy the last commit of a store to a device.

    Args:
        store: Read through the protocol only.
        device: Where the copy is to lie.
        half: Keep the vectors in float16 too, which the search takes: see `Mirror.halves`.

    Returns:
        The copy; None when the store changed meanwhile.

    Raises:
        CapacityError: The device has too little memory.
    """
    generation = store.generation
    count, dim, edges = len(store.nodes), store.vector_dim, len(store.edges)
    needed = bytes_needed(count, dim, edges, regions=True, half=half) + WORK_BYTES[device.type]
    free = free_bytes(device)
    if free is not None and needed > free:
        raise _too_little(store.url, device, needed, free)
    with room(store.url, device, needed), torch.no_grad():
        try:
            nodes = _Nodes(store, device, half)
            adjacency = _edges(store, device, nodes.is_active, nodes.region)
        except _ChangedError:
            return None
        if store.generation != generation:
            return None
        return Mirror(
            generation=generation,
            vectors=nodes.vectors,
            reciprocal=nodes.reciprocal,
            halves=nodes.halves,
            odd_rows=torch.from_numpy(np.concatenate([np.empty(0, np.int64), *nodes.odd_rows])).to(device),
            odd_vectors=torch.from_numpy(np.concatenate([np.empty((0, dim), np.float32), *nodes.odd_vectors])).to(
                device
            ),
            ids=nodes.ids,
            is_active=torch.from_numpy(nodes.is_active).to(device),
            **adjacency,
        )


class _ChangedError(Exception):
    """The store is not what it was when the copy was begun."""


class _Nodes:
    """The nodes' part of a mirror; `is_active` and `region` stay on the host until the edges have been copied."""

    def __init__(self, store: GraphStore, device: torch.device, half: bool) -> None:
        count, dim = len(store.nodes), store.vector_dim
        self.vectors = torch.empty(count, dim, device=device)
        self.reciprocal = torch.empty(count, device=device)
        self.halves = torch.empty(count, dim, dtype=torch.float16, device=device) if half else None
        self.ids = torch.empty(count, dtype=torch.int64, device=device)
        self.is_active = np.empty(count, np.bool_)
        self.region = np.empty(count, np.uint32)
        self.odd_rows: list[Rows] = []
        self.odd_vectors: list[npt.NDArray[np.float32]] = []
        first = 0
        for chunk in store.nodes.scan(["id", "vector", "is_active", "region_id"]):
            stop = first + len(chunk["id"])
            if stop > count:
                raise _ChangedError
            self._take(first, stop, chunk["vector"])
            self.ids[first:stop] = torch.from_numpy(np.ascontiguousarray(chunk["id"]).view(np.int64))
            self.is_active[first:stop] = chunk["is_active"] != 0
            self.region[first:stop] = chunk["region_id"]
            first = stop
        if first < count:
            raise _ChangedError

    def _take(self, first: int, stop: int, vectors: npt.NDArray[np.float32]) -> None:
        with np.errstate(all="ignore"):
            squares = np.vecdot(vectors, vectors)
            reciprocal = 1 / np.sqrt(squares)
        odd = np.flatnonzero(~((squares > _TINY) & (squares < _HUGE)))
        if len(odd):
            directions = units(vectors[odd])
            self.odd_rows.append(first + odd[vectors[odd].any(axis=1)])
            self.odd_vectors.append(vectors[odd][vectors[odd].any(axis=1)])
            vectors = vectors.copy()
            vectors[odd] = directions
            reciprocal[odd] = directions.any(axis=1)
        self.vectors[first:stop] = torch.from_numpy(np.ascontiguousarray(vectors))
        self.reciprocal[first:stop] = torch.from_numpy(reciprocal)
        if self.halves is not None:
            self.halves[first:stop] = self.vectors[first:stop] * self.reciprocal[first:stop, None]


def _edges(
    store: GraphStore, device: torch.device, is_active: npt.NDArray[np.bool_], region: npt.NDArray[np.uint32]
) -> dict[str, Any]:
    """The edges' part of a mirror, by name."""
    count = len(is_active)
    every = np.arange(count, dtype=np.int64)
    crow = np.concatenate([np.zeros(1, np.int64), np.cumsum(store.edges.degrees(every))])
    total = int(crow[-1])
    col = torch.empty(total, dtype=torch.int32 if count < 2**31 else torch.int64, device=device)
    strength = torch.empty(total, device=device)
    home = torch.empty(total, dtype=torch.bool, device=device) if region.any() else None
    start = 0
    while start < count:
        stop = max(start + 1, int(np.searchsorted(crow, crow[start] + _EDGES_AT_ONCE, side="right")) - 1)
        rows = every[start:stop]
        found = store.edges.out_edges(rows)
        if not np.array_equal(found.indptr, crow[start : stop + 1] - crow[start]):
            raise _ChangedError
        there = slice(int(crow[start]), int(crow[stop]))
        target = found.target_rows
        if len(target) and target.max() >= count:
            raise _ChangedError
        alive = target >= 0
        alive[alive] = is_active[target[alive]]
        col[there] = torch.from_numpy(np.where(alive, target, -1)).to(col.dtype)
        product = found.weight.astype(np.float64) * found.confidence
        strength[there] = torch.from_numpy(np.clip(product, -_LARGEST, _LARGEST).astype(np.float32))
        if home is not None:
            origin = np.repeat(region[rows], found.degrees)
            home[there] = torch.from_numpy(alive & (origin != 0) & (origin == region[target]))
        start = stop
    return {"crow": torch.from_numpy(crow).to(device), "col": col, "strength": strength, "home": home}


# --- the device's memory ---------------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int | None:
    """What can be had of a device's memory; None where nobody can say."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


@contextmanager
def room(url: str, device: torch.device, needed: int) -> Iterator[None]:
    """Within the block a device that runs out of memory raises CapacityError."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise _too_little(url, device, needed, free_bytes(device)) from error


def _too_little(url: str, device: torch.device, needed: int, free: int | None) -> CapacityError:
    left = "too little" if free is None else f"{free / 2**30:.2f} GiB"
    return CapacityError(
        f"{url}: a copy of the graph on {device} and the room to ask it take {needed / 2**30:.2f} GiB, {left} is free; "
        "use device_cache=False"
    )


# --- keeping them ----------------------------------------------------------------------------------------------------


def supports(config: AESGConfig) -> bool:
    """Whether a mirror answers as the engine does; what only 0.3.0 did is left to the engine."""
    return not (
        config.context_replaces_query
        or config.region_zero_counts
        or config.novelty_by_lane
        or config.tie_break == "insertion"
    )


@dataclass(slots=True)
class _Kept:
    """The mirror of one device.

    Attributes:
        mirror: None when there is none.
        generation: The newest that was seen of the store.
        since: When it was first seen, in seconds.
        cost: How long the last mirror took to make, in seconds.
    """

    mirror: Mirror | None = None
    generation: int = -1
    since: float = 0.0
    cost: float = 0.0


class Mirrors:
    """A memory's mirrors: one on each device from which it is asked.

    The first query from a device makes its mirror. When the store's generation has changed the mirror is let go, and a
    new one is made by the first query after the store has stayed the same for as long as the last one took to make.
    So at most half of the time goes into making them, however often somebody commits; until then, and while a
    transaction is open, there is none.

    Args:
        device_cache: False makes none; "half" makes mirrors that are searched in float16.

    Raises:
        InvalidInputError: Another value.
    """

    def __init__(self, device_cache: DeviceCache) -> None:
        if device_cache not in (False, True, "half"):
            raise InvalidInputError(f'device_cache is true, false or "half", not {device_cache!r}')
        self._device_cache = device_cache
        self.forget()

    def forget(self) -> None:
        """Let all of them go."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._kept: dict[torch.device, _Kept] = {}

    def of(self, graph: Graph, store: GraphStore, config: AESGConfig, device: torch.device) -> Mirror | None:
        """The mirror of what is being read.

        Args:
            graph: What is being read: the store, or a transaction, which has no mirror.
            store: The store.
            config: What the answer has to obey.
            device: Where the mirror is to lie.

        Returns:
            None where the engine has to answer.

        Raises:
            CapacityError: The device has too little memory.
        """
        if not self._device_cache or graph is not store or device.type not in WORK_BYTES or not supports(config):
            return None
        if device == torch.device("cuda"):  # whichever is the present one
            device = torch.device("cuda", torch.cuda.current_device())
        if self._pid != os.getpid():  # a forked child: another thread of the parent may have held the lock
            self.forget()
        with self._lock:
            kept = self._kept.setdefault(device, _Kept())
            generation, now = store.generation, time.monotonic()
            if generation != kept.generation:
                kept.mirror, kept.generation, kept.since = None, generation, now
            if kept.mirror is None and now - kept.since >= kept.cost:
                kept.mirror = reflect(store, device, half=self._device_cache == "half")
                kept.cost = time.monotonic() - now
            return kept.mirror

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(self._device_cache)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._device_cache,)
