"""A question set in a memory, through the public interface only: what it is filled with and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from quality_sets import DEPTHS, Edges, Ints, Questions

from aesg import AESGConfig, AESGMemory

LANES: Final = 64
"""Questions asked at once."""


@dataclass(frozen=True)
class Way:
    """A way to answer questions.

    Attributes:
        name: For the table and `--presets`.
        preset: Of `AESGConfig`.
        overrides: Parameters that differ from the preset.
        with_entities: On the entity edges, entities of the question as extra seeds; otherwise on the links.
        confidence: Of the edges.
        depends_on: For people.
    """

    name: str
    preset: str
    overrides: dict[str, Any]
    with_entities: bool
    confidence: float
    depends_on: str

    def config(self, dim: int) -> AESGConfig:
        """Its configuration for vectors of length `dim`."""
        return AESGConfig.preset(self.preset, **self.overrides, vector_dim=dim)


NEAREST: Final = {"spreading_activation_steps": 0, "num_seeds": max(DEPTHS)}
WAYS: Final = {
    way.name: way
    for way in (
        Way("cosine", "default", NEAREST, False, 1.0, "nothing: the nearest passages"),
        Way("aesg-0.3", "aesg-0.3", {}, False, 0.25, "links, confidence 0.25"),
        Way("default", "default", {}, False, 1.0, "links (recipe L)"),
        Way("entities", "entities", {}, True, 1.0, "entity edges and named entities (recipe E)"),
    )
}


class Asked:
    """A memory that holds one question set; passages and entities have their numbers as ids.

    As a context manager it closes the memory.
    """

    def __init__(self, questions: Questions, way: Way, place: str) -> None:
        self.questions = questions
        self.way = way
        self.memory = AESGMemory(place, way.config(questions.passages.shape[1])).eval()
        edges = questions.entity_links if way.with_entities else questions.links
        self._rows = self._fill(edges)

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self.memory.close()

    def _fill(self, edges: Edges) -> Ints:
        passages = self.questions.passages
        count = len(passages)
        rows = [self.memory.add_concepts(passages, np.arange(count))]
        if self.way.with_entities:
            blank = np.zeros((self.questions.entities, passages.shape[1]), np.float32)
            rows.append(self.memory.add_concepts(blank, np.arange(count, count + len(blank))))
        place = np.concatenate(rows)
        self.memory.connect(place[edges.sources], place[edges.targets], edges.weights, self.way.confidence)
        return place

    def answers(self, advance: Callable[[int], None] = lambda _: None) -> list[Ints]:
        """The passages that each question brings up, best first, asked as if it were the only one.

        Lanes of a batch do not meet, and `reset_state` in front of each batch forgets what the lanes were asked before:
        a question that has nothing to do with the one before it must not be answered in its context.

        Args:
            advance: Told how many were answered, from time to time.
        """
        self.memory.eval()
        ranked: list[Ints] = []
        for first in range(0, len(self.questions.queries), LANES):
            some = range(first, min(first + LANES, len(self.questions.queries)))
            self.memory.reset_state()
            batch: Any = self.memory.retrieve(
                self.questions.queries[some.start : some.stop], extra_seeds=self._seeds(some)
            )
            ranked += [self._passages(context) for context in batch]
            advance(len(some))
        return ranked

    def live_through(self, order: Ints, *, fresh: bool, advance: Callable[[int], None] = lambda _: None) -> int:
        """Ask questions in `train()`, one after the other.

        Args:
            order: Which ones.
            fresh: Call `reset_state` in front of each, as is right for questions that do not follow from one another.
            advance: Told of each.

        Returns:
            How many concepts were born.
        """
        self.memory.reset_state()
        self.memory.train()
        born = 0
        for number in order.tolist():
            if fresh:
                self.memory.reset_state()
            seeds = self._seeds(range(number, number + 1))
            context: Any = self.memory.retrieve(self.questions.queries[number], extra_seeds=seeds and seeds[0])
            born += context.born is not None
            advance(1)
        self.memory.eval()
        return born

    def _seeds(self, some: range) -> Any:
        if not self.way.with_entities:
            return None
        return [(self._rows[nodes], energies) for nodes, energies in (self.questions.named[i] for i in some)]

    def _passages(self, context: Any) -> Ints:
        """What is no passage has no place among the answers: an entity, or a concept that was born."""
        known: Ints = context.ids[context.ids < len(self.questions.passages)].astype(np.int64)
        return known[: max(DEPTHS)]


def place_of(backend: str, folder: Path) -> str:
    """The URL of a new store."""
    return "memory:" if backend == "memory" else f"{backend}://{folder}"
