"""What is sound of a damaged directory: records, journal, the log of events and the attributes, each by itself.

Records have no checksums: nobody knows of a number that was changed into another one. But a record is taken by itself.
Edges name their ends by id, so lists that are cut, cyclic or lead outside lose nothing, they are made anew. What a
killed writer's journal says is laid over the files in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.files import os_errors, writers_kept_out
from aesg.backends.journal import entries_left
from aesg.backends.memmap import redo
from aesg.backends.memmap.directory import JOURNAL, LOCK, STORE, read_store_json
from aesg.backends.memmap.format import (
    EDGE_DTYPE,
    EDGES,
    END,
    EVENTS,
    META,
    NODES,
    REMOVED,
    Meta,
    node_dtype,
    read_meta,
)
from aesg.backends.memmap.tables import State
from aesg.backends.salvage import Known, Losses
from aesg.errors import AESGError, CorruptionError, InvalidInputError, NotFoundError
from aesg.records import EVENT_DTYPE, JSON, Columns, Ids, Rows

_CHUNK: Final = 1 << 16
_PARTS: Final = {NODES: "nodes", EDGES: "edges", EVENTS: "events"}


class Image:
    """A file as it would be if a journal were carried out: changes are in this process's memory only.

    Args:
        path: The file; one that cannot be read is empty.
        item: Bytes of a record.
    """

    def __init__(self, path: Path, item: int) -> None:
        self.item = item
        self._file: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._rest = bytearray()
        self._holes: list[tuple[int, int]] = []
        if path.is_file() and path.stat().st_size:
            with os_errors("reading", path):
                self._file = np.memmap(path, np.uint8, "c")

    @property
    def count(self) -> int:
        """Whole records."""
        return (len(self._file) + len(self._rest)) // self.item

    def put(self, offset: int, data: memoryview) -> None:
        """Overwrite bytes, or append them; what lies between the end and them is not known."""
        end = len(self._file) + len(self._rest)
        if offset > end - end % self.item:
            self._holes.append((end - end % self.item, offset))
        inside = max(0, min(len(self._file) - offset, len(data)))
        self._file[offset : offset + inside] = np.frombuffer(data[:inside], np.uint8)
        if inside < len(data):
            at = offset + inside - len(self._file)
            self._rest.extend(bytes(max(0, at + len(data) - inside - len(self._rest))))
            self._rest[at : at + len(data) - inside] = data[inside:]

    def put_fields(self, rows: Rows, offset: int, width: int, data: memoryview) -> None:
        """Overwrite `width` bytes at `offset` in records, those that are there."""
        values = np.frombuffer(data, f"V{width}")
        there = rows < self.count
        rows, values = rows[there], values[there]
        whole = len(self._file) // self.item
        mapped = np.flatnonzero(rows < whole)
        if len(mapped):
            np.ndarray((whole,), f"V{width}", self._file, offset, (self.item,))[rows[mapped]] = values[mapped]
        for at in np.flatnonzero(rows >= whole).tolist():
            self.put(int(rows[at]) * self.item + offset, memoryview(values[at].tobytes()))

    def read(self, start: int, stop: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Whole records start:stop, copied."""
        low, high, size = start * self.item, stop * self.item, len(self._file)
        parts = [self._file[low : min(high, size)]]
        if high > size:
            parts.append(np.frombuffer(bytes(self._rest[max(0, low - size) : high - size]), np.uint8))
        return np.concatenate(parts).view(dtype)

    def is_blank(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of the records start:stop are zero all over."""
        return np.asarray(~self.read(start, stop, np.dtype(np.uint8)).reshape(stop - start, self.item).any(axis=1))

    def known(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of the records start:stop are known."""
        found = np.ones(stop - start, np.bool_)
        for low, high in self._holes:
            found[max(0, low // self.item - start) : max(0, -(-high // self.item) - start)] = False
        return found


class MemmapWreck:
    """`Wreck` of a directory of this format, by 0.3.0 or by us.

    Args:
        url: Where it lies.
        directory: The same as a path.
        vector_dim: Length of the vectors, where no file tells any more.

    Raises:
        CorruptionError: Nobody knows how long the vectors are.
    """

    def __init__(self, url: str, directory: Path, vector_dim: int | None) -> None:
        self.url = url
        self.losses = Losses()
        self._directory = directory
        if not directory.is_dir():
            raise NotFoundError(f"{url}: there is no store")
        self._hold = writers_kept_out(directory / LOCK, url)
        try:
            self._take_in(vector_dim)
        except BaseException:
            self.close()
            raise

    def _take_in(self, vector_dim: int | None) -> None:
        directory = self._directory
        meta, body = self._meta(), self._body()
        self.vector_dim = self._dim(meta, body, vector_dim)
        items = {NODES: node_dtype(self.vector_dim).itemsize, EDGES: EDGE_DTYPE.itemsize, EVENTS: EVENT_DTYPE.itemsize}
        self._images = {name: Image(directory / name, item) for name, item in items.items()}
        state = self._carried_out(body)
        self.attrs: Mapping[str, JSON] = state.attrs if state is not None else (body or {}).get("attrs", {})
        said = self._said(meta, body, state)
        counts = {name: min(said[name], image.count) for name, image in self._images.items()}
        self.node_rows, self.edge_slots, self.event_rows = (counts[name] for name in (NODES, EDGES, EVENTS))
        self.missing: Mapping[str, int] = {_PARTS[name]: said[name] - counts[name] for name in said}
        for name, part in _PARTS.items():
            if self.missing[part]:
                self.losses.add(
                    part, str(directory / name), f"{said[name]} records were there, the file ends after {counts[name]}"
                )
        self._ids, self._by_id = self._sorted_ids()
        self._look_at_lists()

    # What says how much there is

    def _meta(self) -> Meta | None:
        try:
            return read_meta(self._directory / META)
        except (CorruptionError, FileNotFoundError) as error:
            self.losses.add("derived", str(self._directory / META), f"{error or 'missing'}; records are counted")
            return None

    def _body(self) -> dict[str, Any] | None:
        try:
            return read_store_json(self._directory)
        except AESGError as error:
            self.losses.add("attrs", str(self._directory / STORE), f"{error}; what it held is lost")
            return None

    def _dim(self, meta: Meta | None, body: dict[str, Any] | None, given: int | None) -> int:
        # store.json has a checksum, meta.npy has none.
        found = body["vector_dim"] if body is not None else meta.vector_dim if meta is not None else given
        if found is None:
            raise CorruptionError(
                f"{self.url}: neither {META} nor {STORE} tells how long the vectors are; say so: vector_dim=…"
            )
        if given not in (None, found):
            raise InvalidInputError(f"{self.url}: the store holds vectors of {found} numbers, not {given}")
        return int(found)

    def _carried_out(self, body: dict[str, Any] | None) -> State | None:
        """Lay over the files what a journal says; the state that it ends with, None where there is none to go by."""
        path = self._directory / JOURNAL
        if not path.exists():
            return None
        state, reached = None, -1
        for generation, payload in entries_left(path):
            try:
                found = redo.decode_state(payload)
            except (ValueError, struct.error):
                break
            state, reached = found, generation
        if state is None:
            self.losses.add("commits", str(path), "no entry of the journal can be read: commits since may be lost")
            return None
        if body is not None and reached < body["generation"]:
            return None  # all that it says was carried out
        for _, payload in entries_left(path):
            self._lay_over(payload)
        return state

    def _lay_over(self, payload: bytes) -> None:
        for operation in redo.operations(payload):
            image = self._images[redo.FILES[operation.file]]
            if operation.kind == redo.SWAP:
                ready = self._directory / (redo.FILES[operation.file] + redo.COMPACTED)
                if ready.exists():
                    self._images[redo.FILES[operation.file]] = Image(ready, image.item)
            elif operation.kind == redo.RANGE:
                image.put(operation.offset, operation.data)
            elif operation.kind == redo.COLUMN:
                image.put_fields(np.arange(operation.count), operation.offset, operation.width, operation.data)
            else:
                rows = np.frombuffer(operation.data[: 8 * operation.count], np.int64)
                image.put_fields(rows, operation.offset, operation.width, operation.data[8 * operation.count :])

    def _said(self, meta: Meta | None, body: dict[str, Any] | None, state: State | None) -> dict[str, int]:
        """How many records there were."""
        if state is not None:
            return {NODES: state.nodes, EDGES: state.edges, EVENTS: state.events}
        counts = {NODES: 0, EDGES: 0, EVENTS: self._images[EVENTS].count}
        for name in (NODES, EDGES):
            least = 0 if body is None else int(body[_PARTS[name]])
            count = None if meta is None else meta.node_count if name == NODES else meta.edge_count
            if count is None:
                count = self._without_blanks(name)
            elif body is not None and count > least:  # 0.3.0 may have added to what store.json says, but no blanks
                count = min(count, self._without_blanks(name))
            counts[name] = max(least, count)
        if body is not None:
            counts[EVENTS] = max(counts[EVENTS], int(body["events"]))
        return counts

    def _without_blanks(self, name: str) -> int:
        """Records in a file but for the blank ones at its end."""
        image = self._images[name]
        stop = image.count
        while stop:
            start = max(0, stop - _CHUNK)
            written = np.flatnonzero(~image.is_blank(start, stop))
            if len(written):
                return start + int(written[-1]) + 1
            stop = start
        return 0

    # Ids and lists

    def _sorted_ids(self) -> tuple[Ids, Rows]:
        """Ids in order, and the row of each; of an id that is there twice the lowest row comes first."""
        ids = np.empty(self.node_rows, np.uint64)
        dtype = node_dtype(self.vector_dim)
        for start, stop in _spans(self.node_rows):
            ids[start:stop] = self._images[NODES].read(start, stop, dtype)["id"]
        order = np.argsort(ids, kind="stable")
        return ids[order], order

    def _rows_of(self, ids: Ids) -> Rows:
        if not len(self._ids):
            return np.full(len(ids), -1, np.int64)
        at = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[at] == ids, self._by_id[at], -1)

    def _look_at_lists(self) -> None:
        wrong = 0
        for start, stop in _spans(self.edge_slots):
            pointers = self._images[EDGES].read(start, stop, EDGE_DTYPE)["next_edge_idx"]
            refs = np.arange(start, stop)
            wrong += int(np.count_nonzero((pointers < REMOVED) | ((pointers >= refs) & (pointers != END))))
        dtype = node_dtype(self.vector_dim)
        for start, stop in _spans(self.node_rows):
            heads = self._images[NODES].read(start, stop, dtype)["head_edge_idx"]
            wrong += int(np.count_nonzero((heads < END) | (heads >= self.edge_slots)))
        if wrong:
            detail = f"{wrong} pointers lead where no list can; lists are made anew from the edges' sources"
            self.losses.add("derived", str(self._directory / EDGES), detail)

    # What a wreck gives

    def nodes(self, start: int, stop: int) -> tuple[Columns, Known]:
        found = self._images[NODES].read(start, stop, node_dtype(self.vector_dim))
        known = self._images[NODES].known(start, stop)
        return {name: np.ascontiguousarray(found[name]) for name in records.NODE_FIELDS}, {"id": known}

    def edges(self, start: int, stop: int) -> tuple[Columns, Known]:
        found = self._images[EDGES].read(start, stop, EDGE_DTYPE)
        return {
            "source_row": self._rows_of(found["source_id"]),
            "target_row": self._rows_of(found["target_id"]),
            **{name: np.ascontiguousarray(found[name]) for name in ("weight", "confidence", "use_count")},
            "removed": (found["next_edge_idx"] == REMOVED).astype(np.uint8),
        }, {"removed": self._images[EDGES].known(start, stop)}

    def events(self, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        image = self._images[EVENTS]
        known = image.known(start, stop) & ~image.is_blank(start, stop)
        return image.read(start, stop, EVENT_DTYPE), known

    def close(self) -> None:
        """Let go of the files."""
        self._hold.release()


def _spans(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]
