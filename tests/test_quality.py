"""The retrieval quality benchmark asks what it says it asks. A small made-up set stands in for the real ones."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BACKENDS = ["memory", "memmap", "lmdb", "zarr"]
DEPTHS = (2, 5, 10)
PASSAGES, ENTITIES, QUESTIONS, DIM = 300, 60, 40, 24


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules, which import one another by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("quality")


def write_set(file: Path, seed: int = 0) -> None:
    """Clusters of linked passages; a question is near one of a cluster, and others of it answer it."""
    rng = np.random.default_rng(seed)

    def near(vectors: np.ndarray, noise: float) -> np.ndarray:
        return (vectors + noise * rng.standard_normal(vectors.shape)).astype(np.float16)

    def weights(count: int) -> np.ndarray:
        return rng.uniform(0.2, 1.2, count).astype(np.float32)

    cluster = rng.integers(0, PASSAGES // 6, PASSAGES)
    centres = rng.standard_normal((PASSAGES // 6, DIM))
    passages = near(centres[cluster], 0.8)
    asked = rng.integers(0, PASSAGES, QUESTIONS)
    gold = [rng.permutation(np.flatnonzero(cluster == cluster[row]))[:3] for row in asked]

    pairs = rng.integers(0, PASSAGES, (6000, 2))
    pairs = np.unique(pairs[cluster[pairs[:, 0]] == cluster[pairs[:, 1]]], axis=0)
    tagged = np.stack([np.arange(PASSAGES), PASSAGES + (cluster + rng.integers(0, 3, PASSAGES)) % ENTITIES], axis=1)
    both = np.concatenate([pairs, tagged, tagged[:, ::-1]])
    named = [np.unique(tagged[some, 1])[: i % 3] for i, some in enumerate(gold)]  # some questions name nobody
    np.savez(
        file,
        passage_vectors=passages,
        query_vectors=near(passages[asked].astype(float), 1.0),
        gold_ptr=np.cumsum([0, *map(len, gold)]),
        gold=np.concatenate(gold).astype(np.int32),
        is_dev=np.arange(QUESTIONS) % 2 == 0,
        link_source=pairs[:, 0].astype(np.int32),
        link_target=pairs[:, 1].astype(np.int32),
        link_weight=weights(len(pairs)),
        entity_count=np.int64(ENTITIES),
        entity_link_source=both[:, 0].astype(np.int32),
        entity_link_target=both[:, 1].astype(np.int32),
        entity_link_weight=weights(len(both)),
        query_entity_ptr=np.cumsum([0, *map(len, named)]),
        query_entity=np.concatenate(named).astype(np.int32),
        query_entity_energy=rng.uniform(0.3, 1, sum(map(len, named))).astype(np.float32),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    home = tmp_path / "data"
    home.mkdir()
    write_set(home / "made_up.npz")
    return home


def recipe(set_: Any, kind: str, seeds: int, hops: int, least: float) -> list[list[int]]:
    """The best 10 passages of each question by dense matrices in float64, without any of our code."""
    passages, queries = (
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        for vectors in (set_["passage_vectors"].astype(np.float32), set_["query_vectors"].astype(np.float32))
    )
    cosine = queries.astype(float) @ passages.T.astype(float)
    count = PASSAGES + (ENTITIES if kind == "entity_link" else 0)
    flow = np.zeros((count, count))
    np.add.at(flow, (set_[f"{kind}_source"], set_[f"{kind}_target"]), set_[f"{kind}_weight"])
    out = flow.sum(axis=1, keepdims=True)
    flow = np.divide(flow, out**0.5, out=np.zeros_like(flow), where=out > 0)
    ranked = []
    for q, near in enumerate(cosine):
        best = near.max()
        energy = np.zeros(count)
        first = np.argsort(-near)[:seeds]
        energy[first] = np.exp((near[first] - best) / 0.05)
        if kind == "entity_link":
            here = slice(*set_["query_entity_ptr"][q : q + 2])
            energy[set_["query_entity"][here]] += set_["query_entity_energy"][here]
        gate = np.ones(count)
        gate[:PASSAGES] = np.maximum(0, near) / best
        wave = energy.copy()
        for _ in range(hops):
            wave = 0.8 * (wave @ flow) * gate
            wave[wave <= least] = 0
            energy += wave
        ranked.append(np.lexsort((-near, -energy[:PASSAGES]))[:10].tolist())
    return ranked


# What the ways are in terms of the recipes: edges, seeds, hops, what is dropped.
AS_RECIPES = {
    "cosine": ("link", 20, 0, 0.0),
    "default": ("link", 20, 3, 0.01),  # recipe L with a hop more: a newborn concept stands one in front
    "entities": ("entity_link", 10, 3, 0.001),
}


def recall(set_: Any, ranked: list[list[int]]) -> np.ndarray:
    ends = set_["gold_ptr"]
    gold = [set(set_["gold"][a:b].tolist()) for a, b in pairwise(ends)]
    return np.array([[len(g & set(r[:k])) / len(g) for k in DEPTHS] for g, r in zip(gold, ranked, strict=True)])


@pytest.mark.parametrize("name", AS_RECIPES)
def test_a_memory_ranks_passages_as_the_recipe_does(bench: Any, folder: Path, name: str) -> None:
    with np.load(folder / "made_up.npz") as set_:
        expected = recipe(set_, *AS_RECIPES[name])
    with bench.Asked(bench.load(folder / "made_up.npz"), bench.WAYS[name], "memory:") as asked:
        assert [ranked.tolist() for ranked in asked.answers()] == expected


def test_recipe_l_to_the_letter_is_a_hop_less(bench: Any, folder: Path) -> None:
    with np.load(folder / "made_up.npz") as set_:
        expected = recipe(set_, "link", 20, 2, 0.01)
    way = replace(bench.WAYS["default"], overrides={"spreading_activation_steps": 2})
    with bench.Asked(bench.load(folder / "made_up.npz"), way, "memory:") as asked:
        assert [ranked.tolist() for ranked in asked.answers()] == expected


@pytest.mark.parametrize("name", ["default", "entities"])
def test_no_question_is_answered_in_the_context_of_another(bench: Any, folder: Path, name: str) -> None:
    questions = bench.load(folder / "made_up.npz")
    with bench.Asked(questions, bench.WAYS[name], "memory:") as asked:
        together = asked.answers()
        backwards = replace(
            questions, queries=questions.queries[::-1], gold=questions.gold[::-1], named=questions.named[::-1]
        )
        asked.questions = backwards
        for one, other in zip(together, asked.answers()[::-1], strict=True):
            assert one.tolist() == other.tolist()


def test_entities_and_newborn_concepts_are_no_answers(bench: Any, folder: Path) -> None:
    questions = bench.load(folder / "made_up.npz")
    strange = replace(questions, queries=np.random.default_rng(5).standard_normal((QUESTIONS, DIM)).astype(np.float32))
    way = replace(bench.WAYS["entities"], overrides={"novelty_explanation_threshold": 1.0})
    with bench.Asked(strange, way, "memory:") as asked:
        born = asked.live_through(np.repeat(np.arange(10), 3), fresh=True)
        answers = asked.answers()
        assert born == 10
        with asked.memory.graph() as graph:
            assert len(graph.nodes) == PASSAGES + ENTITIES + born
    for ranked in answers:
        assert len(ranked) == 10
        assert ranked.max() < PASSAGES


def test_a_life_asks_its_own_half(bench: Any, folder: Path) -> None:
    questions = bench.load(folder / "made_up.npz")
    for life in bench.LIVES:
        order = life.order(questions, "held-out", 100)
        assert len(order) == 100
        assert questions.is_dev[order].all() == (life.half == "dev")
        assert questions.is_dev[order].any() == (life.half == "dev")
    thrice = bench.Life("", "", True, 3).order(questions, "held-out", 9)
    assert (thrice.reshape(3, 3) == thrice[::3, None]).all()


def test_the_interval_is_that_of_the_mean(bench: Any) -> None:
    np.testing.assert_allclose(bench.interval(np.full((50, 3), 0.25)), 0.25)
    differences = np.random.default_rng(1).normal(0.3, 1, (400, 1))
    low, high = bench.interval(differences)[:, 0]
    error = 1.96 * differences.std() / 20
    np.testing.assert_allclose([low, high], differences.mean() + np.array([-error, error]), atol=0.02)


def test_every_backend_gives_the_recalls_that_the_recipes_give(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures, picture = tmp_path / "figures.json", tmp_path / "picture.png"
    options = ["--learn", "--retrievals", "12", "--json", figures, "--plot", picture]
    command = [sys.executable, BENCHMARKS / "quality.py", folder, "--backends", ",".join(BACKENDS), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert "made_up" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
    results = json.loads(figures.read_text())["results"]
    answers = {(r["backend"], r["preset"]): r for r in results if not r["life"]}
    assert set(answers) == {(b, p) for b in BACKENDS for p in ("cosine", "aesg-0.3", "default", "entities")}
    with np.load(folder / "made_up.npz") as set_:
        held_out = ~set_["is_dev"]
        expected = {name: 100 * recall(set_, recipe(set_, *how))[held_out] for name, how in AS_RECIPES.items()}
    for (backend, name), result in answers.items():
        assert result["questions"] == held_out.sum()
        given = [result["recall"][str(depth)] for depth in DEPTHS]
        if name in expected:
            np.testing.assert_allclose(given, expected[name].mean(axis=0), err_msg=f"{backend} {name}")
            if name != "cosine":
                more = (expected[name] - expected["cosine"]).mean(axis=0)
                np.testing.assert_allclose(result["difference"]["mean"], more, atol=1e-9)
        assert result["recall"] == answers["memory", name]["recall"]
        assert (result["difference"] is None) == (name == "cosine")
        if result["difference"]:
            low, mean, high = (result["difference"][kind] for kind in ("low", "mean", "high"))
            assert all(a <= b <= c for a, b, c in zip(low, mean, high, strict=True))
    lives = [(r["backend"], r["preset"], r["life"]) for r in results if r["life"]]
    assert len(lives) == len(set(lives)) == len(BACKENDS) * 2 * 4


def test_without_data_it_says_so(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(folder: Path) -> str:
        monkeypatch.setattr(sys, "argv", ["quality.py", str(folder)])
        with pytest.raises(SystemExit) as stop:
            bench.main()
        assert stop.value.code == 2
        return capsys.readouterr().err

    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "no question set" in complaint(tmp_path)
    np.savez(tmp_path / "other.npz", vectors=np.zeros(3))
    assert "'passage_vectors' is missing" in complaint(tmp_path)
    (tmp_path / "other.npz").write_bytes(b"no archive")
    assert "not a question set" in complaint(tmp_path)
