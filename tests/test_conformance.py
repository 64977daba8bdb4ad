"""The conformance suite on every backend that there is."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from aesg.testing import Conformance, Target
from tools import campaigns

sys.path.append(str(Path(__file__).parents[1] / "examples"))


class TestMemory(Conformance):
    @pytest.fixture
    def target(self):
        return Target("memory:")


class TestMemmap(Conformance):
    @pytest.fixture
    def target(self):
        return campaigns.target("memmap:")


class TestMemmapSynced(Conformance):
    @pytest.fixture
    def target(self):
        return campaigns.target("memmap:?durability=power_loss")


class TestLmdb(Conformance):
    @pytest.fixture
    def target(self):
        return Target("lmdb:")


class TestLmdbUnsynced(Conformance):
    @pytest.fixture
    def target(self):
        return Target("lmdb:?sync=false")


class TestZarr(Conformance):
    @pytest.fixture
    def target(self):
        return Target("zarr:")


class TestZarrInMemory(Conformance):
    @pytest.fixture
    def target(self):
        return Target("zarr:", in_files=False)


@pytest.mark.skipif(find_spec("icechunk") is None, reason="icechunk is not installed")
class TestIcechunk(Conformance):
    @pytest.fixture
    def target(self):
        return Target("icechunk:")


class TestSqliteExample(Conformance):
    @pytest.fixture
    def target(self):
        return Target("sqlite:", imports=("sqlite_backend:BACKEND",))
