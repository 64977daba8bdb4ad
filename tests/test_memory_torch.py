"""AESGMemory as a torch module: compiled, distributed, copied, pickled, saved, in DataLoader workers."""

import copy
import io
import multiprocessing
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import aesg
from aesg import AESGConfig, AESGMemory
from aesg.errors import ReadOnlyError, SchemaMismatchError, UnsupportedError

D = 8
CONFIG = AESGConfig(vector_dim=D, commit_interval=3600)
EYE = np.eye(D, dtype=np.float32)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store")


@pytest.fixture
def memory(path):
    with AESGMemory(path, CONFIG) as memory:
        memory.add_concepts(EYE)
        yield memory


class Model(nn.Module):
    """A model with a memory."""

    def __init__(self, memory):
        super().__init__()
        self.memory = memory
        self.before = nn.Linear(D, D)
        self.after = nn.Linear(2 * D, 2)

    def forward(self, x):
        hidden = self.before(x)
        context = self.memory(hidden)
        return self.after(torch.cat([self.memory.attend(hidden), context.aggregate()], dim=-1))


def test_it_has_no_parameters_of_its_own(memory):
    assert list(memory.parameters()) == list(memory.buffers()) == []


def test_a_model_learns_through_it(memory):
    torch.manual_seed(0)
    model = Model(memory)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, y = torch.randn(32, D), torch.randint(2, (32,))
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


def test_importing_it_does_not_import_the_compiler():
    code = "import sys, numpy, aesg; aesg.AESGMemory('memory:')(numpy.ones(256)); print('torch._dynamo' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False"]


# --- torch.compile ---------------------------------------------------------------------------------------------------

# The compiler itself warns of things in other libraries.
compiling = pytest.mark.filterwarnings("ignore")


@compiling
@pytest.mark.parametrize("training", [False, True])
def test_compiled(memory, training):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model(memory).train(training)
    plain = copy.deepcopy(model)
    compiled = torch.compile(model, backend="aot_eager")
    nodes = memory.storage.node_count
    for step in range(12):
        x = torch.randn(2 + step % 3, D)
        out = compiled(x)
        out.sum().backward()
        if not training:
            wanted = plain(x)
            wanted.sum().backward()
            assert torch.allclose(out, wanted, atol=1e-6)
            torch.testing.assert_close(model.before.weight.grad, plain.before.weight.grad)
    assert (memory.storage.node_count > nodes or memory.storage.nodes["use_frequency"].any()) == training


@compiling
def test_compiled_alone_and_as_a_single_query(memory):
    torch._dynamo.reset()
    memory.eval()
    compiled = torch.compile(memory, backend="eager")
    for row in range(D):
        assert compiled(torch.tensor(EYE[row])).activated_nodes[0] == row


@compiling
def test_a_full_graph_is_refused_clearly(memory):
    torch._dynamo.reset()
    compiled = torch.compile(Model(memory), backend="eager", fullgraph=True)
    with pytest.raises(Exception, match=r"disable"):
        compiled(torch.ones(2, D))


# --- copies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["memory", "memmap"])
def test_a_deep_copy_shares_the_store_and_has_lanes_of_its_own(place, path):
    memory = AESGMemory("memory:" if place == "memory" else path, CONFIG)
    memory.add_concepts(EYE)
    memory(EYE[0])
    twin = copy.deepcopy(Model(memory)).memory
    assert twin.store is memory.store
    assert [lane.first for lane in twin._lanes] == [0]
    twin(EYE[1])
    assert [lane.first for lane in memory._lanes] == [0]
    twin.add_concepts(EYE)
    assert memory.storage.node_count == 2 * D
    memory.close()
    assert twin.storage.node_count == 2 * D
    twin.close()


def test_a_pickle_opens_the_store_for_reading(memory):
    memory.cognitive_engine.create_sensory_concept(-EYE[0])
    model = pickle.loads(pickle.dumps(Model(memory)))  # which saves
    twin = model.memory
    assert twin.store.url == memory.store.url
    assert twin.config == CONFIG
    assert twin.training
    assert twin.storage.node_count == D + 1
    assert twin(EYE[2]).activated_nodes == [2]
    assert model(torch.ones(3, D)).shape == (3, 2)
    with pytest.raises(ReadOnlyError):
        twin.add_concepts(EYE)
    assert not twin.storage.nodes["use_frequency"].any()
    twin.close()


def test_torch_save_of_a_whole_model(memory):
    file = io.BytesIO()
    torch.save(Model(memory), file)
    file.seek(0)
    model = torch.load(file, weights_only=False)
    assert model.memory.storage.node_count == D
    model.memory.close()


def test_a_memory_in_the_heap_cannot_be_pickled():
    with AESGMemory("memory:", CONFIG) as memory, pytest.raises(UnsupportedError, match="in-memory"):
        pickle.dumps(memory)


# --- state_dict ------------------------------------------------------------------------------------------------------


def test_the_state_holds_parameters_and_where_the_memory_lies(memory, path, tmp_path):
    model = Model(memory)
    state = model.state_dict()
    assert set(state) == {"before.weight", "before.bias", "after.weight", "after.bias", "memory._extra_state"}
    assert state["memory._extra_state"]["url"] == memory.store.url
    torch.save(state, tmp_path / "state.pt")
    memory.close()

    with AESGMemory(path) as again:
        other = Model(again)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert torch.equal(other.before.weight, model.before.weight)


def test_a_copied_store_is_the_same_store(memory, path, tmp_path):
    state = memory.state_dict()
    memory.close()
    shutil.copytree(path, tmp_path / "copy")
    with AESGMemory(tmp_path / "copy") as moved:
        moved.load_state_dict(state)


def test_another_store_is_a_warning(memory, tmp_path):
    with AESGMemory(tmp_path / "other", CONFIG) as other, pytest.warns(UserWarning, match="not what is in it"):
        other.load_state_dict(memory.state_dict())


def test_another_vector_dim_is_an_error(memory, tmp_path):
    state = memory.state_dict()
    with (
        AESGMemory(tmp_path / "o", CONFIG.replace(vector_dim=9)) as other,
        pytest.raises(SchemaMismatchError, match="8"),
    ):
        other.load_state_dict(state)


# --- DataLoader ------------------------------------------------------------------------------------------------------


class Recall(Dataset):
    """What the memory has for each unit vector."""

    def __init__(self, memory):
        self.memory = memory

    def __len__(self):
        return D

    def __getitem__(self, row):
        return self.memory(torch.tensor(EYE[row])).activated_nodes[0], self.memory.store.read_only


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers_read(memory, method):
    loader = DataLoader(Recall(memory), batch_size=2, num_workers=2, multiprocessing_context=method)
    for _ in range(2):
        rows, read_only = map(torch.cat, zip(*loader, strict=True))
        assert rows.tolist() == list(range(D))
        assert read_only.all()
    assert memory.storage.node_count == D
    memory.add_concepts(EYE)
    memory.save()
    assert not memory.store.verify()


def test_dataloader_in_this_process(memory):
    assert [row for row, _ in DataLoader(Recall(memory), batch_size=None)] == list(range(D))


def _child(memory, rows):
    rows.put((memory(EYE[4]).activated_nodes, memory.storage.node_count))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(memory, method):
    context = multiprocessing.get_context(method)
    rows = context.Queue()
    child = context.Process(target=_child, args=(memory, rows))
    child.start()
    assert rows.get(timeout=60) == ([4], D)
    child.join(60)
    assert child.exitcode == 0


# --- DistributedDataParallel -----------------------------------------------------------------------------------------

RANK = """
    import sys, warnings
    import numpy as np, torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel
    from aesg import AESGConfig, AESGMemory
    from aesg.errors import LockedError
    from test_memory_torch import CONFIG, D, EYE, Model

    rank, meeting, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    if rank == 0:
        memory = AESGMemory(path, CONFIG)
        memory.add_concepts(EYE)
        memory.save()
    dist.barrier()
    if rank == 1:
        try:
            AESGMemory(path)
        except LockedError as error:
            assert "mode='r'" in str(error)
        else:
            raise AssertionError
        memory = AESGMemory(path, mode="r")
    torch.manual_seed(rank)
    model = DistributedDataParallel(Model(memory))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        memory.reset_state()
        loss = model(torch.randn(4, D)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = [torch.zeros(D, D) for _ in range(2)]
    dist.all_gather(weights, model.module.before.weight.detach())
    assert torch.equal(*weights)
    memory.save()
    dist.barrier()
    memory.refresh()
    print(rank, memory.storage.nodes["use_frequency"].sum() > 0)
    memory.close()
    dist.destroy_process_group()
"""


def test_distributed_data_parallel(path, tmp_path, request):
    command = [sys.executable, "-c", textwrap.dedent(RANK)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meeting"), path],
            cwd=request.path.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank, child in enumerate(ranks):
        out, err = child.communicate(timeout=120)
        assert child.returncode == 0, err
        assert out.split() == [str(rank), "True"]  # rank 1 sees what rank 0 learned


def test_data_parallel_replicas_share_it(memory):
    replica = memory._replicate_for_data_parallel()
    assert replica(EYE[1]).activated_nodes == [1]


def test_nothing_is_left_open(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AESGMemory(path, CONFIG).close()
    aesg.open(path).close()
