"""Consumer groups in the manner of KIP-848: the coordinator assigns, members reconcile heartbeat by heartbeat.

No partition is held by two members at any time nor given to two in one group epoch, member epochs only grow, and a
commit counts only from the member that holds the partition, in the epoch of its assignment or later. `membership` has
the rules of joining and moving, `offsets` those of committing.

Decisions give records and a reply; `replay` is what changes members, epochs and offsets. When a member was last heard,
which of its requests came last and what the present plan is are soft and noted while deciding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby

from raystream import messages as m
from raystream.core import membership, offset_expiry, offsets
from raystream.core.deadlines import Deadlines
from raystream.core.group_records import GroupRecord, MemberRecord, OffsetRecord
from raystream.core.group_state import Group, Presence
from raystream.core.records import Decision, Record, Removed, removed
from raystream.errors import GroupNotEmpty, GroupNotFound

__all__ = ["Decision", "Groups", "check_group_name"]


class Groups:
    """Every group of one coordinator."""

    def __init__(self) -> None:
        self._groups: dict[str, Group] = {}
        self._topics = offsets.KnownTopics()
        self._deadlines: Deadlines[tuple[str, str]] = Deadlines(self._due_ms)
        self._epoch_floor = 0
        self._deciding: Group | None = None

    def __contains__(self, name: object) -> bool:
        found = self._groups.get(name) if isinstance(name, str) else None
        return found is not None and found.exists

    # Membership -----------------------------------------------------------------------------------------------------

    def heartbeat(self, request: m.HeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        """A member joins, goes on or leaves. `topics` are all partition counts; the same mapping object means that
        they are the same, so whoever has news of them passes a new one.

        A join that is repeated gives the same answer. Raises UnknownMember, FencedMember: the member is to join again;
        InvalidArgument, Overloaded.
        """
        return membership.heartbeat(self._find(request.group), request, topics, now_ms)

    def expire(self, now_ms: float) -> Decision:
        """Removes members that were silent past their session timeout, or held on to a partition that they were to
        give up past their rebalance timeout."""
        records: list[Record | Removed] = []
        for name, keys in groupby(sorted(self._deadlines.due(now_ms)), key=lambda key: key[0]):
            group = self._groups[name]
            records += membership.departure(group, [group.members[member_id] for _, member_id in keys])
        return Decision(tuple(records))

    def next_expiry_ms(self) -> float | None:
        """When the first member is due to be removed unless it is heard before."""
        return self._deadlines.next_ms()

    def _due_ms(self, key: tuple[str, str]) -> float | None:
        group = self._groups.get(key[0])
        member = None if group is None else group.members.get(key[1])
        return None if group is None or member is None else group.presence[key[1]].due_ms(member)

    # Offsets --------------------------------------------------------------------------------------------------------

    def commit(self, request: m.CommitRequest) -> Decision:
        """Moves positions. Raises UnknownMember, FencedMember, GroupNotEmpty, InvalidArgument; then nothing moved."""
        return offsets.commit(self._find(request.group), request, self._topics)

    def fetch_offsets(
        self, group: str, partitions: Iterable[tuple[str, int]] | None = None
    ) -> tuple[m.CommittedOffset, ...]:
        """The group's positions, all or those in some partitions."""
        found = self._groups.get(group)
        return () if found is None else offsets.positions(found, partitions)

    def know_topics(self, topic_ids: Mapping[str, str]) -> Decision:
        """All topics that there are, name to id. Positions in topics that are gone are forgotten, also where they went
        while no coordinator was running, or a new topic has taken the name."""
        self._topics.know(topic_ids)
        return Decision(offsets.outdated(self._groups.values(), topic_ids))

    def expire_offsets(self, wall_ms: int) -> Decision:
        """Forgets groups that have had no members for long; see `offset_expiry`."""
        return Decision(offset_expiry.expired(self._groups.values(), wall_ms))

    # Looks ----------------------------------------------------------------------------------------------------------

    def describe(self, name: str, now_ms: float) -> m.GroupInfo:
        """One group. Raises GroupNotFound."""
        group = self._existing(name)
        members = tuple(_member(member, group.presence[name], now_ms) for name, member in sorted(group.members.items()))
        subscribed = {topic for member in group.members.values() for topic in member.topics}
        if group.members and group.plan is not None:
            subscribed.update(group.plan.counts)
        return m.GroupInfo(
            group=name,
            state=group.state(),
            epoch=group.epoch,
            topics=tuple(sorted(subscribed)),
            members=members,
            offsets=offsets.positions(group),
        )

    def list(self, now_ms: float) -> tuple[m.GroupInfo, ...]:
        """Every group that has members or positions."""
        return tuple(self.describe(name, now_ms) for name, group in sorted(self._groups.items()) if group.exists)

    def delete(self, name: str) -> Decision:
        """Forgets a group. Raises GroupNotFound, GroupNotEmpty."""
        group = self._existing(name)
        if group.members:
            raise GroupNotEmpty(f"group {name!r} has {len(group.members)} running members: stop them first")
        gone = tuple(removed(record) for record in group.offsets.values())
        return Decision((*gone, removed(group.record())), m.Done())

    # Replay ---------------------------------------------------------------------------------------------------------

    def replay(self, record: Record | Removed, now_ms: float) -> None:
        """Applies one record; the only thing that changes members, epochs and offsets."""
        match record:
            case GroupRecord():
                group = self._group(record.group)
                group.epoch, group.empty_since_ms = record.epoch, record.empty_since_ms
            case MemberRecord():
                self._group(record.group).put_member(record, now_ms)
                self._deadlines.watch((record.group, record.member_id))
            case OffsetRecord():
                self._group(record.group).offsets[record.topic, record.partition] = record
            case Removed(MemberRecord.KIND, (name, member_id)):
                self._group(name).drop_member(member_id)
            case Removed(OffsetRecord.KIND, (name, topic, partition)):
                self._group(name).offsets.pop((topic, partition), None)
            case Removed(GroupRecord.KIND, (name,)):
                gone = self._groups.pop(name, None)
                if gone is not None:  # a later group of that name goes on from there: its epochs are never old ones
                    self._epoch_floor = max(self._epoch_floor, gone.epoch)

    def snapshot(self) -> Iterator[Record | Removed]:
        """Records whose replay on an empty state gives this one.

        The state may change while they are taken: each is as the state is then, and replayed with the changes made
        meanwhile, all in the order in which they came about, they give the state as it is after the last of them.
        """
        first = list(self._groups.values())
        yield from self._present(first)
        if self._epoch_floor:  # as replay finds it out: from a group that is gone, one that no other can be
            floor = GroupRecord("", self._epoch_floor)
            yield floor
            yield removed(floor)
        known = {id(group) for group in first}
        yield from self._present([group for group in self._groups.values() if id(group) not in known])

    def _present(self, groups: Iterable[Group]) -> Iterator[Record]:
        """Everything about these groups that is still there when its turn comes."""
        for group in groups:
            if group is not self._groups.get(group.name):
                continue
            yield group.record()
            for member_id in list(group.members):
                if (member := group.members.get(member_id)) is not None:
                    yield member
            for partition in list(group.offsets):
                if (position := group.offsets.get(partition)) is not None:
                    yield position

    def _group(self, name: str) -> Group:
        """The group, made where replay needs it; what was decided about a new one just now had its plan made."""
        group = self._groups.get(name)
        if group is None:
            made = self._deciding
            group = self._groups[name] = made if made is not None and made.name == name else self._new(name)
            self._deciding = None
        return group

    def _find(self, name: str) -> Group:
        """The group, or an empty one that replay may take up."""
        check_group_name(name)
        group = self._groups.get(name)
        if group is None:
            group = self._deciding = self._new(name)
        return group

    def _new(self, name: str) -> Group:
        return Group(name, self._epoch_floor)

    def _existing(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None or not group.exists:
            raise GroupNotFound(f"there is no consumer group {name!r}")
        return group


def _member(member: MemberRecord, presence: Presence, now_ms: float) -> m.MemberInfo:
    return m.MemberInfo(
        member_id=member.member_id,
        client=member.client,
        epoch=member.epoch,
        owned=tuple(sorted((topic, partition) for topic, partition, _ in member.holds)),
        last_heartbeat_ms_ago=int(now_ms - presence.heard_ms),
        last_poll_ms_ago=-1 if presence.asked_ms is None else int(now_ms - presence.asked_ms),
        host=member.host,
        pid=member.pid,
        node_id=member.node_id,
        instance_id=member.instance_id,
    )


def check_group_name(name: object) -> None:
    """Raises InvalidArgument unless a group may be called that."""
    membership.check_name("group", name)
