"""Loops of spreading activation: over edges, over arrivals, over the components of vectors.

They work on *places*: each node that a query has met gets the next free place in an array that grows with the query,
and a table of open addressing finds a (lane, row)'s place again. Nothing here is as large as the graph.

A place is a record, because whoever looks at one thing about it looks at others; and each array that is handed to a
compiled loop costs as much as a dozen of its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aesg.jit import Loops, records

Array: TypeAlias = npt.NDArray[Any]

CAP: Final = np.float32(1e30)
"""No energy exceeds this, whatever the weights, so that sums of energies stay finite."""
UNKNOWN, WANTED, ALIVE, DEAD = range(4)
"""What is known of a place's node: nothing; nothing, but it has to be read now; that it is active, or pruned."""

PLACE: Final = np.dtype(
    [
        ("row", np.int64),
        ("lane", np.int64),
        ("position", np.int64),  # among the active ones, in the order in which they became active; -1: it is not active
        ("energy", np.float32),
        ("received", np.float32),  # in the last step
        ("bound", np.float32),  # in `fire`: what arrives at most; 0 otherwise
        ("gate", np.float32),
        ("region", np.uint32),
        ("known", np.int8),
    ],
    align=True,
)
TRANSFER: Final = np.dtype(
    [
        ("edge", np.int64),  # its position in the adjacency
        ("origin", np.int64),  # the place from which it comes
        ("to", np.int64),  # the place where it goes
        ("moved", np.float32),  # what it carries …
        ("most", np.float32),  # … within a region
    ],
    align=True,
)
_TINY: Final = np.float32(1e-30)
_HUGE: Final = np.float32(1e30)
"""Squared lengths outside of these are measured again in float64."""
_ZERO: Final = np.float32(0)
_ONE: Final = np.float32(1)
_ROW_HASH: Final = np.int64(-7046029254386353131)  # 2**64 / golden ratio
_LANE_HASH: Final = np.int64(-4417276706812531889)
_PATIENCE: Final = 1 << 14


def place_of(table: Array, rows: Array, lanes: Array, count: int, lane: int, row: int) -> int:
    """The place of a (lane, row); `count`, the next free one, when it is new: it is in the table then.

    Args:
        table: int64 [power of two], place + 1, 0 where free.
        rows: int64, each place's row.
        lanes: int64, each place's lane.
        count: Places taken.
        lane: The lane.
        row: The row.
    """
    mask = len(table) - 1
    slot = ((row * _ROW_HASH + lane * _LANE_HASH) >> 17) & mask
    while True:
        at = table[slot] - 1
        if at < 0:
            table[slot] = count + 1
            lanes[count] = lane
            rows[count] = row
            return count
        if rows[at] == row and lanes[at] == lane:
            return at  # type: ignore[no-any-return]
        slot = (slot + 1) & mask


def seed(given: Array, clamp: Any, table: Array, places: Array, active: Array) -> int:
    """Give places to seeds and sum up their energies; those of no energy are none.

    Args:
        given: `PLACE` [n], the seeds: lane, row and energy, and what is known of them.
        clamp: float32, no energy exceeds it.
        table: See `place_of`; empty.
        places: `PLACE`, with room for all of them.
        active: Out: int64, the active places, in their order.

    Returns:
        Places taken.
    """
    lane, row, more, gate = given["lane"], given["row"], given["energy"], given["gate"]
    region, known = given["region"], given["known"]
    rows, lanes, energy, gates = places["row"], places["lane"], places["energy"], places["gate"]
    regions, knowns, received = places["region"], places["known"], places["received"]
    bound, position = places["bound"], places["position"]
    count = 0
    for i in range(len(row)):
        if more[i] > 0:
            place = place_of(table, rows, lanes, count, lane[i], row[i])
            if place == count:
                count += 1
                energy[place] = min(more[i], CAP)
                gates[place] = gate[i]
                regions[place] = region[i]
                knowns[place] = known[i]
            else:
                energy[place] += min(more[i], CAP)
    for place in range(count):
        energy[place] = min(energy[place], clamp)
        received[place] = energy[place]
        bound[place] = _ZERO
        position[place] = place
        active[place] = place
    return count


def rehash(table: Array, places: Array, count: int) -> None:
    """Fill a new table with the places taken."""
    rows, lanes = places["row"], places["lane"]
    for place in range(count):
        place_of(table, rows, lanes, place, lanes[place], rows[place])


def ready(
    frontier: Array,
    wavefront: bool,
    threshold: Any,
    lanes: int,
    places: Array,
    active: Array,
    actives: int,
    firing: Array,
    passing: Array,
    firing_rows: Array,
) -> int:
    """Which active places fire now, lane by lane and in the order in which they became active.

    Args:
        frontier: int64, positions of the places where something arrived in the last step, in no order.
        wavefront: Only those fire, and pass on what they received; else every active place does, all its energy.
        threshold: float32, less is not passed on; with 0 whatever is more than that is.
        lanes: How many there are.
        places: `PLACE`; `received` is set to 0.
        active: int64, the active places in the order in which they became active.
        actives: How many.
        firing: Out: int64, places.
        passing: Out: float32, the energy that each passes on.
        firing_rows: Out: int64, their rows.

    Returns:
        How many fire.
    """
    rows, lane_of, energy, received = places["row"], places["lane"], places["energy"], places["received"]
    positions = np.sort(frontier) if wavefront else np.arange(actives)
    n = 0
    for i in range(len(positions)):
        place = active[positions[i]]
        passed = received[place] if wavefront else energy[place]
        if passed > _ZERO and passed >= threshold:
            firing[n] = place
            n += 1
    if lanes > 1:
        ends = np.zeros(lanes + 1, np.int64)
        for i in range(n):
            ends[lane_of[firing[i]] + 1] += 1
        for lane in range(lanes):
            ends[lane + 1] += ends[lane]
        found = firing[:n].copy()
        for i in range(n):
            lane = lane_of[found[i]]
            firing[ends[lane]] = found[i]
            ends[lane] += 1
    for i in range(n):
        passing[i] = received[firing[i]] if wavefront else energy[firing[i]]
        firing_rows[i] = rows[firing[i]]
    for i in range(len(frontier)):
        received[active[frontier[i]]] = _ZERO
    return n


def fire(
    firing: Array,
    passing: Array,
    share: Array,
    source: Array,
    indptr: Array,
    target: Array,
    weight: Array,
    confidence: Array,
    fan_exponent: float,
    decay: Any,
    favour: Any,
    region_zero_counts: bool,
    transfer_threshold: Any,
    arrival_threshold: Any,
    table: Array,
    places: Array,
    count: int,
    sent_along: Array,
    wanted: Array,
    cut: Array,
) -> tuple[int, int, int]:
    """Send energy along the edges of every firing place.

    What an edge passes is, in float32 and in this order, `passing / fan * weight * confidence * decay`, where fan is
    (sum of the source's weight * confidence) ** fan_exponent. What stays within a region is multiplied by `favour`;
    the target's region is not known yet, so both products are kept.

    Args:
        firing: int64 [f], places that fire, lane by lane.
        passing: float32 [f], the energy that each passes on.
        share: int64 [f], how many of its edges each may use, the newest.
        source: int64 [f], where each finds its edges: a row of `indptr`.
        indptr: int64, with `target`, `weight` and `confidence` the adjacency of the distinct firing rows.
        target: int64, rows; -1 leads nowhere.
        weight: float32.
        confidence: float32.
        fan_exponent: See `AESGConfig`; the same for the next five.
        decay: float32.
        favour: float32.
        region_zero_counts: Whether region 0 is one.
        transfer_threshold: float32.
        arrival_threshold: float32.
        table: See `place_of`.
        places: `PLACE`, with room for one more for each edge.
        count: Places taken.
        sent_along: Out: `TRANSFER`, one for each edge that passes something.
        wanted: Out: int64, places of which something has to be known now.
        cut: Out: bool [lanes], set where a share was too small.

    Returns:
        Number of transfers, of places taken, and of places wanted.
    """
    rows, lanes, region, known = places["row"], places["lane"], places["region"], places["known"]
    bound, received, position = places["bound"], places["received"], places["position"]
    edge, origin, to = sent_along["edge"], sent_along["origin"], sent_along["to"]
    moved, most = sent_along["moved"], sent_along["most"]
    transfers = 0
    for f in range(len(firing)):
        place = firing[f]
        lane = lanes[place]
        start, stop = indptr[source[f]], indptr[source[f] + 1]
        if stop - start > share[f]:
            stop = start + share[f]
            cut[lane] = True
        sent = passing[f]
        if fan_exponent > 0:
            total = np.float64(0)
            for e in range(start, stop):
                strength = np.float64(weight[e]) * np.float64(confidence[e])
                if strength > 0:
                    total += strength
            if total > 0:
                sent = np.float32(np.float64(sent) / total**fan_exponent)
        sent = min(sent, CAP)
        favourable = favour != _ONE and (region_zero_counts or region[place] != 0)
        for e in range(start, stop):
            if target[e] < 0:
                continue
            # Too much weight makes an infinity, and that times 0 is NaN: it fails every comparison.
            plain = sent * weight[e]
            plain *= confidence[e]
            plain *= decay
            if plain > CAP:
                plain = CAP
            favoured = plain
            if favourable:
                favoured = plain * favour
                if favoured > CAP:
                    favoured = CAP
            upper = max(plain, favoured)
            if not upper > transfer_threshold:
                continue
            there = place_of(table, rows, lanes, count, lane, target[e])
            if there == count:
                known[there] = UNKNOWN
                bound[there] = received[there] = _ZERO
                position[there] = -1
                count += 1
            edge[transfers] = e
            origin[transfers] = place
            to[transfers] = there
            moved[transfers] = plain
            most[transfers] = favoured
            bound[there] += upper
            transfers += 1
    wants = 0
    for t in range(transfers):
        there = to[t]
        # What arrives is at most this, before a gate that is at most 1: no active node is nearer than the best seed.
        if known[there] == UNKNOWN and bound[there] > arrival_threshold:
            known[there] = WANTED
            wanted[wants] = there
            wants += 1
        bound[there] = _ZERO
    return transfers, count, wants


def judge(
    which: Array,
    vector: Array,
    vectors: Array,
    is_active: Array,
    regions: Array,
    directions: Array,
    best: Array,
    gated: bool,
    places: Array,
) -> None:
    """Take note of what was read of places: whether they are active, their region, and their query gate.

    The gate is max(0, cosine of query and node) / the best seed's; 1 where either has no direction.

    Args:
        which: int64 [n], places.
        vector: int64 [n], which of the rows read is each place's.
        vectors: float32 [m, D]; [m, 0] when not gated.
        is_active: uint8 [m].
        regions: uint32 [m].
        directions: float32 [lanes, D], each lane's query at length 1, or 0.
        best: float32 [lanes], each lane's best cosine.
        gated: Whether there is a gate.
        places: `PLACE`; `known`, `region` and `gate` are set.
    """
    lanes, known, region, gate = places["lane"], places["known"], places["region"], places["gate"]
    for i in range(len(which)):
        place, at = which[i], vector[i]
        known[place] = ALIVE if is_active[at] != 0 else DEAD
        region[place] = regions[at]
        gate[place] = _ONE
        if gated:
            lane = lanes[place]
            cosine, directed = cosine_of(vectors[at], directions[lane])
            if directed:
                gate[place] = max(cosine, _ZERO) / best[lane]


def cosine_of(vector: Array, direction: Array) -> tuple[Any, bool]:
    """Cosine of a vector [D] with a direction [D] of length 1 or 0, float32 in [-1, 1]; and whether both have one."""
    # Eight sums at once: one after the other would wait for each other.
    width = len(vector)
    a = b = c = d = _ZERO
    s = t = u = v = _ZERO
    x = y = _ZERO
    whole = width - width % 4
    for i in range(0, whole, 4):
        a += vector[i] * direction[i]
        b += vector[i + 1] * direction[i + 1]
        c += vector[i + 2] * direction[i + 2]
        d += vector[i + 3] * direction[i + 3]
        s += vector[i] * vector[i]
        t += vector[i + 1] * vector[i + 1]
        u += vector[i + 2] * vector[i + 2]
        v += vector[i + 3] * vector[i + 3]
    for i in range(whole, width):
        x += vector[i] * direction[i]
        y += vector[i] * vector[i]
    product = (a + b) + (c + d) + x
    square = (s + t) + (u + v) + y
    asks = False
    for i in range(width):
        if direction[i] != _ZERO:
            asks = True
            break
    if not asks:
        return _ZERO, False
    if square > _TINY and square < _HUGE:
        return max(-_ONE, min(_ONE, product / np.float32(np.sqrt(square)))), True
    wide, far = np.float64(0), np.float64(0)
    for i in range(width):
        wide += np.float64(vector[i]) * np.float64(vector[i])
        far += np.float64(vector[i]) * np.float64(direction[i])
    if not (wide > 0 and wide < np.inf):
        return _ZERO, False
    return np.float32(max(-1.0, min(1.0, far / np.sqrt(wide)))), True


def cosines(vectors: Array, which: Array, directions: Array, towards: Array, out: Array, directed: Array) -> None:
    """Cosines of vectors with directions of length 1; 0 where either has none.

    Args:
        vectors: float32 [m, D].
        which: int64 [n], which of them.
        directions: float32 [B, D].
        towards: int64 [n], which of those each is compared with.
        out: Out: float32 [n].
        directed: Out: bool [n], whether both have a direction.
    """
    for i in range(len(which)):
        cosine, has = cosine_of(vectors[which[i]], directions[towards[i]])
        out[i] = cosine
        directed[i] = has


def rank(
    rows: Array,
    lanes: Array,
    which: Array,
    similarity: Array,
    directed: Array,
    is_active: Array,
    least: Any,
    best_rows: Array,
    best: Array,
    counts: Array,
) -> None:
    """The best candidates of each lane, by similarity, then by row.

    Args:
        rows: int64 [n], candidates, which may repeat.
        lanes: int64 [n], whose each is.
        which: int64 [n], where in `is_active` its row is.
        similarity: float32 [n].
        directed: bool [n], whether that means something.
        is_active: uint8 [m], 0 for a row that is no candidate.
        least: float32, a candidate is more similar than that.
        best_rows: Out: int64 [lanes, k].
        best: Out: float32 [lanes, k], their similarities.
        counts: In, out: int64 [lanes], how many each lane has; zeros.
    """
    k = best.shape[1]
    for i in range(len(rows)):
        if not (similarity[i] > least and directed[i] and is_active[which[i]] != 0):
            continue
        lane, row, near = lanes[i], rows[i], similarity[i]
        count = counts[lane]
        at = count
        while at > 0 and (best[lane, at - 1] < near or (best[lane, at - 1] == near and best_rows[lane, at - 1] > row)):
            at -= 1
        if at == k or (at > 0 and best[lane, at - 1] == near and best_rows[lane, at - 1] == row):
            continue
        stop = min(count + 1, k)
        for to in range(stop - 1, at, -1):
            best[lane, to], best_rows[lane, to] = best[lane, to - 1], best_rows[lane, to - 1]
        best[lane, at], best_rows[lane, at] = near, row
        counts[lane] = stop


def arrive(
    sent_along: Array,
    dominant: Array,
    region_zero_counts: bool,
    transfer_threshold: Any,
    arrival_threshold: Any,
    clamp: Any,
    adds_up: bool,
    places: Array,
    active: Array,
    actives: int,
    reached: Array,
) -> tuple[int, int, int]:
    """Sum up what arrives at each place, pass it through the gate, and let it join what is there.

    Args:
        sent_along: `TRANSFER` [t], what `fire` gave; the ones that arrived are moved to the front.
        dominant: uint32 [lanes], each lane's commonest region, favoured when `region_zero_counts`.
        region_zero_counts: See `AESGConfig`; the same for the next two.
        transfer_threshold: float32.
        arrival_threshold: float32.
        clamp: float32, no energy exceeds it.
        adds_up: Whether arrivals add to the energy that is there, or only exceed it.
        places: `PLACE`; `received` is zero, and then what arrives.
        active: int64, the active places in the order in which they became active.
        actives: How many.
        reached: Out: int64, positions of the places where something arrived, in no order.

    Returns:
        Number of transfers that arrived, of active places, and of places reached.
    """
    edge, origin, to = sent_along["edge"], sent_along["origin"], sent_along["to"]
    moved, most = sent_along["moved"], sent_along["most"]
    lanes, region, known, gate = places["lane"], places["region"], places["known"], places["gate"]
    energy, received, position = places["energy"], places["received"], places["position"]
    touched = 0
    for t in range(len(sent_along)):
        there = to[t]
        if known[there] != ALIVE:
            moved[t] = _ZERO
            continue
        if region_zero_counts:
            favoured = region[there] == dominant[lanes[there]]
        else:
            favoured = region[there] != 0 and region[there] == region[origin[t]]
        carried = most[t] if favoured else moved[t]
        if not carried > transfer_threshold:
            moved[t] = _ZERO
            continue
        moved[t] = carried
        if received[there] == _ZERO:
            reached[touched] = there
            touched += 1
        received[there] += carried
    arrived = 0
    for i in range(touched):
        there = reached[i]
        arriving = min(received[there] * gate[there], clamp)
        if not arriving > arrival_threshold:
            received[there] = _ZERO
            continue
        received[there] = arriving
        if position[there] < 0:
            # New places become active in the order in which they were first reached.
            position[there] = actives
            active[actives] = there
            actives += 1
            energy[there] = arriving
        elif adds_up:
            energy[there] = min(energy[there] + arriving, clamp)
        else:
            energy[there] = min(max(energy[there], arriving), clamp)
        reached[arrived] = position[there]
        arrived += 1
    kept = 0
    for t in range(len(sent_along)):
        # What carried nothing does not count; where nothing arrived nothing was received.
        if moved[t] > _ZERO and received[to[t]] > _ZERO:
            edge[kept] = edge[t]
            origin[kept] = origin[t]
            to[kept] = to[t]
            kept += 1
    return kept, actives, arrived


def choose(
    active: Array,
    ends: Array,
    places: Array,
    top_k: int,
    fills: bool,
    near: Array,
    near_ends: Array,
    place: Array,
    row: Array,
    out_energy: Array,
    out_ends: Array,
) -> None:
    """The active places of each lane that may be among its best, in the order of `active`, and what fills up.

    All that equal the last to be returned stay in play: the caller knows how ties fall.

    Args:
        active: int64, active places, lane by lane.
        ends: int64 [lanes + 1], lane l has `active[ends[l]:ends[l + 1]]`.
        places: `PLACE`.
        top_k: How many are to be returned.
        fills: Whether the nearest rows fill up what is missing.
        near: int64, each lane's nearest rows, best first.
        near_ends: int64 [lanes + 1], as `ends`.
        place: Out: int64, what was chosen; -1 for a row that fills up.
        row: Out: int64, its row.
        out_energy: Out: float32, its energy.
        out_ends: Out: int64 [lanes + 1], as `ends`.
    """
    energy, rows = places["energy"], places["row"]
    n = 0
    out_ends[0] = 0
    for lane in range(len(ends) - 1):
        start, stop = ends[lane], ends[lane + 1]
        least = -np.inf
        if stop - start > top_k:
            values = np.empty(stop - start, np.float32)
            for i in range(start, stop):
                values[i - start] = energy[active[i]]
            least = np.partition(values, len(values) - top_k)[len(values) - top_k]
        first = n
        for i in range(start, stop):
            if energy[active[i]] >= least:
                place[n] = active[i]
                row[n] = rows[active[i]]
                out_energy[n] = energy[active[i]]
                n += 1
        last = n
        if fills and last > first:
            for i in range(near_ends[lane], near_ends[lane + 1]):
                if n - first >= top_k:
                    break
                fresh = True
                for j in range(first, last):
                    if row[j] == near[i]:
                        fresh = False
                        break
                if fresh:
                    place[n] = -1
                    row[n] = near[i]
                    out_energy[n] = _ZERO
                    n += 1
        out_ends[lane + 1] = n


def explain(vectors: Array, energies: Array, query: Array) -> float:
    """Cosine of a query with the mean of unit vectors, weighted by their energies; 0 where one has no direction.

    Args:
        vectors: float32 [n, D].
        energies: float32 [n]; vectors without energy do not count.
        query: float32 [D].
    """
    dim = len(query)
    most = _ZERO
    for i in range(len(vectors)):
        most = max(most, energies[i])
    mean = np.zeros(dim, np.float64)
    for i in range(len(vectors)):
        if energies[i] > 0:
            square = np.float64(0)
            for j in range(dim):
                square += np.float64(vectors[i, j]) * np.float64(vectors[i, j])
            if square > 0 and square < np.inf:
                # Energies may be as large as 1e30: relative to the best they can be multiplied without a thought.
                factor = np.float64(energies[i]) / np.float64(most) / np.sqrt(square)
                for j in range(dim):
                    mean[j] += factor * np.float64(vectors[i, j])
    product, ours, theirs = np.float64(0), np.float64(0), np.float64(0)
    for j in range(dim):
        product += mean[j] * np.float64(query[j])
        ours += mean[j] * mean[j]
        theirs += np.float64(query[j]) * np.float64(query[j])
    if not (ours > 0 and theirs > 0):
        return 0.0
    return product / np.sqrt(ours) / np.sqrt(theirs)  # type: ignore[no-any-return]


def _signatures(types: Any) -> Sequence[Sequence[Any]]:
    i8, f4, f8, yes = types.int64, types.float32, types.float64, types.boolean
    ints, u4s, f4s = i8[::1], types.uint32[::1], f4[::1]
    wide, ints2 = f4[:, ::1], i8[:, ::1]
    places, transfers = records(PLACE), records(TRANSFER)
    adjacency = (ints, ints, f4s, f4s)
    firing = (ints, f4s, ints, ints)
    return (
        (places, f4, ints, places, ints),
        (ints, places, i8),
        (ints, yes, f4, i8, places, ints, i8, ints, f4s, ints),
        (*firing, *adjacency, f8, f4, f4, yes, f4, f4, ints, places, i8, transfers, ints, yes[::1]),
        (ints, ints, wide, types.uint8[::1], u4s, wide, f4s, yes, places),
        (wide, ints, wide, ints, f4s, yes[::1]),
        (ints, ints, ints, f4s, yes[::1], types.uint8[::1], f4, ints2, wide, ints),
        (transfers, u4s, yes, f4, f4, f4, yes, places, ints, i8, ints),
        (ints, ints, places, i8, yes, ints, ints, ints, ints, f4s, ints),
        (wide, f4s, f4s),
    )


LOOPS: Final = Loops(
    "spreading activation",
    (seed, rehash, ready, fire, judge, cosines, rank, arrive, choose, explain),
    (place_of, cosine_of),
    _signatures,
    _PATIENCE,
)
