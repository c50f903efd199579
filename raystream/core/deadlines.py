"""Which of many deadlines comes first, where most of them move on long before they are due."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Deadlines(Generic[Key]):
    """A heap of lower bounds. A deadline that moves later costs nothing: its key is asked again when its bound comes.

    `due_ms(key)` is the present deadline, or None where the key is gone.
    """

    def __init__(self, due_ms: Callable[[Key], float | None]) -> None:
        self._due_ms = due_ms
        self._heap: list[tuple[float, int, Key]] = []
        self._bounds: dict[Key, tuple[float, int, Key]] = {}
        """The entry of each key that counts; others that are still in the heap do not."""
        self._serial = 0

    def _bound(self, key: Key, due_ms: float) -> tuple[float, int, Key]:
        self._serial += 1
        entry = self._bounds[key] = (due_ms, self._serial, key)
        return entry

    def watch(self, key: Key) -> None:
        """The key is new, or its deadline may have moved to an earlier time."""
        due_ms = self._due_ms(key)
        if due_ms is not None and (key not in self._bounds or due_ms < self._bounds[key][0]):
            heapq.heappush(self._heap, self._bound(key, due_ms))

    def next_ms(self) -> float | None:
        """The first deadline of all."""
        while self._heap:
            entry = self._heap[0]
            key = entry[2]
            if self._bounds.get(key) != entry:
                heapq.heappop(self._heap)
                continue
            due_ms = self._due_ms(key)
            if due_ms is None:
                heapq.heappop(self._heap)
                del self._bounds[key]
            elif due_ms > entry[0]:
                heapq.heapreplace(self._heap, self._bound(key, due_ms))
            else:
                return entry[0]
        return None

    def due(self, now_ms: float) -> list[Key]:
        """The keys whose deadline has come. They are named again until they are gone or their deadline has moved."""
        entries: list[tuple[float, int, Key]] = []
        first = self.next_ms()
        while first is not None and first <= now_ms:
            entries.append(heapq.heappop(self._heap))
            first = self.next_ms()
        for entry in entries:
            heapq.heappush(self._heap, entry)
        return [key for _, _, key in entries]
