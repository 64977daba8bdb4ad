"""What the containers of arrays share: which keys a commit writes, and what the bytes under a key mean."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aesg.backends.blocks.container import Block, BlockContainer, Changes, Column
from aesg.backends.zarr import codecs, documents
from aesg.backends.zarr.codecs import Content
from aesg.backends.zarr.documents import Layout
from aesg.errors import CorruptionError, InvalidInputError
from aesg.records import JSON


class ArrayContainer(BlockContainer):
    """A container whose blocks are the chunks of Zarr arrays.

    Args:
        url: For messages.
        codec: The codec of a new store; an existing one keeps its own, and has to have this one if it is not None.
    """

    block_bytes = 1 << 20
    log_blocks = 128
    default = Layout("none")
    """What a new store is like unless asked otherwise."""

    def __init__(self, url: str, codec: str | None) -> None:
        self.url = url
        self._wanted_codec = codec
        self._head: dict[str, JSON] | None = None
        self._layout = self._new_layout()
        self._rows: dict[str, int] = {}
        """Rows of the arrays whose documents were looked at, by column."""

    def _new_layout(self) -> Layout:
        return replace(self.default, codec=self._wanted_codec or self.default.codec)

    # What a place for keys fills in.

    @abstractmethod
    def _read(self, key: str, limit: int) -> bytes | None:
        """What a key holds; None when there is no such key.

        Raises:
            CorruptionError: It holds more than `limit` bytes.
        """

    def _place(self, key: str) -> str:
        """Where a key is, for messages."""
        return f"{self.url}: {key}"

    # Reading

    def head(self) -> dict[str, JSON] | None:
        return self._head

    def get(self, column: Column, number: int, rows: int) -> Block | None:
        if not self._check(column, number * column.block_rows + rows):
            return None
        key = documents.chunk_key(column, number, self._layout)
        data = self._read(key, codecs.most_bytes(column))
        return None if data is None else codecs.decode(column, data, rows, self._layout.codec, self._place(key))

    def _load_root(self) -> None:
        """Move the view to what the root's document says."""
        data = self._read(documents.ROOT, documents.DOCUMENT_LIMIT)
        if data is None:
            self._head, self._layout = None, self._new_layout()
            return
        self._head, self._layout = documents.read_root(data, self._place(documents.ROOT))
        if self._wanted_codec not in (None, self._layout.codec):
            raise InvalidInputError(
                f"{self.url}: the store's codec is {self._layout.codec}, not {self._wanted_codec}: it keeps the one "
                f"that it was created with; leave the option out, or copy the store into a new one"
            )

    def _check(self, column: Column, rows: int) -> bool:
        """Whether a column's array has so many rows; its document is compared with the column.

        Raises:
            CorruptionError: There is no such array, or it is not the column's.
        """
        if self._rows.get(column.name, -1) >= rows:
            return True
        found = self._array_rows(column)
        if found is None:
            raise CorruptionError(f"{self._place(documents.document_key(column.name))}: missing, expected {rows} rows")
        self._rows[column.name] = found
        return found >= rows

    def _array_rows(self, column: Column) -> int | None:
        key = documents.document_key(column.name)
        data = self._read(key, documents.DOCUMENT_LIMIT)
        return None if data is None else documents.read_array(data, column, self._layout, self._place(key))

    # Writing

    def _check_all(self, changes: Changes) -> None:
        """Before the first commit: look at the documents of all arrays, some of which it will write."""
        if self._head is not None:
            for column in changes.columns.values():
                self._check(column, 0)

    def _writes(self, changes: Changes, durability: str = "") -> Iterator[tuple[str, Content]]:
        """Every key that a commit writes and what it is to hold, the root's document last; reads nothing."""
        if self._head is None:
            for name in documents.groups_of(changes.columns):
                yield documents.document_key(name), codecs.whole(documents.group_document(name))
        for name, column in changes.columns.items():
            rows = changes.lengths[name]
            if self._rows.get(name) != rows:
                document = documents.array_document(column, rows, self._layout)
                yield documents.document_key(name), codecs.whole(document)
        for (name, number), block in changes.puts.items():
            column = changes.columns[name]
            yield documents.chunk_key(column, number, self._layout), codecs.encode(column, block, self._layout.codec)
        yield (
            documents.ROOT,
            codecs.whole(documents.root_document(changes.head, self._next_layout(changes, durability))),
        )

    def _drops(self, changes: Changes) -> list[str]:
        """Every key that a commit removes."""
        return [documents.chunk_key(changes.columns[name], number, self._layout) for name, number in changes.drops]

    def _next_layout(self, changes: Changes, durability: str = "") -> Layout:
        chunks = sum(column.blocks(changes.lengths[name]) for name, column in changes.columns.items())
        return replace(self._layout, durability=durability, chunks=chunks)

    def _moved(self, changes: Changes, durability: str = "") -> None:
        """The commit happened: the view is there."""
        self._layout = self._next_layout(changes, durability)
        self._head = changes.head
        self._rows = dict(changes.lengths)
        self.version += 1

    def stats(self) -> dict[str, Any]:
        return {"bytes_on_disk": 0, "codec": self._layout.codec, "chunks": self._layout.chunks}
