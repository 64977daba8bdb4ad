"""Migration: nothing is lost between any two backends, and the destination is whole or not there."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest
from typer.testing import CliRunner

import aesg
from aesg.backends import registry
from aesg.backends.memmap.format import EDGE_DTYPE
from aesg.backends.registry import schemes
from aesg.cli.main import app
from aesg.errors import (
    CapacityError,
    ConflictError,
    DuplicateIdError,
    InvalidInputError,
    LockedError,
    MigrationError,
    NotFoundError,
)
from aesg.migration import copying, publishing
from aesg.migration import migrate as migrating
from aesg.migration.copying import GraphSource, copy
from aesg.migration.digest import ContentDigest, digest_of
from aesg.migration.publishing import Unfinished
from aesg.migration.steady import UNFINISHED
from aesg.migration.thinning import Thinned
from aesg.records import NodeBatch, events
from aesg.testing.graphs import batch, contents, fill
from tests.conftest import GOLDEN, GOLDEN_NAMES

BACKENDS = [scheme for scheme in ("memory", "memmap", "lmdb", "zarr", "icechunk") if scheme in schemes()]
ON_DISK = [scheme for scheme in BACKENDS if scheme != "memory"]
RECORDS = ("nodes.aesg", "edges.aesg", "evolution.aesglog")


def open_new(scheme, path, dim=4):
    return aesg.open("memory:" if scheme == "memory" else f"{scheme}://{path}", vector_dim=dim)


def shown(graph):
    """Everything but the numbers of refs: removed edges leave gaps in them."""
    found = contents(graph)
    del found["edge ref"], found["lists refs"]
    return found


def filled(graph, nodes=12):
    fill(graph, nodes)
    refs = graph.edges.append(np.zeros(30, int), np.arange(30) % nodes, 0.5)  # lists that are long, with gaps
    graph.edges.remove(refs[::4])
    graph.edges.write(refs[1::4], use_count=7, weight=-0.0)


@pytest.fixture
def source(tmp_path):
    """The URL of a store with a bit of everything."""
    with aesg.open(f"memmap://{tmp_path}/source", vector_dim=4) as store:
        filled(store, 40)
    return f"memmap://{tmp_path}/source"


def left_over(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# --- nothing is lost -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", BACKENDS)
@pytest.mark.parametrize("came_from", BACKENDS)
def test_everything_arrives(came_from, to, tmp_path):
    with open_new(came_from, tmp_path / "from") as old:
        filled(old)
        expected, digest = shown(old), aesg.digest(old)
        generation = old.generation
        with open_new("memory", None) if to == "memory" else nullcontext(f"{to}://{tmp_path}/to") as place:
            found = aesg.migrate(old, place)
            with nullcontext(place) if to == "memory" else aesg.open(place) as new:
                assert shown(new) == expected
                assert new.uuid != old.uuid
                assert aesg.digest(new) == found.digest == digest
                assert new.verify() == []
        assert (found.nodes, found.edges, found.events) == (12, 31, 13)
        assert old.generation == generation
    assert left_over(tmp_path) == []


def test_directories_of_030_come_back_as_they_were(golden, tmp_path):
    """Once along every ordered pair of backends; at each stop in memmap the files are those of 0.3.0."""
    pairs = {(one, other) for one in ON_DISK for other in ON_DISK if one != other}
    place, at, digest = golden, "memmap", aesg.digest(golden)
    number = 0
    while pairs:
        ways = sorted((other for one, other in pairs if one == at), key=lambda other: (other == "memmap", other))
        to = ways[0]
        pairs.remove((at, to))
        number += 1
        new = tmp_path / f"{number}-{to}"
        assert aesg.migrate(place, f"{to}://{new}").digest == digest
        if to == "memmap":
            compare_records(golden, new)
        place, at = new, to
    assert at == "memmap"
    compare_records(golden, place)
    assert sum("memmap" in path.name for path in tmp_path.iterdir()) == len(ON_DISK) - 1


def compare_records(golden, directory):
    """The records that count are the same, byte by byte; how many there are is in meta.npy."""
    with aesg.open(golden, "r") as old, aesg.open(directory, "r") as new:
        assert contents(new) == contents(old)
        sizes = (len(old.nodes) * (53 + 4 * old.vector_dim), len(old.edges) * EDGE_DTYPE.itemsize, len(old.events) * 32)
    for name, size in zip(RECORDS, sizes, strict=True):
        assert (directory / name).read_bytes()[:size] == (golden / name).read_bytes()[:size]
        assert size > 0


def test_a_later_migration_begins_with_what_the_first_one_left(source, tmp_path):
    """Many pieces, many commits, sources whose chunks are cut by removed edges."""
    with aesg.open(source) as store:
        store.nodes.append(batch(5000, 10_000))
        ends = np.random.default_rng(0).integers(0, 5040, (2, 60_000))
        refs = store.edges.append(ends[0], ends[1], 0.25)
        store.edges.remove(refs[::3])
        store.events.append(events(0, np.arange(9000)))
        expected = shown(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "PIECE_BYTES", 1 << 14)
        patch.setattr(copying, "COMMIT_BYTES", 1 << 17)
        for to in ON_DISK:
            aesg.migrate(source, f"{to}://{tmp_path}/{to}")
            source = f"{to}://{tmp_path}/{to}"
            with aesg.open(source) as store:
                assert shown(store) == expected


def test_what_is_pruned_can_be_left_out(source, tmp_path):
    with aesg.open(source) as store:
        store.nodes.write([0, 5], is_active=0)
    aesg.migrate(source, f"lmdb://{tmp_path}/whole")
    found = aesg.migrate(source, f"zarr://{tmp_path}/less", compact=True)
    with aesg.open(tmp_path / "whole") as store:
        row_map = store.compact()
        assert aesg.digest(store) == found.digest
        assert (found.nodes, found.edges) == (np.count_nonzero(row_map >= 0), len(store.edges))
        with aesg.open(tmp_path / "less", "r") as less:
            assert shown(less) == shown(store)
    assert found.nodes < 40
    assert any("pruned nodes" in what for what in found.not_carried)


def test_a_store_without_anything(tmp_path):
    with aesg.open(f"memmap://{tmp_path}/one", vector_dim=3):
        pass
    found = aesg.migrate(tmp_path / "one", f"lmdb://{tmp_path}/other", compact=True)
    assert (found.nodes, found.edges, found.events, found.bytes) == (0, 0, 0, 0)
    assert aesg.digest(tmp_path / "one") == aesg.digest(tmp_path / "other") == found.digest


def test_what_stays_behind_is_said(tmp_path, monkeypatch):
    pytest.importorskip("icechunk")
    with aesg.open(f"icechunk://{tmp_path}/one", vector_dim=4) as store:
        filled(store)
        commits = len(store.history())
        (tmp_path / "one.seed-index").mkdir()
    found = aesg.migrate(f"icechunk://{tmp_path}/one", f"memmap://{tmp_path}/other")
    assert commits > 2
    assert [what.split(":")[0] for what in found.not_carried] == [
        "its history", "the seed index", "for AESG 0.3.0, which reads nodes, edges and events only"
    ]  # fmt: skip
    aesg.migrate(tmp_path / "other", f"icechunk://{tmp_path}/back")
    with aesg.open(tmp_path / "back", "r") as store:
        assert len(store.history()) <= 2  # of the copy's commits nothing is kept


# --- what cannot be carried over -------------------------------------------------------------------------------------


@pytest.fixture
def damaged(tmp_path):
    """A copy of a directory of 0.3.0, and a way to change its edges."""
    if not GOLDEN_NAMES:
        pytest.skip(f"no golden directories at {GOLDEN}")
    shutil.copytree(GOLDEN / GOLDEN_NAMES[0], tmp_path / "golden")
    (tmp_path / "golden").chmod(0o755)

    def change(field, ref, value):
        path = tmp_path / "golden" / "edges.aesg"
        path.chmod(0o644)
        edges = np.memmap(path, EDGE_DTYPE, "r+")
        edges[field][ref] = value
        edges.flush()

    change.path = tmp_path / "golden"
    return change


def test_edges_that_lead_nowhere_are_refused_or_left_out(damaged, tmp_path):
    damaged("target_id", [3, 5], 12345)
    with pytest.raises(MigrationError, match=r"dangling-target.*aesg repair"):
        aesg.migrate(damaged.path, f"lmdb://{tmp_path}/new")
    assert not (tmp_path / "new").exists()
    assert left_over(tmp_path) == []
    with aesg.open(damaged.path, "r") as store:
        whole = len(store.edges)
    found = aesg.migrate(damaged.path, f"lmdb://{tmp_path}/new", drop_dangling=True)
    assert found.edges == whole - 2
    assert found.not_carried == ["2 edges that name a node which is not there"]


def test_other_damage_is_for_repair(damaged, tmp_path):
    damaged("next_edge_idx", 2, 7)  # lists only lead to older edges
    for options in ({}, {"drop_dangling": True}):
        with pytest.raises(MigrationError, match="cyclic-list"):
            aesg.migrate(damaged.path, f"zarr://{tmp_path}/new", **options)
    found = aesg.migrate(damaged.path, f"zarr://{tmp_path}/new", dry_run=True)
    assert any(violation.startswith("cyclic-list") for violation in found.violations)
    assert left_over(tmp_path) == []


class _Wrong(GraphSource):
    """A source that gives what no store takes."""

    def __init__(self, graph, wrong):
        super().__init__(graph)
        self._wrong = wrong

    def nodes(self):
        for chunk in super().nodes():
            if self._wrong in chunk:
                chunk[self._wrong][1] = chunk[self._wrong][0] if self._wrong == "id" else np.nan
            yield chunk

    def edges(self):
        for chunk in super().edges():
            if self._wrong in chunk:
                chunk[self._wrong][1] = -1
            yield chunk


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ("id", DuplicateIdError),
        ("vector", InvalidInputError),
        ("target_row", NotFoundError),
        ("source_row", NotFoundError),
    ],
)
def test_what_no_store_takes_is_not_copied(wrong, cause):
    old, new = open_new("memory", None), open_new("memory", None)
    filled(old)
    with pytest.raises(MigrationError, match="aesg repair") as found:
        copy(_Wrong(old, wrong), new)
    assert isinstance(found.value.__cause__, cause)
    assert len(new.nodes) == 0  # nothing of the transaction


def test_a_copy_that_is_not_the_same_is_never_published(source, tmp_path, monkeypatch):
    def forgetful(transaction, columns):
        transaction.edges.append(*(columns[name] for name in ("source_row", "target_row", "weight", "confidence")))

    monkeypatch.setattr(copying, "_append_edges", forgetful)
    with pytest.raises(MigrationError, match="was written, but"):
        aesg.migrate(source, f"lmdb://{tmp_path}/new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


# --- the destination -------------------------------------------------------------------------------------------------


def test_what_is_there_stays_unless_it_may_go(source, tmp_path):
    with aesg.open(f"lmdb://{tmp_path}/new", vector_dim=2) as store:
        store.attrs["mine"] = True
        before = aesg.digest(store)
    with pytest.raises(MigrationError, match="exists"):
        aesg.migrate(source, f"lmdb://{tmp_path}/new")
    with pytest.raises(MigrationError, match="exists"):
        aesg.migrate(source, f"lmdb://{tmp_path}/new", dry_run=True)
    assert aesg.digest(tmp_path / "new") == before
    (tmp_path / "new.seed-index").mkdir()
    aesg.migrate(source, f"zarr://{tmp_path}/new", overwrite=True)
    assert aesg.digest(f"zarr://{tmp_path}/new") == aesg.digest(source)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "source"]


def test_only_stores_are_replaced(source, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "letter.txt").touch()
    for name in ("photos", "letter.txt"):
        with pytest.raises(MigrationError, match="not a store"):
            aesg.migrate(source, f"memmap://{tmp_path}/{name}", overwrite=True)
    (tmp_path / "empty").mkdir()
    aesg.migrate(source, f"memmap://{tmp_path}/empty")
    assert (tmp_path / "photos" / "cat.jpg").exists()
    assert left_over(tmp_path) == []


def test_source_and_destination_are_two_places(source, tmp_path):
    for place in (source, f"zarr://{tmp_path}/source/inside", f"lmdb://{tmp_path}"):
        with pytest.raises(MigrationError, match="must not be the source"):
            aesg.migrate(source, place, overwrite=True)


@pytest.mark.parametrize("scheme", ON_DISK)
def test_a_store_that_somebody_writes_to_is_not_replaced(scheme, source, tmp_path):
    url = f"{scheme}://{tmp_path}/new"
    with aesg.open(url, vector_dim=2) as writer:
        with pytest.raises(LockedError):
            aesg.migrate(source, url, overwrite=True)
        writer.attrs["still"] = "there"
    with aesg.open(url, "r") as store:
        assert store.attrs["still"] == "there"


def test_without_an_exchange_of_names_the_old_store_comes_back_after_a_kill(source, tmp_path, monkeypatch):
    with aesg.open(f"lmdb://{tmp_path}/new", vector_dim=2) as store:
        before = aesg.digest(store)
    monkeypatch.setattr(publishing, "_exchanged", lambda one, other: False)
    rename, renamed = os.rename, []

    def killed(one, other):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(one)
        rename(one, other)

    monkeypatch.setattr(os, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        aesg.migrate(source, f"lmdb://{tmp_path}/new", overwrite=True)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(MigrationError, match="exists"):
        aesg.migrate(source, f"lmdb://{tmp_path}/new")
    assert aesg.digest(tmp_path / "new") == before
    aesg.migrate(source, f"lmdb://{tmp_path}/new", overwrite=True)
    assert aesg.digest(tmp_path / "new") == aesg.digest(source)
    assert left_over(tmp_path) == []


def test_two_do_not_make_one_store(source, tmp_path):
    with Unfinished(f"lmdb://{tmp_path}/new"):
        with pytest.raises(LockedError, match="being made there already"):
            aesg.migrate(source, f"lmdb://{tmp_path}/new")
        with pytest.raises(LockedError):
            aesg.migrate(source, f"memmap://{tmp_path}/new", resume=True)
    aesg.migrate(source, f"lmdb://{tmp_path}/new")


def test_no_room_is_said_before_anything_is_begun(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(CapacityError, match="1,000 bytes are free"):
        aesg.migrate(source, f"lmdb://{tmp_path}/new")
    with pytest.raises(CapacityError):
        aesg.migrate(source, f"zarr://{tmp_path}/new", dry_run=True)
    assert left_over(tmp_path) == []


def test_options_of_the_url_are_kept_for_the_new_store(source, tmp_path):
    found = aesg.migrate(source, f"zarr://{tmp_path}/new?codec=zstd&durability=power_loss")
    assert found.destination == f"zarr://{tmp_path}/new?codec=zstd&durability=power_loss"
    assert "zstd" in (tmp_path / "new" / "nodes" / "vector" / "zarr.json").read_text()
    with pytest.raises(InvalidInputError, match="no option"):
        aesg.migrate(source, f"lmdb://{tmp_path}/other?codec=zstd")


def test_a_store_that_is_one_file(source, tmp_path):
    """A backend that is plugged in: a file, with others beside it."""
    from examples.sqlite_backend import BACKEND

    registry.register(BACKEND)
    found = aesg.migrate(source, f"sqlite://{tmp_path}/store.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "store.db"]
    again = aesg.migrate(f"sqlite://{tmp_path}/store.db", f"sqlite://{tmp_path}/other.db")
    back = aesg.migrate(f"sqlite://{tmp_path}/other.db", f"lmdb://{tmp_path}/back")
    assert found.digest == again.digest == back.digest == aesg.digest(source)
    aesg.migrate(source, f"sqlite://{tmp_path}/other.db", overwrite=True, compact=True)
    assert aesg.digest(f"sqlite://{tmp_path}/other.db") != found.digest


# --- who writes meanwhile --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ON_DISK)
def test_a_writer_at_the_source_is_noticed_or_does_not_matter(scheme, tmp_path):
    url = f"{scheme}://{tmp_path}/source"
    with aesg.open(url, vector_dim=4) as writer:
        filled(writer)
        before, written = aesg.digest(writer), []

        def write(doing, done, of):
            if doing == "copying nodes" and not written:
                written.append(writer.edges.append([0], [1]))

        if writer.capabilities.snapshots:
            assert aesg.migrate(url, f"memmap://{tmp_path}/new", progress=write).digest == before
        else:
            with pytest.raises(ConflictError, match="written to while it was read"):
                aesg.migrate(url, f"memmap://{tmp_path}/new", progress=write)
            assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
        assert len(written) == 1
        writer.edges.append([0], [1])  # nobody keeps it from writing


def test_a_directory_of_030_that_changes_is_noticed(damaged, tmp_path):
    def write(doing, done, of):
        if doing == "copying nodes":
            damaged("weight", 0, 0.75)

    with pytest.raises(ConflictError):
        aesg.migrate(damaged.path, f"lmdb://{tmp_path}/new", progress=write)
    assert not (tmp_path / "new").exists()


# --- going on --------------------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A store of some size, and a migration of it that was interrupted half-way."""
    monkeypatch.setattr(copying, "PIECE_BYTES", 1 << 14)
    monkeypatch.setattr(copying, "COMMIT_BYTES", 1 << 16)
    with aesg.open(f"memmap://{tmp_path}/source", vector_dim=4) as store:
        filled(store, 4000)
        ends = np.random.default_rng(0).integers(0, 4000, (2, 30_000))
        store.edges.append(ends[0], ends[1])

    def interrupt(url, at=15_000, **options):
        def tell(doing, done, of):
            if doing == "copying edges" and done > at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            aesg.migrate(tmp_path / "source", url, progress=tell, **options)

    return interrupt


@pytest.mark.parametrize("to", ON_DISK)
def test_an_interrupted_migration_goes_on(to, interrupted, tmp_path, monkeypatch):
    url = f"{to}://{tmp_path}/new"
    interrupted(url)
    assert not (tmp_path / "new").exists()
    assert left_over(tmp_path) == [".new.unfinished"]
    written = []
    append = copying._append_edges
    monkeypatch.setattr(copying, "_append_edges", lambda t, c: (written.append(len(c["weight"])), append(t, c)))
    monkeypatch.setattr(copying, "_append_nodes", lambda t, c: pytest.fail("they are there"))
    found = aesg.migrate(tmp_path / "source", url, resume=True)
    assert found.resumed
    assert 0 < sum(written) < found.edges - 5000
    assert found.digest == aesg.digest(tmp_path / "source") == aesg.digest(url)
    assert left_over(tmp_path) == []


def test_a_plain_rerun_begins_anew(interrupted, tmp_path):
    url = f"lmdb://{tmp_path}/new"
    interrupted(url)
    with aesg.open(f"lmdb://{tmp_path}/.new.unfinished/new") as store:
        store.nodes.write([0], age=99)  # nothing of this is looked at
    found = aesg.migrate(tmp_path / "source", url)
    assert not found.resumed
    assert aesg.digest(url) == found.digest


def test_what_was_tampered_with_is_not_gone_on_with_unseen(interrupted, tmp_path):
    url = f"lmdb://{tmp_path}/new"
    interrupted(url)
    with aesg.open(f"lmdb://{tmp_path}/.new.unfinished/new") as store:
        store.nodes.write([0], age=99)
    with pytest.raises(MigrationError, match="was written, but"):
        aesg.migrate(tmp_path / "source", url, resume=True)
    assert not (tmp_path / "new").exists()
    assert left_over(tmp_path) == []


def test_only_the_same_is_gone_on_with(interrupted, tmp_path):
    url = f"zarr://{tmp_path}/new"
    interrupted(url)
    with pytest.raises(MigrationError, match="not a copy of"):
        aesg.migrate(tmp_path / "source", url, resume=True, compact=True)
    with aesg.open(tmp_path / "source") as store:
        store.attrs["epoch"] = 8
    with pytest.raises(MigrationError, match="begin again"):
        aesg.migrate(tmp_path / "source", url, resume=True)
    assert left_over(tmp_path) == [".new.unfinished"]  # it may still be wanted
    assert not aesg.migrate(tmp_path / "source", url).resumed


def test_nothing_to_go_on_with_begins(source, tmp_path):
    assert not aesg.migrate(source, f"lmdb://{tmp_path}/new", resume=True).resumed


def test_one_that_was_killed_after_it_had_published(source, tmp_path, monkeypatch):
    monkeypatch.setattr(Unfinished, "discard", lambda self: None)
    first = aesg.migrate(source, f"lmdb://{tmp_path}/new")
    monkeypatch.undo()
    assert left_over(tmp_path) == [".new.unfinished"]
    again = aesg.migrate(source, f"lmdb://{tmp_path}/new", resume=True)
    assert again.resumed
    assert again.digest == first.digest
    assert (again.nodes, again.edges) == (first.nodes, first.edges)
    assert left_over(tmp_path) == []


def test_one_that_was_killed_after_it_had_replaced_another(source, tmp_path, monkeypatch):
    """The folder then holds the old store, which is not to be gone on with."""
    with aesg.open(f"zarr://{tmp_path}/new", vector_dim=4):
        pass
    monkeypatch.setattr(Unfinished, "discard", lambda self: None)
    first = aesg.migrate(source, f"lmdb://{tmp_path}/new", overwrite=True)
    monkeypatch.undo()
    assert (tmp_path / ".new.unfinished" / "new" / "zarr.json").exists()
    assert aesg.migrate(source, f"lmdb://{tmp_path}/new", overwrite=True, resume=True).digest == first.digest
    assert left_over(tmp_path) == []


def test_one_that_was_killed_before_it_had_begun_to_write(source, tmp_path, monkeypatch):
    with aesg.open(f"zarr://{tmp_path}/new", vector_dim=2):
        pass

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(migrating, "_copied_to", killed)
    with pytest.raises(KeyboardInterrupt):
        aesg.migrate(source, f"lmdb://{tmp_path}/new", overwrite=True)
    monkeypatch.undo()
    assert left_over(tmp_path) == [".new.unfinished"]
    assert aesg.migrate(source, f"lmdb://{tmp_path}/new", overwrite=True, resume=True).resumed


def test_a_note_that_is_garbled_is_none(interrupted, tmp_path):
    interrupted(f"lmdb://{tmp_path}/new")
    for text in ("{", "[1]"):
        (tmp_path / ".new.unfinished" / "note.json").write_text(text)
        with Unfinished(f"lmdb://{tmp_path}/new") as place:
            assert place.note is None
            place.keep = True


_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
from aesg.migration import copying
copying.PIECE_BYTES, copying.COMMIT_BYTES = 1 << 14, 1 << 16
sys.argv[1:] = sys.argv[2:]
from aesg.cli.main import main
main()
"""


@pytest.mark.parametrize("to", ["memmap", "lmdb"])
def test_a_disk_that_fills_up_half_way(to, interrupted, tmp_path):
    """A file may not grow beyond a limit: the system says the same as of a full disk."""
    url = f"{to}://{tmp_path}/new"
    command = [sys.executable, "-c", _LIMITED, str(300_000), "migrate", str(tmp_path / "source"), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "free some space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    found = aesg.migrate(tmp_path / "source", url, resume=True)
    assert found.resumed
    assert aesg.digest(url) == aesg.digest(tmp_path / "source")


# --- into an opened store --------------------------------------------------------------------------------------------


def test_an_opened_store_is_marked_until_it_is_whole(interrupted, tmp_path):
    new = open_new("memory", None)
    interrupted(new)
    assert UNFINISHED in new.attrs
    for reading in (lambda: aesg.digest(new), lambda: aesg.migrate(new, f"lmdb://{tmp_path}/other")):
        with pytest.raises(MigrationError, match="not finished"):
            reading()
    with pytest.raises(MigrationError, match="resume=True"):
        aesg.migrate(tmp_path / "source", new)
    with pytest.raises(MigrationError, match="something else"):
        aesg.migrate(tmp_path / "source", new, resume=True, compact=True)
    found = aesg.migrate(tmp_path / "source", new, resume=True)
    assert found.resumed
    assert aesg.digest(new) == found.digest
    assert UNFINISHED not in new.attrs


def test_an_opened_store_has_to_be_fit(source):
    with pytest.raises(MigrationError, match="numbers"):
        aesg.migrate(source, open_new("memory", None, dim=5))
    full = open_new("memory", None)
    full.attrs["a"] = 1
    with pytest.raises(MigrationError, match="not empty"):
        aesg.migrate(source, full)
    with pytest.raises(MigrationError, match="not be the source"):
        aesg.migrate(full, full)
    with pytest.raises(InvalidInputError, match="gone when it is closed"):
        aesg.migrate(source, "memory:")


# --- the stream ------------------------------------------------------------------------------------------------------


def test_taps_see_everything_in_the_thread_that_reads():
    old, new = open_new("memory", None), open_new("memory", None)
    filled(old)
    seen, digest = [], ContentDigest(4)

    class Tap:
        def nodes(self, columns):
            seen.append(("nodes", len(columns["id"]), threading.current_thread().name))

        def edges(self, columns):
            seen.append(("edges", len(columns["ref"]), threading.current_thread().name))

        def events(self, found):
            seen.append(("events", len(found), threading.current_thread().name))

    copy(GraphSource(old), new, taps=[Tap(), digest])
    assert seen == [
        ("nodes", 12, "aesg-read-ahead"),
        ("edges", 31, "aesg-read-ahead"),
        ("events", 13, "aesg-read-ahead"),
    ]
    assert digest.finish(dict(old.attrs)) == aesg.digest(new)


def test_what_fails_while_it_is_read_fails_the_copy():
    old, new = open_new("memory", None), open_new("memory", None)
    filled(old)

    class Failing(GraphSource):
        def edges(self):
            yield next(super().edges())
            raise OSError("the cable was pulled")

    with pytest.raises(OSError, match="cable"):
        copy(Failing(old), new)
    short = GraphSource(old)
    short.edge_count += 1
    with pytest.raises(MigrationError, match="changed while it was read"):
        copy(short, new)
    with pytest.raises(MigrationError, match="not its copy"):
        copy(GraphSource(new), old)


def test_a_thinned_source_counts_what_it_gives(source):
    with aesg.open(source, "r") as store:
        for compact in (False, True):
            thinned = Thinned(GraphSource(store), compact=compact)
            assert sum(len(chunk["id"]) for chunk in thinned.nodes()) == thinned.node_count
            assert sum(len(chunk["weight"]) for chunk in thinned.edges()) == thinned.edge_count
            assert (thinned.dropped_nodes, thinned.dropped_edges > 0) == ((1, True) if compact else (0, False))
            assert (digest_of(thinned) == aesg.digest(store)) is not compact


_WATCHED = """
import json, sys, threading
from aesg.migration.migrate import migrate
import numba, lmdb, zarr
def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024
before = highest = anonymous()
done = threading.Event()
def watch():
    global highest
    while not done.wait(0.005):
        highest = max(highest, anonymous())
watching = threading.Thread(target=watch)
watching.start()
found = migrate(*sys.argv[1:])
done.set(); watching.join()
print(json.dumps([found.bytes / 1e6, highest - before]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["lmdb", "zarr"])
def test_memory_does_not_grow_with_the_store(to, tmp_path):
    with aesg.open(f"memmap://{tmp_path}/source", vector_dim=1024) as store:
        vectors = np.random.default_rng(0).standard_normal((10_000, 1024), np.float32)
        for _ in range(6):
            store.nodes.append(NodeBatch(vectors))
        ends = np.random.default_rng(1).integers(0, 60_000, (2, 1_000_000))
        store.edges.append(ends[0], ends[1])
    command = [sys.executable, "-c", _WATCHED, str(tmp_path / "source"), f"{to}://{tmp_path}/new"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    carried, memory = json.loads(done.stdout)
    assert carried > 270
    assert memory < 200


# --- the command -----------------------------------------------------------------------------------------------------


def run(*args, status=0):
    result = CliRunner().invoke(app, ["migrate", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status
    return json.loads(result.stdout) if "--json" in args else result.stdout


def test_the_command(source, tmp_path):
    url = f"lmdb://{tmp_path}/new"
    looked = run(source, url, "--dry-run", "--json")
    assert (looked["nodes"], looked["digest"], looked["violations"]) == (40, "", [])
    assert 0 < looked["bytes"] < looked["needed_bytes"] < looked["free_bytes"]
    assert "would make" in run(source, url, "--dry-run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
    found = run(source, url, "--json")
    assert found["digest"] == aesg.digest(url)
    assert found["mb_per_second"] == pytest.approx(found["bytes"] / found["seconds"] / 1e6, abs=0.06)
    text = run(source, url, "--overwrite", "--compact")
    for part in ("pruned nodes", "MB/s", aesg.digest(url)):
        assert part in text
    with pytest.raises(MigrationError, match="exists"):
        run(source, url)


def test_the_command_says_what_it_would_refuse(damaged, tmp_path):
    damaged("target_id", 3, 12345)
    found = run(damaged.path, f"lmdb://{tmp_path}/new", "--dry-run", "--json", status=1)
    assert len(found["violations"]) == 1
    assert "dangling-target" in run(damaged.path, f"lmdb://{tmp_path}/new", "--dry-run", status=1)
    assert run(damaged.path, f"lmdb://{tmp_path}/new", "--drop-dangling", "--json")["violations"] == []


def test_the_estimate_is_not_far_off(source, tmp_path):
    with aesg.open(source) as store:
        store.nodes.append(batch(20_000, 10_000))
        ends = np.random.default_rng(0).integers(0, 20_000, (2, 200_000))
        store.edges.append(ends[0], ends[1])
    for to in ("memmap", "lmdb", "zarr"):
        found = aesg.migrate(source, f"{to}://{tmp_path}/{to}")
        taken = sum(path.stat().st_blocks * 512 for path in (tmp_path / to).rglob("*") if path.is_file())
        assert 0.7 < taken / found.needed_bytes < 1.2, to


def test_limits_are_those_of_the_test(tmp_path):
    """What the disk test relies on: a limit of file size is an error, not a signal."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    assert migrating.migrate is aesg.migrate
