"""Assignments: as balanced as can be, and no more movement than that takes."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raystream.core.assignors import Partition, assign_range, roundrobin, sticky

TOPICS = st.dictionaries(st.sampled_from(["t", "u", "v"]), st.integers(0, 3), min_size=1)
SUBSCRIPTIONS = st.dictionaries(st.sampled_from("abcd"), st.sets(st.sampled_from(["t", "u", "v", "w"])), min_size=1)


def loads(owner: dict[Partition, str], members: dict[str, set[str]]) -> list[int]:
    count = Counter(owner.values())
    return sorted((count[member] for member in members), reverse=True)


def best_loads(subscriptions: dict[str, set[str]], topics: dict[str, int]) -> list[int]:
    """By trying everything."""
    able = [
        [member for member, wanted in subscriptions.items() if topic in wanted]
        for topic, count in topics.items()
        for _ in range(count)
    ]
    choices = itertools.product(*(members for members in able if members))
    return min(sorted((Counter(choice)[member] for member in subscriptions), reverse=True) for choice in choices)


@settings(deadline=None)
@given(SUBSCRIPTIONS, TOPICS, st.randoms(use_true_random=False))
def test_no_assignment_is_better_balanced(
    subscriptions: dict[str, set[str]], topics: dict[str, int], rng: random.Random
) -> None:
    partitions = [(topic, number) for topic, count in topics.items() for number in range(count)]
    held = {partition: rng.choice([*subscriptions, "gone"]) for partition in partitions if rng.random() < 0.6}
    owner = sticky(subscriptions, topics, held)
    assert set(owner) == {p for p in partitions if any(p[0] in wanted for wanted in subscriptions.values())}
    assert all(partition[0] in subscriptions[member] for partition, member in owner.items())
    assert loads(owner, subscriptions) == best_loads(subscriptions, topics)
    assert sticky(subscriptions, topics, owner) == owner, "nothing moves without a reason"


@settings(deadline=None)
@given(st.integers(0, 2**32))
def test_no_chain_of_moves_would_balance_a_larger_group_better(seed: int) -> None:
    """What makes a semi-matching optimal, checked without the code that found it."""
    rng = random.Random(seed)
    topics = {f"t{n}": rng.randint(1, 9) for n in range(rng.randint(1, 8))}
    subscriptions = {f"m{n}": {topic for topic in topics if rng.random() < 0.35} for n in range(rng.randint(2, 12))}
    held = {(topic, n): rng.choice(["m0", "m1", *subscriptions]) for topic in topics for n in range(topics[topic])}
    owner = sticky(subscriptions, topics, held)
    count = Counter(owner.values())
    for start in subscriptions:
        reached, left = {start}, [start]
        while left:
            giver = left.pop()
            gives = {topic for (topic, _), member in owner.items() if member == giver}
            takers = {member for member, wanted in subscriptions.items() if wanted & gives} - reached
            reached |= takers
            left += takers
        assert count[start] - min(count[member] for member in reached) <= 1


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(-3, 3), st.randoms(use_true_random=False))
def test_alike_subscribers_move_the_least_that_balance_takes(
    members: int, partitions: int, change: int, rng: random.Random
) -> None:
    before = [f"m{n:02}" for n in range(members)]
    after = [f"m{n:02}" for n in range(max(1, members + change))]
    rng.shuffle(after)
    held = sticky({member: ["t"] for member in before}, {"t": partitions}, {})
    owner = sticky({member: ["t"] for member in after}, {"t": partitions}, held)
    counts = Counter(owner.values())
    assert max(counts[m] for m in after) - min(counts[m] for m in after) <= 1
    stayed = sum(owner[partition] == member for partition, member in held.items())
    low, extra = divmod(partitions, len(after))
    kept = sorted((list(held.values()).count(member) for member in after), reverse=True)
    assert stayed == sum(min(count, low + (place < extra)) for place, count in enumerate(kept))


def test_a_chain_of_moves_is_found_where_no_single_one_helps() -> None:
    subscriptions = {"a": ["t"], "b": ["t", "u"], "c": ["u"]}
    held = {("t", 0): "a", ("t", 1): "a", ("t", 2): "a", ("t", 3): "b", ("u", 0): "b", ("u", 1): "c"}
    owner = sticky(subscriptions, {"t": 4, "u": 2}, held)
    assert Counter(owner.values()) == {"a": 2, "b": 2, "c": 2}
    assert sum(owner[partition] != member for partition, member in held.items()) == 2


def test_topics_that_nobody_reads_or_that_are_gone_are_nobodys() -> None:
    assert sticky({"a": ["t", "gone"]}, {"t": 1, "unread": 5}, {("gone", 0): "a"}) == {("t", 0): "a"}
    assert sticky({}, {"t": 1}, {("t", 0): "a"}) == {}
    assert sticky({"a": []}, {"t": 1}, {}) == {}


def test_the_same_input_in_another_order_gives_the_same() -> None:
    subscriptions = {member: ["t", "u"] for member in "abcdefg"}
    topics = {"t": 11, "u": 5}
    backwards = sticky(dict(reversed(subscriptions.items())), dict(reversed(topics.items())), {})
    assert sticky(subscriptions, topics, {}) == backwards


@pytest.mark.parametrize("members", [1, 50, 200])
def test_a_large_group_is_spread_evenly(members: int) -> None:
    topics = {f"t{n}": 40 for n in range(10)}
    owner = sticky({f"m{n:03}": list(topics) for n in range(members)}, topics, {})
    counts = Counter(owner.values())
    assert len(owner) == 400 and max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None)
@given(SUBSCRIPTIONS, TOPICS)
def test_range_and_roundrobin_give_every_partition_to_somebody_who_reads_it(
    subscriptions: dict[str, set[str]], topics: dict[str, int]
) -> None:
    read = {(t, n) for t, count in topics.items() for n in range(count) if any(t in s for s in subscriptions.values())}
    for assign in (assign_range, roundrobin):
        owners = assign(subscriptions, topics)
        assert set(owners) == read
        assert all(partition[0] in subscriptions[member] for partition, member in owners.items())


@settings(deadline=None)
@given(st.integers(1, 9), st.dictionaries(st.sampled_from("tuv"), st.integers(0, 20), min_size=1))
def test_alike_subscribers_get_alike(members: int, topics: dict[str, int]) -> None:
    subscriptions = {f"m{n}": set(topics) for n in range(members)}
    by_turn = Counter(roundrobin(subscriptions, topics).values())
    assert max(by_turn[m] for m in subscriptions) - min(by_turn[m] for m in subscriptions) <= 1
    owners = assign_range(subscriptions, topics)
    for topic, count in topics.items():
        line = [owners[topic, number] for number in range(count)]
        assert line == sorted(line), "runs, in the order of names"
        runs = Counter(line)
        assert max(runs[m] for m in subscriptions) - min(runs[m] for m in subscriptions) <= 1


def test_range_puts_the_same_numbers_of_like_topics_together() -> None:
    owners = assign_range({"a": ["t", "u"], "b": ["t", "u"]}, {"t": 3, "u": 3})
    assert [owners["t", n] for n in range(3)] == [owners["u", n] for n in range(3)] == ["a", "a", "b"]


PLACES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from(["n1", "n2", "n3", ""]), min_size=4)


@settings(deadline=None)
@given(SUBSCRIPTIONS, TOPICS, PLACES, st.randoms(use_true_random=False))
def test_nearness_costs_neither_balance_nor_stickiness(
    subscriptions: dict[str, set[str]], topics: dict[str, int], nodes: dict[str, str], rng: random.Random
) -> None:
    partitions = [(topic, number) for topic, count in topics.items() for number in range(count)]
    held = {partition: rng.choice([*subscriptions, "gone"]) for partition in partitions if rng.random() < 0.6}
    leaders = {partition: rng.choice(["n1", "n2", "n3"]) for partition in partitions}
    blind = sticky(subscriptions, topics, held)
    owner = sticky(subscriptions, topics, held, nodes, leaders)
    assert set(owner) == set(blind)
    assert all(partition[0] in subscriptions[member] for partition, member in owner.items())
    assert loads(owner, subscriptions) == loads(blind, subscriptions)
    moved_leaders = {partition: rng.choice(["n1", "n2", "n3"]) for partition in partitions}
    assert sticky(subscriptions, topics, owner, nodes, moved_leaders) == owner, (
        "a leader that moves takes nothing along"
    )


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.randoms(use_true_random=False))
def test_members_beside_all_leaders_read_what_is_beside_them(
    nodes: int, each: int, more: int, rng: random.Random
) -> None:
    """As many members as partitions per node allow everybody what is near."""
    members = {f"m{node}.{n}": f"n{node}" for node in range(nodes) for n in range(each)}
    numbers = list(range(len(members) * (1 + more)))
    rng.shuffle(numbers)
    leaders = {("t", number): f"n{place % nodes}" for place, number in enumerate(numbers)}
    owner = sticky({member: ["t"] for member in members}, {"t": len(numbers)}, {}, members, leaders)
    assert all(members[owner[partition]] == node for partition, node in leaders.items())


def test_one_partition_goes_to_the_member_beside_its_leader() -> None:
    subscriptions = {member: ["t"] for member in "abc"}
    assert sticky(subscriptions, {"t": 1}, {}, {"a": "n1", "b": "n2", "c": "n3"}, {("t", 0): "n3"}) == {("t", 0): "c"}


def test_what_balance_moves_moves_towards_its_leader() -> None:
    held = {("t", number): "a" for number in range(4)}
    leaders = {("t", number): "n2" if number == 1 else "n1" for number in range(4)}
    owner = sticky({"a": ["t"], "b": ["t"]}, {"t": 4}, held, {"a": "n1", "b": "n2"}, leaders)
    assert owner["t", 1] == "b" and Counter(owner.values()) == {"a": 2, "b": 2}
