"""Consumer groups in the manner of KIP-848: the coordinator assigns, members reconcile heartbeat by heartbeat.

A partition that moves is first missing from its old owner's `assigned`; once the owner's `owned` no longer lists it,
or the owner is gone, its new owner gets it. Partitions that stay are never withdrawn. No partition is held by two
members at any time, member epochs only grow, and a commit counts only from the member that holds the partition, in the
epoch of its assignment or later.

Decisions give records and a reply; `replay` is what changes members, epochs and offsets. When a member was last heard
and what the present target is are soft: a restart counts every member as heard just now and computes the target anew
from what members hold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from raystream import messages as m
from raystream.core.assignors import Partition, sticky
from raystream.core.group_records import GroupRecord, Held, MemberRecord, OffsetRecord
from raystream.core.records import Record, Removed, removed
from raystream.core.topic_names import is_internal
from raystream.errors import FencedMember, GroupNotEmpty, GroupNotFound, InvalidArgument, UnknownMember

MAX_GROUP_NAME: Final = 255
MAX_COMMIT_METADATA: Final = 4096
JOIN_EPOCH: Final = 0
LEAVE_EPOCH: Final = -1


@dataclass(frozen=True, slots=True)
class Decision:
    """What to write down before `reply` may be given."""

    records: tuple[Record | Removed, ...]
    reply: Any = None


@dataclass(slots=True)
class Group:
    """One group. `target` and what follows it are soft; `topics_seen` is the mapping that `topics` was taken from."""

    epoch: int = 0
    members: dict[str, MemberRecord] = field(default_factory=dict)
    offsets: dict[Partition, OffsetRecord] = field(default_factory=dict)
    holder: dict[Partition, str] = field(default_factory=dict)

    target: dict[str, set[Partition]] | None = None
    topics: dict[str, int] = field(default_factory=dict)
    topics_seen: Mapping[str, int] | None = None
    heard_ms: dict[str, float] = field(default_factory=dict)
    revoking_ms: dict[str, float] = field(default_factory=dict)


class Groups:
    """Every group of one coordinator."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}

    # Membership -----------------------------------------------------------------------------------------------------

    def heartbeat(self, request: m.HeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        """A member joins, goes on or leaves. `topics` are all partition counts.

        Raises UnknownMember, FencedMember: the member is to join again.
        """
        check_group_name(request.group)
        group = self._groups.get(request.group) or Group()
        known = group.members.get(request.member_id)
        if request.member_epoch == LEAVE_EPOCH:
            records = self._leave(request.group, group, [known] if known is not None else [])
            return Decision(records, m.HeartbeatReply(member_epoch=LEAVE_EPOCH, assigned=(), group_epoch=group.epoch))
        member = _joined(request) if request.member_epoch == JOIN_EPOCH else self._continued(request, known)
        self._groups.setdefault(request.group, group)
        group.heard_ms[request.member_id] = now_ms
        records_out: list[Record | Removed] = []
        epoch = group.epoch
        changed = known is None or (known.topics, known.pattern) != (member.topics, member.pattern)
        members = {**group.members, request.member_id: member} if changed else group.members
        if changed or group.target is None or topics is not group.topics_seen:
            counts = _subscribed_counts(members.values(), topics)
            if changed or counts != group.topics:
                epoch += 1
                records_out.append(GroupRecord(request.group, epoch))
            if changed or group.target is None or counts != group.topics:
                group.target = _target(members, counts, group.holder)
            group.topics, group.topics_seen = counts, topics
        owned = None if request.member_epoch == JOIN_EPOCH else set(request.owned)
        after = _reconciled(member, owned, group, epoch)
        if after != known:
            records_out.append(after)
        self._note_revoking(group, after, now_ms)
        owners = () if after.assigned else _owners(group)
        reply = m.HeartbeatReply(member_epoch=after.epoch, assigned=after.assigned, group_epoch=epoch, owners=owners)
        return Decision(tuple(records_out), reply)

    def _continued(self, request: m.HeartbeatRequest, known: MemberRecord | None) -> MemberRecord:
        if known is None:
            raise UnknownMember(f"group {request.group!r} does not know member {request.member_id}: join again")
        if request.member_epoch not in (known.epoch, known.previous_epoch):
            raise FencedMember(
                f"member {request.member_id} of group {request.group!r} is at epoch {known.epoch}, and speaks with "
                f"{request.member_epoch}: join again"
            )
        return dataclasses.replace(known, topics=_names(request), pattern=request.pattern)

    @staticmethod
    def _note_revoking(group: Group, member: MemberRecord, now_ms: float) -> None:
        if member.revoking:
            group.revoking_ms.setdefault(member.member_id, now_ms)
        else:
            group.revoking_ms.pop(member.member_id, None)

    def _leave(self, name: str, group: Group, leaving: list[MemberRecord]) -> tuple[Record | Removed, ...]:
        if not leaving:
            return ()
        group.target = None
        return (GroupRecord(name, group.epoch + 1), *(removed(member) for member in leaving))

    def expire(self, now_ms: float) -> Decision:
        """Removes members that were silent past their session timeout, or held on to a partition that they were to
        give up past their rebalance timeout."""
        records: list[Record | Removed] = []
        for name, group in self._groups.items():
            late = [member for member in group.members.values() if self._due_ms(group, member) <= now_ms]
            records += self._leave(name, group, late)
        return Decision(tuple(records))

    def next_expiry_ms(self) -> float | None:
        """When the first member is due to be removed unless it is heard before."""
        dues = [self._due_ms(group, member) for group in self._groups.values() for member in group.members.values()]
        return min(dues, default=None)

    @staticmethod
    def _due_ms(group: Group, member: MemberRecord) -> float:
        due = group.heard_ms[member.member_id] + member.session_timeout_ms
        revoking_since = group.revoking_ms.get(member.member_id)
        if revoking_since is not None:
            due = min(due, revoking_since + member.rebalance_timeout_ms)
        return due

    # Offsets --------------------------------------------------------------------------------------------------------

    def commit(self, request: m.CommitRequest) -> Decision:
        """Moves positions. Raises UnknownMember, FencedMember, GroupNotEmpty, InvalidArgument; then nothing moved."""
        check_group_name(request.group)
        group = self._groups.get(request.group) or Group()
        if request.member_id:
            self._check_commit(request, group)
        elif group.members:
            raise GroupNotEmpty(
                f"group {request.group!r} has {len(group.members)} running members: stop them before moving its offsets"
            )
        for position in request.offsets:
            if position.offset < 0:
                raise InvalidArgument(f"offset {position.offset} of {position.topic}-{position.partition} is negative")
            if len(position.metadata) > MAX_COMMIT_METADATA:
                raise InvalidArgument(f"a commit's metadata may have {MAX_COMMIT_METADATA} characters")
        records = tuple(
            OffsetRecord(request.group, p.topic, p.partition, p.offset, p.metadata) for p in request.offsets
        )
        return Decision(records, m.Done())

    @staticmethod
    def _check_commit(request: m.CommitRequest, group: Group) -> None:
        member = group.members.get(request.member_id)
        if member is None:
            raise UnknownMember(f"group {request.group!r} does not know member {request.member_id}: join again")
        if request.member_epoch > member.epoch:
            raise FencedMember(f"member {request.member_id} is at epoch {member.epoch}, not {request.member_epoch}")
        since = {(topic, partition): epoch for topic, partition, epoch in member.holds}
        for position in request.offsets:
            epoch = since.get((position.topic, position.partition))
            if epoch is None or request.member_epoch < epoch:
                raise FencedMember(
                    f"{position.topic}-{position.partition} is not member {request.member_id}'s in epoch "
                    f"{request.member_epoch}: its position stays as it is"
                )

    def fetch_offsets(self, group: str) -> tuple[m.CommittedOffset, ...]:
        """The group's positions."""
        found = self._groups.get(group)
        return () if found is None else _positions(found)

    def drop_topics(self, topics: set[str]) -> Decision:
        """Forgets positions in topics that were deleted."""
        gone = [r for group in self._groups.values() for r in group.offsets.values() if r.topic in topics]
        return Decision(tuple(removed(record) for record in gone))

    # Looks ----------------------------------------------------------------------------------------------------------

    def describe(self, name: str, now_ms: float) -> m.GroupInfo:
        """One group. Raises GroupNotFound."""
        group = self._groups.get(name)
        if group is None or not (group.members or group.offsets):
            raise GroupNotFound(f"there is no consumer group {name!r}")
        members = tuple(
            m.MemberInfo(
                member_id=member.member_id,
                client=member.client,
                epoch=member.epoch,
                owned=tuple(sorted((topic, partition) for topic, partition, _ in member.holds)),
                last_heartbeat_ms_ago=int(now_ms - group.heard_ms[member.member_id]),
            )
            for member in group.members.values()
        )
        return m.GroupInfo(
            group=name,
            state=_state(group),
            epoch=group.epoch,
            topics=tuple(sorted(group.topics)) if group.members else (),
            members=members,
            offsets=_positions(group),
        )

    def list(self, now_ms: float) -> tuple[m.GroupInfo, ...]:
        """Every group that has members or positions."""
        return tuple(
            self.describe(name, now_ms)
            for name, group in sorted(self._groups.items())
            if group.members or group.offsets
        )

    def delete(self, name: str) -> Decision:
        """Forgets a group. Raises GroupNotFound, GroupNotEmpty."""
        group = self._groups.get(name)
        if group is None or not (group.members or group.offsets):
            raise GroupNotFound(f"there is no consumer group {name!r}")
        if group.members:
            raise GroupNotEmpty(f"group {name!r} has {len(group.members)} running members: stop them first")
        gone = tuple(removed(record) for record in group.offsets.values())
        return Decision((*gone, Removed(GroupRecord.KIND, (name,))), m.Done())

    # Replay ---------------------------------------------------------------------------------------------------------

    def replay(self, record: Record | Removed, now_ms: float) -> None:
        """Applies one record; the only thing that changes members, epochs and offsets."""
        match record:
            case GroupRecord():
                self._group(record.group).epoch = record.epoch
            case MemberRecord():
                group = self._group(record.group)
                _release(group, group.members.get(record.member_id))
                group.members[record.member_id] = record
                group.holder.update({(topic, number): record.member_id for topic, number, _ in record.holds})
                group.heard_ms.setdefault(record.member_id, now_ms)
                self._note_revoking(group, record, now_ms)
            case OffsetRecord():
                self._group(record.group).offsets[record.topic, record.partition] = record
            case Removed(MemberRecord.KIND, (name, member_id)):
                group = self._group(name)
                _release(group, group.members.pop(member_id, None))
                group.heard_ms.pop(member_id, None)
                group.revoking_ms.pop(member_id, None)
            case Removed(OffsetRecord.KIND, (name, topic, partition)):
                self._group(name).offsets.pop((topic, partition), None)
            case Removed(GroupRecord.KIND, (name,)):
                self._groups.pop(name, None)

    def _group(self, name: str) -> Group:
        return self._groups.setdefault(name, Group())


def check_group_name(name: str) -> None:
    """Raises InvalidArgument unless a group may be called that."""
    if not 1 <= len(name) <= MAX_GROUP_NAME or not name.isprintable():
        raise InvalidArgument(f"group {name!r}: a group's name has 1 to {MAX_GROUP_NAME} printable characters")


def _joined(request: m.HeartbeatRequest) -> MemberRecord:
    if not request.member_id:
        raise InvalidArgument("a member needs an id of its own")
    if request.pattern is not None:
        try:
            re.compile(request.pattern)
        except re.error as error:
            raise InvalidArgument(f"the topic pattern {request.pattern!r} is no regular expression: {error}") from None
    elif not request.topics:
        raise InvalidArgument("a member subscribes to at least one topic, or to a pattern")
    return MemberRecord(
        group=request.group,
        member_id=request.member_id,
        client=request.client,
        topics=_names(request),
        pattern=request.pattern,
        session_timeout_ms=request.session_timeout_ms,
        rebalance_timeout_ms=request.rebalance_timeout_ms,
        epoch=0,
        previous_epoch=0,
    )


def _names(request: m.HeartbeatRequest) -> tuple[str, ...]:
    return tuple(sorted(set(request.topics)))


def _subscription(member: MemberRecord, topics: Iterable[str]) -> list[str]:
    if member.pattern is None:
        return list(member.topics)
    pattern = re.compile(member.pattern)
    return [topic for topic in topics if not is_internal(topic) and pattern.fullmatch(topic)]


def _subscribed_counts(members: Iterable[MemberRecord], topics: Mapping[str, int]) -> dict[str, int]:
    wanted: set[str] = set()
    for member in members:
        wanted.update(_subscription(member, topics))
    return {topic: topics[topic] for topic in wanted if topic in topics}


def _target(
    members: Mapping[str, MemberRecord], counts: Mapping[str, int], holder: Mapping[Partition, str]
) -> dict[str, set[Partition]]:
    subscriptions = {member_id: _subscription(member, counts) for member_id, member in members.items()}
    target: dict[str, set[Partition]] = {member_id: set() for member_id in members}
    for partition, member_id in sticky(subscriptions, counts, holder).items():
        target[member_id].add(partition)
    return target


def _reconciled(member: MemberRecord, owned: set[Partition] | None, group: Group, epoch: int) -> MemberRecord:
    """The member one step nearer to its target. `owned` None: it has just (re)joined and holds nothing."""
    assert group.target is not None
    target = group.target.get(member.member_id, set())
    keep: list[Held] = []
    revoking: list[Held] = []
    for held in member.holds if owned is not None else ():
        partition = held[:2]
        if partition in target and held not in member.revoking:
            keep.append(held)
        elif owned is not None and partition in owned:
            revoking.append(held)
    mine = {held[:2] for held in (*keep, *revoking)}
    free = [
        partition for partition in target - mine if group.holder.get(partition, member.member_id) == member.member_id
    ]
    assigned = tuple(sorted([*keep, *((topic, number, epoch) for topic, number in free)]))
    new_epoch = member.epoch if revoking and member.epoch else epoch
    changed = new_epoch != member.epoch
    return dataclasses.replace(
        member,
        assigned=assigned,
        revoking=tuple(sorted(revoking)),
        epoch=new_epoch,
        previous_epoch=member.epoch if changed else member.previous_epoch,
    )


def _release(group: Group, member: MemberRecord | None) -> None:
    if member is not None:
        for topic, number, _ in member.holds:
            if group.holder.get((topic, number)) == member.member_id:
                del group.holder[topic, number]


def _owners(group: Group) -> tuple[tuple[str, str, int], ...]:
    return tuple(
        (group.members[member_id].client, topic, number)
        for (topic, number), member_id in sorted(group.holder.items())
        if member_id in group.members
    )


def _positions(group: Group) -> tuple[m.CommittedOffset, ...]:
    return tuple(
        m.CommittedOffset(record.topic, record.partition, record.offset, record.metadata)
        for _, record in sorted(group.offsets.items())
    )


def _state(group: Group) -> str:
    if not group.members:
        return "empty"
    if group.target is None or any(member.revoking for member in group.members.values()):
        return "reconciling"
    settled = all(
        {held[:2] for held in member.assigned} == group.target.get(member_id, set())
        for member_id, member in group.members.items()
    )
    return "stable" if settled else "reconciling"
