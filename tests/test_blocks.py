"""The graph store over blocks: what the conformance suite cannot see from outside."""

import json
import zlib

import numpy as np
import pytest

import aesg
from aesg.backends.blocks import BlockContainer, BlockStore, adjacency, layout, log
from aesg.backends.blocks import store as block_store
from aesg.backends.blocks.columns import BlockColumns, checksum, checksums_of
from aesg.backends.blocks.container import Column
from aesg.backends.blocks.pending import Patches, Tail
from aesg.errors import CapacityError, ConflictError, CorruptionError, FormatVersionError, SchemaMismatchError
from aesg.protocols import (
    Atomicity,
    Capabilities,
    Durability,
    Integrity,
    Readers,
    ReaderView,
    SpaceReclaim,
    Writers,
)
from aesg.records import NodeBatch
from aesg.testing import steps
from aesg.testing.graphs import assert_same, contents

DIM = 6


class DictContainer(BlockContainer):
    """Blocks in a dictionary, which outlives the container."""

    capabilities = Capabilities(
        durability=Durability.NONE,
        atomicity=Atomicity.GRAPH,
        readers=Readers.SAME_PROCESS,
        reader_view=ReaderView.FIXED,
        writers=Writers.ONE_PROCESS,
        snapshots=True,
        space_reclaim=SpaceReclaim.ON_COMPACT,
        integrity=Integrity.CHECKSUMS,
        remote=False,
    )
    block_bytes = 512
    log_blocks = 8

    def __init__(self, disk, *, resident=False):
        self.disk = disk  # {"head": …, "blocks": {key: array}}, replaced as a whole by every commit
        self.resident = resident
        self.seen = disk.get("now", {"head": None, "blocks": {}})
        self.gets = 0
        self.fail = None

    def head(self):
        return self.seen["head"]

    def get(self, column, number, rows):
        self.gets += 1
        return self.seen["blocks"].get((column.name, number))

    def refresh(self):
        moved = self.seen is not self.disk["now"]
        self.seen = self.disk["now"]
        self.version += moved
        return moved

    def snapshot(self):
        copy = DictContainer(self.disk)
        copy.seen = self.seen
        return copy

    def commit(self, changes):
        if self.fail is not None:
            raise self.fail
        blocks = dict(self.seen["blocks"])
        for key in changes.drops:
            del blocks[key]
        for (name, number), block in changes.puts.items():
            column = changes.columns[name]
            assert block.dtype == column.dtype
            assert name == "log" or block.shape == column.shape(column.rows_in(number, changes.lengths[name]))
            blocks[name, number] = block.copy()
        for name, column in changes.columns.items():
            have = {number for key, number in blocks if key == name}
            assert have == set(range(column.blocks(changes.lengths[name]))), name
        self.seen = self.disk["now"] = {"head": changes.head, "blocks": blocks}
        self.version += 1

    def close(self):
        pass


@pytest.fixture
def disk():
    return {}


@pytest.fixture
def opened(disk, monkeypatch):
    """Opens a store over `disk`; sizes are such that a few steps cross every limit."""
    monkeypatch.setattr(layout, "FEW_UNSORTED", 150)
    monkeypatch.setattr(block_store, "_PATCHED", 300)
    stores = []

    def open_store(read_only=False, vector_dim=DIM, **options):
        cache_bytes = options.pop("cache_bytes", 1 << 20)
        container = DictContainer(disk, **options)
        store = BlockStore("dict:", container, vector_dim=vector_dim, read_only=read_only, cache_bytes=cache_bytes)
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        store.close()


def grow(store, until, since=0):
    for k in range(since, until):
        with store.transaction() as transaction:
            steps.step(transaction, k)
        if steps.compacts_after(k, 7):
            store.compact()


@pytest.mark.parametrize("resident", [False, True])
def test_is_what_the_in_memory_store_is_after_every_step(opened, resident):
    reference, store = aesg.open("memory:", vector_dim=DIM), opened(resident=resident)
    for k in range(120):
        for graph in (reference, store):
            with graph.transaction() as transaction:
                steps.step(transaction, k)
                inside = steps.digest(transaction)
        assert steps.digest(store) == steps.digest(reference) == inside
        assert steps.inconsistencies(store) == []
        if steps.compacts_after(k, 7):
            assert np.array_equal(store.compact(), reference.compact())
        if k % 10 == 9:
            assert store.verify() == []
            store.close()
            store = opened(resident=resident)
            assert steps.digest(store) == steps.digest(reference)
            assert steps.inconsistencies(store) == []
    reference.close()


def test_both_ways_to_commit_were_taken_and_edges_were_sorted_more_than_once(opened, monkeypatch):
    taken = {"log": 0, "merge": 0, "sort": 0, "update": 0}

    def counted(owner, name, key):
        real = getattr(owner, name)

        def call(*args, **kwargs):
            taken[key] += 1
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    from aesg.backends.blocks import merge

    counted(BlockStore, "_append_to_log", "log")
    counted(BlockStore, "_put_merge", "merge")
    counted(merge, "_sort_edges", "sort")
    counted(merge, "_update_sorted", "update")
    grow(opened(), 60)
    assert min(taken.values()) >= 4, taken


def test_the_cache_stays_within_its_bounds_and_forgets_the_oldest(opened):
    writer = opened()
    grow(writer, 30)
    writer.flush()
    store = opened(read_only=True, cache_bytes=4096)
    for _ in range(3):
        list(store.nodes.scan())
        list(store.edges.scan())
        store.edges.out_edges(np.arange(len(store.nodes)))
        assert store._columns._held <= 4096
        assert store._columns._held == sum(
            block.nbytes for loaded in store._columns._loaded.values() for block in loaded.blocks.values()
        )


def test_a_gather_over_more_blocks_than_the_cache_holds_is_right(opened):
    store = opened(cache_bytes=2048)
    vectors = np.random.default_rng(0).standard_normal((3000, DIM), dtype=np.float32)
    store.nodes.append(NodeBatch(vectors))
    store.flush()
    rows = np.random.default_rng(1).integers(0, 3000, 5000)
    assert np.array_equal(store.nodes.read(rows, ["vector"])["vector"], vectors[rows])


def test_wide_rows_are_gathered_too(opened):
    store = opened(vector_dim=5000)
    vectors = np.random.default_rng(0).standard_normal((20, 5000), dtype=np.float32)
    store.nodes.append(NodeBatch(vectors))
    store.flush()
    rows = np.array([3, 3, 19, 0])
    assert np.array_equal(store.nodes.read(rows, ["vector"])["vector"], vectors[rows])


def test_what_is_read_does_not_change_with_the_store(opened):
    store = opened()
    grow(store, 10)
    store.flush()
    rows = np.arange(len(store.nodes))
    before = {name: values.copy() for name, values in store.nodes.read(rows).items()}
    read = store.nodes.read(rows)
    for values in read.values():
        values[...] = 1  # the caller's own
    again = store.nodes.read(rows)
    assert all(np.array_equal(again[name], before[name]) for name in before)


# --- damage ----------------------------------------------------------------------------------------------------------


def damaged(disk, key, how):
    now = disk["now"]
    blocks = dict(now["blocks"])
    blocks[key] = how(blocks[key].copy())
    return {"now": {"head": now["head"], "blocks": blocks}}


def flip(block):
    raw = block.view(np.uint8).reshape(-1)
    raw[len(raw) // 2] ^= 4
    return block


@pytest.mark.parametrize("how", [flip, lambda block: block[:-1], lambda block: block.astype(">u2", casting="unsafe")])
def test_every_block_is_checked(opened, disk, how):
    store = opened()
    grow(store, 8)
    store.flush()
    grow(store, 12, since=8)  # and something in the log
    keys = list(disk["now"]["blocks"])
    assert {"log", "nodes/vector", "out/ref", "checksums/nodes/id", "events/type"} <= {name for name, _ in keys}
    for key in keys:
        bad = damaged(disk, key, how)
        with pytest.raises(CorruptionError):  # noqa: PT012 - opening may find it already
            victim = BlockStore("dict:", DictContainer(bad), vector_dim=None, read_only=True)
            read_all(victim)
    read_all(opened(read_only=True))


def test_an_older_version_of_a_block_is_found(opened, disk):
    store = opened()
    grow(store, 8)
    store.flush()
    old = disk["now"]["blocks"]
    store.nodes.write(np.arange(len(store.nodes)), relevance=0.25)
    store.flush()
    key = ("nodes/relevance", 0)
    assert not np.array_equal(old[key], disk["now"]["blocks"][key])
    bad = damaged(disk, key, lambda block: old[key])
    victim = BlockStore("dict:", DictContainer(bad), vector_dim=None, read_only=True)
    with pytest.raises(CorruptionError, match="nodes/relevance"):
        read_all(victim)
    assert [v.kind for v in victim.verify()] == ["garbled-block"]


@pytest.mark.parametrize(
    "change", [{"nodes": 1}, {"generation": 99}, {"uuid": "other"}, {"attrs": {"a": 1}}, {"crc32": 0}]
)
def test_a_changed_head_is_refused(opened, disk, change):
    grow(opened(), 3)
    bad = {"now": {"head": {**disk["now"]["head"], **change}, "blocks": disk["now"]["blocks"]}}
    with pytest.raises(CorruptionError, match="head"):
        BlockStore("dict:", DictContainer(bad), vector_dim=None, read_only=True)


def test_a_newer_format_is_told_from_damage(opened, disk):
    opened()
    head = {**disk["now"]["head"], "format": 2}
    del head["crc32"]
    changes = block_store._changes(head, {}, {}, {}, [])
    bad = {"now": {"head": changes.head, "blocks": {}}}
    with pytest.raises(FormatVersionError, match="newer"):
        BlockStore("dict:", DictContainer(bad), vector_dim=None, read_only=True)


def test_a_head_is_written_as_it_is_given_and_checked_whatever_the_order_of_its_keys():
    attrs = {"z": {"b": 1, "a": "ä\ud800"}, "a": [1.5, None]}
    changes = block_store._changes({"format": 1, "attrs": attrs, "checksums": {"y": [1], "x": []}}, {}, {}, {}, [])
    written = json.loads(changes.head_as_json())
    assert written == changes.head
    assert list(written["attrs"]) == ["z", "a"]
    assert list(written["attrs"]["z"]) == ["b", "a"]
    for head in (written, changes.head, dict(sorted(written.items()))):
        assert block_store.opened_head(head, "x")["attrs"] == attrs
    with pytest.raises(CorruptionError, match="checksum"):
        block_store.opened_head({**written, "attrs": {**attrs, "a": [1.5]}}, "x")


def read_all(store):
    list(store.nodes.scan())
    list(store.edges.scan())
    store.edges.out_edges(np.arange(len(store.nodes)))
    store.events.read()
    store.close()


# --- commits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [CapacityError("full"), ConflictError("late")])
@pytest.mark.parametrize("many", [3, 3000])
def test_after_a_failed_commit_everything_is_as_before(opened, error, many):
    store = opened()
    grow(store, 12)
    before = contents(store)
    store.container.fail = error
    vectors = np.ones((many, DIM), np.float32)
    with pytest.raises(type(error)):
        store.nodes.append(NodeBatch(vectors))
    with pytest.raises(type(error)):
        store.nodes.transform(lambda c: {"relevance": c["relevance"] * 0}, ["relevance"], ["relevance"])
    assert_same(contents(store), before)
    store.container.fail = None
    ids = np.arange(10**9, 10**9 + many, dtype=np.uint64)
    rows = store.nodes.append(NodeBatch(vectors, ids))
    assert np.array_equal(store.nodes.rows_of(ids), rows)
    assert store.verify() == []


def test_a_reader_follows_by_the_log_and_by_merges(opened):
    writer = opened()
    reader = opened(read_only=True)
    for k in range(40):
        grow(writer, k + 1, since=k)
        if k % 6 == 0:
            writer.flush()
        if k % 3 == 0:
            moved = reader.generation != writer.generation
            assert reader.refresh() is moved
            assert steps.digest(reader) == steps.digest(writer)
            assert steps.inconsistencies(reader) == []
    grow(writer, 41, since=40)
    assert reader.refresh() is True
    assert reader.refresh() is False


def test_a_snapshot_stays_through_log_merge_sort_and_compaction(opened):
    store = opened()
    grow(store, 9)
    snapshot = store.snapshot()
    before = steps.digest(snapshot)
    assert before == steps.digest(store)
    for k in range(9, 30):
        grow(store, k + 1, since=k)
        assert steps.digest(snapshot) == before
        assert steps.inconsistencies(snapshot) == []
    ids = snapshot.nodes.read(np.arange(len(snapshot.nodes)), ["id"])["id"]
    assert np.array_equal(snapshot.nodes.rows_of(ids), np.arange(len(ids)))
    snapshot.close()


def test_flushing_leaves_nothing_in_the_log_and_changes_no_contents(opened, disk):
    store = opened()
    grow(store, 6)
    before, generation = steps.digest(store), store.generation
    assert store.stats()["log_bytes"] > 0
    store.flush()
    assert store.stats()["log_bytes"] == 0
    assert not [key for key in disk["now"]["blocks"] if key[0] == "log"]
    assert (steps.digest(store), store.generation) == (before, generation)


def test_another_vector_dim_is_refused(opened):
    opened()
    with pytest.raises(SchemaMismatchError, match="6 numbers, not 7"):
        opened(vector_dim=7)


# --- pieces ----------------------------------------------------------------------------------------------------------


def test_blocks_hold_a_power_of_two_of_rows_and_no_more_than_asked():
    for dim in (1, 6, 128, 4097, 100_000):
        for column in layout.columns(dim, 1 << 16).values():
            assert column.block_rows & (column.block_rows - 1) == 0
            assert column.block_rows == 1 or column.block_rows * column.row_bytes <= 1 << 16


def test_columns_with_narrow_vectors_are_gathered_from_any_block():
    for width in (1, 3, 4, 7):
        column = Column("v", np.dtype("<f4"), width, 8, "row")
        data = np.random.default_rng(width).random((37, width), dtype=np.float32)
        container = DictContainer({}, resident=True)
        parts = [data[at : at + 8] for at in range(0, 37, 8)]
        sums = np.array([checksum(part) for part in parts], np.uint32)
        container.seen["blocks"].update({("v", n): part for n, part in enumerate(parts)})
        container.seen["blocks"]["checksums/v", 0] = sums
        of_sums = Column("checksums/v", np.dtype("<u4"), None, 1024, "block")
        columns = BlockColumns(
            container, {"v": column, "checksums/v": of_sums}, {"v": 37}, {"v": [checksum(sums)]}, 0, "x"
        )
        rows = np.random.default_rng(0).integers(0, 37, 200)
        assert np.array_equal(columns.gather("v", rows), data[rows])
        assert np.array_equal(columns.slice("v", 3, 30), data[3:30])


def test_a_record_of_the_log_is_read_as_it_was_written():
    arrays = {"a/b": np.arange(5, dtype="<u8"), "c": np.ones((3, 2), "<f4"), "none": np.empty(0, np.uint8)}
    back = log.decode(log.encode(arrays), "x")
    assert list(back) == list(arrays)
    for name, values in arrays.items():
        assert back[name].dtype == values.dtype
        assert np.array_equal(back[name], values)


@pytest.mark.parametrize("text", [b'[["a","|O",[1]]]', b'[["a","<f4",[99]]]', b"nonsense", b'{"a":1}', b"[[1]]"])
def test_a_garbled_record_of_the_log_is_refused(text):
    record = np.frombuffer(bytes(8) + len(text).to_bytes(4, "little") + text + bytes(16), np.uint8)
    with pytest.raises(CorruptionError, match="record of the log"):
        log.decode(record, "x")


def test_runs_are_few_and_list_the_newest_first():
    rng = np.random.default_rng(0)
    sources, runs = np.empty(0, np.int64), ()
    for n in rng.integers(1, 60, 300):
        new = rng.integers(0, 20, n)
        runs = adjacency.appended(runs, new, len(sources))
        sources = np.concatenate([sources, new])
        assert len(runs) <= 64
    few = adjacency.fewer(runs)
    assert len(few) <= 1 + np.log2(len(sources)) < len(runs)
    assert adjacency.fewer(few) == few
    for some in (runs, few):
        for row in range(21):
            found = []
            for run in reversed(some):
                starts, counts = run.find(np.array([row]))
                found += run.refs[starts[0] : starts[0] + counts[0]].tolist()
            assert found == np.flatnonzero(sources == row)[::-1].tolist()


def test_runs_that_were_merged_to_be_read_stay_so(tmp_path):
    with aesg.open(f"lmdb:{tmp_path}/s", vector_dim=2) as store:
        store.nodes.append(NodeBatch(np.ones((3, 2), np.float32)))
        for target in range(30):
            store.edges.append([0], [target % 3])
        assert len(store._state.runs) == 30
        assert store.edges.out_edges([0]).refs.tolist() == [*range(30)][::-1]
        few = store._state.runs
        assert len(few) < 8
        with store.transaction() as transaction:
            for target in range(30):
                transaction.edges.append([1], [target % 3])
            assert transaction.edges.out_edges([0, 1]).degrees.tolist() == [30, 30]
            assert store._state.runs is few  # the transaction's are nobody else's
            transaction.rollback()
        assert store.edges.out_edges([0, 1]).degrees.tolist() == [30, 0]


def test_checksums_of_many_blocks_are_those_of_each():
    blocks = [np.full(1 << 18, number, "<u4") for number in range(9)]
    blocks.append(np.arange(1 << 18, dtype="<u4")[::2])
    expected = [zlib.crc32(block.tobytes()) for block in blocks]
    assert checksums_of(blocks) == expected
    assert checksums_of(blocks[:1]) == expected[:1]


def test_patches_count_the_last_of_equal_rows_and_keep_other_fields():
    fields = {"x": (np.dtype("<f4"), None), "y": (np.dtype("<u4"), None)}
    patches = Patches(fields, 100)
    current = {"x": np.arange(100, dtype=np.float32), "y": np.arange(100, dtype=np.uint32)}
    patches.set(
        np.array([7, 9, 7]),
        {"x": np.array([1, 2, 3], np.float32)},
        lambda rows, names: {n: current[n][rows] for n in names},
    )
    where, slots = patches.find(np.array([1, 7, 8, 9, 7]))
    assert where.tolist() == [1, 3, 4]
    assert patches.values("x")[slots].tolist() == [3, 2, 3]
    assert patches.values("y")[slots].tolist() == [7, 9, 7]
    inside, slots = patches.between(8, 20)
    assert inside.tolist() == [1]
    copy = patches.resized(200)
    patches.set_slots("y", slots, np.array([50], np.uint32))
    assert copy.values("y").tolist() == [7, 9]


def test_a_tail_keeps_its_rows_when_it_grows():
    tail = Tail({"x": (np.dtype("<f4"), 3)}, 10)
    first = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    tail.put(10, {"x": first}, {})
    tail.put(15, {"x": np.ones((1000, 3), np.float32)}, {})
    assert np.array_equal(tail.view("x", 10, 15), first)
    assert np.array_equal(tail.gather("x", np.array([14, 15])), [first[4], [1, 1, 1]])


@pytest.mark.parametrize("largest", [0, 5, 1 << 40, 1 << 61])
def test_sorting_by_source_is_stable_whatever_the_numbers(largest):
    sources = np.random.default_rng(largest % 97).integers(0, largest + 1, 3000) // 7 * 7
    ordered, order = adjacency.by_source(sources)
    assert np.array_equal(order, np.argsort(sources, kind="stable"))
    assert np.array_equal(ordered, sources[order])
    assert [len(part) for part in adjacency.by_source(sources[:0])] == [0, 0]
