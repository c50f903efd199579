"""Which simulated worlds an ordinary run of all tests goes through: so many seeds of each kind, and planted bugs."""

from __future__ import annotations

from typing import Final

SEEDS: Final = 300
QUEUE_SEEDS: Final = 100
TRANSACTION_SEEDS: Final = 30

ALL: Final = ("tests.sim.cluster", "--seeds", str(SEEDS), "--jobs", "2")
QUEUES: Final = ("tests.sim.cluster.queues", "--seeds", str(QUEUE_SEEDS), "--jobs", "2")
TRANSACTIONS: Final = ("tests.sim.cluster.transactions", "--seeds", str(TRANSACTION_SEEDS), "--jobs", "2")
PLANTED: Final = ("tests.sim.cluster.bugs", "tests.sim.cluster.queue_bugs", "tests.sim.cluster.transaction_bugs")

RUNS: Final = (ALL, QUEUES, TRANSACTIONS, *((module,) for module in PLANTED))
