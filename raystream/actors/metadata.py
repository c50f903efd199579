"""A broker's copy of the metadata: what the committed entries of the metadata log give, and how others see it.

Entries are applied on the Raft node's thread, and looked at on any.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from raystream import messages as m
from raystream.core import topic_names
from raystream.core.controller import was_removed
from raystream.core.elections import Elections
from raystream.core.metadata import OFFSETS_TOPIC, MetadataImage, PartitionRecord, TopicRecord
from raystream.core.records import Record, Removed, from_pair, to_pair
from raystream.errors import NewerFormat

Key = tuple[str, int]
SNAPSHOT_FORMAT: Final = 1


def encode(records: Sequence[Record | Removed]) -> bytes:
    """Records as the data of one entry: a JSON list of [key, value or null], each JSON again."""
    pairs = [to_pair(record) for record in records]
    return json.dumps([[(key or b"").decode(), value and value.decode()] for key, value in pairs]).encode()


def decode(data: bytes) -> Iterator[Record | Removed]:
    """The records of an entry. Raises NewerFormat and CorruptBatch."""
    for key, value in json.loads(data):
        yield from_pair(key.encode(), value if value is None else value.encode())


class Metadata:
    """The image under a lock, and a version that others may wait for."""

    def __init__(self) -> None:
        self._image = MetadataImage()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """`listener` is called after each change, on the thread that made it."""
        self._listeners.append(listener)

    # What Raft hands over -------------------------------------------------------------------------------------------

    def apply(self, entries: Sequence[bytes]) -> None:
        """Committed entries, in order."""
        with self._lock:
            for data in entries:
                for record in decode(data):
                    self._image.replay(record)
            self._changed.notify_all()
        self._tell()

    def restore(self, data: bytes) -> None:
        """A snapshot replaces everything."""
        content = json.loads(data)
        if content["format"] > SNAPSHOT_FORMAT:
            raise NewerFormat(f"the metadata's snapshot has format {content['format']}: upgrade this raystream")
        image = MetadataImage()
        for key, value in content["records"]:
            image.replay(from_pair(key.encode(), value if value is None else value.encode()))
        image.version = content["version"]
        with self._lock:
            self._image = image
            self._changed.notify_all()
        self._tell()

    def take_snapshot(self) -> bytes:
        """What `restore` takes."""
        with self._lock:
            pairs = [to_pair(record) for record in self._image.snapshot()]
            version = self._image.version
        records = [[(key or b"").decode(), value and value.decode()] for key, value in pairs]
        return json.dumps({"format": SNAPSHOT_FORMAT, "version": version, "records": records}).encode()

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    # Looks ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def image(self) -> Iterator[MetadataImage]:
        """The image, which nobody changes meanwhile. Not to be kept."""
        with self._lock:
            yield self._image

    @property
    def version(self) -> int:
        """Grows with every change, and is the same on every broker."""
        return self._image.version

    @property
    def cluster_id(self) -> str:
        return self._image.cluster_id

    def wait_for_change(self, known_version: int, timeout_s: float) -> None:
        """Until the version is another."""
        with self._changed:
            self._changed.wait_for(lambda: self._image.version != known_version, timeout=timeout_s)

    def wait_for_version(self, version: int, timeout_s: float) -> bool:
        """Whether the version has come within that time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._image.version >= version, timeout=timeout_s)

    def wait_until_served(self, topic: str, timeout_s: float) -> m.TopicMetadata | None:
        """The topic, once every partition has a leader that is served, or says why not, or at the timeout."""

        def served() -> bool:
            found = self.topics([topic], internal=True)
            return not found or all(partition.actor or partition.error for partition in found[0].partitions)

        with self._changed:
            self._changed.wait_for(served, timeout=timeout_s)
            found = self.topics([topic], internal=True)
            return found[0] if found else None

    def replicas_on(self, broker_id: int) -> list[Key]:
        """The partitions of which a broker holds a replica; internal topics first."""
        with self._lock:
            held = [
                (topic_id, number)
                for topic_id, records in self._image.partitions.items()
                for number, record in records.items()
                if broker_id in record.replicas
            ]
            return sorted(held, key=lambda key: (not self.is_internal(key), key))

    def is_internal(self, key: Key) -> bool:
        """Whether the partition is one of raystream's own topics."""
        with self._lock:
            topic = self._image.topics_by_id.get(key[0])
            return topic is not None and topic_names.is_internal(topic.name)

    def quotas(self) -> tuple[m.ClientQuota, ...]:
        """What clients may move, by client id."""
        with self._lock:
            return tuple(
                m.ClientQuota(
                    client_id=quota.client_id,
                    produce_bytes_per_s=quota.produce_bytes_per_s,
                    fetch_bytes_per_s=quota.fetch_bytes_per_s,
                )
                for _, quota in sorted(self._image.quotas.items())
            )

    def spec(self, key: Key, broker_id: int, directory: str, lease_path: str) -> m.ReplicaSpec | None:
        """What a partition actor needs to open a broker's replica, or to go on with it; None where it has none."""
        with self._lock:
            topic = self._image.topics_by_id.get(key[0])
            record = self._image.partitions.get(key[0], {}).get(key[1])
            broker = self._image.brokers.get(broker_id)
            if topic is None or record is None or broker is None or broker_id not in record.replicas:
                return None
            actors = tuple(
                (each, served.actor)
                for each in record.replicas
                if each != broker_id and (served := self._image.replica(*key, each)) is not None and served.actor
            )
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
                key_column=topic.key,
                broker_id=broker_id,
                broker_incarnation=broker.incarnation,
                broker=broker.actor,
                leader=record.leader,
                replicas=record.replicas,
                isr=record.isr,
                elr=record.elr,
                partition_epoch=record.partition_epoch,
                actors=actors,
                min_insync_replicas=Elections(self._image).min_insync_replicas(record),
                lease_path=lease_path,
                quotas=() if topic_names.is_internal(topic.name) else self.quotas(),
            )

    def is_superfluous(self, key: Key, broker_id: int) -> bool:
        """Whether others have all that is committed in the partition, and nobody counts on this broker's replica."""
        with self._lock:
            record = self._image.partitions.get(key[0], {}).get(key[1])
            return record is not None and bool(record.isr or record.elr) and broker_id not in (*record.isr, *record.elr)

    def was_opened(self, key: Key, broker_id: int) -> bool:
        """Whether the broker's replica has been served before, so that its disk must have it."""
        with self._lock:
            found = self._image.replica(*key, broker_id)
            return found is not None and found.opened

    def served_by(self, key: Key, broker_id: int) -> m.ServedReplica | None:
        """What is known of who serves a broker's replica."""
        with self._lock:
            found = self._image.replica(*key, broker_id)
            return None if found is None else m.ServedReplica(*key, found.actor, found.error)

    # What clients see -----------------------------------------------------------------------------------------------

    def topics(self, names: Sequence[str] | None, *, internal: bool) -> tuple[m.TopicMetadata, ...]:
        """Topics as clients see them: those named that exist, or all."""
        with self._lock:
            if names is None:
                names = sorted(n for n in self._image.topics if internal or not topic_names.is_internal(n))
            found = [self._image.topics[name] for name in names if name in self._image.topics]
            return tuple(self._topic(topic) for topic in found)

    def _topic(self, topic: TopicRecord) -> m.TopicMetadata:
        return m.TopicMetadata(
            name=topic.name,
            topic_id=topic.topic_id,
            typed=topic.typed,
            schemas=topic.schema_bytes,
            key=topic.key,
            time=topic.time,
            config=topic.config,
            replication_factor=topic.replication_factor,
            partitions=tuple(self._partition(record) for record in self._image.partitions_of(topic.topic_id)),
        )

    def _partition(self, record: PartitionRecord) -> m.PartitionMetadata:
        served = self._image.replica(record.topic_id, record.partition, record.leader)
        leader = self._image.brokers.get(record.leader)
        return m.PartitionMetadata(
            partition=record.partition,
            leader=record.leader,
            leader_epoch=record.leader_epoch,
            replicas=record.replicas,
            isr=record.isr,
            actor="" if served is None else served.actor,
            node_id="" if leader is None else leader.node_id,
            error="" if served is None else served.error,
            followers=tuple(self._followers(record)),
        )

    def _followers(self, record: PartitionRecord) -> Iterator[tuple[str, str]]:
        for broker_id in record.isr:
            served = self._image.replica(record.topic_id, record.partition, broker_id)
            broker = self._image.brokers.get(broker_id)
            if broker_id != record.leader and served is not None and served.actor and broker is not None:
                yield served.actor, broker.node_id

    def brokers(self, controller: int, free_bytes: Mapping[int, int]) -> tuple[m.BrokerMetadata, ...]:
        """The cluster's brokers. The coordinator is the one beside the leader of the groups' log."""
        with self._lock:
            topic = self._image.topics.get(OFFSETS_TOPIC)
            home = self._image.partitions[topic.topic_id][0].leader if topic is not None else -1
            return tuple(
                m.BrokerMetadata(
                    broker_id=record.broker_id,
                    actor=record.actor,
                    coordinator=record.coordinator if record.broker_id == home else "",
                    node_id=record.node_id,
                    node=record.node,
                    data_dir=record.data_dir,
                    free_bytes=-1 if record.fenced else free_bytes.get(record.broker_id, -1),
                    pid=record.pid,
                    controller=record.broker_id == controller,
                    replicas=len(self.replicas_on(record.broker_id)),
                    fenced=record.fenced,
                    draining=record.draining,
                    rack=record.rack,
                )
                for record in sorted(self._image.brokers.values(), key=lambda record: record.broker_id)
                if not was_removed(record)
            )
