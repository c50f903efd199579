"""How members of one group join, go on, let go and leave (KIP-848): heartbeats in, records and a reply out.

A partition that moves is first missing from its old owner's `assigned`; once the owner's `owned` no longer lists it, or
the owner is gone, its new owner gets it. Partitions that stay are never withdrawn.

A member's epoch follows the group's at each of its heartbeats, also while it still has something to give up: what it is
given at the same time can then be committed at once. That a partition waits for its old owner is kept per partition, in
`revoking`. The epoch that a member spoke with last stays good until it is known to have heard the new one, so that any
number of lost replies does not make it join again.

A static member names an instance. A new life of it takes the place of the one before in one decision: what that one
held is given to it at once, nothing else moves, and the one before is fenced for good.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final

from raystream import messages as m
from raystream.core import arguments, targets
from raystream.core.assignors import ASSIGNORS, Partition
from raystream.core.group_records import GroupRecord, Held, MemberRecord
from raystream.core.group_state import Group, Plan, Presence
from raystream.core.records import Decision, Record, Removed, removed
from raystream.core.topic_names import MAX_NAME_CHARACTERS
from raystream.errors import FencedMember, InvalidArgument, Overloaded, UnknownMember

JOIN_EPOCH: Final = 0
LEAVE_EPOCH: Final = -1
MAX_ID_CHARACTERS: Final = 255
MAX_CLIENT_CHARACTERS: Final = 1024
MAX_PATTERN_CHARACTERS: Final = 1024
MAX_SUBSCRIBED_TOPICS: Final = 10_000
MAX_TIMEOUT_MS: Final = 3_600_000
MAX_MEMBERS: Final = 10_000
MAX_FORMER_LIVES: Final = 8


def heartbeat(group: Group, request: m.HeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
    """A member joins, goes on or leaves. See `Groups.heartbeat`."""
    known = group.members.get(request.member_id)
    if request.member_epoch == LEAVE_EPOCH:
        reply = m.HeartbeatReply(member_epoch=LEAVE_EPOCH, assigned=(), group_epoch=group.epoch)
        return Decision(departure(group, [known] if known is not None else []), reply)
    steady = _steady_reply(group, request, known, topics, now_ms)
    if steady is not None:
        return Decision((), steady)
    member = _joined(group, request) if request.member_epoch == JOIN_EPOCH else _continued(group, request, known)
    predecessor = group.seated(member)
    group.presence.setdefault(request.member_id, Presence(now_ms)).hear(request, now_ms)
    plan = group.plan = targets.planned(group, member, topics, predecessor)
    after = _reconciled(member, set(request.owned), group, plan, request.member_epoch, predecessor)
    records: list[Record | Removed] = []
    if plan.epoch != group.epoch:
        records.append(GroupRecord(group.name, plan.epoch))
    if predecessor is not None:
        records.append(removed(predecessor))
    if after != known:
        records.append(after)
    owners = () if after.assigned or not request.owners_wanted else group.owner_list()
    reply = m.HeartbeatReply(member_epoch=after.epoch, assigned=after.assigned, group_epoch=plan.epoch, owners=owners)
    if (
        not records
        and after.assigned
        and not after.revoking
        and len(after.assigned) == len(plan.target[after.member_id])
    ):
        plan.steady[after.member_id] = reply
    return Decision(tuple(records), reply)


def departure(group: Group, leaving: list[MemberRecord]) -> tuple[Record | Removed, ...]:
    """Members go, and what they held is free. With the last member goes a group that has no positions to keep."""
    if not leaving:
        return ()
    gone = tuple(removed(member) for member in leaving)
    if len(leaving) == len(group.members) and not group.offsets:
        return (*gone, removed(group.record()))
    return (GroupRecord(group.name, group.epoch + 1), *gone)


def _steady_reply(
    group: Group, request: m.HeartbeatRequest, known: MemberRecord | None, topics: Mapping[str, int], now_ms: float
) -> m.HeartbeatReply | None:
    """The short way for the heartbeat that most are: nothing is new, and the member holds what it should."""
    plan = group.plan
    if known is None or plan is None or plan.epoch != group.epoch or plan.topics is not topics:
        return None
    reply = plan.steady.get(known.member_id)
    if reply is None or request.member_epoch != known.epoch or request.pattern != known.pattern:
        return None
    if request.topics != known.topics and targets.names(request) != known.topics:
        return None
    presence = group.presence[known.member_id]
    if presence.overtook(request.sequence):
        return None
    presence.hear(request, now_ms)
    return reply


# Who speaks -----------------------------------------------------------------------------------------------------------


def check_name(what: str, name: object) -> None:
    """Raises InvalidArgument unless a group or a member may be called that."""
    arguments.text(what, name, at_least=1, at_most=MAX_ID_CHARACTERS, printable=True)


def _joined(group: Group, request: m.HeartbeatRequest) -> MemberRecord:
    """A member that joins, or comes back with nothing in its hands."""
    check_name("member id", request.member_id)
    if request.member_id not in group.members and len(group.members) >= MAX_MEMBERS:
        raise Overloaded(f"group {group.name!r} has {MAX_MEMBERS:,} members, as many as a group may have")
    _check_overtaken(group, request)
    for what, text in (("description", request.client), ("host", request.host), ("node", request.node_id)):
        arguments.text(f"a client's {what}", text, at_least=0, at_most=MAX_CLIENT_CHARACTERS)
    _check_subscription(request)
    if request.assignor not in ASSIGNORS:
        raise InvalidArgument(f"there is no assignor {request.assignor!r}: there are {', '.join(ASSIGNORS)}")
    return MemberRecord(
        group=request.group,
        member_id=request.member_id,
        client=request.client,
        topics=targets.names(request),
        pattern=request.pattern,
        session_timeout_ms=_timeout_ms("session_timeout_ms", request.session_timeout_ms),
        rebalance_timeout_ms=_timeout_ms("rebalance_timeout_ms", request.rebalance_timeout_ms),
        epoch=0,
        previous_epoch=0,
        assignor=request.assignor,
        node_id=request.node_id,
        host=request.host,
        pid=arguments.whole("pid", request.pid),
        instance_id=request.instance_id,
        former=_former(group, request),
    )


def _former(group: Group, request: m.HeartbeatRequest) -> tuple[str, ...]:
    """The lives that the instance had before this one. Raises FencedMember where this one is among them: the newest
    that joined counts, however late an older one's call arrives."""
    check_not_succeeded(group, request.member_id)
    if not request.instance_id:
        return ()
    check_name("group_instance_id", request.instance_id)
    now = group.members.get(group.instances.get(request.instance_id, ""))
    if now is None:
        return ()
    return now.former if now.member_id == request.member_id else (*now.former, now.member_id)[-MAX_FORMER_LIVES:]


def check_not_succeeded(group: Group, member_id: str) -> None:
    """Raises FencedMember, with `instance_id`, where a newer life of the same static member has taken over."""
    successor = None if member_id in group.members else group.successor(member_id)
    if successor is not None:
        raise FencedMember(
            f"another consumer joined group {group.name!r} with group_instance_id={successor.instance_id!r} "
            f"({successor.client}) and has taken over the partitions of this one",
            instance_id=successor.instance_id,
        )


def _timeout_ms(name: str, value: object) -> int:
    timeout_ms = arguments.whole(name, int(value) if isinstance(value, float) and value.is_integer() else value)
    if not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
        raise InvalidArgument(f"{name}={timeout_ms}: a member's timeout is 1 to {MAX_TIMEOUT_MS:,} ms")
    return timeout_ms


def _continued(group: Group, request: m.HeartbeatRequest, known: MemberRecord | None) -> MemberRecord:
    """A member that goes on. One that did not hear of its new epoch speaks with the one before, and then cannot own
    what the group does not count as its own."""
    if known is None:
        check_not_succeeded(group, request.member_id)
        raise UnknownMember(f"group {group.name!r} does not know member {request.member_id}: join again")
    current = request.member_epoch == known.epoch
    unheard = request.member_epoch == known.previous_epoch and {held[:2] for held in known.holds}.issuperset(
        request.owned
    )
    if not (current or unheard):
        raise FencedMember(
            f"member {request.member_id} of group {group.name!r} is at epoch {known.epoch}, and speaks with "
            f"{request.member_epoch}: join again"
        )
    _check_overtaken(group, request)
    if (request.topics, request.pattern) == (known.topics, known.pattern):
        return known
    _check_subscription(request)
    return dataclasses.replace(known, topics=targets.names(request), pattern=request.pattern)


def _check_overtaken(group: Group, request: m.HeartbeatRequest) -> None:
    """Calls keep no order: a heartbeat that its sender has long given up must not speak for what it owns now."""
    presence = group.presence.get(request.member_id)
    if presence is not None and presence.overtook(request.sequence):
        raise FencedMember(
            f"heartbeat {request.sequence} of member {request.member_id} was overtaken by heartbeat {presence.beat}"
        )


def _check_subscription(request: m.HeartbeatRequest) -> None:
    if request.pattern is not None:
        targets.compiled(
            arguments.text("the topic pattern", request.pattern, at_least=1, at_most=MAX_PATTERN_CHARACTERS)
        )
    elif not request.topics:
        raise InvalidArgument("a member subscribes to at least one topic, or to a pattern")
    if len(request.topics) > MAX_SUBSCRIBED_TOPICS:
        raise InvalidArgument(f"a member names up to {MAX_SUBSCRIBED_TOPICS:,} topics; a pattern can match more")
    for topic in request.topics:
        arguments.text("topic name", topic, at_least=1, at_most=MAX_NAME_CHARACTERS)


# One step nearer to the plan ------------------------------------------------------------------------------------------


def _reconciled(
    member: MemberRecord,
    owned: set[Partition],
    group: Group,
    plan: Plan,
    spoken_epoch: int,
    predecessor: MemberRecord | None,
) -> MemberRecord:
    """The member one step nearer to its target. What its predecessor held is free: that one is gone with this."""
    target = plan.target[member.member_id]
    free = {None, member.member_id, predecessor.member_id if predecessor is not None else None}
    keep: list[Held] = []
    revoking = [held for held in member.revoking if held[:2] in owned]
    for held in member.assigned:
        if held[:2] in target:
            keep.append(held)
        elif held[:2] in owned:
            revoking.append(held)
    mine = {held[:2] for held in (*keep, *revoking)}
    given = [
        (topic, number, plan.epoch)
        for topic, number in target
        if (topic, number) not in mine and group.holder.get((topic, number)) in free
    ]
    return dataclasses.replace(
        member,
        assigned=tuple(sorted(keep + given)),
        revoking=tuple(sorted(revoking)),
        epoch=plan.epoch,
        previous_epoch=spoken_epoch if spoken_epoch != plan.epoch else member.previous_epoch,
    )
