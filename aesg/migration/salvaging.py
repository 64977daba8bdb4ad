"""What is sound of a damaged store, as a source: rows that fit each other, and a count of what does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.salvage import Known, Wreck
from aesg.migration.copying import EDGE_BYTES, EVENT_BYTES, PIECE_BYTES, Events, node_bytes
from aesg.protocols import Progress
from aesg.records import JSON, Columns

_UNKNOWN: Final[Mapping[str, float]] = {**records.NODE_DEFAULTS, "created_at": 0, "modified_at": 0}
"""What a field gets whose value is lost."""


class Salvaged:
    """What is sound of a wreck.

    A node is lost with its id or its vector, or when another row had its id before; an edge is lost with one of its
    ends, its weight or its confidence. Any other lost field gets its starting value. Later rows move up.

    Args:
        wreck: Has to stay as it is until everything was read.
        progress: Told about the reading.

    Attributes:
        lost: "nodes", "edges", "events": how many are not here.
        reasons: The same by reason.
        reset: Field → of how many nodes, or edges, its value is not the lost one but the starting value.
    """

    def __init__(self, wreck: Wreck, progress: Progress | None = None) -> None:
        self._wreck = wreck
        self._progress = progress
        self.url = wreck.url
        self.vector_dim = wreck.vector_dim
        self.attrs: Mapping[str, JSON] = dict(wreck.attrs)
        self.lost = {"nodes": 0, "edges": 0, "events": 0}
        self.reasons: Counter[str] = Counter()
        for kind, count in wreck.missing.items():
            if count:
                self.lost[kind] += count
                self.reasons[f"{kind}: nothing is left of their place"] += count
        self.reset: Counter[str] = Counter()
        self._row_map = self._look_at_nodes()
        self._edge_stays = self._look_at_edges()
        self._event_stays = self._look_at_events()
        self.node_count = int(np.count_nonzero(self._row_map >= 0))
        self.edge_count = int(np.count_nonzero(self._edge_stays))
        self.event_count = int(np.count_nonzero(self._event_stays))

    # What there is

    def _spans(self, doing: str, count: int, size: int) -> Iterator[tuple[int, int]]:
        step = max(1, PIECE_BYTES // size)
        for start in range(0, count, step):
            yield start, min(start + step, count)
            if doing and self._progress is not None:
                self._progress(doing, min(start + step, count), count)

    def _drop(self, kind: str, why: str, which: npt.NDArray[np.bool_]) -> None:
        number = int(np.count_nonzero(which))
        if number:
            self.lost[kind] += number
            self.reasons[f"{kind}: {why}"] += number

    def _look_at_nodes(self) -> npt.NDArray[np.int64]:
        """Old row → new row, -1 where it is lost."""
        count = self._wreck.node_rows
        ids, stays = np.zeros(count, np.uint64), np.zeros(count, np.bool_)
        for start, stop in self._spans("looking at nodes", count, node_bytes(self.vector_dim)):
            columns, known = self._wreck.nodes(start, stop)
            there = _known(known, ("id", "vector"), stop - start)
            self._drop("nodes", "id or vector damaged", ~there)
            blank = there & _blank(columns)
            self._drop("nodes", "blank", blank)
            infinite = there & ~blank & ~np.isfinite(columns["vector"]).all(axis=1)
            self._drop("nodes", "vector not finite", infinite)
            ids[start:stop], stays[start:stop] = columns["id"], there & ~blank & ~infinite
        rows = np.flatnonzero(stays)
        order = rows[np.argsort(ids[rows], kind="stable")]
        again = np.zeros(count, np.bool_)
        again[order[1:][ids[order][1:] == ids[order][:-1]]] = True
        self._drop("nodes", "another row has the same id", again)
        stays &= ~again
        return np.where(stays, np.cumsum(stays) - 1, -1)

    def _look_at_edges(self) -> npt.NDArray[np.bool_]:
        stays = np.zeros(self._wreck.edge_slots, np.bool_)
        for start, stop in self._spans("looking at edges", self._wreck.edge_slots, EDGE_BYTES):
            columns, known = self._wreck.edges(start, stop)
            left = _known(known, ("removed",), stop - start)
            self._drop("edges", "damaged", ~left)
            left &= columns["removed"] == 0
            for why, bad in (
                ("damaged", ~_known(known, ("source_row", "target_row", "weight", "confidence"), stop - start)),
                ("a node at its end is lost", self._at_lost_node(columns)),
                ("it names no node", self._is_dangling(columns)),
                (
                    "weight or confidence not finite",
                    ~(np.isfinite(columns["weight"]) & np.isfinite(columns["confidence"])),
                ),
            ):
                self._drop("edges", why, left & bad)
                left &= ~bad
            stays[start:stop] = left
        return stays

    def _is_dangling(self, columns: Columns) -> npt.NDArray[np.bool_]:
        ends = (columns["source_row"], columns["target_row"])
        return np.asarray(np.logical_or.reduce([(rows < 0) | (rows >= self._wreck.node_rows) for rows in ends]))

    def _at_lost_node(self, columns: Columns) -> npt.NDArray[np.bool_]:
        inside = ~self._is_dangling(columns)
        found = np.zeros(len(inside), np.bool_)
        for end in ("source_row", "target_row"):
            found[inside] |= self._row_map[columns[end][inside]] < 0
        return found

    def _look_at_events(self) -> npt.NDArray[np.bool_]:
        stays = np.zeros(self._wreck.event_rows, np.bool_)
        for start, stop in self._spans("looking at events", self._wreck.event_rows, EVENT_BYTES):
            events, known = self._wreck.events(start, stop)
            self._drop("events", "damaged", ~known)
            infinite = known & ~np.isfinite(events["val"])
            self._drop("events", "val not finite", infinite)
            stays[start:stop] = known & ~infinite
        return stays

    # As a source

    def nodes(self) -> Iterator[Columns]:
        """All of `records.NODE_FIELDS`, in order of row."""
        self.reset = Counter({name: n for name, n in self.reset.items() if not name.startswith("nodes/")})
        for start, stop in self._spans("", self._wreck.node_rows, node_bytes(self.vector_dim)):
            stays = self._row_map[start:stop] >= 0
            columns, known = self._wreck.nodes(start, stop)
            mended = {name: self._mended(f"nodes/{name}", columns[name], known, stays) for name in records.NODE_FIELDS}
            if stays.any():
                yield {name: values[stays] for name, values in mended.items()}

    def edges(self) -> Iterator[Columns]:
        """All of `records.EDGE_FIELDS`, in order of ref."""
        self.reset.pop("edges/use_count", None)
        for start, stop in self._spans("", self._wreck.edge_slots, EDGE_BYTES):
            stays = self._edge_stays[start:stop]
            columns, known = self._wreck.edges(start, stop)
            columns["use_count"] = self._mended("edges/use_count", columns["use_count"], known, stays)
            if stays.any():
                out = {name: columns[name][stays] for name in records.EDGE_FIELDS}
                yield out | {end: self._row_map[out[end]] for end in ("source_row", "target_row")}

    def events(self) -> Iterator[Events]:
        """Of `records.EVENT_DTYPE`, from the oldest on."""
        for start, stop in self._spans("", self._wreck.event_rows, EVENT_BYTES):
            events, _ = self._wreck.events(start, stop)
            stays = self._event_stays[start:stop]
            if stays.any():
                yield events[stays]

    def _mended(
        self, what: str, values: npt.NDArray[Any], known: Known, stays: npt.NDArray[np.bool_]
    ) -> npt.NDArray[Any]:
        """A field with its starting value where its own is lost, or none that it can have."""
        field = what.split("/")[1]
        if field in ("id", "vector"):
            return values
        sure = _known(known, (field,), len(values))
        if values.dtype.kind == "f":
            sure = sure & np.isfinite(values)
        elif field == "is_active":
            sure = sure & (values <= 1)
        bad = stays & ~sure
        if bad.any():
            values = values.copy()
            values[bad] = _UNKNOWN.get(field, 0)
            self.reset[what] += int(np.count_nonzero(bad))
        return values


def _known(known: Known, fields: tuple[str, ...], count: int) -> npt.NDArray[np.bool_]:
    found = np.ones(count, np.bool_)
    for field in fields:
        if field in known:
            found &= known[field]
    return found


def _blank(columns: Columns) -> npt.NDArray[np.bool_]:
    """Rows that are zero all over: nobody wrote them, or a disk gave zeros for what it could not read."""
    found = np.ones(len(next(iter(columns.values()))), np.bool_)
    for values in columns.values():
        flat = np.ascontiguousarray(values).reshape(len(found), -1)
        found &= ~flat.view(np.uint8).any(axis=1)  # as bytes: comparing signalling NaNs would warn
    return found
