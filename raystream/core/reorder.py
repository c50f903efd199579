"""Puts a producer's batches in flight back in order: early ones wait, bounded, for the one before them.

Pure: the clock is an argument, the ticket opaque. The partition's writer thread owns it.
"""

from __future__ import annotations

from typing import Final, Generic, NamedTuple, TypeVar

Ticket = TypeVar("Ticket")

MAX_EARLY_BATCHES: Final = 5
"""Per producer: as many as a producer may have in flight."""
MAX_EARLY_PRODUCERS: Final = 1024
MAX_EARLY_BYTES: Final = 64 << 20


class _Early(NamedTuple, Generic[Ticket]):
    ticket: Ticket
    size_bytes: int
    deadline_ms: float


class ReorderBuffer(Generic[Ticket]):
    """Batches that arrived before their turn, by producer id and base sequence.

    All wait equally long, so they stand in the order in which they are given up. `now_ms` never goes back.
    """

    def __init__(self, *, max_wait_ms: float, max_bytes: int = MAX_EARLY_BYTES) -> None:
        self._max_wait_ms = max_wait_ms
        self._max_bytes = max_bytes
        self._early: dict[tuple[int, int], _Early[Ticket]] = {}
        self._count: dict[int, int] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._early)

    @property
    def size_bytes(self) -> int:
        """What the waiting batches hold."""
        return self._size_bytes

    def offer(
        self, producer_id: int, base_sequence: int, ticket: Ticket, now_ms: float, size_bytes: int = 0
    ) -> list[Ticket] | None:
        """Keeps an early batch for its turn, or None where there is no room for it.

        A repetition of a batch that waits already takes its place; the ticket it displaces is in the answer, for the
        caller to fail: whoever sent it no longer listens.
        """
        key = (producer_id, base_sequence)
        displaced = self._early.get(key)
        freed = 0 if displaced is None else displaced.size_bytes
        if self._size_bytes - freed + size_bytes > self._max_bytes:
            return None
        if displaced is None:
            waiting = self._count.get(producer_id, 0)
            if waiting >= MAX_EARLY_BATCHES or (not waiting and len(self._count) >= MAX_EARLY_PRODUCERS):
                return None
        else:
            self._take(key)
        self._early[key] = _Early(ticket, size_bytes, now_ms + self._max_wait_ms)
        self._count[producer_id] = self._count.get(producer_id, 0) + 1
        self._size_bytes += size_bytes
        return [] if displaced is None else [displaced.ticket]

    def release_after(self, producer_id: int, next_sequence: int) -> Ticket | None:
        """The batch whose turn it is once everything below `next_sequence` is in the log, if it waits here.

        The caller asks again once that one is placed: its size says what comes next.
        """
        key = (producer_id, next_sequence)
        return self._take(key) if key in self._early else None

    def expired(self, now_ms: float) -> list[Ticket]:
        """Takes out the batches that have waited long enough."""
        late = []
        for key, early in self._early.items():
            if early.deadline_ms > now_ms:
                break
            late.append(key)
        return [self._take(key) for key in late]

    def clear(self) -> list[Ticket]:
        """Takes out everything."""
        return [self._take(key) for key in list(self._early)]

    def next_deadline_ms(self) -> float | None:
        """When the first of the waiting batches is given up."""
        for early in self._early.values():
            return early.deadline_ms
        return None

    def _take(self, key: tuple[int, int]) -> Ticket:
        early = self._early.pop(key)
        self._size_bytes -= early.size_bytes
        self._count[key[0]] -= 1
        if not self._count[key[0]]:
            del self._count[key[0]]
        return early.ticket
