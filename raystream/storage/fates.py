"""What compaction makes of a batch besides looking at its rows' keys: by its transaction, and by who wrote it.

Only what is decided is compacted. Rows of a transaction that was committed are rows like any other from then on; those
of an aborted one go. A marker ends its transaction for whoever holds records of it: compaction takes those with it, so
that a marker is of use to replicas alone that have the records and not the marker yet. It stays for its grace, and for
as long as a replica is not in sync. The last thing of each producer that is remembered stays as a batch of its own, if
need be without rows, so that the log itself says which sequence comes next.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from raystream import batch as b
from raystream.storage.aborted import Aborted
from raystream.storage.log import Log

MARKER_GRACE_MS: Final = 60_000
"""A marker stays for so long at the least: who is in sync is told to every replica well within it."""

Fate = Literal["rows", "own", "marker", "void"]
"""The rows are looked at by their keys; likewise, in a batch that goes on saying who wrote it; a marker that stays;
nothing of it stays."""


class Fates:
    """What is known of transactions and producers when a cleaning begins. Below `decided_to` all is decided."""

    def __init__(
        self,
        aborted: Sequence[Aborted],
        last: Mapping[int, tuple[int, int]],
        decided_to: int,
        *,
        now_ms: int,
        in_sync: bool,
    ) -> None:
        self.decided_to = decided_to
        self._last = last
        self._now_ms = now_ms
        self._in_sync = in_sync
        self._aborted: dict[int, list[Aborted]] = {}
        for entry in aborted:
            self._aborted.setdefault(entry.producer_id, []).append(entry)

    def of(self, header: b.BatchHeader) -> Fate:
        if header.is_control:
            gone = self.may_go(header) and 0 < header.delete_horizon_ms <= self._now_ms
            return "void" if gone else "marker"
        if header.is_transactional:
            return "void" if self._was_aborted(header) else "rows"
        return "own" if self._is_last(header) else "rows"

    def may_go(self, marker: b.BatchHeader) -> bool:
        """Whether a marker goes once its grace has passed."""
        return self._in_sync and not self._is_last(marker)

    def _was_aborted(self, header: b.BatchHeader) -> bool:
        entries = self._aborted.get(header.producer_id, [])
        at = bisect_left(entries, header.base_offset, key=lambda entry: entry.last_offset)
        return at < len(entries) and entries[at].first_offset <= header.base_offset

    def _is_last(self, header: b.BatchHeader) -> bool:
        if header.producer_id == b.NO_PRODUCER_ID:
            return False
        offset = b.NO_SEQUENCE if header.is_control else header.base_offset
        return self._last.get(header.producer_id) == (header.producer_epoch, offset)


def fates_in(log: Log, *, now_ms: int, in_sync: bool) -> Fates:
    """As the log's writer knows them now. `in_sync`: every replica holds all that is committed."""
    producers = log.producers
    decided_to = min(log.high_watermark, producers.first_open(log.end_offset))
    return Fates(producers.aborted.entries, producers.last_of_each(), decided_to, now_ms=now_ms, in_sync=in_sync)
