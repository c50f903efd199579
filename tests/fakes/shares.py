"""The share groups of a fake coordinator: the product's own decisions, on the client's loop, without a log."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any

from raystream import messages as m
from raystream.client.share_consumer import ShareConsumer
from raystream.config import ShareConfig, build
from raystream.core.records import Decision
from raystream.core.share_groups import Acquired, ShareGroups

Ends = Callable[[], Mapping[tuple[str, int], tuple[str, int, int]]]
"""(topic, partition) to the topic's id, the end and the start of the log."""


class ShareDoors:
    """Mixed into a fake coordinator. `serve_shares` says what topics there are."""

    def __init__(self) -> None:
        self.shares = ShareGroups()
        self.share_calls: list[Any] = []
        self.share_errors: list[Exception] = []
        """Raised one by one instead of answering; one that is an `After` has the call happen first."""
        self._ends: Ends = dict

    def serve_shares(self, ends: Ends) -> None:
        self._ends = ends

    def _share_done(self, call: Callable[[float], Decision]) -> Any:
        now_ms = time.monotonic() * 1000
        ends = self._ends()
        self._replay(self.shares.know_topics({topic: topic_id for (topic, _), (topic_id, _, _) in ends.items()}))
        for (topic, number), (topic_id, end, start) in ends.items():
            self._replay(self.shares.know_end(topic, topic_id, number, end, start))
        self._replay(self.shares.expire(now_ms))
        return self._replay(call(now_ms))

    def _replay(self, decision: Decision) -> Any:
        for record in decision.records:
            self.shares.replay(record)
        return decision.reply

    def _share_call(self, request: Any, call: Callable[[float], Decision]) -> Any:
        self.share_calls.append(request)
        error = self.share_errors.pop(0) if self.share_errors else None
        if error is not None and not getattr(error, "after", False):
            raise error
        reply = self._share_done(call)
        if error is not None:
            raise error
        return reply

    async def share_heartbeat(self, request: m.ShareHeartbeatRequest, *, timeout_ms: float) -> m.ShareHeartbeatReply:
        counts: dict[str, int] = {}
        for topic, _ in self._ends():
            counts[topic] = counts.get(topic, 0) + 1
        reply: m.ShareHeartbeatReply = self._share_call(
            request, lambda now_ms: self.shares.heartbeat(request, counts, now_ms)
        )
        return reply

    async def share_acquire(self, request: m.ShareAcquireRequest, *, timeout_ms: float) -> m.ShareAcquireReply:
        until = time.monotonic() + request.max_wait_ms / 1000
        found: Acquired = self._share_call(request, lambda now_ms: self.shares.acquire(request, now_ms))
        while not found.reply.ranges and time.monotonic() < until:
            await asyncio.sleep(0.005)
            found = self._share_done(lambda now_ms: self.shares.acquire(request, now_ms))
        return found.reply

    async def share_acknowledge(
        self, request: m.ShareAcknowledgeRequest, *, timeout_ms: float
    ) -> m.ShareAcknowledgeReply:
        reply: m.ShareAcknowledgeReply = self._share_call(
            request, lambda now_ms: self.shares.acknowledge(request, now_ms)
        )
        return reply


def open_share(
    cluster: Any, topics: Any = "t", share: str = "workers", start: Any = "earliest", **how: Any
) -> ShareConsumer:
    """A member with short intervals, of a FakeCluster whose coordinator knows what its partitions hold."""

    def ends() -> dict[tuple[str, int], tuple[str, int, int]]:
        return {
            (name, part.partition): (part.topic_id, part.end_offset, part.start_offset)
            for name, topic in cluster.topics.items()
            for part in topic.partitions
        }

    cluster.coordinator_port.serve_shares(ends)
    names = ("key_deserializer", "value_deserializer", "client_id", "dead_letter")
    arguments = {name: how.pop(name) for name in names if name in how}
    config = build(ShareConfig, {"heartbeat_interval_ms": 50, "fetch_max_wait_ms": 100} | how)
    return ShareConsumer(cluster.routing, cluster.loop, config, topics=topics, share=share, start=start, **arguments)
