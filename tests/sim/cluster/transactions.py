"""One run of a pipeline: its workers move records exactly once, beside transactional producers and readers, while
things break; at the end the output is the input, partition by partition.

python -m tests.sim.cluster.transactions --seed 17 [--verbose]
python -m tests.sim.cluster.transactions --seeds 200
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

from raystream.cluster import Cluster
from raystream.errors import RaystreamError
from raystream.testing.operations import Operation
from raystream.testing.transactional import TransactionalWorkload, record_positions, unmoved
from raystream.testing.workload import Workload
from tests.sim.cluster import run as runs
from tests.sim.cluster.clients import Clients
from tests.sim.cluster.run import TOPIC, Run
from tests.sim.world import Outcome, Violation, main, require

GROUP: Final = "movers"
SINK: Final = "moved"
TIMEOUT_MS: Final = (2_000, 5_000)
REST_S: Final = 30.0
"""By then everything that was left open is aborted, and workers that live in peace have moved everything."""
REST_ID: Final = 1_000


class TransactionalClients(Clients):
    """Processes of transactional producers, pipeline workers and readers. Some have transactional ids that others have
    already, and fence them."""

    def _workload(self, name: str, producers: int, members: int) -> TransactionalWorkload | None:
        rng = self._rng
        settings = {**self._producer, "transaction_timeout_ms": rng.choice(TIMEOUT_MS)}
        try:
            return TransactionalWorkload(
                self._world.join(),
                self._topic,
                self.recorder,
                sink=SINK,
                group=GROUP,
                producers=rng.choice([0, 0, 1]),
                transactional=producers,
                workers=members,
                readers=rng.choice([0, 1, 2, 4]),
                first_id=rng.choice([0, 1, 2]),
                rejoin_s=self._rejoin_s,
                name=name,
                seed=self._world.seed,
                records_per_s=self._records_per_s,
                producer_settings=self._producer,
                transactional_settings=settings,
                consumer_settings=self._consumer,
            )
        except RaystreamError as error:
            self._world.note(f"{name} cannot begin: {error!r}")
            self._world.kernel.sleep(0.5)
            return None


class TransactionalRun(Run):
    """The operator of a world with a pipeline."""

    clients = TransactionalClients
    ignored = ("write-cycle",)
    """Nobody orders the writes of concurrent transactions."""

    def _create_topics(self, cluster: Cluster) -> None:
        rng = self._rng
        partitions = rng.choice([1, 2, 2, 3])
        for topic in (TOPIC, SINK):
            config = {"segment_ms": rng.choice([1_000, 4_000, 600_000])}
            cluster.create_topic(topic, partitions=partitions, replication_factor=3, config=config)

    def _start(self, clients: Clients) -> None:
        rng = self._rng
        clients.start(producers=rng.choice([1, 2]), members=rng.choice([1, 2]))
        clients.start(producers=rng.choice([0, 1]), members=rng.choice([1, 2]))

    def _go_on(self) -> None:
        """Workers in peace come later."""

    def _counts(self, op: Operation) -> bool:
        return op.outcome == "commit"

    def _finish(self, cluster: Cluster, recorder: Any) -> None:
        """Workers that live in peace come to the end of the topic, and everything is read."""
        rest = TransactionalWorkload(
            cluster,
            TOPIC,
            recorder,
            sink=SINK,
            group=GROUP,
            transactional=0,
            workers=2,
            readers=4,
            first_id=REST_ID,
            aborts=0.0,
            dies=0.0,
            name="rest",
            seed=self.world.seed,
            consumer_settings={"session_timeout_ms": 3_000},
        )
        end_s = self.world.kernel.now_s + REST_S
        with rest:
            while not _everything_has_ended(cluster) or record_positions(cluster, GROUP, TOPIC, recorder):
                if self.world.kernel.now_s > end_s:
                    raise Violation(f"liveness: not everything is moved: {cluster.lag(GROUP)}")
                self.world.kernel.sleep(0.2)
        require(not rest.failures, f"a worker has failed: {rest.failures}")
        for topic in (TOPIC, SINK):
            Workload(cluster, topic, recorder, producers=0, members=0).final_read()
        wrong = unmoved(cluster, TOPIC, SINK)
        require(not wrong, "; ".join(wrong))


def _everything_has_ended(cluster: Cluster) -> bool:
    """Whether no transaction is open any more."""
    return all(
        cluster.read(topic).offsets() == cluster.read(topic, isolation="read_uncommitted").offsets()
        for topic in (TOPIC, SINK)
    )


def run(seed: int, *, shell: object = None, focus: tuple[str, ...] = (), verbose: bool = False) -> Outcome:
    """One run. Raises Violation where something is wrong."""
    return runs.run(seed, shell=TransactionalRun, focus=focus, verbose=verbose)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # sets of names have the same order in every run
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.sim.cluster.transactions", *sys.argv[1:]])
    sys.exit(main("tests.sim.cluster.transactions", run, "transactions committed", __doc__, seeds_per_process=1))
