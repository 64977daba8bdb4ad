"""Repair: whatever is sound of a damaged store goes into a new one; the damaged one stays as it is."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from aesg.backends import registry
from aesg.backends.blocks.salvage import BlockWreck, Opened
from aesg.backends.blocks.store import BlockStore
from aesg.backends.salvage import Loss, Wreck
from aesg.errors import CorruptionError, MigrationError
from aesg.migration.copying import GraphSource, copy
from aesg.migration.digest import ContentDigest, digest_of
from aesg.migration.publishing import Unfinished
from aesg.migration.salvaging import Salvaged
from aesg.migration.steady import open_for_copy
from aesg.migration.wrecks import ReadWreck
from aesg.protocols import Progress


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair salvaged, and what not.

    Attributes:
        source: The damaged store.
        destination: The new one.
        digest: Of what the new one holds.
        nodes: Nodes salvaged.
        edges: Edges salvaged.
        events: Events salvaged.
        lost: "nodes", "edges", "events": how many were not.
        reasons: The same by reason.
        reset: Field → of how many nodes or edges that were salvaged its value was lost; they have the starting value.
        places: What was found damaged, and where.
        further: How many more places there are.
    """

    source: str
    destination: str
    digest: str
    nodes: int
    edges: int
    events: int
    lost: dict[str, int]
    reasons: dict[str, int]
    reset: dict[str, int]
    places: list[Loss] = field(default_factory=list)
    further: int = 0

    @property
    def whole(self) -> bool:
        """Whether nothing was lost."""
        commits = any(loss.part in ("attrs", "commits") for loss in self.places)
        return not (any(self.lost.values()) or self.reset or commits)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"whole": self.whole}


def repair(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    vector_dim: int | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Copy what is sound of a store, in whatever state, into a new one of any backend.

    The damaged store is only read. Killed at any moment, there is no new store, or the whole of it.

    Args:
        source: The damaged store.
        destination: A local path, or its URL, where nothing is yet.
        vector_dim: Length of the vectors, for a store that no longer tells.
        progress: Told how far it is.

    Raises:
        CorruptionError: There is nothing left that says what the rest means.
        MigrationError: There is something at the destination already.
    """
    wreck = salvage(source, vector_dim=vector_dim)
    try:
        with Unfinished(destination) as made:
            made.check_free()
            found = Salvaged(wreck, progress)
            made.begin({"repair": wreck.url})
            seen = ContentDigest(found.vector_dim)
            with open_for_copy(made.url, "a", found.vector_dim) as store:
                copy(found, store, progress, [seen])
            given = seen.finish(found.attrs)
            with open_for_copy(made.url) as store:
                digest = digest_of(GraphSource(store), progress, "reading back")
            if digest != given:
                raise MigrationError(f"{made.final_url}: what was written is read back as {digest}, not as {given}")
            made.publish()
    finally:
        wreck.close()
    return Repaired(
        source=wreck.url,
        destination=made.final_url,
        digest=str(digest),
        nodes=found.node_count,
        edges=found.edge_count,
        events=found.event_count,
        lost=found.lost,
        reasons=dict(found.reasons.most_common()),
        reset=dict(sorted(found.reset.items())),
        places=wreck.losses.places,
        further=wreck.losses.further,
    )


def salvage(url: str | os.PathLike[str], *, vector_dim: int | None = None) -> Wreck:
    """What can be read of a store, in whatever state. To be closed.

    Raises:
        CorruptionError: There is nothing left that says what the rest means.
    """
    parsed = registry.resolve(url)
    backend = registry.backend(parsed.scheme)
    if backend.salvage is not None:
        options = registry.options_of(backend, parsed, {})
        return backend.salvage(parsed, vector_dim, options)
    try:
        store = registry.open(url, mode="r")
    except CorruptionError as error:
        raise CorruptionError(
            f"{error}. The backend {parsed.scheme!r} salvages only stores that can be opened"
        ) from error
    if isinstance(store, BlockStore):
        return BlockWreck(store.url, Opened(store.container))
    return ReadWreck(store)
