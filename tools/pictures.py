"""Draw the pictures of the docs: `python -m tools.pictures` writes docs/images/*.svg.

They are transparent and drawn in colours of middle lightness, so that one file serves a light and a dark page.
`spreading.svg` is drawn from a real run: the docstrings of a few modules of the running Python's standard library,
linked where one names another, in a memory that is asked a question. The others are drawn from what is said here.
"""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from aesg import AESGConfig, AESGMemory
from aesg.cli.demo import docstrings
from aesg.cli.demo.embedding import Embedder

IMAGES: Final = Path(__file__).parents[1] / "docs" / "images"

INK: Final = "#7a8494"
BLUE: Final = "#4088cc"
ORANGE: Final = "#d87a2e"
GREEN: Final = "#3f9c62"
RED: Final = "#d25a55"
_FONT: Final = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


@dataclass
class Drawing:
    """An SVG document in the making.

    Attributes:
        width: In pixels, as is everything.
        height: In pixels.
        title: What a reader who cannot see it is told.
        parts: Its elements.
    """

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: int = 13,
        colour: str = INK,
        bold: bool = False,
        to: str = "start",
    ) -> None:
        """Words with their baseline at y; `to` is the SVG text anchor."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{to}"{weight}>'
            f"{escape(words)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, colour: str, lines: Sequence[str] = (), *, size: int = 13
    ) -> None:
        """A rounded box with lines of text in its middle, the first one bold."""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7" fill="{colour}" '
            f'fill-opacity="0.13" stroke="{colour}" stroke-width="1.4"/>'
        )
        step = size + 4
        top = y + height / 2 - step * (len(lines) - 1) / 2 + size * 0.36
        for i, line in enumerate(lines):
            middle, small = x + width / 2, size if i == 0 else size - 1
            self.text(middle, top + i * step, line, size=small, bold=i == 0, to="middle", colour=INK if i else colour)

    def line(
        self,
        ends: Sequence[float],
        colour: str = INK,
        *,
        width: float = 1.4,
        opacity: float = 1.0,
        dashed: bool = False,
    ) -> None:
        """From (x, y) to (x, y)."""
        x1, y1, x2, y2 = ends
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width:.1f}" stroke-opacity="{opacity:g}"{dash}/>'
        )

    def arrow(self, ends: Sequence[float], colour: str = INK, *, width: float = 1.4, opacity: float = 1.0) -> None:
        """A line with a head at its second end."""
        x1, y1, x2, y2 = ends
        self.line(ends, colour, width=width, opacity=opacity)
        length = max(1e-6, float(np.hypot(x2 - x1, y2 - y1)))
        ux, uy, size = (x2 - x1) / length, (y2 - y1) / length, 4 + 1.6 * width
        corners = [(x2, y2)]
        corners += [(x2 - size * ux - side * uy * size / 2, y2 - size * uy + side * ux * size / 2) for side in (1, -1)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        self.parts.append(f'<polygon points="{points}" fill="{colour}" fill-opacity="{opacity:g}"/>')

    def circle(self, x: float, y: float, radius: float, colour: str, *, opacity: float, ring: str = "") -> None:
        """A disc, maybe with a ring around it."""
        edge = f' stroke="{ring}" stroke-width="2.2"' if ring else ""
        self.parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" fill-opacity="{opacity:.2f}"{edge}/>'
        )

    def svg(self) -> str:
        """The document."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" font-family="{_FONT}">'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", *self.parts, "</svg>\n"])


# --- what spreading activation does ----------------------------------------------------------------------------------

MODULES: Final = (
    "subprocess.py", "shutil.py", "os.py", "pty.py", "cmd.py", "pdb.py", "code.py", "runpy.py", "shlex.py", "getopt.py",
    "argparse.py", "asyncio/*.py",
)  # fmt: skip
QUESTION: Final = "run a command and get its output"
HOPS: Final = 3
_DRAWN: Final = 0.02
"""Energy that a concept must have in the end to be drawn …"""
_NAMED: Final = 0.05
"""… and to be named as soon as it has it."""
_BEST: Final = 8
_SEED: Final = 74
"""Of the layout: of some hundred the one in which names met nothing."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One question to a small graph, hop by hop.

    Attributes:
        names: Of all concepts.
        links: (source, target) of all edges; int64 [E, 2].
        ranks: Each concept's place by cosine, from 1; int64 [N].
        energies: What each concept has after 0, 1, … hops; float64 [hops + 1, N].
        ways: (source, target) of what carried energy in each hop.
    """

    names: list[str]
    links: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    energies: npt.NDArray[np.float64]
    ways: list[list[tuple[int, int]]]


def spread() -> Spread:
    """Ask the memory with 0, 1, … hops."""
    root = Path(sysconfig.get_path("stdlib"))
    files = [file for pattern in MODULES for file in sorted(root.glob(pattern))]
    passages, modules = docstrings.passages(root, files, lambda items, _: items)
    found = docstrings.links(passages, modules, lambda items, _: items)
    embedder = Embedder(passages)
    query = embedder(QUESTION)
    links = np.array([(link.source, link.target) for link in found])
    order = np.argsort(-(embedder.vectors @ query), kind="stable")
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(1, len(order) + 1)
    config = AESGConfig(vector_dim=len(query), top_k=len(passages))
    energies, ways = np.zeros((HOPS + 1, len(passages))), []
    known = 0
    for hops in range(HOPS + 1):
        with AESGMemory("memory:", config.replace(spreading_activation_steps=hops)) as memory:
            memory.add_concepts(embedder.vectors)
            memory.connect(links[:, 0], links[:, 1])
            memory.eval()
            context: Any = memory.retrieve(query)
        energies[hops, context.activated_nodes] = context.weights.tolist()
        # Paths come in the order in which they happened.
        ways.append([(source, target) for source, target in context.paths[known:]])
        known = len(context.paths)
    return Spread([passage.name for passage in passages], links, ranks, energies, ways)


def spreading(run: Spread) -> str:
    """Four panels: the seeds and each hop."""
    shown = np.flatnonzero(run.energies[-1] > _DRAWN)
    radii = _radius(run.energies[-1])
    place, sides = _layout(run, shown.tolist(), radii)
    width, height, top = 480, 320, 46
    drawing = Drawing(2 * width, 2 * (height + top) + 62, f"Spreading activation for the question “{QUESTION}”")
    for hop in range(HOPS + 1):
        left, upper = hop % 2 * width, hop // 2 * (height + top)
        title = "Seeds: nearest by cosine" if hop == 0 else f"Hop {hop}: energy goes along {len(run.ways[hop])} links"
        drawing.text(left + 16, upper + 26, title, size=16, bold=True, colour=BLUE if hop == 0 else ORANGE)
        _panel(drawing, run, hop, {i: (left + x, upper + top + y) for i, (x, y) in place.items()}, sides)
    drawing.line((width, 12, width, 2 * (height + top) - 16), opacity=0.25)
    drawing.line((16, height + top - 4, 2 * width - 16, height + top - 4), opacity=0.25)
    best = _best(run)
    y = 2 * (height + top) + 4
    drawing.circle(24, y, 7, BLUE, opacity=0.85)
    drawing.text(38, y + 5, "energy as a seed (area)")
    drawing.circle(240, y, 7, ORANGE, opacity=0.75)
    drawing.text(254, y + 5, "all its energy")
    drawing.circle(390, y, 7, ORANGE, opacity=0.75, ring=GREEN)
    drawing.text(406, y + 5, f"among the best {_BEST} in the end, not among the {_BEST} nearest")
    gains = ", ".join(
        f"{_short(run.names[i])} from {run.ranks[i]} to {1 + best.index(i)}" for i in best if run.ranks[i] > _BEST
    )
    drawing.text(16, y + 34, f"“{QUESTION}”: from its place by cosine to that by energy, {gains}.", size=12)
    return drawing.svg()


def _best(run: Spread) -> list[int]:
    best: list[int] = np.argsort(-run.energies[-1], kind="stable")[:_BEST].tolist()
    return best


def _radius(energies: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 19 * np.sqrt(np.maximum(energies, 0))


def _panel(
    drawing: Drawing, run: Spread, hop: int, place: dict[int, tuple[float, float]], sides: dict[int, int]
) -> None:
    energies = run.energies[hop]
    radius, seeded = _radius(energies), _radius(run.energies[0])
    for source, target in run.links.tolist():
        if source in place and target in place:
            drawing.line((*place[source], *place[target]), opacity=0.22, width=1)
    for source, target in dict.fromkeys(run.ways[hop]):
        if source in place and target in place:
            (x1, y1), (x2, y2) = place[source], place[target]
            length = max(1.0, float(np.hypot(x2 - x1, y2 - y1)))
            start, stop = (radius[source] + 1) / length, max(0.0, 1 - (radius[target] + 2) / length)
            ends = (x1 + (x2 - x1) * start, y1 + (y2 - y1) * start, x1 + (x2 - x1) * stop, y1 + (y2 - y1) * stop)
            drawing.arrow(ends, ORANGE, width=1.8, opacity=0.8)
    best = _best(run)
    for i in sorted(place, key=lambda i: -radius[i]):
        ring = GREEN if hop == HOPS and i in best and run.ranks[i] > _BEST else ""
        if energies[i] > run.energies[0, i] + 1e-3:
            drawing.circle(*place[i], radius[i], ORANGE, opacity=0.75, ring=ring)
        if seeded[i] >= 1:
            drawing.circle(*place[i], seeded[i], BLUE, opacity=0.85)
        elif energies[i] < 1e-3:
            drawing.circle(*place[i], 2.5, INK, opacity=0.5)
        if energies[i] >= _NAMED:
            x, y, anchor = _label(place[i], radius[i], sides[i])
            drawing.text(x, y, f"{_short(run.names[i])} {energies[i]:.2f}", size=11, to=anchor)


_ABOVE, _BELOW, _RIGHT, _LEFT = range(4)


def _label(at: tuple[float, float], radius: float, side: int) -> tuple[float, float, str]:
    """Where a name stands, and its anchor."""
    x, y = at
    if side in (_ABOVE, _BELOW):
        return x, y - radius - 4 if side == _ABOVE else y + radius + 13, "middle"
    return (x + radius + 4, y + 4, "start") if side == _RIGHT else (x - radius - 4, y + 4, "end")


def _layout(
    run: Spread, shown: list[int], radii: npt.NDArray[np.float64]
) -> tuple[dict[int, tuple[float, float]], dict[int, int]]:
    """Where the concepts of a panel and their names lie: by springs if they are linked, in a column if not."""
    import networkx

    links = run.links[np.isin(run.links, shown).all(axis=1)].tolist()
    graph = networkx.Graph([tuple(pair) for pair in links])
    alone = [i for i in shown if i not in graph]
    column = {i: (455.0, 40.0 + 240.0 * at / max(1, len(alone) - 1)) for at, i in enumerate(alone)}
    springs: dict[int, npt.NDArray[np.float64]] = networkx.spring_layout(graph, k=2.4, iterations=200, seed=_SEED)
    points = np.array(list(springs.values()))
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / (high - low) * (270, 250) + (60, 35)
    place = column | {i: (float(x), float(y)) for i, (x, y) in zip(springs, scaled, strict=True)}
    return place, _name_sides(run, place, links, radii, dict.fromkeys(alone, _LEFT))


def _name_sides(
    run: Spread,
    place: dict[int, tuple[float, float]],
    links: list[list[int]],
    radii: npt.NDArray[np.float64],
    fixed: dict[int, int],
) -> dict[int, int]:
    """On which side of each concept its name stands: where it meets least of other things."""
    steps = np.linspace(0, 1, 24)[:, None]
    points = [np.array(place[i])[None] for i in place]
    points += [np.array(place[a]) * (1 - steps) + np.array(place[b]) * steps for a, b in links]
    weights = np.repeat([12.0] * len(place) + [0.35] * len(links), [len(some) for some in points])
    dots = np.concatenate(points)
    sides: dict[int, int] = {}
    names: list[tuple[float, float, float, float]] = []
    for i in sorted(place, key=lambda i: (i not in fixed, -radii[i])):
        options = []
        for side in [fixed[i]] if i in fixed else range(4):
            x, y, anchor = _label(place[i], radii[i], side)
            width = 6.3 * (len(_short(run.names[i])) + 5)
            left = x - width * {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor]
            box = (left, y - 11, left + width, y + 3)
            inside = (dots > box[:2]).all(axis=1) & (dots < box[2:]).all(axis=1)
            trouble = float(weights[inside].sum()) + 30 * sum(_meet(box, name) for name in names)
            trouble += 30 * (left < 2 or left + width > 478)
            options.append((trouble, side, box))
        _, sides[i], box = min(options)
        names.append(box)
    return sides


def _meet(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _short(name: str) -> str:
    return name.split(".")[-1]


# --- how a commit survives a crash -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Commit:
    """How a backend commits: its steps, and after which of them the commit has happened."""

    backend: str
    steps: tuple[tuple[str, ...], ...]
    point: int
    before: tuple[str, ...]
    after: tuple[str, ...]


_COMMITS: Final = (
    _Commit(
        "memmap:",
        (
            ("append new records", "to the files' ends, past", "the counts that are valid"),
            ("write a journal entry", "new counts, changed bytes,", "their checksum"),
            ("change records", "in the mapped files", "or in columns beside"),
            ("checkpoint", "now and then: meta.npy,", "store.json, a new journal"),
        ),
        2,
        ("the entry is missing or its checksum is wrong:", "it never happened, and nobody counts what was appended"),
        (
            "whoever opens the store next applies the entry again:",
            "it says what the bytes are to be, so twice is harmless",
        ),
    ),
    _Commit(
        "lmdb:",
        (
            ("write changed pages", "to free places; the old", "tree stays as it is"),
            ("write the meta page", "the new root; the old meta", "page stays too"),
            ("old pages get free", "when no reader looks", "at that commit"),
        ),
        2,
        ("the newest meta page is the old one:", "the old tree is whole, nothing is to be repaired"),
        ("the newest meta page is the new one:", "the new tree is whole, nothing is to be repaired"),
    ),
    _Commit(
        "zarr:",
        (
            ("write changed chunks", "and zarr.json with the new", "head, as NAME.new"),
            ("write a journal entry", "which files it is,", "a checksum"),
            ("rename them", "while readers wait;", "zarr.json too"),
        ),
        2,
        ("no entry lists the new files:", "the next writer removes them"),
        ("the entry lists them:", "the next writer renames what is not renamed yet"),
    ),
)


def commits() -> str:
    """A time line for each kind of backend."""
    lane, left, gap, step = 196, 118, 14, 192
    drawing = Drawing(left + 4 * (step + gap) + 12, 3 * lane + 8, "How a commit survives a crash, for three backends")
    for at, commit in enumerate(_COMMITS):
        y = at * lane + 40
        drawing.text(12, y + 42, commit.backend, size=17, bold=True, colour=BLUE)
        for i, lines in enumerate(commit.steps):
            x = left + i * (step + gap)
            drawing.box(x, y, step, 72, ORANGE if i < commit.point else GREEN, lines)
            if i:
                drawing.arrow((x - gap, y + 36, x - 1, y + 36))
        start, stop = left, left + len(commit.steps) * (step + gap) - gap
        middle = left + commit.point * (step + gap) - gap / 2
        drawing.line((middle, y - 14, middle, y + 140), GREEN, width=2, dashed=True)
        drawing.text(middle, y - 20, "the commit has happened", bold=True, colour=GREEN, to="middle")
        for begin, end, colour, words in (
            (start, middle - 8, RED, commit.before),
            (middle + 8, stop, GREEN, commit.after),
        ):
            drawing.line((begin, y + 84, end, y + 84), colour, width=2)
            drawing.text(begin, y + 103, "killed here:", colour=colour, bold=True, size=12)
            for i, line in enumerate(words):
                drawing.text(begin, y + 120 + 16 * i, line, size=12)
        if at:
            drawing.line((12, y - 46, drawing.width - 12, y - 46), opacity=0.25)
    return drawing.svg()


# --- the architecture ------------------------------------------------------------------------------------------------


def architecture() -> str:
    """The layers, and the one door between the engine and what stores."""
    drawing = Drawing(900, 500, "The layers of AESG: each imports only what lies below it")
    drawing.box(20, 14, 270, 58, INK, ("your model", "Transformer, LSTM, CNN, …"))
    drawing.box(315, 14, 270, 58, BLUE, ("aesg.cli", "the command line, the demo"))
    drawing.box(610, 14, 270, 58, BLUE, ("aesg.testing, aesg.bench", "conformance suite, figures"))
    drawing.box(20, 98, 565, 58, BLUE, ("aesg.memory", "AESGMemory, an nn.Module; nothing below it imports torch"))
    drawing.box(610, 98, 270, 58, BLUE, ("aesg.migration, aesg.exchange", "move, digest, export, import"))
    drawing.box(20, 182, 415, 58, ORANGE, ("aesg.engine", "seeds, activation, learning, consolidation: NumPy"))
    drawing.box(20, 300, 860, 52, GREEN, ("aesg.protocols", "NodeStore, EdgeStore, EventLog, GraphStore, Capabilities"))
    drawing.text(455, 199, "The engine knows a store by this", size=12)
    drawing.text(455, 216, "contract alone; a backend never", size=12)
    drawing.text(455, 233, "sees the engine.", size=12)
    drawing.box(20, 408, 130, 72, ORANGE, ("memory:", "in the heap"))
    drawing.box(162, 408, 150, 72, ORANGE, ("memmap:", "0.3.0’s files"))
    drawing.box(324, 408, 412, 72, ORANGE, ("aesg.backends.blocks", "", ""))
    for i, name in enumerate(("lmdb:", "zarr:", "icechunk:", "yours:")):
        drawing.box(336 + 98 * i, 441, 92, 30, ORANGE, (name,), size=12)
    drawing.box(748, 408, 132, 72, ORANGE, ("yours:", "a graph store"))
    for x in (155, 450, 745):
        drawing.arrow((x, 74, x, 96))
    drawing.arrow((230, 158, 230, 180))
    drawing.arrow((745, 158, 745, 298))
    drawing.arrow((228, 242, 228, 298))
    for x in (85, 237, 530, 814):
        drawing.arrow((x, 406, x, 354))
    drawing.text(383, 386, "aesg.backends implement it", size=12, bold=True, to="middle")
    return drawing.svg()


DRAWN: Final = {"commits.svg": commits, "architecture.svg": architecture}
"""The pictures that are the same on every machine."""


def main() -> None:
    """Write them all."""
    IMAGES.mkdir(exist_ok=True)
    for name, draw in DRAWN.items():
        (IMAGES / name).write_text(draw(), "utf-8")
    run = spread()
    (IMAGES / "spreading.svg").write_text(spreading(run), "utf-8")
    print(f"spreading.svg: {len(run.names)} docstrings of Python {platform.python_version()}, {len(run.links)} links")


if __name__ == "__main__":
    main()
