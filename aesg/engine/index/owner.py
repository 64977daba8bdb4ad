"""The seed index of an opened store: what it knows, whether that is still true, and the thread that keeps it so.

The index is only asked while it knows the store as it is: at the generation it was brought up to, or in the open
transaction on top of that, as long as nothing but other fields was written and nodes appended. Nodes that are newer
than the index lie in a buffer, which is scanned. Whenever it does not know the store, the caller scans, and a thread
brings the index up to date in the background: from the file beside the store, by comparing prints, or from nothing.

Whatever it gives is read again from the store and compared exactly (`aesg.engine.seeds`), so all that can be wrong
here is that something near is not found. Only changes of `vector` and `is_active` can do that.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from aesg.engine.index import announce
from aesg.engine.index.hnsw import EXPANSION, HNSW
from aesg.engine.index.roster import MOST_ROWS, Roster, Slots, prints_of
from aesg.engine.index.sidecar import UNKNOWN, Sidecar
from aesg.engine.scan import LOOP, SPARE, Floats, Scan, reciprocals, units
from aesg.engine.seeds import Nearest, exact, nearest
from aesg.errors import AESGError, ReadOnlyError, StorageError
from aesg.protocols import Graph, GraphStore, Progress, Transaction, Writers
from aesg.records import Rows, Vectors, distinct
from aesg.threads import cores

Kind = Literal["auto", "exact", "hnsw"]

KINDS: Final = ("auto", "exact", "hnsw")
LARGE: Final = 8 << 20
"""Vector elements above which a store has an index: smaller ones are scanned in a millisecond or two."""
LEAST_RECALL: Final = 0.98
"""Recall of the 10 nearest below which an index is not good."""
_AIM: Final = 0.985
"""Recall that it is tuned to, as far as that goes: what some queries measure is not what all of them get."""
POOR_RECALL: Final = 0.9
"""Recall below which "auto" scans: there are data that no such index is good for."""

_log = logging.getLogger("aesg")

_BATCH: Final = 4096
"""Rows that wait before they are entered together."""
_BUFFER: Final = 32 << 20
"""Bytes of vectors that may wait in memory; when more do, the store is scanned until they are in."""
_BUILD: Final = 8192
"""Rows that are read at once while an index is built."""
_WIDE: Final = 2
"""Candidates per row wanted: bfloat16 has them in a slightly different order than the store."""
_DEAD: Final = 0.3
"""Share of removed or changed vectors from which on building anew is better."""
_MOST_EXPANSION: Final = 512
_QUERIES: Final = 200
_NOISE: Final = 0.25
"""Length of what is added to a stored direction to make a query of it: what was stored finds itself too easily, and
what is far from everything stored has neighbours that are harder to find than those of a new vector of the same kind.
With this the two were equally hard, within half a percent, on a million clustered vectors."""
_NEAREST: Final = 10
_CREW: Final = 4
"""Threads per core that add in the background, see `HNSW.crew`."""
_NICE: Final = 10
_PAUSE: Final = 0.05
_PATIENCE: Final = 30.0
"""Seconds after a failure until the next attempt."""


@dataclass(frozen=True, slots=True)
class Check:
    """What comparing the index with exact scans found.

    Attributes:
        recall: Share of the 10 nearest of each query that the index found too.
        queries: How many there were.
    """

    recall: float
    queries: int


class _Buffer:
    """The vectors of the rows after the last one in the index."""

    def __init__(self, dim: int, first: int) -> None:
        self.first = first
        self._count = 0
        self._vectors = np.empty((0, dim), np.float32)
        self._reciprocals = np.empty(0, np.float32)

    def upto(self, graph: Graph, rows: int) -> tuple[Vectors, Floats]:
        """Vectors and reciprocal lengths of the rows from `first` up to `rows`, the total of the graph."""
        have, wanted = self._count, rows - self.first
        if wanted > have:
            new = graph.nodes.read(np.arange(self.first + have, rows), ["vector", "is_active"])
            if wanted > len(self._vectors):
                room = max(wanted, 2 * len(self._vectors), 256)
                vectors, lengths = self._vectors[:have], self._reciprocals[:have]
                self._vectors = np.empty((room, vectors.shape[1]), np.float32)
                self._reciprocals = np.empty(room, np.float32)
                self._vectors[:have], self._reciprocals[:have] = vectors, lengths
            self._vectors[have:wanted] = new["vector"]
            self._reciprocals[have:wanted] = reciprocals(new["vector"], new["is_active"])
            self._count = wanted
        return self._vectors[:wanted], self._reciprocals[:wanted]

    def cut(self, rows: int) -> None:
        """Forget rows from `rows` on: they came from a transaction that may have been rolled back."""
        if rows - self.first >= self._count:
            return
        self._count = max(0, rows - self.first)
        # What was given to a query that is under way stays as it is.
        self._vectors, self._reciprocals = self._vectors[: self._count].copy(), self._reciprocals[: self._count].copy()

    def start_at(self, first: int) -> None:
        """Forget the rows before `first`, which are in the index."""
        gone = min(self._count, max(0, first - self.first))
        self._vectors = self._vectors[gone : self._count].copy()
        self._reciprocals = self._reciprocals[gone : self._count].copy()
        self._count -= gone
        self.first = first


class SeedIndex:
    """The index of one opened store. Give it to `close` before the store is closed.

    Args:
        store: The store.
        kind: "auto" has an index when the store is large, "hnsw" always, "exact" never.
        folder: Where the index is kept between processes; None keeps none.
    """

    def __init__(self, store: GraphStore, kind: Kind = "auto", folder: Path | None = None) -> None:
        self._store = store
        self._kind: Kind = kind
        self._dim = store.vector_dim
        self._one_writer = store.capabilities.writers == Writers.ONE_PROCESS
        self._sidecar = None if folder is None else Sidecar(folder, store.uuid, self._dim)
        self._room = max(1, _BUFFER // (4 * self._dim))
        self._batch = min(_BATCH, self._room)
        self._lock = threading.RLock()
        self._hnsw: HNSW | None = None
        self._roster = Roster()  # it may know rows that are not in the graph yet, which is why they stay in the buffer
        self._buffer = _Buffer(self._dim, 0)
        self._known: int | None = None  # the generation that the index is right for
        self._aim: int | None = None  # the one that the thread is bringing it to
        self._bases: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._recall: float | None = None
        self._checked = 0  # rows at the last check
        self._loaded = self._sidecar is None
        self._saved: tuple[int, int] | None = None  # generation and rows in the files, or of the attempt that failed
        self._whole = True  # whether more than appends happened since the files were written
        self._save_asked = False
        self._rebuild = False
        self._doing = ""
        self._done = (0, 0)
        self._progress: Progress | None = None
        self._in_foreground = False
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._silent = False  # in a forked child
        self._held: HNSW | None = None
        self._not_before = 0.0
        self._failure: str | None = None
        if kind != "exact":
            _live.add(self)
            announce(store, self)

    # --- what the session tells

    def begun(self, transaction: Transaction) -> None:
        """A transaction was begun on top of the store's last commit: queries may be asked in it."""
        if self._kind == "exact":
            return
        with self._lock:
            self._bases[transaction] = self._store.generation
            self._buffer.cut(len(self._store.nodes))
        announce(transaction, self)

    def committed(self, transaction: Transaction) -> None:
        """That transaction was committed. If it changed nothing that matters here, the index goes with it."""
        base = self._bases.get(transaction)
        if base is None or not self._one_writer or _reseeded(transaction):
            return
        with self._lock:
            generation = self._store.generation
            if self._known == base:
                self._known = generation
            if self._aim == base:
                self._aim = generation

    # --- what queries ask

    def candidates(
        self, graph: Graph, directions: Vectors, k: int, min_similarity: float, *, include_pruned: bool = False
    ) -> tuple[Rows, Rows] | None:
        """See `aesg.engine.index.Source`."""
        if self._poor():
            return None
        return self.find(graph, directions, k, min_similarity, include_pruned=include_pruned)

    def find(
        self, graph: Graph, directions: Vectors, k: int, min_similarity: float, *, include_pruned: bool = False
    ) -> tuple[Rows, Rows] | None:
        """The same, however poor the index is."""
        count = len(graph.nodes)
        if not self._wanted(count):
            return None
        is_store = graph is self._store
        if not is_store and _reseeded(graph):
            return None  # until it is committed nobody else can see what was changed
        with self._lock:
            # A store that has just been changed is not the one that was counted, but the generation then is another.
            generation = self._store.generation if is_store else self._bases.get(graph)
            hnsw, roster, first = self._hnsw, self._roster, self._buffer.first
            trusted = hnsw is not None and generation is not None and generation == self._known
            waiting = count - first
            if not trusted or waiting > self._batch:
                self._kick()
            if hnsw is None or not trusted or hnsw.busy or not 0 <= waiting <= self._room:
                return None
            newest = self._buffer.upto(graph, count) if waiting else None
            if include_pruned and (roster.seedless or (newest is not None and np.isnan(newest[1]).any())):
                return None  # who was pruned is not in here
        lanes, slots = hnsw.search(directions, _WIDE * k)
        with self._lock:
            places, rows = roster.expand(slots, k + SPARE)
        lanes = lanes[places]
        if newest is not None:
            scan = Scan(directions, k, min_similarity)
            scan.offer(first, *newest)
            more_lanes, more_rows = scan.candidates()
            lanes, rows = np.concatenate([lanes, more_lanes]), np.concatenate([rows, more_rows])
            there = rows < count  # twins that were entered meanwhile, of rows that this graph has not got
            lanes, rows = lanes[there], rows[there]
        return lanes, rows

    def stats(self) -> dict[str, Any]:
        """Figures for people, JSON-able."""
        with self._lock:
            hnsw, roster, rows = self._hnsw, self._roster, len(self._store.nodes)
            wanted = self._wanted(rows)
            out: dict[str, Any] = {
                "index": self._kind,
                "kind": "hnsw" if wanted else "exact",
                "state": self._state() if wanted else "exact",
                "rows": rows,
            }
            if hnsw is not None:
                out |= {
                    "indexed_rows": self._buffer.first,
                    "waiting_rows": max(0, rows - self._buffer.first),
                    "entries": len(hnsw),
                    "dead_share": round(hnsw.dead / max(1, len(hnsw) + hnsw.dead), 4),
                    "recall": self._recall,
                    "expansion": hnsw.expansion,
                    "bytes": hnsw.nbytes + roster.nbytes,
                }
            if self._sidecar is not None:
                out |= {"folder": str(self._sidecar.folder), "bytes_on_disk": self._sidecar.nbytes}
            if self._doing:
                out |= {"doing": self._doing, "done": self._done[0], "of": self._done[1]}
            if self._failure is not None:
                out["failure"] = self._failure
            return out

    def _state(self) -> str:
        if not self._ready():
            return self._doing or "waiting"
        return "poor" if self._poor() else "ready"

    # --- what people ask

    def bring_up(self, progress: Progress | None = None) -> bool:
        """Bring the index up to date, if one is wanted, and wait for that; whether it is."""
        return self._in_front(progress)

    def rebuild(self, progress: Progress | None = None) -> bool:
        """Build the index anew, whatever there is, and wait for that; whether it is up to date."""
        self._rebuild = True
        return self._in_front(progress)

    def check(self, queries: int = _QUERIES) -> Check:
        """Compare the index with exact scans, asking near to stored vectors. Where all is scanned, recall is 1.

        Raises:
            AESGError: The index does not know the store as it is, so that there is nothing to compare.
        """
        directions, generation = self._directions(queries), self._store.generation
        found = self._recall_of(directions, exact(self._store, directions, _NEAREST, -2.0))
        if found is None or self._store.generation != generation:
            raise AESGError(f"{self._store.url}: the seed index does not know the store as it is; bring it up first")
        return Check(found, len(directions))

    def drop(self) -> bool:
        """Forget the index and delete its files; whether there were any.

        Raises:
            ReadOnlyError: The store was opened for reading.
            StorageError: The files could not be deleted.
        """
        if self._store.read_only:
            raise ReadOnlyError(f"{self._store.url}: opened for reading; the seed index is its writer's to drop")
        self._halt()
        with self._lock:
            self._stop.clear()
            self._hnsw, self._roster, self._buffer = None, Roster(), _Buffer(self._dim, 0)
            self._known = self._recall = self._saved = None
            self._checked, self._loaded, self._whole = 0, True, True
        try:
            return self._sidecar is not None and self._sidecar.drop()
        except OSError as error:
            raise StorageError(f"{self._store.url}: the seed index could not be deleted: {error}") from error

    def save(self) -> None:
        """Have it saved, in the background."""
        with self._lock:
            if self._ready() and not self._is_saved():
                self._save_asked = True
                self._kick()

    def close(self) -> None:
        """Stop the thread, save what there is to save, let go. The store is still open."""
        self._halt()
        with self._lock:
            _live.discard(self)
            try:
                if not self._silent and self._hnsw is not None and not self._is_saved():
                    self._save()
            except AESGError as error:
                _log.warning("%s: the seed index was not saved: %s", self._store.url, error)
            self._hnsw, self._known, self._kind = None, None, "exact"

    # --- the thread

    def _wanted(self, rows: int) -> bool:
        if self._kind == "exact" or not 0 < rows <= MOST_ROWS:
            return False
        return self._kind == "hnsw" or rows * self._dim > LARGE

    def _poor(self) -> bool:
        return self._kind == "auto" and self._recall is not None and self._recall < POOR_RECALL

    def _ready(self) -> bool:
        return self._hnsw is not None and self._known == self._store.generation

    def _kick(self) -> None:
        """Have the thread look for something to do. The lock is held."""
        idle = self._thread is None and not self._stop.is_set() and not self._silent
        if idle and time.monotonic() >= self._not_before:
            self._thread = threading.Thread(target=self._run, name=f"indexes {self._store.url}", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        # On Linux this is the thread's own, and that of those which it starts: queries go first.
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
        self._work()

    def _work(self) -> None:
        try:
            while True:
                with self._lock:
                    job = None if self._stop.is_set() else self._job()
                    if job is None:
                        self._rest()
                        return
                job()
        except Exception as error:  # nobody is there to hear it: exact scans go on, and it is tried again
            with self._lock:
                self._rest()
                self._failure = str(error) or type(error).__name__
                self._not_before = time.monotonic() + _PATIENCE
                self._aim, self._rebuild, self._save_asked = None, False, False
            if not self._stop.is_set():
                _log.warning("%s: the seed index could not be brought up to date: %s", self._store.url, error)

    def _rest(self) -> None:
        """The thread ends. The lock is held: who comes later starts another."""
        self._doing, self._done, self._thread = "", (0, 0), None

    def _in_front(self, progress: Progress | None) -> bool:
        """Do all there is to do, here and now."""
        self._halt()
        with self._lock:
            self._stop.clear()
            if self._silent:
                return self._ready()
            self._thread = threading.current_thread()
            self._progress, self._failure, self._in_foreground = progress, None, True
        try:
            self._work()
        finally:
            self._progress, self._in_foreground = None, False
        return not self._wanted(len(self._store.nodes)) or self._ready()

    def _halt(self) -> None:
        """Stop the thread."""
        self._stop.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _job(self) -> Callable[[], Any] | None:
        """What is to be done next. The lock is held."""
        rows = len(self._store.nodes)
        if self._rebuild and rows:
            return self._build
        if not self._wanted(rows):
            return None
        if not self._loaded:
            return self._load
        if not self._ready():
            return self._catch_up
        assert self._hnsw is not None
        dead, live = self._hnsw.dead, len(self._hnsw)
        if dead > _DEAD * (dead + live) or self._hnsw.removed > max(live, 1000) // 2:
            return self._build
        if rows - self._buffer.first > self._batch:
            return self._append
        if self._recall is None or self._buffer.first > 2 * self._checked:
            return self._tune
        if self._save_asked:
            return self._save
        return None

    def _tell(self, doing: str, done: int, of: int) -> None:
        self._doing, self._done = doing, (done, of)
        if self._progress is not None:
            self._progress(doing, done, of)

    def _load(self) -> None:
        assert self._sidecar is not None
        self._tell("loading", 0, 1)
        found = self._sidecar.load()
        with self._lock:
            self._loaded = True
            if found is None:
                self._saved = None
                return
            self._hnsw, self._roster, header = found
            self._recall, self._checked = header.recall, header.rows
            self._saved, self._whole = (header.generation, header.rows), False
            self._buffer = _Buffer(self._dim, header.rows)
            if header.generation == self._store.generation and header.rows <= len(self._store.nodes):
                self._known = header.generation
        LOOP.load()

    def _fingerprint(self) -> Roster | None:
        """A roster of all rows, without slots; None when the store changed meanwhile, or this has to stop."""
        with self._lock:
            self._aim = self._store.generation
        roster, total = Roster(), len(self._store.nodes)
        for chunk in self._store.nodes.scan(["vector", "is_active"]):
            if self._stop.is_set():
                return None
            roster.extend(prints_of(chunk))
            self._tell("comparing", len(roster), total)
        if self._store.generation != self._aim:
            self._stop.wait(_PAUSE)  # a store that changes all the time must not keep a core busy
            return None
        return roster

    def _catch_up(self) -> None:
        """Bring the index to the store's present generation, by comparing prints."""
        if self._store.read_only and self._sidecar is not None and self._saved is not None:
            header = self._sidecar.header()
            if header is not None and header.generation == self._store.generation != self._saved[0]:
                self._loaded = False  # the writer has saved what we would have to work for
                return
        roster = self._fingerprint()
        if roster is None:
            return
        hnsw = self._hnsw
        gone, new = roster.adopt(self._roster)
        if hnsw is None or hnsw.dead + len(gone) > _DEAD * (hnsw.dead + len(hnsw)):
            self._build_from(roster)
            return
        with self._lock:
            self._roster.leave(gone)
        hnsw.remove(gone)
        self._install(hnsw, roster, new, "entering")

    def _build(self) -> None:
        roster = self._fingerprint()
        if roster is not None:
            self._build_from(roster)
            self._rebuild, self._loaded = False, True  # what was saved before is of no interest any more

    def _build_from(self, roster: Roster) -> None:
        _, leaders = roster.adopt(Roster())
        self._install(HNSW(self._dim), roster, leaders, "building")

    def _install(self, hnsw: HNSW, roster: Roster, leaders: Rows, doing: str) -> None:
        """Enter what has no slot yet, and use the graph and the roster from now on."""
        hnsw.crew = cores() if self._in_foreground else _CREW * cores()
        slots = roster.enter(leaders)
        entered = 0
        self._tell(doing, 0, len(leaders))
        while entered < len(leaders):
            some = slots[entered : entered + _BUILD]
            vectors = self._store.nodes.read(leaders[entered : entered + _BUILD], ["vector"])["vector"]
            added = self._put(hnsw, roster, some, vectors, politely=False)
            entered += added
            self._tell(doing, entered, len(leaders))
            if added < len(some):
                break
        complete = entered == len(leaders)
        roster.leave(slots[entered:])
        is_new = hnsw is not self._hnsw
        if is_new and not complete and self._hnsw is not None:
            return  # the old one, and this comparison, are still good for what comes next
        with self._lock:
            # What was committed meanwhile: either it is of no matter here, and `committed` moved the aim along, or
            # the next round finds it.
            self._known, self._aim = self._aim if complete else None, None
            old = self._roster.prints
            self._whole |= is_new or not np.array_equal(roster.prints[: len(old)], old)
            self._hnsw, self._roster, self._buffer = hnsw, roster, _Buffer(self._dim, len(roster))
            self._failure = None
            if is_new:
                self._recall, self._save_asked = None, True
        LOOP.load()

    def _put(self, hnsw: HNSW, roster: Roster, slots: Slots, vectors: Vectors, *, politely: bool) -> int:
        """Add vectors [n, D] of new slots; how many of them were dealt with, the first ones."""
        directions = units(vectors)
        directed = np.flatnonzero(directions.any(axis=1))
        if len(directed) < len(slots):  # written to since its print was taken: the next comparison finds that
            roster.leave(np.delete(slots, directed))
        added = hnsw.add(slots[directed], directions[directed], politely=politely, stopped=self._stop.is_set)
        return len(slots) if added == len(directed) else int(directed[added])

    def _append(self) -> None:
        """Enter rows that wait, the next few thousand."""
        with self._lock:
            hnsw, roster, first, total = self._hnsw, self._roster, self._buffer.first, len(self._store.nodes)
            self._aim = self._known
            if hnsw is None or self._known != self._store.generation:
                return
        stop = min(total, first + 2 * _BATCH)
        self._tell("appending", first, total)
        columns = self._store.nodes.read(np.arange(first, stop), ["vector", "is_active"])
        prints = prints_of(columns)
        with self._lock:
            if self._store.generation != self._aim:
                return
            leaders = roster.extend(prints)
            slots = roster.enter(leaders)
        hnsw.crew = cores() if self._in_foreground else _CREW * cores()
        vectors = columns["vector"][leaders - first]
        added = self._put(hnsw, roster, slots, vectors, politely=total - first <= self._room)
        with self._lock:
            roster.leave(slots[added:])
            self._aim = None
            if added == len(slots):
                self._buffer.start_at(stop)
            else:
                self._known = None  # what was left out is found by comparing

    def _tune(self) -> None:
        """Measure recall, and let searches look further until it is good."""
        hnsw, rows = self._hnsw, self._buffer.first
        self._tell("checking", 0, 1)
        directions = self._directions(_QUERIES)
        generation = self._store.generation
        right = exact(self._store, directions, _NEAREST, -2.0)
        if hnsw is not None:
            hnsw.expansion = EXPANSION  # while a graph grows it needs more
        recall = self._recall_of(directions, right)
        while hnsw is not None and recall is not None and recall < _AIM and hnsw.expansion < _MOST_EXPANSION:
            hnsw.expansion = min(_MOST_EXPANSION, hnsw.expansion * 5 // 4)
            recall = self._recall_of(directions, right)
        if recall is None or self._store.generation != generation:
            self._stop.wait(_PAUSE)
            return
        with self._lock:
            self._recall, self._checked = recall, rows

    def _directions(self, count: int) -> Vectors:
        """Directions to ask for: near to some rows that can seed, the same ones each time."""
        rows, rng = len(self._store.nodes), np.random.default_rng(0)
        some = distinct(rng.integers(0, max(1, rows), count if rows else 0))
        columns = self._store.nodes.read(some, ["vector", "is_active"])
        directions = units(columns["vector"][columns["is_active"] != 0])
        directions = directions[directions.any(axis=1)]
        return units(directions + _NOISE * units(rng.standard_normal(directions.shape)))

    def _recall_of(self, directions: Vectors, right: Sequence[Nearest]) -> float | None:
        """What share of the right answers queries get; None when the index does not know the store as it is."""
        if self._wanted(len(self._store.nodes)) and not self._ready():
            return None
        found = nearest(self._store, directions, _NEAREST, -2.0, index=_Anyway(self))
        hits = total = 0
        for want, have in zip(right, found, strict=True):
            # Of rows that are equally near, one is as good as another.
            hits += min(len(want.rows), int(np.count_nonzero(have.cosines >= want.cosines[-1] - 1e-6)))
            total += len(want.rows)
        return round(hits / total, 4) if total else 1.0

    def _is_saved(self) -> bool:
        if self._sidecar is None or self._store.read_only:
            return True
        return not self._whole and self._saved == (self._known, self._buffer.first)

    def _save(self) -> None:
        with self._lock:
            self._save_asked = False
            hnsw, roster, known, rows = self._hnsw, self._roster, self._known, self._buffer.first
            if self._sidecar is None or self._store.read_only or hnsw is None:
                return
            whole = self._whole or rows - self._sidecar.rows > max(_BATCH, rows // 20)
            self._whole = False
            self._saved = UNKNOWN if known is None else known, rows
        self._tell("saving", 0, 1)
        if not self._sidecar.save(hnsw, roster, self._saved[0], self._recall, whole=whole):
            self._whole |= whole

    # --- forks

    def before_fork(self) -> None:
        """Hold still: a lock that the thread holds in the parent would never be released in the child."""
        self._lock.acquire()
        self._held = self._hnsw
        if self._held is not None:
            self._held.lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        if self._held is not None:
            self._held.lock.release()
            self._held = None
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Give what there is, for as long as it is right; there is no thread here."""
        self._lock = threading.RLock()
        if self._held is not None:
            self._held.after_fork_in_child()
            self._held = None
        self._silent, self._thread, self._doing = True, None, ""


class _Anyway:
    """An index that is asked however poor it is known to be."""

    def __init__(self, index: SeedIndex) -> None:
        self._index = index

    def candidates(
        self, graph: Graph, directions: Vectors, k: int, min_similarity: float, *, include_pruned: bool = False
    ) -> tuple[Rows, Rows] | None:
        return self._index.find(graph, directions, k, min_similarity, include_pruned=include_pruned)


def _reseeded(graph: Graph) -> bool:
    """Whether `vector` or `is_active` of rows was written through a transaction, as far as can be told."""
    return getattr(graph.nodes, "reseeded", True) is not False


_live: Final[weakref.WeakSet[SeedIndex]] = weakref.WeakSet()
_forking: Final = threading.local()


def _before_fork() -> None:
    _forking.indexes = list(_live)
    for index in _forking.indexes:
        index.before_fork()


def _after_fork_in_parent() -> None:
    for index in _forking.indexes:
        index.after_fork_in_parent()
    _forking.indexes = []


def _after_fork_in_child() -> None:
    for index in _forking.indexes:
        index.after_fork_in_child()
    _forking.indexes = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


@atexit.register
def _halt_all() -> None:
    # A thread that is still in usearch when the interpreter goes would take the process with it.
    for index in list(_live):
        index._halt()
