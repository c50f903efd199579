"""The demo's course of events: publish while two Ray tasks process, kill one half-way, wait until the other is done."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from raystream.demo import flights
from raystream.demo.ledger import Ledger, Range
from raystream.demo.show import Picture, Worker
from raystream.demo.worker import GROUP, REPORTS, Delays
from raystream.errors import GroupNotFound, RequestTimeout
from raystream.jobs import ConsumerJob
from raystream.types import WriteResult

if TYPE_CHECKING:
    import pandas as pd

    from raystream.client.producer import Producer
    from raystream.client.sent_frame import SentFrame
    from raystream.cluster import Cluster

WORKERS: Final = 2
CHUNK_ROWS: Final = 8_192
CHUNKS_IN_FLIGHT: Final = 8
KILL_AT: Final = 0.5
HOLD_AT: Final = 0.6
"""The publisher waits there until the kill has happened, so that it strikes while records are flowing."""
CONSUMER: Final = {"start": "earliest", "session_timeout_ms": 3_000, "heartbeat_interval_ms": 300}
"""A short session, so that a killed member is noticed soon."""
START_TIMEOUT_S: Final = 60.0
STALL_TIMEOUT_S: Final = 30.0
_LAG_EVERY_S: Final = 0.5
_POLL_S: Final = 0.1


@dataclass
class Outcome:
    """What the run itself measured. `publish_seconds` leaves out the wait for the kill."""

    published: int = 0
    publish_seconds: float = 0.0
    takeover_seconds: float | None = None
    offsets: dict[int, Range] = field(default_factory=dict)


class Demo:
    """One run on one cluster; `run` is called once."""

    def __init__(self, cluster: Cluster, source: pd.DataFrame, changed: Callable[[Picture], None]) -> None:
        self._cluster = cluster
        self._source = source
        self._changed = changed
        self._picture = Picture(total=len(source))
        self._ledger = Ledger()
        self._outcome = Outcome()
        self._killed = threading.Event()
        self._killed_at = 0.0
        self._orphaned: set[int] = set()
        self._failure: BaseException | None = None

    def run(self) -> Outcome:
        """Returns when every record is processed. Raises RequestTimeout when nothing moves any more."""
        self._cluster.create_topic(
            flights.TOPIC,
            partitions=flights.PARTITIONS,
            schema=_schema(self._source),
            key=flights.KEY,
            time=flights.TIME,
        )
        self._cluster.create_topic(REPORTS)
        with self._workers(), self._cluster.consumer(REPORTS, group=None, start="earliest") as reports:
            self._wait_for_members()
            publisher = threading.Thread(target=self._publish, name="demo-publisher", daemon=True)
            publisher.start()
            self._follow(reports)
            publisher.join()
        self._look_at_lag()
        self._picture.doing = "all is processed and committed"
        self._changed(self._picture)
        return self._outcome

    # Publishing -----------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        try:
            with self._cluster.producer() as producer:
                total = len(self._source)
                hold_at = int(total * HOLD_AT)
                for first, end in ((0, hold_at), (hold_at, total)):
                    began = time.monotonic()
                    self._send(producer, first, end)
                    self._outcome.publish_seconds += time.monotonic() - began
                    self._killed.wait()
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits for it
            self._failure = error

    def _send(self, producer: Producer, first: int, end: int) -> None:
        """Returns when all of these flights are acknowledged; a few chunks are on their way at a time."""
        waiting: deque[SentFrame] = deque()
        for at in range(first, end, CHUNK_ROWS):
            waiting.append(producer.send_frame(flights.TOPIC, self._source.iloc[at : min(at + CHUNK_ROWS, end)]))
            if len(waiting) > CHUNKS_IN_FLIGHT:
                self._acknowledged(waiting.popleft().result())
        for sent in waiting:
            self._acknowledged(sent.result())

    def _acknowledged(self, result: WriteResult) -> None:
        self._outcome.published += result.rows
        self._picture.published = self._outcome.published
        for partition, (first, end) in result.offsets.items():
            known = self._outcome.offsets.get(partition, (first, end))
            self._outcome.offsets[partition] = (min(known[0], first), max(known[1], end))

    # Processing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _workers(self) -> Iterator[None]:
        self._picture.doing = f"{WORKERS} Ray tasks join the group"
        self._changed(self._picture)
        job = ConsumerJob.start(
            self._cluster,
            flights.TOPIC,
            GROUP,
            each_batch=Delays(self._cluster),
            each_record=None,
            workers=WORKERS,
            name="demo",
            num_cpus=0,
            ray_remote_args={},
            consumer_options=CONSUMER,
        )
        try:
            self._picture.workers = [Worker(status.pid or 0) for status in job.status()]
            yield
        finally:
            job.stop(timeout=10)

    def _wait_for_members(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(GroupNotFound):
                members = self._cluster.describe_group(GROUP).member_list
                if len(members) == WORKERS and sum(len(member.partitions) for member in members) == flights.PARTITIONS:
                    return
            if time.monotonic() > deadline:
                raise RequestTimeout(f"the group's {WORKERS} workers did not join within {START_TIMEOUT_S:.0f} s")
            self._changed(self._picture)
            time.sleep(_POLL_S)

    def _follow(self, reports: Any) -> None:
        picture = self._picture
        picture.doing = "flights are published and processed"
        moved_at = lag_at = time.monotonic()
        while picture.processed < picture.total:
            before = picture.processed
            self._take(reports)
            now = time.monotonic()
            if self._failure is not None:
                raise self._failure
            if not self._killed.is_set() and picture.processed >= picture.total * KILL_AT:
                self._kill(picture.workers[0])
            if now - lag_at > _LAG_EVERY_S:
                self._look_at_lag()
                lag_at = now
            if picture.processed > before:
                moved_at = now
            elif now - moved_at > STALL_TIMEOUT_S:
                raise RequestTimeout(
                    f"nothing was processed for {STALL_TIMEOUT_S:.0f} s, {picture.processed:,} records in"
                )

    def _look_at_lag(self) -> None:
        self._picture.lag = {row.partition: row.lag or 0 for row in self._cluster.lag(GROUP)}

    def _kill(self, worker: Worker) -> None:
        os.kill(worker.pid, signal.SIGKILL)
        self._killed_at = time.monotonic()
        self._orphaned = set(worker.partitions)
        worker.killed = True
        self._picture.doing = f"pid {worker.pid} was killed; the other takes over when its session has timed out"
        self._killed.set()

    def _take(self, reports: Any) -> None:
        """Enters what the workers have reported since the last call."""
        batch = reports.poll(timeout=_POLL_S)
        for record in batch or ():
            self._enter(record.json())
        self._changed(self._picture)

    def _enter(self, report: dict[str, Any]) -> None:
        worker = next(worker for worker in self._picture.workers if worker.pid == report["pid"])
        partition, first, end = report["partition"], report["first"], report["end"]
        self._ledger.add(partition, first, end)
        worker.rows += end - first
        if partition not in worker.partitions:
            worker.partitions.append(partition)
            if partition in self._orphaned and not worker.killed and self._outcome.takeover_seconds is None:
                self._outcome.takeover_seconds = time.monotonic() - self._killed_at
                self._picture.doing = "the other took over"
        self._picture.processed = self._ledger.distinct


def _schema(frame: pd.DataFrame) -> Any:
    import pyarrow as pa

    return pa.Schema.from_pandas(frame, preserve_index=False)
