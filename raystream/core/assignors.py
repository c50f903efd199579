"""Who reads what: assignments that are balanced and move as little as possible."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

Partition = tuple[str, int]


def sticky(
    subscriptions: Mapping[str, Iterable[str]], topics: Mapping[str, int], held: Mapping[Partition, str]
) -> dict[Partition, str]:
    """Every partition of the subscribed topics, and the member that should read it.

    `subscriptions` are each member's topics, `topics` the partition counts, `held` who has what now. Members that can
    take each other's partitions end up with counts that differ by one at most, and a partition stays where it is unless
    balance moves it. Deterministic: ties go to the member id that sorts first.
    """
    readers: dict[str, list[str]] = {}
    for member in sorted(subscriptions):
        for topic in subscriptions[member]:
            if topic in topics:
                readers.setdefault(topic, []).append(member)
    owner: dict[Partition, str] = {}
    count = dict.fromkeys(sorted(subscriptions), 0)
    homeless: list[Partition] = []
    for topic in sorted(readers):
        able = set(readers[topic])
        for number in range(topics[topic]):
            partition = (topic, number)
            keeper = held.get(partition)
            if keeper in able:
                owner[partition] = keeper
                count[keeper] += 1
            else:
                homeless.append(partition)
    _house(homeless, readers, owner, count)
    _balance(readers, owner, count)
    return owner


def _house(
    homeless: list[Partition], readers: Mapping[str, list[str]], owner: dict[Partition, str], count: dict[str, int]
) -> None:
    """Gives each partition that nobody keeps to the least loaded member that can take it."""
    by_topic: dict[str, list[Partition]] = {}
    for partition in homeless:
        by_topic.setdefault(partition[0], []).append(partition)
    for topic, partitions in by_topic.items():
        heap = [(count[member], member) for member in readers[topic]]
        heapq.heapify(heap)
        for partition in partitions:
            load, member = heapq.heappop(heap)
            owner[partition] = member
            count[member] = load + 1
            heapq.heappush(heap, (load + 1, member))


def _balance(readers: Mapping[str, list[str]], owner: dict[Partition, str], count: dict[str, int]) -> None:
    """Moves one partition at a time from the most loaded member to the least, until no move helps."""
    by_member: dict[str, list[Partition]] = {}
    for partition in sorted(owner):
        by_member.setdefault(owner[partition], []).append(partition)
    heap = [(-count[member], member) for member in by_member]
    heapq.heapify(heap)
    while heap:
        load, member = heapq.heappop(heap)
        if -load != count[member]:
            heapq.heappush(heap, (-count[member], member))
            continue
        move = _helpful_move(member, by_member[member], readers, count)
        if move is None:
            continue  # it stays out: what others give from here on goes to lighter members
        partition, lighter = move
        by_member[member].remove(partition)
        by_member.setdefault(lighter, []).append(partition)
        owner[partition] = lighter
        count[member] -= 1
        count[lighter] += 1
        heapq.heappush(heap, (-count[member], member))


def _helpful_move(
    member: str, held: list[Partition], readers: Mapping[str, list[str]], count: Mapping[str, int]
) -> tuple[Partition, str] | None:
    """A partition of `member` and somebody who can take it and has at least two fewer."""
    lightest: dict[str, str] = {}
    for partition in reversed(held):
        topic = partition[0]
        if topic not in lightest:
            lightest[topic] = min(readers[topic], key=lambda m: (count[m], m))
        if count[lightest[topic]] + 1 < count[member]:
            return partition, lightest[topic]
    return None
