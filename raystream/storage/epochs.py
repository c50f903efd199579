"""Which leader epoch wrote which part of a log: what two replicas compare to find where they part.

Truncation goes by (epoch, end offset) and never by a high watermark (KIP-101, KIP-279): a leader compares a follower's
epochs with its own, see `core.replication.truncation_point`, and the follower drops what it has beyond.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple


class EpochStart(NamedTuple):
    """An epoch and the offset of its first batch in this log."""

    epoch: int
    start_offset: int


class Epochs:
    """The epochs of one log, in order. One thread changes them; others may look up meanwhile."""

    def __init__(self, starts: Iterable[tuple[int, int]] = ()) -> None:
        self._starts = tuple(EpochStart(*start) for start in starts)

    @property
    def starts(self) -> tuple[EpochStart, ...]:
        return self._starts

    @property
    def last(self) -> int:
        """The epoch of the last batch; -1 in a log that never held one."""
        return self._starts[-1].epoch if self._starts else -1

    def end_of(self, epoch: int, end_offset: int) -> int | None:
        """Where what was written up to that epoch ends, in a log that ends at `end_offset`; None: the log begins with a
        later epoch."""
        at = bisect_right(self._starts, epoch, key=itemgetter(0))
        if at == 0:
            return None
        return self._starts[at].start_offset if at < len(self._starts) else end_offset

    def note(self, epoch: int, base_offset: int) -> None:
        """A batch of `epoch` stands at `base_offset`. Older epochs than the last change nothing."""
        if epoch > self.last:
            self._starts = (*self._starts, EpochStart(epoch, base_offset))

    def cut(self, end_offset: int) -> None:
        """Forgets epochs that begin at or past the log's new end."""
        self._starts = tuple(start for start in self._starts if start.start_offset < end_offset)

    def drop_before(self, start_offset: int) -> None:
        """Forgets epochs that end at or below the log's new start, all but the last."""
        first = bisect_right(self._starts, start_offset, key=itemgetter(1)) - 1
        self._starts = self._starts[max(first, 0) :]
