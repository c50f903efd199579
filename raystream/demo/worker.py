"""What the demo's group does with a batch: delay statistics, reported into a topic of their own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from raystream.demo import flights

if TYPE_CHECKING:
    from raystream.client.delivered import Batch
    from raystream.cluster import Cluster

GROUP: Final = "delays"
REPORTS: Final = "flights.delays"


class Delays:
    """The handler of one worker. Pickled into its Ray task, where it makes its own producer."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._producer: Any = None

    def __call__(self, batch: Batch) -> None:
        """Reports a batch. The report is on the disk when this returns, before the batch counts as processed."""
        if self._producer is None:
            self._producer = self._cluster.producer(linger_ms=0)
        report = {
            "pid": os.getpid(),
            "partition": batch.partition,
            "first": batch.offsets.start,
            "end": batch.offsets.stop,
            "delays": flights.delays(batch.to_pandas()).to_dict("index"),
        }
        self._producer.send(REPORTS, report).result()
