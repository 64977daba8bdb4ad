"""Spreading activation on a mirror: what `aesg.engine.activation` does, for many lanes at once, in torch.

An active node of a lane is one integer, its *key*: lane * N + row. Keys are kept in ascending order, so lanes never
meet, a node is found by bisection, and nothing is as large as lanes * N. Sums are made in float64 and rounded once:
whatever order a device adds in, the result is hardly ever another, and never under
`torch.use_deterministic_algorithms(True)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from aesg.config import AESGConfig
from aesg.engine.activation import Energies
from aesg.engine.kernels import CAP
from aesg.errors import NotFoundError
from aesg.memory.mirror import WORK_BYTES, Mirror
from aesg.memory.mirror_seeds import directions_of, nearest, width
from aesg.records import Ids, Rows, Vectors

_MOST_LANES: Final = 1024
_EDGE_BYTES: Final = 96
"""What a hop holds at most for one edge that it follows."""
_SHARES: Final = 16
"""No array has more float32 elements than the bytes to work in divided by this: four such arrays fill them."""
_CAP: Final = float(CAP)


class Paths:
    """Transfers of energy; they stay on the device until somebody asks for them.

    Args:
        parts: Of each part of the batch: its number of lanes, and of each of its hops the key where energy came to
            (int64 [n]) and the row from which it came (int64 [n]).
        count: N.
    """

    def __init__(self, parts: list[tuple[int, list[tuple[Tensor, Tensor]]]], count: int) -> None:
        self._parts = parts
        self._count = count
        self._lanes: list[npt.NDArray[np.int64]] | None = None

    def __getitem__(self, lane: int) -> Path:
        return Path(self, lane)

    def of_lane(self, lane: int) -> npt.NDArray[np.int64]:
        """(source row, target row) of each transfer, hop by hop, those of a hop by source row; int64 [P, 2]."""
        # In this order no lock is needed: who finds the parts gone finds what was made of them.
        parts, found = self._parts, self._lanes
        if found is None:
            self._lanes = found = [some for lanes, hops in parts for some in self._split(lanes, hops)]
            self._parts = []
        return found[lane]

    def _split(self, lanes: int, hops: list[tuple[Tensor, Tensor]]) -> list[npt.NDArray[np.int64]]:
        if not hops:
            return [np.empty((0, 2), np.int64)] * lanes
        keys, origins = (torch.cat(some) for some in zip(*hops, strict=True))
        lane, order = (keys // self._count).sort(stable=True)
        pairs = torch.stack([origins, keys % self._count], dim=1)[order].cpu().numpy()
        ends = torch.searchsorted(lane, torch.arange(lanes + 1, device=lane.device)).tolist()
        return [pairs[start:stop] for start, stop in pairwise(ends)]


@dataclass(frozen=True, slots=True)
class Path:
    """One lane's transfers."""

    paths: Paths
    lane: int

    def tolist(self) -> list[list[int]]:
        """[source row, target row] of each."""
        return self.paths.of_lane(self.lane).tolist()  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Reflection:
    """What the B queries of a batch activated, lane after lane, each lane's best first: K rows in all.

    The fields are those of the engine's `Activation`, but for its `transfers`, which only learning needs.

    Attributes:
        rows: int64 [K].
        ids: uint64 [K].
        ends: int64 [B + 1]; lane l has `ends[l]:ends[l + 1]`.
        energies: float32 [K].
        weights: float32 Tensor [K], the same on the device.
        cosines: float32 Tensor [K].
        vectors: float32 Tensor [K, D].
        nearest: float32 [B].
        explanation: float32 [B], how well each query is explained, as by the engine's `explanation_score`.
        cut: bool [B].
        paths: Per lane.
    """

    rows: Rows
    ids: Ids
    ends: npt.NDArray[np.int64]
    energies: npt.NDArray[np.float32]
    weights: Tensor
    cosines: Tensor
    vectors: Tensor
    nearest: npt.NDArray[np.float32]
    explanation: npt.NDArray[np.float32]
    cut: npt.NDArray[np.bool_]
    paths: Paths


def activate(
    mirror: Mirror,
    config: AESGConfig,
    queries: Vectors,
    carried: Sequence[Energies | None],
    extra: Sequence[Energies | None],
) -> Reflection:
    """Activate a mirrored graph for each query, a lane each; see the engine's `activate`.

    Args:
        mirror: Where to look.
        config: One that `mirror.supports` accepts.
        queries: float32 [B, D].
        carried: Per lane, the rows that its previous query activated most; see there.
        extra: Per lane, seeds given by the caller; see there.

    Raises:
        NotFoundError: An extra seed that is no row of the graph.
    """
    for given in extra:
        if given is not None and len(given.rows) and not 0 <= given.rows.min() <= given.rows.max() < mirror.count:
            raise NotFoundError(f"extra seeds: rows are 0 to {mirror.count - 1}")
    device = mirror.device
    elements = WORK_BYTES[device.type] // _SHARES
    dim = mirror.vectors.shape[1]
    wide = max(1, width(mirror, max(config.num_seeds, config.top_k)))
    step = min(_MOST_LANES, max(1, elements // (wide * dim)))
    parts = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for start in range(0, max(1, len(queries)), step):
            lanes = slice(start, start + step)
            spread = _Spread(mirror, config, queries[lanes], carried[lanes], extra[lanes], elements)
            for _ in range(config.spreading_activation_steps):
                if not spread.hop():
                    break
            parts.append(spread.result())
        rows = torch.cat([part.rows for part in parts])
        weights = torch.cat([part.energies for part in parts])
        counts = torch.cat([part.counts for part in parts]).cpu().numpy()
        return Reflection(
            rows=rows.cpu().numpy(),
            ids=mirror.ids[rows].cpu().numpy().view(np.uint64),
            ends=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            energies=weights.cpu().numpy(),
            weights=weights,
            cosines=torch.cat([part.cosines for part in parts]),
            vectors=mirror.stored(rows),
            nearest=torch.cat([part.nearest for part in parts]).cpu().numpy(),
            explanation=torch.cat([part.explanation for part in parts]).cpu().numpy(),
            cut=torch.cat([part.cut for part in parts]).cpu().numpy(),
            paths=Paths([(len(part.counts), part.hops) for part in parts], mirror.count),
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """What some lanes of a batch activated; see `Reflection`. `counts` says how much is each lane's, int64 [L]."""

    rows: Tensor
    energies: Tensor
    cosines: Tensor
    counts: Tensor
    nearest: Tensor
    explanation: Tensor
    cut: Tensor
    hops: list[tuple[Tensor, Tensor]]


class _Spread:
    """Activation in some lanes of a batch, as it spreads.

    `keys` and `energy` are what is active; `frontier` and `received` what received energy in the last hop.
    """

    def __init__(
        self,
        mirror: Mirror,
        config: AESGConfig,
        queries: Vectors,
        carried: Sequence[Energies | None],
        extra: Sequence[Energies | None],
        elements: int,
    ) -> None:
        self._mirror = mirror
        self._config = config
        self._elements = elements
        self._lanes = len(queries)
        self._count = max(1, mirror.count)
        self._device = mirror.device
        self._clamp = min(_CAP, config.energy_clamp) if config.energy_clamp > 0 else _CAP
        self._directions = directions_of(torch.tensor(queries).to(self._device))
        self._asks = self._directions.any(dim=1)
        self._near = nearest(
            mirror,
            self._directions,
            max(config.num_seeds, config.top_k) if config.fill_nearest else config.num_seeds,
            config.min_seed_similarity,
            include_pruned=config.seed_pruned,
            elements=elements,
        )
        there = torch.isfinite(self._near.cosines)
        self._fits = there
        self._nearest = torch.zeros(self._lanes, device=self._device)
        if there.shape[1]:
            self._nearest = torch.where(there[:, 0], self._near.cosines[:, 0], 0.0)
        self._best = torch.where(self._nearest > 0, self._nearest, 1.0)
        self._cut = torch.zeros(self._lanes, dtype=torch.bool, device=self._device)
        self._hops: list[tuple[Tensor, Tensor]] = []
        self.keys, self.energy = self._seeds(carried, extra)
        self.frontier, self.received = self.keys, self.energy

    # --- seeds

    def _seeds(self, carried: Sequence[Energies | None], extra: Sequence[Energies | None]) -> tuple[Tensor, Tensor]:
        """What the query, the faded context and the caller make active: keys and energies."""
        config, mirror = self._config, self._mirror
        some, cosines = (part[:, : config.num_seeds] for part in (self._near.rows, self._near.cosines))
        fits = self._fits[:, : config.num_seeds]
        if config.seed_energy == "softmax":
            energy = torch.exp((cosines - cosines[:, :1]) / config.seed_temperature)[fits]
        else:
            energy = torch.ones_like(cosines)[fits]
        lanes = torch.arange(self._lanes, device=self._device)[:, None].expand(fits.shape)
        keys, energies = [(lanes * self._count + some)[fits]], [energy]
        if config.context_carry > 0:
            lane, rows, energy = self._upload(carried)
            stays = self._asks[lane]
            if not config.seed_pruned:
                stays &= mirror.is_active[rows]
            lane, rows = lane[stays], rows[stays]
            keys.append(lane * self._count + rows)
            energies.append(config.context_carry * energy[stays] * self._gate(lane, rows))
        lane, rows, energy = self._upload(extra)
        alive = mirror.is_active[rows]
        keys.append((lane * self._count + rows)[alive])
        energies.append(energy[alive])
        key, energy = torch.cat(keys), torch.cat(energies)
        some = energy > 0
        there, sums = self._sums(key[some], energy[some].clamp(max=_CAP))[:2]
        return there, sums.clamp_(max=self._clamp)

    def _upload(self, given: Sequence[Energies | None]) -> tuple[Tensor, Tensor, Tensor]:
        """Lanes, rows and energies of what is given per lane, without rows that are not in the graph."""
        none = Energies(np.empty(0, np.int64), np.empty(0, np.float32))
        each = [none if one is None else one for one in given]
        lanes = np.repeat(np.arange(len(each)), [len(one.rows) for one in each])
        rows = np.concatenate([none.rows, *(one.rows for one in each)])
        energies = np.concatenate([none.energies, *(one.energies for one in each)])
        inside = (rows >= 0) & (rows < self._mirror.count)
        lane, row, energy = (torch.from_numpy(part[inside]).to(self._device) for part in (lanes, rows, energies))
        return lane, row, energy

    # --- a hop

    def hop(self) -> bool:
        """Let every node fire that has something to pass on; False when none has."""
        config = self._config
        keys, passing = (self.frontier, self.received) if config.wavefront else (self.keys, self.energy)
        fires = passing >= config.firing_threshold if config.firing_threshold > 0 else passing > 0
        keys, passing = keys[fires], passing[fires]
        if not len(keys):
            return False
        lanes, rows = keys // self._count, keys % self._count
        first = self._mirror.crow[rows]
        degrees = self._mirror.crow[rows + 1] - first
        firing = torch.bincount(lanes, minlength=self._lanes).clamp_(min=1)
        share = (min(config.max_hop_edges, 1 << 62) // firing).clamp_(min=1)[lanes]
        self._cut[lanes[degrees > share]] = True
        uses = torch.minimum(degrees, share)
        arrived = [
            self._fire(lanes[some], rows[some], passing[some], first[some], uses[some], total)
            for some, total in self._groups(lanes, uses)
        ]
        self.frontier, self.received = (torch.cat(some) for some in zip(*arrived, strict=True))
        self._join(self.frontier, self.received)
        return True

    def _groups(self, lanes: Tensor, uses: Tensor) -> list[tuple[slice, int]]:
        """Cut what fires, which is in order of lanes, between lanes, so that no group follows too many edges.

        Returns:
            Slices of what fires, and how many edges each follows.
        """
        most = self._elements * _SHARES // _EDGE_BYTES
        total = int(uses.sum())
        if total <= most:
            return [(slice(0, len(uses)), total)]
        edges = torch.zeros(self._lanes, dtype=torch.int64, device=self._device).index_add_(0, lanes, uses).tolist()
        ends = torch.bincount(lanes, minlength=self._lanes).cumsum(0).tolist()
        groups: list[tuple[slice, int]] = []
        start, held, end = 0, 0, 0
        for more, stop in zip(edges, ends, strict=True):
            if held and held + more > most:
                groups.append((slice(start, end), held))
                start, held = end, 0
            held, end = held + more, stop
        return [*groups, (slice(start, end), held)]

    def _fire(
        self, lanes: Tensor, rows: Tensor, passing: Tensor, first: Tensor, uses: Tensor, total: int
    ) -> tuple[Tensor, Tensor]:
        """Send energy along edges, sum up what arrives at each node, and pass it through the gate.

        Args:
            lanes: int64 [f], of what fires.
            rows: int64 [f].
            passing: float32 [f], the energy that each passes on.
            first: int64 [f], where each one's edges begin.
            uses: int64 [f], how many of them it follows.
            total: The sum of that.

        Returns:
            Keys, ascending, of where energy arrived, and how much: int64 [n], float32 [n].
        """
        config, mirror = self._config, self._mirror
        device = self._device
        origin = torch.repeat_interleave(torch.arange(len(rows), device=device), uses, output_size=total)
        edge = (first - (uses.cumsum(0) - uses))[origin] + torch.arange(total, device=device)
        strength = mirror.strength[edge]
        sent = passing
        if config.fan_exponent > 0:
            sums = torch.zeros(len(rows), dtype=torch.float64, device=device)
            sums.index_add_(0, origin, torch.where(strength > 0, strength, 0.0).double())
            sent = torch.where(sums > 0, (passing.double() / sums**config.fan_exponent).float(), passing)
        sent = sent.clamp(max=_CAP)
        # Too much weight makes an infinity, and a weight that is not a number fails every comparison.
        moved = (sent[origin] * strength * config.spreading_activation_decay).clamp_(max=_CAP)
        if mirror.home is not None and config.region_facilitation_multiplier != 1:
            favour = min(config.region_facilitation_multiplier, _CAP)
            moved = torch.where(mirror.home[edge], (moved * favour).clamp_(max=_CAP), moved)
        to = mirror.col[edge]
        carries = (moved > config.transfer_threshold) & (to >= 0)
        origin, moved = origin[carries], moved[carries]
        there, sums, inverse = self._sums(lanes[origin] * self._count + to[carries], moved)
        # A gate is at most 1, since no active node is nearer than the best seed.
        likely = torch.nonzero(sums > config.arrival_threshold)[:, 0]
        lane, row = there[likely] // self._count, there[likely] % self._count
        arriving = torch.zeros_like(sums)
        arriving[likely] = (sums[likely] * self._gate(lane, row)).clamp_(max=self._clamp)
        arrives = arriving > config.arrival_threshold
        arrived = arrives[inverse]
        self._hops.append((there[inverse[arrived]], rows[origin[arrived]]))
        return there[arrives], arriving[arrives]

    def _join(self, keys: Tensor, energy: Tensor) -> None:
        """Let what arrived join what is active."""
        if not len(keys):
            return
        at = torch.searchsorted(self.keys, keys).clamp_(max=max(0, len(self.keys) - 1))
        known = self.keys[at] == keys
        at, more, had = at[known], energy[known], self.energy[at[known]]
        joined = had + more if self._config.combine == "sum" else torch.maximum(had, more)
        grown = self.energy.clone()
        grown[at] = joined.clamp_(max=self._clamp)
        self.keys, order = torch.cat([self.keys, keys[~known]]).sort()
        self.energy = torch.cat([grown, energy[~known]])[order]

    def _sums(self, keys: Tensor, energy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distinct keys, ascending; the sum of each one's energies, float32; and which of them each key is."""
        there, inverse = torch.unique(keys, return_inverse=True)
        sums = torch.zeros(len(there), dtype=torch.float64, device=self._device)
        return there, sums.index_add_(0, inverse, energy.double()).float(), inverse

    # --- cosines

    def _gate(self, lanes: Tensor, rows: Tensor) -> Tensor:
        """The query gate of rows, float32 [n]; 1 where query or vector has no direction."""
        if not self._config.query_gate:
            return torch.ones(len(rows), device=self._device)
        directed = self._asks[lanes] & (self._mirror.reciprocal[rows] > 0)
        return torch.where(directed, self._cosines(lanes, rows).clamp_(min=0) / self._best[lanes], 1.0)

    def _cosines(self, lanes: Tensor, rows: Tensor) -> Tensor:
        """Cosines of rows with their lanes' queries, float32 [n]; 0 where either has no direction."""
        mirror = self._mirror
        out = torch.empty(len(rows), device=self._device)
        step = max(1, self._elements // mirror.vectors.shape[1])
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            out[some] = (
                mirror.vectors.index_select(0, rows[some])
                .mul_(self._directions.index_select(0, lanes[some]))
                .sum(dim=1)
            )
        return (out * mirror.reciprocal[rows]).clamp_(-1, 1)

    # --- results

    def result(self) -> _Part:
        """The best of each lane."""
        lanes, rows, energies, cosines = self._chosen()
        counts = torch.bincount(lanes, minlength=self._lanes)
        if self._config.fill_nearest:
            places, more = self._fill(counts)
            lanes, order = torch.cat([lanes, places[:, 0]]).sort(stable=True)
            rows = torch.cat([rows, self._near.rows[places[:, 0], places[:, 1]]])[order]
            energies = torch.cat([energies, torch.zeros(len(places), device=self._device)])[order]
            cosines = torch.cat([cosines, self._near.cosines[places[:, 0], places[:, 1]]])[order]
            counts = counts + more
        explanation = self._explained(lanes, rows, energies, cosines)
        return _Part(rows, energies, cosines, counts, self._nearest, explanation, self._cut, self._hops)

    def _chosen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each lane's `top_k` active rows, best first: lanes, rows, energies, cosines."""
        top_k = self._config.top_k
        # Energies are positive: their bits are ordered as they are.
        lanes, bits = self.keys // self._count, self.energy.view(torch.int32).long()
        by_energy, order = ((lanes << 32) | (0x7FFFFFFF - bits)).sort()
        least = torch.zeros(self._lanes, dtype=torch.int64, device=self._device)
        last = order[self._ranks(by_energy >> 32) == top_k - 1]
        least[lanes[last]] = bits[last]
        # All that equal the last to be returned stay in play until their cosines are known.
        some = bits >= least[lanes]
        lanes, bits, rows, energies = lanes[some], bits[some], self.keys[some] % self._count, self.energy[some]
        cosines = self._cosines(lanes, rows)
        order = cosines.sort(descending=True, stable=True).indices
        order = order[((lanes << 32) | (0x7FFFFFFF - bits))[order].sort(stable=True).indices]
        order = order[self._ranks(lanes[order]) < top_k]
        return lanes[order], rows[order], energies[order], cosines[order]

    def _ranks(self, lanes: Tensor) -> Tensor:
        """The place of each within its lane; int64 [n], lanes ascending."""
        counts = torch.bincount(lanes, minlength=self._lanes)
        return torch.arange(len(lanes), device=self._device) - (counts.cumsum(0) - counts)[lanes]

    def _fill(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest rows that fill up what is missing: (lane, place) in `_near`, [n, 2]; and how many, [L]."""
        near = self._near.rows
        lanes = torch.arange(self._lanes, device=self._device)[:, None]
        keys = lanes * self._count + near
        fresh = self._fits
        if len(self.keys):
            at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
            fresh = fresh & (self.keys[at] != keys)
        fills = fresh & (fresh.cumsum(1) <= (self._config.top_k - counts)[:, None])
        return torch.nonzero(fills), fills.sum(dim=1)

    def _explained(self, lanes: Tensor, rows: Tensor, energies: Tensor, cosines: Tensor) -> Tensor:
        """How well what is returned explains each query, float32 [L]; see the engine's `explanation_score`."""
        active = energies > 0
        lanes, rows, energies, cosines = lanes[active], rows[active], energies[active], cosines[active]
        best = torch.zeros(self._lanes, device=self._device).scatter_reduce_(0, lanes, energies, "amax")
        highest = torch.zeros(self._lanes, device=self._device).scatter_reduce_(0, lanes, cosines, "amax")
        means = torch.zeros(self._directions.shape, dtype=torch.float64, device=self._device)
        step = max(1, self._elements // (2 * self._directions.shape[1]))
        for start in range(0, len(rows), step):
            some = slice(start, start + step)
            at, lane = rows[some], lanes[some]
            shares = energies[some].double() / best[lane].double()
            units = self._mirror.vectors.index_select(0, at).mul_(self._mirror.reciprocal[at, None])
            means.index_add_(0, lane, units.double() * shares[:, None])
        between = (directions_of(means) * self._directions).sum(dim=1)
        score = torch.maximum(torch.maximum(highest, between), self._nearest).clamp_(0, 1)
        return torch.where(self._asks & (best > 0), score, 0.0)
