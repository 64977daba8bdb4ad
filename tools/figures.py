"""Measure every backend at every durability for `aesg choose`, and write the tables of README.md and docs/choosing.md.

`python -m tools.figures` takes some minutes; run it on a quiet machine. `--tables` writes the tables from the figures
that are there, `--check` says whether they are stale.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from aesg.bench import Plan, choosing, contend, run, words
from aesg.cli.commands.bench import shown, stoppable
from aesg.cli.common import console

ROOT: Final = Path(__file__).parents[1]
FILES: Final = ("README.md", "docs/choosing.md")
BEGIN: Final = "<!-- figures: written by tools/figures.py -->"
END: Final = "<!-- end of figures -->"

CONTENDERS: Final = (
    "memmap",
    "memmap:?durability=power_loss",
    "lmdb:?sync=false",
    "lmdb",
    "zarr",
    "zarr:?durability=power_loss",
    "icechunk",
    "memory",
)
SURVIVES: Final = {"none": "nothing", "process_crash": "kill -9", "power_loss": "power loss"}
COLUMNS: Final = {
    "ingest": "ingest",
    "gather": "1,000 vectors",
    "retrieve": "a query",
    "commit": "a small commit",
    "learn": "a training step",
    "consolidate": "consolidate",
}
"""Workload → heading; all but the first on stores that were in use."""


def measured() -> dict[str, Any]:
    """Everything, in turns; the order in which they take them is written down with it."""
    with stoppable(), shown(console(stderr=True) if sys.stderr.isatty() else None) as watch:
        results = run(Plan(repeats=9), contend(CONTENDERS, unequal=True), watch=watch)
    if not results.good:
        raise SystemExit(f"not everything was measured: {results.problems or results.disagreement or 'interrupted'}")
    return results.as_dict()


def table(found: dict[str, Any]) -> str:
    """The table, in Markdown."""
    by_place = {(f["contender"], f["workload"], f["state"]): f for f in found["figures"]}
    heads = ["", "a commit survives", *COLUMNS.values(), "on disk"]
    lines = [f"| {' | '.join(heads)} |".replace("|  |", "| |"), "|---" * len(heads) + "|"]
    for contender in found["contenders"]:
        name = contender["name"]
        times = [by_place.get((name, workload, "fresh" if workload == "ingest" else "churned")) for workload in COLUMNS]
        cells = [SURVIVES[contender["promises"]["durability"]], *(words.seconds(f and f["median"]) for f in times)]
        disk = found["footprints"][name].get("churned", {}).get("disk")
        cells.append(words.size(disk) if disk else words.NOTHING)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    where = found["machine"]
    said = (
        f"{words.job(found['plan'])}; medians of one run on {where['cores']} cores of an {where['cpu']}, "
        f"{found['made']}, on stores after updates, removals and prunes (ingest: new ones). {words.noise(found)}"
    )
    return "\n".join([*lines, "", said])


def written(text: str, found: dict[str, Any]) -> str:
    """A page with the table as it should be."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}"


def main() -> int:
    """Measure and write, or write, or check."""
    asked = sys.argv[1:]
    if not asked:
        choosing.SHIPPED.write_text(json.dumps(measured(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = choosing.shipped()
    stale = [name for name in FILES if written(text := (ROOT / name).read_text(), found) != text]
    if "--check" in asked:
        for name in stale:
            print(f"{name}: the table of figures is stale; run `python -m tools.figures --tables`", file=sys.stderr)
        return 1 if stale else 0
    for name in stale:
        path = ROOT / name
        path.write_text(written(path.read_text(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
