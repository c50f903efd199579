"""The vocabulary of positions: what is understood, what is refused, what it resolves to."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest

from raystream.client.positions import Place, by_topic, instant_ms, parse, resolve
from raystream.errors import InvalidArgument, PartitionNotFound
from raystream.types import TopicPartition
from tests.fakes.log import FakeCluster, raw_rows

T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 2)
        yield cluster


def place(position: Any, topics: tuple[str, ...] = ("t",)) -> Place:
    return parse(position, topics, now_ms=1_000_000)


def offsets(cluster: FakeCluster, position: Any, **how: Any) -> dict[TopicPartition, int]:
    return cluster.loop.run(resolve(cluster.routing, place(position), [T0, T1], **how))


def test_a_naive_datetime_is_utc() -> None:
    naive = dt.datetime(2026, 1, 1, 12)  # noqa: DTZ001
    assert instant_ms(naive) == instant_ms(naive.replace(tzinfo=dt.UTC)) == 1_767_268_800_000
    east = dt.timezone(dt.timedelta(hours=2))
    assert instant_ms(dt.datetime(2026, 1, 1, 14, tzinfo=east)) == 1_767_268_800_000


def test_a_timedelta_is_that_long_ago() -> None:
    assert place(dt.timedelta(seconds=10)).timestamp_ms == 990_000


def test_offsets_by_partition_and_by_topic() -> None:
    assert place({0: 5, 1: 7}).offsets == {T0: 5, T1: 7}
    assert place({"t": {0: 5}}).offsets == {T0: 5}
    assert place({"u": {0: 5}}, ()).offsets == {TopicPartition("u", 0): 5}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("earlyest", "did you mean 'earliest'"),
        ("Latest", "did you mean 'latest'"),
        ("", "the words are"),
        (17, "is no position"),
        (None, "is no position"),
        (dt.timedelta(seconds=-1), "future"),
        ({0: -1}, "offset -1"),
        ({-1: 0}, "partition -1"),
        ({0: 1.5}, "offset 1.5"),
        ({0: True}, "offset True"),
        ({0: 2**63}, "offset 9223372036854775808"),
        ({"t": 5}, "must be {partition: offset}"),
        ({"t": {0: 1}, 1: 2}, "mixes"),
        ({"other": {0: 1}}, "'other'"),
    ],
)
def test_what_is_no_position_is_refused_with_the_remedy(wrong: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        place(wrong)


def test_partitions_alone_do_not_say_which_of_two_topics() -> None:
    with pytest.raises(InvalidArgument, match="name the topic"):
        place({0: 1}, ("t", "u"))


def test_words_and_instants_resolve_to_offsets(cluster: FakeCluster) -> None:
    cluster.append("t", raw_rows([b"a", b"b", b"c"], timestamps=[100, 200, 300]))
    cluster.append("t", raw_rows([b"x"], timestamps=[50]), 1)
    cluster.topics["t"].partitions[0].start_offset = 1
    assert offsets(cluster, "earliest") == {T0: 1, T1: 0}
    assert offsets(cluster, "latest") == {T0: 3, T1: 1}
    at = dt.datetime.fromtimestamp(0.2, dt.UTC)
    assert offsets(cluster, at) == {T0: 1, T1: 1}, "after the last record is the end"


def test_a_mapping_leaves_the_rest_to_the_default(cluster: FakeCluster) -> None:
    cluster.append("t", [b"a", b"b"], 1)
    assert offsets(cluster, {0: 9}) == {T0: 9, T1: 0}
    assert offsets(cluster, {0: 9}, unnamed="latest") == {T0: 9, T1: 2}


def test_a_mapping_that_names_a_missing_partition(cluster: FakeCluster) -> None:
    with pytest.raises(PartitionNotFound, match="0 to 1, not 7"):
        offsets(cluster, {7: 0})


def test_offsets_round_trip(cluster: FakeCluster) -> None:
    found = {T1: 4, T0: 3}
    assert place(by_topic(found)).offsets == found
