"""Every command has a page, and the examples on it do what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

import aesg
from aesg.cli.main import app
from aesg.exchange.importing import import_file
from aesg.records import EventType, NodeBatch, events

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted((DOCS / "commands").glob("*.md"))
GROUP = typer.main.get_command(app)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with what the examples speak of: a memory, a damaged copy of it, and texts."""
    folder = tmp_path_factory.mktemp("prepared")
    rng = np.random.default_rng(0)
    with aesg.open(folder / "memory", vector_dim=4) as store, store.transaction() as transaction:
        ids, when = np.arange(100, 120, dtype=np.uint64), np.full(20, 1_700_000_000, np.uint64)
        vectors = rng.standard_normal((20, 4), dtype=np.float32)
        rows = transaction.nodes.append(NodeBatch(vectors, ids, {"created_at": when, "modified_at": when}))
        transaction.nodes.write([19], is_active=0)
        transaction.edges.append(np.repeat(rows, 2), np.concatenate([np.roll(rows, 1), np.roll(rows, 3)]), 0.5, 0.9)
        transaction.events.append(events(EventType.CREATE, ids, val=1.0, timestamp=1_700_000_000))
        transaction.events.append(events(EventType.PRUNE, 119, timestamp=1_700_000_060))
        transaction.events.append(events(EventType.CONSOLIDATE, 1, 19, timestamp=1_700_000_060))
        transaction.attrs["epoch"] = 1
    shutil.copytree(folder / "memory", folder / "damaged")
    with open(folder / "damaged" / "nodes.aesg", "r+b") as file:
        file.seek(8)  # the first number of the first vector
        file.write(np.float32("nan").tobytes())
    (folder / "texts").mkdir()
    for name in ("how-it-works.md", "memmap.md", "blocks.md"):
        shutil.copy(DOCS / name, folder / "texts")
    (folder / "bin").mkdir()
    for name, arguments in {"aesg": "-m aesg ", "python": ""}.items():
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments}"$@"\n')
        (folder / "bin" / name).chmod(0o755)
    return folder


def examples(page):
    """The commands in the `console` blocks of a page, each with the lines that follow it."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def plain(line):
    return " ".join(line.split())


def test_every_command_has_a_page_and_every_page_a_command():
    assert [page.stem for page in PAGES] == sorted(GROUP.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_every_option(page):
    text = page.read_text()
    assert text.startswith(f"# aesg {page.stem}\n")
    if page.stem == "bench":  # the page says that help has them all
        assert "`aesg bench --help` has them all" in text
        return
    for param in GROUP.commands[page.stem].params:
        if param.param_type_name == "option":
            assert any(name in text for name in param.opts), param.opts


def test_the_tables_of_the_exchange_page_are_imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (DOCS / "exchanging.md").read_text(), re.DOTALL | re.MULTILINE)
    exec(compile(code, "exchanging.md", "exec"), {})
    done = import_file("mine.npz", tmp_path / "store")
    assert (done.nodes, done.edges, done.vector_dim) == (1000, 999, 64)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page(page, prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    environment = dict(os.environ, PATH=f"{tmp_path}/bin:{os.environ['PATH']}", COLUMNS="200", TZ="UTC")
    environment |= {"PYTHONPATH": str(DOCS.parent), "OMP_NUM_THREADS": "1"}
    commands = examples(page)
    assert any(command.startswith(f"aesg {page.stem} ") or command == f"aesg {page.stem}" for command, _ in commands)
    for command, expected in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        output = [plain(line) for line in (done.stderr + done.stdout).splitlines()]
        assert "Traceback" not in done.stderr
        at = 0
        for line in expected:
            pattern = ".*".join(re.escape(part) for part in plain(line).split("…"))
            where = [number for number in range(at, len(output)) if re.fullmatch(pattern, output[number])]
            if not line.isdigit():  # a part of a line will do, but for an exit status
                where = where or [n for n in range(at, len(output)) if re.search(rf"(^|\W){pattern}", output[n])]
            assert where, f"$ {command}\nexpected {line!r} in\n" + "\n".join(output[at:])
            at = where[0] + 1
