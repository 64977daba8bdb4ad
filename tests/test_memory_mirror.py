"""A mirror on a device answers as the engine does, and is used only where it may be."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_support import Sketch, reference, sketch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_engine_activation import D, ask, configs

import aesg
from aesg import AESGConfig, AESGMemory
from aesg.engine.activation import Activation, Energies
from aesg.engine.activation import activate as engine
from aesg.engine.novelty import explanation_score
from aesg.errors import CapacityError, InvalidInputError, NotFoundError
from aesg.memory import mirror as mirrors
from aesg.memory.mirror import Mirror, Mirrors, bytes_needed, reflect, supports
from aesg.memory.mirror_recall import MirroredContext
from aesg.memory.mirror_spread import Reflection, _Spread, activate
from aesg.records import NodeBatch
from aesg.testing.proxy import Bare

CPU = torch.device("cpu")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
AS_0_3 = {
    "context_replaces_query": False,
    "region_zero_counts": False,
    "novelty_by_lane": False,
    "tie_break": "cosine",
}


def mirrored(store: Any, *, half: bool = False, device: str = "cpu") -> Mirror:
    made = reflect(store, torch.device(device), half=half)
    assert made is not None
    return made


def distinct(energies: np.ndarray) -> bool:
    """Whether rounding cannot change their order: they differ clearly, or not at all."""
    gaps = [(a - b) / a for a, b in pairwise(energies[energies > 0].tolist())]
    return all(gap == 0 or gap > 1e-4 for gap in gaps)


def check(found: Reflection, lane: int, want: Activation, everything: Activation, query: np.ndarray) -> None:
    """Lane `lane` is what the engine gives, where `everything` is that without the limit of `top_k`."""
    mine = slice(found.ends[lane], found.ends[lane + 1])
    assert len(found.rows[mine]) == len(want.rows)
    np.testing.assert_allclose(found.energies[mine], want.energies, rtol=1e-5)
    energy_of = dict(zip(everything.rows.tolist(), everything.energies.tolist(), strict=True))
    for row, energy in zip(found.rows[mine].tolist(), found.energies[mine].tolist(), strict=True):
        assert energy == pytest.approx(energy_of[row], rel=1e-5)
    np.testing.assert_array_equal(found.weights[mine].cpu(), found.energies[mine])
    if distinct(everything.energies):
        np.testing.assert_array_equal(found.rows[mine], want.rows)
        np.testing.assert_array_equal(found.ids[mine], want.ids)
        np.testing.assert_array_equal(found.vectors[mine].cpu(), want.vectors)
        np.testing.assert_allclose(found.cosines[mine].cpu(), want.cosines, atol=1e-6)
        assert found.explanation[lane] == pytest.approx(explanation_score(query, want), abs=1e-5)
    assert found.nearest[lane] == pytest.approx(want.nearest, abs=1e-6)
    assert found.cut[lane] == want.cut
    assert sorted(found.paths[lane].tolist()) == sorted(want.paths.tolist())


def compare(
    store: Any,
    config: AESGConfig,
    queries: np.ndarray,
    carried: list[Energies | None] | None = None,
    extra: list[Energies | None] | None = None,
    device: str = "cpu",
) -> Reflection:
    carried, extra = carried or [None] * len(queries), extra or [None] * len(queries)
    want = engine(store, config, queries, carried, extra)
    everything = engine(store, config.replace(top_k=len(store.nodes) + 1), queries, carried, extra)
    found = activate(mirrored(store, device=device), config, queries, carried, extra)
    assert len(found.ends) == len(queries) + 1
    for lane, query in enumerate(queries):
        check(found, lane, want[lane], everything[lane], query)
    return found


# --- the same answers ------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads of torch wait for each other, for seconds where other processes are busy, and these tensors are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    nodes=st.integers(0, 14),
    edges=st.integers(0, 40),
    lanes=st.integers(1, 4),
    config=configs(),
)
def test_agrees_with_the_engine(seed: int, nodes: int, edges: int, lanes: int, config: AESGConfig) -> None:
    config = config.replace(**AS_0_3)
    graph = sketch(seed, nodes, edges, D)
    queries, carried, extra = ask(seed, graph, lanes)
    for i in range(lanes):
        assume(reference(graph, config, queries[i], carried[i], extra[i]).margin > 1e-4)
    compare(graph.store(), config, queries, carried, extra)


def large(seed: int = 1, nodes: int = 3000, degree: int = 10, dim: int = 16) -> Sketch:
    """Clusters, regions, pruned nodes and nodes without a vector."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((30, dim))
    vectors = (centres[np.arange(nodes) % 30] + rng.standard_normal((nodes, dim))).astype(np.float32)
    vectors[rng.random(nodes) < 0.1] = 0
    source = np.repeat(np.arange(nodes), degree)
    near = (source + 30 * rng.integers(0, 5, len(source))) % nodes
    target = np.where(rng.random(len(source)) < 0.5, near, rng.integers(0, nodes, len(source)))
    weight, confidence = (1 - rng.random((2, len(source)))).astype(np.float32)
    region = np.where(rng.random(nodes) < 0.3, 0, np.arange(nodes) % 30)
    return Sketch(vectors, rng.random(nodes) < 0.95, region, source, target, weight, confidence)


def questions(graph: Sketch, lanes: int, seed: int = 2) -> tuple[np.ndarray, list[Any], list[Any]]:
    rng = np.random.default_rng(seed)
    some = rng.integers(0, len(graph.vectors), lanes)
    queries = graph.vectors[some] + 0.5 * rng.standard_normal((lanes, graph.vectors.shape[1])).astype(np.float32)
    queries[1] = 0

    def rows() -> Energies:
        return Energies(rng.choice(len(graph.vectors), 5, replace=False), rng.random(5).astype(np.float32))

    return queries, [rows() if i % 3 else None for i in range(lanes)], [None if i % 4 else rows() for i in range(lanes)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("change", [{}, {"combine": "max", "wavefront": False, "firing_threshold": 0.02}])
@pytest.mark.parametrize("preset", ["default", "entities"])
def test_agrees_with_the_engine_on_a_larger_graph(preset: str, change: dict[str, Any], device: str) -> None:
    graph = large()
    config = AESGConfig.preset(preset, vector_dim=16, **change)
    found = compare(graph.store(), config, *questions(graph, 40), device=device)
    assert found.ends[-1] > 100


def test_a_hop_is_cut_where_the_engine_cuts_it() -> None:
    graph = large()
    config = AESGConfig(vector_dim=16, max_hop_edges=150)
    found = compare(graph.store(), config, *questions(graph, 20))
    assert found.cut.any()
    assert not found.cut.all()


def test_a_batch_that_does_not_fit_is_cut_into_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = large()
    config, store, asked = AESGConfig(vector_dim=16, arrival_threshold=0.0005), graph.store(), questions(graph, 40)
    whole = compare(store, config, *asked)
    monkeypatch.setitem(mirrors.WORK_BYTES, "cpu", 500_000)  # 23 lanes, 5208 edges
    fire, followed = _Spread._fire, []

    def watched(self: _Spread, *args: Any) -> Any:
        followed.append((len(args[0].unique()), args[-1]))
        return fire(self, *args)

    monkeypatch.setattr(_Spread, "_fire", watched)
    parts = compare(store, config, *asked)
    assert any(lanes > 1 for lanes, _ in followed)
    assert len(followed) > 2 * config.spreading_activation_steps
    assert all(lanes == 1 or edges <= 5208 for lanes, edges in followed)
    for name in ("rows", "ids", "ends", "energies", "explanation", "nearest", "cut"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
    assert [parts.paths[i].tolist() for i in range(40)] == [whole.paths[i].tolist() for i in range(40)]


def test_rows_of_equal_vectors_come_in_order() -> None:
    vectors = np.repeat(np.random.default_rng(3).standard_normal((3, 8)).astype(np.float32), 1000, axis=0)
    vectors = vectors[np.random.default_rng(4).permutation(3000)]
    store = aesg.open("memory:", vector_dim=8)
    store.nodes.append(NodeBatch(vectors))
    queries = vectors[:2] + np.float32(0.1)
    compare(store, AESGConfig(vector_dim=8), queries)


def test_vectors_that_float32_cannot_compare_are_compared_and_given_back_as_they_are() -> None:
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((60, 4)).astype(np.float32)
    scales = np.array([1e-38, 1e-25, 1.0, 1e25, 1e37, 0.0], np.float32)
    vectors *= scales[np.arange(60) % 6, None]
    graph = Sketch(
        vectors,
        np.ones(60, bool),
        np.zeros(60, int),
        rng.integers(0, 60, 300),
        rng.integers(0, 60, 300),
        np.ones(300, np.float32),
        np.ones(300, np.float32),
    )
    store = graph.store()
    assert len(mirrored(store).odd_rows) == 40
    found = compare(store, AESGConfig(vector_dim=4, top_k=60), vectors[:6] + np.float32(0.01))
    assert set(found.rows.tolist()) >= {0, 1, 2, 3, 4}


def test_weights_too_large_to_multiply_do_no_harm() -> None:
    graph = large(nodes=300)
    graph.weight[::7] = 3e38
    graph.confidence[::14] = 3e38
    graph.weight[3::7] = -1
    found = activate(mirrored(graph.store()), AESGConfig(vector_dim=16), *questions(graph, 10))
    assert np.isfinite(found.energies).all()
    assert found.energies.max() <= np.float32(1e30)


def test_half_precision_finds_the_same_where_cosines_are_not_too_close() -> None:
    graph = large()
    store, config, (queries, carried, extra) = graph.store(), AESGConfig(vector_dim=16), questions(graph, 40)
    made = mirrored(store, half=True)
    assert made.halves is not None
    assert made.halves.dtype == torch.float16
    found = activate(made, config, queries, carried, extra)
    for lane, want in enumerate(engine(store, config, queries, carried, extra)):
        check(
            found,
            lane,
            want,
            engine(store, config.replace(top_k=9999), *one(lane, queries, carried, extra))[0],
            queries[lane],
        )


def one(lane: int, *given: Any) -> list[Any]:
    return [some[lane : lane + 1] for some in given]


@pytest.mark.parametrize("device", DEVICES)
def test_what_the_process_does_elsewhere_changes_nothing(device: str) -> None:
    graph = large(nodes=500)
    store, config, asked = graph.store(), AESGConfig(vector_dim=16), questions(graph, 10)
    made = mirrored(store, device=device)
    plain = activate(made, config, *asked)
    with torch.autocast(device, dtype=torch.bfloat16), torch.inference_mode():
        lowered = activate(made, config, *asked)
    torch.use_deterministic_algorithms(True)
    try:
        strict = activate(made, config, *asked)
    finally:
        torch.use_deterministic_algorithms(False)
    for other in (lowered, strict):
        np.testing.assert_array_equal(other.rows, plain.rows)
        np.testing.assert_allclose(other.energies, plain.energies, rtol=1e-6)


def test_an_extra_seed_that_is_no_row_is_refused() -> None:
    store = sketch(1).store()
    with pytest.raises(NotFoundError):
        activate(
            mirrored(store),
            AESGConfig(vector_dim=D),
            np.ones((1, D), np.float32),
            [None],
            [Energies(np.array([99]), np.ones(1, np.float32))],
        )


# --- the copy --------------------------------------------------------------------------------------------------------


class BareStore(Bare):
    """A store that shows the protocol's names only."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self._store = store
        self.url, self.generations = store.url, [store.generation]

    @property
    def generation(self) -> int:
        return self.generations.pop() if len(self.generations) > 1 else self.generations[0]


def test_it_is_made_through_the_protocol_in_few_calls() -> None:
    bare = BareStore(large().store())
    made = mirrored(bare)
    assert made.count == 3000
    assert bare.called("out_edges") == 1
    assert bare.called("read") == 0


def test_it_is_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    store = large().store()
    whole = mirrored(store)
    monkeypatch.setattr(mirrors, "_EDGES_AT_ONCE", 1000)
    bare = BareStore(store)
    pieces = mirrored(bare)
    assert bare.called("out_edges") == 30
    for name in ("crow", "col", "strength", "home"):
        assert torch.equal(getattr(whole, name), getattr(pieces, name)), name


def test_a_store_that_changes_meanwhile_is_not_copied() -> None:
    bare = BareStore(sketch(1).store())
    bare.generations = [8, 7]
    assert reflect(bare, CPU) is None


@pytest.mark.parametrize("half", [False, True])
def test_what_it_needs_is_known_before(half: bool) -> None:
    made = mirrored(large().store(), half=half)
    assert made.bytes == bytes_needed(3000, 16, 30_000, regions=True, half=half)
    plain = sketch(1, 12, 30)
    plain.region[:] = 0
    made = mirrored(plain.store(), half=half)
    assert made.home is None
    assert made.bytes == bytes_needed(12, 3, 30, regions=False, half=half)


def test_too_little_memory_is_a_capacity_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    memory = AESGMemory(tmp_path / "store", AESGConfig(vector_dim=D), device_cache=True).eval()
    memory.add_concepts(np.eye(D))
    memory.save()
    monkeypatch.setattr(mirrors, "free_bytes", lambda device: 3 << 28)
    monkeypatch.setitem(mirrors.WORK_BYTES, "cpu", 1 << 30)
    with pytest.raises(CapacityError, match=r"1\.00 GiB, 0\.75 GiB is free; use device_cache=False"):
        memory(np.ones(D))

    monkeypatch.undo()

    def no_memory(*args: Any, **kwargs: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(mirrors, "_edges", no_memory)
    with pytest.raises(CapacityError, match="use device_cache=False"):
        memory(np.ones(D))
    monkeypatch.undo()
    memory(np.ones(D))
    monkeypatch.setattr("aesg.memory.mirror_recall.activate", no_memory)
    with pytest.raises(CapacityError, match="use device_cache=False"):
        memory(np.ones(D))
    memory.close()


# --- in a memory -----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Mirror]:
    """The mirrors that answered, one entry a retrieval."""
    used: list[Mirror] = []

    def remember(mirror: Mirror, *args: Any) -> Reflection:
        used.append(mirror)
        return activate(mirror, *args)

    monkeypatch.setattr("aesg.memory.mirror_recall.activate", remember)
    return used


URLS = ["memory:", "memmap://{}/store", "lmdb://{}/store", "zarr://{}/store"]


@pytest.mark.parametrize("url", URLS)
def test_a_memory_answers_the_same_with_and_without(url: str, tmp_path: Any, asked: list[Mirror]) -> None:
    graph = large(nodes=400)
    config = AESGConfig(vector_dim=16)
    with AESGMemory(url.format(tmp_path), config) as plain:
        plain.add_concepts(graph.vectors)
        plain.connect(graph.source, graph.target, graph.weight, graph.confidence)
        plain.save()
        plain.eval()
        cached = copy.deepcopy(plain)
        cached._mirrors = Mirrors(True)
        rng = np.random.default_rng(6)
        for turn in range(4):  # contexts are carried from one to the next
            queries = graph.vectors[rng.integers(0, 400, 5)] + 0.3 * rng.standard_normal((5, 16)).astype(np.float32)
            queries[turn] = 0
            seeds = [None, (np.array([3, 4]), np.array([0.5, 1.0])), None, None, None]
            want, got = (memory(torch.tensor(queries).double(), extra_seeds=seeds) for memory in (plain, cached))
            assert len(asked) == turn + 1
            assert type(got) is MirroredContext
            assert vars(got).keys() == vars(want).keys()
            assert got.activated_nodes == want.activated_nodes
            np.testing.assert_array_equal(got.ids, want.ids)
            assert torch.equal(got.concept_vectors, want.concept_vectors)
            torch.testing.assert_close(got.weights, want.weights, rtol=1e-5, atol=0)
            assert torch.equal(got.batch_index, want.batch_index)
            assert got.explanation == pytest.approx(want.explanation, abs=1e-5)
            assert (got.born, got.cut, got.num_primary, got.dim) == (want.born, want.cut, 3, 16)
            assert sorted(got.paths) == sorted(want.paths)
            assert got.primary_concepts == want.primary_concepts
            torch.testing.assert_close(got.aggregate(), want.aggregate(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(got.to_padded(), want.to_padded())
            for mine, other in zip(cached._lanes, plain._lanes, strict=True):
                assert mine.first == other.first
                assert (mine.carried is None) == (other.carried is None)
                if mine.carried is not None:
                    assert mine.carried.rows.tolist() == other.carried.rows.tolist()
                    np.testing.assert_allclose(mine.carried.energies, other.carried.energies, rtol=1e-5)
        context = cached(queries)
        copied = pickle.loads(pickle.dumps(copy.deepcopy(context)))
        assert copied.paths == context.paths != []
        plain.reset_state()
        cached.reset_state()
        assert sorted(cached(graph.vectors[5]).paths) == sorted(plain(graph.vectors[5]).paths)
        query = torch.tensor(graph.vectors[:2], requires_grad=True)
        plain.reset_state()
        cached.reset_state()
        torch.testing.assert_close(cached.attend(query), plain.attend(query), rtol=1e-5, atol=1e-6)
        cached.attend(query).sum().backward()
        assert query.grad is not None


def test_an_empty_memory_gives_nothing(asked: list[Mirror]) -> None:
    with AESGMemory("memory:", AESGConfig(vector_dim=D), device_cache=True) as memory:
        memory.eval()
        context = memory(np.ones((2, D)))
        assert len(asked) == 1
        assert context.concept_vectors is None
        assert context.explanation == [0, 0]
        assert context.paths == []
        assert context[1].activated_nodes == []
        assert context.aggregate().tolist() == [[0] * D] * 2


def test_learning_is_the_engines_business(asked: list[Mirror]) -> None:
    with AESGMemory("memory:", AESGConfig(vector_dim=D, commit_interval=1e6), device_cache=True) as memory:
        memory.add_concepts(np.eye(D))
        memory(np.eye(D)[0])
        memory.eval()
        assert memory(np.eye(D)[0]).activated_nodes[0] == 0  # not committed yet
        assert not asked
        memory.save()
        assert memory(np.eye(D)[0]).activated_nodes[0] == 0
        assert len(asked) == 1


def test_what_was_committed_since_is_found(asked: list[Mirror], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(mirrors.time, "monotonic", lambda: clock[0])
    with AESGMemory("memory:", AESGConfig(vector_dim=D, commit_interval=0), device_cache=True) as memory:
        memory.eval()
        memory.add_concepts(np.eye(D)[:1])
        memory(np.eye(D)[1])
        memory(np.eye(D)[1])
        assert len(asked) == 2
        assert asked[0] is asked[1]
        kept = memory._mirrors._kept[CPU]
        kept.cost = 5.0  # as if it had taken so long
        memory.add_concepts(np.eye(D)[1:])
        assert memory(np.eye(D)[1]).activated_nodes[0] == 1
        assert len(asked) == 2
        assert kept.mirror is None
        clock[0] += 4
        memory.add_concepts(np.eye(D))
        clock[0] += 4
        memory(np.eye(D)[1])
        assert len(asked) == 2  # nobody saw the newest commit before
        clock[0] += 2
        memory(np.eye(D)[1])
        assert len(asked) == 2  # and two more too
        clock[0] += 3
        assert memory(np.eye(D)[2]).activated_nodes[:2] == [2, 5]
        assert asked[-1].count == 6


@pytest.mark.parametrize(
    "change",
    [
        {"context_replaces_query": True},
        {"region_zero_counts": True},
        {"novelty_by_lane": True},
        {"tie_break": "insertion"},
    ],
)
def test_what_only_0_3_0_does_is_left_to_the_engine(change: dict[str, Any], asked: list[Mirror]) -> None:
    config = AESGConfig(vector_dim=D, **change)
    assert not supports(config)
    with AESGMemory("memory:", config, device_cache=True) as memory:
        memory.add_concepts(np.eye(D))
        memory.save()
        memory.eval()
        assert memory(np.eye(D)[0]).activated_nodes[0] == 0
        assert not asked


def test_the_presets_of_ours_are_supported() -> None:
    assert [supports(AESGConfig.preset(name)) for name in ("default", "entities", "aesg-0.3")] == [True, True, False]


def test_a_reader_has_a_mirror_of_the_commit_that_it_sees(tmp_path: Any, asked: list[Mirror]) -> None:
    url = f"lmdb://{tmp_path}/store"
    with AESGMemory(url, AESGConfig(vector_dim=D)) as writer:
        writer.add_concepts(np.eye(D)[:2])
        writer.save()
        with AESGMemory(url, mode="r", device_cache=True) as reader:
            assert len(reader(np.eye(D)[0]).activated_nodes) == 1
            writer.add_concepts(np.eye(D)[:1])
            writer.save()
            assert len(reader(np.eye(D)[0]).activated_nodes) == 1
            assert reader.refresh()
            reader._mirrors._kept[CPU].cost = 0.0
            assert len(reader(np.eye(D)[0]).activated_nodes) == 2
            assert [mirror.count for mirror in asked] == [2, 2, 3]


def test_copies_make_their_own(tmp_path: Any, asked: list[Mirror]) -> None:
    with AESGMemory(tmp_path / "store", AESGConfig(vector_dim=D), device_cache="half") as memory:
        memory.add_concepts(np.eye(D))
        memory.save()
        memory.eval()
        with copy.deepcopy(memory) as copied, pickle.loads(pickle.dumps(memory)) as pickled:
            for some in (memory, copied, pickled):
                some.eval()(np.eye(D)[0])
        assert len({id(mirror) for mirror in asked}) == 3
        assert all(mirror.halves is not None for mirror in asked)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_does_not_wait_for_its_parents_lock(asked: list[Mirror]) -> None:
    with AESGMemory("memory:", AESGConfig(vector_dim=D), device_cache=True) as memory:
        memory.add_concepts(np.eye(D))
        memory.save()
        memory.eval()
        with memory._mirrors._lock:
            child = os.fork()
            if not child:
                os._exit(0 if memory(np.eye(D)[1]).activated_nodes[0] == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_closed_memory_keeps_none() -> None:
    with AESGMemory("memory:", AESGConfig(vector_dim=D, commit_interval=0), device_cache=True) as memory:
        memory.add_concepts(np.eye(D))
        memory.eval()(np.eye(D))
        assert memory._mirrors._kept[CPU].mirror is not None
    assert not memory._mirrors._kept


def test_the_benchmark_gives_every_figure_and_says_where_it_ran(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "gpu.py"
    out = tmp_path / "figures.json"
    command = [sys.executable, str(script), "--quick", "--device", "cpu", "--json", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "no GPU was used" in done.stdout
    result = json.loads(out.read_text())
    assert not result["on_gpu"]
    assert [row["lanes"] for row in result["rows"]] == result["sizes"]["lanes"] == [1, 8]
    for row in result["rows"]:
        assert len(row["engine"]) == len(row["mirror"]) == 2
        assert min(*row["engine"], *row["mirror"], row["ratio"]) > 0
        assert row["same"] == 1


def test_an_unknown_device_cache_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="device_cache"):
        AESGMemory("memory:", device_cache="double")  # type: ignore[arg-type]


def test_a_query_on_another_device_has_its_context_there(asked: list[Mirror]) -> None:
    with AESGMemory("memory:", AESGConfig(vector_dim=D)) as memory:
        memory.add_concepts(np.eye(D))
        memory.eval()
        context = memory(torch.ones(2, D, dtype=torch.float16))
        assert context.weights.dtype == torch.float16
    assert not asked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("device_cache", [False, True, "half"])
def test_a_query_on_cuda_has_its_context_there(device_cache: Any, asked: list[Mirror]) -> None:
    with AESGMemory("memory:", AESGConfig(vector_dim=D), device="cuda", device_cache=device_cache) as memory:
        memory.add_concepts(np.eye(D))
        memory.connect([0], [1])
        memory.save()
        memory.eval()
        for query in (np.eye(D) + 0.1, torch.eye(D, device="cuda") + 0.1):
            context = memory(query)
            assert len(context) == D
            for tensor in (context.concept_vectors, context.weights, context.batch_index, *context.to_padded()):
                assert tensor.device.type == "cuda"
            assert [0, 1] in context.paths
        assert len({id(mirror) for mirror in asked}) == bool(device_cache)
