"""NPZ: one file for `numpy.load`, written and read a chunk at a time, without pickles."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from aesg.backends.files import os_errors
from aesg.errors import ConflictError, CorruptionError, InvalidInputError
from aesg.exchange.layout import (
    CHUNK_BYTES,
    FORMAT,
    TABLES,
    Meta,
    Table,
    edge_chunks,
    event_chunks,
    node_chunks,
    report,
)
from aesg.protocols import Graph, Progress

_DATE: Final = (1980, 1, 1, 0, 0, 0)
"""Of every member: equal graphs make equal files."""
_META_LIMIT: Final = 64 << 20


def write(graph: Graph, meta: Meta, path: Path, tell: Progress | None = None) -> None:
    """Write a graph's columns into a new file, one after another, not compressed (as `numpy.savez` does).

    Args:
        graph: What is written; must not change meanwhile.
        meta: What the member `meta` says, a 0-d string.
        path: The file.
        tell: Told how many numbers and vectors are written.
    """
    with os_errors("writing", path), zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.comment = FORMAT.encode()
        done, of = 0, sum(meta.counts[table] * len(dtypes) for table, dtypes in TABLES.items())
        for table, dtypes in TABLES.items():
            for name, dtype in dtypes.items():
                shape = (meta.counts[table], meta.vector_dim) if name == "vector" else (meta.counts[table],)
                with _member(archive, name, dtype, shape) as member:
                    for chunk in _column(graph, table, name):
                        member.write(np.ascontiguousarray(chunk, dtype))
                        done += len(chunk)
                        report(tell, "columns", done, of)
        text = np.array(meta.to_json())
        with _member(archive, "meta", text.dtype, ()) as member:
            member.write(text)


class _Member:
    """An array in the making."""

    def __init__(self, file: IO[bytes], name: str, size: int) -> None:
        self._file, self._name, self._left = file, name, size

    def write(self, values: Any) -> None:
        """Its next values."""
        self._file.write(values.tobytes())
        self._left -= values.nbytes

    def check(self) -> None:
        """That all came, and no more."""
        if self._left:
            raise ConflictError(f"the column {self._name} changed while it was written; export again")


@contextmanager
def _member(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[_Member]:
    entry = zipfile.ZipInfo(f"{name}.npy", _DATE)
    entry.external_attr = 0o644 << 16
    with archive.open(entry, "w", force_zip64=True) as file:
        header = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(dtype)
        np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
        file.write(header.getvalue())
        member = _Member(file, name, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        yield member
        member.check()


def _column(graph: Graph, table: Table, name: str) -> Iterator[Any]:
    if table == "nodes":
        return (chunk[name] for chunk in node_chunks(graph, fields=(name,)))
    if table == "edges":
        return (chunk[name] for chunk in edge_chunks(graph, fields=(name,)))
    return (chunk[name] for chunk in event_chunks(graph))


class NpzTables:
    """The tables in an NPZ file; `readers.Tables`.

    Raises:
        CorruptionError: It is no NPZ file, or a damaged one.
        InvalidInputError: It has arrays that are not lists of numbers.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._errors(), zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                archive.open(name).close()  # a name that was damaged is not that of its member
            members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
            known = {name for table in TABLES.values() for name in table} & members.keys()
            self._shapes = {name: self._header(archive, members[name], name)[0] for name in known}
            self.meta = self._read_meta(archive) if "meta" in members else None
            if self.meta is None and archive.comment == FORMAT.encode():
                raise ValueError("an export whose meta is missing")

    def place(self, table: Table) -> str:
        return str(self._path)

    def columns(self, table: Table) -> Sequence[str]:
        return [name for name in TABLES[table] if name in self._shapes]

    def count(self, table: Table) -> int:
        lengths = {self._shapes[name][0] for name in self.columns(table)}
        if len(lengths) > 1:
            raise InvalidInputError(f"{self._path}: the arrays of {table} differ in length: {sorted(lengths)}")
        return lengths.pop() if lengths else 0

    def vector_dim(self) -> int | None:
        shape = self._shapes["vector"]
        return shape[1] if len(shape) == 2 else None

    def chunks(self, table: Table, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        count = self.count(table)
        with self._errors(), zipfile.ZipFile(self._path) as archive, ExitStack() as opened:
            parts = {name: self._header(archive, f"{name}.npy", name, opened) for name in names}
            width = sum(dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)) for shape, dtype, _ in parts.values())
            size = max(1, CHUNK_BYTES // max(1, width))
            for start in range(0, count, size):
                n = min(size, count - start)
                yield {name: self._next(n, *part) for name, part in parts.items()}
            for shape, _, file in parts.values():
                # At the end of a member its checksum is compared, which only a read past it does.
                if file.read(1):
                    raise ValueError(f"more bytes than an array of shape {shape} has")

    @staticmethod
    def _next(n: int, shape: tuple[int, ...], dtype: np.dtype[Any], file: IO[bytes]) -> Any:
        size = n * dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
        data = file.read(size)
        if len(data) != size:
            raise ValueError("an array ends too early")
        return np.frombuffer(data, dtype).reshape(n, *shape[1:])

    def _header(
        self, archive: zipfile.ZipFile, member: str, name: str, opened: ExitStack | None = None
    ) -> tuple[tuple[int, ...], np.dtype[Any], IO[bytes]]:
        """Shape and dtype of an array, and its file, which then stands where the numbers begin."""
        file = archive.open(member)
        if opened is not None:
            opened.enter_context(file)
        try:
            version = np.lib.format.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"NumPy format {version}")
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
        finally:
            if opened is None:
                file.close()
        place = f"{self._path}: array {name}"
        if dtype.kind not in "iufb":
            raise InvalidInputError(f"{place} is of {dtype}; expected numbers")
        if len(shape) != (2 if name == "vector" else 1):
            raise InvalidInputError(f"{place} is of shape {shape}; expected {'[n, D]' if name == 'vector' else '[n]'}")
        numbers = int(np.prod(shape, dtype=object))
        if min(shape) < 0 or numbers * dtype.itemsize > archive.getinfo(member).file_size:
            raise ValueError(f"an array of shape {shape} in {archive.getinfo(member).file_size} bytes")
        if fortran and len(shape) > 1 and min(shape) > 1:
            raise InvalidInputError(f"{place} is in Fortran order; save numpy.ascontiguousarray of it")
        return shape, dtype, file

    def _read_meta(self, archive: zipfile.ZipFile) -> Meta:
        if archive.getinfo("meta.npy").file_size > _META_LIMIT:
            raise ValueError(f"meta is longer than {_META_LIMIT} bytes")
        text = np.load(io.BytesIO(archive.read("meta.npy")), allow_pickle=False)
        return Meta.parse(str(text), f"{self._path}: meta")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with os_errors("reading", self._path):
            try:
                yield
            except (CorruptionError, InvalidInputError):
                raise
            except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError) as error:
                raise CorruptionError(f"reading {self._path}: {error}") from error
