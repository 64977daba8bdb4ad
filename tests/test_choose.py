"""`aesg choose`: what is decided, why, and that asking for more never lets more backends fit."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import aesg
from aesg.backends import registry
from aesg.backends.registry import Backend
from aesg.bench import Demands, choose, choosing
from aesg.bench.choosing import Candidate, Choice, read_figures, shipped
from aesg.cli.main import app
from aesg.errors import AESGError, InvalidInputError
from aesg.protocols import Durability, Integrity, ReaderView

ROOT = Path(__file__).parents[1]
QUICK = {"memmap:": 0.0001, "lmdb:?sync=false": 0.0002, "zarr:": 0.004, "icechunk:": 0.02, "memory:": 0.001}
DURABLE = {"memmap:?durability=power_loss": 0.001, "lmdb:": 0.002, "zarr:?durability=power_loss": 0.008}
BUILT_IN = ["icechunk", "lmdb", "memmap", "memory", "zarr"]


def figures(commits: dict[str, float], retrieve: float = 0.002, spread: float = 0.01) -> dict[str, Any]:
    """Made-up figures: seconds of a commit by name, all queries alike; quartiles a share away."""
    shown = [
        {"contender": name, "workload": workload, "state": "churned", "q1": s * (1 - spread), "median": s}
        | {"q3": s * (1 + spread)}
        for name, commit in commits.items()
        for workload, s in (("commit", commit), ("retrieve", retrieve))
    ]
    known = shipped()
    return {"figures": shown, "plan": known["plan"], "machine": known["machine"], "made": "2026-01-01"}


FIGURES = figures(QUICK | DURABLE)


@pytest.fixture(autouse=True)
def only_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else is installed here is no matter."""
    for scheme in BUILT_IN:
        pytest.importorskip(scheme) if scheme == "icechunk" else None
    monkeypatch.setattr(registry, "schemes", lambda: sorted({*BUILT_IN, *registry._registered}))
    monkeypatch.setattr(registry, "_registered", {})


def chosen(**demands: Any) -> str | None:
    best = choose(Demands.of(**({"reads": 1} | demands)), FIGURES).recommended
    return best and best.name


@pytest.mark.parametrize(
    ("demands", "expected"),
    [
        ({}, "memmap:"),
        ({"durability": "power_loss"}, "memmap:?durability=power_loss"),
        ({"processes": 8}, "memmap:"),
        ({"processes": 8, "readers": "fixed"}, "lmdb:?sync=false"),
        ({"processes": 1, "readers": "fixed"}, "memmap:"),  # nobody reads along
        ({"snapshots": True}, "lmdb:?sync=false"),
        ({"snapshots": True, "durability": "power_loss"}, "lmdb:"),
        ({"snapshots": True, "durability": "power_loss", "writes": 300}, "lmdb:"),
        ({"snapshots": True, "durability": "power_loss", "writes": 500}, None),  # 2 ms each
        ({"integrity": "checksums", "writes": 100}, "lmdb:?sync=false"),
        ({"durability": "power_loss", "writes": 700}, "memmap:?durability=power_loss"),
        ({"durability": "power_loss", "writes": 900}, None),
        ({"writes": 4000}, "memmap:"),
        ({"writers": 2, "processes": 2}, None),
        ({"remote": True}, None),
        ({"durability": "none", "writes": 0}, "memory:"),  # as fast as any, and no disk
        ({"durability": "none", "writes": 900}, "memmap:"),
        ({"durability": "none", "nodes": 10**9}, "memmap:"),  # does not fit into memory
    ],
)
def test_decisions(demands: dict[str, Any], expected: str | None) -> None:
    assert chosen(**demands) == expected


def test_what_the_figures_do_not_tell_apart_does_not_decide() -> None:
    asked = Demands(writes=50)
    close = {"memmap:": 0.0012, "lmdb:?sync=false": 0.0010, "zarr:": 0.004}
    assert named(choose(asked, figures(close, retrieve=0.0001))) == "lmdb:?sync=false"
    assert named(choose(asked, figures(close, retrieve=0.0001, spread=0.2))) == "memmap:"  # the smaller store


def named(choice: Choice) -> str | None:
    return choice.recommended and choice.recommended.name


def test_reasons_changes_and_the_others_are_told() -> None:
    choice = choose(Demands(writes=50, durability=Durability.POWER_LOSS, reads=1), FIGURES)
    said = " ".join(choice.reasons)
    assert "A commit takes 1.00 ms and a query 2.00 ms: 5.2% of the writer's time." in said
    assert "It is faster than lmdb: 2.00 ms and 2.00 ms." in said
    assert "If two processes must write: nothing that is installed does that." in choice.changes
    assert "If you need snapshots: lmdb." in choice.changes
    assert "If surviving a killed process is enough: memmap." in choice.changes
    (limit,) = [change for change in choice.changes if "commits a second:" in change]
    assert limit.startswith(("Above 7", "Above 8"))  # 80 % of 1,000, less a query
    assert "nothing keeps up" in limit
    whys = {candidate.name: " ".join(candidate.why_not) for candidate in choice.candidates}
    assert [name.partition(":")[0] for name in whys if not whys[name]] == ["memmap", "lmdb", "zarr"]
    assert "durability power loss was required" in whys["icechunk:"]
    assert "durability power loss was required" in whys["memory:"]


def test_when_nothing_fits_it_says_what_would() -> None:
    choice = choose(Demands(writers=2, processes=2), FIGURES)
    assert choice.recommended is None
    assert "If one process writes and the others read: memmap." in choice.changes
    assert all(candidate.why_not for candidate in choice.candidates)


@pytest.mark.parametrize("name", [*QUICK, *DURABLE])
def test_the_url_is_ready(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with aesg.open(Candidate(name, None, ()).url, vector_dim=3) as store:
        assert len(store.nodes) == 0
    assert ((tmp_path / "my_memory").exists()) == (name != "memory:")


def test_one_that_was_not_measured_takes_the_figures_of_its_nearest_kin_and_says_so() -> None:
    asked = Demands(durability=Durability.POWER_LOSS, snapshots=True)
    choice = choose(asked, figures({"lmdb:?sync=false": 0.0002}))
    assert choice.recommended is not None
    assert (choice.recommended.name, choice.recommended.like) == ("lmdb:", "lmdb:?sync=false")
    assert "These are the figures of lmdb:?sync=false; its own were not taken." in choice.reasons
    blind = choose(asked, figures({}))
    assert named(blind) == "lmdb:"
    assert "--measure does" in " ".join(blind.reasons)


def test_a_plug_in_is_chosen_when_it_alone_fits() -> None:
    lmdb = registry.backend("lmdb")
    assert lmdb.promises is not None
    promises = replace(lmdb.promises({}), remote=True)
    registry.register(Backend("faraway", "for this test", lmdb.open, promises=lambda options: promises))
    assert named(choose(Demands(remote=True), FIGURES)) == "faraway:"
    assert named(choose(Demands(), FIGURES)) == "memmap:"


def test_a_backend_whose_package_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "schemes", lambda: ["memmap", "nosuch"])
    missing = choose(Demands(), FIGURES).candidates[-1]
    assert missing.name == "nosuch:"
    assert missing.promises is None
    assert "no backend for 'nosuch'" in missing.why_not[0]


def test_larger_stores_take_more_and_their_sizes_are_those_of_the_format(tmp_path: Path) -> None:
    sizes = {c.name: c for c in choose(Demands(nodes=10**6, edges=10**7, dim=128), FIGURES).candidates}
    index = 10**6 * (2 * 128 + 150)
    assert sizes["memmap:"].disk == 10**6 * (53 + 4 * 128) + 10**7 * 36 + index
    memory = sizes["memory:"].memory
    assert memory is not None
    assert memory > 2 * 10**6 * 4 * 128
    small = {c.name: c for c in choose(Demands(nodes=1000, edges=10**4, dim=128), FIGURES).candidates}
    for name, candidate in sizes.items():
        assert (candidate.retrieve or 0) > (small[name].retrieve or math.inf)


demands = st.builds(
    Demands,
    nodes=st.integers(1, 10**8),
    edges=st.integers(0, 10**9),
    dim=st.integers(1, 4096),
    writes=st.floats(0, 1e5),
    reads=st.floats(0, 1e4),
    processes=st.integers(2, 9),
    writers=st.integers(0, 2),
    durability=st.sampled_from(Durability),
    readers=st.sampled_from(ReaderView),
    integrity=st.sampled_from(Integrity),
    snapshots=st.booleans(),
    remote=st.booleans(),
)
times = st.floats(1e-5, 0.1)
measured = st.builds(
    figures, st.dictionaries(st.sampled_from(sorted(QUICK | DURABLE)), times), retrieve=times, spread=st.floats(0, 0.5)
)


def fitting(choice: Choice) -> set[str]:
    return {candidate.name.partition(":")[0] for candidate in choice.candidates if candidate.fits}


def more(one: Demands, other: Demands) -> Demands:
    """Both at once."""
    return Demands(**{name: max(getattr(one, name), getattr(other, name)) for name in one.__dataclass_fields__})


@settings(max_examples=60)
@given(demands, demands, measured)
def test_more_demands_never_let_more_backends_fit(one: Demands, other: Demands, found: dict[str, Any]) -> None:
    both = fitting(choose(more(one, other), found))
    assert both <= fitting(choose(one, found))
    assert both <= fitting(choose(other, found))


@settings(max_examples=60)
@given(demands, measured)
def test_what_is_recommended_does_what_is_asked(asked: Demands, found: dict[str, Any]) -> None:
    choice = choose(asked, found)
    assert (choice.recommended is None) == (not fitting(choice))
    if choice.recommended is not None:
        assert choice.recommended.promises is not None
        assert choice.recommended.promises.missing(asked.require()) == []
        assert choice.recommended.busy is None or choice.recommended.busy <= choosing.BUSY
    assert json.loads(json.dumps(choice.as_dict()))["recommended"] == named(choice)


@pytest.mark.parametrize(
    "wrong",
    [
        {"nodes": 0},
        {"writes": -1},
        {"writes": float("nan")},
        {"reads": float("inf")},
        {"processes": 1, "writers": 2},
        {"processes": 0},
        {"durability": "for_ever"},
        {"readers": "all"},
    ],
)
def test_demands_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Demands.of(**wrong)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_the_figures_that_are_shipped_are_whole_and_the_tables_show_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    tables = importlib.import_module("tools.figures")
    found = shipped()
    assert found["disagreement"] is None
    assert found["problems"] == {}
    assert found["interrupted"] is False
    known = {figure["contender"] for figure in found["figures"] if figure["workload"] == "commit"}
    assert known == {*QUICK, *DURABLE}
    for name in tables.FILES:
        text = (tables.ROOT / name).read_text()
        assert tables.written(text, found) == text, f"{name}: run `python -m tools.figures --tables`"


def test_figures_are_measured_here_and_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    asked = Demands(
        nodes=200, edges=500, dim=4, processes=2, readers=ReaderView.FIXED, durability=Durability.POWER_LOSS
    )
    found = choosing.measure(asked, directory=tmp_path, repeats=1)
    assert list(tmp_path.iterdir()) == []
    assert {figure["contender"] for figure in found["figures"]} == {"lmdb:", "lmdb:?sync=false"}
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(found))
    choice = choose(asked, read_figures(file))
    assert named(choice) == "lmdb:"
    assert "200 nodes of D = 4" in choice.measured


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"figures": [1], "plan": {}}'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(AESGError, match="does not hold figures"):
        read_figures(file)
    with pytest.raises(AESGError, match="does not hold figures"):
        read_figures(tmp_path)


# --- the command -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["choose", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.stdout


def test_the_command_says_what_to_take_to_people_and_machines() -> None:
    status, said = command("--durability", "power_loss", "--snapshots", "--writes", "2")
    assert status == 0
    assert "take lmdb:my_memory" in said
    assert "memmap" in said
    assert "does not fit: snapshots true was required" in said
    status, said = command("--durability", "power_loss", "--snapshots", "--writes", "2", "--json")
    found = json.loads(said)
    assert (status, found["recommended"], found["url"]) == (0, "lmdb:", "lmdb:my_memory")
    assert len(found["candidates"]) == len(BUILT_IN)
    assert found["demands"]["writes"] == 2


def test_the_command_exits_with_1_when_nothing_fits() -> None:
    status, said = command("--remote")
    assert status == 1
    assert "nothing that is installed fits" in said
    assert "If it may lie on this machine: memmap." in said
