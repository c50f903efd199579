"""A value for every offset of a window, kept as runs of equal values."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, TypeVar

V = TypeVar("V")


class OffsetRuns(Generic[V]):
    """Values from offset `start` on; from `stop` on all are `rest`. Ranges are half-open."""

    __slots__ = ("_firsts", "_rest", "_values", "start", "stop")

    def __init__(self, start: int, rest: V) -> None:
        self.start = start
        self.stop = start
        self._rest = rest
        self._firsts: list[int] = []
        self._values: list[V] = []

    def copy(self) -> OffsetRuns[V]:
        """One that may change by itself."""
        twin = OffsetRuns(self.start, self._rest)
        twin.stop = self.stop
        twin._firsts = self._firsts.copy()
        twin._values = self._values.copy()
        return twin

    def put(self, first: int, stop: int, value: V) -> None:
        """Offsets from `first` to below `stop` get a value; those below `start` are past."""
        first = max(first, self.start)
        if stop <= first:
            return
        firsts, values = self._firsts, self._values
        if first > self.stop:
            self._append(self.stop, first, self._rest)
        begin, end = bisect_left(firsts, first), bisect_left(firsts, stop)
        new_firsts, new_values = [first], [value]
        if stop < self.stop and (end == len(firsts) or firsts[end] != stop):
            new_firsts.append(stop)
            new_values.append(values[end - 1])
        firsts[begin:end] = new_firsts
        values[begin:end] = new_values
        self.stop = max(self.stop, stop)
        self._join(begin + len(new_firsts))
        self._join(begin + 1)
        self._join(begin)
        while values and values[-1] == self._rest:
            values.pop()
            self.stop = firsts.pop()

    def _append(self, first: int, stop: int, value: V) -> None:
        self._firsts.append(first)
        self._values.append(value)
        self.stop = stop

    def _join(self, at: int) -> None:
        """The run at a place becomes part of the one before it, where both have the same value."""
        if 0 < at < len(self._firsts) and self._values[at] == self._values[at - 1]:
            del self._firsts[at], self._values[at]

    def drop_before(self, offset: int) -> None:
        """The window begins at `offset` now, if it did not later."""
        if offset <= self.start:
            return
        past = bisect_right(self._firsts, offset)
        if offset >= self.stop:
            self._firsts.clear()
            self._values.clear()
            self.stop = offset
        elif past:
            del self._firsts[: past - 1], self._values[: past - 1]
            self._firsts[0] = offset
        self.start = offset

    def runs(self) -> Iterator[tuple[int, int, V]]:
        """(first, stop, value) of every run, up to `stop`."""
        return zip(self._firsts, [*self._firsts[1:], self.stop], self._values, strict=False)

    def between(self, first: int, stop: int) -> Iterator[tuple[int, int, V]]:
        """As `runs`, cut to a range, with the rest beyond `self.stop`. The runs may be changed while it is drawn from
        only where they were drawn already."""
        first = max(first, self.start)
        while first < min(stop, self.stop):
            at = bisect_right(self._firsts, first) - 1
            end = self._firsts[at + 1] if at + 1 < len(self._firsts) else self.stop
            yield first, min(end, stop), self._values[at]
            first = min(end, stop)
        if first < stop:
            yield first, stop, self._rest
