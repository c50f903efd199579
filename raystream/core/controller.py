"""The controller's decisions: what records a request leads to, or why it is refused. Nothing here changes the image."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from raystream import config as settings
from raystream.config import MAX_PARTITIONS, TopicConfig
from raystream.core import arguments, topic_names
from raystream.core.metadata import BrokerRecord, ClusterRecord, MetadataImage, PartitionRecord, TopicRecord
from raystream.core.placement import place
from raystream.core.records import Record, Removed, removed
from raystream.errors import Fenced, InvalidArgument, InvalidTopicName, TopicExists, Unavailable
from raystream.messages import AlterTopicRequest, CreateTopicRequest, DeleteTopicRequest

Records = list[Record | Removed]
DEFAULT_REPLICATION_FACTOR: Final = 3
MAX_PARTITIONS_PER_CLUSTER: Final = 100_000


class Controller:
    """Decides over one image. `brokers` are the ids of those that may take replicas; None: all that are registered."""

    def __init__(self, image: MetadataImage, brokers: Collection[int] | None = None) -> None:
        self._image = image
        self._fixed_brokers = brokers

    @property
    def _brokers(self) -> Collection[int]:
        return self._image.brokers if self._fixed_brokers is None else self._fixed_brokers

    def format(self, cluster_id: str) -> Records:
        """An empty log becomes a cluster's."""
        return [] if self._image.cluster_id else [ClusterRecord(cluster_id)]

    def register_broker(self, broker_id: int) -> Records:
        """A broker that starts, for the first time or again: its incarnation grows, which fences its earlier life."""
        known = self._image.brokers.get(broker_id)
        return [BrokerRecord(broker_id, 1 if known is None else known.incarnation + 1)]

    def unregister_broker(self, broker_id: int, incarnation: int) -> Records:
        """A broker that goes for good. Raises Fenced for an earlier life, InvalidArgument while it holds replicas."""
        known = self._image.brokers.get(broker_id)
        if known is None:
            return []
        if incarnation != known.incarnation:
            raise Fenced(f"broker {broker_id} is at incarnation {known.incarnation}, and speaks with {incarnation}")
        holding = sum(
            broker_id in record.replicas for held in self._image.partitions.values() for record in held.values()
        )
        if holding:
            raise InvalidArgument(f"broker {broker_id} holds replicas of {holding:,} partitions: move them first")
        return [removed(known)]

    def create_topic(
        self, request: CreateTopicRequest, *, topic_id: str, raw_schema: bytes, internal: bool = False
    ) -> Records:
        """A new topic with its partitions. Raises InvalidTopicName, InvalidConfig, InvalidArgument, TopicExists.

        With `exist_ok` an existing topic of the same kind gives no records; one of the other kind is TopicExists.
        """
        if not internal:
            topic_names.check(request.name, self._image.topics)
        existing = self._image.topics.get(request.name)
        if existing is not None:
            return self._existing(existing, request)
        config = settings.build(TopicConfig, request.config)
        factor = self._replication_factor(request.replication_factor)
        partitions = _partition_count(request.partitions)
        typed = request.schema is not None
        schema = request.schema if request.schema is not None else raw_schema
        topic = TopicRecord(
            topic_id=topic_id,
            name=request.name,
            typed=typed,
            schemas=(base64.b64encode(schema).decode(),),
            key=request.key,
            time=request.time,
            config=dataclasses.asdict(config),
            replication_factor=factor,
        )
        return [topic, *self._new_partitions(topic, 0, partitions)]

    def _existing(self, topic: TopicRecord, request: CreateTopicRequest) -> Records:
        if not request.exist_ok:
            raise TopicExists(f"topic {request.name!r} exists already: pass exist_ok=True to take it as it is")
        if topic.typed != (request.schema is not None):
            kind = "typed" if topic.typed else "raw"
            raise TopicExists(f"topic {request.name!r} exists already and is {kind}")
        if request.schema is not None:
            if topic.schema_bytes[-1] != request.schema or topic.key != request.key:
                raise TopicExists(f"topic {request.name!r} exists already with another schema or key column")
            if topic.time != request.time:
                raise TopicExists(f"topic {request.name!r} exists already with another time column: {topic.time!r}")
        return []

    def alter_topic(self, request: AlterTopicRequest) -> Records:
        """Changed settings, more partitions, or both. Raises TopicNotFound, InvalidConfig, InvalidArgument."""
        topic = self._user_topic(request.name)
        records: Records = []
        if request.config:
            changed = settings.changed(settings.build(TopicConfig, topic.config), request.config)
            topic = dataclasses.replace(topic, config=dataclasses.asdict(changed))
            records.append(topic)
        if request.partitions is not None:
            have = len(self._image.partitions[topic.topic_id])
            wanted = _partition_count(request.partitions)
            if wanted < have:
                raise InvalidArgument(
                    f"topic {request.name!r} has {have} partitions; their number can grow, not shrink to {wanted}"
                )
            records += self._new_partitions(topic, have, wanted)
        return records

    def delete_topic(self, request: DeleteTopicRequest) -> Records:
        """The topic's end. Raises TopicNotFound; internal topics cannot be deleted.

        Its partitions get tombstones of their own: a compacted log would keep their last records for ever.
        """
        topic = self._user_topic(request.name)
        return [*(removed(record) for record in self._image.partitions_of(topic.topic_id)), removed(topic)]

    def new_incarnations(self, partitions: Iterable[tuple[str, int]]) -> Records:
        """New lives for replicas that are about to be opened: their leader epoch grows, which fences the old ones.

        Raises PartitionNotFound.
        """
        records = [self._image.partition(topic_id, number) for topic_id, number in partitions]
        return [
            dataclasses.replace(record, leader_epoch=record.leader_epoch + 1, incarnation=record.incarnation + 1)
            for record in records
        ]

    def _new_partitions(self, topic: TopicRecord, first: int, end: int) -> Sequence[PartitionRecord]:
        if first == end:
            return []
        total = self._image.partition_count() + end - first
        if total > MAX_PARTITIONS_PER_CLUSTER:
            raise InvalidArgument(
                f"the cluster would hold {total:,} partitions; {MAX_PARTITIONS_PER_CLUSTER:,} are allowed"
            )
        load = dict.fromkeys(self._brokers, 0)
        if len(load) < topic.replication_factor:
            raise Unavailable(
                f"topic {topic.name!r} keeps {topic.replication_factor} replicas; {len(load)} brokers are there now"
            )
        leading = dict(load)
        for held in self._image.partitions.values():
            for record in held.values():
                for broker in record.replicas:
                    if broker in load:
                        load[broker] += 1
                if record.leader in leading:
                    leading[record.leader] += 1
        placed = place(end - first, topic.replication_factor, load, leading)
        return [
            PartitionRecord(
                topic_id=topic.topic_id,
                partition=first + number,
                replicas=replicas,
                isr=replicas,
                leader=replicas[0],
                leader_epoch=0,
                incarnation=0,
            )
            for number, replicas in enumerate(placed)
        ]

    def _user_topic(self, name: str) -> TopicRecord:
        if topic_names.is_internal(name):
            raise InvalidTopicName(f"{name!r} is raystream's own topic: it cannot be changed")
        return self._image.topic(name)

    def _replication_factor(self, wanted: int | None) -> int:
        live = len(self._brokers)
        if not live:
            raise Unavailable("no broker has registered yet")
        if wanted is None:
            return min(DEFAULT_REPLICATION_FACTOR, live)
        factor = arguments.whole("replication_factor", wanted)
        if not 1 <= factor <= live:
            brokers = "1 broker" if live == 1 else f"{live} brokers"
            possible = "only 1" if live == 1 else f"1 to {live}"
            raise InvalidArgument(f"replication_factor={factor}: this cluster has {brokers}, so {possible} is possible")
        return factor


def _partition_count(wanted: object) -> int:
    count = arguments.whole("partitions", wanted)
    if not 1 <= count <= MAX_PARTITIONS:
        raise InvalidArgument(f"partitions={count}: a topic has 1 to {MAX_PARTITIONS:,} partitions")
    return count
