"""The suite's own machinery: clauses, targets, reports, the command."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import ClassVar

import pytest

from aesg.backends import registry
from aesg.backends.memmap.writer import MemmapWriter
from aesg.backends.memory import MemoryStore
from aesg.backends.registry import Backend
from aesg.errors import ConflictError, InvalidInputError
from aesg.protocols import Durability, SpaceReclaim, Writers
from aesg.testing import Conformance, Target, clause, clauses_of, run
from aesg.testing.base import ClauseGroup
from aesg.testing.capabilities import levels
from aesg.testing.clauses import Clause
from aesg.testing.report import Report, Result


def command(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "aesg.testing", *args], capture_output=True, text=True, timeout=300, **kwargs
    )


# --- clauses ---------------------------------------------------------------------------------------------------------


def test_every_clause_has_a_promise_and_knows_its_capabilities():
    found = clauses_of(Conformance)
    assert len(found) > 100
    known = levels()
    for name, its in found.items():
        assert its.name == name
        assert its.promise.endswith("."), name
        assert set(its.needs) | set(its.unless) <= set(known), name


def test_every_test_of_the_suite_is_a_clause():
    tests = [name for name in dir(Conformance) if name.startswith("test_")]
    assert len(tests) == len(clauses_of(Conformance))


def test_every_level_above_the_least_is_demonstrated_by_some_clause():
    everywhere = {"remote"}  # a store far away is held to what one here is held to
    for name, known in levels().items():
        for level in known[1:]:
            wanted = [level, getattr(level, "name", str(level)).lower()]
            shown = [its for its in clauses_of(Conformance).values() if its.needs.get(name) in wanted]
            assert shown or name in everywhere, f"{name} {level}"


@pytest.mark.parametrize("name", ["", "nodes", "Nodes.append", "nodes append", "nodes.", ".a", "nodes..a", "a_b.c"])
def test_a_malformed_name_is_refused(name):
    with pytest.raises(ValueError, match="dotted"):
        clause(name)


def test_a_clause_without_a_promise_is_refused():
    with pytest.raises(ValueError, match="docstring"):

        @clause("a.b")
        def test_a():
            pass


def test_no_two_clauses_have_one_name():
    with pytest.raises(ValueError, match=r"two clauses of the name nodes\.append\.rows"):

        class Mine(Conformance):
            @clause("nodes.append.rows")
            def test_mine(self):
                """Mine."""


def test_a_clause_applies_by_what_is_declared():
    memory = Target("memory:").capabilities
    assert Clause("a.b", "").not_declared(memory) == ""
    assert Clause("a.b", "", needs={"snapshots": True}).not_declared(memory) == ""
    assert "durability" in Clause("a.b", "", needs={"durability": "process_crash"}).not_declared(memory)
    assert "snapshots true" in Clause("a.b", "", unless={"snapshots": True}).not_declared(memory)
    assert Clause("a.b", "", unless={"durability": "process_crash"}).not_declared(memory) == ""
    with pytest.raises(ValueError, match="unknown capability"):
        Clause("a.b", "", needs={"colour": 1}).not_declared(memory)


# --- targets ---------------------------------------------------------------------------------------------------------


def test_a_target_makes_stores_in_folders(tmp_path):
    target = Target("memmap:?durability=power_loss")
    assert target.capabilities.durability is Durability.POWER_LOSS
    assert target.persists
    assert target.has_files
    assert target.files(tmp_path) == []
    with target.create(tmp_path / "a") as store:
        assert store.url == target.store_url(tmp_path / "a")
        assert "durability=power_loss" in store.url
    assert {path.name for path in target.files(tmp_path / "a")} >= {"nodes.aesg", "edges.aesg"}
    with target.open(tmp_path / "a", "r") as store:
        assert store.read_only


def test_a_target_without_a_path_is_found_out():
    target = Target("memory:")
    assert not target.has_files
    assert not target.persists
    assert Target("memory:") == target


@pytest.mark.parametrize("url", ["", "/some/path", "memmap"])
def test_a_target_names_its_backend(url):
    with pytest.raises(InvalidInputError):
        Target(url)


def test_a_path_in_the_url_is_where_stores_are_made(tmp_path):
    there = tmp_path / "there"
    seen = []
    report = run(f"memmap://{there}", choose="stores.stats", done=lambda name: seen.append(list(there.iterdir())))
    assert [result.outcome for result in report.results] == ["passed"]
    assert there.is_dir()
    assert list(there.iterdir()) == []  # and nothing is left of them


def test_a_plugin_is_a_module_or_a_backend_in_one(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "some_plugin.py").write_text("from aesg.backends.memory import BACKEND\nNOTHING = 1\n")
    with pytest.raises(InvalidInputError, match="not a Backend"):
        Target("memory:", imports=("some_plugin:NOTHING",))
    with pytest.raises(InvalidInputError, match="installed backend"):
        Target("memory:", imports=("some_plugin:BACKEND",))
    Target("memory:", imports=("some_plugin",))
    with pytest.raises(ModuleNotFoundError):
        Target("memory:", imports=("no_such_plugin",))


# --- reports ---------------------------------------------------------------------------------------------------------


def test_of_several_cases_the_worst_counts():
    result = Result(Clause("a.b", "It holds."), "skipped")
    result.add("skipped", "no disk")
    result.add("passed", "")
    assert (result.outcome, result.reasons) == ("passed", [])
    result.add("failed", "one")
    result.add("passed", "")
    result.add("failed", "two")
    result.add("failed", "two")
    assert (result.outcome, result.reasons, result.cases) == ("failed", ["one", "two"], 6)


def test_a_report_as_table_and_as_json():
    capabilities = Target("memory:").capabilities.as_dict()
    results = [
        Result(Clause("a.one", "One.", {"snapshots": True}), "passed", [], 1, 0.5),
        Result(Clause("a.two", "Two."), "failed", ["it did not"], 2, 0.25, {"kills": 3}),
        Result(Clause("b.one", "Three."), "not declared", ["no"], 1),
        Result(Clause("b.two", "Four."), "skipped", ["no disk"], 1),
    ]
    report = Report("memory:", capabilities, results)
    assert report.failed == ["a.two"]
    text = "\n".join(report.lines())
    assert "FAILED a.two: Two.\n    it did not" in text
    assert "SKIPPED b.two" in text
    assert [line.split() for line in text.splitlines() if line.startswith(("a ", "b ", "all "))] == [
        ["a", "1", "1", "–", "–"], ["b", "–", "–", "1", "1"], ["all", "1", "1", "1", "1"],
    ]  # fmt: skip
    assert any(line.split() == ["snapshots", "true", "1", "of", "1", "clauses", "passed"] for line in report.lines())
    shown = json.loads(json.dumps(report.as_dict()))
    assert shown["counts"] == {"failed": 1, "passed": 1, "not declared": 1, "skipped": 1}
    assert shown["groups"]["a"] == {"failed": 1, "passed": 1, "not declared": 0, "skipped": 0}
    assert shown["capabilities"]["snapshots"] == {"level": True, "clauses": 1, "passed": 1}
    assert shown["clauses"][1] == {
        "name": "a.two",
        "promise": "Two.",
        "outcome": "failed",
        "reasons": ["it did not"],
        "cases": 2,
        "seconds": 0.25,
        "details": {"kills": 3},
    }


class Failing(ClauseGroup):
    """What the collector is shown."""

    @pytest.fixture
    def target(self):
        return Target("memory:")

    @clause("x.fails")
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_fails(self, number, record_property):
        """A number is not two."""
        record_property("number", number)
        assert number != 2

    @clause("x.setup")
    def test_setup(self, no_such_fixture):
        """There is such a fixture."""

    @clause("x.skipped")
    def test_skipped(self):
        """This machine has everything."""
        pytest.skip("no")

    @clause("x.needs", needs={"durability": "power_loss"})
    def test_needs(self):
        """It lasts."""
        raise AssertionError


def test_what_becomes_of_each_clause_is_collected(tmp_path, monkeypatch):
    file = tmp_path / "collected.py"
    file.write_text("from test_conformance_framework import Failing\nclass TestFailing(Failing):\n    pass\n")
    monkeypatch.setattr("aesg.testing.runner.COLLECTED", file)
    report = run("memory:")
    assert {result.clause.name: result.outcome for result in report.results} == {
        "x.fails": "failed",
        "x.needs": "not declared",
        "x.setup": "failed",
        "x.skipped": "skipped",
    }
    found = {result.clause.name: result for result in report.results}
    assert found["x.fails"].cases == 3
    (reason,) = found["x.fails"].reasons
    assert reason.startswith("[2] ")
    assert "assert 2 != 2" in reason
    assert "test_conformance_framework.py" in reason
    assert found["x.fails"].details == {"number": 3}
    assert "no_such_fixture" in found["x.setup"].reasons[0]
    assert found["x.skipped"].reasons == ["no"]
    assert "durability power_loss was required" in found["x.needs"].reasons[0]


def test_clauses_are_chosen_by_name():
    report = run("memory:", choose="stores.stats or edges.refs")
    assert [result.clause.name for result in report.results] == ["edges.refs.stay", "stores.stats"]
    with pytest.raises(InvalidInputError, match="chooses no clause"):
        run("memory:", choose="nonsense")
    with pytest.raises(InvalidInputError, match="could not be run"):
        run("memory:", choose="and and")


# --- levels that no backend of ours declares -------------------------------------------------------------------------


class ManyWriters(MemoryStore):
    """Handles on one state in the heap; who commits on an older one is refused."""

    states: ClassVar = {}
    wins = False

    def __init__(self, url, dim):
        super().__init__(url, dim)
        self._uuid = self.states.setdefault(url, [self._state, 0, self._uuid])[2]

    @property
    def capabilities(self):
        return replace(super().capabilities, writers=Writers.MANY)

    @property
    def generation(self):
        return self.states[self.url][1]

    def _committed(self):
        self._state = self.states[self.url][0]
        return super()._committed()

    def _begin(self):
        self._committed()
        self._base = self.generation
        return super()._begin()

    def _commit(self, tables):
        if self._base != self.generation and not self.wins:
            raise ConflictError(f"{self.url}: another writer was first")
        self.states[self.url][:2] = tables.state, self.generation + 1


class LastOneWins(ManyWriters):
    wins = True


@pytest.mark.parametrize(("kind", "outcome"), [(ManyWriters, "passed"), (LastOneWins, "failed")])
def test_many_writers(kind, outcome, monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})
    registry.register(Backend("many", "for this test", lambda url, mode, dim, options: kind(str(url), dim or 4)))
    report = run("many:", choose="writers.many or lock.same-process or require")
    assert {result.clause.name: result.outcome for result in report.results} == {
        "capabilities.require.met": "passed",
        "capabilities.require.refused": "passed",
        "capabilities.writers.many": outcome,
        "processes.lock.same-process": "not declared",
    }


class Continuous(MemmapWriter):
    """Says that it gives space back all the time, and does not."""

    @property
    def capabilities(self):
        return replace(super().capabilities, space_reclaim=SpaceReclaim.CONTINUOUS)


def test_space_that_is_said_to_be_given_back_all_the_time(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})

    def opened(url, mode, dim, options):
        return Continuous(str(url), url.local_path(), dim, Durability.PROCESS_CRASH)

    registry.register(Backend("continuous", "for this test", opened))
    report = run("continuous:", choose="capabilities.space")
    assert {result.clause.name: result.outcome for result in report.results} == {
        "capabilities.space.continuous": "failed",
        "capabilities.space.on-compact": "passed",
    }


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_a_report(tmp_path):
    done = command("memory:", "-k", "stores", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "Conformance of memory:" in done.stdout
    assert "stores" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_json(tmp_path):
    said = json.loads(command("memory:", "-k", "stores.uuid", "--json").stdout)
    assert [each["name"] for each in said["clauses"]] == ["stores.uuid"]
    done = command("memory:", "-k", "stores.uuid", "--json", tmp_path / "report.json")
    assert "Conformance of memory:" in done.stdout
    assert json.loads((tmp_path / "report.json").read_text())["counts"] == said["counts"]


def test_a_failing_clause_gives_exit_status_1(tmp_path):
    done = command(
        "sabotage-keeps-its-generation:", "-k", "stores.generation", "--plugin", "saboteurs",
        env={"PYTHONPATH": str(pytest.importorskip("saboteurs").__file__.rpartition("/")[0]), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert "FAILED stores.generation" in done.stdout


@pytest.mark.parametrize(
    "args",
    [
        ["nosuch:"],
        ["/a/path"],
        ["memory:", "-k", "nonsense"],
        ["memory:", "--plugin", "nosuch_module"],
        ["memmap:?a=b"],
    ],
)
def test_an_error_is_one_line_and_exit_status_2(args):
    done = command(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("aesg.testing: ")
    assert done.stderr.count("\n") == 1


def test_other_peoples_settings_for_pytest_are_left_out(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not ours')\n")
    done = command("memory:", "-k", "stores.uuid", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["pytest", "hypothesis"])
def test_without_its_packages_the_error_names_the_extra(package):
    code = f"import sys; sys.modules[{package!r}] = None; import aesg.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: aesg.testing needs {package}" in done.stderr
    assert 'pip install "aesg[testing]"' in done.stderr


def test_importing_the_package_does_not_import_pytest():
    code = (
        "import aesg.testing, sys; print([name for name in ('pytest', 'hypothesis', 'torch') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
