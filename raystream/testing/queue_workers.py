"""Workers of a queue that record everything they do; a thread each, beside producers of the queue's topic."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from raystream.errors import FencedMember, InvalidArgument, RaystreamError
from raystream.testing.history import Recorder
from raystream.testing.workload import Workload
from raystream.types import EARLIEST, Record

if TYPE_CHECKING:
    from raystream.client.delivered import Batch
    from raystream.client.share_consumer import ShareConsumer, Word
    from raystream.cluster import Cluster

POLL_S: Final = 0.2
SLOW: Final = 0.2
"""So many batches take a worker a while."""
SLOW_S: Final = 1.5
WORDS: Final[tuple[tuple[Word, int], ...]] = (("accept", 16), ("release", 3), ("reject", 1))
Row = tuple[str, int, int, str | int]


class QueueWorkload(Workload):
    """As `Workload`, whose members are workers of the share group `group`. What they cannot handle goes to the topic
    `dead_letter`."""

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        recorder: Recorder,
        *,
        group: str,
        dead_letter: str,
        producers: int = 1,
        workers: int = 2,
        name: str = "",
        seed: int = 0,
        share_settings: Mapping[str, Any] | None = None,
        **how: Any,
    ) -> None:
        super().__init__(
            cluster, topic, recorder, producers=producers, members=0, group=group, name=name, seed=seed, **how
        )
        for number in range(workers):
            process = f"{self._name}worker-{number}"
            settings = {"share": group, "dead_letter": dead_letter, **(share_settings or {})}
            worker = RecordingWorker(cluster, topic, recorder, process, settings, random.Random(repr((seed, process))))
            self._add(process, worker.run)


class RecordingWorker:
    """Takes batches, and says of every record by chance what becomes of it."""

    def __init__(
        self,
        cluster: Cluster,
        topic: str,
        recorder: Recorder,
        process: str,
        settings: Mapping[str, Any],
        chance: random.Random,
    ) -> None:
        self._cluster = cluster
        self._topic = topic
        self._recorder = recorder
        self._process = process
        self._settings = settings
        self._chance = chance

    def run(self, stop: threading.Event) -> None:
        """Until `stop`; begins anew where it has to."""
        while not stop.is_set():
            try:
                consumer = self._cluster.consumer(
                    self._topic, start=EARLIEST, client_id=self._process, **self._settings
                )
            except RaystreamError as error:
                if not error.retriable:
                    raise
                stop.wait(POLL_S)
                continue
            with consumer:
                while not stop.is_set():
                    self._work(consumer, stop)

    def _work(self, consumer: ShareConsumer, stop: threading.Event) -> None:
        batch = consumer.poll(POLL_S)
        if batch is None:
            return
        records = list(batch)
        try:
            delivery = consumer.deliveries(records[0])
        except InvalidArgument:  # the member was not known any more meanwhile
            delivery = 1
        self._record("ok", "deliver", map(_row, records), epoch=delivery)
        if self._chance.random() < SLOW:
            stop.wait(self._chance.uniform(0, SLOW_S))
        said: dict[Word, list[Row]] = {}
        for record in records:
            word = self._chance.choices([word for word, _ in WORDS], [weight for _, weight in WORDS])[0]
            said.setdefault(word, []).append(_row(record))
        for word, rows in said.items():
            self._record("invoke", "settle", rows, outcome=word, epoch=delivery)
        wanted = {(row[1], row[2]): word for word, rows in said.items() for row in rows}
        self._say(consumer, batch, records, wanted)
        refused, error = self._settled(consumer)
        for word, rows in said.items():
            unknown = [row for row in rows if refused is None or (row[1], row[2]) in refused]
            sure = [row for row in rows if refused is not None and (row[1], row[2]) not in refused]
            if unknown:
                self._record("info", "settle", unknown, outcome=word, epoch=delivery, error=error)
            if sure:
                self._record("ok", "settle", sure, outcome=word, epoch=delivery)

    def _say(
        self, consumer: ShareConsumer, batch: Batch, records: list[Record], wanted: Mapping[tuple[int, int], Word]
    ) -> None:
        if set(wanted.values()) == {"accept"}:
            consumer.acknowledge(batch)
        else:
            for record in records:
                consumer.acknowledge(record, wanted[record.partition, record.offset])

    def _settled(self, consumer: ShareConsumer) -> tuple[set[tuple[int, int]] | None, str | None]:
        """Of which records the acknowledgements did not surely count; None: of none."""
        try:
            consumer.commit()
        except FencedMember as error:
            return {(p.partition, o) for p, first, stop in error.refused for o in range(first, stop)}, repr(error)
        except RaystreamError as error:
            return None, repr(error)
        return set(), None

    def _record(self, type: Any, kind: Any, rows: Any, **fields: Any) -> None:
        self._recorder.record(self._process, type, kind, group=self._settings["share"], records=list(rows), **fields)


def record_dead_letters(cluster: Cluster, topic: str, group: str, recorder: Recorder) -> None:
    """Reads a dead-letter topic to its end, and records whose copies are there."""
    name = "raystream.dead_letter."
    rows = []
    for letter in cluster.read(topic).records():
        said = {header: (value or b"").decode() for header, value in letter.headers}
        rows.append((said[name + "topic"], int(said[name + "partition"]), int(said[name + "offset"]), letter.text))
    recorder.ok("dead letters", "buried", group=group, records=rows)


def record_settled(cluster: Cluster, group: str, recorder: Recorder) -> bool:
    """Records how far the queue is settled, where it is to the end of its topics; whether it is."""
    described = cluster.describe_group(group)
    if described.lag:
        return False
    offsets = [(share.topic, share.partition, share.start_offset) for share in described.share_list]
    recorder.ok("settled", "settled", group=group, offsets=offsets)
    return True


def _row(record: Record) -> Row:
    return (record.topic, record.partition, record.offset, record.text or "")
