"""What can be checked of a directory without knowing what its arrays mean: that they are whole, and nothing else is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from aesg.backends.files import os_errors
from aesg.backends.zarr import documents
from aesg.backends.zarr.directory import NEW, PRIVATE
from aesg.errors import CorruptionError
from aesg.protocols import Violation

_CHUNK: Final = re.compile(r"c[./](\d+)(?:[./]0)?")


def find_violations(directory: Path) -> list[Violation]:
    """Documents that are none, chunks that are missing, files that are nobody's."""
    found: list[Violation] = []
    with os_errors("looking at", directory):
        for folder, folders, names in os.walk(directory):
            here = Path(folder)
            if here == directory:
                folders.remove(PRIVATE)
            place = here / documents.ROOT
            try:
                size = documents.array_size(place.read_bytes(), str(place))
            except FileNotFoundError:
                found.append(Violation("missing-document", str(place), "expected the document of an array or a group"))
                continue
            except CorruptionError as error:
                found.append(Violation("garbled-document", str(place), str(error)))
                continue
            if size is None:
                stray = [here / name for name in names if name != documents.ROOT]
            else:
                folders.clear()
                missing, stray = _chunks(here, *size)
                found += [
                    Violation("missing-chunk", f"{here}: chunk {number}", f"expected, for {size[0]} rows")
                    for number in missing
                ]
            found += [
                Violation("stray-file", str(path), "expected nothing of that name")
                for path in stray
                if path.suffix != NEW
            ]
    return found


def _chunks(folder: Path, rows: int, chunk_rows: int) -> tuple[list[int], list[Path]]:
    """Chunks that an array has not, and files that are no chunks of it."""
    expected = set(range(-(-rows // chunk_rows)))
    stray = []
    for inner, _, names in os.walk(folder):
        for name in names:
            path = Path(inner, name)
            match = _CHUNK.fullmatch(path.relative_to(folder).as_posix())
            if match and int(match[1]) in expected:
                expected.discard(int(match[1]))
            elif path != folder / documents.ROOT:
                stray.append(path)
    return sorted(expected), stray
