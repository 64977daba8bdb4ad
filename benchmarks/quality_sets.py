"""Question sets for retrieval quality: what is in a `.npz`, how answers are counted, how sure a difference is."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]

DEPTHS: Final = (2, 5, 10)
"""Recall is counted among so many of the best passages."""
GOALS: Final[dict[tuple[str, str], tuple[float, ...]]] = {
    ("2wiki", "cosine"): (50.3, 61.4, 65.2),
    ("2wiki", "default"): (64.8, 83.9, 89.9),
    ("2wiki", "entities"): (70.8, 92.1, 97.0),
    ("musique", "cosine"): (40.2, 55.3, 64.7),
    ("musique", "default"): (43.4, 58.3, 67.3),
    ("musique", "entities"): (44.7, 65.0, 77.0),
}
"""What the recipes give on the held-out questions of two sets, in percent, by set and way."""
TOLERANCE: Final = 0.5
"""Points by which a figure may be missed: a set has a few hundred questions, and float32 rounds."""
RESAMPLES: Final = 10_000
"""Of the bootstrap."""


@dataclass(frozen=True)
class Edges:
    """Edges between nodes.

    Attributes:
        sources: int64 [n].
        targets: int64 [n].
        weights: float32 [n].
    """

    sources: Ints
    targets: Ints
    weights: Floats


@dataclass(frozen=True)
class Questions:
    """Passages, how they are linked, and questions whose answers are known.

    Passages are nodes 0 .. N-1; entities, which have no vector, follow.

    Attributes:
        name: Of the set.
        passages: float32 [N, D], length 1.
        queries: float32 [Q, D], length 1.
        gold: Per question, the passages that answer it.
        is_dev: bool [Q], the half that may be tuned on.
        links: Passage → passage.
        entities: How many there are.
        entity_links: The links, and the edges between passages and entities.
        named: Per question, the entities (as nodes) that it names, and the energies at which they are seeded.
    """

    name: str
    passages: Floats
    queries: Floats
    gold: list[Ints]
    is_dev: npt.NDArray[np.bool_]
    links: Edges
    entities: int
    entity_links: Edges
    named: list[tuple[Ints, Floats]]


def find(folder: Path) -> list[Path]:
    """The `.npz` files of a folder, or else of the folder `retrieval` in it."""
    return sorted(folder.glob("*.npz")) or sorted((folder / "retrieval").glob("*.npz"))


def load(path: Path) -> Questions:
    """Read a set.

    Raises:
        KeyError: An array is missing.
        ValueError: Not a set.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    passages = _unit(arrays["passage_vectors"])
    named = _ragged(arrays["query_entity"].astype(np.int64), arrays["query_entity_ptr"])
    energies = _ragged(arrays["query_entity_energy"].astype(np.float32), arrays["query_entity_ptr"])
    return Questions(
        name=path.stem,
        passages=passages,
        queries=_unit(arrays["query_vectors"]),
        gold=_ragged(arrays["gold"].astype(np.int64), arrays["gold_ptr"]),
        is_dev=arrays["is_dev"].astype(np.bool_),
        links=_edges(arrays, "link"),
        entities=int(arrays["entity_count"]),
        entity_links=_edges(arrays, "entity_link"),
        named=list(zip(named, energies, strict=True)),
    )


def recalls(questions: Questions, ranked: list[Ints]) -> npt.NDArray[np.float64]:
    """Share of each question's passages that is among its best 2, 5 and 10; float64 [Q, 3].

    Args:
        questions: Whose answers count.
        ranked: Per question, passages, best first.
    """
    return np.array(
        [
            [np.isin(gold, best[:depth]).mean() for depth in DEPTHS]
            for gold, best in zip(questions.gold, ranked, strict=True)
        ]
    ).reshape(-1, len(DEPTHS))


def interval(differences: npt.NDArray[np.float64], seed: int = 0) -> npt.NDArray[np.float64]:
    """Paired bootstrap: where the mean of differences [Q, k] lies in 95 of 100 resamples; [2, k], low and high."""
    count = len(differences)
    if not count:
        return np.full((2, differences.shape[1]), np.nan)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES)
    return np.percentile(drawn @ differences / count, [2.5, 97.5], axis=0)


def _unit(vectors: npt.NDArray[Any]) -> Floats:
    wide = vectors.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    out: Floats = np.divide(wide, lengths, out=np.zeros_like(wide), where=lengths > 0)
    return out


def _ragged(values: npt.NDArray[Any], ends: npt.NDArray[np.int64]) -> list[Any]:
    return [values[start:stop] for start, stop in pairwise(ends.tolist())]


def _edges(arrays: dict[str, npt.NDArray[Any]], kind: str) -> Edges:
    return Edges(
        arrays[f"{kind}_source"].astype(np.int64),
        arrays[f"{kind}_target"].astype(np.int64),
        arrays[f"{kind}_weight"].astype(np.float32),
    )
