"""A picture of the evolution log: how many nodes live, and how often what happened, over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from aesg.backends.files import os_errors
from aesg.errors import InvalidInputError, UnsupportedError
from aesg.protocols import EventLog
from aesg.records import EventType

if TYPE_CHECKING:
    from aesg.cli.commands.log import Filter

BINS: Final = 160
SUFFIXES: Final = (".png", ".svg", ".pdf")
_COLOURS: Final = {
    EventType.CREATE: "#2a9d5c",
    EventType.MERGE: "#1f8fb3",
    EventType.SPLIT: "#3d5fc4",
    EventType.PRUNE: "#d1495b",
    EventType.CONSOLIDATE: "#8a4fb8",
    EventType.RESTRUCTURE: "#c98a1b",
}
_LIVING: Final = {EventType.CREATE: 1, EventType.SPLIT: 1, EventType.MERGE: -1, EventType.PRUNE: -1}
"""By how many nodes an event changes the number of those that live."""


def draw(events: EventLog, wanted: Filter, path: Path, title: str) -> dict[str, Any]:
    """Draw the wanted events into a file.

    Args:
        events: The log; it is read twice, a chunk at a time.
        wanted: Which events.
        path: The picture; its suffix is one of `SUFFIXES`.
        title: What is written above.

    Returns:
        Where it is, how many events it shows, and how many of each type; JSON-able.

    Raises:
        InvalidInputError: Another suffix, or nothing to draw.
        UnsupportedError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInputError(f"a picture ends with {', '.join(SUFFIXES)}, not {path.name!r}")
    edges, counts = histogram(events, wanted)
    shown = [type for type in EventType if counts[type].any()]
    if not shown:
        raise InvalidInputError(f"{title}: there are no such events to draw")
    try:
        import matplotlib.dates
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnsupportedError(f'--plot needs matplotlib: pip install "aesg[plot]" ({error})') from error

    living = sum(counts[type].astype(np.int64) * change for type, change in _LIVING.items())
    panels = int(bool(np.any(living)) and not wanted.types)
    figure = Figure(figsize=(10, 1.2 + 2.2 * panels + 1.05 * len(shown)), layout="constrained")
    axes: Any = figure.subplots(
        panels + len(shown), 1, sharex=True, squeeze=False, height_ratios=[2.0] * panels + [1.0] * len(shown)
    )[:, 0]
    times = np.array(edges * 1e6, "datetime64[us]")
    if panels:
        axes[0].stairs(np.cumsum(living), times, baseline=0, fill=True, color="#33415c", alpha=0.18)
        axes[0].stairs(np.cumsum(living), times, baseline=None, color="#33415c", linewidth=1.4)
        axes[0].set_ylabel("change in\nliving nodes", rotation=0, ha="right", va="center", labelpad=12)
    for axis, type in zip(axes[panels:], shown, strict=True):
        axis.stairs(counts[type], times, fill=True, color=_COLOURS[type])
        total = int(counts[type].sum())
        axis.set_ylabel(f"{type.name.lower()}\n{total:,}", rotation=0, ha="right", va="center", labelpad=12)
        axis.set_ylim(bottom=0)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.25)
        axis.yaxis.set_major_locator(_whole_numbers())
        axis.yaxis.set_major_formatter("{x:,.0f}")
    dates: Any = matplotlib.dates  # its stubs leave these untyped
    figure.align_ylabels(axes)
    locator = dates.AutoDateLocator()
    axes[-1].xaxis.set_major_locator(locator)
    axes[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
    axes[-1].set_xlabel(f"UTC; a step is {_duration(float(edges[1] - edges[0]))}")
    axes[0].set_title(title, loc="left", fontsize=10)
    with os_errors("writing", path):
        figure.savefig(path, dpi=130)
    per_type = {type.name: int(counts[type].sum()) for type in shown}
    return {"plot": str(path), "events": sum(per_type.values()), "types": per_type}


def histogram(
    events: EventLog, wanted: Filter
) -> tuple[npt.NDArray[np.float64], dict[EventType, npt.NDArray[np.int64]]]:
    """How many events of each type there are in each of `BINS` equal spans of time.

    Returns:
        The ends of the spans in Unix seconds, float64 [BINS + 1]; and for each type int64 [BINS].
    """
    from aesg.cli.commands.log import matching

    first, last = np.inf, -np.inf
    for chunk in matching(events, wanted):
        first, last = min(first, float(chunk["timestamp"].min())), max(last, float(chunk["timestamp"].max()))
    counts = {type: np.zeros(BINS, np.int64) for type in EventType}
    if first > last:
        return np.linspace(0, 1, BINS + 1), counts
    edges = np.linspace(first, max(last, first) + 1, BINS + 1)
    for chunk in matching(events, wanted):
        for type in EventType:
            times = chunk["timestamp"][chunk["type"] == type].astype(np.float64)
            counts[type] += np.histogram(times, edges)[0]
    return edges, counts


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(3, integer=True)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
