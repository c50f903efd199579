"""The producer against a fake cluster: what arrives, where, and what `send` returns."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from typing import Any

import numpy as np
import pytest

from raystream.client.partitioner import partition_of
from raystream.client.producer import Producer
from raystream.client.sent import Sent
from raystream.errors import (
    Closed,
    InvalidArgument,
    InvalidRecord,
    PartitionNotFound,
    RecordTooLarge,
    RequestTimeout,
    TopicNotFound,
)
from raystream.types import Record, RecordMetadata
from tests.fakes.cluster import FakeCluster

WAIT_S = 10


def test_a_record_arrives_as_it_was_sent(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 3)
    producer = cluster.producer()
    sent = producer.send("t", "value", key="key", headers={"h": "1"}, timestamp_ms=1_700_000_000_000)
    where = sent.result(WAIT_S)
    assert where == RecordMetadata("t", partition_of(b"key", 3), 0, 1_700_000_000_000)
    assert topic.partitions[where.partition].rows() == [
        {"key": b"key", "value": b"value", "headers": [("h", b"1")], "timestamp": 1_700_000_000_000}
    ]
    header = topic.partitions[where.partition].headers[0]
    assert (header.first_timestamp_ms, header.max_timestamp_ms) == (1_700_000_000_000, 1_700_000_000_000)
    assert (header.base_sequence, header.producer_epoch) == (0, 0)
    assert header.producer_id == 1


def test_every_sent_says_where_its_own_record_is(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 4)
    producer = cluster.producer(max_batch_bytes=4096)
    plans: list[tuple[bytes, str | None, int | None]] = [
        (str(i).encode(), None if i % 3 == 0 else str(i % 17), i % 4 if i % 11 == 0 else None) for i in range(5_000)
    ]
    sent = [producer.send("t", value, key=key, partition=partition) for value, key, partition in plans]
    producer.flush(WAIT_S)
    logs = [part.column() for part in topic.partitions]
    for (value, key, partition), one in zip(plans, sent, strict=True):
        where = one.result(0)
        assert logs[where.partition][where.offset] == value
        if partition is not None:
            assert where.partition == partition
        elif key is not None:
            assert where.partition == partition_of(key.encode(), 4)
    assert sum(map(len, logs)) == 5_000
    for log, part in zip(logs, topic.partitions, strict=True):
        by_key: dict[bytes | None, list[int]] = {}
        for value, key in zip(log, part.column("key"), strict=True):
            by_key.setdefault(key, []).append(int(value))
        assert all(numbers == sorted(numbers) for key, numbers in by_key.items() if key is not None)


def test_records_without_a_key_share_batches_and_spread(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 4)
    producer = cluster.producer(max_batch_bytes=8192, linger_ms=1000)
    for _ in range(2_000):
        producer.send("t", b"x" * 100)
    producer.flush(WAIT_S)
    counts = [part.end_offset for part in topic.partitions]
    assert sum(counts) == 2_000
    assert min(counts) > 0
    assert sum(len(part.headers) for part in topic.partitions) < 60


def test_sequences_count_records(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1)
    producer = cluster.producer(linger_ms=0)
    for count in (1, 3, 2):
        producer.send_many("t", ["x"] * count)
        producer.flush(WAIT_S)
    headers = topic.partitions[0].headers
    ends = [header.base_sequence + header.last_offset_delta + 1 for header in headers]
    assert [header.base_sequence for header in headers] == [0, *ends[:-1]]
    assert ends[-1] == 6
    assert cluster.coordinator_port.handed_out == 1


def test_linger_gathers_and_flush_does_not_wait_for_it(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1)
    producer = cluster.producer(linger_ms=60_000)
    sent = [producer.send("t", str(i)) for i in range(10)]
    with pytest.raises(RequestTimeout):
        sent[0].result(0.05)
    assert not sent[0].done()
    producer.flush(WAIT_S)
    assert [one.result(0).offset for one in sent] == list(range(10))
    assert len(topic.partitions[0].headers) == 1


def test_a_full_chunk_does_not_linger(cluster: FakeCluster) -> None:
    cluster.create("t", 1)
    producer = cluster.producer(linger_ms=60_000, max_batch_bytes=2048)
    sent = [producer.send("t", b"x" * 500) for _ in range(5)]
    assert sent[0].result(WAIT_S).offset == 0


def test_batches_grow_while_one_is_in_flight(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1)
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(linger_ms=0)
    first = producer.send("t", b"first")
    while not topic.partitions[0].requests:
        time.sleep(0.001)
    rest = [producer.send("t", str(i)) for i in range(500)]
    cluster.on_loop(gate.set)
    assert rest[-1].result(WAIT_S).offset == 500
    assert first.result(0).offset == 0
    assert len(topic.partitions[0].headers) == 2
    assert topic.partitions[0].most_in_flight == 1


def test_large_backlogs_go_in_parallel_up_to_max_in_flight(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1)
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(max_in_flight=3)
    for _ in range(80):
        producer.send("t", b"x" * 100_000)
    producer._accumulator.seal(producer._sinks["t"])
    while topic.partitions[0].in_flight < 3:
        time.sleep(0.001)
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
    assert topic.partitions[0].most_in_flight == 3
    assert topic.partitions[0].end_offset == 80


def test_callbacks_run_once_and_see_the_outcome(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 2)
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer()
    seen: list[tuple[str, Any]] = []
    sent = producer.send("t", b"x", partition=0)
    sent.add_done_callback(lambda one: seen.append(("early", one.result().offset)))
    sent.add_done_callback(lambda _: 1 / 0)  # logged, and harms nobody
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
    sent.add_done_callback(lambda one: seen.append(("late", one.result().offset)))
    assert seen == [("early", 0), ("late", 0)]


async def test_await_works_in_any_loop(cluster: FakeCluster) -> None:
    cluster.create("t", 2)
    producer = cluster.producer()
    many = await asyncio.gather(*(_awaited(producer.send("t", str(i))) for i in range(100)))
    assert {(where.partition, where.offset) for where in many} == {
        (where.partition, where.offset) for where in set(many)
    }
    written = await producer.send_many("t", ["a", "b"])
    assert written.rows == 2
    assert sum(end - first for first, end in written.offsets.values()) == 2


async def _awaited(sent: Sent) -> RecordMetadata:
    return await sent


def test_many_threads_send_at_once(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 3)
    producer = cluster.producer(linger_ms=0, max_batch_bytes=2048)

    def work(name: int) -> None:
        for number in range(1_000):
            producer.send("t", f"{name}:{number}", key=str(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.flush(WAIT_S)
    values = topic.column()
    assert len(values) == len(set(values)) == 4_000
    for name in range(4):
        own = [int(v.split(b":")[1]) for v in values if v.startswith(f"{name}:".encode())]
        assert own == list(range(1_000))


def test_send_many_takes_values_pairs_and_records(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 1)
    producer = cluster.producer()
    record = Record("other", 3, 9, 1_600_000_000_000, b"rk", b"rv", (("h", b"1"),))
    sent = producer.send_many("t", ["v", ("k", {"a": 1}), record, None])
    assert sent.result(WAIT_S).rows == 4
    assert [one.result(0).offset for one in sent] == [0, 1, 2, 3]
    assert sent[-1].result().offset == 3
    rows = topic.partitions[0].rows()
    assert [(row["key"], row["value"]) for row in rows] == [
        (None, b"v"), (b"k", b'{"a":1}'), (b"rk", b"rv"), (None, None)
    ]  # fmt: skip
    assert rows[2]["timestamp"] == 1_600_000_000_000
    assert rows[2]["headers"] == [("h", b"1")]
    with pytest.raises(InvalidRecord, match="pairs"):
        producer.send_many("t", [("a", "b", "c")])


def test_serializers_and_partitioner(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 4)
    calls: list[Any] = []

    def partitioner(*arguments: Any) -> int:
        calls.append(arguments)
        return np.int64(2)  # type: ignore[return-value]

    producer = cluster.producer(
        key_serializer=lambda key: f"k{key}".encode(),
        value_serializer=lambda value: f"v{value}".encode(),
        partitioner=partitioner,
    )
    assert producer.send("t", 1, key=2).result(WAIT_S).partition == 2
    assert producer.send("t", 3, partition=1).result(WAIT_S).partition == 1
    assert calls == [("t", b"k2", b"v1", 4)]
    assert topic.partitions[2].rows()[0]["key"] == b"k2"


@pytest.mark.parametrize("chosen", [4, -1, None, "2", 1.0, True])
def test_a_partitioner_that_errs_fails_its_records(cluster: FakeCluster, chosen: Any) -> None:
    cluster.create("t", 4)
    producer = cluster.producer(partitioner=lambda *_: chosen)
    with pytest.raises((InvalidRecord, PartitionNotFound), match="partitioner returned"):
        producer.send("t", b"x").result(WAIT_S)


def test_new_partitions_are_used(cluster: FakeCluster) -> None:
    cluster.create("t", 1)
    producer = cluster.producer()
    producer.send("t", b"x").result(WAIT_S)
    cluster.grow("t", 3)
    assert producer.send("t", b"x", partition=2).result(WAIT_S).partition == 2


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"value": 1}, InvalidRecord, "int"),
        ({"value": b"", "key": 1}, InvalidRecord, "key of type int"),
        ({"value": b"", "headers": 5}, InvalidRecord, "headers"),
        ({"value": b"", "timestamp_ms": "now"}, InvalidRecord, "timestamp_ms"),
        ({"value": b"", "timestamp_ms": 1.5}, InvalidRecord, "timestamp_ms"),
        ({"value": b"", "timestamp_ms": True}, InvalidRecord, "timestamp_ms"),
        ({"value": b"", "timestamp_ms": -1}, InvalidRecord, "out of range"),
        ({"value": b"", "timestamp_ms": 2**63}, InvalidRecord, "out of range"),
        ({"value": b"", "timestamp_ms": 10**14}, InvalidRecord, "in the future"),
        ({"value": b"", "partition": 4}, PartitionNotFound, "0 to 3"),
        ({"value": b"", "partition": -1}, PartitionNotFound, "0 to 3"),
        ({"value": b"", "partition": "1"}, InvalidRecord, "partition"),
        ({"value": b"", "partition": 1.0}, InvalidRecord, "partition"),
        ({"value": b"x" * 20_000}, RecordTooLarge, "max_batch_bytes"),
        ({"value": b"", "key": b"x" * 20_000}, RecordTooLarge, "max_batch_bytes"),
        ({"value": b"", "headers": {"h": b"x" * 20_000}}, RecordTooLarge, "max_batch_bytes"),
    ],
)
def test_bad_records_are_refused_at_send(
    cluster: FakeCluster, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    topic = cluster.create("t", 4, config={"max_batch_bytes": 16_384})
    producer = cluster.producer()
    with pytest.raises(error, match=says):
        producer.send("t", **arguments)
    producer.send("t", b"good").result(WAIT_S)
    assert topic.column() == [b"good"]


def test_the_largest_record_fits(cluster: FakeCluster) -> None:
    cluster.create("t", 1, config={"max_batch_bytes": 16_384})
    producer = cluster.producer()
    size = 16_384
    while True:
        try:
            sent = producer.send("t", b"x" * size, key=b"k", headers={"h": b"v"})
            break
        except RecordTooLarge:
            size -= 1
    sent.result(WAIT_S)
    assert size > 16_384 - 1_500
    assert cluster.topics["t"].partitions[0].sizes[0] <= 16_384


def test_a_missing_topic_names_the_remedy(cluster: FakeCluster) -> None:
    producer = cluster.producer()
    with pytest.raises(TopicNotFound, match=r"cluster\.create_topic\('nope'\)"):
        producer.send("nope", b"x")
    with pytest.raises(TopicNotFound, match="create_topic"):
        producer.send_frame("nope", None)
    with pytest.raises(InvalidArgument, match="topic"):
        producer.send(5, b"x")  # type: ignore[arg-type]
    cluster.create("nope")
    producer.send("nope", b"x").result(WAIT_S)


def test_a_producer_is_not_pickled(cluster: FakeCluster) -> None:
    with pytest.raises(TypeError, match="pass the cluster"):
        pickle.dumps(cluster.producer())


def test_closing(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    with cluster.producer(linger_ms=60_000) as producer:
        sent = producer.send("t", b"x")
    assert sent.result(0).offset == 0
    assert producer.closed
    producer.close()
    cluster.on_loop(lambda: None)  # what the loop still had to do at the end does not change what is said
    for call in (lambda: producer.send("t", b"y"), lambda: producer.send_frame("t", None)):
        with pytest.raises(Closed, match=r"cluster\.producer"):
            call()
    assert topic.column() == [b"x"]


def test_close_fails_what_it_cannot_wait_for(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    cluster.hold(topic.partitions[0])
    producer = cluster.producer(linger_ms=0)
    sent = [producer.send("t", str(i)) for i in range(100)]
    with pytest.raises(Exception, match="100 records") as raised:
        producer.close(0.1)
    assert type(raised.value).__name__ == "DeliveryFailed"
    with pytest.raises(Closed):
        sent[-1].result(WAIT_S)
    assert producer.stats.buffered_bytes == 0


def test_flush_times_out_and_goes_on(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer()
    producer.send("t", b"x")
    with pytest.raises(RequestTimeout, match="1 records"):
        producer.flush(0.05)
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)


def test_callbacks_may_send(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    producer = cluster.producer(linger_ms=0)
    done = threading.Event()

    def again(sent: Sent) -> None:
        if sent.result().offset < 5:
            producer.send("t", b"again").add_done_callback(again)
        else:
            done.set()

    producer.send("t", b"first").add_done_callback(again)
    assert done.wait(WAIT_S)
    assert topic.partitions[0].end_offset == 6


def test_an_interrupted_send_leaves_the_chunk_whole(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    producer = cluster.producer(linger_ms=60_000)
    producer.send("t", b"first", key="k")
    chunk = producer._sinks["t"].open
    chunk.values.append(b"half")  # as an interrupt between two appends would leave it
    chunk.cut_back(1)
    producer.send("t", b"second", key="k")
    producer.flush(WAIT_S)
    assert topic.column() == [b"first", b"second"]


def test_acks_0_waits_for_no_reply(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(acks=0)
    where = producer.send("t", b"x").result(WAIT_S)
    assert where.offset == -1
    cluster.on_loop(gate.set)
    producer.send("t", b"y").result(WAIT_S)
    producer.close(WAIT_S)
    while len(topic.column()) < 2:
        time.sleep(0.001)
    assert topic.column() == [b"x", b"y"]
    assert topic.partitions[0].requests[0].acks == 0
    assert topic.partitions[0].headers[0].producer_id == -1


@pytest.mark.parametrize(("acks", "asked"), [(1, 1), ("all", -1)])
def test_acks(cluster: FakeCluster, acks: Any, asked: int) -> None:
    topic = cluster.create("t")
    cluster.producer(acks=acks).send("t", b"x").result(WAIT_S)
    assert topic.partitions[0].requests[0].acks == asked


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compression(cluster: FakeCluster, compression: str) -> None:
    topic = cluster.create("t")
    producer = cluster.producer(compression=compression)
    producer.send_many("t", [b"x" * 1_000] * 100)
    producer.flush(WAIT_S)
    assert topic.column() == [b"x" * 1_000] * 100
    assert sum(topic.partitions[0].sizes) < 10_000


def test_append_time_is_what_the_metadata_says(cluster: FakeCluster) -> None:
    topic = cluster.create("t", config={"timestamp_type": "append"})
    where = cluster.producer().send("t", b"x", timestamp_ms=5).result(WAIT_S)
    assert where.timestamp_ms > 1_600_000_000_000
    assert topic.partitions[0].headers[0].attributes == 4


def test_statistics(cluster: FakeCluster) -> None:
    cluster.create("t")
    producer = cluster.producer()
    producer.send_many("t", ["x"] * 10)
    producer.flush(WAIT_S)
    assert producer.stats.records == 10
    assert producer.stats.batches >= 1
    assert producer.stats.bytes > 0
    assert producer.stats.latency_ms > 0
    assert "10 records acknowledged" in repr(producer)
    assert isinstance(producer, Producer)


def test_a_compacted_topic_takes_no_record_without_a_key(cluster: FakeCluster) -> None:
    cluster.create("t", 1, config={"cleanup_policy": "compact"})
    producer = cluster.producer()
    for value in (b"v", "v", None):
        with pytest.raises(InvalidRecord, match=r"topic .t. is compacted .* give a key"):
            producer.send("t", value)
    assert producer.send("t", b"v", key=b"k").result(WAIT_S).offset == 0
    assert producer.send("t", None, key="k").result(WAIT_S).offset == 1
