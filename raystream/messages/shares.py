"""Between clients and coordinators: share groups, whose members take records rather than partitions (KIP-932)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from raystream.messages.protocol import PROTOCOL

JOIN: Final = "join"
STAY: Final = "stay"
LEAVE: Final = "leave"

ACCEPT: Final = "accept"
"""The record is done with."""
RELEASE: Final = "release"
"""The record is to be delivered again, unless this was its last try."""
REJECT: Final = "reject"
"""The record can never be handled."""
RENEW: Final = "renew"
"""The lock begins anew."""
RETURN: Final = "return"
"""Nobody has seen the record: this delivery does not count."""
GAP: Final = "gap"
"""There is no record at the offset: it belonged to a marker, or compaction took it."""
GONE: Final = "gone"
"""Retention took the record before it was delivered: it is lost."""
BURIED: Final = "buried"
"""The record's copy is durable in the dead-letter topic."""

ShareRange = tuple[str, int, int, int, int, str]
"""Topic, partition, first offset, the offset after the last, which delivery this is, and why the records go to the
dead-letter topic ("": they do not)."""
Acknowledgement = tuple[str, int, int, int, str, int]
"""Topic, partition, first offset, the offset after the last, one of the words above, and the sequence of the
acquisition that gave the records (0: any of the member's): it does not count for what was acquired anew since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareHeartbeatRequest:
    """A member's sign of life: it joins with nothing in its hands, stays, or leaves.

    The group's settings are those of the member that joined last. `starts`, (topic, partition, offset), counts for
    partitions that the group has no state of; one that is missing there is younger and begins at 0.

    `sequence` grows with every heartbeat and every acquisition of the member's life (a repeated call keeps its own): a
    join that arrives after a later call changes nothing.
    """

    group: str
    member_id: str
    intent: str = STAY
    topics: tuple[str, ...] = ()
    starts: tuple[tuple[str, int, int], ...] = ()
    max_deliveries: int = 5
    lock_timeout_ms: int = 30_000
    max_in_flight: int = 2_000
    dead_letter: str = ""
    client: str = ""
    session_timeout_ms: int = 10_000
    sequence: int = 0
    pattern: str | None = None
    """A regular expression that topics' names match, instead of `topics`."""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareHeartbeatReply:
    """The group's settings that its members need to know. `dying`: records wait to be buried, and nobody has them."""

    lock_timeout_ms: int
    dead_letter: str = ""
    dying: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAcquireRequest:
    """Asks for records, and waits up to `max_wait_ms` for the first. A repeated call gets the same ones.

    `received` is the sequence of the member's latest acquisition whose reply has arrived: what was acquired after it
    is in nobody's hands. With `dying_only` it asks for records that are to be buried, and for no others.
    """

    group: str
    member_id: str
    max_records: int
    max_wait_ms: int = 0
    sequence: int = 0
    received: int = 0
    dying_only: bool = False
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAcquireReply:
    """What is the member's now, for `lock_timeout_ms` from when it was decided."""

    ranges: tuple[ShareRange, ...] = ()
    lock_timeout_ms: int = 0
    dead_letter: str = ""
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAcknowledgeRequest:
    """What becomes of records that the member has acquired. A repeated call, with its own `sequence`, counts once."""

    group: str
    member_id: str
    ranges: tuple[Acknowledgement, ...]
    sequence: int = 0
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareAcknowledgeReply:
    """All is durable but what was `refused`, (topic, partition, first, stop): those were not the member's any more."""

    refused: tuple[tuple[str, int, int, int], ...] = ()
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True, kw_only=True)
class SharePartitionInfo:
    """A share group's state in one partition. Everything below `start_offset` is settled; `acquired` are locked by
    members, `released` wait for another try, `dying` for their way into the dead-letter topic, `settled` are done
    beyond the start offset. The other counts are since the group began."""

    topic: str
    partition: int
    start_offset: int
    acquired: int
    released: int
    dying: int
    settled: int
    accepted: int
    archived: int
    dead_lettered: int
    lost: int
