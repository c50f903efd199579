"""Transactions in simulated worlds, seed by seed; and proof that a world notices when they are wrong."""

from __future__ import annotations

import pytest

from tests.sim.transactions import run
from tests.sim.transactions_bugs import BUGS, seeds_to_catch

SEEDS = 60


def test_all_or_nothing_whatever_happens() -> None:
    fates = [fate for seed in range(SEEDS) for fate in run(seed).fates.values()]
    assert fates.count("committed") > 5 * SEEDS and fates.count("aborted") > SEEDS


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_noticed(name: str) -> None:
    assert seeds_to_catch(name, run, at_most=SEEDS) is not None
