"""Between clients, brokers and partition actors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raystream.messages.protocol import NO_EPOCH, PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendRequest:
    """One encoded batch (beside this message) for one partition. `age_ms`: since the batch was first sent."""

    topic_id: str
    partition: int
    leader_epoch: int = NO_EPOCH
    acks: int = -1
    age_ms: int = 0
    expected_offset: int = -1
    """Where the batch is to stand, or it is refused with StaleState; -1: at the log's end, wherever that is."""
    client_id: str = ""
    """Whose quota the bytes count against."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendReply:
    """Where the batch stands. `duplicate`: it was there already, from an earlier try. `throttle_ms`: so long the client
    is to send this replica nothing more, because of its quota."""

    base_offset: int
    append_time_ms: int
    leader_epoch: int
    high_watermark: int
    duplicate: bool = False
    throttle_ms: int = 0


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
    follower: bool = False
    """A following replica may answer too, up to the high watermark that it knows."""
    client_id: str = ""
    """Whose quota the bytes count against."""
    committed: bool = False
    """Only up to the last stable offset, with the aborted transactions in it named."""
    last_epoch: int = NO_EPOCH
    """The leader epoch of the batch before `offset`, as the reader has read it: a log that parts from it says so."""
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
    partition's marks. The first batch may begin below the offset asked for: the reader drops those rows.

    `aborted`, where only what is committed was asked for: (producer id, first offset, last offset) of transactions
    whose batches in that range, of that producer, do not count."""

    spans: tuple[Span, ...] = ()
    chunks: tuple[bytes, ...] = ()
    schema_ids: tuple[int, ...] = ()
    high_watermark: int
    last_stable_offset: int
    log_start_offset: int
    leader_epoch: int
    aborted: tuple[tuple[int, int, int], ...] = ()
    throttle_ms: int = 0
    """So long the client is to fetch nothing more from this replica, because of its quota."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReply:
    """Where an actor also takes calls from processes of its own machine; no address: nowhere. `machine` is what
    `endpoint.machine()` says there, `methods` the calls that are taken."""

    node_id: str
    address: str | None
    machine: str = ""
    methods: tuple[str, ...] = ()
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateRequest:
    """A leader to a follower: one of the requests of `core/replication.py`, and batches as they stand in the leader's
    log beside it; beside the order where to cut the log, the snapshot of producers whose batches were deleted or
    compacted. Answered with one of the answers there."""

    topic_id: str
    partition: int
    request: Any
    log_start_offset: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ListOffsetsRequest:
    """The first offset whose timestamp is at or after `timestamp_ms`, or EARLIEST_TIMESTAMP, LATEST_TIMESTAMP."""

    topic_id: str
    partition: int
    timestamp_ms: int
    leader_epoch: int = NO_EPOCH
    committed: bool = False
    """The latest is the last stable offset, and nothing past it is found."""
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
    compacted: bool = False
    """Whether the partition may hold less records than offsets; said of the earliest offset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientQuota:
    """What clients of one id may move on each node, in bytes per second; None: as much as they like. The id "" stands
    for every id that has no quota of its own; each of them has it for itself."""

    client_id: str
    produce_bytes_per_s: int | None = None
    fetch_bytes_per_s: int | None = None
    protocol: int = PROTOCOL


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
    key_column: str | None = None
    """The key column of a typed topic."""
    broker_id: int = 0
    broker_incarnation: int = 0
    broker: str = ""
    """The actor name of the broker that opens the replica."""
    leader: int = 0
    replicas: tuple[int, ...] = (0,)
    isr: tuple[int, ...] = (0,)
    elr: tuple[int, ...] = ()
    partition_epoch: int = 0
    actors: tuple[tuple[int, str], ...] = ()
    """(broker id, actor name) of the other replicas, as far as they are served."""
    min_insync_replicas: int = 1
    lease_path: str = ""
    """Where the broker states until when it cannot have been fenced."""
    quotas: tuple[ClientQuota, ...] = ()
    opened: bool = False
    """The replica has been served from this disk before: where its files are gone, records are."""
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
    leading: bool = True
    error: str | None = None
