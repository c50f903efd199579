"""What the coordinator writes down: groups, members, offsets, producer ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from raystream.core.records import Record, kind

Held = tuple[str, int, int]
"""Topic, partition, and the group epoch in which the member was assigned it."""


@kind
@dataclass(frozen=True, slots=True)
class GroupRecord(Record):
    """A group's epoch: it grows whenever members, subscriptions or partitions change. `empty_since_ms` notes since when
    (milliseconds since 1970) it is known to have positions and no members; 0: that is not so, or not noted yet."""

    KIND: ClassVar[str] = "group"
    IDENTITY: ClassVar[tuple[str, ...]] = ("group",)
    group: str
    epoch: int
    empty_since_ms: int = 0


@kind
@dataclass(frozen=True, slots=True)
class MemberRecord(Record):
    """A member: what it wants, what it may hold (`assigned`), and what it was told to give up and has not yet
    (`revoking`). `previous_epoch` is the epoch that it spoke with last, if it may not know `epoch` yet.

    A static member has an `instance_id`; `former` are the last member ids that the instance had before."""

    KIND: ClassVar[str] = "member"
    IDENTITY: ClassVar[tuple[str, ...]] = ("group", "member_id")
    group: str
    member_id: str
    client: str
    topics: tuple[str, ...]
    pattern: str | None
    session_timeout_ms: int
    rebalance_timeout_ms: int
    epoch: int
    previous_epoch: int
    assigned: tuple[Held, ...] = ()
    revoking: tuple[Held, ...] = ()
    assignor: str = "sticky"
    node_id: str = ""
    host: str = ""
    pid: int = 0
    instance_id: str = ""
    former: tuple[str, ...] = ()

    @property
    def holds(self) -> tuple[Held, ...]:
        """Everything that nobody else may have yet."""
        return self.assigned + self.revoking


@kind
@dataclass(frozen=True, slots=True)
class OffsetRecord(Record):
    """A group's position in a partition: the offset of the next record to read. `topic_id` "" is not known."""

    KIND: ClassVar[str] = "offset"
    IDENTITY: ClassVar[tuple[str, ...]] = ("group", "topic", "partition")
    group: str
    topic: str
    partition: int
    offset: int
    metadata: str = ""
    topic_id: str = ""


@kind
@dataclass(frozen=True, slots=True)
class ProducerIdsRecord(Record):
    """Producer ids below `next_id` are given out, or may be."""

    KIND: ClassVar[str] = "producer_ids"
    IDENTITY: ClassVar[tuple[str, ...]] = ()
    next_id: int
