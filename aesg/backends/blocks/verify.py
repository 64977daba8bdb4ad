"""Looking at everything: every block's checksum, every id, every edge, both orders of the edges against each other.

A block that is damaged is one violation, and what can be said without it is still looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks import layout
from aesg.backends.blocks.tables import BlockTables
from aesg.backends.violations import Report
from aesg.errors import CorruptionError
from aesg.protocols import Progress, Violation
from aesg.records import Adjacency, Columns, Rows

_CHUNK: Final = 1 << 16
_TOGETHER: Final = 1 << 25
"""Bytes of blocks whose checksums are computed together, by all cores."""


def find_violations(tables: BlockTables, *, deep: bool, progress: Progress | None = None) -> list[Violation]:
    """Check what a commit holds.

    Args:
        tables: The commit.
        deep: Every block's checksum, and every value of the edges by source against that of the edges by ref; else
            ids, ends, lists and that numbers are finite, with the checksums of what is read for that.
        progress: Told how far it is.
    """
    look = _Look(tables, progress)
    if deep:
        look.at_blocks()
    look.at_nodes()
    look.at_edges()
    look.at_lists(layout.OUT_COLUMNS if deep else ("ref", "target_row"))
    return look.report.finish()


class _Look:
    """A look at all of a commit.

    Attributes:
        report: What was found.
    """

    def __init__(self, tables: BlockTables, progress: Progress | None) -> None:
        self.report = Report()
        self._tables = tables
        self._progress = progress
        self._said: set[str] = set()

    def _tell(self, doing: str, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(doing, done, of)

    def _damaged(self, place: str, said: str) -> None:
        """Note damage to a block, once: whoever needs the block stumbles over it."""
        if said not in self._said:
            self._said.add(said)
            self.report.violations.append(Violation("garbled-block", place, said))

    def _chunks(self, doing: str, count: int) -> list[tuple[int, int]]:
        self._tell(doing, 0, count)
        return [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]

    def at_blocks(self) -> None:
        """Compare every block with its checksum."""
        columns = self._tables.columns
        names = [name for name in columns.layout if name != layout.LOG and not name.startswith(layout.CHECKSUMS)]
        counts = {name: columns.layout[name].blocks(columns.rows(name)) for name in names}
        done, total = 0, sum(counts.values())
        for name in names:
            column = columns.layout[name]
            step = max(1, _TOGETHER // (column.block_rows * column.row_bytes))
            for start in range(0, counts[name], step):
                numbers = range(start, min(start + step, counts[name]))
                try:
                    for number, said in columns.recheck(name, numbers).items():
                        self._damaged(f"{name} block {number}", said)
                except CorruptionError as error:
                    self._damaged(layout.CHECKSUMS + name, str(error))
                done += len(numbers)
                self._tell("checksums", done, total)

    def _read(self, place: str, read: Callable[[], Columns]) -> Columns:
        """What is read; nothing when a block is damaged."""
        try:
            return read()
        except CorruptionError as error:
            self._damaged(place, str(error))
            return {}

    def at_nodes(self) -> None:
        """Ids are unique, numbers are finite."""
        tables, report = self._tables, self.report
        ids = np.zeros(tables.node_count, np.uint64)
        known = np.zeros(tables.node_count, np.bool_)
        for start, stop in self._chunks("nodes", tables.node_count):
            rows = np.arange(start, stop)
            columns: Columns = {}
            for field in ("id", "vector", "relevance", "stability", "is_active"):
                place = f"nodes/{field} rows {start} to {stop - 1}"
                columns |= self._read(place, partial(tables.node_chunk, start, stop, [field]))
            if "id" in columns:
                ids[start:stop], known[start:stop] = columns["id"], True
            for field in ("vector", "relevance", "stability"):
                if field in columns:
                    bad = ~np.isfinite(columns[field]).reshape(stop - start, -1).all(axis=1)
                    report.add("non-finite", "nodes", "row", rows[bad], f"{field} holds NaN or infinity")
            if "is_active" in columns:
                report.add("bad-flag", "nodes", "row", rows[columns["is_active"] > 1], "is_active is neither 0 nor 1")
            self._tell("nodes", stop, tables.node_count)
        rows = np.flatnonzero(known)
        order = rows[np.argsort(ids[rows], kind="stable")]
        twice = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
        report.add("duplicate-id", "nodes", "row", order[twice], "another row has the same id")

    def at_edges(self) -> None:
        """Ends are rows, numbers are finite, and as many are removed as is said."""
        tables, report = self._tables, self.report
        removed, whole = 0, True
        for start, stop in self._chunks("edges", tables.edge_slots):
            refs = np.arange(start, stop)
            columns: Columns = {}
            for field in ("removed", "source_row", "target_row", "weight", "confidence"):
                place = f"edges/{field} refs {start} to {stop - 1}"
                columns |= self._read(place, partial(tables.edge_chunk, start, stop, [field]))
            whole &= "removed" in columns
            live = columns["removed"] == 0 if "removed" in columns else np.zeros(stop - start, np.bool_)
            removed += int((~live).sum())
            for field in ("source_row", "target_row"):
                if field in columns:
                    outside = (columns[field] < 0) | (columns[field] >= tables.node_count)
                    report.add(f"dangling-{field[:6]}", "edges", "edge", refs[outside & live], f"its {field} is no row")
            for field in ("weight", "confidence"):
                if field in columns:
                    bad = ~np.isfinite(columns[field]) & live
                    report.add("non-finite", "edges", "edge", refs[bad], f"{field} is NaN or infinite")
            self._tell("edges", stop, tables.edge_slots)
        if whole and removed != tables.removed_edges:
            detail = f"{removed} edges are marked as removed, {tables.removed_edges} counted"
            report.violations.append(Violation("removed-count", "edges", detail))

    def at_lists(self, fields: Any) -> None:
        """By source the edges are those by ref, with the same values, newest first."""
        tables, report = self._tables, self.report
        seen = np.zeros(tables.edge_slots, np.bool_)
        whole = True
        for start, stop in self._chunks("lists", tables.node_count):
            rows = np.arange(start, stop, dtype=np.int64)
            try:
                self._compare(rows, tables.out_edges(rows, None), fields, seen)
            except CorruptionError as error:
                self._damaged(f"out rows {start} to {stop - 1}", str(error))
                whole = False
            self._tell("lists", stop, tables.node_count)
        for start, stop in self._chunks("reach", tables.edge_slots) if whole else []:
            place = f"edges/removed refs {start} to {stop - 1}"
            found = self._read(place, partial(tables.edge_chunk, start, stop, ["removed"]))
            if found:
                missing = (found["removed"] == 0) & ~seen[start:stop]
                report.add("unreachable-edge", "edges", "edge", start + np.flatnonzero(missing), "no list has it")

    def _compare(self, rows: Rows, found: Adjacency, fields: Any, seen: npt.NDArray[np.bool_]) -> None:
        tables, report = self._tables, self.report
        sources, refs = np.repeat(rows, found.degrees), found.refs
        if len(refs) and (int(refs.min()) < 0 or int(refs.max()) >= tables.edge_slots):
            outside = (refs < 0) | (refs >= tables.edge_slots)
            report.add("ref-outside", "out", "row", sources[outside], "lists an edge that does not exist")
            return
        seen[refs] = True
        values = [field for field in fields if field != "ref"]
        columns = tables.read_edges(refs, ["source_row", "removed", *values])
        wrong = (columns["source_row"] != sources) | (columns["removed"] != 0)
        for field in values:
            wrong |= columns[field] != getattr(found, "target_rows" if field == "target_row" else field)
        report.add("foreign-edge", "out", "edge", refs[wrong], "is listed with other values than it has")
        falling = (refs[1:] < refs[:-1]) | (sources[1:] != sources[:-1])
        report.add("order", "out", "edge", refs[1:][~falling], "is listed after an older edge of the same source")
