"""What a consumer does beyond delivering: positions, pauses, lag, deserializers, typed topics, async, bad use."""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Iterator

import pyarrow as pa
import pytest

from raystream.client import session
from raystream.client.consumer import Consumer
from raystream.errors import Closed, InvalidArgument, PartitionNotFound, RaystreamError
from raystream.types import Record, TopicPartition
from tests.fakes.log import FakeCluster, eventually, raw_rows


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        cluster.create("t", 2)
        cluster.append("t", raw_rows([b"a", b"b", b"c"], timestamps=[100, 200, 300]))
        cluster.append("t", [b"x", b"y"], 1)
        yield cluster


def take(consumer: Consumer, count: int) -> list[Record]:
    records: list[Record] = []
    for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    return records


def test_a_raw_record_has_everything(cluster: FakeCluster) -> None:
    cluster.create("full")
    rows = raw_rows([b"v", None, b'{"n": 1}'], keys=[b"k", None, b""], headers=[[("h", b"1"), ("h", None)], None, []])
    cluster.append("full", rows)
    with cluster.consumer("full") as consumer:
        first, second, third = take(consumer, 3)
    assert first == Record("full", 0, 0, 1000, b"k", b"v", [("h", b"1"), ("h", None)])
    assert second == Record("full", 0, 1, 1001, None, None, ())
    assert (third.key, third.json(), first.text, second.text) == (b"", {"n": 1}, "v", None)


def test_append_time_replaces_the_records_own(cluster: FakeCluster) -> None:
    cluster.create("stamped")
    cluster.append_stamped("stamped", [b"a", b"b"])
    with cluster.consumer("stamped") as consumer:
        batch = consumer.poll(5)
        assert batch is not None
        assert [r.timestamp_ms for r in batch.records()] == [5000, 5000]
        table = batch.to_arrow()
        assert table["timestamp"].to_pylist() == [5000, 5000] and table["timestamp_type"].to_pylist() == [1, 1]


def test_long_and_short_batches_keep_their_order(cluster: FakeCluster) -> None:
    cluster.create("many")
    sizes = [1, 2, 9000, 1, 1, 20_000, 3]
    for size in sizes:
        cluster.append("many", [b"v"] * size)
    with cluster.consumer("many") as consumer:
        assert [r.offset for r in take(consumer, sum(sizes))] == list(range(sum(sizes)))


def test_a_batch_is_a_table(cluster: FakeCluster) -> None:
    with cluster.consumer(start={0: 1}) as consumer:
        consumer.pause("t", 1)
        batch = consumer.poll(5)
    assert batch is not None and batch.topic == "t" and batch.caught_up
    assert batch.offsets == range(1, 3) and len(batch) == 2
    assert batch.to_arrow()["offset"].to_pylist() == [1, 2]
    assert batch.to_pandas()["value"].tolist() == [b"b", b"c"]
    assert batch.to_polars()["value"].to_list() == [b"b", b"c"]
    assert pa.table(batch).num_rows == 2
    assert "2 records" in repr(batch) and "<table" in batch._repr_html_()
    assert [r.value for r in batch] == [b"b", b"c"]


def test_deserializers_see_no_nulls(cluster: FakeCluster) -> None:
    cluster.append("t", raw_rows([None, b"7"], keys=[b"k", None]), 1)
    with cluster.consumer(key_deserializer=bytes.decode, value_deserializer=int, start={0: 3, 1: 2}) as consumer:
        assert [(r.key, r.value) for r in take(consumer, 2)] == [("k", None), (None, 7)]


def test_a_typed_topic_gives_rows(cluster: FakeCluster) -> None:
    schema = pa.schema(
        [
            ("carrier", pa.dictionary(pa.int32(), pa.string())),
            ("at", pa.timestamp("us", "UTC")),
            ("delay", pa.int32()),
        ]
    )
    topic = cluster.create("flights", schema=schema, key="carrier", time="at")
    rows = pa.record_batch(
        [
            pa.array(["UA", "AA"]),
            pa.array([1_500_000, 2_500_000], pa.timestamp("us", "UTC")),
            pa.array([5, None], pa.int32()),
        ],
        schema=topic.partitions[0].schema,
    )
    cluster.append("flights", rows)
    with cluster.consumer("flights") as consumer:
        batch = consumer.poll(5)
        assert batch is not None
        first, _ = batch.records()
        assert first.key == "UA" and first.timestamp_ms == 1500
        assert first.value["carrier"] == "UA" and first.value["delay"] == 5
        table = batch.to_arrow(metadata=True)
    assert table.schema.names == ["carrier", "at", "delay", "_partition", "_offset", "_timestamp"]
    assert pa.types.is_dictionary(table.schema.field("carrier").type)
    assert table["_timestamp"].to_pylist() == [1500, 2500] and table["_offset"].to_pylist() == [0, 1]
    assert batch.to_arrow().schema.equals(schema)


# Positions ----------------------------------------------------------------------------------------------------------


def test_seek_takes_offsets_and_positions(cluster: FakeCluster) -> None:
    with cluster.consumer() as consumer:
        consumer.pause("t", 1)
        records = iter(consumer)
        assert next(records).offset == 0
        consumer.seek("t", 0, 2)
        assert next(records).offset == 2, "also in the middle of a run"
        consumer.seek("t", 0, "earliest")
        assert next(records).offset == 0
        consumer.seek("t", 0, dt.datetime.fromtimestamp(0.2, dt.UTC))
        assert next(records).offset == 1
        consumer.seek("t", 0, {0: 2})
        assert next(records).offset == 2
        consumer.seek("t", 0, "latest")
        assert consumer.poll(0.1) is None
        cluster.append("t", [b"d"])
        assert next(iter(consumer)).value == b"d"


def test_seek_moves_the_groups_position_back_too(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g") as consumer:
        take(consumer, 5)
        consumer.commit()
        assert cluster.committed() == 3
        consumer.seek("t", 0, 1)
        eventually(lambda: cluster.committed() == 1)


@pytest.mark.parametrize("wrong", [-1, "soon", 1.5])
def test_seek_refuses_what_is_no_position(cluster: FakeCluster, wrong: object) -> None:
    with cluster.consumer() as consumer, pytest.raises(InvalidArgument):
        consumer.seek("t", 0, wrong)  # type: ignore[arg-type]


def test_what_is_not_assigned_is_named(cluster: FakeCluster) -> None:
    with cluster.consumer() as consumer:
        with pytest.raises(InvalidArgument, match="t-7 is not assigned to this consumer; it has t-0, t-1"):
            consumer.seek("t", 7, 0)
        with pytest.raises(InvalidArgument, match="u-0"):
            consumer.position("u", 0)
    with pytest.raises(PartitionNotFound):
        cluster.consumer(start={9: 0})


def test_position_round_trips_through_start(cluster: FakeCluster) -> None:
    with cluster.consumer() as consumer:
        take(consumer, 4)
        position = consumer.position()
        assert sum(sum(parts.values()) for parts in position.values()) == 4
        assert consumer.position("t") == position["t"]
    with cluster.consumer(start=position) as consumer:
        assert len(take(consumer, 1)) == 1
        assert consumer.poll(0.1) is None


def test_pause_holds_a_partition_back_and_resume_gives_it_all(cluster: FakeCluster) -> None:
    with cluster.consumer() as consumer:
        records = iter(consumer)
        first = next(records)
        while first.partition != 0:
            first = next(records)
        consumer.pause("t", 0)
        others = [batch for _ in range(3) if (batch := consumer.poll(0.1)) is not None]
        assert {b.partition for b in others} <= {1}
        consumer.resume("t", 0)
        assert [r.offset for r in take(consumer, 2)] == [1, 2]
        consumer.pause()
        cluster.append("t", [b"d"])
        assert consumer.poll(0.1) is None
        consumer.resume()
        assert consumer.poll(5) is not None


def test_lag_counts_from_the_position(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", client_id="me") as consumer:
        take(consumer, 5)
        cluster.append("t", [b"d", b"e"])
        rows = consumer.lag()
        assert [(r.partition, r.end_offset, r.lag, r.member) for r in rows] == [(0, 5, 2, "me"), (1, 2, 0, "me")]


# Topics -------------------------------------------------------------------------------------------------------------


def test_a_pattern_takes_in_topics_that_come_later(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TOPICS_AGAIN_MS", 20.0)
    cluster.create("logs.a")
    cluster.append("logs.a", [b"before"])
    with cluster.consumer(re.compile(r"logs\..*"), start="latest") as consumer:
        assert consumer.assignment() == [TopicPartition("logs.a", 0)]
        cluster.create("logs.b")
        cluster.append("logs.b", [b"first of b"])
        assert take(consumer, 1)[0].value == b"first of b", "a topic younger than the call is read from its beginning"


def test_several_topics(cluster: FakeCluster) -> None:
    cluster.create("u")
    cluster.append("u", [b"u"])
    with cluster.consumer(["t", "u", "t"], start={"t": {0: 3, 1: 1}}) as consumer:
        assert sorted(r.value for r in take(consumer, 2)) == [b"u", b"y"]


@pytest.mark.parametrize("topics", ["", "a/b", "x\n", [], ["t", ""], "*", "a" * 250])
def test_bad_topic_names(cluster: FakeCluster, topics: object) -> None:
    with pytest.raises(InvalidArgument):
        cluster.consumer(topics)


# Waiting ------------------------------------------------------------------------------------------------------------


def test_poll_waits_and_gives_up(cluster: FakeCluster) -> None:
    with cluster.consumer(start="latest") as consumer:
        began = time.monotonic()
        assert consumer.poll(0.2) is None
        assert 0.15 < time.monotonic() - began < 2
        assert consumer.poll(0) is None


def test_ctrl_c_interrupts_the_wait_at_once(cluster: FakeCluster) -> None:
    def loop() -> None:
        with cluster.consumer(group="g", start="latest") as consumer:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            for _ in consumer:
                pass

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop()
    assert time.monotonic() - began < 3
    assert cluster.coordinator_port.left, "the group was left on the way out"


def test_stop_ends_the_loop_from_another_thread(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", start="latest") as consumer:
        threading.Timer(0.1, consumer.stop).start()
        assert list(consumer) == []
        cluster.append("t", [b"more"])
        assert take(consumer, 1)[0].value == b"more", "it can go on"


def test_stop_from_inside_ends_after_the_record_in_hand(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit_interval_ms=60_000, commit_each_batch=False) as consumer:
        seen = []
        for record in consumer:
            seen.append(record)
            consumer.stop()
        assert len(seen) == 1
    assert cluster.committed("t", seen[0].partition) == 1


def test_async_for_leaves_the_loop_free(cluster: FakeCluster) -> None:
    async def main() -> tuple[list[bytes], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        seen: list[bytes] = []
        with cluster.consumer() as consumer:
            async for record in consumer:
                seen.append(record.value)
                if len(seen) == 5:
                    threading.Timer(0.15, cluster.append, ("t", [b"late"])).start()
                if len(seen) == 6:
                    break
        ticking.cancel()
        return seen, ticks

    seen, ticks = asyncio.run(main())
    assert sorted(seen) == [b"a", b"b", b"c", b"late", b"x", b"y"] and ticks >= 5


def test_poll_async(cluster: FakeCluster) -> None:
    async def main() -> list[int]:
        with cluster.consumer() as consumer:
            found = [await consumer.poll_async(5), await consumer.poll_async(5)]
            assert await consumer.poll_async(0.05) is None
            asyncio.get_running_loop().call_later(0.05, consumer.stop)
            assert await consumer.poll_async(None) is None
            return sorted(len(batch) for batch in found if batch is not None)

    assert asyncio.run(main()) == [2, 3]


# The end ------------------------------------------------------------------------------------------------------------


def test_a_closed_consumer_says_so(cluster: FakeCluster) -> None:
    consumer = cluster.consumer()
    consumer.close()
    consumer.close()
    assert consumer.closed and "closed" in repr(consumer)
    for use in (consumer.poll, consumer.lag, consumer.position, consumer.assignment, lambda: next(iter(consumer))):
        with pytest.raises(Closed):
            use()


def test_closing_in_the_loop_ends_it(cluster: FakeCluster) -> None:
    consumer = cluster.consumer()
    for _ in consumer:
        consumer.close()
    assert consumer.closed


def test_a_consumer_is_not_pickled(cluster: FakeCluster) -> None:
    with cluster.consumer() as consumer, pytest.raises(TypeError, match="pass the cluster"):
        pickle.dumps(consumer)


def test_a_forked_child_is_refused(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g") as consumer:
        consumer._pid -= 1  # as it looks from a child
        with pytest.raises(RaystreamError, match="forked"):
            consumer.poll(0)
        consumer._pid = os.getpid()
    assert cluster.coordinator_port.left


def test_a_wait_ends_when_the_connection_does(cluster: FakeCluster) -> None:
    consumer = cluster.consumer(start="latest")
    threading.Timer(0.1, cluster.loop.stop).start()
    with pytest.raises(Closed, match="connection"):
        consumer.poll(20)
    with pytest.raises(Closed, match="connection"):
        consumer.poll(20)
    consumer.close()


def test_closing_from_another_thread_leaves_its_record_in_hand(cluster: FakeCluster) -> None:
    consumer = cluster.consumer(group="g", auto_commit_interval_ms=60_000, commit_each_batch=False)
    first = take(consumer, 1)[0]
    closer = threading.Thread(target=consumer.close)
    closer.start()
    closer.join()
    assert cluster.committed("t", first.partition) == 0


def test_a_patterns_topic_may_be_deleted(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TOPICS_AGAIN_MS", 20.0)
    cluster.create("logs.a")
    cluster.create("logs.b")
    with cluster.consumer(re.compile(r"logs\..*")) as consumer:
        assert len(consumer.assignment()) == 2
        del cluster.topics["logs.a"]
        cluster.routing.forget("logs.a")
        eventually(lambda: len(consumer.assignment()) == 1)
        cluster.append("logs.b", [b"b"])
        assert take(consumer, 1)[0].value == b"b"
