"""Positions of a group: who may move them, and what becomes of them when topics go."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Final

from raystream import messages as m
from raystream.core import arguments
from raystream.core.assignors import Partition
from raystream.core.group_records import OffsetRecord
from raystream.core.group_state import Group
from raystream.core.membership import check_not_succeeded
from raystream.core.records import Decision, Record, Removed, removed
from raystream.core.topic_names import MAX_NAME_CHARACTERS
from raystream.errors import FencedMember, GroupNotEmpty, InvalidArgument, UnknownMember

MAX_COMMIT_METADATA: Final = 4096
MAX_OFFSET: Final = 2**63 - 1
MAX_GONE_TOPICS: Final = 10_000


class KnownTopics:
    """Soft: the ids of the topics that there are (None: nobody said yet), and names that were there and are gone."""

    def __init__(self) -> None:
        self.ids: Mapping[str, str] | None = None
        self._gone: set[str] = set()

    def know(self, topic_ids: Mapping[str, str]) -> None:
        if len(self._gone) > MAX_GONE_TOPICS:
            self._gone.clear()
        self._gone = (self._gone | set(self.ids or ())) - set(topic_ids)
        self.ids = topic_ids

    def deleted(self, topic: str, group: Group) -> bool:
        """Whether a member of the group holds a topic that is no more. One that is not listed yet but that the group's
        plan has was created a moment ago."""
        if self.ids is None or topic in self.ids:
            return False
        return topic in self._gone or group.plan is None or topic not in group.plan.counts


def commit(group: Group, request: m.CommitRequest, topics: KnownTopics) -> Decision:
    """All positions of the request move, or none. See `Groups.commit`.

    A member's commit that a later one overtook on its way changes nothing where they meet: positions do not go back
    because calls keep no order. What stands there already is not written again, nor what belongs to a deleted topic: it
    must not become a position in a later topic of that name.
    """
    if request.member_id:
        _check_member(group, request)
    elif group.members:
        raise GroupNotEmpty(
            f"group {group.name!r} has {len(group.members)} running members: stop them before moving its offsets"
        )
    wanted = [_checked(group.name, position, topics.ids or {}) for position in request.offsets]
    presence = group.presence.get(request.member_id)
    records: list[Record] = []
    for record in wanted:
        partition = (record.topic, record.partition)
        if presence is not None and (
            not presence.note_commit(partition, request.sequence) or topics.deleted(record.topic, group)
        ):
            continue
        if group.offsets.get(partition) != record:
            records.append(record)
    if records and not group.members and group.empty_since_ms:  # somebody cares for the group
        records.append(dataclasses.replace(group.record(), empty_since_ms=0))
    return Decision(tuple(records), m.Done())


def _check_member(group: Group, request: m.CommitRequest) -> None:
    member = group.members.get(request.member_id)
    if member is None:
        check_not_succeeded(group, request.member_id)
        raise UnknownMember(f"group {group.name!r} does not know member {request.member_id}: join again")
    if request.member_epoch > member.epoch:
        raise FencedMember(f"member {request.member_id} is at epoch {member.epoch}, not {request.member_epoch}")
    since: dict[Partition, int] = {(topic, number): epoch for topic, number, epoch in member.holds}
    for position in request.offsets:
        epoch = since.get((position.topic, position.partition))
        if epoch is None or request.member_epoch < epoch:
            raise FencedMember(
                f"{position.topic}-{position.partition} is not member {request.member_id}'s in epoch "
                f"{request.member_epoch}: its position stays as it is"
            )


def _checked(group: str, position: m.CommittedOffset, topic_ids: Mapping[str, str]) -> OffsetRecord:
    topic = arguments.text("topic name", position.topic, at_least=1, at_most=MAX_NAME_CHARACTERS)
    partition = arguments.whole("partition", position.partition)
    offset = arguments.whole("offset", position.offset)
    if not 0 <= offset <= MAX_OFFSET or partition < 0:
        raise InvalidArgument(f"offset {offset} of {topic}-{partition}: neither may be negative, nor over 2**63 - 1")
    metadata = arguments.text("a commit's metadata", position.metadata, at_least=0, at_most=MAX_COMMIT_METADATA)
    return OffsetRecord(group, topic, partition, offset, metadata, topic_ids.get(topic, ""))


def positions(group: Group, partitions: Iterable[Partition] | None = None) -> tuple[m.CommittedOffset, ...]:
    """The group's positions, sorted: all of them, or those in some partitions."""
    wanted = group.offsets if partitions is None else group.offsets.keys() & set(partitions)
    records = (group.offsets[partition] for partition in sorted(wanted))
    return tuple(
        m.CommittedOffset(record.topic, record.partition, record.offset, record.metadata) for record in records
    )


def outdated(groups: Iterable[Group], topic_ids: Mapping[str, str]) -> tuple[Removed, ...]:
    """Tombstones of positions in topics that are gone, also where another of the same name took their place."""
    return tuple(
        removed(record)
        for group in groups
        for record in group.offsets.values()
        if record.topic not in topic_ids or record.topic_id not in ("", topic_ids[record.topic])
    )
