"""A graph that exposes the protocol's names and nothing else: what runs on it relies on nothing that only ours have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aesg.protocols import Graph

NODE_NAMES = ("append", "read", "write", "scan", "transform", "rows_of")
EDGE_NAMES = ("append", "out_edges", "read", "write", "remove", "degrees", "scan", "transform")
EVENT_NAMES = ("append", "read")


class Only:
    """Shows some names of an object, and its length, and nothing else; keeps what was called with what."""

    def __init__(self, of: Any, names: Sequence[str], calls: list[tuple[str, Any]] | None = None) -> None:
        self._of, self._names, self._calls = of, names, [] if calls is None else calls

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(f"the protocol has no {name}")
        value = getattr(self._of, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            self._calls.append((name, args))
            return value(*args, **kwargs)

        return call

    def __len__(self) -> int:
        return len(self._of)


class Bare:
    """A `Graph` that exposes the protocol's names and nothing else.

    Attributes:
        node_calls: What was called of the nodes: name and arguments.
        edge_calls: And of the edges.
    """

    def __init__(self, graph: Graph) -> None:
        self.node_calls: list[tuple[str, Any]] = []
        self.edge_calls: list[tuple[str, Any]] = []
        self.nodes: Any = Only(graph.nodes, NODE_NAMES, self.node_calls)
        self.edges: Any = Only(graph.edges, EDGE_NAMES, self.edge_calls)
        self.events: Any = Only(graph.events, EVENT_NAMES)
        self._graph = graph

    @property
    def vector_dim(self) -> int:
        """The graph's."""
        return self._graph.vector_dim

    @property
    def attrs(self) -> Any:
        """The graph's."""
        return self._graph.attrs

    def called(self, name: str) -> int:
        """How often a method of nodes or edges was called."""
        return sum(1 for n, _ in self.node_calls + self.edge_calls if n == name)
