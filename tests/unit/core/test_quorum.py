"""Majorities, votes, and which voter set may follow which."""

from __future__ import annotations

from itertools import combinations

import pytest

from raystream.core import quorum
from raystream.core.quorum import VoteTally
from raystream.core.raft_messages import Voter
from raystream.errors import InvalidArgument

A, B, C, D, E = (Voter(node_id, "disk") for node_id in range(1, 6))


@pytest.mark.parametrize("count", range(1, 8))
def test_any_two_majorities_overlap_also_over_one_change(count: int) -> None:
    before, after = range(count), range(count + 1)
    for one in combinations(before, quorum.majority(count)):
        for other in combinations(after, quorum.majority(count + 1)):
            assert set(one) & set(other)


@pytest.mark.parametrize(
    ("values", "expected"), [([7], 7), ([7, 3], 3), ([1, 9, 5], 5), ([1, 2, 3, 4], 2), ([5, 4, 3, 2, 1], 3)]
)
def test_reached_is_what_a_majority_has(values: list[float], expected: float) -> None:
    assert quorum.reached(values) == expected


def test_a_tally_is_won_by_a_majority_and_lost_when_none_is_left() -> None:
    def after(*votes: tuple[Voter, bool]) -> tuple[bool, bool]:
        tally = VoteTally((A, B, C))
        for voter, granted in votes:
            tally.record(voter, granted)
        return tally.won, tally.lost

    assert after((A, True)) == (False, False)
    assert after((A, True), (B, False)) == (False, False)
    assert after((A, True), (B, False), (C, False)) == (False, True)
    assert after((A, True), (B, False), (C, True)) == (True, False)


def test_a_voter_counts_once_and_a_stranger_never() -> None:
    tally = VoteTally((A, B, C))
    tally.record(A, True)
    tally.record(A, True)
    tally.record(D, True)
    tally.record(Voter(2, "another disk"), True)
    assert not tally.won


@pytest.mark.parametrize("after", [(A, B, C, D), (A, B), (B, C)])
def test_one_voter_may_come_or_go(after: tuple[Voter, ...]) -> None:
    quorum.check_change((A, B, C), after)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ((), "last voter"),
        ((A, B, C), "one at a time"),
        ((A,), "one at a time"),
        ((A, B, D), "one at a time"),
        ((A, B, C, D, E), "one at a time"),
        ((A, B, C, Voter(3, "another disk")), "one directory only"),
        ((A, B, C, C), "one directory only"),
    ],
)
def test_anything_else_is_refused(after: tuple[Voter, ...], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        quorum.check_change((A, B, C), after)
