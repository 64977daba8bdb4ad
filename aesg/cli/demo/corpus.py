"""A corpus: passages of text, and the links that the text itself makes between them."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from aesg.records import Ids

T = TypeVar("T")


class Track(Protocol):
    """Something that shows progress: gives back the items one by one, and may draw a bar while it does."""

    def __call__(self, items: Sequence[T], description: str, /) -> Iterable[T]: ...


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text with a name of its own.

    Attributes:
        name: Unique within the corpus.
        text: What is embedded and quoted.
    """

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Link:
    """One passage names another.

    Attributes:
        source: Index of the passage that names.
        target: Index of the passage that is named.
        quote: The words around the name.
    """

    source: int
    target: int
    quote: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Passages and links.

    Attributes:
        title: What it is, for a heading.
        passages: In a fixed order.
        links: At most one for a pair of passages.
        questions: What the demo asks when its user asks nothing.
    """

    title: str
    passages: list[Passage]
    links: list[Link]
    questions: list[str] = field(default_factory=list)

    def ids(self) -> Ids:
        """Ids made of the names, uint64 [len(passages)]: a reopened memory's concepts are known by them."""
        digests = [blake2b(p.name.encode(), digest_size=8).digest() for p in self.passages]
        return np.frombuffer(b"".join(digests), dtype="<u8") >> np.uint64(1)


def files(root: Path, suffixes: Container[str], left_out: Container[str]) -> Iterator[Path]:
    """The files below a folder, in order of name, without hidden ones and what is named in `left_out`."""
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f not in left_out)
        for name in sorted(names):
            file = Path(folder, name)
            if file.suffix in suffixes and name not in left_out and not name.startswith(".") and file.is_file():
                yield file


def quote(text: str, start: int, stop: int, around: int = 42) -> str:
    """`text[start:stop]` with some words before and after, on one line."""
    left = max(0, start - around)
    right = min(len(text), stop + around)
    if left:
        left = text.find(" ", left, start) + 1 or left
    if right < len(text):
        space = text.rfind(" ", stop, right)
        right = space if space > 0 else right
    words = " ".join(text[left:right].split())
    return ("… " if left else "") + words + (" …" if right < len(text) else "")
