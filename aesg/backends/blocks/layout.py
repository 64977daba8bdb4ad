"""Which columns a graph has, and how they are cut into blocks.

nodes/<field>       one column per field of `records.NODE_FIELDS`, by row
edges/<field>       one per field of `records.EDGE_FIELDS`, and `removed` (0 or 1), by ref
events/<field>      one per field of `records.EVENT_DTYPE`, in the order of appending
out/start           where the out-edges of a row begin in the columns below; one more than there are rows
out/ref out/target_row out/weight out/confidence out/use_count
                    edges once more, sorted by source, newest first; `ref` is ~ref where the edge was removed
log                 bytes: commits that are not in the columns yet (see `log`); each begins a block of its own
checksums/<column>  CRC-32 of each block of the column; theirs are in the head
"""

from __future__ import annotations

from typing import Final

import numpy as np

from aesg import records
from aesg.backends.blocks.container import Column

EDGE_COLUMNS: Final = {**records.EDGE_FIELDS, "removed": np.dtype("u1")}
"""Field → dtype of the edges by ref."""
OUT_COLUMNS: Final = {
    "ref": np.dtype("<i8"),
    "target_row": records.EDGE_FIELDS["target_row"],
    "weight": records.EDGE_FIELDS["weight"],
    "confidence": records.EDGE_FIELDS["confidence"],
    "use_count": records.EDGE_FIELDS["use_count"],
}
"""Field → dtype of the edges by source."""
OUT_NAMES: Final = tuple(f"out/{name}" for name in OUT_COLUMNS)
EVENT_COLUMNS: Final = {name: records.EVENT_DTYPE[name] for name in records.EVENT_DTYPE.names or ()}
"""Field → dtype of the events."""
START: Final = "out/start"
LOG: Final = "log"
LOG_BLOCK: Final = 1 << 16
FEW_UNSORTED: Final = 1 << 14
"""So many edges may always wait for being sorted by source: a store that has them is opened as fast as without."""
CHECKSUMS: Final = "checksums/"


def columns(vector_dim: int, block_bytes: int) -> dict[str, Column]:
    """Every column of a store, by name.

    Args:
        vector_dim: Length D of the vectors.
        block_bytes: Upper limit of a block's size, unless a single row is larger.
    """

    def column(name: str, dtype: np.dtype[np.generic], dimension: str, width: int | None = None) -> Column:
        rows = max(1, block_bytes // (dtype.itemsize * (width or 1)))
        return Column(name, dtype, width, 1 << (rows.bit_length() - 1), dimension)

    found = [
        *(
            column(f"nodes/{name}", dtype, "node", vector_dim if name == "vector" else None)
            for name, dtype in records.NODE_FIELDS.items()
        ),
        *(column(f"edges/{name}", dtype, "edge") for name, dtype in EDGE_COLUMNS.items()),
        *(column(f"events/{name}", dtype, "event") for name, dtype in EVENT_COLUMNS.items()),
        column(START, np.dtype("<i8"), "node_and_end"),
        *(column(f"out/{name}", dtype, "edge_by_source") for name, dtype in OUT_COLUMNS.items()),
    ]
    # Small blocks: each commit that changes a block rewrites its checksum's block too.
    small = [
        Column(CHECKSUMS + c.name, np.dtype("<u4"), None, 1024, f"{c.name.replace('/', '_')}_block") for c in found
    ]
    log = Column(LOG, np.dtype("u1"), None, LOG_BLOCK, "log_byte")
    return {c.name: c for c in (*found, *small, log)}
