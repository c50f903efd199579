"""How partitions come and go in bulk: what is given back together, and what is taken away while it is being opened."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from raystream import messages as m
from raystream.client import membership
from raystream.errors import NotLeader
from raystream.types import TopicPartition
from tests.fakes.log import FakeCluster, FakeCoordinator, eventually

PARTITIONS = 12


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", PARTITIONS)
        for partition in range(PARTITIONS):
            cluster.append("t", [b"one", b"two"], partition)
        yield cluster


@pytest.fixture
def coordinator(cluster: FakeCluster) -> FakeCoordinator:
    return cluster.coordinator_port


def moved(coordinator: FakeCoordinator) -> list[m.CommitRequest]:
    return [commit for commit in coordinator.commits if len(commit.offsets) > 1]


def test_what_is_given_back_in_one_moment_is_one_commit(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=60_000) as a:
        eventually(lambda: len(a.assignment()) == PARTITIONS)
        with cluster.consumer(group="g") as b:
            eventually(lambda: len(b.assignment()) == PARTITIONS // 2)
            assert [len(commit.offsets) for commit in moved(coordinator)] == [PARTITIONS // 2]
            positions = {p.offset for commit in moved(coordinator) for p in commit.offsets}
            assert positions == {0}, "nothing of them was handed out"


def test_what_stays_is_opened_although_something_is_taken_away_meanwhile(
    cluster: FakeCluster, coordinator: FakeCoordinator
) -> None:
    for partition in range(PARTITIONS):  # the partitions do not answer yet: the member is opening all of them
        cluster.topics["t"].partitions[partition].errors.extend(NotLeader("not yet") for _ in range(3))
    with cluster.consumer(group="g", request_timeout_ms=30_000, heartbeat_interval_ms=50) as a:
        eventually(lambda: coordinator.members)
        member = a._session.membership
        assert member is not None
        keeps = {("t", partition) for partition in range(0, PARTITIONS, 2)}
        coordinator.pinned = {member.member_id: keeps}
        eventually(lambda: {(p.topic, p.partition) for p in a.assignment()} == keeps)
        seen = {a.poll(5).partition for _ in keeps}  # type: ignore[union-attr]
        assert seen == {partition for _, partition in keeps}, "each of them is read"
        assert a.assignment() == sorted(TopicPartition(*p) for p in keeps)


def test_only_a_member_that_is_to_say_who_has_what_asks_for_it(
    cluster: FakeCluster, coordinator: FakeCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "NOTICE_AFTER_MS", 300.0)
    cluster.create("one", 1)
    with cluster.consumer("one", group="g") as first:
        eventually(first.assignment)
        with cluster.consumer("one", group="g") as second:
            idle = second._session.membership
            assert idle is not None
            eventually(lambda: idle._noticed)
            asked = [beat.owners_wanted for beat in coordinator.heartbeats if beat.member_id == idle.member_id]
            assert not asked[0] and asked.count(True) == 1, "once, and not before it is time"
