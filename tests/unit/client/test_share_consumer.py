"""Members of a share group: what they get, what counts as accepted, released and rejected, and when."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raystream.client.columns import Piece, Shape
from raystream.client.delivered import Batch
from raystream.client.share_aio import ShareConsumer as AioShareConsumer
from raystream.client.share_consumer import ShareConsumer
from raystream.core.share_records import SharePartitionRecord
from raystream.errors import (
    ActorLost,
    Closed,
    CoordinatorNotAvailable,
    FencedMember,
    InvalidArgument,
    InvalidRecord,
    TopicNotFound,
)
from raystream.schema import RAW_SCHEMA
from raystream.types import Record
from tests.fakes.log import FakeCluster, eventually, raw_rows
from tests.fakes.shares import open_share


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path) as cluster:
        cluster.create("t", 2)
        cluster.append("t", [b"a", b"b", b"c"])
        cluster.append("t", [b"d", b"e"])
        cluster.append("t", [b"x", b"y"], 1)
        yield cluster


def state(cluster: FakeCluster, partition: int = 0, topic: str = "t") -> SharePartitionRecord:
    return cluster.coordinator_port.shares._groups["workers"].partitions[topic, partition].record


def take(consumer: ShareConsumer, count: int) -> list[Record]:
    records: list[Record] = []
    for record in consumer:
        records.append(record)
        if len(records) == count:
            break
    return records


def values(records: list[Record]) -> list[bytes]:
    return sorted(record.value for record in records)


def all_settled(cluster: FakeCluster) -> bool:
    return (state(cluster).start_offset, state(cluster, 1).start_offset) == (5, 2)


def test_each_record_comes_once_and_is_accepted_when_the_next_is_asked_for(cluster: FakeCluster) -> None:
    with open_share(cluster) as consumer:
        records = take(consumer, 7)
        assert values(records) == [b"a", b"b", b"c", b"d", b"e", b"x", b"y"]
        consumer.commit()
        assert state(cluster).accepted + state(cluster, 1).accepted == 6, "the one in hand is not accepted yet"
    assert all_settled(cluster), "closing counts it"


def test_what_is_in_hand_when_an_exception_is_on_its_way_is_released(cluster: FakeCluster) -> None:
    with contextlib.suppress(RuntimeError), open_share(cluster) as consumer:
        record = take(consumer, 1)[0]
        raise RuntimeError
    partition = state(cluster, record.partition)
    assert (record.offset, record.offset + 1, 0, 1) in partition.runs, "it counts as delivered once"
    assert partition.accepted == 0


def test_what_was_fetched_and_never_handed_out_goes_back_uncounted(cluster: FakeCluster) -> None:
    with open_share(cluster, max_poll_records=1) as consumer:
        take(consumer, 1)
        time.sleep(0.1)
    assert [state(cluster, n).runs for n in (0, 1)] == [(), ()]


def test_many_members_share_a_partition(cluster: FakeCluster) -> None:
    cluster.append("t", [b"%d" % n for n in range(200)], 1)
    members = [open_share(cluster, max_poll_records=5) for _ in range(5)]
    got: list[list[Record]] = [[] for _ in members]

    def work(number: int) -> None:
        for record in members[number]:
            got[number].append(record)
            time.sleep(0.001)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    eventually(lambda: sum(map(len, got)) >= 207)
    for member in members:
        member.stop()
    for thread in threads:
        thread.join()
    for member in members:
        member.close()
    places = [(r.partition, r.offset) for records in got for r in records]
    assert len(places) == len(set(places)) == 207
    assert sum(bool(records) for records in got) == 5, "everybody got some"


def test_a_released_record_comes_again_and_its_deliveries_are_counted(cluster: FakeCluster) -> None:
    with open_share(cluster, max_deliveries=3) as consumer:
        seen: list[int] = []
        for record in consumer:
            if record.value == b"b":
                seen.append(consumer.deliveries(record))
                consumer.acknowledge(record, "release")
            else:
                consumer.acknowledge(record)
            if len(seen) == 3:
                break
        consumer.commit()
        eventually(lambda: state(cluster).archived == 1)
        assert seen == [1, 2, 3]


def test_a_rejected_record_goes_to_the_dead_letter_topic_with_the_reason(cluster: FakeCluster) -> None:
    dead = cluster.create("dead").partitions[0]
    with open_share(cluster, dead_letter="dead") as consumer:
        for _ in range(7):
            record = next(iter(consumer))
            consumer.acknowledge(record, "reject" if record.value in (b"b", b"y") else "accept")
        eventually(lambda: all_settled(cluster))
    with cluster.consumer("dead") as reader:
        records = iter(reader)
        letters = {record.value: dict(record.headers) for record in (next(records), next(records))}
    assert dead.end_offset == 2
    assert letters[b"b"] == {
        "raystream.dead_letter.topic": b"t",
        "raystream.dead_letter.partition": b"0",
        "raystream.dead_letter.offset": b"1",
        "raystream.dead_letter.group": b"workers",
        "raystream.dead_letter.deliveries": b"1",
        "raystream.dead_letter.reason": b"rejected",
    }
    assert state(cluster).dead_lettered == state(cluster, 1).dead_lettered == 1


def test_a_dead_letter_that_cannot_be_written_is_kept(cluster: FakeCluster) -> None:
    dead = cluster.create("dead").partitions[0]
    dead.errors.append(InvalidRecord("no"))
    with open_share(cluster, dead_letter="dead", lock_timeout_ms=3_000) as consumer:
        for record in consumer:
            consumer.acknowledge(record, "reject" if record.value == b"a" else "accept")
            if record.value == b"a":
                break
        consumer.commit()
        assert state(cluster).dead_lettered == 0

        eventually(lambda: state(cluster).dead_lettered == 1, 10)
    assert dead.end_offset == 1


def test_dead_letters_are_buried_though_the_only_member_asks_for_nothing(cluster: FakeCluster) -> None:
    dead = cluster.create("dead").partitions[0]
    with open_share(cluster, dead_letter="dead", max_deliveries=1) as consumer:
        record = next(iter(consumer))
        consumer.acknowledge(record, "release")
        eventually(lambda: state(cluster, record.partition).dead_lettered == 1)
        assert dead.end_offset == 1, "while the rest of what it has acquired waits for its user"


def test_a_pattern_reads_what_matches_it_now_and_later(cluster: FakeCluster) -> None:
    cluster.create("t.dead")
    cluster.create("u")
    cluster.append("u", [b"no"])
    with open_share(cluster, re.compile("t.*"), dead_letter="t.dead") as consumer:
        assert values(take(consumer, 7)) == [b"a", b"b", b"c", b"d", b"e", b"x", b"y"]
        cluster.create("t.new")
        cluster.append("t.new", [b"new"])
        assert values(take(consumer, 1)) == [b"new"]
        consumer.commit()
    assert "matching 't.*'" in repr(consumer)
    assert {topic for topic, _ in cluster.coordinator_port.shares._groups["workers"].partitions} == {"t", "t.new"}


def test_batches_are_accepted_when_the_next_is_asked_for(cluster: FakeCluster) -> None:
    with open_share(cluster) as consumer:
        got = 0
        while got < 7:
            batch = consumer.poll(5)
            assert batch is not None
            got += len(batch)
        assert consumer.poll(0.05) is None
        consumer.commit()
        assert all_settled(cluster)


def test_a_batch_is_acknowledged_as_a_whole_or_record_by_record(cluster: FakeCluster) -> None:
    with open_share(cluster, max_poll_records=4) as consumer:
        batch = consumer.poll(5)
        assert batch is not None
        first = next(batch.records())
        consumer.acknowledge(first, "accept")
        consumer.acknowledge(batch, "release")
        with pytest.raises(InvalidArgument, match="acknowledged already"):
            consumer.acknowledge(batch)
        with pytest.raises(InvalidArgument, match="not in hand"):
            consumer.acknowledge(first)
        consumer.commit()
        assert state(cluster, batch.partition).accepted == 1


def test_after_records_of_a_batch_the_rest_of_it_can_be_polled(cluster: FakeCluster) -> None:
    with open_share(cluster) as consumer:
        first = take(consumer, 1)[0]
        batch = consumer.poll(5)
        assert batch is not None
        assert (batch.partition, batch.offsets.start) == (first.partition, first.offset + 1)


def test_a_lock_that_runs_out_frees_the_record_and_the_late_acknowledgement_is_refused(cluster: FakeCluster) -> None:
    with open_share(cluster, lock_timeout_ms=200) as slow:
        record = take(slow, 1)[0]
        with open_share(cluster, lock_timeout_ms=200) as quick:
            again = take(quick, 7)
            assert (record.partition, record.offset) in {(r.partition, r.offset) for r in again}
            slow.acknowledge(record)
            with pytest.raises(FencedMember, match="came too late") as caught:
                slow.commit()
            assert caught.value.refused == (((record.topic, record.partition), record.offset, record.offset + 1),)
            slow.commit()


def test_a_lock_that_is_renewed_does_not_run_out(cluster: FakeCluster) -> None:
    with open_share(cluster, lock_timeout_ms=300) as consumer:
        record = take(consumer, 1)[0]
        for _ in range(4):
            time.sleep(0.15)
            consumer.renew(record)
        consumer.acknowledge(record)
        consumer.commit()
        assert state(cluster, record.partition).accepted == 1


def test_what_a_slow_member_has_not_come_to_goes_to_others(cluster: FakeCluster) -> None:
    cluster.create("one")
    cluster.append("one", [b"1", b"2", b"3", b"4"])
    with open_share(cluster, "one", lock_timeout_ms=600) as slow:
        begun = iter(slow)
        next(begun)
        with open_share(cluster, "one", lock_timeout_ms=600) as quick:
            assert [r.value for r in take(quick, 3)] == [b"2", b"3", b"4"]


def test_a_member_that_is_not_known_joins_again_and_goes_on(cluster: FakeCluster) -> None:
    port = cluster.coordinator_port
    with open_share(cluster, max_poll_records=1) as consumer:
        first = take(consumer, 1)[0]
        port.shares._groups["workers"].members.clear()
        port.shares._groups["workers"].partitions["t", 0].locks.put(0, 10, None)
        port.shares._groups["workers"].partitions["t", 1].locks.put(0, 10, None)
        seen = {(first.partition, first.offset)}
        for record in consumer:
            seen.add((record.partition, record.offset))
            if all_settled(cluster) or len(seen) == 7:
                break
        assert len(seen) == 7


@pytest.mark.parametrize("error", [CoordinatorNotAvailable("loading"), ActorLost("gone")])
def test_calls_that_fail_are_made_again(cluster: FakeCluster, error: Exception) -> None:
    with open_share(cluster) as consumer:
        cluster.coordinator_port.share_errors += [error, error, error]
        assert len(take(consumer, 7)) == 7
    eventually(lambda: all_settled(cluster))


def test_a_reply_that_is_lost_is_had_by_the_same_call_again(cluster: FakeCluster) -> None:
    lost = ActorLost("after it happened")
    lost.after = True  # type: ignore[attr-defined]
    with open_share(cluster) as consumer:
        cluster.coordinator_port.share_errors += [lost, lost, lost]
        records = take(consumer, 7)
        assert values(records) == [b"a", b"b", b"c", b"d", b"e", b"x", b"y"]
    eventually(lambda: all_settled(cluster))


def test_markers_and_lost_records_do_not_hold_up_the_rest(cluster: FakeCluster) -> None:
    cluster.create("gaps")
    part = cluster.append("gaps", [b"1", b"2"])
    cluster.append_control("gaps")
    cluster.append("gaps", [b"3"])
    cluster.append_control("gaps")
    part.start_offset = 1
    with open_share(cluster, "gaps", start={0: 0}) as consumer:
        assert [r.value for r in take(consumer, 2)] == [b"2", b"3"]
    eventually(lambda: state(cluster, topic="gaps").start_offset == 5)
    assert (state(cluster, topic="gaps").lost, state(cluster, topic="gaps").accepted) == (1, 2)


def test_run_accepts_what_was_handled_and_releases_what_was_not(cluster: FakeCluster) -> None:
    handled: list[bytes] = []
    failed: list[bytes] = []
    consumer = open_share(cluster, max_deliveries=2)

    def handle(record: Record) -> None:
        if record.value == b"c":
            failed.append(record.value)
            raise ValueError("no")
        handled.append(record.value)
        if len(handled) == 6 and len(failed) == 2:
            consumer.stop()

    runner = threading.Thread(target=consumer.run, args=(handle,))
    runner.start()
    eventually(lambda: len(handled) == 6 and len(failed) == 2)
    consumer.stop()
    runner.join()
    consumer.close()
    assert sorted(handled) == [b"a", b"b", b"d", b"e", b"x", b"y"]
    assert (state(cluster).archived, state(cluster).accepted) == (1, 4)


def test_run_stops_at_an_error_where_that_is_asked_for(cluster: FakeCluster) -> None:
    with open_share(cluster) as consumer:

        def handle(record: Record) -> None:
            raise ValueError(record.value)

        with pytest.raises(ValueError, match="b'"):
            consumer.run(each_record=handle, on_error="stop")
    assert state(cluster).accepted + state(cluster, 1).accepted == 0


def test_a_record_that_cannot_be_deserialized_is_released(cluster: FakeCluster) -> None:
    def strict(value: bytes) -> bytes:
        if value == b"a":
            raise ValueError("broken")
        return value

    with open_share(cluster, value_deserializer=strict, max_deliveries=1) as consumer:
        got: list[Record] = []
        with pytest.raises(InvalidRecord, match="the record is released"):
            got.extend(consumer)
        eventually(lambda: state(cluster).archived == 1)
        take(consumer, 3)


def test_stop_ends_a_loop_and_it_can_be_taken_up_again(cluster: FakeCluster) -> None:
    with open_share(cluster) as consumer:
        got = []
        for record in consumer:
            got.append(record)
            consumer.stop()
        assert len(got) == 1
        got += take(consumer, 6)
        assert len({(r.partition, r.offset) for r in got}) == 7


async def test_records_and_batches_by_coroutines(cluster: FakeCluster) -> None:
    consumer = await asyncio.to_thread(open_share, cluster)
    got = []
    async for record in consumer:
        got.append(record)
        if len(got) == 3:
            break
    while len(got) < 7:
        batch = await consumer.poll_async(5)
        assert batch is not None
        got += list(batch)
    assert await consumer.poll_async(0.02) is None
    await asyncio.to_thread(consumer.close)
    assert len({(r.partition, r.offset) for r in got}) == 7
    assert all_settled(cluster)


async def test_the_thin_coroutines_over_it(cluster: FakeCluster) -> None:
    async with AioShareConsumer(await asyncio.to_thread(open_share, cluster, max_poll_records=2)) as consumer:
        first = await anext(aiter(consumer))
        consumer.renew(first)
        assert consumer.deliveries(first) == 1
        consumer.acknowledge(first)
        batch = await consumer.poll(5)
        assert batch is not None
        consumer.acknowledge(batch, "release")
        async for more in consumer.batches():
            consumer.acknowledge(more, "accept")
            consumer.stop()
        await consumer.commit()
        assert state(cluster).accepted + state(cluster, 1).accepted >= 2
        await consumer.close()
    assert consumer.sync.closed


def test_a_new_group_starts_where_it_is_told_to(cluster: FakeCluster) -> None:
    with open_share(cluster, start="latest"):
        assert (state(cluster).start_offset, state(cluster, 1).start_offset) == (5, 2)
    with open_share(cluster, share="others", start={0: 4, 1: 1}) as consumer:
        assert values(take(consumer, 2)) == [b"e", b"y"]


def test_bad_use_is_refused_with_a_sentence(cluster: FakeCluster) -> None:
    cluster.create("typed", schema=raw_rows([]).schema)
    refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        ("nowhere", {}, TopicNotFound, "there is no topic 'nowhere'"),
        ([], {}, InvalidArgument, "needs a topic"),
        (7, {}, InvalidArgument, "topics must be a name"),
        ("t", {"dead_letter": "t"}, InvalidArgument, "come round again"),
        ("t", {"dead_letter": "typed"}, InvalidArgument, "raw one"),
        ("t", {"dead_letter": "nowhere"}, TopicNotFound, "nowhere"),
        ("t", {"share": ""}, InvalidArgument, "share group"),
    ]
    for topics, how, error, said in refused:
        with pytest.raises(error, match=said):
            open_share(cluster, topics, **how)
    consumer = open_share(cluster)
    record = take(consumer, 1)[0]
    with pytest.raises(InvalidArgument, match="no acknowledgement"):
        consumer.acknowledge(record, "keep")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="not int"):
        consumer.acknowledge(7)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="not in hand"):
        consumer.deliveries(record._replace(offset=77))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(consumer)
    consumer.close()
    consumer.close()
    with pytest.raises(Closed):
        consumer.poll()


def test_a_compacted_batch_is_cut_where_records_are_missing() -> None:
    header: Any = None
    piece = Piece(0, raw_rows([b"1", b"3", b"4"]), header, np.array([0, 2, 3]), pa.array([1, 2, 3]))
    batch = Batch(Shape("t", False, None, None), 0, [piece], RAW_SCHEMA, next_offset=4, high_watermark=9)
    assert batch.contiguous() == [(0, 1), (2, 4)]
    assert [batch.between(*bounds).offsets for bounds in batch.contiguous()] == [range(1), range(2, 4)]
    assert [len(batch.between(*bounds)) for bounds in batch.contiguous()] == [1, 2]
