"""Between clients and brokers: topics, leaders, replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raystream.messages.partition import ClientQuota
from raystream.messages.protocol import PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateTopicRequest:
    """`schema` is a serialized Arrow schema (None: a raw topic); `replication_factor` None means min(3, brokers)."""

    name: str
    partitions: int
    replication_factor: int | None = None
    schema: bytes | None = None
    key: str | None = None
    time: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    exist_ok: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AlterTopicRequest:
    """Changes `config` (None values go back to the default), raises the partition count to `partitions`, and brings
    every partition to `replication_factor` replicas, which catch up or go while it is in use."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    partitions: int | None = None
    replication_factor: int | None = None
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteTopicRequest:
    name: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionMetadata:
    """Who leads a partition, and the name of the Ray actor that serves it ("" while there is none)."""

    partition: int
    leader: int
    leader_epoch: int
    replicas: tuple[int, ...]
    isr: tuple[int, ...]
    actor: str
    node_id: str
    error: str = ""
    """Why nobody serves the partition, where that will not pass by itself (a corrupt log, an unusable directory)."""
    followers: tuple[tuple[str, str], ...] = ()
    """(actor, node id) of the other replicas in sync, which serve reads on their own nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMetadata:
    name: str
    topic_id: str
    typed: bool
    schemas: tuple[bytes, ...]
    key: str | None
    time: str | None
    config: Mapping[str, Any]
    replication_factor: int
    partitions: tuple[PartitionMetadata, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataRequest:
    """All topics, or those named. Waits up to `max_wait_ms` for a version other than `known_version`."""

    topics: tuple[str, ...] | None = None
    known_version: int = -1
    max_wait_ms: int = 0
    internal: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerMetadata:
    broker_id: int
    actor: str
    coordinator: str
    """The name of the coordinator actor beside this broker ("" while there is none)."""
    node_id: str
    node: str
    data_dir: str
    free_bytes: int
    """On the disk of `data_dir`; -1 where the broker is not heard."""
    pid: int
    controller: bool
    replicas: int
    fenced: bool = False
    """Not heard of for too long: it leads nothing and is in no ISR."""
    draining: bool = False
    rack: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataReply:
    """`version` grows with every change of topics, leaders or actors. `topics` None: nothing new since
    `known_version`. `missing`: names asked for that do not exist."""

    version: int
    cluster_id: str
    brokers: tuple[BrokerMetadata, ...]
    topics: tuple[TopicMetadata, ...] | None
    missing: tuple[str, ...] = ()
    quotas: tuple[ClientQuota, ...] = ()
    protocol: int = PROTOCOL
