"""Raft under everything that may happen, seed by seed; and proof that the simulation would notice if it were wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.planted import seeds_to_catch
from tests.sim.raft import run
from tests.sim.raft_bugs import BUGS
from tests.sim.world import WRONG, Outcome, how_to_repeat

SEEDS = 300
PER_TEST = 50
KINDS = {
    "election won",
    "entries cut off",
    "snapshot installed",
    "voters committed",
    "disk wiped",
    "lead offered",
    "leader removed",
}


def simulate(seed: int) -> Outcome:
    """One run; a failure says how to repeat it."""
    try:
        return run(seed)
    except WRONG as error:
        pytest.fail(how_to_repeat("tests.sim.raft", seed, error))


@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
def test_every_invariant_holds_after_every_event(first: int) -> None:
    outcomes = [simulate(seed) for seed in range(first, first + PER_TEST)]
    assert sum(outcome.done for outcome in outcomes) > 10 * PER_TEST
    happened = sum((outcome.happened for outcome in outcomes), Counter[str]())
    assert {kind for kind, count in happened.items() if count} >= KINDS, "some things do not come about any more"


def test_the_same_seed_gives_the_same_run() -> None:
    assert run(7) == run(7)


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_caught(name: str) -> None:
    """Some are caught by one seed in hundreds only, so the first that does is named; `seeds_to_catch` finds it.

    A change of the simulation or of the core moves these seeds: `python -m tests.sim.raft_bugs` finds them anew.
    """
    bug = BUGS[name]
    caught = seeds_to_catch(run, bug, first=bug.at, at_most=1) or seeds_to_catch(run, bug, at_most=600)
    assert caught is not None
