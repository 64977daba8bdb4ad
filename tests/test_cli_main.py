"""`aesg` as a user runs it: real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import aesg
from aesg.records import NodeBatch

HEAVY = {"torch", "sklearn", "scipy", "rich", "numba"}


def run(*args, cwd=None, **env):
    command = [sys.executable, "-m", "aesg", *map(str, args)]
    return subprocess.run(
        command, cwd=cwd, env=os.environ | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )


@pytest.fixture
def store(tmp_path):
    """The path of a small store on disk: four nodes in a ring, attributes, an event-free life."""
    path = tmp_path / "store"
    with aesg.open(path, vector_dim=3) as opened, opened.transaction() as transaction:
        rows = transaction.nodes.append(NodeBatch(np.eye(4, 3, dtype=np.float32), id=np.arange(10, 14)))
        transaction.edges.append(rows, np.roll(rows, 1))
        transaction.attrs["config"] = {"vector_dim": 3, "top_k": 7}
        transaction.attrs["note"] = "hello"
    return path


# --- help and imports ------------------------------------------------------------------------------------------------


def test_help_lists_the_commands():
    done = run("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n  {command} " in done.stdout for command in ("demo", "info", "verify"))


def test_without_a_command_it_shows_help_and_says_that_something_is_missing():
    done = run()
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["demo", "info", "verify"])
def test_every_command_has_help_and_json(command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_version():
    assert run("--version").stdout == f"aesg {aesg.__version__}\n"


def test_the_installed_script_is_the_same_program():
    script = Path(sys.executable).with_name("aesg")
    if not script.exists():
        pytest.skip("AESG is not installed in this environment")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"aesg {aesg.__version__}\n"


def imported(*command):
    """The packages that a Python command imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=True)
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}


def test_help_imports_nothing_heavy():
    assert not imported("-m", "aesg", "--help") & HEAVY


def test_importing_aesg_and_opening_a_store_import_nothing_heavy(tmp_path):
    assert not imported("-c", "import aesg; aesg.open('memory:', vector_dim=4)") & HEAVY
    assert not imported("-c", f"import aesg; aesg.open({str(tmp_path / 'new')!r}, vector_dim=4).close()") & HEAVY


def test_info_and_verify_import_no_torch(store):
    assert not imported("-m", "aesg", "info", str(store)) & (HEAVY - {"rich"})
    assert not imported("-m", "aesg", "verify", str(store)) & (HEAVY - {"rich"})


# --- info ------------------------------------------------------------------------------------------------------------


def test_info_as_json(store):
    done = run("info", store, "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)
    assert found["backend"] == "memmap"
    assert found["url"].startswith("memmap:")
    assert (found["vector_dim"], found["nodes"], found["edges"], found["events"]) == (3, 4, 4, 0)
    assert found["generation"] >= 1
    assert found["capabilities"]["durability"] == "process_crash"
    assert found["config"] == {"vector_dim": 3, "top_k": 7}
    assert found["attrs"] == {"note": "hello"}
    assert found["stats"]


def test_info_for_people_says_the_same_without_colours(store):
    done = run("info", store)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    for word in ("memmap", "vector_dim", "generation", "process_crash", "top_k", "hello"):
        assert word in done.stdout


def test_info_changes_nothing(store):
    before = {file.name: file.read_bytes() for file in store.iterdir() if file.is_file()}
    run("info", store)
    after = {file.name: file.read_bytes() for file in store.iterdir() if file.is_file()}
    assert after == before


def test_info_of_a_store_by_its_url(store):
    assert json.loads(run("info", f"memmap://{store}", "--json").stdout)["nodes"] == 4


# --- verify ----------------------------------------------------------------------------------------------------------


def test_verify_of_a_sound_store(store):
    done = run("verify", store)
    assert done.returncode == 0
    assert "sound" in done.stdout
    assert "4 nodes" in done.stdout

    done = run("verify", store, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["violations"] == []


def test_verify_of_a_damaged_store_exits_with_1_and_lists_what_is_wrong(store):
    nodes = store / "nodes.aesg"
    damaged = bytearray(nodes.read_bytes())
    damaged[8:12] = np.float32("nan").tobytes()  # the first number of the first vector, see the format's layout
    nodes.write_bytes(damaged)
    done = run("verify", store, "--json")
    assert done.returncode == 1
    (violation, *_) = json.loads(done.stdout)["violations"]
    assert set(violation) == {"kind", "place", "detail"}

    done = run("verify", store)
    assert done.returncode == 1
    assert "violation" in done.stdout
    assert violation["kind"] in done.stdout
    assert "Traceback" not in done.stderr


def test_verify_of_a_store_too_damaged_to_open_exits_with_1(store):
    nodes = store / "nodes.aesg"
    nodes.write_bytes(nodes.read_bytes()[:50])
    done = run("verify", store, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["violations"]
    assert "Traceback" not in done.stderr


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["info", "verify"])
@pytest.mark.parametrize("url", ["nothing-here", "memory:", "nosuch:///place", "memmap:x?colour=red", ""])
def test_an_error_is_one_line_on_stderr_and_exit_status_2(command, url, tmp_path):
    done = run(command, url, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("aesg: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path):
    done = run("--debug", "info", tmp_path / "nothing-here")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "NotFoundError" in done.stderr


def test_an_unknown_command_is_a_usage_error():
    done = run("nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr
