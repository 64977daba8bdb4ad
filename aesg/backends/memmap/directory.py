"""What lies in a store's directory, and how it becomes a state again: creation, opening, recovery.

nodes.aesg edges.aesg meta.npy evolution.aesglog    the published format; complete whenever the store is closed
store.json     uuid, generation, attributes
journal.redo   commits since the last checkpoint; there only while a writer has the store open, or was killed
nodes.*.column columns of nodes.aesg that count in place of the records' (see `beside`); there as long as the journal
ids.index      id → row; derived, may be deleted
writer.lock    locked by the writer, names its pid
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aesg.backends.files import commit_lock, os_errors, replace_file, sync_directory
from aesg.backends.journal import Journal
from aesg.backends.memmap import beside, redo
from aesg.backends.memmap.format import (
    EDGE_DTYPE,
    EDGES,
    EVENTS,
    META,
    MIN_EDGES,
    MIN_NODES,
    NODES,
    REMOVED,
    Meta,
    node_dtype,
    read_meta,
)
from aesg.backends.memmap.table import RecordFile
from aesg.backends.memmap.tables import EventFile, Files, State
from aesg.errors import CorruptionError, FormatVersionError, SchemaMismatchError
from aesg.records import EVENT_DTYPE

STORE: Final = "store.json"
JOURNAL: Final = "journal.redo"
LOCK: Final = "writer.lock"

_STORE_KEYS: Final = {"uuid", "generation", "vector_dim", "nodes", "edges", "removed_edges", "events", "attrs"}


@dataclass(slots=True)
class Opened:
    """A store's files and what they hold.

    Attributes:
        uuid: "" for a directory that only 0.3.0 has written to.
    """

    files: Files
    state: State
    generation: int
    uuid: str


def recognises(directory: Path) -> bool:
    """Whether a directory holds a store of this format, by 0.3.0 or by us, be it one that was only begun."""
    if any((directory / name).is_file() for name in (META, NODES, EDGES, STORE)):
        return True
    # Other backends lock a file of that name too: only where it is alone may it be one of ours that was begun.
    return (directory / LOCK).is_file() and sum(1 for _ in directory.iterdir()) == 1


def has_store(directory: Path) -> bool:
    """Whether there is a store to open; False also for a creation that was cut short.

    Raises:
        CorruptionError: There are data files but no `meta.npy`.
    """
    if (directory / META).is_file():
        return True
    left = [name for name in (NODES, EDGES, EVENTS) if (directory / name).exists()]
    body = read_store_json(directory)
    cut_short = body is not None and body["generation"] == 0 and not body["nodes"] and not body["edges"]
    if left and not cut_short:
        raise CorruptionError(
            f"{directory / META}: missing, but {' and '.join(left)} exist; "
            f"expected the file that says how many records they hold. Nothing was changed: restore it from a copy"
        )
    return False


def create(directory: Path, dim: int, *, sync: bool) -> None:
    """Make an empty store. `store.json` without `meta.npy` marks a creation that was cut short."""
    write_store_json(directory, str(uuid.uuid4()), 0, dim, State(0, 0, 0, 0, {}), sync=sync)
    sizes = {NODES: MIN_NODES * node_dtype(dim).itemsize, EDGES: MIN_EDGES * EDGE_DTYPE.itemsize, EVENTS: 0}
    for name, size in sizes.items():
        with os_errors("creating", directory / name), open(directory / name, "wb") as file:
            file.truncate(size)
            if sync:
                os.fsync(file.fileno())
    replace_file(directory / META, Meta(0, 0, dim, MIN_NODES, MIN_EDGES).to_bytes(), sync=sync)
    if sync:
        with os_errors("syncing", directory.parent):
            sync_directory(directory.parent)


def load_meta(directory: Path, dim: int | None, url: str) -> Meta:
    """Read `meta.npy`.

    Raises:
        CorruptionError: It is not what it should be.
        SchemaMismatchError: `dim` is given and not the store's.
    """
    meta = read_meta(directory / META)
    if dim not in (None, meta.vector_dim):
        raise SchemaMismatchError(f"{url}: the store holds vectors of {meta.vector_dim} numbers, not {dim}")
    return meta


def write_heads(directory: Path, opened: Opened, capacities: tuple[int, int], *, sync: bool) -> None:
    """Bring `meta.npy` and `store.json` up to date."""
    state = opened.state
    meta = Meta(state.nodes, state.edges, opened.files.dim, *capacities)
    replace_file(directory / META, meta.to_bytes(), sync=sync)
    write_store_json(directory, opened.uuid, opened.generation, opened.files.dim, state, sync=sync)


def write_store_json(directory: Path, identity: str, generation: int, dim: int, state: State, *, sync: bool) -> None:
    """Write `store.json`: a text with its checksum, as JSON."""
    body = {
        "format": 1,
        "uuid": identity,
        "generation": generation,
        "vector_dim": dim,
        "nodes": state.nodes,
        "edges": state.edges,
        "removed_edges": state.removed,
        "events": state.events,
        "attrs": state.attrs,
    }
    text = json.dumps(body, indent=1)
    data = json.dumps({"crc32": zlib.crc32(text.encode()), "store": text})
    replace_file(directory / STORE, data.encode(), sync=sync)


def read_store_json(directory: Path) -> dict[str, Any] | None:
    """The body of `store.json`; None when there is none, as in a directory that only 0.3.0 has written to.

    Raises:
        CorruptionError: It is not what we wrote.
    """
    path = directory / STORE
    if not path.exists():
        return None
    with os_errors("reading", path):
        raw = path.read_bytes()
    try:
        outer = json.loads(raw)
        if zlib.crc32(outer["store"].encode()) != outer["crc32"]:
            raise ValueError("the checksum does not match")
        body = json.loads(outer["store"])
        if body["format"] != 1:
            raise FormatVersionError(f"{path}: format {body['format']}, expected 1; a newer version wrote it")
        if missing := _STORE_KEYS - set(body):
            raise ValueError(f"{', '.join(sorted(missing))} missing")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptionError(f"{path}: expected a JSON object with a matching checksum: {error}") from error
    return dict(body)


# --- opening ---------------------------------------------------------------------------------------------------------


def open_files(directory: Path, dim: int, least: tuple[int, int], *, writable: bool) -> Files:
    """Open the data files.

    Args:
        directory: Where they are.
        dim: Length of the vectors.
        least: Records that `nodes.aesg` and `edges.aesg` have to have room for.
        writable: Open for writing too.

    Raises:
        CorruptionError: Missing, or too short for that.
    """
    kinds = {NODES: (node_dtype(dim), least[0]), EDGES: (EDGE_DTYPE, least[1])}
    for name, (dtype, records) in kinds.items():
        path = directory / name
        if not path.exists():
            raise CorruptionError(f"{path}: missing; expected {records} records of {dtype.itemsize} bytes")
        size = path.stat().st_size
        if size < max(records, 1) * dtype.itemsize:
            raise CorruptionError(
                f"{path}: {size} bytes, expected at least {max(records, 1) * dtype.itemsize} ({records} records of "
                f"{dtype.itemsize} bytes): it was truncated, or is another store's"
            )
    columns = beside.Beside(directory, writable=writable)
    nodes = RecordFile(directory / NODES, kinds[NODES][0], least[0], writable=writable, beside=columns)
    try:
        edges = RecordFile(directory / EDGES, kinds[EDGES][0], least[1], writable=writable)
    except BaseException:
        nodes.close()
        raise
    return Files(directory, dim, nodes, edges, EventFile(directory / EVENTS, writable=writable))


def open_at_rest(directory: Path, meta: Meta, *, writable: bool) -> Opened:
    """Open a store that was closed, whoever closed it.

    Raises:
        CorruptionError: The files hold less than `meta.npy` or `store.json` say.
    """
    body = read_store_json(directory)
    _check_same_dim(directory, body, meta)
    files = open_files(directory, meta.vector_dim, (meta.cap_nodes, meta.cap_edges), writable=writable)
    try:
        files.nodes.count, files.edges.count = meta.node_count, meta.edge_count
        events = files.events.size()
        if body is None:
            _check_last(files)
            return Opened(files, State(meta.node_count, meta.edge_count, _count_removed(files), events, {}), 0, "")
        for name, path, have in (
            ("nodes", directory / META, meta.node_count),
            ("edges", directory / META, meta.edge_count),
            ("events", directory / EVENTS, events),
        ):
            if have < body[name]:
                raise CorruptionError(f"{path}: {have} {name}, expected at least the {body[name]} that {STORE} says")
        # 0.3.0 may have added to it since: contents have changed, so must the generation.
        grown = (meta.node_count, meta.edge_count, events) != (body["nodes"], body["edges"], body["events"])
        if grown:
            _check_last(files)
        state = State(meta.node_count, meta.edge_count, body["removed_edges"], events, body["attrs"])
        return Opened(files, state, body["generation"] + grown, body["uuid"])
    except BaseException:
        files.close()
        raise


def open_beside_writer(directory: Path, dim: int, state: State, generation: int, column_rows: Sequence[int]) -> Opened:
    """Open for reading a store whose present state the writer's journal gave; commits are kept out meanwhile."""
    body = read_store_json(directory)
    files = open_files(directory, dim, (state.nodes, state.edges), writable=False)
    try:
        files.nodes.beside.follow(column_rows)
    except BaseException:
        files.close()
        raise
    return Opened(files, state, generation, body["uuid"] if body else "")


def _check_same_dim(directory: Path, body: dict[str, Any] | None, meta: Meta) -> None:
    if body is not None and body["vector_dim"] != meta.vector_dim:
        raise CorruptionError(
            f"{directory / META}: vector_dim {meta.vector_dim}, expected the {body['vector_dim']} that {STORE} says: "
            f"it was garbled, or is another store's"
        )


def _check_last(files: Files) -> None:
    """Where only `meta.npy` says how many records there are: the last one is not a blank."""
    for file in (files.nodes, files.edges):
        if file.count and not file.whole[file.count - 1].tobytes().strip(bytes(1)):
            raise CorruptionError(
                f"{files.directory / META}: {file.count} records in {file.path.name}, but the last of them is blank; "
                f"expected as many as were written"
            )


def _count_removed(files: Files) -> int:
    spans = [(at, min(at + 65536, files.edges.count)) for at in range(0, files.edges.count, 65536)]
    return sum(int(np.count_nonzero(files.edges.chunk("next_edge_idx", *span) == REMOVED)) for span in spans)


# --- recovery --------------------------------------------------------------------------------------------------------


def recover(directory: Path, journal: Journal, meta: Meta, *, sync: bool) -> Opened:
    """Apply what a killed writer had committed, and cut off what it had not. For the holder of the writer lock.

    Raises:
        CorruptionError: The journal and the files do not belong together.
    """
    with os_errors("opening", directory / NODES):
        guard = os.open(directory / NODES, os.O_RDWR | os.O_CLOEXEC)
    try:
        with commit_lock(guard, exclusive=True):
            body = read_store_json(directory)
            _check_same_dim(directory, body, meta)
            states = [(generation, redo.decode_state(payload)) for generation, payload in journal.entries()]
            reached = states[-1][0] if states else 0
            checkpointed = body["generation"] if body is not None else -1
            if max(reached, checkpointed) < journal.generation and not journal.restarted:
                raise CorruptionError(
                    f"{journal.path}: its whole entries reach generation {reached}, expected {journal.generation} as "
                    f"its header says: it was truncated or garbled, and the files may hold half of what is missing"
                )
            if not states or reached < checkpointed:
                # It had just begun, or everything it says was checkpointed: the files are as after a close.
                opened = open_at_rest(directory, meta, writable=True)
            else:
                last = states[-1][1]
                counts = {(state.nodes, state.edges) for _, state in states}
                if (meta.node_count, meta.edge_count) not in counts:
                    raise CorruptionError(
                        f"{directory / META}: {meta.node_count} nodes and {meta.edge_count} edges, expected "
                        f"{' or '.join(f'{n} and {e}' for n, e in sorted(counts)[-4:])} as {JOURNAL} says: another "
                        f"program has written here after a crash; remove {JOURNAL} to keep what it wrote"
                    )
                journal.mark_pending()
                for _, payload in journal.entries():  # read once more: all of them may be more than memory holds
                    redo.replay(payload, directory, node_dtype(meta.vector_dim).itemsize)
                least = _cut(directory, meta, last)
                files = open_files(directory, meta.vector_dim, least, writable=True)
                files.nodes.count, files.edges.count = last.nodes, last.edges
                opened = Opened(files, last, reached, body["uuid"] if body else "")
                if reached == journal.generation:  # killed before it was announced, an entry is one more
                    journal.mark_applied(reached)
            if sync:
                opened.files.sync()
            return opened
    finally:
        os.close(guard)


def _cut(directory: Path, meta: Meta, state: State) -> tuple[int, int]:
    """Make everything past the committed records zero bytes; returns the capacities of both files."""
    room = (max(meta.cap_nodes, state.nodes, 1), max(meta.cap_edges, state.edges, 1))
    cuts = (
        (NODES, node_dtype(meta.vector_dim).itemsize, state.nodes, room[0]),
        (EDGES, EDGE_DTYPE.itemsize, state.edges, room[1]),
        (EVENTS, EVENT_DTYPE.itemsize, state.events, state.events),
    )
    for name, item, count, capacity in cuts:
        path = directory / name
        with os_errors("recovering", path):
            size = path.stat().st_size if path.exists() else 0
            if size < count * item:
                raise CorruptionError(
                    f"{path}: {size} bytes, expected the {count} records of {item} that {JOURNAL} says"
                )
            if size or capacity:
                os.truncate(path, count * item)
                os.truncate(path, capacity * item)
    return room
