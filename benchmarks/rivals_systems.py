"""What `rivals.py` asks of a system, and the sides that keep no tables: ours, and faiss with hops written by hand."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import retrieval_data as made
from data import Floats, Ints
from retrieval_rivals import ByNumba, Faiss, Index, Nearest, Sparse, library
from rivals_job import DECAY, LEAST, Activated, Lesson, Rule, reinforced

CACHE: Final = 1 << 30
"""Bytes that our backends with a cache are given."""

Given: TypeAlias = dict[str, npt.NDArray[Any]]
"""What `rivals_job.read` gives."""


class System(Protocol):
    """A way to keep the memory and to ask it. Whatever writes returns when it is as durable as the system makes it.

    Attributes:
        packages: Distributions whose versions matter.
        durability: What a commit survives.
        search: How seeds are found.
        ladder: Values of what makes an approximate search better, cheapest first; empty where there is nothing to turn.
        ways: Names of the ways in which activation can be spread; the fastest is measured.
        way: The one that is used.
        notes: What a reader should know of this run.
    """

    packages: ClassVar[tuple[str, ...]]
    durability: ClassVar[str]
    search: str
    ladder: ClassVar[tuple[int, ...]]
    ways: ClassVar[tuple[str, ...]]
    way: str
    notes: list[str]

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None: ...

    def create(self, given: Given) -> None:
        """Make the store with all nodes and edges and whatever index it has; it can be asked afterwards."""

    def open(self) -> None:
        """Open what `create` made."""

    def close(self) -> None:
        """Let go."""

    def turn_to(self, value: int) -> None:
        """Set the search to a value of the ladder."""

    def seeds(self, query: Floats) -> Ints:
        """The nearest rows, best first."""

    def ask(self, query: Floats) -> Ints:
        """The best rows of what a query activates."""

    def activate(self, query: Floats) -> Activated:
        """All that it activates."""

    def learn(self, new: Lesson) -> None:
        """Add nodes and edges, as one commit where the system has such."""

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        """Move the confidence of edges, named by their number and their source, a share of the way to 1."""

    def consolidate(self) -> None:
        """Decay the relevance of all nodes, prune those below the least, and remove their edges."""

    def counts(self) -> tuple[int, int]:
        """Nodes and edges that are left."""


def chunks(count: int, size: int = made.CHUNK) -> Iterator[slice]:
    """Slices that cover `range(count)`."""
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))


def version_of(package: str) -> str:
    """As installed.

    Raises:
        RuntimeError: It is not.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise RuntimeError(f"{package} is not installed: pip install 'aesg[rivals]'") from error


# --- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """AESG on one of its backends, as `AESGMemory` uses it, at the highest durability that the backend has."""

    packages: ClassVar[tuple[str, ...]] = ("numpy", "numba", "usearch", "torch")
    durability: ClassVar[str] = "power loss"
    ladder: ClassVar[tuple[int, ...]] = ()
    ways: ClassVar[tuple[str, ...]] = ("retrieve()",)
    scheme: ClassVar[str]

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        import torch

        from aesg import AESGMemory
        from aesg.backends import registry
        from aesg.backends.url import StoreURL

        self._torch, self._kind = torch, AESGMemory
        self.search = self.way = "retrieve()"
        self.notes: list[str] = []
        self._rule, self._dim = rule, dim
        safest = {"durability": "power_loss", "sync": "true", "cache_bytes": str(CACHE)}
        options = {name: value for name, value in safest.items() if name in registry.backend(self.scheme).options}
        self._url = str(StoreURL(self.scheme, "", str(folder / "store"), options))
        self._refs_file = folder / "refs.npy"  # the caller's own record of which edge got which ref

    def create(self, given: Given) -> None:
        import aesg
        from aesg.records import NodeBatch

        nodes, edges = len(given["vectors"]), len(given["source"])
        with aesg.open(self._url, vector_dim=self._dim) as store:
            with store.transaction() as transaction:
                for some in chunks(nodes):
                    columns = {"relevance": np.asarray(given["relevance"][some])}
                    ids = np.arange(nodes, dtype=np.uint64)[some]
                    transaction.nodes.append(NodeBatch(np.asarray(given["vectors"][some]), ids, columns))
                names = ("source", "target", "weight", "confidence")
                refs = [
                    transaction.edges.append(*(np.asarray(given[name][some]) for name in names))
                    for some in chunks(edges, 10 * made.CHUNK)
                ]
            np.save(self._refs_file, np.concatenate(refs))
        self.open()

    def open(self) -> None:
        from aesg import AESGConfig

        # Nothing is committed by itself meanwhile.
        config = AESGConfig(vector_dim=self._dim, commit_interval=1e6)
        self._memory = self._kind(self._url, config).eval()
        self._session = self._memory._handle.session  # where its own learning commits
        self._refs: Ints = np.load(self._refs_file)
        capabilities = self._memory.store.capabilities.durability.name
        if capabilities != "POWER_LOSS":
            self.notes = [f"{self.scheme} promises {capabilities.lower().replace('_', ' ')} only"]

    def ready(self) -> None:
        """Wait for the index."""
        self._session.index.bring_up()
        kind = self._memory.index_stats()["kind"]
        self.search = "exact scan" if kind == "exact" else str(kind).upper()

    def close(self) -> None:
        self._memory.close()

    def turn_to(self, value: int) -> None:
        raise NotImplementedError("the index tunes itself")

    def seeds(self, query: Floats) -> Ints:
        from aesg.engine.seeds import nearest

        with self._memory.graph() as graph:
            return nearest(graph, query[None], self._rule.seeds, 0.0)[0].rows

    def ask(self, query: Floats) -> Ints:
        self._memory.reset_state()
        found: Ints = np.asarray(self._memory.retrieve(self._torch.from_numpy(query)).activated_nodes)
        return found

    def activate(self, query: Floats) -> Activated:
        from aesg.engine.activation import activate

        config = self._memory.config.replace(top_k=len(self._memory.store.nodes), fill_nearest=False)
        seeds = self.seeds(query)
        with self._memory.graph() as graph:
            found = activate(graph, config, query[None], [None], [None])[0]
        return Activated(seeds, found.rows, found.energies.astype(np.float64))

    def learn(self, new: Lesson) -> None:
        from aesg.records import NodeBatch

        with self._session.learning(1e6) as graph:
            graph.nodes.append(NodeBatch(new.vectors, new.ids.astype(np.uint64), {"relevance": new.relevance}))
            graph.edges.append(new.source, new.target, new.weight, new.confidence)
        self._session.commit()

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        refs = self._refs[ids]
        with self._session.learning(1e6) as graph:
            confidence = graph.edges.read(refs, ["confidence"])["confidence"]
            graph.edges.write(refs, confidence=reinforced(confidence, rate))
        self._session.commit()

    def consolidate(self) -> None:
        with self._session.learning(1e6) as graph:
            pruned = graph.nodes.transform(
                _fade, ["row", "is_active", "relevance"], ["is_active", "relevance"], ["gone"]
            )
            gone = np.zeros(len(graph.nodes), np.bool_)
            gone[pruned["gone"]] = True
            found = graph.edges.transform(partial(_loose, gone=gone), ["ref", "source_row", "target_row"], [], ["refs"])
            graph.edges.remove(found["refs"])
        self._session.commit()

    def counts(self) -> tuple[int, int]:
        with self._memory.graph() as graph:
            active = sum(int(np.count_nonzero(chunk["is_active"])) for chunk in graph.nodes.scan(["is_active"]))
            return active, len(graph.edges)


def _fade(columns: Given) -> Given:
    """Relevance decayed, and the rows that are pruned by it."""
    relevance = columns["relevance"] * DECAY
    stays = (columns["is_active"] != 0) & (relevance >= LEAST)
    gone = columns["row"][(columns["is_active"] != 0) & ~stays]
    return {"is_active": stays.view(np.uint8), "relevance": relevance, "gone": gone}


def _loose(columns: Given, gone: npt.NDArray[np.bool_]) -> Given:
    """Refs of the edges of pruned nodes."""
    return {"refs": columns["ref"][gone[columns["source_row"]] | gone[columns["target_row"]]]}


class Memmap(Ours):
    """See `Ours`."""

    scheme = "memmap"


class LMDB(Ours):
    """See `Ours`."""

    packages = (*Ours.packages, "lmdb")
    scheme = "lmdb"


class Zarr(Ours):
    """See `Ours`."""

    packages = (*Ours.packages, "zarr")
    scheme = "zarr"


# --- by hand ---------------------------------------------------------------------------------------------------------


class _Selective(Faiss):
    """faiss's HNSW, which cannot remove: what was pruned is passed over while searching."""

    expansion = 64
    _bits: npt.NDArray[np.uint8] | None = None

    def pass_over(self, alive: npt.NDArray[np.bool_]) -> None:
        """Find only rows that are alive, bool [n]."""
        self._bits = None if alive.all() else np.packbits(alive, bitorder="little")

    def search(self, query: Floats, count: int) -> Nearest:
        some = {} if self._bits is None else {"sel": self._faiss.IDSelectorBitmap(self._bits)}
        params = self._faiss.SearchParametersHNSW(efSearch=self.expansion, **some)
        cosines, rows = self._index.search(query[None], count, params=params)
        found = rows[0] >= 0
        return rows[0][found], cosines[0][found]

    def add(self, units: Floats) -> None:
        """More vectors."""
        self._index.add(units)

    def save(self) -> None:
        """Write the whole index."""
        self._faiss.write_index(self._index, str(self._path))


class _Hops(ByNumba):
    """The compiled hops, over what may be exchanged."""

    def exchange(self, index: Index, graph: Sparse, units: Floats) -> None:
        """Go on with another index, other edges and vectors."""
        self._index, self._graph, self._units = index, graph, units
        self._state = np.zeros((len(units), 4), np.float32)
        self._lists = np.empty((4, len(units)), np.int32)

    def all_of(self, query: Floats) -> Ints:
        """All rows that a query activates, best first."""
        config = self._config
        self._config = config.replace(top_k=len(self._units), fill_nearest=False)
        try:
            return self.ask(query)
        finally:
            self._config = config


class ByHand:
    """faiss's HNSW and compressed sparse rows, all in RAM. There is no log: to commit is to write everything anew."""

    packages: ClassVar[tuple[str, ...]] = ("faiss-cpu", "numba", "numpy")
    durability: ClassVar[str] = "power loss, by writing all files anew"
    ladder: ClassVar[tuple[int, ...]] = (32, 64, 128, 256, 512)
    ways: ClassVar[tuple[str, ...]] = ("loop compiled by numba",)

    def __init__(self, folder: Path, rule: Rule, dim: int) -> None:
        from aesg import AESGConfig

        self.search, self.way = "HNSW", self.ways[0]
        self.notes: list[str] = []
        self._folder, self._rule, self._dim = folder / "store", rule, dim
        library("faiss", "faiss-cpu")
        units = made.directions(np.random.default_rng(1).standard_normal((100, dim), np.float32))
        index = _Selective(dim, folder / "none")
        index.add(units)
        graph = Sparse(np.arange(101), np.zeros(100, np.int32), np.ones(100, np.float32))
        self._hops = _Hops(index, graph, units, AESGConfig(vector_dim=dim))
        self._hops.ask(units[0])  # is compiled

    def create(self, given: Given) -> None:
        self._folder.mkdir()
        self._columns = {name: np.array(given[name]) for name in _COLUMNS}
        self._alive = np.ones(len(given["vectors"]), np.bool_)
        self._index = _Selective(self._dim, self._folder / "none")
        for some in chunks(len(given["vectors"])):
            self._index.add(made.directions(given["vectors"][some]))
        self._save()
        self._prepare()

    def open(self) -> None:
        generation = json.loads((self._folder / "current").read_text())
        home = self._folder / generation
        self._columns = {name: np.load(home / f"{name}.npy") for name in _COLUMNS}
        self._alive = np.load(home / "alive.npy")
        self._index = _Selective(self._dim, home / "index")
        self._prepare()

    def _prepare(self) -> None:
        """Derive what is asked: unit vectors, and what each edge passes on."""
        columns = self._columns
        self._index.pass_over(self._alive)
        self._units = made.directions(columns["vectors"])
        order = np.argsort(columns["source"], kind="stable")
        source, nodes = columns["source"][order], len(self._units)
        strength = (columns["weight"] * columns["confidence"])[order]
        fan = np.bincount(source, strength, nodes) ** self._rule.fan
        passes = (strength * self._rule.decay / fan[source]).astype(np.float32)
        starts = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=nodes))])
        graph = Sparse(starts, columns["target"][order].astype(np.int32), passes)
        self._hops.exchange(self._index, graph, self._units)

    def _save(self) -> None:
        """Everything into a fresh folder, which then becomes the current one."""
        names = [int(path.name) for path in self._folder.iterdir() if path.name.isdigit()]
        home = self._folder / str(max(names, default=0) + 1)
        home.mkdir()
        for name, column in {**self._columns, "alive": self._alive}.items():
            np.save(home / f"{name}.npy", column)
        self._index._path = home / "index"
        self._index.save()
        for path in [*home.iterdir(), home]:
            _sync(path)
        fresh = self._folder / "current.new"
        fresh.write_text(json.dumps(home.name))
        _sync(fresh)
        fresh.rename(self._folder / "current")
        _sync(self._folder)
        for old in names:
            for path in (self._folder / str(old)).iterdir():
                path.unlink()
            (self._folder / str(old)).rmdir()

    def close(self) -> None:
        """All is on disk already."""

    def turn_to(self, value: int) -> None:
        self._index.expansion = value

    def seeds(self, query: Floats) -> Ints:
        return self._index.search(query / np.linalg.norm(query), self._rule.seeds)[0]

    def ask(self, query: Floats) -> Ints:
        return self._hops.ask(query)

    def activate(self, query: Floats) -> Activated:
        return Activated(self.seeds(query), self._hops.all_of(query), None)

    def learn(self, new: Lesson) -> None:
        added = {
            "vectors": new.vectors,
            "relevance": new.relevance,
            **{name: getattr(new, name) for name in ("source", "target", "weight", "confidence")},
        }
        self._columns = {name: np.concatenate([self._columns[name], added[name]]) for name in _COLUMNS}
        self._alive = np.concatenate([self._alive, np.ones(len(new.ids), np.bool_)])
        self._index.add(made.directions(new.vectors))
        self._prepare()
        self._save()

    def reinforce(self, ids: Ints, sources: Ints, rate: float) -> None:
        self._columns["confidence"][ids] = reinforced(self._columns["confidence"][ids], rate)
        self._prepare()
        self._save()

    def consolidate(self) -> None:
        columns = self._columns
        columns["relevance"] *= DECAY
        self._alive &= columns["relevance"] >= LEAST
        kept = self._alive[columns["source"]] & self._alive[columns["target"]]
        for name in ("source", "target", "weight", "confidence"):
            columns[name] = columns[name][kept]
        self._prepare()
        self._save()

    def counts(self) -> tuple[int, int]:
        return int(self._alive.sum()), len(self._columns["source"])


_COLUMNS: Final = ("vectors", "relevance", "source", "target", "weight", "confidence")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
