"""Who reads what: assignments that are balanced and move as little as possible."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

Partition = tuple[str, int]


def sticky(
    subscriptions: Mapping[str, Iterable[str]], topics: Mapping[str, int], held: Mapping[Partition, str]
) -> dict[Partition, str]:
    """Every partition of the subscribed topics, and the member that should read it.

    `subscriptions` are each member's topics, `topics` the partition counts, `held` who has what now. A partition stays
    where it is unless balance moves it. Balance is the best that the subscriptions allow: no chain of moves leads from
    a member to one with two fewer, so that where all subscribe alike counts differ by one at most, and otherwise the
    greatest count is the least possible (an optimal semi-matching: Harvey, Ladner, Lovász, Tamir 2006).
    Deterministic: ties go to the member id that sorts first.
    """
    board = _Board(subscriptions, topics)
    homeless: dict[str, list[int]] = {}
    for topic, readers in board.readers.items():
        able = set(readers)
        for number in range(topics[topic]):
            keeper = held.get((topic, number))
            if keeper is not None and keeper in able:
                board.give(keeper, topic, number)
            else:
                homeless.setdefault(topic, []).append(number)
    for topic, numbers in homeless.items():
        board.house(topic, numbers)
    board.balance()
    return board.owners()


class _Board:
    """An assignment in the making."""

    def __init__(self, subscriptions: Mapping[str, Iterable[str]], topics: Mapping[str, int]) -> None:
        members = sorted(subscriptions)
        readers: dict[str, list[str]] = {}
        for member in members:
            for topic in dict.fromkeys(subscriptions[member]):
                if topic in topics:
                    readers.setdefault(topic, []).append(member)
        self.readers = dict(sorted(readers.items()))
        self._count = dict.fromkeys(members, 0)
        self._held: dict[str, dict[str, list[int]]] = {member: {} for member in members}

    def give(self, member: str, topic: str, number: int) -> None:
        self._held[member].setdefault(topic, []).append(number)
        self._count[member] += 1

    def owners(self) -> dict[Partition, str]:
        return {
            (topic, number): member
            for member, held in self._held.items()
            for topic, numbers in held.items()
            for number in numbers
        }

    def house(self, topic: str, numbers: list[int]) -> None:
        """Gives each partition that nobody keeps to the least loaded member that can take it."""
        heap = [(self._count[member], member) for member in self.readers[topic]]
        heapq.heapify(heap)
        for number in numbers:
            load, member = heap[0]
            self.give(member, topic, number)
            heapq.heapreplace(heap, (load + 1, member))

    def balance(self) -> None:
        """Moves partitions along the shortest chains from loaded members to lighter ones, until none helps."""
        heap = [(-count, member) for member, count in self._count.items()]
        heapq.heapify(heap)
        settled: set[str] = set()
        while heap:
            load, member = heapq.heappop(heap)
            if member in settled or -load != self._count[member]:
                continue  # whoever gained or gave one has another place in the order
            chain = self._chain(member, settled)
            for giver, topic, taker in chain:
                self._move(giver, topic, taker)
            if chain:
                for changed in (member, chain[0][2]):
                    heapq.heappush(heap, (-self._count[changed], changed))

    def _move(self, giver: str, topic: str, taker: str) -> None:
        numbers = self._held[giver][topic]
        self._held[taker].setdefault(topic, []).append(numbers.pop())
        if not numbers:
            del self._held[giver][topic]
        self._count[giver] -= 1
        self._count[taker] += 1

    def _chain(self, start: str, settled: set[str]) -> list[tuple[str, str, str]]:
        """Moves (giver, topic, taker) that take one partition from `start` to somebody with at least two fewer.

        Where there are none, everybody whom the search reached is settled for good: members come here from the most
        loaded down, so nobody who comes later can find somebody light enough through them.
        """
        light_enough = self._count[start] - 2
        came: dict[str, tuple[str, str]] = {}
        reached = {start}
        passed: set[str] = set()
        layer = [start]
        while layer:
            following: list[str] = []
            for giver in layer:
                for topic in self._held[giver]:
                    if topic in passed:
                        continue
                    passed.add(topic)
                    for taker in self.readers[topic]:
                        if taker not in reached and taker not in settled:
                            reached.add(taker)
                            came[taker] = (giver, topic)
                            following.append(taker)
            if following:
                end = min(following, key=lambda member: (self._count[member], member))
                if self._count[end] <= light_enough:
                    return _path(start, end, came)
            layer = following
        settled |= reached
        return []


def _path(start: str, end: str, came: Mapping[str, tuple[str, str]]) -> list[tuple[str, str, str]]:
    """The chain from its last move to its first, so that each giver still has what it gives."""
    moves = []
    while end != start:
        giver, topic = came[end]
        moves.append((giver, topic, end))
        end = giver
    return moves
