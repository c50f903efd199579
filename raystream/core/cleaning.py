"""When a log is compacted, and up to where: from what its segments say of themselves. Kafka's rules.

Compaction goes from the log's beginning up to an offset, by whole segments. What it has gone over is *clean*: no key
stands there twice. The rest, below the bound, is *dirty*.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class SegmentFacts(NamedTuple):
    """A segment that is not appended to: offsets half-open, its bytes, the append times of its first and last batch."""

    base_offset: int
    end_offset: int
    size_bytes: int
    first_append_ms: int
    last_append_ms: int


def clean_up_to(
    sealed: Sequence[SegmentFacts],
    *,
    cleaned_to: int,
    bound: int,
    min_cleanable_dirty_ratio: float,
    min_compaction_lag_ms: int,
    max_compaction_lag_ms: int | None,
    now_ms: int,
    horizon_ms: int | None = None,
) -> int | None:
    """The offset to compact up to, the end of one of the segments; None: not now.

    `bound` is the offset below which everything is replicated, decided and remembered. It is time when the dirty part
    is `min_cleanable_dirty_ratio` of all that could be compacted, or holds a record that was appended
    `max_compaction_lag_ms` ago. And it is time once `horizon_ms` has come, at which a tombstone may go: a log that
    nobody writes to would keep it for ever.
    """
    clean_bytes = dirty_bytes = 0
    clean_to = upto = oldest_ms = None
    for segment in sealed:
        if segment.end_offset > bound or now_ms - segment.last_append_ms < min_compaction_lag_ms:
            break
        if segment.end_offset <= cleaned_to:
            clean_bytes += segment.size_bytes
            clean_to = segment.end_offset
            continue
        dirty_bytes += segment.size_bytes
        upto = segment.end_offset
        oldest_ms = segment.first_append_ms if oldest_ms is None else min(oldest_ms, segment.first_append_ms)
    expired = horizon_ms is not None and now_ms >= horizon_ms
    if upto is None or oldest_ms is None:
        return clean_to if expired else None
    overdue = max_compaction_lag_ms is not None and now_ms - oldest_ms >= max_compaction_lag_ms
    enough = dirty_bytes / (clean_bytes + dirty_bytes) >= min_cleanable_dirty_ratio
    return upto if overdue or enough or expired else None
