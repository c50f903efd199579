"""What a leading replica and its followers say to each other, and how far one follower is, as its leader knows it.

probe      the leader does not know where the logs part: it asks the follower for its end and its epochs
truncate   it does: the follower drops what it has beyond, once, and is *aligned* from then on
stream     the follower's log is the beginning of the leader's: batches follow each other without waiting, up to a bound

A gap, a refused request, an answer that stays away and a new life of the follower all lead back to `probe`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

EpochStarts = tuple[tuple[int, int], ...]
"""A log's leader epochs with the offset where each begins, in order."""
Mode = Literal["probe", "truncate", "stream"]
UNKNOWN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSettings:
    """How a leader replicates."""

    max_lag_ms: float = 4_000
    """A follower that has not caught up for so long leaves the ISR; it counts from the sending of what it answered."""
    heartbeat_interval_ms: float = 500
    request_timeout_ms: float = 2_000
    retry_ms: float = 500
    """An ISR change, a probe or a truncation that nobody answered is sent again after so long."""
    refused_join_ms: float = 2_000
    """For so long a follower is not proposed for the ISR that the controller has just refused."""
    watermark_delay_ms: float = 10
    """A new high watermark waits so long for batches to travel with, before it is sent to a follower alone."""
    max_in_flight_batches: int = 32
    max_in_flight_catch_ups: int = 2
    """So few to a follower that is behind what the leader has in memory: what goes to it takes the leader's disk and
    processor from appends."""
    max_in_flight_bytes: int = 32 << 20
    max_send_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class IsrChange:
    """What a leader asks of the controller: this ISR, if the partition is still as the leader knows it.

    `isr` are (broker, incarnation); the incarnation is -1 for a member that stays and has not answered in this epoch.
    """

    leader: int
    leader_epoch: int
    partition_epoch: int
    isr: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What every request of a leader carries. Answers give `round`, `sent_ms` and `leader_end_offset` back."""

    leader: int
    leader_epoch: int
    round: int
    incarnation: int
    """The life of the follower that it is meant for; -1 in a probe."""
    sent_ms: float
    leader_end_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe(Request):
    """Asks for the follower's end and epochs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncate(Request):
    """Asks the follower to drop what it has from `offset` on. It is aligned with the leader then.

    With `anew` the leader's own log begins at `offset`, past all that the follower shares with it: the follower drops
    its whole log and begins another one there.
    """

    offset: int
    anew: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Send(Request):
    """Batches from `offset` on, which the shell adds: up to `max_bytes`, one at least; none where that is 0.

    With `catch_up` the shell does not hold them in memory any more and reads them from segments, beside its other work.
    """

    offset: int
    max_bytes: int
    catch_up: bool
    high_watermark: int


class BatchAt(NamedTuple):
    """A batch's place: offsets half-open, and the leader epoch it was written in. `rewritten`: compaction has made it
    of others, so that it may begin and end where none of them did."""

    base_offset: int
    end_offset: int
    epoch: int
    rewritten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """How a follower's log stands. Nothing of it is known to agree with the leader's."""

    follower: int
    incarnation: int
    leader_epoch: int
    round: int
    end_offset: int
    epochs: EpochStarts


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A follower's answer to Truncate and Send. All below `end_offset` agrees with the leader's, but for a `gap`."""

    follower: int
    incarnation: int
    leader_epoch: int
    round: int
    sent_ms: float
    leader_end_offset: int
    end_offset: int
    flushed_end_offset: int
    gap: bool = False


def truncation_point(
    leader_epochs: Sequence[tuple[int, int]],
    leader_end: int,
    follower_epochs: Sequence[tuple[int, int]],
    follower_end: int,
) -> int:
    """Where two logs may part: for the greatest epoch that both hold, the lesser of its two ends (KIP-279).

    Else where the follower's log begins: what it has deleted was committed. An empty log begins where it ends.
    """
    leader_ends = _ends(leader_epochs, leader_end)
    for epoch, end in reversed(_ends(follower_epochs, follower_end).items()):
        if epoch in leader_ends:
            return min(end, leader_ends[epoch])
    return min(follower_epochs[0][1] if follower_epochs else follower_end, leader_end)


def _ends(epochs: Sequence[tuple[int, int]], end: int) -> dict[int, int]:
    starts = [start for _, start in epochs[1:]]
    return {epoch: after for (epoch, _), after in zip(epochs, [*starts, end], strict=True)} if epochs else {}


@dataclass(slots=True)
class Progress:
    """One follower in one leader epoch. Within one life of the follower `matched_end` never moves back."""

    broker_id: int
    caught_up_ms: float
    """The latest sending time of a request of which the answer covered all that the leader had then."""
    incarnation: int = UNKNOWN
    matched_end: int = UNKNOWN
    """What it holds on its disk as the leader does; -1 before it is known."""
    mode: Mode = "probe"
    round: int = 0
    next_offset: int = 0
    anew: bool = False
    probed_ms: float = -math.inf
    """When the latest probe was sent; -inf where the next need not wait."""
    asked_ms: float = -math.inf
    """When the latest request of this mode was sent, other than a probe."""
    reading: bool = False
    """The shell is reading what comes next."""
    in_flight: deque[tuple[int, int, float]] = field(default_factory=deque)
    """End offset, bytes and sending time of each group of batches under way."""
    high_watermark_sent: int = UNKNOWN
    held_until_ms: float = -math.inf
    """Before this it is not proposed for the ISR: the controller refused it a moment ago."""

    @property
    def in_flight_bytes(self) -> int:
        return sum(size for _, size, _ in self.in_flight)

    def probe(self) -> None:
        """Starts over: answers to what is under way do not move the pipeline any more."""
        self.mode = "probe"
        self.round += 1
        self.reading = False
        self.in_flight.clear()

    def live(self, incarnation: int) -> bool:
        """Whether the follower speaks in the life that is known; a later life starts over, an earlier is not heard."""
        if incarnation > self.incarnation:
            self.incarnation = incarnation
            self.matched_end = UNKNOWN
            self.probe()
            return False
        return incarnation == self.incarnation

    def truncate(self, offset: int, *, anew: bool) -> None:
        """It is known where the logs part."""
        self.mode = "truncate"
        self.next_offset = offset
        self.anew = anew
        self.asked_ms = -math.inf

    def stream(self, offset: int) -> None:
        """The follower's log agrees with the leader's up to `offset`, where it ends."""
        self.mode = "stream"
        self.next_offset = offset
        self.asked_ms = -math.inf

    def sent(self, end_offset: int, size_bytes: int, now_ms: float) -> None:
        """Batches up to `end_offset` are under way."""
        self.reading = False
        if end_offset > self.next_offset:
            self.in_flight.append((end_offset, size_bytes, now_ms))
            self.next_offset = end_offset

    def holds(self, end_offset: int) -> None:
        """The follower has written all up to `end_offset`."""
        while self.in_flight and self.in_flight[0][0] <= end_offset:
            self.in_flight.popleft()

    def give_up(self, sent_until_ms: float) -> None:
        """Starts over where batches that were sent by then have not been answered."""
        if self.in_flight and self.in_flight[0][2] <= sent_until_ms:
            self.probe()
