"""Between transactional producers, coordinators and partitions' leaders."""

from __future__ import annotations

from dataclasses import dataclass

from raystream.messages.coordinator import CommitRequest
from raystream.messages.protocol import NO_EPOCH, PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class AddPartitionsRequest:
    """The producer is about to write to these partitions, (topic, topic id, partition) each, in its transaction; the
    first of them begins it. They get a marker when it ends."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    partitions: tuple[tuple[str, str, int], ...]
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTransactionRequest:
    """Commits or aborts the transaction of that epoch. `offsets` are positions of groups that move with a commit, all
    or none, and only while the members that state them may commit them."""

    transactional_id: str
    producer_id: int
    producer_epoch: int
    commit: bool
    offsets: tuple[CommitRequest, ...] = ()
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class EndTransactionReply:
    """Decided, durably. `complete`: every partition has its marker, and the producer goes on with this id and epoch."""

    producer_id: int
    producer_epoch: int
    complete: bool = True
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteMarkerRequest:
    """A coordinator to a leader: the producer's transaction in this partition is committed or aborted. The epoch is the
    one that follows the transaction's. Repeated, it changes nothing."""

    topic_id: str
    partition: int
    producer_id: int
    producer_epoch: int
    commit: bool
    leader_epoch: int = NO_EPOCH
    protocol: int = PROTOCOL
