"""The metadata image: topics, partitions and who leads them, as replaying the metadata log gives it.

`replay` is the only thing that changes an image.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from raystream.core.records import Record, Removed, kind
from raystream.errors import TopicNotFound

OFFSETS_TOPIC: Final = "__consumer_offsets"


@kind
@dataclass(frozen=True, slots=True)
class ClusterRecord(Record):
    """Who the cluster is. Written once, when its disk is formatted."""

    KIND: ClassVar[str] = "cluster"
    IDENTITY: ClassVar[tuple[str, ...]] = ()
    cluster_id: str


@kind
@dataclass(frozen=True, slots=True)
class TopicRecord(Record):
    """A topic as it was defined. `schemas` are serialized Arrow schemas in base64; a raw topic's is not `typed`."""

    KIND: ClassVar[str] = "topic"
    IDENTITY: ClassVar[tuple[str, ...]] = ("topic_id",)
    topic_id: str
    name: str
    typed: bool
    schemas: tuple[str, ...]
    key: str | None
    time: str | None
    config: Mapping[str, Any]
    replication_factor: int

    @property
    def schema_bytes(self) -> tuple[bytes, ...]:
        return tuple(base64.b64decode(schema) for schema in self.schemas)


@kind
@dataclass(frozen=True, slots=True)
class PartitionRecord(Record):
    """Who holds and leads a partition. `incarnation` counts the lives of its leading replica."""

    KIND: ClassVar[str] = "partition"
    IDENTITY: ClassVar[tuple[str, ...]] = ("topic_id", "partition")
    topic_id: str
    partition: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    incarnation: int


class MetadataImage:
    """What the metadata log says. Topics by name and by id; partitions by (topic id, number)."""

    def __init__(self) -> None:
        self.cluster_id = ""
        self.topics: dict[str, TopicRecord] = {}
        self.topics_by_id: dict[str, TopicRecord] = {}
        self.partitions: dict[str, dict[int, PartitionRecord]] = {}

    def replay(self, record: Record | Removed) -> None:
        """Applies one record."""
        match record:
            case ClusterRecord():
                self.cluster_id = record.cluster_id
            case TopicRecord():
                self.topics[record.name] = self.topics_by_id[record.topic_id] = record
                self.partitions.setdefault(record.topic_id, {})
            case PartitionRecord():
                self.partitions.setdefault(record.topic_id, {})[record.partition] = record
            case Removed(TopicRecord.KIND, (topic_id,)):
                gone = self.topics_by_id.pop(topic_id, None)
                if gone is not None:
                    del self.topics[gone.name]
                    del self.partitions[topic_id]

    def topic(self, name: str) -> TopicRecord:
        """The topic of that name. Raises TopicNotFound."""
        found = self.topics.get(name)
        if found is None:
            raise TopicNotFound(f"there is no topic {name!r}: create it with cluster.create_topic({name!r})")
        return found

    def partitions_of(self, topic_id: str) -> list[PartitionRecord]:
        """The topic's partitions, in order."""
        held = self.partitions.get(topic_id, {})
        return [held[number] for number in sorted(held)]

    def partition_count(self) -> int:
        """Partitions over all topics."""
        return sum(len(held) for held in self.partitions.values())
