"""Backends that fail under kills, damage or a full disk, and the clause that must catch each.

Beside `saboteurs`, whose backends fail while all goes well. Each is the memmap store but for a few lines.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import partial

from aesg.backends import registry
from aesg.backends.files import WriterLock
from aesg.backends.journal import Journal
from aesg.backends.memmap import reader, writer
from aesg.backends.registry import Backend
from aesg.errors import CapacityError, CorruptionError, StorageError
from aesg.protocols import Durability, Integrity

CLAUSES = {}
"""Scheme → the clause that is there to catch it."""


def broken(scheme, clause, writing=writer.MemmapWriter, reading=reader.MemmapReader, handle=None):
    """Register a backend.

    Args:
        scheme: Its scheme.
        clause: The clause.
        writing: Its class of handles that write.
        reading: Its class of handles that read.
        handle: Is given what opens a store, and opens it or does something else; None opens it.
    """

    def opener(url, mode, dim, options):
        directory = url.local_path()
        kind = reading if mode == "r" else writing
        name = str(replace(url, path=str(directory)))
        really_open = partial(kind, name, directory, dim, Durability.PROCESS_CRASH)
        return handle(really_open) if handle else really_open()

    CLAUSES[scheme] = clause
    registry.register(Backend(scheme, "broken on purpose", opener))


class EmptyJournal(Journal):
    """Says what it has, and has nothing."""

    def append(self, generation, parts):
        super().append(generation, [parts[0]] if generation else parts)
        os.truncate(self.path, 4096)


class Unjournaled(writer.MemmapWriter):
    def _created_journal(self):
        return EmptyJournal(self.directory / "journal.redo", create=True)


broken("commits-without-a-journal", "crash.killed-at-random-moments", Unjournaled)


class InTwoParts(writer.MemmapWriter):
    """Commits nodes, and then the rest."""

    def _commit(self, tables):
        if tables.pending_nodes.changed and tables.pending_edges.changed:
            edges, state = tables.pending_edges, tables.state
            tables.pending_edges = type(edges)(self._opened.files.edges)
            super()._commit(tables)
            tables.pending_edges = edges
            tables.state = state
        super()._commit(tables)


broken("commits-nodes-then-edges", "crash.killed-at-lines-of-the-backend", InTwoParts)


class RemovesFirst(writer.MemmapWriter):
    """Makes room before it writes what is to be there."""

    def _compact(self, min_confidence):
        kept = self.directory.with_name("kept")
        shutil.copytree(self.directory, kept)
        for name in ("nodes.aesg", "edges.aesg"):
            os.truncate(self.directory / name, 0)
        for name in ("nodes.aesg", "edges.aesg"):
            (self.directory / name).write_bytes((kept / name).read_bytes())
        shutil.rmtree(kept)
        return super()._compact(min_confidence)


broken("compacts-in-place", "crash.killed-in-compactions-at-points", RemovesFirst)


class Overconfident:
    @property
    def capabilities(self):
        return replace(super().capabilities, **self.claims)


class ChecksumsWriter(Overconfident, writer.MemmapWriter):
    claims = {"integrity": Integrity.CHECKSUMS}  # noqa: RUF012


class ChecksumsReader(Overconfident, reader.MemmapReader):
    claims = ChecksumsWriter.claims


broken("claims-checksums", "damage.bytes-changed.noticed", ChecksumsWriter, ChecksumsReader)


class UnsyncedWriter(Overconfident, writer.MemmapWriter):
    claims = {"durability": Durability.POWER_LOSS}  # noqa: RUF012


class UnsyncedReader(Overconfident, reader.MemmapReader):
    claims = UnsyncedWriter.claims


broken("claims-durability-and-never-syncs", "crash.power-loss", UnsyncedWriter, UnsyncedReader)


def with_a_foreign_error(really_open):
    try:
        return really_open()
    except CorruptionError as error:
        raise EOFError("something is wrong") from error


def with_a_signal(really_open):
    try:
        return really_open()
    except CorruptionError:
        os.abort()


broken("lets-foreign-errors-out", "damage.length-changed", handle=with_a_foreign_error)
broken("dies-of-damage", "damage.length-changed", handle=with_a_signal)


class Wipes(writer.MemmapWriter):
    """Begins anew where it finds something that it does not understand."""

    def _open(self, dim):
        try:
            super()._open(dim)
        except CorruptionError:
            for path in self.directory.iterdir():
                path.unlink()
            self._writer_lock.release()
            self._writer_lock = WriterLock(self.directory / "writer.lock", self.url)
            super()._open(dim or 1)


broken("begins-anew-when-damaged", "damage.length-changed", Wipes)


class Swallows(writer.MemmapWriter):
    """Says that it has committed."""

    def _commit(self, tables):
        with suppress(CapacityError):
            super()._commit(tables)


broken("swallows-a-full-disk", "capacity.full-at-any-call", Swallows)


class NotACapacityError(writer.MemmapWriter):
    def _begin(self):
        tables = super()._begin()
        append = tables.append_nodes

        def failing(columns):
            try:
                append(columns)
            except CapacityError as error:
                raise StorageError(str(error)) from error

        tables.append_nodes = failing
        return tables


broken("knows-no-full-disk", "capacity.full-disk.transactions", NotACapacityError)


def writable_only(really_open):
    if os.geteuid():
        raise StorageError("a folder that may not be written is of no use")
    return really_open()


broken("needs-to-write", "capacity.read-only-folder", handle=writable_only)
