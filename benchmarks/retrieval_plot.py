"""The picture of `retrieval.py`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from retrieval_cases import CASES, Row

COLOURS: Final = {"memmap": "#1b6ca8", "lmdb": "#e07b39", "zarr": "#4c9f70"}


def pyplot() -> Any:
    """matplotlib's, without a screen.

    Raises:
        SystemExit: It is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
    except ImportError as error:
        raise SystemExit("--plot needs matplotlib: pip install 'aesg[plot]'") from error
    return importlib.import_module("matplotlib.pyplot")


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """How far each row is above what is accepted, and how the time of a query grows with the memory."""
    plt = pyplot()
    # The marks are those of full size, at other sizes too: there they only show where one is.
    judged = [row for row in rows if row.scheme in row.case.goals and not row.problem]
    grown = [row for row in rows if row.case.key == "growth" and not row.problem]
    cases = [case for case in CASES if any(row.case is case for row in judged)]
    height = max(3.0, 0.32 * len(cases) + 1.2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, height), width_ratios=(2, 1), layout="constrained")
    figure.suptitle(title, fontsize=9)
    for i, case in enumerate(cases):
        for row in judged:
            if row.case is case:
                goal = case.goals[row.scheme]
                sign = -1 if case.less else 1
                low, middle, high = ((figure / goal.accept) ** sign for figure in (row.low, row.value, row.high))
                colour = COLOURS.get(row.scheme)
                left.plot([low, high], [i, i], color=colour, alpha=0.4, linewidth=3)
                left.plot(middle, i, "o", color=colour)
                left.plot((goal.reach / goal.accept) ** sign, i, "|", color="black", markersize=12)
    names = [f"{case.name}\n{case.against}".strip() for case in cases]
    left.set_yticks(range(len(cases)), names, fontsize=7)
    left.invert_yaxis()
    left.set_xscale("log")
    left.axvline(1, color="firebrick", linewidth=1)
    left.set_xlabel("times as good as accepted (red line); | is to be reached; bar: p10 to p90")
    shown = dict.fromkeys(row.scheme for row in judged)
    left.legend(
        [plt.Line2D([], [], color=COLOURS.get(scheme), marker="o", linestyle="") for scheme in shown],
        list(shown),
        fontsize=8,
    )
    left.set_visible(bool(judged))
    right.set_visible(bool(grown))
    for row in grown:
        sizes = row.notes["sizes"]
        for name, style in (("p50_ms", "o-"), ("p99_ms", "o:")):
            times = [size[name] for size in sizes]
            label = f"{row.scheme}, {name[:3]}"
            right.plot([size["nodes"] for size in sizes], times, style, color=COLOURS.get(row.scheme), label=label)
        right.legend(fontsize=8)
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xlabel("nodes")
    right.set_ylabel("ms a query, eval, one by one")
    right.grid(alpha=0.3)
    left.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)
