"""A consumer's life in a group, as its coordinator sees it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest

from raystream.client import membership
from raystream.client.consumer import Consumer
from raystream.errors import ActorLost, FencedMember, InvalidArgument, UnknownMember
from raystream.types import Record, TopicPartition
from tests.fakes.log import FakeCluster, FakeCoordinator, eventually


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 2)
        for partition in (0, 1):
            cluster.append("t", [b"%d/%d" % (partition, n) for n in range(10)], partition)
        yield cluster


@pytest.fixture
def coordinator(cluster: FakeCluster) -> FakeCoordinator:
    return cluster.coordinator_port


def owned(coordinator: FakeCoordinator, client: str) -> set[tuple[str, int]]:
    return next((set(m.owned) for m in coordinator.members.values() if m.client == client), set())


def settled(coordinator: FakeCoordinator, **wanted: set[int]) -> bool:
    return all(owned(coordinator, client) == {("t", p) for p in parts} for client, parts in wanted.items())


def one(consumer: Consumer) -> Record:
    return next(iter(consumer))


def test_one_member_gets_everything_and_two_share(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    with cluster.consumer(group="g", client_id="a") as a:
        eventually(lambda: settled(coordinator, a={0, 1}))
        with cluster.consumer(group="g", client_id="b") as b:
            eventually(lambda: settled(coordinator, a={0}, b={1}))
            assert a.assignment() == [TopicPartition("t", 0)]
            assert one(b).partition == 1
        eventually(lambda: settled(coordinator, a={0, 1}))


def test_a_partition_stays_owned_while_its_record_is_in_hand(
    cluster: FakeCluster, coordinator: FakeCoordinator
) -> None:
    with cluster.consumer(group="g", client_id="a", auto_commit_interval_ms=60_000, commit_each_batch=False) as a:
        records = iter(a)
        seen = [next(records)]
        while seen[-1].partition != 1 or seen[-1].offset < 3:
            seen.append(next(records))
        with cluster.consumer(group="g", client_id="b") as b:
            beats = len(coordinator.heartbeats)
            eventually(lambda: len(coordinator.heartbeats) > beats + 8)
            assert owned(coordinator, "a") == {("t", 0), ("t", 1)}, "the record in hand is of partition 1"
            assert owned(coordinator, "b") == set()
            assert a.assignment() == [TopicPartition("t", 0)]
            cluster.append("t", [b"one more"], 0)
            following = next(records)  # asks for more: the record in hand is processed and let go
            assert (following.partition, following.offset) == (0, _next_of(seen, 0))
            eventually(lambda: settled(coordinator, a={0}, b={1}))
            assert cluster.committed("t", 1) == 4
            first = one(b)
            assert (first.partition, first.offset) == (1, 4)


def _next_of(seen: list[Record], partition: int) -> int:
    return max((r.offset + 1 for r in seen if r.partition == partition), default=0)


def test_a_batch_in_hand_is_finished_first(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    coordinator.pinned = {"nobody": set()}
    with cluster.consumer(group="g", client_id="a") as a:
        member = a._session.membership
        assert member is not None
        coordinator.pinned = {member.member_id: {("t", 1)}}
        batch = a.poll(5)
        assert batch is not None and batch.partition == 1
        coordinator.pinned = {member.member_id: {("t", 0)}}
        eventually(lambda: settled(coordinator, a={0, 1}))
        assert cluster.committed("t", 1) in (None, 0)
        other = a.poll(5)
        assert other is not None and other.partition == 0
        eventually(lambda: settled(coordinator, a={0}))
        assert cluster.committed("t", 1) == 10


def test_unaffected_partitions_keep_flowing(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    with cluster.consumer(group="g", client_id="a") as a:
        eventually(lambda: len(a.assignment()) == 2)
        kept = a._session.assigned()[TopicPartition("t", 0)]
        with cluster.consumer(group="g", client_id="b"):
            seen = 0
            for record in a:
                seen += record.partition == 0
                if seen == 10:
                    break
            eventually(lambda: settled(coordinator, a={0}, b={1}))
            assert a._session.assigned()[TopicPartition("t", 0)] is kept


@pytest.mark.parametrize("error", [FencedMember("old"), UnknownMember("who?")])
def test_a_fenced_member_joins_again_where_its_user_was(
    cluster: FakeCluster, coordinator: FakeCoordinator, error: Exception
) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=60_000, commit_each_batch=False) as consumer:
        records = iter(consumer)
        seen = [next(records) for _ in range(4)]
        coordinator.forget_members()
        coordinator.errors.append(error)
        beats = len(coordinator.heartbeats)
        eventually(lambda: any(h.member_epoch == 0 for h in coordinator.heartbeats[beats:]))
        seen += [next(records) for _ in range(16)]
        assert len({(r.partition, r.offset) for r in seen}) == 20, "nothing was lost or read twice"


def test_after_a_fence_the_group_is_right_where_others_moved_on(
    cluster: FakeCluster, coordinator: FakeCoordinator
) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        one(consumer)
        coordinator.offsets["t", 0] = coordinator.offsets["t", 1] = 8  # another member read up to here
        coordinator.forget_members()
        coordinator.errors.append(UnknownMember("who?"))
        beats = len(coordinator.heartbeats)
        eventually(lambda: any(h.member_epoch == 0 for h in coordinator.heartbeats[beats:]))
        eventually(lambda: len(consumer.assignment()) == 2 and consumer.position() == {"t": {0: 8, 1: 8}})


def test_what_a_fenced_member_had_in_hand_comes_again_after_a_rewind(
    cluster: FakeCluster, coordinator: FakeCoordinator
) -> None:
    """Also where the partition was not open again when it rewound: what was made of it has been taken back."""
    with cluster.consumer(group="g", auto_commit=False) as a:
        member = a._session.membership
        assert member is not None
        batch = a.poll(5)
        assert batch is not None
        coordinator.pinned = {"nobody": set()}
        coordinator.forget_members()
        eventually(lambda: not a.assignment())
        a.rewind()
        coordinator.pinned = {member.member_id: {(batch.topic, batch.partition)}}
        again = a.poll(5)
        assert again is not None and again.offsets == batch.offsets


@pytest.mark.parametrize("turns", range(4))
def test_a_member_that_is_woken_as_it_leaves_has_left(cluster: FakeCluster, turns: int) -> None:
    with cluster.consumer(group="g", heartbeat_interval_ms=60_000) as a:
        eventually(lambda: len(a.assignment()) == 2)
        member = a._session.membership
        assert member is not None
        (running,) = (task for task in a._session._tasks if task.get_coro().__name__ == "run")  # type: ignore[union-attr]

        async def wake_and_cancel() -> None:
            member._kick.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()

        a._loop.run(wake_and_cancel())
        eventually(running.done)


def test_a_commit_waits_for_the_new_epoch(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        first = one(consumer)
        coordinator.commit_errors.append(FencedMember("old"))
        consumer.commit()
        assert cluster.committed("t", first.partition) == 1


def test_a_lost_coordinator_is_waited_for(
    cluster: FakeCluster, coordinator: FakeCoordinator, caplog: pytest.LogCaptureFixture
) -> None:
    with cluster.consumer(group="g", request_timeout_ms=100) as consumer:
        one(consumer)
        coordinator.errors.extend(ActorLost("gone") for _ in range(8))
        eventually(lambda: not coordinator.errors)
        cluster.append("t", [b"new"], 0)
        values = set()
        for record in consumer:
            values.add(record.value)
            if record.value == b"new":
                break


def test_an_error_that_stays_reaches_the_user(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    coordinator.errors.append(InvalidArgument("group 'g g' is no name"))
    with cluster.consumer(group="g g") as consumer, pytest.raises(InvalidArgument, match="is no name"):
        consumer.poll(5)


def test_leaving_tells_the_coordinator_at_once(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    consumer = cluster.consumer(group="g")
    eventually(lambda: coordinator.members)
    consumer.close()
    assert len(coordinator.left) == 1
    assert coordinator.members == {}


def test_heartbeats_go_on_beside_a_slow_handler(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    with cluster.consumer(group="g") as consumer:
        for _ in consumer:
            beats = len(coordinator.heartbeats)
            break
        eventually(lambda: len(coordinator.heartbeats) > beats + 3)


def test_a_member_without_partitions_says_who_has_them(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(membership, "NOTICE_AFTER_MS", 100.0)
    cluster.create("one", 1)
    with (
        caplog.at_level(logging.WARNING, "raystream"),
        cluster.consumer("one", group="g", client_id="first") as first,
    ):
        eventually(first.assignment)
        with cluster.consumer("one", group="g", client_id="second"):
            eventually(lambda: "first has one-0" in caplog.text)
    assert caplog.text.count("gets no partition of one: in group 'g'") == 1


def test_start_counts_only_without_a_committed_position(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    coordinator.offsets["t", 0] = 7
    with cluster.consumer(group="g", start={1: 4}) as consumer:
        eventually(lambda: len(consumer.assignment()) == 2)
        assert consumer.position() == {"t": {0: 7, 1: 4}}


def test_latest_is_fixed_at_the_call(cluster: FakeCluster, coordinator: FakeCoordinator) -> None:
    coordinator.errors.extend(ActorLost("starting") for _ in range(3))
    with cluster.consumer(group="g", start="latest") as consumer:
        cluster.append("t", [b"after the call"], 1)
        assert one(consumer).value == b"after the call"
