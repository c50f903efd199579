"""What the coordinator writes down of share groups. Members and locks are not among it: they end with its life."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from raystream.core.records import Record, kind

AVAILABLE: Final = 0
ACCEPTED: Final = 1
ARCHIVED: Final = 2
SPENT: Final = 3
"""Delivered as often as may be: to be copied to the dead-letter topic, and archived once that is durable."""
REJECTED: Final = 4
"""Rejected by a member: likewise."""

Run = tuple[int, int, int, int]
"""First offset, the offset after the last, one of the states above, and how often the records were delivered."""


@kind
@dataclass(frozen=True, slots=True)
class ShareGroupRecord(Record):
    """A share group's settings; `dead_letter` "" is none."""

    KIND: ClassVar[str] = "share_group"
    IDENTITY: ClassVar[tuple[str, ...]] = ("group",)
    group: str
    max_deliveries: int
    lock_timeout_ms: int
    max_in_flight: int
    dead_letter: str = ""


@kind
@dataclass(frozen=True, slots=True)
class SharePartitionRecord(Record):
    """A share group's state in one partition: everything below `start_offset` is settled, `runs` say what is known from
    there on, and what lies beyond them is available and was never delivered. Whatever is acquired is written as
    available. The counts are of records since the group began; `topic_id` "" is not known."""

    KIND: ClassVar[str] = "share_partition"
    IDENTITY: ClassVar[tuple[str, ...]] = ("group", "topic", "partition")
    group: str
    topic: str
    partition: int
    start_offset: int
    topic_id: str = ""
    runs: tuple[Run, ...] = ()
    accepted: int = 0
    archived: int = 0
    dead_lettered: int = 0
    lost: int = 0
