"""Runs the suite on a target, in this process."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

from aesg.errors import InvalidInputError
from aesg.testing.clauses import LONG
from aesg.testing.report import Report
from aesg.testing.target import Target

COLLECTED: Final = Path(__file__).with_name("collected.py")
"""The file that pytest is given."""


def run(
    target: Target | str,
    *,
    choose: str = "",
    long: bool = False,
    done: Callable[[str], None] = lambda name: None,
) -> Report:
    """Run the suite on a target.

    Args:
        target: What to test, or its URL.
        choose: An expression over the names of clauses, as pytest's -k takes: "nodes and not refusals".
        long: The long forms.
        done: Called with a clause's name whenever a test of it has ended.

    Returns:
        What became of every clause chosen.

    Raises:
        AESGError: No store of the target can be opened at all.
        InvalidInputError: `choose` is malformed, or chooses nothing.
    """
    import pytest

    from aesg.testing.clauses import rewritable

    pytest.register_assert_rewrite(*rewritable())
    from aesg.testing.plugin import Collector

    target = Target(target) if isinstance(target, str) else target
    capabilities = target.capabilities.as_dict()
    collector = Collector(target, done)
    with tempfile.TemporaryDirectory(prefix="aesg-conformance-") as folder, _environment(long):
        # Our own configuration, not that of whatever project this process happens to stand in.
        settings = Path(folder, "pytest.ini")
        settings.write_text("[pytest]\n", "utf-8")
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = pytest.main(
                [
                    f"-c{settings}", f"--rootdir={folder}", f"--basetemp={folder}/stores", "--noconftest", "-q",
                    "-pno:cacheprovider", "--import-mode=importlib", "--tb=short", "-k", choose, str(COLLECTED),
                ],
                plugins=[collector],
            )  # fmt: skip
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise InvalidInputError(f"{choose!r} chooses no clause")
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise InvalidInputError(f"the suite could not be run on {target}: {said.getvalue()}")
    return Report(str(target), capabilities, [collector.results[name] for name in sorted(collector.results)])


@contextmanager
def _environment(long: bool) -> Iterator[None]:
    """The caller's own options for pytest are not meant for us; children learn from it that the long forms are due."""
    before = {name: os.environ.pop(name, None) for name in ("PYTEST_ADDOPTS", LONG)}
    if long:
        os.environ[LONG] = "1"
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
