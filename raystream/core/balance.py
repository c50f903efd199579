"""What the controller does by itself: replicas leave brokers that are drained, leads go back to whoever is preferred.

A partition's record says that it is being moved (`adding`, `removing`), so nothing else needs to be remembered: a
controller that was just elected goes on where the last one stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from typing import Final

from raystream.core import topic_names
from raystream.core.draft import Draft
from raystream.core.elections import NO_LEADER, Elections, Records
from raystream.core.metadata import OFFSETS_TOPIC, MetadataImage, PartitionRecord, TopicRecord
from raystream.core.placement import choose, loads, shrunk, target
from raystream.errors import InvalidArgument

INTERNAL_REPLICATION_FACTOR: Final = 3
MAX_CHANGES: Final = 50
"""Partitions that one call of `upkeep` changes."""
MAX_MOVES: Final = 50
"""Partitions that are moved at a time: their new replicas read all that the others hold."""


def able(image: MetadataImage) -> list[int]:
    """The brokers that may take replicas."""
    return sorted(b.broker_id for b in image.brokers.values() if not b.fenced and not b.draining)


def all_partitions(image: MetadataImage) -> Iterator[PartitionRecord]:
    for held in image.partitions.values():
        yield from held.values()


def led_by(record: PartitionRecord, broker_id: int) -> PartitionRecord:
    """The partition led by another member of its ISR."""
    assert broker_id in record.isr, record
    return dataclasses.replace(
        record,
        leader=broker_id,
        leader_epoch=record.leader_epoch + 1,
        partition_epoch=record.partition_epoch + 1,
    )


def successor(image: MetadataImage, record: PartitionRecord) -> int:
    """Who else in the ISR can lead, best one that serves its replica and keeps it; -1: nobody."""
    live = [
        broker
        for broker in record.replicas
        if broker != record.leader
        and broker in record.isr
        and (known := image.brokers.get(broker)) is not None
        and not known.fenced
    ]
    return min(
        live,
        key=lambda broker: (
            not serves(image, record, broker),
            _lacks_coordinator(image, record, broker),
            broker in record.removing or _drains(image, broker),
        ),
        default=NO_LEADER,
    )


def serves(image: MetadataImage, record: PartitionRecord, broker_id: int) -> bool:
    """Whether the broker has said that its replica is open."""
    served = image.replica(record.topic_id, record.partition, broker_id)
    return served is not None and bool(served.actor) and not served.error


def fit(image: MetadataImage, record: PartitionRecord, broker_id: int) -> bool:
    """Whether the replica is open and, where it is the groups' log, has a coordinator beside it."""
    return serves(image, record, broker_id) and not _lacks_coordinator(image, record, broker_id)


def _lacks_coordinator(image: MetadataImage, record: PartitionRecord, broker_id: int) -> bool:
    groups_log = image.topics.get(OFFSETS_TOPIC)
    if groups_log is None or groups_log.topic_id != record.topic_id:
        return False
    known = image.brokers.get(broker_id)
    return known is None or not known.coordinator


def _drains(image: MetadataImage, broker_id: int) -> bool:
    known = image.brokers.get(broker_id)
    return known is not None and known.draining


class Balance:
    """Moves replicas on a draft of the image."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._image = draft.image
        self._able = able(draft.image)
        self._racks = {broker.broker_id: broker.rack for broker in self._image.brokers.values()}
        self._held, self._leads = loads(all_partitions(self._image))

    def bring_to(self, record: PartitionRecord, factor: int) -> None:
        """So many replicas, once the new ones have caught up. Raises InvalidArgument where there are too few brokers.

        New ones go to brokers that hold least, in racks that hold none. Of those there are, the ones go first that are
        not in sync; the leader goes last.
        """
        now = target(record)
        if len(now) < factor:
            added = choose(factor - len(now), self._able, self._held, self._leads, self._racks, beside=now)
            if len(now) + len(added) < factor:
                raise InvalidArgument(
                    f"replication_factor={factor}: partition {record.partition} has replicas on brokers "
                    f"{', '.join(map(str, now))}, and only {len(added)} more can take one"
                )
            self._move(record, (*now, *added))
        elif len(now) > factor:
            rank = {broker: self._dispensable(record, broker) for broker in now}
            self._move(record, shrunk(now, factor, rank, self._held, self._racks))

    def drain(self, record: PartitionRecord, *, internal: bool) -> bool:
        """Puts other brokers into the places of those that are drained; whether there was one.

        Where a drained one was preferred, the one is that leads least. Where nobody else can take a replica, an
        internal topic has one less: nobody could set its factor.
        """
        now = target(record)
        leaving = [broker for broker in now if _drains(self._image, broker)]
        staying = [broker for broker in now if broker not in leaving]
        coming = choose(len(leaving), self._able, self._held, self._leads, self._racks, beside=staying)
        instead: dict[int, int | None] = dict(zip(leaving, coming, strict=False))
        if internal and staying:
            instead = {broker: instead.get(broker) for broker in leaving}
        if not instead:
            return False
        after = [kept for broker in now if (kept := instead.get(broker, broker)) is not None]
        if now[0] in leaving:  # somebody else is to lead
            after.sort(key=lambda broker: self._leads.get(broker, 0))
        self._move(record, tuple(after))
        return True

    def _move(self, record: PartitionRecord, replicas: tuple[int, ...]) -> None:
        before = target(record)
        self._leads[before[0]] -= 1
        self._leads[replicas[0]] = self._leads.get(replicas[0], 0) + 1
        for broker in before:
            self._held[broker] -= 1
        for broker in replicas:
            self._held[broker] = self._held.get(broker, 0) + 1
        self._draft.add(Elections(self._image).reassign(record.topic_id, record.partition, replicas))

    def _dispensable(self, record: PartitionRecord, broker_id: int) -> int:
        if broker_id == record.leader:
            return 0
        if broker_id in record.isr:
            return 2 if _drains(self._image, broker_id) else 1
        return 3 if broker_id in record.elr else 4


def upkeep(image: MetadataImage) -> Records:
    """One round: up to MAX_CHANGES partitions, up to MAX_MOVES moved at a time. Nothing, where all is as it should be.

    In this order: leads leave replicas that cannot be opened, and that of the groups' log a broker without coordinator;
    replicas leave brokers that are drained; internal topics come to min(3, live brokers) replicas, and then say so;
    leads go to preferred replicas that are in sync and open.
    """
    found = _Findings(image)
    draft = Draft(image)
    left = MAX_CHANGES
    for record, leader in found.unserved[:left]:
        draft.add([led_by(record, leader)])
    left -= len(draft.records)
    moves = max(min(left, MAX_MOVES - found.moving), 0)
    brokers = able(image)
    short = found.short(brokers)
    if found.drained or short:
        balance = Balance(draft)
        for record in found.drained:
            if moves and balance.drain(record, internal=found.is_internal(record)):
                moves, left = moves - 1, left - 1
        wanted = min(INTERNAL_REPLICATION_FACTOR, len(brokers))
        for record in short[:moves]:
            balance.bring_to(draft.image.partition(record.topic_id, record.partition), wanted)
            left -= 1
    for topic in found.internal:
        draft.add(_factor_reached(draft.image, topic))
    for record in found.misled[: max(left, 0)]:
        draft.add(Elections(draft.image).elect(record.topic_id, record.partition, preferred=True))
    return draft.records


def _factor_reached(image: MetadataImage, topic: TopicRecord) -> Records:
    """An internal topic's factor is what all of its partitions have: only then may writes wait for so many."""
    records = image.partitions_of(topic.topic_id)
    if not records or any(record.adding or record.removing for record in records):
        return []
    factor = min(len(record.replicas) for record in records)
    return with_topic(image, dataclasses.replace(topic, replication_factor=factor))


def with_topic(image: MetadataImage, topic: TopicRecord) -> Records:
    """The topic's new record, where it is new, and what follows for its partitions from how many must be in sync."""
    if image.topics_by_id[topic.topic_id] == topic:
        return []
    draft = Draft(image)
    draft.add([topic])
    draft.add(Elections(draft.image).min_insync_changed(topic.topic_id))
    return draft.records


class _Findings:
    """What there is to do, in one walk over the partitions."""

    def __init__(self, image: MetadataImage) -> None:
        self._image = image
        self._live = {b.broker_id for b in image.brokers.values() if not b.fenced}
        self._draining = {b.broker_id for b in image.brokers.values() if b.draining}
        self.internal = [topic for topic in image.topics.values() if topic_names.is_internal(topic.name)]
        self._internal_ids = {topic.topic_id for topic in self.internal}
        self.moving = 0
        self.unserved: list[tuple[PartitionRecord, int]] = []
        self.drained: list[PartitionRecord] = []
        self.misled: list[PartitionRecord] = []
        for record in all_partitions(image):
            self._look_at(record)

    def _look_at(self, record: PartitionRecord) -> None:
        if record.adding and record.leader != NO_LEADER and self._live.issuperset(record.adding):
            self.moving += 1
        if self._draining and not self._draining.isdisjoint(target(record)):
            self.drained.append(record)
        if record.leader == NO_LEADER:
            return
        other = self._better(record)
        if other != NO_LEADER:
            self.unserved.append((record, other))
            return
        first = record.replicas[0]
        stays = first in self._live and first not in self._draining and first in record.isr
        if first == record.leader or not stays or record.adding or record.removing:
            return
        if fit(self._image, record, first):
            self.misled.append(record)

    def _better(self, record: PartitionRecord) -> int:
        """Who is to lead in place of a replica that cannot be opened, or has lost its coordinator; -1: nobody."""
        served = self._image.replica(record.topic_id, record.partition, record.leader)
        shut = served is not None and bool(served.error)
        if not shut and not _lacks_coordinator(self._image, record, record.leader):
            return NO_LEADER
        other = successor(self._image, record)
        better = other != NO_LEADER and (serves if shut else fit)(self._image, record, other)
        return other if better else NO_LEADER

    def is_internal(self, record: PartitionRecord) -> bool:
        return record.topic_id in self._internal_ids

    def short(self, brokers: Collection[int]) -> list[PartitionRecord]:
        """Internal partitions that have fewer replicas than there could be, and are not moved."""
        return [
            record
            for topic in self.internal
            for record in self._image.partitions_of(topic.topic_id)
            if self._can_take_more(record, brokers)
        ]

    def _can_take_more(self, record: PartitionRecord, brokers: Collection[int]) -> bool:
        if record.adding or record.removing or not self._draining.isdisjoint(record.replicas):
            return False
        wanted = min(INTERNAL_REPLICATION_FACTOR, len(brokers))
        more = sum(broker not in record.replicas for broker in brokers)
        return len(record.replicas) < wanted <= len(record.replicas) + more


def brokers_needed(image: MetadataImage, broker_id: int) -> Iterable[tuple[str, int]]:
    """Topics with replicas on the broker, which users have set the factor of: (name, most replicas) each."""
    for topic in image.topics.values():
        if topic_names.is_internal(topic.name):
            continue
        held = [target(record) for record in image.partitions_of(topic.topic_id)]
        most = max((len(replicas) for replicas in held if broker_id in replicas), default=0)
        if most:
            yield topic.name, most
