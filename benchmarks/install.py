"""The published package, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUIREMENT = "aesg==0.3.0"
DEFAULT_CACHE = Path.home() / ".cache" / "aesg-bench"
NOT_INSTALLED = 3
"""Exit status of a benchmark that could not get the published package."""


def published(cache: Path = DEFAULT_CACHE) -> Path:
    """The folder that holds 0.3.0, installed on first use without its dependencies, which are ours too."""
    folder = cache / REQUIREMENT.replace("==", "-")
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    fresh = tempfile.mkdtemp(dir=cache)
    options = ["--quiet", "--disable-pip-version-check", "--retries", "1", "--no-deps", "--target", fresh]
    pip = [sys.executable, "-m", "pip", "install", *options, REQUIREMENT]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.rmtree(fresh)
        reason = done.stderr.strip().splitlines()[-1:]
        print(f"{REQUIREMENT} could not be installed:", *reason, file=sys.stderr)
        raise SystemExit(NOT_INSTALLED)
    try:
        os.rename(fresh, folder)  # whole, or not at all: two runs may begin together
    except OSError:
        shutil.rmtree(fresh)
    return folder
