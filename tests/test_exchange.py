"""Export and import: what comes back is what went out, other programs read it, and what is wrong is refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import networkx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import aesg
from aesg.backends.registry import schemes
from aesg.errors import (
    AESGError,
    ConflictError,
    CorruptionError,
    DuplicateIdError,
    FormatVersionError,
    InvalidInputError,
    InvalidVectorError,
    MigrationError,
    NotFoundError,
    UnsupportedError,
)
from aesg.exchange import arrow
from aesg.exchange.export import READ_BACK, export
from aesg.exchange.importing import import_file
from aesg.records import EventType, NodeBatch, events
from aesg.testing.graphs import contents, fill

# What other tests register in this process is not meant.
ON_DISK = [scheme for scheme in ("memmap", "lmdb", "zarr", "icechunk") if scheme in schemes()]


def url_of(scheme, folder):
    return f"{scheme}://{folder}/{scheme}"


@pytest.fixture
def store(tmp_path):
    """The URL of a store with a bit of everything."""
    with aesg.open(f"memmap://{tmp_path}/store", vector_dim=5) as opened:
        fill(opened)
    return f"memmap://{tmp_path}/store"


def read(url):
    with aesg.open(url, mode="r") as opened:
        return contents(opened)


def left_over(folder):
    return [path.name for path in Path(folder).iterdir() if path.name.startswith(".")]


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ON_DISK)
def test_every_backend_comes_back_as_it_was(scheme, tmp_path):
    with aesg.open(url_of(scheme, tmp_path), vector_dim=3) as opened:
        fill(opened)
    expected = read(url_of(scheme, tmp_path))
    for kind in READ_BACK:
        done = export(url_of(scheme, tmp_path), tmp_path / f"file.{kind}")
        assert (done.nodes, done.edges, done.events, done.not_carried) == (12, 9, 13, "")
        back = import_file(done.file, url_of(scheme, tmp_path / kind))
        assert back.digest == done.digest
        assert back.verified
        found = read(back.destination)
        # Refs are given anew: the removed edge has left no gap.
        assert {name for name in expected if found[name] != expected[name]} == {"edge ref", "lists refs"}
    assert left_over(tmp_path) == []


@st.composite
def graphs(draw):
    """Arrays for a small graph: any bits that a store takes."""
    n, dim = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
    u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)

    def column(values, dtype, size):
        return np.array(draw(st.lists(values, min_size=size, max_size=size)), dtype)

    ids = np.array(draw(st.lists(u64, min_size=n, max_size=n, unique=True)), np.uint64)
    fields = {
        **{name: column(u64, np.uint64, n) for name in ("created_at", "modified_at")},
        **{name: column(u32, np.uint32, n) for name in ("use_frequency", "age", "region_id")},
        **{name: column(floats, np.float32, n) for name in ("relevance", "stability")},
        "is_active": column(st.integers(0, 1), np.uint8, n),
    }
    m = draw(st.integers(0, 8)) if n else 0
    ends = [column(st.integers(0, max(n - 1, 0)), np.int64, m) for _ in range(2)]
    numbers = [column(floats, np.float32, m) for _ in range(2)]
    used = column(u32, np.uint32, m)
    log = np.zeros(draw(st.integers(0, 4)), events(EventType.MERGE, 1).dtype)
    for name, values in {"timestamp": u64, "type": st.integers(0, 255), "id1": u64, "id2": u64, "val": floats}.items():
        log[name] = column(values, log.dtype[name], len(log))
    jsons = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    attrs = draw(st.dictionaries(st.text(), jsons, max_size=3))
    vectors = column(floats, np.float32, n * dim).reshape(n, dim)
    return NodeBatch(vectors, ids, fields), ends, numbers, used, log, attrs


@settings(max_examples=int(os.environ.get("AESG_FUZZ_EXAMPLES", "12")))
@given(graphs())
def test_any_graph_comes_back_bit_for_bit(graph):
    batch, ends, numbers, used, log, attrs = graph
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with aesg.open(folder / "store", vector_dim=batch.vector.shape[1]) as opened, opened.transaction() as changes:
            changes.nodes.append(batch)
            refs = changes.edges.append(*ends, *numbers)
            changes.edges.write(refs, use_count=used)
            changes.events.append(log)
            changes.attrs.update(attrs)
        for kind in READ_BACK:
            done = export(folder / "store", folder / f"file.{kind}")
            import_file(done.file, folder / kind)
            assert read(folder / kind) == read(folder / "store")
        for kind in ("graphml", "gml"):
            done = export(folder / "store", folder / f"file.{kind}", vectors=True)
            check_with_networkx(Path(done.file), batch, ends, numbers, used, attrs)


def check_with_networkx(path, batch, ends, numbers, used, attrs):
    """That networkx reads the same graph."""
    graph = networkx.read_graphml(path) if path.suffix == ".graphml" else networkx.read_gml(path)
    ids = [str(id) for id in batch.id.tolist()]
    assert list(graph.nodes) == ids
    assert json.loads(graph.graph["attrs"]) == attrs
    for row, id in enumerate(ids):
        for name, column in batch.columns.items():
            assert column.dtype.type(graph.nodes[id][name]).tobytes() == column[row].tobytes(), name
        vector = np.array(graph.nodes[id]["vector"].split(), np.float32)
        assert vector.tobytes() == batch.vector[row].tobytes()
    found = sorted((s, t, *(np.float32(d[k]).tobytes() for k in ("weight", "confidence")), int(d["use_count"]))
                   for s, t, d in graph.edges(data=True))  # fmt: skip
    columns = [ids[s] for s in ends[0]], [ids[t] for t in ends[1]], *([v.tobytes() for v in c] for c in numbers), used
    assert found == sorted(zip(*columns, strict=True))


def test_equal_graphs_make_equal_npz_files(store, tmp_path):
    for name in ("one.npz", "two.npz"):
        export(store, tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


# --- what other programs see -----------------------------------------------------------------------------------------


def test_numpy_reads_npz_without_pickles(store, tmp_path):
    export(store, tmp_path / "file.npz")
    with np.load(tmp_path / "file.npz", allow_pickle=False) as found, aesg.open(store, mode="r") as opened:
        nodes = opened.nodes.read(np.arange(12))
        assert all(np.array_equal(found[name], nodes[name]) for name in nodes)
        assert found["vector"].dtype == np.float32
        edges = next(iter(opened.edges.scan()))
        assert np.array_equal(found["source"], nodes["id"][edges["source_row"]])
        assert np.array_equal(found["weight"], edges["weight"])
        assert json.loads(str(found["meta"]))["counts"] == {"nodes": 12, "edges": 9, "events": 13}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_pyarrow_reads_the_tables(store, tmp_path, kind):
    export(store, tmp_path / f"file.{kind}")
    tables = {}
    for name in ("nodes", "edges", "events"):
        path = tmp_path / f"file.{kind}" / f"{name}.{kind}"
        tables[name] = pq.read_table(path) if kind == "parquet" else pa.ipc.open_file(path.read_bytes()).read_all()
    assert tables["nodes"]["id"].to_pylist() == list(range(100, 112))
    assert tables["nodes"].schema.field("vector").type.list_size == 5
    assert tables["edges"].column_names == ["source", "target", "weight", "confidence", "use_count"]
    assert tables["edges"]["use_count"].to_pylist()[0] == 3
    assert tables["events"]["type"].to_pylist()[-1] == EventType.CONSOLIDATE


def test_markup_leaves_vectors_out_unless_asked(store, tmp_path):
    for kind in ("graphml", "gml"):
        done = export(store, tmp_path / f"plain.{kind}")
        assert "vector" not in (tmp_path / f"plain.{kind}").read_text()
        assert "--vectors" in done.not_carried
        assert done.digest is None
        assert export(store, tmp_path / f"full.{kind}", vectors=True).not_carried == "the events"
    with pytest.raises(InvalidInputError, match="always hold the vectors"):
        export(store, tmp_path / "file.npz", vectors=True)


# --- where it is written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["parquet", "npz", "gml"])
def test_what_is_there_is_replaced_only_when_asked(store, tmp_path, kind):
    path = tmp_path / f"file.{kind}"
    export(store, path)
    with pytest.raises(InvalidInputError, match="--overwrite"):
        export(store, path)
    with aesg.open(store) as opened:
        opened.nodes.append(NodeBatch(np.ones((1, 5), np.float32)))
    assert export(store, path, overwrite=True).nodes == 13
    assert left_over(tmp_path) == []


def test_a_folder_that_no_export_made_is_never_replaced(store, tmp_path):
    for name, files in {
        "empty.parquet": [],
        "mine.parquet": ["meta.json", "thesis.txt"],
        "x.parquet": ["meta.json"],
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
        with pytest.raises((InvalidInputError, CorruptionError)):
            export(store, tmp_path / name, overwrite=True)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == sorted(files)


@pytest.mark.parametrize(
    ("file", "options", "match"),
    [
        ("file.txt", {}, "suffix of 'file.txt'"),
        ("file", {"format": "csv"}, "format 'csv'"),
        ("nowhere/file.npz", {}, "make it first"),
    ],
)
def test_targets_that_are_refused(store, tmp_path, file, options, match):
    with pytest.raises(InvalidInputError, match=match):
        export(store, tmp_path / file, **options)


def test_a_format_by_name(store, tmp_path):
    assert zipfile.is_zipfile(export(store, tmp_path / "file", format="NPZ").file)


@pytest.mark.parametrize("kind", ["parquet", "npz", "gml"])
def test_a_store_that_is_written_to_meanwhile_is_not_exported(store, tmp_path, kind):
    with aesg.open(store) as writer:

        def disturb(doing, done, of):
            writer.nodes.append(NodeBatch(np.ones((1, 5), np.float32)))

        with pytest.raises(ConflictError, match="written to"):
            export(store, tmp_path / f"file.{kind}", progress=disturb)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]


def test_a_snapshot_is_exported_while_somebody_writes(tmp_path):
    url = f"lmdb://{tmp_path}/store"
    with aesg.open(url, vector_dim=5) as writer:
        fill(writer)

        def disturb(doing, done, of):
            writer.nodes.append(NodeBatch(np.ones((1, 5), np.float32)))

        assert export(url, tmp_path / "file.npz", progress=disturb).nodes == 12
        assert len(writer.nodes) > 12


CHILD = """
import sys, os
from aesg.exchange.export import export
def stop(doing, done, of):
    if doing != "hashing":
        print("ready", flush=True)
        sys.stdin.read()
export(sys.argv[1], sys.argv[2], progress=stop)
"""


def test_a_killed_export_leaves_no_file_and_the_next_one_cleans_up(store, tmp_path):
    command = [sys.executable, "-c", CHILD, store, str(tmp_path / "file.parquet")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
    assert not (tmp_path / "file.parquet").exists()
    assert len(left_over(tmp_path)) == 1
    export(store, tmp_path / "file.parquet")
    assert left_over(tmp_path) == []


def test_edges_that_lead_nowhere_are_refused_with_advice(store, tmp_path):
    edges = tmp_path / "store" / "edges.aesg"
    record = bytearray(edges.read_bytes())
    record[8:16] = np.uint64(999).tobytes()  # the first edge's target_id, see the format's layout
    edges.write_bytes(record)
    for kind in ("parquet", "npz", "gml"):
        with pytest.raises(MigrationError, match=r"edge 0 .*aesg repair"):
            export(store, tmp_path / f"file.{kind}")
        assert not (tmp_path / f"file.{kind}").exists()


MEASURED = """
import sys, tracemalloc
import pyarrow, aesg
from aesg.exchange.export import export
from aesg.exchange.importing import import_file
tracemalloc.start()
export(sys.argv[1], sys.argv[2])
import_file(sys.argv[2], sys.argv[3])
print(tracemalloc.get_traced_memory()[1] + pyarrow.default_memory_pool().max_memory())
"""


@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_memory_does_not_grow_with_the_store(tmp_path, kind):
    with aesg.open(tmp_path / "store", vector_dim=1000) as opened:
        for _ in range(6):
            opened.nodes.append(NodeBatch(np.ones((6000, 1000), np.float32)))
    size = 36000 * 4053
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in ("store", f"x.{kind}", "back"))]
    peak = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert peak < size * 0.85


# --- other people's files --------------------------------------------------------------------------------------------


def write_tables(folder, nodes, edges=None, kind="parquet"):
    for name, columns in (("nodes", nodes), ("edges", edges)):
        if columns is None:
            continue
        table = pa.table(columns)
        if kind == "parquet":
            pq.write_table(table, folder / f"{name}.parquet")
        else:
            with pa.ipc.new_file(folder / f"{name}.{kind}", table.schema) as file:
                file.write_table(table, max_chunksize=2)
    return folder / f"nodes.{kind}"


VECTORS = [[1.0, 2.0], [3.0, 4.5], [0.1, -0.0]]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize(
    "vectors",
    [
        pa.list_(pa.float64()),
        pa.large_list(pa.float32()),
        pa.list_(pa.float16(), 2),
        pa.list_(pa.float32(), 2),
    ],
    ids=str,
)
def test_a_table_of_nodes_and_one_of_edges(tmp_path, kind, vectors):
    given = np.array(VECTORS, np.float16 if vectors.value_type == pa.float16() else np.float64)
    nodes = {
        "name": ["a", "b", "c"],  # not ours
        "vector": pa.array(list(given), vectors) if vectors.value_type == pa.float16() else pa.array(VECTORS, vectors),
        "id": pa.array([7, 2**40, 9], pa.int64()),
        "age": pa.array([1, 2, 3], pa.int16()),
    }
    edges = {"source": [7, 9, 7], "target": [9, 7, 9], "weight": pa.array([1, 2, 3], pa.int8())}
    file = write_tables(tmp_path, nodes, edges, kind)
    done = import_file(file, tmp_path / "store", edges=tmp_path / f"edges.{kind}")
    assert (done.nodes, done.edges, done.events, done.vector_dim, done.verified) == (3, 3, 0, 2, False)
    with aesg.open(tmp_path / "store", mode="r") as opened:
        found = opened.nodes.read([0, 1, 2])
        assert found["id"].tolist() == [7, 2**40, 9]
        assert np.array_equal(found["vector"], given.astype(np.float32))
        assert found["age"].tolist() == [1, 2, 3]
        assert found["relevance"].tolist() == [1, 1, 1]
        assert found["is_active"].tolist() == [1, 1, 1]
        assert (found["created_at"] == found["modified_at"]).all()
        assert abs(int(found["created_at"][0]) - time.time()) < 300
        assert opened.nodes.rows_of([9]).tolist() == [2]
        found = opened.edges.out_edges([0])
        assert found.target_rows.tolist() == [2, 2]
        assert found.weight.tolist() == [3, 1]
        assert found.confidence.tolist() == [1, 1]
        assert opened.attrs == {}


def test_a_folder_of_tables_without_meta(tmp_path):
    (tmp_path / "mine").mkdir()
    write_tables(tmp_path / "mine", {"id": [1, 2], "vector": VECTORS[:2]}, {"source": [2], "target": [1]}, "arrow")
    assert import_file(tmp_path / "mine", tmp_path / "store").edges == 1


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_from_numpy(tmp_path, save):
    arrays = {
        "id": np.array([5, 6], ">i4"),
        "vector": np.array(VECTORS[:2]),
        "source": [5],
        "target": [6],
        "other": "x",
    }
    save(tmp_path / "mine.npz", **arrays)
    done = import_file(tmp_path / "mine.npz", f"lmdb://{tmp_path}/store")
    assert (done.nodes, done.edges) == (2, 1)
    with aesg.open(done.destination, mode="r") as opened:
        assert opened.nodes.read([1])["vector"].tolist() == [VECTORS[1]]


GOOD = {"id": np.array([1, 2, 3]), "vector": np.array(VECTORS)}
REFUSED = {
    "no id": ({"vector": GOOD["vector"]}, InvalidInputError, "no column id of nodes; there are: vector"),
    "no vector": ({"id": GOOD["id"]}, InvalidInputError, "no column vector"),
    "no target": ({**GOOD, "source": [1]}, InvalidInputError, "no column target of edges"),
    "ids with fractions": ({**GOOD, "id": [1.0, 2.0, 3.0]}, InvalidInputError, "column id.*whole numbers"),
    "negative id": ({**GOOD, "id": [1, -2, 3]}, InvalidInputError, "column id, row 1: it is negative"),
    "same id": ({**GOOD, "id": [1, 2, 1]}, DuplicateIdError, "rows 0 and 2 have the same id, 1"),
    "nan": ({**GOOD, "vector": [[1, 2], [3, np.nan], [1, 1]]}, InvalidVectorError, "column vector, row 1.*finite"),
    "too large": ({**GOOD, "vector": [[1, 2], [3, 4], [1, 1e39]]}, InvalidVectorError, "row 2.*float32"),
    "age": ({**GOOD, "age": [1, 2, 2**32]}, InvalidInputError, "column age, row 2: it is above 4294967295"),
    "is_active": ({**GOOD, "is_active": [1, 2, 0]}, InvalidInputError, "column is_active, row 1"),
    "unknown target": ({**GOOD, "source": [1, 2], "target": [2, 9]}, InvalidInputError, "column target, row 1.*id 9"),
    "infinite weight": ({**GOOD, "source": [1], "target": [2], "weight": [np.inf]}, InvalidInputError, "weight, row 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", ["parquet", "npz"])
def test_what_is_refused_is_named(tmp_path, case, kind):
    columns, error, match = REFUSED[case]
    edges = {name: columns[name] for name in ("source", "target", "weight") if name in columns}
    nodes = {name: values for name, values in columns.items() if name not in edges}
    if kind == "npz":
        np.savez(tmp_path / "file.npz", **columns)
        file, options = tmp_path / "file.npz", {}
    else:
        nodes = {name: [list(row) for row in values] if name == "vector" else values for name, values in nodes.items()}
        file = write_tables(tmp_path, nodes, edges or None)
        options = {"edges": tmp_path / "edges.parquet"} if edges else {}
    with pytest.raises(error, match=match):
        import_file(file, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("nodes", "match"),
    [
        ({"id": ["a", "b"], "vector": VECTORS[:2]}, "column id: its type is string"),
        ({"id": [1, None], "vector": VECTORS[:2]}, "column id: row 1 has no value"),
        ({"id": [1, 2], "vector": [[1.0], [1.0, 2.0]]}, "vectors of 1 and 2 numbers"),
        ({"id": [1, 2], "vector": [[1.0, None], [1.0, 2.0]]}, "a number missing"),
        ({"id": [1, 2], "vector": [["x"], ["y"]]}, "its type is string"),
        ({"id": [1, 2], "vector": [1.0, 2.0]}, "column vector"),
        ({"id": pa.array([], pa.int64()), "vector": pa.array([], pa.list_(pa.float32()))}, "cannot be told"),
    ],
)
def test_tables_that_are_refused(tmp_path, nodes, match):
    for kind in ("parquet", "arrow"):
        with pytest.raises(InvalidInputError, match=match):
            import_file(write_tables(tmp_path, nodes, kind=kind), tmp_path / "store")


@pytest.mark.parametrize(
    ("arrays", "error", "match"),
    [
        ({**GOOD, "age": [1, 2]}, InvalidInputError, "differ in length"),
        ({**GOOD, "vector": np.asfortranarray(VECTORS)}, InvalidInputError, "Fortran order"),
        ({**GOOD, "vector": np.zeros(3)}, InvalidInputError, r"of shape \(3,\); expected \[n, D\]"),
        ({**GOOD, "id": np.array([1, "a", None], object)}, InvalidInputError, "expected numbers"),
    ],
)
def test_arrays_that_are_refused(tmp_path, arrays, error, match):
    np.savez(tmp_path / "file.npz", **arrays)
    with pytest.raises(error, match=match):
        import_file(tmp_path / "file.npz", tmp_path / "store")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "went-off"),)

    for name in ("id", "meta"):
        np.savez(tmp_path / "file.npz", **{**GOOD, name: np.array([Bomb()], object)})
        with pytest.raises(AESGError):
            import_file(tmp_path / "file.npz", tmp_path / "store")
    assert not (tmp_path / "went-off").exists()


def test_files_that_are_not_there_or_of_no_known_kind(store, tmp_path):
    for file, error in {"x.npz": NotFoundError, "x.parquet": NotFoundError, ".": NotFoundError}.items():
        with pytest.raises(error):
            import_file(tmp_path / file, tmp_path / "new")
    export(store, tmp_path / "x.gml")
    with pytest.raises(InvalidInputError, match="GML go out only"):
        import_file(tmp_path / "x.gml", tmp_path / "new")
    export(store, tmp_path / "x.npz")
    with pytest.raises(InvalidInputError, match="--edges"):
        import_file(tmp_path / "x.npz", tmp_path / "new", edges=tmp_path / "x.npz")
    with pytest.raises(InvalidInputError, match="local path"):
        import_file(tmp_path / "x.npz", "memory:")


def test_a_store_that_is_there_is_replaced_only_when_asked(store, tmp_path):
    export(store, tmp_path / "x.npz")
    with pytest.raises(MigrationError, match="exists"):
        import_file(tmp_path / "x.npz", store)
    with aesg.open(store) as opened:
        opened.nodes.append(NodeBatch(np.ones((1, 5), np.float32)))
    assert import_file(tmp_path / "x.npz", store, overwrite=True).nodes == 12
    with aesg.open(store, mode="r") as opened:
        assert len(opened.nodes) == 12


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", READ_BACK)
def test_a_damaged_export_is_noticed(store, tmp_path, kind):
    done = export(store, tmp_path / f"file.{kind}")
    files = list(Path(done.file).iterdir()) if kind != "npz" else [Path(done.file)]
    rng = np.random.default_rng(1)
    noticed = 0
    for file in files:
        whole = file.read_bytes()
        for _ in range(40 // len(files)):
            damaged = bytearray(whole)
            if rng.random() < 0.2:
                damaged = damaged[: int(rng.integers(len(damaged)))]
            else:
                damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            file.write_bytes(damaged)
            try:
                back = import_file(done.file, tmp_path / "back")
            except AESGError:
                noticed += 1
                assert not (tmp_path / "back").exists()
            else:
                assert back.digest == done.digest  # it was a byte that says nothing
                shutil.rmtree(tmp_path / "back")
        file.write_bytes(whole)
    assert noticed > 20


def test_tables_that_were_changed_need_their_meta_removed(store, tmp_path):
    done = export(store, tmp_path / "file.parquet")
    path = Path(done.file) / "edges.parquet"
    table = pq.read_table(path)
    changed = table.set_column(2, "weight", pa.array(np.zeros(len(table), np.float32)))
    pq.write_table(changed, path)
    with pytest.raises(MigrationError, match="meta says"):
        import_file(done.file, tmp_path / "back")
    pq.write_table(changed.slice(0, 3), path)
    with pytest.raises(CorruptionError, match="has 3 edges, its meta says 9"):
        import_file(done.file, tmp_path / "back")
    (Path(done.file) / "meta.json").unlink()
    assert import_file(done.file, tmp_path / "back").edges == 3
    Path(done.file, "events.parquet").unlink()
    assert import_file(done.file, tmp_path / "again").events == 0


def test_a_newer_version_is_refused(store, tmp_path):
    done = export(store, tmp_path / "file.arrow")
    path = Path(done.file) / "meta.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(FormatVersionError, match="version 2"):
        import_file(done.file, tmp_path / "back")


def test_without_pyarrow_the_extra_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UnsupportedError, match=r"aesg\[exchange\]"):
        export(store, tmp_path / "file.parquet")
    with pytest.raises(UnsupportedError, match=r"aesg\[exchange\]"):
        arrow.ArrowTables({"nodes": tmp_path / "nodes.parquet"}, None)
    assert export(store, tmp_path / "file.npz").nodes == 12


def test_a_zip_bomb_of_a_header_is_refused(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<u8", "fortran_order": False, "shape": (1 << 60,)})
    vector = io.BytesIO()
    np.lib.format.write_array_header_1_0(vector, {"descr": "<f4", "fortran_order": False, "shape": (1 << 60, 2)})
    with zipfile.ZipFile(tmp_path / "file.npz", "w") as archive:
        archive.writestr("id.npy", header.getvalue())
        archive.writestr("vector.npy", vector.getvalue())
    with pytest.raises(CorruptionError):
        import_file(tmp_path / "file.npz", tmp_path / "store")
