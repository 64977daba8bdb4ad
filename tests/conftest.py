"""Fixtures that several test files share."""

import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import aesg

settings.register_profile(
    "aesg",
    deadline=None,  # machines differ, and a slow step is no bug
    derandomize=not os.environ.get("AESG_FUZZ_EXAMPLES"),  # the short form finds the same today and tomorrow
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.load_profile("aesg")

# A shell starts what it puts into the background with Ctrl-C ignored, and children inherit that: the tests that press
# it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """What `-n auto` is: the cores that this process may use, not those that the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


GOLDEN = Path(__file__).parents[2] / "shared" / "golden"
"""Directories that the published 0.3.0 wrote, each with a dump of what is in it; not part of the repository."""

GOLDEN_NAMES = sorted(found.name for found in GOLDEN.iterdir()) if GOLDEN.is_dir() else []


@pytest.fixture(params=GOLDEN_NAMES or ["absent"])
def golden(request):
    """One directory after another that 0.3.0 wrote; not to be written to."""
    if not GOLDEN_NAMES:
        pytest.skip(f"no golden directories at {GOLDEN}")
    return GOLDEN / request.param


MEMMAPS = {"memmap": "memmap://{}/store", "memmap-power_loss": "memmap://{}/store?durability=power_loss"}


@pytest.fixture(params=MEMMAPS)
def disk_url(request, tmp_path):
    """The URL of a new memmap store of each durability."""
    return MEMMAPS[request.param].format(tmp_path)


@pytest.fixture
def open_store():
    """`aesg.open`, and what was opened is closed after the test."""
    opened = []

    def open_and_remember(*args, **kwargs):
        opened.append(aesg.open(*args, **kwargs))
        return opened[-1]

    yield open_and_remember
    for store in reversed(opened):
        store.close()
