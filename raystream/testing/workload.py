"""Real clients that write, read, commit and rebalance, and record it all; at the end everything is read again.

with Recorder("history.jsonl") as recorder:
    workload = Workload(cluster, "events", recorder)
    with workload, FaultSchedule([Fault("kill", kill_something, every_s=10)], recorder):
        time.sleep(60)
    workload.final_read()
print(check("history.jsonl"))
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from itertools import count, islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from raystream.errors import InvalidArgument, RequestTimeout
from raystream.testing.clients import POLL_S, STYLES, Place, RecordingMember, RecordingProducer, stays
from raystream.testing.history import Recorder
from raystream.types import EARLIEST

if TYPE_CHECKING:
    from raystream.cluster import Cluster

STOP_WAIT_S: Final = 150.0
"""More than a producer's delivery timeout."""
VIEW_RECORDS: Final = 1_000


class Workload:
    """Producers and members of one group on one topic, a thread each, between `start` and `stop`; a context manager.

    The producers are by turns synchronous, pipelined, and sending batches; every second member also commits by hand.
    To spread it over processes run one in each, with its own recorder and its own `name`, which keeps processes and
    values apart; `History` merges the files.

    What a client raises goes to `failures`, and that client stops; `stop` raises none of it.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        recorder: Recorder,
        *,
        producers: int = 3,
        members: int = 2,
        group: str | None = None,
        records_per_s: float = 300.0,
        rejoin_s: float = 5.0,
        wait_s: float = 60.0,
        name: str = "",
        seed: int = 0,
        producer_settings: Mapping[str, Any] | None = None,
        consumer_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`records_per_s` counts for each producer, `rejoin_s` says how long a member stays on average. The topic has
        to exist. Raises TopicNotFound."""
        if producers < 0 or members < 0 or records_per_s <= 0 or rejoin_s <= 0:
            raise InvalidArgument("a workload needs rates and stays above 0, and no negative number of clients")
        partitions = cluster.describe_topic(topic).partitions
        self._place = Place(cluster, topic, partitions, recorder, wait_s)
        self._name = f"{name}-" if name else ""
        self._reads = count()
        self._stop = threading.Event()
        self.group = group or f"workload-{topic}"
        self.failures: list[Exception] = []
        clients: list[tuple[str, Callable[[threading.Event], None]]] = []
        for number in range(producers):
            process = f"{self._name}producer-{number}"
            style = STYLES[number % len(STYLES)]
            sender = RecordingProducer(self._place, process, style, records_per_s, producer_settings or {})
            clients.append((process, sender.run))
        for number in range(members):
            process = f"{self._name}member-{number}"
            member = RecordingMember(
                self._place,
                process,
                self.group,
                commits=number % 2 == 1,
                stays_s=stays(rejoin_s, (seed, process)),
                settings=consumer_settings or {},
            )
            clients.append((process, member.run))
        self._threads: list[threading.Thread] = []
        for process, run in clients:
            self._add(process, run)

    def _add(self, process: str, run: Callable[[threading.Event], None]) -> None:
        self._threads.append(threading.Thread(target=self._guard, args=(process, run), name=process, daemon=True))

    def start(self) -> None:
        """Lets the clients run."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends them after what they have in hand. Raises RequestTimeout where one does not come to its end."""
        self._stop.set()
        deadline = time.monotonic() + STOP_WAIT_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        hanging = [thread.name for thread in self._threads if thread.is_alive()]
        if hanging:
            raise RequestTimeout(f"{', '.join(hanging)} did not stop within {STOP_WAIT_S:.0f} s")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _guard(self, process: str, run: Callable[[threading.Event], None]) -> None:
        try:
            run(self._stop)
        except Exception as error:  # noqa: BLE001 - a client that died is a result, too
            self._place.recorder.info(process, "crash", error=repr(error))
            self.failures.append(error)

    @property
    def highest(self) -> dict[int, int]:
        """The highest offset of each partition that was acknowledged or read so far."""
        with self._place.lock:
            return dict(self._place.highest)

    # The end --------------------------------------------------------------------------------------------------------

    def final_read(self, cluster: Cluster | None = None, *, timeout_s: float = 120.0, tail_wait_s: float = 5.0) -> None:
        """Reads every partition from its beginning to the highest known offset, with a fresh consumer and as a view.

        A log that ends below the highest known offset is waited for `tail_wait_s` seconds; what is missing then is for
        the checker to say. Raises RequestTimeout where the end of the log is not reached, and records that the read is
        not complete. `cluster` may be another connection.
        """
        place = self._place
        cluster = cluster or place.cluster
        process = f"{self._name}reader-{next(self._reads)}"
        place.recorder.invoke(process, "drain", topic=place.topic)
        found = cluster.read(place.topic).ranges()
        starts = [(place.topic, partition, held.start) for partition, held in found.items()]
        place.recorder.ok(process, "assign", offsets=starts)
        positions = {partition: held.start for partition, held in found.items()}
        ends = {partition: held.stop for partition, held in found.items()}
        known = {partition: offset + 1 for partition, offset in self.highest.items()}
        deadline = time.monotonic() + timeout_s
        tail_deadline = time.monotonic() + tail_wait_s
        with cluster.consumer(place.topic, start=EARLIEST) as consumer:
            while _behind(positions, ends) or (_behind(positions, known) and time.monotonic() < tail_deadline):
                if time.monotonic() > deadline:
                    place.recorder.info(process, "drain", topic=place.topic, error=f"{positions} of {ends}")
                    raise RequestTimeout(f"the final read came to {positions} of {ends} in {timeout_s} s")
                place.recorder.invoke(process, "poll")
                batch = consumer.poll(POLL_S)
                records = [] if batch is None else [(r.topic, r.partition, r.offset, r.text) for r in batch]
                place.recorder.ok(process, "poll", records=records)
                if batch is not None:
                    tail_deadline = time.monotonic() + tail_wait_s
                # not where batches end: a log may end in markers, or in what was aborted
                positions |= consumer.position(place.topic)
        place.recorder.ok(process, "drain", topic=place.topic, offsets=starts)
        self._read_view(cluster, f"{process}-view")

    def _read_view(self, cluster: Cluster, process: str) -> None:
        """The other way to read: what a view shows has to agree."""
        records = cluster.read(self._place.topic).records()
        while part := [(r.topic, r.partition, r.offset, r.text) for r in islice(records, VIEW_RECORDS)]:
            self._place.recorder.ok(process, "poll", records=part)


def _behind(positions: Mapping[int, int], ends: Mapping[int, int]) -> bool:
    return any(positions.get(partition, 0) < end for partition, end in ends.items())
