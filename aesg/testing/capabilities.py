"""Capabilities: what is declared is demonstrated, what is not is refused."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, get_type_hints

import numpy as np
import pytest

from aesg.backends import registry
from aesg.errors import ConflictError, InvalidInputError, NotFoundError, UnsupportedError
from aesg.protocols import Capabilities, GraphStore
from aesg.records import NodeBatch
from aesg.testing.base import ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.graphs import assert_same, batch, contents, fill
from aesg.testing.target import DIM, Target


def levels() -> dict[str, list[Any]]:
    """Every capability and its levels, from the least to the most."""
    hints = get_type_hints(Capabilities)
    return {
        field.name: [False, True] if hints[field.name] is bool else list(hints[field.name])
        for field in fields(Capabilities)
    }


class CapabilityClauses(ClauseGroup):
    """Declarations, `require`, and what is found in no other group."""

    @clause("capabilities.declared")
    def test_capabilities_are_levels(self, store: GraphStore, target: Target) -> None:
        """Capabilities are known levels, the same for every store of these options, and JSON."""
        declared = store.capabilities
        assert isinstance(declared, Capabilities)
        for name, known in levels().items():
            assert getattr(declared, name) in known
            assert type(getattr(declared, name)) is type(known[0]), name
        json.dumps(declared.as_dict())
        assert declared == target.capabilities

    @clause("capabilities.known-before-opening")
    def test_what_is_said_before_opening_is_what_is_opened(self, store: GraphStore, target: Target) -> None:
        """What the backend says before a store is opened is what the opened store declares."""
        backend, url = registry.backend(target.scheme), registry.resolve(store.url)
        if backend.promises is None:
            pytest.skip("the backend says nothing before a store is opened")
        options = {name: backend.options[name].parse(value) for name, value in url.options.items()}
        said = backend.promises(options)
        if target.has_files:
            assert said == store.capabilities
        else:  # that it has no path, and will not last, is not among its options: it may only turn out to be less
            assert said.missing(store.capabilities.as_dict()) == []

    @clause("capabilities.require.met")
    def test_require_admits_what_is_declared(self, stores: Stores, target: Target) -> None:
        """`require` admits every level up to the declared one, as a member, by its name in any case, or as a bool."""
        declared = target.capabilities
        for name, known in levels().items():
            for level in known[: known.index(getattr(declared, name)) + 1]:
                for said in {level} if isinstance(level, bool) else {level, level.name, level.name.lower()}:
                    assert declared.missing({name: said}) == []
        everything = declared.as_dict()
        with stores.open(stores.folder(), vector_dim=DIM, require=everything) as store:
            assert store.capabilities == declared

    @clause("capabilities.require.refused")
    def test_require_refuses_what_is_not_declared(self, stores: Stores, target: Target) -> None:
        """`require` refuses every level above the declared one with a reason, and leaves nothing open."""
        folder, refused = stores.folder(), {}
        for name, known in levels().items():
            above = known[known.index(getattr(target.capabilities, name)) + 1 :]
            for level in above:
                said = str(level).lower() if isinstance(level, bool) else level.name.lower()
                refused[name] = level
                with pytest.raises(UnsupportedError, match=f"{name} {said} was required, this store gives") as caught:
                    stores.open(folder, vector_dim=DIM, require={name: level})
                assert target.store_url(folder) in str(caught.value)
        if refused:
            with pytest.raises(UnsupportedError) as caught:
                stores.open(folder, vector_dim=DIM, require=refused)
            assert all(f"{name} " in str(caught.value) for name in refused) or not target.has_files
        nonsense: list[dict[str, Any]] = [
            {"colour": 1}, {"durability": "eternal"}, {"snapshots": "yes"}, {"durability": []},
        ]  # fmt: skip
        for wrong in nonsense:
            with pytest.raises(InvalidInputError):
                stores.open(folder, vector_dim=DIM, require=wrong)
        stores.open(folder, vector_dim=DIM)

    @clause("capabilities.unknown-option")
    def test_an_unknown_option_is_refused(self, stores: Stores) -> None:
        """An option that the backend does not have is refused, and nothing is created."""
        folder = stores.folder()
        with pytest.raises(InvalidInputError, match="colour"):
            stores.open(folder, vector_dim=DIM, colour="red")
        assert list(folder.iterdir()) == []

    @clause("capabilities.durability.none", unless={"durability": "process_crash"})
    def test_what_does_not_last_is_not_there_again(self, stores: Stores) -> None:
        """A store that declares no durability is empty whenever it is opened, and there is none to be read."""
        with stores.new() as store:
            fill(store)
        with pytest.raises((UnsupportedError, NotFoundError)):
            stores.open(store.url, mode="r")
        with stores.open(store.url, vector_dim=DIM) as again:
            assert len(again.nodes) == 0
            assert again.uuid != store.uuid

    @clause("capabilities.space.on-compact", needs={"space_reclaim": "on_compact", "durability": "process_crash"})
    def test_compaction_gives_space_back(self, stores: Stores, target: Target) -> None:
        """Compaction gives the space of what was dropped back, at the latest when the store is closed."""
        folder, rows = stores.folder(), 20_000
        with stores.new(folder, vector_dim=32) as store, store.transaction() as graph:
            graph.nodes.append(batch(rows, dim=32))
            graph.edges.append(np.arange(rows), np.roll(np.arange(rows), 1))
        full = sum(path.stat().st_blocks for path in target.files(folder))
        with stores.open(folder) as store:
            store.nodes.write(np.arange(100, rows), is_active=0)
            store.compact()
            assert len(store.nodes) == 100
        left = sum(path.stat().st_blocks for path in target.files(folder))
        assert left < full / 4, f"{left * 512} of {full * 512} bytes are still taken"

    @clause("capabilities.space.continuous", needs={"space_reclaim": "continuous", "durability": "process_crash"})
    def test_space_is_given_back_all_the_time(self, stores: Stores, target: Target) -> None:
        """What is overwritten and removed again and again takes no more and more space."""
        folder, sizes = stores.folder(), []
        store = stores.new(folder)
        store.nodes.append(NodeBatch(np.ones((5000, DIM))))
        for turn in range(60):
            with store.transaction() as graph:
                graph.nodes.write(np.arange(5000), age=turn, vector=np.full((5000, DIM), turn))
                refs = graph.edges.append(np.arange(5000), np.arange(5000))
                graph.edges.remove(refs)
            store.flush()
            sizes.append(sum(path.stat().st_blocks for path in target.files(folder)))
        assert sizes[-1] < 2 * sizes[9], f"from {sizes[9] * 512} to {sizes[-1] * 512} bytes"

    @clause("capabilities.writers.many", needs={"writers": "many"})
    def test_many_writers_and_the_first_one_wins(self, stores: Stores) -> None:
        """Several may have it open for writing; whoever commits second on an older state gets a ConflictError."""
        one = stores.new()
        fill(one)
        other = stores.open(one.url)
        first, second = one.transaction(), other.transaction()
        first.nodes.write([0], age=1)
        second.nodes.write([0], age=2)
        first.commit()
        wanted = contents(one)
        with pytest.raises(ConflictError):
            second.commit()
        other.refresh()
        assert_same(contents(other), wanted)
        other.attrs["mine"] = 1
        one.refresh()
        assert one.attrs["mine"] == 1
        assert_same(contents(one), contents(other))
