"""Which segments of a log its topic keeps no longer: by age, by size, or both. Whole segments, the oldest first.

A segment is past `retention_ms` once its *last* batch was appended so long ago: append time, whatever the records say
of themselves, so that a backfill of old events stays. The segment that is appended to goes as well then, and the next
append begins another: a topic that is written to seldom keeps its records no longer than it says, also where
`retention_ms` is shorter than `segment_ms`. By size the oldest segments go as long as `retention_bytes` or more are
left, and never the one that is appended to: a partition holds between `retention_bytes` and a segment more.

Nothing goes that is not below the high watermark: what is not replicated is nobody's to delete.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class SegmentAge(NamedTuple):
    """What retention looks at: where a segment ends, its bytes, and when its last batch was appended."""

    end_offset: int
    size_bytes: int
    last_append_ms: int


def first_kept(
    segments: Iterable[SegmentAge],
    *,
    log_bytes: int,
    log_end_offset: int,
    high_watermark: int,
    retention_ms: int | None,
    retention_bytes: int | None,
    now_ms: int,
) -> int | None:
    """The offset from which on the log is kept: the end of the last segment that goes; None: all of it stays.

    Draws `segments`, the oldest first, until one stays.
    """
    kept_from = None
    left_bytes = log_bytes
    for segment in segments:
        if segment.end_offset > high_watermark:
            break
        left_bytes -= segment.size_bytes
        too_old = retention_ms is not None and now_ms - segment.last_append_ms >= retention_ms
        active = segment.end_offset == log_end_offset
        too_much = retention_bytes is not None and left_bytes >= retention_bytes and not active
        if not (too_old or too_much):
            break
        kept_from = segment.end_offset
    return kept_from
