"""The whole memory on a backend: the same training gives the same retrieval as on `memory:`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from aesg.config import AESGConfig
from aesg.testing.base import ClauseGroup, Stores
from aesg.testing.clauses import clause
from aesg.testing.target import Target

if TYPE_CHECKING:
    from aesg import AESGMemory

DIM: Final = 12
CONFIG: Final = AESGConfig(
    vector_dim=DIM,
    consolidation_epoch_interval=2,
    novelty_birth_threshold=2,
    coactivation_threshold_create=4,
    max_edges_per_node=10,
    relevance_decay=0.8,
    commit_interval=0.2,
)


def lesson(seed: int, inputs: int = 60) -> Any:
    """Inputs that come back: directions of which a few are frequent, float32 [inputs, DIM]."""
    rng = np.random.default_rng(seed)
    known = np.random.default_rng(1).standard_normal((25, DIM))
    chosen = (rng.random(inputs) ** 2 * len(known)).astype(int)
    return (known[chosen] + rng.standard_normal((inputs, DIM)) * 0.05).astype(np.float32)


def learn(memory: AESGMemory, seed: int) -> None:
    """A lesson and the night after it."""
    memory.train()
    memory.reset_state()
    for vector in lesson(seed):
        memory(vector)
    memory(lesson(seed + 100, 6))  # six lanes
    memory.update_topology()


def recalled(memory: AESGMemory) -> list[tuple[list[int], list[list[int]], list[float]]]:
    """What the memory answers, query by query."""
    memory.eval()
    memory.reset_state()
    answers = []
    for vector in lesson(500, 40):
        context = memory(vector)
        answers.append((context.activated_nodes, context.paths, context.weights.tolist()))
    memory.reset_state()
    return answers


def assert_recall(got: list[Any], wanted: list[Any]) -> None:
    """The same concepts by the same ways; weights may differ in the last digits."""
    for one, other in zip(got, wanted, strict=True):
        assert one[0] == other[0]
        assert one[1] == other[1]
        np.testing.assert_allclose(one[2], other[2], rtol=1e-4)


class TraceClauses(ClauseGroup):
    """`AESGMemory` on the backend."""

    @clause("trace.same-retrieval")
    def test_the_same_training_gives_the_same_retrieval(self, stores: Stores, target: Target) -> None:
        """The same training gives the same retrieval as on memory:, also when the store is reopened in between."""
        from aesg import AESGMemory

        url = target.store_url(stores.folder())
        reference, memory = AESGMemory("memory:", CONFIG), AESGMemory(url, CONFIG)
        try:
            for seed in range(4):
                learn(reference, seed)
                learn(memory, seed)
                assert len(memory.store.nodes) == len(reference.store.nodes)
                assert_recall(recalled(memory), recalled(reference))
                if target.persists and seed % 2:
                    # What is known of novel inputs is no part of the store: both forget it.
                    reference._novelty.reset()
                    memory.close()
                    memory = AESGMemory(url)
                    assert memory.config == CONFIG
                    assert_recall(recalled(memory), recalled(reference))
            assert len(memory.store.nodes) >= 20
            assert len(memory.store.edges) > 50
            assert memory.store.verify() == []
        finally:
            memory.close()
            reference.close()

    @clause("trace.reading-memory", needs={"readers": "other_processes"})
    def test_a_reading_memory_recalls_what_a_writing_one_learns(self, stores: Stores, target: Target) -> None:
        """A memory that was opened for reading recalls, once refreshed, what a writing one has learned."""
        from aesg import AESGMemory

        url = target.store_url(stores.folder())
        with AESGMemory(url, CONFIG) as memory:
            learn(memory, 0)
            with AESGMemory(url, mode="r") as reader:
                assert_recall(recalled(reader), recalled(memory))
                learn(memory, 1)
                reader.refresh()
                assert_recall(recalled(reader), recalled(memory))
