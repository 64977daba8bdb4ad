"""Whether the files of a seed index are whole, and right for the store that they lie beside."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from aesg.engine.index.roster import prints_of
from aesg.engine.index.sidecar import HEADER, Header, sum_of_file
from aesg.protocols import GraphStore, Progress, Violation

_ADVICE: Final = "the index is derived, delete its folder"
_SHOWN: Final = 100


def find_violations(store: GraphStore, folder: Path, progress: Progress | None = None) -> list[Violation]:
    """Compare an index with its store, byte by byte and vector by vector.

    An index of an earlier generation is no violation: whoever opens it compares it with the store before it answers.

    Args:
        store: Opened.
        folder: Where its index is, or would be.
        progress: Told how many rows were compared.
    """
    path = folder / HEADER
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        left = sorted(folder.glob("seeds.*")) if folder.is_dir() else []
        return [Violation("index-stray", str(file), f"no {HEADER} names it; {_ADVICE}") for file in left]
    except OSError as error:
        return [Violation("index-unreadable", str(path), f"{error.strerror}; {_ADVICE}")]
    try:
        header = Header.from_bytes(data)
    except (ValueError, TypeError, RecursionError) as error:
        return [Violation("index-garbled", str(path), f"{error}; {_ADVICE}")]
    if header.uuid != store.uuid or header.dim != store.vector_dim:
        return [Violation("index-foreign", str(path), f"it is the index of store {header.uuid}; {_ADVICE}")]
    found = []
    for name, wanted in ((header.graph, header.graph_sum), (header.roster, header.roster_sum)):
        try:
            if sum_of_file(folder / name) != wanted:
                found.append(Violation("index-garbled", str(folder / name), f"the checksum is wrong; {_ADVICE}"))
        except OSError as error:
            found.append(Violation("index-unreadable", str(folder / name), f"{error.strerror}; {_ADVICE}"))
    if found or header.generation != store.generation:
        return found
    return _compare(store, folder / header.roster, header.rows, progress)


def _compare(store: GraphStore, roster: Path, rows: int, progress: Progress | None) -> list[Violation]:
    """Whether every row is as the index says that it was at this generation."""
    prints = np.fromfile(roster, np.uint8)[: 8 * rows].view("<u8")
    total = len(store.nodes)
    if len(prints) != rows or rows > total:
        return [Violation("index-stale", str(roster), f"it knows {rows} rows, the store has {total}; {_ADVICE}")]
    first, wrong = 0, [np.empty(0, np.int64)]
    for chunk in store.nodes.scan(["vector", "is_active"]):
        have = prints_of(chunk)[: max(0, rows - first)]
        wrong.append(first + np.flatnonzero(have != prints[first : first + len(have)]))
        first += len(chunk["is_active"])
        if progress is not None:
            progress("index", min(first, total), total)
    stale = np.concatenate(wrong)
    found = [
        Violation("index-stale", f"{roster} row {row}", f"another vector was indexed; {_ADVICE}")
        for row in stale[:_SHOWN].tolist()
    ]
    if len(stale) > _SHOWN:
        found.append(Violation("index-stale", "further places", f"and {len(stale) - _SHOWN} more"))
    return found
