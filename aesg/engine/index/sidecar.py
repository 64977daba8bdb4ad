"""The index on disk: derived files beside a store, which may be deleted at any time.

`seeds.json` says whose index it is and names two more files: usearch's own, and the prints of the rows with the rows of
the slots. Each is written under a name of its own and renamed when it is whole; the header comes last. A file is used
only if its checksum is right: usearch would follow whatever a damaged one says.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from aesg.engine.index.hnsw import CONNECTIVITY, EXPANSION_ADD, HNSW
from aesg.engine.index.roster import Roster, restored

_log = logging.getLogger("aesg")

HEADER: Final = "seeds.json"
UNKNOWN: Final = -1
"""The generation of an index that was left half-way: it has to be compared with the store."""
_FORMAT: Final = f"aesg seed index 1: usearch ip bf16 {CONNECTIVITY} {EXPANSION_ADD}"
_PIECE: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class Header:
    """What `seeds.json` says.

    Attributes:
        format: What wrote it.
        uuid: The store's.
        generation: The store's, for whose first `rows` rows it is right; or UNKNOWN.
        dim: Length of the vectors.
        rows: Rows that it knows.
        slots: Slots that it gave.
        expansion: See `HNSW.expansion`.
        recall: What the self-check found; None without one.
        removed: See `HNSW.removed`.
        dead: See `HNSW.dead`.
        graph: Name of usearch's file.
        graph_sum: Its checksum.
        roster: Name of the file of prints and rows.
        roster_sum: Its checksum.
    """

    format: str
    uuid: str
    generation: int
    dim: int
    rows: int
    slots: int
    expansion: int
    recall: float | None
    removed: int
    dead: int
    graph: str
    graph_sum: str
    roster: str
    roster_sum: str

    def to_bytes(self) -> bytes:
        """The file's content."""
        text = json.dumps(asdict(self), indent=1)
        return json.dumps({"index": asdict(self), "sum": _sum_of(text.encode())}, indent=1).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read the file's content.

        Raises:
            ValueError: It is not what `to_bytes` wrote.
        """
        found = json.loads(data)
        if not isinstance(found, dict) or not isinstance(found.get("index"), dict):
            raise ValueError("it is no header")
        given: dict[str, Any] = found["index"]
        if set(given) != {f.name for f in fields(cls)} or given["format"] != _FORMAT:
            raise ValueError("it is of another version")
        header = cls(**given)
        if _sum_of(json.dumps(asdict(header), indent=1).encode()) != found.get("sum"):
            raise ValueError("its checksum is wrong")
        return header


class Sidecar:
    """The files of one store's index.

    Args:
        folder: Where they are; made when something is saved.
        uuid: The store's.
        dim: Length of its vectors.
    """

    def __init__(self, folder: Path, uuid: str, dim: int) -> None:
        self.folder = folder
        self._uuid = uuid
        self._dim = dim
        self._header: Header | None = None  # the last one that was saved or loaded

    def header(self) -> Header | None:
        """What lies there; None without a word when nothing does, and with a warning when it is of no use."""
        try:
            header = Header.from_bytes((self.folder / HEADER).read_bytes())
            if header.uuid != self._uuid or header.dim != self._dim:
                raise ValueError("it is another store's")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError) as error:
            self._discard(error)
            return None
        return header

    def load(self) -> tuple[HNSW, Roster, Header] | None:
        """Take what lies there, if every byte of it is what was saved."""
        header = self.header()
        if header is None:
            return None
        try:
            graph, roster = self.folder / header.graph, self.folder / header.roster
            for path, wanted in ((graph, header.graph_sum), (roster, header.roster_sum)):
                if sum_of_file(path) != wanted:
                    raise ValueError(f"{path.name}: the checksum is wrong")
            data = np.fromfile(roster, np.uint8)
            prints = data[: 8 * header.rows].view("<u8").astype(np.uint64)
            rows = data[8 * header.rows :].view("<i4").astype(np.int32)
            whole = header.generation != UNKNOWN
            fits = len(rows) == header.slots and len(prints) == header.rows
            known = restored(prints, rows, complete=whole) if fits else None
            hnsw = HNSW(self._dim)
            if known is None or not hnsw.load(graph) or len(hnsw) != known.live:
                raise ValueError("its parts do not belong together")
        except FileNotFoundError:  # the writer has put others in their place meanwhile, or somebody tidied up
            return None
        except Exception as error:  # usearch raises what it likes; whatever it is, the index can be built anew
            self._discard(error)
            return None
        hnsw.expansion, hnsw.removed, hnsw.dead = header.expansion, header.removed, header.dead
        self._header = header
        return hnsw, known, header

    def save(self, hnsw: HNSW, roster: Roster, generation: int, recall: float | None, *, whole: bool) -> bool:
        """Save the index; True when it was.

        Args:
            hnsw: The graph.
            roster: Its roster, which does not change meanwhile.
            generation: The store's, for which the roster is right.
            recall: What the self-check found.
            whole: Write all files; else only the header, which is enough while rows were appended and nothing else.
        """
        new: list[Path] = []
        try:
            self.folder.mkdir(exist_ok=True)
            old = self._header
            if whole or old is None or not (self.folder / old.graph).exists():
                name = f"seeds.{generation}.{secrets.token_hex(4)}"
                new = [self.folder / f"{name}.usearch", self.folder / f"{name}.rows"]
                graph, graph_sum = self._put(new[0], hnsw.save)
                data = roster.prints.astype("<u8").tobytes() + roster.rows.astype("<i4").tobytes()
                rows, rows_sum = self._put(new[1], lambda path: _write(path, data))
                sizes = len(roster), len(roster.rows)
            else:
                graph, graph_sum, rows, rows_sum = old.graph, old.graph_sum, old.roster, old.roster_sum
                sizes = old.rows, old.slots
            header = Header(
                format=_FORMAT,
                uuid=self._uuid,
                generation=generation,
                dim=self._dim,
                rows=sizes[0],
                slots=sizes[1],
                expansion=hnsw.expansion,
                recall=recall,
                removed=hnsw.removed,
                dead=hnsw.dead,
                graph=graph,
                graph_sum=graph_sum,
                roster=rows,
                roster_sum=rows_sum,
            )
            self._put(self.folder / HEADER, lambda path: _write(path, header.to_bytes()))
            self._header = header
            self._tidy(header)
        except Exception as error:  # a full disk, a folder that is not ours; usearch has a RuntimeError for it
            _log.warning("the seed index could not be saved in %s: %s", self.folder, error)
            for path in new:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            return False
        return True

    def drop(self) -> bool:
        """Delete the files; whether there were any."""
        found = False
        self._header = None
        with suppress(FileNotFoundError, NotADirectoryError):
            for path in [self.folder / HEADER, *self.folder.glob("seeds.*")]:
                if path.exists():
                    path.unlink()
                    found = True
            self.folder.rmdir()
        return found

    @property
    def rows(self) -> int:
        """Rows that the files know which were last saved or loaded."""
        return 0 if self._header is None else self._header.rows

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        total = 0
        with suppress(OSError):
            total = sum(path.stat().st_size for path in self.folder.glob("seeds.*"))
        return total

    def _put(self, path: Path, write: Callable[[Path], object]) -> tuple[str, str]:
        """Write a file under another name, bring it to the disk, rename it; its name and checksum."""
        draft = path.with_name(f"{path.name}.new")
        try:
            write(draft)
            total = sum_of_file(draft)
            _sync(draft)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            raise
        _sync(self.folder)
        return path.name, total

    def _tidy(self, header: Header) -> None:
        for path in self.folder.glob("seeds.*"):
            if path.name not in (HEADER, header.graph, header.roster):
                path.unlink(missing_ok=True)

    def _discard(self, error: Exception) -> None:
        _log.warning("the seed index in %s is of no use and will be built anew: %s", self.folder, error)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sum_of(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def sum_of_file(path: Path) -> str:
    """The checksum of a file, as headers have it."""
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total.update(piece)
    return total.hexdigest()
