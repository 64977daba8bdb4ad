"""How Hypothesis looks for exceptions: a little, the same every time; or for long."""

from __future__ import annotations

import os
from typing import Any, Final

from hypothesis import HealthCheck, Phase, settings

from aesg.testing.clauses import is_long

EXAMPLES: Final = "AESG_FUZZ_EXAMPLES"
"""How many examples each law and each machine is tried on, in the environment; sets both forms aside."""


def tries(short: int, **given: Any) -> settings:
    """Settings of Hypothesis.

    The short form tries the same examples every time, and shows what it found as it found it. The long form tries 20
    times as many, others every time, and takes the time to make a failure small.

    Args:
        short: How many examples the short form tries.
        **given: Further settings.
    """
    said = int(os.environ.get(EXAMPLES, "0"))
    long = is_long() or said > 0
    phases = [Phase.explicit, Phase.generate, *([Phase.shrink] if long else [])]
    return settings(
        max_examples=said or (20 * short if long else short),
        deadline=None,  # machines differ, and a slow step is no bug
        database=None,
        derandomize=not long,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        **given,
    )
