"""The preset "aesg-0.3" on directories that 0.3.0 wrote, and on copies in other backends, gives what 0.3.0 gave."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import aesg
from aesg import AESGConfig, AESGMemory
from aesg.records import EDGE_WRITABLE, NodeBatch

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
DIRECTORIES = sorted(path for path in GOLDEN.glob("*") if (path / "expected.json").is_file())

pytestmark = pytest.mark.skipif(not DIRECTORIES, reason=f"no directories of 0.3.0 in {GOLDEN}")


@pytest.fixture(params=DIRECTORIES, ids=lambda path: path.name)
def golden(request, tmp_path):
    return Path(shutil.copytree(request.param, tmp_path / "store"))


def copied(source, url):
    """Copy a store, record by record, into a new one; removed edges keep their refs."""
    with (
        aesg.open(source, mode="r") as old,
        aesg.open(url, vector_dim=old.vector_dim) as new,
        new.transaction() as transaction,
    ):
        for columns in old.nodes.scan():
            transaction.nodes.append(NodeBatch(columns.pop("vector"), columns.pop("id"), columns))
        refs = 0
        for edges in old.edges.scan():
            assert np.array_equal(edges["ref"], refs + np.arange(len(edges["ref"])))
            refs += len(edges["ref"])
            new_refs = transaction.edges.append(edges["source_row"], edges["target_row"])
            transaction.edges.write(new_refs, **{name: edges[name] for name in EDGE_WRITABLE})
        transaction.events.append(old.events.read())
    return url


@pytest.fixture(params=["as it is", "memmap", "lmdb", "zarr", "icechunk"])
def stored(request, golden, tmp_path):
    """The directory, and a copy of it in each backend."""
    if request.param == "as it is":
        return golden
    if request.param == "icechunk":
        pytest.importorskip("icechunk")
    return copied(golden, f"{request.param}://{tmp_path}/copy")


def _query(case):
    return torch.tensor(case["query"], dtype=torch.float32)


def _compare(context, case):
    rows = case["primary"] + case["secondary"]
    if not rows:  # 0.3.0 made up a zero vector of weight 1 then
        assert context.concept_vectors is None
        assert context.activated_nodes == context.paths == []
        return
    tied = case.get("tie_between_the_two_seeds") or case.get("other_tie_in_top11")
    if tied:
        assert sorted(context.activated_nodes) == sorted(rows)
        assert sorted(map(tuple, context.paths)) == sorted(map(tuple, case["paths"]))
    else:
        assert context.primary_concepts == case["primary"]
        assert context.secondary_concepts == case["secondary"]
        assert context.paths == case["paths"]
    np.testing.assert_allclose(context.weights.numpy(), np.float32(case["weights"]), rtol=1e-6, atol=1e-6)
    assert list(context.concept_vectors.shape) == case["vectors_shape"]


def test_its_own_config_is_the_default_with_its_dimension(golden):
    meta = json.loads((golden / "dump.json").read_text())["meta"]
    with AESGMemory(golden) as memory:
        assert memory.config == AESGConfig(vector_dim=meta["vector_dim"])
        assert memory.storage.node_count == meta["node_count"]
        assert "config" not in memory.store.attrs  # nobody chose it


@pytest.mark.parametrize("mode", ["a", "r"])
def test_retrieval(golden, stored, mode):
    expected = json.loads((golden / "expected.json").read_text())
    config = AESGConfig.preset("aesg-0.3", **expected["config"])
    with AESGMemory(stored, config, mode=mode) as memory:
        for case in expected["reset"]:
            memory.reset_state()
            context = memory(_query(case))
            _compare(context, case)
            assert context.explanation == pytest.approx(case["score"], abs=1e-6)
            assert context.born is None
        memory.reset_state()
        memory.eval()
        for case in expected["continuing"]:
            context = memory(_query(case))
            _compare(context, case)
            assert context.explanation == pytest.approx(case["score"], abs=1e-6)


def test_batches_of_lanes(golden, stored):
    """Each lane gets what 0.3.0 gave to its one."""
    expected = json.loads((golden / "expected.json").read_text())
    config = AESGConfig.preset("aesg-0.3", **expected["config"])
    with AESGMemory(stored, config, mode="r") as memory:
        cases = expected["reset"]
        for context, case in zip(memory(torch.stack([_query(case) for case in cases])), cases, strict=True):
            _compare(context, case)


def test_births(golden, stored):
    expected = json.loads((golden / "expected_novelty.json").read_text())
    config = AESGConfig.preset("aesg-0.3", **expected["config"])
    with AESGMemory(stored, config) as memory:
        for case in expected["sequence"]:
            before = memory.storage.node_count
            context = memory(_query(case))
            assert context.primary_concepts == case["primary"]
            assert (context.born is not None) == bool(case["born"])
            assert memory.storage.node_count - before == case["born"]
            assert memory._novelty.count(0) == case["novelty_buffer"]
            if case["born"]:
                assert memory.storage.nodes["vector"][context.born].tolist() == _query(case).tolist()
