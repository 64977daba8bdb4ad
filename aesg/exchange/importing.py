"""Files that AESG or somebody else wrote, into a new store."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aesg.backends import registry
from aesg.backends.files import os_errors
from aesg.errors import InvalidInputError, MigrationError, NotFoundError
from aesg.exchange.arrow import META, ArrowTables
from aesg.exchange.layout import TABLES, Meta, Table
from aesg.exchange.npz import NpzTables
from aesg.exchange.source import FileSource, Tables
from aesg.migration.copying import GraphSource, copy
from aesg.migration.digest import ContentDigest, digest_of
from aesg.migration.publishing import Unfinished, is_local
from aesg.migration.steady import open_for_copy
from aesg.protocols import Progress

_SUFFIXES: Final = {".parquet": ".parquet", ".arrow": ".arrow", ".feather": ".arrow", ".npz": ".npz"}
_META_LIMIT: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import made.

    Attributes:
        file: Where it came from.
        destination: URL of the store.
        nodes: How many it holds; so do edges and events.
        vector_dim: Length of its vectors.
        seconds: How long it took.
        digest: The content digest of the store.
        verified: Whether the files said which digest it had to have.
    """

    file: str
    destination: str
    nodes: int
    edges: int
    events: int
    vector_dim: int
    seconds: float
    digest: str
    verified: bool


def import_file(
    file: str | os.PathLike[str],
    url: str | os.PathLike[str],
    *,
    edges: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Make a store of what was exported, or of tables from elsewhere; docs/exchanging.md says of which.

    The store is made under another name and renamed when it is whole and its content digest is that of the files.

    Args:
        file: An NPZ file, a folder that `export` made, or a Parquet or Arrow file of nodes.
        url: The new store.
        edges: A Parquet or Arrow file of edges, when `file` is one of nodes.
        overwrite: Replace a store that is there.
        progress: Told how far it is.

    Raises:
        NotFoundError: There is no such file.
        InvalidInputError: A column is missing, of the wrong type, or holds what no store takes.
        DuplicateIdError: Two nodes have one id.
        CorruptionError: A damaged file, or not what its meta says.
        MigrationError: There is a store already, or it does not hold what the files do.
        UnsupportedError: pyarrow is not installed, or the URL is of no local path.
    """
    began = time.perf_counter()
    source = FileSource(
        tables_of(Path(file).expanduser(), None if edges is None else Path(edges).expanduser()), str(file)
    )
    expected = source.digest
    destination = registry.resolve(url)
    if not is_local(destination):
        raise InvalidInputError(
            f"{destination}: an import makes a store at a local path; aesg migrate copies it further"
        )
    with Unfinished(str(destination), overwrite=overwrite) as made:
        made.check_free()
        made.begin({"import": str(file)})
        seen = ContentDigest(source.vector_dim)
        with open_for_copy(made.url, "a", source.vector_dim) as store:
            copy(source, store, progress, [seen])
        given = seen.finish(source.attrs)
        if expected is not None and given != expected:
            raise MigrationError(
                f"{file}: its tables have the digest {given}, its meta says {expected}; tables that were changed are "
                f"imported without their meta"
            )
        with open_for_copy(made.url) as store:
            digest = digest_of(GraphSource(store), progress, "reading back")
        if digest != given:
            raise MigrationError(f"{made.final_url}: what was written is read back as {digest}, not as {given}")
        made.publish()
    return Imported(
        file=str(file),
        destination=made.final_url,
        nodes=source.node_count,
        edges=source.edge_count,
        events=source.event_count,
        vector_dim=source.vector_dim,
        seconds=time.perf_counter() - began,
        digest=digest,
        verified=expected is not None,
    )


def tables_of(path: Path, edges: Path | None = None) -> Tables:
    """The tables in a file or a folder.

    Raises:
        NotFoundError: It is not there, or a folder without a table of nodes.
        InvalidInputError: Its suffix is not one that can be read.
    """
    with os_errors("looking at", path):
        if path.is_dir():
            if edges is not None:
                raise InvalidInputError(f"{path} is a folder, whose edges are in it; --edges goes with a file of nodes")
            return _folder(path)
        for file in (path, edges):
            if file is not None and not file.is_file():
                raise NotFoundError(f"{file}: there is no such file")
    kind = _kind(path)
    if kind == ".npz":
        if edges is not None:
            raise InvalidInputError(f"{path} holds its own edges; --edges goes with a Parquet or Arrow file of nodes")
        return NpzTables(path)
    files: dict[Table, Path] = {"nodes": path}
    if edges is not None:
        if _kind(edges) == ".npz":
            raise InvalidInputError(f"{edges}: edges are read from a Parquet or Arrow file")
        files["edges"] = edges
    return ArrowTables(files, None)


def _folder(folder: Path) -> Tables:
    files: dict[Table, Path] = {}
    for table in TABLES:
        found = [folder / f"{table}{suffix}" for suffix in _SUFFIXES if (folder / f"{table}{suffix}").is_file()]
        if len(found) > 1:
            raise InvalidInputError(f"{folder} holds {found[0].name} and {found[1].name}: name the one to read")
        if found and found[0].suffix != ".npz":
            files[table] = found[0]
    if "nodes" not in files:
        raise NotFoundError(f"{folder}: no table of nodes (nodes.parquet or nodes.arrow) is in it")
    path = folder / META
    meta = None
    if path.is_file():
        with os_errors("reading", path), open(path, "rb") as file:
            meta = Meta.parse(file.read(_META_LIMIT), str(path))
        if missing := sorted(table for table, count in meta.counts.items() if count and table not in files):
            raise NotFoundError(f"{folder}: the table of {missing[0]} is missing")
    return ArrowTables(files, meta)


def _kind(path: Path) -> str:
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        hint = "; GraphML and GML go out only" if path.suffix.lower() in (".graphml", ".gml") else ""
        raise InvalidInputError(f"{path}: a file to import ends with {', '.join(_SUFFIXES)}{hint}")
    return found
