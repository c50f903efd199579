"""Who votes on the metadata: one rule each, then any history at random."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping

import pytest

from raystream.core.metadata import BrokerRecord, MetadataImage
from raystream.core.raft_messages import Voter
from raystream.core.voter_choice import DEAD_AFTER_MS, next_voters

LONG_MS = DEAD_AFTER_MS + 1


def voter(broker: int) -> Voter:
    return Voter(broker, f"disk-{broker}")


class Cluster:
    """Brokers 0, 1 and so on, some of which are dead (for long), away (for a moment) or draining."""

    def __init__(
        self,
        brokers: int,
        voters: Collection[int],
        *,
        dead: Collection[int] = (),
        away: Collection[int] = (),
        draining: Collection[int] = (),
        racks: Mapping[int, str] | None = None,
        behind: Collection[int] = (),
    ) -> None:
        self.image = MetadataImage()
        self.voters = tuple(voter(broker) for broker in voters)
        for broker in range(brokers):
            self.image.replay(
                BrokerRecord(
                    broker,
                    1,
                    fenced=broker in dead or broker in away,
                    draining=broker in draining,
                    directory_id=f"disk-{broker}",
                    rack=(racks or {}).get(broker, ""),
                )
            )
        self.dead_for_ms = {**dict.fromkeys(dead, LONG_MS), **dict.fromkeys(away, 5_000.0)}
        self.caught_up = [broker for broker in range(brokers) if broker not in behind]

    def next(self, controller: int | None = None) -> tuple[Voter, ...] | None:
        return next_voters(self.voters, self.image, self.caught_up, dead_for_ms=self.dead_for_ms, controller=controller)

    def steps(self, controller: int | None = None) -> list[list[int]]:
        """The ids of every voter set on the way to the last."""
        taken = []
        while (following := self.next(controller)) is not None:
            assert len(set(following) ^ set(self.voters)) == 1, "one at a time"
            self.voters = following
            taken.append(sorted(v.id for v in following))
            assert len(taken) < 20, taken
        return taken


@pytest.mark.parametrize(
    ("brokers", "expected"),
    [(1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (5, [0, 1, 2, 3, 4]), (6, [0, 1, 2, 3, 4])],
)
def test_there_are_one_three_or_five_voters(brokers: int, expected: list[int]) -> None:
    cluster = Cluster(brokers, [0])
    cluster.steps()
    assert sorted(v.id for v in cluster.voters) == expected


def test_a_complete_set_grows_only_when_two_are_ready() -> None:
    assert Cluster(3, [0], behind=[2]).steps() == []
    assert Cluster(3, [0, 1], behind=[2]).steps() == []
    assert Cluster(3, [0]).steps() == [[0, 1], [0, 1, 2]]


def test_new_voters_are_in_other_racks() -> None:
    racks = {0: "a", 1: "a", 2: "b", 3: "c"}
    assert Cluster(4, [0], racks=racks).steps() == [[0, 2], [0, 2, 3]]


def test_a_dead_voters_replacement_is_added_first() -> None:
    assert Cluster(4, [0, 1, 2], dead=[1]).steps() == [[0, 1, 2, 3], [0, 2, 3]]
    assert Cluster(7, range(5), dead=[1, 2]).steps() == [
        [0, 1, 2, 3, 4, 5],
        [0, 1, 3, 4, 5],
        [0, 1, 3, 4, 5, 6],
        [0, 3, 4, 5, 6],
    ]


def test_who_is_away_for_a_moment_stays_a_voter() -> None:
    assert Cluster(4, [0, 1, 2], away=[1]).steps() == []
    assert Cluster(5, range(5), away=[3, 4]).steps() == []


def test_dead_voters_without_replacement_do_not_bring_the_set_below_three() -> None:
    assert Cluster(3, [0, 1, 2], dead=[1]).steps() == []
    assert Cluster(5, range(5), dead=[3, 4]).steps() == [[0, 1, 2, 3], [0, 1, 2]]
    assert Cluster(4, [0, 1, 2], dead=[1], behind=[3]).steps() == []


def test_without_a_live_majority_nothing_is_changed() -> None:
    assert Cluster(5, [0, 1, 2], dead=[1, 2]).steps() == []
    assert Cluster(4, [0, 1, 2, 3], away=[0, 1, 2]).steps() == []


def test_drained_brokers_give_their_vote_to_others() -> None:
    assert Cluster(4, [0, 1, 2], draining=[1]).steps() == [[0, 1, 2, 3], [0, 2, 3]]
    assert Cluster(3, [0, 1, 2], draining=[1]).steps() == [[0, 2], [0]]
    assert Cluster(1, [0], draining=[0]).steps() == []
    assert Cluster(2, [0], draining=[0]).steps() == [[0, 1], [1]]


def test_removed_brokers_lose_their_vote_at_once() -> None:
    assert Cluster(3, [0, 1, 7]).steps() == [[0, 1, 2, 7], [0, 1, 2]]
    assert Cluster(2, [0, 1, 7]).steps() == [[0, 1], [0]]


def test_another_disk_with_a_voters_id_is_not_that_voter() -> None:
    cluster = Cluster(4, [0, 1])
    cluster.voters = (*cluster.voters, Voter(2, "lost"))
    cluster.steps()
    assert set(cluster.voters) == {voter(0), voter(1), voter(3)}


def test_a_voter_that_comes_back_makes_one_too_many() -> None:
    assert Cluster(4, [0, 1, 2, 3]).steps() == [[0, 1, 2]]
    assert Cluster(4, [0, 1, 2, 3]).steps(controller=3) == [[0, 1, 3]]
    assert Cluster(4, [0, 1, 2, 3], racks={0: "a", 1: "a", 2: "b", 3: "c"}).steps() == [[0, 2, 3]]
    assert Cluster(4, [0, 1, 2, 3], away=[0]).steps() == [[1, 2, 3]]


def test_before_any_broker_is_known_the_founder_votes_alone() -> None:
    cluster = Cluster(0, [0])
    assert cluster.next() is None
    cluster.voters = ()
    assert cluster.next() is None


@pytest.mark.parametrize("seed", range(300))
def test_any_cluster_comes_to_rest_with_a_live_majority(seed: int) -> None:
    draw = random.Random(seed)
    brokers = draw.randint(1, 8)

    def some(share: float) -> set[int]:
        return {broker for broker in range(brokers) if draw.random() < share}

    dead, away = some(0.15), some(0.1)
    voters = draw.sample(range(brokers), draw.randint(1, min(brokers, 5)))
    cluster = Cluster(
        brokers, voters, dead=dead, away=away - dead, draining=some(0.15), behind=some(0.1),
        racks={broker: draw.choice(["", "a", "b"]) for broker in range(brokers)},
    )  # fmt: skip
    live = {broker for broker in range(brokers) if broker not in dead | away}
    majority = len(live.intersection(voters)) > len(voters) // 2
    for step in cluster.steps(controller=draw.choice(voters)):
        assert 1 <= len(step) <= 6
        assert not majority or len(live.intersection(step)) > len(step) // 2
