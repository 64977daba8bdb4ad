"""`aesg bench`: the same job on real stores, in processes of their own. What the figures are is no test's business."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from random import Random
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

import aesg
from aesg.backends import registry
from aesg.bench import STATES, WORKLOADS, Plan, Results, conduct, contend, run, words
from aesg.bench.contenders import plug_in
from aesg.bench.machine import machine
from aesg.bench.pipe import Child, ChildError
from aesg.bench.plan import lacking
from aesg.bench.report import page
from aesg.bench.results import Figure, limit_name
from aesg.cli.commands import bench as command
from aesg.cli.main import app
from aesg.errors import AESGError, BackendNotInstalledError, CapacityError, InvalidInputError, UnsupportedError
from aesg.protocols import Durability

ROOT = Path(__file__).parents[1]
SQLITE = "examples.sqlite_backend:BACKEND"
TINY = Plan(nodes=300, edges=1500, dim=8, repeats=1)


@pytest.fixture
def sqlite(monkeypatch: pytest.MonkeyPatch) -> str:
    """The example's backend, as a plug-in that nobody installed."""
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    plug_in(SQLITE)
    return "sqlite"


@pytest.fixture
def without_jit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops as plain Python: children that have little to do begin sooner."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")


@pytest.fixture
def measured() -> Results:
    """As if everything had been measured, on three backends."""
    contenders = contend(["memory", "memmap", "lmdb:?sync=false"], unequal=True)
    results = Results(TINY, contenders, machine(), compared=7)
    draw = Random(1)
    for contender in contenders:
        for workload, kind in WORKLOADS.items():
            for state in TINY.states_of(workload):
                for figures, name in (
                    (results.figures, contender.name),
                    (results.limits, limit_name(contender, workload)),
                ):
                    rounds = [[10 ** draw.uniform(-6, 1) for _ in range(kind.calls)] for _ in range(3)]
                    figures[name, workload, state] = Figure(rounds, draw.random())
        held = {"files": 3, "disk": draw.randrange(10**9), "length": 10**6, "memory": {"anon": 5 * 10**6, "file": 4096}}
        results.footprints[contender.name] = {"fresh": held, "churned": held, "churn_seconds": 0.5}
    results.calibration = [0.01, 0.011, 0.012, 0.0125]
    return results


def test_every_workload_is_measured_fresh_and_churned_on_every_backend_and_all_agree(
    sqlite: str, without_jit: None, tmp_path: Path
) -> None:
    contenders = contend(["memory", "memmap", "lmdb", "zarr", f"{sqlite}:{tmp_path}/elsewhere"], unequal=True)
    results = run(TINY, contenders, directory=tmp_path, imports=[SQLITE])
    assert results.good, (results.problems, results.disagreement)
    names = ["memory:", "memmap:", "lmdb:", "zarr:", "sqlite:"]
    expected = {
        (name, workload, state)
        for name in names
        for workload in WORKLOADS
        for state in TINY.states_of(workload)
        if (name, workload) != ("memory:", "open")  # what is gone when it is closed cannot be opened
    }
    assert set(results.figures) == expected
    for contender in results.contenders:
        for key in expected:
            if key[0] == contender.name:
                limit = results.limit_of(contender, *key[1:])
                assert limit is not None
                assert len(limit.rounds) == len(results.figures[key].rounds) == TINY.repeats
                assert len(limit.calls) == len(results.figures[key].calls) == TINY.repeats * WORKLOADS[key[1]].calls
                assert all(0 < seconds < 60 for seconds in (*limit.calls, *results.figures[key].calls))
    # Round by round, what is done late, and the contents in the end, were held against each other; and against NumPy.
    bursts = sum(len(TINY.states_of(workload)) for workload in WORKLOADS) * (TINY.repeats + 1)
    assert results.compared >= (len(names) - 1) * (bursts + 4)
    for name in names:
        for state in STATES:
            held = results.footprints[name][state]
            assert (held["disk"] > 0) == (name != "memory:")
            assert held["memory"].keys() <= {"anon", "file"}
    assert len(results.calibration) == 15
    assert results.noise is not None
    # Nothing is left behind, and nothing said of who and where.
    assert list(tmp_path.rglob("aesg-bench-*")) == []
    said = json.dumps(results.as_dict()) + page(results.as_dict())
    for secret in (str(tmp_path), str(Path.home()), os.uname().nodename, "/tmp"):
        assert secret not in said


class _Page(HTMLParser):
    """Text of the cells of all tables, and everything that the page would have to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.fetched: list[str] = []
        self.plots = 0
        self.unlabelled = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.fetched += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "path", "rect", "wbr"):
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag == "svg":
            self.plots += "role" in given
            self.unlabelled += not ("aria-label" in given or "aria-hidden" in given)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "rect"):
            return
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data


def test_the_report_is_one_whole_page_that_says_every_figure(measured: Results) -> None:
    found = json.loads(json.dumps(measured.as_dict()))  # as from a file
    text = page(found)
    parsed = _Page()
    parsed.feed(text)
    parsed.close()
    assert parsed.open == []  # every element was closed, in order
    assert parsed.fetched == []
    assert "<script" not in text
    assert "url(" not in text
    assert "@import" not in text
    assert parsed.plots == len(WORKLOADS) + 3
    assert parsed.unlabelled == 0
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text
    rows = {tuple(row[:3]): row for row in parsed.cells if len(row) == 11}
    for figure in found["figures"]:
        row = rows[words.label(figure["contender"]), WORKLOADS[figure["workload"]].title, figure["state"]]
        expected = [figure[name] for name in ("p50", "p99", "most", "cpu", "limit")]
        assert [row[4], row[6], row[7], row[8], row[9]] == [words.seconds(value) for value in expected]
        assert row[3] == str(figure["calls"])
        assert row[5] == f"{words.seconds(figure['q1'])} to {words.seconds(figure['q3'])}"
        assert row[10] == words.ratio(figure["ratio"])
    for footprint in found["footprints"].values():
        for state in STATES:
            assert words.size(footprint[state]["disk"]) in text


def test_hostile_names_do_no_harm_to_the_page(measured: Results) -> None:
    found = measured.as_dict()
    found["machine"]["cpu"] = found["problems"]["memmap:"] = "<script>alert('&')</script>"
    text = page(found)
    assert "<script" not in text
    assert "&lt;script&gt;" in text


# --- who takes part --------------------------------------------------------------------------------------------------


def names(*urls: str, **options: Any) -> list[str]:
    return [contender.name for contender in contend(urls, **options)]


def test_backends_are_made_equally_durable_at_the_highest_level_that_all_have() -> None:
    assert names("memmap", "lmdb", "zarr") == [
        "memmap:?durability=power_loss",
        "lmdb:",
        "zarr:?durability=power_loss",
    ]
    assert names("memmap", "lmdb", durability="process_crash") == ["memmap:", "lmdb:?sync=false"]
    assert names("memmap:?durability=process_crash", "lmdb") == ["memmap:?durability=process_crash", "lmdb:?sync=false"]
    assert {found.durability for found in contend(["memmap", "zarr", "lmdb"], durability=Durability.POWER_LOSS)} == {
        Durability.POWER_LOSS
    }


@pytest.mark.parametrize(
    ("urls", "options", "said"),
    [
        (["memory", "memmap"], {}, "none with memory:; process_crash with memmap: or power_loss with memmap:?dur"),
        (["lmdb:?sync=true", "memmap:?durability=process_crash"], {}, "leave one out"),
        (["lmdb:?sync=true", "memmap"], {"durability": "process_crash"}, "take the durability power_loss, which all"),
    ],
)
def test_unequal_ones_are_refused_with_who_promises_what_and_what_to_do(
    urls: list[str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedError, match="--unequal compares them as they are") as refused:
        contend(urls, **options)
    assert said in str(refused.value)
    assert len(contend(urls, **options, unequal=True)) == 2


@pytest.mark.parametrize(
    ("urls", "options", "error"),
    [
        ([], {}, InvalidInputError),
        (["nosuch"], {}, BackendNotInstalledError),
        (["memmap", "memmap:?durability=power_loss"], {}, InvalidInputError),  # the same, once made equal
        (["memmap:?nosuch=1"], {}, InvalidInputError),
        (["memmap"], {"durability": "for_ever"}, InvalidInputError),
        (["memmap://host/place"], {}, InvalidInputError),
    ],
)
def test_what_cannot_take_part_is_refused(urls: list[str], options: dict[str, Any], error: type[AESGError]) -> None:
    with pytest.raises(error):
        contend(urls, **options)


def test_a_store_that_lies_there_is_not_touched(tmp_path: Path) -> None:
    with aesg.open(f"memmap:{tmp_path}/mine", vector_dim=2):
        pass
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidInputError, match="a store or a file lies there"):
        contend([f"memmap:{tmp_path}/mine"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plug_in_takes_part_at_the_level_that_it_has(sqlite: str) -> None:
    assert names(sqlite, "memmap") == ["sqlite:", "memmap:?durability=power_loss"]
    with pytest.raises(UnsupportedError, match="power_loss with sqlite:"):
        contend([sqlite, "memmap"], durability="process_crash")


@pytest.mark.parametrize(
    "wrong", [{"nodes": 3}, {"repeats": 0}, {"dim": 0}, {"workload": ("sleep",)}, {"workload": ()}]
)
def test_a_plan_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Plan(**wrong)


def test_what_does_not_fit_the_machine_is_known_before(tmp_path: Path) -> None:
    contenders = contend(["memmap"])
    assert lacking(TINY, contenders, tmp_path) == []
    (disk, memory) = lacking(Plan(nodes=10**10, edges=10**10), contenders, tmp_path)
    assert "of disk" in disk
    assert "of memory" in memory


# --- when something goes wrong ---------------------------------------------------------------------------------------


QUICK = Plan(nodes=300, edges=1500, dim=8, repeats=1, workload=("gather",))


def test_one_that_fails_costs_its_own_figures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_jit: None
) -> None:
    done = Child.__call__

    def failing(self: Child, task: str, **arguments: Any) -> Any:
        if task == "burst" and arguments["number"] == 0 and self is culprit[0]:
            os.kill(self.pid, signal.SIGKILL)
        return done(self, task, **arguments)

    culprit: list[Child] = []
    began = conduct._Run._enter

    def enter(self: Any, contender: Any) -> None:
        began(self, contender)
        if contender.scheme == "lmdb":
            culprit.append(self._workers[contender.name])

    monkeypatch.setattr(conduct._Run, "_enter", enter)
    monkeypatch.setattr(Child, "__call__", failing)
    results = run(QUICK, contend(["memmap", "lmdb"]), directory=tmp_path)
    assert list(results.problems) == ["lmdb:"]
    assert not results.good
    assert {key[0] for key in results.figures} == {"memmap:?durability=power_loss"}
    assert len(results.figures) == 2
    assert "lmdb: fell out" in page(results.as_dict())
    assert list(tmp_path.iterdir()) == []


def test_another_answer_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_jit: None) -> None:
    done = Child.__call__

    def lying(self: Child, task: str, **arguments: Any) -> Any:
        answer = done(self, task, **arguments)
        if task == "burst" and "library" not in arguments:  # a contender, not the limits
            answer["answer"] = "made up"
        return answer

    monkeypatch.setattr(Child, "__call__", lying)
    results = run(QUICK, contend(["memmap"]), directory=tmp_path)
    assert "gave different answers to gather, fresh" in results.disagreement
    assert not results.good
    assert results.figures == {}
    assert "mean nothing" in page(results.as_dict())
    assert list(tmp_path.iterdir()) == []


def test_a_child_says_why_it_fails_and_is_ended_when_it_hangs(tmp_path: Path, without_jit: None) -> None:
    arguments = {"nodes": 300, "edges": 300, "dim": 2}
    with Child("raw", {"folder": str(tmp_path), **arguments}, [], 60) as child:
        child.ready()
        with pytest.raises(ChildError, match="nosuch"):
            child("nosuch")
        assert child("calibrate") > 0
        os.kill(child.pid, signal.SIGSTOP)
        child._patience = 0.2
        with pytest.raises(ChildError, match="the process ended"):
            child("calibrate")
    with (
        Child("raw", {"folder": str(tmp_path), **arguments}, ["nosuch_module"], 60) as child,
        pytest.raises(ChildError, match="nosuch_module"),
    ):
        child.ready()


def test_children_whose_parent_is_killed_clean_up(tmp_path: Path, without_jit: None) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    code = (
        "import os, signal; from aesg.bench.pipe import Child\n"
        f"child = Child('raw', dict(folder={str(folder)!r}, nodes=300, edges=300, dim=2), [], 60); child.ready()\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not running(int(done.stdout)) and not folder.exists())


def wait_until(condition: Any) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# --- the command -----------------------------------------------------------------------------------------------------


@contextmanager
def start(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command; it is gone when the block is left, however that is."""
    pipe = subprocess.PIPE
    whole = [sys.executable, "-m", "aesg", "bench", *arguments]
    process = subprocess.Popen(whole, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_command_measures_a_plug_in_and_writes_both_files(tmp_path: Path, without_jit: None) -> None:
    files = tmp_path / "figures.json", tmp_path / "report.html"
    options = ["--nodes", "300", "--dim", "4", "--repeats", "1", "--workload", "commit,gather"]
    with start(
        "sqlite:", *options, "--plugin", SQLITE, "--directory", str(tmp_path / "here"),
        "--json", str(files[0]), "--report", str(files[1]),
    ) as process:  # fmt: skip
        said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "all the same" in said
    found = json.loads(files[0].read_text())
    assert found["plan"]["edges"] == 3000
    assert found["plan"]["workload"] == ["gather", "commit"]
    assert found["durability"] == "power_loss"
    assert all(math.isfinite(figure["median"]) for figure in found["figures"])
    assert files[1].read_text() == page(found)
    assert list((tmp_path / "here").iterdir()) == []


def test_ctrl_c_cleans_up_and_shows_what_was_measured(tmp_path: Path, without_jit: None) -> None:
    home, file = tmp_path / "here", tmp_path / "figures.json"
    options = ["--nodes", "300", "--dim", "4", "--workload", "gather", "--repeats", "100000", "--backends", "memmap"]
    with start(*options, "--directory", str(home), "--json", str(file)) as process:
        wait_until(lambda: len(list(home.glob("aesg-bench-*/store*"))) > 0 or process.poll() is not None)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        assert len(children) == 2
        time.sleep(1)  # into the rounds; it may be later or earlier, nothing depends on it
        os.kill(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted: not everything was measured" in said
    assert json.loads(file.read_text())["interrupted"] is True
    assert list(home.iterdir()) == []
    wait_until(lambda: not any(running(child) for child in children))


def test_a_polite_kill_is_like_ctrl_c() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), command.stoppable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_people_see_it_grow_and_a_table_in_the_end(measured: Results) -> None:
    name = "lmdb:?sync=false"
    doing = replace(measured, figures={}, doing=(name, "hops", "fresh"), problems={"memory:": "it fell"})
    for shown in (command.growing(doing), command.growing(measured)):
        screen = Console(width=200, file=io.StringIO(), record=True)
        screen.print(shown)
    assert words.seconds(measured.figures[name, "hops", "churned"].median) in screen.export_text()
    screen = Console(width=300, file=io.StringIO(), record=True)
    command.show(measured.as_dict() | {"problems": {"memory:": "it fell"}, "interrupted": True}, screen)
    said = screen.export_text()
    for figure in measured.figures.values():
        assert words.seconds(figure.median) in said
    assert "memory: fell out: it fell" in said
    assert "not equally durable" in said


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["--backends", "memory,memmap"], UnsupportedError, "none with memory:"),
        (["memmap:", "--backends", "lmdb"], InvalidInputError, "not both"),
        (["--nodes", "10000000000"], CapacityError, "of disk"),
        (["--json", "/nosuch/folder/file"], InvalidInputError, "cannot be written"),
        (["--workload", "sleep"], InvalidInputError, "unknown workload sleep"),
        (["--plugin", "nosuch_module:BACKEND"], InvalidInputError, "cannot be imported"),
    ],
)
def test_the_command_refuses_before_it_begins(
    arguments: list[str], error: type[AESGError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Child, "__init__", lambda *_: pytest.fail("it began"))
    result = CliRunner().invoke(app, ["bench", *arguments])
    assert result.stdout == ""
    assert isinstance(result.exception, error)
    assert said in str(result.exception)
