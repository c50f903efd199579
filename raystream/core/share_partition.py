"""A share group's state in one partition: which records are settled, which wait, and who has acquired which.

What a record's state is, and how often it was delivered, is durable: replaying a SharePartitionRecord sets it, and
nothing else does. Locks are soft: whoever decides takes and frees them at once. Every way out of a lock that was a
delivery goes through a record, so that delivery counts survive; those of locks that a failover ends are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from raystream import messages as m
from raystream.core.offset_runs import OffsetRuns
from raystream.core.share_records import ACCEPTED, ARCHIVED, AVAILABLE, REJECTED, SPENT, SharePartitionRecord

DYING: Final = {SPENT: "deliveries", REJECTED: "rejected"}
"""States of records on their way to the dead-letter topic, and the reason that is said there."""
SETTLED: Final = (ACCEPTED, ARCHIVED)
_FRESH: Final = (AVAILABLE, 0)


class Lock(NamedTuple):
    """Who has a record until when, and by which of its acquisitions."""

    member_id: str
    deadline_ms: float
    sequence: int


class Offer(NamedTuple):
    """Records that may be acquired, all of one state; `deliveries` is how often they were delivered before."""

    first: int
    stop: int
    state: int
    deliveries: int


class SharePartition:
    """One partition's records as one share group sees them."""

    def __init__(self, record: SharePartitionRecord) -> None:
        self.record = record
        self.runs: OffsetRuns[tuple[int, int]] = OffsetRuns(record.start_offset, _FRESH)
        self.locks: OffsetRuns[Lock | None] = OffsetRuns(record.start_offset, None)
        self.replay(record)

    def replay(self, record: SharePartitionRecord) -> None:
        """The record is the state from now on. A start offset that moves back is a reset: no lock survives it."""
        if record.start_offset < self.locks.start:
            self.locks = OffsetRuns(record.start_offset, None)
        self.record = record
        self.runs = OffsetRuns(record.start_offset, _FRESH)
        for first, stop, state, deliveries in record.runs:
            self.runs.put(first, stop, (state, deliveries))
        self.locks.drop_before(record.start_offset)

    # Acquiring ------------------------------------------------------------------------------------------------------

    def offers(self, end_offset: int, max_in_flight: int) -> Iterator[Offer]:
        """What may be acquired below `end_offset`, in order of offset. Nothing is that lies `max_in_flight` offsets
        past the first record that is not settled: so the state of a partition stays small."""
        limit = min(end_offset, self.runs.start + max_in_flight)
        for first, stop, (state, deliveries) in self.runs.between(self.runs.start, limit):
            if state in SETTLED:
                continue
            for begin, end, lock in self.locks.between(first, stop):
                if lock is None:
                    yield Offer(begin, end, state, deliveries)

    def is_full(self, max_in_flight: int) -> bool:
        """Whether records that are not settled hold all others back."""
        return max(self.runs.stop, self.locks.stop) >= self.runs.start + max_in_flight

    def has_dying(self) -> bool:
        """Whether records are on their way to the dead-letter topic, and nobody has acquired them."""
        return any(
            lock is None
            for first, stop, (state, _) in self.runs.runs()
            if state in DYING
            for _, _, lock in self.locks.between(first, stop)
        )

    def lock(self, first: int, stop: int, lock: Lock) -> None:
        """Nobody else gets the records until the lock is freed."""
        self.locks.put(first, stop, lock)

    def granted(self, member_id: str, sequence: int) -> Iterator[Offer]:
        """What an acquisition of the member gave it and it still has."""
        for first, stop, lock in list(self.locks.runs()):
            if lock is not None and (lock.member_id, lock.sequence) == (member_id, sequence):
                for begin, end, (state, deliveries) in self.runs.between(first, stop):
                    yield Offer(begin, end, state, deliveries)

    def take_back(self, member_id: str, after: int) -> bool:
        """Frees what the member acquired after its acquisition `after`: it never heard of it. Whether there was any."""
        unheard = [
            (first, stop)
            for first, stop, lock in self.locks.runs()
            if lock is not None and lock.member_id == member_id and lock.sequence > after
        ]
        for first, stop in unheard:
            self.locks.put(first, stop, None)
        return bool(unheard)

    # Deadlines ------------------------------------------------------------------------------------------------------

    def due_ms(self) -> float | None:
        """When the first lock runs out."""
        return min((lock.deadline_ms for _, _, lock in self.locks.runs() if lock is not None), default=None)

    def held_by(self, member_id: str) -> list[tuple[int, int]]:
        """The ranges that a member has."""
        return [(first, stop) for first, stop, lock in self.locks.runs() if lock and lock.member_id == member_id]

    def run_out(self, now_ms: float) -> list[tuple[int, int]]:
        """The ranges whose locks have run out."""
        return [(first, stop) for first, stop, lock in self.locks.runs() if lock and lock.deadline_ms <= now_ms]

    # Looks ----------------------------------------------------------------------------------------------------------

    def info(self) -> m.SharePartitionInfo:
        """The counts of records by state."""
        acquired = sum(stop - first for first, stop, lock in self.locks.runs() if lock is not None)
        released = dying = settled = 0
        for first, stop, (state, deliveries) in self.runs.runs():
            free = sum(end - begin for begin, end, lock in self.locks.between(first, stop) if lock is None)
            settled += stop - first if state in SETTLED else 0
            dying += free if state in DYING else 0
            released += free if state == AVAILABLE and deliveries else 0
        record = self.record
        return m.SharePartitionInfo(
            topic=record.topic,
            partition=record.partition,
            start_offset=record.start_offset,
            acquired=acquired,
            released=released,
            dying=dying,
            settled=settled,
            accepted=record.accepted,
            archived=record.archived,
            dead_lettered=record.dead_lettered,
            lost=record.lost,
        )
