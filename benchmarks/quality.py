"""Does spreading activation find the passages that answer a question? Recall on real questions, beside cosine.

`python benchmarks/quality.py DATA_DIR` prints a table; `--learn` also asks again after a thousand retrievals in
`train()`; `--json FILE` keeps every figure, `--plot FILE` draws them. The data are no part of this project.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from quality_memory import WAYS, Asked, Way, place_of
from quality_sets import DEPTHS, GOALS, TOLERANCE, Ints, Questions, find, interval, load, recalls
from report import console, describe, machine, verdict
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Recalls: TypeAlias = npt.NDArray[np.float64]

BACKENDS: Final = ("memmap", "lmdb", "zarr")
BASELINE: Final = "cosine"
HALVES: Final = ("held-out", "dev")


@dataclass(frozen=True)
class Life:
    """What a memory lives through before it is asked again.

    Attributes:
        name: For the table.
        half: Whose questions it is asked; "" for the half that is reported.
        fresh: Whether `reset_state` is called in front of each question.
        turns: How often each question comes in a row.
    """

    name: str
    half: str
    fresh: bool
    turns: int

    def order(self, questions: Questions, half: str, count: int) -> Ints:
        """Which questions are asked: those of its half again and again, in random order."""
        numbers = np.flatnonzero(questions.is_dev == ((self.half or half) == "dev"))
        rng = np.random.default_rng(0)
        rounds = -(-count // max(1, len(numbers)))
        shuffled = [rng.permutation(numbers) for _ in range(rounds)]
        return np.repeat(np.concatenate(shuffled), self.turns)[:count] if len(numbers) else numbers


LIVES: Final = (
    Life("the same questions", "", True, 1),
    Life("the same, in one lane", "", False, 1),
    Life("the same, each 5 times in a row", "", True, 5),
    Life("other questions", "dev", True, 1),
)


@dataclass(frozen=True)
class Result:
    """How one way answered one set on one backend.

    Attributes:
        set: Its name.
        backend: The scheme.
        way: The name in `WAYS`.
        recalls: float64 [Q, 3], of the half that is reported.
        against: The same from cosine, or from before learning; None when there is nothing to compare with.
        life: What it learned from in between; "" for nothing.
        born: How many concepts were born of that.
    """

    set: str
    backend: str
    way: str
    recalls: Recalls
    against: Recalls | None
    life: str = ""
    born: int = 0

    @property
    def percent(self) -> npt.NDArray[np.float64]:
        """Mean recall in percent, [3]."""
        means: npt.NDArray[np.float64] = 100 * self.recalls.mean(axis=0)
        return means

    @property
    def difference(self) -> npt.NDArray[np.float64] | None:
        """Mean, low and high end of the difference in points, [3, 3]."""
        if self.against is None:
            return None
        differences = 100 * (self.recalls - self.against)
        return np.vstack([differences.mean(axis=0), interval(differences)])

    def reached(self, half: str) -> bool | None:
        """Whether each figure is there, within the tolerance; None where none is named."""
        goal = GOALS.get((self.set, self.way))
        if goal is None or half != "held-out" or self.life:
            return None
        return bool((self.percent > np.array(goal) - TOLERANCE).all())

    def as_dict(self, half: str) -> dict[str, Any]:
        """For JSON."""
        difference = self.difference
        spread = (
            dict(zip(("mean", "low", "high"), difference.tolist(), strict=True)) if difference is not None else None
        )
        return {
            "set": self.set,
            "backend": self.backend,
            "preset": self.way,
            "life": self.life,
            "born": self.born,
            "questions": len(self.recalls),
            "recall": dict(zip(map(str, DEPTHS), self.percent.tolist(), strict=True)),
            "difference": spread,
            "goal": GOALS.get((self.set, self.way)) if half == "held-out" else None,
            "reached": self.reached(half),
        }


class Bench:
    """Asks everything of everybody.

    Attributes:
        results: In the order of the table.
    """

    def __init__(self, folder: Path, progress: Progress, half: str) -> None:
        self.results: list[Result] = []
        self._folder = folder
        self._progress = progress
        self._half = half
        self._stores = 0

    def run(self, questions: Questions, backend: str, ways: list[Way], lives: tuple[Life, ...], count: int) -> None:
        """One set on one backend.

        Args:
            questions: The set.
            backend: The scheme.
            ways: To answer.
            lives: To live through before being asked again; nothing is learned by the baseline and by 0.3.0's rules,
                which have no rates.
            count: Retrievals of a life.
        """
        known: dict[str, Recalls] = {}
        for way in ways:
            with self._asked(questions, backend, way) as asked:
                known[way.name] = self._answer(asked, f"{questions.name}, {backend}: {way.name}")
            against = known.get(BASELINE) if way.name != BASELINE else None
            self.results.append(Result(questions.name, backend, way.name, known[way.name], against))
        for way in ways:
            if way.config(1).reinforce_rate == 0 or way.name == BASELINE:
                continue
            for life in lives:
                title = f"{questions.name}, {backend}: {way.name}, {life.name}"
                with self._asked(questions, backend, way) as asked:
                    order = life.order(questions, self._half, count)
                    with self._bar(title, len(order)) as advance:
                        born = asked.live_through(order, fresh=life.fresh, advance=advance)
                    after = self._answer(asked, title)
                before = known[way.name]
                self.results.append(Result(questions.name, backend, way.name, after, before, life.name, born))

    def _asked(self, questions: Questions, backend: str, way: Way) -> Asked:
        self._stores += 1
        return Asked(questions, way, place_of(backend, self._folder / str(self._stores)))

    def _answer(self, asked: Asked, title: str) -> Recalls:
        questions = asked.questions
        with self._bar(title, len(questions.queries)) as advance:
            found = recalls(questions, asked.answers(advance))
        of_half: Recalls = found[questions.is_dev == (self._half == "dev")]
        return of_half

    @contextmanager
    def _bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        bar = self._progress.add_task(title, total=total)
        yield lambda count: self._progress.advance(bar, count)
        self._progress.remove_task(bar)


# --- showing ---------------------------------------------------------------------------------------------------------


def answers_table(results: list[Result], half: str, where: str) -> Table:
    """Recall beside cosine."""
    asked = {result.way: WAYS[result.way].depends_on for result in results}
    legend = "; ".join(f"{name}: {what}" for name, what in asked.items())
    table = Table(
        title=f"Recall in percent, {half} questions; points more than {BASELINE}, and 95 % interval",
        caption=f"{legend}\n{where}",
        caption_justify="left",
    )
    columns(table, ["set", "preset", "backend"], [f"recall@{depth}" for depth in DEPTHS])
    table.add_column("to reach", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for result in results:
        goal = GOALS.get((result.set, result.way)) if half == "held-out" else None
        table.add_row(
            *(result.set, result.way, result.backend),
            *figures(result),
            " / ".join(f"{figure:.1f}" for figure in goal) if goal else "–",
            verdict(result.reached(half)),
        )
    return table


def lives_table(results: list[Result], half: str, count: int) -> Table:
    """Recall after learning, beside before."""
    table = Table(title=f"The {half} questions after {count:,} retrievals in train(); points more than before")
    columns(table, ["set", "preset", "backend", "learned from"], ["born", *(f"recall@{depth}" for depth in DEPTHS)])
    for result in results:
        table.add_row(result.set, result.way, result.backend, result.life, str(result.born), *figures(result))
    return table


def columns(table: Table, words: list[str], numbers: list[str]) -> None:
    """Headings."""
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)


def figures(result: Result) -> list[str]:
    """Recall at each depth, and the difference with its interval."""
    shown = [f"{figure:.1f}" for figure in result.percent]
    if result.difference is None:
        return shown
    triples = zip(shown, result.difference.T, strict=True)
    return [f"{figure}  {mean:+.1f} ({low:+.1f} to {high:+.1f})" for figure, (mean, low, high) in triples]


def plot(results: list[Result], half: str, file: Path) -> None:
    """Bars: a row of panels per set, a panel per depth; the first backend only, since they answer alike."""
    from matplotlib.figure import Figure  # an extra, and slow to import

    results = [result for result in results if result.backend == results[0].backend]
    sets = list(dict.fromkeys(result.set for result in results))
    figure = Figure(figsize=(10, 3.2 * len(sets)), layout="constrained")
    panels = figure.subplots(len(sets), len(DEPTHS), sharey="row", squeeze=False)
    for row, name in zip(panels, sets, strict=True):
        of_set = [result for result in results if result.set == name]
        for i, (panel, depth) in enumerate(zip(row, DEPTHS, strict=True)):
            heights = [float(result.percent[i]) for result in of_set]
            spread = [interval(100 * (result.recalls - result.recalls.mean(axis=0)))[:, i] for result in of_set]
            bars = panel.bar(
                [result.way for result in of_set],
                heights,
                yerr=np.abs(np.array(spread)).T,
                capsize=3,
                color=[f"C{list(WAYS).index(result.way)}" for result in of_set],
            )
            panel.bar_label(bars, fmt="%.1f", padding=4, fontsize=8)
            panel.set_title(f"{name}: recall@{depth}, {half}", fontsize=10)
            panel.set_ylim(0, 112)
            panel.tick_params(axis="x", labelsize=8)
        row[0].set_ylabel("percent")
    figure.savefig(file, dpi=150)


def choice_of(known: tuple[str, ...] | None) -> Callable[[str], list[str]]:
    """Parser of a list with commas."""

    def parse(text: str) -> list[str]:
        names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        unknown = [name for name in names if known is not None and name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(f"{text!r}: choose from {', '.join(known or ())}")
        return names

    return parse


def sets_in(folder: Path, parser: argparse.ArgumentParser) -> list[Questions]:
    """The sets of a folder; ends the program with a sentence where there are none."""
    if not folder.is_dir():
        parser.error(f"{folder}: no such folder; it is where the question sets (.npz) lie, which you have to bring")
    files = find(folder)
    if not files:
        parser.error(f"{folder}: no question set (.npz) in it, nor in {folder / 'retrieval'}")
    sets = []
    for file in files:
        try:
            sets.append(load(file))
        except KeyError as error:
            parser.error(f"{file}: not a question set: the array {error} is missing")
        except (ValueError, OSError) as error:
            parser.error(f"{file}: not a question set: {error}")
    return sets


def main() -> None:
    """Ask, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path, metavar="DATA_DIR", help="folder of question sets (.npz)")
    parser.add_argument("--backends", type=choice_of(None), default=list(BACKENDS), metavar="A,B", help="schemes")
    parser.add_argument(
        "--presets", type=choice_of(tuple(WAYS)), default=list(WAYS), metavar="A,B", help=f"of {', '.join(WAYS)}"
    )
    parser.add_argument("--half", choices=HALVES, default=HALVES[0], help="which questions; tune on dev only")
    parser.add_argument("--learn", action="store_true", help="ask again after retrievals in train()")
    parser.add_argument("--retrievals", type=int, default=1000, metavar="N", help="how many; 1,000 unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them there (needs matplotlib: extra plot)")
    options = parser.parse_args()
    if options.retrievals < 1:
        parser.error("--retrievals: at least one")
    sets = sets_in(options.data, parser)
    ways = [way for name, way in WAYS.items() if name in options.presets]
    where = machine()
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="aesg-bench-") as folder,
        Progress(*bar, console=Console(stderr=True)) as progress,
    ):
        bench = Bench(Path(folder), progress, options.half)
        for questions in sets:
            for backend in options.backends:
                bench.run(questions, backend, ways, LIVES if options.learn else (), options.retrievals)
    answers = [result for result in bench.results if not result.life]
    lives = [result for result in bench.results if result.life]
    answers.sort(key=lambda result: (result.set, list(WAYS).index(result.way)))
    console().print(answers_table(answers, options.half, describe(where)))
    if lives:
        console().print(lives_table(lives, options.half, options.retrievals))
    if options.json:
        results = [result.as_dict(options.half) for result in bench.results]
        whole = {"machine": where, "half": options.half, "retrievals": options.retrievals, "results": results}
        options.json.write_text(json.dumps(whole, indent=1) + "\n")
    if options.plot:
        plot(answers, options.half, options.plot)
    if any(result.reached(options.half) is False for result in answers):
        sys.exit(1)


if __name__ == "__main__":
    main()
