"""What writing and reading handles of the memmap store share."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from aesg.backends.base import Store
from aesg.backends.lists import ListCache
from aesg.backends.memmap.directory import Opened
from aesg.backends.memmap.tables import MemmapTables
from aesg.backends.memmap.verify import find_violations
from aesg.backends.tables import Tables
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    Integrity,
    Progress,
    Readers,
    ReaderView,
    SpaceReclaim,
    Violation,
    Writers,
)

_LOOK: Final = 0.1
"""Seconds between two looks at the file of edges, each of which takes as long as a tenth of a hop."""


def promises(durability: Durability) -> Capabilities:
    """What a store of this backend promises when it is opened with that durability."""
    return Capabilities(
        durability=durability,
        atomicity=Atomicity.GRAPH,
        readers=Readers.OTHER_PROCESSES,
        reader_view=ReaderView.LATEST,
        writers=Writers.ONE_PROCESS,
        snapshots=False,
        space_reclaim=SpaceReclaim.ON_COMPACT,
        integrity=Integrity.STRUCTURE,
        remote=False,
    )


class MemmapStore(Store):
    """A handle on a directory.

    Attributes:
        directory: Where the store lies.
    """

    _opened: Opened

    def __init__(self, url: str, directory: Path, durability: Durability, cache_bytes: int, *, read_only: bool) -> None:
        super().__init__(url, read_only=read_only)
        self.directory = directory
        self._durability = durability
        self._lists = ListCache(cache_bytes)
        self._looked, self._edges_seen = 0.0, (0, 0)

    @property
    def uuid(self) -> str:
        return self._opened.uuid

    @property
    def generation(self) -> int:
        with self.reading():
            return self._opened.generation

    @property
    def capabilities(self) -> Capabilities:
        return promises(self._durability)

    def _committed(self) -> Tables:
        self._look_at_edges()
        return MemmapTables.committed(self._opened.files, self._opened.state, self._lists)

    def _look_at_edges(self) -> None:
        """Forget what was read if the file was written to: 0.3.0 does so too, which knows nothing of commits."""
        if (now := time.monotonic()) - self._looked > _LOOK:
            status = os.fstat(self._opened.files.edges.fd)
            found = status.st_ino, status.st_mtime_ns
            if found != self._edges_seen:
                self._lists.clear()
            self._looked, self._edges_seen = now, found

    def verify(self, *, deep: bool = True, progress: Progress | None = None) -> list[Violation]:
        with self.reading() as tables:
            assert isinstance(tables, MemmapTables)
            return find_violations(tables, deep=deep, progress=progress)

    def stats(self) -> dict[str, Any]:
        active = sum(int(np.count_nonzero(chunk["is_active"])) for chunk in self.nodes.scan(["is_active"]))
        with self.reading() as tables:
            used = [entry.stat().st_blocks * 512 for entry in self.directory.iterdir() if entry.is_file()]
            return {
                "nodes": tables.node_count,
                "active_nodes": active,
                "edges": tables.edge_slots - tables.removed_edges,
                "removed_edges": tables.removed_edges,
                "events": tables.event_count,
                "bytes_on_disk": sum(used),
            }
