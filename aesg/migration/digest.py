"""The content digest: what is in a store, however and wherever it is kept, in 32 bytes.

`aesg1:` and 64 hexadecimal digits. Two stores have the same digest if and only if they hold the same vector_dim, nodes
in the same order with the same bits in all fields, edges in the same order, events and attributes (but for the chance
of a collision of SHA-256). docs/digest.md is the definition; it does not change. Another would be called `aesg2:`.

Every column is cut into leaves of 1 MiB, which all cores hash at once; a column's hash is that of its leaves' hashes,
the digest that of a small text which lists the columns'.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.migration.copying import Events, GraphSource, Source
from aesg.migration.steady import open_for_copy, steady
from aesg.protocols import GraphStore, Progress
from aesg.records import JSON, Columns
from aesg.threads import cores, in_threads

if TYPE_CHECKING:
    from hashlib import _Hash

VERSION: Final = "aesg1"
LEAF: Final = 1 << 20
_EVENT_FIELDS: Final = {name: records.EVENT_DTYPE[name] for name in records.EVENT_DTYPE.names or ()}
_WORTH_THREADS: Final = 1 << 18
"""Bytes from which it is worth waking other threads."""

_Job: TypeAlias = "tuple[_Hash, memoryview]"


class ContentDigest:
    """A digest in the making: a tap of a copy, or fed by itself. The size of the pieces does not matter."""

    def __init__(self, vector_dim: int) -> None:
        self._vector_dim = vector_dim
        self._columns = {
            kind: {name: _ColumnHash(dtype) for name, dtype in fields.items()}
            for kind, fields in (
                ("nodes", records.NODE_FIELDS),
                ("edges", records.EDGE_FIELDS),
                ("events", _EVENT_FIELDS),
            )
        }
        self._counts = dict.fromkeys(self._columns, 0)

    def nodes(self, columns: Columns) -> None:
        """Take in nodes."""
        self._take("nodes", columns)

    def edges(self, columns: Columns) -> None:
        """Take in edges."""
        self._take("edges", columns)

    def events(self, events: Events) -> None:
        """Take in events."""
        self._take("events", {name: events[name] for name in _EVENT_FIELDS})

    def _take(self, kind: str, columns: Columns) -> None:
        hashes = self._columns[kind]
        self._counts[kind] += len(columns[next(iter(hashes))])
        _hash([job for name, column in hashes.items() for job in column.jobs(columns[name])])

    def finish(self, attrs: Mapping[str, JSON]) -> str:
        """The digest of everything that was taken in and these attributes."""
        lines = [VERSION, f"vector_dim {self._vector_dim}", *(f"{kind} {n}" for kind, n in self._counts.items())]
        for kind, columns in self._columns.items():
            lines += [f"{kind}/{name} {column.dtype.str} {column.finish()}" for name, column in columns.items()]
        lines.append(f"attrs {hashlib.sha256(canonical_json(attrs)).hexdigest()}")
        text = "".join(line + "\n" for line in lines)
        return f"{VERSION}:{hashlib.sha256(text.encode('ascii')).hexdigest()}"


class _ColumnHash:
    """The hash of one column.

    Attributes:
        dtype: What its numbers are.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self._leaves = hashlib.sha256()  # of the hashes of whole leaves
        self._open: list[_Hash] = []  # leaves that may still be worked on; the last one may not be full
        self._room = 0  # bytes that the last one lacks

    def jobs(self, values: npt.NDArray[Any]) -> list[_Job]:
        """What to hash of more rows: independent of each other, but all to be done before the next are given."""
        for leaf in self._open[: len(self._open) - bool(self._room)]:
            self._leaves.update(leaf.digest())
        del self._open[: len(self._open) - bool(self._room)]
        if not values.size:
            return []
        data = np.ascontiguousarray(values, self.dtype).data.cast("B")
        jobs, at = [], 0
        while at < len(data):
            if not self._room:
                self._open.append(hashlib.sha256())
                self._room = LEAF
            taken = min(self._room, len(data) - at)
            jobs.append((self._open[-1], data[at : at + taken]))
            self._room -= taken
            at += taken
        return jobs

    def finish(self) -> str:
        for leaf in self._open:
            self._leaves.update(leaf.digest())
        self._open, self._room = [], 0
        return self._leaves.hexdigest()


def _hash(jobs: list[_Job]) -> None:
    """Do what columns ask for, by all cores when it is much."""
    if sum(len(data) for _, data in jobs) < _WORTH_THREADS:
        _work(jobs)
        return
    shares: list[list[_Job]] = [[] for _ in range(cores())]
    sizes = [0] * len(shares)
    for job in sorted(jobs, key=lambda job: -len(job[1])):
        least = sizes.index(min(sizes))
        shares[least].append(job)
        sizes[least] += len(job[1])
    in_threads(_work, shares)


def _work(jobs: Sequence[_Job]) -> None:
    for leaf, data in jobs:
        leaf.update(data)


def digest(store: str | os.PathLike[str] | GraphStore, progress: Progress | None = None) -> str:
    """The content digest of a store, by URL or opened.

    Args:
        store: It is only read.
        progress: Told how far it is.

    Raises:
        NotFoundError: There is none.
        ConflictError: It was written to meanwhile, and has no snapshots.
        MigrationError: It is a copy that was not finished.
    """
    if not isinstance(store, GraphStore):
        with open_for_copy(store) as opened:
            return digest(opened, progress)
    with steady(store) as held:
        found = digest_of(GraphSource(held.graph, store.url), progress)
        held.check()
    return found


def canonical_json(attrs: Mapping[str, JSON]) -> bytes:
    """One spelling of the attributes: sorted names, no spaces, ASCII."""
    return json.dumps(dict(attrs), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest_of(source: Source, progress: Progress | None = None, doing: str = "hashing") -> str:
    """The content digest of a source that nobody changes meanwhile.

    Args:
        source: What to read from end to end.
        progress: Told how many nodes, edges and events were hashed.
        doing: What it is told.
    """
    made = ContentDigest(source.vector_dim)
    done, of = 0, source.node_count + source.edge_count + source.event_count

    def tell(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(doing, done, of)

    for columns in source.nodes():
        made.nodes(columns)
        tell(len(columns["id"]))
    for columns in source.edges():
        made.edges(columns)
        tell(len(columns["weight"]))
    for events in source.events():
        made.events(events)
        tell(len(events))
    return made.finish(source.attrs)
