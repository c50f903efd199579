"""The data's way through the house on real actors: append, fetch, groups, frames, admin."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
import pytest
import ray

import raystream as rs


def test_a_record_comes_back_as_it_was_sent(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer() as producer:
        sent = producer.send(topic, b"value", key="key", headers={"trace": "1"}, timestamp_ms=1_700_000_000_000)
        where = sent.result(timeout=10)
    assert where == rs.RecordMetadata(topic, 0, 0, 1_700_000_000_000)
    with cluster.consumer(topic, start="earliest") as consumer:
        record = next(iter(consumer))
    assert (record.key, record.value, record.offset) == (b"key", b"value", 0)
    assert record.timestamp_ms == 1_700_000_000_000
    assert list(record.headers) == [("trace", b"1")]
    assert record.text == "value"


def test_order_is_kept_per_partition_and_every_record_arrives_once(
    cluster: rs.Cluster, topic_name: Callable[[], str]
) -> None:
    topic = cluster.create_topic(topic_name(), partitions=4).name
    count = 20_000
    with cluster.producer(linger_ms=1) as producer:
        for number in range(count):
            producer.send(topic, str(number), key=str(number % 97))
    table = cluster.read(topic).to_arrow()
    numbers = [int(value) for value in table["value"].to_pylist()]
    assert sorted(numbers) == list(range(count))
    by_key: dict[bytes, int] = {}
    for key, number in zip(table["key"].to_pylist(), numbers, strict=True):
        assert by_key.get(key, -1) < number
        by_key[key] = number


def test_a_frame_becomes_a_typed_topic_and_comes_back(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    topic = topic_name()
    frame = pd.DataFrame({"carrier": ["UA", "AA", "UA"], "delay": [1.5, None, 3.0], "flight": [1, 2, 3]})
    written = cluster.write(topic, frame, key="carrier")
    assert written.rows == 3
    pd.testing.assert_frame_equal(cluster.read(topic).to_pandas(), frame)
    rows = [record.value for record in _drain(cluster.consumer(topic, start="earliest"), 3)]
    assert rows[0] == {"carrier": "UA", "delay": 1.5, "flight": 1}


def test_a_group_carries_on_where_it_stopped(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer() as producer:
        producer.send_many(topic, [str(number) for number in range(10)])
    with cluster.consumer(topic, group="again", start="earliest") as consumer:
        first = [record.text for record in _drain(consumer, 4)]
    with cluster.consumer(topic, group="again", start="earliest") as consumer:
        rest = [record.text for record in _drain(consumer, 6)]
    assert first + rest == [str(number) for number in range(10)]
    assert cluster.describe_group("again").lag == 0


def test_members_share_the_partitions(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    topic = cluster.create_topic(topic_name(), partitions=4).name
    one = cluster.consumer(topic, group="shared", start="earliest", heartbeat_interval_ms=100)
    two = cluster.consumer(topic, group="shared", start="earliest", heartbeat_interval_ms=100)
    with one, two:

        def shared() -> bool:
            assert one.poll(0.05) is None
            assert two.poll(0.05) is None
            return len(one.assignment()) == len(two.assignment()) == 2

        _until(shared)
        assert set(one.assignment()).isdisjoint(two.assignment())
        with cluster.producer() as producer:
            for number in range(100):
                producer.send(topic, str(number), partition=number % 4)
        seen: list[str | None] = []

        def all_seen() -> bool:
            seen.extend(_texts(one.poll(0.1)) + _texts(two.poll(0.1)))
            return len(seen) >= 100

        _until(all_seen)
    assert sorted(int(text or "") for text in seen) == list(range(100))


def test_positions_by_time(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer() as producer:
        for number in range(10):
            producer.send(topic, str(number), timestamp_ms=1_700_000_000_000 + number * 1000)
    start = dt.datetime.fromtimestamp(1_700_000_005, tz=dt.UTC)
    view = cluster.read(topic, start=start)
    assert view.to_arrow()["value"].to_pylist() == [b"5", b"6", b"7", b"8", b"9"]
    assert view.count() == 5


def test_a_cluster_works_inside_a_ray_task(cluster: rs.Cluster, topic: str) -> None:
    def work(inside: rs.Cluster, name: str) -> int:
        with inside.producer() as producer:
            return int(producer.send(name, b"from a task").result(timeout=20).offset)

    task = ray.remote(num_cpus=0)(work)
    assert ray.get(task.remote(cluster, topic), timeout=60) == 0
    assert cluster.read(topic).to_arrow()["value"].to_pylist() == [b"from a task"]


def test_topics_can_be_described_altered_grown_and_deleted(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    name = topic_name()
    cluster.create_topic(name, config={"flush": "os"})
    assert cluster.describe_topic(name).config["flush"] == "os"
    assert cluster.alter_topic(name, config={"flush": None}).config["flush"] == "fsync"
    assert cluster.add_partitions(name, 3).partitions == 3
    with cluster.producer() as producer:
        assert producer.send(name, b"x", partition=2).result(timeout=10).partition == 2
    with pytest.raises(rs.TopicExists):
        cluster.create_topic(name)
    cluster.delete_topic(name)
    assert name not in [topic.name for topic in cluster.topics()]
    with pytest.raises(rs.TopicNotFound, match="create_topic"), cluster.producer() as producer:
        producer.send(name, b"x").result(timeout=10)


def test_deleted_records_are_gone(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer() as producer:
        producer.send_many(topic, [str(number) for number in range(10)])
    assert cluster.delete_records(topic, {0: 4}) == {0: 4}
    table = cluster.read(topic).to_arrow()
    assert table["offset"].to_pylist() == [4, 5, 6, 7, 8, 9]


def test_health_and_brokers(cluster: rs.Cluster) -> None:
    deadline = time.monotonic() + 20
    while not cluster.health().ok and time.monotonic() < deadline:
        time.sleep(0.1)  # a cluster that was just made may still be starting its coordinator
    assert cluster.health().problems == ()
    broker = cluster.brokers()[0]
    assert broker.controller
    assert (broker.free_bytes or 0) > 0


def test_offsets_can_be_reset_when_nobody_runs(cluster: rs.Cluster, topic: str) -> None:
    cluster.write(topic, pa.table({"value": [b"a", b"b", b"c"]}))
    with cluster.consumer(topic, group="reset", start="earliest") as consumer:
        _drain(consumer, 3)
        with pytest.raises(rs.GroupNotEmpty):
            cluster.reset_offsets("reset", topic, to="earliest")
    with pytest.raises(rs.OffsetOutOfRange, match="ends at offset 3"):
        cluster.reset_offsets("reset", topic, to={0: 4})
    cluster.reset_offsets("reset", topic, to={0: 1})
    with cluster.consumer(topic, group="reset") as consumer:
        assert [record.offset for record in _drain(consumer, 2)] == [1, 2]


def _drain(consumer: rs.Consumer, count: int) -> list[rs.Record]:
    records: list[rs.Record] = []
    for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    return records


def _texts(batch: rs.Batch | None) -> list[str | None]:
    return [] if batch is None else [record.text for record in batch.records()]


def _until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"


def test_a_client_with_a_quota_is_held_back_and_others_are_not(cluster: rs.Cluster, topic: str) -> None:
    rate = 200_000
    cluster.set_quota("etl", produce_bytes_per_s=rate)
    assert cluster.quotas() == [rs.ClientQuota("etl", rate, None)]
    try:
        with cluster.producer(client_id="etl", linger_ms=0) as producer:
            sends = 0
            begun = time.monotonic()
            while time.monotonic() - begun < 30 and producer.send(topic, bytes(rate // 2)).result(30):
                sends += 1
                if sends == 5:  # the first second's worth is free
                    break
            assert time.monotonic() - begun >= 1.0
            with cluster.producer(linger_ms=0) as another:
                waited = time.monotonic()
                held_back = producer.send(topic, bytes(rate // 2))
                another.send(topic, bytes(rate // 2)).result(30)
                assert not held_back.done() or time.monotonic() - waited >= 0.4
                held_back.result(30)
        assert cluster.read(topic).count() == 7
    finally:
        cluster.set_quota("etl")
    assert cluster.quotas() == []
