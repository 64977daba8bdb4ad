"""The comparison with other systems runs, gives every figure, and believes no wrong answer."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RIVALS = {
    "faiss + CSR": ["faiss"],
    "kuzu": ["kuzu", "pyarrow"],
    "lancedb": ["lancedb", "pyarrow"],
    "sqlite-vec": ["apsw", "sqlite_vec"],
    "duckdb": ["duckdb", "pyarrow"],
}
INSTALLED = [name for name, modules in RIVALS.items() if all(importlib.util.find_spec(module) for module in modules)]
FIGURES = {
    "create",
    "create_mb",
    "disk_mb",
    "reopen",
    "ask",
    "asked_mb",
    "learn",
    "reinforce",
    "consolidate",
    "after",
    "disk_after_mb",
}
MAY_BE_ZERO = {"create_mb", "asked_mb"}  # what a small memory takes


def run(folder: Path, *options: str) -> tuple[subprocess.CompletedProcess[str], Any]:
    out = folder / "figures.json"
    command = [sys.executable, str(BENCHMARKS / "rivals.py"), "--quick", "--json", str(out), "--folder", str(folder)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=900, check=False)
    return done, json.loads(out.read_text()) if out.exists() else None


QUICKEST = ["kuzu", "sqlite-vec", "duckdb"]
"""One of each kind, that need no seconds to be imported or compiled."""


@pytest.mark.parametrize(
    ("nodes", "ours", "others"),
    [
        (1000, ["memmap"], QUICKEST),
        pytest.param(10_000, ["memmap", "lmdb", "zarr"], list(RIVALS), marks=pytest.mark.slow),
    ],
    ids=["short", "long"],
)
def test_all_systems_do_the_job_and_answer_as_numpy_does(
    tmp_path: Path, nodes: int, ours: list[str], others: list[str]
) -> None:
    installed = [name for name in others if name in INSTALLED]
    if not installed:
        pytest.skip("none of the other systems is installed: pip install 'aesg[rivals]'")
    pytest.importorskip("matplotlib")
    page, picture = tmp_path / "page.md", tmp_path / "picture.svg"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    names = [*ours, *installed]
    options = ("--nodes", str(nodes), "--systems", ",".join(names), "--plot", str(picture), "--page", str(page))
    done, result = run(tmp_path, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [system["name"] for system in result["systems"]] == names
    for system in result["systems"]:
        name = system["name"]
        assert (system["problem"], system["faults"]) == ("", []), name
        assert system["compared"] > 0, name
        # As many as were asked, before and after; some systems search approximately, worst where much was removed.
        assert system["compared"] + system["undecided"] == 2 * result["sizes"]["checked"], name
        assert system["recall"]["made"][0] >= 0.9, name
        assert system["recall"]["consolidated"][0] >= 0.7, name
        assert set(system["figures"]) == FIGURES, name
        for key, figures in system["figures"].items():
            least = 0 if key in MAY_BE_ZERO else 1e-9
            assert all(math.isfinite(figure) and (figure >= least or key == "asked_mb") for figure in figures), key
        assert len(system["figures"]["learn"]) == len(system["figures"]["reinforce"]) == result["sizes"]["lessons"]
        assert len(system["figures"]["ask"]) == result["sizes"]["queries"]
        assert all(system["about"]["versions"].values()), name
    for system in result["systems"][: len(ours)]:
        assert system["recall"]["made"] == system["recall"]["consolidated"] == [1.0]  # small memories are scanned
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"{nodes:,} nodes" in text
    assert "<svg" in picture.read_text()[:2000]


def test_a_system_that_takes_too_long_is_ended_and_costs_its_own_figures_only(tmp_path: Path) -> None:
    done, result = run(tmp_path, "--nodes", "1000", "--systems", "memmap", "--patience", "0.01")
    assert done.returncode == 0, done.stderr
    (system,) = result["systems"]
    assert system["problem"] == "about: did not finish in 0.01 s"
    assert system["figures"] == {}
    assert "memmap: about: did not finish in 0.01 s" in done.stdout


def test_a_page_without_a_place_for_the_figures_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- figures -->\n")
    done, result = run(tmp_path, "--systems", "memmap", "--page", str(page))
    assert (done.returncode, result) == (2, None)
    assert "has no place between" in done.stderr
    assert page.read_text() == "<!-- figures -->\n"


def test_an_unknown_system_is_refused(tmp_path: Path) -> None:
    done, result = run(tmp_path, "--systems", "memmap,nosuch")
    assert (done.returncode, result) == (2, None)
    assert "choose from memmap, lmdb" in done.stderr


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("rivals_job")


@pytest.fixture
def reference(job: Any, tmp_path: Path) -> Any:
    job.write(tmp_path, 600, 5, 8, 10)
    return job.Reference(job.read(tmp_path), job.Rule.of(8))


def answers(job: Any, reference: Any, queries: Any) -> list[Any]:
    return [reference.activate(query) for query in queries]


def test_right_answers_are_believed_and_wrong_ones_are_not(job: Any, reference: Any, tmp_path: Path) -> None:
    queries = np.load(tmp_path / "queries.npy")
    right = answers(job, reference, queries)
    found = job.compare(reference, queries, right)
    assert found.faults == []
    assert (found.recall, found.compared + found.undecided) == (1.0, len(queries))
    assert found.compared > 0
    decided = next(i for i, answer in enumerate(right) if answer.margin >= job.BORDERLINE)
    one, query = right[decided], queries[decided : decided + 1]
    assert len(one.rows) > reference.rule.seeds  # something was reached
    order = np.argsort(-one.energies)
    wrong = {
        "1 of": job.Activated(one.seeds, one.rows[1:], one.energies[1:]),
        "1 are too many": job.Activated(one.seeds, np.append(one.rows, 10**6), np.append(one.energies, 1.0)),
        "other energies": job.Activated(one.seeds, one.rows, one.energies * np.where(order == 0, 1.01, 1.0)),
        "instead of 20": job.Activated(one.seeds[:-1], one.rows, one.energies),
    }
    for said, answer in wrong.items():
        (fault,) = job.compare(reference, query, [answer]).faults
        assert said in fault
    # A system that gives no energies is held to their order.
    assert job.compare(reference, query, [job.Activated(one.seeds, one.rows[order], None)]).faults == []
    (fault,) = job.compare(reference, query, [job.Activated(one.seeds, one.rows[order][::-1], None)]).faults
    assert "other energies" in fault


def test_seeds_that_are_not_the_nearest_lower_recall_only(job: Any, reference: Any, tmp_path: Path) -> None:
    query = np.load(tmp_path / "queries.npy")[:1]
    rows = reference.nearest(query[0], 22)[0]
    found = job.compare(reference, query, [reference.activate(query[0], rows[[0, *range(3, 22)]])])
    assert found.faults == []
    assert found.recall == 0.9


def test_the_reference_learns_reinforces_and_forgets(job: Any, reference: Any, tmp_path: Path) -> None:
    query = np.load(tmp_path / "queries.npy")[0]
    before = reference.activate(query)
    assert reference.counts == (600, 3000)
    reference.reinforce(0, 0.5)
    after = reference.activate(query)
    assert not np.array_equal(before.energies, after.energies)
    reference.learn(0)
    new = job.lesson(0, 600, 3000, 8)
    assert reference.counts == (700, 4000)
    assert reference.nearest(new.vectors[7], 1)[0].tolist() == [607]
    reference.consolidate()
    nodes, edges = reference.counts
    assert nodes == 400  # half of the old ones
    assert 0 < edges < 2000
    forgotten = np.flatnonzero(np.load(tmp_path / "relevance.npy") < 0.5)
    assert not np.isin(reference.activate(query).rows, forgotten).any()


def test_what_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    systems = importlib.import_module("rivals_systems")
    with pytest.raises(RuntimeError, match=r"no-such-package is not installed: pip install 'aesg\[rivals\]'"):
        systems.version_of("no-such-package")
