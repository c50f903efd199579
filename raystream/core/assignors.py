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
    """Moves partitions from loaded members to lighter ones that can take them, until no move helps."""
    by_member: dict[str, list[Partition]] = {}
    for partition in sorted(owner):
        by_member.setdefault(owner[partition], []).append(partition)
    moved = True
    while moved:
        moved = False
        for member in sorted(by_member, key=lambda m: (-count[m], m)):
            for partition in reversed(by_member[member]):
                lightest = min(readers[partition[0]], key=lambda m: (count[m], m))
                if count[lightest] + 1 >= count[member]:
                    continue
                by_member[member].remove(partition)
                by_member.setdefault(lightest, []).append(partition)
                owner[partition] = lightest
                count[member] -= 1
                count[lightest] += 1
                moved = True
                if len({count[m] for m in readers[partition[0]]}) == 1:
                    break
