"""Spreading activation.

All queries of a batch (their *lanes*) travel together: a hop is one `out_edges` call for every row that fires in any
lane, one gather of the rows that are met for the first time, and two loops of `aesg.engine.kernels` over the edges.
Lanes never meet, because a (lane, row) has a place of its own, so each gets what it would have got alone.

Large batches go in teams of lanes, whose loops run on all cores. A team is a generator: it yields what it wants to know
of the graph and is sent the answer, so that the teams' questions can be put to the store as one.

Active nodes are kept in the order in which they became active. Paths are reported in that order, 0.3.0 breaks ties by
it, and float32 sums depend on it to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine import kernels
from aesg.engine.kernels import CAP, LOOPS
from aesg.engine.seeds import Floats, Nearest, read, towards, units
from aesg.engine.teams import EdgesOf, NodesOf, Team, teams_of, together
from aesg.protocols import Graph
from aesg.records import Adjacency, Columns, Ids, Refs, Rows, Vectors, distinct, numbered

Ints: TypeAlias = npt.NDArray[np.int64]
_Hop: TypeAlias = tuple[npt.NDArray[np.void], Refs]
"""Transfers of one hop that arrived (`kernels.TRANSFER`), lane by lane, each lane's in the order in which they
happened; and the refs of the edges of its adjacency."""

_ROOM: Final = 4096
"""Places that a query begins with, and a quarter of that in a batch: most never need more."""
_GATHER: Final = 1 << 20
"""Vector elements that are gathered at once to compute query gates: 4 MiB, whatever the width of a hop."""


@dataclass(frozen=True, slots=True)
class Energies:
    """Rows with an energy each: extra seeds, or what a lane carries over from its previous query.

    Attributes:
        rows: int64 [n].
        energies: float32 [n].
    """

    rows: Rows
    energies: npt.NDArray[np.float32]


class Ways(Protocol):
    """How energy travelled in one lane."""

    @property
    def paths(self) -> npt.NDArray[np.int64]:
        """(source row, target row) of each transfer, in the order in which it happened; int64 [P, 2]."""

    @property
    def transfers(self) -> Refs:
        """The edges that carried energy to a returned row, int64 [T], ascending, without repeats."""


@dataclass(frozen=True, slots=True)
class Travelled:
    """`Ways` that are known."""

    paths: npt.NDArray[np.int64]
    transfers: Refs


@dataclass(frozen=True, slots=True)
class Activation:
    """What one query activated, best first.

    Attributes:
        rows: int64 [K], the result: at most `top_k`.
        energies: float32 [K]; 0 for a row that only fills up.
        cosines: float32 [K], cosine with the query; 0 for a zero vector.
        vectors: float32 [K, D].
        ways: How energy came there.
        nearest: Cosine of the query's best seed, which is active but may have been outranked; 0 where none seeded.
        ids: uint64 [K].
        cut: Whether a hop had more edges than `max_hop_edges`, so that some were not followed.
    """

    rows: Rows
    energies: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    vectors: Vectors
    ways: Ways
    nearest: float = 0.0
    ids: Ids = field(default_factory=lambda: np.empty(0, np.uint64))
    cut: bool = False

    @property
    def paths(self) -> npt.NDArray[np.int64]:
        """See `Ways`."""
        return self.ways.paths

    @property
    def transfers(self) -> Refs:
        """See `Ways`."""
        return self.ways.transfers


def activate(
    graph: Graph,
    config: AESGConfig,
    queries: Vectors,
    carried: Sequence[Energies | None],
    extra: Sequence[Energies | None],
) -> list[Activation]:
    """Activate the graph for each query, a lane each.

    A zero query activates nothing but its extra seeds and what they reach. Large batches are shared out among the
    process's cores.

    Args:
        graph: Where to look; nothing is changed.
        config: See there; what it says of "Spreading activation" is what happens here.
        queries: float32 [B, D].
        carried: Per lane, the rows that its previous query activated most, with energies relative to the best (1.0).
            Where the graph has since lost some of them, the rest counts.
        extra: Per lane, seeds given by the caller, at their energies. Rows that are pruned are passed over.

    Raises:
        NotFoundError: An extra seed that is no row of the graph.
    """
    if not len(queries):
        return []
    directions = units(queries)
    contexts = _contexts(graph, config, directions, carried)
    near = _near(graph, config, directions, contexts)
    size = len(graph.nodes)
    teams = [
        _Spread(size, config, directions[lanes], near[lanes], contexts[lanes], extra[lanes]).run()
        for lanes in teams_of(len(queries))
    ]
    return list(chain.from_iterable(together(graph, teams)))


def _contexts(
    graph: Graph, config: AESGConfig, directions: Vectors, carried: Sequence[Energies | None]
) -> list[Energies]:
    """What of each lane's context is still in the graph; nothing for a zero query.

    Where it seeds in the place of the query, it is only what may seed.
    """
    contexts = [_NOTHING] * len(carried)
    if not (config.context_replaces_query or config.context_carry > 0):
        return contexts
    lanes = [i for i, given in enumerate(carried) if given is not None and directions[i].any()]
    if not lanes:
        return contexts
    given = [carried[i] or _NOTHING for i in lanes]
    rows = np.concatenate([one.rows for one in given])
    stays = (rows >= 0) & (rows < len(graph.nodes))
    if config.context_replaces_query and not config.seed_pruned:
        stays[stays] = read(graph, rows[stays], ["is_active"])["is_active"] != 0
    if stays.all():
        for i, one in zip(lanes, given, strict=True):
            contexts[i] = one
        return contexts
    end = 0
    for i, one in zip(lanes, given, strict=True):
        start, end = end, end + len(one.rows)
        contexts[i] = Energies(one.rows[stays[start:end]], one.energies[stays[start:end]])
    return contexts


def _near(graph: Graph, config: AESGConfig, directions: Vectors, contexts: list[Energies]) -> list[Nearest]:
    """Each lane's nearest rows: its seeds, and enough more to fill up the result.

    When a result has to be filled, fewer than `top_k` nodes are active, so `top_k` candidates are enough.
    """
    k = max(config.num_seeds, config.top_k) if config.fill_nearest else config.num_seeds
    if config.context_replaces_query and not config.query_gate and not config.fill_nearest:
        replaced = np.array([len(context.rows) > 0 for context in contexts], np.bool_)
        directions = np.where(replaced[:, None], np.float32(0), directions)
    return towards(graph, directions, k, config.min_seed_similarity, include_pruned=config.seed_pruned)


class _Places:
    """What is known of each (lane, row) that a query has met.

    Attributes:
        count: Places taken.
        table: Where the place of a (lane, row) is found.
        all: `kernels.PLACE`; a new place's values are set when it is taken.
        active: int64, the active places, in the order in which they became active.
    """

    def __init__(self, room: int) -> None:
        self.count = 0
        self.table = np.zeros(1 << (2 * room - 1).bit_length(), np.int64)
        self.all = np.empty(room, kernels.PLACE)
        self.active = np.empty(room, np.int64)

    def reserve(self, more: int) -> None:
        """See to it that there is room for `more` new places."""
        room = self.count + more
        if room <= len(self.all):
            return
        larger = _Places(max(room, 2 * len(self.all)))
        larger.all[: self.count], larger.active[: self.count] = self.all[: self.count], self.active[: self.count]
        LOOPS.get(kernels.rehash, self.count)(larger.table, larger.all, self.count)
        self.table, self.all, self.active = larger.table, larger.all, larger.active


class _Spread:
    """Activation in all lanes of a team, as it spreads."""

    def __init__(
        self,
        size: int,
        config: AESGConfig,
        directions: Vectors,
        near: list[Nearest],
        contexts: list[Energies],
        extra: Sequence[Energies | None],
    ) -> None:
        self._size = size
        self._config = config
        self._near = near
        self._contexts = contexts
        self._extra = extra
        self._directions = directions
        self._asked = [not (config.context_replaces_query and len(context.rows)) for context in contexts]
        best = np.array([n.cosines[0] if len(n.rows) else 0 for n in near], np.float32)
        self._best = np.where(best > 0, best, np.float32(1))
        self._dominant = np.zeros(len(contexts), np.uint32)
        self._hops: list[_Hop] = []
        self._cut = np.zeros(len(directions), np.bool_)
        clamp = config.energy_clamp
        self._clamp = min(CAP, np.float32(clamp)) if clamp > 0 else CAP
        # A multiplier above the cap would make an infinity of nothing.
        self._favour = np.float32(min(config.region_facilitation_multiplier, float(CAP)))

    def run(self) -> Team[list[Activation]]:
        """From the seeds to the best of each lane."""
        yield from self._find_dominant_regions()
        yield from self._seed()
        for _ in range(self._config.spreading_activation_steps):
            if not (yield from self._hop()):
                break
        return (yield from self._results())

    def _find_dominant_regions(self) -> Team[None]:
        """Each lane's commonest region, 0 without a context; ties fall as they do in 0.3.0."""
        if self._config.region_zero_counts:
            for lane, context in enumerate(self._contexts):
                if len(context.rows):
                    columns, begin = yield NodesOf(context.rows, ("region_id",))
                    regions = columns["region_id"][begin : begin + len(context.rows)].tolist()
                    self._dominant[lane] = max(set(regions), key=regions.count)

    # --- seeds

    def _seed(self) -> Team[None]:
        """Make the seeds active: the query's or the context in its place, the faded context, the caller's."""
        config = self._config
        lanes: list[int] = []
        rows: list[Rows] = []
        energies: list[npt.NDArray[np.floating]] = []
        kinds: list[int] = []

        def add(lane: int, some: Rows, energy: npt.NDArray[np.floating], kind: int) -> None:
            if len(some):
                lanes.append(lane)
                rows.append(some)
                energies.append(energy)
                kinds.append(kind)

        for lane, (near, context, given) in enumerate(zip(self._near, self._contexts, self._extra, strict=True)):
            if self._asked[lane]:
                some, cosine = near.rows[: config.num_seeds], near.cosines[: config.num_seeds]
                if config.seed_energy == "softmax":
                    add(lane, some, np.exp((cosine - cosine[:1]) / np.float32(config.seed_temperature)), _AS_IT_IS)
                else:
                    some = _in_set_order(some) if config.context_replaces_query else some
                    add(lane, some, np.ones(len(some), np.float32), _AS_IT_IS)
                add(lane, context.rows, config.context_carry * context.energies, _GATED)
            else:
                some = _in_set_order(context.rows)
                add(lane, some, np.ones(len(some), np.float32), _AS_IT_IS)
            if given is not None:
                add(lane, given.rows, given.energies, _IF_ACTIVE)

        counts = [len(some) for some in rows]
        total = sum(counts)
        places = self._places = _Places(max(_ROOM, _ROOM // 4 * len(self._near), 2 * total))
        self._actives = 0
        self._frontier = np.empty(0, np.int64)
        if not total:
            return
        seeds = np.empty(total, kernels.PLACE)
        seeds["lane"] = lanes[0] if len(lanes) == 1 else np.repeat(lanes, counts)
        seeds["row"], seeds["energy"] = _joined(rows), _joined(energies)
        yield from self._judge(np.arange(total), seeds)
        if any(kinds):
            kind, energy = np.repeat(kinds, counts), seeds["energy"]
            fades = np.flatnonzero(kind == _GATED)
            energy[fades] *= seeds["gate"][fades]
            if config.seed_pruned:
                kind[kind == _GATED] = _AS_IT_IS
            energy[(kind != _AS_IT_IS) & (seeds["known"] != kernels.ALIVE)] = 0
        loop = LOOPS.get(kernels.seed, total)
        self._actives = places.count = loop(seeds, self._clamp, places.table, places.all, places.active)
        self._frontier = np.arange(self._actives)

    def _judge(self, which: Ints, places: npt.NDArray[np.void]) -> Team[None]:
        """Read about some of the places [n], and take note of it there."""
        gated, rows = self._config.query_gate, places["row"][which]
        fields = ("is_active", "region_id", "vector") if gated else ("is_active", "region_id")
        dim = self._directions.shape[1]
        step = max(1, _GATHER // dim) if gated else len(rows)
        if len(rows) > step:  # lanes that meet at a row share its reading
            order = np.argsort(rows, kind="stable")
            which, rows = which[order], rows[order]
        loop = LOOPS.get(kernels.judge, len(rows) * (dim if gated else 1))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            columns, where = yield from self._read(rows[some], fields)
            vectors = columns["vector"] if gated else _NO_VECTORS
            about = (vectors, columns["is_active"], columns["region_id"])
            loop(which[some], where, *about, self._directions, self._best, gated, places)

    def _read(self, rows: Rows, fields: tuple[str, ...]) -> Team[tuple[Columns, Ints]]:
        """Columns, and where in them each of `rows` [n] is, int64 [n]."""
        if len(self._directions) == 1:  # a lane meets no row twice
            columns, begin = yield NodesOf(rows, fields)
            return columns, np.arange(begin, begin + len(rows))
        wanted, where = numbered(rows)
        columns, begin = yield NodesOf(wanted, fields)
        return columns, where + begin

    # --- a hop

    def _hop(self) -> Team[bool]:
        """Let every node fire that has something to pass on; False when none has."""
        config, places, lanes = self._config, self._places, len(self._directions)
        most = len(self._frontier) if config.wavefront else self._actives
        firing, rows, passing = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)
        n = LOOPS.get(kernels.ready, most)(
            self._frontier,
            config.wavefront,
            np.float32(config.firing_threshold),
            lanes,
            places.all,
            places.active,
            self._actives,
            firing,
            passing,
            rows,
        )
        if n:
            yield from self._fire_and_arrive(firing[:n], rows[:n], passing[:n])
        return bool(n)

    def _fire_and_arrive(self, firing: Ints, rows: Rows, passing: Floats) -> Team[None]:
        config, places = self._config, self._places
        adjacency, source, share = yield from self._edges_of(firing, rows)
        edges = len(adjacency.refs)
        if len(self._directions) > 1:  # lanes that meet at a row share its edges
            edges = int((adjacency.indptr[source + 1] - adjacency.indptr[source]).sum())
        places.reserve(edges)
        transfers, wanted = np.empty(edges, kernels.TRANSFER), np.empty(edges, np.int64)
        thresholds = np.float32(config.transfer_threshold), np.float32(config.arrival_threshold)
        sent, places.count, wants = LOOPS.get(kernels.fire, edges)(
            firing,
            passing,
            share,
            source,
            adjacency.indptr,
            adjacency.target_rows,
            adjacency.weight,
            adjacency.confidence,
            config.fan_exponent,
            np.float32(config.spreading_activation_decay),
            self._favour,
            config.region_zero_counts,
            *thresholds,
            places.table,
            places.all,
            places.count,
            transfers,
            wanted,
            self._cut,
        )
        transfers = transfers[:sent]
        if wants:
            yield from self._judge(wanted[:wants], places.all)
        reached = np.empty(places.count, np.int64)
        arrivals, self._actives, reaches = LOOPS.get(kernels.arrive, sent)(
            transfers,
            self._dominant,
            config.region_zero_counts,
            *thresholds,
            self._clamp,
            config.combine == "sum",
            places.all,
            places.active,
            self._actives,
            reached,
        )
        self._frontier = reached[:reaches]
        self._hops.append((transfers[:arrivals], adjacency.refs))

    def _edges_of(self, firing: Ints, rows: Rows) -> Team[tuple[Adjacency, Ints, Ints]]:
        """The edges of what fires: places, and their rows.

        Returns:
            An adjacency; whose edges in it each of `firing` [n] has; and how many of them it may use, int64 [n].
        """
        budget = self._config.max_hop_edges
        if len(self._directions) == 1:
            share = max(1, budget // len(firing))
            # One more than may be used shows whether that is all.
            found, begin = yield EdgesOf(rows, share + 1)
            return found, np.arange(begin, begin + len(rows)), np.full(len(rows), share)
        lanes = self._places.all["lane"][firing]
        shares = np.maximum(1, budget // np.maximum(1, np.bincount(lanes, minlength=len(self._directions))))[lanes]
        wanted, source = numbered(rows)
        found, begin = yield EdgesOf(wanted, int(shares.max()) + 1)
        return found, source + begin, shares

    # --- results

    def _results(self) -> Team[list[Activation]]:
        """The best of each lane."""
        config, places, lanes = self._config, self._places, len(self._directions)
        place, rows, energy, ends = self._chosen()
        columns, where = yield from self._read(rows, ("id", "vector"))
        lane = np.zeros(len(rows), np.int64) if lanes == 1 else np.repeat(np.arange(lanes), np.diff(ends))
        cosine, directed = np.empty(len(rows), np.float32), np.empty(len(rows), np.bool_)
        loop = LOOPS.get(kernels.cosines, len(rows) * self._directions.shape[1])
        loop(columns["vector"], where, self._directions, lane, cosine, directed)
        keys = (rows, -cosine, -energy) if config.tie_break == "cosine" else (-energy,)
        if lanes == 1:
            order = np.lexsort(keys)[: config.top_k]
            ends = np.array([0, len(order)])
        else:
            order = np.lexsort((*keys, lane))
            order = order[np.arange(len(order)) - ends[lane] < config.top_k]
            ends = np.searchsorted(lane[order], np.arange(lanes + 1))
        ways = _Transfers(places, self._hops, place[order], lanes)
        rows, energy, cosine, where = rows[order], energy[order], cosine[order], where[order]
        ids, vectors = columns["id"][where], columns["vector"][where]
        out = []
        for i in range(lanes):
            mine = slice(ends[i], ends[i + 1])
            near = self._near[i].cosines
            out.append(
                Activation(
                    rows=rows[mine],
                    energies=energy[mine],
                    cosines=cosine[mine],
                    vectors=vectors[mine],
                    ways=_OfLane(ways, i),
                    nearest=float(near[0]) if self._asked[i] and len(near) else 0.0,
                    ids=ids[mine],
                    cut=bool(self._cut[i]),
                )
            )
        return out

    def _chosen(self) -> tuple[Ints, Rows, Floats, Ints]:
        """What may be among the best: places (-1 for what fills up), rows and energies, and where each lane's end."""
        config, places, lanes = self._config, self._places, len(self._directions)
        active = places.active[: self._actives]
        ends, near_ends = np.array([0, len(active)]), np.array([0, len(self._near[0].rows)])
        if lanes > 1:
            lane = places.all["lane"]
            active = active[np.argsort(lane[active], kind="stable")]
            ends = np.searchsorted(lane[active], np.arange(lanes + 1))
            near_ends = np.cumsum([0, *(len(n.rows) for n in self._near)])
        near = np.concatenate([n.rows for n in self._near]) if lanes > 1 else self._near[0].rows
        most = len(active) + lanes * config.top_k
        place, rows, energy = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.float32)
        chosen_ends = np.empty(lanes + 1, np.int64)
        LOOPS.get(kernels.choose, len(active))(
            active,
            ends,
            places.all,
            config.top_k,
            config.fill_nearest,
            near,
            near_ends,
            place,
            rows,
            energy,
            chosen_ends,
        )
        n = int(chosen_ends[-1])
        return place[:n], rows[:n], energy[:n], chosen_ends


class _Transfers:
    """All transfers of a team. Most are never asked for: they are put in order when one is.

    Args:
        places: What was met.
        hops: Who passed energy to whom.
        returned: int64 [n], the places that are returned; -1 for what filled up and has none.
        lanes: How many there are.
    """

    def __init__(self, places: _Places, hops: Sequence[_Hop], returned: Ints, lanes: int) -> None:
        met = places.all[: places.count]
        self._rows, self._lane_of = met["row"].copy(), met["lane"].copy()
        self._hops = hops
        self._returned = returned
        self._lanes = lanes

    @cached_property
    def by_lane(self) -> list[Travelled]:
        """The ways of each lane."""
        origin = np.concatenate([_NO_ROWS, *(transfers["origin"] for transfers, _ in self._hops)])
        to = np.concatenate([_NO_ROWS, *(transfers["to"] for transfers, _ in self._hops)])
        refs = np.concatenate([_NO_ROWS, *(refs[transfers["edge"]] for transfers, refs in self._hops)])
        paths = np.stack([self._rows[origin], self._rows[to]], axis=1)
        returned = np.zeros(len(self._rows) + 1, np.bool_)
        returned[self._returned] = True
        returned[-1] = False
        carried = returned[to]
        if self._lanes == 1:
            return [Travelled(paths, distinct(refs[carried]))]
        lane = self._lane_of[to]
        order = np.argsort(lane, kind="stable")
        bounds = np.arange(self._lanes + 1)
        paths, path_ends = paths[order], np.searchsorted(lane[order], bounds)
        refs, lane = refs[carried], lane[carried]
        order = np.argsort(lane, kind="stable")
        refs, ref_ends = refs[order], np.searchsorted(lane[order], bounds)
        return [
            Travelled(paths[path_ends[i] : path_ends[i + 1]], distinct(refs[ref_ends[i] : ref_ends[i + 1]]))
            for i in range(self._lanes)
        ]


@dataclass(frozen=True, slots=True)
class _OfLane:
    """`Ways` of one lane of a team."""

    team: _Transfers
    lane: int

    @property
    def paths(self) -> npt.NDArray[np.int64]:
        return self.team.by_lane[self.lane].paths

    @property
    def transfers(self) -> Refs:
        return self.team.by_lane[self.lane].transfers


_AS_IT_IS, _GATED, _IF_ACTIVE = range(3)
_NO_ROWS: Final[Rows] = np.empty(0, np.int64)
_NO_VECTORS: Final[Vectors] = np.empty((0, 0), np.float32)
_NOTHING: Final = Energies(_NO_ROWS, np.empty(0, np.float32))


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _in_set_order(rows: Rows) -> Rows:
    """Distinct rows in the order in which CPython iterates a set of them: 0.3.0 keeps its seeds in one."""
    return np.array(list(set(rows.tolist())), np.int64)
