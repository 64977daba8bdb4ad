"""Comparing backends on this machine, and choosing one.

`run` has the same job done by each backend, in turns, and gives back figures; `report.page` makes a page of them;
`choose` recommends a backend from what backends promise and from such figures.
"""

from aesg.bench.choosing import Choice, Demands, choose
from aesg.bench.conduct import run
from aesg.bench.contenders import Contender, contend
from aesg.bench.plan import STATES, WORKLOADS, Plan
from aesg.bench.results import Results

__all__ = ["STATES", "WORKLOADS", "Choice", "Contender", "Demands", "Plan", "Results", "choose", "contend", "run"]
