"""Between clients and coordinators: producer ids, groups, positions."""

from __future__ import annotations

from dataclasses import dataclass

from raystream.messages.protocol import NO_EPOCH, PROTOCOL
from raystream.messages.shares import SharePartitionInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class InitProducerRequest:
    """Asks for a producer id; with a transactional id for that one's, and its next epoch. `instance` names the producer
    that asks, so that a repeated call is told apart from a successor."""

    transactional_id: str | None = None
    transaction_timeout_ms: int = 60_000
    instance: str = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class InitProducerReply:
    producer_id: int
    producer_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest:
    """A member's sign of life, its wish and its state (KIP-848). `member_epoch` 0 joins, -1 leaves.

    `topics` are the names it subscribes to, `pattern` a regular expression instead. `owned` are the partitions it
    holds now: one that it was told to give up is free for others once it is missing here.

    `sequence` grows with every heartbeat of the member's life, also over joins (a repeated call keeps its own): one
    that arrives after a later one is refused. 0 is not counted.

    What it says when it joins: the `assignor` that it wants, its `instance_id` where it is a static member, and where
    it runs (`node_id` is the Ray node's). `asked_ms_ago` is how long ago its user last asked for records (-1: unknown).
    """

    group: str
    member_id: str
    member_epoch: int
    topics: tuple[str, ...] = ()
    pattern: str | None = None
    owned: tuple[tuple[str, int], ...] = ()
    client: str = ""
    session_timeout_ms: int = 10_000
    rebalance_timeout_ms: int = 60_000
    sequence: int = 0
    assignor: str = "sticky"
    instance_id: str = ""
    node_id: str = ""
    host: str = ""
    pid: int = 0
    asked_ms_ago: int = -1
    owners_wanted: bool = True
    """Whether it wants to hear who holds what, where it has nothing itself: a long list in a large group."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """`assigned`: what the member may hold now, as (topic, partition, epoch at which it was assigned).
    `owners`: who holds what in the group, filled while the member has nothing and wants to know."""

    member_epoch: int
    assigned: tuple[tuple[str, int, int], ...]
    group_epoch: int
    owners: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    topic: str
    partition: int
    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """Commits positions of a group. A member states itself and, per partition, the epoch in which it was assigned it;
    `member_id` "" is an administrator, heard only while the group has no members.

    `sequence` grows with every commit in the member's life: where one arrives after a later one, the later one's
    positions stay. 0 is not counted.
    """

    group: str
    member_id: str = ""
    member_epoch: int = NO_EPOCH
    offsets: tuple[CommittedOffset, ...]
    sequence: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """Names one group (or, for `list_groups`, "" for all of them). `partitions`: those of which `fetch_offsets` is to
    tell the positions; None: all."""

    group: str = ""
    partitions: tuple[tuple[str, int], ...] | None = None
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    member_id: str
    client: str
    epoch: int
    owned: tuple[tuple[str, int], ...]
    last_heartbeat_ms_ago: int
    last_poll_ms_ago: int = -1
    host: str = ""
    pid: int = 0
    node_id: str = ""
    instance_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    group: str
    state: str
    epoch: int
    topics: tuple[str, ...]
    members: tuple[MemberInfo, ...]
    offsets: tuple[CommittedOffset, ...]
    kind: str = "consumer"
    """Or "share", whose `offsets` are its start offsets, with the state of each partition in `shares`."""
    shares: tuple[SharePartitionInfo, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The change is durable."""

    protocol: int = PROTOCOL
