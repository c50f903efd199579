"""Which offsets of which partition were processed, how often, and which are missing. Pure arithmetic on ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Range = tuple[int, int]
"""Half-open: from the first offset to the one after the last."""


@dataclass
class Ledger:
    """The offsets seen so far, as sorted disjoint ranges per partition."""

    seen: dict[int, list[Range]] = field(default_factory=dict)
    repeated: int = 0

    def add(self, partition: int, first: int, end: int) -> list[Range]:
        """Enters a range and answers those parts of it that are new; the rest is counted as repeated."""
        ranges = self.seen.get(partition, [])
        new = subtracted((first, end), ranges)
        self.repeated += (end - first) - sum(b - a for a, b in new)
        self.seen[partition] = _joined([*ranges, *new])
        return new

    @property
    def distinct(self) -> int:
        """How many offsets were seen at least once."""
        return sum(end - first for ranges in self.seen.values() for first, end in ranges)

    def missing(self, produced: Mapping[int, Range]) -> int:
        """How many of the produced offsets were never seen."""
        return sum(
            end - first
            for partition, made in produced.items()
            for first, end in subtracted(made, self.seen.get(partition, []))
        )


def subtracted(whole: Range, taken: list[Range]) -> list[Range]:
    """The parts of `whole` that lie in none of the sorted disjoint ranges `taken`."""
    at, stop = whole
    left = []
    for first, end in taken:
        if end <= at or first >= stop:
            continue
        if first > at:
            left.append((at, first))
        at = max(at, end)
    if at < stop:
        left.append((at, stop))
    return left


def _joined(ranges: list[Range]) -> list[Range]:
    joined: list[Range] = []
    for first, end in sorted(ranges):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((first, end))
    return joined
