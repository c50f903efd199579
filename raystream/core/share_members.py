"""Members of share groups, and what they may ask for: all of it soft, a coordinator that begins anew knows nobody."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from raystream import messages as m
from raystream.core import arguments
from raystream.core.membership import (
    MAX_CLIENT_CHARACTERS,
    MAX_PATTERN_CHARACTERS,
    MAX_SUBSCRIBED_TOPICS,
    MAX_TIMEOUT_MS,
    check_name,
)
from raystream.core.share_partition import SharePartition
from raystream.core.share_records import ShareGroupRecord
from raystream.core.targets import compiled
from raystream.core.topic_names import MAX_NAME_CHARACTERS, is_internal
from raystream.errors import InvalidArgument

MAX_SHARE_MEMBERS: Final = 2_000
MAX_RECORDS: Final = 100_000
MAX_RANGES: Final = 10_000
MAX_DELIVERIES: Final = 10_000
MAX_IN_FLIGHT: Final = 100_000
INTENTS: Final = (m.JOIN, m.STAY, m.LEAVE)
KINDS: Final = (m.ACCEPT, m.RELEASE, m.REJECT, m.RENEW, m.RETURN, m.GAP, m.GONE, m.BURIED)


@dataclass(slots=True)
class ShareMember:
    """A member. `sequence` is its latest call that was heard, `acquired` the latest acquisition that gave it something,
    `acknowledged` its latest acknowledgement with what was answered."""

    member_id: str
    client: str
    topics: tuple[str, ...]
    session_timeout_ms: int
    heard_ms: float
    sequence: int = 0
    acquired: int = 0
    acknowledged: tuple[int, m.ShareAcknowledgeReply] = (0, m.ShareAcknowledgeReply())
    pattern: str | None = None
    """What the names of its topics match, where it does not name them."""

    @property
    def due_ms(self) -> float:
        """When it is counted as dead unless it is heard."""
        return self.heard_ms + self.session_timeout_ms

    def hear(self, sequence: int, now_ms: float) -> None:
        """The member gave a sign of life."""
        self.heard_ms = now_ms
        self.sequence = max(self.sequence, sequence)


@dataclass(slots=True)
class ShareGroup:
    """A share group: its settings and partitions are durable, the rest is soft. `turn` is which partition comes first
    at the next acquisition; `counts` are the partition counts by which its partitions were opened last."""

    settings: ShareGroupRecord
    partitions: dict[tuple[str, int], SharePartition] = field(default_factory=dict)
    members: dict[str, ShareMember] = field(default_factory=dict)
    turn: int = 0
    counts: object = None

    def reads(self, member: ShareMember, topic: str) -> bool:
        """Whether the topic is one of the member's. Dead letters do not come round, whatever a pattern says."""
        if member.pattern is None:
            return topic in member.topics
        return (
            topic != self.settings.dead_letter
            and not is_internal(topic)
            and bool(compiled(member.pattern).fullmatch(topic))
        )

    def wanted(self, topics: Iterable[str]) -> set[str]:
        """Those topics that some member reads."""
        names = {topic for member in self.members.values() if member.pattern is None for topic in member.topics}
        patterns = {member.pattern: member for member in self.members.values() if member.pattern is not None}
        matched = {topic for topic in topics for member in patterns.values() if self.reads(member, topic)}
        return names | matched

    def has_dying(self) -> bool:
        """Whether records are to be buried, and nobody has acquired them."""
        return bool(self.settings.dead_letter) and any(p.has_dying() for p in self.partitions.values())

    def info(self, now_ms: float) -> m.GroupInfo:
        """What an administrator sees of it."""
        return m.GroupInfo(
            group=self.settings.group,
            kind="share",
            state="stable" if self.members else "empty",
            epoch=0,
            topics=tuple(sorted({topic for topic, _ in self.partitions})),
            members=tuple(
                m.MemberInfo(
                    member_id=member.member_id,
                    client=member.client,
                    epoch=0,
                    owned=(),
                    last_heartbeat_ms_ago=int(now_ms - member.heard_ms),
                )
                for _, member in sorted(self.members.items())
            ),
            offsets=tuple(
                m.CommittedOffset(topic, number, partition.record.start_offset)
                for (topic, number), partition in sorted(self.partitions.items())
            ),
            shares=tuple(partition.info() for _, partition in sorted(self.partitions.items())),
        )


def check_heartbeat(request: m.ShareHeartbeatRequest) -> None:
    """Raises InvalidArgument."""
    check_name("share group", request.group)
    check_name("member id", request.member_id)
    if request.intent not in INTENTS:
        raise InvalidArgument(f"intent={request.intent!r} is none of {', '.join(INTENTS)}")
    if request.intent != m.JOIN:
        return
    arguments.text("a client's description", request.client, at_least=0, at_most=MAX_CLIENT_CHARACTERS)
    if request.pattern is not None:
        if request.topics:
            raise InvalidArgument("a member of a share group names topics, or gives a pattern, not both")
        compiled(arguments.text("the topic pattern", request.pattern, at_least=1, at_most=MAX_PATTERN_CHARACTERS))
    elif not 1 <= len(request.topics) <= MAX_SUBSCRIBED_TOPICS:
        raise InvalidArgument(f"a member of a share group names 1 to {MAX_SUBSCRIBED_TOPICS:,} topics")
    for topic in (*request.topics, *([request.dead_letter] if request.dead_letter else [])):
        arguments.text("topic name", topic, at_least=1, at_most=MAX_NAME_CHARACTERS)
    _check_range("session_timeout_ms", request.session_timeout_ms, 1, MAX_TIMEOUT_MS)
    _check_range("lock_timeout_ms", request.lock_timeout_ms, 1, MAX_TIMEOUT_MS)
    _check_range("max_deliveries", request.max_deliveries, 1, MAX_DELIVERIES)
    _check_range("max_in_flight", request.max_in_flight, 1, MAX_IN_FLIGHT)
    for topic, partition, offset in request.starts:
        if request.pattern is None and topic not in request.topics:
            raise InvalidArgument(f"a start is named for topic {topic!r}, which the member does not subscribe to")
        _check_range("partition", partition, 0, 2**31 - 1)
        _check_range("offset", offset, 0, 2**63 - 1)


def check_acquire(request: m.ShareAcquireRequest) -> None:
    """Raises InvalidArgument."""
    _check_range("max_records", request.max_records, 1, MAX_RECORDS)


def check_acknowledge(request: m.ShareAcknowledgeRequest) -> None:
    """Raises InvalidArgument; then nothing is acknowledged."""
    if len(request.ranges) > MAX_RANGES:
        raise InvalidArgument(f"one call acknowledges up to {MAX_RANGES:,} ranges, not {len(request.ranges):,}")
    for _topic, _partition, first, stop, kind, acquisition in request.ranges:
        if kind not in KINDS:
            raise InvalidArgument(f"{kind!r} is no acknowledgement: there are {', '.join(KINDS)}")
        _check_range("offset", first, 0, 2**63 - 1)
        _check_range("offset", stop, first + 1, 2**63 - 1)
        _check_range("acquisition", acquisition, 0, 2**63 - 1)


def _check_range(what: str, value: object, low: int, high: int) -> None:
    number = arguments.whole(what, value)
    if not low <= number <= high:
        raise InvalidArgument(f"{what}={number} lies outside {low:,} to {high:,}")
