"""A member of the demo's group: a Ray task that keeps delay statistics and reports them into a topic of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from raystream.demo import flights

if TYPE_CHECKING:
    from raystream.client.delivered import Batch
    from raystream.cluster import Cluster

GROUP: Final = "delays"
REPORTS: Final = "flights.delays"
SESSION_TIMEOUT_MS: Final = 3_000
HEARTBEAT_INTERVAL_MS: Final = 300


def watch(cluster: Cluster, number: int) -> None:
    """Runs until it is cancelled or killed. A batch's report is on the disk before the batch counts as processed."""
    with (
        cluster.producer(linger_ms=0) as producer,
        cluster.consumer(
            flights.TOPIC,
            group=GROUP,
            start="earliest",
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_INTERVAL_MS,
        ) as consumer,
    ):
        sender = {"worker": number, "pid": os.getpid()}
        producer.send(REPORTS, sender).result()

        def each_batch(batch: Batch) -> None:
            report = sender | {
                "partition": batch.partition,
                "first": batch.offsets.start,
                "end": batch.offsets.stop,
                "delays": flights.delays(batch.to_pandas()).to_dict("index"),
            }
            producer.send(REPORTS, report).result()

        consumer.run(each_batch=each_batch)


def report_of(record: Any) -> dict[str, Any]:
    """A record of the reports' topic as `watch` sent it."""
    report: dict[str, Any] = record.json()
    return report
