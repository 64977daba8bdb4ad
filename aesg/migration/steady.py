"""Reading a store from end to end as of one commit, whoever writes to it meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aesg.backends import registry
from aesg.backends.files import os_errors
from aesg.backends.url import StoreURL
from aesg.errors import AESGError, ConflictError, MigrationError
from aesg.protocols import Graph, GraphStore
from aesg.records import JSON

CACHE_BYTES: Final = 1 << 25
"""Cache of a store that is read from end to end: nothing is read twice."""
UNFINISHED: Final = "aesg.unfinished"
"""Attribute of a store that a copy is being made into in place; its last commit takes it away."""


def open_for_copy(
    url: str | os.PathLike[str], mode: registry.Mode = "r", vector_dim: int | None = None, *, unfinished: bool = False
) -> GraphStore:
    """Open a store that is read or written from end to end, once: with a small cache where the URL names none.

    Args:
        url: Which.
        mode: As of `aesg.open`.
        vector_dim: As of `aesg.open`.
        unfinished: Nobody else sees it, and its files will be synced: its commits need not survive a power loss.
    """
    parsed = registry.resolve(url)
    backend = registry.backend(parsed.scheme)
    has_cache = "cache_bytes" in backend.options and "cache_bytes" not in parsed.options
    options: dict[str, Any] = {"cache_bytes": CACHE_BYTES} if has_cache else {}
    return registry.open(
        str(parsed), mode, vector_dim=vector_dim, **options, **(backend.unfinished if unfinished else {})
    )


@dataclass(frozen=True)
class Steady:
    """A graph that stays as it is, or says that it did not.

    Attributes:
        store: The store.
        graph: A snapshot of it, or itself where it has none.
        identity: What tells its contents from others': JSON.
    """

    store: GraphStore
    graph: Graph
    identity: dict[str, JSON]

    def check(self) -> None:
        """See to it that nobody has written to it.

        Raises:
            ConflictError: Somebody has.
        """
        if self.graph is self.store and identity_of(self.store) != self.identity:
            raise ConflictError(
                f"{self.store.url}: it was written to while it was read, and this backend has no snapshots; "
                f"close the writer and begin again"
            )


@contextmanager
def steady(store: GraphStore) -> Iterator[Steady]:
    """Read a store as it is now: a snapshot where it has them; elsewhere a change is noticed, see `Steady.check`.

    Raises:
        MigrationError: The store is a copy that was not finished.
        ConflictError: Reading failed, and it was written to meanwhile, which is the likelier reason.
    """
    if UNFINISHED in store.attrs:
        raise MigrationError(f"{store.url}: a copy into this store was not finished; migrate again with resume=True")
    if store.capabilities.snapshots:
        with store.snapshot() as snapshot:
            yield Steady(store, snapshot, identity_of(store))
    else:
        held = Steady(store, store, identity_of(store))
        try:
            yield held
        except AESGError:
            held.check()
            raise


def identity_of(store: GraphStore) -> dict[str, JSON]:
    """Which store it is, and which of its states."""
    found: dict[str, JSON] = {
        "uuid": store.uuid,
        "generation": store.generation,
        "nodes": len(store.nodes),
        "edges": len(store.edges),
        "events": len(store.events),
    }
    if not store.generation and not store.capabilities.snapshots:
        # Directories that only 0.3.0 has written to have no generation: their files have to tell.
        found["files"] = _stamps(store.url)
    return found


def _stamps(url: str) -> dict[str, JSON]:
    parsed = StoreURL.parse(url)
    path = Path(parsed.path)
    if parsed.authority or not parsed.path or not path.is_dir():
        return {}
    with os_errors("looking at", path):
        found: list[tuple[str, Any]] = [(entry.name, entry.stat()) for entry in os.scandir(path) if entry.is_file()]
    return {name: [status.st_size, status.st_mtime_ns] for name, status in sorted(found)}
