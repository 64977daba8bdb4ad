"""GraphML and GML, written line by line. Both say a graph's nodes, edges and statistics; neither its events."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias
from xml.sax.saxutils import escape

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors
from aesg.exchange.layout import Meta, edge_chunks, node_chunks
from aesg.protocols import Graph, Progress
from aesg.records import EDGE_FIELDS, NODE_FIELDS

Kind: TypeAlias = Literal["graphml", "gml"]
_Show: TypeAlias = Callable[[Any], str]

_NODE: Final = tuple(name for name in NODE_FIELDS if name not in ("id", "vector"))
_EDGE: Final = ("weight", "confidence", "use_count")
_INT32: Final = 1 << 31
_XML: Final = """<?xml version="1.0" encoding="UTF-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" \
xsi:schemaLocation="http://graphml.graphdrawing.org/xmlns http://graphml.graphdrawing.org/xmlns/1.0/graphml.xsd">
"""


def write(
    graph: Graph, meta: Meta, path: Path, kind: Kind, tell: Progress | None = None, *, vectors: bool = False
) -> None:
    """Write a graph into a new file.

    A node is named by its id. Float32 numbers are written in the fewest digits that lead back to them.

    Args:
        graph: What is written; must not change meanwhile.
        meta: Its attrs are written as JSON.
        path: The file.
        kind: Its format.
        tell: Told how far it is.
        vectors: Whether each node's vector is written, as numbers with a space between.
    """
    with _text(path) as file:
        (_graphml if kind == "graphml" else _gml)(graph, meta, file, tell, vectors)


def _graphml(graph: Graph, meta: Meta, file: IO[str], tell: Progress | None, vectors: bool) -> None:
    file.write(_XML)
    keys = [("graph", "attrs", "string"), *(("node", name, _xml_type(NODE_FIELDS[name])) for name in _NODE)]
    keys += [("node", "vector", "string")] * vectors
    keys += [("edge", name, _xml_type(EDGE_FIELDS[name])) for name in _EDGE]
    for part, name, kind in keys:
        file.write(f'  <key id="{name}" for="{part}" attr.name="{name}" attr.type="{kind}"/>\n')
    attrs = escape(json.dumps(meta.attrs))
    file.write(f'  <graph edgedefault="directed">\n    <data key="attrs">{attrs}</data>\n')
    data = "".join(f'<data key="{name}">%s</data>' for name in [*_NODE, *["vector"] * vectors])
    _lines(file, _nodes(graph, tell, vectors, str), f'    <node id="%s">{data}</node>\n')
    data = "".join(f'<data key="{name}">%s</data>' for name in _EDGE)
    _lines(file, _edges(graph, tell, str, names=True), f'    <edge source="%s" target="%s">{data}</edge>\n')
    file.write("  </graph>\n</graphml>\n")


def _gml(graph: Graph, meta: Meta, file: IO[str], tell: Progress | None, vectors: bool) -> None:
    """GML numbers nodes with 32 bits: that is the row here; the id is the label."""
    attrs = html.escape(json.dumps(meta.attrs))
    file.write(f'graph [\n  directed 1\n  multigraph 1\n  attrs "{attrs}"\n')
    data = "".join(f" {name} %s" for name in _NODE) + ' vector "%s"' * vectors
    nodes = ((row, line) for row, line in enumerate(_nodes(graph, tell, vectors, _gml_number)))
    _lines(file, ((row, *line) for row, line in nodes), f'  node [ id %s label "%s"{data} ]\n')
    data = "".join(f" {name} %s" for name in _EDGE)
    _lines(file, _edges(graph, tell, _gml_number, names=False), f"  edge [ source %s target %s{data} ]\n")
    file.write("]\n")


def _nodes(graph: Graph, tell: Progress | None, vectors: bool, show: _Show) -> Iterator[tuple[Any, ...]]:
    """Each node's id, its fields, and its vector when that is wanted."""
    for chunk in node_chunks(graph, tell, ("id", *_NODE, *["vector"] * vectors)):
        columns = [chunk["id"].tolist(), *(_shown(chunk[name], show) for name in _NODE)]
        if vectors:
            columns.append([" ".join(vector) for vector in _digits(chunk["vector"])])
        yield from zip(*columns, strict=True)


def _edges(
    graph: Graph, tell: Progress | None, show: Callable[[Any], str], *, names: bool
) -> Iterator[tuple[Any, ...]]:
    """Each edge's source, target and fields."""
    for chunk in edge_chunks(graph, tell, ("source", "target", *_EDGE), names=names):
        ends = chunk["source"].tolist(), chunk["target"].tolist()
        yield from zip(*ends, *(_shown(chunk[name], show) for name in _EDGE), strict=True)


def _shown(column: npt.NDArray[Any], show: _Show) -> list[str]:
    if column.dtype.kind != "f":
        return [show(value) for value in column.tolist()]
    return [show(value) for value in _digits(column)]


def _digits(column: npt.NDArray[Any]) -> Any:
    """The shortest digits of float32 numbers, as nested lists of strings."""
    return column.astype(str).tolist()


def _gml_number(value: int | str) -> str:
    """A number as GML has it: integers of 32 bits, others as strings; a point in every real."""
    if isinstance(value, int):
        return str(value) if value < _INT32 else f'"{value}"'
    mantissa, e, exponent = value.partition("e")
    return value if "." in mantissa else f"{mantissa}.0{e}{exponent}"


def _xml_type(dtype: np.dtype[Any]) -> str:
    return "float" if dtype.kind == "f" else "long"


def _lines(file: IO[str], values: Iterator[tuple[Any, ...]], pattern: str) -> None:
    file.writelines(pattern % each for each in values)


@contextmanager
def _text(path: Path) -> Iterator[IO[str]]:
    with os_errors("writing", path), open(path, "x", encoding="utf-8", newline="\n", buffering=1 << 20) as file:
        yield file


NOT_CARRIED: Final[Mapping[bool, str]] = {
    False: "the events, and the vectors (--vectors writes them)",
    True: "the events",
}
"""What these files leave out; with and without vectors."""
