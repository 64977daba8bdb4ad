"""The benchmarks run and give every figure. What the figures are is not a test's business."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from aesg import AESGConfig

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NOT_INSTALLED = 3  # what a benchmark exits with where 0.3.0 cannot be installed


def quick_run(script: str, folder: Path, *options: str) -> Any:
    out = folder / "figures.json"
    command = [sys.executable, str(BENCHMARKS / script), "--quick", "--json", str(out), *options]
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


STORE_PATHS = ["append", "gather", "scan", "out_edges", "decay", "commit_large", "commit_small"]
MAY_BE_ABSENT = {"decay": "aesg==0.3.0", "out_edges": "numba"}  # what a path is held against


def test_the_stores_are_measured_and_one_that_fails_costs_its_own_figures_only(tmp_path: Path) -> None:
    result = quick_run("stores.py", tmp_path, "--backends", "nosuch,memory,memmap")
    rows = {(row["backend"], row["path"]): row for row in result["rows"]}
    assert set(rows) == {(backend, path) for backend in ("nosuch", "memory", "memmap") for path in STORE_PATHS}
    for path in STORE_PATHS:
        assert "no backend for 'nosuch'" in rows["nosuch", path]["problem"]
        assert "an in-memory store has no path" in rows["memory", path]["problem"]
        row = rows["memmap", path]
        if row["problem"]:
            assert MAY_BE_ABSENT[path] in row["problem"]
            assert path == "decay" or importlib.util.find_spec("numba") is None
            continue
        assert row["verdict"] is None  # nothing is asked of a small store
        sides = row["turns"]
        assert len(sides["ours"]) == len(sides["limit"]) == 3, path
        figures = [
            *numbers(sides),
            *numbers(row["seconds"]),
            row["ratio"],
            row["ratio_of_means"],
            *row["ratio_p10_p90"],
        ]
        assert all(math.isfinite(figure) and figure > 0 for figure in figures), path
    promised = {path: rows["memmap", path]["durability"] for path in ("append", "commit_large", "commit_small")}
    assert promised == {"append": "process_crash", "commit_large": "power_loss", "commit_small": "power_loss"}

    assert "an in-memory store has no path" in result["footprints"]["memory"]["problem"]
    found = result["footprints"]["memmap"]
    assert found["problem"] == ""
    assert found["built"]["allocated_mb"] > found["built"]["content_mb"] > 0
    for kind in ("before", "after"):
        held = found["memory_mb"][kind]
        assert held["rss"] >= held["anon"] > 0
    assert found["memory_mb"]["gathers"] == 3
    assert all(time > 0 for time in numbers(found["opening_ms"]))


def test_a_row_of_the_stores_tells_reached_from_accepted_and_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    paths = importlib.import_module("stores_paths")
    case = next(case for case in paths.CASES if case.key == "commit_large")
    goal = case.goals["memmap"]
    assert (goal.reach, goal.accept) == (0.7, 0.3)
    assert "zarr" not in case.goals

    def row(*ours: float) -> Any:
        return paths.Row(case, "memmap", ours=list(ours), limit=[1.0] * len(ours), goal=goal)

    assert [row(seconds).verdict for seconds in (1.0, 2.0, 4.0)] == ["reached", "accepted", "missed"]
    merged = row(1.0, 1.0, 7.0)  # one merge in three commits
    assert (merged.ratio, merged.ratio_of_means) == (1.0, 1 / 3)
    assert merged.as_dict()["verdict"] == "reached"
    assert merged.as_dict()["verdict_of_means"] == "accepted"


def test_a_limit_that_was_not_the_same_beside_all_backends_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    stores, paths = importlib.import_module("stores"), importlib.import_module("stores_paths")
    gather, scan = (next(case for case in paths.CASES if case.key == key) for key in ("gather", "scan"))

    def row(case: Any, scheme: str, limit: float) -> Any:
        return paths.Row(case, scheme, ours=[1.0] * 3, limit=[limit] * 3)

    failed = paths.Row(gather, "lmdb", problem="it failed")
    assert stores.unsteady([row(gather, "memmap", 1.0), row(gather, "zarr", 1.4), row(scan, "zarr", 9.0), failed]) == []
    (line,) = stores.unsteady([row(gather, "memmap", 1.0), row(gather, "zarr", 1.6)])
    assert "np.take in RAM took 1,000,000 µs beside memmap, 1,600,000 µs beside zarr" in line


def test_store_and_limit_take_turns_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    turns = importlib.import_module("stores_turns")
    taken: list[tuple[str, int]] = []

    def side(name: str) -> Any:
        def turn(number: int) -> float:
            taken.append((name, number))
            return float(number)

        return turn

    times = turns.alternate(5, 1e9, side("ours"), side("limit"))
    assert times == {"ours": [0, 1, 2, 3, 4], "limit": [0, 1, 2, 3, 4]}
    assert taken[:4] == [("ours", 0), ("limit", 0), ("limit", 1), ("ours", 1)]  # neither is always the second

    ticks = count()
    monkeypatch.setattr(turns, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    assert len(turns.alternate(100, 10, side("ours"), side("limit"))["ours"]) < 20
    assert len(turns.alternate(100, 0, side("ours"), side("limit"))["ours"]) == turns.LEAST


RETRIEVAL_ROWS = [
    "ingest",
    "retrieve",
    "tail",
    "faiss",
    "usearch",
    "batches",
    "train",
    "first",
    "memory",
    "published",
    "growth",
    "hub",
    *(f"consolidate_{share}{preset}" for preset in ("", "_default") for share in ("none", "half")),
    "durable_none",
    "durable_half",
    "create",
    "append",
    "connect",
]
AGAINST_0_3_0 = {key for key in RETRIEVAL_ROWS if key.startswith("consolidate")} | {"published", "create"}


def test_retrieval_is_measured_in_every_row_and_a_backend_that_fails_costs_its_own_rows_only(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "figures.png"
    result = quick_run("retrieval.py", tmp_path, "--backends", "nosuch,memmap", "--plot", str(picture))
    rows = {(row["backend"], row["key"]): row for row in result["rows"]}
    assert [row["key"] for row in result["rows"] if row["backend"] == "memmap"] == RETRIEVAL_ROWS
    assert {key for backend, key in rows if backend == "nosuch"} == set(RETRIEVAL_ROWS) - {"published", "growth"}
    for (backend, key), row in rows.items():
        if backend == "nosuch":
            assert row["problem"], key
            continue
        if row["problem"]:
            absent = "aesg==0.3.0" in row["problem"] and key in AGAINST_0_3_0
            assert absent or (key == "faiss" and importlib.util.find_spec("faiss") is None), (key, row["problem"])
            continue
        assert row["verdict"] is None  # nothing is asked of a small memory
        figures = [row["value"], *row["p10_p90"], *numbers(row["turns"]), *numbers(row["seconds"])]
        assert all(math.isfinite(figure) for figure in figures), key
        assert key == "memory" or min(figures) > 0, key  # a small memory may hold less than what was there before
    for name in ("faiss", "usearch"):
        notes = rows["memmap", name]["notes"]
        if not rows["memmap", name]["problem"]:
            assert min(notes["recall_ours"], notes["recall_theirs"]) > 0.95  # of a few hundred, not always the same
            assert notes["results_shared"] > 0.95  # the same recipe gives the same answers
    if not rows["memmap", "published"]["problem"]:
        assert rows["memmap", "published"]["notes"]["same_answers"] == "2 of 2"
    assert [size["nodes"] for size in rows["memmap", "growth"]["notes"]["sizes"]] == [20, 200, 2000]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_row_of_retrieval_is_judged_by_whether_less_or_more_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    cases = importlib.import_module("retrieval_cases")
    by_key = {case.key: case for case in cases.CASES}

    def verdict(key: str, value: float, problem: str = "") -> Any:
        case = by_key[key]
        return cases.Row(case, "memmap", value=value, goal=case.goals["memmap"], problem=problem).verdict

    assert [verdict("retrieve", ms) for ms in (0.3, 0.6, 0.7)] == ["reached", "accepted", "missed"]
    assert [verdict("published", times) for times in (20_000, 2000, 1999)] == ["reached", "accepted", "missed"]
    assert [verdict("train", times) for times in (2.0, 2.1)] == ["reached", "missed"]
    assert verdict("retrieve", 0.1, problem="it failed") is None
    assert by_key["retrieve"].goals["zarr"] == cases.Goal(0.5, 1)
    assert "zarr" not in by_key["append"].goals
    assert by_key["growth"].goals == {}

    faster = cases.compared([1.0, 1.0, 2.0], [10.0, 20.0, 30.0])
    assert (faster["value"], cases.compared([2.0], [1.0], slower=True)["value"]) == (20.0, 2.0)
    assert faster["low"] < faster["value"]


def test_the_rivals_of_retrieval_find_what_a_walk_by_hand_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    made, rivals = importlib.import_module("retrieval_data"), importlib.import_module("retrieval_rivals")
    nodes, per_node, config = 1000, 6, AESGConfig(vector_dim=8)
    unit = made.directions(np.concatenate(list(made.vectors(nodes, 8))))
    graph = rivals.sparse(nodes, per_node, config)

    class Exact:
        def search(self, query: Any, count: int) -> Any:
            cosines = unit @ query
            rows = np.argsort(-cosines)[:count]
            return rows, cosines[rows]

    def by_hand(query: Any) -> dict[int, float]:
        rows, cosines = Exact().search(query, config.num_seeds)
        energy = {
            int(r): math.exp((c - cosines[0]) / config.seed_temperature) for r, c in zip(rows, cosines, strict=True)
        }
        received = dict(energy)
        for _ in range(config.spreading_activation_steps):
            arriving: dict[int, float] = {}
            for row, sent in received.items():
                for edge in range(graph.starts[row], graph.starts[row + 1]):
                    target = int(graph.targets[edge])
                    arriving[target] = arriving.get(target, 0) + sent * float(graph.passes[edge])
            gated = {row: e * max(0.0, float(unit[row] @ query)) / float(cosines[0]) for row, e in arriving.items()}
            received = {row: e for row, e in gated.items() if e > config.arrival_threshold}
            for row, e in received.items():
                energy[row] = energy.get(row, 0) + e
        return energy

    sides = [kind(Exact(), graph, unit, config) for kind in (rivals.ByNumPy, rivals.ByNumba)]
    for query in made.directions(made.queries(nodes, 8, 20)):
        energy = by_hand(query)
        assert len(energy) > config.num_seeds  # something was reached
        best = sorted(energy.values(), reverse=True)[: config.top_k]
        for side in sides:  # asked again and again: nothing is left of the query before
            assert [energy[int(row)] for row in side.ask(query)] == pytest.approx(best, rel=1e-3)


def test_half_of_the_edges_that_retrieval_walks_stay_in_their_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    made = importlib.import_module("retrieval_data")
    nodes, count = 2600, made.clusters(2600)
    assert count == 5
    for turn, (sources, targets, weight, confidence) in enumerate(made.edges(nodes, 4)):
        assert np.array_equal(sources, np.arange(nodes))
        assert targets.min() >= 0
        assert targets.max() < nodes
        at_home = np.mean(sources % count == targets % count)
        assert at_home == 1 if turn % 2 == 0 else at_home < 0.3
        assert 0 < min(weight.min(), confidence.min()) <= max(weight.max(), confidence.max()) <= 1


@pytest.mark.parametrize("name", ["footprint", "published", "retrieval", "stores"])
def test_a_benchmark_runs_as_a_module_too(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr
    assert "--quick" in done.stdout
