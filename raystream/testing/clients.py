"""Real producers and group members that record everything they do; each runs on a thread of a workload."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from raystream.errors import FencedMember, InvalidArgument, RaystreamError, UnknownMember
from raystream.testing.history import Recorder
from raystream.types import EARLIEST, MemberDescription, TopicPartition

if TYPE_CHECKING:
    from raystream.client.consumer import Consumer
    from raystream.client.delivered import Batch
    from raystream.client.producer import Producer
    from raystream.client.sent import Sent
    from raystream.cluster import Cluster

Style = Literal["synchronous", "pipelined", "batches"]
STYLES: Final[tuple[Style, ...]] = ("synchronous", "pipelined", "batches")

KEYS: Final = 16
BATCH_RECORDS: Final = 20
PIPELINED_MAX: Final = 500
"""How many records of one producer are on their way at most."""
POLL_S: Final = 0.2
COMMIT_EVERY: Final = 5
COMMITTED_EVERY: Final = 20
"""A member commits, and reads its committed positions, after every so many batches."""
NO_EPOCH: Final = 0


@dataclass(frozen=True)
class Place:
    """What all clients of a workload share."""

    cluster: Cluster
    topic: str
    partitions: int
    recorder: Recorder
    wait_s: float
    """How long a send is waited for before its outcome counts as unknown."""
    highest: dict[int, int] = field(default_factory=dict)
    """The highest offset of each partition that was acknowledged or read."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def saw(self, partition: int, offset: int) -> None:
        """An offset exists."""
        with self.lock:
            self.highest[partition] = max(self.highest.get(partition, -1), offset)


class RecordingProducer:
    """Sends unique values `process-sequence`, by key or to partitions in turn, at `records_per_s`."""

    def __init__(
        self, place: Place, process: str, style: Style, records_per_s: float, settings: Mapping[str, Any]
    ) -> None:
        self._place = place
        self._process = process
        self._style = style
        self._records_per_s = records_per_s
        self._settings = settings
        self._sequence = 0
        self._on_the_way = threading.BoundedSemaphore(PIPELINED_MAX)

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; waits for what is on its way then."""
        send = {"synchronous": self._synchronous, "pipelined": self._pipelined, "batches": self._batch}[self._style]
        producer = self._place.cluster.producer(client_id=self._process, **self._settings)
        begun = time.monotonic()
        try:
            while not stop.is_set():
                send(producer)
                stop.wait(begun + self._sequence / self._records_per_s - time.monotonic())
        finally:
            with contextlib.suppress(RaystreamError):  # every outcome has been recorded, a timeout as unknown
                producer.close()

    def _next(self, *, may_name_partition: bool) -> dict[str, Any]:
        number = self._sequence
        self._sequence += 1
        fields = {"topic": self._place.topic, "value": f"{self._process}-{number}"}
        if may_name_partition and number % 3 == 0:
            return {**fields, "partition": number // 3 % self._place.partitions}
        return {**fields, "key": f"key-{number * 7 % KEYS}"}

    def _send(self, producer: Producer, fields: dict[str, Any]) -> Sent | None:
        self._place.recorder.invoke(self._process, "send", **fields)
        try:
            return producer.send(**fields)
        except RaystreamError as error:  # `send` raises where it did not take the record
            self._place.recorder.fail(self._process, "send", **fields, error=repr(error))
            return None

    def _settled(self, fields: dict[str, Any], sent: Sent) -> None:
        recorder = self._place.recorder
        try:
            where = sent.result(self._place.wait_s)
        except InvalidArgument as error:
            recorder.fail(self._process, "send", **fields, error=repr(error))
        except RaystreamError as error:
            recorder.info(self._process, "send", **fields, error=repr(error))
        else:
            recorder.ok(self._process, "send", **{**fields, "partition": where.partition, "offset": where.offset})
            self._place.saw(where.partition, where.offset)

    def _synchronous(self, producer: Producer) -> None:
        fields = self._next(may_name_partition=True)
        if (sent := self._send(producer, fields)) is not None:
            self._settled(fields, sent)

    def _pipelined(self, producer: Producer) -> None:
        self._on_the_way.acquire()
        fields = self._next(may_name_partition=True)
        sent = self._send(producer, fields)
        if sent is None:
            self._on_the_way.release()
        else:
            sent.add_done_callback(partial(self._arrived, fields))

    def _arrived(self, fields: dict[str, Any], sent: Sent) -> None:
        self._on_the_way.release()
        self._settled(fields, sent)

    def _batch(self, producer: Producer) -> None:
        batch = [self._next(may_name_partition=False) for _ in range(BATCH_RECORDS)]
        for fields in batch:
            self._place.recorder.invoke(self._process, "send", **fields)
        try:
            many = producer.send_many(self._place.topic, [(fields["key"], fields["value"]) for fields in batch])
        except RaystreamError as error:  # those before the one that was refused are on their way
            for fields in batch:
                self._place.recorder.info(self._process, "send", **fields, error=repr(error))
            return
        for fields, sent in zip(batch, many, strict=True):
            self._settled(fields, sent)


class RecordingMember:
    """A member of a group that polls, commits, and now and then leaves and joins again.

    There is no callback for a rebalance, so reassignments are seen by looking: at the assignment after every poll, and,
    where a batch does not go on where the one before ended, at the coordinator's member id and epoch, which change when
    a partition has been away and back in the meantime. Where they have changed the batch counts as newly assigned.
    """

    def __init__(
        self,
        place: Place,
        process: str,
        group: str,
        *,
        commits: bool,
        stays_s: Callable[[], float],
        settings: Mapping[str, Any],
    ) -> None:
        self._place = place
        self._process = process
        self._group = group
        self._commits = commits
        self._stays_s = stays_s
        self._settings = settings
        self._next: dict[TopicPartition, int | None] = {}
        """The partitions that it holds, with the next offset to come where that is known."""
        self._identity: tuple[str, int] | None = None
        self._batches = 0

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        place = self._place
        while not stop.is_set():
            leaves = time.monotonic() + self._stays_s()
            consumer = place.cluster.consumer(
                place.topic, group=self._group, start=EARLIEST, client_id=self._process, **self._settings
            )
            with consumer:
                while not stop.is_set() and time.monotonic() < leaves:
                    self._poll(consumer)
            place.recorder.ok(self._process, "revoke", group=self._group)
            self._next.clear()

    def _poll(self, consumer: Consumer) -> None:
        recorder = self._place.recorder
        recorder.invoke(self._process, "poll", group=self._group)
        batch = consumer.poll(POLL_S)
        self._follow(consumer, batch)
        records = [] if batch is None else [(r.topic, r.partition, r.offset, r.text) for r in batch]
        recorder.ok(self._process, "poll", group=self._group, records=records)
        if batch is None:
            return
        self._next[batch.topic_partition] = batch.offsets.stop
        self._place.saw(batch.partition, batch.offsets.stop - 1)
        self._batches += 1
        if self._commits and self._batches % COMMIT_EVERY == 0:
            self._commit(consumer, batch)
        if self._batches % COMMITTED_EVERY == 0:
            self._read_committed(consumer)

    def _follow(self, consumer: Consumer, batch: Batch | None) -> None:
        """Records how the assignment differs from the one known, before the batch that may belong to the new one."""
        # those of the assignment: a member's own epoch moves on while it still gives partitions up
        epochs = {p: slot.epoch for p, slot in consumer._session.assigned().items() if not slot.revoking}
        held = set(epochs)
        if batch is not None:
            held.add(batch.topic_partition)
        gone = self._next.keys() - held
        new = held - self._next.keys()
        away_and_back = set()
        if batch is not None and self._next.get(batch.topic_partition) not in (None, batch.offsets.start):
            away_and_back.add(batch.topic_partition)
        if not gone and not new and not away_and_back:
            return
        before = self._identity
        member = self._member()
        self._identity = None if member is None else (member.member_id, member.epoch)
        if before is None or self._identity != before:
            gone |= away_and_back
            new |= away_and_back
        if gone:
            self._place.recorder.ok(self._process, "revoke", group=self._group, partitions=sorted(gone))
        for epoch in sorted({epochs.get(partition, NO_EPOCH) for partition in new}):
            fields: dict[str, Any] = {} if epoch == NO_EPOCH else {"epoch": epoch}
            given = sorted(partition for partition in new if epochs.get(partition, NO_EPOCH) == epoch)
            self._place.recorder.ok(self._process, "assign", group=self._group, partitions=given, **fields)
        self._next = {p: None if p in new else self._next[p] for p in held}

    def _member(self) -> MemberDescription | None:
        """How the coordinator describes this member; None where it does not know it or does not answer."""
        with contextlib.suppress(RaystreamError):
            for member in self._place.cluster.describe_group(self._group).member_list:
                if member.client == self._process:
                    return member
        return None

    def _commit(self, consumer: Consumer, batch: Batch) -> None:
        fields = {"group": self._group, "offsets": [(batch.topic, batch.partition, batch.offsets.stop)]}
        recorder = self._place.recorder
        recorder.invoke(self._process, "commit", **fields)
        try:
            consumer.commit(batch)
        except (FencedMember, UnknownMember, InvalidArgument) as error:
            recorder.fail(self._process, "commit", **fields, error=repr(error))
        except RaystreamError as error:
            recorder.info(self._process, "commit", **fields, error=repr(error))
        else:
            recorder.ok(self._process, "commit", **fields)

    def _read_committed(self, consumer: Consumer) -> None:
        recorder = self._place.recorder
        recorder.invoke(self._process, "committed", group=self._group)
        try:
            offsets = consumer.committed(self._place.topic)
        except RaystreamError as error:
            recorder.info(self._process, "committed", group=self._group, error=repr(error))
        else:
            rows = [(self._place.topic, partition, offset) for partition, offset in sorted(offsets.items())]
            recorder.ok(self._process, "committed", group=self._group, offsets=rows)


def stays(mean_s: float, seed: object) -> Callable[[], float]:
    """How long a member stays before it leaves and joins again: around a mean, the same for the same seed."""
    chance = random.Random(repr(seed))
    return lambda: mean_s * chance.uniform(0.5, 1.5)
