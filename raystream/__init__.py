"""raystream: a durable, distributed log in the manner of Apache Kafka, native to Ray.

A topic is at once a message stream and an Arrow table. `connect()` returns a `Cluster`, from which everything else
comes; `raystream.aio.connect()` has the same names as coroutines. Errors form one tree under `RaystreamError`.

Names load when they are first used, so that `import raystream` does not import Ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raystream.errors import (
    ActorLost,
    BufferFull,
    Closed,
    ClusterGone,
    ClusterNotFound,
    ConcurrentTransactions,
    CoordinatorNotAvailable,
    CorruptBatch,
    CorruptLog,
    DataDirectoryInUse,
    DataDirectoryUnusable,
    DeliveryFailed,
    DeliveryTimeout,
    DiskFull,
    Fenced,
    FencedLeaderEpoch,
    FencedMember,
    FencedProducer,
    GroupNotEmpty,
    GroupNotFound,
    HandlerFailed,
    InvalidArgument,
    InvalidConfig,
    InvalidRecord,
    InvalidTopicName,
    InvalidTransactionState,
    KeysMove,
    LogLost,
    LogTruncated,
    NewerFormat,
    NotEnoughBrokers,
    NotEnoughReplicas,
    NotFound,
    NotLeader,
    OffsetOutOfRange,
    OffsetsLost,
    OutOfOrderSequence,
    Overloaded,
    PartitionNotFound,
    PlacementFailed,
    ProtocolMismatch,
    RaystreamError,
    RecordTooLarge,
    RequestTimeout,
    SchemaChanged,
    StorageError,
    TopicExists,
    TopicNotFound,
    TransactionTimedOut,
    Unavailable,
    UnexpectedEndOffset,
    UnknownLeaderEpoch,
    UnknownMember,
    UnknownProducer,
)
from raystream.types import (
    EARLIEST,
    LATEST,
    BrokerDescription,
    ClientQuota,
    GroupDescription,
    Health,
    MemberDescription,
    OffsetMove,
    PartitionDescription,
    PartitionLag,
    Position,
    Record,
    RecordMetadata,
    Rows,
    SharePartitionDescription,
    TopicDescription,
    TopicPartition,
    WriteResult,
)

if TYPE_CHECKING:
    from raystream import aio
    from raystream.cluster import Cluster, connect

__version__ = "0.1.0"

_LAZY = {
    "aio": "raystream.aio",
    "Cluster": "raystream.cluster:Cluster",
    "connect": "raystream.cluster:connect",
    "LogHandler": "raystream.log_handler:LogHandler",
}

__all__ = [
    "EARLIEST",
    "LATEST",
    "ActorLost",
    "BrokerDescription",
    "BufferFull",
    "ClientQuota",
    "Closed",
    "Cluster",
    "ClusterGone",
    "ClusterNotFound",
    "ConcurrentTransactions",
    "CoordinatorNotAvailable",
    "CorruptBatch",
    "CorruptLog",
    "DataDirectoryInUse",
    "DataDirectoryUnusable",
    "DeliveryFailed",
    "DeliveryTimeout",
    "DiskFull",
    "Fenced",
    "FencedLeaderEpoch",
    "FencedMember",
    "FencedProducer",
    "GroupDescription",
    "GroupNotEmpty",
    "GroupNotFound",
    "HandlerFailed",
    "Health",
    "InvalidArgument",
    "InvalidConfig",
    "InvalidRecord",
    "InvalidTopicName",
    "InvalidTransactionState",
    "KeysMove",
    "LogHandler",
    "LogLost",
    "LogTruncated",
    "MemberDescription",
    "NewerFormat",
    "NotEnoughBrokers",
    "NotEnoughReplicas",
    "NotFound",
    "NotLeader",
    "OffsetMove",
    "OffsetOutOfRange",
    "OffsetsLost",
    "OutOfOrderSequence",
    "Overloaded",
    "PartitionDescription",
    "PartitionLag",
    "PartitionNotFound",
    "PlacementFailed",
    "Position",
    "ProtocolMismatch",
    "RaystreamError",
    "Record",
    "RecordMetadata",
    "RecordTooLarge",
    "RequestTimeout",
    "Rows",
    "SchemaChanged",
    "SharePartitionDescription",
    "StorageError",
    "TopicDescription",
    "TopicExists",
    "TopicNotFound",
    "TopicPartition",
    "TransactionTimedOut",
    "Unavailable",
    "UnexpectedEndOffset",
    "UnknownLeaderEpoch",
    "UnknownMember",
    "UnknownProducer",
    "WriteResult",
    "aio",
    "connect",
]


def __getattr__(name: str) -> Any:
    home = _LAZY.get(name)
    if home is None:
        raise AttributeError(f"module 'raystream' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = importlib.import_module(module)
    value = globals()[name] = getattr(value, attribute) if attribute else value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
