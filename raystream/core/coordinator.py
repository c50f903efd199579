"""The coordinator's whole state: groups, share groups, producer ids, transactions; one log replays into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from raystream import messages as m
from raystream.core.group_records import ProducerIdsRecord
from raystream.core.groups import Groups
from raystream.core.producer_ids import ProducerIds
from raystream.core.records import Decision, Pair, Record, Removed, from_pair, identity, to_pair
from raystream.core.share_groups import ShareGroups
from raystream.core.share_records import ShareGroupRecord, SharePartitionRecord
from raystream.core.transaction_records import TransactionRecord
from raystream.core.transactions import Transactions
from raystream.errors import InvalidArgument

_SHARE_KINDS: Final = (ShareGroupRecord.KIND, SharePartitionRecord.KIND)


class Coordinator:
    """Decides and replays; see `groups.Groups` for the rules. Whoever holds it writes a decision's records to the log
    before anybody learns of its reply, and throws the whole object away if that fails."""

    def __init__(self, coordinator: int = 0) -> None:
        self.groups = Groups()
        self.shares = ShareGroups()
        self._producer_ids = ProducerIds(coordinator)
        self.transactions = Transactions(self._producer_ids.allocate)

    def init_producer(self, request: m.InitProducerRequest) -> Decision:
        """A producer id that nobody else has or had, or that of a transactional id: see `Transactions.init`."""
        if request.transactional_id is not None:
            return self.transactions.init(request)
        producer_id, records = self._producer_ids.allocate()
        return Decision(records, m.InitProducerReply(producer_id=producer_id, producer_epoch=0))

    def end_transaction(self, request: m.EndTransactionRequest) -> Decision:
        """See `Transactions.end`. The positions that go with a commit are checked as any commit's and move in the same
        step; where one may not move, nothing is decided, and its error is raised."""
        decision = self.transactions.end(request)
        if not (decision.records and request.commit):
            return decision
        moved = [record for commit in request.offsets for record in self.groups.commit(commit).records]
        return Decision((*decision.records, *moved), decision.reply)

    def heartbeat(self, request: m.HeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        if request.group in self.shares:
            raise InvalidArgument(f"{request.group!r} is a share group: its consumers give share={request.group!r}")
        return self.groups.heartbeat(request, topics, now_ms)

    def share_heartbeat(self, request: m.ShareHeartbeatRequest, topics: Mapping[str, int], now_ms: float) -> Decision:
        if request.group in self.groups:
            raise InvalidArgument(f"{request.group!r} is a consumer group: its consumers give group={request.group!r}")
        return self.shares.heartbeat(request, topics, now_ms)

    def commit(self, request: m.CommitRequest) -> Decision:
        return self.shares.reset(request) if request.group in self.shares else self.groups.commit(request)

    def fetch_offsets(self, request: m.GroupRequest) -> Decision:
        return Decision((), self.groups.fetch_offsets(request.group, request.partitions))

    def list_groups(self, now_ms: float) -> Decision:
        return Decision((), (*self.groups.list(now_ms), *self.shares.list(now_ms)))

    def describe_group(self, request: m.GroupRequest, now_ms: float) -> Decision:
        groups = self.shares if request.group in self.shares else self.groups
        return Decision((), groups.describe(request.group, now_ms))

    def delete_group(self, request: m.GroupRequest) -> Decision:
        return self.shares.delete(request.group) if request.group in self.shares else self.groups.delete(request.group)

    def know_topics(self, topic_ids: Mapping[str, str]) -> Decision:
        """All topics that there are, name to id; see `Groups.know_topics`."""
        return Decision(self.groups.know_topics(topic_ids).records + self.shares.know_topics(topic_ids).records)

    def expire(self, now_ms: float) -> Decision:
        expired = (part.expire(now_ms).records for part in (self.groups, self.shares, self.transactions))
        return Decision(tuple(record for records in expired for record in records))

    def expire_offsets(self, wall_ms: int) -> Decision:
        return self.groups.expire_offsets(wall_ms)

    def next_expiry_ms(self) -> float | None:
        parts = (self.groups, self.shares, self.transactions)
        return min((due for part in parts if (due := part.next_expiry_ms()) is not None), default=None)

    def replay(self, record: Record | Removed, now_ms: float) -> None:
        """Applies one record."""
        if isinstance(record, ProducerIdsRecord):
            self._producer_ids.replay(record)
        elif (record.kind if isinstance(record, Removed) else record.KIND) in _SHARE_KINDS:
            self.shares.replay(record)
        elif isinstance(record, TransactionRecord) or (
            isinstance(record, Removed) and record.kind == TransactionRecord.KIND
        ):
            self.transactions.replay(record, now_ms)
        else:
            self.groups.replay(record, now_ms)

    def replay_row(self, key: bytes | None, value: bytes | None, now_ms: float) -> None:
        """Applies a row of the log."""
        self.replay(from_pair(key, value), now_ms)

    def snapshot(self) -> Iterator[Record | Removed]:
        """Records whose replay on an empty state gives this one; see `Groups.snapshot` on changes meanwhile."""
        yield from self._producer_ids.snapshot()
        yield from self.transactions.snapshot()
        yield from self.groups.snapshot()
        yield from self.shares.snapshot()

    @staticmethod
    def encode(records: Sequence[Record | Removed]) -> list[Pair]:
        """Records of one append as rows for the log. Of a share partition's the last says all that is to be said."""
        last = {identity(record): at for at, record in enumerate(records) if isinstance(record, SharePartitionRecord)}
        return [
            to_pair(record)
            for at, record in enumerate(records)
            if not isinstance(record, SharePartitionRecord) or last[identity(record)] == at
        ]
