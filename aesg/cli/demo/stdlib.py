"""The Python standard library's docstrings: real text with real links, on every machine that runs this."""

from __future__ import annotations

import platform
import sysconfig
from pathlib import Path
from typing import Final

from aesg.cli.demo import docstrings
from aesg.cli.demo.corpus import Corpus, Track, files
from aesg.errors import NotFoundError

LEFT_OUT: Final = {
    # Not the library: its tests, its installer, what others installed.
    "test", "tests", "idlelib", "ensurepip", "site-packages", "dist-packages", "lib-dynload", "__pycache__",
    # Tables and toolkits whose thousands of one-line docstrings speak of nothing else.
    "encodings", "pydoc_data", "tkinter", "turtle.py", "turtledemo", "distutils", "lib2to3", "msilib",
}  # fmt: skip

QUESTIONS: Final = [
    "run a command and get its output",
    "measure the execution time of a small piece of code",
    "wait for a coroutine but give up after a timeout",
    "compile a Python file to bytecode",
    "week number of a date",
]
"""Of some the answer lies a link away, which is what spreading is for; the last is answered by cosine just as well."""


def corpus(track: Track) -> Corpus:
    """Gather it from the source files of the running Python.

    Raises:
        NotFoundError: There are none.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = list(files(root, {".py"}, LEFT_OUT))
    passages, modules = docstrings.passages(root, sources, track)
    if not passages:
        raise NotFoundError(f"this Python came without the sources of its library ({root}): try --text with a folder")
    links = docstrings.links(passages, modules, track)
    title = f"docstrings of the Python {platform.python_version()} standard library"
    return Corpus(title, passages, links, QUESTIONS)
