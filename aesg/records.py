"""What a node, an edge and an event are: field names, dtypes, batches.

A *row* is a node's dense int64 position in insertion order, fixed until `compact()`. An *id* is its unique u64, which
never changes. A *ref* is an edge's int64 position, fixed until `compact()`. Engine and indexes work on rows and refs;
people and other systems keep ids.

Field names, dtypes and starting values are those of the 0.3.0 format.
"""

from __future__ import annotations

import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Rows: TypeAlias = npt.NDArray[np.int64]
"""Node rows, int64 [n]."""
Refs: TypeAlias = npt.NDArray[np.int64]
"""Edge refs, int64 [n]."""
Ids: TypeAlias = npt.NDArray[np.uint64]
"""Node ids, uint64 [n]."""
Vectors: TypeAlias = npt.NDArray[np.float32]
"""Vectors, float32 [n, D]."""
Columns: TypeAlias = dict[str, npt.NDArray[Any]]
"""Field name → array; all arrays have the same length."""
_Number = TypeVar("_Number", bound=np.number)
JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None

NODE_FIELDS: Final[Mapping[str, np.dtype[Any]]] = {
    "id": np.dtype("<u8"),
    "vector": np.dtype("<f4"),  # [D] of them
    "created_at": np.dtype("<u8"),  # Unix seconds
    "modified_at": np.dtype("<u8"),  # Unix seconds
    "use_frequency": np.dtype("<u4"),  # how often retrieval returned the node
    "relevance": np.dtype("<f4"),  # 1 when new or used, decays with every consolidation
    "age": np.dtype("<u4"),  # consolidations lived through
    "stability": np.dtype("<f4"),
    "region_id": np.dtype("<u4"),  # 0: none
    "is_active": np.dtype("u1"),  # 0: pruned
}
"""A node's fields in the order of the 0.3.0 record (its adjacency pointer is the backend's private matter)."""

NODE_DEFAULTS: Final[Mapping[str, float]] = {
    "use_frequency": 0,
    "relevance": 1.0,
    "age": 0,
    "stability": 0.5,
    "region_id": 0,
    "is_active": 1,
}
NODE_WRITABLE: Final = frozenset(NODE_FIELDS) - {"id", "created_at"}
"""Fields that may change after a node was appended."""

EDGE_FIELDS: Final[Mapping[str, np.dtype[Any]]] = {
    "source_row": np.dtype("<i8"),
    "target_row": np.dtype("<i8"),
    "weight": np.dtype("<f4"),
    "confidence": np.dtype("<f4"),
    "use_count": np.dtype("<u4"),  # how often the edge carried energy to a returned node
}
EDGE_WRITABLE: Final = frozenset({"weight", "confidence", "use_count"})
"""Fields that may change after an edge was appended."""

EVENT_DTYPE: Final = np.dtype(
    {
        "names": ["timestamp", "type", "id1", "id2", "val"],
        "formats": ["<u8", "u1", "<u8", "<u8", "<f4"],
        "offsets": [0, 8, 12, 20, 28],
        "itemsize": 32,
    }
)
"""An event as 0.3.0 lays it out in `evolution.aesglog`: `<Q B 3x Q Q f`, 32 bytes."""


_EVENT: Final = struct.Struct("<QB3xQQf")


class EventType(IntEnum):
    """What happened in the graph's life. Codes are 0.3.0's."""

    CREATE = 0  # id1: the new node; val 1: a stimulus stored as it came; val n > 1: abstracted from n, id2 the first
    MERGE = 1  # id1: the node that stays; id2: the node that went into it
    SPLIT = 2  # id1: the node that was split; id2: the new one
    PRUNE = 3  # id1: the node
    CONSOLIDATE = 4  # id1: the epoch; id2: active nodes
    RESTRUCTURE = 5  # id1: the epoch; id2: regions found

    @staticmethod
    def name_of(code: int) -> str:
        """The name of a type code; "UNKNOWN" for one that 0.3.0 does not define."""
        return EventType(code).name if code in EventType._value2member_map_ else "UNKNOWN"


def now() -> int:
    """Unix time in whole seconds, as the record's time fields hold it."""
    return int(time.time())


def new_ids(n: int) -> Ids:
    """`n` random 63-bit ids: a collision among a billion has a chance of 5 %, and a store refuses duplicates anyway."""
    if n < 4096:
        return np.frombuffer(secrets.token_bytes(8 * n), dtype="<u8") >> np.uint64(1)
    # The system's randomness is slow; a generator that begins from it anew each time is as good for this.
    return np.random.default_rng().bit_generator.random_raw(n) >> np.uint64(1)


@dataclass(frozen=True, slots=True)
class NodeBatch:
    """New nodes, column by column.

    Attributes:
        vector: float32 [n, D], finite.
        id: uint64 [n], unique. `None` makes random ones.
        columns: any other fields of `NODE_FIELDS`, each [n]; what is absent gets its starting value
            (times: now; relevance 1, stability 0.5, active, the rest 0).
    """

    vector: npt.NDArray[Any]
    id: npt.NDArray[Any] | None = None
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adjacency:
    """The out-edges of a list of rows in compressed sparse row (CSR) form.

    The edges of `rows[i]` are the positions `indptr[i]:indptr[i + 1]` of the other arrays, newest first.

    Attributes:
        indptr: int64 [len(rows) + 1].
        refs: int64 [E], to write to or remove an edge.
        target_rows: int64 [E]; -1 where the edge names an id that no node has.
        weight: float32 [E].
        confidence: float32 [E].
        use_count: uint32 [E].
    """

    indptr: npt.NDArray[np.int64]
    refs: Refs
    target_rows: Rows
    weight: npt.NDArray[np.float32]
    confidence: npt.NDArray[np.float32]
    use_count: npt.NDArray[np.uint32]

    @property
    def degrees(self) -> npt.NDArray[np.int64]:
        """Out-degree of each row asked for, int64 [len(rows)]."""
        return np.diff(self.indptr)

    @classmethod
    def joined(cls, parts: Sequence[Adjacency]) -> Adjacency:
        """The edges of several lists of rows as those of one."""
        ends = np.cumsum([0, *(len(part.refs) for part in parts)])
        indptr = [part.indptr[1:] + end for part, end in zip(parts, ends[:-1], strict=True)]
        return cls(
            np.concatenate([np.zeros(1, np.int64), *indptr]),
            np.concatenate([part.refs for part in parts]),
            np.concatenate([part.target_rows for part in parts]),
            np.concatenate([part.weight for part in parts]),
            np.concatenate([part.confidence for part in parts]),
            np.concatenate([part.use_count for part in parts]),
        )

    def newest(self, limit: int) -> Adjacency:
        """At most so many edges of each row."""
        if len(self.refs) <= limit:
            return self
        degrees = self.degrees
        if int(degrees.max()) <= limit:
            return self
        counts = np.minimum(degrees, limit)
        kept = ranges(self.indptr[:-1], counts)
        indptr = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        return Adjacency(
            indptr,
            self.refs[kept],
            self.target_rows[kept],
            self.weight[kept],
            self.confidence[kept],
            self.use_count[kept],
        )


def events(
    type: EventType,
    id1: npt.ArrayLike,
    id2: npt.ArrayLike = 0,
    val: npt.ArrayLike = 0.0,
    timestamp: int | None = None,
) -> npt.NDArray[Any]:
    """Build events of one type; `id1`, `id2` and `val` are broadcast against each other.

    Returns:
        Structured array of `EVENT_DTYPE`, [n].
    """
    sizes = [np.size(given) for given in (id1, id2, val)]
    out = np.zeros(max(sizes) if all(sizes) else 0, EVENT_DTYPE)
    out["timestamp"] = now() if timestamp is None else timestamp
    out["type"] = type
    out["id1"] = id1
    out["id2"] = id2
    out["val"] = val
    return out


def event_dicts(array: npt.NDArray[Any]) -> list[dict[str, Any]]:
    """Events as 0.3.0's list of dicts: timestamp, type (its name), id1, id2, val."""
    names = [EventType.name_of(code) for code in range(256)]
    # struct takes records apart twice as fast as a structured array's own tolist.
    return [
        {"timestamp": t, "type": names[code], "id1": one, "id2": two, "val": val}
        for t, code, one, two, val in _EVENT.iter_unpack(array.tobytes())
    ]


def ranges(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Concatenate `arange(starts[i], starts[i] + counts[i])` for all i without a Python loop; int64 [counts.sum()]."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - counts), counts) + np.arange(total, dtype=np.int64)


def distinct(values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Distinct values, ascending: `np.unique`, which for integers takes fifty times as long since NumPy 2.3."""
    ordered = np.sort(values, axis=None)
    return ordered[_begins(ordered)]


def numbered(values: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct values from 0 up, ascending, and where each of `values` [n] is among them: in half of NumPy's time."""
    bits = len(values).bit_length()
    if not len(values) or int(values.max()) >> (63 - bits):
        found, where = np.unique(values, return_inverse=True)
        return found, where
    # Value and position fit one integer, and those are sorted several times as fast as by argsort.
    keys = (values << bits) | np.arange(len(values))
    keys.sort()
    ordered = keys >> bits
    new = _begins(ordered)
    where = np.empty(len(values), np.int64)
    where[keys & ((1 << bits) - 1)] = np.cumsum(new) - 1
    return ordered[new], where


def _begins(ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which of ascending values are the first of their kind."""
    new = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return new
