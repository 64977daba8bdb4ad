"""A Zarr hierarchy in the heap of this process: a Zarr `MemoryStore`, gone when it is closed."""

from __future__ import annotations

from typing import Any, Self

from aesg.backends.blocks.container import Changes
from aesg.backends.blocks.store import BlockStore
from aesg.backends.zarr.arrays import ArrayContainer
from aesg.errors import CorruptionError, UnsupportedError
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    Integrity,
    Readers,
    ReaderView,
    SpaceReclaim,
    Writers,
)


class VolatileContainer(ArrayContainer):
    """Arrays in memory.

    Attributes:
        store: The Zarr store; `zarr.open_group(container.store, mode="r")` reads it.
    """

    capabilities = Capabilities(
        durability=Durability.NONE,
        atomicity=Atomicity.GRAPH,
        readers=Readers.SAME_PROCESS,
        reader_view=ReaderView.LATEST,
        writers=Writers.ONE_PROCESS,
        snapshots=False,
        space_reclaim=SpaceReclaim.ON_COMPACT,
        integrity=Integrity.CHECKSUMS,
        remote=False,
    )

    block_bytes = 1 << 16

    def __init__(self, url: str, codec: str | None) -> None:
        from zarr.core.buffer import default_buffer_prototype
        from zarr.storage import MemoryStore

        super().__init__(url, codec)
        self._buffer = default_buffer_prototype().buffer
        self._keys: dict[str, Any] = {}
        self.store = MemoryStore(self._keys)

    def _read(self, key: str, limit: int) -> bytes | None:
        found = self._keys.get(key)
        if found is None:
            return None
        if len(found) > limit:
            raise CorruptionError(f"{self._place(key)}: {len(found)} bytes, expected at most {limit}")
        return bytes(found.to_bytes())

    def commit(self, changes: Changes) -> None:
        self._check_all(changes)
        new = {key: self._buffer.from_bytes(content.to_bytes()) for key, content in self._writes(changes)}
        self._keys.update(new)
        for key in self._drops(changes):
            self._keys.pop(key, None)
        self._moved(changes)

    def reopen(self) -> Self:
        return self

    def close(self) -> None:
        self._keys.clear()


class VolatileStore(BlockStore):
    """A graph in such arrays."""

    def __reduce__(self) -> tuple[Any, ...]:
        raise UnsupportedError(f"{self.url}: an in-memory store cannot be pickled; copy it into a store on disk")
