"""What partitions hold and how far groups are behind: one question per actor, whatever it holds of however many topics.
Coroutines over `Routing`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import asdict
from typing import Final

from raystream import messages as m
from raystream.client.routing import Leader, Routing
from raystream.errors import RaystreamError
from raystream.types import (
    GroupDescription,
    MemberDescription,
    PartitionLag,
    Rows,
    SharePartitionDescription,
    TopicPartition,
)

STATUS_TIMEOUT_MS: Final = 10_000.0
LEADERLESS_TIMEOUT_MS: Final = 2_000.0
"""So long a partition that has no leader may take to get one, for those who ask what it holds."""
Statuses = dict[tuple[str, int], m.ReplicaStatus]
"""By topic id and partition."""


async def statuses(routing: Routing, topics: Iterable[m.TopicMetadata]) -> Statuses:
    """What each partition's leader holds; partitions that do not answer are left out."""

    async def ask(actor: str, topic: str, partition: int) -> tuple[m.ReplicaStatus, ...]:
        async def call(leader: Leader, left_ms: float) -> tuple[m.ReplicaStatus, ...]:
            return await leader.port.status(timeout_ms=left_ms)

        timeout_ms = STATUS_TIMEOUT_MS if actor else LEADERLESS_TIMEOUT_MS
        try:
            return await routing.call_partition(topic, partition, call, timeout_ms=timeout_ms)
        except RaystreamError:
            return ()

    per_actor = {p.actor: (topic.name, p.partition) for topic in topics for p in topic.partitions}
    answers = await asyncio.gather(*(ask(actor, *place) for actor, place in per_actor.items()))
    found = sorted((s for answer in answers for s in answer), key=lambda status: status.leading)
    return {(status.topic_id, status.partition): status for status in found}  # a leader's comes last, and counts


async def describe_groups(routing: Routing, infos: Iterable[m.GroupInfo]) -> Rows[GroupDescription]:
    """The groups with their lag; topics that are gone are left out."""
    groups = list(infos)
    wanted = {group.group: {*group.topics, *(position.topic for position in group.offsets)} for group in groups}
    topics, held = await _looked_up(routing, sorted({topic for topics in wanted.values() for topic in topics}))
    return Rows(
        _group(group, [topics[topic] for topic in sorted(wanted[group.group]) if topic in topics], held)
        for group in groups
    )


async def _looked_up(routing: Routing, names: list[str]) -> tuple[dict[str, m.TopicMetadata], Statuses]:
    """The topics that there are now, and what their partitions hold. Where these were is asked at the same time as
    where they are, which is mostly the same."""
    if not names:
        return {}, {}
    known = [topic for name in names if (topic := routing.known(name)) is not None]
    reply, held = await asyncio.gather(routing.metadata(tuple(names)), statuses(routing, known))
    topics = {topic.name: topic for topic in reply.topics or ()}
    if _places(known) != _places(topics.values()):
        held = await statuses(routing, topics.values())
    return topics, held


def _places(topics: Iterable[m.TopicMetadata]) -> set[tuple[str, int, str]]:
    return {(topic.topic_id, p.partition, p.actor) for topic in topics for p in topic.partitions}


def _group(info: m.GroupInfo, topics: list[m.TopicMetadata], held: Statuses) -> GroupDescription:
    owners = {TopicPartition(*owned): member for member in info.members for owned in member.owned}
    committed = {TopicPartition(o.topic, o.partition): o.offset for o in info.offsets}
    settled = {TopicPartition(share.topic, share.partition): share.settled for share in info.shares}
    rows: Rows[PartitionLag] = Rows()
    behind: dict[str, int] = {}
    for topic in topics:
        for partition in topic.partitions:
            at = TopicPartition(topic.name, partition.partition)
            status = held.get((topic.topic_id, partition.partition))
            if status is None:
                continue
            owner = owners.get(at)
            row = _lag(at, committed.get(at), settled.get(at, 0), status, owner.client if owner is not None else None)
            rows.append(row)
            if owner is not None and row.lag is not None:
                behind[owner.member_id] = behind.get(owner.member_id, 0) + row.lag
    known = [row.lag for row in rows if row.lag is not None]
    return GroupDescription(
        name=info.group,
        state=info.state,
        epoch=info.epoch,
        topics=tuple(topic.name for topic in topics),
        members=len(info.members),
        lag=sum(known) if known else None,
        member_list=Rows(_member(member, behind.get(member.member_id)) for member in info.members),
        partition_list=rows,
        kind="share" if info.kind == "share" else "consumer",
        share_list=Rows(SharePartitionDescription(**asdict(share)) for share in info.shares),
    )


def _lag(
    at: TopicPartition, position: int | None, settled: int, status: m.ReplicaStatus, member: str | None
) -> PartitionLag:
    lost = 0 if position is None else max(0, status.start_offset - position)
    lag = None if position is None else max(0, status.end_offset - position - lost - settled)
    return PartitionLag(at.topic, at.partition, position, status.end_offset, lag, member, lost)


def _member(member: m.MemberInfo, lag: int | None) -> MemberDescription:
    return MemberDescription(
        member.member_id,
        member.client,
        member.epoch,
        tuple(TopicPartition(*owned) for owned in member.owned),
        member.last_heartbeat_ms_ago,
        None if member.last_poll_ms_ago < 0 else member.last_poll_ms_ago,
        lag,
        member.host,
        member.pid,
        member.node_id,
        member.instance_id or None,
    )
