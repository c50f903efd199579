"""Transactions on real actors: seen as a whole or not at all, also where the coordinator dies in the middle."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

import raystream as rs
from tests.ray.actors import pids


def values(cluster: rs.Cluster, topic: str, isolation: str = "read_committed") -> list[str]:
    """What is in a topic, by mapped reads, by bytes, and record by record: all three must agree."""
    found = sorted(cluster.read(topic, isolation=isolation).to_arrow()["value"].to_pylist())
    assert sorted(cluster.read(topic, isolation=isolation, mmap=False).to_arrow()["value"].to_pylist()) == found
    assert cluster.read(topic, isolation=isolation).count() == len(found)
    return [value.decode() for value in found]


def test_a_commit_shows_all_of_it_and_an_abort_none(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    topic = cluster.create_topic(topic_name(), partitions=3).name
    other = cluster.create_topic(topic_name()).name
    with cluster.producer(transactional_id=f"{topic}-tx") as producer:
        with producer.transaction():
            for number in range(30):
                producer.send(topic, f"a{number:02}", key=str(number))
            producer.send(other, "a")
            producer.flush()
            assert values(cluster, topic) == [] and len(values(cluster, topic, "read_uncommitted")) == 30
        wanted = [f"a{number:02}" for number in range(30)]
        assert values(cluster, topic) == wanted and values(cluster, other) == ["a"]

        def fail_half_way() -> None:
            with producer.transaction():
                producer.send_many(topic, [f"b{number}" for number in range(30)])
                producer.flush()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail_half_way()
        assert values(cluster, topic) == wanted
        assert len(values(cluster, topic, "read_uncommitted")) == 60
        with producer.transaction():
            producer.send(topic, "c", partition=0)
        assert values(cluster, topic) == [*wanted, "c"]
    with cluster.consumer(topic, start="earliest") as consumer:
        got: list[str | None] = []
        while len(got) < 31:
            batch = consumer.poll(5)
            assert batch is not None
            got += [record.text for record in batch]
        assert sorted(map(str, got)) == [*wanted, "c"]
        deadline = time.monotonic() + 5
        while any(row.lag for row in consumer.lag()) and time.monotonic() < deadline:
            consumer.poll(0.1)
        assert [row.lag for row in consumer.lag()] == [0, 0, 0]


def test_a_second_producer_of_the_same_id_fences_the_first_and_takes_back_what_it_left_open(
    cluster: rs.Cluster, topic: str
) -> None:
    first = cluster.producer(transactional_id=f"{topic}-tx")
    first.begin_transaction()
    first.send(topic, "lost").result(10)
    with cluster.producer(transactional_id=f"{topic}-tx") as second:
        with second.transaction():
            second.send(topic, "kept")
        assert values(cluster, topic) == ["kept"]
        with pytest.raises(rs.FencedProducer):
            first.commit_transaction()
        with pytest.raises(rs.FencedProducer):
            first.begin_transaction()
    first.close()
    assert values(cluster, topic) == ["kept"]


def test_positions_move_with_the_commit_alone(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    source, sink = cluster.create_topic(topic_name()).name, cluster.create_topic(topic_name()).name
    group = f"{source}-g"
    with cluster.producer() as plain:
        plain.send_many(source, [str(number) for number in range(10)])
    with (
        cluster.producer(transactional_id=f"{source}-tx") as producer,
        cluster.consumer(source, group=group, start="earliest", auto_commit=False) as consumer,
    ):
        for attempt in ("abort", "commit"):
            batch = consumer.poll(10)
            assert batch is not None and len(batch) == 10
            producer.begin_transaction()
            for record in batch:
                producer.send(sink, f"{attempt} {record.text}")
            producer.commit_offsets(consumer, batch)
            if attempt == "abort":
                producer.abort_transaction()
                assert consumer.committed(source, 0) is None
                consumer.rewind()
            else:
                producer.commit_transaction()
                assert consumer.committed(source, 0) == 10
    assert values(cluster, sink) == sorted(f"commit {number}" for number in range(10))


def test_a_transaction_that_takes_too_long_is_aborted(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer(transactional_id=f"{topic}-tx", transaction_timeout_ms=1_000) as producer:
        producer.begin_transaction()
        producer.send(topic, "late").result(10)
        with cluster.producer() as plain:
            plain.send(topic, "plain").result(10)
        assert values(cluster, topic) == []
        deadline = time.monotonic() + 10
        while not cluster.read(topic).count() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert values(cluster, topic) == ["plain"]
        with pytest.raises(rs.TransactionTimedOut):
            producer.commit_transaction()
        producer.abort_transaction()
        with producer.transaction():
            producer.send(topic, "again")
    assert values(cluster, topic) == ["again", "plain"]


def test_a_coordinator_that_dies_between_decision_and_markers_leaves_them_to_its_successor(
    cluster: rs.Cluster, topic: str
) -> None:
    with cluster.producer(transactional_id=f"{topic}-tx") as producer:
        for turn in range(3):
            producer.begin_transaction()
            producer.send(topic, str(turn)).result(10)
            killer = threading.Timer(0.002 * turn, lambda: os.kill(coordinator_pid(), signal.SIGKILL))
            killer.start()
            producer.commit_transaction()
            killer.join()
    assert values(cluster, topic) == ["0", "1", "2"]


def coordinator_pid() -> int:
    (pid,) = pids("raystream-coordinator-")
    return pid


def test_usage_errors_are_typed(cluster: rs.Cluster, topic: str) -> None:
    with cluster.producer() as plain, pytest.raises(rs.InvalidTransactionState, match="transactional_id"):
        plain.begin_transaction()
    with pytest.raises(rs.InvalidArgument, match="acks"):
        cluster.producer(transactional_id="x", acks=1)
    with cluster.producer(transactional_id=f"{topic}-tx") as producer:
        with pytest.raises(rs.InvalidTransactionState, match="no transaction is open"):
            producer.send(topic, "x")
        with pytest.raises(rs.InvalidTransactionState):
            producer.commit_transaction()
        producer.begin_transaction()
        with pytest.raises(rs.InvalidTransactionState, match="a transaction is open"):
            producer.begin_transaction()
        with cluster.consumer(topic, group=f"{topic}-g") as consumer, pytest.raises(rs.InvalidArgument):
            producer.commit_offsets(consumer)


def test_a_pipeline_moves_every_record_once_though_its_transform_fails(
    cluster: rs.Cluster, topic_name: Callable[[], str]
) -> None:
    source, sink = cluster.create_topic(topic_name(), partitions=2).name, cluster.create_topic(topic_name()).name
    with cluster.producer() as plain:
        plain.send_many(source, [(str(number), str(number)) for number in range(100)])
    failures = [ZeroDivisionError("first"), ZeroDivisionError("second")]

    def doubled(batch: rs.Batch) -> list[str]:
        made = [str(2 * int(record.text or 0)) for record in batch]
        if failures:
            raise failures.pop()
        return made

    pipeline = cluster.pipeline(source, doubled, sink, group=f"{source}-g", consumer_options={"max_fetch_bytes": 1024})
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            pipeline.run()
    pipeline.run(max_batches=2)
    assert values(cluster, sink) == sorted(str(2 * number) for number in range(100))
    assert sum(row.lag or 0 for row in cluster.lag(f"{source}-g")) == 0


def test_pipeline_workers_that_die_lose_and_double_nothing(cluster: rs.Cluster, topic_name: Callable[[], str]) -> None:
    source, sink = cluster.create_topic(topic_name(), partitions=4).name, cluster.create_topic(topic_name()).name
    count = 4_000

    def slowly(batch: rs.Batch) -> list[str | None]:
        time.sleep(0.02)
        return [record.text for record in batch]

    pipeline = cluster.pipeline(
        source,
        slowly,
        sink,
        group=f"{source}-g",
        consumer_options={"session_timeout_ms": 2_000, "max_fetch_bytes": 4096},
        producer_options={"transaction_timeout_ms": 5_000},
    )
    job = pipeline.start(workers=2)
    try:
        with cluster.producer(linger_ms=1) as plain:
            for first in range(0, count, 100):
                plain.send_many(source, [(str(number), str(number)) for number in range(first, first + 100)])
                plain.flush()
                if first == count // 2:
                    (victim, *_) = [status.pid for status in job.status() if status.pid is not None]
                    os.kill(victim, signal.SIGKILL)
        deadline = time.monotonic() + 40
        while cluster.read(sink).count() < count and time.monotonic() < deadline:
            time.sleep(0.3)
    finally:
        job.stop(timeout=5)
    assert values(cluster, sink) == sorted(map(str, range(count)))
