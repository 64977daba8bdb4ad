"""The file that pytest is given when the suite is run on a URL."""

import pytest

from aesg.testing import Conformance, Target
from aesg.testing.plugin import TARGET


class TestTarget(Conformance):
    """The suite on the target of this run."""

    @pytest.fixture
    def target(self, request: pytest.FixtureRequest) -> Target:
        """What was asked for."""
        return request.config.stash[TARGET]
