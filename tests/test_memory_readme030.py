"""Every Python block of 0.3.0's readme runs, word for word, in a fresh folder, on every backend that lies on disk."""

import atexit
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aesg.testing.forks import server

README = Path(__file__).parents[2] / "shared" / "spec" / "aesg-0.3.0-readme.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if README.is_file() else []

BACKENDS = ["memmap", "lmdb", "zarr", "icechunk"]
ON_ANOTHER = """
import aesg.backends.registry
aesg.backends.registry.DEFAULT = {backend!r}
"""
"""What makes paths that do not exist yet stores of another backend; the blocks name none."""


def runs(program, folder):
    """A job: the program, and what an interpreter does at its end."""
    os.chdir(folder)
    exec(compile(program, "<readme>", "exec"), {"__name__": "__main__"})
    atexit._run_exitfuncs()


def ran(program, folder, *, fresh):
    """What a program printed; in a new interpreter, or in a process in which PyTorch is imported already."""
    if fresh:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", program], cwd=folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        return done.stdout
    forks = server(("torch", "aesg.memory", "test_memory_readme030"))
    with forks.start("test_memory_readme030:runs", program=program, folder=str(folder)) as job:
        said = [f"{line}\n" for line in job.lines(120)]
        assert job.wait() == 0, job.errors()
        assert not job.errors()
    return "".join(said)


@pytest.mark.skipif(not README.is_file(), reason=f"{README} is absent")
def test_the_readme_has_blocks():
    assert len(BLOCKS) == 9


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_block(block, backend, tmp_path):
    if backend == "icechunk":
        pytest.importorskip("icechunk")
    printed = ran(ON_ANOTHER.format(backend=backend) + block, tmp_path, fresh=backend == "memmap")
    for said, seen in {
        "Retrieved ": "Retrieved 1 concepts",
        "Before consolidation": "Before consolidation: 3000 nodes",
        "Active after consolidation": "Active after consolidation: 1000",
        "Dimension mismatch": "Dimension mismatch: ",
        "Fresh memory": "Fresh memory: 0 nodes",
        "# [4, 10]": "torch.Size([4, 10])",
        "# [2, 128]": "torch.Size([2, 128])",
        "'type': 'CREATE'": "'type': 'CREATE'",
    }.items():
        if said in block:
            assert seen in printed
    if "Session 2" in block:
        saved, loaded = re.findall(r"(?:Saved|Loaded) (\d+) concepts", printed)
        assert saved == loaded
        assert int(saved) > 0
