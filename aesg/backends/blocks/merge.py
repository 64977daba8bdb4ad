"""The large commit: everything that is pending goes into blocks, and the log begins anew."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.blocks import layout
from aesg.backends.blocks.columns import BlockColumns, checksum, checksums_of
from aesg.backends.blocks.container import Block, Key
from aesg.backends.blocks.layout import CHECKSUMS, LOG
from aesg.backends.blocks.sorting import sorted_edges
from aesg.backends.blocks.tables import EDGES, BlockTables, GraphState, Table
from aesg.records import Refs, distinct

_FEW: Final = 32
"""Changed edges are looked up one by one while they are fewer than one in so many."""


@dataclass
class Merge:
    """What a merge puts.

    Attributes:
        puts: Blocks.
        lengths: Rows of every column, but for the log.
        sorted_edges: See `GraphState`.
        sorted_nodes: See `GraphState`.
        checksums: Column → checksums of its blocks, where they change.
        of_checksums: Column → checksums of those.
    """

    lengths: dict[str, int]
    of_checksums: dict[str, list[int]]
    sorted_edges: int
    sorted_nodes: int
    puts: dict[Key, Block] = field(default_factory=dict)
    checksums: dict[str, npt.NDArray[np.uint32]] = field(default_factory=dict)


def merge(tables: BlockTables, *, sort_above: float) -> Merge:
    """Put pending rows and values into blocks.

    Args:
        tables: A commit, or a transaction on top of it.
        sort_above: Sort the edges by source anew when those that are not sorted exceed this share of the others.
    """
    columns = tables.columns
    made = Merge(
        {name: columns.rows(name) for name in columns.layout if name != LOG},
        dict(columns.checksums_of_checksums),
        tables.state.sorted_edges,
        tables.state.sorted_nodes,
    )
    for table in (tables.nodes, tables.edges, tables.events):
        _put_table(table, made)
    unsorted = tables.edge_slots - made.sorted_edges
    if unsorted > max(layout.FEW_UNSORTED, sort_above * max(made.sorted_edges, 1)):
        _sort_edges(tables, made)
    elif columns.rows("out/ref"):
        _update_sorted(tables, made)
    put_checksums(columns, made)
    return made


def after(tables: BlockTables, made: Merge) -> GraphState:
    """The state once a merge of these tables is committed."""
    counts = (tables.nodes.count, tables.edges.count, tables.events.count)
    state = GraphState.at_rest(counts, tables.vector_dim, made.sorted_edges, made.sorted_nodes)
    if made.sorted_edges == tables.state.sorted_edges:
        state.runs, state.in_runs = tables.runs, tables.in_runs
    state.removed_edges, state.attrs = tables.removed_edges, tables.attrs
    return state


# --- rows ------------------------------------------------------------------------------------------------------------


def _put_table(table: Table, made: Merge) -> None:
    state = table.state
    for name in table.kind.fields:
        column = table.columns.layout[table.kind.column(name)]
        size = column.block_rows
        changed = {*table.replaced.get(name, {})}
        for group in (*state.patches, *table.own):
            if name in group.fields and len(group):
                changed.update(distinct(group.rows // size).tolist())
        touched = set(changed)
        if table.count > state.merged:
            touched.update(range(state.merged // size, column.blocks(table.count)))
        for number in sorted(touched):
            start, stop = number * size, min((number + 1) * size, table.count)
            if start >= state.merged and number not in changed:
                made.puts[column.name, number] = state.tail.view(name, start, stop)
            else:
                made.puts[column.name, number] = table.chunk(start, stop, [name])[name]
        made.lengths[column.name] = table.count


def _put_column(columns: BlockColumns, made: Merge, name: str, values: npt.NDArray[Any]) -> None:
    """All rows of a column."""
    size = columns.layout[name].block_rows
    for start in range(0, len(values), size):
        made.puts[name, start // size] = values[start : start + size]
    made.lengths[name] = len(values)


# --- edges by source -------------------------------------------------------------------------------------------------


def _sort_edges(tables: BlockTables, made: Merge) -> None:
    """Sort all edges by source; removed ones are left out."""
    nodes, columns = tables.node_count, tables.columns
    scratch = columns.container.scratch
    starts, found = sorted_edges(tables.edges.chunk, tables.edge_slots, tables.removed_edges, nodes, scratch)
    _put_column(columns, made, layout.START, starts)
    for name, values in found.items():
        _put_column(columns, made, f"out/{name}", values)
    made.sorted_edges, made.sorted_nodes = tables.edge_slots, nodes


def _update_sorted(tables: BlockTables, made: Merge) -> None:
    """Bring the sorted edges to the values that the edges by ref have now."""
    edges, columns = tables.edges, tables.columns
    length = columns.rows("out/ref")
    changed = [group.rows for group in (*edges.state.patches, *edges.own) if len(group)]
    refs = distinct(np.concatenate([np.empty(0, np.int64), *changed]))
    refs = refs[refs < made.sorted_edges]
    everywhere = set(edges.replaced)
    if len(refs) * _FEW > length:
        everywhere.update(EDGES.patched[0])
    for name in sorted(everywhere):
        values = edges.chunk(0, edges.count, [name])[name]
        column = columns.layout["out/ref" if name == "removed" else f"out/{name}"]
        for number in range(column.blocks(length)):
            start = number * column.block_rows
            stop = min(start + column.block_rows, length)
            by_source = columns.slice("out/ref", start, stop)
            by_source = np.where(by_source < 0, ~by_source, by_source)
            new = values[by_source]
            made.puts[column.name, number] = np.where(new != 0, ~by_source, by_source) if name == "removed" else new
    few = [name for name in EDGES.patched[0] if name not in everywhere]
    if len(refs) and few:
        at = _positions(tables, refs)
        refs, at = refs[at >= 0], at[at >= 0]
        values_of = edges.read(refs, few)
        if "removed" in values_of:
            gone = values_of.pop("removed") != 0
            _put_at(columns, made, "out/ref", at[gone], ~refs[gone])
        for name, values in values_of.items():
            _put_at(columns, made, f"out/{name}", at, values)


def _positions(tables: BlockTables, refs: Refs) -> npt.NDArray[np.int64]:
    """Where in `out/…` edges are; -1 for those that were removed before it was sorted. Refs of a row fall: bisect."""
    sources = tables.edges.read(refs, ["source_row"])["source_row"]
    low, counts = tables._sorted_ranges(sources)
    high = low + counts
    end = high.copy()
    while (open_ := low < high).any():
        middle = (low + high) // 2
        there = tables.columns.gather("out/ref", np.where(open_, middle, 0))
        there = np.where(there < 0, ~there, there)
        newer = there > refs
        low = np.where(open_ & newer, middle + 1, low)
        high = np.where(open_ & ~newer, middle, high)
    inside = low < end
    there = tables.columns.gather("out/ref", np.where(inside, low, 0))
    return np.where(inside & (np.where(there < 0, ~there, there) == refs), low, -1)


def _put_at(
    columns: BlockColumns, made: Merge, name: str, positions: npt.NDArray[np.int64], values: npt.NDArray[Any]
) -> None:
    """Put the blocks in which some positions have new values."""
    column = columns.layout[name]
    numbers = positions // column.block_rows
    order = np.argsort(numbers, kind="stable")
    bounds = [0, *(np.flatnonzero(np.diff(numbers[order])) + 1).tolist(), len(order)]
    for low, high in pairwise(bounds):
        if high > low:
            which = order[low:high]
            number = int(numbers[which[0]])
            block = made.puts.get((name, number))
            if block is None:
                block = made.puts[name, number] = columns.block(name, number).copy()
            block[positions[which] - number * column.block_rows] = values[which]


# --- checksums -------------------------------------------------------------------------------------------------------


def put_checksums(columns: BlockColumns, made: Merge) -> None:
    """Put the checksums of the blocks that a merge puts, and note theirs for the head."""
    changed: dict[str, list[int]] = {}
    for name, number in made.puts:
        changed.setdefault(name, []).append(number)
    sums_of = dict(zip(made.puts, checksums_of([*made.puts.values()]), strict=True))
    for name in made.of_checksums:
        count = columns.layout[name].blocks(made.lengths[name])
        if name not in changed and count == columns.layout[name].blocks(columns.rows(name)) and not made.checksums:
            continue
        old = made.checksums[name] if name in made.checksums else columns.checksums(name)
        new = np.zeros(count, np.uint32)
        new[: min(count, len(old))] = old[:count]
        for number in changed.get(name, ()):
            new[number] = sums_of[name, number]
        made.checksums[name] = new
        table = columns.layout[CHECKSUMS + name]
        made.lengths[table.name] = count
        sums = made.of_checksums[name][: table.blocks(count)]
        sums += [0] * (table.blocks(count) - len(sums))
        first_new = min(len(old), count) // table.block_rows
        touched = {number // table.block_rows for number in changed.get(name, ())}
        if count != len(old):
            touched.update(range(first_new, table.blocks(count)))
        for number in sorted(touched):
            block = new[number * table.block_rows : (number + 1) * table.block_rows]
            made.puts[table.name, number] = block
            sums[number] = checksum(block)
        made.of_checksums[name] = sums
