"""The documentation: what it shows runs, what it names is there, its pictures are those that its tools draw."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from aesg.cli.main import app
from tools import guarantees, measured, pictures

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^( *)```([a-z]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
"""A fenced block. ```python runs, ```py is a piece of something."""

RUN = """
import json, os, re, sys, traceback
from pathlib import Path

import numpy as np

import aesg
from aesg.records import NodeBatch

failed = 0
for k, (line, source) in enumerate(json.loads(sys.stdin.read())):
    folder = Path(f"block-{k}").absolute()
    folder.mkdir()
    os.chdir(folder)
    if "my_memory" in source and not re.search(r'AESGMemory\\(|my_memory", vector_dim', source):
        with aesg.open("./my_memory", vector_dim=64) as store:
            store.nodes.append(NodeBatch(np.eye(64)))
    try:
        exec(compile("\\n" * line + source.replace("///srv/", f"//{folder}/"), PAGE, "exec"), {"__name__": "__main__"})
    except BaseException:
        failed += 1
        traceback.print_exc()
    os.chdir(folder.parent)
sys.exit(failed)
"""
"""Runs the blocks of a page, each in a fresh folder and with fresh names, in one process: most begin with torch.

A block that makes no memory of its own finds one where all of them have it; what it puts below /srv stays where it is.
"""


def blocks(page, *kinds):
    """(lines before it, text) of each fenced block of these kinds."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        if match[2] in kinds:
            yield text.count("\n", 0, match.start(3)), match[3]


def named(page):
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=named)
def test_every_python_block_runs(page, tmp_path):
    source = RUN.replace("PAGE", repr(named(page)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=tmp_path,
        input=json.dumps(list(blocks(page, "python"))),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "py"))], ids=named)
def test_every_piece_of_python_is_python(page):
    for line, source in blocks(page, "py"):
        ast.parse("\n" * line + source, named(page))


def test_every_command_that_is_shown_exists():
    commands = typer.main.get_command(app).commands
    shown = 0
    for page in PAGES:
        for line, text in blocks(page, "", "bash", "console", "sh", "text"):
            for number, words in enumerate(text.splitlines(), line + 1):
                match = re.match(r"(?:\$ )?aesg +(.*?)(?:  .*| #.*)?$", words)
                if match is None or (match[1].startswith("[") and "|" in match[1]):
                    continue
                where, parts = f"{named(page)}:{number}", shlex.split(re.split(r" \| |;", match[1])[0])
                name = next((part for part in parts if not part.startswith("-")), None)
                if name is None:
                    continue
                assert name in commands, f"{where}: no command {name}"
                known = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
                used = {part.partition("=")[0] for part in parts if part.startswith("--")} - {"--debug", "--version"}
                assert used <= known, f"{where}: aesg {name} has no {', '.join(sorted(used - known))}"
                shown += 1
    assert shown > 5


def test_the_pages_link_to_files_that_are_there():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text("utf-8"))
        for target in re.findall(r"\]\(([^)\s#:]+)(?:#[^)]*)?\)", text):
            assert (page.parent / target).exists(), f"{named(page)}: {target}"


def test_the_table_of_guarantees_is_what_the_backends_promise():
    text = (ROOT / "docs" / "guarantees.md").read_text("utf-8")
    assert guarantees.written(text) == text, "stale: run `make guarantees`"


def test_the_figures_are_those_of_the_readme():
    text = measured.PAGE.read_text("utf-8")
    assert measured.written(text) == text, "stale: run `make guarantees`"


@pytest.mark.parametrize("name", pictures.DRAWN)
def test_a_picture_is_what_its_tool_draws(name):
    assert (pictures.IMAGES / name).read_text("utf-8") == pictures.DRAWN[name](), "stale: python -m tools.pictures"


def test_the_picture_of_spreading_is_a_run_of_the_memory():
    run = pictures.spread()
    assert run.names[run.ranks.argmin()] == "subprocess"  # the nearest, with any Python's docstrings
    seeds, first, last = run.energies[0], run.energies[1], run.energies[-1]
    reached = [target for _, target in run.ways[1]]
    assert reached
    assert (first[reached] > seeds[reached]).all()
    run_ = run.names.index("subprocess.run")
    assert last[run_] > first[run_] > seeds[run_]
    svg = pictures.spreading(run)
    assert svg.count("<circle") > 4 * 10
    assert f">run {last[run_]:.2f}<" in svg


def test_the_site_fetches_nothing_from_elsewhere():
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert "font: false" in config
    style = (ROOT / "docs" / "extra.css").read_text("utf-8")
    drawn = "".join(path.read_text("utf-8") for path in (ROOT / "docs" / "images").glob("*.svg"))
    assert not re.search(r"https?://(?!www\.w3\.org/|purl\.org/|creativecommons\.org/|matplotlib\.org/)", style + drawn)
