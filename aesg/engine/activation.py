"""Spreading activation.

All queries of a batch (their *lanes*) travel together: a node that is active in a lane is one number, the key
`lane * number of rows + row`, and a hop is a handful of array operations over keys. Lanes never meet, because their
keys differ, so each gets what it would have got alone.

Active nodes are kept in the order in which they became active. Paths are reported in that order, 0.3.0 breaks ties by
it, and float32 sums depend on it to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.config import AESGConfig
from aesg.engine.seeds import Floats, Nearest, cosines, nearest, read, units
from aesg.protocols import Graph
from aesg.records import Adjacency, Refs, Rows, Vectors, ranges

Ints: TypeAlias = npt.NDArray[np.int64]

CAP: Final = np.float32(1e30)
"""No energy exceeds this, whatever the weights, so that sums of energies stay finite."""
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


@dataclass(frozen=True, slots=True)
class Activation:
    """What one query activated, best first.

    Attributes:
        rows: int64 [K], the result: at most `top_k`.
        energies: float32 [K]; 0 for a row that only fills up.
        cosines: float32 [K], cosine with the query; 0 for a zero vector.
        vectors: float32 [K, D].
        paths: int64 [P, 2], (source row, target row) of each transfer, in the order in which it happened.
        transfers: int64 [T], refs of the edges that carried energy to a returned row, ascending, without repeats.
        nearest: Cosine of the query's best seed, which is active but may have been outranked; 0 where none seeded.
    """

    rows: Rows
    energies: npt.NDArray[np.float32]
    cosines: npt.NDArray[np.float32]
    vectors: Vectors
    paths: npt.NDArray[np.int64]
    transfers: Refs
    nearest: float = 0.0


def activate(
    graph: Graph,
    config: AESGConfig,
    queries: Vectors,
    carried: Sequence[Energies | None],
    extra: Sequence[Energies | None],
) -> list[Activation]:
    """Activate the graph for each query, a lane each: one scan for the seeds, one `out_edges` call per hop for all.

    A zero query activates nothing but its extra seeds and what they reach.

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
    spread = _Spread(graph, config, queries, carried, extra)
    for _ in range(config.spreading_activation_steps):
        if not spread.hop():
            break
    return spread.results()


@dataclass(frozen=True, slots=True)
class _Transfers:
    """Transfers of one hop, lane by lane, each lane's in the order in which they happened.

    Attributes:
        lanes: int64 [n], ascending.
        sources: int64 [n], rows.
        targets: int64 [n], rows.
        refs: int64 [n], edges.
    """

    lanes: Ints
    sources: Rows
    targets: Rows
    refs: Refs

    def only(self, which: npt.NDArray[np.bool_]) -> _Transfers:
        """Some of them."""
        return _Transfers(self.lanes[which], self.sources[which], self.targets[which], self.refs[which])


@dataclass(frozen=True, slots=True)
class _Fired:
    """What is under way in a hop, before it arrives.

    Attributes:
        transfers: The transfers above `transfer_threshold`, [n].
        energy: float32 [n], what each carries.
        keys: int64 [k], the distinct targets by lane, ascending.
        place: int64 [n], which of them each transfer goes to.
    """

    transfers: _Transfers
    energy: Floats
    keys: Ints
    place: Ints


class _Spread:
    """Activation in all lanes of a batch, as it spreads.

    Four arrays describe the active nodes, in the order in which they became active: `_keys`, their `_energy`, what of
    it they `_received` in the last hop (at first: as seeds), and their query `_gate`.
    """

    def __init__(
        self,
        graph: Graph,
        config: AESGConfig,
        queries: Vectors,
        carried: Sequence[Energies | None],
        extra: Sequence[Energies | None],
    ) -> None:
        self._graph = graph
        self._config = config
        self._size = max(1, len(graph.nodes))
        self._hops: list[_Transfers] = []
        self._directions = units(queries)
        self._asking: npt.NDArray[np.bool_] = np.any(self._directions != 0, axis=1)
        contexts = [self._context(c) if asks else _NOTHING for c, asks in zip(carried, self._asking, strict=True)]
        replaced = np.array([config.context_replaces_query and len(c.rows) > 0 for c in contexts], dtype=np.bool_)
        self._dominant = self._dominant_regions(contexts)
        self._nearest = self._candidates(replaced)
        best = np.array([near.cosines[0] if len(near.rows) else 0 for near in self._nearest], np.float32)
        self._best = np.where(best > 0, best, np.float32(1))
        self._asked = ~replaced
        self._seed(contexts, extra)

    # --- seeds

    def _context(self, carried: Energies | None) -> Energies:
        """What of a lane's context is still in the graph and may seed."""
        config = self._config
        if carried is None or not (config.context_replaces_query or config.context_carry > 0):
            return _NOTHING
        stays = (carried.rows >= 0) & (carried.rows < len(self._graph.nodes))
        if not config.seed_pruned:
            stays[stays] = read(self._graph, carried.rows[stays], ["is_active"])["is_active"] != 0
        return Energies(carried.rows[stays], carried.energies[stays])

    def _dominant_regions(self, contexts: list[Energies]) -> npt.NDArray[np.uint32]:
        """Each lane's commonest region, uint32 [B], 0 without a context; ties fall as they do in 0.3.0."""
        dominant = np.zeros(len(contexts), np.uint32)
        if self._config.region_zero_counts:
            for lane, context in enumerate(contexts):
                regions = read(self._graph, context.rows, ["region_id"])["region_id"].tolist()
                dominant[lane] = max(set(regions), key=regions.count, default=0)
        return dominant

    def _candidates(self, replaced: npt.NDArray[np.bool_]) -> list[Nearest]:
        """Each lane's nearest rows: its seeds, and enough more to fill up the result.

        When a result has to be filled, fewer than `top_k` nodes are active, so `top_k` candidates are enough.
        """
        config = self._config
        k = max(config.num_seeds, config.top_k) if config.fill_nearest else config.num_seeds
        needed = ~replaced | config.query_gate | config.fill_nearest
        queries = np.where(needed[:, None], self._directions, np.float32(0))
        return nearest(self._graph, queries, k, config.min_seed_similarity, include_pruned=config.seed_pruned)

    def _seed(self, contexts: list[Energies], extra: Sequence[Energies | None]) -> None:
        """Make the seeds active: the query's or the context in its place, the faded context, the caller's."""
        config = self._config
        seeds: list[tuple[int, Rows, npt.ArrayLike, bool]] = []  # lane, rows, energies, whether the gate applies
        for lane, (near, context, given) in enumerate(zip(self._nearest, contexts, extra, strict=True)):
            if not self._asked[lane]:
                seeds.append((lane, _in_set_order(context.rows), 1.0, False))
            else:
                rows, cosine = near.rows[: config.num_seeds], near.cosines[: config.num_seeds]
                if config.seed_energy == "softmax":
                    best = cosine[:1]  # an empty array where nothing is near
                    seeds.append((lane, rows, np.exp((cosine - best) / np.float32(config.seed_temperature)), False))
                else:
                    seeds.append((lane, _in_set_order(rows) if config.context_replaces_query else rows, 1.0, False))
                seeds.append((lane, context.rows, config.context_carry * context.energies, True))
            if given is not None:
                alive = read(self._graph, given.rows, ["is_active"])["is_active"] != 0
                seeds.append((lane, given.rows[alive], given.energies[alive], False))
        counts = np.array([len(rows) for _, rows, _, _ in seeds], np.int64)
        lanes = np.repeat(np.array([lane for lane, _, _, _ in seeds], np.int64), counts)
        rows = np.concatenate([np.empty(0, np.int64), *(rows for _, rows, _, _ in seeds)])
        energies = [np.broadcast_to(np.asarray(e, np.float32), len(rows)) for _, rows, e, _ in seeds]
        energy = np.concatenate([np.empty(0, np.float32), *energies])
        gate = self._gates(lanes, rows)
        gated = np.repeat(np.array([gated for _, _, _, gated in seeds], np.bool_), counts)
        energy = np.where(gated, energy * gate, energy)
        some = energy > 0
        keys, gate, energy = (lanes * self._size + rows)[some], gate[some], energy[some]

        distinct, first, place = np.unique(keys, return_index=True, return_inverse=True)
        total = np.zeros(len(distinct), np.float32)
        np.add.at(total, place, np.minimum(energy, CAP))
        order = np.argsort(first)
        self._keys = distinct[order]
        self._gate = gate[first[order]]
        self._energy = self._capped(total[order])
        self._received = self._energy

    # --- a hop

    def hop(self) -> bool:
        """Let every node fire that has something to pass on; False when none has."""
        config = self._config
        passing = self._received if config.wavefront else self._energy
        firing = np.flatnonzero((passing > 0) & (passing >= config.firing_threshold))
        if not len(firing):
            return False
        lanes, rows = np.divmod(self._keys[firing], self._size)
        if len(self._directions) > 1:
            by_lane = np.argsort(lanes, kind="stable")
            firing, lanes, rows = firing[by_lane], lanes[by_lane], rows[by_lane]

        self._arrive(self._fire(lanes, rows, passing[firing]))
        return True

    def _fire(self, lanes: Ints, rows: Rows, passing: Floats) -> _Fired:
        """Send energy along every edge of every firing node (lane by lane)."""
        config = self._config
        sources, source = np.unique(rows, return_inverse=True)
        adjacency = self._graph.edges.out_edges(sources)
        counts = adjacency.degrees[source]
        edge = ranges(adjacency.indptr[source], counts)
        fire = np.repeat(np.arange(len(rows)), counts)
        target = adjacency.target_rows[edge]
        # No region, or a multiplier that changes nothing: no reason to read the targets' regions.
        favour = np.float32(min(config.region_facilitation_multiplier, float(CAP)))
        home = self._graph.nodes.read(sources, ["region_id"])["region_id"] if favour != 1 else np.zeros(1, np.uint32)
        regions = favour != 1 and (config.region_zero_counts or bool(home.any()))

        # Too much weight makes an infinity, and that times 0 is NaN: it fails every comparison below.
        with np.errstate(over="ignore", invalid="ignore"):
            sent = (passing / _fan(adjacency, config.fan_exponent)[source]).astype(np.float32)
            moved = np.minimum(sent, CAP)[fire] * adjacency.weight[edge]
            moved *= adjacency.confidence[edge]
            moved *= np.float32(config.spreading_activation_decay)
            moved = np.minimum(moved, CAP)
            most = np.minimum(moved * favour, CAP) if regions else moved
        live = np.flatnonzero((target >= 0) & (np.maximum(moved, most) > config.transfer_threshold))
        edge, fire, target, moved, most = edge[live], fire[live], target[live], moved[live], most[live]
        keys, place = np.unique(lanes[fire] * self._size + target, return_inverse=True)
        known = read(self._graph, keys % self._size, ["is_active", "region_id"] if regions else ["is_active"])
        if regions:
            region = known["region_id"][place]
            if config.region_zero_counts:
                favoured = region == self._dominant[lanes[fire]]
            else:
                favoured = (region == home[source][fire]) & (region != 0)
            moved = np.where(favoured, most, moved)
        live = np.flatnonzero((known["is_active"] != 0)[place] & (moved > config.transfer_threshold))
        edge, fire = edge[live], fire[live]
        return _Fired(
            _Transfers(lanes[fire], rows[fire], target[live], adjacency.refs[edge]), moved[live], keys, place[live]
        )

    def _arrive(self, fired: _Fired) -> None:
        """Sum up what arrives at each target, pass it through the gate, and let it join what is there."""
        config, keys, place = self._config, fired.keys, fired.place
        sums = np.zeros(len(keys), np.float32)
        np.add.at(sums, place, fired.energy)
        index = np.full(len(keys), -1)  # where the target is among the active nodes
        if len(keys):
            at = np.minimum(np.searchsorted(keys, self._keys), len(keys) - 1)
            met = np.flatnonzero(keys[at] == self._keys)
            index[at[met]] = met
        gate = self._arrival_gates(keys, index, sums)
        arriving = self._capped(sums * gate)
        arrived = (sums > 0) & (arriving > config.arrival_threshold)

        energy, received = self._energy.copy(), np.zeros_like(self._energy)
        old = np.flatnonzero(arrived & (index >= 0))
        had = energy[index[old]]
        joined = had + arriving[old] if config.combine == "sum" else np.maximum(had, arriving[old])
        energy[index[old]] = self._capped(joined)
        received[index[old]] = arriving[old]
        # New nodes become active in the order in which they were first reached.
        first = np.full(len(keys), len(place))
        first[place[::-1]] = np.arange(len(place))[::-1]  # of repeated assignments the last one stays
        new = np.flatnonzero(arrived & (index < 0))
        new = new[np.argsort(first[new])]
        self._keys = np.concatenate([self._keys, keys[new]])
        self._energy = np.concatenate([energy, arriving[new]])
        self._received = np.concatenate([received, arriving[new]])
        self._gate = np.concatenate([self._gate, gate[new]])
        self._hops.append(fired.transfers.only(arrived[place]))

    def _arrival_gates(self, keys: Ints, index: Ints, sums: Floats) -> Floats:
        """The query gate of each target, float32 [n]; 1 for new ones that no gate would let in, unread."""
        gate = np.ones(len(keys), np.float32)
        if self._config.query_gate:
            lanes, rows = np.divmod(keys, self._size)
            old = index >= 0
            gate[old] = self._gate[index[old]]
            # No active node is nearer than the best seed, so a gate is at most 1.
            new = np.flatnonzero(~old & (sums > 0) & (sums > self._config.arrival_threshold))
            gate[new] = self._gates(lanes[new], rows[new])
        return gate

    def _gates(self, lanes: Ints, rows: Rows) -> Floats:
        """max(0, cosine) of query and row relative to the best seed's; 1 where either has no direction; float32 [n]."""
        gate = np.ones(len(rows), np.float32)
        if not self._config.query_gate:
            return gate
        order = np.argsort(rows, kind="stable")  # lanes that meet at a row share its reading
        step = max(1, _GATHER // self._graph.vector_dim)
        for start in range(0, len(rows), step):
            some = order[start : start + step]
            vectors = read(self._graph, rows[some], ["vector"])["vector"]
            cosine, directed = cosines(vectors, self._directions[lanes[some]])
            relative = np.maximum(cosine, 0) / self._best[lanes[some]]
            gate[some] = np.where(directed & self._asking[lanes[some]], relative, np.float32(1))
        return gate

    def _capped(self, energy: Floats) -> Floats:
        """Energies within what the configuration, or else float32, allows."""
        clamp = self._config.energy_clamp
        return np.minimum(energy, min(CAP, np.float32(clamp)) if clamp > 0 else CAP)

    # --- results

    def results(self) -> list[Activation]:
        """The best of each lane."""
        lanes = len(self._directions)
        by_lane = np.argsort(self._keys // self._size, kind="stable")
        ends = np.searchsorted(self._keys[by_lane] // self._size, np.arange(lanes + 1))
        chosen = [self._choose(lane, by_lane[ends[lane] : ends[lane + 1]]) for lane in range(lanes)]
        sizes = np.array([len(c.rows) for c in chosen], np.int64)
        rows = np.concatenate([np.empty(0, np.int64), *(c.rows for c in chosen)])
        vectors = read(self._graph, rows, ["vector"])["vector"]
        cosine, _ = cosines(vectors, self._directions[np.repeat(np.arange(lanes), sizes)])
        stops = np.cumsum(sizes)
        return [
            self._result(lane, c, cosine[stop - size : stop], vectors[stop - size : stop])
            for lane, (c, stop, size) in enumerate(zip(chosen, stops.tolist(), sizes.tolist(), strict=True))
        ]

    def _choose(self, lane: int, active: Ints) -> Energies:
        """The active nodes that may be among the best, in the order in which they became active, and what fills up."""
        top_k = self._config.top_k
        energy = self._energy[active]
        if len(active) > top_k:  # all that equal the last to be returned stay in play
            best = np.flatnonzero(energy >= np.partition(energy, len(energy) - top_k)[len(energy) - top_k])
            active, energy = active[best], energy[best]
        rows = self._keys[active] % self._size
        if self._config.fill_nearest and 0 < len(rows) < top_k:
            near = self._nearest[lane].rows
            more = near[~np.isin(near, rows)][: top_k - len(rows)]
            rows = np.concatenate([rows, more])
            energy = np.concatenate([energy, np.zeros(len(more), np.float32)])
        return Energies(rows, energy)

    def _result(self, lane: int, chosen: Energies, cosine: Floats, vectors: Vectors) -> Activation:
        """Order what was chosen and collect how it came about."""
        if self._config.tie_break == "cosine":
            order = np.lexsort((chosen.rows, -cosine, -chosen.energies))[: self._config.top_k]
        else:
            order = np.argsort(-chosen.energies, kind="stable")[: self._config.top_k]
        rows, energy = chosen.rows[order], chosen.energies[order]
        paths, refs = [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
        for hop in self._hops:
            mine = slice(*np.searchsorted(hop.lanes, [lane, lane + 1]))
            paths.append(np.stack([hop.sources[mine], hop.targets[mine]], axis=1))
            refs.append(hop.refs[mine][np.isin(hop.targets[mine], rows)])
        near = self._nearest[lane].cosines
        return Activation(
            rows=rows,
            energies=energy,
            cosines=cosine[order],
            vectors=vectors[order],
            paths=np.concatenate(paths),
            transfers=np.unique(np.concatenate(refs)),
            nearest=float(near[0]) if self._asked[lane] and len(near) else 0.0,
        )


_NOTHING: Final = Energies(np.empty(0, np.int64), np.empty(0, np.float32))


def _in_set_order(rows: Rows) -> Rows:
    """Distinct rows in the order in which CPython iterates a set of them: 0.3.0 keeps its seeds in one."""
    return np.array(list(set(rows.tolist())), np.int64)


def _fan(adjacency: Adjacency, exponent: float) -> npt.NDArray[np.floating]:
    """By what each source's transfers are divided: (sum of weight * confidence of its edges) ** exponent, [n]."""
    fan = np.ones(len(adjacency.indptr) - 1)
    if exponent > 0:
        strength = np.maximum(adjacency.weight.astype(np.float64) * adjacency.confidence, 0)
        some = adjacency.degrees > 0
        sums = np.zeros(len(fan))
        if some.any():
            sums[some] = np.add.reduceat(strength, adjacency.indptr[:-1][some])
        fan[sums > 0] = sums[sums > 0] ** exponent
    return fan
