"""What crosses an actor border: frozen requests and replies, and encoded batch bytes beside them.

Every message carries the protocol version it was made for. Fields are only ever added, with defaults, so that jobs and
the detached actors they meet may be of different releases; `check_protocol` refuses what cannot be understood.
Instants are milliseconds since the epoch, UTC; offsets are 64-bit; `timeout_ms` and `max_wait_ms` are durations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from raystream.errors import ProtocolMismatch

PROTOCOL: Final = 1
OLDEST_PROTOCOL: Final = 1
NO_EPOCH: Final = -1
"""In a request's `leader_epoch`: the caller does not know it and takes whatever leader answers."""
EARLIEST_TIMESTAMP: Final = -2
LATEST_TIMESTAMP: Final = -1


def check_protocol(protocol: int) -> None:
    """Raises ProtocolMismatch unless this process understands `protocol`."""
    if not OLDEST_PROTOCOL <= protocol <= PROTOCOL:
        raise ProtocolMismatch(
            f"the other side speaks protocol {protocol}, this raystream {OLDEST_PROTOCOL} to {PROTOCOL}: "
            "install the same release of raystream in the job and on the cluster"
        )


# Partition ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendRequest:
    """One encoded batch (beside this message) for one partition. `age_ms`: since the batch was first sent."""

    topic_id: str
    partition: int
    leader_epoch: int = NO_EPOCH
    acks: int = -1
    age_ms: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendReply:
    """Where the batch stands. `duplicate`: it was there already, from an earlier try."""

    base_offset: int
    append_time_ms: int
    leader_epoch: int
    high_watermark: int
    duplicate: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """Batches from `offset` on, up to `max_bytes` (at least one batch) and below `end_offset` where it is set.

    Waits up to `max_wait_ms` for the first record. `mapped`: the reader is on the leader's node and maps spans.
    """

    topic_id: str
    partition: int
    offset: int
    leader_epoch: int = NO_EPOCH
    max_bytes: int = 1 << 20
    max_wait_ms: int = 0
    end_offset: int | None = None
    mapped: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Span:
    """A run of whole batches in one segment file: `length` bytes from `position`, all of one schema."""

    path: str
    position: int
    length: int
    schema_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchReply:
    """Either `spans` to map or `chunks` of batch bytes (one per schema run, `schema_ids` beside them), and the
    partition's marks. The first batch may begin below the offset asked for: the reader drops those rows."""

    spans: tuple[Span, ...] = ()
    chunks: tuple[bytes, ...] = ()
    schema_ids: tuple[int, ...] = ()
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    leader_epoch: int
    aborted: tuple[tuple[int, int, int], ...] = ()
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReply:
    """Where an actor also takes calls from processes of its own node; no address: nowhere."""

    node_id: str
    address: str | None
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOffsetsRequest:
    """The first offset whose timestamp is at or after `timestamp_ms`, or EARLIEST_TIMESTAMP, LATEST_TIMESTAMP."""

    topic_id: str
    partition: int
    timestamp_ms: int
    leader_epoch: int = NO_EPOCH
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteRecordsRequest:
    """Moves the log start offset up to `before_offset` (-1: the high watermark)."""

    topic_id: str
    partition: int
    before_offset: int
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class OffsetReply:
    offset: int
    timestamp_ms: int = -1
    leader_epoch: int = NO_EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec:
    """What a broker tells a partition actor to open. `incarnation` fences the replica's earlier lives."""

    topic: str
    topic_id: str
    partition: int
    directory: str
    leader_epoch: int
    incarnation: int
    config: Mapping[str, Any]
    schemas: tuple[bytes, ...]
    """Serialized Arrow schemas; the schema id is the place in this tuple plus one."""
    time_column: str | None = None
    """The event-time column of a typed topic."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    topic_id: str
    partition: int
    leader_epoch: int
    start_offset: int
    end_offset: int
    high_watermark: int
    size_bytes: int
    segments: int
    error: str | None = None


# Controller ---------------------------------------------------------------------------------------------------------


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
    """Changes `config` (None values go back to the default) and raises the partition count to `partitions`."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    partitions: int | None = None
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
    pid: int
    controller: bool
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataReply:
    """`version` grows with every change of topics, leaders or actors. `topics` None: nothing new since
    `known_version`. `missing`: names asked for that do not exist."""

    version: int
    cluster_id: str
    brokers: tuple[BrokerMetadata, ...]
    topics: tuple[TopicMetadata, ...] | None
    missing: tuple[str, ...] = ()
    protocol: int = PROTOCOL


# Coordinator --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class InitProducerRequest:
    transactional_id: str | None = None
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class InitProducerReply:
    producer_id: int
    producer_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatRequest:
    """A member's sign of life, its wish and its state (KIP-848). `member_epoch` 0 joins, -1 leaves.

    `topics` are the names it subscribes to, `pattern` a regular expression instead. `owned` are the partitions it
    holds now: one that it was told to give up is free for others once it is missing here.

    `sequence` grows with every heartbeat of the member's life, also over joins (a repeated call keeps its own): one
    that arrives after a later one is refused. 0 is not counted.
    """

    group: str
    member_id: str
    member_epoch: int
    topics: tuple[str, ...] = ()
    pattern: str | None = None
    owned: tuple[tuple[str, int], ...] = ()
    client: str = ""
    session_timeout_ms: int = 10_000
    rebalance_timeout_ms: int = 60_000
    sequence: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """`assigned`: what the member may hold now, as (topic, partition, epoch at which it was assigned).
    `owners`: who holds what in the group, filled while the member has nothing."""

    member_epoch: int
    assigned: tuple[tuple[str, int, int], ...]
    group_epoch: int
    owners: tuple[tuple[str, str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class CommittedOffset:
    topic: str
    partition: int
    offset: int
    metadata: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """Commits positions of a group. A member states itself and, per partition, the epoch in which it was assigned it;
    `member_id` "" is an administrator, heard only while the group has no members.

    `sequence` grows with every commit in the member's life: where one arrives after a later one, the later one's
    positions stay. 0 is not counted.
    """

    group: str
    member_id: str = ""
    member_epoch: int = NO_EPOCH
    offsets: tuple[CommittedOffset, ...]
    sequence: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupRequest:
    """Names one group (or, for `list_groups`, "" for all of them)."""

    group: str = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    member_id: str
    client: str
    epoch: int
    owned: tuple[tuple[str, int], ...]
    last_heartbeat_ms_ago: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupInfo:
    group: str
    state: str
    epoch: int
    topics: tuple[str, ...]
    members: tuple[MemberInfo, ...]
    offsets: tuple[CommittedOffset, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The change is durable."""

    protocol: int = PROTOCOL
