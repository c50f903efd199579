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
        self._heap: list[tuple[float, Key]] = []
        self._queued: dict[Key, float] = {}

    def watch(self, key: Key) -> None:
        """The key is new, or its deadline may have moved to an earlier time."""
        due_ms = self._due_ms(key)
        if due_ms is not None and due_ms < self._queued.get(key, float("inf")):
            self._queued[key] = due_ms
            heapq.heappush(self._heap, (due_ms, key))

    def next_ms(self) -> float | None:
        """The first deadline of all."""
        while self._heap:
            bound, key = self._heap[0]
            if self._queued.get(key) != bound:
                heapq.heappop(self._heap)  # an earlier bound took its place
                continue
            due_ms = self._due_ms(key)
            if due_ms is None:
                heapq.heappop(self._heap)
                del self._queued[key]
            elif due_ms > bound:
                self._queued[key] = due_ms
                heapq.heapreplace(self._heap, (due_ms, key))
            else:
                return bound
        return None

    def due(self, now_ms: float) -> list[Key]:
        """The keys whose deadline has come. They are named again until they are gone or their deadline has moved."""
        found: list[Key] = []
        bounds: list[tuple[float, Key]] = []
        while True:
            first = self.next_ms()
            if first is None or first > now_ms:
                break
            bounds.append(heapq.heappop(self._heap))
            found.append(bounds[-1][1])
        for bound in bounds:
            heapq.heappush(self._heap, bound)
        return found
