"""The `zarr.json` documents of a hierarchy, as the Zarr v3 specification has them.

They are written and read here, not by the library: one call of its costs more than a whole small commit, and a document
that is read from a store has to be compared with what it must say before anything is done with it.

Every column is an array of its name. Its chunks are the column's blocks, the last one filled up with zeros. The root's
attributes hold the head under "aesg" and, under "aesg_layout", what a container has to know before it can read blocks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from aesg.backends.blocks.container import Column
from aesg.backends.blocks.layout import LOG
from aesg.errors import CorruptionError, FormatVersionError
from aesg.records import JSON

ROOT: Final = "zarr.json"
HEAD: Final = "aesg"
LAYOUT: Final = "aesg_layout"
FORMAT: Final = 1
CODECS: Final = ("none", "zstd", "blosc")
SEPARATORS: Final = (".", "/")
DOCUMENT_LIMIT: Final = 1 << 28
"""Bytes that a document may have: a head grows by some 10 bytes with every thousand blocks."""

_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "": "A graph store of AESG. The attribute 'aesg' says how many rows are valid and which commits wait in 'log'.",
    "nodes": "Columns of nodes, by row.",
    "nodes/id": "Unique id.",
    "nodes/vector": "Vector.",
    "nodes/created_at": "Unix seconds.",
    "nodes/modified_at": "Unix seconds.",
    "nodes/use_frequency": "How often retrieval returned the node.",
    "nodes/relevance": "1 when new or used, decays with every consolidation.",
    "nodes/age": "Consolidations lived through.",
    "nodes/stability": "How firmly the node stands.",
    "nodes/region_id": "Region; 0: none.",
    "nodes/is_active": "0: pruned.",
    "edges": "Columns of directed edges, by ref.",
    "edges/source_row": "Row of the node that the edge leaves.",
    "edges/target_row": "Row of the node that the edge leads to.",
    "edges/weight": "Weight.",
    "edges/confidence": "Confidence.",
    "edges/use_count": "How often the edge carried energy to a returned node.",
    "edges/removed": "1: removed.",
    "events": "The evolution log, in the order of appending.",
    "events/timestamp": "Unix seconds.",
    "events/type": "0 create, 1 merge, 2 split, 3 prune, 4 consolidate, 5 restructure.",
    "events/id1": "First id, or the epoch.",
    "events/id2": "Second id, or a count.",
    "events/val": "A value; its meaning is the type's.",
    "out": "Edges once more, sorted by source row, the newest first: compressed sparse rows.",
    "out/start": "Where the edges of a row begin in the other arrays of this group.",
    "out/ref": "Ref of the edge; ~ref where it was removed.",
    "out/target_row": "As edges/target_row.",
    "out/weight": "As edges/weight.",
    "out/confidence": "As edges/confidence.",
    "out/use_count": "As edges/use_count.",
    "log": "Commits that are not in the other arrays yet.",
    "checksums": "CRC-32 of every chunk of every array, of its valid rows.",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What a container has to know of a store before anything else.

    Attributes:
        codec: One of `CODECS`.
        separator: What stands in a chunk's key between numbers: "." keeps all chunks in one folder.
        durability: What the newest commit was written to survive; "" where that is somebody else's matter.
        chunks: How many chunks there are.
        format: Version of all this.
    """

    codec: str
    separator: str = "."
    durability: str = ""
    chunks: int = 0
    format: int = FORMAT


# --- writing ---------------------------------------------------------------------------------------------------------


def group_document(name: str, attributes: Mapping[str, JSON] | None = None) -> bytes:
    """The document of a group."""
    described = _description(name) if name != "" or attributes else None
    return _encode({"zarr_format": 3, "node_type": "group", "attributes": {**(described or {}), **(attributes or {})}})


def root_document(head: dict[str, JSON], layout: Layout) -> bytes:
    """The document of the root group."""
    return group_document("", {LAYOUT: asdict(layout), HEAD: head})


def array_document(column: Column, rows: int, layout: Layout) -> bytes:
    """The document of a column's array."""
    return _encode(_array(column, rows, layout))


def groups_of(names: Iterable[str]) -> list[str]:
    """The groups that arrays of these names are in, each after the one it is in; without the root."""
    found = {"/".join(parts[:depth]) for parts in (name.split("/") for name in names) for depth in range(1, len(parts))}
    return sorted(found)


def document_key(name: str) -> str:
    """The key of an array's or a group's document."""
    return f"{name}/{ROOT}" if name else ROOT


def chunk_key(column: Column, number: int, layout: Layout) -> str:
    """The key of a block's chunk."""
    by = layout.separator
    return f"{column.name}/c{by}{number}" if column.width is None else f"{column.name}/c{by}{number}{by}0"


def codec_of(column: Column, codec: str) -> str:
    """The codec of a column in a store of that codec: blocks of the log are mostly padding, and always compressed."""
    return "zstd" if column.name == LOG else codec


def _array(column: Column, rows: int, layout: Layout) -> dict[str, Any]:
    little = {} if column.dtype.itemsize == 1 else {"configuration": {"endian": "little"}}
    inner = [column.width] if column.width is not None else []
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [rows, *inner],
        "data_type": column.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [column.block_rows, *inner]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": layout.separator}},
        "fill_value": 0.0 if column.dtype.kind == "f" else 0,
        "codecs": [{"name": "bytes", **little}, *_compressors(column, layout.codec)],
        "attributes": _description(column.name),
        "dimension_names": [column.dimension, *(["component"] if inner else [])],
        "storage_transformers": [],
    }


def _compressors(column: Column, codec: str) -> list[dict[str, Any]]:
    name = codec_of(column, codec)
    configurations: dict[str, dict[str, Any]] = {
        "zstd": {"level": 1, "checksum": False},
        "blosc": {
            "typesize": column.dtype.itemsize,
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "shuffle",
            "blocksize": 0,
        },
    }
    return [{"name": name, "configuration": configurations[name]}] if name in configurations else []


def _description(name: str) -> dict[str, JSON]:
    found = _DESCRIPTIONS.get(name)
    if found is None and name.startswith("checksums/"):
        found = f"CRC-32 of the chunks of {name.removeprefix('checksums/')}."
    return {} if found is None else {"description": found}


def _encode(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


# --- reading ---------------------------------------------------------------------------------------------------------


def parse(data: bytes, place: str) -> dict[str, Any]:
    """A document.

    Raises:
        CorruptionError: It is not a JSON object.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptionError(f"{place}: expected a Zarr v3 document in JSON: {error}") from error
    if not isinstance(found, dict):
        raise CorruptionError(f"{place}: expected a Zarr v3 document, a JSON object")
    return found


def is_ours(data: bytes) -> bool:
    """Whether a root document is of a store of ours, be it one that cannot be read."""
    try:
        attributes = json.loads(data)["attributes"]
        return LAYOUT in attributes or HEAD in attributes
    except (ValueError, RecursionError, KeyError, TypeError):
        return False


def read_root(data: bytes, place: str) -> tuple[dict[str, JSON], Layout]:
    """Head and layout.

    Raises:
        CorruptionError: It is not the root document of a store.
        FormatVersionError: It is one of a newer version.
    """
    document = parse(data, place)
    attributes = document.get("attributes")
    _expect(document, {"zarr_format": 3, "node_type": "group"}, place)
    if not isinstance(attributes, dict) or not isinstance(attributes.get(LAYOUT), dict):
        raise CorruptionError(f"{place}: expected the attribute {LAYOUT!r} of a store of AESG")
    found = attributes[LAYOUT]
    version = found.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise FormatVersionError(f"{place}: format {version}, expected {FORMAT}; a newer version wrote it")
    kinds = {"codec": str, "separator": str, "durability": str, "chunks": int, "format": int}
    if any(type(found.get(name)) is not kind for name, kind in kinds.items()) or (
        found["codec"] not in CODECS or found["separator"] not in SEPARATORS
    ):
        raise CorruptionError(f"{place}: expected the attribute {LAYOUT!r} to have a codec of {', '.join(CODECS)}")
    if not isinstance(attributes.get(HEAD), dict):
        raise CorruptionError(f"{place}: expected the attribute {HEAD!r}, a JSON object")
    return attributes[HEAD], Layout(**{name: found[name] for name in kinds})


def read_array(data: bytes, column: Column, layout: Layout, place: str) -> int:
    """Rows of a column's array; everything else in its document is compared with what it must be.

    Raises:
        CorruptionError: It is another array's: other dtype, chunks or codecs, a negative shape, …
    """
    document = parse(data, place)
    shape = document.get("shape")
    width = () if column.width is None else (column.width,)
    if (
        not isinstance(shape, list)
        or not all(type(n) is int for n in shape)
        or len(shape) != 1 + len(width)
        or shape[0] < 0
        or tuple(shape[1:]) != width
    ):
        raise CorruptionError(f"{place}: shape {shape!r}, expected {['rows', *width]}")
    wanted = _array(column, shape[0], layout)
    codecs, wanted_codecs = document.get("codecs"), wanted.pop("codecs")
    for free in ("attributes", "dimension_names", "storage_transformers"):
        del wanted[free]
    _expect(document, wanted, place)
    # How hard a compressor tried does not matter, nor does the byte order of single bytes.
    if not isinstance(codecs, list) or [_codec_name(one) for one in codecs] != [one["name"] for one in wanted_codecs]:
        raise CorruptionError(f"{place}: codecs {codecs!r}, expected {wanted_codecs}")
    endian = codecs[0].get("configuration", {}) if isinstance(codecs[0], dict) else {}
    if column.dtype.itemsize > 1 and endian != {"endian": "little"}:
        raise CorruptionError(f"{place}: codecs {codecs!r}, expected {wanted_codecs}")
    if document.get("storage_transformers"):
        raise CorruptionError(f"{place}: expected no storage transformers")
    return int(shape[0])


def _codec_name(codec: Any) -> Any:
    return codec.get("name") if isinstance(codec, dict) else codec


def _expect(document: Mapping[str, Any], wanted: Mapping[str, Any], place: str) -> None:
    for name, value in wanted.items():
        if document.get(name) != value:
            raise CorruptionError(f"{place}: {name} {document.get(name)!r}, expected {value!r}")


def array_size(data: bytes, place: str) -> tuple[int, int] | None:
    """Rows of any array and of a chunk of it; None for a group.

    Raises:
        CorruptionError: It is neither.
    """
    document = parse(data, place)
    if document.get("node_type") == "group":
        return None
    try:
        rows, chunk = document["shape"][0], document["chunk_grid"]["configuration"]["chunk_shape"][0]
        if type(rows) is not int or type(chunk) is not int or rows < 0 or chunk < 1:
            raise ValueError(f"shape {rows!r}, chunks {chunk!r}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CorruptionError(f"{place}: expected the document of an array: {error!r}") from error
    return rows, chunk
