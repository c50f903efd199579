"""Puts a producer's batches in flight back in order: early ones wait, bounded, for the one before them.

Pure: the clock is an argument, the ticket opaque. The partition's writer thread owns it.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

Ticket = TypeVar("Ticket")

MAX_EARLY_BATCHES: Final = 5
"""Per producer: as many as a producer may have in flight."""
MAX_EARLY_PRODUCERS: Final = 1024


class ReorderBuffer(Generic[Ticket]):
    """Batches that arrived before their turn, by producer id and base sequence."""

    def __init__(self, *, max_wait_ms: float) -> None:
        self._max_wait_ms = max_wait_ms
        self._early: dict[int, dict[int, tuple[Ticket, float]]] = {}

    def __len__(self) -> int:
        return sum(len(waiting) for waiting in self._early.values())

    def offer(self, producer_id: int, base_sequence: int, ticket: Ticket, now_ms: float) -> list[Ticket] | None:
        """Keeps an early batch for its turn, or None where there is no room for it.

        A repetition of a batch that waits already takes its place; the ticket it displaces is in the answer, for the
        caller to fail: whoever sent it no longer listens.
        """
        waiting = self._early.get(producer_id)
        if waiting is None:
            if len(self._early) >= MAX_EARLY_PRODUCERS:
                return None
            waiting = self._early[producer_id] = {}
        displaced = waiting.get(base_sequence)
        if displaced is None and len(waiting) >= MAX_EARLY_BATCHES:
            return None
        waiting[base_sequence] = (ticket, now_ms + self._max_wait_ms)
        return [] if displaced is None else [displaced[0]]

    def release_after(self, producer_id: int, next_sequence: int) -> Ticket | None:
        """The batch whose turn it is once everything below `next_sequence` is in the log, if it waits here."""
        waiting = self._early.get(producer_id)
        if waiting is None or next_sequence not in waiting:
            return None
        ticket, _ = waiting.pop(next_sequence)
        if not waiting:
            del self._early[producer_id]
        return ticket

    def expired(self, now_ms: float) -> list[Ticket]:
        """Takes out the batches that have waited long enough."""
        given_up: list[Ticket] = []
        for producer_id in list(self._early):
            waiting = self._early[producer_id]
            late = [sequence for sequence, (_, deadline) in waiting.items() if deadline <= now_ms]
            given_up += [waiting.pop(sequence)[0] for sequence in late]
            if not waiting:
                del self._early[producer_id]
        return given_up

    def clear(self) -> list[Ticket]:
        """Takes out everything."""
        tickets = [ticket for waiting in self._early.values() for ticket, _ in waiting.values()]
        self._early.clear()
        return tickets

    def next_deadline_ms(self) -> float | None:
        """When the first of the waiting batches is given up."""
        deadlines = [deadline for waiting in self._early.values() for _, deadline in waiting.values()]
        return min(deadlines, default=None)
