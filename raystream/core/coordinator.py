"""The coordinator's whole state: groups with their offsets, and producer ids; one log replays into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raystream import messages as m
from raystream.core.group_records import ProducerIdsRecord
from raystream.core.groups import Decision, Groups
from raystream.core.producer_ids import ProducerIds
from raystream.core.records import Pair, Record, Removed, from_pair, to_pair


class Coordinator:
    """Decides and replays; see `groups.Groups` for the rules. Whoever holds it writes a decision's records to the log
    before anybody learns of its reply, and throws the whole object away if that fails."""

    def __init__(self) -> None:
        self.groups = Groups()
        self._producer_ids = ProducerIds()

    def init_producer(self, request: m.InitProducerRequest) -> Decision:
        """A producer id that nobody else has or had."""
        producer_id, records = self._producer_ids.allocate()
        return Decision(tuple(records), m.InitProducerReply(producer_id=producer_id, producer_epoch=0))

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

    def drop_topics(self, topics: set[str]) -> Decision:
        return self.groups.drop_topics(topics)

    def expire(self, now_ms: float) -> Decision:
        return self.groups.expire(now_ms)

    def next_expiry_ms(self) -> float | None:
        return self.groups.next_expiry_ms()

    def replay(self, record: Record | Removed, now_ms: float) -> None:
        """Applies a record of this life."""
        self._replay(record, now_ms, own=True)

    def replay_row(self, key: bytes | None, value: bytes | None, now_ms: float) -> None:
        """Applies a row of the log as an earlier life wrote it."""
        self._replay(from_pair(key, value), now_ms, own=False)

    def _replay(self, record: Record | Removed, now_ms: float, *, own: bool) -> None:
        if isinstance(record, ProducerIdsRecord):
            self._producer_ids.replay(record, own=own)
        else:
            self.groups.replay(record, now_ms)

    @staticmethod
    def encode(records: Sequence[Record | Removed]) -> list[Pair]:
        """Records as rows for the log."""
        return [to_pair(record) for record in records]
