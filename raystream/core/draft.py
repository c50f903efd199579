"""A decision of several steps, each of which builds on those before it, while the image itself stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Final

from raystream.core.elections import Records
from raystream.core.metadata import MetadataImage, PartitionRecord, ReplicaRecord
from raystream.core.records import Record, Removed, removed

_IN_TOPICS: Final = (PartitionRecord.KIND, ReplicaRecord.KIND)


class Draft:
    """`image` is what the given one would be once `records` are replayed. It shares what they do not change."""

    def __init__(self, image: MetadataImage) -> None:
        self.image = copy.copy(image)
        self.image.brokers = dict(image.brokers)
        self.image.topics = dict(image.topics)
        self.image.topics_by_id = dict(image.topics_by_id)
        self.image.partitions = dict(image.partitions)
        self.image.replicas = dict(image.replicas)
        self.records: Records = []
        self._own: set[str] = set()

    def add(self, records: Iterable[Record | Removed]) -> None:
        """One more step. Whoever is no replica of a partition any more is not said to serve one."""
        for record in forgetting(self.image, records):
            self._unshare(record)
            self.image.replay(record)
            self.records.append(record)

    def _unshare(self, record: Record | Removed) -> None:
        """Before what is held of a topic's partitions changes, it becomes the draft's own."""
        if isinstance(record, Removed):
            topic_id = record.identity[0] if record.kind in _IN_TOPICS else ""
        else:
            topic_id = getattr(record, "topic_id", "")
        if not topic_id or topic_id in self._own:
            return
        self._own.add(topic_id)
        self.image.partitions[topic_id] = dict(self.image.partitions.get(topic_id, {}))
        self.image.replicas[topic_id] = dict(self.image.replicas.get(topic_id, {}))


def forgetting(image: MetadataImage, records: Iterable[Record | Removed]) -> Records:
    """The records, and after each that takes a replica from a partition the tombstone of what is said of its actor."""
    complete: Records = []
    for record in records:
        complete.append(record)
        if isinstance(record, PartitionRecord):
            before = image.partitions.get(record.topic_id, {}).get(record.partition)
            for broker in () if before is None else before.replicas:
                served = image.replica(record.topic_id, record.partition, broker)
                if broker not in record.replicas and served is not None:
                    complete.append(removed(served))
    return complete
