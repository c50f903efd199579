"""A coordinator of transactions for the producing side: the core's own decisions, markers written at once or on order,
and calls that are carried out and not answered."""

from __future__ import annotations

from collections import deque
from typing import Any

from raystream import messages as m
from raystream.batch import encode_marker, parse
from raystream.core.coordinator import Coordinator
from raystream.core.records import Decision
from raystream.errors import ConcurrentTransactions, RequestTimeout
from tests.fakes.cluster import FakeCluster, FakeCoordinator, FakePartition, FakeTopic


class TransactionalCoordinator(FakeCoordinator):
    """`lose` names calls of which the next reply is lost; `markers` False leaves them to `write_markers`."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__()
        self._cluster = cluster
        self.state = Coordinator()
        self.lose: deque[str] = deque()
        self.calls: list[str] = []
        self.markers = True
        cluster.coordinator_port = self

    def _now_ms(self) -> float:
        return self._cluster.clock.monotonic_ms()

    def _done(self, name: str, decision: Decision) -> Any:
        self.calls.append(name)
        for record in decision.records:
            self.state.replay(record, self._now_ms())
        if self.markers:
            self.write_markers()
        if self.lose and self.lose[0] == name:
            self.lose.popleft()
            raise RequestTimeout("no answer")
        if isinstance(decision.reply, Exception):
            raise decision.reply
        return decision.reply

    def write_markers(self) -> None:
        for record in self.state.transactions.prepared():
            for topic, _, number in record.partitions:
                request = m.WriteMarkerRequest(
                    topic_id="",
                    partition=number,
                    producer_id=record.producer_id,
                    producer_epoch=record.epoch,
                    commit=record.commits,
                )
                mark(self._cluster.topics[topic].partitions[number], request)
            for done in self.state.transactions.complete(record).records:
                self.state.replay(done, self._now_ms())

    def expire(self) -> None:
        self._done("expire", self.state.expire(self._now_ms()))

    async def init_producer(self, request: m.InitProducerRequest, *, timeout_ms: float) -> m.InitProducerReply:
        reply: m.InitProducerReply = self._done("init", self.state.init_producer(request))
        return reply

    async def add_partitions(self, request: m.AddPartitionsRequest, *, timeout_ms: float) -> m.Done:
        reply: m.Done = self._done("add", self.state.transactions.add_partitions(request))
        return reply

    async def end_transaction(self, request: m.EndTransactionRequest, *, timeout_ms: float) -> m.EndTransactionReply:
        reply: m.EndTransactionReply = self._done("end", self.state.end_transaction(request))
        if not reply.complete:
            if self.markers:  # they have been written just now
                reply = self._done("end", self.state.end_transaction(request))
            else:
                raise ConcurrentTransactions("not every partition has heard of it")
        return reply


def mark(partition: FakePartition, request: m.WriteMarkerRequest) -> None:
    """Ends a transaction in a partition; a second time it changes nothing."""
    if partition.producers.marked(request.producer_id, request.producer_epoch):
        return
    data = encode_marker(
        partition.schema,
        topic_id=partition.topic_id,
        partition=partition.number,
        schema_id=1,
        producer_id=request.producer_id,
        producer_epoch=request.producer_epoch,
        commit=request.commit,
        now_ms=0,
    )
    partition.write(parse(data), bytes(data))


def committed(partition: FakePartition, column: str = "value") -> list[Any]:
    """What a reader of what is committed sees."""
    aborted = partition.producers.aborted.entries
    stable = partition.producers.last_stable_offset(partition.end_offset, 0)
    found: list[Any] = []
    base = 0
    for header, rows in zip(partition.headers, partition.batches, strict=True):
        taken_back = any(
            e.producer_id == header.producer_id and e.first_offset <= base <= e.last_offset for e in aborted
        )
        if base < stable and not taken_back and not header.is_control:
            found += rows.column(column).to_pylist()
        base += header.last_offset_delta + 1
    return found


def seen(topic: FakeTopic) -> list[bytes]:
    """What is committed in all partitions, one after the other."""
    return [value for partition in topic.partitions for value in committed(partition)]
