"""PendingRecords against a plain array: whatever the mixture of appends, writes and transforms, reads see it.

And the journal: what it says of the changes is what they come to, and an old one is still read.
"""

import struct

import numpy as np
import pytest

import aesg
from aesg.backends.journal import Journal
from aesg.backends.memmap import redo
from aesg.backends.memmap.format import EDGE_DTYPE, node_dtype
from aesg.backends.memmap.table import PendingRecords, RecordFile
from aesg.backends.memmap.tables import State
from aesg.errors import CorruptionError, FormatVersionError
from aesg.testing.graphs import batch

KIND = np.dtype([("id", "<u8"), ("vector", "<f4", (3,)), ("relevance", "<f4"), ("is_active", "u1")])
FIELDS = ["vector", "relevance", "is_active"]


def values_for(rng, field, n):
    if field == "vector":
        return rng.random((n, 3), dtype=np.float32)
    return rng.random(n, dtype=np.float32) if field == "relevance" else rng.integers(0, 2, n).astype(np.uint8)


def new_records(rng, n):
    records = np.zeros(n, KIND)
    for field in FIELDS:
        records[field] = values_for(rng, field, n)
    return records


@pytest.mark.parametrize("seed", range(40))
def test_pending_changes_against_a_plain_array(tmp_path, seed):
    rng = np.random.default_rng(seed)
    (tmp_path / "records").write_bytes(bytes(4 * KIND.itemsize))
    file = RecordFile(tmp_path / "records", KIND, 0, writable=True)
    committed = new_records(rng, int(rng.integers(1, 3000)))
    file.append(0, committed)
    file.count = len(committed)
    pending, model = PendingRecords(file), committed.copy()

    def check():
        for field in FIELDS:
            assert np.array_equal(pending.chunk(field, 0, len(model)), model[field])
            rows = rng.integers(0, len(model), 50)
            assert np.array_equal(pending.gather(field, rows), model[field][rows])

    for _ in range(12):
        match rng.integers(0, 4):
            case 0:
                more = new_records(rng, int(rng.integers(0, 50)))
                pending.append(more)
                model = np.concatenate([model, more])
            case 1:  # few rows, or so many that columns are held
                rows = rng.integers(0, len(model), int(rng.choice([1, 20, 400, 2000])))
                fields = rng.choice(FIELDS, int(rng.integers(1, 4)), replace=False)
                columns = {field: values_for(rng, field, len(rows)) for field in fields}
                pending.write(rows, columns)
                for field, column in columns.items():
                    model[field][rows] = column
            case 2:  # a transform, read and written chunk by chunk, which may change all, some or nothing
                size = int(rng.choice([97, 256, 5000]))
                share = rng.choice([0, 0.01, 0.5, 1])
                late = int(rng.integers(0, len(model)))  # before this row nothing changes
                for start in range(0, len(model), size):
                    stop = min(start + size, len(model))
                    for field in ("relevance", "is_active", "vector"):
                        now = pending.chunk(field, start, stop)
                        assert np.array_equal(now, model[field][start:stop])
                        hit = (rng.random(stop - start) < share) & (np.arange(start, stop) >= late)
                        now[hit] = values_for(rng, field, int(hit.sum()))
                        pending.put_chunk(start, {field: now})
                        model[field][start:stop] = now
                    if rng.random() < 0.2:  # a look in the middle of it
                        check()
            case 3:  # a transform that stops half-way, as one whose function raises
                part = pending.chunk("relevance", 0, len(model) // 2 + 1) * np.float32(0.5)
                pending.put_chunk(0, {"relevance": part})
                model["relevance"][: len(part)] = part
        check()

    assert np.array_equal(file.chunk("relevance", 0, len(committed)), committed["relevance"]), "committed too early"
    pending.apply()
    assert file.count == len(model)
    for field in FIELDS:
        assert np.array_equal(file.chunk(field, 0, len(model)), model[field])
    file.close()


# --- the journal -----------------------------------------------------------------------------------------------------

DIM = 3
STATE = State(0, 0, 0, 0, {})


@pytest.fixture
def nodes(tmp_path):
    """A file of 5000 nodes, as a directory of a store has it."""
    records = np.zeros(5000, node_dtype(DIM))
    records["id"] = np.arange(len(records))
    records["head_edge_idx"] = -1
    (tmp_path / "nodes.aesg").write_bytes(records.tobytes())
    file = RecordFile(tmp_path / "nodes.aesg", records.dtype, len(records), writable=True)
    yield file
    file.close()


def entry(parts):
    return b"".join([redo.encode_state(STATE, redo.count_operations(parts)), *(bytes(memoryview(p)) for p in parts)])


@pytest.mark.parametrize("seed", range(20))
def test_replay_ends_with_the_bytes_that_apply_stores(tmp_path, nodes, seed):
    rng = np.random.default_rng(seed)
    pending = PendingRecords(nodes)
    for _ in range(6):
        rows = rng.integers(0, nodes.count, int(rng.choice([1, 30, 500, 4000])))
        fields = rng.choice(["vector", "head_edge_idx", "is_active", "relevance"], 2, replace=False)
        for field in fields:
            kind = node_dtype(DIM)[field]
            values = rng.integers(0, 100, (len(rows), *kind.shape)).astype(kind.base)
            pending.write(rows, {field: values})
    if seed % 2:  # a transform that changes the first rows only
        part = pending.chunk("age", 0, 2000) + np.uint32(1)
        pending.put_chunk(0, {"age": part})
        pending.write(np.array([5, 4999, 5]), {"age": np.array([7, 8, 9], np.uint32)})
    payload = entry(redo.changes(0, pending))
    before = (tmp_path / "nodes.aesg").read_bytes()
    pending.apply()
    after = (tmp_path / "nodes.aesg").read_bytes()
    assert after != before
    (tmp_path / "nodes.aesg").write_bytes(before)
    for _ in range(2):
        redo.replay(payload, tmp_path, nodes.dtype.itemsize)
        assert (tmp_path / "nodes.aesg").read_bytes() == after


def test_a_field_of_some_rows_is_journaled_as_rows_and_values(nodes):
    pending = PendingRecords(nodes)
    pending.write(np.arange(0, 3000, 2), {"head_edge_idx": np.arange(1500)})
    pending.write(np.arange(0, 1500, 2), {"head_edge_idx": np.arange(750)})  # again: still one value a row
    parts = redo.changes(0, pending)
    assert sum(memoryview(part).nbytes for part in parts[1:]) == 1500 * (8 + 8)
    # At more than half of the rows the column takes fewer bytes.
    pending.write(np.arange(5000 - 1600, 5000), {"head_edge_idx": np.arange(1600)})
    parts = redo.changes(0, pending)
    assert sum(memoryview(part).nbytes for part in parts[1:]) == 5000 * 8


def test_cells_outside_the_file_are_refused(tmp_path, nodes):
    operation = struct.pack("<BBxxIQQ", 5, 0, 8, node_dtype(DIM).fields["head_edge_idx"][1], 1)
    with pytest.raises(CorruptionError, match=r"nodes\.aesg: expected at least 5001 records"):
        redo.replay(entry([operation, struct.pack("<qq", 5000, 1)]), tmp_path, nodes.dtype.itemsize)


def test_an_operation_of_an_unknown_kind_is_refused(tmp_path, nodes):
    with pytest.raises(CorruptionError, match="kind 9"):
        redo.replay(entry([struct.pack("<BBxxIQQ", 9, 0, 8, 0, 0)]), tmp_path, nodes.dtype.itemsize)


@pytest.fixture
def killed(tmp_path):
    """A store of six nodes and an edge, at generation 2."""
    with aesg.open(tmp_path / "store", vector_dim=DIM) as store:
        store.nodes.append(batch(6, 100, dim=DIM))
        store.edges.append([0], [1], 0.25)
    return tmp_path / "store"


def test_a_journal_of_whole_records_is_still_read(killed):
    """As it was written before there were cells: version 1."""
    nodes = np.fromfile(killed / "nodes.aesg", node_dtype(DIM), 6)
    nodes["age"][[2, 4]] = 77
    node = nodes[[2, 4]]
    edge = np.fromfile(killed / "edges.aesg", EDGE_DTYPE, 1)
    edge["weight"] = 0.75
    parts = []
    for number, records, rows in ((0, node, [2, 4]), (1, edge, [0])):
        head = struct.pack("<BBxxIQQ", 3, number, records.itemsize, 0, len(rows))
        parts += [head, np.array(rows, np.int64).tobytes(), records.tobytes()]
    state = State(6, 1, 0, 0, {})
    journal = Journal(killed / "journal.redo", create=True)
    assert (killed / "journal.redo").read_bytes()[:8] == b"AESGJRN1"
    journal.append(2, [redo.encode_state(state)])
    journal.mark_applied(2)
    journal.append(3, [redo.encode_state(state, 2), *parts])
    journal.close()
    with aesg.open(killed) as store:
        assert store.generation == 3
        assert store.nodes.read(np.arange(6), ["age"])["age"].tolist() == nodes["age"].tolist()
        assert store.edges.read([0], ["weight"])["weight"].tolist() == [0.75]
        assert store.verify() == []


def test_who_knows_no_cells_does_not_misread_them(killed):
    with aesg.open(killed) as store:
        store.nodes.write([1], age=3)
        with pytest.raises(FormatVersionError, match="newer version"):
            Journal(killed / "journal.redo", writable=False)
