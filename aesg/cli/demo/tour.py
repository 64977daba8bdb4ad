"""What the demo does with a memory: build, ask, consolidate, close, reopen. Gathers; `show` prints.

Only what every user of the package has is used: `AESGMemory` as its readme shows it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from aesg.cli.demo.corpus import Corpus, Track
from aesg.cli.demo.embedding import Embedder
from aesg.config import AESGConfig
from aesg.engine.consolidation import Report
from aesg.errors import InvalidInputError
from aesg.records import Ids, Vectors

if TYPE_CHECKING:
    from aesg.memory.context import RetrievedContext

SHOWN: Final = 8
"""Results shown of each answer."""
BATCH: Final = 256
"""Concepts, or links, that go to the memory in one call: few enough for a bar to move."""


@dataclass(frozen=True, slots=True)
class Found:
    """One result.

    Attributes:
        name: The passage.
        score: Its cosine, or the energy that reached it.
        cosine_rank: Its place, from 1, in the order of plain cosine.
        path: Names from a passage near the question, link by link, to this one; empty when cosine shows it as well.
        quote: The words in which the last link names this one; empty like `path`.
    """

    name: str
    score: float
    cosine_rank: int
    path: tuple[str, ...] = ()
    quote: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, and what two ways of searching the same vectors find.

    Attributes:
        question: As asked.
        cosine: The nearest passages, best first.
        spreading: What spreading activation finds from them, best first.
    """

    question: str
    cosine: list[Found]
    spreading: list[Found]


@dataclass(frozen=True, slots=True)
class State:
    """What is compared before closing and after reopening.

    Attributes:
        concepts: Nodes.
        links: Edges.
        active: Nodes that were not pruned.
        used: Nodes that retrieval has returned at least once.
        events: Entries of the evolution log.
        answers: Per question, the ids found and their energies, in order.
    """

    concepts: int
    links: int
    active: int
    used: int
    events: int
    answers: tuple[tuple[tuple[int, float], ...], ...]

    def counts(self) -> dict[str, int]:
        """The figures, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "answers"}


class Tour:
    """A memory's life, step by step.

    Attributes:
        corpus: What is remembered.
    """

    def __init__(self, corpus: Corpus) -> None:
        """Prepare; nothing is embedded or written yet."""
        self.corpus = corpus
        self._ids: Ids = corpus.ids()
        self._quotes = {(link.source, link.target): link.quote for link in corpus.links}
        self._names = [passage.name for passage in corpus.passages]
        self._questions: list[str] = []

    def embed(self, track: Track) -> int:
        """Turn the passages into vectors; gives back their length."""
        for passages in track([self.corpus.passages], "Embedding"):
            self._embed = Embedder(passages)
        return int(self._embed.vectors.shape[1])

    def build(self, directory: Path, track: Track) -> None:
        """Write passages and links into a new memory."""
        from aesg.memory.controller import AESGMemory

        self._directory = str(directory)
        self._memory = AESGMemory(self._directory, AESGConfig(vector_dim=self._embed.vectors.shape[1]))
        vectors = self._embed.vectors
        rows = np.empty(len(vectors), np.int64)
        for batch in track(_batches(len(vectors)), "Remembering passages"):
            rows[batch] = self._memory.add_concepts(vectors[batch], ids=self._ids[batch])
        sources = rows[[link.source for link in self.corpus.links]]
        targets = rows[[link.target for link in self.corpus.links]]
        for batch in track(_batches(len(sources)), "Connecting links"):
            self._memory.connect(sources[batch], targets[batch], 1.0, 1.0)
        self._memory.save()
        self._index_of = {int(row): i for i, row in enumerate(rows)}

    def ask(self, question: str) -> Answer:
        """Ask as a user would: the memory learns from it.

        Raises:
            InvalidInputError: The question shares no word with the text.
        """
        query = self._embed(question)
        if not query.any():
            raise InvalidInputError(f"no word of {question!r} occurs in the text: ask in the words of the text")
        self._questions.append(question)
        cosines = self._embed.vectors @ query
        order = np.argsort(-cosines, kind="stable")
        rank = np.ones(len(self._names), np.int64)
        rank[order] = np.arange(1, len(order) + 1)
        names = self._names
        nearest = [Found(names[i], float(cosines[i]), int(rank[i])) for i in order[:SHOWN]]

        self._memory.train()
        context = self._retrieve(query)
        if context.born is not None:  # a question that nothing explained came back often enough to be remembered itself
            self._index_of[context.born] = len(names)
            names.append(f"born: “{shorten(question, 24, placeholder=' …')}”")
            rank = np.append(rank, 1)
        hops = [(self._index_of[source], self._index_of[target]) for source, target in context.paths]
        seeds = [int(i) for i in order[: self._memory.config.num_seeds]]
        came_from = _came_from(hops, seeds[:SHOWN], seeds[SHOWN:])
        activated = []
        for row, energy in list(zip(context.activated_nodes, context.weights.tolist(), strict=True))[:SHOWN]:
            i = self._index_of[row]
            path = _path(came_from, i) if rank[i] > SHOWN else []
            words = self._quotes[path[-2], path[-1]] if len(path) > 1 else ""
            activated.append(Found(names[i], energy, int(rank[i]), tuple(names[step] for step in path), words))
        return Answer(question, nearest, activated)

    def consolidate(self) -> Report:
        """What a memory does in its sleep: everything ages, what is not used is forgotten."""
        return self._memory.update_topology()

    def state(self) -> State:
        """What the memory holds and answers now. Asks without learning."""
        self._memory.eval()
        answers = []
        for question in self._questions:
            context = self._retrieve(self._embed(question))
            answers.append(tuple(zip(context.ids.tolist(), context.weights.tolist(), strict=True)))
        storage = self._memory.storage
        n = storage.node_count
        return State(
            concepts=n,
            links=storage.edge_count,
            active=int(np.sum(storage.nodes["is_active"][:n] == 1)),
            used=int(np.sum(storage.nodes["use_frequency"][:n] > 0)),
            events=len(self._memory.logger.get_history()),
            answers=tuple(answers),
        )

    def reopen(self) -> None:
        """Close the memory and open what lies in the directory."""
        from aesg.memory.controller import AESGMemory

        self.close()
        self._memory = AESGMemory(self._directory)

    def close(self) -> None:
        """Close the memory; does nothing the second time."""
        self._memory.close()

    def _retrieve(self, query: Vectors) -> RetrievedContext:
        self._memory.reset_state()  # each question for itself, whatever was asked before
        return cast("RetrievedContext", self._memory.retrieve(query))  # one query, one context


def _batches(n: int) -> Sequence[slice]:
    return [slice(start, min(start + BATCH, n)) for start in range(0, n, BATCH)]


def _came_from(hops: Iterable[tuple[int, int]], *starts: Iterable[int]) -> dict[int, int]:
    """How energy came to each passage: which passage it came from, on the shortest way; -1 where it started.

    `starts` are seeds; what the first of them reach is not explained by the later ones.
    """
    out: dict[int, list[int]] = {}
    for source, target in hops:
        out.setdefault(source, []).append(target)
    before: dict[int, int] = {}
    for group in starts:
        queue = deque(start for start in group if start not in before)
        before |= dict.fromkeys(queue, -1)
        while queue:
            source = queue.popleft()
            for target in out.get(source, ()):
                if target not in before:
                    before[target] = source
                    queue.append(target)
    return before


def _path(came_from: dict[int, int], at: int) -> list[int]:
    path = [at]
    while (at := came_from.get(at, -1)) >= 0:
        path.append(at)
    return path[::-1]
