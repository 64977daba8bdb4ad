"""The demo as its user sees it: every step told, on a console or as one JSON object."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aesg.cli.demo.corpus import Corpus, Track
from aesg.cli.demo.tour import SHOWN, Answer, Found, State, Tour
from aesg.engine.consolidation import Report
from aesg.errors import InvalidInputError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
MOST_EXPLAINED: Final = 3
"""Finds of one answer whose way is told in words."""
_LABELS: Final = {
    "concepts": "concepts",
    "links": "links",
    "active": "concepts not forgotten",
    "used": "concepts that a question found",
    "events": "events in the log",
}


def perform(
    gather: Callable[[Track], Corpus], directory: Path | None, questions: Sequence[str], console: Console | None
) -> dict[str, Any]:
    """Run the demo.

    Args:
        gather: Makes the corpus.
        directory: Where the memory is kept, empty or absent; None makes a temporary one.
        questions: What to ask; the corpus' own questions when there are none.
        console: Where to tell about it; None tells nothing.

    Returns:
        Everything that was found, JSON-able; "unchanged" says whether the reopened memory is the one that was closed.

    Raises:
        InvalidInputError: The directory holds something.
    """
    if directory is not None:
        directory = directory.expanduser().absolute()
        if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
            raise InvalidInputError(f"{directory} is there already: give a --directory that is new or empty")
    started = perf_counter()
    track = _bars(console) if console else _silently
    corpus = gather(track)
    tour = Tour(corpus)
    dim = tour.embed(track)
    directory = directory or Path(tempfile.mkdtemp(prefix="aesg-demo-"))
    tour.build(directory, track)
    try:
        if console:
            _introduce(corpus, dim, directory, console)
        asked = list(questions) or corpus.questions
        answers = []
        for number, question in enumerate(asked, 1):
            answers.append(tour.ask(question))
            if console:
                _tell(answers[-1], f"{number}/{len(asked)}", console)
        report = tour.consolidate()
        before = tour.state()
        tour.reopen()
        after = tour.state()
    finally:
        tour.close()
    seconds = perf_counter() - started
    if console:
        _compare(report, before, after, console)
        _farewell(directory, before == after, seconds, console)
    return {
        "corpus": corpus.title,
        "passages": len(corpus.passages),
        "links": len(corpus.links),
        "vector_dim": dim,
        "directory": str(directory),
        "answers": [asdict(answer) for answer in answers],
        "before": before.counts(),
        "after": after.counts(),
        "unchanged": before == after,
        "seconds": round(seconds, 3),
    }


def _introduce(corpus: Corpus, dim: int, directory: Path, console: Console) -> None:
    from rich.markup import escape

    console.print(
        f"\n[bold]{len(corpus.passages):,} passages[/]: {escape(corpus.title)}."
        f"\n[bold]{len(corpus.links):,} links[/]: places where one passage names another."
        f"\nA vector of [bold]{dim} numbers[/] for each passage (TF-IDF, truncated SVD)."
    )
    console.print(f"The memory lies in [cyan]{escape(str(directory))}[/]", soft_wrap=True)
    console.print(
        f"\nThe same vectors, searched in two ways."
        f" [bold yellow]★[/]: not among the first {SHOWN} by cosine, found over a link."
    )


def _tell(answer: Answer, number: str, console: Console) -> None:
    """One question's answers, side by side."""
    from rich.table import Table
    from rich.text import Text

    width = max(20, (console.width - 22) // 2)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", justify="right", style="dim")
    table.add_column("plain cosine", width=width, no_wrap=True)
    table.add_column("cos", justify="right", style="dim")
    table.add_column(" ")
    table.add_column("spreading activation", width=width, no_wrap=True)
    table.add_column("energy", justify="right", style="dim")
    for place, (near, found) in enumerate(zip_longest(answer.cosine, answer.spreading), 1):
        left = ("", "") if near is None else (_tail(near.name, width), f"{near.score:.2f}")
        right = ("", "") if found is None else (_tail(found.name, width), f"{found.score:.2f}")
        new = found is not None and found.cosine_rank > SHOWN
        style = "bold yellow" if new else ""
        table.add_row(str(place), *map(Text, left), Text("★" if new else "", style), Text(right[0], style), right[1])
    console.print()
    console.rule(Text.assemble((f" {number} ", "dim"), (answer.question, "bold"), " "), align="left", style="dim")
    console.print(table)
    for found in [f for f in answer.spreading if f.quote][:MOST_EXPLAINED]:
        _explain(found, console)


def _explain(found: Found, console: Console) -> None:
    """By which links a passage was found that cosine puts far behind."""
    from rich.text import Text

    *way, name = found.path
    text = Text.assemble(
        ("★ ", "bold yellow"),
        (" → ".join(way), "cyan"),
        " → ",
        (name, "yellow"),
        f" (place {found.cosine_rank:,} by cosine): ",
        (f"“{found.quote}”", "italic"),
    )
    for number, line in enumerate(text.wrap(console, console.width - 4)):
        console.print(Text("  " if number == 0 else "    ").append_text(line))


def _compare(report: Report, before: State, after: State, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    console.print()
    console.rule(Text(" Consolidated, closed, reopened ", "bold"), align="left", style="dim")
    console.print(
        f"Consolidation {report.epoch + 1}: {report.active:,} concepts and their links aged; "
        f"{report.pruned:,} concepts and {report.removed_edges:,} links were forgotten."
    )
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    table.add_column("before closing", justify="right")
    table.add_column("reopened", justify="right")
    for name, value in before.counts().items():
        table.add_row(_LABELS[name], f"{value:,}", f"{after.counts()[name]:,}")
    same = sum(one == two for one, two in zip(before.answers, after.answers, strict=True))
    table.add_row("same answers, to the last bit", "", f"{same} of {len(before.answers)}")
    console.print(table)


def _farewell(directory: Path, unchanged: bool, seconds: float, console: Console) -> None:
    if unchanged:
        console.print(f"\n[bold green]Nothing changed.[/] {seconds:.1f} s in all. Look into the memory:")
    else:
        console.print("\n[bold red]The reopened memory is not the one that was closed.[/]")
    for command in ("info", "verify"):
        console.print(f"  aesg {command} {directory}", style="cyan", soft_wrap=True, highlight=False)


def _tail(name: str, width: int) -> str:
    """The end of a name says more than its beginning."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _silently(items: Sequence[T], _description: str) -> Iterable[T]:
    return items


def _bars(console: Console) -> Track:
    """One bar a step."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    def track(items: Sequence[T], description: str) -> Iterable[T]:
        if not items:
            return
        columns = (TextColumn("{task.description:22}"), BarColumn(40), MofNCompleteColumn())
        with Progress(*columns, console=console) as progress:
            yield from progress.track(items, description=description)

    return track
