"""Looking for what cannot be: all of it in `find_violations`, a sample when a store is opened."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from aesg.backends.memmap.format import END, REMOVED
from aesg.backends.memmap.tables import Files, MemmapTables, State
from aesg.backends.violations import Report
from aesg.errors import CorruptionError
from aesg.protocols import Progress, Violation

_CHUNK: Final = 1 << 16
_SAMPLE: Final = 4096


def check_sample(files: Files, state: State) -> None:
    """Look at some records across both files: garbage, or another file's records, do not get past this.

    Every record is looked at while there are at most 4096; reads beyond that are checked where pointers are followed.

    Raises:
        CorruptionError: A value that no writer of the format puts there.
    """
    rows = _spread(state.nodes)
    active = files.nodes.gather("is_active", rows)
    heads = files.nodes.gather("head_edge_idx", rows)
    wrong = (active > 1) | (heads < END) | (heads >= state.edges)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise CorruptionError(
            f"{files.nodes.path}: record {int(rows[at])} has is_active {int(active[at])} and head_edge_idx "
            f"{int(heads[at])}; expected 0 or 1, and -1 to {state.edges - 1}: these are not records of nodes"
        )
    refs = _spread(state.edges)
    pointers = files.edges.gather("next_edge_idx", refs)
    wrong = (pointers < REMOVED) | (pointers >= state.edges)
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        raise CorruptionError(
            f"{files.edges.path}: record {int(refs[at])} has next_edge_idx {int(pointers[at])}; "
            f"expected -1 to {state.edges - 1}: these are not records of edges"
        )


def _spread(count: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, count - 1, min(count, _SAMPLE)).astype(np.int64)


def find_violations(tables: MemmapTables, *, deep: bool, progress: Progress | None = None) -> list[Violation]:
    """Check every record, in a few passes over the files; `deep` the evolution log too.

    A list that ends is one whose pointers only go down; a graph whose live edges are each pointed to exactly once, by
    a node or an edge of the same source, has all its edges in the right lists. So no list has to be walked.
    """
    report, tell = Report(), progress or _tell_nobody
    _check_nodes(tables, report, tell)
    pointers = _follow_heads(tables, report)
    _check_edges(tables, report, pointers, tell)
    if deep:
        _check_events(tables, report)
    return report.finish()


def _tell_nobody(doing: str, done: int, of: int) -> None:
    return None


def _chunks(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK)]


def _check_nodes(tables: MemmapTables, report: Report, tell: Progress) -> None:
    """Check what a node says of itself."""
    name = tables.files.nodes.path.name
    for start, stop in _chunks(tables.node_count):
        tell("nodes", start, tables.node_count)
        columns = tables.node_chunk(start, stop, ["id", "vector", "relevance", "stability", "is_active"])
        rows = np.arange(start, stop)
        for field in ("vector", "relevance", "stability"):
            bad = ~np.isfinite(columns[field]).reshape(stop - start, -1).all(axis=1)
            report.add("non-finite", name, "row", rows[bad], f"{field} holds NaN or infinity")
        report.add("bad-flag", name, "row", rows[columns["is_active"] > 1], "is_active is neither 0 nor 1")
        found = tables.rows_of(columns["id"])
        report.add("index", "ids.index", "row", rows[found < 0], "its id is not found; delete ids.index")
        twice = (found >= 0) & (found != rows)
        report.add("duplicate-id", name, "row", rows[twice], "another row has the same id")
    tell("nodes", tables.node_count, tables.node_count)


def _follow_heads(tables: MemmapTables, report: Report) -> list[npt.NDArray[np.int64]]:
    """The edges that lists begin with."""
    name = tables.files.nodes.path.name
    found = []
    for start, stop in _chunks(tables.node_count):
        heads = tables.nodes.chunk("head_edge_idx", start, stop)
        rows = np.arange(start, stop)
        outside = (heads < END) | (heads >= tables.edge_slots)
        report.add("head-outside", name, "row", rows[outside], "head_edge_idx leads outside the edges")
        good = ~outside & (heads != END)
        sources = tables.edges.gather("source_id", heads[good])
        foreign = sources != tables.nodes.gather("id", rows[good])
        report.add("foreign-edge", name, "row", rows[good][foreign], "its list begins with another node's edge")
        found.append(heads[good][~foreign])
    return found


def _check_edges(
    tables: MemmapTables, report: Report, pointers_to: list[npt.NDArray[np.int64]], tell: Progress
) -> None:
    name = tables.files.edges.path.name
    live = np.ones(tables.edge_slots, np.bool_)
    for start, stop in _chunks(tables.edge_slots):
        tell("edges", start, tables.edge_slots)
        refs = np.arange(start, stop)
        column = {f: tables.edges.chunk(f, start, stop) for f in tables.files.edges.views}
        pointers = column["next_edge_idx"]
        gone = pointers == REMOVED
        live[start:stop] = ~gone
        outside = ~gone & ((pointers < END) | (pointers >= tables.edge_slots))
        report.add("next-outside", name, "edge", refs[outside], "next_edge_idx leads outside the edges")
        cyclic = ~gone & ~outside & (pointers >= refs)
        report.add("cyclic-list", name, "edge", refs[cyclic], "next_edge_idx does not lead to an older edge")
        good = ~gone & ~outside & ~cyclic & (pointers != END)
        foreign = tables.edges.gather("source_id", pointers[good]) != column["source_id"][good]
        report.add("foreign-edge", name, "edge", refs[good][foreign], "the next edge is another node's")
        pointers_to.append(pointers[good][~foreign])
        for field in ("weight", "confidence"):
            bad = ~np.isfinite(column[field]) & ~gone
            report.add("non-finite", name, "edge", refs[bad], f"{field} is NaN or infinite")
        for field, kind in (("source_id", "dangling-source"), ("target_id", "dangling-target")):
            absent = ~gone & (tables.rows_of(column[field]) < 0)
            report.add(kind, name, "edge", refs[absent], f"no node has its {field}")
    pointed = np.bincount(np.concatenate([np.empty(0, np.int64), *pointers_to]), minlength=tables.edge_slots)
    report.add("unreachable-edge", name, "edge", np.flatnonzero(live & (pointed == 0)), "it is in no list")
    report.add("edge-in-two-lists", name, "edge", np.flatnonzero(live & (pointed > 1)), "two pointers lead to it")
    report.add(
        "removed-in-list", name, "edge", np.flatnonzero(~live & (pointed > 0)), "removed, but a list leads to it"
    )
    removed = len(live) - int(np.count_nonzero(live))
    if removed != tables.removed_edges:
        detail = f"{removed} removed edges in the file, {tables.removed_edges} counted"
        report.violations.append(Violation("removed-count", "store.json", detail))
    tell("edges", tables.edge_slots, tables.edge_slots)


def _check_events(tables: MemmapTables, report: Report) -> None:
    name = tables.files.events.path.name
    for start, stop in _chunks(tables.event_count):
        values = tables.read_events(start, stop)["val"]
        report.add("non-finite", name, "event", start + np.flatnonzero(~np.isfinite(values)), "val is NaN or infinite")
