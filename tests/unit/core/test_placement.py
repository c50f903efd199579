"""Where replicas go: different racks first, then who holds and leads least."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from raystream.core.metadata import PartitionRecord
from raystream.core.placement import choose, loads, place, shrunk, target


def test_replicas_and_leads_are_spread() -> None:
    placed = place(6, 2, {0: 0, 1: 0, 2: 0})
    held = Counter(broker for replicas in placed for broker in replicas)
    assert set(held.values()) == {4}
    assert all(len(set(replicas)) == 2 for replicas in placed)
    assert place(1, 1, {0: 5, 1: 2}) == [(1,)]


def test_leads_are_spread_where_every_broker_holds_everything() -> None:
    assert set(Counter(replicas[0] for replicas in place(9, 3, {0: 0, 1: 0, 2: 0})).values()) == {3}
    assert place(1, 2, {0: 1, 1: 1, 2: 1}, {0: 1, 1: 0, 2: 0})[0] == (1, 0)


def test_replicas_go_to_different_racks_even_if_others_hold_less() -> None:
    racks = {0: "a", 1: "a", 2: "b"}
    assert all(2 in replicas for replicas in place(5, 2, {0: 0, 1: 0, 2: 9}, racks=racks))
    assert sorted(place(1, 3, {0: 0, 1: 0, 2: 0}, racks=racks)[0]) == [0, 1, 2]


def test_brokers_without_a_rack_are_racks_of_their_own() -> None:
    assert set(place(1, 3, {0: 0, 1: 0, 2: 0, 3: 5}, racks={0: "a", 1: "a", 2: "", 3: ""})[0]) == {0, 2, 3}


def test_a_new_replica_is_chosen_beside_those_there_are() -> None:
    racks = {0: "a", 1: "a", 2: "b", 3: "c"}
    assert choose(1, [1, 2, 3], {2: 1}, {}, racks, beside=[0]) == [3]
    assert choose(5, [0, 1], {}, {}, racks, beside=[0]) == [1]
    assert choose(1, [0, 1], {}, {1: 1}) == [1]


@given(
    st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=1, max_size=7).flatmap(
        lambda racks: st.tuples(st.just(dict(enumerate(racks))), st.integers(1, len(racks)), st.integers(1, 30))
    )
)
def test_as_many_racks_as_possible(case: tuple[dict[int, str], int, int]) -> None:
    racks, factor, partitions = case
    placed = place(partitions, factor, dict.fromkeys(racks, 0), racks=racks)
    named = len({rack for rack in racks.values() if rack})
    possible = min(factor, named + sum(not rack for rack in racks.values()))
    for replicas in placed:
        assert len(set(replicas)) == len(replicas) == factor
        assert len({racks[broker] or broker for broker in replicas}) == possible


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 40))
def test_without_racks_nobody_holds_or_leads_more_than_one_more(brokers: int, factor: int, partitions: int) -> None:
    placed = place(partitions, min(factor, brokers), dict.fromkeys(range(brokers), 0))
    for counted in (
        Counter(broker for replicas in placed for broker in replicas),
        Counter(replicas[0] for replicas in placed),
    ):
        counts = [counted[broker] for broker in range(brokers)]
        assert max(counts) - min(counts) <= 1


def test_replicas_that_are_wanted_least_go_first() -> None:
    assert shrunk((0, 1, 2), 2, {0: 0, 1: 9, 2: 1}, {}, {}) == (0, 2)
    assert shrunk((0, 1, 2), 2, {}, {2: 5}, {0: "a", 1: "a", 2: "b"}) == (0, 2), "two racks, not one"
    assert shrunk((0, 1, 2), 1, {0: 0, 1: 1, 2: 1}, {1: 7}, {}) == (0,)


def test_what_a_move_brings_counts_and_what_it_takes_does_not() -> None:
    record = PartitionRecord("t", 0, (2, 0, 1), (0, 1), 0, 0, 0, adding=(2,), removing=(1,))
    assert target(record) == (2, 0)
    assert loads([record]) == ({2: 1, 0: 1}, {2: 1})
