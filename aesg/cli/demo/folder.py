"""A user's own files as a corpus.

Markdown and reStructuredText give a passage per section, plain text one per paragraph, Python one per docstring. A
passage links to another whose title it names, and to what its Markdown links point at.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from aesg.cli.demo import docstrings
from aesg.cli.demo.corpus import Corpus, Link, Passage, Track, files, quote
from aesg.errors import InvalidInputError, NotFoundError

SUFFIXES: Final = {".txt", ".md", ".rst", ".py"}
LONGEST_TITLE: Final = 8
"""Words of a title that are looked for."""
LARGEST_FILE: Final = 2 << 20
"""Bytes; a longer file is data rather than text."""

_LEFT_OUT: Final = {"__pycache__", "node_modules", "site-packages", "build", "dist"}
_MARKDOWN_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_RST_HEADING = re.compile(r"^(\S.*)\n([=\-~^\"'#*+`:.<>_])\2{2,}[ \t]*$", re.MULTILINE)
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_MARKDOWN_LINK = re.compile(r"\[[^\]\n]*\]\(<?([^)\s>]+)>?[^)\n]*\)|\[\[([^\]|\n]+)[^\]\n]*\]\]")
_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")


def corpus(root: Path, track: Track) -> Corpus:
    """Gather the text below a folder.

    Raises:
        NotFoundError: There is no such folder.
        InvalidInputError: It holds no text.
    """
    root = root.expanduser().resolve()
    if not root.is_dir():
        raise NotFoundError(f"{root} is not a folder")
    found = list(files(root, SUFFIXES, _LEFT_OUT))
    sources = [file for file in found if file.suffix == ".py"]
    base = root.parent if (root / "__init__.py").is_file() else root  # a package's modules are named after it
    documented, modules = docstrings.passages(base, sources, track) if sources else ([], set())
    sections = _Sections(root)
    for file in track([file for file in found if file.suffix != ".py"], "Reading"):
        sections.read(file)
    passages = documented + sections.passages
    if len(passages) < 2:
        raise InvalidInputError(
            f"{root} holds {len(passages)} passages of text ({', '.join(sorted(SUFFIXES))}): too few"
        )
    links = docstrings.links(documented, modules, track) if documented else []
    links += sections.links(len(documented), track)
    return Corpus(f"the text in {root}", passages, links, _questions(passages, links))


class _Sections:
    """Passages of prose, and the titles and places under which others may name them.

    Attributes:
        passages: In the order in which they were read.
    """

    def __init__(self, root: Path) -> None:
        self.passages: list[Passage] = []
        self._root = root
        self._names: set[str] = set()
        self._places: list[str] = []  # the file that each passage is from
        self._titles: list[str] = []  # each passage's own title; "" when it has none
        self._by_place: dict[str, int] = {}  # "file" and "file#anchor" → passage

    def read(self, file: Path) -> None:
        """Add a file's passages; one that is no readable text has none."""
        try:
            if file.stat().st_size > LARGEST_FILE:
                return
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return
        place = file.relative_to(self._root).as_posix()
        pieces = _paragraphs(text) if file.suffix == ".txt" else _sections(text, file.suffix)
        for number, (title, body) in enumerate(pieces, 1):
            name = f"{place} › {title}" if title else f"{place} ¶{number}"
            if name in self._names:
                name += f" ({number})"
            self._names.add(name)
            self._by_place.setdefault(place, len(self.passages))
            self._by_place.setdefault(f"{place}#{_anchor(title)}", len(self.passages))
            self.passages.append(Passage(name, body))
            self._places.append(place)
            self._titles.append(title)

    def links(self, offset: int, track: Track) -> list[Link]:
        """Links between these passages, whose indices begin at `offset`."""
        counts = Counter(_words(title) for title in self._titles)
        # A title that several sections bear ("Usage") names none of them.
        named = {words: i for i, title in enumerate(self._titles) if counts[words := _words(title)] == 1}
        made: dict[tuple[int, int], Link] = {}
        for source, passage in enumerate(track(self.passages, "Linking")):
            for target, start, stop in [*self._pointed_at(source), *self._named(source, named)]:
                if target != source and (source, target) not in made:
                    around = quote(passage.text, start, stop)
                    made[source, target] = Link(offset + source, offset + target, around)
        return list(made.values())

    def _pointed_at(self, source: int) -> Iterator[tuple[int, int, int]]:
        folder = os.path.dirname(self._places[source])
        for match in _MARKDOWN_LINK.finditer(self.passages[source].text):
            place, _, anchor = unquote(match[1] or match[2]).partition("#")
            path = os.path.normpath(os.path.join(folder, place)).replace(os.sep, "/") if place else self._places[source]
            for candidate in (path, f"{path}.md"):
                target = self._by_place.get(f"{candidate}#{anchor.lower()}" if anchor else candidate)
                if target is not None:
                    yield target, *match.span()
                    break

    def _named(self, source: int, named: dict[tuple[str, ...], int]) -> Iterator[tuple[int, int, int]]:
        text = self.passages[source].text
        spans = [match.span() for match in _WORD.finditer(text)]
        words = [text[start:stop] for start, stop in spans]
        lower = [word.lower() for word in words]
        at = 0
        while at < len(words):
            step = 1
            for length in range(min(LONGEST_TITLE, len(words) - at), 0, -1):  # the longest title that fits
                target = named.get(tuple(lower[at : at + length]))
                if target is None or (length == 1 and not _is_name(words[at], self._titles[target])):
                    continue
                yield target, spans[at][0], spans[at + length - 1][1]
                step = length
                break
            at += step


def _is_name(word: str, title: str) -> bool:
    """A title of one word is meant only when it is written the same, as a name is: "Mercury", not "options"."""
    return len(word) > 3 and word[0].isupper() and word in title


def _words(title: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(title.lower()))


def _anchor(title: str) -> str:
    """The fragment under which Markdown renderers file a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _paragraphs(text: str) -> Iterator[tuple[str, str]]:
    for piece in _PARAGRAPH_END.split(text):
        if len(piece.split()) >= docstrings.LEAST_WORDS:
            yield "", piece.strip()


def _sections(text: str, suffix: str) -> Iterator[tuple[str, str]]:
    """Heading and text of each section; what stands before the first heading has none."""
    if suffix == ".md":
        # A "#" in a code block is a comment. Blanking keeps the positions.
        plain = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
        headings = [(m.start(), m.end(), m[1]) for m in _MARKDOWN_HEADING.finditer(plain)]
    else:
        headings = [(m.start(), m.end(), m[1].strip()) for m in _RST_HEADING.finditer(text)]
    bounds = [(0, 0, ""), *headings, (len(text), len(text), "")]
    for (_, start, title), (stop, _, _) in pairwise(bounds):
        body = text[start:stop].strip()
        if len(body.split()) >= docstrings.LEAST_WORDS:
            yield title, body


def _questions(passages: list[Passage], links: list[Link], most: int = 4) -> list[str]:
    """Nobody knows what the user would ask: what the passages that name most others are about."""
    linked = Counter(link.source for link in links)
    chosen = sorted(range(len(passages)), key=lambda i: (-linked[i], i))[:most]
    return [_subject(passages[i]) for i in chosen]


def _subject(passage: Passage) -> str:
    """Its title, or the words of its first sentence; the number of a list item is none."""
    title = passage.name.rpartition(" › ")[2] if " › " in passage.name else ""
    if len(title.split()) > 1:
        return title
    sentences = [_WORD.findall(sentence) for sentence in re.split(r"(?<=[.!?:])\s", passage.text)]
    said = next((words for words in sentences if sum(map(str.isalpha, words)) > 2), _WORD.findall(passage.text))
    return " ".join(said[:16])
