"""Who should have what: the plan of a group epoch, from subscriptions, partition counts and what members hold.

The group's assignor is the one that most of its members name, and among equals the first by name (KIP-848 lets the
coordinator choose among the preferred ones likewise). Whichever it is, only what moves is revoked.

An assignor deals to seats: a member's is its id, a static member's its instance, so that a new life sits where the one
before sat, also with assignors that go by the order of names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from raystream import messages as m
from raystream.core.assignors import STICKY, Partition, Topics, assign_range, roundrobin, sticky
from raystream.core.group_records import MemberRecord
from raystream.core.group_state import Group, Plan, Target, holds_exactly
from raystream.core.topic_names import is_internal
from raystream.errors import InvalidArgument


def names(request: m.HeartbeatRequest) -> tuple[str, ...]:
    """The topics that it names, as members keep them."""
    return tuple(sorted(set(request.topics)))


@lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """The topic pattern. Raises InvalidArgument."""
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"the topic pattern {pattern!r} is no regular expression: {error}") from None


def chosen_assignor(members: Iterable[MemberRecord]) -> str:
    """The one that most members name; among equals the first by name."""
    votes = Counter(member.assignor for member in members)
    return min(votes, key=lambda name: (-votes[name], name), default=STICKY)


def _subscription(member: MemberRecord, topics: Iterable[str]) -> Iterable[str]:
    if member.pattern is None:
        return member.topics
    pattern = compiled(member.pattern)
    return [topic for topic in topics if not is_internal(topic) and pattern.fullmatch(topic)]


def planned(
    group: Group, member: MemberRecord, topics: Mapping[str, int], predecessor: MemberRecord | None = None
) -> Plan:
    """The plan with `member` as it is now, in place of its `predecessor`: the one at hand where nothing is new, or
    one for a new group epoch.

    A plan for an epoch is made once. Where an epoch may have had one that is lost (a restart), the same epoch is used
    again only if everybody already holds what the new plan says, so that no partition has two owners in one epoch.
    """
    plan = group.plan
    known = group.members.get(member.member_id)
    changed = known is None or _wishes(known) != _wishes(member)
    if not changed and plan is not None and plan.epoch == group.epoch and plan.topics is topics:
        return plan
    members = {**group.members, member.member_id: member} if changed else group.members
    if predecessor is not None:
        members = {member_id: other for member_id, other in members.items() if other is not predecessor}
    counts = _subscribed_counts(members.values(), topics)
    if not changed and plan is not None and plan.counts == counts:
        if plan.epoch == group.epoch:
            plan.topics = topics
            return plan
        if plan.epoch < group.epoch:  # members left, which began an epoch that has no plan yet
            return Plan(group.epoch, topics, counts, _target(group, members, counts, topics))
    target = _target(group, members, counts, topics)
    if not changed and plan is None and holds_exactly(members, target):
        return Plan(group.epoch, topics, counts, target)
    return Plan(group.epoch + 1, topics, counts, target)


def _subscribed_counts(members: Iterable[MemberRecord], topics: Mapping[str, int]) -> dict[str, int]:
    wanted: set[str] = set()
    for subscription in {(member.topics, member.pattern): member for member in members}.values():
        wanted.update(_subscription(subscription, topics))
    return {topic: topics[topic] for topic in wanted if topic in topics}


def _wishes(member: MemberRecord) -> tuple[object, ...]:
    return member.topics, member.pattern, member.assignor, member.instance_id


def _seat(member: MemberRecord) -> str:
    return f"\x00{member.instance_id}" if member.instance_id else member.member_id  # no name holds the character


def _target(
    group: Group, members: Mapping[str, MemberRecord], counts: Mapping[str, int], topics: Mapping[str, int]
) -> Target:
    sitting = {_seat(member): member_id for member_id, member in members.items()}
    subscriptions = {seat: _subscription(members[member_id], counts) for seat, member_id in sitting.items()}
    match chosen_assignor(members.values()):
        case "range":
            owners = assign_range(subscriptions, counts)
        case "roundrobin":
            owners = roundrobin(subscriptions, counts)
        case _:
            nodes = {seat: members[member_id].node_id for seat, member_id in sitting.items()}
            leaders = topics.leaders if isinstance(topics, Topics) else {}
            owners = sticky(subscriptions, counts, _held(group), nodes, leaders)
    shares: dict[str, list[Partition]] = {member_id: [] for member_id in members}
    for partition, seat in owners.items():
        shares[sitting[seat]].append(partition)
    return {member_id: frozenset(share) for member_id, share in shares.items()}


def _held(group: Group) -> dict[Partition, str]:
    """Who sits on what: by the plan at hand, so that what is on its way arrives, and otherwise by what members hold."""
    held: dict[Partition, str] = {}
    for member in group.members.values():
        for topic, number, _ in member.assigned:
            held[topic, number] = _seat(member)
    for member_id, partitions in (group.plan.target if group.plan is not None else {}).items():
        if member_id in group.members:
            held.update(dict.fromkeys(partitions, _seat(group.members[member_id])))
    return held
