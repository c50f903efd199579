"""The coordinator's whole state: groups with their offsets, and producer ids; one log replays into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from raystream import messages as m
from raystream.core.group_records import ProducerIdsRecord
from raystream.core.groups import Groups
from raystream.core.producer_ids import ProducerIds
from raystream.core.records import Decision, Pair, Record, Removed, from_pair, to_pair


class Coordinator:
    """Decides and replays; see `groups.Groups` for the rules. Whoever holds it writes a decision's records to the log
    before anybody learns of its reply, and throws the whole object away if that fails."""

    def __init__(self, coordinator: int = 0) -> None:
        self.groups = Groups()
        self._producer_ids = ProducerIds(coordinator)

    def init_producer(self, request: m.InitProducerRequest) -> Decision:
        """A producer id that nobody else has or had."""
        producer_id, records = self._producer_ids.allocate()
        return Decision(records, m.InitProducerReply(producer_id=producer_id, producer_epoch=0))

    def heartbeat(self, request: m.HeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        return self.groups.heartbeat(request, topics, now_ms)

    def commit(self, request: m.CommitRequest) -> Decision:
        return self.groups.commit(request)

    def fetch_offsets(self, request: m.GroupRequest) -> Decision:
        return Decision((), self.groups.fetch_offsets(request.group))

    def list_groups(self, now_ms: float) -> Decision:
        return Decision((), self.groups.list(now_ms))

    def describe_group(self, request: m.GroupRequest, now_ms: float) -> Decision:
        return Decision((), self.groups.describe(request.group, now_ms))

    def delete_group(self, request: m.GroupRequest) -> Decision:
        return self.groups.delete(request.group)

    def know_topics(self, topic_ids: Mapping[str, str]) -> Decision:
        """All topics that there are, name to id; see `Groups.know_topics`."""
        return self.groups.know_topics(topic_ids)

    def expire(self, now_ms: float) -> Decision:
        return self.groups.expire(now_ms)

    def expire_offsets(self, wall_ms: int) -> Decision:
        return self.groups.expire_offsets(wall_ms)

    def next_expiry_ms(self) -> float | None:
        return self.groups.next_expiry_ms()

    def replay(self, record: Record | Removed, now_ms: float) -> None:
        """Applies one record."""
        if isinstance(record, ProducerIdsRecord):
            self._producer_ids.replay(record)
        else:
            self.groups.replay(record, now_ms)

    def replay_row(self, key: bytes | None, value: bytes | None, now_ms: float) -> None:
        """Applies a row of the log."""
        self.replay(from_pair(key, value), now_ms)

    def snapshot(self) -> Iterator[Record | Removed]:
        """Records whose replay on an empty state gives this one; see `Groups.snapshot` on changes meanwhile."""
        yield from self._producer_ids.snapshot()
        yield from self.groups.snapshot()

    @staticmethod
    def encode(records: Sequence[Record | Removed]) -> list[Pair]:
        """Records as rows for the log."""
        return [to_pair(record) for record in records]
