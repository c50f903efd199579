"""Finds the actor that answers for a partition, a group or the cluster, and tries again when it has moved or died.

Every retry of every client goes through `Routing.retrying`: one backoff, one deadline, one rule for what is retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import pyarrow as pa

from raystream import messages as m
from raystream.clock import Clock
from raystream.errors import (
    CoordinatorNotAvailable,
    Fenced,
    NotEnoughBrokers,
    NotEnoughReplicas,
    NotLeader,
    Overloaded,
    PartitionNotFound,
    RaystreamError,
    RequestTimeout,
    StorageError,
    TopicNotFound,
    Unavailable,
)
from raystream.ports import ControllerPort, CoordinatorPort, Directory, PartitionPort

T = TypeVar("T")

FIRST_BACKOFF_MS: Final = 20.0
MAX_BACKOFF_MS: Final = 500.0
METADATA_AGE_MS: Final = 30_000.0
CALL_TIMEOUT_MS: Final = 10_000.0
METADATA_TIMEOUT_MS: Final = 2_000.0
"""Any broker can answer: the next is asked then."""
COORDINATOR_TIMEOUT_MS: Final = 4_000.0
"""Another one may be the coordinator by then."""
REPLICATED_TIMEOUT_MS: Final = 2_500.0
"""One try at a partition that others can take over is given no longer."""
AVOID_FOLLOWER_MS: Final = 5_000.0
LEAST_TRY_MS: Final = 20.0
"""With less time left nothing is tried again: it would hardly be answered, and make unknown what is known."""
_MOVED = (Unavailable, Fenced, RequestTimeout)
_STAYED = (NotEnoughReplicas, Overloaded)
_ITS_CALLERS = (NotEnoughBrokers,)
"""Whether and when to try again is for the caller to say."""


@dataclass(frozen=True, slots=True)
class Leader:
    """A partition's leader, or a follower for reads, as last heard of."""

    port: PartitionPort
    topic_id: str
    epoch: int
    node_id: str
    actor: str
    replicated: bool = False
    """Others hold the partition too: one that does not answer may have been replaced."""
    follower: bool = False
    """It follows the leader, and serves reads beside it."""


class Routing:
    """Metadata as this client knows it. Used on one event loop only."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._topics: dict[str, tuple[m.TopicMetadata, float]] = {}
        self._brokers: tuple[m.BrokerMetadata, ...] = ()
        self._schemas: dict[tuple[str, int], pa.Schema] = {}
        self._refreshing: dict[str, asyncio.Task[m.TopicMetadata]] = {}
        self._avoided: dict[tuple[str, int], float] = {}

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def node_id(self) -> str:
        return self._directory.node_id

    def known(self, name: str) -> m.TopicMetadata | None:
        """The topic's metadata if it is at hand and not stale; never waits."""
        entry = self._topics.get(name)
        return entry[0] if entry and self._clock.monotonic_ms() - entry[1] < METADATA_AGE_MS else None

    async def topic(self, name: str, *, timeout_ms: float = CALL_TIMEOUT_MS) -> m.TopicMetadata:
        """The topic's metadata, at most METADATA_AGE_MS old. Raises TopicNotFound."""
        deadline = self._clock.monotonic_ms() + timeout_ms
        left_ms = timeout_ms
        while (known := self.known(name)) is None:
            refresh = self._refreshing.get(name)
            if refresh is None:
                refresh = asyncio.ensure_future(self._refresh(name, left_ms))
                self._refreshing[name] = refresh
                refresh.add_done_callback(lambda _: self._refreshing.pop(name, None))
            try:
                async with asyncio.timeout(left_ms / 1000):
                    return await asyncio.shield(refresh)
            except TimeoutError as error:  # who began to ask may have had less time than we have
                left_ms = deadline - self._clock.monotonic_ms()
                if left_ms < 1:  # timers are not as fine as clocks
                    raise RequestTimeout(f"no metadata of topic {name!r} within {timeout_ms:.0f} ms") from error
        return known

    async def _refresh(self, name: str, timeout_ms: float) -> m.TopicMetadata:
        reply = await self.metadata((name,), timeout_ms=timeout_ms)
        if not reply.topics:
            self._topics.pop(name, None)
            raise TopicNotFound(f"there is no topic {name!r}: create it with cluster.create_topic({name!r})")
        return reply.topics[0]

    async def metadata(
        self, topics: tuple[str, ...] | None = None, *, internal: bool = False, timeout_ms: float = CALL_TIMEOUT_MS
    ) -> m.MetadataReply:
        """Fresh metadata from the controller, of all topics or those named."""
        request = m.MetadataRequest(topics=topics, internal=internal)
        reply = await self.call_controller(
            lambda port, left_ms: port.metadata(request, timeout_ms=min(left_ms, METADATA_TIMEOUT_MS)),
            timeout_ms=timeout_ms,
        )
        m.check_protocol(reply.protocol)
        self._brokers = reply.brokers
        now = self._clock.monotonic_ms()
        for topic in reply.topics or ():
            self._topics[topic.name] = (topic, now)
        return reply

    def schema(self, topic: m.TopicMetadata, schema_id: int) -> pa.Schema:
        """The stored Arrow schema with that id (1 is the first)."""
        key = (topic.topic_id, schema_id)
        schema = self._schemas.get(key)
        if schema is None:
            schema = pa.ipc.read_schema(pa.py_buffer(topic.schemas[schema_id - 1]))
            self._schemas[key] = schema
        return schema

    async def leader(self, topic: str, partition: int, *, timeout_ms: float = CALL_TIMEOUT_MS) -> Leader:
        """Who leads the partition. Raises PartitionNotFound, or NotLeader while nobody does."""
        metadata = await self.topic(topic, timeout_ms=timeout_ms)
        if partition >= len(metadata.partitions):  # it may have grown since
            self.forget(topic)
            metadata = await self.topic(topic, timeout_ms=timeout_ms)
        if not 0 <= partition < len(metadata.partitions):
            raise PartitionNotFound(
                f"topic {topic!r} has partitions 0 to {len(metadata.partitions) - 1}, not {partition}"
            )
        found = metadata.partitions[partition]
        if not found.actor:
            self.forget(topic)
            if found.error:
                raise StorageError(f"partition {topic}-{partition} is offline: {found.error}")
            raise NotLeader(f"partition {topic}-{partition} has no leader at the moment")
        return Leader(
            self._directory.partition(found.actor),
            metadata.topic_id,
            found.leader_epoch,
            found.node_id,
            found.actor,
            replicated=len(found.replicas) > 1,
        )

    async def nearest(self, topic: str, partition: int, *, timeout_ms: float = CALL_TIMEOUT_MS) -> Leader:
        """The replica to read from: a follower on this node, where the leader is on another. Raises as `leader`."""
        leader = await self.leader(topic, partition, timeout_ms=timeout_ms)
        avoided = self._avoided.get((topic, partition), float("-inf")) > self._clock.monotonic_ms()
        if leader.node_id == self.node_id or not leader.replicated or avoided:
            return leader
        for actor, node_id in (await self.topic(topic, timeout_ms=timeout_ms)).partitions[partition].followers:
            if node_id == self.node_id:
                port = self._directory.partition(actor)
                return replace(leader, port=port, actor=actor, node_id=node_id, follower=True)
        return leader

    def forget(self, topic: str) -> None:
        """The topic's metadata proved wrong: the next look asks the controller."""
        entry = self._topics.get(topic)
        if entry is not None:
            self._topics[topic] = (entry[0], float("-inf"))

    async def call_partition(
        self,
        topic: str,
        partition: int,
        call: Callable[[Leader, float], Awaitable[T]],
        *,
        timeout_ms: float = CALL_TIMEOUT_MS,
        near: bool = False,
        waits_ms: float = 0,
    ) -> T:
        """`call(leader, timeout_ms)` until it answers; for calls that may safely be repeated.

        `near`: a read, for which a follower will do. `waits_ms`: so long the other side may wait before it answers.
        """

        async def attempt(left_ms: float) -> T:
            find = self.nearest if near else self.leader
            leader = await find(topic, partition, timeout_ms=left_ms)
            if leader.replicated:
                left_ms = min(left_ms, waits_ms + REPLICATED_TIMEOUT_MS)
            try:
                return await call(leader, left_ms)
            except RaystreamError as error:
                if not leader.follower:
                    raise
                self._avoided[topic, partition] = self._clock.monotonic_ms() + AVOID_FOLLOWER_MS
                raise NotLeader(f"the follower beside this process did not serve: {error}") from error

        return await self.retrying(
            attempt, timeout_ms=timeout_ms, what=f"partition {topic}-{partition}", moved=lambda: self.forget(topic)
        )

    async def call_controller(
        self, call: Callable[[ControllerPort, float], Awaitable[T]], *, timeout_ms: float = CALL_TIMEOUT_MS
    ) -> T:
        """`call(controller, timeout_ms)` until it answers."""

        async def attempt(left_ms: float) -> T:
            return await call(await self._directory.controller(), left_ms)

        return await self.retrying(attempt, timeout_ms=timeout_ms, what="the controller", moved=lambda: None)

    async def call_coordinator(
        self, call: Callable[[CoordinatorPort, float], Awaitable[T]], *, timeout_ms: float = CALL_TIMEOUT_MS
    ) -> T:
        """`call(coordinator, timeout_ms)` until it answers."""

        async def attempt(left_ms: float) -> T:
            if not any(broker.coordinator for broker in self._brokers):
                await self.metadata((), timeout_ms=left_ms)
            names = [broker.coordinator for broker in self._brokers if broker.coordinator]
            if not names:
                raise CoordinatorNotAvailable("the group coordinator is starting")
            return await call(self._directory.coordinator(names[0]), min(left_ms, COORDINATOR_TIMEOUT_MS))

        def moved() -> None:
            self._brokers = ()

        return await self.retrying(attempt, timeout_ms=timeout_ms, what="the group coordinator", moved=moved)

    async def retrying(
        self,
        attempt: Callable[[float], Awaitable[T]],
        *,
        timeout_ms: float,
        what: str,
        moved: Callable[[], None],
    ) -> T:
        """`attempt(timeout_ms)` again and again while it raises retriable errors, backing off, until the deadline.

        Raises RequestTimeout with the last error's sentence when time runs out; other errors at once.
        """
        deadline = self._clock.monotonic_ms() + timeout_ms
        backoff_ms = FIRST_BACKOFF_MS
        last: RaystreamError | None = None
        while True:
            left_ms = deadline - self._clock.monotonic_ms()
            if left_ms <= (0 if last is None else LEAST_TRY_MS):
                why = f": {last}" if last is not None else ""
                raise RequestTimeout(f"{what} gave no answer within {timeout_ms:.0f} ms{why}") from last
            try:
                return await attempt(min(left_ms, CALL_TIMEOUT_MS))
            except RaystreamError as error:
                if not error.retriable or isinstance(error, _ITS_CALLERS):
                    raise
                last = error
                if isinstance(error, _MOVED) and not isinstance(error, _STAYED):
                    moved()
            await asyncio.sleep(min(backoff_ms, max(left_ms, 0)) / 1000)
            backoff_ms = min(backoff_ms * 2, MAX_BACKOFF_MS)
