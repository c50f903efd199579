"""A cluster of plain objects for the producing side: partitions that keep what they are sent by the log's own rules of
idempotence, and faults on order. Every port runs on the client's own loop; tests steer from their thread."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import pyarrow as pa

from raystream import messages as m
from raystream.batch import BatchHeader, Bytes, check_producer_crc, decode, parse, row_count
from raystream.client.loop import BackgroundLoop
from raystream.client.partitioner import Partitioner
from raystream.client.producer import Producer
from raystream.client.routing import Routing
from raystream.client.transactional_producer import producer_kind
from raystream.clock import Clock, SystemClock
from raystream.config import ProducerConfig, TopicConfig, build, changed
from raystream.core.reorder import ReorderBuffer
from raystream.errors import (
    ActorLost,
    NotLeader,
    OutOfOrderSequence,
    PartitionNotFound,
    RequestTimeout,
    TopicNotFound,
)
from raystream.ports import ControllerPort, CoordinatorPort, PartitionPort
from raystream.schema import RAW_SCHEMA, stored_schema
from raystream.storage.producer_state import Duplicate, ProducerState
from tests.fakes.brokers import NO_LEADER, FakeBrokers, Placed
from tests.fakes.shares import ShareDoors

NODE = "node-a"
REORDER_WAIT_MS = 200.0


@dataclass
class Fault:
    """What happens to one append: an error instead of it (`before`) or after it was written (`after`), a delay before
    it arrives, or its arrival only once `gate` is opened."""

    before: Exception | None = None
    after: Exception | None = None
    delay_ms: float = 0.0
    gate: asyncio.Event | None = None
    late: bool = False
    """The caller hears RequestTimeout at once, and the batch arrives all the same, after the delay or the gate."""


def lost_request() -> Fault:
    return Fault(before=ActorLost("the actor died before it wrote"))


def lost_reply() -> Fault:
    return Fault(after=RequestTimeout("no answer"))


def refused(error: Exception) -> Fault:
    return Fault(before=error)


class FakePartition:
    """A PartitionPort over lists. `faults` are used up by appends in the order in which they arrive."""

    def __init__(self, topic_id: str, number: int, schema: pa.Schema, clock: Clock) -> None:
        self.topic_id = topic_id
        self.number = number
        self.schema = schema
        self.headers: list[BatchHeader] = []
        self.batches: list[pa.RecordBatch] = []
        self.sizes: list[int] = []
        self.requests: list[m.AppendRequest] = []
        self.faults: deque[Fault] = deque()
        self.fault: Callable[[BatchHeader], Fault | None] | None = None
        """Decides where `faults` has none."""
        self.end_offset = 0
        self.placed = Placed()
        self.in_flight = 0
        self.most_in_flight = 0
        self.keep = True
        """False: count only, for benchmarks."""
        self._clock = clock
        self.producers = ProducerState(clock)
        self._early: ReorderBuffer[asyncio.Future[m.AppendReply]] = ReorderBuffer(max_wait_ms=REORDER_WAIT_MS)
        self._late: set[asyncio.Task[Any]] = set()

    async def append(self, request: m.AppendRequest, batch: Bytes, *, timeout_ms: float) -> m.AppendReply:
        self.requests.append(request)
        data = bytes(batch)
        if not self.keep:
            await asyncio.sleep(0)
            header = parse(data)
            return self.write(header, data)
        header = parse(data)
        fault = self.faults.popleft() if self.faults else (self.fault(header) if self.fault else None)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            if fault is not None and fault.late:
                task = asyncio.ensure_future(self._arrive(request, header, data, fault))
                self._late.add(task)
                task.add_done_callback(self._forget_late)
                raise RequestTimeout("no answer")
            return await asyncio.wait_for(self._arrive(request, header, data, fault), timeout_ms / 1000)
        except TimeoutError as error:
            if isinstance(error, RequestTimeout):
                raise
            raise RequestTimeout(f"no answer within {timeout_ms:.0f} ms") from None
        finally:
            self.in_flight -= 1

    def _forget_late(self, task: asyncio.Task[Any]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # nobody hears it

    async def _arrive(
        self, request: m.AppendRequest, header: BatchHeader, data: bytes, fault: Fault | None
    ) -> m.AppendReply:
        if fault is not None:
            if fault.gate is not None:
                await fault.gate.wait()
            await asyncio.sleep(fault.delay_ms / 1000)
            if fault.before is not None:
                raise fault.before
        if request.topic_id != self.topic_id:
            raise NotLeader("no such partition here")
        check_producer_crc(memoryview(data), header)
        assert (header.topic_id, header.partition) == (self.topic_id, self.number)
        assert row_count(data, header) == header.last_offset_delta + 1
        reply = await self._place(header, data, request.age_ms)
        if fault is not None and fault.after is not None:
            raise fault.after
        return reply

    async def _place(self, header: BatchHeader, data: bytes, age_ms: int) -> m.AppendReply:
        try:
            verdict = self.producers.check(header, age_ms=age_ms)
        except OutOfOrderSequence:
            turn: asyncio.Future[m.AppendReply] = asyncio.get_running_loop().create_future()
            now = self._clock.monotonic_ms()
            displaced = self._early.offer(header.producer_id, header.base_sequence, turn, now)
            if displaced is None:
                raise
            for other in displaced:
                if not other.done():
                    other.cancel()
            done, _ = await asyncio.wait({turn}, timeout=REORDER_WAIT_MS / 1000)
            if not done:
                self._early.expired(self._clock.monotonic_ms() + 1)
                raise
            if turn.cancelled():
                raise
            return await self._place(header, data, age_ms)
        if isinstance(verdict, Duplicate):
            return self._reply(verdict.base_offset, duplicate=True)
        reply = self.write(header, data)
        following = self._early.release_after(
            header.producer_id, (header.base_sequence + header.last_offset_delta + 1) % 2**31
        )
        if following is not None and not following.done():
            following.set_result(reply)
        return reply

    def write(self, header: BatchHeader, data: bytes) -> m.AppendReply:
        base = self.end_offset
        self.producers.record(header, base, self._clock.now_ms())
        self.end_offset += header.last_offset_delta + 1
        self.headers.append(header)
        self.sizes.append(len(data))
        if self.keep:
            self.batches.append(decode(data, self.schema))
        return self._reply(base)

    def _reply(self, base: int, *, duplicate: bool = False) -> m.AppendReply:
        return m.AppendReply(
            base_offset=base,
            append_time_ms=self._clock.now_ms(),
            leader_epoch=1,
            high_watermark=self.end_offset,
            duplicate=duplicate,
        )

    def column(self, name: str = "value") -> list[Any]:
        """Everything in the log, in order."""
        return list(itertools.chain.from_iterable(batch.column(name).to_pylist() for batch in self.batches))

    def rows(self) -> list[dict[str, Any]]:
        return list(itertools.chain.from_iterable(batch.to_pylist() for batch in self.batches))

    async def fetch(self, request: m.FetchRequest, *, timeout_ms: float) -> m.FetchReply:
        raise NotImplementedError

    async def write_marker(self, request: m.WriteMarkerRequest, *, timeout_ms: float) -> m.AppendReply:
        raise NotImplementedError

    async def list_offsets(self, request: m.ListOffsetsRequest, *, timeout_ms: float) -> m.OffsetReply:
        raise NotImplementedError

    async def delete_records(self, request: m.DeleteRecordsRequest, *, timeout_ms: float) -> m.OffsetReply:
        raise NotImplementedError

    async def status(self, *, timeout_ms: float) -> tuple[m.ReplicaStatus, ...]:
        held = m.ReplicaStatus(
            topic_id=self.topic_id,
            partition=self.number,
            leader_epoch=self.placed.leader_epoch,
            start_offset=0,
            end_offset=self.end_offset,
            high_watermark=self.end_offset,
            size_bytes=sum(self.sizes),
            segments=1,
        )
        return (held,)


class FakeCoordinator(ShareDoors):
    """Hands out producer ids."""

    def __init__(self) -> None:
        super().__init__()
        self.producer_ids = itertools.count(1)
        self.handed_out = 0
        self.errors: deque[Exception] = deque()
        self.down: Exception | None = None

    async def init_producer(self, request: m.InitProducerRequest, *, timeout_ms: float) -> m.InitProducerReply:
        if self.down is not None:
            raise self.down
        if self.errors:
            raise self.errors.popleft()
        self.handed_out += 1
        return m.InitProducerReply(producer_id=next(self.producer_ids), producer_epoch=0)

    async def add_partitions(self, request: m.AddPartitionsRequest, *, timeout_ms: float) -> m.Done:
        raise NotImplementedError

    async def end_transaction(self, request: m.EndTransactionRequest, *, timeout_ms: float) -> m.EndTransactionReply:
        raise NotImplementedError

    async def heartbeat(self, request: m.HeartbeatRequest, *, timeout_ms: float) -> m.HeartbeatReply:
        raise NotImplementedError

    async def commit(self, request: m.CommitRequest, *, timeout_ms: float) -> m.Done:
        raise NotImplementedError

    async def fetch_offsets(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.CommittedOffset, ...]:
        raise NotImplementedError

    async def list_groups(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.GroupInfo, ...]:
        raise NotImplementedError

    async def describe_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.GroupInfo:
        raise NotImplementedError

    async def delete_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.Done:
        raise NotImplementedError


@dataclass
class FakeTopic:
    name: str
    topic_id: str
    schema: pa.Schema
    typed: bool
    key: str | None
    time: str | None
    config: Mapping[str, Any]
    partitions: list[FakePartition]
    replication_factor: int = 1
    offline: set[int] = field(default_factory=set)

    def metadata(self) -> m.TopicMetadata:
        return m.TopicMetadata(
            name=self.name,
            topic_id=self.topic_id,
            typed=self.typed,
            schemas=(self.schema.serialize().to_pybytes(),),
            key=self.key,
            time=self.time,
            config=self.config,
            replication_factor=self.replication_factor,
            partitions=tuple(self._partition(part) for part in self.partitions),
        )

    def _partition(self, part: FakePartition) -> m.PartitionMetadata:
        served = part.placed.leader != NO_LEADER and part.number not in self.offline
        return m.PartitionMetadata(
            partition=part.number,
            leader=part.placed.leader,
            leader_epoch=part.placed.leader_epoch,
            replicas=part.placed.replicas,
            isr=part.placed.isr,
            actor=f"{self.name}/{part.number}" if served else "",
            node_id=NODE,
        )

    def column(self, name: str = "value") -> list[Any]:
        """Everything in the topic, by partition."""
        return [value for part in self.partitions for value in part.column(name)]


class FakeCluster:
    """Directory and controller in one; owns the client's loop. A context manager."""

    def __init__(self, clock: Clock | None = None, *, brokers: int = 1) -> None:
        self.loop = BackgroundLoop("fake-cluster")
        self.clock = clock or SystemClock()
        self.topics: dict[str, FakeTopic] = {}
        self.brokers = FakeBrokers(brokers)
        self.changes: list[Any] = []
        """What an administrator has asked for, in order."""
        self.coordinator_port = FakeCoordinator()
        self.routing = Routing(self, self.clock)
        self.controller_down: Exception | None = None
        self.metadata_requests = 0
        self._producers: list[Producer] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self._producers:
            producer._ledger.take_failures()
            producer.close(5)
        self.loop.stop()

    def create(
        self,
        name: str = "t",
        partitions: int = 1,
        *,
        replication_factor: int = 1,
        schema: pa.Schema | None = None,
        key: str | None = None,
        time: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> FakeTopic:
        build(TopicConfig, config or {})
        topic_id = uuid.uuid4().hex
        stored = RAW_SCHEMA if schema is None else stored_schema(schema)
        topic = FakeTopic(name, topic_id, stored, schema is not None, key, time, config or {}, [], replication_factor)
        self.topics[name] = topic
        self.grow(name, partitions)
        return topic

    def grow(self, name: str, partitions: int) -> None:
        topic = self.topics[name]
        for number in range(len(topic.partitions), partitions):
            part = FakePartition(topic.topic_id, number, topic.schema, self.clock)
            part.placed = self.brokers.place(number, topic.replication_factor)
            topic.partitions.append(part)

    def placed(self, name: str | None = None) -> list[Placed]:
        """Where the replicas of one topic's partitions are, or of all."""
        topics = self.topics.values() if name is None else [self._topic(name)]
        return [part.placed for topic in topics for part in topic.partitions]

    def fence(self, broker_id: int) -> None:
        """The broker is not heard any more."""
        self.on_loop(self.brokers.fence, broker_id, self.placed())

    def unfence(self, broker_id: int) -> None:
        """It is heard again, and has what it had: it catches up at once."""
        self.on_loop(self.brokers.unfence, broker_id, self.placed())

    def _topic(self, name: str) -> FakeTopic:
        if name not in self.topics:
            raise TopicNotFound(f"there is no topic {name!r}")
        return self.topics[name]

    def producer(
        self,
        *,
        key_serializer: Callable[[Any], bytes | None] | None = None,
        value_serializer: Callable[[Any], bytes | None] | None = None,
        partitioner: Partitioner | None = None,
        client_id: str = "",
        transactional_id: str | None = None,
        **settings: Any,
    ) -> Producer:
        producer = producer_kind(transactional_id)(
            self.routing,
            self.loop,
            build(ProducerConfig, settings),
            key_serializer=key_serializer,
            value_serializer=value_serializer,
            partitioner=partitioner,
            client_id=client_id,
        )
        self._producers.append(producer)
        return producer

    def hold(self, partition: FakePartition) -> asyncio.Event:
        """The partition answers nothing until the event is set on the loop."""
        gate: asyncio.Event = self.on_loop(asyncio.Event)
        partition.fault = lambda _: Fault(gate=gate)
        return gate

    def on_loop(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Runs `call` on the loop's thread, where the ports live."""

        async def run() -> Any:
            return call(*arguments)

        return self.loop.run(run(), 10)

    # Directory ------------------------------------------------------------------------------------------------------

    async def controller(self) -> ControllerPort:
        return self

    def partition(self, actor: str) -> PartitionPort:
        name, _, number = actor.rpartition("/")
        if name not in self.topics:
            return _Gone()
        return self.topics[name].partitions[int(number)]

    def coordinator(self, actor: str) -> CoordinatorPort:
        return self.coordinator_port

    @property
    def node_id(self) -> str:
        return NODE

    # Controller -----------------------------------------------------------------------------------------------------

    async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply:
        self.metadata_requests += 1
        if self.controller_down is not None:
            raise self.controller_down
        names = list(self.topics) if request.topics is None else list(request.topics)
        found = tuple(self.topics[name].metadata() for name in names if name in self.topics)
        brokers = self.brokers.metadata(self.placed(), node_id=NODE)
        missing = tuple(name for name in names if name not in self.topics)
        return m.MetadataReply(version=1, cluster_id="c", brokers=brokers, topics=found, missing=missing)

    async def create_topic(self, request: m.CreateTopicRequest, *, timeout_ms: float) -> m.TopicMetadata:
        raise NotImplementedError

    async def alter_topic(self, request: m.AlterTopicRequest, *, timeout_ms: float) -> m.TopicMetadata:
        self.changes.append(request)
        topic = self._topic(request.name)
        topic.config = asdict(changed(build(TopicConfig, topic.config), request.config))
        if request.replication_factor is not None:
            self.brokers.bring_to(self.placed(request.name), request.replication_factor)
            topic.replication_factor = request.replication_factor
        if request.partitions is not None:
            self.grow(request.name, request.partitions)
        return topic.metadata()

    async def delete_topic(self, request: m.DeleteTopicRequest, *, timeout_ms: float) -> m.Done:
        raise NotImplementedError

    async def reassign(self, request: m.ReassignRequest, *, timeout_ms: float) -> m.TopicMetadata:
        self.changes.append(request)
        topic = self._topic(request.topic)
        if any(number >= len(topic.partitions) for number, _ in request.replicas):
            raise PartitionNotFound(f"topic {request.topic!r} has {len(topic.partitions)} partitions")
        self.brokers.reassign([(topic.partitions[number].placed, replicas) for number, replicas in request.replicas])
        return topic.metadata()

    async def elect_leaders(self, request: m.ElectLeadersRequest, *, timeout_ms: float) -> m.Done:
        self.changes.append(request)
        for placed in self.placed(request.topic):
            self.brokers.elect(placed, unclean=request.unclean)
        return m.Done()

    async def drain_broker(self, request: m.DrainBrokerRequest, *, timeout_ms: float) -> m.Done:
        self.changes.append(request)
        if request.remove:
            self.brokers.remove(request.broker_id, self.placed())
        else:
            self.brokers.drain(request.broker_id, self.placed(), drain=request.drain)
        return m.Done()

    async def set_quota(self, request: m.ClientQuota, *, timeout_ms: float) -> m.Done:
        self.changes.append(request)
        return m.Done()


class _Gone(FakePartition):
    """The port of an actor that is no more."""

    def __init__(self) -> None:
        super().__init__("0" * 32, 0, RAW_SCHEMA, SystemClock())

    async def append(self, request: m.AppendRequest, batch: Bytes, *, timeout_ms: float) -> m.AppendReply:
        raise ActorLost("the actor is gone")
