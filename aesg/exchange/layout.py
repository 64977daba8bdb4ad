"""What is exchanged: three tables and `meta`, the same in every format that can be read back.

* nodes: the fields of `records.NODE_FIELDS`, one row of the table for each row of the graph, in order.
* edges: `source` and `target` (ids of nodes), weight, confidence, use_count; in order of ref, removed ones left out.
* events: the fields of `records.EVENT_DTYPE`.
* meta: a JSON object: format, version, vector_dim, how many rows each table has, the attrs, and the content digest.

Somebody else's tables need `id` and `vector`, and for edges `source` and `target`; the rest has starting values.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.errors import CorruptionError, FormatVersionError, MigrationError
from aesg.protocols import Graph, Progress
from aesg.records import EDGE_FIELDS, EVENT_DTYPE, JSON, NODE_FIELDS, Columns

Table: TypeAlias = Literal["nodes", "edges", "events"]

TABLES: Final[Mapping[Table, Mapping[str, np.dtype[Any]]]] = {
    "nodes": NODE_FIELDS,
    "edges": {
        "source": np.dtype("<u8"),
        "target": np.dtype("<u8"),
        **{name: EDGE_FIELDS[name] for name in ("weight", "confidence", "use_count")},
    },
    "events": {name: EVENT_DTYPE[name] for name in EVENT_DTYPE.names or ()},
}
"""Table → column → dtype. No name occurs in two of them, so that an NPZ file can hold them side by side."""
NEEDED: Final[Mapping[Table, tuple[str, ...]]] = {
    "nodes": ("id", "vector"),
    "edges": ("source", "target"),
    "events": tuple(TABLES["events"]),
}
"""Columns without which a table cannot be read."""

FORMAT: Final = "aesg-exchange"
VERSION: Final = 1
CHUNK_BYTES: Final = 4 << 20
"""About how much of a table is in memory at a time, once or twice over."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What is said of the tables beside them.

    Attributes:
        vector_dim: Length of the vectors.
        counts: Table → number of rows.
        attrs: The attributes of the graph.
        digest: The content digest of the graph, see `aesg.migration.digest`.
    """

    vector_dim: int
    counts: dict[Table, int]
    attrs: dict[str, JSON] = field(default_factory=dict)
    digest: str | None = None

    def to_json(self) -> str:
        """As it is written."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def parse(cls, text: str | bytes, place: str) -> Meta:
        """Read what `to_json` wrote.

        Raises:
            CorruptionError: It is something else.
            FormatVersionError: A newer AESG wrote it.
        """
        try:
            found = json.loads(text)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                raise ValueError(f'no object with "format": "{FORMAT}"')
            if found["version"] != VERSION:
                raise FormatVersionError(f"{place}: version {found['version']}; this AESG reads version {VERSION}")
            counts = {table: found["counts"][table] for table in TABLES}
            numbers = [found["vector_dim"], *counts.values()]
            if not all(type(number) is int and number >= 0 for number in numbers) or numbers[0] < 1:
                raise ValueError("counts that cannot be")
            if not isinstance(found["attrs"], dict) or not isinstance(found["digest"], str | None):
                raise ValueError("attrs or digest of another type")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptionError(f"{place}: not what an export says of its tables: {error!r}") from error
        return cls(found["vector_dim"], counts, found["attrs"], found["digest"])


def meta_of(graph: Graph, digest: str | None = None) -> Meta:
    """What to say of a graph's tables."""
    counts: dict[Table, int] = {"nodes": len(graph.nodes), "edges": len(graph.edges), "events": len(graph.events)}
    return Meta(graph.vector_dim, counts, dict(graph.attrs), digest)


def node_chunks(graph: Graph, tell: Progress | None = None, fields: tuple[str, ...] | None = None) -> Iterator[Columns]:
    """The table of nodes, a chunk at a time."""
    rows = max(1, CHUNK_BYTES // (53 + 4 * graph.vector_dim))
    done, count = 0, len(graph.nodes)
    for chunk in graph.nodes.scan(fields, rows):
        done += len(next(iter(chunk.values())))
        yield chunk
        report(tell, "nodes", done, count)


def edge_chunks(
    graph: Graph, tell: Progress | None = None, fields: tuple[str, ...] | None = None, *, names: bool = True
) -> Iterator[Columns]:
    """The table of edges, a chunk at a time.

    Args:
        graph: The graph.
        tell: Told how far it is.
        fields: Columns of the table; all when None.
        names: Whether source and target are ids (which takes 8 bytes a node) or rows.

    Raises:
        MigrationError: An edge leads to an id that no node has; a graph in another program has no place for it.
    """
    wanted = tuple(TABLES["edges"]) if fields is None else fields
    ends = {"source": "source_row", "target": "target_row"}
    ids = _ids(graph) if names and not ends.keys().isdisjoint(wanted) else None
    done, count = 0, len(graph.edges)
    for chunk in graph.edges.scan([ends.get(name, name) for name in wanted], CHUNK_BYTES // 28):
        found = {name: chunk[ends.get(name, name)] for name in wanted}
        for name in ends.keys() & found.keys():
            rows = found[name]
            if len(rows) and int(rows.min()) < 0:
                ref = int(chunk["ref"][int(np.argmin(rows))])
                raise MigrationError(f"edge {ref} has a {name} that no node has; aesg repair makes a sound copy")
            if ids is not None:
                found[name] = ids[rows]
        done += len(chunk["ref"])
        yield found
        report(tell, "edges", done, count)


def event_chunks(graph: Graph, tell: Progress | None = None) -> Iterator[npt.NDArray[Any]]:
    """The events, a chunk at a time; arrays of `records.EVENT_DTYPE`."""
    count, size = len(graph.events), CHUNK_BYTES // EVENT_DTYPE.itemsize
    for start in range(0, count, size):
        chunk = graph.events.read(start, min(start + size, count))
        yield chunk
        report(tell, "events", start + len(chunk), count)


def report(tell: Progress | None, doing: str, done: int, of: int) -> None:
    """Tell how far something is, when somebody wants to know."""
    if tell is not None:
        tell(doing, done, of)


def _ids(graph: Graph) -> npt.NDArray[np.uint64]:
    ids = np.empty(len(graph.nodes), np.uint64)
    at = 0
    for chunk in graph.nodes.scan(["id"]):
        part = chunk["id"][: len(ids) - at]
        ids[at : at + len(part)] = part
        at += len(part)
    return ids
