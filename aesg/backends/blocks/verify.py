"""Looking at everything: every block's checksum, every id, every edge, both orders of the edges against each other."""

from __future__ import annotations

import numpy as np

from aesg.backends.blocks import layout
from aesg.backends.blocks.tables import BlockTables
from aesg.backends.violations import Report
from aesg.errors import CorruptionError
from aesg.protocols import Violation

_CHUNK = 1 << 16


def find_violations(tables: BlockTables) -> list[Violation]:
    """Check all that a commit holds."""
    damaged = _check_blocks(tables)
    if damaged:
        return damaged  # what follows would stumble over them
    report = Report()
    _check_nodes(tables, report)
    _check_edges(tables, report)
    _check_order(tables, report)
    return report.finish()


def _check_blocks(tables: BlockTables) -> list[Violation]:
    columns, found = tables.columns, []
    for name in columns.layout:
        if name == layout.LOG or name.startswith(layout.CHECKSUMS):
            continue
        try:
            for number in range(columns.layout[name].blocks(columns.rows(name))):
                columns.recheck(name, number)
        except CorruptionError as error:
            found.append(Violation("garbled-block", name, str(error)))
    return found


def _chunks(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def _check_nodes(tables: BlockTables, report: Report) -> None:
    ids = np.empty(tables.node_count, np.uint64)
    for start, stop in _chunks(tables.node_count):
        columns = tables.node_chunk(start, stop, ["id", "vector", "relevance", "stability", "is_active"])
        rows = np.arange(start, stop)
        ids[start:stop] = columns["id"]
        for field in ("vector", "relevance", "stability"):
            bad = ~np.isfinite(columns[field]).reshape(stop - start, -1).all(axis=1)
            report.add("non-finite", "nodes", "row", rows[bad], f"{field} holds NaN or infinity")
        report.add("bad-flag", "nodes", "row", rows[columns["is_active"] > 1], "is_active is neither 0 nor 1")
    order = np.argsort(ids, kind="stable")
    twice = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    report.add("duplicate-id", "nodes", "row", order[twice], "another row has the same id")


def _check_edges(tables: BlockTables, report: Report) -> None:
    removed = 0
    for start, stop in _chunks(tables.edge_slots):
        columns = tables.edge_chunk(start, stop, list(layout.EDGE_COLUMNS))
        refs, live = np.arange(start, stop), columns["removed"] == 0
        removed += int((~live).sum())
        for field in ("source_row", "target_row"):
            outside = (columns[field] < 0) | (columns[field] >= tables.node_count)
            report.add(f"dangling-{field[:6]}", "edges", "edge", refs[outside & live], f"its {field} is no row")
        for field in ("weight", "confidence"):
            bad = ~np.isfinite(columns[field]) & live
            report.add("non-finite", "edges", "edge", refs[bad], f"{field} is NaN or infinite")
    if removed != tables.removed_edges:
        detail = f"{removed} edges are marked as removed, {tables.removed_edges} counted"
        report.violations.append(Violation("removed-count", "edges", detail))


def _check_order(tables: BlockTables, report: Report) -> None:
    """By source the edges are those by ref, with the same values, newest first."""
    seen = np.zeros(tables.edge_slots, np.bool_)
    for start, stop in _chunks(tables.node_count):
        rows = np.arange(start, stop, dtype=np.int64)
        found = tables.out_edges(rows, None)
        sources = np.repeat(rows, found.degrees)
        refs = found.refs
        if len(refs) and (int(refs.min()) < 0 or int(refs.max()) >= tables.edge_slots):
            outside = (refs < 0) | (refs >= tables.edge_slots)
            report.add("ref-outside", "out", "row", sources[outside], "lists an edge that does not exist")
            continue
        seen[refs] = True
        columns = tables.read_edges(refs, list(layout.EDGE_COLUMNS))
        wrong = (columns["source_row"] != sources) | (columns["removed"] != 0)
        for field in ("target_row", "weight", "confidence", "use_count"):
            wrong |= columns[field] != getattr(found, "target_rows" if field == "target_row" else field)
        report.add("foreign-edge", "out", "edge", refs[wrong], "is listed with other values than it has")
        falling = (refs[1:] < refs[:-1]) | (sources[1:] != sources[:-1])
        report.add("order", "out", "edge", refs[1:][~falling], "is listed after an older edge of the same source")
    for start, stop in _chunks(tables.edge_slots):
        missing = (tables.edge_chunk(start, stop, ["removed"])["removed"] == 0) & ~seen[start:stop]
        report.add("unreachable-edge", "edges", "edge", start + np.flatnonzero(missing), "no list has it")
