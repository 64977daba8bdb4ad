"""`aesg index`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import aesg
from aesg.cli.commands import index as command
from aesg.cli.main import app
from aesg.engine.index import owner
from aesg.errors import InvalidInputError, NotFoundError, UnsupportedError
from tests.index_support import clustered, filled

VECTORS = clustered(600)


@pytest.fixture
def url(tmp_path):
    filled(f"memmap://{tmp_path}/store", VECTORS).close()
    return f"memmap://{tmp_path}/store"


def run(*args, status=0):
    result = CliRunner().invoke(app, ["index", *args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status
    return json.loads(result.stdout) if "--json" in args else result.output


def test_build_show_check_drop(url, tmp_path):
    assert run(url, "--json") == {
        "url": url, "index": "auto", "nodes": 600, "folder": str(tmp_path / "store.seed-index"), "built": False
    }  # fmt: skip
    built = run(url, "--build", "--json")
    assert (built["state"], built["entries"], built["recall"] >= 0.98) == ("ready", 600, True)
    shown = run(url, "--json")
    assert (shown["built"], shown["rows"], shown["up_to_date"]) == (True, 600, True)
    assert shown["bytes_on_disk"] > 600 * 32
    checked = run(url, "--check", "--json")
    assert checked["good"]
    assert checked["recall"] >= checked["least"] == 0.98
    with aesg.open(url) as store:
        store.nodes.write([0], is_active=0)
    assert not run(url, "--json")["up_to_date"]
    assert run(url, "--check", "--json")["good"]
    assert run(url, "--drop", "--json") == {"url": url, "dropped": True}
    assert run(url, "--drop", "--json") == {"url": url, "dropped": False}
    assert not (tmp_path / "store.seed-index").exists()


def test_people_see_a_table_and_bars(url, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as if on a terminal
    text = run(url, "--build")
    monkeypatch.delenv("FORCE_COLOR")
    for part in ("building", "600/600", "recall", "entries", url):
        assert part in text
    assert "True" in run(url)
    assert "queries" in run(url, "--check")


def test_a_poor_index_is_told_by_the_status(url, monkeypatch):
    run(url, "--build")
    monkeypatch.setattr(owner.HNSW, "search", lambda self, directions, count: 2 * (np.zeros(0, np.int64),))
    found = run(url, "--check", "--json", status=1)
    assert (found["good"], found["recall"]) == (False, 0.0)
    run(url, "--check", status=1)


def test_errors(url):
    with pytest.raises(NotFoundError, match="--build"):
        command.check_index(url, None)
    with pytest.raises(InvalidInputError, match="one thing at a time"):
        run(url, "--build", "--drop")
    with pytest.raises(UnsupportedError, match="no local place"):
        command._forced(aesg.open("memory:", vector_dim=3))
