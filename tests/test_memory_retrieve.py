"""AESGMemory: what a retrieval gives, what it learns, what it refuses."""

import math

import numpy as np
import pytest
import torch

from aesg import AESGConfig, AESGMemory
from aesg.errors import (
    AESGError,
    ClosedError,
    DuplicateIdError,
    InvalidInputError,
    InvalidVectorError,
    NotFoundError,
    ReadOnlyError,
    SchemaMismatchError,
)
from aesg.memory.context import BatchContext, RetrievedContext

D = 8
CONFIG = AESGConfig(vector_dim=D, commit_interval=60)
EYE = np.eye(D, dtype=np.float32)
EVERY_BACKEND = ["memory", "memmap"]


@pytest.fixture(params=EVERY_BACKEND)
def place(request, tmp_path):
    return "memory:" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
def memory(place):
    with AESGMemory(place, CONFIG) as memory:
        yield memory


@pytest.fixture
def filled(memory):
    """The unit vectors, each linked to the next."""
    memory.add_concepts(EYE, ids=np.arange(100, 100 + D))
    memory.connect(np.arange(D - 1), np.arange(1, D))
    return memory


# --- contexts --------------------------------------------------------------------------------------------------------


def test_one_query_gives_one_context(filled):
    filled.eval()
    context = filled(torch.tensor(EYE[2] + 0.1 * EYE[3]))
    assert isinstance(context, RetrievedContext)
    n = len(context.activated_nodes)
    assert context.activated_nodes == [2, 3]
    assert context.concept_vectors.shape == (n, D)
    assert torch.equal(context.concept_vectors[0], torch.tensor(EYE[2]))
    assert context.vectors is context.concept_vectors
    assert context.num_primary == 3
    assert context.ids.dtype == np.uint64
    assert context.ids.tolist() == [100 + row for row in context.activated_nodes]
    assert context.weights.shape == (n,)
    assert (context.weights.diff() <= 0).all()
    assert [2, 3] in context.paths
    assert 0.99 < context.explanation <= 1
    assert context.born is None
    assert context.aggregate().shape == (D,)


def test_primary_and_secondary(filled):
    filled.eval()
    context = filled(torch.ones(D))
    assert len(context.activated_nodes) == D
    assert context.primary_concepts == context.activated_nodes[:3]
    assert context.secondary_concepts == context.activated_nodes[3:]


def test_aggregate_is_the_mean_by_energy(filled):
    context = filled.eval()(torch.tensor(EYE[2] + 0.5 * EYE[3]))
    share = context.weights / context.weights.sum()
    assert torch.allclose(context.aggregate(), share @ context.concept_vectors)


def test_nothing_activated(memory):
    memory.eval()
    context = memory(torch.ones(D))
    assert context.concept_vectors is None
    assert context.vectors is None
    assert context.activated_nodes == context.paths == context.primary_concepts == context.secondary_concepts == []
    assert context.ids.shape == (0,)
    assert context.weights.shape == (0,)
    assert context.explanation == 0
    assert torch.equal(context.aggregate(), torch.zeros(D))


def test_a_batch_is_ragged(filled):
    filled.eval()
    queries = torch.tensor(np.stack([EYE[0], np.zeros(D, np.float32), np.ones(D, np.float32)]))
    batch = filled(queries)
    assert isinstance(batch, BatchContext)
    assert len(batch) == 3
    assert [len(lane.activated_nodes) for lane in batch] == [1, 0, D]
    assert batch[1].concept_vectors is None
    assert batch[-1].activated_nodes == batch[2].activated_nodes
    with pytest.raises(IndexError):
        batch[3]
    assert batch.batch_index.tolist() == [0] + [2] * D
    assert batch.concept_vectors.shape == (1 + D, D)
    assert batch.activated_nodes == batch[0].activated_nodes + batch[2].activated_nodes
    assert batch.primary_concepts == batch[0].primary_concepts + batch[2].primary_concepts
    assert batch.secondary_concepts == batch[0].secondary_concepts + batch[2].secondary_concepts
    assert batch.paths == batch[0].paths + batch[2].paths
    assert batch.ids.tolist() == [100 + row for row in batch.activated_nodes]
    assert batch.explanation == [lane.explanation for lane in batch]
    assert batch.vectors is batch.concept_vectors
    assert "lanes=3" in repr(batch)
    means = batch.aggregate()
    assert means.shape == (3, D)
    assert torch.equal(means[1], torch.zeros(D))
    for lane, mean in zip(batch, means, strict=True):
        assert torch.allclose(lane.aggregate(), mean)


def test_to_padded(filled):
    filled.eval()
    batch = filled(torch.tensor(np.stack([EYE[0] + EYE[4], np.zeros(D), np.ones(D)]), dtype=torch.float32))
    vectors, mask = batch.to_padded()
    assert vectors.shape == (3, D, D)
    assert mask.dtype == torch.bool
    n = len(batch[0].activated_nodes)
    assert 2 <= n < D
    assert mask.sum(dim=1).tolist() == [n, 0, D]
    assert torch.equal(vectors[0, :n], batch[0].concept_vectors)
    assert not vectors[~mask].any()
    assert torch.equal(vectors[2], batch[2].concept_vectors)
    assert torch.equal(batch.padded_weights()[0, :n], batch[0].weights)


def test_empty_batches_and_memories(memory):
    memory.eval()
    none = memory(torch.zeros(0, D))
    assert len(none) == 0
    assert none.concept_vectors is None
    assert none.aggregate().shape == (0, D)
    assert none.to_padded()[0].shape == (0, 0, D)
    nothing = memory(torch.ones(2, D))
    assert nothing.concept_vectors is None
    assert nothing.to_padded()[0].shape == (2, 0, D)
    assert nothing.to_padded()[1].shape == (2, 0)
    assert nothing.aggregate().shape == (2, D)


def test_a_lane_gets_what_it_would_get_alone(filled):
    filled.eval()
    rng = np.random.default_rng(0)
    queries = torch.tensor(rng.standard_normal((4, D)), dtype=torch.float32)
    batch = filled(queries)
    for i, query in enumerate(queries):
        filled.reset_state()
        alone = filled(query)
        assert alone.activated_nodes == batch[i].activated_nodes
        assert torch.allclose(alone.weights, batch[i].weights)
        assert alone.paths == batch[i].paths


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_tensors_come_back_in_the_querys_dtype(filled, dtype):
    filled.eval()
    for query in (torch.tensor(EYE[2], dtype=dtype), torch.tensor(EYE[2:4], dtype=dtype)):
        context = filled(query)
        assert context.concept_vectors.dtype == context.weights.dtype == context.aggregate().dtype == dtype
        assert context.activated_nodes[0] == 2
        assert torch.isfinite(context.aggregate()).all()
    assert context.to_padded()[0].dtype == dtype


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("f2", torch.float16),
        ("f4", torch.float32),
        ("f8", torch.float64),
        (">f4", torch.float32),
        ("i8", torch.float32),
    ],
)
def test_numpy_queries(filled, dtype, wanted):
    context = filled.eval().retrieve(EYE[2].astype(dtype))
    assert context.concept_vectors.dtype == wanted
    assert context.activated_nodes[0] == 2


def test_device_is_for_numpy_queries(place):
    with AESGMemory(place, CONFIG, device="meta") as memory:
        memory.add_concepts(EYE)
        memory.eval()
        assert memory(EYE[0]).concept_vectors.device.type == "meta"
        assert memory(torch.tensor(EYE[0])).concept_vectors.device.type == "cpu"


def test_strided_and_differentiable_queries_are_read(filled):
    filled.eval()
    wide = torch.tensor(np.repeat(EYE, 2, axis=1), requires_grad=True)
    context = filled(wide[:, ::2])
    assert [lane.activated_nodes[0] for lane in context] == list(range(D))
    assert not context.concept_vectors.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda(place, dtype):
    with AESGMemory(place, CONFIG, device="cuda") as memory:
        memory.add_concepts(torch.tensor(EYE, device="cuda", dtype=dtype))
        rows = torch.arange(D, device="cuda")
        memory.connect(rows[:-1], rows[1:])
        query = torch.tensor(EYE[:3], device="cuda", dtype=dtype, requires_grad=True)
        batch = memory(query)
        assert [lane.activated_nodes[0] for lane in batch] == [0, 1, 2]
        vectors, mask = batch.to_padded()
        for tensor in (batch.concept_vectors, batch.weights, batch.batch_index, vectors, mask, batch.aggregate()):
            assert tensor.device == query.device
        assert batch.concept_vectors.dtype == batch.weights.dtype == dtype
        out = memory.attend(query)
        assert (out.device, out.dtype) == (query.device, dtype)
        out.float().sum().backward()
        assert torch.isfinite(query.grad).all()
        assert memory(EYE[0]).concept_vectors.device == query.device  # NumPy: the memory's device
        memory.cognitive_engine.create_sensory_concept(query[0])
        seeds = (torch.tensor([5], device="cuda"), torch.tensor([1.0], device="cuda"))
        assert 5 in memory(query[0], extra_seeds=seeds).activated_nodes


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        torch.zeros(D + 1),
        torch.zeros(1),
        torch.tensor(1.0),
        torch.zeros(2, D - 1),
        torch.zeros(1, 2, D),
        np.zeros(3),
        [[1.0] * D, [1.0]],
    ],
)
def test_wrong_shapes(filled, query):
    with pytest.raises(InvalidVectorError) as error:
        filled.retrieve(query)
    assert str(D) in str(error.value) or "array" in str(error.value)


@pytest.mark.parametrize(
    "query", [torch.zeros(D, dtype=torch.complex64), torch.zeros(D, dtype=torch.bool), np.array(["a"] * D)]
)
def test_wrong_dtypes(filled, query):
    with pytest.raises(InvalidVectorError, match="floating-point"):
        filled.retrieve(query)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("kind", ["query", "batch", "add", "one"])
def test_non_finite_input_raises_and_teaches_nothing(filled, bad, kind):
    filled.retrieve(torch.tensor(EYE[2]))
    filled.save()
    generation, carried = filled.store.generation, [lane.first for lane in filled._lanes]
    query = torch.ones(D, dtype=torch.float64)
    query[3] = bad
    call, argument = {
        "query": (filled.retrieve, query),
        "batch": (filled.retrieve, torch.stack([torch.ones(D, dtype=torch.float64), query])),
        "add": (filled.add_concepts, query[None]),
        "one": (filled.cognitive_engine.create_sensory_concept, query),
    }[kind]
    with pytest.raises(InvalidVectorError):
        call(argument)
    filled.save()
    assert filled.storage.node_count == D
    assert filled.store.generation == generation
    assert [lane.first for lane in filled._lanes] == carried


def test_a_vector_whose_square_overflows_is_finite(filled):
    row = filled.cognitive_engine.create_sensory_concept(torch.full((D,), 1e30))
    assert filled.storage.nodes["vector"][row].tolist() == [np.float32(1e30)] * D


@pytest.mark.parametrize(
    ("seeds", "error"),
    [
        (([0],), InvalidInputError),
        (0, InvalidInputError),
        ("ab", InvalidInputError),
        (([0.5], [1.0]), InvalidInputError),
        (([[0]], [1.0]), InvalidInputError),
        (([0, 1], [1.0, 1.0, 1.0]), InvalidInputError),
        (([0], [math.nan]), InvalidInputError),
        (([0], [-1.0]), InvalidInputError),
        (([0], ["a"]), InvalidInputError),
        (([D], [1.0]), NotFoundError),
        (([-1], [1.0]), NotFoundError),
    ],
)
def test_malformed_extra_seeds(filled, seeds, error):
    with pytest.raises(error):
        filled.retrieve(EYE[0], extra_seeds=seeds)
    with pytest.raises(error):
        filled.retrieve(EYE[:2], extra_seeds=[None, seeds])


def test_extra_seeds_of_a_batch_are_a_list_per_lane(filled):
    for seeds in (([0], [1.0]), [([0], [1.0])], [None] * 3):
        with pytest.raises(InvalidInputError, match="each of its 2 rows"):
            filled.retrieve(EYE[:2], extra_seeds=seeds)


# --- extra seeds, zero vectors ---------------------------------------------------------------------------------------


def test_extra_seeds_reach_what_the_query_does_not(filled):
    filled.eval()
    rows = filled.add_concepts(np.zeros((1, D), np.float32))
    filled.connect(rows, [6])
    zero = torch.zeros(D)
    assert filled(zero).concept_vectors is None
    context = filled(zero, extra_seeds=(rows, [2.0]))
    assert context.activated_nodes[:2] == [rows[0], 6]
    assert context.weights[0] == 2
    assert [int(rows[0]), 6] in context.paths
    batch = filled(torch.zeros(2, D), extra_seeds=[None, (torch.tensor(rows), torch.tensor([2.0]))])
    assert batch[0].concept_vectors is None
    assert batch[1].activated_nodes == context.activated_nodes
    assert filled(zero, extra_seeds=([], [])).concept_vectors is None


def test_zero_vectors_are_reached_by_links_alone(filled):
    filled.eval()
    (row,) = filled.add_concepts(np.zeros((1, D), np.float32))
    filled.connect([0], [row])
    context = filled(EYE[0])
    assert [0, row] in context.paths
    assert row in context.activated_nodes


# --- learning --------------------------------------------------------------------------------------------------------


def test_the_first_input_of_an_empty_memory_becomes_a_concept(memory):
    assert memory(torch.zeros(D)).concept_vectors is None
    context = memory(torch.tensor(EYE[3]))
    assert context.activated_nodes == [0]
    assert context.born == 0
    assert torch.equal(context.concept_vectors[0], torch.tensor(EYE[3]))
    assert [event["type"] for event in memory.logger.get_history()] == ["CREATE"]


def test_of_a_batch_the_first_that_says_something_becomes_a_concept(memory):
    batch = memory(torch.tensor(np.stack([EYE[0] * 0, EYE[1], EYE[1]])))
    assert memory.storage.node_count == 1
    assert batch.born == [None, 0, None]
    assert [lane.activated_nodes for lane in batch] == [[], [0], [0]]


@pytest.mark.parametrize("reset", [False, True])
def test_a_novel_input_that_keeps_coming_back_is_born(memory, reset):
    memory(EYE[0])
    born = []
    for _ in range(memory.config.novelty_birth_threshold):
        if reset:
            memory.reset_state()
        context = memory(EYE[1])
        born.append(context.born)
    assert born == [None, None, 1]
    assert context.activated_nodes[0] == 1  # the new node is in the context returned
    assert context.explanation < 0.6  # what made it a novelty
    assert memory(EYE[1]).explanation > 0.99
    assert memory.storage.node_count == 2


def test_lanes_that_say_the_same_give_birth_once(place):
    with AESGMemory(place, CONFIG.replace(novelty_birth_threshold=1)) as memory:
        memory(EYE[0])
        batch = memory(np.stack([EYE[1], EYE[1], EYE[2], EYE[0]]))
        assert batch.born == [1, None, 2, None]
        assert memory.storage.node_count == 3
        assert [lane.activated_nodes[0] for lane in (batch[0], batch[2], batch[3])] == [1, 2, 0]


def test_isolated_noise_dies_out(memory):
    memory(EYE[0])
    rng = np.random.default_rng(0)
    for _ in range(300):
        noise = rng.standard_normal(D).astype(np.float32)
        memory.reset_state()
        memory(noise)
        memory(EYE[0])
    assert memory.storage.node_count < 100


def test_retrieval_credits_what_it_returns(filled):
    filled.save()
    filled(EYE[2])
    filled(EYE[5])
    assert filled.storage.nodes["use_frequency"][2] == 1
    edges = filled.storage.edge_count
    assert edges == D  # the lane went from 2 to 5: linked
    assert filled.storage.nodes["relevance"].max() <= 1


def test_eval_only_reads(filled):
    filled.eval()
    filled.save()
    generation = filled.store.generation
    for _ in range(5):
        filled(EYE[2])
        filled(torch.tensor(-EYE))
        filled.attend(torch.tensor(-EYE))
    filled.save()
    assert filled.store.generation == generation
    assert not filled.storage.nodes["use_frequency"].any()


def test_in_eval_mode_context_is_carried_all_the_same(filled):
    filled.eval()
    fresh = filled(EYE[0] + EYE[1])
    filled(EYE[0])
    carried = filled(EYE[0] + EYE[1])
    assert not torch.equal(fresh.weights, carried.weights)
    filled.reset_state()
    assert torch.equal(filled(EYE[0] + EYE[1]).weights, fresh.weights)


def test_lanes_keep_their_state_when_the_batch_shrinks_and_grows(filled):
    filled.eval()
    filled(EYE[:3])
    assert [lane.first for lane in filled._lanes] == [0, 1, 2]
    filled(EYE[:2])
    assert [lane.first for lane in filled._lanes] == [0, 1]
    filled(EYE[4])
    assert [lane.first for lane in filled._lanes] == [4]
    filled(np.stack([np.zeros(D), EYE[1]]))
    assert [lane.first for lane in filled._lanes] == [None, 1]


# --- attend ----------------------------------------------------------------------------------------------------------


def test_gradients_reach_the_query(filled):
    filled.eval()
    for shape in ((D,), (3, D)):
        torch.manual_seed(0)
        query = torch.randn(shape, requires_grad=True)
        out = filled.attend(query, temperature=0.5)
        assert out.shape == query.shape
        assert out.dtype == query.dtype
        out.square().sum().backward()
        assert torch.isfinite(query.grad).all()
        assert (query.grad.reshape(-1, D).abs().sum(dim=1) > 0).all()


def test_attend_is_differentiated_rightly(filled):
    filled.eval()
    torch.manual_seed(1)
    query = torch.randn(2, D, dtype=torch.float64, requires_grad=True)

    def readout(q):
        filled.reset_state()
        return filled.attend(q, temperature=1.0)

    # The energies are constants to the gradient: hold them fixed by fixing what is retrieved.
    vectors, bias = filled._readable(query)
    filled._readable = lambda _: (vectors, bias)
    assert torch.autograd.gradcheck(readout, query, eps=1e-6, atol=1e-5)


def test_a_known_query_reads_itself(filled):
    out = filled.eval().attend(torch.tensor(EYE[[2, 5]]))
    assert torch.allclose(out, torch.tensor(EYE[[2, 5]]), atol=1e-3)


def test_attend_to_nothing_gives_zeros_with_a_gradient(memory):
    memory.eval()
    query = torch.ones(D, requires_grad=True)
    out = memory.attend(query)
    assert not out.any()
    out.sum().backward()
    assert not query.grad.any()

    memory.add_concepts(EYE)
    mixed = torch.stack([torch.ones(D), torch.zeros(D)]).requires_grad_()
    out = memory.attend(mixed)
    assert out[0].any()
    assert not out[1].any()
    out.sum().backward()
    assert torch.isfinite(mixed.grad).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_attend_in_other_dtypes(filled, dtype):
    query = torch.tensor(EYE[2], dtype=dtype, requires_grad=True)
    out = filled.eval().attend(query)
    assert out.dtype == dtype
    assert torch.allclose(out.float(), torch.tensor(EYE[2]), atol=1e-2)
    out.sum().backward()
    assert query.grad.dtype == dtype


def test_attend_keeps_its_precision_under_autocast(filled):
    filled.eval()
    torch.manual_seed(0)
    query = torch.randn(3, D)
    exact = filled.attend(query)
    filled.reset_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(filled.attend(query), exact, atol=1e-6)


def test_attend_refuses_a_temperature_of_zero(filled):
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(InvalidInputError, match="temperature"):
            filled.attend(torch.ones(D), temperature)


def test_attend_takes_tensors(filled):
    for query in (EYE[0], torch.zeros(D, dtype=torch.long)):
        with pytest.raises(InvalidVectorError, match="tensor"):
            filled.attend(query)


def test_attend_learns_when_training(memory):
    memory.attend(torch.tensor(EYE[0]))
    assert memory.storage.node_count == 1


# --- learning from outside -------------------------------------------------------------------------------------------


def test_add_and_connect(memory):
    rows = memory.add_concepts(torch.tensor(EYE, dtype=torch.bfloat16), ids=[2**64 - 1, *range(1, D)])
    assert rows.tolist() == list(range(D))
    assert rows.dtype == np.int64
    refs = memory.connect(torch.tensor(rows[:-1]), rows[1:], weight=torch.full((D - 1,), 0.5), confidence=0.25)
    assert refs.tolist() == list(range(D - 1))
    assert memory.storage.edge_count == D - 1
    with memory.graph() as graph:
        assert graph.nodes.rows_of([2**64 - 1]).tolist() == [0]
        assert graph.edges.out_edges([0]).weight.tolist() == [0.5]
    assert memory.add_concepts(torch.zeros(2, D)).tolist() == [D, D + 1]
    history = memory.logger.get_history()
    assert [event["type"] for event in history] == ["CREATE"] * (D + 2)
    assert history[0]["id1"] == 2**64 - 1


def test_refusals_add_nothing(filled):
    with pytest.raises(DuplicateIdError):
        filled.add_concepts(EYE[:1], ids=[100])
    for ids in ([-1], [2**64], [0.5], ["a"], [1, 2]):
        with pytest.raises(InvalidInputError):
            filled.add_concepts(EYE[:1], ids=ids)
    with pytest.raises(InvalidVectorError):
        filled.add_concepts(np.zeros((2, D + 1)))
    with pytest.raises(NotFoundError):
        filled.connect([0], [D])
    with pytest.raises(InvalidInputError):
        filled.connect([0], [1], weight=math.nan)
    assert filled.storage.node_count == D
    assert filled.storage.edge_count == D - 1
    assert filled(EYE[2]).activated_nodes[0] == 2  # and the memory goes on


# --- configuration, opening, closing ---------------------------------------------------------------------------------


def test_a_new_memory_without_a_config_takes_the_defaults(place):
    with AESGMemory(place) as memory:
        assert memory.config == AESGConfig()
        assert memory.vector_dim == memory.storage.vector_dim == 256


def test_the_config_is_the_stores(tmp_path):
    config = CONFIG.replace(num_seeds=7)
    AESGMemory(tmp_path / "m", config).close()
    with AESGMemory(tmp_path / "m") as memory:
        assert memory.config == config
    other = config.replace(num_seeds=9)
    AESGMemory(tmp_path / "m", other).close()
    with AESGMemory(tmp_path / "m", mode="r") as memory:
        assert memory.config == other
    with AESGMemory(tmp_path / "m", config, mode="r") as memory:
        assert memory.config == config  # but a reader stores nothing
    with AESGMemory(tmp_path / "m") as memory:
        assert memory.config == other


def test_opening_again_writes_nothing(tmp_path):
    AESGMemory(tmp_path / "m", CONFIG).close()
    with AESGMemory(tmp_path / "m", CONFIG) as memory:
        generation = memory.store.generation
    with AESGMemory(tmp_path / "m") as memory:
        assert memory.store.generation == generation


def test_another_vector_dim(tmp_path):
    AESGMemory(tmp_path / "m", CONFIG).close()
    with pytest.raises(SchemaMismatchError, match=r"8.*9|9.*8"):
        AESGMemory(tmp_path / "m", CONFIG.replace(vector_dim=9))
    with AESGMemory(tmp_path / "m"), pytest.raises(SchemaMismatchError, match=r"8.*9|9.*8"):
        AESGMemory(tmp_path / "m", CONFIG.replace(vector_dim=9))


def test_a_config_of_another_version(tmp_path):
    with AESGMemory(tmp_path / "m", CONFIG) as memory:
        memory.store.attrs["config"] = {"parameter_of_the_future": 1}
    with pytest.raises(AESGError, match="parameter_of_the_future"):
        AESGMemory(tmp_path / "m")
    AESGMemory(tmp_path / "m", CONFIG).close()
    AESGMemory(tmp_path / "m").close()


def test_urls_and_backends(tmp_path):
    with AESGMemory(f"memmap://{tmp_path}/m", CONFIG, backend="memmap") as memory:
        memory.add_concepts(EYE)
    with AESGMemory(tmp_path / "m", backend="memmap") as memory:
        assert memory.storage.node_count == D
        assert str(tmp_path) in repr(memory)
    with pytest.raises(InvalidInputError, match="memory"):
        AESGMemory(f"memmap://{tmp_path}/m", CONFIG, backend="memory")
    with pytest.raises(AESGError, match="nonsense"):
        AESGMemory("nonsense:///x", CONFIG)
    with pytest.raises(InvalidInputError, match="mode"):
        AESGMemory(tmp_path / "m", mode="w")
    with pytest.raises(NotFoundError):
        AESGMemory(tmp_path / "absent", mode="r")


def test_a_reader_only_reads(tmp_path):
    with AESGMemory(tmp_path / "m", CONFIG) as memory:
        memory.add_concepts(EYE)
    with AESGMemory(tmp_path / "m", mode="r") as reader:
        assert reader.training
        for _ in range(5):
            assert reader(torch.tensor(-EYE[0])).born is None
        assert reader(EYE[2]).activated_nodes[0] == 2
        for write in (
            lambda: reader.add_concepts(EYE),
            lambda: reader.connect([0], [1]),
            reader.update_topology,
            lambda: reader.cognitive_engine.create_sensory_concept(EYE[0]),
            lambda: reader.cognitive_engine.create_abstract_concept([0, 1]),
        ):
            with pytest.raises(ReadOnlyError):
                write()
        reader.save()  # nothing to save is no error: every process of a distributed program may call it
        assert reader.storage.node_count == D


def test_a_closed_memory(filled):
    filled.close()
    filled.close()
    for use in (
        lambda: filled(EYE[0]),
        filled.save,
        filled.update_topology,
        lambda: filled.storage.node_count,
        lambda: filled.cognitive_engine.create_sensory_concept(EYE[0]),
        lambda: filled.store,
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert "closed" in repr(filled)
    assert filled.state_dict()


# --- 0.3.0's names ---------------------------------------------------------------------------------------------------


def test_concepts_made_one_by_one(memory):
    engine = memory.cognitive_engine
    rows = [engine.create_sensory_concept(torch.tensor(vector)) for vector in EYE]
    assert rows == list(range(D))
    assert engine.create_sensory_concept(EYE[0].astype(np.float64)) == D
    assert engine.create_sensory_concept(torch.zeros(D, dtype=torch.bfloat16)) == D + 1
    with pytest.raises(InvalidVectorError):
        engine.create_sensory_concept(torch.zeros(1))
    for batch in (torch.zeros(1, D), np.zeros((1, D)), np.zeros((2, D))):
        with pytest.raises(InvalidVectorError):
            engine.create_sensory_concept(batch)
    assert memory.storage.node_count == D + 2
    assert (memory.storage.nodes["vector"][:D] == EYE).all()
    assert memory.storage.nodes["is_active"][: D + 2].tolist() == [1] * (D + 2)
    assert len(memory.storage.nodes) == D + 2
    assert [event["val"] for event in memory.logger.get_history()] == [1.0] * (D + 2)
    assert memory(EYE[1]).activated_nodes[0] == 1


def test_many_concepts_one_by_one(place):
    """More than wait in the queue, with other calls in between."""
    with AESGMemory(place, CONFIG) as memory:
        engine = memory.cognitive_engine
        vectors = np.random.default_rng(0).standard_normal((20_000, D)).astype(np.float32)
        rows = []
        for i, vector in enumerate(torch.tensor(vectors)):
            rows.append(engine.create_sensory_concept(vector))
            if i % 5000 == 17:
                assert memory.storage.node_count == len(rows)
        assert rows == list(range(len(vectors)))
        assert (memory.storage.nodes["vector"] == vectors).all()


def test_an_abstract_concept(filled):
    row = filled.cognitive_engine.create_abstract_concept([0, 1])
    assert row == D
    assert filled.storage.nodes["vector"][row].tolist() == pytest.approx([0.5, 0.5, *[0] * (D - 2)])
    event = filled.logger.get_history()[-1]
    assert (event["type"], event["id2"], event["val"]) == ("CREATE", 100, 2.0)
    assert filled.cognitive_engine.create_abstract_concept(torch.tensor([2, 3])) == D + 1


def test_consolidation(filled):
    assert filled.update_topology().epoch == 0
    report = filled.cognitive_engine.consolidate()
    assert report.epoch == 1
    assert filled.store.attrs["epoch"] == 2  # committed
    assert report.active == D
    assert filled.storage.nodes["age"].tolist() == [2] * D
    assert filled.logger.get_history()[-1]["type"] == "CONSOLIDATE"


def test_columns_of_an_empty_memory(memory):
    assert memory.storage.nodes["is_active"].shape == (0,)
    assert memory.storage.nodes["vector"].shape == (0, D)
    assert memory.storage.node_count == memory.storage.edge_count == 0
    assert memory.logger.get_history() == []


def test_a_newborn_concept_passes_on_what_its_input_activated_before(tmp_path):
    """Without its links it would take all the energy, and what was found before the birth would be lost after it."""
    with AESGMemory(tmp_path / "m", AESGConfig(vector_dim=8, reinforce_rate=0)) as memory:
        rows = memory.add_concepts(np.eye(8)[:3])
        memory.connect(rows[:1], rows[2:3])  # 0 → 2, which no input below is near to
        novel = np.array([0.5, 0.1, 0, 1, 0, 0, 0, 0], np.float32)
        before = [memory.retrieve(novel) for _ in range(2)][-1]
        born = memory.retrieve(novel)
        assert memory.storage.node_count == 4
        assert born.activated_nodes[0] == 3
        with memory.graph() as graph:
            adjacency = graph.edges.out_edges([3])
        assert set(adjacency.target_rows.tolist()) == set(before.primary_concepts) & {0, 1}
        assert adjacency.weight.max() == pytest.approx(0.5 / np.linalg.norm(novel), rel=1e-5)
        assert [3, 0] in born.paths
        assert {0, 1} <= {row for row, weight in zip(born.activated_nodes, born.weights, strict=True) if weight > 0}


def test_births_make_no_links_when_that_is_switched_off(tmp_path):
    config = AESGConfig(vector_dim=8, birth_confidence=0, temporal_weight=0)
    with AESGMemory(tmp_path / "m", config) as memory:
        memory.add_concepts(np.eye(8)[:3])
        for _ in range(3):
            memory.retrieve(np.array([0.5, 0.1, 0, 1, 0, 0, 0, 0], np.float32))
        assert (memory.storage.node_count, memory.storage.edge_count) == (4, 0)


def test_a_context_says_when_a_hub_was_cut(tmp_path):
    with AESGMemory(tmp_path / "memory", AESGConfig(vector_dim=4, max_hop_edges=5)) as memory:
        rows = memory.add_concepts(np.concatenate([np.eye(4)[:2], np.zeros((20, 4))]))
        memory.connect(np.full(20, rows[0]), rows[2:])
        memory.connect(rows[1:2], rows[2:3])
        memory.eval()
        batch = memory.retrieve(np.eye(4)[:2])
        assert batch.cut == [True, False]
        assert [context.cut for context in batch] == [True, False]
        assert {target for _, target in batch[0].paths} == set(rows[-5:].tolist())
