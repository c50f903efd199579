"""Share groups (KIP-932): queues over topics, whose members take records one by one and settle each.

Guarantees. A record that is handed out is locked: nobody else gets it before it is acknowledged, its lock has run out
or its member is dead. It is settled (accepted, archived or buried in the dead-letter topic) or it is handed out again:
what is answered as acknowledged is in the log. How often a record was delivered is counted when a delivery ends, and
only grows; deliveries that were under way when a coordinator died are not counted.

Decisions give records and a reply; `replay` is what changes records' states. Members and locks are soft, and noted
while deciding: a coordinator that begins anew knows no member, and every record that was acquired is available.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from raystream import messages as m
from raystream.core.deadlines import Deadlines
from raystream.core.records import Decision, Record, Removed, removed
from raystream.core.share_drafts import Draft, Drafts
from raystream.core.share_members import (
    MAX_SHARE_MEMBERS,
    ShareGroup,
    ShareMember,
    check_acknowledge,
    check_acquire,
    check_heartbeat,
)
from raystream.core.share_partition import DYING, Lock, Offer, SharePartition
from raystream.core.share_records import ShareGroupRecord, SharePartitionRecord
from raystream.errors import GroupNotEmpty, GroupNotFound, InvalidArgument, Overloaded, UnknownMember

Place = tuple[str, int]
MAX_OFFERED_RANGES = 500
"""One acquisition gives so many ranges at most."""


@dataclass(frozen=True, slots=True)
class Acquired:
    """What an acquisition gave. Where that is nothing, `watch` says of which partitions news may bring something, as
    (topic, partition, offset from which on)."""

    reply: m.ShareAcquireReply
    watch: tuple[tuple[str, int, int], ...] = ()


class ShareGroups:
    """Every share group of one coordinator."""

    def __init__(self) -> None:
        self._groups: dict[str, ShareGroup] = {}
        self._ends: dict[Place, int] = {}
        """Soft: up to where each partition's records may be handed out."""
        self._topic_ids: Mapping[str, str] = {}
        self._members_due: Deadlines[tuple[str, str]] = Deadlines(self._member_due_ms)
        self._locks_due: Deadlines[tuple[str, Place]] = Deadlines(self._locks_due_ms)
        self._awakened: set[str] = set()

    def __contains__(self, name: object) -> bool:
        return name in self._groups

    def awakened(self) -> set[str]:
        """The groups whose members may find records since this was asked last."""
        awakened, self._awakened = self._awakened, set()
        return awakened

    # Membership -----------------------------------------------------------------------------------------------------

    def heartbeat(self, request: m.ShareHeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        """A member joins, stays or leaves; `topics` are all partition counts, as for `Groups.heartbeat`.

        Raises UnknownMember: the member is to join again, with nothing in its hands; InvalidArgument, Overloaded.
        """
        check_heartbeat(request)
        group = self._groups.get(request.group)
        member = None if group is None else group.members.get(request.member_id)
        if request.intent == m.JOIN and (member is None or request.sequence > member.sequence):
            return self._join(request, topics, now_ms)
        if group is None or member is None:
            if request.intent == m.LEAVE:
                return Decision((), m.ShareHeartbeatReply(lock_timeout_ms=0))
            raise UnknownMember(f"share group {request.group!r} does not know member {request.member_id}: join again")
        if request.intent == m.LEAVE:
            drafts = Drafts()
            self._depart(group, member.member_id, drafts)
            return Decision(self._records(drafts), _settings(group.settings))
        member.hear(request.sequence, now_ms)
        opened = self._opened(group, topics, {}) if group.counts is not topics else ()
        return Decision(opened, replace(_settings(group.settings), dying=group.has_dying()))

    def _join(self, request: m.ShareHeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        settings = ShareGroupRecord(
            request.group, request.max_deliveries, request.lock_timeout_ms, request.max_in_flight, request.dead_letter
        )
        drafts = Drafts()
        group = self._groups.get(request.group)
        if group is None:  # its settings are replayed before anybody sees it
            group = self._groups[request.group] = ShareGroup(settings)
            changed = True
        else:
            if len(group.members) >= MAX_SHARE_MEMBERS and request.member_id not in group.members:
                raise Overloaded(f"share group {request.group!r} has {MAX_SHARE_MEMBERS:,} members, as many as may be")
            changed = group.settings != settings
            self._depart(group, request.member_id, drafts)  # it begins with nothing in its hands
        if not settings.dead_letter:
            for partition in group.partitions.values():
                drafts.of(partition, settings).bury_nothing()
        group.members[request.member_id] = ShareMember(
            request.member_id,
            request.client,
            tuple(sorted(set(request.topics))),
            request.session_timeout_ms,
            now_ms,
            request.sequence,
            pattern=request.pattern,
        )
        self._members_due.watch((request.group, request.member_id))
        starts = {(topic, partition): offset for topic, partition, offset in request.starts}
        opened = self._opened(group, topics, starts)
        records = ((settings,) if changed else ()) + self._records(drafts) + opened
        return Decision(records, _settings(settings))

    def _opened(
        self, group: ShareGroup, topics: Mapping[str, int], starts: Mapping[Place, int]
    ) -> tuple[SharePartitionRecord, ...]:
        """Records of the partitions of the members' topics that the group has no state of."""
        group.counts = topics
        wanted = group.wanted(topics)
        return tuple(
            SharePartitionRecord(
                group.settings.group,
                topic,
                number,
                start_offset=starts.get((topic, number), 0),
                topic_id=self._topic_ids.get(topic, ""),
            )
            for topic in sorted(wanted)
            for number in range(topics.get(topic, 0))
            if (topic, number) not in group.partitions
        )

    def _depart(self, group: ShareGroup, member_id: str, drafts: Drafts) -> None:
        """The member is gone: what it had is available again."""
        if group.members.pop(member_id, None) is not None:
            for partition in group.partitions.values():
                drafts.end_deliveries(partition, group.settings, partition.held_by(member_id))

    def _records(self, drafts: Drafts) -> tuple[SharePartitionRecord, ...]:
        records = drafts.records()
        self._awakened |= drafts.freed
        return records

    # Acquiring ------------------------------------------------------------------------------------------------------

    def acquire(self, request: m.ShareAcquireRequest, now_ms: float) -> Decision:
        """Records for a member, which are its own until they are acknowledged or their lock runs out. The reply is an
        `Acquired`. Raises UnknownMember, InvalidArgument."""
        check_acquire(request)
        group, member = self._member(request.group, request.member_id)
        timeout_ms = group.settings.lock_timeout_ms
        overtaken = request.sequence < member.acquired
        member.hear(request.sequence, now_ms)
        granted: tuple[m.ShareRange, ...] = ()
        if request.sequence == member.acquired != 0:
            granted = tuple(
                _range(partition, offer)
                for partition in group.partitions.values()
                for offer in partition.granted(member.member_id, request.sequence)
            )
        if not granted and not overtaken:
            if request.received < member.acquired < request.sequence:
                self._take_back(group, member, request.received)
            granted = self._grant(group, member, request, now_ms + timeout_ms)
        reply = m.ShareAcquireReply(ranges=granted, lock_timeout_ms=timeout_ms, dead_letter=group.settings.dead_letter)
        watch = () if granted else tuple(self._watched(group, member))
        return Decision((), Acquired(reply, watch))

    def _take_back(self, group: ShareGroup, member: ShareMember, received: int) -> None:
        for partition in group.partitions.values():
            if partition.take_back(member.member_id, received):
                self._awakened.add(group.settings.group)

    def _grant(
        self, group: ShareGroup, member: ShareMember, request: m.ShareAcquireRequest, deadline_ms: float
    ) -> tuple[m.ShareRange, ...]:
        left = request.max_records
        lock = Lock(member.member_id, deadline_ms, request.sequence)
        granted: list[m.ShareRange] = []
        places = [place for place in group.partitions if group.reads(member, place[0])]
        begin = group.turn % max(len(places), 1)
        for place in (*places[begin:], *places[:begin]):
            partition = group.partitions[place]
            end_offset = self._ends.get(place, partition.record.start_offset)
            taken: list[Offer] = []
            for offer in partition.offers(end_offset, group.settings.max_in_flight):
                if left <= 0 or len(granted) + len(taken) >= MAX_OFFERED_RANGES:
                    break
                if request.dying_only and offer.state not in DYING:
                    continue
                taken.append(offer._replace(stop=min(offer.stop, offer.first + left)))
                left -= taken[-1].stop - taken[-1].first
            for offer in taken:
                partition.lock(offer.first, offer.stop, lock)
                granted.append(_range(partition, offer))
            if taken:
                self._locks_due.watch((group.settings.group, place))
            group.turn += 1
            if left <= 0:
                break
        if granted:
            member.acquired = request.sequence
        return tuple(granted)

    def _watched(self, group: ShareGroup, member: ShareMember) -> Iterator[tuple[str, int, int]]:
        for place, partition in group.partitions.items():
            if group.reads(member, place[0]) and not partition.is_full(group.settings.max_in_flight):
                yield (*place, max(self._ends.get(place, 0), partition.record.start_offset))

    def know_end(self, topic: str, topic_id: str, partition: int, end_offset: int, log_start_offset: int) -> Decision:
        """Up to where the partition's records may be handed out, and from where on they are there. What retention has
        taken from a group before it was settled is lost, and counted."""
        if self._topic_ids.get(topic) != topic_id:  # of a topic that had the name before, or is not heard of yet
            return Decision(())
        place = (topic, partition)
        grown = end_offset > self._ends.get(place, -1)
        self._ends[place] = end_offset
        drafts = Drafts()
        for name, group in self._groups.items():
            share = group.partitions.get(place)
            if share is None:
                continue
            if grown:
                self._awakened.add(name)
            if share.record.start_offset < log_start_offset:
                drafts.of(share, group.settings).lose(log_start_offset)
        return Decision(self._records(drafts))

    # Acknowledging --------------------------------------------------------------------------------------------------

    def acknowledge(self, request: m.ShareAcknowledgeRequest, now_ms: float) -> Decision:
        """What becomes of records that a member has acquired. Ranges that are not the member's any more are refused,
        and change nothing. Raises UnknownMember, InvalidArgument."""
        check_acknowledge(request)
        group, member = self._member(request.group, request.member_id)
        member.hear(0, now_ms)
        sequence, answered = member.acknowledged
        if request.sequence and request.sequence <= sequence:
            overtaken = m.ShareAcknowledgeReply(refused=tuple(found[:4] for found in request.ranges))
            return Decision((), answered if request.sequence == sequence else overtaken)
        drafts = Drafts()
        refused: list[tuple[str, int, int, int]] = []
        for topic, number, first, stop, kind, acquisition in request.ranges:
            partition = group.partitions.get((topic, number))
            if partition is None:
                refused.append((topic, number, first, stop))
                continue
            draft = drafts.of(partition, group.settings)
            gaps = self._settle(group, member, draft, partition, (first, stop, kind, acquisition), now_ms)
            refused += [(topic, number, *gap) for gap in gaps]
        reply = m.ShareAcknowledgeReply(refused=tuple(refused))
        member.acknowledged = (request.sequence, reply)
        return Decision(self._records(drafts), reply)

    def _settle(
        self,
        group: ShareGroup,
        member: ShareMember,
        draft: Draft,
        partition: SharePartition,
        said: tuple[int, int, str, int],
        now_ms: float,
    ) -> Iterator[tuple[int, int]]:
        """What the member says of a range, as far as it has it still from that acquisition; yields the rest."""
        first, stop, kind, acquisition = said
        if first < partition.locks.start:
            yield first, min(stop, partition.locks.start)
        for begin, end, lock in list(partition.locks.between(first, stop)):
            if lock is None or lock.member_id != member.member_id or acquisition not in (0, lock.sequence):
                yield begin, end
            elif kind == m.RENEW:
                renewed = lock._replace(deadline_ms=now_ms + group.settings.lock_timeout_ms)
                partition.lock(begin, end, renewed)
            else:
                yield from draft.acknowledge(begin, end, kind)

    # Time -----------------------------------------------------------------------------------------------------------

    def expire(self, now_ms: float) -> Decision:
        """Members that were silent past their session timeout are dead, and locks that have run out are freed."""
        drafts = Drafts()
        for name, member_id in sorted(self._members_due.due(now_ms)):
            self._depart(self._groups[name], member_id, drafts)
        for name, place in sorted(self._locks_due.due(now_ms)):
            group = self._groups[name]
            partition = group.partitions[place]
            drafts.end_deliveries(partition, group.settings, partition.run_out(now_ms))
        return Decision(self._records(drafts))

    def next_expiry_ms(self) -> float | None:
        """When something is due unless it is heard of before."""
        dues = [due for due in (self._members_due.next_ms(), self._locks_due.next_ms()) if due is not None]
        return min(dues, default=None)

    def _member_due_ms(self, key: tuple[str, str]) -> float | None:
        group = self._groups.get(key[0])
        member = None if group is None else group.members.get(key[1])
        return None if member is None else member.due_ms

    def _locks_due_ms(self, key: tuple[str, Place]) -> float | None:
        group = self._groups.get(key[0])
        partition = None if group is None else group.partitions.get(key[1])
        return None if partition is None else partition.due_ms()

    # Administration -------------------------------------------------------------------------------------------------

    def know_topics(self, topic_ids: Mapping[str, str]) -> Decision:
        """All topics that there are, name to id. What groups know of topics that are gone is forgotten."""
        self._topic_ids = topic_ids
        gone = tuple(
            removed(partition.record)
            for group in self._groups.values()
            for (topic, _), partition in group.partitions.items()
            if topic not in topic_ids or partition.record.topic_id not in ("", topic_ids[topic])
        )
        for _, topic, number in (tombstone.identity for tombstone in gone):
            self._ends.pop((topic, number), None)
        for group in self._groups.values():
            group.counts = None
        return Decision(gone)

    def describe(self, name: str, now_ms: float) -> m.GroupInfo:
        """One group. Raises GroupNotFound."""
        return self._existing(name).info(now_ms)

    def list(self, now_ms: float) -> tuple[m.GroupInfo, ...]:
        """Every share group."""
        return tuple(self.describe(name, now_ms) for name in sorted(self._groups))

    def reset(self, request: m.CommitRequest) -> Decision:
        """An administrator moves start offsets; what was known beyond them is forgotten. Raises GroupNotFound,
        GroupNotEmpty, InvalidArgument."""
        group = self._existing(request.group)
        if request.member_id:
            raise InvalidArgument(f"{request.group!r} is a share group: its members acknowledge, they commit nothing")
        _refuse_members(request.group, group)
        records = [
            SharePartitionRecord(
                request.group,
                position.topic,
                position.partition,
                start_offset=position.offset,
                topic_id=self._topic_ids.get(position.topic, ""),
            )
            for position in request.offsets
        ]
        return Decision(tuple(records), m.Done())

    def delete(self, name: str) -> Decision:
        """Forgets a group. Raises GroupNotFound, GroupNotEmpty."""
        group = self._existing(name)
        _refuse_members(name, group)
        gone = tuple(removed(partition.record) for partition in group.partitions.values())
        return Decision((*gone, removed(group.settings)), m.Done())

    # Replay ---------------------------------------------------------------------------------------------------------

    def replay(self, record: Record | Removed) -> None:
        """Applies one record; the only thing that changes records' states and settings."""
        match record:
            case ShareGroupRecord():
                known = self._groups.get(record.group)
                if known is None:
                    self._groups[record.group] = ShareGroup(record)
                else:
                    known.settings = record
            case SharePartitionRecord():
                partitions = self._groups[record.group].partitions
                place = (record.topic, record.partition)
                if place in partitions:
                    partitions[place].replay(record)
                else:
                    partitions[place] = SharePartition(record)
            case Removed(SharePartitionRecord.KIND, (name, topic, number)):
                if name in self._groups:
                    self._groups[name].partitions.pop((topic, number), None)
            case Removed(ShareGroupRecord.KIND, (name,)):
                self._groups.pop(name, None)

    def snapshot(self) -> Iterator[Record]:
        """Records whose replay on an empty state gives this one; see `Groups.snapshot` on changes meanwhile."""
        first = list(self._groups.items())
        yield from self._present(first)
        known = {id(group) for _, group in first}
        yield from self._present([found for found in self._groups.items() if id(found[1]) not in known])

    def _present(self, groups: Iterable[tuple[str, ShareGroup]]) -> Iterator[Record]:
        for name, group in groups:
            if group is not self._groups.get(name):
                continue
            yield group.settings
            for place in list(group.partitions):
                if (partition := group.partitions.get(place)) is not None:
                    yield partition.record

    def _existing(self, name: str) -> ShareGroup:
        group = self._groups.get(name)
        if group is None:
            raise GroupNotFound(f"there is no share group {name!r}")
        return group

    def _member(self, name: str, member_id: str) -> tuple[ShareGroup, ShareMember]:
        group = self._groups.get(name)
        member = None if group is None else group.members.get(member_id)
        if group is None or member is None:
            raise UnknownMember(f"share group {name!r} does not know member {member_id}: join again")
        return group, member


def _refuse_members(name: str, group: ShareGroup) -> None:
    if group.members:
        raise GroupNotEmpty(f"share group {name!r} has {len(group.members)} running members: stop them first")


def _settings(settings: ShareGroupRecord) -> m.ShareHeartbeatReply:
    return m.ShareHeartbeatReply(lock_timeout_ms=settings.lock_timeout_ms, dead_letter=settings.dead_letter)


def _range(partition: SharePartition, offer: Offer) -> m.ShareRange:
    record = partition.record
    reason = DYING.get(offer.state, "")
    deliveries = offer.deliveries if reason else offer.deliveries + 1
    return (record.topic, record.partition, offer.first, offer.stop, deliveries, reason)
