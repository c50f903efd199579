"""One run of a queue: workers take, accept, release and reject records while things break; at the end nothing is left.

python -m tests.sim.cluster.queues --seed 17 [--verbose]
python -m tests.sim.cluster.queues --seeds 200
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from raystream.cluster import Cluster
from raystream.errors import RaystreamError
from raystream.testing.operations import Operation
from raystream.testing.queue_workers import QueueWorkload, record_dead_letters, record_settled
from raystream.testing.workload import Workload
from tests.sim.cluster import run as runs
from tests.sim.cluster.clients import Clients
from tests.sim.cluster.run import TOPIC, Run
from tests.sim.world import Outcome, Violation, main, require

GROUP: Final = "workers"
DEAD_LETTERS: Final = "dead-letters"
REST_S: Final = 20.0
"""By then workers that live in peace have settled everything: locks and sessions of others ran out long ago."""


class QueueClients(Clients):
    """Processes of producers and workers."""

    def _workload(self, name: str, producers: int, members: int) -> QueueWorkload | None:
        rng = self._rng
        try:
            return QueueWorkload(
                self._world.join(),
                self._topic,
                self.recorder,
                group=GROUP,
                dead_letter=DEAD_LETTERS,
                producers=producers,
                workers=members,
                name=name,
                seed=self._world.seed,
                records_per_s=self._records_per_s,
                producer_settings=self._producer,
                share_settings={
                    **self._consumer,
                    "max_deliveries": 4,
                    "lock_timeout_ms": rng.choice([1_000, 3_000]),
                    "max_poll_records": rng.choice([1, 3, 20]),
                },
            )
        except RaystreamError as error:
            self._world.note(f"{name} cannot begin: {error!r}")
            self._world.kernel.sleep(0.5)
            return None


class QueueRun(Run):
    """The operator of a world with a queue."""

    clients = QueueClients

    def _create_topics(self, cluster: Cluster) -> None:
        rng = self._rng
        cluster.create_topic(TOPIC, partitions=rng.choice([1, 2, 3]), replication_factor=3)
        cluster.create_topic(DEAD_LETTERS, partitions=rng.choice([1, 2]), replication_factor=3)

    def _start(self, clients: Clients) -> None:
        rng = self._rng
        clients.start(producers=rng.choice([1, 2]), members=rng.choice([1, 2, 3]))
        clients.start(producers=0, members=rng.choice([1, 2]))

    def _go_on(self) -> None:
        """Workers in peace come later."""

    def _counts(self, op: Operation) -> bool:
        return op.kind == "settle"

    def _finish(self, cluster: Cluster, recorder: Any) -> None:
        """Workers that live in peace come to the end of the queue, and everything is read."""
        rest = QueueWorkload(
            cluster,
            TOPIC,
            recorder,
            group=GROUP,
            dead_letter=DEAD_LETTERS,
            producers=0,
            workers=2,
            name="rest",
            seed=self.world.seed,
            share_settings={"max_deliveries": 4, "lock_timeout_ms": 1_000, "session_timeout_ms": 3_000},
        )
        end_s = self.world.kernel.now_s + REST_S
        with rest:
            while not record_settled(cluster, GROUP, recorder):
                if self.world.kernel.now_s > end_s:
                    raise Violation(f"liveness: the queue is not settled: {cluster.describe_group(GROUP).share_list}")
                self.world.kernel.sleep(0.2)
        require(not rest.failures, f"a worker has failed: {rest.failures}")
        record_dead_letters(cluster, DEAD_LETTERS, GROUP, recorder)
        Workload(cluster, TOPIC, recorder, producers=0, members=0).final_read()


def run(seed: int, *, shell: object = None, focus: tuple[str, ...] = (), verbose: bool = False) -> Outcome:
    """One run. Raises Violation where something is wrong."""
    return runs.run(seed, shell=QueueRun, focus=focus, verbose=verbose)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names have the same order in every run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster.queues", *sys.argv[1:]])
    sys.exit(main("tests.sim.cluster.queues", run, "settled", __doc__, seeds_per_process=1))
