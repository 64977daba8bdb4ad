"""AESGConfig: every number that shapes a memory; validated, frozen, JSON in and out, with presets."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, Self, get_args

from aesg.errors import InvalidInputError

SeedEnergy = Literal["one", "softmax"]
Combine = Literal["sum", "max"]
TieBreak = Literal["cosine", "insertion"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AESGConfig:
    """All parameters of a memory. The defaults are the preset "default".

    Names and defaults that 0.3.0 has are kept. Energies and similarities are pure numbers.

    Attributes:
        vector_dim: Length D of every vector.
        max_concepts: Consolidation keeps at most so many active nodes; a policy, nothing is preallocated.
        max_edges_per_node: Learning never lets a node have more out-edges; the weakest gives way.
        survival_threshold_relevance: Consolidation prunes nodes older than 5 epochs whose relevance is below this …
        survival_threshold_frequency: … and which retrieval returned fewer times than this.
        coactivation_threshold_create: Times two concepts must be returned together (as counted by their edge's
            use_count) before restructuring makes an abstract concept of them.
        merge_similarity_threshold: Restructuring merges linked concepts born of experience of at least this cosine.
        split_density_threshold: Restructuring splits concepts born of experience with more out-edges than this.
        novelty_explanation_threshold: An input whose explanation score is below this is novel.
        novelty_birth_threshold: A novel input must come so many times before a node is born of it.
        novelty_match_similarity: Two inputs of at least this cosine count as the same one coming back.
        novelty_patience: After so many other learning inputs a novel input that did not return loses one count.
        novelty_by_lane: Count novelty per lane, whatever the input was (0.3.0), instead of per input.
        birth_when_empty: The first input of an empty memory becomes a concept at once.
        spreading_activation_steps: Hops that activation travels.
        spreading_activation_decay: Factor on energy per hop.
        region_facilitation_multiplier: Factor on energy that stays within a region.
        consolidation_epoch_interval: Every so many consolidations the graph is restructured: regions, merges, splits,
            abstractions. 0: never.
        prune_confidence_threshold: Consolidation removes edges whose confidence fell below this.
        num_seeds: Nearest active nodes that a query seeds.
        min_seed_similarity: A seed's cosine must be above this.
        seed_pruned: Pruned nodes seed like active ones (0.3.0).
        seed_energy: "one" gives every seed 1.0; "softmax" gives exp((cos - best cos) / seed_temperature).
        seed_temperature: See seed_energy.
        context_carry: Energy, relative to a fresh best seed, at which the lane's previous primary concepts seed again.
            0 switches it off.
        context_replaces_query: A lane's previous concepts seed *instead of* the query (0.3.0).
        firing_threshold: Nodes with less energy do not fire.
        transfer_threshold: Energy along one edge not above this is dropped.
        arrival_threshold: Energy arriving at a node in one step, after the gate, not above this is dropped.
        combine: How a step's arrivals join the energy a node has: "sum" or "max". (Arrivals of one step are summed.)
        wavefront: Pass on only the energy received in the last step; otherwise everything active fires again.
        energy_clamp: Upper bound of a node's energy; 0: none.
        fan_exponent: An edge passes w / (sum of its source's w) ** fan_exponent, where w = weight * confidence.
        query_gate: Multiply what arrives at a node by max(0, cos(query, node)) / best cos (1 for a zero vector).
        max_hop_edges: A hop of one query follows at most so many edges. Where there are more, each node that fires gets
            an equal share, its newest edges, and the context says `cut`.
        region_zero_counts: Region 0 is a region like any other and the lane's commonest one is favoured (0.3.0);
            otherwise energy is favoured along edges inside one assigned region.
        tie_break: Among equal energies the higher "cosine" comes first (then the lower row), or, in 0.3.0, whichever
            became active first ("insertion").
        fill_nearest: Fill the result up to top_k with the next nearest nodes.
        top_k: Size of the result.
        num_primary: How many of the result are primary; they are the lane's context for the next query.
        credit_rate: Share of the way to 1 that a returned node's relevance goes. 0: retrieval credits no node.
        reinforce_rate: The same for weight and confidence of edges that carried energy to a returned node, at their
            first use and with each doubling of uses. 0: off.
        temporal_weight: Weight of the edge made from a lane's previous first concept to its present one. 0: none.
        temporal_confidence: Its confidence.
        birth_confidence: Confidence of the edges from a newborn concept to the primary concepts of the query that it
            was born of; their weight is the cosine. 0: none.
        relevance_decay: Factor on relevance per consolidation.
        edge_confidence_decay: Factor on edge confidence per consolidation.
        compact_above_dead_share: Consolidation compacts the store when more than this share of its nodes is pruned, and
            the pruned ones are gone for good. 0: never.
        commit_interval: Seconds of learning after which a memory commits by itself.
    """

    vector_dim: int = 256
    # Evolutionary pressure
    max_concepts: int = 1_000_000
    max_edges_per_node: int = 1000
    survival_threshold_relevance: float = 0.05
    survival_threshold_frequency: int = 5
    # Structure
    coactivation_threshold_create: int = 50
    merge_similarity_threshold: float = 0.95
    split_density_threshold: int = 800
    # Novelty
    novelty_explanation_threshold: float = 0.6
    novelty_birth_threshold: int = 3
    novelty_match_similarity: float = 0.9
    novelty_patience: int = 100
    novelty_by_lane: bool = False
    birth_when_empty: bool = True
    # Spreading activation
    spreading_activation_steps: int = 3
    spreading_activation_decay: float = 0.8
    region_facilitation_multiplier: float = 1.5
    num_seeds: int = 20
    min_seed_similarity: float = 0.0
    seed_pruned: bool = False
    seed_energy: SeedEnergy = "softmax"
    seed_temperature: float = 0.05
    context_carry: float = 0.05
    context_replaces_query: bool = False
    firing_threshold: float = 0.0
    transfer_threshold: float = 0.0
    arrival_threshold: float = 0.01
    combine: Combine = "sum"
    wavefront: bool = True
    energy_clamp: float = 0.0
    fan_exponent: float = 0.5
    query_gate: bool = True
    max_hop_edges: int = 65_536
    region_zero_counts: bool = False
    tie_break: TieBreak = "cosine"
    fill_nearest: bool = True
    top_k: int = 10
    num_primary: int = 3
    # Credit
    credit_rate: float = 0.1
    reinforce_rate: float = 0.02
    temporal_weight: float = 0.02
    temporal_confidence: float = 0.2
    birth_confidence: float = 0.5
    # Consolidation
    consolidation_epoch_interval: int = 10
    prune_confidence_threshold: float = 0.1
    relevance_decay: float = 0.95
    edge_confidence_decay: float = 0.995
    compact_above_dead_share: float = 0.0
    # Commits
    commit_interval: float = 1.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = _coerced(f.name, str(f.type), getattr(self, f.name))
            object.__setattr__(self, f.name, value)
            low, high = _RANGES.get(f.name, (None, None))
            if (low is not None and value < low) or (high is not None and value > high):
                bound = f"at least {low}" if high is None else f"between {low} and {high}"
                raise InvalidInputError(f"AESGConfig.{f.name} must be {bound}, not {value!r}")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A named set of parameters, some of them overridden.

        "default": recipe L, spreading that finds what plain nearest-neighbour search misses.
        "entities": recipe E, for graphs in which concepts without a vector (people, places, terms) link the others;
            those that a question names are given as `extra_seeds`. The results hold both kinds, hence the larger top_k.
        "aesg-0.3": what the published 0.3.0 computes, faults included.

        Raises:
            InvalidInputError: An unknown preset or parameter.
        """
        if name not in PRESETS:
            raise InvalidInputError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}")
        return cls.from_dict(PRESETS[name] | overrides)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a mapping.

        Raises:
            InvalidInputError: An unknown name or a value out of range.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            known = ", ".join(f.name for f in fields(cls))
            raise InvalidInputError(f"AESGConfig has no parameter {', '.join(unknown)}; known: {known}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """All parameters by name; JSON-able."""
        return asdict(self)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`.

        Raises:
            InvalidInputError: Not a JSON object, an unknown name or a value out of range.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise InvalidInputError(f"AESGConfig.from_json: not JSON: {error}") from error
        if not isinstance(values, dict):
            raise InvalidInputError(f"AESGConfig.from_json: expected an object, found {type(values).__name__}")
        return cls.from_dict(values)

    def to_json(self, indent: int | None = None) -> str:
        """All parameters as a JSON object."""
        return json.dumps(self.to_dict(), indent=indent)

    def replace(self, **overrides: Any) -> Self:
        """A copy with some parameters changed."""
        return replace(self, **overrides)


def _coerced(name: str, kind: str, value: Any) -> Any:
    """`value` as the declared type of the parameter, or InvalidInputError."""
    if kind == "bool":
        if not isinstance(value, bool):
            raise InvalidInputError(f"AESGConfig.{name} must be true or false, not {value!r}")
        return value
    if kind in _CHOICES:
        if value not in _CHOICES[kind]:
            raise InvalidInputError(f"AESGConfig.{name} must be one of {', '.join(_CHOICES[kind])}, not {value!r}")
        return value
    whole = kind == "int"
    if isinstance(value, bool) or not hasattr(value, "__float__" if not whole else "__index__"):
        raise InvalidInputError(f"AESGConfig.{name} must be {'an integer' if whole else 'a number'}, not {value!r}")
    number = int(value) if whole else float(value)
    if not math.isfinite(number):
        raise InvalidInputError(f"AESGConfig.{name} must be finite, not {value!r}")
    return number


_CHOICES: Final = {"SeedEnergy": get_args(SeedEnergy), "Combine": get_args(Combine), "TieBreak": get_args(TieBreak)}

_RANGES: Final[dict[str, tuple[float | None, float | None]]] = {
    "vector_dim": (1, None),
    "max_concepts": (1, None),
    "max_edges_per_node": (1, None),
    "survival_threshold_frequency": (0, None),
    "coactivation_threshold_create": (1, None),
    "merge_similarity_threshold": (0, 1),
    "split_density_threshold": (2, None),
    "novelty_explanation_threshold": (0, 1),
    "novelty_birth_threshold": (1, None),
    "novelty_match_similarity": (0, 1),
    "novelty_patience": (1, None),
    "spreading_activation_steps": (0, 100),
    "spreading_activation_decay": (0, 1),
    "region_facilitation_multiplier": (0, None),
    "num_seeds": (1, None),
    "min_seed_similarity": (-1, 1),
    "seed_temperature": (1e-6, None),
    "context_carry": (0, 1),
    "firing_threshold": (0, None),
    "transfer_threshold": (0, None),
    "arrival_threshold": (0, None),
    "energy_clamp": (0, None),
    "fan_exponent": (0, None),
    "max_hop_edges": (1, None),
    "top_k": (1, None),
    "num_primary": (1, None),
    "credit_rate": (0, 1),
    "reinforce_rate": (0, 1),
    "temporal_weight": (0, None),
    "temporal_confidence": (0, 1),
    "birth_confidence": (0, 1),
    "consolidation_epoch_interval": (0, None),
    "prune_confidence_threshold": (0, 1),
    "relevance_decay": (0, 1),
    "edge_confidence_decay": (0, 1),
    "compact_above_dead_share": (0, 1),
    "commit_interval": (0, None),
}

PRESETS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "entities": {"num_seeds": 10, "spreading_activation_steps": 3, "arrival_threshold": 0.001, "top_k": 200},
    "aesg-0.3": {
        "num_seeds": 2,
        "min_seed_similarity": 0.1,
        "seed_pruned": True,
        "seed_energy": "one",
        "context_carry": 0.0,
        "context_replaces_query": True,
        "firing_threshold": 0.1,
        "transfer_threshold": 0.05,
        "arrival_threshold": 0.0,
        "combine": "max",
        "wavefront": False,
        "fan_exponent": 0.0,
        "query_gate": False,
        "region_zero_counts": True,
        "tie_break": "insertion",
        "fill_nearest": False,
        "novelty_by_lane": True,
        "credit_rate": 0.0,
        "reinforce_rate": 0.0,
        "temporal_weight": 0.0,
        "birth_confidence": 0.0,
        "edge_confidence_decay": 1.0,
        "prune_confidence_threshold": 0.0,
        "consolidation_epoch_interval": 0,
    },
}
