"""A cluster of plain objects for the consuming side: partitions that hold encoded batches, a coordinator that
rebalances. Every port runs on the client's own loop; tests steer from their thread."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from raystream import messages as m
from raystream.batch import (
    ATTR_APPEND_TIME,
    ATTR_CONTROL,
    Bytes,
    LeaderFields,
    ProducerFields,
    decode,
    encode,
    parse,
    with_leader_fields,
)
from raystream.client.consumer import Consumer
from raystream.client.loop import BackgroundLoop
from raystream.client.reader import View
from raystream.client.routing import Routing
from raystream.clock import SystemClock
from raystream.config import ConsumerConfig, build
from raystream.core.coordinator import Coordinator
from raystream.core.groups import Decision
from raystream.errors import FencedMember, OffsetOutOfRange, Unavailable, UnknownMember
from raystream.ports import ControllerPort, CoordinatorPort, PartitionPort
from raystream.schema import RAW_SCHEMA, schema_message, stored_schema
from tests.fakes.shares import ShareDoors
from tests.fakes.unasked import WithoutTransactions

NODE = "node-a"


def raw_rows(
    values: Iterable[bytes | None],
    *,
    keys: Iterable[bytes | None] | None = None,
    headers: Iterable[Any] | None = None,
    timestamps: Iterable[int] | None = None,
) -> pa.RecordBatch:
    """Rows of a raw topic; timestamps count up from 1,000 where none are given."""
    values = list(values)
    return pa.record_batch(
        [
            pa.array(list(keys) if keys is not None else [None] * len(values), pa.binary()),
            pa.array(values, pa.binary()),
            pa.array(list(headers) if headers is not None else [None] * len(values), RAW_SCHEMA.field("headers").type),
            pa.array(list(timestamps) if timestamps is not None else range(1000, 1000 + len(values)), pa.int64()),
        ],
        schema=RAW_SCHEMA,
    )


@dataclass
class Stored:
    base_offset: int
    next_offset: int
    max_timestamp_ms: int
    data: bytes
    position: int
    timestamps: list[int] = field(default_factory=list)


class FakePartition:
    """A PartitionPort over a list of batches, with a file beside it for readers that map."""

    def __init__(self, topic_id: str, partition: int, schema: pa.Schema, path: Path | None, time: str | None) -> None:
        self.topic_id = topic_id
        self.partition = partition
        self.schema = schema
        self.time = time
        self.path = path
        self.batches: list[Stored] = []
        self.start_offset = 0
        self.end_offset = 0
        self.compacted = False
        self.errors: deque[Exception] = deque()
        self.fetches: list[m.FetchRequest] = []
        self.span_path: str | None = None
        self.max_fetch_bytes: int | None = None
        self._grown = asyncio.Event()
        self.size = 0
        if path is not None:
            head = schema_message(schema, topic_id, 1)
            path.write_bytes(head)
            self.size = len(head)

    def append_now(self, rows: pa.RecordBatch, *, attributes: int = 0, compression: str | None = None) -> None:
        count = rows.num_rows or 1
        stamps = [0] * count
        column = "timestamp" if "timestamp" in rows.schema.names and self.time is None else self.time
        if rows.num_rows and column is not None:
            stamps = rows.column(column).cast(pa.int64()).to_pylist()
        fields = ProducerFields(
            topic_id=self.topic_id,
            partition=self.partition,
            last_offset_delta=count - 1,
            first_timestamp_ms=stamps[0],
            max_timestamp_ms=max(stamps),
            attributes=attributes,
        )
        message = encode(rows, fields, compression=compression)
        leader = LeaderFields(self.end_offset, 1, self.end_offset, 5_000)
        data = b"".join(bytes(part) for part in with_leader_fields(message, parse(message), leader))
        stored = Stored(self.end_offset, self.end_offset + count, max(stamps), data, self.size, stamps)
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(data)
        self.size += len(data)
        self.batches.append(stored)
        self.end_offset += count
        self._grown.set()
        self._grown = asyncio.Event()

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.popleft()

    async def fetch(self, request: m.FetchRequest, *, timeout_ms: float) -> m.FetchReply:
        self.fetches.append(request)
        self._fail()
        if not self.start_offset <= request.offset <= self.end_offset:
            said = f"offset {request.offset} lies outside {self.start_offset} to {self.end_offset}"
            raise OffsetOutOfRange(said, log_start_offset=self.start_offset)
        if request.offset == self.end_offset and request.max_wait_ms:
            try:
                await asyncio.wait_for(self._grown.wait(), request.max_wait_ms / 1000)
            except TimeoutError:
                return self._reply()
        end = self.end_offset if request.end_offset is None else request.end_offset
        limit = min(request.max_bytes, self.max_fetch_bytes or request.max_bytes)
        found: list[Stored] = []
        for stored in self.batches:
            if stored.next_offset <= request.offset or stored.base_offset >= end:
                continue
            if found and sum(len(s.data) for s in found) + len(stored.data) > limit:
                break
            found.append(stored)
        if not found:
            return self._reply()
        if request.mapped and self.path is not None:
            length = sum(len(s.data) for s in found)
            return self._reply(spans=(m.Span(self.span_path or str(self.path), found[0].position, length, 1),))
        return self._reply(chunks=(b"".join(s.data for s in found),), schema_ids=(1,))

    def _reply(self, **what: Any) -> m.FetchReply:
        return m.FetchReply(
            high_watermark=self.end_offset,
            last_stable_offset=self.end_offset,
            log_start_offset=self.start_offset,
            leader_epoch=1,
            **what,
        )

    async def write_marker(self, request: m.WriteMarkerRequest, *, timeout_ms: float) -> m.AppendReply:
        raise NotImplementedError

    async def list_offsets(self, request: m.ListOffsetsRequest, *, timeout_ms: float) -> m.OffsetReply:
        self._fail()
        if request.timestamp_ms == m.EARLIEST_TIMESTAMP:
            return m.OffsetReply(offset=self.start_offset, compacted=self.compacted)
        if request.timestamp_ms == m.LATEST_TIMESTAMP:
            return m.OffsetReply(offset=self.end_offset)
        for stored in self.batches:
            for delta, stamp in enumerate(stored.timestamps):
                if stamp >= request.timestamp_ms and stored.base_offset + delta >= self.start_offset:
                    return m.OffsetReply(offset=stored.base_offset + delta)
        return m.OffsetReply(offset=-1)

    async def append(self, request: m.AppendRequest, batch: Bytes, *, timeout_ms: float) -> m.AppendReply:
        self._fail()
        base = self.end_offset
        self.append_now(decode(batch, self.schema))
        return m.AppendReply(base_offset=base, append_time_ms=5_000, leader_epoch=1, high_watermark=self.end_offset)

    async def delete_records(self, request: m.DeleteRecordsRequest, *, timeout_ms: float) -> m.OffsetReply:
        raise NotImplementedError

    async def status(self, *, timeout_ms: float) -> tuple[m.ReplicaStatus, ...]:
        return (
            m.ReplicaStatus(
                topic_id=self.topic_id,
                partition=self.partition,
                leader_epoch=1,
                start_offset=self.start_offset,
                end_offset=self.end_offset,
                high_watermark=self.end_offset,
                size_bytes=self.size,
                segments=1,
            ),
        )


@dataclass
class Member:
    client: str
    epoch: int
    topics: tuple[str, ...]
    assigned: set[tuple[str, int]] = field(default_factory=set)
    owned: set[tuple[str, int]] = field(default_factory=set)


class FakeCoordinator(WithoutTransactions, ShareDoors):
    """Spreads partitions over the members in order of joining; a partition moves when its owner has let it go."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__()
        self._cluster = cluster
        self.members: dict[str, Member] = {}
        self.offsets: dict[tuple[str, int], int] = {}
        self.commits: list[m.CommitRequest] = []
        self.heartbeats: list[m.HeartbeatRequest] = []
        self.left: list[str] = []
        self.errors: deque[Exception] = deque()
        self.commit_errors: deque[Exception] = deque()
        self.commits_paused = False
        self.pinned: dict[str, set[tuple[str, int]]] = {}
        self.epoch = 0

    def forget_members(self) -> None:
        self.members.clear()

    async def heartbeat(self, request: m.HeartbeatRequest, *, timeout_ms: float) -> m.HeartbeatReply:
        self.heartbeats.append(request)
        if self.errors:
            raise self.errors.popleft()
        if request.member_epoch == -1:
            if self.members.pop(request.member_id, None) is not None:
                self.left.append(request.member_id)
            return m.HeartbeatReply(member_epoch=-1, assigned=(), group_epoch=self.epoch)
        member = self.members.get(request.member_id)
        if request.member_epoch == 0:
            self.epoch += 1
            topics = request.topics or tuple(self._cluster.topics)
            member = self.members[request.member_id] = Member(request.client, self.epoch, topics)
        elif member is None:
            raise UnknownMember("the group does not know this member")
        elif request.member_epoch != member.epoch:
            raise FencedMember("the member's epoch is old")
        member.owned = set(request.owned)
        self._assign()
        held = tuple((t, p, member.epoch) for t, p in sorted(member.assigned))
        member.owned |= member.assigned  # told now: it holds them until it says otherwise
        owners = () if held else tuple((o.client, t, p) for o in self.members.values() for t, p in sorted(o.assigned))
        return m.HeartbeatReply(member_epoch=member.epoch, assigned=held, group_epoch=self.epoch, owners=owners)

    def _assign(self) -> None:
        target: dict[str, set[tuple[str, int]]] = {name: set() for name in self.members}
        names = list(self.members)
        partitions = [(t, p) for t, parts in self._cluster.partitions_by_topic().items() for p in range(len(parts))]
        for index, partition in enumerate(partitions):
            pinned = [name for name, pins in self.pinned.items() if partition in pins and name in self.members]
            takers = pinned or [] if self.pinned else [n for n in names if partition[0] in self.members[n].topics]
            if takers:
                target[takers[index % len(takers)]].add(partition)
        for name, wanted in target.items():
            member = self.members[name]
            taken = {p for other, o in self.members.items() if other != name for p in o.owned | o.assigned}
            member.assigned = (member.assigned & wanted) | (wanted - taken)

    async def commit(self, request: m.CommitRequest, *, timeout_ms: float) -> m.Done:
        while self.commits_paused:  # noqa: ASYNC110  set by another thread
            await asyncio.sleep(0.01)
        if self.commit_errors:
            raise self.commit_errors.popleft()
        if request.member_id not in self.members:
            raise UnknownMember("the group does not know this member")
        return self._moved(request)

    def _moved(self, request: m.CommitRequest) -> m.Done:
        self.commits.append(request)
        for commit in request.offsets:
            self.offsets[commit.topic, commit.partition] = commit.offset
        return m.Done()

    async def fetch_offsets(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.CommittedOffset, ...]:
        return tuple(m.CommittedOffset(t, p, offset) for (t, p), offset in sorted(self.offsets.items()))

    async def init_producer(self, request: m.InitProducerRequest, *, timeout_ms: float) -> m.InitProducerReply:
        raise NotImplementedError

    async def list_groups(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.GroupInfo, ...]:
        raise NotImplementedError

    async def describe_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.GroupInfo:
        raise NotImplementedError

    async def delete_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.Done:
        raise NotImplementedError


class CoreCoordinator(FakeCoordinator):
    """The group rules as they really are, in memory."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(cluster)
        self._state = Coordinator()
        self._counts: dict[str, int] = {}

    def _done(self, decision: Decision) -> Any:
        for record in decision.records:
            self._state.replay(record, self._now_ms())
        return decision.reply

    @staticmethod
    def _now_ms() -> float:
        return time.monotonic() * 1000

    async def heartbeat(self, request: m.HeartbeatRequest, *, timeout_ms: float) -> m.HeartbeatReply:
        self.heartbeats.append(request)
        counts = {name: len(parts) for name, parts in self._cluster.partitions_by_topic().items()}
        self._counts = self._counts if self._counts == counts else counts
        self._done(self._state.expire(self._now_ms()))
        reply: m.HeartbeatReply = self._done(self._state.heartbeat(request, self._counts, self._now_ms()))
        return reply

    async def commit(self, request: m.CommitRequest, *, timeout_ms: float) -> m.Done:
        self._done(self._state.commit(request))
        return self._moved(request)

    async def describe_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.GroupInfo:
        info: m.GroupInfo = self._done(self._state.describe_group(request, self._now_ms()))
        return info


@dataclass
class FakeTopic:
    metadata: m.TopicMetadata
    partitions: list[FakePartition]


class FakeCluster:
    """Directory and controller in one; owns the client's loop. Use as a context manager."""

    def __init__(self, directory: Path | None = None, node_id: str = NODE, *, core: bool = False) -> None:
        self.loop = BackgroundLoop("fake-cluster")
        self.directory = directory
        self.topics: dict[str, FakeTopic] = {}
        self._node_id = node_id
        self.coordinator_port = CoreCoordinator(self) if core else FakeCoordinator(self)
        self.routing = Routing(self, SystemClock())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.stop()

    def create(
        self,
        name: str,
        partitions: int = 1,
        *,
        schema: pa.Schema | None = None,
        key: str | None = None,
        time: str | None = None,
    ) -> FakeTopic:
        stored = RAW_SCHEMA if schema is None else stored_schema(schema)
        topic_id = uuid.uuid4().hex
        parts = []
        for number in range(partitions):
            path = self.directory / f"{topic_id}-{number}.log" if self.directory is not None else None
            parts.append(FakePartition(topic_id, number, stored, path, time))
        described = tuple(
            m.PartitionMetadata(
                partition=n,
                leader=0,
                leader_epoch=1,
                replicas=(0,),
                isr=(0,),
                actor=f"{name}/{n}",
                node_id=NODE,
            )
            for n in range(partitions)
        )
        metadata = m.TopicMetadata(
            name=name,
            topic_id=topic_id,
            typed=schema is not None,
            schemas=(stored.serialize().to_pybytes(),),
            key=key,
            time=time,
            config={},
            replication_factor=1,
            partitions=described,
        )
        topic = self.topics[name] = FakeTopic(metadata, parts)
        return topic

    def append(
        self, topic: str, rows: pa.RecordBatch | Sequence[bytes | None], partition: int = 0, **how: Any
    ) -> FakePartition:
        """Appends one batch."""
        part = self.topics[topic].partitions[partition]
        batch = rows if isinstance(rows, pa.RecordBatch) else raw_rows(rows)

        async def append() -> None:
            part.append_now(batch, **how)

        self.loop.run(append())
        return part

    def append_control(self, topic: str, partition: int = 0) -> None:
        part = self.topics[topic].partitions[partition]
        self.append(topic, _no_rows(part.schema), partition, attributes=ATTR_CONTROL)

    def append_stamped(self, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
        """A batch of a topic with append time."""
        self.append(topic, raw_rows(values), partition, attributes=ATTR_APPEND_TIME)

    def partitions_by_topic(self) -> dict[str, list[FakePartition]]:
        return {name: topic.partitions for name, topic in self.topics.items()}

    def consumer(self, topics: Any = "t", group: str | None = None, start: Any = "earliest", **how: Any) -> Consumer:
        """A consumer with short intervals. Consumer arguments and settings in one, as `cluster.consumer` takes them."""
        names = (
            "key_deserializer",
            "value_deserializer",
            "client_id",
            "group_instance_id",
            "on_offsets_lost",
            "produce",
        )
        arguments = {name: how.pop(name) for name in names if name in how}
        quick = {"heartbeat_interval_ms": 50, "auto_commit_interval_ms": 50, "fetch_max_wait_ms": 200}
        config = build(ConsumerConfig, quick | how)
        return Consumer(self.routing, self.loop, config, topics=topics, group=group, start=start, **arguments)

    def view(self, topic: str = "t", **how: Any) -> View:
        return View(self.routing, self.loop, topic, **how)

    def committed(self, topic: str = "t", partition: int = 0) -> int | None:
        return self.coordinator_port.offsets.get((topic, partition))

    # Directory ------------------------------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self._node_id

    async def controller(self) -> ControllerPort:
        return self  # type: ignore[return-value]

    def partition(self, actor: str) -> PartitionPort:
        topic, _, number = actor.rpartition("/")
        if topic not in self.topics:
            raise Unavailable(f"no actor {actor!r} is running")
        return self.topics[topic].partitions[int(number)]

    def coordinator(self, actor: str) -> CoordinatorPort:
        return self.coordinator_port

    async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply:
        names = list(self.topics) if request.topics is None else list(request.topics)
        broker = m.BrokerMetadata(
            broker_id=0,
            actor="broker",
            coordinator="coordinator",
            node_id=NODE,
            node="localhost",
            data_dir="",
            free_bytes=1,
            pid=1,
            controller=True,
            replicas=1,
        )
        return m.MetadataReply(
            version=1,
            cluster_id="c",
            brokers=(broker,),
            topics=tuple(self.topics[n].metadata for n in names if n in self.topics),
            missing=tuple(n for n in names if n not in self.topics),
        )


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.record_batch([pa.array([], f.type) for f in schema], schema=schema)


def eventually(holds: Callable[[], Any], timeout_s: float = 5.0) -> Any:
    """Waits until `holds()` is true and returns what it returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, "this did not come about in time"
        time.sleep(0.005)
