"""What a client may ask of an actor. `actors/handles.py` makes ports from Ray actors, the simulator from plain objects.

Every call takes `timeout_ms`. It either answers, or raises: an error of the other side as it is, RequestTimeout when
the deadline passes, ActorLost when the actor died or cannot be reached. After the last two the outcome is unknown.
"""

from __future__ import annotations

from typing import Protocol

from raystream import messages as m
from raystream.batch import Bytes


class PartitionPort(Protocol):
    """A partition's leader."""

    async def append(self, request: m.AppendRequest, batch: Bytes, *, timeout_ms: float) -> m.AppendReply: ...

    async def fetch(self, request: m.FetchRequest, *, timeout_ms: float) -> m.FetchReply: ...

    async def list_offsets(self, request: m.ListOffsetsRequest, *, timeout_ms: float) -> m.OffsetReply: ...

    async def delete_records(self, request: m.DeleteRecordsRequest, *, timeout_ms: float) -> m.OffsetReply: ...

    async def status(self, *, timeout_ms: float) -> tuple[m.ReplicaStatus, ...]: ...


class ControllerPort(Protocol):
    """The controller: topics, configs, who leads what. Changes are durable when they answer."""

    async def metadata(self, request: m.MetadataRequest, *, timeout_ms: float) -> m.MetadataReply: ...

    async def create_topic(self, request: m.CreateTopicRequest, *, timeout_ms: float) -> m.TopicMetadata: ...

    async def alter_topic(self, request: m.AlterTopicRequest, *, timeout_ms: float) -> m.TopicMetadata: ...

    async def delete_topic(self, request: m.DeleteTopicRequest, *, timeout_ms: float) -> m.Done: ...


class CoordinatorPort(Protocol):
    """A coordinator: producer ids, consumer groups and their offsets."""

    async def init_producer(self, request: m.InitProducerRequest, *, timeout_ms: float) -> m.InitProducerReply: ...

    async def heartbeat(self, request: m.HeartbeatRequest, *, timeout_ms: float) -> m.HeartbeatReply: ...

    async def commit(self, request: m.CommitRequest, *, timeout_ms: float) -> m.Done: ...

    async def fetch_offsets(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.CommittedOffset, ...]: ...

    async def list_groups(self, request: m.GroupRequest, *, timeout_ms: float) -> tuple[m.GroupInfo, ...]: ...

    async def describe_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.GroupInfo: ...

    async def delete_group(self, request: m.GroupRequest, *, timeout_ms: float) -> m.Done: ...


class Directory(Protocol):
    """Finds actors. Ray's actor names are hints: a port that is gone is asked for again."""

    async def controller(self) -> ControllerPort: ...

    def partition(self, actor: str) -> PartitionPort: ...

    def coordinator(self, actor: str) -> CoordinatorPort: ...

    @property
    def node_id(self) -> str: ...
