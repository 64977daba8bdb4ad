"""The benchmarks run and give every figure. What the figures are is not a test's business."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NOT_INSTALLED = 3  # what a benchmark exits with where 0.3.0 cannot be installed


def quick_run(script: str, folder: Path) -> Any:
    out = folder / "figures.json"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode == NOT_INSTALLED:
        pytest.skip(done.stderr.strip().splitlines()[0])
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value]


def test_the_comparison_with_0_3_0_gives_every_row_and_0_3_0s_answers(tmp_path: Path) -> None:
    result = quick_run("published.py", tmp_path)
    assert [row["key"] for row in result["rows"]] == [
        "insert_one_by_one",
        "insert_in_bulk",
        "insert_large",
        "connect_in_bulk",
        *(f"retrieve_{dim}_{preset}" for dim in (16, 128) for preset in ("aesg-0.3", "default")),
        "read_log",
        "reopen",
        *(f"consolidate_{share}_{preset}" for preset in ("aesg-0.3", "default") for share in ("none", "half")),
    ]
    for row in result["rows"]:
        figures = [*row["ours"], *row["theirs"], row["ratio"]]
        assert len(figures) >= 3, row["key"]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), row["key"]
    assert all(graph["same"] == graph["asked"] > 0 for graph in result["answers"].values())


def test_the_footprint_gives_memory_disk_and_reopening(tmp_path: Path) -> None:
    result = quick_run("footprint.py", tmp_path)
    assert len(result["memory_mb"]) == 5
    assert len(result["disk_mb"]) == len(result["reopening_ms"]) == 2
    for kind in ("memory_mb", "disk_mb", "reopening_ms"):
        for sides in result[kind].values():
            assert numbers(sides["ours"])
            assert all(math.isfinite(number) for number in numbers(sides))
