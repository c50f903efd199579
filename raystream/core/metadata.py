"""The metadata image: brokers, topics, partitions and who leads them, as replaying the metadata log gives it.

`replay` is the only thing that changes an image.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from raystream.config import nearest
from raystream.core.records import Record, Removed, kind
from raystream.errors import PartitionNotFound, TopicNotFound

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
class BrokerRecord(Record):
    """A broker that belongs to the cluster. `incarnation` counts its lives; one of an earlier life is not heard.

    A `fenced` one is not known to live: it leads nothing and is in no ISR until it is heard of again.
    """

    KIND: ClassVar[str] = "broker"
    IDENTITY: ClassVar[tuple[str, ...]] = ("broker_id",)
    broker_id: int
    incarnation: int
    fenced: bool = False
    draining: bool = False
    """It gets no new replicas, and those it has are moved away."""
    actor: str = ""
    coordinator: str = ""
    """The name of the coordinator actor beside it, "" while there is none."""
    directory_id: str = ""
    node_id: str = ""
    node: str = ""
    rack: str = ""
    data_dir: str = ""
    pid: int = 0


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
    """Who holds and leads a partition. `incarnation` counts the lives of its leading replica.

    `leader` is -1 where nobody may lead. `elr`, the eligible leader replicas, left the ISR while it was too small for
    the high watermark to move, so they hold all that is committed (KIP-966). `partition_epoch` counts the changes of
    this record. `adding` and `removing` are the replicas that a reassignment under way brings in and takes out.
    """

    KIND: ClassVar[str] = "partition"
    IDENTITY: ClassVar[tuple[str, ...]] = ("topic_id", "partition")
    topic_id: str
    partition: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    leader: int
    leader_epoch: int
    incarnation: int
    elr: tuple[int, ...] = ()
    partition_epoch: int = 0
    adding: tuple[int, ...] = ()
    removing: tuple[int, ...] = ()


@kind
@dataclass(frozen=True, slots=True)
class ReplicaRecord(Record):
    """Which actor serves a broker's replica of a partition; "" and why, where none can.

    `opened`: one has served it since the broker has held it, so its disk must have the replica's files. Where that is
    known, the record outlives the actor.
    """

    KIND: ClassVar[str] = "replica"
    IDENTITY: ClassVar[tuple[str, ...]] = ("topic_id", "partition", "broker_id")
    topic_id: str
    partition: int
    broker_id: int
    actor: str
    error: str = ""
    opened: bool = False


@kind
@dataclass(frozen=True, slots=True)
class QuotaRecord(Record):
    """What clients of one id may move on each node, in bytes per second. "" stands for ids without one of their own."""

    KIND: ClassVar[str] = "quota"
    IDENTITY: ClassVar[tuple[str, ...]] = ("client_id",)
    client_id: str
    produce_bytes_per_s: int | None
    fetch_bytes_per_s: int | None


class MetadataImage:
    """What the metadata log says. Topics by name and by id; partitions by (topic id, number).

    `version` counts the records replayed, so it grows with every change and is the same wherever the log is the same.
    """

    def __init__(self) -> None:
        self.version = 0
        self.cluster_id = ""
        self.brokers: dict[int, BrokerRecord] = {}
        self.topics: dict[str, TopicRecord] = {}
        self.topics_by_id: dict[str, TopicRecord] = {}
        self.partitions: dict[str, dict[int, PartitionRecord]] = {}
        self.replicas: dict[str, dict[tuple[int, int], ReplicaRecord]] = {}
        self.quotas: dict[str, QuotaRecord] = {}

    def replay(self, record: Record | Removed) -> None:
        """Applies one record."""
        self.version += 1
        match record:
            case ClusterRecord():
                self.cluster_id = record.cluster_id
            case BrokerRecord():
                self.brokers[record.broker_id] = record
            case TopicRecord():
                self.topics[record.name] = self.topics_by_id[record.topic_id] = record
                self.partitions.setdefault(record.topic_id, {})
            case PartitionRecord():
                self.partitions.setdefault(record.topic_id, {})[record.partition] = record
            case ReplicaRecord():
                served = self.replicas.setdefault(record.topic_id, {})
                served[record.partition, record.broker_id] = record
            case QuotaRecord():
                self.quotas[record.client_id] = record
            case Removed():
                self._remove(record)

    def _remove(self, record: Removed) -> None:
        match record:
            case Removed(QuotaRecord.KIND, (client_id,)):
                self.quotas.pop(client_id, None)
            case Removed(ReplicaRecord.KIND, (topic_id, partition, broker_id)):
                self.replicas.get(topic_id, {}).pop((partition, broker_id), None)
            case Removed(BrokerRecord.KIND, (broker_id,)):
                self.brokers.pop(broker_id, None)
            case Removed(PartitionRecord.KIND, (topic_id, partition)):
                self.partitions.get(topic_id, {}).pop(partition, None)
            case Removed(TopicRecord.KIND, (topic_id,)):
                self.partitions.pop(topic_id, None)
                self.replicas.pop(topic_id, None)
                gone = self.topics_by_id.pop(topic_id, None)
                if gone is not None:
                    del self.topics[gone.name]

    def snapshot(self) -> Iterator[Record]:
        """Records whose replay on an empty image gives this one, but for `version`."""
        if self.cluster_id:
            yield ClusterRecord(self.cluster_id)
        yield from self.brokers.values()
        yield from self.quotas.values()
        for topic in self.topics_by_id.values():
            yield topic
            yield from self.partitions_of(topic.topic_id)
            yield from self.replicas.get(topic.topic_id, {}).values()

    def replica(self, topic_id: str, partition: int, broker_id: int) -> ReplicaRecord | None:
        """Which actor serves a broker's replica, where that is known."""
        return self.replicas.get(topic_id, {}).get((partition, broker_id))

    def topic(self, name: str) -> TopicRecord:
        """The topic of that name. Raises TopicNotFound."""
        found = self.topics.get(name)
        if found is None:
            hint = nearest(name, (topic for topic in self.topics if not topic.startswith("__")))
            raise TopicNotFound(f"there is no topic {name!r}" + (f"; {hint}" if hint else ""))
        return found

    def partition(self, topic_id: str, number: int) -> PartitionRecord:
        """One partition. Raises PartitionNotFound."""
        found = self.partitions.get(topic_id, {}).get(number)
        if found is None:
            raise PartitionNotFound(f"topic id {topic_id} has no partition {number}: it may have been deleted")
        return found

    def partitions_of(self, topic_id: str) -> list[PartitionRecord]:
        """The topic's partitions, in order."""
        held = self.partitions.get(topic_id, {})
        return [held[number] for number in sorted(held)]

    def partition_count(self) -> int:
        """Partitions over all topics."""
        return sum(len(held) for held in self.partitions.values())
