"""The command line as a whole: one voice, a quick start, completion in a real shell."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

import aesg
from aesg.backends import registry
from aesg.cli import completing
from aesg.cli.commands import backends as backends_command
from aesg.cli.main import app
from aesg.protocols import Capabilities
from tests.test_cli_main import imported, run

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
HEAVY = {"torch", "numba", "rich", "pyarrow", "matplotlib", "usearch", "zarr", "lmdb", "networkx", "scipy", "sklearn"}


# --- one voice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_itself(command):
    found = GROUP.commands[command]
    names = [name for param in found.params for name in param.opts]
    assert "--json" in names
    assert found.help.strip()[0].isupper()
    assert len(found.short_help) <= 100
    assert found.short_help.endswith(".")
    for param in found.params:
        assert param.help or param.name == "json", f"{command}: {param.name} has no help"
        if param.param_type_name == "argument":
            assert re.fullmatch(r"\[?[A-Z]+\]?(\.\.\.)?", param.metavar), param.metavar


def test_help_is_quick_and_light():
    assert not imported("-m", "aesg", "--help") & HEAVY

    def seconds(*command):
        began = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    ratios = [seconds("-m", "aesg", "--help") / seconds("-c", "import numpy") for _ in range(5)]
    assert statistics.median(ratios) < 3


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        (["info", "nowhere"], "NotFoundError"),
        (["info", "nosuch:x"], "BackendNotInstalledError"),
        (["export", "nowhere", "x.npz"], "NotFoundError"),
        (["import", "x.npz", "new"], "NotFoundError"),
        (["log", "x", "--since", "soon"], "InvalidInputError"),
        (["info", "--colour"], "UsageError"),
        (["info"], "UsageError"),
        (["nonsense"], "UsageError"),
    ],
)
def test_errors_for_people_and_for_machines(args, kind, tmp_path):
    plain = run(*args, cwd=tmp_path)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert re.fullmatch(r"aesg: [^\n]+\n", plain.stderr)
    found = run(*args, "--json", cwd=tmp_path)
    assert (found.returncode, found.stdout) == (2, "")
    assert json.loads(found.stderr) == {"error": plain.stderr.removeprefix("aesg: ").strip(), "kind": kind}


# --- backends --------------------------------------------------------------------------------------------------------


def test_backends_tells_what_each_promises():
    done = run("backends", "--json")
    found = {backend["scheme"]: backend for backend in json.loads(done.stdout)["backends"]}
    assert {"icechunk", "lmdb", "memmap", "memory", "zarr"} <= set(found) <= set(registry.schemes())
    assert found["lmdb"]["capabilities"]["durability"] == "power_loss"
    assert found["memory"]["capabilities"]["snapshots"] is True
    assert set(found["memmap"]["options"]) == set(registry.backend("memmap").options)
    with aesg.open("memory:", vector_dim=1) as store:
        assert found["memory"]["capabilities"] == store.capabilities.as_dict()
    text = run("backends", COLUMNS="200").stdout
    for name in Capabilities.__dataclass_fields__:
        assert name.replace("_", " ") in text
    assert "durability: what a commit survives" in text


def test_backends_tells_what_is_missing_and_how_to_get_it(monkeypatch):
    monkeypatch.setattr(backends_command, "find_spec", lambda name: None if name == "icechunk" else object())
    found = {backend["scheme"]: backend for backend in backends_command.listed()}
    assert (found["icechunk"]["installed"], found["icechunk"]["capabilities"]) == (False, None)
    assert found["icechunk"]["missing"] == 'pip install "aesg[icechunk]"'
    assert found["lmdb"]["installed"]


# --- completion ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "stores" / "alpha").mkdir(parents=True)
    (tmp_path / "my dir").mkdir()
    (tmp_path / "notes.parquet").touch()
    (tmp_path / ".hidden").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("aesg inf", ["info"]),
        ("aesg --debug inf", ["info"]),
        ("aesg --ver", ["--version"]),
        ("aesg info memm", ["memmap:"]),
        ("aesg info memmap:stor", ["memmap:stores/"]),
        ("aesg info memmap:stores/", ["memmap:stores/alpha/"]),
        ("aesg info memmap:nowhere/", []),
        ("aesg info ./n", ["./notes.parquet"]),
        ("aesg info .h", [".hidden"]),
        ("aesg info memmap:x?du", ["memmap:x?durability="]),
        ("aesg info memmap:x?durability=power_loss&i", ["memmap:x?durability=power_loss&index="]),
        ("aesg info nosuch:x?d", []),
        ("aesg info x --js", ["--json"]),
        ("aesg info x --json --js", []),
        ("aesg info x y", []),
        ("aesg log x --type cr", ["create"]),
        ("aesg log x --type create --type me", ["merge"]),
        ("aesg log x --limit ", []),
        ("aesg export x --format pa", ["parquet"]),
        ("aesg export x n", ["notes.parquet"]),
        ("aesg import n", ["notes.parquet"]),
        ("aesg completion z", ["zsh"]),
        ("aesg migrate stores lm", ["lmdb:"]),
        ("aesg digest stores lm", ["lmdb:"]),
        ('aesg info "my', ["my dir/"]),
        ("aesg info my\\ d", ["my dir/"]),
        ("aesg nonsense x", []),
    ],
)
def test_candidates(folder, line, offered):
    words, incomplete, _ = completing.split(line)
    assert completing.candidates(GROUP, words[1:], incomplete) == offered


def test_all_commands_and_all_options_are_offered(folder):
    assert completing.candidates(GROUP, [], "") == COMMANDS
    for name, command in GROUP.commands.items():
        long = {option for param in command.params for option in param.opts if option.startswith("--")}
        assert set(completing.candidates(GROUP, [name], "--")) == long | {"--help"}


def test_an_unknown_shell():
    done = run("completion", "tcsh")
    assert done.returncode == 2
    assert "known: bash, zsh, fish" in done.stderr


def typed(folder, keys):
    """What a bash on a terminal shows after these keys."""
    bin = folder / "bin"
    bin.mkdir()
    (bin / "aesg").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m aesg "$@"\n')
    (bin / "aesg").chmod(0o755)
    environment = dict(os.environ, PATH=f"{bin}:{os.environ['PATH']}", PS1="$ ", TERM="dumb", INPUTRC="/dev/null")
    environment["PYTHONPATH"] = str(Path(aesg.__file__).parents[1])
    terminal, end = pty.openpty()
    bash = subprocess.Popen(
        ["/bin/bash", "--norc", "--noprofile", "-i"],
        stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    shown = ""

    def read_until(mark, seconds=60.0):
        nonlocal shown
        begin, end = len(shown), time.monotonic() + seconds
        while not re.search(mark, shown[begin:]) and time.monotonic() < end:
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65536).decode()
        return shown[begin:]

    try:
        os.write(terminal, b'bind "set enable-bracketed-paste off"; eval "$(aesg completion bash)"; echo rea""dy\n')
        read_until(r"ready\r\n\$ ")
        for key, mark in keys:
            os.write(terminal, key.encode())
            yield read_until(mark)
        os.write(terminal, b"\x15exit\n")
    finally:
        os.close(terminal)
        bash.kill()
        bash.wait()


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="no bash")
def test_the_tab_key_in_bash(folder):
    keys = [
        ("aesg inf\t", r"info "),
        ("memm\t", r"memmap:"),
        ("sto\t", r"memmap:stores/alpha/|stores/"),
        ("\x15aesg info my\t", r"my\\ dir/"),
        ("\x15aesg log x --type cr\t", r"create "),
        ("\x15aesg info memmap:x?du\t", r"durability="),
    ]
    for (key, mark), shown in zip(keys, typed(folder, keys), strict=True):
        assert re.search(mark, shown), f"{key!r} gave {shown!r}"
