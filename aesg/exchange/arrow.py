"""Parquet and Arrow: a folder with a file for each table, and `meta.json`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from aesg.backends.files import os_errors
from aesg.errors import AESGError, CorruptionError, InvalidInputError, UnsupportedError
from aesg.exchange.layout import CHUNK_BYTES, TABLES, Meta, Table, edge_chunks, event_chunks, node_chunks
from aesg.protocols import Graph, Progress
from aesg.records import Columns, distinct

META: Final = "meta.json"
Kind: TypeAlias = Literal["parquet", "arrow"]
_Walk: TypeAlias = Callable[[list[str], int], Iterator[Any]]


def pyarrow() -> Any:
    """The package, imported when it is first needed.

    Raises:
        UnsupportedError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UnsupportedError(f'Parquet and Arrow need pyarrow: pip install "aesg[exchange]" ({error})') from error
    return pyarrow


def write(graph: Graph, meta: Meta, folder: Path, kind: Kind, tell: Progress | None = None) -> None:
    """Write a graph's tables into a new folder.

    Args:
        graph: What is written; must not change meanwhile.
        meta: What `meta.json` says.
        folder: Made here.
        kind: The format of the files in it.
        tell: Told how far it is.
    """
    pa = pyarrow()
    with os_errors("writing", folder):
        folder.mkdir()
        _write_table(pa, folder / f"nodes.{kind}", kind, "nodes", node_chunks(graph, tell), meta.vector_dim)
        _write_table(pa, folder / f"edges.{kind}", kind, "edges", edge_chunks(graph, tell), meta.vector_dim)
        events = ({name: chunk[name] for name in TABLES["events"]} for chunk in event_chunks(graph, tell))
        _write_table(pa, folder / f"events.{kind}", kind, "events", events, meta.vector_dim)
        (folder / META).write_text(meta.to_json(), "utf-8")


def _write_table(pa: Any, path: Path, kind: Kind, table: Table, chunks: Iterator[Columns], dim: int) -> None:
    types = {name: pa.from_numpy_dtype(dtype) for name, dtype in TABLES[table].items()}
    if table == "nodes":
        types["vector"] = pa.list_(pa.field("item", pa.float32(), nullable=False), dim)
    schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])
    with _arrow_errors("writing", path), _new_file(pa, path, kind, schema) as file:
        for chunk in chunks:
            arrays = [_array(pa, chunk[name], types[name]) for name in types]
            file.write_batch(pa.record_batch(arrays, schema=schema))


def _new_file(pa: Any, path: Path, kind: Kind, schema: Any) -> Any:
    if kind == "arrow":
        return pa.ipc.new_file(str(path), schema)
    # Dictionaries would hold ids and numbers that hardly repeat; checksums are what Parquet leaves out by itself.
    options: dict[str, Any] = {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": False,
        "write_page_checksum": True,
    }
    if "vector" in schema.names:
        options["use_byte_stream_split"] = ["vector.list.element"]  # a seventh smaller, and faster at that
    return pa.parquet.ParquetWriter(str(path), schema, **options)


def _array(pa: Any, values: Any, kind: Any) -> Any:
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), type=kind)
    return pa.array(np.ascontiguousarray(values), kind)


class ArrowTables:
    """Tables in Parquet or Arrow files; `readers.Tables`.

    Args:
        files: Table → its file; "edges" and "events" may be absent.
        meta: What `meta.json` beside them says; None where there is none.
    """

    def __init__(self, files: Mapping[Table, Path], meta: Meta | None) -> None:
        self._pa = pyarrow()
        self._files = files
        self.meta = meta

    def place(self, table: Table) -> str:
        return str(self._files[table])

    def columns(self, table: Table) -> Sequence[str]:
        if table not in self._files:
            return ()
        with self._opened(table) as (schema, _, _):
            return list(schema.names)

    def count(self, table: Table) -> int:
        if table not in self._files:
            return 0
        with self._opened(table) as (_, count, _):
            return int(count)

    def vector_dim(self) -> int | None:
        with self._opened("nodes") as (schema, _, batches):
            kind = schema.field("vector").type
            if self._pa.types.is_fixed_size_list(kind):
                return int(kind.list_size)
            first = next(batches(["vector"], 1), None)
            if first is None or not first.num_rows:
                return None
            if not hasattr(first.column(0), "value_lengths"):
                raise InvalidInputError(f"{self.place('nodes')}: column vector is of {kind}; expected lists of numbers")
            return int(first.column(0).value_lengths()[0].as_py() or 0)

    def chunks(self, table: Table, names: Sequence[str]) -> Iterator[Columns]:
        width = 8 * (len(names) + ("vector" in names and (self.vector_dim() or 0)))
        with self._opened(table) as (_, _, batches):
            first = 0
            for batch in batches(list(names), max(1, CHUNK_BYTES // width)):
                yield {name: self._column(batch.column(name), table, name, first) for name in names}
                first += batch.num_rows

    @contextmanager
    def _opened(self, table: Table) -> Iterator[tuple[Any, int, _Walk]]:
        """Schema, number of rows, and what walks columns, so many rows at a time."""
        pa, path = self._pa, self._files[table]
        with os_errors("reading", path), _arrow_errors("reading", path):
            if path.suffix == ".parquet":
                with pa.parquet.ParquetFile(str(path), page_checksum_verification=True, pre_buffer=False) as file:
                    yield file.schema_arrow, file.metadata.num_rows, partial(self._parquet_batches, file)
            else:
                with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
                    count = sum(file.get_batch(i).num_rows for i in range(file.num_record_batches))
                    yield file.schema, count, partial(self._arrow_batches, file)

    @staticmethod
    def _parquet_batches(file: Any, names: list[str], rows: int) -> Iterator[Any]:
        return iter(file.iter_batches(batch_size=rows, columns=names, use_threads=True))

    @staticmethod
    def _arrow_batches(file: Any, names: list[str], rows: int) -> Iterator[Any]:
        for number in range(file.num_record_batches):
            batch = file.get_batch(number).select(names)
            batch.validate(full=True)  # offsets that lead outside would be followed
            for start in range(0, batch.num_rows, rows):
                yield batch.slice(start, rows)

    def _column(self, column: Any, table: Table, name: str, first: int) -> Any:
        """A NumPy array of a column; vectors [n, D]."""
        pa, place = self._pa, f"{self.place(table)}: column {name}"
        if column.null_count:
            row = first + int(np.argmax(np.asarray(column.is_null())))
            raise InvalidInputError(f"{place}: row {row} has no value")
        kind = column.type
        if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = distinct(np.asarray(column.value_lengths()))
            if len(lengths) > 1:
                raise InvalidInputError(f"{place}: vectors of {' and '.join(map(str, lengths[:2]))} numbers")
            flat = column.flatten()
            if flat.null_count:
                raise InvalidInputError(f"{place}: a vector with a number missing")
            self._check_numbers(flat.type, place)
            width = int(lengths[0]) if len(lengths) else 0
            return flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
        self._check_numbers(kind, place)
        return column.to_numpy(zero_copy_only=False)

    def _check_numbers(self, kind: Any, place: str) -> None:
        types = self._pa.types
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise InvalidInputError(f"{place}: its type is {kind}; expected numbers (for vector: lists of numbers)")


@contextmanager
def _arrow_errors(doing: str, path: Path) -> Iterator[None]:
    """What pyarrow raises of a file that is not what it should be, in our words."""
    arrow_error = pyarrow().ArrowException
    try:
        yield
    except AESGError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise  # the system's
        raise CorruptionError(f"{doing} {path}: {error}") from error
    except (arrow_error, ValueError, LookupError, TypeError, OverflowError) as error:
        raise CorruptionError(f"{doing} {path}: {error}") from error
