"""What the exactly-once run moves: flights from one topic to another, each with its carrier's sums so far beside it.

The sums go on through every change of hands: who is given a partition reads in the other topic how far they have come.
So a flight that is lost, doubled or out of its order shows in every later row of its carrier.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from raystream import messages as m
from raystream.batch import ATTR_COMMIT, walk
from raystream.demo.flights import KEY, PARTITIONS
from raystream.demo.reconcile import by_key
from raystream.errors import FencedMember, RequestTimeout

if TYPE_CHECKING:
    import pandas as pd

    import raystream as rs
    from raystream.client.routing import Leader
    from raystream.client.transforming import PipelineWorker

SOURCE: Final = "flights"
SINK: Final = "moved"
GROUP: Final = "movers"
FLIGHTS: Final = "flights_so_far"
MINUTES: Final = "minutes_so_far"
RESTORE_S: Final = 60.0
CONSUMER: Final = {"session_timeout_ms": 3_000, "heartbeat_interval_ms": 300}
PRODUCER: Final = {"transaction_timeout_ms": 10_000, "linger_ms": 0}
Sums = dict[str, tuple[int, int]]
"""By carrier: flights, and minutes that they left late."""


def sink_schema(source: pa.Schema) -> pa.Schema:
    """The flights' schema and the sums."""
    return source.append(pa.field(FLIGHTS, pa.int64())).append(pa.field(MINUTES, pa.int64()))


def with_sums(rows: pa.Table, sums: Sums) -> pa.Table:
    """The rows with the sums up to each of them; `sums` goes on."""
    flights, minutes = [], []
    for carrier, delay in zip(rows[KEY].to_pylist(), rows["dep_delay"].to_pylist(), strict=True):
        before = sums.get(carrier, (0, 0))
        known = delay is not None and delay == delay  # NaN: it never left
        sums[carrier] = (before[0] + 1, before[1] + (int(delay) if known else 0))
        flights.append(sums[carrier][0])
        minutes.append(sums[carrier][1])
    return rows.append_column(FLIGHTS, pa.array(flights, pa.int64())).append_column(
        MINUTES, pa.array(minutes, pa.int64())
    )


class Moving:
    """The transform of one worker. `cluster.pipeline` may call it again with the same batch."""

    def __init__(self, cluster: rs.Cluster) -> None:
        self._cluster = cluster
        self._next: dict[int, int] = {}
        self._sums: dict[int, Sums] = {}

    def __call__(self, batch: Any) -> pa.Table:
        partition, offsets = batch.partition, batch.offsets
        if self._next.pop(partition, None) != offsets.start:
            self._sums[partition] = self._restored(partition, offsets.start)
        moved = with_sums(batch.to_arrow(), self._sums[partition])
        self._next[partition] = offsets.stop
        return moved

    def _restored(self, partition: int, rows: int) -> Sums:
        """The sums after so many rows. A position counts from the decision on, the rows are seen a moment later."""
        deadline = time.monotonic() + RESTORE_S
        others = {other: 0 for other in range(PARTITIONS) if other != partition}
        while True:
            moved = self._cluster.read(SINK, end=others, columns=[KEY, FLIGHTS, MINUTES]).to_arrow()
            if moved.num_rows > rows:
                raise FencedMember(f"{moved.num_rows:,} rows of partition {partition} are moved, not {rows:,}")
            if moved.num_rows == rows:
                columns = (moved[name].to_pylist() for name in (KEY, FLIGHTS, MINUTES))
                return {carrier: (flights, minutes) for carrier, flights, minutes in zip(*columns, strict=True)}
            if time.monotonic() > deadline:
                raise RequestTimeout(f"{moved.num_rows:,} rows of partition {partition} are seen, not {rows:,}")
            time.sleep(0.05)


class Mover:
    """A worker of the pipeline in a process of its own: a Ray actor."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._worker: PipelineWorker | None = None
        self._opened = threading.Event()

    def pid(self, timeout_s: float) -> int:
        """Once it has the number: who is stopped before then would take it from its successor."""
        if not self._opened.wait(timeout_s):
            raise TimeoutError(f"worker {self._number} did not begin within {timeout_s:.0f} s")
        return os.getpid()

    def run(self, cluster: rs.Cluster) -> int:
        """Until `stop`: how many batches it has moved. Raises FencedProducer once another has its number."""
        pipeline = cluster.pipeline(
            SOURCE,
            Moving(cluster),
            SINK,
            group=GROUP,
            exactly_once=True,
            consumer_options=CONSUMER,
            producer_options=PRODUCER,
        )
        with pipeline.worker(self._number, f"mover-{self._number}") as self._worker:
            self._opened.set()
            self._worker.run()
        return self._worker.batches

    def stop(self) -> None:
        if self._worker is not None:
            self._worker.stop()


# The end --------------------------------------------------------------------------------------------------------------


def differences(source: pd.DataFrame, moved: pd.DataFrame, lag: int) -> list[str]:
    """A sentence for each thing that is not as it must be."""
    expected = with_sums(pa.Table.from_pandas(source, preserve_index=False), {}).to_pandas()
    found, wanted = by_key(moved), by_key(expected)
    wanted = wanted.astype(found.dtypes.to_dict())
    flights = list(source.columns)
    checks = {
        f"{len(source):,} rows went in, {len(moved):,} came out": len(moved) == len(source),
        "the rows are not those of the source, carrier by carrier in order": found[flights].equals(wanted[flights]),
        "the running sums are not those of the source": found[[FLIGHTS, MINUTES]].equals(wanted[[FLIGHTS, MINUTES]]),
        f"the group's positions lie {lag:,} before the source's ends": lag == 0,
    }
    return [sentence for sentence, holds in checks.items() if not holds]


def markers(cluster: rs.Cluster) -> tuple[int, int]:
    """How many transactions the sink holds the end of: committed, aborted. Each writes to one partition."""
    routing, loop = cluster._routing, cluster._loop
    committed = aborted = 0
    for partition, held in cluster.read(SINK, isolation="read_uncommitted").ranges().items():
        offset = held.start
        while offset < held.stop:

            async def call(leader: Leader, left_ms: float, partition: int = partition, offset: int = offset) -> Any:
                request = m.FetchRequest(topic_id=leader.topic_id, partition=partition, offset=offset)
                return await leader.port.fetch(request, timeout_ms=left_ms)

            for chunk in loop.run(routing.call_partition(SINK, partition, call)).chunks:
                for header, _ in walk(memoryview(chunk).cast("B")):
                    commits = bool(header.attributes & ATTR_COMMIT)
                    committed += header.is_control and commits
                    aborted += header.is_control and not commits
                    offset = header.next_offset
    return committed, aborted
