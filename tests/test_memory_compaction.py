"""Consolidation that compacts: answers are the same, by id, and what is kept in rows follows."""

import shutil
import threading
import time

import numpy as np
import pytest
import salvage_support as support

import aesg
from aesg import AESGConfig, AESGMemory
from aesg.errors import CapacityError, InvalidInputError
from aesg.memory.session import Gate
from aesg.memory.state import Lanes

DIM = 24
CONFIG = AESGConfig(vector_dim=DIM, prune_confidence_threshold=0.05, num_seeds=5, survival_threshold_frequency=0)
URLS = {name: support.BACKENDS[name] for name in ("memmap", "lmdb", "zarr")}


def answers(memory, queries):
    """Ids, energies and vectors of what each query of one lane brings up."""
    found = [memory.retrieve(query[None]) for query in queries]
    return [(batch.ids.tolist(), batch.weights.tolist(), batch.concept_vectors.tolist()) for batch in found]


@pytest.fixture(params=URLS)
def twins(request, tmp_path):
    """URLs of two stores that hold the same, with many pruned nodes."""
    url = support.fill(URLS[request.param].format(tmp_path / "store"), nodes=600, edges=4000, pruned=0.4)
    with aesg.open(url) as store:
        del store.attrs["config"]
        # Weight that leads to pruned concepts has its share of what a concept passes on; here it has none.
        active = store.nodes.read(np.arange(600), ["is_active"])["is_active"]
        for chunk in list(store.edges.scan()):
            store.edges.write(chunk["ref"][active[chunk["target_row"]] == 0], weight=0.0)
    shutil.copytree(tmp_path / "store", tmp_path / "twin")
    return url, url.replace("/store", "/twin")


def test_answers_are_the_same_by_id_as_without_compaction(twins):
    queries = np.random.default_rng(3).standard_normal((6, DIM)).astype(np.float32)
    found = []
    for url, share in zip(twins, (0.0, 0.2), strict=True):
        with AESGMemory(url, CONFIG.replace(compact_above_dead_share=share)).eval() as memory:
            seen = [answers(memory, queries)]
            report = memory.update_topology()
            seen.append(answers(memory, queries))  # lanes go on: the first has the last one's concepts
            report = report if share else memory.update_topology() and report
            if share:
                assert report.row_map is not None
                assert len(memory.store.nodes) == np.count_nonzero(report.row_map >= 0) == 360
                assert memory.update_topology().row_map is None  # nothing to drop
            else:
                assert report.row_map is None
                assert len(memory.store.nodes) == 600
            seen.append(answers(memory, queries))
            assert memory.store.verify() == []
        found.append(seen)
    assert found[0] == found[1]


def test_learning_goes_on_after_it(twins):
    rng = np.random.default_rng(4)
    queries = rng.standard_normal((40, DIM)).astype(np.float32)
    found = []
    for url, share in zip(twins, (0.0, 0.2), strict=True):
        with AESGMemory(url, CONFIG.replace(compact_above_dead_share=share)) as memory:
            for query in queries[:20]:
                memory.retrieve(query)
            memory.update_topology()
            for query in queries[20:]:
                memory.retrieve(query)
            memory.save()
            with memory.graph() as graph:
                nodes = graph.nodes.read(np.flatnonzero(graph.nodes.read(np.arange(len(graph.nodes)))["is_active"]))
                state = {name: nodes[name].tolist() for name in ("vector", "use_frequency", "relevance", "age")}
                edges = sum(len(chunk["weight"]) for chunk in graph.edges.scan())
            assert memory.store.verify() == []
        found.append((state, edges if share else None))
    assert found[0][0] == found[1][0]
    assert found[1][1] > 0


def test_it_is_not_done_below_the_share(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=200, edges=300, pruned=0.3)
    with AESGMemory(url, CONFIG.replace(compact_above_dead_share=0.5)) as memory:
        assert memory.update_topology().row_map is None
        assert len(memory.store.nodes) == 200
    with AESGMemory(url, CONFIG.replace(compact_above_dead_share=0.25)) as memory:
        assert (memory.update_topology().row_map >= 0).sum() == 140


def test_the_parameter_is_a_share():
    for bad in (-0.1, 1.5, "much"):
        with pytest.raises(InvalidInputError, match="compact_above_dead_share"):
            CONFIG.replace(compact_above_dead_share=bad)


def test_lanes_of_another_memory_on_the_same_store_follow(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=300, edges=2000, pruned=0.4)
    query = np.random.default_rng(5).standard_normal(DIM).astype(np.float32)
    with AESGMemory(url, CONFIG.replace(compact_above_dead_share=0.2)).eval() as one, AESGMemory(url).eval() as other:
        other.retrieve(query)
        lane = next(iter(other._lanes))
        with one.graph() as graph:
            ids = graph.nodes.read(lane.carried.rows, ["id"])["id"].tolist()
            first = int(graph.nodes.read([lane.first], ["id"])["id"][0])
        assert one.update_topology().row_map is not None
        session = other._handle.session
        (lane,) = other._lanes.resize(1, era=session.era, moved=session.moved_since, forget=lambda lane: None)
        with one.graph() as graph:
            assert graph.nodes.read(lane.carried.rows, ["id"])["id"].tolist() == ids
            assert int(graph.nodes.read([lane.first], ["id"])["id"][0]) == first


def test_lanes_are_mapped_and_what_was_dropped_is_forgotten():
    from aesg.engine.activation import Energies

    lanes = Lanes()
    (lane,) = lanes.resize(1, era=0, moved=lambda era: None, forget=lambda lane: None)
    lane.first, lane.carried = 2, Energies(np.array([2, 5, 7]), np.array([1.0, 0.5, 0.25], np.float32))
    row_map = np.array([0, 1, -1, 2, 3, 4, 5, -1])
    (lane,) = lanes.resize(1, era=3, moved=lambda era: row_map if era == 0 else None, forget=lambda lane: None)
    assert lane.first is None
    assert lane.carried.rows.tolist() == [4]
    assert lane.carried.energies.tolist() == [0.5]
    (lane,) = lanes.resize(1, era=4, moved=lambda era: np.full(8, -1), forget=lambda lane: None)
    assert lane.carried is None
    lane.first = 1
    (lane,) = lanes.resize(1, era=5, moved=lambda era: None, forget=lambda lane: None)
    assert lane.first is None


def test_moves_add_up(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=100, edges=100, pruned=0.2)
    with AESGMemory(url, CONFIG.replace(compact_above_dead_share=0.01)) as memory:
        session = memory._handle.session
        with memory.graph() as graph:
            ids = graph.nodes.read(np.arange(100), ["id"])["id"]
        maps = []
        for k in range(6):
            with memory._writing() as graph:
                graph.nodes.write(np.arange(k, k + 5), is_active=0)
            era = session.era
            maps.append((era, memory.update_topology().row_map))
        era, first = maps[2]
        total = session.moved_since(era)
        assert session.moved_since(maps[0][0]) is None  # too long ago
        with memory.graph() as graph:
            now = graph.nodes.read(np.arange(len(graph.nodes)), ["id"])["id"]
        assert len(total) == len(first)
        assert set(now[total[total >= 0]].tolist()) == set(now.tolist()) <= set(ids.tolist())
        assert session.moved_since(session.era) is None


def test_no_room_for_it_is_no_failure_of_the_consolidation(tmp_path, monkeypatch, caplog):
    url = support.fill(f"lmdb://{tmp_path}/store", nodes=200, edges=300, pruned=0.3)
    with AESGMemory(url, CONFIG.replace(compact_above_dead_share=0.1)) as memory:

        def full(**kwargs):
            raise CapacityError("no room")

        with monkeypatch.context() as patch:
            patch.setattr(memory.store, "compact", full)
            report = memory.update_topology()
        assert report.row_map is None
        assert "not compacted" in caplog.text
        assert memory.update_topology().row_map is not None


def test_queries_of_other_threads_are_answered_before_or_after(tmp_path):
    url = support.fill(f"memmap://{tmp_path}/store", nodes=600, edges=4000, pruned=0.1)
    queries = np.random.default_rng(3).standard_normal((8, DIM)).astype(np.float32)
    with AESGMemory(url, CONFIG.replace(compact_above_dead_share=0.01)).eval() as memory:
        errors, stop = [], threading.Event()

        def ask():
            try:
                while not stop.is_set():
                    with memory.graph() as graph:
                        found = memory.retrieve(queries[:1])
                        rows = graph.nodes.rows_of(found.ids)
                        assert (graph.nodes.read(rows, ["vector"])["vector"] == found.concept_vectors.numpy()).all()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for k in range(8):
            with memory._writing() as graph:
                graph.nodes.write(np.arange(3 * k, 3 * k + 20), is_active=0)
            assert memory.update_topology().row_map is not None
            time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_gate_waits_for_those_inside_and_not_for_ever():
    gate = Gate()
    entered, leave = threading.Event(), threading.Event()

    def pass_through():
        with gate, gate:
            entered.set()
            leave.wait()

    thread = threading.Thread(target=pass_through)
    thread.start()
    entered.wait()
    with gate.closed(0.02) as alone:
        assert not alone
    with gate:  # open again
        pass
    leave.set()
    thread.join()
    with gate, gate.closed(5) as alone:
        assert alone
        with gate:  # this thread is inside already
            pass
