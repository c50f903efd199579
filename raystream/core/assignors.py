"""Who reads what.

`sticky` is as balanced as can be and moves as little as that takes. `assign_range` gives each member a run of each
topic's partitions, the same ones of topics with equal counts (for joins by partition). `roundrobin` deals all
partitions out in turn. The last two look at nothing but names and counts, so they may move more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import Final

Partition = tuple[str, int]
STICKY: Final = "sticky"
ASSIGNORS: Final = (STICKY, "range", "roundrobin")


class Topics(dict[str, int]):
    """Partition counts by topic, and the nodes of the partitions' leaders where they are known."""

    def __init__(self, counts: Mapping[str, int], leaders: Mapping[Partition, str]) -> None:
        super().__init__(counts)
        self.leaders = leaders


def assign_range(subscriptions: Mapping[str, Iterable[str]], topics: Mapping[str, int]) -> dict[Partition, str]:
    """Of each topic, members in the order of their names get runs of partitions, the first ones one more."""
    owners: dict[Partition, str] = {}
    for topic, readers in _readers(subscriptions, topics).items():
        each, more = divmod(topics[topic], len(readers))
        number = 0
        for place, reader in enumerate(readers):
            for _ in range(each + (place < more)):
                owners[topic, number] = reader
                number += 1
    return owners


def roundrobin(subscriptions: Mapping[str, Iterable[str]], topics: Mapping[str, int]) -> dict[Partition, str]:
    """All partitions in order, dealt to members in the order of their names; who does not read a topic is passed
    over. Counts differ by one at most where all subscribe alike."""
    owners: dict[Partition, str] = {}
    members = sorted(subscriptions)
    turn = 0
    for topic, readers in _readers(subscriptions, topics).items():
        able = set(readers)
        for number in range(topics[topic]):
            while members[turn % len(members)] not in able:
                turn += 1
            owners[topic, number] = members[turn % len(members)]
            turn += 1
    return owners


def _readers(subscriptions: Mapping[str, Iterable[str]], topics: Mapping[str, int]) -> dict[str, list[str]]:
    """Who reads each topic that there is, both in order."""
    readers: dict[str, list[str]] = {}
    for member in sorted(subscriptions):
        for topic in dict.fromkeys(subscriptions[member]):
            if topic in topics:
                readers.setdefault(topic, []).append(member)
    return dict(sorted(readers.items()))


def sticky(
    subscriptions: Mapping[str, Iterable[str]],
    topics: Mapping[str, int],
    held: Mapping[Partition, str],
    nodes: Mapping[str, str] | None = None,
    leaders: Mapping[Partition, str] | None = None,
) -> dict[Partition, str]:
    """Every partition of the subscribed topics, and the member that should read it.

    `subscriptions` are each member's topics, `topics` the partition counts, `held` who has what now. A partition stays
    where it is unless balance moves it. Balance is the best that the subscriptions allow: no chain of moves leads from
    a member to one with two fewer, so that where all subscribe alike counts differ by one at most, and otherwise the
    greatest count is the least possible (an optimal semi-matching: Harvey, Ladner, Lovász, Tamir 2006).
    Where a partition is given anew and balance leaves a choice, it goes to a member on its leader's node (`nodes` and
    `leaders` say which they are): a leader that moves takes no partition with it.
    Deterministic: ties go to the member id that sorts first.
    """
    board = _Board(subscriptions, topics, nodes or {}, leaders or {})
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

    def __init__(
        self,
        subscriptions: Mapping[str, Iterable[str]],
        topics: Mapping[str, int],
        nodes: Mapping[str, str],
        leaders: Mapping[Partition, str],
    ) -> None:
        members = sorted(subscriptions)
        self.readers = _readers(subscriptions, topics)
        self._nodes = nodes
        self._leaders = leaders
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
        """Gives partitions that nobody keeps to the least loaded members that can take them: first how many each gets,
        then which, those that their leader's node can read first."""
        near: dict[str, list[int]] = {}
        for number in reversed(numbers):
            near.setdefault(self._leaders.get((topic, number), ""), []).append(number)
        near.pop("", None)
        shares = self._shares(topic, len(numbers), {node: len(local) for node, local in near.items()})
        given: set[int] = set()
        for member in shares:
            local = near.get(self._nodes.get(member, ""), [])
            while local and shares[member]:
                given.add(local[-1])
                self.give(member, topic, local.pop())
                shares[member] -= 1
        left = iter([number for number in numbers if number not in given])
        for member, share in shares.items():
            for _ in range(share):
                self.give(member, topic, next(left))

    def _shares(self, topic: str, count: int, near: dict[str, int]) -> dict[str, int]:
        """How many of `count` partitions each reader gets, so that loads are level. Among equals those come first on
        whose node are leaders that nobody has been counted for."""

        def place(member: str) -> tuple[int, int, str]:
            node = self._nodes.get(member, "")
            return self._count[member] + shares[member], -near.get(node, 0), member

        shares = dict.fromkeys(self.readers[topic], 0)
        heap = [place(member) for member in shares]
        heapq.heapify(heap)
        while count:
            entry = heapq.heappop(heap)
            member = entry[2]
            if entry != (now := place(member)):  # somebody else was counted for its node's leaders meanwhile
                heapq.heappush(heap, now)
                continue
            shares[member] += 1
            count -= 1
            node = self._nodes.get(member, "")
            near[node] = max(near.get(node, 0) - 1, 0)
            heapq.heappush(heap, place(member))
        return shares

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
        number = max(numbers, key=lambda number: self._nearness(topic, number, giver, taker))
        numbers.remove(number)
        self._held[taker].setdefault(topic, []).append(number)
        if not numbers:
            del self._held[giver][topic]
        self._count[giver] -= 1
        self._count[taker] += 1

    def _nearness(self, topic: str, number: int, giver: str, taker: str) -> tuple[int, int]:
        """Of what may as well move, a partition that comes nearer to its leader does before one that goes away."""
        leader = self._leaders.get((topic, number), "")
        if not leader:
            return 0, number
        return (self._nodes.get(taker) == leader) - (self._nodes.get(giver) == leader), number

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
