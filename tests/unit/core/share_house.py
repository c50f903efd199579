"""A coordinator with its log, for the decisions of share groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raystream import messages as m
from raystream.core.coordinator import Coordinator
from raystream.core.records import Decision
from raystream.core.share_groups import Acquired
from raystream.core.share_partition import SharePartition
from raystream.core.share_records import SharePartitionRecord

Ranges = list[tuple[int, int, int]]


class House:
    """A coordinator with its log, and one share group `w` over topic `t`."""

    def __init__(self, partitions: int = 1, **settings: Any) -> None:
        self.state = Coordinator()
        self.rows: list[Any] = []
        self.topics = {"t": partitions}
        self.now_ms = 0.0
        self.settings = {"lock_timeout_ms": 1_000, **settings}
        self.sequence = 0
        self.know()

    def done(self, decision: Decision) -> Any:
        for record in decision.records:
            self.state.replay(record, self.now_ms)
        self.rows += self.state.encode(decision.records)
        return decision.reply

    def know(self, *topics: str) -> None:
        self.done(self.state.know_topics({topic: f"id of {topic}" for topic in topics or self.topics}))

    def restart(self) -> None:
        self.state = Coordinator()
        for key, value in self.rows:
            self.state.replay_row(key, value, self.now_ms)
        self.know()

    def grow(self, end: int, partition: int = 0, start: int = 0) -> None:
        self.done(self.state.shares.know_end("t", "id of t", partition, end, start))

    def beat(self, member: str, intent: str = m.STAY, **fields: Any) -> m.ShareHeartbeatReply:
        self.sequence += 1
        how = {"topics": ("t",), "sequence": self.sequence, **(self.settings if intent == m.JOIN else {}), **fields}
        request = m.ShareHeartbeatRequest(group="w", member_id=member, intent=intent, **how)
        reply: m.ShareHeartbeatReply = self.done(self.state.share_heartbeat(request, self.topics, self.now_ms))
        return reply

    def join(self, *members: str, **fields: Any) -> None:
        for member in members:
            self.beat(member, m.JOIN, **fields)

    def acquire(
        self,
        member: str,
        most: int = 100,
        *,
        sequence: int = 0,
        received: int | None = None,
        dying_only: bool = False,
    ) -> Any:
        """What it gave, as (first, stop, deliveries) of partition 0, or with the partition where there are several."""
        self.sequence += 1
        number = sequence or self.sequence
        request = m.ShareAcquireRequest(
            group="w",
            member_id=member,
            max_records=most,
            sequence=number,
            received=number - 1 if received is None else received,
            dying_only=dying_only,
        )
        found: Acquired = self.done(self.state.shares.acquire(request, self.now_ms))
        self.watch = found.watch
        self.reasons = [given[5] for given in found.reply.ranges]
        if self.topics["t"] > 1:
            return [given[1:5] for given in found.reply.ranges]
        return [given[2:5] for given in found.reply.ranges]

    def say(
        self, member: str, kind: str, first: int, stop: int, *, sequence: int = 0, acquisition: int = 0
    ) -> Sequence[tuple[int, int]]:
        """What was refused."""
        self.sequence += 1
        request = m.ShareAcknowledgeRequest(
            group="w",
            member_id=member,
            ranges=(("t", 0, first, stop, kind, acquisition),),
            sequence=sequence or self.sequence,
        )
        reply: m.ShareAcknowledgeReply = self.done(self.state.shares.acknowledge(request, self.now_ms))
        return [gap[2:] for gap in reply.refused]

    def pass_ms(self, passed_ms: float) -> None:
        self.now_ms += passed_ms
        self.done(self.state.expire(self.now_ms))

    @property
    def partition(self) -> SharePartition:
        return self.state.shares._groups["w"].partitions["t", 0]

    @property
    def record(self) -> SharePartitionRecord:
        return self.partition.record
