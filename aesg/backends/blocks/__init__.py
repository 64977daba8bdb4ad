"""A complete graph store over a small container of blocks.

`container`    what a backend implements: get blocks, commit a set of changes, the capabilities
`layout`       which columns there are, and how they are cut into blocks
`columns`      reading columns: loaded blocks, their checksums, the bounded cache
`pending`      rows and values that are committed but not in blocks yet, or not committed yet
`adjacency`    out-edges: compressed sparse rows in blocks, and what was appended since
`log`          the small commit: one record of what it changed
`tables`       `Tables` and `WritableTables` over all of that
`merge`        the large commit: everything pending goes into blocks
`store`        `BlockStore`, the graph store
"""

from aesg.backends.blocks.container import BlockContainer, Changes, Column
from aesg.backends.blocks.store import BlockStore

__all__ = ["BlockContainer", "BlockStore", "Changes", "Column"]
