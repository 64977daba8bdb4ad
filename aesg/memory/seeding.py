"""The seed index of a store, as the store's URL asks for it."""

from __future__ import annotations

from typing import cast

from aesg.backends import registry
from aesg.engine.index.owner import Kind, SeedIndex
from aesg.protocols import GraphStore


def seed_index(store: GraphStore) -> SeedIndex:
    """The index of an opened store, kept beside it; `?index=` says whether there is one. Close it before the store."""
    kind, folder = registry.index_of(store)
    return SeedIndex(store, cast("Kind", kind), folder)
