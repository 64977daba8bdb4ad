"""The benchmark of migration runs and gives every figure. What the figures are is not a test's business."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def test_it_goes_around_and_compares(tmp_path):
    pytest.importorskip("icechunk")
    command = [sys.executable, str(BENCHMARKS / "migration.py"), "--quick", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(leg["source"], leg["destination"]) for leg in found["legs"]] == [
        ("memmap", "lmdb"), ("lmdb", "zarr"), ("zarr", "icechunk"), ("icechunk", "memmap")
    ]  # fmt: skip
    for leg in found["legs"]:
        assert leg["digest"].startswith("aesg1:")
        assert leg["digest"] in done.stdout.replace("\n", "")
        assert len(leg["seconds"]) == len(leg["memory"]) == len(leg["synced"]) == 1
        assert len(leg["copies"]) == 2
        assert leg["bytes"] > 0 < leg["ratio"]
