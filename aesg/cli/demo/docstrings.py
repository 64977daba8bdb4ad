"""Docstrings as passages, and the functions, classes and modules that they name as links.

Sources are parsed, never imported or run.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from aesg.cli.demo.corpus import Link, Passage, Track, quote

LEAST_WORDS: Final = 6
"""A shorter docstring says too little to be found by what it says."""

_NAME = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")
_DISTINCTIVE = re.compile(r"[A-Za-z]_[A-Za-z]|[a-z][A-Z]")
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def passages(root: Path, sources: Sequence[Path], track: Track) -> tuple[list[Passage], set[str]]:
    """The public docstrings of Python files.

    Args:
        root: The folder that module names count from.
        sources: Python files below it.
        track: Shows progress.

    Returns:
        Passages named like `module.Class.method`, and which of the names are modules.
    """
    found: dict[str, str] = {}
    modules = set()
    for file in track(sources, "Reading"):
        parts = file.relative_to(root).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        if any(part.startswith("_") and part != "__init__" for part in parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # a file that Python itself could not read is no reason to stop
        modules.add(module)
        for name, text in _docstrings(tree, module):
            found.setdefault(name, text)
    return [Passage(name, text) for name, text in found.items()], modules & set(found)


def _docstrings(node: ast.Module | _Definition, name: str) -> Iterator[tuple[str, str]]:
    text = ast.get_docstring(node)
    if text and len(text.split()) >= LEAST_WORDS:
        yield name, text
    for child in node.body:
        if isinstance(child, _Definition) and not child.name.startswith("_"):
            yield from _docstrings(child, f"{name}.{child.name}")


def links(found: Sequence[Passage], modules: set[str], track: Track) -> list[Link]:
    """What the docstrings name: one link per pair, where the name first stands."""
    names = _Names(found, modules)
    made: dict[tuple[int, int], Link] = {}
    for source, passage in enumerate(track(found, "Linking")):
        text = passage.text
        for match in _NAME.finditer(text):
            target = names.resolve(passage.name, text, match)
            if target is not None and target != source and (source, target) not in made:
                made[source, target] = Link(source, target, quote(text, *match.span()))
    return list(made.values())


class _Names:
    """Finds what a name in a docstring means."""

    def __init__(self, found: Sequence[Passage], modules: set[str]) -> None:
        self.index = {passage.name: i for i, passage in enumerate(found)}
        self.modules = modules
        self.by_last_part = defaultdict(list)
        for name in self.index:
            self.by_last_part[name.rpartition(".")[2]].append(name)

    def resolve(self, inside: str, text: str, match: re.Match[str]) -> int | None:
        """The passage that a word of `inside`'s docstring names; None when it is just a word."""
        name, (start, stop) = match[0], match.span()
        before, after = text[:start], text[stop : stop + 12]
        if name in self.modules and (after.startswith(" module") or before.endswith("module ")):
            return self.index[name]
        quoted = before.endswith("`") and after.startswith("`")
        if not (quoted or after.startswith("(") or "." in name or _DISTINCTIVE.search(name)):
            return None
        # As Python does: the innermost scope that has the name. `.join()` in a method's docstring is its class's.
        scope = inside
        while scope:
            if (local := f"{scope}.{name}") in self.index:
                return self.index[local]
            scope = scope.rpartition(".")[0]
        if name in self.index and ("." in name or quoted):
            return self.index[name]
        return self._elsewhere(name)

    def _elsewhere(self, name: str) -> int | None:
        """A name that only one passage in the corpus can mean."""
        qualifier, _, last = name.rpartition(".")
        if qualifier:  # `concurrent.futures.Future`, defined in a module further down
            candidates = [c for c in self.by_last_part[last] if c.startswith(f"{qualifier}.")]
        elif _DISTINCTIVE.search(name):
            candidates = [c for c in self.by_last_part[last] if c.rpartition(".")[0] in self.modules]
        else:
            candidates = []
        return self.index[candidates[0]] if len(candidates) == 1 else None
