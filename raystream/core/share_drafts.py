"""What becomes of a share group's records, as one decision has it: drafts of the next state of partitions.

A record is the whole state of its partition, so that a decision writes one for each, however much of it changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Final

from raystream import messages as m
from raystream.core.share_partition import DYING, SETTLED, SharePartition
from raystream.core.share_records import (
    ACCEPTED,
    ARCHIVED,
    AVAILABLE,
    REJECTED,
    SPENT,
    ShareGroupRecord,
    SharePartitionRecord,
)

_ALWAYS: Final = (m.RETURN, m.RELEASE, m.GONE)
"""Said also of records that are on their way to the dead-letter topic."""


class Draft:
    """A partition's next record in the making: acknowledgements of one decision, one after the other."""

    def __init__(self, partition: SharePartition, settings: ShareGroupRecord) -> None:
        self._partition = partition
        self._settings = settings
        self._runs = partition.runs.copy()
        self._counts = dict.fromkeys(("accepted", "archived", "dead_lettered", "lost"), 0)
        self._changed = False
        self.group = settings.group
        self.freed = False
        """Whether somebody else may have records now that had none before."""

    def acknowledge(self, first: int, stop: int, kind: str) -> Iterator[tuple[int, int]]:
        """What becomes of a range, all of which is locked by who says so. Yields what cannot become of it."""
        for begin, end, (state, deliveries) in list(self._runs.between(first, stop)):
            misplaced = (state in DYING) != (kind == m.BURIED) and kind not in _ALWAYS
            if state in SETTLED or misplaced:
                yield begin, end
                continue
            self._become(begin, end, state, deliveries, kind)
            self._partition.locks.put(begin, end, None)

    def _become(self, begin: int, end: int, state: int, deliveries: int, kind: str) -> None:
        count = end - begin
        match kind:
            case m.ACCEPT:
                self._settle(begin, end, ACCEPTED, "accepted")
            case m.GAP:
                self._settle(begin, end, ACCEPTED, None)
            case m.BURIED:
                self._settle(begin, end, ARCHIVED, "dead_lettered")
            case m.GONE:
                self._settle(begin, end, ARCHIVED, "lost")
            case m.REJECT:
                self._give_up(begin, end, REJECTED, deliveries + 1)
            case m.RELEASE if state == AVAILABLE:
                if deliveries + 1 >= self._settings.max_deliveries:
                    self._give_up(begin, end, SPENT, deliveries + 1)
                else:
                    self._put(begin, end, (AVAILABLE, deliveries + 1))
                    self.freed = True
            case _:
                self.freed = count > 0

    def _give_up(self, begin: int, end: int, state: int, deliveries: int) -> None:
        if self._settings.dead_letter:
            self._put(begin, end, (state, deliveries))
            self.freed = True
        else:
            self._settle(begin, end, ARCHIVED, "archived")

    def _settle(self, begin: int, end: int, state: int, counted: str | None) -> None:
        self._put(begin, end, (state, 0))
        if counted is not None:
            self._counts[counted] += end - begin

    def _put(self, begin: int, end: int, value: tuple[int, int]) -> None:
        self._runs.put(begin, end, value)
        self._changed = True

    def lose(self, before: int) -> None:
        """The log begins at `before` now: what was not settled below it is lost."""
        for begin, end, (state, _) in list(self._runs.between(self._runs.start, before)):
            if state not in SETTLED:
                self._settle(begin, end, ARCHIVED, "lost")

    def bury_nothing(self) -> None:
        """There is no dead-letter topic any more: what was on its way there is archived."""
        for begin, end, (state, _) in list(self._runs.runs()):
            if state in DYING:
                self._settle(begin, end, ARCHIVED, "archived")

    def record(self) -> SharePartitionRecord | None:
        """What to write down; None where nothing durable has changed."""
        if not self._changed:
            return None
        runs = self._runs
        for _, stop, (state, _deliveries) in list(runs.runs()):
            if state not in SETTLED:
                break
            runs.drop_before(stop)
        before = self._partition.record
        return dataclasses.replace(
            before,
            start_offset=runs.start,
            runs=tuple((first, stop, state, deliveries) for first, stop, (state, deliveries) in runs.runs()),
            **{name: getattr(before, name) + count for name, count in self._counts.items()},
        )


class Drafts:
    """All drafts of one decision. Locks are freed at once, records are to be replayed before another decision."""

    def __init__(self) -> None:
        self._drafts: dict[int, Draft] = {}
        self.freed: set[str] = set()
        """The groups in which somebody may find records now."""

    def of(self, partition: SharePartition, settings: ShareGroupRecord) -> Draft:
        """The partition's draft."""
        draft = self._drafts.get(id(partition))
        if draft is None:
            draft = self._drafts[id(partition)] = Draft(partition, settings)
        return draft

    def end_deliveries(
        self, partition: SharePartition, settings: ShareGroupRecord, ranges: list[tuple[int, int]]
    ) -> None:
        """These deliveries came to nothing, and count."""
        draft = self.of(partition, settings) if ranges else None
        for first, stop in ranges:
            assert draft is not None
            for _ in draft.acknowledge(first, stop, m.RELEASE):
                pass

    def records(self) -> tuple[SharePartitionRecord, ...]:
        """What is to be written down."""
        self.freed = {draft.group for draft in self._drafts.values() if draft.freed}
        found = (draft.record() for draft in self._drafts.values())
        return tuple(record for record in found if record is not None)
