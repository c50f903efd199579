"""The metadata log on a broker's disk: decide, append with a sync, replay. Memory holds only what the log holds."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from raystream import batch as b
from raystream import messages as m
from raystream.actors import state_rows
from raystream.clock import Clock
from raystream.config import TopicConfig
from raystream.core import topic_names
from raystream.core.controller import Controller, Records
from raystream.core.metadata import OFFSETS_TOPIC, MetadataImage, PartitionRecord, TopicRecord
from raystream.core.records import from_pair, to_pair
from raystream.schema import RAW_SCHEMA
from raystream.storage.files import Files
from raystream.storage.log import Log

METADATA_TOPIC_ID: Final = "00" * 16
READ_BYTES: Final = 8 << 20
MAX_RECORDS_PER_BATCH: Final = 2_000

Key = tuple[str, int]


class MetadataStore:
    """Used on the broker's supervising thread; looks at the image are safe from any thread."""

    def __init__(self, files: Files, directory: Path, broker_id: int, clock: Clock) -> None:
        self._files = files
        self._directory = directory / "metadata"
        self._clock = clock
        self._image = MetadataImage()
        self._controller = Controller(self._image, (broker_id,))
        self._raw_schema: bytes = RAW_SCHEMA.serialize().to_pybytes()
        self._log: Log

    @property
    def cluster_id(self) -> str:
        return self._image.cluster_id

    def open(self) -> None:
        """Recovers the log and replays it; formats it where it is empty."""
        self._log = Log.open(
            self._files,
            str(self._directory),
            topic_id=METADATA_TOPIC_ID,
            partition=0,
            schemas=[RAW_SCHEMA],
            config=TopicConfig(),
            clock=self._clock,
        )
        offset = self._log.start_offset
        while offset < self._log.end_offset:
            for span in self._log.read(offset, max_bytes=READ_BYTES, end_offset=self._log.end_offset):
                for row, key, value in state_rows.decode(self._log.read_bytes(span)):
                    self._image.replay(from_pair(key, value))
                    offset = row + 1
        self._commit(self._controller.format(uuid.uuid4().hex))

    def close(self) -> None:
        self._log.close()

    def _commit(self, records: Records) -> None:
        """All records or none: they go out in batches, the last of which is synced, and only then are replayed."""
        batches = []
        for first in range(0, len(records), MAX_RECORDS_PER_BATCH):
            pairs = [to_pair(record) for record in records[first : first + MAX_RECORDS_PER_BATCH]]
            message = state_rows.encode(pairs, topic_id=METADATA_TOPIC_ID, partition=0, now_ms=self._clock.now_ms())
            batches.append((message, b.parse(message)))
        if not batches:
            return
        self._log.append(batches, leader_epoch=0, high_watermark=self._log.high_watermark)
        self._log.advance_high_watermark(self._log.flush())
        for record in records:
            self._image.replay(record)
        self._log.maybe_checkpoint()

    # Changes --------------------------------------------------------------------------------------------------------

    def create_topic(self, request: m.CreateTopicRequest) -> None:
        """See `Controller.create_topic`."""
        self._commit(self._controller.create_topic(request, topic_id=uuid.uuid4().hex, raw_schema=self._raw_schema))

    def ensure_internal_topics(self) -> None:
        """The coordinator's topic; a fixed number of partitions, since a group's partition is a hash of its name."""
        request = m.CreateTopicRequest(name=OFFSETS_TOPIC, partitions=1, exist_ok=True)
        self._commit(
            self._controller.create_topic(
                request, topic_id=uuid.uuid4().hex, raw_schema=self._raw_schema, internal=True
            )
        )

    def alter_topic(self, request: m.AlterTopicRequest) -> None:
        """See `Controller.alter_topic`."""
        self._commit(self._controller.alter_topic(request))

    def delete_topic(self, request: m.DeleteTopicRequest) -> list[Key]:
        """Answers the partitions that are gone."""
        records = self._controller.delete_topic(request)
        keys = self.partitions(request.name)
        self._commit(records)
        return keys

    def new_incarnations(self, keys: Iterable[Key]) -> None:
        """See `Controller.new_incarnations`."""
        self._commit(self._controller.new_incarnations(keys))

    # Looks ----------------------------------------------------------------------------------------------------------

    def topic_names(self, *, internal: bool) -> list[str]:
        """Every topic's name, sorted."""
        return sorted(name for name in list(self._image.topics) if internal or not topic_names.is_internal(name))

    def partitions(self, topic: str | None = None) -> list[Key]:
        """The partitions of one topic, or of all."""
        topics = self._image.topics.values() if topic is None else [self._image.topic(topic)]
        return [(t.topic_id, record.partition) for t in topics for record in self._image.partitions_of(t.topic_id)]

    def exists(self, key: Key) -> bool:
        """Whether the partition's topic is still there."""
        return key[0] in self._image.topics_by_id

    def is_internal(self, key: Key) -> bool:
        """Whether the partition is one of raystream's own topics."""
        return topic_names.is_internal(self._image.topics_by_id[key[0]].name)

    def spec(self, key: Key, directory: str) -> m.ReplicaSpec:
        """What a partition actor needs to open the replica."""
        topic = self._image.topics_by_id[key[0]]
        record = self._image.partitions[key[0]][key[1]]
        return m.ReplicaSpec(
            topic=topic.name,
            topic_id=topic.topic_id,
            partition=record.partition,
            directory=directory,
            leader_epoch=record.leader_epoch,
            incarnation=record.incarnation,
            config=topic.config,
            schemas=topic.schema_bytes,
            time_column=topic.time,
        )

    def describe(self, name: str, served: Mapping[Key, tuple[str, str]], node_id: str) -> m.TopicMetadata | None:
        """The topic as clients see it. `served` says which actor serves each partition, or why none does."""
        topic = self._image.topics.get(name)
        if topic is None:
            return None
        partitions = tuple(
            _partition(record, served.get((topic.topic_id, record.partition), ("", "")), node_id)
            for record in self._image.partitions_of(topic.topic_id)
        )
        return _topic(topic, partitions)


def _topic(topic: TopicRecord, partitions: tuple[m.PartitionMetadata, ...]) -> m.TopicMetadata:
    return m.TopicMetadata(
        name=topic.name,
        topic_id=topic.topic_id,
        typed=topic.typed,
        schemas=topic.schema_bytes,
        key=topic.key,
        time=topic.time,
        config=topic.config,
        replication_factor=topic.replication_factor,
        partitions=partitions,
    )


def _partition(record: PartitionRecord, served: tuple[str, str], node_id: str) -> m.PartitionMetadata:
    actor, error = served
    return m.PartitionMetadata(
        partition=record.partition,
        leader=record.leader,
        leader_epoch=record.leader_epoch,
        replicas=record.replicas,
        isr=record.isr,
        actor=actor,
        node_id=node_id,
        error=error,
    )
