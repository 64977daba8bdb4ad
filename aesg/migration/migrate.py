"""`aesg.migrate`: a store in another place, in another backend, to the last bit.

Locally the copy is made under another name and gets its own by one rename, after the content digest of what was read
and of what was written agree. An opened store is filled in place, marked by an attribute that the last commit removes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

from aesg.backends import registry
from aesg.backends.files import os_errors
from aesg.backends.url import StoreURL
from aesg.errors import AESGError, CapacityError, ConflictError, CorruptionError, InvalidInputError, MigrationError
from aesg.migration.copying import EDGE_BYTES, GraphSource, Source, copy, give_back_memory, payload_bytes
from aesg.migration.digest import ContentDigest, digest_of
from aesg.migration.publishing import Unfinished, is_local, is_taken, taken
from aesg.migration.steady import UNFINISHED, Steady, open_for_copy, steady
from aesg.migration.thinning import Thinned
from aesg.protocols import GraphStore, Progress
from aesg.records import JSON

Place: TypeAlias = str | os.PathLike[str] | GraphStore

_COMPRESSED: Final = 0.7
"""What is left of payload that is compressed, at the least: vectors hardly get smaller."""


@dataclass(frozen=True, slots=True)
class Migrated:
    """What a migration did, or would do.

    Attributes:
        source: URL.
        destination: URL.
        nodes: How many were carried over.
        edges: How many were carried over.
        events: How many were carried over.
        bytes: Of all their fields.
        seconds: How long it took, with reading back.
        digest: Content digest of source and destination; "" when nothing was copied.
        resumed: Whether it went on from an interrupted one.
        needed_bytes: About how much room the destination takes.
        free_bytes: How much there was; None where that cannot be known.
        not_carried: What stays behind, a sentence each.
        violations: What is wrong with the source, so that it would be refused; looked for where `dry_run`.
    """

    source: str
    destination: str
    nodes: int
    edges: int
    events: int
    bytes: int
    seconds: float
    digest: str
    resumed: bool
    needed_bytes: int
    free_bytes: int | None
    not_carried: list[str]
    violations: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True)
class _Wishes:
    """How to migrate; see `migrate`."""

    compact: bool
    drop_dangling: bool
    overwrite: bool
    resume: bool
    progress: Progress | None


def migrate(
    source: Place,
    destination: Place,
    *,
    compact: bool = False,
    drop_dangling: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Migrated:
    """Copy a store to another place, in any backend, bit for bit.

    Args:
        source: URL, path or an opened store. It is only read.
        destination: URL or path where there is nothing; or an opened, empty store.
        compact: Leave out pruned nodes and their edges.
        drop_dangling: Leave out edges that name a node which is not there, as 0.3.0 may have; else they are an error.
        overwrite: Replace the store at the destination, when the new one is whole.
        resume: Go on from an interrupted migration to this destination, if there is one.
        dry_run: Look only, and say what would happen.
        progress: Told how far it is.

    Raises:
        MigrationError: The destination exists; the source cannot be carried over; what was written is not what was
            read.
        NotFoundError: There is no source.
        LockedError: Another migration is at work there, or a writer in the store that is to be replaced.
        ConflictError: The source was written to meanwhile, and has no snapshots.
        CapacityError: There is too little room, or was in the end; `resume` goes on from there.
    """
    wishes = _Wishes(compact, drop_dangling, overwrite, resume, progress)
    began = time.monotonic()
    with _opened(source) as store, steady(store) as held:
        if dry_run:
            return _look(held, destination, wishes, began)
        if isinstance(destination, GraphStore):
            return _fill(held, destination, wishes, began)
        parsed = registry.resolve(destination)
        if is_local(parsed):
            return _make(held, parsed, wishes, began)
        if not parsed.authority:
            raise InvalidInputError(f"{parsed}: such a store is gone when it is closed; open it, and give the store")
        with open_for_copy(str(parsed), "a", store.vector_dim) as opened:
            return _fill(held, opened, wishes, began)


@contextmanager
def _opened(place: Place) -> Iterator[GraphStore]:
    if isinstance(place, GraphStore):
        yield place
    else:
        with open_for_copy(place) as store:
            yield store


# --- at a local path -------------------------------------------------------------------------------------------------


def _make(held: Steady, destination: StoreURL, wishes: _Wishes, began: float) -> Migrated:
    _check_apart(held.store, destination)
    with Unfinished(str(destination), overwrite=wishes.overwrite) as place:
        origin = _origin(held, wishes)
        note = place.note if wishes.resume else None
        if note is not None and note.get("origin") != origin:
            raise _keeping(
                place,
                MigrationError(
                    f"{place.final_url}: what was begun there is not a copy of {held.store.url} as it is now; "
                    f"migrate without resuming to begin again"
                ),
            )
        if note is not None and (published := _published_before(held, place, note, began)) is not None:
            return published
        place.check_free()
        source = _source(held, wishes)
        needed, free = _room(place.url, source, place.final, there=place.bytes() if note else 0)
        if note is None:
            place.begin({"origin": origin})
        place.keep = True
        try:
            digest = _copied_to(held, source, place, wishes)
            place.publish()
        except (MigrationError, ConflictError, CorruptionError):
            place.keep = False  # trying again would come to the same
            raise
        not_carried = _not_carried(held.store, source, destination.scheme)
        return _report(held, source, place.final_url, began, digest, note is not None, needed, free, not_carried)


def _copied_to(held: Steady, source: Source, place: Unfinished, wishes: _Wishes) -> str:
    """Fill the store in the making, read it back, and note what it holds."""
    with open_for_copy(place.url, "a", source.vector_dim, unfinished=True) as store:
        read = _copy(held, source, store, wishes)
        _forget_history(store)
    give_back_memory()
    with place.syncing(), open_for_copy(place.url) as store:
        _compare(read, GraphSource(store), wishes)
        place.write({**(place.note or {}), "digest": read, "uuid": store.uuid})
    return read


def _published_before(held: Steady, place: Unfinished, note: Mapping[str, JSON], began: float) -> Migrated | None:
    """What there is of a migration that was killed after it had published; None when it had not."""
    if "uuid" not in note or not is_taken(place.final):
        return None
    try:
        with open_for_copy(place.final_url) as store:
            if store.uuid != note["uuid"]:
                return None
            return _report(held, GraphSource(store), place.final_url, began, str(note["digest"]), True, 0, None, [])
    except AESGError:  # what is to be replaced may be in any state, and of any backend
        return None


def _keeping(place: Unfinished, error: MigrationError) -> MigrationError:
    place.keep = True
    return error


def _check_apart(store: GraphStore, destination: StoreURL) -> None:
    source = StoreURL.parse(store.url)
    if not is_local(source):
        return
    one, other = source.local_path(), destination.local_path()
    if one == other or one in other.parents or other in one.parents:
        raise MigrationError(f"{destination}: the destination must not be the source, nor lie in it or around it")


# --- into an opened store --------------------------------------------------------------------------------------------


def _fill(held: Steady, store: GraphStore, wishes: _Wishes, began: float) -> Migrated:
    if store is held.store:
        raise MigrationError(f"{store.url}: the destination must not be the source")
    if store.vector_dim != held.graph.vector_dim:
        raise MigrationError(f"{store.url} is for vectors of {store.vector_dim} numbers, not {held.graph.vector_dim}")
    origin: JSON = _origin(held, wishes)
    begun = store.attrs.get(UNFINISHED)
    if begun is not None and not (wishes.resume and begun == origin):
        raise MigrationError(
            f"{store.url} holds the beginning of a copy"
            + (" of something else" if wishes.resume else ", go on with resume=True")
            + ", or remove it"
        )
    if begun is None and any(len(part) for part in (store.nodes, store.edges, store.events, store.attrs)):
        raise MigrationError(f"{store.url} is not empty; an opened store cannot be replaced")
    source = _source(held, wishes)
    if begun is None:
        store.attrs[UNFINISHED] = origin
    read = _copy(held, source, store, wishes)
    _compare(read, _Unmarked(store), wishes)
    del store.attrs[UNFINISHED]
    store.flush()
    scheme = StoreURL.parse(store.url).scheme
    needed = _estimate(scheme, source)
    not_carried = _not_carried(held.store, source, scheme)
    return _report(held, source, store.url, began, read, begun is not None, needed, None, not_carried)


class _Unmarked(GraphSource):
    """A store as it will be without its mark."""

    def __init__(self, store: GraphStore) -> None:
        super().__init__(store)
        self.attrs = {name: value for name, value in self.attrs.items() if name != UNFINISHED}


# --- what both do ----------------------------------------------------------------------------------------------------


def _origin(held: Steady, wishes: _Wishes) -> dict[str, JSON]:
    """What a copy is one of: only such a one is gone on with."""
    return {"of": held.identity, "compact": wishes.compact, "drop_dangling": wishes.drop_dangling}


def _source(held: Steady, wishes: _Wishes) -> Source:
    """What is to be copied.

    Raises:
        MigrationError: It is damaged.
    """
    wrong = _violations(held, wishes)
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise MigrationError(
            f"{held.store.url} cannot be carried over as it is: {shown}. "
            f"`aesg verify` lists everything, `aesg repair` copies what is sound"
        )
    source = GraphSource(held.graph, held.store.url)
    if not wishes.compact and not wishes.drop_dangling:
        return source
    return Thinned(source, compact=wishes.compact, progress=wishes.progress)


def _violations(held: Steady, wishes: _Wishes) -> list[str]:
    """What is wrong with a directory that only 0.3.0 has written to: after a crash of it, anything may be.

    Of a store of ours, the copy finds what cannot be carried over by itself, and `aesg verify` the rest.
    """
    if "files" not in held.identity:
        return []
    found = held.store.verify(deep=False, progress=wishes.progress)
    return [
        f"{violation.kind}, {violation.place}: {violation.detail}"
        for violation in found
        if not (wishes.drop_dangling and violation.kind == "dangling-target")
    ]


def _copy(held: Steady, source: Source, store: GraphStore, wishes: _Wishes) -> str:
    """Copy; returns the digest of what was read."""
    digest = ContentDigest(source.vector_dim)
    copy(source, store, wishes.progress, [digest], held.check, keep_attrs=(UNFINISHED,))
    held.check()
    return digest.finish(source.attrs)


def _compare(read: str, written: Source, wishes: _Wishes) -> None:
    found = digest_of(written, wishes.progress, "reading back")
    if found != read:
        raise MigrationError(f"{written.url}: {found} was written, but {read} was read; the source is as it was")


def _forget_history(store: GraphStore) -> None:
    """Where a backend keeps every commit: those of the copy are of no use to anybody."""
    expire: Callable[[datetime], object] | None = getattr(store, "expire_snapshots", None)
    collect: Callable[[datetime], object] | None = getattr(store, "collect_garbage", None)
    if expire is not None and collect is not None:
        store.flush()  # or closing it would leave another one behind
        later = datetime.now(UTC) + timedelta(days=1)
        expire(later)
        collect(later)


def _not_carried(store: GraphStore, source: Source, scheme: str) -> list[str]:
    """What stays behind, a sentence each."""
    found = []
    if isinstance(source, Thinned):
        if source.dropped_nodes or source.dropped_edges:
            found.append(f"{source.dropped_nodes:,} pruned nodes and {source.dropped_edges:,} edges at them")
        if source.dangling_edges:
            found.append(f"{source.dangling_edges:,} edges that name a node which is not there")
    history: Callable[[], list[Any]] | None = getattr(store, "history", None)
    if history is not None and (commits := len(history())) > 1:
        found.append(f"its history: {commits - 1:,} earlier commits can be opened in the source only")
    _, folder = registry.index_of(store)
    if folder is not None and folder.exists():
        found.append("the seed index: it is built anew when it is needed, or by `aesg index --build`")
    if scheme == "memmap" and source.attrs:
        names = ", ".join(source.attrs)
        found.append(f"for AESG 0.3.0, which reads nodes, edges and events only: the attributes ({names})")
    return found


def _report(
    held: Steady,
    source: Source,
    destination: str,
    began: float,
    digest: str,
    resumed: bool,
    needed: int,
    free: int | None,
    not_carried: list[str],
) -> Migrated:
    return Migrated(
        held.store.url,
        destination,
        source.node_count,
        source.edge_count,
        source.event_count,
        payload_bytes(source),
        time.monotonic() - began,
        digest,
        resumed,
        needed,
        free,
        not_carried,
        [],
    )


# --- room ------------------------------------------------------------------------------------------------------------


def _estimate(scheme: str, source: Source) -> int:
    """About how many bytes a store takes."""
    payload = payload_bytes(source)
    if scheme == "memmap":  # pointers, some room for edges, the index of ids
        return payload + source.node_count * 24 + source.edge_count * (36 * 9 // 8 - EDGE_BYTES) + (1 << 20)
    if scheme == "memory":
        return 0
    return int(1.1 * (payload + source.node_count * 8 + source.edge_count * EDGE_BYTES)) + (1 << 20)


def _room(url: str, source: Source, final: Path, *, there: int) -> tuple[int, int | None]:
    """About how much room the destination needs, and how much there is.

    Raises:
        CapacityError: There is less than it takes in any case.
    """
    parsed = StoreURL.parse(url)
    needed = _estimate(parsed.scheme, source)
    folder = next(parent for parent in final.parents if parent.exists())
    with os_errors("looking at", folder):
        free = shutil.disk_usage(folder).free
    may_compress = "codec" in registry.backend(parsed.scheme).options and parsed.options.get("codec") != "none"
    least = payload_bytes(source) * (_COMPRESSED if may_compress else 1)
    if least - there > free:
        raise CapacityError(
            f"{folder}: {free:,} bytes are free, the copy of {source.url} takes about {needed:,}; nothing was begun"
        )
    return needed, free


def _look(held: Steady, destination: Place, wishes: _Wishes, began: float) -> Migrated:
    """What a migration would do."""
    wrong = _violations(held, wishes)
    graph = GraphSource(held.graph, held.store.url)
    source: Source = graph
    if not wrong and (wishes.compact or wishes.drop_dangling):
        source = Thinned(graph, compact=wishes.compact, progress=wishes.progress)
    free = None
    if isinstance(destination, GraphStore):
        url = destination.url
        needed = _estimate(StoreURL.parse(url).scheme, source)
    else:
        parsed = registry.resolve(destination)
        url, needed = str(parsed), _estimate(parsed.scheme, source)
        if is_local(parsed):
            _check_apart(held.store, parsed)
            final = parsed.local_path()
            if is_taken(final) and not wishes.overwrite:
                raise taken(final)
            needed, free = _room(url, source, final, there=0)
    not_carried = _not_carried(held.store, source, StoreURL.parse(url).scheme)
    report = _report(held, source, url, began, "", False, needed, free, not_carried)
    return Migrated(**{**report.as_dict(), "violations": wrong})
