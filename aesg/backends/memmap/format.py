"""The 0.3.0 format: record layouts and `meta.npy`. Source: the published package's files, byte by byte.

`meta.npy` is a NumPy file that holds a pickle. 0.3.0 has to be able to read it, so a pickle is what is written; on
reading it is taken apart by an unpickler that knows no class and no function, only what such a dict needs.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aesg.backends.files import os_errors
from aesg.errors import CorruptionError

NODES: Final = "nodes.aesg"
EDGES: Final = "edges.aesg"
META: Final = "meta.npy"
EVENTS: Final = "evolution.aesglog"

END: Final = -1
"""next_edge_idx or head_edge_idx: the list ends here."""
REMOVED: Final = -2
"""next_edge_idx of a removed edge. No list leads there, so 0.3.0 never meets one."""

MIN_NODES: Final = 64
MIN_EDGES: Final = 320
"""Capacities of an empty store. mmap cannot map an empty file, and neither can 0.3.0."""

_META_LIMIT: Final = 1 << 16
# fmt: off
_OPCODES: Final = frozenset([
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
    "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND",
    "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS",
])
# fmt: on
"""What such a pickle is made of. Others could allocate gigabytes (LONG_BINPUT, BYTEARRAY8) or reach past `find_class`
(EXT1, which looks into a cache first)."""


def node_dtype(dim: int) -> np.dtype[Any]:
    """A record of `nodes.aesg`, 53 + 4 D bytes, packed."""
    return np.dtype(
        [
            ("id", "<u8"),
            ("vector", "<f4", (dim,)),
            ("created_at", "<u8"),
            ("modified_at", "<u8"),
            ("use_frequency", "<u4"),
            ("relevance", "<f4"),
            ("age", "<u4"),
            ("stability", "<f4"),
            ("region_id", "<u4"),
            ("is_active", "u1"),
            ("head_edge_idx", "<i8"),
        ]
    )


EDGE_DTYPE: Final = np.dtype(
    [
        ("source_id", "<u8"),
        ("target_id", "<u8"),
        ("weight", "<f4"),
        ("confidence", "<f4"),
        ("use_count", "<u4"),
        ("next_edge_idx", "<i8"),
    ]
)
"""A record of `edges.aesg`, 36 bytes, packed."""


@dataclass(frozen=True, slots=True)
class Meta:
    """What `meta.npy` says: counts of records, capacities of the files (in records), D."""

    node_count: int
    edge_count: int
    vector_dim: int
    cap_nodes: int
    cap_edges: int

    def to_bytes(self) -> bytes:
        """The file's bytes, as `np.save` writes a dict."""
        out = io.BytesIO()
        np.save(out, np.array(asdict(self), dtype=object), allow_pickle=True)
        return out.getvalue()


class _Array:
    """Stands in for the 0-d object array: keeps what the pickle says it contains."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DType:
    """Stands in for `dtype('O')`."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _MetaUnpickler(pickle.Unpickler):
    """Resolves the three names that NumPy pickles an object array with, to stand-ins that do nothing; no others."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DType,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known[module, name]


def read_meta(path: Path) -> Meta:
    """Read `meta.npy` without running anything that it contains.

    Raises:
        FileNotFoundError: There is none.
        CorruptionError: Not the pickle of such a dict, or numbers that cannot be.
    """
    try:
        with os_errors("reading", path), open(path, "rb") as file:
            raw = file.read(_META_LIMIT + 1)
    except OSError as error:
        if not path.exists():
            raise FileNotFoundError(str(path)) from error
        raise
    expected = "a NumPy file with a dict of node_count, edge_count, vector_dim, cap_nodes, cap_edges"
    try:
        if len(raw) > _META_LIMIT:
            raise ValueError(f"longer than {_META_LIMIT} bytes")
        stream = io.BytesIO(raw)
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"NumPy format {version}")
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        if shape != () or dtype != np.dtype(object):
            raise ValueError(f"an array of shape {shape} and {dtype}")
        strange = {code.name for code, *_ in pickletools.genops(raw[stream.tell() :])} - _OPCODES
        if strange:
            raise ValueError(f"a pickle with {', '.join(sorted(strange))}")
        array = _MetaUnpickler(stream).load()
        if not isinstance(array, _Array) or not isinstance(array.state, tuple) or len(array.state) != 5:
            raise ValueError("no object array")
        contents = array.state[4]
        if not isinstance(contents, list) or len(contents) != 1 or not isinstance(contents[0], dict):
            raise ValueError("no dict")
        values = contents[0]
        wanted = set(Meta.__dataclass_fields__)
        if set(values) != wanted:
            raise ValueError(f"a dict of {sorted(map(str, values))}")
        if any(type(v) is not int or v < 0 or v >= 1 << 62 for v in values.values()):
            raise ValueError(f"numbers that cannot be: {values}")
        meta = Meta(**values)
        if not 0 < meta.vector_dim <= 1 << 24:
            raise ValueError(f"vector_dim {meta.vector_dim}")
        if meta.node_count > meta.cap_nodes or meta.edge_count > meta.cap_edges:
            raise ValueError(f"more records than the files can hold: {values}")
        return meta
    except Exception as error:  # an unpickler may raise anything on garbage; all of it means the same
        raise CorruptionError(f"{path}: expected {expected}; found something else: {error}") from error
