"""What is sound of a damaged store over blocks.

A block is sound when its checksum is the one that was noted. The checksums have checksums of their own, in the head;
where those do not match, each single one still tells of a block that matches it that it is sound. Edges lie in their
columns by ref and once more by source: a lost block of the one order is made from the other. Records of the log are
taken as far as the record after each, or the head, says that they are what was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from aesg import records
from aesg.backends.blocks import layout, log
from aesg.backends.blocks.columns import checksum
from aesg.backends.blocks.container import Block, BlockContainer, Column
from aesg.backends.blocks.store import lengths_of, opened_head
from aesg.backends.blocks.tables import EDGES, EVENTS, Kind, node_kind
from aesg.backends.files import writers_kept_out
from aesg.backends.salvage import Known, Losses
from aesg.errors import AESGError, CorruptionError
from aesg.records import JSON, Columns

_KEPT: Final = 8
"""Blocks of a column that are kept at hand."""


class View(Protocol):
    """A commit in what is left of a container.

    Attributes:
        head: Its head, be it garbled; None where there is none.
    """

    head: Mapping[str, Any] | None

    def find(self, column: Column, number: int, rows: int) -> Iterator[Block]:
        """What may be that block, the likeliest first; what is no such block is not minded."""

    def inferred(self) -> dict[str, Any] | None:
        """A head made from other things, without checksums; None where there is nothing to make it from."""


class Rubble(Protocol):
    """What is left of a container."""

    def views(self) -> Iterator[View]:
        """Commits, the newest first."""

    def close(self) -> None:
        """Let go of it."""


class Opened:
    """A container that could be opened, as rubble and as its only view."""

    def __init__(self, container: BlockContainer) -> None:
        self._container = container
        try:
            self.head: Mapping[str, Any] | None = container.head()
        except AESGError:
            self.head = None

    def views(self) -> Iterator[View]:
        yield self

    def find(self, column: Column, number: int, rows: int) -> Iterator[Block]:
        try:
            block = self._container.get(column, number, rows)
        except AESGError:
            return
        if block is not None:
            yield block

    def inferred(self) -> dict[str, Any] | None:
        return None

    def close(self) -> None:
        self._container.close()


class BlockWreck:
    """`Wreck` of a store over blocks.

    Args:
        url: Where it lies.
        rubble: What is left of its container; closed with this, and when this raises.
        hold: Keeps writers out; released with this, and when this raises.

    Raises:
        CorruptionError: No head is left, or nothing to make one from.
    """

    def __init__(self, url: str, rubble: Rubble, hold: writers_kept_out | None = None) -> None:
        self.url = url
        self.losses = Losses()
        self._rubble = rubble
        self._hold = hold
        try:
            self._view, head = self._newest()
            self._head = head
            self.vector_dim = int(head["vector_dim"])
            self.attrs: Mapping[str, JSON] = head["attrs"]
            self._layout = layout.columns(self.vector_dim, int(head["block_bytes"]))
            self._lengths = lengths_of(head, self._layout)
            self._at_hand: dict[str, dict[int, Block | None]] = {}
            self._sums = {name: self._expected(name) for name in head["checksums"]}
            self._kinds = {kind.name: kind for kind in (node_kind(self.vector_dim), EDGES, EVENTS)}
            self._tails: dict[str, Columns] = {}
            self._patches: dict[str, list[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]] = {}
            self._read_log()
            bad = self._look()
            self._remade: dict[str, dict[int, tuple[Block, npt.NDArray[np.bool_]]]] = {}
            self._remake(bad)
        except BaseException:
            self.close()
            raise
        have = {name: self._rows_left(kind) for name, kind in self._kinds.items()}
        self.node_rows, self.edge_slots, self.event_rows = (have[name] for name in ("nodes", "edges", "events"))
        self.missing: Mapping[str, int] = {name: max(0, int(head[name]) - rows) for name, rows in have.items()}

    def _rows_left(self, kind: Kind) -> int:
        """Rows in blocks and in the log."""
        field = next(iter(kind.fields))
        return self._lengths[kind.column(field)] + len(self._tails.get(kind.name, {}).get(field, ()))

    def close(self) -> None:
        try:
            self._rubble.close()
        finally:
            if self._hold is not None:
                self._hold.release()

    # The head

    def _newest(self) -> tuple[View, dict[str, Any]]:
        """The newest commit whose head can be trusted."""
        seen: list[View] = []
        for view in self._rubble.views():
            try:
                head = opened_head(view.head, self.url)
            except CorruptionError as error:
                self.losses.add("commits", "head", f"{error}; an older commit is taken, if there is one")
                seen.append(view)
                continue
            return view, head
        for view in seen:
            if (made := view.inferred()) is not None:
                self.losses.add("attrs", "head", "no head can be read: rows are counted by other means, attrs are lost")
                return view, made
        raise CorruptionError(f"{self.url}: no head can be read, without which nothing says what the blocks hold")

    # Blocks

    def _expected(self, name: str) -> list[int]:
        """CRC-32 of each block of a column."""
        table = self._layout[layout.CHECKSUMS + name]
        known = self._head["checksums"][name]
        count = self._layout[name].blocks(self._lengths[name])
        found: list[int] = []
        for number in range(table.blocks(count)):
            rows = table.rows_in(number, count)
            blocks = [block for block in self._view.find(table, number, rows) if _fits(block, table, rows)]
            sound = [block for block in blocks if known is not None and checksum(block) == known[number]]
            if known is not None and not sound:
                what = "garbled; each of its checksums is compared for itself" if blocks else "missing"
                self.losses.add("derived" if blocks else _part(name), f"{table.name} block {number}", what)
            found += (sound or blocks or [np.full(rows, -1, np.int64)])[0].tolist()
        return found

    def _block(self, name: str, number: int) -> Block | None:
        """A sound block; None when there is none."""
        near = self._at_hand.setdefault(name, {})
        if number not in near:
            if len(near) >= _KEPT:
                del near[next(iter(near))]
            column = self._layout[name]
            rows = column.rows_in(number, self._lengths[name])
            expected = self._sums[name][number]
            candidates = (b for b in self._view.find(column, number, rows) if _fits(b, column, rows))
            near[number] = next((block for block in candidates if checksum(block) == expected), None)
        return near[number]

    def _look(self) -> dict[str, list[int]]:
        """Look at every block; those that are lost, by column."""
        lost: dict[str, list[int]] = {}
        for name in self._sums:
            column = self._layout[name]
            for number in range(column.blocks(self._lengths[name])):
                if self._block(name, number) is None:
                    lost.setdefault(name, []).append(number)
                    first = number * column.block_rows
                    last = first + column.rows_in(number, self._lengths[name]) - 1
                    detail = "the block is missing or its checksum is not the one that was noted"
                    self.losses.add(_part(name), f"{name} block {number}: rows {first} to {last}", detail)
        return lost

    def _column(self, name: str, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """Rows of a column, and which of them are known."""
        column = self._layout[name]
        out = np.zeros(column.shape(stop - start), column.dtype)
        known = np.zeros(stop - start, np.bool_)
        at = start
        while at < stop:
            number = at // column.block_rows
            first = number * column.block_rows
            last = min(first + column.block_rows, stop)
            block, valid = self._block(name, number), None
            if block is None and number in self._remade.get(name, {}):
                block, valid = self._remade[name][number]
            if block is not None:
                out[at - start : last - start] = block[at - first : last - first]
                known[at - start : last - start] = True if valid is None else valid[at - first : last - first]
            at = last
        return out, known

    # The other order of the edges

    def _remake(self, bad: Mapping[str, Sequence[int]]) -> None:
        """Make lost blocks of edges by ref from the edges by source."""
        lost = {name: numbers for name, numbers in bad.items() if name.startswith("edges/")}
        length = self._lengths["out/ref"]
        if not lost or not length:
            return
        slots = self._lengths["edges/source_row"]
        for name, numbers in lost.items():
            column = self._layout[name]
            self._remade[name] = {
                number: (np.zeros(column.block_rows, column.dtype), np.zeros(column.block_rows, np.bool_))
                for number in numbers
            }
        starts, begun = self._column(layout.START, 0, self._lengths[layout.START])
        refs_column = self._layout["out/ref"]
        listed = np.zeros(slots, np.bool_)
        every_list = True
        for first in range(0, length, refs_column.block_rows):
            stop = min(first + refs_column.block_rows, length)
            refs, known = self._column("out/ref", first, stop)
            every_list &= bool(known.all())
            gone = refs < 0
            refs = np.where(gone, ~refs, refs)
            known &= refs < slots
            listed[refs[known]] = True
            for name in lost:
                values, there = self._by_source(name.removeprefix("edges/"), first, stop, gone, starts, begun)
                self._fill(name, refs, values, known & there)
        if "edges/removed" in lost and every_list:
            # What is in no list although its time to be sorted has come was removed before.
            unsorted = np.arange(slots) >= int(self._head["sorted_edges"])
            refs = np.flatnonzero(~listed & ~unsorted)
            self._fill("edges/removed", refs, np.ones(len(refs), np.uint8), np.ones(len(refs), np.bool_))

    def _by_source(
        self,
        field: str,
        first: int,
        stop: int,
        gone: npt.NDArray[np.bool_],
        starts: npt.NDArray[Any],
        begun: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """A field of the edges at positions first:stop of the order by source."""
        if field == "removed":
            return gone.astype(np.uint8), np.ones(stop - first, np.bool_)
        if field != "source_row":
            return self._column(f"out/{field}", first, stop)
        rows = np.flatnonzero(begun)
        if not len(rows):
            return np.zeros(stop - first, np.int64), np.zeros(stop - first, np.bool_)
        at = np.searchsorted(starts[rows], np.arange(first, stop), "right") - 1
        source = rows[np.maximum(at, 0)]
        after = np.minimum(source + 1, len(starts) - 1)
        sure = (at >= 0) & begun[after] & (starts[after] > np.arange(first, stop))
        return source, sure

    def _fill(self, name: str, refs: records.Refs, values: npt.NDArray[Any], which: npt.NDArray[np.bool_]) -> None:
        size = self._layout[name].block_rows
        numbers = refs // size
        for number, (block, valid) in self._remade[name].items():
            where = which & (numbers == number)
            inside = refs[where] - number * size
            block[inside], valid[inside] = values[where], True

    # The log

    def _read_log(self) -> None:
        """Take the records of the log as far as they are sound."""
        blocks, size, _ = self._head["log"]
        column = self._layout[layout.LOG]
        at, taken = log.Log(), 0
        waiting: list[Columns] = []

        def get(number: int) -> Block | None:
            return next(self._view.find(column, number, layout.LOG_BLOCK), None)

        sound: list[Columns] = []
        try:
            while at.blocks < blocks:
                changes, longer = log.read(at, get, self.url)
                before = changes.get(log.BEFORE)
                if before is not None and before.shape == (1,) and int(before[0]) == at.crc:
                    sound += waiting  # this one says that those before it are what was written
                    waiting = []
                elif before is not None:
                    break
                waiting.append(changes)
                at = longer
        except (AESGError, ValueError, IndexError, MemoryError, OverflowError) as error:
            self.losses.add("commits", "log", str(error))
        if at.as_json() == self._head["log"]:
            sound, waiting = [*sound, *waiting], []
        for record in sound:
            taken += self._take(record)
        if at.as_json() != self._head["log"] and blocks:
            what = f"of {blocks} blocks with {size} bytes {taken} records could be taken; later commits are lost"
            self.losses.add("commits", "log", what)

    def _take(self, record: Columns) -> int:
        """Take in a record of the log."""
        for kind in self._kinds.values():
            new = {name: record[kind.column(name)] for name in kind.fields if kind.column(name) in record}
            if len(new) == len(kind.fields):
                old = self._tails.get(kind.name)
                self._tails[kind.name] = new if old is None else {n: np.concatenate([old[n], new[n]]) for n in new}
            for number, group in enumerate(kind.patched):
                rows = record.get(f"{kind.name}.{number}/row")
                if rows is not None:
                    for name in group:
                        self._patches.setdefault(kind.column(name), []).append(
                            (rows, record[f"{kind.name}.{number}/{name}"])
                        )
        return 1

    # What a wreck gives

    def _table(self, kind: Kind, start: int, stop: int) -> tuple[Columns, dict[str, npt.NDArray[np.bool_]]]:
        """Rows start:stop of a kind: blocks, what the log appended, what it changed."""
        columns, known = {}, {}
        for field in kind.fields:
            name = kind.column(field)
            merged = self._lengths[name]
            cut = min(max(start, merged), stop)
            values, valid = self._column(name, min(start, cut), cut)
            tail = self._tails.get(kind.name, {}).get(field)
            if cut < stop:
                column = self._layout[name]
                rest, there = np.zeros(column.shape(stop - cut), column.dtype), np.zeros(stop - cut, np.bool_)
                if tail is not None:
                    part = tail[cut - merged : stop - merged]
                    rest[: len(part)], there[: len(part)] = part, True
                values, valid = np.concatenate([values, rest]), np.concatenate([valid, there])
            for rows, new in self._patches.get(name, ()):
                inside = (rows >= start) & (rows < stop)
                values[rows[inside] - start], valid[rows[inside] - start] = new[inside], True
            columns[field], known[field] = values, valid
        return columns, known

    def nodes(self, start: int, stop: int) -> tuple[Columns, Known]:
        return self._table(self._kinds["nodes"], start, stop)

    def edges(self, start: int, stop: int) -> tuple[Columns, Known]:
        return self._table(self._kinds["edges"], start, stop)

    def events(self, start: int, stop: int) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        columns, known = self._table(self._kinds["events"], start, stop)
        out = np.zeros(stop - start, records.EVENT_DTYPE)
        sure = np.ones(stop - start, np.bool_)
        for name, values in columns.items():
            out[name] = values
            sure &= known[name]
        return out, sure


def _fits(block: Block, column: Column, rows: int) -> bool:
    return block.dtype == column.dtype and block.shape == column.shape(rows)


def _part(name: str) -> str:
    """What is lost with a block of a column."""
    kind = name.split("/")[0]
    return kind if kind in ("nodes", "edges", "events") else "derived"
