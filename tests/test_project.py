"""The project as a whole: its readme, its files."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import aesg
from tools import guarantees, tested

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
COMMAND = re.compile(r"^(?:\$ )?make ([a-z]+)", re.MULTILINE)


def tracked_files():
    """The text files under version control, or those that would be."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, done.stdout.split("\0")):
        data = (ROOT / name).read_bytes() if (ROOT / name).is_file() else b"\0"
        if b"\0" not in data:
            yield name, data.decode("utf-8", errors="replace")


def test_commands_in_the_documents_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for document in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = document.read_text("utf-8")
        code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.M | re.S)
        assert {name for piece in code for name in COMMAND.findall(piece)} <= targets


def test_the_table_of_guarantees_is_what_the_backends_promise():
    text = README.read_text("utf-8")
    assert guarantees.written(text) == text, "stale: run `make guarantees`"


def test_the_tables_of_what_is_tested_are_those_of_the_tests():
    text = tested.PAGE.read_text("utf-8")
    assert tested.written(text) == text, "stale: run `make guarantees`"


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    private = [f"/{name}/" for name in ("work", "root")]  # put together here, so that this file holds none either
    found = [(name, path) for name, text in tracked_files() for path in private if path in text]
    assert not found


def test_the_licence_is_in_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["license"] == "MIT"
    assert (ROOT / project["license-files"][0]).read_text("utf-8").startswith("MIT License")


def test_every_ignored_rule_has_its_reason():
    lines = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    rules = [line.strip() for line in lines if re.match(r'\s+"[A-Z]+\d*",', line)]
    assert rules
    assert not [line for line in rules if "#" not in line]


def test_the_changelog_knows_this_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    version = "Unreleased" if ".dev" in aesg.__version__ else aesg.__version__
    assert f"## [{version}]" in text
