"""Checking a store in any state: whatever is wrong with it, be it that it cannot be opened, is something found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from aesg.backends import registry
from aesg.engine.index import checking
from aesg.errors import AESGError, CorruptionError
from aesg.protocols import GraphStore, Progress, Violation


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check came to.

    Attributes:
        url: The store's.
        deep: Whether everything was looked at.
        counts: "nodes", "edges", "events": how many; empty where nobody can tell.
        violations: What is wrong; empty when all is well.
    """

    url: str
    deep: bool
    counts: dict[str, int]
    violations: list[Violation]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "url": self.url,
            "deep": self.deep,
            "checked": self.counts,
            "violations": [asdict(violation) for violation in self.violations],
        }


def check(url: str, *, deep: bool = False, progress: Progress | None = None) -> Checked:
    """Check a store, which is opened for reading only.

    Args:
        url: Where it lies.
        deep: See `GraphStore.verify`; the seed index beside the store is compared with it too.
        progress: Told how far it is.

    Raises:
        AESGError: There is no store, or it may not be opened: nothing can be said of it.
    """
    try:
        store = registry.open(url, mode="r")
    except CorruptionError as error:
        detail = f"{error}. It cannot be opened; `aesg repair` salvages what is sound into a new store"
        return Checked(str(url), deep, {}, [Violation("cannot-open", str(url), detail)])
    with store:
        counts, found = _checked(store, deep, progress)
        return Checked(store.url, deep, counts, found)


def _checked(store: GraphStore, deep: bool, progress: Progress | None) -> tuple[dict[str, int], list[Violation]]:
    counts: dict[str, int] = {}
    found: list[Violation] = []
    try:
        counts = {"nodes": len(store.nodes), "edges": len(store.edges), "events": len(store.events)}
        found = store.verify(deep=deep, progress=progress)
        _, folder = registry.index_of(store)
        if deep and folder is not None:
            found = [*found, *checking.find_violations(store, folder, progress)]
    except AESGError as error:
        found = [*found, Violation("cannot-read", store.url, str(error))]
    except Exception as error:  # a backend that takes what is damaged for what it wrote may raise anything
        found = [*found, Violation("cannot-read", store.url, f"{type(error).__name__}: {error}")]
    return counts, found
