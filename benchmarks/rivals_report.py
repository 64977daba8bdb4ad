"""What `rivals.py` found, as a table, as a page of the docs, and as a picture. It only needs the figures it wrote."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from report import describe, short
from retrieval_plot import COLOURS, pyplot
from rich.table import Table

OTHERS: Final = "#9aa3ad"
"""The colour of what is not ours."""
MARKS: Final = ("<!-- figures -->", "<!-- end of figures -->")


@dataclass(frozen=True)
class Column:
    """One figure of each system; less is better everywhere.

    Attributes:
        title: For people.
        key: Its name among the figures.
        unit: Of the figure as shown.
        scale: What it is multiplied by for that.
        quantile: Which of the turns; the median unless it says another.
    """

    title: str
    key: str
    unit: str
    scale: float = 1.0
    quantile: float = 0.5

    def of(self, system: dict[str, Any]) -> float | None:
        """The figure; None where there is none."""
        found = system["figures"].get(self.key)
        return float(np.quantile(found, self.quantile)) * self.scale if found else None


COLUMNS: Final = (
    Column("make it", "create", "s"),
    Column("reopen and ask", "reopen", "ms", 1e3),
    Column("ask, p50", "ask", "ms", 1e3),
    Column("ask, p99", "ask", "ms", 1e3, 0.99),
    Column("learn", "learn", "ms", 1e3),
    Column("reinforce", "reinforce", "ms", 1e3),
    Column("consolidate", "consolidate", "s"),
    Column("ask after it", "after", "ms", 1e3),
    Column("disk", "disk_mb", "MB"),
    Column("disk after", "disk_after_mb", "MB"),
    Column("memory, making", "create_mb", "MB"),
    Column("memory, asking", "asked_mb", "MB"),
)


def cells(system: dict[str, Any]) -> list[str]:
    """A row: the figures, recall before and after, and whether the answers were right."""
    out = []
    for column in COLUMNS:
        value = column.of(system)
        out.append("–" if value is None else short(value))
    recall = [np.mean(system["recall"][when]) for when in ("made", "consolidated") if when in system["recall"]]
    out.append(", ".join(f"{figure:.3f}" for figure in recall) or "–")
    out.append(right(system))
    return out


def right(system: dict[str, Any]) -> str:
    """Whether the answers were."""
    if system["faults"]:
        return "WRONG"
    return f"{system['compared']} of {system['compared']}" if system["compared"] else "–"


def headings() -> list[str]:
    """Of the columns after the name."""
    return [*(f"{column.title}, {column.unit}" for column in COLUMNS), "recall@20, before, after", "right sets"]


def table(figures: dict[str, Any]) -> Table:
    """For the terminal: a row a figure, since there are more of them than systems."""
    sizes = figures["sizes"]
    out = Table(
        title=f"{sizes['nodes']:,} nodes, {sizes['nodes'] * sizes['per_node']:,} edges, D={sizes['dim']}: medians",
        caption=describe(figures["machine"]),
    )
    out.add_column("")
    rows = [cells(system) for system in figures["systems"]]
    for system in figures["systems"]:
        out.add_column(system["name"], justify="right")
    for i, heading in enumerate(headings()):
        out.add_row(heading, *(row[i] for row in rows))
    return out


def remarks(figures: dict[str, Any]) -> list[str]:
    """What the table does not say, a line each."""
    out = []
    for system in figures["systems"]:
        about, name = system["about"], system["name"]
        if system["problem"]:
            out.append(f"{name}: {system['problem']}")
        out += [f"{name}: {fault}" for fault in system["faults"][:5]]
        if "way" in about:
            versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
            turned = "" if about["turned_to"] is None else f" at {about['turned_to']}"
            ways = "; ".join(f"{way}: {short(seconds * 1e3)} ms" for way, seconds in about["ways"].items())
            spread = f", spreads by {about['way']} (tried: {ways})" if len(about["ways"]) > 1 else f", {about['way']}"
            undecided = f"; {system['undecided']} queries too near to the threshold" if system["undecided"] else ""
            out.append(
                f"{name}: {versions}; seeds by {about['search']}{turned}{spread}; a commit survives "
                f"{about['durability']}{undecided}"
            )
            out += [f"{name}: {note}" for note in about["notes"]]
    return out


def markdown(figures: dict[str, Any]) -> str:
    """For the docs: what was run, the table, the remarks."""
    sizes, systems = figures["sizes"], figures["systems"]
    rows = [cells(system) for system in systems]
    lines = [
        f"{sizes['nodes']:,} nodes, {sizes['nodes'] * sizes['per_node']:,} edges, D = {sizes['dim']}; medians of "
        f"{sizes['rounds']} round{'s' if sizes['rounds'] > 1 else ''}. {describe(figures['machine'])}.",
        "",
        f"| | {' | '.join(system['name'] for system in systems)} |",
        f"|---|{'---:|' * len(systems)}",
    ]
    lines += [f"| {heading} | {' | '.join(row[i] for row in rows)} |" for i, heading in enumerate(headings())]
    return "\n".join([*lines, "", *(f"- {line}" for line in remarks(figures))])


def put_into(page: Path, text: str) -> None:
    """Exchange what stands between the marks.

    Raises:
        SystemExit: They are not there.
    """
    old = page.read_text()
    head, mark, rest = old.partition(MARKS[0])
    _, end, tail = rest.partition(MARKS[1])
    if not mark or not end:
        raise SystemExit(f"{page}: there is no place for the figures between {MARKS[0]} and {MARKS[1]}")
    page.write_text(f"{head}{mark}\n{text}\n{end}{tail}")


DRAWN: Final = ("create", "ask", "learn", "reinforce", "consolidate", "reopen", "disk_mb", "asked_mb")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Bars, shorter is better, a scale of tenfold steps each."""
    plt = pyplot()
    sizes, systems = figures["sizes"], figures["systems"]
    chosen = [column for column in COLUMNS if column.key in DRAWN and column.quantile == 0.5]
    figure, axes = plt.subplots(2, 4, figsize=(13, 1.6 + 0.56 * len(systems)), layout="constrained")
    figure.suptitle(
        f"{sizes['nodes']:,} nodes, {sizes['nodes'] * sizes['per_node']:,} edges, D={sizes['dim']}: "
        "shorter is better, each grid line is ten times the one before",
        fontsize=10,
    )
    names = [system["name"] for system in systems]
    for panel, column in zip(axes.flat, chosen, strict=True):
        values = [column.of(system) for system in systems]
        known = [value for value in values if value is not None and value > 0]
        low = 10 ** np.floor(np.log10(min(known)) - 0.3) if known else 0.1
        high = max(known) * 8 if known else 1.0
        for i, (name, value) in enumerate(zip(names, values, strict=True)):
            if value is None:
                panel.text(low * 1.1, i, "no figure", va="center", fontsize=7, color="firebrick")
                continue
            panel.barh(i, max(value, low) - low, left=low, height=0.7, color=COLOURS.get(name, OTHERS))
            if column.key == "ask":
                p99 = float(np.quantile(systems[i]["figures"]["ask"], 0.99)) * column.scale
                panel.plot([max(value, low), p99], [i, i], color="black", linewidth=0.8)
                panel.text(p99 * 1.15, i, short(value), va="center", fontsize=7)
            else:
                panel.text(max(value, low) * 1.1, i, short(value), va="center", fontsize=7)
        panel.set_xscale("log")
        panel.set_xlim(low, high)
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.invert_yaxis()
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        title = f"{column.title}, {column.unit}"
        panel.set_title(title + (" (line: to p99)" if column.key == "ask" else ""), fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    """Draw and write again what was measured before."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("figures", type=Path, help="what `rivals.py --json` wrote")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table between the marks of this page")
    options = parser.parse_args()
    figures = json.loads(options.figures.read_text())
    if options.plot:
        draw(figures, options.plot)
    if options.page:
        put_into(options.page, markdown(figures))


if __name__ == "__main__":
    main()
