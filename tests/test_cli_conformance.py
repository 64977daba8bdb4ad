"""`aesg conformance` as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*args, **kwargs):
    command = [sys.executable, "-m", "aesg", "conformance", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300, **kwargs)


def test_a_report_for_people(tmp_path):
    done = run("memory:", "-k", "stores or snapshots.refused", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "Conformance of memory:" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["clauses", "passed", "failed", "not", "declared", "skipped"] in lines
    assert ["snapshots", "–", "–", "1", "–"] in lines
    assert list(tmp_path.iterdir()) == []


def test_a_report_as_json():
    done = run("memory:", "-k", "stores.stats", "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["url"] == "memory:"
    assert found["counts"]["passed"] == 1
    assert found["capabilities"]["durability"]["level"] == "none"
    assert [each["name"] for each in found["clauses"]] == ["stores.stats"]


def test_stores_are_made_where_the_url_says(tmp_path):
    done = run(f"memmap://{tmp_path}/made?durability=power_loss", "-k", "stores.uuid", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["capabilities"]["durability"]["level"] == "power_loss"
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]
    assert list((tmp_path / "made").iterdir()) == []


def test_a_broken_backend_gives_exit_status_1_and_the_clause():
    env = os.environ | {"PYTHONPATH": str(HERE)}
    args = ("sabotage-forgets-events:", "--plugin", "saboteurs", "-k", "events")
    done = run(*args, env=env)
    assert done.returncode == 1
    assert "FAILED events.read.slices: Events come back" in done.stdout
    assert "Traceback" not in done.stderr
    done = run(*args, "--json", env=env)
    assert done.returncode == 1
    broken = [each for each in json.loads(done.stdout)["clauses"] if each["outcome"] == "failed"]
    assert "events.read.slices" in [each["name"] for each in broken]
    assert all(each["reasons"] for each in broken)


@pytest.mark.parametrize(
    "args", [["nosuch:"], ["/a/path"], ["memory:", "-k", "nonsense"], ["memory:", "-k", "and"], ["memmap:?colour=red"]]
)
def test_an_error_is_one_line_on_stderr_and_exit_status_2(args):
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("aesg: ")
    assert done.stderr.count("\n") == 1


def test_without_pytest_the_error_names_the_extra():
    code = "import sys; sys.modules['pytest'] = None; sys.argv[1:] = ['conformance', 'memory:']; import aesg.__main__"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'pip install "aesg[testing]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_help():
    done = run("--help")
    assert done.returncode == 0
    assert all(option in done.stdout for option in ("--json", "--long", "-k", "--plugin", "URL"))
