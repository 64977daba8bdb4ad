"""What all groups of clauses have in common: the fixtures, and that a clause is left out where it does not apply."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aesg.backends import registry
from aesg.backends.registry import Mode
from aesg.protocols import GraphStore
from aesg.testing.clauses import Clause, clauses_of
from aesg.testing.graphs import fill
from aesg.testing.target import DIM, Target

NOT_DECLARED = "not declared: "
"""How the reason of a skip begins when the clause is for stores of other capabilities."""


class Stores:
    """Makes and opens stores of a target; what was opened is closed after the test.

    Attributes:
        target: Whose.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        self.target = target
        self._folder = folder
        self._folders = 0
        self._opened: list[GraphStore] = []

    def folder(self) -> Path:
        """A new, empty folder for one store."""
        self._folders += 1
        made = self._folder / str(self._folders)
        made.mkdir()
        return made

    def new(self, folder: Path | None = None, *, vector_dim: int = DIM, **options: Any) -> GraphStore:
        """A new store, in a folder of its own unless one is given."""
        return self.keep(self.target.create(folder or self.folder(), vector_dim=vector_dim, **options))

    def open(self, where: Path | str, mode: Mode = "a", **kwargs: Any) -> GraphStore:
        """Open a store by its folder or its URL; see `aesg.open`."""
        url = self.target.store_url(where) if isinstance(where, Path) else where
        return self.keep(registry.open(url, mode, **kwargs))

    def keep(self, store: GraphStore) -> GraphStore:
        """Have a store closed after the test."""
        self._opened.append(store)
        return store

    def close(self) -> None:
        """Close all of them."""
        for store in reversed(self._opened):
            store.close()


class ClauseGroup:
    """Base of every group of clauses; a group is a mixin of `Conformance`."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        clauses_of(cls)  # no name twice

    @pytest.fixture(autouse=True)
    def _applies(self, request: pytest.FixtureRequest, target: Target) -> None:
        its = getattr(request.function, "clause", None)
        if isinstance(its, Clause) and (reason := its.not_declared(target.capabilities)):
            pytest.skip(NOT_DECLARED + reason)

    @pytest.fixture
    def folder(self, target: Target, tmp_path: Path) -> Iterator[Path]:
        """An empty folder, where the target wants its stores."""
        if target.base is None:
            yield tmp_path
            return
        target.base.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix="aesg-", dir=target.base))
        yield made
        shutil.rmtree(made)

    @pytest.fixture
    def stores(self, target: Target, folder: Path) -> Iterator[Stores]:
        """Makes and opens stores of the target."""
        made = Stores(target, folder)
        yield made
        made.close()

    @pytest.fixture
    def empty(self, stores: Stores) -> GraphStore:
        """A new store."""
        return stores.new()

    @pytest.fixture
    def store(self, empty: GraphStore) -> GraphStore:
        """A store with a bit of everything, see `graphs.fill`."""
        fill(empty)
        return empty
