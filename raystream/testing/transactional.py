"""Clients that write in transactions and move records exactly once, and plain readers beside them; a thread each.

A producer or worker has several lives in a row, each a process of the history with a producer of its own, and all with
one transactional id: a life ends now and then with its transaction open, and tries to go on when the next has begun.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal

from raystream.errors import GroupNotFound, RaystreamError
from raystream.testing.clients import KEYS, POLL_S, Place, stays
from raystream.testing.history import Recorder
from raystream.testing.recorded import RecordedProducer
from raystream.testing.workload import Workload
from raystream.types import EARLIEST

if TYPE_CHECKING:
    from raystream.client.consumer import Consumer
    from raystream.client.delivered import Batch
    from raystream.cluster import Cluster

Isolation = Literal["read_committed", "read_uncommitted"]

RECORDS: Final = (1, 6)
"""How many records a producer's transaction has."""
ABORTS: Final = 0.15
DIES: Final = 0.05
BURSTS: Final = 0.3
"""How likely a writer begins with transactions whose commits it does not wait for."""
BURST: Final = (2, 5)
"""How many."""
BEFORE_ABORT_S: Final = 0.1
"""Up to so long one of them is open before it is taken back."""
AGAIN_S: Final = (0.2, 0.8)
MADE_OF: Final = ">"
"""Between the value that a record was made of and what makes it another one."""


class TransactionalWorkload(Workload):
    """As `Workload`, with transactional producers of its topic, workers that move it to the topic `sink`, partition by
    partition, as the group `group`, and readers of both topics.

    Transactional ids are `group/number` for workers and `group/p-number` for producers, from `first_id` on: of two
    workloads with the same numbers the one that begins later fences the other's clients, which then stop.
    """

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        recorder: Recorder,
        *,
        sink: str,
        group: str,
        producers: int = 0,
        transactional: int = 1,
        workers: int = 1,
        readers: int = 0,
        first_id: int = 0,
        aborts: float = ABORTS,
        dies: float = DIES,
        rejoin_s: float = 5.0,
        name: str = "",
        seed: int = 0,
        transactional_settings: Mapping[str, Any] | None = None,
        consumer_settings: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> None:
        """`aborts` and `dies` say how likely a transaction is taken back, and left open by its producer's end. Readers
        come by turns for topic and sink, and for what is committed and everything."""
        super().__init__(
            cluster, topic, recorder, producers=producers, members=0, group=group, name=name, seed=seed, **how
        )
        place = self._place
        chances = (aborts, dies)
        settings = transactional_settings or {}
        for number in range(transactional):
            process, identity = f"{self._name}writer-{number}", f"{group}/p-{first_id + number}"
            writer = _Writer(place, process, identity, chances, random.Random(repr((seed, process))), settings)
            self._add(process, writer.run)
        for number in range(workers):
            process, identity = f"{self._name}mover-{number}", f"{group}/{first_id + number}"
            mover = _Mover(
                place,
                process,
                identity,
                chances,
                random.Random(repr((seed, process))),
                settings,
                sink=sink,
                group=group,
                consumer_settings=consumer_settings or {},
            )
            self._add(process, mover.run)
        for number in range(readers):
            process = f"{self._name}reader-of-{number}"
            isolation: Isolation = "read_committed" if number // 2 % 2 == 0 else "read_uncommitted"
            read = sink if number % 2 == 0 else topic
            reader = RecordingReader(place, process, read, isolation, stays(rejoin_s, (seed, process)))
            self._add(process, reader.run)


class _Lives:
    """One transactional id, held by one producer after the other."""

    def __init__(
        self,
        place: Place,
        process: str,
        transactional_id: str,
        chances: tuple[float, float],
        chance: random.Random,
        settings: Mapping[str, Any],
    ) -> None:
        self._place = place
        self._process = process
        self._transactional_id = transactional_id
        self._aborts, self._dies = chances
        self._chance = chance
        self._settings = settings
        self._lives = count(1)
        self._left: RecordedProducer | None = None
        """A life that has ended with its transaction open, until it has tried to go on."""

    def run(self, stop: threading.Event) -> None:
        """Until `stop`, or until another producer has the transactional id."""
        while not stop.is_set():
            process = f"{self._process}.{next(self._lives)}"
            producer = RecordedProducer(self._place, process, self._transactional_id, self._settings)
            dying = False
            try:
                while not stop.is_set() and producer.usable and not dying:
                    dying = self._work(producer, stop)
                    self._let_go(producer)
            finally:
                if dying:
                    self._left = producer
                else:
                    producer.close()
                self._ended()
            if producer.fenced:
                break
        if self._left is not None:
            self._left.close()

    def _work(self, producer: RecordedProducer, stop: threading.Event) -> bool:
        """One transaction. Whether its producer ends with it open."""
        raise NotImplementedError

    def _ended(self) -> None:
        """A life is over."""

    def _let_go(self, successor: RecordedProducer) -> None:
        """What the life before has left open cannot be committed any more, once the next one has begun."""
        if self._left is not None and successor.took_over:
            zombie, self._left = self._left, None
            zombie.send(self._place.topic, value=zombie.next_value(), key="key-0")
            zombie.settle()
            zombie.commit()
            zombie.close()

    def _finish(self, producer: RecordedProducer, commit: Callable[[], bool]) -> tuple[bool, bool]:
        """By chance the transaction is left open, taken back, or committed. Whether it is left, and whether it is
        committed."""
        fate = self._chance.random()
        producer.settle()
        if fate < self._dies:
            return True, False
        if fate < self._dies + self._aborts:
            producer.abort()
            return False, False
        return False, commit()


class _Writer(_Lives):
    """Writes a few records to several partitions at a time, and by chance a few transactions without waiting."""

    def _work(self, producer: RecordedProducer, stop: threading.Event) -> bool:
        if self._chance.random() < BURSTS:
            self._burst(producer, stop)
        if producer.usable and producer.begin():
            self._send(producer)
            left, _ = self._finish(producer, producer.commit)
            if left:
                return True
        stop.wait(self._chance.uniform(*AGAIN_S))
        return False

    def _burst(self, producer: RecordedProducer, stop: threading.Event) -> None:
        for _ in range(self._chance.randint(*BURST)):
            if not producer.usable or not producer.begin():
                break
            self._send(producer)
            if self._chance.random() < self._aborts:
                stop.wait(self._chance.uniform(0, BEFORE_ABORT_S))
                producer.abort()
                producer.settle()
            else:
                producer.commit_later()
        producer.settle_later()

    def _send(self, producer: RecordedProducer) -> None:
        for _ in range(self._chance.randint(*RECORDS)):
            value = producer.next_value()
            producer.send(self._place.topic, value=value, key=f"key-{self._chance.randrange(KEYS)}")


class _Mover(_Lives):
    """Consumes, transforms and produces: a transaction for each batch, with its position."""

    def __init__(
        self, *arguments: Any, sink: str, group: str, consumer_settings: Mapping[str, Any], **settings: Any
    ) -> None:
        super().__init__(*arguments, **settings)
        self._sink = sink
        self._group = group
        self._consumer_settings = consumer_settings
        self._consumer: Consumer | None = None
        self._next: dict[int, int] = {}

    def _work(self, producer: RecordedProducer, stop: threading.Event) -> bool:
        if self._consumer is None:
            self._consumer = self._place.cluster.consumer(
                self._place.topic,
                group=self._group,
                start=EARLIEST,
                client_id=producer.process,
                auto_commit=False,
                **self._consumer_settings,
            )
        consumer = self._consumer
        batch = self._poll(producer, consumer)
        if batch is None or not producer.begin():
            return False
        for record in batch:
            fields = {"source": record.text, "group": self._group, "partition": record.partition}
            producer.send(self._sink, value=f"{record.text}{MADE_OF}{producer.next_value()}", **fields)
        commits = producer.commit_offsets(consumer, batch, self._group)
        left, committed = self._finish(producer, producer.commit if commits else lambda: self._taken_back(producer))
        if not left and not committed and not producer.fenced:
            self._rewind(consumer, producer)
            stop.wait(self._chance.uniform(*AGAIN_S))
        return left

    def _poll(self, producer: RecordedProducer, consumer: Consumer) -> Batch | None:
        recorder, process = self._place.recorder, producer.process
        recorder.invoke(process, "poll", group=self._group, txn=producer.txn)
        batch = consumer.poll(POLL_S)
        if batch is not None and self._next.get(batch.partition) != batch.offsets.start:
            # assigned anew, or read again: what follows is told by what is made of it
            recorder.ok(process, "revoke", group=self._group, partitions=[batch.topic_partition])
        records = [] if batch is None else [(r.topic, r.partition, r.offset, r.text) for r in batch]
        recorder.ok(process, "poll", group=self._group, txn=producer.txn, records=records)
        if batch is not None:
            self._next[batch.partition] = batch.offsets.stop
        return batch

    def _taken_back(self, producer: RecordedProducer) -> bool:
        producer.abort()
        return False

    def _rewind(self, consumer: Consumer, producer: RecordedProducer) -> None:
        try:
            consumer.rewind()
        except RaystreamError:  # begins anew, from what is committed
            producer.usable = False

    def _ended(self) -> None:
        self._next.clear()
        if self._consumer is not None:
            self._consumer.close(processed=False)
            self._consumer = None


class RecordingReader:
    """Reads a topic from its beginning on, in no group, again and again."""

    def __init__(
        self, place: Place, process: str, topic: str, isolation: Isolation, stays_s: Callable[[], float]
    ) -> None:
        self._place = place
        self._process = process
        self._topic = topic
        self._isolation: Isolation = isolation
        self._stays_s = stays_s

    def run(self, stop: threading.Event) -> None:
        """Until `stop`."""
        said = {} if self._isolation == "read_committed" else {"isolation": self._isolation}
        for life in count(1):
            if stop.is_set():
                return
            process = f"{self._process}.{life}"
            leaves = time.monotonic() + self._stays_s()
            with self._place.cluster.consumer(self._topic, start=EARLIEST, isolation=self._isolation) as consumer:
                while not stop.is_set() and time.monotonic() < leaves:
                    self._place.recorder.invoke(process, "poll", **said)
                    batch = consumer.poll(POLL_S)
                    records = [] if batch is None else [(r.topic, r.partition, r.offset, r.text) for r in batch]
                    self._place.recorder.ok(process, "poll", records=records, **said)


def record_positions(cluster: Cluster, group: str, topic: str, recorder: Recorder) -> int:
    """Records where a group stands; answers how many records of the topic it has not come to yet."""
    recorder.invoke("positions", "committed", group=group)
    positions = {}
    with contextlib.suppress(GroupNotFound):  # nobody has joined it so far
        positions = {row.partition: row.committed for row in cluster.lag(group) if row.committed is not None}
    offsets = [(topic, partition, position) for partition, position in positions.items()]
    recorder.ok("positions", "committed", group=group, offsets=offsets)
    return cluster.read(topic, start=positions or EARLIEST).count()


def unmoved(cluster: Cluster, topic: str, sink: str) -> list[str]:
    """What is committed in both topics, partition by partition: a sentence where the sink does not hold what was made
    of the topic's records, each once and in their order."""
    wanted, found = _values(cluster, topic), _values(cluster, sink)
    return [
        f"partition {partition} of {topic!r} holds {wanted.get(partition)} and that of {sink!r} {found.get(partition)}"
        for partition in sorted(wanted.keys() | found.keys())
        if wanted.get(partition) != [value.partition(MADE_OF)[0] for value in found.get(partition, [])]
    ]


def _values(cluster: Cluster, topic: str) -> dict[int, list[str]]:
    values: dict[int, list[str]] = {}
    for record in cluster.read(topic).records():
        values.setdefault(record.partition, []).append(record.text or "")
    return values
