"""Teams of lanes: what each wants to know of the graph is asked for all of them at once.

A team is a generator. It yields questions, `NodesOf` or `EdgesOf`, and is sent answers; in between it works in compiled
loops and array operations, on a core of its own where there is one. A lane's result does not depend on its company, so
nor does it depend on the number of cores.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from aesg.protocols import Graph
from aesg.records import Adjacency, Columns, Rows
from aesg.threads import in_threads

_SIZE: Final = 24
"""Lanes of a team: few enough that what they have met stays in a core's L2 cache, and so many that the Python between
the loops, which only one core runs at a time, is little beside them. With 8 or 64 a batch of 256 takes half as long
again."""


@dataclass(frozen=True, slots=True)
class NodesOf:
    """What are these fields of these rows? Answered by columns, and where in them the answers begin.

    Attributes:
        rows: int64 [n].
        fields: Names of node fields.
    """

    rows: Rows
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EdgesOf:
    """Which edges leave these rows? Answered by an adjacency, and where in it the rows begin.

    Attributes:
        rows: int64 [n].
        limit: At most so many of each row.
    """

    rows: Rows
    limit: int


_T = TypeVar("_T")
Question: TypeAlias = NodesOf | EdgesOf
Team: TypeAlias = Generator[Question, Any, _T]


def teams_of(lanes: int) -> list[slice]:
    """The lanes of each team."""
    number = -(-lanes // _SIZE)
    return [slice(start, stop) for start, stop in pairwise(lanes * i // number for i in range(number + 1))]


def together(graph: Graph, teams: Sequence[Team[_T]]) -> list[_T]:
    """Run teams to their ends; what each returned."""
    if len(teams) == 1:
        return [_alone(graph, teams[0])]
    results: list[Any] = [None] * len(teams)
    answers: list[Any] = [None] * len(teams)
    going = list(range(len(teams)))
    while going:
        asked = in_threads(lambda i: _step(teams[i], answers[i], results, i), going)
        questions = [(i, question) for i, question in zip(going, asked, strict=True) if question is not None]
        _answer_nodes(graph, [(i, q) for i, q in questions if isinstance(q, NodesOf)], answers)
        _answer_edges(graph, [(i, q) for i, q in questions if isinstance(q, EdgesOf)], answers)
        going = [i for i, _ in questions]
    return results


def _alone(graph: Graph, team: Team[_T]) -> _T:
    answer: Any = None
    while True:
        try:
            question = team.send(answer)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        if isinstance(question, NodesOf):
            answer = graph.nodes.read(question.rows, question.fields), 0
        else:
            answer = graph.edges.out_edges(question.rows, question.limit), 0


def _step(team: Team[_T], answer: Any, results: list[Any], i: int) -> Question | None:
    """A team's next question; None when it has come to its end, and what it returned is among the results."""
    try:
        return team.send(answer)
    except StopIteration as end:
        results[i] = end.value
        return None


def _answer_nodes(graph: Graph, asked: Sequence[tuple[int, NodesOf]], answers: list[Any]) -> None:
    for fields in {question.fields for _, question in asked}:
        alike = [(i, question.rows) for i, question in asked if question.fields == fields]
        rows, begins = _joined([rows for _, rows in alike])
        columns: Columns = graph.nodes.read(rows, fields)
        for (i, _), begin in zip(alike, begins, strict=True):
            answers[i] = columns, begin


def _answer_edges(graph: Graph, asked: Sequence[tuple[int, EdgesOf]], answers: list[Any]) -> None:
    if asked:
        rows, begins = _joined([question.rows for _, question in asked])
        found: Adjacency = graph.edges.out_edges(rows, max(question.limit for _, question in asked))
        for (i, _), begin in zip(asked, begins, strict=True):
            answers[i] = found, begin


def _joined(lists: Sequence[Rows]) -> tuple[Rows, Sequence[int]]:
    if len(lists) == 1:
        return lists[0], [0]
    ends: npt.NDArray[np.int64] = np.cumsum([len(rows) for rows in lists])
    return np.concatenate(lists), [0, *ends[:-1].tolist()]
