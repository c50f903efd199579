"""Records that retention took away before they were read: reported as a range, once, and nothing else is skipped."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from raystream.errors import InvalidArgument, OffsetOutOfRange, OffsetsLost
from tests.fakes.log import FakeCluster, FakePartition, eventually


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 1)
        cluster.append("t", [b"%d" % n for n in range(10)])
        yield cluster


def part(cluster: FakeCluster) -> FakePartition:
    return cluster.partitions_by_topic()["t"][0]


def test_a_lost_range_is_raised_once_and_reading_goes_on_behind_it(cluster: FakeCluster) -> None:
    part(cluster).start_offset = 6
    cluster.coordinator_port.offsets["t", 0] = 2
    with cluster.consumer(group="g") as consumer:
        with pytest.raises(OffsetsLost, match="4 records were lost; going on at 6") as raised:
            consumer.poll(5)
        lost = pickle.loads(pickle.dumps(raised.value))
        assert (lost.topic, lost.partition, lost.first, lost.next, lost.count) == ("t", 0, 2, 6, 4)
        assert isinstance(lost, OffsetOutOfRange)
        batch = consumer.poll(5)
        assert batch is not None and batch.offsets.start == 6
        consumer.commit()
        assert cluster.committed() == 10


def test_a_restart_after_the_report_goes_on(cluster: FakeCluster) -> None:
    part(cluster).start_offset = 6
    cluster.coordinator_port.offsets["t", 0] = 2
    with pytest.raises(OffsetsLost), cluster.consumer(group="g") as consumer:
        next(iter(consumer))
    with cluster.consumer(group="g") as consumer:
        assert next(iter(consumer)).offset == 6


def test_a_callable_is_told_on_the_thread_that_iterates(cluster: FakeCluster) -> None:
    part(cluster).start_offset = 6
    told: list[OffsetsLost] = []
    cluster.coordinator_port.offsets["t", 0] = 2
    with cluster.consumer(group="g", on_offsets_lost=told.append) as consumer:
        assert next(iter(consumer)).offset == 6
    assert [(lost.first, lost.count) for lost in told] == [(2, 4)]


def test_what_was_fetched_before_the_loss_is_read_first(cluster: FakeCluster) -> None:
    told: list[OffsetsLost] = []
    with cluster.consumer(start="earliest", on_offsets_lost=told.append) as consumer:
        records = iter(consumer)
        seen = [next(records).offset]
        fetches = len(part(cluster).fetches)
        part(cluster).start_offset = 13
        eventually(lambda: len(part(cluster).fetches) > fetches)  # at 10, which is gone
        cluster.append("t", [b"new"] * 5)
        seen += [next(records).offset for _ in range(10)]
        assert seen == [*range(10), 13]
    assert [(lost.first, lost.next) for lost in told] == [(10, 13)]


def test_lag_counts_what_is_there_and_what_is_lost(cluster: FakeCluster) -> None:
    with cluster.consumer(start={0: 2}) as consumer:
        eventually(lambda: consumer.position("t", 0) == 2)
        part(cluster).start_offset = 6
        (row,) = consumer.lag()
        assert (row.lag, row.lost) == (4, 4)


def test_the_choice_is_checked(cluster: FakeCluster) -> None:
    with pytest.raises(InvalidArgument, match="'raise', 'warn' or a callable"):
        cluster.consumer(on_offsets_lost="ignore")
