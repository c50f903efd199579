"""Retention at work on a leading replica: now and then, on the writer's turn, what is kept no longer is deleted.

The followers are told the log's new start with what they are sent next, and delete as far on their own disks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from raystream.core import retention
from raystream.core.topic_names import is_internal
from raystream.errors import CorruptBatch, DiskFull

if TYPE_CHECKING:
    from raystream.actors.replica import Replica

CHECK_MS: Final = 5_000.0


class Retention:
    """One replica's. *writer*"""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._due_ms = replica.clock.monotonic_ms() + CHECK_MS

    def turn(self) -> None:
        """Deletes what is kept no longer, where it was not looked at for CHECK_MS."""
        replica = self._replica
        now_ms = replica.clock.monotonic_ms()
        if now_ms < self._due_ms:
            return
        self._due_ms = now_ms + CHECK_MS
        config = replica.config
        limited = config.retention_ms is not None or config.retention_bytes is not None
        if not limited or not config.deletes or is_internal(replica.spec.topic):
            return
        try:
            offset = self._first_kept()
            if offset is not None:
                replica.move_start(offset, active_too=True)
        except (CorruptBatch, FileNotFoundError, DiskFull) as error:  # what is damaged is the scrubber's to repair
            replica.note("records past their retention could not be deleted", error)

    def _first_kept(self) -> int | None:
        replica, log = self._replica, self._replica.log
        tails = (segment.loaded_tail() for segment in log.segments)
        return retention.first_kept(
            (retention.SegmentAge(tail.end_offset, tail.size, tail.last_append_ms) for tail in tails),
            log_bytes=log.size_bytes,
            log_end_offset=log.end_offset,
            high_watermark=min(replica.high_watermark, log.flushed_end_offset),
            retention_ms=replica.config.retention_ms,
            retention_bytes=replica.config.retention_bytes,
            now_ms=replica.clock.now_ms(),
        )
