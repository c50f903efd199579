"""Every error that raystream raises, in one tree.

RaystreamError
├── InvalidArgument (ValueError)      a value the caller passed is wrong; the sentence says what would be right
│   ├── InvalidTopicName
│   ├── InvalidConfig
│   ├── InvalidRecord                 a record, frame or batch that its topic cannot take
│   └── RecordTooLarge
├── NotFound (LookupError)
│   ├── TopicNotFound
│   ├── PartitionNotFound
│   └── GroupNotFound
├── TopicExists
├── GroupNotEmpty
├── RequestTimeout (TimeoutError)     no answer within the deadline: the outcome is unknown
│   ├── DeliveryTimeout               a record was not acknowledged within delivery_timeout_ms
│   └── BufferFull                    the producer's buffer stayed full for max_block_ms
├── Unavailable                       try again: somebody is starting, moving or gone for the moment
│   ├── ActorLost                     an actor died during a call: the outcome is unknown
│   ├── NotLeader
│   ├── NotEnoughReplicas             fewer in-sync replicas than min_insync_replicas: nothing was written
│   ├── NotEnoughBrokers              fewer brokers are heard than replicas are asked for: nothing was changed
│   ├── CoordinatorNotAvailable
│   └── Overloaded
├── Fenced                            the caller speaks for an earlier epoch
│   ├── FencedLeaderEpoch
│   ├── UnknownLeaderEpoch
│   ├── UnexpectedEndOffset           somebody else has written to the log meanwhile
│   ├── FencedMember
│   ├── UnknownMember
│   └── FencedProducer
├── InvalidTransactionState           what was asked does not fit the state of the producer's transaction
├── TransactionTimedOut               the transaction was open for too long and was aborted
├── ConcurrentTransactions            the transaction before is still being ended: try again
├── OutOfOrderSequence
├── UnknownProducer
├── SchemaChanged
├── OffsetOutOfRange
│   ├── OffsetsLost                   retention or delete_records passed a position: records were never read
│   └── LogTruncated                  an unclean election took back records that had been read
├── CorruptBatch                      bytes whose checksum or structure is wrong
│   └── CorruptLog                    the same in a log's file, named with its position
│       └── LogLost                   all of a log's files are gone
├── StorageError
│   ├── DiskFull
│   ├── DataDirectoryInUse
│   ├── DataDirectoryUnusable
│   └── NewerFormat
├── ProtocolMismatch
├── ClusterNotFound
├── ClusterGone
├── Closed
├── DeliveryFailed                    records that were handed over and could not be delivered
├── HandlerFailed                     a handler passed to run() gave up on a record
└── PlacementFailed                   Ray cannot place the workers of run_consumers()

`retriable` says whether the same call may succeed later. Every error can be pickled, with its attributes.
"""

from __future__ import annotations

from typing import Any, ClassVar


class RaystreamError(Exception):
    """Root of the tree. Keyword arguments become attributes (and survive pickling)."""

    retriable: ClassVar[bool] = False

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message)
        self.__dict__.update(details)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class InvalidArgument(RaystreamError, ValueError):
    """A value the caller passed is wrong."""


class InvalidTopicName(InvalidArgument):
    """Topic names match `[a-zA-Z0-9._-]{1,249}` and are not `.` or `..`; `__` begins internal ones."""


class InvalidConfig(InvalidArgument):
    """A config key that does not exist, or a value out of its range."""


class InvalidRecord(InvalidArgument):
    """A record, frame or batch that its topic cannot take."""


class RecordTooLarge(InvalidArgument):
    """A record or batch over `max_batch_bytes`."""


class NotFound(RaystreamError, LookupError):
    """Something that was named does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class TopicNotFound(NotFound):
    """No topic of that name."""


class PartitionNotFound(NotFound):
    """The topic has no partition of that number."""


class GroupNotFound(NotFound):
    """No consumer group of that name."""


class TopicExists(RaystreamError):
    """A topic of that name is there already."""


class GroupNotEmpty(RaystreamError):
    """The group has running members, so its offsets are theirs."""


class RequestTimeout(RaystreamError, TimeoutError):
    """No answer within the deadline; the outcome is unknown."""

    retriable = True


class DeliveryTimeout(RequestTimeout):
    """A record was not acknowledged within `delivery_timeout_ms`.

    `.retriable` where nothing of it was written: every try was refused, or there was none. Otherwise it may or may not
    be in the log. `.__cause__` is what the last try met.
    """

    retriable = False


class BufferFull(RequestTimeout):
    """The producer's buffer stayed full for `max_block_ms`; the record was not taken."""


class Unavailable(RaystreamError):
    """Somebody is starting, moving or gone for the moment."""

    retriable = True


class ActorLost(Unavailable):
    """An actor died or could not be reached during a call; the outcome is unknown."""


class NotLeader(Unavailable):
    """The replica asked does not lead the partition."""


class NotEnoughReplicas(Unavailable):
    """Fewer replicas are in sync than `min_insync_replicas`, so acks="all" cannot be had now; nothing was written."""


class NotEnoughBrokers(Unavailable):
    """Fewer brokers are heard than the replicas that were asked for, though enough are registered; nothing was changed.

    It is not tried again by itself: a broker that is not heard may come back in a second, or never.
    """


class CoordinatorNotAvailable(Unavailable):
    """The group's coordinator is loading or gone for the moment."""


class Overloaded(Unavailable):
    """A queue in an actor is at its bound."""


class Fenced(RaystreamError):
    """The caller speaks for an earlier epoch."""


class FencedLeaderEpoch(Fenced):
    """The request carries an older leader epoch than the partition's."""

    retriable = True


class UnknownLeaderEpoch(Fenced):
    """The request carries a newer leader epoch than the replica knows."""

    retriable = True


class UnexpectedEndOffset(Fenced):
    """A batch was to stand at a certain offset, and the log ends elsewhere: somebody else has written meanwhile."""


class FencedMember(Fenced):
    """A group member's epoch is older than the group's record of it: join again."""


class UnknownMember(Fenced):
    """The group does not know the member (any more): join again."""


class FencedProducer(Fenced):
    """A newer producer took over this producer's id."""


class InvalidTransactionState(RaystreamError):
    """What was asked does not fit the state of the producer's transaction."""


class TransactionTimedOut(RaystreamError):
    """The transaction was open for longer than `transaction_timeout_ms` and was aborted."""


class ConcurrentTransactions(RaystreamError):
    """A transaction of the same transactional id is decided and not complete yet."""

    retriable = True


class OutOfOrderSequence(RaystreamError):
    """A batch arrived while the one before it is missing."""

    retriable = True


class UnknownProducer(RaystreamError):
    """The partition holds no state for the producer id, and the batch is not provably its first."""


class SchemaChanged(RaystreamError):
    """The topic has a newer schema: encode again."""

    retriable = True


class OffsetOutOfRange(RaystreamError):
    """The offset lies outside what the partition holds."""


class OffsetsLost(OffsetOutOfRange):
    """Retention or delete_records took records away before a consumer read them.

    `.topic`, `.partition`; `.first` to `.next` is the half-open range of offsets that it steps over, `.count` of them.
    """


class LogTruncated(OffsetOutOfRange):
    """Records that a consumer has read are not in the log any more: a replica that lacked them was elected, as a topic
    may allow, or a disk lost what it had not synced (KIP-320).

    `.topic`, `.partition`; `.position` is where the consumer stood, `.next` where the log parts from what it has read,
    from which it goes on.
    """


class CorruptBatch(RaystreamError):
    """Bytes whose checksum or structure is wrong."""


class CorruptLog(CorruptBatch):
    """A log file holds a bad batch below the durable point; the sentence names file and position."""


class LogLost(CorruptLog):
    """The directory of a replica that was served before is gone, or empty; the sentence names it."""


class StorageError(RaystreamError):
    """The disk refused a write; the replica stops and recovers from what is on disk."""


class DiskFull(StorageError):
    """No space is left: writes are refused, reads go on."""

    retriable = True


class DataDirectoryInUse(StorageError):
    """Another live cluster or process holds the data directory."""


class DataDirectoryUnusable(StorageError):
    """The data directory cannot be read or written."""


class NewerFormat(StorageError):
    """The data was written by a newer raystream."""


class ProtocolMismatch(RaystreamError):
    """Client and cluster speak different protocol versions."""


class ClusterNotFound(RaystreamError):
    """There is no cluster at that address."""


class ClusterGone(RaystreamError):
    """The process that owned this embedded cluster has exited, or Ray has shut down."""


class Closed(RaystreamError):
    """The producer, consumer or cluster was closed."""


class DeliveryFailed(RaystreamError):
    """Records that were handed over could not be delivered; `.failures` lists (topic, partition, count, error)."""


class HandlerFailed(RaystreamError):
    """A handler passed to run() raised, and `on_error` said to stop; `.record` or `.batch` says where."""


class PlacementFailed(RaystreamError):
    """Ray cannot place the workers that were asked for."""


class KeysMove(UserWarning):
    """A topic with a key column was given more partitions: a key's records may lie in two from now on."""
