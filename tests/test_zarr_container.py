"""The container of Zarr arrays: in a folder, packed as ZIP, in memory; what others read of it, what a crash leaves.

`AESG_CRASH_KILLS=500` and `AESG_DAMAGES=2000` give the long forms.
"""

import errno
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from zarr_support import (
    COLUMNS,
    FLAGS,
    HEAD,
    IDS,
    LOG,
    VECTORS,
    Writers,
    attempt,
    blocks_of,
    opened,
    put,
    rows_of,
    same,
    state_after,
)

import aesg
from aesg.backends import registry
from aesg.backends.blocks.container import Changes, Column
from aesg.backends.files import boot_id
from aesg.backends.zarr import archive, codecs, directory, documents, local, mapping
from aesg.backends.zarr.documents import Layout
from aesg.errors import (
    AESGError,
    CapacityError,
    ConflictError,
    CorruptionError,
    FormatVersionError,
    InvalidInputError,
    LockedError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
    UnsupportedError,
)
from aesg.protocols import Durability, ReaderView
from aesg.records import NodeBatch

KILLS = int(os.environ.get("AESG_CRASH_KILLS", "40"))
DAMAGES = int(os.environ.get("AESG_DAMAGES", "150"))
SUPPORT = Path(__file__).with_name("zarr_support.py")
CODECS = ["none", "zstd", "blosc"]
DURABILITIES = ["process_crash", "power_loss"]
SMALL = {"nodes/id": np.arange(20, dtype="<u8"), "nodes/vector": rows_of(VECTORS, 20)}


@pytest.fixture
def url(tmp_path):
    return f"zarr://{tmp_path}/store"


@pytest.fixture(params=[f"{codec}-{durability}" for codec in CODECS for durability in DURABILITIES] + ["memory"])
def container(request, tmp_path):
    """A new container of each kind."""
    codec, _, durability = request.param.partition("-")
    made = (
        opened("zarr:") if codec == "memory" else opened(f"zarr://{tmp_path}/s?codec={codec}&durability={durability}")
    )
    yield made
    made.close()


@pytest.fixture
def closing():
    """What is given to it is closed after the test."""
    given = []
    yield lambda found: given.append(found) or found
    for found in reversed(given):
        found.close()


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- putting and getting ---------------------------------------------------------------------------------------------


class TestBlocks:
    def test_a_new_container_has_no_head(self, container):
        assert container.head() is None

    def test_what_was_put_is_got(self, container):
        state = put(container, state_after(1), k=1)
        assert container.head() == {**HEAD, "k": 1}
        assert same(container, state)

    def test_columns_grow_shrink_and_vanish(self, container):
        before = None
        for k in range(12):
            before = put(container, state_after(k), before, k=k)
            assert same(container, before)
            assert container.head()["k"] == k

    def test_the_version_moves_with_every_commit(self, container):
        seen = {container.version}
        for k in range(3):
            put(container, {}, k=k)
            seen.add(container.version)
        assert len(seen) == 4

    def test_a_block_that_is_not_there(self, container):
        put(container, {"log": rows_of(LOG, 70_000)})
        assert container.get(LOG, 0, 1 << 16) is not None
        drops = [("log", 1)]
        container.commit(Changes({}, COLUMNS, dict.fromkeys(COLUMNS, 1 << 16), {}, drops))
        assert container.get(LOG, 1, 10) is None

    def test_what_is_put_may_change_afterwards(self, container):
        values = rows_of(FLAGS, 50)
        kept = values.copy()
        put(container, {"nodes/is_active": values})
        values[:] = 0
        assert np.array_equal(container.get(FLAGS, 0, 50), kept)

    def test_a_block_that_is_no_contiguous_array(self, container):
        values = np.arange(32, dtype="<u8")[::-2]
        container.commit(Changes({}, COLUMNS, dict.fromkeys(COLUMNS, 0) | {IDS.name: 16}, {(IDS.name, 0): values}, []))
        assert np.array_equal(container.get(IDS, 0, 16), values)

    def test_a_block_stays_what_it_is_while_it_is_held(self, container):
        wide = Column("nodes/wide", np.dtype("<f8"), 100, 1024, "node")
        columns = {**COLUMNS, wide.name: wide}
        old, new = rows_of(wide, 1024), rows_of(wide, 1024, seed=1)
        lengths = dict.fromkeys(columns, 0) | {wide.name: 1024}
        container.commit(Changes({}, columns, lengths, {(wide.name, 0): old}, []))
        held = container.get(wide, 0, 1024)
        assert not container.resident or not held.flags.writeable
        container.commit(Changes({}, columns, lengths, {(wide.name, 0): new}, []))
        assert np.array_equal(held, old)
        assert np.array_equal(container.get(wide, 0, 1024), new)
        container.commit(Changes({}, columns, dict.fromkeys(columns, 0), {}, [(wide.name, 0)]))
        assert np.array_equal(held, old)

    def test_a_reader_sees_it_and_so_does_who_opens_it_again(self, url):
        for codec in CODECS:
            place = f"{url}-{codec}"
            writer = opened(place, codec=codec)
            state = put(writer, state_after(3), k=3)
            reader = opened(place, "r")
            assert reader.head() == {**HEAD, "k": 3}
            assert same(reader, state)
            reader.close()
            writer.close()
            again = opened(place)
            assert again.head() == {**HEAD, "k": 3}
            assert same(again, state)
            assert again.verify() == []
            state = put(again, state_after(4), state, k=4)
            assert same(again, state)
            again.close()


class TestMapping:
    def test_chunks_that_are_not_compressed_are_mapped(self, url, closing):
        wide = Column("nodes/wide", np.dtype("<f4"), 64, 1024, "node")
        writer = closing(opened(url))
        rows = rows_of(wide, 1500)
        puts = {(wide.name, n): block for n, block in blocks_of(wide, rows).items()}
        writer.commit(Changes({}, {wide.name: wide}, {wide.name: 1500}, puts, []))
        assert writer.resident
        descriptors = len(os.listdir("/proc/self/fd"))
        held = [writer.get(wide, n % 2, 1024 if n % 2 == 0 else 476) for n in range(200)]
        assert len(os.listdir("/proc/self/fd")) == descriptors, "a mapping keeps a descriptor"
        maps = Path("/proc/self/maps").read_text()
        assert maps.count("nodes/wide/c.0.0") == 100
        assert all(np.array_equal(block, rows[1024 * (n % 2) :][: len(block)]) for n, block in enumerate(held))
        del held
        assert "nodes/wide/c.0.0" not in Path("/proc/self/maps").read_text()

    def test_a_system_that_maps_no_more_is_read_from(self, url, closing, monkeypatch):
        writer = closing(opened(url))
        state = put(writer, {"log": rows_of(LOG, 10), "nodes/is_active": rows_of(FLAGS, 100)})
        monkeypatch.setattr(local, "_MAPPED", 1)
        monkeypatch.setattr(local, "map_file", lambda fd, size: None)
        assert same(writer, state)

    def test_a_mapping_that_is_refused_is_none(self, tmp_path):
        read_end, write_end = os.pipe()
        assert mapping.map_file(read_end, 4096) is None
        os.close(read_end)
        os.close(write_end)

    def test_a_store_of_very_many_chunks_is_not_mapped(self, url, closing, monkeypatch):
        monkeypatch.setattr(local, "_CHUNKS", 3)
        writer = closing(opened(url))
        assert writer.resident
        put(writer, {"nodes/id": np.arange(80, dtype="<u8")})
        assert not writer.resident
        assert not closing(opened(url, "r")).resident

    def test_a_compressed_store_is_not_mapped(self, url, closing):
        assert not closing(opened(url, codec="zstd")).resident


# --- as others see it ------------------------------------------------------------------------------------------------


class TestPlainZarr:
    @pytest.fixture(params=CODECS)
    def stored(self, request, tmp_path):
        writer = opened(f"zarr://{tmp_path}/s", codec=request.param)
        state = put(writer, {name: rows_of(column, 150) for name, column in COLUMNS.items()})
        writer.close()
        return tmp_path / "s", state

    def test_zarr_reads_the_same_values(self, stored):
        import zarr

        path, state = stored
        group = zarr.open_group(path, mode="r")
        members = dict(group.members(max_depth=None))  # a warning about something unknown would be an error
        assert {name for name, member in members.items() if isinstance(member, zarr.Array)} == {*state, "journal"}
        for name, values in state.items():
            array = group[name]
            assert array.dtype == values.dtype
            assert array.shape == values.shape
            assert array.chunks[0] == COLUMNS[name].block_rows
            assert np.array_equal(array[...], values)
            assert array.metadata.dimension_names[0] == COLUMNS[name].dimension
            assert array.attrs["description"]
            assert array.nchunks_initialized == array.nchunks
        assert group.attrs["aesg"] == HEAD
        assert group.attrs["description"]

    def test_the_documents_are_those_that_the_library_writes(self, stored):
        import zarr

        path, state = stored
        store = zarr.storage.MemoryStore()
        for name in state:
            ours = json.loads((path / name / "zarr.json").read_bytes())
            array = zarr.open_array(path / name, mode="r")
            made = zarr.create_array(
                store,
                name=name,
                shape=array.shape,
                chunks=array.chunks,
                dtype=array.dtype,
                compressors=array.compressors,
                filters=None,
                fill_value=0,
                dimension_names=array.metadata.dimension_names,
                chunk_key_encoding={"name": "default", "separator": "."},
                attributes=dict(array.attrs),
            )
            assert made.metadata.to_dict() == array.metadata.to_dict()
            theirs = json.loads(store._store_dict[f"{name}/zarr.json"].to_bytes())
            if array.dtype.itemsize == 1:  # which byte order single bytes have, versions of it say differently
                theirs["codecs"][0] = ours["codecs"][0]
            assert theirs == ours

    def test_an_array_that_the_library_has_written_an_attribute_to_is_still_read(self, stored):
        import zarr

        path, state = stored
        for name in state:
            zarr.open_array(path / name, mode="r+").attrs["note"] = "seen"
        zarr.open_group(path, mode="r+").attrs["note"] = "seen"
        reader = opened(f"zarr://{path}", "r")
        assert reader.head() == HEAD
        assert same(reader, state)
        reader.close()

    def test_at_rest_there_is_no_journal_and_nothing_half_written(self, stored):
        path, _ = stored
        assert (path / "journal" / "writer.lock").exists()
        names = {name.name for name in path.rglob("*") if name.is_file()}
        assert not [name for name in names if name.endswith((".new", ".redo"))]

    def test_xarray_opens_it(self, stored):
        xarray = pytest.importorskip("xarray")
        path, state = stored
        found = xarray.open_zarr(path, group="nodes", consolidated=False)
        assert found["vector"].dims == ("node", "component")
        assert np.array_equal(found["vector"].values, state["nodes/vector"])

    def test_dask_opens_it(self, stored):
        array = pytest.importorskip("dask.array")
        path, state = stored
        assert np.array_equal(array.from_zarr(str(path), "nodes/id").compute(), state["nodes/id"])

    def test_a_whole_store_is_read_by_zarr(self, tmp_path):
        import zarr

        vectors = np.random.default_rng(0).standard_normal((300, 5), dtype=np.float32)
        with aesg.open(f"zarr://{tmp_path}/s", vector_dim=5) as store:
            store.nodes.append(NodeBatch(vectors, np.arange(300, dtype=np.uint64) + 2**63))
            store.edges.append(np.arange(299), np.arange(1, 300), 0.25)
            store.flush()
            group = zarr.open_group(tmp_path / "s", mode="r")
            assert np.array_equal(group["nodes/vector"][...], vectors)
            assert group["nodes/id"][299] == 2**63 + 299
            assert group["edges/weight"][...].tolist() == [0.25] * 299
            assert sum(1 for _ in group.members(max_depth=None)) > 50

    def test_a_hole_takes_no_room(self, url, tmp_path, closing):
        column = Column("nodes/id", np.dtype("<u8"), None, 1 << 20, "node")
        writer = closing(opened(url))
        values = np.arange(1000, dtype="<u8")
        writer.commit(Changes({}, {column.name: column}, {column.name: 1000}, {(column.name, 0): values}, []))
        status = (tmp_path / "store/nodes/id/c.0").stat()
        assert status.st_size == 8 << 20
        assert status.st_blocks * 512 < 1 << 16
        assert writer.stats()["bytes_on_disk"] < 1 << 17


class TestKindsOfPlaces:
    def test_nothing_heavy_is_imported_before_a_store_is_opened(self, tmp_path):
        code = """
        import sys
        import aesg.backends.zarr, aesg.backends.zarr.icechunk
        from aesg.backends import registry
        registry.resolve(sys.argv[1])
        assert not {"zarr", "icechunk", "numcodecs"} & set(sys.modules)
        import aesg
        aesg.open("zarr://" + sys.argv[1], vector_dim=3).close()
        assert not {"zarr", "icechunk"} & set(sys.modules)
        """
        subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "s")], check=True, timeout=60)

    def test_a_bare_path_is_recognised(self, tmp_path):
        aesg.open(f"zarr://{tmp_path}/s", vector_dim=3).close()
        with aesg.open(tmp_path / "s") as store:
            assert store.url == f"zarr://{tmp_path}/s"

    def test_a_store_that_was_only_begun_is_recognised_but_cannot_be_read(self, tmp_path, url):
        opened(url).close()
        assert str(registry.resolve(tmp_path / "store")) == url
        with pytest.raises(NotFoundError, match="begun"):
            aesg.open(tmp_path / "store", "r")
        with aesg.open(tmp_path / "store", vector_dim=3) as store:
            assert len(store.nodes) == 0

    def test_what_others_made_is_left_alone(self, tmp_path):
        import zarr

        zarr.create_group(tmp_path / "g", attributes={"mine": 1})
        zarr.create_array(tmp_path / "a", shape=(3,), dtype="u1")
        before = files_in(tmp_path)
        for name in ("g", "a"):
            with pytest.raises(NotFoundError):
                aesg.open(tmp_path / name)
            for mode in "ar":
                with pytest.raises(InvalidInputError, match="something else"):
                    aesg.open(f"zarr://{tmp_path}/{name}", mode, vector_dim=3)
        assert files_in(tmp_path) == before

    def test_there_is_no_store(self, tmp_path, url):
        with pytest.raises(NotFoundError):
            aesg.open(url, "r")
        with pytest.raises(InvalidInputError, match="vector_dim"):
            aesg.open(url)
        assert not (tmp_path / "store").exists()

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "file").write_text("no store")
        with pytest.raises(UnsupportedError):
            aesg.open(f"zarr://{tmp_path}/file", vector_dim=3)
        with pytest.raises(CorruptionError):
            aesg.open(f"zarr://{tmp_path}/file", "r")

    def test_a_store_keeps_its_codec(self, url):
        for codec in CODECS:
            aesg.open(f"{url}-{codec}", vector_dim=3, codec=codec).close()
            for other in CODECS:
                if other == codec:
                    with aesg.open(f"{url}-{codec}", codec=other) as store:
                        assert store.stats()["codec"] == codec
                    continue
                for mode in "ar":
                    with pytest.raises(InvalidInputError, match=f"codec is {codec}, not {other}"):
                        aesg.open(f"{url}-{codec}", mode, codec=other)
            with aesg.open(f"{url}-{codec}", "r") as store:
                assert store.stats()["codec"] == codec

    def test_options(self, url):
        for wrong in ("codec=gzip", "cache_bytes=much", "cache_bytes=-1", "durability=none", "cache_bytes=1.5"):
            with pytest.raises(InvalidInputError, match=wrong.split("=")[0]):
                aesg.open(f"{url}?{wrong}", vector_dim=3)
        with aesg.open(url, vector_dim=3, cache_bytes="64MiB", durability="power_loss") as store:
            assert store.capabilities.durability is Durability.POWER_LOSS
            assert "cache_bytes=67108864" in store.url
            with pickle.loads(pickle.dumps(store)) as copy:
                assert copy.read_only
                assert copy.url == store.url

    def test_chunks_of_another_spelling_are_read(self, url, tmp_path, closing):
        """As in a store that was copied out of an Icechunk repository."""
        writer = opened(url)
        writer._layout = Layout("none", "/")
        state = put(writer, state_after(2), k=2)
        writer.close()
        assert (tmp_path / "store/nodes/vector/c/0/0").exists()
        again = closing(opened(url))
        assert same(again, state)
        assert again.verify() == []
        put(again, state_after(3), state, k=3)
        assert same(again, state_after(3))
        assert again.verify() == []


class TestZip:
    @pytest.fixture(params=["stored", "deflated"])
    def packed(self, request, tmp_path):
        opened_store = aesg.open(f"zarr://{tmp_path}/s", vector_dim=3)
        with opened_store as store:
            store.nodes.append(NodeBatch(np.arange(30, dtype=np.float32).reshape(10, 3)))
            store.attrs["ä"] = "ü"
        kind = zipfile.ZIP_STORED if request.param == "stored" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / "s.zip", "w", kind) as file:
            for path in sorted((tmp_path / "s").rglob("*")):
                if path.is_file():
                    file.write(path, path.relative_to(tmp_path / "s"))
        return tmp_path / "s.zip"

    def test_it_is_read_like_the_folder(self, packed):
        import zarr

        for place in (packed, f"zarr://{packed}"):
            with aesg.open(place, "r") as store:
                assert store.nodes.read([9], ["vector"])["vector"].tolist() == [[27, 28, 29]]
                assert store.attrs["ä"] == "ü"
                assert store.capabilities.reader_view is ReaderView.FIXED
                assert store.verify() == []
                assert store.stats()["bytes_on_disk"] > 0
                assert store.refresh() is False
                with pytest.raises(ReadOnlyError):
                    store.attrs["a"] = 1
        group = zarr.open_group(zarr.storage.ZipStore(packed, mode="r"), mode="r")
        assert group["nodes/vector"].shape == (10, 3)

    def test_it_promises_what_it_gives_and_not_what_a_folder_would(self, packed):
        with aesg.open(packed, "r", require={"reader_view": "fixed"}):
            pass
        with pytest.raises(UnsupportedError, match="reader_view fixed was required"):
            aesg.open(packed.with_suffix(""), "r", require={"reader_view": "fixed"})
        with pytest.raises(UnsupportedError, match="durability power_loss was required"):
            aesg.open(f"zarr://{packed}?durability=power_loss", "r", require={"durability": "power_loss"})

    def test_it_is_not_written_to(self, packed):
        before = packed.read_bytes()
        for place in (packed, f"zarr://{packed}"):
            with pytest.raises(UnsupportedError, match="mode='r'"):
                aesg.open(place, vector_dim=3)
        assert packed.read_bytes() == before

    def test_a_new_zip_is_refused(self, tmp_path):
        with pytest.raises(UnsupportedError, match="ZIP"):
            aesg.open(f"zarr://{tmp_path}/new.zip", vector_dim=3)
        with pytest.raises(NotFoundError):
            aesg.open(f"zarr://{tmp_path}/new.zip", "r")
        assert not (tmp_path / "new.zip").exists()

    def test_other_zips(self, tmp_path):
        with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
            file.writestr("a", "b")
        with pytest.raises(NotFoundError, match=r"zarr\.json"):
            aesg.open(f"zarr://{tmp_path}/other.zip", "r")
        with pytest.raises(NotFoundError):
            aesg.open(tmp_path / "other.zip", "r")

    def test_a_chunk_that_unpacks_to_more_than_a_chunk_is_refused(self, tmp_path):
        writer = opened(f"zarr://{tmp_path}/s")
        put(writer, SMALL)
        writer.close()
        with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as file:
            for name, data in files_in(tmp_path / "s").items():
                file.writestr(name, bytes(1 << 28) if name == "nodes/id/c.1" else data)
        container = archive.ZipContainer("zarr:///s.zip", tmp_path / "s.zip", None)
        assert container.get(IDS, 0, 16) is not None
        with pytest.raises(CorruptionError, match="expected at most"):
            container.get(IDS, 1, 4)
        container.close()

    @pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    def test_members_that_are_said_to_be_packed_otherwise(self, tmp_path, kind):
        writer = opened(f"zarr://{tmp_path}/s")
        put(writer, SMALL)
        writer.close()
        with zipfile.ZipFile(tmp_path / "s.zip", "w") as file:
            for name, data in files_in(tmp_path / "s").items():
                file.writestr(name, data)
        whole = (tmp_path / "s.zip").read_bytes()
        for at in (member.start() for member in re.finditer(b"PK\x01\x02", whole)):
            whole = whole[: at + 10] + kind.to_bytes(2, "little") + whole[at + 12 :]
        for at in (member.start() for member in re.finditer(b"PK\x03\x04", whole)):
            whole = whole[: at + 8] + kind.to_bytes(2, "little") + whole[at + 10 :]
        (tmp_path / "s.zip").write_bytes(whole)
        with pytest.raises(CorruptionError, match="unpacked"):
            archive.ZipContainer("zarr:///s.zip", tmp_path / "s.zip", None)
        assert not archive.recognises(tmp_path / "s.zip")

    def test_damage_is_noticed(self, packed):
        whole, rng = packed.read_bytes(), random.Random(0)
        outcomes = set()
        for _ in range(60):
            damaged = bytearray(whole)
            if rng.random() < 0.3:
                del damaged[rng.randrange(len(damaged)) :]
            else:
                at = rng.choice([rng.randrange(len(damaged)), len(damaged) - rng.randrange(1, 6000)])
                damaged[at] ^= 1 << rng.randrange(8)
            packed.write_bytes(damaged)
            try:
                with aesg.open(f"zarr://{packed}", "r") as store:
                    found = store.nodes.read(np.arange(10), ["vector"])["vector"]
                    assert found.tolist() == np.arange(30).reshape(10, 3).tolist()
                    outcomes.add("whole")
            except AESGError as error:
                outcomes.add(type(error).__name__)
        assert outcomes <= {"whole", "CorruptionError", "NotFoundError"}
        assert "CorruptionError" in outcomes


class TestMemory:
    def test_zarr_reads_it_while_it_is_open(self):
        import zarr

        with aesg.open("zarr:", vector_dim=3, codec="blosc") as store:
            store.nodes.append(NodeBatch(np.ones((5, 3), np.float32)))
            store.flush()
            group = zarr.open_group(store.container.store, mode="r")
            assert group["nodes/vector"][...].tolist() == [[1, 1, 1]] * 5
            assert store.capabilities.as_dict()["durability"] == "none"
            assert store.capabilities.as_dict()["readers"] == "same_process"
            with pytest.raises(UnsupportedError, match="pickled"):
                pickle.dumps(store)

    def test_what_it_refuses(self):
        with pytest.raises(NotFoundError):
            aesg.open("zarr:", "r")
        with pytest.raises(InvalidInputError, match="vector_dim"):
            aesg.open("zarr:")
        with pytest.raises(UnsupportedError, match="durability"):
            aesg.open("zarr:", require={"durability": "process_crash"}, vector_dim=3)


# --- several processes -----------------------------------------------------------------------------------------------


def python(code, *args):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(SUPPORT.parent)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


class TestProcesses:
    def test_one_writes(self, url, closing):
        closing(opened(url))
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"):
            opened(url)
        code = "import sys; from zarr_support import attempt; print(attempt(sys.argv[1], 'a')['error'])"
        assert python(code, url).strip() == "LockedError"

    def test_a_reader_moves_with_the_commits(self, url, closing):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)
        reader = closing(opened(url, "r"))
        for k in range(1, 6):
            state = put(writer, state_after(k), state, k=k)
            version = reader.version
            assert reader.refresh() is True
            assert reader.refresh() is False
            assert reader.version != version
            with reader.reading():
                assert reader.head()["k"] == k
                assert same(reader, state)

    def test_a_reader_outlives_writers_that_come_and_go_and_are_killed(self, url, closing, writers):
        put(writer := opened(url), state_after(0), k=0)
        writer.close()
        reader = closing(opened(url, "r"))
        for _ in range(3):
            assert not writers.write(url, 1)[0]
            assert writers.write(url, 9, 60)[0]
            with reader.reading():
                assert same(reader, state_after(reader.head()["k"]))
        assert reader.head()["k"] >= 3

    def test_a_reader_notices_that_the_store_is_another_one(self, url, tmp_path, closing):
        put(writer := opened(url), state_after(1), k=1)
        writer.close()
        reader = closing(opened(url, "r"))
        shutil.rmtree(tmp_path / "store")
        with pytest.raises(NotFoundError), reader.reading():
            pass
        put(writer := opened(url, codec="zstd"), state_after(2), k=2)
        writer.close()
        with reader.reading():
            assert reader.head()["k"] == 2
            assert same(reader, state_after(2))

    def test_a_reader_in_another_process_never_sees_half_of_a_commit(self, url):
        writer = opened(url)
        state = put(writer, state_after(0), k=0)
        code = """
        import sys
        from zarr_support import opened, same, state_after
        reader, seen = opened(sys.argv[1], "r"), set()
        print("ready", flush=True)
        while True:
            with reader.reading():
                k = reader.head()["k"]
                assert same(reader, state_after(k)), k
            if k not in seen:
                seen.add(k)
            if k == 40:
                break
        reader.close()
        print(len(seen))
        """
        reader = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), url],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(SUPPORT.parent)},
        )
        assert reader.stdout.readline() == "ready\n"
        for k in range(1, 41):
            state = put(writer, state_after(k), state, k=k)
        said = reader.communicate(timeout=60)[0]
        writer.close()
        assert reader.returncode == 0
        assert int(said) > 1

    def test_a_child_reads_what_its_parent_goes_on_writing(self, url):
        code = """
        import os, signal, sys
        from zarr_support import attempt, opened, put, same, state_after
        writer = opened(sys.argv[1], codec="blosc")
        state = put(writer, state_after(0), k=0)
        assert same(writer, state)
        told, tell = os.pipe()
        if not (child := os.fork()):
            signal.alarm(30)
            writer.forked()
            os.read(told, 1)
            reader = writer.reopen()
            with reader.reading():
                right = reader.head()["k"] == 1 and same(reader, state_after(1))
            reader.close()
            os._exit(0 if right else 1)
        put(writer, state_after(1), state, k=1)
        print(attempt(sys.argv[1], "a")["error"])
        os.write(tell, b"x")
        print(os.waitpid(child, 0)[1])
        print(attempt(sys.argv[1], "a")["error"])
        writer.close()
        """
        assert python(code, url).split() == ["LockedError", "0", "LockedError"]


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_entries(monkeypatch):
    """Durable commits of both kinds, and checkpoints now and then, with little data."""
    monkeypatch.setenv("AESG_TEST_SMALL_ENTRIES", "1")
    monkeypatch.setattr(directory, "_INLINE", 20_000)
    monkeypatch.setattr(local, "_CHECKPOINT", 60_000)


@pytest.fixture(scope="module")
def writers():
    made = Writers("aesg.backends.zarr.local", AESG_TEST_SMALL_ENTRIES="1")
    yield made
    made.close()


class TestKilled:
    @pytest.mark.parametrize("durability", DURABILITIES)
    def test_at_each_call_that_changes_a_file(self, url, durability, writers, small_entries, tmp_path):
        rng = random.Random(durability)
        url = f"{url}?durability={durability}"
        k, died = -1, 0
        numbers = [number % 120 + 1 for number in range(KILLS)] if KILLS > 120 else rng.sample(range(1, 121), KILLS)
        for turn, number in enumerate(numbers):
            if turn % 15 == 14:  # from the beginning again
                shutil.rmtree(tmp_path / "store")
                k = -1
            killed, said = writers.write(url, 2, number)
            died += killed
            k = max(k, said)
            found = attempt(url, rng.choice("ar"))
            if k < 0 and found.get("error") == "NotFoundError":
                continue  # there is no store yet
            assert "k" in found, found
            assert k <= found["k"] <= k + 1
            assert found["same"]
            assert found["violations"] == []
            k = found["k"]
        assert died > KILLS // 2

    @pytest.mark.parametrize("durability", DURABILITIES)
    def test_a_recovery_that_is_killed_is_recovered_from(self, url, durability, writers, tmp_path, monkeypatch):
        """The journal has an entry of which nothing was carried out; killed at each call of its recovery."""
        url = f"{url}?durability={durability}"
        writer = opened(url)
        state = put(writer, state_after(0), k=0)
        with monkeypatch.context() as patch:
            patch.setattr(directory.Staged, "carry_out", lambda self: 1 / 0)
            with pytest.raises(StorageError):
                put(writer, state_after(1), state, k=1)
        shutil.copytree(tmp_path / "store", tmp_path / "left")
        writer.close()
        for number in [*range(1, 10), *range(10, 200, 1 if KILLS > 120 else 9)]:
            shutil.rmtree(tmp_path / "store")
            shutil.copytree(tmp_path / "left", tmp_path / "store")
            killed, _ = writers.write(url, 0, number)
            for mode in "ra":
                assert attempt(url, mode) == {"k": 1, "same": True, "violations": []}, (number, mode)
            if not killed:
                break
        assert number > 10

    def test_a_reader_that_may_not_write_says_what_to_do(self, url, tmp_path, monkeypatch, writers):
        assert writers.write(url, 3, 60)[0]
        journal = local.Journal(tmp_path / "store/journal/entries.redo")
        journal.mark_pending()
        journal.close()

        def refused(*args):
            raise StorageError("locking: Permission denied")

        monkeypatch.setattr(local, "WriterLock", refused)
        with pytest.raises(ReadOnlyError, match="mode='a'"):
            opened(url, "r")

    def test_a_journal_that_was_cut_while_it_matters_is_corruption(self, url, tmp_path):
        writer = opened(f"{url}?durability=power_loss")
        put(writer, state_after(0), k=0)
        shutil.copytree(tmp_path / "store", tmp_path / "copy")
        writer.close()
        path = tmp_path / "copy/journal/entries.redo"
        journal = local.Journal(path)
        journal.mark_pending()
        journal.close()
        whole = path.read_bytes()
        path.write_bytes(whole[:5000])
        for mode in "ra":
            assert attempt(f"zarr://{tmp_path}/copy", mode)["error"] == "CorruptionError"
        path.write_bytes(whole)
        assert attempt(f"zarr://{tmp_path}/copy", "r") == {"k": 0, "same": True, "violations": []}

    @pytest.mark.parametrize(
        "entry",
        [
            {"writes": {"../../outside": 1}, "lengths": [1], "drops": [], "sync": True},
            {"writes": {}, "lengths": None, "drops": ["nodes/../../x/zarr.json"], "sync": True},
            {"writes": {}, "lengths": None, "drops": ["/etc/zarr.json"], "sync": True},
            {"writes": {"zarr.json": -1}, "lengths": None, "drops": [], "sync": True},
            {"writes": {"zarr.json": 1}, "lengths": [5], "drops": [], "sync": True},
            {"writes": {"zarr.json": 1}, "lengths": [], "drops": [], "sync": True},
            {"writes": [], "lengths": None, "drops": [], "sync": True},
            [1],
            None,
        ],
    )
    def test_a_hostile_journal_leads_nowhere(self, entry, url, tmp_path):
        writer = opened(url)
        put(writer, SMALL)
        shutil.copytree(tmp_path / "store", tmp_path / "copy")
        writer.close()
        journal = local.Journal(tmp_path / "copy/journal/entries.redo", create=True)
        body = json.dumps(entry).encode()
        journal.restart(1, [struct.pack("<Q", len(body)), body, b"x"])
        journal.close()
        before = files_in(tmp_path / "copy")
        with pytest.raises(CorruptionError, match=r"entries\.redo"):
            opened(f"zarr://{tmp_path}/copy")
        after = files_in(tmp_path / "copy")
        assert {name for name in after if after[name] != before.get(name)} <= {"journal/writer.lock"}
        assert before.keys() == after.keys()


class Disk:
    """What of a folder is on the disk: what was synced, and by chance more of what was not."""

    def __init__(self, folder, monkeypatch):
        self.folder = folder
        self.content, self.names, self.kept = {}, {}, []
        self.after = lambda: None
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._noting(getattr(os, name)))
        for name in ("replace", "unlink", "pwrite"):
            monkeypatch.setattr(os, name, self._then(getattr(os, name)))

    def _noting(self, real):
        def sync(fd):
            real(fd)
            path = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if path.is_relative_to(self.folder):
                self.kept.append(os.dup(fd))  # no other file gets this inode
                if path.is_dir():
                    self.names[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
                else:
                    self.content[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
            self.after()

        return sync

    def _then(self, real):
        def call(*args, **kwargs):
            done = real(*args, **kwargs)
            self.after()
            return done

        return call

    def lost_power(self, target, rng):
        """What a machine that went dark now would find."""
        self._rebuild(self.folder, target, rng)
        journal = target / "journal/entries.redo"
        if journal.exists() and journal.stat().st_size > 32:
            data = bytearray(journal.read_bytes())
            data[16:32] = bytes(16) if not any(boot_id()) else bytes(15) + b"x"
            journal.write_bytes(data)

    def _rebuild(self, source, target, rng):
        target.mkdir()
        present = {entry.name: entry.stat().st_ino for entry in source.iterdir()}
        sure = self.names.get(source, {})
        for name in {*sure, *present}:
            inode = rng.choice([sure.get(name), present.get(name)])
            if inode is None:
                continue
            if (source / name).is_dir():
                self._rebuild(source / name, target / name, rng)
                continue
            live = (source / name).read_bytes() if present.get(name) == inode else None
            synced = self.content.get(inode)
            if synced is None and live is not None:
                (target / name).write_bytes(live[: rng.choice([0, len(live) // 2, len(live)])])
            elif synced is not None:
                (target / name).write_bytes(rng.choice([synced, synced if live is None else live]))

    def close(self):
        for fd in self.kept:
            os.close(fd)


class TestPowerLoss:
    @pytest.mark.parametrize("seed", range(max(3, KILLS // 20)))
    def test_no_committed_state_is_lost(self, seed, url, tmp_path, monkeypatch, small_entries):
        rng, acknowledged, tried = random.Random(seed), -1, 0
        disk = Disk(tmp_path / "store", monkeypatch)
        dark = tmp_path / "dark"
        busy = False

        def perhaps_dark():
            nonlocal busy, tried
            if busy or rng.random() > 0.03:
                return
            busy = True
            disk.lost_power(dark, rng)
            tried += 1
            found = attempt(f"zarr://{dark}?durability=power_loss", rng.choice("ar"))
            if acknowledged >= 0 or found.get("error") != "NotFoundError":
                assert "k" in found, found
                assert acknowledged <= found["k"] <= acknowledged + 1
                assert found["same"]
            shutil.rmtree(dark)
            busy = False

        disk.after = perhaps_dark
        state = None
        for _ in range(2):
            writer = opened(f"{url}?durability=power_loss")
            for k in range(acknowledged + 1, acknowledged + 6):
                state = put(writer, state_after(k), state, k=k)
                acknowledged = k
            writer.flush()
            writer.close()
        disk.close()
        assert tried > 5

    def test_what_an_earlier_writer_left_unsynced_is_synced(self, url, tmp_path, monkeypatch):
        writer = opened(url)
        put(writer, state_after(1), k=1)
        writer.close()
        disk = Disk(tmp_path / "store", monkeypatch)
        writer = opened(f"{url}?durability=power_loss")
        disk.lost_power(tmp_path / "dark", random.Random(0))
        writer.close()
        disk.close()
        assert attempt(f"zarr://{tmp_path}/dark?durability=power_loss", "a") == {"k": 1, "same": True, "violations": []}

    def test_a_sync_that_failed_is_made_up_for_by_writing_again(self, url, tmp_path, monkeypatch):
        writer = opened(f"{url}?durability=power_loss")
        state = put(writer, state_after(1), k=1)
        real, failing = os.fsync, True

        def fsync(fd):
            if failing and not os.readlink(f"/proc/self/fd/{fd}").endswith(".redo"):
                raise OSError(errno.EIO, "Input/output error")
            real(fd)

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError):
            writer.flush()
        nodes = tmp_path / "store/nodes"
        before = {path: path.open("rb") for path in nodes.rglob("*") if path.is_file()}  # no other gets their inodes
        failing = False
        state = put(writer, state_after(2), state, k=2)
        writer.flush()
        for path, file in before.items():
            with file:
                assert not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno()))
        assert same(writer, state)
        writer.close()
        assert attempt(url, "r") == {"k": 2, "same": True, "violations": []}


# --- a full disk -----------------------------------------------------------------------------------------------------


class TestFullDisk:
    @pytest.mark.parametrize("durability", DURABILITIES)
    def test_whichever_call_finds_it_full_nothing_is_lost(self, durability, url, tmp_path, monkeypatch, small_entries):
        writer = opened(f"{url}?durability={durability}")
        state = put(writer, state_after(0), k=0)
        calls, fails_at = 0, 0
        real = {name: getattr(os, name) for name in ("open", "pwrite", "pwritev", "ftruncate", "mkdir")}

        def failing(name):
            def call(*args, **kwargs):
                nonlocal calls
                changes = name != "open" or args[1] & os.O_CREAT
                calls += bool(changes)
                if changes and calls == fails_at:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return real[name](*args, **kwargs)

            return call

        for name in real:
            monkeypatch.setattr(os, name, failing(name))
        refused = 0
        for number in range(1, 60):
            calls, fails_at = 0, number
            new = state_after(number)
            try:
                put(writer, new, state, k=number)
            except CapacityError:
                refused += 1
                fails_at = 0
                assert writer.head()["k"] != number
                assert same(writer, state)
                assert not list((tmp_path / "store").rglob("*.new"))
                put(writer, new, state, k=number)
            state = new
            assert writer.head()["k"] == number
            assert same(writer, state)
        fails_at = 0
        assert refused > 20
        writer.close()
        assert attempt(url, "a") == {"k": 59, "same": True, "violations": []}

    def test_a_commit_that_could_not_be_carried_out_is_later(self, url, monkeypatch, closing):
        writer = closing(opened(url))
        state = put(writer, state_after(0), k=0)
        real, left = os.replace, 3

        def replace(*args):
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.EIO, "Input/output error")
            real(*args)

        monkeypatch.setattr(os, "replace", replace)
        with pytest.raises(StorageError, match="in the journal"):
            put(writer, state_after(1), state, k=1)
        with pytest.raises(StorageError), writer.reading():
            pass
        left, version = 10**6, writer.version
        with pytest.raises(ConflictError, match="begin a new transaction"):
            put(writer, state_after(2), state, k=2)
        assert writer.version != version
        with writer.reading():
            assert writer.head()["k"] == 1
            assert same(writer, state_after(1))
        put(writer, state_after(2), state_after(1), k=2)
        assert same(writer, state_after(2))

    def test_a_store_goes_on_after_such_a_commit(self, url, monkeypatch):
        with aesg.open(url, vector_dim=3) as store:
            store.attrs["a"] = 1
            real = os.replace
            monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
            with pytest.raises(StorageError):
                store.attrs["a"] = 2
            monkeypatch.setattr(os, "replace", real)
            store.attrs["b"] = 3
            assert dict(store.attrs) == {"a": 2, "b": 3}
            assert store.verify() == []

    @pytest.mark.parametrize("end", ["flush", "compact", "close"])
    def test_a_store_is_tidied_after_such_a_commit(self, url, monkeypatch, end):
        store = aesg.open(url, vector_dim=3)
        store.attrs["a"] = 1
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(StorageError):
            store.attrs["a"] = 2
        monkeypatch.setattr(os, "replace", real)
        getattr(store, end)()
        store.close()
        with aesg.open(url, mode="r") as again:
            assert dict(again.attrs) == {"a": 2}
            assert again.verify() == []


# --- damage ----------------------------------------------------------------------------------------------------------


def root_of(url):
    return json.loads(Path(url.removeprefix("zarr://"), "zarr.json").read_bytes())


def changed(document, path, value):
    """A copy of a document with something else at a path; a value of `...` removes it."""
    document = json.loads(json.dumps(document))
    *outer, last = path
    inner = document
    for step in outer:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return document


class TestDocuments:
    @pytest.fixture
    def stored(self, url):
        writer = opened(url)
        put(writer, SMALL)
        writer.close()
        return Path(url.removeprefix("zarr://"))

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["zarr_format"], 2),
            (["node_type"], "array"),
            (["attributes"], []),
            (["attributes"], ...),
            (["attributes", "aesg"], [1]),
            (["attributes", "aesg"], ...),
            (["attributes", "aesg_layout"], ...),
            (["attributes", "aesg_layout"], "none"),
            (["attributes", "aesg_layout", "codec"], "pickle"),
            (["attributes", "aesg_layout", "codec"], ["none"]),
            (["attributes", "aesg_layout", "separator"], "../"),
            (["attributes", "aesg_layout", "chunks"], "many"),
            (["attributes", "aesg_layout", "format"], None),
        ],
    )
    def test_a_root_that_is_not_what_we_write(self, stored, path, value):
        root = json.loads((stored / "zarr.json").read_bytes())
        (stored / "zarr.json").write_text(json.dumps(changed(root, path, value)))
        for mode in "ra":
            assert attempt(f"zarr://{stored}", mode)["error"] == "CorruptionError"

    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 10_000, b'{"a": 1' + b"0" * 9999])
    def test_a_root_that_is_no_document(self, stored, data):
        (stored / "zarr.json").write_bytes(data)
        for mode in "ra":
            assert attempt(f"zarr://{stored}", mode)["error"] == "CorruptionError"
        shutil.rmtree(stored / "journal")
        for mode in "ra":
            assert attempt(f"zarr://{stored}", mode)["error"] == "CorruptionError"

    def test_a_root_that_is_gone(self, stored):
        (stored / "zarr.json").unlink()
        for mode in "ra":
            assert attempt(f"zarr://{stored}", mode)["error"] == "CorruptionError"

    def test_a_newer_format(self, stored):
        root = json.loads((stored / "zarr.json").read_bytes())
        (stored / "zarr.json").write_text(json.dumps(changed(root, ["attributes", "aesg_layout", "format"], 2)))
        for mode in "ra":
            with pytest.raises(FormatVersionError):
                opened(f"zarr://{stored}", mode)

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["node_type"], "group"),
            (["shape"], [20]),
            (["shape"], [20, 4]),
            (["shape"], [-1, 3]),
            (["shape"], [2**70, 3.0]),
            (["shape"], "many"),
            (["shape"], ...),
            (["data_type"], "float64"),
            (["data_type"], {"name": "numpy.object"}),
            (["chunk_grid", "configuration", "chunk_shape"], [16, 3]),
            (["chunk_grid", "name"], "rectangular"),
            (["chunk_key_encoding", "configuration", "separator"], "/"),
            (["fill_value"], 1),
            (["codecs"], []),
            (["codecs"], None),
            (["codecs", 0, "configuration", "endian"], "big"),
            (["codecs", 0], "bytes"),
            (["codecs"], [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "gzip"}]),
            (["codecs"], [{"name": "pickle"}]),
            (["storage_transformers"], [{"name": "any"}]),
        ],
    )
    def test_an_array_that_is_not_what_we_write(self, stored, path, value):
        place = stored / "nodes/vector/zarr.json"
        place.write_text(json.dumps(changed(json.loads(place.read_bytes()), path, value)))
        reader = opened(f"zarr://{stored}", "r")
        with pytest.raises(CorruptionError, match=r"nodes/vector/zarr\.json"):
            [reader.get(VECTORS, number, VECTORS.rows_in(number, 20)) for number in range(VECTORS.blocks(20))]
        assert reader.get(IDS, 0, 16) is not None
        reader.close()

    def test_an_array_that_is_too_short(self, stored):
        place = stored / "nodes/vector/zarr.json"
        place.write_text(json.dumps(changed(json.loads(place.read_bytes()), ["shape"], [19, 3])))
        reader = opened(f"zarr://{stored}", "r")
        assert reader.get(VECTORS, 1, 8) is not None
        assert reader.get(VECTORS, 2, 4) is None
        reader.close()

    def test_an_array_that_is_gone(self, stored):
        (stored / "nodes/vector/zarr.json").unlink()
        container = opened(f"zarr://{stored}")
        with pytest.raises(CorruptionError, match="missing"):
            container.get(VECTORS, 0, 8)
        with pytest.raises(CorruptionError, match="missing"):
            put(container, SMALL, SMALL)
        assert {violation.kind for violation in container.verify()} == {"missing-document"}
        container.close()

    def test_verify_names_what_is_wrong(self, stored):
        (stored / "nodes/id/c.1").unlink()
        (stored / "nodes/id/c.7").write_bytes(b"")
        (stored / "nodes/zarr.json").write_text("{")
        (stored / "strange").write_text("")
        reader = opened(f"zarr://{stored}", "r")
        found = {(violation.kind, Path(violation.place).name) for violation in reader.verify()}
        reader.close()
        assert found == {
            ("missing-chunk", "id: chunk 1"),
            ("stray-file", "c.7"),
            ("stray-file", "strange"),
            ("garbled-document", "zarr.json"),
        }


class TestChunks:
    @pytest.fixture(params=CODECS)
    def stored(self, request, url):
        writer = opened(url, codec=request.param)
        state = put(writer, {"nodes/vector": rows_of(VECTORS, 20), "log": rows_of(LOG, 100)})
        writer.close()
        return Path(url.removeprefix("zarr://")), state

    def read(self, path):
        reader = opened(f"zarr://{path}", "r")
        try:
            return reader.get(VECTORS, 1, 8), reader.get(LOG, 0, 100)
        finally:
            reader.close()

    @pytest.mark.parametrize("name", ["nodes/vector/c.1.0", "log/c.0"])
    def test_garbage(self, stored, name):
        path, state = stored
        whole = (path / name).read_bytes()
        uncompressed = len(whole) in (96, 1 << 16)
        for data in (b"", b"x", whole[:-1], whole + b"x", bytes(len(whole) - 1), b"\xff" * (len(whole) + 9), whole * 9):
            (path / name).write_bytes(data)
            try:
                found = self.read(path)  # a compressor may be content with what stands before the garbage
                assert not uncompressed
                assert np.array_equal(found[0], state["nodes/vector"][8:16])
                assert np.array_equal(found[1], state["log"])
            except CorruptionError as error:
                assert name in str(error)  # noqa: PT017

    @pytest.mark.parametrize("name", ["nodes/vector/c.1.0", "log/c.0"])
    def test_nothing_but_what_was_put_or_corruption_comes_of_flipped_bits(self, stored, name):
        """What passes for a chunk here is told from the real one by the store, which knows its checksum."""
        path, _ = stored
        whole, rng = (path / name).read_bytes(), random.Random(0)
        for _ in range(200):
            damaged = bytearray(whole)
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
            (path / name).write_bytes(damaged)
            try:
                for block, shape in zip(self.read(path), [(8, 3), (100,)], strict=True):
                    assert block.shape == shape
            except CorruptionError as error:
                assert name in str(error)  # noqa: PT017

    def test_a_chunk_that_would_fill_the_memory_is_refused(self):
        column = Column("nodes/id", np.dtype("<u8"), None, 16, "node")
        blocks = 20_000
        frame = b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(
            ((number == blocks - 1) | 2 | (1 << 17) << 3).to_bytes(3, "little") + b"\0" for number in range(blocks)
        )  # runs of a zero: 2.6 GB in 80 KB
        lie = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
        for data, codec in ((frame, "zstd"), (lie, "zstd"), (b"\x02\x01\x21\x08" + b"\xff\xff\xff\x7f" * 3, "blosc")):
            with pytest.raises(CorruptionError, match="here: "):
                codecs.decode(column, data, 16, codec, "here")

    def test_a_file_larger_than_any_chunk_is_not_read(self, url):
        writer = opened(url, codec="zstd")
        put(writer, SMALL)
        writer.close()
        with open(Path(url.removeprefix("zarr://"), "nodes/id/c.0"), "r+b") as file:
            file.truncate(1 << 40)
        reader = opened(url, "r")
        with pytest.raises(CorruptionError, match="expected at most"):
            reader.get(IDS, 0, 16)
        reader.close()


class TestDamagedStores:
    @pytest.mark.parametrize("codec", CODECS)
    def test_a_store_with_one_damaged_file_is_whole_or_corrupt(self, codec, tmp_path):
        """Never garbage, never another exception, a signal or a hang."""
        with aesg.open(f"zarr://{tmp_path}/s?codec={codec}", vector_dim=3) as store:
            store.nodes.append(NodeBatch(np.arange(90, dtype=np.float32).reshape(30, 3)))
            store.edges.append(np.arange(29), np.arange(1, 30), 0.5)
            store.attrs["a"] = [1, "ä"]
        whole = files_in(tmp_path / "s")
        rng, outcomes = random.Random(codec), set()
        for _ in range(DAMAGES):
            name = rng.choice(sorted(whole))
            data = bytearray(whole[name])
            kind = rng.choice(["flip", "flip", "cut", "exchange", "remove"]) if data else "remove"
            if kind == "flip":
                data[rng.randrange(min(len(data), rng.choice([64, 1 << 30])))] ^= 1 << rng.randrange(8)
            elif kind == "cut":
                del data[rng.randrange(len(data)) :]
            elif kind == "exchange":
                data = whole[rng.choice(sorted(whole))]
            path = tmp_path / "s" / name
            path.unlink() if kind == "remove" else path.write_bytes(data)
            try:
                with warnings.catch_warnings(), aesg.open(f"zarr://{tmp_path}/s", "r") as store:
                    store.verify()
                    assert store.nodes.read(np.arange(30), ["vector"])["vector"].tolist() == [
                        [3 * row, 3 * row + 1, 3 * row + 2] for row in range(30)
                    ]
                    assert store.edges.out_edges(np.arange(30)).target_rows.tolist() == list(range(1, 30))
                    assert dict(store.attrs) == {"a": [1, "ä"]}
                    outcomes.add("whole")
            except CorruptionError:
                outcomes.add("corrupt")
            path.write_bytes(whole[name])
        assert outcomes == {"whole", "corrupt"}


def test_documents_name_groups_before_what_is_in_them():
    assert documents.groups_of(["a/b/c", "a/d", "e"]) == ["a", "a/b"]
