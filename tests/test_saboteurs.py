"""Who tests the tests: each backend that is broken on purpose fails the suite, at the clause that is there for it."""

import pytest
from saboteurs import SABOTEURS

from aesg.testing import Conformance, clauses_of, run


@pytest.mark.parametrize("saboteur", SABOTEURS, ids=lambda saboteur: saboteur.name.replace(" ", "-"))
def test_the_clause_that_is_there_for_it_catches_it(saboteur):
    report = run(saboteur.target, choose=saboteur.clause)
    (result,) = (result for result in report.results if result.clause.name == saboteur.clause)
    assert result.outcome == "failed", f"{saboteur.name}: {result}"
    print(f"{saboteur.name:45} {saboteur.clause:40} {result.reasons[0][:100]}")


def test_there_are_saboteurs_for_every_part_of_the_contract():
    groups = {saboteur.clause.partition(".")[0] for saboteur in SABOTEURS}
    assert groups >= {
        "nodes", "edges", "events", "refusals", "transactions", "threads", "snapshots", "compact", "stores",
        "reopening", "processes", "laws",
    }  # fmt: skip
    assert {saboteur.clause for saboteur in SABOTEURS} <= set(clauses_of(Conformance))
    assert len({saboteur.scheme for saboteur in SABOTEURS}) == len(SABOTEURS)
