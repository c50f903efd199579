"""The clients of a soak: plain producers and groups, a pipeline with transactional producers, a queue. All record."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import raystream as rs
from benchmarks.chaos.faults import PARTITIONS, TOPIC
from raystream.errors import RequestTimeout
from raystream.testing.history import Recorder
from raystream.testing.queue_workers import QueueWorkload, record_dead_letters, record_settled
from raystream.testing.transactional import TransactionalWorkload, record_positions, unmoved
from raystream.testing.workload import Workload

PIPED: Final[dict[str, Any]] = {"topic": "piped-from", "sink": "piped-to", "group": "movers"}
QUEUE: Final[dict[str, Any]] = {"topic": "queue", "dead_letter": "queue-dead", "group": "workers"}
PARTITIONS_OF: Final = {TOPIC: PARTITIONS, "piped-from": 2, "piped-to": 2, "queue": 2, "queue-dead": 1}
SHARE: Final = {"max_deliveries": 5, "lock_timeout_ms": 5_000}
TRANSACTIONS: Final = {"transaction_timeout_ms": 10_000}
QUEUE_RECORDS_PER_S: Final = 20.0
REST_ID: Final = 1_000
REST_S: Final = 90.0


class Workloads:
    """All of them on one cluster. `failures` is what clients raised."""

    def __init__(self, cluster: rs.Cluster, recorder: Recorder) -> None:
        self._cluster = cluster
        self._recorder = recorder
        for topic, partitions in PARTITIONS_OF.items():
            cluster.create_topic(topic, partitions=partitions, replication_factor=3)
        self._plain = [
            Workload(cluster, TOPIC, recorder, producers=2, members=2, group=f"group-{n}", name=f"w{n}", seed=n)
            for n in range(2)
        ]
        self._all: list[Workload] = [
            *self._plain,
            TransactionalWorkload(
                cluster,
                recorder=recorder,
                **PIPED,
                transactional=2,
                workers=2,
                readers=4,
                name="piped",
                transactional_settings=TRANSACTIONS,
            ),
            QueueWorkload(
                cluster,
                recorder=recorder,
                **QUEUE,
                workers=2,
                name="queued",
                records_per_s=QUEUE_RECORDS_PER_S,
                share_settings=SHARE,
            ),
        ]

    @property
    def failures(self) -> list[Exception]:
        return [failure for workload in self._all for failure in workload.failures]

    @contextmanager
    def running(self) -> Iterator[None]:
        """All clients work inside."""
        with ExitStack() as stack:
            for workload in self._all:
                stack.enter_context(workload)
            yield

    def finish(self) -> list[str]:
        """Once all is healed: pipeline and queue come to their ends, and everything is read. Answers what is not as it
        must be; the history may say more. Raises RequestTimeout where an end is not reached."""
        self._finish_pipeline()
        self._finish_queue()
        for workload in self._plain:
            workload.final_read()
        for topic in (PIPED["topic"], PIPED["sink"], QUEUE["topic"]):
            Workload(self._cluster, topic, self._recorder, producers=0, members=0).final_read()
        return unmoved(self._cluster, PIPED["topic"], PIPED["sink"])

    def _finish_pipeline(self) -> None:
        """Workers that live in peace move what is left, once the transactions of the dead have timed out."""
        rest = TransactionalWorkload(
            self._cluster,
            recorder=self._recorder,
            **PIPED,
            transactional=0,
            workers=2,
            first_id=REST_ID,
            aborts=0.0,
            dies=0.0,
            name="rest",
            transactional_settings=TRANSACTIONS,
        )
        self._all.append(rest)
        deadline = time.monotonic() + REST_S
        with rest:
            while self._transaction_is_open() or record_positions(
                self._cluster, PIPED["group"], PIPED["topic"], self._recorder
            ):
                if time.monotonic() > deadline:
                    raise RequestTimeout(f"the pipeline has not come to its end: {self._cluster.lag(PIPED['group'])}")
                time.sleep(0.5)

    def _transaction_is_open(self) -> bool:
        return any(
            self._cluster.read(topic).offsets() != self._cluster.read(topic, isolation="read_uncommitted").offsets()
            for topic in (PIPED["topic"], PIPED["sink"])
        )

    def _finish_queue(self) -> None:
        rest = QueueWorkload(
            self._cluster, recorder=self._recorder, **QUEUE, producers=0, workers=2, name="last", share_settings=SHARE
        )
        self._all.append(rest)
        deadline = time.monotonic() + REST_S
        with rest:
            while not record_settled(self._cluster, QUEUE["group"], self._recorder):
                if time.monotonic() > deadline:
                    raise RequestTimeout(f"the queue is not settled: {self._cluster.describe_group(QUEUE['group'])}")
                time.sleep(0.5)
        record_dead_letters(self._cluster, QUEUE["dead_letter"], QUEUE["group"], self._recorder)
