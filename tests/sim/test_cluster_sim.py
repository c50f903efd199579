"""The whole product in simulated worlds, seed by seed; and proof that a world notices when it is wrong.

Both run in processes of their own: a run has to be the same whatever the hash seed of this one is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from tests.sim.beside import worlds
from tests.sim.cluster.bugs import BUGS
from tests.sim.cluster.ordinary import (
    ALL,
    PLANTED,
    QUEUE_SEEDS,
    QUEUES,
    SEEDS,
    TRANSACTION_SEEDS,
    TRANSACTIONS,
)
from tests.sim.cluster.queue_bugs import BUGS as QUEUE_BUGS
from tests.sim.cluster.transaction_bugs import BUGS as TRANSACTION_BUGS
from tests.sim.planted import Bug

KINDS = {
    "blackout",
    "power_cut",
    "kill_machine",
    "kill_broker",
    "kill_partition_actor",
    "kill_coordinator",
    "pause_machine",
    "pause_process",
    "isolate",
    "isolate_one_way",
    "cut_link",
    "cut_link_one_way",
    "bad_network",
    "slow_disk",
    "io_error",
    "full_disk",
    "jump_clock",
    "reassign",
    "elect",
    "drain",
    "wipe",
}


def simulated(*arguments: str) -> str:
    status, said = worlds.told(*arguments)
    assert status == 0, said[-8000:]
    return said


@pytest.mark.timeout(1200)
def test_nothing_is_lost_doubled_or_out_of_order_whatever_happens() -> None:
    told = simulated(*ALL)
    assert told.startswith(f"{SEEDS} seeds, ")
    assert {kind for kind in KINDS if f"'{kind}'" not in told} == set(), "some things do not come about any more"


@pytest.mark.parametrize("world", ["tests.sim.cluster", "tests.sim.cluster.queues", "tests.sim.cluster.transactions"])
def test_the_same_seed_gives_the_same_run(world: str) -> None:
    """All that clients did and saw, all that went wrong and all that the product said, each at its moment."""
    first, second = (_told(world) for _ in range(2))
    assert len(first) > 100
    assert first == second


def _told(world: str) -> list[str]:
    told = simulated(world, "--seed", "11", "--verbose")
    return re.sub(r"raystream-sim-\w+", "", told).splitlines()[:-1]  # the last line says how long it took


@pytest.mark.timeout(1200)
def test_a_queue_forgets_nothing_whatever_happens() -> None:
    told = simulated(*QUEUES)
    assert told.startswith(f"{QUEUE_SEEDS} seeds, ")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("planted", "bugs"), [*zip(PLANTED, (BUGS, QUEUE_BUGS, TRANSACTION_BUGS), strict=True)])
def test_every_planted_bug_is_caught(planted: str, bugs: Mapping[str, Bug]) -> None:
    """`python -m tests.sim.cluster.bugs` finds anew by which seed, where that has changed."""
    told = simulated(planted).splitlines()
    assert len(told) == len(bugs)
    assert [line for line in told if "not caught" in line] == []


@pytest.mark.timeout(1200)
def test_everything_is_moved_exactly_once_whatever_happens() -> None:
    told = simulated(*TRANSACTIONS)
    assert told.startswith(f"{TRANSACTION_SEEDS} seeds, ")
