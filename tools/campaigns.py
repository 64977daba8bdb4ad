"""The long forms: kill writers and damage files of every backend, by the hundred, and print what came of it.

`python -m tools.campaigns` takes an hour; URLs choose, `-k` chooses clauses, `--kills` and `--cases` say how many.
`--suite` runs the whole suite in its short form instead. The tables are those of docs/testing.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aesg.testing import Report, Target, run

ROOT: Final = Path(__file__).parents[1]

MEMMAP: Final = Target(
    "memmap:",
    # Records are written through the mapping, which is no call that anybody sees.
    fail_points=(
        "aesg.backends.memmap.table:PendingRecords.apply",
        "aesg.backends.memmap.table:RecordFile.store",
        "aesg.backends.journal:Journal.mark_applied",
    ),
    record_files=("nodes.aesg", "nodes.*.column", "edges.aesg", "evolution.aesglog"),
)
"""What the suite is to know of the memmap, for any of its options."""

PERSISTENT: Final = (
    "memmap:", "memmap:?durability=power_loss", "lmdb:", "lmdb:?sync=false", "zarr:", "zarr:?durability=power_loss",
    "icechunk:",
)  # fmt: skip
ALL: Final = ("memory:", "memmap:", "lmdb:", "zarr:", "icechunk:", "sqlite:")


def target(url: str) -> Target:
    """The target of a URL, with what its backend has the suite know."""
    if url.startswith("memmap:"):
        return replace(MEMMAP, url=url)
    if url.startswith("sqlite:"):
        sys.path.append(str(ROOT / "examples"))
        return Target(url, imports=("sqlite_backend:BACKEND",))
    return Target(url)


def kills(report: dict[str, Any]) -> list[str]:
    """What the crash clauses came to, all campaigns together, as a row of `KILLS`; [] when none ran."""
    sums: Counter[str] = Counter()
    for details in _details(report):
        sums.update({name: details.get(name, 0) for name in ("kills", "reopened", "lost", "power losses")})
        sums["violations"] += len(details["violations"]) if "kills" in details else 0
    if not sums["kills"]:
        return []
    dark = str(sums["power losses"] or "–")
    return [f"`{report['url']}`", *(str(sums[name]) for name in ("kills", "reopened", "lost", "violations")), dark]


def damage(report: dict[str, Any]) -> list[list[str]]:
    """What the damage clauses came to, a row of `DAMAGE` for each campaign."""
    found = [details for details in _details(report) if "tried" in details]
    return [
        [f"`{report['url']}`", _DAMAGED[details["campaign"]]]
        + [str(details[name]) for name in ("tried", "refused", "same", "gone", "older", "different")]
        + [str(len(details["violations"]))]
        for details in sorted(found, key=lambda details: str(details["campaign"]))
    ]


def outcomes(report: dict[str, Any]) -> list[str]:
    """What became of the clauses, as a row of `OUTCOMES`."""
    counts = report["counts"]
    cells = [sum(counts.values()), *(counts[name] for name in ("passed", "failed", "not declared", "skipped"))]
    return [f"`{report['url']}`", *map(str, cells)]


def _details(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for clause in report["clauses"]:
        yield from clause.get("details", {}).values()


KILLS: Final = ("", "writers killed", "stores reopened", "commits lost", "violations", "power cuts")
DAMAGE: Final = (
    "", "what", "tried", "refused", "last commit", "nothing left", "earlier commit", "other values", "violations"
)  # fmt: skip
OUTCOMES: Final = ("", "clauses", "passed", "failed", "not declared", "skipped")
_DAMAGED: Final = {"lengths": "cut, emptied, grown", "files": "missing, exchanged, older", "bytes": "bytes changed"}


def tables(reports: Sequence[dict[str, Any]], *, suite: bool) -> Iterator[str]:
    """The figures in Markdown."""
    if suite:
        yield from _table(OUTCOMES, [outcomes(report) for report in reports])
        return
    if rows := [row for report in reports if (row := kills(report))]:
        yield from _table(KILLS, rows)
        yield ""
    if rows := [row for report in reports for row in damage(report)]:
        yield from _table(DAMAGE, rows)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |".replace("|  |", "| |")
    yield "|---" * len(headings) + "|"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def conduct(urls: Sequence[str], choose: str, *, long: bool) -> Iterator[Report]:
    """Run the clauses on each, with a bar on stderr."""
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for url in urls:
            task = progress.add_task(url, total=None)
            ended: set[str] = set()

            def done(name: str, task: Any = task, ended: set[str] = ended) -> None:
                ended.add(name)
                progress.update(task, completed=len(ended))

            report = run(target(url), choose=choose, long=long, done=done)
            progress.update(task, total=len(report.results))
            yield report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; exit status 1 when a clause failed."""
    parser = argparse.ArgumentParser(prog="python -m tools.campaigns", description="The long forms, and a table.")
    parser.add_argument("urls", nargs="*", metavar="URL", help="default: all that persist")
    parser.add_argument("-k", dest="choose", default="", help="an expression over clauses; default: crash or damage")
    parser.add_argument("--kills", type=int, help="for each backend; default 300")
    parser.add_argument("--cases", type=int, help="of damage for each clause; default 1500")
    parser.add_argument("--suite", action="store_true", help="the whole suite, in its short form, instead")
    parser.add_argument("--json", metavar="FILE", help="keep the reports")
    parser.add_argument("--kept", nargs="+", metavar="FILE", help="show reports that were kept, and run nothing")
    given = parser.parse_args(arguments)
    for name, value in (("AESG_CRASH_KILLS", given.kills), ("AESG_DAMAGE_CASES", given.cases)):
        if value is not None:
            os.environ[name] = str(value)
    if given.kept:
        reports = [report for name in given.kept for report in json.loads(Path(name).read_text("utf-8"))]
    else:
        urls = given.urls or (ALL if given.suite else PERSISTENT)
        choose = given.choose or ("" if given.suite else "crash or damage")
        reports = [report.as_dict() for report in conduct(urls, choose, long=not given.suite)]
    for line in tables(reports, suite=given.suite):
        print(line)
    if given.json:
        Path(given.json).write_text(json.dumps(reports, indent=1), "utf-8")
    failed = 0
    for report in reports:
        for clause in report["clauses"]:
            if clause["outcome"] == "failed":
                failed += 1
                print(f"{report['url']} {clause['name']}: {'; '.join(clause['reasons'])}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
